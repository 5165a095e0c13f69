"""Record files: what the dead letter and the spool have in common. Each kind has a magic and a suffix of its own.

A directory holds files 00000001<suffix>, 00000002<suffix>, ... which are only appended to. A file is a sequence of
records, integers little-endian:

    offset  size
    0       4     magic
    4       4     length of the body, u32
    8       4     crc32c of the file's number as a u64, then the body, u32
    12      n     body

A reader looks for the next magic behind anything that is no whole, checksummed record; there the inside of a body may
pose as a record. The file's number in the checksum keeps copies of records in other files from being taken for
records, and a body that cannot be decoded counts only where a record has to begin: at offset 0 or right behind
another. A file is read piece by piece, never whole. Bytes that the disk cannot read count as zeros.

A file whose write or fsync failed is cut to its durable records and left for good: a retried fsync can lie.
Belongs to the loop's thread.
"""

import os
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, Generic, NamedTuple, TypeVar

from common import log
from common.errors import StorageError
from common.files import DISK, Disk, crc32c, remove_files

HEAD: Final = struct.Struct("<4sII")
NAME_DIGITS: Final = 8

_WINDOW_BYTES: Final = 1 << 20  # read at a time: many small records cost one call, and little memory
_PAGE_BYTES: Final = 4096  # what a bad sector costs at most

Decoded = TypeVar("Decoded")

logger = log.get("bridge.records")


class Kind(NamedTuple):
    """A kind of record files: what its records begin with, and how its files' names end."""

    magic: bytes
    suffix: str

    def path(self, directory: Path, number: int) -> Path:
        """Where the file of a number is."""
        return directory / f"{number:0{NAME_DIGITS}}{self.suffix}"

    def files(self, directory: Path) -> list[Path]:
        """The files in a directory, oldest first."""
        return sorted((path for path in directory.glob("*" + self.suffix) if path.stem.isdecimal()), key=number_of)

    def pack(self, body: bytes, number: int) -> bytes:
        """A record of the file of this number."""
        return HEAD.pack(self.magic, len(body), crc32c(body, seed(number))) + body


class Span(NamedTuple):
    """Where a record lies: the number of its file, its offset, the offset behind it."""

    number: int
    begin: int
    end: int


class Found(NamedTuple, Generic[Decoded]):
    """A record in a file, its offset and the offset behind it."""

    record: Decoded
    begin: int
    end: int


def number_of(path: Path) -> int:
    """The number of a file; it has the name under which the bridge made it."""
    return int(path.stem)


def seed(number: int) -> int:
    """Where the CRC of each record of a file begins."""
    return crc32c(number.to_bytes(8, "little"))


class Writer:
    """Appends records to the newest file of a directory, in groups, each with one fsync.

    number: of the newest file, 0 for none yet. size: of its durable part.
    """

    def __init__(self, directory: Path, kind: Kind, number: int, file_bytes: int, disk: Disk = DISK) -> None:
        """directory: is there, and this process holds the lock above it. number: the highest in use, 0 for none.
        file_bytes: a file that has reached them is followed by another.
        """
        self.number = number
        self.size = 0
        self._directory = directory
        self._kind = kind
        self._file_bytes = file_bytes
        self._disk = disk
        self._descriptor = -1  # of the open file; -1: the next append begins another

    def resume(self, size: int) -> None:
        """Go on in the newest file, whose records end at `size`; what is behind is cut off. Raises OSError."""
        path = self._kind.path(self._directory, self.number)
        cut(path, size, self._disk)
        self._descriptor = self._disk.open(path)
        os.lseek(self._descriptor, size, os.SEEK_SET)
        self.size = size

    def append(self, bodies: Iterable[bytes]) -> list[Span]:
        """Make records durable: as many of the bodies, one at least, as begin in the newest file or, when that is
        full, in a new one. Where they lie.

        Raises OSError: then none of them counts, and the next call begins another file.
        """
        try:
            if self._descriptor < 0 or self.size >= self._file_bytes:
                self._begin_file()
            spans, data = self._frame(bodies)
            self._disk.write(self._descriptor, data)
            self._disk.sync_data(self._descriptor)
        except OSError:
            self._abandon()
            raise
        self.size = spans[-1].end
        return spans

    def roll(self) -> None:
        """Begin another file now, empty though it be. Raises OSError: then the next append does."""
        try:
            self._begin_file()
        except OSError:
            self._abandon()
            raise

    def close(self) -> None:
        """Let the file go: the next append begins another."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            self._disk.close(descriptor)

    def _frame(self, bodies: Iterable[bytes]) -> tuple[list[Span], bytes]:
        spans: list[Span] = []
        parts: list[bytes] = []
        begin, start = self.size, seed(self.number)
        for body in bodies:
            parts += (HEAD.pack(self._kind.magic, len(body), crc32c(body, start)), body)
            spans.append(Span(self.number, begin, begin + HEAD.size + len(body)))
            begin = spans[-1].end
            if begin >= self._file_bytes:
                break
        return spans, b"".join(parts)

    def _begin_file(self) -> None:
        self.close()
        self.number += 1
        self.size = 0
        self._descriptor = self._disk.create(self._kind.path(self._directory, self.number), exclusive=True)
        self._disk.sync_directory(self._directory)

    def _abandon(self) -> None:
        """Leave the file for good, durable records in it only, and without any not at all."""
        if self._descriptor < 0:
            return
        descriptor, self._descriptor = self._descriptor, -1
        try:
            try:
                self._disk.truncate(descriptor, self.size)
            finally:
                self._disk.close(descriptor)
            if self.size == 0:
                remove_files([self._kind.path(self._directory, self.number)], self._disk)
        except OSError as error:
            path = self._kind.path(self._directory, self.number)
            logger.error("file whose write failed left as it is", file=path, detail=error.strerror)


def cut(path: Path, size: int, disk: Disk = DISK) -> None:
    """Cut a file, durably, to `size` bytes; one that has no more is left alone. Raises OSError."""
    if path.stat().st_size <= size:
        return
    descriptor = disk.open(path)
    try:
        disk.truncate(descriptor, size)
        disk.sync(descriptor)
    finally:
        disk.close(descriptor)


def read(path: Path, kind: Kind, decode: Callable[[bytes], Decoded]) -> Iterator[Found[Decoded]]:
    """The records of a file, oldest first; damage is passed over.

    decode: makes a record of a body; raises StorageError with the reason when that is none of its version.
    Raises StorageError for such a one where a record has to begin, OSError when the file cannot be opened.
    """
    with path.open("rb", buffering=0) as file:
        window = Window(file.fileno(), os.fstat(file.fileno()).st_size)
        at = 0
        while (found := first(window, kind, path, at, decode)) is not None:
            yield found
            at = found.end


def first(
    window: "Window", kind: Kind, path: Path, expected: int, decode: Callable[[bytes], Decoded]
) -> Found[Decoded] | None:
    """The first record of a file from an offset on, at which one has to begin; None if none follows. Else like read."""
    at = expected
    while at >= 0:
        body = window.body(kind, number_of(path), at)
        found = None if body is None else _decoded(path, body, decode, at, at == expected)
        if found is not None:
            return found
        at = window.find(kind.magic, at + 1)
    return None


class Window:
    """Reads a file a mebibyte at a time, what is larger by itself.

    size: how much of the file there is to read; may grow. unreadable: how often the disk could not read.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        """descriptor: of the file, open for reading; it stays the caller's."""
        self.size = size
        self.unreadable = 0
        self._descriptor = descriptor
        self._begin = 0
        self._data = b""

    def body(self, kind: Kind, number: int, at: int) -> bytes | None:
        """The body of the record at an offset of the file of that number, None where there is no whole one."""
        begin = at + HEAD.size
        if begin > self.size:
            return None
        magic, length, checksum = HEAD.unpack(self.get(at, HEAD.size))
        if magic != kind.magic or begin + length > self.size:
            return None
        body = self.get(begin, length)
        return body if crc32c(body, seed(number)) == checksum else None

    def find(self, text: bytes, at: int) -> int:
        """The offset of the next such bytes from `at` on, -1 for none."""
        while at + len(text) <= self.size:
            data = self.get(at, min(_WINDOW_BYTES, self.size - at))
            found = data.find(text)
            if found >= 0:
                return at + found
            at += len(data) - len(text) + 1
        return -1

    def get(self, at: int, length: int) -> bytes:
        """Bytes of the file; zeros where it has become shorter, and for pages that the disk cannot read."""
        if length > _WINDOW_BYTES:
            return self._read(at, length)
        if not self._begin <= at <= at + length <= self._begin + len(self._data):
            self._data = b""  # before there is another
            self._begin, self._data = at, self._read(at, min(_WINDOW_BYTES, self.size - at))
        return self._data[at - self._begin : at - self._begin + length]

    def _read(self, at: int, length: int) -> bytes:
        data = self._read_some(at, length)
        while len(data) < length:
            some = self._read_some(at + len(data), length - len(data))
            data += some or bytes(length - len(data))
        return data

    def _read_some(self, at: int, length: int) -> bytes:
        try:
            return os.pread(self._descriptor, length, at)
        except OSError:
            length = min(length, _PAGE_BYTES - at % _PAGE_BYTES)
        try:
            return os.pread(self._descriptor, length, at)
        except OSError:
            self.unreadable += 1
            return bytes(length)


def _decoded(
    path: Path, body: bytes, decode: Callable[[bytes], Decoded], at: int, expected: bool
) -> Found[Decoded] | None:
    """expected: a record has to begin here, so what cannot be decoded is one by other rules, not inside of a body."""
    try:
        return Found(decode(body), at, at + HEAD.size + len(body))
    except StorageError as error:
        if not expected:
            return None
        raise StorageError(f"{path}: record at offset {at}: {error}") from error
