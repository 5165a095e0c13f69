"""tools/deadletter on a directory without a bridge: what it counts, shows, hands over and removes."""

import io
import json
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from common import clock
from common.files import DirectoryLock
from common.timestamps import NS_PER_S
from tests.support import ROOT
from tools import deadletter_app, deadletter_files
from workers.bridge import replay
from workers.bridge.batch import Message
from workers.bridge.deadletter import DeadLetter, Record, files, read

NOW = int(time.time())
GOOD = b'{"device_id":"pump","metric_name":"m","timestamp":%d,"value":1}' % NOW


def record(
    age_s: int, code: str = "value", topic: bytes = b"sensors/a", payload: bytes = b"", device: str = ""
) -> Record:
    time_ns = (NOW - age_s) * NS_PER_S
    return Record(1, time_ns, topic, payload or b"no good %d" % age_s, code, f"reason of {code}", 0x32, device)


RECORDS = [
    record(7200, "value", device="pump"),
    record(3600, "future", b"plant/x y", GOOD, "pump"),
    record(60, "not-json", b"sensors/\xff", b"\x00\xff\x1b"),
    record(5, "shape", b"plant/z", b"[bold]\x1b[31m"),
]


class Done(NamedTuple):
    """How a command ended."""

    returncode: Any
    stdout: str
    stderr: str


class Bench:
    """A bridge's directory and the tool on it."""

    def __init__(self, directory: Path, capture: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> None:
        self._capture = capture
        self._patch = patch
        self.directory = directory / "bridge" / "bridge1"
        self.letters = self.directory / "deadletter"
        self.conf = directory / "minitrue.toml"
        self.conf.write_text(f'[paths]\ndata = "{directory}"\n[[mqtt.subscriptions]]\nfilter = "#"\n')

    def fill(self, records: list[Record], file_bytes: int = 1) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        letters = DeadLetter(self.letters, file_bytes, 1 << 30)
        for each in records:
            letters.append(each, Message(0x32, b"\0\1", b"t"))
        letters.flush()
        letters.close()

    def run(self, *arguments: str, answer: str = "", **settings: str) -> Done:
        """The command in this process: what it printed, and its exit code."""
        self._capture.readouterr()
        with self._patch.context() as patch:
            patch.setattr("sys.stdin", io.StringIO(answer))
            patch.setattr(clock, "wall_ns", lambda: (NOW + 1) * NS_PER_S)
            for name, value in settings.items():
                patch.setenv(f"MINITRUE__{name.upper()}", value)
            with pytest.raises(SystemExit) as ended:
                deadletter_app.main([*arguments, "--config", str(self.conf)])
        return Done(ended.value.code, *self._capture.readouterr())

    def wait_less(self) -> None:
        """Give a bridge 0.2 s to begin a new file."""
        self._patch.setattr(deadletter_files, "NEW_FILE_S", 0.2)

    def json(self, *arguments: str, code: int = 0, **settings: str) -> Any:
        done = self.run(*arguments, "--json", **settings)
        assert (done.returncode, done.stderr) == (code, ""), done.stdout + done.stderr
        return json.loads(done.stdout)

    def stored(self) -> list[Record]:
        return [found.record for path in files(self.letters) for found in read(path)]


@pytest.fixture
def empty_bench(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, capsys, monkeypatch)


@pytest.fixture
def bench(empty_bench: Bench) -> Bench:
    empty_bench.fill(RECORDS)
    return empty_bench


def test_list_counts_by_code_device_and_topic(bench: Bench) -> None:
    listed = bench.json("list")
    assert listed["codes"] == {"value": 1, "future": 1, "not-json": 1, "shape": 1}
    assert listed["devices"] == {"pump": 2, "(unknown)": 2}
    assert listed["topics"] == {"sensors/a": 1, "plant/x y": 1, "sensors/\ufffd": 1, "plant/z": 1}
    assert [file["name"] for file in listed["files"]] == [f"0000000{n}.dead" for n in range(1, 5)]
    assert [file["records"] for file in listed["files"]] == [1] * 4
    assert listed["bytes"] == sum(path.stat().st_size for path in files(bench.letters))
    assert (listed["ok"], listed["damaged_bytes"], listed["replays_waiting"]) == (True, 0, [])
    text = bench.run("list").stdout
    assert "bridge1: 4 records" in text
    assert "of 1.0 GiB" in text


@pytest.mark.parametrize(
    ("options", "codes"),
    [
        (("--since", "2h"), {"future", "not-json", "shape"}),
        (("--until", "30m"), {"value", "future"}),
        (("--since", "90m", "--until", "0.5m"), {"future", "not-json"}),
        (("--since", "2000-01-01T00:00:00Z", "--until", "2000-01-02T00:00:00Z"), set()),
        (("--code", "value", "--code", "shape"), {"value", "shape"}),
        (("--device", "pump"), {"value", "future"}),
        (("--topic", "plant/+"), {"future", "shape"}),
        (("--topic", "sensors/a", "--topic", "plant/z"), {"value", "shape"}),
        (("--topic", "#", "--device", "pump", "--code", "future"), {"future"}),
    ],
)
def test_options_choose_records(bench: Bench, options: tuple[str, ...], codes: set[str]) -> None:
    assert set(bench.json("list", *options)["codes"]) == codes


def test_show_gives_the_newest_last_and_steers_no_terminal(bench: Bench) -> None:
    text = bench.run("show", "--limit", "3").stdout
    assert text.index("future: reason of future, device pump") < text.index("not-json") < text.index("shape")
    assert "value" not in text.split("\n")[0]
    assert GOOD.decode() in text
    assert "hex 00 ff 1b" in text
    assert "hex 5b 62 6f 6c 64 5d 1b" in text, "an escape sequence is not text"
    assert "sensors/\\xff" in text
    assert "\x1b" not in text


def test_show_as_json_is_a_record_a_line_and_whole(bench: Bench) -> None:
    bench.fill([record(1, payload=b"x" * 10_000)])
    lines = [json.loads(line) for line in bench.run("show", "--json").stdout.splitlines()]
    assert [line["code"] for line in lines] == ["value", "future", "not-json", "shape", "value"]
    assert lines[1]["payload"] == GOOD.decode()
    assert (lines[2]["payload_hex"], lines[2]["topic_hex"]) == ("00ff1b", b"sensors/\xff".hex())
    assert (lines[0]["time_ns"], lines[0]["qos"], lines[0]["retained"]) == (RECORDS[0].time_ns, 1, False)
    assert len(lines[4]["payload"]) == 10_000
    assert "(10,000 bytes; --full shows all)" in bench.run("show", "--limit", "1").stdout
    assert "x" * 10_000 in bench.run("show", "--limit", "1", "--full").stdout


def test_damage_in_the_middle_is_said_and_the_rest_counted(bench: Bench) -> None:
    path = files(bench.letters)[1]
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    path.write_bytes(data)
    listed = bench.json("list", code=1)
    assert (sum(listed["codes"].values()), listed["damaged_bytes"], listed["ok"]) == (3, len(data), False)


def test_full_is_amiss(bench: Bench) -> None:
    bench.fill([record(1, payload=bytes(1 << 20))])
    done = bench.run("list", bridge__dead_letter_bytes=str(1 << 20))
    assert done.returncode == 1
    assert "full: the bridge withholds PUBACKs. next: tools/deadletter purge" in done.stdout


def test_a_dry_run_decodes_by_the_configuration_of_now_and_writes_nothing(bench: Bench) -> None:
    dry = bench.json("replay", "--dry-run", code=1)
    assert (dry["records"], dry["points"], sum(dry["refused"].values())) == (4, 1, 3)
    assert set(dry["reasons"]) == set(dry["refused"])
    assert bench.json("replay", "--dry-run", "--code", "future") == {
        "records": 1, "points": 1, "refused": {}, "reasons": {}, "done": False,
    }  # fmt: skip
    assert not (bench.directory / "replay").exists()


def test_a_replay_is_handed_over_and_waits_for_a_bridge_that_does_not_run(bench: Bench) -> None:
    done = bench.json("replay", "--device", "pump", code=1)
    assert (done["records"], done["done"], done["job"]) == (2, False, "1")
    (job,) = replay.jobs(bench.directory / "replay")
    handed = [found.record for path in files(job) for found in read(path)]
    assert handed == RECORDS[:2]
    assert [path.name for path in files(job)] == ["00000001.dead", "00000002.dead"], "the files that they lie in"
    assert bench.json("list", code=1)["replays_waiting"] == ["1"]
    assert "1 replays wait for the bridge, which does not run" in bench.run("list").stdout
    assert bench.stored() == RECORDS


def test_a_replay_of_nothing_is_none(bench: Bench) -> None:
    assert bench.json("replay", "--code", "none") == {"records": 0, "points": 0, "refused": {}, "done": True}
    assert replay.jobs(bench.directory / "replay") == []


def test_purge_removes_files_whose_records_are_all_older(bench: Bench) -> None:
    purged = bench.json("purge", "--before", "30m", "--yes")
    assert (purged["files"], purged["records"]) == (["00000001.dead", "00000002.dead"], 2)
    assert bench.stored() == RECORDS[2:]
    assert bench.json("purge", "--before", "30m", "--yes")["files"] == []


def test_purge_of_all_leaves_an_empty_file_so_that_numbers_go_on(bench: Bench) -> None:
    assert bench.json("purge", "--all", "--yes")["records"] == 4
    assert bench.stored() == []
    bench.fill([record(1)])
    assert [path.name for path in files(bench.letters)] == ["00000005.dead"]


def test_purge_asks_and_no_is_no(bench: Bench) -> None:
    done = bench.run("purge", "--all", answer="n\n")
    assert done.returncode == 1
    assert "4 files with 4 records" in done.stdout
    assert bench.stored() == RECORDS
    assert bench.run("purge", "--all", answer="y\n").returncode == 0
    assert bench.stored() == []


def test_a_file_that_holds_one_newer_record_stays(empty_bench: Bench) -> None:
    empty_bench.fill(RECORDS, file_bytes=1 << 20)
    assert empty_bench.json("purge", "--before", "1m", "--yes")["files"] == []
    assert empty_bench.stored() == RECORDS


def test_a_bridge_that_does_not_answer_keeps_its_newest_file(bench: Bench) -> None:
    bench.wait_less()
    lock = DirectoryLock(bench.directory)  # as a bridge that hangs
    done = bench.run("purge", "--all", "--yes")
    lock.release()
    assert done.returncode == 1
    assert "did not begin a new file within 0.2 s, so its newest one stays" in done.stdout
    assert bench.stored() == RECORDS[3:]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("purge",), "want either --before TIME or --all"),
        (("purge", "--all", "--before", "2h"), "want either --before TIME or --all"),
        (("list", "--since", "yesterday"), "want RFC 3339, such as 2024-05-01T12:00:00.25Z; or an age, such as 90m"),
        (("show", "--topic", "a/#/b"), "got 'a/#/b', want # only as the last level, alone in it"),
        (("show", "--limit", "0"), "0 is not in the range x>=1"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_says_what_is_wanted(
    bench: Bench, arguments: tuple[str, ...], words: str
) -> None:
    done = bench.run(*arguments)
    assert done.returncode == 2
    assert words in done.stderr


def test_another_bridge_is_named_where_the_one_asked_for_has_no_dead_letter(bench: Bench) -> None:
    done = bench.run("list", "--bridge", "b7")
    assert done.returncode == 1
    assert done.stderr.startswith("deadletter: no dead letter at ")
    assert "bridges here: bridge1" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_document_names_every_command_and_option() -> None:
    document = (ROOT / "docs" / "bridge.md").read_text()
    for command in ("list", "show", "replay", "purge"):
        assert f"`tools/deadletter {command}" in document
        done = subprocess.run(
            [ROOT / "tools" / "deadletter", command, "--help"], capture_output=True, text=True, check=True
        )
        options = {word.strip("[],.") for word in done.stdout.split() if word.startswith("--")} - {"--help", "--config"}
        assert [option for option in sorted(options) if option not in document] == []
