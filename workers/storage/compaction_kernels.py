"""The compiled loops of compaction: which blocks stay as they are, and how joined rows are dealt into blocks.

Owns no state: every array belongs to the caller, who also proves the indices (checks are off). No I/O. Any
thread; the GIL is released.
"""

import numpy as np

from common import jit
from common.jit import float64, int32, int64, readonly, uint8, uint32, void


@jit.kernel(void(readonly(int32), readonly(int64), readonly(int64), readonly(int64), readonly(int32), readonly(uint8),
                 int64, uint8[::1]))
def keep_blocks(series, t_min, t_max, counts, homes, plain, least, keep):  # type: ignore[no-untyped-def]
    """keep[b] = 1 where block b can be copied as it is. The blocks are in order of (series, t_min).

    Kept are blocks of at least `least` rows that are plain (no mask touches them), overlap no other of their series
    and go to one output whole (homes[b] >= 0). When the rows between two kept blocks are fewer than `least`, and
    all for the output of the block before or behind them, that one is not kept: it takes them in.
    """
    reach = np.int64(0)
    for block in range(len(series)):
        fresh = block == 0 or series[block] != series[block - 1]
        last = block + 1 == len(series) or series[block] != series[block + 1]
        clear = (fresh or reach < t_min[block]) and (last or t_max[block] < t_min[block + 1])
        keep[block] = clear and plain[block] and homes[block] >= 0 and counts[block] >= least
        reach = t_max[block] if fresh else max(reach, t_max[block])
    begin = 0
    while begin < len(series):
        if keep[begin]:
            begin += 1
            continue
        end = begin
        rows = np.int64(0)
        home = homes[begin]
        while end < len(series) and series[end] == series[begin] and not keep[end]:
            rows += counts[end]
            if homes[end] != home:
                home = -1
            end += 1
        if home >= 0 and rows < least:
            before, behind = begin - 1, end
            if before >= 0 and series[before] == series[begin] and keep[before] and homes[before] == home:
                keep[before] = 0
            elif behind < len(series) and series[behind] == series[begin] and keep[behind] and homes[behind] == home:
                keep[behind] = 0
        begin = end


@jit.kernel(void(readonly(int32), readonly(int64), readonly(int64), uint8[::1]))
def mark_breaks(series, t_min, t_max, breaks):  # type: ignore[no-untyped-def]
    """breaks[b] = 1 where no block before b has rows of its series that block b, or one behind it, may overlap.

    The blocks are in order of (series, t_min).
    """
    reach = np.int64(0)
    for block in range(len(series)):
        fresh = block == 0 or series[block] != series[block - 1]
        breaks[block] = fresh or reach < t_min[block]
        reach = t_max[block] if fresh else max(reach, t_max[block])


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
def _upper_bound(times, begin, end, time):  # type: ignore[no-untyped-def]
    while begin < end:
        middle = (begin + end) >> 1
        if times[middle] <= time:
            begin = middle + 1
        else:
            end = middle
    return begin


@jit.kernel(int64(readonly(int64), readonly(float64), readonly(int64), readonly(int64), readonly(int64), int64,
                  int64[::1], float64[::1], int64[::1], uint32[::1]))
def deal(times, values, offsets, lows, highs, limit, to_times, to_values, ends, owners):  # type: ignore[no-untyped-def]
    """Copy the rows of one output and cut them into blocks of nearly equal size; how many blocks.

    offsets: int64[runs + 1]; run r, the settled rows offsets[r] to offsets[r + 1], is of one series. Rows with
    lows[i] <= time <= highs[i] are taken, spans ascending, and no block reaches from one span into another.
    Block b is the rows of run owners[b] up to row ends[b] of to_times and to_values. `ends` has room for
    rows / limit and one more for each span of each run that has rows.
    """
    bits, to_bits = values.view(np.int64), to_values.view(np.int64)
    blocks = 0
    to = np.int64(0)
    for run in range(len(offsets) - 1):
        at = offsets[run]
        for span in range(len(lows)):
            begin = _lower_bound(times, at, offsets[run + 1], lows[span])
            at = _upper_bound(times, begin, offsets[run + 1], highs[span])
            rows = at - begin
            if rows == 0:
                continue
            parts = (rows + limit - 1) // limit
            for part in range(parts):
                ends[blocks] = to + rows * (part + 1) // parts
                owners[blocks] = run
                blocks += 1
            for row in range(begin, at):
                to_times[to] = times[row]
                to_bits[to] = bits[row]
                to += 1
    return blocks
