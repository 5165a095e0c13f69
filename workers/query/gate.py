"""The gate: how many requests are answered at once, and how many may wait. Any thread; guarded by a lock of its own.

Who waits is let in in order of arrival. Who finds the queue full, or has waited too long, is told to come back.
"""

import math
import threading
from collections import deque
from typing import Final

from workers.query.refusal import OverLimit

RETRY_AFTER_S: Final = 1.0  # told to a client that finds the queue full: requests are answered in less


class Busy(OverLimit):
    """Too many requests. retry_after_s: when to come back."""

    def __init__(self, setting: str, limit: int, value: int, message: str) -> None:
        super().__init__(setting, limit, value, message, status=429)
        self.retry_after_s = math.ceil(RETRY_AFTER_S)


class Gate:
    """running, waiting, refused: counts, for metrics."""

    def __init__(self, places: int, queue: int, patience_s: float) -> None:
        self.running = 0
        self.refused = 0
        self._places = places
        self._queue = queue
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._waiting: deque[threading.Lock] = deque()  # each released when its request is let in

    @property
    def waiting(self) -> int:
        """How many wait now."""
        return len(self._waiting)

    def enter(self) -> None:
        """Wait for a place, which `leave` gives back. Raises Busy."""
        with self._lock:
            if self.running < self._places:
                self.running += 1
                return
            if len(self._waiting) >= self._queue:
                raise self._busy()
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        if not turn.acquire(timeout=self._patience_s):
            self._give_up(turn)

    def leave(self) -> None:
        """Give the place back, to whoever waits longest."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self.running -= 1

    def _give_up(self, turn: threading.Lock) -> None:
        with self._lock:
            if turn not in self._waiting:
                return  # let in at the last moment
            self._waiting.remove(turn)
            raise self._busy()

    def _busy(self) -> Busy:
        self.refused += 1
        waiting = len(self._waiting)
        text = (
            f"{self.running} requests are being answered and {waiting} wait; at most {self._places} (query.threads) "
            f"are answered at once while {self._queue} (query.queue) wait: ask again in a moment"
        )
        return Busy("query.queue", self._queue, waiting, text)
