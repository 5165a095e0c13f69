"""What a dead letter tells of itself: counts of what lies there, the last samples, no more than a beat may carry."""

from pathlib import Path

import msgspec
import pytest

from common import clock
from tests.workers.bridge.test_deadletter import record, write
from workers.bridge import deadletter, tally
from workers.bridge.batch import Message
from workers.bridge.deadletter import KIND, DeadLetter, Record
from workers.bridge.tally import SAMPLES, TOLD_CHARS, Tally, sample


def of(code: str, number: int, payload: bytes = b"x") -> Record:
    return Record(1, number, b"sensors/\xff", payload, code, f"why {number}", 0x33, "pump_1")


def times(letters: DeadLetter, code: str) -> list[int]:
    return [each.time_ns for each in letters.told().samples[code]]


def test_what_lies_in_the_files_is_told_by_code_with_the_last_ones(tmp_path: Path) -> None:
    letters = DeadLetter(tmp_path, 1 << 20, 1 << 30)
    for number in range(8):
        letters.append(of("value", number), Message(0x32, b"\0\1", b"t"))
    letters.append(of("time", 99, b"\xfe" * 1000), Message(0x32, b"\0\1", b"t"))
    assert (letters.told().counts, letters.told().waiting) == ({}, 9)  # not on the disk yet
    letters.flush()
    told = letters.told()
    assert (told.counts, told.waiting, told.error) == ({"value": 8, "time": 1}, 0, "")
    assert times(letters, "value") == [7, 6, 5, 4, 3]
    (only,) = told.samples["time"]
    assert (only.topic, only.payload, only.payload_bytes) == ("sensors/\ufffd", "\ufffd" * 500, 1000)
    assert (only.detail, only.device) == ("why 99", "pump_1")


def test_a_start_knows_what_lies_there(tmp_path: Path) -> None:
    write(tmp_path, [of("value", 1), of("time", 2), of("value", 3)], file_bytes=1)
    write(tmp_path, [of("value", 4)], file_bytes=1)
    letters = DeadLetter(tmp_path, 1, 1 << 30)
    assert letters.told().counts == {"value": 3, "time": 1}
    assert times(letters, "value") == [4, 3, 1]
    letters.append(of("value", 5), Message(0x32, b"\0\1", b"t"))
    letters.flush()
    assert times(letters, "value") == [5, 4, 3, 1]


def test_files_that_are_too_much_to_read_at_start_are_told_as_uncounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, [of("value", n) for n in range(6)], file_bytes=1)
    monkeypatch.setattr(deadletter, "KNOWN", 2)
    told = DeadLetter(tmp_path, 1, 1 << 30).told()
    sizes = [path.stat().st_size for path in deadletter.files(tmp_path)]
    assert (told.counts, told.uncounted_bytes) == ({"value": 2}, sum(sizes[:4]))


def test_what_was_purged_counts_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(clock, "monotonic_s", lambda: now[0])
    write(tmp_path, [of("value", 1), of("time", 2), of("value", 3)], file_bytes=1)
    letters = DeadLetter(tmp_path, 1, 1 << 30)
    assert letters.told().counts == {"value": 2, "time": 1}
    KIND.path(tmp_path, 1).unlink()
    KIND.path(tmp_path, 2).unlink()
    now[0] += deadletter.LIST_S
    told = letters.told()
    assert (told.counts, list(told.samples), times(letters, "value")) == ({"value": 1}, ["value"], [3])
    assert told.bytes == KIND.path(tmp_path, 3).stat().st_size


def test_what_a_beat_carries_is_bounded_and_every_code_has_its_turn() -> None:
    letters = Tally()
    for code in (f"code{n:02}" for n in range(14)):
        for number in range(100):
            letters.add(1, code, sample(number, b"\xff" * 60_000, b"\xff" * 10_000, "r" * 10_000, "d" * 64))
    told = letters.samples()
    assert list(told) == [f"code{n:02}" for n in range(14)]
    assert all(each[0].time_ns == 99 for each in told.values())
    chars = sum(len(each.topic + each.payload + each.detail + each.device) for of in told.values() for each in of)
    assert chars <= TOLD_CHARS
    assert len(msgspec.msgpack.encode(told)) < 3 * TOLD_CHARS + 10_000
    assert letters.counts() == {f"code{n:02}": 100 for n in range(14)}


def test_small_samples_are_all_told() -> None:
    letters = Tally()
    for number in range(20):
        letters.add(number, "value", sample(number, b"t", b"p", "r", ""))
    assert [each.time_ns for each in letters.samples()["value"]] == [19, 18, 17, 16, 15]
    assert len(letters.samples()["value"]) == SAMPLES
    letters.keep([19, 3])
    assert [each.time_ns for each in letters.samples()["value"]] == [19]
    assert letters.counts() == {"value": 2}
    letters.keep([])
    assert (letters.counts(), letters.samples(), letters.uncounted_bytes) == ({}, {}, 0)


def test_a_sample_keeps_little_of_a_large_record() -> None:
    kept = sample(1, b"t" * 1000, b"p" * 1000, "r" * 1000, "d")
    assert (len(kept.topic), len(kept.payload), kept.payload_bytes) == (tally.TOPIC_BYTES, tally.PAYLOAD_BYTES, 1000)
    assert len(kept.reason) == tally.REASON_CHARS


def test_records_of_one_flush_are_told_under_their_files(tmp_path: Path) -> None:
    write(tmp_path, [record(n, size=1000) for n in range(20)], file_bytes=4096)
    letters = DeadLetter(tmp_path, 4096, 1 << 30)
    assert letters.told().counts == {"value": 20}
