"""Codecs: arrays of timestamps or values to the bytes of a block, and back, bit for bit.

Owns the ids that blocks carry. Pure: no I/O, clock, log or socket; any thread. Importing it loads the compiled
kernels, and with them numba (some 120 MB), so only workers that open blocks do.
"""

from collections.abc import Callable
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np

from common.codec import gorilla, raw
from common.errors import CodecError
from common.points import Times, Values


class CodecId(IntEnum):
    """What a block says of its timestamps, and of its values, in a byte each. A number is never used again."""

    RAW = 0
    GORILLA = 1


class _Codec(NamedTuple):
    encode_times: Callable[[Times], bytes]
    encode_values: Callable[[Values], bytes]
    decode_times: Callable[[bytes | memoryview, int], Times]
    decode_values: Callable[[bytes | memoryview, int], Values]


_CODECS = {
    CodecId.RAW: _Codec(raw.encode_times, raw.encode_values, raw.decode_times, raw.decode_values),
    CodecId.GORILLA: _Codec(gorilla.encode_times, gorilla.encode_values, gorilla.decode_times, gorilla.decode_values),
}


def encode_times(times: Times, codec: CodecId) -> bytes:
    """The bytes of a block's timestamps: int64 nanoseconds, shape (n,), n >= 1, in any order.

    Raises CodecError for another dtype or shape, or no items.
    """
    return _CODECS[codec].encode_times(_column(times, np.int64, "timestamps"))


def encode_values(values: Values, codec: CodecId) -> bytes:
    """The bytes of a block's values: float64, shape (n,), n >= 1; every bit pattern is kept, NaN payloads too.

    Raises CodecError for another dtype or shape, or no items.
    """
    return _CODECS[codec].encode_values(_column(values, np.float64, "values"))


def decode_times(data: bytes | memoryview, count: int, codec_id: int) -> Times:
    """The `count` timestamps in a block's bytes: a new int64 array of shape (count,), nanoseconds.

    Raises CodecError when the codec is unknown or the bytes are not exactly a block of that many items; reads
    nothing outside them whatever they are.
    """
    return _codec(codec_id, count).decode_times(data, count)


def decode_values(data: bytes | memoryview, count: int, codec_id: int) -> Values:
    """The `count` values in a block's bytes: a new float64 array of shape (count,). Errors as in decode_times."""
    return _codec(codec_id, count).decode_values(data, count)


def _codec(codec_id: int, count: int) -> _Codec:
    if count < 1:
        raise CodecError(f"block of {count} items, want at least 1")
    try:
        return _CODECS[CodecId(codec_id)]
    except ValueError as error:
        known = ", ".join(f"{codec.value} ({codec.name.lower()})" for codec in CodecId)
        raise CodecError(f"codec id {codec_id}, want one of {known}") from error


def _column(items: Any, dtype: type, what: str) -> Any:
    if items.dtype != dtype or items.ndim != 1 or not len(items):
        raise CodecError(
            f"{what} of dtype {items.dtype} and shape {items.shape}, want {dtype.__name__} and at least one item"
        )
    return np.ascontiguousarray(items)
