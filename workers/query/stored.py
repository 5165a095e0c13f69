"""What the ring store keeps for people: who drives moves, and the last rings. Any thread.

Owns what was read of it. A store on other machines takes as long as its timeout when it is away, so one thread at a
time asks it who drives, the others have what it found last; a past ring never changes, so its words are kept.
"""

import threading
from collections.abc import Sequence
from typing import Final, NamedTuple

from common import clock
from common.errors import RingError, RingStoreError
from common.ring import Ring
from common.ringchanges import changes
from common.ringstore import HISTORY, Past, RingStore

DRIVER_S: Final = 1.0  # for which what was read serves
DRIVER_CHARS: Final = 300  # a note of ringctl has half of that


class Driver(NamedTuple):
    """Who drives moves, "" for nobody or where that is not known; then error says why."""

    text: str
    error: str


class Change(NamedTuple):
    """A past ring, and what it changed."""

    past: Past
    changes: Sequence[str]


class Stored:
    """See the module's text."""

    def __init__(self, store: RingStore) -> None:
        self._store = store
        self._driver = Driver("", "not looked at yet")
        self._due_s = float("-inf")
        self._driver_lock = threading.Lock()
        self._words: dict[tuple[int, float], Sequence[str]] = {}  # by epoch and when it was saved
        self._words_lock = threading.Lock()

    def driver(self) -> Driver:
        """Who drives moves, as it was a moment ago."""
        if clock.monotonic_s() >= self._due_s and self._driver_lock.acquire(blocking=False):
            try:
                self._driver = self._read()
                self._due_s = clock.monotonic_s() + DRIVER_S
            finally:
                self._driver_lock.release()
        return self._driver

    def history(self, limit: int) -> list[Change]:
        """The last rings, the newest first. Raises RingStoreError, RingError where the one in force cannot be read."""
        pasts = self._store.history()
        with self._words_lock:  # several who ask at once do not read the same rings
            self._forget(pasts)
            wanted = range(max(0, len(pasts) - limit), len(pasts))
            return [Change(pasts[at], self._changed(pasts, at)) for at in reversed(wanted)]

    def _read(self) -> Driver:
        try:
            return Driver(self._store.driver()[:DRIVER_CHARS], "")
        except RingStoreError as error:
            return Driver("", str(error))

    def _changed(self, pasts: Sequence[Past], at: int) -> Sequence[str]:
        """What a past ring changed; of the earliest of a history that has forgotten some, what it is."""
        key = _key(pasts[at])
        if key not in self._words:
            try:
                self._words[key] = changes(self._ring(pasts[at - 1]) if at else None, self._ring(pasts[at]))
            except RingError as error:  # damaged, or forgotten meanwhile: the others are told all the same
                return [f"cannot be told: {error}"]
        return self._words[key]

    def _ring(self, past: Past) -> Ring:
        return self._store.past(past.epoch)

    def _forget(self, pasts: Sequence[Past]) -> None:
        """Forget rings that the history has forgotten; at most HISTORY are known."""
        if len(self._words) > HISTORY:
            kept = {_key(past) for past in pasts}
            self._words = {key: words for key, words in self._words.items() if key in kept}


def _key(past: Past) -> tuple[int, float]:
    return past.epoch, past.saved_at_s
