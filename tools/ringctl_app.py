"""tools/ringctl: makes the ring of a new cluster and shows rings, placement and nodes.

Owns the commands and what they print. The only program that writes the ring store. Exit codes: 0 done and well,
1 failed or something is amiss, 2 wrong usage.
"""

import functools
import secrets
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import click
import msgspec
import numpy as np
from rich.markup import escape
from rich.table import Table

from common import bus, config, series
from common.errors import ConfigError, MinitrueError, RingError, RingStoreError
from common.ring import ACTIVE, NOBODY, Ring
from common.ringmoves import shares, steps
from common.ringstore import Mark, RingStore, open_store
from tools import (
    ring_driver,
    ring_known,
    ringctl_backup,
    ringctl_bridges,
    ringctl_loss,
    ringctl_move,
    ringctl_nodes,
    ringctl_repair,
    ringctl_status,
    ringctl_store,
    supervised,
)
from tools.output import DASHES, EXIT_CODES, Output, duration_text, new_table, size_text
from tools.ringctl_status import NodeStatus
from workers.storage import layout


def main() -> None:
    """Run the command line; errors are one line on stderr."""
    try:
        cli(prog_name="ringctl")
    except MinitrueError as error:
        print(f"ringctl: {error}", file=sys.stderr)
        sys.exit(1)


@click.group(context_settings=DASHES, epilog=EXIT_CODES)
def cli() -> None:
    """The ring: which storage node owns which part of the data.

    A series (device, metric, tags) has a hash; the hash space is cut into partitions; the ring is the table that
    names the owners of each partition. Every worker reads it from the ring store, only this program writes it.

    \b
    A new cluster:
      ringctl init                            nodes from conf/ring.toml
      ringctl status                          does every node answer?
    Where is a sensor's data?
      ringctl locate sensor_1 temperature
    """


def command(function: Callable[..., int]) -> click.Command:
    """A command of the group with the options that all have: (settings, store, output, ...) to an exit code."""

    @click.option("--config", "config_file", type=click.Path(path_type=Path), help="Settings [conf/minitrue.toml].")
    @click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, for programs.")
    @functools.wraps(function)
    def run(config_file: Path | None, as_json: bool, **values: Any) -> None:
        settings = config.load(config_file)
        store = open_store(settings.cluster.ring_store, settings)
        sys.exit(function(settings, store, Output(as_json), **values))

    return cli.command(epilog=EXIT_CODES, context_settings=DASHES)(run)


@command
@click.option("--nodes", "nodes_file", type=click.Path(path_type=Path), help="Nodes [cluster.initial_ring].")
@click.option("--if-missing", is_flag=True, help="Do nothing, with success, where there is a ring already.")
def init(settings: config.Settings, store: RingStore, output: Output, nodes_file: Path | None, if_missing: bool) -> int:
    """Make the ring of a new cluster.

    Draws a cluster id, shares the partitions among the nodes of the file by weight, owners of one partition in
    different zones while there are enough, and saves that as epoch 1. The same file gives the same table. A ring
    that exists is never replaced, and none is made where nodes of a cluster have data on this machine, or, with a
    store for several machines, where one of the file answers: then the ring was lost, ringctl restore puts it back.
    """
    file = nodes_file or settings.path(settings.cluster.initial_ring)
    stored = store.load()
    if stored is None:
        ring = ringctl_nodes.new_ring(file, secrets.token_hex(8), bool(settings.bus.key_file))
        _check_lost(settings, store, ring)
        output.say(f"A new cluster: the nodes of {file}, the ring in {store.url}")
        stored = _save_first(store, ring)
        if stored is None:
            output.say(_summary(ring), _node_table(ring), "next: start the workers, then: tools/ringctl status")
            output.result({"created": True, **_ring_facts(ring, store)})
            return 0
    if not if_missing:
        raise RingStoreError(
            f"{store.url} holds a ring already: {_summary(stored)}; init replaces none, see: ringctl show"
        )
    output.say(f"{store.url} holds a ring, nothing to do: {_summary(stored)}", "next: tools/ringctl status")
    output.result({"created": False, **_ring_facts(stored, store)})
    return 0


def _check_lost(settings: config.Settings, store: RingStore, ring: Ring) -> None:
    """Raises RingStoreError where nodes of a cluster have their data here, or one of this ring answers: then the store
    has lost its ring.

    supervisord says init at each start. Another cluster would be of no use to these nodes, and in the way of the ring.
    """
    for file in sorted(settings.data_dir.glob(f"storage/*/{layout.NODE}")):
        raise RingStoreError(
            f"no ring in {store.url}, but {file.parent} has the data of a node: tools/ringctl restore puts the ring "
            "back; for a new cluster move the data away"
        )
    nodes = list(ring.nodes) if store.remote else []  # those of a file's cluster have their data here
    answers, _ = ring_known.ask_all(nodes, bus.load_key(settings))
    for node, answer in sorted(answers.items()):
        raise RingStoreError(
            f"no ring in {store.url}, but {node} answers, by epoch {answer.ring.epoch} of cluster "
            f"{answer.ring.cluster}: tools/ringctl restore puts the ring back; for a new cluster end its nodes first"
        )


def _save_first(store: RingStore, ring: Ring) -> Ring | None:
    """Save a first ring; the ring of another ringctl if that was first."""
    try:
        store.save(ring, 0)
    except RingStoreError:
        winner = store.load()
        if winner is None:
            raise
        return winner
    return None


@command
def keys(settings: config.Settings, _: RingStore, output: Output) -> int:
    """Make the key of the bus.

    Writes a new key to the file that bus.key_file names, readable by its owner alone. Every machine of the cluster
    needs the same file; with it the bus is encrypted, and nobody else can connect. A file that is there is never
    overwritten. Off loopback the bus needs a key.
    """
    if not settings.bus.key_file:
        raise ConfigError(f'{settings.file}: bus.key_file = "": want the name of a file, such as bus.key')
    path = settings.path(settings.bus.key_file)
    made = bus.make_key(path)
    output.say(escape(f"A new key is in {path}, mode 0600. Its public half: {made.public.decode()}"))
    output.say("next: copy the file to every machine of the cluster, then restart all workers")
    output.result({"file": str(path), "public": made.public.decode()})
    return 0


@command
def status(settings: config.Settings, store: RingStore, output: Output) -> int:
    """Ask every storage node how it is.

    Shows what each holds, and what is amiss: a node that does not answer, that has another ring than the store, that
    has set damaged files aside, or that is behind because a bridge has points for it in its spool. Bridges are shown as
    the nodes have heard them in the last hour; one that is not heard any more is amiss.
    While the ring store cannot be read, nodes are asked for what they know; cluster.initial_ring names the first.
    Exit code 1 if anything is amiss.
    """
    try:
        ring, marks, nodes = _asked(store, bus.load_key(settings))
    except (RingError, RingStoreError) as error:
        return _status_without_store(settings, store, output, error, str(error))
    if ring is None:
        error = _no_ring(store) if _has_data(settings) else _no_ring_yet(store)
        return _status_without_store(settings, store, output, error, f"no ring in {store.url}")
    amiss = [node for node in nodes if node.fault]
    bridges, gone, said = _bridges(settings, nodes)
    advice = _advice(nodes, amiss, _waits_for(marks, gone))
    output.say(_summary(ring), _status_table(nodes), *said, *_unfinished(ring, store), *advice)
    told = {"nodes": [msgspec.structs.asdict(n) for n in nodes], "bridges": bridges, "marks": sorted(marks)}
    output.result({"ok": not (amiss or gone), **_ring_facts(ring, store), **told})
    return 1 if amiss or gone else 0


def _asked(store: RingStore, key: bus.Key | None) -> tuple[Ring | None, frozenset[Mark], list[NodeStatus]]:
    """Ring and marks as stored, and how the nodes are. Where a node is ahead, the ring may have changed after it was
    read: it is read again. Raises RingError, RingStoreError.
    """
    before = 0
    for _ in range(LOOKS):
        ring, marks = store.load(), store.marks()
        if ring is None:
            return None, marks, []
        nodes = ringctl_status.ask_all(ring, marks, key)
        if ring.epoch == before or not ringctl_status.are_ahead(ring, nodes):
            break
        before = ring.epoch
    return ring, marks, nodes


def _has_data(settings: config.Settings) -> bool:
    """Whether nodes of a cluster have their data on this machine."""
    return any(settings.data_dir.glob(f"storage/*/{layout.NODE}"))


def _bridges(
    settings: config.Settings, nodes: Sequence[NodeStatus]
) -> tuple[dict[str, dict[str, Any]], list[str], list[str]]:
    """Bridges as they were heard last, those that are not heard any more, and what is to be said of all."""
    bridges = ringctl_bridges.heard(nodes)
    late_s = settings.bridge_late_s
    return bridges, ringctl_bridges.late(bridges, late_s), ringctl_bridges.lines(bridges, late_s)


def _waits_for(marks: Iterable[Mark], gone: Sequence[str]) -> list[Mark]:
    """Marks of bridges that are not heard any more."""
    return [mark for mark in sorted(marks) if mark.by in gone]


def _status_without_store(
    settings: config.Settings, store: RingStore, output: Output, error: MinitrueError, fault: str
) -> int:
    """What nodes know while the ring store is away, or has no ring: fault. Raises the error where no node answers."""
    key = bus.load_key(settings)
    try:
        answers, _ = ring_known.ask_all(ring_known.first_nodes(settings, ()), key)
    except ConfigError:  # nobody to ask
        raise error from None
    if not answers:
        raise error
    ring = max((answer.ring for answer in answers.values()), key=lambda ring: ring.epoch)
    marks = ringctl_backup.marks_told({node: answer.status for node, answer in answers.items()})
    nodes = ringctl_status.ask_all(ring, marks, key, "another node has")
    bridges, _, said = _bridges(settings, nodes)
    output.say(escape(f"The ring store is of no use: {fault}"), f"As nodes know it: {_summary(ring)}")
    output.say(
        _status_table(nodes), *said, _AWAY, f"next: mend {store.url}; if it lost the ring: tools/ringctl restore"
    )
    told = {"nodes": [msgspec.structs.asdict(n) for n in nodes], "bridges": bridges, "marks": sorted(marks)}
    output.result({"ok": False, "store_error": fault, **_ring_facts(ring, store), **told})
    return 1


@command
def show(_: config.Settings, store: RingStore, output: Output) -> int:
    """Show the ring: its nodes, and how the partitions are shared among them.

    The share of a node is what its weight calls for, as far as zones allow; owned partitions differ from it by
    less than one. With --json: the ring document itself.
    """
    ring = _load(store)
    output.say(_summary(ring), f"in {store.url}", _node_table(ring))
    output.say("next: tools/ringctl locate DEVICE METRIC, or tools/ringctl status")
    output.result(ring.document())
    return 0


@command
@click.argument("device")
@click.argument("metric")
@click.option("--tag", "tags", multiple=True, metavar="K=V", help="A tag of the series; once for each tag.")
def locate(_: config.Settings, store: RingStore, output: Output, device: str, metric: str, tags: Sequence[str]) -> int:
    """Show which nodes own the series of DEVICE and METRIC.

    A series is a device, a metric and tags: give every tag that its points carry, as another set of tags is another
    series.
    """
    ring = _load(store)
    pairs = _parse_tags(tags)
    key = _series_key(device, metric, pairs)
    partition = series.partition_of(key, ring.partitions)
    owners = ring.owners(partition)
    shown = "".join(f", {name}={value}" for name, value in sorted(pairs.items()))
    output.say(escape(f"{device}, {metric}{shown}: partition {partition} of {ring.partitions} (epoch {ring.epoch})"))
    output.say(*[escape(f"  {node.id}  {node.endpoint}  zone {node.zone}") for node in owners])
    output.result(
        {
            "device_id": device,
            "metric_name": metric,
            "tags": pairs,
            "hash": f"{series.series_hash(key):016x}",
            "partition": partition,
            "epoch": ring.epoch,
            "owners": [{"id": node.id, "endpoint": node.endpoint, "zone": node.zone} for node in owners],
        }
    )
    return 0


ringctl_move.register(command)
ringctl_repair.register(command)
ringctl_loss.register(command)
ringctl_store.register(command)


def _series_key(device: str, metric: str, tags: dict[str, str]) -> bytes:
    try:
        return series.series_key(device, metric, tags)
    except UnicodeEncodeError as error:
        raise click.UsageError(f"got {error.object!r}, want UTF-8 text") from error


def _parse_tags(texts: Sequence[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"got {text!r}, want K=V", param_hint="--tag")
        if name in pairs:
            raise click.BadParameter(f"tag {name!r} is given twice", param_hint="--tag")
        pairs[name] = value
    return pairs


def _load(store: RingStore) -> Ring:
    ring = store.load()
    if ring is None:
        raise _no_ring(store)
    return ring


def _no_ring(store: RingStore) -> RingStoreError:
    return RingStoreError(f"no ring in {store.url}: make one with tools/ringctl init (one that was lost: restore)")


def _no_ring_yet(store: RingStore) -> RingStoreError:
    """The same where no node has been at work."""
    return RingStoreError(
        f"no ring in {store.url} yet: supervisord makes one when it starts, ask again in a moment; without it: "
        "tools/ringctl init (one that was lost: restore)"
    )


# What is shown


def _summary(ring: Ring) -> str:
    owners = "1 owner" if ring.replication == 1 else f"{ring.replication} owners"
    nodes = "1 node" if len(ring.nodes) == 1 else f"{len(ring.nodes)} nodes"
    deletes = {0: "", 1: ", 1 delete"}.get(len(ring.deletes), f", {len(ring.deletes):,} deletes")
    moves = f", {len(ring.moves):,} moving" if ring.moves else ""
    partitions = f"{ring.partitions} partitions{moves}, {owners} each"
    return f"cluster {ring.cluster}, epoch {ring.epoch}: {nodes}, {partitions}{deletes}"


def _ring_facts(ring: Ring, store: RingStore) -> dict[str, Any]:
    return {
        "cluster": ring.cluster,
        "epoch": ring.epoch,
        "hash": ring.hash,
        "store": store.url,
        "partitions": ring.partitions,
        "replication": ring.replication,
        "deletes": len(ring.deletes),
        "delete_number": ring.delete_number,
        "nodes": _balance(ring),
    }


def _balance(ring: Ring) -> list[dict[str, Any]]:
    """How many partitions each node owns, owns first, and should own by weight."""
    wanted = shares(ring)
    first = np.bincount(ring.owner_table[:, 0], minlength=len(ring.nodes))
    return [
        {
            **msgspec.structs.asdict(node),
            "partitions": len(ring.owned_partitions(node.id)),
            "first_owner": int(first[at]),
            "share": round(float(wanted[at]), 3),
        }
        for at, node in enumerate(ring.nodes)
    ]


def _node_table(ring: Ring) -> Table:
    table = new_table("node", "", "endpoint", "zone", ">weight", ">partitions", ">joins", ">share", ">first owner of")
    for row in _balance(ring):
        joins = len(ring.joined_partitions(row["id"]))
        cells = (row["weight"], row["partitions"], joins, row["share"], row["first_owner"])
        table.add_row(row["id"], row["state"], row["endpoint"], row["zone"], *(f"{cell:g}" for cell in cells))
    missing = int(((ring.owner_table != NOBODY).sum(axis=1) < ring.replication).sum())
    if missing:
        table.caption = f"{missing} partitions have fewer than {ring.replication} owners"
    return table


def _status_table(nodes: Sequence[NodeStatus]) -> Table:
    table = new_table("node", "state", *(f">{title}" for title, _, _ in FIGURES), "amiss")
    for node in nodes:
        state = f"[{COLOURS[node.state]}]{node.state}[/]{_moving(node.answer)}"
        colour = "yellow" if node.reachable else "red"
        fault = f"[{colour}]{escape(node.fault)}[/]" if node.fault else ""
        table.add_row(node.id, state, *_figures(node.answer), fault)
    return table


def _moving(answer: dict[str, Any]) -> str:
    """What moves to and from a node."""
    found = {name: answer.get(f"partitions_{name}") for name in ("joining", "fenced")}
    return "".join(f", {count} {name}" for name, count in found.items() if count)


def _unfinished(ring: Ring, store: RingStore) -> list[str]:
    """What is left of changes of the ring, and who sees to it."""
    left = len(steps(ring)) + len(ring.moves)
    if not left and all(node.state == ACTIVE for node in ring.nodes):
        return []
    driver = store.driver()
    if driver and ring_driver.is_gone(driver):
        driver = ""
    seen_to = f"{driver} sees to it" if driver else "next: tools/ringctl resume"
    return [escape(f"{left:,} changes of owners are left to do, {len(ring.moves):,} under way; {seen_to}")]


def _figures(answer: dict[str, Any]) -> list[str]:
    return ["-" if answer.get(key) is None else form(answer[key]) for _, key, form in FIGURES]


def _advice(nodes: Sequence[NodeStatus], amiss: Sequence[NodeStatus], stuck: Sequence[Mark] = ()) -> list[str]:
    """The next command to type."""
    if not amiss:
        return []
    if all(not node.reachable for node in nodes):
        return [
            "No node answers. next: supervisord -c supervisord.conf (or: make run); where that runs already, "
            "tools/ringctl status once more: workers take some seconds to start"
        ]
    if stuck:
        node, bridge = stuck[0]
        loss = f"tools/ringctl accept-loss {node} --bridge {bridge}"
        return [escape(f"next: start {bridge}, its spool drains then; if it is gone for good: {loss}")]
    silent = [node.id for node in amiss if not node.reachable]
    if silent:
        programs = " ".join(supervised.program_name(node) for node in silent)
        return [escape(f"next: supervisorctl -c supervisord.conf status {programs}")]
    if all(node.state == ringctl_status.OPENING for node in amiss):
        return ["next: tools/ringctl status, once more: a node that was killed replays its WAL, which takes seconds"]
    return [
        "next: tools/ringctl status, once more: a node takes over a new ring within cluster.ring_poll_s, and a spool "
        "drains by itself"
    ]


_AWAY: Final = (
    "Workers go on with the ring and the marks that they know: points are taken in, questions answered. Changes of the "
    "ring, deletes and workers that start wait."
)

LOOKS: Final = 5  # at a ring that changes while nodes are asked: each takes one change, of which there are few a second
COLOURS: Final = {ringctl_status.UP: "green", ringctl_status.OPENING: "yellow", ringctl_status.UNREACHABLE: "red"}

# Columns of `status`: title, key of the node's answer, form.
FIGURES: Final[Sequence[tuple[str, str, Callable[[Any], str]]]] = (
    ("series", "series", "{:,}".format),
    ("points", "points", "{:,}".format),
    ("stored", "segment_bytes", size_text),
    ("bytes/point", "bytes_per_point", "{:.2f}".format),
    ("in WAL", "wal_bytes", size_text),
    ("fsync", "fsync_last_ms", "{:.1f} ms".format),
    ("up", "uptime_s", duration_text),
)


if __name__ == "__main__":
    main()
