"""Durable files: what is replaced is whole, what fails leaves the old one, what is locked stays so."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import files
from common.errors import StorageError


def test_crc32c_is_the_castagnoli_polynomial():
    assert files.crc32c(b"123456789") == 0xE3069283
    assert files.crc32c(b"") == 0


@given(st.binary(max_size=300), st.integers(0, 300))
def test_crc32c_continues_from_what_came_before(data, cut):
    assert files.crc32c(data[cut:], files.crc32c(data[:cut])) == files.crc32c(data)


def test_replaced_files_hold_all_chunks_and_leave_no_temporary(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old and longer than what follows")
    files.replace_file(path, [b"new", bytearray(b" "), memoryview(b"text")])
    assert path.read_bytes() == b"new text"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_mode_of_a_new_file_is_as_asked(tmp_path):
    files.replace_file(tmp_path / "secret", [b"x"], mode=0o600)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600


def test_leftover_temporary_of_a_crash_is_overwritten(tmp_path):
    (tmp_path / "a.tmp").write_bytes(b"half of something much longer")
    files.replace_file(tmp_path / "a", [b"whole"])
    assert (tmp_path / "a").read_bytes() == b"whole"
    assert not (tmp_path / "a.tmp").exists()


def test_writing_to_a_full_disk_raises():
    with Path("/dev/full").open("wb", buffering=0) as full, pytest.raises(OSError, match="No space left"):
        files.write_all(full.fileno(), b"x")


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    monkeypatch.setattr(files.os, "fsync", _failing_fsync)
    with pytest.raises(OSError, match="Input/output error"):
        files.replace_file(path, [b"new"])
    assert path.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def _failing_fsync(_descriptor):
    raise OSError(5, "Input/output error")


class Recorder(files.Disk):
    """Notes the calls that touch names or make something durable; `failing` raises."""

    def __init__(self, failing=""):
        self.calls = []
        self._failing = failing

    def __getattribute__(self, name):
        if name.startswith("_") or name == "calls":
            return super().__getattribute__(name)

        def call(*given):
            self.calls.append((name, *(each for each in given if isinstance(each, Path))))
            if name == self._failing:
                raise OSError(5, "Input/output error")
            return getattr(files.DISK, name)(*given)

        return call


def test_new_names_are_made_durable_in_their_directories(tmp_path):
    disk = Recorder()
    below = tmp_path / "a" / "b"
    files.make_directory(below, disk)
    files.replace_file(below / "file", [b"x"], disk=disk)
    files.remove_files([below / "file", below / "never there"], disk)
    assert disk.calls == [
        ("make_directory", tmp_path / "a"), ("sync_directory", tmp_path),
        ("make_directory", below), ("sync_directory", tmp_path / "a"),
        ("create", below / "file.tmp"), ("write",), ("sync",), ("close",),
        ("rename", below / "file.tmp", below / "file"), ("sync_directory", below),
        ("remove", below / "file"), ("remove", below / "never there"), ("sync_directory", below),
    ]  # fmt: skip


@pytest.mark.parametrize("call", ["write", "sync", "close", "rename"])
def test_a_new_file_that_fails_leaves_the_old_one_and_no_temporary(tmp_path, call):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="Input/output error"), files.NewFile(path, Recorder(call)) as file:
        file.write(b"new")
        file.commit()
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["a"]


def test_a_new_file_is_not_there_before_its_commit_nor_after_an_abort(tmp_path):
    with files.NewFile(tmp_path / "a") as file:
        file.write(b"some")
        file.write(np.arange(2))
        assert file.length == 20
        assert not (tmp_path / "a").exists()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="a bug"), files.NewFile(tmp_path / "a") as file:
        raise ValueError("a bug")
    assert list(tmp_path.iterdir()) == []
    with files.NewFile(tmp_path / "a") as file:
        file.write(b"some")
        file.commit()
        file.abort()
    assert (tmp_path / "a").read_bytes() == b"some"


def test_files_are_cut_and_made_exclusively(tmp_path):
    path = tmp_path / "a"
    descriptor = files.DISK.create(path, exclusive=True)
    files.DISK.write(descriptor, b"0123456789")
    files.DISK.close(descriptor)
    with pytest.raises(FileExistsError):
        files.DISK.create(path, exclusive=True)
    descriptor = files.DISK.open(path)
    files.DISK.truncate(descriptor, 4)
    files.DISK.sync_data(descriptor)
    files.DISK.close(descriptor)
    assert path.read_bytes() == b"0123"


def test_short_writes_are_continued(monkeypatch):
    written = bytearray()
    monkeypatch.setattr(files.os, "write", lambda _, view: written.extend(view[:3]) or min(3, len(view)))
    files.write_all(0, b"0123456789")
    assert written == b"0123456789"


def test_a_lock_that_cannot_be_opened_is_an_error_in_words(tmp_path):
    (tmp_path / "LOCK").mkdir()
    with pytest.raises(StorageError, match="/LOCK: Is a directory"):
        files.DirectoryLock(tmp_path)
    with pytest.raises(StorageError, match="missing/LOCK: No such file or directory"):
        files.DirectoryLock(tmp_path / "missing")


def test_a_directory_is_held_by_one_process_until_it_dies(tmp_path):
    hold = "import sys; from pathlib import Path; from common.files import DirectoryLock;"
    hold += "lock = DirectoryLock(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StorageError, match="is in use by another process"):
            files.DirectoryLock(tmp_path)
        holder.kill()
    lock = files.DirectoryLock(tmp_path)
    with pytest.raises(StorageError):
        files.DirectoryLock(tmp_path)
    lock.release()
    files.DirectoryLock(tmp_path).release()
