"""A long array of JSON is what its elements are one by one, and the usual one becomes columns."""

import json
from collections.abc import Iterable
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config import Ingest, Mqtt, Settings
from common.subscriptions import Subscription
from workers.bridge.columns import Columns
from workers.bridge.formats import bulk
from workers.bridge.intake import Intake
from workers.bridge.payload import Place, Points, Refusal

NOW_NS = 1_700_000_000_000_000_000
LATEST_NS = NOW_NS + 3600 * 10**9
GOOD: dict[str, Any] = {"device_id": "d1", "metric_name": "m1", "timestamp": 1_699_999_999, "value": 21.5}


def intake(form: str = "json", unit: Any = "default") -> Intake:
    subscription = Subscription("#", format=form, time_unit=unit)  # type: ignore[arg-type]
    settings = Settings(mqtt=Mqtt(subscriptions=[subscription]), ingest=Ingest(max_id_bytes=20))
    return Intake(settings, 1024, lambda: NOW_NS)


def pack(form: str, body: Any) -> bytes:
    return json.dumps(body).encode() if form == "json" else msgpack.packb(body)


def decode(bridge: Intake, body: bytes) -> tuple[Points, list[Refusal]]:
    return bridge.decode(b"t", 0x32, body, LATEST_NS)


def one_by_one(form: str, unit: str, elements: Iterable[Any]) -> tuple[list[Any], list[Refusal]]:
    bridge, points, refusals = intake(form, unit), [], []
    for element in elements:
        found, refused = decode(bridge, pack(form, element))
        points += found
        refusals += refused
    return points, refusals


def exact(points: Iterable[tuple[Place, int, float]]) -> list[tuple[Place, int, str]]:
    return [(place, time_ns, value.hex()) for place, time_ns, value in points]


_ids = st.sampled_from(["d1", "d2", "ü", "", "x" * 21])
_times = st.one_of(
    st.integers(1_600_000_000, 1_699_999_999), st.floats(1.6e9, 1.7e9), st.integers(-5, 2**64), st.none(),
    st.sampled_from(["2023-11-14T22:13:19.5Z", "yesterday", True]),
)  # fmt: skip
_values = st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.integers(), st.just("x"))
_usual = st.fixed_dictionaries(
    {
        "device_id": st.sampled_from(["d1", "d2"]), "metric_name": st.just("m"),
        "timestamp": st.one_of(st.integers(0, 1_699_999_999), st.floats(0, 1.7e9)),
        "value": st.floats(allow_nan=False, allow_infinity=False),
    },
)  # fmt: skip
_odd = st.fixed_dictionaries(
    {"device_id": _ids, "metric_name": st.just("m"), "value": _values},
    optional={
        "timestamp": _times, "tags": st.dictionaries(st.sampled_from(["a", "b"]), st.just("1"), max_size=2),
        "timestamp_unit": st.sampled_from(["s", "ms", "ns", None]),
    },
)  # fmt: skip
_arrays = st.one_of(
    st.lists(_usual, min_size=bulk.FEW - 1, max_size=40),
    st.builds(list.__add__, st.lists(_usual, min_size=bulk.FEW, max_size=30), st.lists(_odd, max_size=3)),
)


@pytest.mark.parametrize("form", ["json", "msgpack"])
@pytest.mark.parametrize("unit", ["default", "auto"])
@given(elements=_arrays)
def test_an_array_is_what_its_elements_are_one_by_one(form: str, unit: str, elements: list[Any]) -> None:
    if form == "msgpack":  # which has no integers beyond 64 bits
        elements = [element for element in elements if not isinstance(element["value"], int)]
    points, refusals = decode(intake(form, unit), pack(form, elements))
    want_points, want_refusals = one_by_one(form, unit, elements)
    assert exact(points) == exact(want_points)
    assert refusals == want_refusals


@pytest.mark.parametrize("form", ["json", "msgpack"])
def test_a_usual_array_becomes_columns(form: str) -> None:
    body = pack(form, [GOOD | {"device_id": f"d{n}", "value": n} for n in range(bulk.FEW)])
    points, refusals = decode(intake(form), body)
    assert isinstance(points, Columns)
    assert not refusals
    assert [value for _, _, value in points] == list(range(bulk.FEW))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_refused_in_msgpack_too(bad: float) -> None:
    elements = [GOOD] * 20 + [GOOD | {"value": bad}]
    points, (refusal,) = decode(intake("msgpack"), msgpack.packb(elements))
    assert (len(points), refusal.code, refusal.payload) == (20, "value", msgpack.packb(elements[-1]))
