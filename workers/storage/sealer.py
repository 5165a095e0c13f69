"""The thread that seals frozen heads, oldest first, while ingest goes on.

Owns the queue of frozen heads and nothing else: what sealing means is the store's business. A head whose
sealing fails stays queued and is tried again, ever more seldom: its rows are safe in the WAL meanwhile.
"""

import threading
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from common import log
from common.errors import MinitrueError, StorageError
from workers.storage.head import Head

BACKLOG: Final = 2  # frozen heads; one is being sealed, one waits, and for a third the writer has to wait
_RETRY_S: Final = 0.5  # doubled after each failure up to
_RETRY_MAX_S: Final = 30.0

logger = log.get("storage.sealer")


class Frozen(NamedTuple):
    """A head that will not change any more, and the number that its segment will bear."""

    head: Head
    number: int


class Sealer:
    """Calls `seal` for each head submitted, in one thread of its own. `_changed` guards everything here."""

    def __init__(self, seal: Callable[[Frozen], None]) -> None:
        self._seal = seal
        self._changed = threading.Condition()
        self._queue: deque[Frozen] = deque()
        self._stopping = False
        self.failures = 0
        self.failure: str | None = None  # why the last attempt failed, None after a success
        self._thread = threading.Thread(target=self._run, name="sealer", daemon=True)
        self._thread.start()

    def submit(self, frozen: Frozen) -> None:
        """Queue a head."""
        with self._changed:
            self._queue.append(frozen)
            self._changed.notify_all()

    def wait_for_room(self) -> None:
        """Wait until another head may be frozen. Raises StorageError when there is no room and sealing fails."""
        self._wait(BACKLOG - 1)

    def wait_until_idle(self) -> None:
        """Wait until every head submitted is sealed. Raises StorageError when sealing fails."""
        self._wait(0)

    def has_room(self) -> bool:
        """Whether another head may be frozen without waiting."""
        return len(self._queue) < BACKLOG

    @property
    def backlog(self) -> int:
        """Heads frozen and not sealed yet."""
        return len(self._queue)

    def stop(self) -> None:
        """End the thread after the head in its hands; what is still queued comes back from the WAL."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join()

    def _wait(self, at_most: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: len(self._queue) <= at_most or self.failure is not None)
            if len(self._queue) > at_most:
                raise StorageError(f"{len(self._queue)} heads wait to be sealed, and sealing fails: {self.failure}")

    def _run(self) -> None:
        try:
            retry_s = _RETRY_S
            while (frozen := self._next()) is not None:
                if self._attempt(frozen):
                    retry_s = _RETRY_S
                else:
                    self._pause(retry_s)
                    retry_s = min(2 * retry_s, _RETRY_MAX_S)
        except BaseException as error:
            self._settle(f"BUG: the sealer's thread ended: {error!r}", done=False)
            raise

    def _next(self) -> Frozen | None:
        """The oldest head queued, which stays in the queue; None when it is time to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._stopping)
            return None if self._stopping else self._queue[0]

    def _attempt(self, frozen: Frozen) -> bool:
        try:
            self._seal(frozen)
        except (OSError, MemoryError, MinitrueError) as error:
            logger.error("sealing failed, will try again", segment=frozen.number, reason=str(error))
            self._settle(str(error), done=False)
            return False
        except Exception as error:  # a bug must not end the thread: without it the node would refuse everything
            logger.exception("BUG: sealing failed, will try again", segment=frozen.number)
            self._settle(f"BUG: {error!r}", done=False)
            return False
        self._settle(None, done=True)
        return True

    def _settle(self, failure: str | None, done: bool) -> None:
        with self._changed:
            self.failure = failure
            self.failures += failure is not None
            if done:
                self._queue.popleft()
            self._changed.notify_all()

    def _pause(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopping, seconds)
