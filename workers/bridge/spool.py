"""Spools: points for owners that do not take them now, on this bridge's disk. Owns <bridge>/spool/.

A spool belongs to one owner and is a directory <bridge>/spool/<node>/ of record files 00000001.spool, ... (records.py,
spoolrecord.py, docs/file-formats.md), which are only appended to, read in order, and removed when all of their records
are done. A file is never written again once its write failed or its process ended.

The rule: the mark behind/<node>/<bridge> is in the ring store before the first batch that relies on the node's spool
is released, and is removed only when nothing is left of the spool: no record, no file, nothing that was set aside.
What cannot be read is passed over, but is copied to <number>-at-<offset>.damaged first, and keeps the mark.

After a mark is put, nothing is written before the ring in force was seen to be still that of the ring store. Else a
bridge that missed two rings could put a mark on a former owner, for points that the owners of today lack, without one:
whoever moves a partition takes it from owners without a mark, and looks for marks after all have the ring of the move.
A mark that was put before the bridge saw the ring of before is there for him to see; with one that was put later, the
bridge sees his ring, and what was gathered is split again.

Spools never send, split or look at rings. What is in them is bounded on disk by bridge.spool_bytes, in memory by what
was gathered since the last flush and by what was taken and is not done. Belongs to the loop's thread.
"""

import errno
import math
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

from common import clock, log
from common.errors import RingStoreError, StorageError
from common.files import DISK, Disk, make_directory, remove_files, replace_file
from common.ringstore import Mark, RingStore
from common.timestamps import NS_PER_S
from workers.bridge import spoolrecord
from workers.bridge.batch import Batch
from workers.bridge.records import NAME_DIGITS, Found, Span, Window, Writer, cut, first, number_of
from workers.bridge.spoolrecord import KIND, Record

FILE_BYTES: Final = 16 << 20  # then another file begins: room comes back by the file, and a crash repeats one at most
RETRY_S: Final = 1.0  # after a failure of disk or ring store; neither mends faster
COMPARE_S: Final = 5.0  # between looks at whether the ring store still has our marks
SEEN_S: Final = 2.0  # a mark that was put so long ago is seen by who looks at the ring store
READ_TRIES: Final = 5  # a second apart, before what the disk cannot read counts as damaged
DAMAGED: Final = ".damaged"
FOLDER: Final = "spool"  # in the bridge's directory

_COPY_BYTES: Final = 1 << 20

logger = log.get("bridge.spool")


class Entry:
    """A record that was taken out of a spool. waiting: 0 when it is done: durable wherever it has to be."""

    __slots__ = ("batch", "number", "taken_ns", "waiting")

    def __init__(self, number: int, record: Record) -> None:
        self.waiting = 1  # for the batch's release
        self.number = number  # of its file
        self.taken_ns = record.taken_ns
        self.batch = spoolrecord.batch_of(record, self)

    def hold(self) -> None:
        """One more thing has to become durable."""
        self.waiting += 1

    def release(self) -> None:
        """One thing became durable."""
        self.waiting -= 1


class _Gathered(NamedTuple):
    batch: Batch
    taken_ns: int


class _File:
    """A file of records. size: up to its last durable record; records: not done yet; first_ns: when the first was
    taken in. damage: parts that are no records, from and to. epochs: how many of the records are of each; of one
    that cannot be read none is known.
    """

    def __init__(self, number: int, first_ns: int) -> None:
        self.number = number
        self.size = 0
        self.records = 0
        self.first_ns = first_ns
        self.damage: set[tuple[int, int]] = set()
        self.epochs: Counter[int] = Counter()
        self.is_known = True


class Spool:
    """The spool of one owner, without its mark.

    gathered_bytes: memory of what is not durable yet. bytes: of its files. error: why it takes or gives nothing now,
    "" if it does. damaged: parts set aside that nobody has looked after. retry_s: monotonic; no tries before.
    """

    def __init__(self, directory: Path, file_bytes: int = FILE_BYTES, disk: Disk = DISK) -> None:
        """directory: of this owner, made when it is needed. Raises StorageError."""
        self.gathered_bytes = 0
        self.bytes = 0
        self.error = ""
        self.damaged = 0
        self.retry_s = 0.0
        self._directory = directory
        self._disk = disk
        self._gathered: deque[_Gathered] = deque()
        self._files: deque[_File] = deque()
        self._taken: deque[Entry] = deque()
        self._at = (0, 0)  # number and offset of the next record to take
        self._reading: tuple[BinaryIO, Window] | None = None  # of the file in _at
        self._read_failures = 0
        self._settled_ns = 0  # when the last settled record was taken in
        try:
            highest = self._open() if directory.is_dir() else 0
        except OSError as error:
            raise StorageError(f"spool {directory}: {error.strerror}: {error.filename}") from error
        self._writer = Writer(directory, KIND, highest, file_bytes, disk)

    # What it holds.

    @property
    def records(self) -> int:
        """Records on disk that are not done."""
        return sum(file.records for file in self._files)

    @property
    def oldest_ns(self) -> int | None:
        """About when its oldest points came here (wall time), None for an empty one."""
        if self._taken:
            return self._taken[0].taken_ns
        if self.records:
            return max(self._files[0].first_ns, self._settled_ns)
        return self._gathered[0].taken_ns if self._gathered else None

    @property
    def oldest_epoch(self) -> int | None:
        """The lowest epoch by which a record was split that is not done, 0 where parts cannot be read; None: nothing.

        Records of an epoch have reached all who take their points by that ring, but for those who have a spool, too.
        """
        if self.damaged or not all(file.is_known for file in self._files):
            return 0
        gathered = [each.batch.epoch for each in self._gathered]
        return min([*gathered, *(epoch for file in self._files for epoch in +file.epochs)], default=None)

    @property
    def is_empty(self) -> bool:
        """Whether every point that it took is durable elsewhere, or damaged."""
        return not self._gathered and self.is_drained

    @property
    def is_drained(self) -> bool:
        """Whether nothing on disk has to be delivered any more."""
        return all(map(self._is_done, self._files))

    @property
    def is_gone(self) -> bool:
        """Whether nothing is left: no file, nothing gathered, nothing set aside."""
        return not (self._gathered or self._files or self.damaged)

    def _is_done(self, file: _File) -> bool:
        return self._is_taken(file) and not any(entry.number == file.number for entry in self._taken)

    def _is_taken(self, file: _File) -> bool:
        return self._at >= (file.number, file.size)

    # In.

    def append(self, batch: Batch) -> None:
        """Take over a batch: it is released when it is durable here."""
        self._gathered.append(_Gathered(batch, clock.wall_ns()))
        self.gathered_bytes += batch.memory_bytes

    def reclaim(self) -> list[Batch]:
        """Give back, in order, what was gathered and is not durable: the spool has nothing to do with it any more."""
        batches = [gathered.batch for gathered in self._gathered]
        self._gathered.clear()
        self.gathered_bytes = 0
        return batches

    def write(self) -> None:
        """Make what was gathered durable and release it. Raises OSError: what is not durable stays gathered."""
        make_directory(self._directory, self._disk)
        while self._gathered:
            for span in self._writer.append(spoolrecord.encode(*gathered) for gathered in self._gathered):
                self._wrote(span, self._gathered.popleft())

    def _wrote(self, span: Span, gathered: _Gathered) -> None:
        if not self._files or self._files[-1].number != span.number:
            self._files.append(_File(span.number, gathered.taken_ns))
        file = self._files[-1]
        file.size = span.end
        file.records += 1
        file.epochs[gathered.batch.epoch] += 1
        self.bytes += span.end - span.begin
        self.gathered_bytes -= gathered.batch.memory_bytes
        gathered.batch.release.release()

    def fail(self, error: str, now: float) -> None:
        """Note why nothing can be written or read; there is no other try for RETRY_S."""
        self.error = error
        self.retry_s = now + RETRY_S
        if logger.limited(f"failed {self._directory}", 10.0):
            logger.error("spool takes or gives nothing for now", directory=self._directory, detail=error)

    # Out.

    def next(self) -> Entry | None:
        """The oldest record that was not taken yet, None if there is none now; who delivers its batch releases it."""
        now = clock.monotonic_s()
        if self._read_failures and now < self.retry_s:
            return None
        try:
            return self._next()
        except OSError as error:
            self._read_failures += 1
            self._close_reading()
            self.fail(f"cannot be read: {error.strerror}", now)
            return None

    def _next(self) -> Entry | None:
        while (file := self._file_to_take()) is not None:
            found = self._find(file)
            self._pass_over(file, self._at[1], found.begin if found else file.size)
            self._at = (file.number, found.end if found else file.size)
            if found is not None:
                self._taken.append(Entry(file.number, found.record))
                return self._taken[-1]
        self._close_reading()
        return None

    def _file_to_take(self) -> _File | None:
        """The file in which the next record lies."""
        for file in self._files:
            if self._at < (file.number, file.size):
                if self._at[0] != file.number:
                    self._close_reading()
                    self._at = (file.number, 0)
                return file
        return None

    def _find(self, file: _File) -> Found[Record] | None:
        """The next record, None where the rest of the file is damaged. Raises OSError where another try may help."""
        path = KIND.path(self._directory, file.number)
        if self._reading is None:
            opened = path.open("rb", buffering=0)
            self._reading = opened, Window(opened.fileno(), file.size)
        window = self._reading[1]
        window.size, window.unreadable = file.size, 0
        found = first(window, KIND, path, self._at[1], spoolrecord.decode)
        if window.unreadable and self._read_failures < READ_TRIES:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        self._read_failures = 0
        return found

    def _close_reading(self) -> None:
        if self._reading is not None:
            self._reading[0].close()
            self._reading = None

    # Away.

    def settle(self) -> None:
        """Forget what is done, in whatever order it was, and remove the files in which everything is."""
        for entry in [entry for entry in self._taken if not entry.waiting]:
            self._taken.remove(entry)
            self._settled_ns = max(self._settled_ns, entry.taken_ns)
            file = next(file for file in self._files if file.number == entry.number)
            file.epochs[entry.batch.epoch] -= 1
            file.records = max(0, file.records - 1)  # one that could not be read at the start was not counted
        now = clock.monotonic_s()
        if self.error and now < self.retry_s:
            return
        try:
            for file in list(takewhile(self._is_taken, self._files)):
                if self._is_done(file):
                    self._put_away(file)
                    self._files.remove(file)
                    self.bytes -= file.size
        except OSError as error:
            self.fail(f"cannot be put away: {error.strerror}", now)

    def _put_away(self, file: _File) -> None:
        self._set_aside(file)
        if file.number == self._writer.number:
            self._writer.close()
        if file.number == self._at[0]:
            self._close_reading()
        remove_files([KIND.path(self._directory, file.number)], self._disk)

    # Damage.

    def look(self) -> None:
        """Count what is damaged: operators remove what was set aside when they have looked after it."""
        aside = set(self._directory.glob("*" + DAMAGED))
        for file in self._files:
            aside.update(self._aside(file, begin) for begin, _ in file.damage)
        self.damaged = len(aside)

    def _pass_over(self, file: _File, begin: int, end: int) -> None:
        if begin < end and (begin, end) not in file.damage:
            file.damage.add((begin, end))
            self.damaged += 1
            path = KIND.path(self._directory, file.number)
            logger.error("damaged part of a spool passed over", file=path, offset=begin, bytes=end - begin)

    def _set_aside(self, file: _File) -> None:
        """Copy damaged parts to files of their own. Raises OSError."""
        for begin, end in sorted(file.damage):
            aside = self._aside(file, begin)
            if not aside.exists():
                replace_file(aside, _part(KIND.path(self._directory, file.number), begin, end), disk=self._disk)

    def _aside(self, file: _File, begin: int) -> Path:
        return self._directory / f"{file.number:0{NAME_DIGITS}}-at-{begin}{DAMAGED}"

    # The start.

    def _open(self) -> int:
        """Take in what an earlier process left. The highest number in use. Raises OSError, StorageError."""
        paths = KIND.files(self._directory)
        for path in paths:
            file = self._scan(path)
            if file.size:
                self._files.append(file)
                self.bytes += file.size
            else:
                remove_files([path], self._disk)
        self.look()
        aside = [int(path.name.partition("-")[0]) for path in self._directory.glob("*" + DAMAGED)]
        return max([*aside, *map(number_of, paths)], default=0)

    def _scan(self, path: Path) -> _File:
        """A file's records. A torn tail is cut off, all other damage is set aside, but nothing of a file that cannot be
        read everywhere. Raises OSError, StorageError.
        """
        file = _File(number_of(path), 0)
        with path.open("rb", buffering=0) as opened:
            window = Window(opened.fileno(), path.stat().st_size)
            while found := first(window, KIND, path, file.size, spoolrecord.decode):
                self._pass_over(file, file.size, found.begin)
                file.size = found.end
                file.records += 1
                file.epochs[found.record.epoch] += 1
                file.first_ns = file.first_ns or found.record.taken_ns
            whole = spoolrecord.looks_whole(window, file.size)
        if window.unreadable:
            file.is_known = False
            file.size, file.damage = window.size, set()  # perhaps for a while: left whole, judged when it is drained
            return file
        if whole:
            self._pass_over(file, file.size, window.size)
            file.size = window.size
        else:
            cut(path, file.size, self._disk)
        try:
            self._set_aside(file)
        except OSError as error:
            self.fail(f"damage cannot be set aside: {error.strerror}", clock.monotonic_s())
        return file


def _part(path: Path, begin: int, end: int) -> Iterator[bytes]:
    """The bytes of a part of a file, with zeros where the disk cannot read them."""
    with path.open("rb", buffering=0) as opened:
        window = Window(opened.fileno(), end)
        for at in range(begin, end, _COPY_BYTES):
            yield window.get(at, min(_COPY_BYTES, end - at))


class Spools:
    """The spools of a bridge and their marks.

    error: why marks could not be looked at since the start, "" when that is done.
    """

    def __init__(
        self,
        directory: Path,
        store: RingStore,
        bridge_id: str,
        spool_bytes: int,
        file_bytes: int = FILE_BYTES,
        disk: Disk = DISK,
        confirmed_s: Callable[[], float] = lambda: math.inf,
        hurry: Callable[[], None] = lambda: None,
    ) -> None:
        """directory: <bridge>/spool, made when it is needed; this process must hold the lock above it. spool_bytes:
        what all spools may hold together. confirmed_s: monotonic, when the ring by which batches are appended was last
        seen to be the ring store's; hurry: have it looked at. Raises StorageError.
        """
        self.error = ""
        self._directory = directory
        self._store = store
        self._bridge_id = bridge_id
        self._spool_bytes = spool_bytes
        self._file_bytes = file_bytes
        self._disk = disk
        self._spools: dict[str, Spool] = {}
        self._confirmed_s = confirmed_s
        self._hurry = hurry
        self._marked: dict[str, float] = {}  # nodes with a mark of ours, and since when
        self._stale: set[str] = set()  # nodes whose mark of ours has to go
        self._restored = False
        self._retry_s = 0.0  # monotonic; marks are not touched before
        self._look_s = self._compare_s = 0.0
        try:
            for path in sorted(directory.glob("*/")):
                self.of(path.name)
        except OSError as error:
            raise StorageError(f"spools {directory}: {error.strerror}") from error
        self._restore(clock.monotonic_s())

    def of(self, node: str) -> Spool:
        """The spool of a node. Raises StorageError."""
        spool = self._spools.get(node)
        if spool is None:
            spool = self._spools[node] = Spool(self._directory / node, self._file_bytes, self._disk)
        return spool

    def nodes(self) -> list[str]:
        """The nodes whose spools hold anything on disk that has to be delivered."""
        return [node for node, spool in self._spools.items() if not spool.is_drained]

    def can_take(self, node: str) -> bool:
        """Whether a batch may be appended to a node's spool now."""
        full = self._full()
        if full and logger.limited("full", 30.0):
            logger.warning("spools take no more until they are drained, PUBACKs are withheld", detail=full)
        return self._restored and not self.of(node).error and not full

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(spool.bytes for spool in self._spools.values())

    @property
    def gathered_bytes(self) -> int:
        """Memory of what is not durable yet."""
        return sum(spool.gathered_bytes for spool in self._spools.values())

    def flush(self, now: float) -> None:
        """Make durable and release what was gathered, each spool's after its mark. What fails is tried again in
        RETRY_S. now: monotonic seconds.
        """
        if not self._restored and not self._restore(now):
            return
        for node, spool in self._spools.items():
            if spool.gathered_bytes and now >= spool.retry_s:
                self._write(node, spool, now)
            elif spool.error and now >= spool.retry_s:
                spool.error = ""  # whoever has a batch for it may try

    def tick(self, now: float) -> None:
        """Remove what is drained, then the marks of spools of which nothing is left."""
        for spool in self._spools.values():
            spool.settle()
        if now >= self._look_s:
            self._look_s = now + RETRY_S
            for spool in self._spools.values():
                if spool.damaged:
                    spool.look()
        gone = {node for node in self._marked if self._spools[node].is_gone}
        for node in gone:
            del self._marked[node]
        self._stale |= gone
        if self._stale and now >= self._retry_s:
            self._unmark(now)
        if self._restored and now >= self._compare_s:
            self._compare_s = now + COMPARE_S
            self._compare(now)

    def status(self) -> dict[str, dict[str, Any]]:
        """What a person wants to know of each node's spool."""
        wall_ns, full = clock.wall_ns(), self._full()
        return {
            node: {
                "bytes": spool.bytes,
                "records": spool.records,
                "oldest_s_ago": None if spool.oldest_ns is None else round((wall_ns - spool.oldest_ns) / NS_PER_S, 3),
                "error": spool.error or self.error or full,
                "damaged": spool.damaged,
            }
            for node, spool in self._spools.items()
        }

    def oldest_epochs(self) -> dict[str, int]:
        """The lowest epoch in each spool that holds anything, see Spool.oldest_epoch."""
        return {node: epoch for node, spool in self._spools.items() if (epoch := spool.oldest_epoch) is not None}

    def _full(self) -> str:
        """Why there is no room, "" while there is some."""
        held = self.bytes + self.gathered_bytes
        return "" if held < self._spool_bytes else f"full: {held} bytes, bridge.spool_bytes = {self._spool_bytes}"

    def _write(self, node: str, spool: Spool, now: float) -> None:
        try:
            self._mark(node)
            if self._confirmed_s() < self._marked[node]:
                self._hurry()
                return
            spool.write()
        except RingStoreError as error:
            spool.fail(str(error), now)
        except OSError as error:
            spool.fail(error.strerror or str(error), now)
        else:
            spool.error = ""

    def _mark(self, node: str) -> None:
        """See that a node has its mark. Raises RingStoreError."""
        if node not in self._marked:
            self._store.put_mark(Mark(node, self._bridge_id))
            self._marked[node] = clock.monotonic_s()
            self._stale.discard(node)

    def _unmark(self, now: float) -> None:
        try:
            for node in sorted(self._stale):
                self._store.remove_mark(Mark(node, self._bridge_id))
                self._stale.discard(node)
        except RingStoreError as error:
            self._marks_failed(error, now)

    def _compare(self, now: float) -> None:
        """Put marks again that a ring store has lost, as one does that was put back to an earlier state; let those go
        that came back with it. What a mark says is believed again only a while after such a thing: see ringfollow.py.
        """
        if now < self._retry_s:
            return
        try:
            ours = {mark.node for mark in self._store.marks() if mark.by == self._bridge_id}
            for node in [node for node, put_s in self._marked.items() if node not in ours and now - put_s > SEEN_S]:
                logger.warning("a mark of ours is gone from the ring store, put again", node=node)
                del self._marked[node]
                self._mark(node)
        except RingStoreError as error:
            self._marks_failed(error, now)
            return
        self._stale |= ours - self._marked.keys()

    def _restore(self, now: float) -> bool:
        """At the start each spool that holds anything gets its mark before anything is released; marks of ours without
        a spool have to go.
        """
        if now < self._retry_s:
            return False
        try:
            ours = {mark.node for mark in self._store.marks() if mark.by == self._bridge_id}
            held = {node for node, spool in self._spools.items() if not spool.is_gone}
            for node in sorted(held):
                self._mark(node)  # one that is there need not be durable: who put it may have died over it
        except RingStoreError as error:
            self._marks_failed(error, now)
            return False
        self._stale |= ours - held
        self._restored, self.error = True, ""
        return True

    def _marks_failed(self, error: RingStoreError, now: float) -> None:
        self._retry_s = now + RETRY_S
        if not self._restored:
            self.error = str(error)
        if logger.limited("marks", 10.0):
            logger.error("marks cannot be read or written for now", detail=str(error))
