"""The bridge's loop in this process, where a test needs to reach inside."""

import logging
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from common import clock, config, metrics, protocol
from common.points import PointBatch
from common.ring import Node
from common.ringbuild import first_ring, with_delete
from common.ringstore import FileStore, RingView
from common.selector import Selector
from common.series import series_key
from tests.support import ROOT, free_port, free_port_range
from workers.bridge import deadletter, payload
from workers.bridge.batch import Message
from workers.bridge.deadletter import DeadLetter
from workers.bridge.payload import Place
from workers.bridge.spool import Spools
from workers.bridge.worker import Bridge


@pytest.fixture
def bridge(tmp_path: Path) -> Iterator[Bridge]:
    node = Node("n0", "", f"tcp://127.0.0.1:{free_port_range(3)}", "z", 1.0, "active")
    store = FileStore(tmp_path / "ring.json")
    ring = first_ring("test", [node], 16, 1)
    store.save(ring, 0)
    paths, mqtt = config.Paths(data=str(tmp_path)), config.Mqtt(url=f"mqtt://127.0.0.1:{free_port()}")
    settings = config.Settings(paths=paths, mqtt=mqtt)
    dead_letter = DeadLetter(tmp_path / "deadletter", 1 << 20, 1 << 30)
    spools = Spools(tmp_path / "spool", store, settings.bridge.id, 1 << 30)
    made = Bridge(settings, RingView(store, ring, 1.0), dead_letter, spools)
    yield made
    made._bus.close()


def dead(directory: Path) -> list[deadletter.Record]:
    return [found.record for path in deadletter.files(directory / "deadletter") for found in deadletter.read(path)]


def test_a_retained_message_that_is_skipped_is_acknowledged_and_counted(
    bridge: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    route = bridge._intake.routes.routes[0]
    monkeypatch.setattr(route, "skips_retained", True)
    body = b'{"device_id":"d","metric_name":"m","value":1}'
    skipped, live = Message(0x33, b"\0\1", b"sensors/x"), Message(0x32, b"\0\2", b"sensors/x")
    bridge._receive(skipped, body)
    bridge._receive(live, body)
    assert (skipped.waiting, live.waiting) == (0, 1)
    assert (bridge.counts["messages"], bridge.counts["points"], route.retained_skipped) == (2, 1, 1)


def test_a_payload_that_breaks_the_decoder_is_kept_and_acknowledged_not_met_again_for_ever(
    bridge: Bridge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(topic: bytes, flags: int, body: bytes, latest_ns: int) -> Any:
        raise ZeroDivisionError("of ours")

    monkeypatch.setattr(bridge._intake, "decode", broken)
    message = Message(0x32, b"\0\1", b"sensors/x")
    with caplog.at_level(logging.ERROR):
        bridge._receive(message, b"poison")
    assert message.waiting == 1
    bridge._turn()
    assert message.waiting == 0
    assert [(record.payload, record.code) for record in dead(tmp_path)] == [(b"poison", "bug")]
    assert "ZeroDivisionError" in caplog.text


def test_what_waited_while_the_bridge_stood_still_is_taken_in_by_the_ring_of_now(
    bridge: Bridge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FileStore(tmp_path / "ring.json")
    store.save(with_delete(bridge._view.ring, Selector("d"), 0, 9), 1)
    bridge._view.hurry()  # it stood still for longer than cluster.ring_poll_s
    body = b'{"device_id":"d","metric_name":"m","value":1}'
    monkeypatch.setattr(bridge, "_move_mqtt", lambda ready: bridge._receive(Message(0x32, b"\0\1", b"sensors/x"), body))
    bridge._turn()
    bridge._delivery.flush(clock.monotonic_s(), force=True)
    (lane,) = bridge._delivery._lanes.values()
    assert [flight.batch.born for flight in lane.live.waiting] == [2]


class RecordingLink:
    """Takes every frame and keeps it."""

    def __init__(self) -> None:
        self.sent: list[protocol.Message] = []

    def send(self, frames: Sequence[bytes]) -> bool:
        self.sent.append(protocol.unpack(frames))
        return True

    def close(self) -> None:
        pass

    def last(self, kind: bytes) -> protocol.Message:
        return [message for message in self.sent if message.kind == kind][-1]


def answer(bridge: Bridge, to: protocol.Header, kind: bytes, body: Any) -> None:
    header = protocol.Header(
        1, to.cluster, to.sender, to.destination, 100, 1, to.epoch, to.ring_hash,
        re=to.sequence, re_incarnation=to.incarnation,
    )  # fmt: skip
    bridge._delivery.receive(protocol.pack(kind, header, body), clock.monotonic_s())


@pytest.mark.parametrize(
    ("key", "value"), [(series_key("d", "m"), float("nan")), (b"no series key", 1.0)], ids=["not-finite", "key"]
)
def test_a_batch_that_cannot_be_decoded_here_either_is_kept_as_it_is_and_not_sent_again(
    bridge: Bridge, tmp_path: Path, key: bytes, value: float
) -> None:
    (lane,) = bridge._delivery._lanes.values()
    lane.link.close()
    link = lane.link = RecordingLink()
    messages = [Message(0x32, b"\0\1", topic) for topic in (b"sensors/first", b"sensors/second")]
    bridge._push(0.0, force=True)
    answer(bridge, link.last(protocol.BEAT).header, protocol.BEAT_ACK, {})
    for message in messages:
        bridge._delivery.add(message, [(Place(key, 0), 1, value)])
    bridge._push(clock.monotonic_s(), force=True)
    batch = link.last(protocol.BATCH)
    answer(bridge, batch.header, protocol.ACK, protocol.Ack(0, error=protocol.ERR_BAD_BATCH, detail="no good"))
    assert [message.waiting for message in messages] == [1, 1], "not released before it is durable"
    assert bridge._delivery.is_idle
    bridge._push(clock.monotonic_s(), force=True)
    assert [message.waiting for message in messages] == [0, 0]
    assert bridge._delivery.mismatches == {}
    kept = [(record.topic, record.payload, record.code, record.reason) for record in dead(tmp_path)]
    assert kept == [(b"sensors/first", batch.body, "bug", "n0: no good")]


def test_times_of_arrival_differ_though_the_clock_stands_still_or_goes_back(
    bridge: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = iter([1000, 1000, 900, 2000])
    monkeypatch.setattr("common.clock.wall_ns", lambda: next(readings))
    assert [bridge._arrival_ns() for _ in range(4)] == [1000, 1001, 1002, 2000]


def test_a_clock_that_is_set_back_is_believed(bridge: Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
    hour_ns = 3600 * 10**9
    readings = iter([2 * hour_ns, hour_ns, hour_ns, hour_ns + 5])
    monkeypatch.setattr("common.clock.wall_ns", lambda: next(readings))
    assert [bridge._arrival_ns() for _ in range(4)] == [2 * hour_ns, hour_ns, hour_ns + 1, hour_ns + 5]


@pytest.mark.parametrize(
    ("file", "directory", "text"),
    [
        ("bridge", "", "bridge directory {data}/bridge/bridge1: File exists: {data}/bridge"),
        ("", "bridge/bridge1/LOCK", "{data}/bridge/bridge1/LOCK: Is a directory"),
        ("bridge/bridge1/deadletter", "", "dead letter {data}/bridge/bridge1/deadletter: File exists"),
    ],
)
def test_a_directory_that_cannot_be_used_ends_the_start_in_one_line(
    tmp_path: Path, file: str, directory: str, text: str
) -> None:
    (tmp_path / directory).mkdir(parents=True, exist_ok=True)
    if file:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    node = Node("n0", "", "tcp://127.0.0.1:5710", "z", 1.0, "active")
    FileStore(tmp_path / "ring.json").save(first_ring("test", [node], 16, 1), 0)
    conf = tmp_path / "minitrue.toml"
    conf.write_text(f'[paths]\ndata = "{tmp_path}"\n[cluster]\nring_store = "file:{tmp_path}/ring.json"\n')
    command = [sys.executable, "-m", "workers.bridge", "--config", str(conf)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1:] == [f"minitrue bridge: {text.format(data=tmp_path)}"]
    assert "Traceback" not in ended.stderr


def test_its_metrics_are_a_valid_snapshot_and_its_status_plain(bridge: Bridge) -> None:
    bridge._turn()
    bridge._receive(Message(0x30, b"", b"sensors/t"), b'{"device_id":"d","metric_name":"m","value":1}')
    bridge._receive(Message(0x30, b"", b"sensors/t"), b"nonsense")
    text = metrics.render({"bridge1": metrics.snapshot()}).decode()
    assert 'minitrue_bridge_messages_total{worker="bridge1"} 2' in text
    assert 'minitrue_bridge_refused_total{worker="bridge1",reason="not-json"} 1' in text
    assert "left out" not in text
    status = bridge.status(0.0)
    assert (status["messages"], status["points"], status["refused"]) == (2, 1, {"not-json": 1})
    assert bridge._beat()


def test_every_metric_and_every_code_is_in_the_document(bridge: Bridge) -> None:
    document = (ROOT / "docs" / "bridge.md").read_text()
    families = {family.name for family in metrics.snapshot() if family.name.startswith("minitrue_bridge_")}
    assert len(families) > 10
    short = {name.replace("minitrue_bridge_delivery", "").replace("minitrue_bridge", "") for name in families}
    assert [name for name in sorted(short) if f"{name}`" not in document] == []
    codes = {value for name, value in vars(payload).items() if name.isupper() and isinstance(value, str)}
    assert len(codes) == 14
    assert [code for code in sorted(codes) if f"`{code}`" not in document] == []


def keep(tmp_path: Path, bridge: Bridge, record: deadletter.Record) -> Message:
    """Replay a record as the bridge does; the message that stood for it."""
    message = Message(record.flags | 0x08, b"", record.topic)
    bridge._receive_again(record, message)
    return message


@pytest.mark.parametrize("lies", [True, False])
def test_a_dead_letter_that_is_refused_again_is_kept_as_it_was_where_it_does_not_lie_any_more(
    bridge: Bridge, tmp_path: Path, lies: bool
) -> None:
    record = deadletter.Record(1, 5, b"sensors/x", b'{"device_id":"d"}', "former-code", "former reason", 0x32, "d")
    if lies:
        bridge._dead_letter.append(record, Message(0x32, b"\0\1", b"t"))
        bridge._turn()
        bridge._dead_letter.know(record, 1)
    message = keep(tmp_path, bridge, record)
    assert message.waiting == (0 if lies else 1)
    bridge._turn()
    assert (message.waiting, dead(tmp_path)) == (0, [record])


def test_a_batch_that_no_node_could_decode_is_replayed_as_its_points(bridge: Bridge, tmp_path: Path) -> None:
    keys = [series_key("d", "m", {"a": "b"}), series_key("e", "m")]
    times, values = np.array([7, 8, 9]), np.array([0.1, -0.0, 2.5])
    batch = PointBatch(keys, np.array([1, 0, 1], np.uint32), times, values)
    record = deadletter.Record(1, 5, b"sensors/x", batch.encode(), "bug", "n0: no good", 0x32)
    points, refusals = bridge._intake.decode_record(record, 10)
    want = zip((keys[1], keys[0], keys[1]), times.tolist(), ("0.1", "-0.0", "2.5"), strict=True)
    assert [(place.key, time_ns, repr(value)) for place, time_ns, value in points] == list(want)
    assert refusals == []
    bad = PointBatch([series_key("", "m")], batch.index[:1] * 0, times[:1], values[:1])
    for payload_ in (bad.encode(), b"\xc1", b"{}"):
        points, (refused,) = bridge._intake.decode_record(msgspec.structs.replace(record, payload=payload_), 10)
        assert (list(points), refused.payload) == ([], payload_), "names that no intake lets in"
