"""Verified reads: owners that differ are joined exactly, whatever they lack, and only what differs is fetched."""

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

import pytest

from common import protocol
from common.protocol import ErrorReply
from common.series import parse_key, partition_of
from tests.workers.query.fake import Point, make_ring, point
from tests.workers.query.inside import Inside
from tests.workers.query.replicas import Replicas, settled
from workers.query import verified
from workers.query.plan import Plan

S = 10**9
OPERATIONS = ["avg", "sum", "min", "max", "count", "first", "last", "stddev", "median", "rate", "increase", "integral"]
PARTITIONS = 16


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verified, "SETTLE_S", 0.0)


def some_points(draw: random.Random, devices: int = 4, each: int = 12) -> list[Point]:
    return [
        point(f"d{device}", "m", draw.randrange(60) * S, draw.choice([-0.0, 0.0, 1.5, draw.uniform(-9, 9), 1e6]),
              {"site": f"s{device % 2}"})
        for device in range(devices)
        for _ in range(each)
    ]  # fmt: skip


class Pair:
    """An application over owners that may differ, and one over owners that all hold everything."""

    def __init__(self, held: dict[str, list[Point]], replication: int = 2) -> None:
        ring = make_ring([10, 20, 30], PARTITIONS, replication)
        self.replicas = Replicas(ring, held)
        every = settled([each for points in held.values() for each in points])
        self.oracle = Replicas(ring, {node.id: every for node in ring.nodes})
        self.differing, self.whole = (Inside(each.answer) for each in (self.replicas, self.oracle))
        for inside in (self.differing, self.whole):
            inside.scatter.plan = Plan.of(ring)

    def query(self, **fields: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        body = {"device_id": "*", "metric_name": "m", "operation": OPERATIONS} | fields
        status, answer = self.differing.call("POST", "/query", body | {"consistency": "verified"})
        assert status == 200, answer
        status, wanted = self.whole.call("POST", "/query", body)
        assert status == 200, wanted
        return answer, wanted


def told(answer: dict[str, Any]) -> dict[str, Any]:
    """What an answer says, without how it came about. Squares of distances are no exact sums: rounded."""
    told = {name: value for name, value in answer.items() if name not in ("coverage", "duration_ns")}
    for row in told.get("rows", [told.get("result")]):
        if isinstance(row, dict) and row.get("stddev") is not None:
            row["stddev"] = float(f"{row['stddev']:.12g}")
    return told


def torn(draw: random.Random, points: Sequence[Point], lost: float) -> dict[str, list[Point]]:
    """Each owner lacks some points, and has some smaller values; no point is lacking everywhere."""
    held: dict[str, list[Point]] = {"ing1": [], "ing2": [], "ing3": []}
    for each in points:
        safe = draw.choice(sorted(held))
        for node, mine in held.items():
            if node == safe or draw.random() >= lost:
                mine.append(each)
            elif draw.random() < 0.3:
                mine.append((each[0], each[1], each[2] - 1.0))
    return held


def everywhere(points: Sequence[Point]) -> dict[str, list[Point]]:
    return {node: list(points) for node in ("ing1", "ing2", "ing3")}


FORMS: list[dict[str, Any]] = [
    {},
    {"operation": "avg"},
    {"device_id": "d1", "operation": "sum"},
    {"group_by": "series"},
    {"group_by": ["tags.site"], "interval": "10s", "start_time": 0, "end_time": 60},
    {"interval": "7s"},
    {"start_time": 13, "end_time": 41},
]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("replication", [2, 3])
def test_whatever_owners_lack_the_answer_is_that_of_all_their_points(seed: int, replication: int) -> None:
    draw = random.Random(seed)
    # All of a partition's owners hold what any node has: who is no owner must not be the only one.
    pair = Pair(torn(draw, some_points(draw), 0.3), replication)
    owned = settled([each for node in pair.replicas.nodes.values() for each in node.points if _owns(node, each)])
    for node in pair.oracle.nodes.values():
        node.points = owned
    for form in FORMS:
        answer, wanted = pair.query(**form)
        assert told(answer) == told(wanted), form
        assert answer["coverage"]["verified"] is True
        assert answer["coverage"]["compared"]["owners"] == replication


def _owns(node: Any, each: Point) -> bool:
    return bool(node.owned >> partition_of(each[0], PARTITIONS) & 1)


@pytest.mark.parametrize("limit", [1, 7, 1000])
def test_pages_of_samples_are_joined_too(limit: int) -> None:
    draw = random.Random(5)
    points = some_points(draw)
    pair = Pair(torn(draw, points, 0.2), 3)
    found: list[tuple[str, float, float]] = []
    cursor = ""
    while True:
        url = f"/api/v1/samples?metric_name=m&limit={limit}&consistency=verified&cursor={cursor}"
        status, answer = pair.differing.call("GET", url)
        assert (status, answer["coverage"]["verified"]) == (200, True)
        for series in answer["series"]:
            found += [(series["device_id"], at, value) for at, value in zip(*_columns(series), strict=True)]
        cursor = answer["next_cursor"]
        if cursor is None:
            break
    status, wanted = pair.whole.call("GET", "/api/v1/samples?metric_name=m&limit=all")
    rows = [(each["device_id"], *row) for each in wanted["series"] for row in zip(*_columns(each), strict=True)]
    assert found == rows


def _columns(series: dict[str, Any]) -> tuple[list[float], list[float]]:
    return series["times"], series["values"]


def test_equal_owners_are_compared_and_one_of_them_answers() -> None:
    draw = random.Random(1)
    pair = Pair(everywhere(some_points(draw)))
    answer, wanted = pair.query()
    assert told(answer) == told(wanted)
    assert answer["coverage"]["compared"] == {"owners": 2, "series_joined": 0, "reason": ""}
    assert pair.replicas.kinds() == {protocol.VERIFY, protocol.GROUPS}


def test_only_what_differs_is_fetched_and_its_repair_is_asked_for_once() -> None:
    draw = random.Random(2)
    points = some_points(draw, devices=40)
    held = everywhere(points)
    lost = next(each for each in points if each[0] == points[100][0])
    for node in ("ing1", "ing2"):
        held[node] = [each for each in held[node] if each[:2] != lost[:2]]
    pair = Pair(held)
    for _ in range(2):
        answer, wanted = pair.query()
        assert told(answer) == told(wanted)
    fetched = [request for _, kind, request in pair.replicas.asked if kind == protocol.SAMPLES]
    assert answer["coverage"]["compared"]["series_joined"] == 1
    assert {request.match.device_id[0].text for request in fetched} == {parse_key(lost[0]).device_id}
    repairs = [(node, request.series) for node, kind, request in pair.replicas.asked if kind == protocol.REPAIR]
    assert len(repairs) == len({node for node, _ in repairs}) == 2
    assert all(series == [lost[0]] for _, series in repairs)


def test_of_a_long_series_only_the_stretch_that_differs_is_fetched_from_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(verified, "WHOLE_ROWS", 16)
    points = [point("d1", "m", n * S, float(n)) for n in range(1000)]
    held = everywhere(points)
    for node in ("ing1", "ing3"):
        held[node] = [each for each in points if not 500 <= each[1] // S < 505]
    pair = Pair(held, 3)
    answer, wanted = pair.query(operation="sum")
    assert told(answer) == told(wanted)
    spans = [
        (request.end_ns - request.start_ns) // S
        for _, kind, request in pair.replicas.asked
        if kind == protocol.SAMPLES and request.start_ns is not None
    ]
    assert len(spans) >= 2
    assert max(spans) < 40


def test_an_owner_that_does_not_answer_leaves_the_answer_unverified_not_missing() -> None:
    pair = Pair(everywhere(some_points(random.Random(3))))
    pair.replicas.errors["ing2", protocol.VERIFY] = ErrorReply(protocol.ERR_INTERNAL, "broken")
    answer, wanted = pair.query()
    assert told(answer) == told(wanted)
    assert (answer["coverage"]["complete"], answer["coverage"]["verified"]) == (True, False)
    assert "ing2: internal: broken" in answer["coverage"]["compared"]["reason"]


def test_a_node_that_is_behind_is_not_compared_and_told() -> None:
    held = everywhere(some_points(random.Random(4)))
    held["ing2"] = []
    pair = Pair(held)
    plan = pair.differing.scatter.plan
    assert plan is not None
    pair.differing.scatter.plan = dataclasses.replace(plan, behind={"ing2": ("is behind: a lost disk", 0.0)})
    answer, wanted = pair.query()
    assert told(answer) == told(wanted)
    assert answer["coverage"]["verified"] is False
    assert "ing2: is behind" in answer["coverage"]["compared"]["reason"]
    assert not any(node == "ing2" for node, _, _ in pair.replicas.asked)


def test_with_one_owner_there_is_nothing_to_compare() -> None:
    pair = Pair(everywhere(some_points(random.Random(6))), replication=1)
    answer, _ = pair.query()
    assert answer["coverage"]["compared"] == {"owners": 1, "series_joined": 0, "reason": ""}


def test_an_unknown_consistency_is_refused_and_current_is_the_usual_one() -> None:
    pair = Pair(everywhere(some_points(random.Random(7))))
    body = {"device_id": "d1", "metric_name": "m", "operation": "avg", "consistency": "strong"}
    status, answer = pair.differing.call("POST", "/query", body)
    assert (status, answer["error"]) == (400, "bad_request")
    status, answer = pair.whole.call("POST", "/query", body | {"consistency": "current"})
    assert (status, "verified" in answer.get("coverage", {})) == (200, False)
