"""Other time-series databases as processes of their own, to measure beside minitrue: VictoriaMetrics and InfluxDB 1.

Each runs from the command that its Debian package installs, on free loopback ports and in a temporary directory,
takes points as line protocol over HTTP and answers queries over HTTP. Its CPU is user and system time of the
process, from /proc. Bytes at rest are lengths of files, data and index, without caches, logs and what lies allocated.
"""

import http.client
import json
import re
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.parse
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click

from common.series import Series
from tools.bench import alone
from tools.bench.data import MS_NS, Dataset, Rows, labels

BATCH_LINES: Final = 20_000
READY_S: Final = 30.0
SETTLE_S: Final = 300.0
QUIET_POLLS: Final = 5  # equal pictures in a row that mean: nothing goes on any more
POLL_S: Final = 0.2
HOUR_MS: Final = 3_600_000
STOP_S: Final = 30.0

Buckets = dict[tuple[tuple[str, str], ...], list[float]]


class Peer(ABC):
    """A running database. Made by `running`; owned by one thread."""

    name = ""
    command = ""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port, self.other_port = free_port(), free_port()
        with (directory / "log").open("wb") as output:
            self.process = subprocess.Popen(self.arguments(), stdout=output, stderr=output)
        self._connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SETTLE_S)

    @classmethod
    def installed(cls) -> bool:
        """Whether its command is on this machine."""
        return shutil.which(cls.command) is not None

    @classmethod
    def version(cls) -> str:
        """As its package is versioned."""
        done = subprocess.run(
            ["dpkg-query", "--show", "--showformat=${Version}", cls.package()], capture_output=True, text=True
        )
        return done.stdout or "unknown"

    @classmethod
    @abstractmethod
    def package(cls) -> str:
        """The Debian package that installs it."""

    @abstractmethod
    def arguments(self) -> list[str]:
        """Its command line."""

    def wait_until_ready(self) -> None:
        """Wait for its first answer. Raises ClickException when there is none."""
        deadline = time.monotonic() + READY_S
        while True:
            try:
                self.request("GET", "/ping")
                return
            except OSError as error:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise click.ClickException(f"{self.name} did not answer: {error}") from error
                self._connection.close()
                time.sleep(0.05)

    def request(self, method: str, path: str, body: bytes | str | None = None) -> bytes:
        """One request, and the body of its answer. Raises ClickException unless it is a success."""
        self._connection.request(method, path, body)
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status >= 300:
            raise click.ClickException(f"{self.name}: {method} {path[:200]}: {answer.status} {text[:300]!r}")
        return text

    def write(self, points: Dataset) -> None:
        """Send all rows, each request when the one before is answered."""
        prefixes = [line_prefix(each) for each in points.series]
        for rows in points.parts(BATCH_LINES):
            self.request("POST", self.write_path(), lines(prefixes, rows))

    @abstractmethod
    def write_path(self) -> str:
        """Where lines with times in milliseconds go."""

    @abstractmethod
    def flush(self) -> None:
        """Get everything written to its files, and wait until it rests."""

    @abstractmethod
    def merge(self) -> None:
        """Make its files as small as it can, and wait until it rests."""

    @abstractmethod
    def bytes_at_rest(self) -> int:
        """Lengths of its files of data and index."""

    @abstractmethod
    def average_path(self, points: Dataset, series: Series) -> str:
        """The request for the mean of one series over all time."""

    @abstractmethod
    def hourly_path(self, points: Dataset) -> str:
        """The request for the mean temperature of each series in each hour."""

    @abstractmethod
    def buckets(self, answer: bytes) -> Buckets:
        """The means in an answer to `hourly_path`, by the series' labels."""

    def cpu_s(self) -> float:
        """User and system time so far."""
        return alone.cpu_s(self.process.pid)

    def stop(self) -> None:
        """End the process."""
        self._connection.close()
        self.process.terminate()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _wait_until_equal(self, picture: Callable[[], Any]) -> None:
        """Wait until a function gives the same some times in a row; None never counts."""
        deadline, equal, last = time.monotonic() + SETTLE_S, 0, None
        while equal < QUIET_POLLS:
            time.sleep(POLL_S)
            now = picture()
            equal = equal + 1 if now is not None and now == last else 0
            last = now
            if time.monotonic() > deadline:
                raise click.ClickException(f"{self.name} did not come to rest within {SETTLE_S:g} s")


class VictoriaMetrics(Peer):
    """Single-node VictoriaMetrics, never forgetting, without response caches in queries."""

    name = "VictoriaMetrics"
    command = "victoria-metrics"

    @classmethod
    def package(cls) -> str:
        return "victoria-metrics"

    def arguments(self) -> list[str]:
        return [
            self.command, f"-storageDataPath={self.directory / 'data'}", f"-httpListenAddr=127.0.0.1:{self.port}",
            "-retentionPeriod=100y", "-search.latencyOffset=0s", "-search.maxPointsPerTimeseries=100000000",
            "-search.maxUniqueTimeseries=10000000", "-influxSkipSingleField", "-search.maxSamplesPerSeries=1000000000",
            "-search.maxQueryDuration=300s", "-http.disableResponseCompression",
        ]  # fmt: skip

    def write_path(self) -> str:
        return "/write?precision=ms"

    def flush(self) -> None:
        self.request("GET", "/internal/force_flush")
        self._wait_until_equal(self._parts_at_rest)

    def merge(self) -> None:
        self.request("GET", "/internal/force_merge")
        time.sleep(POLL_S)  # the answer comes before it begins
        self._wait_until_equal(self._parts_at_rest)

    def bytes_at_rest(self) -> int:
        return sum(self.sizes().values())

    def sizes(self) -> dict[str, int]:
        """Bytes of the samples' files, and of the index of series."""
        return {part: tree_bytes(self.directory / "data" / part) for part in ("data", "indexdb")}

    def average_path(self, points: Dataset, series: Series) -> str:
        wanted = ",".join(f'{name}="{text}"' for name, text in labels(series))
        first, last = points.span_ms()
        expression = f"avg_over_time({series.metric_name}{{{wanted}}}[{last - first + 1}ms])"
        return "/api/v1/query?" + urllib.parse.urlencode({"query": expression, "time": last / 1000, "nocache": 1})

    def hourly_path(self, points: Dataset) -> str:
        first, last = points.span_ms()
        begin = first // HOUR_MS * HOUR_MS + HOUR_MS - 1  # its windows are open at the left: (t - 1 h, t]
        parameters = {
            "query": "avg_over_time(temperature[1h])", "start": begin / 1000, "end": (last + HOUR_MS) / 1000,
            "step": "1h", "nocache": 1,
        }  # fmt: skip
        return "/api/v1/query_range?" + urllib.parse.urlencode(parameters)

    def buckets(self, answer: bytes) -> Buckets:
        found: Buckets = {}
        for each in json.loads(answer)["data"]["result"]:
            del each["metric"]["__name__"]
            found[tuple(sorted(each["metric"].items()))] = [float(value) for _, value in each["values"]]
        return found

    def _parts_at_rest(self) -> list[bytes] | None:
        metrics = self.request("GET", "/metrics")
        active = re.findall(rb"^vm_active_(?:force_)?merges\S* (\S+)$", metrics, re.MULTILINE)
        pending = re.findall(rb"^vm_pending_rows\S* (\S+)$", metrics, re.MULTILINE)
        if any(float(each) for each in active + pending):
            return None
        return re.findall(rb"^vm_(?:parts|data_size_bytes|rows)\{.*$", metrics, re.MULTILINE)


class Influx(Peer):
    """InfluxDB 1, told to compact as soon as writing pauses."""

    name = "InfluxDB"
    command = "influxd"

    @classmethod
    def package(cls) -> str:
        return "influxdb"

    def arguments(self) -> list[str]:
        settings = self.directory / "influxdb.conf"
        settings.write_text(f"""
reporting-enabled = false
bind-address = "127.0.0.1:{self.other_port}"
[meta]
dir = "{self.directory}/meta"
[data]
dir = "{self.directory}/data"
wal-dir = "{self.directory}/wal"
cache-snapshot-write-cold-duration = "1s"
compact-full-write-cold-duration = "2s"
query-log-enabled = false
[monitor]
store-enabled = false
[http]
bind-address = "127.0.0.1:{self.port}"
log-enabled = false
[[udp]]
enabled = false
""")
        return [self.command, "-config", str(settings)]

    def wait_until_ready(self) -> None:
        super().wait_until_ready()
        self.request("POST", "/query?" + urllib.parse.urlencode({"q": "CREATE DATABASE bench"}))

    def write_path(self) -> str:
        return "/write?db=bench&precision=ms"

    def flush(self) -> None:
        self._wait_until_equal(lambda: None if tree_bytes(self.directory / "wal") else self._files())

    def merge(self) -> None:
        self.flush()

    def bytes_at_rest(self) -> int:
        series_file = self.directory / "data" / "bench" / "_series"  # made large in advance, nearly all of it holes
        return tree_bytes(self.directory / "data") + tree_bytes(self.directory / "wal") - tree_bytes(series_file)

    def average_path(self, points: Dataset, series: Series) -> str:
        wanted = " AND ".join(f"{name} = '{text}'" for name, text in labels(series))
        return self._query_path(f"SELECT mean(value) FROM {series.metric_name} WHERE {wanted}")

    def hourly_path(self, points: Dataset) -> str:
        first, last = points.span_ms()
        limits = f"time >= {first}ms AND time <= {last}ms"
        return self._query_path(f"SELECT mean(value) FROM temperature WHERE {limits} GROUP BY time(1h), *")

    def buckets(self, answer: bytes) -> Buckets:
        found = json.loads(answer)["results"][0]["series"]
        return {tuple(sorted(each["tags"].items())): [value for _, value in each["values"]] for each in found}

    def _query_path(self, text: str) -> str:
        return "/query?" + urllib.parse.urlencode({"db": "bench", "epoch": "ms", "q": text})

    def _files(self) -> list[tuple[str, int]] | None:
        found = [(str(path), path.stat().st_size) for path in sorted(self.directory.glob("data/bench/**/*.tsm*"))]
        return None if any(name.endswith(".tmp") for name, _ in found) else found


PEERS: Final[tuple[type[Peer], ...]] = (VictoriaMetrics, Influx)


@contextmanager
def running(kind: type[Peer]) -> Iterator[Any]:
    """A peer in a new directory, ready; gone at the end, its files too."""
    with tempfile.TemporaryDirectory(prefix="peer-") as directory:
        peer = kind(Path(directory))
        try:
            peer.wait_until_ready()
            yield peer
        finally:
            peer.stop()


def line_prefix(series: Series) -> str:
    """A series in line protocol, up to its value."""
    tags = "".join(f",{name}={text}" for name, text in labels(series))
    return f"{series.metric_name}{tags} value="


def lines(prefixes: list[str], rows: Rows) -> bytes:
    """Rows in line protocol, times in milliseconds. Values have the shortest text that reads back the same."""
    owners, values, times = rows.owners.tolist(), rows.values.tolist(), (rows.times // MS_NS).tolist()
    text = "\n".join([f"{prefixes[i]}{value!r} {ms}" for i, value, ms in zip(owners, values, times, strict=True)])
    return text.encode()


def tree_bytes(directory: Path) -> int:
    """Lengths of all files below; lock files have none."""
    total = 0
    for path in directory.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue  # a merge removed it
    return total


def free_port() -> int:
    """A loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
