"""What a node does not take, that it says why, and that it goes on by itself when it can."""

import os
from pathlib import Path

import pytest

from common import clock
from common.errors import ProtocolError, StorageError
from common.selector import Selector
from tests.workers.storage.support import EVERYWHERE, batch_of, key, open_store, rows_of
from workers.storage import limits
from workers.storage.deletes import DeleteRecord
from workers.storage.limits import DiskFloor, DiskFloorError
from workers.storage.store import Store

A, B, C, D = (key(each) for each in "abcd")


def count(store: Store, device: str = "a") -> int:
    return store.aggregate(device, "temperature", None, EVERYWHERE, None, None).count


def test_series_beyond_the_limit_are_refused_and_known_ones_go_on(tmp_path: Path) -> None:
    store = open_store(tmp_path, max_series=2)
    first = batch_of([(A, 1, 1.0), (B, 1, 1.0), (C, 1, 1.0), (A, 2, 1.0), (C, 2, 1.0), (D, 3, 1.0)])
    second = batch_of([(D, 4, 1.0), (A, 4, 1.0)])
    reason = "new series beyond the limit: storage.max_series = 2"
    assert store.append([first, second]) == [[(2, reason), (4, reason), (5, reason)], [(0, reason)]]
    assert [count(store, each) for each in "abcd"] == [3, 1, 0, 0]
    assert (store.status()["series"], store.status()["refused_rows"]) == (2, 4)
    assert store.append([batch_of(rows_of(B, [7]))]) == [[]]
    store.close()


def test_new_series_of_one_group_count_once_for_all_its_batches(tmp_path: Path) -> None:
    store = open_store(tmp_path, max_series=2)
    group = [batch_of(rows_of(each, [1])) for each in (A, B, A, B, C)]
    assert [len(refused) for refused in store.append(group)] == [0, 0, 0, 0, 1]
    store.close()


def test_what_was_acked_is_replayed_whatever_the_limit_is_now(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.append([batch_of([(each, 1, 1.0) for each in (A, B, C)])])
    store.close()
    store = open_store(tmp_path, max_series=1)
    assert [count(store, each) for each in "abc"] == [1, 1, 1]
    assert [len(refused) for refused in store.append([batch_of([(C, 2, 1.0), (D, 2, 1.0)])])] == [1]
    store.close()


def test_rows_that_a_delete_drops_make_no_series_and_are_not_refused(tmp_path: Path) -> None:
    store = open_store(tmp_path, max_series=1)
    store.delete(DeleteRecord(5, Selector("b")))
    group = [batch_of([(B, 1, 1.0), (A, 1, 1.0)], born=4)]
    assert store.append(group) == [[]]
    assert (count(store, "a"), count(store, "b")) == (1, 0)
    store.close()


def test_key_that_is_not_canonical_spoils_the_group_and_nothing_is_stored(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with pytest.raises(ProtocolError, match="series key"):
        store.append([batch_of(rows_of(A, [1])), batch_of(rows_of(b"\x92\xa1a\xd9\x01b", [1]))])
    assert count(store) == 0
    store.close()


def test_rows_left_of_a_batch_are_replayed_as_they_were_stored(tmp_path: Path) -> None:
    store = open_store(tmp_path, max_series=1)
    rows = [(A, 3, 3.0), (B, 1, 1.0), (A, 1, 1.0), (B, 2, 2.0), (A, 2, 2.0)]
    assert len(store.append([batch_of(rows)])[0]) == 2
    store.close()
    store = open_store(tmp_path)
    ((found, times, values),) = store.samples(Selector("a"), EVERYWHERE, None, None)
    assert (found, times.tolist(), values.tolist()) == (A, [1, 2, 3], [1.0, 2.0, 3.0])
    assert store.status()["series"] == 1
    store.close()


def test_disk_floor_looks_once_a_second_and_lets_pass_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, free = [0.0], [100]
    monkeypatch.setattr(clock, "monotonic_s", lambda: now[0])
    floor = DiskFloor(tmp_path, 100, lambda _: free[0])
    floor.check()
    free[0] = 99
    floor.check()
    now[0] += 1
    with pytest.raises(DiskFloorError, match=r"99 bytes free, want storage\.disk_floor_bytes = 100"):
        floor.check()
    free[0] = 100
    with pytest.raises(DiskFloorError):
        floor.check()
    now[0] += 1
    floor.check()


def test_directory_that_is_gone_is_an_error_of_the_disk(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="gone: No such file"):
        DiskFloor(tmp_path / "gone", 1).check()


def test_store_on_a_disk_that_is_nearly_full_refuses_and_resumes_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = limits.free_bytes(tmp_path)
    ballast = 1 << 30
    if free < 3 * ballast:
        pytest.skip(f"{free} bytes free, want {3 * ballast}")
    now = [0.0]
    monkeypatch.setattr(clock, "monotonic_s", lambda: now[0])
    store = open_store(tmp_path / "s", disk_floor_bytes=free - ballast // 2)
    store.append([batch_of(rows_of(A, [1]))])
    with (tmp_path / "ballast").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, ballast)
    now[0] += 1
    with pytest.raises(DiskFloorError):
        store.append([batch_of(rows_of(A, [2]))])
    assert count(store) == 1
    store.seal()  # what frees WAL files goes on
    assert store.delete(DeleteRecord(1, Selector("b"))) is True
    (tmp_path / "ballast").unlink()
    now[0] += 1
    assert store.append([batch_of(rows_of(A, [2]), born=1)]) == [[]]
    assert count(store) == 2
    store.close()


def test_head_is_frozen_when_its_memory_reaches_the_limit(tmp_path: Path) -> None:
    store = open_store(tmp_path, head_bytes=1 << 20)
    for number in range(30):
        rows = [(key(f"d{each}"), number, 1.0) for each in range(2000)]
        store.append([batch_of(rows)])
    status = store.status()
    assert status["sealed_rows"] + 2000 * status["sealing_backlog"] > 0
    assert status["head_bytes"] < 3 << 20
    assert count(store, "d7") == 30
    store.close()
