"""The rows that a view holds of some series within a range: settled, series by series, and cut into tasks.

Owns nothing that lasts. For those who look at neighbours in time, which no summary tells. Series of few rows come many
at a time, side by side; long ones, and those that a delete touches, in pieces in order of time, so that memory does
not grow with a series. Any thread.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from workers.storage import aggregate_kernels, kernels
from workers.storage.aggregate import pieces
from workers.storage.fold import Cost
from workers.storage.head import Parts
from workers.storage.recent import Integers, Recent, Rows, Values
from workers.storage.segment import EARLIEST, LATEST, Segment
from workers.storage.table import Selection, Table, View

HELD_TABLES: Final = 8  # with what is made of each, 10 MB or so, between counting its rows and decoding them
TASK_ROWS: Final = 1 << 18  # decoding them takes a few milliseconds; longer series come in pieces


Item = TypeVar("Item")


class Batch(NamedTuple):
    """Rows of several series, settled: of places[n] the rows offsets[n] to offsets[n + 1]."""

    places: Integers
    times: Integers
    values: Values
    offsets: Integers


class Newest(NamedTuple):
    """Where so many rows of each series lie. needed: which blocks of the range have them; bounds: int64[series], by
    place, the time from which on these blocks have all that there is.
    """

    rows: int
    needed: npt.NDArray[np.bool_]
    bounds: Integers


class SeriesRows:
    """The rows of the series of one table with start <= time <= end (ns).

    with_values: False where times are all that is asked, and values are nothing. recent: what the heads held at an
    earlier look, where the answer is to be of that moment.
    counts: int64[series], how many rows there are at most, by place, blocks counted whole; low, high: int64[series],
    times between which they lie, LATEST and EARLIEST where there are none.
    """

    def __init__(
        self, view: View, series: Selection, table: Table, start: int, end: int, with_values: bool = True,
        recent: Recent | None = None,
    ) -> None:  # fmt: skip
        self._read = Segment.decode if with_values else _times_alone
        self._view = view
        self._table = table
        self._recent = recent = Recent.of(view.heads, series, table.masks) if recent is None else recent
        self._range = start, end
        self._blocks = np.flatnonzero((table.t_min <= end) & (table.t_max >= start))
        self._owners = table.places[self._blocks]
        first, last = recent.summaries[:, kernels.FIRST_TIME], recent.summaries[:, kernels.LAST_TIME]
        self._parts = np.flatnonzero((first <= end) & (last >= start))
        self.counts = np.zeros(len(series.ids), np.int64)
        np.add.at(self.counts, self._owners, table.counts[self._blocks])
        np.add.at(self.counts, recent.places[self._parts], recent.summaries[self._parts, kernels.COUNT])
        self.low = np.full(len(series.ids), LATEST, np.int64)
        self.high = np.full(len(series.ids), EARLIEST, np.int64)
        for owners, begins, ends in (
            (self._owners, table.t_min[self._blocks], table.t_max[self._blocks]),
            (recent.places[self._parts], first[self._parts], last[self._parts]),
        ):
            np.minimum.at(self.low, owners, np.maximum(begins, start))
            np.maximum.at(self.high, owners, np.minimum(ends, end))

    def tasks(self) -> list[Integers]:
        """The places that have rows, ascending, in stretches of about TASK_ROWS rows."""
        filled = np.flatnonzero(self.counts)
        numbers = (np.cumsum(self.counts[filled]) - self.counts[filled]) // TASK_ROWS
        return np.split(filled, np.flatnonzero(np.diff(numbers)) + 1) if len(filled) else []

    def of(self, places: Integers) -> Iterator[Batch | tuple[int, Iterator[Rows]]]:
        """The rows of some places, ascending, in this order: batches, and places with pieces of one series.

        A batch has rows out of the range too, where a block reaches out of it. Raises StorageError for damage.
        """
        apart = (self.counts[places] > TASK_ROWS) | np.isin(places, list(self._table.masks))
        for run in np.split(places, np.flatnonzero(apart[1:] | apart[:-1]) + 1):
            if len(run) == 1 and apart[int(places.searchsorted(run[0]))]:
                yield int(run[0]), self.pieces(int(run[0]))
            elif len(run):
                yield self.batch(run)

    def batch(self, places: Integers) -> Batch:
        """The rows of some places, ascending, side by side: of no masked one, and of all between that have rows."""
        return self._batch(places, self._of(places))

    def pieces(self, place: int) -> Iterator[Rows]:
        """The rows of one series in pieces in order of time, also some out of the range. Raises StorageError."""
        return pieces(self._view, self._table, self._recent, place, *self._range, self._read)

    def cost(self, places: Integers) -> Cost:
        """What decoding all rows of some places, ascending, takes."""
        return self._cost_of(self._blocks[np.isin(self._owners, places)])

    def last(self, places: Integers, newest: "Newest") -> tuple[list[Integers], Cost]:
        """The last times in the range of some series, ascending, each ascending too: `newest.rows`, or all there are.

        Only as many blocks are decoded as that takes.
        """
        rows, needed, bounds = newest
        chosen = places[~np.isin(places, list(self._table.masks)) & (self.counts[places] > 0)]
        found, cost = dict.fromkeys(places.tolist(), kernels.NO_TIMES), Cost()
        if len(chosen):
            blocks = self._blocks[needed & np.isin(self._owners, chosen)]
            batch, cost = self._batch(chosen, blocks), self._cost_of(blocks)
            for at, place in enumerate(chosen.tolist()):
                times = batch.times[batch.offsets[at] : batch.offsets[at + 1]]
                found[place] = times[within(times, max(self._range[0], int(bounds[place])), self._range[1])][-rows:]
        for place in places.tolist():
            complete = place in chosen and (len(found[place]) == rows or bounds[place] == EARLIEST)
            if self.counts[place] and not complete:  # repeats of one time were counted apart, or a delete hides some
                found[place], spent = self._last_of(place, rows)
                cost = cost.plus(spent)
        return list(found.values()), cost

    def _last_of(self, place: int, rows: int) -> tuple[Integers, Cost]:
        """The last times of one series, where counts do not tell how far back they reach: ever further is looked."""
        blocks, (start, end), cost = self._of(np.array([place])), self._range, Cost()
        back, at = 1, len(blocks)
        while True:
            at = max(at - back, 0)
            begin = max(start, int(self._table.t_min[blocks[at]])) if at else start
            times = kernels.NO_TIMES
            for each, _ in pieces(self._view, self._table, self._recent, place, begin, end, self._read):
                times = np.append(times, each[within(each, begin, end)])[-rows:]
            cost = cost.plus(self._cost_of(blocks[self._table.t_max[blocks] >= begin]))
            if at == 0 or len(times) == rows:
                return times, cost
            back *= 2

    def newest(self, rows: int) -> "Newest":
        """Where the last rows of each series lie, for `last`."""
        table, end, blocks = self._table, self._range[1], self._blocks
        counts = np.where(table.t_max[blocks] > end, 0, table.counts[blocks])  # who knows how many lie in the range
        behind = np.zeros(len(self.counts) + 1, np.int64)
        np.add.at(behind, self._owners + 1, counts)
        behind = behind.cumsum()[self._owners + 1] - counts.cumsum()
        latest = np.full(len(self.counts), EARLIEST, np.int64)
        np.maximum.at(latest, self._owners, table.t_max[blocks])
        summaries, parts = self._recent.summaries[self._parts], self._recent.places[self._parts]
        newer = (summaries[:, kernels.FIRST_TIME] > latest[parts]) & (summaries[:, kernels.LAST_TIME] <= end)
        in_heads = np.zeros(len(self.counts), np.int64)
        np.add.at(in_heads, parts[newer], summaries[newer, kernels.COUNT])
        needed = behind + in_heads[self._owners] < rows
        bounds = np.full(len(self.counts), EARLIEST, np.int64)
        np.maximum.at(bounds, self._owners[~needed], np.minimum(table.t_max[blocks[~needed]], LATEST - 1) + 1)
        return Newest(rows, needed, bounds)

    def _cost_of(self, blocks: Integers) -> Cost:
        table, segments = self._table, self._view.stored.segments
        stored = sum(segments[segment].bytes_of(numbers) for segment, numbers, _ in self._by_segment(blocks))
        return Cost(decoded=len(blocks), rows=int(table.counts[blocks].sum()), bytes=stored)

    def _of(self, places: Integers) -> Integers:
        """The blocks of a run of places that have rows."""
        begin, end = self._owners.searchsorted([places[0], places[-1] + 1])
        return self._blocks[begin:end]

    def _batch(self, places: Integers, chosen: Integers) -> Batch:
        """The rows in some blocks, and in heads, of series that no delete touches."""
        owners = places.searchsorted(self._table.places[chosen])
        counts = np.zeros((len(places), len(self._view.heads) + 1), np.int64)  # of blocks, then of each head
        np.add.at(counts[:, 0], owners, self._table.counts[chosen])
        found = self._gather(places, counts)
        ends = counts.ravel().cumsum().reshape(counts.shape)
        times, values = np.empty(int(ends[-1, -1]), np.int64), np.empty(int(ends[-1, -1]), np.float64)
        into = self._table.counts[chosen].cumsum() - self._table.counts[chosen]  # among the blocks alone
        before = counts[:, 0].cumsum() - counts[:, 0]
        self._decode(chosen, (ends - counts)[owners, 0] + into - before[owners], times, values)
        for number, of_head, rows in found:
            targets = (ends - counts)[of_head, number + 1]
            aggregate_kernels.put(*rows, targets, times, values)
        offsets = np.append(0, ends[:, -1])
        if found or not self._table.alone[chosen].all():
            kernels.settle(times, values, offsets, np.empty_like(times), np.empty_like(values))
        return Batch(places, times, values, offsets)

    def _gather(
        self, places: Integers, counts: Integers
    ) -> list[tuple[int, Integers, tuple[Integers, Values, Integers]]]:
        """Rows of heads, settled: the head, which of the places, times, values and offsets; they are counted too."""
        recent, found = self._recent, []
        which = self._parts[np.isin(recent.places[self._parts], places)]
        for number in np.unique(recent.heads[which]).tolist():
            mine = which[recent.heads[which] == number]
            parts = Parts(recent.places[mine], recent.locals[mine], recent.summaries[mine])
            rows = self._view.heads[number].gathered(parts)
            of_head = places.searchsorted(parts.places)
            counts[of_head, number + 1] = np.diff(rows[2])
            found.append((number, of_head, rows))
        return found

    def _decode(self, blocks: Integers, targets: Integers, times: Integers, values: Values) -> None:
        """Decode blocks, each to its target in the arrays and on."""
        for segment, numbers, mine in self._by_segment(blocks):
            source = self._view.stored.segments[segment]
            if self._read is Segment.decode:
                source.decode_all(numbers, targets[mine], times, values)
                continue
            for block, target in zip(numbers.tolist(), targets[mine].tolist(), strict=True):
                found = source.times(block)
                times[target : target + len(found)] = found

    def _by_segment(self, blocks: Integers) -> Iterator[tuple[int, Integers, Integers]]:
        """Some blocks, by segment: their numbers there, ascending, and their places among those given."""
        segments, numbers = self._table.segments[blocks], self._table.blocks[blocks]
        for segment in np.unique(segments).tolist():
            mine = np.flatnonzero(segments == segment)
            mine = mine[np.argsort(numbers[mine], kind="stable")]
            yield segment, numbers[mine], mine


def _times_alone(segment: Segment, block: int) -> Rows:
    times = segment.times(block)
    return times, np.zeros(len(times))


def looked_over(first: Iterable[Item], again: Callable[[], Iterable[Item]]) -> Iterable[Item]:
    """Items of tables, when `first` was gone through to its end, which may raise what refuses a question: those that it
    gave, or, when they are too many to be held at once, those that `again` gives one by one.
    """
    held: list[Item] = []
    many = False
    for each in first:
        many = many or len(held) == HELD_TABLES
        held = [] if many else [*held, each]
    return again() if many else held


def within(times: npt.NDArray[np.int64], start: int, end: int) -> slice:
    """Those of ascending times with start <= time <= end."""
    return slice(int(times.searchsorted(start)), int(times.searchsorted(end, "right")))
