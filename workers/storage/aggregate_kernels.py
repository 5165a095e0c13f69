"""The compiled inner loops of aggregates: which summaries stand for their rows, and adding up what is left.

Owns no state: every array belongs to the caller, who also proves the indices (checks are off). No I/O. Any
thread; the GIL is released.

An answer is int64[rows, FIELDS], a summary row for each series and bucket. Series s begins at row base[s] with its
bucket first[s]; `rows` may be a part of it that begins with the row `shift`. A *grid* (interval, offset) cuts time
into buckets: time t lies in bucket floor((t - offset) / interval), with 0 <= offset < interval; interval 0 makes one
bucket of all time. All times that are computed stay within int64.

M2 of two sets is merged by the formula of Chan, Golub and LeVeque (1979), with the difference of the means taken from
sums in double precision twice over (Dekker's products), so that it holds for values far from zero.
"""

import numpy as np

from common import jit
from common.jit import float64, int32, int64, readonly, uint8, void

# The fields of a summary row and of a block summary, as in kernels.py; numba would not see a change there.
COUNT, FIRST_TIME, LAST_TIME, MIN, MAX, FIRST, LAST, HI, LO, M2 = range(10)
LAST_ROW, RISING = 11, 12
FIELDS = 14
SUM_HI, SUM_LO, BLOCK_MIN, BLOCK_MAX, BLOCK_FIRST, BLOCK_LAST, BLOCK_M2 = range(7)

# What becomes of a head's part: nothing, its summary counts, its rows count by themselves, its rows are joined.
OUTSIDE, SUMMARIZED, SEPARATE, JOINED = range(4)

_LOW_63 = np.int64(0x7FFF_FFFF_FFFF_FFFF)
_SPLITTER = 134217729.0  # 2**27 + 1: halves a float64's digits
_LARGE, _SMALLER = 2.0**400, 2.0**-624  # so that the square of a sum times a count stays in range

_integers = int64[::1]
_rows = int64[:, ::1]


@jit.helper
def _ordered(bits):  # type: ignore[no-untyped-def]
    return bits ^ ((bits >> np.int64(63)) & _LOW_63)


@jit.helper
def _add(hi, lo, value):  # type: ignore[no-untyped-def]
    total = hi + value
    part = total - hi
    return total, lo + ((hi - (total - part)) + (value - part))


@jit.helper
def _product(one, other):  # type: ignore[no-untyped-def]
    """one * other as an unevaluated pair (Dekker 1971)."""
    product = one * other
    part = one * _SPLITTER
    one_hi = part - (part - one)
    one_lo = one - one_hi
    part = other * _SPLITTER
    other_hi = part - (part - other)
    other_lo = other - other_hi
    return product, one_lo * other_lo - (((product - one_hi * other_hi) - one_lo * other_hi) - one_hi * other_lo)


@jit.helper
def _between(hi, lo, count, other_hi, other_lo, other_count):  # type: ignore[no-untyped-def]
    """What the difference of two means adds to M2."""
    scale = 1.0 if abs(hi) < _LARGE and abs(other_hi) < _LARGE else _SMALLER
    left, left_error = _product(hi * scale, other_count)
    right, right_error = _product(other_hi * scale, count)
    rest = left_error - right_error + scale * (lo * other_count - other_lo * count)
    difference, error = _add(left, rest, -right)
    difference += error
    added = difference * difference / (count * other_count * (count + other_count))
    return added if scale == 1.0 else added / scale / scale


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


@jit.helper
def _absorb(rows, sums, at, count, first_time, last_time, least, most, first, last, hi, lo, m2):  # type: ignore[no-untyped-def]
    before = rows[at, COUNT]
    rows[at, COUNT] = before + count
    if before == 0:
        rows[at, FIRST_TIME], rows[at, LAST_TIME] = first_time, last_time
        rows[at, MIN], rows[at, MAX], rows[at, FIRST], rows[at, LAST] = least, most, first, last
        sums[at, HI], sums[at, LO], sums[at, M2] = hi, lo, m2
        return
    if first_time < rows[at, FIRST_TIME] or (first_time == rows[at, FIRST_TIME] and first > rows[at, FIRST]):
        rows[at, FIRST_TIME], rows[at, FIRST] = first_time, first
    if last_time > rows[at, LAST_TIME] or (last_time == rows[at, LAST_TIME] and last > rows[at, LAST]):
        rows[at, LAST_TIME], rows[at, LAST] = last_time, last
    rows[at, MIN] = min(rows[at, MIN], least)
    rows[at, MAX] = max(rows[at, MAX], most)
    sums[at, M2] += m2 + _between(sums[at, HI], sums[at, LO], float(before), hi, lo, float(count))
    sums[at, HI], sums[at, LO] = _add(sums[at, HI], sums[at, LO] + lo, hi)


@jit.helper
def _absorb_row(rows, sums, at, parts, part_sums, part):  # type: ignore[no-untyped-def]
    _absorb(
        rows, sums, at, parts[part, COUNT], parts[part, FIRST_TIME], parts[part, LAST_TIME],
        parts[part, MIN], parts[part, MAX], parts[part, FIRST], parts[part, LAST],
        part_sums[part, HI], part_sums[part, LO], part_sums[part, M2],
    )  # fmt: skip


@jit.kernel(void(_rows, _rows))
def merge(parts, rows):  # type: ignore[no-untyped-def]
    """Add summary rows to as many others. Equal times in both: the larger value is first or last."""
    sums = rows.view(np.float64)
    part_sums = parts.view(np.float64)
    for at in range(len(parts)):
        if parts[at, COUNT]:
            _absorb_row(rows, sums, at, parts, part_sums, at)


@jit.kernel(void(readonly(int64), readonly(int64), readonly(int64), uint8[::1]))
def mark_alone(places, t_min, t_max, alone):  # type: ignore[no-untyped-def]
    """alone[b] = 0 where block b overlaps another of its series. The blocks are in order of series and t_min."""
    reach = np.int64(0)
    for block in range(len(places)):
        follows = block > 0 and places[block - 1] == places[block]
        if follows and t_min[block] <= reach:
            alone[block] = 0
        last = block + 1 == len(places) or places[block + 1] != places[block]
        if not last and t_max[block] >= t_min[block + 1]:
            alone[block] = 0
        reach = max(reach, t_max[block]) if follows else t_max[block]


@jit.kernel(void(readonly(int64), readonly(int64), readonly(int64), _integers, _integers))
def reach(places, t_min, t_max, earliest, latest):  # type: ignore[no-untyped-def]
    """The first and last time of each series; the caller has put the ends of int64 there, for those without."""
    for block in range(len(places)):
        series = places[block]
        earliest[series] = min(earliest[series], t_min[block])
        latest[series] = max(latest[series], t_max[block])


@jit.helper
def _widen(series, t_min, t_max, start, end, low, high):  # type: ignore[no-untyped-def]
    if t_min <= end and t_max >= start:
        low[series] = min(low[series], max(t_min, start))
        high[series] = max(high[series], min(t_max, end))


@jit.kernel(
    float64(readonly(int64), readonly(int64), readonly(int64), readonly(int64), _rows, int64, int64, int64, int64,
            _integers, _integers, _integers)
)  # fmt: skip
def lay_out(places, t_min, t_max, part_places, parts, start, end, interval, offset, low, high, first):  # type: ignore[no-untyped-def]
    """The first bucket of each series, and in `high` how many it needs; how many all need, exact below 2**53.

    low, high: the caller has put the ends of int64 there, the greatest and the least.
    """
    for block in range(len(places)):
        _widen(places[block], t_min[block], t_max[block], start, end, low, high)
    for part in range(len(part_places)):
        _widen(part_places[part], parts[part, FIRST_TIME], parts[part, LAST_TIME], start, end, low, high)
    total = 0.0
    for series in range(len(low)):
        if low[series] > high[series]:
            first[series] = 0
            high[series] = 0
        else:
            first[series] = _bucket(low[series], interval, offset)
            last = _bucket(high[series], interval, offset)
            total += float(np.uint64(last) - np.uint64(first[series])) + 1.0  # the difference may leave int64
            high[series] = last - first[series] + 1
    return total


@jit.kernel(
    void(readonly(int64), _rows, readonly(uint8), readonly(int64), readonly(int64), int64, int64, int64, int64,
         uint8[::1], uint8[::1])
)  # fmt: skip
def judge_parts(places, parts, masked, earliest, latest, start, end, interval, offset, fates, held):  # type: ignore[no-untyped-def]
    """What becomes of the parts of heads, in order of series; held[s] = 1 where rows of s must join its blocks.

    masked: 1 where a delete may hide rows of a part. earliest, latest: of the blocks of each series.
    """
    begin = 0
    for part in range(len(places)):
        series = places[part]
        if part > 0 and places[part - 1] != series:
            begin = part
        first, last = parts[part, FIRST_TIME], parts[part, LAST_TIME]
        if last < start or first > end:
            fates[part] = OUTSIDE
            continue
        begins, ends = max(first, start), min(last, end)
        apart = (begins > latest[series] or ends < earliest[series]) and not masked[part]
        other = begin
        while apart and other < len(places) and places[other] == series:
            apart = other == part or parts[other, FIRST_TIME] > ends or parts[other, LAST_TIME] < begins
            other += 1
        if not apart:
            fates[part] = JOINED
            held[series] = 1
        elif (
            parts[part, RISING]
            and first >= start
            and last <= end
            and _bucket(first, interval, offset) == _bucket(last, interval, offset)
        ):
            fates[part] = SUMMARIZED
        else:
            fates[part] = SEPARATE


@jit.kernel(int64(readonly(int64), _rows, readonly(uint8), int64, int64, readonly(int64), readonly(int64), _rows))
def fold_parts(places, parts, fates, interval, offset, base, first, rows):  # type: ignore[no-untyped-def]
    """Add the summaries of heads that stand for their rows; how many."""
    sums = rows.view(np.float64)
    part_sums = parts.view(np.float64)
    found = 0
    for part in range(len(places)):
        if fates[part] == SUMMARIZED:
            series = places[part]
            at = base[series] + (_bucket(parts[part, FIRST_TIME], interval, offset) - first[series])
            _absorb_row(rows, sums, at, parts, part_sums, part)
            found += 1
    return found


@jit.helper
def _lower_bound(times, begin, end, time):  # type: ignore[no-untyped-def]
    while begin < end:
        middle = (begin + end) >> 1
        if times[middle] < time:
            begin = middle + 1
        else:
            end = middle
    return begin


@jit.helper
def _after(times, begin, end, time):  # type: ignore[no-untyped-def]
    """The first row after `time`, which times[begin] is not: steps that double, then halves."""
    step = 1
    while begin + step < end and times[begin + step] <= time:
        begin += step
        step *= 2
    stop = min(begin + step, end)
    while begin < stop:
        middle = (begin + stop) >> 1
        if times[middle] <= time:
            begin = middle + 1
        else:
            stop = middle
    return begin


@jit.kernel(
    int64(int64, int64, readonly(int64), readonly(int64), readonly(int64), readonly(int64), readonly(uint8),
          float64[:, ::1], readonly(uint8), readonly(int64), readonly(int64), int64, int64, int64, int64,
          readonly(int64), readonly(int64), int64, _rows, int32[::1], uint8[::1], _integers)
)  # fmt: skip
def fold_blocks(  # type: ignore[no-untyped-def]
    from_block, to_block, places, t_min, t_max, counts, alone, floats, skipped, recent, recent_offsets, start, end,
    interval, offset, base, first, shift, rows, undecided, clean, tally,
):  # fmt: skip
    """Add the summaries of blocks from_block to to_block where they stand for their rows; how many blocks are left.

    One does when the block lies wholly in start..end and in one bucket, is alone, and none of the times `recent`
    lies in it (of rows outside the blocks; those of series s, sorted, are recent_offsets[s] to recent_offsets[s + 1]).
    The others that touch the range go to `undecided`, in order; clean: 1 where only range and buckets were in the
    way. Series with skipped[s] are left out. tally[0]: how many summaries were added.
    """
    bits = floats.view(np.int64)
    sums = rows.view(np.float64)
    left = 0
    near = 0
    near_of = np.int64(-1)
    tally[0] = 0
    for block in range(from_block, to_block):
        series = places[block]
        begin, stop = t_min[block], t_max[block]
        if stop < start or begin > end or skipped[series]:
            continue
        if series != near_of:
            near, near_of = recent_offsets[series], series
        near = _lower_bound(recent, near, recent_offsets[series + 1], begin)
        touched = near < recent_offsets[series + 1] and recent[near] <= stop
        whole = alone[block] != 0 and not touched
        bucket = _bucket(max(begin, start), interval, offset)
        if whole and start <= begin and stop <= end and (interval == 0 or bucket == _bucket(stop, interval, offset)):
            _absorb(
                rows, sums, base[series] + (bucket - first[series]) - shift, counts[block], begin, stop,
                _ordered(bits[BLOCK_MIN, block]), _ordered(bits[BLOCK_MAX, block]),
                _ordered(bits[BLOCK_FIRST, block]), _ordered(bits[BLOCK_LAST, block]),
                floats[SUM_HI, block], floats[SUM_LO, block], floats[BLOCK_M2, block],
            )  # fmt: skip
            tally[0] += 1
        else:
            undecided[left] = block
            clean[left] = whole
            left += 1
    return left


@jit.helper
def _fits(width, t_min, t_max, start, end, interval, offset):  # type: ignore[no-untyped-def]
    """Whether a block's windows lie wholly in or out of the range, and each in one bucket."""
    if width == 0 or interval % width != 0 or offset % width != 0:
        return False
    return (t_min >= start or start % width == 0) and (t_max <= end or (end + 1) % width == 0)


@jit.helper
def _absorb_window(rows, bits, sums, at, count, hi, lo, least, most):  # type: ignore[no-untyped-def]
    if rows[at, COUNT] == 0:
        rows[at, MIN], rows[at, MAX] = least, most
        sums[at, HI], sums[at, LO] = hi, lo
    else:
        rows[at, MIN] = min(rows[at, MIN], least)
        rows[at, MAX] = max(rows[at, MAX], most)
        sums[at, HI], sums[at, LO] = _add(sums[at, HI], sums[at, LO] + lo, hi)
    sums[at, M2] = np.nan
    rows[at, COUNT] += count


@jit.kernel(
    int64(readonly(int64), readonly(int64), readonly(int64), readonly(int64), readonly(int64), readonly(int64),
          readonly(int64), readonly(int64), readonly(float64), readonly(float64), readonly(float64),
          readonly(float64), int64, int64, int64, int64, readonly(int64), readonly(int64), int64, _rows, uint8[::1])
)  # fmt: skip
def fold_windows(  # type: ignore[no-untyped-def]
    places, t_min, t_max, widths, begins, ends, numbers, counts, sum_hi, sum_lo, least, most, start, end, interval,
    offset, base, first, shift, rows, taken,
):  # fmt: skip
    """Add the windows of blocks where each lies in one bucket, and wholly in start..end or out of it; how many windows.

    taken[b] = 1 where that was so. The windows of block b are begins[b] to ends[b]. Of the fields of a row only
    COUNT, MIN, MAX, HI and LO hold afterwards; M2 is NaN.
    """
    sums = rows.view(np.float64)
    least_bits = least.view(np.int64)
    most_bits = most.view(np.int64)
    read = 0
    for block in range(len(places)):
        width = widths[block]
        taken[block] = _fits(width, t_min[block], t_max[block], start, end, interval, offset)
        if not taken[block]:
            continue
        lowest, highest = start // width, end // width
        row = base[places[block]] - first[places[block]] - shift
        for at in range(begins[block], ends[block]):
            if lowest <= numbers[at] <= highest:
                bucket = _bucket(numbers[at], interval // width, offset // width)
                _absorb_window(
                    rows, rows, sums, row + bucket, counts[at], sum_hi[at], sum_lo[at],
                    _ordered(least_bits[at]), _ordered(most_bits[at]),
                )  # fmt: skip
                read += 1
    return read


@jit.helper
def _fold_span(times, values, bits, begin, end, rows, sums, at):  # type: ignore[no-untyped-def]
    """Add settled rows of one series and bucket."""
    hi, lo = values[begin], 0.0
    least = most = _ordered(bits[begin])
    for row in range(begin + 1, end):
        hi, lo = _add(hi, lo, values[row])
        key = _ordered(bits[row])
        least = min(least, key)
        most = max(most, key)
    near = (hi + lo) / (end - begin)
    squares, distances = 0.0, 0.0
    for row in range(begin, end):
        distance = values[row] - near
        squares += distance * distance
        distances += distance
    m2 = max(squares - distances * distances / (end - begin), 0.0)
    _absorb(
        rows, sums, at, end - begin, times[begin], times[end - 1], least, most,
        _ordered(bits[begin]), _ordered(bits[end - 1]), hi, lo, m2,
    )  # fmt: skip


@jit.kernel(void(readonly(int64), readonly(float64), readonly(int64), readonly(int64), _integers, float64[::1]))
def put(times, values, offsets, targets, to_times, to_values):  # type: ignore[no-untyped-def]
    """Copy pieces of rows: piece p, rows offsets[p] to offsets[p + 1], goes to targets[p] and on."""
    for piece in range(len(targets)):
        to = targets[piece]
        for at in range(offsets[piece], offsets[piece + 1]):
            to_times[to] = times[at]
            to_values[to] = values[at]
            to += 1


@jit.kernel(
    void(readonly(int64), readonly(float64), readonly(int64), readonly(int64), int64, int64, int64, int64,
         readonly(int64), readonly(int64), int64, _rows)
)  # fmt: skip
def fold_rows(times, values, offsets, places, start, end, interval, offset, base, first, shift, rows):  # type: ignore[no-untyped-def]
    """Add settled rows, those with start <= time <= end. Piece p, rows offsets[p] to offsets[p + 1], is of places[p].

    """
    bits = values.view(np.int64)
    sums = rows.view(np.float64)
    for piece in range(len(places)):
        stop = offsets[piece + 1]
        at = _lower_bound(times, offsets[piece], stop, start)
        row = base[places[piece]] - first[places[piece]] - shift
        while at < stop and times[at] <= end:
            last = min(end, _bucket_end(times[at], interval, offset))
            after = _after(times, at, stop, last)
            _fold_span(times, values, bits, at, after, rows, sums, row + _bucket(times[at], interval, offset))
            at = after


@jit.helper
def _reaches(part_places, parts, fates, begin, series, t_min, t_max):  # type: ignore[no-untyped-def]
    """Whether a part of a series that is to be joined, from `begin` on, may have rows within a block."""
    part = begin
    while part < len(part_places) and part_places[part] == series:
        meets = parts[part, FIRST_TIME] <= t_max and parts[part, LAST_TIME] >= t_min
        if meets and fates[part] == JOINED:
            return True
        part += 1
    return False


@jit.kernel(
    void(readonly(int64), readonly(int64), readonly(int64), readonly(int64), readonly(uint8), readonly(int64), _rows,
         readonly(uint8), readonly(uint8), int64, int64, int64, int64, _integers)
)  # fmt: skip
def count_exposed(  # type: ignore[no-untyped-def]
    places, t_min, t_max, counts, alone, part_places, parts, fates, held, start, end, interval, offset, exposed
):  # fmt: skip
    """How many rows at most must be joined of each held series, when recent rows are known by their span alone."""
    for part in range(len(part_places)):
        if fates[part] == JOINED:
            exposed[part_places[part]] += parts[part, COUNT]
    part = 0
    for block in range(len(places)):
        series = places[block]
        if not held[series] or t_max[block] < start or t_min[block] > end:
            continue
        while part < len(part_places) and part_places[part] < series:
            part += 1
        stands = (
            alone[block]
            and t_min[block] >= start
            and t_max[block] <= end
            and _bucket(t_min[block], interval, offset) == _bucket(t_max[block], interval, offset)
        )
        if not stands or _reaches(part_places, parts, fates, part, series, t_min[block], t_max[block]):
            exposed[series] += counts[block]


@jit.kernel(
    void(readonly(int64), readonly(int64), readonly(int64), readonly(int32), int64, int64, int64, int64,
         readonly(int64), readonly(int64), _integers, _integers, uint8[::1])
)  # fmt: skip
def plan_blocks(places, t_min, t_max, blocks, start, end, interval, offset, base, first, low, high, begins):  # type: ignore[no-untyped-def]
    """Of some blocks, in order: the first and last row of the answer that each may reach, low[b] and high[b].

    begins[b] = 1 where a block overlaps none before it, so that what lies before can be decoded apart from it.
    """
    reached = np.int64(0)
    for at in range(len(blocks)):
        block = blocks[at]
        series = places[block]
        follows = at > 0 and places[blocks[at - 1]] == series
        begins[at] = not follows or t_min[block] > reached
        reached = max(reached, t_max[block]) if follows else t_max[block]
        row = base[series] - first[series]
        low[at] = row + _bucket(max(t_min[block], start), interval, offset)
        high[at] = row + _bucket(min(t_max[block], end), interval, offset)
