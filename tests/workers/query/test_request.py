"""What clients send: the good is understood exactly, the bad is refused with field, value and what is allowed."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import match
from common.config import Settings
from common.match import Match
from common.protocol import Stretch
from common.series import series_key
from workers.query import listing
from workers.query.frame import Context, Request
from workers.query.listing import Listing
from workers.query.operations import PLAIN
from workers.query.refusal import OverLimit, Refusal
from workers.query.request import (
    FIELDS,
    make_cursor,
    parse_query,
    reaching,
    read_cursor,
)

SETTINGS = Settings()
NOW_NS = 1_700_000_000_123_456_789
GOOD = {"device_id": "sensor_1", "metric_name": "temperature", "operation": "avg"}


def query(**changes: Any) -> bytes:
    return json.dumps(GOOD | changes).encode()


def refusal(body: bytes) -> Refusal:
    with pytest.raises(Refusal) as caught:
        parse_query(body, SETTINGS, NOW_NS)
    return caught.value


@pytest.mark.parametrize(
    ("start", "want"),
    [
        (None, None),
        (0, None),
        (0.0, None),
        (-0.0, None),
        (1_700_000_000, 1_700_000_000_000_000_000),
        (1_700_000_000.001, 1_700_000_000_001_000_000),
        (1_700_000_000.123456, 1_700_000_000_123_456_000),
        (0.0000014, 1000),
        (0.0000016, 2000),
        (-5, -5_000_000_000),
        (9_223_372_036, 9_223_372_036_000_000_000),
        ("1970-01-01T00:00:01Z", 1_000_000_000),
        ("2024-05-01T14:00:00.25+02:00", 1_714_564_800_250_000_000),
        ("1970-01-01T00:00:00Z", 0),
    ],
)
def test_times_become_nanoseconds_and_zero_or_nothing_is_open(start: Any, want: int | None) -> None:
    assert parse_query(query(start_time=start), SETTINGS, NOW_NS).start_ns == want
    assert parse_query(query(end_time=start), SETTINGS, NOW_NS).end_ns == want


def test_missing_times_and_tags_mean_everything_and_an_empty_map_means_no_tags() -> None:
    parsed = parse_query(query(), SETTINGS, NOW_NS)
    assert (parsed.start_ns, parsed.end_ns, parsed.body.tags) == (None, None, None)
    assert parse_query(query(tags={}), SETTINGS, NOW_NS).body.tags == {}
    assert parse_query(query(tags={"room": "kitchen"}), SETTINGS, NOW_NS).body.tags == {"room": "kitchen"}


def test_only_times_relative_to_now_have_a_range_to_tell() -> None:
    assert parse_query(query(start_time=5, end_time="1970-01-03T00:00:00Z"), SETTINGS, NOW_NS).range_ns is None
    assert parse_query(query(end_time="now"), SETTINGS, NOW_NS).range_ns == (None, NOW_NS)
    hour = parse_query(query(start_time="-1h", end_time=0, max_points=5), SETTINGS, NOW_NS)
    reached = reaching(hour, (NOW_NS - 5, NOW_NS), SETTINGS)
    assert hour.range_ns == reached.range_ns == (NOW_NS - 3600 * 10**9, None)


def test_one_instant_is_a_range() -> None:
    parsed = parse_query(query(start_time=5, end_time=5.0), SETTINGS, NOW_NS)
    assert parsed.start_ns == parsed.end_ns == 5_000_000_000


@pytest.mark.parametrize(
    ("body", "field", "texts"),
    [
        (b"", None, ["the body is empty", "want a JSON object with device_id"]),
        (b"  ", None, ["the body is empty"]),
        (b"{", None, ["malformed JSON"]),
        (b"NaN", None, ["malformed JSON"]),
        (b"\xff\xfe", None, ["malformed JSON"]),
        (b"[" * 100_000, None, ["malformed JSON"]),
        (b'{"device_id":"\\ud800"}', None, ["malformed JSON"]),
        (query()[:-1] + b',"start_time":1e400}', None, ["malformed JSON", "out of range"]),
        (query(start_time=10**400), "start_time", ["start_time is a number of 1329 bits"]),
        (b"[]", None, ["the body is an array, want a JSON object"]),
        (b"null", None, ["the body is null, want a JSON object"]),
        (b"{}", "device_id", ["device_id is missing"]),
        (query(device_id=1), "device_id", ["device_id is 1, a number; want text"]),
        (query(device_id=None), "device_id", ["device_id is null, want text, a list of texts", '"*" is all']),
        (query(device_id=""), "device_id", ["device_id is empty"]),
        (query(device_id="x" * 257), "device_id", ["device_id has 257 bytes, want 1 to 256"]),
        (query(metric_name="é" * 129), "metric_name", ["metric_name has 258 bytes, want 1 to 256"]),
        (query(metric_name=[["a"]]), "metric_name", ['metric_name is ["a"], an array; want text']),
        (query(metric_name=[]), "metric_name", ["is a list of 0 texts, want 1 to 10000"]),
        (query(device_id=["x"] * 10_001), "device_id", ["is a list of 10001 texts, want 1 to 10000"]),
        (query(device_id=["~x"] * 60, metric_name=["y*"] * 60), None, ["has 120 globs and regular expressions"]),
        (query(device_id="~("), "device_id", ['device_id is "~("', "regular expression"]),
        (query(device_id="~" + "a" * 1001), "device_id", ["want at most 1000"]),
        (query(device_id={"exact": 5}), "device_id", ['device_id is {"exact":5}, an object; want text']),
        (query(device_id={"exact": "a", "b": 1}), "device_id", ["an object; want text"]),
        (query(device_id={"exact": ""}), "device_id", ["device_id has 0 bytes, want 1 to 256"]),
        (query(device_id={"exact": "x" * 257}), "device_id", ["device_id has 257 bytes, want 1 to 256"]),
        (query(operation="mean"), "operation", ['"mean"', "avg, sum, max, min, count, first, last"]),
        (query(operation=[]), "operation", ["operation is a list of 0, want 1 to 32"]),
        (query(operation=["avg", "mx"]), "operation", ['unknown operation "mx"', "did you mean max?"]),
        (query(operation=["avg", "avg"]), "operation", ["each can be asked once"]),
        (query(operation="p95"), "operation", ['unknown operation "p95"', "did you mean percentile(95)?"]),
        (query(operation="P99.9"), "operation", ["did you mean percentile(99.9)?"]),
        (query(operation="Mean"), "operation", ["did you mean avg?"]),
        (query(operation=["avg", 5]), "operation", ["unknown operation 5", "it is a number"]),
        (query(operation=None), "operation", ["operation is null, want one of avg"]),
        (query(operation="percentile"), "operation", ["want percentile(p) with p from 0 to 100"]),
        (query(operation="percentile(101)"), "operation", ["want percentile(p) with p from 0 to 100"]),
        (query(operation="percentile(-1)"), "operation", ["want percentile(p) with p from 0 to 100"]),
        (query(operation="percentile(nan)"), "operation", ["want percentile(p) with p from 0 to 100"]),
        (query(operation="AVG"), "operation", ['"AVG"']),
        (b'{"device_id":"a","metric_name":"b"}', "operation", ["operation is missing, want one of avg"]),
        (query(start_time=2, end_time=1), "start_time", ["start_time 2 is after end_time 1"]),
        (query(start_time="x"), "start_time", ['start_time is "x"', "RFC 3339"]),
        (query(end_time=""), "end_time", ["the text is empty"]),
        (query(end_time=True), "end_time", ["end_time is true: it is a boolean"]),
        (query(end_time=[1]), "end_time", ["end_time is [1]: it is an array"]),
        (query(end_time=1e300), "end_time", ["from -9223372036 to 9223372036"]),
        (query(start_time=9_223_372_037), "start_time", ["from -9223372036 to 9223372036"]),
        (query(start_time=-9_223_372_037), "start_time", ["from -9223372036 to 9223372036"]),
        (query(start_time=1_700_000_000_000), "start_time", ["from -9223372036 to 9223372036"]),
        (query(start_time=1_700_000_000_000), "start_time", ["it looks like milliseconds, want seconds: 1700000000;"]),
        (query(start_time="1700000000000"), "start_time", ["it looks like milliseconds, want seconds: 1700000000;"]),
        (query(start_time=1_700_000_000_000_000), "start_time", ["it looks like microseconds, want seconds: 1700"]),
        (query(end_time=1.7e18), "end_time", ["it looks like nanoseconds, want seconds: 1700000000"]),
        (query(end_time="2024-03-29"), "end_time", ["it lacks the time of day and the zone (Z, or an offset such as"]),
        (query(end_time="2024-03-29"), "end_time", ["want such as 2024-03-29T00:00:00Z"]),
        (query(end_time="2024-03-29T10:00:00"), "end_time", ["lacks the zone", "want such as 2024-03-29T10:00:00Z"]),
        (query(end_time="2024-03-29 10:00"), "end_time", ["lacks the seconds and the zone", "2024-03-29T10:00:00Z"]),
        (query(end_time="2024-03-29T10:00+02:00"), "end_time", ["the seconds: want such as 2024-03-29T10:00:00+02"]),
        (query(end_time="2024-03-29T10:00:00 02:00"), "end_time", ["a + in a URL arrives as a space, write %2B"]),
        (query(end_time="now 5m"), "end_time", ["a + in a URL arrives as a space, write %2B"]),
        (query(end_time=" 5m"), "end_time", ["a + in a URL arrives as a space, write %2B"]),
        (query(end_time="next monday"), "end_time", ["want RFC 3339, such as"]),
        (query(start_time="9999-01-01T00:00:00Z"), "start_time", ["int64 nanoseconds"]),
        (query(tags=[]), "tags", ["tags is an array, want an object of texts"]),
        (query(tags={"a": 1}), "tags", ["tags.a is 1, a number; want text"]),
        (query(tags={"a": "x" * 257}), "tags", ["tags.a has 257 bytes, want 0 to 256"]),
        (query(tags={str(n): "" for n in range(33)}), "tags", ["tags has 33 entries, want at most 32"]),
        (query(tags={"a": None}), "tags", ['tag "a" is null, want text']),
        (query(tags={"x" * 257: "a"}), "tags", ["a name of 257 bytes, want at most 256"]),
        (query(more_tags="yes"), "more_tags", ['more_tags is "yes", text; want true or false']),
        (query(interval="5 parsecs"), "interval", ['interval is "5 parsecs", want a number of seconds']),
        (query(interval="0s"), "interval", ["want a number of seconds", '"500ms" "90s"']),
        (query(interval=0), "interval", ["want a number of seconds"]),
        (query(interval=-5), "interval", ["want a number of seconds"]),
        (query(interval=True), "interval", ["want a number of seconds"]),
        (query(interval=1e300), "interval", ["want a number of seconds"]),
        (query(interval="999999999999w"), "interval", ["want at most 9223372036 seconds"]),
        (query(interval="999999999999y"), "interval", ["at most 10000 of a calendar's units"]),
        (query(interval="1h", offset="x"), "offset", ['offset is "x", want seconds or text such as "6h"']),
        (query(interval="1h", offset="1mo"), "offset", ['offset is "1mo"']),
        (query(interval="1h", offset="400d"), "offset", ["at most 366 days"]),
        (query(interval="1h", timezone="Mars/Olympus"), "timezone", ['"Mars/Olympus" is not known', "IANA"]),
        (query(interval="1h", timezone="../etc/passwd"), "timezone", ["is not known"]),
        (query(interval="1h", timezone="Europe"), "timezone", ["is not known"]),
        (query(interval="1h", timezone=2), "timezone", ["timezone is 2, want a name"]),
        (query(timezone="UTC"), "timezone", ["timezone is given without interval or max_points"]),
        (query(offset="1h"), "offset", ["offset is given without interval"]),
        (query(interval="1h", max_points=5), "max_points", ["want one of them"]),
        (query(max_points=0), "max_points", ["max_points is 0, want a whole number from 1 to 1000000"]),
        (query(max_points=1.5), "max_points", ["max_points is 1.5, want a whole number"]),
        (query(group_by="device"), "group_by", ['group_by has "device", want "series", or a list of "device_id"']),
        (query(group_by=["series", "device_id"]), "group_by", ["each once"]),
        (query(group_by=["device_id", "device_id"]), "group_by", ["each once"]),
        (query(group_by=[]), "group_by", ["group_by has 0 entries, want 1 to 32"]),
        (query(group_by=[1]), "group_by", ["group_by has 1, want"]),
        (query(group_by=["tags."]), "group_by", ['group_by has "tags.", want']),
        (query(fill="null"), "fill", ["fill is given without interval"]),
        (query(interval="1h", fill="zero"), "fill", ['fill is "zero", want one of none, null, previous, linear, or']),
        (query(interval="1h", fill=10**400), "fill", ["fill is a number of 1329 bits"]),
        (query(limit=5), "limit", ["limit is given without interval, max_points or group_by, there are no rows"]),
        (query(order="desc"), "order", ["order is given without interval, max_points or group_by"]),
        (query(group_by="device_id", limit="5"), "limit", ['limit is "5", text; want a whole number from 1 to']),
        (query(max_points="5"), "max_points", ['max_points is "5", text; want a whole number']),
        (query(interval=1, limit=0), "limit", ["limit is 0, want a whole number from 1 to 1000000"]),
        (query(interval=1, order="down"), "order", ['order is "down", want one of asc, desc']),
        (query(time_unit="h"), "time_unit", ["want one of s, ms, us, ns, rfc3339"]),
        (query(format="xml"), "format", ["want one of json, ndjson, csv, msgpack, arrow"]),
        (query(allow_partial=1), "allow_partial", ["allow_partial is 1, a number; want true or false"]),
        (query(explain=[]), "explain", ["explain is [], an array; want true or false"]),
        (query(timeout_s=0), "timeout_s", ["timeout_s is 0, want a number above 0"]),
        (query(timeout_s=10**400), "timeout_s", ["timeout_s is a number of 1329 bits, want a number above 0"]),
        (query(timeout_s="nan"), "timeout_s", ['timeout_s is "nan", want a number above 0, at most 86400']),
        (query(start_time="-6 hours"), "start_time", ["now-1d12h"]),
        (query(start_time="6h"), "start_time", ["RFC 3339"]),
        (query(start_time="-999999999999w"), "start_time", ["want a time within int64 nanoseconds"]),
        (query(start_time="now", end_time="-1s"), "start_time", ['start_time "now" is after end_time "-1s"']),
        (query(device="a"), "device", ['unknown field "device"', "did you mean device_id?"]),
        (query(operaton="avg"), "operaton", ["did you mean operation?"]),
    ],
)
def test_a_bad_body_is_refused_naming_field_value_and_what_is_allowed(
    body: bytes, field: str | None, texts: list[str]
) -> None:
    refused = refusal(body)
    assert refused.status == 400
    assert refused.field == field
    for text in texts:
        assert text in str(refused)


def test_a_hostile_value_is_not_repeated_at_length() -> None:
    for body in (query(operation="x" * 100_000), query(**{"x" * 100_000: 1}), query(start_time="9" * 100_000)):
        assert len(str(refusal(body))) < 1000


ATOMS = st.none() | st.booleans() | st.floats() | st.integers() | st.sampled_from((10**400, -(10**400))) | st.text()


@given(st.recursive(ATOMS, lambda kids: st.lists(kids, max_size=3) | st.dictionaries(st.text(), kids, max_size=2)))
def test_any_json_in_any_field_is_understood_or_refused(value: Any) -> None:
    for field in FIELDS:
        try:
            parse_query(query(**{field: value}), SETTINGS, NOW_NS)
        except Refusal as refused:
            assert refused.status in (400, 422)


@given(st.binary(max_size=200))
def test_any_bytes_are_understood_or_refused(body: bytes) -> None:
    assert refusal(body).status == 400


def test_every_operation_of_the_docs_is_known() -> None:
    for operation in (*PLAIN, "percentile(99.9)", "percentile( 5 )"):
        parsed = parse_query(query(operation=operation), SETTINGS, NOW_NS)
        assert [each.text for each in parsed.operations] == [operation]
    assert parse_query(query(operation="percentile(99.9)"), SETTINGS, NOW_NS).operations[0].percent == 99.9


@pytest.mark.parametrize(
    ("changes", "fast"),
    [
        ({}, True),
        ({"operation": ["avg", "stddev"]}, True),
        ({"tags": {"room": "a"}}, True),
        ({"device_id": {"exact": "a*b"}}, True),
        ({"device_id": "é"}, True),
        ({"explain": True}, False),  # an aggregate's answer does not tell all that it cost
        ({"operation": "median"}, False),
        ({"operation": ["avg", "rate"]}, False),
        ({"device_id": "a*b"}, False),
        ({"metric_name": "~a"}, False),
        ({"device_id": ["a", "b"]}, False),
        ({"tags": {"room": "?"}}, False),
        ({"tags": {"room": "a"}, "more_tags": True}, False),
        ({"interval": "1h"}, False),
        ({"max_points": 10}, False),
        ({"group_by": "series"}, False),
    ],
)
def test_exact_texts_and_plain_operations_are_answered_by_one_aggregate(changes: dict[str, Any], fast: bool) -> None:
    parsed = parse_query(query(**changes), SETTINGS, NOW_NS)
    assert parsed.is_seed_shape is fast
    assert all(pattern.kind == "is" for pattern in parsed.match.device_id) or not fast


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("now", NOW_NS),
        ("-6h", NOW_NS - 6 * 3600 * 10**9),
        ("now-6h", NOW_NS - 6 * 3600 * 10**9),
        ("now+90s", NOW_NS + 90 * 10**9),
        ("-1d12h", NOW_NS - 36 * 3600 * 10**9),
        ("-2w", NOW_NS - 14 * 86400 * 10**9),
        ("-5m", NOW_NS - 300 * 10**9),
        ("1700000000", 1_700_000_000 * 10**9),
        ("-5", -5 * 10**9),
        ("1700000000.000000001", 1_700_000_000 * 10**9 + 1),
        ("0", None),
    ],
)
def test_times_may_be_relative_or_numbers_in_text(text: str, want: int | None) -> None:
    assert parse_query(query(start_time=text), SETTINGS, NOW_NS).start_ns == want


def test_every_field_arrives() -> None:
    parsed = parse_query(
        query(
            operation=["avg", "percentile(95)"], device_id=["a", "b*", "~c.", {"exact": "d*"}],
            tags={"room": ["x", "y"]}, more_tags=True, interval="1d", timezone="Europe/Berlin",
            offset="6h", group_by=["device_id", "tags.room"],
            fill="linear", limit=9, order="desc", time_unit="ms", format="csv", allow_partial=True, explain=True,
            timeout_s=2, start_time=86400, end_time="1970-01-03T00:00:00Z",
        ), SETTINGS, NOW_NS,
    )  # fmt: skip
    assert [(pattern.kind, pattern.text) for pattern in parsed.match.device_id] == [
        ("is", "a"), ("glob", "b*"), ("regex", "c."), ("is", "d*"),
    ]  # fmt: skip
    assert parsed.match.tags is not None
    assert parsed.match.more_tags
    assert (parsed.group_by, parsed.fill, parsed.limit) == (("device_id", "tags.room"), "linear", 9)
    assert (parsed.descending, parsed.time_unit, parsed.format) == (True, "ms", "csv")
    assert (parsed.allow_partial, parsed.explain, parsed.timeout_s, parsed.listed) == (True, True, 2.0, True)
    assert parsed.stretches == [Stretch(86_400 * 10**9, 2 * 86_400 * 10**9, 86_400 * 10**9, 18_000 * 10**9)]


def test_an_interval_that_gives_a_billion_buckets_is_refused_at_once() -> None:
    for interval in ("1s", "1ms", 1, 0.001):
        with pytest.raises(OverLimit) as caught:
            parse_query(query(interval=interval, start_time=1, end_time=10**9), SETTINGS, NOW_NS)
        assert (caught.value.status, caught.value.setting, caught.value.limit) == (422, "query.max_rows", 1_000_000)
        assert caught.value.value is not None
        assert caught.value.value >= 10**9


def test_open_ends_are_asked_first_where_the_buckets_depend_on_them() -> None:
    assert parse_query(query(max_points=5, start_time=1), SETTINGS, NOW_NS).needs_reach
    assert parse_query(query(interval="1mo"), SETTINGS, NOW_NS).needs_reach
    assert not parse_query(query(interval="1h"), SETTINGS, NOW_NS).needs_reach
    open_ended = parse_query(query(max_points=5), SETTINGS, NOW_NS)
    reached = reaching(open_ended, (10 * 10**9, 14 * 10**9), SETTINGS)
    assert reached.interval is not None
    assert (reached.interval.text, reached.stretches) == ("1s", [Stretch(10 * 10**9, 14 * 10**9, 10**9, 10 * 10**9)])
    assert reaching(open_ended, None, SETTINGS).stretches == []


# GET parameters


def listed(parameters: str) -> Listing:
    context = object.__new__(Context)  # without the sockets of a whole one
    context.settings, context.now_ns = SETTINGS, lambda: NOW_NS
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/api/v1/series", "QUERY_STRING": parameters}
    return listing.parse(context, Request(environ, 1))


def test_a_listing_has_defaults_and_takes_every_parameter() -> None:
    parsed = listed("")
    assert (parsed.limit, parsed.cursor, parsed.selection.match) == (1000, "", Match())
    key = series_key("a/b:c", "d", {"t": "ü"})
    parsed = listed(f"limit=7&cursor={make_cursor(key)}&device_id=a%2Fb:c&metric_name=d")
    assert (parsed.limit, read_cursor(parsed.cursor)) == (7, key)
    assert parsed.selection.match == match.one("a/b:c", "d", None)


@pytest.mark.parametrize(
    ("parameters", "field", "text"),
    [
        ("limit=0", "limit", 'limit is "0", want a whole number from 1 to 10000'),
        ("limit=10001", "limit", "from 1 to 10000"),
        ("limit=-1", "limit", "from 1 to 10000"),
        ("limit=1e3", "limit", "from 1 to 10000"),
        ("limit=", "limit", "from 1 to 10000"),
        ("limit=%D9%A1", "limit", "from 1 to 10000"),
        ("cursor=%21", "cursor", "is not one of ours"),
        ("cursor=AAAA", "cursor", "is not one of ours"),
        ("cursor=%C3%A4", "cursor", "is not one of ours"),
        ("device_id=", "device_id", "device_id is empty, want text"),
        (f"device_id={'a' * 257}", "device_id", "device_id has 257 bytes, want 1 to 256"),
        ("device=x", "device", "did you mean device_id?"),
        ("device_id=%FF", None, "cannot be read"),
    ],
)
def test_a_bad_parameter_is_refused(parameters: str, field: str | None, text: str) -> None:
    with pytest.raises(Refusal) as caught:
        read_cursor(listed(parameters).cursor)
    assert caught.value.field == field
    assert text in str(caught.value)


@given(st.text(min_size=1), st.text(min_size=1), st.dictionaries(st.text(), st.text(), max_size=3))
def test_a_cursor_leads_back_to_its_key(device: str, metric: str, tags: dict[str, str]) -> None:
    try:
        key = series_key(device, metric, tags)
    except UnicodeEncodeError:
        return  # a lone surrogate is in no key
    assert read_cursor(make_cursor(key)) == key
