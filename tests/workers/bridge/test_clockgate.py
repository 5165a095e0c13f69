"""The clock gate: closed at start while the clock is before what is known, open for good after that."""

from pathlib import Path

import pytest

from tests.support import wait_until
from tests.workers.bridge.conftest import MakePlace
from tests.workers.bridge.harness import Publisher, numbered, rows
from workers.bridge.clockgate import FILE_NAME, ClockGate

S = 10**9
NOW_NS = 1_800_000_000 * S


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The wall clock: one reading that a test sets."""
    reading = [NOW_NS]
    monkeypatch.setattr("common.clock.wall_ns", lambda: reading[0])
    return reading


@pytest.mark.parametrize(
    ("content", "is_open"),
    [
        (None, True),
        (b"", True),
        (b"no number", True),
        (b"%d\n" % (NOW_NS - 1), True),
        (b"%d\n" % (NOW_NS + 60 * S), True),
        (b"%d\n" % (NOW_NS + 60 * S + 1), False),
        (b"%d" % (NOW_NS + 10**6 * S), False),
    ],
)
def test_at_start_it_is_closed_when_the_clock_is_more_than_a_minute_before_the_note(
    tmp_path: Path, wall: list[int], content: bytes | None, is_open: bool
) -> None:
    path = tmp_path / FILE_NAME
    if content is not None:
        path.write_bytes(content)
    assert ClockGate(path).is_open is is_open


def test_it_opens_when_the_clock_is_set_and_stays_open_when_it_is_set_back(tmp_path: Path, wall: list[int]) -> None:
    path = tmp_path / FILE_NAME
    path.write_bytes(b"%d" % (NOW_NS + 1000 * S))
    gate = ClockGate(path)
    said = "the clock is 1000 s before the newest arrival known; set it, or remove {} if it was wrong then"
    assert gate.reason == said.format(path)
    gate.tick(0.0, 0)
    assert not gate.is_open
    wall[0] += 1000 * S
    gate.tick(1.0, 0)
    assert gate.is_open
    wall[0] -= 5000 * S
    gate.tick(2.0, 1)
    assert gate.is_open
    assert int(path.read_bytes()) == wall[0], "who sets a running clock back means it"


def test_it_opens_when_the_note_is_removed(tmp_path: Path, wall: list[int]) -> None:
    path = tmp_path / FILE_NAME
    path.write_bytes(b"%d" % (NOW_NS + 1000 * S))
    gate = ClockGate(path)
    path.unlink()
    gate.tick(0.0, 0)
    assert gate.is_open


def test_it_notes_the_time_once_a_minute_while_messages_come(tmp_path: Path, wall: list[int]) -> None:
    path = tmp_path / FILE_NAME
    gate = ClockGate(path)
    gate.tick(0.0, 0)
    assert not path.exists(), "no message yet"
    gate.tick(1.0, 5)
    assert int(path.read_bytes()) == NOW_NS
    wall[0] += 30 * S
    gate.tick(31.0, 50)
    assert int(path.read_bytes()) == NOW_NS
    wall[0] += 30 * S
    gate.tick(61.0, 90)
    assert int(path.read_bytes()) == NOW_NS + 60 * S
    wall[0] += 60 * S
    gate.tick(122.0, 90)
    assert int(path.read_bytes()) == NOW_NS + 60 * S, "no message since"


def test_while_closed_it_notes_nothing_not_even_at_the_end(tmp_path: Path, wall: list[int]) -> None:
    path = tmp_path / FILE_NAME
    path.write_bytes(b"%d" % (NOW_NS + 1000 * S))
    ClockGate(path).note()
    assert int(path.read_bytes()) == NOW_NS + 1000 * S


def test_a_note_that_cannot_be_written_stops_nothing(tmp_path: Path, wall: list[int]) -> None:
    gate = ClockGate(tmp_path / "missing" / FILE_NAME)
    gate.tick(0.0, 1)
    assert gate.is_open


def test_a_bridge_whose_clock_is_in_the_past_leaves_the_messages_with_the_broker(make_place: MakePlace) -> None:
    place = make_place(nodes=1)
    bridge = place.start()
    Publisher(place.mqtt_port).publish_all(numbered(10))
    wait_until(lambda: place.count() == 10, what="stored")
    bridge.terminate()
    assert bridge.wait(10) == 0
    note = place.directory / "bridge" / "bridge1" / FILE_NAME
    note.write_text(f"{int(note.read_text()) + 86_400 * S}\n")
    Publisher(place.mqtt_port).publish_all(numbered(10, start=10))
    place.start_bridge()
    wait_until(lambda: not place.status().get("healthy", True), what="said so")
    (reason,) = place.status()["unhealthy"]
    assert "before the newest arrival known" in reason
    assert "clock implausible, nothing is taken in" in place.log()
    assert not place.mqtt()["connected"]
    note.unlink()
    wait_until(lambda: set(place.stored()) == rows(20), what="the gate opens, and what had waited comes")
    wait_until(lambda: place.status()["healthy"], what="healthy")
