"""bench query: queries over HTTP, beside VictoriaMetrics with the same points and beside the least they can cost.

Part peer asks both the same questions in turn, one client, and compares medians of p50. Part floor compares the
smallest query with the same HTTP stack asking three processes that answer with themselves (query_floor.py). Part busy
has 16 connections, part ingest the same while points arrive, part verified a second owner (query_verified.py). Three
storage nodes, R=1 else; clients are on this machine and take their share of it.
"""

import json
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import click

from tools.bench import codec, peers, query_peer
from tools.bench.data import Dataset
from tools.bench.findings import NO_PEERS, Bar, Finding
from tools.bench.http_load import Measured, client_name, load
from tools.bench.query_busy import ingest
from tools.bench.query_cluster import NODES, Running, ask, cluster
from tools.bench.query_verified import verified

QUICK: Final = 0.02  # of the points
BUSY: Final = 16  # connections
BUSY_PER_S: Final = Bar("least", 4000)
BUSY_P99_MS: Final = Bar("most", 15)
FLOOR: Final = Bar("ratio", 2)
ALL: Final = ("peer", "floor", "busy", "ingest", "verified")
OTHERS: Final = {"ingest", "verified"}  # with clusters of their own


@click.command()
@click.option("--part", "parts", type=click.Choice(ALL), multiple=True, help="Only this one; may be repeated.")
@click.option("--seconds", default=2.0, show_default=True, help="Length of one measurement.")
@click.option("--rounds", default=5, show_default=True, help="Measurements of each, taken in turn; medians count.")
@click.option("--scale", default=1.0, show_default=True, help="Points, as a share of the usual numbers.")
@click.option("--quick", is_flag=True, help=f"One short round with {QUICK:g} of the points: to see that it works.")
@click.option("--threads", default=16, show_default=True, help="query.threads.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def query(
    parts: tuple[str, ...], seconds: float, rounds: int, scale: float, quick: bool, threads: int, as_json: bool
) -> None:
    """Queries over HTTP, beside VictoriaMetrics and beside the floor of their stack."""
    if quick:
        rounds, scale, seconds = 1, QUICK, 1.0
    versions = codec.machine() | {"cpus": str(os.cpu_count()), "client": client_name()}
    if not as_json:
        click.echo(", ".join(f"{name} {value}" for name, value in versions.items()))
    found: dict[str, list[dict[str, object]]] = {}
    for part, finding in _findings(parts or ALL, seconds, rounds, scale, threads):
        found.setdefault(part, []).append(finding.record())
        if not as_json:
            click.echo(finding.line())
    if as_json:
        click.echo(json.dumps({"machine": versions, "scale": scale, "rounds": rounds, "found": found}))


def _findings(
    parts: tuple[str, ...], seconds: float, rounds: int, scale: float, threads: int
) -> Iterator[tuple[str, Finding]]:
    if set(parts) - OTHERS:
        with ExitStack() as stack:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
            points = query_peer.datasets(scale)
            running = stack.enter_context(cluster(scratch, points, threads, "floor" in parts))
            cases = query_peer.cases(points)
            if "peer" in parts:
                yield from (("peer", each) for each in _beside_peer(running, cases, points, seconds, rounds))
            if "floor" in parts:
                yield from (("floor", each) for each in _over_floor(running, cases[0], seconds, rounds))
            if "busy" in parts:
                yield from (("busy", each) for each in _busy(running, cases[0], seconds, rounds))
    if "ingest" in parts:
        yield from (("ingest", each) for each in ingest(seconds, NODES))
    if "verified" in parts:
        yield from (("verified", each) for each in verified(seconds, rounds, scale, threads))


def _beside_peer(
    running: Running, cases: list[query_peer.Case], points: list[Dataset], seconds: float, rounds: int
) -> Iterator[Finding]:
    kind = peers.VictoriaMetrics
    if not kind.installed():
        for case in cases:
            yield _finding(case, _medians(running.query, case.path, case.body, seconds, rounds), None)
        return
    with peers.running(kind) as peer:
        for each in points:
            peer.write(each)
        peer.flush()
        peer.merge()
        for case in cases:
            query_peer.check(case, ask(running.query, case.path, case.body), peer.request("GET", case.theirs))
            ours: list[float] = []
            theirs: list[float] = []
            for _ in range(rounds):
                ours.append(_p50(load(running.query, case.path, case.body, 1, seconds), case.name))
                theirs.append(_p50(load(peer.port, case.theirs, "", 1, seconds), case.name))
            yield _finding(case, statistics.median(ours), statistics.median(theirs))


def _finding(case: query_peer.Case, ours: float, theirs: float | None) -> Finding:
    beside = NO_PEERS if theirs is None else {peers.VictoriaMetrics.name: theirs}
    return Finding(case.name, "p50, one client", "ms", ours, beside, case.bar)


def _over_floor(running: Running, case: query_peer.Case, seconds: float, rounds: int) -> Iterator[Finding]:
    """One client's latency, and what many get: the least that the stack costs either way."""
    ours, floor = _in_turn(running, case, 1, seconds, rounds)
    beside = {"floor": statistics.median(_p50(each, "floor") for each in floor)}
    mine = statistics.median(_p50(each, case.name) for each in ours)
    yield Finding(case.name, "p50, one client", "ms", mine, beside, FLOOR)
    ours, floor = _in_turn(running, case, BUSY, seconds, rounds)
    beside = {"floor": statistics.median(each.per_s for each in floor)}
    mine = statistics.median(each.per_s for each in ours)
    yield Finding(f"{case.name}, {BUSY} connections", "requests", "1/s", mine, beside)


def _in_turn(
    running: Running, case: query_peer.Case, connections: int, seconds: float, rounds: int
) -> tuple[list[Measured], list[Measured]]:
    ours: list[Measured] = []
    floor: list[Measured] = []
    for _ in range(rounds):
        ours.append(load(running.query, case.path, case.body, connections, seconds))
        floor.append(load(running.floor, "/query", case.body, connections, seconds))
    return ours, floor


def _busy(running: Running, case: query_peer.Case, seconds: float, rounds: int) -> Iterator[Finding]:
    taken = [load(running.query, case.path, case.body, BUSY, seconds) for _ in range(rounds)]

    def median(figure: Callable[[Measured], float]) -> float:
        return statistics.median(map(figure, taken))

    of = f"{case.name}, {BUSY} connections"
    yield Finding(of, "requests", "1/s", median(lambda one: one.per_s), bar=BUSY_PER_S)
    yield Finding(of, "p50", "ms", median(lambda one: one.p50_ms))
    yield Finding(of, "p99", "ms", median(lambda one: one.p99_ms), bar=BUSY_P99_MS)
    yield Finding(of, "failed", "", sum(one.failed for one in taken), bar=Bar("most", 0))


def _medians(port: int, path: str, body: str, seconds: float, rounds: int) -> float:
    return statistics.median(_p50(load(port, path, body, 1, seconds), path) for _ in range(rounds))


def _p50(measured: Measured, name: str) -> float:
    if measured.failed:
        raise click.ClickException(f"{name}: {measured.failed} requests failed")
    return measured.p50_ms
