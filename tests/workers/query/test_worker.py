"""The query worker as it runs: real processes, real HTTP, fake storage nodes."""

import functools
import http.client
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from common import metrics
from common.protocol import AggregateReply, AggregateRequest, MetricFamily, ProcessMetrics
from common.series import partition_of
from tests.support import Children, free_port, wait_until
from tests.workers.query.fake import FakeNode, Point, point
from tests.workers.query.running import Worker, start

BEGIN_S = 1_700_000_000
NS = 1_000_000_000
AWKWARD = "a/b:c é\"'"


def points() -> list[Point]:
    """sensor_1 has two metrics and, for one, two series more with tags; others have odd values and ids."""
    walk = [
        point("sensor_1", "temperature", (BEGIN_S + n) * NS, 20 + n / 10, tags)
        for n in range(100)
        for tags in (None, {"room": "a"}, {"room": "b"})
    ]
    odd = [0.1, -0.0, 5e-324, 1.7976931348623157e308, -1.2345678901234567e-5, 3.0]
    single = [point("odd", f"v{n}", BEGIN_S * NS, value) for n, value in enumerate(odd)]
    return [
        *walk,
        *single,
        point("sensor_1", "humidity", BEGIN_S * NS, 40.0),
        point(AWKWARD, "m", BEGIN_S * NS, 1.0),
        *(point(f"many_{n:03}", "m", BEGIN_S * NS, 1.0) for n in range(50)),
    ]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """A worker that tests only ask."""
    children = Children()
    worker = Worker(children, tmp_path_factory.mktemp("query"), points(), MINITRUE__QUERY__MAX_BODY_BYTES="2000")
    yield worker
    children.stop_all()
    worker.stop()


@pytest.fixture
def own(children: Children, tmp_path: Path) -> Iterator[Worker]:
    """A worker that the test may harm."""
    worker = Worker(children, tmp_path, points(), MINITRUE__QUERY__TIMEOUT_S="1")
    yield worker
    worker.stop()


# POST /query


@pytest.mark.parametrize(
    ("operation", "result"),
    [("avg", 24.95), ("sum", None), ("max", 29.9), ("min", 20.0), ("count", 300), ("first", 20.0), ("last", 29.9)],
)
def test_every_operation_over_all_series_of_a_device_and_metric(
    shared: Worker, operation: str, result: float | None
) -> None:
    status, answer = shared.query(operation=operation)
    assert status == 200
    assert answer["result"] == (math.fsum(3 * [20 + n / 10 for n in range(100)]) if result is None else result)
    assert answer["count"] == 300


def test_an_answer_repeats_the_request_and_says_what_it_covers(shared: Worker) -> None:
    status, answer = shared.query(start_time=BEGIN_S, end_time="2023-11-14T22:13:30Z")
    assert status == 200
    assert list(answer) == [
        "device_id", "metric_name", "operation", "start_time", "end_time", "result", "count", "duration_ns", "coverage",
    ]  # fmt: skip
    assert (answer["start_time"], answer["end_time"], answer["count"]) == (BEGIN_S, "2023-11-14T22:13:30Z", 33)
    assert answer["duration_ns"] > 0
    assert answer["coverage"] == {
        "partitions_asked": 64, "partitions_answered": 64, "complete": True, "epoch": 1, "delete_number": 0,
        "nodes": ["ing1", "ing2", "ing3"], "missing": [],
    }  # fmt: skip


def test_both_ends_of_a_range_belong_to_it(shared: Worker) -> None:
    for begin, end, count in ((3, 5, 9), (3, 3, 3), (2.5, 3, 3), (0.0000004, 1, 6), (99, 100, 3), (100, 200, 0)):
        status, answer = shared.query(operation="count", start_time=BEGIN_S + begin, end_time=BEGIN_S + end)
        assert (status, answer["result"]) == (200, count), (begin, end)


def test_tags_choose_one_series_and_one_node_is_asked(shared: Worker) -> None:
    for tags in ({}, {"room": "a"}):
        status, answer = shared.query(operation="count", tags=tags)
        assert (status, answer["result"], answer["tags"]) == (200, 100, tags)
        assert (answer["coverage"]["partitions_asked"], len(answer["coverage"]["nodes"])) == (1, 1)


def test_a_known_series_without_points_in_the_range_has_no_result(shared: Worker) -> None:
    for tags in (None, {}, {"room": "a"}):
        status, answer = shared.query(end_time=1, tags=tags)
        assert (status, answer["result"], answer["count"]) == (200, None, 0)
        assert answer["coverage"]["complete"] is True


@pytest.mark.parametrize(
    ("fields", "field", "text"),
    [
        ({"device_id": "nobody"}, "device_id", 'no series has device_id "nobody"'),
        ({"metric_name": "temp"}, "metric_name", 'has no metric_name "temp", it has "humidity", "temperature"'),
        ({"tags": {"room": "c"}}, "tags", 'no series with exactly the tags {"room":"c"}'),
        ({"metric_name": "humidity", "tags": {"a": "b"}}, "tags", "leave tags out"),
    ],
)
def test_an_unknown_series_is_not_found_and_the_field_is_named(
    shared: Worker, fields: dict[str, Any], field: str, text: str
) -> None:
    status, answer = shared.query(**fields)
    assert (status, answer["error"], answer["field"]) == (404, "unknown_series", field)
    assert text in answer["message"]


def test_values_come_out_bit_by_bit(shared: Worker) -> None:
    for number, (_, _, value) in enumerate(each for each in points() if b"odd" in each[0]):
        status, answer = shared.query(device_id="odd", metric_name=f"v{number}", operation="last")
        assert status == 200
        assert float(answer["result"]).hex() == value.hex()


def test_ids_may_hold_anything(shared: Worker) -> None:
    status, answer = shared.query(device_id=AWKWARD, metric_name="m", operation="count")
    assert (status, answer["result"], answer["device_id"]) == (200, 1, AWKWARD)


@pytest.mark.parametrize("kind", [None, "application/x-www-form-urlencoded", "text/plain", "application/json"])
def test_the_content_type_does_not_matter(shared: Worker, kind: str | None) -> None:
    body = json.dumps({"device_id": "sensor_1", "metric_name": "humidity", "operation": "avg"})
    status, _, answer = shared.call("POST", "/query", body, {"Content-Type": kind} if kind else {})
    assert (status, answer["result"]) == (200, 40.0)


def test_a_body_in_chunks_is_read(shared: Worker) -> None:
    body = json.dumps({"device_id": "sensor_1", "metric_name": "humidity", "operation": "avg"}).encode()
    connection = http.client.HTTPConnection("127.0.0.1", shared.port, timeout=30)
    connection.request("POST", "/query", iter([body[:10], body[10:]]), encode_chunked=True,
                       headers={"Transfer-Encoding": "chunked"})  # fmt: skip
    response = connection.getresponse()
    assert (response.status, json.loads(response.read())["result"]) == (200, 40.0)
    connection.close()


def test_a_bad_request_is_answered_with_field_and_reason(shared: Worker) -> None:
    status, answer = shared.query(operation="mean")
    assert status == 400
    assert (answer["error"], answer["field"]) == ("bad_request", "operation")
    assert answer["message"].startswith('unknown operation "mean", want one of avg, sum, max, min, count, first, last,')
    status, _, answer = shared.call("POST", "/query", b"{")
    assert (status, answer["error"]) == (400, "malformed_json")


def test_a_body_over_the_limit_is_refused_and_the_limit_named(shared: Worker) -> None:
    for size in (2001, 10_000_000):
        status, _, answer = shared.call("POST", "/query", b" " * size)
        assert (status, answer["error"]) == (413, "too_large")
        assert "2000 bytes (query.max_body_bytes)" in answer["message"]
    assert shared.call("POST", "/query", b" " * 2000)[0] == 400
    assert shared.is_ready()


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [("GET", "/nothing", 404, None), ("GET", "/query", 405, "POST"), ("DELETE", "/query", 405, "POST"),
     ("POST", "/healthz", 405, "GET"), ("PUT", "/api/v1/tags", 405, "GET,POST"), ("GET", "/%ff%00", 404, None)],
)  # fmt: skip
def test_unknown_paths_and_methods_are_answered_in_json(
    shared: Worker, method: str, path: str, status: int, allow: str | None
) -> None:
    got, headers, answer = shared.call(method, path)
    assert got == status
    assert answer["error"] == {404: "not_found", 405: "method_not_allowed"}[status]
    assert headers.get("allow") == allow
    assert allow is None or answer["message"].endswith(f": this path takes {allow.replace(',', ' and ')}")


def test_many_clients_at_once_get_their_own_answers(shared: Worker) -> None:
    wrong: list[Any] = []

    def client(offset: int) -> None:
        for n in range(25):
            end = BEGIN_S + (n * 7 + offset) % 100
            _, answer = shared.query(operation="max", end_time=end, tags={})
            if answer["result"] != 20 + (end - BEGIN_S) / 10:
                wrong.append((end, answer))

    clients = [threading.Thread(target=client, args=(n,)) for n in range(20)]
    for each in clients:
        each.start()
    for each in clients:
        each.join()
    assert wrong == []


# Incomplete and failing


def test_a_silent_node_is_503_and_named_with_its_partitions(own: Worker) -> None:
    own.nodes["ing2"].reaction = lambda node, route, message: True
    status, answer = own.query()
    assert (status, answer["error"]) == (503, "incomplete")
    assert answer["message"] == "21 of 64 partitions did not answer: ing2: no answer within 1 s"
    assert answer["coverage"] == {
        "partitions_asked": 64, "partitions_answered": 43, "complete": False, "epoch": 1, "delete_number": 0,
        "nodes": ["ing1", "ing3"], "missing": [{"node": "ing2", "partitions": 21, "reason": "no answer within 1 s"}],
    }  # fmt: skip
    assert "result" not in answer
    assert (answer["setting"], answer["limit"]) == ("query.timeout_s", 1.0)
    own.nodes["ing2"].reaction = None
    assert own.query()[0] == 200


def test_a_node_that_is_killed_is_503_until_it_is_back(own: Worker, children: Children) -> None:
    own.nodes.pop("ing1").stop()
    data = [["sensor_1", "temperature", BEGIN_S * NS, 20.0, {"n": str(n)}] for n in range(50)]
    (own.directory / "points.json").write_text(json.dumps(data))
    for node in own.nodes.values():
        node.points = [point(*each) for each in data]

    def run() -> subprocess.Popen[str]:
        command = ["tests.workers.query.fake", own.directory / "ring.json", "ing1", own.directory / "points.json"]
        return children.start(sys.executable, "-m", *command)

    for _ in range(2):
        process = run()
        wait_until(lambda: own.query()[0] == 200, what="the node is back")
        assert own.query(operation="count")[1]["result"] == 50
        process.kill()
        process.wait()
        status, answer = own.query(operation="count")
        assert (status, answer["coverage"]["missing"][0]["node"]) == (503, "ing1")


def test_a_sum_that_overflowed_in_a_node_is_422_and_no_other_operation_suffers(own: Worker) -> None:
    def overflow(node: FakeNode, request: AggregateRequest) -> AggregateReply:
        return msgspec.structs.replace(FakeNode.aggregate(node, request), sum_hi=math.inf)

    for node in own.nodes.values():
        node.aggregate = functools.partial(overflow, node)  # type: ignore[method-assign]
    for operation in ("sum", "avg"):
        status, answer = own.query(operation=operation)
        assert (status, answer["error"], answer["field"]) == (422, "overflow", "operation")
    assert {own.query(operation=operation)[0] for operation in ("count", "min", "max", "first", "last")} == {200}


def test_a_sum_that_overflows_only_across_nodes_is_422_too(own: Worker) -> None:
    by_node: dict[str, Point] = {}
    for n in range(100):
        each = point("huge", "m", 1, 1.7e308, {"n": str(n)})
        by_node.setdefault(own.ring.owners(partition_of(each[0], own.ring.partitions))[0].id, each)
    assert len(by_node) == 3
    for node in own.nodes.values():
        node.points = list(by_node.values())
    huge = {"device_id": "huge", "metric_name": "m"}
    assert [own.query(operation=operation, **huge)[0] for operation in ("sum", "avg")] == [422, 422]
    assert own.query(operation="max", **huge)[1]["result"] == 1.7e308


# GET


def all_series(worker: Worker, query: str) -> list[Any]:
    found: list[Any] = []
    cursor: str | None = ""
    while cursor is not None:
        status, _, answer = worker.call("GET", f"/api/v1/series?{query}&cursor={cursor}")
        assert status == 200
        found += answer["series"]
        cursor = answer["next_cursor"]
    return found


@pytest.mark.parametrize("details", ["false", "true"])
def test_series_are_listed_in_order_page_by_page_each_once(shared: Worker, details: str) -> None:
    keys = sorted({each[0] for each in points()})
    for limit in (7, len(keys) - 1, len(keys), len(keys) + 1):
        found = all_series(shared, f"limit={limit}&details={details}")
        assert [protocol_key(one) for one in found] == keys


def protocol_key(one: dict[str, Any]) -> bytes:
    return point(one["device_id"], one["metric_name"], 0, 0.0, one["tags"])[0]


@pytest.mark.parametrize("device", ["sensor_1", "sensor*", "~sens.*1"])
def test_series_can_be_filtered(shared: Worker, device: str) -> None:
    found = all_series(shared, f"device_id={device}&metric_name=temperature&limit=2&details=false")
    assert found == [
        {"device_id": "sensor_1", "metric_name": "temperature", "tags": tags}
        for tags in ({}, {"room": "a"}, {"room": "b"})
    ]
    assert all_series(shared, f"device_id={device}&metric_name=nothing") == []


def test_series_tell_what_they_hold(shared: Worker) -> None:
    (found,) = all_series(shared, "device_id=sensor_1&metric_name=temperature&tags.room=a")
    assert found == {
        "device_id": "sensor_1", "metric_name": "temperature", "tags": {"room": "a"}, "count": 100,
        "first_time": BEGIN_S, "last_time": BEGIN_S + 99, "last": 29.9, "expected_interval_s": 1.0,
    }  # fmt: skip


def test_a_bad_listing_is_refused(shared: Worker) -> None:
    status, _, answer = shared.call("GET", "/api/v1/series?limit=0")
    assert (status, answer["field"]) == (400, "limit")


def test_a_listing_that_lacks_a_node_is_503(own: Worker) -> None:
    own.nodes["ing2"].reaction = lambda node, route, message: True
    status, _, answer = own.call("GET", "/api/v1/series")
    assert (status, answer["error"], answer["coverage"]["missing"][0]["node"]) == (503, "incomplete", "ing2")


def test_readyz_tells_of_nodes_and_of_the_bridges_that_they_hear(own: Worker) -> None:
    own.nodes["ing1"].bridges = {"bridge1": {"age_s": 9.0, "connected": False}}
    own.nodes["ing2"].bridges = {"bridge1": {"age_s": 0.5, "connected": True}}
    status, _, answer = own.call("GET", "/readyz")
    assert (status, answer["ready"], answer["epoch"]) == (200, True, 1)
    assert answer["bridges"] == {"bridge1": {"ready": True, "age_s": 0.5, "connected": True}}
    assert [node["ready"] for node in answer["nodes"].values()] == [True, True, True]
    own.nodes["ing3"].reaction = lambda node, route, message: True
    status, _, answer = own.call("GET", "/readyz")
    assert (status, answer["ready"]) == (503, False)
    assert answer["nodes"]["ing3"] == {"ready": False, "reason": "no answer within 1 s"}
    assert own.call("GET", "/healthz")[0] == 200


def test_a_bridge_that_is_not_heard_any_more_is_not_ready_and_not_up(own: Worker) -> None:
    own.nodes["ing1"].bridges = {"bridge1": {"age_s": 31.0, "connected": True}}
    family = MetricFamily("minitrue_bridge_connected", "gauge", "x", [("minitrue_bridge_connected", {}, 1.0)])
    own.nodes["ing1"].families = [ProcessMetrics("bridge1", 3, 31.0, [family])]
    _, _, answer = own.call("GET", "/readyz")
    told = answer["bridges"]["bridge1"]
    assert (told["ready"], told["reason"]) == (False, "not heard for 31 s")
    _, _, data = own.call("GET", "/metrics")
    assert b'minitrue_up{worker="bridge1"} 0.0' in data
    assert b"minitrue_bridge_connected{" not in data


def test_metrics_of_all_workers_are_one_valid_exposition(own: Worker) -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    for age_s, node in ((5.0, "ing1"), (0.5, "ing2")):
        family = MetricFamily("minitrue_bridge_points_total", "counter", "Points.", [])
        family.samples.append(("minitrue_bridge_points_total", {}, age_s))
        own.nodes[node].families = [ProcessMetrics("bridge1", 3, age_s, [family])]
    own.nodes.pop("ing3").stop()
    own.query()
    status, headers, data = own.call("GET", "/metrics")
    assert (status, headers["content-type"]) == (200, metrics.CONTENT_TYPE)
    found: dict[tuple[str, str], float] = {}
    for family in parser.text_string_to_metric_families(data.decode()):
        for sample in family.samples:
            key = (sample.name, sample.labels["worker"])
            assert "le" in sample.labels or "reason" in sample.labels or "route" in sample.labels or key not in found
            found[key] = sample.value
    query_worker = f"query-{own.port}"
    assert {worker: value for (name, worker), value in found.items() if name == "minitrue_up"} == {
        "ing1": 1.0, "ing2": 1.0, "ing3": 0.0, "bridge1": 1.0, query_worker: 1.0,
    }  # fmt: skip
    assert found["minitrue_bridge_points_total", "bridge1"] == 0.5
    assert found["minitrue_points", "ing1"] == 7.0
    assert found["minitrue_query_asks_sent_total", query_worker] > 0
    assert found["minitrue_http_request_seconds_count", query_worker] >= 1


def test_the_root_says_what_is_here(shared: Worker) -> None:
    status, _, answer = shared.call("GET", "/")
    assert (status, answer["name"]) == (200, "minitrue")
    assert "POST /query" in answer["routes"]


# Processes


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def child_of(process: subprocess.Popen[str]) -> int:
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(child)


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_killed_parent_leaves_no_orphan_that_answers(own: Worker) -> None:
    child = child_of(own.process)
    own.process.kill()
    killed_s = time.monotonic()
    wait_until(lambda: is_gone(child) and not listens(own.port), timeout_s=5.0, what="the child has ended")
    assert time.monotonic() - killed_s < 1.0
    own.process.wait()


def test_a_worker_started_right_after_its_predecessor_was_killed_gets_the_port(own: Worker) -> None:
    held = http.client.HTTPConnection("127.0.0.1", own.port)
    held.request("GET", "/healthz")
    held.getresponse().read()
    own.process.kill()
    own.process = own.start()
    wait_until(own.is_ready, what="ready again")
    held.close()


def test_a_killed_child_ends_the_parent_with_an_error(own: Worker) -> None:
    os.kill(child_of(own.process), signal.SIGKILL)
    assert own.process.wait(10) == 1


def test_sigterm_stops_within_seconds_though_connections_are_open_and_a_request_hangs(own: Worker) -> None:
    child = child_of(own.process)
    idle = http.client.HTTPConnection("127.0.0.1", own.port)
    idle.request("GET", "/healthz")
    idle.getresponse().read()
    own.nodes["ing1"].reaction = lambda node, route, message: True
    hanging = http.client.HTTPConnection("127.0.0.1", own.port)
    hanging.request("GET", "/readyz")
    begun = time.monotonic()
    own.process.terminate()
    assert own.process.wait(10) == 0
    assert time.monotonic() - begun < 6.0
    assert is_gone(child)
    assert not listens(own.port)
    idle.close()
    hanging.close()


def test_the_port_can_be_taken_again_at_once_after_a_clean_stop(own: Worker) -> None:
    for _ in range(2):
        assert own.query()[0] == 200
        own.process.terminate()
        assert own.process.wait(10) == 0
        own.process = own.start()
        wait_until(own.is_ready, what="ready again")


def test_a_signal_to_the_whole_group_is_a_clean_stop_too(own: Worker) -> None:
    os.killpg(own.process.pid, signal.SIGINT)
    assert own.process.wait(10) == 0


def one_line(process: subprocess.Popen[str]) -> str:
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    (line,) = errors.splitlines()
    return str(line)


def test_a_taken_port_is_told_in_one_line(own: Worker) -> None:
    second = own.start(stderr=subprocess.PIPE)
    line = one_line(second)
    assert line.startswith(f"minitrue query: cannot listen on 127.0.0.1:{own.port} (query.host, query.port):")
    assert "Address already in use" in line
    assert own.query()[0] == 200


def test_an_invalid_ring_is_told_in_one_line(children: Children, tmp_path: Path) -> None:
    (tmp_path / "ring.json").write_text('{"version": 99}')
    process = start(children, tmp_path, free_port(), {}, stderr=subprocess.PIPE)
    assert "ring.json" in one_line(process)


def test_a_wrong_setting_is_told_in_one_line(children: Children, tmp_path: Path) -> None:
    process = start(children, tmp_path, free_port(), {"MINITRUE__QUERY__THREADS": "0"}, stderr=subprocess.PIPE)
    assert "threads" in one_line(process)


def test_without_a_ring_it_runs_and_says_that_it_is_not_ready(children: Children, tmp_path: Path) -> None:
    port = free_port()
    start(children, tmp_path, port, {})
    wait_until(lambda: listens(port), what="listening")
    for method, path, body in (("GET", "/readyz", None), ("POST", "/query", json.dumps(QUERY))):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request(method, path, body)
        response = connection.getresponse()
        answer = json.loads(response.read())
        assert response.status == 503
        assert "tools/ringctl init" in answer.get("message", answer.get("reason"))
        connection.close()


QUERY = {"device_id": "a", "metric_name": "b", "operation": "avg"}


def test_another_mode_leaves_it_out(children: Children, tmp_path: Path) -> None:
    process = start(children, tmp_path, free_port(), {"MINITRUE_MODE": "ingestion"})
    assert process.wait(20) == 78


def test_options_take_dashes_and_underscores_and_are_explained() -> None:
    done = subprocess.run([sys.executable, "-m", "workers.query", "--help"], capture_output=True, text=True, check=True)
    assert "--port" in done.stdout
    assert "Exit codes" in done.stdout
