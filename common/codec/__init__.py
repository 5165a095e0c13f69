"""Codecs: arrays of timestamps or values to the bytes of a block, and back, bit for bit.

Owns the ids that blocks carry. Pure: no I/O, clock, log or socket; any thread. Importing it loads the compiled
kernels, and with them numba (some 120 MB), so only workers that open blocks do.
"""

from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from common.codec import choose, constant, decimal, gorilla, grid, pco, raw, small
from common.codec.ids import CodecId
from common.codec.small import FOREIGN, Packed, Places
from common.codec.small import MAX_ROWS as SMALL_ROWS
from common.errors import CodecError
from common.points import Times, Values

__all__ = [
    "FOREIGN",
    "MAX_ITEMS",
    "SMALL_ROWS",
    "CodecId",
    "Packed",
    "Places",
    "Policy",
    "decode_small",
    "decode_times",
    "decode_times_into",
    "decode_values",
    "decode_values_into",
    "encode_times",
    "encode_values",
    "pack_small",
    "pack_times",
    "pack_values",
]

MAX_ITEMS: Final = 1 << 20  # of a block: far more than any has, and what a damaged count can ask for at most

_INT64: Final = np.dtype(np.int64)
_FLOAT64: Final = np.dtype(np.float64)

Policy = Literal["auto", "gorilla"]


class _Codec(NamedTuple):
    """How one codec writes and reads one kind of column."""

    encode: Callable[[Any], bytes]
    decode: Callable[[bytes | memoryview, Any], None]


_TIMES: Final = {
    CodecId.RAW: _Codec(raw.encode_times, raw.decode_times),
    CodecId.GORILLA: _Codec(gorilla.encode_times, gorilla.decode_times),
    CodecId.CONSTANT: _Codec(constant.encode_times, constant.decode_times),
    CodecId.PCO: _Codec(pco.encode_times, pco.decode_times),
    CodecId.GRID: _Codec(grid.encode_times, grid.decode_times),
}
_VALUES: Final = {
    CodecId.RAW: _Codec(raw.encode_values, raw.decode_values),
    CodecId.GORILLA: _Codec(gorilla.encode_values, gorilla.decode_values),
    CodecId.CONSTANT: _Codec(constant.encode_values, constant.decode_values),
    CodecId.DECIMAL: _Codec(decimal.encode_values, decimal.decode_values),
    CodecId.PCO: _Codec(pco.encode_values, pco.decode_values),
}


def encode_times(times: Times, codec: CodecId) -> bytes:
    """The bytes of a block's timestamps in one codec: int64 nanoseconds, shape (n,), n >= 1, in any order.

    Raises CodecError for another dtype or shape, for no items or more than MAX_ITEMS, and for items that the codec
    cannot hold (only RAW, GORILLA and PCO hold any).
    """
    column = _column(times, _INT64, "timestamps")
    return _codec(_TIMES, codec, "timestamps").encode(column)


def encode_values(values: Values, codec: CodecId) -> bytes:
    """The bytes of a block's values in one codec: float64, shape (n,), n >= 1; all bits are kept, NaN payloads too.

    Raises CodecError as encode_times does.
    """
    column = _column(values, _FLOAT64, "values")
    return _codec(_VALUES, codec, "values").encode(column)


def pack_times(times: Times, policy: Policy) -> tuple[CodecId, bytes]:
    """The codec that a policy chooses for a block's timestamps, and its bytes: int64, shape (n,), n >= 1.

    auto: the smallest (choose.py), whatever the numbers mean and their order; gorilla: Gorilla. Raises CodecError for
    another dtype or shape, and for no items or more than MAX_ITEMS.
    """
    column = _column(times, _INT64, "timestamps")
    if policy == "gorilla":
        return CodecId.GORILLA, gorilla.encode_times(column)
    return choose.times(column)


def pack_values(values: Values, policy: Policy) -> tuple[CodecId, bytes]:
    """The codec that a policy chooses for a block's values, and its bytes: float64, shape (n,), n >= 1, all bits kept.

    Otherwise as pack_times.
    """
    column = _column(values, _FLOAT64, "values")
    if policy == "gorilla":
        return CodecId.GORILLA, gorilla.encode_values(column)
    return choose.values(column)


def pack_small(times: Times, values: Values, ends: npt.NDArray[np.int64], policy: Policy) -> Packed:
    """Blocks of up to SMALL_ROWS rows, all at once: block b holds the rows ends[b - 1] (0 before the first) to ends[b].

    Larger ones, those that another codec may make shorter, and all of them if the policy is gorilla, are FOREIGN: they
    are for pack_times and pack_values. Arrays are contiguous. Raises CodecError for ends that are not ends of rows.
    """
    return small.left_out(len(ends)) if policy == "gorilla" else small.encode(times, values, ends)


def decode_small(data: bytes, places: Places, times: Times, values: Values) -> npt.NDArray[np.bool_]:
    """Decode blocks that pack_small() could have made, each to its rows; bool[n], which were decoded.

    The others are damaged or of another kind: for decode_times_into and decode_values_into, which tell. Raises
    CodecError for blocks outside the data, or rows outside the arrays, which are contiguous.
    """
    return small.decode(data, places, times, values)


def decode_times(data: bytes | memoryview, count: int, codec_id: int) -> Times:
    """The `count` timestamps in a block's bytes: a new int64 array of shape (count,), nanoseconds.

    Raises CodecError when the codec is unknown or the bytes are not exactly a block of that many items; reads
    nothing outside them whatever they are.
    """
    out = np.empty(_checked(count), _INT64)
    _codec(_TIMES, codec_id, "timestamps").decode(data, out)
    return out


def decode_values(data: bytes | memoryview, count: int, codec_id: int) -> Values:
    """The `count` values in a block's bytes: a new float64 array of shape (count,). Errors as in decode_times."""
    out = np.empty(_checked(count), _FLOAT64)
    _codec(_VALUES, codec_id, "values").decode(data, out)
    return out


def decode_times_into(data: bytes | memoryview, count: int, codec_id: int, out: Times) -> None:
    """As decode_times, into a contiguous int64 array of shape (count,), which is left half filled by an error."""
    _codec(_TIMES, codec_id, "timestamps").decode(data, _target(out, count, _INT64))


def decode_values_into(data: bytes | memoryview, count: int, codec_id: int, out: Values) -> None:
    """As decode_values, into a contiguous float64 array of shape (count,), which is left half filled by an error."""
    _codec(_VALUES, codec_id, "values").decode(data, _target(out, count, _FLOAT64))


def _codec(codecs: dict[CodecId, _Codec], codec_id: int, what: str) -> _Codec:
    codec = codecs.get(codec_id)  # type: ignore[call-overload]  # an IntEnum is found by its number
    if codec is None:
        known = ", ".join(f"{codec.value} ({codec.name.lower()})" for codec in codecs)
        raise CodecError(f"codec id {int(codec_id)} of {what}, want one of {known}")
    found: _Codec = codec
    return found


def _checked(count: int) -> int:
    if not 1 <= count <= MAX_ITEMS:
        raise CodecError(f"block of {count} items, want 1 to {MAX_ITEMS}")
    return count


def _target(out: Any, count: int, dtype: Any) -> Any:
    if out.dtype != dtype or out.shape != (_checked(count),) or not out.flags.c_contiguous:
        raise CodecError(
            f"block of {count} items into dtype {out.dtype} and shape {out.shape}, want {dtype.name}, contiguous"
        )
    return out


def _column(items: Any, dtype: Any, what: str) -> Any:
    if items.dtype != dtype or items.ndim != 1 or not 1 <= len(items) <= MAX_ITEMS:
        raise CodecError(
            f"{what} of dtype {items.dtype} and shape {items.shape}, want {dtype.name} and 1 to {MAX_ITEMS} items"
        )
    return np.ascontiguousarray(items)
