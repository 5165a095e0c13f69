"""Aggregates and samples over a view of the store: one row for all series, one for each, or one for each bucket.

Owns nothing that lasts, and never changes what it reads; how rows are found is fold.py's. Any thread; a plan or an
iterator belongs to one.
"""

import math
import struct
from collections.abc import Callable, Collection, Iterator
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from common import protocol
from common.errors import StorageError
from workers.storage import aggregate_kernels, kernels
from workers.storage.fold import Cost, Fold, Grid, Layout, Summed
from workers.storage.head import Times, Values
from workers.storage.join import settled_pieces
from workers.storage.readers import Readers
from workers.storage.recent import Recent, unmasked
from workers.storage.segment import EARLIEST, LATEST, Segment
from workers.storage.table import SegmentSet, Selection, Table, View

__all__ = [
    "EARLIEST", "LATEST", "AggregatePlan", "Columns", "LimitError", "Rows", "SegmentSet", "Selection", "View",
    "by_interval", "by_series", "pieces", "samples", "values_of",
]  # fmt: skip

Integers = npt.NDArray[np.int64]

WINDOWED: Final = frozenset({"count", "sum", "mean", "min", "max"})  # what windows can tell
WANTS: Final = WINDOWED | {"first", "last", "m2"}

_SUMS: Final = slice(kernels.HI, kernels.M2 + 1)  # HI, LO, M2
_LOW_63: Final = 0x7FFF_FFFF_FFFF_FFFF
_FOUR_INTEGERS, _FOUR_FLOATS = struct.Struct("<4q"), struct.Struct("<4d")


class LimitError(StorageError):
    """A question that would need more than its limit allows. setting: the limit's name; value: what it would need."""

    def __init__(self, text: str, setting: str = "", limit: int = 0, value: int = 0) -> None:
        super().__init__(text)
        self.setting = setting
        self.limit = limit
        self.value = value


class Rows(NamedTuple):
    """Aggregates by series, or by series and bucket: those that have points, in order of the selection and of time.

    ids: catalog ids; starts: of the buckets, ns (at least EARLIEST), the range's start without buckets; rows:
    int64[n, FIELDS], for values_of. The rest: what it cost.
    """

    ids: Integers
    starts: Integers
    rows: Integers
    blocks_summarized: int
    windows_read: int
    blocks_decoded: int
    rows_decoded: int


class Columns(NamedTuple):
    """Figures by row. The sum is the unevaluated pair sum_hi + sum_lo, not finite when it left the range of float64.

    Times in ns. Where windows were read, first_times to m2 mean nothing.
    """

    counts: Integers
    sum_hi: Values
    sum_lo: Values
    least: Values
    most: Values
    first_times: Integers
    first: Values
    last_times: Integers
    last: Values
    m2: Values


def values_of(rows: Integers) -> Columns:
    """The figures in summary rows, int64[n, FIELDS]."""
    hi, lo = sums_of(rows)
    least, most, first, last = (
        values_in(rows, field) for field in (kernels.MIN, kernels.MAX, kernels.FIRST, kernels.LAST)
    )
    return Columns(
        rows[:, kernels.COUNT], hi, lo, least, most, rows[:, kernels.FIRST_TIME], first,
        rows[:, kernels.LAST_TIME], last, m2_of(rows, hi),
    )  # fmt: skip


def sums_of(rows: Integers) -> tuple[Values, Values]:
    """The columns sum_hi and sum_lo."""
    floats = rows.view(np.float64)
    high, low = floats[:, kernels.HI], floats[:, kernels.LO]
    with np.errstate(invalid="ignore", over="ignore"):
        hi = high + low
        return hi, np.where(np.isfinite(hi), (high - hi) + low, 0.0)


def m2_of(rows: Integers, hi: Values) -> Values:
    """The column m2, given sum_hi: there is no distance from a mean that there is not."""
    return np.where(np.isfinite(hi), rows.view(np.float64)[:, kernels.M2], np.nan)


def values_in(rows: Integers, field: int) -> Values:
    """One of the fields MIN, MAX, FIRST and LAST, which are kept as ordered bits (kernels)."""
    keys = rows[:, field]
    return (keys ^ ((keys >> 63) & _LOW_63)).view(np.float64)


class AggregatePlan:
    """One aggregate over all series of a selection, its summaries absorbed; `run` decodes the rest.

    rows_to_decode: how many rows that are at most, 0 when the answer needs no decoding.
    """

    def __init__(self, view: View, series: Selection, partitions: bytes, start: int | None, end: int | None) -> None:
        """start, end: ns, inclusive, None is open. Raises StorageError for a damaged index."""
        self.rows_to_decode = 0
        self._partitions = partitions
        self.catalog = 0  # of the reply, set by whoever knows
        self.places: list[int] | None = None
        self._series = len(series.ids)
        self._delete_number = view.deletes.number
        self._row = np.zeros((1, aggregate_kernels.FIELDS), np.int64)
        self._cost = Cost()
        self._open: list[Fold | Summed] = []
        grid = Grid(EARLIEST if start is None else start, LATEST if end is None else end)
        for part, table in view.stored.tables(series, view.deletes, grid.start, grid.end):
            self._add(view, part, table, grid)

    def run(self, pool: Readers | None = None) -> protocol.AggregateReply:
        """Decode what is open, and the answer. Raises StorageError for a damaged block."""
        for fold in self._open:
            fold.run(pool)
            self._take(fold.rows, fold.cost)
        self._open = []
        return self._reply()

    def _add(self, view: View, part: Selection, table: Table, grid: Grid) -> None:
        fold = (Summed.of(view, part.ids, table, grid) if len(part.ids) == 1 else None) or Fold(
            view, table, Recent.of(view.heads, part, table.masks), grid, Layout.together(len(part.ids))
        )
        self.rows_to_decode += fold.rows_to_decode
        if fold.rows_to_decode:
            self._open.append(fold)
        else:
            self._take(fold.rows, fold.cost)

    def _take(self, rows: Integers, cost: Cost) -> None:
        aggregate_kernels.merge(rows, self._row)
        self._cost = self._cost.plus(cost)

    def _reply(self) -> protocol.AggregateReply:
        """In plain Python: for one row that is faster than values_of."""
        row, cost = self._row[0], self._cost
        fields = row.tolist()
        if not fields[kernels.COUNT]:
            return self._nothing()  # most answers, where every node is asked for a series that one of them has
        high, low, m2 = row.view(np.float64)[_SUMS].tolist()
        hi = high + low
        lo = (high - hi) + low if math.isfinite(hi) else 0.0
        ordered = fields[kernels.MIN : kernels.LAST + 1]
        least, most, first, last = _FOUR_FLOATS.unpack(
            _FOUR_INTEGERS.pack(*[key ^ ((key >> 63) & _LOW_63) for key in ordered])
        )
        return protocol.AggregateReply(
            self._partitions, self._delete_number, self._series, fields[kernels.COUNT], hi, lo, least, most,
            fields[kernels.FIRST_TIME], first, fields[kernels.LAST_TIME], last,
            cost.summarized, cost.decoded, cost.rows, m2 if math.isfinite(hi) else math.nan,
            self.catalog, self.places,
        )  # fmt: skip

    def _nothing(self) -> protocol.AggregateReply:
        cost = self._cost
        return protocol.AggregateReply(
            self._partitions, self._delete_number, self._series, 0, 0.0, 0.0, 0.0, 0.0, 0, 0.0, 0, 0.0,
            cost.summarized, cost.decoded, cost.rows, 0.0, self.catalog, self.places,
        )  # fmt: skip


def by_series(
    view: View, series: Selection, start: int | None, end: int | None, pool: Readers | None = None
) -> Rows:
    """Aggregate each series of a selection over start <= time <= end (ns, None is open).

    Raises StorageError for a damaged block.
    """
    grid = Grid(EARLIEST if start is None else start, LATEST if end is None else end)
    found, cost = [], Cost()
    for part, table in view.stored.tables(series, view.deletes, grid.start, grid.end):
        recent = Recent.of(view.heads, part, table.masks)
        fold = Fold(view, table, recent, grid, Layout.apart(len(part.ids)))
        fold.run(pool)
        filled = np.flatnonzero(fold.rows[:, kernels.COUNT])
        found.append((part.ids[filled], np.full(len(filled), grid.start), fold.rows[filled]))
        cost = cost.plus(fold.cost)
    return _rows(found, cost)


def by_interval(
    view: View,
    series: Selection,
    start: int | None,
    end: int | None,
    interval: int,
    offset: int = 0,
    wants: Collection[str] = WANTS,
    max_rows: int = 1_000_000,
    pool: Readers | None = None,
) -> Rows:
    """Aggregate each series over each bucket of `interval` ns within start <= time <= end (None is open).

    A time t lies in the bucket that starts at offset + interval * floor((t - offset) / interval), as SQL's date_bin has
    it. wants: of WANTS, the figures that will be read. max_rows: bound of buckets, those without points between the
    first and the last of a series counted. Raises LimitError beyond it, and StorageError for a damaged block.
    """
    if not 1 <= interval <= LATEST:
        raise LimitError(f"interval of {interval} ns, want 1 to {LATEST}")
    grid = Grid(EARLIEST if start is None else start, LATEST if end is None else end, interval, offset % interval)
    with_windows = WINDOWED.issuperset(wants)
    found, cost, left = [], Cost(), max_rows
    for part, table in view.stored.tables(series, view.deletes, grid.start, grid.end):
        recent = Recent.of(view.heads, part, table.masks)
        layout = _lay_out(table, recent, grid, max_rows, left)
        left -= layout.rows
        fold = Fold(view, table, recent, grid, layout, with_windows)
        fold.run(pool)
        found.append(_buckets(part, layout, grid, fold.rows))
        cost = cost.plus(fold.cost)
    return _rows(found, cost)


def samples(
    view: View, series: Selection, start: int | None, end: int | None
) -> Iterator[tuple[int, Times, Values]]:
    """The points of each series in turn with start <= time <= end (ns, None is open): catalog id, times, values.

    A series comes in pieces in order of time, none of them empty, each of about a block unless many overlap; the
    arrays are to be read only. Raises StorageError for a damaged block.
    """
    begin, stop = EARLIEST if start is None else start, LATEST if end is None else end
    for part, table in view.stored.tables(series, view.deletes, begin, stop):
        recent = Recent.of(view.heads, part, table.masks)
        for place, local_id in enumerate(part.ids.tolist()):
            for times, values in pieces(view, table, recent, place, begin, stop):
                low, high = int(times.searchsorted(begin)), int(times.searchsorted(stop, "right"))
                if low < high:
                    yield local_id, times[low:high], values[low:high]


def pieces(
    view: View, table: Table, recent: Recent, place: int, start: int, end: int,
    read: Callable[[Segment, int], tuple[Times, Values]] = Segment.decode,
) -> Iterator[tuple[Times, Values]]:  # fmt: skip
    """The rows of one series, at least those in the range, settled, in order of time; some pieces may be empty.

    read: decodes a block of a segment.
    """
    masks = table.masks.get(place, ())
    span = table.of(place)
    blocks = span.start + np.flatnonzero((table.t_min[span] <= end) & (table.t_max[span] >= start))
    parts = recent.of_series(place)
    where = list(zip(table.segments[blocks].tolist(), table.blocks[blocks].tolist(), strict=True))

    def decode(at: int) -> tuple[Times, Values]:
        segment = view.stored.segments[where[at][0]]
        return unmasked(read(segment, where[at][1]), masks, segment.header.delete_number)

    if not parts and table.alone[blocks].all():
        return map(decode, range(len(where)))
    extra = recent.rows(view.heads, parts, masks, start, end) if parts else None
    return settled_pieces(table.t_min[blocks], decode, extra)


def _lay_out(table: Table, recent: Recent, grid: Grid, max_rows: int, left: int) -> Layout:
    """A row for each bucket of each series from its first to its last. Raises LimitError for more than `left`."""
    low, high, first = np.empty((3, len(table.earliest)), np.int64)
    low.fill(LATEST)
    high.fill(EARLIEST)
    total = aggregate_kernels.lay_out(
        table.places, table.t_min, table.t_max, recent.places, recent.summaries, *grid, low, high, first
    )
    if total > left:
        raise LimitError(
            f"{total + max_rows - left:.0f} buckets of {grid.interval} ns, want at most {max_rows}: "
            "take a longer interval, a shorter range or fewer series"
        )
    ends = np.cumsum(high)
    return Layout(ends - high, first, ends, int(high.sum()))


def _buckets(series: Selection, layout: Layout, grid: Grid, rows: Integers) -> tuple[Integers, Integers, Integers]:
    """Ids, starts and rows of the buckets that have points."""
    filled = np.flatnonzero(rows[:, kernels.COUNT])
    places = layout.ends.searchsorted(filled, "right")
    numbers = layout.first[places] + (filled - layout.base[places])
    starts = numbers * grid.interval + grid.offset
    starts[numbers < -((-EARLIEST + grid.offset) // grid.interval)] = EARLIEST  # it begins before int64 does
    return series.ids[places], starts, rows if len(filled) == len(rows) else rows[filled]


def _rows(found: list[tuple[Integers, Integers, Integers]], cost: Cost) -> Rows:
    if len(found) == 1:
        return Rows(*found[0], *cost[:4])
    ids, starts, rows = (np.concatenate(columns) for columns in zip(*found, strict=True))
    return Rows(ids, starts, rows, *cost[:4])
