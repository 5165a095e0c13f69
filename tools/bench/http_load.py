"""Load on an HTTP server with keep-alive connections, and what it measured: wrk where it is installed, else our own.

Our own client is Python: with many connections it is the slower side, and understates the server.
"""

import http.client
import re
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from typing import Final, NamedTuple

_UNITS_MS: Final = {"us": 1e-3, "ms": 1.0, "s": 1e3}


class Measured(NamedTuple):
    """Latencies in ms. failed: answers that were not 200."""

    p50_ms: float
    p99_ms: float
    per_s: float
    failed: int


def client_name() -> str:
    """Which client `load` uses."""
    return "wrk" if shutil.which("wrk") else "python"


def load(port: int, path: str, body: str, connections: int, seconds: float) -> Measured:
    """POST the body again and again over some connections; GET where it is empty."""
    run = _wrk if shutil.which("wrk") else _python
    return run(port, path, body, connections, seconds)


def _wrk(port: int, path: str, body: str, connections: int, seconds: float) -> Measured:
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(f"wrk.method = 'POST'\nwrk.body = [[{body}]]\n" if body else "")
        script.flush()
        command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--latency", "-s", script.name]
        done = subprocess.run([*command, f"http://127.0.0.1:{port}{path}"], capture_output=True, text=True, check=True)
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)", done.stdout)
    return Measured(
        _percentile(done.stdout, "50"),
        _percentile(done.stdout, "99"),
        float(re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)[1]),  # type: ignore[index]
        int(failed[1]) if failed else 0,
    )


def _percentile(text: str, percent: str) -> float:
    found = re.search(rf"^\s+{percent}%\s+([\d.]+)(us|ms|s)$", text, re.MULTILINE)
    if found is None:
        raise ValueError(f"wrk printed no {percent}% latency: {text[-500:]!r}")
    return float(found[1]) * _UNITS_MS[found[2]]


def _python(port: int, path: str, body: str, connections: int, seconds: float) -> Measured:
    taken: list[float] = []
    failed: list[int] = []
    deadline = time.perf_counter() + seconds

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        while (begun := time.perf_counter()) < deadline:
            connection.request("POST" if body else "GET", path, body or None)
            response = connection.getresponse()
            response.read()
            taken.append(time.perf_counter() - begun)
            if response.status != 200:
                failed.append(response.status)
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cuts = statistics.quantiles(taken, n=100)
    return Measured(cuts[49] * 1e3, cuts[98] * 1e3, len(taken) / seconds, len(failed))
