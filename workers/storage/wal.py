"""The write-ahead log: what its files look like, and the writer of them.

Owns the current WAL file. Never reads one (recovery.py does). A file that failed once, in write or fdatasync, is
never written again: a retried fsync can report success for pages that the kernel has dropped. Files are not
preallocated: writing zeros first writes every byte twice, and fallocate gained less than the noise when measured.
Writer thread only.

Format (docs/file-formats.md): a header [store id, number of the file, previous file, its length], then records
[magic, length, CRC32C, payload]. The CRC begins from a seed made of store id and file number, so a record
that strays here from another file is not taken for one of this file.
"""

import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgpack

from common import files, log
from common.errors import StorageError
from workers.storage import layout

MAGIC: Final = b"MTWL"
VERSION: Final = 1
RECORD_MAGIC: Final = b"\xf5MTR"  # 0xf5 is in no UTF-8 text, so ids and tags never look like one
BATCH: Final = 1  # kind of record: the body of a point batch as it was received

ROLL_BYTES: Final = 8 << 20  # a file this long is followed by a new one: what replay holds in memory at once

_ARRAY_OF_4, _BIN_32 = b"\x94", b"\xc6"  # as msgpack writes them

_HEADER: Final = struct.Struct(f"<{layout.STORE_ID_BYTES}sQQQ")
HEADER_BYTES: Final = layout.PREAMBLE_BYTES + _HEADER.size
FRAME: Final = struct.Struct("<4sII")  # magic, length, CRC32C; then the payload
RECORD_BYTES: Final = FRAME.size + 25  # of a record beside its body, at most: three integers, two prefixes

logger = log.get("storage.wal")


class Header(NamedTuple):
    """What a file's header says.

    previous: the file written before, 0 for none; previous_length: how many bytes of it hold acked records. What
    lies behind them was never acked.
    """

    store_id: bytes
    number: int
    previous: int
    previous_length: int

    def pack(self) -> bytes:
        """The header's bytes."""
        return layout.pack_header(MAGIC, VERSION, _HEADER.pack(*self))


def unpack_header(data: Any, where: Path) -> Header:
    """The header of a WAL file. Raises DamagedError, or StorageError for a newer version."""
    body = layout.read_header(data, MAGIC, VERSION, where)
    if len(body) < _HEADER.size:
        raise layout.DamagedError(f"{where}: header of {len(body)} bytes, want {_HEADER.size}")
    return Header._make(_HEADER.unpack_from(body))


def seed(store_id: bytes, number: int) -> int:
    """Where the CRC of each record of a file begins."""
    return files.crc32c(store_id + number.to_bytes(8, "little"))


def pack_record(body: bytes, born: int, delete_number: int, crc_seed: int) -> list[bytes]:
    """The record of one batch, as parts to be written one after another; the body is not copied."""
    numbers = b"".join(map(msgpack.packb, (BATCH, born, delete_number)))
    prefix = _ARRAY_OF_4 + numbers + _BIN_32 + len(body).to_bytes(4, "big")
    length = len(prefix) + len(body)
    checksum = record_crc(crc_seed, length, prefix, body)
    return [FRAME.pack(RECORD_MAGIC, length, checksum) + prefix, body]


def record_crc(crc_seed: int, length: int, *payload: Any) -> int:
    """CRC32C of a record: of its length as it lies in the frame, then its payload."""
    checksum = files.crc32c(length.to_bytes(4, "little"), crc_seed)
    for part in payload:
        checksum = files.crc32c(part, checksum)
    return checksum


@dataclass(slots=True)
class WalCounts:
    """What the writer did since the process began. Written by the writer thread, read by any."""

    groups: int = 0
    bytes: int = 0
    failures: int = 0
    sync_ns: int = 0
    sync_last_ns: int = 0
    sync_max_ns: int = 0

    def synced(self, took_ns: int, size: int) -> None:
        """Count one group made durable."""
        self.groups += 1
        self.bytes += size
        self.sync_ns += took_ns
        self.sync_last_ns = took_ns
        self.sync_max_ns = max(self.sync_max_ns, took_ns)


class WalWriter:
    """Appends groups of batches to the newest WAL file. Files are made when first needed.

    place: where the directory is; next_number: draws from the sequence of file numbers; previous: the newest file
    that recovery found, and how far it is good.
    """

    def __init__(self, place: layout.Layout, next_number: Callable[[], int], previous: tuple[int, int]) -> None:
        self._layout = place
        self._disk = place.disk
        self._next_number = next_number
        self._previous = previous
        self._descriptor = -1  # of the current file; -1 when there is none
        self._number = 0
        self._length = 0  # of the current file's durable part
        self._seed = 0
        self.counts = WalCounts()

    def append(self, batches: Sequence[tuple[bytes, int]], delete_number: int) -> int:
        """Make batches (body, born) durable with one write and one fdatasync; the number of their file.

        Raises StorageError when the disk fails: then none of them counts, and the next call begins a new file.
        """
        try:
            if self._length >= ROLL_BYTES:
                self.roll()
            if self._descriptor < 0:
                self._begin_file()
            self._write_group(batches, delete_number)
        except OSError as error:
            self.counts.failures += 1
            self._abandon()
            raise StorageError(f"WAL in {self._layout.directory}: {error.strerror}") from error
        return self._number

    def roll(self) -> None:
        """Finish the current file: the next group goes to a new one."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            self._previous = (self._number, self._length)
            try:
                self._disk.close(descriptor)
            except OSError as error:  # what was acked was made durable before
                logger.warning("a WAL file did not close well", number=self._number, error=error.strerror)

    def _begin_file(self) -> None:
        """The header is durable before the first record: a file whose header is torn never acked anything."""
        number = self._next_number()
        path = self._layout.wal_path(number)
        self._descriptor = self._disk.create(path, exclusive=True)
        self._number, self._length = number, 0
        header = Header(self._layout.store_id, number, *self._previous).pack()
        self._disk.write(self._descriptor, header)
        self._disk.sync_data(self._descriptor)
        self._disk.sync_directory(path.parent)
        self._seed = seed(self._layout.store_id, number)
        self._length = len(header)

    def _write_group(self, batches: Sequence[tuple[bytes, int]], delete_number: int) -> None:
        parts: list[bytes] = []
        for body, born in batches:
            parts += pack_record(body, born, delete_number, self._seed)
        data = b"".join(parts)
        self._disk.write(self._descriptor, data)
        begin_ns = time.perf_counter_ns()
        self._disk.sync_data(self._descriptor)
        self.counts.synced(time.perf_counter_ns() - begin_ns, len(data))
        self._length += len(data)

    def _abandon(self) -> None:
        """Give up the file that failed. One that never acked anything goes, lest retries fill a full disk."""
        if self._descriptor < 0:
            return
        descriptor, self._descriptor = self._descriptor, -1
        acked = self._length > HEADER_BYTES
        if acked:
            self._previous = (self._number, self._length)
        try:
            self._disk.close(descriptor)
            if not acked:
                files.remove_files([self._layout.wal_path(self._number)], self._disk)
        except OSError as error:
            logger.warning("cannot put away a WAL file that failed", number=self._number, error=error.strerror)
