"""Listings, status and ring of a real cluster, beside what is obvious from the points that were stored."""

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from common.series import series_key
from tests.queried import Queried
from tests.support import Children, wait_until

BEGIN_S = 1_700_000_000
STEP_S = 10
NS = 10**9

Points = dict[tuple[str, str, tuple[tuple[str, str], ...]], list[tuple[int, float]]]


def stored() -> Points:
    """Regular series; every third one is silent for 200 s in its middle, every fifth has another start."""
    found: Points = {}
    for number in range(24):
        tags = (("room", f"r{number % 3}"),) if number % 2 else ()
        times = [BEGIN_S + STEP_S * at for at in range(60) if number % 3 or not 20 <= at < 40]
        shift = 1000 if number % 5 == 0 else 0
        points = [((second + shift) * NS, number + at / 8) for at, second in enumerate(times)]
        found[f"dev{number // 2}", "m é" if number % 4 else "x/y", tags] = points
    return found


POINTS = stored()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Queried]:
    children = Children()
    running = Queried(children, tmp_path_factory.mktemp("listings"), 3).wait_ready()
    running.push((series, at, value) for series, points in POINTS.items() for at, value in points)
    yield running
    children.stop_all()


def pages(cluster: Queried, path: str, member: str = "rows", **fields: Any) -> list[dict[str, Any]]:
    """All items of a listing, page by page."""
    found: list[dict[str, Any]] = []
    cursor = ""
    while cursor is not None:
        status, answer = cluster.call("POST", path, {"limit": 5, "cursor": cursor} | fields)
        assert status == 200, answer
        assert answer["coverage"]["complete"]
        found += answer[member]
        cursor = answer["next_cursor"]
    return found


def ordered() -> list[tuple[Any, list[tuple[int, float]]]]:
    return sorted(POINTS.items(), key=lambda item: series_key(item[0][0], item[0][1], dict(item[0][2])))


def named(series: Any) -> dict[str, Any]:
    return {"device_id": series[0], "metric_name": series[1], "tags": dict(series[2])}


def in_range(points: list[tuple[int, float]], start_s: int, end_s: int) -> list[tuple[int, float]]:
    return [(at, value) for at, value in points if start_s * NS <= at <= end_s * NS]


RANGES = [(0, BEGIN_S + 10_000), (BEGIN_S + 100, BEGIN_S + 305), (BEGIN_S + 900, BEGIN_S + 1100)]


@pytest.mark.parametrize(("start_s", "end_s"), RANGES)
def test_series_tell_what_they_hold_in_the_range(cluster: Queried, start_s: int, end_s: int) -> None:
    wanted = []
    for series, points in ordered():
        inside = in_range(points, start_s, end_s)
        first, last = (inside[0], inside[-1]) if inside else ((None, None), (None, None))
        wanted.append(
            named(series)
            | {"count": len(inside), "first_time": first[0], "last_time": last[0], "last": last[1]}
        )
    found = pages(cluster, "/api/v1/series", "series", start_time=start_s, end_time=end_s, time_unit="ns")
    for each in found:
        usual_s = each.pop("expected_interval_s")
        assert usual_s in (STEP_S, None)
        assert usual_s == STEP_S or each["count"] < 5
    assert found == wanted


def test_names_alone_are_the_same_series(cluster: Queried) -> None:
    for fields in ({}, {"device_id": "dev*", "tags": {}, "more_tags": True}):
        found = pages(cluster, "/api/v1/series", "series", details=False, **fields)
        assert found == [named(series) for series, _ in ordered()]


def test_last_is_the_newest_point_of_everything_that_matches(cluster: Queried) -> None:
    for start_s, end_s in RANGES:
        wanted = []
        for series, points in ordered():
            inside = in_range(points, start_s, end_s)
            if inside and dict(series[2]).get("room") in ("r0", "r1"):
                wanted.append(named(series) | {"time": inside[-1][0], "value": inside[-1][1]})
        found = pages(
            cluster, "/api/v1/last", start_time=start_s, end_time=end_s, tags={"room": ["r0", "~r1"]}, time_unit="ns"
        )
        ages = [each.pop("age_s") for each in found]
        assert found == wanted
        assert all(age > 3600 for age in ages)


@pytest.mark.parametrize(("path", "at"), [("/api/v1/devices", 0), ("/api/v1/metrics-names", 1)])
@pytest.mark.parametrize(("start_s", "end_s"), RANGES)
def test_devices_and_metrics_add_up_their_series(
    cluster: Queried, path: str, at: int, start_s: int, end_s: int
) -> None:
    name = ("device_id", "metric_name")[at]
    wanted = []
    for group in sorted({series[at] for series in POINTS}, key=str.encode):
        members = [points for series, points in POINTS.items() if series[at] == group]
        inside = sorted(point for points in members for point in in_range(points, start_s, end_s))
        wanted.append(
            {
                name: group,
                "series": len(members),
                "count": len(inside),
                "first_time": inside[0][0] if inside else None,
                "last_time": inside[-1][0] if inside else None,
                "last": inside[-1][1] if inside and len(members) == 1 else None,
            }
        )
    found = pages(cluster, path, start_time=start_s, end_time=end_s, time_unit="ns")
    assert found == wanted


def test_tags_and_their_values(cluster: Queried) -> None:
    having = [dict(series[2])["room"] for series in POINTS if series[2]]
    assert pages(cluster, "/api/v1/tags") == [{"name": "room", "values": len(set(having)), "series": len(having)}]
    assert pages(cluster, "/api/v1/tags", name="room", limit=2) == [
        {"value": value, "series": having.count(value)} for value in sorted(set(having))
    ]
    assert pages(cluster, "/api/v1/tags", name="nothing") == []
    assert pages(cluster, "/api/v1/tags", device_id="nobody") == []


@pytest.mark.parametrize("end_s", [BEGIN_S + 600, BEGIN_S + 400, BEGIN_S + 590])  # 400: a sample ends a silence there
def test_gaps_are_silences_longer_than_usual(cluster: Queried, end_s: int) -> None:
    wanted = []
    for series, points in ordered():
        times = [at for at, _ in in_range(points, 0, end_s)]
        for start, end in pairwise([*times, end_s * NS]):
            if end - start > 3 * STEP_S * NS:
                wanted.append(named(series) | {"start_time": start, "end_time": end, "ongoing": start == times[-1]})
    found = pages(cluster, "/api/v1/gaps", end_time=end_s, time_unit="ns")
    for each in found:
        assert each.pop("duration_s") == (each["end_time"] - each["start_time"]) / NS
        assert each.pop("expected_interval_s") == STEP_S
    assert found == wanted
    assert wanted
    assert pages(cluster, "/api/v1/gaps", end_time=end_s, minimum_s=500) == []
    assert pages(cluster, "/api/v1/gaps", end_time=end_s, factor=50) == []


@pytest.mark.parametrize(
    ("path", "fields", "field"),
    [
        ("series", {"limit": 0}, "limit"), ("series", {"cursor": "!"}, "cursor"),
        ("series", {"details": "maybe"}, "details"), ("devices", {"cursor": "?"}, "cursor"),
        ("tags", {"name": 5}, "name"), ("gaps", {"factor": 0.5}, "factor"), ("gaps", {"factor": "nan"}, "factor"),
        ("gaps", {"minimum_s": -1}, "minimum_s"), ("last", {"name": "x"}, "name"),
        ("last", {"device_id": "~("}, "device_id"), ("last", {"start_time": 5, "end_time": 4}, "start_time"),
        ("status", {}, None),
    ],
)  # fmt: skip
def test_what_cannot_be_listed_is_refused_and_the_field_named(
    cluster: Queried, path: str, fields: dict[str, Any], field: str | None
) -> None:
    status, answer = cluster.call("POST", f"/api/v1/{path}", fields)
    assert (status, answer.get("field")) == (405 if path == "status" else 400, field)


def test_a_listing_comes_in_every_format_with_its_cursor_in_a_header(cluster: Queried) -> None:
    status, plain = cluster.call("GET", "/api/v1/devices?limit=2")
    assert status == 200
    _, lines = cluster.call("GET", "/api/v1/devices?limit=2&format=ndjson")
    *rows, foot = [json.loads(line) for line in lines.splitlines()]
    assert (rows, foot["next_cursor"]) == (plain["rows"], plain["next_cursor"])
    _, text = cluster.call("GET", "/api/v1/devices?limit=2", headers={"Accept": "text/csv"})
    assert text.decode().splitlines()[0] == "device_id,series,count,first_time,last_time,last"
    assert len(text.splitlines()) == 3


def test_rows_of_a_query_are_explained_and_told_in_any_format(cluster: Queried) -> None:
    asked = {"device_id": "dev*", "metric_name": "*", "operation": ["avg", "percentile(50)"], "group_by": "tags.room"}
    status, answer = cluster.ask(**asked, explain=True)
    assert status == 200
    rooms = [None, *sorted({dict(series[2])["room"] for series in POINTS if series[2]})]
    assert [row["tags.room"] for row in answer["rows"]] == rooms
    assert answer["count"] == sum(map(len, POINTS.values())) == sum(row["count"] for row in answer["rows"])
    assert sorted(answer["explain"]["nodes"]) == ["ing1", "ing2", "ing3"]
    assert set(answer["explain"]["stages"]) == {"parse_ms", "scatter_ms", "merge_ms"}
    for node in answer["explain"]["nodes"].values():
        assert list(node) == ["blocks_summarized", "windows_read", "blocks_decoded", "rows_decoded", "bytes", "ms"]
        assert node["ms"] > 0
    status, lines = cluster.ask(**asked, format="ndjson")
    *rows, foot = [json.loads(line) for line in lines.splitlines()]
    assert (status, rows, foot["count"]) == (200, answer["rows"], answer["count"])


def test_max_points_over_open_ends_covers_what_there_is(cluster: Queried) -> None:
    asked = {"device_id": "*", "metric_name": "*", "operation": "count", "max_points": 20}
    status, answer = cluster.ask(**asked)
    assert status == 200
    assert 1 < len(answer["rows"]) <= 20
    assert sum(row["count"] for row in answer["rows"]) == answer["count"] == sum(map(len, POINTS.values()))
    assert answer["interval"] == "2m"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"device_id": "nobody*"}, "device_id"),
        ({"device_id": ["dev1", "~nobody"], "metric_name": "nothing*"}, "metric_name"),
        ({"device_id": "dev*", "tags": {"room": "r9"}}, "tags"),
    ],
)
def test_patterns_that_match_nothing_name_the_field(cluster: Queried, fields: dict[str, Any], field: str) -> None:
    asked = {"device_id": "*", "metric_name": "*", "operation": "avg"} | fields
    status, answer = cluster.ask(**asked)
    assert (status, answer["error"], answer["field"]) == (404, "unknown_series", field)


def test_status_and_ring_tell_of_all_nodes_and_of_no_secret(cluster: Queried) -> None:
    status, told = cluster.call("GET", "/api/v1/status")
    assert (status, told["ready"], told["epoch"]) == (200, True, cluster.ring.epoch)
    assert told["cluster"] == cluster.ring.cluster
    assert sorted(told["nodes"]) == ["ing1", "ing2", "ing3"]
    assert told["query"]["limits"]["query.threads"] == 16
    assert told["query"]["requests"] == {"answered": 0, "beside": 0, "refused": 0}
    status, ring = cluster.call("GET", "/api/v1/ring")
    assert (status, ring["hash"], ring["deletes"], ring["behind"]) == (200, cluster.ring.hash, 0, {})
    assert sum(node["partitions"] for node in ring["nodes"]) == cluster.ring.partitions * cluster.ring.replication
    assert not [word for word in ("key_file", "token", "password", "secret") if word in json.dumps([told, ring])]


def test_a_listing_that_lacks_a_node_is_an_error_unless_that_is_allowed(cluster: Queried) -> None:
    """The last test here: it ends a node."""
    cluster.nodes["ing2"].kill()
    cluster.nodes.pop("ing2").wait()

    def refused() -> bool:
        return bool(cluster.call("POST", "/api/v1/devices", {"timeout_s": 2})[0] == 503)

    wait_until(refused, what="503")
    status, answer = cluster.call("POST", "/api/v1/devices", {"allow_partial": True, "timeout_s": 2})
    assert (status, answer["coverage"]["complete"]) == (200, False)
    assert answer["coverage"]["missing"][0]["node"] == "ing2"
    assert answer["rows"]
    asked = {"device_id": "*", "metric_name": "*", "operation": "count", "timeout_s": 2}
    assert cluster.ask(**asked)[0] == 503
    status, answer = cluster.ask(**asked, allow_partial=True)
    assert (status, answer["coverage"]["complete"]) == (200, False)
    assert 0 < answer["result"] < sum(map(len, POINTS.values()))
