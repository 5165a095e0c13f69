"""A ring store on other machines as the loops of a worker use it: a thread looks, they read what it saw last.

Owns the thread. It looks whenever the store tells of a change, when somebody is in a hurry, and else every few tenths
of a second up to a second, so that what it knows is that old at most while the store answers. While it does not, or
while what it holds is older than what was seen before, ring and marks of before go on, and reading raises.

A store that was put back to an earlier state holds the marks of that state: a node that is behind may have none. So
marks count only beside a ring that is no earlier one. `ringctl restore` puts the marks that it knows of first and the
ring then, and the thread reads both at one moment: there is none at which the new ring is seen with old marks. A mark
that a bridge put meanwhile, and of which no node could tell ringctl, is put again by its bridge within seconds of the
new ring; until SETTLED_S after it those known before count as well.

Writes go through to the store. The loop waits for those of marks, at most about a second, and not at all while the
thread knows that the store does not answer.
"""

import threading
from collections.abc import Callable, Hashable
from typing import Final, NamedTuple, Protocol

from common import clock, log
from common.errors import RingError, RingStoreError
from common.ring import Ring
from common.ringstore import Mark, Past, RingStore

FIRST_WAIT_S: Final = 5.0  # for the first look, at most: its calls have time limits of their own
AFTER_FAILURE_S: Final = 1.0  # between looks that fail, at least: a wrong password is hard work for etcd
SETTLED_S: Final = 15.0  # after which bridges have put their marks again: they look every 5 s
TRIES: Final = 5  # until ring and marks are of one moment

logger = log.get("ring.follow")


class Snapshot(Protocol):
    """Ring and marks of one moment. epoch: of the ring, 0 where there is none."""

    @property
    def stamp(self) -> Hashable: ...
    @property
    def epoch(self) -> int: ...
    @property
    def marks(self) -> frozenset[Mark]: ...


class LookedAt(RingStore, Protocol):
    """A store whose ring and marks can be read at one moment. Raises RingStoreError, RingError."""

    def look(self) -> Snapshot: ...


class Seen(NamedTuple):
    """What a look found; constant. as_of_s: monotonic, when the last good look began. ring: None where there is none.

    fault: why the document cannot be used. error: why the last look failed, "" if it did not. doubt: why marks cannot
    be believed.
    """

    as_of_s: float
    stamp: Hashable
    ring: Ring | None
    fault: str
    marks: frozenset[Mark]
    doubt: str
    error: str


_NEVER: Final = Seen(float("-inf"), None, None, "", frozenset(), "", "not looked at yet")


class FollowedStore:
    """A RingStore. direct: the store itself, for who needs an answer of now. Any thread."""

    remote = True

    def __init__(self, store: LookedAt, every_s: float) -> None:
        """every_s: between looks, when nothing tells of a change. Starts the thread, which ends with the process."""
        self._store = store
        self._every_s = every_s
        self._seen = _NEVER
        self._epoch = 0  # the highest seen, of cluster _cluster
        self._cluster = ""
        self._before: frozenset[Mark] = frozenset()  # the last marks that could be believed
        self._settled_s = float("-inf")  # until when they count
        self._listeners: list[Callable[[], None]] = []
        self._wake = threading.Event()
        self._looked = threading.Event()
        self._closed = False
        store.watch(self._wake.set)
        threading.Thread(target=self._run, name="ring-follow", daemon=True).start()

    @property
    def url(self) -> str:
        return self._store.url

    @property
    def direct(self) -> RingStore:
        return self._store

    # What was seen

    def stamp(self) -> Hashable:
        return self._good().stamp

    def load(self) -> Ring | None:
        seen = self._good()
        if seen.fault:
            raise RingError(seen.fault)
        return seen.ring

    def marks(self) -> frozenset[Mark]:
        seen = self._good()
        if seen.doubt:
            raise RingStoreError(f"marks cannot be believed: {seen.doubt}")
        return seen.marks

    def as_of_s(self) -> float:
        return self._seen.as_of_s

    def watch(self, changed: Callable[[], None]) -> None:
        self._listeners.append(changed)

    def hurry(self) -> None:
        self._wake.set()

    def close(self) -> None:
        """End the thread, soon; for tests."""
        self._closed = True
        self._wake.set()

    def _good(self) -> Seen:
        """The latest look, if it was one. Raises RingStoreError."""
        if not self._looked.is_set():
            self._looked.wait(FIRST_WAIT_S)
        seen = self._seen
        if seen.error:
            raise RingStoreError(seen.error)
        return seen

    # Writes, and what is read seldom

    def put_mark(self, mark: Mark) -> None:
        self._good()
        self._store.put_mark(mark)

    def remove_mark(self, mark: Mark) -> None:
        self._good()
        self._store.remove_mark(mark)

    def save(self, ring: Ring, expected_epoch: int) -> None:
        self._store.save(ring, expected_epoch)
        self.hurry()

    def restore(self, ring: Ring, stamp: Hashable) -> None:
        self._store.restore(ring, stamp)
        self.hurry()

    def store_ids(self) -> dict[str, str]:
        return self._store.store_ids()

    def claim(self, node: str, store_id: str) -> str | None:
        return self._store.claim(node, store_id)

    def history(self) -> list[Past]:
        return self._store.history()

    def past(self, epoch: int) -> Ring:
        return self._store.past(epoch)

    def driver(self) -> str:
        return self._store.driver()

    def note_driver(self, text: str) -> None:
        self._store.note_driver(text)

    # The thread

    def _run(self) -> None:
        while not self._closed:
            self._wake.clear()
            before = self._seen
            self._seen = self._look(before)
            self._looked.set()
            if self._differs(before):
                for changed in self._listeners:
                    changed()
            failed = bool(self._seen.error)
            if failed:  # what a broken watch tells at once is no reason to try again at once
                self._wake.clear()
            self._wake.wait(max(self._every_s, AFTER_FAILURE_S) if failed else self._every_s)

    def _differs(self, before: Seen) -> bool:
        now = self._seen
        return (before.stamp, before.marks, before.error) != (now.stamp, now.marks, now.error)

    def _look(self, before: Seen) -> Seen:
        begun_s = clock.monotonic_s()
        try:
            for _ in range(TRIES):
                found = self._store.look()
                ring, fault = (before.ring, before.fault) if found.stamp == before.stamp else self._load()
                if fault or (ring.epoch if ring else 0) == found.epoch:
                    doubt = self._doubt(ring, fault)
                    marks = self._believed(found.marks, doubt, begun_s)
                    return Seen(begun_s, found.stamp, ring, fault, marks, doubt, "")
        except (RingStoreError, RingError) as error:
            return before._replace(error=str(error))
        except Exception as error:  # of ours; did the thread end, ring and marks would stand still and nobody say so
            logger.exception("BUG: a look at the ring store failed")
            return before._replace(error=f"BUG: a look at {self.url} failed: {error!r}")
        return before._replace(error=f"{self.url}: the ring changed {TRIES} times while it was read")

    def _believed(self, found: frozenset[Mark], doubt: str, now_s: float) -> frozenset[Mark]:
        """The marks of a look, and while some may be missing those of before."""
        if doubt:
            self._settled_s = now_s + SETTLED_S
            return found
        if now_s < self._settled_s:
            return found | self._before
        self._before = found
        return found

    def _load(self) -> tuple[Ring | None, str]:
        """The ring, or why there is none that can be used. Raises RingStoreError."""
        try:
            return self._store.load(), ""
        except RingError as error:
            return None, str(error)

    def _doubt(self, ring: Ring | None, fault: str) -> str:
        """Why marks beside this ring cannot be believed; remembers the highest ring seen."""
        if fault:
            return fault
        if ring is None:
            return f"no ring in {self.url}, there was one of epoch {self._epoch}" if self._epoch else ""
        if self._cluster not in ("", ring.cluster):
            return f"{self.url} holds a ring of cluster {ring.cluster}, there was one of {self._cluster}"
        if ring.epoch < self._epoch:
            return f"{self.url} was put back to epoch {ring.epoch}, it was at {self._epoch}: see tools/ringctl restore"
        self._cluster, self._epoch = ring.cluster, ring.epoch
        return ""
