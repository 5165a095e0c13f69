"""Aggregates and samples over random views equal the oracle's, whatever lies where; and they cost what they should."""

import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import naive
from tests.workers.storage.support import assert_sum
from tests.workers.storage.views import DEVICES, Delete, Place, oracle_of, selection, view_of
from workers.storage import aggregate
from workers.storage.aggregate import (
    AggregatePlan,
    Columns,
    LimitError,
    Rows,
    by_interval,
    by_series,
    samples,
    values_of,
)
from workers.storage.readers import Readers
from workers.storage.table import View

MINUTE = 60_000_000_000
HOUR = 60 * MINUTE
EDGES = [-(1 << 63), -(1 << 63) + 1, -1, 0, (1 << 63) - 2, (1 << 63) - 1]

times = st.integers(0, 40) | st.integers(-30, 300) | st.sampled_from(EDGES)
values = st.sampled_from([-0.0, 0.0, 1.0, -1.0, 5e-324, 0.1, 1e16, 1e16 + 2]) | st.floats(-1e100, 1e100)
rows = st.lists(st.tuples(st.integers(0, len(DEVICES) - 1), times, values), min_size=1, max_size=30)
rising = rows.map(lambda found: sorted(found, key=lambda row: row[1]))
places = st.lists(
    st.builds(Place, rows | rising, st.integers(0, 3), st.sampled_from([0, 0, 1, 2, 5, 100])), min_size=1, max_size=5
)
deletes = st.lists(
    st.builds(Delete, st.integers(1, 3), st.none() | st.integers(0, 5), times, times), max_size=3
).map(lambda found: [each for each in found if each.start <= each.end])
ranges = st.tuples(st.none() | times, st.none() | times)
series = st.lists(st.integers(0, len(DEVICES) - 1), unique=True)
intervals = st.integers(1, 50) | st.sampled_from([MINUTE, HOUR, 1 << 62, (1 << 63) - 1])
offsets = st.integers(-60, 60) | st.sampled_from(EDGES)
chunks = st.sampled_from([1, 3, 1000])


@pytest.fixture(scope="module")
def pool() -> Readers:
    return Readers(2)


def assert_row(got: Columns, at: int, want: naive.Answer, magnitude: float) -> None:
    exact = (got.counts[at], got.first_times[at], got.last_times[at])
    assert exact == (want.count, want.first_time, want.last_time)
    for name, column in (("min", got.least), ("max", got.most), ("first", got.first), ("last", got.last)):
        assert naive.bits(float(column[at])) == naive.bits(getattr(want, name)), name
    assert_sum(float(got.sum_hi[at]), float(got.sum_lo[at]), want.sum, want.count * Fraction(magnitude))
    error = abs(Fraction(float(got.m2[at])) - want.m2)
    assert error <= want.m2 / 10**9 + Fraction(1e-300), f"M2 {got.m2[at]}, want {float(want.m2)}"


@settings(max_examples=200)
@given(places, deletes, series, ranges, chunks)
def test_whole_and_by_series(
    pool: Readers, placed: list[Place], deleted: list[Delete], asked: list[int],
    bounds: tuple[int | None, int | None], chunk: int,
) -> None:  # fmt: skip
    oracle = oracle_of(placed, deleted)
    with tempfile.TemporaryDirectory() as directory:
        view = view_of(Path(directory), placed, deleted, chunk)
        plan = AggregatePlan(view, selection(asked), b"", *bounds)
        to_decode = plan.rows_to_decode
        reply = plan.run(pool)
        found = by_series(view, selection(asked), *bounds, pool)
        alone = by_series(view, selection(asked), *bounds)
        single = {each: AggregatePlan(view, selection([each]), b"", *bounds).run(pool) for each in asked}
    want = oracle.aggregate(asked, *bounds)
    assert (reply.series, reply.rows_decoded <= to_decode) == (len(asked), True)
    row = Columns(*(np.array([each]) for each in (
        reply.count, reply.sum_hi, reply.sum_lo, reply.min, reply.max, reply.first_time, reply.first,
        reply.last_time, reply.last, reply.m2,
    )))  # fmt: skip
    assert_row(row, 0, want, oracle.magnitude(asked))
    columns = values_of(found.rows)
    assert found.ids.tolist() == [each for each in asked if oracle.rows(each, *bounds)]
    for at, each in enumerate(found.ids.tolist()):
        assert_row(columns, at, oracle.aggregate([each], *bounds), oracle.magnitude([each]))
        of_it = single[each]  # whatever way one series takes, it comes to the same bits
        got = [naive.bits(float(one)) for one in (of_it.sum_hi, of_it.sum_lo, of_it.m2, of_it.min, of_it.first)]
        told = (columns.sum_hi, columns.sum_lo, columns.m2, columns.least, columns.first)
        assert (of_it.count, got) == (columns.counts[at], [naive.bits(float(one[at])) for one in told])
    assert (found.rows == alone.rows).all()


@settings(max_examples=200)
@given(places, deletes, series, ranges, intervals, offsets, chunks)
def test_by_interval(
    pool: Readers, placed: list[Place], deleted: list[Delete], asked: list[int],
    bounds: tuple[int | None, int | None], interval: int, offset: int, chunk: int,
) -> None:  # fmt: skip
    oracle = oracle_of(placed, deleted)
    with tempfile.TemporaryDirectory() as directory:
        view = view_of(Path(directory), placed, deleted, chunk)
        try:
            found = by_interval(view, selection(asked), *bounds, interval, offset, max_rows=5000, pool=pool)
        except LimitError:
            assert most_buckets(placed, asked, bounds, interval, offset) > 5000
            return
    columns = values_of(found.rows)
    at = 0
    for each in asked:
        for number, want in sorted(oracle.by_interval(each, interval, offset, *bounds).items()):
            start = max(number * interval + offset, EDGES[0])
            assert (found.ids[at], found.starts[at]) == (each, start)
            assert_row(columns, at, want, oracle.magnitude([each]))
            at += 1
    assert at == len(found.rows)


def most_buckets(
    placed: Sequence[Place], asked: Sequence[int], bounds: tuple[int | None, int | None], interval: int, offset: int
) -> int:
    """Of each series from its first row, or the range's start, to its last, or the range's end."""
    start, end = (edge if bound is None else bound for bound, edge in zip(bounds, (EDGES[0], EDGES[-1]), strict=True))
    total = 0
    for each in asked:
        known = [time for place in placed for number, time, _ in place.rows if number == each]
        if known and max(known) >= start and min(known) <= end:
            first, last = max(min(known), start), min(max(known), end)
            total += (last - offset) // interval - (first - offset) // interval + 1
    return total


@settings(max_examples=200)
@given(places, deletes, series, ranges, chunks)
def test_samples(
    placed: list[Place], deleted: list[Delete], asked: list[int], bounds: tuple[int | None, int | None], chunk: int
) -> None:
    oracle = oracle_of(placed, deleted)
    got: list[tuple[int, int, int]] = []
    with tempfile.TemporaryDirectory() as directory:
        view = view_of(Path(directory), placed, deleted, chunk)
        for each, piece_times, piece_values in samples(view, selection(asked), *bounds):
            assert len(piece_times)
            points = zip(piece_times.tolist(), map(naive.bits, piece_values.tolist()), strict=True)
            got += [(each, time, value) for time, value in points]
    assert got == [(each, time, naive.bits(value)) for each in asked for time, value in oracle.rows(each, *bounds)]


def dense(each: int, begin: int, count: int, step: int, seed: int) -> list[tuple[int, int, float]]:
    chosen = np.random.default_rng(seed).normal(20.0, 5.0, count).round(2).tolist()
    return [(each, begin + at * step, value) for at, value in enumerate(chosen)]


@pytest.fixture(scope="module")
def dense_view(tmp_path_factory: pytest.TempPathFactory) -> tuple[View, naive.PointSet]:
    """Blocks with windows of a minute (series 0) and an hour (series 1), before and after the epoch; late rows."""
    begin = -3 * HOUR + 17
    placed = [
        Place(dense(0, begin, 3000, 300_000_000, 1) + dense(1, begin, 9000, 10_000_000_000, 2), 0, 1500),
        Place(dense(0, begin + 900_000_000_000, 3000, 300_000_000, 3), 0, 1500),
        Place([(1, 5 * HOUR + 5, 1e6), (1, 5 * HOUR + 4, -1e6), (1, 9 * HOUR, 7.0)]),
    ]
    deleted = [Delete(1, 1, 20 * HOUR, 20 * HOUR + 5)]
    return view_of(tmp_path_factory.mktemp("dense"), placed, deleted), oracle_of(placed, deleted)


@pytest.mark.parametrize("interval", [MINUTE, 7 * MINUTE, HOUR, 3 * HOUR, HOUR + 1])
@pytest.mark.parametrize("offset", [0, HOUR, -MINUTE, 13])
@pytest.mark.parametrize("bounds", [(None, None), (-2 * HOUR, 9 * HOUR - 1), (-2 * HOUR + 1, 9 * HOUR), (HOUR, None)])
def test_windows_give_what_the_points_give(
    dense_view: tuple[View, naive.PointSet], interval: int, offset: int, bounds: tuple[int | None, int | None]
) -> None:
    view, oracle = dense_view
    found = by_interval(view, selection([0, 1]), *bounds, interval, offset, wants={"count", "sum", "min", "max"})
    columns = values_of(found.rows)
    want = [
        (each, number * interval + offset, answer)
        for each in (0, 1)
        for number, answer in sorted(oracle.by_interval(each, interval, offset, *bounds).items())
    ]
    assert list(zip(found.ids.tolist(), found.starts.tolist(), strict=True)) == [row[:2] for row in want]
    for at, (each, _, answer) in enumerate(want):
        assert (columns.counts[at], columns.least[at], columns.most[at]) == (answer.count, answer.min, answer.max)
        weight = answer.count * Fraction(oracle.magnitude([each]))
        assert_sum(float(columns.sum_hi[at]), float(columns.sum_lo[at]), answer.sum, weight)


def costs(found: Rows) -> tuple[int, int, int]:
    return found.blocks_summarized, found.windows_read, found.blocks_decoded


def test_whole_hours_read_windows_and_whatever_else_is_asked_decodes(tmp_path: Path) -> None:
    placed = [Place(dense(0, 0, 9000, 10_000_000_000, 2), 0, 3000)]
    view = view_of(tmp_path, placed)
    few = {"count", "sum", "mean", "min", "max"}
    hours = by_interval(view, selection([0]), None, None, HOUR, 0, few)
    assert costs(hours) == (0, 27, 0)
    assert costs(by_interval(view, selection([0]), HOUR, 8 * HOUR - 1, HOUR, 0, few)) == (0, 7, 0)
    assert costs(by_interval(view, selection([0]), 1, None, HOUR, 0, few)) == (0, 18, 1)
    assert costs(by_interval(view, selection([0]), None, None, HOUR, MINUTE, few)) == (0, 0, 3)
    assert costs(by_interval(view, selection([0]), None, None, HOUR, 0, few | {"last"})) == (0, 0, 3)
    assert costs(by_interval(view, selection([0]), None, None, 100 * HOUR, 0)) == (3, 0, 0)
    late = view_of(tmp_path, [*placed, Place([(0, 4 * HOUR, 1.0)])])
    assert costs(by_interval(late, selection([0]), None, None, HOUR, 0, few)) == (0, 18, 1)


def test_one_late_row_in_each_head_costs_one_block_of_its_series(tmp_path: Path) -> None:
    stored = [(each, time, 1.0) for each in range(6) for time in range(0, 100, 2)]
    view = view_of(tmp_path, [Place(stored, 0, 10), Place([(2, 41, 5.0), (2, 43, 5.0)]), Place([(3, 15, 2.0)])])
    found = by_series(view, selection(range(6)), None, None)
    assert costs(found) == (28, 0, 2)
    assert values_of(found.rows).counts.tolist() == [50, 50, 52, 51, 50, 50]


def test_a_delete_costs_the_blocks_that_it_cuts(tmp_path: Path) -> None:
    stored = [(0, time, float(time)) for time in range(100)]
    placed, deleted = [Place(stored, 0, 10), Place([(1, 1, 1.0)], 1)], [Delete(1, None, 15, 45), Delete(2, 0, 80, 89)]
    view = view_of(tmp_path, placed, deleted)
    found = by_series(view, selection([0, 1]), None, None)
    assert costs(found) == (6, 0, 2)  # five blocks and a head
    assert values_of(found.rows).counts.tolist() == [59, 1]


def test_what_was_written_after_a_delete_is_not_touched_by_it(tmp_path: Path) -> None:
    stored = [(0, time, float(time)) for time in range(100)]
    view = view_of(tmp_path, [Place(stored, 1, 10), Place([(0, 100, 5.0)], 1)], [Delete(1, 0, 0, 1000)])
    found = by_series(view, selection([0]), None, None)
    assert costs(found) == (11, 0, 0)


def test_heads_by_themselves_need_no_blocks(tmp_path: Path) -> None:
    rows_of_all = [(each, time, float(time)) for time in range(50) for each in range(6)]
    later = [(each, time, float(time)) for time in (60, 55) for each in range(6)]
    view = view_of(tmp_path, [Place(rows_of_all), Place(later)])
    found = by_interval(view, selection(range(6)), 5, None, 20)
    assert costs(found)[2] == 0
    assert values_of(found.rows).counts.tolist() == [15, 20, 11, 1] * 6


@pytest.mark.parametrize("interval", [0, -1, 1 << 63])
def test_an_interval_must_be_a_time(tmp_path: Path, interval: int) -> None:
    with pytest.raises(LimitError, match=f"interval of {interval} ns, want 1 to"):
        by_interval(view_of(tmp_path, []), selection([0]), None, None, interval)


def test_too_many_buckets_are_refused_with_their_number(tmp_path: Path) -> None:
    view = view_of(tmp_path, [Place([(0, 0, 1.0), (0, 999, 1.0), (1, 5, 1.0)], 0, 9)], chunk_blocks=1)
    assert len(by_interval(view, selection([0, 1]), None, None, 1, max_rows=1001).rows) == 3
    with pytest.raises(LimitError, match="1001 buckets of 1 ns, want at most 1000"):
        by_interval(view, selection([0, 1]), None, None, 1, max_rows=1000)
    edges = view_of(tmp_path, [Place([(0, EDGES[0], 1.0), (0, EDGES[-1], 1.0)], 0, 9)])
    with pytest.raises(LimitError, match="18446744073709551616 buckets"):
        by_interval(edges, selection([0]), None, None, 1)


def test_nothing_is_an_answer_too(tmp_path: Path) -> None:
    view = view_of(tmp_path, [])
    for asked in ([], [0, 1]):
        assert len(by_series(view, selection(asked), None, None).rows) == 0
        assert len(by_interval(view, selection(asked), None, None, HOUR).rows) == 0
        assert list(samples(view, selection(asked), None, None)) == []
        assert AggregatePlan(view, selection(asked), b"", None, None).run().count == 0


def test_long_chains_are_streamed(tmp_path: Path, pool: Readers) -> None:
    """More rows than a task takes, in blocks that overlap, with rows of a head all over them."""
    odd = [(0, time, float(time % 1000)) for time in range(1, 300_000, 2)]
    even = [(0, time, float(time % 1000)) for time in range(0, 300_000, 2)]
    late = [(0, time, 5e3) for time in range(0, 300_000, 1009)]
    for placed in ([Place(odd, 0, 1000), Place(even, 0, 7000)], [Place(odd + even, 0, 8192), Place(late)]):
        view = view_of(tmp_path, [*placed, Place([(1, 0, 1.0)])])
        points = {time: value for place in placed for _, time, value in place.rows}
        whole = AggregatePlan(view, selection([0, 1]), b"", None, None)
        assert whole.rows_to_decode >= 300_000
        reply = whole.run(pool)
        assert (reply.count, reply.sum_hi) == (len(points) + 1, sum(points.values()) + 1.0)
        thirds = values_of(by_interval(view, selection([0]), 7, 299_990, 100_000, pool=pool).rows)
        assert thirds.counts.tolist() == [99_993, 100_000, 99_991]
        assert (thirds.sum_hi + thirds.sum_lo).sum() == sum(points[time] for time in range(7, 299_991))


def test_sums_do_not_depend_on_who_decodes(tmp_path: Path) -> None:
    pieces = [Place(dense(0, at, 40_000, 7, at), 0, 1000) for at in range(3)]
    view = view_of(tmp_path, pieces)
    one, four = Readers(1), Readers(4)
    found = [by_interval(view, selection([0]), 3, 250_000, 70_001, 5, pool=each).rows for each in (None, one, four)]
    assert (found[0] == found[1]).all() and (found[0] == found[2]).all()
    assert aggregate.values_of(found[0]).counts.sum() > 100_000
    one.close()
    four.close()
