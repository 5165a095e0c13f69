"""What comes back from the WAL after a stop of any kind, and what is said of the rest."""

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from common import config, files
from common.errors import StorageError
from common.points import PointBatch
from tests import naive
from tests.support import wait_until
from tests.workers.storage.support import (
    EVERYWHERE,
    PARTITIONS,
    assert_answers,
    batch_of,
    copy_as_if_killed,
    key,
    open_store,
    rows_of,
)
from workers.storage import recovery, wal
from workers.storage.store import LoggedBatch, OpeningStopped, Store

HEADER = wal.HEADER_BYTES


def count(store: Store) -> int:
    """How many points of device a the store has."""
    return store.aggregate("a", "temperature", None, EVERYWHERE, None, None).count


def written(directory: Path, groups: int = 3, rows: int = 5) -> list[tuple[int, int]]:
    """Write groups of one record each, kill, and return where each record lies in the one WAL file."""
    store = open_store(directory)
    for group in range(groups):
        store.append([batch_of(rows_of(key("a"), range(group * rows, (group + 1) * rows)))])
    store.close()
    return record_spans(wal_file(directory).read_bytes())


def wal_file(directory: Path) -> Path:
    found = sorted((directory / "wal").iterdir())
    return found[-1]


def record_spans(data: bytes) -> list[tuple[int, int]]:
    spans = []
    at = HEADER
    while at < len(data):
        end = at + 12 + struct.unpack_from("<I", data, at + 4)[0]
        spans.append((at, end))
        at = end
    return spans


def damage_of(store: Store) -> list[dict[str, object]]:
    found = store.status()["damaged"]
    assert isinstance(found, list)
    return found


def test_tail_torn_at_any_byte_of_the_last_record_is_cut_and_the_rest_comes_back(tmp_path: Path) -> None:
    spans = written(tmp_path / "whole", rows=1)
    data = wal_file(tmp_path / "whole").read_bytes()
    begin, end = spans[-1]
    for length in range(begin, end):
        torn = copy_as_if_killed(tmp_path / "whole", tmp_path / f"torn{length}")
        wal_file(torn).write_bytes(data[:length])
        store = open_store(torn)
        assert count(store) == 2
        assert damage_of(store) == []
        assert store.status()["wal_cut_bytes"] == length - begin
        assert wal_file(torn).stat().st_size == begin
        store.close()


@pytest.mark.parametrize("garbage", [b"\x00" * 100, b"\xf5MTR", b"\xf5MTR\xff\xff\xff\xff\x00\x00\x00\x00abc", b"x"])
def test_garbage_behind_the_last_record_is_cut(tmp_path: Path, garbage: bytes) -> None:
    written(tmp_path / "s")
    with wal_file(tmp_path / "s").open("ab") as file:
        file.write(garbage)
    store = open_store(tmp_path / "s")
    assert (count(store), store.status()["wal_cut_bytes"], damage_of(store)) == (15, len(garbage), [])
    store.append([batch_of(rows_of(key("a"), [100]))])
    store.close()
    again = open_store(tmp_path / "s")
    assert (count(again), damage_of(again)) == (16, [])
    again.close()


def test_flipped_bit_anywhere_in_a_middle_record_loses_that_record_alone_and_is_reported(tmp_path: Path) -> None:
    spans = written(tmp_path / "whole", rows=1)
    data = wal_file(tmp_path / "whole").read_bytes()
    begin, end = spans[1]
    for at in range(begin, end):
        bad = copy_as_if_killed(tmp_path / "whole", tmp_path / f"bad{at}")
        flipped = bytearray(data)
        flipped[at] ^= 0x10
        wal_file(bad).write_bytes(flipped)
        store = open_store(bad)
        assert count(store) == 2
        (note,) = damage_of(store)
        assert (note["file"], note["offset"], note["length"]) == (wal_file(bad).name, begin, end - begin)
        kept = bad / "damaged" / f"{wal_file(bad).stem}-at-{begin}.bytes"
        assert kept.read_bytes() == bytes(flipped[begin:end])
        store.close()


def test_damage_is_still_reported_after_the_next_restart_and_after_sealing(tmp_path: Path) -> None:
    spans = written(tmp_path / "s")
    flip(wal_file(tmp_path / "s"), spans[0][0] + 20)
    for _ in range(2):
        store = open_store(tmp_path / "s")
        assert len(damage_of(store)) == 1
        store.close()
    store = open_store(tmp_path / "s")
    store.seal()
    store.close()
    assert list((tmp_path / "s" / "wal").iterdir()) == []
    store = open_store(tmp_path / "s")
    assert (count(store), len(damage_of(store))) == (10, 1)
    store.close()


def test_tail_damage_in_a_file_that_is_not_the_newest_is_damage(tmp_path: Path) -> None:
    written(tmp_path / "s")
    first = wal_file(tmp_path / "s")
    store = open_store(tmp_path / "s")
    store.append([batch_of(rows_of(key("a"), [100]))])
    store.close()
    begin, _ = record_spans(first.read_bytes())[-1]
    flip(first, begin + 30)
    store = open_store(tmp_path / "s")
    assert count(store) == 11
    assert [note["offset"] for note in damage_of(store)] == [begin]
    store.close()


def test_older_file_that_lost_its_end_is_reported(tmp_path: Path) -> None:
    written(tmp_path / "s")
    first = wal_file(tmp_path / "s")
    store = open_store(tmp_path / "s")
    store.append([batch_of(rows_of(key("a"), [100]))])
    store.close()
    begin, end = record_spans(first.read_bytes())[-1]
    os.truncate(first, begin)
    store = open_store(tmp_path / "s")
    assert count(store) == 11
    (note,) = damage_of(store)
    assert (note["file"], note["offset"], note["length"]) == (first.name, begin, end - begin)
    store.close()


def test_missing_file_between_others_is_reported(tmp_path: Path) -> None:
    paths = []
    for time in range(3):
        store = open_store(tmp_path / "s")
        store.append([batch_of(rows_of(key("a"), [time]))])
        store.close()
        paths.append(wal_file(tmp_path / "s"))
    paths[1].unlink()
    store = open_store(tmp_path / "s")
    assert count(store) == 2
    assert [(note["file"], "missing" in str(note["reason"])) for note in damage_of(store)] == [(paths[1].name, True)]
    store.close()


def test_damaged_header_costs_no_record(tmp_path: Path) -> None:
    written(tmp_path / "s")
    flip(wal_file(tmp_path / "s"), 3)
    store = open_store(tmp_path / "s")
    assert count(store) == 15
    assert [note["offset"] for note in damage_of(store)] == [0]
    store.close()


@pytest.mark.parametrize("length", [0, 5, HEADER - 1, HEADER])
def test_file_whose_creation_was_cut_short_leaves_no_trace(tmp_path: Path, length: int) -> None:
    written(tmp_path / "s")
    newest = wal_file(tmp_path / "s")
    torn = newest.with_name("wal-0000000000000009.log")
    torn.write_bytes(bytes(length))
    store = open_store(tmp_path / "s")
    assert (count(store), damage_of(store)) == (15, [])
    assert not torn.exists()
    store.append([batch_of(rows_of(key("a"), [100]))])
    assert wal_file(tmp_path / "s").name == "wal-0000000000000010.log"
    store.close()


def test_record_of_another_file_is_not_taken_for_one_of_this_file(tmp_path: Path) -> None:
    written(tmp_path / "other", groups=1)
    written(tmp_path / "s", groups=1)
    stray = wal_file(tmp_path / "other").read_bytes()[HEADER:]
    with wal_file(tmp_path / "s").open("ab") as file:
        file.write(stray)
    store = open_store(tmp_path / "s")
    assert store.status()["wal_cut_bytes"] == len(stray)
    store.close()


def test_wal_file_of_another_store_is_set_aside(tmp_path: Path) -> None:
    written(tmp_path / "other")
    store = open_store(tmp_path / "s")
    store.close()
    foreign = wal_file(tmp_path / "other")
    (tmp_path / "s" / "wal" / foreign.name).write_bytes(foreign.read_bytes())
    store = open_store(tmp_path / "s")
    assert count(store) == 0
    assert "of store" in str(damage_of(store)[0]["reason"])
    assert (tmp_path / "s" / "damaged" / foreign.name).exists()
    store.close()


def test_wal_file_of_a_newer_version_is_refused_with_both_versions(tmp_path: Path) -> None:
    written(tmp_path / "s")
    path = wal_file(tmp_path / "s")
    data = bytearray(path.read_bytes())
    data[4] = 2
    data[12:16] = files.crc32c(data[16:HEADER], files.crc32c(data[:12])).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(StorageError, match=r"wal-0+1\.log has format version 2, this program reads up to 1"):
        open_store(tmp_path / "s")
    data[4] = 1
    data[12:16] = files.crc32c(data[16:HEADER], files.crc32c(data[:12])).to_bytes(4, "little")
    path.write_bytes(data)
    store = open_store(tmp_path / "s")
    assert count(store) == 15
    store.close()


def test_wal_left_behind_by_a_crash_after_sealing_is_not_applied_twice(tmp_path: Path) -> None:
    written(tmp_path / "s")
    data = {path.name: path.read_bytes() for path in (tmp_path / "s" / "wal").iterdir()}
    store = open_store(tmp_path / "s")
    store.seal()
    store.close()
    for name, content in data.items():
        (tmp_path / "s" / "wal" / name).write_bytes(content)
    store = open_store(tmp_path / "s")
    status = store.status()
    assert (count(store), status["replayed_rows"], status["wal_files"]) == (15, 0, 0)
    store.close()


def test_half_written_segment_is_removed_and_the_wal_replayed(tmp_path: Path) -> None:
    written(tmp_path / "s")
    leftover = tmp_path / "s" / "segments" / "seg-0000000000000002.mts.tmp"
    leftover.write_bytes(b"half")
    store = open_store(tmp_path / "s")
    assert count(store) == 15
    assert not leftover.exists()
    store.close()


def test_replay_of_more_rows_than_a_head_takes_keeps_all(tmp_path: Path) -> None:
    oracle = naive.PointSet()
    store = open_store(tmp_path / "s", head_rows=100_000)
    for group in range(9):
        rows = [(key("a"), group * 700 + at // 2, float(at)) for at in range(1400)]
        store.append([batch_of(rows)])
        for each, time, value in rows:
            oracle.add(each, time, value)
    store.close()
    for head_rows in (1000, 5000, 100_000):
        store = open_store(tmp_path / "s", head_rows=head_rows)
        assert_answers(store, oracle, "a")
        store.close()


def test_tiny_records_of_many_series_come_back_in_full(tmp_path: Path) -> None:
    oracle = naive.PointSet()
    store = open_store(tmp_path / "s")
    for group in range(4):
        rows = [(key(f"d{at % 7}"), at // 3, float(at * 37 % 100)) for at in range(group * 2000, group * 2000 + 2000)]
        store.append([batch_of([row]) for row in rows])
        for each, time, value in rows:
            oracle.add(each, time, value)
    store.close()
    assert wal_file(tmp_path / "s").stat().st_size > 1.2 * recovery.JOINED_BYTES
    store = open_store(tmp_path / "s")
    for device in range(7):
        assert_answers(store, oracle, f"d{device}")
    assert store.status()["replayed_rows"] == 8000
    store.close()


def test_record_that_is_no_batch_is_set_aside_and_those_around_it_come_back(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s")
    good = [batch_of(rows_of(key("a"), [time])).body for time in range(3)]
    bad = PointBatch([key("a")], np.array([1], np.uint32), np.array([9]), np.array([1.0])).encode()
    store._wal.append([(body, 1) for body in (good[0], bad, good[1], b"\xc1", good[2])], 0)
    store.close()
    store = open_store(tmp_path / "s")
    assert count(store) == 3
    spans = record_spans(wal_file(tmp_path / "s").read_bytes())
    assert sorted(int(str(note["offset"])) for note in damage_of(store)) == [spans[1][0], spans[3][0]]
    assert all("record cannot be decoded" in str(note["reason"]) for note in damage_of(store))
    store.close()


def fill(store: Store, groups: int, rows: int = 20_000) -> None:
    for group in range(groups):
        times = np.arange(group * rows, (group + 1) * rows)
        body = PointBatch([key("a")], np.zeros(rows, np.uint32), times, np.ones(rows)).encode()
        store.append([LoggedBatch(body, 1, PointBatch.decode(body))])


def test_wal_file_has_a_bound_and_a_head_covers_several(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s")
    fill(store, 45)
    sizes = [path.stat().st_size for path in sorted((tmp_path / "s" / "wal").iterdir())]
    assert len(sizes) == 3
    assert all(wal.ROLL_BYTES <= size < wal.ROLL_BYTES + 500_000 for size in sizes[:-1])
    left = copy_as_if_killed(tmp_path / "s", tmp_path / "killed")
    store.seal()
    status = store.status()
    assert (status["segments"], status["wal_files"]) == (1, 0)
    store.close()
    store = open_store(left)
    assert (count(store), store.status()["head_rows"], damage_of(store)) == (900_000, 900_000, [])
    store.close()


def test_head_is_frozen_when_its_wal_reaches_the_limit(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", head_wal_bytes=2_000_000)
    fill(store, 4)  # 400 KB each
    assert (store.status()["head_rows"], store.status()["sealed_rows"]) == (80_000, 0)
    fill(store, 1)
    wait_until(lambda: store.status()["sealed_rows"] == 80_000)
    assert store.status()["head_rows"] == 20_000
    assert sum(path.stat().st_size for path in (tmp_path / "s" / "wal").iterdir()) < 500_000
    assert count(store) == 80_000
    store.close()


def test_replay_freezes_heads_by_their_wal_too(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s")
    fill(store, 45)
    store.close()
    store = open_store(tmp_path / "s", head_wal_bytes=9_000_000)
    wait_until(lambda: store.status()["segments"] == 2)
    assert (count(store), store.status()["replayed_rows"]) == (900_000, 900_000)
    store.close()


def test_opening_that_is_told_to_stop_gives_up_and_loses_nothing(tmp_path: Path) -> None:
    written(tmp_path / "s")
    with pytest.raises(OpeningStopped, match="before WAL file 1 was replayed"):
        Store.open(tmp_path / "s", "cluster", "ing1", PARTITIONS, config.Storage(), stop=lambda: True)
    store = open_store(tmp_path / "s")
    assert count(store) == 15
    store.close()


def test_numbers_never_restart(tmp_path: Path) -> None:
    seen: set[int] = set()
    for _ in range(3):
        store = open_store(tmp_path / "s")
        store.append([batch_of(rows_of(key("a"), [1]))])
        new = int(wal_file(tmp_path / "s").stem[4:])
        assert new not in seen and all(new > old for old in seen)
        seen.add(new)
        store.seal()
        seen.add(max(int(path.stem[4:]) for path in (tmp_path / "s" / "segments").iterdir()))
        store.close()


def test_numbers_go_on_when_the_newest_segment_was_set_aside(tmp_path: Path) -> None:
    written(tmp_path / "s")
    store = open_store(tmp_path / "s")
    store.seal()
    store.close()
    (segment,) = (tmp_path / "s" / "segments").iterdir()
    os.truncate(segment, 10)
    store = open_store(tmp_path / "s")
    store.append([batch_of(rows_of(key("a"), [100]))])
    assert int(wal_file(tmp_path / "s").stem[4:]) > int(segment.stem[4:])
    store.close()
    note = json.loads((tmp_path / "s" / "damaged" / f"{segment.name}.json").read_text())
    assert note["file"] == segment.name


def flip(path: Path, at: int, mask: int = 0x10) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= mask
    path.write_bytes(data)
