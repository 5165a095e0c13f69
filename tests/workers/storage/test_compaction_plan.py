"""What compaction picks ends, stays cheap and leaves few files; what a listing means after a crash loses no row."""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.storage import compaction_plan as plan
from workers.storage.compaction_plan import FIRST_PERIOD, PERIOD_NS, Described
from workers.storage.segment import Header

DAY_NS = 86_400 * 1_000_000_000
EARLIEST, LATEST = -(1 << 63), (1 << 63) - 1
NOW = 700 * PERIOD_NS
STORE = bytes(16)
BYTES_PER_POINT = 2

Rows = Counter[int]  # rows by day since the epoch


class Model:
    """A store of which only the number of rows per day is known. series: of each segment."""

    def __init__(self, series: int = 1, now_ns: int = NOW) -> None:
        self.series = series
        self.now_ns = now_ns
        self.age_s = 0.0  # of all segments
        self.segments: dict[int, tuple[Rows, Described]] = {}
        self.numbers = itertools.count(1)
        self.written = 0
        self.files_written = 0
        self.merges = 0

    def seal(self, rows: Rows, masked: bool = False, behind: float = 0.0) -> None:
        self._put(rows, (0, 0), masked, behind)

    def settle(self, everything: bool = False) -> None:
        """Do what is picked until there is nothing."""
        while (task := self.pick(everything)) is not None:
            self.merges += 1
            assert self.merges < 100_000, "no end"
            rows: Rows = Counter()
            for number in task.numbers:
                rows.update(self.segments.pop(number)[0])
            groups = self._split(rows)
            first = next(self.numbers)
            for group in groups:
                self.written += group.total()
                self.files_written += 1
                self._put(group, (first, len(groups)))

    def pick(self, everything: bool = False, free_bytes: int = 1 << 62) -> plan.Task | None:
        stored = [described._replace(age_s=self.age_s) for _, described in self.segments.values()]
        return plan.pick(stored, self.now_ns, free_bytes, everything)

    def _put(self, rows: Rows, group: tuple[int, int], masked: bool = False, behind: float = 0.0) -> None:
        number = next(self.numbers)
        points = rows.total()
        t_min, t_max = min(rows) * DAY_NS, max(rows) * DAY_NS + DAY_NS - 1
        described = Described(number, points, points * BYTES_PER_POINT, t_min, t_max, group, masked, behind)
        self.segments[number] = (rows, described)

    def _split(self, rows: Rows) -> list[Rows]:
        if len({day // 30 for day in rows}) == 1:
            return [rows]
        by_period = np.zeros(plan.PERIODS, np.int64)
        for day, count in rows.items():
            by_period[day // 30 - FIRST_PERIOD] += count
        outputs = plan.outputs_of(by_period, self.series, EARLIEST)
        groups = [
            Counter({day: count for day, count in rows.items() if _takes(output, day * DAY_NS)}) for output in outputs
        ]
        assert sum(groups, Counter()) == rows
        return groups


def _takes(output: plan.Output, time: int) -> bool:
    return bool(((output.lows <= time) & (time <= output.highs)).any())


def same(days: Iterable[int], rows: int = 1) -> Rows:
    return Counter(dict.fromkeys(days, rows))


def in_period(points: int, number: int = 1, **fields: object) -> Described:
    return Described(number, points, points, 0, PERIOD_NS - 1, **fields)  # type: ignore[arg-type]


def test_ten_years_of_one_point_a_day_arriving_in_order_are_few_files_and_little_work() -> None:
    """20 series, sealed every five days: a tenth of a megabyte."""
    model = Model(series=20)
    for day in range(0, 3650, 5):
        model.seal(same(range(day, day + 5), 20))
        model.settle()
    assert model.written <= 3 * 20 * 3650
    model.age_s = plan.QUIET_S
    model.settle()
    assert model.written <= 4 * 20 * 3650
    assert len(model.segments) <= 122
    assert sum(rows.total() for rows, _ in model.segments.values()) == 20 * 3650


def test_ten_years_of_one_point_a_day_arriving_at_once_stay_one_file() -> None:
    model = Model(series=20)
    model.seal(same(range(3650), 20))
    model.settle()
    assert model.merges == 0
    model.settle(everything=True)
    assert (len(model.segments), model.merges) == (1, 1)


def test_many_deliveries_of_ten_years_each_are_split_only_when_a_period_is_worth_a_file() -> None:
    """100 heads of a million rows over 122 periods would be 12,200 files when each was split at once."""
    model = Model(series=1000)
    rows = same(range(0, 3660, 30), 8250)
    for _ in range(100):
        model.seal(rows)
        model.settle()
    assert len(model.segments) <= 122 * 16
    assert model.files_written <= 100 * 122 / 3
    assert model.written <= 6 * 100 * rows.total()


def test_heads_with_one_row_of_a_wrong_clock_keep_the_present_apart() -> None:
    """One device lives in 1970: each head reaches over 600 periods. Its row must not keep the rest unsplit."""
    model = Model(series=100)
    day = 21_000
    for _ in range(500):
        model.seal(Counter({3: 1, day: 100_000}))
        model.settle()
    lanes = Counter(described.lane for _, described in model.segments.values())
    assert set(lanes) <= {0, day // 30, plan.WIDE}
    assert lanes.total() <= 3 * math.ceil(math.log(500, 4)) + 3 + 3 * 2
    assert model.written <= 8 * 500 * 100_000


def test_dense_data_is_rewritten_as_often_as_four_goes_into_it() -> None:
    """A head of a million rows every hour of a month."""
    model = Model(series=500)
    heads, head = 30 * 24, 1 << 20
    for at in range(heads):
        model.seal(same([at // 24], head))
        model.settle()
    assert model.written <= math.ceil(math.log(heads, 4)) * heads * head
    assert len(model.segments) <= 3 * math.ceil(math.log(heads, 4))


def test_a_bound_that_leaves_little_to_merge_with_the_largest_does_not_make_it_be_rewritten_each_time() -> None:
    """Four large segments of a tier do not fit together: one of them and every small one would."""
    nearly_full = plan.MAX_BYTES * 9 // 10
    stored = [Described(number, nearly_full, nearly_full, 0, 1, age_s=plan.QUIET_S) for number in range(1, 5)]
    assert plan.pick([*stored, Described(5, 1000, 1000, 0, 1, age_s=plan.QUIET_S)], NOW) is None


def test_an_import_of_old_data_is_merged_by_tiers_and_once_more_when_it_is_over() -> None:
    model = Model(now_ns=NOW)
    for _ in range(90):
        model.seal(same([300], 1000))
        model.settle()
    assert model.written <= math.ceil(math.log(90, 4)) * 90 * 1000
    before = model.written
    model.age_s = plan.QUIET_S
    model.settle()
    assert len(model.segments) == 1
    assert model.written == before + 90 * 1000


def test_late_rows_are_merged_into_a_period_that_has_ended_when_they_are_no_trifle() -> None:
    model = Model(now_ns=NOW)
    model.age_s = plan.QUIET_S
    day = 10 * 30
    model.seal(same([day], 1_000_000))
    for _ in range(3):
        model.seal(same([day], 20_000))
        model.settle()
        assert len(model.segments) > 1
    model.seal(same([day], 20_000))
    model.settle()
    assert len(model.segments) == 1


def test_late_rows_of_the_present_period_wait_for_their_tier() -> None:
    model = Model(now_ns=10 * PERIOD_NS)
    model.age_s = plan.QUIET_S
    model.seal(same([10 * 30], 1_000_000))
    model.seal(same([10 * 30], 500_000))
    model.settle()
    assert model.merges == 0


def test_a_merge_is_bounded_in_bytes_and_in_segments() -> None:
    half = plan.MAX_BYTES // 2
    big = [Described(number, half, half, 0, 1) for number in range(1, 9)]
    task = plan.pick(big, 0)
    assert task is not None
    assert len(task.numbers) == 2
    small = [in_period(10, number) for number in range(1, 101)]
    task = plan.pick(small, 0)
    assert task is not None
    assert len(task.numbers) == plan.MAX_INPUTS


def test_segments_as_large_as_a_merge_may_be_are_left_alone() -> None:
    full = [Described(number, plan.MAX_BYTES, plan.MAX_BYTES, 0, 1) for number in range(1, 9)]
    assert plan.pick(full, NOW) is None
    assert plan.pick(full, NOW, everything=True) is None


def test_what_does_not_fit_on_the_disk_waits_and_smaller_work_is_done() -> None:
    dear = [in_period(4096, number) for number in range(1, 5)]
    cheap = [Described(number, 16, 16, PERIOD_NS, PERIOD_NS + 1) for number in range(5, 9)]
    task = plan.pick([*dear, *cheap], 0, free_bytes=4095)
    assert task is not None
    assert task.numbers == (5, 6, 7, 8)
    assert plan.pick(dear, 0, free_bytes=4095) is None


def test_a_segment_half_behind_the_cutoff_goes_first_and_one_with_masked_rows_last() -> None:
    stored = [in_period(100, number) for number in range(1, 5)]
    masked, behind = in_period(10**6, 5, masked=True), in_period(10**6, 6, behind=0.5)
    everything = [masked, *stored, behind]
    picked = []
    while (task := plan.pick(everything, 0)) is not None:
        picked.append(task.reason)
        everything = [each for each in everything if each.number not in task.numbers]
    assert picked == ["retention", "tier", "deletes"]


@pytest.mark.parametrize(
    ("t_min", "t_max", "cutoff", "share"),
    [(0, 99, 0, 0.0), (0, 99, 50, 0.5), (0, 99, 100, 1.0), (0, 99, 10**9, 1.0), (50, 99, 0, 0.0), (7, 7, 7, 0.0),
     (EARLIEST, LATEST, 0, 0.5), (5, 9, EARLIEST, 0.0)],
)  # fmt: skip
def test_the_share_behind_a_cutoff(t_min: int, t_max: int, cutoff: int, share: float) -> None:
    assert plan.share_behind(t_min, t_max, cutoff) == pytest.approx(share)


DAYS = st.integers(0, 10).map(lambda at: 30 * at) | st.integers(0, 300) | st.sampled_from([-20_000, 100_000])
SEALED = st.tuples(
    st.dictionaries(DAYS, st.sampled_from([1, 7, 5000, 70_000, 10**6, 3 * 10**8]), min_size=1, max_size=4),
    st.booleans(),
    st.sampled_from([0.0, 0.3, 0.5, 1.0]),
)


@given(sealed=st.lists(SEALED, max_size=40), steps=st.lists(st.booleans(), min_size=1, max_size=5))
@settings(max_examples=100)
def test_picking_ends_and_leaves_nothing_undone(
    sealed: list[tuple[dict[int, int], bool, float]], steps: list[bool]
) -> None:
    model = Model(now_ns=5 * PERIOD_NS)
    per_step = max(1, len(sealed) // len(steps))
    for at, everything in enumerate(steps):
        for rows, masked, behind in sealed[at * per_step : (at + 1) * per_step]:
            model.seal(Counter(rows), masked, behind)
        model.settle(everything)
        left = [described for _, described in model.segments.values()]
        assert not any(each.masked or each.behind >= 0.5 for each in left)
        if everything:
            small = [each.lane for each in left if each.bytes <= plan.MAX_BYTES // 2]
            assert len(small) == len(set(small))


@given(
    rows=st.dictionaries(
        st.integers(0, 9) | st.sampled_from([FIRST_PERIOD, FIRST_PERIOD + plan.PERIODS - 1]),
        st.sampled_from([1, plan.SPLIT_ROWS - 1, plan.SPLIT_ROWS, 10**9]),
    ),
    series=st.sampled_from([1, 1024, 10**6]),
    cutoff=st.sampled_from([EARLIEST, 0, 4 * PERIOD_NS + 5, 5 * PERIOD_NS]),
)
def test_each_time_belongs_to_one_output_and_none_is_without_rows(
    rows: dict[int, int], series: int, cutoff: int
) -> None:
    kept = {period: count for period, count in rows.items() if (period + 1) * PERIOD_NS > cutoff}
    by_period = np.zeros(plan.PERIODS, np.int64)
    for period, count in kept.items():
        by_period[period - FIRST_PERIOD] = count
    outputs = plan.outputs_of(by_period, series, cutoff)
    borders = [period * PERIOD_NS + shift for period in range(-1, 11) for shift in (-1, 0, 1)]
    for time in [EARLIEST, LATEST, cutoff, cutoff - 1, *borders]:
        if EARLIEST <= time <= LATEST and (kept or time < cutoff):
            takers = sum(_takes(output, time) for output in outputs)
            assert takers == (time >= cutoff) or (takers == 0 and time // PERIOD_NS not in kept)
    held = [sum(kept[period] for period in kept if _overlaps(output, period)) for output in outputs]
    assert all(held)
    assert sum(held) == sum(kept.values())


def _overlaps(output: plan.Output, period: int) -> bool:
    begin, end = period * PERIOD_NS, period * PERIOD_NS + PERIOD_NS - 1
    return bool(((output.lows <= end) & (begin <= output.highs)).any())


class File(NamedTuple):
    """A segment of the simulated directory."""

    header: Header
    rows: frozenset[int]


class Simulated:
    """A directory in which compactions are cut short. Names that were not made durable may come back or be gone."""

    def __init__(self, sealed: Sequence[frozenset[int]]) -> None:
        self.files = {
            number: File(Header(STORE, STORE, 0, (), (), (0, 0)), rows) for number, rows in enumerate(sealed, 1)
        }
        self.next = len(sealed) + 1
        self.states: list[dict[int, File]] = [dict(self.files)]

    def compact(self, numbers: Sequence[int], parts: int) -> None:
        """Write outputs one by one, each durable before the next; then unlink the inputs, in any order."""
        rows = sorted(frozenset().union(*(self.files[number].rows for number in numbers)))
        parts = min(parts, len(rows))
        for at in range(parts):
            header = Header(STORE, STORE, 0, (), tuple(numbers), (self.next, parts))
            self.files[self.next + at] = File(header, frozenset(rows[at::parts]))
            self.states.append(dict(self.files))
        self.next += parts
        for count in range(1, len(numbers) + 1):
            for gone in itertools.combinations(numbers, count):
                self.states.append({number: file for number, file in self.files.items() if number not in gone})
        for number in numbers:
            del self.files[number]


@st.composite
def histories(draw: st.DrawFn) -> Simulated:
    sealed = draw(st.lists(st.frozensets(st.integers(0, 12), min_size=1, max_size=5), min_size=1, max_size=4))
    simulated = Simulated(sealed)
    for _ in range(draw(st.integers(1, 3))):
        present = sorted(simulated.files)
        numbers = draw(st.lists(st.sampled_from(present), min_size=1, max_size=len(present), unique=True))
        simulated.compact(sorted(numbers), draw(st.integers(1, 3)))
    return simulated


def resolved(files: dict[int, File], damaged: int | None = None) -> plan.Resolution:
    return plan.resolve({number: file.header for number, file in files.items() if number != damaged}, STORE)


@given(history=histories())
@settings(max_examples=200)
def test_no_row_is_lost_wherever_a_compaction_or_the_cleaning_after_it_is_cut_short(history: Simulated) -> None:
    wanted = frozenset().union(*(file.rows for file in history.states[0].values()))
    for files in history.states:
        found = resolved(files)
        steps = [sorted(found.superseded & set(files)), sorted(found.incomplete & set(files))]
        for gone in _cut_short(steps):
            left = {number: file for number, file in files.items() if number not in gone}
            again = resolved(left)
            kept = [file for number, file in left.items() if number not in again.superseded | again.incomplete]
            assert frozenset().union(*(file.rows for file in kept)) == wanted
            assert sum(len(file.rows) for file in kept) <= sum(len(file.rows) for file in history.states[0].values())


def _cut_short(steps: Sequence[Sequence[int]]) -> Iterable[set[int]]:
    """What may be gone when removing some files, then others, is cut short at any point."""
    done: set[int] = set()
    for step in steps:
        for count in range(len(step) + 1):
            for some in itertools.combinations(step, count):
                yield done | set(some)
        done |= set(step)


@given(history=histories(), data=st.data())
@settings(max_examples=50)
def test_a_damaged_file_costs_no_rows_but_its_own(history: Simulated, data: st.DataObject) -> None:
    wanted = frozenset().union(*(file.rows for file in history.states[0].values()))
    for files in history.states:
        damaged = data.draw(st.sampled_from(sorted(files)))
        found = resolved(files, damaged)
        left = [
            file.rows
            for number, file in files.items()
            if number != damaged and number not in found.superseded | found.incomplete
        ]
        missing = wanted - frozenset().union(*left)
        assert missing <= files[damaged].rows


def test_replacement_counts_only_in_the_store_that_wrote_it() -> None:
    other = Header(bytes([1] * 16), STORE, 0, (), (1,), (2, 1))
    own = Header(STORE, STORE, 0, (), (), (0, 0))
    assert plan.resolve({1: own, 2: other}, STORE) == plan.Resolution(frozenset(), frozenset())


def test_an_input_that_is_gone_or_damaged_is_superseded_all_the_same() -> None:
    """So that its damage is not reported as a loss."""
    output = Header(STORE, STORE, 0, (), (1, 2), (3, 1))
    assert plan.resolve({3: output}, STORE).superseded == {1, 2}
