"""A node's data directory as it lies there: whose it is, and which files of which kind are in it.

Reads names only, writes nothing, holds nothing: a worker may run on it meanwhile.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from common import files
from common.errors import StorageError
from workers.storage import layout
from workers.storage.layout import Layout

SEGMENT, WAL, DELETE, DAMAGED, NOTE, LEFTOVER, OTHER = (
    "segment", "wal", "delete", "damaged", "note", "leftover", "other"
)  # fmt: skip

_DIGITS: Final = re.compile(r"-(\d{16})")
_AT_TOP: Final = frozenset({layout.NODE, layout.LOCK, layout.BEHIND, layout.DROPPED, layout.RING})


class Entry(NamedTuple):
    """A file. number: as in its name, 0 where there is none; name: below the data directory."""

    kind: str
    number: int
    path: Path
    name: str


class Finding(NamedTuple):
    """Something that is wrong. file: its name below the data directory; where: the place in it, "" for all of it.

    note: the name under which a node puts it on record in `damaged` without moving the file, "" where it moves it.
    """

    file: str
    where: str
    what: str
    note: str = ""

    def text(self) -> str:
        """For people."""
        return f"{self.file}: {self.where}: {self.what}" if self.where else f"{self.file}: {self.what}"


class Place:
    """A data directory. layout: its paths; without the lock, so that only paths may be asked of it."""

    def __init__(self, directory: Path) -> None:
        """Raises StorageError where there is none, or one of a newer format."""
        file = directory / layout.NODE
        if not file.exists():
            raise StorageError(f"{directory} is no data directory of a node: it has no file {layout.NODE}")
        self.directory = directory
        self.node = layout.read_node(file)
        self.layout = Layout(directory, bytes.fromhex(self.node.store_id), _NoLock())

    def entries(self) -> list[Entry]:
        """Every file but those at the top, by folder and name."""
        return [self.entry(path) for path in sorted(self._files())]

    def of_kind(self, kind: str) -> list[Entry]:
        """The files of a kind, ascending by number."""
        return sorted((entry for entry in self.entries() if entry.kind == kind), key=lambda entry: entry.number)

    def is_on_record(self, finding: Finding) -> bool:
        """Whether a node, or repair-local, has noted it before."""
        return finding.note != "" and (self.directory / layout.DAMAGED / f"{finding.note}.json").exists()

    def entry(self, path: Path) -> Entry:
        """What a file is, by its name and folder."""
        digits = _DIGITS.search(path.name)
        number = int(digits[1]) if digits else 0
        return Entry(self._kind(path, number), number, path, path.relative_to(self.directory).as_posix())

    def _kind(self, path: Path, number: int) -> str:
        if path.name.endswith(files.TEMPORARY):
            return LEFTOVER
        if path.parent == self.directory / layout.DAMAGED:
            return NOTE if path.suffix == ".json" else DAMAGED
        made = {
            self.layout.segment_path(number): SEGMENT,
            self.layout.wal_path(number): WAL,
            self.layout.delete_path(number): DELETE,
        }
        return made.get(path, OTHER)

    def _files(self) -> Iterator[Path]:
        for path in self.directory.rglob("*"):  # what is removed meanwhile is left out
            if path.is_file() and not (path.parent == self.directory and path.name in _AT_TOP):
                yield path


class _NoLock(files.DirectoryLock):
    """In place of the lock where none is taken."""

    def __init__(self) -> None:
        pass

    def release(self) -> None:
        pass
