"""Many times at once: what times.time_ns makes of each, by numpy. Pure; owns nothing.

Numpy takes runs of rows that are surely good; each row of the others is asked of times.time_ns, which decides and has
the words. So the two cannot disagree on what is refused.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from common import timestamps
from common.points import Times
from workers.bridge import times
from workers.bridge.payload import Refused

FEW: Final = 32  # rows that are not worth another run: a call of numpy costs as much as some rows
_NUMBERS: Final = frozenset({int, float})
_US_PER_UNIT: Final = {"s": 1e6, "ms": 1e3, "us": 1.0, "ns": 1e-3}
_SURE_US: Final = 8e15  # below 2**53: each whole number of microseconds is a float, and within int64 nanoseconds


def to_ns(given: Any, unit: str, latest_ns: int, max_future_s: float) -> tuple[Times, dict[int, Refused]]:
    """Nanoseconds since the epoch of each time, i64 of shape (rows,), and by row number why some are refused.

    given: an i64 array of shape (rows,), or a list of what times.time_ns takes. unit, latest_ns, max_future_s: as
    there.
    """
    sure = _sure(given, unit, latest_ns)
    if sure is not None:
        return sure, {}
    found = np.zeros(len(given), np.int64)
    refused: dict[int, Refused] = {}
    runs = [(0, len(given))]
    while runs:
        begin, end = runs.pop()
        if end - begin > FEW:
            sure = _sure(given[begin:end], unit, latest_ns)
            if sure is not None:
                found[begin:end] = sure
            else:
                middle = (begin + end) // 2
                runs += [(begin, middle), (middle, end)]
            continue
        for row in range(begin, end):
            try:
                found[row] = times.time_ns(_plain(given[row]), unit, latest_ns, max_future_s)
            except Refused as why:
                refused[row] = why
    return found, refused


def _plain(time: Any) -> times.Time:
    return int(time) if isinstance(time, np.int64) else time


def _sure(given: Any, unit: str, latest_ns: int) -> Times | None:
    """The nanoseconds of all rows, None where some row is not surely good."""
    numbers = given if isinstance(given, np.ndarray) else _numbers(given, unit)
    if numbers is None or not len(numbers):
        return numbers
    low, high = np.minimum.reduce(numbers).item(), np.maximum.reduce(numbers).item()
    if unit == times.AUTO:
        unit = times.unit_of(low)
        if times.unit_of(high) != unit:
            return None
    of_unit = _integers if numbers.dtype == np.int64 else _floats
    return of_unit(numbers, low, high, unit, latest_ns)


def _numbers(given: Sequence[Any], unit: str) -> Any:
    """The rows as an array of i64 or f64, None where that would not be exact."""
    kinds = set(map(type, given))
    if kinds <= {int}:
        try:
            return np.array(given, np.int64)
        except OverflowError:
            return None
    if kinds == {float} or (kinds == _NUMBERS and unit not in ("ns", times.AUTO)):
        try:
            return np.array(given, np.float64)
        except OverflowError:
            return None
    return None


def _integers(numbers: Times, low: int, high: int, unit: str, latest_ns: int) -> Times | None:
    factor = timestamps.UNITS[unit]
    return numbers * factor if low >= 0 and high * factor <= min(latest_ns, timestamps.MAX_NS) else None


def _floats(numbers: npt.NDArray[np.float64], low: float, high: float, unit: str, latest_ns: int) -> Times | None:
    """Rounded to the microsecond, half to even, as timestamps.from_number does. NaN is in no range."""
    factor = _US_PER_UNIT[unit]
    if not (low >= 0 and high * factor <= _SURE_US and round(high * factor) * 1000 <= latest_ns):
        return None
    return np.rint(numbers * factor).astype(np.int64) * 1000
