"""The compiled inner loops over neighbouring samples: steps and trapezoids by series and bucket.

Owns no state: every array belongs to the caller, who also proves the indices (checks are off). No I/O. Any thread; the
GIL is released.

Buckets of several spans of time are counted through: span s holds the times begins[s] to ends[s], ascending, and its
first bucket has the ordinal firsts[s]; within it a time lies in the bucket floor((t - offset) / interval), or in the
only one where interval is 0. A series adds to the rows `base + ordinal`.

Sums are pairs (hi, lo) by Knuth's TwoSum, products by Dekker's (1971). Areas are added up as value times 2**30 ns, from
halves of values, so that nothing leaves the range of float64 before the result does; a trapezoid within one bucket is
exact.
"""

import numpy as np

from common import jit
from common.jit import float64, int64, readonly, uint8, void

# The columns of sums: pairs.
INCREASE, DELTA, RATE, INTEGRAL, COVERED = 0, 2, 4, 6, 8
SUMS = 10
# What is carried from one piece of a series to the next: the sample before, the row that its steps go to (-1 before the
# first sample), the last time of its bucket, the span; the sample before the first step of the row, steps so far.
TIME, ROW, EDGE, SPAN, SINCE, COUNT = range(6)
INTEGERS = 6
VALUE, SINCE_VALUE, SUM_HI, SUM_LO = range(4)
FLOATS = 4

_LOW_63 = np.int64(0x7FFF_FFFF_FFFF_FFFF)
_SPLITTER = 134217729.0  # 2**27 + 1: halves a float64's digits
_SPLITTABLE = 2.0**990
_UNIT = 2.0**-30  # an area is value times so many ns
_UNITS_IN_S = 1e9 * 2.0**-30  # exact
_SECOND = 1e9

_integers = int64[::1]
_floats = float64[::1]
_sums = float64[:, ::1]
_spans = readonly(int64)


@jit.helper
def _add(hi, lo, value):  # type: ignore[no-untyped-def]
    total = hi + value
    part = total - hi
    return total, lo + ((hi - (total - part)) + (value - part))


@jit.helper
def _product(one, other):  # type: ignore[no-untyped-def]
    product = one * other
    if abs(one) > _SPLITTABLE or abs(product) > _SPLITTABLE:
        return product, 0.0
    part = one * _SPLITTER
    one_hi = part - (part - one)
    one_lo = one - one_hi
    part = other * _SPLITTER
    other_hi = part - (part - other)
    other_lo = other - other_hi
    return product, one_lo * other_lo - (((product - one_hi * other_hi) - one_lo * other_hi) - one_hi * other_lo)


@jit.helper
def _put(sums, row, column, hi, lo):  # type: ignore[no-untyped-def]
    sums[row, column], sums[row, column + 1] = _add(sums[row, column], sums[row, column + 1] + lo, hi)


@jit.helper
def _between(one, other):  # type: ignore[no-untyped-def]
    """Nanoseconds from one time to a later one."""
    return float(np.uint64(other) - np.uint64(one))


@jit.helper
def _bucket(time, interval, offset):  # type: ignore[no-untyped-def]
    if interval == 0:
        return np.int64(0)
    number = time // interval
    return number if time - number * interval >= offset else number - 1


@jit.helper
def _edge(time, interval, offset, end):  # type: ignore[no-untyped-def]
    """The last time of a time's bucket, at most the end of its span."""
    if interval == 0:
        return end
    into = time - (time // interval) * interval - offset
    left = (interval - 1 - into) if into >= 0 else (-1 - into)
    return min(end, time + left) if time < 0 or left <= _LOW_63 - time else end


@jit.helper
def _row_of(time, span, base, begins, intervals, offsets, firsts):  # type: ignore[no-untyped-def]
    first = _bucket(begins[span], intervals[span], offsets[span])
    return base + firsts[span] + (_bucket(time, intervals[span], offsets[span]) - first)


@jit.helper
def _flush(integers, floats, steps, sums):  # type: ignore[no-untyped-def]
    """Add the steps of a series in one bucket to their row."""
    if integers[COUNT] > 0:
        row = integers[ROW]
        steps[row] += integers[COUNT]
        hi, lo = floats[SUM_HI], floats[SUM_LO]
        _put(sums, row, INCREASE, hi, lo)
        _put(sums, row, RATE, (hi + lo) / (_between(integers[SINCE], integers[TIME]) / _SECOND), 0.0)
        delta, error = _add(floats[VALUE], 0.0, -floats[SINCE_VALUE])
        _put(sums, row, DELTA, delta, error)
    integers[SINCE], floats[SINCE_VALUE] = integers[TIME], floats[VALUE]
    integers[COUNT] = 0
    floats[SUM_HI] = floats[SUM_LO] = 0.0


@jit.helper
def _area(sums, row, half, next_half, length):  # type: ignore[no-untyped-def]
    """Add a trapezoid between two half values, so many ns long."""
    weight = length * _UNIT
    height, rest = _add(half, 0.0, next_half)
    area, error = _product(height, weight)
    _put(sums, row, INTEGRAL, area, error + rest * weight)
    _put(sums, row, COVERED, weight, 0.0)


@jit.helper
def _areas(time, value, integers, floats, base, begins, ends, intervals, offsets, firsts, sums):  # type: ignore[no-untyped-def]
    """Add the trapezoid from the sample before to this one, cut at the edges of buckets; its row, edge and span."""
    row, edge, span = integers[ROW], integers[EDGE], integers[SPAN]
    at, half = integers[TIME], 0.5 * floats[VALUE]
    length, rise = _between(integers[TIME], time), 0.5 * value - 0.5 * floats[VALUE]
    while edge < time:
        cut = edge + 1
        there = 0.5 * floats[VALUE] + rise * (_between(integers[TIME], cut) / length)
        _area(sums, row, half, there, _between(at, cut))
        if edge == ends[span]:
            span += 1
            cut = begins[span]
            there = 0.5 * floats[VALUE] + rise * (_between(integers[TIME], cut) / length)
        at, half = cut, there
        row = _row_of(at, span, base, begins, intervals, offsets, firsts)
        edge = _edge(at, intervals[span], offsets[span], ends[span])
    if at < time:
        _area(sums, row, half, 0.5 * value, _between(at, time))
    return row, edge, span


@jit.kernel(
    void(readonly(int64), readonly(float64), readonly(int64), readonly(int64), _spans, _spans, _spans, _spans, _spans,
         uint8, uint8, uint8, _integers, _floats, _integers, _sums)
)  # fmt: skip
def fold_steps(  # type: ignore[no-untyped-def]
    times, values, pieces, bases, begins, ends, intervals, offsets, firsts, integral, begin, end, integers, floats,
    steps, sums,
):  # fmt: skip
    """Add the steps, and with `integral` the trapezoids, of settled series, of samples that lie in a span.

    Piece p has the rows pieces[p] to pieces[p + 1] and adds to the rows of bases[p]. begin, end: whether the pieces are
    the first of their series, and the last; else integers and floats carry what lies between.
    """
    last = len(begins) - 1
    for piece in range(len(bases)):
        base = bases[piece]
        if begin:
            integers[ROW], integers[EDGE], integers[SPAN], integers[COUNT] = -1, 0, 0, 0
        for at in range(pieces[piece], pieces[piece + 1]):
            time, value = times[at], values[at]
            if time < begins[0] or time > ends[last]:
                continue
            row, edge, span = integers[ROW], integers[EDGE], integers[SPAN]
            known = row >= 0
            if known and time <= edge:
                if integral:
                    _area(sums, row, 0.5 * floats[VALUE], 0.5 * value, _between(integers[TIME], time))
            else:
                while time > ends[span]:
                    span += 1
                if time < begins[span]:
                    continue
                if known and integral:
                    row, edge, span = _areas(
                        time, value, integers, floats, base, begins, ends, intervals, offsets, firsts, sums
                    )
                else:
                    row = _row_of(time, span, base, begins, intervals, offsets, firsts)
                    edge = _edge(time, intervals[span], offsets[span], ends[span])
                if known:
                    if row != integers[ROW]:
                        _flush(integers, floats, steps, sums)
                else:
                    integers[SINCE], floats[SINCE_VALUE] = time, value
                    floats[SUM_HI] = floats[SUM_LO] = 0.0
                integers[ROW], integers[EDGE], integers[SPAN] = row, edge, span
            if known:
                integers[COUNT] += 1
                hi, lo = _add(floats[SUM_HI], floats[SUM_LO], value)
                if value >= floats[VALUE]:
                    hi, lo = _add(hi, lo, -floats[VALUE])
                floats[SUM_HI], floats[SUM_LO] = hi, lo
            integers[TIME], floats[VALUE] = time, value
        if end and integers[ROW] >= 0:
            _flush(integers, floats, steps, sums)


@jit.kernel(void(_integers, _sums, _integers, _sums))
def add_rows(more_steps, more, steps, sums):  # type: ignore[no-untyped-def]
    """Add rows to as many others."""
    for row in range(len(steps)):
        steps[row] += more_steps[row]
        for column in range(0, SUMS, 2):
            _put(sums, row, column, more[row, column], more[row, column + 1])


@jit.kernel(void(_sums))
def settle_sums(sums):  # type: ignore[no-untyped-def]
    """Make every pair canonical (hi is the rounded sum), in units of seconds. Lo is 0 where hi is not finite."""
    for row in range(len(sums)):
        for column in range(0, SUMS, 2):
            hi, lo = _add(sums[row, column], 0.0, sums[row, column + 1])
            if column >= INTEGRAL and np.isfinite(hi):
                quotient = hi / _UNITS_IN_S
                product, error = _product(quotient, _UNITS_IN_S)
                hi, lo = _add(quotient, 0.0, (((hi - product) - error) + lo) / _UNITS_IN_S)
            sums[row, column], sums[row, column + 1] = hi, (lo if np.isfinite(hi) else 0.0)
