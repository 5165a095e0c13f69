"""The write side of a storage node: batches in, group commit, acks out, deletes between groups.

Owns the PULL socket, the sockets that push acks, the ring watcher, and every call that changes the store; runs
in the writer thread and nowhere else. One turn takes everything that is waiting (up to storage.group_bytes),
logs it with one fdatasync, applies it, then acks: what is acked is durable and visible. Requests that change the
store come from the server thread through a pair of sockets, and their replies go back there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from common import bus, clock, log, protocol
from common.errors import MinitrueError, ProtocolError, StorageError
from common.points import PointBatch
from common.protocol import Ack, Header
from common.ringstore import RingView
from common.timestamps import MAX_NS, MIN_NS
from workers.storage import routed
from workers.storage.limits import DiskFloorError, Refused
from workers.storage.node import Node
from workers.storage.store import DeleteRecord, LoggedBatch, Store

ACK_SOCKET_IDLE_S = 60.0  # bridges beat every second: one silent for so long has gone, its endpoint is stale
TICK_S = 0.2  # between looks at the ring store and the age of the head

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
    """The writer thread's work. `run` returns when `stop` is set.

    control: where requests that change the store come from, and their replies go (routed.py).
    """

    sockets: bus.Bus
    pull: bus.Socket
    control: bus.Socket
    node: Node
    store: Store
    ring_view: RingView
    group_bytes: int
    counts: IngestCounts = field(default_factory=IngestCounts)
    _acks: dict[str, AckSocket] = field(default_factory=dict)
    _next_tick_s: float = 0.0

    def run(self, stop: bus.Pollable) -> None:
        """Serve until `stop` becomes readable; then whatever was taken has been stored and acked."""
        poller = bus.Poller([self.pull, self.control, stop])
        while stop not in poller.poll(TICK_S):
            self.commit(self._gather())
            self._change()
            self._tick()

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
                waiting = self._take(frames)
            except ProtocolError as error:
                self.node.ignore("garbage")
                if logger.limited("garbage", 5.0):
                    logger.warning("frames ignored", reason=str(error))
                continue
            if waiting is not None:
                group.append(waiting)
                size += len(waiting.logged.body)
        return group

    def _take(self, frames: list[bytes]) -> Waiting | None:
        """Judge one message: a batch to store, or None when it was answered or ignored here."""
        message = protocol.unpack(frames)
        header = message.header
        reason = protocol.mismatch(header, self.node.cluster, self.node.node_id, self.node.incarnation)
        if reason is not None:
            self.node.ignore(reason)
            return None
        if message.kind == protocol.BEAT:
            self.node.hear(header, protocol.decode_body(message.body, protocol.Beat))
            self._push(header, protocol.BEAT_ACK, {})
            return None
        if message.kind != protocol.BATCH:
            raise ProtocolError(f"{message.kind.decode()} on the ingest socket, want batch or beat")
        return self._check(header, message.body)

    def _check(self, header: Header, body: bytes) -> Waiting | None:
        if header.epoch > self.node.view.ring.epoch:
            self._adopt_newer()
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
        if not view.owned[partitions].all():
            foreign = int(partitions[np.argmin(view.owned[partitions])])
            self._refuse(header, protocol.ERR_NOT_MINE, f"partition {foreign} at epoch {view.ring.epoch}")
            return None
        return Waiting(header, LoggedBatch(body, header.born, batch))

    def _change(self) -> None:
        """Do what requests ask for that change the store; their frames were checked by the server."""
        while (frames := self.control.receive()) is not None:
            route, request = routed.split(frames)
            self.control.send(routed.join(route, self._answer(protocol.unpack(request))))

    def _answer(self, message: protocol.Message) -> list[bytes]:
        header = self.node.header(message.header)
        try:
            return protocol.pack(protocol.REPLY, header, self._delete(message.body))
        except MinitrueError as error:
            return protocol.pack(protocol.ERROR, header, _explain(error))

    def _delete(self, body: bytes) -> protocol.DeleteReply:
        asked = protocol.decode_body(body, protocol.DeleteRequest)
        start = MIN_NS if asked.start_ns is None else asked.start_ns
        end = MAX_NS if asked.end_ns is None else asked.end_ns
        applied = self.store.delete(DeleteRecord(asked.number, asked.selector, start, end))
        return protocol.DeleteReply(asked.number, applied)

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
        if now < self._next_tick_s:
            return
        self._next_tick_s = now + TICK_S
        self._adopt_newer()
        self.store.tick()
        for endpoint, ack in list(self._acks.items()):
            if now - ack.used_s > ACK_SOCKET_IDLE_S:
                ack.socket.close()
                del self._acks[endpoint]

    def _adopt_newer(self) -> None:
        ring = self.ring_view.poll()
        if ring is not None:
            self.node.adopt(ring)
            logger.info("ring adopted", epoch=ring.epoch, ring=ring.hash)


def _explain(error: MinitrueError) -> protocol.ErrorReply:
    if isinstance(error, ProtocolError):
        return protocol.ErrorReply(protocol.ERR_BAD_REQUEST, str(error))
    logger.error("delete failed", reason=str(error))
    return protocol.ErrorReply(protocol.ERR_DISK, str(error))
