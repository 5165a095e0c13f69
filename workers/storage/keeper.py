"""What a node sees to without haste: that file and mark say what it lacks, and that it forgets what it gave away.

Owns its connections to other nodes and when a partition is dropped. Everything here belongs to the keeper's thread, but
for `status` and `wake`.

A partition is dropped when it has been neither owned nor joined for `grace_s` (counted from the start of the process at
the earliest), and then only when each of its owners is there: by the same ring and the same deletes it answers that it
holds at least as many points of it as lie here, up to the last time of these: what has come since would make up for
what it lacks. That the owners have everything is what the move has proven; this is to notice when something went wrong
all the same. Such a partition waits, and `status` says why.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from common import bus, clock, log, process, protocol
from common.errors import MinitrueError, ProtocolError, RingStoreError
from common.protocol import DigestsReply, DigestsRequest, Message
from common.ring import Ring
from common.wake import Wake
from workers.storage.behind import Behind
from workers.storage.exchange import Exchange
from workers.storage.node import Node, Partitions, bitmap_of, partitions_of
from workers.storage.peers import Peers
from workers.storage.store import Store

LOOK_S: Final = 1.0
ASKING_S: Final = 0.1  # between looks while owners are asked
ROUND_S: Final = 90.0  # after which owners that have not answered are not waited for
RETRY_S: Final = 60.0  # between two rounds of asking
CLAIM_S: Final = 60.0  # between looks whether the ring store still knows the store id

logger = log.get("storage.keeper")


class Round:
    """One time of asking the owners of partitions. Constant, but for what is still to be asked and answered.

    partitions: those that are to be dropped; counts: points of them here, by partition; end_ns: the last time of those;
    unsent, asked: by owner what it is asked; missing: by partition, owners that have not confirmed.
    """

    def __init__(
        self, ring: Ring, partitions: Partitions, counts: npt.NDArray[np.int64], end_ns: int, now_s: float
    ) -> None:
        self.ring = ring
        self.partitions = partitions
        self.counts = counts
        self.end_ns = end_ns
        self.until_s = now_s + ROUND_S
        self.unsent: dict[str, Partitions] = {}
        self.asked: dict[str, Partitions] = {}
        self.missing = np.zeros(len(partitions), np.int64)
        self.lack: Partitions = np.zeros(len(partitions), np.bool_)  # of which an owner has fewer points
        self.trouble = ""
        for partition in np.flatnonzero(partitions).tolist():
            for owner in ring.owners(partition):
                self.unsent.setdefault(owner.id, np.zeros(len(partitions), np.bool_))[partition] = True
                self.missing[partition] += 1

    def take(self, owner: str, message: Message) -> None:
        """Note what an owner says. Raises ProtocolError."""
        wanted = self.asked.pop(owner)
        if message.kind != protocol.REPLY:
            self.trouble = f"{owner}: {protocol.decode_body(message.body, protocol.ErrorReply).message}"
            return
        if message.header.ring_hash != self.ring.hash:
            self.trouble = f"{owner} is at epoch {message.header.epoch}, this node at {self.ring.epoch}"
            return
        reply = protocol.decode_body(message.body, DigestsReply)
        counts = counts_of(reply, len(wanted))
        holds = wanted & (counts >= self.counts)
        if (wanted & ~holds).any():
            lacking = int(np.flatnonzero(wanted & ~holds)[0])
            self.trouble = (
                f"{owner} has {max(0, int(counts[lacking]))} points of partition {lacking}, "
                f"of which {int(self.counts[lacking])} are here"
            )
        self.lack |= wanted & ~holds & (counts >= 0)
        self.missing -= holds

    @property
    def confirmed(self) -> Partitions:
        """The partitions that all owners hold."""
        found: Partitions = self.partitions & (self.missing == 0)
        return found


def counts_of(reply: DigestsReply, partitions: int) -> npt.NDArray[np.int64]:
    """Points by partition, -1 where the reply does not cover it. Raises ProtocolError."""
    covered = partitions_of(reply.partitions, partitions)
    counts = np.frombuffer(reply.counts, "<i8") if len(reply.counts) % 8 == 0 else np.empty(0, np.int64)
    if len(counts) != int(covered.sum()):
        raise ProtocolError(f"counts of {len(counts)} partitions, want {int(covered.sum())}")
    found = np.full(partitions, -1, np.int64)
    found[covered] = counts
    return found


class Keeper:
    """See the module's text."""

    def __init__(
        self, sockets: bus.Bus, node: Node, store: Store, here: Exchange, behind: Behind, grace_s: float
    ) -> None:
        """here: answers for all that lies in this store."""
        self._wake = Wake()
        self._node = node
        self._store = store
        self._here = here
        self._behind = behind
        self._grace_s = grace_s
        self._poller = bus.Poller([self._wake])
        self._peers: Peers[str] = Peers(sockets, node, self._poller)
        self._left_s = np.full(node.view.ring.partitions, np.nan)  # monotonic: since when neither owned nor joined
        self._round: Round | None = None
        self._next_round_s = 0.0
        self._next_claim_s = clock.monotonic_s() + CLAIM_S  # claimed at the start
        self._waiting = 0
        self._lack = 0  # of those, partitions of which an owner has fewer points
        self._trouble = ""

    def wake(self) -> None:
        """There is something to see to. Any thread."""
        self._wake.set()

    def status(self) -> dict[str, Any]:
        """What waits to be forgotten: how many partitions, and why they still do. Any thread."""
        return {"partitions": self._waiting, "owners_lack": self._lack, "trouble": self._trouble}

    def run(self, stop: process.Stop) -> None:
        """Work until `stop`."""
        self._poller.register(stop)
        while stop not in (ready := self._poller.poll(LOOK_S if self._round is None else ASKING_S)):
            self._wake.clear()
            for source in ready:
                for owner, message in self._peers.replies(source):
                    self._take(owner, message)
            self.look()
        self._peers.close()

    def look(self) -> None:
        """See to everything once."""
        self._settle()
        try:
            self._forget()
        except (MinitrueError, OSError) as error:
            self._trouble = str(error)
            self._end_round()
            if logger.limited("forget", 60.0):
                logger.warning("partitions not forgotten yet", reason=str(error))

    def _settle(self) -> None:
        try:
            self._behind.settle(self._node.view.written)
            if clock.monotonic_s() >= self._next_claim_s:
                self._next_claim_s = clock.monotonic_s() + CLAIM_S
                self._behind.claim_again()
        except (RingStoreError, OSError) as error:
            if logger.limited("settle", 30.0):
                logger.warning("what this node lacks is not on record yet", reason=str(error))

    def _forget(self) -> None:
        now_s, view = clock.monotonic_s(), self._node.view
        left = self._store.stored_partitions() & ~view.written
        self._left_s = np.where(left, np.where(np.isnan(self._left_s), now_s, self._left_s), np.nan)
        self._waiting = int(left.sum())
        if self._round is None:
            due = left & (now_s - np.nan_to_num(self._left_s, nan=now_s) >= self._grace_s)
            if due.any() and now_s >= self._next_round_s:
                self._begin_round(view.ring, due, now_s)
            elif not left.any():
                self._lack, self._trouble = 0, ""
        elif self._round.ring is not view.ring:
            self._end_round()
            self._next_round_s = now_s  # another ring: its owners are to be asked
        else:
            self._ask(self._round, now_s)

    def _begin_round(self, ring: Ring, due: Partitions, now_s: float) -> None:
        end_ns = self._store.last_time_of(due)
        request = DigestsRequest(self._store.delete_number, bitmap_of(due), end_ns=end_ns)
        self._round = Round(ring, due, counts_of(self._here.digests(request), len(due)), end_ns, now_s)
        self._next_round_s = now_s + RETRY_S
        self._ask(self._round, now_s)

    def _ask(self, asking: Round, now_s: float) -> None:
        """Ask what is not asked yet; at the end drop what is confirmed."""
        for owner, wanted in list(asking.unsent.items()):
            request = DigestsRequest(self._store.delete_number, bitmap_of(wanted), end_ns=asking.end_ns)
            if self._peers.ask(asking.ring.node(owner), protocol.DIGESTS, request, owner):
                asking.asked[owner] = asking.unsent.pop(owner)
        for owner, why in self._peers.lost():
            asking.asked.pop(owner, None)
            asking.trouble = why
        if not (asking.unsent or asking.asked) or now_s > asking.until_s:
            for owner in asking.unsent:
                asking.trouble = self._peers.why_not(asking.ring.node(owner))
            self._finish_round(asking)

    def _take(self, owner: str, message: Message) -> None:
        if self._round is None or owner not in self._round.asked:
            return  # a round that is over
        try:
            self._round.take(owner, message)
        except ProtocolError as error:
            self._round.trouble = f"{owner}: {error}"

    def _finish_round(self, asking: Round) -> None:
        confirmed, self._trouble, self._lack = asking.confirmed, asking.trouble, int(asking.lack.sum())
        self._end_round()
        if confirmed.any():
            self._store.drop(confirmed)
            logger.info("partitions dropped", partitions=int(confirmed.sum()), epoch=asking.ring.epoch)
        if asking.trouble and logger.limited("kept", 600.0):
            waiting = int((asking.partitions & ~confirmed).sum())
            logger.warning("given away, and kept until all owners have it", partitions=waiting, reason=asking.trouble)

    def _end_round(self) -> None:
        if self._round is not None:
            for owner in self._round.asked:
                self._peers.forget(owner)
        self._round = None
