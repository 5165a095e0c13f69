"""The naive oracle of constant, decimal, pco and grid blocks: reads bytes one by one, with whole numbers of any size.

Written from docs/file-formats.md; shares no code with common/codec. What a chunk holds is left to pcodec.
"""

import itertools
import struct
from typing import Any

import numpy as np
from pcodec.wrapped import FileDecompressor

UNITS_NS = [1, 1_000, 1_000_000, 1_000_000_000]
CHUNKS = {1: "u2", 2: "u4", 3: "u8"}
PCODEC_NAMES = {"u2": "u16", "u4": "u32", "u8": "u64", "f4": "f32", "f8": "f64"}
MODULUS = 2**64


class Reader:
    """The bytes of a block, taken from the front."""

    def __init__(self, data: bytes) -> None:
        self.rest = data

    def byte(self) -> int:
        first, self.rest = self.rest[0], self.rest[1:]
        return first

    def varint(self) -> int:
        byte = self.byte()
        return byte if byte < 128 else byte - 128 + 128 * self.varint()

    def signed(self) -> int:
        number = self.varint()
        return -(number + 1) // 2 if number % 2 else number // 2

    def section(self) -> "Reader":
        length = self.varint()
        taken, self.rest = self.rest[:length], self.rest[length:]
        return Reader(taken)


def signed(number: int) -> int:
    """A number modulo 2^64, read as int64."""
    number %= MODULUS
    return number - MODULUS if number >= 2**63 else number


def chunk(reader: Reader, head: int, count: int, dtype: str) -> Any:
    version = b"\x04\x01"
    if head & 0x80:
        version = bytes((reader.byte(), reader.byte()))
    chunks, used = FileDecompressor.new(version)[0].chunk_decompressor(reader.rest, PCODEC_NAMES[dtype])
    out = np.empty(count, dtype)
    _, read = chunks.read_page_into(reader.rest[used:], count, out)
    reader.rest = reader.rest[used + read :]
    return out


def integers(reader: Reader, count: int) -> list[int]:
    """A column of integers."""
    head = reader.byte()
    if head & 8:
        return packed(reader, head, count)
    base = reader.signed()
    if head % 4 == 0:
        difference = reader.signed() if count > 1 else 0
        return [signed(base + i * difference) for i in range(count)]
    step = reader.varint() if head & 4 else 1
    return [signed(base + step * number) for number in chunk(reader, head, count, CHUNKS[head % 4]).tolist()]


def packed(reader: Reader, head: int, count: int) -> list[int]:
    """A packed column, behind its head."""
    order = head % 4
    assert order < 3 and order < count and head < 16
    firsts = [reader.signed() for _ in range(order)]
    base = reader.signed()
    step = reader.varint() if head & 4 else 1
    width = reader.byte()
    bits = "".join(f"{byte:08b}" for byte in reader.rest)
    reader.rest = b""
    used = width * (count - order)
    assert used <= len(bits) < used + 8
    items = [base + step * int("0" + bits[at * width : (at + 1) * width], 2) for at in range(count - order)]
    for first in reversed(firsts):
        items = list(itertools.accumulate(items, initial=first))
    return [signed(item) for item in items]


def sparse(reader: Reader, count: int) -> list[int]:
    """Numbers most of which are 0: the places and sizes of the others."""
    numbers, place = [0] * count, 0
    while reader.rest:
        place += reader.varint()
        numbers[place] = reader.signed()
        place += 1
    return numbers


def constant_times(data: bytes, count: int) -> list[int]:
    reader = Reader(data)
    unit = UNITS_NS[reader.byte()]
    first = reader.signed()
    delta = reader.signed() if count > 1 else 0
    assert not reader.rest
    return [(first + i * delta) * unit for i in range(count)]


def constant_values(data: bytes, count: int) -> list[int]:
    """The 64 bits of each value, as of the functions below."""
    return [struct.unpack("<Q", data)[0]] * count


def pco_times(data: bytes, count: int) -> list[int]:
    reader = Reader(data)
    unit = UNITS_NS[reader.byte()]
    times = [number * unit for number in integers(reader, count)]
    assert not reader.rest
    return times


def pco_values(data: bytes, count: int) -> list[int]:
    reader = Reader(data)
    head = reader.byte()
    values = chunk(reader, head, count, "f4" if head & 1 else "f8")
    assert not reader.rest
    return list(values.astype("f8").view("u8").tolist())


def decimal_values(data: bytes, count: int) -> list[int]:
    reader = Reader(data)
    head = reader.byte()
    digits, single = head % 32, head & 0x20
    few = sparse(reader.section(), count) if head & 0x40 else [0] * count
    all_ = integers(reader.section(), count) if head & 0x80 else [0] * count
    wholes = integers(reader, count)
    assert not reader.rest
    words = []
    for whole, one, other in zip(wholes, few, all_, strict=True):
        value = float(whole) / float(10**digits)
        if single:
            value = struct.unpack("<f", struct.pack("<f", value))[0]
        words.append((word(value) + one + other) % MODULUS)
    return words


def grid_times(data: bytes, count: int) -> list[int]:
    reader = Reader(data)
    head = reader.byte()
    unit, first, step = UNITS_NS[head % 4], reader.signed(), reader.varint()
    fraction = reader.varint() if head & 4 else 0
    few = sparse(reader.section(), count) if head & 8 else [0] * count
    all_ = integers(reader.section(), count) if head & 16 else [0] * count
    distances = integers(reader, count)
    assert not reader.rest
    times, index = [], 0
    for i in range(count):
        index += 1 + few[i] + all_[i] if i else 0
        times.append(signed(first + index * step + (index * fraction % MODULUS >> 16) + distances[i]) * unit)
    return times


def word(value: float) -> int:
    """The bits of a float64."""
    return int(struct.unpack("<Q", struct.pack("<d", value))[0])
