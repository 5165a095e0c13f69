"""The oracle of the query API: what an answer must say, worked out slowly and obviously. Imports nothing of ours.

Points: series (device, metric, ((tag, value), ...)) to {time in ns: value}. Figures are exact (Fraction) until the end.
The definitions are those of docs/http-api.md.
"""

import math
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

Series = tuple[str, str, tuple[tuple[str, str], ...]]
Points = Mapping[Series, Mapping[int, float]]
Sample = tuple[int, float]

S = 10**9
FIXED_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MONDAY_NS = -3 * 86400 * S  # 1969-12-29


@dataclass(frozen=True)
class Question:
    """What is asked, in the words of POST /query, but start and end in ns (None is open, both ends belong to it)."""

    operations: Sequence[str]
    device_id: Any = "*"
    metric_name: Any = "*"
    tags: Mapping[str, Any] | None = None
    more_tags: bool = False
    start: int | None = None
    end: int | None = None
    interval: str | None = None
    offset: str | None = None
    timezone: str | None = None
    group_by: Sequence[str] = field(default=())
    fill: Any = "none"


def answer(points: Points, asked: Question) -> list[dict[str, Any]]:
    """One row by group and bucket, ordered by group and time: "group" (its values), "time" (ns), operations, count."""
    groups: dict[tuple[Any, ...], list[list[Sample]]] = {}
    for series, samples in points.items():
        if matches(series, asked):
            rows = [(at, value) for at, value in sorted(samples.items()) if inside(at, asked)]
            groups.setdefault(group_of(series, asked.group_by), []).append(rows)
    found = []
    for group in sorted(groups, key=lambda values: [order_of(value) for value in values]):
        rows = list(group_rows(groups[group], asked))
        found += [{"group": group, **row} for row in filled(rows, asked)]
    return found


def order_of(value: Any) -> Any:
    """Sorts the values of groups: None first, texts by their letters, series by the bytes of their keys.

    In a key stand the number of texts, then each with its length before it, as MessagePack has texts of up to 31 bytes.
    """
    if isinstance(value, tuple):
        device, metric, tags = value
        texts = [device, metric, *(text for tag in tags for text in tag)]
        return 1, len(texts), [(len(text.encode()), text.encode()) for text in texts]
    return value is not None, value or ""


def inside(at: int, asked: Question) -> bool:
    """Whether a time belongs to the range."""
    return (asked.start is None or at >= asked.start) and (asked.end is None or at <= asked.end)


# Series


def matches(series: Series, asked: Question) -> bool:
    """Whether the question is about a series."""
    device, metric, tags = series
    if not (fits(device, asked.device_id) and fits(metric, asked.metric_name)):
        return False
    if asked.tags is None:
        return True
    have = dict(tags)
    if not asked.more_tags and set(have) != set(asked.tags):
        return False
    return all(name in have and fits(have[name], wanted) for name, wanted in asked.tags.items())


def fits(text: str, wanted: Any) -> bool:
    """Whether a text is what a pattern says: text, list, glob, ~regex or {"exact": text}."""
    if isinstance(wanted, list):
        return any(fits(text, each) for each in wanted)
    if isinstance(wanted, dict):
        return bool(text == wanted["exact"])
    if wanted.startswith("~"):
        return re.fullmatch(wanted[1:], text) is not None
    expression = "".join({"*": ".*", "?": "."}.get(char, re.escape(char)) for char in wanted)
    return re.fullmatch(expression, text, re.DOTALL) is not None


def group_of(series: Series, group_by: Sequence[str]) -> tuple[Any, ...]:
    """The values that a series is grouped by; None for a tag that it does not have."""
    device, metric, tags = series
    known: dict[str, Any] = {"device_id": device, "metric_name": metric, "series": series}
    known |= {f"tags.{name}": value for name, value in tags}
    return tuple(known.get(name) for name in group_by)


# Buckets


def bucket_of(at: int, asked: Question) -> tuple[int, int]:
    """Where the bucket of a time begins, and where the next one does, ns."""
    if asked.interval is None:
        return asked.start or 0, 2**63
    shift = length_of(asked.offset) if asked.offset else 0
    match = re.fullmatch(r"(\d+)(s|mo|m|h|d|w|y)", asked.interval)
    assert match, asked.interval
    number, unit = int(match[1]), match[2]
    if unit in ("mo", "y") or (asked.timezone and unit in ("d", "w")):
        return dates_of(at, number, unit, shift, ZoneInfo(asked.timezone or "UTC"))
    origin = clock_ns(datetime(1970, 1, 1), ZoneInfo(asked.timezone)) if asked.timezone else 0
    origin += shift + (MONDAY_NS if unit == "w" else 0)
    length = number * FIXED_S[unit] * S
    begin = origin + (at - origin) // length * length
    return begin, begin + length


def length_of(text: str) -> int:
    """Nanoseconds of a length of fixed units, with or without sign."""
    match = re.fullmatch(r"(-?)(\d+)([smhdw])", text)
    assert match, text
    return (-1 if match[1] else 1) * int(match[2]) * FIXED_S[match[3]] * S


def dates_of(at: int, number: int, unit: str, shift: int, zone: ZoneInfo) -> tuple[int, int]:
    """The bucket of a time by the calendar of a zone, its edges shifted on the zone's clock (docs/http-api.md)."""
    local = (EPOCH + timedelta(seconds=at // S)).astimezone(zone).replace(tzinfo=None)
    moved = timedelta(seconds=shift // S)
    first = first_day(local - moved, number, unit)
    return clock_ns(first + moved, zone), clock_ns(later(first, number, unit) + moved, zone)


def first_day(local: datetime, number: int, unit: str) -> datetime:
    """The day on which the bucket begins that a local time lies in."""
    if unit in ("d", "w"):
        start = datetime(1970, 1, 1) if unit == "d" else datetime(1969, 12, 29)
        days = number * (7 if unit == "w" else 1)
        passed = (datetime(local.year, local.month, local.day) - start).days
        return start + timedelta(days=passed // days * days)
    months = number * (12 if unit == "y" else 1)
    passed = (local.year - 1970) * 12 + local.month - 1
    year, month = divmod(passed // months * months, 12)
    return datetime(1970 + year, month + 1, 1)


def later(day: datetime, number: int, unit: str) -> datetime:
    """The day on which the next bucket begins."""
    if unit in ("d", "w"):
        return day + timedelta(days=number * (7 if unit == "w" else 1))
    year, month = divmod((day.year * 12 + day.month - 1) + number * (12 if unit == "y" else 1), 12)
    return datetime(year, month + 1, 1)


def clock_ns(local: datetime, zone: ZoneInfo) -> int:
    """When a zone's clock first shows a time, ns; a time that it skips is the one an hour later."""
    return int((local.replace(tzinfo=zone) - EPOCH) / timedelta(seconds=1)) * S


# Figures


Step = tuple[Fraction, Fraction, Fraction]  # seconds, signed change, increase
Area = tuple[Fraction, Fraction]  # seconds, value times seconds


class Bucket:
    """What lies in a bucket. samples, steps: by series."""

    def __init__(self, series: int) -> None:
        self.samples: list[list[Sample]] = [[] for _ in range(series)]
        self.steps: list[list[Step]] = [[] for _ in range(series)]
        self.areas: list[Area] = []


def group_rows(series: list[list[Sample]], asked: Question) -> Iterator[dict[str, Any]]:
    """The rows of one group, by time, of the buckets in which there is something."""
    buckets: dict[int, Bucket] = {}
    for number, rows in enumerate(series):
        collect(number, rows, lambda start: buckets.setdefault(start, Bucket(len(series))), asked)
    if asked.interval is None and not asked.group_by and not buckets:
        buckets[asked.start or 0] = Bucket(len(series))
    for start, bucket in sorted(buckets.items()):
        if any(bucket.samples) or asked.interval is None or {"integral", "twa"} & set(asked.operations):
            yield {"time": start} | figures(bucket, asked)


def collect(number: int, rows: list[Sample], bucket_at: Callable[[int], Bucket], asked: Question) -> None:
    """Put a series' samples, steps and trapezoids into their buckets."""
    for at, value in rows:
        bucket_at(bucket_of(at, asked)[0]).samples[number].append((at, value))
    for (before, old), (at, new) in pairwise(rows):
        change = Fraction(new) - Fraction(old)
        step = (Fraction(at - before, S), change, change if new >= old else Fraction(new))
        bucket_at(bucket_of(at, asked)[0]).steps[number].append(step)
        begin = before
        while begin < at:
            start, edge = bucket_of(begin, asked)
            end = min(edge, at)
            heights = [Fraction(old) + change * (time - before) / (at - before) for time in (begin, end)]
            seconds = Fraction(end - begin, S)
            bucket_at(start).areas.append((seconds, sum(heights) / 2 * seconds))
            begin = end


def figures(bucket: Bucket, asked: Question) -> dict[str, Any]:
    """Each operation over the samples, steps and trapezoids of a bucket, and count."""
    rows = [row for rows in bucket.samples for row in rows]
    made: dict[str, Any] = {}
    for operation in asked.operations:
        if operation in _OF_STEPS:
            steps = [of for of in bucket.steps if of]
            made[operation] = _OF_STEPS[operation](steps) if steps else None
        elif operation in ("integral", "twa"):
            made[operation] = area(operation, bucket.areas)
        elif operation == "count":
            made[operation] = len(rows)
        elif match := re.fullmatch(r"percentile\((.+)\)", operation):
            made[operation] = percentile([value for _, value in rows], Fraction(match[1])) if rows else None
        else:
            made[operation] = _OF_SAMPLES[operation](rows) if rows else None
    return made | {"count": len(rows)}


def area(operation: str, areas: list[Area]) -> Fraction | None:
    """The integral or the time-weighted average."""
    if not areas:
        return None
    total = sum((each for _, each in areas), Fraction(0))
    return total if operation == "integral" else total / sum((seconds for seconds, _ in areas), Fraction(0))


def percentile(values: list[float], share: Fraction) -> Fraction:
    """Linear between the two nearest ranks."""
    ranked = sorted(values)
    place = (len(ranked) - 1) * share / 100
    low = ranked[math.floor(place)]
    high = ranked[math.ceil(place)]
    return Fraction(low) + (Fraction(high) - Fraction(low)) * (place - math.floor(place))


def variance(rows: list[Sample]) -> Fraction | None:
    """Of a sample: divided by one less than the count."""
    if len(rows) < 2:
        return None
    mean = average(rows)
    return sum(((Fraction(value) - mean) ** 2 for _, value in rows), Fraction(0)) / (len(rows) - 1)


def average(rows: list[Sample]) -> Fraction:
    """Sum by count."""
    return total_of(rows) / len(rows)


def total_of(rows: list[Sample]) -> Fraction:
    """The exact sum."""
    return sum((Fraction(value) for _, value in rows), Fraction(0))


def spread(rows: list[Sample]) -> Fraction:
    """Largest less smallest."""
    values = [Fraction(value) for _, value in rows]
    return max(values) - min(values)


def deviation(rows: list[Sample]) -> float | None:
    """The square root of the variance."""
    squared = variance(rows)
    return None if squared is None else root(squared)


def root(squared: Fraction) -> float:
    """The square root of a fraction of any size, within a few units of its last place."""
    if not squared:
        return 0.0
    shift = (squared.numerator.bit_length() - squared.denominator.bit_length()) // 2 * 2
    scaled = squared / Fraction(2) ** shift
    return math.ldexp(math.sqrt(scaled), shift // 2)


def rank(value: float) -> tuple[int, int]:
    """Sorts as the IEEE total order: -0.0 before 0.0."""
    (bits,) = struct.unpack("<Q", struct.pack("<d", value))
    return (0, -bits) if bits >> 63 else (1, bits)


def at_time(rows: list[Sample], time: int) -> float:
    """The value at a time; of several series the larger."""
    return max((value for at, value in rows if at == time), key=rank)


_OF_SAMPLES: dict[str, Callable[[list[Sample]], Any]] = {
    "avg": average,
    "sum": total_of,
    "min": lambda rows: min((value for _, value in rows), key=rank),
    "max": lambda rows: max((value for _, value in rows), key=rank),
    "first": lambda rows: at_time(rows, min(rows)[0]),
    "last": lambda rows: at_time(rows, max(rows)[0]),
    "spread": spread,
    "variance": variance,
    "stddev": deviation,
    "median": lambda rows: percentile([value for _, value in rows], Fraction(50)),
}
_OF_STEPS: dict[str, Callable[[list[list[Step]]], Any]] = {
    "delta": lambda series: sum((change for steps in series for _, change, _ in steps), Fraction(0)),
    "increase": lambda series: sum((gain for steps in series for _, _, gain in steps), Fraction(0)),
    "rate": lambda series: sum(
        (sum(gain for _, _, gain in steps) / sum(seconds for seconds, _, _ in steps) for steps in series), Fraction(0)
    ),
}


# Filling


def filled(rows: list[dict[str, Any]], asked: Question) -> list[dict[str, Any]]:
    """The rows of one group with those of empty buckets."""
    if asked.fill == "none" or asked.interval is None or not rows:
        return rows
    by_time = {row["time"]: row for row in rows}
    at = rows[0]["time"] if asked.start is None else asked.start
    last = max(at, rows[-1]["time"]) if asked.end is None else asked.end  # the row's bucket may begin before the range
    times = []
    while at <= last:
        begin, at = bucket_of(at, asked)
        times.append(begin)
    empty = dict.fromkeys(asked.operations) | {"count": 0}
    made = [dict(by_time.get(time, {"time": time} | empty)) for time in times]
    for name in asked.operations:
        if name != "count":
            fill_column(made, name, asked.fill)
    return made


def fill_column(rows: list[dict[str, Any]], name: str, fill: Any) -> None:
    """Give a figure to the rows that have no points."""
    known = [(row["time"], row[name]) for row in rows if row[name] is not None]
    for row in rows:
        if row[name] is not None or row["count"]:
            continue
        before = [each for each in known if each[0] < row["time"]]
        after = [each for each in known if each[0] > row["time"]]
        if fill == "previous" and before:
            row[name] = before[-1][1]
        elif fill == "linear" and before and after:
            (start, low), (end, high) = before[-1], after[0]
            share = Fraction(row["time"] - start, end - start)
            row[name] = Fraction(low) + (Fraction(high) - Fraction(low)) * share
        elif isinstance(fill, int | float):
            row[name] = fill
