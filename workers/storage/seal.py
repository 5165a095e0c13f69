"""Sealing: a frozen head becomes one segment file.

Owns nothing that lasts: packs and writes. The same points give the same bytes: no clock, no order of arrival.
Runs in the sealer's thread; the kernels and the disk leave the GIL to others.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from common import codec, files
from workers.storage import kernels, segment
from workers.storage.head import Grouped

_WRITE_BYTES: Final = 1 << 20  # blocks are joined to pieces of about this size, to spare system calls
_CODEC: Final = codec.CodecId.GORILLA


def write_segment(
    path: Path,
    header: segment.Header,
    grouped: Grouped,
    keys: Sequence[bytes],
    frontiers: npt.NDArray[np.int64],
    disk: files.Disk = files.DISK,
) -> None:
    """Write a segment so that it is there whole or not at all. Raises OSError.

    keys, frontiers: by series as in grouped; a frontier is the greatest time of its series stored before.
    """
    grouped, keys, frontiers = _by_key(grouped, keys, frontiers)
    ends = np.empty(len(grouped.times) // segment.BLOCK_ROWS + 2 * len(keys), np.int64)
    owners = np.empty(len(ends), np.uint32)
    blocks = kernels.cut(grouped.times, grouped.offsets, frontiers, segment.BLOCK_ROWS, ends, owners)
    files.replace_file(path, _chunks(header.pack(), grouped, keys, ends[:blocks], owners[:blocks]), disk=disk)


def _by_key(
    grouped: Grouped, keys: Sequence[bytes], frontiers: npt.NDArray[np.int64]
) -> tuple[Grouped, Sequence[bytes], npt.NDArray[np.int64]]:
    """Series of equal hash brought into the order of their keys; almost never is there anything to do."""
    hashes = grouped.hashes
    if not len(hashes) or (hashes[1:] != hashes[:-1]).all():
        return grouped, keys, frontiers
    order = sorted(range(len(keys)), key=lambda at: (int(hashes[at]), keys[at]))
    spans = [slice(int(grouped.offsets[at]), int(grouped.offsets[at + 1])) for at in order]
    offsets = np.zeros_like(grouped.offsets)
    np.cumsum([span.stop - span.start for span in spans], out=offsets[1:])
    times = np.concatenate([grouped.times[span] for span in spans])
    values = np.concatenate([grouped.values[span] for span in spans])
    moved = Grouped(grouped.ids[order], hashes[order], grouped.mixed[order], offsets, times, values)
    return moved, [keys[at] for at in order], frontiers[order]


def _chunks(
    header: bytes, grouped: Grouped, keys: Sequence[bytes], ends: npt.NDArray[np.int64], owners: npt.NDArray[np.uint32]
) -> list[bytes]:
    """The whole file, as pieces to be written one after another."""
    ints = np.zeros((segment.INT_ROWS, len(ends)), np.int64)
    floats = np.zeros((kernels.BLOCK_M2 + 1, len(ends)), np.float64)
    kernels.summarize(grouped.times, grouped.values, ends, grouped.mixed[owners], ints, floats)
    words = np.zeros((segment.WORD_ROWS, len(ends)), np.uint32)
    words[segment.SERIES] = owners
    words[segment.COUNT] = np.diff(ends, prepend=0)
    pieces, length = _encode_blocks(grouped, ends, len(header), ints, words)
    first_block = np.searchsorted(owners, np.arange(len(keys) + 1)).astype(np.uint32)
    codecs = np.full((segment.CODEC_ROWS, len(ends)), int(_CODEC), np.uint8)
    arrays: list[npt.NDArray[Any]] = [ints, floats[: segment.FLOAT_ROWS], grouped.hashes, words, first_block, _key_offsets(keys), codecs]
    gap = bytes(segment.padding(length))
    index = _pack_index(arrays, keys)
    footer = segment.Footer(
        length + len(gap), len(index), len(grouped.times), len(ends), len(keys), files.crc32c(index)
    )
    return [header, *pieces, gap, index, footer.pack()]


def _encode_blocks(
    grouped: Grouped,
    ends: npt.NDArray[np.int64],
    offset: int,
    ints: npt.NDArray[np.int64],
    words: npt.NDArray[np.uint32],
) -> tuple[list[bytes], int]:
    """The blocks' bytes and where they end; offsets, lengths and CRCs go into the index."""
    pieces: list[bytes] = []
    pending: list[bytes] = []
    pending_bytes = 0
    where = np.empty((4, len(ends)), np.int64)  # offset, length of times and of values, CRC
    begin = 0
    for block, end in enumerate(ends.tolist()):
        times = codec.encode_times(grouped.times[begin:end], _CODEC)
        values = codec.encode_values(grouped.values[begin:end], _CODEC)
        where[:, block] = offset, len(times), len(values), files.crc32c(values, files.crc32c(times))
        offset += len(times) + len(values)
        pending += (times, values)
        pending_bytes += len(times) + len(values)
        if pending_bytes > _WRITE_BYTES:
            pieces.append(b"".join(pending))
            pending, pending_bytes = [], 0
        begin = end
    ints[kernels.OFFSET] = where[0]
    words[[segment.TIMES_BYTES, segment.VALUES_BYTES, segment.CRC]] = where[1:]
    return [*pieces, b"".join(pending)], offset


def _key_offsets(keys: Sequence[bytes]) -> npt.NDArray[np.uint32]:
    offsets = np.zeros(len(keys) + 1, np.uint32)
    np.cumsum([len(key) for key in keys], out=offsets[1:])
    return offsets


def _pack_index(arrays: Sequence[npt.NDArray[Any]], keys: Sequence[bytes]) -> bytes:
    parts: list[bytes] = []
    for array in arrays:
        data = array.tobytes()
        parts += (data, bytes(segment.padding(len(data))))
    joined = b"".join(keys)
    return b"".join([*parts, joined, bytes(segment.padding(len(joined)))])
