"""bench storage: bytes, CPU, time and memory of the storage engine, beside VictoriaMetrics and InfluxDB.

Everything that is compared is measured in the same run. Our engine runs in a process of the benchmark, with its own
WAL and real fdatasync, and without bus, bridge and HTTP; peers are whole servers that parse line protocol, so the
ratios of CPU say what an engine costs beside a server, not what two servers cost. It does not show replication,
queries while points arrive, clients on other machines, disks that are slower than this one, or what peers do in
versions other than those printed.
"""

import json
import os
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any, Final

import click

from tools.bench import codec, peers, storage_reads, storage_scale, storage_sizes
from tools.bench.findings import Finding

QUICK: Final = 0.02  # of the points

Peers = list[type[peers.Peer]]
PARTS: Final[dict[str, Callable[[float], Iterator[Finding]]]] = {  # those without peers; the argument is the scale
    "one": storage_reads.one,
    "replay": storage_scale.replay,
    "opening": storage_scale.opening,
    "memory": storage_scale.memory,
    "growth": storage_scale.growth,
}
ALL: Final = ("sizes", "reads", *PARTS)


@click.command()
@click.option("--part", "parts", type=click.Choice(ALL), multiple=True, help="Only this one; may be repeated.")
@click.option(
    "--data", "names", type=click.Choice((*storage_sizes.MADE, "real")), multiple=True,
    help="Only this of the data of part sizes; may be repeated.",
)  # fmt: skip
@click.option("--rounds", default=5, show_default=True, help="Times that part sizes measures each; medians count.")
@click.option("--scale", default=1.0, show_default=True, help="Points, as a share of the usual numbers.")
@click.option("--quick", is_flag=True, help=f"One round with {QUICK:g} of the points: to see that it works.")
@click.option(
    "--peer", "wanted", type=click.Choice((*(kind.command for kind in peers.PEERS), "none")), multiple=True,
    help="Compare with this one; may be repeated. Without it, with all that are installed.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def storage(
    parts: tuple[str, ...], names: tuple[str, ...], rounds: int, scale: float, quick: bool,
    wanted: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """The storage engine: bytes, CPU, time and memory, beside other databases."""
    if quick:
        rounds, scale = 1, QUICK
    kinds, missing = _installed(wanted)
    versions = _versions(kinds)
    if not as_json:
        click.echo(", ".join(f"{name} {value}" for name, value in versions.items()))
        for kind in missing:
            click.echo(f"{kind.name} is not compared with: no {kind.command} here (Debian package {kind.package()})")
    found: dict[str, list[dict[str, Any]]] = {}
    for part in parts or ALL:
        for finding in _findings(part, names, rounds, scale, kinds):
            found.setdefault(part, []).append(finding.record())
            if not as_json:
                click.echo(finding.line())
    if as_json:
        click.echo(json.dumps({"machine": versions, "scale": scale, "rounds": rounds, "found": found}))


def _findings(part: str, names: tuple[str, ...], rounds: int, scale: float, kinds: Peers) -> Iterator[Finding]:
    if part == "sizes":
        return storage_sizes.sizes(names, scale, rounds, kinds)
    if part == "reads":
        return storage_reads.reads(scale, kinds)
    return PARTS[part](scale)


def _installed(wanted: tuple[str, ...]) -> tuple[Peers, Peers]:
    """The peers asked for that are on this machine, and those that are not."""
    asked = [each for each in peers.PEERS if not wanted or each.command in wanted]
    return [each for each in asked if each.installed()], [each for each in asked if not each.installed()]


def _versions(kinds: Peers) -> dict[str, str]:
    machine = {**codec.machine(), "cpus": str(os.cpu_count()), "pcodec": version("pcodec")}
    return {**machine, **{kind.name: kind.version() for kind in kinds}}
