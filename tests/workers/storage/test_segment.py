"""Segments: damage is found and named, a newer version refused, equal hashes kept apart, summaries right."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from common import files, series
from common.errors import StorageError
from common.points import PointBatch
from tests import naive
from tests.workers.storage.support import (
    EVERYWHERE,
    assert_sum,
    batch_of,
    copy_as_if_killed,
    key,
    open_store,
    rows_of,
)
from workers.storage import kernels, layout, seal, segment
from workers.storage.head import Head
from workers.storage.segment import Segment

LONG_AGO = -(1 << 63)
STORE_ID = bytes(range(16))
HEADER = segment.Header(STORE_ID, STORE_ID, 0, ((1, 1),), ())


def write(
    path: Path, points: dict[bytes, list[tuple[int, float]]], hash_of: Callable[[bytes], int] = series.series_hash
) -> Segment:
    """A segment with the points of each series, written through a head."""
    keys = list(points)
    rows = [(at, time, value) for at, each in enumerate(keys) for time, value in points[each]]
    index, times, values = zip(*rows, strict=True)
    batch = PointBatch(keys, np.array(index, np.uint32), np.array(times, np.int64), np.array(values, np.float64))
    head = Head(len(rows))
    head.append(batch, np.arange(len(keys)), np.array([hash_of(each) for each in keys], np.uint64))
    grouped = head.grouped()
    frontiers = np.full(len(keys), LONG_AGO)
    seal.write_segment(path, HEADER, grouped, [keys[at] for at in grouped.ids], frontiers)
    return Segment(path, 1)


def sealed_directory(directory: Path) -> Path:
    """A data directory with two segments, of one device each; the path of the first one's file."""
    store = open_store(directory)
    for device in ("a", "b"):
        store.append([batch_of(rows_of(key(device), range(10)))])
        store.seal()
    store.close()
    return min((directory / "segments").iterdir())


def counts(directory: Path) -> tuple[int, int, list[dict[str, object]]]:
    store = open_store(directory)
    try:
        found = [
            store.aggregate(device, "temperature", None, EVERYWHERE, None, None).count for device in ("a", "b")
        ]
        return found[0], found[1], store.status()["damaged"]
    finally:
        store.close()


def test_flipped_bit_anywhere_is_found_and_never_changes_an_answer(tmp_path: Path) -> None:
    whole = sealed_directory(tmp_path / "whole")
    data = whole.read_bytes()
    block = range(80, 80 + int(Segment(whole, 1).words[[segment.TIMES_BYTES, segment.VALUES_BYTES]].sum()))
    padding = range(block.stop, block.stop - block.stop % -8)
    for at in range(0, len(data), 3):
        bad = copy_as_if_killed(tmp_path / "whole", tmp_path / "bad")
        flipped = bytearray(data)
        flipped[at] ^= 1 << at % 8
        (bad / "segments" / whole.name).write_bytes(flipped)
        store = open_store(bad)
        good = store.aggregate("b", "temperature", None, EVERYWHERE, None, None)
        assert good.count == 10
        if at in block:
            assert store.status()["damaged"] == []
            with pytest.raises(StorageError, match=f"{whole.name}: block 0 at 80 has CRC"):
                store.aggregate("a", "temperature", None, EVERYWHERE, 1, 5)
        elif at not in padding:
            (note,) = store.status()["damaged"]
            assert note["file"] == whole.name
            assert (bad / "damaged" / whole.name).read_bytes() == bytes(flipped)
            assert store.aggregate("a", "temperature", None, EVERYWHERE, None, None).count == 0
        store.close()
        remove_tree(bad)


def remove_tree(directory: Path) -> None:
    for path in sorted(directory.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    directory.rmdir()


def test_truncated_segment_is_set_aside_at_every_length(tmp_path: Path) -> None:
    whole = sealed_directory(tmp_path / "s")
    data = whole.read_bytes()
    for length in range(0, len(data), 7):
        whole.write_bytes(data[:length])
        with pytest.raises(layout.DamagedError, match=whole.name):
            Segment(whole, 1)
    assert counts(tmp_path / "s")[:2] == (0, 10)


def test_note_says_what_was_lost_as_far_as_the_file_still_tells(tmp_path: Path) -> None:
    whole = sealed_directory(tmp_path / "s")
    data = bytearray(whole.read_bytes())
    data[-60] ^= 1
    whole.write_bytes(data)
    _, _, (note,) = counts(tmp_path / "s")
    assert (note["points"], note["series"], note["wal_ranges"]) == (10, 1, [[1, 1]])
    assert "index has CRC" in str(note["reason"])


def test_damaged_segment_whose_wal_is_still_there_loses_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s")
    store.append([batch_of(rows_of(key("a"), range(10)))])
    left = copy_as_if_killed(tmp_path / "s", tmp_path / "killed")
    store.seal()
    store.close()
    (written,) = (tmp_path / "s" / "segments").iterdir()
    (left / "segments" / written.name).write_bytes(written.read_bytes()[:-1])
    assert counts(left)[0] == 10


def test_newer_version_is_refused_with_both_versions(tmp_path: Path) -> None:
    whole = sealed_directory(tmp_path / "s")
    data = bytearray(whole.read_bytes())
    data[4] = 9
    data[12:16] = files.crc32c(data[16:80], files.crc32c(data[:12])).to_bytes(4, "little")
    whole.write_bytes(data)
    with pytest.raises(StorageError, match=f"{whole.name} has format version 9, this program reads up to 1"):
        open_store(tmp_path / "s")
    assert whole.exists()


def test_series_of_equal_hash_are_kept_apart(tmp_path: Path) -> None:
    keys = [key(f"device {number}") for number in range(9)]
    points = {each: [(time, float(at)) for time in range(at + 1)] for at, each in enumerate(reversed(keys))}
    found = write(tmp_path / "s", points, lambda each: 7 if each > keys[3] else 3)
    assert [found.key(at) for at in range(9)] == keys
    for each in keys:
        begin, end = found.block_range(found.find(each, np.uint64(7 if each > keys[3] else 3)))
        assert end == begin + 1
        times, values = found.decode(begin)
        assert list(zip(times.tolist(), values.tolist(), strict=True)) == points[each]
    assert found.find(key("device 10"), np.uint64(7)) == -1
    assert found.find(keys[0], np.uint64(5)) == -1


def test_summaries_are_those_of_the_points(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    points = {
        key(f"d{number}"): [
            (int(time), float(value))
            for time, value in zip(
                rng.integers(-(10**18), 10**18, size), rng.normal(0, 10.0 ** rng.integers(-3, 9), size), strict=True
            )
        ]
        for number, size in enumerate([1, 2, 100, segment.BLOCK_ROWS, segment.BLOCK_ROWS + 1, 20_000])
    }
    found = write(tmp_path / "s", points)
    blocks = 0
    for each, rows in points.items():
        oracle = naive.PointSet()
        for time, value in rows:
            oracle.add(each, time, value)
        seen: list[tuple[int, float]] = []
        begin, end = found.block_range(found.find(each, np.uint64(series.series_hash(each))))
        for block in range(begin, end):
            times, values = found.decode(block)
            part = list(zip(times.tolist(), values.tolist(), strict=True))
            check_summary(found, block, each, part)
            seen += part
        assert seen == sorted(oracle.points[each].items())
        blocks += end - begin
    assert blocks == found.blocks == 1 + 1 + 1 + 1 + 2 + 3
    assert found.points == sum(len(dict(rows)) for rows in points.values())


def check_summary(found: Segment, block: int, each: bytes, part: list[tuple[int, float]]) -> None:
    ints, floats = found.ints[:, block], found.floats[:, block].tolist()
    values = [value for _, value in part]
    assert len(part) == found.words[segment.COUNT, block] <= segment.BLOCK_ROWS
    assert (ints[kernels.T_MIN], ints[kernels.T_MAX]) == (part[0][0], part[-1][0])
    assert int(ints[kernels.BLOCK_DIGEST]) % 2**64 == naive.digest(series.series_hash(each), part)
    assert floats[kernels.BLOCK_MIN :] == [min(values), max(values), values[0], values[-1]]
    weight = len(part) * sum(map(abs, values))
    assert_sum(floats[kernels.SUM_HI], floats[kernels.SUM_LO], sum(map(Fraction, values), Fraction(0)), weight)


def test_late_points_lie_in_blocks_of_their_own(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s")
    store.append([batch_of(rows_of(key("a"), range(1000, 1100)))])
    store.seal()
    store.append([batch_of(rows_of(key("a"), [5, 1050, *range(1100, 1200)]))])
    store.seal()
    plan = store.plan("a", "temperature", None, EVERYWHERE, 1060, None)
    store.close()
    newest = max((tmp_path / "s" / "segments").iterdir())
    found = Segment(newest, 1)
    assert found.ints[kernels.T_MIN].tolist() == [5, 1100]
    assert found.ints[kernels.T_MAX].tolist() == [1050, 1199]
    assert plan.run().count == 40 + 100


@pytest.mark.parametrize("reach", ["restart", "same process"])
def test_frontier_survives_a_restart(tmp_path: Path, reach: str) -> None:
    store = open_store(tmp_path / "s")
    store.append([batch_of(rows_of(key("a"), [100]) + rows_of(key("b"), [7]))])
    store.seal()
    if reach == "restart":
        store.close()
        store = open_store(tmp_path / "s")
    store.append([batch_of(rows_of(key("b"), [8, 9]) + rows_of(key("a"), [50, 150]))])
    store.seal()
    store.close()
    found = Segment(max((tmp_path / "s" / "segments").iterdir()), 1)
    spans = sorted(zip(*found.ints[:2].tolist(), strict=True))
    assert spans == [(8, 9), (50, 50), (150, 150)]
