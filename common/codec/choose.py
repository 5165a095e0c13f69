"""Which codec a block gets under the policy `auto`: the smallest, without trying what cannot win. Pure."""

import numpy as np

from common.codec import constant, pco, raw
from common.codec import integer_kernels as kernels
from common.codec.ids import CodecId
from common.points import Times, Values


def times(column: Times) -> tuple[CodecId, bytes]:
    """The codec and bytes of a block of timestamps."""
    if constant.fits(column):
        return CodecId.CONSTANT, constant.encode_times(column)
    data = pco.encode_times(column)
    if len(data) >= 8 * len(column):
        return CodecId.RAW, raw.encode_times(column)
    return CodecId.PCO, data


def values(column: Values) -> tuple[CodecId, bytes]:
    """The codec and bytes of a block of values."""
    if kernels.is_constant(column.view(np.int64)):
        return CodecId.CONSTANT, constant.encode_values(column)
    data = pco.encode_values(column)
    if len(data) >= 8 * len(column):
        return CodecId.RAW, raw.encode_values(column)
    return CodecId.PCO, data
