"""What a store answers beside what the oracle does: bits for all but sums and M2, whose errors are bounded."""

import itertools
import math
from collections.abc import Iterable
from fractions import Fraction

from common import series
from common.selector import Selector
from tests import naive
from tests.workers.storage.support import EPSILON, EVERYWHERE, assert_sum
from workers.storage import aggregate
from workers.storage.aggregate import LimitError, Rows
from workers.storage.store import Store

Contents = dict[bytes, list[tuple[int, int]]]  # by series: (time, bits of the value), by time

WIDE_NS = 10_000 * 86_400 * 10**9  # so wide that no question has too many buckets
MAX_ROWS = 50_000
EARLIEST = -(1 << 63)


def contents(store: Store, wanted: Iterable[bytes]) -> Contents:
    """All points of some series, and of their devices nothing else."""
    wanted = list(wanted)
    found: Contents = {each: [] for each in wanted}
    for device in sorted({series.parse_key(each).device_id for each in wanted}):
        for each, points in samples(store, Selector(device), None, None).items():
            found[each] = points
    return found


def expected(oracle: naive.PointSet, wanted: Iterable[bytes]) -> Contents:
    """What `contents` must be."""
    return {each: [(time, naive.bits(value)) for time, value in oracle.rows(each)] for each in wanted}


def samples(store: Store, selector: Selector, start: int | None, end: int | None) -> Contents:
    """The points of the series that match, which must come in order, one for each timestamp."""
    found: Contents = {}
    for each, times, values in store.samples(selector, EVERYWHERE, start, end):
        points = found.setdefault(each, [])
        assert len(times) == len(values) > 0
        points += zip(times.tolist(), map(naive.bits, values.tolist()), strict=True)
    for points in found.values():
        assert all(one < another for (one, _), (another, _) in itertools.pairwise(points))
    return found


def assert_samples(
    store: Store, oracle: naive.PointSet, selector: Selector, start: int | None, end: int | None
) -> None:
    """The same points, and of no other series."""
    want = {
        each: [(time, naive.bits(value)) for time, value in oracle.rows(each, start, end)]
        for each in matching(oracle, selector)
    }
    assert samples(store, selector, start, end) == {each: points for each, points in want.items() if points}


def assert_by_series(
    store: Store, oracle: naive.PointSet, selector: Selector, start: int | None, end: int | None
) -> None:
    """The same figures of the same series."""
    want = {(each, None): oracle.aggregate([each], start, end) for each in matching(oracle, selector)}
    got = store.by_series(selector, EVERYWHERE, start, end)
    keys = [(store._catalog.key(local_id), None) for local_id in got.ids.tolist()]
    _assert_rows(got, keys, want, oracle, whole=True)


def assert_by_interval(
    store: Store,
    oracle: naive.PointSet,
    selector: Selector,
    start: int | None,
    end: int | None,
    interval: int,
    offset: int,
    few: bool,
) -> None:
    """The same figures of the same buckets. few: only those that windows know."""
    wants = {"count", "sum", "min", "max"} if few else aggregate.WANTS
    try:
        got = store.by_interval(selector, EVERYWHERE, start, end, interval, offset, wants, MAX_ROWS)
    except LimitError:
        interval, offset = WIDE_NS, offset % WIDE_NS
        got = store.by_interval(selector, EVERYWHERE, start, end, interval, offset, wants, MAX_ROWS)
    want = {
        (each, max(EARLIEST, number * interval + offset)): answer
        for each in matching(oracle, selector)
        for number, answer in oracle.by_interval(each, interval, offset, start, end).items()
    }
    keys = [
        (store._catalog.key(local_id), begin)
        for local_id, begin in zip(got.ids.tolist(), got.starts.tolist(), strict=True)
    ]
    _assert_rows(got, keys, want, oracle, whole=not few)


def matching(oracle: naive.PointSet, selector: Selector) -> list[bytes]:
    """The series of the oracle that match."""
    return [each for each in oracle.points if selector.matches(series.parse_key(each))]  # type: ignore[arg-type]


def _assert_rows(
    got: Rows,
    keys: list[tuple[bytes, int | None]],
    want: dict[tuple[bytes, int | None], naive.Answer],
    oracle: naive.PointSet,
    whole: bool,
) -> None:
    want = {key: answer for key, answer in want.items() if answer.count}
    assert sorted(keys, key=repr) == sorted(want, key=repr)
    columns = aggregate.values_of(got.rows)
    for at, key in enumerate(keys):
        one = aggregate.Columns(*(column[at].item() for column in columns))  # type: ignore[arg-type]
        answer = want[key]
        assert one.counts == answer.count, key
        figures = [(one.least, answer.min), (one.most, answer.max)]
        if whole:
            figures += [(one.first, answer.first), (one.last, answer.last)]
            assert (one.first_times, one.last_times) == (answer.first_time, answer.last_time), key
            assert_m2(one.m2, answer)
        assert all(naive.bits(found) == naive.bits(right) for found, right in figures), (key, figures)
        assert_sum(one.sum_hi, one.sum_lo, answer.sum, answer.count**2 * Fraction(oracle.magnitude([key[0]])))


def assert_m2(got: float, answer: naive.Answer) -> None:
    """M2 to some places: it is merged from parts, each with an error of the order of the values' precision."""
    squares = float(answer.m2 + answer.mean * answer.sum) if abs(answer.max) < 1e150 > abs(answer.min) else math.inf
    if squares > 1e280:
        return  # a square in it may overflow
    exact, unit = float(answer.m2), 64 * answer.count * EPSILON
    allowed = unit * (exact + math.sqrt(exact) * math.sqrt(squares)) + unit**2 * squares + 1e-290
    assert abs(Fraction(got) - answer.m2) <= Fraction(allowed), (got, exact)
