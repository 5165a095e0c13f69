"""Rows for the buckets that have no points.

A group has buckets from the start of the range to its end; where an end is open, from its first row, to its last. A
group without rows stays without, but where all is one group it has the whole range. Pure: no I/O, no clock, no state.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from common.errors import ProtocolError
from common.protocol import Stretch
from workers.query import intervals
from workers.query.finish import Column
from workers.query.refusal import OverLimit
from workers.query.runs import beginnings

Ints = npt.NDArray[np.int64]

UNFILLED: Final = "count"  # the count of an empty bucket is 0


class Sheet:
    """Rows by group and bucket, ascending: group, start (ns) and columns, which is all that filling needs of them."""

    def __init__(self, group: Ints, start: Ints, count: Ints, columns: dict[str, Column]) -> None:
        self.group = group
        self.start = start
        self.count = count
        self.columns = columns


def fill(
    sheet: Sheet,
    how: str | float,
    stretches: list[Stretch],
    start_ns: int | None,
    end_ns: int | None,
    max_rows: int,
    is_grouped: bool = True,
) -> Sheet:
    """The sheet with rows for empty buckets too. how: "null", "previous", "linear" or a number.

    start_ns, end_ns: of the range, None is open. is_grouped: whether groups were asked for, else all is one. Raises
    OverLimit when there would be more rows than max_rows.
    """
    if not len(sheet.group):
        if is_grouped or start_ns is None or end_ns is None:
            return sheet
        return _of_nothing(sheet, how, stretches, start_ns, end_ns)
    # The bucket in which the range begins may have a name that lies before it.
    low = max(int(sheet.start.min()), stretches[0].start_ns) if start_ns is None else start_ns
    high = max(int(sheet.start.max()), low) if end_ns is None else end_ns
    edges = intervals.edges(stretches, low, high)
    place = np.searchsorted(edges, sheet.start)
    if not len(edges) or (edges[np.minimum(place, len(edges) - 1)] != sheet.start).any():
        raise ProtocolError("BUG: a node answers with a bucket that was not asked")
    begins = np.flatnonzero(beginnings(sheet.group))
    ends = np.append(begins[1:], len(sheet.group)) - 1
    first = place[begins] if start_ns is None else np.zeros(len(begins), np.int64)
    last = place[ends] if end_ns is None else np.full(len(begins), len(edges) - 1, np.int64)
    lengths = last - first + 1
    if lengths.sum() > max_rows:
        text = f"filling gives {lengths.sum()} rows, query.max_rows is {max_rows}"
        raise OverLimit("query.max_rows", max_rows, int(lengths.sum()), text, "fill")
    offsets = np.cumsum(lengths) - lengths  # of each group's first row
    at = np.repeat(offsets - first, ends - begins + 1) + place
    number = np.arange(lengths.sum()) - np.repeat(offsets - first, lengths)
    group = np.repeat(sheet.group[begins], lengths)
    count = np.zeros(len(number), np.int64)
    count[at] = sheet.count
    filled = Sheet(group, edges[number], count, {})
    for name, column in sheet.columns.items():
        if name == UNFILLED:
            filled.columns[name] = Column(count, np.ones(len(number), np.bool_))
        else:
            filled.columns[name] = _filled(_spread(column, at, len(number)), how, filled, np.repeat(offsets, lengths))
    return filled


def _of_nothing(sheet: Sheet, how: str | float, stretches: list[Stretch], start_ns: int, end_ns: int) -> Sheet:
    """The rows of one group that has no points; of these nothing is before or between."""
    edges = intervals.edges(stretches, start_ns, end_ns)
    zeros, known = np.zeros(len(edges), np.int64), np.ones(len(edges), np.bool_)
    number = how if isinstance(how, int | float) else None
    figures = Column(np.full(len(edges), float(number or 0.0)), known if number is not None else ~known)
    columns = {name: Column(zeros, known) if name == UNFILLED else figures for name in sheet.columns}
    return Sheet(zeros, edges, zeros, columns)


def _spread(column: Column, at: Ints, rows: int) -> Column:
    values, known = np.zeros(rows), np.zeros(rows, np.bool_)
    values[at], known[at] = column.values, column.known
    return Column(values, known)


def _filled(column: Column, how: str | float, sheet: Sheet, group_begin: Ints) -> Column:
    """Figures where there are none and no points. group_begin: of each row, where its group begins."""
    empty = ~column.known & (sheet.count == 0)
    if how == "null":
        return column
    if isinstance(how, int | float):
        return Column(np.where(empty, how, column.values), column.known | empty)
    rows = np.arange(len(empty))
    before = np.maximum.accumulate(np.where(column.known, rows, -1))
    has_before = before >= group_begin
    if how == "previous":
        usable = empty & has_before
        return Column(np.where(usable, column.values[before], column.values), column.known | usable)
    after = np.minimum.accumulate(np.where(column.known, rows, len(rows))[::-1])[::-1]
    inside = np.minimum(after, len(rows) - 1)
    usable = empty & has_before & (after < len(rows)) & (group_begin[inside] == group_begin)
    return Column(np.where(usable, _between(column, sheet.start, before, inside), column.values), column.known | usable)


def _between(column: Column, start: Ints, before: Ints, after: Ints) -> npt.NDArray[np.float64]:
    """On the line between two figures, by the starts of their buckets."""
    origin = start[before].astype(np.float64)
    length = np.maximum(start[after].astype(np.float64) - origin, 1.0)
    share = (start.astype(np.float64) - origin) / length
    low, high = column.values[before], column.values[after]
    return np.asarray(low * (1 - share) + high * share)
