"""The scatter: sends what questions ask, takes the replies, follows the ring.

Owns one DEALER per node, the ring view and every question between `ask` and its end. One set of sockets for all HTTP
threads, because under load their requests then share wake-ups and connections: measured with 16 connections, that
answers half as many requests again as a set of sockets per HTTP thread.

Whoever holds `_loop` is "the scatter thread", one thread at a time: it alone touches the sockets and what they carry.
A thread that asks while nobody does drives the loop itself until its question has ended, which spares it two changes
of thread; the others wait. When it leaves something in flight, and for the clocks, a thread of the scatter's own takes
over. Nothing is left lying: a question is in the inbox before its thread tries for the loop, and whoever gives the
loop up looks into the inbox afterwards.

A reply is taken once: by (re, re_incarnation) it belongs to an ask in flight of that very node, else it is counted
and ignored. An answer is never wrong for a lost reply, only late or incomplete: every ask has a deadline, and what
was asked over a connection that broke is asked again as soon as that is noticed.
"""

import dataclasses
import itertools
import os
import secrets
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from common import bus, clock, log, protocol
from common.errors import MinitrueError, ProtocolError, RingError, RingStoreError
from common.protocol import AggregateReply, ErrorReply, Header, Message
from common.ring import Node, Ring
from common.ringstore import RingStore, RingView
from common.wake import Wake
from workers.query.behind import Behind, Reason
from workers.query.gather import NEVER_S, Ask, Glance, Question
from workers.query.known import Known
from workers.query.plan import Partitions, Plan

TICK_S: Final = 0.05  # how soon a broken connection and a passed deadline are noticed
IDLE_TICK_S: Final = 0.5  # the same while nothing is asked: only the ring and idle connections are looked at
RETRY_S: Final = 0.02  # between rounds that ask the same owners again
RECONNECT_GRACE_S: Final = 1.0  # a node that restarts is back by then; one that stays away fails requests at once
ACTIVE_S: Final = 1.0  # after a question others are likely
HANG_MARGIN_S: Final = 2.0  # beyond a question's deadline, before its HTTP thread takes this thread for dead

HOLD_S: Final = 0.002  # while a node has something to answer, further asks gather for so long: fewer messages
BUNDLE_ASKS: Final = 64  # aggregate requests in one message: more would keep the first one waiting

Outcome = bytes | AggregateReply | ErrorReply | None  # body, decoded reply, error, or "ask it alone"

logger = log.get("query.scatter")


class ScatterError(MinitrueError):
    """The scatter thread did not end a question: a bug, or the process is ending."""


class Link:
    """The connection to one node. Belongs to the scatter thread."""

    def __init__(self, node: Node, socket: bus.Dealer) -> None:
        self.node = node.id
        self.endpoint = node.request_endpoint
        self.socket = socket
        self.outbox: list[Ask] = []  # to be sent at the end of this turn
        self.in_flight: dict[int, list[Ask]] = {}  # by sequence of the message that carries them
        self.hold_until_s = NEVER_S  # more waits in the outbox until then, or until a reply is here
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
    """See the module's text. `ask`, `hurry` and `store` are for any thread, everything else for the scatter thread.

    store: the ring store, constant.
    plan: of the ring in force, None before there is one; replaced whole. ring_fault: why there is none.
    ring_trouble: why the ring store cannot be followed just now, "" while it can; the ring in force stays meanwhile.
    counts: ignored frames and other events by name, written by the scatter thread, read by any.
    """

    def __init__(self, name: str, store: RingStore, poll_s: float, key: bus.Key | None = None) -> None:
        """Makes its ZeroMQ context here: call it in the process that uses it. name: our id on the bus."""
        self.name = name
        self.plan: Plan | None = None
        self.ring_fault = "no ring yet: make one with tools/ringctl init"
        self.ring_trouble = ""
        self.counts: Counter[str] = Counter()
        self.ignored: Counter[str] = Counter()
        self.incarnation = secrets.randbits(63) | 1
        self.store = store
        self._poll_s = poll_s
        self._view: RingView | None = None
        self._behind = Behind(store)
        self._next_load_s = NEVER_S
        self.bus = self._bus = bus.Bus(key)  # others may open sockets of their own on it
        self._poller = bus.Poller()
        self._wake = Wake()
        self._poller.register(self._wake)
        self._inbox: deque[Question] = deque()  # filled by HTTP threads
        self._hurried = False  # somebody knows of a newer ring
        self._loop = threading.Lock()
        self._closed = False
        self._left = threading.Event()  # something is left for the scatter's own thread
        self._awake = False  # whether the thread will look at the inbox before it sleeps
        self._links: dict[str, Link] = {}
        self._by_socket: dict[bus.Socket, Link] = {}
        self._to_flush: list[Link] = []  # links with something in their outbox, also those held
        self._resting: list[Question] = []  # between rounds
        self._sequence = itertools.count(1)
        self._next_tick_s = 0.0
        self._known = Known()
        self._glance = Glance([], ACTIVE_S)
        self._owners: list[str] = []
        self._asked_s = NEVER_S  # when something was asked last

    # Any thread

    @property
    def handshakes_failed(self) -> int:
        """Connections to nodes that failed for the key of the bus."""
        return self._bus.handshakes_failed

    def ask(self, question: Question) -> None:
        """Have a question answered; returns when it has ended, complete or not. Raises ScatterError."""
        self._inbox.append(question)
        if self._drive(question):
            return
        if not self._awake:
            self._wake.set()
        if not question.done.acquire(timeout=question.timeout_s + HANG_MARGIN_S):
            raise ScatterError(f"BUG: a question did not end within {question.timeout_s + HANG_MARGIN_S:g} s")

    def hurry(self) -> None:
        """Look at the ring store soon: somebody knows of a newer ring."""
        self._hurried = True
        self._left.set()
        self._wake.set()

    def start(self) -> None:
        """Start the scatter's own thread."""
        self._own = threading.Thread(target=self._mind, name="scatter", daemon=True)
        self._own.start()

    def close(self) -> None:
        """End that thread and close the sockets, while nobody asks; for tests: a worker's scatter ends with it."""
        self._closed = True
        self._left.set()
        self._wake.set()
        self._own.join()
        self._bus.close()

    def _drive(self, question: Question | None) -> bool:
        """Run the loop until a question has ended (None: until nothing is left to do), unless somebody else does.

        The process ends when the loop fails: half a query worker answers nothing.
        """
        if not self._loop.acquire(blocking=False):
            return False
        try:
            while question.done.locked() if question is not None else self._is_busy() and not self._closed:
                self.turn()
        except Exception:
            logger.exception("BUG: the scatter failed, the process ends")
            os._exit(1)
        finally:
            self._loop.release()
        if self._is_busy():
            self._left.set()
        return True

    def _is_busy(self) -> bool:
        """Whether the loop has something to do, or to wait for."""
        if self._inbox or self._resting or self._to_flush or self._hurried:
            return True
        due = clock.monotonic_s() >= self._next_tick_s
        return due or any(link.in_flight for link in list(self._links.values()))

    def _mind(self) -> None:
        """The scatter's own thread."""
        while not self._closed:
            self._left.wait(max(0.0, self._next_tick_s - clock.monotonic_s()))
            self._left.clear()
            if not self._drive(None):
                self._left.wait(TICK_S)  # whoever drives looks at the clocks, too

    # The thread that holds the loop

    def turn(self) -> None:
        """One turn of the loop: wait, take replies, begin questions, look at clocks."""
        for source in self._wait():
            if source is self._wake:
                self._wake.clear()
            else:
                self._drain(self._by_socket[source])
        now_s = clock.monotonic_s()
        if self._hurried and self._view is not None:
            self._hurried = False
            self._view.hurry()
            self._follow_ring(now_s)
        if self._inbox:
            self._follow_marks(now_s)  # first: when one has gone, what is known of series is doubted
        if self._inbox and self.plan is not None:
            self._asked_s = now_s
            self.plan.known.look(self._owners, now_s)
        while self._inbox:
            self._begin(self._inbox.popleft(), now_s)
        if self._resting:
            self._resume(now_s)
        if now_s >= self._next_tick_s:
            self._tick(now_s)
        self._flush_all(now_s)

    def _wait(self) -> list[Any]:
        """The sources with something to do."""
        timeout_s = max(0.0, self._next_tick_s - clock.monotonic_s())
        if self._to_flush:
            timeout_s = min(timeout_s, HOLD_S)
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
        question.marks_s_ago = self._behind.unread_s(now_s)
        self._next_tick_s = min(self._next_tick_s, now_s + TICK_S)
        self._advance(question, now_s)

    def _resume(self, now_s: float) -> None:
        due = [question for question in self._resting if now_s >= question.rests_until_s]
        self._resting = [question for question in self._resting if now_s < question.rests_until_s]
        for question in due:
            question.begin_again()
            self._advance(question, now_s)

    def _advance(self, question: Question, now_s: float) -> None:
        """Take a question that has no ask in flight one step further: next round, rest, or end."""
        while not question.in_flight:
            targets = self._targets(question)
            if not targets:
                return self._pause(question, now_s)
            wait_s = question.attempt_s(now_s)
            for node, partitions in targets.items():
                self._queue(Ask(node, partitions, question, wait_s, now_s + wait_s))
        return None

    def _targets(self, question: Question) -> Mapping[str, Partitions]:
        if self.plan is None or question.error or question.complete():
            return {}
        if question.plan is not None:  # a later round: what was fresh then need not be now
            self._known.look(self._owners, clock.monotonic_s())
        return question.targets(self.plan)

    def _pause(self, question: Question, now_s: float) -> None:
        """Nobody is left to ask: begin again in a moment, or end."""
        if not question.complete() and question.error is None and question.may_pass(now_s):
            question.rest(now_s)
            self._resting.append(question)
        else:
            question.done.release()

    def _queue(self, ask: Ask) -> None:
        link = self._links.get(ask.node)
        if link is None:
            return ask.question.refuse(ask.node, "has no connection yet", ask.question.deadline_s)
        if not link.outbox:
            self._to_flush.append(link)
        link.outbox.append(ask)
        ask.question.in_flight += 1
        return None

    def _flush_all(self, now_s: float) -> None:
        """Send what waits, but for links that carry something and were given it just now: those are held."""
        held: list[Link] = []
        while self._to_flush:
            link = self._to_flush.pop()
            if link.in_flight and now_s < link.hold_until_s:
                held.append(link)
            else:
                self._flush(link, now_s)
        self._to_flush = held

    def _flush(self, link: Link, now_s: float) -> None:
        """Send what waits for a node, aggregate requests together: that is what makes many clients cheap."""
        asks, link.outbox = link.outbox, []
        together: dict[float, list[Ask]] = {}  # by how long they wait: those that travel together expire together
        for ask in asks:
            if ask.question.kind != protocol.AGGREGATE or ask.alone:
                self._post(link, [ask], now_s)
            else:
                together.setdefault(ask.wait_s, []).append(ask)
        for each in together.values():
            for begin in range(0, len(each), BUNDLE_ASKS):
                self._post(link, each[begin : begin + BUNDLE_ASKS], now_s)

    def _post(self, link: Link, asks: list[Ask], now_s: float) -> None:
        plan = self.plan
        if plan is None:
            raise ScatterError("BUG: asked without a ring")
        bodies = [ask.question.body(plan, ask) for ask in asks]
        kind, body = asks[0].question.kind, bodies[0]
        if len(asks) > 1:
            kind, body = protocol.AGGREGATES, protocol.AggregatesRequest(bodies)
        sequence = next(self._sequence)
        if link.socket.send(protocol.pack(kind, self._header(plan.ring, link.node, sequence), body)):
            self.counts["messages"] += 1
            self.counts["sent"] += len(asks)
            link.in_flight[sequence] = asks
            link.hold_until_s = now_s + HOLD_S
        else:
            self._not_sent(link, asks, now_s)

    def _not_sent(self, link: Link, asks: list[Ask], now_s: float) -> None:
        self.counts["not_sent"] += len(asks)
        reason, until_s = "takes no requests: its queue is full", NEVER_S
        if not link.watch(now_s):
            why = f": {bus.HANDSHAKE_FAILED}" if link.socket.handshakes.failing else ""
            reason, until_s = f"not connected ({link.endpoint}){why}", link.grace_until_s()
        self._give_up(asks, reason, until_s, now_s)

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
            except ProtocolError as error:
                self._ignore("garbage", link, str(error))
                continue
            if self._is_answer(link, message):
                self._take(link, link.in_flight.pop(message.header.re), message, now_s)

    def _is_answer(self, link: Link, message: Message) -> bool:
        """Whether a message answers what is in flight to this node; anything else is counted and ignored."""
        header, plan = message.header, self.plan
        reason = protocol.mismatch(header, plan.ring.cluster if plan else "", self.name, self.incarnation)
        if reason is None and header.sender != link.node:
            reason = "sender"
        if reason is None and header.re_incarnation != self.incarnation:
            reason = "incarnation"
        if reason is None and header.re not in link.in_flight:
            reason = "stale"
        if reason is None and message.kind not in (protocol.REPLY, protocol.ERROR):
            reason = "garbage"
        if reason is not None:
            self._ignore(reason, link, f"{message.kind.decode()} of {header.sender!r} to {header.destination!r}")
        return reason is None

    def _take(self, link: Link, asks: list[Ask], message: Message, now_s: float) -> None:
        """Hand a reply to its questions. One that cannot be decoded counts as a refusal: no other will come."""
        for ask in asks:
            ask.question.in_flight -= 1
        if message.header.epoch > self._known.epoch:
            self._known.told(message.header.epoch)
            self._hurried = True
        try:
            for ask, outcome in zip(asks, _outcomes(asks, message), strict=True):
                self._take_one(link, ask, outcome)
                self._hurried = self._hurried or self._may_be_newer(link.node, ask.question, now_s)
        except ProtocolError as error:
            self._refuse_garbled(link, asks, error)
        for ask in asks:
            self._advance(ask.question, now_s)

    @staticmethod
    def _may_be_newer(node: str, question: Question, now_s: float) -> bool:
        """Whether a newer ring may cure what a node said. That it opens its store has nothing to do with the ring."""
        trouble = question.trouble.get(node)
        return trouble is not None and trouble.code != protocol.ERR_OPENING and question.may_pass(now_s)

    def _take_one(self, link: Link, ask: Ask, outcome: Outcome) -> None:
        try:
            if isinstance(outcome, ErrorReply):
                ask.question.reject(ask, outcome)
            elif isinstance(outcome, bytes):
                ask.question.accept(ask, outcome)
            elif outcome is not None:
                ask.question.take(ask, outcome)
            else:
                ask.alone = True
                self._queue(ask)
        except ProtocolError as error:
            self._refuse_garbled(link, [ask], error)

    def _refuse_garbled(self, link: Link, asks: list[Ask], error: ProtocolError) -> None:
        self._ignore("garbage", link, str(error))
        for ask in asks:
            ask.question.refuse(link.node, f"garbled reply: {error}", NEVER_S)

    def _ignore(self, reason: str, link: Link, detail: str) -> None:
        self.ignored[reason] += 1
        if logger.limited(f"ignored {reason}", 5.0):
            logger.warning("frames ignored", reason=reason, node=link.node, detail=detail)

    # Clocks

    def _tick(self, now_s: float) -> None:
        busy = False
        for link in list(self._links.values()):
            standing = link.watch(now_s)
            for sequence, asks in list(link.in_flight.items()):
                if not standing:
                    del link.in_flight[sequence]
                    self.counts["lost"] += len(asks)
                    self._give_up(asks, f"connection lost ({link.endpoint})", link.grace_until_s(), now_s)
                else:
                    self._expire(link, sequence, asks, now_s)
            busy = busy or bool(link.in_flight)
        self._follow_ring(now_s)
        self._follow_marks(now_s)
        self._follow_catalogs(now_s)
        self._next_tick_s = now_s + (TICK_S if busy else IDLE_TICK_S)

    def _expire(self, link: Link, sequence: int, asks: list[Ask], now_s: float) -> None:
        """Give up asks whose time is over. Those that travel together expire together, the first one's time counts."""
        if now_s < min(ask.expires_s for ask in asks):
            return
        del link.in_flight[sequence]
        self.counts["expired"] += len(asks)
        self._cancel(link, sequence)
        self._leave(asks, now_s, lambda ask: ask.question.expire(ask.node, asks[0].wait_s))

    def _cancel(self, link: Link, sequence: int) -> None:
        """Tell a node that nobody waits for an answer any more. Not sent for a lack of room: it costs the node time."""
        plan = self.plan
        if plan is None:
            raise ScatterError("BUG: asked without a ring")
        header = self._header(plan.ring, link.node, next(self._sequence))
        header = msgspec.structs.replace(header, re=sequence, re_incarnation=self.incarnation)
        if link.socket.send(protocol.pack(protocol.CANCEL, header, b"")):
            self.counts["cancelled"] += 1

    def _give_up(self, asks: list[Ask], reason: str, until_s: float, now_s: float) -> None:
        self._leave(asks, now_s, lambda ask: ask.question.refuse(ask.node, reason, until_s))

    def _leave(self, asks: list[Ask], now_s: float, note: Callable[[Ask], None]) -> None:
        for ask in asks:
            ask.question.in_flight -= 1
            note(ask)
            self._hurried = True  # the node may have left its place
        for ask in asks:
            self._advance(ask.question, now_s)

    # The ring

    def _follow_ring(self, now_s: float) -> None:
        if self._view is None:
            self._load_first(now_s)
        elif (ring := self._view.poll()) is not None:
            self._adopt(ring, now_s)
        if self._view is not None:
            self.ring_trouble = self._view.trouble

    def _follow_marks(self, now_s: float) -> None:
        self._behind.look(now_s)
        marked = self._marked()
        if self.plan is not None and self.plan.behind != marked:
            if self.plan.behind.keys() - marked.keys():
                self._known.doubt(now_s)
            self.plan = dataclasses.replace(self.plan, behind=marked)

    def _marked(self) -> Mapping[str, Reason]:
        """The nodes that are behind and why; of one that is not connected either, that too."""
        found: dict[str, Reason] = {}
        for node, (text, until_s) in self._behind.nodes.items():
            link = self._links.get(node)
            if link is not None and link.down_since_s is not None:
                text = f"not connected ({link.endpoint}), and {text}"
            found[node] = text, until_s
        return found

    def _follow_catalogs(self, now_s: float) -> None:
        """While there are questions, ask those nodes for new series that were not asked anything else."""
        if now_s - self._asked_s > ACTIVE_S:
            return
        stale = self._known.stale(self._owners, now_s)
        if stale and not self._glance.in_flight:
            self._glance = Glance(stale, ACTIVE_S)
            self._begin(self._glance, now_s)

    def _load_first(self, now_s: float) -> None:
        if now_s < self._next_load_s:
            return
        self._next_load_s = now_s + self._poll_s
        try:
            ring = self.store.load()
        except (RingError, RingStoreError) as error:
            self.ring_fault = str(error)
            if logger.limited("ring", 30.0):
                logger.error("no ring to begin with", detail=str(error))
            return
        if ring is not None:
            self._view = RingView(self.store, ring, self._poll_s)
            self._adopt(ring, now_s)

    def _adopt(self, ring: Ring, now_s: float) -> None:
        """Connect to the nodes of a ring that are new or have moved, leave those that are gone."""
        self._known.told(ring.epoch)
        self.plan = dataclasses.replace(Plan.of(ring, self._known), behind=self._marked())
        self._owners = [node.id for node in ring.nodes]
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
        for asks in [*link.in_flight.values(), link.outbox]:
            for ask in asks:
                self._give_up([ask], "left its place in the ring", ask.question.deadline_s, now_s)
        link.outbox = []


def _outcomes(asks: list[Ask], message: Message) -> Sequence[Outcome]:
    """What a message says of each ask that it answers."""
    if message.kind == protocol.ERROR:
        return [protocol.decode_body(message.body, ErrorReply)] * len(asks)
    if len(asks) == 1:
        return [message.body]
    outcomes = protocol.decode_body(message.body, protocol.AggregatesReply).outcomes
    if len(outcomes) != len(asks):
        raise ProtocolError(f"AggregatesReply has {len(outcomes)} outcomes, want {len(asks)}")
    return [outcome.error or outcome.reply for outcome in outcomes]
