"""Kernels of grid blocks: a regular grid under timestamps, and their distances from it. The format is in grid.py.

The grid is estimated in float64; what it misses is in the distances, which are exact: all arithmetic that a reader
repeats is on integers, modulo 2^64.
"""

# The types of a kernel are its signature, which numba checks; those of a helper follow from its callers.
# mypy: allow-untyped-defs

import numpy as np

from common import jit

STEP, FRACTION, SKIPS, FINDINGS = range(4)  # what find() says of a grid, by place
FRACTION_BITS = 16  # of a step, behind the point: over 8192 steps that leaves less than one unit

_SAMPLES = 64
_LONGEST = 3.0  # steps of a difference that the estimate of the step rests on: more may be a wrong number of them
_LOOSE = 0.2  # of a step: points further from the grid than that on average make it useless
_MOST = 2.0**52  # steps from one timestamp to the next, and in all
_SHIFT = np.uint64(FRACTION_BITS)
_I1 = np.int64(1)


@jit.helper
def _median_difference(times):
    """The median of a sample of differences, as float64."""
    count = min(len(times) - 1, _SAMPLES)
    stride = (len(times) - 1) // count
    sample = np.empty(count, np.float64)
    for k in range(count):
        i = 1 + k * stride
        difference = np.float64(times[i]) - np.float64(times[i - 1])
        at = k
        while at > 0 and sample[at - 1] > difference:
            sample[at] = sample[at - 1]
            at -= 1
        sample[at] = difference
    return sample[count // 2]


@jit.helper
def _mean_step(times, step):
    """The mean length of a step over the differences of a few steps, and how far these are from whole steps: the
    mean of their distances, in steps. Nothing is regular about (0, 1)."""
    length, steps, away, taken = 0.0, 0.0, 0.0, 0
    inverse = 1.0 / step
    for i in range(1, len(times)):
        difference = np.float64(times[i] - times[i - 1])
        quotient = difference * inverse
        whole = np.rint(quotient)
        if whole >= 1.0 and whole <= _LONGEST:
            length += difference
            steps += whole
            away += abs(quotient - whole)
            taken += 1
    if 2 * taken < len(times):
        return 0.0, 1.0
    return length / steps, away / taken


@jit.helper
def _count_steps(times, step, skips):
    """Write by how much the steps from one timestamp to the next exceed one; the number of all, or -1 if too many."""
    inverse, total = 1.0 / step, 0.0
    skips[0] = 0
    for i in range(1, len(times)):
        whole = np.rint(np.float64(times[i] - times[i - 1]) * inverse)
        total += abs(whole)
        if not total <= _MOST:
            return -1.0
        skips[i] = np.int64(whole) - _I1
    return total


@jit.helper
def _drift(times, step, skips):
    """What is to be added to the step so that it fits best, by least squares; and how far the points then are from
    the grid on average."""
    n, index, away = np.float64(len(times)), 0.0, 0.0
    index_sum, away_sum, product_sum, square_sum = 0.0, 0.0, 0.0, 0.0
    for i in range(1, len(times)):
        difference = np.float64(times[i] - times[i - 1])
        steps = np.float64(skips[i] + _I1)
        index += steps
        away += difference - steps * step
        index_sum += index
        away_sum += away
        product_sum += index * away
        square_sum += index * index
    slope_of = square_sum - index_sum * index_sum / n
    if slope_of <= 0.0:
        return 0.0, 0.0
    slope = (product_sum - index_sum * away_sum / n) / slope_of
    offset = (away_sum - slope * index_sum) / n
    index, away, distance = 0.0, 0.0, 0.0
    for i in range(1, len(times)):
        steps = np.float64(skips[i] + _I1)
        index += steps
        away += np.float64(times[i] - times[i - 1]) - steps * step
        distance += abs(away - offset - slope * index)
    return slope, distance / n


@jit.helper
def _measure(times, distances, skips, found):
    index, step, fraction = np.uint64(0), np.uint64(found[STEP]), np.uint64(found[FRACTION])
    found[SKIPS] = 0
    first = np.uint64(times[0])
    distances[0] = 0
    for i in range(1, len(times)):
        index += np.uint64(skips[i] + _I1)
        distances[i] = np.int64(np.uint64(times[i]) - first - index * step - ((index * fraction) >> _SHIFT))
        found[SKIPS] += skips[i] != 0


@jit.kernel(jit.boolean(jit.readonly(jit.int64), jit.int64[::1], jit.int64[::1], jit.int64[::1]))
def find(times, distances, skips, found):
    """Find a regular grid under timestamps; whether there is one. Nothing else is sure when there is none.

    times: at least two; distances, skips: as long, filled with what place() takes; found: FINDINGS items, length of
    a step, its FRACTION_BITS behind the point, and how many skips are not 0.
    """
    step = _median_difference(times)
    if not step >= 1.0:
        return False
    step, loose = _mean_step(times, step)
    if loose > _LOOSE or step < 1.0:
        return False
    total = _count_steps(times, step, skips)
    if total < 1.0:
        return False
    drift, distance = _drift(times, step, skips)
    step += drift
    if not (step >= 1.0 and step <= _MOST):
        return False
    whole = np.rint(step)
    if abs(step - whole) * total > 1.0 + distance / 4.0:
        whole = np.floor(step)
        found[FRACTION] = np.int64((step - whole) * 2.0**FRACTION_BITS)
    else:
        found[FRACTION] = 0
    found[STEP] = np.int64(whole)
    _measure(times, distances, skips, found)
    return True


@jit.helper
def _at(first, step, fraction, index):
    """Where the grid has an index."""
    whole = np.uint64(first) + index * np.uint64(step)
    return np.int64(whole + ((index * np.uint64(fraction)) >> _SHIFT))


@jit.kernel(jit.void(jit.uint64, jit.uint64, jit.uint64, jit.readonly(jit.int64), jit.int64[::1]))
def place(first, step, fraction, skips, out):
    """out = timestamps from their distances from the grid, in place.

    skips: as long as out, how many steps beyond one lie before each; the first is not looked at.
    """
    index = np.uint64(0)
    out[0] += _at(first, step, fraction, index)
    for i in range(1, len(out)):
        index += np.uint64(skips[i] + _I1)
        out[i] += _at(first, step, fraction, index)


@jit.kernel(jit.void(jit.uint64, jit.uint64, jit.uint64, jit.int64[::1]))
def place_all(first, step, fraction, out):
    """As place() where nothing is skipped."""
    for i in range(len(out)):
        out[i] += _at(first, step, fraction, np.uint64(i))
