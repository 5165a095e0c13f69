"""Payloads to points: what is stored, what is refused and with which words, and that both decoders agree."""

import json
import struct
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common import series
from common.config import Ingest, Settings
from workers.bridge import payload
from workers.bridge.formats import objects
from workers.bridge.intake import Intake
from workers.bridge.payload import Point, Refusal

NOW_NS = 1_700_000_000_000_000_000
LATEST_NS = NOW_NS + 3600 * 10**9
GOOD: dict[str, Any] = {"device_id": "d1", "metric_name": "m1", "timestamp": 1_699_999_999, "value": 21.5}


class Decoder(Intake):
    """The seed's format, as a bridge without settings of its own decodes it."""

    def __init__(self, **limits: Any) -> None:
        stamps = iter(range(NOW_NS, NOW_NS + 10**6))
        super().__init__(Settings(ingest=Ingest(**limits)), 1024, lambda: next(stamps))

    def one(self, body: bytes) -> tuple[list[Point], list[Refusal]]:
        return self.decode(b"sensors/a", 0x32, body, LATEST_NS)


def decode(body: bytes | str | Any, **limits: Any) -> tuple[list[Point], list[Refusal]]:
    if not isinstance(body, bytes):
        body = (body if isinstance(body, str) else json.dumps(body)).encode()
    return Decoder(**limits).one(body)


def with_text(field: str, text: str) -> str:
    """GOOD as JSON, one field's value written as given."""
    return json.dumps(GOOD | {field: "@@"}).replace('"@@"', text)


def point_of(body: Any) -> tuple[series.Series, int, float]:
    (point,), refusals = decode(body)
    assert not refusals
    place, time_ns, value = point
    assert place.partition == series.partition_of(place.key, 1024)
    return series.parse_key(place.key), time_ns, value


def refusal_of(body: Any, **limits: Any) -> Refusal:
    points, (refusal,) = decode(body, **limits)
    assert not points
    return refusal


def bits(value: float) -> int:
    return int(struct.unpack("<Q", struct.pack("<d", value))[0])


# What is stored


def test_the_object_of_the_first_version_is_a_point() -> None:
    assert point_of(GOOD) == (series.Series("d1", "m1"), 1_699_999_999 * 10**9, 21.5)


def test_tags_are_part_of_the_series_whatever_their_order() -> None:
    one = point_of(GOOD | {"tags": {"site": "north", "line": "2"}})
    two = point_of(GOOD | {"tags": {"line": "2", "site": "north"}})
    assert one == two
    assert one[0].tags == (("line", "2"), ("site", "north"))


@pytest.mark.parametrize("absent", ["timestamp", "tags", "timestamp_unit"])
def test_an_optional_field_that_is_null_counts_as_missing(absent: str) -> None:
    without = {name: value for name, value in GOOD.items() if name != absent}
    assert point_of(without | {absent: None}) == point_of(without)


def test_points_without_a_time_get_their_arrival_each_another_one() -> None:
    body = [{"device_id": "d", "metric_name": "m", "value": n} for n in range(3)]
    points, _ = decode(body)
    assert [time_ns for _, time_ns, _ in points] == [NOW_NS, NOW_NS + 1, NOW_NS + 2]


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("1", 1.0), ("0", 0.0), ("-0", 0.0), ("-0.0", -0.0), ("true", 1.0), ("false", 0.0), ("20", 20.0),
        ("20.1", 20.1), ("9007199254740993", 9007199254740992.0), ("-9223372036854775809", -9223372036854775808.0),
        ("18446744073709551616", 2.0**64), ("1" + "0" * 308, 1e308), ("1e308", 1e308), ("5e-324", 5e-324),
        ("1e-400", 0.0), ("0.1", 0.1),
    ],
)  # fmt: skip
def test_numbers_and_booleans_become_the_float_that_python_makes_of_them(text: str, want: float) -> None:
    assert bits(point_of(with_text("value", text))[2]) == bits(want)


@pytest.mark.parametrize(
    ("timestamp", "unit", "want"),
    [
        ("1699999999", None, 1_699_999_999_000_000_000),
        ("1699999999.123", None, 1_699_999_999_123_000_000),
        ("1.699999999e9", None, 1_699_999_999_000_000_000),
        ("1699999999123", "ms", 1_699_999_999_123_000_000),
        ("1699999999123456", "us", 1_699_999_999_123_456_000),
        ("1699999999123456789", "ns", 1_699_999_999_123_456_789),
        ('"2023-11-14T22:13:19.123456789Z"', None, 1_699_999_999_123_456_789),
        ("0", None, 0),
    ],
)
def test_times_are_read_in_their_unit(timestamp: str, unit: str | None, want: int) -> None:
    body = with_text("timestamp", timestamp)
    if unit:
        body = body[:-1] + f', "timestamp_unit": "{unit}"}}'
    assert point_of(body)[1] == want


def test_unknown_fields_are_ignored_and_unit_means_the_unit_of_the_value() -> None:
    assert point_of(GOOD | {"unit": "ms", "nested": {"a": [1, None]}, "x": "\x7f"}) == point_of(GOOD)


@pytest.mark.parametrize("odd", ["NaN", "Infinity", '"\\ud800"'])
def test_what_is_odd_in_an_ignored_field_does_not_cost_the_point(odd: str) -> None:
    assert point_of(with_text("extra", odd)) == point_of(GOOD)


def test_ids_may_hold_separators_spaces_and_any_script() -> None:
    found, _, _ = point_of(GOOD | {"device_id": "aa:bb/cc|dd ee", "metric_name": "温度"})
    assert (found.device_id, found.metric_name) == ("aa:bb/cc|dd ee", "温度")


def test_an_empty_array_holds_nothing_and_is_no_error() -> None:
    assert decode(b" [ ] ") == ([], [])


# What is refused


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        (b"", payload.EMPTY, "empty payload"),
        (b" \n", payload.EMPTY, "empty payload"),
        (b"hello", payload.NOT_JSON, "not JSON: Expecting value at character 0"),
        (b'{"device_id"', payload.NOT_JSON, "not JSON"),
        (b'{"device_id":"d"} x', payload.NOT_JSON, "not JSON: Extra data at character 18"),
        (b"[{}", payload.NOT_JSON, "not JSON: Expecting ',' or ']' at character 3"),
        (b"[{},]", payload.NOT_JSON, "not JSON: Expecting value at character 4"),
        (b"[{}] {}", payload.NOT_JSON, "not JSON: Extra data at character 5"),
        (b"\xef\xbb\xbf{}", payload.NOT_JSON, "not JSON"),
        (b'{"device_id":"\xff"}', payload.NOT_JSON, "not UTF-8: byte 0xff at 14"),
        (b"\x00\x01\x02", payload.NOT_JSON, "not JSON"),
        (b"[" * 100_000, payload.NOT_JSON, "nested too deeply"),
        (b'{"a":' * 100_000, payload.NOT_JSON, "nested too deeply"),
        (b"5", payload.SHAPE, "payload is a number, want a JSON object or an array of objects"),
        (b"null", payload.SHAPE, "payload is null"),
        (b'"text"', payload.SHAPE, "payload is a string"),
        (b"true", payload.SHAPE, "payload is true"),
        (b"[1]", payload.SHAPE, "element is a number, want an object"),
        (b"[[]]", payload.SHAPE, "element is an array"),
        (b"{}", payload.MISSING, "no device_id"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_payload_that_is_no_object_or_array_of_them_is_refused(body: bytes, code: str, words: str) -> None:
    refusal = refusal_of(body)
    assert (refusal.payload in body, refusal.code) == (True, code)
    assert words in refusal.reason


@pytest.mark.parametrize("field", ["device_id", "metric_name", "value"])
def test_a_missing_field_is_named(field: str) -> None:
    refusal = refusal_of({name: value for name, value in GOOD.items() if name != field})
    assert refusal.code == payload.MISSING
    assert refusal.reason.startswith(f"no {field} in the payload")


@pytest.mark.parametrize(
    ("field", "text", "code", "words"),
    [
        ("device_id", "1", payload.ID, "device_id is a number, want a string"),
        ("device_id", "null", payload.ID, "device_id is null, want a string"),
        ("device_id", '""', payload.ID, "device_id is empty"),
        ("metric_name", '""', payload.ID, "metric_name is empty"),
        ("device_id", '"a\\u0000b"', payload.ID, "control character U+0000 at 1"),
        ("metric_name", '"\\n"', payload.ID, "control character U+000A at 0"),
        ("metric_name", '"a\\u007f"', payload.ID, "control character U+007F at 1"),
        ("metric_name", '"a\\u0085"', payload.ID, "control character U+0085 at 1"),
        ("device_id", '"a\\ud800b"', payload.ID, "half a surrogate pair"),
        ("device_id", f'"{"x" * 257}"', payload.ID, "257 bytes of UTF-8, limit 256"),
        ("device_id", f'"{"é" * 129}"', payload.ID, "258 bytes of UTF-8, limit 256"),
        ("value", "null", payload.VALUE, "value is null, want a number or a boolean"),
        ("value", '"21.5"', payload.VALUE, "value is a string"),
        ("value", "[1]", payload.VALUE, "value is an array"),
        ("value", "{}", payload.VALUE, "value is an object"),
        ("value", "NaN", payload.VALUE, "want a finite number"),
        ("value", "Infinity", payload.VALUE, "want a finite number"),
        ("value", "-Infinity", payload.VALUE, "want a finite number"),
        ("value", "1e999", payload.VALUE, "beyond the range of float64"),
        ("value", "1" + "0" * 309, payload.VALUE, "beyond the range of float64"),
        ("value", "9" * 10_000, payload.VALUE, "beyond the range of float64"),
        ("timestamp", "true", payload.TIME, "timestamp is true, want a number or RFC 3339 text"),
        ("timestamp", "[]", payload.TIME, "timestamp is an array"),
        ("timestamp", '"yesterday"', payload.TIME, "want RFC 3339"),
        ("timestamp", '"1700000000"', payload.TIME, "want RFC 3339"),
        ("timestamp", "-1", payload.TIME, "lies before 1970"),
        ("timestamp", "-0.5", payload.TIME, "lies before 1970"),
        ("timestamp", "NaN", payload.TIME, "want a time within int64"),
        ("timestamp", "1e999", payload.TIME, "want a time within int64"),
        ("timestamp", "9" * 10_000, payload.TIME, "want a time within int64"),
        ("timestamp", "99999999999999999999", payload.TIME, "want a time within int64"),
        ("timestamp_unit", '"h"', payload.TIME, "timestamp_unit is 'h', want one of s, ms, us, ns"),
        ("timestamp_unit", "1", payload.TIME, "timestamp_unit is '1'"),
        ("tags", "[]", payload.TAGS, "tags are an array, want an object of strings"),
        ("tags", '{"a": 1}', payload.TAGS, "tag 'a' is a number, want a string"),
        ("tags", '{"": "x"}', payload.TAGS, "tag name is empty"),
        ("tags", '{"a": ""}', payload.TAGS, "tag 'a' is empty"),
        ("tags", '{"a": "\\u0007"}', payload.TAGS, "control character U+0007"),
        ("tags", json.dumps({f"t{n}": "x" for n in range(33)}), payload.TAGS, "33 tags, limit 32"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_bad_field_is_refused_with_what_it_is_and_what_is_wanted(
    field: str, text: str, code: str, words: str
) -> None:
    refusal = refusal_of(with_text(field, text))
    assert refusal.code == code
    assert words in refusal.reason
    assert len(refusal.reason) < 400


def test_a_time_just_within_the_gate_is_stored_and_just_beyond_it_is_not() -> None:
    body = GOOD | {"timestamp": LATEST_NS, "timestamp_unit": "ns"}
    assert point_of(body)[1] == LATEST_NS
    refusal = refusal_of(body | {"timestamp": LATEST_NS + 1})
    assert refusal.code == payload.FUTURE
    assert "3600 s ahead of this machine's clock, limit 3600 s" in refusal.reason


@pytest.mark.parametrize(("unit", "factor"), [("ms", 1000), ("us", 10**6), ("ns", 10**9)])
def test_a_time_in_a_finer_unit_by_mistake_is_refused_with_a_hint(unit: str, factor: int) -> None:
    refusal = refusal_of(GOOD | {"timestamp": 1_699_999_999 * factor})
    assert refusal.code == payload.FUTURE
    want = f'want time_unit = "{unit}" in the subscription, or "timestamp_unit" in the payload'
    assert f"it looks like {unit} (2023-11-14): {want}" in refusal.reason


@pytest.mark.parametrize("second", ["1969-12-31T23:59:59", "2100-01-01T00:00:00"])
def test_a_time_with_very_many_digits_has_a_short_reason(second: str) -> None:
    refusal = refusal_of(GOOD | {"timestamp": f"{second}.{'1' * 100_000}Z"})
    assert refusal.code in (payload.TIME, payload.FUTURE)
    assert f"timestamp '{second}.1111" in refusal.reason
    assert len(refusal.reason) < 400


def test_a_payload_over_the_limit_is_refused_whole_with_both_sizes() -> None:
    body = json.dumps(GOOD).encode().ljust(1025)
    refusal = refusal_of(body, max_payload_bytes=1024)
    assert refusal == Refusal(body, payload.SIZE, "payload of 1025 bytes, limit 1024 (ingest.max_payload_bytes)")


def test_one_bad_element_of_100000_is_refused_by_its_own_bytes_and_the_others_are_points() -> None:
    elements = [json.dumps(GOOD | {"timestamp": n, "value": n / 8}) for n in range(100_000)]
    elements[77_777] = '{ "device_id":"d1" , "metric_name":"m1", "value":"broken" }'
    points, refusals = decode("[" + ",\n".join(elements) + "]")
    assert [time_ns for _, time_ns, _ in points] == [n * 10**9 for n in range(100_000) if n != 77_777]
    assert [(r.payload, r.code) for r in refusals] == [(elements[77_777].encode(), payload.VALUE)]


def test_an_array_with_nan_in_one_element_keeps_the_others() -> None:
    points, refusals = decode(f"[{json.dumps(GOOD)}, {with_text('value', 'NaN')}, {json.dumps(GOOD)}]")
    assert (len(points), [refusal.code for refusal in refusals]) == (2, [payload.VALUE])


# The cache


def test_a_series_seen_again_has_the_very_same_place() -> None:
    one = Decoder()
    body = json.dumps(GOOD).encode()
    assert one.one(body)[0][0][0] is one.one(body)[0][0][0]


def test_the_cache_does_not_grow_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payload, "CACHE_BYTES", 10_000)
    one = Decoder()
    for number in range(1000):
        (point,), _ = one.one(json.dumps(GOOD | {"device_id": f"d{number}"}).encode())
        assert point[0].key == series.series_key(f"d{number}", "m1")
    assert len(one.places) < 25


# Both ways of decoding agree

_scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.sampled_from(["d1", "ms"])
)
_json = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
_objects = st.fixed_dictionaries(
    {},
    optional={
        "device_id": st.text(min_size=1, max_size=4) | _json,
        "metric_name": st.just("m") | _json,
        "value": st.floats() | st.integers() | st.booleans() | _json,
        "timestamp": st.integers(0, 2**62) | st.floats(0, 2e9) | st.just("2023-11-14T22:13:19Z") | _json,
        "timestamp_unit": st.sampled_from(["s", "ms", "us", "ns", "h"]) | _json,
        "tags": st.dictionaries(st.text(max_size=2), st.text(max_size=2), max_size=2) | _json,
        "extra": _json,
    },
)


@settings(max_examples=400)
@given(st.lists(_objects | _json, max_size=3), st.booleans())
@example([{"device_id": "d", "metric_name": "m", "value": 2**63, "timestamp": 2**63}], False)
def test_the_fast_way_stores_exactly_what_the_slow_way_stores(elements: list[Any], ascii_only: bool) -> None:
    body = json.dumps(elements, ensure_ascii=ascii_only).encode(errors="surrogatepass")
    fast = Decoder().one(body)
    slow_decoder = Decoder()
    context = slow_decoder.routes.add(b"sensors/a")
    context.latest_ns = LATEST_NS
    slow = objects.decode_slowly(body, context)
    fast_points, slow_points = ([(place, bits(value)) for place, _, value in found[0]] for found in (fast, slow))
    assert fast_points == slow_points
    assert len(fast[0]) + len(fast[1]) in (len(elements), 1)
    assert fast[1] == slow[1]


@settings(max_examples=300)
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode(errors="replace")))
def test_whatever_bytes_come_there_are_points_or_a_reason(body: bytes) -> None:
    points, refusals = decode(body)
    assert points or refusals or msgspec.json.decode(body) == []


@settings(max_examples=500)
@given(st.integers(-(10**40), 10**40))
def test_integers_of_any_size_become_the_float_of_the_integer(number: int) -> None:
    assert bits(point_of(with_text("value", str(number)))[2]) == bits(float(number))


@settings(max_examples=500)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_finite_float_comes_through_bit_exact(number: float) -> None:
    assert bits(point_of(with_text("value", repr(number)))[2]) == bits(number)
