"""Parts "reads" and "one" of bench storage: aggregates and raw samples in this process, beside peers over HTTP.

A peer's time is from the request to the last byte of its answer, on a connection that is open, without response
caches; ours is the call in this process, without bus or HTTP. Means by hour are compared with the peer's.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from common.series import Series, series_key
from tools.bench import engine, peers, storage_sizes
from tools.bench.data import SECOND_NS, SEED, START_NS, Dataset, Rows
from tools.bench.findings import Bar, Finding, times_ms
from workers.storage.store import Store

HOUR_NS: Final = 3600 * SECOND_NS
QUERIES: Final = 25  # of each kind; the median counts
ROUNDS: Final = 5
AGREES: Final = 1e-9  # relative difference of two means of the same points that were summed in another order
ONE_BATCH: Final = 100_000
ONE: Final = Series("sensor", "temperature")


class Asked(NamedTuple):
    """Of a peer: median times in ms, and its means by hour."""

    mean_ms: float
    hours_ms: float
    hours: peers.Buckets


def reads(scale: float, kinds: list[type[peers.Peer]]) -> Iterator[Finding]:
    """Means of one series, means by hour of all, raw samples."""
    for make, compared in ((storage_sizes.walks, True), (storage_sizes.long, True), (storage_sizes.jitter, False)):
        points = make(scale, of_plant=True)
        theirs = {kind.name: _ask_peer(kind, points) for kind in kinds if compared}
        with tempfile.TemporaryDirectory(prefix="store-") as scratch, engine.opened(Path(scratch) / "node") as store:
            engine.fill(store, engine.bodies(points))
            store.seal()
            store.compact()
            if compared:
                yield from _ask(store, points, theirs)
            yield _decode(store, points)


def _ask_peer(kind: type[peers.Peer], points: Dataset) -> Asked:
    with peers.running(kind) as peer:
        peer.write(points)
        peer.flush()
        peer.merge()
        mean, hours = peer.average_path(points, points.series[-1]), peer.hourly_path(points)
        return Asked(
            statistics.median(times_ms(lambda: peer.request("GET", mean), QUERIES)),
            statistics.median(times_ms(lambda: peer.request("GET", hours), QUERIES)),
            peer.buckets(peer.request("GET", hours)),
        )


def _ask(store: Store, points: Dataset, theirs: dict[str, Asked]) -> Iterator[Finding]:
    for name, asked in theirs.items():
        _compare(engine.means_by(store, points, HOUR_NS), asked.hours, name)
    last = points.series[-1]
    taken = times_ms(lambda: engine.aggregate(store, last), QUERIES)
    found = {name: asked.mean_ms for name, asked in theirs.items()}
    yield Finding(points.name, "mean of one series", "ms", statistics.median(taken), found)
    taken = times_ms(lambda: engine.by_interval(store, HOUR_NS), QUERIES)
    found = {name: asked.hours_ms for name, asked in theirs.items()}
    yield Finding(points.name, "means by hour of each series", "ms", statistics.median(taken), found, Bar("ratio", 0.3))


def _compare(ours: peers.Buckets, theirs: peers.Buckets, name: str) -> None:
    """Raise ValueError unless both have the same means."""
    if ours.keys() != theirs.keys():
        raise ValueError(f"means by hour of {len(ours)} series, {name} has {len(theirs)}")
    for series, means in ours.items():
        if len(means) != len(theirs[series]) or not np.allclose(means, theirs[series], AGREES, 0):
            raise ValueError(f"means by hour of {series} differ from those of {name}")


def _decode(store: Store, points: Dataset) -> Finding:
    best_s = min(_cpu_of_samples(store, points) for _ in range(ROUNDS))
    rate = len(points) / best_s / 1e6
    return Finding(points.name, "raw samples, per core", "M/s", rate, bar=Bar("least", 100))


def _cpu_of_samples(store: Store, points: Dataset) -> float:
    begin_s = time.process_time()
    count = sum(len(times) for times in engine.samples(store))
    if count != len(points):
        raise ValueError(f"{count} samples, want {len(points)}")
    return time.process_time() - begin_s


def one(scale: float) -> Iterator[Finding]:
    """A whole-range aggregate of one very long series."""
    count = round(100_000_000 * scale)
    name = f"1 x {count / 1e6:g} M walk at 1 s"
    with tempfile.TemporaryDirectory(prefix="store-") as scratch:
        costs = engine.measure(Path(scratch) / "node", _one_series(count), count)
        for what, figure in costs.figures().items():
            yield Finding(name, what.replace("_", " "), "", figure)
        with engine.opened(Path(scratch) / "node") as store:
            begin_s = time.perf_counter()
            engine.aggregate(store, ONE)
            yield Finding(name, "aggregate, first after opening", "ms", 1e3 * (time.perf_counter() - begin_s))
            taken = times_ms(lambda: engine.aggregate(store, ONE), QUERIES)
            yield Finding(name, "aggregate over all time", "ms", statistics.median(taken), bar=Bar("most", 1))
            cut = (START_NS + SECOND_NS // 2, START_NS + (count - 2) * SECOND_NS)
            taken = times_ms(lambda: engine.aggregate(store, ONE, *cut), QUERIES)
            yield Finding(name, "aggregate, edges cut", "ms", statistics.median(taken), bar=Bar("most", 1))
            blocks = engine.aggregate(store, ONE, *cut).blocks_decoded
            yield Finding(name, "blocks decoded, edges cut", "", blocks, bar=Bar("most", 2))


def _one_series(count: int) -> Iterator[bytes]:
    random, keys, last = np.random.default_rng(SEED), [series_key(ONE.device_id, ONE.metric_name)], 2000.0
    for begin in range(0, count, ONE_BATCH):
        rows = min(ONE_BATCH, count - begin)
        units = last + np.cumsum(np.rint(random.normal(0, 1, rows)))
        last = units[-1]
        times = START_NS + np.arange(begin, begin + rows, dtype=np.int64) * SECOND_NS
        yield engine.body(keys, Rows(np.zeros(rows, np.uint32), times, units / 100))
