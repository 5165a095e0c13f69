"""Grid blocks: timestamps of a clock that ticks regularly and is read with an error. Pure.

The difference of two such timestamps has the noise of both; the distance from the grid has that of one.

    head              bits 0 and 1: unit (0 = 1 ns, 1 = 1 us, 2 = 1 ms, 3 = 1 s); bit 2: fraction; bit 3: sparse
                      skips; bit 4: dense skips; others 0
    signed varint     first, in the unit, as all that follows
    varint            step
    if bit 2          varint fraction, of 2^16
    if bit 3          varint, the bytes of what follows; for each skip that is not 0 a varint, how many items lie
                      between it and the one before, and a signed varint, its size
    if bit 4          varint, the bytes of what follows; a column of integers (integers.py), skips of all items
    the rest          a column of integers, the distances

The first timestamp has the index 0, and each further one 1 + its skip more than the one before. A timestamp is first +
index * step + ((index * fraction) >> 16) + its distance, all modulo 2^64; the whole times the unit.

Encoder: the step is estimated by its median and mean, then by least squares, and is a whole number if that fits
as well; skips are dense if there are 16 at least that are not 0, and more than one in 64 items.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from common.codec import grid_kernels as kernels
from common.codec import integers, varint
from common.codec.units import UNITS_NS, divide
from common.errors import CodecError
from common.points import Times

LEAST_ITEMS: Final = 8  # less than that cannot tell a grid
_WHAT: Final = "grid timestamps"
_UNIT, _FRACTION, _SPARSE, _DENSE = 0x03, 0x04, 0x08, 0x10
_KNOWN: Final = _UNIT | _FRACTION | _SPARSE | _DENSE
_MODULUS: Final = 2**64

Integers = npt.NDArray[np.int64]


class Grid:
    """A grid under timestamps: `distances` from it are what most of the block is spent on."""

    def __init__(self, first: int, found: list[int], distances: Integers, skips: Integers) -> None:
        self.distances = distances
        self._first = first
        self._found = found
        self._skips = skips

    @property
    def skips(self) -> int:
        """How many timestamps lie not one step behind the one before."""
        return self._found[kernels.SKIPS]

    def encode(self, unit: int) -> bytes:
        """The block of these timestamps, in a unit of this number."""
        head, fraction = unit, self._found[kernels.FRACTION]
        start = varint.put_signed(self._first) + varint.put(self._found[kernels.STEP])
        if fraction:
            head, start = head | _FRACTION, start + varint.put(fraction)
        if integers.often(self.skips, len(self._skips)):
            head, start = head | _DENSE, start + integers.section(integers.encode(self._skips))
        elif self.skips:
            head, start = head | _SPARSE, start + integers.section(integers.take_out(self._skips, 1, self.skips))
        return bytes((head,)) + start + integers.encode(self.distances)


def find(divided: Integers) -> Grid | None:
    """The grid under timestamps, shape (n,), n >= 1, in their unit; None when there is none."""
    if len(divided) < LEAST_ITEMS:
        return None
    distances, skips = np.empty(len(divided), np.int64), np.empty(len(divided), np.int64)
    found = np.empty(kernels.FINDINGS, np.int64)
    if not kernels.find(divided, distances, skips, found):
        return None
    return Grid(int(divided[0]), found.tolist(), distances, skips)


def encode_times(times: Times) -> bytes:
    """The block of int64 timestamps, shape (n,), n >= 1. Raises CodecError when no grid is found under them."""
    unit, divided = divide(times)
    grid = find(divided)
    if grid is None:
        raise CodecError(f"{len(times)} timestamps without a regular grid, want {LEAST_ITEMS} or more on one")
    return grid.encode(unit)


def decode_times(data: bytes | memoryview, out: Times) -> None:
    """Fill `out` with the timestamps of a block. Raises CodecError when it does not hold them."""
    data = bytes(data)
    if not data or data[0] & ~_KNOWN:
        raise CodecError(f"{_WHAT}: got head {data[:1].hex() or 'missing'}, want flags {_KNOWN:02x}")
    head = data[0]
    first, at = varint.take_signed(data, 1)
    step, at = varint.take(data, at)
    fraction, at = varint.take(data, at) if head & _FRACTION else (0, at)
    skips = None
    if head & (_SPARSE | _DENSE):
        skips, at = _take_skips(data, at, head, len(out))
    integers.decode(data, at, out, _WHAT)
    if skips is None:
        kernels.place_all(first % _MODULUS, step, fraction, out)
    else:
        kernels.place(first % _MODULUS, step, fraction, skips, out)
    integers.multiply(out, UNITS_NS[head & _UNIT], _WHAT)


def _take_skips(data: bytes, at: int, head: int, count: int) -> tuple[Integers, int]:
    skips = np.zeros(count, np.int64)
    if head & _DENSE:
        section, at = integers.take_section(data, at)
        integers.decode(section, 0, skips, _WHAT)
    if head & _SPARSE:
        section, at = integers.take_section(data, at)
        integers.put_back(section, skips, _WHAT)
    return skips, at
