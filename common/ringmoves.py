"""How partitions move: what separates a ring from the one that it is to become, and the epochs on the way.

A change of the ring is said first (`changed`: other nodes, weights, zones, replication, the owners as they were) and
carried out then, some partitions at a time: `begin` lets nodes join, `finish` makes them owners. What is left to do is
worked out from the ring alone (`steps`), always in the same way, so nobody has to remember a plan: whoever goes on with
a change that another began finds the rest of it.

Each function gives the next epoch of a ring. Pure: no I/O, no state, any thread.
"""

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.errors import RingError
from common.ring import DRAINING, NOBODY, Move, Node, Ring
from common.ringbuild import by_id, ideal_counts, rebalance

Table = NDArray[np.int32]

_SLACK: Final = 1e-6  # of a share that is a whole number but for rounding


class Step(NamedTuple):
    """One owner of a partition more, or less, or another. source leaves, target comes; one of them may be None."""

    partition: int
    source: str | None
    target: str | None


def changed(ring: Ring, nodes: Sequence[Node], replication: int) -> Ring:
    """The ring with other nodes, weights, zones, states or replication, its owners as they were.

    nodes: all of them; one that owns or joins anything may be draining, but not missing. Raises RingError.
    """
    nodes = by_id(nodes)
    kept = {node.id for node in nodes}
    for node in ring.nodes:
        if node.id not in kept and _is_needed(ring, node.id):
            raise RingError(f"node {node.id} still owns or joins partitions: it has to drain before it can leave")
    return _next(ring, nodes=nodes, replication=replication, owner_table=_renumbered(ring, nodes))


def steps(ring: Ring) -> list[Step]:
    """What is left to do until each partition has the owners that it should have, ascending by partition.

    Moves under way count as done. Of one partition, owners come before others go.
    """
    active, done = ring.active_nodes, _as_if_moved(ring)
    wanted, present = rebalance(done, active, ring.replication), done.owner_table
    ids = np.array([node.id for node in ring.nodes], dtype=object)
    index = {node.id: at for at, node in enumerate(ring.nodes)}
    target = np.array([index[node.id] for node in active] + [NOBODY], dtype=np.int32)[wanted]
    found: list[Step] = []
    for partition in np.flatnonzero(_differ(present, target)).tolist():
        before, after = present[partition].tolist(), target[partition].tolist()
        coming = [str(ids[at]) for at in after if at not in before and at != NOBODY]
        going = [str(ids[at]) for at in before if at not in after and at != NOBODY]
        pairs = min(len(coming), len(going))
        found += [Step(partition, source, new) for source, new in zip(going, coming, strict=False)]
        found += [Step(partition, None, new) for new in coming[pairs:]]
        found += [Step(partition, source, None) for source in going[pairs:]]
    return found


def begin(ring: Ring, wanted: Iterable[Step]) -> Ring:
    """Let the targets of some steps join: of each partition one, and of none that moves already. Raises RingError."""
    moves = list(ring.moves)
    for partition, source, target in wanted:
        if target is None:
            raise RingError(f"partition {partition} only loses {source}: nobody joins it")
        moves.append(Move(partition, source, target))
    moves.sort()
    return _next(ring, {each.partition for each in moves} - {each.partition for each in ring.moves}, moves=tuple(moves))


def finish(ring: Ring, partitions: Collection[int]) -> Ring:
    """Make the targets of moves owners, in place of their sources. Raises RingError for what does not move."""
    chosen = [_move_of(ring, partition) for partition in sorted(set(partitions))]
    moves = tuple(each for each in ring.moves if each not in chosen)
    return _next(ring, set(partitions), moves=moves, owner_table=_moved(ring, chosen))


def cancel(ring: Ring, partitions: Collection[int]) -> Ring:
    """Let the targets of moves join no more; the owners stay. Raises RingError for a partition that moves not."""
    chosen = {_move_of(ring, partition).partition for partition in partitions}
    moves = tuple(each for each in ring.moves if each.partition not in chosen)
    return _next(ring, chosen, moves=moves)


def dropped(ring: Ring, wanted: Iterable[Step]) -> Ring:
    """Let owners go that nobody replaces: steps without a target. Raises RingError where none would be left."""
    rows = [[at for at in row if at != NOBODY] for row in ring.owner_table.tolist()]
    touched = set()
    for partition, source, target in wanted:
        if source is None or target is not None or ring.move(partition) is not None:
            raise RingError(f"partition {partition} cannot just lose {source}: it moves, or {target} is to come")
        rows[partition].remove(ring.nodes.index(ring.node(source)))
        touched.add(partition)
    return _next(ring, touched, owner_table=_filled(rows))


def settled(ring: Ring) -> Ring | None:
    """The ring without the draining nodes that own and join nothing any more; None when there are none."""
    gone = {node.id for node in ring.nodes if node.state == DRAINING and not _is_needed(ring, node.id)}
    if not gone:
        return None
    return changed(ring, [node for node in ring.nodes if node.id not in gone], ring.replication)


def least_moves(ring: Ring) -> int:
    """How many partitions have to go to some node at the very least, whatever the way: what nodes lack of their share.

    A lower bound: zones may force more.
    """
    active = ring.active_nodes
    shares, done = ideal_counts(active, ring.partitions, ring.replication), _as_if_moved(ring)
    have = np.array([len(done.owned_partitions(node.id)) for node in active])
    lacking = np.maximum(np.floor(shares + _SLACK) - have, 0).sum()
    left = ring.partitions * ring.replication - np.minimum(have, np.ceil(shares - _SLACK)).sum()
    return int(max(lacking, left))


def _move_of(ring: Ring, partition: int) -> Move:
    move = ring.move(partition)
    if move is None:
        raise RingError(f"partition {partition} does not move at epoch {ring.epoch}")
    return move


def _is_needed(ring: Ring, node_id: str) -> bool:
    return bool(len(ring.written_partitions(node_id)))


def _as_if_moved(ring: Ring) -> Ring:
    """The ring with all its moves finished."""
    return finish(ring, [each.partition for each in ring.moves]) if ring.moves else ring


def _moved(ring: Ring, moves: Iterable[Move]) -> Table:
    rows = [[at for at in row if at != NOBODY] for row in ring.owner_table.tolist()]
    index = {node.id: at for at, node in enumerate(ring.nodes)}
    for partition, source, target in moves:
        if source is None:
            rows[partition].append(index[target])
        else:
            rows[partition][rows[partition].index(index[source])] = index[target]
    return _filled(rows)


def _filled(rows: Sequence[Sequence[int]]) -> Table:
    width = max(map(len, rows))
    return np.array([[*row, *[NOBODY] * (width - len(row))] for row in rows], dtype=np.int32)


def _renumbered(ring: Ring, nodes: Sequence[Node]) -> Table:
    """The table in terms of other nodes, among which all owners are."""
    index = {node.id: at for at, node in enumerate(nodes)}
    new = np.array([index.get(node.id, NOBODY) for node in ring.nodes] + [NOBODY], dtype=np.int32)
    return new[ring.owner_table]


def _differ(present: Table, wanted: Table) -> NDArray[np.bool_]:
    """Which rows name different owners, in whatever order."""
    width = max(present.shape[1], wanted.shape[1])
    one, other = (
        np.sort(np.pad(each, ((0, 0), (0, width - each.shape[1])), constant_values=NOBODY), axis=1)
        for each in (present, wanted)
    )
    differ: NDArray[np.bool_] = (one != other).any(axis=1)
    return differ


def _next(ring: Ring, touched: Collection[int] = (), **fields: object) -> Ring:
    """The next epoch. touched: partitions whose writers are others from now on."""
    since = ring.since.copy()
    since[sorted(touched)] = ring.epoch + 1
    return dataclasses.replace(ring, epoch=ring.epoch + 1, since=since, **fields)  # type: ignore[arg-type]
