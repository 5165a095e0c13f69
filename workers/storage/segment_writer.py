"""Writes a segment, block by block, in the memory that one page of its index takes.

Owns a file that has its name only when it is finished. The same calls make the same bytes: no clock, no order of
arrival. Belongs to one thread; kernels, codecs and the disk leave the GIL to others.
"""

import itertools
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from common import codec, files
from common.codec import Policy
from workers.storage import columns, kernels, pages, segment, windows
from workers.storage.pages import PAGE_BLOCKS
from workers.storage.segment import Header, Segment
from workers.storage.windows import Windows

Times = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]

_WRITE_BYTES: Final = 1 << 20  # blocks are joined to pieces of about this size, to spare system calls
_KEY_BYTES: Final = 1 << 18  # keys in a chunk, unless a single one is longer
_ZLIB_LEVEL: Final = 9


class SegmentWriter:
    """Writes to `path`, durable and there whole after `finish`, and not at all before.

    points: so far; length: bytes so far, of the whole file after `finish`. Methods raise OSError.
    """

    def __init__(self, path: Path, header: Header, policy: Policy, disk: files.Disk = files.DISK) -> None:
        self.points = 0
        self.length = 0
        self._policy = policy
        self._file = files.NewFile(path, disk)
        self._pending: list[bytes | memoryview] = []
        self._pending_bytes = 0
        self._page = _Page()
        self._pages: list[tuple[int, ...]] = []
        self._table = _Table()
        self._codecs: dict[tuple[int, int], list[int]] = {}  # (part, codec): blocks, points, bytes
        self._put(header.pack())

    def add(
        self,
        keys: Sequence[bytes],
        mixed: npt.NDArray[np.uint64],
        times: Times,
        values: Values,
        ends: npt.NDArray[np.int64],
        owners: npt.NDArray[np.uint32],
    ) -> None:
        """Add blocks of settled rows: block b holds the rows ends[b - 1] (0 before the first) to ends[b].

        keys, mixed: series keys and their mixed hashes (kernels.mix_hashes); owners: the place in keys of each block's
        series, ascending. Keys ascend by (hash, key) over all calls; the first of a call may be the last of
        the call before. Blocks of a series are in order of time, and of at most pages.BLOCK_ROWS rows.
        """
        begin = 0
        while begin < len(ends):
            end = min(len(ends), begin + PAGE_BLOCKS - self._page.blocks)
            first_row = int(ends[begin - 1]) if begin else 0
            rows = slice(first_row, int(ends[end - 1]))
            part = owners[begin:end]
            self._add_part(mixed[part], times[rows], values[rows], ends[begin:end] - first_row)
            self._add_series(keys, part)
            self._end_page_if_full()
            begin = end

    def copy_block(self, key: bytes, source: Segment, block: int) -> None:
        """Add a block of another segment as it is: bytes, summary and windows. Order of keys as in `add`.

        Raises DamagedError when its bytes are not what was written.
        """
        found = source.index(block, block + 1)
        begin, end = self._page.take(found, source.windows(block, block + 1))
        self._put(bytes(source.raw(block)))
        self._count(begin, end)
        self._table.add(key, 1, int(found.t_max[0]))
        self._end_page_if_full()

    def put_blocks(
        self, keys: Sequence[bytes], owners: npt.NDArray[np.int64], blocks: pages.Blocks, with_windows: Windows,
        data: bytes,
    ) -> None:  # fmt: skip
        """Add blocks as they are, which lie in `data` one behind the other. keys, owners: as in `add`."""
        view, begin, at = memoryview(data), 0, 0
        while begin < len(owners):
            end = min(len(owners), begin + PAGE_BLOCKS - self._page.blocks)
            part = blocks.part(begin, end)
            size = int((part.times_bytes + part.values_bytes).sum())
            taken = self._page.take(part, with_windows.part(begin, end))
            self._put(bytes(view[at : at + size]))
            self._count(*taken)
            self._add_series(keys, owners[begin:end])
            self._end_page_if_full()
            begin, at = end, at + size

    def finish(self) -> None:
        """Write what is left and make the file durable. Should that fail, `abort` cleans up."""
        self._end_page()
        entries = []
        for data, entry in self._table.chunks():
            self._put(data)
            entries.append(entry)
        uses = [(*which, 0, *use) for which, use in sorted(self._codecs.items())]
        directory = b"".join([
            np.array(self._pages, segment.PAGE_ENTRY).tobytes(),
            np.array(entries, segment.CHUNK_ENTRY).tobytes(),
            np.array(uses, segment.CODEC_ENTRY).tobytes(),
        ])  # fmt: skip
        blocks = sum(page[0] for page in self._pages)
        self._put(directory)
        self._put(segment.Footer(
            self.points, blocks, self._table.series, len(self._pages), len(entries), len(uses), len(directory),
            files.crc32c(directory),
        ).pack())  # fmt: skip
        self._flush()
        self._file.commit()

    def abort(self) -> None:
        """Remove what was written; nothing after `finish`."""
        self._file.abort()

    def _add_part(
        self, mixed: npt.NDArray[np.uint64], times: Times, values: Values, ends: npt.NDArray[np.int64]
    ) -> None:
        """Summarize and encode blocks that fit into the page."""
        found = pages.room(len(ends))
        ints = np.empty((kernels.OFFSET + 1, len(ends)), np.int64)
        kernels.summarize(times, values, ends, mixed, ints, found.floats)
        found.t_min[:], found.t_max[:] = ints[kernels.T_MIN], ints[kernels.T_MAX]
        found.digests[:] = ints[kernels.BLOCK_DIGEST].view(np.uint64)
        found.counts[:] = np.diff(ends, prepend=0)
        self._encode(times, values, ends, found)
        self._count(*self._page.take(found, windows.of_rows(times, values, ends)))

    def _encode(self, times: Times, values: Values, ends: npt.NDArray[np.int64], found: pages.Blocks) -> None:
        """Encode blocks: small ones all at once, what is left of them one by one."""
        packed = codec.pack_small(times, values, ends, self._policy)
        found.times_bytes[:], found.values_bytes[:] = packed.times_bytes, packed.values_bytes
        found.times_codec[:], found.values_codec[:] = packed.times_codec, packed.values_codec
        stops = np.cumsum(packed.times_bytes + packed.values_bytes)
        data = memoryview(packed.data)
        bounds = itertools.pairwise([0, *stops.tolist()])
        found.crcs[:] = [files.crc32c(data[begin:end]) for begin, end in bounds]
        written = 0
        for block in np.flatnonzero(packed.times_codec == codec.FOREIGN).tolist():
            self._put(data[written : stops[block]])
            written = int(stops[block])
            rows = slice(int(ends[block - 1]) if block else 0, int(ends[block]))
            self._encode_one(times[rows], values[rows], block, found)
        self._put(data[written:])

    def _encode_one(self, times: Times, values: Values, block: int, found: pages.Blocks) -> None:
        found.times_codec[block], packed_times = codec.pack_times(times, self._policy)
        found.values_codec[block], packed_values = codec.pack_values(values, self._policy)
        found.times_bytes[block], found.values_bytes[block] = len(packed_times), len(packed_values)
        data = packed_times + packed_values
        found.crcs[block] = files.crc32c(data)
        self._put(data)

    def _add_series(self, keys: Sequence[bytes], owners: npt.NDArray[np.uint32] | npt.NDArray[np.int64]) -> None:
        """Put the series of the blocks last taken into the table."""
        starts = np.flatnonzero(np.diff(owners.astype(np.int64), prepend=-1))
        end = self._page.blocks
        last_times = np.maximum.reduceat(self._page.room.t_max[end - len(owners) : end], starts)
        counts = np.diff(starts, append=len(owners))
        for owner, count, last in zip(owners[starts].tolist(), counts.tolist(), last_times.tolist(), strict=True):
            self._table.add(keys[owner], count, last)

    def _count(self, begin: int, end: int) -> None:
        """Count points, and how much is in which codec, of blocks of the page."""
        room = self._page.room.part(begin, end)
        self.points += int(room.counts.sum())
        parts = [(room.times_codec, room.times_bytes), (room.values_codec, room.values_bytes)]
        for part, (codecs, sizes) in enumerate(parts):
            blocks = np.bincount(codecs)
            points, size = np.bincount(codecs, room.counts), np.bincount(codecs, sizes)  # whole numbers, as floats
            for codec_id in np.flatnonzero(blocks).tolist():
                use = self._codecs.setdefault((part, codec_id), [0, 0, 0])
                for at, more in enumerate((blocks[codec_id], points[codec_id], size[codec_id])):
                    use[at] += int(more)

    def _end_page_if_full(self) -> None:
        if self._page.blocks == PAGE_BLOCKS:
            self._end_page()

    def _end_page(self) -> None:
        if not self._page.blocks:
            return
        blocks = self._page.room.part(0, self._page.blocks)
        block_bytes = int((blocks.times_bytes + blocks.values_bytes).sum())
        index = pages.pack(blocks)
        packed = windows.pack(windows.joined(self._page.windows), blocks.t_min, block_bytes)
        self._pages.append((
            self._page.blocks, int(blocks.counts.sum()), block_bytes, len(index), len(packed), files.crc32c(index),
            files.crc32c(packed), int(blocks.t_min.min()), int(blocks.t_max.max()),
        ))  # fmt: skip
        self._put(index)
        self._put(packed)
        self._page.clear()

    def _put(self, data: bytes | memoryview) -> None:
        self._pending.append(data)
        self._pending_bytes += len(data)
        self.length += len(data)
        if self._pending_bytes >= _WRITE_BYTES:
            self._flush()

    def _flush(self) -> None:
        self._file.write(b"".join(self._pending))
        self._pending, self._pending_bytes = [], 0


class _Page:
    """The page being filled. room: its columns; blocks: how many are there; windows: of the blocks, in parts."""

    def __init__(self) -> None:
        self.room = pages.room(PAGE_BLOCKS)
        self.blocks = 0
        self.windows: list[Windows] = []

    def take(self, found: pages.Blocks, with_windows: Windows) -> tuple[int, int]:
        """Add blocks; their begin and end here."""
        begin, end = self.blocks, self.blocks + len(found.counts)
        into: Any
        for into, column in zip(self.room.part(begin, end), found, strict=True):
            into[:] = column
        self.windows.append(with_windows)
        self.blocks = end
        return begin, end

    def clear(self) -> None:
        self.blocks = 0
        self.windows = []


class _Table:
    """The table of series, packed chunk by chunk."""

    def __init__(self) -> None:
        self.series = 0
        self._chunks: list[tuple[bytes, tuple[int, ...]]] = []
        self._begin()

    def add(self, key: bytes, blocks: int, last: int) -> None:
        """Take blocks of a series in, of which the greatest time is `last`."""
        if self._keys and self._keys[-1] == key:
            self._blocks[-1] += blocks
            self._last_times[-1] = max(self._last_times[-1], last)
            return
        if len(self._keys) == segment.CHUNK_SERIES or self._key_bytes + len(key) > _KEY_BYTES:
            self._end()
        self._keys.append(key)
        self._blocks.append(blocks)
        self._last_times.append(last)
        self._key_bytes += len(key)
        self.series += 1

    def chunks(self) -> list[tuple[bytes, tuple[int, ...]]]:
        """The bytes of each chunk, and its entry in the directory."""
        self._end()
        return self._chunks

    def _begin(self) -> None:
        self._keys: list[bytes] = []
        self._blocks: list[int] = []
        self._last_times: list[int] = []
        self._key_bytes = 0

    def _end(self) -> None:
        if not self._keys:
            return
        joined = b"".join(self._keys)
        lengths = [len(key) for key in self._keys]
        parts = [columns.pack_integers(np.array(each, np.int64)) for each in (self._blocks, self._last_times, lengths)]
        packed = zlib.compress(joined, _ZLIB_LEVEL)
        data = b"".join([*parts, packed if len(packed) < len(joined) else joined])
        self._chunks.append((data, (len(self._keys), len(data), len(joined), files.crc32c(data))))
        self._begin()
