"""Batches that a node refused because of the ring: what they wait for until they are split again.

A node refuses a batch by a ring that is newer or older than the bridge's, or because it has fenced partitions that are
about to change their owners (`moving`). The first waits for a newer ring here, the second until the node shows that it
has one, the third for the change. All are tried again after a while anyway: a fence may lapse, an answer be lost.
A batch waits whole: PUBACKs go out in order of receipt, its other points would win nothing. Pure.
"""

from typing import Final, NamedTuple

from common import protocol
from common.ring import Ring
from workers.bridge.batch import Batch

# Before a batch is tried again without a newer ring, by the reason of its refusal.
AGAIN_S: Final = {protocol.ERR_STALE_EPOCH: 1.0, protocol.ERR_NOT_MINE: 1.0, protocol.ERR_MOVING: 1.0}
# The same for one batch of those that wait for the fences of a node. These last a moment, PUBACKs wait for it, and a
# node that is asked again shows that its ring has changed; all the others, asked too, would only keep it busy.
FENCED_S: Final = 0.025


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
