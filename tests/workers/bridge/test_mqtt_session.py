"""Sessions, on real brokers: shared, changed, taken over, expired, silent, and restarted under pending acks."""

import signal
import time
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.support import wait_until
from tests.workers.bridge.harness import HOLD, PATIENT, Place, Publisher, kill, numbered, rows
from tests.workers.bridge.scripted import ScriptedBroker

MakePlace = Any
KINDS = ["mosquitto", "embedded"]


def start_broker(place: Place, kind: str) -> Any:
    return place.start_mosquitto() if kind == "mosquitto" else place.start_embedded_broker()


def point(device: str, at: int) -> bytes:
    return b'{"device_id":"%s","metric_name":"m","timestamp":%d,"value":1}' % (device.encode(), at)


def subscribed(place: Place, bridge: str) -> bool:
    mqtt = place.status_of(bridge)["mqtt"]
    return bool(mqtt["connected"] and None not in mqtt["subscriptions"].values())


# Shared subscriptions.


def test_two_bridges_of_a_share_group_split_the_load_and_store_each_point_once(make_place: MakePlace) -> None:
    place = make_place(mqtt__share_group="bridges", mqtt__client_id="")
    place.start_mosquitto()
    for name in ("b1", "b2"):
        place.start_bridge("--id", name)
    wait_until(lambda: all(subscribed(place, name) for name in ("b1", "b2")), what="both subscribed")
    Publisher(place.mqtt_port).publish_all(numbered(4000))
    wait_until(lambda: place.count() == 4000, what="stored")
    assert max(place.stored().values()) == 1
    taken = [wait_until(lambda name=name: place.status_of(name)["messages"], what=name) for name in ("b1", "b2")]
    wait_until(lambda: sum(place.status_of(name)["messages"] for name in ("b1", "b2")) == 4000, what="all told")
    assert min(taken) > 500


@pytest.mark.parametrize("kind", KINDS)
def test_a_special_filter_before_a_general_one_brings_each_message_once(make_place: MakePlace, kind: str) -> None:
    special = '{filter="t/special", format="number", device_id="s", metric_name="m"}'
    place = make_place(nodes=1, mqtt__subscriptions=f'[{special}, {{filter="t/#"}}]')
    start_broker(place, kind)
    place.start_bridge("--id", "b1")
    wait_until(lambda: subscribed(place, "b1"), what="subscribed")
    general = [b'{"device_id":"g","metric_name":"m","value":%d}' % at for at in range(10)]
    special_and_general = [("t/special", b"%d" % at) for at in range(10)] + [("t/general", each) for each in general]
    Publisher(place.mqtt_port).publish_all(special_and_general)
    wait_until(lambda: place.count() >= 20, what="stored")
    assert place.count() == 20
    assert wait_until(lambda: place.status_of("b1")["messages"], what="it to tell") == 20
    assert place.status_of("b1")["mqtt"]["subscriptions"] == {"t/special": 1, "t/#": 1}


def test_what_a_dead_member_had_not_acknowledged_waits_for_its_restart(make_place: MakePlace) -> None:
    place = make_place(nodes=1, mqtt__share_group="bridges", mqtt__client_id="", **PATIENT)
    place.start_mosquitto()
    children = {name: place.start_bridge("--id", name) for name in ("b1", "b2")}
    wait_until(lambda: all(subscribed(place, name) for name in children), what="both subscribed")
    place.nodes[0].holding = True
    Publisher(place.mqtt_port).publish_all(numbered(1000))
    wait_until(lambda: sum(len(held) for _, held in place.nodes[0].held) == 1000, what="everything at the node")
    kill(children["b1"])
    theirs = {row for header, held in place.nodes[0].held if header.sender == "b1" for row in held}
    assert 0 < len(theirs) < 1000
    place.nodes[0].start_again()
    place.nodes[0].holding = False
    Publisher(place.mqtt_port).publish_all(numbered(1000, start=1000))
    wait_until(lambda: place.status_of("b2")["messages"] > 600, what="the living one goes on")
    wait_until(lambda: not place.status_of("b2")["mqtt"]["pending_messages"], what="and stores what it gets")
    assert set(place.stored()) & theirs == set()
    assert len(set(place.stored()) & rows(1000, start=1000)) > 100
    place.start_bridge("--id", "b1")
    wait_until(lambda: set(place.stored()) == rows(2000), what="the rest after its restart")


def test_the_embedded_broker_shares_nothing_and_the_bridge_says_so(make_place: MakePlace) -> None:
    place = make_place(nodes=1, mqtt__share_group="bridges")
    place.start_embedded_broker()
    place.start_bridge()
    wait_until(lambda: place.mqtt()["subscriptions"] == {"sensors/#": -1}, what="refused")
    status = place.status()
    assert status["healthy"] is False
    assert status["unhealthy"] == ["the broker refuses the subscription '$share/bridges/sensors/#'"]


# Changed subscriptions.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("end", ["terminated", "killed"])
def test_a_filter_that_the_configuration_has_lost_is_unsubscribed(make_place: MakePlace, kind: str, end: str) -> None:
    place = make_place(nodes=1, mqtt__subscriptions='[{filter="a/#"}, {filter="b/#"}]')
    start_broker(place, kind)
    bridge = place.start_bridge()
    place.wait_subscribed()
    bridge.send_signal(signal.SIGTERM if end == "terminated" else signal.SIGKILL)
    bridge.wait()
    place.settings["mqtt__subscriptions"] = '[{filter="b/#"}, {filter="c/#"}]'
    bridge = place.start_bridge()
    wait_until(lambda: set(place.mqtt()["subscriptions"].items()) == {("b/#", 1), ("c/#", 1)}, what="subscribed")
    assert place.mqtt()["session"] == "resumed"
    notes = place.directory / "bridge" / "bridge1" / "subscriptions.json"
    wait_until(lambda: "a/#" not in notes.read_text(), what="unsubscribed")
    Publisher(place.mqtt_port).publish_all([(f"{name}/x", point(name, 1)) for name in "abc"])
    wait_until(lambda: place.count() == 2, what="stored")
    kill(bridge)
    Publisher(place.mqtt_port).publish_all([(f"{name}/x", point(name, 2)) for name in "abc"])
    place.start_bridge()
    wait_until(lambda: place.count() == 4, what="what was queued meanwhile")
    assert {(device, time_ns // 10**9) for device, _, time_ns, _ in place.stored()} == {
        (device, at) for device in "bc" for at in (1, 2)
    }
    assert place.dead() == []


def test_leaving_a_share_group_unsubscribes_the_shared_filter(make_place: MakePlace) -> None:
    place = make_place(nodes=1, mqtt__share_group="g")
    bridge = place.start()
    bridge.terminate()
    bridge.wait()
    place.settings["mqtt__share_group"] = ""
    place.start_bridge()
    notes = place.directory / "bridge" / "bridge1" / "subscriptions.json"
    wait_until(lambda: "$share" not in notes.read_text() and "sensors/#" in notes.read_text(), what="unsubscribed")
    Publisher(place.mqtt_port).publish_all(numbered(100))
    wait_until(lambda: place.count() == 100, what="stored")
    wait_until(lambda: place.status()["messages"] == 100, what="each came once")


# Silence.


def test_a_connected_bridge_that_hears_nothing_says_that_it_is_unhealthy(make_place: MakePlace) -> None:
    place = make_place(
        nodes=1, mqtt__silence_s="0.6", mqtt__subscriptions='[{filter="sensors/#"}, {filter="quiet/#"}]'
    )
    place.start()
    wait_until(lambda: place.status()["healthy"] is False, what="unhealthy")
    (reason,) = place.status()["unhealthy"]
    assert reason.startswith("connected, but no message for ")
    assert reason.endswith("(mqtt.silence_s = 0.6)")
    stop = time.monotonic() + 10
    while not place.status()["healthy"]:
        assert time.monotonic() < stop
        Publisher(place.mqtt_port).publish_all(numbered(1))
    received = place.mqtt()["received"]
    assert received["sensors/#"]["messages"] >= 1
    assert received["sensors/#"]["last_message_s_ago"] < 2
    assert (received["quiet/#"]["messages"], received["quiet/#"]["last_message_s_ago"]) == (0, None)
    wait_until(lambda: place.status()["healthy"] is False, what="unhealthy again")


def test_a_bridge_whose_owners_hold_everything_up_does_not_blame_the_broker(make_place: MakePlace) -> None:
    place = make_place(nodes=1, mqtt__silence_s="0.5", mqtt__receive_maximum="10", **PATIENT)
    place.start()
    place.nodes[0].holding = True
    Publisher(place.mqtt_port).publish_all(numbered(20))
    wait_until(lambda: place.mqtt()["pending_messages"] == 10, what="as many as allowed")
    wait_until(lambda: (place.mqtt()["last_message_s_ago"] or 0) > 1.0, what="silence")
    assert place.status()["healthy"] is True
    place.nodes[0].holding = False
    wait_until(lambda: place.count() == 20, what="stored")


# Taken over, expired.


def test_two_bridges_with_one_client_id_say_so_and_do_not_fight_in_a_tight_loop(make_place: MakePlace) -> None:
    place = make_place(nodes=1, mqtt__reconnect_max_s="1.0")
    place.start_mosquitto()
    began = time.monotonic()
    place.start_bridge("--id", "b1")
    place.wait_subscribed()
    place.start_bridge("--id", "b2")
    published = 0
    while not all(contested(place, name) for name in ("b1", "b2")):
        assert time.monotonic() < began + 60
        Publisher(place.mqtt_port).publish_all(numbered(20, start=published))
        published += 20
    assert place.log().count("the broker keeps hanging up on us") >= 2
    most = 5 + (time.monotonic() - began) / 0.5  # waits of 0.2 s, 0.4 s, 0.8 s, 1 s, 1 s, ..., or half of that
    assert place.status_of("b1")["mqtt"]["connects"] < most
    wait_until(lambda: place.count() == published, what="nothing is lost over it")


def contested(place: Place, bridge: str) -> bool:
    return any("must be ours alone" in reason for reason in place.status_of(bridge).get("unhealthy", []))


def test_told_that_its_session_was_taken_over_it_says_so_and_waits_long(make_place: MakePlace) -> None:
    place = make_place(nodes=1, mqtt__reconnect_max_s="1.0")
    broker = ScriptedBroker(place.mqtt_port)
    place.start_bridge()
    broker.accept()
    broker.hang_up(0x8E)
    hung_up = time.monotonic()
    wait_until(lambda: contested(place, "bridge1"), what="it")
    assert place.mqtt()["taken_over"] == 1
    assert "another client took our session over; client id 'bridge-under-test' must be ours alone" in place.log()
    broker.accept()
    assert time.monotonic() - hung_up > 0.5
    broker.close()


def test_a_session_that_somebody_took_and_threw_away_is_said_to_be_lost(make_place: MakePlace) -> None:
    place = make_place(nodes=1)
    place.start()
    throw_away(place.mqtt_port, "bridge-under-test")
    wait_until(lambda: place.mqtt()["connects"] == 2 and place.mqtt()["connected"], what="connected again")
    assert (place.mqtt()["session"], place.mqtt()["sessions_lost"]) == ("new", 1)
    assert "the broker has lost our session" in place.log()
    place.wait_subscribed()
    Publisher(place.mqtt_port).publish_all(numbered(10))
    wait_until(lambda: place.count() == 10, what="stored")


def throw_away(port: int, client_id: str) -> None:
    """Take a session over with a clean one, and leave."""
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id, clean_session=True)
    client.on_connect = lambda *_: client.disconnect()
    client.connect("127.0.0.1", port)
    client.loop_forever()


def shorten(port: int, client_id: str) -> None:
    """Make a session of mosquitto's expire one second from now."""
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id, protocol=paho.MQTTv5)
    properties = Properties(PacketTypes.CONNECT)
    properties.SessionExpiryInterval = 1
    client.on_connect = lambda *_: client.disconnect()
    client.connect("127.0.0.1", port, clean_start=False, properties=properties)
    client.loop_forever()


def test_after_its_session_expired_it_begins_a_new_one_and_says_what_that_means(make_place: MakePlace) -> None:
    place = make_place(nodes=1)
    place.start_mosquitto("sys_interval 1\n")
    bridge = place.start_bridge()
    place.wait_subscribed()
    bridge.terminate()
    bridge.wait()
    expired: list[bytes] = []
    watcher = paho.Client(CallbackAPIVersion.VERSION2, "watcher")
    watcher.on_message = lambda _client, _data, message: expired.append(message.payload)
    watcher.connect("127.0.0.1", place.mqtt_port)
    watcher.subscribe("$SYS/broker/clients/expired")
    watcher.loop_start()
    shorten(place.mqtt_port, "bridge-under-test")
    wait_until(lambda: b"1" in expired, what="the session expires")
    watcher.loop_stop()
    place.start_bridge()
    wait_until(lambda: place.mqtt().get("sessions_lost") == 1, what="a new session")
    place.wait_subscribed()
    assert place.mqtt()["session"] == "new"
    assert "the broker has lost our session" in place.log()
    Publisher(place.mqtt_port).publish_all(numbered(10))
    wait_until(lambda: place.count() == 10, what="stored")


def test_a_broker_that_keeps_sessions_for_less_than_we_asked_is_shown(make_place: MakePlace) -> None:
    place = make_place(nodes=1)
    broker = ScriptedBroker(place.mqtt_port, properties=b"\x11\0\0\x0e\x10")
    place.start_bridge()
    broker.accept()
    wait_until(lambda: place.mqtt().get("session_expiry_s") == 3600, what="status")
    assert "the broker drops our session" in place.log()
    broker.close()


# Restarts of the broker.


@pytest.mark.parametrize("kind", ["mosquitto", "mosquitto without persistence", "embedded"])
def test_no_late_puback_acknowledges_what_has_its_packet_id_after_a_restart(make_place: MakePlace, kind: str) -> None:
    place = make_place(nodes=1, **PATIENT)
    embedded = kind == "embedded"

    def start() -> Any:
        return place.start_embedded_broker() if embedded else place.start_mosquitto()

    broker = start()
    bridge = place.start_bridge()
    place.wait_subscribed()
    node = place.nodes[0]
    node.holding = True
    Publisher(place.mqtt_port).publish_all(numbered(200))
    wait_until(lambda: place.mqtt()["pending_messages"] == 200, what="200 pending")
    broker.send_signal(signal.SIGTERM)
    broker.wait()
    if "without" in kind:
        (place.directory / "broker" / "mosquitto.db").unlink()
    broker = start()
    wait_until(lambda: place.mqtt()["connects"] == 2 and place.mqtt()["connected"], what="connected again")
    place.wait_subscribed()
    first, again = rows(200), 0 if "without" in kind else 200
    wait_until(lambda: sum(len(held) for _, held in node.held) == 200 + again, what="the first ones, perhaps again")
    Publisher(place.mqtt_port).publish_all(numbered(200, start=200))
    wait_until(lambda: place.mqtt()["pending_messages"] == again + 200, what="all that the broker knows of, pending")
    node.judge = lambda batch: None if set(batch) <= first else HOLD
    node.holding = False
    wait_until(lambda: set(place.stored()) == first, what="what came before the restart is stored, late")
    wait_until(lambda: place.mqtt()["pending_messages"] == 200, what="the others wait")
    kill(bridge)
    node.start_again()
    node.judge = lambda batch: None
    place.start_bridge()
    wait_until(lambda: set(place.stored()) == rows(400), what="the broker had kept every one of the others")


@pytest.mark.parametrize("v5", ["", "refuse"])
def test_hung_up_on_again_and_again_it_guesses_why(make_place: MakePlace, v5: str) -> None:
    place = make_place(nodes=1, mqtt__reconnect_max_s="0.4")
    broker = ScriptedBroker(place.mqtt_port, v5=v5)
    place.start_bridge()
    for _ in range(3):
        broker.accept()
        broker.hang_up()
    wait_until(lambda: contested(place, "bridge1"), what="it")
    assert "the broker keeps hanging up on us" in place.log()
    broker.close()
