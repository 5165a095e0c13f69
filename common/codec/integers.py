"""Columns of integers, the part that most codecs have in common: any int64, in any order. Pure.

A column is one byte, the head, then varints, then perhaps a chunk (chunk.py):

    head                 bits 0 and 1: form; bit 2: a step follows; bit 3: packed; bit 7: as chunk.py says; others 0
    signed varint        base
    form 0               signed varint difference, unless the column has one item: base, base + difference, ...
    form 1, 2, 3         varint step if bit 2 says so, else the step is 1; then a chunk of 16, 32 or 64 bit unsigned
                         numbers: items are base + step * number, modulo 2^64

A packed column has in the place of the form its order, 0 to 2, less than it has items; bit 7 is 0:

    signed varint        first item, if the order is 1 or 2
    signed varint        first difference, if the order is 2
    signed varint        base
    varint               step, if bit 2 says so; else it is 1
    1 byte               width, 0 to 64
    the rest             numbers of so many bits, the most significant first, one behind the other; the last byte is
                         filled with zero bits: base + step * number is an item, a difference, or a difference of
                         differences, by the order, modulo 2^64

Encoder: form 0 if all differences are equal, else the shortest numbers that hold what remains when the least item is
taken off and the rest divided by its greatest common divisor; but 32 bits at least for more than 2048 items, because
packing those takes a quarter less time and hardly more room. They are packed by themselves, as differences, or as
differences of differences: whatever a sample says takes the fewest bits. Up to 2048 items are packed without a chunk
if that is shorter, which it is for few or uniform ones: of the order that makes them narrowest, base the least.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from common.codec import chunk, small_kernels, varint
from common.codec import integer_kernels as kernels
from common.errors import CodecError

Integers = npt.NDArray[np.int64]

_FORM: Final = 0x03
_STEP: Final = 0x04
_PACKED: Final = small_kernels.PACKED
_KNOWN: Final = _FORM | _STEP | _PACKED | chunk.VERSIONED
_MODULUS: Final = 2**64
_LONG: Final = 2048  # items: on 720 of real data 16 bits saved 6 percent over 32, on 8192 of a walk 0.5
_SHORT: Final = 24  # bytes; a chunk alone takes half of that
_FEW: Final = 16
_RARE: Final = 64
_WIDE: Final = 3  # the form whose numbers are as wide as the items
_TYPES: Final = {1: np.uint16, 2: np.uint32, 3: np.uint64}
_NARROW: Final = {1: kernels.narrow_16, 2: kernels.narrow_32, 3: kernels.narrow_64}
_WIDEN: Final = {2: kernels.widen_16, 4: kernels.widen_32, 8: kernels.widen_64}


# A column before its arithmetic. base, step, numbers: items are base + step * number, modulo 2^64, of numbers
# 0, 1, 2, ... where they are None. (No class: making one takes longer than reading a small column.)
Column = tuple[int, int, npt.NDArray[Any] | None]


def encode(numbers: Integers) -> bytes:
    """The bytes of a column of at least one item."""
    found = survey(numbers)
    if found[kernels.LINEAR]:
        return _encode_linear(numbers)
    if len(numbers) > _LONG:
        return _encode_chunk(numbers, found)
    packed = _encode_packed(numbers)
    return packed if len(packed) <= _SHORT else min(packed, _encode_chunk(numbers, found), key=len)


def survey(numbers: Integers) -> list[int]:
    """What a column looks like: see integer_kernels.survey."""
    found = np.empty(kernels.FINDINGS, np.int64)
    kernels.survey(numbers, found)
    items: list[int] = found.tolist()
    return items


def _encode_packed(numbers: Integers) -> bytes:
    out = np.empty(small_kernels.ITEM_BYTES * len(numbers) + small_kernels.HEAD_BYTES, np.uint8)
    return out[: small_kernels.encode_column(numbers.copy(), out)].tobytes()


def _encode_chunk(numbers: Integers, found: list[int]) -> bytes:
    low, high = found[kernels.LOW], found[kernels.HIGH]
    step = int(kernels.common_step(numbers))
    span = (high - low) // step
    form = 1 if span < 1 << 16 and len(numbers) <= _LONG else 2 if span < 1 << 32 else 3
    narrow = np.empty(len(numbers), _TYPES[form])
    _NARROW[form](numbers, low % _MODULUS, step, narrow)
    costs = found[kernels.COST_0 : kernels.COST_2 + 1]
    packed = chunk.pack(narrow, chunk.CLASSIC[costs.index(min(costs))])
    if step == 1:
        return bytes((form | chunk.HEAD,)) + varint.put_signed(low) + packed
    return bytes((form | _STEP | chunk.HEAD,)) + varint.put_signed(low) + varint.put(step) + packed


def _encode_linear(numbers: Integers) -> bytes:
    first = int(numbers[0])
    if len(numbers) == 1:
        return b"\0" + varint.put_signed(first)
    difference = (int(numbers[1]) - first - varint.INT64_MIN) % _MODULUS + varint.INT64_MIN
    return b"\0" + varint.put_signed(first) + varint.put_signed(difference)


def decode(data: bytes, at: int, out: Integers, what: str) -> None:
    """Fill `out` from the column that reaches from an offset to the end. Raises CodecError when it does not."""
    base, step, numbers = read(data, at, out, what)
    if numbers is None:
        kernels.fill(base, step, out)
    else:
        _WIDEN[numbers.itemsize](numbers, base, step, out)


def read(data: bytes, at: int, room: npt.NDArray[Any], what: str) -> Column:
    """The column that reaches from an offset to the end, of as many items as there is room for.

    room: of 64 bits an item; numbers may be put there, and what is made of them may go to the same place. Raises
    CodecError when the bytes are not such a column.
    """
    if at >= len(data) or data[at] & ~_KNOWN:
        raise CodecError(f"{what}: got head {data[at : at + 1].hex() or 'missing'} of a column, want a form and flags")
    if data[at] & _PACKED:
        return _read_packed(data, at, room, what)
    head, form = data[at], data[at] & _FORM
    base, at = varint.take_signed(data, at + 1)
    if not form:
        return _read_linear(data, at, base, len(room), what)
    step, at = varint.take(data, at) if head & _STEP else (1, at)
    numbers = room.view(np.uint64) if form == _WIDE else np.empty(len(room), _TYPES[form])
    chunk.unpack(data, at, head, numbers, what)
    return base % _MODULUS, step, numbers


def _read_packed(data: bytes, at: int, room: npt.NDArray[Any], what: str) -> Column:
    padded = np.frombuffer(data + bytes(small_kernels.SLACK_BYTES), np.uint8)
    if not small_kernels.decode_column(padded, at, len(data), room.view(np.int64)):
        raise CodecError(f"{what}: {len(data) - at} bytes, want a packed column of {len(room)} items")
    return 0, 1, room.view(np.uint64)


def _read_linear(data: bytes, at: int, base: int, count: int, what: str) -> Column:
    difference, at = varint.take_signed(data, at) if count > 1 else (0, at)
    if at != len(data):
        raise CodecError(f"{what}: {count} items end at byte {at} of {len(data)}, want all of them")
    return base % _MODULUS, difference % _MODULUS, None


def often(count: int, items: int) -> bool:
    """Whether so many of a column's items are worth a column of their own, rather than places and sizes."""
    return count >= _FEW and count * _RARE > items


def take_out(numbers: Integers, limit: int, count: int) -> bytes:
    """Set the items whose size is not below a limit, so many at most, to 0; their places and sizes.

    The bytes: for each a varint, how many items lie between it and the one before, and a signed varint, its size.
    """
    room = np.empty(count * kernels.SPARSE_BYTES, np.uint8)
    return room[: kernels.take_out(numbers, limit, room)].tobytes()


def put_back(data: bytes, numbers: Integers, what: str) -> None:
    """Add what take_out() took. Raises CodecError when the bytes are not that, or for more items."""
    if data and not kernels.put_back(np.frombuffer(data, np.uint8), numbers):
        raise CodecError(f"{what}: places in {len(data)} bytes end behind them, or behind item {len(numbers)}")


def section(data: bytes) -> bytes:
    """Bytes behind their length."""
    return varint.put(len(data)) + data


def take_section(data: bytes, at: int) -> tuple[bytes, int]:
    """The bytes that section() put at an offset, and the offset behind them: a missing rest is missed later on."""
    length, at = varint.take(data, at)
    return data[at : at + length], at + length


def multiply(numbers: Integers, unit: int, what: str) -> None:
    """Multiply all items by a unit, in place. Raises CodecError when a product leaves int64."""
    if not kernels.multiply(numbers, unit):
        raise CodecError(f"{what}: got {len(numbers)} in units of {unit} ns, want them inside int64")
