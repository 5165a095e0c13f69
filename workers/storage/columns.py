"""Columns of a segment's index, packed: whole numbers, values and sums as bytes, and back, bit for bit.

Pure; any thread. A packed column is its codec's id (1 byte), a length (4 bytes) and so many bytes of that codec
(common.codec, the same as in blocks); a column without items is nothing. How many items there are is for the
reader to know.

Sums. The pair (hi, lo) of a sum of decimal numbers looks random, but is close to K / 10^e, and what is left is a
small multiple of a power of two. So a column of sums has two forms, of which the shorter is written:
    plain     byte 0, column of hi, column of lo
    decimal   byte 1, e (1 byte), s (1 byte), number of exceptions (4 bytes), column of K, column of m, and when there
              are exceptions their places, hi and lo, three columns
With d = K / 10^e in float64, and x the exponent for which 2^(x-1) <= |d| < 2^x (0 for d = 0), the rest is
r = m * 2^(x - 53 - s), hi is d + r rounded to float64 and lo what rounding left over (Knuth's TwoSum).
"""

import struct
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from common import codec
from common.errors import CodecError
from workers.storage.layout import DamagedError

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_FRAME: Final = struct.Struct("<BI")  # codec, length
_DECIMAL: Final = struct.Struct("<BBBI")  # form, e, s, exceptions
_PLAIN_FORM: Final = 0
_DECIMAL_FORM: Final = 1
_POLICY: Final = "auto"

_MAX_E: Final = 9  # sums of values with more decimals are seldom short
_MAX_S: Final = 60
_EXCEPTION_BITS: Final = 180  # what one costs, about
_TOLERANCE: Final = 2.0**-52  # of the sum of magnitudes: twice what rounding each item to float64 can add up to
_CHANCE: Final = 2.0**46  # beyond so many units of 10^-e in that sum, anything would pass for decimal


def pack_integers(items: Integers) -> bytes:
    """A column of int64, shape (n,)."""
    if not len(items):
        return b""
    return _framed(codec.pack_times(np.ascontiguousarray(items), _POLICY))


def pack_values(items: Floats) -> bytes:
    """A column of float64, shape (n,); every bit pattern is kept."""
    if not len(items):
        return b""
    return _framed(codec.pack_values(np.ascontiguousarray(items), _POLICY))


def pack_sums(hi: Floats, lo: Floats, weights: Floats) -> bytes:
    """Two columns of float64, the high and low parts of sums. weights: at least the sums of their items' magnitudes."""
    if not len(hi):
        return b""
    plain = bytes([_PLAIN_FORM]) + pack_values(hi) + pack_values(lo)
    with np.errstate(all="ignore"):
        found = _decimals(hi, lo, weights)
    if found is None:
        return plain
    places = found.exceptions
    decimal = (
        _DECIMAL.pack(_DECIMAL_FORM, found.e, found.s, len(places))
        + pack_integers(found.k)
        + pack_integers(found.m)
        + pack_integers(places)
        + pack_values(hi[places])
        + pack_values(lo[places])
    )
    return min(plain, decimal, key=len)


class Reader:
    """Reads columns one behind the other. where: what to call the bytes in errors. All methods raise DamagedError."""

    def __init__(self, data: Any, where: str) -> None:
        self._data = memoryview(data)
        self._at = 0
        self._where = where

    def fixed(self, dtype: str, count: int) -> Any:
        """The next `count` items as they are, a copy."""
        size = count * np.dtype(dtype).itemsize
        return np.frombuffer(self._take(size), dtype).astype(np.dtype(dtype).newbyteorder("="))

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

    def sums(self, count: int) -> tuple[Floats, Floats]:
        """The next two columns of sums, hi and lo, float64[count]."""
        if not count:
            return np.empty(0, np.float64), np.empty(0, np.float64)
        form = self._take(1)[0]
        if form == _PLAIN_FORM:
            return self.values(count), self.values(count)
        if form == _DECIMAL_FORM:
            return self._decimal_sums(count)
        raise DamagedError(f"{self._where}: sums of form {form}, want {_PLAIN_FORM} or {_DECIMAL_FORM}")

    def rest(self) -> memoryview:
        """All bytes that are left."""
        return self._take(len(self._data) - self._at)

    def finish(self) -> None:
        """Check that nothing is left."""
        if self._at != len(self._data):
            raise DamagedError(f"{self._where}: {len(self._data)} bytes, want {self._at}")

    def _decimal_sums(self, count: int) -> tuple[Floats, Floats]:
        _, e, s, exceptions = _DECIMAL.unpack(bytes([_DECIMAL_FORM]) + self._take(_DECIMAL.size - 1))
        if e > _MAX_E or s > _MAX_S or exceptions > count:
            raise DamagedError(f"{self._where}: sums with e {e}, s {s} and {exceptions} exceptions of {count}")
        k, m = self.integers(count), self.integers(count)
        places = self.integers(exceptions)
        if exceptions and not 0 <= int(places.min()) <= int(places.max()) < count:
            raise DamagedError(f"{self._where}: exception {places.max()} of {count} sums")
        with np.errstate(all="ignore"):
            hi, lo = _rebuild(k, m, e, s)
        hi[places], lo[places] = self.values(exceptions), self.values(exceptions)
        return hi, lo

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


def _framed(packed: tuple[int, bytes]) -> bytes:
    codec_id, data = packed
    return _FRAME.pack(codec_id, len(data)) + data


class _Decimals(NamedTuple):
    e: int
    s: int
    k: Integers
    m: Integers
    exceptions: Integers


def _decimals(hi: Floats, lo: Floats, weights: Floats) -> _Decimals | None:
    """The decimal form of sums; None when most of them are no sums of decimals."""
    e, near = _exponent(hi, weights)
    if near.sum() * 4 < 3 * len(hi):
        return None
    k = np.where(near, np.rint(hi * 10.0**e), 0.0)
    decimal = k / 10.0**e
    rest = (hi - decimal) + lo
    wanted = _wanted_bits(rest, decimal)
    s = _cheapest(wanted[near])
    m = np.ldexp(rest, 53 + s - np.frexp(decimal)[1])
    short = near & (wanted <= s) & (np.abs(m) < 2.0**53)
    k_whole = np.where(short, k, 0.0).astype(np.int64)
    m_whole = np.where(short, m, 0.0).astype(np.int64)
    hi_again, lo_again = _rebuild(k_whole, m_whole, e, s)
    same = (hi_again.view(np.int64) == hi.view(np.int64)) & (lo_again.view(np.int64) == lo.view(np.int64))
    return _Decimals(e, s, k_whole, m_whole, np.flatnonzero(~same))


def _exponent(hi: Floats, weights: Floats) -> tuple[int, npt.NDArray[np.bool_]]:
    """The e for which the most sums are close to a whole number of 10^-e, and which those are."""
    best, best_near = 0, np.zeros(len(hi), np.bool_)
    for e in range(_MAX_E + 1):
        power = 10.0**e
        near = (np.abs(hi - np.rint(hi * power) / power) <= weights * _TOLERANCE) & (weights * power < _CHANCE)
        if near.sum() > best_near.sum():
            best, best_near = e, near
        if near.all():
            break
    return best, best_near


def _wanted_bits(rest: Floats, decimal: Floats) -> Integers:
    """For each rest the least s >= 0 that makes it a whole multiple of 2^(x - 53 - s)."""
    mantissas, exponents = np.frexp(rest)
    whole = np.ldexp(mantissas, 53).astype(np.int64)
    trailing = np.frexp((whole & -whole).astype(np.float64))[1] - 1  # zero bits at the end
    bits = np.frexp(decimal)[1] - (exponents + np.maximum(trailing, 0))
    return np.where(whole == 0, 0, np.maximum(bits, 0)).astype(np.int64)


def _cheapest(wanted: Integers) -> int:
    """The s that costs the fewest bits, when what wants more becomes an exception."""
    histogram = np.bincount(np.minimum(wanted, _MAX_S + 1), minlength=_MAX_S + 2)
    above = len(wanted) - np.cumsum(histogram[: _MAX_S + 1])
    return int(np.argmin(np.arange(_MAX_S + 1) * len(wanted) + _EXCEPTION_BITS * above))


def _rebuild(k: Integers, m: Integers, e: int, s: int) -> tuple[Floats, Floats]:
    decimal = k / 10.0**e
    rest = np.ldexp(m.astype(np.float64), np.frexp(decimal)[1] - 53 - s)
    hi = decimal + rest
    part = hi - decimal
    return hi, (decimal - (hi - part)) + (rest - part)
