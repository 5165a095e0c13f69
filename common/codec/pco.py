"""Pco blocks: timestamps and values through pcodec. Pure.

Timestamps: one byte, the number of their unit (0 = 1 ns, 1 = 1 us, 2 = 1 ms, 3 = 1 s); then the timestamps in that
unit as a column of integers (integers.py). Values: one byte, the head: bit 0 set if every value is a float32 and
none is NaN, bit 7 as chunk.py says, others 0; then a chunk of float64 or float32.
"""

from typing import Final

import numpy as np

from common.codec import chunk, integers
from common.codec.units import divide, unit_of
from common.errors import CodecError
from common.points import Times, Values

_SINGLE: Final = 0x01
_KNOWN: Final = _SINGLE | chunk.VERSIONED


def encode_times(times: Times) -> bytes:
    """The block of int64 timestamps, shape (n,), n >= 1, in any order."""
    return encode_divided(*divide(times))


def encode_divided(unit: int, divided: Times) -> bytes:
    """The block of timestamps that are already divided by the unit of this number."""
    return bytes((unit,)) + integers.encode(divided)


def encode_values(values: Values) -> bytes:
    """The block of float64 values, shape (n,), n >= 1. Every bit pattern is kept."""
    with np.errstate(over="ignore", invalid="ignore"):
        single = values.astype(np.float32)
    if np.array_equal(single, values) and not np.isnan(values).any():
        return bytes((_SINGLE | chunk.HEAD,)) + chunk.pack(single, chunk.AUTO)
    return bytes((chunk.HEAD,)) + chunk.pack(values, chunk.AUTO)


def decode_times(data: bytes | memoryview, out: Times) -> None:
    """Fill `out` with the timestamps of a block. Raises CodecError when it does not hold them."""
    data = bytes(data)
    unit = unit_of(data, "pco timestamps")
    integers.decode(data, 1, out, "pco timestamps")
    integers.multiply(out, unit, "pco timestamps")


def decode_values(data: bytes | memoryview, out: Values) -> None:
    """Fill `out` with the values of a block. Raises CodecError when it does not hold them."""
    data = bytes(data)
    if not data or data[0] & ~_KNOWN:
        raise CodecError(f"pco values: got head {data[:1].hex() or 'missing'}, want flags {_KNOWN:02x}")
    if not data[0] & _SINGLE:
        chunk.unpack(data, 1, data[0], out, "pco values")
        return
    single = np.empty(len(out), np.float32)
    chunk.unpack(data, 1, data[0], single, "pco values")
    out[:] = single
