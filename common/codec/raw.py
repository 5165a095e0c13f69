"""Raw blocks: each item as it is, 8 bytes, little-endian. Pure.

What every other codec is measured against, and the way out for data that none of them shrinks.
"""

import numpy as np

from common.errors import CodecError
from common.points import Times, Values

_ITEM_BYTES = 8


def encode_times(times: Times) -> bytes:
    """The block of int64 timestamps, shape (n,)."""
    return times.astype("<i8", copy=False).tobytes()


def encode_values(values: Values) -> bytes:
    """The block of float64 values, shape (n,). Every bit pattern is kept."""
    return values.astype("<f8", copy=False).tobytes()


def decode_times(data: bytes | memoryview, out: Times) -> None:
    """Fill `out` with the timestamps of a block. Raises CodecError when it does not hold so many."""
    _check(data, len(out), "timestamps")
    out[:] = np.frombuffer(data, "<i8")


def decode_values(data: bytes | memoryview, out: Values) -> None:
    """Fill `out` with the values of a block. Raises CodecError when it does not hold so many."""
    _check(data, len(out), "values")
    out.view(np.uint64)[:] = np.frombuffer(data, "<u8")


def _check(data: bytes | memoryview, count: int, what: str) -> None:
    if len(data) != count * _ITEM_BYTES:
        raise CodecError(f"raw {what}: got {len(data)} bytes, want {count * _ITEM_BYTES} for {count} items")
