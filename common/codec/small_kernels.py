"""Kernels of packed columns (integers.py), and of small blocks, many at a time (small.py).

A writer trusts its caller for the room behind each block. A reader trusts it for where blocks lie and how many items
they have, and for SLACK_BYTES behind the last, and for nothing else: whatever the bytes, it reads and writes inside
its arrays, and ends. A reader may leave a block to others that is as good as any; it never takes one that is not.

Bits are counted, and numbers taken modulo 2^64, in uint64, since numba turns uint64 mixed with int64 into float64:
hence the named constants.
"""

# The types of a kernel are its signature, which numba checks; those of a helper follow from its callers.
# mypy: allow-untyped-defs

import numpy as np

from common import jit

SLACK_BYTES = 16  # a number of up to 64 bits that begins at any bit lies in two words
HEAD_BYTES = 64  # more than all but the numbers of a block takes: a column 42, and a word behind it is written
ITEM_BYTES = 8
MAX_ROWS = 128  # of a small block

PACKED, STEP, ORDER = 8, 4, 3  # bits of a column's head
CONSTANT, DECIMAL, PCO, FOREIGN = 2, 3, 4, 255  # codecs; FOREIGN: left to others

_SPARE_BITS = 224  # heads, and by how much a packed column may miss what its numbers seem to be worth, besides half
_NOISY_BYTES, _NOISY_HEAD = 3, 16  # as in choose.py: more for each value, head aside, may be float noise
_DIGITS = 18  # tried
_MOST_DIGITS = 22  # taken
_POWERS = np.array([10.0**e for e in range(_MOST_DIGITS + 1)])
_WHOLE = 2.0**53
_SURE = 2.0**62  # what is below that as float64 is inside int64
_UNITS = np.array([1, 1_000, 1_000_000, 1_000_000_000])
_INT64_MAX = 0x7FFFFFFFFFFFFFFF

_0, _1, _3, _7, _8, _63, _64, _127, _128 = (np.uint64(number) for number in (0, 1, 3, 7, 8, 63, 64, 127, 128))
_I1, _I63 = np.int64(1), np.int64(63)


@jit.helper
def _put_varint(out, at, number):
    while number >= _128:
        out[at] = np.uint8((number & _127) | _128)
        number >>= _7
        at += 1
    out[at] = np.uint8(number)
    return at + 1


@jit.helper
def _put_signed(out, at, number):
    return _put_varint(out, at, np.uint64((number << _I1) ^ (number >> _I63)))


@jit.helper
def _take_varint(data, at, end):
    """The number, and the offset behind it: beyond the end when it does not end before that."""
    number, shift = _0, _0
    while at < end:
        byte = np.uint64(data[at])
        at += 1
        if shift == _63 and byte > _1:
            break
        number |= (byte & _127) << shift
        if byte < _128:
            return number, at
        shift += _7
    return _0, end + 1


@jit.helper
def _take_signed(data, at, end):
    number, at = _take_varint(data, at, end)
    return np.int64(number >> _1) ^ -np.int64(number & _1), at


@jit.helper
def _bits(number):
    """How many bits a number takes."""
    return np.int64(_64 - jit.leading_zeros(np.uint64(number)))


@jit.helper
def _take_differences(numbers, count, taken):
    """Differences from the one before, in place, of `count` numbers of which so many were taken off before."""
    for i in range(count - 1, taken, -1):
        numbers[i] -= numbers[i - 1]


@jit.helper
def _width(numbers, begin, count):
    """The least of the numbers begin..count, and the bits that those above it take."""
    low = high = numbers[begin]
    for i in range(begin, count):
        low = min(low, numbers[i])
        high = max(high, numbers[i])
    return low, _bits(np.uint64(high) - np.uint64(low))


@jit.helper
def _worth(numbers, count):
    """Bits that the numbers would take, each by itself: much less than packed if few of them are large."""
    bits = 0
    for i in range(2, count):
        bits += _bits(np.uint64(numbers[i] ^ (numbers[i] >> _I63))) + (numbers[i] != 0)
    return bits


@jit.helper
def _step(numbers, low, begin, count):
    """The greatest common divisor of the numbers' distances from the least, 1 if there are none."""
    step = _0
    for i in range(begin, count):
        other = np.uint64(numbers[i]) - np.uint64(low)
        while other != _0:
            step, other = other, step % other
        if step == _1:
            break
    return max(step, _1)


@jit.helper
def _put_bits(out, at, numbers, low, step, width, begin, count):
    """Pack the numbers begin..count, each less `low` and divided by the step, into `width` bits; the offset behind."""
    word, fill, wide = _0, _0, np.uint64(width)
    for i in range(begin, count):
        number = np.uint64(numbers[i]) - np.uint64(low)
        if step != _1:
            number //= step
        left = number << (_64 - wide)  # a width of 0 does not come here
        word |= left >> fill
        fill += wide
        if fill >= _64:
            jit.store_word(out, at, word)
            at += 8
            fill -= _64
            word = (number << _1) << (_63 - fill)
    jit.store_word(out, at, word)
    return at + np.int64((fill + _7) >> _3)


@jit.helper
def _put_linear(out, at, numbers, count):
    out[at] = 0
    at = _put_signed(out, at + 1, numbers[0])
    return _put_signed(out, at, numbers[1]) if count > 1 else at


@jit.helper
def _put_column(out, at, numbers, count):
    """Write a column and leave the numbers as differences of differences; the offset behind, and what these are worth.

    Of equal width the order is taken that has least differences: they cost a varint each.
    """
    low_0, width_0 = _width(numbers, 0, count)
    low_1, width_1, low_2, width_2 = low_0, width_0, low_0, width_0
    first, slope = numbers[0], np.int64(0)
    if count > 1:
        _take_differences(numbers, count, 0)
        slope = numbers[1]
        low_1, width_1 = _width(numbers, 1, count)
    if width_1 == 0 or count == 1:
        return _put_linear(out, at, numbers, count), np.int64(0)
    _take_differences(numbers, count, 1)
    worth = _worth(numbers, count)
    low_2, width_2 = _width(numbers, 2, count)
    order, low, width = 0, low_0, width_0
    if width_1 < width:
        order, low, width = 1, low_1, width_1
    if width_2 < width:
        order, low, width = 2, low_2, width_2
    if order < 2:
        for i in range(2, count):
            numbers[i] += numbers[i - 1]
    if order == 0:
        for i in range(1, count):
            numbers[i] += numbers[i - 1]
    step = _step(numbers, low, order, count)
    if step != _1:
        most = _0
        for i in range(order, count):
            most = max(most, np.uint64(numbers[i]) - np.uint64(low))
        width = _bits(most // step)
    out[at] = np.uint8(PACKED | order | (STEP if step != _1 else 0))
    at += 1
    if order > 0:
        at = _put_signed(out, at, first)
    if order > 1:
        at = _put_signed(out, at, slope)
    at = _put_signed(out, at, low)
    if step != _1:
        at = _put_varint(out, at, step)
    out[at] = np.uint8(width)
    at += 1
    if width > 0:
        at = _put_bits(out, at, numbers, low, step, width, order, count)
    return at, worth


@jit.helper
def _take_bits(data, at, base, step, width, begin, out):
    """Unpack the numbers begin.. of `out`, which lie inside the data and slack behind it."""
    bit, wide = _0, np.uint64(width)
    for i in range(begin, len(out)):
        number = _0
        if wide != _0:
            byte, skip = at + np.int64(bit >> _3), bit & _7
            word = (jit.load_word(data, byte) << skip) | ((jit.load_word(data, byte + 8) >> _1) >> (_63 - skip))
            number = word >> (_64 - wide)
        bit += wide
        out[i] = np.int64(np.uint64(base) + number * step)


@jit.helper
def _sum_up(out, begin):
    for i in range(begin, len(out)):
        out[i] += out[i - 1]


@jit.helper
def _take_column(data, at, end, out):
    """Fill `out` from a linear or packed column that reaches from an offset to the end; whether it is one."""
    count = len(out)
    if at >= end:
        return False
    head = np.int64(data[at])
    at += 1
    if head == 0:
        first, at = _take_signed(data, at, end)
        slope = np.int64(0)
        if count > 1:
            slope, at = _take_signed(data, at, end)
        for i in range(count):
            out[i] = first + np.int64(i) * slope
        return at == end
    order = head & ORDER
    if head & ~np.int64(PACKED | STEP | ORDER) or not head & PACKED or order == ORDER or order >= count:
        return False
    if order > 0:
        out[0], at = _take_signed(data, at, end)
    if order > 1:
        out[1], at = _take_signed(data, at, end)
    base, at = _take_signed(data, at, end)
    step = _1
    if head & STEP:
        step, at = _take_varint(data, at, end)
    if at >= end:
        return False
    width = np.int64(data[at])
    at += 1
    if width > 64 or at + ((count - order) * width + 7) // 8 != end:
        return False
    _take_bits(data, at, base, step, width, order, out)
    if order > 1:
        _sum_up(out, 2)  # of differences; the first stands at 1
    if order > 0:
        _sum_up(out, 1)
    return True


@jit.kernel(jit.int64(jit.int64[::1], jit.uint8[::1]))
def encode_column(numbers, out):
    """Write the packed column of numbers that are not linear, and spoil them; how many bytes.

    out: room for ITEM_BYTES each, and HEAD_BYTES.
    """
    return _put_column(out, 0, numbers, len(numbers))[0]


@jit.kernel(jit.boolean(jit.readonly(jit.uint8), jit.int64, jit.int64, jit.int64[::1]))
def decode_column(data, at, end, out):
    """Fill `out` (one at least) from the packed column in the bytes at..end; whether it is one. Reads SLACK_BYTES."""
    return _take_column(data, at, end, out)


@jit.helper
def _unit_of(number, unit):
    """The number of the largest unit, not above the one given, that divides a number."""
    while number % _UNITS[unit] != 0:
        unit -= 1
    return unit


@jit.helper
def _is_sure(first, delta, count):
    return abs(np.float64(first)) + abs(np.float64(delta)) * count < _SURE


@jit.helper
def _worth_packing(begin, end, count, worth):
    """Whether no few large numbers make the others long: then another codec may take much less."""
    return (end - begin) * 8 <= worth + worth // 2 + _SPARE_BITS


@jit.helper
def _put_times(times, numbers, out, at):
    """Write timestamps; the codec, and the offset behind."""
    count = len(times)
    delta = times[1] - times[0] if count > 1 else np.int64(0)
    linear, unit = True, 3
    for i in range(count):
        linear &= i == 0 or times[i] - times[i - 1] == delta
        unit = _unit_of(times[i], unit)
    if linear:
        if not _is_sure(times[0], delta, count):
            return FOREIGN, at
        unit = _unit_of(delta, _unit_of(times[0], 3))
        out[at] = np.uint8(unit)
        end = _put_signed(out, at + 1, times[0] // _UNITS[unit])
        if count > 1:
            end = _put_signed(out, end, delta // _UNITS[unit])
        return CONSTANT if end - at < ITEM_BYTES * count else FOREIGN, end
    for i in range(count):
        numbers[i] = times[i] // _UNITS[unit]
    out[at] = np.uint8(unit)
    end, worth = _put_column(out, at + 1, numbers, count)
    good = _worth_packing(at, end, count, worth) and end - at < ITEM_BYTES * count
    return PCO if good else FOREIGN, end


@jit.helper
def _digits(values, numbers):
    """The least number of digits with which all values are decimals, and the wholes; FOREIGN when there is none."""
    i, digits = 0, 0
    while i < len(values):
        power = _POWERS[digits]
        scaled = values[i] * power
        if not abs(scaled) <= _WHOLE:
            return FOREIGN  # more digits make it larger
        whole = np.int64(np.rint(scaled))
        if np.float64(np.float64(whole) / power).view(np.int64) == np.float64(values[i]).view(np.int64):
            numbers[i] = whole
            i += 1
        elif digits + 1 == _DIGITS:
            return FOREIGN
        else:
            digits, i = digits + 1, 0
    return digits


@jit.helper
def _put_values(values, numbers, out, at):
    """Write values; the codec, and the offset behind."""
    count = len(values)
    word = np.float64(values[0]).view(np.int64)
    same = True
    for i in range(1, count):
        same &= np.float64(values[i]).view(np.int64) == word
    digits = _digits(values[:1] if same else values, numbers)
    end, worth = at, np.int64(0)
    if digits != FOREIGN:
        out[at] = np.uint8(digits)
        if same:
            numbers[:count] = numbers[0]
        end, worth = _put_column(out, at + 1, numbers, count)
    if same and (digits == FOREIGN or end - at >= ITEM_BYTES):
        for i in range(ITEM_BYTES):
            out[at + i] = np.uint8((np.uint64(word) >> np.uint64(8 * i)) & np.uint64(255))
        return CONSTANT, at + ITEM_BYTES
    good = digits != FOREIGN and _worth_packing(at, end, count, worth)
    good = good and end - at <= _NOISY_BYTES * count + _NOISY_HEAD and end - at < ITEM_BYTES * count
    return DECIMAL if good else FOREIGN, end


@jit.kernel(
    jit.int64(
        jit.readonly(jit.int64), jit.readonly(jit.float64), jit.readonly(jit.int64), jit.uint8[::1], jit.int64[:, ::1]
    )
)
def encode(times, values, ends, out, found):
    """Write blocks one behind the other, timestamps and values of each; how many bytes.

    ends: ascending, the last is len(times); values as long; found: four rows of a column for each block: codecs and
    lengths of timestamps, then of values; a codec is FOREIGN, and both lengths 0, for a block left out. out: for each
    block 2 * HEAD_BYTES, for each row of one of up to MAX_ROWS 2 * ITEM_BYTES.
    """
    numbers = np.empty(MAX_ROWS, np.int64)
    at, begin = 0, 0
    for b in range(len(ends)):
        end = ends[b]
        found[:, b] = 0
        found[0, b] = found[2, b] = FOREIGN
        if 0 < end - begin <= MAX_ROWS:
            codec, middle = _put_times(times[begin:end], numbers, out, at)
            if codec != FOREIGN:
                values_codec, behind = _put_values(values[begin:end], numbers, out, middle)
                if values_codec != FOREIGN:
                    found[0, b], found[1, b] = codec, middle - at
                    found[2, b], found[3, b] = values_codec, behind - middle
                    at = behind
        begin = end
    return at


@jit.helper
def _multiply(out, unit):
    most = np.int64(_INT64_MAX) // unit
    inside = True
    for i in range(len(out)):
        inside &= (out[i] >= -most) & (out[i] <= most)
        out[i] *= unit
    return inside


@jit.helper
def _take_times(data, at, end, codec, out):
    """Fill `out` with timestamps; whether it was done."""
    count = len(out)
    if at >= end or data[at] > 3:
        return False
    unit = _UNITS[np.int64(data[at])]
    if codec == PCO:
        return _take_column(data, at + 1, end, out) and _multiply(out, unit)
    if codec != CONSTANT:
        return False
    first, at = _take_signed(data, at + 1, end)
    delta = np.int64(0)
    if count > 1:
        delta, at = _take_signed(data, at, end)
    if at != end or not (abs(np.float64(first)) + abs(np.float64(delta)) * count) * unit < _SURE:
        return False
    for i in range(count):
        out[i] = (first + np.int64(i) * delta) * unit
    return True


@jit.helper
def _take_values(data, at, end, codec, numbers, out):
    """Fill `out` with values; whether it was done."""
    if codec == CONSTANT:
        if end - at != ITEM_BYTES:
            return False
        word = _0
        for i in range(ITEM_BYTES):
            word |= np.uint64(data[at + i]) << np.uint64(8 * i)
        out[:] = np.uint64(word).view(np.float64)
        return True
    if codec != DECIMAL or at >= end or data[at] > _MOST_DIGITS:
        return False
    power = _POWERS[np.int64(data[at])]
    if not _take_column(data, at + 1, end, numbers):
        return False
    for i in range(len(out)):
        out[i] = np.float64(numbers[i]) / power
    return True


@jit.kernel(
    jit.void(
        jit.readonly(jit.uint8), jit.readonly(jit.int64), jit.readonly(jit.int64), jit.readonly(jit.int64),
        jit.int64[::1], jit.float64[::1], jit.boolean[::1],
    )
)  # fmt: skip
def decode(data, blocks, rows, counts, times, values, done):
    """Decode blocks, each to its rows; done: whether it was.

    blocks: for each its offset in data, the lengths of its timestamps and values, and their codecs, five numbers; all
    of it inside data but for the last SLACK_BYTES. rows: where the rows of each begin in times and values, counts:
    how many there are; all inside times and values.
    """
    numbers = np.empty(MAX_ROWS, np.int64)
    for b in range(len(done)):
        at, middle = blocks[5 * b], blocks[5 * b] + blocks[5 * b + 1]
        begin, end = rows[b], rows[b] + counts[b]
        done[b] = (
            0 < counts[b] <= MAX_ROWS
            and _take_times(data, at, middle, blocks[5 * b + 3], times[begin:end])
            and _take_values(
                data, middle, middle + blocks[5 * b + 2], blocks[5 * b + 4], numbers[: counts[b]], values[begin:end]
            )
        )
