"""Storage nodes and a query worker as processes, filled over the bus: what bench query asks.

Points are pushed as batches to their owners and acked before anything is asked. Beside them, where wanted, the floor
(query_floor.py): the same HTTP stack asking three processes that answer with themselves.
"""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import click
import numpy as np
import numpy.typing as npt

from common import bus, protocol
from common.points import PointBatch
from common.ring import Node, Ring
from common.ringbuild import first_ring
from common.ringstore import FileStore
from common.series import partition_of
from tools.bench.data import Dataset, Rows, series_keys
from tools.bench.drain import free_port_runs

NODES: Final = 3
BATCH_ROWS: Final = 100_000
READY_S: Final = 60.0
REST_S: Final = 300.0
INCARNATION: Final = 1
ROOT: Final = Path(__file__).resolve().parents[2]


class Running(NamedTuple):
    """HTTP ports, 0 for no floor; and the ring."""

    query: int
    floor: int
    ring: Ring


@contextmanager
def cluster(
    scratch: Path, datasets: list[Dataset], threads: int, floor: bool = False, replication: int = 1
) -> Iterator[Running]:
    """Three nodes that hold the points, and a query worker, in a directory."""
    query_port, floor_port, *others = (port for port, _, _ in free_port_runs(2 + 2 * NODES))
    echoes, ports = others[:NODES], others[NODES:]
    nodes = [
        Node(f"ing{number + 1}", "", f"tcp://127.0.0.1:{port}", "local", 1.0, "active")
        for number, port in enumerate(ports)
    ]
    ring = first_ring("bench", nodes, 1024, replication)
    FileStore(scratch / "ring.json").save(ring, 0)
    environment = os.environ | {
        "MINITRUE__CLUSTER__RING_STORE": f"file:{scratch}/ring.json",
        "MINITRUE__PATHS__DATA": str(scratch),
        "MINITRUE__QUERY__THREADS": str(threads),
        "MINITRUE__LOG__LEVEL": "warning",
    }
    commands = [["workers.storage", "--node-id", node.id] for node in nodes]
    commands += [["workers.query", "--port", str(query_port)]]
    if floor:
        commands += [["tools.bench.query_floor", "echo", str(port)] for port in echoes]
        commands += [["tools.bench.query_floor", "serve", str(floor_port), str(threads), *map(str, echoes)]]
    running = [subprocess.Popen([sys.executable, "-m", *each], env=environment, cwd=ROOT) for each in commands]
    try:
        fill(ring, datasets)
        wait_until_at_rest(f"http://127.0.0.1:{query_port}")
        if floor:
            _wait_for_answer(f"http://127.0.0.1:{floor_port}/query", b"{}")
        yield Running(query_port, floor_port if floor else 0, ring)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


def fill(ring: Ring, datasets: list[Dataset]) -> None:
    """Store all points at all of their owners, and wait until every batch is acked."""
    sender = bus.Bus()
    acks, reply_to = sender.pull("tcp://127.0.0.1:*")
    pushes = {node.id: sender.push(node.ingest_endpoint) for node in ring.nodes}
    sequence = 0
    for points in datasets:
        keys = series_keys(points.series)
        owners = [ring.owners(partition_of(key, ring.partitions)) for key in keys]
        ids = np.array([[ring.nodes.index(node) for node in each] for each in owners])
        for rows in points.parts(BATCH_ROWS):
            for number, batch in (each for column in ids.T for each in _by_node(keys, column, rows)):
                sequence += 1
                node = ring.nodes[number].id
                header = protocol.Header(
                    protocol.VERSION, ring.cluster, node, "bench", INCARNATION, sequence, ring.epoch, ring.hash,
                    born=ring.epoch, reply_to=reply_to,
                )  # fmt: skip
                _push(pushes[node], protocol.pack(protocol.BATCH, header, batch.encode()))
                _wait_for_ack(acks, len(batch))
    sender.close()


def ask(port: int, path: str, body: str) -> bytes:
    """The answer to a question; GET without a body. Raises ClickException for any other than 200."""
    try:
        found: bytes = urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", body.encode() or None).read()
    except urllib.error.HTTPError as error:
        raise click.ClickException(f"{path} {body}: {error.code} {error.read()[:500]!r}") from error
    return found


def _by_node(keys: list[bytes], nodes: npt.NDArray[np.int64], rows: Rows) -> Iterator[tuple[int, PointBatch]]:
    """The rows as batches, with the place of the node that owns them."""
    whole = PointBatch(keys, rows.owners, rows.times, rows.values)
    owners = nodes[rows.owners]
    for number in np.unique(owners).tolist():
        yield number, whole.take(owners == number)


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


def wait_until_at_rest(url: str) -> None:
    """Wait until the worker answers for all nodes, and none of them has anything to seal or compact."""
    deadline = time.monotonic() + REST_S
    while True:
        nodes = json.loads(_wait_for_answer(url + "/readyz"))["nodes"].values()
        if all(node["ready"] and not node["sealing_backlog"] + node["compaction_backlog"] for node in nodes):
            return
        if time.monotonic() > deadline:
            raise click.ClickException(f"the nodes did not come to rest within {REST_S:g} s")
        time.sleep(0.2)


def _wait_for_answer(url: str, body: bytes | None = None) -> bytes:
    deadline = time.monotonic() + READY_S
    while True:
        try:
            found: bytes = urllib.request.urlopen(url, body, READY_S).read()
            return found
        except OSError as error:
            if time.monotonic() > deadline:
                raise click.ClickException(f"{url} did not answer within {READY_S:g} s: {error}") from error
            time.sleep(0.05)
