"""Batches that a node refused because of the ring: what they wait for until they are split again.

A node refuses a batch by a ring that is newer or older than the bridge's, or because it has fenced partitions that are
about to change their owners (`moving`). The first waits for a newer ring here, the second until the node shows that it
has one, the third for the change. All are tried again after a while anyway: a fence may lapse, an answer be lost.
Points of partitions that do not move never wait for those that do. Pure.
"""

from collections.abc import Set
from typing import Final, NamedTuple

from common import protocol
from common.points import PointBatch
from common.ring import Ring
from common.series import partition_of
from workers.bridge.batch import Batch, split

RESPLIT_S: Final = 1.0  # before a batch that its node disowns is tried again without a newer ring
MOVING_S: Final = 0.2  # the same of fenced partitions: what a lapsed fence costs is short beside how long that took
ROUTED_AGAIN: Final = (protocol.ERR_STALE_EPOCH, protocol.ERR_NOT_MINE, protocol.ERR_MOVING)

_STAYS, _MOVES = "stays", "moves"


class Misrouted(NamedTuple):
    """A batch to be split again, not before a time unless a ring is newer. node_id: whose it was; drained: as of a
    Flight; epoch: of the node's ring as heard when it refused.
    """

    not_before_s: float
    batch: Batch
    node_id: str
    drained: bool
    epoch: int

    def is_due(self, now: float, ring: Ring, their_epoch: int) -> bool:
        """Whether to split it. their_epoch: of the node's ring as last heard."""
        return self.batch.epoch < ring.epoch or their_epoch > self.epoch or now >= self.not_before_s


def apart(batch: Batch, moving: Set[int], partitions: int) -> tuple[Batch | None, Batch | None]:
    """What of a batch stays and what moves, both of its ring still; one of them is the batch, where that is all of it.

    moving: partitions on their way. A batch of which nothing is on its way by our ring moves whole: its node says so.
    """
    keys = PointBatch.decode(batch.body).keys
    moves = [partition_of(key, partitions) in moving for key in keys]
    if all(moves) or not any(moves):
        return None, batch
    ways = [[_MOVES] if each else [_STAYS] for each in moves]
    parts = dict(split(batch, ways, batch.epoch, batch.ring_hash))
    return parts[_STAYS], parts[_MOVES]
