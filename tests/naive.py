"""The oracle: what a store of points must answer, computed slowly and obviously. Imports nothing of ours.

Series may be anything hashable; timestamps are ints, values floats.
"""

import math
import struct
from collections.abc import Callable, Hashable, Iterable
from fractions import Fraction
from typing import Any, NamedTuple

UNITS = 2**1074  # of the smallest float in 1


class Answer(NamedTuple):
    """An aggregate. sum, mean and m2 (of squared distances from the mean) are exact. With count 0 all is 0."""

    series: int
    count: int
    sum: Fraction
    min: float
    max: float
    first_time: int
    first: float
    last_time: int
    last: float
    mean: Fraction
    m2: Fraction


class Delete(NamedTuple):
    """Points of series that match, start <= time <= end, born before `number`, are gone."""

    number: int
    matches: Callable[[Any], bool]
    start: int
    end: int


class PointSet:
    """Points by identity (series, timestamp), but for those that were deleted, and those older than the cutoff."""

    def __init__(self) -> None:
        self.points: dict[Hashable, dict[int, float]] = {}
        self.deletes: list[Delete] = []
        self.cutoff: int | None = None

    def copy(self) -> "PointSet":
        """Another set of the same points, deletes and cutoff."""
        other = PointSet()
        other.points = {series: dict(points) for series, points in self.points.items()}
        other.deletes = list(self.deletes)
        other.cutoff = self.cutoff
        return other

    def add(self, series: Hashable, time: int, value: float, born: int | None = None) -> bool:
        """Store a point; of two values for one (series, timestamp) the larger stays. born: None is after any delete.

        False when it is refused because it is too old. One that a delete masks is neither stored nor refused.
        """
        for delete in self.deletes:
            late = born is not None and born < delete.number and delete.start <= time <= delete.end
            if late and delete.matches(series):
                return True
        if self.cutoff is not None and time < self.cutoff:
            return False
        held = self.points.setdefault(series, {})
        if time not in held or rank(value) > rank(held[time]):
            held[time] = value
        return True

    def delete(self, number: int, matches: Callable[[Any], bool], start: int, end: int) -> None:
        """Delete what is there, and what comes later and was born before."""
        self.deletes.append(Delete(number, matches, start, end))
        for series in self.points:
            if matches(series):
                self._keep(series, lambda time: not start <= time <= end)

    def retain(self, cutoff: int) -> None:
        """Forget what is older than the cutoff, now and for ever."""
        self.cutoff = cutoff
        for series in self.points:
            self._keep(series, lambda time: time >= cutoff)

    def _keep(self, series: Hashable, wanted: Callable[[int], bool]) -> None:
        self.points[series] = {time: value for time, value in self.points[series].items() if wanted(time)}

    def rows(self, series: Hashable, start: int | None = None, end: int | None = None) -> list[tuple[int, float]]:
        """The points of a series with start <= time <= end, by time; None is open."""
        return [
            (time, value)
            for time, value in sorted(self.points.get(series, {}).items())
            if (start is None or time >= start) and (end is None or time <= end)
        ]

    def aggregate(self, wanted: Iterable[Hashable], start: int | None = None, end: int | None = None) -> Answer:
        """Over all points of the wanted series with start <= time <= end; None is open."""
        wanted = list(wanted)
        known = sum(1 for series in wanted if self.points.get(series))
        return summary([row for series in wanted for row in self.rows(series, start, end)], known)

    def by_interval(
        self, series: Hashable, interval: int, offset: int, start: int | None = None, end: int | None = None
    ) -> dict[int, Answer]:
        """By number of the bucket that a point lies in: floor((time - offset) / interval). None is empty."""
        buckets: dict[int, list[tuple[int, float]]] = {}
        for time, value in self.rows(series, start, end):
            buckets.setdefault((time - offset) // interval, []).append((time, value))
        return {number: summary(rows, 1) for number, rows in buckets.items()}

    def magnitude(self, wanted: Iterable[Hashable]) -> float:
        """The sum of the absolute values: what the error of a sum is measured by."""
        return math.fsum(abs(value) for series in wanted for value in self.points.get(series, {}).values())


def summary(rows: list[tuple[int, float]], series: int) -> Answer:
    """The aggregate of rows (time, value) of so many series."""
    if not rows:
        return Answer(series, 0, Fraction(0), 0.0, 0.0, 0, 0.0, 0, 0.0, Fraction(0), Fraction(0))
    values = [value for _, value in rows]
    first_time = min(time for time, _ in rows)
    last_time = max(time for time, _ in rows)
    units = [whole(value) for value in values]
    total = sum(units)
    return Answer(
        series=series,
        count=len(rows),
        sum=Fraction(total, UNITS),
        min=min(values, key=rank),
        max=max(values, key=rank),
        first_time=first_time,
        first=max((value for time, value in rows if time == first_time), key=rank),
        last_time=last_time,
        last=max((value for time, value in rows if time == last_time), key=rank),
        mean=Fraction(total, UNITS * len(rows)),
        m2=Fraction(len(rows) * sum(unit * unit for unit in units) - total * total, len(rows) * UNITS**2),
    )


def whole(value: float) -> int:
    """A float in units of the smallest one: fractions would take ten times as long."""
    numerator, denominator = value.as_integer_ratio()
    return numerator * (UNITS // denominator)


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
