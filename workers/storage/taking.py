"""Points of another store, taken in: durable and visible when `take_in` returns.

Owns the segments that it writes until the view names them: what came as blocks becomes one as it is, what came as
rows another, each period that is worth it by itself (arrived.by_period); never a WAL file, never a head, so that the
writer is not needed. Called by any thread; `_lock` lets one in at a time.

Beside the writer, the sealer and the maintainer this is safe as the sealing of a head is: the segment is durable
before the view names it, the view changes under its own lock, and who changes it meanwhile starts from what it is
then. Nothing is replaced, so a compaction that runs just leaves the segment alone; it bears a file number that nobody
else draws, and covers no WAL file. Killed at any step the directory holds half a file under a temporary name, which
the next start removes, or whole segments, and those count: their points were asked for, and taking them in once more
changes nothing.

Deletes: points that another store hands out at delete number n are those that deletes up to n have left, and the
segment's header says n. So a delete that comes into force while they are on their way hides what it has to, before or
after they are in the view. Those of a number that is not in force here yet are refused.

Points beside others of the same time are joined by whoever reads, as everywhere: the larger value counts.
"""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from common import files, log
from common.codec import Policy
from common.errors import ProtocolError, StorageError
from common.protocol import FetchReply
from workers.storage import arrived, layout, limits, seal
from workers.storage.arrived import Arrived
from workers.storage.catalog import Catalog
from workers.storage.layout import Layout
from workers.storage.opening import Numbers, open_segment
from workers.storage.page_cache import PageCache
from workers.storage.sealing import Sealing
from workers.storage.segment import Header, Segment
from workers.storage.segment_writer import SegmentWriter
from workers.storage.stored_blocks import Raw
from workers.storage.view import CurrentView

logger = log.get("storage.taking")


class Taken(NamedTuple):
    """What was taken in. segments: their numbers; points: in blocks and rows; bytes: of the segments."""

    segments: tuple[int, ...] = ()
    points: int = 0
    blocks: int = 0
    rows: int = 0
    bytes: int = 0

    def plus(self, other: "Taken") -> "Taken":
        """Both together."""
        return Taken(
            self.segments + other.segments, self.points + other.points, self.blocks + other.blocks,
            self.rows + other.rows, self.bytes + other.bytes,
        )  # fmt: skip


class Taking:
    """Takes points into one store. floor: bytes of the disk to be left free; on_taken: called when there is more."""

    def __init__(
        self,
        place: Layout,
        catalog: Catalog,
        current: CurrentView,
        cache: PageCache,
        numbers: Numbers,
        sealing: Sealing,
        policy: Policy,
        floor: int,
        on_taken: Callable[[], None],
    ) -> None:
        self._layout = place
        self._catalog = catalog
        self._current = current
        self._cache = cache
        self._numbers = numbers
        self._sealing = sealing
        self._policy: Policy = policy
        self._floor = floor
        self._on_taken = on_taken
        self._lock = threading.Lock()
        self._leftovers: list[Path] = []  # that a failed disk kept it from removing

    def take_in(self, replies: Sequence[FetchReply], sift: Callable[[Arrived], Arrived] | None = None) -> Taken:
        """Take in the points of replies; many at once make fewer and larger segments.

        sift: what of those that have arrived to take, None: all.
        Raises ProtocolError for what is no such reply, or of a delete number that is not in force here;
        StorageError when the disk fails, DiskFloorError when it is nearly full. Then nothing of it is seen, of several
        stores nothing of one; it may be tried again.
        """
        by_source: dict[tuple[int, bytes], list[FetchReply]] = {}
        for reply in replies:
            by_source.setdefault((reply.delete_number, reply.store_id), []).append(reply)
        with self._lock:
            taken = Taken()
            for (number, origin), each in by_source.items():
                taken = taken.plus(self._take(self._header(number, origin), each, sift))
            return taken

    def _header(self, number: int, origin: bytes) -> Header:
        in_force = self._current.now.deletes.number
        if number > in_force:
            raise ProtocolError(f"points at delete number {number}, want at most {in_force}, which is in force here")
        if len(origin) != layout.STORE_ID_BYTES:
            raise ProtocolError(f"store id of {len(origin)} bytes, want {layout.STORE_ID_BYTES}")
        return Header(self._layout.store_id, origin, number, (), ())

    def _take(self, header: Header, replies: Sequence[FetchReply], sift: Callable[[Arrived], Arrived] | None) -> Taken:
        found = arrived.of_replies(replies, self._catalog.hashes_of)
        found = found if sift is None else sift(found)
        numbers: list[int] = []
        try:
            self._clean()
            self._check_room(found.size)
            for part in arrived.by_period(found):
                if part.raw is not None:
                    numbers.append(self._numbers.take())
                    self._write_blocks(self._layout.segment_path(numbers[-1]), header, part, part.raw)
                if len(part.times):
                    numbers.append(self._numbers.take())
                    self._write_rows(self._layout.segment_path(numbers[-1]), header, part)
            opened = [self._open(number) for number in numbers]
        except BaseException as error:
            self._discard(numbers)
            if isinstance(error, OSError):
                raise StorageError(f"points of another store in {self._layout.directory}: {error.strerror}") from error
            raise
        return self._show(header, found, opened)

    def _show(self, header: Header, found: Arrived, opened: Sequence[Segment]) -> Taken:
        """Let the view name segments that are durable."""
        if not opened:
            return Taken()
        self._current.put_segments((), opened)
        self._on_taken()
        points, blocks = sum(each.points for each in opened), len(found.owners)
        whole = 0 if found.raw is None else int(found.raw.blocks.counts.sum())
        taken = Taken(
            tuple(each.number for each in opened), points, blocks, points - whole, sum(each.bytes for each in opened)
        )
        logger.info("taken in", origin=header.origin.hex(), **taken._asdict())
        return taken

    def _write_blocks(self, path: Path, header: Header, found: Arrived, raw: Raw) -> None:
        writer = SegmentWriter(path, header, self._policy, self._layout.disk)
        try:
            writer.put_blocks(found.keys, found.owners, *raw)
            writer.finish()
        finally:
            writer.abort()

    def _write_rows(self, path: Path, header: Header, found: Arrived) -> None:
        grouped, keys = found.grouped()
        frontiers = self._sealing.frontiers_of(keys)
        seal.write_segment(path, header, grouped, keys, frontiers, self._policy, self._layout.disk)

    def _open(self, number: int) -> Segment:
        opened = open_segment(self._layout.segment_path(number), number, self._cache, self._catalog)
        self._sealing.note(opened)
        return opened

    def _discard(self, numbers: Sequence[int]) -> None:
        """Remove segments that the view does not name. One that cannot be removed now, and is there at the next start,
        counts then, which does no harm."""
        paths = [self._layout.segment_path(number) for number in numbers]
        self._leftovers += paths + [path.with_name(path.name + files.TEMPORARY) for path in paths]
        try:
            self._clean()
        except OSError as error:
            logger.warning("segments not removed yet", files=len(self._leftovers), error=str(error))

    def _clean(self) -> None:
        if self._leftovers:
            files.remove_files(self._leftovers, self._layout.disk)
            self._leftovers = []

    def _check_room(self, size: int) -> None:
        free = limits.free_bytes(self._layout.directory)
        if free - size < self._floor:
            raise limits.DiskFloorError(
                f"{self._layout.directory}: {free} bytes free, want {size} and storage.disk_floor_bytes = {self._floor}"
            )
