"""The publisher's parts without a broker: messages, simulation, replay, lines, frames."""

import gzip
import json
import math
import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis
import msgpack
import pytest
from hypothesis import strategies as st

from tools.inspection.rows import FIELDS, POINTS
from tools.publish import replay, sim, wire
from tools.publish.message import Chunk, Outgoing, PublisherError, Template, json_number, message, series
from tools.publish.serial_lines import SerialLines
from workers.query import samples_formats

TEMPLATE = Template("sensors/{device_id}/{metric_name}")
PLAN = sim.Plan(
    devices=3, metrics=2, rate=0, count=1000, seed=7, per_message=1, start_us=1_700_000_000_000_000, step_us=500_000
)


def readings(messages: Sequence[Outgoing]) -> list[dict[str, Any]]:
    """The points in messages; numbers as they are written."""
    points: list[dict[str, Any]] = []
    for each in messages:
        decoded = json.loads(each.payload, parse_float=str, parse_int=str)
        points += decoded if isinstance(decoded, list) else [decoded]
        assert each.points == (len(decoded) if isinstance(decoded, list) else 1)
    return points


def all_of(source: Any) -> list[Outgoing]:
    return [each for chunk in source for each in chunk.messages]


def topic_of(outgoing: Outgoing) -> str:
    (length,) = struct.unpack_from(">H", outgoing.topic)
    assert len(outgoing.topic) == 2 + length
    return outgoing.topic[2:].decode()


# Messages


def test_a_point_is_an_object_and_several_are_an_array() -> None:
    which = series(TEMPLATE, 'a"\u00e9', "m")
    points = [which.point("1.5", "-0.0"), which.point("2", "1e300")]
    one, two = message(which.topic, points[:1]), message(which.topic, points)
    assert one.payload == b'{"device_id":"a\\"\\u00e9","metric_name":"m","timestamp":1.5,"value":-0.0}'
    assert json.loads(two.payload)[1] == {"device_id": 'a"\u00e9', "metric_name": "m", "timestamp": 2, "value": 1e300}
    assert (one.points, two.points) == (1, 2)


def test_ids_cannot_break_a_topic() -> None:
    assert TEMPLATE.topic("aa:bb/1", "x+#\x00y")[2:] == b"sensors/aa:bb/1/x___y"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a/{device}", "topic 'a/{device}' names {device}; a topic may name {device_id}, {metric_name}"),
        ("a/{}", "names {}; a topic may name"),
        ("a/{device_id", "expected '}' before end of string"),
        ("a/+", "want a topic without +, # and NUL"),
        ("$SYS/x", "does not begin with $"),
        ("", "topic ''"),
    ],
)
def test_a_wrong_template_is_refused_with_the_reason(text: str, said: str) -> None:
    with pytest.raises(PublisherError) as caught:
        Template(text)
    assert said in str(caught.value)


def test_a_topic_that_mqtt_cannot_carry_is_refused() -> None:
    with pytest.raises(PublisherError, match=r"topic of \d+ bytes, want at most 65535"):
        TEMPLATE.topic("x" * 70_000, "m")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("5.827000141143799", "5.827000141143799"),
        ("1372896000", "1372896000"),
        ("-0.0", "-0.0"),
        ("1E-5", "1E-5"),
        ("+5", "5"),
        (".50", "0.50"),
        ("05", "5"),
        (" 7 ", "7"),
        ("nan", None),
        ("inf", None),
        ("0x10", None),
        ("", None),
        ("1,5", None),
    ],
)
def test_numbers_stay_as_they_are_written(text: str, wanted: str | None) -> None:
    assert json_number(text) == wanted


@hypothesis.given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_that_is_written_comes_back_bit_for_bit(value: float) -> None:
    text = json_number(repr(value))
    assert text is not None
    assert struct.pack("<d", json.loads(text, parse_int=float)) == struct.pack("<d", value)


# Simulation


def simulated(plan: sim.Plan, now_us: int = 0) -> list[Outgoing]:
    return all_of(sim.Simulation(plan, TEMPLATE, lambda: now_us))


@pytest.mark.parametrize("per_message", [1, 7, 100])
@pytest.mark.parametrize("start", [None, 1_700_000_000_000_000])
def test_a_count_of_points_is_that_many_different_points(per_message: int, start: int | None) -> None:
    points = readings(simulated(replace(PLAN, per_message=per_message, start_us=start, count=5003), now_us=10**15))
    identities = {(point["device_id"], point["metric_name"], point["timestamp"]) for point in points}
    assert len(points) == len(identities) == 5003
    assert {point["device_id"] for point in points} == {"sensor_1", "sensor_2", "sensor_3"}
    assert {point["metric_name"] for point in points} == {"temperature", "humidity"}


def test_the_same_seed_gives_the_same_bytes_and_another_one_others() -> None:
    assert simulated(PLAN) == simulated(PLAN)
    assert simulated(PLAN) != simulated(replace(PLAN, seed=8))


def test_history_runs_by_the_step_in_every_series() -> None:
    points = readings(simulated(replace(PLAN, count=18)))
    of_one = [point for point in points if (point["device_id"], point["metric_name"]) == ("sensor_2", "humidity")]
    times = [point["timestamp"] for point in of_one]
    assert times == ["1700000000.000000", "1700000000.500000", "1700000001.000000"]


def test_history_may_begin_with_the_epoch() -> None:
    points = readings(simulated(replace(PLAN, devices=1, metrics=1, count=3, start_us=0)))
    assert [point["timestamp"] for point in points] == ["0.000000", "0.500000", "1.000000"]


def test_a_message_holds_points_of_one_series_under_its_topic() -> None:
    for each in simulated(replace(PLAN, per_message=10, count=95)):
        names = {(point["device_id"], point["metric_name"]) for point in readings([each])}
        assert {topic_of(each)} == {f"sensors/{device}/{metric}" for device, metric in names}


@pytest.mark.parametrize("count", [95, 5000])
def test_columnar_messages_hold_the_points_that_json_would(count: int) -> None:
    plan = replace(PLAN, per_message=10, count=count)
    as_json, columnar = simulated(plan), simulated(replace(plan, columns=True))
    assert [(each.topic, each.points) for each in columnar] == [(each.topic, each.points) for each in as_json]
    found = []
    for each in columnar:
        body = msgpack.unpackb(each.payload)
        assert body["timestamp_unit"] == "us"
        for time_us, value in zip(
            struct.iter_unpack("<q", body["timestamps"]), struct.iter_unpack("<d", body["values"]), strict=True
        ):
            seconds = f"{time_us[0] // 1_000_000}.{time_us[0] % 1_000_000:06d}"
            names = {"device_id": body["device_id"], "metric_name": body["metric_name"]}
            found.append(names | {"timestamp": seconds, "value": str(value[0])})
    assert found == readings(as_json)


def test_timestamps_of_now_never_go_back_when_the_clock_does() -> None:
    clock = iter([10**15, 10**15 - 5_000_000, 10**15 + 1])
    plan = replace(PLAN, start_us=None, count=3 * sim.CHUNK_POINTS)
    points = readings(all_of(sim.Simulation(plan, TEMPLATE, lambda: next(clock))))
    times = [float(point["timestamp"]) for point in points]
    assert times == sorted(set(times))


def test_values_look_like_sensors_do() -> None:
    day = replace(PLAN, devices=1, metrics=8, count=8 * 1440, step_us=60_000_000)
    points = readings(simulated(day))
    for signal in sim.SIGNALS:
        values = [float(point["value"]) for point in points if point["metric_name"] == signal.name]
        assert all(round(value, signal.decimals) == value for value in values)
        spread = max(values) - min(values)
        assert spread >= 2 * abs(signal.daily) + signal.states, signal.name
        assert spread <= 2 * abs(signal.daily) + signal.states + 12 * signal.noise, signal.name


def test_a_rate_spreads_points_evenly_and_takes_now_when_it_is_time() -> None:
    plan = replace(PLAN, rate=100, count=100, start_us=None)
    chunks = list(sim.Simulation(plan, TEMPLATE, lambda: 0))
    sent = [chunk for chunk in chunks if chunk.messages]
    assert [chunk.due_s for chunk in sent] == pytest.approx([5 * number / 100 for number in range(20)])
    pauses = [chunk for chunk in chunks if not chunk.messages]
    assert [chunk.due_s for chunk in pauses] == [chunk.due_s for chunk in sent[1:]]


def test_metrics_beyond_the_named_ones_get_numbers() -> None:
    names = [sim.signal_of(number).name for number in (0, 7, 8, 16)]
    assert names == ["temperature", "speed", "temperature_2", "temperature_3"]


# Replay


def replayed(path: Path, speed: float = math.inf, per_message: int = 1) -> tuple[list[Chunk], list[str], int]:
    told: list[str] = []
    source = replay.Replay(path, speed, per_message, TEMPLATE, told.append)
    return list(source), told, source.skipped


def csv(path: Path, *lines: str, header: str = "device_id,metric_name,timestamp,value") -> Path:
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def test_a_replay_sends_numbers_digit_for_digit(tmp_path: Path) -> None:
    rows = ["a,m,1372896000.123456,69.88083514", "a,m,1372896001,5.827000141143799", "b,m,1372896001,-0.0"]
    chunks, told, _ = replayed(csv(tmp_path / "x.csv", *rows))
    points = readings([each for chunk in chunks for each in chunk.messages])
    assert [",".join(point.values()) for point in points] == rows
    assert told == []


def test_a_packed_replay_with_other_columns_and_quotes(tmp_path: Path) -> None:
    path = tmp_path / "x.csv.gz"
    with gzip.open(path, "wt") as file:
        file.write('delete_number,value,time,metric_name,device_id\n7,1.5,10,"a,b",d\n')
    chunks, _, _ = replayed(path)
    assert readings(chunks[0].messages) == [{"device_id": "d", "metric_name": "a,b", "timestamp": "10", "value": "1.5"}]


def test_tags_go_out_with_the_points_of_their_series(tmp_path: Path) -> None:
    tagged = 'd,m,"{""room"":""hall"",""b"":""ü""}"'
    rows = [f"{tagged},10,1", "d,m,{},10,2", "d,m,,11,3", f"{tagged},11,4"]
    path = csv(tmp_path / "x.csv", *rows, header="device_id,metric_name,tags,time,value")
    chunks, told, _ = replayed(path, per_message=2)
    assert told == []
    found = [(point.get("tags"), point["value"]) for point in readings(chunks[0].messages)]
    hall = {"room": "hall", "b": "ü"}
    assert found == [(None, "2"), (None, "3"), (hall, "1"), (hall, "4")]


@pytest.mark.parametrize("tags", ["room=hall", "[]", '{"room":7}', "null", "[" * 100_000])
def test_rows_whose_tags_are_none_are_told_and_left_out(tmp_path: Path, tags: str) -> None:
    quoted = tags.replace('"', '""')
    path = csv(tmp_path / "x.csv", f'd,m,"{quoted}",10,1', header="device_id,metric_name,tags,timestamp,value")
    _, (told,), skipped = replayed(path)
    assert skipped == 1
    assert told == f"{path}:2: left out: tags {tags[:64]!r}: want a JSON object of texts"


def test_csv_of_inspect_and_of_samples_is_read_as_they_write_it(tmp_path: Path) -> None:
    fields = {"device_id": "d", "metric_name": "m", "tags": '"{""a"":""b""}"', "timestamp": "10", "time": "10"}
    want = {"device_id": "d", "metric_name": "m", "tags": {"a": "b"}, "timestamp": "10", "value": "0"}
    for header in (FIELDS[POINTS], samples_formats._NAMES):
        row = ",".join(fields.get(name, "0") for name in header)
        chunks, told, _ = replayed(csv(tmp_path / "x.csv", row, header=",".join(header)))
        assert (readings(chunks[0].messages), told) == ([want], [])


def test_rows_that_are_no_points_are_told_and_left_out(tmp_path: Path) -> None:
    path = csv(tmp_path / "x.csv", "a,m,1,2", "a,m,soon,2", "a,m,3,NaN", "a,m", "", "a,m,4,", "a,m,5,6")
    chunks, told, skipped = replayed(path)
    assert [point["timestamp"] for point in readings(chunks[0].messages)] == ["1", "5"]
    assert skipped == 4
    assert told[0].startswith(f"{path}:3: left out: time 'soon': want RFC 3339")
    assert told[1] == f"{path}:4: left out: value 'NaN': want a finite decimal number"
    assert told[2] == f"{path}:5: left out: too few columns"


def test_rfc_3339_times_go_out_as_text(tmp_path: Path) -> None:
    path = csv(tmp_path / "x.csv", "a,m,2024-05-01T12:00:00.25Z,1", "a,m,2024-05-01T12:00:01Z,2")
    chunks, _, _ = replayed(path, speed=1)
    assert json.loads(chunks[0].messages[0].payload)["timestamp"] == "2024-05-01T12:00:00.25Z"
    assert [chunk.due_s for chunk in chunks] == [0.0, 0.75]


def test_a_paced_replay_is_due_as_recorded_and_never_waits_for_the_past(tmp_path: Path) -> None:
    path = csv(tmp_path / "x.csv", "a,m,100,1", "b,m,100,1", "a,m,110,2", "a,m,105,3", "a,m,130,4")
    chunks, _, _ = replayed(path, speed=10)
    assert [(chunk.due_s, len(chunk.messages)) for chunk in chunks] == [(0.0, 2), (1.0, 2), (3.0, 1)]


def test_points_of_a_series_share_messages_and_none_stays_behind(tmp_path: Path) -> None:
    rows = [f"{device},m,{time},{time}" for time in range(5) for device in "ab"]
    chunks, _, _ = replayed(csv(tmp_path / "x.csv", *rows), per_message=2)
    sizes = [each.points for chunk in chunks for each in chunk.messages]
    assert sizes == [2, 2, 2, 2, 1, 1]
    points = readings([each for chunk in chunks for each in chunk.messages])
    assert sorted((point["device_id"], point["timestamp"]) for point in points) == sorted(
        (device, str(time)) for time in range(5) for device in "ab"
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"device,metric_name,timestamp,value\n", "no column 'device_id' in the first line"),
        (b"", "no column 'device_id' in the first line ''"),
        (b"device_id,metric_name,timestamp,unit,value\n", "unknown column 'unit' in the first line"),
        (
            b"device_id,metric_name,timestamp,time,value\n",
            "columns 'timestamp' and 'time' for one thing in the first line",
        ),
        (b"\xff\xfe\x00", "can't decode byte 0xff"),
    ],
)
def test_a_file_that_is_no_recording_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(content)
    with pytest.raises(PublisherError) as caught:
        replayed(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


def test_a_torn_packed_file_gives_what_it_has_and_then_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.csv.gz"
    rows = "".join(f"a,m,{time},{math.sin(time)}\n" for time in range(20_000))
    whole = gzip.compress(("device_id,metric_name,timestamp,value\n" + rows).encode())
    path.write_bytes(whole[: len(whole) // 2])
    sent = []
    with pytest.raises(PublisherError, match="end-of-stream"):
        for chunk in replay.Replay(path, math.inf, 1, TEMPLATE, print):
            sent += chunk.messages
    assert len(sent) > 5000


@pytest.mark.parametrize(("text", "wanted"), [("1x", 1.0), ("100x", 100.0), ("0.5x", 0.5), ("max", math.inf)])
def test_speeds(text: str, wanted: float) -> None:
    assert replay.parse_speed(text) == wanted


@pytest.mark.parametrize("text", ["fast", "0x", "-1x", "10", "", "1e3x"])
def test_a_wrong_speed_is_refused(text: str) -> None:
    with pytest.raises(PublisherError, match="want max, or a factor such as 1x or 100x"):
        replay.parse_speed(text)


# Serial lines


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("sensor_9,21.5", {"device_id": "sensor_9", "metric_name": "temperature", "timestamp": "1.5", "value": "21.5"}),
        ("s9 , 21.50", {"device_id": "s9", "metric_name": "temperature", "timestamp": "1.5", "value": "21.50"}),
        ("a,b,3", {"device_id": "a,b", "metric_name": "temperature", "timestamp": "1.5", "value": "3"}),
        ("humidity 40", {"device_id": "board", "metric_name": "humidity", "timestamp": "1.5", "value": "40"}),
        ("soil moisture:\t7", {"device_id": "board", "metric_name": "soil moisture", "timestamp": "1.5", "value": "7"}),
        ('{"value": 3}', {"device_id": "board", "metric_name": "temperature", "timestamp": "1.5", "value": "3"}),
        (
            '{"device_id":"x","metric_name":"y","timestamp":9,"value":0.1,"tags":{"a":"b"}}',
            {"device_id": "x", "metric_name": "y", "timestamp": "9", "value": "0.1", "tags": {"a": "b"}},
        ),
    ],
)
def test_lines_become_points(line: str, wanted: dict[str, Any]) -> None:
    lines = SerialLines("/dev/ttyX", 9600, "board", "temperature", TEMPLATE, print)
    outgoing = lines.parse(line, "1.5")
    assert readings([outgoing]) == [wanted]
    assert topic_of(outgoing) == f"sensors/{wanted['device_id']}/{wanted['metric_name']}"


@pytest.mark.parametrize(
    "line",
    ["21.5", "boot ok", "a,", ",", "a,nan", '{"value": NaN}', '{"device_id":"x"}', '{"device_id":5,"value":1}', "{"],
)
def test_lines_that_are_no_readings_are_refused(line: str) -> None:
    lines = SerialLines("/dev/ttyX", 9600, None, "temperature", TEMPLATE, print)
    with pytest.raises(ValueError):
        lines.parse(line, "1.5")


# Frames


def test_connect_is_as_the_specification_has_it() -> None:
    plain = b"\x10\x0e\x00\x04MQTT\x04\x02\x00\x1e\x00\x02id"
    assert wire.connect(wire.V311, "id", 30, "", "") == plain
    with_user = b"\x10\x15\x00\x04MQTT\x05\xc2\x00\x1e\x00\x00\x02id\x00\x01u\x00\x01p"
    assert wire.connect(wire.V5, "id", 30, "u", "p") == with_user


def test_connack_tells_the_brokers_limits() -> None:
    properties = b"\x12\x00\x02id\x21\x00\x14\x27\x00\x00\x10\x00\x24\x01\x26\x00\x01k\x00\x01v\x13\x00\x0a"
    body = b"\x00\x00" + bytes([len(properties)]) + properties
    assert wire.connack(wire.V5, body) == (0, wire.Limits(in_flight=20, qos=1, frame_bytes=4096, keepalive_s=10))
    assert wire.connack(wire.V5, b"\x00\x01") == (1, wire.Limits())
    assert wire.connack(wire.V311, b"\x01\x00") == (0, wire.Limits())


@pytest.mark.parametrize("body", ["", "00", "00 00 05 21", "00 00 02 7e 00", "00 00 03 12 00 ff 00"])
def test_a_connack_that_is_none_is_malformed(body: str) -> None:
    with pytest.raises(wire.Malformed):
        wire.connack(wire.V5, bytes.fromhex(body))


@hypothesis.given(st.binary(max_size=200), st.integers(0, 200))
def test_frames_are_found_whatever_the_cuts(data: bytes, cut: int) -> None:
    frame = b"\x40" + wire.remaining_length(len(data)) + data
    stream = frame * 2 + b"\xd0\x00"
    found = list(wire.frames(stream))
    assert [(kind, body) for kind, body, _ in found] == [(0x40, data), (0x40, data), (0xD0, b"")]
    partial = list(wire.frames(stream[: min(cut, len(stream) - 1)]))
    assert partial == found[: len(partial)]
    assert len(partial) < 3


def test_an_endless_frame_length_is_malformed() -> None:
    with pytest.raises(wire.Malformed, match="frame length ff ff ff ff"):
        list(wire.frames(b"\x40\xff\xff\xff\xff\x01"))
