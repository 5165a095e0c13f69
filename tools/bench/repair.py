"""bench repair: two nodes that hold the same points compare them, cold and warm; one lacks a stretch, then all of it.

Two real nodes with a directory each (repair_nodes.py), that nobody else asks anything. Cold is after a start of both,
when no index page has been decoded; the files themselves are in the page cache of the system. What is read is what the
processes asked the system for. It does not show repair beside points and queries, nor a network between the nodes.
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from tools.bench import codec, repair_nodes
from tools.bench.findings import Bar, Finding
from tools.bench.repair_nodes import Compared, Filled, Pair

QUICK: Final = (50, 200_000)  # series and points
MOST_S: Final = 2.0
LEAST_MBS: Final = 20.0  # of blocks as they are stored
MOST_MORE: Final = 1.0  # percent of what is stored, read beyond what comparing equal nodes reads


@click.command()
@click.option("--points", default=50_000_000, show_default=True, help="That both nodes have.")
@click.option("--series", default=5000, show_default=True, help="Then a tenth of the points in twice as many.")
@click.option("--quick", is_flag=True, help=f"{QUICK[1]:,} points of {QUICK[0]} series: to see that it works.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def repair(points: int, series: int, quick: bool, as_json: bool) -> None:
    """The repair of two replicas, equal and not."""
    if quick:
        series, points = QUICK
    found = []
    for many, rows in ((series, points // series), (2 * series, points // (20 * series))):
        for each in _findings(many, max(rows, 20)):
            found.append(each.record())
            if not as_json:
                click.echo(each.line())
    if as_json:
        click.echo(json.dumps({"machine": codec.machine(), "found": found}))


def _findings(series: int, steps: int) -> Iterator[Finding]:
    name = f"{series:,} series x {steps:,}"
    with tempfile.TemporaryDirectory(prefix="repair-") as scratch:
        pair = Pair(Path(scratch), series, steps)
        yield Finding(name, "stored in each", "bytes", pair.stored_bytes)
        with repair_nodes.running(pair) as nodes:
            cold = nodes.repaired()
            yield from _equal(f"{name}, cold", cold)
            yield from _equal(f"{name}, warm", nodes.repaired())
        lacking = pair.lose_a_stretch()
        with repair_nodes.running(pair) as nodes:
            yield from _differing(f"{name}, stretch lacks", nodes.repaired(), cold, lacking, pair.stored_bytes)
        pair.lose_disk()
        with repair_nodes.running(pair) as nodes:
            yield from _filled(f"{name}, lost disk", nodes.refilled(), series * steps)


def _equal(name: str, found: Compared) -> Iterator[Finding]:
    yield Finding(name, "wall time", "s", found.seconds, bar=Bar("most", MOST_S))
    yield Finding(name, "CPU of both", "s", found.cpu_s)
    yield Finding(name, "read by both", "bytes", found.read_bytes)
    yield Finding(name, "blocks compared by summary", "", found.summarized)
    yield Finding(name, "blocks decoded", "", found.decoded, bar=Bar("most", 0))
    yield Finding(name, "points moved", "bytes", found.moved_bytes, bar=Bar("most", 0))


def _differing(name: str, found: Compared, equal: Compared, lacking: int, stored: int) -> Iterator[Finding]:
    if found.moved_points != lacking:
        raise click.ClickException(f"{name}: {found.moved_points} points were repaired, want {lacking}")
    more = 100 * max(0, found.read_bytes - equal.read_bytes) / (2 * stored)
    yield Finding(name, "wall time", "s", found.seconds)
    yield Finding(name, "CPU of both", "s", found.cpu_s)
    yield Finding(name, "points that lacked", "", lacking)
    yield Finding(name, "points moved", "bytes", found.moved_bytes)
    yield Finding(name, "blocks decoded", "", found.decoded)
    yield Finding(name, "read beyond equal, of stored", "%", more, bar=Bar("most", MOST_MORE))


def _filled(name: str, found: Filled, points: int) -> Iterator[Finding]:
    if found.points != points:
        raise click.ClickException(f"{name}: {found.points} points were filled in, want {points}")
    yield Finding(name, "wall time", "s", found.seconds)
    yield Finding(name, "CPU of both, with their start", "s", found.cpu_s)
    yield Finding(name, "points moved", "bytes", found.bytes)
    yield Finding(name, "speed", "MB/s", found.bytes / found.seconds / 1e6, bar=Bar("least", LEAST_MBS))
