"""Points on their way to their owners: open batches, windows, acks, spools and their drains, ring changes.

Owns a Lane for each node of the ring and a Drain for each spool. Batches are split by one ring and say so; a node
that disagrees refuses the batch whole, and it is split again by a newer ring, its parts keeping `born` (misrouted.py).
A point is released when, for every writer of its partition (its owners and the node that joins them), it is acked by
that node or durable in the spool for it; the spool itself (files, marks, its bound) is spool.py. Nothing is ever
dropped: a batch leaves only by an ack, into a spool, or into the dead letter: row by row where its node refused rows,
whole where its node cannot decode it.

What no owner and no spool takes stays in memory and its messages unacknowledged; `memory_bytes` tells the worker
when to stop reading.

Pure but for links and spools: time comes in as an argument (monotonic seconds), frames go out through `Link.send`.
Belongs to the loop's thread.
"""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from common import config, log, protocol
from common.errors import ProtocolError
from common.protocol import Ack, Header
from common.ring import Node, Ring
from workers.bridge.batch import Batch, Message, split
from workers.bridge.columns import Columns
from workers.bridge.drain import DRAIN_BYTES, Drain, destinations
from workers.bridge.lane import CATCHING_UP, DOWN, UP, Flight, Lane, Link, Queue
from workers.bridge.misrouted import AGAIN_S, FENCED_S, Misrouted
from workers.bridge.openrows import OpenRows, written_partitions
from workers.bridge.payload import Point
from workers.bridge.spool import Spools

PROBE_S: Final = 0.2  # between beats to a node that has not answered: how late its return is noticed
BUSY_LINGERS: Final = 4  # that rows wait while an owner still works on a batch: it then gets fewer and larger ones,
# which halved what they cost it at full load. As soon as it has acked, one linger is enough
STALL_S: Final = 1.0  # a longer time between turns is ours, not the nodes': we were stopped, or waited for a disk

COUNTED: Final = {
    "batches": "Batches sent for the first time.",
    "acks": "Batches stored.",
    "rows_stored": "Points stored, once for each owner.",
    "resends": "Batches sent again, for whatever reason.",
    "timeouts": "Batches whose ack was overdue.",
    "refusals": "Batches refused whole by a node.",
    "splits": "Batches split again by a newer ring.",
    "duplicate_acks": "Acks of batches that were settled already, or spooled since.",
    "rows_spooled": "Points handed to a spool, once for each owner.",
    "rows_drained": "Points stored out of a spool, once for each owner.",
    "downs": "How often a node was taken for down.",
}

logger = log.get("bridge.delivery")


# (batch, [(row, reason)]): keep these rows in the dead letter, hold the batch's release for each.
RefuseRows = Callable[[Batch, Sequence[tuple[int, str]]], None]

# (batch, reason): keep its body in the dead letter as it is, hold its release for that.
RefuseBatch = Callable[[Batch, str], None]


class Delivery:
    """The state machine. counts: events by name (COUNTED). mismatches: answers ignored, by reason."""

    def __init__(
        self,
        settings: config.Settings,
        incarnation: int,
        ring: Ring,
        connect: Callable[[str], Link],
        spools: Spools,
        refuse_rows: RefuseRows,
        refuse_batch: RefuseBatch,
        now: float,
        on_stored: Callable[[float], None] = lambda seconds: None,
        hurry: Callable[[], None] = lambda: None,
    ) -> None:
        """incarnation: this process's random id. connect: opens a link to an ingest endpoint. on_stored: seconds
        from a batch's first point to its ack. hurry: somebody knows of a newer ring.
        """
        self.counts: Counter[str] = Counter()
        self.mismatches: Counter[str] = Counter()
        self.reply_to = ""
        self._me = settings.bridge.id
        self._incarnation = incarnation
        self._bridge = settings.bridge
        self._beat_s = settings.bus.heartbeat_s
        self._connect = connect
        self._spools = spools
        self._refuse_rows = refuse_rows
        self._refuse_batch = refuse_batch
        self._on_stored = on_stored
        self._hurry = hurry
        self._sequence = 0
        self._now = now  # of the present turn
        self._closed_bytes = 0
        self._misrouted: list[Misrouted] = []
        self._lanes: dict[str, Lane] = {}
        self._drains: dict[str, Drain] = {}
        self._ring = ring
        self._owners_since = 0  # epoch at which the owners of any partition changed last
        self._open = OpenRows(settings.bridge.batch_rows)
        self._written = written_partitions(ring)
        self._take_ring(ring)

    # In: points.

    def add(self, message: Message, points: Sequence[Point] | Columns) -> None:
        """Take a message's points in; they travel on when their rows are old or many enough."""
        rows = self._open
        if isinstance(points, Columns):
            rows.extend(message, points)
        else:
            rows.add(message, points)
        if rows.is_full:
            self._close_open()

    def flush(self, now: float, force: bool = False) -> None:
        """Make batches of the open rows when they are old, or in any case."""
        rows = self._open
        if not len(rows):
            return
        rows.opened_s = rows.opened_s or now
        linger_s = self._bridge.linger_ms / 1000
        if any(lane.live.in_flight for lane in self._lanes.values()):
            linger_s *= BUSY_LINGERS
        if force or now - rows.opened_s >= linger_s:
            self._close_open()

    def _close_open(self) -> None:
        rows = self._open
        if not len(rows):
            return
        rows.opened_s = rows.opened_s or self._now
        self._open = OpenRows(self._bridge.batch_rows)
        for node_id, batch in rows.close(self._ring.epoch, self._ring.hash, self._written):
            self._enqueue(self._lanes[node_id], batch)

    def _enqueue(self, lane: Lane, batch: Batch, drained: bool = False) -> None:
        self._closed_bytes += batch.memory_bytes
        queue = lane.drain if drained else lane.live
        queue.waiting.append(Flight(self._next_sequence(), batch, self._now, drained))

    # Out: beats and batches.

    def tick(self, now: float, beat: Callable[[], bytes]) -> None:
        """Send and spool what may be sent and has to be spooled. beat: a Beat's body."""
        self._excuse_stall(now)
        self._now = now
        for lane in self._lanes.values():
            self._beat(lane, beat)
            self._judge(lane)
        self._split_misrouted()
        self._feed_drains()
        for lane in self._lanes.values():
            self._advance(lane)

    def _excuse_stall(self, now: float) -> None:
        """Time in which this process stood still counts against nobody: else a slow fsync of ours would take every
        node down, and send all their points through the disk that was slow.
        """
        stalled_s = now - self._now - STALL_S
        if stalled_s > 0:
            for lane in self._lanes.values():
                lane.excuse(stalled_s, now)

    def _beat(self, lane: Lane, beat: Callable[[], bytes]) -> None:
        if self._now < lane.beat_due_s:
            return
        alone = lane.state == DOWN or not lane.incarnation
        lane.beat_due_s = self._now + (min(PROBE_S, self._beat_s) if alone else self._beat_s)
        header = self._header(lane, self._next_sequence(), self._ring.epoch, self._ring.hash)
        lane.link.send(protocol.pack(protocol.BEAT, header, beat()))
        lane.unanswered += 1

    def _judge(self, lane: Lane) -> None:
        """Take a lane for down that is silent or late."""
        now = self._now
        overdue_s = lane.overdue_s(now, self._bridge.ack_timeout_s)
        if overdue_s:
            self.counts["timeouts"] += 1
            self._take_down(lane, f"no ack for {overdue_s:.1f} s")
        if lane.is_silent(now, self._beat_s):
            lane.shows_life = False
            if lane.state != DOWN:
                self._take_down(lane, f"no answer for {now - lane.heard_s:.1f} s")

    def _take_down(self, lane: Lane, trouble: str) -> None:
        self.counts["downs"] += lane.state != DOWN
        lane.go_down(self._now, trouble)

    def _advance(self, lane: Lane) -> None:
        """Do for a lane what its state allows."""
        lane.stuck = False
        if lane.state != UP:
            self._take_back(lane)
        if lane.state == DOWN:
            self._spool_waiting(lane)
            self._probe(lane)
        elif lane.incarnation:
            self._send_waiting(lane, lane.live, self._bridge.window_bytes)
            if lane.state == CATCHING_UP:
                self._catch_up(lane)
            elif lane.waited_s(self._now) > self._bridge.ack_timeout_s:
                lane.fall_behind(self._now)
                self._spool_waiting(lane)

    def _catch_up(self, lane: Lane) -> None:
        self._send_waiting(lane, lane.drain, DRAIN_BYTES)
        if not lane.stuck or lane.waited_s(self._now) > self._bridge.ack_timeout_s:
            self._spool_waiting(lane)
        if lane.spool.is_empty and lane.node.id not in self._drains:
            lane.catch_up(self._now)

    def _probe(self, lane: Lane) -> None:
        """Send one batch, and no second before it is acked or overdue: out of the spool, or what that cannot take. A
        node for which there is nothing is back when it answers.
        """
        if not lane.may_probe(self._now):
            return
        queue = lane.drain if lane.drain.waiting else lane.live
        flight = queue.probe()
        if flight is not None:
            if self._send(lane, queue, flight):
                flight.probes += 1
                lane.probe = flight.sequence
        elif not lane.spool.gathered_bytes:
            lane.come_back(self._now)

    def _send_waiting(self, lane: Lane, queue: Queue, window_bytes: int) -> None:
        while queue.waiting and queue.fits(queue.waiting[0], window_bytes):
            if not self._send(lane, queue, queue.waiting[0]):
                return

    def _send(self, lane: Lane, queue: Queue, flight: Flight) -> bool:
        batch = flight.batch
        header = self._header(lane, flight.sequence, batch.epoch, batch.ring_hash, lane.incarnation, batch.born)
        if not lane.link.send(protocol.pack(protocol.BATCH, header, batch.body)):
            lane.stuck = True
            return False
        self.counts["resends" if flight.sends else "batches"] += 1
        queue.take_off(flight, lane.incarnation, self._now)
        return True

    # Spools and drains.

    def _spool_waiting(self, lane: Lane) -> None:
        """Hand what waits to the spool, as much as it takes. A batch whose points may have other owners by now is
        split first: its messages must not be released before each of these owners, or a spool for it, has them.
        """
        waiting = lane.live.waiting
        while waiting and self._spools.can_take(lane.node.id):
            batch = waiting.popleft().batch
            if batch.epoch < self._owners_since:
                self._misrouted.append(Misrouted(0.0, batch, lane.node.id, False, lane.epoch))
            else:
                self._spool(lane, batch)

    def _spool(self, lane: Lane, batch: Batch) -> None:
        self._closed_bytes -= batch.memory_bytes
        self.counts["rows_spooled"] += batch.rows
        lane.spool.append(batch)

    def _take_back(self, lane: Lane) -> None:
        """What the spool gathered and cannot make durable waits here: its node may be back before the disk is."""
        if lane.spool.error:
            for batch in lane.spool.reclaim():
                self._enqueue(lane, batch)

    def _feed_drains(self) -> None:
        for node_id in self._spools.nodes():
            if node_id not in self._drains:
                self._drains[node_id] = Drain(self._spools.of(node_id))
        for node_id, drain in list(self._drains.items()):
            if drain.is_done:
                del self._drains[node_id]
            else:
                lane = self._lanes.get(node_id)
                if lane is not None and lane.state == DOWN:
                    self._let_go(lane)
                self._feed(drain, node_id, lane)

    def _feed(self, drain: Drain, node_id: str, lane: Lane | None) -> None:
        """Take records out of a spool: while its node is down no more than the next probe. lane: None
        when the node has left the ring.
        """
        entries = drain.take()
        while lane is None or lane.state != DOWN or all(flight.probes for flight in lane.drain.waiting):
            entry = next(entries, None)
            if entry is None:
                return
            if lane is not None and entry.batch.epoch >= self._owners_since:
                self._enqueue(lane, entry.batch, drained=True)
            else:
                self._split(entry.batch, node_id, drained=True)

    def _let_go(self, lane: Lane) -> None:
        """Records in hand for a node that is down do not wait for it when their points may have other owners by now:
        these would lack them, without a mark, for as long as it stays away.
        """
        for flight in [flight for flight in lane.drain.waiting if flight.batch.epoch < self._owners_since]:
            lane.remove(flight)
            self._closed_bytes -= flight.batch.memory_bytes
            self._split(flight.batch, lane.node.id, drained=True)

    def spool_rest(self, limit_bytes: int) -> None:
        """Before the end: hand to the spools what is not acked, up to so many bytes of bodies. Not what may have other
        owners by now, for the same reason as ever; the broker has it still.
        """
        for lane in self._lanes.values():
            lane.recall(self._now)
            kept: list[Flight] = []
            for flight in lane.live.waiting:
                stale = flight.batch.epoch < self._owners_since
                if stale or limit_bytes <= 0 or not self._spools.can_take(lane.node.id):
                    kept.append(flight)
                    continue
                limit_bytes -= len(flight.batch.body)
                self._spool(lane, flight.batch)
            lane.live.waiting = deque(kept)

    def _header(
        self, lane: Lane, sequence: int, epoch: int, ring_hash: str, to_incarnation: int = 0, born: int = 0
    ) -> Header:
        me, to = self._me, lane.node.id
        return Header(
            protocol.VERSION, self._ring.cluster, to, me, self._incarnation, sequence, epoch, ring_hash,
            to_incarnation, born, self.reply_to,
        )  # fmt: skip

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
            if header.epoch > self._ring.epoch:
                self._hurry()
            lane = self._lanes[header.sender]
            lane.epoch = max(lane.epoch, header.epoch)
            return lane
        self._ignore(reason, f"from {header.sender} to {header.destination} of {header.cluster}")
        return None

    def _take_beat_ack(self, header: Header, now: float) -> None:
        lane = self._lane_of(header)
        if lane is None or header.re <= lane.answered:
            return
        lane.answered = header.re
        lane.hear(now)
        if header.incarnation != lane.incarnation:
            lane.meet(header.incarnation, now)

    def _take_ack(self, header: Header, ack: Ack, now: float) -> None:
        lane = self._lane_of(header)
        if lane is None:
            return
        flight = lane.find(header.re)
        if flight is None or (ack.error and not lane.is_in_flight(flight)):
            self.counts["duplicate_acks"] += 1  # of a batch sent twice, or split again or spooled since
            return
        if not header.incarnation == flight.incarnation == lane.incarnation:
            self._ignore("sender-incarnation", f"{header.sender} has restarted since it acked batch {header.re}")
            return
        lane.hear(now)
        if ack.error:
            self._take_error(lane, flight, ack, header.epoch)
        elif ack.rows + len(ack.refused) != flight.batch.rows or not _rows_exist(ack, flight.batch):
            self._ignore("rows", f"{header.sender} acked {ack.rows} rows of {flight.batch.rows}, batch {header.re}")
        else:
            self._take_stored(lane, flight, ack, now)

    def _take_stored(self, lane: Lane, flight: Flight, ack: Ack, now: float) -> None:
        if ack.refused:
            self._refuse_rows(flight.batch, ack.refused)
        self.counts["acks"] += 1
        self.counts["rows_stored"] += ack.rows
        if flight.drained:
            self.counts["rows_drained"] += ack.rows
        else:
            self._on_stored(now - flight.batch.opened_s)
        lane.stored(flight, now)
        self._release(flight.batch)

    def _release(self, batch: Batch) -> None:
        self._closed_bytes -= batch.memory_bytes
        batch.release.release()

    def _take_error(self, lane: Lane, flight: Flight, ack: Ack, epoch: int) -> None:
        """epoch: of the node's ring."""
        self.counts["refusals"] += 1
        if logger.limited(f"{ack.error} {lane.node.id}", 10.0):
            logger.warning("batch refused", node=lane.node.id, error=ack.error, detail=ack.detail)
        if ack.error == protocol.ERR_MOVING:
            self._hurry()
        again_s = AGAIN_S.get(ack.error)
        if again_s is not None and (ack.error == protocol.ERR_MOVING or not self._is_behind(lane, flight, epoch)):
            lane.remove(flight)
            if ack.error == protocol.ERR_MOVING and not self._is_probed(lane.node.id):
                again_s = FENCED_S
            until_s = self._now + again_s
            self._misrouted.append(Misrouted(until_s, flight.batch, lane.node.id, flight.drained, lane.epoch))
        elif ack.error == protocol.ERR_BAD_BATCH:
            logger.error("BUG: a node cannot decode our batch, kept in the dead letter", node=lane.node.id)
            self._refuse_batch(flight.batch, f"{lane.node.id}: {ack.detail}")
            lane.remove(flight)
            self._release(flight.batch)
        else:
            self._take_down(lane, f"{ack.error}: {ack.detail}")

    def _is_probed(self, node_id: str) -> bool:
        """Whether a batch that a node refused is tried again shortly."""
        soon_s = self._now + FENCED_S
        return any(each.node_id == node_id and each.not_before_s <= soon_s for each in self._misrouted)

    def _is_behind(self, lane: Lane, flight: Flight, epoch: int) -> bool:
        """Whether a node disowns what our ring gives it because its own is older, and has been doing so for too long.
        By a ring newer than ours it is right, and we must not rely on its spool. Nor is that needed for one that has
        put a fence, which passes: a mark would take all that the node owns from readers.
        """
        ours = epoch <= self._ring.epoch == flight.batch.epoch
        overdue = self._now - flight.batch.opened_s > self._bridge.ack_timeout_s
        return ours and (overdue or lane.state == DOWN)

    # Ring changes.

    def adopt(self, ring: Ring) -> None:
        """Go on by a newer ring. Open rows are closed first, so that `born` is the epoch they were taken in at."""
        self._close_open()
        self._take_ring(ring)
        logger.info("ring adopted", epoch=ring.epoch, nodes=len(ring.nodes))

    def _take_ring(self, ring: Ring) -> None:
        self._ring = ring
        self._owners_since = int(ring.since.max())
        for node_id in [node_id for node_id in self._lanes if not ring.has(node_id)]:
            self._drop_lane(self._lanes.pop(node_id))
        for node in ring.nodes:
            lane = self._lanes.get(node.id)
            if lane is None:
                self._lanes[node.id] = self._new_lane(node)
                continue
            for batch in lane.spool.reclaim():  # gathered by the ring of before, and not released
                self._enqueue(lane, batch)
            if lane.node.ingest_endpoint != node.ingest_endpoint:
                lane.move(node, self._connect(node.ingest_endpoint), self._now)
            else:
                lane.beat_due_s = self._now  # at which epoch we are is waited for, after a delete
        self._written = written_partitions(ring)

    def _new_lane(self, node: Node) -> Lane:
        link = self._connect(node.ingest_endpoint)
        return Lane(node, link, self._spools.of(node.id), self._now)

    def _drop_lane(self, lane: Lane) -> None:
        """The node has left the ring: whatever was meant for it is split again."""
        lane.link.close()
        lane.recall(self._now)
        for batch in lane.spool.reclaim():
            self._enqueue(lane, batch)
        for flight in (*lane.live.waiting, *lane.drain.waiting):
            self._misrouted.append(Misrouted(0.0, flight.batch, lane.node.id, flight.drained, lane.epoch))

    def _split_misrouted(self) -> None:
        """Split refused batches by today's ring, those that are due; see misrouted.py."""
        held, self._misrouted = self._misrouted, []
        for misrouted in held:
            lane = self._lanes.get(misrouted.node_id)
            if misrouted.is_due(self._now, self._ring, misrouted.epoch if lane is None else lane.epoch):
                self._closed_bytes -= misrouted.batch.memory_bytes
                self._split(misrouted.batch, misrouted.node_id, misrouted.drained)
            else:
                self._misrouted.append(misrouted)

    def _split(self, batch: Batch, node_id: str, drained: bool) -> None:
        """Put the parts of a batch on their lanes by today's ring. The part of a drained one for its own node goes on
        draining; while that is down it is spooled again, by today's ring, like every other part.
        """
        self.counts["splits"] += 1
        ring = self._ring
        for to, part in split(batch, destinations(batch, node_id, ring), ring.epoch, ring.hash):
            lane = self._lanes[to]
            self._enqueue(lane, part, drained and to == node_id and lane.state != DOWN)

    # For the worker.

    @property
    def memory_bytes(self) -> int:
        """About what undelivered points cost in memory."""
        return self._closed_bytes + self._open.memory_bytes

    @property
    def is_idle(self) -> bool:
        """Whether every point taken in is durable, at its owners or in their spools."""
        lanes = self._lanes.values()
        return not (len(self._open) or self._misrouted or any(lane.live or lane.spool.gathered_bytes for lane in lanes))

    @property
    def has_open(self) -> bool:
        """Whether points wait for their batch to be closed."""
        return len(self._open) > 0

    @property
    def is_blocked(self) -> bool:
        """Whether a batch waits for nothing but room in its link, which no poll announces. All else that a batch
        may wait for is an answer, or as far away as a beat.
        """
        return any(lane.stuck for lane in self._lanes.values())

    @property
    def states(self) -> dict[str, str]:
        """The state of each owner, by node."""
        return {node_id: lane.state for node_id, lane in self._lanes.items()}

    def status(self, now: float) -> dict[str, Any]:
        """What a person wants to know of each owner."""
        return {node_id: lane.status(now) for node_id, lane in self._lanes.items()}

    def close(self) -> None:
        """Close the links."""
        for lane in self._lanes.values():
            lane.link.close()


def _rows_exist(ack: Ack, batch: Batch) -> bool:
    rows = {row for row, _ in ack.refused}
    return len(rows) == len(ack.refused) and all(0 <= row < batch.rows for row in rows)
