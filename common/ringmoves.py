"""How partitions move: what separates a ring from the one that it is to become, and the epochs on the way.

A change of the ring is said first (`changed`: other nodes, weights, zones, replication, the owners as they were) and
carried out then, some partitions at a time: `begin` lets nodes join, `finish` makes them owners. What is left to do is
worked out from the ring alone (`steps`), always in the same way, so nobody has to remember a plan: whoever goes on with
a change that another began finds the rest of it. While that is carried out, in whatever order and with whatever pauses,
the rest stays what it was, but for about one step in a hundred.

Each function gives the next epoch of a ring, of which these hold, in any order of calls:
1. A node becomes an owner only by `finish` of a move whose target it was, and none leaves but by `finish` in favour of
   such a one, or by `dropped`, which leaves as many owners as the replication.
2. `since` of a partition is the new epoch whenever its owners or the node that joins them are others than before.
3. Deletes stay.

Pure: no I/O, no state, any thread.
"""

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.errors import RingError
from common.ring import ACTIVE, DRAINING, MAX_REPLICATION, NOBODY, Move, Node, Ring
from common.ringbuild import by_id, ideal_counts, rebalance

Table = NDArray[np.int32]
Flags = NDArray[np.bool_]

_SLACK: Final = 1e-6  # of a share that is a whole number but for rounding


class Step(NamedTuple):
    """One owner of a partition more, or less, or another. source leaves, target comes; one of them may be None."""

    partition: int
    source: str | None
    target: str | None


def changed(ring: Ring, nodes: Sequence[Node], replication: int) -> Ring:
    """The ring with other nodes, weights, zones, states or replication, its owners as they were.

    nodes: all of them; one that owns anything may be draining, but not missing. Moves to nodes that are to own nothing
    are cancelled. Raises RingError.
    """
    nodes = by_id(nodes)
    kept, active = {node.id for node in nodes}, {node.id for node in nodes if node.state == ACTIVE}
    for node in ring.nodes:
        owned = len(ring.owned_partitions(node.id))
        if owned and node.id not in kept:
            raise RingError(f"node {node.id} still owns {owned} partitions: it has to drain before it can leave")
    moves = tuple(each for each in ring.moves if each.target in active)
    cancelled = ring.moving - {each.partition for each in moves}
    table = _renumbered(ring, nodes)
    return _next(ring, cancelled, nodes=nodes, replication=replication, owner_table=table, moves=moves)


def steps(ring: Ring) -> list[Step]:
    """What is left to do until each partition has the owners that it should have, ascending by partition.

    Moves under way count as done: where a partition moves, its steps are those that remain afterwards. Of one
    partition, owners come before others go.
    """
    done, index = _as_if_moved(ring), _places(ring)
    active = np.array([index[node.id] for node in ring.active_nodes], dtype=np.int32)
    present, target = _alike(done.owner_table, active[rebalance(done, ring.active_nodes, ring.replication)])
    going, coming = _others(present, target), _others(target, present)
    rows, columns = ((going != NOBODY) | (coming != NOBODY)).nonzero()
    names = [*(node.id for node in ring.nodes), None]  # NOBODY is -1, the last
    found = zip(rows.tolist(), going[rows, columns].tolist(), coming[rows, columns].tolist(), strict=True)
    return [Step(partition, names[source], names[target]) for partition, source, target in found]


def begin(ring: Ring, wanted: Iterable[Step]) -> Ring:
    """Let the targets of some steps join: of each partition one, and of none that moves already. Raises RingError."""
    moves = list(ring.moves)
    for partition, source, target in wanted:
        if target is None:
            raise RingError(f"partition {partition} only loses {source}: nobody joins it")
        moves.append(Move(partition, source, target))
    moves.sort(key=lambda each: each.partition)
    return _next(ring, {each.partition for each in moves} - {each.partition for each in ring.moves}, moves=tuple(moves))


def finish(ring: Ring, partitions: Collection[int]) -> Ring:
    """Make the targets of moves owners, in place of their sources. Raises RingError for what does not move."""
    chosen = _moves_of(ring, partitions)
    moves = tuple(each for each in ring.moves if each.partition not in chosen)
    return _next(ring, chosen, moves=moves, owner_table=_moved(ring, chosen.values()))


def cancel(ring: Ring, partitions: Collection[int]) -> Ring:
    """Let the targets of moves join no more; the owners stay. Raises RingError for a partition that moves not."""
    chosen = _moves_of(ring, partitions)
    return _next(ring, chosen, moves=tuple(each for each in ring.moves if each.partition not in chosen))


def dropped(ring: Ring, wanted: Iterable[Step]) -> Ring:
    """Let owners go that nobody replaces: steps without a target.

    Raises RingError where a partition moves, or would have fewer owners than the replication.
    """
    rows, index = ring.owner_table.copy(), _places(ring)
    touched = []
    for partition, source, target in wanted:
        if source is None or target is not None or partition in ring.moving:
            raise RingError(f"partition {partition} cannot just lose {source}: it moves, or {target} is to come")
        leaving = (rows[partition] == index.get(source, len(index))).nonzero()[0]
        if not len(leaving):
            raise RingError(f"partition {partition} cannot lose {source}, which does not own it")
        rows[partition, leaving] = NOBODY
        touched.append(partition)
    for partition in touched:
        left = int((rows[partition] != NOBODY).sum())
        if left < ring.replication:
            raise RingError(f"partition {partition} would have {left} owners, want {ring.replication} or more")
    return _next(ring, touched, owner_table=_packed(rows))


def settled(ring: Ring) -> Ring | None:
    """The ring without the draining nodes that own nothing any more; None when there are none."""
    gone = {node.id for node in ring.nodes if node.state == DRAINING and not len(ring.owned_partitions(node.id))}
    if not gone:
        return None
    return changed(ring, [node for node in ring.nodes if node.id not in gone], ring.replication)


def shares(ring: Ring) -> NDArray[np.float64]:
    """How many partitions each node of the ring should own, as fractions: 0 for those that are draining."""
    found = np.zeros(len(ring.nodes))
    active = np.array([node.state == ACTIVE for node in ring.nodes])
    found[active] = ideal_counts(ring.active_nodes, ring.partitions, ring.replication)
    return found


def least_moves(ring: Ring) -> int:
    """How many (partition, node) have to become owners at the very least: what no way to the target can save.

    The largest of several bounds, one of which is the least number for most changes; some need a little more.
    """
    done = _as_if_moved(ring)
    active = [at for at, node in enumerate(done.nodes) if node.state == ACTIVE]
    zones, zone = np.unique([done.nodes[at].zone for at in active], return_inverse=True)
    rows, columns = np.isin(done.owner_table, active).nonzero()
    owners = np.searchsorted(active, done.owner_table[rows, columns])
    owns = np.zeros((done.partitions, len(active)), dtype=np.bool_)
    owns[rows, owners] = True
    there = np.zeros((done.partitions, len(zones)), dtype=np.bool_)
    there[rows, zone[owners]] = True
    return max(_bounds(ring.replication, owns, there, zone, shares(done)[active]))


def _bounds(
    replication: int, owns: Flags, there: Flags, zone: NDArray[np.int64], share: NDArray[np.float64]
) -> Iterator[int]:
    """Numbers of new owners that are needed. owns: per partition and node; there: per partition and zone."""
    spread = min(replication, there.shape[1])
    lowest, highest, have = np.floor(share + _SLACK), np.ceil(share - _SLACK), owns.sum(axis=0)
    yield int(np.maximum(lowest - have, 0).sum())
    kept = np.bincount(zone, np.minimum(have, highest))
    if spread == there.shape[1]:  # each zone comes to each partition that it is not in
        kept = np.minimum(kept, np.bincount(zone, highest) - (~there).sum(axis=0))
    yield int(replication * len(owns) - kept.sum())
    lacks = np.maximum(replication - owns.sum(axis=1), spread - there.sum(axis=1)).clip(0)
    yield _beside(lacks, lowest - have, owns, np.argsort(-share, kind="stable"))
    if spread == replication:  # a zone keeps one owner of a partition at most
        needs = np.bincount(zone, lowest) - there.sum(axis=0)
        yield _beside(lacks, needs, there, np.argsort(-needs, kind="stable"))


def _beside(lacks: NDArray[np.int64], needs: NDArray[np.float64], has: Flags, order: NDArray[np.int64]) -> int:
    """What partitions lack, and what the first few nodes or zones need beside: these cannot come where they are."""
    most, needed, absent = int(lacks.sum()), 0, np.zeros_like(lacks)
    for at in order[:MAX_REPLICATION].tolist():
        needed += max(0, int(needs[at]))
        absent += ~has[:, at]
        most = max(most, needed + int((lacks - absent).clip(0).sum()))
    return most


def _moves_of(ring: Ring, partitions: Collection[int]) -> dict[int, Move]:
    found = {}
    for partition in partitions:
        move = ring.move(partition)
        if move is None:
            raise RingError(f"partition {partition} does not move at epoch {ring.epoch}")
        found[partition] = move
    return found


def _as_if_moved(ring: Ring) -> Ring:
    """The ring with all its moves finished."""
    return finish(ring, ring.moving) if ring.moves else ring


def _places(ring: Ring) -> dict[str, int]:
    return {node.id: at for at, node in enumerate(ring.nodes)}


def _moved(ring: Ring, moves: Iterable[Move]) -> Table:
    rows, index = np.pad(ring.owner_table, ((0, 0), (0, 1)), constant_values=NOBODY), _places(ring)
    for partition, source, target in moves:
        leaving = NOBODY if source is None else index[source]
        rows[partition, (rows[partition] == leaving).argmax()] = index[target]
    return _packed(rows)


def _packed(rows: Table) -> Table:
    """Rows without gaps between owners, and as narrow as they can be."""
    order = np.argsort(rows == NOBODY, axis=1, kind="stable")
    width = int((rows != NOBODY).sum(axis=1).max())
    return np.ascontiguousarray(np.take_along_axis(rows, order, axis=1)[:, :width])


def _renumbered(ring: Ring, nodes: Sequence[Node]) -> Table:
    """The table in terms of other nodes, among which all owners are."""
    index = {node.id: at for at, node in enumerate(nodes)}
    new = np.array([index.get(node.id, NOBODY) for node in ring.nodes] + [NOBODY], dtype=np.int32)
    return new[ring.owner_table]


def _alike(one: Table, other: Table) -> tuple[Table, Table]:
    """Two tables made equally wide."""
    width = max(one.shape[1], other.shape[1])
    first, second = (
        np.pad(each, ((0, 0), (0, width - each.shape[1])), constant_values=NOBODY) for each in (one, other)
    )
    return first, second


def _others(some: Table, known: Table) -> Table:
    """Of each row of one table the entries that the other has not, before NOBODY."""
    others = np.where((some[:, :, None] == known[:, None, :]).any(axis=2), NOBODY, some)
    return np.take_along_axis(others, np.argsort(others == NOBODY, axis=1, kind="stable"), axis=1)


def _next(ring: Ring, touched: Collection[int] = (), **fields: object) -> Ring:
    """The next epoch. touched: partitions whose writers are others from now on."""
    since = ring.since.copy()
    since[sorted(touched)] = ring.epoch + 1
    return dataclasses.replace(ring, epoch=ring.epoch + 1, since=since, **fields)  # type: ignore[arg-type]
