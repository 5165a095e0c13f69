"""Messages, and the batches that carry their points: who waits for what before a PUBACK may go out.

A Message counts what has to become durable before it may be acknowledged: one for each batch and each dead
letter that holds a part of it. A batch tells its messages through a Release, which its parts share when a batch
has to be split again. Built for one point per message at high rate: no object per point, one per message.
Pure: no I/O, no clock, no socket. Belongs to the loop's thread.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from common.points import PointBatch

MESSAGE_BYTES: Final = 250  # what a Message costs in memory with its topic; measured 200 to 300


class Message:
    """An MQTT message as far as its PUBACK is concerned.

    waiting: how many batches and dead letters have yet to become durable. flags: the PUBLISH frame's first byte.
    packet_id: the two bytes to acknowledge it by, empty at QoS 0. topic: UTF-8 as received.
    """

    __slots__ = ("flags", "packet_id", "topic", "waiting")

    def __init__(self, flags: int, packet_id: bytes, topic: bytes) -> None:
        self.flags = flags
        self.packet_id = packet_id
        self.topic = topic
        self.waiting = 0

    def hold(self) -> None:
        """One more thing has to become durable."""
        self.waiting += 1

    def release(self) -> None:
        """One thing became durable."""
        self.waiting -= 1


class Waiter(Protocol):
    """Counts what has to become durable before it is done: a Message, or a record of a spool that is drained."""

    waiting: int


class Release:
    """Releases messages when every part of what carries their points is durable."""

    __slots__ = ("_messages", "_waiting")

    def __init__(self, messages: Sequence[Waiter]) -> None:
        """messages: already held for this; one part to begin with."""
        self._messages = messages
        self._waiting = 1

    def hold(self) -> None:
        """One more part."""
        self._waiting += 1

    def release(self) -> None:
        """One part became durable."""
        self._waiting -= 1
        if self._waiting == 0:
            for message in self._messages:
                message.waiting -= 1
            self._messages = ()  # a spool's record holds its batch and so this: no circle shall keep them


class Origin:
    """Which message a row of a batch came from, asked only for rows that are refused."""

    __slots__ = ("_messages", "_rows", "_starts")

    def __init__(
        self, messages: Sequence[Message], starts: Sequence[int], rows: npt.NDArray[np.intp] | None = None
    ) -> None:
        """starts: first row of each message. rows: after a split, the row numbers in the batch as first built."""
        self._messages = messages
        self._starts = starts
        self._rows = rows

    def message(self, row: int) -> Message:
        """The message of a row."""
        built = row if self._rows is None else int(self._rows[row])
        return self._messages[bisect_right(self._starts, built) - 1]

    def part(self, rows: npt.NDArray[np.intp]) -> "Origin":
        """The origin of a part of the batch. rows: the row numbers that the part took."""
        built = rows if self._rows is None else self._rows[rows]
        return Origin(self._messages, self._starts, built)

    def runs(self) -> tuple[npt.NDArray[np.int64], Sequence[Message]]:
        """The first row of each run of rows that came from one message, ascending, and the messages."""
        starts = np.array(self._starts, np.int64)
        if self._rows is None:
            return starts, self._messages
        at = np.searchsorted(starts, self._rows, side="right") - 1
        first = np.flatnonzero(np.diff(at, prepend=-1))
        return first, [self._messages[number] for number in at[first].tolist()]


class Batch:
    """Points on their way to one owner: constant after construction.

    body: an encoded PointBatch of `rows` points. born: epoch at which the points were taken in; epoch, ring_hash:
    the ring that split them so. opened_s: monotonic time of the first point. memory_bytes: what it costs until it is
    released.
    """

    __slots__ = ("body", "born", "epoch", "memory_bytes", "opened_s", "origin", "release", "ring_hash", "rows")

    def __init__(
        self,
        body: bytes,
        rows: int,
        born: int,
        epoch: int,
        ring_hash: str,
        opened_s: float,
        release: Release,
        origin: Origin,
        messages: int,
    ) -> None:
        self.body = body
        self.rows = rows
        self.born = born
        self.epoch = epoch
        self.ring_hash = ring_hash
        self.opened_s = opened_s
        self.release = release
        self.origin = origin
        self.memory_bytes = len(self.body) + messages * MESSAGE_BYTES


def split(
    batch: Batch, owners_of: Iterable[Sequence[str]], epoch: int, ring_hash: str
) -> list[tuple[str, Batch]]:
    """The parts of a batch by another ring: (node id, part), one for each node that owns any of its rows.

    owners_of: the node ids for each key of the batch's table, in order. The parts keep `born` and together
    release what the batch would have released.
    """
    points = PointBatch.decode(batch.body)
    keys_of: dict[str, list[int]] = {}
    for index, owners in enumerate(owners_of):
        for owner in owners:
            keys_of.setdefault(owner, []).append(index)
    parts = []
    for owner, wanted in keys_of.items():
        batch.release.hold()
        parts.append((owner, _part(batch, points, np.array(wanted), epoch, ring_hash)))
    batch.release.release()
    return parts


def _part(batch: Batch, points: PointBatch, wanted: npt.NDArray[np.intp], epoch: int, ring_hash: str) -> Batch:
    """The rows whose key is among `wanted` (indexes into the table, ascending)."""
    rows = np.flatnonzero(np.isin(points.index, wanted))
    index = np.searchsorted(wanted, points.index[rows]).astype(np.uint32)
    keys = [points.keys[at] for at in wanted]
    part = PointBatch(keys, index, points.times[rows], points.values[rows])
    return Batch(
        part.encode(),
        len(part),
        batch.born,
        epoch,
        ring_hash,
        batch.opened_s,
        batch.release,
        batch.origin.part(rows),
        messages=0,
    )
