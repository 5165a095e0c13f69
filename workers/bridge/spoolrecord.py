"""What a record of a spool says: a batch for one owner, and which messages its rows came from.

Record files (records.py) named 00000001.spool, ..., magic "MTSP"; the body is a msgpack array, see Record and
docs/file-formats.md. Batches keep what a PUBACK and a ring need to know of them: epoch, ring hash, `born`.
Pure but for the clock that says when a batch is read. Any thread.
"""

from collections.abc import Sequence
from typing import Final, overload

import msgspec
import numpy as np

from common import clock
from common.errors import MSGSPEC_ERRORS, ProtocolError, StorageError
from common.points import PointBatch
from workers.bridge.batch import Batch, Message, Origin, Release, Waiter
from workers.bridge.records import HEAD, Kind, Window

VERSION: Final = 1
KIND: Final = Kind(b"MTSP", ".spool")
END: Final = 0x4D545345  # as msgpack CE and "MTSE": what a record that was written whole ends with
DUP: Final = 0x08  # of a PUBLISH frame's first byte: what comes out of a spool may have come before

_END_BYTES: Final = b"\xceMTSE"
_RUN_BYTES: Final = 9


class Record(msgspec.Struct, array_like=True, frozen=True):
    """A batch in a spool.

    born, epoch, ring_hash, rows: of the batch; points: its body. taken_ns: wall time at which the spool took it.
    topics: of its messages, each once. origins: for each run of rows of one message three columns, all first rows
    (u32, ascending), then all indexes into topics (u32), then all flags (u8). end: END.
    """

    version: int
    born: int
    epoch: int
    ring_hash: str
    rows: int
    points: bytes
    taken_ns: int
    topics: list[bytes]
    origins: bytes
    end: int


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Record)


def encode(batch: Batch, taken_ns: int) -> bytes:
    """The body of a batch's record."""
    starts, messages = batch.origin.runs()
    topics: dict[bytes, int] = {}
    places = [topics.setdefault(message.topic, len(topics)) for message in messages]
    flags = bytes([message.flags for message in messages])
    origins = starts.astype("<u4").tobytes() + np.array(places, "<u4").tobytes() + flags
    record = Record(
        VERSION, batch.born, batch.epoch, batch.ring_hash, batch.rows, batch.body, taken_ns, list(topics), origins, END
    )
    return _encoder.encode(record)


def decode(body: bytes) -> Record:
    """The record in a body. Raises StorageError for anything else, as a record of another version."""
    try:
        record = _decoder.decode(body)
        if record.version != VERSION:
            raise StorageError(f"version {record.version}, want {VERSION}")
        rows = len(PointBatch.decode(record.points))
    except (*MSGSPEC_ERRORS, ProtocolError) as error:
        raise StorageError(str(error)) from error
    if rows != record.rows or record.end != END or not _origins_fit(record):
        raise StorageError(f"{rows} points, {record.rows} rows, end {record.end:x}, or origins that do not fit them")
    return record


def _origins_fit(record: Record) -> bool:
    """Whether each row has a message and each message a topic."""
    runs, rest = divmod(len(record.origins), _RUN_BYTES)
    if rest or not runs or not record.rows:
        return False
    starts, topics, _ = _columns(record.origins)
    ascending = not starts[0] and bool((np.diff(starts.astype(np.int64)) > 0).all())
    return ascending and int(starts[-1]) < record.rows and int(topics.max()) < len(record.topics)


def batch_of(record: Record, waiter: Waiter) -> Batch:
    """The batch of a record, to be released once for the waiter, which is held for that already."""
    starts, topics, flags = _columns(record.origins)
    messages = _Messages(topics.tolist(), flags, record.topics)
    return Batch(
        record.points,
        record.rows,
        record.born,
        record.epoch,
        record.ring_hash,
        clock.monotonic_s(),
        Release([waiter]),
        Origin(messages, starts.tolist()),
        messages=0,
    )


def looks_whole(window: Window, at: int) -> bool:
    """Whether the bytes from `at` to the end of a file, which are no record, were one once: not a torn tail, then."""
    if window.size - at < HEAD.size:
        return False
    magic, length, _ = HEAD.unpack(window.get(at, HEAD.size))
    fits = magic == KIND.magic and at + HEAD.size + length == window.size
    return fits or window.get(window.size - len(_END_BYTES), len(_END_BYTES)) == _END_BYTES


def _columns(origins: bytes) -> tuple[np.ndarray, np.ndarray, bytes]:
    runs = len(origins) // _RUN_BYTES
    numbers = np.frombuffer(origins, "<u4", 2 * runs)
    return numbers[:runs], numbers[runs:], origins[8 * runs :]


class _Messages(Sequence[Message]):
    """The messages of a record, each made when it is asked for, which is when a row of it is refused."""

    def __init__(self, places: list[int], flags: bytes, topics: list[bytes]) -> None:
        self._places = places
        self._flags = flags
        self._topics = topics

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, at: int) -> Message: ...

    @overload
    def __getitem__(self, at: slice) -> Sequence[Message]: ...

    def __getitem__(self, at: int | slice) -> Message | Sequence[Message]:
        if isinstance(at, slice):
            return [self[number] for number in range(*at.indices(len(self)))]
        return Message(self._flags[at] | DUP, b"", self._topics[self._places[at]])
