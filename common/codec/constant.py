"""Constant blocks: timestamps at equal distances, values that are all the same. Pure.

Timestamps: one byte, the number of their unit (0 = 1 ns, 1 = 1 us, 2 = 1 ms, 3 = 1 s); a signed varint, the first
in that unit; unless the block has one, a signed varint, the distance from each to the next. Values: the 64 bits of
the value, little-endian.

Encoder: the unit is the largest that divides all timestamps.
"""

import struct
from typing import Final

import numpy as np

from common.codec import integer_kernels as kernels
from common.codec import varint
from common.codec.units import UNITS_NS, unit_of
from common.errors import CodecError
from common.points import Times, Values

_WORD: Final = struct.Struct("<Q")


def attempt_times(times: Times) -> bytes | None:
    """The block of int64 timestamps, shape (n,), n >= 1, or None when their distances differ."""
    first = int(times[0])
    if len(times) == 1:
        unit = _unit(first, 0)
        return bytes((unit,)) + varint.put_signed(first // UNITS_NS[unit])
    delta = int(times[1]) - first
    if first + delta * (len(times) - 1) != int(times[-1]) or not varint.INT64_MIN <= delta <= varint.INT64_MAX:
        return None
    if not kernels.is_linear(times):
        return None
    unit = _unit(first, delta)
    return bytes((unit,)) + varint.put_signed(first // UNITS_NS[unit]) + varint.put_signed(delta // UNITS_NS[unit])


def encode_times(times: Times) -> bytes:
    """The block of int64 timestamps, shape (n,), n >= 1. Raises CodecError when their distances differ."""
    block = attempt_times(times)
    if block is None:
        raise CodecError(f"{len(times)} timestamps at different distances, want a constant one")
    return block


def _unit(first: int, delta: int) -> int:
    unit = len(UNITS_NS) - 1
    while first % UNITS_NS[unit] or delta % UNITS_NS[unit]:
        unit -= 1
    return unit


def encode_values(values: Values) -> bytes:
    """The block of float64 values, shape (n,), n >= 1. Raises CodecError unless all have the same bits."""
    words = values.view(np.int64)
    if words[0] != words[-1] or not kernels.is_constant(words):
        raise CodecError(f"{len(values)} values that differ, want a constant")
    return _WORD.pack(int(words[0]) % 2**64)


def decode_times(data: bytes | memoryview, out: Times) -> None:
    """Fill `out` with the timestamps of a block. Raises CodecError when it does not hold so many."""
    data = bytes(data)
    unit = unit_of(data, "constant timestamps")
    first, at = varint.take_signed(data, 1)
    delta, at = varint.take_signed(data, at) if len(out) > 1 else (0, at)
    first, delta = first * unit, delta * unit
    last = first + delta * (len(out) - 1)
    if at != len(data):
        raise CodecError(f"constant timestamps: got {len(data)} bytes, want {at}")
    if not varint.INT64_MIN <= min(first, last) <= max(first, last) <= varint.INT64_MAX:
        raise CodecError(f"constant timestamps from {first} to {last} ns, want them inside int64")
    kernels.fill(first % 2**64, delta % 2**64, out)


def decode_values(data: bytes | memoryview, out: Values) -> None:
    """Fill `out` with the value of a block. Raises CodecError when it does not hold one."""
    if len(data) != _WORD.size:
        raise CodecError(f"constant values: got {len(data)} bytes, want {_WORD.size}")
    out.view(np.uint64)[:] = _WORD.unpack(data)[0]
