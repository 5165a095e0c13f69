"""Columns: many points of one message, as arrays, so that no Python runs for each of them.

Pure: no I/O, no state.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from common.points import Index, Times, Values

if TYPE_CHECKING:  # which in turn says that points may be columns
    from workers.bridge.payload import Place, Point


class Columns:
    """Points in columns of equal length. Constant after construction.

    places: of series; one may be there twice, or have no row. index: u32 of shape (rows,), into places, which place
    each row is of; None: row n is of places[n]. times: i64 of shape (rows,), nanoseconds since the epoch. values:
    f64 of shape (rows,), finite.
    """

    __slots__ = ("index", "places", "times", "values")

    def __init__(self, places: "Sequence[Place]", index: Index | None, times: Times, values: Values) -> None:
        self.places = places
        self.index = index
        self.times = times
        self.values = values

    def __len__(self) -> int:
        return len(self.times)

    def __iter__(self) -> "Iterator[Point]":
        """The points one by one, for people and tests: slow."""
        rows = range(len(self.places)) if self.index is None else self.index.tolist()
        for row, time_ns, value in zip(rows, self.times.tolist(), self.values.tolist(), strict=True):
            yield self.places[row], time_ns, value
