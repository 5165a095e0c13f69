"""tools/explain: what it says of a message, where it got the time from, its exit codes, and that it is the intake."""

import io
import json
import subprocess
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from common.ring import Node
from common.ringbuild import first_ring
from common.ringstore import FileStore
from common.series import partition_of, series_key
from tests.support import ROOT
from tools import explain_app

SETTINGS = """
[[mqtt.subscriptions]]
filter = "zigbee2mqtt/+"
format = "json-metrics"
template = "zigbee2mqtt/{device_id}"
time_field = "last_seen"
time_unit = "auto"

[[mqtt.subscriptions]]
filter = "old/#"
retained = "skip"

[[mqtt.subscriptions]]
filter = "numbers/+/+"
format = "number"
template = "+/{device_id}/{metric_name}"

[[mqtt.subscriptions]]
filter = "packed"
format = "msgpack"

[[mqtt.subscriptions]]
filter = "#"
time_unit = "ms"
"""


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    file = tmp_path / "settings.toml"
    file.write_text(f'[paths]\ndata = "data"\n[cluster]\nring_store = "file:ring.json"\n{SETTINGS}')
    return file


class Done(NamedTuple):
    returncode: int
    stdout: bytes
    stderr: bytes


def run(settings: Path, *arguments: str, stdin: bytes = b"") -> Done:
    """The command in this process: a process of its own takes longer than all that is looked at here."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as ended:
            explain_app.main(["--config", str(settings), *arguments])
    return Done(int(ended.value.code or 0), out.getvalue().encode(), err.getvalue().encode())


def test_the_executable_finds_its_environment_and_gives_the_exit_code(settings: Path, tmp_path: Path) -> None:
    command = [str(ROOT / "tools" / "explain"), "--config", str(settings), "numbers/d/m", "-"]
    done = subprocess.run(command, input=b"warm", capture_output=True, cwd=tmp_path, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (1, b"")
    assert b"refused (value): payload is 'warm'" in done.stdout


def explained(settings: Path, *arguments: str, stdin: bytes = b"", code: int = 0) -> dict[str, Any]:
    done = run(settings, "--json", *arguments, stdin=stdin)
    assert (done.returncode, done.stderr) == (code, b"")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_it_says_which_subscription_decides_and_which_come_later(settings: Path) -> None:
    body = '{"temperature": 21.5, "state": "ON", "last_seen": 1714564800250}'
    done = run(settings, "zigbee2mqtt/kitchen", body)
    text = done.stdout.decode()
    assert (done.returncode, done.stderr) == (0, b"")
    assert "mqtt.subscriptions[0], filter zigbee2mqtt/+, format json-metrics, template zigbee2mqtt/{device_id}" in text
    assert "mqtt.subscriptions[4] matches too, filter #, but comes later" in text
    assert "kitchen  temperature        2024-05-01T12:00:00.25Z  a number in ms, by its size" in text
    assert "1 fields are no numbers and are passed over" in text
    assert "no owners are shown: no ring in file:" in text


def test_for_programs_it_says_the_same(settings: Path) -> None:
    document = explained(settings, "zigbee2mqtt/kitchen", '{"temperature": 21.5, "s": "x", "last_seen": 1714564800250}')
    (point,) = document.pop("points")
    assert point == {
        "device_id": "kitchen", "metric_name": "temperature", "tags": {}, "timestamp_ns": 1_714_564_800_250_000_000,
        "time": "2024-05-01T12:00:00.25Z", "time_source": "a number in ms, by its size (time_unit = 'auto')",
        "value": 21.5, "partition": None, "owners": None,
    }  # fmt: skip
    assert document.pop("settings")["format"] == "json-metrics"
    assert document == {
        "topic": "zigbee2mqtt/kitchen", "subscription": 0, "refused": [], "passed_over": 1, "retained_skipped": False,
        "matching": [{"subscription": 0, "filter": "zigbee2mqtt/+"}, {"subscription": 4, "filter": "#"}],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("topic", "fields", "source"),
    [
        ("x", '"timestamp": 1714564800250', "a number in ms (time_unit)"),
        ("x", '"timestamp": 5, "timestamp_unit": "s"', "as the payload says: RFC 3339 text, or its own timestamp_unit"),
        ("x", '"timestamp": "2024-05-01T12:00:00Z"', "as the payload says: RFC 3339 text, or its own timestamp_unit"),
        ("x", '"timestamp": 0', "as the payload says: 1970-01-01, which is 0 in every unit"),
        ("x", '"timestamp": "1970-01-01T00:00:00Z"', "as the payload says: 1970-01-01, which is 0 in every unit"),
        ("x", '"other": 1', "time of arrival"),
        ("old/x", '"timestamp": 1714564800', "a number in s (the default of json)"),
    ],
)
def test_it_says_where_a_time_is_from(settings: Path, topic: str, fields: str, source: str) -> None:
    body = f'{{"device_id": "d", "metric_name": "m", "value": 1, {fields}}}'
    assert explained(settings, topic, body)["points"][0]["time_source"] == source


def test_with_a_ring_it_names_partition_and_owners(settings: Path, tmp_path: Path) -> None:
    nodes = [Node(f"ing{n}", "", f"tcp://127.0.0.1:{5710 + 10 * n}", "z", 1.0, "active") for n in range(3)]
    ring = first_ring("c" * 16, nodes, 64, 2)
    FileStore(tmp_path / "ring.json").save(ring, 0)
    (point,) = explained(settings, "numbers/d/m", "1")["points"]
    partition = partition_of(series_key("d", "m"), 64)
    assert (point["partition"], point["owners"]) == (partition, [node.id for node in ring.owners(partition)])


@pytest.mark.parametrize(
    ("topic", "body", "code", "words"),
    [
        ("numbers/d/m", "warm", "value", "payload is 'warm', want a number, true or false"),
        ("numbers/d/m", "", "empty", "empty payload"),
        ("x", "[", "not-json", "not JSON"),
        ("$SYS/uptime", "1", "topic", "no subscription matches the topic"),
    ],
)
def test_what_would_be_refused_is_shown_with_the_reason(
    settings: Path, topic: str, body: str, code: str, words: str
) -> None:
    (refused,) = explained(settings, topic, body, code=1)["refused"]
    assert refused["code"] == code
    assert words in refused["reason"]
    done = run(settings, topic, body)
    assert done.returncode == 1
    assert f"refused ({code}): {refused['reason']}" in done.stdout.decode()


def test_good_and_bad_elements_stand_side_by_side(settings: Path) -> None:
    body = '[{"device_id": "d", "metric_name": "m", "value": 1}, {"device_id": "e", "metric_name": "m", "value": "x"}]'
    document = explained(settings, "x", body, code=1)
    assert [point["device_id"] for point in document["points"]] == ["d"]
    assert [(each["device_id"], bytes.fromhex(each["payload_hex"])) for each in document["refused"]] == [
        ("e", b'{"device_id": "e", "metric_name": "m", "value": "x"}')
    ]


def test_a_retained_message_that_would_be_skipped_is_no_failure(settings: Path) -> None:
    assert explained(settings, "old/x", "anything", "--retained")["retained_skipped"] is True
    assert b"which the subscription skips" in run(settings, "old/x", "anything", "--retained").stdout


def test_payloads_come_from_a_file_from_stdin_or_as_hexadecimal_digits(settings: Path, tmp_path: Path) -> None:
    (tmp_path / "payload").write_bytes(b"21.5\n")
    for arguments, stdin in (([f"@{tmp_path / 'payload'}"], b""), (["-"], b"21.5\n"), (["--hex", "32 31 2e 35"], b"")):
        assert explained(settings, "numbers/d/m", *arguments, stdin=stdin)["points"][0]["value"] == 21.5


def test_an_array_of_nothing_is_nothing_to_store(settings: Path) -> None:
    assert run(settings, "x", "[]").returncode == 1
    assert b"nothing to store, and nothing to refuse" in run(settings, "x", "[]").stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a/+", "1"], "got 'a/+', want a topic: no wildcards"),
        (["", "1"], "want a topic"),
        (["x", "--hex", "0g"], "want hexadecimal digits"),
        (["x"], "Missing argument 'PAYLOAD'"),
    ],
)
def test_wrong_usage_is_exit_code_2(settings: Path, arguments: list[str], words: str) -> None:
    done = run(settings, *arguments)
    assert done.returncode == 2
    assert words in done.stderr.decode()


def test_what_cannot_be_read_is_one_line_and_exit_code_1(settings: Path, tmp_path: Path) -> None:
    done = run(settings, "x", f"@{tmp_path / 'none'}")
    assert (done.returncode, done.stderr.decode().count("\n")) == (1, 1)
    settings.write_text('[[mqtt.subscriptions]]\nfilter = "a"\nformat = "number"')
    done = run(settings, "a", "1")
    assert done.returncode == 1
    assert "mqtt.subscriptions[0].device_id = '': want one" in done.stderr.decode()


def test_a_ring_that_cannot_be_read_costs_the_owners_only(settings: Path, tmp_path: Path) -> None:
    (tmp_path / "ring.json").write_text("broken")
    done = run(settings, "numbers/d/m", "1")
    assert done.returncode == 0
    assert b"no owners are shown" in done.stdout
