"""Storage nodes at work in threads of this process: real stores, sockets and a ring store, a client and a bridge."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common import bus, config, process, protocol
from common.protocol import Ack, Header, Message
from common.ring import Node as RingNode
from common.ring import Ring
from common.ringbuild import first_ring
from common.ringstore import FileStore, RingView
from tests.support import free_port_range, wait_until
from tests.workers.storage.support import PARTITIONS, Row, batch_of
from workers.storage import running
from workers.storage.behind import Behind
from workers.storage.ingest import Ingest
from workers.storage.node import Node
from workers.storage.porter import Porter
from workers.storage.serve import Server
from workers.storage.store import Store

EVERYWHERE = protocol.bitmap(range(PARTITIONS), PARTITIONS)


class Cluster:
    """A ring store and nodes that can be started."""

    def __init__(self, directory: Path, nodes: Sequence[str], replication: int, patch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.rings = FileStore(directory / "ring.json")
        places = [RingNode(each, "", f"tcp://127.0.0.1:{free_port_range(3)}", "z", 1.0, "active") for each in nodes]
        self.rings.save(first_ring("c1", places, PARTITIONS, replication), 0)
        self.alive: dict[str, Alive] = {}
        patch.setattr(running, "_export", self._note)

    def start(self, node_id: str, **settings: Any) -> "Alive":
        """Start a node and wait until it answers."""
        made = self.alive[node_id] = Alive(self, node_id, config.Storage(read_threads=1, **settings))
        made.start()
        return made

    def save(self, change: Callable[[Ring], Ring]) -> Ring:
        """Commit the next ring."""
        ring = change(self.ring)
        self.rings.save(ring, ring.epoch - 1)
        return ring

    @property
    def ring(self) -> Ring:
        ring = self.rings.load()
        assert ring is not None
        return ring

    def close(self) -> None:
        for each in self.alive.values():
            each.stop()

    def _note(self, node: Node, ingest: Ingest, server: Server, store: Store, *_: Any) -> None:
        alive = self.alive[node.node_id]
        alive.node, alive.ingest, alive.server, alive.store = node, ingest, server, store


class Alive:
    """One node. node, ingest, server, store: its parts."""

    node: Node
    ingest: Ingest
    server: Server
    store: Store

    def __init__(self, cluster: Cluster, node_id: str, settings: config.Storage) -> None:
        self.cluster = cluster
        self.id = node_id
        self.directory = cluster.directory / node_id
        self.place = cluster.ring.node(node_id)
        self._settings = config.Settings(storage=settings)
        self._stop = process.Stop()
        self._sequence = 0
        self.error: BaseException | None = None

    def start(self) -> None:
        """Let it run until it answers."""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._bus = bus.Bus()
        self._client = self._bus.dealer(self.place.request_endpoint)
        self._push = self._bus.push(self.place.ingest_endpoint)
        self._acks, self._reply_to = self._bus.pull("tcp://127.0.0.1:*")
        wait_until(lambda: self.error or self._client.connected(), what="a connection")
        if self.error:
            raise self.error
        wait_until(lambda: self.error or self.ask(protocol.STATUS, {}).kind == protocol.REPLY, what="an open store")

    def stop(self) -> None:
        """End it in an orderly way; nothing when it has ended."""
        if not self._stop.is_set():
            self._stop.set()
            self._thread.join(20.0)
            self._bus.close()

    @property
    def behind(self) -> Behind:
        assert self.server.behind is not None
        return self.server.behind

    def _run(self) -> None:
        node_bus = bus.Bus()
        try:
            view = RingView(self.cluster.rings, self.cluster.ring, 3600.0)  # whom nobody tells looks in an hour
            sockets = (
                node_bus,
                node_bus.pull(self.place.ingest_endpoint)[0],
                node_bus.router(self.place.request_endpoint),
                node_bus.publisher(self.place.live_endpoint),
            )
            with Porter(sockets[2], "c1", self.id) as porter:
                running.run(self._settings, self._stop, self.id, self.directory, view, sockets, porter)
        except BaseException as error:
            self.error = error
        finally:
            node_bus.close()

    def ask(self, kind: bytes, body: Any, epoch: int = 0) -> Message:
        """Ask by a ring of that epoch; what comes back."""
        self.send(kind, body, epoch)
        return self.answer()

    def send(self, kind: bytes, body: Any, epoch: int = 0) -> int:
        """Send a request; its sequence."""
        self._sequence += 1
        header = Header(1, "c1", self.id, "query1", 7, self._sequence, epoch, "")
        assert self._client.send(protocol.pack(kind, header, body))
        return self._sequence

    def answer(self) -> Message:
        assert bus.Poller([self._client]).poll(10.0), "no answer"
        return protocol.unpack(self._client.receive() or [])

    def error_of(self, kind: bytes, body: Any, epoch: int = 0) -> str:
        """The code of the error that is the answer."""
        message = self.ask(kind, body, epoch)
        assert message.kind == protocol.ERROR, message
        return protocol.decode_body(message.body, protocol.ErrorReply).error

    def status(self) -> dict[str, Any]:
        return protocol.decode_body(self.ask(protocol.STATUS, {}).body, dict[str, Any])

    def count(self, device: str, epoch: int = 0, partitions: bytes = EVERYWHERE) -> protocol.AggregateReply:
        """What is answered about a device."""
        message = self.ask(protocol.AGGREGATE, aggregate(device, partitions), epoch)
        assert message.kind == protocol.REPLY, message
        return protocol.decode_body(message.body, protocol.AggregateReply)

    def write(self, rows: Sequence[Row], epoch: int) -> Ack:
        """Push a batch as a bridge of that epoch does; its ack."""
        self._sequence += 1
        sequence = self._sequence
        header = Header(1, "c1", self.id, "bridge1", 7, sequence, epoch, "", 0, epoch, self._reply_to)
        frames = protocol.pack(protocol.BATCH, header, batch_of(rows).body)
        wait_until(lambda: self._push.send(frames), what="the node to take it")
        while True:
            assert bus.Poller([self._acks]).poll(10.0), "no ack"
            message = protocol.unpack(self._acks.receive() or [])
            if message.header.re == sequence:
                return protocol.decode_body(message.body, Ack)

    def partition_of(self, key: bytes) -> int:
        return int(self.store.partitions_of([key])[0])


def aggregate(device: str, partitions: bytes = EVERYWHERE) -> protocol.AggregateRequest:
    return protocol.AggregateRequest(partitions, device, "temperature", None, None, None)


def only(*partitions: int) -> bytes:
    """A bitmap."""
    return protocol.bitmap(partitions, PARTITIONS)


def members(bitmap: bytes) -> list[int]:
    return protocol.members(bitmap)


def listed(partitions: np.ndarray[Any, np.dtype[np.bool_]]) -> list[int]:
    return [int(each) for each in np.flatnonzero(partitions)]
