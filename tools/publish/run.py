"""The publisher's loop: take chunks from a source when they are due, give them to the link, wait for the PUBACKs.

After a request to stop nothing new is sent and what is under way may still be acknowledged, for GRACE_S; a second
request ends that too. Belongs to the main thread.
"""

import signal
from collections.abc import Iterator
from typing import Final, Protocol

from common import clock
from tools.publish.link import Link
from tools.publish.message import Chunk

GRACE_S: Final = 10.0  # for acknowledgements after a request to stop
TURN_S: Final = 0.1  # between two looks at whether to stop


class Watcher(Protocol):
    """Whoever shows the progress."""

    def update(self) -> None:
        """Something may have changed; called often."""


class Source(Protocol):
    """Whoever has the messages. live: they come as they come; the source cannot be asked to wait."""

    live: bool

    def __iter__(self) -> Iterator[Chunk]:
        """The messages, in chunks."""


class Stop:
    """Counts SIGINT and SIGTERM: one means stop sending, two mean stop waiting."""

    def __init__(self) -> None:
        self.requests = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self._request())

    def _request(self) -> None:
        self.requests += 1

    def is_set(self) -> bool:
        """Whether to stop sending."""
        return self.requests > 0


def publish(source: Source, link: Link, stop: Stop, watcher: Watcher) -> None:
    """Send everything that the source has, and wait until it is acknowledged or it is time to stop.

    Raises PublisherError as source and link do.
    """
    start_s = clock.monotonic_s()
    for chunk in source:
        _wait_until(start_s + chunk.due_s, link, stop, watcher)
        if stop.is_set():
            break
        link.send(chunk.messages, stop.is_set, source.live)
        link.turn(0.0)
        watcher.update()
    _settle(link, stop, watcher)


def _wait_until(due_s: float, link: Link, stop: Stop, watcher: Watcher) -> None:
    while not stop.is_set() and (left_s := due_s - clock.monotonic_s()) > 0:
        link.turn(min(left_s, TURN_S))
        watcher.update()


def _settle(link: Link, stop: Stop, watcher: Watcher) -> None:
    """Wait until nothing is outstanding; after a request to stop for GRACE_S, after a second one not at all.

    A request to stop while everything lies in the spool and the broker is away needs no waiting either.
    """
    asked_s: float | None = None
    while link.outstanding and stop.requests < 2 and not (stop.is_set() and link.is_parked):
        link.turn(TURN_S)
        watcher.update()
        if stop.is_set():
            asked_s = clock.monotonic_s() if asked_s is None else asked_s
            if clock.monotonic_s() > asked_s + GRACE_S:
                return
