"""OpenRows: the points that were taken in and are in no batch yet, of all owners together.

Points are appended in order of arrival, whoever owns them; only when they are old or many enough are they split by
owner, all at once, by numpy. So a point costs the same with one owner or three, and columns cost no Python per point.
Pure: no I/O, no clock, no socket. Belongs to the loop's thread.
"""

from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from common.points import PointBatch
from common.ring import Ring
from workers.bridge.batch import MESSAGE_BYTES, Batch, Message, Origin, Release
from workers.bridge.columns import Columns
from workers.bridge.payload import Place, Point

MAX_KEY_BYTES: Final = 4 << 20  # of a batch's table: with long tags, rows alone do not bound a batch, which has to
# stay far below bus.MAX_MESSAGE_BYTES
ROW_BYTES: Final = 20  # u32 index, i64 time, f64 value

Written = Mapping[str, npt.NDArray[np.bool_]]  # by node id: whose points it takes, bool by partition
_Rows = npt.NDArray[np.intp]


def written_partitions(ring: Ring) -> Written:
    """Of each node of a ring, which partitions' points it takes: those that it owns or joins."""
    written = {node.id: np.zeros(ring.partitions, np.bool_) for node in ring.nodes}
    for node_id, partitions in written.items():
        partitions[ring.written_partitions(node_id)] = True
    return written


class OpenRows:
    """`add` and `extend` are the hot paths. A message waits for this until `close` has it wait for the batches."""

    __slots__ = (
        "_index", "_key_bytes", "_messages", "_numbers", "_partitions", "_rows", "_starts", "_times", "_values",
        "opened_s",
    )  # fmt: skip

    def __init__(self, rows: int) -> None:
        """rows: so many, or MAX_KEY_BYTES of series keys, make them full, and are the most of one batch."""
        self._rows = rows
        self._numbers: dict[bytes, int] = {}  # series key -> its number in the table
        self._partitions = array("I")  # of each series in the table
        self._index = array("I")
        self._times = array("q")
        self._values = array("d")
        self._messages: list[Message] = []
        self._starts = array("q")  # the first row of each message
        self._key_bytes = 0
        self.opened_s = 0.0  # set by whoever looks at the clock; 0: nobody has yet

    def __len__(self) -> int:
        return len(self._times)

    @property
    def is_full(self) -> bool:
        """Whether it is time to close. What is added after is no less safe, only larger."""
        return len(self._times) >= self._rows or self._key_bytes >= MAX_KEY_BYTES

    @property
    def memory_bytes(self) -> int:
        """About what it costs in memory."""
        return len(self._times) * ROW_BYTES + self._key_bytes + len(self._messages) * MESSAGE_BYTES

    def add(self, message: Message, points: Iterable[Point]) -> None:
        """Append a message's points."""
        times, index, values, number_of = self._times, self._index, self._values, self._numbers.get
        start = len(times)
        for place, time_ns, value in points:
            number = number_of(place[0])
            index.append(self._number(place) if number is None else number)
            times.append(time_ns)
            values.append(value)
        if len(times) > start:
            self._hold(message, start)

    def extend(self, message: Message, columns: Columns) -> None:
        """Append a message's points, given in columns."""
        if not len(columns):
            return
        self._hold(message, len(self._times))
        number_of, number = self._numbers.get, self._number
        numbers = [number(place) if (known := number_of(place[0])) is None else known for place in columns.places]
        if columns.index is None:
            self._index.extend(numbers)
        else:
            self._index.frombytes(np.array(numbers, np.uint32)[columns.index].data.cast("B"))
        self._times.frombytes(np.ascontiguousarray(columns.times, np.int64).data.cast("B"))
        self._values.frombytes(np.ascontiguousarray(columns.values, np.float64).data.cast("B"))

    def _hold(self, message: Message, start: int) -> None:
        self._messages.append(message)
        self._starts.append(start)
        message.waiting += 1

    def _number(self, place: Place) -> int:
        """The number of a series in the table; it need not get rows."""
        key, partition = place
        number = self._numbers.setdefault(key, len(self._numbers))
        if number == len(self._partitions):
            self._partitions.append(partition)
            self._key_bytes += len(key)
        return number

    def close(self, epoch: int, ring_hash: str, written: Written) -> list[tuple[str, Batch]]:
        """(node id, batch) of what was added, split by this ring and born at its epoch. Nothing may be added after."""
        points = PointBatch(
            list(self._numbers),
            np.frombuffer(self._index, np.uint32),
            np.frombuffer(self._times, np.int64),
            np.frombuffer(self._values, np.float64),
        )
        partitions = np.frombuffer(self._partitions, np.uint32)
        starts = np.frombuffer(self._starts, np.int64)
        message_of = np.zeros(len(points), np.int64)
        message_of[starts[1:]] = 1
        message_of = np.cumsum(message_of, out=message_of)
        parts = np.zeros(len(self._starts), np.intp)  # of each message: the batches that hold some of it
        batches = []
        for node_id, takes in written.items():
            for rows in self._pieces(points, np.flatnonzero(takes[partitions][points.index])):
                of_rows = message_of[rows]
                first = _first_of_each(of_rows)
                parts[of_rows[first]] += 1
                batches.append((node_id, self._batch(points.take(rows), first, of_rows[first], epoch, ring_hash)))
        for number in np.flatnonzero(parts != 1).tolist():
            self._messages[number].waiting += int(parts[number]) - 1  # one hold was for this
        return batches

    def _pieces(self, points: PointBatch, rows: _Rows) -> Iterator[_Rows]:
        """The rows of one owner, cut where they are too many for one batch."""
        if len(rows) > 1 and (len(rows) > self._rows or self._bytes_of_keys(points, rows) > MAX_KEY_BYTES):
            middle = len(rows) // 2
            yield from self._pieces(points, rows[:middle])
            yield from self._pieces(points, rows[middle:])
        elif len(rows):
            yield rows

    def _bytes_of_keys(self, points: PointBatch, rows: _Rows) -> int:
        """The length of the keys that these rows need; an upper bound where that is little."""
        if self._key_bytes <= MAX_KEY_BYTES:
            return self._key_bytes
        return sum(len(points.keys[number]) for number in np.unique(points.index[rows]).tolist())

    def _batch(self, points: PointBatch, starts: _Rows, numbers: _Rows, epoch: int, ring_hash: str) -> Batch:
        """The batch of these points. starts: the first row of each message in it; numbers: which messages they are."""
        messages = [self._messages[number] for number in numbers.tolist()]
        return Batch(
            points.encode(),
            len(points),
            epoch,
            epoch,
            ring_hash,
            self.opened_s,
            Release(messages),
            Origin(messages, array("q", starts.tobytes())),
            len(messages),
        )


def _first_of_each(ascending: _Rows) -> _Rows:
    """The first row of each value. As np.diff would have it, at a third of its cost."""
    later = np.flatnonzero(ascending[1:] != ascending[:-1])
    first = np.zeros(len(later) + 1, np.intp)
    np.add(later, 1, out=first[1:])
    return first
