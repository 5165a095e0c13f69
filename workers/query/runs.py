"""Equal neighbours: rows in which something begins, and columns told once for each run of equal items.

Pure: no I/O, no clock, no state.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True, slots=True)
class Runs(Generic[T]):
    """A column in which each item comes several times in turn. lengths: of shape (items,), how often, not 0."""

    items: list[T]
    lengths: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return int(self.lengths.sum())

    def tolist(self) -> list[T]:
        """The column, row by row; equal neighbours are one object."""
        return list(chain.from_iterable(map(repeat, self.items, self.lengths.tolist())))

    def mapped(self, function: Callable[[T], U]) -> "Runs[U]":
        """The column of what a function makes of each item."""
        return Runs([function(item) for item in self.items], self.lengths)

    def places(self) -> npt.NDArray[np.int64]:
        """By row, the place of its item."""
        return np.repeat(np.arange(len(self.items)), self.lengths)


def beginnings(*columns: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """By row, whether it is the first or differs from the one before in any column."""
    found = np.ones(len(columns[0]), np.bool_)
    found[1:] = columns[0][1:] != columns[0][:-1]
    for column in columns[1:]:
        found[1:] |= column[1:] != column[:-1]
    return found


def runs_of(places: npt.NDArray[np.int64]) -> Runs[int]:
    """A column of whole numbers by its runs."""
    begins = np.flatnonzero(beginnings(places))
    lengths = np.append(begins[1:], len(places)) - begins
    return Runs(places[begins].tolist(), lengths)
