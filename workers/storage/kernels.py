"""The compiled inner loops of the storage engine: append, sort, cut, summarize.

Owns no state: every array belongs to the caller, who also proves the indices (checks are off). No I/O. Any
thread; the GIL is released.

Two orders of bits run through everything here:
- `_ordered` turns the bits of a float64 into an int64 that compares as the IEEE total order does, so -0.0 < 0.0.
  It is its own inverse. Minima, maxima and the choice between equal timestamps compare these.
- `_mix` is the finalizer of splitmix64 (Steele, Lea, Flood, OOPSLA 2014). The digest of a point is
  mix(mix(mix(series hash) ^ timestamp) ^ value bits); a digest of many points is their sum mod 2**64.

Sums are pairs (hi, lo): Knuth's TwoSum keeps the rounding error of each addition in lo. M2, the sum of squared
distances from the mean, is the corrected two-pass one of Chan, Golub and LeVeque (1983) where all rows are at hand,
and Welford's (1962) of the distances from the first value where they come one by one.
"""

import numpy as np

from common import jit
from common.jit import boolean, float64, int32, int64, readonly, uint32, uint64, void

# Fields of a summary row, int64[FIELDS]. MIN, MAX, FIRST, LAST hold ordered bits; HI, LO and M2 hold float64 bits.
COUNT, FIRST_TIME, LAST_TIME, MIN, MAX, FIRST, LAST, HI, LO, M2, DIGEST = range(11)
# In a head there are three more. LAST_ROW starts the chain of a series' rows. RISING is 1 while its times have
# strictly increased: only then does the rest of the row describe the series, except that COUNT (rows, repeats
# included), FIRST_TIME (least) and LAST_TIME (greatest) always do. DRIFT is the mean distance from the first value
# (float64 bits).
LAST_ROW, RISING, DRIFT = 11, 12, 13
FIELDS = 14

# Rows of a block summary matrix, as they lie in a segment's index (docs/file-formats.md).
T_MIN, T_MAX, BLOCK_DIGEST, OFFSET = range(4)  # int64[4, blocks]
SUM_HI, SUM_LO, BLOCK_MIN, BLOCK_MAX, BLOCK_FIRST, BLOCK_LAST, BLOCK_M2 = range(7)  # float64[7, blocks]

NO_TIMES = np.empty(0, np.int64)  # empty columns, to be read only
NO_VALUES = np.empty(0, np.float64)

_LOW_63 = np.int64(0x7FFF_FFFF_FFFF_FFFF)
_GOLDEN = np.uint64(0x9E37_79B9_7F4A_7C15)
_FACTOR_1 = np.uint64(0xBF58_476D_1CE4_E5B9)
_FACTOR_2 = np.uint64(0x94D0_49BB_1331_11EB)
_30, _27, _31 = np.uint64(30), np.uint64(27), np.uint64(31)

_row = int64[::1]
_rows = int64[:, ::1]


@jit.helper
def _ordered(bits):  # type: ignore[no-untyped-def]
    return bits ^ ((bits >> np.int64(63)) & _LOW_63)


@jit.helper
def _mix(word):  # type: ignore[no-untyped-def]
    word = word + _GOLDEN
    word = (word ^ (word >> _30)) * _FACTOR_1
    word = (word ^ (word >> _27)) * _FACTOR_2
    return word ^ (word >> _31)


@jit.helper
def _point_digest(mixed, time, bits):  # type: ignore[no-untyped-def]
    return _mix(_mix(mixed ^ time) ^ bits)


@jit.helper
def _add(hi, lo, value):  # type: ignore[no-untyped-def]
    total = hi + value
    part = total - hi
    return total, lo + ((hi - (total - part)) + (value - part))


@jit.helper
def _m2(values, begin, end, near):  # type: ignore[no-untyped-def]
    """Of rows begin to end; near: their mean, or close to it, which the correction makes good."""
    squares, distances = 0.0, 0.0
    for at in range(begin, end):
        distance = values[at] - near
        squares += distance * distance
        distances += distance
    return max(squares - distances * distances / (end - begin), 0.0)


@jit.kernel(void(uint64[::1], uint64[::1]))
def mix_hashes(hashes, mixed):  # type: ignore[no-untyped-def]
    """mixed[i] = mix(hashes[i]): the part of a point's digest that its series shares."""
    for at in range(len(hashes)):
        mixed[at] = _mix(hashes[at])


@jit.kernel(
    void(readonly(uint32), readonly(int64), readonly(float64), int32[::1], uint64[::1], int64,
         uint32[::1], int64[::1], float64[::1], int32[::1], _rows)
)  # fmt: skip
def append_rows(index, times, values, locals_, mixed, begin, head_series, head_times, head_values, previous, state):  # type: ignore[no-untyped-def]
    """Copy a batch into a head's columns from row `begin` on, link the rows, keep the summaries running.

    locals_: the head's number of each series in the batch's table; mixed: by that number; state:
    int64[series, FIELDS].
    """
    bits = values.view(np.int64)
    unsigned_bits = values.view(np.uint64)
    unsigned_times = times.view(np.uint64)
    digests = state.view(np.uint64)
    sums = state.view(np.float64)
    first_bits = np.empty(1, np.int64)
    first_value = first_bits.view(np.float64)
    for at in range(len(times)):
        series = locals_[index[at]]
        row = begin + at
        time = times[at]
        value = values[at]
        head_series[row] = series
        head_times[row] = time
        head_values[row] = value
        key = _ordered(bits[at])
        rows = state[series, COUNT]
        state[series, COUNT] = rows + 1
        if rows == 0:
            previous[row] = -1
            state[series, RISING] = 1
            state[series, FIRST_TIME] = time
            state[series, LAST_TIME] = time
            state[series, MIN] = key
            state[series, MAX] = key
            state[series, FIRST] = key
            state[series, LAST] = key
            sums[series, HI] = value
            sums[series, LO] = 0.0
            sums[series, M2] = 0.0
            sums[series, DRIFT] = 0.0
            digests[series, DIGEST] = _point_digest(mixed[series], unsigned_times[at], unsigned_bits[at])
        else:
            previous[row] = state[series, LAST_ROW]
            if time > state[series, LAST_TIME]:
                state[series, LAST_TIME] = time
                if state[series, RISING]:
                    state[series, LAST] = key
                    state[series, MIN] = min(state[series, MIN], key)
                    state[series, MAX] = max(state[series, MAX], key)
                    sums[series, HI], sums[series, LO] = _add(sums[series, HI], sums[series, LO], value)
                    first_bits[0] = _ordered(state[series, FIRST])
                    distance = value - first_value[0]
                    step = distance - sums[series, DRIFT]
                    sums[series, DRIFT] += step / (rows + 1)
                    sums[series, M2] += step * (distance - sums[series, DRIFT])
                    digests[series, DIGEST] += _point_digest(
                        mixed[series], unsigned_times[at], unsigned_bits[at]
                    )
            else:
                state[series, RISING] = 0
                state[series, FIRST_TIME] = min(state[series, FIRST_TIME], time)
        state[series, LAST_ROW] = row


@jit.kernel(void(int32[::1], int64[::1], float64[::1], readonly(int64), readonly(int64), int64[::1], float64[::1]))
def walk(previous, head_times, head_values, newest, offsets, times, values):  # type: ignore[no-untyped-def]
    """The last rows of some series, in order of arrival.

    newest: the row that came last of each; those of series s go to offsets[s] up to offsets[s + 1].
    """
    for series in range(len(newest)):
        row = newest[series]
        for at in range(offsets[series + 1] - 1, offsets[series] - 1, -1):
            times[at] = head_times[row]
            values[at] = head_values[row]
            row = previous[row]


@jit.kernel(void(readonly(uint32), readonly(int64), readonly(float64), int64[::1], int64[::1], float64[::1]))
def scatter(head_series, head_times, head_values, places, times, values):  # type: ignore[no-untyped-def]
    """Group a head's rows by series, keeping their order. places[series]: where its next row goes; used up."""
    for row in range(len(head_series)):
        place = places[head_series[row]]
        places[head_series[row]] = place + 1
        times[place] = head_times[row]
        values[place] = head_values[row]


@jit.helper
def _run_end(times, begin, end):  # type: ignore[no-untyped-def]
    at = begin + 1
    while at < end and times[at - 1] <= times[at]:
        at += 1
    return at


@jit.helper
def _merge(times, values, begin, middle, end, to_times, to_values):  # type: ignore[no-untyped-def]
    left, right = begin, middle
    for at in range(begin, end):
        if left < middle and (right >= end or times[left] <= times[right]):
            to_times[at] = times[left]
            to_values[at] = values[left]
            left += 1
        else:
            to_times[at] = times[right]
            to_values[at] = values[right]
            right += 1


@jit.helper
def _merge_runs(times, values, begin, end, to_times, to_values):  # type: ignore[no-untyped-def]
    at = begin
    while at < end:
        middle = _run_end(times, at, end)
        stop = middle if middle == end else _run_end(times, middle, end)
        _merge(times, values, at, middle, stop, to_times, to_values)
        at = stop


@jit.helper
def _sort(times, values, begin, end, spare_times, spare_values):  # type: ignore[no-untyped-def]
    """Natural merge sort by time (Knuth, TAOCP 3, 5.2.4 N): two passes for late data, log n at worst."""
    while _run_end(times, begin, end) < end:
        _merge_runs(times, values, begin, end, spare_times, spare_values)
        _merge_runs(spare_times, spare_values, begin, end, times, values)


@jit.kernel(void(int64[::1], float64[::1], int64[::1], int64[::1], float64[::1]))
def settle(times, values, offsets, spare_times, spare_values):  # type: ignore[no-untyped-def]
    """Sort each series' rows by time, keep one row per timestamp (the larger value), close the gaps. In place.

    offsets: int64[series + 1], the rows of series s are offsets[s] to offsets[s + 1]; rewritten to what is left.
    spare_*: as long as the longest series reaches into times.
    """
    bits = values.view(np.int64)
    to = 0
    begin = offsets[0]
    for series in range(len(offsets) - 1):
        end = offsets[series + 1]
        _sort(times, values, begin, end, spare_times, spare_values)
        first = to
        for at in range(begin, end):
            if to > first and times[to - 1] == times[at]:
                if _ordered(bits[at]) > _ordered(bits[to - 1]):
                    bits[to - 1] = bits[at]
            else:
                times[to] = times[at]
                bits[to] = bits[at]
                to += 1
        begin = end
        offsets[series + 1] = to


@jit.helper
def _upper_bound(times, begin, end, time):  # type: ignore[no-untyped-def]
    while begin < end:
        middle = (begin + end) >> 1
        if times[middle] <= time:
            begin = middle + 1
        else:
            end = middle
    return begin


@jit.helper
def _cut_span(begin, end, limit, series, blocks, ends, owners):  # type: ignore[no-untyped-def]
    while begin < end:
        begin = min(begin + limit, end)
        ends[blocks] = begin
        owners[blocks] = series
        blocks += 1
    return blocks


@jit.kernel(int64(readonly(int64), int64[::1], int64[::1], int64, int64[::1], uint32[::1]))
def cut(times, offsets, frontiers, limit, ends, owners):  # type: ignore[no-untyped-def]
    """Cut settled series into blocks of at most `limit` rows; how many blocks.

    No block reaches across its series' frontier, the greatest time already stored: late rows would otherwise
    make one block that overlaps all history between them and the present.
    ends[b]: the row after block b; owners[b]: its series.
    """
    blocks = 0
    for series in range(len(offsets) - 1):
        begin, end = offsets[series], offsets[series + 1]
        middle = _upper_bound(times, begin, end, frontiers[series])
        blocks = _cut_span(begin, middle, limit, series, blocks, ends, owners)
        blocks = _cut_span(middle, end, limit, series, blocks, ends, owners)
    return blocks


@jit.kernel(void(readonly(int64), readonly(float64), int64[::1], uint64[::1], _rows, float64[:, ::1]))
def summarize(times, values, ends, mixed, ints, floats):  # type: ignore[no-untyped-def]
    """The summary of each block of settled rows: rows T_MIN, T_MAX, BLOCK_DIGEST of ints, all of floats.

    mixed: mixed series hash of each block.
    """
    bits = values.view(np.int64)
    unsigned_bits = values.view(np.uint64)
    unsigned_times = times.view(np.uint64)
    digests = ints.view(np.uint64)
    float_bits = floats.view(np.int64)
    begin = 0
    for block in range(len(ends)):
        end = ends[block]
        hi, lo, digest = values[begin], 0.0, _point_digest(mixed[block], unsigned_times[begin], unsigned_bits[begin])
        least = most = _ordered(bits[begin])
        for at in range(begin + 1, end):
            hi, lo = _add(hi, lo, values[at])
            key = _ordered(bits[at])
            least = min(least, key)
            most = max(most, key)
            digest += _point_digest(mixed[block], unsigned_times[at], unsigned_bits[at])
        ints[T_MIN, block] = times[begin]
        ints[T_MAX, block] = times[end - 1]
        digests[BLOCK_DIGEST, block] = digest
        floats[SUM_HI, block], floats[SUM_LO, block] = _add(hi, 0.0, lo)
        float_bits[BLOCK_MIN, block] = _ordered(least)
        float_bits[BLOCK_MAX, block] = _ordered(most)
        floats[BLOCK_FIRST, block] = values[begin]
        floats[BLOCK_LAST, block] = values[end - 1]
        floats[BLOCK_M2, block] = _m2(values, begin, end, (hi + lo) / (end - begin))
        begin = end


@jit.kernel(
    void(readonly(int64), readonly(int64), readonly(int64), readonly(int64), readonly(int64), boolean[::1])
)  # fmt: skip
def check_times(times, rows, counts, t_min, t_max, right):  # type: ignore[no-untyped-def]
    """right[b] stays true where the rows of block b rise strictly from t_min[b] to t_max[b]; one row at least.

    rows: the first row of each block. Kernels place rows by these bounds, without looking again.
    """
    for block in range(len(rows)):
        begin, end = rows[block], rows[block] + counts[block]
        good = times[begin] == t_min[block] and times[end - 1] == t_max[block]
        for at in range(begin + 1, end):
            good &= times[at] > times[at - 1]
        right[block] &= good
