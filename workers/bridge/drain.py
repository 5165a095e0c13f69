"""The way out of a spool: what of it is on its way, and to whom each record has to go by today's ring.

Owns what was taken from one spool and is not done yet, and its bound: a drain has a small window of its own, so that
live batches never wait behind it. What was taken stays taken, in memory, until it is done, however often its node
goes down meanwhile: nothing is spooled twice. Never sends: delivery.py does. Belongs to the loop's thread.
"""

from collections.abc import Iterator
from typing import Final

from common.points import PointBatch
from common.ring import Ring
from common.series import partition_of
from workers.bridge.batch import Batch
from workers.bridge.spool import Entry, Spool

DRAIN_BYTES: Final = 1 << 20  # of records on their way: a fraction of bridge.window_bytes, and enough for
# 100 MB/s at the milliseconds that a node takes for an ack
DRAIN_RECORDS: Final = 64  # records of few points cost more in objects than in bytes, and in time of a turn


class Drain:
    """One spool on its way out."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._taken: list[Entry] = []

    @property
    def is_done(self) -> bool:
        """Whether everything is where it has to be, and the spool empty."""
        return self._spool.is_empty and not any(entry.waiting for entry in self._taken)

    def take(self) -> Iterator[Entry]:
        """The next records, as many as the window has room for; take one only when it can be sent on."""
        self._taken = [entry for entry in self._taken if entry.waiting]
        taken_bytes = sum(len(entry.batch.body) for entry in self._taken)
        while len(self._taken) < DRAIN_RECORDS and taken_bytes < DRAIN_BYTES:
            entry = self._spool.next()
            if entry is None:
                return
            self._taken.append(entry)
            taken_bytes += len(entry.batch.body)
            yield entry


def destinations(batch: Batch, node_id: str, ring: Ring) -> list[list[str]]:
    """For each key of a batch's table, the nodes that its points have to reach by this ring.

    node_id: the one that the batch was made for. Where the owners have not changed since, the batch goes to it
    alone, as every other one had a batch of its own; else to all that take its points today, those that join too.
    """
    since, known = ring.since, dict[int, list[str]]()
    found = []
    for key in PointBatch.decode(batch.body).keys:
        partition = partition_of(key, ring.partitions)
        nodes = known.get(partition)
        if nodes is None:
            writers = [node.id for node in ring.writers(partition)]
            own = node_id in writers and since[partition] <= batch.epoch
            nodes = known[partition] = [node_id] if own else writers
        found.append(nodes)
    return found
