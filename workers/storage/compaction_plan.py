"""What compaction does next, and what a directory listing means after a crash.

Pure: descriptions in, numbers out. docs/architecture.md, "Compaction", has the policy with its costs.

A segment lies in the *lane* of its period, or in WIDE when it reaches over a border between periods. Merges stay in
a lane. Those of WIDE move the rows of every period that is worth a file of its own into that period's lane, so that
no row is rewritten without end: each merge leaves fewer segments in its lane, and no row comes back to WIDE.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from workers.storage.segment import Header

PERIOD_NS: Final = 30 * 86_400 * 1_000_000_000  # of whole days, so that a cutoff falls between blocks of days
FIRST_PERIOD: Final = -(1 << 63) // PERIOD_NS
PERIODS: Final = (1 << 63) // PERIOD_NS - FIRST_PERIOD + 1  # all that int64 reaches: 7,118
WIDE: Final = FIRST_PERIOD - 1  # the lane of segments that reach over a border

FAN_IN: Final = 4  # segments of one tier that make one of the next: log4(n) rewrites, at most 3 files per tier
MAX_INPUTS: Final = 32  # each holds at most one block of a series at any time, so this bounds what a join holds
MAX_BYTES: Final = 1 << 30  # of the inputs of one merge, so of an output; limits the free disk that it wants
TIER_SHARE: Final = 2  # a merge within bounds pays when the other inputs are 1/2 of the largest; else it is left
LATE_SHARE: Final = 16  # in a period that has ended, 1/16 is enough: late rows make blocks overlap, which slows reads
QUIET_S: Final = 3600.0  # but only when no segment came for so long: an import of old data would be merged at each

# A period is worth a file of its own when so many rows of it are at hand, and so many for each series: below that
# blocks are so short that their summaries outweigh them, and ten years of one point a day would be 122 files.
SPLIT_ROWS: Final = 1 << 16
SPLIT_ROWS_PER_SERIES: Final = 64


class Described(NamedTuple):
    """What the choice needs to know of a segment.

    masked: a delete above its number hides rows of it, or it has some of partitions that are dropped; behind: the
    part of its span that is behind the settled cutoff, 0 to 1; age_s: for how long it has been in the view.
    """

    number: int
    points: int
    bytes: int
    t_min: int
    t_max: int
    group: tuple[int, int] = (0, 0)
    masked: bool = False
    behind: float = 0.0
    age_s: float = 0.0

    @property
    def lane(self) -> int:
        """Its period, or WIDE."""
        first, last = self.t_min // PERIOD_NS, self.t_max // PERIOD_NS
        return first if first == last else WIDE

    @property
    def tier(self) -> int:
        """The whole part of log4(points)."""
        return (self.points.bit_length() - 1) // 2


class Task(NamedTuple):
    """Segments to be rewritten as one. bytes: how many they are, and at most what the outputs take."""

    numbers: tuple[int, ...]
    bytes: int
    reason: str


def share_behind(t_min: int, t_max: int, cutoff: int) -> float:
    """The part of a span that lies before a cutoff."""
    return min(1.0, max(0.0, (cutoff - t_min) / (t_max - t_min + 1)))


def pick(
    stored: Sequence[Described], now_ns: int, free_bytes: int = 1 << 62, everything: bool = False
) -> Task | None:
    """The next task, None when there is none. Doing what it says until then ends.

    now_ns: a clock that may be wrong; free_bytes: what the outputs may take. everything: merge what can be merged
    (tools and tests), not only what pays.
    """
    for task in _candidates(stored, now_ns, everything):
        if task is not None and task.bytes <= free_bytes:
            return task
    return None


def _candidates(stored: Sequence[Described], now_ns: int, everything: bool) -> Iterable[Task | None]:
    yield from _alone(stored, "retention", [each.behind >= 0.5 for each in stored])
    lanes: dict[int, list[Described]] = {}
    for each in sorted(stored, key=lambda each: (each.points, each.number)):
        lanes.setdefault(each.lane, []).append(each)
    merges = [_tier_merge(lane) for lane in lanes.values()]
    merges += [_late_merge(lane) for period, lane in lanes.items() if WIDE < period < now_ns // PERIOD_NS]
    yield from _cheapest_first(merges)
    if everything:
        yield _untangle(stored, lanes.get(WIDE, []))
        yield from _cheapest_first([_whole_merge(lane) for lane in lanes.values()])
    yield from _alone(stored, "deletes", [each.masked for each in stored])


def _alone(stored: Sequence[Described], reason: str, wanted: Sequence[bool]) -> Iterable[Task]:
    return [_task([each], reason) for each, want in zip(stored, wanted, strict=True) if want]


def _cheapest_first(tasks: Iterable[Task | None]) -> list[Task]:
    return sorted((task for task in tasks if task is not None), key=lambda task: (task.bytes, task.numbers))


def _tier_merge(lane: Sequence[Described]) -> Task | None:
    """The lowest tier with FAN_IN segments, and the tiers below it. lane: ascending by points."""
    tiers = [each.tier for each in lane]
    for tier in sorted(set(tiers)):
        if tiers.count(tier) >= FAN_IN:
            task = _merge([each for each in lane if each.tier <= tier], "tier", share=TIER_SHARE)
            if task is not None:
                return task
    return None


def _late_merge(lane: Sequence[Described]) -> Task | None:
    """All of a period that has ended and is quiet, when what came late is no trifle."""
    if min(each.age_s for each in lane) < QUIET_S:
        return None
    return _merge(lane, "late", share=LATE_SHARE)


def _whole_merge(lane: Sequence[Described]) -> Task | None:
    return _merge(lane, "everything")


def _untangle(stored: Sequence[Described], wide: Sequence[Described]) -> Task | None:
    """Wide segments with all that they reach over; None when that is what one compaction left, or too much."""
    if not wide:
        return None
    first, last = min(each.t_min for each in wide), max(each.t_max for each in wide)
    reached = [each for each in stored if each.t_min <= last and first <= each.t_max]
    groups = {each.group for each in reached}
    done = len(wide) == 1 and len(groups) == 1 and (0, 0) not in groups
    size = sum(each.bytes for each in reached)
    if done or len(reached) > MAX_INPUTS or (size > MAX_BYTES and len(reached) > 1):
        return None
    return _task(reached, "everything")


def _merge(ascending: Sequence[Described], reason: str, share: int | None = None) -> Task | None:
    """As many of the segments, from the first, as one merge may have.

    None for a single one, and when all but the largest are less than 1 / share of that.
    """
    taken: list[Described] = []
    size = 0
    for each in ascending[:MAX_INPUTS]:
        if size + each.bytes > MAX_BYTES:
            break
        taken.append(each)
        size += each.bytes
    if len(taken) < 2 or (share is not None and sum(each.points for each in taken[:-1]) * share < taken[-1].points):
        return None
    return _task(taken, reason)


def _task(taken: Sequence[Described], reason: str) -> Task:
    return Task(tuple(sorted(each.number for each in taken)), sum(each.bytes for each in taken), reason)


class Output(NamedTuple):
    """What one segment of a compaction takes: rows in one of the spans lows[i] <= time <= highs[i], ascending."""

    lows: npt.NDArray[np.int64]
    highs: npt.NDArray[np.int64]


def outputs_of(rows: npt.NDArray[np.int64], series: int, cutoff: int) -> list[Output]:
    """The segments that rows of several periods go to, none without rows: periods worth a file, then all others.

    rows: int64[PERIODS], by period from FIRST_PERIOD on, none of them before the cutoff.
    """
    worth = (rows >= SPLIT_ROWS) & (rows >= SPLIT_ROWS_PER_SERIES * series)
    outputs = []
    lows, highs = [cutoff], []
    for at in np.flatnonzero(worth).tolist():
        begin = (FIRST_PERIOD + at) * PERIOD_NS
        low, high = max(begin, cutoff), min(begin + PERIOD_NS - 1, (1 << 63) - 1)
        outputs.append(_output([low], [high]))
        highs.append(low - 1)
        lows.append(high + 1)
    highs.append((1 << 63) - 1)
    if rows[~worth].any():
        spans = [(low, high) for low, high in zip(lows, highs, strict=True) if low <= high]
        outputs.append(_output([low for low, _ in spans], [high for _, high in spans]))
    return outputs


def whole_output(cutoff: int) -> Output:
    """One segment for all rows that are not behind a cutoff."""
    return _output([cutoff], [(1 << 63) - 1])


def _output(lows: Sequence[int], highs: Sequence[int]) -> Output:
    return Output(np.array(lows, np.int64), np.array(highs, np.int64))


class Resolution(NamedTuple):
    """What a listing of segments means. superseded: replaced by a complete group, whether still there or not, and
    of no use even when damaged; incomplete: parts of groups whose inputs are all there. Unlink superseded ones
    first; read neither."""

    superseded: frozenset[int]
    incomplete: frozenset[int]


def resolve(headers: Mapping[int, Header], store_id: bytes) -> Resolution:
    """What to make of the segments of a directory, by number; damaged ones are left out.

    - A group counts when all its parts are there: then its inputs are superseded.
    - Of a group that is not complete the parts are removed when all its inputs are there, and kept otherwise: an
      input is missing only when the group was complete once.
    """
    own = {number: header for number, header in headers.items() if header.store_id == store_id and header.group[1]}
    complete = [header for header in own.values() if is_complete(header, own)]
    superseded = frozenset(number for header in complete for number in header.replaces)
    incomplete = frozenset(
        number
        for number, header in own.items()
        if not is_complete(header, own) and all(replaced in headers for replaced in header.replaces)
    )
    return Resolution(superseded, incomplete - superseded)


def is_complete(header: Header, own: Mapping[int, Header]) -> bool:
    """Whether all parts of a segment's group are among these; so it is for one that no compaction wrote."""
    first, count = header.group
    return all(number in own and own[number].group == header.group for number in range(first, first + count))
