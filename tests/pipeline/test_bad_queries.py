"""Bad questions to a real cluster: each gets a clear error or a right answer, soon, and /healthz answers meanwhile."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from tests.queried import Queried
from tests.support import Children, wait_until

S = 10**9
BEGIN = 1_700_000_000
SERIES = 100_000
STREAMS = 8
SOON_S = 5.0  # on a machine that others use too; what explodes takes for ever


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Queried]:
    children = Children()
    limits = {"query.live_streams": STREAMS, "query.max_rows": 200_000, "query.live_heartbeat_s": 1}
    made = Queried(children, tmp_path_factory.mktemp("bad"), 1, limits).wait_ready()
    made.push(((f"device-{at:06}", "m", ()), BEGIN * S, float(at)) for at in range(SERIES))
    made.push([(("größe/℃ \U0001f321", "temp:*", (("räum", "ü*"),)), BEGIN * S, 1.5)])
    made.push((("sensor", "t", ()), (BEGIN + at) * S, at / 2) for at in range(100))
    yield made
    children.stop_all()


@contextmanager
def healthy(cluster: Queried) -> Iterator[None]:
    """/healthz answers, again and again, until the block ends."""
    over, worst = threading.Event(), [0.0]

    def ask() -> None:
        while not over.wait(0.05):
            begun = time.monotonic()
            alive = cluster.is_alive()
            worst[0] = max(worst[0], time.monotonic() - begun if alive else 1e9)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(60)
    assert worst[0] < SOON_S, f"/healthz took {worst[0]} s"


def refused(answer: tuple[int, Any], status: int, error: str, field: str | None = None) -> dict[str, Any]:
    """The error that was expected."""
    assert (answer[0], answer[1].get("error"), answer[1].get("field")) == (status, error, field), answer
    return dict(answer[1])


def test_expressions_that_explode_elsewhere_are_answered_soon(cluster: Queried) -> None:
    with healthy(cluster):
        for expression in ("~(a+)+$", "~(a|aa)*b", "~(.*)*(.*)*x", "~(?:d?){200}device-000001"):
            begun = time.monotonic()
            status, _ = cluster.ask(device_id=expression, metric_name="*", operation=["count"])
            assert status in (200, 404), expression
            assert time.monotonic() - begun < SOON_S, expression


@pytest.mark.parametrize(
    "expression", ["~(", "~(?:(?:a{1000}){1000}){1000}", r"~(a)\1", "~(?=a)", "~[", "~" + "a" * 2000]
)
def test_expressions_that_cannot_be_used_are_named(cluster: Queried, expression: str) -> None:
    refused(cluster.ask(device_id=expression, metric_name="*", operation=["count"]), 400, "bad_request", "device_id")


def test_a_glob_over_a_hundred_thousand_series_is_right(cluster: Queried) -> None:
    with healthy(cluster):
        status, answer = cluster.ask(device_id="device-*", metric_name="m", operation=["count", "sum", "max"])
        assert (status, answer["result"]) == (
            200,
            {"count": SERIES, "sum": SERIES * (SERIES - 1) / 2, "max": SERIES - 1.0},
        )
        _, answer = cluster.ask(device_id="*-?????7", metric_name="*", operation=["count"])
        assert answer["result"] == {"count": SERIES // 10}
        status, answer = cluster.ask(
            device_id="device-*", metric_name="m", operation="avg", group_by="device_id", limit=3
        )
        assert (status, [row["avg"] for row in answer["rows"]], answer["more"]) == (200, [0.0, 1.0, 2.0], True)


def test_more_series_than_the_limit_names_the_limit(cluster: Queried) -> None:
    error = refused(cluster.ask(device_id="*", metric_name="*", operation=["count"]), 422, "limit")
    assert (error["setting"], error["limit"]) == ("query.max_series", SERIES)
    assert error["value"] > SERIES


@pytest.mark.parametrize(
    "ends", [{"start_time": -500_000_000, "end_time": 500_000_000}, {"start_time": 1, "end_time": "now"}]
)
def test_a_thousand_million_buckets_are_refused_before_they_are_made(cluster: Queried, ends: dict[str, Any]) -> None:
    begun = time.monotonic()
    asked = {"device_id": "sensor", "metric_name": "t", "operation": "avg", "interval": 1, "fill": "null"}
    error = refused(cluster.ask(**asked, **ends), 422, "limit", "interval")
    assert (error["setting"], error["limit"]) == ("query.max_rows", 200_000)
    assert error["value"] >= 10**9
    assert time.monotonic() - begun < SOON_S


def test_ranges_at_the_ends_of_time_are_answered_or_refused(cluster: Queried) -> None:
    asked = {"device_id": "sensor", "metric_name": "t", "operation": ["count"]}
    for ends in (
        {"start_time": "1677-09-21T00:12:44Z", "end_time": "2262-04-11T23:47:16Z"},
        {"start_time": -9_223_372_036, "end_time": 9_223_372_036},
    ):
        assert cluster.ask(**asked, **ends)[1]["result"] == {"count": 100}
        status, answer = cluster.ask(**asked, **ends, interval="1y", timezone="Europe/Berlin")
        assert (status, [row["count"] for row in answer["rows"]]) == (200, [100])
        status, answer = cluster.ask(**asked, **ends, interval="100d", fill=0)
        assert (status, sum(row["count"] for row in answer["rows"])) == (200, 100)
    assert cluster.ask(**asked, start_time="1900-01-01T00:00:00Z", end_time="1969-12-31T23:59:59Z")[1]["result"] == {
        "count": 0
    }
    for field, value in (
        ("start_time", "1600-01-01T00:00:00Z"),
        ("end_time", "2300-01-01T00:00:00Z"),
        ("end_time", 1e300),
    ):
        refused(cluster.ask(**asked, **{field: value}), 400, "bad_request", field)


def test_an_inverted_range_is_refused(cluster: Queried) -> None:
    asked = {"device_id": "sensor", "metric_name": "t", "operation": "avg"}
    refused(cluster.ask(**asked, start_time=BEGIN + 1, end_time=BEGIN), 400, "bad_request", "start_time")
    refused(cluster.ask(**asked, start_time="now", end_time="-1h"), 400, "bad_request", "start_time")


def test_ids_of_any_letters_are_found(cluster: Queried) -> None:
    name = {"device_id": "größe/℃ \U0001f321", "metric_name": {"exact": "temp:*"}, "tags": {"räum": {"exact": "ü*"}}}
    assert cluster.ask(**name, operation="avg")[1]["result"] == 1.5
    assert cluster.ask(device_id="gr??e/*", metric_name="~.*", operation=["count"])[1]["result"] == {"count": 1}
    for broken in (b'{"device_id": "\xff", "metric_name": "m", "operation": "avg"}', b'{"device_id": "\\ud800"'):
        refused(cluster.call("POST", "/query", broken), 400, "malformed_json")


def test_a_body_of_a_hundred_megabytes_is_refused(cluster: Queried) -> None:
    body = b'{"device_id": "' + b"a" * (100 << 20) + b'"}'
    with healthy(cluster):
        status, answer = cluster.call("POST", "/query", body, timeout_s=60)
    assert status == 413
    assert (answer["setting"], answer["limit"]) == ("query.max_body_bytes", 1 << 20)


def test_clients_that_send_byte_by_byte_keep_nobody_out(cluster: Queried) -> None:
    body = json.dumps({"device_id": "sensor", "metric_name": "t", "operation": "count"}).encode()
    head = b"POST /query HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    with ExitStack() as stack, healthy(cluster):
        for _ in range(60):  # in the middle of their bodies for as long as the block lasts
            stuck = stack.enter_context(socket.create_connection(("127.0.0.1", cluster.port)))
            stuck.sendall(head + body[:10])
        slow = stack.enter_context(socket.create_connection(("127.0.0.1", cluster.port)))
        slow.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in head + body:
            slow.sendall(bytes([byte]))
            time.sleep(0.002)  # the slowness is what is tried
        assert cluster.ask(device_id="sensor", metric_name="t", operation="count")[1]["result"] == 100
        slow.settimeout(SOON_S)
        answer = b"".join(iter(lambda: slow.recv(1 << 16), b""))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b'"result":100' in answer


def test_a_thousand_idle_connections_keep_nobody_out(cluster: Queried) -> None:
    with ExitStack() as stack:
        for at in range(1000):
            idle = stack.enter_context(socket.create_connection(("127.0.0.1", cluster.port), timeout=30))
            if at % 2:
                idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")  # and never the end
        begun = time.monotonic()
        assert cluster.is_alive()
        assert cluster.ask(device_id="sensor", metric_name="t", operation="count")[1]["result"] == 100
        assert time.monotonic() - begun < SOON_S


def test_two_hundred_live_streams_get_what_there_is_room_for(cluster: Queried) -> None:
    with ExitStack() as stack, healthy(cluster):
        taken, over = [], []
        for _ in range(200):
            connection = http.client.HTTPConnection("127.0.0.1", cluster.port, timeout=30)
            stack.callback(connection.close)
            connection.request("GET", "/live?device_id=sensor")
            reply = connection.getresponse()
            (taken if reply.status == 200 else over).append(reply)
        assert (len(taken), len(over)) == (STREAMS, 200 - STREAMS)
        for reply in over:
            error = json.loads(reply.read())
            assert (reply.status, error["setting"], error["limit"]) == (429, "query.live_streams", STREAMS)
            assert int(reply.headers["Retry-After"]) >= 1
        cluster.push([(("sensor", "t", ()), (BEGIN + 1000) * S, 7.25)])
        for reply in taken:
            wait_until(lambda reply=reply: b"7.25" in reply.readline(), 10, "the point on a stream")
    wait_until(lambda: _opens(cluster), 20, "room for a stream again")


def _opens(cluster: Queried) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", cluster.port, timeout=30)
    try:
        connection.request("GET", "/live")
        return connection.getresponse().status == 200
    finally:
        connection.close()
