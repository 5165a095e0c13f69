"""Named data of the benchmarks: the same every time, and what their names say."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from common.series import Series
from tools.bench import data
from tools.bench.data import MS_NS, SECOND_NS


def test_the_same_name_makes_the_same_points() -> None:
    one, two = (data.made("a walk", 3, 50, data.jittered(10 * SECOND_NS, 50, 5)) for _ in range(2))
    for left, right in zip(one.rows, two.rows, strict=True):
        assert left.tobytes() == right.tobytes()


def test_another_name_makes_other_points() -> None:
    one, two = (data.made(name, 3, 50, data.regular(SECOND_NS, 5)) for name in ("a", "b"))
    assert (one.rows.values != two.rows.values).any()


def test_a_walk_has_decimals_and_steps_of_the_entropy_that_sigma_says() -> None:
    values = data.walk(np.random.default_rng(1), 2, 100_000, 5)
    assert [float(repr(value)) == round(value, 2) for value in values[:100, 0].tolist()] == [True] * 100
    _, counts = np.unique(np.rint(100 * np.diff(values, axis=0)), return_counts=True)
    share = counts / counts.sum()
    assert -(share * np.log2(share)).sum() == pytest.approx(np.log2(5) + 2.05, abs=0.02)


def test_rows_of_all_series_lie_side_by_side() -> None:
    points = data.made("a walk", 3, 4, data.regular(SECOND_NS, 5))
    assert points.rows.owners.tolist() == [0, 1, 2] * 4
    assert np.unique(points.rows.times[:3]).size == 1
    assert [len(part.times) for part in points.parts(5)] == [5, 5, 2]


def test_jitter_is_of_whole_milliseconds_around_the_grid() -> None:
    points = data.made("jitter", 2, 1000, data.jittered(10 * SECOND_NS, 50, 5))
    distance = points.rows.times - np.repeat(data.START_NS + np.arange(1000) * 10 * SECOND_NS, 2)
    assert not (distance % MS_NS).any()
    assert (distance.min(), distance.max()) == (-50 * MS_NS, 50 * MS_NS)


def test_gaps_leave_whole_steps_out() -> None:
    times, _ = data.gappy(np.random.default_rng(1), 1, 10_000)
    steps = np.diff(times[:, 0]) // (10 * SECOND_NS)
    assert set(steps.tolist()) <= {1, 2, 361, 362}
    assert 0.97 < (steps == 1).mean() < 0.99


def test_out_of_order_rows_hold_every_time_once() -> None:
    times, _ = data.out_of_order(np.random.default_rng(1), 1, 1000)
    assert np.unique(times).size == 1000
    assert 0.05 < (np.diff(times[:, 0]) < 0).mean() < 0.2


def test_real_files_come_in_order_of_time_and_keep_repeated_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with gzip.open(tmp_path / "two.csv.gz", "wt") as file:
        file.write("device_id,metric_name,timestamp,value\na,t,20,1.5\nb,t,10,2.5\na,t,20,3.5\n")
    monkeypatch.setenv(data.SHARED_VARIABLE, str(tmp_path))
    (points,) = data.real()
    assert (points.name, points.series) == ("two.csv.gz", [Series("a", "t"), Series("b", "t")])
    assert points.rows.owners.tolist() == [1, 0, 0]
    assert points.rows.values.tolist() == [2.5, 1.5, 3.5]
    assert points.rows.times.tolist() == [10 * SECOND_NS, 20 * SECOND_NS, 20 * SECOND_NS]
