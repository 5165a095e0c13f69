"""Steps and trapezoids between neighbouring samples of series, by group and bucket: increases, rates, integrals.

Owns nothing that lasts. No summary tells what lies between samples, so all of the range is decoded, each series in
order of time; series are spread over the pool. Rows of an answer lie side by side in the order of groups and buckets;
what tasks found is added in their order, so the same points give the same answer to the last bit.
Any thread; the work on one question belongs to one, its tasks to the pool's.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from workers.storage import kernels, step_kernels
from workers.storage.buckets import Span, Tally
from workers.storage.fold import Cost
from workers.storage.readers import Readers
from workers.storage.recent import Integers, Recent, Rows, Values
from workers.storage.segment import EARLIEST, LATEST
from workers.storage.series_rows import Batch, SeriesRows, looked_over
from workers.storage.step_kernels import COVERED, DELTA, FLOATS, INCREASE, INTEGERS, INTEGRAL, RATE, ROW, SUMS
from workers.storage.table import Selection, View

_WAVE_ROWS: Final = 1 << 20  # rows that tasks may hold before they are added up: 92 MB
_HELD_ROWS: Final = 1 << 20  # rows of the answer from several tables before those of the same bucket become one
_COUNTABLE: Final = 1 << 62  # buckets that int64 can number
_NAMES: Final = {"increase": INCREASE, "delta": DELTA, "rate": RATE, "integral": INTEGRAL, "covered": COVERED}


class StepRows(NamedTuple):
    """Figures by group and bucket, in this order: of the buckets that have steps or, with integrals, trapezoids.

    groups, starts: int64[n]; columns: those of common.figures that belong to "steps" and, if asked, "integral", but for
    count: 0 where there are no steps or no trapezoids. cost: what it took.
    """

    groups: Integers
    starts: Integers
    columns: dict[str, npt.NDArray[Any]]
    cost: Cost


def step_rows(
    view: View,
    series: Selection,
    groups: Integers,
    spans: Sequence[Span],
    integral: bool,
    pool: Readers,
    take_rows: Callable[[float], None],
    take_points: Callable[[int], None],
    recent: Sequence[Recent] = (),
) -> StepRows:
    """Figures of the steps, and with `integral` of the trapezoids, of all series of a selection.

    groups: by place, ascending. spans: at least one. take_rows, take_points: told of the rows of the answer (empty
    buckets between the first and the last of a group counted) and of the points to decode, before any is decoded; they
    may raise LimitError. recent: what the heads held of each table's series when it was looked before, where the answer
    is to be of that moment. Raises StorageError for damage, CancelledError.
    """
    start, end = spans[0].grid.start, spans[-1].grid.end

    def parts(take_rows: Callable[[float], None], take_points: Callable[[int], None]) -> Iterator[_Part]:
        tally, begin = Tally(), 0
        for at, (part, table) in enumerate(view.stored.tables(series, view.deletes, start, end)):
            rows = SeriesRows(view, part, table, start, end, recent=recent[at] if recent else None)
            yield _Part(rows, groups[begin : begin + len(part.ids)], spans, integral, take_rows, tally)
            take_points(int(rows.counts.sum()))
            begin += len(part.ids)

    found: list[_Found] = []
    for each in looked_over(parts(take_rows, take_points), lambda: parts(_take_any, _take_any)):
        found.append(each.run(pool))
        if sum(len(one.groups) for one in found[1:]) > max(len(found[0].groups), _HELD_ROWS):
            found = [_joined(found)]
    return _united(_joined(found), integral)


def _take_any(_amount: float) -> None:
    """What was counted before."""


class _Ordinals(NamedTuple):
    """The buckets of spans, counted through; columns as in step_kernels, by span. numbers: of each span's first."""

    begins: Integers
    ends: Integers
    intervals: Integers
    offsets: Integers
    firsts: Integers
    numbers: Integers
    total: int

    @classmethod
    def of(cls, spans: Sequence[Span], low: int, high: int) -> Self:
        """Those that times from low to high can lie in."""
        rows: list[tuple[int, ...]] = []
        total, last = 0, None
        for span in spans:
            begin, end, interval, offset = span.grid
            begin, end = max(begin, low), min(end, high)
            if begin > end:
                continue
            number, stop = (((each - offset) // interval if interval else 0) for each in (begin, end))
            if last == (first := number * interval + offset if interval else span.start):
                total -= 1  # two spans meet in a bucket
            rows.append((begin, end, interval, offset, total, number))
            total += stop - number + 1
            last = stop * interval + offset if interval else first
        if total > _COUNTABLE or not rows:
            rows = rows[:1] or [(0, -1, 0, 0, 0, 0)]
            rows = [(*rows[0][:4], 0, 0)]
        begins, ends, intervals, offsets, firsts, numbers = np.array(rows, np.int64).T.copy()
        return cls(begins, ends, intervals, offsets, firsts, numbers, total)

    def at(self, times: Integers, last: bool) -> Integers:
        """The ordinals of the first bucket that is not before a time, or of the last that is not behind it."""
        spans = np.maximum(self.begins.searchsorted(times, "right") - 1, 0)
        if last:
            times = np.minimum(times, self.ends[spans])
        else:
            spans = np.minimum(spans + (times > self.ends[spans]), len(self.begins) - 1)
            times = np.maximum(times, self.begins[spans])
        interval = np.maximum(self.intervals[spans], 1)
        numbers = times // interval
        numbers -= times - numbers * interval < self.offsets[spans]
        numbers = np.where(self.intervals[spans] > 0, numbers, 0)
        found: Integers = self.firsts[spans] + (numbers - self.numbers[spans])
        return found

    def starts(self, ordinals: Integers, spans: Sequence[Span]) -> Integers:
        """When buckets start, ns."""
        kept = self.firsts.searchsorted(ordinals, "right") - 1
        starts = np.empty(len(ordinals), np.int64)
        for at in np.unique(kept).tolist():
            mine = kept == at
            span = next(each for each in spans if each.grid.start <= self.begins[at] <= each.grid.end)
            starts[mine] = span.starts(ordinals[mine] - self.firsts[at] + self.numbers[at])
        return starts


class _Sums(NamedTuple):
    """What was found for the rows of an answer from `shift` on: steps, int64[n]; sums, float64[n, SUMS]."""

    shift: int
    steps: Integers
    sums: npt.NDArray[np.float64]

    @classmethod
    def nothing(cls, begin: int, end: int) -> Self:
        """So far."""
        return cls(begin, np.zeros(end - begin, np.int64), np.zeros((end - begin, SUMS)))

    def add(self, other: "_Sums") -> None:
        """Take in what was found for some of the rows."""
        inside = slice(other.shift - self.shift, other.shift - self.shift + len(other.steps))
        step_kernels.add_rows(other.steps, other.sums, self.steps[inside], self.sums[inside])


class _Found(NamedTuple):
    """Rows of an answer that have something in them."""

    groups: Integers
    starts: Integers
    found: _Sums
    cost: Cost


class _Part:
    """The question to the series of one table."""

    def __init__(
        self, rows: SeriesRows, groups: Integers, spans: Sequence[Span], integral: bool,
        take_rows: Callable[[float], None], tally: Tally,
    ) -> None:  # fmt: skip
        """Lay out the answer: rows for each group from the first bucket that may have samples to the last.

        tally: of the tables before.
        """
        self._rows = rows
        self._spans = spans
        self._integral = integral
        filled = rows.counts > 0
        low, high = rows.low.min(initial=LATEST, where=filled), rows.high.max(initial=EARLIEST, where=filled)
        self._ordinals = ordinals = _Ordinals.of(spans, int(low), int(high))
        if ordinals.total > _COUNTABLE:
            take_rows(float(ordinals.total))
        begins = np.flatnonzero(np.diff(groups, prepend=groups[0] - 1))
        self._numbers = groups[begins]
        firsts = np.where(filled, ordinals.at(rows.low, last=False), _COUNTABLE)
        lasts = np.where(filled, ordinals.at(rows.high, last=True), -_COUNTABLE)
        self._first, last = np.minimum.reduceat(firsts, begins), np.maximum.reduceat(lasts, begins)
        sizes = np.maximum(last - self._first + 1, 0)
        take_rows(float(sizes.sum(dtype=np.float64)) - tally.counted(int(self._numbers[0]), sizes))
        self._ends = sizes.cumsum()
        self._begins = self._ends - sizes
        self._which = np.repeat(np.arange(len(begins)), np.diff(begins, append=len(groups)))

    def run(self, pool: Readers) -> _Found:
        """Decode everything, and the answer."""
        answer = _Sums.nothing(0, int(self._ends[-1]))
        cost = Cost()
        for wave in self._waves():
            for places, found in zip(wave, pool.run([partial(self._task, each, pool) for each in wave]), strict=True):
                answer.add(found)
                cost = cost.plus(self._rows.cost(places))
        filled = np.flatnonzero((answer.steps > 0) | (answer.sums[:, COVERED] > 0.0))
        which = self._ends.searchsorted(filled, "right")
        ordinals = self._first[which] + (filled - self._begins[which])
        found = _Sums(0, answer.steps[filled], answer.sums[filled])
        return _Found(self._numbers[which], self._ordinals.starts(ordinals, self._spans), found, cost)

    def _waves(self) -> Iterator[list[Integers]]:
        """Tasks that together hold not too many rows."""
        wave: list[Integers] = []
        held = 0
        for places in self._rows.tasks():
            begin, end = self._extent(places)
            if len(wave) > 1 and held + end - begin > _WAVE_ROWS:
                yield wave
                wave, held = [], 0
            wave.append(places)
            held += end - begin
        if wave:
            yield wave

    def _extent(self, places: Integers) -> tuple[int, int]:
        """The rows that some series add to."""
        first, last = self._which[places[0]], self._which[places[-1]]
        return int(self._begins[first]), int(self._ends[last])

    def _task(self, places: Integers, pool: Readers) -> _Sums:
        found = _Sums.nothing(*self._extent(places))
        which = self._which[places]
        bases = self._begins[which] - self._first[which] - found.shift
        for item in self._rows.of(places):
            pool.check()
            if isinstance(item, Batch):
                into = bases[places.searchsorted(item.places)]
                self._fold((item.times, item.values), item.offsets, into, (True, True), _Carry(), found)
            else:
                into = bases[places.searchsorted(item[0])][np.newaxis]
                self._fold_pieces(item[1], into, pool, found)
        return found

    def _fold_pieces(self, pieces: Iterator[Rows], into: Integers, pool: Readers, found: _Sums) -> None:
        carry = _Carry()
        for rows in pieces:
            pool.check()
            self._fold(rows, np.array([0, len(rows[0])]), into, (False, False), carry, found)
        self._fold((kernels.NO_TIMES, kernels.NO_VALUES), np.zeros(2, np.int64), into, (False, True), carry, found)

    def _fold(
        self, rows: Rows, offsets: Integers, into: Integers, ends: tuple[bool, bool], carry: "_Carry", found: _Sums
    ) -> None:
        step_kernels.fold_steps(
            *rows, offsets, into, *self._ordinals[:5], self._integral, *ends, carry.integers, carry.floats,
            found.steps, found.sums,
        )  # fmt: skip


class _Carry:
    """What lies between two pieces of a series (step_kernels)."""

    def __init__(self) -> None:
        self.integers = np.zeros(INTEGERS, np.int64)
        self.integers[ROW] = -1
        self.floats: Values = np.zeros(FLOATS)


def _joined(parts: Sequence[_Found]) -> _Found:
    """Rows in order of group and start, those of one group and start as one."""
    groups = np.concatenate([part.groups for part in parts])
    starts = np.concatenate([part.starts for part in parts])
    order = np.lexsort((starts, groups))
    groups, starts = groups[order], starts[order]
    steps = np.concatenate([part.found.steps for part in parts])[order]
    sums = np.concatenate([part.found.sums for part in parts])[order]
    begins = np.flatnonzero(np.append(True, (np.diff(groups) != 0) | (np.diff(starts) != 0))[: len(groups)])
    united = _Sums(0, steps[begins], sums[begins])
    repeats = np.arange(len(groups)) - np.repeat(begins, np.diff(begins, append=len(groups)))
    for number in range(1, int(repeats.max(initial=0)) + 1):  # as many as tables hold series of one group: a few
        again = np.flatnonzero(repeats == number)
        beside = _Sums.nothing(0, len(begins))
        targets = begins.searchsorted(again, "right") - 1
        beside.steps[targets], beside.sums[targets] = steps[again], sums[again]
        united.add(beside)
    cost = Cost()
    for part in parts:
        cost = cost.plus(part.cost)
    return _Found(groups[begins], starts[begins], united, cost)


def _united(joined: _Found, integral: bool) -> StepRows:
    """The columns of all rows."""
    united = joined.found
    step_kernels.settle_sums(united.sums)
    columns: dict[str, npt.NDArray[Any]] = {"steps": united.steps}
    for name, column in _NAMES.items():
        if integral or name not in ("integral", "covered"):
            columns[f"{name}_hi"], columns[f"{name}_lo"] = united.sums[:, column], united.sums[:, column + 1]
    return StepRows(joined.groups, joined.starts, columns, joined.cost)
