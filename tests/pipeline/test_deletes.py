"""Deletes from HTTP to every copy: what is deleted is gone everywhere and stays so, what is written after it stays."""

import itertools
import json
import re
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from common import protocol
from common.ringbuild import with_delete
from common.selector import Selector
from common.timestamps import MAX_NS, MIN_NS
from tests.cluster import QUICK, Cluster, Worker
from tests.pipeline import client
from tests.pipeline.test_bad_input import Publisher
from tests.support import Children, free_port, require_part, wait_until

BASE_S = 1_700_000_000


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes that hold a copy each, a bridge, two query workers."""
    require_part("mosquitto")
    children = Children()
    settings = QUICK | {"query.timeout_s": 8.0}
    made = Cluster(children, tmp_path_factory.mktemp("deletes"), nodes=2, replication=2, query=True, settings=settings)
    try:
        made.start()
        yield made
    finally:
        made.close()
        children.stop_all()


@pytest.fixture(scope="module")
def second(cluster: Cluster) -> str:
    """The URL of another query worker."""
    port = free_port()
    Worker(cluster, "query2", ["workers.query"], {"query.port": port}).start()
    url = f"http://127.0.0.1:{port}"
    wait_until(lambda: _is_ready(url), 30, "the second query worker")
    return url


def _is_ready(url: str) -> bool:
    try:
        return client.get(url + "/readyz")[0] == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def publisher(cluster: Cluster) -> Iterator[Publisher]:
    sender = Publisher(f"mqtt://127.0.0.1:{cluster.publishers.port}")
    yield sender
    sender.close()


_numbers = itertools.count()


@pytest.fixture
def device() -> str:
    """A device that no other test uses."""
    return f"dev:{next(_numbers)}"


def publish(publisher: Publisher, device: str, seconds: Iterable[int], value: float = 1.0, **more: Any) -> None:
    points = [{"device_id": device, "metric_name": "m", "timestamp": BASE_S + at, "value": value} for at in seconds]
    publisher.send(json.dumps([point | more for point in points]).encode())


def count(url: str, device: str, **more: Any) -> int:
    """How many points a query finds; 0 where nothing is known of the device."""
    status, answer = client.ask(url, device_id=device, metric_name="m", operation="count", **more)
    assert status in (200, 404), answer
    return int(answer.get("result") or 0)


def wait_for(url: str, device: str, wanted: int) -> None:
    wait_until(lambda: count(url, device) == wanted, 20, f"{wanted} points of {device}")


def delete(url: str, **parameters: Any) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(f"{url}/api/v1/series?{urllib.parse.urlencode(parameters)}", method="DELETE")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_a_deleted_range_is_gone_from_every_query_worker_at_once_and_the_dry_run_said_what_would_go(
    cluster: Cluster, second: str, publisher: Publisher, device: str
) -> None:
    publish(publisher, device, range(10))
    publish(publisher, device, range(5), tags={"room": "1"})
    publish(publisher, device, range(3), metric_name="other")
    wait_for(cluster.http, device, 15)
    everything = {"device_id": device, "dry_run": "true"}
    wait_until(lambda: delete(second, **everything)[1].get("points") == 18, what="all points, of the other metric too")
    wanted = {"device_id": device, "start_time": BASE_S + 2, "end_time": BASE_S + 6}
    epoch = cluster.epoch
    status, dry = delete(second, **wanted, dry_run="true")
    assert (status, dry["series"], dry["points"]) == (200, 3, 9), dry
    assert (dry["first_time"], dry["last_time"]) == (BASE_S + 2, BASE_S + 6)
    assert [(one["metric_name"], one["tags"], one["points"]) for one in dry["of_series"]] == [
        ("m", {}, 5), ("other", {}, 1), ("m", {"room": "1"}, 3)
    ]  # fmt: skip
    assert (cluster.epoch, count(cluster.http, device)) == (epoch, 15)
    status, answer = delete(cluster.http, **wanted)
    assert (status, answer["number"], answer["complete"]) == (200, epoch + 1, True), answer
    assert (answer["waiting"], answer["unreachable"]) == ([], [])
    assert answer["matched"] == {"series": 3, "points": 9, "complete": True}
    assert set(answer["adopted"]) >= {"ing1", "ing2", "bridge1"}
    for url in (cluster.http, second):
        assert count(url, device) == 15 - 8
        assert count(url, device, tags={"room": "1"}) == 2
    status, again = delete(second, **wanted, dry_run="true")
    assert (again["series"], again["points"], again["first_time"], again["of_series"]) == (0, 0, None, [])
    status, listed = client.get(f"{second}/api/v1/deletes")
    assert listed["epoch"] == epoch + 1
    assert listed["deletes"][-1] == {"number": epoch + 1, "metric_name": None, "tags": None, **wanted}


def test_a_value_is_corrected_by_delete_and_then_write(cluster: Cluster, publisher: Publisher, device: str) -> None:
    publish(publisher, device, range(5), 100.0)
    wait_for(cluster.http, device, 5)
    status, answer = delete(cluster.http, device_id=device, metric_name="m", tags="")
    assert (status, count(cluster.http, device)) == (200, 0), answer
    publish(publisher, device, range(5), 1.0)
    wait_for(cluster.http, device, 5)
    assert client.ask(cluster.http, device_id=device, metric_name="m", operation="max")[1]["result"] == 1.0
    for node in cluster.nodes:
        held = cluster.held(node, [(device, "m")])[device, "m"]
        assert (held.count, held.max, held.delete_number) == (5, 1.0, answer["number"])


def test_of_points_that_flow_those_before_a_delete_are_gone_and_those_after_it_are_there(
    cluster: Cluster, second: str, publisher: Publisher, device: str
) -> None:
    sent, stop = 0, threading.Event()

    def flow() -> None:
        nonlocal sent
        while not stop.is_set():
            publish(publisher, device, range(sent, sent + 5))
            sent += 5

    thread = threading.Thread(target=flow, daemon=True)
    thread.start()
    before = wait_until(lambda: count(second, device), 20, "points to flow")
    status, answer = delete(cluster.http, device_id=device)
    after = sent + 5  # those being sent now count to neither
    assert (status, answer["complete"]) == (200, True), answer
    assert count(second, device, end_time=BASE_S + before - 1) == 0
    wait_until(lambda: sent > after + 20, 20, "more points")
    stop.set()
    thread.join()
    since = {"start_time": BASE_S + after}
    wait_until(lambda: count(cluster.http, device, **since) == sent - after, 20, "all points after the delete")


def test_two_query_workers_that_delete_at_once_give_each_delete_a_number_of_its_own(
    cluster: Cluster, second: str, publisher: Publisher, device: str
) -> None:
    devices = [f"{device}.{at}" for at in range(6)]
    for each in devices:
        publish(publisher, each, range(2))
    for each in devices:
        wait_for(cluster.http, each, 2)
    answers: list[tuple[int, dict[str, Any]]] = []
    urls = itertools.cycle([cluster.http, second])
    threads = [
        threading.Thread(target=lambda url=url, each=each: answers.append(delete(url, device_id=each)))
        for url, each in zip(urls, devices, strict=False)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [status for status, _ in answers] == [200] * 6, answers
    assert len({answer["number"] for _, answer in answers}) == 6
    assert [count(url, each) for url, each in zip(urls, devices, strict=False)] == [0] * 6


def test_each_delete_leaves_an_audit_line_and_so_does_a_refused_one(cluster: Cluster, device: str) -> None:
    delete(cluster.http, device_id=device, end_time=BASE_S)
    delete(cluster.http, device_id="dev*")
    lines = [line for line in cluster.log("query").splitlines() if "logger=audit" in line]
    done = next(line for line in lines if f"device={device}" in line)
    assert "who=- client=127.0.0.1" in done and f"number={cluster.epoch}" in done and "in force" in done
    assert f"end_ns={BASE_S}000000000" in done
    assert re.search(r"event=delete .*result=.*device_id is a pattern", lines[-1])


def test_a_node_that_was_down_and_its_spool_bring_nothing_back_and_lose_nothing_newer(
    cluster: Cluster, second: str, publisher: Publisher, device: str
) -> None:
    away, kept = cluster.nodes["ing2"], f"{device}.kept"
    publish(publisher, device, range(3), 100.0)
    wait_for(cluster.http, device, 3)
    away.kill()
    publish(publisher, device, range(3, 6), 100.0)  # these lie in the spool for the one that is away
    publish(publisher, kept, range(2))
    wait_until(cluster.marks, 20, "the mark of the one that is away")
    wait_for(cluster.http, device, 6)
    status, answer = delete(cluster.http, device_id=device)
    assert (status, [one["worker"] for one in answer["unreachable"]]) == (200, ["ing2"]), answer
    assert set(answer["adopted"]) >= {"ing1", "bridge1"}
    assert count(cluster.http, device) == 0
    publish(publisher, device, range(4), 1.0)
    wait_for(second, device, 4)
    away.start()
    held: list[float] = []
    wait_until(lambda: held.append(_max_of(cluster, "ing2", device)) or not cluster.marks(), 40, "the spool to drain")
    assert max(held) <= 1.0
    both = cluster.held("ing2", [(device, "m"), (kept, "m")])
    assert [(one.count, one.max) for one in both.values()] == [(4, 1.0), (2, 1.0)]
    for url in (cluster.http, second):
        wait_for(url, device, 4)


def _max_of(cluster: Cluster, node: str, device: str) -> float:
    """The largest value that a node itself shows of a device; 0.0 while it does not answer."""
    if not cluster.node_status(node):
        return 0.0
    body = cluster.ask(node, protocol.AGGREGATE, cluster.request((device, "m"))).body
    return protocol.decode_body(body, protocol.AggregateReply).max


def test_a_node_that_is_killed_around_its_adoption_never_shows_the_points_again(
    cluster: Cluster, publisher: Publisher, device: str
) -> None:
    publish(publisher, device, range(3))
    wait_for(cluster.http, device, 3)
    ring = cluster.store.load()
    assert ring is not None
    cluster.store.save(with_delete(ring, Selector(device), MIN_NS, MAX_NS), ring.epoch)
    threading.Event().wait(0.1)  # about when it looks: whether before, within or after, the result must be the same
    cluster.nodes["ing1"].kill()
    cluster.nodes["ing1"].start()
    held = cluster.held("ing1", [(device, "m")])[device, "m"]
    assert (held.count, held.delete_number) == (0, ring.epoch + 1)
    wait_until(lambda: not cluster.marks(), 20, "the spool to drain")
    assert client.get(f"{cluster.http}/api/v1/deletes")[1]["deletes"][-1]["device_id"] == device
