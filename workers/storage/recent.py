"""What heads hold of some series, at one moment, series by series. Owns nothing. Any thread.

Rows are to be read only: a head keeps what it has settled.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from workers.storage import kernels
from workers.storage.deletes import outside
from workers.storage.head import Head, Parts, join
from workers.storage.table import Masks, Selection

Integers = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]
Rows = tuple[Integers, Values]


class Recent(NamedTuple):
    """What the heads of a view hold of some series, by series: columns as in head.Parts, and the head of each part.

    heads: int64[n]; masked: uint8[n], 1 where a delete may hide some of its rows.
    """

    places: Integers
    heads: Integers
    locals: npt.NDArray[np.int32]
    summaries: Integers
    masked: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, heads: Sequence[Head], series: Selection, masks: dict[int, Masks]) -> "Recent":
        """As it is now."""
        found = [(number, parts) for number, head in enumerate(heads) if len((parts := head.parts(series.ids)).places)]
        if not found:
            return _NOTHING_RECENT
        recent = cls._joined(found)
        if masks:
            recent._mark_masked(heads, masks)
        return recent

    @classmethod
    def _joined(cls, found: list[tuple[int, Parts]]) -> "Recent":
        """The parts of several heads, by series, in order of the heads."""
        if len(found) == 1:
            number, (places, locals_, summaries) = found[0]
            return cls(places, np.full(len(places), number), locals_, summaries, np.zeros(len(places), np.uint8))
        places, locals_, summaries = (np.concatenate(each) for each in zip(*(parts for _, parts in found), strict=True))
        numbers = np.repeat([number for number, _ in found], [len(parts.places) for _, parts in found])
        order = np.argsort(places, kind="stable")
        return cls(places[order], numbers[order], locals_[order], summaries[order], np.zeros(len(places), np.uint8))

    def of_series(self, place: int) -> range:
        """The parts of one series."""
        begin, end = self.places.searchsorted([place, place + 1]).tolist()
        return range(begin, end)

    def rows(self, heads: Sequence[Head], which: Sequence[int], masks: Masks, start: int, end: int) -> Rows:
        """The rows of parts of one series that lie in the range and under no mask, settled."""
        pieces = []
        for part in which:
            head = heads[int(self.heads[part])]
            times, values = head.settled(int(self.locals[part]), self.summaries[part])
            inside = slice(int(times.searchsorted(start)), int(times.searchsorted(end, "right")))
            pieces.append(unmasked((times[inside], values[inside]), masks, head.delete_number))
        if len(pieces) == 1:
            return pieces[0]
        return join([times for times, _ in pieces], [values for _, values in pieces])

    def _mark_masked(self, heads: Sequence[Head], masks: dict[int, Masks]) -> None:
        for place, of_series in masks.items():
            for part in self.of_series(place):
                first, last = self.summaries[part, [kernels.FIRST_TIME, kernels.LAST_TIME]].tolist()
                number = heads[int(self.heads[part])].delete_number
                self.masked[part] = any(
                    mask.number > number and mask.start <= last and mask.end >= first for mask in of_series
                )


_NOTHING_RECENT: Final = Recent(
    np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int32), np.empty((0, kernels.FIELDS), np.int64),
    np.empty(0, np.uint8),
)  # fmt: skip


def unmasked(rows: Rows, masks: Masks, number: int) -> Rows:
    """The rows of a place that carries a delete number, without those that a later delete hides."""
    above = [mask for mask in masks if mask.number > number]
    if not above:
        return rows
    keep = outside(rows[0], above)
    return rows[0][keep], rows[1][keep]
