"""bench move: a fourth node joins three, two owners of each partition, while points arrive and questions are asked.

A sandbox on mosquitto. Points of old are stored first, over the bus; answers about them are known. Then points arrive
at half the rate that the cluster can take, found before in the same run, and one client asks one question after the
other: for a while as it is (before), then while tools/ringctl adds the node (during: from its start to its end, the
start of the new process and its joining the ring included). Latency of ingest is the bridge's: from receipt of a
message to its PUBACK, from its histogram, so between the bounds of a bucket it is estimated. It does not show a network
between nodes, disks of their own, or more than two cores: everything runs beside everything else on this machine.
"""

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
import numpy as np

from common import config
from common.ring import Ring
from common.ringmoves import changed, least_moves
from common.ringstore import open_store
from tools.bench import codec, data, query_cluster
from tools.bench.delivery_live import publisher
from tools.bench.findings import Bar, Finding
from tools.bench.move_load import Acks, Asked, Asking, Question
from tools.bench.query_busy import most_messages
from tools.sandbox_app import Sandbox

NODES: Final = 3
NEW: Final = "ing4"
STEP_NS: Final = 10 * data.SECOND_NS
QUICK: Final = (200, 200_000)  # series and points
QUESTIONS: Final = 50
BEATS_S: Final = 2.5  # until the metrics of the bridge have come with its signs of life
WITHIN_S: Final = 600.0
MOST_RATIO: Final = 3
LEAST_MB_S: Final = 20
MOST_BEYOND: Final = 1.0  # percent
RINGCTL: Final = Path(__file__).resolve().parents[1] / "ringctl"


class Window(NamedTuple):
    """What was seen in a while: PUBACKs, and answers."""

    acks: Acks
    asked: Asked


@click.command()
@click.option("--points", default=5_000_000, show_default=True, help="That the cluster holds when the node is added.")
@click.option("--series", default=2000, show_default=True, help="Of these points.")
@click.option(
    "--rate",
    type=click.FloatRange(min=0),
    help="Messages a second of one point, 0: neither points nor questions  [half of the most].",
)
@click.option("--seconds", default=20.0, show_default=True, help="Before the node is added.")
@click.option("--quick", is_flag=True, help=f"{QUICK[1]:,} points of {QUICK[0]} series: to see that it works.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def move(points: int, series: int, rate: float | None, seconds: float, quick: bool, as_json: bool) -> None:
    """A fourth node joins three, under load."""
    if quick:
        (series, points), rate, seconds = QUICK, rate or 200.0, min(seconds, 4.0)
    found = []
    for each in _findings(points, series, rate, seconds):
        found.append(each.record())
        if not as_json:
            click.echo(each.line())
    if as_json:
        click.echo(json.dumps({"machine": codec.machine(), "found": found}))


def _findings(points: int, series: int, rate: float | None, seconds: float) -> Iterator[Finding]:
    held = data.made("move", series, max(20, points // series), data.regular(STEP_NS, 5))
    with Sandbox(nodes=NODES, replication=2, broker="mosquitto") as cluster:
        if rate is None:
            most = most_messages(cluster)
            yield Finding("ingest", "most messages of one point", "1/s", most)
            rate = most / 2
        before = _ring(cluster)
        query_cluster.fill(before, [held])
        query_cluster.wait_until_at_rest(cluster.http)
        asking = Asking(cluster.http, _questions(held))
        with ExitStack() as load:
            if rate:
                load.enter_context(publisher(cluster, "--rate", round(rate)))
                load.enter_context(asking)
            with _window(cluster, asking) as quiet:
                time.sleep(seconds if rate else 0.0)
            with _window(cluster, asking) as busy:
                moved = _added(cluster)
        after = _ring(cluster)
    of = f"{len(held):,} points, {rate:,.0f}/s"
    if rate:
        yield from _latencies(of, quiet[0], busy[0])
    yield from _moves(of, before, after, moved)


def _questions(held: data.Dataset) -> list[Question]:
    """Of some series, spread over all: how many points, their least and largest value, all of them of old."""
    found = []
    for number in np.linspace(0, len(held.series) - 1, min(QUESTIONS, len(held.series))).astype(int).tolist():
        values, device = held.rows.values[held.rows.owners == number], held.series[number]
        known: list[tuple[str, float]] = [("count", len(values)), ("min", values.min()), ("max", values.max())]
        for operation, result in known:
            body = {"device_id": device.device_id, "metric_name": device.metric_name, "operation": operation}
            found.append(Question(json.dumps(body), float(result), len(values)))
    return found


@contextmanager
def _window(cluster: Sandbox, asking: Asking) -> Iterator[list[Window]]:
    """What is seen while the block runs, in a list when it has ended."""
    found: list[Window] = []
    time.sleep(BEATS_S)
    acks = Acks.of(cluster.http)
    asking.take()
    yield found
    asked = asking.take()
    time.sleep(BEATS_S)
    found.append(Window(Acks.of(cluster.http).since(acks), asked))


def _added(cluster: Sandbox) -> dict[str, Any]:
    """Add the node: what ringctl tells of it, and the seconds that it took with everything."""
    command = [str(RINGCTL), "add", NEW, "--yes", "--json", "--supervisor", str(cluster.dir / "supervisord.conf")]
    begun_s = time.monotonic()
    try:
        done = subprocess.run(
            [*command, "--rate", "0"], env=cluster.environment, capture_output=True, text=True, timeout=WITHIN_S
        )
    except subprocess.TimeoutExpired as error:
        raise click.ClickException(f"ringctl add did not end within {WITHIN_S:g} s: {error.stdout!r}") from error
    if done.returncode:
        raise click.ClickException(f"ringctl add ends with {done.returncode}: {done.stdout}{done.stderr}")
    told: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    return told | {"wall_s": time.monotonic() - begun_s}


def _ring(cluster: Sandbox) -> Ring:
    settings = config.load(cluster.config)
    ring = open_store(settings.cluster.ring_store, settings).load()
    if ring is None:
        raise click.ClickException("BUG: a cluster without a ring")
    return ring


def _latencies(of: str, quiet: Window, busy: Window) -> Iterator[Finding]:
    for share in (0.5, 0.99):
        bar = Bar("ratio", MOST_RATIO) if share == 0.99 else None
        for what, before, during in (
            ("PUBACK", quiet.acks.quantile_ms(share), busy.acks.quantile_ms(share)),
            ("query", quiet.asked.quantile_ms(share), busy.asked.quantile_ms(share)),
        ):
            yield Finding(of, f"{what}, p{share * 100:.0f} during", "ms", during, {"before": before}, bar)
    asked = len(quiet.asked.seconds) + len(busy.asked.seconds)
    yield Finding(of, "questions", "", asked)
    yield Finding(of, "failed, incomplete or wrong", "", quiet.asked.wrong + busy.asked.wrong, bar=Bar("most", 0))


def _moves(of: str, before: Ring, after: Ring, told: dict[str, Any]) -> Iterator[Finding]:
    least = least_moves(changed(before, after.nodes, after.replication))
    pairs = [{(p, node.id) for p in range(ring.partitions) for node in ring.owners(p)} for ring in (before, after)]
    moved = len(pairs[1] - pairs[0])
    yield Finding(of, "partitions moved", "", moved, {"least": least})
    yield Finding(of, "beyond the least", "%", 100 * (moved - least) / least, bar=Bar("most", MOST_BEYOND))
    yield Finding(of, "points moved", "", told["points"])
    yield Finding(of, "bytes pulled", "", told["bytes"])
    yield Finding(of, "the whole change", "s", told["wall_s"])
    yield Finding(of, "of it carrying the ring over", "s", told["seconds"])
    yield Finding(of, "of that copying", "s", told["copying_s"])
    yield Finding(of, "of that behind fences", "s", told["fenced_s"])
    for what, seconds in (("while carried over", told["seconds"]), ("while copying", told["copying_s"])):
        bar = Bar("least", LEAST_MB_S) if seconds is told["copying_s"] else None
        yield Finding(of, f"blocks {what}", "MB/s", told["bytes"] / 1e6 / seconds, bar=bar)
        yield Finding(of, f"points {what}", "1/s", told["points"] / seconds)
