"""The read side of a storage node: requests in, replies out.

Owns the ROUTER and the pool of readers; runs in the server thread. Short requests are answered there at once;
one that has to decode much goes to the pool, so that it cannot keep the short ones waiting. Never changes the
store: a request that does is handed to the writer thread, and answered when it was done. A request that is not for
this process is counted and not answered: its caller has a deadline.
"""

import queue
import threading
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from common import bus, clock, log, metrics, protocol
from common.errors import MinitrueError, ProtocolError, StorageError
from common.protocol import ErrorReply, Header, Message
from workers.storage import routed
from workers.storage.aggregate import AggregatePlan
from workers.storage.node import Node
from workers.storage.store import Store

INLINE_ROWS = 65_536  # decoding so many rows takes well under a millisecond: not worth a change of thread
BRIDGE_SHOWN_S = 3600.0  # a bridge that has been silent for so long has gone, and nobody misses it

logger = log.get("storage")


class Ask(NamedTuple):
    """A request on its way to an answer."""

    route: list[bytes]
    header: Header
    kind: bytes


@dataclass
class ServeCounts:
    """Written by the server thread, read by any."""

    requests: int = 0
    errors: int = 0
    pooled: int = 0


@dataclass
class Server:
    """The server thread's work. `run` returns when `stop` is set.

    control: takes requests that change the store to the writer thread, and brings their replies (routed.py).
    """

    sockets: bus.Bus
    router: bus.Router
    control: bus.Socket
    node: Node
    store: Store
    read_threads: int
    counts: ServeCounts = field(default_factory=ServeCounts)
    _work: "queue.SimpleQueue[tuple[Ask, AggregatePlan] | None]" = field(default_factory=queue.SimpleQueue)

    def run(self, stop: bus.Pollable) -> None:
        """Serve until `stop` becomes readable."""
        ends = [self.sockets.pair(f"reader{number}") for number in range(self.read_threads)]
        readers = [threading.Thread(target=self._read, args=(theirs,), daemon=True) for _, theirs in ends]
        for reader in readers:
            reader.start()
        poller = bus.Poller([self.router, stop, self.control, *(ours for ours, _ in ends)])
        while stop not in (ready := poller.poll(None)):
            for socket in ready:
                if socket is self.router:
                    self._drain_requests()
                else:
                    self._forward(socket)
        for _ in readers:
            self._work.put(None)
        for reader in readers:
            reader.join()

    def _drain_requests(self) -> None:
        while (received := self.router.receive_routed()) is not None:
            route, frames = received
            try:
                self._take(route, frames)
            except ProtocolError as error:
                self.node.ignore("garbage")
                if logger.limited("garbage request", 5.0):
                    logger.warning("frames ignored", reason=str(error))

    def _take(self, route: list[bytes], frames: list[bytes]) -> None:
        message = protocol.unpack(frames)
        reason = self._mismatch(message)
        if reason is not None:
            self.node.ignore(reason)
            return
        self.counts.requests += 1
        ask = Ask(route, message.header, message.kind)
        try:
            reply = self._answer(ask, message)
        except Exception as error:
            reply = self._explain(ask, error)
        if reply is not None:
            self.router.reply(route, reply)

    def _mismatch(self, message: Message) -> str | None:
        header = message.header
        if message.kind == protocol.STATUS and (header.cluster, header.destination) == (protocol.ANY, protocol.ANY):
            return None
        return protocol.mismatch(header, self.node.cluster, self.node.node_id, self.node.incarnation)

    def _answer(self, ask: Ask, message: Message) -> list[bytes] | None:
        """The reply's frames, or None when another thread will answer."""
        if message.kind == protocol.AGGREGATE:
            return self._aggregate(ask, protocol.decode_body(message.body, protocol.AggregateRequest))
        if message.kind == protocol.AGGREGATES:
            requests = protocol.decode_body(message.body, protocol.AggregatesRequest).requests
            return self._reply(ask, protocol.AggregatesReply(self._outcomes(ask, requests)))
        if message.kind == protocol.SERIES:
            return self._reply(ask, self._series(protocol.decode_body(message.body, protocol.SeriesRequest)))
        if message.kind == protocol.STATUS:
            return self._reply(ask, self._status())
        if message.kind == protocol.DELETE:
            self._hand_on(ask, message)
            return None
        if message.kind == protocol.METRICS:
            return self._reply(ask, self._metrics())
        raise ProtocolError(
            f"{ask.kind.decode()} on the request socket, want status, metrics, aggregate, aggregates, series or delete"
        )

    def _hand_on(self, ask: Ask, message: Message) -> None:
        """Give a request to the writer thread."""
        frames = protocol.pack(message.kind, message.header, message.body)
        if not self.control.send(routed.join(ask.route, frames)):
            raise StorageError("too many changes wait for the writer, ask again")

    def _plan(self, request: protocol.AggregateRequest) -> AggregatePlan:
        covered = self.node.view.cover(request.partitions)
        return self.store.plan(
            request.device_id, request.metric_name, request.tags, covered, request.start_ns, request.end_ns
        )

    def _outcomes(self, ask: Ask, requests: list[protocol.AggregateRequest]) -> list[protocol.AggregateOutcome]:
        """The answers to requests that came together; none to those that would keep the others waiting."""
        outcomes, rows = [], 0
        for request in requests:
            try:
                plan = self._plan(request)
                fits = rows + plan.rows_to_decode <= INLINE_ROWS
                rows += plan.rows_to_decode if fits else 0
                outcomes.append(protocol.AggregateOutcome(self._run(plan) if fits else None, None))
            except Exception as error:
                outcomes.append(protocol.AggregateOutcome(None, self._error(ask, error)))
        return outcomes

    def _aggregate(self, ask: Ask, request: protocol.AggregateRequest) -> list[bytes] | None:
        plan = self._plan(request)
        if plan.rows_to_decode <= INLINE_ROWS:
            return self._reply(ask, self._run(plan))
        self.counts.pooled += 1
        self._work.put((ask, plan))
        return None

    def _run(self, plan: AggregatePlan) -> protocol.AggregateReply:
        with self.store.watching_damage():
            return plan.run(self.store.pool)

    def _read(self, socket: bus.Socket) -> None:
        """A reader thread: runs plans, hands the frames to the server thread through its pair."""
        while (work := self._work.get()) is not None:
            ask, plan = work
            try:
                reply = self._reply(ask, self._run(plan))
            except Exception as error:
                reply = self._explain(ask, error)
            socket.send(routed.join(ask.route, reply))

    def _forward(self, socket: bus.Socket) -> None:
        while (frames := socket.receive()) is not None:
            self.router.reply(*routed.split(frames))

    def _series(self, request: protocol.SeriesRequest) -> protocol.SeriesReply:
        covered = self.node.view.cover(request.partitions)
        keys, more = self.store.series(request.after, request.limit, request.device_id, request.metric_name, covered)
        return protocol.SeriesReply(covered, keys, more)

    def _status(self) -> dict[str, Any]:
        ring = self.node.view.ring
        bridges = {
            bridge: {"age_s": age_s, "incarnation": seen.incarnation, **seen.beat.status}
            for bridge, (age_s, seen) in self.node.bridges_seen().items()
            if age_s < BRIDGE_SHOWN_S
        }
        return {
            "node": self.node.node_id,
            "cluster": self.node.cluster,
            "incarnation": self.node.incarnation,
            "uptime_s": clock.monotonic_s() - self.node.started_s,
            "epoch": ring.epoch,
            "ring_hash": ring.hash,
            "partitions": ring.partitions,
            "partitions_owned": int(self.node.view.owned.sum()),
            "bridges": bridges,
            "ignored": dict(self.node.ignored),
            **self.store.status(),
        }

    def _metrics(self) -> protocol.MetricsReply:
        own = protocol.ProcessMetrics(self.node.node_id, self.node.incarnation, 0.0, metrics.snapshot())
        bridges = [
            protocol.ProcessMetrics(bridge, seen.incarnation, age_s, seen.beat.metrics)
            for bridge, (age_s, seen) in self.node.bridges_seen().items()
            if age_s < BRIDGE_SHOWN_S
        ]
        return protocol.MetricsReply([own, *bridges])

    def _reply(self, ask: Ask, body: Any) -> list[bytes]:
        return protocol.pack(protocol.REPLY, self.node.header(ask.header), body)

    def _explain(self, ask: Ask, error: Exception) -> list[bytes]:
        """The error reply for a request that failed."""
        return protocol.pack(protocol.ERROR, self.node.header(ask.header), self._error(ask, error))

    def _error(self, ask: Ask, error: Exception) -> ErrorReply:
        """What to say of a request that failed; one bad request never ends the node."""
        self.counts.errors += 1
        if isinstance(error, ProtocolError):
            return ErrorReply(protocol.ERR_BAD_REQUEST, str(error))
        if isinstance(error, MinitrueError):
            logger.error("request failed", kind=ask.kind.decode(), reason=str(error))
        else:
            logger.exception("request failed", kind=ask.kind.decode())
        return ErrorReply(protocol.ERR_INTERNAL, f"{type(error).__name__}: {error}")
