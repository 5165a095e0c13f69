"""One owner as the bridge sees it: what is on its way to it, whether it answers, and what may be sent to it now.

Owns the three states of an owner and the moves between them, each with its log line:

    up            batches are sent; what does not fit the window waits in memory
    catching-up   batches are sent; what does not fit goes to its spool, which is drained beside
    down          everything goes to its spool; one batch at a time is sent to see whether it is back

      up --- waited too long ---> catching-up          any --- silent, late or refusing ---> down
      up <--- spool is drained --- catching-up <--- probe was acked --- down

Never sends, splits or spools: that is delivery.py. Never looks at a clock: `now` is monotonic seconds.
Belongs to the loop's thread.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from common import log
from common.ring import Node
from workers.bridge.batch import Batch
from workers.bridge.spool import Spool

UP: Final = "up"
CATCHING_UP: Final = "catching-up"
DOWN: Final = "down"

MISSED_BEATS: Final = 3  # a node is down after so many
RETRY_MIN_S: Final = 0.2  # from going down to the first probe; doubles with each that fails, up to
RETRY_MAX_S: Final = 5.0

logger = log.get("bridge.delivery")


class Link(Protocol):
    """A way to one node; bus.Socket is one."""

    def send(self, frames: Sequence[bytes]) -> bool:
        """Hand frames over; False when they cannot be taken now."""

    def close(self) -> None:
        """No more frames."""


class Flight:
    """A batch on its way. queued_s: since when it waits to be sent. sent_s, incarnation: of the last time it was,
    and the process meant; sends: how often; probes: how often as a probe. drained: its points are durable in the
    node's spool already.
    """

    __slots__ = ("batch", "drained", "incarnation", "probes", "queued_s", "sends", "sent_s", "sequence")

    def __init__(self, sequence: int, batch: Batch, now: float, drained: bool = False) -> None:
        self.sequence = sequence
        self.batch = batch
        self.drained = drained
        self.queued_s = now
        self.probes = 0
        self.sends = 0
        self.sent_s = 0.0
        self.incarnation = 0


class Queue:
    """Batches for one node. waiting: to be sent, ascending by sequence. in_flight: sent and not acked, by sequence,
    in order of sending; flight_bytes: their bodies.
    """

    __slots__ = ("flight_bytes", "in_flight", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[Flight] = deque()
        self.in_flight: dict[int, Flight] = {}
        self.flight_bytes = 0

    def __len__(self) -> int:
        return len(self.waiting) + len(self.in_flight)

    def fits(self, flight: Flight, window_bytes: int) -> bool:
        """Whether a flight may be sent: the window has room, or nothing else is in it."""
        return not self.in_flight or self.flight_bytes + len(flight.batch.body) <= window_bytes

    def take_off(self, flight: Flight, incarnation: int, now: float) -> None:
        """One that waited was sent."""
        if self.waiting[0] is flight:
            self.waiting.popleft()
        else:
            self.waiting.remove(flight)
        self.in_flight[flight.sequence] = flight
        self.flight_bytes += len(flight.batch.body)
        flight.sends += 1
        flight.sent_s = now
        flight.incarnation = incarnation

    def recall(self, now: float) -> None:
        """Everything in the air waits again."""
        if not self.in_flight:
            return
        for flight in self.in_flight.values():
            flight.queued_s = now
        self.waiting = deque(sorted([*self.in_flight.values(), *self.waiting], key=_by_sequence))
        self.in_flight.clear()
        self.flight_bytes = 0

    def find(self, sequence: int) -> Flight | None:
        """The flight of that sequence if it was ever sent: its ack may come when it waits to be sent again."""
        flight = self.in_flight.get(sequence)
        if flight is None:
            at = bisect_left(self.waiting, sequence, key=_by_sequence)
            flight = self.waiting[at] if at < len(self.waiting) else None
        return flight if flight and flight.sequence == sequence and flight.sends else None

    def remove(self, flight: Flight) -> None:
        """A flight has arrived, or goes another way."""
        if self.in_flight.pop(flight.sequence, None) is None:
            self.waiting.remove(flight)
        else:
            self.flight_bytes -= len(flight.batch.body)

    def probe(self) -> Flight | None:
        """What to send to a node that may be back: nothing that failed as a probe before the others had their turn."""
        return min(self.waiting, key=_probes, default=None)

    def oldest_sent(self) -> Flight | None:
        """Of those in flight the one that was sent first."""
        return next(iter(self.in_flight.values()), None)

    def excuse(self, seconds: float) -> None:
        """So many seconds count against nobody."""
        for flight in (*self.in_flight.values(), *self.waiting):
            flight.sent_s += seconds
            flight.queued_s += seconds


@dataclass(eq=False)
class Lane:
    """What is known of one node, and what is on its way to it.

    live: batches of this process; drain: batches out of the node's spool. state, since_s: see the module's text;
    trouble: why it is not up, "" if it is. heard_s: when it last answered, or was first looked for. answered:
    sequence of the latest beat that was answered; unanswered: beats sent since it was heard. incarnation: the node's
    process as last heard, 0 before; epoch: of its ring as last heard, 0 before.
    shows_life: whether it was heard since it went down; probe: sequence of the last batch that was sent to see
    whether it is back. stuck: the link took no more batches.
    """

    node: Node
    link: Link
    spool: Spool
    since_s: float
    live: Queue = field(default_factory=Queue)
    drain: Queue = field(default_factory=Queue)
    state: str = UP
    trouble: str = ""
    incarnation: int = 0
    epoch: int = 0
    heard_s: float = 0.0
    answered: int = 0
    unanswered: int = 0
    beat_due_s: float = 0.0
    shows_life: bool = False
    probe: int = 0
    not_before_s: float = 0.0
    retry_s: float = RETRY_MIN_S
    stuck: bool = False

    def __post_init__(self) -> None:
        self.heard_s = self.since_s
        if not self.spool.is_empty:
            self.state = CATCHING_UP

    # What it shows.

    def hear(self, now: float) -> None:
        """It answered, whatever."""
        self.heard_s = now
        self.unanswered = 0
        self.shows_life = True

    def meet(self, incarnation: int, now: float) -> None:
        """Another process of the node answers: what the earlier one was sent is sent again."""
        if self.incarnation:
            logger.info("storage node restarted, resending", node=self.node.id, batches=len(self.live.in_flight))
        self.incarnation = incarnation
        self.not_before_s = 0.0
        self.recall(now)

    def move(self, node: Node, link: Link, now: float) -> None:
        """The node is at another endpoint now, where it has yet to be heard."""
        self.link.close()
        self.node, self.link = node, link
        self.incarnation, self.heard_s, self.unanswered, self.beat_due_s, self.shows_life = 0, now, 0, 0.0, False
        self.recall(now)

    def recall(self, now: float) -> None:
        """Everything in the air waits again."""
        self.live.recall(now)
        self.drain.recall(now)

    def find(self, sequence: int) -> Flight | None:
        """The flight of that sequence if it was ever sent and not settled."""
        return self.live.find(sequence) or self.drain.find(sequence)

    def remove(self, flight: Flight) -> None:
        """A flight has arrived, or goes another way."""
        (self.drain if flight.drained else self.live).remove(flight)

    def excuse(self, seconds: float, now: float) -> None:
        """So many seconds, in which this process stood still, count against nobody."""
        self.heard_s = min(now, self.heard_s + seconds)
        self.live.excuse(seconds)
        self.drain.excuse(seconds)

    def is_silent(self, now: float, beat_s: float) -> bool:
        """Whether it missed too many beats. Both counted and timed: turns of ours may be longer than a beat, and
        beats to one that is down are sent more often.
        """
        return self.unanswered >= MISSED_BEATS and now - self.heard_s > MISSED_BEATS * beat_s

    def overdue_s(self, now: float, timeout_s: float) -> float:
        """How long the oldest batch in flight has been waiting for its ack if that is too long, else 0."""
        oldest = [flight for queue in (self.live, self.drain) if (flight := queue.oldest_sent())]
        waited_s = max((now - flight.sent_s for flight in oldest), default=0.0)
        return waited_s if waited_s > timeout_s else 0.0

    def waited_s(self, now: float) -> float:
        """How long the oldest live batch has been waiting to be sent."""
        return now - self.live.waiting[0].queued_s if self.live.waiting else 0.0

    def is_in_flight(self, flight: Flight) -> bool:
        """Whether a flight is in the air now."""
        return flight.sequence in self.live.in_flight or flight.sequence in self.drain.in_flight

    def status(self, now: float) -> dict[str, Any]:
        """The lane for people, in plain msgpack types."""
        return {
            "up": self.state != DOWN and bool(self.incarnation),
            "state": self.state,
            "since_s_ago": round(now - self.since_s, 3),
            "trouble": self.trouble,
            "heard_s_ago": round(now - self.heard_s, 3) if self.incarnation else None,
            "waiting_batches": len(self.live.waiting),
            "in_flight_batches": len(self.live.in_flight),
            "in_flight_bytes": self.live.flight_bytes,
            "draining_batches": len(self.drain),
        }

    # Moves between the states.

    def go_down(self, now: float, trouble: str) -> None:
        """From any state: nothing live is sent any more. Of one that is down: its probe failed."""
        self.recall(now)
        self.trouble = trouble
        if now >= self.not_before_s:  # of one failure every batch in flight tells
            self.not_before_s = now + self.retry_s
            self.retry_s = min(RETRY_MAX_S, self.retry_s * 2)
        if self.state == DOWN:
            return
        self._enter(DOWN, now)
        self.shows_life = False
        self.probe = 0
        self.beat_due_s = now
        logger.warning("storage node is down, its points go to the spool", node=self.node.id, trouble=trouble)

    def come_back(self, now: float) -> None:
        """From down: it stores again, or has nothing to store and answers."""
        assert self.state == DOWN, f"BUG: {self.node.id} comes back from {self.state}"
        self._enter(CATCHING_UP, now)
        logger.info("storage node is back", node=self.node.id, spool_bytes=self.spool.bytes)

    def fall_behind(self, now: float) -> None:
        """From up: it is slower than its points come."""
        assert self.state == UP, f"BUG: {self.node.id} falls behind from {self.state}"
        self.trouble = f"slow: batches waited {self.waited_s(now):.1f} s"
        self._enter(CATCHING_UP, now)
        logger.warning("storage node is slow, its points go to the spool too", node=self.node.id)

    def catch_up(self, now: float) -> None:
        """From catching-up: its spool is empty."""
        assert self.state == CATCHING_UP, f"BUG: {self.node.id} catches up from {self.state}"
        self._enter(UP, now)
        self.trouble = ""
        logger.info("storage node is up, its spool is empty", node=self.node.id)

    def _enter(self, state: str, now: float) -> None:
        self.state = state
        self.since_s = now

    def may_probe(self, now: float) -> bool:
        """Whether one that is down may be sent a batch."""
        in_flight = self.live.in_flight or self.drain.in_flight
        return bool(self.shows_life and self.incarnation and now >= self.not_before_s and not in_flight)

    def stored(self, flight: Flight, now: float) -> None:
        """A flight was acked."""
        self.retry_s = RETRY_MIN_S
        self.remove(flight)
        if self.state == DOWN and flight.sequence == self.probe:
            self.come_back(now)


def _by_sequence(flight: Flight) -> int:
    return flight.sequence


def _probes(flight: Flight) -> int:
    return flight.probes
