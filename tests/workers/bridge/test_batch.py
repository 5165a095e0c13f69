"""Messages and batches: who waits for what, and what a split keeps."""

import itertools
from array import array

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from common.points import PointBatch
from workers.bridge.batch import Batch, Message, Origin, Release, split
from workers.bridge.openrows import OpenRows
from workers.bridge.payload import Place

Row = tuple[bytes, int, float]


def message(topic: bytes = b"t") -> Message:
    return Message(0x32, b"\x00\x01", topic)


def rows_of(batch: Batch) -> list[Row]:
    points = PointBatch.decode(batch.body)
    columns = zip(points.index.tolist(), points.times.tolist(), points.values.tolist(), strict=True)
    return [(points.keys[index], time_ns, value) for index, time_ns, value in columns]


def batch_of(rows: list[tuple[Message, Row]], epoch: int = 1) -> Batch:
    """One batch of these rows and their messages."""
    opened = OpenRows(1000)
    for source, together in itertools.groupby(rows, key=lambda row: row[0]):
        opened.add(source, [(Place(key, 0), time_ns, value) for _, (key, time_ns, value) in together])
    ((_, batch),) = opened.close(epoch, "", {"node": np.array([True])})
    return batch


def test_a_release_waits_for_every_part() -> None:
    held = message()
    held.hold()
    release = Release([held])
    release.hold()
    release.release()
    assert held.waiting == 1
    release.release()
    assert held.waiting == 0


def test_every_row_knows_its_message_before_and_after_splits() -> None:
    topics = [b"t%d" % n for n in range(4)]
    whole = batch_of(
        [
            (message(topic), (b"k%d" % element, number, float(number)))
            for number, topic in enumerate(topics)
            for element in range(number + 1)
        ]
    )
    parts = split(whole, [["x"] if n % 2 else ["y"] for n in range(4)], 2, "")
    again = [part for _, piece in parts for _, part in split(piece, [["z"]] * 2, 3, "")]
    for batch in [whole, *(part for _, part in parts), *again]:
        for row, (_, time_ns, _) in enumerate(rows_of(batch)):
            assert batch.origin.message(row).topic == topics[time_ns]


_rows = st.lists(
    st.tuples(
        st.sampled_from([b"a", b"b", b"c", b"d"]),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
    ),
    min_size=1,
)


@given(_rows, st.lists(st.lists(st.sampled_from(["n1", "n2", "n3"]), min_size=1, unique=True), min_size=4, max_size=4))
def test_a_split_sends_every_row_to_every_owner_and_nothing_else(
    rows: list[Row], owners: list[list[str]]
) -> None:
    source = message()
    whole = batch_of([(source, row) for row in rows], epoch=3)
    keys = list(dict.fromkeys(key for key, _, _ in rows))
    owners_of = dict(zip(keys, owners, strict=False))
    parts = dict(split(whole, [owners_of[key] for key in keys], 9, "new"))
    assert {node: rows_of(part) for node, part in parts.items()} == {
        node: [row for row in rows if node in owners_of[row[0]]] for node in parts
    }
    assert set(parts) == {node for key in keys for node in owners_of[key]}
    assert {(part.born, part.epoch, part.ring_hash) for part in parts.values()} == {(3, 9, "new")}
    for number, part in enumerate(parts.values()):
        assert source.waiting == 1, f"released after {number} of {len(parts)} parts"
        part.release.release()
    assert source.waiting == 0


def test_runs_say_where_the_rows_of_each_message_begin_in_a_batch_and_in_its_parts() -> None:
    messages = [Message(0x32, b"\0\1", topic) for topic in (b"a", b"b", b"c")]
    origin = Origin(messages, array("q", [0, 2, 5]))
    starts, found = origin.runs()
    assert (starts.tolist(), list(found)) == ([0, 2, 5], messages)
    starts, found = origin.part(np.array([1, 5, 7])).runs()
    assert (starts.tolist(), list(found)) == ([0, 1], [messages[0], messages[2]])
    starts, found = origin.part(np.array([1, 3, 5, 7])).part(np.array([1, 2, 3])).runs()
    assert (starts.tolist(), list(found)) == ([0, 1], messages[1:])
