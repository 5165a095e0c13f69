"""Segments: what the immutable files of blocks look like, and the reader of one.

Owns the mapping of a file into memory; the index is used in place. Never writes a file (seal.py packs and
writes). Constant after construction, so any thread may read; a block's CRC is checked whenever it is decoded.

Format (docs/file-formats.md): header, blocks, columnar index, footer. The header says which WAL files the rows
came from and which segments this one replaces, so that a listing of the directory is the whole truth.
"""

import mmap
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from common import codec, files
from common.errors import CodecError, StorageError
from workers.storage import kernels, layout
from workers.storage.layout import DamagedError

MAGIC: Final = b"MTSG"
VERSION: Final = 1
FOOTER_MAGIC: Final = b"MTSGEND\n"
BLOCK_ROWS: Final = 8192  # decoding one takes about a tenth of a millisecond, its summary is 1/100 of its points

_HEADER: Final = struct.Struct(f"<{layout.STORE_ID_BYTES}s{layout.STORE_ID_BYTES}sQII")
_FOOTER: Final = struct.Struct("<QQQIIII8s")
FOOTER_BYTES: Final = _FOOTER.size
_FOOTER_CRC_AT: Final = 36  # the footer's own CRC covers what lies before it

# The index's matrices, one after another, each padded to 8 bytes: (rows, dtype), one column per block.
INT_ROWS: Final = 4  # kernels.T_MIN, T_MAX, BLOCK_DIGEST, OFFSET
FLOAT_ROWS: Final = 6  # kernels.SUM_HI, SUM_LO, BLOCK_MIN, BLOCK_MAX, BLOCK_FIRST, BLOCK_LAST
SERIES, COUNT, TIMES_BYTES, VALUES_BYTES, CRC = range(5)  # uint32 rows
WORD_ROWS: Final = 5
TIMES_CODEC, VALUES_CODEC = range(2)  # uint8 rows
CODEC_ROWS: Final = 2

Times = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]


class Header(NamedTuple):
    """What a segment's header says.

    origin: the store in which the rows were sealed. delete_number: the highest delete applied before the rows.
    wal_ranges: pairs (first, last) of WAL file numbers, inclusive; replaces: numbers of segments. Both count
    only in the store of store_id.
    """

    store_id: bytes
    origin: bytes
    delete_number: int
    wal_ranges: tuple[tuple[int, int], ...]
    replaces: tuple[int, ...]

    def pack(self) -> bytes:
        """The header's bytes, a multiple of 8."""
        fixed = _HEADER.pack(
            self.store_id, self.origin, self.delete_number, len(self.wal_ranges), len(self.replaces)
        )
        numbers = [number for pair in self.wal_ranges for number in pair] + list(self.replaces)
        return layout.pack_header(MAGIC, VERSION, fixed + struct.pack(f"<{len(numbers)}Q", *numbers))


def unpack_header(data: Any, where: Path) -> tuple[Header, int]:
    """A segment's header and its length. Raises DamagedError, or StorageError for a newer version."""
    body = layout.read_header(data, MAGIC, VERSION, where)
    if len(body) < _HEADER.size:
        raise DamagedError(f"{where}: header of {len(body)} bytes, want {_HEADER.size}")
    store_id, origin, delete_number, ranges, replaced = _HEADER.unpack_from(body)
    if len(body) < _HEADER.size + 8 * (2 * ranges + replaced):
        raise DamagedError(f"{where}: header of {len(body)} bytes for {ranges} ranges and {replaced} segments")
    numbers = struct.unpack_from(f"<{2 * ranges + replaced}Q", body, _HEADER.size)
    pairs = tuple(zip(numbers[: 2 * ranges : 2], numbers[1 : 2 * ranges : 2], strict=True))
    return Header(store_id, origin, delete_number, pairs, numbers[2 * ranges :]), len(body) + layout.PREAMBLE_BYTES


class Footer(NamedTuple):
    """What a segment's last bytes say: where the index lies, how much there is, and the index's CRC32C."""

    index_offset: int
    index_bytes: int
    points: int
    blocks: int
    series: int
    index_crc: int

    def pack(self) -> bytes:
        """The footer's bytes."""
        start = _FOOTER.pack(*self, 0, FOOTER_MAGIC)[:_FOOTER_CRC_AT]
        return start + files.crc32c(start).to_bytes(4, "little") + FOOTER_MAGIC


def unpack_footer(data: Any, where: Path) -> Footer:
    """The footer at the end of a file. Raises DamagedError."""
    if len(data) < FOOTER_BYTES:
        raise DamagedError(f"{where}: {len(data)} bytes, want a footer of {FOOTER_BYTES}")
    tail = bytes(data[len(data) - FOOTER_BYTES :])
    *fields, checksum, magic = _FOOTER.unpack(tail)
    computed = files.crc32c(tail[:_FOOTER_CRC_AT])
    if magic != FOOTER_MAGIC or computed != checksum:
        raise DamagedError(f"{where}: no footer at its end (magic {magic!r}, CRC {computed:08x}, want {checksum:08x})")
    return Footer._make(fields)


def index_parts(blocks: int, series: int) -> list[tuple[Any, tuple[int, ...]]]:
    """dtype and shape of each array of the index but the key bytes, in order; each is padded to 8 bytes."""
    return [
        (np.dtype("<i8"), (INT_ROWS, blocks)),
        (np.dtype("<f8"), (FLOAT_ROWS, blocks)),
        (np.dtype("<u8"), (series,)),  # hashes, ascending
        (np.dtype("<u4"), (WORD_ROWS, blocks)),
        (np.dtype("<u4"), (series + 1,)),  # first block of each series, and the number of blocks
        (np.dtype("<u4"), (series + 1,)),  # where each key begins in the key bytes, and their length
        (np.dtype("u1"), (CODEC_ROWS, blocks)),
    ]


def padding(length: int) -> int:
    """Bytes that bring a length to a multiple of 8."""
    return -length % 8


class Segment:
    """An open segment. Arrays are views of the mapped file; columns are by block, blocks by series and time.

    ints: int64[4, blocks]; floats: float64[6, blocks]; words: uint32[5, blocks]; codecs: uint8[2, blocks];
    hashes: uint64[series]; first_block: uint32[series + 1].
    """

    def __init__(self, path: Path, number: int) -> None:
        """Map a file and check all of it but the blocks.

        Raises DamagedError, StorageError for a newer version, OSError when it cannot be read.
        """
        self.path = path
        self.number = number
        self._data = _map(path)
        self.header, after_header = unpack_header(self._data, path)
        footer = unpack_footer(self._data, path)
        self.points, self.blocks, self.series = footer.points, footer.blocks, footer.series
        self.bytes = len(self._data)
        self._check_index(footer, after_header)
        self._map_index(footer)

    def key(self, ordinal: int) -> bytes:
        """The key of the series with this place in the table."""
        return bytes(self._keys[self._key_begin[ordinal] : self._key_begin[ordinal + 1]])

    def find(self, key: bytes, hash_: np.uint64) -> int:
        """The place of a series in the table, -1 when it has no points here."""
        at = int(self.hashes.searchsorted(hash_))
        while at < self.series and self.hashes[at] == hash_:
            if self.key(at) == key:
                return at
            at += 1
        return -1

    def block_range(self, ordinal: int) -> tuple[int, int]:
        """First block of a series, and the block after its last."""
        return int(self.first_block[ordinal]), int(self.first_block[ordinal + 1])

    def decode(self, block: int) -> tuple[Times, Values]:
        """The points of a block, settled. Raises StorageError when its bytes are not what was written."""
        offset = int(self.ints[kernels.OFFSET, block])
        middle = offset + int(self.words[TIMES_BYTES, block])
        end = middle + int(self.words[VALUES_BYTES, block])
        count = int(self.words[COUNT, block])
        data = memoryview(self._data)
        computed = files.crc32c(data[offset:end])
        want = int(self.words[CRC, block])
        if computed != want:
            raise DamagedError(f"{self.path}: block {block} at {offset} has CRC {computed:08x}, want {want:08x}")
        times_codec, values_codec = self.codecs[:, block].tolist()
        try:
            times = codec.decode_times(data[offset:middle], count, times_codec)
            values = codec.decode_values(data[middle:end], count, values_codec)
        except CodecError as error:
            raise DamagedError(f"{self.path}: block {block} at {offset}: {error}") from error
        return times, values

    def _check_index(self, footer: Footer, after_header: int) -> None:
        end = footer.index_offset + footer.index_bytes
        if not after_header <= footer.index_offset <= end == len(self._data) - FOOTER_BYTES:
            raise DamagedError(
                f"{self.path}: index at {footer.index_offset} to {end} in a file of {len(self._data)} bytes"
            )
        computed = files.crc32c(memoryview(self._data)[footer.index_offset : end])
        if computed != footer.index_crc:
            raise DamagedError(f"{self.path}: index has CRC {computed:08x}, want {footer.index_crc:08x}")

    def _map_index(self, footer: Footer) -> None:
        arrays: list[Any] = []
        at = footer.index_offset
        for dtype, shape in index_parts(footer.blocks, footer.series):
            count = int(np.prod(shape))
            arrays.append(np.frombuffer(self._data, dtype, count, at).reshape(shape))
            at += count * dtype.itemsize
            at += padding(at)
        self.ints, self.floats, self.hashes, self.words, self.first_block, self._key_begin, self.codecs = arrays
        self._keys = memoryview(self._data)[at : footer.index_offset + footer.index_bytes]


def _map(path: Path) -> mmap.mmap | bytes:
    with path.open("rb") as file:
        if file.seek(0, 2) == 0:
            return b""  # cannot be mapped; no header is in it either
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def describe_damage(path: Path, error: DamagedError) -> dict[str, Any]:
    """The note of a damaged segment: as much of what was lost as header and footer still tell, else None."""
    note: dict[str, Any] = {"file": path.name, "reason": str(error), "wal_ranges": None, "points": None, "series": None}
    data = _map(path)
    try:
        note["wal_ranges"] = unpack_header(data, path)[0].wal_ranges
    except StorageError:
        note["wal_ranges"] = None  # the header is what was damaged
    try:
        footer = unpack_footer(data, path)
        note["points"], note["series"] = footer.points, footer.series
    except DamagedError:
        note["points"] = None  # the footer is what was damaged
    return note


def covers(headers: Sequence[Header], store_id: bytes, number: int) -> bool:
    """Whether the rows of a WAL file of this store lie in one of these segments."""
    return any(
        first <= number <= last
        for header in headers
        if header.store_id == store_id
        for first, last in header.wal_ranges
    )
