"""Reads the WAL after a stop of any kind: what was acked comes back, damage is set aside and put on record.

Owns the WAL directory until the writer begins. Runs once, in the thread that opens the store.

What counts as damage: each file's successor says how many bytes of it were acked, and within those every byte
must be good. Behind them lies what a failed write left, never acked, and ignored. The newest file has no
successor: there the bytes after the last good record are the torn tail of a write that was never acked, and
are cut off. Elsewhere reading goes on at the next place where a record with a right CRC begins.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from common import files, log
from common.errors import ProtocolError
from common.points import PointBatch
from workers.storage import wal
from workers.storage.layout import DamagedError, Layout

JOINED_BYTES: Final = 512 << 10  # records decoded together: small ones take about ten times that as objects

logger = log.get("storage.recovery")


class Payload(msgspec.Struct, array_like=True, frozen=True):
    """A record's payload: docs/file-formats.md. Of kind wal.BATCH as long as there is no other."""

    kind: int
    born: int
    delete_number: int
    body: bytes


_payload_decoder = msgspec.msgpack.Decoder(Payload)


class Replayed(NamedTuple):
    """One WAL file's rows as they were logged, those of many records joined. size: of its good part, bytes.

    delete_number: what all of its records carry; 0 when it holds none.
    """

    number: int
    size: int
    delete_number: int
    batches: list[PointBatch]


class Piece(NamedTuple):
    """Bytes begin..end of a file: one good record (payload given), or bytes that are none."""

    begin: int
    end: int
    payload: memoryview | None


class _Record(NamedTuple):
    """A good record and the batch in it, still bytes."""

    piece: Piece
    body: bytes


@dataclass
class _File:
    """A WAL file to be replayed. acked: how far it holds acked records, None when no successor says.

    delete_number: of its records, None before the first.
    """

    number: int
    path: Path
    header: wal.Header | None
    acked: int | None = None
    delete_number: int | None = None


class Recovery:
    """The WAL as the last process left it. `replay` is to be exhausted before the writer begins.

    covered: whether the rows of a WAL file lie in a segment.
    """

    def __init__(self, place: Layout, covered: Callable[[int], bool]) -> None:
        self._layout = place
        self._covered = covered
        self.files = 0  # to be replayed; known from the first one on
        self.newest = (0, 0)  # the newest file and how far it is good: what the writer's first file names
        self.cut_bytes = 0  # of a torn tail

    def replay(self) -> Iterator[Replayed]:
        """The files whose rows lie in no segment, ascending. Files whose rows do are removed first."""
        numbers = self._layout.wal_numbers()
        covered = [number for number in numbers if self._covered(number)]
        files.remove_files([self._layout.wal_path(number) for number in covered], self._layout.disk)
        found = [self._examine(number) for number in numbers if not self._covered(number)]
        present = [file for file in found if file is not None]
        self.files = len(present)
        self._link(present)
        for at, file in enumerate(present):
            yield self._read(file, newest=at + 1 == len(present))

    def _examine(self, number: int) -> _File | None:
        """A file and its header; None when there is nothing in it to replay."""
        path = self._layout.wal_path(number)
        with path.open("rb") as file:
            start = file.read(wal.HEADER_BYTES)
            size = os.fstat(file.fileno()).st_size
        try:
            header = wal.unpack_header(start, path)
        except DamagedError as error:
            if size <= wal.HEADER_BYTES:  # the header is durable before the first record is written
                files.remove_files([path], self._layout.disk)
                return None
            note = {"file": path.name, "offset": 0, "length": wal.HEADER_BYTES, "reason": str(error)}
            self._layout.set_aside_bytes(f"{path.stem}-at-0.bytes", start, note)
            return _File(number, path, None)
        if (header.store_id, header.number) != (self._layout.store_id, number):
            reason = f"is file {header.number} of store {header.store_id.hex()}, want {number} of this store"
            self._layout.set_aside_file(path, {"file": path.name, "reason": reason})
            return None
        return _File(number, path, header)

    def _link(self, present: list[_File]) -> None:
        """Let each file know what its successor says of it; put on record a file that is gone from between."""
        by_number = {file.number: file for file in present}
        for file in present:
            if file.header is None or file.header.previous == 0:
                continue
            before = by_number.get(file.header.previous)
            if before is not None:
                before.acked = file.header.previous_length
            elif file.header.previous > present[0].number and not self._covered(file.header.previous):
                name = self._layout.wal_path(file.header.previous).name
                reason = f"missing, {file.path.name} names it as the file before"
                self._layout.note_missing(name, {"file": name, "reason": reason})

    def _read(self, file: _File, newest: bool) -> Replayed:
        data = file.path.read_bytes()  # not mapped: a sector that cannot be read is then an error and no signal
        end = len(data)
        if file.acked is not None:
            self._note_shortened(file, len(data))
            end = min(end, file.acked)
        batches: list[PointBatch] = []
        records: list[_Record] = []
        since = 0  # where the records that are not decoded yet begin
        for piece in pieces(data, end, wal.seed(self._layout.store_id, file.number)):
            if piece.payload is not None:
                records += self._unpack(file, piece)
                if piece.end - since >= JOINED_BYTES:
                    batches += self._decode(file, records)
                    records, since = [], piece.end
            elif newest and piece.end == end:
                end = piece.begin
                self._cut(file, piece)
            else:
                self._set_aside(file, piece.begin, data[piece.begin : piece.end], "no record with a right CRC")
        batches += self._decode(file, records)
        if newest:
            self._make_durable(file)
            self.newest = (file.number, end)
        return Replayed(file.number, end, file.delete_number or 0, batches)

    def _unpack(self, file: _File, piece: Piece) -> list[_Record]:
        try:
            payload = unpack_payload(piece.payload or b"")
            if file.delete_number is None:
                file.delete_number = payload.delete_number
            if payload.delete_number != file.delete_number:  # a delete begins a new file
                raise ProtocolError(f"delete number {payload.delete_number} in a file of {file.delete_number}")
            return [_Record(piece, payload.body)]
        except ProtocolError as error:
            self._set_aside(file, piece.begin, piece.payload, f"record cannot be decoded: {error}")
            return []

    def _decode(self, file: _File, records: list[_Record]) -> list[PointBatch]:
        """The rows of records as one batch; as one for each when there is a bad one among them."""
        if not records:
            return []
        try:
            return [PointBatch.decode_joined([record.body for record in records])]
        except ProtocolError:
            return [batch for record in records for batch in self._decode_one(file, record)]

    def _decode_one(self, file: _File, record: _Record) -> list[PointBatch]:
        try:
            return [PointBatch.decode(record.body)]
        except ProtocolError as error:
            self._set_aside(file, record.piece.begin, record.piece.payload, f"record cannot be decoded: {error}")
            return []

    def _note_shortened(self, file: _File, size: int) -> None:
        missing = (file.acked or 0) - size
        if missing > 0:
            note = {"file": file.path.name, "offset": size, "length": missing, "reason": "acked bytes are missing"}
            self._layout.note_missing(f"{file.path.stem}-end", note)

    def _set_aside(self, file: _File, begin: int, data: Any, reason: str) -> None:
        note = {"file": file.path.name, "offset": begin, "length": len(data), "reason": reason}
        self._layout.set_aside_bytes(f"{file.path.stem}-at-{begin}.bytes", data, note)

    def _make_durable(self, file: _File) -> None:
        """A killed process may have left records that are not; the next file will say that they were acked."""
        disk = self._layout.disk
        descriptor = disk.open(file.path)
        try:
            disk.sync(descriptor)
        finally:
            disk.close(descriptor)

    def _cut(self, file: _File, tail: Piece) -> None:
        """Take the torn tail off, so that it never lies between good records."""
        self.cut_bytes = tail.end - tail.begin
        logger.info("torn WAL tail cut off", file=file.path.name, offset=tail.begin, bytes=self.cut_bytes)
        disk = self._layout.disk
        descriptor = disk.open(file.path)
        try:
            disk.truncate(descriptor, tail.begin)
            disk.sync(descriptor)
        finally:
            disk.close(descriptor)


def unpack_payload(payload: bytes | memoryview) -> Payload:
    """What a record says. Raises ProtocolError."""
    try:
        found = _payload_decoder.decode(payload)
    except msgspec.MsgspecError as error:
        raise ProtocolError(f"payload of a record: {error}") from error
    if found.kind != wal.BATCH:
        raise ProtocolError(f"record of kind {found.kind}, want {wal.BATCH}")
    return found


def pieces(data: bytes, end: int, crc_seed: int) -> Iterator[Piece]:
    """Bytes up to `end` of a file, behind its header, as records and what is none."""
    view = memoryview(data)[:end]
    at = min(wal.HEADER_BYTES, end)
    while at < end:
        payload = _payload_at(view, at, crc_seed)
        behind = at + wal.FRAME.size + len(payload or b"")
        stop = _next_record(data, view, at + 1, crc_seed) if payload is None else behind
        yield Piece(at, stop, payload)
        at = stop


def _payload_at(view: memoryview, at: int, crc_seed: int) -> memoryview | None:
    """The payload of the record that begins here; None when none does."""
    if at + wal.FRAME.size > len(view):
        return None
    magic, length, checksum = wal.FRAME.unpack_from(view, at)
    begin = at + wal.FRAME.size
    if magic != wal.RECORD_MAGIC or begin + length > len(view):
        return None
    payload = view[begin : begin + length]
    return payload if wal.record_crc(crc_seed, length, payload) == checksum else None


def _next_record(data: bytes, view: memoryview, begin: int, crc_seed: int) -> int:
    """Where the next good record begins; the end when there is none."""
    at = data.find(wal.RECORD_MAGIC, begin, len(view))
    while at >= 0 and _payload_at(view, at, crc_seed) is None:
        at = data.find(wal.RECORD_MAGIC, at + 1, len(view))
    return at if at >= 0 else len(view)
