"""The gate: how many requests are answered at once, and how many may be here beside these. Any thread; one lock.

Who has arrived waits for a place, and is let in in order of arrival. A place is held while an answer is computed, not
while a client sends its body or reads what it is given, so slow clients keep nobody out; but they are counted among
those that may be here, so that there is always a thread left for health.
"""

import threading
from collections import deque
from typing import Final

from common.protocol import MetricFamily
from workers.query.refusal import OverLimit

RETRY_AFTER_S: Final = 1  # told to a client that finds no room: most requests are answered in much less


class Busy(OverLimit):
    """Too many requests. retry_after_s: when to come back."""

    def __init__(self, setting: str, limit: int, value: int, message: str) -> None:
        super().__init__(setting, limit, value, message, status=429)
        self.retry_after_s = RETRY_AFTER_S


class Gate:
    """here: requests that have arrived and not departed. inside: those that hold a place. refused: so far."""

    def __init__(self, places: int, queue: int, patience_s: float) -> None:
        self.here = 0
        self.inside = 0
        self.refused = 0
        self._places = places
        self._queue = queue
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._waiting: deque[threading.Lock] = deque()  # each released when its request is let in

    def arrive(self) -> None:
        """Come in from outside, which `depart` ends. Raises Busy."""
        with self._lock:
            if self.here >= self._places + self._queue:
                raise self._busy()
            self.here += 1

    def depart(self) -> None:
        """Go for good."""
        with self._lock:
            self.here -= 1

    def enter(self, patient: bool = False) -> None:
        """Wait for a place, which `leave` gives back; a patient one as long as it takes. Raises Busy."""
        with self._lock:
            if self.inside < self._places:
                self.inside += 1
                return
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        if not turn.acquire(timeout=-1 if patient else self._patience_s):
            self._give_up(turn)

    def leave(self) -> None:
        """Give the place back, to whoever waits longest."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self.inside -= 1

    def families(self) -> list[MetricFamily]:
        """What is counted here, as metrics."""
        told = [
            ("minitrue_http_requests_inside", "gauge", "Requests being answered.", self.inside),
            ("minitrue_http_requests_beside", "gauge", "Others here: they wait, send or read.", self._beside()),
            ("minitrue_http_requests_refused_total", "counter", "Requests refused with 429.", self.refused),
        ]
        return [MetricFamily(name, kind, text, [(name, {}, float(count))]) for name, kind, text, count in told]

    def _beside(self) -> int:
        return max(0, self.here - self.inside)

    def _give_up(self, turn: threading.Lock) -> None:
        with self._lock:
            if turn in self._waiting:  # else it was let in at the last moment
                self._waiting.remove(turn)
                raise self._busy()

    def _busy(self) -> Busy:
        self.refused += 1
        text = (
            f"{self.inside} requests are being answered and {self._beside()} are here beside them; "
            f"want at most {self._places} (query.threads) and {self._queue} (query.queue): ask again in a moment"
        )
        return Busy("query.queue", self._queue, self._beside(), text)
