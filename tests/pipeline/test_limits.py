"""Limits and deletes through the whole of it: what a node refuses lies in the dead letter, what it deletes is gone."""

import json
import time
from pathlib import Path
from typing import Any

import msgpack
import pytest

from common import bus, protocol
from common.selector import Selector
from tests.pipeline import client
from tests.pipeline.test_bad_input import Publisher
from tests.support import wait_until
from tools.sandbox_app import Sandbox
from workers.bridge import deadletter

NOW = int(time.time())
DAY_S = 86_400


def point(device: str, age_s: int, value: float = 1.5) -> dict[str, Any]:
    return {"device_id": device, "metric_name": "m", "timestamp": NOW - age_s, "value": value}


@pytest.fixture(scope="module")
def cluster() -> Any:
    settings = {"storage.max_series": 2, "storage.retention_days": 7}
    with Sandbox(nodes=1, broker="embedded", settings=settings) as running:
        yield running


@pytest.fixture(scope="module")
def publisher(cluster: Sandbox) -> Any:
    sender = Publisher(cluster.mqtt)
    yield sender
    sender.close()


def dead(cluster: Sandbox) -> dict[str, str]:
    """Dead elements by device, with the reason of each."""
    directory = Path(cluster.dir) / "data" / "bridge" / "bridge1" / "deadletter"
    found = [each.record for path in deadletter.files(directory) for each in deadletter.read(path)]
    return {json.loads(record.payload)["device_id"]: record.reason for record in found}


def ask(cluster: Sandbox, kind: bytes, body: Any) -> protocol.Message:
    base, _, port = cluster.nodes["ing1"]["endpoint"].rpartition(":")
    endpoint = f"{base}:{int(port) + 1}"
    status = bus.request(endpoint, protocol.STATUS, header("", ""), {}, 5.0)
    return bus.request(endpoint, kind, header(status.header.cluster, "ing1"), body, 5.0)


def header(cluster: str, destination: str) -> protocol.Header:
    return protocol.Header(
        version=1, cluster=cluster, destination=destination, sender="test", incarnation=1, sequence=1, epoch=1,
        ring_hash="",
    )  # fmt: skip


def test_rows_that_a_node_refuses_lie_in_the_dead_letter_and_the_others_are_stored(
    cluster: Sandbox, publisher: Publisher
) -> None:
    publisher.send(json.dumps([point("a", 60), point("b", 60)]).encode())
    client.wait_for_counts(cluster.http, {("a", "m"): 1, ("b", "m"): 1}, timeout_s=20)
    publisher.send(json.dumps([point("a", 50), point("third", 50), point("b", 50)]).encode())
    publisher.send(json.dumps([point("a", 40), point("a", 9 * DAY_S) | {"device_id": "b"}]).encode())
    client.wait_for_counts(cluster.http, {("a", "m"): 3, ("b", "m"): 2}, timeout_s=20)
    wait_until(lambda: len(dead(cluster)) == 2, what="two dead letters")
    reasons = dead(cluster)
    assert "storage.max_series = 2" in reasons["third"]
    assert "older than the retention of 7 days" in reasons["b"]


def test_delete_request_is_answered_when_the_points_are_gone(cluster: Sandbox, publisher: Publisher) -> None:
    publisher.send(json.dumps([point("a", age) for age in (30, 20)]).encode())
    client.wait_for_counts(cluster.http, {("a", "m"): 5}, timeout_s=20)
    request = protocol.DeleteRequest(1, Selector("a"), (NOW - 40) * 10**9, (NOW - 30) * 10**9)
    for applied in (True, False):
        reply = ask(cluster, protocol.DELETE, request)
        assert (reply.kind, msgpack.unpackb(reply.body)) == (protocol.REPLY, {"number": 1, "applied": applied})
        client.wait_for_counts(cluster.http, {("a", "m"): 3}, timeout_s=0.5)


def test_delete_request_that_cannot_be_is_answered_with_the_reason(cluster: Sandbox) -> None:
    reply = ask(cluster, protocol.DELETE, protocol.DeleteRequest(0, Selector("a")))
    error = msgpack.unpackb(reply.body)
    assert (reply.kind, error["error"]) == (protocol.ERROR, protocol.ERR_BAD_REQUEST)
    assert "delete number 0, want 1 to" in error["message"]
    reply = ask(cluster, protocol.DELETE, {"number": "x"})
    assert (reply.kind, msgpack.unpackb(reply.body)["error"]) == (protocol.ERROR, protocol.ERR_BAD_REQUEST)
