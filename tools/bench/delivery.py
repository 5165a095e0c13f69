"""bench delivery: from MQTT to stored and acknowledged, beside what people write themselves.

Every message is sent at QoS 1; the bridge acknowledges it when its points are fsynced by one of several storage nodes.
Beside it, in the same run: `script`, paho and line protocol in batches into VictoriaMetrics, which does not fsync;
and bare paho, which acknowledges and stores nothing. Parts single, arrays and columns drain a queue (drain.py); they
do not show publishers that compete for the machine. Parts latency and memory run a whole cluster (delivery_live.py).
"""

import json
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from typing import Final

import click

from tools.bench import codec, delivery_live, peers
from tools.bench.drain import BEGIN_S, Cluster, Drained, Load, cluster, drain, preload, publish_frames, warm_up
from tools.bench.findings import Bar, Finding

QUICK: Final = 0.01  # of the messages
LOADS: Final[Mapping[str, Load]] = {
    "single": Load(200_000, 1, 100),
    "arrays": Load(20_000, 100, 100),
    "columns": Load(4_000, 1000, 100, columns=True),
}
RATES: Final[Mapping[str, Bar]] = {  # points per second
    "single": Bar("times", 1.5),
    "arrays": Bar("least", 300_000),
    "columns": Bar("least", 1_000_000),
}
SCRIPT_CPU: Final = Bar("ratio", 0.6)
BARE_CPU: Final = Bar("ratio", 0.5)
NAMES: Final = {"script": "script + VictoriaMetrics", "paho": "bare paho"}
LIVE: Final = {"latency": delivery_live.latency, "memory": delivery_live.memory}
ALL: Final = (*LOADS, *LIVE)

Drains = dict[str, list[Drained]]


@click.command()
@click.option("--part", "parts", type=click.Choice(ALL), multiple=True, help="Only this one; may be repeated.")
@click.option("--rounds", default=5, show_default=True, help="Drains of each consumer, in turn; medians count.")
@click.option("--scale", default=1.0, show_default=True, help="Messages, as a share of the usual numbers.")
@click.option("--quick", is_flag=True, help=f"One round with {QUICK:g} of the messages: to see that it works.")
@click.option("--nodes", type=click.IntRange(2), default=3, show_default=True, help="Storage nodes.")
@click.option("--peers/--no-peers", "beside", default=True, show_default=True, help="Whether to compare.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def delivery(
    parts: tuple[str, ...], rounds: int, scale: float, quick: bool, nodes: int, beside: bool, as_json: bool
) -> None:
    """MQTT to stored and acknowledged: rate, CPU, latency, memory, beside a hand-written script and bare paho."""
    if quick:
        rounds, scale = 1, QUICK
    versions = _versions()
    if not as_json:
        click.echo(", ".join(f"{name} {value}" for name, value in versions.items()))
        if beside and not peers.VictoriaMetrics.installed():
            click.echo("the script is not compared with: no victoria-metrics here (Debian package victoria-metrics)")
    found: dict[str, list[dict[str, object]]] = {}
    for part in parts or ALL:
        findings = drained(part, rounds, scale, nodes, beside) if part in LOADS else LIVE[part](scale, nodes)
        for finding in findings:
            found.setdefault(part, []).append(finding.record())
            if not as_json:
                click.echo(finding.line())
    if as_json:
        click.echo(json.dumps({"machine": versions, "scale": scale, "rounds": rounds, "found": found}))


def _versions() -> dict[str, str]:
    found = codec.machine() | {"cpus": str(os.cpu_count()), "paho": version("paho-mqtt")}
    return found | ({"VictoriaMetrics": peers.VictoriaMetrics.version()} if peers.VictoriaMetrics.installed() else {})


# Parts that drain a queue


def drained(part: str, rounds: int, scale: float, nodes: int, beside: bool) -> Iterator[Finding]:
    """Rate and CPU of each consumer of the same queues."""
    load = LOADS[part]
    load = load._replace(messages=max(1, round(load.messages * scale)))
    found = _drains(load, rounds, nodes, _consumers(load, beside))
    points = load.messages * load.points
    of = f"{load.points} per message" + (", columns" if load.columns else "")
    yield _finding(of, "points", "1/s", found, lambda one: points / one.seconds, RATES[part])
    if part == "single":
        yield _finding(of, "CPU per message", "us", found, lambda one: 1e6 * one.cpu_s / points, SCRIPT_CPU)
        bare = {name: drains for name, drains in found.items() if name != "script"}
        yield _finding(of, "CPU per message", "us", bare, lambda one: 1e6 * one.cpu_s / points, BARE_CPU)
    else:
        yield _finding(of, "CPU per point", "us", found, lambda one: 1e6 * one.cpu_s / points, None)
    stored = {name: drains for name, drains in found.items() if name != "paho"}
    yield _finding(of, "with servers", "us", stored, lambda one: 1e6 * (one.cpu_s + one.servers_cpu_s) / points, None)


def _consumers(load: Load, beside: bool) -> list[str]:
    """Ours and those to compare with, the first of them first. The script does not read columns."""
    script = ["script"] if peers.VictoriaMetrics.installed() and not load.columns else []
    return ["bridge", *script, "paho"] if beside else ["bridge"]


def _drains(load: Load, rounds: int, nodes: int, consumers: Sequence[str]) -> Drains:
    found: Drains = {name: [] for name in consumers}
    with ExitStack() as stack:
        running = stack.enter_context(cluster(nodes, load.columns))
        server = stack.enter_context(peers.running(peers.VictoriaMetrics)) if "script" in consumers else None
        warm_up(running, load)
        for number in range(rounds):
            # Later times in each round: the same points again would cost stores something else than new ones.
            frames = publish_frames(load, BEGIN_S + number * load.messages * load.points)
            for name, drains in found.items():
                preload(running.port, frames, load.messages)
                drains.append(_drain(running, name, load.messages, server))
    return found


def _drain(running: Cluster, name: str, messages: int, server: peers.Peer | None) -> Drained:
    if name == "bridge":
        return drain(running, name, messages, running.nodes)
    if name == "script" and server is not None:
        write_url = f"http://127.0.0.1:{server.port}{server.write_path()}"
        return drain(running, name, messages, [server.process.pid], write_url)
    return drain(running, name, messages)


def _finding(
    of: str, what: str, unit: str, found: Drains, figure: Callable[[Drained], float], bar: Bar | None
) -> Finding:
    """Medians of a figure: ours, and by peer."""
    medians = {name: statistics.median(map(figure, drains)) for name, drains in found.items()}
    ours = medians.pop("bridge")
    return Finding(of, what, unit, ours, {NAMES[name]: median for name, median in medians.items()}, bar)
