"""Gorilla as one would first write it, with a branch for every code: what `bench codec` measures common/codec against.

The encoders collect bits in a word of 64 and write full words, the decoders take bits from byte after byte. Same
bits, same rule for windows as common/codec/kernels.py. Not used by the program.
"""

# The types of a kernel are its signature, which numba checks; those of a helper follow from its callers.
# mypy: allow-untyped-defs

import numpy as np

from common import jit

_0, _1, _2, _3, _5, _6, _7, _8 = (np.uint64(number) for number in (0, 1, 2, 3, 5, 6, 7, 8))
_11, _31, _63, _64 = (np.uint64(number) for number in (11, 31, 63, 64))
_WIDTHS = np.array([0, 7, 9, 12, 32, 64], np.uint64)


@jit.helper
def _put(out, at, word, free, number, width):
    """Append the low bits of a number to a word of which `free` (1 to 64) bits are left; words go to out[at]."""
    if width < free:
        free -= width
        return at, word | (number << free), free
    over = width - free
    out[at] = word | (number >> over)
    return at + 1, (number << (_64 - over)) if over > _0 else _0, _64 - over


@jit.helper
def _finish(out, at, word, free):
    out[at] = word
    return np.int64(at * 8) + np.int64((_64 - free + _7) >> _3)


@jit.helper
def _get(data, bit, width):
    number = _0
    while width > _0:
        room = _8 - (bit & _7)
        taken = min(room, width)
        number = (number << taken) | ((np.uint64(data[bit >> _3]) >> (room - taken)) & ((_1 << taken) - _1))
        bit += taken
        width -= taken
    return number, bit


@jit.kernel(jit.int64(jit.readonly(jit.uint64), jit.boolean, jit.uint64[::1]))
def encode_values(words, paper, out):
    """Words that hold the stream, most significant bit first; the number of bytes. paper: reuse what fits."""
    out[0] = words[0]
    at, word, free = 1, _0, _64
    opened = False
    lead = trail = _0
    for i in range(1, len(words)):
        xor = words[i] ^ words[i - 1]
        if xor == _0:
            at, word, free = _put(out, at, word, free, _0, _1)
            continue
        new_lead = min(jit.leading_zeros(xor), _31)
        new_trail = jit.trailing_zeros(xor)
        fits = opened and new_lead >= lead and new_trail >= trail
        if fits and (paper or new_lead + new_trail <= lead + trail + _11):
            at, word, free = _put(out, at, word, free, _2, _2)
        else:
            opened, lead, trail = True, new_lead, new_trail
            window = (_3 << _11) | (lead << _6) | ((_64 - lead - trail) & _63)
            at, word, free = _put(out, at, word, free, window, np.uint64(13))
        at, word, free = _put(out, at, word, free, xor >> trail, _64 - lead - trail)
    return _finish(out, at, word, free)


@jit.kernel(jit.void(jit.readonly(jit.uint8), jit.uint64[::1]))
def decode_values(data, out):
    """As common.codec.kernels.decode_values, for bytes known to be good."""
    word, bit = _get(data, _0, _64)
    out[0] = word
    lead = length = _0
    for i in range(1, len(out)):
        one, bit = _get(data, bit, _1)
        if one != _0:
            one, bit = _get(data, bit, _1)
            if one != _0:
                lead, bit = _get(data, bit, _5)
                length, bit = _get(data, bit, _6)
                if length == _0:
                    length = _64
            xor, bit = _get(data, bit, length)
            word ^= xor << (_64 - lead - length)
        out[i] = word


@jit.kernel(jit.int64(jit.readonly(jit.int64), jit.uint64[::1]))
def encode_times(times, out):
    """As common.codec.kernels.encode_times, into words as in encode_values."""
    out[0] = np.uint64(times[0])
    at, word, free = 1, _0, _64
    delta = np.int64(0)
    for i in range(1, len(times)):
        second = times[i] - times[i - 1] - delta
        delta = times[i] - times[i - 1]
        if second == 0:
            at, word, free = _put(out, at, word, free, _0, _1)
            continue
        if -63 <= second <= 64:
            prefix, bits, width = np.uint64(0b10), _2, np.uint64(7)
        elif -255 <= second <= 256:
            prefix, bits, width = np.uint64(0b110), _3, np.uint64(9)
        elif -2047 <= second <= 2048:
            prefix, bits, width = np.uint64(0b1110), np.uint64(4), np.uint64(12)
        elif -(2**31) <= second < 2**31:
            prefix, bits, width = np.uint64(0b11110), _5, np.uint64(32)
        else:
            prefix, bits, width = np.uint64(0b11111), _5, _64
        at, word, free = _put(out, at, word, free, prefix, bits)
        number = np.uint64(second) & (np.uint64(2**64 - 1) >> (_64 - width))
        at, word, free = _put(out, at, word, free, number, width)
    return _finish(out, at, word, free)


@jit.kernel(jit.void(jit.readonly(jit.uint8), jit.int64, jit.int64[::1]))
def decode_times(data, unit, out):
    """As common.codec.kernels.decode_times, for bytes known to be good."""
    first, bit = _get(data, _0, _64)
    time, delta = np.int64(first), np.int64(0)
    out[0] = time * unit
    for i in range(1, len(out)):
        ones = 0
        while ones < 5:
            one, bit = _get(data, bit, _1)
            if one == _0:
                break
            ones += 1
        number, bit = _get(data, bit, _WIDTHS[ones])
        second = np.int64(number)
        if 0 < ones < 4 and second > np.int64(_1 << (_WIDTHS[ones] - _1)):
            second -= np.int64(_1 << _WIDTHS[ones])
        elif ones == 4 and second >= 2**31:
            second -= 2**32
        delta += second
        time += delta
        out[i] = time * unit
