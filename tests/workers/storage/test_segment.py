"""Segments: damage is found and named, a newer version refused, equal hashes kept apart, summaries right."""

import errno
import os
import struct
import tracemalloc
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import files, series
from common.errors import StorageError
from tests import naive
from tests.workers.storage import segments
from tests.workers.storage.segments import HEADER, Rows, contents, opened, read_everything, write
from tests.workers.storage.support import (
    EVERYWHERE,
    assert_sum,
    batch_of,
    copy_as_if_killed,
    key,
    open_store,
    rows_of,
)
from workers.storage import kernels, layout, pages, segment
from workers.storage.page_cache import PageCache
from workers.storage.segment import Segment
from workers.storage.segment_writer import SegmentWriter

MINUTE_NS = 60 * 10**9


def minutely(count: int, begin: int = 1) -> list[tuple[int, float]]:
    """300 rows a minute, from the beginning of a minute on, values that no codec shrinks much."""
    values = np.random.default_rng(begin).normal(20, 3, count).tolist()
    return [(begin * MINUTE_NS + at * 200_000_000, value) for at, value in enumerate(values)]


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


# Damage


def test_flipped_bit_anywhere_is_found_before_anything_is_made_of_it(tmp_path: Path) -> None:
    path = tmp_path / "s"
    points = {key("b"): minutely(900) + minutely(300, 1000), key("c"): [(-5, 1.0)]}
    found = write(path, points, block_rows=600)
    assert len(found.windows(0, found.blocks).numbers), "no windows in which a bit could flip"
    good, data = read_everything(path), path.read_bytes()
    with path.open("r+b") as file:
        for at in [*outside_of_blocks(found), *range(0, len(data), 97)]:
            os.pwrite(file.fileno(), bytes([data[at] ^ 1 << at % 8]), at)
            with pytest.raises(layout.DamagedError, match=str(path)):
                read_everything(path)
            os.pwrite(file.fileno(), data[at : at + 1], at)
    assert read_everything(path) == good


def outside_of_blocks(found: Segment) -> set[int]:
    """The offsets of all bytes that belong to no block."""
    blocks = found.index(0, found.blocks)
    ends = (blocks.offsets + blocks.times_bytes + blocks.values_bytes).tolist()
    spans = map(range, blocks.offsets.tolist(), ends)
    return set(range(found.bytes)).difference(*spans)


def test_damage_of_a_block_is_found_when_it_is_decoded_and_names_the_place(tmp_path: Path) -> None:
    path = tmp_path / "s"
    found = write(path, {key("a"): minutely(30)}, block_rows=10)
    offset = int(found.index(1, 2).offsets[0])
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)
    again = opened(path)
    assert again.decode(0)[0].tolist() == [time for time, _ in minutely(10)]
    for use in (again.decode, again.raw):
        with pytest.raises(layout.DamagedError, match=f"{path}: block 1 at {offset} has CRC"):
            use(1)


@pytest.mark.parametrize("rows", [3, 3000])
@pytest.mark.parametrize("wrong", ["repeated", "beyond"])
def test_rows_that_do_not_rise_within_the_bounds_of_the_index_are_damage(tmp_path: Path, rows: int, wrong: str) -> None:
    """However right the CRCs are: kernels place rows by these bounds."""
    times = [10 * at for at in range(rows)]
    times[1] = {"repeated": 0, "beyond": 1 << 40}[wrong]
    found = write(tmp_path / "s", {key(each): [(time, 1.0) for time in times] for each in "ab"})
    room = np.empty(2 * rows, np.int64), np.empty(2 * rows)
    for block in (0, 1):
        with pytest.raises(layout.DamagedError, match=rf"block {block} at \d+: timestamps that do not rise from 0 to"):
            found.decode(block)
    with pytest.raises(layout.DamagedError, match=r"block 0 at \d+: timestamps that do not rise from 0 to"):
        found.decode_all(np.arange(2), np.array([0, rows]), *room)


def test_pages_are_not_read_when_a_segment_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "s"
    found = write(path, {key("a"): minutely(600)})
    blocks = found.index(0, 1)
    page = int(blocks.offsets[0] + blocks.times_bytes[0] + blocks.values_bytes[0])
    data = bytearray(path.read_bytes())
    data[page] ^= 1
    path.write_bytes(data)
    again = opened(path)
    assert again.keys() == [key("a")]
    assert again.last_times().tolist() == [minutely(600)[-1][0]]
    with pytest.raises(layout.DamagedError, match=f"{path}: page at {page} has CRC"):
        again.index(0, 1)


def test_truncated_segment_is_damaged_at_every_length(tmp_path: Path) -> None:
    path = tmp_path / "s"
    write(path, {key("a"): minutely(30)})
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(layout.DamagedError, match=str(path)):
            opened(path)


def test_segment_cut_short_while_it_is_open_is_an_error_and_not_the_end(tmp_path: Path) -> None:
    path = tmp_path / "s"
    found = write(path, {key("a"): minutely(600)})
    os.truncate(path, 100)
    with pytest.raises(layout.DamagedError, match="cut short"):
        found.index(0, 1)


def test_bytes_behind_a_segment_are_damage(tmp_path: Path) -> None:
    path = tmp_path / "s"
    write(path, {key("a"): minutely(600)})
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(layout.DamagedError, match="no footer at its end"):
        opened(path)


def test_damaged_segments_are_set_aside_and_the_rest_answers(tmp_path: Path) -> None:
    whole = sealed_directory(tmp_path / "whole")
    data = whole.read_bytes()
    footer = segment.FOOTER_BYTES
    for at in (0, 3, 20, len(data) - footer - 1, len(data) - footer, len(data) - 1):
        bad = copy_as_if_killed(tmp_path / "whole", tmp_path / f"bad-{at}")
        flipped = bytearray(data)
        flipped[at] ^= 1 << at % 8
        (bad / "segments" / whole.name).write_bytes(flipped)
        a, b, (note,) = counts(bad)
        assert (a, b, note["file"]) == (0, 10, whole.name)
        assert (bad / "damaged" / whole.name).read_bytes() == bytes(flipped)


def test_note_says_what_was_lost_as_far_as_the_file_still_tells(tmp_path: Path) -> None:
    path = tmp_path / "s"
    write(path, {key("a"): [(5, 1.0), (7, 1.0)], key("b"): [(-3, 1.0)]})
    data = path.read_bytes()
    error = layout.DamagedError("reason")
    unknown = {"wal_ranges": None, "points": None, "series": None, "first_time": None, "last_time": None}
    told = {"wal_ranges": ((1, 1),), "points": 3, "series": 2, "first_time": -3, "last_time": 7}
    for at, lost in [
        (60, ["wal_ranges"]),
        (len(data) - segment.FOOTER_BYTES - 1, ["first_time", "last_time"]),
        (len(data) - 1, ["points", "series", "first_time", "last_time"]),
    ]:
        flipped = bytearray(data)
        flipped[at] ^= 1
        path.write_bytes(flipped)
        note = segment.describe_damage(path, error)
        assert note == told | {name: unknown[name] for name in lost} | {"file": "s", "reason": "reason"}
    path.write_bytes(b"")
    assert segment.describe_damage(path, error) == unknown | {"file": "s", "reason": "reason"}


def test_damaged_segment_whose_wal_is_still_there_loses_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s")
    store.append([batch_of(rows_of(key("a"), range(10)))])
    left = copy_as_if_killed(tmp_path / "s", tmp_path / "killed")
    store.seal()
    store.close()
    (written,) = (tmp_path / "s" / "segments").iterdir()
    (left / "segments" / written.name).write_bytes(written.read_bytes()[:-1])
    assert counts(left)[0] == 10


def with_version(path: Path, version: int) -> None:
    """Let a segment say that it is of another version."""
    data = bytearray(path.read_bytes())
    (length,) = struct.unpack_from("<I", data, 8)
    data[4:6] = struct.pack("<H", version)
    data[12:16] = files.crc32c(data[16:length], files.crc32c(data[:12])).to_bytes(4, "little")
    path.write_bytes(data)


def test_newer_version_is_refused_with_both_versions(tmp_path: Path) -> None:
    whole = sealed_directory(tmp_path / "s")
    with_version(whole, 9)
    with pytest.raises(StorageError, match=f"{whole.name} has format version 9, this program reads up to 2"):
        open_store(tmp_path / "s")
    assert whole.exists()


def test_older_version_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "s"
    write(path, {key("a"): [(1, 1.0)]})
    with_version(path, 1)
    with pytest.raises(segment.OldVersionError, match=f"{path} has format version 1, want 2"):
        opened(path)


# Malformed sizes, every CRC right


def reworked(path: Path, change: Any) -> None:
    """Change footer fields and directory of a segment, and make their CRCs right again."""
    data = path.read_bytes()
    footer = segment.unpack_footer(data, path)
    body = bytearray(data[: -segment.FOOTER_BYTES])
    begin = len(body) - footer.directory_bytes
    pages_, chunks, codecs = (
        np.frombuffer(body, segment.PAGE_ENTRY, footer.pages, begin).copy(),
        np.frombuffer(body, segment.CHUNK_ENTRY, footer.chunks, begin + footer.pages * 48).copy(),
        body[begin + footer.pages * 48 + footer.chunks * 16 :],
    )
    fields = footer._asdict()
    change(fields, pages_, chunks)
    directory = pages_.tobytes() + chunks.tobytes() + bytes(codecs)
    fields |= {"directory_crc": files.crc32c(directory)}
    path.write_bytes(bytes(body[:begin]) + directory + segment.Footer(**fields).pack())


@pytest.mark.parametrize("field", ["points", "blocks", "series", "pages", "chunks", "codecs", "directory_bytes"])
def test_impossible_number_in_the_footer_is_damage_and_costs_no_memory(tmp_path: Path, field: str) -> None:
    path = tmp_path / "s"
    write(path, {key("a"): minutely(600)})
    reworked(path, lambda fields, _pages, _chunks: fields.update({field: 2**32 - 1}))
    refused_cheaply(path)


@pytest.mark.parametrize("field", ["blocks", "points", "block_bytes", "index_bytes", "windows_bytes", "t_min", "t_max"])
def test_impossible_number_in_a_page_entry_is_damage_and_costs_no_memory(tmp_path: Path, field: str) -> None:
    path = tmp_path / "s"
    write(path, {key("a"): minutely(600)})

    def change(fields: dict[str, int], entries: Any, _chunks: Any) -> None:
        entries[field] = 2**31
        fields["points"], fields["blocks"] = int(entries["points"][0]), int(entries["blocks"][0])

    reworked(path, change)
    refused_cheaply(path)


@pytest.mark.parametrize("field", ["series", "bytes", "key_bytes"])
def test_impossible_number_in_a_chunk_entry_is_damage_and_costs_no_memory(tmp_path: Path, field: str) -> None:
    path = tmp_path / "s"
    write(path, {key("a"): minutely(600)})

    def change(fields: dict[str, int], _pages: Any, entries: Any) -> None:
        entries[field] = 2**31
        fields["series"] = int(entries["series"][0])

    reworked(path, change)
    refused_cheaply(path)


def refused_cheaply(path: Path) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(layout.DamagedError, match=str(path)):
            read_everything(path)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_page_with_a_bit_flipped_is_blocks_or_damage_even_without_its_crc(tmp_path: Path) -> None:
    found = write(tmp_path / "s", many(3, 40) | {key("a"): minutely(30)}, block_rows=7)
    blocks = found.index(0, found.blocks)
    begin, end = int(blocks.offsets[0]), int(blocks.offsets[-1] + blocks.times_bytes[-1] + blocks.values_bytes[-1])
    packed = pages.pack(blocks)
    again = pages.unpack(packed, found.blocks, begin, end, "here")
    assert [each.tobytes() for each in again] == [each.tobytes() for each in blocks]
    refused = 0
    for at in range(len(packed)):
        flipped = bytearray(packed)
        flipped[at] ^= 1 << at % 8
        try:
            pages.unpack(bytes(flipped), found.blocks, begin, end, "here")
        except layout.DamagedError:
            refused += 1
    assert refused > len(packed) / 8


def test_series_out_of_order_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s"
    write(path, {key(f"d{number}"): [(1, 1.0)] for number in range(4)})
    with pytest.raises(layout.DamagedError, match="not in order of their hashes"):
        opened(path, hash_of=lambda each: 2**64 - 1 - series.series_hash(each))


# What is in a segment


def test_series_of_equal_hash_are_kept_apart(tmp_path: Path) -> None:
    keys = [key(f"device {number}") for number in range(9)]
    points = {each: [(time, float(at)) for time in range(at + 1)] for at, each in enumerate(reversed(keys))}

    def hash_of(each: bytes) -> int:
        return 7 if each > keys[3] else 3

    found = write(tmp_path / "s", points, hash_of)
    assert found.keys() == keys
    assert contents(found) == points
    for local_id, each in enumerate(points):
        begin, end = found.block_range(found.find(local_id, hash_of(each)))
        assert end == begin + 1
        times, values = found.decode(begin)
        assert list(zip(times.tolist(), values.tolist(), strict=True)) == points[each]
    assert found.find(9, 7) == found.find(0, 5) == found.find(0, 3) == -1


def test_summaries_are_those_of_the_points(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    points: dict[bytes, Rows] = {}
    for number, size in enumerate([1, 2, 100, segment.BLOCK_ROWS, segment.BLOCK_ROWS + 1, 20_000]):
        times = np.unique(rng.integers(-(10**18), 10**18, size)).tolist()
        values = rng.normal(0, 10.0 ** rng.integers(-3, 9), len(times)).tolist()
        points[key(f"d{number}")] = list(zip(times, values, strict=True))
    found = write(tmp_path / "s", points)
    assert contents(found) == points
    blocks = 0
    for local_id, (each, rows) in enumerate(points.items()):
        begin, end = found.block_range(found.find(local_id, series.series_hash(each)))
        for block in range(begin, end):
            first = (block - begin) * segment.BLOCK_ROWS
            check_summary(found, block, each, rows[first : first + segment.BLOCK_ROWS])
        blocks += end - begin
    assert blocks == found.blocks == 1 + 1 + 1 + 1 + 2 + 3
    assert found.points == sum(map(len, points.values()))
    assert (found.t_min, found.t_max) == (
        min(rows[0][0] for rows in points.values()), max(rows[-1][0] for rows in points.values()),
    )  # fmt: skip
    assert dict(zip(found.keys(), found.last_times().tolist(), strict=True)) == {
        each: rows[-1][0] for each, rows in points.items()
    }


def check_summary(found: Segment, block: int, each: bytes, part: Rows) -> None:
    blocks = found.index(block, block + 1)
    floats = blocks.floats[:, 0].tolist()
    want = naive.summary(list(part), 1)
    assert len(part) == blocks.counts[0] <= segment.BLOCK_ROWS
    assert (blocks.t_min[0], blocks.t_max[0]) == (part[0][0], part[-1][0])
    assert int(blocks.digests[0]) == naive.digest(series.series_hash(each), part)
    assert floats[kernels.BLOCK_MIN : kernels.BLOCK_M2] == [want.min, want.max, want.first, want.last]
    weight = len(part) * sum(abs(value) for _, value in part)
    assert_sum(floats[kernels.SUM_HI], floats[kernels.SUM_LO], want.sum, weight)
    spread = Fraction(sum(value * value for _, value in part))
    assert abs(Fraction(floats[kernels.BLOCK_M2]) - want.m2) <= spread * len(part) * Fraction(2) ** -50
    assert len(found.raw(block)) == int(blocks.times_bytes[0] + blocks.values_bytes[0])


any_bits = st.integers(0, 2**64 - 1)
any_values = st.one_of(
    any_bits.map(lambda bits: struct.unpack("<d", struct.pack("<Q", bits))[0]),
    st.sampled_from([0.0, -0.0, float("inf"), float("-inf"), float("nan"), 5e-324, 1.7976931348623157e308]),
    st.integers(-(10**6), 10**6).map(lambda number: number / 100),
)
any_times = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.sampled_from([-(2**63), 2**63 - 1, 0]), st.integers(0, 10**4)
)
any_rows = st.dictionaries(any_times, any_values, min_size=1, max_size=40)


@settings(max_examples=150)
@given(
    points=st.dictionaries(st.integers(0, 99), any_rows, min_size=1, max_size=6),
    block_rows=st.integers(1, 9),
    policy=st.sampled_from(["auto", "gorilla"]),
)
def test_points_come_back_bit_for_bit_whatever_they_are(
    tmp_path_factory: pytest.TempPathFactory, points: Any, block_rows: int, policy: Any
) -> None:
    path = tmp_path_factory.mktemp("any") / "s"
    rows = {key(f"d{number}"): sorted(held.items()) for number, held in points.items()}
    found = write(path, rows, block_rows=block_rows, policy=policy)
    got = contents(found)
    assert {each: [(time, naive.bits(value)) for time, value in held] for each, held in got.items()} == {
        each: [(time, naive.bits(value)) for time, value in held] for each, held in rows.items()
    }
    blocks = found.index(0, found.blocks)
    assert blocks.t_min.tolist() == [times[0] for times, _ in map(found.decode, range(found.blocks))]
    assert blocks.t_max.tolist() == [times[-1] for times, _ in map(found.decode, range(found.blocks))]
    for block in range(found.blocks):
        _, values = found.decode(block)
        first, last = blocks.floats[kernels.BLOCK_FIRST : kernels.BLOCK_M2, block].tolist()
        assert (naive.bits(first), naive.bits(last)) == (naive.bits(values[0]), naive.bits(values[-1]))


def many(series_count: int, rows: int) -> dict[bytes, Rows]:
    return {
        key(f"d{number}"): [(at * 10**9 + number, number + at / 10) for at in range(rows)]
        for number in range(series_count)
    }


def test_blocks_of_several_pages_are_found_and_joined(tmp_path: Path) -> None:
    points = many(700, 5)
    found = write(tmp_path / "s", points, block_rows=1)
    assert found.blocks == 3500 > 3 * pages.PAGE_BLOCKS
    assert contents(found) == points
    whole = found.index(0, found.blocks)
    assert whole.offsets[0] == len(HEADER.pack())
    for begin, end in [(0, 0), (1023, 1025), (1024, 1024), (1000, 3100), (3499, 3500), (3500, 3500)]:
        part = found.index(begin, end)
        for got, want in zip(part, whole.part(begin, end), strict=True):
            assert np.array_equal(got, want)
    with pytest.raises(StorageError, match=r"BUG: .*blocks 3499 to 3501 of 3500"):
        found.index(3499, 3501)


def test_decode_into_fills_the_callers_arrays(tmp_path: Path) -> None:
    found = write(tmp_path / "s", {key("a"): minutely(30)}, block_rows=10)
    times, values = np.empty(30, np.int64), np.empty(30)
    for block in range(3):
        found.decode_into(block, times[block * 10 : block * 10 + 10], values[block * 10 : block * 10 + 10])
    assert list(zip(times.tolist(), values.tolist(), strict=True)) == minutely(30)


def test_codecs_are_counted(tmp_path: Path) -> None:
    found = write(tmp_path / "s", {key("a"): minutely(30), key("b"): [(1, 0.1), (5, 0.7)]}, policy="gorilla")
    blocks = found.index(0, 2)
    assert found.codecs == (
        segment.CodecUse("times", 1, 2, 32, int(blocks.times_bytes.sum())),
        segment.CodecUse("values", 1, 2, 32, int(blocks.values_bytes.sum())),
    )


def test_header_comes_back(tmp_path: Path) -> None:
    header = segment.Header(b"s" * 16, b"o" * 16, 77, ((1, 4), (6, 6)), tuple(range(100, 900)), (12, 3))
    assert write(tmp_path / "s", {key("a"): [(1, 1.0)]}, header=header).header == header


def test_segment_of_nothing_still_says_what_it_replaces(tmp_path: Path) -> None:
    header = HEADER._replace(replaces=(4, 5), group=(6, 1))
    found = write(tmp_path / "s", {}, header=header)
    assert (found.header, found.points, found.blocks, found.series, found.keys()) == (header, 0, 0, 0, [])
    assert found.t_min > found.t_max
    assert len(found.index(0, 0).counts) == len(found.windows(0, 0).numbers) == len(found.last_times()) == 0
    assert found.find(0, 1) == -1


def test_keys_that_do_not_compress_and_keys_that_do_come_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    odd = {key(rng.bytes(300).hex(), tag=rng.bytes(30).hex()): [(1, 1.0)] for _ in range(1000)}
    found = write(tmp_path / "odd", odd)
    assert found.bytes > 300 * 1000  # in hexadecimal, half of that is left
    assert sorted(found.keys()) == sorted(odd)
    even = many(9_000, 1)
    assert sorted(write(tmp_path / "even", even).keys()) == sorted(even)


# Writing


def test_portions_do_not_change_the_bytes(tmp_path: Path) -> None:
    points = dict(sorted(many(300, 12).items(), key=lambda each: (series.series_hash(each[0]), each[0])))
    write(tmp_path / "whole", points, block_rows=4)
    writer = SegmentWriter(tmp_path / "parts", HEADER, "auto")
    for each, rows in points.items():
        for begin in range(0, 12, 4):
            segments.add(writer, {each: rows[begin : begin + 4]}, series.series_hash, 4)
    writer.finish()
    assert writer.points == 3600
    assert writer.length == (tmp_path / "parts").stat().st_size
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()


def test_copied_blocks_are_the_same_bytes_windows_included(tmp_path: Path) -> None:
    points = many(20, 5) | {key(f"dense {number}"): minutely(3000, number) for number in range(5)}
    source = write(tmp_path / "source", points, block_rows=1500)
    assert len(source.windows(0, source.blocks).numbers)
    writer = SegmentWriter(tmp_path / "copy", HEADER, "auto")
    for ordinal, each in enumerate(source.keys()):
        for block in range(*source.block_range(ordinal)):
            writer.copy_block(each, source, block)
    writer.finish()
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "source").read_bytes()


def test_damaged_block_is_not_copied(tmp_path: Path) -> None:
    path = tmp_path / "s"
    write(path, {key("a"): minutely(30)})
    data = bytearray(path.read_bytes())
    data[len(HEADER.pack())] ^= 1
    path.write_bytes(data)
    writer = SegmentWriter(tmp_path / "copy", HEADER, "auto")
    with pytest.raises(layout.DamagedError, match="block 0"):
        writer.copy_block(key("a"), opened(path), 0)
    writer.abort()


def test_nothing_is_left_of_a_segment_that_was_not_finished(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path / "s", HEADER, "auto")
    segments.add(writer, {key("a"): minutely(30)}, series.series_hash, 10)
    assert [path.name for path in tmp_path.iterdir()] == ["s.tmp"]
    writer.abort()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["write", "sync", "rename", "sync_directory"])
def test_disk_that_fails_leaves_no_half_segment(tmp_path: Path, call: str) -> None:
    class FailingDisk(files.Disk):
        pass

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    setattr(FailingDisk, call, fail)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path / "s", {key("a"): minutely(30)}, disk=FailingDisk())
    names = [path.name for path in tmp_path.iterdir()]
    assert names == (["s"] if call == "sync_directory" else [])


def test_memory_of_a_writer_does_not_grow_with_the_file(tmp_path: Path) -> None:
    values = np.random.default_rng(2).random(512 * 64)  # about 250 KiB as blocks
    times = np.tile(np.arange(64), 512)
    ends, owners = np.arange(1, 513) * 64, np.zeros(512, np.uint32)
    peaks = []
    for portions in (8, 32):
        tracemalloc.start()
        writer = SegmentWriter(tmp_path / "s", HEADER, "gorilla")
        for _ in range(portions):
            writer.add([b"key"], np.zeros(1, np.uint64), times, values, ends, owners)
        writer.finish()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert writer.length > 2 * peaks[1]
    assert peaks[1] < 1.1 * peaks[0]


# The cache of pages


def test_cache_keeps_the_pages_last_used_and_no_more_bytes_than_it_may(tmp_path: Path) -> None:
    write(tmp_path / "s", many(700, 5), block_rows=1)
    one_page = sum(each.nbytes for each in opened(tmp_path / "s").index(0, pages.PAGE_BLOCKS)) + 2000
    cache = PageCache(2 * one_page)
    found = Segment(tmp_path / "s", 1, cache)
    first = found.index(0, 1).t_min.base
    for block in (1024, 0, 2048):
        found.index(block, block + 1)
        assert cache.bytes <= cache.max_bytes
    assert found.index(0, 1).t_min.base is first
    found.index(1024, 1025)
    found.index(2048, 2049)
    assert found.index(0, 1).t_min.base is not first


def test_segments_of_one_number_do_not_share_pages(tmp_path: Path) -> None:
    cache = PageCache(1 << 20)
    for value in (1.0, 2.0):
        write(tmp_path / f"s{value}", {key("a"): [(1, value)]})
        found = Segment(tmp_path / f"s{value}", 1, cache)
        assert found.index(0, 1).floats[kernels.BLOCK_MIN, 0] == value


def test_page_that_is_larger_than_the_cache_is_used_and_not_kept(tmp_path: Path) -> None:
    write(tmp_path / "s", many(3, 5))
    cache = PageCache(10)
    assert Segment(tmp_path / "s", 1, cache).index(0, 3).counts.tolist() == [5, 5, 5]
    assert cache.bytes == 0


# Through the store


def test_late_points_lie_in_blocks_of_their_own(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s")
    store.append([batch_of(rows_of(key("a"), range(1000, 1100)))])
    store.seal()
    store.append([batch_of(rows_of(key("a"), [5, 1050, *range(1100, 1200)]))])
    store.seal()
    plan = store.plan("a", "temperature", None, EVERYWHERE, 1060, None)
    store.close()
    found = opened(max((tmp_path / "s" / "segments").iterdir()))
    assert found.index(0, found.blocks).t_min.tolist() == [5, 1100]
    assert found.index(0, found.blocks).t_max.tolist() == [1050, 1199]
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
    found = opened(max((tmp_path / "s" / "segments").iterdir()))
    blocks = found.index(0, found.blocks)
    assert sorted(zip(blocks.t_min.tolist(), blocks.t_max.tolist(), strict=True)) == [(8, 9), (50, 50), (150, 150)]
