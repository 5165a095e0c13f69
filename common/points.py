"""PointBatch: the columnar form in which points travel and are logged.

A batch is a table of the distinct series keys and three columns of equal length: index (u32, into the
table), timestamps (i64, nanoseconds since the epoch) and values (f64). The columns are little-endian binary
inside the msgpack body, so a batch decodes to numpy arrays without a loop.
Pure: no I/O, no state.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import msgspec
import numpy as np
import numpy.typing as npt

from common.errors import MSGSPEC_ERRORS, ProtocolError

_PART_ROWS: Final = 8192  # numpy widens an index; so many fit memory that malloc need not fetch from the system

Index = npt.NDArray[np.uint32]
Times = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]


class _Body(msgspec.Struct, frozen=True):
    """The batch as it lies in a message body. Field names are the format's: see docs/bus-protocol.md."""

    keys: list[bytes]
    index: bytes
    times: bytes
    values: bytes


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Body)


@dataclass(frozen=True, slots=True)
class PointBatch:
    """Points of several series.

    keys: distinct series keys; index, times, values: one row per point, arrays of shape (rows,).
    """

    keys: Sequence[bytes]
    index: Index
    times: Times
    values: Values

    def __len__(self) -> int:
        return len(self.times)

    def encode(self) -> bytes:
        """The message body of this batch."""
        return _encoder.encode(
            _Body(
                list(self.keys),
                self.index.astype("<u4", copy=False).tobytes(),
                self.times.astype("<i8", copy=False).tobytes(),
                self.values.astype("<f8", copy=False).tobytes(),
            )
        )

    def take(self, keep: npt.NDArray[np.bool_] | npt.NDArray[np.intp]) -> "PointBatch":
        """The rows for which `keep`, bool of shape (rows,), holds, or whose numbers it has; keys without rows go."""
        index = self.index[keep]
        used = np.bincount(index, minlength=len(self.keys)) > 0
        places = (np.cumsum(used) - 1).astype(np.uint32)
        keys = [self.keys[at] for at in np.flatnonzero(used).tolist()]
        return PointBatch(keys, places[index], self.times[keep], self.values[keep])

    @classmethod
    def decode(cls, body: bytes | memoryview) -> Self:
        """The batch in a body. The arrays are read-only views of it.

        Raises ProtocolError when columns differ in length, an index lies outside the table, the table repeats
        a key or holds one without rows, or a value is not finite.
        """
        raw = _unpack(body)
        index = _column(raw.index, "<u4", "index")
        times = _column(raw.times, "<i8", "times")
        values = _column(raw.values, "<f8", "values")
        if not len(index) == len(times) == len(values):
            raise ProtocolError(
                f"batch columns differ in length: index {len(index)}, times {len(times)}, values {len(values)}"
            )
        if len(index) and int(index.max()) >= len(raw.keys):
            raise ProtocolError(f"batch index {int(index.max())} lies outside its {len(raw.keys)} keys")
        if len(set(raw.keys)) != len(raw.keys):
            raise ProtocolError("batch repeats a series key")
        if unused := len(raw.keys) - _count_used(index, len(raw.keys)):
            raise ProtocolError(f"batch has no row for {unused} of its {len(raw.keys)} keys")
        if not np.isfinite(values).all():
            raise ProtocolError("batch holds a value that is not finite")
        return cls(raw.keys, index, times, values)

    @classmethod
    def decode_joined(cls, bodies: Sequence[bytes]) -> Self:
        """The points of several bodies, in their order, as one batch: for many small ones far cheaper than one by one.

        Raises ProtocolError when decode would for any of them.
        """
        raws = [_unpack(body) for body in bodies]
        for raw in raws:
            if not 2 * len(raw.index) == len(raw.times) == len(raw.values) or len(raw.times) % 8:
                raise ProtocolError("columns of a batch differ in length, or hold no whole items")
            if len(set(raw.keys)) != len(raw.keys):
                raise ProtocolError("batch repeats a series key")
        places: dict[bytes, int] = {}
        table = np.array([places.setdefault(key, len(places)) for raw in raws for key in raw.keys], np.uint32)
        keys = np.array([len(raw.keys) for raw in raws], np.int64)  # of each body
        rows = np.array([len(raw.index) // 4 for raw in raws], np.int64)
        index = _column(b"".join([raw.index for raw in raws]), "<u4", "index").astype(np.int64)
        times = _column(b"".join([raw.times for raw in raws]), "<i8", "times")
        values = _column(b"".join([raw.values for raw in raws]), "<f8", "values")
        if (index >= np.repeat(keys, rows)).any() or not np.isfinite(values).all():
            raise ProtocolError("batch with an index outside its keys, or a value that is not finite")
        index += np.repeat(np.cumsum(keys) - keys, rows)
        if not np.bincount(index, minlength=len(table)).all():
            raise ProtocolError("batch has a key without rows")
        return cls(list(places), table[index], times, values)


def _count_used(index: Index, keys: int) -> int:
    """How many of so many keys an index names, which lies within them."""
    if keys == 1:
        return min(1, len(index))
    used = np.zeros(keys, np.bool_)
    for begin in range(0, len(index), _PART_ROWS):
        used[index[begin : begin + _PART_ROWS]] = True
    return int(np.count_nonzero(used))


def _unpack(body: bytes | memoryview) -> _Body:
    try:
        return _decoder.decode(body)
    except MSGSPEC_ERRORS as error:
        raise ProtocolError(f"batch body: {error}") from error


def _column(data: bytes, dtype: str, name: str) -> Any:
    try:
        return np.frombuffer(data, dtype=dtype)
    except ValueError as error:
        raise ProtocolError(f"batch column {name}: {len(data)} bytes are not whole {dtype} items") from error
