"""What one storage process knows of itself and of its cluster: identity, ring, bridges heard, frames ignored.

Shared by the writer thread (which adopts rings and notes bridges) and the server thread (which reads): every
attribute is either constant after construction or replaced whole, so a reader sees the old or the new one. What it
lacks (behind.py) is told by any thread.
The counters belong to the thread named in `ignore`; dict updates are atomic under the GIL.
"""

import itertools
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from common import clock, protocol
from common.errors import ProtocolError
from common.protocol import Header
from common.ring import Ring
from workers.storage.work import RefusedError

Partitions = npt.NDArray[np.bool_]  # by partition

_SHOWN: Final = 8  # partitions named in a text


@dataclass(frozen=True)
class BridgeSeen:
    """The last beat of a bridge. heard_s: monotonic."""

    incarnation: int
    heard_s: float
    beat: protocol.Beat


@dataclass(frozen=True)
class Ownership:
    """The ring as one node sees it. By partition, bool: constant.

    owned: it is an owner; written: it takes points, as owner or because it joins; behind: it may lack points of it;
    fenced: about to move away, takes no points; closed: and answers no questions; answered: it answers questions, so it
    owns it and nothing is in the way. bitmap: `answered` as the protocol has it.
    """

    ring: Ring
    owned: Partitions
    written: Partitions
    behind: Partitions
    fenced: Partitions
    closed: Partitions
    answered: Partitions
    bitmap: bytes

    @classmethod
    def of(
        cls,
        ring: Ring,
        node_id: str,
        behind: Partitions | None = None,
        fenced: Partitions | None = None,
        closed: Partitions | None = None,
    ) -> "Ownership":
        """What `ring` gives to a node. A node that is not in the ring owns nothing."""
        owned = _among(ring, ring.owned_partitions(node_id))
        written = _among(ring, ring.written_partitions(node_id))
        behind = np.zeros_like(owned) if behind is None else behind
        fenced = np.zeros_like(owned) if fenced is None else fenced
        closed = np.zeros_like(owned) if closed is None else closed
        answered = owned & ~behind & ~closed
        return cls(ring, owned, written, behind, fenced, closed, answered, bitmap_of(answered))

    def cover(self, asked: bytes) -> bytes:
        """The partitions of a request that this node answers for.

        Raises ProtocolError for another ring's size, RefusedError where there are none and it is not because
        of the ring: the asker is told what to wait for.
        """
        if asked == self.bitmap:
            return asked
        covered = _common(asked, self.bitmap)
        if not any(covered):
            self._refuse(partitions_of(asked, len(self.owned)) & self.owned)
        return covered

    @property
    def held_bitmap(self) -> bytes:
        """The partitions of which this node tells other stores what it holds: those that it takes points of, fenced or
        not, unless it is behind: who compares with it takes it for current.
        """
        return bitmap_of(self.written & ~self.behind)

    def _refuse(self, wanted: Partitions) -> None:
        """Raise what explains why none of some partitions is answered for; nothing for none."""
        if (wanted & self.behind).any():
            raise RefusedError(
                protocol.ERR_BEHIND, f"may lack points of partitions {_listed(wanted & self.behind)}: ask another owner"
            )
        if (wanted & self.closed).any():
            raise RefusedError(
                protocol.ERR_MOVING, f"partitions {_listed(wanted & self.closed)} move away, epoch {self.ring.epoch}"
            )


def bitmap_of(partitions: Partitions) -> bytes:
    """Partitions as a bitmap of the protocol."""
    return np.packbits(partitions, bitorder="little").tobytes()


def partitions_of(bitmap: bytes, count: int) -> Partitions:
    """The partitions in a bitmap, bool by partition. Raises ProtocolError for one of another size."""
    if len(bitmap) != (count + 7) // 8:
        raise ProtocolError(f"bitmap of {len(bitmap)} bytes, want {(count + 7) // 8}")
    return np.unpackbits(np.frombuffer(bitmap, np.uint8), count=count, bitorder="little").view(np.bool_)


def _among(ring: Ring, partitions: npt.NDArray[np.int64]) -> Partitions:
    found = np.zeros(ring.partitions, np.bool_)
    found[partitions] = True
    return found


def _common(one: bytes, other: bytes) -> bytes:
    if len(one) != len(other):
        raise ProtocolError(f"bitmap of {len(one)} bytes, want {len(other)}")
    both = int.from_bytes(one, "big") & int.from_bytes(other, "big")
    return both.to_bytes(len(one), "big")


def _listed(partitions: Partitions) -> str:
    numbers = np.flatnonzero(partitions).tolist()
    return ", ".join(map(str, numbers[:_SHOWN])) + (f" and {len(numbers) - _SHOWN} more" if numbers[_SHOWN:] else "")


@dataclass
class Node:
    """One storage process. cluster, node_id, incarnation: constant; view: replaced under `_lock`.

    sequence: numbers the messages of this incarnation. told_epoch: the highest that a request has come with, of a ring
    that may be newer than ours; waiting: requests that wait for a newer ring; server thread. not_adopted: a newer ring
    that cannot be taken over yet, epoch and reason; confirmed_s: monotonic, when the ring store was last known to hold
    the ring in force; trouble: why that is not known just now, "" for nothing; writer thread. looked: called by the
    writer after it has looked for a newer ring.
    """

    cluster: str
    node_id: str
    view: Ownership
    incarnation: int = field(default_factory=lambda: secrets.randbits(63) | 1)
    started_s: float = field(default_factory=clock.monotonic_s)
    bridges: dict[str, BridgeSeen] = field(default_factory=dict)
    ignored: Counter[str] = field(default_factory=Counter)
    sequence: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    told_epoch: int = 0
    waiting: int = 0
    not_adopted: tuple[int, str] | None = None
    confirmed_s: float = float("-inf")
    trouble: str = ""
    looked: Callable[[], None] = lambda: None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def header(self, to: Header) -> Header:
        """The header of an answer to a message."""
        ring = self.view.ring
        return Header(
            version=protocol.VERSION,
            cluster=self.cluster,
            destination=to.sender,
            sender=self.node_id,
            incarnation=self.incarnation,
            sequence=next(self.sequence),
            epoch=ring.epoch,
            ring_hash=ring.hash,
            re=to.sequence,
            re_incarnation=to.incarnation,
        )

    def adopt(self, ring: Ring, fenced: Partitions | None = None, closed: Partitions | None = None) -> None:
        """Take over a newer ring, with these fences. Writer thread only, between two groups."""
        with self._lock:
            self.view = Ownership.of(ring, self.node_id, self.view.behind, fenced, closed)

    def fence(self, fenced: Partitions, closed: Partitions) -> None:
        """Other fences. Writer thread only, between two groups."""
        with self._lock:
            self.view = Ownership.of(self.view.ring, self.node_id, self.view.behind, fenced, closed)

    def lack(self, behind: Partitions) -> None:
        """Be behind for other partitions. Any thread."""
        with self._lock:
            self.view = Ownership.of(self.view.ring, self.node_id, behind, self.view.fenced, self.view.closed)

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
