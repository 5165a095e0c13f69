"""Varints: whole numbers in as few bytes as they need, for the heads of blocks.

Seven bits a byte, the lowest first; every byte but the last has its top bit set (LEB128). A signed number goes as
2n, or as -2n - 1 when it is negative (zigzag), so small ones of either sign are short. Pure.
"""

from typing import Final

from common.errors import CodecError

MAX_BYTES: Final = 10  # 64 bits
INT64_MIN: Final = -(2**63)
INT64_MAX: Final = 2**63 - 1


def put(number: int) -> bytes:
    """The bytes of a number from 0 to 2^64 - 1."""
    if number < 0x80:
        return bytes((number,))
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def put_signed(number: int) -> bytes:
    """The bytes of a number from -2^63 to 2^63 - 1."""
    return put(number << 1 if number >= 0 else ~(number << 1))


def take(data: bytes, at: int) -> tuple[int, int]:
    """The number at an offset, and the offset behind it. Raises CodecError when there is none of at most 64 bits."""
    number = shift = 0
    for byte in data[at : at + MAX_BYTES]:
        number |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            if number >> 64:
                break
            return number, at
        shift += 7
    raise CodecError(f"varint that ends at byte {at} of {len(data)}: want a number of at most 64 bits")


def take_signed(data: bytes, at: int) -> tuple[int, int]:
    """The signed number at an offset, and the offset behind it. Errors as in take."""
    number, at = take(data, at)
    return (~(number >> 1) if number & 1 else number >> 1), at
