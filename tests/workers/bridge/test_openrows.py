"""Open rows: what was added reaches every owner, in order, in batches of bounded size; each message waits for it."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.points import PointBatch
from common.ring import Node
from common.ringbuild import first_ring
from workers.bridge import openrows
from workers.bridge.batch import Batch, Message
from workers.bridge.columns import Columns
from workers.bridge.openrows import OpenRows, written_partitions
from workers.bridge.payload import Place, Point

PARTITIONS = 4
PLACES = [Place(b"k%d" % n, n % PARTITIONS) for n in range(12)]
Row = tuple[bytes, int, float]


def message(topic: bytes = b"t") -> Message:
    return Message(0x32, b"\x00\x01", topic)


def owned(owners: Sequence[Sequence[str]]) -> dict[str, Any]:
    """owners: by partition."""
    nodes = sorted({node for row in owners for node in row})
    return {node: np.array([node in row for row in owners]) for node in nodes}


ONE = owned([["a"]] * PARTITIONS)
EACH = owned([["a"], ["b"], ["c"], ["d"]])


def rows_of(batch: Batch) -> list[Row]:
    points = PointBatch.decode(batch.body)
    columns = zip(points.index.tolist(), points.times.tolist(), points.values.tolist(), strict=True)
    return [(points.keys[index], time_ns, value) for index, time_ns, value in columns]


def columns_of(points: Sequence[Point], indexed: bool) -> Columns:
    """The same points in columns; indexed: with a table that also names a place without rows."""
    places = [place for place, _, _ in points]
    times, values = np.array([t for _, t, _ in points], np.int64), np.array([v for _, _, v in points], np.float64)
    if not indexed:
        return Columns(places, None, times, values)
    table = [*reversed(PLACES)]
    return Columns(table, np.array([table.index(place) for place in places], np.uint32), times, values)


def test_a_batch_holds_what_was_added_and_says_when_and_by_which_ring() -> None:
    rows = OpenRows(1000)
    rows.add(message(), [(PLACES[0], 1, 1.0), (PLACES[4], 2, -0.0)])
    rows.add(message(), [(PLACES[0], 3, 5e-324)])
    rows.opened_s = 5.0
    ((node, batch),) = rows.close(7, "hash", ONE)
    assert node == "a"
    assert rows_of(batch) == [(b"k0", 1, 1.0), (b"k4", 2, -0.0), (b"k0", 3, 5e-324)]
    assert (batch.born, batch.epoch, batch.ring_hash, batch.opened_s, batch.rows) == (7, 7, "hash", 5.0, 3)


def test_a_message_waits_from_the_moment_it_is_added_and_once_for_each_batch_that_holds_a_part_of_it() -> None:
    rows, first, second, empty = OpenRows(1000), message(), message(), message()
    rows.add(first, [(PLACES[0], 1, 1.0), (PLACES[4], 1, 1.0), (PLACES[1], 1, 1.0)])
    rows.extend(second, columns_of([(PLACES[0], 2, 1.0)], indexed=False))
    rows.add(empty, [])
    rows.extend(empty, columns_of([], indexed=True))
    assert (first.waiting, second.waiting, empty.waiting) == (1, 1, 0)
    batches = dict(rows.close(1, "", EACH))
    assert (first.waiting, second.waiting, empty.waiting) == (2, 1, 0)
    batches["a"].release.release()
    assert (first.waiting, second.waiting) == (1, 0)
    batches["b"].release.release()
    assert first.waiting == 0


def test_so_many_rows_or_so_many_bytes_of_keys_make_it_full() -> None:
    rows = OpenRows(3)
    for full in (False, False, True):
        rows.add(message(), [(PLACES[0], 1, 1.0)])
        assert rows.is_full is full
    keys = OpenRows(1000)
    keys.add(message(), [(Place(bytes(openrows.MAX_KEY_BYTES - 1), 0), 1, 1.0)])
    assert not keys.is_full
    keys.add(message(), [(PLACES[0], 1, 1.0)])
    assert keys.is_full


def test_long_keys_alone_cut_the_rows_of_one_message_into_several_batches() -> None:
    places = [Place(b"%d" % n + bytes(openrows.MAX_KEY_BYTES // 3), 0) for n in range(5)]
    rows, source = OpenRows(1000), message()
    rows.add(source, [(place, 1, 1.0) for place in places])
    batches = [batch for _, batch in rows.close(1, "", ONE)]
    assert [key for batch in batches for key, _, _ in rows_of(batch)] == [place.key for place in places]
    assert all(len(batch.body) <= openrows.MAX_KEY_BYTES + 1000 for batch in batches)
    assert source.waiting == len(batches) > 1


def test_the_partitions_of_each_node_are_those_of_the_ring() -> None:
    members = [Node(f"n{n}", "", f"tcp://127.0.0.1:{5000 + 3 * n}", "z", 1.0, "active") for n in range(3)]
    ring = first_ring("c", members, 16, 2)
    found = written_partitions(ring)
    for partition in range(16):
        owners = {node.id for node in ring.owners(partition)}
        assert {node for node, owns in found.items() if owns[partition]} == owners


_points = st.lists(
    st.tuples(
        st.sampled_from(PLACES),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
    ),
    max_size=9,
)
_messages = st.lists(st.tuples(_points, st.sampled_from(["points", "columns", "indexed"])), min_size=1, max_size=6)
_owners = st.lists(
    st.lists(st.sampled_from(["n1", "n2", "n3"]), min_size=1, unique=True), min_size=PARTITIONS, max_size=PARTITIONS
)


@given(_messages, _owners, st.integers(1, 12))
def test_every_owner_gets_every_row_of_its_partitions_in_order_and_nothing_else(
    added: list[tuple[list[Point], str]], owners: list[list[str]], limit: int
) -> None:
    rows = OpenRows(limit)
    sources = [message(b"t%d" % number) for number in range(len(added))]
    for source, (points, form) in zip(sources, added, strict=True):
        if form == "points":
            rows.add(source, points)
        else:
            rows.extend(source, columns_of(points, indexed=form == "indexed"))
    every = [(source, point) for source, (points, _) in zip(sources, added, strict=True) for point in points]
    assert len(rows) == len(every)
    if not every:
        return
    batches = rows.close(3, "ring", owned(owners))
    assert all(batch.rows <= limit for _, batch in batches)
    for node in ("n1", "n2", "n3"):
        mine = [batch for owner, batch in batches if owner == node]
        want = [(source, point) for source, point in every if node in owners[point[0].partition]]
        assert [row for batch in mine for row in rows_of(batch)] == [
            (place.key, time_ns, value) for _, (place, time_ns, value) in want
        ]
        found = [batch.origin.message(row) for batch in mine for row in range(batch.rows)]
        assert found == [source for source, _ in want]
    _release_in_any_order([batch for _, batch in batches], sources)


def _release_in_any_order(batches: list[Batch], sources: list[Message]) -> None:
    held = {batch: {batch.origin.message(row) for row in range(batch.rows)} for batch in batches}
    for released in range(len(batches) + 1):
        left = list(itertools.chain.from_iterable(held[batch] for batch in batches[released:]))
        assert [source.waiting for source in sources] == [left.count(source) for source in sources]
        if released < len(batches):
            batches[released].release.release()


@pytest.mark.parametrize("indexed", [False, True])
def test_columns_are_the_points_that_they_are_made_of(indexed: bool) -> None:
    points = [(PLACES[n % 5], n, n / 4) for n in range(12)]
    columns = columns_of(points, indexed)
    assert list(columns) == points
