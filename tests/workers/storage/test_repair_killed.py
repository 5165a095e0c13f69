"""Real nodes, killed with -9 in the middle of a refill and of a pull: they go on, and end with equal digests."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common import bus, protocol
from common.config import Storage
from common.points import PointBatch
from common.protocol import DigestsReply, Header, JobsReply, JobState, Message
from common.ring import Ring
from common.ringbuild import first_ring
from common.ringmoves import begin, changed, steps
from common.ringstore import FileStore, Mark
from common.series import partition_of
from tests.support import Children, wait_until
from tests.workers.storage.replicas import ring_of
from tests.workers.storage.support import PARTITIONS, key
from workers.storage.store import LoggedBatch, Store

ROWS, SERIES = 4000, 60
SLOW = "200000"  # bytes a second: a refill takes seconds


class Process:
    """A node of a ring file that is started, killed and asked."""

    def __init__(self, children: Children, home: Path, ring: Ring, name: str) -> None:
        self.children = children
        self.home = home
        self.name = name
        self.place = ring.node(name)
        self.sequence = 0
        self.process: Any = None

    def start(self, rate: str = "0") -> None:
        environment = os.environ | {
            "MINITRUE_CONFIG": str(self.home / "minitrue.toml"),
            "MINITRUE__STORAGE__REPAIR_RATE_BYTES": rate,
            "MINITRUE__CLUSTER__RING_POLL_S": "0.1",
        }
        with (self.home / f"{self.name}.log").open("ab") as log:
            self.process = self.children.start(
                sys.executable, "-m", "workers.storage", "--node-id", self.name,
                env=environment, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        wait_until(lambda: self._request(protocol.STATUS, {}).kind == protocol.REPLY, 30.0, "an open store")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def ask(self, kind: bytes, body: Any) -> Message:
        message = self._request(kind, body)
        assert message.kind == protocol.REPLY, message.body
        return message

    def _request(self, kind: bytes, body: Any) -> Message:
        self.sequence += 1
        header = Header(1, "cluster", self.name, "ringctl", 7, self.sequence, 0, "")
        return bus.request(self.place.request_endpoint, kind, header, body, 30.0)

    def jobs(self, kind: bytes = protocol.JOBS, body: Any = None) -> list[JobState]:
        message = self.ask(kind, protocol.JobsRequest() if body is None else body)
        return protocol.decode_body(message.body, JobsReply).jobs

    def status(self) -> dict[str, Any]:
        return protocol.decode_body(self.ask(protocol.STATUS, {}).body, dict[str, Any])

    def digests(self, partitions: list[int]) -> tuple[bytes, bytes]:
        asked = protocol.bitmap(partitions, PARTITIONS)
        message = self.ask(protocol.DIGESTS, protocol.DigestsRequest(0, asked))
        reply = protocol.decode_body(message.body, DigestsReply)
        assert reply.partitions == asked
        return reply.counts, reply.digests


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "minitrue.toml").write_text('paths.data = "data"\ncluster.ring_store = "file:data/ring.json"\n')
    return tmp_path


@pytest.fixture
def rings(home: Path) -> FileStore:
    return FileStore(home / "data" / "ring.json")


def fill(home: Path, ring: Ring, name: str) -> None:
    """Put points into the directory of a node that does not run: those of the partitions that it owns."""
    store = Store.open(home / "data" / "storage" / name, "cluster", name, PARTITIONS, Storage(head_rows=100_000))
    chance = np.random.default_rng(5)
    owned = set(ring.owned_partitions(name).tolist())
    for number in range(SERIES):
        values = chance.random(ROWS)
        each = key(f"d{number}")
        if partition_of(each, PARTITIONS) in owned:
            batch = PointBatch([each], np.zeros(ROWS, np.uint32), np.arange(ROWS, dtype=np.int64) * 10**9, values)
            body = batch.encode()
            store.append([LoggedBatch(body, 1, PointBatch.decode(body))])
    store.seal()
    store.close()


def in_the_middle(node: Process) -> JobState:
    """A job of the node that has brought something, and is not done."""
    (job,) = wait_until(lambda: [job for job in node.jobs() if job.points], 60.0, "something pulled")
    assert job.state in ("running", "waiting")
    return job


def test_a_wiped_node_is_filled_again_though_it_and_its_co_owner_are_killed(
    children: Children, home: Path, rings: FileStore
) -> None:
    ring = ring_of(2, 2)
    rings.save(ring, 0)
    fill(home, ring, "n1")
    rings.claim("n2", "0" * 32)  # the store that was there before
    full, wiped = (Process(children, home, ring, name) for name in ("n1", "n2"))
    full.start()
    wiped.start(SLOW)
    first = in_the_middle(wiped)
    assert first.kind == "refill"
    wiped.kill()
    assert Mark("n2", "n2") in rings.marks()
    wiped.start(SLOW)
    in_the_middle(wiped)
    full.kill()
    wait_until(lambda: [job for job in wiped.jobs() if job.error], 60.0, "says why it waits")
    full.start()
    wiped.kill()
    wiped.start()
    wait_until(lambda: wiped.status()["behind"] is None and not rings.marks(), 60.0, "current again")
    assert wiped.digests(list(range(PARTITIONS))) == full.digests(list(range(PARTITIONS)))


def test_a_pull_goes_on_though_source_and_target_are_killed(children: Children, home: Path, rings: FileStore) -> None:
    whole = ring_of(2, 1)
    one = whole.node("n1")
    ring = changed(_only(whole, one.id), whole.nodes, 1)
    rings.save(_only(whole, one.id), 0)
    rings.save(ring, 1)
    fill(home, ring, "n1")
    moving = [step for step in steps(ring) if step.target]
    ring = begin(ring, moving)
    rings.save(ring, 2)
    partitions = [step.partition for step in moving]
    source, target = (Process(children, home, ring, name) for name in ("n1", "n2"))
    source.start()
    target.start()
    asked = protocol.PullRequest(protocol.bitmap(partitions, PARTITIONS), "n1", int(SLOW))
    target.jobs(protocol.PULL, asked)
    in_the_middle(target)
    source.kill()
    wait_until(lambda: target.jobs()[0].error, 60.0, "says why it waits")
    source.start()
    points = target.jobs()[0].points
    wait_until(lambda: target.jobs()[0].points > points, 60.0, "goes on")
    target.kill()
    target.start()
    assert target.jobs() == []
    target.jobs(protocol.PULL, protocol.PullRequest(asked.partitions, "n1", 0))
    (job,) = wait_until(lambda: [job for job in target.jobs() if job.state == "done"], 60.0, "done")
    assert (job.equal + job.proven, job.moving) == (len(partitions), 0)
    assert target.digests(partitions) == source.digests(partitions)


def _only(ring: Ring, name: str) -> Ring:
    """A ring of one of the nodes."""
    return first_ring("cluster", [ring.node(name)], PARTITIONS, 1)
