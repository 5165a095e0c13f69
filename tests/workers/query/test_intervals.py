"""Buckets against a clock that is read for every time, over changes of clocks and calendars, to the ends of int64."""

import random
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest

from common.protocol import Stretch
from common.timestamps import MAX_NS, MIN_NS
from workers.query import intervals
from workers.query.intervals import edges, parse_interval, stretches
from workers.query.refusal import OverLimit, Refusal

S = 10**9
DAY_S = 86_400
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def bucket(found: list[Stretch], at: int) -> int:
    """Where the bucket of a time begins, as a node works it out."""
    stretch = next(each for each in found if each.start_ns <= at <= each.end_ns)
    if not stretch.interval_ns:
        return stretch.offset_ns
    return stretch.offset_ns + (at - stretch.offset_ns) // stretch.interval_ns * stretch.interval_ns


def unix(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


def local(at_s: int, zone: ZoneInfo) -> datetime:
    return (EPOCH + timedelta(seconds=at_s)).astimezone(zone).replace(tzinfo=None)


def label(moment: datetime, number: int, unit: str) -> int:
    """The number of the bucket that a date lies in."""
    if unit == "d":
        return (moment.date() - EPOCH.date()).days // number
    if unit == "w":
        return (moment.date() - datetime(1969, 12, 29).date()).days // (7 * number)
    months = (moment.year - 1970) * 12 + moment.month - 1
    return months // number if unit == "mo" else (moment.year - 1970) // number


@pytest.mark.parametrize(
    ("zone", "start", "days"),
    [
        ("UTC", "2023-12-20", 80),
        ("Europe/Berlin", "2024-03-20", 20),
        ("Europe/Berlin", "2024-10-20", 20),
        ("America/New_York", "2024-10-25", 20),
        ("Australia/Lord_Howe", "2024-03-30", 20),  # half an hour
        ("Australia/Lord_Howe", "2024-09-30", 20),
        ("America/Sao_Paulo", "2018-10-28", 20),  # midnight does not exist on 4 November
        ("America/Sao_Paulo", "2019-02-10", 20),  # 23:00 to midnight comes twice
        ("Pacific/Apia", "2011-12-20", 20),  # 30 December does not exist
        ("Asia/Kathmandu", "1985-12-25", 20),
        ("Africa/Casablanca", "2024-03-01", 60),  # out of summer time for Ramadan
        ("America/Toronto", "1919-03-25", 10),  # the clock jumps from 23:30 over midnight
    ],
)
@pytest.mark.parametrize("text", ["1d", "3d", "1w", "1mo", "5mo", "1y"])
def test_calendar_buckets_are_those_of_the_zones_clock(zone: str, start: str, days: int, text: str) -> None:
    clock = ZoneInfo(zone)
    begin, number, unit = unix(start), int(text[0]), text[1:]
    end = begin + days * DAY_S
    found = stretches(parse_interval(text, None, zone), begin * S, end * S)
    assert found[0].start_ns == begin * S
    assert found[-1].end_ns == end * S
    assert all(one.end_ns + 1 == two.start_ns for one, two in pairwise(found))
    highest, starts = None, {}
    for at in range(begin, end + 1, 900):
        now = label(local(at, clock), number, unit)
        highest = now if highest is None else max(highest, now)  # an hour that comes twice stays where it began
        starts.setdefault(highest, bucket(found, at * S))
        assert starts[highest] == bucket(found, at * S), (local(at, clock), text)
    assert len(set(starts.values())) == len(starts)
    for name, at in starts.items():
        assert label(local(at // S, clock), number, unit) == name
        assert label(local(at // S - 1, clock), number, unit) < name
    assert list(edges(found, begin * S, end * S)) == sorted(starts.values())


def test_days_of_a_change_of_clocks_have_23_and_25_hours_and_equal_ones_are_one_stretch() -> None:
    found = stretches(parse_interval("1d", None, "Europe/Berlin"), unix("2024-01-01") * S, unix("2024-12-31") * S)
    starts = edges(found, MIN_NS, MAX_NS)
    assert sorted({int(length) // S for length in starts[1:] - starts[:-1]}) == [82800, 86400, 90000]
    assert [stretch.interval_ns // S for stretch in found] == [86400, 0, 86400, 0, 86400]


@pytest.mark.parametrize(
    ("text", "offset", "zone", "at", "want"),
    [
        ("1h", None, None, "2024-05-01T12:34:56", "2024-05-01T12:00:00"),
        ("1h", "15m", None, "2024-05-01T12:14:59", "2024-05-01T11:15:00"),
        ("1h", "-15m", None, "2024-05-01T12:46:00", "2024-05-01T12:45:00"),
        ("1d", "6h", None, "2024-05-01T05:59:59", "2024-04-30T06:00:00"),
        ("1w", None, None, "2024-05-05T23:59:59", "2024-04-29T00:00:00"),
        ("1w", None, None, "1969-12-30T00:00:00", "1969-12-29T00:00:00"),
        (7 * DAY_S, None, None, "1969-12-30T00:00:00", "1969-12-25T00:00:00"),
        ("1mo", None, None, "1969-12-30T00:00:00", "1969-12-01T00:00:00"),
        ("3mo", None, None, "2024-05-05T00:00:00", "2024-04-01T00:00:00"),
        ("1y", None, "Asia/Tokyo", "2023-12-31T15:00:00", "2023-12-31T15:00:00"),
        ("1h", None, "Asia/Kolkata", "2024-05-01T12:34:56", "2024-05-01T12:30:00"),
        ("1d", "6h", "Europe/Berlin", "2024-05-01T03:59:59", "2024-04-30T04:00:00"),
        ("1d", "6h", "Europe/Berlin", "2024-03-31T04:00:00", "2024-03-31T04:00:00"),  # 5 hours after midnight
        ("1d", "-3h", "Europe/Berlin", "2024-03-31T18:59:59", "2024-03-30T20:00:00"),
        ("1mo", "14d12h", "Europe/Berlin", "2024-04-14T12:00:00", "2024-03-15T11:00:00"),
        ("90s", None, None, "1969-12-31T23:59:59", "1969-12-31T23:58:30"),
        (0.5, None, None, "2024-05-01T12:34:56", "2024-05-01T12:34:56"),
        ("250ms", None, None, "2024-05-01T12:34:56", "2024-05-01T12:34:56"),
    ],
)
def test_a_bucket_begins_where_the_docs_say(
    text: str | float, offset: str | None, zone: str | None, at: str, want: str
) -> None:
    at_ns = unix(at) * S
    found = stretches(parse_interval(text, offset, zone), at_ns, at_ns)
    assert bucket(found, at_ns) == unix(want) * S


@pytest.mark.parametrize("text", ["1h", "3mo", "1y", "10y", "500y", "9223372036s", "3000000000s"])
@pytest.mark.parametrize("zone", [None, "America/Lima"])
def test_buckets_reach_the_ends_of_int64_and_no_difference_leaves_it(text: str, zone: str | None) -> None:
    for low, high in ((MIN_NS, MAX_NS), (MIN_NS, MIN_NS), (MAX_NS, MAX_NS), (MIN_NS + 5, -1), (-5, MAX_NS)):
        found = stretches(parse_interval(text, "-1h", zone), low, high)
        assert (found[0].start_ns, found[-1].end_ns) == (low, high)
        assert all(one.end_ns + 1 == two.start_ns for one, two in pairwise(found))
        for stretch in found:
            assert MIN_NS <= stretch.offset_ns <= stretch.start_ns <= stretch.end_ns <= MAX_NS
            assert not stretch.interval_ns or stretch.end_ns - stretch.offset_ns <= MAX_NS
            assert 0 <= stretch.interval_ns <= MAX_NS
        if text in ("1y", "3mo"):
            starts = edges(found, low, high)
            assert (starts[1:] > starts[:-1]).all()


def test_plain_buckets_of_random_times_are_floors() -> None:
    draw = random.Random(1)
    for _ in range(300):
        low = draw.randrange(MIN_NS, MAX_NS)
        high = draw.randrange(low, MAX_NS)
        length = draw.randrange(1, 10 ** draw.randrange(1, 10))
        found = stretches(parse_interval(length, None, None), low, high)
        for at in (low, high, draw.randrange(low, high)):
            assert bucket(found, at) == max(at // (length * S) * length * S, MIN_NS)


@pytest.mark.parametrize(
    ("length_s", "points", "want"),
    [
        (0, 1, "1s"), (99, 100, "1s"), (100, 100, "2s"), (3599, 60, "1m"), (3600, 60, "2m"), (86_399, 1, "1d"),
        (86_400 * 365, 12, "7d"), (86_400 * 365, 400, "1d"), (86_400 * 365 * 41, 40, "2y"),
    ],
)  # fmt: skip
def test_max_points_chooses_the_smallest_interval_of_the_ladder(length_s: int, points: int, want: str) -> None:
    start = unix("2024-01-01") * S
    interval, found = intervals.chosen(points, None, None, start, start + length_s * S)
    if want == "7d":  # 53 weeks are too many
        assert interval.text == "1y" or len(edges(found, MIN_NS, MAX_NS)) <= points
        return
    assert interval.text == want
    assert len(edges(found, MIN_NS, MAX_NS)) <= points


def test_max_points_are_never_exceeded() -> None:
    draw = random.Random(2)
    for _ in range(200):
        low = draw.randrange(MIN_NS, MAX_NS)
        high = min(MAX_NS, low + draw.randrange(10 ** draw.randrange(1, 20)))
        points = draw.choice([1, 2, 3, 10, 100, 1000])
        zone = draw.choice([None, "Europe/Berlin"])
        _, found = intervals.chosen(points, None, zone, low, high)
        assert 1 <= len(edges(found, low, high)) <= points
        assert (found[0].start_ns, found[-1].end_ns) == (low, high)


def test_too_many_buckets_are_refused_from_arithmetic_alone() -> None:
    for text in ("1ms", "1s", "1h", "1d"):
        interval = parse_interval(text, None, "Europe/Berlin")
        with pytest.raises(OverLimit, match=r"query\.max_rows is 1000"):
            intervals.check_rows(interval, MIN_NS, MAX_NS, 1000)
    intervals.check_rows(parse_interval("1mo", None, None), MIN_NS, MAX_NS, 10_000)


def test_a_machine_without_time_zones_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> ZoneInfo:
        raise intervals.ZoneInfoNotFoundError(name)

    monkeypatch.setattr(intervals, "ZoneInfo", none)
    with pytest.raises(Refusal, match="this machine has no time zones at all, install tzdata"):
        parse_interval("1d", None, "Asia/Ulaanbaatar")
