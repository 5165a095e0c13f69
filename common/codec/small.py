"""Small blocks, many at a time: the same bytes as of any other block, without Python for each. Pure.

A block of up to MAX_ROWS rows whose timestamps are CONSTANT or a packed column (PCO), and whose values are CONSTANT or
DECIMAL without exceptions, linear or packed, is written and read by one call of a kernel for all of them. Whatever
else a block is, it is left to the functions for single blocks, and nothing about its bytes says which way they went.
"""

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from common.codec import small_kernels as kernels
from common.errors import CodecError
from common.points import Times, Values

Integers = npt.NDArray[np.int64]

MAX_ROWS: Final = kernels.MAX_ROWS
FOREIGN: Final = kernels.FOREIGN


class Packed(NamedTuple):
    """Blocks one behind the other, timestamps and values of each.

    By block, int64[n]: codecs, FOREIGN of those that were left out, and lengths in bytes, 0 of those.
    """

    data: bytes
    times_codec: Integers
    times_bytes: Integers
    values_codec: Integers
    values_bytes: Integers


def left_out(blocks: int) -> Packed:
    """Of so many blocks none."""
    codecs, nothing = np.full(blocks, FOREIGN), np.zeros(blocks, np.int64)
    return Packed(b"", codecs, nothing, codecs, nothing)


def encode(times: Times, values: Values, ends: Integers) -> Packed:
    """The blocks of which block b holds the rows ends[b - 1] (0 before the first) to ends[b]: contiguous arrays.

    Raises CodecError for ends that do not ascend to the end of rows.
    """
    counts = np.diff(ends, prepend=0)
    if len(times) != len(values) or (counts < 1).any() or int(ends[-1] if len(ends) else 0) != len(times):
        raise CodecError(f"{len(ends)} blocks of {len(times)} timestamps and {len(values)} values, want ends of rows")
    small = counts[counts <= MAX_ROWS]
    if not len(small):
        return left_out(len(ends))
    out = np.empty(len(small) * 2 * kernels.HEAD_BYTES + int(small.sum()) * 2 * kernels.ITEM_BYTES, np.uint8)
    found = np.empty((4, len(ends)), np.int64)
    used = kernels.encode(times, values, np.ascontiguousarray(ends), out, found)
    return Packed(out[:used].tobytes(), *found)


class Places(NamedTuple):
    """Where blocks lie: by block, int64[n], the offset in the bytes, lengths, codecs, its first row and how many."""

    offsets: Integers
    times_bytes: Integers
    values_bytes: Integers
    times_codec: Integers
    values_codec: Integers
    rows: Integers
    counts: Integers


def decode(data: bytes, places: Places, times: Times, values: Values) -> npt.NDArray[np.bool_]:
    """Decode blocks into their rows of contiguous arrays; bool[n], which were: others are damaged, or not such blocks.

    The rows of others are left as they were, or half filled. Raises CodecError for blocks or rows that lie elsewhere.
    """
    ends = places.offsets + places.times_bytes + places.values_bytes
    least = min(int(column.min(initial=0)) for column in places)
    if least < 0 or int(ends.max(initial=0)) > len(data):
        raise CodecError(f"{len(ends)} blocks from {least} to {ends.max(initial=0)}, want them in {len(data)} bytes")
    last_row = int((places.rows + places.counts).max(initial=0))
    if last_row > min(len(times), len(values)):
        raise CodecError(f"blocks of rows up to {last_row}, want {min(len(times), len(values))} at most")
    done = np.empty(len(ends), np.bool_)
    blocks = np.ascontiguousarray(np.stack(places[:5], 1)).reshape(-1)
    padded = np.frombuffer(data + bytes(kernels.SLACK_BYTES), np.uint8)
    kernels.decode(padded, blocks, *map(np.ascontiguousarray, places[5:]), times, values, done)
    return done
