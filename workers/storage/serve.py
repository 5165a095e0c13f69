"""The read side of a storage node: requests in, replies out.

Owns the ROUTER (which the porter had while the store was opened) and the pool of readers; runs in the server thread.
Short requests are answered there at once; one that has to decode much goes to the pool, so that it cannot keep the
short ones waiting; a fence is put by the writer. Never changes the store. A request that is not for this process is
counted and not answered: its caller has a deadline.

A request of a newer ring than the node's waits for the writer to take that over, for the answer could lack its deletes,
or be for partitions that have moved. Where the writer finds no such ring the answer is the error stale-epoch.
What was read while a damaged file was found may lack what that held, so it is not answered: behind.py counts the hits.
"""

import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np

from common import bus, clock, log, metrics, protocol
from common.errors import MinitrueError, ProtocolError
from common.protocol import ErrorReply, Header, Message
from workers.storage import questions, routed
from workers.storage.aggregate import AggregatePlan, LimitError
from workers.storage.behind import Behind
from workers.storage.node import Node, bitmap_of, partitions_of
from workers.storage.orders import Orders
from workers.storage.store import Store
from workers.storage.work import Cancel, CancelledError, Handler, RefusedError, Work, at_once

INLINE_ROWS = 65_536  # decoding so many rows takes well under a millisecond: not worth a change of thread
MAX_REPLY_BYTES = bus.MAX_MESSAGE_BYTES  # one that is longer would end the connection, with all that waits on it
ADOPT_WAIT_S = 1.0  # for a newer ring: a ring store on other machines takes some milliseconds to be asked
BRIDGE_SHOWN_S = 3600.0  # a bridge that has been silent for so long has gone, and nobody misses it

# Answered whatever the ring, and whatever is missing: by people's tools, and about the node itself.
_OF_THE_NODE: Final = frozenset(
    (
        protocol.STATUS, protocol.RING, protocol.METRICS, protocol.DEAD_LETTERS, protocol.JOBS, protocol.CANCEL_JOB,
    )
)  # fmt: skip

Name = tuple[str, int, int]  # of a request: sender, incarnation, sequence

_NEVER: Final = Cancel()  # of what is answered at once

logger = log.get("storage")


class Ask(NamedTuple):
    """A request on its way to an answer. hits: of what the node lacks, when it was let in."""

    route: list[bytes]
    header: Header
    kind: bytes
    hits: int = 0

    @property
    def name(self) -> Name:
        """What a cancel calls it."""
        return self.header.sender, self.header.incarnation, self.header.sequence


class Parked(NamedTuple):
    """A request that waits for a newer ring. since_s: monotonic."""

    ask: Ask
    message: Message
    since_s: float


@dataclass
class ServeCounts:
    """Written by the server thread, read by any."""

    requests: int = 0
    errors: int = 0
    pooled: int = 0
    cancelled: int = 0
    parked: int = 0


@dataclass
class Server:
    """The server thread's work. `run` returns when `stop` is set.

    orders: of the writer, which puts fences with `fence`. behind: what the node lacks. more: further kinds; shown: what
    others tell of themselves, for the status. Where there is none of them, as in tests, nothing is asked of them.
    """

    sockets: bus.Bus
    router: bus.Router
    node: Node
    store: Store
    read_threads: int
    orders: Orders = field(default_factory=Orders)
    fence: Callable[[protocol.FenceRequest], protocol.FenceReply] | None = None
    behind: Behind | None = None
    more: Mapping[bytes, Handler] = field(default_factory=dict)
    shown: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    counts: ServeCounts = field(default_factory=ServeCounts)
    _work: "queue.SimpleQueue[tuple[Ask, Work, Cancel] | None]" = field(default_factory=queue.SimpleQueue)
    _cancels: dict[Name, Cancel] = field(default_factory=dict)  # of what readers have to do; items go in any thread
    _parked: list[Parked] = field(default_factory=list)
    _tasks: Orders = field(default_factory=Orders)  # what other threads have for this one

    def __post_init__(self) -> None:
        self._table = self._handlers()
        self.node.looked = self._look_at_parked

    def run(self, stop: bus.Pollable) -> None:
        """Serve until `stop` becomes readable."""
        ends = [self.sockets.pair(f"reader{number}") for number in range(self.read_threads)]
        readers = [threading.Thread(target=self._read, args=(theirs,), daemon=True) for _, theirs in ends]
        for reader in readers:
            reader.start()
        poller = bus.Poller([self.router, stop, self._tasks, *(ours for ours, _ in ends)])
        while stop not in (ready := poller.poll(None)):
            for socket in ready:
                if socket is self.router:
                    self._drain_requests()
                elif socket is self._tasks:
                    self._tasks.run()
                else:
                    self._forward(socket)
        for cancel in list(self._cancels.values()):
            cancel.set()  # nobody will send what they would answer
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
        if message.kind == protocol.CANCEL:
            self._cancel(message.header)
            return
        self.counts.requests += 1
        self.node.told_epoch = max(self.node.told_epoch, message.header.epoch)
        ask = Ask(route, message.header, message.kind, self._hits())
        newer = message.header.epoch > self.node.view.ring.epoch
        if newer:
            self.orders.set()  # that the writer looks for it at once
        if newer and message.kind not in _OF_THE_NODE:
            self._park(ask, message)
        else:
            self._serve(ask, message)

    def _serve(self, ask: Ask, message: Message) -> None:
        try:
            reply = self._answer(ask, message)
        except Exception as error:
            reply = self._explain(ask, error)
        if reply is not None:
            self.router.reply(ask.route, reply)

    def _park(self, ask: Ask, message: Message) -> None:
        """Let a request wait until the writer has looked for the ring that it comes by."""
        self.counts.parked += 1
        self._parked.append(Parked(ask, message, clock.monotonic_s()))
        self.node.waiting = len(self._parked)
        self.orders.set()

    def _look_at_parked(self) -> None:
        """The writer has looked at the ring store. Called by it."""
        if self.node.waiting:
            self._tasks.put(self._release)

    def _release(self) -> None:
        """Answer the requests that have waited long enough, by the newer ring or that there is none."""
        parked, self._parked = self._parked, []
        for each in parked:
            if each.ask.header.epoch <= self.node.view.ring.epoch:
                self._serve(each.ask._replace(hits=self._hits()), each.message)
            elif self._has_looked_since(each.since_s):
                error = RefusedError(
                    protocol.ERR_STALE_EPOCH,
                    f"epoch {each.ask.header.epoch}, the ring here is still at {self.node.view.ring.epoch}",
                )
                self.router.reply(each.ask.route, self._explain(each.ask, error))
            else:
                self._parked.append(each)
        self.node.waiting = len(self._parked)

    def _has_looked_since(self, since_s: float) -> bool:
        """Whether it is known that the ring store has no newer ring, or it will not be known soon."""
        node = self.node
        known = node.confirmed_s >= since_s or bool(node.trouble) or node.not_adopted is not None
        return known or clock.monotonic_s() - since_s > ADOPT_WAIT_S

    def _hits(self) -> int:
        return self.behind.hits if self.behind is not None else 0

    def _mismatch(self, message: Message) -> str | None:
        return protocol.misaddressed(message, self.node.cluster, self.node.node_id, self.node.incarnation)

    def _handlers(self) -> dict[bytes, Handler]:
        return {
            protocol.AGGREGATES: at_once(protocol.AggregatesRequest, self._aggregates),
            protocol.CATALOG: at_once(Any, lambda _: protocol.CatalogReply(self.store.catalog_stamp)),
            protocol.SERIES: Handler(protocol.SeriesRequest, self._series),
            protocol.STATUS: at_once(Any, lambda _: self._status()),
            protocol.RING: at_once(Any, lambda _: protocol.RingReply(self.node.view.ring.dumps())),
            protocol.METRICS: at_once(Any, lambda _: self._metrics()),
            protocol.DEAD_LETTERS: at_once(Any, lambda _: self._dead_letters()),
            protocol.FENCE: Handler(protocol.FenceRequest, self._fence),
            protocol.ACCEPT_LOSS: at_once(protocol.AcceptLossRequest, self._accept_loss),
            **questions.handlers(
                self.store,
                lambda partitions: self.node.view.cover(partitions),
                Handler(protocol.AggregateRequest, self._aggregate),
            ),
            **self.more,
        }

    def _answer(self, ask: Ask, message: Message) -> list[bytes] | None:
        """The reply's frames, or None when a reader thread will answer."""
        handler = self._table.get(ask.kind)
        if handler is None:
            kinds = ", ".join(sorted(kind.decode() for kind in self._table))
            raise ProtocolError(f"{ask.kind.decode()} on the request socket, want one of {kinds}")
        work = handler.begin(protocol.decode_body(message.body, handler.request))
        if work.short:
            return self._reply(ask, work.run(_NEVER))
        if work.by_writer:
            self.orders.put(partial(self._hand_over, ask, work))
            return None
        self.counts.pooled += 1
        cancel = self._cancels[ask.name] = Cancel()
        self._work.put((ask, work, cancel))
        return None

    def _hand_over(self, ask: Ask, work: Work) -> None:
        """Do work, and have this thread send the answer. Called by the writer."""
        reply = self._work_on(ask, work, _NEVER)
        if reply is not None:
            self._tasks.put(partial(self._send, ask.route, reply))

    def _send(self, route: list[bytes], reply: list[bytes]) -> None:
        self.router.reply(route, reply)

    def _fence(self, request: protocol.FenceRequest) -> Work:
        fence = self.fence
        if fence is None:
            raise RefusedError(protocol.ERR_INTERNAL, "this node has no writer")
        return Work(lambda cancel: fence(request), by_writer=True)

    def _accept_loss(self, request: protocol.AcceptLossRequest) -> protocol.AcceptLossReply:
        wanted = np.flatnonzero(partitions_of(request.partitions, self.node.view.ring.partitions)).tolist()
        released = self.behind.clear(wanted) if self.behind is not None else []
        if released:
            logger.warning("loss accepted", partitions=len(released))
        count = self.node.view.ring.partitions
        return protocol.AcceptLossReply(protocol.bitmap(released, count), bitmap_of(self.node.view.behind))

    def _cancel(self, header: Header) -> None:
        """Nobody waits for a request any more: what waits of it is dropped, what runs stops at its next piece."""
        name = header.sender, header.re_incarnation, header.re
        self._parked = [each for each in self._parked if each.ask.name != name]
        cancel = self._cancels.pop(name, None)
        if cancel is not None:
            self.counts.cancelled += 1
            cancel.set()

    def _plan(self, request: protocol.AggregateRequest) -> AggregatePlan:
        covered = self.node.view.cover(request.partitions)
        return self.store.plan(
            request.device_id, request.metric_name, request.tags, covered, request.start_ns, request.end_ns
        )

    def _aggregates(self, asked: protocol.AggregatesRequest) -> protocol.AggregatesReply:
        """The answers to requests that came together; none to those that would keep the others waiting."""
        outcomes, rows = [], 0
        for request in asked.requests:
            try:
                plan = self._plan(request)
                fits = rows + plan.rows_to_decode <= INLINE_ROWS
                rows += plan.rows_to_decode if fits else 0
                outcomes.append(protocol.AggregateOutcome(self._run(plan, _NEVER) if fits else None, None))
            except Exception as error:
                outcomes.append(protocol.AggregateOutcome(None, self._error(protocol.AGGREGATES, error)))
        return protocol.AggregatesReply(outcomes)

    def _aggregate(self, request: protocol.AggregateRequest) -> Work:
        plan = self._plan(request)
        return Work(partial(self._run, plan), plan.rows_to_decode <= INLINE_ROWS)

    def _run(self, plan: AggregatePlan, cancel: Cancel) -> protocol.AggregateReply:
        with self.store.watching_damage():
            return plan.run(self.store.pool if cancel is _NEVER else self.store.pool.watching(cancel))

    def _read(self, socket: bus.Socket) -> None:
        """A reader thread: does work, hands the frames to the server thread through its pair."""
        while (queued := self._work.get()) is not None:
            ask, work, cancel = queued
            reply = self._work_on(ask, work, cancel)
            if reply is not None:
                socket.send(routed.join(ask.route, reply))

    def _work_on(self, ask: Ask, work: Work, cancel: Cancel) -> list[bytes] | None:
        """The reply's frames; None when nobody waits for them."""
        try:
            cancel.check()
            return self._reply(ask, work.run(cancel))
        except CancelledError:
            return None
        except Exception as error:
            return self._explain(ask, error)
        finally:
            if self._cancels.get(ask.name) is cancel:
                self._cancels.pop(ask.name, None)

    def _forward(self, socket: bus.Socket) -> None:
        while (frames := socket.receive()) is not None:
            self.router.reply(*routed.split(frames))

    def _series(self, request: protocol.SeriesRequest) -> Work:
        covered = self.node.view.cover(request.partitions)
        of_device = request.device_id is not None  # without one all keys may have to be looked at
        return Work(lambda cancel: self._list(request, covered), short=of_device)

    def _list(self, request: protocol.SeriesRequest, covered: bytes) -> protocol.SeriesReply:
        keys, more = self.store.series(request.after, request.limit, request.device_id, request.metric_name, covered)
        return protocol.SeriesReply(covered, keys, more)

    def _status(self) -> dict[str, Any]:
        view = self.node.view
        ring = view.ring
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
            "ring_store": self.node.trouble,
            "not_adopted": self.node.not_adopted,
            "partitions": ring.partitions,
            "partitions_owned": int(view.owned.sum()),
            "partitions_joining": int((view.written & ~view.owned).sum()),
            "partitions_fenced": int(view.fenced.sum()),
            "behind": self.behind.status() if self.behind is not None else None,
            "bridges": bridges,
            "ignored": dict(self.node.ignored),
            **{name: tell() for name, tell in self.shown.items()},
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

    def _dead_letters(self) -> protocol.DeadLettersReply:
        return protocol.DeadLettersReply(
            [
                protocol.BridgeLetters(bridge, age_s, seen.beat.dead_letters)
                for bridge, (age_s, seen) in self.node.bridges_seen().items()
                if age_s < BRIDGE_SHOWN_S and seen.beat.dead_letters is not None
            ]
        )

    def _reply(self, ask: Ask, body: Any) -> list[bytes]:
        if ask.hits != self._hits() and ask.kind not in _OF_THE_NODE:
            raise RefusedError(protocol.ERR_BEHIND, "damage was found while this was read: ask again, or another owner")
        frames = protocol.pack(protocol.REPLY, self.node.header(ask.header), body)
        if len(frames[-1]) > MAX_REPLY_BYTES:
            raise LimitError(
                f"what a node has for the answer takes {len(frames[-1])} bytes, want at most {MAX_REPLY_BYTES}: take "
                "fewer operations, a shorter range, a longer interval or fewer groups",
                "query.max_response_bytes", MAX_REPLY_BYTES, len(frames[-1]),
            )  # fmt: skip
        return frames

    def _explain(self, ask: Ask, error: Exception) -> list[bytes]:
        """The error reply for a request that failed."""
        return protocol.pack(protocol.ERROR, self.node.header(ask.header), self._error(ask.kind, error))

    def _error(self, kind: bytes, error: Exception) -> ErrorReply:
        """What to say of a request that failed; one bad request never ends the node."""
        self.counts.errors += 1
        if isinstance(error, ProtocolError):
            return ErrorReply(protocol.ERR_BAD_REQUEST, str(error))
        if isinstance(error, RefusedError):
            return ErrorReply(error.error, str(error))
        if isinstance(error, LimitError):
            return ErrorReply(protocol.ERR_LIMIT, str(error), error.setting, error.limit, error.value)
        if isinstance(error, MinitrueError):
            logger.error("request failed", kind=kind.decode(), reason=str(error))
        else:
            logger.exception("request failed", kind=kind.decode())
        return ErrorReply(protocol.ERR_INTERNAL, f"{type(error).__name__}: {error}")
