"""The live feed: points that have just become durable, published to whoever has subscribed.

Owns the XPUB and its sequence; runs in the writer thread, after the acks, and never waits: a subscriber that does not
keep up misses messages, and sees that by the gap in their sequence. Of a partition only the first owner publishes.
While nobody has subscribed nothing is encoded, only counted.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from common import bus, protocol
from common.points import PointBatch
from common.protocol import Header
from common.ring import Ring
from workers.storage.limits import LoggedBatch
from workers.storage.node import Node
from workers.storage.store import Store

_NOTHING: Final = PointBatch([], np.empty(0, np.uint32), np.empty(0, np.int64), np.empty(0, np.float64)).encode()


class Feed:
    """socket: readable when somebody has subscribed or left; then call `look`. published: messages, read by any thread.

    Messages are numbered from 1 in each process. To a new subscriber a message without points is sent, which bears the
    number of the last one: from then on it misses nothing unseen.
    """

    def __init__(self, socket: bus.Publisher, node: Node, store: Store) -> None:
        self.socket = socket
        self.published = 0
        self._node = node
        self._store = store
        self._sequence = 0
        self._ring: Ring | None = None
        self._first: npt.NDArray[np.bool_] = np.empty(0, np.bool_)

    def look(self) -> None:
        """Note who has come and gone, and greet who has come."""
        if self.socket.look():
            self._send(_NOTHING)

    def publish(self, stored: Sequence[LoggedBatch]) -> None:
        """Publish what has just been stored, as far as this node is the first owner."""
        self.look()
        if not self.socket.subscribers:
            self._sequence += len(stored)  # so that one whose connection was broken sees that it has missed some
            return
        for logged in stored:
            body = self._mine(logged)
            if body is not None:
                self._sequence += 1
                self._send(body)
                self.published += 1

    def _mine(self, logged: LoggedBatch) -> bytes | None:
        """The rows of partitions of which we are the first owner, encoded; None when there are none."""
        ring = self._node.view.ring
        if ring is not self._ring:
            self._ring, self._first = ring, _first_owned(ring, self._node.node_id)
        mine = self._first[self._store.partitions_of(logged.batch.keys)]
        if mine.all():
            return logged.body
        return logged.batch.take(mine[logged.batch.index]).encode() if mine.any() else None

    def _send(self, body: bytes) -> None:
        ring = self._node.view.ring
        header = Header(
            protocol.VERSION, self._node.cluster, protocol.ANY, self._node.node_id, self._node.incarnation,
            self._sequence, ring.epoch, ring.hash,
        )  # fmt: skip
        self.socket.send(protocol.pack(protocol.LIVE, header, body))


def _first_owned(ring: Ring, node: str) -> npt.NDArray[np.bool_]:
    """By partition, whether a node is its first owner."""
    places = [at for at, each in enumerate(ring.nodes) if each.id == node]
    return np.isin(ring.owner_table[:, 0], places)
