"""bench start: how long a whole cluster takes to become ready, and what each idle worker holds in memory.

A sandbox of three nodes is started several times; ready means that /readyz says so and the bridge is subscribed.
It does not show a start with much to replay.
"""

import json
import statistics
import time
from pathlib import Path

import click

from tools.sandbox_app import Sandbox

IDLE_S = 2.0  # a few beats and polls, so that what is loaded lazily is there


@click.command()
@click.option("--rounds", default=3, show_default=True, help="Starts; medians count.")
@click.option("--broker", type=click.Choice(["auto", "embedded", "mosquitto"]), default="auto", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def start(rounds: int, broker: str, as_json: bool) -> None:
    """Seconds from start to ready, and resident memory of idle workers."""
    seconds: list[float] = []
    memory: dict[str, list[float]] = {}
    for _ in range(rounds):
        began_s = time.monotonic()
        with Sandbox(nodes=3, broker=broker) as cluster:
            seconds.append(time.monotonic() - began_s)
            time.sleep(IDLE_S)
            for name in (*cluster.nodes, *cluster.workers):
                memory.setdefault(name, []).append(_resident_mb(cluster.pid(name)))
    report = {
        "start_to_ready_s": statistics.median(seconds),
        "idle_resident_mb": {name: statistics.median(found) for name, found in memory.items()},
    }
    if as_json:
        click.echo(json.dumps(report))
        return
    click.echo(f"start to ready  {report['start_to_ready_s']:6.2f} s (median of {rounds})")
    for name, found in memory.items():
        click.echo(f"{name:14}  {statistics.median(found):6.0f} MB resident")


def _resident_mb(pid: int) -> float:
    """Resident memory of a process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return _own_resident_mb(pid) + sum(_resident_mb(int(child)) for child in children)


def _own_resident_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise click.ClickException(f"process {pid} is gone")
