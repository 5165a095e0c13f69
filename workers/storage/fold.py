"""Folds what a view holds of some series into summary rows, one for each series and bucket.

Owns nothing that lasts. Any thread; a fold belongs to one, its tasks to the pool's.

A summary stands for its rows when all of them lie in the range and in one bucket, and no other place holds rows of
the same series between them: heads count as such places. Windows do the same within a block, where only count, sum
and extremes are wanted. Whatever is left is decoded and joined by the identity rule (one row per timestamp, the
larger value). Rows in heads are compared with blocks one by one, not by the span that they reach over, so one late
point makes one block be decoded and not all history.

Decoding is cut into tasks by the rows in them, never by the number of threads, and what they found is added in
their order: so the same points give the same sums to the last bit, whoever works on them.
"""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from common.codec import SMALL_ROWS
from workers.storage import aggregate_kernels, kernels, scan_kernels
from workers.storage.aggregate_kernels import FIELDS, JOINED, SEPARATE, SUMMARIZED
from workers.storage.head import Parts
from workers.storage.join import settled_pieces
from workers.storage.readers import Readers
from workers.storage.recent import Integers, Recent, Rows, Values, unmasked
from workers.storage.segment import EARLIEST, Segment
from workers.storage.table import GAP_BLOCKS, Masks, Table, View

_TASK_ROWS: Final = 1 << 18  # decoding them takes a few milliseconds: many tasks in a second, few changes of thread
_WAVE_ROWS: Final = 1 << 20  # summary rows that tasks may hold before they are added up: 112 MB
_BATCH_ROWS: Final = 1 << 15  # decoded before they are folded; times and values take half a megabyte of cache
_SCANNED: Final = 0.25  # of a head's rows: from so many asked for on, all are gone through
_FEW_ENDS: Final = 2  # blocks of a series that the ends of a range cut
_FEW_BLOCKS: Final = 16  # more small blocks than these are decoded all at once


class Grid(NamedTuple):
    """The range start..end, inclusive, and the buckets in it (aggregate_kernels); interval 0: a single one. ns."""

    start: int
    end: int
    interval: int = 0
    offset: int = 0


class Layout(NamedTuple):
    """Which rows of an answer a series has: base[s] for its bucket first[s], and so on. rows: of all series.

    ends: by series, the row after its last.
    """

    base: Integers
    first: Integers
    ends: Integers
    rows: int

    @classmethod
    def together(cls, series: int) -> "Layout":
        """One row for all series."""
        if series == 1:
            return _ONE_ROW
        return cls(np.zeros(series, np.int64), np.zeros(series, np.int64), np.ones(series, np.int64), 1)

    @classmethod
    def grouped(cls, groups: Integers) -> "Layout":
        """One row for each group; series have ascending groups, none left out."""
        base = groups - groups[0]
        return cls(base, np.zeros(len(groups), np.int64), base + 1, int(base[-1]) + 1)

    @classmethod
    def apart(cls, series: int) -> "Layout":
        """One row for each series."""
        return cls(np.arange(series), np.zeros(series, np.int64), np.arange(1, series + 1), series)

    def span(self, first: int, last: int) -> slice:
        """The rows of the series first to last."""
        return slice(int(self.base[first]), int(self.ends[last]))


_ONE_ROW: Final = Layout(np.zeros(1, np.int64), np.zeros(1, np.int64), np.ones(1, np.int64), 1)


_NOT_HELD: Final = np.zeros(1, np.uint8)
_FIRST_PLACE: Final = np.zeros(1, np.int64)
_NO_OFFSETS: Final = np.zeros(2, np.int64)


class Cost(NamedTuple):
    """What an answer cost. bytes: of the blocks decoded, as they are stored."""

    summarized: int = 0
    windows: int = 0
    decoded: int = 0
    rows: int = 0
    bytes: int = 0

    def plus(self, other: "Cost") -> "Cost":
        """Both together."""
        return Cost(
            self.summarized + other.summarized, self.windows + other.windows, self.decoded + other.decoded,
            self.rows + other.rows, self.bytes + other.bytes,
        )  # fmt: skip


class _Part(NamedTuple):
    """What a task found: summary rows for those of the answer that begin with `shift`."""

    shift: int
    rows: Integers
    cost: Cost


Task = Callable[[], _Part]


class Fold:
    """What a view holds of the series of one table, folded. What needs no decoding is folded at once.

    rows: int64[layout.rows, FIELDS], complete after `run`; rows_to_decode: at most; cost: so far. with_windows: whether
    windows may be read, of which first, last and M2 cannot be told (M2 is NaN then). with_summaries: False to decode
    all that touches the range, for a subclass that looks at rows.
    """

    def __init__(
        self, view: View, table: Table, recent: Recent, grid: Grid, layout: Layout, with_windows: bool = False,
        with_summaries: bool = True,
    ) -> None:  # fmt: skip
        self.rows = np.zeros((layout.rows, FIELDS), np.int64)
        self.rows_to_decode = 0
        self.cost = Cost()
        self._view = view
        self._table = table
        self._recent = recent
        self._grid = grid
        self._layout = layout
        self._with_windows = with_windows
        self._with_summaries = with_summaries
        self._held = np.zeros(len(layout.base), np.uint8)
        self._fates = np.zeros(len(recent.places), np.uint8)
        self._tasks: list[Task] = []
        if grid.start <= grid.end:
            self._fold_recent()
            self._fold_blocks()

    def run(self, pool: Readers | None = None) -> None:
        """Decode what is left. Raises StorageError for a damaged block."""
        tasks, self._tasks = self._tasks, []
        at_once = max(2, _WAVE_ROWS // max(1, len(self.rows)))  # each may make as many rows as there are
        for begin in range(0, len(tasks), at_once):
            wave = tasks[begin : begin + at_once]
            parts = pool.run(wave) if pool is not None and len(tasks) > 1 else [task() for task in wave]
            for part in parts:
                aggregate_kernels.merge(part.rows, self.rows[part.shift : part.shift + len(part.rows)])
                self.cost = self.cost.plus(part.cost)

    def _fold_recent(self) -> None:
        """Take in the summaries of heads that stand for themselves; tasks for the others that touch the range."""
        recent, table, layout = self._recent, self._table, self._layout
        if not len(recent.places):
            return
        aggregate_kernels.judge_parts(
            recent.places, recent.summaries, recent.masked, table.earliest, table.latest, *self._grid, self._fates,
            self._held,
        )  # fmt: skip
        if not self._with_summaries:
            self._fates[self._fates == SUMMARIZED] = SEPARATE
        summarized = aggregate_kernels.fold_parts(
            recent.places, recent.summaries, self._fates, self._grid.interval, self._grid.offset, layout.base,
            layout.first, self.rows,
        )  # fmt: skip
        self.cost = Cost(summarized=summarized)
        if summarized < len(recent.places):
            self._plan_separate()
            self._plan_joined()

    def _plan_separate(self) -> None:
        """Tasks for the rows of heads that nothing else overlaps."""
        separate = np.flatnonzero(self._fates == SEPARATE)
        for number in np.unique(self._recent.heads[separate]).tolist():
            which = separate[self._recent.heads[separate] == number]
            counts = self._recent.summaries[which, kernels.COUNT]
            self.rows_to_decode += int(counts.sum())
            if self._with_windows:
                which = self._plan_scan(number, which)
                counts = self._recent.summaries[which, kernels.COUNT]
            for span in _stretches(counts, np.ones(len(which), np.bool_), _TASK_ROWS):
                self._tasks.append(partial(self._fold_separate, number, which[span]))

    def _plan_scan(self, number: int, which: Integers) -> Integers:
        """Tasks for series whose rows are a good part of a head, and were in order when they came; those that are left.

        To walk from row to row of a series takes several times as long as to go through all rows as they lie.
        """
        summaries = self._recent.summaries[which]
        rising = summaries[:, kernels.RISING] != 0
        stop = int(summaries[rising, kernels.LAST_ROW].max(initial=-1)) + 1
        if int(summaries[rising, kernels.COUNT].sum()) < max(_SCANNED * stop, 1):
            return which
        chosen = which[rising]
        places = np.full(int(self._recent.locals[chosen].max()) + 1, -1, np.int32)
        last_rows = np.zeros(len(places), np.int64)
        places[self._recent.locals[chosen]] = self._recent.places[chosen]
        last_rows[self._recent.locals[chosen]] = summaries[rising, kernels.LAST_ROW]
        for begin in range(0, stop, _TASK_ROWS):
            end = min(begin + _TASK_ROWS, stop)
            self._tasks.append(partial(self._fold_scanned, number, begin, end, places, last_rows))
        left: Integers = which[~rising]
        return left

    def _plan_joined(self) -> None:
        """Tasks for the series of which rows in heads and blocks, or of several heads, may overlap."""
        held = np.flatnonzero(self._held)
        if not len(held):
            return
        exposed = np.zeros(len(self._held), np.int64)
        table, recent = self._table, self._recent
        alone = table.alone if self._with_summaries else np.zeros_like(table.alone)
        aggregate_kernels.count_exposed(
            table.places, table.t_min, table.t_max, table.counts, alone, recent.places, recent.summaries,
            self._fates, self._held, *self._grid, exposed,
        )  # fmt: skip
        self.rows_to_decode += int(exposed.sum())
        streamed = (exposed[held] > _TASK_ROWS) | np.isin(held, list(table.masks))
        self._tasks += [partial(self._fold_streamed, place) for place in held[streamed].tolist()]
        held = held[~streamed]
        for span in _stretches(exposed[held], np.ones(len(held), np.bool_), _TASK_ROWS):
            self._tasks.append(partial(self._fold_joined, held[span]))

    def _fold_blocks(self) -> None:
        """Take in the summaries and windows of blocks that stand for their rows; tasks for the others."""
        everything = slice(0, len(self._table.places))
        no_recent = np.zeros(len(self._held) + 1, np.int64)
        blocks, cost = self._absorb(everything, self._held, kernels.NO_TIMES, no_recent, 0, self.rows)
        self.cost = self.cost.plus(cost)
        if not len(blocks):
            return
        counts = self._table.counts[blocks]
        self.rows_to_decode += int(counts.sum())
        low, high, begins = self._plan(blocks)
        for span in _stretches(counts, begins, _TASK_ROWS):
            rows = slice(int(low[span].min()), int(high[span].max()) + 1)
            self._tasks.append(partial(self._fold_undecided, blocks[span], begins[span], rows))

    def _plan(self, blocks: npt.NDArray[np.int32]) -> tuple[Integers, Integers, npt.NDArray[np.bool_]]:
        """Of blocks to decode: the first and last row of the answer that each reaches, and where a chain begins."""
        low, high = np.empty((2, len(blocks)), np.int64)
        begins = np.empty(len(blocks), np.uint8)
        aggregate_kernels.plan_blocks(
            self._table.places, self._table.t_min, self._table.t_max, blocks, *self._grid, self._layout.base,
            self._layout.first, low, high, begins,
        )  # fmt: skip
        return low, high, begins.view(np.bool_)

    def _by_series(self, places: Integers | int, counts: Integers | int) -> Integers:
        """Offsets by series of rows of which some series, ascending, have so many and the others none."""
        offsets = np.zeros(len(self._held) + 1, np.int64)
        offsets[places + 1] = counts
        return offsets.cumsum()

    def _absorb(
        self, span: slice, skipped: npt.NDArray[np.uint8], recent: Integers, recent_offsets: Integers, shift: int,
        rows: Integers,
    ) -> tuple[npt.NDArray[np.int32], Cost]:  # fmt: skip
        """Fold the summaries and windows of a span of the table where they stand; the blocks that are left."""
        table = self._table
        if not self._with_summaries:
            touched = (table.t_min[span] <= self._grid.end) & (table.t_max[span] >= self._grid.start)
            asked = touched & (skipped[table.places[span]] == 0)
            return (np.flatnonzero(asked) + span.start).astype(np.int32), Cost()
        undecided = np.empty(span.stop - span.start, np.int32)
        clean = np.empty(len(undecided), np.uint8)
        tally = np.zeros(1, np.int64)
        left = aggregate_kernels.fold_blocks(
            span.start, span.stop, table.places, table.t_min, table.t_max, table.counts, table.alone, table.floats,
            skipped, recent, recent_offsets, *self._grid, self._layout.base, self._layout.first, shift, rows,
            undecided, clean, tally,
        )  # fmt: skip
        undecided = undecided[:left]
        windows = 0
        if left and self._with_windows:
            undecided, windows = self._absorb_windows(undecided, clean[:left].view(np.bool_), shift, rows)
        return undecided, Cost(summarized=int(tally[0]), windows=windows)

    def _absorb_windows(
        self, blocks: npt.NDArray[np.int32], clean: npt.NDArray[np.bool_], shift: int, rows: Integers
    ) -> tuple[npt.NDArray[np.int32], int]:
        """Fold the windows of blocks where they suffice; the blocks that are left, and how many windows."""
        read = 0
        left = ~clean
        candidates = clean.nonzero()[0]
        if not len(candidates):
            return blocks, 0
        asked = blocks[candidates]
        for number, together in _neighbours(self._table.segments[asked], self._table.blocks[asked]):
            chosen = candidates[together]
            taken, found = self._read_windows(self._view.stored.segments[number], blocks[chosen], shift, rows)
            left[chosen] = ~taken
            read += found
        return blocks[left], read

    def _read_windows(
        self, segment: Segment, chosen: npt.NDArray[np.int32], shift: int, rows: Integers
    ) -> tuple[npt.NDArray[np.bool_], int]:
        """Fold the windows of blocks of one segment; which of the blocks these stand for, and how many windows."""
        table = self._table
        numbers = table.blocks[chosen]
        low, high = int(numbers[0]), int(numbers[-1]) + 1
        windows = segment.windows(low, high)
        at = slice(None) if high - low == len(numbers) else numbers - low
        taken = np.empty(len(chosen), np.uint8)
        read = aggregate_kernels.fold_windows(
            table.places[chosen], table.t_min[chosen], table.t_max[chosen], windows.widths[at], windows.first[:-1][at],
            windows.first[1:][at], windows.numbers, windows.counts, windows.sum_hi, windows.sum_lo, windows.least,
            windows.most, *self._grid, self._layout.base, self._layout.first, shift, rows, taken,
        )  # fmt: skip
        return taken.view(np.bool_), read

    def _fold_separate(self, number: int, which: Integers) -> _Part:
        recent = self._recent
        span = self._layout.span(int(recent.places[which[0]]), int(recent.places[which[-1]]))
        rows = np.zeros((span.stop - span.start, FIELDS), np.int64)
        parts = Parts(recent.places[which], recent.locals[which], recent.summaries[which])
        times, values, offsets = self._view.heads[number].gathered(parts)
        self._fold_rows(times, values, offsets, parts.places, span.start, rows)
        return _Part(span.start, rows, Cost())

    def _fold_scanned(
        self, number: int, begin: int, end: int, places: npt.NDArray[np.int32], last_rows: Integers
    ) -> _Part:
        rows = np.zeros((self._layout.rows, FIELDS), np.int64)
        ends, targets = np.full(len(self._held), EARLIEST, np.int64), np.empty(len(self._held), np.int64)
        scan_kernels.scan(
            *self._view.heads[number].columns(end), begin, end, places, last_rows, *self._grid, self._layout.base,
            self._layout.first, ends, targets, rows,
        )  # fmt: skip
        return _Part(0, rows, Cost())

    def _fold_joined(self, places: Integers) -> _Part:
        """Fold series of few rows that no delete touches, those of heads joined with their blocks, all side by side."""
        span = self._layout.span(int(places[0]), int(places[-1]))
        rows = np.zeros((span.stop - span.start, FIELDS), np.int64)
        times, values, offsets = self._gather_joined(places)
        skipped = np.ones(len(self._held), np.uint8)
        skipped[places] = 0
        of_blocks = slice(self._table.of(int(places[0])).start, self._table.of(int(places[-1])).stop)
        recent_offsets = self._by_series(places, np.diff(offsets))
        blocks, cost = self._absorb(of_blocks, skipped, times, recent_offsets, span.start, rows)
        if len(blocks):
            times, values, offsets = self._decode_beside(places, blocks, times, values, offsets)
        self._fold_rows(times, values, offsets, places, span.start, rows)
        return _Part(span.start, rows, cost.plus(self._cost_of(blocks)))

    def _gather_joined(self, places: Integers) -> tuple[Integers, Values, Integers]:
        """The rows in heads of series that are to be joined, settled: times, values, offsets by place."""
        recent = self._recent
        asked = np.zeros(len(self._held), np.bool_)
        asked[places] = True
        which = np.flatnonzero((self._fates == JOINED) & asked[recent.places])
        owners = places.searchsorted(recent.places[which])
        found, counts = [], np.zeros((len(places), len(self._view.heads)), np.int64)
        for number in np.unique(recent.heads[which]).tolist():
            mine = recent.heads[which] == number
            parts = Parts(*(column[which[mine]] for column in (recent.places, recent.locals, recent.summaries)))
            found.append((number, owners[mine], *self._view.heads[number].gathered(parts)))
            counts[owners[mine], number] = np.diff(found[-1][-1])
        ends = counts.ravel().cumsum().reshape(counts.shape)
        times, values = np.empty(int(ends[-1, -1]), np.int64), np.empty(int(ends[-1, -1]), np.float64)
        for number, of_head, piece_times, piece_values, piece_offsets in found:
            targets = (ends - counts)[of_head, number]
            aggregate_kernels.put(piece_times, piece_values, piece_offsets, targets, times, values)
        return _settled(times, values, np.append(0, ends[:, -1]))

    def _decode_beside(
        self, places: Integers, blocks: npt.NDArray[np.int32], times: Integers, values: Values, offsets: Integers
    ) -> tuple[Integers, Values, Integers]:
        """Rows of series joined with those of some of their blocks."""
        owners = places.searchsorted(self._table.places[blocks])
        counts = self._table.counts[blocks]
        of_series = np.zeros(len(places), np.int64)
        np.add.at(of_series, owners, counts)
        bounds = offsets + np.append(0, of_series.cumsum())
        all_times, all_values = np.empty(int(bounds[-1]), np.int64), np.empty(int(bounds[-1]), np.float64)
        aggregate_kernels.put(times, values, offsets, bounds[:-1].copy(), all_times, all_values)
        self._decode_into(blocks, offsets[1:][owners] + counts.cumsum() - counts, all_times, all_values)
        return _settled(all_times, all_values, bounds)

    def _fold_streamed(self, place: int) -> _Part:
        """Fold one series, rows of heads joined with its blocks where they overlap, chain by chain."""
        span = self._layout.span(place, place)
        rows = np.zeros((span.stop - span.start, FIELDS), np.int64)
        which = [part for part in self._recent.of_series(place) if self._fates[part] == JOINED]
        masks = self._table.masks.get(place, ())
        times, values = self._recent.rows(self._view.heads, which, masks, self._grid.start, self._grid.end)
        nobody = np.zeros(len(self._held), np.uint8)
        offsets = self._by_series(place, len(times))
        blocks, cost = self._absorb(self._table.of(place), nobody, times, offsets, span.start, rows)
        at = 0
        if len(blocks):
            begins = self._plan(blocks)[2]
            for chain in np.split(blocks, np.flatnonzero(begins[1:]) + 1):
                stop = int(times.searchsorted(self._table.t_max[chain].max(), "right"))
                self._fold_chain(chain, (times[at:stop], values[at:stop]), span.start, rows)
                at = stop
        self._fold_piece((times[at:], values[at:]), place, span.start, rows)
        return _Part(span.start, rows, cost.plus(self._cost_of(blocks)))

    def _fold_undecided(self, blocks: npt.NDArray[np.int32], begins: npt.NDArray[np.bool_], span: slice) -> _Part:
        """Decode and fold blocks, chains of overlapping ones as a whole."""
        rows = np.zeros((span.stop - span.start, FIELDS), np.int64)
        starts = np.append(np.flatnonzero(begins), len(blocks))
        of_chain = np.diff(np.append(0, self._table.counts[blocks].cumsum())[starts])
        streamed = (of_chain > _TASK_ROWS) | np.isin(self._table.places[blocks[starts[:-1]]], list(self._table.masks))
        whole = np.repeat(~streamed, np.diff(starts))
        self._fold_chains(blocks[whole], begins[whole], span.start, rows)
        for chain in np.flatnonzero(streamed).tolist():
            self._fold_chain(blocks[starts[chain] : starts[chain + 1]], None, span.start, rows)
        return _Part(span.start, rows, self._cost_of(blocks))

    def _fold_chains(
        self, blocks: npt.NDArray[np.int32], begins: npt.NDArray[np.bool_], shift: int, rows: Integers
    ) -> None:
        """Decode and fold chains of few rows, that no delete touches, side by side."""
        counts = self._table.counts[blocks]
        small = len(blocks) > _FEW_BLOCKS and int(counts.sum()) < len(blocks) * SMALL_ROWS
        for span in _stretches(counts, begins, _TASK_ROWS if small else _BATCH_ROWS):
            chosen = blocks[span]
            ends = counts[span].cumsum()
            times, values = np.empty(int(ends[-1]), np.int64), np.empty(int(ends[-1]), np.float64)
            self._decode_into(chosen, ends - counts[span], times, values)
            starts = np.flatnonzero(begins[span])
            offsets = np.append((ends - counts[span])[starts], ends[-1])
            if len(starts) < len(chosen):
                times, values, offsets = _settled(times, values, offsets)
            self._fold_rows(times, values, offsets, self._table.places[chosen[starts]], shift, rows)

    def _decode_into(
        self, blocks: npt.NDArray[np.int32], targets: Integers, times: Integers, values: Values
    ) -> None:
        """Decode blocks, each to its target in the arrays and on."""
        table, segments = self._table, self._view.stored.segments
        if len(blocks) > _FEW_BLOCKS and len(times) < len(blocks) * SMALL_ROWS:
            self._decode_small(blocks, targets, times, values)
            return
        columns = (table.segments[blocks], table.blocks[blocks], targets, targets + table.counts[blocks])
        for segment, block, begin, end in zip(*(column.tolist() for column in columns), strict=True):
            segments[segment].decode_into(block, times[begin:end], values[begin:end])

    def _decode_small(
        self, blocks: npt.NDArray[np.int32], targets: Integers, times: Integers, values: Values
    ) -> None:
        """Decode blocks most of which are small: segment by segment those that lie together at once."""
        for segment, numbers, mine in self._by_segment(blocks):
            segment.decode_all(numbers, targets[mine], times, values)

    def _fold_chain(self, blocks: npt.NDArray[np.int32], recent: Rows | None, shift: int, rows: Integers) -> None:
        """Decode blocks of one series, join them with one another and with recent rows, and fold them."""
        place = int(self._table.places[blocks[0]])
        masks = self._table.masks.get(place, ())
        chain = list(zip(self._table.segments[blocks].tolist(), self._table.blocks[blocks].tolist(), strict=True))
        for piece in settled_pieces(self._table.t_min[blocks], lambda at: self._decode(*chain[at], masks), recent):
            self._fold_piece(piece, place, shift, rows)

    def _decode(self, number: int, block: int, masks: Masks) -> Rows:
        segment = self._view.stored.segments[number]
        return unmasked(segment.decode(block), masks, segment.header.delete_number)

    def _fold_piece(self, piece: Rows, place: int, shift: int, rows: Integers) -> None:
        self._fold_rows(*piece, np.array([0, len(piece[0])]), np.array([place]), shift, rows)

    def _fold_rows(
        self, times: Integers, values: Values, offsets: Integers, places: Integers, shift: int, rows: Integers
    ) -> None:
        aggregate_kernels.fold_rows(
            times, values, offsets, places, *self._grid, self._layout.base, self._layout.first, shift, rows
        )

    def _cost_of(self, blocks: npt.NDArray[np.int32]) -> Cost:
        table, segments = self._table, self._view.stored.segments
        if len(blocks) <= _FEW_BLOCKS:
            where = zip(table.segments[blocks].tolist(), table.blocks[blocks].tolist(), strict=True)
            stored = sum(segments[segment].block_bytes(block) for segment, block in where)
        else:
            stored = sum(segment.bytes_of(numbers) for segment, numbers, _ in self._by_segment(blocks))
        return Cost(decoded=len(blocks), rows=int(table.counts[blocks].sum()), bytes=stored)

    def _by_segment(self, blocks: npt.NDArray[np.int32]) -> Iterator[tuple[Segment, Integers, Integers]]:
        """Some blocks of each segment in turn: their numbers there, ascending, and their places among those given."""
        owners, numbers = self._table.segments[blocks], self._table.blocks[blocks]
        for segment in np.unique(owners).tolist():
            mine = np.flatnonzero(owners == segment)
            mine = mine[np.argsort(numbers[mine], kind="stable")]
            yield self._view.stored.segments[segment], numbers[mine], mine


class Summed:
    """One series over a range of one bucket, for which summaries suffice but for a few blocks at the ends.

    Most requests come to that, and this spares nearly all of a Fold. Attributes, `run` and bits of the rows as there.
    """

    def __init__(self, view: View, table: Table, grid: Grid, rows: Integers, heads: int) -> None:
        """rows: of the heads, so many."""
        self.rows = rows
        self._view, self._table, self._grid = view, table, grid
        room = len(table.places)
        undecided, clean, tally = np.empty(room, np.int32), np.empty(room, np.uint8), np.zeros(1, np.int64)
        left = aggregate_kernels.fold_blocks(
            0, room, table.places, table.t_min, table.t_max, table.counts, table.alone, table.floats, _NOT_HELD,
            kernels.NO_TIMES, _NO_OFFSETS, *grid, _ONE_ROW.base, _ONE_ROW.first, 0, rows, undecided, clean, tally,
        )  # fmt: skip
        self._blocks = undecided[:left].tolist()
        self.are_few = not left or (left <= _FEW_ENDS and bool(clean[:left].all()))
        self.rows_to_decode = sum(int(table.counts[block]) for block in self._blocks) if self.are_few else 0
        self.cost = Cost(summarized=heads + int(tally[0]))

    @classmethod
    def of(cls, view: View, ids: Integers, table: Table, grid: Grid) -> "Summed | None":
        """None where it takes a Fold. ids: of the one series."""
        rows = np.zeros((1, FIELDS), np.int64)
        heads = 0
        for head in view.heads:
            found = head.parts(ids).summaries
            if len(found):
                if heads or table.masks or not _stands(found[0].tolist(), table, grid):
                    return None
                aggregate_kernels.merge(found, rows)
                heads += 1
        summed = cls(view, table, grid, rows, heads)
        return summed if summed.are_few else None

    def run(self, pool: Readers | None = None) -> None:
        """Decode what is left. Raises StorageError for a damaged block."""
        if not self._blocks:
            return
        rows = np.zeros((1, FIELDS), np.int64)
        for block in self._blocks:
            segment, number = self._view.stored.segments[self._table.segments[block]], int(self._table.blocks[block])
            times, values = segment.decode(number)
            aggregate_kernels.fold_rows(
                times, values, np.array([0, len(times)]), _FIRST_PLACE, *self._grid, _ONE_ROW.base, _ONE_ROW.first, 0,
                rows,
            )  # fmt: skip
            self.cost = self.cost.plus(Cost(decoded=1, rows=len(times), bytes=segment.block_bytes(number)))
        aggregate_kernels.merge(rows, self.rows)
        self._blocks = []


def _stands(summary: list[int], table: Table, grid: Grid) -> bool:
    """Whether a head's summary counts as it is: for its rows, all in the range and apart from all blocks."""
    first, last = summary[kernels.FIRST_TIME], summary[kernels.LAST_TIME]
    apart = first > int(table.latest[0]) or last < int(table.earliest[0])
    return bool(summary[kernels.RISING]) and grid.start <= first and last <= grid.end and apart


def _neighbours(segments: Integers, blocks: Integers) -> Iterator[tuple[int, Integers]]:
    """Blocks that lie near to one another in a segment: its number, and their places among those given.

    Segments ascend, and the blocks of each.
    """
    keys = (segments << 32) + blocks  # further apart between segments than within one
    order = keys.argsort(kind="stable")
    keys = keys[order]
    cuts = (keys[1:] - keys[:-1] > GAP_BLOCKS).nonzero()[0] + 1
    for begin, end in itertools.pairwise([0, *cuts.tolist(), len(order)]):
        yield int(segments[order[begin]]), order[begin:end]


def _settled(times: Integers, values: Values, offsets: Integers) -> tuple[Integers, Values, Integers]:
    """Rows of several series, of each from several places: settled, in the same arrays."""
    kernels.settle(times, values, offsets, np.empty_like(times), np.empty_like(values))
    return times[: offsets[-1]], values[: offsets[-1]], offsets


def _stretches(counts: Integers, begins: npt.NDArray[np.bool_], limit: int) -> Iterator[slice]:
    """Cut items, each with some rows, into stretches of `limit` rows at most, only where one may begin.

    A stretch that cannot be cut has more. begins: true for the first item.
    """
    edges = np.append(np.flatnonzero(begins), len(counts))
    rows = np.append(0, np.cumsum(counts))[edges]
    at = 0
    while at + 1 < len(edges):
        furthest = int(rows.searchsorted(rows[at] + limit, "right")) - 1
        after = max(at + 1, furthest)
        yield slice(int(edges[at]), int(edges[after]))
        at = after
