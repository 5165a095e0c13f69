"""By which rules one ring follows another: what may be saved over a ring, and what replaces the one in force.

Pure: no I/O, no state, any thread.
"""

import numpy as np
from numpy.typing import NDArray

from common.errors import RingConflictError, RingError
from common.ring import MAX_REPLICATION, NOBODY, Ring


def check_follows(ring: Ring, stored: Ring | None, expected_epoch: int, where: str) -> None:
    """Whether a ring may be saved over the stored one. where: the store, for texts.

    Raises RingConflictError where the stored epoch is another than expected, RingError where the ring cannot follow.
    """
    epoch = stored.epoch if stored else 0
    if epoch != expected_epoch:
        raise RingConflictError(
            f"{where} is at epoch {epoch}, want {expected_epoch}: another writer was first, look at it again"
        )
    if ring.epoch != expected_epoch + 1:
        raise RingError(f"epoch {ring.epoch} cannot follow {expected_epoch}, want {expected_epoch + 1}")
    fault = (_foreign(ring, stored) or _lost_deletes(ring, stored) or _lost_moves(ring, stored)) if stored else None
    if fault:
        raise RingError(f"{where}: {fault}")


def _foreign(ring: Ring, known: Ring) -> str | None:
    """Why a ring is not a later state of a known one's cluster, or None."""
    if ring.cluster != known.cluster:
        return f"ring of cluster {ring.cluster}, want {known.cluster}"
    if ring.partitions != known.partitions:
        return f"ring of {ring.partitions} partitions, want {known.partitions}: their number is fixed"
    return None


def _lost_deletes(ring: Ring, known: Ring) -> str | None:
    """Why a ring cannot follow a known one of its cluster, as deletes are gone or came late, or None.

    A node that never applied a lost one would show its points for ever, and give them back to the others.
    """
    kept = ring.deletes[: len(known.deletes)]
    if kept != known.deletes:
        lost = next(record for record in known.deletes if record not in kept)
        return f"ring of epoch {ring.epoch} without delete {lost.number} of epoch {known.epoch}"
    late = [record.number for record in ring.deletes[len(kept) :] if record.number <= known.epoch]
    if late:
        return f"ring of epoch {ring.epoch} with delete {late[0]}, which epoch {known.epoch} does not have"
    return None


def _lost_moves(ring: Ring, known: Ring) -> str | None:
    """Why a ring cannot follow a known one of its cluster, as it does not know how partitions moved, or None.

    Where owners or the joining node are others, `since` must be later than the known ring; where they are not, it is
    the same, or later, too. A store that was put back, and went on from there, has lost moves: its owners lack what
    was acknowledged by later ones, and would pass for current.
    """
    if ring.epoch == known.epoch:
        return None
    differ = (_writers(ring, known) != _writers(known, ring)).any(axis=1) | (ring.since < known.since)
    untold = np.flatnonzero(differ & (ring.since <= known.epoch))
    if not len(untold):
        return None
    partition, owners = int(untold[0]), ", ".join(node.id for node in known.writers(int(untold[0])))
    return (
        f"ring of epoch {ring.epoch} with owners of partition {partition} since epoch {ring.since[partition]}, "
        f"but epoch {known.epoch} had {owners} since {known.since[partition]}"
    )


def _writers(ring: Ring, other: Ring) -> NDArray[np.int64]:
    """Per partition who owns it, in ascending order, and who joins it: int64, nodes numbered alike for both rings."""
    ids = sorted({node.id for each in (ring, other) for node in each.nodes})
    number = {node_id: at for at, node_id in enumerate(ids)}
    table = np.array([*(number[node.id] for node in ring.nodes), NOBODY])[ring.owner_table]
    writers = np.full((ring.partitions, MAX_REPLICATION + 1), NOBODY)
    writers[:, 1 : 1 + ring.width] = np.sort(table, axis=1)[:, ::-1]
    for move in ring.moves:
        writers[move.partition, 0] = number[move.target]
    return writers


def fault_of(found: Ring, now: Ring) -> tuple[str, str] | None:
    """Why what a store holds may not follow the ring in force: reason (REFUSALS) and detail; None when it may."""
    foreign = _foreign(found, now)
    if foreign:
        return "foreign", foreign
    if found.epoch < now.epoch:
        return "older", f"ring of epoch {found.epoch}, in force is {now.epoch}"
    if found.epoch == now.epoch and found.hash != now.hash:
        return "conflict", f"epoch {found.epoch} with hash {found.hash}, in force is {now.hash}"
    for reason, lost in ("deletes", _lost_deletes(found, now)), ("moves", _lost_moves(found, now)):
        if lost:
            return reason, lost
    return None
