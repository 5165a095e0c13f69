"""WAL files as recovery would read them, but without touching them.

What counts as damage is what recovery.py says: within the length that a file's successor names every byte must be
good; in the newest file what follows the last good record is a torn tail, or a record that is being written now.
"""

import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import ProtocolError
from common.points import PointBatch
from common.series import parse_key
from tools.inspection.place import WAL, Entry, Finding, Place
from workers.storage import recovery, wal
from workers.storage.layout import DamagedError


class WalFile(NamedTuple):
    """A WAL file. header: None where it is damaged, as `reason` says; acked: how far its successor says that it holds
    acked records, None where none does; newest: whether it is the last one."""

    entry: Entry
    size: int
    header: wal.Header | None
    reason: str
    acked: int | None
    newest: bool

    @property
    def end(self) -> int:
        """How far it counts."""
        return self.size if self.acked is None else min(self.size, self.acked)

    def is_foreign(self, store_id: bytes) -> bool:
        """Whether its header says that it is another file, or of another store."""
        return self.header is not None and (self.header.store_id, self.header.number) != (store_id, self.entry.number)


class Record(NamedTuple):
    """A good record, and the batch in it, at an offset of the file."""

    offset: int
    length: int
    born: int
    delete_number: int
    batch: PointBatch


class Fault(NamedTuple):
    """Bytes that are no good record. torn: whether they are the end of the newest file, which was never acked."""

    offset: int
    length: int
    what: str
    torn: bool


def wal_files(place: Place) -> list[WalFile]:
    """All WAL files, ascending."""
    while True:
        try:
            read = [_read_header(entry) for entry in place.of_kind(WAL)]
        except FileNotFoundError:
            continue  # sealed by a worker meanwhile: look again, lest a file seem to be missing
        break
    acked = {header.previous: header.previous_length for _, _, header, _ in read if header is not None}
    return [
        WalFile(entry, size, header, reason, acked.get(entry.number), at + 1 == len(read))
        for at, (entry, size, header, reason) in enumerate(read)
    ]


def lone_file(entry: Entry) -> WalFile:
    """A file apart from the others, as one that was set aside."""
    return WalFile(*_read_header(entry), None, newest=True)


def covered_by(number: int, ranges: Sequence[tuple[int, int, int]]) -> int | None:
    """The segment that holds a WAL file's rows. ranges: first and last file, and the segment that covers them."""
    return next((segment for first, last, segment in ranges if first <= number <= last), None)


def contents(file: WalFile, store_id: bytes) -> Iterator[Record | Fault]:
    """Everything behind the header, in order. Raises OSError."""
    data = _map(file.entry.path)
    for piece in recovery.pieces(data, min(file.end, len(data)), wal.seed(store_id, file.entry.number)):
        length = piece.end - piece.begin
        if piece.payload is None:
            torn = file.newest and piece.end == file.end
            what = "torn tail, never acked" if torn else "no record with a right CRC"
            yield Fault(piece.begin, length, what, torn)
            continue
        try:
            payload = recovery.unpack_payload(piece.payload)
            batch = PointBatch.decode(payload.body)
        except ProtocolError as error:
            yield Fault(piece.begin, length, f"record cannot be decoded: {error}", False)
            continue
        yield Record(piece.begin, length, payload.born, payload.delete_number, batch)


def faults(files: Sequence[WalFile], place: Place, covered: Sequence[tuple[int, int, int]]) -> Iterator[Finding]:
    """What is wrong with the files themselves and with the chain that they make, but not with their records."""
    present = [file for file in files if covered_by(file.entry.number, covered) is None]
    for file in present:
        yield from _header_faults(file, place.layout.store_id)
        if file.acked is not None and file.acked > file.size:
            what = f"{file.acked - file.size} acked bytes are missing at its end"
            yield Finding(file.entry.name, f"offset {file.size}", what, f"{file.entry.path.stem}-end")
    numbers = {file.entry.number for file in files}
    for file in present:
        before = file.header.previous if file.header is not None else 0
        if before > present[0].entry.number and before not in numbers and covered_by(before, covered) is None:
            missing = place.entry(place.layout.wal_path(before))
            what = f"missing; {file.entry.name} names it as the file before"
            yield Finding(missing.name, "", what, missing.path.name)


def record_findings(file: WalFile, store_id: bytes) -> Iterator[Finding]:
    """What is wrong with its records."""
    delete_number: int | None = None
    for found in contents(file, store_id):
        if isinstance(found, Fault) and not found.torn:
            yield _finding(file, found.offset, f"{found.length} bytes: {found.what}")
        elif isinstance(found, Record):
            delete_number = found.delete_number if delete_number is None else delete_number
            if found.delete_number != delete_number:
                yield _finding(file, found.offset, f"delete number {found.delete_number} in a file of {delete_number}")
            yield from (_finding(file, found.offset, text) for text in _bad_keys(found.batch))


def _bad_keys(batch: PointBatch) -> Iterator[str]:
    for key in batch.keys:
        try:
            parse_key(key)
        except ProtocolError as error:
            yield str(error)


def _finding(file: WalFile, offset: int, what: str) -> Finding:
    return Finding(file.entry.name, f"offset {offset}", what, f"{file.entry.path.stem}-at-{offset}.bytes")


def _header_faults(file: WalFile, store_id: bytes) -> Iterator[Finding]:
    if file.header is None and file.size > wal.HEADER_BYTES:  # a shorter one never held a record
        yield Finding(file.entry.name, "header", file.reason, f"{file.entry.path.stem}-at-0.bytes")
    elif file.header is not None and file.is_foreign(store_id):
        what = f"is file {file.header.number} of store {file.header.store_id.hex()}"
        yield Finding(file.entry.name, "header", f"{what}, want {file.entry.number} of store {store_id.hex()}")


def _read_header(entry: Entry) -> tuple[Entry, int, wal.Header | None, str]:
    with entry.path.open("rb") as file:
        start = file.read(wal.HEADER_BYTES)
        size = file.seek(0, 2)
    try:
        return entry, size, wal.unpack_header(start, entry.path), ""
    except DamagedError as error:
        return entry, size, None, str(error).removeprefix(f"{entry.path}: ")


def _map(path: Path) -> Any:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if file.seek(0, 2) else b""
