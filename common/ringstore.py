"""Where the ring document is kept, and how workers follow it.

Owns the rules by which one ring follows another: an invalid or older ring never replaces a good one, equal epoch
with another hash is refused with an alarm, and so is one that has lost a delete. Stores save by comparing the epoch,
so two writers cannot both win. Workers only load and poll; saving is for ringctl, and for deletes. Marks are another
matter: each is written and removed by the worker that it names, and says nothing about the ring.

A RingView belongs to one thread. A store may be shared by threads and, being on disk, by processes.
"""

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from common import clock, config, log, metrics
from common.errors import ConfigError, RingConflictError, RingError, RingStoreError
from common.files import DISK, Disk, make_directory, remove_files, replace_file
from common.ring import Ring

LOCK_WAIT_S: Final = 5.0  # a save takes milliseconds; who holds the lock longer is stopped or stuck
LOCK_RETRY_S: Final = 0.02
REFUSALS: Final = ("invalid", "missing", "older", "conflict", "foreign", "deletes", "unreadable")

logger = log.get("ring")


class Mark(NamedTuple):
    """Says that a node is behind: it may lack acknowledged points, which `by` (a bridge's id) has in its spool."""

    node: str
    by: str


class RingStore(Protocol):
    """What every kind of ring store offers."""

    @property
    def url(self) -> str:
        """The store, for texts."""

    def load(self) -> Ring | None:
        """The stored ring, None where there is none. Raises RingError (invalid), RingStoreError (unreadable)."""

    def save(self, ring: Ring, expected_epoch: int) -> None:
        """Store a ring, durably, if the stored epoch is the expected one (0: no ring yet).

        Raises RingConflictError where another writer was first, RingStoreError where the store cannot be written,
        RingError where the ring is invalid or cannot follow the stored one.
        """

    def stamp(self) -> Hashable:
        """A cheap value that differs after each save. None: nothing is stored. Raises RingStoreError."""

    def marks(self) -> frozenset[Mark]:
        """The marks of all nodes. Raises RingStoreError."""

    def put_mark(self, mark: Mark) -> None:
        """Make a mark durable, whether or not it was there. Raises RingStoreError: then it may be there or not."""

    def remove_mark(self, mark: Mark) -> None:
        """Take a mark away, durably, if it is there. Raises RingStoreError: then it may be there or not."""


def open_store(url: str, settings: config.Settings) -> RingStore:
    """The store that a cluster.ring_store setting names. Raises ConfigError."""
    scheme, colon, rest = url.partition(":")
    if scheme == "file" and colon and rest.lstrip("/"):
        return FileStore(settings.path("/" + rest.lstrip("/") if rest.startswith("//") else rest))
    if scheme == "etcd":
        raise ConfigError(f"cluster.ring_store = {url!r}: etcd is not available in this version, want file:PATH")
    raise ConfigError(f"cluster.ring_store = {url!r}: want file:PATH")


class FileStore:
    """The ring in one JSON file, for the processes of one machine. Constant after construction.

    Marks are empty files <node>@<by> in a folder beside it; no id holds an "@".
    """

    def __init__(self, path: Path, disk: Disk = DISK) -> None:
        """path: absolute; its folder is made by the first save or mark."""
        self.path = path
        self._disk = disk
        self._marks = path.with_name(path.name + ".marks")

    @property
    def url(self) -> str:
        return f"file:{self.path}"

    def load(self) -> Ring | None:
        data = self._read()
        if data is None:
            return None
        try:
            return Ring.loads(data)
        except RingError as error:
            raise RingError(f"{self.path}: {error}") from error

    def save(self, ring: Ring, expected_epoch: int) -> None:
        ring.validate()
        try:
            make_directory(self.path.parent, self._disk)
            with self._lock():
                self._check_follows(ring, expected_epoch)
                replace_file(self.path, [ring.dumps()], disk=self._disk)
        except OSError as error:
            raise RingStoreError(f"cannot write {self.path}: {error.strerror}") from error

    def stamp(self) -> Hashable:
        # Of the content: two saves within a tick of the file system's clock can leave equal times, sizes and inode
        # numbers. Reading and hashing the document of a usual cluster takes about 0.1 ms.
        data = self._read()
        return None if data is None else hashlib.blake2b(data).digest()

    def marks(self) -> frozenset[Mark]:
        try:
            names = [path.name for path in self._marks.iterdir()]
        except FileNotFoundError:
            return frozenset()
        except OSError as error:
            raise RingStoreError(f"cannot read marks in {self._marks}: {error.strerror}") from error
        return frozenset(Mark(*name.split("@")) for name in names if name.count("@") == 1)

    def put_mark(self, mark: Mark) -> None:
        try:
            make_directory(self._marks, self._disk)
            self._disk.close(self._disk.create(self._mark_path(mark)))
            self._disk.sync_directory(self._marks)
        except OSError as error:
            raise RingStoreError(f"cannot write mark {self._mark_path(mark)}: {error.strerror}") from error

    def remove_mark(self, mark: Mark) -> None:
        if not self._marks.exists():
            return
        try:
            remove_files([self._mark_path(mark)], self._disk)
        except OSError as error:
            raise RingStoreError(f"cannot remove mark {self._mark_path(mark)}: {error.strerror}") from error

    def _mark_path(self, mark: Mark) -> Path:
        return self._marks / f"{mark.node}@{mark.by}"

    def _read(self) -> bytes | None:
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RingStoreError(f"cannot read {self.path}: {error.strerror}") from error

    def _check_follows(self, ring: Ring, expected_epoch: int) -> None:
        stored = self.load()
        epoch = stored.epoch if stored else 0
        if epoch != expected_epoch:
            raise RingConflictError(
                f"{self.path} is at epoch {epoch}, want {expected_epoch}: another writer was first, look at it again"
            )
        if ring.epoch != expected_epoch + 1:
            raise RingError(f"epoch {ring.epoch} cannot follow {expected_epoch}, want {expected_epoch + 1}")
        fault = (_foreign(ring, stored) or _lost_deletes(ring, stored)) if stored else None
        if fault:
            raise RingError(f"{self.path}: {fault}")

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Keep other writers out. The lock has a file of its own, because saving replaces the ring's file."""
        descriptor = os.open(self.path.with_name(self.path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._wait_for(descriptor)
            yield
        finally:
            os.close(descriptor)

    def _wait_for(self, descriptor: int) -> None:
        deadline = clock.monotonic_s() + LOCK_WAIT_S
        while True:
            try:
                return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if clock.monotonic_s() > deadline:
                    raise RingStoreError(f"{self.path} is locked (waited {LOCK_WAIT_S:g} s)") from None
                time.sleep(LOCK_RETRY_S)


def _foreign(ring: Ring, known: Ring) -> str | None:
    """Why a ring is not a later state of a known one's cluster, or None."""
    if ring.cluster != known.cluster:
        return f"ring of cluster {ring.cluster}, want {known.cluster}"
    if ring.partitions != known.partitions:
        return f"ring of {ring.partitions} partitions, want {known.partitions}: their number is fixed"
    return None


def _lost_deletes(ring: Ring, known: Ring) -> str | None:
    """Why a ring cannot follow a known one of its cluster, as deletes are gone or came late, or None.

    A node that never applied a lost one would show its points for ever, and give them back to the others.
    """
    kept = ring.deletes[: len(known.deletes)]
    if kept != known.deletes:
        lost = next(record for record in known.deletes if record not in kept)
        return f"ring of epoch {ring.epoch} without delete {lost.number} of epoch {known.epoch}"
    late = [record.number for record in ring.deletes[len(kept) :] if record.number <= known.epoch]
    if late:
        return f"ring of epoch {ring.epoch} with delete {late[0]}, which epoch {known.epoch} does not have"
    return None


def fault_of(found: Ring, now: Ring) -> tuple[str, str] | None:
    """Why what a store holds may not follow the ring in force: reason (REFUSALS) and detail; None when it may."""
    foreign = _foreign(found, now)
    if foreign:
        return "foreign", foreign
    if found.epoch < now.epoch:
        return "older", f"ring of epoch {found.epoch}, in force is {now.epoch}"
    if found.epoch == now.epoch and found.hash != now.hash:
        return "conflict", f"epoch {found.epoch} with hash {found.hash}, in force is {now.hash}"
    lost = _lost_deletes(found, now)
    return ("deletes", lost) if lost else None


class RingView:
    """A worker's ring: the last good one, and the rules by which it changes. Belongs to one thread.

    ring: the ring in force. refused: how often something else was found, by reason (REFUSALS).
    """

    def __init__(self, store: RingStore, ring: Ring, poll_s: float) -> None:
        """ring: the one to begin with. poll_s: the store is looked at no more often. Exports its metrics."""
        self.ring = ring
        self.refused = dict.fromkeys(REFUSALS, 0)
        self._store = store
        self._poll_s = poll_s
        self._next_s = 0.0
        self._judged: Hashable = object()  # the stamp of what was judged last; at first like no stamp
        self._export()

    def poll(self) -> Ring | None:
        """The new ring if it changed, else None. Cheap, never raises: call it at every tick.

        What cannot replace the ring in force is counted and logged, once per change of the store.
        """
        now = clock.monotonic_s()
        if now < self._next_s:
            return None
        self._next_s = now + self._poll_s
        try:
            return self._look()
        except RingStoreError as error:
            self._count("unreadable")
            if logger.limited("unreadable", 30.0):
                logger.warning("ring store unreadable, going on with the ring in force", detail=str(error))
            return None

    def hurry(self) -> None:
        """Let the next poll look at once: somebody knows of a newer ring."""
        self._next_s = 0.0

    def _look(self) -> Ring | None:
        """Judge what the store holds, unless it was judged before. Raises RingStoreError."""
        stamp = self._store.stamp()
        if stamp == self._judged:
            return None
        found, fault = self._read()
        self._judged = stamp
        if fault is not None:
            self._refuse(*fault)
            return None
        if found is None or found.epoch == self.ring.epoch:
            return None
        self.ring = found
        return found

    def _read(self) -> tuple[Ring | None, tuple[str, str] | None]:
        """What the store holds, and why it may not replace the ring in force: reason and detail, or None."""
        try:
            found = self._store.load()
        except RingError as error:
            return None, ("invalid", str(error))
        if found is None:
            return None, ("missing", f"no ring in {self._store.url}")
        return found, fault_of(found, self.ring)

    def _refuse(self, reason: str, detail: str) -> None:
        self._count(reason)
        logger.error("ring refused, the one in force stays", reason=reason, detail=detail, epoch=self.ring.epoch)

    def _count(self, reason: str) -> None:
        self.refused[reason] += 1

    def _export(self) -> None:
        metrics.gauge_from("minitrue_ring_epoch", "Epoch of the ring in force.", lambda: self.ring.epoch)
        metrics.counter_from(
            "minitrue_ring_refused_total",
            "Looks at the ring store that found something other than a ring to follow, by reason.",
            lambda: {(reason,): count for reason, count in self.refused.items()},
            labels=("reason",),
        )


class Waitable(Protocol):
    """What ends a wait early: process.Stop."""

    def wait(self, timeout_s: float) -> bool: ...


def wait_for_ring(store: RingStore, stop: Waitable, poll_s: float) -> RingView | None:
    """The view of the cluster's first ring, waiting for `ringctl init` if need be; None when stopped meanwhile.

    Raises RingError where the stored ring is invalid, RingStoreError where it cannot be read: at its start a
    worker has no good ring to go on with.
    """
    said = False
    while True:
        ring = store.load()
        if ring is not None:
            return RingView(store, ring, poll_s)
        if not said:
            logger.warning("no ring yet, waiting: make one with tools/ringctl init", store=store.url)
            said = True
        if stop.wait(poll_s):
            return None
