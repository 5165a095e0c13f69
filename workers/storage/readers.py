"""The readers' pool: work of one request spread over threads.

Owns the helper threads. Never reads the store by itself: a task is a function of the caller. The kernels, pcodec
and CRCs leave the GIL to others, so decoding scales with cores.

The thread that asks works on its own tasks too, and helpers join it when they are free: so any thread may ask, also
several at once, and nobody waits for a thread that waits for him.
"""

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from workers.storage.work import Cancel

Result = TypeVar("Result")


class _Job(Generic[Result]):
    """Tasks in the order in which they are taken, and what became of them. `_lock` guards all fields."""

    def __init__(self, tasks: Sequence[Callable[[], Result]], check: Callable[[], None]) -> None:
        self.results: list[Result | None] = [None] * len(tasks)
        self.error: BaseException | None = None
        self._tasks = tasks
        self._check = check
        self._next = 0
        self._running = 0
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)

    def work(self) -> None:
        """Do tasks until none is left that nobody has taken."""
        while (at := self._take()) is not None:
            try:
                self._check()
                self.results[at] = self._tasks[at]()
            except BaseException as error:
                self._fail(error)
            finally:
                self._done()

    def wait(self) -> None:
        """Until the tasks taken by others are done."""
        with self._idle:
            self._idle.wait_for(lambda: self._running == 0)

    def _take(self) -> int | None:
        with self._lock:
            if self._next == len(self._tasks):
                return None
            self._next += 1
            self._running += 1
            return self._next - 1

    def _fail(self, error: BaseException) -> None:
        """Keep the first error; nobody begins another task."""
        with self._lock:
            self.error = self.error or error
            self._next = len(self._tasks)

    def _done(self) -> None:
        with self._idle:
            self._running -= 1
            if self._running == 0:
                self._idle.notify_all()


class Readers:
    """`threads` threads in all, the asking one counted: one helper less is started.

    check: for long tasks, to be called now and then: raises CancelledError when they are to be given up.
    """

    def __init__(self, threads: int) -> None:
        self._jobs: queue.SimpleQueue[_Job[object] | None] = queue.SimpleQueue()
        self.check: Callable[[], None] = _go_on
        self._helpers = [
            threading.Thread(target=self._help, name=f"reader{number}", daemon=True) for number in range(1, threads)
        ]
        for helper in self._helpers:
            helper.start()

    def run(self, tasks: Sequence[Callable[[], Result]]) -> list[Result]:
        """The tasks' results, in their order. The first error of a task is raised, when all that ran have ended."""
        job: _Job[Result] = _Job(tasks, self.check)
        for _ in range(min(len(self._helpers), len(tasks) - 1)):
            self._jobs.put(job)  # type: ignore[arg-type]
        job.work()
        job.wait()
        if job.error is not None:
            raise job.error
        return job.results  # type: ignore[return-value]

    def watching(self, cancel: Cancel) -> "Readers":
        """The same threads, for work that may be given up: then `run` raises CancelledError before the next task."""
        other = Readers.__new__(Readers)
        other._jobs, other._helpers, other.check = self._jobs, self._helpers, cancel.check
        return other

    def close(self) -> None:
        """End the helpers, once they have done what they are at."""
        for _ in self._helpers:
            self._jobs.put(None)
        for helper in self._helpers:
            helper.join()

    def _help(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.work()


def _go_on() -> None:
    """What nobody gives up."""
