"""Payloads that cannot be stored: nothing stops, nothing is lost silently, the good ones around them are stored."""

import json
import time
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest

from tests.pipeline import client
from tools.sandbox_app import Sandbox
from workers.bridge import deadletter

NOW = int(time.time())
GOOD = {"device_id": "d", "metric_name": "m", "timestamp": NOW - 100, "value": 1.5}


def _with(**changes: Any) -> bytes:
    return json.dumps(GOOD | changes).encode()


BAD = {
    "not json": (b"21.5 degrees", "JSON"),
    "empty": (b"", "empty"),
    "not an object": (b'"text"', ""),
    "binary": (bytes(range(256)), ""),
    "missing value": (json.dumps({k: v for k, v in GOOD.items() if k != "value"}).encode(), "value"),
    "missing device": (json.dumps({k: v for k, v in GOOD.items() if k != "device_id"}).encode(), "device_id"),
    "device is a number": (_with(device_id=7), "device_id"),
    "empty id": (_with(device_id=""), "device_id"),
    "long id": (_with(metric_name="x" * 257), "256"),
    "control character": (_with(device_id="a\nb"), "control"),
    "nan": (_with(value=float("nan")), ""),
    "infinity": (_with(value=float("inf")), ""),
    "overflowing number": (b'{"device_id":"d","metric_name":"m","timestamp":1,"value":1e999}', ""),
    "string value": (_with(value="21.5"), "value"),
    "null value": (_with(value=None), "value"),
    "negative time": (_with(timestamp=-5), "timestamp"),
    "milliseconds by mistake": (_with(timestamp=NOW * 1000), "looks like ms"),
    "ahead of the clock": (_with(timestamp=NOW + 7200), "max_future"),
    "tags that are no strings": (_with(tags={"a": 1}), "tag 'a'"),
    "ten megabytes of nothing": (b"x" * 10_000_000, "JSON"),
}


class Publisher:
    """A plain MQTT client that publishes at QoS 1 and waits for each acknowledgement."""

    def __init__(self, url: str) -> None:
        host, port = url.removeprefix("mqtt://").split(":")
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2)
        self._client.connect(host, int(port))
        self._client.loop_start()

    def send(self, payload: bytes) -> None:
        self._client.publish("sensors/test", payload, qos=1).wait_for_publish(30)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture(scope="module")
def cluster() -> Any:
    with Sandbox(nodes=1, broker="auto") as running:
        yield running


@pytest.fixture
def publisher(cluster: Sandbox) -> Any:
    sender = Publisher(cluster.mqtt)
    yield sender
    sender.close()


def _dead(cluster: Sandbox) -> list[deadletter.Record]:
    directory = Path(cluster.dir) / "data" / "bridge" / "bridge1" / "deadletter"
    return [found.record for path in deadletter.files(directory) for found in deadletter.read(path)]


def _wait_for_dead(cluster: Sandbox, payload: bytes, timeout_s: float = 20) -> deadletter.Record:
    deadline = time.monotonic() + timeout_s
    while True:
        for letter in _dead(cluster):
            if letter.payload == payload:
                return letter
        assert time.monotonic() < deadline, f"{payload[:80]!r} is not in the dead letter"
        time.sleep(0.05)


@pytest.mark.parametrize("case", BAD)
def test_bad_payload_lies_in_the_dead_letter_and_the_next_point_is_stored(
    cluster: Sandbox, publisher: Publisher, case: str
) -> None:
    payload, word = BAD[case]
    publisher.send(payload)
    publisher.send(_with(device_id=f"after {case}"))
    letter = _wait_for_dead(cluster, payload)
    assert word in letter.reason
    assert letter.topic == b"sensors/test"
    client.wait_for_counts(cluster.http, {(f"after {case}", "m"): 1}, timeout_s=20)


def test_a_hundred_thousand_elements_with_one_bad_store_the_others(cluster: Sandbox, publisher: Publisher) -> None:
    points = [GOOD | {"device_id": "many", "timestamp": NOW - 200_000 + at} for at in range(100_000)]
    points[77_777]["value"] = "broken"
    publisher.send(json.dumps(points).encode())
    client.wait_for_counts(cluster.http, {("many", "m"): 99_999}, timeout_s=30)
    bad = [letter for letter in _dead(cluster) if b'"broken"' in letter.payload]
    assert [json.loads(letter.payload) for letter in bad] == [points[77_777]]


def test_ten_megabytes_of_good_points_are_stored(cluster: Sandbox, publisher: Publisher) -> None:
    padding = "x" * 100
    points = [
        {"device_id": "big", "metric_name": "m", "timestamp": NOW - 60_000 + at, "value": at / 7, "note": padding}
        for at in range(50_000)
    ]
    payload = json.dumps(points).encode()
    assert len(payload) > 10_000_000
    publisher.send(payload)
    client.wait_for_counts(cluster.http, {("big", "m"): 50_000}, timeout_s=30)


@pytest.mark.parametrize("value", [0, -0.0, 5e-324, 1.7976931348623157e308, 2**53 + 1, True, 0.1])
def test_odd_values_come_back_bit_for_bit(cluster: Sandbox, publisher: Publisher, value: Any) -> None:
    device = f"odd {value!r}"
    publisher.send(_with(device_id=device, value=value))
    client.wait_for_counts(cluster.http, {(device, "m"): 1}, timeout_s=20)
    status, answer = client.ask(
        cluster.http, device_id=device, metric_name="m", operation="last", start_time=0, end_time=0
    )
    assert status == 200
    assert float(answer["result"]).hex() == float(value).hex()


@pytest.mark.parametrize(
    ("timestamp", "nanoseconds"),
    [
        (1704067200.001, 1704067200001000000),
        (1704067200.1234567, 1704067200123457000),
        (1704067200, 1704067200 * 10**9),
    ],
)
def test_fractional_seconds_are_rounded_to_the_nearest_microsecond(
    cluster: Sandbox, publisher: Publisher, timestamp: float, nanoseconds: int
) -> None:
    device = f"fraction {timestamp!r}"
    publisher.send(_with(device_id=device, timestamp=timestamp))
    client.wait_for_counts(cluster.http, {(device, "m"): 1}, timeout_s=20)
    whole, rest = divmod(nanoseconds, 10**9)
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{rest:09}Z"
    status, answer = client.ask(
        cluster.http, device_id=device, metric_name="m", operation="count", start_time=text, end_time=text
    )
    assert (status, answer["count"]) == (200, 1)


def test_ids_with_separators_stay_apart(cluster: Sandbox, publisher: Publisher) -> None:
    for device, metric in (("aa:bb", "cc"), ("aa", "bb:cc"), ("aa|bb", "cc"), ("aa/bb", "cc")):
        publisher.send(_with(device_id=device, metric_name=metric))
    client.wait_for_counts(
        cluster.http, {("aa:bb", "cc"): 1, ("aa", "bb:cc"): 1, ("aa|bb", "cc"): 1, ("aa/bb", "cc"): 1}, timeout_s=20
    )
