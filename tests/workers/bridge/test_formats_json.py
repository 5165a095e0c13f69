"""JSON of other people: fields by path, names of the topic, many metrics; against slow obvious decoders."""

import fnmatch
import json
import math
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common.config import Subscription
from tests.workers.bridge.formats import ARRIVAL, Got, World, bits, decode, point, refusal
from workers.bridge.formats import metrics
from workers.bridge.payload import FUTURE, ID, MISSING, NOT_JSON, SHAPE, TAGS, TIME, VALUE

FIELDS: Any = {
    "device_field": "meta.id", "metric_field": "kind", "value_field": "data.v", "time_field": "meta.at",
    "template": "{site}/#",
}  # fmt: skip
METRICS: Any = {"format": "json-metrics", "template": "{device_id}"}


def naive_at(element: dict[str, Any], path: str) -> tuple[bool, Any]:
    """Whether something is at a path, and what: every way of cutting the path at dots, whole names first."""
    if path in element:
        return True, element[path]
    head, dot, rest = path.partition(".")
    if dot and isinstance(element.get(head), dict):
        return naive_at(element[head], rest)
    return False, None


# json


def test_a_payload_goes_before_the_topic_and_the_topic_before_the_subscription() -> None:
    given: Any = {"template": "{site}/{device_id}", "metric_name": "m", "tags": {"kind": "k", "line": "1"}}
    assert point("north/top", '{"value": 1}', **given) == Got(
        "top", "m", {"kind": "k", "line": "1", "site": "north"}, ARRIVAL, 1.0
    )
    body = '{"device_id": "d", "metric_name": "x", "value": 1, "tags": {"site": "s", "line": "2"}}'
    assert point("north/top", body, **given) == Got("d", "x", {"kind": "k", "line": "2", "site": "s"}, ARRIVAL, 1.0)


@pytest.mark.parametrize("field", ["device_id", "metric_name"])
def test_null_counts_as_missing_where_the_topic_has_a_name(field: str) -> None:
    body = json.dumps({"device_id": "d", "metric_name": "m", "value": 1} | {field: None})
    assert point("x", body, template=f"{{{field}}}")[field == "metric_name"] == "x"
    assert refusal("x", body).code == ID


def test_a_point_that_nobody_names_is_refused_with_where_names_were_looked_for() -> None:
    refused = refusal("north", '{"kind": "k", "data": {"v": 1}}', **FIELDS)
    assert (refused.code, refused.reason) == (
        MISSING, "no device_id (field 'meta.id') in the payload, and none in topic or subscription",
    )  # fmt: skip
    refused = refusal("north", '{"kind": "k", "meta": {"id": "d"}, "data": 5}', **FIELDS)
    assert (refused.code, refused.reason, refused.device) == (
        MISSING, "no value (field 'data.v') in the payload", "d",
    )  # fmt: skip


def test_a_name_with_dots_of_its_own_is_found_and_before_what_the_dots_lead_to() -> None:
    body = '{"meta.id": "own", "meta": {"id": "inner"}, "kind": "k", "data": {"v": 1}}'
    assert point("n", body, **FIELDS).device == "own"


def test_without_a_time_field_a_timestamp_means_nothing() -> None:
    body = '{"device_id": "d", "metric_name": "m", "value": 1, "timestamp": ["no", "time"], "timestamp_unit": "h"}'
    assert point("t", body, time_field="").time == ARRIVAL
    assert point("t", body.replace("device_id", "dev"), time_field="", device_field="dev").time == ARRIVAL


@pytest.mark.parametrize(
    ("number", "unit", "want"),
    [
        ("1699999999", "auto", 1_699_999_999 * 10**9),
        ("1699999999.25", "auto", 1_699_999_999_250_000_000),
        ("1699999999123", "auto", 1_699_999_999_123 * 10**6),
        ("1699999999123456", "auto", 1_699_999_999_123_456 * 10**3),
        ("1699999999123456789", "auto", 1_699_999_999_123_456_789),
        ("100000000000", "auto", 10**11 * 10**6),
        ("100000000000000", "auto", 10**14 * 10**3),
        ("100000000000000000", "auto", 10**17),
        ("1699999999123", "ms", 1_699_999_999_123 * 10**6),
        ("1699999999123.5", "ms", 1_699_999_999_123_500_000),
        ("1699999999123", "us", 1_699_999_999_123 * 10**3),
        ("1699999999123", "s", None),
    ],
)
def test_numbers_are_times_in_the_unit_of_the_subscription(number: str, unit: str, want: int | None) -> None:
    body = f'{{"device_id": "d", "metric_name": "m", "value": 1, "timestamp": {number}}}'
    if want is None:
        assert refusal("t", body, time_unit=unit).code == FUTURE
    else:
        assert point("t", body, time_unit=unit).time == want


def test_the_payloads_own_unit_goes_before_the_subscriptions() -> None:
    body = '{"device_id": "d", "metric_name": "m", "value": 1, "timestamp": 5000, "timestamp_unit": "ms"}'
    assert point("t", body, time_unit="us").time == 5 * 10**9
    assert point("t", body, time_unit="auto").time == 5 * 10**9


_texts = st.sampled_from(["d", "", "\x07", "x"])
_scalar = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | _texts
_value = st.recursive(
    _scalar, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("idv"), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip
_times = st.integers(0, 1_699_999_999) | st.floats(0, 1.6e9) | st.just("2023-11-14T22:13:19Z") | _value
_elements = st.fixed_dictionaries(
    {},
    optional={
        "meta": st.fixed_dictionaries({}, optional={"id": _texts | _value, "at": _times}) | _value,
        "kind": st.just("m") | _value,
        "data": st.fixed_dictionaries({}, optional={"v": st.floats() | st.booleans() | _value}) | _value,
        "meta.id": _value,
        "tags": st.dictionaries(st.sampled_from(["a", "site", ""]), st.sampled_from(["x", ""]), max_size=2) | _value,
    },
)


def naive_point(element: Any) -> Got | None:
    """FIELDS read by hand; None for what has to be refused. The time is not looked at beyond its kind."""
    if not isinstance(element, dict):
        return None
    device, metric, value = (naive_at(element, path)[1] for path in ("meta.id", "kind", "data.v"))
    time, tags = naive_at(element, "meta.at")[1], element.get("tags")
    tags = {} if tags is None else tags
    names = [device, metric, *tags, *tags.values()] if isinstance(tags, dict) else [None]
    if not all(isinstance(name, str) and name and "\x07" not in name for name in names):
        return None
    if not isinstance(value, int | float) or not math.isfinite(value) or isinstance(time, bool | list | dict):
        return None
    if isinstance(time, str) and time != "2023-11-14T22:13:19Z":
        return None
    if isinstance(time, int | float) and not 0 <= time <= 1_700_003_600:
        return None
    return Got(device, metric, {"site": "north", **tags}, ARRIVAL if time is None else -1, float(value))


@settings(max_examples=500)
@given(st.lists(_elements | _value, max_size=3))
@example([{"meta": {"id": "d", "at": -0.0}, "kind": "k", "data": {"v": 1}}])
def test_objects_with_other_fields_are_what_a_reader_by_hand_makes_of_them(elements: list[Any]) -> None:
    points, refusals = decode("north/x", json.dumps(elements), **FIELDS)
    want = [naive_point(element) for element in elements]
    kept = [got for got in want if got is not None]
    assert [got._replace(time=got.time if got.time == ARRIVAL else -1) for got in points] == kept
    assert [bits(got.value) for got in points] == [bits(got.value) for got in kept]
    assert len(refusals) == len(elements) - len(kept)
    bad = [json.dumps(element) for element, got in zip(elements, want, strict=True) if got is None]
    assert [each.payload.decode() for each in refusals] == bad


# json-metrics


def naive_leaves(element: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in element.items():
        if isinstance(value, dict):
            yield from naive_leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


_tree = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["x", [1]]),
    lambda inner: st.dictionaries(st.sampled_from(["a", "b", "temp", "mode", "id"]), inner, max_size=3),
    max_leaves=6,
)
_patterns = st.lists(st.sampled_from(["*", "a*", "*.b", "a.b", "temp", "?", "[ab]*"]), max_size=2, unique=True)


@settings(max_examples=500)
@given(st.dictionaries(st.sampled_from(["a", "b", "temp", "id"]), _tree, max_size=4), _patterns, _patterns)
def test_metrics_are_the_numbers_that_a_walk_by_hand_finds(
    element: dict[str, Any], include: list[str], exclude: list[str]
) -> None:
    exact = {pattern for pattern in include if not set(pattern) & set("*?[")}
    leaves = [
        (path, value)
        for path, value in naive_leaves(element)
        if (not include or any(fnmatch.fnmatchcase(path, each) for each in include))
        and not any(fnmatch.fnmatchcase(path, each) for each in exclude)
    ]
    objects = [path for path in exact if isinstance(naive_at(element, path)[1], dict)]
    if objects:
        return  # an object where a number is wanted: see the examples
    good = [(path, float(value)) for path, value in leaves if isinstance(value, int | float) and math.isfinite(value)]
    bad = [path for path, value in leaves if isinstance(value, float) and not math.isfinite(value)]
    bad += [path for path, value in leaves if not isinstance(value, int | float) and path in exact]
    world = World(Subscription("#", **METRICS, include=include, exclude=exclude))
    points, refusals = world.decode("dev", json.dumps(element))
    assert [(got.device, got.metric, got.value) for got in points] == [("dev", path, value) for path, value in good]
    assert len({got.time for got in points}) <= 1
    assert [each.code for each in refusals] == ([VALUE] if bad else [] if good else [SHAPE])
    passed_over = [path for path, value in leaves if not isinstance(value, int | float) and path not in exact]
    assert world.intake.routes.routes[0].fields_skipped == len(passed_over)


def test_the_fields_with_time_device_and_unit_are_no_metrics() -> None:
    body = '{"when": 5, "timestamp_unit": "ms", "id": "d", "t": 1}'
    got = point("top", body, format="json-metrics", time_field="when", device_field="id")
    assert got == Got("d", "t", {}, 5_000_000, 1.0)
    points, _ = decode("top", '{"timestamp": 5, "t": 1}', format="json-metrics", device_id="d", time_field="")
    assert [got.metric for got in points] == ["timestamp", "t"]


@pytest.mark.parametrize(
    ("body", "code", "words", "points"),
    [
        ('{"t": 1, "u": NaN, "v": 1e999, "w": 2}', VALUE, "field 'u' is NaN, infinite or beyond the range of float64, "
         "want a finite number; so are 1 further fields", 2),
        ('{"t": 1, "": 2}', ID, "metric_name is empty", 1),
        ('{"t": 1, "a": {"b\\u0007": 2}}', ID, "metric_name 'a.b\\x07' has the control character U+0007 at 3", 1),
        ('{"t": 1, "' + "x" * 300 + '": {"y": 2}}', VALUE, "is an object, want a number or a boolean", 1),
        ("{}", SHAPE, "no field is a metric", 0),
        ('{"state": "ON"}', SHAPE, "no field is a metric", 0),
        ('{"t": 1, "timestamp": -5}', TIME, "lies before 1970", 0),
        ('{"t": 1, "timestamp": 1700000000000}', FUTURE, "it looks like ms", 0),
        ('{"t": 1, "timestamp": 5, "timestamp_unit": "h"}', TIME, "timestamp_unit is 'h'", 0),
        ("[5]", SHAPE, "element is a number, want an object", 0),
        ("21.5", SHAPE, "payload is a number", 0),
        ("{", NOT_JSON, "not JSON", 0),
        ('{"a":' * 5000, NOT_JSON, "nested too deeply", 0),
    ],
    ids=lambda value: repr(value)[:30],
)  # fmt: skip
def test_an_object_with_a_bad_field_is_refused_and_its_good_fields_are_points(
    body: str, code: str, words: str, points: int
) -> None:
    found, (refused,) = decode("d", body, **METRICS)
    assert len(found) == points
    assert refused.code == code
    assert words in refused.reason


def test_of_an_array_only_the_bad_object_is_refused_and_nothing_is_counted_twice() -> None:
    world = World(Subscription("#", **METRICS))
    points, (refused,) = world.decode("d", '[{"t": 1, "s": "x"}, {"t": NaN, "s": "x"} , {"t": 3}]')
    assert [got.value for got in points] == [1.0, 3.0]
    assert (refused.payload, refused.code, refused.device) == (b'{"t": NaN, "s": "x"}', VALUE, "d")
    assert world.intake.routes.routes[0].fields_skipped == 2


def test_an_included_path_without_wildcard_must_be_a_number_where_it_is_there() -> None:
    chosen: Any = {**METRICS, "include": ["a.t", "u"]}
    assert point("d", '{"a": {"t": 1, "x": "no matter"}}', **chosen).metric == "a.t"
    assert refusal("d", '{"u": "warm"}', **chosen).reason == "field 'u' is a string, want a number or a boolean"
    assert refusal("d", '{"u": {"v": 1}}', **chosen).reason == "field 'u' is an object, want a number or a boolean"


@pytest.mark.parametrize(("paths", "length"), [(300_000, 1), (40_000, 200), (12, 3 << 20)])
def test_the_paths_that_are_remembered_are_bounded_in_memory(paths: int, length: int) -> None:
    """Short ones cost more than their characters, and a single one may be as long as a payload."""
    chosen = metrics.Metrics(Subscription("#", format="json-metrics"))
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(paths):
            assert chosen.is_metric(chr(0x10000 + number).ljust(length, "x"))
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 1.5 * metrics.MAX_BYTES


def test_payload_tags_are_no_tags_of_many_metrics() -> None:
    points, _ = decode("d", '{"t": 1, "tags": {"site": "x"}}', **METRICS)
    assert points[0].tags == {}


def test_hostile_depth_and_length_together_cost_little() -> None:
    name = "x" * 50_000
    found, (refused,) = decode("d", f'{{"{name}":' * 900 + '{"t": 1}' + "}" * 900, **METRICS)
    assert (found, refused.code) == ([], VALUE)


@settings(max_examples=300)
@given(
    st.binary(max_size=50) | st.text(max_size=50).map(lambda text: text.encode(errors="replace")),
    st.sampled_from(["json", "json-metrics"]),
)
def test_whatever_bytes_come_there_are_points_or_a_reason(body: bytes, form: str) -> None:
    points, refusals = decode("d/m", body, format=form, template="{device_id}/#")
    assert points or refusals or json.loads(body) == []
    assert all(refused.code != TAGS or b"tags" in body for refused in refusals)
