"""`python -m tools.bench storage` runs, measures what it says, and does without peers."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tools.bench import data, engine, storage_reads, storage_scale
from tools.bench.data import SECOND_NS
from workers.storage.store import Store

ROOT = Path(__file__).parents[2]
POINTS = data.made("a walk", 20, 500, data.regular(10 * SECOND_NS, 5), of_plant=True)


def bench(*arguments: str, **environ: str) -> str:
    command = [sys.executable, "-m", "tools.bench", "storage", "--quick", *arguments]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **environ}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_sizes_and_cpu_of_named_data_are_found() -> None:
    report = json.loads(bench("--part", "sizes", "--data", "constant", "--peer", "none", "--json"))
    assert {"cpu", "numba", "pcodec"} <= report["machine"].keys()
    figures = report["found"]["sizes"]
    assert [each["what"] for each in figures] == ["bytes per point", "CPU, ingest", "CPU, seal + compact"]
    assert all(each["ours"] > 0 and each["of"] == "constant" for each in figures)


def test_peers_that_are_not_installed_are_named_and_left_out(tmp_path: Path) -> None:
    text = bench("--part", "sizes", "--data", "constant", PATH=str(tmp_path))
    assert "VictoriaMetrics is not compared with: no victoria-metrics here (Debian package victoria-metrics)" in text
    assert "InfluxDB is not compared with: no influxd here (Debian package influxdb)" in text
    assert "\nconstant" in text


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with engine.opened(tmp_path / "node") as opened:
        engine.fill(opened, engine.bodies(POINTS, 1000))
        yield opened


def test_what_is_timed_answers_with_the_means_of_the_points(store: Store) -> None:
    matrix = POINTS.rows.values.reshape(500, 20)
    assert engine.by_series(store) == pytest.approx(matrix.mean(axis=0))
    means = engine.means_by(store, POINTS, 3000 * SECOND_NS)
    buckets = POINTS.rows.times[::20] // (3000 * SECOND_NS)
    want = [matrix[buckets == bucket, 7].mean() for bucket in np.unique(buckets)]
    assert list(means) == [data.labels(each) for each in POINTS.series]
    assert means[data.labels(POINTS.series[7])] == pytest.approx(want)
    assert sum(map(len, engine.samples(store))) == len(POINTS)


def test_the_costs_of_a_store_are_those_of_its_points(tmp_path: Path) -> None:
    costs = engine.measure(tmp_path / "node", engine.bodies(POINTS), len(POINTS))
    assert costs.points == 10_000
    assert 0 < costs.bytes < 3 * costs.points
    assert costs.writing_s > 0
    assert costs.tidying_s > 0
    opened = storage_scale.open_and_look(tmp_path / "node")
    assert (opened.points, opened.series) == (10_000, 20)
    assert 0 < opened.resident_mb <= opened.peak_mb


def test_one_long_series_is_answered_from_summaries() -> None:
    found = {each.what: each.ours for each in storage_reads.one(0.001)}
    assert found["blocks decoded, edges cut"] <= 2


def test_many_segments_are_opened_as_they_were_made(tmp_path: Path) -> None:
    storage_scale.make_segments(tmp_path / "node", 4, 200)
    opened = storage_scale.open_and_look(tmp_path / "node")
    assert (opened.segments, opened.series, opened.points) == (4, 8, 80)


def test_growing_stores_are_filled_as_asked(tmp_path: Path) -> None:
    assert storage_scale.grow_and_look(tmp_path / "few", 3, 50).bytes_per_point > 0
    writing, most, steady = storage_scale.write_and_look(tmp_path / "many", 30_000, 2)
    assert 0 < min(writing, steady) <= most
    assert storage_scale.open_and_look(tmp_path / "many").points == 60_000
