"""The head and its kernels against the oracle, over the whole of int64 and all finite float64."""

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from common import series
from common.points import PointBatch
from tests import naive
from tests.workers.storage.support import assert_m2, assert_sum, key
from workers.storage import kernels
from workers.storage.head import Head, join

KEYS = [key(f"d{number}") for number in range(12)]
HASHES = np.array([series.series_hash(each) for each in KEYS], np.uint64)

times = st.integers(-(2**63), 2**63 - 1) | st.integers(-5, 5)
values = st.floats(allow_nan=False, allow_infinity=False, width=64) | st.sampled_from([0.0, -0.0, 5e-324])
rows = st.lists(st.tuples(st.integers(0, 2), times, values), max_size=60)
of_many = st.lists(st.tuples(st.integers(0, 11), st.integers(-9, 9), values), max_size=60)
columns = st.lists(st.lists(st.tuples(times, values), max_size=40), min_size=1, max_size=4)

Row = tuple[int, int, float]


def head_of(appended: list[list[Row]]) -> Head:
    head = Head(sum(map(len, appended)) or 1)
    for part in appended:
        index, at, value = zip(*part, strict=True) if part else ((), (), ())
        batch = PointBatch(KEYS, np.array(index, np.uint32), np.array(at, np.int64), np.array(value, np.float64))
        head.append(batch, np.arange(12), HASHES)
    return head


def part_of(head: Head, local_id: int) -> tuple[int, np.ndarray] | None:
    """The local number and the summary of one series."""
    parts = head.parts(np.array([local_id]))
    return (int(parts.locals[0]), parts.summaries[0]) if len(parts.places) else None


def oracle_of(points: list[Row]) -> naive.PointSet:
    oracle = naive.PointSet()
    for each, time, value in points:
        oracle.add(each, time, value)
    return oracle


def same(got: tuple[np.ndarray, np.ndarray], want: dict[int, float]) -> bool:
    pairs = zip(got[0].tolist(), map(naive.bits, got[1].tolist()), strict=True)
    return list(pairs) == [(time, naive.bits(want[time])) for time in sorted(want)]


@given(st.lists(rows, max_size=3))
def test_rows_of_a_series_come_out_settled(appended: list[list[Row]]) -> None:
    head = head_of(appended)
    oracle = oracle_of([row for part in appended for row in part])
    for each in range(3):
        part = part_of(head, each)
        assert (part is None) == (each not in oracle.points)
        if part is not None:
            assert same(head.settled(*part), oracle.points[each])


@given(rows, rows)
def test_settled_rows_are_those_of_the_moment_asked_for(before: list[Row], after: list[Row]) -> None:
    head = Head(len(before) + len(after) or 1)
    parts = {}
    for moment, points in (("before", before), ("after", after)):
        index, at, value = zip(*points, strict=True) if points else ((), (), ())
        batch = PointBatch(KEYS, np.array(index, np.uint32), np.array(at, np.int64), np.array(value, np.float64))
        head.append(batch, np.arange(12), HASHES)
        parts[moment] = part_of(head, 0)
    wanted = {"before": oracle_of(before), "after": oracle_of(before + after)}
    for moment in ("after", "before", "after"):
        part = parts[moment]
        if part is not None:
            assert same(head.settled(*part), wanted[moment].points[0])


@given(st.sets(times, min_size=1, max_size=40), st.data())
def test_running_summary_of_rising_times_is_that_of_the_points(chosen: set[int], data: st.DataObject) -> None:
    points = [(0, time, data.draw(values)) for time in sorted(chosen)]
    part = part_of(head_of([points]), 0)
    assert part is not None and part[1][kernels.RISING] == 1
    check_summary(part[1], points)


@given(rows)
def test_grouped_points_are_in_the_order_of_a_segment(points: list[Row]) -> None:
    grouped = head_of([points]).grouped()
    oracle = oracle_of(points)
    assert grouped.hashes.tolist() == sorted(grouped.hashes.tolist())
    for at, each in enumerate(grouped.ids.tolist()):
        span = slice(int(grouped.offsets[at]), int(grouped.offsets[at + 1]))
        assert same((grouped.times[span], grouped.values[span]), oracle.points.get(each, {}))


@given(columns)
def test_join_of_columns_is_the_join_of_sets(pieces: list[list[tuple[int, float]]]) -> None:
    oracle = oracle_of([(0, time, value) for piece in pieces for time, value in piece])
    got = join(
        [np.array([time for time, _ in piece], np.int64) for piece in pieces],
        [np.array([value for _, value in piece], np.float64) for piece in pieces],
    )
    assert same(got, oracle.points.get(0, {}))


@given(st.lists(st.lists(values.filter(lambda value: abs(value) < 1e150), min_size=1, max_size=30), min_size=1))
def test_m2_of_blocks_is_right_however_far_the_values_lie_from_zero(blocks: list[list[float]]) -> None:
    ends = np.cumsum([len(block) for block in blocks])
    flat = np.array([value for block in blocks for value in block])
    floats = np.empty((kernels.BLOCK_M2 + 1, len(blocks)))
    ints = np.empty((4, len(blocks)), np.int64)
    kernels.summarize(np.arange(len(flat)), flat, ends, np.zeros(len(blocks), np.uint64), ints, floats)
    for block, got in zip(blocks, floats[kernels.BLOCK_M2].tolist(), strict=True):
        assert_m2(got, block)


def test_m2_of_a_small_scatter_far_from_zero() -> None:
    block = [1e9 + 0.01 * (at % 7) for at in range(1000)]
    points = [(0, at, value) for at, value in enumerate([-5.0, *block])]
    part = part_of(head_of([points[1:]]), 0)
    late = part_of(head_of([points]), 0)
    assert part is not None and late is not None
    assert_m2(part[1].view(np.float64)[kernels.M2], block)
    assert_m2(late[1].view(np.float64)[kernels.M2], [-5.0, *block])


@given(of_many, of_many, st.lists(st.integers(0, 14), unique=True))
def test_rows_of_series_come_one_behind_the_other(before: list[Row], after: list[Row], asked: list[int]) -> None:
    head = head_of([before, after])
    oracle = oracle_of(before + after)
    parts = head.parts(np.array(asked, np.int64))
    assert parts.places.tolist() == [at for at, each in enumerate(asked) if each in oracle.points]
    if len(parts.places):
        gathered_times, gathered_values, offsets = head.gathered(parts)
        for at, place in enumerate(parts.places.tolist()):
            span = slice(int(offsets[at]), int(offsets[at + 1]))
            assert same((gathered_times[span], gathered_values[span]), oracle.points[asked[place]])


def check_summary(summary: np.ndarray, points: list[Row]) -> None:
    want = oracle_of(points).aggregate([0])
    fields = summary.tolist()
    assert (fields[kernels.COUNT], fields[kernels.FIRST_TIME], fields[kernels.LAST_TIME]) == (
        want.count,
        want.first_time,
        want.last_time,
    )
    for field, value in (
        (kernels.MIN, want.min),
        (kernels.MAX, want.max),
        (kernels.FIRST, want.first),
        (kernels.LAST, want.last),
    ):
        assert fields[field] == ordered(value)
    stored = [(time, value) for _, time, value in points]
    assert fields[kernels.DIGEST] % 2**64 == naive.digest(int(HASHES[0]), stored)
    hi, lo = summary.view(np.float64)[[kernels.HI, kernels.LO]].tolist()
    weight = sum(Fraction(abs(value)) for _, _, value in points)
    if weight < Fraction(1.7e308):  # beyond that an addition may overflow on the way
        assert_sum(hi, lo, want.sum, len(points) * weight, normal=False)
    if not any(abs(value) > 1e150 for _, _, value in points):
        assert_m2(summary.view(np.float64)[kernels.M2], [value for _, _, value in points])


def ordered(value: float) -> int:
    """Ordered bits (kernels), from their definition: negative values count down from -1."""
    number = naive.bits(value)
    return number if number < 1 << 63 else -1 - (number - (1 << 63))
