"""The compiled inner loop that adds up rows of a head in order of arrival, with no look at where else its series are.

Owns no state: every array belongs to the caller, who also proves the indices (checks are off). No I/O. Any thread; the
GIL is released. Rows, series and grids are as in aggregate_kernels.py.
"""

import numpy as np

from common import jit
from common.jit import float64, int32, int64, readonly, uint32, void

# The fields of a summary row that are kept; numba would not see a change in kernels.py.
COUNT, MIN, MAX, HI, LO = 0, 3, 4, 7, 8

_LOW_63 = np.int64(0x7FFF_FFFF_FFFF_FFFF)
_LEAST = np.int64(-0x8000_0000_0000_0000)


@jit.helper
def _ordered(bits):  # type: ignore[no-untyped-def]
    return bits ^ ((bits >> np.int64(63)) & _LOW_63)


@jit.helper
def _bucket(time, interval, offset):  # type: ignore[no-untyped-def]
    if interval == 0:
        return np.int64(0)
    number = time // interval
    return number if time - number * interval >= offset else number - 1


@jit.helper
def _bucket_end(time, interval, offset):  # type: ignore[no-untyped-def]
    """The last time of a time's bucket, or the end of int64 where that is less."""
    if interval == 0:
        return _LOW_63
    into = time - (time // interval) * interval - offset
    left = (interval - 1 - into) if into >= 0 else (-1 - into)
    return time + left if time < 0 or left <= _LOW_63 - time else _LOW_63


@jit.kernel(
    void(readonly(uint32), readonly(int64), readonly(float64), int64, int64, readonly(int32), readonly(int64), int64,
         int64, int64, int64, readonly(int64), readonly(int64), int64[::1], int64[::1], int64[:, ::1])
)  # fmt: skip
def scan(  # type: ignore[no-untyped-def]
    series, times, values, begin, stop, places, last_rows, start, end, interval, offset, base, first, ends, targets,
    rows,
):  # fmt: skip
    """Add the rows begin to stop of a head that lie in start..end to rows of an answer: count, sum, min and max.

    series: by row, its local number; places, last_rows: by local number, the place of the series, -1 to leave it out,
    and the last of its rows to take; its times strictly increase up to there. ends, targets: by place, for this call to
    use, `ends` filled with the least time there is.
    """
    bits = values.view(np.int64)
    sums = rows.view(np.float64)
    for row in range(begin, stop):
        local = series[row]
        if local >= len(places):
            continue
        place = places[local]
        if place < 0 or row > last_rows[local] or times[row] < start or times[row] > end:
            continue
        if times[row] > ends[place] or ends[place] == _LEAST:
            ends[place] = _bucket_end(times[row], interval, offset)
            targets[place] = base[place] + (_bucket(times[row], interval, offset) - first[place])
        at = targets[place]
        key = _ordered(bits[row])
        if rows[at, COUNT] == 0:
            rows[at, MIN], rows[at, MAX] = key, key
        elif key < rows[at, MIN]:
            rows[at, MIN] = key
        elif key > rows[at, MAX]:
            rows[at, MAX] = key
        rows[at, COUNT] += 1
        hi = sums[at, HI]
        total = hi + values[row]
        part = total - hi
        sums[at, HI] = total
        sums[at, LO] += (hi - (total - part)) + (values[row] - part)
