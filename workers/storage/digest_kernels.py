"""The compiled inner loops of digests: counting what summaries stand for, and adding figures up.

Owns no state: every array belongs to the caller, who also proves the indices (checks are off). No I/O. Any
thread; the GIL is released.
"""

from common import jit
from common.jit import int64, readonly, uint8, uint64, void

_integers = int64[::1]


@jit.kernel(void(readonly(int64), readonly(int64), readonly(uint64), _integers, uint64[::1]))
def add(places, counts, digests, to_counts, to_digests):  # type: ignore[no-untyped-def]
    """Add figures to those at their places, to one also more than once."""
    for at in range(len(places)):
        place = places[at]
        to_counts[place] += counts[at]
        to_digests[place] += digests[at]


@jit.kernel(
    void(
        readonly(int64), readonly(int64), readonly(int64), readonly(int64), readonly(uint64), readonly(uint8),
        int64, int64, _integers, uint64[::1], _integers, _integers, _integers, _integers,
    )
)  # fmt: skip
def take(places, t_min, t_max, counts, digests, stands, start, end, to_counts, to_digests, low, high, left, tally):  # type: ignore[no-untyped-def]
    """Add up, by series, the stretches of rows that lie between start and end and stand for their rows.

    places: of their series; t_min, t_max: of each stretch; low, high: widened to the times of what was added. left:
    takes the numbers of those that reach into the range and are to be decoded; tally: how many were added, and how
    many are left.
    """
    taken, count = 0, 0
    for at in range(len(places)):
        if t_min[at] > end or t_max[at] < start:
            continue
        if stands[at] == 0 or t_min[at] < start or t_max[at] > end:
            left[count] = at
            count += 1
            continue
        place = places[at]
        to_counts[place] += counts[at]
        to_digests[place] += digests[at]
        low[place] = min(low[place], t_min[at])
        high[place] = max(high[place], t_max[at])
        taken += 1
    tally[0], tally[1] = taken, count
