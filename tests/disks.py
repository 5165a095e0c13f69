"""Disks that are watched, stopped, full or forgetful: doubles of files.Disk, for tests of what a store survives.

All of them do their work in a real directory. Steps are taken one at a time, whatever thread asks.
"""

import contextlib
import errno
import os
import pickle
import random
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common import files

_KINDS = {".log": "wal", ".mts": "segment", ".mtd": "delete", ".json": "note", ".bytes": "damaged bytes"}


class Step(NamedTuple):
    """A call of a disk, and the kind of file that it concerns: "segment.tmp" is one that is not whole yet."""

    call: str
    kind: str


class Event(NamedTuple):
    """A step that was done. path: of a rename, the old one; to: the new one; data: what was written; size: cut to."""

    step: Step
    path: Path
    data: bytes = b""
    to: Path = Path()
    size: int = 0


def mark(number: int) -> Event:
    """No step, but a word of the test: what it calls `number` was acked by now."""
    return Event(Step("mark", ""), Path(), size=number)


def acked_by(events: Sequence[Event]) -> int:
    """The last number marked, 0 for none."""
    return max((event.size for event in events if event.step.call == "mark"), default=0)


def kind_of(path: Path) -> str:
    """What a file is, by its name."""
    whole = path.name.removesuffix(files.TEMPORARY)
    kind = _KINDS.get(Path(whole).suffix, whole)
    return kind + path.name[len(whole) :]


class QuickDisk(files.Disk):
    """Waits for nothing: for tests that lose no power."""

    def sync(self, descriptor: int) -> None:
        os.fstat(descriptor)

    def sync_data(self, descriptor: int) -> None:
        os.fstat(descriptor)

    def sync_directory(self, path: Path) -> None:
        path.stat()


class SteppingDisk(QuickDisk):
    """Calls `before` ahead of each step, which may raise instead, and `after` behind it. Both hold the lock."""

    def __init__(self) -> None:
        self.turn = threading.RLock()
        self._paths: dict[int, Path] = {}

    def before(self, step: Step, path: Path) -> None:
        """A step is about to be taken."""

    def after(self, event: Event) -> None:
        """A step was taken."""

    def create(self, path: Path, mode: int = 0o644, exclusive: bool = False) -> int:
        with self._step("create", path):
            descriptor = super().create(path, mode, exclusive)
            self._paths[descriptor] = path
        return descriptor

    def open(self, path: Path) -> int:
        with self._step("open", path):
            descriptor = super().open(path)
            self._paths[descriptor] = path
        return descriptor

    def write(self, descriptor: int, data: Any) -> None:
        with self._step("write", self._paths[descriptor], data=bytes(memoryview(data).cast("B"))):
            super().write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        with self._step("sync", self._paths[descriptor]):
            super().sync(descriptor)

    def sync_data(self, descriptor: int) -> None:
        with self._step("sync_data", self._paths[descriptor]):
            super().sync_data(descriptor)

    def truncate(self, descriptor: int, length: int) -> None:
        with self._step("truncate", self._paths[descriptor], size=length):
            super().truncate(descriptor, length)

    def close(self, descriptor: int) -> None:
        with self._step("close", self._paths[descriptor]):
            del self._paths[descriptor]
            super().close(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        with self._step("rename", old, to=new):
            super().rename(old, new)

    def remove(self, path: Path) -> None:
        with self._step("remove", path):
            super().remove(path)

    def make_directory(self, path: Path) -> None:
        with self._step("make_directory", path):
            super().make_directory(path)

    def sync_directory(self, path: Path) -> None:
        with self._step("sync_directory", path):
            super().sync_directory(path)

    @contextlib.contextmanager
    def _step(self, call: str, path: Path, **details: Any) -> Iterator[None]:
        with self.turn:
            step = Step(call, kind_of(path))
            self.before(step, path)
            yield
            self.after(Event(step, path, **details))


class RecordingDisk(SteppingDisk):
    """Keeps a record of what was done. `mark` puts a word of the test among the events."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []

    def after(self, event: Event) -> None:
        self.events.append(event)

    def mark(self, number: int) -> None:
        """Note that what the test calls `number` was acked by now."""
        with self.turn:
            self.after(mark(number))


class KillingDisk(SteppingDisk):
    """Kills its process, as kill -9 does, when the step of this number, from 0, is due. Half of a write is a step.

    number: None never kills. journal: where every step that was done is noted at once, for `read_journal`.
    """

    def __init__(self, number: int | None, journal: Path) -> None:
        super().__init__()
        self._left = number
        self._journal = journal.open("wb", buffering=0)

    def before(self, step: Step, path: Path) -> None:
        if self._left is not None:
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            self._left -= 1

    def after(self, event: Event) -> None:
        self._journal.write(pickle.dumps(event))

    def mark(self, number: int) -> None:
        """Note that what the test calls `number` was acked by now."""
        with self.turn:
            self.after(mark(number))

    def write(self, descriptor: int, data: Any) -> None:
        with self.turn:
            view = memoryview(data).cast("B")
            half = len(view) // 2
            super().write(descriptor, view[:half])
            super().write(descriptor, view[half:])


def read_journal(path: Path) -> list[Event]:
    """The steps that a KillingDisk noted."""
    events = []
    with path.open("rb") as file:
        while file.peek(1):
            events.append(pickle.load(file))
    return events


class FullDisk(SteppingDisk):
    """Has no room left from the step of this number on, for `lasting` steps that need room.

    What needs room: new names and more bytes. A write that fails has written half of its bytes. `refused` lists
    the steps that failed.
    """

    ROOM = frozenset({"create", "write", "make_directory", "rename"})

    def __init__(self, number: int, lasting: int) -> None:
        super().__init__()
        self._number = number
        self._lasting = lasting
        self.taken = 0
        self.refused: list[Step] = []

    def __str__(self) -> str:
        return f"disk full from step {self._number} on, which refused {self.refused}"

    def before(self, step: Step, path: Path) -> None:
        self.taken += 1
        if step.call in self.ROOM and self.taken > self._number and len(self.refused) < self._lasting:
            self.refused.append(step)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def write(self, descriptor: int, data: Any) -> None:
        with self.turn:
            failed = len(self.refused)
            try:
                super().write(descriptor, data)
            except OSError:
                if len(self.refused) > failed:
                    files.write_all(descriptor, memoryview(data).cast("B")[: memoryview(data).nbytes // 2])
                raise


class FailingDisk(SteppingDisk):
    """Fails the step of this number, from 0, and that step alone, with EIO."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = self._left = number
        self.failed: Step | None = None

    def __str__(self) -> str:
        return f"disk that failed at step {self._number}, {self.failed}"

    def before(self, step: Step, path: Path) -> None:
        if self._left == 0:
            self.failed = step
        self._left -= 1
        if self._left == -1:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))


class _File:
    """A file of the platter. durable: what a power cut leaves; pending: what was done since the last fsync."""

    def __init__(self) -> None:
        self.durable = b""
        self.pending: list[Event] = []

    def sync(self) -> None:
        self.durable = self.content(len(self.pending))
        self.pending = []

    def content(self, kept: int, part: float = 1.0) -> bytes:
        """With so many of the pending steps done, the last of them only in part."""
        data = bytearray(self.durable)
        for at, event in enumerate(self.pending[:kept]):
            if event.step.call == "truncate":
                del data[event.size :]
            else:
                share = part if at == kept - 1 else 1.0
                data += event.data[: round(share * len(event.data))]
        return bytes(data)


class _Name(NamedTuple):
    """A change of a directory that waits for its fsync: name now bears `file`, or nothing. pair: of a rename."""

    path: Path
    file: _File | None
    pair: int


class Platter:
    """What a disk that forgets everything not fsynced holds, contents and names, below one directory.

    Fed with the events of a RecordingDisk in their order; `save` writes what a power cut leaves at that moment.
    """

    def __init__(self, top: Path) -> None:
        self._top = top
        self._files: dict[Path, _File] = {}  # by name as processes see them
        self._durable: dict[Path, _File] = {}  # by name as the disk has them
        self._folders: set[Path] = set()  # durable ones
        self._new_folders: set[Path] = set()
        self._pending: list[_Name] = []
        self._renames = 0

    def adopt(self) -> None:
        """Take everything below the directory as durable."""
        if not self._top.exists():
            return
        for path in self._top.rglob("*"):
            if path.is_dir():
                self._folders.add(path)
            elif path.name != "LOCK":
                file = _File()
                file.durable = path.read_bytes()
                self._files[path] = self._durable[path] = file
        self._folders.add(self._top)

    def feed(self, event: Event) -> None:
        """Take in one event."""
        call, path = event.step.call, event.path
        if call == "create":
            self._name(path, _File())
        elif call in ("write", "truncate"):
            self._files[path].pending.append(event)
        elif call in ("sync", "sync_data"):
            self._files[path].sync()
        elif call == "rename":
            self._renames += 1
            self._name(event.to, self._files[path], self._renames)
            self._name(path, None, self._renames)
        elif call == "remove" and path in self._files:
            self._name(path, None)
        elif call == "make_directory":
            self._new_folders.add(path)
        elif call == "sync_directory":
            self._sync_names(path)

    def save(self, to: Path, chance: random.Random | None = None) -> None:
        """Write what is there after a power cut to a new directory.

        chance: None loses all that was not fsynced; else any part of that may have got to the disk.
        """
        kept = self._kept(chance)
        folders = self._folders | {folder for folder in self._new_folders if chance and chance.random() < 0.5}
        to.mkdir()
        for folder in sorted(folders):
            if folder != self._top and self._top in folders:
                (to / folder.relative_to(self._top)).mkdir()
        for path, file in kept.items():
            if path.parent in folders and self._top in folders:
                (to / path.relative_to(self._top)).write_bytes(_torn(file, chance))

    def _name(self, path: Path, file: _File | None, pair: int = 0) -> None:
        self._pending.append(_Name(path, file, pair))
        if file is None:
            del self._files[path]
        else:
            self._files[path] = file

    def _sync_names(self, folder: Path) -> None:
        rest = []
        for change in self._pending:
            if change.path.parent == folder:
                _apply(self._durable, change)
            else:
                rest.append(change)
        self._pending = rest
        made = {each for each in self._new_folders if each.parent == folder}
        self._folders |= made
        self._new_folders -= made

    def _kept(self, chance: random.Random | None) -> dict[Path, _File]:
        names = dict(self._durable)
        if chance is None:
            return names
        share = chance.random()
        lost: set[Path] = set()  # later changes of a name cannot be there without the earlier ones
        fates: dict[int, bool] = {}  # both halves of a rename get there, or none
        for change in self._pending:
            drawn = chance.random() < share or change.path in lost
            if fates.setdefault(change.pair, drawn) if change.pair else drawn:
                lost.add(change.path)
            else:
                _apply(names, change)
        return names


def _apply(names: dict[Path, _File], change: _Name) -> None:
    if change.file is None:
        names.pop(change.path, None)
    else:
        names[change.path] = change.file


def _torn(file: _File, chance: random.Random | None) -> bytes:
    if chance is None or not file.pending:
        return file.durable
    whole = file.content(len(file.pending))
    data = file.content(chance.randint(0, len(file.pending)), chance.random())
    if chance.random() < 0.3 and len(data) < len(whole):  # its length got there, its bytes did not
        data += bytes(len(whole) - len(data))
    return data


def copy_directory(directory: Path, to: Path) -> Path:
    """A copy of a data directory without its lock; an empty one where there is none."""
    if directory.exists():
        shutil.copytree(directory, to, ignore=shutil.ignore_patterns("LOCK"))
    else:
        to.mkdir()
    return to
