"""bench query: every figure is there, and no request failed; but for one part on real processes."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import click
import pytest

from tests.support import ROOT
from tools.bench import query_verified


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


def test_a_second_owner_and_comparing_it_are_measured_beside_one_that_is_read_plainly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without nodes: what they answer to verified reads has tests of its own, and starting six takes half a minute."""
    asked: list[tuple[str, bool]] = []

    @contextmanager
    def cluster(*_: object, replication: int) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(query=f"R={replication}")

    def load(query: str, path: str, body: str, clients: int, seconds: float) -> SimpleNamespace:
        is_verified = json.loads(body).get("consistency") == "verified"
        asked.append((query, is_verified))
        return SimpleNamespace(failed=0, p50_ms={"R=1": 1.0, "R=2": 2.0}[query] + 3.0 * is_verified)

    def ask(*_: object) -> str:
        return json.dumps({"coverage": {"verified": True, "compared": query_verified._EQUAL}})

    for name, stand_in in {"cluster": cluster, "load": load, "ask": ask}.items():
        monkeypatch.setattr(query_verified, name, stand_in)
    found = list(query_verified.verified(0.1, 3, 0.001, 1))
    assert [each.what for each in found] == ["p50, two owners", "p50, verified"] * 4
    assert {(each.ours, *each.peers.items()) for each in found} == {(2.0, ("one", 1.0)), (5.0, ("plain", 2.0))}
    assert asked == [("R=1", False), ("R=2", False), ("R=2", True)] * 3 * 4
    monkeypatch.setattr(query_verified, "ask", lambda *_: json.dumps({"coverage": {"verified": False}}))
    with pytest.raises(click.ClickException, match="were not compared"):
        list(query_verified.verified(0.1, 1, 0.001, 1))
