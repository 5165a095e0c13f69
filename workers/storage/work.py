"""Work on requests: what answers a kind, what is left to do for one request, and how that is given up.

Owns nothing that lasts. A Cancel is set by the server thread and asked by whoever works on the request; everything
else is constant.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from common.errors import MinitrueError, StorageError


class CancelledError(StorageError):
    """Work that was given up, because nobody waits for the answer any more."""


class RefusedError(MinitrueError):
    """A request that this node does not answer as things stand. error: one of protocol's ERR_ codes."""

    def __init__(self, error: str, text: str) -> None:
        super().__init__(text)
        self.error = error


class Cancel:
    """Whether nobody waits any more. Any thread."""

    def __init__(self) -> None:
        self._set = False

    def __call__(self) -> bool:
        """Whether to give up."""
        return self._set

    def set(self) -> None:
        """Let the work be given up where it looks next."""
        self._set = True

    def check(self) -> None:
        """Raise CancelledError when it is to be given up."""
        if self._set:
            raise CancelledError("nobody waits for the answer any more")


class Work(NamedTuple):
    """What is left to do for a request.

    run: gives the body of the reply; short: whether that is not worth a change of thread (well under a millisecond).
    by_writer: whether it is to be run by the writer thread, between two groups.
    """

    run: Callable[[Cancel], Any]
    short: bool = False
    by_writer: bool = False


class Handler(NamedTuple):
    """How one kind of request is answered.

    request: what its body is decoded as; begin: from that to the work, in the server thread, so it has to be fast.
    """

    request: Any
    begin: Callable[[Any], Work]


def at_once(request: Any, answer: Callable[[Any], Any]) -> Handler:
    """A kind that is always answered in the server thread."""
    return Handler(request, lambda asked: Work(lambda cancel: answer(asked), short=True))


def pooled(request: Any, cover: Callable[[bytes], bytes], answer: Callable[[Any, bytes, Cancel], Any]) -> Handler:
    """A kind that is always answered by a reader thread: from the request and the partitions covered.

    cover: which of those asked the node answers for.
    """

    def begin(asked: Any) -> Work:
        covered = cover(asked.partitions)
        return Work(lambda cancel: answer(asked, covered, cancel))

    return Handler(request, begin)
