"""A store in this process, filled and asked: what `bench storage` measures.

Batches go in as a node gets them, encoded, 20,000 rows each; each is decoded, logged with an fdatasync of its own and
appended, which is the cost of writing. What else the process does from the first batch until everything is sealed and
compacted is the cost of tidying, whichever thread does it; making the batches is neither.
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from common import config, protocol
from common.points import PointBatch
from common.selector import Selector
from common.series import Series
from tools.bench.data import PLANT, Dataset, Rows, labels, series_keys
from tools.bench.peers import Buckets, tree_bytes
from workers.storage.aggregate import Rows as Found
from workers.storage.aggregate import values_of
from workers.storage.store import LoggedBatch, Store

Floats = npt.NDArray[np.float64]

PARTITIONS: Final = 1024
EVERYWHERE: Final = protocol.bitmap(range(PARTITIONS), PARTITIONS)
BATCH_ROWS: Final = 20_000
ALL: Final = Selector(PLANT, "temperature")


class Costs(NamedTuple):
    """CPU seconds of all threads; bytes: of the whole directory, sealed, compacted and closed."""

    points: int
    writing_s: float
    tidying_s: float
    bytes: int

    def figures(self) -> dict[str, float]:
        """Per point."""
        return {
            "bytes_per_point": self.bytes / self.points,
            "ingest_us": 1e6 * self.writing_s / self.points,
            "tidy_us": 1e6 * self.tidying_s / self.points,
        }


@contextmanager
def opened(directory: Path, settings: config.Storage | None = None) -> Iterator[Store]:
    """The store of a directory, closed at the end."""
    store = Store.open(directory, "bench", "bench", PARTITIONS, settings or config.Storage())
    try:
        yield store
    finally:
        store.close()


def bodies(points: Dataset, rows: int = BATCH_ROWS) -> Iterator[bytes]:
    """The points as bodies of batches."""
    keys = series_keys(points.series)
    for part in points.parts(rows):
        yield body(keys, part)


def body(keys: list[bytes], rows: Rows) -> bytes:
    """The body of one batch. keys: of all series that rows.owners may mean."""
    used, index = np.unique(rows.owners, return_inverse=True)
    table = [keys[owner] for owner in used.tolist()]
    return PointBatch(table, index.astype(np.uint32), rows.times, rows.values).encode()


def append(store: Store, body: bytes) -> None:
    """What a node does with a batch, but for the bus."""
    store.append([LoggedBatch(body, 1, PointBatch.decode(body))])


def fill(store: Store, batches: Iterable[bytes]) -> None:
    """Append everything, and tick as a worker does."""
    for each in batches:
        append(store, each)
        store.tick()


def measure(directory: Path, batches: Iterable[bytes], points: int) -> Costs:
    """Fill a new store, seal, compact and close it."""
    writing_s = making_s = 0.0
    begin_s = time.process_time()
    with opened(directory) as store:
        coming = iter(batches)
        while True:
            began_s = time.thread_time()
            each = next(coming, None)
            made_s = time.thread_time()
            making_s += made_s - began_s
            if each is None:
                break
            append(store, each)
            writing_s += time.thread_time() - made_s
        store.seal()
        store.compact()
    whole_s = time.process_time() - begin_s
    return Costs(points, writing_s, whole_s - writing_s - making_s, tree_bytes(directory))


def aggregate(
    store: Store, series: Series, start: int | None = None, end: int | None = None
) -> protocol.AggregateReply:
    """The aggregate of one series."""
    return store.aggregate(series.device_id, series.metric_name, dict(series.tags), EVERYWHERE, start, end)


def by_series(store: Store) -> Floats:
    """The mean of each series of data.PLANT."""
    return _means(store.by_series(ALL, EVERYWHERE, None, None))


def by_interval(store: Store, interval_ns: int) -> Floats:
    """The mean of each series of data.PLANT in each interval that has points."""
    return _means(_buckets(store, interval_ns))


def means_by(store: Store, points: Dataset, interval_ns: int) -> Buckets:
    """The same by the series' labels, as peers give it, from a store whose first batch had all series."""
    found = _buckets(store, interval_ns)
    ends = np.flatnonzero(np.diff(found.ids)) + 1
    named = [labels(points.series[place]) for place in np.unique(found.ids).tolist()]  # ids count arrivals
    return dict(zip(named, (part.tolist() for part in np.split(_means(found), ends)), strict=True))


def _buckets(store: Store, interval_ns: int) -> Found:
    return store.by_interval(ALL, EVERYWHERE, None, None, interval_ns, wants={"mean"})


def _means(found: Found) -> Floats:
    columns = values_of(found.rows)
    means: Floats = (columns.sum_hi + columns.sum_lo) / columns.counts
    return means


def samples(store: Store) -> Iterator[npt.NDArray[np.int64]]:
    """The times of all points of data.PLANT, decoded with their values."""
    for _, times, _ in store.samples(ALL, EVERYWHERE, None, None):
        yield times
