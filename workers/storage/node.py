"""What one storage process knows of itself and of its cluster: identity, ring, bridges heard, frames ignored.

Shared by the writer thread (which adopts rings and notes bridges) and the server thread (which reads): every
attribute is either constant after construction or replaced whole, so a reader sees the old or the new one.
The counters belong to the thread named in `ignore`; dict updates are atomic under the GIL.
"""

import itertools
import secrets
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from common import clock, protocol
from common.errors import ProtocolError
from common.protocol import Header
from common.ring import Ring


@dataclass(frozen=True)
class BridgeSeen:
    """The last beat of a bridge. heard_s: monotonic."""

    incarnation: int
    heard_s: float
    beat: protocol.Beat


@dataclass(frozen=True)
class Ownership:
    """The ring as one node sees it. owned: bool per partition, and the same as a bitmap of the protocol."""

    ring: Ring
    owned: npt.NDArray[np.bool_]
    bitmap: bytes

    @classmethod
    def of(cls, ring: Ring, node_id: str) -> "Ownership":
        """What `ring` gives to a node. A node that is not in the ring owns nothing."""
        owned = np.zeros(ring.partitions, dtype=np.bool_)
        owned[ring.owned_partitions(node_id)] = True
        return cls(ring, owned, ring.owned_bitmap(node_id))

    def cover(self, asked: bytes) -> bytes:
        """The partitions of a request that this node answers for. Raises ProtocolError for another ring's size."""
        if asked == self.bitmap:
            return asked
        if len(asked) != len(self.bitmap):
            raise ProtocolError(f"bitmap of {len(asked)} bytes, want {len(self.bitmap)}")
        both = int.from_bytes(asked, "big") & int.from_bytes(self.bitmap, "big")
        return both.to_bytes(len(asked), "big")


@dataclass
class Node:
    """One storage process. cluster, node_id, incarnation: constant; view: replaced by the writer thread.

    told_epoch: the highest that a request has come with, of a ring that may be newer than ours; server thread.
    not_adopted: a newer ring that cannot be taken over yet, epoch and reason; writer thread.
    """

    cluster: str
    node_id: str
    view: Ownership
    incarnation: int = field(default_factory=lambda: secrets.randbits(63) | 1)
    started_s: float = field(default_factory=clock.monotonic_s)
    bridges: dict[str, BridgeSeen] = field(default_factory=dict)
    ignored: Counter[str] = field(default_factory=Counter)
    told_epoch: int = 0
    not_adopted: tuple[int, str] | None = None
    _sequence: Any = field(default_factory=lambda: itertools.count(1))

    def header(self, to: Header) -> Header:
        """The header of an answer to a message."""
        ring = self.view.ring
        return Header(
            version=protocol.VERSION,
            cluster=self.cluster,
            destination=to.sender,
            sender=self.node_id,
            incarnation=self.incarnation,
            sequence=next(self._sequence),
            epoch=ring.epoch,
            ring_hash=ring.hash,
            re=to.sequence,
            re_incarnation=to.incarnation,
        )

    def adopt(self, ring: Ring) -> None:
        """Take over a newer ring. Writer thread only, between two groups."""
        self.view = Ownership.of(ring, self.node_id)

    def ignore(self, reason: str) -> None:
        """Count a frame that was not for this process. Any thread."""
        self.ignored[reason] += 1

    def hear(self, header: Header, beat: protocol.Beat) -> None:
        """Note a bridge's sign of life."""
        self.bridges[header.sender] = BridgeSeen(header.incarnation, clock.monotonic_s(), beat)

    def bridges_seen(self) -> dict[str, tuple[float, BridgeSeen]]:
        """Bridges by id with the seconds since each was heard."""
        now = clock.monotonic_s()
        return {bridge: (now - seen.heard_s, seen) for bridge, seen in list(self.bridges.items())}
