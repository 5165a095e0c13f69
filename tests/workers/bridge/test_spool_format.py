"""A spool's record: the page's example is what the program writes and reads, and what is no record is refused."""

import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import StorageError
from common.files import crc32c
from common.points import PointBatch
from common.series import parse_key
from tests.disks import QuickDisk
from tests.support import ROOT
from tests.workers.bridge.spooled import make, open_spools, said, take_all
from workers.bridge import spoolrecord
from workers.bridge.batch import Batch, Message, Origin, Release

PAGE = (ROOT / "docs" / "file-formats.md").read_text()
TAKEN_NS = 1_700_000_000 * 10**9


def example() -> bytes:
    """The bytes of the page's example, after checking that each line's offset is where its bytes lie."""
    found = re.search(r"```example-spool\n(.*?)```", PAGE, re.DOTALL)
    assert found
    data = b""
    for line in found[1].splitlines():
        assert int(line[:4], 16) == len(data), line
        data += bytes.fromhex(line[6:53])
    return data


def test_the_example_of_the_page_is_as_the_page_says_byte_for_byte() -> None:
    data = example()
    assert data[:4] == b"MTSP"
    assert int.from_bytes(data[4:8], "little") == len(data) - 12
    assert int.from_bytes(data[8:12], "little") == crc32c((2).to_bytes(8, "little") + data[12:])
    assert data[-5:] == b"\xceMTSE"
    version, born, epoch, ring_hash, rows, points, taken, topics, origins, end = msgspec.msgpack.decode(data[12:])
    assert (version, born, epoch, ring_hash, rows) == (1, 3, 4, "9bfe79e33161a5cc", 3)
    assert (taken, topics, end) == (TAKEN_NS, [b"s/1", b"s/2"], 0x4D545345)
    assert np.frombuffer(origins[:16], "<u4").tolist() == [0, 2, 0, 1]
    assert origins[16:] == bytes([0x32, 0x33])
    batch = PointBatch.decode(points)
    assert [parse_key(key).device_id for key in batch.keys] == ["sensor_1"]
    assert (batch.times // 10**9).tolist() == [1000, 1060, 1120]
    assert batch.values.tolist() == [1.5, 1.5, 1.75]


def test_the_example_of_the_page_is_read_and_written_by_the_program(tmp_path: Path) -> None:
    directory = tmp_path / "spool" / "ing1"
    directory.mkdir(parents=True)
    (directory / "00000002.spool").write_bytes(example())
    ((entry),) = take_all(open_spools(tmp_path, QuickDisk()), "ing1")
    batch = entry.batch
    assert (batch.born, batch.epoch, batch.ring_hash, batch.rows) == (3, 4, "9bfe79e33161a5cc", 3)
    assert [(m.topic, m.flags) for m in map(batch.origin.message, range(3))] == [
        (b"s/1", 0x3A), (b"s/1", 0x3A), (b"s/2", 0x3B),
    ]  # fmt: skip
    messages = [Message(0x32, b"\0\1", b"s/1"), Message(0x33, b"\0\2", b"s/2")]
    sent = Batch(batch.body, 3, 3, 4, "9bfe79e33161a5cc", 0.0, Release(messages), Origin(messages, [0, 2]), 2)
    assert spoolrecord.KIND.pack(spoolrecord.encode(sent, TAKEN_NS), 2) == example()


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0x30, 0x3F), st.integers(1, 5)), min_size=1, max_size=30))
def test_each_row_keeps_the_topic_and_flags_of_its_message(runs: list[tuple[int, int, int]]) -> None:
    messages = [Message(flags, b"", b"topic %d" % topic) for topic, flags, _ in runs]
    starts = np.cumsum([0] + [count for _, _, count in runs])
    rows = int(starts[-1])
    points = PointBatch([b"k"], np.zeros(rows, np.uint32), np.arange(rows), np.zeros(rows))
    origin = Origin(messages, starts[:-1].tolist())
    sent = Batch(points.encode(), rows, 1, 2, "h", 0.0, Release(messages), origin, len(messages))
    record = spoolrecord.decode(spoolrecord.encode(sent, 5))
    assert record.topics == list(dict.fromkeys(message.topic for message in messages))
    assert said(spoolrecord.batch_of(record, Message(0, b"", b""))) == said(sent)
    keep = np.arange(rows) % 3 > 0
    if keep.any():
        kept = np.flatnonzero(keep)
        body = points.take(keep).encode()
        part = Batch(body, len(kept), 1, 2, "h", 0.0, Release([]), origin.part(kept), 0)
        back = spoolrecord.batch_of(spoolrecord.decode(spoolrecord.encode(part, 5)), Message(0, b"", b""))
        assert said(back).origins == tuple(said(sent).origins[row] for row in kept)


GOOD = spoolrecord.decode(spoolrecord.encode(make(1)[0], 5))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"version": 2}, "version 2, want 1"),
        ({"points": b"\x80"}, "batch body"),
        ({"rows": 4}, "3 points, 4 rows"),
        ({"end": 5}, "end 5"),
        ({"topics": []}, "origins"),
        ({"origins": b""}, "origins"),
        ({"origins": GOOD.origins[:-1]}, "origins"),
        ({"origins": b"\1" + GOOD.origins[1:]}, "origins"),
        ({"origins": bytes(18)}, "origins"),
        ({"origins": GOOD.origins[:4] + b"\3" + GOOD.origins[5:]}, "origins"),
        ({"origins": GOOD.origins[:12] + b"\7" + GOOD.origins[13:]}, "origins"),
    ],
)
def test_what_is_no_record_is_refused_with_the_reason(changes: dict[str, object], text: str) -> None:
    assert len(GOOD.origins) == 18
    with pytest.raises(StorageError, match=text):
        spoolrecord.decode(msgspec.msgpack.encode(msgspec.structs.replace(GOOD, **changes)))


@given(st.binary(max_size=60))
def test_no_bytes_break_the_decoder(body: bytes) -> None:
    with pytest.raises(StorageError):
        spoolrecord.decode(body)


@given(st.integers(0, 300), st.integers(0, 255))
def test_a_byte_that_is_another_gives_a_record_or_is_refused(at: int, byte: int) -> None:
    body = bytearray(spoolrecord.encode(make(1)[0], 5))
    body[at % len(body)] = byte
    try:
        record = spoolrecord.decode(bytes(body))
    except StorageError:
        return
    batch = spoolrecord.batch_of(record, Message(0, b"", b""))
    assert len(said(batch).origins) == len(PointBatch.decode(batch.body)) == batch.rows
