"""Intervals: how a range of time is cut into buckets, by plain lengths or by the calendar of a time zone.

Plain buckets begin at whole multiples of their length since 1970-01-01T00:00:00Z, with a time zone since that zone's
midnight of 1970-01-01; weeks at Mondays. Calendar buckets begin when the zone's clock first shows their date.
How many buckets there would be is known from arithmetic before any is made. Pure: no clock, no I/O but zoneinfo's.
"""

import re
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from functools import lru_cache
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
import numpy as np
import numpy.typing as npt

from common.protocol import Stretch
from common.timestamps import MAX_NS, MIN_NS, NS_PER_S
from workers.query.refusal import OverLimit, bad, shown

Edges = npt.NDArray[np.int64]

_UNITS_NS: Final = {
    "ms": 1_000_000,
    "s": NS_PER_S,
    "m": 60 * NS_PER_S,
    "h": 3600 * NS_PER_S,
    "d": 86_400 * NS_PER_S,
    "w": 7 * 86_400 * NS_PER_S,
}
_LONGEST_NS: Final = {  # of one unit: a zone may have the same date twice
    "d": 49 * 3600 * NS_PER_S,
    "w": 9 * 86_400 * NS_PER_S,
    "mo": 33 * 86_400 * NS_PER_S,
    "y": 368 * 86_400 * NS_PER_S,
}
_MONDAY: Final = date(1969, 12, 29)  # of the week in which 1970 begins
_MONDAY_NS: Final = -3 * 86_400 * NS_PER_S
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_OFFSET_NS: Final = 366 * 86_400 * NS_PER_S
_TEXT: Final = re.compile(r"(\d{1,12})(ms|s|mo|m|h|d|w|y)", re.ASCII)
_LENGTH: Final = re.compile(r"([+-]?)((?:\d{1,12}(?:ms|[smhdw]))+)", re.ASCII)
_PART: Final = re.compile(r"(\d+)(ms|[smhdw])", re.ASCII)
_WANTED: Final = 'a number of seconds, or text such as "500ms" "90s" "5m" "1h" "1d" "1w" "1mo" "1y"'
_LADDER: Final = (
    "1s", "2s", "5s", "10s", "15s", "30s", "1m", "2m", "5m", "10m", "15m", "30m", "1h", "2h", "3h", "6h", "12h",
    "1d", "7d", "30d", "1y", "2y", "5y", "10y", "20y", "50y", "100y", "200y",
)  # fmt: skip


class Interval(msgspec.Struct, frozen=True):
    """How to cut. text: as asked. count, unit: of the calendar, unit "" for a plain length of length_ns.

    offset_ns: shifts every edge, of a calendar's units on the zone's clock. zone: "" when none was asked.
    """

    text: str
    length_ns: int = 0
    count: int = 0
    unit: str = ""
    offset_ns: int = 0
    zone: str = ""


def parse_interval(value: Any, offset: Any, zone: Any) -> Interval:
    """The interval in a request's fields interval, offset and timezone. Raises Refusal."""
    name = _parse_zone(zone)
    offset_ns = _parse_offset(offset)
    if isinstance(value, str) and (match := _TEXT.fullmatch(value)) and int(match[1]):
        return _of_text(value, int(match[1]), match[2], offset_ns, name)
    if isinstance(value, int | float) and not isinstance(value, bool) and 1e-6 <= value <= MAX_NS // NS_PER_S:
        length_ns = value * NS_PER_S if isinstance(value, int) else round(value * 1e6) * 1000
        return Interval(f"{value}s", length_ns, offset_ns=offset_ns, zone=name)
    raise bad("interval", f"interval is {shown(value)}, want {_WANTED}")


def chosen(max_points: int, offset: Any, zone: Any, start_ns: int, end_ns: int) -> tuple[Interval, list[Stretch]]:
    """The smallest interval of the ladder that cuts a range into at most so many buckets, and these.

    Where every one makes more of it, an edge of 200 years lying inside, the whole range is one bucket.
    """
    for text in _LADDER:
        interval = parse_interval(text, offset, zone)
        if _at_least(interval, start_ns, end_ns) <= max_points:
            found = stretches(interval, start_ns, end_ns)
            if len(edges(found, start_ns, end_ns)) <= max_points:
                return interval, found
    return Interval("all"), [Stretch(start_ns, end_ns, 0, start_ns)]


def _at_least(interval: Interval, start_ns: int, end_ns: int) -> int:
    """So many buckets a range has at least; exactly so many where the length is plain."""
    if interval.unit:
        return max(1, (end_ns - start_ns) // (interval.count * _LONGEST_NS[interval.unit]))
    origin = _origin_ns(interval)
    return (end_ns - origin) // interval.length_ns - (start_ns - origin) // interval.length_ns + 1


def check_rows(interval: Interval, start_ns: int, end_ns: int, max_rows: int) -> None:
    """Refuse a range that has more buckets than query.max_rows. Takes arithmetic only."""
    count = _at_least(interval, start_ns, end_ns)
    if count > max_rows:
        text = f"interval {interval.text} cuts this range into {count} buckets, query.max_rows is {max_rows}"
        raise OverLimit("query.max_rows", max_rows, count, text, "interval")


def stretches(interval: Interval, start_ns: int, end_ns: int) -> list[Stretch]:
    """The buckets of a range that has few enough, equal ones in a row as one stretch.

    The first edge may lie before start_ns, but not before int64: there it is the least int64.
    """
    if interval.unit:
        return _runs(_calendar_edges(interval, start_ns, end_ns), start_ns, end_ns)
    origin, length_ns = _origin_ns(interval), interval.length_ns
    found = []
    first = origin + (start_ns - origin) // length_ns * length_ns
    if first < MIN_NS:
        found.append(Stretch(start_ns, min(end_ns, first + length_ns - 1), 0, MIN_NS))
        first += length_ns
    return found + _apart(max(start_ns, first), end_ns, length_ns, first)


def _apart(start_ns: int, end_ns: int, length_ns: int, first: int) -> list[Stretch]:
    """Equal buckets, the first edge given, as stretches within which no difference of times leaves int64."""
    found = []
    while end_ns - first > MAX_NS:
        edge = first + MAX_NS // length_ns * length_ns
        if start_ns < edge:
            found.append(Stretch(start_ns, edge - 1, length_ns, first))
        start_ns, first = max(start_ns, edge), edge
    return [*found, Stretch(start_ns, end_ns, length_ns, first)] if start_ns <= end_ns else found


def edges(found: list[Stretch], start_ns: int, end_ns: int) -> Edges:
    """The starts of all buckets of these stretches that have a part in start_ns <= time <= end_ns, ascending."""
    parts = [np.zeros(0, np.int64)]
    for stretch in found:
        low, high = max(stretch.start_ns, start_ns), min(stretch.end_ns, end_ns)
        if low > high:
            continue
        if not stretch.interval_ns:
            parts.append(np.array([stretch.offset_ns], np.int64))
            continue
        begin = (low - stretch.offset_ns) // stretch.interval_ns
        end = (high - stretch.offset_ns) // stretch.interval_ns
        parts.append(stretch.offset_ns + np.arange(begin, end + 1, dtype=np.int64) * stretch.interval_ns)
    return np.concatenate(parts)


# Fields


def _of_text(text: str, count: int, unit: str, offset_ns: int, zone: str) -> Interval:
    if unit in ("mo", "y") or (zone and unit in ("d", "w")):
        if count > 10_000:
            raise bad("interval", f"interval is {shown(text)}, want at most 10000 of a calendar's units")
        return Interval(text, 0, count, unit, offset_ns, zone)
    length_ns = count * _UNITS_NS[unit]
    if length_ns > MAX_NS:
        raise bad("interval", f"interval is {shown(text)}, want at most {MAX_NS // NS_PER_S} seconds")
    return Interval(text, length_ns, 0, "", offset_ns, zone)


def _parse_offset(value: Any) -> int:
    if value is None:
        return 0
    found: int | None = None
    if isinstance(value, str) and (match := _LENGTH.fullmatch(value)):
        found = sum(int(count) * _UNITS_NS[unit] for count, unit in _PART.findall(match[2]))
        found = -found if match[1] == "-" else found
    elif isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9:
        found = value * NS_PER_S if isinstance(value, int) else round(value * 1e6) * 1000
    if found is None or abs(found) > _MAX_OFFSET_NS:
        wanted = 'want seconds or text such as "6h" "-30m" "1d12h", at most 366 days'
        raise bad("offset", f"offset is {shown(value)}, {wanted}")
    return found


def _parse_zone(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str) or not value or len(value) > 100:
        raise bad("timezone", f"timezone is {shown(value)}, want a name such as Europe/Berlin")
    _zone(value)
    return value


@lru_cache(maxsize=128)
def _zone(name: str) -> tzinfo:
    """The time zone of a name, UTC for none. Raises Refusal."""
    if name in ("", "UTC"):
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:  # OSError: a name of a folder of the database
        lacking = "" if _has_zones() else "; this machine has no time zones at all, install tzdata"
        text = f"timezone {shown(name)} is not known, want a name of the IANA database such as Europe/Berlin{lacking}"
        raise bad("timezone", text) from error


def _has_zones() -> bool:
    try:
        ZoneInfo("Europe/Berlin")
    except ZoneInfoNotFoundError:
        return False
    return True


# Edges


def _origin_ns(interval: Interval) -> int:
    """Where one bucket of a plain length begins."""
    origin = interval.offset_ns
    if interval.zone:
        return origin + _instant_ns(datetime(1970, 1, 1), _zone(interval.zone))
    if interval.length_ns % _UNITS_NS["w"] == 0 and interval.text.endswith("w"):
        return origin + _MONDAY_NS
    return origin


def _calendar_edges(interval: Interval, start_ns: int, end_ns: int) -> Edges:
    """The edges of calendar buckets from the one that holds start_ns to the first behind end_ns."""
    zone = _zone(interval.zone)
    number = _number(interval, start_ns, zone) + 1
    while (edge := _edge_ns(interval, number, zone)) > start_ns:
        number -= 1
    found = [edge]
    while edge <= end_ns:
        number += 1
        edge = _edge_ns(interval, number, zone)
        if edge > found[-1]:  # a day that the zone skipped has no bucket
            found.append(edge)
    return np.array([min(max(edge, MIN_NS), MAX_NS) for edge in found], np.int64)


def _number(interval: Interval, time_ns: int, zone: tzinfo) -> int:
    """The number of the bucket whose dates a time has."""
    moment = _EPOCH + timedelta(seconds=time_ns // NS_PER_S)
    local = moment.astimezone(zone).replace(tzinfo=None) - _shift(interval)
    if interval.unit == "y":
        return (local.year - 1970) // interval.count
    if interval.unit == "mo":
        return ((local.year - 1970) * 12 + local.month - 1) // interval.count
    if interval.unit == "w":
        return (local.date() - _MONDAY).days // (7 * interval.count)
    return (local.date() - _EPOCH.date()).days // interval.count


def _shift(interval: Interval) -> timedelta:
    return timedelta(microseconds=interval.offset_ns // 1000)


def _edge_ns(interval: Interval, number: int, zone: tzinfo) -> int:
    """When a bucket begins. Years beyond those of int64 are cut to them."""
    first = number * interval.count
    if interval.unit in ("y", "mo"):
        year, month = (1970 + first, 0) if interval.unit == "y" else (1970 + first // 12, first % 12)
        if not 1600 < year < 2400:
            return MIN_NS - 1 if year < 2000 else MAX_NS + 1
        day = date(year, month + 1, 1)
    else:
        days, origin = (7 * first, _MONDAY) if interval.unit == "w" else (first, _EPOCH.date())
        if abs(days) > 150_000:
            return MIN_NS - 1 if days < 0 else MAX_NS + 1
        day = origin + timedelta(days=days)
    return _instant_ns(datetime.combine(day, time()) + _shift(interval), zone)


def _instant_ns(local: datetime, zone: tzinfo) -> int:
    """The first instant at which a zone's clock shows this time or, where it skips it, a later one."""
    found = local.replace(tzinfo=zone)
    utc = found.astimezone(UTC)
    if utc.astimezone(zone).replace(tzinfo=None) != local:
        utc = _after_gap(found, zone)
    return (utc - _EPOCH) // timedelta(microseconds=1) * 1000


def _after_gap(local: datetime, zone: tzinfo) -> datetime:
    """When the clock jumped over a time that it never showed, to the second."""
    low, high = local.replace(fold=1).astimezone(UTC), local.astimezone(UTC)  # before and not before the jump
    after = high.astimezone(zone).utcoffset()
    while high - low > timedelta(seconds=1):
        middle = low + timedelta(seconds=(high - low) // timedelta(seconds=2))
        if middle.astimezone(zone).utcoffset() == after:
            high = middle
        else:
            low = middle
    return high.replace(microsecond=0)


def _runs(found: Edges, start_ns: int, end_ns: int) -> list[Stretch]:
    """Stretches of the buckets between edges, the last of which only ends the one before."""
    # The last bucket may end behind int64, and the first begin before it: so Python's integers.
    starts = found.tolist()
    result: list[Stretch] = []
    at = 0
    while at < len(starts) - 1:
        length_ns = starts[at + 1] - starts[at]
        end = at + 1
        while end < len(starts) - 1 and starts[end + 1] - starts[end] == length_ns:
            end += 1
        low, high = max(start_ns, starts[at]), min(end_ns, starts[end] - 1 if end < len(starts) - 1 else MAX_NS)
        result += _apart(low, high, length_ns, starts[at]) if end - at > 1 else [Stretch(low, high, 0, starts[at])]
        at = end
    return result
