"""Storage nodes and a query worker as processes, filled over the bus: what tests of answers need, and no more."""

import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Final, Self

import numpy as np

from common import bus, protocol
from common.points import PointBatch
from common.ring import Node
from common.ringbuild import first_ring
from common.ringstore import FileStore
from common.series import partition_of, series_key
from tests.naive_query import Series
from tests.support import Children, free_port, free_port_range, wait_until

PARTITIONS: Final = 64
READY_S: Final = 60.0
BATCH_ROWS: Final = 50_000

Row = tuple[Series, int, float]


class Queried:
    """A cluster without broker and bridge. Ends with the children."""

    def __init__(
        self,
        children: Children,
        home: Path,
        nodes: int,
        settings: Mapping[str, Any] | None = None,
        replication: int = 1,
    ) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.children = children
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._home = home
        self._sequence = 0
        endpoints = [f"tcp://127.0.0.1:{free_port_range(3)}" for _ in range(nodes)]
        made = [Node(f"ing{at}", "", end, f"ing{at}", 1.0, "active") for at, end in enumerate(endpoints, 1)]
        self.ring = first_ring("c" * 16, made, PARTITIONS, replication)
        (home / "minitrue.toml").write_text('paths.data = "data"\ncluster.ring_store = "file:ring.json"\n')
        FileStore(home / "ring.json").save(self.ring, 0)
        self._environment = {"MINITRUE_CONFIG": str(home / "minitrue.toml"), "MINITRUE__LOG__LEVEL": "warning"}
        for name, value in ({"bus.heartbeat_s": 0.5, "cluster.ring_poll_s": 0.1} | dict(settings or {})).items():
            self._environment[f"MINITRUE__{name.replace('.', '__')}".upper()] = str(value)
        self.nodes: dict[str, Any] = {}
        for node in made:
            self.start(node.id)
        self.query = self._run("query", "workers.query", "--port", str(self.port))

    def start(self, node: str, *within: str) -> None:
        """Start a node. within: a module that runs it, and its arguments."""
        self.nodes[node] = self._run(node, *within, "workers.storage", "--node-id", node)

    def _run(self, name: str, *command: str) -> Any:
        with (self._home / f"{name}.log").open("ab") as log:
            environment = os.environ | self._environment
            command = (sys.executable, "-m", *command)
            return self.children.start(*command, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def wait_ready(self) -> Self:
        """Wait until every node answers the query worker."""
        deadline = time.monotonic() + READY_S
        while (answer := self._readiness())[0] != 200:
            assert time.monotonic() < deadline, f"the cluster in {self._home} is not ready: {answer}"
            time.sleep(0.05)
        return self

    def _readiness(self) -> tuple[int, Any]:
        for name, process in {**self.nodes, "query": self.query}.items():
            assert process.poll() is None, f"{name} has ended: {self.log(name)[-2000:]}"
        try:
            return self.call("GET", "/readyz")
        except (OSError, http.client.HTTPException) as error:
            return 0, error

    def is_alive(self) -> bool:
        """Whether /healthz answers."""
        try:
            return self.call("GET", "/healthz")[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def log(self, name: str) -> str:
        """What a process has logged."""
        return (self._home / f"{name}.log").read_text(errors="replace")

    # Asking

    def call(
        self,
        method: str,
        path: str,
        fields: Any = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 30.0,
    ) -> tuple[int, Any]:
        """Status and answer: JSON decoded, anything else as bytes. fields: a body, encoded unless it is bytes."""
        body = fields if fields is None or isinstance(fields, bytes) else json.dumps(fields).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            connection.request(method, path, body, dict(headers or {}))
            reply = connection.getresponse()
            data = reply.read()
            is_json = reply.headers.get_content_type() == "application/json"
            return reply.status, json.loads(data) if is_json else data
        finally:
            connection.close()

    def ask(self, **fields: Any) -> tuple[int, Any]:
        """POST /query."""
        return self.call("POST", "/query", fields)

    # Filling

    def push(self, rows: Iterable[Row], batch_rows: int = BATCH_ROWS, rank: int = 0) -> None:
        """Store points in their order, as a bridge would; returns when every one is acked, and so visible.

        rank: of the one owner that gets each, the first is 0.
        """
        sender = bus.Bus()
        acks, reply_to = sender.pull("tcp://127.0.0.1:*")
        pushes = {node.id: sender.push(node.ingest_endpoint) for node in self.ring.nodes}
        try:
            for part in _parts(rows, batch_rows):
                waiting = 0
                for node, batch in self._by_owner(part, rank):
                    frames = protocol.pack(protocol.BATCH, self._header(node, reply_to), batch.encode())
                    wait_until(lambda node=node, frames=frames: pushes[node].send(frames), READY_S, f"{node} to listen")
                    waiting += len(batch)
                while waiting:
                    waiting -= _acked(acks)
        finally:
            sender.close()

    def _header(self, node: str, reply_to: str) -> protocol.Header:
        self._sequence += 1
        ring, epoch, number = self.ring, self.ring.epoch, self._sequence
        return protocol.Header(
            1, ring.cluster, node, "test", 1, number, epoch, ring.hash, born=epoch, reply_to=reply_to
        )

    def _by_owner(self, rows: list[Row], rank: int) -> Iterator[tuple[str, PointBatch]]:
        keys: dict[Series, bytes] = {}
        by_node: dict[str, list[tuple[bytes, int, float]]] = {}
        owner: dict[Series, str] = {}
        for series, at, value in rows:
            if series not in keys:
                keys[series] = series_key(series[0], series[1], dict(series[2]))
                owner[series] = self.ring.owners(partition_of(keys[series], self.ring.partitions))[rank].id
            by_node.setdefault(owner[series], []).append((keys[series], at, value))
        for node, mine in by_node.items():
            table: dict[bytes, int] = {}
            index = np.array([table.setdefault(key, len(table)) for key, _, _ in mine], np.uint32)
            times = np.array([at for _, at, _ in mine], np.int64)
            yield node, PointBatch(list(table), index, times, np.array([value for _, _, value in mine]))


def _parts(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    source = iter(rows)
    while part := list(islice(source, size)):
        yield part


def _acked(acks: bus.Socket) -> int:
    assert bus.Poller([acks]).poll(READY_S), f"no ack within {READY_S} s"
    ack = protocol.decode_body(protocol.unpack(acks.receive() or []).body, protocol.Ack)
    assert not ack.error and not ack.refused, ack
    return ack.rows
