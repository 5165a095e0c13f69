"""What the store does in the background: it changes no answer but that of a file it had to set aside."""

import errno
import io
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from common import clock, files
from common.errors import StorageError
from common.selector import Selector
from tests.support import wait_until
from tests.workers.storage.support import EVERYWHERE, batch_of, key, open_store, rows_of
from workers.storage import compaction_plan, maintenance
from workers.storage.retention import DAY_NS, SETTLE_S
from workers.storage.store import DeleteRecord, Store

A, B = key("a"), key("b")


def count(store: Store, device: str) -> int:
    return store.aggregate(device, "temperature", None, EVERYWHERE, 0, None).count


def inner(store: Store, device: str) -> int:
    """A count for which a block has to be decoded."""
    return store.aggregate(device, "temperature", None, EVERYWHERE, 1, None).count


def two_segments(directory: Path, disk: files.Disk = files.DISK) -> tuple[Store, list[Path]]:
    store = open_store(directory, disk)
    for each in (A, B):
        store.append([batch_of(rows_of(each, range(100)))])
        store.seal()
    return store, sorted((directory / "segments").iterdir())


def flip(path: Path) -> None:
    """Spoil the first block, which lies behind the header of 96 bytes."""
    data = bytearray(path.read_bytes())
    data[96] ^= 1
    path.write_bytes(data)


def test_a_segment_that_a_query_finds_damaged_fails_that_query_alone_and_is_put_on_record(tmp_path: Path) -> None:
    store, (of_a, _) = two_segments(tmp_path)
    flip(of_a)
    with pytest.raises(StorageError, match=rf"{of_a}: block 0 at 96 has CRC"):
        inner(store, "a")
    assert (inner(store, "a"), inner(store, "b")) == (0, 99)
    (note,) = store.status()["damaged"]
    assert note["file"] == of_a.name and "block 0" in note["reason"]
    assert (note["points"], note["series"], note["first_time"], note["last_time"]) == (100, 1, 0, 99)
    assert (tmp_path / "damaged" / of_a.name).exists() and not of_a.exists()
    store.close()
    store = open_store(tmp_path)
    assert (count(store, "a"), count(store, "b"), len(store.status()["damaged"])) == (0, 100, 1)
    store.close()


@pytest.mark.parametrize("read", ["samples", "by_series", "by_interval"])
def test_every_way_of_reading_finds_it(tmp_path: Path, read: str) -> None:
    store, (of_a, _) = two_segments(tmp_path)
    flip(of_a)
    with pytest.raises(StorageError, match="has CRC"):
        if read == "samples":
            list(store.samples(Selector("a"), EVERYWHERE, None, None))
        elif read == "by_series":
            store.by_series(Selector("a"), EVERYWHERE, 1, None)
        else:
            store.by_interval(Selector("a"), EVERYWHERE, None, None, 7)
    assert len(store.status()["damaged"]) == 1
    assert count(store, "a") == 0
    store.close()


def test_many_readers_that_find_the_same_damage_set_it_aside_once(tmp_path: Path) -> None:
    store, (of_a, _) = two_segments(tmp_path)
    flip(of_a)
    failed: list[StorageError] = []
    together = threading.Barrier(8)

    def read() -> None:
        together.wait()
        try:
            inner(store, "a")
        except StorageError as error:
            failed.append(error)

    readers = [threading.Thread(target=read) for _ in range(8)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert failed and len(store.status()["damaged"]) == 1
    store.close()


class Rigid(files.Disk):
    """Moves no segments."""

    def rename(self, old: Path, new: Path) -> None:
        if new.parent.name == "damaged" and new.suffix == ".mts":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(old))
        super().rename(old, new)


def test_a_damaged_segment_that_cannot_be_moved_is_out_of_the_view_all_the_same(tmp_path: Path) -> None:
    store, (of_a, _) = two_segments(tmp_path, Rigid())
    flip(of_a)
    with pytest.raises(StorageError, match="has CRC"):
        inner(store, "a")
    assert (inner(store, "a"), inner(store, "b"), of_a.exists()) == (0, 99, True)
    assert len(store.status()["damaged"]) == 1
    store.close()


class BadSector:
    """Lets nothing of one file be read, as a bad sector does, but for its first bytes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: Path, readable: int) -> None:
        self._file, self._readable = path.stat().st_ino, readable
        self._pread, self._open = os.pread, io.open
        monkeypatch.setattr(os, "pread", self.pread)
        monkeypatch.setattr(io, "open", self.open)

    def pread(self, descriptor: int, size: int, at: int) -> bytes:
        if os.fstat(descriptor).st_ino == self._file and at + size > self._readable:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return self._pread(descriptor, size, at)

    def open(self, path: Path, *args: Any, **named: Any) -> Any:
        if path.exists() and path.stat().st_ino == self._file:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return self._open(path, *args, **named)


def test_a_segment_on_a_bad_sector_is_set_aside_by_the_query_that_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, (of_a, _) = two_segments(tmp_path)
    BadSector(monkeypatch, of_a, 96)
    with pytest.raises(StorageError, match="cannot be read"):
        inner(store, "a")
    assert (inner(store, "a"), inner(store, "b"), of_a.exists()) == (0, 99, False)
    (note,) = store.status()["damaged"]
    assert (note["file"], note["points"]) == (of_a.name, None)
    store.close()


def test_a_segment_on_a_bad_sector_does_not_keep_a_node_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, (of_a, _) = two_segments(tmp_path)
    store.close()
    BadSector(monkeypatch, of_a, 0)
    store = open_store(tmp_path)
    assert (inner(store, "a"), inner(store, "b"), of_a.exists()) == (0, 99, False)
    store.close()


def test_rows_of_a_damaged_part_of_a_group_come_back_from_a_wal_file_that_could_not_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Keeping(files.Disk):
        def remove(self, path: Path) -> None:
            if path.suffix == ".log":
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
            super().remove(path)

    monkeypatch.setattr(compaction_plan, "SPLIT_ROWS", 1)
    monkeypatch.setattr(compaction_plan, "SPLIT_ROWS_PER_SERIES", 1)
    store = open_store(tmp_path, Keeping())
    for begin in (0, 5):
        store.append([batch_of(rows_of(A, [time * compaction_plan.PERIOD_NS // 5 for time in range(begin, 10, 2)]))])
        store.seal()
    before = count(store, "a")
    store.compact()
    store.close()
    first, _ = sorted((tmp_path / "segments").iterdir())
    first.write_bytes(first.read_bytes()[:-1])
    store = open_store(tmp_path)
    assert (count(store, "a"), len(store.status()["damaged"])) == (before, 1)
    store.close()
    store = open_store(tmp_path)
    assert count(store, "a") == before
    store.close()


def test_deleted_rows_are_dropped_in_the_background_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "DELETES_WAIT_S", 0.0)
    store, _ = two_segments(tmp_path)
    store.delete(DeleteRecord(1, Selector("a"), 0, 49))
    wait_until(lambda: store.status()["segment_points"] == 150, what="50 rows dropped")
    wait_until(lambda: store.status()["deletes_unapplied"] == 0, what="nothing left to be applied")
    assert (count(store, "a"), count(store, "b")) == (50, 100)
    store.close()


def test_a_delete_that_touches_no_segment_rewrites_none(tmp_path: Path) -> None:
    store, paths = two_segments(tmp_path)
    store.delete(DeleteRecord(1, Selector("a"), 100, 200))
    store.delete(DeleteRecord(2, Selector("c")))
    store.compact()  # merges the two
    store.delete(DeleteRecord(3, Selector("a"), 100, 200))
    before = sorted((tmp_path / "segments").iterdir())
    store.compact()
    assert sorted((tmp_path / "segments").iterdir()) == before != paths
    assert store.status()["deletes_unapplied"] == 0
    store.close()


def test_sealing_many_small_heads_ends_in_few_segments(tmp_path: Path) -> None:
    store = open_store(tmp_path, compaction_share=1.0)
    for begin in range(40):
        store.append([batch_of([(A, begin, 1.0), (B, begin, 2.0)])])
        store.seal()
    wait_until(lambda: store.status()["segments"] <= 9, what="at most three segments of each tier")
    assert (count(store, "a"), count(store, "b")) == (40, 40)
    store.close()


def test_queries_never_see_a_row_twice_or_not_at_all_while_segments_are_merged(tmp_path: Path) -> None:
    store = open_store(tmp_path, compaction_share=1.0)
    stop = threading.Event()
    wrong: list[tuple[int, int]] = []
    acked = [0]

    def read() -> None:
        while not stop.is_set():
            least = acked[0]
            found = count(store, "a")
            if not least <= found <= acked[0] + 10:
                wrong.append((least, found))

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for begin in range(0, 600, 10):
        store.append([batch_of(rows_of(A, range(begin, begin + 10)))])
        acked[0] = begin + 10
        store.seal()
    store.compact()
    stop.set()
    for reader in readers:
        reader.join()
    assert (wrong, count(store, "a"), store.status()["segments"]) == ([], 600, 1)
    store.close()


def test_a_segment_that_is_half_expired_is_rewritten_without_those_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    day, now = 20_000, [0.0]
    monkeypatch.setattr(clock, "wall_ns", lambda: day * DAY_NS + int(now[0] * 1e9))
    monkeypatch.setattr(clock, "monotonic_s", lambda: now[0])
    store = open_store(tmp_path, retention_days=30)
    store.append([batch_of(rows_of(A, [each * DAY_NS for each in range(day - 30, day)]))])
    store.seal()
    for _ in range(4):
        now[0] += 20 * 86_400 / 4 + SETTLE_S
        store.tick()
    now[0] += SETTLE_S
    store.tick()
    store.compact()
    left = count(store, "a")
    assert 5 <= left <= 10
    assert left <= store.status()["segment_points"] <= left + 6  # the settled cutoff is one look behind
    store.close()
