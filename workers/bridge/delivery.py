"""Points on their way to their owners: open batches, windows, acks, resends, ring changes.

Owns a Lane for each node of the ring: its open batch, batches that wait, batches in flight, and what is known of
the node's process. Batches are split by one ring and say so; a node that disagrees refuses the batch whole, and it
is split again by a newer ring, its parts keeping `born`. A point is stored when every owner of its partition has
acked it. Nothing is ever dropped: a batch leaves only by an ack, or into the dead letter: row by row where its
node refused rows, whole where its node cannot decode it.

While an owner is down its points stay in memory and their messages unacknowledged; the others go on. `memory_bytes`
tells the worker when to stop reading.

Pure but for the links: time comes in as an argument (monotonic seconds), frames go out through `Link.send`.
Belongs to the loop's thread.
"""

from bisect import insort
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from common import config, log, protocol
from common.errors import ProtocolError
from common.points import PointBatch
from common.protocol import Ack, Header
from common.ring import Node, Ring
from common.series import partition_of
from workers.bridge.batch import Batch, Message, OpenBatch, split
from workers.bridge.payload import Point

MISSED_BEATS: Final = 3  # a node is down after so many
PROBE_S: Final = 0.2  # between beats to a node that has not answered: how late its return is noticed
RETRY_MIN_S: Final = 0.2  # before a refused batch is sent again; doubles up to
RETRY_MAX_S: Final = 5.0
RESPLIT_S: Final = 1.0  # before a batch that its node disowns is tried again without a newer ring
RESEND_BURST: Final = 4  # overdue batches sent again at a time: a slow node must not be buried under copies

COUNTED: Final = {
    "batches": "Batches sent for the first time.",
    "acks": "Batches stored.",
    "rows_stored": "Points stored, once for each owner.",
    "resends": "Batches sent again, for whatever reason.",
    "timeouts": "Batches whose ack was overdue.",
    "refusals": "Batches refused whole by a node.",
    "splits": "Batches split again by a newer ring.",
    "duplicate_acks": "Acks of batches that were settled already.",
}

logger = log.get("bridge.delivery")


class Link(Protocol):
    """A way to one node; bus.Socket is one."""

    def send(self, frames: Sequence[bytes]) -> bool:
        """Hand frames over; False when they cannot be taken now."""

    def close(self) -> None:
        """No more frames."""


# (batch, [(row, reason)]): keep these rows in the dead letter, hold the batch's release for each.
RefuseRows = Callable[[Batch, Sequence[tuple[int, str]]], None]

# (batch, reason): keep its body in the dead letter as it is, hold its release for that.
RefuseBatch = Callable[[Batch, str], None]


class Flight:
    """A batch that was sent. sent_s, incarnation: of the last time, and the process meant; sends: how often."""

    __slots__ = ("batch", "incarnation", "sends", "sent_s", "sequence")

    def __init__(self, sequence: int, batch: Batch) -> None:
        self.sequence = sequence
        self.batch = batch
        self.sends = 0
        self.sent_s = 0.0
        self.incarnation = 0


@dataclass
class Lane:
    """What is on its way to one node.

    incarnation: the node's process as last heard, 0 before. heard_s: when it last answered. answered: sequence of
    the latest beat that was answered. waiting: to be sent, in order of sequence; in_flight: sent, by sequence;
    flight_bytes: their bodies. not_before_s: no sends until then; trouble: why. stuck: the link took no more batches.
    """

    node: Node
    link: Link
    open: OpenBatch
    waiting: deque[Flight] = field(default_factory=deque)
    in_flight: dict[int, Flight] = field(default_factory=dict)
    flight_bytes: int = 0
    incarnation: int = 0
    heard_s: float = float("-inf")
    answered: int = 0
    beat_due_s: float = 0.0
    not_before_s: float = 0.0
    retry_s: float = RETRY_MIN_S
    trouble: str = ""
    stuck: bool = False
    said_down: bool = False

    def is_up(self, now: float, beat_s: float) -> bool:
        """Whether the node answered one of its last beats."""
        return now - self.heard_s <= MISSED_BEATS * beat_s

    def take_off(self, flight: Flight, now: float) -> None:
        """Count a flight as sent now."""
        if flight.sequence not in self.in_flight:
            self.in_flight[flight.sequence] = flight
            self.flight_bytes += len(flight.batch.body)
        flight.sends += 1
        flight.sent_s = now
        flight.incarnation = self.incarnation

    def land(self, sequence: int) -> Flight:
        """Take a flight out of the air."""
        flight = self.in_flight.pop(sequence)
        self.flight_bytes -= len(flight.batch.body)
        return flight

    def put_back(self, sequence: int) -> None:
        """A flight has to be sent again."""
        insort(self.waiting, self.land(sequence), key=_by_sequence)

    def recall(self) -> None:
        """Everything in the air has to be sent again."""
        landed = [self.land(sequence) for sequence in list(self.in_flight)]
        self.waiting = deque(sorted([*landed, *self.waiting], key=_by_sequence))

    def back_off(self, now: float, trouble: str) -> None:
        """Send nothing for a while, longer after each failure. Of a node's one failure every batch of it tells."""
        self.trouble = trouble
        if now < self.not_before_s:
            return
        self.not_before_s = now + self.retry_s
        self.retry_s = min(RETRY_MAX_S, self.retry_s * 2)


class Delivery:
    """The state machine. counts: events by name (COUNTED). mismatches: answers ignored, by reason."""

    def __init__(
        self,
        settings: config.Settings,
        incarnation: int,
        ring: Ring,
        connect: Callable[[str], Link],
        refuse_rows: RefuseRows,
        refuse_batch: RefuseBatch,
        on_stored: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        """incarnation: this process's random id. connect: opens a link to an ingest endpoint. on_stored: seconds
        from a batch's first point to its ack.
        """
        self.counts: Counter[str] = Counter()
        self.mismatches: Counter[str] = Counter()
        self.reply_to = ""
        self._me = settings.bridge.id
        self._incarnation = incarnation
        self._bridge = settings.bridge
        self._beat_s = settings.bus.heartbeat_s
        self._connect = connect
        self._refuse_rows = refuse_rows
        self._refuse_batch = refuse_batch
        self._on_stored = on_stored
        self._sequence = 0
        self._now = 0.0  # of the present turn
        self._closed_bytes = 0
        self._misrouted: list[tuple[float, Batch]] = []  # (split again not before, batch)
        self._lanes: dict[str, Lane] = {}
        self._ring = ring
        self._owners: list[tuple[Lane, ...]] = []  # by partition
        self._take_ring(ring)

    # In: points.

    def add(self, message: Message, points: Sequence[Point]) -> None:
        """Append a message's points to the open batches of their owners."""
        owners = self._owners
        for (key, partition), time_ns, value in points:
            for lane in owners[partition]:
                if lane.open.add(message, key, time_ns, value):
                    self._close_open(lane)

    def flush(self, now: float, force: bool = False) -> None:
        """Close the open batches that are old, or all of them."""
        linger_s = self._bridge.linger_ms / 1000
        for lane in self._lanes.values():
            batch = lane.open
            if not len(batch):
                continue
            if not batch.opened_s:
                batch.opened_s = now
            if force or now - batch.opened_s >= linger_s:
                self._close_open(lane)

    def _close_open(self, lane: Lane) -> None:
        if len(lane.open):
            lane.open.opened_s = lane.open.opened_s or self._now
            self._enqueue(lane, lane.open.close(self._ring.epoch, self._ring.hash))
            lane.open = self._open_batch()

    def _open_batch(self) -> OpenBatch:
        return OpenBatch(self._bridge.batch_rows)

    def _enqueue(self, lane: Lane, batch: Batch) -> None:
        self._closed_bytes += batch.memory_bytes
        lane.waiting.append(Flight(self._next_sequence(), batch))

    # Out: batches and beats.

    def tick(self, now: float, beat: Callable[[], bytes]) -> None:
        """Send what may be sent: beats that are due, overdue batches again, waiting ones. beat: a Beat's body."""
        self._now = now
        for lane in self._lanes.values():
            self._beat(lane, now, beat)
        self._split_misrouted(now)
        for lane in self._lanes.values():
            lane.stuck = False
            if lane.incarnation and now >= lane.not_before_s and lane.is_up(now, self._beat_s):
                self._resend_overdue(lane, now)
                self._send_waiting(lane, now)

    def _beat(self, lane: Lane, now: float, beat: Callable[[], bytes]) -> None:
        if now < lane.beat_due_s:
            return
        up = lane.is_up(now, self._beat_s)
        if lane.incarnation and up is lane.said_down:
            self._say_up_or_down(lane, up)
        lane.beat_due_s = now + (self._beat_s if up else min(PROBE_S, self._beat_s))
        header = self._header(lane, self._next_sequence(), self._ring.epoch, self._ring.hash, 0, 0)
        lane.link.send(protocol.pack(protocol.BEAT, header, beat()))

    def _say_up_or_down(self, lane: Lane, up: bool) -> None:
        """Once per change; a node never heard yet is only starting."""
        lane.said_down = not up
        if up:
            logger.info("storage node is back", node=lane.node.id)
        else:
            logger.warning("storage node does not answer, its points wait", node=lane.node.id)

    def _resend_overdue(self, lane: Lane, now: float) -> None:
        timeout_s = self._bridge.ack_timeout_s
        overdue = [flight for flight in lane.in_flight.values() if now - flight.sent_s > timeout_s]
        if not overdue:
            return
        again = sum(flight.sends > 1 and now - flight.sent_s <= timeout_s for flight in lane.in_flight.values())
        overdue.sort(key=lambda flight: flight.sent_s)  # those sent lately had their turn, answered or not
        for flight in overdue[: max(0, RESEND_BURST - again)]:
            self.counts["timeouts"] += 1
            if not self._send(lane, flight, now):
                return

    def _send_waiting(self, lane: Lane, now: float) -> None:
        waiting, window = lane.waiting, self._bridge.window_bytes
        while waiting:
            flight = waiting[0]
            if lane.in_flight and lane.flight_bytes + len(flight.batch.body) > window:
                return
            if not self._send(lane, flight, now):
                return
            waiting.popleft()

    def _send(self, lane: Lane, flight: Flight, now: float) -> bool:
        batch = flight.batch
        header = self._header(
            lane, flight.sequence, batch.epoch, batch.ring_hash, lane.incarnation, batch.born
        )
        if not lane.link.send(protocol.pack(protocol.BATCH, header, batch.body)):
            lane.stuck = True
            return False
        self.counts["resends" if flight.sends else "batches"] += 1
        lane.take_off(flight, now)
        return True

    def _header(
        self, lane: Lane, sequence: int, epoch: int, ring_hash: str, to_incarnation: int, born: int
    ) -> Header:
        return Header(
            protocol.VERSION,
            self._ring.cluster,
            lane.node.id,
            self._me,
            self._incarnation,
            sequence,
            epoch,
            ring_hash,
            to_incarnation,
            born,
            self.reply_to,
        )

    def _next_sequence(self) -> int:
        self._sequence += 1
        return self._sequence

    # In: answers.

    def receive(self, frames: Sequence[bytes], now: float) -> None:
        """Take what came in at the ack endpoint. What is not for this process, or to nothing sent, is counted."""
        try:
            message = protocol.unpack(frames)
            if message.kind == protocol.ACK:
                self._take_ack(message.header, protocol.decode_body(message.body, Ack), now)
            elif message.kind == protocol.BEAT_ACK:
                self._take_beat_ack(message.header, now)
            else:
                raise ProtocolError(f"{message.kind.decode()} at the ack endpoint, want ack or beat-ack")
        except ProtocolError as error:
            self._ignore("garbage", str(error))

    def _ignore(self, reason: str, detail: str) -> None:
        self.mismatches[reason] += 1
        if logger.limited(reason, 10.0):
            logger.warning("answer ignored", reason=reason, detail=detail)

    def _lane_of(self, header: Header) -> Lane | None:
        """The lane that an answer belongs to; None, counted, when it is not for us."""
        reason = protocol.mismatch(header, self._ring.cluster, self._me, self._incarnation)
        if reason is None and header.re_incarnation != self._incarnation:
            reason = "incarnation"
        if reason is None and header.sender not in self._lanes:
            reason = "sender"
        if reason is None:
            return self._lanes[header.sender]
        self._ignore(reason, f"from {header.sender} to {header.destination} of {header.cluster}")
        return None

    def _take_beat_ack(self, header: Header, now: float) -> None:
        lane = self._lane_of(header)
        if lane is None or header.re <= lane.answered:
            return
        lane.answered = header.re
        lane.heard_s = now
        if header.incarnation != lane.incarnation:
            if lane.incarnation:
                logger.info("storage node restarted, resending", node=lane.node.id, batches=len(lane.in_flight))
            lane.incarnation = header.incarnation
            lane.not_before_s = 0.0
            lane.recall()

    def _take_ack(self, header: Header, ack: Ack, now: float) -> None:
        lane = self._lane_of(header)
        if lane is None:
            return
        flight = lane.in_flight.get(header.re)
        if flight is None:
            self.counts["duplicate_acks"] += 1  # of a batch sent twice, or split again since
            return
        if header.incarnation != flight.incarnation:
            self._ignore("sender-incarnation", f"{header.sender} has restarted since it acked batch {header.re}")
            return
        lane.heard_s = now
        if ack.error:
            self._take_error(lane, flight, ack, now)
        elif ack.rows + len(ack.refused) != flight.batch.rows or not _rows_exist(ack, flight.batch):
            self._ignore("rows", f"{header.sender} acked {ack.rows} rows of {flight.batch.rows}, batch {header.re}")
        else:
            self._take_stored(lane, flight, ack, now)

    def _take_stored(self, lane: Lane, flight: Flight, ack: Ack, now: float) -> None:
        lane.trouble, lane.retry_s = "", RETRY_MIN_S
        if ack.refused:
            self._refuse_rows(flight.batch, ack.refused)
        self.counts["acks"] += 1
        self.counts["rows_stored"] += ack.rows
        self._on_stored(now - flight.batch.opened_s)
        self._settle(lane, flight)

    def _settle(self, lane: Lane, flight: Flight) -> None:
        lane.land(flight.sequence)
        self._closed_bytes -= flight.batch.memory_bytes
        flight.batch.release.release()

    def _take_error(self, lane: Lane, flight: Flight, ack: Ack, now: float) -> None:
        self.counts["refusals"] += 1
        if logger.limited(f"{ack.error} {lane.node.id}", 10.0):
            logger.warning("batch refused", node=lane.node.id, error=ack.error, detail=ack.detail)
        if ack.error in (protocol.ERR_STALE_EPOCH, protocol.ERR_NOT_MINE):
            lane.land(flight.sequence)
            self._misrouted.append((now + RESPLIT_S, flight.batch))
        elif ack.error == protocol.ERR_BAD_BATCH:
            logger.error("BUG: a node cannot decode our batch, kept in the dead letter", node=lane.node.id)
            self._refuse_batch(flight.batch, f"{lane.node.id}: {ack.detail}")
            self._settle(lane, flight)
        else:
            lane.back_off(now, f"{ack.error}: {ack.detail}")
            lane.put_back(flight.sequence)

    # Ring changes.

    def adopt(self, ring: Ring) -> None:
        """Go on by a newer ring. Open batches are closed first, so that `born` is the epoch they were taken in at."""
        for lane in self._lanes.values():
            self._close_open(lane)
        self._take_ring(ring)
        logger.info("ring adopted", epoch=ring.epoch, nodes=len(ring.nodes))

    def _take_ring(self, ring: Ring) -> None:
        self._ring = ring
        for node_id in [node_id for node_id in self._lanes if not ring.has(node_id)]:
            self._drop_lane(self._lanes.pop(node_id))
        for node in ring.nodes:
            lane = self._lanes.get(node.id)
            if lane is None:
                self._lanes[node.id] = Lane(node, self._connect(node.ingest_endpoint), self._open_batch())
            elif lane.node.ingest_endpoint != node.ingest_endpoint:
                self._move_lane(lane, node)
        lanes = {node.id: self._lanes[node.id] for node in ring.nodes}
        self._owners = [
            tuple(lanes[node.id] for node in ring.owners(partition)) for partition in range(ring.partitions)
        ]

    def _drop_lane(self, lane: Lane) -> None:
        """The node has left the ring: whatever was meant for it is split again."""
        lane.link.close()
        lane.recall()
        self._misrouted += [(0.0, flight.batch) for flight in lane.waiting]

    def _move_lane(self, lane: Lane, node: Node) -> None:
        lane.link.close()
        lane.node, lane.link = node, self._connect(node.ingest_endpoint)
        lane.incarnation, lane.heard_s, lane.beat_due_s = 0, float("-inf"), 0.0
        lane.recall()

    def _split_misrouted(self, now: float) -> None:
        """Split refused batches by a newer ring; without one, try again in a while: the node may be behind."""
        if not self._misrouted:
            return
        held, self._misrouted = self._misrouted, []
        for not_before_s, batch in held:
            if batch.epoch < self._ring.epoch or now >= not_before_s:
                self._split(batch)
            else:
                self._misrouted.append((not_before_s, batch))

    def _split(self, batch: Batch) -> None:
        self.counts["splits"] += 1
        ring, owners = self._ring, []
        for key in PointBatch.decode(batch.body).keys:
            owners.append([lane.node.id for lane in self._owners[partition_of(key, ring.partitions)]])
        self._closed_bytes -= batch.memory_bytes
        for node_id, part in split(batch, owners, ring.epoch, ring.hash):
            self._enqueue(self._lanes[node_id], part)

    # For the worker.

    @property
    def memory_bytes(self) -> int:
        """About what undelivered points cost in memory."""
        return self._closed_bytes + sum(lane.open.memory_bytes for lane in self._lanes.values())

    @property
    def is_idle(self) -> bool:
        """Whether every point taken in is durable."""
        return not self._misrouted and not any(
            len(lane.open) or lane.waiting or lane.in_flight for lane in self._lanes.values()
        )

    @property
    def has_open(self) -> bool:
        """Whether points wait for their batch to be closed."""
        return any(len(lane.open) for lane in self._lanes.values())

    @property
    def is_blocked(self) -> bool:
        """Whether a batch waits for nothing but room in its link, which no poll announces. All else that a batch
        may wait for is an answer, or as far away as a beat.
        """
        return any(lane.stuck for lane in self._lanes.values())

    def status(self, now: float) -> dict[str, Any]:
        """What a person wants to know of each owner."""
        return {
            node_id: {
                "up": lane.is_up(now, self._beat_s),
                "heard_s_ago": None if lane.heard_s < 0 else round(now - lane.heard_s, 3),
                "open_rows": len(lane.open),
                "waiting_batches": len(lane.waiting),
                "in_flight_batches": len(lane.in_flight),
                "in_flight_bytes": lane.flight_bytes,
                "trouble": lane.trouble,
            }
            for node_id, lane in self._lanes.items()
        }

    def close(self) -> None:
        """Close the links."""
        for lane in self._lanes.values():
            lane.link.close()


def _by_sequence(flight: Flight) -> int:
    return flight.sequence


def _rows_exist(ack: Ack, batch: Batch) -> bool:
    rows = {row for row, _ in ack.refused}
    return len(rows) == len(ack.refused) and all(0 <= row < batch.rows for row in rows)
