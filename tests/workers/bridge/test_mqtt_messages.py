"""Messages of every kind through real brokers: QoS, retained, $SYS, odd topics, empty, huge, very many at once."""

import json
import socket
import threading
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from tests.brokers import publish
from tests.support import wait_until
from tests.workers.bridge.harness import PATIENT, Place, Publisher, frame, kill, numbered, rows, variable

MakePlace = Any
KINDS = ["mosquitto", "embedded"]
CONNECT = bytes.fromhex("100e00044d5154540402003c00027077")  # v3.1.1, clean session, client id "pw"


def start(place: Place, kind: str) -> Any:
    """Broker and bridge, the bridge subscribed."""
    if kind == "mosquitto":
        place.start_mosquitto()
    else:
        place.start_embedded_broker()
    bridge = place.start_bridge()
    place.wait_subscribed()
    return bridge


def settled(place: Place, messages: int) -> bool:
    return bool(place.status()["messages"] >= messages and place.mqtt()["pending_messages"] == 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("granted", [0, 1])
def test_publishers_of_every_qos_are_stored(make_place: MakePlace, kind: str, granted: int) -> None:
    place = make_place(nodes=1, mqtt__subscriptions=f'[{{filter="sensors/#", qos={granted}}}]')
    start(place, kind)
    assert place.mqtt()["subscriptions"] == {"sensors/#": granted}
    for qos in (0, 1, 2):
        payloads = [payload for _, payload in numbered(200, start=200 * qos)]
        publish(place.mqtt_port, payloads, "sensors/x", qos)
    wait_until(lambda: place.count() == 600, what="stored")
    assert set(place.stored()) == rows(600)
    wait_until(lambda: settled(place, 600), what="no debts")


@pytest.mark.parametrize("kind", KINDS)
def test_retained_messages_come_once_or_not_at_all_as_the_subscription_says(make_place: MakePlace, kind: str) -> None:
    subscriptions = '[{filter="keep/#"}, {filter="skip/#", retained="skip"}]'
    place = make_place(nodes=1, mqtt__subscriptions=subscriptions)
    broker = place.start_mosquitto() if kind == "mosquitto" else place.start_embedded_broker()
    for topic, (_, payload) in zip(("keep/x", "skip/x"), numbered(2), strict=True):
        publish(place.mqtt_port, [payload], topic, retain=True)
    bridge = place.start_bridge()
    place.wait_subscribed()
    wait_until(lambda: settled(place, 2), what="both have come")
    assert set(place.stored()) == rows(1)
    assert place.mqtt()["received"]["skip/#"]["retained_skipped"] == 1
    publish(place.mqtt_port, [numbered(1, start=2)[0][1]], "skip/x")
    wait_until(lambda: set(place.stored()) == rows(1) | rows(1, start=2), what="a live one of the same topic is stored")
    if kind == "mosquitto":
        kill(bridge)
        place.start_bridge()
        wait_until(lambda: place.mqtt().get("session") == "resumed", what="connected again")
        place.wait_subscribed()
        publish(place.mqtt_port, [numbered(1, start=3)[0][1]], "keep/y")
        wait_until(lambda: place.count() == 3, what="stored")
        wait_until(lambda: place.status()["messages"], what="status")
        assert place.status()["messages"] == 1, "with v5 a retained message comes when a subscription is new"
    assert place.dead() == []
    assert broker.poll() is None


@pytest.mark.parametrize("kind", KINDS)
def test_sys_topics_do_not_come_to_a_filter_of_everything(make_place: MakePlace, kind: str) -> None:
    place = make_place(nodes=1, mqtt__subscriptions='[{filter="#"}]')
    if kind == "mosquitto":
        place.start_mosquitto("sys_interval 1\n")
    else:
        place.start_embedded_broker()
    place.start_bridge()
    place.wait_subscribed()
    if kind == "mosquitto":
        seen_sys(place.mqtt_port, 3)
    Publisher(place.mqtt_port).publish_all(numbered(10))
    wait_until(lambda: settled(place, 10), what="all have come")
    assert place.count() == place.status()["messages"] == 10
    assert place.dead() == []


def seen_sys(port: int, times: int) -> None:
    """Wait until the broker has published its statistics so often."""
    seen: list[str] = []
    client = paho.Client(CallbackAPIVersion.VERSION2, "watcher")
    client.on_message = lambda _client, _data, message: seen.append(message.topic)
    client.connect("127.0.0.1", port)
    client.subscribe("$SYS/broker/uptime")
    client.loop_start()
    wait_until(lambda: len(seen) >= times, what="statistics")
    client.disconnect()
    client.loop_stop()


def test_sys_topics_are_stored_where_a_filter_names_them(make_place: MakePlace) -> None:
    subscription = (
        '[{filter="$SYS/broker/clients/+", format="number", template="$SYS/broker/{device_id}/{metric_name}"}]'
    )
    place = make_place(nodes=1, mqtt__subscriptions=subscription)
    place.start_mosquitto("sys_interval 1\n")
    place.start_bridge()
    wait_until(lambda: [row for row in place.stored() if row[:2] == ("clients", "connected")], what="statistics stored")
    assert {row[0] for row in place.stored()} == {"clients"}


TOPICS = [
    "sensors/with space/ at end ",
    "sensors/Ünïcödé/温度/🌡",
    "sensors/*",
    "sensors/%23/\uff0b/\uff03",  # percent-encoded, and full-width plus and number signs
    "sensors/$SYS/broker",
    "sensors/$share/g/x",
    "sensors//",
    "sensors/",
    "sensors",
    "sensors/{device_id}/[a-z]/\\d",
    "sensors/\ufeffbom",
    "sensors/quote\"'`;--",
    "sensors/" + "x" * 60_000,
    "sensors/" + "a/" * 150,  # mosquitto allows 200 levels
]
REFUSED_TOPICS = ["sensors/+", "sensors/#", "sensors/a+b", "#"]


@pytest.mark.parametrize("kind", KINDS)
def test_odd_topics_are_topics(make_place: MakePlace, kind: str) -> None:
    place = make_place(nodes=1)
    start(place, kind)
    good = [(topic, numbered(1, start=at)[0][1]) for at, topic in enumerate(TOPICS)]
    bad = [(topic, b"not json") for topic in TOPICS]
    Publisher(place.mqtt_port).publish_all(good + bad)
    wait_until(lambda: settled(place, 2 * len(TOPICS)), what="all have come")
    assert set(place.stored()) == rows(len(TOPICS))
    assert sorted(record.topic for record in place.dead()) == sorted(topic.encode() for topic in TOPICS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_topic_with_wildcards_is_refused_by_the_broker_and_hurts_nobody(make_place: MakePlace, kind: str) -> None:
    place = make_place(nodes=1)
    start(place, kind)
    for topic in REFUSED_TOPICS:
        with socket.create_connection(("127.0.0.1", place.mqtt_port), timeout=20) as wire:
            wire.sendall(CONNECT)
            assert wire.recv(4)[0] == 0x20
            wire.sendall(frame(1, topic, numbered(1)[0][1]))
            assert wire.recv(4) == b"", topic
    Publisher(place.mqtt_port).publish_all(numbered(5, start=1))
    wait_until(lambda: place.count() == 5, what="stored")
    assert set(place.stored()) == rows(5, start=1)
    assert place.mqtt()["connects"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_empty_payloads_are_dead_letters_also_those_that_clear_a_retained_message(
    make_place: MakePlace, kind: str
) -> None:
    place = make_place(nodes=1)
    start(place, kind)
    for qos in (0, 1, 2):
        publish(place.mqtt_port, [b""], f"sensors/q{qos}", qos)
    publish(place.mqtt_port, [numbered(1)[0][1]], "sensors/r", retain=True)
    publish(place.mqtt_port, [b""], "sensors/r", retain=True)
    wait_until(lambda: settled(place, 5), what="all have come")
    assert set(place.stored()) == rows(1)
    assert sorted((record.topic, record.code, record.payload) for record in place.dead()) == [
        (topic, "empty", b"") for topic in (b"sensors/q0", b"sensors/q1", b"sensors/q2", b"sensors/r")
    ]


def resident_peak(pid: int) -> int:
    """The most memory that a process has had resident, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no VmHWM")


def publish_huge(port: int, topic: str, packet_bytes: int) -> int:
    """Publish one message that fills a packet; the size of its payload. Returns when it is acknowledged."""
    head = len(topic).to_bytes(2, "big") + topic.encode() + b"\0\1"
    payload_bytes = packet_bytes - len(head)
    with socket.create_connection(("127.0.0.1", port), timeout=60) as wire:
        wire.sendall(CONNECT)
        assert wire.recv(4)[0] == 0x20
        wire.sendall(b"\x32" + variable(packet_bytes) + head)
        piece, left = b"x" * (1 << 20), payload_bytes
        while left:
            wire.sendall(piece[: min(left, len(piece))])
            left -= min(left, len(piece))
        assert wire.recv(4) == b"\x40\x02\x00\x01"
    return payload_bytes


@pytest.mark.parametrize("kind", KINDS)
def test_a_payload_as_large_as_mqtt_allows_is_kept_in_the_dead_letter_and_the_stream_goes_on(
    make_place: MakePlace, kind: str
) -> None:
    place = make_place(nodes=1)
    bridge = start(place, kind)
    before = resident_peak(bridge.pid)
    size = publish_huge(place.mqtt_port, "sensors/huge", 268_435_455 - 2)  # v5 adds the length of no properties
    Publisher(place.mqtt_port).publish_all(numbered(10))
    wait_until(lambda: settled(place, 11), timeout_s=60, what="acknowledged")
    (record,) = place.dead()
    assert (record.topic, record.code, len(record.payload)) == (b"sensors/huge", "size", size)
    assert record.payload.count(b"x") == size
    assert set(place.stored()) == rows(10)
    assert place.mqtt()["connects"] == 1
    assert resident_peak(bridge.pid) - before < 3.3 * size, "the payload, its record, and little more"


def test_a_payload_of_60_mb_within_the_limit_is_stored_point_by_point(make_place: MakePlace) -> None:
    place = make_place(nodes=1)
    start(place, "mosquitto")
    body = json.dumps([{"device_id": "d", "metric_name": "m", "timestamp": n, "value": n} for n in range(1000)])
    Publisher(place.mqtt_port).publish_all([("sensors/a", body.encode().ljust(60 << 20)), *numbered(10)])
    wait_until(lambda: place.count() == 1010, timeout_s=60, what="stored")
    assert place.dead() == []


@pytest.mark.parametrize("kind", KINDS)
def test_as_many_unacknowledged_messages_as_there_are_packet_ids(make_place: MakePlace, kind: str) -> None:
    place = make_place(nodes=1, **PATIENT)
    start(place, kind)
    most = place.mqtt()["receive_maximum"] if kind == "mosquitto" else 5000
    place.nodes[0].holding = True
    count = most + 1000
    publisher = threading.Thread(target=Publisher(place.mqtt_port).publish_all, args=(numbered(count),))
    publisher.start()
    wait_until(lambda: place.mqtt()["pending_messages"] >= most, timeout_s=60, what="the window is full")
    publisher.join()
    assert place.mqtt()["pending_messages"] <= 65535
    assert place.nodes[0].count == 0
    place.nodes[0].holding = False
    wait_until(lambda: settled(place, count), timeout_s=60, what="acknowledged")
    assert set(place.stored()) == rows(count)
    assert place.mqtt()["connects"] == 1
