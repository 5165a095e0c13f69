"""The unit of timestamps: the largest of s, ms, us and ns that divides all of a block. Pure."""

from typing import Final

import numpy as np

from common.codec import kernels
from common.errors import CodecError
from common.points import Times

UNITS_NS: Final = (1, 1_000, 1_000_000, 1_000_000_000)


def divide(times: Times) -> tuple[int, Times]:
    """The number of the unit that divides all times, 0 to 3, and the times in that unit, a new array."""
    divided = np.empty(len(times), np.int64)
    return kernels.divide_times(times, divided), divided


def unit_of(data: bytes | memoryview, what: str) -> int:
    """The nanoseconds of the unit that a block's first byte names. Raises CodecError when it names none."""
    if not data or data[0] >= len(UNITS_NS):
        raise CodecError(f"{what}: got unit {data[0] if data else 'missing'}, want 0 to {len(UNITS_NS) - 1}")
    return UNITS_NS[data[0]]
