"""Durable files: what is replaced is whole, what fails leaves the old one, what is locked stays so."""

import subprocess
import sys
from pathlib import Path

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


def test_new_names_are_made_durable_in_their_directories(tmp_path, monkeypatch):
    synced: list[Path] = []
    monkeypatch.setattr(files, "fsync_directory", synced.append)
    files.make_directory(tmp_path / "a" / "b")
    files.replace_file(tmp_path / "a" / "b" / "file", [b"x"])
    files.remove_files([tmp_path / "a" / "b" / "file", tmp_path / "a" / "b" / "never there"])
    assert synced == [tmp_path, tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b"]


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
