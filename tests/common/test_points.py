"""Bodies decoded together are the same points as decoded one by one, and are refused when one of them would be."""

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ProtocolError
from common.points import PointBatch

ROWS = st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c", b"d"]), st.integers(-5, 5), st.floats(-1, 1)), max_size=6)


def body_of(rows: list[tuple[bytes, int, float]]) -> bytes:
    keys = list(dict.fromkeys(each for each, _, _ in rows))
    return PointBatch(
        keys,
        np.array([keys.index(each) for each, _, _ in rows], np.uint32),
        np.array([time for _, time, _ in rows], np.int64),
        np.array([value for _, _, value in rows], np.float64),
    ).encode()


def rows_of(batch: PointBatch) -> list[tuple[bytes, int, float]]:
    columns = (batch.index.tolist(), batch.times.tolist(), batch.values.tolist())
    return [(batch.keys[at], time, value) for at, time, value in zip(*columns, strict=True)]


@given(st.lists(ROWS, max_size=6))
def test_joined_bodies_hold_the_rows_of_each_in_order(batches: list[list[tuple[bytes, int, float]]]) -> None:
    joined = PointBatch.decode_joined([body_of(rows) for rows in batches])
    assert rows_of(joined) == [row for rows in batches for row in rows]
    assert rows_of(PointBatch.decode(joined.encode())) == rows_of(joined)
    assert (joined.index.dtype, joined.times.dtype, joined.values.dtype) == (np.uint32, np.int64, np.float64)


@given(ROWS, st.data())
def test_a_part_of_a_batch_is_a_batch_of_those_rows(rows: list[tuple[bytes, int, float]], data: Any) -> None:
    keep = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    part = PointBatch.decode(body_of(rows)).take(np.array(keep, np.bool_))
    assert rows_of(part) == [row for row, kept in zip(rows, keep, strict=True) if kept]
    assert rows_of(PointBatch.decode(part.encode())) == rows_of(part)  # every key has a row


@pytest.mark.parametrize(
    "changes",
    [
        {"keys": []},
        {"keys": [b"k", b"unused"]},
        {"keys": [b"k", b"k"]},
        {"index": b"\x01\0\0\0"},
        {"index": b""},
        {"times": bytes(16)},
        {"index": b"\0\0", "times": bytes(4), "values": bytes(4)},
        {"values": np.array([np.nan]).tobytes()},
        {"values": 1},
        {"DEEP": 0},  # nested without end
    ],
)
def test_a_bad_body_is_refused_alone_and_among_others(changes: dict[str, Any]) -> None:
    good = {"keys": [b"k"], "index": bytes(4), "times": bytes(8), "values": bytes(8)}
    plain, bad = msgspec.msgpack.encode(good), msgspec.msgpack.encode(good | changes)
    bad = bad.replace(b"\xa4DEEP\0", b"\xa4DEEP" + b"\x91" * 100_000 + b"\0")
    with pytest.raises(ProtocolError):
        PointBatch.decode(bad)
    for bodies in ([bad], [bad, bad], [plain, bad, plain]):
        with pytest.raises(ProtocolError):
            PointBatch.decode_joined(bodies)
