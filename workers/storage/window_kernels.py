"""The compiled inner loops of windows: choose a width, aggregate per window, make windows wider.

Owns no state: every array belongs to the caller, who also proves the indices (checks are off). Any thread; the
GIL is released. Sums are pairs (hi, lo) by Knuth's TwoSum; minima and maxima go by the total order of IEEE bits.
"""

import numpy as np

from common import jit
from common.jit import float64, int64, readonly, void

_LOW_63 = np.int64(0x7FFF_FFFF_FFFF_FFFF)

_integers = int64[::1]
_floats = float64[::1]


@jit.helper
def _ordered(bits):  # type: ignore[no-untyped-def]
    return bits ^ ((bits >> np.int64(63)) & _LOW_63)


@jit.helper
def _add(hi, lo, value):  # type: ignore[no-untyped-def]
    total = hi + value
    part = total - hi
    return total, lo + ((hi - (total - part)) + (value - part))


@jit.helper
def _last_of(time, width):  # type: ignore[no-untyped-def]
    """The last time of the window in which a time lies; the end of int64 where that is less."""
    offset = time % width
    return time + min(width - np.int64(1) - offset, _LOW_63 - time if time > 0 else _LOW_63)


@jit.helper
def _occupied(times, begin, end, width, at_most):  # type: ignore[no-untyped-def]
    """How many windows of a width rows lie in; more than at_most when they are more."""
    windows = 0
    at = begin
    while at < end and windows <= at_most:
        last = _last_of(times[at], width)
        windows += 1
        while at < end and times[at] <= last:
            at += 1
    return windows


@jit.kernel(void(readonly(int64), readonly(int64), readonly(int64), int64, _integers, _integers))
def choose_widths(times, ends, widths, least_points, chosen, windows):  # type: ignore[no-untyped-def]
    """For each block the first of `widths` whose windows hold `least_points` on average, and how many it has.

    0 and 0 where none does, or where the first that does has but one window.
    """
    begin = 0
    for block in range(len(ends)):
        end = ends[block]
        chosen[block] = 0
        windows[block] = 0
        at_most = (end - begin) // least_points
        if at_most >= 2:
            for width in widths:
                found = _occupied(times, begin, end, width, at_most)
                if found <= at_most:
                    if found > 1:
                        chosen[block] = width
                        windows[block] = found
                    break
        begin = end


@jit.kernel(
    void(readonly(int64), readonly(float64), readonly(int64), readonly(int64), _integers, _integers,
         _floats, _floats, _floats, _floats)
)  # fmt: skip
def aggregate(times, values, ends, widths, numbers, counts, sum_hi, sum_lo, least, most):  # type: ignore[no-untyped-def]
    """The windows of blocks of settled rows, one behind the other; a block of width 0 has none."""
    bits = values.view(np.int64)
    least_bits = least.view(np.int64)
    most_bits = most.view(np.int64)
    window = 0
    begin = 0
    for block in range(len(ends)):
        end = ends[block]
        width = widths[block]
        at = begin
        while width > 0 and at < end:
            first = at
            last = _last_of(times[at], width)
            hi, lo = values[at], 0.0
            low = high = _ordered(bits[at])
            at += 1
            while at < end and times[at] <= last:
                hi, lo = _add(hi, lo, values[at])
                key = _ordered(bits[at])
                low = min(low, key)
                high = max(high, key)
                at += 1
            numbers[window] = times[first] // width
            counts[window] = at - first
            sum_hi[window], sum_lo[window] = _add(hi, 0.0, lo)
            least_bits[window] = _ordered(low)
            most_bits[window] = _ordered(high)
            window += 1
        begin = end


@jit.kernel(
    int64(_integers, readonly(int64), _integers, _integers, _integers, _floats, _floats, _floats, _floats)
)  # fmt: skip
def widen(first, ratios, into, numbers, counts, sum_hi, sum_lo, least, most):  # type: ignore[no-untyped-def]
    """Make each block's windows wider by a ratio, in place; how many there are then.

    first: the windows of block b are first[b] to first[b + 1]; into: the same for the result. A block with ratio 0, or
    of which one window is left, has none afterwards.
    """
    least_bits = least.view(np.int64)
    most_bits = most.view(np.int64)
    to = 0
    into[0] = 0
    for block in range(len(ratios)):
        begin = to
        for at in range(first[block], first[block + 1] if ratios[block] > 0 else first[block]):
            number = numbers[at] // ratios[block]
            if to > begin and numbers[to - 1] == number:
                hi, lo = _add(sum_hi[to - 1], sum_lo[to - 1] + sum_lo[at], sum_hi[at])
                sum_hi[to - 1], sum_lo[to - 1] = _add(hi, 0.0, lo)
                counts[to - 1] += counts[at]
                least_bits[to - 1] = _ordered(min(_ordered(least_bits[to - 1]), _ordered(least_bits[at])))
                most_bits[to - 1] = _ordered(max(_ordered(most_bits[to - 1]), _ordered(most_bits[at])))
            else:
                numbers[to] = number
                counts[to] = counts[at]
                sum_hi[to], sum_lo[to] = sum_hi[at], sum_lo[at]
                least_bits[to] = least_bits[at]
                most_bits[to] = most_bits[at]
                to += 1
        if to == begin + 1:
            to = begin
        into[block + 1] = to
    return to
