"""Answers by group and bucket: any selection of series, any stretches of time, the figures that are wanted.

Owns nothing that lasts, and never changes what it reads. The series of a group share the rows of an answer, so that
summaries are folded right where they belong, whatever the number of series: nothing here is done series by series.
Any thread; a question belongs to one, its tasks to the pool's.

The same points give the same answer, to the last bit, whoever works on it: tables are cut by their size, and what
tasks found is added in their order.
"""

import time
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from common import figures, protocol
from common.errors import ProtocolError
from common.protocol import GroupsReply, GroupsRequest, Limits, TagsReply, TagsRequest
from workers.storage import aggregate_kernels, buckets, kernels
from workers.storage.aggregate import WINDOWED, LimitError, m2_of, sums_of, values_in
from workers.storage.buckets import Rows, Span, Tally
from workers.storage.fold import Cost, Fold
from workers.storage.names import Check, go_on
from workers.storage.readers import Readers
from workers.storage.reading import Reading
from workers.storage.recent import Integers, Recent
from workers.storage.steps import StepRows, step_rows
from workers.storage.table import Selection, Table, View
from workers.storage.values import Counted, Distinct, ValueFold, check_values
from workers.storage.work import Cancel, Work

_VALUES: Final = "values"
_INTEGRAL: Final = "integral"
_STEPS: Final = frozenset({"steps", _INTEGRAL})
_BY_SAMPLES: Final = _STEPS | {_VALUES}  # no summary or window tells them, nor do they ask anything of those
_LONG: Final = frozenset({"value_ends", "values", "value_counts"})
_HELD_ROWS: Final = 1 << 20  # of the answer from several tables before those of the same bucket become one: 117 MB
_LAID_OUT: Final = 1 << 20  # series times stretches that are laid out at a time: 30 MB
_COUNTS: Final = {"count": kernels.COUNT, "first_time": kernels.FIRST_TIME, "last_time": kernels.LAST_TIME}
_EXTREMES: Final = {"min": kernels.MIN, "max": kernels.MAX, "first": kernels.FIRST, "last": kernels.LAST}

# What the server thread does by itself: these bounds keep it for well under a millisecond.
SHORT_POINTS: Final = 16_384  # to decode and fold
SHORT_SAMPLES: Final = 1024  # to decode, and to sort
FEW_SERIES: Final = 8
FEW_BLOCKS: Final = 64
_FEW_STRETCHES: Final = 16  # asked for
_FEW_SPANS: Final = 2  # that have points
_FEW_ROWS: Final = 2048  # of the answer


def begin(store: Reading, request: GroupsRequest, partitions: bytes) -> Work:
    """What answers a request about all series that match, in partitions that this node answers for.

    Few series at hand are looked at now: when little is left to decode, the work is short. It raises what `answer`
    does, and so does this.
    """
    few = len(request.stretches) <= _FEW_STRETCHES and _STEPS.isdisjoint(request.wants)  # steps take a millisecond
    grouped = store.at_hand(request.match, partitions, request.group_by) if few else None
    if grouped is None or len(grouped.ids) > FEW_SERIES:
        return Work(partial(answer, store, request, partitions))
    asked = _Asked(store, request, partitions)
    return Work(asked.answer, short=asked.prepare())


def answer(store: Reading, request: GroupsRequest, partitions: bytes, cancel: Cancel) -> GroupsReply:
    """The groups and figures of all series that match, in partitions that this node answers for.

    Raises LimitError, ProtocolError for a request that means nothing, StorageError for damage, CancelledError.
    """
    return _Asked(store, request, partitions, cancel.check).answer(cancel)


def tags(store: Reading, request: TagsRequest, partitions: bytes, cancel: Cancel) -> TagsReply:
    """The tags of all series that match. Raises LimitError, and ProtocolError for a request that means nothing."""
    series = store.select(request.match, partitions, cancel.check)
    cancel.check()
    check_series(len(series.ids), request.limits)
    return TagsReply(partitions, store.view.deletes.number, store.count_tags(series))


def check_series(matched: int, limits: Limits) -> None:
    """Raise LimitError for more series than a question may match."""
    if matched > limits.series:
        raise LimitError(
            f"{matched} series match, want at most {limits.series} (query.max_series): name fewer devices or metrics",
            "query.max_series", limits.series, matched,
        )  # fmt: skip


def check_points(points: int, limits: Limits) -> None:
    """Raise LimitError for more points than a question may decode."""
    if points > limits.points:
        raise LimitError(
            f"at least {points} points to decode, want at most {limits.points} (query.max_points): take a shorter "
            "range, fewer series, or buckets of whole minutes, hours or days",
            "query.max_points", limits.points, points,
        )  # fmt: skip


class _Asked:
    """A request on its way to its reply. Errors as of `answer`."""

    def __init__(self, store: Reading, request: GroupsRequest, partitions: bytes, check: Check = go_on) -> None:
        self._began_ns = time.perf_counter_ns()
        unknown = set(request.wants) - set(figures.WANTS)
        if unknown:
            raise ProtocolError(f"wants {', '.join(sorted(unknown))[:100]}, want of {', '.join(figures.WANTS)}")
        self._store = store
        self._request = request
        self._partitions = partitions
        self._stamp = store.catalog_stamp
        self._grouped = grouped = store.grouped(request.match, partitions, request.group_by, check)
        if request.without:
            self._grouped = grouped = grouped.without(store.ids_of(request.without))
        check_series(len(grouped.ids), request.limits)
        spans = buckets.spans(request.stretches, request.start_ns, request.end_ns, store.first_kept(request.start_ns))
        series = Selection(grouped.ids, grouped.hashes, store.key_of)
        self._question = _Question(store.view, series, grouped.groups, spans, request.wants, request.limits)

    def prepare(self) -> bool:
        """Do what takes no decoding, if that is little; whether so little is left that it may be done here and now."""
        with self._store.watching_damage():
            return self._question.prepare()

    def answer(self, cancel: Cancel) -> GroupsReply:
        """Do the rest."""
        store, grouped, question = self._store, self._grouped, self._question
        with store.watching_damage():
            columns = question.answer(store.pool.watching(cancel))
        return GroupsReply(
            self._partitions, question.view.deletes.number, len(grouped.ids),
            store.labels(grouped, self._request.group_by), grouped.sizes.tolist(), figures.pack(columns),
            protocol.Cost(*question.cost, spent_ns=time.perf_counter_ns() - self._began_ns), self._stamp,
            store.places_of(grouped.hashes),
        )  # fmt: skip


class _Found(NamedTuple):
    """Rows of an answer. groups, starts: int64[n]; rows: int64[n, FIELDS]."""

    groups: Integers
    starts: Integers
    rows: Integers


_NOTHING: Final = _Found(np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, kernels.FIELDS), np.int64))


class _Located(NamedTuple):
    """Distinct values, and the groups and starts of their rows."""

    groups: Integers
    starts: Integers
    counted: Counted

    @classmethod
    def joined(cls, parts: "Sequence[_Located]") -> "_Located":
        """Those of several, each value of a row once."""
        groups = np.concatenate([each.groups for each in parts])
        starts = np.concatenate([each.starts for each in parts])
        order = np.lexsort((starts, groups))
        new = np.append(True, (np.diff(groups[order]) != 0) | (np.diff(starts[order]) != 0))[: len(order)]
        rows = np.empty(len(order), np.int64)
        rows[order] = np.cumsum(new) - 1
        values, counts = (np.concatenate([each.counted[at] for each in parts]) for at in (1, 2))
        counted, firsts = Counted.of(rows, values, counts), order[new]
        return cls(groups[firsts][counted.rows], starts[firsts][counted.rows], counted)


class _Part(NamedTuple):
    """What is asked of one table and one span. first: the number of the table's first group; folds: what answers it."""

    span: Span
    rows: Rows
    first: int
    folds: list[Fold]

    def locate(self, rows: Integers) -> tuple[Integers, Integers]:
        """The groups and starts of rows."""
        groups, buckets_ = self.rows.locate(rows)
        return groups + self.first, self.span.starts(buckets_)


class _Question:
    """One question to a view. groups: by place of the series, ascending, none left out. cost: so far."""

    def __init__(
        self, view: View, series: Selection, groups: Integers, spans: Sequence[Span], wants: Sequence[str],
        limits: Limits,
    ) -> None:  # fmt: skip
        self.cost = Cost()
        self.view = view
        self._series = series
        self._groups = groups
        self._spans = spans
        self._wants = wants
        self._limits = limits
        self._with_windows = WINDOWED.issuperset(set(wants) - _BY_SAMPLES)
        self._rows = 0  # of the answer, so far
        self._points = 0  # to decode, so far
        self._prepared: list[_Part] | None = None  # of the only table, where that was done beforehand
        self._found: list[_Found] = []
        self._values: list[_Located] = []
        self._joined = 0  # of the values, how many are those of the tables before
        self._tallies: dict[Span, Tally] = {}
        self._recent: list[Recent] = []  # by table: all figures of an answer are of one moment

    def prepare(self) -> bool:
        """Lay out the answer and fold summaries and windows, if that is little; whether little is left to do, too."""
        if not (len(self._series.ids) and self._spans):
            return True
        part, table = next(self._tables())
        if len(part.ids) < len(self._series.ids) or len(table.places) > FEW_BLOCKS:
            return False
        recent = Recent.of(self.view.heads, part, table.masks)
        spans = buckets.reached(self._spans, table, recent)
        if len(spans) > _FEW_SPANS:
            return False
        laid = self._lay_out(spans, table, recent, self._groups)
        if self._rows > _FEW_ROWS:
            self._rows = 0
            self._tallies.clear()
            return False
        self._recent = [recent]
        self._prepared = self._parts(table, recent, laid, int(self._groups[0]))
        return self._points <= (SHORT_SAMPLES if _VALUES in self._wants else SHORT_POINTS)

    def answer(self, pool: Readers) -> dict[str, npt.NDArray[Any]]:
        """The columns of the answer, by group and start."""
        if not (len(self._series.ids) and self._spans):
            return self._columns(_NOTHING)
        for parts in self._by_table() if self._prepared is None else [self._prepared]:
            pool.check()
            for part in parts:
                for fold in part.folds:
                    self._run(fold, part, pool)
        found = _united(self._found)
        if _STEPS.isdisjoint(self._wants):
            return self._columns(found)
        self._rows = 0  # the same ones again, and those that trapezoids cross
        between = step_rows(
            self.view, self._series, self._groups, self._spans, _INTEGRAL in self._wants, pool, self._take_rows,
            self._take_points, self._recent,
        )  # fmt: skip
        self.cost = self.cost.plus(between.cost)
        return self._columns(found, between)

    def _tables(self) -> Iterator[tuple[Selection, Table]]:
        start, end = self._spans[0].grid.start, self._spans[-1].grid.end
        return self.view.stored.tables(self._series, self.view.deletes, start, end)

    def _by_table(self) -> Iterator[list[_Part]]:
        """What is asked of one table after the other, of many stretches few at a time."""
        begin = 0
        for part, table in self._tables():
            groups = self._groups[begin : begin + len(part.ids)]
            recent = Recent.of(self.view.heads, part, table.masks)
            self._recent.append(recent)
            spans, at_once = buckets.reached(self._spans, table, recent), max(1, _LAID_OUT // len(groups))
            for low in range(0, len(spans), at_once):
                laid = self._lay_out(spans[low : low + at_once], table, recent, groups)
                yield self._parts(table, recent, laid, int(groups[0]))
            self._join_tables()
            begin += len(part.ids)

    def _lay_out(
        self, spans: Sequence[Span], table: Table, recent: Recent, groups: Integers
    ) -> list[tuple[Span, Rows]]:
        """Some spans and their rows."""
        laid = []
        for span in spans:
            rows = buckets.lay_out(table, recent, span.grid, groups)
            counted = self._tallies.setdefault(span, Tally()).counted(int(groups[0]), rows.ends - rows.base)
            self._take_rows(rows.total - counted)
            laid.append((span, rows))
        return laid

    def _join_tables(self) -> None:
        """Let not more be held than a few times the answer, however many tables a group goes on in."""
        held = [len(each.groups) for each in self._found] or [0]
        if sum(held[1:]) > max(held[0], _HELD_ROWS):
            self._found = [_united(self._found)]
        if self._joined:
            self._values = [_Located.joined(self._values)]
            check_values(len(self._values[0].groups), self._limits.values)
        self._joined = len(self._values)

    def _parts(self, table: Table, recent: Recent, laid: Sequence[tuple[Span, Rows]], first: int) -> list[_Part]:
        """All of them are folded before any is decoded: a question that is refused costs little."""
        parts = [_Part(span, rows, first, self._folds(table, recent, span, rows)) for span, rows in laid]
        self._take_points(sum(fold.rows_to_decode for part in parts for fold in part.folds))
        return parts

    def _columns(self, found: "_Found", between: StepRows | None = None) -> dict[str, npt.NDArray[Any]]:
        """All columns wanted. between: figures of steps, of rows that may be others; None where they are not wanted."""
        wanted = {name for want in self._wants for name in figures.WANTS[want]} | {"count"}
        if between is not None:
            empty = np.zeros((len(between.groups), kernels.FIELDS), np.int64)
            found = _united([found, _Found(between.groups, between.starts, empty)])
        self._rows = 0  # where groups go on from table to table less was counted
        self._take_rows(len(found.groups))
        columns = {"group": found.groups, "start": found.starts, **_figures(found.rows, wanted)}
        for name in wanted.difference(columns, _LONG):
            columns[name] = np.zeros(len(found.groups), figures.DTYPES[name])
            if between is not None:
                columns[name][_rows_of(found, between.groups, between.starts)] = between.columns[name]
        if _VALUES in self._wants:
            columns |= self._distinct(found)
        return columns

    def _folds(self, table: Table, recent: Recent, span: Span, rows: Rows) -> list[Fold]:
        folds = [Fold(self.view, table, recent, span.grid, rows.layout, self._with_windows)]
        if _VALUES in self._wants:
            distinct = Distinct(self._limits.values)
            folds.append(ValueFold(self.view, table, recent, span.grid, rows.layout, distinct))
        return folds

    def _run(self, fold: Fold, part: _Part, pool: Readers) -> None:
        if isinstance(fold, ValueFold):
            fold.distinct.used = sum(len(each.groups) for each in self._values[self._joined :])
            fold.run(pool)
            counted = fold.distinct.all()
            self._values.append(_Located(*part.locate(counted.rows), counted))
        else:
            fold.run(pool)
            filled = fold.rows[:, kernels.COUNT].nonzero()[0]
            rows = fold.rows if len(filled) == len(fold.rows) else fold.rows[filled]
            self._found.append(_Found(*part.locate(filled), rows))
        self.cost = self.cost.plus(fold.cost)

    def _distinct(self, found: _Found) -> dict[str, npt.NDArray[Any]]:
        """The columns of distinct values, for the rows of an answer."""
        counted = Counted.joined(
            [each.counted._replace(rows=_rows_of(found, each.groups, each.starts)) for each in self._values]
        )
        ends = counted.rows.searchsorted(np.arange(len(found.groups)), "right")
        return {"value_ends": ends, "values": counted.values, "value_counts": counted.counts}

    def _take_rows(self, rows: float) -> None:
        needed, limit = self._rows + rows, self._limits.rows
        if needed > limit:
            raise LimitError(
                f"{needed:.0f} rows, empty buckets between others counted, want at most {limit} (query.max_rows): take "
                "a longer interval, a shorter range or fewer groups",
                "query.max_rows", limit, int(needed),
            )  # fmt: skip
        self._rows = int(needed)

    def _take_points(self, points: int) -> None:
        self._points += points
        check_points(self._points, self._limits)


def _united(parts: Sequence[_Found]) -> _Found:
    """Rows in order of group and start, those of one group and start as one. Each part is so already."""
    if len(parts) < 2:
        return parts[0] if parts else _NOTHING
    groups, starts, rows = (np.concatenate(column) for column in zip(*parts, strict=True))
    rise = np.diff(groups)
    if ((rise > 0) | ((rise == 0) & (starts[1:] > starts[:-1]))).all():
        return _Found(groups, starts, rows)
    order = np.lexsort((starts, groups))
    groups, starts, rows = groups[order], starts[order], rows[order]
    new = np.append(True, (np.diff(groups) != 0) | (starts[1:] != starts[:-1]))
    begins = np.flatnonzero(new)
    united = rows[begins]
    repeats = np.arange(len(new)) - begins[np.cumsum(new) - 1]
    for number in range(1, int(repeats.max()) + 1):  # as often as tables or stretches meet in a bucket: a few times
        again = np.flatnonzero(repeats == number)
        beside = np.zeros_like(united)
        beside[begins.searchsorted(again, "right") - 1] = rows[again]
        aggregate_kernels.merge(beside, united)
    return _Found(groups[begins], starts[begins], united)


def _figures(rows: Integers, wanted: Collection[str]) -> dict[str, npt.NDArray[Any]]:
    """The columns that are wanted, of those that summary rows tell (aggregate.values_of)."""
    columns: dict[str, npt.NDArray[Any]] = {name: rows[:, _COUNTS[name]] for name in _COUNTS if name in wanted}
    columns |= {name: values_in(rows, _EXTREMES[name]) for name in _EXTREMES if name in wanted}
    if "sum_hi" in wanted:  # as it is wherever m2 is
        columns["sum_hi"], columns["sum_lo"] = sums_of(rows)
        if "m2" in wanted:
            columns["m2"] = m2_of(rows, columns["sum_hi"])
    return columns


def _rows_of(found: _Found, groups: Integers, starts: Integers) -> Integers:
    """Where groups and starts are in an answer, of which they are some."""
    width = len(found.starts)
    known = np.unique(found.starts)
    rank = known.searchsorted(found.starts) + found.groups * width
    rows: Integers = rank.searchsorted(known.searchsorted(starts) + groups * width)
    return rows
