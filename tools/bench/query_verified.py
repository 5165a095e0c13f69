"""bench query --part verified: what a second owner costs a read, and what comparing the owners does.

Two clusters of three nodes hold the same points, with one and with two owners of each; the same questions are asked of
them in turn, of the second one verified too. All owners are equal and nothing arrives: what differing owners cost is
not shown.
"""

import json
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import click

from tools.bench import query_peer
from tools.bench.findings import Bar, Finding
from tools.bench.http_load import load
from tools.bench.query_cluster import Running, ask, cluster

SECOND_OWNER: Final = Bar("ratio", 1.1)  # the same work: what is more is noise
VERIFIED: Final = Bar("ratio", 2.2)
ASKED: Final = ("avg, 1 x 10,000", "avg, 500 x 10,000", "avg, 20,000 x 100", "1 h buckets by device, 5 M")


def verified(seconds: float, rounds: int, scale: float, threads: int) -> Iterator[Finding]:
    """p50 of one client by question: of two owners beside one, and verified beside plain; medians of the rounds."""
    points = query_peer.datasets(scale)
    with ExitStack() as stack:
        one, two = (
            stack.enter_context(cluster(_scratch(stack), points, threads, replication=owners)) for owners in (1, 2)
        )
        for case in query_peer.cases(points):
            if case.name in ASKED:
                yield from _measured(case, one, two, seconds, rounds)


def _measured(case: query_peer.Case, one: Running, two: Running, seconds: float, rounds: int) -> Iterator[Finding]:
    compared = json.dumps(json.loads(case.body) | {"consistency": "verified"})
    _check(case, json.loads(ask(two.query, case.path, compared)))
    asked = {"R=1": (one, case.body), "R=2": (two, case.body), "verified": (two, compared)}
    taken: dict[str, list[float]] = {name: [] for name in asked}
    for _ in range(rounds):
        for name, (running, body) in asked.items():
            found = load(running.query, case.path, body, 1, seconds)
            if found.failed:
                raise click.ClickException(f"{case.name}, {name}: {found.failed} requests failed")
            taken[name].append(found.p50_ms)
    p50 = {name: statistics.median(each) for name, each in taken.items()}
    yield Finding(case.name, "p50, two owners", "ms", p50["R=2"], {"one": p50["R=1"]}, SECOND_OWNER)
    yield Finding(case.name, "p50, verified", "ms", p50["verified"], {"plain": p50["R=2"]}, VERIFIED)


def _check(case: query_peer.Case, answer: dict[str, dict[str, object]]) -> None:
    if answer["coverage"]["verified"] is not True or answer["coverage"]["compared"] != _EQUAL:
        raise click.ClickException(f"{case.name}: two equal owners were not compared: {answer['coverage']}")


_EQUAL: Final = {"owners": 2, "series_joined": 0, "reason": ""}


def _scratch(stack: ExitStack) -> Path:
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
