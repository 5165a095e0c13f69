"""The store of one node: what its writer appends to and its readers ask.

Owns the data directory, the catalog, the heads and the segments. Never opens a socket.

Threads: `append`, `tick`, `seal` and `close` belong to the writer thread; `plan`, `aggregate`, `series`,
`partitions_of` and `status` to any. Readers take `_view` once and read nothing else that changes; the writer
and the sealer replace it whole under `_swap`. Order in every step that could be cut short: rows are in the WAL
before the head, in a renamed segment before the WAL file goes, in the new view before the old one is dropped.
"""

import functools
import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from common import clock, config, files, log, metrics, protocol
from common.errors import ProtocolError, StorageError
from common.points import PointBatch
from workers.storage import kernels, layout, seal, segment, wal
from workers.storage.aggregate import EARLIEST, AggregatePlan, SegmentSet, View
from workers.storage.catalog import Catalog
from workers.storage.head import Head
from workers.storage.layout import DamagedError, Layout
from workers.storage.recovery import Recovery, Replayed
from workers.storage.sealer import Frozen, Sealer
from workers.storage.segment import Segment

__all__ = ["AggregatePlan", "LoggedBatch", "OpeningStopped", "Store"]

_NO_DELETES: Final = 0  # the delete number while nothing can be deleted

# Figures of `status` that are exported as metrics: type and meaning.
_METRICS: Final = {
    "series": ("gauge", "Series known."),
    "points": ("gauge", "Points in segments and heads."),
    "head_rows": ("gauge", "Rows in memory, not sealed yet."),
    "segments": ("gauge", "Segments."),
    "segment_points": ("gauge", "Points in segments."),
    "segment_bytes": ("gauge", "Bytes of segments."),
    "wal_files": ("gauge", "WAL files."),
    "wal_bytes": ("gauge", "Bytes of WAL files."),
    "head_age_s": ("gauge", "Seconds since the head took its first row."),
    "sealing_backlog": ("gauge", "Heads that wait to be sealed."),
    "sealing_failures": ("counter", "Attempts to seal that failed."),
    "sealed_rows": ("counter", "Rows sealed."),
    "seal_seconds": ("counter", "Seconds spent sealing."),
    "wal_failures": ("counter", "Groups that the disk refused."),
    "wal_written_bytes": ("counter", "Bytes of records written to the WAL."),
    "fsyncs": ("counter", "Groups made durable."),
    "fsync_seconds": ("counter", "Seconds spent in fdatasync."),
    "fsync_max_ms": ("gauge", "Longest fdatasync, milliseconds."),
}

logger = log.get("storage")


class OpeningStopped(StorageError):
    """The opening of a store was given up because the process is to end; nothing is lost by that."""


class LoggedBatch(NamedTuple):
    """A batch on its way into the store. body: as received, for the WAL; batch: the same, decoded."""

    body: bytes
    born: int
    batch: PointBatch


class Store:
    """One open data directory. Made by `Store.open`."""

    def __init__(self, place: Layout, partitions: int, settings: config.Storage) -> None:
        self._layout = place
        self._partitions = partitions
        self._settings = settings
        self._catalog = Catalog()
        self._swap = threading.Lock()  # guards the replacing of _view
        self._view = View(SegmentSet([]), (Head(settings.head_rows),))
        self._frontiers = np.empty(0, np.int64)  # greatest sealed time by catalog id; sealer's thread after opening
        self._numbers = itertools.count(1)  # of files; writer thread
        self._head_since_s: float | None = None  # when the head took its first row, monotonic; writer thread
        self._replayed_rows = 0
        self._sealed_rows = 0
        self._seal_ns = 0
        self._damaged: list[dict[str, Any]] = []

    @classmethod
    def open(
        cls,
        directory: Path,
        cluster: str,
        node: str,
        partitions: int,
        settings: config.Storage,
        disk: files.Disk = files.DISK,
        stop: Callable[[], bool] = lambda: False,
    ) -> Self:
        """Open a node's data directory, making it where there is none, and replay its WAL.

        Damaged files are set aside, and listed in `status`. stop: whether to give up, asked before each WAL file.
        Raises StorageError when the directory belongs to another cluster or node, is in use, of a newer format, or
        cannot be used; OpeningStopped when it was told to give up.
        """
        place = layout.open_directory(directory, cluster, node, disk)
        store = cls(place, partitions, settings)
        try:
            store._load(stop)
        except OSError as error:
            place.lock.release()
            raise layout.unusable(directory, error) from error
        except BaseException:
            place.lock.release()
            raise
        return store

    def append(self, batches: Sequence[LoggedBatch]) -> None:
        """Make batches durable with one fdatasync, then visible.

        Raises ProtocolError for a series key that is not canonical, StorageError when the disk fails; either way
        nothing of any batch counts. The arrays must be as PointBatch.decode made them.
        """
        batches = [logged for logged in batches if len(logged.batch)]
        if not batches:
            return
        ids = [self._catalog.ids_of(logged.batch.keys) for logged in batches]
        size = sum(len(logged.body) + wal.RECORD_BYTES for logged in batches)
        self._make_room(sum(len(logged.batch) for logged in batches), size)
        number = self._wal.append([(logged.body, logged.born) for logged in batches], _NO_DELETES)
        self._head.cover(number, size)
        for logged, known in zip(batches, ids, strict=True):
            self._apply(logged.batch, known)
        if self._head_since_s is None:
            self._head_since_s = clock.monotonic_s()

    def tick(self) -> None:
        """Freeze a head that is older than storage.seal_interval_s. To be called now and then."""
        since = self._head_since_s
        if since is None or clock.monotonic_s() - since < self._settings.seal_interval_s:
            return
        if self._sealer.has_room():
            self._freeze(0)

    def seal(self) -> None:
        """Freeze the head and wait until everything is sealed. Raises StorageError when sealing fails."""
        if self._head.rows:
            self._sealer.wait_for_room()
            self._freeze(0)
        self._sealer.wait_until_idle()

    def close(self) -> None:
        """Let the directory go. The head stays in the WAL, where the next `open` finds it."""
        self._sealer.stop()
        self._wal.roll()
        self._layout.lock.release()

    def plan(
        self,
        device: str,
        metric: str,
        tags: Mapping[str, str] | None,
        partitions: bytes,
        start: int | None,
        end: int | None,
    ) -> AggregatePlan:
        """Prepare an aggregate over the series that match, in the partitions of a bitmap, start <= time <= end.

        tags: None for any. start, end: ns, None is open. The plan's `run` gives the answer, and does what takes
        time. Raises ProtocolError for a bitmap of another size.
        """
        self._check_bitmap(partitions)
        plan = AggregatePlan(self._view, partitions, start, end)
        for local_id in self._catalog.matching(device, metric, tags):
            hash_ = self._catalog.hash(local_id)
            if self._is_in(hash_, partitions):
                plan.add(local_id, self._catalog.key(local_id), hash_)
        return plan

    def aggregate(
        self,
        device: str,
        metric: str,
        tags: Mapping[str, str] | None,
        partitions: bytes,
        start: int | None,
        end: int | None,
    ) -> protocol.AggregateReply:
        """Plan and run at once."""
        return self.plan(device, metric, tags, partitions, start, end).run()

    def series(
        self, after: bytes, limit: int, device: str | None, metric: str | None, partitions: bytes
    ) -> tuple[list[bytes], bool]:
        """At most `limit` keys above `after`, ascending, of one device or metric where given; whether more follow."""
        self._check_bitmap(partitions)
        keys: list[bytes] = []
        for key in self._catalog.keys_after(after, device, metric):
            local_id = self._catalog.find(key)
            if local_id is not None and self._is_in(self._catalog.hash(local_id), partitions):
                if len(keys) == limit:
                    return keys, True
                keys.append(key)
        return keys, False

    def partitions_of(self, keys: Sequence[bytes]) -> npt.NDArray[np.int64]:
        """The partition of each key. Raises ProtocolError for one that is not canonical."""
        below = np.uint64(64 - self._partitions.bit_length())  # in two steps: a shift by 64 has no meaning
        found: npt.NDArray[np.int64] = (self._catalog.hashes_of(keys) >> below >> np.uint64(1)).astype(np.int64)
        return found

    def status(self) -> dict[str, Any]:
        """What an operator wants to know. Sizes in bytes, durations as their names say.

        points counts a point once for each segment or head row that holds it, so repeats not yet joined count.
        """
        stored, heads = self._view
        counts = self._wal.counts
        points = sum(each.points for each in stored.segments)
        size = sum(each.bytes for each in stored.segments)
        rows = sum(head.rows for head in heads)
        wal_files = self._layout.wal_sizes()
        since = self._head_since_s
        return {
            "store_id": self._layout.store_id.hex(),
            "series": len(self._catalog),
            "points": points + rows,
            "head_rows": rows,
            "segments": len(stored.segments),
            "segment_points": points,
            "segment_bytes": size,
            "bytes_per_point": size / points if points else None,
            "wal_files": len(wal_files),
            "wal_bytes": sum(wal_files),
            "head_age_s": 0.0 if since is None else clock.monotonic_s() - since,
            "sealing_backlog": self._sealer.backlog,
            "sealing_failures": self._sealer.failures,
            "sealed_rows": self._sealed_rows,
            "seal_seconds": self._seal_ns / 1e9,
            "replayed_rows": self._replayed_rows,
            "wal_cut_bytes": self._wal_cut_bytes,
            "wal_failures": counts.failures,
            "wal_written_bytes": counts.bytes,
            "fsyncs": counts.groups,
            "fsync_seconds": counts.sync_ns / 1e9,
            "fsync_last_ms": counts.sync_last_ns / 1e6,
            "fsync_max_ms": counts.sync_max_ns / 1e6,
            "damaged": self._damaged,
        }

    def export_metrics(self) -> None:
        """Show the figures of `status` that are numbers as metrics of this process. Once per process."""
        for name, (kind, help_) in _METRICS.items():
            export = metrics.counter_from if kind == "counter" else metrics.gauge_from
            export(f"minitrue_storage_{name}", help_, functools.partial(self._figure, name))
        metrics.gauge_from(
            "minitrue_storage_damaged", "Damaged files and parts set aside.", lambda: len(self._damaged)
        )

    def _figure(self, name: str) -> float:
        return float(self.status()[name])

    @property
    def _head(self) -> Head:
        return self._view.heads[-1]

    def _load(self, stop: Callable[[], bool]) -> None:
        self._layout.sweep()
        segments = self._open_segments()
        headers = [each.header for each in segments]
        self._view = View(SegmentSet(segments), self._view.heads)
        self._numbers = itertools.count(1 + max([self._layout.highest_number(), *map(_highest, headers)]))
        store_id = self._layout.store_id
        recovery = Recovery(self._layout, lambda number: segment.covers(headers, store_id, number))
        self._sealer = Sealer(self._seal)
        try:
            for replayed in recovery.replay():
                if stop():
                    raise OpeningStopped(f"asked to stop before WAL file {replayed.number} was replayed")
                self._replay(replayed)
        except BaseException:
            self._sealer.stop()
            raise
        self._wal = wal.WalWriter(self._layout, self._numbers.__next__, recovery.newest)
        self._wal_cut_bytes = recovery.cut_bytes
        self._damaged = self._layout.damaged()
        self._head_since_s = clock.monotonic_s() if self._head.rows else None
        logger.info(
            "store open", directory=str(self._layout.directory), segments=len(segments), series=len(self._catalog),
            replayed_rows=self._replayed_rows, damaged=len(self._damaged),
        )  # fmt: skip

    def _open_segments(self) -> list[Segment]:
        opened: list[Segment] = []
        for number in self._layout.segment_numbers():
            path = self._layout.segment_path(number)
            try:
                found = Segment(path, number)
            except DamagedError as error:
                self._layout.set_aside_file(path, segment.describe_damage(path, error))
                continue
            ids = self._catalog.add([found.key(ordinal) for ordinal in range(found.series)])
            self._raise_frontiers(found, ids)
            opened.append(found)
        return opened

    def _replay(self, replayed: Replayed) -> None:
        """Put the rows of one WAL file, or none of them, into the head: a head covers whole files."""
        rows = sum(len(batch) for batch in replayed.batches)
        if self._is_full(rows, replayed.size):
            self._sealer.wait_for_room()
            self._freeze_head(rows)
        elif not self._head.fits(rows):
            self._replace_head(rows)
        self._head.cover(replayed.number, replayed.size)
        for batch in replayed.batches:
            self._apply(batch, self._catalog.ids_of(batch.keys))
        self._replayed_rows += rows

    def _apply(self, batch: PointBatch, known: npt.NDArray[np.int64] | None) -> None:
        """Put a batch into the head. known: the ids of its keys, None when some are new."""
        ids = self._catalog.add(batch.keys) if known is None else known
        self._head.append(batch, ids, self._catalog.hashes(ids))

    def _is_full(self, rows: int, size: int) -> bool:
        """Whether the head must be frozen before it takes so many more rows, and bytes of WAL."""
        if not self._head.rows:
            return False
        return not self._head.fits(rows) or self._head.wal_bytes + size > self._settings.head_wal_bytes

    def _make_room(self, rows: int, size: int) -> None:
        """See that the head takes so many more rows, at the price of freezing it. Raises StorageError."""
        if self._is_full(rows, size):
            self._sealer.wait_for_room()
            self._freeze(rows)
        elif not self._head.fits(rows):
            self._replace_head(rows)

    def _freeze(self, rows: int) -> None:
        """Freeze the head, end its WAL file, begin a head with room for so many rows."""
        self._wal.roll()
        self._freeze_head(rows)
        self._head_since_s = None

    def _freeze_head(self, rows: int) -> None:
        frozen = Frozen(self._head, next(self._numbers))
        fresh = Head(max(rows, self._settings.head_rows))
        with self._swap:
            self._view = View(self._view.stored, (*self._view.heads, fresh))
        self._sealer.submit(frozen)

    def _replace_head(self, rows: int) -> None:
        """Begin a larger head in place of one without rows, for a group that is larger than a head."""
        fresh = Head(rows)
        fresh.wal_first, fresh.wal_last = self._head.wal_first, self._head.wal_last
        fresh.wal_bytes = self._head.wal_bytes
        with self._swap:
            self._view = View(self._view.stored, (*self._view.heads[:-1], fresh))

    def _seal(self, frozen: Frozen) -> None:
        """Write a frozen head's segment, let queries read that instead, drop its WAL files. Sealer's thread."""
        begin_ns = time.perf_counter_ns()
        head, number = frozen
        store_id = self._layout.store_id
        header = segment.Header(store_id, store_id, _NO_DELETES, ((head.wal_first, head.wal_last),), ())
        grouped = head.grouped()
        keys = [self._catalog.key(local_id) for local_id in grouped.ids.tolist()]
        path = self._layout.segment_path(number)
        self._grow_frontiers()
        seal.write_segment(path, header, grouped, keys, self._frontiers[grouped.ids], self._layout.disk)
        written = Segment(path, number)
        with self._swap:
            stored = SegmentSet([*self._view.stored.segments, written])
            self._view = View(stored, tuple(each for each in self._view.heads if each is not head))
        self._raise_frontiers(written, grouped.ids)
        self._drop_wal(head)
        self._sealed_rows += head.rows
        self._seal_ns += time.perf_counter_ns() - begin_ns
        logger.info("sealed", segment=number, rows=head.rows, points=written.points, bytes=written.bytes)

    def _drop_wal(self, head: Head) -> None:
        """Remove the WAL files whose rows are in a segment now. Should that fail, the next start does it."""
        try:
            covered = [each for each in self._layout.wal_numbers() if head.wal_first <= each <= head.wal_last]
            files.remove_files([self._layout.wal_path(number) for number in covered], self._layout.disk)
        except OSError as error:
            logger.warning("sealed WAL files not removed", first=head.wal_first, last=head.wal_last, error=str(error))

    def _grow_frontiers(self) -> None:
        missing = len(self._catalog) - len(self._frontiers)
        if missing > 0:
            self._frontiers = np.concatenate([self._frontiers, np.full(missing, EARLIEST, np.int64)])

    def _raise_frontiers(self, written: Segment, ids: npt.NDArray[np.int64]) -> None:
        """Note the greatest times of a segment's series; a series' last block holds it."""
        self._grow_frontiers()
        latest = written.ints[kernels.T_MAX][written.first_block[1:].astype(np.int64) - 1]
        self._frontiers[ids] = np.maximum(self._frontiers[ids], latest)

    def _check_bitmap(self, partitions: bytes) -> None:
        want = (self._partitions + 7) // 8
        if len(partitions) != want:
            raise ProtocolError(f"bitmap of {len(partitions)} bytes, want {want}")

    def _partition(self, hash_: int) -> int:
        return hash_ >> (64 - self._partitions.bit_length() + 1)

    def _is_in(self, hash_: int, partitions: bytes) -> bool:
        partition = self._partition(hash_)
        return bool(partitions[partition >> 3] >> (partition & 7) & 1)


def _highest(header: segment.Header) -> int:
    """The highest file number that a segment's header mentions."""
    return max([0, *(last for _, last in header.wal_ranges), *header.replaces])
