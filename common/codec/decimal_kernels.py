"""Kernels of decimal blocks: floats to whole numbers and back. The format is described in decimal.py.

A float v is taken for k / 10^e with k = rint(v * 10^e), and the distance of the two is counted in units in the last
place: as the difference of their 64 bits read as integers. Nothing here is approximate: division and rounding are
IEEE 754's, so a reader gets the bits that the writer compared with.
"""

# The types of a kernel are its signature, which numba checks; those of a helper follow from its callers.
# mypy: allow-untyped-defs

import numpy as np

from common import jit

SINGLE = 32  # added to an exponent: values are float32
HOPELESS = -1  # choose(): no exponent makes much of the values whole
FAR = 64  # units in the last place: arithmetic on decimals seldom errs by more
MOST_DIGITS = 22  # a reader takes them; an encoder tries those that the precision of a float can fill
_TRIED_DIGITS = 17
_TRIED_DIGITS_SINGLE = 9

_POWERS = np.array([10.0**e for e in range(MOST_DIGITS + 1)])  # exact, every one of them
_WHOLE = 2.0**53  # up to here every whole number is a float64
_ROUNDED = 2.0**51  # up to here adding _SHIFT to a whole number makes an integer of its bits
_SHIFT = 2.0**52 + 2.0**51
_SHIFT_WORD = int(np.float64(_SHIFT).view(np.int64))
_ODD = -1
_DIGIT_BITS = 3.33  # what one more digit costs
_ODD_BITS = 80.0  # what a value costs that is no decimal at all, with its place
_NEAR_BITS = 4.0  # what a value costs at least that is near a decimal
_SUSPECT_BITS = 20.0  # from six digits on, values may be those of a float32
_HOPELESS_BITS = 50.0  # more than that is what floats cost
_NEAR = 8  # units in the last place, of the 2^28 between a float32 and what is halfway to the next

_64, _I63 = np.uint64(64), np.int64(63)


@jit.helper
def _word(value):
    return np.int64(np.float64(value).view(np.int64))


@jit.helper
def _float(whole, power, single):
    """What a whole number stands for."""
    value = np.float64(whole) / power
    return np.float64(np.float32(value)) if single else value


@jit.helper
def _distance(value, power, single):
    """From the nearest decimal to a value, in units in the last place."""
    return _word(value) - _word(_float(np.rint(value * power), power, single))


@jit.helper
def _bits(number):
    return np.int64(_64 - jit.leading_zeros(np.uint64(number ^ (number >> _I63))))


@jit.helper
def _cost(values, stride, e, single, limit):
    """What the values of a sample cost each at an exponent, in bits; stops when that is above a limit."""
    power, odd = _POWERS[e], 0.0
    samples = 1 + (len(values) - 1) // stride
    most = (limit - _DIGIT_BITS * e) * samples
    for i in range(0, len(values), stride):
        if not abs(values[i] * power) <= _WHOLE:
            odd += _ODD_BITS
        else:
            distance = _distance(values[i], power, single)
            if distance != 0:
                odd += min(_NEAR_BITS + 1.5 * _bits(distance), _ODD_BITS)
        if odd > most:
            break
    return _DIGIT_BITS * e + odd / samples


@jit.helper
def _best(values, stride, single, digits, limit):
    """The exponent that costs least, and what; HOPELESS and the limit when none costs less than that."""
    best, best_cost = np.int64(HOPELESS), limit
    for e in range(digits + 1):
        if _DIGIT_BITS * e >= best_cost:
            break
        cost = _cost(values, stride, e, single, best_cost)
        if cost < best_cost:
            best, best_cost = np.int64(e), cost
    return best, best_cost


@jit.helper
def _near_single(values, stride):
    """Whether most values of a sample are as near to a float32 as makes no difference."""
    near, samples = 0, 0
    for i in range(0, len(values), stride):
        samples += 1
        distance = _word(values[i]) - _word(np.float64(np.float32(values[i])))
        near += abs(distance) <= _NEAR
    return 8 * near >= 7 * samples


@jit.kernel(jit.int64(jit.readonly(jit.float64), jit.int64))
def choose(values, stride):
    """The exponent that makes most of every stride-th value whole, plus SINGLE if that is as float32, or HOPELESS.

    values: at least one.
    """
    best, cost = _best(values, stride, False, _TRIED_DIGITS, _HOPELESS_BITS)
    if cost > _SUSPECT_BITS and _near_single(values, stride):
        as_single, single_cost = _best(values, stride, True, _TRIED_DIGITS_SINGLE, cost)
        if single_cost < cost:
            best = as_single + SINGLE
    return best


@jit.helper
def _is_far(distance, limit):
    return distance >= limit or distance <= -limit


@jit.helper
def _scale_all(values, power, single, out):
    """As _scale, without a branch, for values that are all small enough; ODD when one is not."""
    exceptions, odd = 0, False
    for i in range(len(values)):
        scaled = values[i] * power
        odd |= not abs(scaled) <= _ROUNDED
        whole = np.rint(scaled)
        out[i] = _word(whole + _SHIFT) - _SHIFT_WORD
        exceptions += _word(values[i]) != _word(_float(whole + 0.0, power, single))  # + 0.0: a k of 0 has no sign
    return np.int64(_ODD) if odd else np.int64(exceptions)


@jit.helper
def _scale(values, power, single, out):
    whole, first, exceptions = np.int64(0), len(values), 0
    for i in range(len(values)):
        scaled = values[i] * power
        if abs(scaled) <= _WHOLE:
            whole = np.int64(np.rint(scaled))
            first = min(first, i)
        out[i] = whole
        exceptions += _word(values[i]) != _word(_float(whole, power, single))
    if 0 < first < len(values):
        out[:first] = out[first]
    return exceptions


@jit.kernel(jit.int64(jit.readonly(jit.float64), jit.int64, jit.int64[::1]))
def scale(values, exponent, out):
    """Write the whole number for every value, or its predecessor's where there is none (at first, its successor's).

    exponent: as choose() gives it; out: as long as values, one at least. Returns how many values they do not give
    exactly (those before the first that has a whole number are counted as if theirs were 0).
    """
    power = _POWERS[exponent & (SINGLE - 1)]
    if exponent >= SINGLE:  # noqa: SIM108  # numba compiles the loop twice, which is what makes it fast
        exceptions = _scale_all(values, power, True, out)
    else:
        exceptions = _scale_all(values, power, False, out)
    if exceptions == _ODD:
        exceptions = _scale(values, power, exponent >= SINGLE, out)
    return exceptions


@jit.kernel(jit.void(jit.readonly(jit.float64), jit.readonly(jit.int64), jit.int64, jit.int64[::1], jit.int64[::1]))
def distances(values, wholes, exponent, out, counts):
    """Write how far every value is from what its whole number stands for. All equally long, but for counts.

    counts: how many distances are below FAR, but not 0, and how many are not.
    """
    power, single = _POWERS[exponent & (SINGLE - 1)], exponent >= SINGLE
    counts[:] = 0
    for i in range(len(values)):
        distance = _word(values[i]) - _word(_float(wholes[i], power, single))
        out[i] = distance
        if distance != 0:
            counts[np.int64(_is_far(distance, FAR))] += 1


@jit.kernel(jit.void(jit.readonly(jit.int64), jit.int64[::1]))
def add(distances, words):
    """words += distances; equally long."""
    for i in range(len(words)):
        words[i] += distances[i]


@jit.helper
def _widen(numbers, base, step, exponent, out):
    power = _POWERS[exponent & (SINGLE - 1)]
    if exponent >= SINGLE:
        for i in range(len(out)):
            out[i] = _float(np.int64(np.uint64(numbers[i]) * step + base), power, True)
    else:
        for i in range(len(out)):
            out[i] = _float(np.int64(np.uint64(numbers[i]) * step + base), power, False)


@jit.kernel(jit.void(jit.readonly(jit.uint16), jit.uint64, jit.uint64, jit.int64, jit.float64[::1]))
def widen_16(numbers, base, step, exponent, out):
    """out = (base + step * numbers) / 10^e, the sum modulo 2^64 and read as signed; equally long."""
    _widen(numbers, base, step, exponent, out)


@jit.kernel(jit.void(jit.readonly(jit.uint32), jit.uint64, jit.uint64, jit.int64, jit.float64[::1]))
def widen_32(numbers, base, step, exponent, out):
    """As widen_16."""
    _widen(numbers, base, step, exponent, out)


@jit.kernel(jit.void(jit.readonly(jit.uint64), jit.uint64, jit.uint64, jit.int64, jit.float64[::1]))
def widen_64(numbers, base, step, exponent, out):
    """As widen_16; numbers may lie where out does."""
    _widen(numbers, base, step, exponent, out)


@jit.kernel(jit.void(jit.uint64, jit.uint64, jit.int64, jit.float64[::1]))
def fill(base, difference, exponent, out):
    """out = base / 10^e, (base + difference) / 10^e, ..., modulo 2^64 as in widen_16."""
    power, single = _POWERS[exponent & (SINGLE - 1)], exponent >= SINGLE
    for i in range(len(out)):
        out[i] = _float(np.int64(np.uint64(base) + np.uint64(i) * np.uint64(difference)), power, single)
