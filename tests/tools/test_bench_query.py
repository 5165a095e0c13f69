"""bench query runs on real processes: every figure is there, and no request failed."""

import json
import subprocess
import sys

from tests.support import ROOT


def test_every_query_of_the_benchmark_is_answered_by_real_nodes_and_compared_with_the_floor() -> None:
    command = ["tools.bench", "query", "--seconds", "1", "--rounds", "1", "--points", "150000", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    report = json.loads(done.stdout)
    assert set(report["measured"]) == {
        "floor",
        "query",
        "query, part of the range",
        "query, long series",
        "floor, 16 connections",
        "query, 16 connections",
    }
    for name, found in report["measured"].items():
        assert found["failed"] == 0, (name, found)
        assert found["per_s"] > 0
    assert report["p50_over_floor"] == (
        report["measured"]["query"]["p50_ms"] / report["measured"]["floor"]["p50_ms"]
    )
