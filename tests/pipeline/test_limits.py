"""Limits and deletes through the whole of it: what a node refuses lies in the dead letter, what it deletes is gone."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from common.ringbuild import with_delete
from common.ringstore import FileStore
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


def test_a_node_acts_on_a_delete_in_the_ring_alone(cluster: Sandbox, publisher: Publisher) -> None:
    publisher.send(json.dumps([point("a", age) for age in (30, 20)]).encode())
    client.wait_for_counts(cluster.http, {("a", "m"): 5}, timeout_s=20)
    store = FileStore(Path(cluster.dir) / "data" / "ring.json")
    ring = store.load()
    assert ring is not None
    store.save(with_delete(ring, Selector("a"), (NOW - 40) * 10**9, (NOW - 30) * 10**9), ring.epoch)
    left = {("a", "m"): 3}
    wait_until(lambda: client.counts(cluster.http, left) == left, 20, "the node to adopt the delete")
