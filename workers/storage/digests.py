"""What partitions, series and stretches of series hold, as counts and digests: how stores are compared.

Owns nothing that lasts. A block whose summary stands for its points, because it lies in the range, overlaps nothing and
no delete touches it, is not read; the same goes for what a head holds of a series in order of time. All else
is decoded, joined and digested anew: what two stores hold compares equal however it is cut into blocks. Any thread.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from workers.storage import aggregate_kernels, digest_kernels, kernels
from workers.storage.fold import Cost
from workers.storage.readers import Readers
from workers.storage.recent import Integers, Recent, Rows
from workers.storage.segment import EARLIEST, LATEST
from workers.storage.series_rows import Batch, SeriesRows
from workers.storage.table import Selection, Table, View

Flags = npt.NDArray[np.bool_]


class Span(NamedTuple):
    """A range of time, ns, both ends inclusive."""

    start: int = EARLIEST
    end: int = LATEST


class Held(NamedTuple):
    """What series hold in a range, by series: counts, int64[n]; digests, uint64[n]; low, high: times between which all
    of it lies, LATEST and EARLIEST where there is nothing (int64[n], ns).
    """

    counts: Integers
    digests: npt.NDArray[np.uint64]
    low: Integers
    high: Integers

    @classmethod
    def nothing(cls, series: int) -> "Held":
        """Of so many series, to be added to."""
        return cls(
            np.zeros(series, np.int64), np.zeros(series, np.uint64), np.full(series, LATEST, np.int64),
            np.full(series, EARLIEST, np.int64),
        )  # fmt: skip

    def at(self, which: Integers) -> "Held":
        """Of some of the series."""
        columns: list[Any] = [column[which] for column in self]
        return Held(*columns)

    def add(self, places: Integers, counts: Integers, digests: npt.NDArray[np.uint64]) -> None:
        """Points of some series, of one also more than once."""
        digest_kernels.add(places, counts, digests, self.counts, self.digests)

    def reach(self, places: Integers, low: Integers, high: Integers) -> None:
        """Where they lie."""
        aggregate_kernels.reach(places, low, high, self.low, self.high)

    def take(self, stretches: "_Stretches", span: Span) -> tuple[int, Integers]:
        """Count the stretches that stand for their rows in the range: how many, and those that are to be decoded."""
        left, tally = np.empty(len(stretches.places), np.int64), np.empty(2, np.int64)
        digest_kernels.take(*stretches, *span, *self, left, tally)
        return int(tally[0]), left[: tally[1]]


class _Stretches(NamedTuple):
    """Blocks, or parts of heads, by series: as in Table. stands: uint8[n], 0 where only decoding tells."""

    places: Integers
    t_min: Integers
    t_max: Integers
    counts: Integers
    digests: npt.NDArray[np.uint64]
    stands: npt.NDArray[np.uint8]


def held(view: View, series: Selection, span: Span, pool: Readers) -> Iterator[tuple[Selection, Held, Cost]]:
    """What each series of a selection holds in a range, in parts: each part of the selection in turn.

    Raises StorageError for damage, and what `pool.check` does.
    """
    for found in looks(view, series, span):
        pool.check()
        yield found.series, found.held, found.finish(pool)


def looks(view: View, series: Selection, span: Span) -> Iterator["Look"]:
    """The same, before anything is decoded."""
    for part, table in view.stored.tables(series, view.deletes, *span):
        yield Look(view, part, table, span)


class Look:
    """One table at work. held: what summaries tell; `finish` adds what has to be decoded.

    blocks: looked at. rows_to_decode: at most.
    """

    def __init__(self, view: View, series: Selection, table: Table, span: Span) -> None:
        self.held = Held.nothing(len(series.ids))
        self.series = series
        self.blocks = len(table.places)
        self._view = view
        self._span = span
        recent = Recent.of(view.heads, series, table.masks)
        blocks_alone, parts_alone = _alone(table, recent)
        self._summarized, self._blocks_left = self._take_blocks(table, blocks_alone)
        parts_left = self._take_parts(recent, parts_alone)
        self.rows_to_decode = 0
        self._is_whole = not len(self._blocks_left) and not len(parts_left)
        if self._is_whole:  # as most often: nothing is cut out of tables for nothing
            return
        self._table = only(table, self._blocks_left)
        self._recent = parts_of(recent, parts_left)
        self.rows_to_decode = int(self._table.counts.sum() + self._recent.summaries[:, kernels.COUNT].sum())

    def finish(self, pool: Readers) -> Cost:
        """Decode what is left, and what all of it cost."""
        cost = Cost(summarized=self._summarized)
        if self._is_whole:
            return cost
        rows = SeriesRows(self._view, self.series, self._table, *self._span, recent=self._recent)
        tasks = rows.tasks()
        for found in pool.run([partial(self._digest, rows, places) for places in tasks]):
            for each in found:
                self.held.add(*each)
        filled = np.flatnonzero(rows.counts)
        self.held.reach(filled, rows.low[filled], rows.high[filled])
        for places in tasks:
            cost = cost.plus(rows.cost(places))
        return cost

    def _take_blocks(self, table: Table, alone: Flags) -> tuple[int, Integers]:
        """Count the blocks that stand for their points: how many, and those that do not."""
        found = _Stretches(table.places, table.t_min, table.t_max, table.counts, table.digests, alone.view(np.uint8))
        return self.held.take(found, self._span)

    def _take_parts(self, recent: Recent, alone: Flags) -> Integers:
        """Count the parts of heads that stand for their points; those that do not."""
        if not len(recent.places):
            return recent.places
        columns = np.ascontiguousarray(recent.summaries.T)
        stands = alone & (columns[kernels.RISING] != 0) & (recent.masked == 0)
        found = _Stretches(
            recent.places, columns[kernels.FIRST_TIME], columns[kernels.LAST_TIME], columns[kernels.COUNT],
            columns[kernels.DIGEST].view(np.uint64), stands.view(np.uint8),
        )  # fmt: skip
        return self.held.take(found, self._span)[1]

    def _digest(self, rows: SeriesRows, places: Integers) -> list[tuple[Any, ...]]:
        """Counts and digests of what some series have left."""
        found = []
        for item in rows.of(places):
            if isinstance(item, Batch):
                found.append(self._digest_batch(item))
            else:
                place = np.array([item[0]])
                found += [self._digest_rows(place, piece, np.array([0, len(piece[0])])) for piece in item[1]]
        return found

    def _digest_batch(self, batch: Batch) -> tuple[Any, ...]:
        points = int(batch.offsets[-1])
        return self._digest_rows(batch.places, (batch.times[:points], batch.values[:points]), batch.offsets)

    def _digest_rows(self, places: Integers, rows: Rows, offsets: Integers) -> tuple[Any, ...]:
        """Of settled rows as of `Batch`: places, counts and digests of those that have any in the range."""
        times, values = rows
        keep = (times >= self._span.start) & (times <= self._span.end)
        if not keep.all():
            times, values, offsets = times[keep], values[keep], np.append(0, np.cumsum(keep))[offsets]
        counts = np.diff(offsets)
        filled = np.flatnonzero(counts)
        ends = np.ascontiguousarray(offsets[1:][filled])
        hashes, mixed = self.series.hashes[places[filled]], np.empty(len(filled), np.uint64)
        kernels.mix_hashes(np.ascontiguousarray(hashes), mixed)
        ints = np.empty((kernels.OFFSET + 1, len(filled)), np.int64)
        floats = np.empty((kernels.BLOCK_M2 + 1, len(filled)))
        kernels.summarize(np.ascontiguousarray(times), np.ascontiguousarray(values), ends, mixed, ints, floats)
        return places[filled], counts[filled], ints[kernels.BLOCK_DIGEST].view(np.uint64)


def only(table: Table, which: Integers) -> Table:
    """A table of some of its blocks, in their order; of its series there may be more blocks."""
    columns: list[Any] = [*(column[..., which] for column in table[:9]), *table[9:]]
    return Table(*columns)


def parts_of(recent: Recent, which: Integers) -> Recent:
    """Some of the parts of heads."""
    columns: list[Any] = [column[which] for column in recent]
    return Recent(*columns)


def _alone(table: Table, recent: Recent) -> tuple[Flags, Flags]:
    """Which blocks of a table, and which parts of heads, overlap no other of either. Masked blocks are not alone."""
    blocks = table.alone != 0
    if not len(recent.places):
        return blocks, np.zeros(0, np.bool_)
    summaries = recent.summaries
    places = np.concatenate([table.places, recent.places])
    t_min = np.concatenate([table.t_min, summaries[:, kernels.FIRST_TIME]])
    t_max = np.concatenate([table.t_max, summaries[:, kernels.LAST_TIME]])
    order = np.lexsort((t_min, places))
    marked, alone = np.ones(len(order), np.uint8), np.empty(len(order), np.bool_)
    aggregate_kernels.mark_alone(places[order], t_min[order], t_max[order], marked)
    alone[order] = marked != 0
    return blocks & alone[: len(blocks)], alone[len(blocks) :]
