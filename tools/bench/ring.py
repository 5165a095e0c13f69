"""bench ring: placement by simulation: how even it is, how much a change moves, and what both take.

Clusters of 3 to 1,000 nodes with 1 to 5 owners, zones and weights of several kinds, drawn under a fixed seed, and one
change of each: nodes added, removed, replaced, other weights or zones, more or fewer owners. Balance is the largest
distance of a node's number of partitions from its share by weight. Moves are compared with ringmoves.least_moves, which
no way to the target can save; only of changes that must move a hundred or more, so that a percent is one. Nodes that
change their zone are shown by themselves: what follows from that is more than the bound knows.

It does not show what moves cost (bench move does), nor whether shares by weight mean equal load.
"""

import json
import math
import random
import timeit
from collections.abc import Sequence
from time import process_time
from typing import Any, Final, NamedTuple

import click
import msgspec
import numpy as np

from common.ring import ACTIVE, DRAINING, MAX_NODES, MAX_PARTITIONS, MAX_REPLICATION, Node, Ring
from common.ringbuild import first_ring
from common.ringmoves import changed, least_moves, shares, steps
from tools.output import Output, new_table

SIZES: Final = (3, 10, 30, 100, 300, 1000)
CASES: Final = 12  # of each size
PER_NODE: Final = 64  # partitions, at least: with fewer, whole numbers are a coarse share
MANY: Final = 100  # moves from which on a percent is one
BATCH: Final = 20_000  # points
ZONES: Final = {"one": 1, "two": 2, "three": 3, "five": 5, "ten": 10, "each its own": 0}
WEIGHTS: Final = {"equal": (1.0,), "1, 2, 4": (1.0, 2.0, 4.0), "0.5 to 8": (0.5, 1.0, 1.5, 3.0, 8.0)}
CHANGES: Final = ("add one", "add some", "remove one", "remove some", "replace", "weights", "zone", "more owners",
                  "fewer owners")  # fmt: skip


class Case(NamedTuple):
    """A cluster and a change of it."""

    nodes: tuple[Node, ...]
    partitions: int
    replication: int
    zones: str
    weights: str
    change: str


class Outcome(NamedTuple):
    """What a case came to. off: partitions, the largest distance from a share, placed and after the change."""

    off: float
    off_after: float
    moved: int
    least: int
    place_s: float
    plan_s: float

    @property
    def beyond(self) -> float:
        """By what part moves exceed the least number; 0 where few move."""
        return self.moved / self.least - 1 if self.least >= MANY else 0.0


def draw(size: int, chance: random.Random, partitions: int | None = None) -> Case:
    """A case of so many nodes. partitions: a power of two; enough by default."""
    zones, weights, change = chance.choice(list(ZONES)), chance.choice(list(WEIGHTS)), chance.choice(CHANGES)
    least, most = int(change == "fewer owners") + 1, min(MAX_REPLICATION, size) - int(change == "more owners")
    some = max(1, size // 20)
    if change.startswith("remove"):
        most = min(most, size - some)
    present = size - some if size == MAX_NODES else size  # room for those that are added
    nodes = tuple(_node(at, ZONES[zones], chance.choice(WEIGHTS[weights])) for at in range(present))
    enough = min(MAX_PARTITIONS, max(1024, 1 << math.ceil(math.log2(PER_NODE * size))))
    return Case(nodes, partitions or enough, chance.randint(least, max(least, most)), zones, weights, change)


def simulate(case: Case) -> Outcome:
    """Place a cluster, change it, and count."""
    began_s = process_time()
    ring = first_ring("bench", case.nodes, case.partitions, case.replication)
    place_s = process_time() - began_s
    after = changed(ring, *altered(case))
    began_s = process_time()
    todo = steps(after)
    plan_s = process_time() - began_s
    moved = sum(step.target is not None for step in todo)
    return Outcome(_off(ring, ()), _off(after, todo), moved, least_moves(after), place_s, plan_s)


def lookup_us(ring: Ring) -> float:
    """Microseconds to find the partitions of a batch's points, by the hash of each: the best of many."""
    hashes = np.random.default_rng(1).integers(0, 1 << 64, BATCH, dtype=np.uint64)
    return min(timeit.repeat(lambda: ring.partition_of_hash(hashes), number=10, repeat=50)) / 10 * 1e6


def owners_us(ring: Ring) -> float:
    """Microseconds to find the owners of a batch's points as well."""
    hashes = np.random.default_rng(1).integers(0, 1 << 64, BATCH, dtype=np.uint64)
    return (
        min(timeit.repeat(lambda: ring.owner_table.take(ring.partition_of_hash(hashes), axis=0), number=10, repeat=50))
        / 10
        * 1e6
    )


def _node(at: int, zones: int, weight: float) -> Node:
    zone = f"z{at % zones if zones else at}"
    return Node(f"n{at:04}", "", f"tcp://10.0.{at // 250}.{at % 250 + 1}:5710", zone, weight, ACTIVE)


def altered(case: Case) -> tuple[list[Node], int]:
    """The nodes after the change, and the replication."""
    nodes, count = list(case.nodes), len(case.nodes)
    some = max(1, count // 20)
    added = [_node(count + at, ZONES[case.zones], nodes[at].weight) for at in range(some)]
    match case.change:
        case "add one":
            nodes += added[:1]
        case "add some":
            nodes += added
        case "remove one":
            nodes[0] = _draining(nodes[0])
        case "remove some":
            nodes[:some] = map(_draining, nodes[:some])
        case "replace":
            new = msgspec.structs.replace(added[0], zone=nodes[0].zone, weight=nodes[0].weight)
            nodes = [_draining(nodes[0]), *nodes[1:], new]
        case "weights":
            nodes[::3] = (msgspec.structs.replace(node, weight=2 * node.weight) for node in nodes[::3])
        case "zone":
            nodes[0] = msgspec.structs.replace(nodes[0], zone=nodes[1].zone)
    return nodes, case.replication + {"more owners": 1, "fewer owners": -1}.get(case.change, 0)


def _draining(node: Node) -> Node:
    return msgspec.structs.replace(node, state=DRAINING)


def _off(ring: Ring, todo: Sequence[Any]) -> float:
    """How far the node that is farthest is from its share when the steps are done."""
    counts = {node.id: len(ring.owned_partitions(node.id)) for node in ring.nodes}
    for _, source, target in todo:
        for node_id, more in (source, -1), (target, 1):
            if node_id is not None:
                counts[node_id] += more
    return float(np.abs(np.array(list(counts.values())) - shares(ring)).max())


def _summary(size: int, cases: Sequence[Case], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    zone = [outcome.beyond for case, outcome in zip(cases, outcomes, strict=True) if case.change == "zone"]
    worst = max(range(len(cases)), key=lambda at: outcomes[at].beyond if cases[at].change != "zone" else -1.0)
    return {
        "nodes": size,
        "cases": len(cases),
        "partitions": cases[0].partitions,
        "off": max(max(each.off, each.off_after) for each in outcomes),
        "beyond_least": outcomes[worst].beyond,
        "beyond_least_in": f"{cases[worst].change}, {cases[worst].replication} owners, zones {cases[worst].zones}",
        "zone_beyond_least": max(zone, default=None),
        "place_s": max(each.place_s for each in outcomes),
        "plan_s": max(each.plan_s for each in outcomes),
    }


@click.command()
@click.option("--cases", default=CASES, show_default=True, help="Clusters of each size.")
@click.option("--most-nodes", default=SIZES[-1], show_default=True, help="Leave larger clusters out.")
@click.option("--seed", default=1, show_default=True, help="Of the draws.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def ring(cases: int, most_nodes: int, seed: int, as_json: bool) -> None:
    """Balance, moves and times of placement, by simulation; the lookup of a batch."""
    rows = []
    for size in (size for size in SIZES if size <= most_nodes):
        chance = random.Random(f"{seed} {size}")
        drawn = [draw(size, chance) for _ in range(cases)]
        rows.append(_summary(size, drawn, [simulate(case) for case in drawn]))
        if not as_json:
            click.echo(f"{size} nodes: {cases} clusters simulated", err=True)
    nodes = [_node(at, 10, 1.0) for at in range(min(most_nodes, SIZES[-1]))]
    large = first_ring("bench", nodes, MAX_PARTITIONS, min(3, len(nodes)))
    report = {"sizes": rows, "lookup_us": lookup_us(large), "lookup_of_owners_us": owners_us(large)}
    if as_json:
        click.echo(json.dumps(report))
        return
    table = new_table(
        ">nodes", ">clusters", ">partitions", ">off its share", ">beyond least moves", ">zone changes", ">place",
        ">plan", "beyond it most in",
    )  # fmt: skip
    for row in rows:
        zone = row["zone_beyond_least"]
        table.add_row(
            str(row["nodes"]), str(row["cases"]), str(row["partitions"]), f"{row['off']:.2f}",
            f"{row['beyond_least']:.2%}", "-" if zone is None else f"{zone:.0%}",
            f"{row['place_s']:.2f} s", f"{row['plan_s']:.2f} s", row["beyond_least_in"],
        )  # fmt: skip
    Output(as_json).say(table)
    click.echo(f"partitions of {BATCH:,} points: {report['lookup_us']:.0f} us, "
               f"with all owners: {report['lookup_of_owners_us']:.0f} us")  # fmt: skip
