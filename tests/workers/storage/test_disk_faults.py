"""A disk that fails: nothing acked is lost, nothing is lied about, and ingest goes on when the disk does."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from common import files
from common.errors import StorageError
from tests.support import wait_until
from tests.workers.storage.support import EVERYWHERE, batch_of, copy_as_if_killed, key, open_store, rows_of
from workers.storage import layout, seal, sealer, wal
from workers.storage.store import Store


class BadDisk(files.Disk):
    """Fails the calls named in `failing`, on files of the kind in `suffix`; a write that fails has written half."""

    def __init__(self, suffix: str = ".log") -> None:
        self.failing: set[str] = set()
        self.error = errno.ENOSPC
        self.created: list[Path] = []
        self._suffix = suffix
        self._concerned: set[int] = set()  # descriptors

    def create(self, path: Path, mode: int = 0o644, exclusive: bool = False) -> int:
        if not path.name.removesuffix(files.TEMPORARY).endswith(self._suffix):
            return super().create(path, mode, exclusive)
        self._fail("create")
        self.created.append(path)
        descriptor = super().create(path, mode, exclusive)
        self._concerned.add(descriptor)
        return descriptor

    def write(self, descriptor: int, data: Any) -> None:
        if descriptor in self._concerned:
            call = "records" if len(data) > wal.HEADER_BYTES else "header"
            if self.failing & {"write", call}:
                os.write(descriptor, data[: len(data) // 2])
            self._fail("write")
            self._fail(call)
        super().write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        if descriptor in self._concerned:
            self._fail("sync")
        super().sync(descriptor)

    def sync_data(self, descriptor: int) -> None:
        if descriptor in self._concerned:
            self._fail("sync")
        super().sync_data(descriptor)

    def close(self, descriptor: int) -> None:
        self._concerned.discard(descriptor)
        super().close(descriptor)

    def remove(self, path: Path) -> None:
        if path.suffix == self._suffix:
            self._fail("remove")
        super().remove(path)

    def _fail(self, name: str) -> None:
        if name in self.failing:
            raise OSError(self.error, os.strerror(self.error))


def append(store: Store, time: int) -> None:
    store.append([batch_of(rows_of(key("a"), [time]))])


def times_of(store: Store) -> tuple[int, int, int]:
    reply = store.aggregate("a", "temperature", None, EVERYWHERE, None, None)
    return reply.count, reply.first_time, reply.last_time


@pytest.mark.parametrize("call", ["create", "write", "records", "sync"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_failed_group_is_not_acked_and_the_next_one_after_it_is_kept(tmp_path: Path, call: str, error: int) -> None:
    disk = BadDisk()
    disk.error = error
    store = open_store(tmp_path / "s", disk)
    append(store, 1)
    if call in ("create", "write"):
        store.seal()  # so that a new file is needed
    disk.failing = {call}
    for _ in range(3):
        with pytest.raises(StorageError, match=os.strerror(error)):
            append(store, 2)
    assert times_of(store) == (1, 1, 1)
    disk.failing = set()
    append(store, 3)
    assert times_of(store) == (2, 1, 3)
    left = copy_as_if_killed(tmp_path / "s", tmp_path / "killed")
    store.close()
    again = open_store(left)
    assert times_of(again) == (2, 1, 3)
    assert again.status()["damaged"] == []
    again.close()


def test_file_that_failed_is_never_written_again(tmp_path: Path) -> None:
    disk = BadDisk()
    store = open_store(tmp_path / "s", disk)
    append(store, 1)
    disk.failing = {"sync"}
    with pytest.raises(StorageError):
        append(store, 2)
    disk.failing = set()
    failed = disk.created[-1]
    size = failed.stat().st_size
    append(store, 3)
    assert disk.created[-1] != failed
    assert failed.stat().st_size == size
    store.close()


def test_retries_on_a_full_disk_leave_no_files_behind(tmp_path: Path) -> None:
    disk = BadDisk()
    store = open_store(tmp_path / "s", disk)
    append(store, 1)
    disk.failing = {"records"}
    for _ in range(20):
        with pytest.raises(StorageError):
            append(store, 2)
    assert len(list((tmp_path / "s" / "wal").iterdir())) == 1
    assert store.status()["wal_failures"] == 20
    store.close()


@pytest.mark.parametrize("call", ["create", "write", "sync"])
def test_sealing_that_fails_is_reported_and_succeeds_when_the_disk_does(tmp_path: Path, call: str) -> None:
    disk = BadDisk(".mts")
    disk.failing = {call}
    store = open_store(tmp_path / "s", disk, head_rows=1000)
    append(store, 1)
    with pytest.raises(StorageError, match="No space left"):
        store.seal()
    assert store.status()["sealing_backlog"] == 1
    assert times_of(store) == (1, 1, 1)
    assert list((tmp_path / "s" / "segments").iterdir()) == []
    disk.failing = set()
    wait_until(lambda: store.status()["sealing_backlog"] == 0)
    assert times_of(store) == (1, 1, 1)
    assert store.status()["segments"] == 1
    store.close()


def test_sealing_that_meets_a_bug_is_counted_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path / "s")
    append(store, 1)
    write = seal.write_segment

    def stumble(*given: Any) -> None:
        monkeypatch.setattr(seal, "write_segment", write)
        raise ValueError("a bug, once")

    monkeypatch.setattr(seal, "write_segment", stumble)
    with pytest.raises(StorageError, match=r"sealing fails: BUG: ValueError\('a bug, once'\)"):
        store.seal()
    wait_until(lambda: store.status()["sealing_backlog"] == 0)
    assert (store.status()["sealing_failures"], store.status()["segments"]) == (1, 1)
    append(store, 2)
    store.seal()
    assert times_of(store) == (2, 1, 2)
    store.close()


def test_wal_directory_that_cannot_be_listed_after_sealing_changes_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path / "s")
    append(store, 1)
    numbers = layout.Layout.wal_numbers

    def refuse(place: layout.Layout) -> list[int]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(layout.Layout, "wal_numbers", refuse)
    store.seal()
    monkeypatch.setattr(layout.Layout, "wal_numbers", numbers)
    status = store.status()
    assert (status["segments"], status["points"], status["sealing_failures"], status["wal_files"]) == (1, 1, 0, 1)
    store.close()


def test_writer_is_told_when_heads_cannot_be_sealed_any_more(tmp_path: Path) -> None:
    disk = BadDisk(".mts")
    disk.failing = {"write"}
    store = open_store(tmp_path / "s", disk, head_rows=1000)
    groups = 0
    with pytest.raises(StorageError, match=f"{sealer.BACKLOG} heads wait to be sealed, and sealing fails"):
        for groups in range(10):
            store.append([batch_of(rows_of(key("a"), range(groups * 1000, (groups + 1) * 1000)))])
    assert groups == sealer.BACKLOG + 1
    assert times_of(store)[0] == 1000 * groups
    left = copy_as_if_killed(tmp_path / "s", tmp_path / "killed")
    disk.failing = set()
    wait_until(lambda: store.status()["sealing_backlog"] == 0)
    store.append([batch_of(rows_of(key("a"), range(groups * 1000, (groups + 1) * 1000)))])
    assert times_of(store)[0] == 1000 * (groups + 1)
    store.close()
    again = open_store(left)
    assert times_of(again)[0] == 1000 * groups
    again.close()


def test_wal_files_that_cannot_be_removed_after_sealing_are_not_applied_twice(tmp_path: Path) -> None:
    disk = BadDisk()
    store = open_store(tmp_path / "s", disk)
    append(store, 1)
    disk.failing = {"remove"}
    store.seal()
    assert store.status()["wal_files"] == 1
    disk.failing = set()
    append(store, 2)
    store.close()
    again = open_store(tmp_path / "s")
    assert times_of(again) == (2, 1, 2)
    assert (again.status()["replayed_rows"], again.status()["wal_files"]) == (1, 1)
    again.close()
