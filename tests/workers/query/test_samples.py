"""GET and POST /api/v1/samples over three nodes: formats, paging, ranges, errors, nodes that are away."""

import csv
import http.client
import io
import json
import random
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import msgpack
import numpy as np
import pytest

from common.series import series_key
from tests.queried import Queried
from tests.support import Children

pa = pytest.importorskip("pyarrow")

START = 1_700_000_000 * 10**9
Series = tuple[str, str, tuple[tuple[str, str], ...]]
Row = tuple[bytes, int, float]


def make_rows() -> list[tuple[Series, int, float]]:
    rng = random.Random(7)
    rows = []
    for device in range(20):
        for metric in ("m", 'temperature, "quoted"\nand\rbroken'):
            tags = (("room", f"r{device % 3}"),) if device % 2 else ()
            for _ in range(rng.randint(1, 60)):
                rows.append(((f"dev/{device}", metric, tags), START + rng.randrange(10**6) * 10**6, rng.gauss(0, 100)))
    return list({(series, at): (series, at, value) for series, at, value in rows}.values())


ROWS = make_rows()
WANTED: list[Row] = sorted((series_key(d, m, dict(tags)), at, value) for (d, m, tags), at, value in ROWS)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Queried]:
    children = Children()
    try:
        made = Queried(children, tmp_path_factory.mktemp("samples"), 3).wait_ready()
        made.push(ROWS)
        yield made
    finally:
        children.stop_all()


def ask(cluster: Queried, **fields: Any) -> Any:
    status, answer = cluster.call("POST", "/api/v1/samples", fields)
    assert status == 200, answer
    return answer


def rows_of(series: list[dict[str, Any]], unit: str = "s") -> list[Row]:
    """The points of an answer; seconds are exact to the microsecond."""
    return [
        (
            series_key(one["device_id"], one["metric_name"], one["tags"]),
            at if unit == "ns" else round(at * 10**6) * 1000,
            value,
        )
        for one in series
        for at, value in zip(one["times"], one["values"], strict=True)
    ]


def lines(cluster: Queried, **fields: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in ask(cluster, format="ndjson", **fields).splitlines()]


def test_json_has_every_point_once_in_order_and_its_coverage(cluster: Queried) -> None:
    answer = ask(cluster)
    assert rows_of(answer["series"]) == WANTED
    assert answer["next_cursor"] is None
    assert answer["coverage"]["complete"]
    assert answer["coverage"]["nodes"] == ["ing1", "ing2", "ing3"]
    names = [(one["device_id"], one["metric_name"], str(one["tags"])) for one in answer["series"]]
    assert len(names) == len(set(names)), "a series came twice"


def test_every_format_has_the_same_points(cluster: Queried) -> None:
    found = lines(cluster, time_unit="ns")
    rows = [(series_key(o["device_id"], o["metric_name"], o["tags"]), o["time"], o["value"]) for o in found[:-1]]
    assert rows == WANTED
    assert found[-1]["coverage"]["complete"]
    table = list(csv.DictReader(io.StringIO(ask(cluster, format="csv", time_unit="ns").decode(), newline="")))
    in_csv = [
        (series_key(o["device_id"], o["metric_name"], json.loads(o["tags"])), int(o["time"]), float(o["value"]))
        for o in table
    ]
    assert in_csv == WANTED
    packed = msgpack.unpackb(ask(cluster, format="msgpack", time_unit="ns"))
    assert rows_of(packed["series"], "ns") == WANTED
    for one in (binary := msgpack.unpackb(ask(cluster, format="msgpack", binary=True)))["series"]:
        one["times"] = np.frombuffer(one["times"], "<i8").tolist()
        one["values"] = np.frombuffer(one["values"], "<f8").tolist()
    assert rows_of(binary["series"], "ns") == WANTED
    arrow = pa.ipc.open_stream(ask(cluster, format="arrow")).read_all()
    assert arrow.schema.field("time").type == pa.timestamp("ns", "UTC")
    assert pa.types.is_dictionary(arrow.schema.field("device_id").type)
    found_rows = [
        (series_key(o["device_id"], o["metric_name"], json.loads(o["tags"])), o["time"], o["value"])
        for o in arrow.set_column(3, "time", arrow["time"].cast(pa.int64())).to_pylist()
    ]
    assert found_rows == WANTED


def test_all_and_nothing_as_limit_stream_everything(cluster: Queried) -> None:
    assert rows_of(ask(cluster, limit=0)["series"]) == WANTED
    answer = msgpack.unpackb(ask(cluster, limit="all", format="msgpack"))
    assert rows_of(answer["series"]) == WANTED


@pytest.mark.parametrize("limit", [1, 97, 400])
def test_pages_by_cursor_are_the_whole(cluster: Queried, limit: int) -> None:
    got: list[Row] = []
    cursor: str | None = ""
    wanted = WANTED if limit > 1 else WANTED[:20]
    while cursor is not None and len(got) < len(wanted):
        parameters = {"limit": limit, "cursor": cursor} if cursor else {"limit": limit}
        status, answer = cluster.call("GET", f"/api/v1/samples?{urlencode(parameters)}")
        assert status == 200, answer
        page = rows_of(answer["series"])
        got, cursor = got + page, answer["next_cursor"]
        assert len(page) == limit or cursor is None
    assert got == wanted


def test_the_next_page_is_also_named_in_a_header_for_formats_that_have_no_foot(cluster: Queried) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", cluster.port, timeout=30)
    try:
        connection.request("GET", "/api/v1/samples?limit=10", headers={"Accept": "text/csv"})
        reply = connection.getresponse()
        data = list(csv.reader(io.StringIO(reply.read().decode())))
        assert len(data) == 11
        assert reply.headers["Minitrue-Complete"] == "true"
        page = ask(cluster, limit=10, cursor=reply.headers["Minitrue-Next-Cursor"])
        assert rows_of(page["series"]) == WANTED[10:20]
    finally:
        connection.close()


def test_patterns_tags_and_ranges_choose_the_points(cluster: Queried) -> None:
    end = (START + 5 * 10**14) / 1e9
    answer = ask(cluster, device_id=["dev/1?", "~dev/[3-5]"], metric_name="m", tags={"room": "r1"}, end_time=end)
    chosen = [row for row in ROWS if row[0][1] == "m" and dict(row[0][2]).get("room") == "r1"]
    chosen = [row for row in chosen if len(row[0][0]) == 6 or row[0][0] in ("dev/3", "dev/4", "dev/5")]
    wanted = sorted((series_key(d, m, dict(tags)), at, v) for (d, m, tags), at, v in chosen if at <= end * 1e9)
    assert rows_of(answer["series"]) == wanted != []
    exact = ask(cluster, device_id="dev/1", metric_name="m", tags={"room": "r1"})
    assert exact["coverage"]["partitions_asked"] == 1
    assert len(exact["coverage"]["nodes"]) == 1
    assert ask(cluster, device_id="nobody")["series"] == []


def test_times_come_in_the_unit_asked_for(cluster: Queried) -> None:
    first = WANTED[0][1]
    for unit, want in (("s", first / 1e9), ("ms", first // 10**6), ("us", first // 1000), ("ns", first)):
        got = ask(cluster, limit=1, time_unit=unit)["series"][0]["times"][0]
        assert got == want, unit
    text = ask(cluster, limit=1, time_unit="rfc3339")["series"][0]["times"][0]
    assert ask(cluster, limit=1, end_time=text)["series"][0]["times"] == [first / 1e9]


@pytest.mark.parametrize(
    ("fields", "field", "text"),
    [
        ({"limit": -1}, "limit", "limit is -1, want a whole number from 1 to"),
        ({"limit": "many"}, "limit", 'limit is "many", want'),
        ({"limit": None, "cursor": "AAAA"}, "cursor", 'cursor "AAAA" is not one of ours'),
        ({"cursor": 5}, "cursor", "cursor 5 is not one of ours"),
        ({"binary": True}, "binary", "binary is for format msgpack, this is json"),
        ({"format": "xml"}, "format", "xml"),
        ({"limt": 5}, "limt", "did you mean limit?"),
        ({"time_unit": "h"}, "time_unit", "want one of s, ms, us, ns, rfc3339"),
        ({"device_id": "~("}, "device_id", "regular expression"),
        ({"start_time": 5, "end_time": 4}, "start_time", "is after end_time"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_the_field_and_what_is_allowed(
    cluster: Queried, fields: dict[str, Any], field: str, text: str
) -> None:
    status, answer = cluster.call("POST", "/api/v1/samples", fields)
    assert (status, answer.get("field")) == (400, field), answer
    assert text in answer["message"]


def test_without_a_node_it_is_an_error_or_told(cluster: Queried) -> None:
    """The last one of this module: a node ends."""
    cluster.nodes["ing2"].kill()
    cluster.nodes["ing2"].wait()
    for name in ("json", "csv", "arrow"):
        status, answer = cluster.call("POST", "/api/v1/samples", {"format": name})
        assert (status, answer["error"]) == (503, "incomplete")
        assert answer["coverage"]["missing"][0]["node"] == "ing2"
    partial = ask(cluster, allow_partial=True)
    assert not partial["coverage"]["complete"]
    assert set(rows_of(partial["series"])) < set(WANTED)
    told = lines(cluster, allow_partial=True)[-1]
    assert not told["coverage"]["complete"]
