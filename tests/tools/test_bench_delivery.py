"""bench delivery runs on real processes and finds what it says; its messages hold the points that they should."""

import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest

from tests.support import ROOT, require_part
from tools.bench import peers
from tools.bench.drain import BEGIN_S, Load, publish_frames

Point = tuple[str, str, int, float]


def bench(*arguments: str) -> dict[str, list[dict[str, Any]]]:
    require_part("mosquitto")
    command = [sys.executable, "-m", "tools.bench", "delivery", "--quick", "--nodes", "2", "--json", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["found"]


def payloads(frames: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(frames):
        assert frames[at] == 0x32
        length = shift = 0
        while True:
            at += 1
            length |= (frames[at] & 127) << shift
            shift += 7
            if frames[at] < 128:
                break
        body = frames[at + 1 : at + 1 + length]
        (topic_bytes,) = struct.unpack_from(">H", body)
        assert body[2:].startswith(b"sensors/sensor_")
        yield body[2 + topic_bytes + 2 :]
        at += 1 + length


def of_json(payload: bytes) -> list[Point]:
    decoded = json.loads(payload)
    elements = decoded if isinstance(decoded, list) else [decoded]
    return [(each["device_id"], each["metric_name"], each["timestamp"], each["value"]) for each in elements]


def of_columns(payload: bytes) -> list[Point]:
    body = msgspec.msgpack.decode(payload)
    index = np.frombuffer(body["index"], "<u4").tolist()
    seconds = (np.frombuffer(body["timestamps"], "<i8") // 10**9).tolist()
    values = np.frombuffer(body["values"], "<f8").tolist()
    series = [(body["series"][place]["device_id"], body["series"][place]["metric_name"]) for place in index]
    return [(*names, at, value) for names, at, value in zip(series, seconds, values, strict=True)]


@pytest.mark.parametrize("points", [1, 7])
def test_messages_of_both_formats_hold_the_same_points_each_once(points: int) -> None:
    load = Load(30, points, 20)
    rows = [row for payload in payloads(publish_frames(load)) for row in of_json(payload)]
    columns = publish_frames(load._replace(columns=True))
    assert [row for payload in payloads(columns) for row in of_columns(payload)] == rows
    assert len({row[:3] for row in rows}) == 30 * points
    assert {row[0] for row in rows} == {f"sensor_{number}" for number in range(20)}
    assert min(row[2] for row in rows) == BEGIN_S


def test_later_rounds_have_later_times() -> None:
    first, second = (
        {row[:3] for payload in payloads(publish_frames(Load(30, 4, 20), begin)) for row in of_json(payload)}
        for begin in (BEGIN_S, BEGIN_S + 120)
    )
    assert not first & second


def test_queues_are_drained_by_the_bridge_and_by_what_it_is_compared_with() -> None:
    found = bench("--part", "single")
    script = ["script + VictoriaMetrics"] if peers.VictoriaMetrics.installed() else []
    assert [(each["what"], list(each["peers"])) for each in found["single"]] == [
        ("points", [*script, "bare paho"]),
        ("CPU per message", [*script, "bare paho"]),
        ("CPU per message", ["bare paho"]),
        ("with servers", script),
    ]
    for each in found["single"]:
        assert each["ours"] > 0
        assert all(figure > 0 for figure in each["peers"].values())


def test_columns_are_drained_without_peers() -> None:
    found = bench("--part", "columns", "--no-peers")["columns"]
    assert [each["what"] for each in found] == ["points", "CPU per point", "with servers"]
    assert all(each["ours"] > 0 and not each["peers"] for each in found)


def test_a_whole_cluster_is_timed_and_its_bridge_weighed() -> None:
    found = bench("--part", "latency", "--part", "memory")
    p50, p99, query = (each["ours"] for each in found["latency"])
    assert 0 < query < p99
    assert p50 <= p99
    whole, broken = (
        {each["what"]: each["ours"] for each in found["memory"] if each["of"] == of}
        for of in ("all owners there", "one owner away")
    )
    assert whole.keys() < broken.keys()
    assert broken["spool at the end"] > 0.1  # MB: half of 36,000 points
    assert all(figure > 0 for figure in [*whole.values(), *broken.values()])
