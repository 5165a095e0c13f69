"""What a ring changed, in words, for the history. Pure: no I/O, no state, any thread."""

from collections.abc import Collection, Iterator

from common.ring import Ring


def changes(before: Ring | None, after: Ring) -> list[str]:
    """What a ring changed, in words; of the first one that is known what it is."""
    if before is None:
        return [f"{len(after.nodes)} nodes, {after.partitions} partitions, replication {after.replication}"]
    return list(_changes(before, after)) or ["nothing"]


def _changes(before: Ring, after: Ring) -> Iterator[str]:
    if before.cluster != after.cluster:
        yield f"cluster {after.cluster} in place of {before.cluster}"
    old, new = ({node.id: node for node in ring.nodes} for ring in (before, after))
    yield from _named("added", new.keys() - old.keys())
    yield from _named("removed", old.keys() - new.keys())
    for node in sorted(old.keys() & new.keys()):
        for field in ("endpoint", "zone", "weight", "state", "store_id"):
            was, now = getattr(old[node], field), getattr(new[node], field)
            if was != now:
                yield f"{node}: {field} {was} to {now}"
    if before.replication != after.replication:
        yield f"replication {before.replication} to {after.replication}"
    begun, ended = set(after.moves) - set(before.moves), set(before.moves) - set(after.moves)
    done = [move for move in ended if move.target in {node.id for node in after.owners(move.partition)}]
    yield from _counted("moves begun", len(begun))
    yield from _counted("moves done", len(done))
    yield from _counted("moves cancelled", len(ended) - len(done))
    yield from _counted("deletes", len(after.deletes) - len(before.deletes))


def _named(what: str, nodes: Collection[str]) -> Iterator[str]:
    if nodes:
        yield f"{what} {', '.join(sorted(nodes))}"


def _counted(what: str, count: int) -> Iterator[str]:
    if count > 0:
        yield f"{what}: {count}"
