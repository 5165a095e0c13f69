"""The dead letter: what was refused, kept with the reason until someone looks. Owns <bridge>/deadletter/.

Files are named 00000001.dead, 00000002.dead, ... and only appended to. A file is a sequence of records,
integers little-endian:

    offset  size
    0       4     magic "MTDL"
    4       4     length of the body, u32
    8       4     crc32c of the file's number as a u64, then the body, u32
    12      n     body: msgpack array [version = 1, time_ns, topic, payload, code, reason, flags]

time_ns: arrival. topic, payload: bytes as received (payload may be one element of an array). code: what the
refusal is counted by; reason: in words. flags: the PUBLISH frame's first byte (bit 0 retain, bits 1-2 QoS, bit 3
dup). A reader looks for the next magic behind anything that is no whole, checksummed record; there a payload may
pose as a record. The file's number in the checksum keeps copies of records in other files from being taken for
records, and a version that is not ours counts only where a record has to begin: at offset 0 or right behind
another. A torn tail is cut at start, so that new records follow whole ones.

Durable in groups: `append` only gathers; `flush` writes, fsyncs once and then releases what waited. While the
disk fails, records stay in memory and wait (no PUBACK goes out for them), and flush tries again.
Belongs to the loop's thread.
"""

import os
import struct
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import msgspec

from common import clock, log
from common.errors import StorageError
from common.files import crc32c, fsync_directory, make_directory, remove_files, write_all

VERSION: Final = 1
MAGIC: Final = b"MTDL"
SUFFIX: Final = ".dead"
RETRY_S: Final = 1.0  # after a failed write; a full disk does not empty faster

_HEAD: Final = struct.Struct("<4sII")
_NAME_DIGITS: Final = 8

logger = log.get("bridge.deadletter")


class Record(msgspec.Struct, array_like=True, frozen=True):
    """One dead letter; see the module's text."""

    version: int
    time_ns: int
    topic: bytes
    payload: bytes
    code: str
    reason: str
    flags: int


class Holdable(Protocol):
    """What waits for a record to become durable: a Message or a Release."""

    def hold(self) -> None: ...

    def release(self) -> None: ...


class Found(NamedTuple):
    """A record in a file, and the offset behind it."""

    record: Record
    end: int


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Record)


class _Gathered(NamedTuple):
    """A record on its way to the disk. body: encoded; its checksum waits for the file that it will lie in."""

    body: bytes
    code: str
    waiter: Holdable

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return _HEAD.size + len(self.body)


class DeadLetter:
    """Appends records.

    counts: records made durable, by code. error: why the disk cannot be written, "" if it can. gathered_bytes: in
    memory, not durable yet.
    """

    def __init__(self, directory: Path, file_bytes: int) -> None:
        """directory: made if missing; this process must hold the lock above it. file_bytes: a file that has
        reached them is followed by another. Raises StorageError.
        """
        self.counts: Counter[str] = Counter()
        self.error = ""
        self.gathered_bytes = 0
        self._directory = directory
        self._file_bytes = file_bytes
        self._gathered: deque[_Gathered] = deque()
        self._descriptor: int | None = None
        self._size = 0  # of the open file, up to its last durable record
        self._retry_s = 0.0
        try:
            make_directory(directory)
            self._number = max((int(path.stem) for path in files(directory)), default=0)
            if self._number:
                self._open_last()
        except OSError as error:
            raise StorageError(f"dead letter {directory}: {error.strerror}") from error

    def append(self, record: Record, waiter: Holdable) -> None:
        """Gather a record; the waiter is held until it is durable."""
        waiter.hold()
        gathered = _Gathered(_encoder.encode(record), record.code, waiter)
        self._gathered.append(gathered)
        self.gathered_bytes += gathered.size

    def flush(self) -> None:
        """Make what was gathered durable and release its waiters, or keep it and note why not."""
        if not self._gathered or clock.monotonic_s() < self._retry_s:
            return
        try:
            while self._gathered:
                self._write_some()
        except OSError as error:
            self._failed(error)
        else:
            self.error = ""

    def close(self) -> None:
        """Close the file. What was not flushed is lost here, and not acknowledged either."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _write_some(self) -> None:
        """Write the records that still begin in the current file, or in a new one."""
        if self._descriptor is None or self._size >= self._file_bytes:
            self._begin_file()
        taken: list[bytes] = []
        seed = _seed(self._number)
        size = self._size
        for record in self._gathered:
            if taken and size >= self._file_bytes:
                break
            taken.append(_HEAD.pack(MAGIC, len(record.body), crc32c(record.body, seed)) + record.body)
            size += record.size
        assert self._descriptor is not None, "BUG: no dead letter file is open"
        write_all(self._descriptor, b"".join(taken))
        os.fsync(self._descriptor)
        self._size = size
        for _ in taken:
            self._release(self._gathered.popleft())

    def _release(self, record: _Gathered) -> None:
        self.gathered_bytes -= record.size
        self.counts[record.code] += 1
        record.waiter.release()

    def _begin_file(self) -> None:
        self.close()
        self._number += 1
        self._size = 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
        self._descriptor = os.open(self._path(self._number), flags, 0o644)
        fsync_directory(self._directory)

    def _failed(self, error: OSError) -> None:
        """Leave the file for good, whole records in it only: a retried fsync can lie. The next try begins another."""
        self.error = error.strerror or str(error)
        self._retry_s = clock.monotonic_s() + RETRY_S
        if logger.limited("failed", 10.0):
            logger.error(
                "dead letter cannot be written, PUBACKs are withheld",
                directory=self._directory, detail=self.error, records=len(self._gathered),
            )  # fmt: skip
        try:
            self._abandon_file()
        except OSError as second:
            logger.error("failed dead letter file left as it is", number=self._number, detail=second.strerror)

    def _abandon_file(self) -> None:
        if self._descriptor is None:
            return
        try:
            os.ftruncate(self._descriptor, self._size)
        finally:
            self.close()
        if self._size == 0:
            remove_files([self._path(self._number)])

    def _open_last(self) -> None:
        path = self._path(self._number)
        end = max((found.end for found in read(path)), default=0)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        torn = os.fstat(self._descriptor).st_size - end
        if torn:
            logger.warning("torn tail of the dead letter cut off", file=path, bytes=torn)
            os.ftruncate(self._descriptor, end)
            os.fsync(self._descriptor)
        self._size = end

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:0{_NAME_DIGITS}}{SUFFIX}"


def files(directory: Path) -> list[Path]:
    """The dead letter's files, oldest first."""
    return sorted((path for path in directory.glob("*" + SUFFIX) if path.stem.isdecimal()), key=lambda p: int(p.stem))


def read(path: Path) -> Iterator[Found]:
    """The records of a file, oldest first; damage is passed over. Raises StorageError for a newer version.

    path: under the name that the bridge gave it, whose number is part of the checksums.
    """
    data, seed = path.read_bytes(), _seed(int(path.stem))
    expected = 0
    at = data.find(MAGIC)
    while at >= 0:
        found = _record_at(data, at, seed, at == expected)
        if found is not None:
            yield found
            expected = found.end
        at = data.find(MAGIC, found.end if found else at + 1)


def _record_at(data: bytes, at: int, seed: int, expected: bool) -> Found | None:
    """expected: a record has to begin here, so what cannot be read is one by other rules, not bytes of a payload."""
    if at + _HEAD.size > len(data):
        return None
    _, length, checksum = _HEAD.unpack_from(data, at)
    end = at + _HEAD.size + length
    body = memoryview(data)[at + _HEAD.size : end]
    if end > len(data) or crc32c(body, seed) != checksum:
        return None
    try:
        record = _decoder.decode(body)
    except msgspec.MsgspecError as error:
        if not expected:
            return None
        raise StorageError(f"dead letter record at offset {at}: {error}") from error
    if record.version == VERSION:
        return Found(record, end)
    if not expected:
        return None
    raise StorageError(f"dead letter record at offset {at} has version {record.version}, want {VERSION}")


def _seed(number: int) -> int:
    """Where the CRC of each record of a file begins."""
    return crc32c(number.to_bytes(8, "little"))
