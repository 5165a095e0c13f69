"""Answers by group and bucket beside the oracle: bits for all but sums and M2, whose errors are bounded."""

import itertools
import random
import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest

from common import figures, protocol, series
from common.errors import ProtocolError
from common.match import Match, one, parse_pattern
from common.points import PointBatch
from common.protocol import GroupsReply, GroupsRequest, Limits, SamplesRequest, Stretch, TagsRequest
from common.selector import Selector
from tests import naive
from tests.workers.storage.answers import assert_m2
from tests.workers.storage.support import EVERYWHERE, PARTITIONS, assert_sum, batch_of, key, open_store
from workers.storage import buckets, fold, groups, steps, values
from workers.storage.aggregate import LimitError
from workers.storage.deletes import DeleteRecord
from workers.storage.readers import Readers
from workers.storage.sampling import Sampling
from workers.storage.store import Store
from workers.storage.table import GAP_BLOCKS, SegmentSet
from workers.storage.work import Cancel, CancelledError

MINUTE_NS = 60 * 10**9
SPAN_NS = 40 * MINUTE_NS
PLENTY = Limits(1000, 10**9, 100_000, 100_000)
ALL_SERIES = Match()
ALL = ["count", "sum", "min", "max", "first", "last", "m2"]
BY: list[list[str]] = [[], ["device_id"], ["tags.room"], ["metric_name", "tags.room"], ["series"]]

Label = tuple[str | bytes | None, ...]
Samples = list[tuple[int, float]]


class Filled(NamedTuple):
    store: Store
    oracle: naive.PointSet


def _keys() -> list[bytes]:
    return [
        series.series_key(device, metric, tags)
        for device in ("a", "b", "c")
        for metric in ("m", "n")
        for tags in ({}, {"room": "1"}, {"room": "2", "floor": device})
        if (device, metric) != ("c", "n")
    ]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Points in several segments and heads, in and out of order, with repeats and deletes."""
    rng = random.Random(5)
    store = open_store(tmp_path_factory.mktemp("groups"))
    oracle = naive.PointSet()
    for turn in range(9):
        begin, keys = (turn % 5) * SPAN_NS // 6, rng.sample(_keys(), 8)
        rows = []
        for each in keys:
            times = sorted(rng.sample(range(begin, begin + SPAN_NS // 4, 10**9 // 2), rng.choice((1, 30, 100))))
            rng.shuffle(times) if turn == 7 else None
            rows += [(each, time, rng.choice((0.0, -0.0, 1.5, round(rng.gauss(20, 5), 1)))) for time in times]
        again = rng.sample(rows, len(rows) // 9)
        rows += [(each, time, value + rng.choice((-1.0, 1.0))) for each, time, value in again]
        store.append([batch_of(rows, born=9)])
        for row in rows:
            oracle.add(*row)
        if turn in (1, 2, 4, 6):
            store.seal()
        if turn in (3, 5):
            _delete(store, oracle, turn, Selector("b" if turn == 3 else "c", "m"), begin, begin + 3 * MINUTE_NS)
    yield Filled(store, oracle)
    store.close()


def _delete(store: Store, oracle: naive.PointSet, number: int, selector: Selector, start: int, end: int) -> None:
    store.delete(DeleteRecord(number, selector, start, end))
    oracle.delete(number, lambda each: selector.matches(series.parse_key(each)), start, end)


def _ask(
    store: Store, by: list[str], stretches: Sequence[Stretch] = (), wants: Sequence[str] = ("count",),
    match: Match = ALL_SERIES, start: int | None = None, end: int | None = None, limits: Limits = PLENTY,
) -> GroupsReply:  # fmt: skip
    request = GroupsRequest(EVERYWHERE, match, start, end, list(stretches), by, list(wants), limits)
    return groups.answer(store, request, EVERYWHERE, Cancel())


def _label(each: bytes, by: Sequence[str]) -> Label:
    if list(by) == ["series"]:
        return (each,)
    parsed = series.parse_key(each)
    fields = {"device_id": parsed.device_id, "metric_name": parsed.metric_name}
    fields |= {f"tags.{name}": value for name, value in parsed.tags}
    return tuple(fields.get(field) for field in by)


def _expected(
    oracle: naive.PointSet, by: Sequence[str], stretches: Sequence[Stretch], start: int | None, end: int | None
) -> dict[tuple[Label, int], Samples]:
    """The samples of each group and bucket."""
    found: dict[tuple[Label, int], Samples] = {}
    for each in oracle.points:
        assert isinstance(each, bytes)
        for time, value in oracle.rows(each, start, end):
            begin = _bucket(time, stretches, start)
            if begin is not None:
                found.setdefault((_label(each, by), begin), []).append((time, value))
    return found


def _bucket(time: int, stretches: Sequence[Stretch], start: int | None) -> int | None:
    if not stretches:
        return start or 0
    for each in stretches:
        if each.start_ns <= time <= each.end_ns:
            number = (time - each.offset_ns) // each.interval_ns if each.interval_ns else 0
            return each.offset_ns + number * each.interval_ns
    return None


def _rows_of(reply: GroupsReply) -> dict[tuple[Label, int], dict[str, Any]]:
    columns = {name: items.tolist() for name, items in figures.unpack(reply.columns, tuple(reply.columns)).items()}
    long = {name: columns.pop(name) for name in ("values", "value_counts") if name in columns}
    found: dict[tuple[Label, int], dict[str, Any]] = {}
    places = []
    for at, (group, begin) in enumerate(zip(columns["group"], columns["start"], strict=True)):
        places.append((group, begin))
        row = {name: items[at] for name, items in columns.items()}
        if long:
            inside = slice(columns["value_ends"][at - 1] if at else 0, columns["value_ends"][at])
            row["values"] = list(zip(long["values"][inside], long["value_counts"][inside], strict=True))
        found[tuple(reply.groups[group]), begin] = row
    assert places == sorted(set(places)), "a row for each group and bucket, in order"
    return found


def _check(got: dict[str, Any], samples: Samples) -> None:
    want = naive.summary(samples, 1)
    assert got["count"] == want.count
    weight = want.count**2 * sum(abs(Fraction(value)) for _, value in samples)
    assert_sum(got["sum_hi"], got["sum_lo"], want.sum, weight)
    assert (got["first_time"], got["last_time"]) == (want.first_time, want.last_time)
    for name in ("min", "max", "first", "last"):
        assert naive.bits(got[name]) == naive.bits(getattr(want, name)), name
    assert_m2(got["m2"], want)
    assert got["values"] == sorted(_counts(samples).items())


def _counts(samples: Samples) -> dict[float, int]:
    counts: dict[float, int] = {}
    for _, value in samples:
        counts[value] = counts.get(value, 0) + 1
    return counts


STRETCHES: dict[str, list[Stretch]] = {
    "whole range": [],
    "minutes": [Stretch(-(2**62), 2**62, MINUTE_NS, 0)],
    "buckets with an offset": [Stretch(0, 2**62, 7 * MINUTE_NS, -3 * MINUTE_NS - 1)],
    "as months": [
        Stretch(0, 5 * MINUTE_NS - 1, 0, -MINUTE_NS), Stretch(5 * MINUTE_NS, 11 * MINUTE_NS, 0, 5 * MINUTE_NS),
        Stretch(11 * MINUTE_NS + 1, 19 * MINUTE_NS + 7, 0, 11 * MINUTE_NS),
    ],
    "as days when clocks change": [
        Stretch(0, 10 * MINUTE_NS - 1, 4 * MINUTE_NS, 2 * MINUTE_NS), Stretch(10 * MINUTE_NS, 15 * MINUTE_NS, 0, 10**9),
        Stretch(20 * MINUTE_NS, 2**62, 3 * MINUTE_NS, 0),
    ],
    "two that share a bucket": [Stretch(0, 90 * 10**9, 4 * MINUTE_NS, 0), Stretch(91 * 10**9, 2**61, 4 * MINUTE_NS, 0)],
}  # fmt: skip


@pytest.mark.parametrize("by", BY, ids=lambda by: ",".join(by) or "all")
@pytest.mark.parametrize("stretches", STRETCHES.values(), ids=STRETCHES.keys())
def test_groups_and_buckets_hold_what_the_oracle_says(filled: Filled, by: list[str], stretches: list[Stretch]) -> None:
    for start, end in ((None, None), (13 * MINUTE_NS + 1, 29 * MINUTE_NS)):
        within = [
            each for stretch in stretches
            if (each := stretch if start is None or end is None else Stretch(
                max(stretch.start_ns, start), min(stretch.end_ns, end), stretch.interval_ns, stretch.offset_ns
            )).start_ns <= each.end_ns
        ]  # fmt: skip
        if stretches and not within:
            continue
        reply = _ask(filled.store, by, within, [*ALL, "values"], start=start, end=end)
        got, want = _rows_of(reply), _expected(filled.oracle, by, within, start, end)
        assert got.keys() == want.keys()
        for place, samples in want.items():
            _check(got[place], samples)
        labels = [_label(each, by) for each in filled.oracle.points if isinstance(each, bytes)]
        assert dict(zip(map(tuple, reply.groups), reply.group_series, strict=True)) == {
            label: labels.count(label) for label in labels
        }
        assert (reply.series, reply.delete_number) == (len(labels), 5)


def test_few_figures_are_the_same_by_windows_as_by_points(tmp_path: Path) -> None:
    store, oracle = open_store(tmp_path), naive.PointSet()
    rng = random.Random(6)
    rows = [(key(device), number * 10**9 // 4, rng.gauss(0, 100)) for device in "ab" for number in range(12_000)]
    store.append([batch_of(rows)])
    store.seal()
    for row in rows:
        oracle.add(*row)
    stretches = [Stretch(0, 40 * MINUTE_NS - 1, 10 * MINUTE_NS, 0), Stretch(40 * MINUTE_NS, 2**62, 0, 7)]
    reply = _ask(store, [], stretches, ["sum", "max"])
    assert reply.cost.windows_read > 0 == reply.cost.blocks_decoded
    for place, samples in _expected(oracle, [], stretches, None, None).items():
        got, want = _rows_of(reply)[place], naive.summary(samples, 1)
        assert (got["count"], got["sum_hi"], got["max"]) == (want.count, float(want.sum), want.max)
        assert set(got) == {"group", "start", "count", "sum_hi", "sum_lo", "max"}
    decoded = _ask(store, [], stretches, ["sum", "last"])
    cost = decoded.cost
    assert cost.windows_read == 0 < cost.rows_decoded < cost.bytes < 16 * cost.rows_decoded
    store.close()


@pytest.mark.parametrize("task_rows", [7, 1 << 18])
def test_few_figures_of_a_head_are_the_same_in_order_of_arrival(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task_rows: int
) -> None:
    monkeypatch.setattr("workers.storage.fold._TASK_ROWS", task_rows)
    store, oracle = open_store(tmp_path), naive.PointSet()
    rng = random.Random(7)
    for turn in range(30):  # three series in order, one with late points and repeats
        rows = [(each, (turn * 100 + at) * 10**9, rng.choice((0.0, -0.0, rng.gauss(0, 9)))) for at in range(9)
                for each in (key("a"), key("b"), key("c", room="1"))]  # fmt: skip
        rows += [(key("d"), rng.randrange(50) * MINUTE_NS, rng.gauss(0, 9))]
        store.append([batch_of(rows)])
        for row in rows:
            oracle.add(*row)
    stretches = [
        Stretch(-(2**62), 20 * MINUTE_NS - 1, 7 * MINUTE_NS, 3), Stretch(20 * MINUTE_NS, 31 * MINUTE_NS, 0, 1),
        Stretch(31 * MINUTE_NS + 7, 2**62, MINUTE_NS, -5),
    ]  # fmt: skip
    for by in BY:
        want = _expected(oracle, by, stretches, None, None)
        got = _rows_of(_ask(store, by, stretches, ["sum", "min", "max"]))
        assert got.keys() == want.keys()
        for place, samples in want.items():
            exact, row = naive.summary(samples, 1), got[place]
            assert row["count"] == exact.count
            assert [naive.bits(row[name]) for name in ("min", "max")] == [naive.bits(exact.min), naive.bits(exact.max)]
            weight = exact.count**2 * sum(abs(Fraction(value)) for _, value in samples)
            assert_sum(row["sum_hi"], row["sum_lo"], exact.sum, weight)
    store.close()


def test_the_answer_does_not_depend_on_threads(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.storage.fold._TASK_ROWS", 64)
    answers = []
    for threads in (1, 4):
        pool = Readers(threads)
        monkeypatch.setattr(filled.store, "pool", pool)
        answers.append(_ask(filled.store, ["tags.room"], STRETCHES["minutes"], [*ALL, "values"]).columns)
        pool.close()
    assert answers[0] == answers[1]


def test_work_that_nobody_waits_for_is_given_up(filled: Filled) -> None:
    cancel = Cancel()
    cancel.set()
    request = GroupsRequest(EVERYWHERE, ALL_SERIES, None, None, [], [], ["values"], PLENTY)
    with pytest.raises(CancelledError):
        groups.answer(filled.store, request, EVERYWHERE, cancel)


def test_series_in_several_tables_are_one_group(filled: Filled) -> None:
    view = filled.store.view
    cut = view._replace(stored=SegmentSet(view.stored.segments, chunk_blocks=4))
    chosen = filled.store.select(Match(), EVERYWHERE)
    assert len(list(cut.stored.tables(chosen, cut.deletes, -(2**63), 2**63 - 1))) > 3
    spans = buckets.spans(STRETCHES["minutes"], None, None, None)
    want = _ask(filled.store, [], STRETCHES["minutes"], ["min", "values"])
    question = groups._Question(cut, chosen, chosen.ids * 0, spans, ["min", "values"], PLENTY)
    got = question.answer(filled.store.pool)
    assert figures.pack(got) == want.columns


@pytest.mark.parametrize("wants", [["min", "values"], ["steps"], ["integral", "values"]])
def test_rows_of_a_group_in_several_tables_are_counted_and_held_once(
    filled: Filled, monkeypatch: pytest.MonkeyPatch, wants: list[str]
) -> None:
    for module in (groups, steps):
        monkeypatch.setattr(module, "_HELD_ROWS", 0)
    view = filled.store.view
    chosen = filled.store.select(Match(), EVERYWHERE)
    spans = buckets.spans(STRETCHES["minutes"], None, None, None)
    whole = groups._Question(view, chosen, chosen.ids * 0, spans, wants, PLENTY).answer(filled.store.pool)
    distinct = len(whole["values"]) if "values" in wants else 0
    cut = view._replace(stored=SegmentSet(view.stored.segments, chunk_blocks=4))
    limits = Limits(15, 10**9, len(whole["start"]) + 1, distinct)
    question = groups._Question(cut, chosen, chosen.ids * 0, spans, wants, limits)
    got = question.answer(filled.store.pool)
    exact = {"group", "start", "count", "min", "steps", *figures.WANTS["values"]}
    for name, items in whole.items():
        assert (items == got[name]).all() if name in exact else items == pytest.approx(got[name]), name
    assert max(len(question._found), len(question._values)) <= 2
    with pytest.raises(LimitError, match=r"query\.max_rows"):
        few = Limits(15, 10**9, len(whole["start"]) - 1, distinct)
        groups._Question(cut, chosen, chosen.ids * 0, spans, wants, few).answer(filled.store.pool)


def test_many_stretches_are_laid_out_few_at_a_time(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    stretches = [Stretch(at * MINUTE_NS, (at + 1) * MINUTE_NS - 1, 0, at * MINUTE_NS) for at in range(40)]
    want = _ask(filled.store, ["device_id"], stretches, [*ALL, "values"])
    done: list[str] = []
    lay_out, run = buckets.lay_out, groups._Question._run

    def noted_lay_out(*arguments: Any) -> Any:
        done.append("L")
        return lay_out(*arguments)

    def noted_run(*arguments: Any) -> None:
        done.append("R")
        run(*arguments)

    monkeypatch.setattr(buckets, "lay_out", noted_lay_out)
    monkeypatch.setattr(groups._Question, "_run", noted_run)
    monkeypatch.setattr(groups, "_LAID_OUT", 5 * 15)
    got = _ask(filled.store, ["device_id"], stretches, [*ALL, "values"])
    assert got.columns == want.columns
    assert done.count("L") > 30 and re.fullmatch("(L{1,5}R+)+", "".join(done))


def test_all_figures_of_an_answer_are_of_one_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path)
    store.append([batch_of([(key("a"), time * 10**9, 1.0) for time in range(10)])])

    def late(*arguments: Any) -> Any:
        store.append([batch_of([(key("a"), 10 * 10**9, 1.0), (key("b"), 0, 1.0)])])
        return steps.step_rows(*arguments)

    monkeypatch.setattr(groups, "step_rows", late)
    (row,) = _rows_of(_ask(store, [], [], ["count", "steps", "integral"])).values()
    assert (row["count"], row["steps"], row["covered_hi"]) == (10, 9, 9.0)
    store.close()


def test_a_series_that_is_asked_for_while_it_is_added_is_there_when_it_is(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    samples = Sampling(store)
    match = one("a", "temperature")

    def ask() -> tuple[int, int]:
        page = samples.answer(SamplesRequest(EVERYWHERE, match, None, None, b"", 0, 9), EVERYWHERE, Cancel())
        return _ask(store, ["device_id"], match=match).series, len(PointBatch.decode(page.batch))

    class Ids(dict[bytes, int]):
        """Asks when keys have been added and ids not yet."""

        def update(self, *more: Any) -> None:  # type: ignore[override]
            assert ask()[1] == 0
            super().update(*more)

    store._catalog._ids = Ids()
    store.append([batch_of([(key("a"), 1, 1.0), (key("a", room="1"), 1, 1.0)])])
    assert ask() == (2, 2)
    store.close()


def test_only_the_partitions_asked_and_series_that_match_are_answered_for(filled: Filled) -> None:
    keys = [each for each in filled.oracle.points if isinstance(each, bytes)]
    for partition in range(PARTITIONS):
        bits = protocol.bitmap([partition], PARTITIONS)
        request = GroupsRequest(bits, Match((parse_pattern("?"),)), None, None, [], ["series"], ["count"], PLENTY)
        reply = groups.answer(filled.store, request, bits, Cancel())
        assert [each[0] for each in reply.groups] == sorted(
            each for each in keys if series.partition_of(each, PARTITIONS) == partition
        )
        assert reply.partitions == bits


@pytest.mark.parametrize("by", BY)
def test_series_left_out_take_their_groups_along_and_the_others_keep_their_labels(
    filled: Filled, by: list[str]
) -> None:
    keys = sorted(each for each in filled.oracle.points if isinstance(each, bytes))
    for left_out in (keys[:1], keys[3:4], [each for each in keys if each.endswith(b"1")], keys):
        request = GroupsRequest(EVERYWHERE, ALL_SERIES, None, None, [], by, ["count"], PLENTY, left_out)
        reply = groups.answer(filled.store, request, EVERYWHERE, Cancel())
        columns = figures.unpack(reply.columns, ("group", "count"))
        labels = [tuple(reply.groups[number]) for number in columns["group"].tolist()]
        found = dict(zip(labels, columns["count"].tolist(), strict=True))
        wanted: dict[Label, int] = {}
        for each in [each for each in keys if each not in left_out]:
            wanted[_label(each, by)] = wanted.get(_label(each, by), 0) + len(filled.oracle.points[each])
        assert found == wanted
        assert list(map(tuple, reply.groups)) == sorted(
            wanted, key=lambda label: [(one is not None, one) for one in label]
        )
        assert sum(reply.group_series) == reply.series == len(keys) - len(left_out)


def test_areas_make_rows_without_points_where_nothing_else_is_told(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.append([batch_of([(key("a"), time * 10**9, float(time)) for time in (0, 10, 100)])])
    wants = ["sum", "last", "steps", "integral", "values"]
    reply = _ask(store, ["device_id"], [Stretch(0, 2**62, 30 * 10**9, 0)], wants)
    columns = {name: items.tolist() for name, items in figures.unpack(reply.columns, tuple(reply.columns)).items()}
    assert columns == {
        "group": [0, 0, 0, 0], "start": [0, 30 * 10**9, 60 * 10**9, 90 * 10**9], "count": [2, 0, 0, 1],
        "sum_hi": [10.0, 0.0, 0.0, 100.0], "sum_lo": [0.0] * 4,
        "last_time": [10 * 10**9, 0, 0, 100 * 10**9], "last": [10.0, 0.0, 0.0, 100.0],
        "steps": [1, 0, 0, 1], "increase_hi": [10.0, 0.0, 0.0, 90.0], "increase_lo": [0.0] * 4,
        "delta_hi": [10.0, 0.0, 0.0, 90.0], "delta_lo": [0.0] * 4,
        "rate_hi": [1.0, 0.0, 0.0, 1.0], "rate_lo": [0.0] * 4,
        "integral_hi": [450.0, 1350.0, 2250.0, 950.0], "integral_lo": [0.0] * 4,
        "covered_hi": [30.0, 30.0, 30.0, 10.0], "covered_lo": [0.0] * 4,
        "value_ends": [2, 2, 2, 3], "values": [0.0, 10.0, 100.0], "value_counts": [1, 1, 1],
    }  # fmt: skip
    alone = _ask(store, ["device_id"], [Stretch(0, 2**62, 30 * 10**9, 0)], ["integral"])
    assert alone.columns == {name: reply.columns[name] for name in ("group", "start", *figures.WANTS["integral"])}
    store.close()


def test_nothing_that_matches_is_no_group_and_no_rows(filled: Filled) -> None:
    for by in BY:
        reply = _ask(filled.store, by, [], [*ALL, "values"], Match((parse_pattern("zz*"),)))
        assert (reply.series, reply.groups, reply.group_series) == (0, [], [])
        assert set(reply.columns.values()) == {b""}


def test_a_range_without_points_has_groups_and_no_rows(filled: Filled) -> None:
    reply = _ask(filled.store, ["device_id"], STRETCHES["minutes"], ALL, start=-(2**60), end=-(2**59))
    assert (reply.groups, reply.columns["group"]) == ([["a"], ["b"], ["c"]], b"")


def test_columns_are_those_wanted(filled: Filled) -> None:
    for want, names in figures.WANTS.items():
        for start in (None, 2**61):
            assert set(_ask(filled.store, [], wants=[want], start=start).columns) == {"group", "start", "count", *names}


@pytest.mark.parametrize(
    ("limits", "setting", "limit", "value"),
    [
        (Limits(14, 10**9, 10**5, 10**5), "query.max_series", 14, 15),
        (Limits(100, 50, 10**5, 10**5), "query.max_points", 50, None),
        (Limits(100, 10**9, 20, 10**5), "query.max_rows", 20, None),
        (Limits(100, 10**9, 10**5, 30), "query.max_values", 30, None),
    ],
)  # fmt: skip
def test_a_question_beyond_a_limit_is_refused_with_its_name(
    filled: Filled, limits: Limits, setting: str, limit: int, value: int | None
) -> None:
    with pytest.raises(LimitError, match=f"want at most {limit} .{setting}.") as raised:
        _ask(filled.store, ["device_id"], STRETCHES["minutes"], ["last", "values"], limits=limits)
    assert (raised.value.setting, raised.value.limit) == (setting, limit)
    assert raised.value.value > limit and value in (None, raised.value.value)


def test_buckets_of_a_nanosecond_over_all_time_are_refused_and_not_made(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.append([batch_of([(key("a"), time, 1.0) for time in (-(2**63), 2**63 - 1)])])
    with pytest.raises(LimitError, match=r"1844674407370955161[0-9] rows, .* want at most 100000") as raised:
        _ask(store, [], [Stretch(-(2**63), 2**63 - 1, 1, 0)])
    assert raised.value.value > 2**63
    store.close()


def test_buckets_at_the_ends_of_time(tmp_path: Path) -> None:
    store, oracle = open_store(tmp_path), naive.PointSet()
    for row in [(key("a"), time, 1.0) for time in (-(2**63), -(2**63) + 9, 2**63 - 1)]:
        store.append([batch_of([row])])
        oracle.add(*row)
    stretches = [Stretch(-(2**63), 2**63 - 1, 2**62, 10)]
    got = _rows_of(_ask(store, [], stretches))
    want = _expected(oracle, [], stretches, None, None)
    assert {(label, max(-(2**63), begin)): len(rows) for (label, begin), rows in want.items()} == {
        place: row["count"] for place, row in got.items()
    }
    store.close()


@pytest.mark.parametrize(
    ("stretches", "wants", "by", "what"),
    [
        ([Stretch(5, 4, 1, 0)], ["count"], [], "want int64, in order"),
        ([Stretch(0, 9, 1, 0), Stretch(9, 12, 1, 0)], ["count"], [], "want int64, in order"),
        ([Stretch(0, 9, -1, 0)], ["count"], [], "no interval below 0"),
        ([Stretch(0, 9, 2**63, 0)], ["count"], [], "want int64"),
        ([Stretch(0, 9, 1, 2**63)], ["count"], [], "offset is no int64"),
        ([], ["median"], [], "wants median, want of count, sum"),
        ([], ["count"], ["room"], "group by 'room'"),
        ([], ["count"], ["series", "device_id"], "group by 'series'.*or series alone"),
    ],
)
def test_what_means_nothing_is_refused(
    filled: Filled, stretches: list[Stretch], wants: list[str], by: list[str], what: str
) -> None:
    with pytest.raises(ProtocolError, match=what):
        _ask(filled.store, by, stretches, wants)


def test_distinct_values_are_merged_while_they_come(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    want = _ask(filled.store, ["metric_name"], STRETCHES["minutes"], ["values"])
    monkeypatch.setattr(values, "_PENDING", 10)
    assert _ask(filled.store, ["metric_name"], STRETCHES["minutes"], ["values"]).columns == want.columns
    with pytest.raises(LimitError, match=r"query\.max_values"):
        _ask(filled.store, ["metric_name"], STRETCHES["minutes"], ["values"], limits=Limits(100, 10**9, 10**5, 50))


def test_tags_of_all_that_match(filled: Filled) -> None:
    reply = groups.tags(filled.store, TagsRequest(EVERYWHERE, Match(), PLENTY), EVERYWHERE, Cancel())
    assert reply.tags == {"floor": {"a": 2, "b": 2, "c": 1}, "room": {"1": 5, "2": 5}}
    assert (reply.partitions, reply.delete_number) == (EVERYWHERE, 5)
    some = TagsRequest(EVERYWHERE, Match((parse_pattern("a"),), tags={"room": (parse_pattern("*"),)}), PLENTY)
    assert groups.tags(filled.store, some, EVERYWHERE, Cancel()).tags == {"room": {"1": 2}}
    with pytest.raises(LimitError, match=r"15 series match, want at most 3 .query.max_series."):
        groups.tags(filled.store, TagsRequest(EVERYWHERE, Match(), Limits(3, 1, 1, 1)), EVERYWHERE, Cancel())


def test_a_fold_of_many_rows_is_added_up_in_waves(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    want = _ask(filled.store, [], STRETCHES["minutes"], ALL)
    monkeypatch.setattr("workers.storage.fold._WAVE_ROWS", 1)
    monkeypatch.setattr("workers.storage.fold._TASK_ROWS", 8)
    got, rows = _ask(filled.store, [], STRETCHES["minutes"], ALL), _rows_of(want)
    for place, row in _rows_of(got).items():
        assert row["count"] == rows[place]["count"] and row["last"] == rows[place]["last"]
    assert got.cost.rows_decoded == want.cost.rows_decoded


def _same_answer(one: GroupsReply, other: GroupsReply) -> bool:
    """All but the time that it took."""
    timeless = [
        msgspec.structs.replace(each, cost=msgspec.structs.replace(each.cost, spent_ns=0)) for each in (one, other)
    ]
    return timeless[0] == timeless[1]


def _random_request(rng: random.Random) -> GroupsRequest:
    match = Match(
        (parse_pattern(rng.choice(("a", "b", "c", "?", "nobody"))),), (parse_pattern(rng.choice(("m", "n", "*"))),),
        rng.choice((None, None, {"room": (parse_pattern("1"),)})), rng.random() < 0.5,
    )  # fmt: skip
    start, end = rng.choice(((None, None), (None, SPAN_NS // 2), (SPAN_NS // 3, None), (5, SPAN_NS // 9)))
    stretches = list(rng.choice(list(STRETCHES.values())))
    if rng.random() < 0.5:  # a range that is open, and ends that no point lies in
        stretches = [
            Stretch(-(2**63), -1, 0, -(2**63)), Stretch(0, 2 * SPAN_NS, MINUTE_NS * rng.randint(1, 9), 0),
            Stretch(2 * SPAN_NS + 1, 2**63 - 1, 0, 2 * SPAN_NS + 1),
        ]  # fmt: skip
    wants = rng.choice((["count"], ["sum", "max"], ["min", "last"], ALL, ["values"], ["steps", "integral", "first"]))
    return GroupsRequest(EVERYWHERE, match, start, end, stretches, rng.choice(BY), wants, PLENTY)


def test_work_that_is_short_gives_the_answer_that_a_reader_gives(
    filled: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "SHORT_SAMPLES", 5000)
    rng = random.Random(17)
    seen = set()
    for _ in range(150):
        request = _random_request(rng)
        for _ in range(2):  # the second time the grouping is at hand
            work = groups.begin(filled.store, request, EVERYWHERE)
            assert _same_answer(work.run(Cancel()), groups.answer(filled.store, request, EVERYWHERE, Cancel()))
            seen.add((work.short, bool(request.group_by), request.wants[0]))
    for wants in ("count", "sum", "values"):
        assert {(True, False, wants), (True, True, wants), (False, True, wants)} <= seen, wants


def test_spans_that_no_point_lies_in_change_nothing(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(18)
    requests = [_random_request(rng) for _ in range(60)]
    got = [groups.answer(filled.store, request, EVERYWHERE, Cancel()) for request in requests]
    monkeypatch.setattr(buckets, "reached", lambda spans, table, recent: spans)
    for request, reply in zip(requests, got, strict=True):
        assert _same_answer(reply, groups.answer(filled.store, request, EVERYWHERE, Cancel()))


def test_questions_that_take_long_are_left_to_the_readers(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    def is_short(*wants: str, stretches: Sequence[Stretch] = ()) -> bool:
        one = Match((parse_pattern("a"),), (parse_pattern("m"),))
        request = GroupsRequest(EVERYWHERE, one, None, None, list(stretches), [], list(wants), PLENTY)
        return groups.begin(filled.store, request, EVERYWHERE).short

    seconds = [Stretch(0, 2 * SPAN_NS, 10**9 // 4, 0)]
    assert is_short("count") and is_short("last", stretches=STRETCHES["minutes"])
    assert not is_short("count", "steps")
    assert not is_short("count", stretches=seconds), "rows of the answer"
    halves = [Stretch(at * MINUTE_NS, (at + 1) * MINUTE_NS - 1, 0, at * MINUTE_NS) for at in range(3)]
    assert not is_short("count", stretches=halves), "spans that have points"
    monkeypatch.setattr(groups, "SHORT_SAMPLES", 100_000)
    assert is_short("values")
    monkeypatch.setattr(groups, "SHORT_SAMPLES", 10)
    assert is_short("last", stretches=STRETCHES["minutes"]) and not is_short("values")
    monkeypatch.setattr(groups, "SHORT_POINTS", 10)
    assert not is_short("last", stretches=STRETCHES["minutes"])
    monkeypatch.setattr(groups, "FEW_SERIES", 2)
    assert not is_short("count")


def test_blocks_are_read_with_their_neighbours() -> None:
    rng = random.Random(19)
    for _ in range(100):
        places = list({(rng.randrange(3), rng.choice((0, 5000, 2**31)) + rng.randrange(3000)) for _ in range(9)})
        rng.shuffle(places)
        segments, blocks = np.array(places, np.int64).T.copy()
        found = [
            (number, *(places[at] for at in which.tolist())) for number, which in fold._neighbours(segments, blocks)
        ]
        assert [place for _, *near in found for place in near] == sorted(places)
        for number, *near in found:
            assert {segment for segment, _ in near} == {number}
            assert all(next_ - block <= GAP_BLOCKS for (_, block), (_, next_) in itertools.pairwise(near))
        for (*_, last), (_, first, *_) in itertools.pairwise(found):
            assert last[0] != first[0] or first[1] - last[1] > GAP_BLOCKS


def test_a_grouping_is_at_hand_once_it_was_asked_until_series_are_added(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.append([batch_of([(key("a"), 1, 1.0)])])
    one, every = Match((parse_pattern("a"),), (parse_pattern("temperature"),)), Match((parse_pattern("*"),))
    exact = store.at_hand(one, EVERYWHERE, [])
    assert exact is not None and exact.ids.tolist() == [0]
    for device in ("b", "c"):
        store.append([batch_of([(key(device), 1, 1.0)])])
        for match, by in ((every, []), (every, ["device_id"]), (one, ["device_id"])):
            assert store.at_hand(match, EVERYWHERE, by) is None
            assert store.grouped(match, EVERYWHERE, by) is store.at_hand(match, EVERYWHERE, by)
    store.close()
