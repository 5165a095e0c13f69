"""Pages of a segment's index: the summaries of up to 1024 blocks, as packed columns.

Owns how a page is packed (docs/file-formats.md); where pages lie and their CRCs is the segment's business. Pure; any
thread.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from workers.storage import columns, kernels
from workers.storage.layout import DamagedError

PAGE_BLOCKS: Final = 1024  # unpacked in less than half a millisecond, and packed far better than each by itself
BLOCK_ROWS: Final = 8192  # decoding one takes about a tenth of a millisecond, its summary is 1/100 of its points

_MAX_BLOCK_BYTES: Final = 1 << 20  # of timestamps, or of values; raw takes 64 KiB, so more is damage


class Blocks(NamedTuple):
    """Summaries of blocks and where they lie, by block.

    t_min, t_max: ns; counts: points; floats: float64[7, n], rows kernels.SUM_HI to BLOCK_M2; digests: uint64;
    times_bytes, values_bytes: lengths of the encoded parts; offsets: of the block in the file (all int64[n]); crcs:
    uint32, of both parts; times_codec, values_codec: uint8. Arrays may be views into a page: to be read only, and
    floats need not be contiguous.
    """

    t_min: npt.NDArray[np.int64]
    t_max: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    floats: npt.NDArray[np.float64]
    digests: npt.NDArray[np.uint64]
    times_bytes: npt.NDArray[np.int64]
    values_bytes: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    crcs: npt.NDArray[np.uint32]
    times_codec: npt.NDArray[np.uint8]
    values_codec: npt.NDArray[np.uint8]

    def part(self, begin: int, end: int) -> "Blocks":
        """The blocks begin to end: views."""
        inside = slice(begin, end)
        return Blocks(
            self.t_min[inside], self.t_max[inside], self.counts[inside], self.floats[:, inside], self.digests[inside],
            self.times_bytes[inside], self.values_bytes[inside], self.offsets[inside], self.crcs[inside],
            self.times_codec[inside], self.values_codec[inside],
        )  # fmt: skip


def room(blocks: int) -> Blocks:
    """Arrays for so many blocks, to be filled."""

    def empty(dtype: Any) -> Any:
        return np.empty(blocks, dtype)

    return Blocks(
        empty(np.int64), empty(np.int64), empty(np.int64), np.empty((kernels.BLOCK_M2 + 1, blocks)), empty(np.uint64),
        empty(np.int64), empty(np.int64), empty(np.int64), empty(np.uint32), empty(np.uint8), empty(np.uint8),
    )  # fmt: skip


def joined(parts: Sequence[Blocks]) -> Blocks:
    """Blocks of several pages, one behind the other."""
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return room(0)
    return Blocks(*(np.concatenate(arrays, axis=-1) for arrays in zip(*parts, strict=True)))


def pack(blocks: Blocks) -> bytes:
    """The bytes of a page; offsets are left out."""
    integers = [
        blocks.t_min,
        blocks.t_max - blocks.t_min,
        blocks.counts,
        blocks.times_bytes,
        blocks.values_bytes,
        blocks.times_codec.astype(np.int64) + 256 * blocks.values_codec.astype(np.int64),
    ]
    parts = [blocks.digests.astype("<u8").tobytes(), blocks.crcs.astype("<u4").tobytes()]
    parts += map(columns.pack_integers, integers)
    parts += map(columns.pack_values, blocks.floats)
    return b"".join(parts)


def unpack(data: bytes, count: int, begin: int, end: int, where: str) -> Blocks:
    """A page of `count` blocks that lie without gaps from offset begin to end of the file. Raises DamagedError."""
    reader = columns.Reader(data, where)
    digests, crcs = reader.fixed("<u8", count), reader.fixed("<u4", count)
    t_min, span, counts, times_bytes, values_bytes, codecs = [reader.integers(count) for _ in range(6)]
    floats = np.empty((kernels.BLOCK_M2 + 1, count))
    for row in floats:
        row[:] = reader.values(count)
    reader.finish()
    t_max = t_min + span
    _check(t_min, t_max, counts, times_bytes, values_bytes, codecs, where)
    ends = begin + np.cumsum(times_bytes + values_bytes)
    if int(ends[-1]) != end:
        raise DamagedError(f"{where}: blocks end at {ends[-1]}, want {end}")
    offsets = ends - times_bytes - values_bytes
    return Blocks(
        t_min, t_max, counts, floats, digests, times_bytes, values_bytes, offsets, crcs,
        (codecs & 255).astype(np.uint8), (codecs >> 8).astype(np.uint8),
    )  # fmt: skip


def _check(
    t_min: npt.NDArray[np.int64],
    t_max: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
    times_bytes: npt.NDArray[np.int64],
    values_bytes: npt.NDArray[np.int64],
    codecs: npt.NDArray[np.int64],
    where: str,
) -> None:
    """Raises DamagedError for what no page says, so that no number in it asks for much memory."""
    limits = [
        (counts, 1, BLOCK_ROWS, "points in a block"),
        (times_bytes, 0, _MAX_BLOCK_BYTES, "bytes of timestamps"),
        (values_bytes, 0, _MAX_BLOCK_BYTES, "bytes of values"),
        (codecs, 0, 0xFFFF, "codecs of a block"),
    ]
    for items, least, most, what in limits:
        if int(items.min()) < least or int(items.max()) > most:
            raise DamagedError(f"{where}: {what} {items.min()} to {items.max()}, want {least} to {most}")
    if (t_max < t_min).any():
        raise DamagedError(f"{where}: a block that ends before it begins")
