"""The bridge as a process: real mosquitto, real sockets, nodes that a test rules."""

import json
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from common.protocol import ERR_DISK, Ack
from common.ringstore import FileStore
from common.series import partition_of, series_key
from tests.support import certificate, free_port, wait_until
from tests.workers.bridge.harness import PATIENT, Place, Publisher, Row, kill, numbered, rows
from tests.workers.bridge.scripted import ScriptedBroker
from workers.broker import password_line

MakePlace = Any


def forbid_spools(place: Place) -> None:
    """No mark can be written, so nothing may rely on a spool."""
    (place.directory / "ring.json.marks").write_bytes(b"")


def everything_acknowledged(place: Place, messages: int) -> bool:
    status = place.status()
    return bool(status["messages"] >= messages and status["mqtt"]["pending_messages"] == 0)


def test_every_published_point_is_stored_and_the_session_left_without_debts(make_place: MakePlace) -> None:
    place = make_place()
    bridge = place.start()
    Publisher(place.mqtt_port).publish_all(numbered(5000))
    wait_until(lambda: everything_acknowledged(place, 5000), what="acknowledged")
    assert set(place.stored()) == rows(5000)
    assert place.dead() == []
    status = place.status()
    mqtt = status["mqtt"]
    assert (mqtt["protocol"], mqtt["session"], mqtt["subscriptions"]) == ("5", "new", {"sensors/#": 1})
    bridge.terminate()
    assert bridge.wait(10) == 0
    again = place.start_bridge()
    wait_until(lambda: place.mqtt().get("session") == "resumed", what="session resumed")
    Publisher(place.mqtt_port).publish_all(numbered(1, start=5000))
    wait_until(lambda: everything_acknowledged(place, 1), what="the only message that was left")
    assert (place.count(), place.status()["messages"]) == (5001, 1)
    again.terminate()
    assert again.wait(10) == 0


def test_what_cannot_be_stored_is_in_the_dead_letter_once_and_acknowledged(make_place: MakePlace) -> None:
    place = make_place()
    place.start()
    good = json.dumps({"device_id": "d", "metric_name": "m", "timestamp": 1, "value": 1}).encode()
    element = b'{"device_id":"d","metric_name":"m","value":null}'
    bad = [
        (b"not json", b"not json", "not-json"),
        (b"", b"", "empty"),
        (b"[" + good + b", " + element + b"]", element, "value"),
        (good.replace(b'"d"', b'""'), good.replace(b'"d"', b'""'), "id"),
        (good.replace(b": 1,", b": 1700000000000,"), good.replace(b": 1,", b": 1700000000000,"), "future"),
        (b"[1," * 10, b"[1," * 10, "not-json"),
    ]
    Publisher(place.mqtt_port).publish_all([("sensors/x y/\u00e9", body) for body, _, _ in bad])
    wait_until(lambda: everything_acknowledged(place, len(bad)), what="acknowledged")
    dead = place.dead()
    assert [(record.payload, record.code) for record in dead] == [(kept, code) for _, kept, code in bad]
    assert {record.topic for record in dead} == {"sensors/x y/\u00e9".encode()}
    assert all(abs(record.time_ns / 1e9 - time.time()) < 60 for record in dead)
    assert "it looks like ms" in dead[4].reason
    assert set(place.stored()) == {("d", "m", 10**9, 1.0)}


def test_a_payload_of_10_mb_and_one_over_the_limit(make_place: MakePlace) -> None:
    place = make_place(ingest__max_payload_bytes=str(11 << 20))
    place.start()
    elements = [{"device_id": "d", "metric_name": "m", "timestamp": n, "value": n} for n in range(100_000)]
    elements[500]["value"] = "bad"
    body = json.dumps(elements).encode().ljust(10 << 20)
    Publisher(place.mqtt_port).publish_all([("sensors/a", body), ("sensors/b", b"x" * (12 << 20)), *numbered(10)])
    wait_until(lambda: everything_acknowledged(place, 12), timeout_s=60, what="acknowledged")
    wait_until(lambda: len(place.stored()) == 99_999 + 10, timeout_s=60, what="stored")
    assert [(record.topic, record.code, len(record.payload)) for record in place.dead()] == [
        (b"sensors/a", "value", len(json.dumps(elements[500]))),
        (b"sensors/b", "size", 12 << 20),
    ]


def test_killed_again_and_again_in_full_flow_it_loses_nothing(make_place: MakePlace) -> None:
    place = make_place()
    bridge = place.start()
    publisher = threading.Thread(target=Publisher(place.mqtt_port).publish_all, args=(numbered(30_000), 200))
    publisher.start()
    for round_ in range(4):
        enough = min(30_000, place.count() + 500)
        wait_until(lambda enough=enough: place.count() >= enough, what="flow")
        kill(bridge)
        bridge = place.start_bridge()
        if round_ == 1:
            place.nodes[0].start_again()
    publisher.join()
    wait_until(lambda: place.count() == 30_000, timeout_s=60, what="all stored")
    assert set(place.stored()) == rows(30_000)
    assert place.dead() == []


def test_a_broker_restarted_with_acks_pending_sends_again_and_ends_without_debts(make_place: MakePlace) -> None:
    place = make_place(nodes=1, **PATIENT)
    mosquitto = place.start_mosquitto()
    bridge = place.start_bridge()
    place.wait_subscribed()
    place.nodes[0].holding = True
    Publisher(place.mqtt_port).publish_all(numbered(300))
    wait_until(lambda: place.mqtt()["pending_messages"] == 300, what="300 pending")
    mosquitto.terminate()
    mosquitto.wait()
    place.start_mosquitto()
    wait_until(lambda: place.mqtt()["connects"] == 2 and place.mqtt()["pending_messages"] == 300, what="sent again")
    place.nodes[0].holding = False
    wait_until(lambda: everything_acknowledged(place, 600), what="acknowledged")
    assert set(place.stored()) == rows(300)
    bridge.terminate()
    assert bridge.wait(10) == 0
    place.start_bridge()
    wait_until(lambda: place.mqtt().get("session") == "resumed", what="session resumed")
    Publisher(place.mqtt_port).publish_all(numbered(1, start=300))
    wait_until(lambda: place.count() == 301, what="the only message that was left")
    assert place.status()["messages"] <= 1


def test_pubacks_go_out_in_order_of_receipt_on_the_connection_they_belong_to(make_place: MakePlace) -> None:
    place = make_place(nodes=2, bridge__linger_ms="0", **PATIENT)
    broker = ScriptedBroker(place.mqtt_port)
    place.start_bridge()
    broker.accept()
    place.nodes[0].holding = place.nodes[1].holding = True
    broker.send(numbered(100), first_id=1)
    wait_until(lambda: place.mqtt().get("pending_messages") == 100, what="100 pending")
    place.nodes[1].holding = False
    wait_until(lambda: place.nodes[1].stored, what="one node stored")
    owners = [bool([row for row in place.nodes[1].stored if row[2] == n * 10**9]) for n in range(100)]
    before_first_held = owners.index(False)
    assert broker.acks(before_first_held) == list(range(1, before_first_held + 1))
    assert broker.no_more_acks()
    place.nodes[0].holding = False
    assert broker.acks(100 - before_first_held) == list(range(before_first_held + 1, 101))
    broker.close()


def test_a_late_ack_does_not_acknowledge_the_message_that_has_its_packet_id_now(make_place: MakePlace) -> None:
    place = make_place(nodes=1, bridge__linger_ms="0", **PATIENT)
    forbid_spools(place)
    broker = ScriptedBroker(place.mqtt_port)
    place.start_bridge()
    broker.accept()
    node = place.nodes[0]
    node.holding = True
    broker.send(numbered(5), first_id=1)
    wait_until(lambda: place.mqtt().get("pending_messages") == 5, what="5 pending")
    broker.hang_up()
    broker.accept()
    node.judge = lambda batch: None if all(row[2] < 5 * 10**9 for row in batch) else Ack(0, error=ERR_DISK, detail="no")
    broker.send(numbered(5, start=5), first_id=1)
    wait_until(lambda: place.status()["messages"] == 10, what="10 received")
    node.holding = False
    wait_until(lambda: set(place.stored()) == rows(5), what="the first 5 stored, late")
    assert broker.no_more_acks()
    node.judge = lambda batch: None
    assert broker.acks(5) == [1, 2, 3, 4, 5]
    assert set(place.stored()) == rows(10)
    broker.close()


def test_a_broker_without_v5_is_spoken_to_in_v3_1_1(make_place: MakePlace) -> None:
    for how in ("refuse", "hang up"):
        place = make_place(nodes=1)
        broker = ScriptedBroker(place.mqtt_port, v5=how)
        place.start_bridge()
        broker.accept()
        assert broker.session == (4, False, "bridge-under-test")
        broker.send(numbered(3), first_id=1)
        assert broker.acks(3) == [1, 2, 3]
        wait_until(lambda place=place: place.mqtt().get("protocol") == "3.1.1", what="status")
        broker.close()


def test_it_asks_for_a_session_that_lasts_and_for_many_messages_at_once(make_place: MakePlace) -> None:
    place = make_place(nodes=1)
    broker = ScriptedBroker(place.mqtt_port)
    place.start_bridge()
    broker.accept()
    assert broker.session == (5, False, "bridge-under-test")
    assert b"\x11\xff\xff\xff\xff" in broker.connect_packet, "session expiry: never"
    assert b"\x21\xff\xff" in broker.connect_packet, "receive maximum 65535"
    broker.close()


def test_with_the_embedded_broker_everything_arrives_too(make_place: MakePlace) -> None:
    place = make_place()
    broker = place.start_embedded_broker()
    bridge = place.start_bridge()
    place.wait_subscribed()
    Publisher(place.mqtt_port).publish_all(numbered(500))
    wait_until(lambda: place.count() == 500, what="stored")
    kill(bridge)
    Publisher(place.mqtt_port).publish_all(numbered(500, start=500))
    place.start_bridge()
    wait_until(lambda: place.count() == 1000, what="what was queued meanwhile is stored")
    assert set(place.stored()) == rows(1000)
    broker.terminate()
    broker.wait()
    place.start_embedded_broker()
    wait_until(lambda: place.mqtt()["connects"] == 2 and place.mqtt()["connected"], what="connected again")
    Publisher(place.mqtt_port).publish_all(numbered(100, start=1000))
    wait_until(lambda: place.count() == 1100, what="stored")


@pytest.mark.parametrize(("password", "welcome"), [("secret", True), ("wrong", False)])
def test_it_speaks_tls_and_gives_its_name(
    make_place: MakePlace, tmp_path: Path, password: str, welcome: bool
) -> None:
    cert, key = certificate(tmp_path)
    port = free_port()
    place = make_place(
        mqtt__url=f"mqtts://127.0.0.1:{port}", mqtt__ca_file=str(cert), mqtt__username="bob", mqtt__password=password
    )
    (tmp_path / "passwords").write_text(password_line("bob", "secret", b"0123456789ab"))
    place.start_mosquitto(
        "per_listener_settings true\n",
        f"listener {port} 127.0.0.1\ncafile {cert}\ncertfile {cert}\nkeyfile {key}\n"
        f"allow_anonymous false\npassword_file {tmp_path / 'passwords'}\n",
    )
    place.start_bridge()
    if not welcome:
        wait_until(lambda: "Not authorized" in place.log() or "Bad user name" in place.log(), what="refusal logged")
        return
    place.wait_subscribed()
    big = json.dumps([{"device_id": "big", "metric_name": "m", "timestamp": n, "value": n} for n in range(5000)])
    Publisher(place.mqtt_port).publish_all([("sensors/big", big.encode()), *numbered(3000)])
    wait_until(lambda: everything_acknowledged(place, 3001), what="acknowledged")
    assert set(place.stored()) == rows(3000) | {("big", "m", n * 10**9, float(n)) for n in range(5000)}


def test_while_it_does_not_read_it_still_tells_the_broker_that_it_lives(make_place: MakePlace) -> None:
    place = make_place(nodes=1, bridge__pending_bytes=str(1 << 20), mqtt__keepalive_s="5", **PATIENT)
    broker = ScriptedBroker(place.mqtt_port)
    place.start_bridge()
    broker.accept()
    place.nodes[0].holding = True
    bodies = [[{"device_id": "d", "metric_name": "m", "timestamp": n, "value": n}] * 8000 for n in range(10)]
    messages = [("sensors/d", json.dumps(body).encode()) for body in bodies]
    sender = threading.Thread(target=broker.send, args=(messages, 1))
    sender.start()
    wait_until(lambda: not place.mqtt()["reading"], what="reading stops")
    assert [broker.next_packet() for _ in range(3)] == [0xC0] * 3, "pings, over more than one keepalive"
    place.nodes[0].holding = False
    assert broker.acks(10) == list(range(1, 11))
    sender.join()
    assert place.mqtt()["connects"] == 1
    broker.close()


def test_a_refused_subscription_is_logged_and_visible(make_place: MakePlace) -> None:
    place = make_place(nodes=1)
    broker = ScriptedBroker(place.mqtt_port, grant=0x87)
    place.start_bridge()
    broker.accept()
    wait_until(lambda: place.mqtt()["subscriptions"] == {"sensors/#": -1}, what="refusal in status")
    assert "subscription refused" in place.log()
    broker.close()


def test_one_dead_node_does_not_keep_the_others_points_from_being_stored(make_place: MakePlace) -> None:
    place = make_place(nodes=2)
    place.start()
    place.nodes[0].stop()
    Publisher(place.mqtt_port).publish_all(numbered(2000))
    wait_until(lambda: place.status()["messages"] == 2000, what="received")
    expected = {row for row in rows(2000) if owner_of(place, row) == "n1"}
    wait_until(lambda: place.nodes[1].count == len(expected), what="the living node stores its own")
    wait_until(lambda: place.status()["owners"]["n0"]["up"] is False, what="the dead one is known")
    place.nodes[0].start_again()
    wait_until(lambda: set(place.stored()) == rows(2000), what="the rest when it is back")


def test_holding_as_much_as_allowed_it_stops_reading_and_goes_on_when_owners_are_back(make_place: MakePlace) -> None:
    place = make_place(nodes=2, bridge__pending_bytes=str(1 << 20))
    forbid_spools(place)
    place.start()
    place.nodes[0].stop()
    Publisher(place.mqtt_port).publish_all(numbered(20_000))
    wait_until(lambda: place.mqtt()["reading"] is False, what="reading stops")
    received = place.status()["messages"]
    assert received < 20_000
    assert place.status()["memory_bytes"] < 2 << 20
    place.nodes[0].start_again()
    wait_until(lambda: set(place.stored()) == rows(20_000), timeout_s=60, what="everything stored")
    wait_until(lambda: place.mqtt()["reading"] is True, what="reading goes on")


def test_on_sigterm_it_brings_in_what_it_has_and_leaves_in_time(make_place: MakePlace) -> None:
    place = make_place(nodes=1, bridge__linger_ms="1000")
    bridge = place.start()
    Publisher(place.mqtt_port).publish_all(numbered(10))
    wait_until(lambda: place.status()["messages"] == 10, what="received")
    bridge.terminate()
    assert bridge.wait(10) == 0
    assert set(place.stored()) == rows(10)
    assert "stopped" in place.log()


def test_on_sigterm_with_a_dead_owner_it_still_leaves_in_time_and_loses_nothing(make_place: MakePlace) -> None:
    place = make_place(nodes=1)
    bridge = place.start()
    place.nodes[0].holding = True
    Publisher(place.mqtt_port).publish_all(numbered(10))
    wait_until(lambda: place.nodes[0].held, what="received")
    began = time.monotonic()
    bridge.send_signal(signal.SIGTERM)
    assert bridge.wait(10) == 0
    assert time.monotonic() - began < 6
    place.nodes[0].start_again()
    place.nodes[0].holding = False
    place.start_bridge()
    wait_until(lambda: set(place.stored()) == rows(10), what="stored after the restart")


def test_a_second_bridge_of_the_same_id_is_refused_in_one_line(make_place: MakePlace) -> None:
    place = make_place(nodes=1)
    place.start()
    second = place.start_bridge(stdout=subprocess.DEVNULL)
    assert second.wait(20) == 1
    assert "is in use by another process" in place.log().splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--broker", "http://x"), "want mqtt://HOST:PORT, or mqtts://HOST:PORT for TLS"),
        (("--id", "a b"), "bridge.id"),
        (("--broker", "mqtts://127.0.0.1:1"), "mqtt.ca_file"),
    ],
)
def test_a_wrong_setting_ends_it_with_one_line(make_place: MakePlace, arguments: tuple[str, ...], words: str) -> None:
    place = make_place(nodes=1, **({"mqtt__ca_file": "missing.pem"} if "mqtts" in arguments[1] else {}))
    assert place.start_bridge(*arguments).wait(20) == 1
    assert words in place.log().splitlines()[-1]


def test_it_waits_for_an_absent_broker_and_for_one_that_comes_back(make_place: MakePlace) -> None:
    place = make_place(nodes=1)
    place.start_bridge()
    wait_until(lambda: "broker unreachable" in place.log(), what="said so")
    for round_ in range(2):
        mosquitto = place.start_mosquitto()
        wait_until(lambda n=round_: place.mqtt()["connects"] == n + 1 and place.mqtt()["connected"], what="connected")
        mosquitto.terminate()
        mosquitto.wait()
        wait_until(lambda: not place.mqtt()["connected"], what="disconnection seen")


def owner_of(place: Place, row: Row) -> str:
    ring = FileStore(place.directory / "ring.json").load()
    assert ring is not None
    return ring.owners(partition_of(series_key(row[0], row[1]), ring.partitions))[0].id
