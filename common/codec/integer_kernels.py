"""Kernels of integer columns: what a column looks like, its way into few bits and back. See integers.py.

Differences are taken modulo 2^64 and read as signed, so every int64 column has them. Bits are counted in uint64,
since numba turns uint64 mixed with int64 into float64: hence the named constants.
"""

# The types of a kernel are its signature, which numba checks; those of a helper follow from its callers.
# mypy: allow-untyped-defs

import numpy as np

from common import jit

# What survey() finds, by place.
LOW, HIGH, LINEAR, COST_0, COST_1, COST_2, FINDINGS = range(7)

SPARSE_BYTES = 13  # take_out(): 3 of a place among at most 2^20 items, 10 of a size

_SAMPLES = 33  # items by which the middle is found
_REPEATED = 7  # times that an item comes in a sample by chance, if it is one of a few
_STRETCH = 256  # items of a stretch of the column whose bits are counted
_EVERY = 2048  # from one stretch to the next: an eighth is enough to choose by

_0, _1, _7, _63, _64, _127, _128 = (np.uint64(number) for number in (0, 1, 7, 63, 64, 127, 128))
_I1, _I63 = np.int64(1), np.int64(63)


@jit.helper
def _bits(number):
    """How many bits a signed number takes, sign not counted."""
    return np.int64(_64 - jit.leading_zeros(np.uint64(number ^ (number >> _I63))))


@jit.helper
def _costs(numbers, begin, end, middle, slope, found):
    """Add the bits of the items begin..end, of their differences and of the differences of those."""
    for i in range(begin, end):
        difference = numbers[i] - numbers[i - 1]
        found[COST_0] += _bits(numbers[i] - middle)
        found[COST_1] += _bits(difference - slope)
        found[COST_2] += _bits(difference - (numbers[i - 1] - numbers[i - 2]))


@jit.helper
def _middle(numbers):
    """What most of a sample lies around: the item that it repeats most often, or else the median."""
    sample = np.empty(_SAMPLES, np.int64)
    for k in range(_SAMPLES):
        number = numbers[(2 * k + 1) * len(numbers) // (2 * _SAMPLES)]
        at = k
        while at > 0 and sample[at - 1] > number:
            sample[at] = sample[at - 1]
            at -= 1
        sample[at] = number
    middle, most, run = sample[_SAMPLES // 2], _REPEATED, 1
    for k in range(1, _SAMPLES):
        run = run + 1 if sample[k] == sample[k - 1] else 1
        if run > most:
            middle, most = sample[k], run
    return middle


@jit.kernel(jit.void(jit.readonly(jit.int64), jit.int64[::1]))
def survey(numbers, found):
    """Fill `found` (FINDINGS items): least and greatest item, whether all differences are equal, and the bits that a
    part of the items take by themselves, as differences, and as differences of differences.

    numbers: at least one.
    """
    low = high = numbers[0]
    for i in range(len(numbers)):
        low = min(low, numbers[i])
        high = max(high, numbers[i])
    slope = numbers[1] - numbers[0] if len(numbers) > 1 else np.int64(0)
    linear = True
    for i in range(2, len(numbers)):
        if numbers[i] - numbers[i - 1] != slope:
            linear = False
            break
    found[:] = 0
    found[LOW], found[HIGH], found[LINEAR] = low, high, linear
    if linear:
        return
    middle = _middle(numbers)
    slope = (numbers[-1] - numbers[0]) // np.int64(len(numbers) - 1)
    for begin in range(2, len(numbers), _EVERY):
        _costs(numbers, begin, min(begin + _STRETCH, len(numbers)), middle, slope, found)


@jit.kernel(jit.uint64(jit.readonly(jit.int64)))
def common_step(numbers):
    """The greatest number that divides the distance of every item from the first; 0 when all are equal."""
    step, first = _0, np.uint64(numbers[0])
    for i in range(1, len(numbers)):
        other = np.uint64(numbers[i]) - first
        if numbers[i] < numbers[0]:
            other = _0 - other
        while other != _0:
            step, other = other, step % other
        if step == _1:
            break
    return step


@jit.helper
def _narrow(numbers, base, step, out):
    if step == _1:
        for i in range(len(numbers)):
            out[i] = np.uint64(numbers[i]) - base
    else:
        for i in range(len(numbers)):
            out[i] = (np.uint64(numbers[i]) - base) // step


@jit.kernel(jit.void(jit.readonly(jit.int64), jit.uint64, jit.uint64, jit.uint16[::1]))
def narrow_16(numbers, base, step, out):
    """out = (numbers - base) / step, without a remainder; equally long."""
    _narrow(numbers, base, step, out)


@jit.kernel(jit.void(jit.readonly(jit.int64), jit.uint64, jit.uint64, jit.uint32[::1]))
def narrow_32(numbers, base, step, out):
    """As narrow_16."""
    _narrow(numbers, base, step, out)


@jit.kernel(jit.void(jit.readonly(jit.int64), jit.uint64, jit.uint64, jit.uint64[::1]))
def narrow_64(numbers, base, step, out):
    """As narrow_16."""
    _narrow(numbers, base, step, out)


@jit.helper
def _widen(numbers, base, step, out):
    for i in range(len(numbers)):
        out[i] = np.int64(np.uint64(numbers[i]) * step + base)


@jit.kernel(jit.void(jit.readonly(jit.uint16), jit.uint64, jit.uint64, jit.int64[::1]))
def widen_16(numbers, base, step, out):
    """out = base + step * numbers, modulo 2^64; equally long."""
    _widen(numbers, base, step, out)


@jit.kernel(jit.void(jit.readonly(jit.uint32), jit.uint64, jit.uint64, jit.int64[::1]))
def widen_32(numbers, base, step, out):
    """As widen_16."""
    _widen(numbers, base, step, out)


@jit.kernel(jit.void(jit.readonly(jit.uint64), jit.uint64, jit.uint64, jit.int64[::1]))
def widen_64(numbers, base, step, out):
    """As widen_16; numbers may lie where out does."""
    _widen(numbers, base, step, out)


@jit.kernel(jit.void(jit.uint64, jit.uint64, jit.int64[::1]))
def fill(first, difference, out):
    """out = first, first + difference, ..., modulo 2^64."""
    for i in range(len(out)):
        out[i] = np.int64(np.uint64(first) + np.uint64(i) * np.uint64(difference))


@jit.kernel(jit.boolean(jit.readonly(jit.int64)))
def is_linear(numbers):
    """Whether all differences are equal, modulo 2^64; numbers: at least two."""
    difference = numbers[1] - numbers[0]
    for i in range(2, len(numbers)):  # noqa: SIM110  # numba takes no generator
        if numbers[i] - numbers[i - 1] != difference:
            return False
    return True


@jit.kernel(jit.boolean(jit.readonly(jit.int64)))
def is_constant(numbers):
    """Whether all items are equal; numbers: at least one."""
    for i in range(len(numbers)):  # noqa: SIM110
        if numbers[i] != numbers[0]:
            return False
    return True


@jit.kernel(jit.boolean(jit.int64[::1], jit.int64))
def multiply(numbers, unit):
    """Multiply all items by a unit above 0, in place; whether all products are int64."""
    most = np.int64(0x7FFFFFFFFFFFFFFF) // unit
    least = -most - np.int64(unit == 1)
    inside = True
    for i in range(len(numbers)):
        inside &= (numbers[i] >= least) & (numbers[i] <= most)
        numbers[i] *= unit
    return inside


@jit.helper
def _put_varint(out, at, number):
    while number >= _128:
        out[at] = np.uint8((number & _127) | _128)
        number >>= _7
        at += 1
    out[at] = np.uint8(number)
    return at + 1


@jit.kernel(jit.int64(jit.int64[::1], jit.int64, jit.uint8[::1]))
def take_out(numbers, limit, out):
    """Write the places and sizes of the numbers that are not below a limit, and set those to 0; how many bytes.

    limit: at least 1; out: room for SPARSE_BYTES each.
    """
    at, behind = 0, 0
    for i in range(len(numbers)):
        if numbers[i] >= limit or numbers[i] <= -limit:
            at = _put_varint(out, at, np.uint64(i - behind))
            at = _put_varint(out, at, np.uint64((numbers[i] << _I1) ^ (numbers[i] >> _I63)))
            numbers[i] = 0
            behind = i + 1
    return at


@jit.helper
def _take_varint(data, at):
    """The number, and the offset behind it: beyond the end when it does not end before that."""
    number, shift = _0, _0
    while at < len(data):
        byte = np.uint64(data[at])
        at += 1
        number |= (byte & _127) << shift
        if byte < _128:
            return number, at
        if shift == _63:
            break
        shift += _7
    return _0, len(data) + 1


@jit.kernel(jit.boolean(jit.readonly(jit.uint8), jit.int64[::1]))
def put_back(data, words):
    """Add what take_out() wrote to the items of `words`; whether `data` is that, and for so many."""
    at, place = 0, _0
    while at < len(data):
        gap, at = _take_varint(data, at)
        size, at = _take_varint(data, at)
        if at > len(data) or gap >= np.uint64(len(words)) - place:
            return False
        place += gap
        words[np.int64(place)] += np.int64(size >> _1) ^ -np.int64(size & _1)
        place += _1
    return True
