"""Which nodes serve a job of repair, and for which partitions.

Owns nothing that lasts: the ring is the node's as it is at the moment, the marks are those of the ring store. A node
that has a mark serves nobody: it may lack acknowledged points. Belongs to the repair thread.
"""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from common.errors import MinitrueError, RingStoreError
from common.ring import Node as RingNode
from common.ringstore import Mark
from workers.storage import jobs
from workers.storage.jobs import Job, Leg
from workers.storage.node import Node


class TryAgainError(MinitrueError):
    """What ends an attempt, and may be better later."""


class HopelessError(MinitrueError):
    """What ends a job."""


class Serving:
    """The other nodes, as a node's repair sees them. marks: those of the ring store, RingStoreError if unreadable."""

    def __init__(self, node: Node, marks: Callable[[], frozenset[Mark]]) -> None:
        self._node = node
        self._marks = marks

    def next_legs(self, job: Job, failures: Counter[str]) -> list[Leg]:
        """Who is to be asked for what, when a job has come to the end of what it knew; none when it is done.

        failures: of legs, by peer. Raises TryAgainError while nobody can be asked.
        """
        if job.kind == jobs.REFILL:
            return self._legs_of_refill(failures)
        if job.legs:
            return []
        if job.kind == jobs.PULL:
            return [Leg(job.peer, job.partitions)]
        shared, marked = self._shared(job.partitions), self.marked()
        behind = sorted(set(shared) & marked)
        if behind:
            job.note = f"not compared with {', '.join(behind)}: behind"
        return [Leg(peer, partitions) for peer, partitions in shared.items() if peer not in marked]

    def peer(self, job: Job, leg: Leg) -> RingNode:
        """The peer of a leg, as the ring has it now. Partitions that either lost are left out of a repair.

        Raises HopelessError where that ends a pull, TryAgainError for a peer that is not there or is behind.
        """
        view = self._node.view
        if job.kind != jobs.PULL:
            leg.partitions = self._shared([each for each in leg.partitions if view.written[each]]).get(leg.peer, [])
        elif not view.ring.has(leg.peer):
            raise HopelessError(f"{leg.peer} is not in the ring of epoch {view.ring.epoch}")
        elif not view.written[list(leg.partitions)].all():
            raise HopelessError(f"some of the partitions are not this node's any more at epoch {view.ring.epoch}")
        if not view.ring.has(leg.peer):
            raise TryAgainError(f"{leg.peer} is not in the ring of epoch {view.ring.epoch}")
        self.check_current(leg.peer)
        return view.ring.node(leg.peer)

    def check_current(self, peer: str) -> None:
        """Raise TryAgainError for a peer that has a mark."""
        if peer in self.marked():
            raise TryAgainError(f"{peer} is behind: it may lack points itself")

    def marked(self) -> set[str]:
        """The nodes that have a mark. Raises TryAgainError while that is not known."""
        try:
            return {mark.node for mark in self._marks()}
        except RingStoreError as error:
            raise TryAgainError(f"marks unreadable: {error}") from error

    def _legs_of_refill(self, failures: Counter[str]) -> list[Leg]:
        """For each partition of which this node is behind a co-owner that is current, with the fewest failures."""
        lacking = np.flatnonzero(self._node.view.behind & self._node.view.written).tolist()
        if not lacking:
            return []
        marked, left, legs = self.marked(), set(lacking), []
        for peer, partitions in sorted(self._shared(lacking).items(), key=lambda each: failures[each[0]]):
            mine = [each for each in partitions if each in left and peer not in marked]
            left.difference_update(mine)
            if mine:
                legs.append(Leg(peer, mine))
        if not legs:
            raise TryAgainError(f"{len(lacking)} partitions, such as {lacking[0]}, have no co-owner that is current")
        return legs

    def _shared(self, partitions: Sequence[int]) -> dict[str, list[int]]:
        """Some partitions by their other owners, in the order of the ring's nodes."""
        ring, shared = self._node.view.ring, dict[str, list[int]]()
        for partition in partitions:
            for owner in ring.owners(partition):
                if owner.id != self._node.node_id:
                    shared.setdefault(owner.id, []).append(partition)
        return dict(sorted(shared.items()))
