"""Two nodes with the same points, made without sending any, and what one of them needs to compare them.

Owns the directories: segments are written where a node that starts finds them. Points of all series but one lie in a
segment that both have copies of, those of the last series in another one, which can be written again with a gap.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
import numpy as np

from common import config
from common.ring import Node, Ring
from common.ringbuild import first_ring
from common.ringstore import FileStore
from common.series import series_hash
from tools.bench import alone, data
from tools.bench.drain import free_port_runs
from tools.ring_ask import Asker
from workers.storage import kernels, layout, seal, segment
from workers.storage.head import Grouped
from workers.storage.layout import Layout

CLUSTER: Final = "bench"
PARTITIONS: Final = 1024
NAMES: Final = ("n1", "n2")
MANY, LAST = 1, 2  # numbers of segments
MOST_LACKING: Final = 1000  # rows
READY_S: Final = 60.0
ENDED_S: Final = 600.0
LOOK_S: Final = 0.05
ROOT: Final = Path(__file__).resolve().parents[2]


class Compared(NamedTuple):
    """What one repair took. read_bytes: by both processes; summarized, decoded: blocks, by both, to compare."""

    seconds: float
    cpu_s: float
    read_bytes: int
    summarized: int
    decoded: int
    moved_points: int
    moved_bytes: int


class Filled(NamedTuple):
    """What it took to fill a node again. cpu_s: of both nodes since they were started."""

    seconds: float
    cpu_s: float
    points: int
    bytes: int


class Pair:
    """The directories of two nodes. stored_bytes: of the segments of one."""

    def __init__(self, scratch: Path, series: int, steps: int) -> None:
        """Writes them: series with so many points each, every 10 s."""
        self.scratch = scratch
        self._steps = steps
        self._keys = sorted(
            data.series_keys(map(data.of_plant_series, range(series))), key=lambda each: (series_hash(each), each)
        )
        self._random = np.random.default_rng(data.SEED)
        self._last = self._walks(1)
        for name in NAMES:
            self._opened(name).lock.release()
        self._write(NAMES[0], MANY, self._keys[:-1], self._walks(series - 1))
        shutil.copy(self._path(NAMES[0], MANY), self._path(NAMES[1], MANY))
        for name in NAMES:
            self._write(name, LAST, self._keys[-1:], self._last)
        self.stored_bytes = sum(self._path(NAMES[0], number).stat().st_size for number in (MANY, LAST))

    def lose_a_stretch(self) -> int:
        """Write the last series of the second node again, without a stretch in its middle: how many points it lacks."""
        lacking = max(1, min(MOST_LACKING, self._steps // 10))
        kept = np.ones(self._steps, np.bool_)
        kept[self._steps // 2 : self._steps // 2 + lacking] = False
        self._write(NAMES[1], LAST, self._keys[-1:], self._last, kept)
        return lacking

    def lose_disk(self) -> None:
        """Leave nothing of the second node's directory."""
        shutil.rmtree(self.directory(NAMES[1]))

    def directory(self, name: str) -> Path:
        """Where a node's data lie."""
        return self.scratch / name

    def _opened(self, name: str) -> Layout:
        return layout.open_directory(self.directory(name), CLUSTER, name)

    def _path(self, name: str, number: int) -> Path:
        place = self._opened(name)
        place.lock.release()
        return place.segment_path(number)

    def _walks(self, series: int) -> data.Values:
        """By series, one behind the other."""
        values = np.empty((series, self._steps))
        for walk in values:
            walk[:] = data.walk(self._random, 1, self._steps, 5)[:, 0]
        return values

    def _write(self, name: str, number: int, keys: list[bytes], values: data.Values, kept: Any = slice(None)) -> None:
        """A segment of some series. kept: which of the steps."""
        times = data.grid(10 * data.SECOND_NS, 1, self._steps)[kept, 0]
        hashes, mixed = np.array(list(map(series_hash, keys)), np.uint64), np.empty(len(keys), np.uint64)
        kernels.mix_hashes(hashes, mixed)
        ids = np.arange(len(keys))
        rows = np.tile(times, len(keys)), values[:, kept].reshape(-1)
        grouped = Grouped(ids, hashes, mixed, np.arange(len(keys) + 1) * len(times), *rows)
        place = self._opened(name)
        try:
            header = segment.Header(place.store_id, place.store_id, 0, (), ())
            before = np.full(len(keys), segment.EARLIEST)
            seal.write_segment(place.segment_path(number), header, grouped, keys, before, config.Storage().codec)
        finally:
            place.lock.release()


class Nodes:
    """Both, running."""

    def __init__(self, ring: Ring, pids: tuple[int, ...]) -> None:
        self._ring = ring
        self._pids = pids
        self._asker = Asker(None, 0)

    def wait(self) -> None:
        """Until both answer. Raises ClickException."""
        _until(lambda: all(isinstance(each, dict) for each in self._statuses().values()), READY_S, "nodes are ready")

    def repaired(self) -> Compared:
        """Let the second one compare everything with the first one, and get what it lacks. Raises ClickException."""
        before = self._spent()
        number = self._asker.repair(self._ring, NAMES[1], range(PARTITIONS)).job
        _until(lambda: self._job(number).state not in ("waiting", "running"), ENDED_S, "the repair has ended")
        after, job = self._spent(), self._job(number)
        if job.state != "done":
            raise click.ClickException(f"the repair is {job.state}: {job.error}")
        cpu_s, *spent = (now - then for now, then in zip(after, before, strict=True))
        read, summarized, decoded = map(int, spent)
        return Compared(job.seconds, cpu_s, read, summarized, decoded, job.points, job.bytes)

    def refilled(self) -> Filled:
        """Wait until the second one, which lost its disk, is filled again. Raises ClickException."""
        _until(lambda: self._statuses()[NAMES[1]]["behind"] is None, ENDED_S, "the node is filled again")
        (job,) = [job for job in self._asker.jobs(self._ring, NAMES[1]) if job.kind == "refill"]
        return Filled(job.seconds, sum(map(alone.cpu_s, self._pids)), job.points, job.bytes)

    def _statuses(self) -> dict[str, Any]:
        return self._asker.statuses(self._ring, NAMES)

    def _job(self, number: int) -> Any:
        return self._asker.job(self._ring, NAMES[1], number)

    def _spent(self) -> tuple[float, ...]:
        told = self._statuses()[NAMES[1]]["repair"]
        cpu_s = sum(map(alone.cpu_s, self._pids))
        return cpu_s, sum(map(alone.read_bytes, self._pids)), told.get("summarized", 0), told.get("decoded", 0)


@contextmanager
def running(pair: Pair) -> Iterator[Nodes]:
    """Both nodes, started, and ended afterwards."""
    ring = _ring(pair.scratch)
    environment = os.environ | {
        "MINITRUE__CLUSTER__RING_STORE": f"file:{pair.scratch}/ring.json",
        "MINITRUE__PATHS__DATA": str(pair.scratch),
        "MINITRUE__STORAGE__REPAIR_RATE_BYTES": "0",
        "MINITRUE__LOG__LEVEL": "error",
    }
    command = [sys.executable, "-m", "workers.storage", "--node-id"]
    started = [
        subprocess.Popen([*command, name, "--data-dir", str(pair.directory(name))], env=environment, cwd=ROOT)
        for name in NAMES
    ]
    try:
        nodes = Nodes(ring, tuple(each.pid for each in started))
        nodes.wait()
        yield nodes
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait()


def _ring(scratch: Path) -> Ring:
    """The ring of both, made the first time."""
    store = FileStore(scratch / "ring.json")
    known = store.load()
    if known is not None:
        return known
    ports = [port for port, _, _ in free_port_runs(len(NAMES))]
    ids = zip(NAMES, ports, strict=True)
    nodes = [Node(name, "", f"tcp://127.0.0.1:{port}", "local", 1.0, "active") for name, port in ids]
    ring = first_ring(CLUSTER, nodes, PARTITIONS, len(nodes))
    store.save(ring, 0)
    return ring


def _until(is_so: Any, within_s: float, what: str) -> None:
    deadline_s = time.monotonic() + within_s
    while not is_so():
        if time.monotonic() > deadline_s:
            raise click.ClickException(f"waited {within_s:g} s until {what}")
        time.sleep(LOOK_S)
