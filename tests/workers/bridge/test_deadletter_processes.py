"""The dead letter of a bridge that runs: kept once whatever dies, full and purged, replayed by tools/deadletter."""

import json
import os
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.protocol import Ack
from tests.support import ROOT, wait_until
from tests.workers.bridge.harness import PATIENT, Place, Publisher, Row, kill, numbered

MakePlace = Callable[..., Place]

BAD = [(f"sensors/bad{n}", b'{"device_id":"pump","metric_name":"m","timestamp":%d}' % n) for n in range(50)]


def payloads(place: Place) -> Counter[bytes]:
    """How often each payload lies in the dead letter."""
    return Counter(record.payload for record in place.dead())


def once(messages: list[tuple[str, bytes]]) -> Counter[bytes]:
    return Counter(body for _, body in messages)


def tool(place: Place, *arguments: str, code: int | None = 0, **settings: str) -> Any:
    """tools/deadletter with --json; what it printed. settings: as the bridge has them in its environment."""
    environment = {f"MINITRUE__{name.upper()}": value for name, value in settings.items()}
    done = subprocess.run(
        [ROOT / "tools" / "deadletter", *arguments, "--config", place.conf, "--json"],
        env=os.environ | environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert code is None or done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return json.loads(done.stdout)


def nothing_pending(place: Place, messages: int) -> bool:
    status = place.status()
    return bool(status["messages"] >= messages and status["mqtt"]["pending_messages"] == 0)


def start_again(place: Place) -> subprocess.Popen[Any]:
    """Another process of the bridge, subscribed; from now on the status is its own."""
    before = max((node.heard.started_s for node in place.nodes if node.heard), default=0.0)
    bridge = place.start_bridge()
    wait_until(lambda: max(node.heard.started_s for node in place.nodes if node.heard) > before, what="a first beat")
    place.wait_subscribed()
    return bridge


def refuse(reason: str) -> Callable[[list[Row]], Ack]:
    return lambda rows: Ack(0, [(at, reason) for at in range(len(rows))])


def test_what_is_delivered_again_because_the_bridge_was_killed_is_kept_once(make_place: MakePlace) -> None:
    place = make_place(nodes=1, **PATIENT)
    bridge = place.start()
    place.nodes[0].holding = True
    Publisher(place.mqtt_port).publish_all([*numbered(1), *BAD])
    wait_until(lambda: len(place.dead()) == len(BAD), what="kept")
    for _ in range(2):
        kill(bridge)
        bridge = start_again(place)
        wait_until(lambda: place.status()["mqtt"]["pending_messages"] == 1 + len(BAD), what="delivered again")
    place.nodes[0].holding = False
    wait_until(lambda: nothing_pending(place, 1 + len(BAD)), what="acknowledged")
    assert payloads(place) == once(BAD)
    assert place.count() == 1


def test_what_is_delivered_again_because_the_connection_was_lost_is_kept_once(make_place: MakePlace) -> None:
    place = make_place(nodes=1, **PATIENT)
    mosquitto = place.start_mosquitto()
    place.start_bridge()
    place.wait_subscribed()
    place.nodes[0].holding = True
    Publisher(place.mqtt_port).publish_all([*numbered(1), *BAD])
    wait_until(lambda: len(place.dead()) == len(BAD), what="kept")
    mosquitto.terminate()
    mosquitto.wait(20)
    place.start_mosquitto()
    place.wait_subscribed()
    wait_until(lambda: place.status()["messages"] == 2 * (1 + len(BAD)), what="delivered again")
    place.nodes[0].holding = False
    wait_until(lambda: nothing_pending(place, 2), what="acknowledged")
    assert payloads(place) == once(BAD)


def test_a_row_that_a_node_refuses_again_and_again_is_kept_once(make_place: MakePlace) -> None:
    place = make_place(nodes=1, **PATIENT)
    bridge = place.start()
    verdicts: list[int] = []

    def judge(rows: list[Row]) -> Ack:
        verdicts.append(len(rows))
        good = [at for at, row in enumerate(rows) if row[0] == "d0"]
        return Ack(len(good), [(at, "too many series") for at in range(len(rows)) if at not in good])

    place.nodes[0].judge = judge
    messages = numbered(40, devices=4)
    Publisher(place.mqtt_port).publish_all(messages)
    wait_until(lambda: nothing_pending(place, 40), what="acknowledged")
    kill(bridge)
    start_again(place)
    Publisher(place.mqtt_port).publish_all(messages)
    wait_until(lambda: nothing_pending(place, 40), what="acknowledged")
    assert sum(verdicts) == 80
    records = place.dead()
    assert Counter(json.loads(record.payload)["timestamp"] for record in records) == {
        n * 10**9: 1 for n in range(40) if n % 4
    }
    assert {(record.code, record.reason) for record in records} == {("storage", "too many series")}
    assert Counter(record.device for record in records) == {"d1": 10, "d2": 10, "d3": 10}
    letters = place.status()["dead_letter"]
    assert letters["stored"] == {}, "by this process"


def test_full_it_withholds_pubacks_says_so_and_goes_on_after_a_purge(make_place: MakePlace) -> None:
    limits = {"bridge__dead_letter_bytes": str(1 << 20), "bridge__dead_letter_file_bytes": str(1 << 18)}
    place = make_place(nodes=1, **limits)
    place.start()
    large = [(f"sensors/{n}", b"%d " % n + bytes(20_000)) for n in range(150)]
    Publisher(place.mqtt_port).publish_all(large)
    wait_until(lambda: "full: " in place.status().get("dead_letter", {}).get("error", ""), what="full")
    assert "tools/deadletter purge" in place.log()
    seen: Counter[bytes] = Counter()
    rounds = 0
    while len(seen) < 150:
        rounds += 1
        wait_until(lambda: is_full(place) or nothing_pending(place, 150), what="full again, or all kept")
        status = place.status()
        held = payloads(place)
        acked = status["messages"] - status["mqtt"]["pending_messages"]
        assert acked <= len(seen | held), "acknowledged is only what is kept"
        listed = tool(place, "list", code=None, **limits)
        assert listed["bytes"] < (1 << 20) + 21_000
        assert (listed["records"], listed["ok"]) == (len(held), listed["bytes"] < 1 << 20)
        seen += held
        assert tool(place, "purge", "--all", "--yes")["records"] == len(held)
    assert rounds >= 3
    assert seen == once(large)
    wait_until(lambda: nothing_pending(place, 150), what="acknowledged")
    assert place.status()["dead_letter"]["error"] == ""


def is_full(place: Place) -> bool:
    """Whether records wait, and the last one that may be written is."""
    return "full: " in place.status()["dead_letter"]["error"] and sum(
        path.stat().st_size for path in (place.directory / "bridge" / "bridge1" / "deadletter").glob("*.dead")
    ) >= 1 << 20


def test_refused_for_its_configuration_then_mended_restarted_and_replayed_it_is_stored(make_place: MakePlace) -> None:
    place = make_place(nodes=1)
    bridge = place.start()
    numbers = [(f"sensors/room{n}/temperature", b"%d.5" % n) for n in range(20)]
    Publisher(place.mqtt_port).publish_all([*numbers, ("sensors/room1/temperature", b"warm")])
    wait_until(lambda: nothing_pending(place, 21), what="acknowledged")
    before = place.dead()
    assert len(before) == 21
    dry = tool(place, "replay", "--dry-run", code=1)
    assert (dry["records"], dry["points"]) == (21, 0)
    with place.conf.open("a") as conf:
        conf.write(
            '[[mqtt.subscriptions]]\nfilter = "sensors/#"\nformat = "number"\n'
            'template = "sensors/{device_id}/{metric_name}"\n'
        )
    dry = tool(place, "replay", "--dry-run", code=1)
    assert (dry["records"], dry["points"], sum(dry["refused"].values())) == (21, 20, 1)
    assert place.count() == 0
    bridge.terminate()
    assert bridge.wait(10) == 0
    start_again(place)
    done = tool(place, "replay", code=1)
    assert (done["records"], done["points"], done["done"]) == (21, 20, True)
    arrived = {record.payload: record.time_ns for record in before}
    assert set(place.stored()) == {
        (f"room{n}", "temperature", arrived[b"%d.5" % n], n + 0.5) for n in range(20)
    }, "their time is that of their arrival"
    assert place.dead() == before, "what was refused again stays as it was, and so do the others"
    assert tool(place, "replay", "--topic", "sensors/room3/+")["points"] == 1
    assert place.count() == 20
    status = wait_until(lambda: (told := place.status()["replay"])["records"] == 22 and told, what="it to tell of both")
    assert (status["points"], status["error"]) == (21, "")


def test_rows_that_a_node_refused_are_stored_by_a_replay_as_they_were(make_place: MakePlace) -> None:
    place = make_place(nodes=1)
    place.start()
    place.nodes[0].judge = refuse("too many series")
    point = {"device_id": "d", "metric_name": "m", "timestamp": 1_700_000_000_123_456_789, "timestamp_unit": "ns"}
    bodies = [json.dumps(point | {"value": value}).encode() for value in (0.1, -0.0, 5e-324)]
    Publisher(place.mqtt_port).publish_all([("sensors/x", body) for body in bodies])
    wait_until(lambda: nothing_pending(place, 3), what="acknowledged")
    assert len(place.dead()) == 3
    again = tool(place, "replay", "--code", "storage")
    assert (again["points"], place.count(), len(place.dead())) == (3, 0, 3), "refused again, and not kept twice"
    place.nodes[0].judge = lambda rows: None
    assert tool(place, "replay", "--code", "storage")["points"] == 3
    stored = sorted(value.hex() for *_, value in place.stored())
    assert stored == sorted(value.hex() for value in (0.1, -0.0, 5e-324))
    assert {time_ns for _, _, time_ns, _ in place.stored()} == {1_700_000_000_123_456_789}


def test_a_bridge_killed_in_the_middle_of_a_replay_brings_it_to_its_end(make_place: MakePlace) -> None:
    place = make_place(nodes=1, ingest__max_future_s="1", **PATIENT)
    bridge = place.start()
    late = [
        (f"sensors/{n}", b'{"device_id":"d%d","metric_name":"m","timestamp":4000000000,"value":%d}' % (n, n))
        for n in range(3000)
    ]
    Publisher(place.mqtt_port).publish_all([*late, *BAD])
    wait_until(lambda: nothing_pending(place, len(late) + len(BAD)), what="acknowledged")
    before = place.dead()
    kill(bridge)
    handed = tool(place, "replay", code=1)
    assert (handed["records"], handed["done"]) == (len(late) + len(BAD), False)
    assert tool(place, "list", code=1)["replays_waiting"] == [handed["job"]]
    mended = {**PATIENT, "ingest__max_future_s": "4000000000"}
    place.settings |= mended
    place.nodes[0].holding = True
    bridge = start_again(place)
    wait_until(lambda: place.nodes[0].held, what="under way")
    kill(bridge)
    place.nodes[0].holding = False
    place.start_bridge()
    wait_until(lambda: tool(place, "list", code=None)["replays_waiting"] == [], what="done")
    assert set(place.stored()) == {(f"d{n}", "m", 4_000_000_000 * 10**9, float(n)) for n in range(3000)}
    assert place.dead() == before


def test_live_messages_flow_beside_a_replay(make_place: MakePlace) -> None:
    place = make_place(nodes=1, ingest__max_future_s="1")
    bridge = place.start()
    late = [
        (f"sensors/{n}", b'{"device_id":"late%d","metric_name":"m","timestamp":4000000000,"value":1}' % n)
        for n in range(5000)
    ]
    Publisher(place.mqtt_port).publish_all(late)
    wait_until(lambda: nothing_pending(place, len(late)), what="acknowledged")
    bridge.terminate()
    assert bridge.wait(10) == 0
    place.settings |= {"ingest__max_future_s": "4000000000"}
    start_again(place)
    assert tool(place, "replay", "--no-wait")["done"] is False
    Publisher(place.mqtt_port).publish_all(numbered(5000))
    wait_until(lambda: place.count() == 10_000, what="both stored")
    wait_until(lambda: not list((replay_folder(place)).glob("*/*.dead")), what="the replay done")


def replay_folder(place: Place) -> Path:
    return place.directory / "bridge" / "bridge1" / "replay"
