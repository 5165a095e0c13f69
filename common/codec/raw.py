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


def decode_times(data: bytes | memoryview, count: int) -> Times:
    """The timestamps of a block, a copy of shape (count,). Raises CodecError when it does not hold them."""
    _check(data, count, "timestamps")
    return np.frombuffer(data, "<i8").astype(np.int64)


def decode_values(data: bytes | memoryview, count: int) -> Values:
    """The values of a block, a copy of shape (count,). Raises CodecError when it does not hold them."""
    _check(data, count, "values")
    return np.frombuffer(data, "<f8").astype(np.float64)


def _check(data: bytes | memoryview, count: int, what: str) -> None:
    if len(data) != count * _ITEM_BYTES:
        raise CodecError(f"raw {what}: got {len(data)} bytes, want {count * _ITEM_BYTES} for {count} items")
