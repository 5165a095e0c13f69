"""Payloads of very many elements, good or bad: what they cost is bounded, and nothing of them vanishes."""

from typing import Any

import msgspec
import pytest

from common.config import Subscription
from tests.workers.bridge.formats import Got, World
from workers.bridge.payload import MAX_REFUSALS, SIZE, Refusal

BAD = 2 * MAX_REFUSALS + 345
LIMIT = 5000

GOOD_ROW = {"device_id": "d", "metric_name": "m", "timestamp": 1, "value": 1}
GOOD_METRICS = {"device_id": "d", "timestamp": 1, "m": 1}

# format: (good element, bad element, elements to payload, elements of a payload)
FORMATS: dict[str, tuple[Any, Any, Any, Any]] = {
    "json": (GOOD_ROW, {"x": 1}, msgspec.json.encode, msgspec.json.decode),
    "json-metrics": (GOOD_METRICS, {"device_id": "d", "t": "x"}, msgspec.json.encode, msgspec.json.decode),
    "msgpack": (GOOD_ROW, {"x": 1}, msgspec.msgpack.encode, msgspec.msgpack.decode),
    "msgpack-metrics": (GOOD_METRICS, {"device_id": "d", "t": "x"}, msgspec.msgpack.encode, msgspec.msgpack.decode),
    "csv": (b"1,d,m,1", b"x", b"\n".join, lambda body: body.split(b"\n")),
    "line-protocol": (b"w,device_id=d m=1 1", b"x", b"\n".join, lambda body: body.split(b"\n")),
}


def decoded(name: str, body: bytes, **limits: Any) -> tuple[list[Got], list[Refusal]]:
    return World(Subscription("#", format=name), **limits).decode("t", body)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", FORMATS)
def test_of_many_bad_elements_the_first_stand_alone_and_the_others_together(name: str) -> None:
    good, bad, join, split = FORMATS[name]
    points, refusals = decoded(name, join([good, *[bad] * BAD, good]))
    assert len(points) == 2
    assert len(refusals) == MAX_REFUSALS + 1
    assert split(refusals[-1].payload) == [bad] * (BAD - MAX_REFUSALS)
    assert refusals[-1].code == refusals[0].code
    assert refusals[-1].reason.startswith(f"{BAD - MAX_REFUSALS} further elements are refused, and kept together")


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_kept_together_can_be_replayed(name: str) -> None:
    _, bad, join, _ = FORMATS[name]
    _, refusals = decoded(name, join([bad] * BAD))
    points, again = decoded(name, refusals[-1].payload)
    assert (points, len(again)) == ([], MAX_REFUSALS + 1)


@pytest.mark.parametrize("name", FORMATS)
def test_more_elements_than_allowed_are_refused_whole(name: str) -> None:
    good, _, join, _ = FORMATS[name]
    body = join([good] * (LIMIT + 2))
    points, refusals = decoded(name, body, max_elements=LIMIT)
    assert (points, [refusal.code for refusal in refusals]) == ([], [SIZE])
    assert refusals[0].payload == body
    assert f"limit {LIMIT} (ingest.max_elements)" in refusals[0].reason
    points, refusals = decoded(name, join([good] * (LIMIT // 10)), max_elements=LIMIT)
    assert (len(points), refusals) == (LIMIT // 10, [])


def test_an_object_with_more_fields_than_allowed_is_refused_whole() -> None:
    body = msgspec.json.encode({"device_id": "d", **{f"k{at}": at for at in range(LIMIT)}})
    points, refusals = decoded("json-metrics", body, max_elements=LIMIT)
    assert (points, [refusal.code for refusal in refusals]) == ([], [SIZE])
