"""bench query runs on real processes: every figure is there, and no request failed."""

import json
import subprocess
import sys

from tests.support import ROOT


def test_every_query_of_the_benchmark_is_answered_by_real_nodes_and_compared_with_the_floor() -> None:
    command = ["tools.bench", "query", "--quick", "--part", "peer", "--part", "floor", "--part", "busy", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)["found"]
    assert len(found["peer"]) == 10
    assert all(each["ours"] > 0 and each["bar"]["rule"] == "ratio" for each in found["peer"])
    assert [each["what"] for each in found["floor"]] == ["p50, one client", "requests"]
    assert all(each["ratio"] == each["ours"] / each["peers"]["floor"] for each in found["floor"])
    figures = {each["what"]: each["ours"] for each in found["busy"]}
    assert figures["requests"] > 0
    assert figures["failed"] == 0


def test_a_second_owner_and_comparing_it_are_measured_beside_one_that_is_read_plainly() -> None:
    command = ["tools.bench", "query", "--quick", "--part", "verified", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)["found"]["verified"]
    assert [each["what"] for each in found] == ["p50, two owners", "p50, verified"] * 4
    assert all(each["ratio"] > 0 and each["bar"]["rule"] == "ratio" for each in found)
