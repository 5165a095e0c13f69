"""The fences of one wave: put at the owners that leave, renewed, closed before they leave, and until when they hold.

Owns what each node has answered. Changes no ring. A fence is in the memory of its node: one that starts anew behind it
takes points again, and what was proven behind the fence is of a moment that is over. So whoever answers as another
incarnation than the one that was fenced has no fence, though it has just put one: those partitions wait for the next
round. That is seen at the latest by `close`, right before the ring is saved:

    mover   fence B      pull: C has all of B's       close: B is another one         (saves nothing of B's)
    B       fenced               | killed, starts, takes P

Nodes are asked at the same time: behind the first fence points wait. Times are those of before each question: fences
hold longer. Thread: that of the caller.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Protocol, TypeVar

from common import clock, log, protocol
from common.errors import MinitrueError
from common.protocol import FenceReply
from common.ring import Move, Ring
from common.ringmoves import Step
from common.ringstore import RingStore

logger = log.get("ringctl")

T = TypeVar("T")
Answer = tuple[FenceReply | None, float]  # None for none; when it was asked for


class AsksFences(Protocol):
    """Who can ask a node for a fence, which may raise MinitrueError; and make calls at the same time, in any order."""

    def fence(self, ring: Ring, node: str, partitions: list[int], reads: bool) -> FenceReply: ...

    def together(self, calls: Sequence[Callable[[], T]]) -> list[T]: ...


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
        self._ring, moves = ring, list(moves)
        wanted: defaultdict[str, set[int]] = defaultdict(set)
        for partition, source, _ in moves:
            wanted[str(source)].add(partition)
        for node, (reply, asked_s) in self._answers(wanted, reads=False).items():
            if reply is not None:
                partitions = wanted[node]
                self._incarnations[node] = reply.incarnation
                self._hold(node, partitions, reply, asked_s)
        self._keep_equal(moves)

    def _keep_equal(self, moves: Iterable[Move | Step]) -> None:
        """Let targets refuse, too, what their sources refuse now.

        Nothing rests on it: no point of these partitions is acknowledged anyway. But a target that went on to take
        them would have more than its source wherever points come, and comparing would have to look for what differs.
        """
        wanted: defaultdict[str, set[int]] = defaultdict(set)
        for move in moves:
            if move.target is not None and self.holds(move):
                wanted[move.target].add(move.partition)
        self._answers(wanted, reads=False)

    def renew(self) -> None:
        """Renew those of which a third of the time is over."""
        now = clock.monotonic_s()
        due = [node for node in self._open() if self._until_s[node] - now < self._seconds[node] * 2 / 3]
        self._again({node: self._held[node] for node in due}, False)

    def close(self, ring: Ring, moves: Iterable[Move | Step]) -> None:
        """Let sources refuse questions, too, of moves that the ring after this one ends. Others are not held any more.

        Of these alone: what is closed and then does not move, its source answers for only when that has lapsed. A
        source that does not answer, or has begun anew, is not closed.
        """
        self._ring = ring
        wanted: defaultdict[str, set[int]] = defaultdict(set)
        for move in moves:
            if self.holds(move):
                wanted[str(move.source)].add(move.partition)
        self._closed = self._again(wanted, True)

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

    def _again(self, wanted: Mapping[str, set[int]], reads: bool) -> set[str]:
        """Renew fences, and hold these alone where they are: at which nodes that was done."""
        answers = self._answers(wanted, reads)
        return {node for node, answer in answers.items() if self._renewed(node, wanted[node], *answer)}

    def _renewed(self, node: str, partitions: set[int], reply: FenceReply | None, asked_s: float) -> bool:
        """Whether an answer renews a fence. One that was over before that came holds no more."""
        if reply is None:
            return False
        if clock.monotonic_s() > self._until_s[node] or reply.incarnation != self._incarnations[node]:
            logger.info("fence is over", node=node, restarted=reply.incarnation != self._incarnations[node])
            self._held[node] = set()
            return False
        self._hold(node, partitions, reply, asked_s)
        return True

    def _hold(self, node: str, partitions: set[int], reply: FenceReply, asked_s: float) -> None:
        self._held[node] = partitions & set(protocol.members(reply.partitions))
        self._until_s[node], self._seconds[node] = asked_s + reply.seconds, reply.seconds

    def _answers(self, wanted: Mapping[str, set[int]], reads: bool) -> dict[str, Answer]:
        """What the nodes answer."""
        if not wanted or self._ring is None:
            return {}
        calls = [partial(self._asked, self._ring, node, sorted(each), reads) for node, each in wanted.items()]
        answers = dict(zip(wanted, self._ask.together(calls), strict=True))
        if any(reply is None for reply, _ in answers.values()):
            self._ring = self._store.load() or self._ring  # the node may have a newer one by now
        return answers

    def _asked(self, ring: Ring, node: str, partitions: list[int], reads: bool) -> Answer:
        asked_s = clock.monotonic_s()
        try:
            return self._ask.fence(ring, node, partitions, reads), asked_s
        except MinitrueError as error:
            logger.info("not fenced", node=node, reason=str(error))
            return None, asked_s
