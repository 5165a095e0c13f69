"""The scatter thread: sends what questions ask, takes the replies, follows the ring.

Owns one DEALER per node, the ring view and every question between `ask` and its end. One thread for all HTTP
threads, because under load their requests then share wake-ups and connections: measured with 16 connections, that
answers half as many requests again as a set of sockets per HTTP thread, and costs a single client a tenth.

A reply is taken once: by (re, re_incarnation) it belongs to an ask in flight of that very node, else it is counted
and ignored. An answer is never wrong for a lost reply, only late or incomplete: every ask has a deadline, and what
was asked over a connection that broke is asked again as soon as that is noticed.
"""

import itertools
import os
import secrets
import threading
from collections import Counter, deque
from typing import Any, Final

from common import bus, clock, log, protocol
from common.errors import MinitrueError, ProtocolError, RingError, RingStoreError
from common.protocol import Header, Message
from common.ring import Node, Ring
from common.ringstore import RingStore, RingView
from workers.query.gather import NEVER_S, Ask, Question
from workers.query.plan import Partitions, Plan

TICK_S: Final = 0.05  # how soon a broken connection and a passed deadline are noticed
IDLE_TICK_S: Final = 0.5  # the same while nothing is asked: only the ring and idle connections are looked at
RETRY_S: Final = 0.02  # between rounds that ask the same owners again
RECONNECT_GRACE_S: Final = 1.0  # a node that restarts is back by then; one that stays away fails requests at once
HANG_MARGIN_S: Final = 2.0  # beyond a question's deadline, before its HTTP thread takes this thread for dead

logger = log.get("query.scatter")


class ScatterError(MinitrueError):
    """The scatter thread did not end a question: a bug, or the process is ending."""


class Link:
    """The connection to one node. Belongs to the scatter thread."""

    def __init__(self, node: Node, socket: bus.Dealer) -> None:
        self.node = node.id
        self.endpoint = node.request_endpoint
        self.socket = socket
        self.asks: dict[int, Ask] = {}  # in flight, by sequence
        self.down_since_s: float | None = clock.monotonic_s()

    def watch(self, now_s: float) -> bool:
        """Whether the connection stands; notes since when it does not."""
        if self.socket.connected():
            self.down_since_s = None
            return True
        if self.down_since_s is None:
            self.down_since_s = now_s
        return False

    def grace_until_s(self) -> float:
        """Until when a request should wait for this connection to come back."""
        return NEVER_S if self.down_since_s is None else self.down_since_s + RECONNECT_GRACE_S


class Scatter:
    """See the module's text. `ask` is for any thread, everything else for the scatter thread.

    plan: of the ring in force, None before there is one; replaced whole. ring_fault: why there is none.
    counts: ignored frames and other events by name, written by the scatter thread, read by any.
    """

    def __init__(self, name: str, store: RingStore, poll_s: float) -> None:
        """Makes its ZeroMQ context here: call it in the process that uses it. name: our id on the bus."""
        self.name = name
        self.plan: Plan | None = None
        self.ring_fault = "no ring yet: make one with tools/ringctl init"
        self.counts: Counter[str] = Counter()
        self.ignored: Counter[str] = Counter()
        self.incarnation = secrets.randbits(63) | 1
        self._store = store
        self._poll_s = poll_s
        self._view: RingView | None = None
        self._next_load_s = NEVER_S
        self._bus = bus.Bus()
        self._poller = bus.Poller()
        self._wake = _Wake()
        self._poller.register(self._wake)
        self._inbox: deque[Question] = deque()  # filled by HTTP threads
        self._awake = False  # whether the thread will look at the inbox before it sleeps
        self._links: dict[str, Link] = {}
        self._by_socket: dict[bus.Socket, Link] = {}
        self._resting: list[Question] = []  # between rounds
        self._sequence = itertools.count(1)
        self._next_tick_s = 0.0

    # Any thread

    def ask(self, question: Question) -> None:
        """Have a question answered; returns when it has ended, complete or not. Raises ScatterError."""
        self._inbox.append(question)
        if not self._awake:
            self._wake.set()
        if not question.done.acquire(timeout=question.timeout_s + HANG_MARGIN_S):
            raise ScatterError(f"BUG: a question did not end within {question.timeout_s + HANG_MARGIN_S:g} s")

    def start(self) -> None:
        """Start the thread. The process ends when it fails: half a query worker answers nothing."""
        threading.Thread(target=self._guarded, name="scatter", daemon=True).start()

    # The thread

    def _guarded(self) -> None:
        try:
            while True:
                self.turn()
        except Exception:
            logger.exception("BUG: the scatter thread failed, the process ends")
            os._exit(1)

    def turn(self) -> None:
        """One turn of the loop: wait, take replies, begin questions, look at clocks."""
        for source in self._wait():
            if source is self._wake:
                self._wake.clear()
            else:
                self._drain(self._by_socket[source])
        now_s = clock.monotonic_s()
        while self._inbox:
            self._begin(self._inbox.popleft(), now_s)
        if self._resting:
            self._resume(now_s)
        if now_s >= self._next_tick_s:
            self._tick(now_s)

    def _wait(self) -> list[Any]:
        """The sources with something to do."""
        timeout_s = max(0.0, self._next_tick_s - clock.monotonic_s())
        if self._resting:
            timeout_s = min(timeout_s, RETRY_S)
        self._awake = False
        try:
            return self._poller.poll(0.0 if self._inbox else timeout_s)
        finally:
            self._awake = True

    # Questions

    def _begin(self, question: Question, now_s: float) -> None:
        question.deadline_s = now_s + question.timeout_s
        self._next_tick_s = min(self._next_tick_s, now_s + TICK_S)
        self._advance(question, now_s)

    def _resume(self, now_s: float) -> None:
        resting, self._resting = self._resting, []
        for question in resting:
            question.begin_again()
            self._advance(question, now_s)

    def _advance(self, question: Question, now_s: float) -> None:
        """Take a question that has no ask in flight one step further: next round, rest, or end."""
        while not question.in_flight:
            targets = self._targets(question)
            if not targets:
                return self._pause(question, now_s)
            expires_s = question.attempt_s(self.plan, now_s) if self.plan else now_s
            for node, partitions in targets.items():
                self._send(question, node, partitions, expires_s)
        return None

    def _targets(self, question: Question) -> dict[str, Partitions]:
        if self.plan is None or question.error or question.complete():
            return {}
        return question.targets(self.plan)

    def _pause(self, question: Question, now_s: float) -> None:
        """Nobody is left to ask: begin again in a moment, or end."""
        if not question.complete() and question.error is None and question.may_pass(now_s):
            self._resting.append(question)
        else:
            question.done.release()

    def _send(self, question: Question, node: str, partitions: Partitions, expires_s: float) -> None:
        plan, link = self.plan, self._links.get(node)
        if plan is None or link is None:
            return question.refuse(node, "has no connection yet", question.deadline_s)
        sequence = next(self._sequence)
        header = self._header(plan.ring, node, sequence)
        if link.socket.send(protocol.pack(question.kind, header, question.body(plan, partitions))):
            self.counts["sent"] += 1
            link.down_since_s = None
            link.asks[sequence] = Ask(sequence, node, partitions, question, expires_s)
            question.in_flight += 1
            return None
        return self._not_sent(question, link)

    def _not_sent(self, question: Question, link: Link) -> None:
        self.counts["not_sent"] += 1
        if link.watch(clock.monotonic_s()):
            return question.refuse(link.node, "takes no requests: its queue is full", NEVER_S)
        return question.refuse(link.node, f"not connected ({link.endpoint})", link.grace_until_s())

    def _header(self, ring: Ring, node: str, sequence: int) -> Header:
        return Header(
            protocol.VERSION,
            ring.cluster,
            node,
            self.name,
            self.incarnation,
            sequence,
            ring.epoch,
            ring.hash,
        )

    # Replies

    def _drain(self, link: Link) -> None:
        now_s = clock.monotonic_s()
        while (frames := link.socket.receive()) is not None:
            try:
                message = protocol.unpack(frames)
                ask = self._match(link, message)
            except ProtocolError as error:
                self._ignore("garbage", link, str(error))
                continue
            if ask is not None:
                self._take(link, ask, message)
                self._advance(ask.question, now_s)

    def _match(self, link: Link, message: Message) -> Ask | None:
        """The ask in flight that a message answers; anything else is counted and ignored."""
        header, plan = message.header, self.plan
        reason = protocol.mismatch(header, plan.ring.cluster if plan else "", self.name, self.incarnation)
        if reason is None and header.sender != link.node:
            reason = "sender"
        if reason is None and header.re_incarnation != self.incarnation:
            reason = "incarnation"
        if reason is None and header.re not in link.asks:
            reason = "stale"
        if reason is None and message.kind not in (protocol.REPLY, protocol.ERROR):
            reason = "garbage"
        if reason is not None:
            self._ignore(reason, link, f"{message.kind.decode()} of {header.sender!r} to {header.destination!r}")
            return None
        return link.asks[header.re]

    def _take(self, link: Link, ask: Ask, message: Message) -> None:
        """Hand a reply to its question. One that cannot be decoded counts as a refusal: no other will come."""
        self._forget(link, ask)
        try:
            if message.kind == protocol.ERROR:
                ask.question.reject(ask, protocol.decode_body(message.body, protocol.ErrorReply))
            else:
                ask.question.accept(ask, message.body)
        except ProtocolError as error:
            self._ignore("garbage", link, str(error))
            ask.question.refuse(link.node, f"garbled reply: {error}", NEVER_S)

    def _forget(self, link: Link, ask: Ask) -> None:
        del link.asks[ask.sequence]
        ask.question.in_flight -= 1

    def _ignore(self, reason: str, link: Link, detail: str) -> None:
        self.ignored[reason] += 1
        if logger.limited(f"ignored {reason}", 5.0):
            logger.warning("frames ignored", reason=reason, node=link.node, detail=detail)

    # Clocks

    def _tick(self, now_s: float) -> None:
        busy = False
        for link in list(self._links.values()):
            standing = link.watch(now_s)
            for ask in list(link.asks.values()):
                if not standing:
                    self.counts["lost"] += 1
                    self._give_up(link, ask, f"connection lost ({link.endpoint})", link.grace_until_s(), now_s)
                elif now_s >= ask.expires_s:
                    self.counts["expired"] += 1
                    reason = f"no answer within {ask.question.timeout_s:g} s"
                    self._give_up(link, ask, reason, NEVER_S, now_s)
            busy = busy or bool(link.asks)
        self._follow_ring(now_s)
        self._next_tick_s = now_s + (TICK_S if busy else IDLE_TICK_S)

    def _give_up(self, link: Link, ask: Ask, reason: str, until_s: float, now_s: float) -> None:
        self._forget(link, ask)
        ask.question.refuse(ask.node, reason, until_s)
        self._advance(ask.question, now_s)

    # The ring

    def _follow_ring(self, now_s: float) -> None:
        if self._view is None:
            self._load_first(now_s)
        elif (ring := self._view.poll()) is not None:
            self._adopt(ring, now_s)

    def _load_first(self, now_s: float) -> None:
        if now_s < self._next_load_s:
            return
        self._next_load_s = now_s + self._poll_s
        try:
            ring = self._store.load()
        except (RingError, RingStoreError) as error:
            self.ring_fault = str(error)
            if logger.limited("ring", 30.0):
                logger.error("no ring to begin with", detail=str(error))
            return
        if ring is not None:
            self._view = RingView(self._store, ring, self._poll_s)
            self._adopt(ring, now_s)

    def _adopt(self, ring: Ring, now_s: float) -> None:
        """Connect to the nodes of a ring that are new or have moved, leave those that are gone."""
        self.plan = Plan.of(ring)
        wanted = {node.id: node for node in ring.nodes}
        for link in list(self._links.values()):
            if link.node not in wanted or wanted[link.node].request_endpoint != link.endpoint:
                self._drop(link, now_s)
        for node in wanted.values():
            if node.id not in self._links:
                self._connect(node)
        logger.info("ring adopted", epoch=ring.epoch, nodes=len(ring.nodes))

    def _connect(self, node: Node) -> None:
        try:
            link = Link(node, self._bus.dealer(node.request_endpoint))
        except bus.BusError as error:
            logger.error("node cannot be reached", node=node.id, detail=str(error))
            return
        self._links[node.id] = link
        self._by_socket[link.socket] = link
        self._poller.register(link.socket)

    def _drop(self, link: Link, now_s: float) -> None:
        del self._links[link.node], self._by_socket[link.socket]
        self._poller.unregister(link.socket)
        link.socket.close()
        for ask in list(link.asks.values()):
            self._give_up(link, ask, "left its place in the ring", ask.question.deadline_s, now_s)


class _Wake:
    """A descriptor by which any thread wakes the scatter thread."""

    def __init__(self) -> None:
        self._descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def fileno(self) -> int:
        return self._descriptor

    def set(self) -> None:
        os.eventfd_write(self._descriptor, 1)

    def clear(self) -> None:
        os.eventfd_read(self._descriptor)
