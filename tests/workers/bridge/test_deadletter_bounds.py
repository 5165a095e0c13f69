"""The dead letter, bounded: what is full waits, what comes twice is kept once, files may go, every disk may fail."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from common import clock
from tests.disks import FailingDisk, FullDisk, Platter, QuickDisk, RecordingDisk
from workers.bridge import deadletter
from workers.bridge.batch import Message
from workers.bridge.deadletter import DeadLetter, Record, begin_new_file, files, read, size_of

GIB = 1 << 30


def record(number: int = 0, size: int = 10, code: str = "value", device: str = "", time_ns: int = 1) -> Record:
    return Record(1, time_ns, b"sensors/x", b"%d" % number + bytes(size), code, "why", 0x33, device)


def stored(directory: Path) -> list[Record]:
    return [found.record for path in files(directory) for found in read(path)]


def message() -> Message:
    return Message(0x32, b"\0\1", b"t")


def letters_in(directory: Path, file_bytes: int = 1 << 20, limit_bytes: int = GIB) -> DeadLetter:
    return DeadLetter(directory, file_bytes, limit_bytes, QuickDisk())


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic clock, in seconds; a test moves it."""
    moment = [100.0]
    monkeypatch.setattr(clock, "monotonic_s", lambda: moment[0])
    return moment


# Full.


def test_when_the_files_have_reached_their_limit_records_wait_until_there_is_room(
    tmp_path: Path, now: list[float]
) -> None:
    letters = letters_in(tmp_path, file_bytes=1000, limit_bytes=4000)
    waiters = [message() for _ in range(40)]
    for number, waiter in enumerate(waiters):
        letters.append(record(number, size=200), waiter)
    letters.flush()
    kept = len(stored(tmp_path))
    assert 4000 <= letters.bytes == size_of(tmp_path) < 4000 + 300, "the last one may exceed it, no further one begins"
    assert [waiter.waiting for waiter in waiters] == [0] * kept + [1] * (40 - kept)
    assert letters.error.startswith(f"full: {letters.bytes} bytes, limit 4000 (bridge.dead_letter_bytes)")
    assert "tools/deadletter purge" in letters.error
    now[0] += deadletter.RETRY_S
    letters.flush()
    assert len(stored(tmp_path)) == kept
    for path in files(tmp_path)[:2]:
        path.unlink()
    letters.flush()
    assert len(stored(tmp_path)) < kept, "it looks again after a while only"
    now[0] += deadletter.RETRY_S
    letters.flush()
    assert any(waiter.waiting for waiter in waiters), "room for some"
    while letters.gathered_bytes:
        files(tmp_path)[0].unlink()
        now[0] += deadletter.RETRY_S
        letters.flush()
    assert (letters.error, [waiter.waiting for waiter in waiters]) == ("", [0] * 40)
    assert letters.counts == {"value": 40}


def test_a_record_larger_than_the_limit_is_kept_where_nothing_else_is(tmp_path: Path) -> None:
    letters, waiter = letters_in(tmp_path, limit_bytes=1000), message()
    letters.append(record(size=5000), waiter)
    letters.flush()
    assert (waiter.waiting, letters.error, len(stored(tmp_path))) == (0, "", 1)


def test_what_was_there_at_the_start_counts(tmp_path: Path) -> None:
    first = letters_in(tmp_path)
    first.append(record(size=2000), message())
    first.flush()
    first.close()
    letters, waiter = letters_in(tmp_path, limit_bytes=2000), message()
    letters.append(record(1), waiter)
    letters.flush()
    assert (waiter.waiting, letters.error[:5]) == (1, "full:")


# Once.


def restarted(directory: Path, letters: DeadLetter) -> DeadLetter:
    letters.close()
    return letters_in(directory)


def as_it_is(_: Path, letters: DeadLetter) -> DeadLetter:
    return letters


@pytest.mark.parametrize("again", [as_it_is, restarted])
def test_a_repetition_of_what_is_durable_is_not_written_and_waits_for_nothing(
    tmp_path: Path, again: Callable[[Path, DeadLetter], DeadLetter]
) -> None:
    letters = letters_in(tmp_path)
    letters.append(record(1, time_ns=1), message())
    letters.flush()
    letters, waiter = again(tmp_path, letters), message()
    letters.append(record(1, time_ns=2), waiter, repeat=True)
    assert (waiter.waiting, letters.gathered_bytes, letters.repeats) == (0, 0, 1)
    letters.flush()
    assert stored(tmp_path) == [record(1, time_ns=1)]


def test_a_repetition_of_what_is_not_durable_yet_waits_with_it(tmp_path: Path) -> None:
    letters, first, second = letters_in(tmp_path), message(), message()
    letters.append(record(1), first)
    letters.append(record(1), second, repeat=True)
    assert (first.waiting, second.waiting) == (1, 1)
    letters.flush()
    assert (first.waiting, second.waiting, stored(tmp_path)) == (0, 0, [record(1)])


def test_what_says_the_same_and_is_no_repetition_is_kept_each_time(tmp_path: Path) -> None:
    letters = letters_in(tmp_path)
    for time_ns in (1, 2):
        letters.append(record(1, time_ns=time_ns), message())
        letters.flush()
    assert stored(tmp_path) == [record(1, time_ns=1), record(1, time_ns=2)]


@pytest.mark.parametrize(
    "other",
    [
        Record(1, 1, b"sensors/y", record(1).payload, "value", "why", 0x3B),
        Record(1, 1, b"sensors/x", record(1).payload, "time", "why", 0x3B),
        Record(1, 1, b"sensors/x", record(1).payload + b" ", "value", "why", 0x3B),
        Record(1, 1, b"sensors/", b"x" + record(1).payload, "value", "why", 0x3B),
    ],
)
def test_a_repetition_of_something_else_is_kept(tmp_path: Path, other: Record) -> None:
    letters, waiter = letters_in(tmp_path), message()
    letters.append(record(1), message())
    letters.append(other, waiter, repeat=True)
    letters.flush()
    assert (waiter.waiting, letters.repeats, stored(tmp_path)) == (0, 0, [record(1), other])


def test_a_repetition_of_what_has_been_removed_is_kept_again(tmp_path: Path) -> None:
    letters = letters_in(tmp_path, file_bytes=100)
    letters.append(record(1, size=100), message())
    letters.append(record(2, size=100), message())
    letters.flush()
    files(tmp_path)[0].unlink()
    waiter = message()
    letters.append(record(1, size=100), waiter, repeat=True)
    assert waiter.waiting == 1
    letters.flush()
    assert stored(tmp_path) == [record(2, size=100), record(1, size=100)]


def test_what_is_known_is_bounded_and_the_latest_stay_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadletter, "KNOWN", 20)
    letters = letters_in(tmp_path)
    for number in range(100):
        letters.append(record(number), message())
    letters.flush()
    for number in range(100):
        letters.append(record(number), message(), repeat=True)
    assert 10 <= letters.repeats <= 20
    letters.flush()
    assert stored(tmp_path)[100:] == [record(number) for number in range(100 - letters.repeats)]


def test_at_a_start_the_newest_files_are_read_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    letters = letters_in(tmp_path, file_bytes=200)
    for number in range(10):
        letters.append(record(number, size=200), message())
        letters.flush()
    letters.close()
    monkeypatch.setattr(deadletter, "KNOWN_BYTES", sum(path.stat().st_size for path in files(tmp_path)[6:]))
    letters = letters_in(tmp_path, file_bytes=200)
    waiters = [message() for _ in range(10)]
    for number, waiter in enumerate(waiters):
        letters.append(record(number, size=200), waiter, repeat=True)
    assert [waiter.waiting for waiter in waiters] == [1] * 6 + [0] * 4


def test_what_a_replay_brings_is_known_to_lie_in_its_file(tmp_path: Path) -> None:
    letters = letters_in(tmp_path, file_bytes=100)
    letters.append(record(1, size=100), message())
    letters.flush()
    waiters = [message(), message()]
    letters.know(record(7), 1)
    letters.know(record(8), 99)
    for number, waiter in zip((7, 8), waiters, strict=True):
        letters.append(record(number), waiter, repeat=True)
    assert [waiter.waiting for waiter in waiters] == [0, 1], "there is a file 1, and no file 99"


# Counted.


def test_records_are_counted_by_device_and_the_rest_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadletter, "DEVICES", 5)
    letters = letters_in(tmp_path)
    number = 0
    for device, count in (("pump", 5), ("fan", 3), ("", 4), ("a", 2), ("b", 1), ("c", 1), ("d", 1)):
        for _ in range(count):
            number += 1
            letters.append(record(number, device=device), message())
    letters.flush()
    assert letters.devices == {"pump": 5, "fan": 3, "(unknown)": 4, "a": 2, "b": 1, "(other)": 2}
    assert letters.top_devices(2) == {"pump": 5, "(unknown)": 4, "(other)": 8}
    assert letters.top_devices(50) == letters.devices
    assert [each.device for each in stored(tmp_path)][:6] == ["pump"] * 5 + ["fan"]


def test_a_hostile_device_id_is_cut_and_stays_text() -> None:
    assert deadletter.shown_device("x" * 1000) == "x" * 64
    assert deadletter.shown_device("a\ud800b") == "a?b"


# Files come and go.


def test_asked_for_a_new_file_it_begins_one_and_the_old_one_may_go(tmp_path: Path, now: list[float]) -> None:
    letters = letters_in(tmp_path)
    letters.append(record(1), message())
    letters.flush()
    marker = deadletter.ask_for_new_file(tmp_path)
    letters.flush()
    assert marker.exists(), "it looks about once a second"
    now[0] += deadletter.LOOK_S
    letters.flush()
    assert not marker.exists()
    assert [path.name for path in files(tmp_path)] == ["00000001.dead", "00000002.dead"]
    files(tmp_path)[0].unlink()
    letters.append(record(2), message())
    letters.flush()
    letters.close()
    assert [path.name for path in files(tmp_path)] == ["00000002.dead"]
    assert stored(tmp_path) == [record(2)]


def test_asked_twice_it_begins_no_second_empty_file(tmp_path: Path, now: list[float]) -> None:
    letters = letters_in(tmp_path)
    letters.append(record(1), message())
    letters.flush()
    for _ in range(2):
        deadletter.ask_for_new_file(tmp_path)
        now[0] += deadletter.LOOK_S
        letters.flush()
    assert [path.name for path in files(tmp_path)] == ["00000001.dead", "00000002.dead"]


def test_numbers_never_restart(tmp_path: Path) -> None:
    letters = letters_in(tmp_path)
    letters.append(record(1), message())
    letters.flush()
    letters.close()
    begin_new_file(tmp_path)
    begin_new_file(tmp_path)
    files(tmp_path)[0].unlink()
    letters = letters_in(tmp_path)
    letters.append(record(2), message())
    letters.flush()
    assert [path.name for path in files(tmp_path)] == ["00000002.dead"]


def test_records_do_not_vanish_with_a_newest_file_that_somebody_removed(tmp_path: Path) -> None:
    letters = letters_in(tmp_path)
    letters.append(record(1), message())
    letters.flush()
    files(tmp_path)[0].unlink()
    waiter = message()
    letters.append(record(2), waiter)
    letters.flush()
    assert (waiter.waiting, stored(tmp_path)) == (0, [record(2)])
    assert [path.name for path in files(tmp_path)] == ["00000002.dead"]


# Disks.


def live(directory: Path, disk: QuickDisk, now: list[float], mark: Callable[[int], None]) -> None:
    """Two processes that keep 12 records in files of two, some of them twice, a new file asked for in between.

    mark: called with each record's number as soon as it was released.
    """
    for life in range(2):
        letters = None
        while letters is None:
            try:
                letters = DeadLetter(directory, 100, GIB, disk)
            except deadletter.StorageError:
                now[0] += 1
        waiting: dict[int, Message] = {}
        for number in range(life * 6, life * 6 + 6):
            waiting[number] = message()
            letters.append(record(number, size=40), waiting[number], repeat=True)
            if number:
                letters.append(record(number - 1, size=40), message(), repeat=True)
            if number % 6 == 2:
                deadletter.ask_for_new_file(directory)
            for _ in range(8 if number % 6 == 5 else 3):
                letters.flush()
                now[0] += 1
                for done in [n for n, each in waiting.items() if not each.waiting]:
                    del waiting[done]
                    mark(done)
        assert not waiting, letters.error
        letters.close()


def numbers(directory: Path) -> list[int]:
    return [int(each.payload.rstrip(b"\0")) for each in stored(directory)]


def test_a_power_cut_at_any_step_costs_no_record_that_was_released(tmp_path: Path, now: list[float]) -> None:
    disk = RecordingDisk()
    directory = tmp_path / "letters"
    live(directory, disk, now, disk.mark)
    assert numbers(directory) == list(range(12))
    shutil.rmtree(directory)
    platter = Platter(tmp_path)
    platter.adopt()
    released: list[int] = []
    for step, event in enumerate(disk.events):
        if event.step.call == "mark":
            released.append(event.size)
            continue
        platter.feed(event)
        cut = tmp_path / "cuts" / str(step)
        cut.parent.mkdir(exist_ok=True)
        platter.save(cut)
        kept = cut / "letters"
        if released:
            assert set(released) <= set(numbers(kept)), f"cut behind step {step}"
        if kept.exists():
            letters = letters_in(kept)
            letters.append(record(77), message())
            letters.flush()
            assert 77 in numbers(kept)
        shutil.rmtree(cut)
    assert released == list(range(12))


@pytest.mark.parametrize("lasting", [1, 4])
@pytest.mark.parametrize("make", [lambda n, _: FailingDisk(n), FullDisk])
def test_whatever_step_fails_each_record_is_kept_once_in_the_end(
    tmp_path: Path, now: list[float], make: Callable[[int, int], FailingDisk | FullDisk], lasting: int
) -> None:
    failed = 0
    for number in range(200):
        disk = make(number, lasting)
        directory = tmp_path / str(number)
        live(directory, disk, now, lambda _: None)
        hit = disk.failed if isinstance(disk, FailingDisk) else disk.refused
        failed += bool(hit)
        assert sorted(numbers(directory)) == list(range(12)), disk
        if not hit:
            break
    assert failed > 20
