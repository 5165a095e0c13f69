"""Joins blocks of one series that overlap in time, in pieces, so that memory does not grow with the series.

Pure: what a block holds comes from a function of the caller. Any thread; a generator belongs to one.

The identity rule is applied (one row per timestamp, the larger value), so the order of the blocks does not matter
to the result. Invariant: rows before the t_min of the next block are final, whatever follows.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from workers.storage import kernels

Times = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]
Rows = tuple[Times, Values]

# Rows held before the first join of a chain of overlapping blocks. After that a chain is joined each time it has
# doubled, so that n blocks over one span cost n log n and not n squared.
_HELD_ROWS: Final = 4 * 8192
_NOTHING: Final = -(1 << 63) - 1  # the reach of no rows: before every time


def settled(pieces: Sequence[Rows]) -> Rows:
    """Rows of one series from several places, at least one: sorted, and the larger value where times are equal.

    A single piece is taken to be settled already.
    """
    if len(pieces) == 1:
        return pieces[0]
    times = np.concatenate([each for each, _ in pieces])
    values = np.concatenate([each for _, each in pieces])
    offsets = np.array([0, len(times)], np.int64)
    kernels.settle(times, values, offsets, np.empty_like(times), np.empty_like(values))
    return times[: offsets[1]], values[: offsets[1]]


def settled_pieces(t_min: Times, decode: Callable[[int], Rows], extra: Rows | None = None) -> Iterator[Rows]:
    """The rows of one series, settled, as pieces in order of time; no piece is empty, none reaches into another.

    t_min: int64[n], ascending, the first time of each block; decode(n): the rows of block n, settled, none where a
    delete hides them all; called once for each in order; extra: further rows, settled. At most twice the rows that
    blocks still to come may overlap are held, and _HELD_ROWS.
    """
    held = _Held()
    rest_times, rest_values = extra if extra is not None else (kernels.NO_TIMES, kernels.NO_VALUES)
    at = 0
    for block, first in enumerate(t_min.tolist()):
        if held.reach < first:
            yield from held.take()
            stop = int(rest_times.searchsorted(first))
            if at < stop:
                yield rest_times[at:stop], rest_values[at:stop]
            at = max(at, stop)
        elif held.rows >= held.enough:
            yield from held.take_before(first)
        held.add(*decode(block))
        stop = int(rest_times.searchsorted(held.reach, "right")) if held.rows else at
        if at < stop:
            held.add(rest_times[at:stop], rest_values[at:stop])
            at = stop
    yield from held.take()
    if at < len(rest_times):
        yield rest_times[at:], rest_values[at:]


class _Held:
    """Rows that blocks still to come may overlap. reach: the last time among them, below every int64 for none."""

    def __init__(self) -> None:
        self._pieces: list[Rows] = []
        self.rows = 0
        self.enough = _HELD_ROWS
        self.reach = _NOTHING

    def add(self, times: Times, values: Values) -> None:
        """Hold settled rows."""
        if len(times):
            self._pieces.append((times, values))
            self.rows += len(times)
            self.reach = max(self.reach, int(times[-1]))

    def take(self) -> Iterator[Rows]:
        """All rows, joined: one piece or none."""
        if self._pieces:
            joined = settled(self._pieces)
            self._pieces, self.rows, self.enough, self.reach = [], 0, _HELD_ROWS, _NOTHING
            yield joined

    def take_before(self, time: int) -> Iterator[Rows]:
        """The rows before a time, joined: one piece or none. The others stay."""
        times, values = settled(self._pieces)
        cut = int(times.searchsorted(time))
        if cut:
            yield times[:cut], values[:cut]
        self._pieces = [(times[cut:], values[cut:])]
        self.rows = len(times) - cut
        self.enough = max(_HELD_ROWS, 2 * self.rows)
