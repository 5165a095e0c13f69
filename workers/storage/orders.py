"""Work for a thread that sleeps at a poller: what other threads want done by it, and that it has something to do.

Owns the queue. Any thread puts; one thread, the owner's, takes.
"""

import queue
from collections.abc import Callable

from common.wake import Wake


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
