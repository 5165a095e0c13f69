"""A bridge's dead letter as its tool sees it: which records are wanted, what they are together, which files may go.

Reads while the bridge writes: a file that is removed meanwhile is left out, of one that grows the beginning is seen.
Writes only through `purge` and `hand_over`.
"""

import fcntl
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from common import clock, config, topics
from common.errors import MinitrueError
from common.files import DirectoryLock, make_directory, remove_files
from workers.bridge import deadletter, records, replay
from workers.bridge.deadletter import Record

NEW_FILE_S: Final = 10.0  # in which a bridge that runs begins a new file; it looks once a second
POLL_S: Final = 0.05


class BridgePlace:
    """The directories of one bridge. Constant."""

    def __init__(self, settings: config.Settings, bridge_id: str) -> None:
        """Raises MinitrueError when no bridge of that id has written here."""
        self.id = bridge_id
        self.directory = settings.data_dir / "bridge" / bridge_id
        self.letters = self.directory / deadletter.FOLDER
        self.replay = self.directory / replay.FOLDER
        if not self.letters.is_dir():
            known = sorted(path.parent.name for path in self.directory.parent.glob("*/" + deadletter.FOLDER))
            hint = f"bridges here: {', '.join(known)}" if known else "no bridge has run here"
            raise MinitrueError(f"no dead letter at {self.letters}; {hint}")

    @property
    def is_running(self) -> bool:
        """Whether a process holds the directory: the bridge."""
        try:
            descriptor = os.open(self.directory / "LOCK", os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False


class Wanted(NamedTuple):
    """Which records: all that hold. since_ns, until_ns: time of arrival, inclusive. Empty: any. topics: filters."""

    since_ns: int | None = None
    until_ns: int | None = None
    codes: Sequence[str] = ()
    devices: Sequence[str] = ()
    topics: Sequence[str] = ()

    def matches(self, record: Record) -> bool:
        """Whether a record is wanted."""
        return (
            (self.since_ns is None or record.time_ns >= self.since_ns)
            and (self.until_ns is None or record.time_ns <= self.until_ns)
            and (not self.codes or record.code in self.codes)
            and (not self.devices or record.device in self.devices)
            and (not self.topics or self._matches_topic(record.topic.decode(errors="replace")))
        )

    def _matches_topic(self, topic: str) -> bool:
        return any(topics.matches(wanted, topic) for wanted in self.topics)


class File(NamedTuple):
    """What a file holds. oldest_ns, newest_ns: None for no records. damaged_bytes: in no record."""

    path: Path
    bytes: int
    records: int
    oldest_ns: int | None
    newest_ns: int | None
    damaged_bytes: int


class Summary:
    """What there is: the files, and of the wanted records how many by code, device and topic, and their times."""

    def __init__(self) -> None:
        self.files: list[File] = []
        self.codes: Counter[str] = Counter()
        self.devices: Counter[str] = Counter()
        self.topics: Counter[str] = Counter()
        self.oldest_ns: int | None = None
        self.newest_ns: int | None = None

    @property
    def damaged_bytes(self) -> int:
        """Bytes that are in no record. The newest file may be growing, so what it ends with is no damage."""
        return sum(file.damaged_bytes for file in self.files[:-1])

    def count(self, record: Record) -> None:
        """One more wanted record."""
        self.codes[record.code] += 1
        self.devices[record.device or deadletter.UNKNOWN_DEVICE] += 1
        self.topics[record.topic.decode(errors="replace")] += 1
        self.oldest_ns = min(record.time_ns, self.oldest_ns or record.time_ns)
        self.newest_ns = max(record.time_ns, self.newest_ns or record.time_ns)


def records_of(path: Path) -> Iterator[records.Found[Record]]:
    """The records of a file; none when it has been removed. Raises StorageError for one of a newer version."""
    try:
        yield from deadletter.read(path)
    except FileNotFoundError:
        return


def chosen(place: BridgePlace, wanted: Wanted) -> Iterator[tuple[int, Record]]:
    """The wanted records, each with the number of its file: file by file, as they were written."""
    for path in deadletter.files(place.letters):
        for found in records_of(path):
            if wanted.matches(found.record):
                yield records.number_of(path), found.record


def survey(place: BridgePlace, wanted: Wanted | None) -> Summary:
    """Everything at a glance. wanted: None counts no record."""
    summary = Summary()
    for path in deadletter.files(place.letters):
        times = []
        held = 0
        for found in records_of(path):
            times.append(found.record.time_ns)
            held += found.end - found.begin
            if wanted is not None and wanted.matches(found.record):
                summary.count(found.record)
        summary.files.append(_file(path, times, held))
    return summary


def _file(path: Path, times: Sequence[int], held: int) -> File:
    size = path.stat().st_size if path.exists() else held
    return File(path, size, len(times), min(times, default=None), max(times, default=None), max(0, size - held))


def purgeable(place: BridgePlace, before_ns: int | None) -> list[File]:
    """The files all of whose records are older; None: all. Never the newest file: see `close_newest`."""
    files = survey(place, None).files[:-1]
    return [file for file in files if before_ns is None or file.newest_ns is None or file.newest_ns < before_ns]


def close_newest(place: BridgePlace, before_ns: int | None) -> bool:
    """Have a new file begun, if the newest one is to be purged, so that it can be. False: the bridge did not."""
    paths = deadletter.files(place.letters)
    if not paths or not paths[-1].stat().st_size:
        return True
    newest_ns = max((found.record.time_ns for found in records_of(paths[-1])), default=None)
    if before_ns is not None and newest_ns is not None and newest_ns >= before_ns:
        return True
    if not place.is_running:
        lock = DirectoryLock(place.directory)
        try:
            deadletter.begin_new_file(place.letters)
        finally:
            lock.release()
        return True
    return _wait_gone(deadletter.ask_for_new_file(place.letters))


def _wait_gone(marker: Path) -> bool:
    deadline = clock.monotonic_s() + NEW_FILE_S
    while marker.exists():
        if clock.monotonic_s() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def purge(files: Sequence[File]) -> None:
    """Remove files, durably. Raises OSError."""
    remove_files(file.path for file in files)


def hand_over(place: BridgePlace, wanted: Wanted) -> tuple[Path | None, int]:
    """Write the wanted records where the bridge takes them from: the job's folder, and how many. Raises OSError."""
    count = 0

    def counted() -> Iterator[tuple[int, Record]]:
        nonlocal count
        for each in chosen(place, wanted):
            count += 1
            yield each

    make_directory(place.replay)
    lock = DirectoryLock(place.replay)
    try:
        job = replay.post(place.replay, counted())
    finally:
        lock.release()
    return job, count
