"""Where the ring document is kept, and how workers follow it.

An invalid or older ring never replaces a good one, equal epoch with another hash is refused with an alarm, and so is
one that has lost a delete or a move (ringrules.py). Stores save by comparing the epoch, so two writers cannot both win.
Workers only load and poll; saving is for ringctl, and for deletes. Marks are another matter: each is written and
removed by the worker that it names, and says nothing about the ring.

Beside ring and marks a store keeps the last rings (history, for people), the store id that each node claimed (so that
a node sees that its directory is another one than before), and a note of who drives moves (for people, too: what
protects is the comparison of epochs).

A call to a store on other machines can take as long as its timeout, so no loop of a worker makes one: open_followed
gives what has a thread of its own look (ringfollow.py). A RingView belongs to one thread. A store may be shared by
threads and, where it is on disk, by processes.
"""

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from common import clock, config, log, metrics
from common.errors import ConfigError, RingConflictError, RingError, RingStoreError
from common.files import DISK, TEMPORARY, Disk, make_directory, remove_files, replace_file
from common.ring import Ring
from common.ringrules import check_follows, fault_of

LOCK_WAIT_S: Final = 5.0  # a save takes milliseconds; who holds the lock longer is stopped or stuck
LOCK_RETRY_S: Final = 0.02
HISTORY: Final = 50  # rings kept: weeks of changes by hand, a few large moves
REFUSALS: Final = ("invalid", "missing", "older", "conflict", "foreign", "deletes", "moves", "unreadable")

STORE_WANTED: Final = "file:PATH, or etcd://HOST:PORT[,HOST:PORT...]/PREFIX"

logger = log.get("ring")


class Mark(NamedTuple):
    """Says that a node is behind: it may lack acknowledged points, which `by` (a bridge's id) has in its spool."""

    node: str
    by: str


class Past(NamedTuple):
    """A ring of the history. saved_at_s: Unix seconds. size_bytes: as the store keeps it."""

    epoch: int
    saved_at_s: float
    size_bytes: int


class RingStore(Protocol):
    """What every kind of ring store offers. All calls raise RingStoreError where the store cannot be reached.

    remote: whether calls go to other machines, and may fail for a while without anybody's mistake. direct: the store
    that answers each call anew, for who is about to write; a followed store answers from its latest look.
    """

    @property
    def url(self) -> str:
        """The store, for texts."""

    @property
    def remote(self) -> bool: ...

    @property
    def direct(self) -> "RingStore": ...

    def load(self) -> Ring | None:
        """The stored ring, None where there is none. Raises RingError (invalid), RingStoreError (unreadable)."""

    def save(self, ring: Ring, expected_epoch: int) -> None:
        """Store a ring, durably, if the stored epoch is the expected one (0: no ring yet).

        Raises RingConflictError where another writer was first, RingStoreError where the store cannot be written (then
        it may have the ring or not, and on other machines get it a moment later), RingError where the ring is invalid
        or cannot follow the stored one.
        """

    def restore(self, ring: Ring, stamp: Hashable) -> None:
        """Store a ring in place of whatever is there, valid or not, if the stamp is still that one: for `ringctl
        restore`, which sees to it that workers follow. Raises as save does.
        """

    def stamp(self) -> Hashable:
        """A cheap value that differs after each save. None: nothing is stored. Raises RingStoreError."""

    def marks(self) -> frozenset[Mark]:
        """The marks of all nodes. Raises RingStoreError."""

    def put_mark(self, mark: Mark) -> None:
        """Make a mark durable, whether or not it was there. Raises RingStoreError: then it may be there or not."""

    def remove_mark(self, mark: Mark) -> None:
        """Take a mark away, durably, if it is there. Raises RingStoreError: then it may be there or not."""

    def store_ids(self) -> dict[str, str]:
        """The store id that each node claimed last. Raises RingStoreError."""

    def claim(self, node: str, store_id: str) -> str | None:
        """Make a node's store id durable; the one before it, None where there was none. Raises RingStoreError.

        A node looks at store_ids() first, and claims another id than it finds there only when its mark is there: one
        that claimed and died before it was marked would be taken for one that lost nothing.
        """

    def history(self) -> list[Past]:
        """The last HISTORY rings that were stored, the one in force last. Raises RingStoreError."""

    def past(self, epoch: int) -> Ring:
        """A ring of the history. Raises RingError where it is not there or invalid, RingStoreError."""

    def driver(self) -> str:
        """Who said last that he drives moves; "" for nobody. Raises RingStoreError."""

    def note_driver(self, text: str) -> None:
        """Say who drives moves (host, process, time), or "" for nobody any more. Raises RingStoreError."""

    def watch(self, changed: Callable[[], None]) -> None:
        """Have a function called, in a thread of the store, whenever ring or marks may have changed, for as long as the
        process lives. A store that has to be looked at never calls it.
        """

    def hurry(self) -> None:
        """Somebody knows of a newer ring: what a followed store has seen is not good enough. Any thread."""

    def as_of_s(self) -> float:
        """The monotonic time since which a stamp asked for now is known to be true."""


def open_store(url: str, settings: config.Settings) -> RingStore:
    """The store that a cluster.ring_store setting names. Raises ConfigError."""
    scheme, colon, rest = url.partition(":")
    if scheme == "file" and colon and rest.lstrip("/"):
        return FileStore(settings.path("/" + rest.lstrip("/") if rest.startswith("//") else rest))
    if scheme == "etcd":
        from common import etcdstore  # only here: who has one host needs no etcd3gw

        return etcdstore.open_etcd(url, settings)
    raise ConfigError(f"cluster.ring_store = {url!r}: want {STORE_WANTED}")


def open_followed(url: str, settings: config.Settings, every_s: float | None = None) -> RingStore:
    """The same for the loops of a worker: no call but put_mark and remove_mark waits for another machine.

    every_s: seconds between looks at a store on other machines, beside its watch; cluster.ring_poll_s by default.
    Starts a thread for such a one, so not to be called before a fork. Raises ConfigError.
    """
    if not url.startswith("etcd:"):
        return open_store(url, settings)
    from common import etcdstore, ringfollow

    return ringfollow.FollowedStore(etcdstore.open_etcd(url, settings), every_s or settings.cluster.ring_poll_s)


class FileStore:
    """The ring in one JSON file, for the processes of one machine. Constant after construction.

    Beside it: marks, empty files <node>@<by> in a folder (no id holds an "@"); store ids, one file each; the history,
    a document each, written before the ring is replaced, so what is above the ring's epoch does not count.
    """

    remote = False

    def __init__(self, path: Path, disk: Disk = DISK) -> None:
        """path: absolute; its folder is made by the first save or mark."""
        self.path = path
        self._disk = disk
        self._marks = path.with_name(path.name + ".marks")
        self._stores = path.with_name(path.name + ".stores")
        self._history = path.with_name(path.name + ".history")
        self._driver = path.with_name(path.name + ".driver")

    @property
    def url(self) -> str:
        return f"file:{self.path}"

    @property
    def direct(self) -> RingStore:
        return self

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
                stored = self.load()
                check_follows(ring, stored, expected_epoch, str(self.path))
                if stored is None:
                    self._forget_others(ring.cluster)
                self._replace(ring)
        except OSError as error:
            raise RingStoreError(f"cannot write {self.path}: {error.strerror}") from error

    def restore(self, ring: Ring, stamp: Hashable) -> None:
        ring.validate()
        try:
            make_directory(self.path.parent, self._disk)
            with self._lock():
                if self.stamp() != stamp:
                    raise RingConflictError(f"{self.path} has changed: another writer was first, look at it again")
                self._replace(ring)
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

    def store_ids(self) -> dict[str, str]:
        try:
            paths = [path for path in self._stores.iterdir() if not path.name.endswith(TEMPORARY)]
            return {path.name: path.read_text("ascii").strip() for path in sorted(paths)}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise RingStoreError(f"cannot read store ids in {self._stores}: {error}") from error

    def claim(self, node: str, store_id: str) -> str | None:
        try:
            make_directory(self._stores, self._disk)
            with self._lock():
                before = self.store_ids().get(node)
                if before != store_id:
                    replace_file(self._stores / node, [store_id.encode(), b"\n"], disk=self._disk)
                return before
        except OSError as error:
            raise RingStoreError(f"cannot write store id {self._stores / node}: {error.strerror}") from error

    def history(self) -> list[Past]:
        stored = self.load()
        return [past for past in self._kept() if stored is not None and past.epoch <= stored.epoch]

    def past(self, epoch: int) -> Ring:
        path = self._past_path(epoch)
        try:
            return Ring.loads(path.read_bytes())
        except FileNotFoundError as error:
            raise RingError(f"no ring of epoch {epoch} in {self._history}, see: ringctl history") from error
        except OSError as error:
            raise RingStoreError(f"cannot read {path}: {error.strerror}") from error
        except RingError as error:
            raise RingError(f"{path}: {error}") from error

    def driver(self) -> str:
        try:
            return self._driver.read_text("utf-8", "replace").strip()
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise RingStoreError(f"cannot read {self._driver}: {error.strerror}") from error

    def note_driver(self, text: str) -> None:
        try:
            make_directory(self.path.parent, self._disk)
            with self._lock():
                replace_file(self._driver, [text.encode()], disk=self._disk)
        except OSError as error:
            raise RingStoreError(f"cannot write {self._driver}: {error.strerror}") from error

    def watch(self, changed: Callable[[], None]) -> None:
        pass  # a file is looked at

    def hurry(self) -> None:
        pass  # each look is at the file

    def as_of_s(self) -> float:
        return clock.monotonic_s()

    def _replace(self, ring: Ring) -> None:
        """Put a ring into the history, then in force. Raises OSError."""
        make_directory(self._history, self._disk)
        replace_file(self._past_path(ring.epoch), [ring.dumps()], disk=self._disk)
        replace_file(self.path, [ring.dumps()], disk=self._disk)
        old = [self._past_path(past.epoch) for past in self._kept() if past.epoch <= ring.epoch][:-HISTORY]
        remove_files(old, self._disk)

    def _forget_others(self, cluster: str) -> None:
        """Remove what another cluster left beside its ring: by its store ids fresh nodes would have lost their disks.

        Whose it is says the history, which goes last: cut short, this is done again. It is set aside, because it may
        be all that is left of that cluster's ring. Raises OSError.
        """
        try:
            left = [Ring.loads(path.read_bytes()).cluster for path in sorted(self._history.glob("*.json"))]
        except RingError:
            return  # perhaps of this cluster, whose losses are not to be forgotten
        if left and cluster not in left:
            aside = self._history.with_name(f"{self._history.name}-{left[-1]}")
            for folder in (self._stores, self._marks, aside):
                remove_files(sorted(folder.glob("*")), self._disk)
            self._disk.rename(self._history, aside)
            self._disk.sync_directory(aside.parent)

    def _kept(self) -> list[Past]:
        """What the folder of the history holds, ascending by epoch. Raises RingStoreError."""
        try:
            paths = sorted(self._history.glob("*.json"))
            files = [(int(path.stem), path.stat()) for path in paths if path.stem.isdecimal()]
        except OSError as error:
            raise RingStoreError(f"cannot read {self._history}: {error.strerror}") from error
        return [Past(epoch, stat.st_mtime, stat.st_size) for epoch, stat in files]

    def _past_path(self, epoch: int) -> Path:
        return self._history / f"{epoch:020d}.json"

    def _mark_path(self, mark: Mark) -> Path:
        return self._marks / f"{mark.node}@{mark.by}"

    def _read(self) -> bytes | None:
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RingStoreError(f"cannot read {self.path}: {error.strerror}") from error

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


class RingView:
    """A worker's ring: the last good one, and the rules by which it changes. Belongs to one thread.

    ring: the ring in force. refused: how often something else was found, by reason (REFUSALS). trouble: why the store
    cannot be followed just now, "" while it can. confirmed_s: the monotonic time at which the store was last known to
    hold the ring in force.
    """

    def __init__(self, store: RingStore, ring: Ring, poll_s: float) -> None:
        """ring: the one to begin with. poll_s: the store is looked at no more often. Exports its metrics."""
        self.ring = ring
        self.refused = dict.fromkeys(REFUSALS, 0)
        self._store = store
        self._poll_s = poll_s
        self._next_s = 0.0
        self._judged: Hashable = object()  # the stamp of what was judged last; at first like no stamp
        self._verdict = ""  # why that may not replace the ring in force
        self.trouble = ""
        self.confirmed_s = float("-inf")
        store.watch(self._look_soon)
        self._export()

    @property
    def store(self) -> RingStore:
        """What it looks at."""
        return self._store

    def poll(self) -> Ring | None:
        """The new ring if it changed, else None. Cheap, never raises: call it at every tick.

        What cannot replace the ring in force is counted and logged, once per change of the store.
        """
        now = clock.monotonic_s()
        if now < self._next_s:
            return None
        self._next_s = now + self._poll_s
        as_of_s = self._store.as_of_s()
        try:
            found = self._look()
        except RingStoreError as error:
            self.trouble = str(error)
            self._count("unreadable")
            if logger.limited("unreadable", 30.0):
                logger.warning("ring store unreadable, going on with the ring in force", detail=str(error))
            return None
        self.trouble = self._verdict
        if not self._verdict:
            self.confirmed_s = as_of_s
        return found

    def hurry(self) -> None:
        """Let the next poll look at once: somebody knows of a newer ring."""
        self._look_soon()
        self._store.hurry()

    def _look_soon(self) -> None:
        self._next_s = 0.0

    def _look(self) -> Ring | None:
        """Judge what the store holds, unless it was judged before. Raises RingStoreError."""
        stamp = self._store.stamp()
        if stamp == self._judged:
            return None
        found, fault = self._read()
        self._judged, self._verdict = stamp, fault[1] if fault else ""
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

    A store on other machines that cannot be reached is waited for, too: machines of a rack come back in any order.
    Raises RingError where the stored ring is invalid, RingStoreError where a file cannot be read: at its start a
    worker has no good ring to go on with.
    """
    said = False
    while True:
        try:
            ring = store.load()
        except RingStoreError as error:
            if not store.remote:
                raise
            if logger.limited("away", 30.0):
                logger.warning("waiting for the ring store, no ring to begin with", detail=str(error))
        else:
            if ring is not None:
                return RingView(store, ring, poll_s)
            if not said:
                logger.warning("no ring yet, waiting: make one with tools/ringctl init", store=store.url)
                said = True
        if stop.wait(poll_s):
            return None
