"""Segments of format version 1 become version 2 when a store opens: same points and headers, whatever cuts it short."""

import errno
import json
import random
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common import files, series
from tests import naive
from tests.disks import FullDisk, Platter, QuickDisk, RecordingDisk
from tests.workers.storage.answers import contents
from tests.workers.storage.support import open_store
from workers.storage import layout, segment, segment_v1, upgrade
from workers.storage.page_cache import PageCache
from workers.storage.segment import Segment

FIXTURE = Path(__file__).parent / "fixtures" / "v1"
EXPECTED: dict[str, Any] = json.loads((FIXTURE / "expected.json").read_text())
NUMBERS = [each["number"] for each in EXPECTED["segments"]]

Points = dict[bytes, dict[int, int]]  # bits of the value by key and time


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The data directory of version 1, as its worker left it."""
    return Path(shutil.copytree(FIXTURE / "ing1", tmp_path / "ing1"))


def place_of(directory: Path, disk: files.Disk = files.DISK) -> layout.Layout:
    return layout.open_directory(directory, "cluster", "ing1", disk)


def upgraded(directory: Path, disk: files.Disk = files.DISK, policy: Any = "auto") -> layout.Layout:
    """Opened, upgraded and let go."""
    place = place_of(directory, disk)
    try:
        place.sweep()
        upgrade.upgrade(place, policy)
    finally:
        place.lock.release()
    return place


def expected_points() -> Points:
    points: Points = {}
    for key, runs in EXPECTED["points"].items():
        of_series = points.setdefault(bytes.fromhex(key), {})
        for begin, step, count, bits in runs:
            of_series.update((begin + at * step, int(bits, 16)) for at in range(count))
    return points


def blocks_of(found: Segment | segment_v1.Segment) -> list[tuple[bytes, list[int], list[int]]]:
    """Key, times and bits of the values of each block."""
    keys = found.keys()
    owners = np.repeat(np.arange(found.series), np.diff(found.first_block.astype(np.int64)))
    decoded = [found.decode(block) for block in range(found.blocks)]
    return [
        (keys[owner], times.tolist(), values.view(np.int64).tolist())
        for owner, (times, values) in zip(owners.tolist(), decoded, strict=True)
    ]


def opened(directory: Path) -> list[Segment]:
    paths = sorted((directory / "segments").glob("*.mts"))
    return [Segment(path, int(path.stem[4:]), PageCache(1 << 20)) for path in paths]


def test_blocks_and_header_of_every_segment_are_what_version_1_said(directory: Path) -> None:
    paths = sorted((directory / "segments").iterdir())
    before = [segment_v1.Segment(path, number) for path, number in zip(paths, NUMBERS, strict=True)]
    blocks = [blocks_of(each) for each in before]
    headers = [each.header for each in before]
    upgraded(directory)
    after = opened(directory)
    assert [each.number for each in after] == NUMBERS
    assert [blocks_of(each) for each in after] == blocks
    assert [tuple(each.header) for each in after] == [(*header, (0, 0)) for header in headers]


def test_segments_hold_what_the_script_expected(directory: Path) -> None:
    upgraded(directory)
    found = [
        {"number": each.number, "points": each.points, "series": each.series, "blocks": each.blocks,
         "store_id": each.header.store_id.hex(), "origin": each.header.origin.hex(),
         "delete_number": each.header.delete_number, "wal_ranges": [list(pair) for pair in each.header.wal_ranges]}
        for each in opened(directory)
    ]  # fmt: skip
    assert found == EXPECTED["segments"]


def test_summaries_are_those_of_the_points(directory: Path) -> None:
    upgraded(directory)
    for each in opened(directory):
        found = each.index(0, each.blocks)
        for block, (key, times, bits) in enumerate(blocks_of(each)):
            assert (found.t_min[block], found.t_max[block]) == (times[0], times[-1])
            rows = zip(times, floats_of(bits), strict=True)
            assert int(found.digests[block]) == naive.digest(series.series_hash(key), rows)


def floats_of(bits: list[int]) -> list[float]:
    return list(struct.unpack(f"<{len(bits)}d", struct.pack(f"<{len(bits)}q", *bits)))


@pytest.mark.parametrize("policy", ["auto", "gorilla"])
def test_second_upgrade_finds_nothing_to_do(directory: Path, policy: str) -> None:
    upgraded(directory, policy=policy)
    disk = RecordingDisk()
    upgraded(directory, disk, policy)
    assert {event.step.kind for event in disk.events} & {"segment", "segment.tmp"} == set()


def test_version_2_is_smaller(directory: Path) -> None:
    sizes = [path.stat().st_size for path in sorted((directory / "segments").iterdir())]
    upgraded(directory)
    assert [each.bytes < size for each, size in zip(opened(directory), sizes, strict=True)] == [True] * len(sizes)


def test_upgrade_of_many_blocks_goes_in_portions(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upgraded(directory)
    want = [path.read_bytes() for path in sorted((directory / "segments").iterdir())]
    shutil.copytree(FIXTURE / "ing1" / "segments", directory / "segments", dirs_exist_ok=True)
    monkeypatch.setattr(upgrade, "_ROWS_AT_ONCE", 200)
    upgraded(directory)
    assert [path.read_bytes() for path in sorted((directory / "segments").iterdir())] == want


def test_upgrade_that_is_told_to_stop_ends_between_segments(directory: Path) -> None:
    place = place_of(directory)
    answers = iter([False, True])
    upgrade.upgrade(place, "auto", lambda: next(answers))
    place.lock.release()
    assert [segment_v1.is_version_1(place.segment_path(number)) for number in NUMBERS] == [False, True, True]


@pytest.mark.parametrize("at", ["header", "block", "index", "footer"])
def test_damaged_segment_of_version_1_is_set_aside_and_the_others_are_upgraded(directory: Path, at: str) -> None:
    path = directory / "segments" / f"seg-{NUMBERS[0]:016d}.mts"
    data = bytearray(path.read_bytes())
    offset = {"header": 20, "block": 100, "index": len(data) - 60, "footer": len(data) - 20}[at]
    data[offset] ^= 4
    path.write_bytes(data)
    place = upgraded(directory)
    (note,) = place.damaged()
    assert (note["file"], (directory / "damaged" / path.name).read_bytes()) == (path.name, data)
    assert [each.number for each in opened(directory)] == NUMBERS[1:]
    known = EXPECTED["segments"][0]
    assert note["points"] == (None if at == "footer" else known["points"])
    assert note["wal_ranges"] == (None if at == "header" else known["wal_ranges"])
    assert (note["first_time"], note["last_time"]) == ((-(2**63), 2**63 - 1) if at == "block" else (None, None))


def test_file_of_a_newer_version_is_left_as_it_is(directory: Path) -> None:
    path = directory / "segments" / f"seg-{NUMBERS[0]:016d}.mts"
    newer = layout.pack_header(segment.MAGIC, segment.VERSION + 1, bytes(100))
    path.write_bytes(newer)
    upgraded(directory)
    assert path.read_bytes() == newer


def copied_through(disk: files.Disk, to: Path) -> None:
    """The fixture, written by steps that the disk takes, all of them durable."""
    files.make_directory(to, disk)
    for source in sorted(path for path in (FIXTURE / "ing1").rglob("*") if path.is_file()):
        target = to / source.relative_to(FIXTURE / "ing1")
        files.make_directory(target.parent, disk)
        files.replace_file(target, [source.read_bytes()], disk=disk)


@pytest.mark.parametrize("torn", [None, 1, 2], ids=["all forgotten", "some of it there", "other parts there"])
def test_power_cut_at_any_step_of_an_upgrade_is_harmless(tmp_path: Path, torn: int | None) -> None:
    disk = RecordingDisk()
    copied_through(disk, tmp_path / "ing1")
    disk.mark(1)
    upgraded(tmp_path / "ing1", disk)
    want = [blocks_of(each) for each in opened(tmp_path / "ing1")]
    platter = Platter(tmp_path / "ing1")
    begun = False
    for number, event in enumerate(disk.events):
        if event.step.call == "mark":
            begun = True
            continue
        platter.feed(event)
        if not begun:
            continue
        left = tmp_path / f"cut{number}"
        platter.save(left, None if torn is None else random.Random(f"{torn} {number}"))
        place = upgraded(left, QuickDisk())
        assert [blocks_of(each) for each in opened(left)] == want, event
        assert (place.damaged(), list(left.rglob("*.tmp"))) == ([], []), event


def test_full_disk_stops_the_upgrade_and_the_next_one_ends_it(directory: Path) -> None:
    place_of(directory).lock.release()  # makes the folders that version 1 did not have
    refused = 0
    for number in range(40):
        disk = FullDisk(number, 1)
        place = place_of(directory, disk)
        try:
            upgrade.upgrade(place, "auto")
        except OSError as error:
            assert error.errno == errno.ENOSPC
        finally:
            place.lock.release()
        refused += len(disk.refused)
        assert list(directory.rglob("*.tmp")) == []
    assert [each.number for each in opened(directory)] == NUMBERS
    assert refused > len(NUMBERS)


def test_store_answers_with_every_point_of_version_1_segments_and_wal(directory: Path) -> None:
    want = {key: sorted(points.items()) for key, points in expected_points().items()}
    for _ in range(2):  # the second time there is nothing left to upgrade, and no torn tail
        store = open_store(directory)
        try:
            assert contents(store, want) == want
        finally:
            store.close()
