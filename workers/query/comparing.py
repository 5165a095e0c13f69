"""Questions that compare owners: all that are current are asked, each for all that it owns of what is wanted.

A comparison may carry a read, which nodes answer behind their figures.

Owns no socket and reads no clock, as all questions (gather.py). Nodes that are behind, or whose partitions are about to
move, are not compared; one that does not answer leaves the comparison incomplete, not the answer.

What owners hold of a series only grows, at one delete number. So they need not tell the same at the same time
(`Heard`): when A has told at some time what B has told at another, each holds from then on all that the other held at
first.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from msgspec import structs

from common import protocol
from common.errors import ProtocolError
from common.protocol import VerifyReply, VerifyRequest
from common.series import partition_of
from workers.query.gather import Ask, Gather, Question
from workers.query.plan import Partitions, Plan, flags, from_bitmap

Figure = tuple[int, int]  # count, digest
NOTHING: Figure = (0, 0)

R = TypeVar("R")


class UnverifiedError(ProtocolError):
    """Owners that could not be compared, and why."""


class Compare(Question):
    """replies: of each node, by partition or by series, disjoint in their partitions. answered: those partitions."""

    kind = protocol.VERIFY

    def __init__(
        self,
        wanted: Callable[[Plan], Partitions],
        request: Callable[[bytes, int], VerifyRequest],
        timeout_s: float,
        by_series: bool = False,
        read: Gather[Any] | None = None,
    ) -> None:
        """wanted: the partitions, by the plan. request: from bitmap and delete number to the body, that asks so. read:
        a read that nodes are to answer behind the comparison, each for what it is the first to be asked for; for the
        asker to see whether it got all its answers.
        """
        super().__init__(timeout_s)
        self._read = read
        self._shares: Mapping[str, Partitions] = {}  # of the read, by node
        self._by_series = by_series
        self.wanted: Partitions = 0
        self.replies: dict[str, list[VerifyReply]] = {}
        self.answered: dict[str, Partitions] = {}
        self._select = wanted
        self._request = request

    def targets(self, plan: Plan) -> Mapping[str, Partitions]:
        if self.plan is not None and plan.ring.epoch != self.plan.ring.epoch:
            self.replies, self.answered = {}, {}  # of other owners, or of before a delete
        if self._read is not None:  # once: what was not answered then is for the asker to ask
            self._shares = self._read.targets(plan) if self.plan is None else {}
        self.plan = plan
        self.wanted = self._select(plan)
        left = {node: self._lacking(node) for node in self._current()}
        return {node: partitions for node, partitions in left.items() if partitions and node not in self.trouble}

    def body(self, plan: Plan, ask: Ask) -> Any:
        request = self._request(plan.bitmap(ask.partitions), plan.ring.delete_number)
        if (share := self._share(ask)) is None:
            return request
        return structs.replace(
            request, read_kind=share.question.kind, read=protocol.encode_body(share.question.body(plan, share))
        )

    def _share(self, ask: Ask) -> Ask | None:
        """Of the read, the ask that travels with one of the comparison."""
        if self._read is None or ask.node not in self._shares:
            return None
        return dataclasses.replace(ask, question=self._read, partitions=self._shares[ask.node])

    def accept(self, ask: Ask, body: bytes) -> None:
        reply = protocol.decode_body(body, VerifyReply)
        answered = from_bitmap(reply.partitions)
        if answered & ~ask.partitions:
            raise ProtocolError(f"{ask.node} answers for partitions that it was not asked for")
        check(reply, len(reply.keys) if self._by_series else answered.bit_count())
        if self.plan is not None and reply.delete_number != self.plan.ring.delete_number:
            self.refuse(ask.node, f"compares at delete {reply.delete_number}", self.deadline_s)
            return
        left = ask.partitions & ~answered
        if left:
            reason = f"does not own {left.bit_count()} of the partitions that the ring gives it"
            self.refuse(ask.node, reason, self.deadline_s)
        if answered:
            self.replies.setdefault(ask.node, []).append(structs.replace(reply, read=b""))
            self.answered[ask.node] = self.answered.get(ask.node, 0) | answered
        # A read of more than was compared at that time would be of before what is compared later.
        if reply.read and not left and (share := self._share(ask)) is not None:
            with contextlib.suppress(ProtocolError):  # it is asked for by itself, then
                share.question.accept(share, reply.read)

    def complete(self) -> bool:
        """Whether every current owner has told all that it holds."""
        return bool(self.answered) and not any(map(self._lacking, self._current()))

    @property
    def cutoffs(self) -> set[int]:
        """Of the nodes' retention, ns."""
        return {reply.cutoff_ns for replies in self.replies.values() for reply in replies}

    def by_partition(self) -> "Agreement":
        """What the nodes tell of each partition. For a request by partition."""
        replies = [reply for each in self.replies.values() for reply in each]
        return Agreement.of(replies, 0 if self.plan is None else self.plan.ring.partitions)

    def by_series(self) -> dict[bytes, dict[str, Figure]]:
        """Of each series the figures of each node that answers for its partition. For a request by series."""
        if self.plan is None:
            return {}
        partitions = self.plan.ring.partitions
        told = {
            node: dict(pair for reply in replies for pair in zip(reply.keys, figures_of(reply), strict=True))
            for node, replies in self.replies.items()
        }
        found: dict[bytes, dict[str, Figure]] = {}
        for key in set().union(*told.values()):
            bit = 1 << partition_of(key, partitions)
            found[key] = {
                node: figures.get(key, NOTHING) for node, figures in told.items() if self.answered[node] & bit
            }
        return found

    def _current(self) -> list[str]:
        return [] if self.plan is None else [n.id for n in self.plan.ring.nodes if n.id not in self.plan.behind]

    def _lacking(self, node: str) -> Partitions:
        owned = 0 if self.plan is None else self.plan.owned(node)
        return owned & self.wanted & ~self.answered.get(node, 0)


class Agreement(NamedTuple):
    """By partition: how many owners have told, the most points that any has, whether any two differ. Columns, as there
    are a thousand partitions and more, and a question may be about one point.
    """

    told: npt.NDArray[np.int64]
    most: npt.NDArray[np.int64]
    differs: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, replies: Sequence[VerifyReply], partitions: int) -> "Agreement":
        """Of so many partitions, by what owners tell of them, each of a partition once."""
        shape = max(1, len(replies)), partitions
        told, counts, digests = np.zeros(shape, np.bool_), np.zeros(shape, np.int64), np.zeros(shape, np.uint64)
        for at, reply in enumerate(replies):
            told[at] = of_these = flags(from_bitmap(reply.partitions), partitions)
            counts[at][of_these], digests[at][of_these] = columns(reply)
        most = counts.max(axis=0)
        unlike = told & ((counts != most) | (digests != digests.max(axis=0)))  # unlike the largest is unlike any
        return cls(told.sum(axis=0), most, unlike.any(axis=0))


class Heard:
    """What owners have told of series in which they differed, in comparisons one after the other.

    open: what each owner has told last of a series, of those of which all of them have told no figure yet, at whatever
    times.
    """

    def __init__(self, told: Mapping[bytes, Mapping[str, Figure]]) -> None:
        """told: by the first comparison. Which series are looked at is up to it: later ones are new since."""
        self.open = {key: figures for key, figures in told.items() if len(set(figures.values())) > 1}
        self._seen = {key: {node: {figure} for node, figure in figures.items()} for key, figures in self.open.items()}

    def hear(self, told: Mapping[bytes, Mapping[str, Figure]]) -> bool:
        """Take in a later comparison; whether any series that stays open has changed since the one before."""
        has_changed = False
        for key, before in list(self.open.items()):
            figures, seen = told.get(key, dict.fromkeys(before, NOTHING)), self._seen[key]
            for node, figure in figures.items():
                seen.setdefault(node, set()).add(figure)
            if set.intersection(*seen.values()):
                del self.open[key]
            else:
                self.open[key] = figures
                has_changed = has_changed or figures != before
        return has_changed


class Direct(Question, Generic[R]):
    """One request to one node. reply: None until it is there."""

    def __init__(
        self, kind: bytes, reply_type: type[R], node: str, request: Callable[[Plan], Any], timeout_s: float
    ) -> None:
        super().__init__(timeout_s)
        self.kind = kind
        self.reply: R | None = None
        self._reply_type: type[R] = reply_type
        self._node = node
        self._request = request

    def targets(self, plan: Plan) -> Mapping[str, Partitions]:
        self.plan = plan
        asked = self.reply is not None or self._node in self.trouble or not plan.ring.has(self._node)
        return {} if asked else {self._node: 0}

    def body(self, plan: Plan, ask: Ask) -> Any:
        return self._request(plan)

    def accept(self, ask: Ask, body: bytes) -> None:
        self.reply = protocol.decode_body(body, self._reply_type)

    def complete(self) -> bool:
        return self.reply is not None

    def attempt_s(self, now_s: float) -> float:
        return self.deadline_s - now_s


def figures_of(reply: VerifyReply) -> list[Figure]:
    """Count and digest of each key."""
    counts, digests = columns(reply)
    return list(zip(counts.tolist(), digests.tolist(), strict=True))


def columns(reply: VerifyReply) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
    """Counts and digests of each partition, or each key."""
    return np.frombuffer(reply.counts, "<i8"), np.frombuffer(reply.digests, "<u8")


def check(reply: VerifyReply, figures: int) -> None:
    """Raise ProtocolError for a reply that no node computes. figures: of how many partitions, or keys, it tells."""
    sizes = [len(reply.counts), len(reply.digests)]
    if sizes != [8 * figures] * 2:
        raise ProtocolError(f"VerifyReply has columns of {sizes} bytes, want {8 * figures}")
