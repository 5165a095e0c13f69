"""Batches that can be told apart, and what is left of them in a spool: for the tests of spools."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.files import DISK, Disk
from common.points import PointBatch
from common.ringstore import FileStore, Mark
from tests.disks import QuickDisk
from workers.bridge.batch import Batch, Message, Origin, Release
from workers.bridge.spool import Entry, Spools

BRIDGE = "bridge1"
FILE_BYTES = 600  # about three records of the batches below


class Said(NamedTuple):
    """All that a spool has to keep of a batch. origins: topic and flags of the message of each row."""

    born: int
    epoch: int
    ring_hash: str
    rows: int
    body: bytes
    origins: tuple[tuple[bytes, int], ...]


def said(batch: Batch) -> Said:
    """What a batch says."""
    origins = [batch.origin.message(row) for row in range(batch.rows)]
    return Said(
        batch.born, batch.epoch, batch.ring_hash, batch.rows, batch.body,
        tuple((message.topic, message.flags | 0x08) for message in origins),
    )  # fmt: skip


def make(number: int, rows: int = 3) -> tuple[Batch, Message]:
    """A batch like no other, and a message that waits for it alone."""
    message = Message(0x32, b"\0\1", b"sensors/%d" % number)
    other = Message(0x33, b"\0\2", b"other topic")
    messages = [message, other][:rows]
    points = PointBatch(
        [b"key %d" % place for place in range(min(rows, 2))],
        np.arange(rows, dtype=np.uint32) % np.uint32(2),
        np.full(rows, number, np.int64),
        np.arange(rows) + 0.5,
    )
    for each in messages:
        each.hold()
    origin = Origin(messages, [0, rows - 1][:rows])
    batch = Batch(points.encode(), rows, 7, 9, "0123456789abcdef", 0.0, Release(messages), origin, len(messages))
    return batch, message


def said_of(number: int) -> Said:
    """What the batch of a number says."""
    return said(make(number)[0])


def open_spools(top: Path, disk: Disk = DISK, spool_bytes: int = 1 << 30, store: Any = None) -> Spools:
    """The spools of a bridge whose ring store is in the same directory."""
    return Spools(top / "spool", store or ring_store(top, disk), BRIDGE, spool_bytes, FILE_BYTES, disk)


def ring_store(top: Path, disk: Disk = DISK) -> FileStore:
    """The ring store of such a bridge."""
    return FileStore(top / "ring.json", disk)


def marked(top: Path) -> set[str]:
    """The nodes that bear a mark of the bridge."""
    return {mark.node for mark in ring_store(top).marks() if mark.by == BRIDGE}


def mark(node: str) -> Mark:
    """The mark of the bridge for a node."""
    return Mark(node, BRIDGE)


def take_all(spools: Spools, node: str) -> list[Entry]:
    """Everything that can be taken now."""
    entries = []
    while entry := spools.of(node).next():
        entries.append(entry)
    return entries


def done(entries: Iterable[Entry]) -> None:
    """Have batches delivered."""
    for entry in entries:
        entry.batch.release.release()


def files(top: Path, node: str, suffix: str = ".spool") -> list[Path]:
    """The files of a spool."""
    return sorted((top / "spool" / node).glob("*" + suffix))


def left(top: Path) -> dict[str, list[Said]]:
    """What a bridge that starts finds in its spools, by node; it takes everything and delivers nothing."""
    spools = open_spools(top, QuickDisk())
    return {node: [said(entry.batch) for entry in take_all(spools, node)] for node in spools.nodes()}
