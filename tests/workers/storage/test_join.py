"""Joining overlapping blocks in pieces: the same rows as an obvious join, in order, and little memory held."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import naive
from workers.storage import join

VALUES = [-1.0, -0.0, 0.0, 1.0, float("inf"), float("nan")]
TIMES = st.integers(0, 60) | st.sampled_from([-(2**63), 2**63 - 1])
BLOCK = st.dictionaries(TIMES, st.sampled_from(VALUES), min_size=1, max_size=12)


def rows_of(points: dict[int, float]) -> join.Rows:
    times = np.array(sorted(points), np.int64)
    return times, np.array([points[time] for time in times.tolist()], np.float64)


def obvious(blocks: list[dict[int, float]]) -> list[tuple[int, int]]:
    """Time and bits of the value of every point."""
    oracle = naive.PointSet()
    for block in blocks:
        for time, value in block.items():
            oracle.add("series", time, value)
    return [(time, naive.bits(value)) for time, value in sorted(oracle.points.get("series", {}).items())]


def flat(pieces: list[join.Rows]) -> list[tuple[int, int]]:
    return [
        (time, naive.bits(value))
        for times, values in pieces
        for time, value in zip(times.tolist(), values.tolist(), strict=True)
    ]


@pytest.mark.parametrize("held_rows", [1, 5, join._HELD_ROWS])
@given(
    blocks=st.lists(st.tuples(BLOCK, st.integers(0, 9)), max_size=12),
    extra=st.none() | BLOCK | st.just({}),
)
@settings(max_examples=300)
def test_pieces_are_the_points_of_all_blocks_in_order_of_time(
    held_rows: int, blocks: list[tuple[dict[int, float], int]], extra: dict[int, float] | None
) -> None:
    """A block in ten decodes to nothing: a delete hides its rows."""
    ordered = sorted(blocks, key=lambda block: min(block[0]))
    t_min = np.array([min(points) for points, _ in ordered], np.int64)
    left = [points if fate else {} for points, fate in ordered]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(join, "_HELD_ROWS", held_rows)
        pieces = list(
            join.settled_pieces(t_min, lambda at: rows_of(left[at]), None if extra is None else rows_of(extra))
        )
    assert flat(pieces) == obvious([*left, extra or {}])
    assert all(len(times) for times, _ in pieces)


def test_a_piece_is_given_out_before_the_blocks_behind_it_are_decoded() -> None:
    decoded: list[int] = []

    def decode(block: int) -> join.Rows:
        decoded.append(block)
        return rows_of({10 * block: 1.0, 10 * block + 5: 2.0})

    pieces = join.settled_pieces(np.arange(0, 30, 10, dtype=np.int64), decode)
    for block in range(3):
        next(pieces)
        assert decoded == list(range(block + 1))


def test_a_long_chain_of_overlapping_blocks_is_held_in_part_and_joined_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block overlaps the next three, so the whole series is one chain."""
    joined: list[int] = []
    plain = join.settled

    def counted(pieces: list[join.Rows]) -> join.Rows:
        joined.append(sum(len(times) for times, _ in pieces))
        return plain(pieces)

    monkeypatch.setattr(join, "settled", counted)
    rows, blocks = 8192, 100
    t_min = np.arange(blocks, dtype=np.int64) * rows

    def decode(block: int) -> join.Rows:
        return block * rows + 4 * np.arange(rows, dtype=np.int64), np.full(rows, float(block))

    got = np.concatenate([times for times, _ in join.settled_pieces(t_min, decode)])
    want = np.unique(np.concatenate([decode(block)[0] for block in range(blocks)]))
    assert got.tobytes() == want.tobytes()
    assert max(joined) <= 3 * join._HELD_ROWS
    assert sum(joined) <= 3 * rows * blocks


def test_many_blocks_over_one_span_are_not_joined_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    joined: list[int] = []
    plain = join.settled
    monkeypatch.setattr(join, "settled", lambda pieces: joined.append(len(pieces)) or plain(pieces))
    rows, blocks = 8192, 64

    def decode(block: int) -> join.Rows:
        return block + 1000 * np.arange(rows, dtype=np.int64), np.full(rows, 1.0)

    got = list(join.settled_pieces(np.arange(blocks, dtype=np.int64), decode))
    assert sum(len(times) for times, _ in got) == rows * blocks
    assert len(joined) <= 8
