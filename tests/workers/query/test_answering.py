"""Answers against the oracle: every operation, interval, fill and grouping, the series spread over 1, 3 and 5 nodes."""

import json
import math
import random
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from common.config import Settings
from common.errors import ProtocolError
from common.protocol import GroupsReply
from common.series import series_key
from tests import naive_query
from tests.workers.query.fake import naive_partial
from tests.workers.query.groups import naive_groups
from workers.query import answering, merge, operations, pairs
from workers.query.fill import Sheet, fill
from workers.query.intervals import parse_interval, stretches
from workers.query.refusal import OverLimit, Refusal
from workers.query.request import Query, parse_query, reaching

SETTINGS = Settings()
S = 10**9
T = 1_700_000_000
EVERY = [*operations.PLAIN, "percentile(0)", "percentile(12.5)", "percentile(99)", "percentile(100)"]
INEXACT = {"stddev", "variance"}  # m2 is no exact sum, so its last bits may tell how many nodes there are

Points = dict[naive_query.Series, dict[int, float]]


def ask(points: Points, nodes: int, now_ns: int = 0, **fields: Any) -> tuple[Query, list[dict[str, Any]]]:
    """The rows of an answer over pretend nodes that share the series."""
    body = {"device_id": "*", "metric_name": "*", "operation": EVERY} | fields
    query = parse_query(json.dumps(body).encode(), SETTINGS, now_ns)
    shares: list[list[tuple[bytes, int, float]]] = [[] for _ in range(nodes)]
    for number, (series, samples) in enumerate(points.items()):
        key = series_key(series[0], series[1], dict(series[2]))
        shares[number % nodes] += [(key, at, value) for at, value in samples.items()]
    spend = answering.limits(SETTINGS)
    if query.needs_reach:
        asked = answering.reach_request(query, b"", spend)
        replies = [naive_groups(b"", share, asked) for share in shares]
        query = reaching(query, answering.reach(replies), SETTINGS)
    request = answering.groups_request(query, b"", spend)
    replies = [naive_groups(b"", share, request) for share in shares]
    for reply in replies:
        answering.check_groups(query, reply)
    random.Random(0).shuffle(replies)
    found = answering.answer(query, replies, SETTINGS)
    if found.rows is None:
        return query, [{"time": (query.start_ns or 0), **found.result, "count": found.count}]
    return query, list(flat(found.rows))


def flat(rows: answering.Rows) -> Iterator[dict[str, Any]]:
    for page in rows.pages(7):
        columns = [list(column) if isinstance(column, list) else column.tolist() for column in page.values()]
        yield from (dict(zip(page, row, strict=True)) for row in zip(*columns, strict=True))


def draw_points(draw: random.Random, series: int = 7) -> Points:
    """Series with gaps, of counters and of readings, some with tags, one of a single sample."""
    points: Points = {}
    for number in range(series):
        tags = (("room", draw.choice("abc")),) if draw.random() < 0.7 else ()
        name: naive_query.Series = f"d{number % 4}", f"m{number % 2}{number}", tags
        at, samples, level = T * S + draw.randrange(50 * S), {}, 0.0
        for _ in range(1 if number == 3 else draw.randrange(20)):
            level = draw.choice([level + draw.random(), 0.0, -0.0, draw.uniform(-5, 5), 1e9 + draw.random()])
            samples[at] = level
            at += draw.choice([S, S // 3, 7 * S, 40 * S, 130 * S])
        points[name] = samples
    return points


def near(got: Any, want: Any, scale: float) -> bool:
    if got is None or want is None:
        return got is want
    return math.isclose(got, want, rel_tol=1e-12, abs_tol=scale)


def check(points: Points, rows: list[dict[str, Any]], wanted: list[dict[str, Any]], group_by: list[str]) -> None:
    assert [(row.get("time"), row["count"]) for row in rows] == [(row["time"], row["count"]) for row in wanted]
    sizes = [abs(value) for samples in points.values() for value in samples.values()]
    for row, want in zip(rows, wanted, strict=True):
        assert tuple(row[name] for name in group_by) == want["group"]
        for operation in EVERY:
            scale = max(sizes, default=0.0) ** (2 if operation in INEXACT else 1) * 1e-11
            assert near(row[operation], want[operation], scale), (operation, row, want)


def exact(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in INEXACT} for row in rows]


CUTS: list[dict[str, Any]] = [
    {"interval": "10s"},
    {"interval": "1m", "offset": "7s"},
    {"interval": "7m", "offset": "-30s", "timezone": "Asia/Kolkata"},
    {"interval": "1h"},
    {"interval": "1d", "timezone": "Europe/Berlin", "offset": "6h"},
    {"interval": "1w"},
    {"interval": "1mo", "timezone": "America/New_York"},
    {"interval": "1y"},
]
GROUPS = [[], ["device_id"], ["tags.room"], ["metric_name", "tags.room", "tags.none"]]
FILLS: list[Any] = ["none", "null", "previous", "linear", -1.5]
RANGES: list[dict[str, Any]] = [
    {}, {"start_time": T - 13, "end_time": T + 700}, {"start_time": T + 20}, {"end_time": T + 400},
]  # fmt: skip


@pytest.mark.parametrize("cut", CUTS)
def test_buckets_fills_and_groups_are_those_of_the_oracle_whatever_the_number_of_nodes(cut: dict[str, Any]) -> None:
    draw = random.Random(json.dumps(cut))
    for group_by in GROUPS:
        for how in draw.sample(FILLS, 2):
            points = draw_points(draw, 5)
            limits = draw.choice(RANGES)
            fields = cut | limits | {"fill": how} | ({"group_by": group_by} if group_by else {})
            wanted = naive_query.answer(points, question(group_by, how, cut, limits))
            _, rows = ask(points, 1, **fields)
            check(points, rows, wanted, group_by)
            nodes = draw.choice((3, 5))
            assert exact(ask(points, nodes, **fields)[1]) == exact(rows)


def question(group_by: list[str], how: Any, cut: dict[str, Any], limits: dict[str, Any]) -> naive_query.Question:
    start, end = limits.get("start_time"), limits.get("end_time")
    return naive_query.Question(
        EVERY, group_by=group_by, fill=how, start=start and start * S, end=end and end * S, **cut
    )


@pytest.mark.parametrize("seed", range(5))
def test_one_bucket_is_the_whole_range(seed: int) -> None:
    draw = random.Random(seed)
    points = draw_points(draw)
    for group_by in GROUPS:
        for limits in RANGES:
            wanted = naive_query.answer(points, question(group_by, "none", {}, limits))
            fields = limits | ({"group_by": group_by} if group_by else {})
            _, rows = ask(points, 1, **fields)
            rows = [{"time": want["time"], **row} for row, want in zip(rows, wanted, strict=True)]
            check(points, rows, wanted, group_by)
            for nodes in (3, 5):
                assert exact(ask(points, nodes, **fields)[1]) == exact(
                    [{name: value for name, value in row.items() if name != "time" or not group_by} for row in rows]
                )


def test_the_fast_path_of_the_usual_request_says_the_same() -> None:
    draw = random.Random(5)
    wanted = list(operations.AGGREGATED)
    body = {"device_id": "d1", "metric_name": "m", "operation": wanted, "start_time": T + 9}
    query = parse_query(json.dumps(body).encode(), SETTINGS, 0)
    assert query.is_seed_shape
    for nodes in (1, 3, 5):
        points = [(series_key("d1", "m", {"n": str(n)}), (T + n) * S, draw.uniform(-9, 9)) for n in range(40)]
        partials = [naive_partial(b"", points[n::nodes], query.start_ns, None) for n in range(nodes)]
        fast = answering.answer_seed(query, partials).result
        request = answering.groups_request(query, b"", answering.limits(SETTINGS))
        slow = answering.answer(query, [naive_groups(b"", points[n::nodes], request) for n in range(nodes)], SETTINGS)
        assert slow.count == 31
        for name in wanted:
            assert math.isclose(fast[name], slow.result[name], rel_tol=1e-13), name
            assert fast[name] == slow.result[name] or name in INEXACT


def test_parts_of_a_counter_add_up_to_the_whole() -> None:
    samples = {T * S + n * 7 * S: float(value) for n, value in enumerate([5, 8, 2, 2, 9, 1, 30, 31, 0, 4])}
    points: Points = {("a", "b", ()): samples}
    _, whole = ask(points, 1)
    _, parts = ask(points, 1, interval="10s")
    for name in ("delta", "increase", "integral", "count"):
        assert math.isclose(sum(row[name] or 0 for row in parts), whole[0][name])
    assert whole[0]["delta"] == -1.0
    assert whole[0]["increase"] == 3 + 2 + 0 + 7 + 1 + 29 + 1 + 0 + 4


# Order, limit, groups, nothing


def test_rows_come_by_group_then_time_and_a_limit_says_whether_more_follow() -> None:
    points: Points = {(device, "m", ()): {(T + n) * S: 1.0 for n in range(3)} for device in ("b", "a")}
    fields = {"interval": "1s", "group_by": "device_id", "operation": "sum"}
    order = [(row["device_id"], row["time"] // S - T) for row in ask(points, 3, **fields)[1]]
    assert order == [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1), ("b", 2)]
    order = [(row["device_id"], row["time"] // S - T) for row in ask(points, 3, order="desc", limit=4, **fields)[1]]
    assert order == [("a", 2), ("a", 1), ("a", 0), ("b", 2)]


@pytest.mark.parametrize(("limit", "more"), [(5, True), (6, False), (7, False)])
def test_more_is_told_only_when_something_was_cut(limit: int, more: bool) -> None:
    query = parse_query(
        json.dumps({"device_id": "*", "metric_name": "*", "operation": "sum", "interval": 1, "limit": limit}).encode(),
        SETTINGS, 0,
    )  # fmt: skip
    points = [(series_key("d", "m"), (T + n) * S, 1.0) for n in range(6)]
    reply = naive_groups(b"", points, answering.groups_request(query, b"", answering.limits(SETTINGS)))
    rows = answering.answer(query, [reply], SETTINGS).rows
    assert rows is not None
    assert (rows.length, rows.more) == (min(limit, 6), more)


def test_series_as_groups_have_device_metric_and_tags() -> None:
    points: Points = {("a", "m", (("t", "ü"),)): {T * S: 2.0}, ("a", "m", ()): {T * S: 1.0}}
    _, rows = ask(points, 3, group_by="series", operation="last")
    assert rows == [
        {"device_id": "a", "metric_name": "m", "tags": {}, "last": 1.0, "count": 1},
        {"device_id": "a", "metric_name": "m", "tags": {"t": "ü"}, "last": 2.0, "count": 1},
    ]


def test_open_ends_are_those_of_each_group_though_the_buckets_are_cut_by_those_of_all() -> None:
    day = 86_400 * S
    points: Points = {("a", "m", ()): {day: 1.0, 3 * day: 1.0}, ("b", "m", ()): {4 * day: 1.0, 6 * day: 1.0}}
    for cut in ({"interval": "1d", "timezone": "Asia/Tokyo"}, {"interval": "1d"}, {"max_points": 6}):
        rows = ask(points, 3, operation="sum", group_by="device_id", fill="null", **cut)[1]
        assert [row["count"] for row in rows] == [1, 0, 1, 1, 0, 1]


def test_nothing_is_null_a_count_of_nothing_0_and_no_rows() -> None:
    _, rows = ask({}, 3)
    assert rows[0]["count"] == 0
    assert all(rows[0][name] is None for name in EVERY if name != "count")
    for fields in ({"interval": "1h"}, {"max_points": 5}, {"group_by": "device_id"}, {"interval": "1mo", "fill": 0}):
        assert ask({}, 3, **fields)[1] == []


def test_a_range_without_points_is_filled_where_it_has_both_ends_and_no_groups() -> None:
    points: Points = {("a", "m", ()): {T * S: 1.0}}
    asked = {"operation": ["avg", "count"], "start_time": T + 60, "end_time": T + 180}
    for cut in ({"interval": "1m"}, {"max_points": 3}):
        for how, value in (("null", None), ("previous", None), ("linear", None), (7, 7.0), (0, 0.0)):
            rows = ask(points, 3, fill=how, **asked, **cut)[1]
            assert [(row["avg"], row["count"]) for row in rows] == [(value, 0)] * 3
    assert [row["time"] // S for row in ask(points, 1, fill=0, interval="1m", **asked)[1]] == [
        T // 60 * 60 + 60 * n for n in (1, 2, 3)
    ]
    days = {"operation": "sum", "interval": "1d", "timezone": "Europe/Berlin", "fill": "null"}
    whole = {"start_time": "2024-03-30T00:00:00+01:00", "end_time": "2024-04-01T23:59:59+02:00"}
    assert len(ask(points, 1, **days, **whole)[1]) == 3
    assert ask(points, 1, fill=0, interval="1m", group_by="device_id", **asked)[1] == []
    assert ask(points, 1, fill=0, interval="1m", operation="sum", start_time=T + 60)[1] == []


def test_points_that_come_after_the_ends_were_asked_are_in_no_bucket() -> None:
    query = parse_query(b'{"device_id":"*","metric_name":"*","operation":"sum","max_points":5}', SETTINGS, 0)
    query = reaching(query, None, SETTINGS)
    asked = answering.groups_request(query, b"", answering.limits(SETTINGS))
    found = answering.answer(query, [naive_groups(b"", [(series_key("d", "m"), T * S, 1.0)], asked)], SETTINGS)
    assert found.rows is not None
    assert (found.series, found.count, found.rows.length) == (1, 0, 0)


# Merging


def test_sums_of_many_nodes_are_exact_where_plain_adding_loses_everything() -> None:
    points: Points = {
        (f"d{n}", "m", ()): {T * S: value} for n, value in enumerate([1e300, 1.0, -1e300, 1e-300, 1e18])
    }
    answers = [ask(points, nodes, operation=["sum", "avg"])[1] for nodes in (1, 2, 3, 5)]
    assert answers[0][0]["sum"] == float(sum(map(Fraction, [1.0, 1e-300, 1e18])))
    assert answers[3] == answers[0]


def test_sums_that_leave_float64_only_on_the_way_are_right() -> None:
    points: Points = {(f"d{n}", "m", ()): {T * S: value} for n, value in enumerate([1.5e308, 1.5e308, -1.5e308])}
    assert ask(points, 3, operation="sum", group_by="metric_name")[1][0]["sum"] == 1.5e308
    with pytest.raises(Refusal, match="sum: a result over these points leaves the range of float64") as caught:
        ask({series: samples for series, samples in points.items() if series[0] != "d2"}, 3, operation=["sum", "max"])
    assert (caught.value.status, caught.value.error, caught.value.field) == (422, "overflow", "operation")


def test_zeros_keep_their_sign_and_their_order() -> None:
    points: Points = {("a", "m", ()): {T * S: -0.0}, ("b", "m", ()): {T * S: 0.0}, ("c", "m", ()): {T * S: -0.0}}
    for nodes in (1, 3):
        row = ask(points, nodes)[1][0]
        signs = {name: math.copysign(1, row[name]) for name in ("min", "max", "first", "last", "sum", "avg")}
        assert signs == {"min": -1, "max": 1, "first": 1, "last": 1, "sum": 1, "avg": 1}
    del points["b", "m", ()]
    assert [math.copysign(1, ask(points, nodes)[1][0]["avg"]) for nodes in (1, 2)] == [-1, -1]


def test_quotients_of_pairs_are_rounded_once() -> None:
    draw = np.random.default_rng(3)
    hi = np.concatenate([draw.normal(size=3000) * 10.0 ** draw.integers(-320, 300, 3000), [0.0, -0.0, 5e-324]])
    lo = hi * draw.uniform(-1, 1, len(hi)) * 2.0**-54
    by = draw.integers(1, 1 << 40, len(hi))
    found, _ = pairs.quotient(*pairs.canonical(hi, lo), by)
    for high, low, divisor, got in zip(hi.tolist(), lo.tolist(), by.tolist(), found.tolist(), strict=True):
        assert got == float((Fraction(high) + Fraction(low)) / divisor)


def test_a_quotient_is_the_same_alone_and_beside_one_that_takes_the_longer_way() -> None:
    draw = np.random.default_rng(4)
    hi = draw.normal(size=400) * 10.0 ** draw.integers(-150, 250, 400)
    lo, by = hi * draw.uniform(-1, 1, 400) * 2.0**-54, draw.integers(1, 1 << 40, 400)
    by_lo = draw.choice([0.0, 2.0**-30], 400)
    for beside in (0.0, math.inf, 5e-324):
        mixed = pairs.quotient(np.append(hi, beside), np.append(lo, 0.0), np.append(by, 3), np.append(by_lo, 0.0))
        alone = pairs.quotient(hi, lo, by, by_lo)
        assert [part[:-1].tobytes() for part in mixed] == [part.tobytes() for part in alone]


@pytest.mark.parametrize("seed", range(12))
def test_rows_that_stay_alone_are_what_folding_them_gives(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, order = random.Random(seed), merge._order
    fields: dict[str, Any] = {"group_by": draw.choice(["device_id", "tags.room", "series"])}
    fields |= draw.choice([{}, {"interval": "10s"}])
    query = parse_query(json.dumps({"device_id": "*", "metric_name": "*", "operation": EVERY, **fields}).encode(),
                        SETTINGS, 0)  # fmt: skip
    request = answering.groups_request(query, b"", answering.limits(SETTINGS))
    nodes = draw.choice((1, 3))
    shares: list[list[tuple[bytes, int, float]]] = [[] for _ in range(nodes)]
    for (device, metric, tags), samples in draw_points(draw).items():
        key = series_key(device, metric, dict(tags))
        shares[int(device[1:]) % nodes] += [(key, at, value) for at, value in samples.items()]
    replies = [naive_groups(b"", share, request) for share in shares]
    alone = merge.merge(replies, answering.wants(query))
    monkeypatch.setattr(merge, "_order", lambda group, start, groups: (np.lexsort((start, group)), False))
    folded = merge.merge(replies, answering.wants(query))
    assert order(folded.group, folded.start, len(folded.groups)) == (None, True)
    assert alone.groups == folded.groups
    assert alone.columns.keys() == folded.columns.keys()
    for name in ("group", "start"):
        assert getattr(alone, name).tolist() == getattr(folded, name).tolist()
    for name, column in alone.columns.items():
        assert column.tobytes() == folded.columns[name].tobytes(), name


def test_distinct_values_of_all_nodes_must_keep_to_the_limit() -> None:
    points: Points = {(f"d{n}", "m", ()): {T * S: float(n)} for n in range(8)}
    query, rows = ask(points, 2, operation=["median"])
    assert rows[0]["median"] == 3.5
    request = answering.groups_request(query, b"", answering.limits(SETTINGS))
    shares = [[(series_key(f"d{n}", "m"), T * S, float(n))] for n in range(8)]
    replies = [naive_groups(b"", share, request) for share in shares]
    tight = Settings(query=type(SETTINGS.query)(max_values=7))
    with pytest.raises(OverLimit, match=r"8 distinct values, query\.max_values is 7"):
        answering.answer(query, replies, tight)


def reply(**changes: Any) -> GroupsReply:
    query = parse_query(b'{"device_id":"*","metric_name":"*","operation":["min","sum"]}', SETTINGS, 0)
    made = naive_groups(b"", [(series_key("d", "m"), 5, 1.0)], answering.groups_request(query, b"", None))  # type: ignore[arg-type]
    columns = made.columns | {name: np.array(items).tobytes() for name, items in changes.items()}
    return GroupsReply(b"", 0, 1, made.groups, [1], columns, made.cost)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"group": np.array([1], np.uint32)}, "rows of group 1, and 1 groups"),
        ({"min": [math.nan]}, "min has values that are not finite"),
        ({"count": [-1]}, "counts below 0"),
        ({"count": [1, 1]}, "columns differ in length"),
    ],
)
def test_a_reply_that_no_node_computes_is_refused(changes: dict[str, Any], text: str) -> None:
    merge.check(reply(), ["min", "sum"], ())
    with pytest.raises(ProtocolError, match=text):
        merge.check(reply(**changes), ["min", "sum"], ())
    with pytest.raises(ProtocolError, match="groups of another length"):
        merge.check(reply(), ["min", "sum"], ("device_id",))


def test_a_bucket_that_was_not_asked_is_a_fault_of_ours() -> None:
    query = parse_query(
        b'{"device_id":"*","metric_name":"*","operation":"sum","interval":"1m","start_time":60,"end_time":600,"fill":0}',
        SETTINGS, 0,
    )  # fmt: skip
    asked = answering.groups_request(query, b"", answering.limits(SETTINGS))
    made = naive_groups(b"", [(series_key("d", "m"), 61 * S, 1.0)], asked)
    wrong = GroupsReply(b"", 0, 1, made.groups, [1], made.columns | {"start": np.array([7]).tobytes()}, made.cost)
    with pytest.raises(ProtocolError, match="BUG: a node answers with a bucket that was not asked"):
        answering.answer(query, [wrong], SETTINGS)


def test_filling_is_refused_when_it_makes_too_many_rows() -> None:
    sheet = Sheet(np.array([0, 0]), np.array([T * S, (T + 1001) * S]), np.array([1, 1]), {})
    found = stretches(parse_interval("1s", None, None), T * S, (T + 5000) * S)
    assert len(fill(sheet, "null", found, None, None, 1002).group) == 1002
    with pytest.raises(OverLimit, match=r"filling gives 1002 rows, query\.max_rows is 1001"):
        fill(sheet, "null", found, None, None, 1001)
