"""Verified reads: owners that differ are joined exactly, whatever they lack, and only what differs is fetched."""

import dataclasses
import functools
import itertools
import operator
import random
from collections.abc import Sequence
from typing import Any

import pytest
from msgspec import structs

from common import clock, protocol
from common.protocol import ErrorReply
from common.ring import Ring
from common.series import parse_key, partition_of
from tests.workers.query.fake import Point, make_ring, point
from tests.workers.query.inside import Inside
from tests.workers.query.replicas import Replicas, settled
from workers.query import fetching, verified
from workers.query.gather import Question
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


@pytest.mark.parametrize("form", range(len(FORMS)))
def test_equal_owners_are_compared_and_read_in_one_way_there_and_back(form: int) -> None:
    pair = Pair(everywhere(some_points(random.Random(1))))
    answer, wanted = pair.query(**FORMS[form])
    assert told(answer) == told(wanted)
    assert answer["coverage"]["compared"] == {"owners": 2, "series_joined": 0, "reason": ""}
    assert pair.replicas.kinds() == {protocol.VERIFY}
    parts = [int.from_bytes(request.partitions, "little") for _, _, request in pair.replicas.reads]
    assert functools.reduce(operator.or_, parts).bit_count() == PARTITIONS
    assert sum(part.bit_count() for part in parts) == PARTITIONS


def test_buckets_that_depend_on_where_points_lie_are_asked_for_when_that_is_known() -> None:
    pair = Pair(everywhere(some_points(random.Random(1))))
    answer, wanted = pair.query(max_points=7)
    assert told(answer) == told(wanted)
    assert answer["coverage"]["verified"] is True
    assert (pair.replicas.kinds(), pair.replicas.reads) == ({protocol.VERIFY, protocol.GROUPS}, [])


@pytest.mark.parametrize("device", ["*", "d1"])
@pytest.mark.parametrize("fault", ["mute", "garbling"])
def test_what_no_node_has_read_behind_the_comparison_is_asked_for(device: str, fault: str) -> None:
    pair = Pair(everywhere(some_points(random.Random(1))))
    getattr(pair.replicas, fault).add("ing2")
    answer, wanted = pair.query(device_id=device, operation="sum")
    assert told(answer) == told(wanted)
    assert answer["coverage"]["verified"] is True
    assert len(pair.replicas.reads) == 2
    assert pair.replicas.kinds() > {protocol.VERIFY}


def test_what_owners_lack_is_not_taken_from_what_was_read_behind_the_comparison() -> None:
    draw = random.Random(1)
    pair = Pair(torn(draw, some_points(draw), 0.3), 3)
    answer, wanted = pair.query(operation="count")
    assert answer["result"] == wanted["result"]
    assert pair.replicas.reads
    assert sum(reply_count(pair, request) for request in pair.replicas.reads) < answer["count"]


def test_a_read_of_more_than_was_compared_at_that_time_does_not_count() -> None:
    """An owner that answers for a partition only when it has told its figures reads it before it is compared."""
    pair = Pair(everywhere(some_points(random.Random(1))))
    answer_of, held_back = pair.replicas.answer, [True]

    def lagging(node: str, kind: bytes, request: Any) -> Any:
        if kind != protocol.VERIFY or node != "ing1" or not held_back[0]:
            return answer_of(node, kind, request)
        held_back[0] = False
        read = answer_of(node, kind, request).read
        assert read
        others = protocol.members(request.partitions)[1:]
        less = structs.replace(request, partitions=protocol.bitmap(others, PARTITIONS))
        return structs.replace(answer_of(node, kind, less), read=read)

    pair.differing.scatter._answer = lagging
    answer, wanted = pair.query()
    assert told(answer) == told(wanted)
    assert answer["coverage"]["complete"] is True
    assert protocol.GROUPS in pair.replicas.kinds()


def reply_count(pair: Pair, read: tuple[str, bytes, Any]) -> int:
    node, _, request = read
    return len(pair.replicas.nodes[node]._mine(request.partitions)[1])


def asked_for_points(pair: Pair) -> list[int]:
    """The partitions that nodes were asked to answer from, one node after the other."""
    return [
        int.from_bytes(request.partitions, "little").bit_count()
        for _, kind, request in pair.replicas.asked
        if kind in (protocol.AGGREGATE, protocol.GROUPS, protocol.SAMPLES)
    ]


def test_only_the_partitions_in_which_the_comparison_found_points_are_asked_for_the_answer() -> None:
    draw = random.Random(15)
    pair = Pair(everywhere(some_points(draw)))
    pair.replicas.mute.update(("ing1", "ing2", "ing3"))
    answer, wanted = pair.query(device_id="d1", operation="sum")
    assert told(answer) == told(wanted)
    assert answer["coverage"]["compared"]["owners"] == 2
    url = "/api/v1/samples?metric_name=m&device_id=d1&consistency=verified"
    status, _ = pair.differing.call("GET", url)
    assert (status, asked_for_points(pair)) == (200, [1, 1])
    assert pair.replicas.kinds() == {protocol.VERIFY, protocol.AGGREGATE, protocol.SAMPLES}  # as if asked plainly


def test_where_not_all_owners_were_compared_all_partitions_are_asked() -> None:
    held = everywhere(some_points(random.Random(16)))
    held["ing1"], held["ing2"] = [], []
    pair = Pair(held)  # the first owner of some partitions has nothing, and the one that has does not tell
    pair.replicas.errors["ing3", protocol.VERIFY] = ErrorReply(protocol.ERR_INTERNAL, "broken")
    answer, _ = pair.query(device_id="d1", operation="sum")
    assert answer["coverage"]["verified"] is False
    assert sum(asked_for_points(pair)) == PARTITIONS


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
    monkeypatch.setattr(fetching, "WHOLE_ROWS", 16)
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


class Flowing(Replicas):
    """Owners that each point reaches one after the other, while they are asked.

    flow: points, of which some arrive with each request; `ahead` has each as many requests earlier than the others.
    """

    def __init__(self, ring: Ring, held: dict[str, list[Point]], flow: list[list[Point]], ahead: str, by: int) -> None:
        super().__init__(ring, held)
        self._flow, self._ahead, self._by, self._turn = flow, ahead, by, 0

    def answer(self, node_id: str, kind: bytes, request: Any) -> Any:
        self._turn += 1
        for node in self.nodes.values():
            arrived = self._turn if node.id == self._ahead else self._turn - self._by
            node.points = settled([*node.points, *itertools.chain.from_iterable(self._flow[: max(0, arrived)])])
        return super().answer(node_id, kind, request)


def flowing(flow: list[list[Point]], by: int, held: list[Point]) -> Pair:
    pair = Pair(everywhere(held))
    pair.replicas = Flowing(pair.replicas.ring, everywhere(held), flow, "ing1", by)
    pair.differing = Inside(pair.replicas.answer)
    pair.differing.scatter.plan = Plan.of(pair.replicas.ring)
    return pair


def test_points_on_their_way_to_all_series_are_no_difference() -> None:
    held = some_points(random.Random(8), devices=200, each=3)
    series = sorted({key for key, _, _ in held})
    # With each request some series get a point, so that no two owners ever are equal at the same time.
    flow = [[(key, (1000 + turn) * S, 1.0) for key in series[turn::40]] for turn in range(40)]
    pair = flowing(flow, 3, held)
    status, answer = pair.differing.call(
        "POST", "/query", {"device_id": "*", "metric_name": "m", "operation": "count", "consistency": "verified"}
    )
    assert (status, answer["coverage"]["verified"]) == (200, True), answer
    assert answer["coverage"]["compared"] == {"owners": 2, "series_joined": 0, "reason": ""}
    assert pair.replicas.kinds() == {protocol.VERIFY, protocol.GROUPS}
    assert answer["count"] > len(settled(held))


def test_points_that_come_faster_than_owners_can_be_asked_are_no_difference_either(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = 2000
    monkeypatch.setattr(clock, "wall_ns", lambda: now_s * S)
    held = some_points(random.Random(9), devices=80, each=3)
    series = sorted({key for key, _, _ in held})
    flow = [[(key, now_s * S + turn, 1.0) for key in series] for turn in range(200)]
    pair = flowing(flow, 2, held)
    ring, first = pair.replicas.ring, pair.replicas.nodes["ing1"]
    lacking = next(each for each in settled(held) if _owns(first, each))
    for node in ring.owners(partition_of(lacking[0], PARTITIONS))[1:]:
        pair.replicas.nodes[node.id].points.remove(lacking)  # and this one does not come
    status, answer = pair.differing.call(
        "POST", "/query", {"device_id": "*", "metric_name": "m", "operation": "count", "consistency": "verified"}
    )
    assert (status, answer["coverage"]["verified"]) == (200, True), answer
    assert answer["coverage"]["compared"]["series_joined"] == 1
    fetched = [request for _, kind, request in pair.replicas.asked if kind == protocol.SAMPLES]
    whole = [request for request in fetched if request.start_ns is None or request.start_ns <= (now_s - 2) * S]
    assert {request.match.device_id[0].text for request in whole} == {parse_key(lacking[0]).device_id}
    assert len(whole) < len(fetched)


def test_an_owner_that_goes_away_between_comparisons_leaves_the_answer_unverified_and_whole() -> None:
    pair = Pair(torn(random.Random(10), some_points(random.Random(10)), 0.3))
    answer_of, asked = pair.replicas.answer, []

    def dying(node: str, kind: bytes, request: Any) -> Any:
        asked.append((node, kind))
        if node == "ing2" and asked.count((node, protocol.VERIFY)) > 1:
            return ErrorReply(protocol.ERR_INTERNAL, "is gone")
        return answer_of(node, kind, request)

    pair.differing.scatter._answer = dying
    answer, _ = pair.query()
    assert (answer["coverage"]["complete"], answer["coverage"]["verified"]) == (True, False)
    assert "ing2: internal: is gone" in answer["coverage"]["compared"]["reason"]
    assert answer["coverage"]["compared"]["series_joined"] == 0


@pytest.mark.parametrize("changes", [2, 99])
@pytest.mark.parametrize("lost", [0.0, 0.3])
@pytest.mark.parametrize("device", ["*", "d1"])
@pytest.mark.parametrize("reads_behind", [True, False])
def test_owners_that_change_between_comparing_and_asking_are_compared_again(
    changes: int, lost: float, device: str, reads_behind: bool
) -> None:
    draw = random.Random(11)
    pair = Pair(torn(draw, some_points(draw), lost), 3)
    pair.replicas.mute.update(() if reads_behind else pair.replicas.nodes)
    answer_of, left = pair.replicas.answer, [changes]
    scatter = pair.differing.scatter

    def moving(node: str, kind: bytes, request: Any) -> Any:
        reply = answer_of(node, kind, request)
        if left[0] and kind == protocol.VERIFY and node == "ing3":
            left[0] -= 1
            epoch, document = scatter.plan.ring.epoch + 1, pair.replicas.ring.document()
            owners = [each[: 2 + epoch % 2] for each in document["owners"]]
            scatter.plan = Plan.of(Ring.from_document(document | {"epoch": epoch, "owners": owners}))
        return reply

    scatter._answer = moving
    answer, wanted = pair.query(device_id=device, operation="count")
    assert answer["coverage"]["complete"] is True
    if changes == 2 or (reads_behind and not lost):  # equal owners, read as they are compared: nothing comes between
        assert answer["coverage"]["verified"] is True
        assert answer["result"] == wanted["result"]
    else:
        assert answer["coverage"]["verified"] is False
        assert "the ring changed" in answer["coverage"]["compared"]["reason"]


def test_more_than_can_be_joined_is_answered_by_one_owner_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verified, "JOIN_POINTS", 100)
    draw = random.Random(12)
    pair = Pair(torn(draw, some_points(draw, devices=30), 0.3))
    answer, _ = pair.query()
    assert (answer["coverage"]["complete"], answer["coverage"]["verified"]) == (True, False)
    assert "at most 100 are fetched and joined" in answer["coverage"]["compared"]["reason"]
    assert protocol.SAMPLES not in pair.replicas.kinds()
    assert protocol.REPAIR in pair.replicas.kinds()


def test_of_three_owners_the_one_that_lacks_rows_decides_nothing() -> None:
    points = some_points(random.Random(13))
    for lacking in ("ing1", "ing2", "ing3"):
        held = everywhere(points)
        held[lacking] = points[: len(points) // 2]
        answer, wanted = Pair(held, 3).query()
        assert told(answer) == told(wanted)
        assert answer["coverage"]["verified"] is True
        assert answer["coverage"]["compared"]["owners"] == 3


def test_comparing_leaves_half_of_the_time_for_the_answer() -> None:
    pair = Pair(everywhere(some_points(random.Random(14))))
    asked = []
    ask = pair.differing.scatter.ask

    def noted(question: Question) -> None:
        asked.append((question.kind, question.timeout_s))
        ask(question)

    pair.differing.scatter.ask = noted
    pair.query(timeout_s=8)
    times = dict(asked)
    assert times[protocol.VERIFY] <= 4.0 < times[protocol.GROUPS] <= 8.0
