"""The dead letter: nothing in it is lost, nothing is released before it is on the disk."""

import errno
import os
import re
import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest

from common import clock
from common.errors import StorageError
from common.files import crc32c
from tests.disks import QuickDisk
from tests.support import ROOT
from workers.bridge import deadletter
from workers.bridge.batch import Message
from workers.bridge.deadletter import KIND, DeadLetter, Record, files, read


def record(number: int = 0, size: int = 10) -> Record:
    payload = bytes([number % 256]) * size
    return Record(1, 1_700_000_000_000_000_000 + number, b"sensors/x", payload, "value", "why", 0x33)


def write(directory: Path, records: list[Record], file_bytes: int = 1 << 20) -> list[Message]:
    letters = DeadLetter(directory, file_bytes, 1 << 30)
    waiters = []
    for each in records:
        waiters.append(Message(0x32, b"\0\1", b"t"))
        letters.append(each, waiters[-1])
    letters.flush()
    letters.close()
    return waiters


def stored(directory: Path) -> list[Record]:
    return [found.record for path in files(directory) for found in read(path)]


def test_what_was_flushed_is_read_back_byte_for_byte(tmp_path: Path) -> None:
    odd = Record(1, 5, b"\xff topic", bytes(range(256)), "not-json", "not UTF-8: byte 0xff", 0x35)
    waiters = write(tmp_path, [record(1), odd, record(2, size=0)])
    assert stored(tmp_path) == [record(1), odd, record(2, size=0)]
    assert [waiter.waiting for waiter in waiters] == [0, 0, 0]


def test_a_waiter_is_held_until_the_flush(tmp_path: Path) -> None:
    letters, waiter = DeadLetter(tmp_path, 1 << 20, 1 << 30), Message(0x32, b"\0\1", b"t")
    letters.append(record(), waiter)
    assert (waiter.waiting, letters.gathered_bytes > 0, stored(tmp_path)) == (1, True, [])
    letters.flush()
    assert (waiter.waiting, letters.gathered_bytes, letters.counts) == (0, 0, {"value": 1})


def test_a_file_that_reached_its_size_is_followed_by_another(tmp_path: Path) -> None:
    records = [record(n, size=1000) for n in range(50)]
    write(tmp_path, records[:25], file_bytes=4096)
    write(tmp_path, records[25:], file_bytes=4096)
    assert stored(tmp_path) == records
    assert [path.name for path in files(tmp_path)][:2] == ["00000001.dead", "00000002.dead"]
    assert all(path.stat().st_size < 4096 + 1100 for path in files(tmp_path))


def test_a_record_larger_than_a_file_is_kept(tmp_path: Path) -> None:
    write(tmp_path, [record(1, size=100_000), record(2)], file_bytes=4096)
    assert stored(tmp_path) == [record(1, size=100_000), record(2)]


def test_the_next_start_goes_on_in_the_same_file(tmp_path: Path) -> None:
    write(tmp_path, [record(1)])
    write(tmp_path, [record(2)])
    assert (len(files(tmp_path)), stored(tmp_path)) == (1, [record(1), record(2)])


@pytest.mark.parametrize("cut", range(1, 30))
def test_a_torn_tail_is_cut_off_at_the_next_start(tmp_path: Path, cut: int) -> None:
    write(tmp_path, [record(1), record(2)])
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - cut])
    write(tmp_path, [record(3)])
    assert stored(tmp_path) == [record(1), record(3)]
    assert path.stat().st_size == len(whole)


def test_what_the_disk_cannot_read_at_the_start_is_not_taken_for_a_torn_tail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, [record(number) for number in range(3)])
    real, unread = os.pread, [100]

    def pread(descriptor: int, length: int, at: int) -> bytes:
        if at + length > unread[0]:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(descriptor, length, at)

    monkeypatch.setattr(os, "pread", pread)
    write(tmp_path, [record(3)])
    unread[0] = 1 << 30
    assert stored(tmp_path) == [record(number) for number in range(4)]
    assert len(files(tmp_path)) == 2


def test_damage_in_the_middle_costs_only_the_record_it_hit(tmp_path: Path) -> None:
    write(tmp_path, [record(n) for n in range(5)])
    (path,) = files(tmp_path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x40
    path.write_bytes(data)
    write(tmp_path, [record(9)])
    assert stored(tmp_path) == [record(0), record(1), record(3), record(4), record(9)]


def test_a_payload_that_looks_like_a_record_is_not_taken_for_one(tmp_path: Path) -> None:
    write(tmp_path, [record(7)])
    inner = files(tmp_path)[0].read_bytes()
    files(tmp_path)[0].unlink()
    nested = Record(1, 1, b"t", KIND.magic + inner, "value", "why", 0)
    write(tmp_path, [nested, record(8)])
    assert stored(tmp_path) == [nested, record(8)]


def packed(body: bytes, number: int = 1) -> bytes:
    """A record as the format's text has it, in the file of that number."""
    checksum = crc32c(struct.pack("<Q", number) + body)
    return struct.pack("<4sII", KIND.magic, len(body), checksum) + body


NEWER = bytes([0x97, 2, 1, 0xC4, 0, 0xC4, 0, 0xA0, 0xA0, 0])
STRANGE = bytes([0x92, 2, 0xA1, 0x78])  # an array of other types


@pytest.mark.parametrize(("body", "text"), [(NEWER, "has version 2, want 1"), (STRANGE, "Expected `array`")])
def test_a_newer_version_is_refused_in_words_where_a_record_has_to_begin(
    tmp_path: Path, body: bytes, text: str
) -> None:
    path = tmp_path / "00000001.dead"
    path.write_bytes(packed(body))
    with pytest.raises(StorageError, match=f"at offset 0.*{text}"):
        list(read(path))
    path.unlink()
    write(tmp_path, [record(1)])
    end = path.stat().st_size
    path.write_bytes(path.read_bytes() + packed(body))
    with pytest.raises(StorageError, match=f"at offset {end}.*{text}"):
        DeadLetter(tmp_path, 4096, 1 << 30)


@pytest.mark.parametrize("body", [NEWER, STRANGE])
def test_a_payload_that_poses_as_a_newer_record_in_a_torn_one_does_not_stop_the_bridge(
    tmp_path: Path, body: bytes
) -> None:
    torn = Record(1, 1, b"t", b"posing " + packed(body) + b" more", "value", "why", 0)
    write(tmp_path, [record(1), torn])
    (path,) = files(tmp_path)
    os.truncate(path, path.stat().st_size - 8)
    write(tmp_path, [record(2)])
    assert stored(tmp_path) == [record(1), record(2)]


@pytest.mark.parametrize("number", [None, 2])
def test_a_copy_of_another_files_record_in_a_torn_one_is_no_record(tmp_path: Path, number: int | None) -> None:
    body = msgspec.msgpack.encode(record(9))
    copy = packed(body, number) if number else struct.pack("<4sII", KIND.magic, len(body), crc32c(body)) + body
    write(tmp_path, [record(1), Record(1, 1, b"t", copy + b" more", "value", "why", 0)])
    (path,) = files(tmp_path)
    os.truncate(path, path.stat().st_size - 8)
    write(tmp_path, [record(2)])
    assert stored(tmp_path) == [record(1), record(2)]


class BrokenDisk(QuickDisk):
    """Fails one kind of call while `broken`, a write when so many bytes of it are on the disk."""

    def __init__(self, call: str, partial: int = 0) -> None:
        self.broken = False
        self._call = call
        self._partial = partial

    def write(self, descriptor: int, data: Any) -> None:
        if self.broken and self._call == "write":
            super().write(descriptor, bytes(data)[: self._partial])
        self._fail("write")
        super().write(descriptor, data)

    def sync_data(self, descriptor: int) -> None:
        self._fail("sync_data")
        super().sync_data(descriptor)

    def create(self, path: Path, mode: int = 0o644, exclusive: bool = False) -> int:
        self._fail("create")
        return super().create(path, mode, exclusive)

    def _fail(self, call: str) -> None:
        if self.broken and self._call == call:
            raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic clock, in seconds; a test moves it."""
    moment = [100.0]
    monkeypatch.setattr(clock, "monotonic_s", lambda: moment[0])
    return moment


@pytest.mark.parametrize(("call", "partial"), [("write", 0), ("write", 30), ("sync_data", 0)])
def test_on_a_full_disk_records_wait_and_are_stored_once_when_it_has_room_again(
    tmp_path: Path, now: list[float], call: str, partial: int
) -> None:
    disk = BrokenDisk(call, partial)
    letters, waiter = DeadLetter(tmp_path, 1 << 20, 1 << 30, disk), Message(0x32, b"\0\1", b"t")
    letters.append(record(1), Message(0x32, b"\0\1", b"t"))
    letters.flush()
    disk.broken = True
    letters.append(record(2), waiter)
    for _ in range(5):
        letters.flush()
        now[0] += deadletter.RETRY_S
    assert (waiter.waiting, letters.error) == (1, "No space left on device")
    assert letters.counts == {"value": 1}
    disk.broken = False
    letters.append(record(3), waiter)
    letters.flush()
    assert (waiter.waiting, letters.error) == (0, "")
    assert stored(tmp_path) == [record(1), record(2), record(3)]
    assert len(files(tmp_path)) <= 3, "failed attempts must not leave files behind"


def test_a_directory_that_cannot_be_made_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"dead letter .*file/deadletter: File exists"):
        DeadLetter(tmp_path / "file" / "deadletter", 4096, 1 << 30)


def example(name: str) -> bytes:
    """The bytes of an example of the document, after checking that each line's offset is where its bytes lie."""
    document = (ROOT / "docs" / "file-formats.md").read_text()
    (text,) = re.findall(rf"```{name}\n(.*?)```", document, re.DOTALL)
    data = b""
    for line in text.splitlines():
        assert int(line[:4], 16) == len(data), line
        data += bytes.fromhex(line[6:53])
    return data


def test_the_example_in_the_document_is_the_record_that_it_says(tmp_path: Path) -> None:
    said = Record(
        1, 1_700_000_000 * 10**9, b"sensors/a", b'{"device_id":"a"}', "missing-field", "no metric_name", 0x32, "a"
    )
    write(tmp_path, [said])
    (path,) = files(tmp_path)
    assert path.read_bytes() == example("example-dead-letter")
    assert stored(tmp_path) == [said]


WITHOUT_DEVICE = """
    4d 54 44 4c 42 00 00 00 1b c2 7b 35 97 01 cf 17 97 9c fe 36 2a 00 00 c4 09 73 65 6e 73 6f 72 73
    2f 61 c4 0e 7b 22 76 61 6c 75 65 22 3a 6e 75 6c 6c 7d ad 6d 69 73 73 69 6e 67 2d 66 69 65 6c 64
    ac 6e 6f 20 64 65 76 69 63 65 5f 69 64 32
"""


def test_a_record_of_before_devices_were_kept_is_read(tmp_path: Path) -> None:
    (tmp_path / "00000001.dead").write_bytes(bytes.fromhex(WITHOUT_DEVICE))
    old = Record(1, 1_700_000_000 * 10**9, b"sensors/a", b'{"value":null}', "missing-field", "no device_id", 0x32, "")
    assert stored(tmp_path) == [old]
    write(tmp_path, [record(1)])
    assert stored(tmp_path) == [old, record(1)]
