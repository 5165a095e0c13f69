"""The examples of docs/file-formats.md: decoded as the page says, and written by the program byte for byte."""

import itertools
import re
import struct
from pathlib import Path
from typing import Any

import crc32c
import msgpack
import numpy as np
import pytest

from common import codec, files, series
from common.points import PointBatch
from tests import naive
from tests.support import ROOT
from workers.storage import layout, seal, segment, wal
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


def check_start(data: bytes, magic: bytes) -> int:
    """The first 16 bytes as documented; the length of the header."""
    found, version, reserved, length, checksum = struct.unpack("<4sHHII", data[:16])
    assert (found, version, reserved) == (magic, 1, 0)
    assert crc32c.crc32c(data[:12] + data[16:length]) == checksum
    return int(length)


def test_crc_is_the_one_the_page_names() -> None:
    assert files.crc32c(b"123456789") == 0xE3069283


def test_wal_example_reads_as_the_page_says() -> None:
    data = example("example-wal")
    begin = check_start(data, b"MTWL")
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


def read_index(data: bytes, begin: int, blocks: int, count: int) -> dict[str, Any]:
    """The index by the table of the page."""
    groups = [
        ("q", blocks, ["t_min", "t_max", "digest", "offset"]),
        ("d", blocks, ["hi", "lo", "min", "max", "first", "last"]),
        ("Q", count, ["hash"]),
        ("I", blocks, ["series", "count", "times_bytes", "values_bytes", "crc"]),
        ("I", count + 1, ["first_block"]),
        ("I", count + 1, ["key_begin"]),
        ("B", blocks, ["times_codec", "values_codec"]),
    ]
    index: dict[str, Any] = {}
    for code, items, names in groups:
        for name in names:
            index[name] = struct.unpack_from(f"<{items}{code}", data, begin)
            begin += items * struct.calcsize(f"<{code}")
        begin += -begin % 8
    index["keys"] = data[begin : begin + index["key_begin"][-1]]
    return index


def test_segment_example_reads_as_the_page_says() -> None:
    data = example("example-segment")
    length = check_start(data, b"MTSG")
    assert struct.unpack("<16s16sQIIQQ", data[16:length]) == (STORE_ID, STORE_ID, 0, 1, 0, 7, 7)
    footer = data[-48:]
    begin, size, points, blocks, count, index_crc, footer_crc, magic = struct.unpack("<QQQIIII8s", footer)
    assert (points, blocks, count, magic) == (3, 1, 1, b"MTSGEND\n")
    assert crc32c.crc32c(footer[:36]) == footer_crc
    assert crc32c.crc32c(data[begin : begin + size]) == index_crc
    assert begin + size + 48 == len(data)
    index = read_index(data, begin, blocks, count)
    assert index["keys"] == KEY
    assert index["hash"] == (series.series_hash(KEY),)
    stored = [(1000 * SECOND_NS, 1.5), (1060 * SECOND_NS, 1.5), (1120 * SECOND_NS, 1.75)]
    assert (index["t_min"], index["t_max"]) == ((stored[0][0],), (stored[-1][0],))
    assert index["digest"][0] % 2**64 == naive.digest(series.series_hash(KEY), stored)
    summary = [index[name][0] for name in ("hi", "lo", "min", "max", "first", "last")]
    assert summary == [4.75, 0.0, 1.5, 1.75, 1.5, 1.75]
    at, middle = index["offset"][0], index["offset"][0] + index["times_bytes"][0]
    end = middle + index["values_bytes"][0]
    assert crc32c.crc32c(data[at:end]) == index["crc"][0]
    assert (index["times_codec"], index["values_codec"]) == ((1,), (1,))
    # 1 s as unit, 1000, then differences of differences 60 and 0; 1.5, an equal one, a window of one bit
    assert bits_of(data[at:middle]) == bits_of(b"\x03" + struct.pack(">q", 1000)) + "10" "0111100" + "0" + "000000"
    assert bits_of(data[middle:end]) == bits_of(struct.pack(">d", 1.5)) + "0" + "11" "01101" "000001" "1" + "0"


def bits_of(data: bytes) -> str:
    return "".join(f"{byte:08b}" for byte in data)


def test_segment_example_is_what_sealing_writes(tmp_path: Path) -> None:
    head = Head(100)
    head.append(batch(), np.array([0]), np.array([series.series_hash(KEY)], np.uint64))
    header = segment.Header(STORE_ID, STORE_ID, 0, ((7, 7),), ())
    path = tmp_path / "segment"
    seal.write_segment(path, header, head.grouped(), [KEY], np.array([-(2**63)]))
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
        seal.write_segment(path, header, grouped, [mine[at] for at in grouped.ids], np.full(20, -(2**63)))
        written.append(path.read_bytes())
    assert written[0] == written[1]


@pytest.mark.parametrize("name", ["kind", "codec"])
def test_ids_on_the_page_are_those_of_the_program(name: str) -> None:
    if name == "kind":
        assert f"`kind` {wal.BATCH} is a batch" in DOC
    else:
        for each in codec.CodecId:
            assert re.search(rf"\| {each.value} \| {each.name} \|", DOC, re.IGNORECASE)
