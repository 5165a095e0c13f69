"""The oracle: what a store of points must answer, computed slowly and obviously. Imports nothing of ours.

Series may be anything hashable; timestamps are ints, values floats.
"""

import math
import struct
from collections.abc import Hashable, Iterable
from fractions import Fraction
from typing import NamedTuple


class Answer(NamedTuple):
    """An aggregate. sum is exact. With count 0 the other figures are 0."""

    series: int
    count: int
    sum: Fraction
    min: float
    max: float
    first_time: int
    first: float
    last_time: int
    last: float


class PointSet:
    """Points by identity (series, timestamp)."""

    def __init__(self) -> None:
        self.points: dict[Hashable, dict[int, float]] = {}

    def add(self, series: Hashable, time: int, value: float) -> None:
        """Store a point. Of two values for one (series, timestamp) the larger stays."""
        held = self.points.setdefault(series, {})
        if time not in held or rank(value) > rank(held[time]):
            held[time] = value

    def aggregate(self, wanted: Iterable[Hashable], start: int | None = None, end: int | None = None) -> Answer:
        """Over all points of the wanted series with start <= time <= end; None is open."""
        wanted = list(wanted)
        known = sum(1 for series in wanted if self.points.get(series))
        rows = [
            (series, time, value)
            for series in wanted
            for time, value in self.points.get(series, {}).items()
            if (start is None or time >= start) and (end is None or time <= end)
        ]
        if not rows:
            return Answer(known, 0, Fraction(0), 0.0, 0.0, 0, 0.0, 0, 0.0)
        values = [value for _, _, value in rows]
        first_time = min(time for _, time, _ in rows)
        last_time = max(time for _, time, _ in rows)
        return Answer(
            series=known,
            count=len(rows),
            sum=sum((Fraction(value) for value in values), Fraction(0)),
            min=min(values, key=rank),
            max=max(values, key=rank),
            first_time=first_time,
            first=max((value for _, time, value in rows if time == first_time), key=rank),
            last_time=last_time,
            last=max((value for _, time, value in rows if time == last_time), key=rank),
        )

    def magnitude(self, wanted: Iterable[Hashable]) -> float:
        """The sum of the absolute values: what the error of a sum is measured by."""
        return math.fsum(abs(value) for series in wanted for value in self.points.get(series, {}).values())


def bits(value: float) -> int:
    """The 64 bits of a float."""
    number: int = struct.unpack("<Q", struct.pack("<d", value))[0]
    return number


def rank(value: float) -> tuple[int, int]:
    """Sorts as the IEEE total order: -0.0 before 0.0."""
    number = bits(value)
    return (0, -number) if number >> 63 else (1, number)


def mix(word: int) -> int:
    """One step of splitmix64."""
    word = (word + 0x9E3779B97F4A7C15) % 2**64
    word = ((word ^ word >> 30) * 0xBF58476D1CE4E5B9) % 2**64
    word = ((word ^ word >> 27) * 0x94D049BB133111EB) % 2**64
    return word ^ word >> 31


def digest(series_hash: int, points: Iterable[tuple[int, float]]) -> int:
    """The digest of points (time, value) of a series: docs/file-formats.md."""
    return sum(mix(mix(mix(series_hash) ^ time % 2**64) ^ bits(value)) for time, value in points) % 2**64
