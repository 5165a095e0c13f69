"""tools/inspect: what it lists, finds wrong, dumps and sets aside, in directories of this and the last version."""

import contextlib
import csv
import io
import itertools
import json
import logging
import math
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from common import codec, files, series
from common.config import Settings
from common.selector import Selector
from tests.support import ROOT
from tests.workers.storage.support import Row, batch_of, key, open_store
from tools import inspect_app
from tools.inspection import verify as verification
from tools.inspection import wal as wal_files
from tools.inspection.check import check_segment
from tools.inspection.place import Entry, Finding, Place
from tools.inspection.segments import codec_name
from tools.publish.message import Template
from tools.publish.replay import Replay
from workers.bridge.intake import Intake
from workers.storage import deletes, kernels, layout, pages, segment, wal, windows
from workers.storage.deletes import DeleteRecord
from workers.storage.segment_writer import SegmentWriter

INSPECT = ROOT / "tools" / "inspect"
OLD = ROOT / "tests" / "workers" / "storage" / "fixtures" / "v1"
SECOND = 1_000_000_000
NOISE = np.random.default_rng(7).normal(size=300)

DENSE, TAGGED, NOISY, LOGGED = key("dense"), key("dense", room="7"), key("noisy: ü"), key("logged")


def sealed_rows() -> list[list[Row]]:
    """The rows of each segment: one with windows, another that overlaps it."""
    dense = [(DENSE, at * SECOND, round(20 + 5 * float(np.sin(at / 300)), 2)) for at in range(9000)]
    noisy = [(NOISY, at * 10 * SECOND + at % 7, float(NOISE[at])) for at in range(300)]
    return [dense + noisy, [(DENSE, at * SECOND + 5, float(at)) for at in range(50)] + [(TAGGED, SECOND, -0.0)]]


def logged_rows() -> list[list[Row]]:
    """The rows of each WAL record."""
    return [[(LOGGED, at, at / 4) for at in range(5)], [(DENSE, 3 * SECOND, 1.5)], [(TAGGED, 2 * SECOND, 2.5)]]


def write_segment(path: Path, header: segment.Header, rows: list[Row]) -> None:
    """A segment of rows that are in order of series and time, in blocks of at most 4000."""
    by_key: dict[bytes, list[Row]] = {}
    for row in rows:
        by_key.setdefault(row[0], []).append(row)
    cuts = [(owner, min(4000, len(mine) - at)) for owner, mine in enumerate(by_key.values())
            for at in range(0, len(mine), 4000)]  # fmt: skip
    mixed = np.empty(len(by_key), np.uint64)
    kernels.mix_hashes(np.array([series.series_hash(each) for each in by_key], np.uint64), mixed)
    writer = SegmentWriter(path, header, "auto")
    writer.add(
        list(by_key), mixed, np.array([row[1] for row in rows]), np.array([row[2] for row in rows]),
        np.cumsum([size for _, size in cuts], dtype=np.int64), np.array([owner for owner, _ in cuts], np.uint32),
    )  # fmt: skip
    writer.finish()


def in_order(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (series.series_hash(row[0]), row[1]))


def write_directory(directory: Path, sealed: list[list[Row]], record: DeleteRecord) -> Path:
    """A directory as a store leaves it: a segment, the delete, the other segments, a WAL file of three records."""
    place = layout.open_directory(directory, "cluster", "ing1")
    numbers = itertools.count(1)
    for number, rows in enumerate(sealed):
        first = next(numbers)
        in_force = record.number if number else 0
        header = segment.Header(place.store_id, place.store_id, in_force, ((first, first),), ())
        write_segment(place.segment_path(next(numbers)), header, in_order(rows))
    deletes.save(place, record)
    log = wal.WalWriter(place, numbers.__next__, (0, 0))
    for rows in logged_rows():
        log.append([(batch_of(rows).body, 1)], record.number)
    log.roll()
    place.lock.release()
    return directory


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with two segments, a delete between them, and a WAL file of three records."""
    record = DeleteRecord(4, Selector("dense", "temperature", {}), 10 * SECOND, 20 * SECOND)
    return write_directory(tmp_path_factory.mktemp("node") / "ing1", sealed_rows(), record)


@pytest.fixture
def directory(original: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(original, tmp_path / "ing1"))


class Done(NamedTuple):
    """How a command line ended."""

    returncode: int
    stdout: str
    stderr: str


def inspect(*arguments: object) -> Done:
    """A command line, run in this process: a new one takes a second to load the kernels."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        inspect_app.main([str(each) for each in arguments])
    logging.disable(logging.NOTSET)
    assert isinstance(ended.value.code, int)
    return Done(ended.value.code, out.getvalue(), err.getvalue())


def answer(*arguments: object, code: int = 0) -> Any:
    """The parsed result of a command with --json."""
    done = inspect(*arguments, "--json")
    assert (done.returncode, done.stderr) == (code, "")
    return json.loads(done.stdout)


def segments_of(directory: Path) -> list[Path]:
    return sorted((directory / "segments").glob("*.mts"))


def the_wal(directory: Path) -> Path:
    (path,) = (directory / "wal").iterdir()
    return path


def flip(path: Path, offset: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)


def findings_in(directory: Path) -> list[Finding]:
    return verification.verify(Place(directory)).findings


# list


def test_list_tells_what_each_segment_holds(directory: Path) -> None:
    first, second = answer("list", directory)["segments"]
    path = segments_of(directory)[0]
    assert (first["file"], first["bytes"]) == (f"segments/{path.name}", path.stat().st_size)
    assert (first["state"], first["version"], first["points"], first["series"]) == ("good", 2, 9300, 2)
    assert (first["first_time"], first["last_time"]) == (0, 8999 * SECOND)
    assert first["bytes_per_point"] == path.stat().st_size / 9300
    assert (first["wal_ranges"], first["replaces"], first["foreign"]) == ([[1, 1]], [], False)
    assert [first["delete_number"], second["delete_number"]] == [0, 4]
    for part in ("times", "values"):
        assert sum(use["points"] for use in first["codecs"] if use["part"] == part) == 9300


def test_list_tells_what_wal_files_and_delete_records_hold(directory: Path) -> None:
    found = answer("list", directory)
    (log,), (record,) = found["wal"], found["deletes"]
    assert (log["state"], log["records"], log["points"], log["series"]) == ("good", 3, 7, 3)
    assert (log["first_time"], log["last_time"]) == (0, 3 * SECOND)
    assert (log["delete_numbers"], log["born"], log["covered_by"]) == ([4], [1, 1], None)
    assert (record["number"], record["device_id"], record["metric_name"], record["tags"]) == (
        4, "dense", "temperature", {}
    )  # fmt: skip
    assert (record["first_time"], record["last_time"]) == (10 * SECOND, 20 * SECOND)
    assert (found["ok"], found["node"], found["cluster"]) == (True, "ing1", "cluster")


def test_list_shows_people_the_same(directory: Path) -> None:
    text = inspect("list", directory).stdout
    wanted = [path.name for path in (*segments_of(directory), the_wal(directory))]
    wanted += ["9,300", "1970-01-01T02:29:59Z", "WAL 1", "dense", "bytes/point", "9,351 points in 2 segments"]
    for part in wanted:
        assert part in text


def test_list_of_an_old_directory_tells_the_version_and_the_torn_tail() -> None:
    found = answer("list", OLD / "ing1")
    assert [facts["version"] for facts in found["segments"]] == [1, 1, 1]
    (log,) = found["wal"]
    assert (log["records"], log["state"]) == (3, "torn tail of 80 bytes, never acked")


def test_list_tells_of_a_segment_that_cannot_be_opened_and_of_what_was_set_aside(directory: Path) -> None:
    first, second = segments_of(directory)
    flip(first, first.stat().st_size - 20)
    (directory / "damaged" / "x.bytes").write_bytes(b"?")
    (directory / "damaged" / "x.bytes.json").write_text('{"file": "x", "reason": "because"}')
    (directory / "segments" / (second.name + ".tmp")).write_bytes(b"")
    found = answer("list", directory, code=1)
    assert found["segments"][0]["trouble"] and "CRC" in found["segments"][0]["state"]
    assert (found["damaged"][0]["state"], found["damaged"][0]["note"]["file"]) == ("because", "x")
    assert found["other"] == [{"file": f"segments/{second.name}.tmp", "bytes": 0, "state": "left half written"}]


def test_wal_file_that_a_segment_covers_is_told_and_left_out_of_dumps(directory: Path) -> None:
    number = 1  # the first segment's
    path = directory / "wal" / f"wal-{number:016d}.log"
    node = layout.read_node(directory / "NODE")
    path.write_bytes(wal.Header(bytes.fromhex(node.store_id), number, 0, 0).pack() + b"not looked at")
    states = {facts["number"]: facts["state"] for facts in answer("list", directory)["wal"]}
    assert states[number] == f"sealed into segment {int(segments_of(directory)[0].stem[4:])}"
    assert findings_in(directory) == []
    assert {row["file"] for row in dumped(directory)} == {
        *(f"segments/{each.name}" for each in segments_of(directory)), f"wal/{last_wal(directory).name}"
    }  # fmt: skip


def last_wal(directory: Path) -> Path:
    return max((directory / "wal").iterdir())


# verify


def test_verify_finds_nothing_wrong_in_what_a_store_wrote(directory: Path) -> None:
    found = answer("verify", directory)
    assert (found["ok"], found["findings"], found["remarks"]) == (True, [], [])
    read = found["read"]
    assert (read["segments"], read["points"], read["wal_files"], read["records"], read["deletes"]) == (
        2, 9351, 1, 3, 1
    )  # fmt: skip
    assert "all is well" in inspect("verify", directory).stdout


def test_verify_finds_nothing_wrong_in_what_a_store_compacted(tmp_path: Path) -> None:
    store = open_store(tmp_path / "ing1")
    for rows in sealed_rows():
        store.append([batch_of(rows)])
        store.seal()
    store.delete(DeleteRecord(4, Selector("dense", "temperature", {}), 10 * SECOND, 20 * SECOND))
    store.compact()
    store.close()
    assert findings_in(tmp_path / "ing1") == []
    found = answer("list", tmp_path / "ing1")
    assert sum(facts["points"] for facts in found["segments"]) == 9351 - 11 - 10  # the second ends before 20 s


def test_verify_finds_nothing_wrong_in_what_version_1_wrote() -> None:
    assert findings_in(OLD / "ing1") == []


def test_verify_leaves_everything_as_it_is(directory: Path) -> None:
    def state() -> dict[Path, tuple[bytes, int]]:
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in directory.rglob("*") if path.is_file()}

    flip(segments_of(directory)[0], 200)
    before = state()
    assert inspect("verify", directory).returncode == 1
    assert state() == before


def test_verify_reads_beside_a_running_store(tmp_path: Path) -> None:
    store = open_store(tmp_path / "ing1")
    try:
        store.append([batch_of(sealed_rows()[1])])
        assert answer("verify", tmp_path / "ing1")["read"]["records"] == 1
    finally:
        store.close()


@pytest.mark.parametrize("folder", ["segments", "deletes", "wal"])
def test_file_that_a_worker_removes_meanwhile_is_left_out(
    directory: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    def with_the_one_removed(place: Place, kind: str) -> list[Entry]:
        found = of_kind(place, kind)
        if any(entry.path == gone for entry in found):
            gone.unlink(missing_ok=True)
        return found

    of_kind = Place.of_kind
    gone = max((directory / folder).iterdir())
    monkeypatch.setattr(Place, "of_kind", with_the_one_removed)
    copies = [Path(shutil.copytree(directory, directory.with_name(name))) for name in ("listed", "dumped")]
    assert findings_in(directory) == []
    for copy, command in zip(copies, (("list",), ("dump", "--skip-deleted")), strict=True):
        gone = copy / gone.relative_to(gone.parent.parent)
        done = inspect(*command, copy, "--json")
        assert not gone.exists()
        missed = command[0] == "dump" and folder == "segments"
        assert (done.returncode, "removed meanwhile" in done.stderr) == (int(missed), missed)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory whose files are so small that every byte of them can be damaged in turn."""
    rows = [(DENSE, at * SECOND, 20 + at % 5 / 10) for at in range(600)]
    rows += [(NOISY, at * SECOND, float(NOISE[at])) for at in range(40)]
    return write_directory(tmp_path_factory.mktemp("node") / "ing1", [rows], DeleteRecord(1, Selector("other"), 0, 1))


def damaged_copies(path: Path, end: int | None = None) -> Iterator[int]:
    """Put each byte of a file wrong in turn, a bit of it; the offset while it is."""
    good = path.read_bytes()
    with path.open("r+b") as file:
        for offset in range(len(good) if end is None else end):
            os.pwrite(file.fileno(), bytes([good[offset] ^ 1 << offset % 8]), offset)
            yield offset
            os.pwrite(file.fileno(), good[offset : offset + 1], offset)


@pytest.mark.parametrize("folder", ["segments", "deletes"])
def test_verify_finds_a_flipped_bit_in_any_byte(small: Path, folder: str) -> None:
    (path,) = (small / folder).iterdir()
    name = f"{folder}/{path.name}"
    refused = 0
    for offset in damaged_copies(path):
        found = findings_in(small)
        assert {finding.file for finding in found} == {name}, offset
        refused += 1
    assert refused == path.stat().st_size
    assert findings_in(small) == []


def test_verify_finds_a_flipped_bit_in_any_byte_of_a_version_1_segment(tmp_path: Path) -> None:
    directory = Path(shutil.copytree(OLD / "ing1", tmp_path / "ing1"))
    (path, *others) = reversed(segments_of(directory))
    for other in others:
        other.unlink()
    place = Place(directory)
    missed = []
    for offset in damaged_copies(path):
        found: list[Finding] = []
        check_segment(place.entry(path), found)
        if not found:
            missed.append(offset)
    header_bytes = 80
    assert [offset for offset in missed if offset < header_bytes] == []
    assert len(missed) < 8  # padding between the blocks and the index, which says nothing


def test_verify_finds_a_flipped_bit_in_any_byte_of_a_wal_file_but_its_last_record(small: Path) -> None:
    path = the_wal(small)
    place = Place(small)
    (file,) = wal_files.wal_files(place)
    *_, last = wal_files.contents(file, place.layout.store_id)
    for offset in damaged_copies(path, last.offset):
        assert [finding.file for finding in findings_in(small)] == [f"wal/{path.name}"], offset
    for _ in damaged_copies(path):
        pass
    assert findings_in(small) == []


def test_damage_in_the_last_record_of_the_newest_wal_file_looks_like_a_torn_tail(directory: Path) -> None:
    path = the_wal(directory)
    flip(path, path.stat().st_size - 3)
    assert findings_in(directory) == []
    (log,) = answer("list", directory)["wal"]
    assert log["state"].startswith("torn tail of ")


def test_verify_tells_which_block_is_damaged(directory: Path) -> None:
    path = segments_of(directory)[0]
    opened = segment.Segment(path, 1, segment.PageCache(1 << 20))
    place = int(opened.index(1, 2).offsets[0])
    flip(path, place + 2)
    (found,) = answer("verify", directory, code=1)["findings"]
    assert found["file"] == f"segments/{path.name}"
    assert f"block 1 at {place} has CRC" in found["what"]


def test_verify_goes_on_behind_damage(directory: Path) -> None:
    path = segments_of(directory)[0]
    opened = segment.Segment(path, 1, segment.PageCache(1 << 20))
    for offset in opened.index(0, opened.blocks).offsets.tolist():
        flip(path, offset)
    found = answer("verify", directory, code=1)
    assert len(found["findings"]) == opened.blocks
    assert found["read"]["segments"] == 2


def test_wal_file_that_is_missing_or_cut_short_is_found(directory: Path) -> None:
    store = open_store(directory)
    store.close()
    store = open_store(directory)
    store.append([batch_of([(LOGGED, 99, 1.0)])])
    store.close()
    first, second = sorted((directory / "wal").iterdir())
    data = first.read_bytes()
    first.write_bytes(data[:-1])
    whats = [finding.what for finding in findings_in(directory)]
    assert any("1 acked bytes are missing" in what for what in whats)
    first.write_bytes(data)
    store = open_store(directory)
    store.append([batch_of([(LOGGED, 100, 1.0)])])
    store.close()
    second.unlink()
    (found,) = findings_in(directory)
    assert (found.file, found.what) == (
        f"wal/{second.name}", f"missing; wal/{last_wal(directory).name} names it as the file before"
    )  # fmt: skip


def forged(path: Path, rows: list[Row]) -> list[Finding]:
    """What is found in a segment with these rows, written while something is forged."""
    write_segment(path, segment.Header(bytes(16), bytes(16), 0, (), ()), rows)
    found: list[Finding] = []
    place = path.parent.parent
    (place / "NODE").write_text(json.dumps({"format": 1, "cluster": "c", "node": "n", "store_id": bytes(16).hex()}))
    check_segment(Place(place).entry(path), found)
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a forged segment goes."""
    (tmp_path / "segments").mkdir()
    return tmp_path / "segments" / "seg-0000000000000001.mts"


TWO = sorted([DENSE, NOISY], key=series.series_hash)
ROWS: list[Row] = [(each, at * SECOND, at / 8) for each in TWO for at in range(2000)]


def test_segment_that_is_right_passes(path: Path) -> None:
    assert forged(path, ROWS) == []


@pytest.mark.parametrize("row", range(kernels.BLOCK_M2 + 1))
def test_summary_that_is_not_that_of_the_rows_is_found(path: Path, monkeypatch: pytest.MonkeyPatch, row: int) -> None:
    def changed(blocks: pages.Blocks) -> bytes:
        blocks.floats[row, 1] = np.nextafter(blocks.floats[row, 1], 1e9)
        return packed(blocks)

    packed = pages.pack
    monkeypatch.setattr(pages, "pack", changed)
    (found,) = forged(path, ROWS)
    assert (found.where, found.what.endswith("is not that of its rows")) == ("block 1", True)


def test_digest_that_is_not_that_of_the_rows_is_found(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(blocks: pages.Blocks) -> bytes:
        blocks.digests[0] += np.uint64(1)
        return packed(blocks)

    packed = pages.pack
    monkeypatch.setattr(pages, "pack", changed)
    assert [found[1:3] for found in forged(path, ROWS)] == [("block 0", "digest is not that of its rows")]


@pytest.mark.parametrize("column", ["sum_hi", "sum_lo", "least", "most"])
def test_windows_that_are_not_those_of_the_rows_are_found(
    path: Path, monkeypatch: pytest.MonkeyPatch, column: str
) -> None:
    def changed(found: windows.Windows, *more: Any) -> bytes:
        getattr(found, column)[0] += 1.0
        return packed(found, *more)

    packed = windows.pack
    rows = [(DENSE, at * SECOND, float(NOISE[at % 300])) for at in range(4000)]
    assert len(segment_windows(path, rows)) > 0
    monkeypatch.setattr(windows, "pack", changed)
    assert [found[1:3] for found in forged(path, rows)] == [("block 0", "windows are not those of its rows")]


def segment_windows(path: Path, rows: list[Row]) -> Any:
    assert forged(path, rows) == []
    return segment.Segment(path, 1, segment.PageCache(1 << 20)).windows(0, 1).numbers


def test_series_out_of_order_are_found(path: Path) -> None:
    (found,) = forged(path, ROWS[::-1][:2000][::-1] + ROWS[:2000])
    assert found[1:3] == ("series 1", "not in order of hash and key")


def test_rows_out_of_order_and_repeated_times_are_found(path: Path) -> None:
    for times in ([1, 3, 2, 4], [1, 2, 2, 3]):
        (found, *_) = forged(path, [(DENSE, time, 1.0) for time in times])
        assert re.match(rf"block 0 at \d+: timestamps that do not rise from 1 to {times[-1]}", found[2])


def test_value_that_is_not_finite_is_found(path: Path) -> None:
    found = forged(path, [(DENSE, 1, float("nan"))])
    assert found[0][1:3] == ("block 0", "holds a value that is not finite")


def test_key_that_is_not_canonical_is_found(path: Path) -> None:
    (found,) = forged(path, [(b"\x91\xa1x", 1, 1.0)])
    assert (found.where, "series key" in found.what) == ("series 0", True)


# dump


def dumped(directory: Path, *arguments: object) -> list[dict[str, Any]]:
    """The rows of a dump, from JSON; CSV must say the same."""
    done = inspect("dump", directory, *arguments, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


def points_of(rows: list[dict[str, Any]]) -> list[tuple[bytes, int, str]]:
    return [
        (series.series_key(row["device_id"], row["metric_name"], row["tags"]), row["timestamp"], row["value"].hex())
        for row in rows
    ]


def test_dump_gives_every_point_of_every_file(directory: Path) -> None:
    want = [row for rows in (*sealed_rows(), *logged_rows()) for row in rows]
    assert sorted(points_of(dumped(directory))) == sorted((each, time, value.hex()) for each, time, value in want)


def test_dump_of_an_old_directory_gives_every_point() -> None:
    expected = json.loads((OLD / "expected.json").read_text())
    rows = {(each, time) for each, time, _ in points_of(dumped(OLD / "ing1"))}
    wanted = {
        (bytes.fromhex(each), begin + at * step)
        for each, runs in expected["points"].items()
        for begin, step, count, _ in runs
        for at in range(count)
    }
    assert rows == wanted


def test_dump_filters_by_series_and_time(directory: Path) -> None:
    rows = dumped(directory, "--device", "dense", "--start", "1970-01-01T00:00:02Z", "--end", "3")
    assert sorted((row["timestamp"], tuple(row["tags"])) for row in rows) == [
        (2 * SECOND, ()), (2 * SECOND, ("room",)), (2 * SECOND + 5, ()), (3 * SECOND, ()), (3 * SECOND, ())
    ]  # fmt: skip
    assert {row["device_id"] for row in dumped(directory, "--tag", "room=7")} == {"dense"}
    assert dumped(directory, "--metric", "pressure") == []


def test_dump_of_one_file_gives_what_is_in_that(directory: Path) -> None:
    for path in (segments_of(directory)[1], the_wal(directory)):
        name = path.relative_to(directory).as_posix()
        assert {row["file"] for row in dumped(directory, name)} == {name}
        assert dumped(directory, path.name) == dumped(directory, name) == dumped(directory, path)


def test_dump_leaves_out_what_is_deleted_when_asked(directory: Path) -> None:
    def times(*more: str) -> list[int]:
        rows = dumped(directory, "--device", "dense", "--start", "9", "--end", "11", *more)
        return sorted(row["timestamp"] for row in rows)

    in_first, in_second = [at * SECOND for at in (9, 10, 11)], [9 * SECOND + 5, 10 * SECOND + 5]
    assert times() == sorted(in_first + in_second)
    assert times("--skip-deleted") == sorted([9 * SECOND, *in_second])  # the second segment was born after the delete


def test_dump_is_csv_that_says_the_same(directory: Path) -> None:
    done = inspect("dump", directory, "--device", "noisy: ü")
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [float(row["value"]).hex() for row in rows] == [float(value).hex() for value in NOISE]
    assert (rows[1]["timestamp"], rows[1]["tags"]) == ("1970-01-01T00:00:10.000000001Z", "{}")


def test_dump_as_json_is_what_sensors_publish(directory: Path) -> None:
    intake = Intake(Settings(), 16, lambda: 0)
    for line, row in zip(inspect("dump", directory, "--json").stdout.splitlines(), dumped(directory), strict=True):
        ((place, time, value),), refused = intake.decode(b"sensors/a", 0, line.encode(), 1 << 60)
        assert ([(place.key, time, value.hex())], refused) == (points_of([row]), [])


def test_dump_as_csv_can_be_replayed(directory: Path, tmp_path: Path) -> None:
    file = tmp_path / "points.csv"
    file.write_text(inspect("dump", directory, "--device", "noisy: ü").stdout)
    source = Replay(file, math.inf, 1, Template("t"), print)
    payloads = [json.loads(message.payload) for chunk in source for message in chunk.messages]
    assert source.skipped == 0
    assert [payload["value"] for payload in payloads] == NOISE.tolist()


def test_dump_of_blocks_records_and_deletes(directory: Path) -> None:
    blocks = dumped(directory, "--what", "blocks")
    assert sum(row["points"] for row in blocks) == 9351
    assert {row["window_s"] for row in blocks} - {0}
    records = dumped(directory, "--what", "records")
    assert [(row["state"], row["points"], row["delete_number"]) for row in records] == [
        ("good", 5, 4), ("good", 1, 4), ("good", 1, 4)
    ]  # fmt: skip
    (record,) = dumped(directory, "--what", "deletes")
    assert (record["number"], record["device_id"], record["last_time"]) == (4, "dense", 20 * SECOND)


def test_dump_reads_what_can_be_read_of_a_damaged_file(directory: Path) -> None:
    path = segments_of(directory)[0]
    opened = segment.Segment(path, 1, segment.PageCache(1 << 20))
    index = opened.index(0, opened.blocks)
    flip(path, int(index.offsets[0]))
    (directory / "damaged" / path.name).write_bytes(path.read_bytes())
    done = inspect("dump", directory, f"damaged/{path.name}", "--json")
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == opened.points - int(index.counts[0])
    assert done.stderr.startswith(f"inspect: damaged/{path.name}: block 0 at ")


# repair-local


def test_repair_sets_a_damaged_segment_aside_and_says_what_is_lost(directory: Path) -> None:
    path = segments_of(directory)[0]
    flip(path, 200)
    data = path.read_bytes()
    result = answer("repair-local", directory, "--yes")
    (loss,) = result["losses"]
    assert (loss["file"], loss["action"], loss["points"], loss["series"]) == (
        f"segments/{path.name}", "set aside", 9300, 2
    )  # fmt: skip
    assert (loss["first_time"], loss["last_time"]) == (0, 8999 * SECOND)
    assert sorted(each["device_id"] for each in loss["keys"]) == ["dense", "noisy: ü"]
    assert 0 < loss["readable_points"] < 9300
    assert (path.exists(), (directory / "damaged" / path.name).read_bytes()) == (False, data)
    note = json.loads((directory / "damaged" / f"{path.name}.json").read_text())
    assert (note["file"], note["points"], note["wal_ranges"]) == (path.name, 9300, [[1, 1]])
    assert answer("verify", directory)["ok"]


def test_store_opens_a_repaired_directory_and_shows_the_note(directory: Path) -> None:
    path = segments_of(directory)[0]
    flip(path, 200)
    assert inspect("repair-local", directory, "--yes").returncode == 0
    store = open_store(directory)
    try:
        status = store.status()
        assert (status["segments"], [note["file"] for note in status["damaged"]]) == (1, [path.name])
    finally:
        store.close()


def test_dry_run_changes_nothing_and_says_the_same(directory: Path) -> None:
    path = segments_of(directory)[0]
    flip(path, 200)
    planned = answer("repair-local", directory, "--dry-run", code=1)
    assert (planned["done"], path.exists(), list((directory / "damaged").iterdir())) == (False, True, [])
    assert answer("repair-local", directory, "--yes")["losses"] == planned["losses"]


def test_repair_asks_first_and_refuses_where_it_cannot(directory: Path) -> None:
    flip(segments_of(directory)[0], 200)
    done = inspect("repair-local", directory)
    assert (done.returncode, "--yes" in done.stderr) == (2, True)
    assert segments_of(directory)[0].exists()


def test_repair_of_a_sound_directory_does_nothing(directory: Path) -> None:
    assert answer("repair-local", directory, "--yes")["losses"] == []
    assert "nothing to do" in inspect("repair-local", directory, "--yes").stdout


def test_repair_sets_a_damaged_delete_record_aside(directory: Path) -> None:
    (path,) = (directory / "deletes").iterdir()
    flip(path, 25)
    (loss,) = answer("repair-local", directory, "--yes")["losses"]
    assert (loss["kind"], loss["action"], "delete them again" in loss["reasons"][-1]) == ("delete", "set aside", True)
    assert (directory / "damaged" / path.name).exists()


def test_repair_copies_damaged_parts_of_the_wal_and_verify_remembers(directory: Path) -> None:
    path = the_wal(directory)
    flip(path, wal.HEADER_BYTES + 30)
    (loss,) = answer("repair-local", directory, "--yes")["losses"]
    assert (loss["kind"], loss["action"]) == ("wal", "damaged parts copied")
    assert path.exists()
    (copy,) = (directory / "damaged").glob("*.bytes")
    assert copy.name == f"{path.stem}-at-{wal.HEADER_BYTES}.bytes"
    found = answer("verify", directory)
    assert any("on record" in remark for remark in found["remarks"])


def test_repair_of_a_version_1_segment_leaves_the_others_to_be_upgraded(tmp_path: Path) -> None:
    directory = Path(shutil.copytree(OLD / "ing1", tmp_path / "ing1"))
    flip(segments_of(directory)[0], 100)
    (loss,) = answer("repair-local", directory, "--yes")["losses"]
    assert (loss["points"], loss["series"]) == (9530, 5)
    assert [facts["version"] for facts in answer("list", directory)["segments"]] == [1, 1]


def test_repair_of_a_directory_in_use_is_refused(directory: Path) -> None:
    lock = files.DirectoryLock(directory)
    try:
        done = inspect("repair-local", directory, "--yes")
        assert (done.returncode, "in use by another process" in done.stderr) == (1, True)
        assert inspect("repair-local", directory, "--dry-run").returncode == 0
    finally:
        lock.release()


def test_compaction_output_whose_inputs_are_there_loses_nothing(directory: Path) -> None:
    first, second = segments_of(directory)
    store_id = bytes.fromhex(layout.read_node(directory / "NODE").store_id)
    replaces = tuple(int(path.stem[4:]) for path in (first, second))
    header = segment.Header(store_id, store_id, 4, (), replaces, (90, 1))
    output = directory / "segments" / f"seg-{90:016d}.mts"
    write_segment(output, header, ROWS)
    flip(output, output.stat().st_size // 2)
    (loss,) = answer("repair-local", directory, "--yes")["losses"]
    assert loss["inputs"] == list(replaces)


# the command line


@pytest.mark.parametrize("arguments", [("list",), ("verify",), ("dump",), ("repair-local", "--dry-run")])
def test_directory_that_is_none_of_a_node_is_refused(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = inspect(arguments[0], tmp_path, *arguments[1:])
    assert done.returncode == 1
    assert done.stderr == f"inspect: {tmp_path} is no data directory of a node: it has no file NODE\n"
    assert list(tmp_path.iterdir()) == []


def test_segment_of_a_newer_version_is_refused_with_both_versions(directory: Path) -> None:
    newer = layout.pack_header(segment.MAGIC, segment.VERSION + 1, bytes(100))
    (directory / "segments" / f"seg-{99:016d}.mts").write_bytes(newer)
    done = inspect("verify", directory)
    assert done.returncode == 1
    want = f"has format version {segment.VERSION + 1}, this program reads up to {segment.VERSION}\n"
    assert done.stderr.endswith(want)


@pytest.mark.parametrize(
    "arguments", [("verify", "nowhere"), ("dump", ".", "--start", "noon"), ("list",), ("mend", ".")]
)
def test_wrong_usage_is_exit_code_2(arguments: tuple[str, ...]) -> None:
    assert inspect(*arguments).returncode == 2


def test_operators_find_every_command_in_the_documents() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    assert [name for name in inspect_app.cli.commands if f"tools/inspect {name} " not in text] == []


@pytest.mark.parametrize("command", [(), ("list",), ("verify",), ("dump",), ("repair-local",)])
def test_help_tells_options_and_exit_codes(command: tuple[str, ...]) -> None:
    done = inspect(*command, "--help")
    assert done.returncode == 0
    assert "Exit codes: 0 done" in " ".join(done.stdout.split())
    assert not command or "--json" in done.stdout


def test_dash_and_underscore_are_the_same(directory: Path) -> None:
    assert inspect("repair_local", directory, "--dry_run").returncode == 0


def test_name_that_is_not_there_is_told(directory: Path) -> None:
    done = inspect("dump", directory, "seg-1")
    assert (done.returncode, f"no file seg-1 in {directory}" in done.stderr) == (1, True)


def test_help_loads_no_kernels() -> None:
    code = "import sys; import tools.inspect_app; sys.exit('numba' in sys.modules)"
    python = ROOT / ".venv" / "bin" / "python"
    assert subprocess.run([python, "-c", code], cwd=ROOT, check=False, timeout=60).returncode == 0


def test_executable_runs_from_any_folder(directory: Path) -> None:
    flip(segments_of(directory)[0], 200)
    done = subprocess.run(
        [INSPECT, "verify", "ing1"], cwd=directory.parent, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert "next: tools/inspect repair-local ing1 --dry-run" in done.stdout


def test_codec_without_a_name_is_told_by_its_number() -> None:
    assert [codec_name(each) for each in codec.CodecId] == [each.name.lower() for each in codec.CodecId]
    assert codec_name(99) == "99"
