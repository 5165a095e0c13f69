"""Steps and trapezoids beside an oracle in exact fractions: resets, silences, repeats, heads and segments, deletes."""

import gc
import random
import weakref
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.workers.storage.views import Delete, Place, Row, oracle_of, selection, view_of
from workers.storage import series_rows
from workers.storage.aggregate import LimitError
from workers.storage.buckets import Span
from workers.storage.fold import Grid
from workers.storage.readers import Readers
from workers.storage.segment import EARLIEST, LATEST
from workers.storage.series_rows import SeriesRows
from workers.storage.steps import StepRows, step_rows
from workers.storage.table import View
from workers.storage.work import Cancel, CancelledError

S = 10**9
GROUPS = [0, 0, 1, 2, 2, 2]  # of the series
Key = tuple[int, int]  # group, start
NAMES = ("increase", "delta", "rate", "integral", "covered")


@pytest.fixture(scope="module")
def pool() -> Iterator[Readers]:
    readers = Readers(2)
    yield readers
    readers.close()


def expected(samples: Sequence[list[tuple[int, float]]], spans: Sequence[Span]) -> dict[Key, dict[str, Fraction]]:
    """By group and start of the bucket, in exact fractions; slow and obvious."""
    found: dict[Key, dict[str, Fraction]] = {}
    for group, rows in zip(GROUPS, samples, strict=True):
        increases: dict[int, list[tuple[Fraction, Fraction]]] = {}
        rows = [row for row in rows if start_of(row[0], spans) is not None]
        for (before, old), (time, new) in pairwise(rows):
            start = start_of(time, spans)
            assert start is not None
            row = found.setdefault((group, start), dict.fromkeys(("steps", *NAMES), Fraction(0)))
            row["steps"] += 1
            row["delta"] += Fraction(new) - Fraction(old)
            increase = Fraction(new) - (Fraction(old) if new >= old else 0)
            row["increase"] += increase
            increases.setdefault(start, []).append((increase, Fraction(time - before, S)))
            for part, begin, end in cut(before, time, spans):
                rise = (Fraction(new) - Fraction(old)) / (time - before)
                heights = [Fraction(old) + rise * (at - before) for at in (begin, end)]
                area = found.setdefault((group, part), dict.fromkeys(("steps", *NAMES), Fraction(0)))
                area["covered"] += Fraction(end - begin, S)
                area["integral"] += Fraction(end - begin, S) * sum(heights, Fraction(0)) / 2
        for start, steps in increases.items():
            total, seconds = (sum(each, Fraction(0)) for each in zip(*steps, strict=True))
            found[group, start]["rate"] += total / seconds
    return found


def start_of(time: int, spans: Sequence[Span]) -> int | None:
    for span in spans:
        start, end, interval, offset = span.grid
        if start <= time <= end:
            return (time - offset) // interval * interval + offset if interval else span.start
    return None


def cut(begin: int, end: int, spans: Sequence[Span]) -> Iterator[tuple[int, int, int]]:
    """Parts of a time within one bucket each: its start, from, to."""
    edges = {span.grid.start for span in spans}
    for span in spans:
        start, stop, interval, offset = span.grid
        if interval:
            first = max(start, begin)
            edges |= set(range(offset + ((first - offset) // interval + 1) * interval, min(stop, end) + 1, interval))
    inner = [edge for edge in sorted(edges) if begin < edge < end]
    for one, other in pairwise([begin, *inner, end]):
        start_ = start_of(one, spans)
        assert start_ is not None
        yield start_, one, other


def ask(
    view: View, spans: Sequence[Span], pool: Readers, integral: bool = True, limits: tuple[int, int] = (10**6, 10**6)
) -> StepRows:
    taken = [0.0, 0.0]

    def take(which: int, amount: float) -> None:
        taken[which] += amount
        if taken[which] > limits[which]:
            raise LimitError(f"{which}")

    return step_rows(
        view, selection(range(6)), np.array(GROUPS), spans, integral, pool,
        lambda rows: take(0, rows), lambda points: take(1, points),
    )  # fmt: skip


def check(got: StepRows, want: dict[Key, dict[str, Fraction]], magnitude: float, integral: bool = True) -> None:
    keys = list(zip(got.groups.tolist(), got.starts.tolist(), strict=True))
    wanted = {key: row for key, row in want.items() if row["steps"] or (integral and row["covered"])}
    assert keys == sorted(wanted)
    for at, key in enumerate(keys):
        row = wanted[key]
        assert got.columns["steps"][at] == row["steps"], key
        for name in NAMES if integral else NAMES[:3]:
            pair = [float(got.columns[f"{name}_{part}"][at]) for part in ("hi", "lo")]
            assert sum(pair) == pair[0], "the pair is normal"
            error = abs(sum(map(Fraction, pair)) - row[name])
            exact = Fraction(1, 10**28) if name in ("increase", "delta", "covered") else Fraction(1, 10**14)
            size = magnitude * (1 if name in ("increase", "delta") else max(float(row["covered"]), 1.0))
            assert error <= exact * Fraction(size) + abs(row[name]) * exact, (key, name, float(error), float(row[name]))


def rows_of(rng: random.Random, count: int, values: str) -> list[Row]:
    """Counters that are reset, walks, with silences and repeated times."""
    found = []
    for each in range(6):
        time, value = rng.randrange(0, 100 * S), 0.0
        for _ in range(rng.choice((0, 1, 2, count))):
            time += rng.choice((S, S, S, rng.randrange(1, 3 * S), 60 * S))
            value = 0.1 * rng.randrange(5) if rng.random() < 0.1 else value + rng.choice((0.0, 0.1, 1.0, 3e-9))
            found.append((each, time, value if values == "counter" else rng.gauss(0.0, 20.0)))
    return found


def spread(rng: random.Random, rows: list[Row]) -> list[Place]:
    """Rows in segments and heads, some of them twice, in and out of order."""
    places: list[Place] = []
    ordered = sorted(rows, key=lambda row: row[1])
    cuts = sorted(rng.sample(range(len(ordered) + 1), 3))
    for begin, end in pairwise([0, *cuts, len(ordered)]):
        part = ordered[begin:end] + rng.sample(ordered, len(ordered) // 20)
        rng.shuffle(part) if rng.random() < 0.5 else None
        places.append(Place(part, number=len(places) // 2, block_rows=rng.choice((0, 0, 5, 1000))))
    return places


SPANS: list[list[Span]] = [
    [Span(Grid(EARLIEST, LATEST), 0)],
    [Span(Grid(50 * S, 300 * S), 50 * S)],
    [Span(Grid(EARLIEST, LATEST, 10 * S, 0), 0)],
    [Span(Grid(33 * S + 1, 400 * S, 7 * S + 3, 5), 0)],
    [  # as months: a bucket for each
        Span(Grid(begin * S, begin * S + 60 * S - 1), begin * S) for begin in range(0, 1200, 60)
    ],
    [  # the grid shifts, as with summer time, and two spans meet in a bucket
        Span(Grid(0, 105 * S, 10 * S, 0), 0), Span(Grid(105 * S + 1, 199 * S, 10 * S, 0), 0),
        Span(Grid(199 * S + 1, 10**12, 50 * S, 199 * S % (50 * S) + 1), 0),
    ],
]  # fmt: skip


@pytest.mark.parametrize("values", ["counter", "walk"])
@pytest.mark.parametrize("case", range(len(SPANS)))
def test_any_samples_as_the_oracle_has_them(
    tmp_path: Path, pool: Readers, monkeypatch: pytest.MonkeyPatch, case: int, values: str
) -> None:
    monkeypatch.setattr(series_rows, "TASK_ROWS", (1 << 18, 30, 100)[case % 3])  # series in batches, and in pieces
    monkeypatch.setattr(series_rows, "HELD_TABLES", (8, 1)[case % 2])
    rng = random.Random(17 * case + len(values))
    for turn, deletes in enumerate([[], [Delete(1, 2, 60 * S, 90 * S), Delete(2, None, 150 * S, 155 * S)], []]):
        places = spread(rng, rows_of(rng, (200, 60, 3)[turn], values))
        (tmp_path / str(turn)).mkdir()
        view = view_of(tmp_path / str(turn), places, deletes, chunk_blocks=(1 << 16, 3, 3)[turn])
        oracle, spans = oracle_of(places, deletes), SPANS[case]
        samples = [oracle.rows(each, spans[0].grid.start, spans[-1].grid.end) for each in range(6)]
        check(ask(view, spans, pool), expected(samples, spans), 300.0)
        check(ask(view, spans, pool, integral=False), expected(samples, spans), 300.0, integral=False)


def one_series(directory: Path, samples: Sequence[tuple[int, float]], block_rows: int = 0) -> View:
    return view_of(directory, [Place([(0, time, value) for time, value in samples], block_rows=block_rows)])


def column(got: StepRows, name: str) -> list[float]:
    return [float(each) for each in got.columns[f"{name}_hi"]]


def test_buckets_add_up_to_the_whole_range(tmp_path: Path, pool: Readers) -> None:
    rng = random.Random(3)
    times = np.cumsum([rng.choice((S, 5 * S, 900 * S)) for _ in range(2000)]).tolist()
    view = one_series(tmp_path, [(time, rng.uniform(0, 100)) for time in times], 300)
    whole = ask(view, [Span(Grid(EARLIEST, LATEST), 0)], pool)
    parts = ask(view, [Span(Grid(EARLIEST, LATEST, 60 * S), 0)], pool)
    assert len(parts.groups) > 5000 > len(whole.groups) == 1
    for name in ("increase", "delta", "integral", "covered"):
        total, want = sum(map(Fraction, column(parts, name))), Fraction(column(whole, name)[0])
        assert abs(total - want) <= abs(want) * Fraction(1, 10**13), name
    assert parts.columns["steps"].sum() == whole.columns["steps"][0] == 1999


def test_a_long_silence_in_tiny_buckets_meets_the_limit_of_rows_before_anything_is_decoded(
    tmp_path: Path, pool: Readers
) -> None:
    for name, end, interval in [("a", 10**9 * S, S), ("b", LATEST, 1)]:
        (tmp_path / name).mkdir()
        view = one_series(tmp_path / name, [(-end, 1.0), (end, 2.0)], 10)
        with pytest.raises(LimitError, match="0"):
            ask(view, [Span(Grid(EARLIEST, LATEST, interval), 0)], pool)


def test_of_many_tables_few_are_held_and_all_are_counted_before_any_is_decoded(
    tmp_path: Path, pool: Readers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(series_rows, "HELD_TABLES", 2)
    rows = [(each, at * S, 1.0) for at in range(40) for each in range(6)]
    view = view_of(tmp_path, [Place(rows, block_rows=10)], chunk_blocks=4)
    everything, alive, most = [Span(Grid(EARLIEST, LATEST), 0)], weakref.WeakSet[SeriesRows](), [0]
    init = SeriesRows.__init__

    def noted(self: SeriesRows, *arguments: Any, **named: Any) -> None:
        init(self, *arguments, **named)
        alive.add(self)
        gc.collect()
        most[0] = max(most[0], len(alive))

    monkeypatch.setattr(SeriesRows, "__init__", noted)
    assert ask(view, everything, pool).columns["steps"].tolist() == [78, 39, 117]
    assert most[0] <= 4
    monkeypatch.setattr(SeriesRows, "of", lambda *arguments: pytest.fail("decoded"))
    with pytest.raises(LimitError, match="1"):
        ask(view, everything, pool, limits=(10, 239))


def test_too_many_points_meet_the_limit_before_any_is_decoded(tmp_path: Path, pool: Readers) -> None:
    view = one_series(tmp_path, [(at * S, 1.0) for at in range(100)], 10)
    with pytest.raises(LimitError, match="1"):
        ask(view, [Span(Grid(EARLIEST, LATEST), 0)], pool, limits=(10, 99))
    ask(view, [Span(Grid(EARLIEST, 49 * S), 0)], pool, limits=(10, 50))


def test_nothing_of_a_question_that_is_given_up(tmp_path: Path, pool: Readers) -> None:
    cancel = Cancel()
    cancel.set()
    with pytest.raises(CancelledError):
        ask(one_series(tmp_path, [(0, 1.0), (S, 2.0)]), [Span(Grid(EARLIEST, LATEST), 0)], pool.watching(cancel))


def test_edges_of_time_and_of_float64(tmp_path: Path, pool: Readers) -> None:
    everything = [Span(Grid(EARLIEST, LATEST), 0)]
    got = ask(one_series(tmp_path, [(EARLIEST, -1e308), (LATEST, 1e308)]), everything, pool)
    assert not np.isfinite(got.columns["increase_hi"][0]) and got.columns["increase_lo"][0] == 0.0
    assert column(got, "integral") == [0.0] and column(got, "covered") == [2.0**64 / 1e9]
    got = ask(one_series(tmp_path, [(0, 1.7e308), (S, 1.7e308), (3 * S, 0.0)]), everything, pool)
    assert not np.isfinite(column(got, "integral")[0])
    got = ask(one_series(tmp_path, [(0, 1.7e308), (S // 2, 1.7e308), (S, 0.0)]), everything, pool)
    assert column(got, "integral") == [pytest.approx(1.275e308)] and column(got, "delta") == [-1.7e308]


def test_one_sample_has_neither_steps_nor_an_integral(tmp_path: Path, pool: Readers) -> None:
    assert len(ask(one_series(tmp_path, [(5 * S, 3.0)]), [Span(Grid(EARLIEST, LATEST), 0)], pool).groups) == 0
    assert len(ask(view_of(tmp_path, []), [Span(Grid(0, 10, 3), 0)], pool).groups) == 0
