"""bench query: POST /query over three storage nodes, beside the least that such a query can cost.

The floor is the same HTTP stack asking three processes that answer with themselves (query_floor.py). Both are
measured in turn, several times, and the best of each counts: what else the machine does is noise that only adds.
The points are a seeded walk with two decimals, one per second, pushed over the bus and acked before it begins.
It does not show queries while points arrive, nor clients on other machines.
"""

import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from common import bus, protocol
from common.points import PointBatch
from common.ring import Node, Ring
from common.ringbuild import first_ring
from common.ringstore import FileStore
from common.series import partition_of, series_key
from tools.bench.http_load import Measured, client_name, load

NODES: Final = 3
SHORT_POINTS: Final = 10_000  # of the series that the small queries ask for
BATCH_ROWS: Final = 100_000
BEGIN_S: Final = 1_700_000_000
NS: Final = 1_000_000_000
READY_S: Final = 60.0
INCARNATION: Final = 1
BUSY: Final = 16  # connections of the busy measurement
ROOT: Final = Path(__file__).resolve().parents[2]


@click.command()
@click.option("--seconds", default=2.0, show_default=True, help="Length of one measurement.")
@click.option("--rounds", default=3, show_default=True, help="Measurements of each, taken in turn; the best counts.")
@click.option("--points", default=5_000_000, show_default=True, help="Points of the long series.")
@click.option("--threads", default=16, show_default=True, help="query.threads.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def query(seconds: float, rounds: int, points: int, threads: int, as_json: bool) -> None:
    """POST /query over three nodes, against the floor of its stack."""
    best: dict[str, Measured] = {}
    with tempfile.TemporaryDirectory() as scratch, cluster(Path(scratch), points, threads) as ports:
        for _ in range(rounds):
            for name, (port, body, connections) in measurements(ports).items():
                found = load(port, "/query", body, connections, seconds)
                best[name] = better(best.get(name), found)
    report = {
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "client": client_name(),
        "rounds": rounds,
        "long_points": points,
        "p50_over_floor": best["query"].p50_ms / best["floor"].p50_ms,
        "measured": {name: found._asdict() for name, found in best.items()},
    }
    click.echo(json.dumps(report) if as_json else table(report))


def measurements(ports: dict[str, int]) -> dict[str, tuple[int, str, int]]:
    """Name to port, body and connections."""
    short, long = body("short"), body("long")
    edge = body("short", start_time=BEGIN_S + 1000.5, end_time=BEGIN_S + SHORT_POINTS - 1000.5)
    return {
        "floor": (ports["floor"], short, 1),
        "query": (ports["query"], short, 1),
        "query, part of the range": (ports["query"], edge, 1),
        "query, long series": (ports["query"], long, 1),
        f"floor, {BUSY} connections": (ports["floor"], short, BUSY),
        f"query, {BUSY} connections": (ports["query"], short, BUSY),
    }


def body(device: str, **more: float) -> str:
    """The JSON of an average."""
    return json.dumps({"device_id": device, "metric_name": "temperature", "operation": "avg"} | more)


def better(one: Measured | None, other: Measured) -> Measured:
    """The best of each figure, the sum of what failed."""
    if one is None:
        return other
    return Measured(
        min(one.p50_ms, other.p50_ms),
        min(one.p99_ms, other.p99_ms),
        max(one.per_s, other.per_s),
        one.failed + other.failed,
    )


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [f"{'':28}{'p50 ms':>9}{'p99 ms':>9}{'requests/s':>12}{'failed':>8}"]
    for name, found in report["measured"].items():
        lines.append(
            f"{name:28}{found['p50_ms']:9.3f}{found['p99_ms']:9.3f}{found['per_s']:12,.0f}{found['failed']:8}"
        )
    lines.append(f"p50 of a query is {report['p50_over_floor']:.2f} x the floor's (one connection)")
    lines.append(
        f"{NODES} nodes, long series of {report['long_points']:,} points; {report['cpus']} CPUs, "
        f"Python {report['python']}, client {report['client']}, best of {report['rounds']}"
    )
    return "\n".join(lines)


# The cluster


@contextmanager
def cluster(scratch: Path, points: int, threads: int) -> Iterator[dict[str, int]]:
    """Storage nodes with points, a query worker and the floor; their HTTP ports."""
    query_port, floor_port, *echoes = _free_ports(2 + NODES)
    nodes = [
        Node(f"ing{number + 1}", "", f"tcp://127.0.0.1:{port}", "local", 1.0, "active")
        for number, port in enumerate(_free_ports(NODES, 3))
    ]
    ring = first_ring("bench", nodes, 1024, 1)
    FileStore(scratch / "ring.json").save(ring, 0)
    environment = os.environ | {
        "MINITRUE__CLUSTER__RING_STORE": f"file:{scratch}/ring.json",
        "MINITRUE__PATHS__DATA": str(scratch),
        "MINITRUE__QUERY__THREADS": str(threads),
        "MINITRUE__LOG__LEVEL": "warning",
    }
    commands = [["workers.storage", "--node-id", node.id] for node in nodes]
    commands += [["workers.query", "--port", str(query_port)]]
    commands += [["tools.bench.query_floor", "echo", str(port)] for port in echoes]
    commands += [["tools.bench.query_floor", "serve", str(floor_port), str(threads), *map(str, echoes)]]
    running = [subprocess.Popen([sys.executable, "-m", *each], env=environment, cwd=ROOT) for each in commands]
    try:
        fill(ring, points)
        _wait_for_answer(query_port)
        _wait_for_answer(floor_port)
        yield {"query": query_port, "floor": floor_port}
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


def fill(ring: Ring, points: int) -> None:
    """Store the two series, and wait until every batch is acked."""
    sender = bus.Bus()
    acks, reply_to = sender.pull("tcp://127.0.0.1:*")
    pushes = {node.id: sender.push(node.ingest_endpoint) for node in ring.nodes}
    for device, count in (("short", SHORT_POINTS), ("long", points)):
        key = series_key(device, "temperature")
        node = ring.owners(partition_of(key, ring.partitions))[0].id
        for sequence, batch in enumerate(batches(key, count)):
            header = protocol.Header(
                protocol.VERSION, ring.cluster, node, "bench", INCARNATION, sequence, ring.epoch, ring.hash,
                born=ring.epoch, reply_to=reply_to,
            )  # fmt: skip
            _push(pushes[node], protocol.pack(protocol.BATCH, header, batch.encode()))
            _wait_for_ack(acks, len(batch))
    sender.close()


def batches(key: bytes, count: int) -> Iterator[PointBatch]:
    """A series' points, in batches."""
    walk = np.round(20 + np.cumsum(np.random.default_rng(1).normal(0, 0.1, count)), 2)
    times = (BEGIN_S + np.arange(count, dtype=np.int64)) * NS
    for begin in range(0, count, BATCH_ROWS):
        part = slice(begin, begin + BATCH_ROWS)
        yield PointBatch([key], np.zeros(len(times[part]), np.uint32), times[part], walk[part])


def _push(socket: bus.Socket, frames: list[bytes]) -> None:
    deadline = time.monotonic() + READY_S
    while not socket.send(frames):
        if time.monotonic() > deadline:
            raise click.ClickException(f"a storage node did not come up within {READY_S:g} s")
        time.sleep(0.02)


def _wait_for_ack(acks: bus.Socket, rows: int) -> None:
    if not bus.Poller([acks]).poll(READY_S):
        raise click.ClickException(f"no ack within {READY_S:g} s")
    ack = protocol.decode_body(protocol.unpack(acks.receive() or []).body, protocol.Ack)
    if ack.rows != rows:
        raise click.ClickException(f"ack of {ack.rows} rows, want {rows}: {ack.error} {ack.detail}")


def _wait_for_answer(port: int) -> None:
    deadline = time.monotonic() + READY_S
    request = urllib.request.Request(f"http://127.0.0.1:{port}/query", body("short").encode(), method="POST")
    while True:
        try:
            urllib.request.urlopen(request, timeout=READY_S).read()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise click.ClickException(f"port {port} did not answer within {READY_S:g} s: {error}") from error
            time.sleep(0.05)


def _free_ports(count: int, width: int = 1) -> list[int]:
    """First ports of `count` runs of `width` free ports."""
    found: list[int] = []
    while len(found) < count:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            first = probe.getsockname()[1]
        if all(abs(first - other) >= width for other in found):
            found.append(first)
    return found
