"""What surrounds every handler: parameters, bodies, the gate, errors, streams that break, other origins."""

import socket
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from common import config, figures, protocol
from common.errors import ConfigError
from common.protocol import AggregateReply, SeriesReply
from tests.support import wait_until
from tests.workers.query.inside import NOW_NS, Inside
from workers.query import deleting, frame, routes, worker
from workers.query.frame import Context, Request, Response, Route
from workers.query.gate import Busy, Gate
from workers.query.refusal import Refusal

QUERY = {"device_id": "a", "metric_name": "m", "operation": "count"}


def naive(node: str, kind: bytes, request: Any) -> Any:
    """One series, with a point, in every node's partitions."""
    if kind == protocol.AGGREGATE:
        return AggregateReply(request.partitions, 0, 1, 1, 1.0, 0.0, 1.0, 1.0, 0, 1.0, 0, 1.0, 0, 0, 0)
    if kind == protocol.SERIES:
        return SeriesReply(request.partitions, [], False)
    return protocol.MetricsReply([]) if kind == protocol.METRICS else {}


# Parameters


@pytest.mark.parametrize(
    ("url", "fields"),
    [
        ("", {}),
        ("a=1&b=", {"a": "1", "b": ""}),
        ("a=1&a=2&a=3", {"a": ["1", "2", "3"]}),
        ("tags.room=x&tags.room=y&tags.a.b=z", {"tags": {"room": ["x", "y"], "a.b": "z"}}),
        ("tags=", {"tags": {}}),
        ("tags=&tags.a=b", {"tags": {"a": "b"}}),
        ("device_id.exact=a*b&device_id=c", {"device_id": [{"exact": "a*b"}, "c"]}),
        ("a=%C3%A9+%2B", {"a": "é +"}),
    ],
)
def test_a_urls_parameters_are_what_a_body_would_say(url: str, fields: dict[str, Any]) -> None:
    assert frame.url_parameters(url) == fields


def test_parameters_that_cannot_be_are_refused() -> None:
    for url in ("a=%ff", "tags=x"):
        with pytest.raises(Refusal) as raised:
            frame.url_parameters(url)
        assert raised.value.status == 400


def test_get_and_post_are_the_same_question(monkeypatch: pytest.MonkeyPatch) -> None:
    inside = Inside(naive)
    found = inside.call("GET", "/api/v1/series?details=false")
    assert found[0] == 200
    assert inside.call("POST", "/api/v1/series", {"details": False}) == found
    status, answer = inside.call("POST", "/api/v1/series?limit=1", {"limit": 2})
    assert (status, answer["field"]) == (400, "limit")
    for body, error in ((b"{", "malformed_json"), (b"[]", "bad_request"), (b"\xff", "malformed_json")):
        status, answer = inside.call("POST", "/api/v1/series", body)
        assert (status, answer["error"]) == (400, error)


# Bodies


class Endless:
    """A body that never ends. read: how much was taken."""

    def __init__(self) -> None:
        self.taken = 0

    def read(self, size: int) -> bytes:
        self.taken += size
        return b" " * size


def test_a_body_that_never_ends_is_refused_after_a_while() -> None:
    inside = Inside(naive, max_body_bytes=2000)
    body = Endless()
    status, answer = inside.call("POST", "/query", body)
    assert (status, answer["error"]) == (413, "too_large")
    assert (answer["setting"], answer["limit"]) == ("query.max_body_bytes", 2000)
    assert frame.DRAIN_BYTES <= body.taken <= 2 * frame.DRAIN_BYTES
    assert inside.context.gate.here == 0


@pytest.mark.parametrize(
    ("headers", "body", "text"),
    [
        ({"Content-Length": "50"}, b"", "the body was cut off: 0 of 50 bytes came"),
        ({"Content-Length": "50"}, b'{"start_time":', "the body was cut off: 14 of 50 bytes came"),
        ({"Content-Length": "50"}, b" \n", "the body was cut off: 2 of 50 bytes came"),
        ({"Transfer-Encoding": "chunked"}, b"", "the body in chunks is empty, or was cut off"),
        ({"Transfer-Encoding": "chunked"}, b" ", "the body in chunks is empty, or was cut off"),
    ],
)
def test_half_a_body_never_deletes_more_than_the_whole_would_have(
    monkeypatch: pytest.MonkeyPatch, headers: dict[str, str], body: bytes, text: str
) -> None:
    monkeypatch.setattr(deleting, "commit", lambda *_: pytest.fail("it was deleted"))
    inside = Inside(naive)
    status, answer = inside.call("DELETE", "/api/v1/series?device_id=a", body, headers)
    assert (status, answer["error"]) == (400, "malformed_json")
    assert text in answer["message"]
    assert inside.context.gate.here == 0


def test_whole_bodies_are_taken_and_a_length_over_the_limit_is_told() -> None:
    inside = Inside(naive, max_body_bytes=2000)
    for headers in ({"Content-Length": "17"}, {"Transfer-Encoding": "chunked"}, {}):
        assert inside.call("POST", "/api/v1/series", b'{"details":false}', headers)[0] == 200
    for headers in ({"Content-Length": "0"}, {}):
        assert inside.call("POST", "/api/v1/series?details=false", b"", headers)[0] == 200
    status, answer = inside.call("POST", "/query", b" " * 3000, {"Content-Length": "3000"})
    assert (status, answer["limit"], answer["value"]) == (413, 2000, 3000)


# The gate


def test_who_waits_is_let_in_in_order_and_who_finds_no_room_is_told_when_to_come_back() -> None:
    gate, order = Gate(1, 2, 30.0), []
    gate.arrive()
    gate.enter()
    waiting = []
    for number in range(2):
        gate.arrive()

        def wait(number: int = number) -> None:
            gate.enter()
            order.append(number)
            gate.leave()

        waiting.append(threading.Thread(target=wait))
        waiting[-1].start()
        wait_until(lambda number=number: len(gate._waiting) == number + 1, what="it waits")
    with pytest.raises(Busy) as raised:
        gate.arrive()
    told = raised.value
    assert (told.status, told.setting, told.limit, told.value, told.retry_after_s) == (429, "query.queue", 2, 2, 1)
    gate.leave()
    for thread in waiting:
        thread.join(30)
    assert order == [0, 1]
    assert gate.inside == 0


def test_who_waits_too_long_is_refused_and_takes_no_place() -> None:
    gate = Gate(1, 1, 0.01)
    gate.enter()
    with pytest.raises(Busy):
        gate.enter()
    gate.leave()
    gate.enter()
    assert gate.inside == 1


def test_requests_beyond_the_queue_get_429_while_health_answers_and_all_others_are_answered() -> None:
    entered, release = threading.Semaphore(0), threading.Event()

    def slow(node: str, kind: bytes, request: Any) -> Any:
        if kind == protocol.AGGREGATE:
            entered.release()
            assert release.wait(30)
        return naive(node, kind, request)

    inside = Inside(slow, threads=2, queue=1)
    found: list[int] = []
    clients = [threading.Thread(target=lambda: found.append(inside.call("POST", "/query", QUERY)[0])) for _ in range(3)]
    for client in clients:
        client.start()
    try:
        for _ in range(2):
            assert entered.acquire(timeout=30)
        wait_until(lambda: inside.context.gate.here == 3, what="three are here")
        status, headers, parts = inside.open("POST", "/query", QUERY)
        statuses = [inside.call("GET", path)[0] for path in ("/healthz", "/readyz", "/metrics", "/api/v1/status")]
    finally:
        release.set()
    assert (status, headers["retry-after"]) == (429, "1")
    assert b'"setting":"query.queue"' in b"".join(parts)
    assert statuses == [200] * 4
    for client in clients:
        client.join(30)
    assert found == [200, 200, 200]
    exposition = inside.call("GET", "/metrics")[1].decode()
    assert 'minitrue_http_requests_refused_total{worker="query-test"} 1.0' in exposition
    assert (inside.context.gate.here, inside.context.gate.inside, inside.context.gate.refused) == (0, 0, 1)


def test_a_slow_body_is_not_waited_for_inside_the_gate() -> None:
    begun, go_on = threading.Event(), threading.Event()

    class Slow:
        def read(self, size: int) -> bytes:
            begun.set()
            assert go_on.wait(30)
            return b"{}"

    inside = Inside(naive, threads=1, queue=1)
    client = threading.Thread(target=lambda: inside.call("POST", "/query", Slow()))
    client.start()
    assert begun.wait(30)
    assert inside.call("POST", "/query", QUERY)[0] == 200
    go_on.set()
    client.join(30)


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("localhost", "127.0.0.1"), ("0.0.0.0", "0.0.0.0"), ("::", "::")],
)
def test_a_host_is_listened_to_by_its_address(host: str, address: str) -> None:
    assert worker._address(host) == address


def test_a_host_that_has_no_address_or_another_than_its_name_promises_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ConfigError, match=r"query.host = '' has no address"):
        worker._address("")
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    assert worker._address("example") == "192.0.2.1"  # tokens are wanted for any name but localhost
    assert not config.is_loopback("example")
    with pytest.raises(ConfigError, match=r"query.host = 'localhost' is 192.0.2.1 here, which is no loopback address"):
        worker._address("localhost")


def test_the_kernel_is_told_to_end_connections_whose_client_reads_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        worker._drop_stalled(listening.getsockname()[1])
        with socket.create_connection(listening.getsockname()), listening.accept()[0] as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == worker.STALL_MS


# Streams


@pytest.fixture
def streaming(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Inside, list[str]]]:
    """An application with a route /stream of three parts, the last of which fails, and what happened in it."""
    happened: list[str] = []

    def stream(context: Context, asked: Request) -> Response:
        def parts() -> Iterator[bytes]:
            try:
                yield b"one"
                yield b"two"
                raise Refusal(503, "incomplete", "ing2 is away")
            finally:
                happened.append("closed")

        return Response(parts(), content_type="text/plain")

    route = Route("/stream", ("GET",), "read", stream, "a test")
    monkeypatch.setattr("workers.query.http.ROUTES", (*routes.ROUTES, route))
    yield Inside(naive, threads=1, queue=1), happened


def test_a_stream_holds_no_place_while_its_client_reads_and_is_counted_until_it_ends(
    streaming: tuple[Inside, list[str]],
) -> None:
    inside, happened = streaming
    gate = inside.context.gate
    status, _, parts = inside.open("GET", "/stream")
    assert status == 200
    each = iter(parts)
    assert next(each) == b"one"
    assert (gate.inside, gate.here) == (0, 1)
    assert inside.call("POST", "/query", QUERY)[0] == 200
    assert list(each) == [b"two"]  # granian would end the transfer in order whatever is raised: nothing is
    assert (gate.inside, gate.here, happened) == (0, 0, ["closed"])


def test_a_client_that_goes_away_closes_what_is_computed_for_it(streaming: tuple[Inside, list[str]]) -> None:
    inside, happened = streaming
    _, _, parts = inside.open("GET", "/stream")
    assert next(iter(parts)) == b"one"
    parts.close()  # type: ignore[attr-defined]
    assert (inside.context.gate.here, happened) == (0, ["closed"])
    _, _, parts = inside.open("GET", "/stream")
    assert inside.context.gate.here == 1
    del parts  # nobody began to read
    assert inside.context.gate.here == 0


# Errors


def test_a_nodes_limit_is_422_with_setting_and_limit() -> None:
    def limited(node: str, kind: bytes, request: Any) -> Any:
        return protocol.ErrorReply(protocol.ERR_LIMIT, "200 points, query.max_points is 100", "query.max_points")

    inside = Inside(limited, max_points=100)
    status, answer = inside.call("POST", "/query", QUERY | {"operation": "median"})
    assert (status, answer["error"]) == (422, "limit")
    assert (answer["setting"], answer["limit"]) == ("query.max_points", 100)
    assert answer["message"] == "200 points, query.max_points is 100"


def test_a_fault_of_ours_is_told_as_one_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def broken(node: str, kind: bytes, request: Any) -> Any:
        raise ZeroDivisionError("oh")

    inside = Inside(broken)
    status, answer = inside.call("POST", "/query", QUERY)
    assert (status, answer["error"], answer["message"]) == (500, "internal", "BUG: ZeroDivisionError: oh")
    assert inside.context.gate.here == 0


# Other origins


def test_an_empty_listing_of_exactly_some_tags_hints_at_more_tags() -> None:
    def nothing(node: str, kind: bytes, asked: Any) -> Any:
        if kind == protocol.TAGS:
            return protocol.TagsReply(asked.partitions, 0, {})
        names = ("count", "first_time", "first", "last_time", "last", "usual_ns")
        columns = figures.pack({name: np.zeros(0, figures.DTYPES[name]) for name in names})
        return protocol.DescribeReply(asked.partitions, 0, [], columns, False, protocol.Cost())

    inside = Inside(nothing)
    for path in ("series", "last", "tags"):
        told = inside.call("GET", f"/api/v1/{path}?tags.site=a")[1]["hint"]
        assert "exactly these tags" in told and "more_tags=true" in told
        for url in (path, f"{path}?tags=", f"{path}?tags.site=a&more_tags=true"):
            assert "hint" not in inside.call("GET", f"/api/v1/{url}")[1]


def test_an_answer_to_a_relative_time_tells_what_it_meant() -> None:
    inside = Inside(naive)
    asked = {"device_id": "a", "metric_name": "b", "operation": "sum", "start_time": "-1h"}
    _, answer = inside.call("POST", "/query", asked)
    assert (answer["start_time"], answer["end_time"]) == ("-1h", 0)
    assert answer["range"] == {"start_time": NOW_NS // 10**9 - 3600, "end_time": None}
    _, answer = inside.call("POST", "/query", asked | {"end_time": "now", "time_unit": "rfc3339"})
    assert answer["range"] == {"start_time": "2023-11-14T21:23:20Z", "end_time": "2023-11-14T22:23:20Z"}
    assert "range" not in inside.call("POST", "/query", asked | {"start_time": 5})[1]


def test_no_cors_header_is_sent_unless_origins_are_configured() -> None:
    status, headers, _ = Inside(naive).open("GET", "/healthz", headers={"Origin": "https://a"})
    assert status == 200
    assert not [name for name in headers if name.startswith("access-control")]
    assert Inside(naive).open("OPTIONS", "/query", headers={"Origin": "https://a"})[0] == 405


@pytest.mark.parametrize(
    ("origins", "origin", "allowed"),
    [(["https://a"], "https://a", "https://a"), (["https://a"], "https://b", None), (["*"], "https://b", "https://b"),
     (["https://a"], "", None)],
)  # fmt: skip
def test_pages_of_configured_origins_may_read_answers(origins: list[str], origin: str, allowed: str | None) -> None:
    inside = Inside(naive, cors_origins=origins)
    for method, path in (("GET", "/healthz"), ("OPTIONS", "/query"), ("OPTIONS", "/api/v1/series")):
        status, headers, _ = inside.open(method, path, headers={"Origin": origin} if origin else {})
        assert status == (204 if method == "OPTIONS" else 200)
        assert headers.get("access-control-allow-origin") == allowed
        assert headers["vary"] == "Origin"
    assert headers["access-control-allow-headers"] == "Authorization, Content-Type, Accept"


# The interface's own description


def test_the_description_is_served_and_its_page_needs_nothing_else() -> None:
    inside = Inside(naive)
    status, data = inside.call("GET", "/openapi.yaml")
    assert (status, data[:13]) == (200, b"openapi: 3.1.")
    status, headers, parts = inside.open("GET", "/docs")
    page = b"".join(parts).decode()
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    for route in routes.ROUTES:
        assert f"<code>{route.path}</code>" in page
    assert "src=" not in page and "<script" not in page and "@import" not in page and "url(" not in page
    assert 'href="http' not in page
