"""Replays: each record is fed, a file goes when all of it is durable, and after a death in between it is fed again."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common import clock
from common.files import crc32c
from workers.bridge import replay
from workers.bridge.batch import Message
from workers.bridge.deadletter import KIND, Record, files
from workers.bridge.replay import Outcome, Replay, done, jobs, post


def record(number: int) -> Record:
    return Record(1, 1000 + number, b"sensors/x", b"%d" % number, "value", "why", 0x33, "d")


class Fed:
    """What a Replay fed. holding: whether a record is durable only when `release` is called."""

    def __init__(self) -> None:
        self.records: list[int] = []
        self.messages: list[Message] = []
        self.known: list[tuple[int, int]] = []
        self.holding = False

    def feed(self, fed: Record, message: Message) -> Outcome:
        self.records.append(int(fed.payload))
        self.messages.append(message)
        if self.holding:
            message.hold()
        return Outcome(1, []) if int(fed.payload) % 10 else Outcome(0, ["value"])

    def know(self, fed: Record, number: int) -> None:
        self.known.append((int(fed.payload), number))

    def release(self, count: int) -> None:
        waiting = [message for message in self.messages if message.waiting]
        for message in waiting[:count]:
            message.release()


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic clock, in seconds; a test moves it."""
    moment = [100.0]
    monkeypatch.setattr(clock, "monotonic_s", lambda: moment[0])
    return moment


@pytest.fixture
def fed() -> Fed:
    return Fed()


def posted(directory: Path, numbers: range, file: int = 7) -> Path:
    directory.mkdir(exist_ok=True)
    job = post(directory, [(file, record(number)) for number in numbers])
    assert job is not None
    return job


def run(replaying: Replay, now: list[float], turns: int = 20, has_room: bool = True) -> None:
    for _ in range(turns):
        now[0] += 0.3
        replaying.tick(has_room)


def test_records_are_fed_in_order_and_the_job_goes_when_all_are_durable(
    tmp_path: Path, now: list[float], fed: Fed
) -> None:
    directory = tmp_path / "replay"
    directory.mkdir()
    job = post(directory, [(file, record(file * 100 + n)) for file in (3, 12) for n in range(5)])
    assert job is not None
    assert [path.name for path in files(job)] == ["00000003.dead", "00000012.dead"]
    replaying = Replay(directory, fed.feed, fed.know)
    run(replaying, now)
    assert fed.records == [300, 301, 302, 303, 304, 1200, 1201, 1202, 1203, 1204]
    assert fed.known[:1] + fed.known[-1:] == [(300, 3), (1204, 12)]
    assert {(message.topic, message.flags) for message in fed.messages} == {(b"sensors/x", 0x33 | 0x08)}
    assert (jobs(directory), replaying.is_eager) == ([], False)
    assert replaying.counts == {"records": 10, "points": 8}
    assert done(directory) == {
        "1": {
            "00000003.dead": {"records": 5, "points": 4, "refused": {"value": 1}},
            "00000012.dead": {"records": 5, "points": 4, "refused": {"value": 1}},
        }
    }


def test_a_file_stays_until_the_last_of_it_is_durable(tmp_path: Path, now: list[float], fed: Fed) -> None:
    job = posted(tmp_path, range(5))
    fed.holding = True
    replaying = Replay(tmp_path, fed.feed, fed.know)
    run(replaying, now)
    assert (len(fed.records), len(files(job))) == (5, 1)
    fed.release(4)
    run(replaying, now)
    assert (len(fed.records), len(files(job))) == (5, 1)
    assert replaying.status()["file"] == f"{job.name}/00000007.dead"
    fed.release(1)
    run(replaying, now)
    assert (jobs(tmp_path), replaying.status()["file"]) == ([], None)


def test_a_bridge_that_dies_in_between_feeds_the_file_again(tmp_path: Path, now: list[float], fed: Fed) -> None:
    posted(tmp_path, range(5))
    fed.holding = True
    run(Replay(tmp_path, fed.feed, fed.know), now)
    again = Fed()
    run(Replay(tmp_path, again.feed, again.know), now)
    assert again.records == fed.records == [0, 1, 2, 3, 4]
    assert jobs(tmp_path) == []


def test_without_room_nothing_is_fed(tmp_path: Path, now: list[float], fed: Fed) -> None:
    posted(tmp_path, range(5))
    replaying = Replay(tmp_path, fed.feed, fed.know)
    run(replaying, now, has_room=False)
    assert (fed.records, replaying.is_eager) == ([], True)
    run(replaying, now)
    assert len(fed.records) == 5


def test_one_turn_feeds_a_bounded_number_and_so_many_may_wait(
    tmp_path: Path, now: list[float], fed: Fed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "WINDOW", 1200)
    posted(tmp_path, range(2000))
    fed.holding = True
    replaying = Replay(tmp_path, fed.feed, fed.know)
    for want in (500, 1000, 1200, 1200):
        replaying.tick(True)
        assert (len(fed.records), replaying.is_eager) == (want, want < 1200)
    fed.release(800)
    run(replaying, now)
    assert fed.records == list(range(2000))


def test_large_records_fill_a_turn_by_bytes(
    tmp_path: Path, now: list[float], fed: Fed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "BYTES_PER_TURN", 10)
    posted(tmp_path, range(100, 120))
    replaying = Replay(tmp_path, fed.feed, fed.know)
    replaying.tick(True)
    assert len(fed.records) == 4


def test_jobs_are_taken_in_order_and_numbered_on(tmp_path: Path, now: list[float], fed: Fed) -> None:
    names = [posted(tmp_path, range(at, at + 1)).name for at in range(12)]
    assert names == [str(at + 1) for at in range(12)]
    replaying = Replay(tmp_path, fed.feed, fed.know)
    run(replaying, now, turns=100)
    assert fed.records == list(range(12))
    assert posted(tmp_path, range(1)).name == "13", "a job's outcome is not taken for another's"


def test_only_the_latest_jobs_are_noted(
    tmp_path: Path, now: list[float], fed: Fed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "JOBS_NOTED", 3)
    for at in range(12):
        posted(tmp_path, range(at, at + 1))
    run(Replay(tmp_path, fed.feed, fed.know), now, turns=100)
    assert sorted(done(tmp_path), key=int) == ["10", "11", "12"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"x": 1}', "null"])
def test_a_note_that_says_nothing_is_begun_anew(tmp_path: Path, now: list[float], fed: Fed, text: str) -> None:
    job = posted(tmp_path, range(1, 2))
    (tmp_path / "done.json").write_text(text)
    run(Replay(tmp_path, fed.feed, fed.know), now)
    noted = json.loads((tmp_path / "done.json").read_text())
    assert noted == {job.name: {"00000007.dead": {"records": 1, "points": 1, "refused": {}}}}


def test_nothing_chosen_is_no_job(tmp_path: Path) -> None:
    assert post(tmp_path, []) is None
    assert list(tmp_path.iterdir()) == []


def test_a_job_that_was_begun_and_not_finished_is_no_job_and_swept_by_the_next(
    tmp_path: Path, now: list[float], fed: Fed
) -> None:
    left = tmp_path / "1.making"
    left.mkdir()
    (left / "00000001.dead").write_bytes(KIND.pack(b"", 1))
    (left / "00000002.dead.tmp").write_bytes(b"half")
    replaying = Replay(tmp_path, fed.feed, fed.know)
    run(replaying, now)
    assert fed.records == []
    assert posted(tmp_path, range(1)).name == "1"
    assert not left.exists()
    run(replaying, now)
    assert fed.records == [0]


def test_a_job_whose_writing_fails_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Any:
        yield 1, record(1)
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        post(tmp_path, broken())
    assert list(tmp_path.iterdir()) == []


def newer(path: Path) -> None:
    body = bytes([0x97, 2, 1, 0xC4, 0, 0xC4, 0, 0xA0, 0xA0, 0])
    path.write_bytes(KIND.magic + len(body).to_bytes(4, "little") + _crc(body).to_bytes(4, "little") + body)


def _crc(body: bytes) -> int:
    return crc32c((7).to_bytes(8, "little") + body)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(("spoil", "words"), [(newer, "has version 2, want 1"), (folder, "Is a directory")])
def test_a_file_that_cannot_be_read_is_left_and_said_and_the_others_go_on(
    tmp_path: Path, now: list[float], fed: Fed, spoil: Callable[[Path], None], words: str
) -> None:
    job = posted(tmp_path, range(5))
    spoil(files(job)[0])
    posted(tmp_path, range(5, 10))
    replaying = Replay(tmp_path, fed.feed, fed.know)
    run(replaying, now)
    assert words in replaying.error
    assert fed.records == list(range(5, 10))
    assert jobs(tmp_path) == [job]


def test_a_damaged_record_is_passed_over(tmp_path: Path, now: list[float], fed: Fed) -> None:
    (path,) = files(posted(tmp_path, range(5)))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    run(Replay(tmp_path, fed.feed, fed.know), now)
    assert fed.records == [0, 1, 3, 4]


def test_a_file_that_cannot_be_removed_yet_is_removed_later_and_not_fed_again(
    tmp_path: Path, now: list[float], fed: Fed, monkeypatch: pytest.MonkeyPatch
) -> None:
    posted(tmp_path, range(5))
    replaying = Replay(tmp_path, fed.feed, fed.know)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", _failing)
        run(replaying, now)
    assert "Read-only file system" in replaying.error
    run(replaying, now)
    assert (fed.records, jobs(tmp_path), replaying.error) == ([0, 1, 2, 3, 4], [], "")


def _failing(*_: Any, **__: Any) -> None:
    raise OSError(30, os.strerror(30))


def test_a_folder_with_something_else_in_it_does_not_hold_up_the_others(
    tmp_path: Path, now: list[float], fed: Fed
) -> None:
    foreign = tmp_path / "1"
    foreign.mkdir()
    (foreign / "readme.txt").write_text("")
    posted(tmp_path, range(3))
    run(Replay(tmp_path, fed.feed, fed.know), now)
    assert fed.records == [0, 1, 2]


def test_where_nobody_ever_replayed_there_is_nothing_to_do(tmp_path: Path, now: list[float], fed: Fed) -> None:
    replaying = Replay(tmp_path / "none", fed.feed, fed.know)
    run(replaying, now)
    assert (fed.records, replaying.error, replaying.is_eager) == ([], "", False)
