"""Columns of a segment's index, packed: whole numbers and values as bytes, and back, bit for bit.

Pure; any thread. A packed column is its codec's id (1 byte), a length (4 bytes) and so many bytes of that codec
(common.codec, the same as in blocks); a column without items is nothing. How many items there are is for the
reader to know.
"""

import struct
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from common import codec
from common.errors import CodecError
from workers.storage.layout import DamagedError

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_FRAME: Final = struct.Struct("<BI")  # codec, length


def pack_integers(items: Integers) -> bytes:
    """A column of int64, shape (n,)."""
    return _framed(codec.pack_times(np.ascontiguousarray(items), "auto")) if len(items) else b""


def pack_values(items: Floats) -> bytes:
    """A column of float64, shape (n,); every bit pattern is kept."""
    return _framed(codec.pack_values(np.ascontiguousarray(items), "auto")) if len(items) else b""


def _framed(packed: tuple[int, bytes]) -> bytes:
    codec_id, data = packed
    return _FRAME.pack(codec_id, len(data)) + data


class Reader:
    """Reads columns one behind the other. where: what to call the bytes in errors. All methods raise DamagedError."""

    def __init__(self, data: bytes, where: str) -> None:
        self._data = memoryview(data)
        self._at = 0
        self._where = where

    def fixed(self, dtype: str, count: int) -> Any:
        """The next `count` items as they are, a copy in the machine's byte order."""
        stored = np.dtype(dtype)
        return np.frombuffer(self._take(count * stored.itemsize), stored).astype(stored.newbyteorder("="))

    def integers(self, count: int) -> Integers:
        """The next column, int64[count]."""
        if not count:
            return np.empty(0, np.int64)
        codec_id, data = self._column()
        try:
            return codec.decode_times(data, count, codec_id)
        except CodecError as error:
            raise DamagedError(f"{self._where}: {error}") from error

    def values(self, count: int) -> Floats:
        """The next column, float64[count]."""
        if not count:
            return np.empty(0, np.float64)
        codec_id, data = self._column()
        try:
            return codec.decode_values(data, count, codec_id)
        except CodecError as error:
            raise DamagedError(f"{self._where}: {error}") from error

    def rest(self) -> memoryview:
        """All bytes that are left."""
        return self._take(len(self._data) - self._at)

    def finish(self) -> None:
        """Check that nothing is left."""
        if self._at != len(self._data):
            raise DamagedError(f"{self._where}: {len(self._data)} bytes, want {self._at}")

    def _column(self) -> tuple[int, memoryview]:
        codec_id, length = _FRAME.unpack(self._take(_FRAME.size))
        return codec_id, self._take(length)

    def _take(self, length: int) -> memoryview:
        end = self._at + length
        if end > len(self._data):
            raise DamagedError(f"{self._where}: {len(self._data)} bytes, want at least {end}")
        taken = self._data[self._at : end]
        self._at = end
        return taken
