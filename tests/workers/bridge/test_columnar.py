"""msgpack-columns against a slow decoder that goes row by row, and its refusals against the same rows as JSON."""

import json
import math
import struct
from typing import Any

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from common.config import Ingest, Mqtt, Settings
from common.series import Series, parse_key
from common.subscriptions import Subscription
from workers.bridge import payload
from workers.bridge.columns import Columns
from workers.bridge.formats import columnar
from workers.bridge.intake import Intake
from workers.bridge.payload import Points, Refusal

NOW_NS = 1_700_000_000_000_000_000
LATEST_NS = NOW_NS + 3600 * 10**9
NS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
TOPIC = b"gateway/7"
TWO: list[dict[str, Any]] = [
    {"device_id": "d1", "metric_name": "m"},
    {"device_id": "d2", "metric_name": "m", "tags": {"site": "north"}},
]
Row = tuple[Series, int, float]


def intake(**subscription: Any) -> Intake:
    stamps = iter(range(NOW_NS, NOW_NS + 10**9))
    given = {"filter": "#", "format": "msgpack-columns"} | subscription
    settings = Settings(mqtt=Mqtt(subscriptions=[Subscription(**given)]), ingest=Ingest(max_id_bytes=20))
    return Intake(settings, 1024, lambda: next(stamps))


def decode(body: Any, **subscription: Any) -> tuple[Points, list[Refusal]]:
    packed = body if isinstance(body, bytes) else msgpack.packb(body)
    return intake(**subscription).decode(TOPIC, 0x32, packed, LATEST_NS)


def rows_of(points: Points) -> list[Row]:
    return [(parse_key(place.key), time_ns, value) for place, time_ns, value in points]


def good(body: Any, **subscription: Any) -> list[Row]:
    points, refusals = decode(body, **subscription)
    assert not refusals
    return rows_of(points)


def refusal_of(body: Any, **subscription: Any) -> Refusal:
    points, (refusal,) = decode(body, **subscription)
    assert not len(points)
    return refusal


def refusals_of(bridge: Intake, body: bytes) -> list[Refusal]:
    points, refusals = bridge.decode(TOPIC, 0x32, body, LATEST_NS)
    assert not len(points)
    return refusals


def binary(kind: str, numbers: list[Any]) -> bytes:
    return struct.pack(f"<{len(numbers)}{kind}", *numbers)


# What is stored


def test_binary_columns_of_several_series_are_points() -> None:
    body = {
        "series": TWO, "index": binary("I", [0, 1, 0]), "timestamps": binary("q", [NOW_NS, NOW_NS + 1, NOW_NS + 2]),
        "values": binary("d", [1.5, -0.0, 5e-324]),
    }  # fmt: skip
    one, two = Series("d1", "m"), Series("d2", "m", (("site", "north"),))
    assert good(body) == [(one, NOW_NS, 1.5), (two, NOW_NS + 1, -0.0), (one, NOW_NS + 2, 5e-324)]
    points, _ = decode(body)
    assert isinstance(points, Columns)


def test_one_series_may_have_its_names_at_the_top_and_needs_no_index() -> None:
    body = {"device_id": "d1", "metric_name": "m", "timestamps": [5, 6], "timestamp_unit": "s", "values": [True, 7]}
    assert good(body) == [(Series("d1", "m"), 5 * 10**9, 1.0), (Series("d1", "m"), 6 * 10**9, 7.0)]


def test_numbers_are_nanoseconds_unless_payload_or_subscription_say_otherwise() -> None:
    body: dict[str, Any] = {"device_id": "d", "metric_name": "m", "timestamps": [1_600_000_000_000], "values": [1]}
    assert good(body)[0][1] == 1_600_000_000_000
    assert good(body, time_unit="ms")[0][1] == 1_600_000_000_000 * 10**6
    assert good(body, time_unit="auto")[0][1] == 1_600_000_000_000 * 10**6
    assert good(body | {"timestamp_unit": "us"}, time_unit="ms")[0][1] == 1_600_000_000_000 * 1000


def test_rows_without_a_time_get_their_arrival_each_another_one() -> None:
    names = {"device_id": "d", "metric_name": "m"}
    assert [row[1] for row in good(names | {"values": [1, 2, 3]})] == [NOW_NS, NOW_NS + 1, NOW_NS + 2]
    assert [row[1] for row in good(names | {"values": [1, 2], "timestamps": [None, 7]})] == [NOW_NS, 7]
    assert [row[1] for row in good(names | {"values": [1], "timestamps": [7]}, time_field="")] == [NOW_NS]


def test_the_topic_gives_names_and_tags_that_the_payload_lacks() -> None:
    body = {"metric_name": "m", "values": [1], "timestamps": [7], "tags": {"line": "2"}}
    given = {"template": "{site}/{device_id}", "tags": {"line": "1", "plant": "p"}}
    tags = (("line", "2"), ("plant", "p"), ("site", "gateway"))
    assert good(body, **given) == [(Series("7", "m", tags), 7, 1.0)]


def test_no_rows_are_no_points_and_no_error() -> None:
    assert good({"series": [], "index": [], "timestamps": b"", "values": b""}) == []
    assert good({"device_id": "d", "metric_name": "m", "values": []}) == []


def test_further_fields_are_ignored_whatever_they_are() -> None:
    body = {"device_id": "d", "metric_name": "m", "timestamps": [7], "values": [1.0]}
    odd = {5: 1, b"x": None, "series_": [1], "values_": msgpack.ExtType(1, b"")}
    assert good(body | odd) == good(body | {"series": None}) == [(Series("d", "m"), 7, 1.0)]


# Tables that come again


def test_a_table_seen_again_is_not_taken_apart_again_and_each_topic_has_its_own() -> None:
    bridge = intake(template="{site}/{line}")
    body = msgpack.packb({"series": TWO, "index": [0, 1], "timestamps": [7, 8], "values": [1, 2]})
    first, again = (bridge.decode(b"a/1", 0x32, body, LATEST_NS)[0] for _ in range(2))
    other = bridge.decode(b"b/1", 0x32, body, LATEST_NS)[0]
    assert isinstance(first, Columns)
    assert isinstance(again, Columns)
    assert again.places is first.places
    assert [dict(row[0].tags)["site"] for row in rows_of(other)] == ["b", "north"]


def test_a_table_with_a_bad_series_is_refused_each_time() -> None:
    bridge = intake()
    body = msgpack.packb({"series": [{"device_id": "", "metric_name": "m"}], "timestamps": [7], "values": [1]})
    assert refusals_of(bridge, body) == refusals_of(bridge, body)
    assert refusals_of(bridge, body)[0].reason == "device_id is empty"


def test_the_tables_kept_do_not_grow_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columnar, "CACHE_BYTES", 10 * columnar.SERIES_BYTES)
    bridge = intake()
    for number in range(100):
        series = [{"device_id": f"d{number}", "metric_name": "m"}] * (1 + 20 * (number == 50))
        body = {"series": series, "index": [0], "timestamps": [7], "values": [1]}
        points, _ = bridge.decode(TOPIC, 0x32, msgpack.packb(body), LATEST_NS)
        assert rows_of(points) == [(Series(f"d{number}", "m"), 7, 1.0)]
    tables = bridge.routes.get(TOPIC).compiled._tables  # type: ignore[union-attr]
    assert 0 < len(tables) < 10


# What is refused whole


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        (b"", payload.EMPTY, "empty payload"),
        (b"\xc1", payload.SYNTAX, "not msgpack"),
        (b"\x91" * 100_000, payload.SYNTAX, "not msgpack"),
        (b"\xdd\xff\xff\xff\xff", payload.SYNTAX, "truncated"),
        ([1], payload.SHAPE, "payload is an array, want a map of columns"),
        ({"values": [1]}, payload.MISSING, "no device_id"),
        ({"series": 5, "values": [1]}, payload.SHAPE, "series is a number, want an array of maps"),
        ({"series": [5], "values": [1]}, payload.SHAPE, "want an array of maps"),
        ({"series": [*TWO, {"device_id": "x"}], "values": []}, payload.MISSING, "series 2: no metric_name"),
        ({"series": [{"device_id": 1}], "values": []}, payload.ID, "series 0: device_id is a number"),
        ({"series": [TWO[0] | {"tags": 1}], "values": []}, payload.TAGS, "series 0: tags are a number"),
        ({"series": TWO, "values": [1]}, payload.MISSING, "no index in the payload, want one: it has 2 series"),
        ({"series": [], "values": [1]}, payload.MISSING, "it has 0 series"),
        ({"series": TWO, "index": [0]}, payload.MISSING, "no values"),
        ({"series": TWO, "index": [0, 1], "values": [1]}, payload.SHAPE, "2 items of index and 1 values"),
        ({"series": TWO, "index": [0, 2], "values": [1, 2]}, payload.SHAPE, "index 2 at row 1, want 0 to 1"),
        ({"series": TWO, "index": [-1], "values": [1]}, payload.SHAPE, "index -1 at row 0"),
        ({"series": TWO, "index": [True], "values": [1]}, payload.SHAPE, "index True at row 0"),
        ({"series": TWO, "index": binary("I", [0, 9]), "values": [1, 2]}, payload.SHAPE, "index 9 at row 1"),
        ({"series": TWO, "index": b"\0\0\0", "values": [1]}, payload.SHAPE, "index are 3 bytes, want a multiple of 4"),
        ({"series": TWO[:1], "values": b"\0" * 9}, payload.SHAPE, "values are 9 bytes, want a multiple of 8"),
        ({"series": TWO[:1], "values": "x"}, payload.SHAPE, "values are a string, want binary or an array"),
        ({"series": TWO[:1], "values": [1], "timestamps": b""}, payload.SHAPE, "0 timestamps and 1 values"),
        ({"series": TWO[:1], "values": [1], "timestamp_unit": "h"}, payload.TIME, "timestamp_unit is 'h'"),
    ],
    ids=lambda value: repr(value)[:40],
)  # fmt: skip
def test_a_payload_that_contradicts_itself_is_refused_whole(body: Any, code: str, words: str) -> None:
    refusal = refusal_of(body)
    assert refusal.payload == (body if isinstance(body, bytes) else msgpack.packb(body))
    assert refusal.code == code
    assert words in refusal.reason


# What is refused row by row


def test_a_bad_row_is_refused_as_json_and_its_neighbours_are_points() -> None:
    body = {
        "series": [*TWO, {"device_id": "a\0b", "metric_name": "m"}],
        "index": binary("I", [0, 1, 2, 1]),
        "timestamps": binary("q", [1, NOW_NS * 2, 3, 4]),
        "values": binary("d", [math.nan, 2.0, 3.0, 4.0]),
    }
    points, refusals = decode(body)
    assert rows_of(points) == [(Series("d2", "m", (("site", "north"),)), 4, 4.0)]
    assert [refusal.payload for refusal in refusals] == [
        b'{"device_id": "d1", "metric_name": "m", "timestamp": 1, "timestamp_unit": "ns", "value": NaN}',
        b'{"device_id": "d2", "metric_name": "m", "timestamp": 3400000000000000000, "timestamp_unit": "ns", '
        b'"value": 2.0, "tags": {"site": "north"}}',
        b'{"device_id": "a\\u0000b", "metric_name": "m", "timestamp": 3, "timestamp_unit": "ns", "value": 3.0}',
    ]
    assert [(refusal.code, refusal.device) for refusal in refusals] == [
        (payload.VALUE, "d1"), (payload.FUTURE, "d2"), (payload.ID, ""),
    ]  # fmt: skip


def test_a_row_that_was_refused_is_taken_as_json_when_it_comes_again() -> None:
    body = {"series": TWO, "index": [1], "timestamps": [LATEST_NS + 5], "values": [2.5]}
    refusal = refusal_of(body)
    bridge = intake()
    assert refusals_of(bridge, refusal.payload) == [refusal]
    points, refusals = bridge.decode(TOPIC, 0x32, refusal.payload, LATEST_NS + 5)
    assert (rows_of(points), refusals) == ([(Series("d2", "m", (("site", "north"),)), LATEST_NS + 5, 2.5)], [])


@pytest.mark.parametrize("as_lists", [False, True])
def test_many_bad_rows_stay_together_and_are_the_same_when_they_come_again(as_lists: bool) -> None:
    count = columnar.MAX_ROW_REFUSALS + 1
    index, times = [row % 2 for row in range(count)], [LATEST_NS + 1 + row for row in range(count)]
    values = [row / 2 for row in range(count)]
    body: dict[str, Any] = {
        "series": TWO, "index": [*index, 0], "timestamps": [*times, 7], "values": [*values, 1.0],
    }  # fmt: skip
    if not as_lists:
        body |= {
            "index": binary("I", body["index"]), "timestamps": binary("q", body["timestamps"]),
            "values": binary("d", body["values"]),
        }  # fmt: skip
    points, (refusal,) = decode(body)
    assert rows_of(points) == [(Series("d1", "m"), 7, 1.0)]
    assert refusal.code == payload.FUTURE
    assert refusal.reason.startswith(f"{count} rows are refused, and kept together; the first: timestamp {times[0]} is")
    bridge = intake()
    assert refusals_of(bridge, refusal.payload) == [refusal]
    again, refusals = bridge.decode(TOPIC, 0x32, refusal.payload, times[-1])
    assert not refusals
    assert [(time_ns, value) for _, time_ns, value in again] == list(zip(times, values, strict=True))


# The oracle: one row after another, by other means


def exact_ns(time: Any, unit: str) -> int | None:
    """What a time means; None for none, or one that is refused."""
    if isinstance(time, float):
        if not abs(time) < 1e300:  # nor NaN
            return None
        time_ns = round(time * {"s": 1e6, "ms": 1e3, "us": 1.0, "ns": 1e-3}[unit]) * 1000
    else:
        time_ns = time * NS[unit]
    return time_ns if 0 <= time_ns <= LATEST_NS else None


def naive(body: dict[str, Any]) -> tuple[list[Row], list[int]]:
    """The points, and the rows that are refused."""
    points, refused = [], []
    for row in range(count_of(body["values"], 8)):
        value = item(body["values"], row, "<d")
        time_ns = exact_ns(item(body["timestamps"], row, "<q"), body["timestamp_unit"])
        series = body["series"][item(body["index"], row, "<I")]
        number = not isinstance(value, str | None) and math.isfinite(value)
        if not number or time_ns is None or len(series["device_id"]) > 20:
            refused.append(row)
        else:
            tags = tuple(sorted(series.get("tags", {}).items()))
            points.append((Series(series["device_id"], series["metric_name"], tags), time_ns, float(value)))
    return points, refused


def count_of(column: Any, width: int) -> int:
    return len(column) // (width if isinstance(column, bytes) else 1)


def item(column: Any, row: int, kind: str) -> Any:
    if isinstance(column, bytes):
        return struct.unpack_from(kind, column, row * struct.calcsize(kind))[0]
    return column[row]


def as_text(row: dict[str, Any]) -> str:
    """JSON in which NaN equals itself, and a series without tags one with none."""
    return json.dumps({name: value for name, value in row.items() if value != {}}, sort_keys=True)


def row_json(body: dict[str, Any], row: int) -> dict[str, Any]:
    series = body["series"][item(body["index"], row, "<I")]
    return series | {
        "timestamp": item(body["timestamps"], row, "<q"), "timestamp_unit": body["timestamp_unit"],
        "value": item(body["values"], row, "<d"),
    }  # fmt: skip


_series = st.fixed_dictionaries(
    {"device_id": st.sampled_from(["a", "b", "ü" * 3, "x" * 21]), "metric_name": st.sampled_from(["m", "n"])},
    optional={"tags": st.dictionaries(st.sampled_from(["s", "t"]), st.sampled_from(["1", "2"]))},
)
_int_times = st.one_of(
    st.integers(0, 2**32), st.sampled_from([NOW_NS, LATEST_NS, LATEST_NS + 1, -1, 0, 2**63 - 1, -(2**63)])
)
_float_times = st.one_of(st.floats(0, 1.7e9), st.floats())
_values = st.one_of(st.floats(), st.floats(allow_nan=False, allow_infinity=False))
_any_values = st.one_of(_values, st.booleans(), st.integers(-(2**63), 2**64 - 1), st.sampled_from(["x", None]))


@st.composite
def bodies(draw: st.DrawFn) -> dict[str, Any]:
    series = draw(st.lists(_series, min_size=1, max_size=4))
    rows = draw(st.integers(0, 60))

    def column(items: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(items, min_size=rows, max_size=rows))

    index, times, values = column(st.integers(0, len(series) - 1)), column(_int_times), column(_values)
    shape = draw(st.sampled_from(["binary", "lists", "floats", "mixed"]))
    body: dict[str, Any] = {"series": series, "timestamp_unit": draw(st.sampled_from(list(NS)))}
    if shape == "binary":
        return body | {"index": binary("I", index), "timestamps": binary("q", times), "values": binary("d", values)}
    if shape == "floats":
        times = column(_float_times)
    if shape == "mixed":
        times = column(st.one_of(_int_times, _float_times))
        values = column(_any_values)
    return body | {"index": index, "timestamps": times, "values": values}


@given(bodies())
@example({"series": TWO, "timestamp_unit": "s", "index": [0, 0], "timestamps": [1, 1.5], "values": [True, 2**64 - 1]})
def test_columns_are_what_their_rows_are_one_by_one(body: dict[str, Any]) -> None:
    points, refusals = decode(body)
    want, refused = naive(body)
    found = rows_of(points)
    assert [row[:2] for row in found] == [row[:2] for row in want]
    assert [struct.pack("<d", row[2]) for row in found] == [struct.pack("<d", row[2]) for row in want]
    assert [as_text(json.loads(refusal.payload)) for refusal in refusals] == [
        as_text(row_json(body, row)) for row in refused
    ]


@given(bodies())
def test_a_row_is_refused_for_the_reason_that_it_would_have_as_json(body: dict[str, Any]) -> None:
    _, refusals = decode(body)
    plain = intake(format="json")
    for refusal in refusals:
        _, (as_json,) = plain.decode(TOPIC, 0x32, refusal.payload, LATEST_NS)
        assert refusal == as_json


# Anything at all


_junk = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.text(max_size=5),
        st.binary(max_size=17), st.builds(msgpack.ExtType, st.integers(0, 5), st.binary(max_size=4)),
        st.just(msgpack.Timestamp(1_600_000_000)),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=8,
)  # fmt: skip
_fields = ["series", "index", "timestamps", "values", "timestamp_unit", "device_id", "metric_name", "tags"]
_near = st.dictionaries(st.sampled_from(_fields), st.one_of(_junk, st.lists(_junk, max_size=3)), max_size=8)
_damaged = st.tuples(bodies().map(msgpack.packb), st.integers(0, 10_000), st.integers(0, 255)).map(
    lambda given: given[0][: given[1] % (len(given[0]) + 1)] + bytes([given[2]]) + given[0][given[1] :]
)


@given(st.one_of(st.binary(), st.one_of(_near, _junk).map(msgpack.packb), _damaged))
def test_whatever_bytes_come_there_are_points_or_reasons(body: bytes) -> None:
    points, refusals = decode(body)
    for _, time_ns, value in points:
        assert 0 <= time_ns <= LATEST_NS
        assert math.isfinite(value)
    for refusal in refusals:
        assert refusal.reason
        assert len(refusal.reason) < 600
        again_points, again = decode(refusal.payload)
        assert (len(again_points), len(again)) == (0, 1)
