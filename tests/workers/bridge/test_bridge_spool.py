"""A real bridge on a real broker whose storage nodes are away: spooled, acknowledged, and stored when they are back."""

import signal
from typing import Any

from common.ringstore import FileStore, Mark
from tests.support import wait_until
from tests.workers.bridge.harness import PATIENT, Place, Publisher, kill, numbered, rows
from tests.workers.bridge.test_bridge import everything_acknowledged


def marks(place: Place) -> frozenset[Mark]:
    return FileStore(place.directory / "ring.json").marks()


def owner(place: Place) -> Any:
    """How the first node is, as the other one was told."""
    return place.nodes[1].heard.status["owners"]["n0"]


def test_while_a_node_is_dead_its_points_are_spooled_and_acknowledged_and_stored_when_it_is_back(
    make_place: Any,
) -> None:
    place = make_place(nodes=2)
    place.start()
    place.nodes[0].stop()
    wait_until(lambda: owner(place)["state"] == "down", what="down")
    Publisher(place.mqtt_port).publish_all(numbered(2000))
    wait_until(lambda: everything_acknowledged(place, 2000), what="acknowledged")
    assert 0 < place.count() < 2000
    assert {mark.node for mark in marks(place)} == {"n0"}
    place.nodes[0].start_again()
    wait_until(lambda: set(place.stored()) == rows(2000), timeout_s=60, what="everything stored")
    wait_until(lambda: owner(place)["state"] == "up" and not marks(place), what="drained, and the mark gone")


def test_a_bridge_that_is_killed_with_points_in_its_spool_drains_them_when_it_starts_again(make_place: Any) -> None:
    place = make_place(nodes=2)
    bridge = place.start()
    place.nodes[0].stop()
    wait_until(lambda: owner(place)["state"] == "down", what="down")
    Publisher(place.mqtt_port).publish_all(numbered(500))
    wait_until(lambda: everything_acknowledged(place, 500), what="acknowledged")
    kill(bridge)
    place.nodes[0].start_again()
    place.start_bridge()
    wait_until(lambda: set(place.stored()) == rows(500), timeout_s=60, what="everything stored")
    wait_until(lambda: not marks(place), what="the mark gone")


def test_what_a_node_does_not_ack_when_the_bridge_is_stopped_is_in_its_spool(make_place: Any) -> None:
    place = make_place(nodes=1, **PATIENT)
    bridge = place.start()
    place.nodes[0].holding = True
    Publisher(place.mqtt_port).publish_all(numbered(100))
    wait_until(lambda: place.status()["messages"] == 100, what="received")
    bridge.send_signal(signal.SIGTERM)
    assert bridge.wait(15) == 0
    assert [mark.node for mark in marks(place)] == ["n0"]
    place.nodes[0].holding = False
    place.nodes[0].held.clear()
    place.start_bridge()
    wait_until(lambda: set(place.stored()) == rows(100), timeout_s=60, what="everything stored")
