"""Work for a thread that sleeps at a poller: what other threads want done by it, and that it has something to do.

Owns the queue. Any thread puts; one thread, the owner's, takes.
"""

import os
import queue
from collections.abc import Callable


class Wake:
    """Pollable: readable from `set` on until `clear`."""

    def __init__(self) -> None:
        self._descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def fileno(self) -> int:
        """What to poll."""
        return self._descriptor

    def set(self) -> None:
        """Wake who polls. Any thread."""
        os.eventfd_write(self._descriptor, 1)

    def clear(self) -> None:
        """Sleep again. To be called before the owner looks at what he was woken for."""
        try:
            os.eventfd_read(self._descriptor)
        except BlockingIOError:
            return  # nobody has woken him


class Orders(Wake):
    """What one thread is to do, in the order in which it was put."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def put(self, order: Callable[[], None]) -> None:
        """Have this done soon. Any thread."""
        self._waiting.put(order)
        self.set()

    def run(self) -> None:
        """Do all that is waiting. The owner's thread."""
        self.clear()  # before looking: what is put behind that wakes him again
        for _ in range(self._waiting.qsize()):  # what is put meanwhile has its turn next time
            self._waiting.get_nowait()()
