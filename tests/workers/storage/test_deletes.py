"""What a delete hides, what it never touches, and that neither comes back nor gets lost, whatever is cut short."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import files, series
from common.errors import ProtocolError, StorageError
from common.selector import Selector
from common.timestamps import MAX_NS, MIN_NS
from tests.workers.storage.support import EVERYWHERE, batch_of, copy_as_if_killed, key, open_store, rows_of
from workers.storage import deletes, layout
from workers.storage.deletes import DeleteRecord, Deletes, Mask
from workers.storage.layout import DamagedError
from workers.storage.store import Store

A = key("a")
TAGGED = key("a", room="7")
OTHER = key("b")
ALL_OF_A = DeleteRecord(5, Selector("a"))
INNER = DeleteRecord(5, Selector("a", "temperature", {}), 10, 19)


def count(store: Store, device: str = "a") -> int:
    reply = store.aggregate(device, "temperature", None, EVERYWHERE, None, None)
    points = sum(len(times) for _, times, _ in store.samples(Selector(device), EVERYWHERE, None, None))
    assert reply.count == points
    return points


def fill(store: Store, *keys: bytes, born: int = 1) -> None:
    for each in keys or (A,):
        assert store.append([batch_of(rows_of(each, range(100)), born)]) == [[]]


@pytest.fixture(params=["in the head", "sealed", "sealed and in the head"])
def filled(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    store = open_store(tmp_path / "s")
    fill(store, A, TAGGED, OTHER)
    if request.param != "in the head":
        store.seal()
    if request.param == "sealed and in the head":
        fill(store, A, TAGGED, OTHER)
    return store


def reopened(store: Store, tmp_path: Path) -> Store:
    store.close()
    return open_store(tmp_path / "s")


@pytest.mark.parametrize(
    ("record", "left", "left_of_a"),
    [
        (ALL_OF_A, 0, 0),
        (DeleteRecord(5, Selector("a", "temperature")), 0, 0),
        (DeleteRecord(5, Selector("a", "pressure")), 200, 100),
        (DeleteRecord(5, Selector("a", None, {})), 100, 0),
        (DeleteRecord(5, Selector("a", "temperature", {"room": "7"})), 100, 100),
        (INNER, 190, 90),
        (DeleteRecord(5, Selector("a"), 99, MAX_NS), 198, 99),
        (DeleteRecord(5, Selector("a"), MIN_NS, 0), 198, 99),
        (DeleteRecord(5, Selector("a"), 100, 200), 200, 100),
    ],
)
def test_delete_is_visible_at_once_and_stays_through_restart_sealing_and_compaction(
    filled: Store, tmp_path: Path, record: DeleteRecord, left: int, left_of_a: int
) -> None:
    assert filled.delete(record) is True
    for step in (lambda: filled, lambda: reopened(filled, tmp_path)):
        store = step()
        assert (count(store), count(store, "b")) == (left, 100)
        assert store.aggregate("a", "temperature", {}, EVERYWHERE, None, None).count == left_of_a
    store.seal()
    assert (count(store), count(store, "b")) == (left, 100)
    store.compact()
    assert (count(store), count(store, "b")) == (left, 100)
    assert store.status()["segment_points"] == left + 100
    assert store.status()["deletes_unapplied"] == 0
    store.close()


def test_points_written_after_a_delete_are_there_whatever_follows(filled: Store, tmp_path: Path) -> None:
    filled.delete(ALL_OF_A)
    fill(filled, A, born=5)
    assert count(filled) == 100
    killed = open_store(copy_as_if_killed(tmp_path / "s", tmp_path / "killed"))
    assert count(killed) == 100
    killed.close()
    store = reopened(filled, tmp_path)
    for step in (store.seal, store.compact):
        step()
        assert count(store) == 100
    store.close()


def test_correcting_a_value_is_delete_then_write(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.append([batch_of([(A, 7, 20.0), (A, 8, 1.0)])])
    store.delete(DeleteRecord(2, Selector("a"), 7, 7))
    store.append([batch_of([(A, 7, 10.0)], born=2)])
    reply = store.aggregate("a", "temperature", None, EVERYWHERE, None, None)
    assert (reply.count, reply.max) == (2, 10.0)
    store.close()


def test_rows_born_before_a_delete_that_arrive_behind_it_are_dropped_and_count_as_stored(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.delete(INNER)
    rows = [*rows_of(A, range(5, 25)), *rows_of(OTHER, range(5, 25))]
    assert store.append([batch_of(rows, born=4), batch_of(rows_of(A, [12, 13]), born=3)]) == [[], []]
    assert (count(store), count(store, "b")) == (10, 20)
    assert store.append([batch_of(rows_of(A, [12]), born=5)]) == [[]]
    assert count(store) == 11
    store.close()


def test_a_batch_of_which_nothing_is_left_reaches_neither_wal_nor_catalog(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.delete(ALL_OF_A)
    assert store.append([batch_of(rows_of(A, range(10)), born=4)]) == [[]]
    assert (store.status()["wal_files"], store.status()["series"]) == (0, 0)
    store.close()


def test_later_delete_wins_over_what_an_earlier_one_let_through(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    fill(store)
    store.delete(ALL_OF_A)
    fill(store, A, born=5)
    store.delete(DeleteRecord(7, Selector("a"), 0, 49))
    fill(store, OTHER)
    assert count(store) == 50
    store.append([batch_of(rows_of(A, range(40, 60)), born=6)])
    assert count(store) == 50
    store.close()
    store = open_store(tmp_path)
    assert (count(store), store.status()["delete_number"], store.status()["deletes"]) == (50, 7, 2)
    store.close()


def test_the_same_record_again_changes_nothing(filled: Store, tmp_path: Path) -> None:
    assert filled.delete(INNER)
    fill(filled, A, born=5)
    assert filled.delete(INNER) is False
    assert count(filled) == 200
    store = reopened(filled, tmp_path)
    assert store.delete(INNER) is False
    assert count(store) == 200
    store.close()


@pytest.mark.parametrize(
    ("record", "says"),
    [
        (DeleteRecord(5, Selector("b")), "delete 5 is known with another selector or range"),
        (DeleteRecord(5, Selector("a"), 10, 18), "delete 5 is known with another"),
        (DeleteRecord(4, Selector("a")), "delete 4 is not known, want a number above 5"),
        (DeleteRecord(0, Selector("a")), "delete number 0, want 1 to"),
        (DeleteRecord(10**16, Selector("a")), "want 1 to 9999999999999999"),
        (DeleteRecord(6, Selector("a" * (1 << 20))), "delete of 10486.. bytes, want at most 1048576"),
        (DeleteRecord(6, Selector("a"), 2, 1), "delete from 2 to 1 ns"),
        (DeleteRecord(6, Selector("a"), 0, 1 << 63), "want int64"),
    ],
)
def test_a_delete_that_cannot_be_is_refused_and_nothing_is_deleted(
    tmp_path: Path, record: DeleteRecord, says: str
) -> None:
    store = open_store(tmp_path)
    store.delete(ALL_OF_A)
    fill(store, A, OTHER, born=5)
    with pytest.raises(ProtocolError, match=says):
        store.delete(record)
    assert (count(store), count(store, "b"), len(list((tmp_path / "deletes").iterdir()))) == (100, 100, 1)
    store.close()


def test_killed_between_record_and_wal_file_the_delete_is_in_force_at_the_next_start(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s")
    fill(store, A, OTHER)
    left = copy_as_if_killed(tmp_path / "s", tmp_path / "killed")
    (left / "deletes" / "del-0000000000000005.mtd").write_bytes(deletes.pack(ALL_OF_A))
    store.close()
    store = open_store(left)
    assert (count(store), count(store, "b")) == (0, 100)
    fill(store, A, born=5)
    store.close()
    store = open_store(left)  # the rows replayed lie in WAL files of two numbers
    assert (count(store), count(store, "b")) == (100, 100)
    store.close()


def test_record_half_written_is_none(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    fill(store)
    store.close()
    (tmp_path / "deletes" / "del-0000000000000005.mtd.tmp").write_bytes(deletes.pack(ALL_OF_A))
    store = open_store(tmp_path)
    assert (count(store), store.status()["delete_number"]) == (100, 0)
    assert list((tmp_path / "deletes").iterdir()) == []
    store.close()


class NoDeletes(files.Disk):
    """Has no room for delete records while `full`; or cannot make their names durable."""

    def __init__(self, call: str) -> None:
        self.call = call
        self.full = False

    def create(self, path: Path, mode: int = 0o644, exclusive: bool = False) -> int:
        self._refuse("create", path)
        return super().create(path, mode, exclusive)

    def rename(self, old: Path, new: Path) -> None:
        self._refuse("rename", old)
        super().rename(old, new)

    def sync_directory(self, path: Path) -> None:
        self._refuse("sync_directory", path / "x")
        super().sync_directory(path)

    def _refuse(self, call: str, path: Path) -> None:
        if self.full and call == self.call and path.parent.name == "deletes":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


@pytest.mark.parametrize("call", ["create", "rename"])
def test_delete_that_the_disk_refuses_is_not_in_force_and_may_be_tried_again(tmp_path: Path, call: str) -> None:
    disk = NoDeletes(call)
    store = open_store(tmp_path, disk)
    fill(store)
    disk.full = True
    with pytest.raises(StorageError, match=r"delete 5 in .*No space left"):
        store.delete(ALL_OF_A)
    fill(store)
    assert (count(store), store.status()["delete_number"]) == (100, 0)
    disk.full = False
    assert store.delete(ALL_OF_A) is True
    assert count(store) == 0
    store.close()


@pytest.mark.parametrize("again", [True, False])
def test_nothing_is_stored_while_a_failed_delete_cannot_be_taken_back(tmp_path: Path, again: bool) -> None:
    disk = NoDeletes("sync_directory")
    store = open_store(tmp_path, disk)
    fill(store)
    disk.full = True
    with pytest.raises(StorageError, match=r"delete 5 in .*No space left"):
        store.delete(ALL_OF_A)
    for _ in range(2):
        with pytest.raises(StorageError, match="delete 5 failed and cannot be taken back"):
            fill(store)
    assert (count(store), store.status()["delete_number"]) == (100, 0)
    disk.full = False
    if again:
        assert store.delete(ALL_OF_A) is True
    fill(store)
    left = count(store)
    store.close()
    store = open_store(tmp_path)
    assert (count(store), store.status()["delete_number"]) == (left, 5 if again else 0)
    store.close()


def test_damaged_record_is_set_aside_with_a_warning_and_its_number_stays_in_force(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    fill(store)
    store.delete(ALL_OF_A)
    store.close()
    path = tmp_path / "deletes" / "del-0000000000000005.mtd"
    path.write_bytes(path.read_bytes()[:-1])
    for _ in range(2):
        store = open_store(tmp_path)
        (note,) = store.status()["damaged"]
        assert note["file"] == path.name and "delete them again" in note["reason"]
        assert (count(store), store.status()["delete_number"]) == (100, 5)
        with pytest.raises(ProtocolError, match="want a number above 5"):
            store.delete(ALL_OF_A)
        store.close()


def test_wal_file_written_under_a_lost_record_keeps_its_number(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.delete(ALL_OF_A)
    fill(store, A, born=5)
    store.close()
    (tmp_path / "deletes" / "del-0000000000000005.mtd").unlink()
    store = open_store(tmp_path)
    assert (count(store), store.status()["delete_number"]) == (100, 5)
    store.close()


def test_record_in_the_file_of_another_number_is_damaged(tmp_path: Path) -> None:
    open_store(tmp_path).close()
    (tmp_path / "deletes" / "del-0000000000000006.mtd").write_bytes(deletes.pack(ALL_OF_A))
    store = open_store(tmp_path)
    (note,) = store.status()["damaged"]
    assert "holds delete 5, want 6" in note["reason"]
    store.close()


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
records = st.builds(
    lambda number, device, metric, tags, span: DeleteRecord(number, Selector(device, metric, tags), *sorted(span)),
    st.integers(1, deletes.MAX_NUMBER),
    texts,
    st.none() | texts,
    st.none() | st.dictionaries(texts, texts, max_size=3),
    st.tuples(st.integers(MIN_NS, MAX_NS), st.integers(MIN_NS, MAX_NS)),
)


@given(records)
def test_record_read_is_the_one_written(record: DeleteRecord) -> None:
    data = deletes.pack(record)
    assert deletes.unpack(data, "here") == record
    assert deletes.pack(deletes.unpack(data, "here")) == data


@given(records, st.data())
def test_flipped_bit_in_a_record_is_found(record: DeleteRecord, data: Any) -> None:
    packed = bytearray(deletes.pack(record))
    at = data.draw(st.integers(0, 8 * len(packed) - 1))
    packed[at // 8] ^= 1 << at % 8
    with pytest.raises(StorageError, match="here"):
        deletes.unpack(bytes(packed), "here")


def test_newer_version_is_refused_with_both_versions() -> None:
    body = deletes.pack(ALL_OF_A)[layout.PREAMBLE_BYTES :]
    with pytest.raises(StorageError, match="format version 2, this program reads up to 1") as error:
        deletes.unpack(layout.pack_header(deletes.MAGIC, 2, body), "here")
    assert not isinstance(error.value, DamagedError)


@pytest.mark.parametrize("body", [b"", b"\x90", b"\x96\x00\xa1a\xc0\xc0\x00\x00", b"\x96\x01\xa1a\xc0\xc0\x01\x00"])
def test_body_that_is_no_record_is_damage(body: bytes) -> None:
    with pytest.raises(DamagedError, match="here: "):
        deletes.unpack(layout.pack_header(deletes.MAGIC, 1, body), "here")


@given(st.lists(records, max_size=8), texts, texts, st.none() | st.dictionaries(texts, texts, max_size=2))
def test_masks_of_a_series_are_those_of_the_records_that_match(
    found: list[DeleteRecord], device: str, metric: str, tags: dict[str, str] | None
) -> None:
    found = list({record.number: record for record in found}.values())
    one = series.series_key(device, metric, tags)
    want = [
        Mask(record.number, record.start, record.end)
        for record in sorted(found, key=lambda record: record.number)
        if record.selector.matches(series.parse_key(one))
    ]
    in_force = Deletes(found)
    for _ in range(2):  # the second time from the cache
        assert list(in_force.masks_of(one)) == want
    assert bool(in_force) == bool(found)


Keep = Callable[[int], bool]


@pytest.mark.parametrize(
    ("born", "kept"), [(1, lambda time: time < 3 or time > 8), (4, lambda time: time < 7 or time > 8), (6, lambda _: 1)]
)
def test_rows_kept_are_those_that_no_later_delete_masks(born: int, kept: Keep) -> None:
    in_force = Deletes([DeleteRecord(4, Selector("a"), 3, 7), DeleteRecord(6, Selector("a"), 7, 8)])
    batch = batch_of([row for time in range(12) for row in ((A, time, 1.0), (OTHER, time, 1.0))]).batch
    keep = in_force.keeps(batch, born)
    found = [bool(kept(time)) for time in range(12)]
    if all(found):
        assert keep is None
        return
    assert keep is not None
    assert keep[batch.index == batch.keys.index(A)].tolist() == found
    assert keep[batch.index == batch.keys.index(OTHER)].all()
