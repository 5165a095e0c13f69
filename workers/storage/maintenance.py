"""What a store does in the background with its segments: drop what has expired, merge, apply deletes, set aside.

Owns the order of these steps. Which segments are merged is compaction_plan's choice, how is compaction.py's, and when
is the maintainer's. `step` belongs to whoever excludes other steps (maintainer.py); `set_aside` to any thread.

In each step the new segments are durable before the view names them, the view names them in the place of the old
ones at once, and only then are the old ones unlinked: a reader sees all rows once, at any moment.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from common import clock, log
from common.config import Storage
from workers.storage import compaction_plan, limits, segment
from workers.storage.catalog import Catalog
from workers.storage.compaction import Compactor
from workers.storage.compaction_plan import Described, Task
from workers.storage.compaction_table import DamagedInputError
from workers.storage.deletes import DeleteRecord, Deletes
from workers.storage.dropping import Dropping, Drops, KeptError
from workers.storage.layout import DamagedError, Layout
from workers.storage.maintainer import Pause
from workers.storage.opening import Numbers, open_segment
from workers.storage.page_cache import PageCache
from workers.storage.pages import Blocks
from workers.storage.retention import Retention
from workers.storage.segment import Segment
from workers.storage.view import CurrentView

# A segment is rewritten for the sake of deletes when the first of them has stood for so long: many deletes, one after
# another, then cost one rewriting and not one each. `everything` does not wait.
DELETES_WAIT_S: Final = 300.0

_FEW_SERIES: Final = 64  # of a delete, up to which looking for each takes less than looking through a segment
_CHUNK_BLOCKS: Final = 8192  # looked through between two pauses

logger = log.get("storage")


class _Examined(NamedTuple):
    """What is known of a segment. deletes: looked at up to this number; since_s: when it was first seen;
    masked_s: when a delete was first seen to hide rows of it, None for not yet (both monotonic)."""

    deletes: int
    since_s: float
    masked_s: float | None


class Maintenance:
    """compacted_bytes, compactions, expired_points: done so far; backlog: segments that the next merge would take.

    masked: segments with rows that a delete hides, dropping: with rows of partitions that are dropped, as of the last
    step.
    """

    def __init__(
        self,
        place: Layout,
        settings: Storage,
        catalog: Catalog,
        current: CurrentView,
        cache: PageCache,
        numbers: Numbers,
        retention: Retention,
        dropping: Dropping,
    ) -> None:
        self.compactions = 0
        self.compacted_bytes = 0
        self.expired_points = 0
        self.backlog = 0
        self.masked = 0
        self.dropping = 0
        self._layout = place
        self._floor = settings.disk_floor_bytes
        self._catalog = catalog
        self._current = current
        self._cache = cache
        self._retention = retention
        self._dropping = dropping
        self._examined: dict[int, _Examined] = {}  # by segment
        self._compactor = Compactor(place, settings.codec, self._keys_of, numbers.take, settings.compaction_bytes)

    def step(self, pause: Pause, everything: bool = False) -> bool:
        """Do the next thing; whether there was any. everything: merge all that can be, not what pays.

        Raises OSError, StorageError, and what `pause` raises; then nothing has changed but what was complete.
        """
        self._compactor.clean()
        self._expire()
        view, cutoff = self._current.now, self._retention.settled  # its segments know of no delete but its own
        drops = self._dropping.drops
        try:
            described = self._describe(view.stored.segments, view.deletes, drops, cutoff, everything, pause)
        except DamagedError as error:
            self.set_aside(error)
            return True
        room = limits.free_bytes(self._layout.directory) - self._floor
        task = compaction_plan.pick(described, clock.wall_ns(), room, everything)
        self.backlog = len(task.numbers) if task else 0
        if task is None:
            return False
        inputs = [each for each in view.stored.segments if each.number in task.numbers]
        try:
            with self._dropping.using(drops):
                self._compact(task, inputs, view.deletes, drops, cutoff, pause)
        except KeptError as kept:
            logger.info("compaction given up", reason=str(kept))
        return True

    def set_aside(self, error: DamagedError) -> None:
        """Take the segment that an error speaks of out of the view, and move its file out of the way.

        An error of no segment that is still in use changes nothing: others found the same before.
        """
        found = [each for each in self._current.now.stored.segments if str(error).startswith(f"{each.path}: ")]
        for each in found:  # before an answer can be without it
            inside = np.flatnonzero(self._dropping.inside(each)).tolist()
            self._layout.announce(each.path.name, {"file": each.path.name, "reason": str(error), "partitions": inside})
        for gone in self._current.put_segments([each.number for each in found]):
            note = segment.describe_damage(gone.path, error)
            try:
                self._layout.set_aside_file(gone.path, note, announced=True)
            except OSError as refused:
                logger.error("damaged segment cannot be moved", file=gone.path.name, error=str(refused))

    def _expire(self) -> None:
        """Unlink segments that lie wholly behind the settled cutoff."""
        settled = self._retention.settled
        expired = [each for each in self._current.now.stored.segments if each.t_max < settled]
        if not expired:
            return
        gone = self._current.put_segments([each.number for each in expired])
        self._compactor.retire(gone)
        points = sum(each.points for each in gone)
        self.expired_points += points
        logger.info("segments behind the retention removed", segments=len(gone), points=points)

    def _compact(
        self, task: Task, inputs: Sequence[Segment], deletes: Deletes, drops: Drops, cutoff: int, pause: Pause
    ) -> None:
        began_s = clock.monotonic_s()

        def checking() -> None:
            pause()
            self._dropping.check(drops)

        try:
            numbers = self._compactor.run(inputs, deletes, cutoff, checking, drops)
        except DamagedInputError as error:
            self.set_aside(DamagedError(str(error)))
            return
        try:
            written = [self._open(number) for number in numbers]
            self._dropping.check(drops)
        except BaseException:
            self._compactor.discard(numbers)
            raise
        self._current.put_segments(task.numbers, written)
        self._compactor.retire(inputs)
        self.compactions += 1
        self.compacted_bytes += sum(each.bytes for each in written)
        logger.info(
            "compacted", reason=task.reason, segments=list(task.numbers), into=numbers,
            points=sum(each.points for each in written), bytes_before=task.bytes,
            bytes=sum(each.bytes for each in written), seconds=round(clock.monotonic_s() - began_s, 3),
        )  # fmt: skip

    def _open(self, number: int) -> Segment:
        return open_segment(self._layout.segment_path(number), number, self._cache, self._catalog)

    def _keys_of(self, ids: npt.NDArray[np.int64]) -> list[bytes]:
        return self._catalog.keys(ids)

    def _describe(
        self,
        stored: Sequence[Segment],
        deletes: Deletes,
        drops: Drops,
        cutoff: int,
        everything: bool,
        pause: Pause,
    ) -> list[Described]:
        now_s = clock.monotonic_s()
        given_away = self._given_away(stored, drops)
        self._examined = {each.number: self._examine(each, deletes, now_s, pause) for each in stored}
        self.masked = sum(known.masked_s is not None for known in self._examined.values())
        described = []
        for each in stored:
            known = self._examined[each.number]
            masked = known.masked_s is not None and (everything or now_s - known.masked_s >= DELETES_WAIT_S)
            masked = masked or each.number in given_away
            behind = compaction_plan.share_behind(each.t_min, each.t_max, cutoff)
            described.append(Described(
                each.number, each.points, each.bytes, each.t_min, each.t_max, each.header.group, masked, behind,
                now_s - known.since_s,
            ))  # fmt: skip
        return described

    def _given_away(self, stored: Sequence[Segment], drops: Drops) -> set[int]:
        """The segments with rows of partitions that are dropped. Without any no partition is named any more."""
        self._dropping.forget_but(each.number for each in stored)
        found = {each.number for each in stored if drops and drops.touch(each.number, self._dropping.inside(each))}
        self.dropping = len(found)
        if drops and not found and (done := self._dropping.finish(stored)):
            logger.info("partitions forgotten", partitions=len(done))
        return found

    def _examine(self, stored: Segment, deletes: Deletes, now_s: float, pause: Pause) -> _Examined:
        """Whether a delete hides rows of a segment; only those that came since it was examined last are looked at."""
        known = self._examined.get(stored.number) or _Examined(stored.header.delete_number, now_s, None)
        later = [] if known.masked_s is not None else [each for each in deletes.records if each.number > known.deletes]
        hides = any(self._hides(record, stored, pause) for record in later)
        return known._replace(deletes=deletes.number, masked_s=now_s if hides else known.masked_s)

    def _hides(self, record: DeleteRecord, stored: Segment, pause: Pause) -> bool:
        """Whether a block of a segment holds rows in the range of a delete, or may."""
        if record.end < stored.t_min or record.start > stored.t_max:
            return False
        ids = self._catalog.matching(record.selector)
        if len(ids) <= _FEW_SERIES:
            places = zip(ids.tolist(), self._catalog.hashes(ids).tolist(), strict=True)
            ordinals = [at for local_id, hash_ in places if (at := stored.find(local_id, hash_)) >= 0]
            return any(_reaches(record, stored.index(*stored.block_range(at))).any() for at in ordinals)
        concerned = np.repeat(np.isin(stored.ids, ids), np.diff(stored.first_block))
        for begin in range(0, stored.blocks, _CHUNK_BLOCKS):
            end = min(begin + _CHUNK_BLOCKS, stored.blocks)
            inside = concerned[begin:end]
            if inside.any() and (inside & _reaches(record, stored.index(begin, end))).any():
                return True
            pause()
        return False


def _reaches(record: DeleteRecord, blocks: Blocks) -> npt.NDArray[np.bool_]:
    reached: npt.NDArray[np.bool_] = (blocks.t_min <= record.end) & (blocks.t_max >= record.start)
    return reached
