"""What people want of a ring, as its next epoch, and what carrying that out will take. Pure: no I/O, any thread.

The owners stay as they are: a change says only what the target is (common/ringmoves.py).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from common.errors import RingError
from common.ring import ACTIVE, DRAINING, MAX_NODES, MAX_REPLICATION, Node, Ring
from common.ringmoves import Step, changed, least_moves, shares, steps

UNKNOWN_RATE: Final = 32 << 20  # bytes a second and target, where no rate is given: storage.repair_rate_bytes


def added(ring: Ring, node: Node) -> Ring:
    """With one node more; one that was draining stays. Raises RingError."""
    if ring.has(node.id):
        if ring.node(node.id).state == ACTIVE:
            raise RingError(f"node {node.id} is in the ring already, see: ringctl show")
        return _with(ring, node.id, state=ACTIVE)
    if len(ring.nodes) == MAX_NODES:
        raise RingError(f"nodes must number 1 to {MAX_NODES} (the ring has as many)")
    return changed(ring, [*ring.nodes, node], ring.replication)


def removed(ring: Ring, node_id: str) -> Ring:
    """With a node draining. Raises RingError."""
    ring.node(node_id)
    _check_enough(ring, ring.replication, {node_id})
    return _with(ring, node_id, state=DRAINING)


def replaced(ring: Ring, old: str, new: Node) -> Ring:
    """With a node draining and another one in its place. Raises RingError."""
    ring.node(old)
    if ring.has(new.id):
        raise RingError(f"node {new.id} is in the ring already, want one that is not")
    drained = [_but(node, state=DRAINING) if node.id == old else node for node in ring.nodes]
    return changed(ring, [*drained, new], ring.replication)


def weighted(ring: Ring, node_id: str, weight: float) -> Ring:
    """With another weight of a node. Raises RingError."""
    return _with(ring, node_id, weight=weight)


def zoned(ring: Ring, node_id: str, zone: str) -> Ring:
    """With a node in another zone. Raises RingError."""
    return _with(ring, node_id, zone=zone)


def replicated(ring: Ring, replication: int) -> Ring:
    """With another number of owners for each partition. Raises RingError."""
    _check_enough(ring, replication, set())
    return changed(ring, ring.nodes, replication)


def rebased(before: Ring, after: Ring, now: Ring) -> Ring | None:
    """The change from before to after on a later ring, where deletes are all that came between; None otherwise."""
    if _but_for_deletes(before) != _but_for_deletes(now):
        return None
    epoch = now.epoch + 1
    since = np.where(after.since > before.epoch, epoch, after.since)  # what changed has to be later than any ring seen
    return dataclasses.replace(after, epoch=epoch, since=since, deletes=now.deletes)


def _but_for_deletes(ring: Ring) -> dict[str, Any]:
    return {**ring.document(), "epoch": 0, "deletes": []}


def _check_enough(ring: Ring, replication: int, without: set[str]) -> None:
    if not 1 <= replication <= MAX_REPLICATION:
        raise RingError(f"replication must be 1 to {MAX_REPLICATION} (was {replication})")
    left = [node for node in ring.active_nodes if node.id not in without]
    if len(left) < replication:
        if replication > ring.replication:
            raise RingError(
                f"{replication} owners of each partition need as many nodes, there are {len(left)}: add one"
            )
        raise RingError(
            f"{len(left)} nodes would be left for {replication} owners of each partition: add one first, or lower the "
            "replication"
        )


def _with(ring: Ring, node_id: str, **values: Any) -> Ring:
    ring.node(node_id)
    nodes = [_but(node, **values) if node.id == node_id else node for node in ring.nodes]
    return changed(ring, nodes, ring.replication)


def _but(node: Node, **values: Any) -> Node:
    return msgspec.structs.replace(node, **values)


class Share(msgspec.Struct, frozen=True):
    """One node of a plan: how many partitions it owns, will own, and should own by weight; what comes and goes."""

    node: str
    state: str
    before: int
    after: int
    share: float
    coming: int
    going: int
    bytes: int


class Plan(NamedTuple):
    """What is to be done. least: how many partitions have to be copied at the very least; copied: how many are.

    points, bytes: of those, estimated from what nodes hold now; None where none of them answers. seconds: at the rate,
    targets working side by side.
    """

    copied: int
    dropped: int
    least: int
    points: int | None
    bytes: int | None
    seconds: float | None
    nodes: list[Share]

    @property
    def is_empty(self) -> bool:
        """Whether nothing is to be done."""
        return not (self.copied or self.dropped) and all(share.state == ACTIVE for share in self.nodes)


def plan(ring: Ring, statuses: Mapping[str, Mapping[str, Any]], rate_bytes: int | None) -> Plan:
    """What separates a ring from its target. statuses: of nodes that answer. rate_bytes: a second and target."""
    todo = [*steps(ring), *(Step(*move) for move in ring.moves)]
    copies = [step for step in todo if step.target is not None]
    sizes = _sizes(ring, statuses)
    moved = [_size(ring, step, sizes) for step in copies]
    known = bool(sizes) or not copies
    by_target: dict[str, int] = {}
    for step, (_, size) in zip(copies, moved, strict=True):
        by_target[str(step.target)] = by_target.get(str(step.target), 0) + round(size)
    rate = rate_bytes or UNKNOWN_RATE
    return Plan(
        copied=len(copies),
        dropped=len(todo) - len(copies),
        least=least_moves(ring) + len(ring.moves),
        points=round(sum(points for points, _ in moved)) if known else None,
        bytes=sum(by_target.values()) if known else None,
        seconds=max(by_target.values(), default=0) / rate if known else None,
        nodes=_shares(ring, todo, by_target),
    )


def _sizes(ring: Ring, statuses: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[float, float]]:
    """Points and bytes of a partition, on average, by node that has some."""
    sizes = {}
    for node, status in statuses.items():
        held = len(ring.owned_partitions(node))
        if held:
            points, segments, wal = (float(status.get(key) or 0) for key in ("points", "segment_bytes", "wal_bytes"))
            sizes[node] = points / held, (segments + wal) / held
    return sizes


def _size(ring: Ring, step: Step, sizes: Mapping[str, tuple[float, float]]) -> tuple[float, float]:
    owners = [sizes[node.id] for node in ring.owners(step.partition) if node.id in sizes]
    first = sizes.get(step.source or "")
    if first is not None:
        return first
    return owners[0] if owners else (0.0, 0.0)


def _shares(ring: Ring, todo: Sequence[Step], by_target: Mapping[str, int]) -> list[Share]:
    wanted = shares(ring).tolist()
    counts = np.bincount(ring.owner_table[ring.owner_table >= 0], minlength=len(ring.nodes)).tolist()
    found = []
    for node, before, share in zip(ring.nodes, counts, wanted, strict=True):
        coming = sum(step.target == node.id for step in todo)
        going = sum(step.source == node.id for step in todo)
        after, size = before + coming - going, by_target.get(node.id, 0)
        found.append(Share(node.id, node.state, before, after, round(share, 3), coming, going, size))
    return found
