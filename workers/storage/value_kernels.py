"""The compiled inner loop of distinct values: which row of an answer each sample belongs to.

Owns no state: every array belongs to the caller, who also proves the indices (checks are off). No I/O. Any thread; the
GIL is released. Rows, series and grids are as in aggregate_kernels.py.
"""

from common import jit
from common.jit import float64, int64, readonly


@jit.helper
def _bucket(time, interval, offset):  # type: ignore[no-untyped-def]
    if interval == 0:
        return 0
    number = time // interval
    return number if time - number * interval >= offset else number - 1


@jit.kernel(
    int64(readonly(int64), readonly(float64), readonly(int64), readonly(int64), int64, int64, int64, int64,
          readonly(int64), readonly(int64), int64[::1], float64[::1])
)  # fmt: skip
def place(times, values, offsets, places, start, end, interval, offset, base, first, rows, kept):  # type: ignore[no-untyped-def]
    """Row and value of each sample in start..end, -0.0 as 0.0; how many. Piece p, offsets[p] to offsets[p + 1], is of
    places[p].
    """
    found = 0
    for piece in range(len(places)):
        row = base[places[piece]] - first[places[piece]]
        for at in range(offsets[piece], offsets[piece + 1]):
            if start <= times[at] <= end:
                rows[found] = row + _bucket(times[at], interval, offset)
                kept[found] = values[at] + 0.0
                found += 1
    return found
