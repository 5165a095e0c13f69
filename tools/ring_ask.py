"""What a mover asks of nodes, over the bus. Changes no ring. A question opens a connection of its own; any thread."""

import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar

from common import bus, protocol
from common.errors import MinitrueError, ProtocolError
from common.protocol import FenceReply, JobsReply, JobState
from common.ring import Ring

WITHIN_S: Final = 3.0  # a node that is up answers in milliseconds; a request that waits for a new ring, in 1 s
AT_ONCE: Final = 32

T = TypeVar("T")


class RefusedError(MinitrueError):
    """A node answered with an error. code: one of the protocol's ERR_ codes."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class Asker:
    """Asks nodes of a ring. key: of the bus. rate_bytes: of pulls and repairs; None: as each node has it set."""

    def __init__(self, key: bus.Key | None, rate_bytes: int | None = None) -> None:
        self._key = key
        self._rate_bytes = rate_bytes
        self._incarnation = secrets.randbelow((1 << 63) - 1) + 1

    def statuses(self, ring: Ring, nodes: Sequence[str]) -> dict[str, dict[str, Any] | MinitrueError]:
        """The status of nodes, or why there is none. Who is asked looks for this ring, if it has an older one."""

        def one(node: str) -> dict[str, Any] | MinitrueError:
            try:
                return self.ask(ring, node, protocol.STATUS, {}, dict[str, Any])
            except MinitrueError as error:
                return error

        return dict(zip(nodes, self.together([partial(one, node) for node in nodes]), strict=True))

    @staticmethod
    def together(calls: Sequence[Callable[[], T]]) -> list[T]:
        """The results of several calls that are made at the same time. Raises what one of them raises."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(lambda call: call(), calls))

    def pull(self, ring: Ring, node: str, partitions: Sequence[int], peer: str) -> JobState:
        """Let a node get partitions from a peer."""
        bits = protocol.bitmap(partitions, ring.partitions)
        request = protocol.PullRequest(bits, peer, self._rate_bytes)
        return self._job(self.ask(ring, node, protocol.PULL, request, JobsReply), node)

    def repair(self, ring: Ring, node: str, partitions: Sequence[int], series: Sequence[bytes] = ()) -> JobState:
        """Let a node compare partitions, or series of them, with its co-owners and get what it lacks."""
        bits = protocol.bitmap(partitions, ring.partitions)
        request = protocol.RepairRequest(bits, list(series), self._rate_bytes)
        return self._job(self.ask(ring, node, protocol.REPAIR, request, JobsReply), node)

    def job(self, ring: Ring, node: str, number: int) -> JobState | None:
        """How a job gets on; None when its node knows it no more."""
        found = self.ask(ring, node, protocol.JOBS, protocol.JobsRequest([number]), JobsReply).jobs
        return found[0] if found else None

    def jobs(self, ring: Ring, node: str) -> list[JobState]:
        """All jobs of a node."""
        return self.ask(ring, node, protocol.JOBS, protocol.JobsRequest(), JobsReply).jobs

    def cancel_job(self, ring: Ring, node: str, number: int) -> None:
        """Let a node give a job up."""
        self.ask(ring, node, protocol.CANCEL_JOB, protocol.JobsRequest([number]), JobsReply)

    def fence(self, ring: Ring, node: str, partitions: Sequence[int], reads: bool) -> FenceReply:
        """Let an owner refuse points of partitions for a moment; questions of them, too."""
        request = protocol.FenceRequest(protocol.bitmap(partitions, ring.partitions), ring.epoch, reads)
        return self.ask(ring, node, protocol.FENCE, request, FenceReply)

    def accept_loss(self, ring: Ring, node: str, partitions: Sequence[int]) -> protocol.AcceptLossReply:
        """Let a node that is behind answer for partitions again."""
        request = protocol.AcceptLossRequest(protocol.bitmap(partitions, ring.partitions))
        return self.ask(ring, node, protocol.ACCEPT_LOSS, request, protocol.AcceptLossReply)

    def ask(self, ring: Ring, node: str, kind: bytes, body: Any, type_: type[T]) -> T:
        """One answer. Raises RefusedError, and other MinitrueError where none comes."""
        header = protocol.Header(
            protocol.VERSION, ring.cluster, node, "ringctl", self._incarnation, secrets.randbits(62), ring.epoch,
            ring.hash,
        )  # fmt: skip
        endpoint = ring.node(node).request_endpoint
        message = bus.request(endpoint, kind, header, body, WITHIN_S, self._key)
        if message.kind == protocol.ERROR:
            refusal = protocol.decode_body(message.body, protocol.ErrorReply)
            raise RefusedError(refusal.error, f"{node} answers {refusal.error}: {refusal.message}")
        if (message.header.cluster, message.header.sender) != (ring.cluster, node):
            raise ProtocolError(f"{endpoint} is {message.header.sender}, want {node}")
        return protocol.decode_body(message.body, type_)

    @staticmethod
    def _job(reply: JobsReply, node: str) -> JobState:
        if len(reply.jobs) != 1:
            raise ProtocolError(f"{node} answers with {len(reply.jobs)} jobs, want the one begun")
        return reply.jobs[0]
