"""Which codec a block gets under the policy `auto`: the smallest, without trying what cannot win. Pure.

Timestamps at equal distances are CONSTANT. Others go on a GRID if one is found under them and a sample of their
distances from it takes fewer bits than one of their differences, else to PCO; to both if there are few of them, if
much of the grid is skipped, or if they take little anyway, because then a sample says little.

Values that are all the same are CONSTANT, or DECIMAL if that is shorter. Others are DECIMAL if a sample of them is,
else PCO. If they are, but take more than three bytes each, or often lie beside a decimal, PCO is tried too; in a long
block only if it wins on the first 1024 values.

Then GORILLA, whose size is counted before it is written, and RAW, whose size is known, if they are smaller: which
happens with few items, and with data that nothing else packs.
"""

from collections.abc import Callable
from typing import Final

import numpy as np

from common.codec import constant, decimal, gorilla, grid, integers, pco, raw
from common.codec import integer_kernels as kernels
from common.codec import kernels as gorilla_kernels
from common.codec.ids import CodecId
from common.codec.units import divide
from common.points import Times, Values

_ITEM_BYTES: Final = 8
_GORILLA_BYTES: Final = 9  # what Gorilla takes for a timestamp; a bit more for each further one, at least
_NOISY_BYTES: Final = 3  # a decimal block with more of them for each value may be float noise, which pcodec packs well,
_HEAD_BYTES: Final = 16  # its head aside
_SAMPLE: Final = 1024  # values by which a long block is judged, as pcodec takes ten times as long on floats
_SKIPPED: Final = 16  # timestamps for every skip, up to which differences may take less than a grid
_SMALL: Final = 2  # timestamps a byte, from which on small numbers tell a sample little, and packing them is fast
_FEW: Final = 64  # timestamps of which a sample says little, and packing them twice costs little

Packed = tuple[CodecId, bytes]


def times(column: Times) -> Packed:
    """The codec and bytes of a block of timestamps."""
    block = constant.attempt_times(column)
    if block is not None and len(block) <= _GORILLA_BYTES + (len(column) - 1) // 8:
        return _or_raw((CodecId.CONSTANT, block), column)
    unit, divided = divide(column)
    packed = (CodecId.CONSTANT, block) if block is not None else _off_grid(unit, divided)
    limit = len(packed[1]) - 1  # Gorilla's block has a byte before its stream
    if gorilla_kernels.time_bytes(divided, limit) < limit:
        packed = CodecId.GORILLA, gorilla.encode_times(column)
    return _or_raw(packed, column)


def _off_grid(unit: int, divided: Times) -> Packed:
    """The smaller of distances from a grid and differences, by a sample of either; both where that tells little."""
    found = grid.find(divided)
    if found is None:
        return CodecId.PCO, pco.encode_divided(unit, divided)
    packs: list[Callable[[], Packed]] = [
        lambda: (CodecId.GRID, found.encode(unit)),
        lambda: (CodecId.PCO, pco.encode_divided(unit, divided)),
    ]
    if _cost(found.distances) > _cost(divided):
        packs.reverse()
    packed = packs[0]()
    if len(packed[1]) * _SMALL < len(divided) or found.skips * _SKIPPED > len(divided) or len(divided) <= _FEW:
        packed = min(packed, packs[1](), key=_length)
    return packed


def _cost(numbers: Times) -> int:
    return min(integers.survey(numbers)[kernels.COST_0 : kernels.COST_2 + 1])


def values(column: Values) -> Packed:
    """The codec and bytes of a block of values."""
    if kernels.is_constant(column.view(np.int64)):
        block = decimal.attempt(column[:1])
        if block is None or len(block) + 1 >= _ITEM_BYTES:
            return CodecId.CONSTANT, constant.encode_values(column)
    packed = _decimal_or_pco(column)
    if gorilla_kernels.least_value_bytes(column.view(np.uint64), len(packed[1])) < len(packed[1]):
        packed = min(packed, (CodecId.GORILLA, gorilla.encode_values(column)), key=_length)
    return _or_raw(packed, column)


def _decimal_or_pco(column: Values) -> Packed:
    """Decimal where it fits, pco where it does not, the smaller where it fits badly."""
    block = decimal.attempt(column)
    if block is None:
        return CodecId.PCO, pco.encode_values(column)
    packed: Packed = CodecId.DECIMAL, block
    fits_badly = len(block) > _NOISY_BYTES * len(column) + _HEAD_BYTES or block[0] & decimal.DENSE
    if fits_badly and (len(column) <= 2 * _SAMPLE or _is_float_noise(column[:_SAMPLE])):
        packed = min(packed, (CodecId.PCO, pco.encode_values(column)), key=_length)
    return packed


def _is_float_noise(sample: Values) -> bool:
    return len(pco.encode_values(sample)) < len(decimal.encode_values(sample))


def _length(packed: Packed) -> int:
    return len(packed[1])


def _or_raw(packed: Packed, column: Times | Values) -> Packed:
    if len(packed[1]) < _ITEM_BYTES * len(column):
        return packed
    encode = raw.encode_times if column.dtype == np.int64 else raw.encode_values
    return CodecId.RAW, encode(column)  # type: ignore[arg-type]
