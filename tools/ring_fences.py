"""The fences of one wave: put at the owners that leave, renewed, closed before they leave, and until when they hold.

Owns what each node has answered. Changes no ring. A fence is in the memory of its node: one that starts anew behind it
takes points again, and what was proven behind the fence is of a moment that is over. So whoever answers as another
incarnation than the one that was fenced has no fence, though it has just put one: those partitions wait for the next
round. That is seen at the latest by `close`, right before the ring is saved:

    mover   fence B      pull: C has all of B's       close: B is another one         (saves nothing of B's)
    B       fenced               | killed, starts, takes P

Times are those of before each question: fences hold longer. Thread: that of the caller.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Protocol

from common import clock, log, protocol
from common.errors import MinitrueError
from common.protocol import FenceReply
from common.ring import Move, Ring
from common.ringmoves import Step
from common.ringstore import RingStore

logger = log.get("ringctl")


class AsksFences(Protocol):
    """Who can ask a node for a fence. May raise MinitrueError."""

    def fence(self, ring: Ring, node: str, partitions: list[int], reads: bool) -> FenceReply: ...


class Fences:
    """See the module's text."""

    def __init__(self, store: RingStore, ask: AsksFences) -> None:
        self._store = store
        self._ask = ask
        self._ring: Ring | None = None
        self._held: dict[str, set[int]] = {}
        self._until_s: dict[str, float] = {}
        self._seconds: dict[str, float] = {}
        self._incarnations: dict[str, int] = {}
        self._closed: set[str] = set()  # nodes that refuse questions of what is held there

    def put(self, ring: Ring, moves: Iterable[Move | Step]) -> None:
        """Fence the sources: they take no points any more."""
        self._ring = ring
        wanted: defaultdict[str, set[int]] = defaultdict(set)
        for partition, source, _ in moves:
            wanted[str(source)].add(partition)
        for node, partitions in wanted.items():
            reply, asked_s = self._asked(node, partitions, reads=False)
            if reply is not None:
                self._incarnations[node] = reply.incarnation
                self._hold(node, partitions, reply, asked_s)

    def renew(self) -> None:
        """Renew those of which a third of the time is over."""
        for node in self._open():
            left_s = self._until_s[node] - clock.monotonic_s()
            if left_s < self._seconds[node] * 2 / 3:
                self._again(node, reads=False)

    def close(self) -> None:
        """Let the sources refuse questions, too. One that does not answer, or has begun anew, holds nothing more."""
        self._closed = {node for node in self._open() if self._again(node, reads=True)}

    def holds(self, move: Move | Step) -> bool:
        """Whether the source of a move is fenced, and will be for a while."""
        node = str(move.source)
        left_s = self._until_s.get(node, 0.0) - clock.monotonic_s()
        return move.partition in self._held.get(node, ()) and left_s > self._seconds[node] / 2

    def is_closed(self, move: Move | Step) -> bool:
        """Whether it is, and refuses questions, too."""
        return str(move.source) in self._closed and self.holds(move)

    def _open(self) -> list[str]:
        return [node for node, partitions in self._held.items() if partitions]

    def _again(self, node: str, reads: bool) -> bool:
        """Renew a fence: whether there is an answer. One that was over before that came holds no more."""
        reply, asked_s = self._asked(node, self._held[node], reads)
        if reply is None:
            return False
        if clock.monotonic_s() > self._until_s[node] or reply.incarnation != self._incarnations[node]:
            logger.info("fence is over", node=node, restarted=reply.incarnation != self._incarnations[node])
            self._held[node] = set()
            return False
        self._hold(node, self._held[node], reply, asked_s)
        return True

    def _hold(self, node: str, partitions: set[int], reply: FenceReply, asked_s: float) -> None:
        self._held[node] = partitions & set(protocol.members(reply.partitions))
        self._until_s[node], self._seconds[node] = asked_s + reply.seconds, reply.seconds

    def _asked(self, node: str, partitions: set[int], reads: bool) -> tuple[FenceReply | None, float]:
        """The answer, None for none; and when the question was asked."""
        asked_s = clock.monotonic_s()
        try:
            assert self._ring is not None
            return self._ask.fence(self._ring, node, sorted(partitions), reads), asked_s
        except MinitrueError as error:
            logger.info("not fenced", node=node, reason=str(error))
            self._ring = self._store.load() or self._ring  # the node may have a newer one by now
            return None, asked_s
