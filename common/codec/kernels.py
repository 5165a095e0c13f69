"""The Gorilla kernels: bit streams to arrays and back. The format is described in gorilla.py, which calls them.

A kernel trusts its caller for the sizes of the buffers, and nothing else: whatever the bytes, a decoder reads and
writes inside its buffers and ends.

Sensor data flips between the codes of a stream without a pattern, and a wrongly guessed branch costs as much as
coding two values. So the loops have no branch that depends on a single item: they compute the fields of every
code and choose (jit.choose) between them, at the same speed whatever the data. Decoders look for a run of zero
bits, a stretch in which nothing changes, once per group of items. Bits are moved in words of 64, most significant
first, at any byte.

Bits are counted in uint64, since numba turns uint64 mixed with int64 into float64: hence the named constants.
"""

# The types of a kernel are its signature, which numba checks; those of a helper follow from its callers.
# mypy: allow-untyped-defs

import numpy as np

from common import jit

# Room that encoders need behind their last byte, and zero bytes that decoders need behind theirs: one code is at
# most 77 bits, starts at any bit of a byte, and is moved in two words.
SLACK_BYTES = 24
MAX_VALUE_BITS = 77  # '11', 5 + 6 bits of window, 64 bits
MAX_TIME_BITS = 69  # '11111', 64 bits

TRUNCATED = -1  # decoders: the stream ends before the last item
MALFORMED = -2  # decoders: a window beyond 64 bits or never opened, or a time outside int64

_GROUP = 64  # items between looks for a run: rare enough to cost nothing, frequent enough to catch the long ones
_LONG_RUN = 32  # a run that is worth looking for another at once

_0, _1, _2, _3, _7, _8 = (np.uint64(number) for number in (0, 1, 2, 3, 7, 8))
_11, _13, _14, _31, _51, _56, _57, _63, _64, _66 = (
    np.uint64(number) for number in (11, 13, 14, 31, 51, 56, 57, 63, 64, 66)
)
_255 = np.uint64(255)
_ALL_ONES = np.uint64(2**64 - 1)
_BIT_1 = np.uint64(1 << 63)  # the first bit of a word, which is the most significant
_BITS_1_2 = np.uint64(3 << 62)
_BIT_6 = np.uint64(1 << 58)
_BIT_32 = np.uint64(1 << 32)  # caps leading_zeros at 31
_BIT_58 = np.uint64(1 << 6)  # caps leading_zeros at 57, the valid bits of a word read at any bit of a byte

# Per number of leading one bits (0 to 5) of a time code, one byte each, the lowest for 0: bits of the whole code,
# bits of the number in it, and what is taken off the number before its sign bit is read.
_CODE_BITS = np.uint64(0x45_25_10_0C_09_01)
_NUMBER_BITS = np.uint64(0x40_20_0C_09_07_00)
_OFFSET = np.uint64(0x00_00_01_01_01_00)
_I0, _I1, _I63, _I64, _I256, _I2048, _I2_31 = (np.int64(number) for number in (0, 1, 63, 64, 256, 2048, 1 << 31))


@jit.helper
def _mask(condition):
    """All ones for True, 0 for False."""
    return _0 - np.uint64(condition)


@jit.helper
def _put(out, at, fill, pending, header, start, payload, end):
    """Append a header and a payload, both left-aligned with zeros behind, to the bits that end in byte `at`.

    pending: the `fill` (0 to 7) bits of that byte so far, left-aligned; start, end: where the payload begins and
    ends, in bits from that byte. Returns the new (at, fill, pending).
    """
    first = pending | (header >> fill) | (payload >> start)
    second = payload << (_64 - start)
    jit.store_word(out, at, first)
    jit.store_word(out, at + _8, second)
    rest = jit.choose(end >= _64, second, first)
    return at + (end >> _3), end & _7, rest << (end & _56)


@jit.helper
def _finish(out, at, fill, pending):
    """Write the last, partial byte; the number of bytes used."""
    jit.store_word(out, at, pending)
    return np.int64(at + ((fill + _7) >> _3))


@jit.helper
def _position(truncated, bad, bit):
    """What a decoder answers. bad: begins with a 1 bit where a code was impossible."""
    if truncated:
        return np.int64(TRUNCATED)
    if bad >= _BIT_1:
        return np.int64(MALFORMED)
    return np.int64(bit)


@jit.kernel(jit.int64(jit.readonly(jit.uint64), jit.uint8[::1]))
def encode_values(words, out):
    """Encode float64 bit patterns; the number of bytes written.

    words: at least one; out: room for MAX_VALUE_BITS each, and SLACK_BYTES.
    """
    previous = words[0]
    jit.store_word(out, 0, previous)
    at, fill, pending = _8, _0, _0
    window_lead, window_length = _64, _0  # no xor fits this one
    for i in range(1, len(words)):
        word = words[i]
        xor = word ^ previous
        previous = word
        same = xor == _0
        lead = jit.leading_zeros(xor | _BIT_32)
        length = _64 - lead - jit.trailing_zeros(xor)
        # By how many bits the window in force is wider than the xor: on the left, and on both sides together. It is
        # renewed if it is narrower on a side, or wider by more than the 11 bits that a new one costs: if one of
        # three differences is negative, which the first bit of their OR tells.
        left = lead - window_lead
        wider = window_length - length
        renew = ((left | (wider - left) | (_11 - wider)) >= _BIT_1) & (xor != _0)
        window_lead = jit.choose(renew, lead, window_lead)
        window_length = jit.choose(renew, length, window_length)
        window = _BITS_1_2 | (lead << _57) | ((length & _63) << _51)
        header = jit.choose(same, _0, jit.choose(renew, window, _BIT_1))
        start = fill + jit.choose(renew, _13, _2)
        end = jit.choose(same, fill + _1, start + window_length)
        at, fill, pending = _put(out, at, fill, pending, header, start, xor << (window_lead & _63), end)
    return _finish(out, at, fill, pending)


@jit.helper
def _run(data, bit, most):
    """How many zero bits begin at this bit: what one word shows (at most 57), and no more than `most`."""
    word = jit.load_word(data, bit >> _3) << (bit & _7)
    return min(np.int64(jit.leading_zeros(word | _BIT_58)), most)


@jit.helper
def _take_value(data, bit, reused, trail):
    """Read one value code.

    reused: bits of a code that reuses the window, 2 more than its length; trail: zero bits behind the window.
    Returns the xor, the bit behind the code, the new (reused, trail), and a word that begins with 1 where the
    window is impossible.
    """
    at, skip = bit >> _3, bit & _7
    first = jit.load_word(data, at)
    code = first << skip
    changed = code >= _BIT_1
    renew = code >= _BITS_1_2
    length_less_1 = ((code >> _51) - _1) & _63
    taken = jit.choose(changed, jit.choose(renew, length_less_1 + _14, reused), _1)
    reused = jit.choose(renew, length_less_1 + _3, reused)
    trail = jit.choose(renew, _63 - ((code >> _57) & _31) - length_less_1, trail)
    start = skip + jit.choose(renew, _13, _2)
    bits = (first << start) | (jit.load_word(data, at + _8) >> (_64 - start))
    xor = (bits >> ((_66 - reused) & _63)) << (trail & _63)
    return jit.choose(changed, xor, _0), bit + taken, reused, trail, trail & code


@jit.kernel(jit.int64(jit.readonly(jit.uint8), jit.int64, jit.uint64[::1]))
def decode_values(data, size, out):
    """Decode len(out) float64 bit patterns; the number of bits read, or TRUNCATED or MALFORMED.

    data: the stream, at least 8 bytes, and SLACK_BYTES zero bytes; size: bytes of the stream; out: at least one.
    """
    word = jit.load_word(data, 0)
    out[0] = word
    bit, end = _64, np.uint64(size) << _3
    reused, trail = _2, _BIT_1  # no window yet: a reuse of this one is impossible
    bad = _0
    i, count = 1, len(out)
    while i < count and bit < end:
        run = _run(data, bit, count - i)
        for j in range(i, i + run):
            out[j] = word
        i += run
        bit += np.uint64(run)
        if run > _LONG_RUN:
            continue
        stop = min(i + _GROUP, count)
        for j in range(i, stop):
            if bit >= end:
                return np.int64(TRUNCATED)
            xor, bit, reused, trail, impossible = _take_value(data, bit, reused, trail)
            bad |= impossible
            word ^= xor
            out[j] = word
        i = stop
    return _position(i < count or bit > end, bad, bit)


@jit.helper
def _divide(times, unit, out):
    for i in range(len(times)):
        quotient = times[i] // unit
        if quotient * unit != times[i]:
            return False
        out[i] = quotient
    return True


@jit.kernel(jit.int64(jit.readonly(jit.int64), jit.int64[::1]))
def divide_times(times, out):
    """Divide all times by the largest unit that leaves no remainder; the unit's number, 0 to 3 as in gorilla.py.

    times, out: equally long.
    """
    if _divide(times, 1_000_000_000, out):
        return 3
    if _divide(times, 1_000_000, out):
        return 2
    if _divide(times, 1_000, out):
        return 1
    out[:] = times
    return 0


@jit.helper
def _ones(second):
    """The number of ones that begin the shortest code for a delta of delta.

    The codes of 7, 9 and 12 bits hold one more above zero than below: for those the number less one decides.
    """
    less_one = second - _I1
    magnitude_less_one = less_one ^ (less_one >> _I63)
    return (
        np.uint64(second != _I0)
        + np.uint64(magnitude_less_one >= _I64)
        + np.uint64(magnitude_less_one >= _I256)
        + np.uint64(magnitude_less_one >= _I2048)
        + np.uint64((second ^ (second >> _I63)) >= _I2_31)
    )


@jit.kernel(jit.int64(jit.readonly(jit.int64), jit.uint8[::1]))
def encode_times(times, out):
    """Encode times, already divided by their unit; the number of bytes written.

    times: at least one; out: room for MAX_TIME_BITS each, and SLACK_BYTES.
    """
    previous, delta = np.uint64(times[0]), _0
    jit.store_word(out, 0, previous)
    at, fill, pending = _8, _0, _0
    for i in range(1, len(times)):
        time = np.uint64(times[i])
        second = time - previous - delta
        delta = time - previous
        previous = time
        ones = _ones(np.int64(second))
        number_bits = (_NUMBER_BITS >> (ones << _3)) & _255
        code_bits = (_CODE_BITS >> (ones << _3)) & _255
        header, start = ~(_ALL_ONES >> ones), fill + code_bits - number_bits
        payload = second << ((_64 - number_bits) & _63)
        at, fill, pending = _put(out, at, fill, pending, header, start, payload, fill + code_bits)
    return _finish(out, at, fill, pending)


@jit.helper
def _take_time(data, bit):
    """Read one time code; its delta of delta and the bit behind it."""
    at, skip = bit >> _3, bit & _7
    first = jit.load_word(data, at)
    table = jit.leading_zeros(~(first << skip) | _BIT_6) << _3
    number_bits = (_NUMBER_BITS >> table) & _255
    code_bits = (_CODE_BITS >> table) & _255
    start = skip + code_bits - number_bits
    bits = (first << start) | (jit.load_word(data, at + _8) >> (_64 - start))
    unused = (_64 - number_bits) & _63
    offset = (_OFFSET >> table) & _255
    number = np.uint64(np.int64(bits - (offset << unused)) >> np.int64(unused)) + offset
    return number & (_0 - np.uint64(number_bits != _0)), bit + code_bits


@jit.kernel(jit.int64(jit.readonly(jit.uint8), jit.int64, jit.int64, jit.int64[::1]))
def decode_times(data, size, unit, out):
    """Decode len(out) times and multiply them by their unit; the number of bits read, or TRUNCATED or MALFORMED.

    data: the stream, at least 8 bytes, and SLACK_BYTES zero bytes; size: bytes of the stream; out: at least one.
    """
    scale = np.uint64(unit)
    limit = _BIT_1 // scale  # the unit divides a time exactly, so -2^63 itself arises with unit 1 only
    span = limit + limit - np.uint64(unit == 1)
    time, delta = jit.load_word(data, 0), _0
    out[0] = np.int64(time * scale)
    bit, end = _64, np.uint64(size) << _3
    bad = _mask(time + limit > span)
    i, count = 1, len(out)
    while i < count and bit < end:
        run = _run(data, bit, count - i)
        for j in range(i, i + run):
            time += delta
            bad |= _mask(time + limit > span)
            out[j] = np.int64(time * scale)
        i += run
        bit += np.uint64(run)
        if run > _LONG_RUN:
            continue
        stop = min(i + _GROUP, count)
        for j in range(i, stop):
            if bit >= end:
                return np.int64(TRUNCATED)
            second, bit = _take_time(data, bit)
            delta += second
            time += delta
            bad |= _mask(time + limit > span)
            out[j] = np.int64(time * scale)
        i = stop
    return _position(i < count or bit > end, bad, bit)


@jit.kernel(jit.int64(jit.readonly(jit.uint64), jit.int64))
def least_value_bytes(words, limit):
    """No fewer bytes than these hold the words, whatever windows are chosen; stops counting above a limit."""
    bits, most = _64, np.uint64(limit) << _3
    for i in range(1, len(words)):
        xor = words[i] ^ words[i - 1]
        length = _64 - jit.leading_zeros(xor) - jit.trailing_zeros(xor)
        bits += jit.choose(xor == _0, _1, _2 + length)
        if bits > most:
            break
    return np.int64((bits + _7) >> _3)


@jit.kernel(jit.int64(jit.readonly(jit.int64), jit.int64))
def time_bytes(times, limit):
    """The bytes that encode_times() writes; stops counting above a limit."""
    previous, delta = np.uint64(times[0]), _0
    bits, most = _64, np.uint64(limit) << _3
    for i in range(1, len(times)):
        time = np.uint64(times[i])
        second = time - previous - delta
        delta = time - previous
        previous = time
        bits += (_CODE_BITS >> (_ones(np.int64(second)) << _3)) & _255
        if bits > most:
            break
    return np.int64((bits + _7) >> _3)
