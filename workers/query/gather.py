"""One question to the storage nodes, from the first round of asks to the last reply.

A question knows what is still missing and whom to ask next; it holds no socket and reads no clock. It belongs to
the HTTP thread that made it, then to the scatter thread until `done` is released, then to the HTTP thread again.

Rounds: each partition is asked of its first owner; what is then missing of the next owner, and so on. When no
owner is left the question waits a moment and begins again, as long as each failure is one that may pass (a node
that reconnects, or opens its store, a ring that is about to change). Each partition is taken from exactly one reply.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

from common import protocol
from common.errors import ProtocolError
from common.protocol import ErrorReply
from workers.query.known import Pair
from workers.query.plan import Partitions, Plan, from_bitmap

BEHIND_S: Final = 1.0  # a node that says that it is behind may only have found out what it lacks: asked again so long
# What passes with the next ring, a fence or a delete: asked again as long as there is time.
PASSING: Final = (protocol.ERR_NOT_MINE, protocol.ERR_STALE_EPOCH, protocol.ERR_MOVING, protocol.ERR_DELETES)
OPENING_REST_S: Final = 0.1  # between asking a node that opens its store: that takes seconds, and asking costs it time
NEVER_S: Final = float("-inf")  # as "until": a failure that waiting does not cure


@dataclass(slots=True, eq=False)
class Ask:
    """One request to one node. wait_s: for its reply; expires_s: monotonic. alone: it must not travel with others."""

    node: str
    partitions: Partitions
    question: "Question"
    wait_s: float
    expires_s: float
    alone: bool = False


class Trouble(NamedTuple):
    """Why a node did not answer, and until when (monotonic) asking it again may help. code: of its error, if any."""

    reason: str
    until_s: float
    code: str = ""


class Question(ABC):
    """What every question has: its deadline, its asks in flight, what went wrong, and the lock that ends it.

    plan: by which it was asked last, None when there was no ring. trouble: by node, of the last attempt.
    error: the reply of a node to which the question itself is at fault, whoever is asked. timed_out: whether a node
    did not answer in time. rests_until_s: monotonic, when it may begin again.
    """

    kind: bytes

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.deadline_s = 0.0  # set by the scatter thread
        self.marks_s_ago = 0.0  # as well: since when marks cannot be read; 0 while they can
        self.plan: Plan | None = None
        self.in_flight = 0
        self.trouble: dict[str, Trouble] = {}
        self.error: ErrorReply | None = None
        self.timed_out = False
        self.rests_until_s = NEVER_S
        self._said: dict[str, str] = {}  # why nodes did not answer in the round before
        self.done = threading.Lock()
        self.done.acquire()

    @property
    def epoch(self) -> int:
        """Of the ring by which it was asked last, 0 when there was none."""
        return self.plan.ring.epoch if self.plan is not None else 0

    @abstractmethod
    def targets(self, plan: Plan) -> Mapping[str, Partitions]:
        """Whom to ask for what in the next round; empty when nobody is left."""

    @abstractmethod
    def body(self, plan: Plan, ask: Ask) -> Any:
        """The body of the request that an ask is."""

    @abstractmethod
    def accept(self, ask: Ask, body: bytes) -> None:
        """Take a reply. Raises ProtocolError when it does not answer the ask."""

    def take(self, ask: Ask, reply: Any) -> None:
        """Take a reply that is decoded, as `accept` does."""
        raise ProtocolError(f"{self.kind.decode()} is not answered together with others")

    @abstractmethod
    def complete(self) -> bool:
        """Whether nothing is missing."""

    def attempt_s(self, now_s: float) -> float:
        """How long this round waits for replies: owners still to be tried share the time that is left."""
        owners = self.plan.ring.width if self.plan is not None else 1
        return (self.deadline_s - now_s) / max(1, owners - len(self.trouble))

    def refuse(self, node: str, reason: str, until_s: float, code: str = "") -> None:
        """Note that a node did not answer."""
        self.trouble[node] = Trouble(reason, until_s, code)

    def expire(self, node: str, wait_s: float) -> None:
        """Note that a node did not answer in time. A last round may be short: what it said before is told as well."""
        self.timed_out = True
        said = f", before that: {self._said[node]}" if node in self._said else ""
        self.refuse(node, f"no answer within {wait_s:g} s{said}", NEVER_S)

    def reject(self, ask: Ask, error: ErrorReply) -> None:
        """Take an error reply: some may pass, some speak of this node, some of the question itself."""
        until_s = self.deadline_s if error.error in PASSING else NEVER_S
        if error.error == protocol.ERR_BEHIND:
            until_s = ask.expires_s - ask.wait_s + BEHIND_S
        if error.error == protocol.ERR_OPENING:
            until_s = self.deadline_s - OPENING_REST_S  # so that it rests once more, and has time left to ask
        self.refuse(ask.node, f"{error.error}: {error.message}", until_s, error.error)
        if error.error in (protocol.ERR_BAD_REQUEST, protocol.ERR_LIMIT):
            self.error = error

    def may_pass(self, now_s: float) -> bool:
        """Whether to wait a moment and begin again with all owners."""
        limit_s = min((trouble.until_s for trouble in self.trouble.values()), default=NEVER_S)
        return now_s < min(limit_s, self.deadline_s)

    def rest(self, now_s: float) -> None:
        """Wait a moment before all owners are asked again: longer where one of them opens its store."""
        is_opening = any(trouble.code == protocol.ERR_OPENING for trouble in self.trouble.values())
        self.rests_until_s = now_s + OPENING_REST_S if is_opening else now_s

    def begin_again(self) -> None:
        """Ask all owners once more. What went wrong is told anew by whoever fails again."""
        self._said = {node: trouble.reason for node, trouble in self.trouble.items()}
        self.trouble.clear()


class Covering(Protocol):
    """A reply that says for which partitions it answers, a bitmap."""

    @property
    def partitions(self) -> bytes: ...


R = TypeVar("R", bound=Covering)


class Gather(Question, Generic[R]):
    """A question to the owners of partitions.

    replies: disjoint in their partitions. senders: the node of each. wanted, covered: sets of partitions; complete when
    they are equal. nodes: who answered.
    """

    def __init__(
        self,
        kind: bytes,
        reply_type: type[R],
        wanted: Callable[[Plan], Partitions],
        request: Callable[[bytes], Any],
        timeout_s: float,
        check: Callable[[R], None] = lambda reply: None,
    ) -> None:
        """wanted: the partitions to ask, by the plan. request: bitmap to body. check: raises ProtocolError."""
        super().__init__(timeout_s)
        self.kind = kind
        self.replies: list[R] = []
        self.senders: list[str] = []
        self.nodes: list[str] = []
        self.wanted: Partitions = 0
        self.covered: Partitions = 0
        self._first_epoch = 0  # of the ring by which was asked first
        self._reply_type: type[R] = reply_type
        self._select = wanted
        self._request = request
        self._check: Callable[[R], None] = check

    def targets(self, plan: Plan) -> Mapping[str, Partitions]:
        self.plan = plan
        self._first_epoch = self._first_epoch or plan.ring.epoch
        self.wanted = self._select(plan) | self.covered  # by now more may be known of where series lie
        for node, (reason, until_s) in plan.behind.items():
            self.trouble.setdefault(node, Trouble(reason, until_s))
        return plan.assign(self.wanted & ~self.covered, self.trouble)

    def body(self, plan: Plan, ask: Ask) -> Any:
        return self._request(plan.bitmap(ask.partitions))

    def accept(self, ask: Ask, body: bytes) -> None:
        self.take(ask, protocol.decode_body(body, self._reply_type))

    def take(self, ask: Ask, reply: Any) -> None:
        answered = from_bitmap(reply.partitions)
        if answered & ~ask.partitions:
            raise ProtocolError(f"{ask.node} answers for partitions that it was not asked for")
        self._check(reply)
        if self._lacks_deletes(ask, reply):
            return
        left = ask.partitions & ~answered
        if left:
            reason = f"does not own {left.bit_count()} of the partitions that the ring gives it"
            self.refuse(ask.node, reason, self.deadline_s)
        if answered:
            self.replies.append(reply)
            self.senders.append(ask.node)
            self.covered |= answered
            self._hear(ask, reply)
            if ask.node not in self.nodes:
                self.nodes.append(ask.node)

    def learn(self, pair: Pair) -> None:
        """Note where the series of a device's metric lie, if everybody was asked for them. HTTP thread, at the end.

        A node that was asked twice and took in a new series between teaches nothing: its earlier answer may lack it.
        Nor does a question during which a newer ring was heard of: a former owner may have answered for a partition.
        """
        if self.plan is None or self.wanted != self.plan.everything or not self.complete():
            return
        if self._first_epoch < self.plan.known.epoch:
            return
        replies: list[Any] = list(self.replies)
        told = {(node, reply.catalog) for node, reply in zip(self.senders, replies, strict=True)}
        stamps = dict(told)
        if len(stamps) == len(told) and all(reply.places is not None for reply in replies):
            self.plan.learn(pair, [place for reply in replies for place in reply.places], stamps)

    def _hear(self, ask: Ask, reply: Any) -> None:
        stamp = getattr(reply, "catalog", 0)
        if stamp and self.plan is not None:
            self.plan.known.heard(ask.node, stamp, ask.expires_s - ask.wait_s)

    def _lacks_deletes(self, ask: Ask, reply: Any) -> bool:
        """Whether a reply shows points that the ring by which we ask has deleted; it is refused then, for now."""
        wanted = self.plan.ring.delete_number if self.plan is not None else 0
        applied = getattr(reply, "delete_number", wanted)  # a listing of keys has none
        if applied < wanted:
            self.refuse(ask.node, f"has not applied delete {wanted} yet, it is at {applied}", self.deadline_s)
        return bool(applied < wanted)

    def complete(self) -> bool:
        return self.covered == self.wanted != 0


class Glance(Question):
    """Asks some nodes for the stamps of their catalogs; nobody waits for it."""

    kind = protocol.CATALOG

    def __init__(self, nodes: list[str], timeout_s: float) -> None:
        super().__init__(timeout_s)
        self._nodes = nodes

    def targets(self, plan: Plan) -> Mapping[str, Partitions]:
        self.plan = plan
        nodes, self._nodes = self._nodes, []
        return dict.fromkeys(nodes, 0)

    def body(self, plan: Plan, ask: Ask) -> Any:
        return {}

    def accept(self, ask: Ask, body: bytes) -> None:
        stamp = protocol.decode_body(body, protocol.CatalogReply).catalog
        if self.plan is not None:
            self.plan.known.heard(ask.node, stamp, ask.expires_s - ask.wait_s)

    def complete(self) -> bool:
        return False

    def may_pass(self, now_s: float) -> bool:
        return False

    def attempt_s(self, now_s: float) -> float:
        return self.timeout_s


class Survey(Question):
    """A question to every node of the ring, asked once. replies: by node, as decoded from the body."""

    def __init__(self, kind: bytes, reply_type: Any, timeout_s: float) -> None:
        super().__init__(timeout_s)
        self.kind = kind
        self.replies: dict[str, Any] = {}
        self.asked: list[str] = []
        self._reply_type = reply_type

    def targets(self, plan: Plan) -> Mapping[str, Partitions]:
        self.plan = plan
        if self.asked:
            return {}
        self.asked = [node.id for node in plan.ring.nodes]
        return dict.fromkeys(self.asked, 0)

    def body(self, plan: Plan, ask: Ask) -> Any:
        return {}

    def accept(self, ask: Ask, body: bytes) -> None:
        self.replies[ask.node] = protocol.decode_body(body, self._reply_type)

    def complete(self) -> bool:
        return len(self.replies) == len(self.asked) > 0

    def may_pass(self, now_s: float) -> bool:
        return False

    def attempt_s(self, now_s: float) -> float:
        return self.deadline_s - now_s
