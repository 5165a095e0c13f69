"""Parts "replay", "opening", "memory" and "growth" of bench storage: what time and memory do as data grow.

Each store is opened in a process of its own, and memory is what that process holds in all, Python and numba included.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from common import config
from tools.bench import data, engine
from tools.bench.alone import alone, peak_mb, resident_mb
from tools.bench.data import SECOND_NS, SEED, START_NS, Rows
from tools.bench.findings import Bar, Finding, times_ms

PERIOD_NS: Final = 30 * 86_400 * SECOND_NS  # a segment in each: compaction leaves them apart
GROUPS: Final = 100  # of series in the opening test; every segment holds one of them
STEPS: Final = 10  # points of a series in one such segment
GROWTH: Final = (1, 10, 100)


class Opening(NamedTuple):
    """What opening a directory took, and what the process held then."""

    seconds: float
    cpu_s: float
    resident_mb: float
    peak_mb: float
    points: int
    series: int
    segments: int


def replay(scale: float) -> Iterator[Finding]:
    """Opening with many points in the WAL."""
    points = data.made("replay", 500, round(20_000 * scale), data.regular(10 * SECOND_NS, 5))
    unsealed = config.Storage(head_rows=1 << 25, head_wal_bytes=1 << 32, head_bytes=1 << 32, memory_bytes=1 << 34)
    with tempfile.TemporaryDirectory(prefix="store-") as scratch:
        directory = Path(scratch) / "node"
        with engine.opened(directory, unsealed) as store:
            engine.fill(store, engine.bodies(points))
        found = alone(open_and_look, directory)
    name = f"{len(points) / 1e6:g} M points in the WAL"
    yield Finding(name, "replay", "s", found.seconds, bar=Bar("most", 3))
    yield Finding(name, "CPU of it", "s", found.cpu_s)
    yield Finding(name, "most memory", "MB", found.peak_mb)


def opening(scale: float) -> Iterator[Finding]:
    """Opening with many segments and series."""
    segments, series = round(1000 * scale), round(100_000 * scale)
    with tempfile.TemporaryDirectory(prefix="store-") as scratch:
        directory = Path(scratch) / "node"
        make_segments(directory, segments, series)
        found = [alone(open_and_look, directory) for _ in range(3)]
    name = f"{found[0].segments:,} segments, {found[0].series:,} series"
    yield Finding(name, "opening", "s", statistics.median(each.seconds for each in found), bar=Bar("most", 2))
    yield Finding(name, "CPU of it", "s", statistics.median(each.cpu_s for each in found))
    memory = statistics.median(each.resident_mb for each in found)
    yield Finding(name, "memory", "MB", memory, bar=Bar("most", 300))


def make_segments(directory: Path, segments: int, series: int) -> None:
    """A store with so many segments: each in a period of its own, with one of GROUPS groups of the series."""
    names = data.series_keys(data.of_device(number) for number in range(series))
    random, each = np.random.default_rng(SEED), series // GROUPS
    times = np.repeat(np.arange(STEPS, dtype=np.int64) * 60 * SECOND_NS, each)
    owners = np.tile(np.arange(each, dtype=np.uint32), STEPS)
    with engine.opened(directory) as store:
        for segment in range(segments):
            values = data.walk(random, each, STEPS, 5).reshape(-1)
            begin = segment % GROUPS * each
            rows = Rows(owners, times + START_NS + segment * PERIOD_NS, values)
            engine.append(store, engine.body(names[begin : begin + each], rows))
            store.seal()


def open_and_look(directory: Path) -> Opening:
    """Open a store, and look at what it took."""
    begin_s, begin_cpu_s = time.perf_counter(), time.process_time()
    with engine.opened(directory) as store:
        seconds, cpu_s, held = time.perf_counter() - begin_s, time.process_time() - begin_cpu_s, resident_mb()
        told = store.status()
        return Opening(seconds, cpu_s, held, peak_mb(), told["points"], told["series"], told["segments"])


def memory(scale: float) -> Iterator[Finding]:
    """Memory of a process that writes many points of many series."""
    series, steps = round(100_000 * scale), 500
    with tempfile.TemporaryDirectory(prefix="store-") as scratch:
        writing, most, steady = alone(write_and_look, Path(scratch) / "node", series, steps)
    name = f"{series:,} series, {series * steps / 1e6:g} M points"
    yield Finding(name, "memory while writing, median", "MB", writing)
    yield Finding(name, "most memory", "MB", most, bar=Bar("most", 512))
    yield Finding(name, "memory, sealed and compacted", "MB", steady, bar=Bar("most", 512))


def write_and_look(directory: Path, series: int, steps: int) -> tuple[float, float, float]:
    """Fill a store, seal, compact: memory while writing, the most of it, and at the end; MB."""
    held: list[float] = []
    with engine.opened(directory) as store:
        for body in _side_by_side(series, steps):
            engine.append(store, body)
            held.append(resident_mb())
        store.seal()
        store.compact()
        return statistics.median(held), peak_mb(), resident_mb()


def _side_by_side(series: int, steps: int) -> Iterator[bytes]:
    """A walk of each series every 10 s, in batches as a node gets them, made as they are needed."""
    random = np.random.default_rng(SEED)
    keys = data.series_keys(data.of_plant_series(number) for number in range(series))
    units, at_once = np.full(series, 2000.0), max(1, engine.BATCH_ROWS // series)
    for step in range(0, steps, at_once):
        count = min(at_once, steps - step)
        walked = units + np.cumsum(np.rint(random.normal(0, 5, (count, series))), axis=0)
        units = walked[-1]
        times = START_NS + np.arange(step, step + count, dtype=np.int64) * 10 * SECOND_NS
        rows = Rows(
            np.tile(np.arange(series, dtype=np.uint32), count), np.repeat(times, series), walked.reshape(-1) / 100
        )
        for begin in range(0, len(rows.times), engine.BATCH_ROWS):
            yield engine.body(keys, rows.at(slice(begin, begin + engine.BATCH_ROWS)))


def growth(scale: float) -> Iterator[Finding]:
    """The same at 1x, 10x and 100x of points, then of series."""
    for times in GROWTH:
        yield from _grown(100, round(1_000 * times * scale))
    for times in GROWTH:
        yield from _grown(round(100 * times * scale), 1_000)


class Grown(NamedTuple):
    """Of one store. cpu: us per point."""

    ingest_us: float
    tidy_us: float
    bytes_per_point: float
    peak_mb: float
    one_ms: float
    all_ms: float


def _grown(series: int, steps: int) -> Iterator[Finding]:
    with tempfile.TemporaryDirectory(prefix="store-") as scratch:
        found = alone(grow_and_look, Path(scratch) / "node", series, steps)
        opened = alone(open_and_look, Path(scratch) / "node")
    name = f"{series:,} series x {steps:,}"
    yield Finding(name, "CPU, ingest", "us/point", found.ingest_us)
    yield Finding(name, "CPU, seal + compact", "us/point", found.tidy_us)
    yield Finding(name, "bytes per point", "B", found.bytes_per_point)
    yield Finding(name, "most memory", "MB", found.peak_mb)
    yield Finding(name, "mean of one series", "ms", found.one_ms)
    yield Finding(name, "mean of each series", "ms", found.all_ms)
    yield Finding(name, "opening", "ms", 1e3 * opened.seconds)
    yield Finding(name, "memory when opened", "MB", opened.resident_mb)


def grow_and_look(directory: Path, series: int, steps: int) -> Grown:
    """Fill, measure and ask one store."""
    costs = engine.measure(directory, _side_by_side(series, steps), series * steps)
    most = peak_mb()
    with engine.opened(directory) as store:
        one = times_ms(lambda: engine.aggregate(store, data.of_plant_series(0)), 25)
        each = times_ms(lambda: engine.by_series(store), 5)
    return Grown(**costs.figures(), peak_mb=most, one_ms=statistics.median(one), all_ms=statistics.median(each))
