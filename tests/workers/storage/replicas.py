"""Nodes of one ring in this process: store, server thread and repair thread of each, over real sockets."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common import bus, config, process, protocol
from common.protocol import Header, JobsReply, JobState, Message
from common.ring import Node as RingNode
from common.ring import Ring
from common.ringbuild import first_ring
from common.ringstore import FileStore
from tests.support import free_port_range, wait_until
from tests.workers.storage.support import EVERYWHERE, PARTITIONS
from workers.storage import exchange
from workers.storage.behind import Behind
from workers.storage.exchange import Exchange
from workers.storage.here import Here
from workers.storage.node import Node, Ownership
from workers.storage.repair import Repair
from workers.storage.serve import Server
from workers.storage.store import Store

Rows = dict[tuple[bytes, int], float]


def ring_of(count: int, replication: int) -> Ring:
    """Nodes n1, n2, ... on free ports."""
    nodes = [
        RingNode(f"n{number}", "", f"tcp://127.0.0.1:{free_port_range(3)}", f"z{number}", 1.0, "active")
        for number in range(1, count + 1)
    ]
    return first_ring("cluster", nodes, PARTITIONS, replication)


class Replica:
    """One node. Its settings are those for storage, its rounds far away unless told otherwise."""

    def __init__(self, directory: Path, ring: Ring, name: str, rings: FileStore, **settings: Any) -> None:
        ours: dict[str, Any] = {"repair_interval_s": 1000.0, "repair_settle_s": 0.0, "repair_rate_bytes": 0} | settings
        self.settings = config.Storage(**ours)
        self.name = name
        self.place = ring.node(name)
        self.store = Store.open(directory / name, "cluster", name, PARTITIONS, self.settings)
        self.behind = Behind(self.store._layout, name, PARTITIONS, rings)
        self.node = Node("cluster", name, Ownership.of(ring, name))
        self.behind.changed = self.look
        self.bus = bus.Bus()
        self.repair = Repair(self.bus, self.node, Here(self.store, PARTITIONS), rings.marks, self.settings, self.behind)
        held = Exchange(self.store, lambda: self.node.view.held_bitmap)
        more = {**exchange.handlers(held), **self.repair.handlers()}
        router = self.bus.router(self.place.request_endpoint)
        self.server = Server(self.bus, router, self.node, self.store, 2, more=more, behind=self.behind)
        self.stop = process.Stop()
        self.threads = [
            threading.Thread(target=body, args=(self.stop,), daemon=True) for body in (self.server.run, self.repair.run)
        ]
        self.dealer = self.bus.dealer(self.place.request_endpoint)
        self.sequence = 0
        for thread in self.threads:
            thread.start()
        wait_until(self.dealer.connected, 10.0, "connected")

    def look(self) -> None:
        """What the node lacks has changed."""
        self.node.view = Ownership.of(self.node.view.ring, self.name, self.behind.partitions)

    def follow(self, ring: Ring) -> None:
        """Go by another ring from here on."""
        self.node.view = Ownership.of(ring, self.name, self.behind.partitions)

    def close(self) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()
        self.store.close()
        self.bus.close()

    # Questions

    def ask(self, kind: bytes, body: Any) -> Message:
        """A question of ringctl's, and its answer."""
        self.sequence += 1
        ring = self.node.view.ring
        header = Header(1, "cluster", self.name, "ringctl", 7, self.sequence, ring.epoch, ring.hash)
        assert self.dealer.send(protocol.pack(kind, header, body))
        assert bus.Poller([self.dealer]).poll(60.0), "no answer"
        return protocol.unpack(self.dealer.receive() or [])

    def jobs(self, kind: bytes, body: Any) -> list[JobState]:
        message = self.ask(kind, body)
        assert message.kind == protocol.REPLY, message.body
        return protocol.decode_body(message.body, JobsReply).jobs

    def job(self, number: int) -> JobState:
        (found,) = self.jobs(protocol.JOBS, protocol.JobsRequest([number]))
        return found

    def ended(self, number: int, timeout_s: float = 60.0) -> JobState:
        """A job when it has ended."""
        wait_until(lambda: self.job(number).state in ("done", "failed", "cancelled"), timeout_s, "job ended")
        return self.job(number)

    def pull(self, peer: str, partitions: Sequence[int] = range(PARTITIONS), rate: int | None = None) -> int:
        """Begin a pull: the number of the job."""
        request = protocol.PullRequest(protocol.bitmap(partitions, PARTITIONS), peer, rate)
        return self.jobs(protocol.PULL, request)[0].job

    def repaired(self, partitions: Sequence[int] = range(PARTITIONS), series: Sequence[bytes] = ()) -> JobState:
        """A repair, when it has ended."""
        request = protocol.RepairRequest(protocol.bitmap(partitions, PARTITIONS), list(series))
        return self.ended(self.jobs(protocol.REPAIR, request)[0].job)

    def digests(self) -> tuple[list[int], list[int]]:
        """Counts and digests of all partitions."""
        everything = Exchange(self.store, lambda: EVERYWHERE)
        reply = everything.digests(protocol.DigestsRequest(self.store.delete_number, EVERYWHERE))
        counts, digests = np.frombuffer(reply.counts, "<i8"), np.frombuffer(reply.digests, "<u8")
        return counts.tolist(), digests.tolist()
