"""Reads segments of format version 1, which upgrade.py rewrites and tools/inspect shows. Nothing writes them any more.

Owns the mapping of a file into memory. Constant after construction, so any thread may read.

Format: header, blocks, one columnar index used in place, footer. What has not changed since (the first 16 bytes,
the codecs raw and Gorilla, CRC, digest) is described in docs/file-formats.md; the rest is here: the header goes on with
store id and origin (16 bytes each), delete number (u64), number of WAL ranges r and of segments replaced s (u32 each),
2 r + s numbers (u64). The index is the arrays of `_index_parts`, each padded to 8 bytes, then the keys.
"""

import itertools
import mmap
import struct
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from common import codec, files
from common.errors import CodecError, StorageError
from workers.storage import layout
from workers.storage.layout import DamagedError

MAGIC: Final = b"MTSG"
VERSION: Final = 1
FOOTER_MAGIC: Final = b"MTSGEND\n"

_VERSION: Final = struct.Struct("<4sH")  # how the preamble begins
_HEADER: Final = struct.Struct(f"<{layout.STORE_ID_BYTES}s{layout.STORE_ID_BYTES}sQII")
_FOOTER: Final = struct.Struct("<QQQIIII8s")  # index offset, its length, points, blocks, series, two CRCs, magic
_FOOTER_CRC_AT: Final = 36  # the footer's own CRC covers what lies before it

T_MIN, T_MAX, DIGEST, OFFSET = range(4)  # int64 rows of the index
SERIES, COUNT, TIMES_BYTES, VALUES_BYTES, CRC = range(5)  # uint32 rows

Times = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]


class Header(NamedTuple):
    """What a header says; the fields mean what those of segment.Header mean."""

    store_id: bytes
    origin: bytes
    delete_number: int
    wal_ranges: tuple[tuple[int, int], ...]
    replaces: tuple[int, ...]


class _Footer(NamedTuple):
    index_offset: int
    index_bytes: int
    points: int
    blocks: int
    series: int
    index_crc: int


def is_version_1(path: Path) -> bool:
    """Whether a file says that it is a segment of version 1, damaged or not; one that cannot be read says nothing."""
    try:
        with path.open("rb") as file:
            return file.read(_VERSION.size) == _VERSION.pack(MAGIC, VERSION)
    except OSError:
        return False


class Segment:
    """An open segment. Columns are by block, blocks in order of series and time.

    hashes: uint64[series]; first_block: uint32[series + 1]; ints: int64[4, blocks] (t_min, t_max, digest, offset);
    floats: float64[6, blocks] (sum hi and lo, min, max, first, last); words: uint32[5, blocks] (series, count, lengths
    of timestamps and values, CRC), of which owners and counts are rows; codecs: uint8[2, blocks].
    """

    def __init__(self, path: Path, number: int) -> None:
        """Map a file and check all of it but the blocks. Raises DamagedError, OSError."""
        self.path = path
        self.number = number
        self._data = memoryview(_map(path))
        self.header, after_header = _unpack_header(self._data, path)
        footer = _unpack_footer(self._data, path)
        self.points, self.blocks, self.series = footer.points, footer.blocks, footer.series
        self.bytes = len(self._data)
        _check_index(self._data, footer, after_header, path)
        self._map_index(footer)

    def keys(self) -> list[bytes]:
        """The keys of all series, in the order of the table."""
        places = itertools.pairwise(self._key_begin.tolist())
        return [bytes(self._keys[begin:end]) for begin, end in places]

    def decode(self, block: int) -> tuple[Times, Values]:
        """The points of a block, settled. Raises DamagedError when its bytes are not what was written."""
        offset = int(self.ints[OFFSET, block])
        middle = offset + int(self.words[TIMES_BYTES, block])
        end = middle + int(self.words[VALUES_BYTES, block])
        count = int(self.counts[block])
        computed, want = files.crc32c(self._data[offset:end]), int(self.words[CRC, block])
        if computed != want:
            raise DamagedError(f"{self.path}: block {block} at {offset} has CRC {computed:08x}, want {want:08x}")
        times_codec, values_codec = self.codecs[:, block].tolist()
        try:
            times = codec.decode_times(self._data[offset:middle], count, times_codec)
            values = codec.decode_values(self._data[middle:end], count, values_codec)
        except CodecError as error:
            raise DamagedError(f"{self.path}: block {block} at {offset}: {error}") from error
        return times, values

    def _map_index(self, footer: _Footer) -> None:
        arrays: list[Any] = []
        at, end = footer.index_offset, footer.index_offset + footer.index_bytes
        for dtype, shape in _index_parts(footer.blocks, footer.series):
            count = int(np.prod(shape))
            if at + count * dtype.itemsize > end:
                raise DamagedError(f"{self.path}: index of {footer.index_bytes} bytes for {footer.blocks} blocks")
            arrays.append(np.frombuffer(self._data, dtype, count, at).reshape(shape))
            at += count * dtype.itemsize
            at += -at % 8
        self.ints, self.floats, self.hashes, self.words, self.first_block, self._key_begin, self.codecs = arrays
        self._keys = self._data[at:end]
        self.owners, self.counts = self.words[SERIES], self.words[COUNT]


def describe_damage(path: Path, error: DamagedError) -> dict[str, Any]:
    """The note of a damaged segment: as much of what was lost as header, footer and index still tell, else None."""
    note: dict[str, Any] = dict.fromkeys(("wal_ranges", "points", "series", "first_time", "last_time"))
    note |= {"file": path.name, "reason": str(error)}
    data = memoryview(_map(path))
    try:
        note["wal_ranges"] = _unpack_header(data, path)[0].wal_ranges
    except StorageError:
        note["wal_ranges"] = None  # the header is what was damaged
    try:
        footer = _unpack_footer(data, path)
        note["points"], note["series"] = footer.points, footer.series
        found = Segment(path, 0)
        note["first_time"], note["last_time"] = int(found.ints[T_MIN].min()), int(found.ints[T_MAX].max())
    except DamagedError:
        return note  # the footer or the index is what was damaged
    return note


def _map(path: Path) -> mmap.mmap | bytes:
    with path.open("rb") as file:
        if file.seek(0, 2) == 0:
            return b""  # cannot be mapped; no header is in it either
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _unpack_header(data: Any, where: Path) -> tuple[Header, int]:
    """A header and its length."""
    body = layout.read_header(data, MAGIC, VERSION, where)
    if len(body) < _HEADER.size:
        raise DamagedError(f"{where}: header of {len(body)} bytes, want {_HEADER.size}")
    store_id, origin, delete_number, ranges, replaced = _HEADER.unpack_from(body)
    if len(body) < _HEADER.size + 8 * (2 * ranges + replaced):
        raise DamagedError(f"{where}: header of {len(body)} bytes for {ranges} ranges and {replaced} segments")
    numbers = struct.unpack_from(f"<{2 * ranges + replaced}Q", body, _HEADER.size)
    pairs = tuple(zip(numbers[: 2 * ranges : 2], numbers[1 : 2 * ranges : 2], strict=True))
    return Header(store_id, origin, delete_number, pairs, numbers[2 * ranges :]), len(body) + layout.PREAMBLE_BYTES


def _unpack_footer(data: Any, where: Path) -> _Footer:
    if len(data) < _FOOTER.size:
        raise DamagedError(f"{where}: {len(data)} bytes, want a footer of {_FOOTER.size}")
    tail = bytes(data[len(data) - _FOOTER.size :])
    *fields, checksum, magic = _FOOTER.unpack(tail)
    computed = files.crc32c(tail[:_FOOTER_CRC_AT])
    if magic != FOOTER_MAGIC or computed != checksum:
        raise DamagedError(f"{where}: no footer at its end (magic {magic!r}, CRC {computed:08x}, want {checksum:08x})")
    return _Footer._make(fields)


def _check_index(data: Any, footer: _Footer, after_header: int, where: Path) -> None:
    end = footer.index_offset + footer.index_bytes
    if not after_header <= footer.index_offset <= end == len(data) - _FOOTER.size:
        raise DamagedError(f"{where}: index at {footer.index_offset} to {end} in a file of {len(data)} bytes")
    computed = files.crc32c(data[footer.index_offset : end])
    if computed != footer.index_crc:
        raise DamagedError(f"{where}: index has CRC {computed:08x}, want {footer.index_crc:08x}")


def _index_parts(blocks: int, series: int) -> list[tuple[Any, tuple[int, ...]]]:
    """dtype and shape of each array of the index but the key bytes, in order."""
    return [
        (np.dtype("<i8"), (4, blocks)),  # t_min, t_max, digest, offset
        (np.dtype("<f8"), (6, blocks)),  # sum hi and lo, min, max, first, last
        (np.dtype("<u8"), (series,)),  # hashes, ascending
        (np.dtype("<u4"), (5, blocks)),  # series, count, length of timestamps and of values, CRC
        (np.dtype("<u4"), (series + 1,)),  # first block of each series, and the number of blocks
        (np.dtype("<u4"), (series + 1,)),  # where each key begins in the key bytes, and their length
        (np.dtype("u1"), (2, blocks)),  # codec of timestamps and of values
    ]
