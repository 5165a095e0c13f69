"""A descriptor by which any thread wakes the one that polls it.

Owns the descriptor: it is closed with the last reference. A poller holds one for as long as it polls.
"""

import math
import os
import select
import weakref
from typing import Final

_MOST_WAIT_S: Final = 86_400.0  # poll counts milliseconds in 32 bits


class Wake:
    """Pollable: readable from `set` on until `clear`."""

    def __init__(self) -> None:
        self._descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        # Not at the end of the process: threads that nobody waits for may still poll it.
        weakref.finalize(self, os.close, self._descriptor).atexit = False

    def fileno(self) -> int:
        """What to poll."""
        return self._descriptor

    def set(self) -> None:
        """Wake who polls. Safe in a signal handler and from any thread."""
        os.eventfd_write(self._descriptor, 1)

    def clear(self) -> None:
        """Sleep again. To be called before the owner looks at what he was woken for."""
        try:
            os.eventfd_read(self._descriptor)
        except BlockingIOError:
            return  # nobody has woken him

    def wait(self, timeout_s: float | None) -> None:
        """Until it is set, at most timeout_s (None: for ever); a day may be the end too."""
        poller = select.poll()  # select() refuses descriptors from 1024 on: a worker of a large cluster has more
        poller.register(self._descriptor, select.POLLIN)
        poller.poll(None if timeout_s is None else math.ceil(min(max(timeout_s, 0.0), _MOST_WAIT_S) * 1000))
