"""`make demo`: a throw-away cluster with simulated sensors, and answers that change while one watches.

Owns the cluster (a Sandbox) and the publisher while it runs. Writes nothing outside the sandbox's directory.
DEMO_SECONDS in the environment ends it by itself.
"""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import Any, Final

from common.errors import ConfigError, MinitrueError
from common.process import Stop
from tools.sandbox_app import Sandbox
from tools.sandbox_files import ROOT

EVERY_S: Final = 2.0
DEVICE, METRIC = "sensor_1", "temperature"
OPERATIONS: Final = ("avg", "min", "max")
PUBLISHER: Final = ("tools/publisher", "--sim", "--devices", "10", "--rate", "200")


def main() -> None:
    """Run the demo until Ctrl-C, or for DEMO_SECONDS. Exit code 1 when no answer ever came."""
    stop = Stop()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        answers = _demo(stop, _seconds())
    except MinitrueError as error:
        print(f"demo: {error}", file=sys.stderr)
        sys.exit(1)
    print("\nEnded, and everything removed. Next: `make run` for a cluster that stays, README.md for the rest.")
    sys.exit(0 if answers else 1)


def _seconds() -> float | None:
    text = os.environ.get("DEMO_SECONDS")
    try:
        return None if text is None else float(text)
    except ValueError:
        raise ConfigError(f"DEMO_SECONDS = {text!r}: want a number of seconds") from None


def _demo(stop: Stop, seconds: float | None) -> int:
    """How many answers were shown."""
    begin_s = time.monotonic()
    print("Starting a broker, a bridge, three storage nodes and a query worker ...", flush=True)
    with Sandbox(nodes=3, replication=2, broker="embedded", stop=stop) as cluster:
        print(f"Ready after {time.monotonic() - begin_s:.1f} s, in {cluster.dir} (removed at the end).")
        _print_how_to_ask(cluster)
        with (cluster.dir / "data" / "log" / "publisher.log").open("w") as log:
            command = [*PUBLISHER, "--url", cluster.mqtt]
            publisher = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        try:
            return _show_answers(cluster, stop, seconds)
        finally:
            publisher.terminate()
            publisher.wait()


def _print_how_to_ask(cluster: Sandbox) -> None:
    request = {"device_id": DEVICE, "metric_name": METRIC, "operation": "avg", "start_time": 0, "end_time": 0}
    print(f"""
10 simulated sensors publish 200 points a second to {cluster.mqtt}. In a browser:

  {cluster.http}/

In another terminal:

  curl -s {cluster.http}/query -d '{json.dumps(request)}'
  curl -s {cluster.http}/api/v1/series
  export MINITRUE_CONFIG={cluster.config}
  tools/ringctl status
  tools/ringctl add ing4 --supervisor {cluster.dir}/supervisord.conf

Ctrl-C ends the demo.
""", flush=True)


def _show_answers(cluster: Sandbox, stop: Stop, seconds: float | None) -> int:
    shown = 0
    end_s = None if seconds is None else time.monotonic() + seconds
    while not stop.wait(EVERY_S) and (end_s is None or time.monotonic() < end_s):
        answers = {operation: _ask(cluster.http, operation) for operation in OPERATIONS}
        if any(answer is None for answer in answers.values()):
            print(f"{DEVICE} {METRIC}: nothing stored yet", flush=True)
            continue
        shown += 1
        figures = ", ".join(f"{operation} {answer['result']:.3f}" for operation, answer in answers.items() if answer)
        last = answers[OPERATIONS[-1]] or {}
        took_ms = last["duration_ns"] / 1e6
        print(f"{DEVICE} {METRIC}: count {last['count']}, {figures}  ({took_ms:.1f} ms)", flush=True)
    return shown


def _ask(http: str, operation: str) -> dict[str, Any] | None:
    """The answer to a query over all time; None where the series is not there yet, or a worker is away."""
    request = {"device_id": DEVICE, "metric_name": METRIC, "operation": operation, "start_time": 0, "end_time": 0}
    try:
        with urllib.request.urlopen(http + "/query", json.dumps(request).encode(), timeout=10) as reply:
            answer: dict[str, Any] = json.load(reply)
    except urllib.error.URLError:  # an HTTP error is one too
        return None
    return answer if answer["count"] else None


if __name__ == "__main__":
    main()
