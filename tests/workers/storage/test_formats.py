"""The examples of docs/file-formats.md: decoded as the page says, and written by the program byte for byte."""

import itertools
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import crc32c
import msgpack
import numpy as np
import pytest

from common import codec, files, series
from common.points import PointBatch
from common.selector import Selector
from tests import naive
from tests.support import ROOT
from tests.workers.storage import segments
from tests.workers.storage.support import open_store
from workers.storage import deletes, layout, seal, segment, wal
from workers.storage.deletes import DeleteRecord
from workers.storage.head import Head

DOC = (ROOT / "docs" / "file-formats.md").read_text()
STORE_ID = bytes(range(16))
KEY = series.series_key("pump 1", "temperature", {"room": "7"})
SECOND_NS = 1_000_000_000
TIMES_S = [1120, 1000, 1060, 1060]
VALUES = [1.75, 1.5, 1.5, -1.0]


def example(name: str) -> bytes:
    """The bytes of an example, after checking that each line's offset is where its bytes lie."""
    found = re.search(rf"```{name}\n(.*?)```", DOC, re.DOTALL)
    assert found, f"no example {name}"
    data = b""
    for line in found[1].splitlines():
        offset, text = line[:4], line[6:53]
        assert int(offset, 16) == len(data), line
        data += bytes.fromhex(text)
    return data


def batch() -> PointBatch:
    times = np.array(TIMES_S, np.int64) * SECOND_NS
    return PointBatch([KEY], np.zeros(4, np.uint32), times, np.array(VALUES))


def check_start(data: bytes, magic: bytes, format_version: int) -> int:
    """The first 16 bytes as documented; the length of the header."""
    found, version, reserved, length, checksum = struct.unpack("<4sHHII", data[:16])
    assert (found, version, reserved) == (magic, format_version, 0)
    assert crc32c.crc32c(data[:12] + data[16:length]) == checksum
    return int(length)


def test_crc_is_the_one_the_page_names() -> None:
    assert files.crc32c(b"123456789") == 0xE3069283


def test_wal_example_reads_as_the_page_says() -> None:
    data = example("example-wal")
    begin = check_start(data, b"MTWL", 1)
    assert struct.unpack("<16sQQQ", data[16:begin]) == (STORE_ID, 7, 5, 12345)
    magic, length, checksum = struct.unpack("<4sII", data[begin : begin + 12])
    payload = data[begin + 12 :]
    seed = crc32c.crc32c(data[16:40])
    assert (magic, length) == (b"\xf5MTR", len(payload))
    assert crc32c.crc32c(data[begin + 4 : begin + 8] + payload, seed) == checksum
    kind, born, delete_number, body = msgpack.unpackb(payload)
    assert (kind, born, delete_number) == (1, 3, 0)
    columns = msgpack.unpackb(body)
    assert columns["keys"] == [KEY]
    assert struct.unpack("<4I", columns["index"]) == (0, 0, 0, 0)
    assert list(struct.unpack("<4q", columns["times"])) == [time * SECOND_NS for time in TIMES_S]
    assert list(struct.unpack("<4d", columns["values"])) == VALUES


def test_delete_example_reads_as_the_page_says() -> None:
    data = example("example-delete")
    assert check_start(data, b"MTDL", 1) == len(data)
    assert msgpack.unpackb(data[16:]) == [12, "pump 1", None, {"room": "7"}, 1000 * SECOND_NS, 1060 * SECOND_NS]


def test_delete_example_is_what_the_store_writes_and_reads(tmp_path: Path) -> None:
    record = DeleteRecord(12, Selector("pump 1", None, {"room": "7"}), 1000 * SECOND_NS, 1060 * SECOND_NS)
    store = open_store(tmp_path)
    store.delete(record)
    store.close()
    data = (tmp_path / "deletes" / "del-0000000000000012.mtd").read_bytes()
    assert data == example("example-delete")
    assert deletes.unpack(data, tmp_path) == record


class CountingDisk(files.Disk):
    """Remembers what was written."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, descriptor: int, data: Any) -> None:
        super().write(descriptor, data)
        self.data += data


def test_wal_example_is_what_the_writer_writes(tmp_path: Path) -> None:
    disk = CountingDisk()
    place = layout.Layout(tmp_path, STORE_ID, files.DirectoryLock(tmp_path), disk)
    (tmp_path / "wal").mkdir()
    writer = wal.WalWriter(place, itertools.count(7).__next__, (5, 12345))
    assert writer.append([(batch().encode(), 3)], 0) == 7
    assert disk.data == place.wal_path(7).read_bytes() == example("example-wal")


class Bytes:
    """Reads parts of a file one behind the other."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, size: int) -> bytes:
        self.at += size
        assert self.at <= len(self.data)
        return self.data[self.at - size : self.at]

    def fields(self, format_: str) -> tuple[Any, ...]:
        return struct.unpack("<" + format_, self.take(struct.calcsize("<" + format_)))

    def integers(self, count: int) -> list[int]:
        codec_id, size = self.fields("BI") if count else (0, 0)
        return codec.decode_times(self.take(size), count, codec_id).tolist() if count else []

    def values(self, count: int) -> list[float]:
        codec_id, size = self.fields("BI") if count else (0, 0)
        return codec.decode_values(self.take(size), count, codec_id).tolist() if count else []


PAGE_ENTRY = [
    "blocks", "points", "block_bytes", "index_bytes", "windows_bytes", "index_crc", "windows_crc", "t_min", "t_max",
]  # fmt: skip
INTEGERS = ["t_min", "span", "count", "times_bytes", "values_bytes", "codecs"]
FLOATS = ["hi", "lo", "min", "max", "first", "last", "m2"]


def read_segment(data: bytes) -> dict[str, Any]:
    """A segment by the tables of the page, all CRCs checked: header, blocks with their summaries, windows, series."""
    footer = Bytes(data[-52:])
    points, blocks, series_, pages, chunks, codecs, size, checksum, reserved = footer.fields("QIIIIIIII")
    assert reserved == 0
    assert footer.fields("I8s") == (crc32c.crc32c(data[-52:-12]), b"MTSGEND\n")
    directory = Bytes(data[-52 - size : -52])
    assert crc32c.crc32c(directory.data) == checksum
    entries = [dict(zip(PAGE_ENTRY, directory.fields("IIQIIIIqq"), strict=True)) for _ in range(pages)]
    chunk_entries = [directory.fields("IIII") for _ in range(chunks)]
    uses = [directory.fields("BBHIQQ") for _ in range(codecs)]
    assert directory.at == size
    file = Bytes(data)
    file.take(check_start(data, b"MTSG", 2))
    read = [read_page(file, entry) for entry in entries]
    table = [row for entry in chunk_entries for row in read_chunk(file, *entry)]
    assert file.at == len(data) - 52 - size
    assert sum(entry["points"] for entry in entries) == points
    all_blocks = [block for page in read for block in page]
    assert (len(all_blocks), len(table)) == (blocks, series_)
    return {"header": data[16 : check_start(data, b"MTSG", 2)], "blocks": all_blocks, "series": table, "uses": uses}


def read_page(file: Bytes, entry: dict[str, int]) -> list[dict[str, Any]]:
    """The blocks of a page, each with its encoded parts and its windows."""
    count = entry["blocks"]
    encoded = Bytes(file.take(entry["block_bytes"]))
    index = Bytes(file.take(entry["index_bytes"]))
    assert crc32c.crc32c(index.data) == entry["index_crc"]
    columns: dict[str, Any] = {"digest": index.fields(f"{count}Q"), "crc": index.fields(f"{count}I")}
    columns |= {name: index.integers(count) for name in INTEGERS} | {name: index.values(count) for name in FLOATS}
    assert index.at == entry["index_bytes"]
    blocks = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    for block in blocks:
        block["t_max"] = block["t_min"] + block["span"]
        block["times"], block["values"] = encoded.take(block["times_bytes"]), encoded.take(block["values_bytes"])
        assert crc32c.crc32c(block["times"] + block["values"]) == block["crc"]
    assert min(each["t_min"] for each in blocks) == entry["t_min"]
    assert max(each["t_max"] for each in blocks) == entry["t_max"]
    assert sum(each["count"] for each in blocks) == entry["points"]
    read_windows(file.take(entry["windows_bytes"]), entry["windows_crc"], blocks)
    return blocks


def read_windows(data: bytes, checksum: int, blocks: list[dict[str, Any]]) -> None:
    """Give each block its windows: rows of number, count, hi, lo, min, max; and their width."""
    assert crc32c.crc32c(data) == checksum
    parts = Bytes(data)
    kinds = parts.integers(len(blocks)) if data else [0] * len(blocks)
    counts = parts.integers(len(blocks)) if data else [0] * len(blocks)
    total = sum(counts)
    columns = [parts.integers(total) for _ in range(2)] + [parts.values(total) for _ in range(4)]
    assert parts.at == len(data)
    rows = iter(zip(*columns, strict=True))
    for block, kind, count in zip(blocks, kinds, counts, strict=True):
        block["width"] = [0, 60, 3600, 86400][kind] * SECOND_NS
        number = block["t_min"] // block["width"] - 1 if kind else 0
        block["windows"] = []
        for step, *rest in itertools.islice(rows, count):
            number += step
            block["windows"].append((number, *rest))


def read_chunk(file: Bytes, count: int, size: int, key_bytes: int, checksum: int) -> list[tuple[bytes, int, int]]:
    """Key, number of blocks and greatest time of each series of a chunk."""
    chunk = Bytes(file.take(size))
    assert crc32c.crc32c(chunk.data) == checksum
    blocks, last_times, lengths = [chunk.integers(count) for _ in range(3)]
    packed = chunk.take(size - chunk.at)
    keys = Bytes(packed if len(packed) == key_bytes else zlib.decompress(packed))
    assert sum(lengths) == len(keys.data) == key_bytes
    return [(keys.take(length), *rest) for length, *rest in zip(lengths, blocks, last_times, strict=True)]


def test_segment_example_reads_as_the_page_says() -> None:
    found = read_segment(example("example-segment"))
    assert struct.unpack("<16s16sQIIQIIQQ", found["header"]) == (STORE_ID, STORE_ID, 0, 1, 0, 0, 0, 0, 7, 7)
    assert found["series"] == [(KEY, 1, 1120 * SECOND_NS)]
    assert found["uses"] == [(0, 1, 0, 1, 3, 11), (1, 1, 0, 1, 3, 10)]
    (block,) = found["blocks"]
    stored = [(1000 * SECOND_NS, 1.5), (1060 * SECOND_NS, 1.5), (1120 * SECOND_NS, 1.75)]
    assert (block["t_min"], block["t_max"], block["count"]) == (stored[0][0], stored[-1][0], 3)
    assert block["digest"] == naive.digest(series.series_hash(KEY), stored)
    assert [block[name] for name in FLOATS[:-1]] == [4.75, 0.0, 1.5, 1.75, 1.5, 1.75]
    assert block["m2"] == pytest.approx(0.25**2 * 2 / 3, rel=1e-15)
    assert (block["codecs"], block["windows"]) == (1 + 256 * 1, [])
    # 1 s as unit, 1000, then differences of differences 60 and 0; 1.5, an equal one, a window of one bit
    assert bits_of(block["times"]) == bits_of(b"\x03" + struct.pack(">q", 1000)) + "10" "0111100" + "0" + "000000"
    assert bits_of(block["values"]) == bits_of(struct.pack(">d", 1.5)) + "0" + "11" "01101" "000001" "1" + "0"


def test_large_segment_reads_as_the_page_says(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    points = {
        series.series_key(f"device {number}", "m"): [
            (1_700_000_000 * SECOND_NS + at * (SECOND_NS // 4), float(value))
            for at, value in enumerate(rng.normal(5, 1, size))
        ]
        for number, size in enumerate([5000, 1200] + [1] * 1500)
    }
    segments.write(tmp_path / "s", points, block_rows=2000)
    found = read_segment((tmp_path / "s").read_bytes())
    assert len(found["blocks"]) == 3 + 1 + 1500
    assert [each for each, _, _ in found["series"]] == sorted(points, key=lambda each: (series.series_hash(each), each))
    blocks = iter(found["blocks"])
    windows = 0
    for each, count, last in found["series"]:
        rows = points[each]
        assert (count, last) == (-(-len(rows) // 2000), rows[-1][0])
        for begin in range(0, len(rows), 2000):
            part, block = rows[begin : begin + 2000], next(blocks)
            assert block["digest"] == naive.digest(series.series_hash(each), part)
            times = codec.decode_times(block["times"], len(part), block["codecs"] % 256)
            values = codec.decode_values(block["values"], len(part), block["codecs"] // 256)
            assert list(zip(times.tolist(), values.tolist(), strict=True)) == part
            check_windows(block, part)
            windows += len(block["windows"])
    assert windows > 20


def check_windows(block: dict[str, Any], rows: list[tuple[int, float]]) -> None:
    oracle = naive.PointSet()
    for time, value in rows:
        oracle.add("s", time, value)
    want = oracle.by_interval("s", block["width"], 0) if block["width"] else {}
    assert [each[0] for each in block["windows"]] == sorted(want)
    for number, count, hi, lo, least, most in block["windows"]:
        assert (count, least, most) == (want[number].count, want[number].min, want[number].max)
        assert hi + lo == pytest.approx(float(want[number].sum), rel=1e-14)


def bits_of(data: bytes) -> str:
    return "".join(f"{byte:08b}" for byte in data)


def test_segment_example_is_what_sealing_writes(tmp_path: Path) -> None:
    head = Head(100)
    head.append(batch(), np.array([0]), np.array([series.series_hash(KEY)], np.uint64))
    header = segment.Header(STORE_ID, STORE_ID, 0, ((7, 7),), ())
    path = tmp_path / "segment"
    seal.write_segment(path, header, head.grouped(), [KEY], np.array([-(2**63)]), "gorilla")
    assert path.read_bytes() == example("example-segment")


def test_same_points_in_another_order_make_the_same_segment(tmp_path: Path) -> None:
    keys = [series.series_key(f"d{number}", "m") for number in range(20)]
    rng = np.random.default_rng(5)
    index = rng.integers(0, 20, 5000).astype(np.uint32)
    times, values = rng.integers(0, 1000, 5000), rng.integers(0, 9, 5000).astype(np.float64)
    written = []
    for order in (np.arange(5000), rng.permutation(5000)):
        order_of_keys = rng.permutation(20)
        place = np.argsort(order_of_keys)
        mine = [keys[at] for at in order_of_keys]
        head = Head(5000)
        hashes = np.array([series.series_hash(key) for key in mine], np.uint64)
        part = PointBatch(mine, place[index[order]].astype(np.uint32), times[order], values[order])
        head.append(part, np.arange(20), hashes)
        grouped = head.grouped()
        path = tmp_path / "segment"
        header = segment.Header(STORE_ID, STORE_ID, 0, ((1, 1),), ())
        seal.write_segment(path, header, grouped, [mine[at] for at in grouped.ids], np.full(20, -(2**63)), "auto")
        written.append(path.read_bytes())
    assert written[0] == written[1]


@pytest.mark.parametrize("name", ["kind", "codec"])
def test_ids_on_the_page_are_those_of_the_program(name: str) -> None:
    if name == "kind":
        assert f"`kind` {wal.BATCH} is a batch" in DOC
    else:
        for each in codec.CodecId:
            assert re.search(rf"\| {each.value} \| {each.name} \|", DOC, re.IGNORECASE)
