"""bench bridge: what one MQTT message costs the bridge, against a bare paho subscriber that acks and does nothing.

Both drain the same queue, in the same run and in turn (drain.py). The bridge decodes, routes and batches every point;
real storage nodes fsync before they ack. With --no-durable the nodes ack at once and store nothing, so that the
figure is the bridge's own. For work on the bridge; bench delivery has the figures that count.
"""

import json
import statistics

import click

from tools.bench.drain import BEGIN_S, Drained, Load, cluster, drain, preload, publish_frames, warm_up

CONSUMERS = ("paho", "bridge")


@click.command()
@click.option("--messages", default=200_000, show_default=True, help="Messages in one drain.")
@click.option("--points", default=1, show_default=True, help="Points per message: above 1, a JSON array.")
@click.option("--series", default=100, show_default=True, help="Different series among them.")
@click.option("--columns", is_flag=True, help="Columnar msgpack instead of JSON.")
@click.option("--rounds", default=3, show_default=True, help="Drains of each consumer, taken in turn.")
@click.option("--nodes", default=3, show_default=True, help="Storage nodes that the bridge sends to.")
@click.option(
    "--durable/--no-durable", default=True, show_default=True, help="Real storage nodes, or ones that only ack."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def bridge(
    messages: int, points: int, series: int, columns: bool, rounds: int, nodes: int, durable: bool, as_json: bool
) -> None:
    """MQTT to acknowledged, QoS 1: the bridge against bare paho."""
    load = Load(messages, points, series, columns)
    drains: dict[str, list[Drained]] = {name: [] for name in CONSUMERS}
    with cluster(nodes, columns, durable) as running:
        warm_up(running, load)
        for number in range(rounds):
            frames = publish_frames(load, BEGIN_S + number * messages * points)
            for consumer, found in drains.items():
                preload(running.port, frames, messages)
                found.append(drain(running, consumer, messages))
    report = {name: _summary(found, messages) for name, found in drains.items()}
    ratios = [bare.seconds / ours.seconds for bare, ours in zip(*drains.values(), strict=True)]
    ratio = statistics.median(ratios)
    if as_json:
        click.echo(json.dumps(report | {"ratio": ratio, "messages": messages, "points": points, "durable": durable}))
        return
    for name, one in report.items():
        rate, cpu = one["messages_per_s"], one["cpu_us"]
        click.echo(f"{name:8} {rate:10,.0f} messages/s {rate * points:12,.0f} points/s {cpu:8.2f} us CPU per message")
    what = "fsynced" if durable else "not stored"
    click.echo(
        f"ratio    {ratio:10.2f} of bare paho's rate, {what} (medians of {rounds}, {messages:,} x {points} points)"
    )


def _summary(drains: list[Drained], messages: int) -> dict[str, float]:
    return {
        "messages_per_s": messages / statistics.median(one.seconds for one in drains),
        "cpu_us": statistics.median(one.cpu_s for one in drains) / messages * 1e6,
    }
