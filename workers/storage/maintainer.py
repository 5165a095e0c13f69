"""The thread that keeps what is stored in order: it calls a step until there is nothing to do, then waits.

Owns when, and how much of a core's time, and nothing else: what a step does (compaction, retention) is the store's
business. A step that fails is tried again, ever more seldom: what it was to put in order stays as it was.

Threads: any may call the methods. `_changed` guards everything here; it is not held during a step.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from common import clock, log
from common.errors import MinitrueError, StorageError

INTERVAL_S: Final = 10.0  # between looks when nobody wakes the thread: what becomes due by time alone can wait so long
_RETRY_S: Final = 1.0  # doubled after each failure up to
_RETRY_MAX_S: Final = 300.0  # an attempt may read and write much before it fails again

logger = log.get("storage.maintainer")

Pause = Callable[[], None]


class StopRequestedError(MinitrueError):
    """Work was given up because the process is to end."""


class Maintainer:
    """Calls step(pause), which says whether it did something, in one thread of its own.

    A step calls `pause` every few tenths of a second: that sleeps so long that the step takes `share` (above 0, at
    most 1) of the time, and raises StopRequestedError when it is time to end.
    """

    def __init__(self, step: Callable[[Pause], bool], share: float, interval_s: float = INTERVAL_S) -> None:
        self._step = step
        self._rest = (1.0 - share) / share  # seconds of sleep for each of work
        self._interval_s = interval_s
        self._changed = threading.Condition()
        self._stopping = False
        self._stepping = False
        self._excluding = 0  # threads that want no step to run, or have seen to it
        self._waiting = 0  # threads in wait_until_idle
        self._wakes = 0
        self._idle_at = -1  # as many wakes as there were before the last step that found nothing to do
        self._since_s = 0.0  # when the step went on after its last pause
        self.failures = 0
        self.failure: str | None = None  # why the last attempt failed, None after a success
        self._thread = threading.Thread(target=self._run, name="maintainer", daemon=True)

    def start(self) -> None:
        """Begin. What was asked for before counts."""
        self._thread.start()

    def wake(self) -> None:
        """There may be something to do."""
        with self._changed:
            self._wakes += 1
            self._changed.notify_all()

    def stop(self) -> None:
        """End the thread, giving up the step in its hands at its next pause."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Let no step run meanwhile, nor another block like this; a step that runs is waited for and does not sleep."""
        with self._changed:
            self._excluding += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._stepping)
            self._stepping = True
        try:
            yield
        finally:
            with self._changed:
                self._stepping = False
                self._excluding -= 1
                self._changed.notify_all()

    def wait_until_idle(self) -> None:
        """Wait until a step that began after this call finds nothing to do. Raises StorageError when one fails."""
        with self._changed:
            self._wakes += 1
            self._waiting += 1
            wanted, failures = self._wakes, self.failures
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._idle_at >= wanted or self.failures > failures or not self._thread.is_alive()
            )
            self._waiting -= 1
            if self._idle_at < wanted:
                raise StorageError(f"maintenance does not come to an end: {self.failure}")

    def _run(self) -> None:
        try:
            retry_s = _RETRY_S
            while not self._stopping:
                wakes = self._wakes
                done = self._attempt()
                if done is None:
                    self._sleep(retry_s, lambda: self._waiting > 0)
                    retry_s = min(2 * retry_s, _RETRY_MAX_S)
                    continue
                retry_s = _RETRY_S
                if not done:
                    self._settle(wakes)
                    self._sleep_until_woken(wakes)
        except BaseException as error:
            self._note(f"BUG: the maintainer's thread ended: {error!r}")
            raise

    def _attempt(self) -> bool | None:
        """Whether a step did something; None when it failed."""
        try:
            with self._alone():
                done = self._step(self._pause)
                if done:
                    self._pause()
        except StopRequestedError:
            return True
        except (OSError, MemoryError, MinitrueError) as error:
            logger.error("maintenance failed, will try again", reason=str(error))
            self._note(str(error))
            return None
        except Exception as error:  # a bug must not end the thread: files would pile up without a word
            logger.exception("BUG: maintenance failed, will try again")
            self._note(f"BUG: {error!r}")
            return None
        self.failure = None
        return done

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or not (self._excluding or self._stepping))
            if self._stopping:
                raise StopRequestedError("asked to stop")
            self._stepping = True
            self._since_s = clock.monotonic_s()
        try:
            yield
        finally:
            with self._changed:
                self._stepping = False
                self._changed.notify_all()

    def _pause(self) -> None:
        worked_s = clock.monotonic_s() - self._since_s
        self._sleep(worked_s * self._rest, lambda: self._waiting + self._excluding > 0)
        if self._stopping:
            raise StopRequestedError("asked to stop")
        self._since_s = clock.monotonic_s()

    def _sleep_until_woken(self, wakes: int) -> None:
        self._sleep(self._interval_s, lambda: self._wakes > wakes)

    def _sleep(self, seconds: float, until: Callable[[], bool]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or until(), seconds)

    def _settle(self, wakes: int) -> None:
        with self._changed:
            self._idle_at = wakes
            self._changed.notify_all()

    def _note(self, failure: str) -> None:
        with self._changed:
            self.failures += 1
            self.failure = failure
            self._changed.notify_all()
