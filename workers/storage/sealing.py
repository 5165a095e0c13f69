"""What becomes of a frozen head: a segment on disk and in the view, its WAL files gone.

Owns the frontiers, the greatest sealed time of each series; any thread may note and ask them, `_lock` guards them. The
rest belongs to the sealer's thread once the store is open; the counts are read by any. Order: the segment is durable
before the view names it, and in the view before the head leaves it and the WAL files go.
"""

import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from common import files, log
from common.codec import Policy
from common.timestamps import MIN_NS
from workers.storage import seal, segment
from workers.storage.catalog import Catalog
from workers.storage.head import Head
from workers.storage.layout import Layout
from workers.storage.opening import open_segment
from workers.storage.sealer import Frozen
from workers.storage.segment import PageCache, Segment
from workers.storage.view import CurrentView

logger = log.get("storage")


class Sealing:
    """rows, bytes, seconds: sealed so far, and the time that it took."""

    def __init__(
        self,
        place: Layout,
        catalog: Catalog,
        current: CurrentView,
        cache: PageCache,
        policy: Policy,
        on_sealed: Callable[[], None],
    ) -> None:
        """on_sealed: called after each."""
        self.rows = 0
        self.bytes = 0
        self.seconds = 0.0
        self._layout = place
        self._catalog = catalog
        self._current = current
        self._cache = cache
        self._policy: Policy = policy
        self._on_sealed = on_sealed
        self._lock = threading.Lock()
        self._frontiers = np.empty(0, np.int64)  # by catalog id

    def seal(self, frozen: Frozen) -> None:
        """Seal a head. Raises OSError, StorageError."""
        begin_s = time.perf_counter()
        head, number = frozen
        store_id = self._layout.store_id
        header = segment.Header(store_id, store_id, head.delete_number, ((head.wal_first, head.wal_last),), ())
        grouped = head.grouped()
        keys = self._catalog.keys(grouped.ids)
        path = self._layout.segment_path(number)
        frontiers = self._frontiers_of(grouped.ids)
        seal.write_segment(path, header, grouped, keys, frontiers, self._policy, self._layout.disk)
        written = open_segment(path, number, self._cache, self._catalog)
        self.note(written)
        self._current.put_sealed(written, head)
        if written in self._current.now.stored.segments:  # a reader may have found it damaged: then the WAL is needed
            self._drop_wal(head)
        self.rows += head.rows
        self.bytes += written.bytes
        self.seconds += time.perf_counter() - begin_s
        logger.info("sealed", segment=number, rows=head.rows, points=written.points, bytes=written.bytes)
        self._on_sealed()

    def note(self, written: Segment) -> None:
        """Take in the greatest times of a segment's series. Raises DamagedError."""
        last_times = written.last_times()
        with self._lock:
            self._grow_frontiers()
            self._frontiers[written.ids] = np.maximum(self._frontiers[written.ids], last_times)

    def frontiers_of(self, keys: Sequence[bytes]) -> npt.NDArray[np.int64]:
        """The greatest sealed time of each series, known or not."""
        ids = [self._catalog.find(key) for key in keys]
        known = np.array([each is not None for each in ids], np.bool_)
        found = np.full(len(keys), MIN_NS, np.int64)
        found[known] = self._frontiers_of(np.array([each for each in ids if each is not None], np.int64))
        return found

    def _frontiers_of(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        with self._lock:
            self._grow_frontiers()
            return self._frontiers[ids]

    def _drop_wal(self, head: Head) -> None:
        """Remove the WAL files whose rows are in a segment now. Should that fail, the next start does it."""
        place = self._layout
        try:
            covered = [each for each in place.wal_numbers() if head.wal_first <= each <= head.wal_last]
            files.remove_files([place.wal_path(number) for number in covered], place.disk)
        except OSError as error:
            logger.warning("sealed WAL files not removed", first=head.wal_first, last=head.wal_last, error=str(error))

    def _grow_frontiers(self) -> None:
        missing = len(self._catalog) - len(self._frontiers)
        if missing > 0:
            self._frontiers = np.concatenate([self._frontiers, np.full(missing, MIN_NS, np.int64)])
