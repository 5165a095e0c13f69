"""Gorilla blocks: timestamps as deltas of deltas, values as xors with their predecessor.

After Pelkonen et al., "Gorilla: A Fast, Scalable, In-Memory Time Series Database", VLDB 2015, section 4.1, with
four differences: times are counted from zero in the coarsest exact unit, not from the start of a block; codes of
32 and 64 bits make the whole int64 domain lossless; the length of a window is stored so that 64 fits; and an
encoder may renew a window although the old one fits. Pure: arrays and bytes in, bytes and arrays out.

Bit streams. Bits fill bytes from the most significant bit down; numbers are written most significant bit first.
The last byte is filled up with zero bits and nothing follows it. The number of items is not part of the block; it
is at least 1.

Values (float64, by their 64 bits)
    first value          64 bits
    each further value, by its xor with the value before:
        0                                    the xor is zero
        10  m bits                           the xor lies in the window in force: m bits of it
        11  5 bits L  6 bits M  m bits       a window opens: L zero bits, then m = M bits (M = 0 means 64) of the
                                             xor, then 64 - L - m zero bits
A window stays in force until the next one opens; the first code other than 0 is 11. A reader refuses L + m > 64.
Encoder: with l = min(leading zeros of the xor, 31), t = its trailing zeros, and a window in force that leaves L
bits on the left and T on the right, the xor is written with code 10 if l >= L and t >= T and
(l - L) + (t - T) <= 11, that is if the window wastes no more bits than a new one would cost; otherwise with
code 11, L = l and m = 64 - l - t. (The paper always reuses a window that fits. On real sensor data that took 5 to 68
percent more bits, on integers of wide spread 1 percent less. A reader reads both.)

Timestamps (int64, nanoseconds since the Unix epoch)
    1 byte               unit: 0 = 1 ns, 1 = 1,000 ns, 2 = 1,000,000 ns, 3 = 1,000,000,000 ns
    bit stream of the timestamps divided by the unit:
    first timestamp      64 bits, two's complement
    each further one, by the delta d of its delta, where the delta before the first is 0 and all differences are
    taken modulo 2^64, read as signed:
        0                     d = 0
        10     7 bits         -63 <= d <= 64
        110    9 bits         -255 <= d <= 256
        1110   12 bits        -2047 <= d <= 2048
        11110  32 bits        -2^31 <= d < 2^31
        11111  64 bits        any d
    The bits are the low bits of d in two's complement. In the codes of 7, 9 and 12 bits the number that has only
    its first bit set is positive: 1000000 is 64.
Encoder: the unit is the largest that divides every timestamp, the code the first one that holds d. A reader
refuses other units and timestamps that leave int64.

Worked examples. Values 1.5, 1.5, 1.75: 3F F8 00 00 00 00 00 00 is 1.5; the xor of 1.5 and 1.75 is 13 zero
bits, a one and 50 zero bits, so 0 | 11 01101 000001 1 and one bit of padding follow: 6D 06.
Timestamps 1000 s, 1060 s, 1120 s, 1181 s: 03 is the unit, 00 00 00 00 00 00 03 E8 is 1000; the deltas of deltas
60, 0, 1 are 10 0111100 | 0 | 10 0000001, and with five bits of padding 9E 20 20.
"""

import numpy as np
import numpy.typing as npt

from common.codec import kernels
from common.codec.units import divide, unit_of
from common.errors import CodecError
from common.points import Times, Values

_FIRST_BYTES = 8  # the first item of a stream is not compressed

_Stream = npt.NDArray[np.uint8]


def encode_times(times: Times) -> bytes:
    """The block of int64 timestamps, shape (n,), n >= 1, in nanoseconds and in any order."""
    unit, divided = divide(times)
    out = _room(len(times), kernels.MAX_TIME_BITS)
    return bytes((unit,)) + out[: kernels.encode_times(divided, out)].tobytes()


def encode_values(values: Values) -> bytes:
    """The block of float64 values, shape (n,), n >= 1. Every bit pattern is kept."""
    out = _room(len(values), kernels.MAX_VALUE_BITS)
    return out[: kernels.encode_values(values.view(np.uint64), out)].tobytes()


def decode_times(data: bytes | memoryview, out: Times) -> None:
    """Fill `out` with the timestamps of a block, nanoseconds. Raises CodecError when it does not hold so many."""
    stream, size = _stream(data[1:], len(out), "timestamps")
    unit = unit_of(data, "gorilla timestamps")
    _check(kernels.decode_times(stream, size, unit, out), stream, size, len(out), "timestamps")


def decode_values(data: bytes | memoryview, out: Values) -> None:
    """Fill `out` with the values of a block. Raises CodecError when it does not hold so many."""
    stream, size = _stream(data, len(out), "values")
    _check(kernels.decode_values(stream, size, out.view(np.uint64)), stream, size, len(out), "values")


def _room(count: int, most_bits: int) -> _Stream:
    return np.empty(_FIRST_BYTES + count * most_bits // 8 + kernels.SLACK_BYTES, np.uint8)


def _stream(data: bytes | memoryview, count: int, what: str) -> tuple[_Stream, int]:
    """The bits with the zero bytes that decoders need behind them, and the bytes before those.

    An item takes a bit at least, so the size bounds how much memory a damaged count can ask for.
    """
    size = len(data)
    if size < _FIRST_BYTES or count - 1 > (size - _FIRST_BYTES) * 8:
        raise CodecError(f"gorilla {what}: {size} bytes of bit stream cannot hold {count} items")
    stream = np.empty(size + kernels.SLACK_BYTES, np.uint8)
    stream[:size] = np.frombuffer(data, np.uint8)
    stream[size:] = 0
    return stream, size


def _check(bits: int, stream: _Stream, size: int, count: int, what: str) -> None:
    if bits == kernels.TRUNCATED:
        raise CodecError(f"gorilla {what}: bit stream of {size} bytes ends before item {count}")
    if bits == kernels.MALFORMED:
        raise CodecError(f"gorilla {what}: bit stream of {size} bytes holds an impossible code")
    padding = 8 * size - bits
    if padding >= 8 or stream[size - 1] & ((1 << padding) - 1):
        raise CodecError(
            f"gorilla {what}: {count} items end at bit {bits} of {8 * size}, want zeros to the end of that byte"
        )
