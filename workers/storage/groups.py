"""Answers by group and bucket: any selection of series, any stretches of time, the figures that are wanted.

Owns nothing that lasts, and never changes what it reads. The series of a group share the rows of an answer, so that
summaries are folded right where they belong, whatever the number of series: nothing here is done series by series.
Any thread; a question belongs to one, its tasks to the pool's.

The same points give the same answer, to the last bit, whoever works on it: tables are cut by their size, and what
tasks found is added in their order.
"""

import time
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from common import figures, protocol
from common.errors import ProtocolError
from common.protocol import GroupsReply, GroupsRequest, Limits, TagsReply, TagsRequest
from workers.storage import aggregate_kernels, buckets, kernels
from workers.storage.aggregate import WINDOWED, LimitError, values_of
from workers.storage.buckets import Rows, Span
from workers.storage.fold import Cost, Fold
from workers.storage.readers import Readers
from workers.storage.reading import Reading
from workers.storage.recent import Integers, Recent
from workers.storage.selections import Grouped
from workers.storage.steps import StepRows, step_rows
from workers.storage.table import Selection, Table, View
from workers.storage.values import Counted, Distinct, ValueFold
from workers.storage.work import Cancel

_VALUES: Final = "values"
_INTEGRAL: Final = "integral"
_STEPS: Final = frozenset({"steps", _INTEGRAL})
_BY_SAMPLES: Final = _STEPS | {_VALUES}  # no summary or window tells them, nor do they ask anything of those
_LONG: Final = frozenset({"value_ends", "values", "value_counts"})
_NAMES: Final = {  # of the columns, as values_of has them
    "count": "counts", "sum_hi": "sum_hi", "sum_lo": "sum_lo", "min": "least", "max": "most",
    "first_time": "first_times", "first": "first", "last_time": "last_times", "last": "last", "m2": "m2",
}  # fmt: skip


def answer(store: Reading, request: GroupsRequest, partitions: bytes, cancel: Cancel) -> GroupsReply:
    """The groups and figures of all series that match, in partitions that this node answers for.

    Raises LimitError, ProtocolError for a request that means nothing, StorageError for damage, CancelledError.
    """
    began_ns = time.perf_counter_ns()
    unknown = set(request.wants) - set(figures.WANTS)
    if unknown:
        raise ProtocolError(f"wants {', '.join(sorted(unknown))[:100]}, want of {', '.join(figures.WANTS)}")
    stamp = store.catalog_stamp
    grouped = store.grouped(request.match, partitions, request.group_by)
    check_series(len(grouped.ids), request.limits)
    spans = buckets.spans(request.stretches, request.start_ns, request.end_ns, store.first_kept(request.start_ns))
    with store.watching_damage():
        view = store.view
        question = _Question(view, request.wants, request.limits, store.pool.watching(cancel))
        series = Selection(grouped.ids, grouped.hashes, store.key_of)
        columns = question.ask(series, _group_of(grouped), spans)
    cost = question.cost
    return GroupsReply(
        partitions, view.deletes.number, len(grouped.ids), store.labels(grouped, request.group_by),
        np.diff(grouped.ends, prepend=0).tolist(), figures.pack(columns),
        protocol.Cost(*cost, spent_ns=time.perf_counter_ns() - began_ns), stamp, store.places_of(grouped.hashes),
    )  # fmt: skip


def tags(store: Reading, request: TagsRequest, partitions: bytes, cancel: Cancel) -> TagsReply:
    """The tags of all series that match. Raises LimitError, and ProtocolError for a request that means nothing."""
    series = store.select(request.match, partitions)
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


class _Part(NamedTuple):
    """What is asked of one table and one span. numbers: of the table's groups; folds: what answers it."""

    span: Span
    rows: Rows
    numbers: Integers
    folds: list[Fold]

    def locate(self, rows: Integers) -> tuple[Integers, Integers]:
        """The groups and starts of rows."""
        groups, buckets_ = self.rows.locate(rows)
        return self.numbers[groups], self.span.starts(buckets_)


class _Question:
    """One question to a view. cost: so far."""

    def __init__(self, view: View, wants: Sequence[str], limits: Limits, pool: Readers) -> None:
        self.cost = Cost()
        self._view = view
        self._wants = wants
        self._limits = limits
        self._pool = pool
        self._with_windows = WINDOWED.issuperset(set(wants) - _BY_SAMPLES)
        self._rows = 0  # of the answer, so far
        self._points = 0  # to decode, so far
        self._found: list[_Found] = []
        self._values: list[_Located] = []

    def ask(self, series: Selection, groups: Integers, spans: Sequence[Span]) -> dict[str, npt.NDArray[Any]]:
        """The columns of the answer, by group and start. groups: by place of the series, ascending."""
        if not (len(series.ids) and spans):
            return self._columns(_NOTHING)
        begin = 0
        for part, table in self._view.stored.tables(
            series, self._view.deletes, spans[0].grid.start, spans[-1].grid.end
        ):
            end = begin + len(part.ids)
            self._ask_table(part, table, groups[begin:end], spans)
            begin = end
        found = _united(self._found)
        if not _STEPS.intersection(self._wants):
            return self._columns(found)
        self._rows = 0  # the same ones again, and those that trapezoids cross
        between = step_rows(
            self._view, series, groups, spans, _INTEGRAL in self._wants, self._pool, self._take_rows, self._take_points
        )
        self.cost = self.cost.plus(between.cost)
        return self._columns(found, between)

    def _columns(self, found: "_Found", between: StepRows | None = None) -> dict[str, npt.NDArray[Any]]:
        """All columns wanted. between: figures of steps, of rows that may be others; None where they are not wanted."""
        wanted = {name for want in self._wants for name in figures.WANTS[want]} | {"count"}
        if between is not None:
            empty = np.zeros((len(between.groups), kernels.FIELDS), np.int64)
            found = _united([found, _Found(between.groups, between.starts, empty)])
        values = values_of(found.rows)
        columns = {"group": found.groups, "start": found.starts}
        columns |= {name: getattr(values, _NAMES[name]) for name in _NAMES if name in wanted}
        for name in wanted - set(_NAMES) - _LONG:
            columns[name] = np.zeros(len(found.groups), figures.DTYPES[name])
            if between is not None:
                columns[name][_rows_of(found, between.groups, between.starts)] = between.columns[name]
        if _VALUES in self._wants:
            columns |= self._distinct(found)
        return columns

    def _ask_table(self, part: Selection, table: Table, groups: Integers, spans: Sequence[Span]) -> None:
        recent = Recent.of(self._view.heads, part, table.masks)
        numbers = groups[np.flatnonzero(np.diff(groups, prepend=-1))]
        parts = []
        for span in spans:  # all of them are laid out before any is decoded: a question that is refused costs little
            rows = buckets.lay_out(table, recent, span.grid, groups)
            self._take_rows(rows.total)
            parts.append(_Part(span, rows, numbers, self._folds(table, recent, span, rows)))
            self._take_points(sum(fold.rows_to_decode for fold in parts[-1].folds))
        for each in parts:
            for fold in each.folds:
                self._run(fold, each)

    def _folds(self, table: Table, recent: Recent, span: Span, rows: Rows) -> list[Fold]:
        folds = [Fold(self._view, table, recent, span.grid, rows.layout, self._with_windows)]
        if _VALUES in self._wants:
            distinct = Distinct(self._limits.values)
            folds.append(ValueFold(self._view, table, recent, span.grid, rows.layout, distinct))
        return folds

    def _run(self, fold: Fold, part: "_Part") -> None:
        if isinstance(fold, ValueFold):
            fold.distinct.used = sum(len(each.groups) for each in self._values)
            fold.run(self._pool)
            counted = fold.distinct.all()
            self._values.append(_Located(*part.locate(counted.rows), counted))
        else:
            fold.run(self._pool)
            filled = np.flatnonzero(fold.rows[:, kernels.COUNT])
            self._found.append(_Found(*part.locate(filled), fold.rows[filled]))
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


def _group_of(grouped: Grouped) -> Integers:
    """By place, the group of a series."""
    return np.repeat(np.arange(len(grouped.ends)), np.diff(grouped.ends, prepend=0))


def _united(parts: Sequence[_Found]) -> _Found:
    """Rows in order of group and start, those of one group and start as one."""
    if not parts:
        return _NOTHING
    columns = (np.concatenate(column) for column in zip(*parts, strict=True))
    groups, starts, rows = columns if len(parts) > 1 else parts[0]
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


def _rows_of(found: _Found, groups: Integers, starts: Integers) -> Integers:
    """Where groups and starts are in an answer, of which they are some."""
    width = len(found.starts)
    known = np.unique(found.starts)
    rank = known.searchsorted(found.starts) + found.groups * width
    rows: Integers = rank.searchsorted(known.searchsorted(starts) + groups * width)
    return rows
