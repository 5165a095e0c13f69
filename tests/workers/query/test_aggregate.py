"""Partials of any split of the points give the result of the whole, rounded once."""

import math
import random
from fractions import Fraction

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ProtocolError
from common.protocol import AggregateReply
from tests.workers.query.fake import Point, naive_partial, point
from workers.query import aggregate
from workers.query.aggregate import Overflow, check, finish

OPERATIONS = ("avg", "sum", "max", "min", "count", "first", "last")
FINITE = st.floats(allow_nan=False, allow_infinity=False)
# Far from the ends of float64, so that neither a sum overflows nor a pair (hi, lo) loses bits below 2**-1074.
TAME = st.floats(-1e150, 1e150, allow_nan=False).filter(lambda value: value == 0 or abs(value) > 1e-150)


def partial(*values: float, time_ns: int = 0) -> AggregateReply:
    return naive_partial(b"", [point("d", "m", time_ns + n, value) for n, value in enumerate(values)], None, None)


def pair(hi: float, lo: float, count: int = 1) -> AggregateReply:
    return AggregateReply(b"", 0, 1, count, hi, lo, 0.0, 0.0, 0, 0.0, 0, 0.0, 0, 0, 0)


@given(st.lists(TAME, min_size=1, max_size=40), st.randoms(use_true_random=False))
def test_avg_and_sum_of_exact_pairs_are_the_exact_ones_rounded_once(
    values: list[float], draw: random.Random
) -> None:
    # One value per pair, so that each pair is exact whatever the values are.
    partials = [pair(value, 0.0) for value in values]
    draw.shuffle(partials)
    exact = sum(map(Fraction, values))
    assert finish("sum", partials) == float(exact)
    assert finish("avg", partials) == float(exact / len(values))


@given(st.lists(st.tuples(TAME, st.floats(-1e-17, 1e-17)), min_size=1, max_size=9), st.integers(1, 1000))
def test_the_low_halves_count_fully(pairs: list[tuple[float, float]], count: int) -> None:
    partials = [pair(hi, hi * lo, count) for hi, lo in pairs]
    exact = sum(Fraction(hi) + Fraction(hi * lo) for hi, lo in pairs)
    assert finish("sum", partials) == float(exact)
    assert finish("avg", partials) == float(exact / (count * len(pairs)))


@given(
    st.lists(st.tuples(st.integers(-50, 50), FINITE.filter(lambda v: abs(v) < 1e300)), max_size=30),
    st.integers(1, 5),
    st.randoms(use_true_random=False),
)
def test_count_min_max_first_and_last_of_any_split_are_those_of_the_whole(
    rows: list[tuple[int, float]], parts: int, draw: random.Random
) -> None:
    points: list[Point] = [point(f"d{n}", "m", time_ns, value) for n, (time_ns, value) in enumerate(rows)]
    split: list[list[Point]] = [[] for _ in range(parts)]
    for each in points:
        draw.choice(split).append(each)
    partials = [naive_partial(b"", group, None, None) for group in split]
    whole = naive_partial(b"", points, None, None)
    assert finish("count", partials) == len(rows)
    for operation in ("min", "max", "first", "last"):
        wanted = getattr(whole, operation) if rows else None
        assert finish(operation, partials) == wanted


def test_without_points_every_result_is_none_but_count_is_zero() -> None:
    for operation in OPERATIONS:
        assert finish(operation, [partial(), partial()]) == (0 if operation == "count" else None)
        assert finish(operation, []) == (0 if operation == "count" else None)


def test_an_empty_partial_adds_nothing_though_its_fields_are_zero() -> None:
    partials = [partial(), partial(5.0, 7.0, time_ns=1000)]
    results = {operation: finish(operation, partials) for operation in OPERATIONS}
    assert results == {"avg": 6.0, "sum": 12.0, "max": 7.0, "min": 5.0, "count": 2, "first": 5.0, "last": 7.0}


def test_avg_is_sum_by_count_and_not_an_average_of_averages() -> None:
    assert finish("avg", [partial(1.0), partial(2.0, 2.0, 2.0)]) == 1.75


def test_what_cancels_between_nodes_leaves_no_error() -> None:
    assert finish("sum", [pair(1e16, 1.0), pair(-1e16, 0.0)]) == 1.0
    assert finish("avg", [pair(1e300, 0.0), pair(-1e300, 0.0), pair(3.0, 0.0)]) == 1.0


def test_minus_zero_lies_below_zero() -> None:
    for partials in ([partial(0.0), partial(-0.0)], [partial(-0.0), partial(0.0)]):
        assert repr(finish("min", partials)) == "-0.0"
        assert repr(finish("max", partials)) == repr(finish("first", partials)) == "0.0"
    assert repr(finish("sum", [pair(-0.0, 0.0), pair(-0.0, 0.0)])) == "-0.0"
    assert repr(finish("avg", [pair(-0.0, 0.0), pair(0.0, 0.0)])) == "0.0"


def test_of_several_series_at_the_first_or_last_time_the_larger_value_is_taken() -> None:
    partials = [partial(3.0, time_ns=10), partial(5.0, time_ns=10), partial(4.0, time_ns=10)]
    assert finish("first", partials) == finish("last", partials) == 5.0


@pytest.mark.parametrize("operation", ["sum", "avg"])
def test_a_sum_outside_float64_is_an_error_and_so_is_the_average_of_it(operation: str) -> None:
    for partials in ([pair(1.7e308, 0.0), pair(1.7e308, 0.0)], [pair(math.inf, 0.0)], [pair(1.0, math.nan)]):
        with pytest.raises(Overflow, match="leaves the range of float64"):
            finish(operation, partials)


@pytest.mark.parametrize("hi", [math.inf, -math.inf, math.nan])
def test_a_sum_that_overflowed_in_a_node_spoils_no_other_operation(hi: float) -> None:
    partials = [pair(hi, 0.0, 2), pair(1.0, 0.0)]
    check(partials[0])
    assert finish("count", partials) == 3
    assert [finish(operation, partials) for operation in ("min", "max", "first", "last")] == [0.0] * 4
    with pytest.raises(Overflow):
        finish("sum", partials)


def test_the_largest_float_itself_is_no_overflow() -> None:
    largest = 1.7976931348623157e308
    assert finish("sum", [pair(largest, 0.0), pair(largest, 0.0), pair(-largest, 0.0)]) == largest


def test_subnormal_results_are_rounded_once_too() -> None:
    assert finish("avg", [pair(5e-324, 0.0), pair(5e-324, 0.0), pair(0.0, 0.0)]) == 5e-324
    assert finish("sum", [pair(5e-324, 0.0), pair(5e-324, 0.0)]) == 1e-323


@pytest.mark.parametrize("field", ["min", "max", "first", "last"])
def test_a_partial_with_a_point_that_is_not_finite_is_refused(field: str) -> None:
    fields = {"min": 0.0, "max": 0.0, "first": 0.0, "last": 0.0} | {field: math.nan}
    broken = AggregateReply(
        b"", 0, 1, 1, 0.0, 0.0, fields["min"], fields["max"], 0, fields["first"], 0, fields["last"], 0, 0, 0
    )
    with pytest.raises(ProtocolError, match=f"AggregateReply.{field} is nan, want a finite number"):
        check(broken)


@given(st.lists(st.tuples(TAME.map(lambda v: v % 1e6), st.integers(0, 2)), max_size=30), st.sampled_from([0.0, 1e9]))
def test_m2_of_any_split_is_that_of_the_whole(rows: list[tuple[float, int]], far: float) -> None:
    split = [[value + far for value, at in rows if at == part] for part in range(3)]
    whole = [Fraction(value) for part in split for value in part]
    mean = sum(whole, Fraction(0)) / (len(whole) or 1)
    want = sum(((value - mean) ** 2 for value in whole), Fraction(0))
    assert aggregate.m2([partial(*part) for part in split]) == pytest.approx(float(want), rel=1e-9, abs=1e-300)


def test_m2_outside_float64_is_an_error_and_below_zero_it_is_no_reply() -> None:
    for broken in (math.inf, math.nan):
        with pytest.raises(Overflow, match="leaves the range of float64"):
            aggregate.m2([partial(1.0), msgspec.structs.replace(partial(1.0), m2=broken)])
    check(msgspec.structs.replace(partial(1.0), m2=math.nan))
    with pytest.raises(ProtocolError, match=r"m2 is -1\.0, want none below 0"):
        check(msgspec.structs.replace(partial(1.0), m2=-1.0))


def test_the_delete_number_of_an_answer_is_the_lowest() -> None:
    numbered = [AggregateReply(b"", n, 1, 0, 0.0, 0.0, 0.0, 0.0, 0, 0.0, 0, 0.0, 0, 0, 0) for n in (4, 2, 9)]
    assert aggregate.delete_number(numbered) == 2
    assert aggregate.delete_number([]) == 0
