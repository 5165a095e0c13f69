"""The write side of a storage node: batches in, group commit, acks out, rings and their deletes between groups.

Owns the PULL socket, the sockets that push acks, the ring watcher, and every call that changes the store; runs
in the writer thread and nowhere else. One turn takes everything that is waiting (up to storage.group_bytes),
logs it with one fdatasync, applies it, then acks: what is acked is durable and visible.

A ring is adopted when all of its deletes are durable and in force, and not before: so nothing is accepted or answered
at an epoch without them. While that fails the old ring stays. A batch of a newer ring than ours waits for that
with its bridge: taken in now, its rows would count as written before the deletes that they come after.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from common import bus, clock, log, protocol
from common.errors import ProtocolError, StorageError
from common.points import PointBatch
from common.protocol import Ack, Header
from common.ring import Ring
from common.ringstore import RingView
from workers.storage import layout
from workers.storage.feed import Feed
from workers.storage.fences import Fences
from workers.storage.limits import DiskFloorError, Refused
from workers.storage.node import Node, Ownership, Partitions, bitmap_of, partitions_of
from workers.storage.orders import Orders
from workers.storage.store import DeleteRecord, LoggedBatch, Store
from workers.storage.work import RefusedError

ACK_SOCKET_IDLE_S = 60.0  # bridges beat every second: one silent for so long has gone, its endpoint is stale
TICK_S = 0.2  # between looks at the ring store and the age of the head
HURRY_S = 0.01  # while requests wait for a newer ring, of which the ring store is about to know

logger = log.get("storage")


class Waiting(NamedTuple):
    """A batch that passed every check, on its way into the store."""

    header: Header
    logged: LoggedBatch


@dataclass
class AckSocket:
    socket: bus.Socket
    used_s: float


@dataclass
class IngestCounts:
    """Written by the writer thread, read by any."""

    batches: int = 0
    points: int = 0
    groups: int = 0
    refused: int = 0
    acks_dropped: int = 0


@dataclass
class Ingest:
    """The writer thread's work. `run` returns when `stop` is set; `begin` comes before it, and before any answer.

    orders: what other threads want done between two groups. fence_s: how long a fence holds at least.
    """

    sockets: bus.Bus
    pull: bus.Socket
    node: Node
    store: Store
    ring_view: RingView
    feed: Feed
    group_bytes: int
    orders: Orders = field(default_factory=Orders)
    fence_s: float = 10.0
    counts: IngestCounts = field(default_factory=IngestCounts)
    _acks: dict[str, AckSocket] = field(default_factory=dict)
    _next_tick_s: float = 0.0
    _told_epoch: int = 0  # of requests, looked for at once
    _gone_by: int = 0  # epoch of the ring remembered, see begin
    _newer: Ring | None = None  # found in the ring store, not in force yet

    def __post_init__(self) -> None:
        self._fences = Fences(self.node.view.ring.partitions, self.fence_s)

    def begin(self) -> None:
        """Apply the deletes of the ring to begin with. Raises StorageError where that cannot be.

        No ring is gone by that is older than one by which this node's partitions had other owners, whatever the ring
        store was put back to: the node would answer for what it gave away, and take points that nobody looks for here.
        """
        ring = self.node.view.ring
        if self.store.delete_number > ring.epoch:
            raise StorageError(
                f"delete {self.store.delete_number} is in force in this directory, and the ring store holds epoch "
                f"{ring.epoch}: put its latest ring back, new points could fall under old deletes"
            )
        self._gone_by = self.store.ring_epoch
        if self._gone_by > ring.epoch:
            raise StorageError(
                f"this node has gone by the ring of epoch {self._gone_by}, and the store holds epoch {ring.epoch}, "
                "which may give it what others have taken over: put the latest ring back (tools/ringctl restore); if "
                f"nobody has it any more, remove the file {layout.RING} in its directory"
            )
        try:
            self.store.keep(self.node.view.written)
            self.store.adopt(records_of(ring))
            self._go_by(ring, self.node.view.written)
        except ProtocolError as error:
            raise StorageError(f"ring of epoch {ring.epoch}: {error}") from error

    def run(self, stop: bus.Pollable) -> None:
        """Serve until `stop` becomes readable; then whatever was taken has been stored and acked."""
        poller = bus.Poller([self.pull, self.feed.socket, self.orders, stop])
        while stop not in poller.poll(HURRY_S if self.node.waiting else TICK_S):
            self.commit(self._gather())
            self.orders.run()
            self.feed.look()
            self._tick()

    def fence(self, request: protocol.FenceRequest) -> protocol.FenceReply:
        """Refuse points of partitions from here on, or questions, too: every batch taken before is stored and acked.
        To be called between groups.

        Raises RefusedError when the ring in force is of another epoch.
        """
        view = self.node.view
        if request.epoch != view.ring.epoch:
            raise RefusedError(
                protocol.ERR_STALE_EPOCH, f"fence at epoch {request.epoch}, the ring here is at {view.ring.epoch}"
            )
        wanted = partitions_of(request.partitions, view.ring.partitions) & view.written
        self._fences.put(wanted, view.ring, request.reads)
        self.node.fence(self._fences.fenced, self._fences.closed)
        return protocol.FenceReply(view.ring.epoch, bitmap_of(wanted), self.fence_s, self.node.incarnation)

    def commit(self, group: Sequence[Waiting]) -> None:
        """Store a group with one fdatasync and ack each of its batches."""
        if not group:
            return
        try:
            refused = self.store.append([waiting.logged for waiting in group])
        except StorageError as error:
            if logger.limited("append", 5.0):
                logger.error("batches not stored", reason=str(error), batches=len(group))
            code = protocol.ERR_DISK_FLOOR if isinstance(error, DiskFloorError) else protocol.ERR_DISK
            for waiting in group:
                self._refuse(waiting.header, code, str(error))
            return
        self.counts.groups += 1
        for waiting, rows in zip(group, refused, strict=True):
            self._ack(waiting, rows)
        self.feed.publish(self.store.stored)

    def _ack(self, waiting: Waiting, refused: Refused) -> None:
        rows = len(waiting.logged.batch) - len(refused)
        self.counts.batches += 1
        self.counts.points += rows
        if refused and logger.limited("rows", 5.0):
            logger.warning("rows refused", bridge=waiting.header.sender, rows=len(refused), reason=refused[0][1])
        self._push(waiting.header, protocol.ACK, Ack(rows, refused))

    def _gather(self) -> list[Waiting]:
        group: list[Waiting] = []
        size = 0
        while size < self.group_bytes and (frames := self.pull.receive()) is not None:
            try:
                message = self._take(frames)
            except ProtocolError as error:
                self.node.ignore("garbage")
                if logger.limited("garbage", 5.0):
                    logger.warning("frames ignored", reason=str(error))
                continue
            if message is None:
                continue
            if self._is_newer(message.header):  # rings are adopted between groups
                self.commit(group)
                group = []
                self._adopt_newer(now=True)
            waiting = self._check(message.header, message.body)
            if waiting is not None:
                group.append(waiting)
                size += len(waiting.logged.body)
        return group

    def _take(self, frames: list[bytes]) -> protocol.Message | None:
        """Look at one message: a batch, or None when it was answered or ignored here."""
        message = protocol.unpack(frames)
        header = message.header
        reason = protocol.mismatch(header, self.node.cluster, self.node.node_id, self.node.incarnation)
        if reason is not None:
            self.node.ignore(reason)
            return None
        if message.kind == protocol.BEAT:
            self.node.hear(header, protocol.decode_body(message.body, protocol.Beat))
            self._push(header, protocol.BEAT_ACK, {})
            if self._is_newer(header):
                self._hurry()
            return None
        if message.kind != protocol.BATCH:
            raise ProtocolError(f"{message.kind.decode()} on the ingest socket, want batch or beat")
        return message

    def _is_newer(self, header: Header) -> bool:
        """Whether a bridge goes by a newer ring than this node."""
        return max(header.epoch, header.born) > self.node.view.ring.epoch

    def _check(self, header: Header, body: bytes) -> Waiting | None:
        if self._is_newer(header):
            theirs, ours = max(header.epoch, header.born), self.node.view.ring.epoch
            self._refuse(header, protocol.ERR_STALE_EPOCH, f"epoch {theirs}, the ring here is still at {ours}")
            return None
        try:
            batch = PointBatch.decode(body)
            partitions = self.store.partitions_of(batch.keys)
        except ProtocolError as error:
            logger.error("batch refused", bridge=header.sender, sequence=header.sequence, reason=str(error))
            self._refuse(header, protocol.ERR_BAD_BATCH, str(error))
            return None
        view = self.node.view
        if header.epoch < int(view.ring.since[partitions].max(initial=0)):
            self._refuse(header, protocol.ERR_STALE_EPOCH, f"epoch {header.epoch}, the ring is at {view.ring.epoch}")
            return None
        if not view.written[partitions].all():
            foreign = int(partitions[np.argmin(view.written[partitions])])
            self._refuse(header, protocol.ERR_NOT_MINE, f"partition {foreign} at epoch {view.ring.epoch}")
            return None
        if view.fenced[partitions].any():
            fenced = int(partitions[np.argmax(view.fenced[partitions])])
            self._refuse(header, protocol.ERR_MOVING, f"partition {fenced} moves away, epoch {view.ring.epoch}")
            return None
        return Waiting(header, LoggedBatch(body, header.born, batch))

    def _refuse(self, header: Header, error: str, detail: str) -> None:
        self.counts.refused += 1
        self._push(header, protocol.ACK, Ack(0, error=error, detail=detail))

    def _push(self, to: Header, kind: bytes, body: object) -> None:
        """Push an answer without waiting; a lost one costs a resent batch, which changes nothing."""
        try:
            sent = self._ack_socket(to.reply_to).send(protocol.pack(kind, self.node.header(to), body))
        except bus.BusError as error:
            self.node.ignore("reply_to")
            if logger.limited("reply_to", 5.0):
                logger.warning("no way back to a bridge", bridge=to.sender, reason=str(error))
            return
        if not sent:
            self.counts.acks_dropped += 1

    def _ack_socket(self, endpoint: str) -> bus.Socket:
        known = self._acks.get(endpoint)
        if known is None:
            known = self._acks[endpoint] = AckSocket(self.sockets.push_acks(endpoint), 0.0)
        known.used_s = clock.monotonic_s()
        return known.socket

    def _tick(self) -> None:
        now = clock.monotonic_s()
        if now < self._next_tick_s and not self.node.waiting and self.node.told_epoch <= self._told_epoch:
            return
        self._told_epoch = self.node.told_epoch
        self._adopt_newer(now=self._is_told_of_more() or self._fences.due())
        view = self.node.view
        if view.ring is self.ring_view.ring and self._fences.lapse(
            self.ring_view.confirmed_s, view.written & ~view.owned
        ):
            self.node.fence(self._fences.fenced, self._fences.closed)
        if now < self._next_tick_s:
            return
        self._next_tick_s = now + TICK_S
        self.store.tick()
        for endpoint, ack in list(self._acks.items()):
            if now - ack.used_s > ACK_SOCKET_IDLE_S:
                ack.socket.close()
                del self._acks[endpoint]

    def _hurry(self) -> None:
        """Look at the ring store with the next tick, and have that soon."""
        self.ring_view.hurry()
        self._next_tick_s = 0.0

    def _is_told_of_more(self) -> bool:
        """Whether a request has come by a newer ring than this node's."""
        return self.node.told_epoch > self.node.view.ring.epoch

    def _adopt_newer(self, now: bool = False) -> None:
        """Take over a newer ring if there is one, its deletes first. now: somebody knows of one, look at once.

        Where that fails the old ring stays in force, and the next tick tries again.
        """
        if now:
            self.ring_view.hurry()
        ring = self.ring_view.poll() or self._newer
        if ring is not None:
            self._adopt(ring)
        self.node.confirmed_s, self.node.trouble = self.ring_view.confirmed_s, self.ring_view.trouble
        self.node.looked()

    def _adopt(self, ring: Ring) -> None:
        self._newer, written = ring, Ownership.of(ring, self.node.node_id).written
        try:
            self.store.keep(written)
            self.store.adopt(records_of(ring))
            self._go_by(ring, written | self.node.view.written)
        except (ProtocolError, StorageError) as error:
            self.node.not_adopted = (ring.epoch, str(error))
            if logger.limited("adopt", 5.0):
                logger.error("ring not adopted, the old one stays", epoch=ring.epoch, reason=str(error))
            return
        self._fences.follow(ring)
        self.node.adopt(ring, self._fences.fenced, self._fences.closed)
        self.node.not_adopted = self._newer = None
        logger.info("ring adopted", epoch=ring.epoch, ring=ring.hash)

    def _go_by(self, ring: Ring, partitions: Partitions) -> None:
        """Remember a ring that gives some of these partitions to others than the one remembered."""
        if ring.since[partitions].max(initial=0) > self._gone_by:
            self.store.go_by(ring.epoch)
            self._gone_by = ring.epoch


def records_of(ring: Ring) -> list[DeleteRecord]:
    """The deletes of a ring as the store keeps them."""
    return [DeleteRecord(each.number, each.selector, each.start_ns, each.end_ns) for each in ring.deletes]
