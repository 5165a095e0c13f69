"""What clients send: the good is understood exactly, the bad is refused with field, value and what is allowed."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config import Ingest
from common.series import series_key
from workers.query.request import (
    OPERATIONS,
    Refusal,
    make_cursor,
    parse_parameters,
    parse_query,
    parse_series,
    read_cursor,
)

LIMITS = Ingest()
GOOD = {"device_id": "sensor_1", "metric_name": "temperature", "operation": "avg"}


def query(**changes: Any) -> bytes:
    return json.dumps(GOOD | changes).encode()


def refusal(body: bytes) -> Refusal:
    with pytest.raises(Refusal) as caught:
        parse_query(body, LIMITS)
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
    assert parse_query(query(start_time=start), LIMITS).start_ns == want
    assert parse_query(query(end_time=start), LIMITS).end_ns == want


def test_missing_times_and_tags_mean_everything_and_an_empty_map_means_no_tags() -> None:
    parsed = parse_query(query(), LIMITS)
    assert (parsed.start_ns, parsed.end_ns, parsed.body.tags) == (None, None, None)
    assert parse_query(query(tags={}), LIMITS).body.tags == {}
    assert parse_query(query(tags={"room": "kitchen"}), LIMITS).body.tags == {"room": "kitchen"}


def test_one_instant_is_a_range() -> None:
    parsed = parse_query(query(start_time=5, end_time=5.0), LIMITS)
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
        (query(device_id=None), "device_id", ["device_id is null, null; want text"]),
        (query(device_id=""), "device_id", ["device_id is empty"]),
        (query(device_id="x" * 257), "device_id", ["device_id has 257 bytes, want 1 to 256"]),
        (query(metric_name="é" * 129), "metric_name", ["metric_name has 258 bytes, want 1 to 256"]),
        (query(metric_name=["a"]), "metric_name", ['metric_name is ["a"], an array; want text']),
        (query(operation="mean"), "operation", ['"mean"', "avg, sum, max, min, count, first, last"]),
        (query(operation=["avg"]), "operation", ['unknown operation ["avg"]']),
        (query(operation=None), "operation", ["unknown operation null"]),
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
        (query(start_time="9999-01-01T00:00:00Z"), "start_time", ["int64 nanoseconds"]),
        (query(tags=[]), "tags", ["tags is an array, want an object of texts"]),
        (query(tags={"a": 1}), "tags", ['tag "a" is a number, want text']),
        (query(tags={"a": "x" * 257}), "tags", ["257 bytes, want at most 256"]),
        (query(tags={str(n): "" for n in range(33)}), "tags", ["tags has 33 entries, want at most 32"]),
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


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda kids: st.lists(kids, max_size=3)))
def test_any_json_in_any_field_is_understood_or_refused(value: Any) -> None:
    for field in (*GOOD, "start_time", "end_time", "tags"):
        try:
            parse_query(query(**{field: value}), LIMITS)
        except Refusal as refused:
            assert refused.status == 400


@given(st.binary(max_size=200))
def test_any_bytes_are_understood_or_refused(body: bytes) -> None:
    assert refusal(body).status == 400


def test_every_operation_of_the_docs_is_known() -> None:
    for operation in OPERATIONS:
        assert parse_query(query(operation=operation), LIMITS).body.operation == operation


# GET parameters


def test_a_listing_has_defaults_and_takes_every_parameter() -> None:
    parsed = parse_series({}, LIMITS, 10_000)
    assert (parsed.limit, parsed.after, parsed.device_id, parsed.metric_name) == (1000, b"", None, None)
    key = series_key("a/b:c", "d", {"t": "ü"})
    parsed = parse_series(
        parse_parameters(f"limit=7&cursor={make_cursor(key)}&device_id=a%2Fb:c&metric_name=d"), LIMITS, 10_000
    )
    assert (parsed.limit, parsed.after, parsed.device_id, parsed.metric_name) == (7, key, "a/b:c", "d")
    assert parse_series({}, LIMITS, 10).limit == 10


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
        ("device_id=", "device_id", "device_id has 0 bytes, want 1 to 256"),
        ("device=x", "device", "did you mean device_id?"),
        ("device_id=%FF", None, "cannot be read"),
    ],
)
def test_a_bad_parameter_is_refused(parameters: str, field: str | None, text: str) -> None:
    with pytest.raises(Refusal) as caught:
        parse_series(parse_parameters(parameters), LIMITS, 10_000)
    assert caught.value.field == field
    assert text in str(caught.value)


@given(st.text(min_size=1), st.text(min_size=1), st.dictionaries(st.text(), st.text(), max_size=3))
def test_a_cursor_leads_back_to_its_key(device: str, metric: str, tags: dict[str, str]) -> None:
    try:
        key = series_key(device, metric, tags)
    except UnicodeEncodeError:
        return  # a lone surrogate is in no key
    assert read_cursor(make_cursor(key)) == key
