"""Payloads of every format through a whole cluster: what is published is what /query answers."""

import json
import time
from pathlib import Path
from typing import Any

import msgspec
import paho.mqtt.client as paho
import pytest

from tests.pipeline import client
from tests.support import wait_until
from tools.sandbox_app import Sandbox
from workers.bridge import deadletter

NOW = int(time.time()) - 100
SUBSCRIPTIONS = """[
    {filter = "tele/+/SENSOR", format = "json-metrics", template = "tele/{device_id}/SENSOR", time_field = "Time"},
    {filter = "home/#", format = "number", template = "home/{room}/{device_id}/{metric_name}"},
    {filter = "csv", format = "csv"},
    {filter = "lines", format = "line-protocol", time_unit = "s"},
    {filter = "packed", format = "msgpack", time_unit = "auto"},
    {filter = "other", device_field = "dev", metric_field = "what", value_field = "data.v", time_field = "data.at"},
    {filter = "sensors/#"},
]"""
PACKED = {"device_id": "p", "metric_name": "m", "timestamp": NOW * 1000, "value": 7}
# topic, payload, and the points in it: (device, metric) -> value
MESSAGES: list[tuple[str, Any, dict[tuple[str, str], float]]] = [
    (
        "tele/plug/SENSOR",
        {"Time": NOW, "ENERGY": {"Power": 5.5, "On": True}, "Unit": "C"},
        {("plug", "ENERGY.Power"): 5.5, ("plug", "ENERGY.On"): 1},
    ),
    ("home/kitchen/stove/temp", "21.5", {("stove", "temp"): 21.5}),
    ("csv", f"{NOW},c1,flow,3.5\n{NOW},c2,flow,4", {("c1", "flow"): 3.5, ("c2", "flow"): 4}),
    ("lines", f'm,device_id=l1 f=1,g=2i,s="x" {NOW}', {("l1", "m.f"): 1, ("l1", "m.g"): 2}),
    ("packed", msgspec.msgpack.encode(PACKED), {("p", "m"): 7}),
    ("other", {"dev": "o", "what": "m", "data": {"v": 9, "at": NOW}}, {("o", "m"): 9}),
    ("sensors/ä b", {"device_id": "s", "metric_name": "m", "timestamp": NOW, "value": 8}, {("s", "m"): 8}),
]
BAD = {"home/kitchen": "topic", "home/kitchen/stove/state": "syntax", "lines": "syntax", "packed": "syntax"}


def _bytes(payload: Any) -> bytes:
    if isinstance(payload, bytes):
        return payload
    return (payload if isinstance(payload, str) else json.dumps(payload)).encode()


@pytest.fixture(scope="module")
def cluster() -> Any:
    with Sandbox(nodes=2, broker="auto", settings={"mqtt.subscriptions": SUBSCRIPTIONS}) as running:
        yield running


@pytest.fixture
def publisher(cluster: Sandbox) -> Any:
    host, port = cluster.mqtt.removeprefix("mqtt://").split(":")
    sender = paho.Client(paho.CallbackAPIVersion.VERSION2)
    sender.connect(host, int(port))
    sender.loop_start()
    yield sender
    sender.disconnect()
    sender.loop_stop()


def _dead(cluster: Sandbox) -> list[tuple[str, str]]:
    directory = Path(cluster.dir) / "data" / "bridge" / "bridge1" / "deadletter"
    found = [found.record for path in deadletter.files(directory) for found in deadletter.read(path)]
    return [(record.topic.decode(), record.code) for record in found]


def test_every_format_is_stored_and_answered(cluster: Sandbox, publisher: Any) -> None:
    for topic, payload, _ in MESSAGES:
        publisher.publish(topic, _bytes(payload), qos=1).wait_for_publish(30)
    want = {series: value for _, _, points in MESSAGES for series, value in points.items()}
    client.wait_for_counts(cluster.http, dict.fromkeys(want, 1))
    for (device, metric), value in want.items():
        request = {"device_id": device, "metric_name": metric, "operation": "last", "start_time": 0, "end_time": 0}
        assert client.ask(cluster.http, **request)[1]["result"] == value


def test_what_no_format_can_read_lies_in_the_dead_letter_by_its_code(cluster: Sandbox, publisher: Any) -> None:
    for topic in BAD:
        publisher.publish(topic, b"\xc1bad", qos=1).wait_for_publish(30)
    wait_until(lambda: len(_dead(cluster)) >= len(BAD), what="dead letters")
    assert sorted(_dead(cluster)) == sorted(BAD.items())
