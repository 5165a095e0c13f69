"""What series hold and when they were silent, beside an oracle; pages of them."""

import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from common import figures, protocol, series
from common.errors import ProtocolError
from common.match import Match, parse_pattern
from common.protocol import DescribeReply, DescribeRequest, GapsReply, GapsRequest, Limits
from common.selector import Selector
from tests import naive
from tests.workers.storage.support import EVERYWHERE, PARTITIONS, batch_of, key, open_store
from tests.workers.storage.views import Delete, Place, oracle_of, selection, view_of
from workers.storage import describing, series_rows
from workers.storage.aggregate import LimitError
from workers.storage.deletes import DeleteRecord
from workers.storage.describing import Describing
from workers.storage.sampling import Sampling
from workers.storage.segment import EARLIEST, LATEST
from workers.storage.store import Store
from workers.storage.work import Cancel, CancelledError

S = 10**9
PLENTY = Limits(1000, 10**9, 10**6, 10**6)
COLUMNS = ("count", "first_time", "first", "last_time", "last", "usual_ns")
END = 5000 * S
ALL = Match()


class Filled(NamedTuple):
    store: Store
    oracle: naive.PointSet
    describing: Describing


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filled]:
    """Series with jitter and silences, in several segments and heads, with repeats, out of order and with a delete."""
    rng = random.Random(11)
    store, oracle = open_store(tmp_path_factory.mktemp("describing")), naive.PointSet()
    for turn in range(6):
        rows = []
        for number in range(12):
            each, time = key(f"d{number}", room=str(number % 3)), turn * 700 * S
            for _ in range((0, 1, 2, 30, 300)[(number + turn) % 5]):
                time += (number + 1) * S // 4 + rng.randrange(S // 8) + (60 * S if rng.random() < 0.02 else 0)
                rows.append((each, time, rng.gauss(0.0, 1.0)))
        rows += rng.sample(rows, 20)
        rng.shuffle(rows) if turn == 3 else rows.sort(key=lambda row: row[1])
        store.append([batch_of(rows, born=9)])
        for row in rows:
            oracle.add(*row)
        if turn in (0, 1, 3):
            store.seal()
        if turn == 2:
            store.delete(DeleteRecord(3, Selector("d4", None), 800 * S, 900 * S))
            oracle.delete(3, lambda each: series.parse_key(each).device_id == "d4", 800 * S, 900 * S)
    yield Filled(store, oracle, Describing(store, Sampling(store)))
    store.close()


def describe(
    filled: Filled, start: int | None = None, end: int | None = None, after: bytes = b"", limit: int = 1000,
    intervals: bool = True, match: Match = ALL, covered: bytes = EVERYWHERE,
) -> DescribeReply:  # fmt: skip
    request = DescribeRequest(covered, match, start, end, after, limit, intervals)
    return filled.describing.describe(request, covered, Cancel())


def gaps(
    filled: Filled, factor: float = 3.0, least_ns: int = 0, start: int | None = None, end: int = END,
    after: bytes = b"", limit: int = 1000, limits: Limits = PLENTY, cancel: Cancel | None = None,
) -> GapsReply:  # fmt: skip
    request = GapsRequest(EVERYWHERE, Match(), start, end, factor, least_ns, after, limit, limits)
    return filled.describing.gaps(request, EVERYWHERE, cancel or Cancel())


def usual(times: list[int]) -> int:
    lengths = sorted(other - one for one, other in pairwise(times))
    return lengths[(len(lengths) - 1) // 2] if len(lengths) > 1 else 0


def silences(times: list[int], factor: float, least_ns: int, end: int) -> list[tuple[int, int, int]]:
    if not times:
        return []
    longest = max(factor * usual(times), least_ns)
    found = [(one, other, usual(times)) for one, other in pairwise(times) if longest and other - one > longest]
    goes_on = longest and end - times[-1] > longest
    return [*found, (times[-1], times[-1], usual(times))] if goes_on else found


def rows_of(reply: DescribeReply) -> dict[bytes, tuple[Any, ...]]:
    columns = figures.unpack(reply.columns, COLUMNS)
    return dict(zip(reply.keys, zip(*(columns[name].tolist() for name in COLUMNS), strict=True), strict=True))


def gaps_of(reply: GapsReply) -> list[tuple[Any, ...]]:
    columns = figures.unpack(reply.columns, ("group", "start", "end", "usual_ns"))
    groups, *others = (column.tolist() for column in columns.values())
    return list(zip([reply.keys[group] for group in groups], *others, strict=True))


@pytest.mark.parametrize("start, end", [(None, None), (350 * S, 2200 * S), (4990 * S, None), (20, 10)])
@pytest.mark.parametrize("samples", [1000, 3, 40])
def test_series_hold_what_the_oracle_says(
    filled: Filled, monkeypatch: pytest.MonkeyPatch, start: int | None, end: int | None, samples: int
) -> None:
    monkeypatch.setattr(describing, "SAMPLES", samples)
    found = rows_of(describe(filled, start, end))
    assert list(found) == sorted(filled.oracle.points)  # type: ignore[type-var]
    for each, got in found.items():
        rows = filled.oracle.rows(each, start, end)
        want = (len(rows), *rows[0], *rows[-1]) if rows else (0, 0, 0.0, 0, 0.0)
        assert got == (*want, usual([time for time, _ in rows][-samples:])), each


def test_no_interval_where_none_is_asked_and_no_block_decoded(filled: Filled) -> None:
    reply = describe(filled, intervals=False, match=Match((parse_pattern("d9"),)))
    assert len(reply.keys) == 1 and not figures.unpack(reply.columns, COLUMNS)["usual_ns"].any()
    assert rows_of(reply)[reply.keys[0]][:5] == rows_of(describe(filled))[reply.keys[0]][:5]


def test_pages_of_series_are_the_whole_list_in_order(filled: Filled) -> None:
    whole, after = rows_of(describe(filled)), b""
    for begin in range(0, 12, 5):
        page = describe(filled, after=after, limit=5)
        assert rows_of(page) == {each: whole[each] for each in list(whole)[begin : begin + 5]}
        assert page.more == (begin + 5 < 12)
        after = page.keys[-1]
    half = protocol.bitmap(range(PARTITIONS // 2), PARTITIONS)
    other = protocol.bitmap(range(PARTITIONS // 2, PARTITIONS), PARTITIONS)
    assert rows_of(describe(filled, covered=half)) | rows_of(describe(filled, covered=other)) == whole


@pytest.mark.parametrize("task_rows", [1 << 18, 50])
@pytest.mark.parametrize(
    "factor, least_ns, start, end",
    [(3.0, 0, None, END),
     (1.0, 0, 100 * S, 3000 * S), (10.5, 20 * S, None, END), (1.5, 1, 4000 * S, END), (3.0, 0, 9, 8)],
)
def test_silences_are_those_of_the_oracle(
    filled: Filled, monkeypatch: pytest.MonkeyPatch, factor: float, least_ns: int, start: int | None, end: int,
    task_rows: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(series_rows, "TASK_ROWS", task_rows)
    found = gaps_of(gaps(filled, factor, least_ns, start, end))
    want = []
    for each in sorted(filled.oracle.points):  # type: ignore[type-var]
        times = [time for time, _ in filled.oracle.rows(each, start, end)]
        want += [(each, *silence) for silence in silences(times, factor, least_ns, end)]
    assert found == want
    assert bool(want) == (end > 8)


def test_pages_of_silences_are_all_of_them(filled: Filled) -> None:
    found, after, more = [], b"", True
    while more:
        page = gaps(filled, after=after, limit=5)
        found += gaps_of(page)
        after, more = page.keys[-1], page.more
    assert found == gaps_of(gaps(filled)) and found


def test_a_question_beyond_a_limit_names_its_setting(filled: Filled) -> None:
    for limits, setting in [
        (Limits(11, 10**9, 10**6, 1), "query.max_series"),
        (Limits(12, 100, 10**6, 1), "query.max_points"),
        (Limits(12, 10**9, 5, 1), "query.max_rows"),
    ]:
        with pytest.raises(LimitError) as caught:
            gaps(filled, limits=limits)
        assert caught.value.setting == setting and caught.value.value > caught.value.limit


def test_silences_are_counted_while_they_are_found(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []
    task = describing._Search._task

    def noted(*arguments: Any) -> Any:
        found = task(*arguments)
        done.append(found)
        return found

    monkeypatch.setattr(describing._Search, "_task", noted)
    monkeypatch.setattr(series_rows, "TASK_ROWS", 50)
    gaps(filled, 1.0)
    tasks, silent = len(done), sum(len(each.starts) for found in done for each in found)
    done.clear()
    with pytest.raises(LimitError, match=r"at least [0-9]+ silences, want at most 5"):
        gaps(filled, 1.0, limits=Limits(1000, 10**9, 5, 1))
    assert silent > 100 and len(done) < tasks / 2


def test_of_a_series_that_a_delete_touches_the_last_blocks_are_enough(tmp_path: Path) -> None:
    places = [Place([(0, time * S, 1.0) for time in range(1000)], block_rows=10)]
    places += [Place([(0, time * S + 1, 1.0) for time in range(985, 990)], number=2)]
    view = view_of(tmp_path, places, [Delete(1, 0, 0, S), Delete(2, 0, 960 * S, 985 * S)])
    ((part, table),) = view.stored.tables(selection([0]), view.deletes, EARLIEST, LATEST)
    for rows, blocks in ((20, 20), (5, 4), (2000, 500)):
        held = series_rows.SeriesRows(view, part, table, EARLIEST, LATEST, with_values=False)
        (times,), cost = held.last(np.array([0]), held.newest(rows))
        want = [time for time, _ in oracle_of(places, [Delete(1, 0, 0, S), Delete(2, 0, 960 * S, 985 * S)]).rows(0)]
        assert times.tolist() == want[-rows:] and cost.decoded <= blocks


def test_what_cannot_be_is_refused(filled: Filled) -> None:
    for limit in (0, -1, describing.MAX_SERIES + 1):
        with pytest.raises(ProtocolError, match="limit"):
            describe(filled, limit=limit)
    for factor, least_ns in [(0.5, 0), (float("nan"), 0), (float("inf"), 0), (2.0, -1)]:
        with pytest.raises(ProtocolError, match="factor"):
            gaps(filled, factor, least_ns)


def test_a_question_that_is_given_up_ends(filled: Filled) -> None:
    cancel = Cancel()
    cancel.set()
    with pytest.raises(CancelledError):
        gaps(filled, cancel=cancel)


def test_the_median_of_very_many_times_is_right_to_a_thousandth() -> None:
    rng = np.random.default_rng(5)
    spectrum = describing._Spectrum()
    lengths = rng.lognormal(20.0, 3.0, 200_000).astype(np.uint64)
    exact = describing.usual(lengths)
    for part in np.split(lengths, 10):
        spectrum.add(part)
    assert spectrum.usual() == exact
    spectrum._merge()
    assert exact * 0.999 < spectrum.usual() <= exact


def test_silences_at_the_ends_of_time(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.append([batch_of([(key("a"), time, 1.0) for time in (-(1 << 63), -(1 << 63) + 1, (1 << 63) - 3)])])
    held = Filled(store, naive.PointSet(), Describing(store, Sampling(store)))
    assert gaps_of(gaps(held, 1.0, end=(1 << 63) - 1)) == [
        (key("a"), -(1 << 63) + 1, (1 << 63) - 3, 1), (key("a"), (1 << 63) - 3, (1 << 63) - 3, 1),
    ]  # fmt: skip
    store.close()
