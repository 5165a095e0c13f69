"""Columns of integers, the part that most codecs have in common: any int64, in any order. Pure.

A column is one byte, the head, then varints, then perhaps a chunk (chunk.py):

    head                 bits 0 and 1: form; bit 2: a step follows; bit 7: as chunk.py says; others 0
    signed varint        base
    form 0               signed varint difference, unless the column has one item: base, base + difference, ...
    form 1, 2, 3         varint step if bit 2 says so, else the step is 1; then a chunk of 16, 32 or 64 bit unsigned
                         numbers: items are base + step * number, modulo 2^64

Encoder: form 0 if all differences are equal, else the shortest numbers that hold what remains when the least item is
taken off and the rest divided by its greatest common divisor. They are packed by themselves, as differences, or as
differences of differences: whatever a sample says takes the fewest bits.
"""

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from common.codec import chunk, varint
from common.codec import integer_kernels as kernels
from common.errors import CodecError

Integers = npt.NDArray[np.int64]

_FORM: Final = 0x03
_STEP: Final = 0x04
_KNOWN: Final = _FORM | _STEP | chunk.VERSIONED
_MODULUS: Final = 2**64


class _Width(NamedTuple):
    """How numbers of one length are made and read."""

    dtype: Any
    narrow: Any
    widen: Any


_WIDTHS: Final = {
    1: _Width(np.uint16, kernels.narrow_16, kernels.widen_16),
    2: _Width(np.uint32, kernels.narrow_32, kernels.widen_32),
    3: _Width(np.uint64, kernels.narrow_64, kernels.widen_64),
}


def survey(numbers: Integers) -> list[int]:
    """What a column looks like: see integer_kernels.survey."""
    found = np.empty(kernels.FINDINGS, np.int64)
    kernels.survey(numbers, found)
    return found.tolist()


def encode(numbers: Integers, found: list[int]) -> bytes:
    """The bytes of a column of at least one item, of which survey() found this."""
    if found[kernels.LINEAR]:
        return _encode_linear(numbers)
    low, high = found[kernels.LOW], found[kernels.HIGH]
    step = int(kernels.common_step(numbers))
    span = (high - low) // step
    form = 1 if span < 1 << 16 else 2 if span < 1 << 32 else 3
    width = _WIDTHS[form]
    narrow = np.empty(len(numbers), width.dtype)
    width.narrow(numbers, low % _MODULUS, step, narrow)
    costs = found[kernels.COST_0 : kernels.COST_2 + 1]
    packed = chunk.pack(narrow, chunk.CLASSIC[costs.index(min(costs))])
    if step == 1:
        return bytes((form | chunk.HEAD,)) + varint.put_signed(low) + packed
    return bytes((form | _STEP | chunk.HEAD,)) + varint.put_signed(low) + varint.put(step) + packed


def _encode_linear(numbers: Integers) -> bytes:
    first = int(numbers[0])
    if len(numbers) == 1:
        return b"\0" + varint.put_signed(first)
    difference = (int(numbers[1]) - first + varint.INT64_MAX + 1) % _MODULUS + varint.INT64_MIN
    return b"\0" + varint.put_signed(first) + varint.put_signed(difference)


def decode(data: bytes, at: int, out: Integers, what: str) -> None:
    """Fill `out` from the column that reaches from an offset to the end. Raises CodecError when it does not."""
    if at >= len(data) or data[at] & ~_KNOWN:
        raise CodecError(f"{what}: got head {data[at : at + 1].hex() or 'missing'} of a column, want a form and flags")
    head = data[at]
    base, at = varint.take_signed(data, at + 1)
    if not head & _FORM:
        _decode_linear(data, at, base, out, what)
        return
    step = 1
    if head & _STEP:
        step, at = varint.take(data, at)
    width = _WIDTHS[head & _FORM]
    narrow = out.view(np.uint64) if width.dtype is np.uint64 else np.empty(len(out), width.dtype)
    chunk.unpack(data, at, head, narrow, what)
    width.widen(narrow, base % _MODULUS, step, out)


def _decode_linear(data: bytes, at: int, base: int, out: Integers, what: str) -> None:
    difference = 0
    if len(out) > 1:
        difference, at = varint.take_signed(data, at)
    if at != len(data):
        raise CodecError(f"{what}: {len(out)} items end at byte {at} of {len(data)}, want all of them")
    kernels.fill(base, difference, out)
