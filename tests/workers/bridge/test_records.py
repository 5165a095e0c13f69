"""Record files: what was appended is read back whatever else the file holds, and a file that failed is left."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from common.errors import StorageError
from tests.disks import FailingDisk, FullDisk, QuickDisk
from workers.bridge.records import HEAD, Kind, Span, Writer, read

KIND = Kind(b"MTXX", ".x")


def decode(body: bytes) -> bytes:
    if body.startswith(b"newer"):
        raise StorageError("version 2, want 1")
    return body


def stored(directory: Path) -> list[bytes]:
    return [found.record for path in KIND.files(directory) for found in read(path, KIND, decode)]


def write_all(writer: Writer, bodies: list[bytes]) -> list[Span]:
    spans: list[Span] = []
    while len(spans) < len(bodies):
        spans += writer.append(bodies[len(spans) :])
    return spans


BODIES = [b"", b"first", b"MTXX" * 5, bytes(range(256)) * 3, b"last"]


def test_what_was_appended_is_read_back_and_lies_where_it_was_said(tmp_path: Path) -> None:
    spans = write_all(Writer(tmp_path, KIND, 0, 100), BODIES)
    assert stored(tmp_path) == BODIES
    for span, body in zip(spans, BODIES, strict=True):
        data = KIND.path(tmp_path, span.number).read_bytes()
        assert data[span.begin + HEAD.size : span.end] == body
    assert [path.name for path in KIND.files(tmp_path)] == ["00000001.x", "00000002.x"]


def test_more_than_a_window_is_read_back(tmp_path: Path) -> None:
    bodies = [bytes([n]) * (300_000 * n) for n in range(8)]
    write_all(Writer(tmp_path, KIND, 0, 1 << 30), bodies)
    assert stored(tmp_path) == bodies


@pytest.mark.parametrize("hit", [0, 5, 9, 15])
def test_damage_costs_the_record_that_it_hit(tmp_path: Path, hit: int) -> None:
    spans = write_all(Writer(tmp_path, KIND, 0, 1 << 20), BODIES)
    path = KIND.path(tmp_path, 1)
    data = bytearray(path.read_bytes())
    data[spans[1].begin + hit] ^= 1
    path.write_bytes(data)
    assert stored(tmp_path) == BODIES[:1] + BODIES[2:]


def test_a_magic_across_two_windows_is_found(tmp_path: Path) -> None:
    for size in range((1 << 20) - 8, (1 << 20) + 8):
        KIND.path(tmp_path, 1).write_bytes(bytes(size) + KIND.pack(b"behind", 1))
        assert stored(tmp_path) == [b"behind"], size


def test_a_page_that_cannot_be_read_costs_its_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bodies = [bytes([n]) * 3000 for n in range(20)]
    write_all(Writer(tmp_path, KIND, 0, 1 << 20), bodies)
    real = os.pread

    def pread(descriptor: int, length: int, at: int) -> bytes:
        if at < 20480 and at + length > 16384:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(descriptor, length, at)

    monkeypatch.setattr(os, "pread", pread)
    assert stored(tmp_path) == bodies[:5] + bodies[7:]


def test_a_body_of_another_version_is_an_error_only_where_a_record_has_to_begin(tmp_path: Path) -> None:
    path = KIND.path(tmp_path, 3)
    path.write_bytes(KIND.pack(b"one", 3) + b"x" + KIND.pack(b"newer", 3) + KIND.pack(b"two", 3))
    assert stored(tmp_path) == [b"one", b"two"]
    path.write_bytes(KIND.pack(b"one", 3) + KIND.pack(b"newer", 3))
    with pytest.raises(StorageError, match=r"00000003.x: record at offset 15: version 2, want 1"):
        stored(tmp_path)


def test_a_record_copied_from_another_file_is_none(tmp_path: Path) -> None:
    KIND.path(tmp_path, 1).write_bytes(KIND.pack(b"one", 2) + KIND.pack(b"two", 1))
    assert stored(tmp_path) == [b"two"]


def test_a_file_is_gone_on_with_behind_its_records(tmp_path: Path) -> None:
    writer = Writer(tmp_path, KIND, 0, 1 << 20)
    (span,) = writer.append([b"one"])
    writer.close()
    with KIND.path(tmp_path, 1).open("ab") as file:
        file.write(b"torn")
    writer = Writer(tmp_path, KIND, 1, 1 << 20)
    writer.resume(span.end)
    assert writer.append([b"two"]) == [Span(1, span.end, 2 * span.end)]
    assert stored(tmp_path) == [b"one", b"two"]
    assert KIND.path(tmp_path, 1).stat().st_size == 2 * span.end


DISKS = [
    *(lambda n=number: FailingDisk(n) for number in range(40)),
    *(lambda n=number, few=lasting: FullDisk(n, few) for number in range(40) for lasting in (1, 3)),
]


@pytest.mark.parametrize("make", DISKS)
def test_whatever_step_fails_what_was_said_to_be_durable_is_there_once_and_nothing_else(
    tmp_path: Path, make: Any
) -> None:
    writer = Writer(tmp_path, KIND, 0, 60, make())
    done: list[bytes] = []
    failures = 0
    while len(done) < 12:
        bodies = [b"record %d" % n for n in range(len(done), min(12, len(done) + 2))]
        try:
            done += bodies[: len(writer.append(bodies))]
        except OSError:
            failures += 1
        assert failures < 10
    # Twice only where a file could not be cut back.
    assert list(dict.fromkeys(stored(tmp_path))) == done


def test_a_disk_that_refuses_for_long_is_left_with_no_empty_files(tmp_path: Path) -> None:
    class Refusing(QuickDisk):
        def write(self, descriptor: int, data: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    writer = Writer(tmp_path, KIND, 0, 60, Refusing())
    for _ in range(20):
        with pytest.raises(OSError, match="No space"):
            writer.append([b"x"])
    assert list(tmp_path.iterdir()) == []
