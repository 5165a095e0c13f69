"""Garbage and misdirected frames on every socket: counted, ignored, and the cluster goes on."""

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq

from common import bus, protocol
from common.points import PointBatch
from common.series import series_key
from tests.pipeline import client
from tools.sandbox_app import Sandbox

GARBAGE: list[list[bytes]] = [
    [b""],
    [b"x" * 100],
    [b"batch", b"\xc1", b""],
    [b"batch", msgpack.packb({"version": 1}), b""],
    [b"no such kind", b"\x80", b"\x80"],
    [b"batch"] * 40,
]


@pytest.fixture(scope="module")
def cluster() -> Any:
    with Sandbox(nodes=1, broker="embedded") as running:
        yield running


def _endpoint(cluster: Sandbox, offset: int) -> str:
    base, _, port = cluster.nodes["ing1"]["endpoint"].rpartition(":")
    return f"{base}:{int(port) + offset}"


def _status(cluster: Sandbox) -> dict[str, Any]:
    header = _header(cluster="", destination="", incarnation=1)
    reply = bus.request(_endpoint(cluster, 1), protocol.STATUS, header, {}, 5.0)
    return msgpack.unpackb(reply.body)


def _header(**changes: Any) -> protocol.Header:
    fields = {"cluster": "", "destination": "ing1", "sender": "test", "incarnation": 1, "sequence": 1, "epoch": 1}
    return protocol.Header(version=1, ring_hash="", **(fields | changes))


def _push(endpoint: str, messages: list[list[bytes]], kind: int = zmq.PUSH) -> None:
    context = zmq.Context()
    socket = context.socket(kind)
    socket.connect(endpoint)
    for frames in messages:
        socket.send_multipart(frames)
    socket.close(linger=2000)
    context.term()


def _wait_for_ignored(cluster: Sandbox, reason: str, more_than: int) -> None:
    deadline = time.monotonic() + 10
    while _status(cluster)["ignored"].get(reason, 0) <= more_than:
        assert time.monotonic() < deadline, f"nothing more ignored as {reason}"
        time.sleep(0.05)


@pytest.mark.parametrize("reply_to", ["", "tcp://[", "tcp://127.0.0.1\u2100:1", "tcp://127.evil.example:1", "ipc:///tmp/x"])
def test_a_beat_that_cannot_be_answered_is_counted_and_the_node_lives(cluster: Sandbox, reply_to: str) -> None:
    before = _status(cluster)
    header = _header(cluster=before["cluster"], reply_to=reply_to)
    _push(_endpoint(cluster, 0), [protocol.pack(protocol.BEAT, header, protocol.Beat(0.0, {}, []))])
    _wait_for_ignored(cluster, "reply_to", before["ignored"].get("reply_to", 0))
    assert _status(cluster)["incarnation"] == before["incarnation"]


@pytest.mark.parametrize("offset", [0, 1], ids=["ingest", "requests"])
def test_garbage_is_counted_and_ignored(cluster: Sandbox, offset: int) -> None:
    before = _status(cluster)["ignored"].get("garbage", 0)
    _push(_endpoint(cluster, offset), GARBAGE, zmq.DEALER if offset else zmq.PUSH)
    _wait_for_ignored(cluster, "garbage", before + len(GARBAGE) - 1)
    assert client.get(cluster.http + "/readyz")[0] == 200


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("cluster", {"cluster": "another"}),
        ("destination", {"destination": "ing9"}),
        ("incarnation", {"to_incarnation": 12345}),
    ],
)
@pytest.mark.parametrize("offset", [0, 1], ids=["ingest", "requests"])
def test_frames_meant_for_another_process_are_counted_and_ignored(
    cluster: Sandbox, offset: int, reason: str, changes: dict[str, Any]
) -> None:
    status = _status(cluster)
    before = status["ignored"].get(reason, 0)
    batch = PointBatch(
        [series_key("stray", "m")], np.zeros(1, np.uint32), np.array([10**18], np.int64), np.array([1.0])
    )
    header = _header(**({"cluster": status["cluster"], "reply_to": "tcp://127.0.0.1:1"} | changes))
    frames = protocol.pack(protocol.AGGREGATE if offset else protocol.BATCH, header, batch.encode())
    _push(_endpoint(cluster, offset), [frames], zmq.DEALER if offset else zmq.PUSH)
    _wait_for_ignored(cluster, reason, before)
    assert client.counts(cluster.http, [("stray", "m")]) == {("stray", "m"): 0}


def test_garbage_and_stale_acks_at_the_bridge_are_counted_and_ignored(cluster: Sandbox) -> None:
    status = _status(cluster)
    bridge = status["bridges"]["bridge1"]
    stale = protocol.pack(
        protocol.ACK,
        _header(cluster=status["cluster"], destination="bridge1", sender="ing1", re=1, re_incarnation=99),
        protocol.Ack(1),
    )
    foreign = protocol.pack(protocol.ACK, _header(cluster="another", destination="bridge1"), protocol.Ack(1))
    _push(bridge["ack_endpoint"], [*GARBAGE, stale, foreign])
    deadline = time.monotonic() + 15
    wanted = {"garbage": len(GARBAGE), "incarnation": 1, "cluster": 1}
    while any(_status(cluster)["bridges"]["bridge1"]["ignored"].get(key, 0) < many for key, many in wanted.items()):
        assert time.monotonic() < deadline, _status(cluster)["bridges"]["bridge1"]["ignored"]
        time.sleep(0.1)
    assert client.get(cluster.http + "/readyz")[0] == 200


def test_the_documented_req_client_works(cluster: Sandbox, tmp_path: Path) -> None:
    client.publish("--sim", "--devices", "1", "--count", "50", "--metrics", "1", "--rate", "0", "--url", cluster.mqtt)
    client.wait_for_counts(cluster.http, {("sensor_1", "temperature"): 50})
    text = (client.ROOT / "docs" / "bus-protocol.md").read_text()
    script = tmp_path / "req.py"
    script.write_text(re.search(r"<!-- example: req -->\n```python\n(.*?)```", text, re.DOTALL)[1])
    done = subprocess.run(
        [sys.executable, script, _endpoint(cluster, 1)], check=True, capture_output=True, text=True, timeout=30
    )
    assert "holds" in done.stdout
    assert "count 50 " in done.stdout


def test_the_documented_batch_decodes_to_the_documented_point() -> None:
    text = (client.ROOT / "docs" / "bus-protocol.md").read_text()
    example = re.search(r"<!-- example: batch -->\n```\n(.*?)```", text, re.DOTALL)[1]
    body = bytes.fromhex("".join(_hex_column(line) for line in example.splitlines()))
    batch = PointBatch.decode(body)
    assert list(batch.keys) == [series_key("sensor_1", "temperature")]
    assert (batch.times.tolist(), batch.values.tolist()) == ([1704067200 * 10**9], [21.5])
    assert batch.encode() == body


def _hex_column(line: str) -> str:
    """The hex at the beginning of a line, without the explanation behind two or more spaces."""
    groups = []
    for word in line.split():
        if not re.fullmatch(r"(?:[0-9a-f]{2})+", word):
            break
        groups.append(word)
    return "".join(groups)
