"""A node's data directory: every name in it, the node's identity, and what was set aside as damaged.

    NODE                             who the directory belongs to
    LOCK                             held while a process uses it
    wal/wal-<16 digits>.log          WAL files
    segments/seg-<16 digits>.mts     segments
    deletes/del-<16 digits>.mtd      delete records
    damaged/                         damaged files and parts of files, each with a note <name>.json beside it
    BEHIND                           what the node may lack (behind.py); there only while it does
    DROPPED                          partitions that were given away, on their way out (dropping.py)
    RING                             the epoch of the latest ring by which the node had other partitions, or fellows

WAL files and segments draw their numbers from one sequence that never restarts, so the names alone tell which
numbers were used, also of what was damaged. Delete records bear numbers given from outside. Never reads what lies
inside these files, but for the 16 bytes with which all of them begin. Called by any thread of the store.
"""

import contextlib
import json
import re
import secrets
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from common import files, log
from common.errors import StorageError

NODE_FORMAT: Final = 1
STORE_ID_BYTES: Final = 16
NODE, LOCK, WAL, SEGMENTS, DELETES, DAMAGED = "NODE", "LOCK", "wal", "segments", "deletes", "damaged"
BEHIND, DROPPED, RING = "BEHIND", "DROPPED", "RING"
DELETE_SUFFIX: Final = ".mtd"

# What a directory may hold and still count as empty: our lock, and what a file system puts in its own root.
_NOT_DATA: Final = frozenset({LOCK, NODE + files.TEMPORARY, "lost+found"})
_NAME: Final = re.compile(r"(wal|seg)-(\d{16})")
_DELETE_NAME: Final = re.compile(r"(del)-(\d{16})")

# The first 16 bytes of every WAL file and segment, in this and all later versions: magic, version, reserved,
# length of the whole header, CRC32C over bytes 0..11 and 16..length.
_PREAMBLE: Final = struct.Struct("<4sHHII")
PREAMBLE_BYTES: Final = _PREAMBLE.size
_MAX_HEADER_BYTES: Final = 1 << 24

logger = log.get("storage.layout")


class DamagedError(StorageError):
    """A file, or a part of one, that is not what was written. The text begins with the file's path and a colon."""


class RingFile(msgspec.Struct, frozen=True):
    """What the file RING says."""

    format: int
    epoch: int


class NodeFile(msgspec.Struct, frozen=True):
    """What the file NODE says. store_id: 32 hexadecimal digits."""

    format: int
    cluster: str = ""
    node: str = ""
    store_id: str = ""


@dataclass(frozen=True, slots=True)
class Layout:
    """An open data directory. store_id: 16 random bytes, drawn when the directory was first used.

    disk: what everything that is changed in the directory goes through. watchers: told of each new note before anything
    is set aside; where one raises, nothing is. Filled before other threads use the directory.
    """

    directory: Path
    store_id: bytes
    lock: files.DirectoryLock
    disk: files.Disk = files.DISK
    watchers: list[Callable[[dict[str, Any]], None]] = field(default_factory=list, compare=False)

    def wal_path(self, number: int) -> Path:
        """Where the WAL file of this number lies."""
        return self.directory / WAL / f"wal-{number:016d}.log"

    def segment_path(self, number: int) -> Path:
        """Where the segment of this number lies."""
        return self.directory / SEGMENTS / f"seg-{number:016d}.mts"

    def wal_numbers(self) -> list[int]:
        """The numbers of the WAL files present, ascending."""
        return _numbers(self.directory / WAL, ".log", _NAME)

    def wal_sizes(self) -> list[int]:
        """The lengths in bytes of the WAL files present; one that goes away meanwhile is left out."""
        sizes = []
        for number in self.wal_numbers():
            with contextlib.suppress(FileNotFoundError):
                sizes.append(self.wal_path(number).stat().st_size)
        return sizes

    def segment_numbers(self) -> list[int]:
        """The numbers of the segments present, ascending."""
        return _numbers(self.directory / SEGMENTS, ".mts", _NAME)

    def delete_path(self, number: int) -> Path:
        """Where the delete record of this number lies."""
        return self.directory / DELETES / f"del-{number:016d}{DELETE_SUFFIX}"

    def delete_numbers(self) -> list[int]:
        """The numbers of the delete records present, ascending."""
        return _numbers(self.directory / DELETES, DELETE_SUFFIX, _DELETE_NAME)

    def highest_delete(self) -> int:
        """The highest number of any delete record here, damaged ones included; 0 for none."""
        return self._highest(_DELETE_NAME, DELETES, DAMAGED)

    def highest_number(self) -> int:
        """The highest number that any file here bears, damaged ones included; 0 for none."""
        return self._highest(_NAME, WAL, SEGMENTS, DAMAGED)

    def ring_epoch(self) -> int:
        """What `note_ring` was told last, 0 before. Raises StorageError."""
        path = self.directory / RING
        try:
            read = msgspec.json.decode(path.read_bytes(), type=RingFile)
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise unusable(self.directory, error) from error
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise StorageError(f"{path}: {error}; without it the node goes by whatever ring there is") from error
        if read.format > NODE_FORMAT:
            raise StorageError(f"{path} has format version {read.format}, this program reads up to {NODE_FORMAT}")
        return read.epoch

    def note_ring(self, epoch: int) -> None:
        """Make durable that the node has gone by the ring of this epoch. Raises StorageError."""
        data = msgspec.json.encode(RingFile(NODE_FORMAT, epoch)) + b"\n"
        try:
            files.replace_file(self.directory / RING, [data], disk=self.disk)
        except OSError as error:
            raise StorageError(f"{RING} in {self.directory}: {error.strerror}") from error

    def sweep(self) -> None:
        """Remove what a crash left half written."""
        folders = [self.directory, *(self.directory / name for name in (SEGMENTS, DELETES, DAMAGED))]
        leftovers = [path for folder in folders for path in folder.glob("*" + files.TEMPORARY)]
        if leftovers:
            logger.info("removing files left half written", count=len(leftovers))
            files.remove_files(leftovers, self.disk)

    def announce(self, name: str, note: dict[str, Any]) -> None:
        """Tell the watchers of what is about to be set aside; of what was set aside before they know."""
        if not (self.directory / DAMAGED / (name + ".json")).exists():
            for watcher in self.watchers:
                watcher(note)

    def set_aside_file(self, path: Path, note: dict[str, Any], announced: bool = False) -> None:
        """Move a damaged file out of the way. note: what is known of it; `file` and `reason` at least."""
        if not announced:
            self.announce(path.name, note)
        self._write_note(path.name, note)
        self.disk.rename(path, self.directory / DAMAGED / path.name)
        self.disk.sync_directory(self.directory / DAMAGED)
        self.disk.sync_directory(path.parent)

    def set_aside_bytes(self, name: str, data: Any, note: dict[str, Any]) -> None:
        """Keep a copy of a file's damaged part. The same part found again changes nothing."""
        self.announce(name, note)
        files.replace_file(self.directory / DAMAGED / name, [data], disk=self.disk)
        self._write_note(name, note)

    def note_missing(self, name: str, note: dict[str, Any]) -> None:
        """Put on record something of which not even damaged bytes are left."""
        self.announce(name, note)
        self._write_note(name, note)

    def damaged(self) -> list[dict[str, Any]]:
        """The notes of everything set aside, in order of their names; of a note that is damaged itself, its name."""
        return [_read_note(path) for path in sorted((self.directory / DAMAGED).glob("*.json"))]

    def _highest(self, name: re.Pattern[str], *folders: str) -> int:
        found = (name.match(path.name) for folder in folders for path in (self.directory / folder).iterdir())
        return max((int(match[2]) for match in found if match), default=0)

    def _write_note(self, name: str, note: dict[str, Any]) -> None:
        logger.error("damage found and set aside", **note)
        text = json.dumps(note, sort_keys=True).encode() + b"\n"
        files.replace_file(self.directory / DAMAGED / (name + ".json"), [text], disk=self.disk)


def open_directory(directory: Path, cluster: str, node: str, disk: files.Disk = files.DISK) -> Layout:
    """Make or open the data directory of a node, and hold it until `lock.release()`.

    Raises StorageError when it belongs to another cluster or node, is of a newer format, holds something else,
    is in use, or cannot be written.
    All names found are made durable: a process that was killed may have left some that are not, and what is built
    on them (a WAL file removed because its segment is there) must not outlive them.
    """
    try:
        files.make_directory(directory, disk)
        _refuse_other_content(directory)
        lock = files.DirectoryLock(directory)
    except OSError as error:
        raise unusable(directory, error) from error
    try:
        return Layout(directory, _identity(directory, cluster, node, disk), lock, disk)
    except OSError as error:
        lock.release()
        raise unusable(directory, error) from error
    except StorageError:
        lock.release()
        raise


def unusable(directory: Path, error: OSError) -> StorageError:
    """What to say when the operating system refuses something in a data directory."""
    where = f" ({error.filename})" if error.filename else ""
    return StorageError(f"data directory {directory} cannot be used: {error.strerror}{where}")


def pack_header(magic: bytes, version: int, body: bytes) -> bytes:
    """A file's header: the preamble, then `body`."""
    length = PREAMBLE_BYTES + len(body)
    start = _PREAMBLE.pack(magic, version, 0, length, 0)
    checksum = files.crc32c(body, files.crc32c(start[:12]))
    return start[:12] + checksum.to_bytes(4, "little") + body


def read_header(data: Any, magic: bytes, version: int, where: Path) -> memoryview:
    """The body of the header with which `data` begins; it ends where the rest of the file starts.

    Raises DamagedError for bytes that are no such header, StorageError for one of a newer version.
    """
    view = memoryview(data)
    if len(view) < PREAMBLE_BYTES:
        raise DamagedError(f"{where}: {len(view)} bytes, want a header of at least {PREAMBLE_BYTES}")
    found, written, _, length, checksum = _PREAMBLE.unpack_from(view)
    if found != magic:
        raise DamagedError(f"{where}: begins with {found!r}, want {magic!r}")
    if not PREAMBLE_BYTES <= length <= min(len(view), _MAX_HEADER_BYTES):
        raise DamagedError(f"{where}: header of {length} bytes in a file of {len(view)}")
    body = view[PREAMBLE_BYTES:length]
    computed = files.crc32c(body, files.crc32c(view[:12]))
    if computed != checksum:
        raise DamagedError(f"{where}: header has CRC {computed:08x}, want {checksum:08x}")
    if written > version:
        raise StorageError(f"{where} has format version {written}, this program reads up to {version}")
    return body


def _numbers(folder: Path, suffix: str, name: re.Pattern[str]) -> list[int]:
    found = (name.fullmatch(path.stem) for path in folder.iterdir() if path.suffix == suffix)
    return sorted(int(match[2]) for match in found if match)


def _read_note(path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (ValueError, RecursionError) as error:  # msgspec's errors and those of UTF-8 are ValueErrors
        return {"file": path.name, "reason": f"note cannot be read: {error}"}


def _refuse_other_content(directory: Path) -> None:
    if (directory / NODE).exists():
        return
    others = sorted(path.name for path in directory.iterdir() if path.name not in _NOT_DATA)
    if others:
        raise StorageError(
            f"{directory} is not a data directory: it has no {NODE} file and is not empty (holds {others[0]})"
        )


def _identity(directory: Path, cluster: str, node: str, disk: files.Disk) -> bytes:
    path = directory / NODE
    if not path.exists():
        disk.sync_directory(directory.parent)
        store_id = secrets.token_bytes(STORE_ID_BYTES)
        mine = NodeFile(NODE_FORMAT, cluster, node, store_id.hex())
        files.replace_file(path, [msgspec.json.encode(mine) + b"\n"], disk=disk)
    read = read_node(path)
    for name, got, want in (("cluster", read.cluster, cluster), ("node", read.node, node)):
        if got != want:
            raise StorageError(f"{directory} belongs to {name} {got!r}, this is {name} {want!r}")
    for name in (WAL, SEGMENTS, DELETES, DAMAGED):
        files.make_directory(directory / name, disk)
        disk.sync_directory(directory / name)
    disk.sync_directory(directory)
    return bytes.fromhex(read.store_id)


def read_node(path: Path) -> NodeFile:
    """What a file NODE says. Raises StorageError where that is nothing usable, or of a newer format."""
    try:
        read = msgspec.json.decode(path.read_bytes(), type=NodeFile)
    except msgspec.MsgspecError as error:
        raise StorageError(f"{path}: {error}") from error
    if read.format > NODE_FORMAT:
        raise StorageError(f"{path} has format version {read.format}, this program reads up to {NODE_FORMAT}")
    if re.fullmatch(rf"[0-9a-f]{{{2 * STORE_ID_BYTES}}}", read.store_id) is None:
        raise StorageError(f"{path}: store_id {read.store_id!r}, want {2 * STORE_ID_BYTES} hexadecimal digits")
    return read
