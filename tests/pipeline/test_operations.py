"""Answers of real clusters of 1, 3 and 5 nodes against the oracle, and against each other.

The same random points in each: gaps, duplicates, out of order, counters that begin again, several sets of tags, -0.0,
large and tiny values; in heads and in segments.
"""

import math
import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest

from tests import naive_query
from tests.naive_query import Question, S, Series
from tests.queried import Queried, Row
from tests.support import Children, wait_until

NODES = (1, 3, 5)
BEGIN = 1_698_000_000 * S  # 2023-10-22T18:40Z: a week before Europe's clocks go back
HOUR = 3600 * S
STEPPED = ("rate", "increase", "delta", "integral", "twa")
SAMPLED = (
    "avg", "sum", "min", "max", "count", "first", "last", "spread", "stddev", "variance", "median",
    "percentile(95)", "percentile(12.5)", "percentile(0)", "percentile(100)",
)  # fmt: skip
EXACT = ("min", "max", "count", "first", "last", "spread")
SUMS = ("sum", "avg", "delta", "increase")

Points = dict[Series, dict[int, float]]


def make_rows() -> list[Row]:
    """What is pushed, in this order."""
    rng = random.Random(8)
    rows: list[Row] = []
    for number in range(14):
        tags = ((), (("room", "x"),), (("floor", "1"), ("room", "y")))[number % 3]
        device = f"room{number // 3}" if number % 5 else f"aa:bb/{number}"
        metric = ("temperature", "counter", "humidity")[number % 4 % 3]
        rows += _walk((device, metric, tags), rng)
    rows += [
        (("big", "huge", ()), BEGIN + at * HOUR // 3, rng.choice((-1, 1)) * 10 ** rng.uniform(90, 120))
        for at in range(60)
    ]
    rows += [
        (("small", "tiny", ()), BEGIN + at * HOUR // 2, rng.choice((5e-324, -0.0, 0.0, -2e-308, 1e-300)))
        for at in range(60)
    ]
    rows += [(("lone", "temperature", ()), BEGIN + 5 * HOUR + 1, 21.5)]
    rng.shuffle(rows)
    return rows


def _walk(series: Series, rng: random.Random) -> Iterator[Row]:
    at, level = BEGIN + rng.randrange(30 * HOUR), rng.uniform(-5, 20)
    for _ in range(90):
        at += rng.choice(
            (S, HOUR, rng.randrange(1, 3 * HOUR), rng.randrange(1, 3 * HOUR), 20 * HOUR if rng.random() < 0.1 else 1)
        )
        if series[1] == "counter":
            level = abs(level) + rng.randrange(9) if rng.random() < 0.9 else rng.random()
        else:
            level = round(level + rng.gauss(0, 1), 2) if rng.random() < 0.9 else level + rng.random()
        yield series, at, level
        if rng.random() < 0.1:  # again, the same or another value
            yield series, at, rng.choice((level, level - 1, level + 0.5))


def stored(rows: list[Row]) -> Points:
    """By identity: of two values the larger."""
    points: Points = {}
    for series, at, value in rows:
        held = points.setdefault(series, {})
        if at not in held or naive_query.rank(value) > naive_query.rank(held[at]):
            held[at] = value
    return points


ROWS = make_rows()
POINTS = stored(ROWS)


@pytest.fixture(scope="module")
def clusters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Queried]]:
    children = Children()
    home = tmp_path_factory.mktemp("operations")
    made = [Queried(children, home / str(nodes), nodes, {"storage.head_rows": 1024}) for nodes in NODES]
    for cluster in made:
        cluster.wait_ready().push(ROWS, 200)
    yield made
    children.stop_all()


# Asking


def body_of(asked: Question) -> dict[str, Any]:
    """The question as POST /query has it."""
    body: dict[str, Any] = {
        "device_id": asked.device_id, "metric_name": asked.metric_name, "operation": list(asked.operations),
        "time_unit": "ns",
    }  # fmt: skip
    for name in ("tags", "interval", "offset", "timezone"):
        if getattr(asked, name) is not None:
            body[name] = getattr(asked, name)
    for name, at in (("start_time", asked.start), ("end_time", asked.end)):
        if at is not None:
            body[name] = text_of(at)
    if asked.more_tags:
        body["more_tags"] = True
    if asked.group_by:
        body["group_by"] = list(asked.group_by)
    if asked.fill != "none":
        body["fill"] = asked.fill
    return body


def text_of(at: int) -> str:
    """A time as RFC 3339."""
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=at // S)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{at % S:09}Z"


def rows_of(cluster: Queried, asked: Question) -> list[dict[str, Any]]:
    """The cluster's rows, with the group's values as the oracle has them."""
    status, answer = cluster.ask(**body_of(asked))
    if status == 404 and not any(naive_query.matches(series, asked) for series in POINTS):
        return []
    assert status == 200, (answer, body_of(asked))
    assert answer["coverage"]["complete"] is True
    if "rows" not in answer:
        return [{"group": (), "time": None, **answer["result"], "count": answer["count"]}]
    found = []
    for row in answer["rows"]:
        if tuple(asked.group_by) == ("series",):
            group: tuple[Any, ...] = ((row["device_id"], row["metric_name"], tuple(sorted(row["tags"].items()))),)
        else:
            group = tuple(row[name] for name in asked.group_by)
        figures = {name: row[name] for name in (*asked.operations, "count")}
        found.append({"group": group, "time": row.get("time"), **figures})
    return found


def check(clusters: list[Queried], asked: Question, points: Points = POINTS) -> None:
    """Every cluster gives the oracle's answer, and the first one's."""
    want = naive_query.answer(points, asked) if any(naive_query.matches(series, asked) for series in points) else []
    found = [rows_of(cluster, asked) for cluster in clusters]
    for rows in found:
        check_rows(rows, want, asked, points)
    for nodes, rows in zip(NODES[1:], found[1:], strict=False):
        for one, other in zip(found[0], rows, strict=True):
            for name in one:
                assert same(one[name], other[name], name), f"{nodes} nodes: {other}, one node: {one}; {asked}"


def same(one: Any, other: Any, name: str) -> bool:
    """Equal bits; what is merged from products may differ in the last ones."""
    if name in ("variance", "stddev") and isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-13)
    return repr(one) == repr(other)


def check_rows(rows: list[dict[str, Any]], want: list[dict[str, Any]], asked: Question, points: Points) -> None:
    """Rows against the oracle's."""
    keys = [(row["group"], row["time"] if asked.interval else None, row["count"]) for row in want]
    have = [(row["group"], row["time"] if asked.interval else None, row["count"]) for row in rows]
    assert have == keys, asked
    scales = scales_of(points, asked)
    for row, wanted in zip(rows, want, strict=True):
        for name in asked.operations:
            text = f"{name} is {row[name]!r}, want {shown(wanted[name])!r}: {row}, {asked}"
            assert is_right(name, row[name], wanted[name], scales[wanted["group"]], bool(asked.fill == "linear")), text


def scales_of(points: Points, asked: Question) -> dict[tuple[Any, ...], float]:
    """The largest absolute value of each group."""
    scales: dict[tuple[Any, ...], float] = {(): 0.0}
    for series, samples in points.items():
        if naive_query.matches(series, asked):
            group = naive_query.group_of(series, asked.group_by)
            scales[group] = max(scales.get(group, 0.0), max(map(abs, samples.values())))
    return scales


def shown(value: Any) -> Any:
    return float(value) if isinstance(value, Fraction) else value


def is_right(name: str, have: Any, want: Any, scale: float, is_between: bool) -> bool:
    """Whether a figure is the exact one, but for the rounding that it cannot be without."""
    if want is None or have is None:
        return want is None and have is None
    if name in EXACT and not is_between:
        return bool(have == float(want)) and math.copysign(1, have) == math.copysign(1, float(want))
    error = abs(Fraction(have) - Fraction(want))
    if name in SUMS and not is_between:
        return error <= abs(Fraction(want)) * Fraction(1, 2**51) + Fraction(scale) / 2**80 + Fraction(5e-324)
    if name in ("variance", "stddev") and abs(want) < 1e-150:  # squares that leave float64 at its lower end
        return bool(abs(have) < 1e-150)
    weight = {"variance": Fraction(scale), "integral": Fraction(10**6)}.get(name, Fraction(1))
    return error <= abs(Fraction(want)) / 10**11 + Fraction(scale) * weight / 10**12 + Fraction(5e-324)


# What is asked


@pytest.mark.parametrize("operation", [*SAMPLED, *STEPPED])
def test_an_operation_over_everything_by_bucket_and_by_group(clusters, operation):
    check(clusters, Question([operation], metric_name=["temperature", "counter", "humidity", "tiny"]))
    check(clusters, Question([operation], "*", "~temp.*|counter", interval="1d", group_by=["metric_name"]))
    check(clusters, Question([operation], group_by=["series"], start=BEGIN + 50 * HOUR, end=BEGIN + 90 * HOUR))


@pytest.mark.parametrize(
    ("interval", "offset", "timezone"),
    [
        ("7h", None, None),
        ("7h", "-90m", None),
        ("6h", None, "Asia/Kathmandu"),
        ("1d", None, None),
        ("1d", None, "Europe/Berlin"),  # 25 hours on 2023-10-29
        ("1d", "6h", "Europe/Berlin"),
        ("2d", "-1h", "America/New_York"),
        ("1w", None, None),
        ("1w", "1d", "Europe/Berlin"),
        ("1mo", None, None),
        ("1mo", None, "Pacific/Auckland"),
        ("3mo", "12h", "Europe/Berlin"),
        ("1y", None, "Europe/Berlin"),
    ],
)
def test_buckets_of_every_kind(clusters, interval, offset, timezone):
    asked = Question(
        ["sum", "first", "increase", "integral"], "~room.|big", ["temperature", "counter"],
        interval=interval, offset=offset, timezone=timezone,
    )  # fmt: skip
    check(clusters, asked)
    check(clusters, replace(asked, start=BEGIN + 37 * HOUR + 1, end=BEGIN + 200 * HOUR + 7, group_by=["device_id"]))


@pytest.mark.parametrize("fill", ["none", "null", "previous", "linear", 0, -2.5])
def test_every_fill_with_open_and_closed_ends(clusters, fill):
    asked = Question(["avg", "max", "rate", "twa"], "room*", "*", interval="5h", group_by=["metric_name"], fill=fill)
    check(clusters, asked)
    check(clusters, replace(asked, start=BEGIN - 20 * HOUR, end=BEGIN + 120 * HOUR))
    check(clusters, replace(asked, start=BEGIN + 60 * HOUR, group_by=[]))


@pytest.mark.parametrize(
    "group_by",
    [
        ["device_id"],
        ["metric_name"],
        ["tags.room"],
        ["tags.none"],
        ["tags.floor", "device_id"],
        ["metric_name", "tags.room"],
        ["series"],
    ],
)
def test_groups_of_every_kind(clusters, group_by):
    check(clusters, Question(["sum", "stddev", "median", "delta"], group_by=group_by))
    check(
        clusters,
        Question(
            ["avg", "percentile(90)", "integral"],
            metric_name=["temperature", "humidity"],
            interval="2d",
            group_by=group_by,
        ),
    )


@pytest.mark.parametrize(
    "chosen",
    [
        {"device_id": "room?"},
        {"device_id": ["room1", "aa:bb/*"], "metric_name": "*t*"},
        {"device_id": "~(?:room|aa).*[0-5]"},
        {"device_id": {"exact": "room1"}},
        {"device_id": "lone", "metric_name": "temperature"},
        {"tags": {}},
        {"tags": {"room": "x"}},
        {"tags": {"room": ["x", "y"]}, "more_tags": True},
        {"tags": {"floor": "~[0-9]"}, "more_tags": True},
        {"tags": {"floor": "*", "room": "y"}},
    ],
)
def test_patterns_of_every_kind(clusters, chosen):
    check(clusters, Question(["count", "sum", "last", "twa"], **chosen))
    check(clusters, Question(["count", "min", "increase"], **chosen, group_by=["series"], interval="3d"))


def test_random_questions(clusters):
    rng = random.Random(4)
    for _ in range(25):
        interval = rng.choice([None, "4h", "11h", "1d", "3d"])
        ends = sorted(BEGIN + rng.randrange(-10 * HOUR, 260 * HOUR) for _ in "ab")
        check(
            clusters,
            Question(
                rng.sample([*SAMPLED, *STEPPED], 3),
                rng.choice(["*", "room*", ["room1", "room2"], "~.*[13]", "small"]),
                rng.choice(["*", "temperature", ["counter", "tiny"], "?u*"]),
                start=ends[0] if rng.random() < 0.7 else None,
                end=ends[1] if rng.random() < 0.7 else None,
                interval=interval,
                timezone=rng.choice([None, "Europe/Berlin", "Asia/Kolkata"]) if interval else None,
                group_by=rng.choice([[], ["device_id"], ["tags.room"], ["series"]]),
                fill=rng.choice(["none", "null", "previous", "linear", 7]) if interval else "none",
            ),
        )


def test_increases_and_integrals_of_buckets_add_up_to_those_of_the_whole(clusters):
    for operation in ("increase", "delta", "integral"):
        whole = Question([operation], "room1", "*", group_by=["series"])
        parts = rows_of(clusters[1], replace(whole, interval="5h"))
        for row in rows_of(clusters[1], whole):
            total = sum(Fraction(part[operation] or 0) for part in parts if part["group"] == row["group"])
            assert math.isclose(total, row[operation], rel_tol=1e-9, abs_tol=1e-9)


def test_limit_and_order_cut_what_comes_in_their_order(clusters):
    asked = Question(["sum"], "room*", "temperature", interval="1d", group_by=["device_id"])
    for cluster in clusters:
        body = body_of(asked)
        _, whole = cluster.ask(**body)
        _, cut = cluster.ask(**body, limit=4)
        assert (cut["rows"], cut["more"]) == (whole["rows"][:4], True)
        _, turned = cluster.ask(**body, order="desc")
        groups = [row["device_id"] for row in whole["rows"]]
        assert sorted(turned["rows"], key=lambda row: (row["device_id"], row["time"])) == whole["rows"]
        for device in set(groups):
            times = [row["time"] for row in turned["rows"] if row["device_id"] == device]
            assert all(one > other for one, other in pairwise(times))


def test_max_points_chooses_the_smallest_interval_that_gives_no_more(clusters):
    start, end = BEGIN, BEGIN + 48 * HOUR - 1
    for cluster in clusters:
        body = body_of(Question(["count"], start=start, end=end))
        _, answer = cluster.ask(**body, max_points=49, fill=0)
        assert 40 < len(answer["rows"]) <= 49
        _, answer = cluster.ask(**body, max_points=10, fill=0)
        assert {other["time"] - one["time"] for one, other in pairwise(answer["rows"])} == {6 * HOUR}


def test_a_sum_that_leaves_float64_is_an_error_whatever_the_number_of_nodes(clusters):
    rows: list[Row] = [((f"edge{at}", "overflow", ()), BEGIN + at, sys.float_info.max) for at in range(4)]
    for cluster in clusters:
        cluster.push(rows)
        status, answer = cluster.ask(device_id="edge*", metric_name="overflow", operation=["sum", "max"])
        assert (status, answer["error"], answer["field"]) == (422, "overflow", "operation")
        status, answer = cluster.ask(device_id="edge*", metric_name="overflow", operation=["max"])
        assert (status, answer["result"]) == (200, {"max": sys.float_info.max})


# The last ones change the clusters.


def test_a_delete_is_gone_from_every_answer(clusters):
    low, high = BEGIN + 60 * HOUR, BEGIN + 100 * HOUR
    for cluster in clusters:
        path = f"/api/v1/series?device_id=room1&metric_name=*&start_time={text_of(low)}&end_time={text_of(high)}"
        status, answer = cluster.call("DELETE", path)
        assert status == 200, answer
    left = {
        series: {at: value for at, value in samples.items() if series[0] != "room1" or not low <= at <= high}
        for series, samples in POINTS.items()
    }
    check(clusters, Question(["count", "sum", "median", "increase", "integral"], "room*", group_by=["series"]), left)
    check(clusters, Question(["avg", "twa"], "room1", interval="6h", fill="linear", timezone="Europe/Berlin"), left)


def test_a_node_that_is_away_makes_503_naming_it_and_a_partial_answer_is_flagged(clusters):
    cluster = clusters[1]
    asked = body_of(Question(["count"], "room*"))
    _, whole = cluster.ask(**asked)
    cluster.nodes["ing2"].terminate()
    cluster.nodes["ing2"].wait(20)
    wait_until(lambda: cluster.ask(**asked)[0] == 503, 20, "an answer without the node to be an error")
    status, answer = cluster.ask(**asked)
    assert (status, answer["error"]) == (503, "incomplete")
    assert [each["node"] for each in answer["coverage"]["missing"]] == ["ing2"]
    assert "ing2" in answer["message"]
    status, answer = cluster.ask(**asked, allow_partial=True)
    assert (status, answer["coverage"]["complete"]) == (200, False)
    assert [each["node"] for each in answer["coverage"]["missing"]] == ["ing2"]
    assert 0 < answer["count"] < whole["count"]
