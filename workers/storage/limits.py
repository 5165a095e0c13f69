"""What a node does not take: points behind a delete or the retention, series beyond the limit, a disk nearly full.

Owns the rules by which rows of a batch are left out before the WAL sees them, and the watch on the disk's free space.
Writer thread.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from common import clock
from common.errors import StorageError
from common.points import PointBatch
from workers.storage.catalog import Catalog
from workers.storage.deletes import Deletes
from workers.storage.retention import Retention

LOOK_S: Final = 1.0  # between looks at the free space

Refused = list[tuple[int, str]]  # (row in the batch as it was received, reason)
Rows = npt.NDArray[np.bool_]  # one for each row of a batch


class LoggedBatch(NamedTuple):
    """A batch on its way into the store. body: what the WAL gets; batch: the same, decoded; born: its epoch."""

    body: bytes
    born: int
    batch: PointBatch


class DiskFloorError(StorageError):
    """So little of the disk is free that no more points are taken; nothing is wrong with the disk."""


def free_bytes(directory: Path) -> int:
    """What the disk of a directory has left for us."""
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


class DiskFloor:
    """Refuses while less than `floor` bytes are free. free: how many there are in a directory."""

    def __init__(self, directory: Path, floor: int, free: Callable[[Path], int] = free_bytes) -> None:
        self._directory = directory
        self._floor = floor
        self._free = free
        self._looked_s = float("-inf")
        self._left = 0

    def check(self) -> None:
        """Raise DiskFloorError while the disk is too full. Looks once in LOOK_S; StorageError when it cannot."""
        now = clock.monotonic_s()
        if now - self._looked_s >= LOOK_S:
            try:
                self._left = self._free(self._directory)
            except OSError as error:
                raise StorageError(f"{self._directory}: {error.strerror}") from error
            self._looked_s = now
        if self._left < self._floor:
            raise DiskFloorError(
                f"{self._directory}: {self._left} bytes free, want storage.disk_floor_bytes = {self._floor}; "
                "no points are taken until there is room"
            )


class Gate:
    """The rules as they stand while one group of batches passes. max_series: of the node; elsewhere: known ones that do
    not count, as the node takes no points of their partitions any more.
    """

    def __init__(
        self, catalog: Catalog, deletes: Deletes, retention: Retention, max_series: int, elsewhere: int = 0
    ) -> None:
        self._catalog = catalog
        self._deletes = deletes
        self._retention = retention
        self._max_series = max_series
        self._elsewhere = elsewhere
        self._admitted: set[bytes] = set()  # new series of this group

    def sift(self, logged: LoggedBatch) -> "Sifted":
        """The batch without the rows that are not taken.

        A row that a delete masks, because it was born before it, is left out and not refused: as if it had come
        in time to be deleted. Raises ProtocolError for a series key that is not canonical.
        """
        batch = logged.batch
        ids = self._catalog.ids_of(batch.keys)
        keep = self._deletes.keeps(batch, logged.born)
        refused: Refused = []
        keep = self._leave_out(batch, keep, self._expired(batch), refused)
        if ids is None:
            keep = self._leave_out(batch, keep, self._beyond_limit(batch, keep), refused)
        if keep is None:
            return Sifted(logged, ids, refused)
        taken = batch.take(keep)
        kept = LoggedBatch(taken.encode(), logged.born, taken)
        return Sifted(kept, self._catalog.ids_of(taken.keys), sorted(refused))

    def _leave_out(self, batch: PointBatch, keep: Rows | None, bad: "_Bad | None", refused: Refused) -> Rows | None:
        """Refuse the rows that are bad and not left out yet; what is kept then."""
        if bad is None:
            return keep
        keep = np.ones(len(batch), np.bool_) if keep is None else keep
        refused += [(row, bad.reason) for row in np.flatnonzero(bad.rows & keep).tolist()]
        return keep & ~bad.rows

    def _expired(self, batch: PointBatch) -> "_Bad | None":
        if not self._retention.days:
            return None
        old = batch.times < self._retention.cutoff
        return _Bad(old, self._retention.reason()) if old.any() else None

    def _beyond_limit(self, batch: PointBatch, keep: Rows | None) -> "_Bad | None":
        """Rows of series that are new and too many."""
        index = batch.index if keep is None else batch.index[keep]
        wanted = np.bincount(index, minlength=len(batch.keys)) > 0
        beyond = np.zeros(len(batch.keys), np.bool_)
        for place in self._catalog.unknown(batch.keys):
            beyond[place] = bool(wanted[place]) and not self._admit(batch.keys[place])
        if not beyond.any():
            return None
        return _Bad(beyond[batch.index], f"new series beyond the limit: storage.max_series = {self._max_series}")

    def _admit(self, key: bytes) -> bool:
        if key in self._admitted:
            return True
        if len(self._catalog) - self._elsewhere + len(self._admitted) >= self._max_series:
            return False
        self._admitted.add(key)
        return True


class Sifted(NamedTuple):
    """What is left of a batch, the ids of its keys (None when some are new), and the rows refused, ascending."""

    logged: LoggedBatch
    ids: npt.NDArray[np.int64] | None
    refused: Refused


class _Bad(NamedTuple):
    rows: Rows
    reason: str
