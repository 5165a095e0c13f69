"""What a backup of the ring store holds, and which ring to put back when the store lost its own. Pure but for read.

A ring can not go back: workers refuse an earlier epoch, nodes have given away what they moved since, and a delete that
is forgotten brings points back. So what is put back is the latest ring that anybody knows, with the deletes of all that
are known, under an epoch above all of theirs.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from common.errors import RingError
from common.ring import DeleteRecord, Ring
from common.ringrules import fault_of
from common.ringstore import Mark

VERSION: Final = 1


class Backup(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of `ringctl backup`, JSON. marks: pairs of node and bridge. store_ids: by node."""

    minitrue_backup: int
    made_at: str
    ring: dict[str, Any]
    marks: list[tuple[str, str]]
    store_ids: dict[str, str]


class Found(NamedTuple):
    """A ring, and where it was found."""

    where: str
    ring: Ring


def read(path: Path) -> tuple[Ring, frozenset[Mark], dict[str, str]]:
    """Ring, marks and store ids of a backup; of a plain ring document, such as one of the history, just the ring.

    Raises RingError.
    """
    try:
        tree = msgspec.json.decode(path.read_bytes())
        if not isinstance(tree, dict) or "minitrue_backup" not in tree:
            return Ring.from_document(tree), frozenset(), {}
        if tree["minitrue_backup"] != VERSION:
            raise RingError(f"{path}: a backup of format {tree['minitrue_backup']!r}, this program reads {VERSION}")
        backup = msgspec.convert(tree, Backup)
        return Ring.from_document(backup.ring), frozenset(Mark(*each) for each in backup.marks), backup.store_ids
    except OSError as error:
        raise RingError(f"cannot read {path}: {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RingError(f"{path} is neither a backup nor a ring document: {error}") from error


def latest(nodes: Sequence[Found], kept: Sequence[Found]) -> Found:
    """The ring to go on from. nodes: rings that nodes go by. kept: rings of files and store.

    A kept one is taken where there is no node, or where nodes can follow it: else their data lies as their own says.
    Raises RingError for several clusters, or for two rings of one epoch where nothing tells which is right.
    """
    clusters = {each.ring.cluster: each.where for each in (*kept, *nodes)}
    if len(clusters) > 1:
        said = ", ".join(f"{where}: {cluster}" for cluster, where in clusters.items())
        raise RingError(f"rings of {len(clusters)} clusters ({said}): want one")
    if not nodes:
        return _highest(kept)
    best = _highest(nodes)
    return _highest([best, *(each for each in kept if fault_of(each.ring, best.ring) is None)])


def _highest(found: Sequence[Found]) -> Found:
    best = max(found, key=lambda each: each.ring.epoch)
    others = [each for each in found if each.ring.epoch == best.ring.epoch and each.ring.hash != best.ring.hash]
    if others:
        raise RingError(
            f"epoch {best.ring.epoch} has one ring in {best.where} and another in {others[0].where}: which of them is "
            "right cannot be told; leave out the file, or stop the node, that is wrong"
        )
    return best


def put_back(best: Ring, others: Iterable[Ring], above: int) -> Ring:
    """The latest ring with the deletes of all, under an epoch above all. above: an epoch that somebody goes by.

    A delete that only others know gets a new number, so it also takes what came between: nobody can tell any more
    what was older than it. Partitions that others give to other nodes count as changed now, so that who goes by one of
    those rings sees it.
    """
    rings = [best, *others]
    known = {_without_number(record) for record in best.deletes}
    epoch, deletes = max(above, *(ring.epoch for ring in rings)), list(best.deletes)
    for record in sorted((record for ring in rings for record in ring.deletes), key=lambda record: record.number):
        if _without_number(record) not in known:
            known.add(_without_number(record))
            epoch += 1
            deletes.append(msgspec.structs.replace(record, number=epoch))
    since = best.since.copy()
    for ring in others:
        if ring.partitions == best.partitions:
            since[_differing(best, ring)] = epoch + 1
    return dataclasses.replace(best, epoch=epoch + 1, deletes=tuple(deletes), since=since)


def _differing(one: Ring, other: Ring) -> list[int]:
    """The partitions that another ring gives to other nodes, or has given to others since."""
    return [
        partition
        for partition in range(one.partitions)
        if [node.id for node in one.owners(partition)] != [node.id for node in other.owners(partition)]
        or one.move(partition) != other.move(partition)
        or one.since[partition] < other.since[partition]
    ]


def _without_number(record: DeleteRecord) -> bytes:
    return msgspec.json.encode(msgspec.structs.replace(record, number=0), order="sorted")


def marks_told(statuses: dict[str, dict[str, Any]]) -> frozenset[Mark]:
    """The marks that there have to be, by what nodes tell of themselves and of the bridges that they hear."""
    found = {Mark(node, node) for node, status in statuses.items() if status.get("behind")}
    for status in statuses.values():
        for bridge, told in status.get("bridges", {}).items():
            spools = told.get("spools", {}).items()
            found |= {Mark(node, bridge) for node, spool in spools if spool.get("bytes") or spool.get("damaged")}
    return frozenset(found)
