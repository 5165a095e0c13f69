"""Segments: what the immutable files of blocks look like, and the reader of one.

Owns an open file; pages of its index are read when they are asked for, and kept in a cache that all segments of a
store share. Never writes a file (segment_writer.py does). Constant after construction and `bind`, so any thread may
read. Everything read is checked by a CRC first, so what comes out is what was written, or DamagedError.

Files are read by pread, not mapped into memory: a bad sector or a file cut short is an error here, and would be the
end of the process there.

Format (docs/file-formats.md): header; pages, each behind the blocks it describes; chunks of the table of series;
directory; footer. Nothing lies between these, so their lengths say where they are. The header says which WAL files
the rows came from and which segments this one replaces, so that a listing of the directory is the whole truth.
"""

import bisect
import itertools
import os
import struct
import weakref
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from common import codec, files
from common.errors import CodecError, StorageError
from workers.storage import columns, kernels, layout, pages, windows
from workers.storage.layout import DamagedError
from workers.storage.page_cache import PageCache
from workers.storage.pages import BLOCK_ROWS, Blocks
from workers.storage.windows import Windows

__all__ = [
    "BLOCK_ROWS", "VERSION", "Blocks", "CodecUse", "Header", "OldVersionError", "PageCache", "Segment", "Windows",
    "covers", "describe_damage",
]  # fmt: skip

MAGIC: Final = b"MTSG"
VERSION: Final = 2
FOOTER_MAGIC: Final = b"MTSGEND\n"
CHUNK_SERIES: Final = 8192  # series in a chunk of the table; more gain nothing, zlib looks 32 KiB back

_START: Final = struct.Struct("<4sHHI")  # how the preamble begins: magic, version, reserved, length of the header
_HEADER: Final = struct.Struct(f"<{layout.STORE_ID_BYTES}s{layout.STORE_ID_BYTES}sQIIQII")
_FOOTER: Final = struct.Struct("<QIIIIIIIII8s")
FOOTER_BYTES: Final = _FOOTER.size
_FOOTER_CRC_AT: Final = FOOTER_BYTES - 12  # the footer's own CRC covers what lies before it
_NOTE_BYTES: Final = 1 << 20  # read of a damaged file from either end: its header, or its directory
_TAIL_BYTES: Final = 4096  # read at once from the end of a file: footer and directory of all but large segments

PAGE_ENTRY: Final = np.dtype([
    ("blocks", "<u4"), ("points", "<u4"), ("block_bytes", "<u8"), ("index_bytes", "<u4"), ("windows_bytes", "<u4"),
    ("index_crc", "<u4"), ("windows_crc", "<u4"), ("t_min", "<i8"), ("t_max", "<i8"),
])  # fmt: skip
CHUNK_ENTRY: Final = np.dtype([("series", "<u4"), ("bytes", "<u4"), ("key_bytes", "<u4"), ("crc", "<u4")])
CODEC_ENTRY: Final = np.dtype([
    ("part", "u1"), ("codec", "u1"), ("reserved", "<u2"), ("blocks", "<u4"), ("points", "<u8"), ("bytes", "<u8"),
])  # fmt: skip
PARTS: Final = ("times", "values")  # by number in a codec entry

EARLIEST: Final = -(1 << 63)
LATEST: Final = (1 << 63) - 1

_FIRST_ROW: Final = np.zeros(1, np.int64)
_SPREAD: Final = 64  # small blocks are read together if those and what lies between take so many times their bytes:
# a kilobyte or few for each, which is read in a fraction of the time that asking for another block takes

Integers = npt.NDArray[np.int64]
Times = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]


class OldVersionError(StorageError):
    """A segment of an older format version, which upgrade.py rewrites."""


class Header(NamedTuple):
    """What a segment's header says.

    origin: the store in which the rows were sealed. delete_number: the highest delete applied before the rows.
    wal_ranges: pairs (first, last) of WAL file numbers, inclusive; replaces: numbers of segments. Both count
    only in the store of store_id. group: the first number, and how many, of the segments that one compaction
    wrote; (0, 0) for a sealed head.
    """

    store_id: bytes
    origin: bytes
    delete_number: int
    wal_ranges: tuple[tuple[int, int], ...]
    replaces: tuple[int, ...]
    group: tuple[int, int] = (0, 0)

    def pack(self) -> bytes:
        """The header's bytes."""
        fixed = _HEADER.pack(
            self.store_id, self.origin, self.delete_number, len(self.wal_ranges), len(self.replaces), *self.group, 0
        )
        numbers = [number for pair in self.wal_ranges for number in pair] + list(self.replaces)
        return layout.pack_header(MAGIC, VERSION, fixed + struct.pack(f"<{len(numbers)}Q", *numbers))


def unpack_header(data: Any, where: Path) -> tuple[Header, int]:
    """A segment's header and its length.

    Raises DamagedError, OldVersionError, or StorageError for a newer version.
    """
    body = layout.read_header(data, MAGIC, VERSION, where)
    _, written, _, _ = _START.unpack_from(data)
    if written < VERSION:
        raise OldVersionError(f"{where} has format version {written}, want {VERSION}: it was not upgraded")
    if len(body) < _HEADER.size:
        raise DamagedError(f"{where}: header of {len(body)} bytes, want {_HEADER.size}")
    store_id, origin, delete_number, ranges, replaced, first, count, _ = _HEADER.unpack_from(body)
    if len(body) < _HEADER.size + 8 * (2 * ranges + replaced):
        raise DamagedError(f"{where}: header of {len(body)} bytes for {ranges} ranges and {replaced} segments")
    numbers = struct.unpack_from(f"<{2 * ranges + replaced}Q", body, _HEADER.size)
    pairs = tuple(zip(numbers[: 2 * ranges : 2], numbers[1 : 2 * ranges : 2], strict=True))
    header = Header(store_id, origin, delete_number, pairs, numbers[2 * ranges :], (first, count))
    return header, len(body) + layout.PREAMBLE_BYTES


class Footer(NamedTuple):
    """What a segment's last bytes say: how much there is, and how long the directory is that lies before them."""

    points: int
    blocks: int
    series: int
    pages: int
    chunks: int
    codecs: int
    directory_bytes: int
    directory_crc: int

    def pack(self) -> bytes:
        """The footer's bytes."""
        start = _FOOTER.pack(*self, 0, 0, FOOTER_MAGIC)[:_FOOTER_CRC_AT]
        return start + files.crc32c(start).to_bytes(4, "little") + FOOTER_MAGIC


def unpack_footer(tail: bytes, where: Path) -> Footer:
    """The footer at the end of a file, of which `tail` is the end. Raises DamagedError."""
    if len(tail) < FOOTER_BYTES:
        raise DamagedError(f"{where}: {len(tail)} bytes, want a footer of {FOOTER_BYTES}")
    tail = tail[-FOOTER_BYTES:]
    *fields, _, checksum, magic = _FOOTER.unpack(tail)
    computed = files.crc32c(tail[:_FOOTER_CRC_AT])
    if magic != FOOTER_MAGIC or computed != checksum:
        raise DamagedError(f"{where}: no footer at its end (magic {magic!r}, CRC {computed:08x}, want {checksum:08x})")
    return Footer._make(fields)


class CodecUse(NamedTuple):
    """How much of a segment is in one codec. part: "times" or "values"; bytes: encoded."""

    part: str
    codec: int
    blocks: int
    points: int
    bytes: int


class _Chunk(NamedTuple):
    """A chunk of the table of series: columns by series, and the keys, still packed."""

    blocks: npt.NDArray[np.int64]
    last_times: Times
    key_bytes: npt.NDArray[np.int64]
    keys: memoryview


class Segment:
    """An open segment.

    header; points, blocks, series, bytes: how much there is; t_min, t_max: of all points (LATEST and EARLIEST when
    there are none, which no range touches); first_block: int64[series + 1], the blocks of series s are
    first_block[s] to first_block[s + 1]; codecs: what the blocks are encoded in; ids (int64), hashes (uint64): by
    series, once `bind` gave them.
    """

    def __init__(self, path: Path, number: int, cache: PageCache) -> None:
        """Open a file, read and check all of it but blocks and pages.

        Raises DamagedError, OldVersionError, StorageError for a newer version, OSError when it cannot be opened.
        """
        self.path = path
        self.number = number
        self._cache = cache
        self._owner = cache.new_owner()
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._file)
        self.bytes = os.fstat(self._file).st_size
        self.header, self._blocks_begin = self._read_header()
        self._load(self._read_tail())

    def bind(self, ids: npt.NDArray[np.int64], hashes: npt.NDArray[np.uint64]) -> None:
        """Let `find` know the catalog's ids and the hashes of keys(). To be called once, before others may read.

        Raises DamagedError when the series are not in order of their hashes.
        """
        if (hashes[1:] < hashes[:-1]).any():
            raise DamagedError(f"{self.path}: series are not in order of their hashes")
        self.ids, self.hashes = ids, hashes

    def find(self, local_id: int, hash_: int) -> int:
        """The place of a series in the table by its catalog id and hash, -1 when it has no points here."""
        at = int(self.hashes.searchsorted(np.uint64(hash_)))
        while at < self.series and self.hashes[at] == hash_:
            if self.ids[at] == local_id:
                return at
            at += 1
        return -1

    def block_range(self, ordinal: int) -> tuple[int, int]:
        """First block of a series, and the block after its last."""
        return int(self.first_block[ordinal]), int(self.first_block[ordinal + 1])

    def keys(self) -> list[bytes]:
        """The keys of all series, in order of (hash, key); unpacked at each call. Raises DamagedError."""
        return [key for chunk, entry in self._chunks() for key in self._keys_of(chunk, int(entry["key_bytes"]))]

    def last_times(self) -> Times:
        """The greatest time of each series, int64[series]; unpacked at each call. Raises DamagedError."""
        parts = [chunk.last_times for chunk, _ in self._chunks()]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def index(self, begin: int, end: int) -> Blocks:
        """The blocks begin to end. Raises DamagedError."""
        page = bisect.bisect_right(self._first_of_page, begin) - 1
        if 0 <= begin < end <= self.blocks and end <= self._first_of_page[page + 1]:
            first = self._first_of_page[page]
            return self._page(page).part(begin - first, end - first)
        return pages.joined([self._page(page).part(low, high) for page, low, high in self._spans(begin, end)])

    def windows(self, begin: int, end: int) -> Windows:
        """The windows of the blocks begin to end. Raises DamagedError."""
        return windows.joined([self._windows(page).part(low, high) for page, low, high in self._spans(begin, end)])

    def decode(self, block: int) -> tuple[Times, Values]:
        """The points of a block, settled: new arrays. Raises DamagedError when its bytes are not what was written."""
        page, at = self._place(block)
        count = int(page.counts[at])
        times, values = np.empty(count, np.int64), np.empty(count, np.float64)
        self._decode(block, page, at, times, values)
        return times, values

    def decode_into(self, block: int, times: Times, values: Values) -> None:
        """As decode, into contiguous arrays of the block's count, which an error leaves half filled."""
        self._decode(block, *self._place(block), times, values)

    def times(self, block: int) -> Times:
        """The timestamps of a block, as decode has them, for a fraction of the time."""
        page, at = self._place(block)
        times = np.empty(int(page.counts[at]), np.int64)
        self._decode_times(block, page, at, self._raw(block, page, at), times)
        return times

    def decode_all(self, blocks: Integers, rows: Integers, times: Times, values: Values) -> None:
        """Decode many blocks, given in ascending order, each to contiguous arrays from its row on: as decode_into.

        Small ones that lie together are read, and decoded, at once.
        """
        numbers = np.searchsorted(self._first_of_page, blocks, "right") - 1
        bounds = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(blocks)]
        for begin, end in itertools.pairwise(bounds):
            if begin < end:
                self._decode_of_page(int(numbers[begin]), blocks[begin:end], rows[begin:end], times, values)

    def block_bytes(self, block: int) -> int:
        """How long a block is, encoded. Raises DamagedError."""
        page, at = self._place(block)
        return int(page.times_bytes[at]) + int(page.values_bytes[at])

    def bytes_of(self, blocks: Integers) -> int:
        """How long blocks, in ascending order, are together, encoded. Raises DamagedError."""
        numbers = np.searchsorted(self._first_of_page, blocks, "right") - 1
        total = 0
        for number in np.unique(numbers).tolist():
            page, at = self._page(number), blocks[numbers == number] - self._first_of_page[number]
            total += int(page.times_bytes[at].sum() + page.values_bytes[at].sum())
        return total

    def raw(self, block: int) -> memoryview:
        """The encoded timestamps and values of a block, their CRC checked. Raises DamagedError."""
        return self._raw(block, *self._place(block))

    def raw_run(self, begin: int, end: int) -> bytes:
        """The blocks begin to end as they are stored, one behind the other, their CRCs checked. Raises DamagedError."""
        parts = []
        for number, low, high in self._spans(begin, end):
            page = self._page(number).part(low, high)
            ends = np.cumsum(page.times_bytes + page.values_bytes)
            first = int(page.offsets[0])
            data = self._read(first, int(ends[-1]))
            view = memoryview(data)
            bounds = itertools.pairwise([0, *ends.tolist()])
            for at, ((start, stop), crc) in enumerate(zip(bounds, page.crcs.tolist(), strict=True)):
                if files.crc32c(view[start:stop]) != crc:
                    block = self._first_of_page[number] + low + at
                    self._check(bytes(view[start:stop]), crc, f"block {block} at {first + start}")
            parts.append(data)
        return b"".join(parts)

    def verify_pages(self) -> None:
        """Read every page and its windows. Raises DamagedError."""
        for page in range(len(self._pages)):
            self._unpack_page(page)
            self._unpack_windows(page)

    def _read_header(self) -> tuple[Header, int]:
        start = self._read(0, min(_TAIL_BYTES, self.bytes))
        if len(start) == _TAIL_BYTES:
            start = self._read(0, min(self.bytes, max(len(start), _START.unpack_from(start)[3])))
        return unpack_header(start, self.path)

    def _read_tail(self) -> tuple[Footer, bytes]:
        """Footer and directory."""
        tail = self._read(max(0, self.bytes - _TAIL_BYTES), min(_TAIL_BYTES, self.bytes))
        footer = unpack_footer(tail, self.path)
        end = self.bytes - FOOTER_BYTES
        begin = end - footer.directory_bytes
        if begin < self._blocks_begin:
            raise DamagedError(f"{self.path}: directory of {footer.directory_bytes} bytes in a file of {self.bytes}")
        if footer.directory_bytes + FOOTER_BYTES <= len(tail):
            directory = tail[-FOOTER_BYTES - footer.directory_bytes : -FOOTER_BYTES]
        else:
            directory = self._read(begin, footer.directory_bytes)
        self._check(directory, footer.directory_crc, f"directory at {begin}")
        return footer, directory

    def _load(self, tail: tuple[Footer, bytes]) -> None:
        footer, directory = tail
        self.points, self.blocks, self.series = footer.points, footer.blocks, footer.series
        self._pages, self._chunk_entries, uses = self._split(footer, directory)
        self.codecs = tuple(
            CodecUse(PARTS[part], codec_id, *rest) for part, codec_id, _, *rest in uses.tolist() if part < len(PARTS)
        )
        self.t_min = int(self._pages["t_min"].min(initial=LATEST))
        self.t_max = int(self._pages["t_max"].max(initial=EARLIEST))
        self._place_pages(footer, self.bytes - FOOTER_BYTES - footer.directory_bytes)
        parts = [chunk.blocks for chunk, _ in self._chunks()]
        self.first_block = _starts(np.concatenate(parts) if parts else np.empty(0, np.int64))
        if int(self.first_block[-1]) != self.blocks or (np.diff(self.first_block) < 1).any():
            raise DamagedError(f"{self.path}: {self.series} series with {self.first_block[-1]} of {self.blocks} blocks")

    def _split(self, footer: Footer, directory: bytes) -> tuple[Any, Any, Any]:
        sizes = [
            footer.pages * PAGE_ENTRY.itemsize, footer.chunks * CHUNK_ENTRY.itemsize,
            footer.codecs * CODEC_ENTRY.itemsize,
        ]  # fmt: skip
        if sum(sizes) != len(directory):
            raise DamagedError(f"{self.path}: directory of {len(directory)} bytes, want {sum(sizes)}")
        return (
            np.frombuffer(directory, PAGE_ENTRY, footer.pages),
            np.frombuffer(directory, CHUNK_ENTRY, footer.chunks, sizes[0]),
            np.frombuffer(directory, CODEC_ENTRY, footer.codecs, sizes[0] + sizes[1]),
        )

    def _place_pages(self, footer: Footer, directory_begin: int) -> None:
        """Where everything lies, from the lengths in the directory."""
        lengths = [self._pages[name].astype(np.int64) for name in ("block_bytes", "index_bytes", "windows_bytes")]
        self._page_begins = (self._blocks_begin + _starts(sum(lengths))).tolist()
        self._first_of_page = _starts(self._pages["blocks"]).tolist()
        self._chunk_begins = (self._page_begins[-1] + _starts(self._chunk_entries["bytes"])).tolist()
        found = {
            "directory": (self._chunk_begins[-1], directory_begin),
            "blocks": (self._first_of_page[-1], footer.blocks),
            "points": (int(self._pages["points"].sum(dtype=np.int64)), footer.points),
            "series": (int(self._chunk_entries["series"].sum(dtype=np.int64)), footer.series),
        }
        for what, (got, want) in found.items():
            if got != want:
                raise DamagedError(f"{self.path}: pages and chunks end at {what} {got}, want {want}")
        per_page, per_chunk = self._pages["blocks"], self._chunk_entries["series"]
        if (per_page > pages.PAGE_BLOCKS).any() or not per_page.all() or (per_chunk > CHUNK_SERIES).any():
            raise DamagedError(f"{self.path}: a page or chunk of impossible size")

    def _chunks(self) -> Iterator[tuple[_Chunk, Any]]:
        """The chunks of the table of series, each with its entry in the directory."""
        for at, entry in enumerate(self._chunk_entries):
            begin = self._chunk_begins[at]
            data = self._read_checked(begin, int(entry["bytes"]), int(entry["crc"]), f"series at {begin}")
            reader = columns.Reader(data, f"{self.path}: series at {begin}")
            count = int(entry["series"])
            parts = [reader.integers(count) for _ in range(3)]
            yield _Chunk(parts[0], parts[1], parts[2], reader.rest()), entry

    def _keys_of(self, chunk: _Chunk, size: int) -> list[bytes]:
        data = bytes(chunk.keys)
        if len(data) != size:
            data = _inflated(data, size)
        ends = np.cumsum(chunk.key_bytes)
        if (chunk.key_bytes < 0).any() or len(data) != size or int(ends[-1]) != size:
            raise DamagedError(f"{self.path}: keys of {len(data)} bytes, want {size}")
        stops = ends.tolist()
        return [data[begin:end] for begin, end in zip([0, *stops[:-1]], stops, strict=True)]

    def _spans(self, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
        """The pages over which blocks reach: number, and begin and end within it."""
        if not 0 <= begin <= end <= self.blocks:
            raise StorageError(f"BUG: {self.path}: blocks {begin} to {end} of {self.blocks}")
        page = bisect.bisect_right(self._first_of_page, begin) - 1
        while begin < end:
            first, stop = self._first_of_page[page], self._first_of_page[page + 1]
            yield page, begin - first, min(end, stop) - first
            begin = stop
            page += 1

    def _place(self, block: int) -> tuple[Blocks, int]:
        page = bisect.bisect_right(self._first_of_page, block) - 1
        return self._page(page), block - self._first_of_page[page]

    def _page(self, page: int) -> Blocks:
        return self._cache.get((self._owner, page, "blocks"), lambda: self._unpack_page(page))

    def _windows(self, page: int) -> Windows:
        return self._cache.get((self._owner, page, "windows"), lambda: self._unpack_windows(page))

    def _unpack_page(self, page: int) -> Blocks:
        entry = self._pages[page]
        begin = self._page_begins[page]
        at = begin + int(entry["block_bytes"])
        data = self._read_checked(at, int(entry["index_bytes"]), int(entry["index_crc"]), f"page at {at}")
        found = pages.unpack(data, int(entry["blocks"]), begin, at, f"{self.path}: page at {at}")
        got = int(found.counts.sum()), int(found.t_min.min()), int(found.t_max.max())
        want = int(entry["points"]), int(entry["t_min"]), int(entry["t_max"])
        if got != want:
            raise DamagedError(f"{self.path}: page at {at} with points, first and last time {got}, want {want}")
        return found

    def _unpack_windows(self, page: int) -> Windows:
        entry = self._pages[page]
        at = self._page_begins[page + 1] - int(entry["windows_bytes"])
        data = self._read_checked(at, int(entry["windows_bytes"]), int(entry["windows_crc"]), f"windows at {at}")
        blocks = self._page(page)
        return windows.unpack(data, blocks.t_min, blocks.t_max, blocks.counts, f"{self.path}: windows at {at}")

    def _decode(self, block: int, page: Blocks, at: int, times: Times, values: Values) -> None:
        data = self._raw(block, page, at)
        middle, count = int(page.times_bytes[at]), int(page.counts[at])
        self._decode_times(block, page, at, data, times)
        try:
            codec.decode_values_into(data[middle:], count, int(page.values_codec[at]), values)
        except CodecError as error:
            raise DamagedError(f"{self.path}: block {block} at {page.offsets[at]}: {error}") from error

    def _decode_times(self, block: int, page: Blocks, at: int, data: memoryview, times: Times) -> None:
        """The timestamps of a block with this data."""
        try:
            codec.decode_times_into(data[: int(page.times_bytes[at])], len(times), int(page.times_codec[at]), times)
        except CodecError as error:
            raise DamagedError(f"{self.path}: block {block} at {page.offsets[at]}: {error}") from error
        right = np.ones(1, np.bool_)
        one = slice(at, at + 1)
        kernels.check_times(times, _FIRST_ROW, page.counts[one], page.t_min[one], page.t_max[one], right)
        if not right[0]:
            raise DamagedError(
                f"{self.path}: block {block} at {page.offsets[at]}: timestamps that do not rise from "
                f"{page.t_min[at]} to {page.t_max[at]}"
            )

    def _decode_of_page(self, number: int, blocks: Integers, rows: Integers, times: Times, values: Values) -> None:
        page, at = self._page(number), blocks - self._first_of_page[number]
        counts = page.counts[at]
        left = np.ones(len(at), np.bool_)
        small = np.flatnonzero(counts <= codec.SMALL_ROWS)
        if len(small) > 1:
            left[small] = ~self._decode_small(blocks[small], page, at[small], rows[small], times, values)
        for each in np.flatnonzero(left).tolist():
            inside = slice(int(rows[each]), int(rows[each] + counts[each]))
            self._decode(int(blocks[each]), page, int(at[each]), times[inside], values[inside])

    def _decode_small(
        self, blocks: Integers, page: Blocks, at: Integers, rows: Integers, times: Times, values: Values
    ) -> npt.NDArray[np.bool_]:
        """Decode blocks of a page, read at once; which were, none if they lie too far from each other for that."""
        offsets, sizes = page.offsets[at], page.times_bytes[at] + page.values_bytes[at]
        begin, span = int(offsets[0]), int(offsets[-1] + sizes[-1] - offsets[0])
        if span > _SPREAD * int(sizes.sum()):
            return np.zeros(len(at), np.bool_)
        data = self._read(begin, span)
        view, offsets = memoryview(data), offsets - begin
        crcs = page.crcs[at].tolist()
        for which, (low, high) in enumerate(zip(offsets.tolist(), (offsets + sizes).tolist(), strict=True)):
            if files.crc32c(view[low:high]) != crcs[which]:
                self._check(bytes(view[low:high]), crcs[which], f"block {blocks[which]} at {begin + low}")
        codecs = page.times_codec[at].astype(np.int64), page.values_codec[at].astype(np.int64)
        places = codec.Places(
            offsets, page.times_bytes[at], page.values_bytes[at], *codecs, rows, page.counts[at]
        )  # fmt: skip
        done = codec.decode_small(data, places, times, values)
        kernels.check_times(times, rows, page.counts[at], page.t_min[at], page.t_max[at], done)
        return done

    def _raw(self, block: int, page: Blocks, at: int) -> memoryview:
        offset = int(page.offsets[at])
        size = int(page.times_bytes[at]) + int(page.values_bytes[at])
        data = self._read(offset, size)
        if files.crc32c(data) != page.crcs[at]:
            self._check(data, int(page.crcs[at]), f"block {block} at {offset}")
        return memoryview(data)

    def _read_checked(self, offset: int, size: int, crc: int, what: str) -> bytes:
        data = self._read(offset, size)
        self._check(data, crc, what)
        return data

    def _check(self, data: bytes, crc: int, what: str) -> None:
        computed = files.crc32c(data)
        if computed != crc:
            raise DamagedError(f"{self.path}: {what} has CRC {computed:08x}, want {crc:08x}")

    def _read(self, offset: int, size: int) -> bytes:
        if offset + size > self.bytes:
            raise DamagedError(f"{self.path}: {size} bytes at {offset} in a file of {self.bytes}")
        try:
            data = os.pread(self._file, size, offset)
        except OSError as error:
            raise DamagedError(f"{self.path}: cannot be read at {offset}: {error.strerror}") from error
        if len(data) != size:
            raise DamagedError(f"{self.path}: {len(data)} bytes at {offset}, want {size}: it was cut short")
        return data


def describe_damage(path: Path, error: DamagedError) -> dict[str, Any]:
    """The note of a damaged segment: as much of what was lost as header, directory and footer still tell, else None."""
    note: dict[str, Any] = dict.fromkeys(["wal_ranges", "points", "series", "first_time", "last_time"])
    note |= {"file": path.name, "reason": str(error)}
    try:
        note["wal_ranges"] = unpack_header(_part_of(path, 0), path)[0].wal_ranges
    except StorageError:
        note["wal_ranges"] = None  # the header is what was damaged
    tail = _part_of(path, -_NOTE_BYTES)
    try:
        footer = unpack_footer(tail, path)
    except DamagedError:
        return note  # the footer is what was damaged
    note["points"], note["series"] = footer.points, footer.series
    directory = tail[-FOOTER_BYTES - footer.directory_bytes : -FOOTER_BYTES]
    if files.crc32c(directory) == footer.directory_crc and footer.pages:
        entries = np.frombuffer(directory, PAGE_ENTRY, footer.pages)
        note["first_time"], note["last_time"] = int(entries["t_min"].min()), int(entries["t_max"].max())
    return note


def _part_of(path: Path, at: int) -> bytes:
    """_NOTE_BYTES of a file from its begin, or its end (at below 0), or all of it; none where it cannot be read."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size + at) if at < 0 else at)
            return file.read(_NOTE_BYTES)
    except OSError:
        return b""


def covers(headers: Sequence[Header], store_id: bytes, number: int) -> bool:
    """Whether the rows of a WAL file of this store lie in one of these segments."""
    return any(
        first <= number <= last
        for header in headers
        if header.store_id == store_id
        for first, last in header.wal_ranges
    )


def _starts(lengths: Any) -> npt.NDArray[np.int64]:
    """Where each of several parts begins, when they lie one behind the other, and where the last one ends."""
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts


def _inflated(data: bytes, size: int) -> bytes:
    """At most so many bytes from zlib's; something else where they are none."""
    try:
        return zlib.decompressobj().decompress(data, max(1, size))
    except zlib.error:
        return b""
