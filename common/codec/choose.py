"""Which codec a block gets under the policy `auto`: the smallest, without trying what cannot win. Pure."""

from typing import Final

import numpy as np

from common.codec import constant, decimal, gorilla, pco, raw
from common.codec import integer_kernels as kernels
from common.codec import kernels as gorilla_kernels
from common.codec.ids import CodecId
from common.points import Times, Values

_ITEM_BYTES: Final = 8
_NOISY_BYTES: Final = 3  # a decimal block with more of them for each value may be float noise, which pcodec packs well

Packed = tuple[CodecId, bytes]


def times(column: Times) -> Packed:
    """The codec and bytes of a block of timestamps."""
    if constant.fits(column):
        return _or_raw((CodecId.CONSTANT, constant.encode_times(column)), column)
    packed = CodecId.PCO, pco.encode_times(column)
    return _or_raw(packed, column)


def values(column: Values) -> Packed:
    """The codec and bytes of a block of values."""
    words = column.view(np.int64)
    same = kernels.is_constant(words)
    block = decimal.attempt(column)
    if same:
        if block is None or len(block) >= _ITEM_BYTES:
            return CodecId.CONSTANT, constant.encode_values(column)
        return CodecId.DECIMAL, block
    packed: Packed = (CodecId.DECIMAL, block) if block is not None else (CodecId.PCO, pco.encode_values(column))
    if block is not None and (len(block) > _NOISY_BYTES * len(column) or block[0] & decimal.DENSE):
        packed = min(packed, (CodecId.PCO, pco.encode_values(column)), key=_length)
    if gorilla_kernels.least_value_bytes(column.view(np.uint64), len(packed[1])) < len(packed[1]):
        packed = min(packed, (CodecId.GORILLA, gorilla.encode_values(column)), key=_length)
    return _or_raw(packed, column)


def _length(packed: Packed) -> int:
    return len(packed[1])


def _or_raw(packed: Packed, column: Times | Values) -> Packed:
    if len(packed[1]) < _ITEM_BYTES * len(column):
        return packed
    encode = raw.encode_times if column.dtype == np.int64 else raw.encode_values
    return CodecId.RAW, encode(column)  # type: ignore[arg-type]
