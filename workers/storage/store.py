"""The store of one node: what its writer appends to and its readers ask.

Owns the data directory, the catalog, the heads and the segments. Never opens a socket.

Threads: `append`, `delete`, `adopt`, `tick`, `seal`, `compact` and `close` belong to the writer thread; everything else
to any.
Readers take the view once (view.py) and read nothing else that changes. Order in every step that could be cut short:
rows are in the WAL before the head, in a renamed segment before the WAL file goes, in the new view before the old
one is dropped; a delete record is durable before the first answer that knows of it, and in a WAL file behind a
delete every row was written after it.
"""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from common import clock, config, files, log
from common.errors import StorageError
from common.points import PointBatch
from common.protocol import FetchReply
from workers.storage import deletes, layout, limits, opening, segment, status, wal
from workers.storage.aggregate import AggregatePlan
from workers.storage.arrived import Arrived
from workers.storage.catalog import Catalog
from workers.storage.deletes import DeleteRecord, Deletes
from workers.storage.dropping import Dropping
from workers.storage.hash_order import HashOrder
from workers.storage.head import ROW_BYTES, Head
from workers.storage.layout import Layout
from workers.storage.limits import Gate, LoggedBatch, Refused, Sifted
from workers.storage.maintainer import Maintainer
from workers.storage.maintenance import Maintenance
from workers.storage.opening import OpeningStopped
from workers.storage.page_cache import PageCache
from workers.storage.readers import Readers
from workers.storage.reading import Reading
from workers.storage.recovery import Recovery, Replayed
from workers.storage.retention import Retention
from workers.storage.sealer import Frozen, Sealer
from workers.storage.sealing import Sealing
from workers.storage.selections import Selections
from workers.storage.taking import Taken, Taking
from workers.storage.view import CurrentView

__all__ = ["AggregatePlan", "DeleteRecord", "LoggedBatch", "OpeningStopped", "Store"]

logger = log.get("storage")


class Store(Reading):
    """One open data directory. Made by `Store.open`. What it answers is in reading.py."""

    def __init__(self, place: Layout, partitions: int, settings: config.Storage) -> None:
        """As `open`, from a directory that is held. Nothing is replayed yet."""
        self._layout = place
        self._partitions = partitions
        self._settings = settings
        self._catalog = Catalog()
        self._cache = PageCache(settings.cache_bytes)
        self._selections = Selections(self._catalog, self._cache)
        self.pool = Readers(settings.read_threads)
        self.by_hash = HashOrder(self._catalog, partitions)
        self._retention = Retention(settings.retention_days)
        self._floor = limits.DiskFloor(place.directory, settings.disk_floor_bytes)
        self._replayed_rows = 0
        self._refused_rows = 0
        self._lately = {}
        self.stored: Sequence[LoggedBatch] = ()  # by the last append, as far as it was taken; writer thread
        self._kept_unsaved = False  # writer thread
        self._kept = np.ones(partitions, np.bool_)  # what `keep` was told last; writer thread
        self._elsewhere = 0  # known series of other partitions; writer thread
        self._failed_delete: DeleteRecord | None = None  # may lie on the disk, is not in force; writer thread

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
        begin: Callable[[Layout], None] = lambda place: None,
        tell: Callable[[str], None] = lambda progress: None,
    ) -> Self:
        """Open a node's data directory, making it where there is none, and replay its WAL.

        Damaged files are set aside, and listed in `status`. stop: whether to give up, asked before each WAL file.
        begin: called when the directory is held, before anything in it is read; what it raises passes on.
        tell: called with how far the replay is, in words.
        Raises StorageError when the directory belongs to another cluster or node, is in use, of a newer format, or
        cannot be used; OpeningStopped when it was told to give up.
        """
        place = layout.open_directory(directory, cluster, node, disk)
        store = cls(place, partitions, settings)
        try:
            begin(place)
            store._load(stop, tell)
        except OSError as error:
            place.lock.release()
            raise layout.unusable(directory, error) from error
        except BaseException:
            place.lock.release()
            raise
        return store

    # Writer thread.

    def append(self, batches: Sequence[LoggedBatch]) -> list[Refused]:
        """Make batches durable with one fdatasync, then visible. The rows of each that are refused for good.

        Rows that a delete masks, for they were born before it, are neither stored nor refused (limits.Gate).
        Raises ProtocolError for a series key that is not canonical, StorageError when the disk fails or is too
        full; either way nothing of any batch counts. The arrays must be as PointBatch.decode made them.
        """
        limit, in_force = self._settings.max_series, self._current.now.deletes
        gate = Gate(self._catalog, in_force, self._retention, limit, self._elsewhere)
        sifted = [gate.sift(logged) for logged in batches]
        taken = [each for each in sifted if len(each.logged.batch)]
        self.stored = ()
        if taken:
            self._store(taken)
            self.stored = [each.logged for each in taken]
        refused = [each.refused for each in sifted]
        self._refused_rows += sum(map(len, refused))
        return refused

    def delete(self, record: DeleteRecord) -> bool:
        """Delete what a record names and what was written before: durable and in force when this returns.

        Whether it is new; the same record again changes nothing. Raises ProtocolError for one that cannot be, whose
        number is another's, or not above every number in force; StorageError when the disk fails: then it is not in
        force, and may be tried again.
        """
        record.check()
        in_force = self._current.now.deletes
        if in_force.knows(record):
            return False
        if self._current.head.rows:
            self._sealer.wait_for_room()
        self._save(record)
        self._wal.roll()
        self._begin_after(in_force.after(record))
        self._maintainer.wake()
        logger.info("delete in force", number=record.number, device=record.selector.device_id)
        return True

    @property
    def store_id(self) -> bytes:
        """16 bytes, drawn when the directory was first used."""
        return self._layout.store_id

    @property
    def delete_number(self) -> int:
        """The highest delete in force, 0 before the first. Any thread."""
        return self._current.now.deletes.number

    def adopt(self, records: Sequence[DeleteRecord]) -> None:
        """Apply the deletes of a ring, ascending by number, as far as they are not in force yet.

        One that was in force, and was lost with its file, is brought back: what it hid and no compaction has merged
        since is hidden again. Raises as `delete` does; then those before the one that failed are in force.
        """
        for record in records:
            if self._current.now.deletes.lacks(record):
                self._bring_back(record)
            else:
                self.delete(record)

    def keep(self, partitions: npt.NDArray[np.bool_]) -> None:
        """Let partitions stay, of which the node takes points; others may be dropped. Those that were given away and
        come back are kept as far as their rows are still there.

        No compaction that leaves them out ends after this. Raises StorageError: then some may be dropped after all.
        """
        if not np.array_equal(partitions, self._kept):
            hashes = self._catalog.hashes(np.arange(len(self._catalog)))
            self._elsewhere, self._kept = int((~partitions[self._partitions_of(hashes)]).sum()), partitions
        if not self._dropping.spare(partitions) and not self._kept_unsaved:
            return
        self._kept_unsaved = True
        try:
            self._dropping.save()
        except OSError as error:
            raise StorageError(f"{layout.DROPPED} in {self._layout.directory}: {error.strerror}") from error
        self._kept_unsaved = False

    @property
    def ring_epoch(self) -> int:
        """The epoch that `go_by` was told last, 0 before. Raises StorageError."""
        return self._layout.ring_epoch()

    def go_by(self, epoch: int) -> None:
        """Make durable that the node goes by the ring of this epoch. Raises StorageError."""
        self._layout.note_ring(epoch)

    def tick(self) -> None:
        """Look at the clocks: the retention's cutoff, the age of the head. To be called now and then."""
        self._retention.observe()
        since = self._current.head.since_s
        if since is None or clock.monotonic_s() - since < self._settings.seal_interval_s:
            return
        if self._sealer.has_room():
            self._freeze(0)

    def seal(self) -> None:
        """Freeze the head and wait until everything is sealed. Raises StorageError when sealing fails."""
        if self._current.head.rows:
            self._sealer.wait_for_room()
            self._freeze(0)
        self._sealer.wait_until_idle()

    def compact(self) -> None:
        """Merge all segments that can be, apply deletes and retention. Raises StorageError when that fails."""
        with self._maintainer.exclusive():
            try:
                while self._maintenance.step(_no_pause, everything=True):
                    pass
            except OSError as error:
                raise StorageError(f"compaction in {self._layout.directory}: {error.strerror}") from error

    def close(self) -> None:
        """Let the directory go. The head stays in the WAL, where the next `open` finds it."""
        self._maintainer.stop()
        self._sealer.stop()
        self.pool.close()
        self._wal.roll()
        self._layout.lock.release()

    # Any thread.

    def take_in(self, replies: Sequence[FetchReply], sift: Callable[[Arrived], Arrived] | None = None) -> Taken:
        """Take in points of another store; more in taking.py. Durable and visible when this returns.

        storage.max_series does not count here. Raises ProtocolError, StorageError.
        """
        with self.watching_damage():
            return self._taking.take_in(replies, sift)

    def drop(self, partitions: npt.NDArray[np.bool_]) -> None:
        """Forget partitions that were given away: those of their rows that lie in the segments that there are now.

        Durable when it returns; compaction does it. Raises StorageError: then nothing is dropped.
        """
        number = max((each.number for each in self._current.now.stored.segments), default=0)
        try:
            self._dropping.drop(np.flatnonzero(partitions).tolist(), number)
        except OSError as error:
            raise StorageError(f"{layout.DROPPED} in {self._layout.directory}: {error.strerror}") from error
        self._maintainer.wake()

    def stored_partitions(self) -> npt.NDArray[np.bool_]:
        """The partitions of which segments have rows that are not dropped, bool by partition."""
        drops = self._dropping.drops
        found = np.zeros(self._partitions, np.bool_)
        for each in self._current.now.stored.segments:
            found |= self._dropping.inside(each) & (drops.limits < each.number)
        return found

    def last_time_of(self, partitions: npt.NDArray[np.bool_]) -> int:
        """The last time of what segments have of some partitions; EARLIEST for nothing. Raises StorageError."""
        last = segment.EARLIEST
        with self.watching_damage():
            for each in self._current.now.stored.segments:
                if (self._dropping.inside(each) & partitions).any():
                    named = partitions[self._partitions_of(each.hashes)]
                    last = max(last, int(each.last_times()[named].max(initial=last)))
        return last

    def status(self) -> dict[str, Any]:
        """What an operator wants to know. Sizes in bytes, durations as their names say.

        points counts a point once for each segment or head row that holds it, so repeats not yet joined count.
        """
        stored, heads, in_force = self._current.now
        counts = self._wal.counts
        rows = sum(head.rows for head in heads)
        wal_files = self._layout.wal_sizes()
        now_s = clock.monotonic_s()
        ages_s = [now_s - head.since_s for head in heads if head.since_s is not None]
        of_segments = status.of_segments(stored.segments)
        return {
            "store_id": self._layout.store_id.hex(),
            "series": len(self._catalog),
            "points": of_segments["segment_points"] + rows,
            "head_rows": rows,
            "head_bytes": sum(head.bytes for head in heads),
            **of_segments,
            "wal_files": len(wal_files),
            "wal_bytes": sum(wal_files),
            "wal_age_s": max(ages_s, default=0.0),
            "sealing_backlog": self._sealer.backlog,
            "sealing_failures": self._sealer.failures,
            "sealed_rows": self._sealing.rows,
            "sealed_bytes": self._sealing.bytes,
            "seal_seconds": self._sealing.seconds,
            "sealing_failure": self._sealer.failure,
            "compaction_backlog": self._maintenance.backlog,
            "compaction_failures": self._maintainer.failures,
            "compaction_failure": self._maintainer.failure,
            "compactions": self._maintenance.compactions,
            "compacted_bytes": self._maintenance.compacted_bytes,
            "expired_points": self._maintenance.expired_points,
            "written_per_stored_byte": status.written_per_stored(
                counts.bytes, self._sealing.bytes, self._maintenance.compacted_bytes
            ),
            "replayed_rows": self._replayed_rows,
            "refused_rows": self._refused_rows,
            "deletes": len(in_force),
            "delete_number": in_force.number,
            "deletes_unapplied": self._maintenance.masked,
            "dropped_partitions": int((self._dropping.drops.limits >= 0).sum()),
            "dropped_segments": self._maintenance.dropping,
            "retention_cutoff_ns": self._retention.cutoff if self._retention.days else None,
            "disk_free_bytes": limits.free_bytes(self._layout.directory),
            "resident_bytes": status.resident_bytes(),
            "wal_cut_bytes": self._wal_cut_bytes,
            "wal_failures": counts.failures,
            "wal_written_bytes": counts.bytes,
            "fsyncs": counts.groups,
            "fsync_seconds": counts.sync_ns / 1e9,
            "fsync_last_ms": counts.sync_last_ns / 1e6,
            "fsync_max_ms": counts.sync_max_ns / 1e6,
            "damaged": self._layout.damaged(),
        }

    def export_metrics(self) -> None:
        """Show the figures of `status` that are numbers as metrics of this process. Once per process."""
        status.export(self.status)

    # Opening.

    def _load(self, stop: Callable[[], bool], tell: Callable[[str], None]) -> None:
        self._layout.sweep()
        settings, cache = self._settings, self._cache
        segments = opening.open_segments(self._layout, cache, self._catalog, settings.codec, stop)
        records = deletes.load(self._layout)
        in_force = Deletes(records, opening.highest_delete(self._layout, segments))
        self._numbers = opening.next_numbers(self._layout, segments)
        self._dropping = Dropping(self._layout, self._partitions)
        self._current = CurrentView(segments, cache, in_force, Head(settings.head_rows, in_force.number))
        self._maintenance = Maintenance(
            self._layout, settings, self._catalog, self._current, cache, self._numbers, self._retention,
            self._dropping,
        )  # fmt: skip
        self._maintainer = Maintainer(self._maintenance.step, settings.compaction_share)
        wake = self._maintainer.wake
        self._sealing = Sealing(self._layout, self._catalog, self._current, cache, settings.codec, wake)
        for each in segments:
            self._sealing.note(each)
        self._taking = Taking(
            self._layout, self._catalog, self._current, cache, self._numbers, self._sealing, settings.codec,
            settings.disk_floor_bytes, wake,
        )  # fmt: skip
        recovery = Recovery(self._layout, opening.covering(self._layout, segments))
        self._sealer = Sealer(self._sealing.seal)
        try:
            self._replay_all(recovery, stop, tell)
        except BaseException:
            self._sealer.stop()
            raise
        self._wal = wal.WalWriter(self._layout, self._numbers.take, recovery.newest)
        self._wal_cut_bytes = recovery.cut_bytes
        self._maintainer.start()
        logger.info(
            "store open", directory=str(self._layout.directory), segments=len(segments), series=len(self._catalog),
            replayed_rows=self._replayed_rows, deletes=len(in_force), damaged=len(self._layout.damaged()),
        )  # fmt: skip

    def _replay_all(self, recovery: Recovery, stop: Callable[[], bool], tell: Callable[[str], None]) -> None:
        for at, replayed in enumerate(recovery.replay()):
            tell(f"{at} of {recovery.files} WAL files replayed")
            if stop():
                raise OpeningStopped(f"asked to stop before WAL file {replayed.number} was replayed")
            self._replay(replayed)
        head, in_force = self._current.head, self._current.now.deletes
        if head.delete_number > in_force.number:  # the record of that number is gone
            in_force = Deletes(in_force.records, head.delete_number)
        elif head.rows and head.delete_number < in_force.number:
            self._sealer.wait_for_room()
        self._begin_after(in_force)

    def _replay(self, replayed: Replayed) -> None:
        """Put the rows of one WAL file, or none of them, into a head: one covers whole files, of one delete number."""
        rows, head = sum(len(batch) for batch in replayed.batches), self._current.head
        number = replayed.delete_number if rows else head.delete_number
        if head.rows and (number != head.delete_number or self._is_full(rows, replayed.size)):
            self._sealer.wait_for_room()
            self._freeze_head(rows, number)
        elif number != head.delete_number or not head.fits(rows):
            self._current.replace_head(self._new_head(rows, number))
        self._current.head.cover(replayed.number, replayed.size)
        for batch in replayed.batches:
            self._apply(batch, self._catalog.ids_of(batch.keys))
        self._replayed_rows += rows

    # The head.

    def _store(self, taken: Sequence[Sifted]) -> None:
        """Log and apply what the gate has let through."""
        size = sum(len(each.logged.body) + wal.RECORD_BYTES for each in taken)
        self._withdraw_failed()
        self._floor.check()
        self._make_room(sum(len(each.logged.batch) for each in taken), size)
        head = self._current.head
        number = self._wal.append([(each.logged.body, each.logged.born) for each in taken], head.delete_number)
        head.cover(number, size)
        for each in taken:
            self._apply(each.logged.batch, each.ids)

    def _apply(self, batch: PointBatch, known: npt.NDArray[np.int64] | None) -> None:
        """Put a batch into the head. known: the ids of its keys, None when some are new."""
        ids = self._catalog.add(batch.keys) if known is None else known
        head = self._current.head
        head.append(batch, ids, self._catalog.hashes(ids))
        if head.since_s is None:
            head.since_s = clock.monotonic_s()

    def _is_full(self, rows: int, size: int) -> bool:
        """Whether a head that holds rows must be frozen before it takes so many more, and bytes of WAL."""
        head, settings = self._current.head, self._settings
        return (
            not head.fits(rows)
            or head.wal_bytes + size > settings.head_wal_bytes
            or head.bytes + rows * ROW_BYTES > settings.head_bytes
        )

    def _make_room(self, rows: int, size: int) -> None:
        """See that the head takes so many more rows, at the price of freezing it. Raises StorageError."""
        head = self._current.head
        if head.rows and self._is_full(rows, size):
            self._sealer.wait_for_room()
            self._freeze(rows)
        elif not head.fits(rows):
            self._current.replace_head(self._new_head(rows, head.delete_number))

    def _freeze(self, rows: int) -> None:
        """Freeze the head, end its WAL file, begin a head with room for so many rows."""
        self._wal.roll()
        self._freeze_head(rows, self._current.head.delete_number)

    def _freeze_head(self, rows: int, number: int, in_force: Deletes | None = None) -> None:
        """The head goes to the sealer; the next one is of this delete number, with other deletes where given."""
        frozen = self._current.begin_head(self._new_head(rows, number), in_force)
        self._sealer.submit(Frozen(frozen, self._numbers.take()))

    def _begin_after(self, in_force: Deletes) -> None:
        """Let these deletes be in force, and the head take rows that are written after them."""
        head = self._current.head
        if head.rows and head.delete_number != in_force.number:
            self._freeze_head(0, in_force.number, in_force)
        elif head.rows:
            self._current.put_deletes(in_force)
        else:
            self._current.replace_head(self._new_head(0, in_force.number), in_force)

    def _new_head(self, rows: int, number: int) -> Head:
        return Head(max(rows, self._settings.head_rows), number)

    def _bring_back(self, record: DeleteRecord) -> None:
        """Let a record be in force again that was lost. It hides rows of lower numbers only, all written before it."""
        record.check()
        self._save(record)
        self._current.put_deletes(self._current.now.deletes.after(record))
        self._current.put_segments(())  # tables are kept by the highest number, which stays the same
        self._maintainer.wake()
        logger.warning("delete brought back from the ring", number=record.number, device=record.selector.device_id)

    def _save(self, record: DeleteRecord) -> None:
        self._withdraw_failed()
        try:
            deletes.save(self._layout, record)
        except OSError as error:
            self._failed_delete = record
            with contextlib.suppress(StorageError):  # the disk fails: tried again before anything else is stored
                self._withdraw_failed()
            raise StorageError(f"delete {record.number} in {self._layout.directory}: {error.strerror}") from error

    def _withdraw_failed(self) -> None:
        """Take back a delete that failed and may lie on the disk; raises StorageError while that cannot be done.

        Rows acked before it is gone would be hidden by it after a restart.
        """
        record = self._failed_delete
        if record is None:
            return
        try:
            deletes.withdraw(self._layout, record)
        except OSError as error:
            raise StorageError(
                f"delete {record.number} failed and cannot be taken back in {self._layout.directory}: {error.strerror}"
            ) from error
        self._failed_delete = None


def _no_pause() -> None:
    """Compaction that is waited for takes all the time it can get."""
