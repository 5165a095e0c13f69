"""Buckets: which rows of an answer the groups of series need, and the times that these stand for.

Pure: no I/O, no state.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from common.errors import ProtocolError
from common.protocol import Stretch
from workers.storage import aggregate_kernels, kernels
from workers.storage.fold import Grid, Layout
from workers.storage.recent import Integers, Recent
from workers.storage.segment import EARLIEST, LATEST
from workers.storage.table import Table


class Span(NamedTuple):
    """A part of a range and its buckets. start: of the bucket, where the grid has but one."""

    grid: Grid
    start: int

    def starts(self, numbers: Integers) -> Integers:
        """The starts of buckets by number, ns, at least EARLIEST."""
        grid = self.grid
        if grid.interval == 0:
            return np.full(len(numbers), self.start, np.int64)
        starts = numbers * grid.interval + grid.offset
        starts[numbers < -((-EARLIEST + grid.offset) // grid.interval)] = EARLIEST  # it begins before int64 does
        return starts


class Rows(NamedTuple):
    """Where the buckets of groups are in an answer: group g, of those in a table, has the rows base[g] to ends[g].

    first: the number of its first bucket; layout: the same by series; total: rows.
    """

    base: Integers
    ends: Integers
    first: Integers
    layout: Layout
    total: float

    def locate(self, rows: Integers) -> tuple[Integers, Integers]:
        """The group and the bucket's number of rows."""
        groups = self.ends.searchsorted(rows, "right")
        return groups, self.first[groups] + (rows - self.base[groups])


class Tally:
    """Counts the rows of groups that go on from table to table: one that does has as many as the most in any table."""

    def __init__(self) -> None:
        self._group = -1  # the last of the table before
        self._most = 0.0

    def counted(self, first: int, sizes: Integers) -> float:
        """How many of a table's rows were counted before. first: its first group; sizes: of each, none left out."""
        rows, before = float(sizes[0]), self._most if first == self._group else 0.0
        self._group, self._most = first + len(sizes) - 1, max(before, rows) if len(sizes) == 1 else float(sizes[-1])
        return min(before, rows)


def spans(stretches: Sequence[Stretch], start: int | None, end: int | None, kept: int | None) -> list[Span]:
    """The parts of a range that hold anything: one without stretches. kept: the start, but for retention.

    Raises ProtocolError for stretches that are none, overlap or descend.
    """
    stop = LATEST if end is None else end
    begin = EARLIEST if kept is None else kept
    if not stretches:
        return [Span(Grid(begin, stop), 0 if start is None else start)] if begin <= stop else []
    found, before = [], EARLIEST - 1
    for each in stretches:
        if not (before < each.start_ns <= each.end_ns <= LATEST and 0 <= each.interval_ns <= LATEST):
            raise ProtocolError(f"stretch {each}: want int64, in order, and no interval below 0")
        if not EARLIEST <= each.offset_ns <= LATEST:
            raise ProtocolError(f"stretch {each}: offset is no int64")
        before = each.end_ns
        interval = each.interval_ns
        grid = Grid(
            max(each.start_ns, begin), min(each.end_ns, stop), interval, each.offset_ns % interval if interval else 0
        )
        if grid.start <= grid.end:
            found.append(Span(grid, each.offset_ns))
    return found


def reached(spans: Sequence[Span], table: Table, recent: Recent) -> Sequence[Span]:
    """The spans that rows of a table or of heads may lie in: an open range has more of them than most series touch."""
    if len(spans) == 1:
        return spans
    lowest, highest = int(table.earliest.min()), int(table.latest.max())
    if len(recent.places):
        lowest = min(lowest, int(recent.summaries[:, kernels.FIRST_TIME].min()))
        highest = max(highest, int(recent.summaries[:, kernels.LAST_TIME].max()))
    return [span for span in spans if span.grid.start <= highest and span.grid.end >= lowest]


def lay_out(table: Table, recent: Recent, grid: Grid, groups: Integers) -> Rows:
    """Rows for the groups of a table's series, each from its first bucket with points to its last.

    groups: by place, ascending, none left out. When `total` is more than the caller has room for, the rest means
    nothing.
    """
    ranks = groups - groups[0]
    count = int(ranks[-1]) + 1
    if grid.interval == 0:
        base = np.arange(count)
        return Rows(base, base + 1, np.zeros(count, np.int64), Layout.grouped(groups), float(count))
    low, sizes, first = np.empty((3, count), np.int64)
    low.fill(LATEST)
    sizes.fill(EARLIEST)
    total = aggregate_kernels.lay_out(
        ranks[table.places], table.t_min, table.t_max, ranks[recent.places], recent.summaries, *grid, low, sizes, first
    )
    ends = sizes.cumsum()
    base = ends - sizes
    return Rows(base, ends, first, Layout(base[ranks], first[ranks], ends[ranks], int(ends[-1])), total)
