"""What a store lacks of points that came from another: those that are not here, or here with a smaller value.

Owns nothing and changes nothing. A block whose stretch has the same count and digest here is not looked into; of the
others rows are compared, piece by piece, so that memory does not grow with what is stored. Any thread.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from workers.storage import aggregate
from workers.storage.arrived import Arrived, decoded
from workers.storage.digests import Held, Span, held
from workers.storage.hash_order import HashOrder
from workers.storage.readers import Readers
from workers.storage.recent import Integers, Rows, Values
from workers.storage.segment import EARLIEST, LATEST
from workers.storage.table import Selection, View

Flags = npt.NDArray[np.bool_]

_LOW_63: Final = np.int64(0x7FFF_FFFF_FFFF_FFFF)


class Lacking(NamedTuple):
    """points: to be taken in; they may have a few besides that are here. rows: how many are not; one that came in a
    block and as a row counts twice.
    """

    points: Arrived
    rows: int


def of_arrived(view: View, order: HashOrder, found: Arrived, cutoff: int, pool: Readers) -> Lacking:
    """What a view lacks of points, those before the cutoff left out. Raises StorageError for damage."""
    return _Search(view, order, found, cutoff, pool).run()


class _Search:
    """One look at what has arrived."""

    def __init__(self, view: View, order: HashOrder, found: Arrived, cutoff: int, pool: Readers) -> None:
        self._view = view
        self._found = found
        self._cutoff = cutoff
        self._pool = pool
        self._series = [order.of_key(key) for key in found.keys]
        self._known = self._count()

    def run(self) -> Lacking:
        """Look at all of it."""
        found, rows, taken = self._found, 0, []
        extra: list[tuple[Integers, Integers, Values]] = []
        for at in range(len(found.owners)):
            lacked, some = self._of_block(at)
            rows += lacked
            if lacked and some is None:
                taken.append(at)
            elif lacked and some is not None:
                extra.append((np.full(lacked, found.owners[at]), *some))
        kept = self._of_rows()
        rows += int(kept.sum())
        extra.append((found.row_owners[kept], found.times[kept], found.values[kept]))
        columns = [np.concatenate(column) for column in zip(*extra, strict=True)]
        raw = found.raw.at(np.array(taken, np.int64)) if found.raw is not None and taken else None
        owners = found.owners[np.array(taken, np.int64)]
        left = found._replace(raw=raw, owners=owners, row_owners=columns[0], times=columns[1], values=columns[2])
        return Lacking(left, rows)

    def _count(self) -> Integers:
        """How many points of each series are here, in the whole stretch that came: most often all, or none."""
        counts = np.zeros(len(self._series), np.int64)
        known = np.flatnonzero([len(each.ids) for each in self._series])
        if not len(known):
            return counts
        ids, hashes = [each.ids for each in self._series], [each.hashes for each in self._series]
        series = Selection(np.concatenate(ids), np.concatenate(hashes), self._series[0].key_of)
        begin = 0
        for part, of_part, _ in held(self._view, series, self._stretch(), self._pool):
            counts[known[begin : begin + len(part.ids)]] = of_part.counts
            begin += len(part.ids)
        return counts

    def _stretch(self) -> Span:
        blocks, times = self._found.raw, self._found.times
        low = int(min(times.min(initial=LATEST), LATEST if blocks is None else blocks.blocks.t_min.min()))
        high = int(max(times.max(initial=EARLIEST), EARLIEST if blocks is None else blocks.blocks.t_max.max()))
        return Span(low, high)

    def _of_block(self, at: int) -> tuple[int, Rows | None]:
        """How many rows of a block are lacking; and which, where it is not worth to be taken as it is."""
        raw, owner = self._found.raw, int(self._found.owners[at])
        assert raw is not None
        count, span = int(raw.blocks.counts[at]), Span(int(raw.blocks.t_min[at]), int(raw.blocks.t_max[at]))
        if span.end < self._cutoff:
            return 0, None
        here = self._held(owner, span)
        if int(here.counts[0]) == 0:
            return count, None
        if int(here.counts[0]) == count and here.digests[0] == raw.blocks.digests[at]:
            return 0, None
        times, values = decoded(raw, at)
        lacks = self._compare(owner, times, values)
        lacked = int(lacks.sum())
        return lacked, None if 2 * lacked > count else (times[lacks], values[lacks])

    def _held(self, owner: int, span: Span) -> Held:
        """What a series has here in a stretch."""
        if self._known[owner]:
            for _, found, _ in held(self._view, self._series[owner], span, self._pool):
                return found
        return Held.nothing(1)

    def _of_rows(self) -> Flags:
        """Which rows are lacking."""
        found = self._found
        lacks = np.zeros(len(found.times), np.bool_)
        order = np.lexsort((found.times, found.row_owners))
        cuts = np.flatnonzero(np.diff(found.row_owners[order])) + 1
        for mine in np.split(order, cuts):
            if len(mine):
                owner = int(found.row_owners[mine[0]])
                lacks[mine] = self._compare(owner, found.times[mine], found.values[mine])
        return lacks

    def _compare(self, owner: int, times: Integers, values: Values) -> Flags:
        """Which rows of a series, ascending, are lacking."""
        lacks: Flags = times >= self._cutoff
        if not self._known[owner]:
            return lacks
        for here, ours in self._rows(owner, int(times[0]), int(times[-1])):
            begin, end = int(times.searchsorted(here[0])), int(times.searchsorted(here[-1], "right"))
            at = here.searchsorted(times[begin:end])
            same = (here[at] == times[begin:end]) & (_ranks(ours[at]) >= _ranks(values[begin:end]))
            lacks[begin:end] &= ~same
        return lacks

    def _rows(self, owner: int, start: int, end: int) -> Iterator[Rows]:
        for _, times, values in aggregate.samples(self._view, self._series[owner], start, end):
            self._pool.check()
            yield times, values


def _ranks(values: Values) -> Integers:
    """Integers in the order in which values win."""
    bits = np.ascontiguousarray(values).view(np.int64)
    ranks: Integers = bits ^ ((bits >> 63) & _LOW_63)
    return ranks
