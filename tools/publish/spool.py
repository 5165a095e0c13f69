"""What waits on disk while the broker is away: messages in files, oldest first, across restarts of the publisher.

Owns the files NUMBER.spool of one directory that it made or took over, each under a lock that dies with the process:
a file whose writer is gone belongs to the next publisher that comes by, one whose writer lives is left alone. So
publishers may share a directory. A file is only appended to; when it is full, or what it holds is to be sent, another
is begun; when everything in it is acknowledged it is removed.

Bytes reach the system at once, so that kill -9 loses nothing; they are fsynced about once a second, so that a power
cut loses the last second. Files are record files (workers/bridge/records.py); docs/publisher.md has the body of a
record and an example. Belongs to one thread.
"""

import fcntl
import os
import struct
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from common import clock
from common.errors import StorageError
from common.files import DISK, Disk, make_directory
from tools.publish.message import Outgoing
from workers.bridge import records

KIND: Final = records.Kind(b"MTPS", ".spool")
MAX_PART_BYTES: Final = 4 << 20  # of a file; it is read whole
PARTS: Final = 8  # so many files at least share the bytes that are allowed: space comes back in these steps
SYNC_S: Final = 1.0
RETRY_S: Final = 1.0  # after the disk has failed

_HEAD: Final = struct.Struct("<IH")  # of a body: points, bytes of the topic


class Part:
    """One file. left, left_points: messages in it that are not acknowledged; size: bytes.

    done: called when it is closed and nothing is left.
    """

    def __init__(self, path: Path, descriptor: int, done: Callable[["Part"], None]) -> None:
        self.path = path
        self.descriptor = descriptor  # holds the lock
        self.size = self.left = self.left_points = 0
        self.is_open = True  # for appending
        self._done = done

    def hold(self, messages: Sequence[Outgoing]) -> None:
        """These are in it, too."""
        self.left += len(messages)
        self.left_points += sum([message.points for message in messages])

    def settle(self, points: int) -> None:
        """A message of so many points is acknowledged, or refused for good."""
        self.left -= 1
        self.left_points -= points
        self.finish_if_done()

    def finish_if_done(self) -> None:
        """Call `done` when nothing is to come and nothing is left."""
        if not self.left and not self.is_open:
            self._done(self)


class Spool:
    """The messages that wait in a directory, in at most limit_bytes of files.

    waiting: messages that `take` has not given yet. report: told, in words, of damage and of a disk that fails.
    """

    def __init__(self, directory: Path, limit_bytes: int, report: Callable[[str], None], disk: Disk = DISK) -> None:
        """Takes over what earlier publishers left. The directory is made when there is something to keep."""
        self.directory = directory
        self.waiting = 0
        self._limit = limit_bytes
        self._part_bytes = min(MAX_PART_BYTES, limit_bytes // PARTS)
        self._report = report
        self._disk = disk
        self._parts: list[Part] = []  # all whose files are there
        self._unread: deque[Part] = deque()
        self._open: Part | None = None
        self._ready: deque[Outgoing] = deque()  # read and not given yet
        self._unsynced: dict[Part, None] = {}
        self._synced_s = self._retry_at_s = float("-inf")
        self._made_directory = False
        self._adopt()

    @property
    def messages(self) -> int:
        """Messages on disk that are not acknowledged, those that `take` and `keep` gave among them."""
        return sum([part.left for part in self._parts])

    @property
    def points(self) -> int:
        """The points in them."""
        return sum([part.left_points for part in self._parts])

    def append(self, messages: Sequence[Outgoing]) -> int:
        """Keep messages for `take`, the first ones that there is room for; how many."""
        kept = 0
        while kept < len(messages) and (part := self._write(messages[kept:])):
            if not self._unread or self._unread[-1] is not part[0]:
                self._unread.append(part[0])
            kept += part[1]
        self.waiting += kept
        return kept

    def keep(self, messages: Sequence[Outgoing]) -> list[Outgoing]:
        """Have messages on disk that the caller holds, the first ones that there is room for; the same, with parts."""
        self._roll()
        loose = [message for message in messages if message.part is None]
        kept: list[Outgoing] = []
        while len(kept) < len(loose) and (part := self._write(loose[len(kept) :])):
            kept += [message._replace(part=part[0]) for message in loose[len(kept) : len(kept) + part[1]]]
        self._roll()
        with_parts = iter(kept)
        return [message if message.part else next(with_parts, message) for message in messages]

    def take(self, count: int) -> list[Outgoing]:
        """The oldest messages that wait, at most so many. Each leaves the disk when its part was told `settle`."""
        while len(self._ready) < count and self._unread:
            part = self._unread.popleft()
            if part is self._open:
                self._roll()
            expected = part.left
            messages = self._read(part)
            self.waiting -= expected - len(messages)  # damage
            self._ready.extend(messages)
            part.finish_if_done()
        taken = [self._ready.popleft() for _ in range(min(count, len(self._ready)))]
        self.waiting -= len(taken)
        return taken

    def tick(self) -> None:
        """Make durable what was written, once in a while."""
        if self._unsynced and clock.monotonic_s() - self._synced_s >= SYNC_S:
            self._sync()

    def close(self) -> None:
        """Make durable what is left, and leave it to the next publisher."""
        self._roll()
        self._sync()
        for part in self._parts:
            self._disk.close(part.descriptor)
        if self._made_directory and not self._parts:
            self._remove_directory()

    # Files.

    def _adopt(self) -> None:
        try:
            paths = KIND.files(self.directory)
        except OSError as error:
            self._report(f"{self.directory}: {error.strerror}; what an earlier run may have left there is not sent")
            return
        for path in paths:
            part = self._locked(path)
            if part is None:
                continue
            part.size, part.is_open = path.stat().st_size, False
            self._parts.append(part)
            self.waiting += len(self._read(part))
            self._unread.append(part)

    def _locked(self, path: Path) -> Part | None:
        """A file that is there, unless it is another publisher's or already removed by one."""
        try:
            descriptor = self._disk.open(path)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                self._report(f"{path}: {error.strerror}; what it holds is not sent")
            return None
        if not _lock(descriptor) or not os.fstat(descriptor).st_nlink:
            self._disk.close(descriptor)
            return None
        return Part(path, descriptor, self._remove)

    def _read(self, part: Part) -> list[Outgoing]:
        """All that a part holds; damage is told and passed over."""
        messages: list[Outgoing] = []
        good_bytes = 0
        why = ""
        try:
            for found in records.read(part.path, KIND, decode):
                topic, payload, points, _ = found.record
                messages.append(Outgoing(topic, payload, points, part))
                good_bytes += found.end - found.begin
        except (OSError, StorageError) as error:
            why = f": {error}"
        if good_bytes < part.size:
            self._report(f"{part.path}: {part.size - good_bytes} bytes are damaged and not sent{why}")
        part.left = part.left_points = 0
        part.hold(messages)
        return messages

    def _write(self, messages: Sequence[Outgoing]) -> tuple[Part, int] | None:
        """Write the first messages into one file, as many as it takes; None for none."""
        if clock.monotonic_s() < self._retry_at_s:
            return None
        room = self._limit - sum([part.size for part in self._parts])
        try:
            if self._open is None or self._open.size >= self._part_bytes:
                self._roll()
                if room <= 0:
                    return None
                self._open = self._begin()
            return self._append(self._open, messages, room)
        except OSError as error:
            self._retry_at_s = clock.monotonic_s() + RETRY_S
            self._report(f"{self.directory}: cannot keep messages: {error}")
            self._abandon()
            return None

    def _append(self, part: Part, messages: Sequence[Outgoing], room: int) -> tuple[Part, int] | None:
        number = records.number_of(part.path)
        data = bytearray()
        count = 0
        for message in messages:
            record = KIND.pack(encode(message), number)
            if len(data) + len(record) > room or (count and part.size + len(data) >= self._part_bytes):
                break
            data += record
            count += 1
        if not count:
            return None
        self._disk.write(part.descriptor, data)
        part.size += len(data)
        part.hold(messages[:count])
        self._unsynced[part] = None
        return part, count

    def _begin(self) -> Part:
        """A new file, locked. Raises OSError."""
        if not self.directory.is_dir():
            make_directory(self.directory, self._disk)
            self._made_directory = True
        number = max(map(records.number_of, KIND.files(self.directory)), default=0)
        while True:
            number += 1
            path = KIND.path(self.directory, number)
            try:
                descriptor = self._disk.create(path, exclusive=True)
            except FileExistsError:
                continue  # another publisher was faster
            if _lock(descriptor):
                break
            self._disk.close(descriptor)  # another one took it for a leftover
        part = Part(path, descriptor, self._remove)
        self._parts.append(part)
        self._disk.sync_directory(self.directory)
        return part

    def _roll(self) -> None:
        """Append no more to the open file."""
        if self._open is not None:
            part, self._open = self._open, None
            part.is_open = False
            part.finish_if_done()

    def _abandon(self) -> None:
        """Leave a file whose write failed, whole records in it only."""
        part = self._open
        if part is None:
            return
        try:
            self._disk.truncate(part.descriptor, part.size)
        except OSError as error:
            self._report(f"{part.path}: {error.strerror}; half a record may stay at its end, to be passed over")
        self._roll()

    def _remove(self, part: Part) -> None:
        self._parts.remove(part)
        self._unsynced.pop(part, None)
        try:
            self._disk.remove(part.path)
        except OSError as error:
            self._report(f"{part.path}: {error.strerror}; it stays, and is sent again next time")
        self._disk.close(part.descriptor)

    def _sync(self) -> None:
        self._synced_s = clock.monotonic_s()
        unsynced, self._unsynced = self._unsynced, {}
        for part in unsynced:
            try:
                self._disk.sync_data(part.descriptor)
            except OSError as error:
                self._report(f"{part.path}: {error.strerror}; a power cut may lose what it holds")

    def _remove_directory(self) -> None:
        try:
            self.directory.rmdir()
        except OSError:
            return  # another publisher keeps something in it


def encode(message: Outgoing) -> bytes:
    """The body of a message's record."""
    return _HEAD.pack(message.points, len(message.topic) - 2) + message.topic[2:] + message.payload


def decode(body: bytes) -> Outgoing:
    """The message in a body. Raises StorageError."""
    if len(body) < _HEAD.size:
        raise StorageError(f"got a body of {len(body)} bytes, want {_HEAD.size} at least")
    points, length = _HEAD.unpack_from(body)
    if len(body) < _HEAD.size + length:
        raise StorageError(f"got a topic of {length} bytes in a body of {len(body)}")
    end = _HEAD.size + length
    return Outgoing(length.to_bytes(2) + body[_HEAD.size : end], body[end:], points)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
