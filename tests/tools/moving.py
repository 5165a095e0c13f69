"""A cluster in memory for tests of who moves partitions: nodes, a bridge and readers that follow the ring, each at its
own time, and a clock that goes on when somebody waits. Knows nothing of the mover.

Nodes, bridge and readers keep the rules of docs/architecture.md and no others. Points are numbers. What is checked:
a node that a reader takes for current has every point that was acknowledged.
"""

import functools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from common import protocol
from common.errors import MinitrueError, RingStoreError
from common.protocol import FenceReply, JobState
from common.ring import Ring
from common.ringrules import check_follows
from common.ringstore import Mark

FENCE_S = 10.0
T = TypeVar("T")
_NOTHING: frozenset[int] = frozenset()


@functools.lru_cache(100_000)
def owned(ring: Ring, node: str) -> frozenset[int]:
    """The partitions that a node owns."""
    return frozenset(ring.owned_partitions(node).tolist())


@functools.lru_cache(100_000)
def written(ring: Ring, node: str) -> frozenset[int]:
    """Those of which it takes points."""
    return frozenset(ring.written_partitions(node).tolist())


class Killed(BaseException):
    """The end of a mover's process."""


class NoAnswerError(MinitrueError):
    """A node that cannot be asked."""


@dataclass
class Job:
    """A pull: it ends when it is looked at for the second time or later."""

    number: int
    partitions: list[int]
    peer: str
    state: str = "running"
    unproven: set[int] = field(default_factory=set)


class FakeNode:
    """Stores points by partition; `ring` is the one it has adopted."""

    def __init__(self, name: str, ring: Ring) -> None:
        self.name = name
        self.ring = ring
        self.is_up = True
        self.rows: dict[int, set[int]] = {}
        self.fenced: dict[int, float] = {}
        self.closed: set[int] = set()
        self.incarnation = 1
        self.jobs: dict[int, Job] = {}

    def adopt(self, ring: Ring) -> None:
        if ring.epoch <= self.ring.epoch:
            return
        self.fenced = {p: until for p, until in self.fenced.items() if ring.since[p] == self.ring.since[p]}
        self.closed &= set(self.fenced)
        self.ring = ring
        for partition in [each for each in self.rows if each not in written(ring, self.name)]:
            del self.rows[partition]  # at once, where a node waits: nobody may rely on what it still has

    def lapse(self, now: float, stored: Ring) -> None:
        """The time of some fences is over: the ring store is looked at, and then they end."""
        if any(until <= now for until in self.fenced.values()):
            self.adopt(stored)
            self.fenced = {p: until for p, until in self.fenced.items() if until > now}
            self.closed &= set(self.fenced)

    def takes(self, partition: int, epoch: int) -> bool:
        return (
            self.is_up
            and epoch <= self.ring.epoch
            and epoch >= self.ring.since[partition]
            and partition not in self.fenced
            and partition in written(self.ring, self.name)
        )

    def answers(self, partition: int, epoch: int) -> bool:
        return (
            self.is_up
            and epoch <= self.ring.epoch
            and partition in owned(self.ring, self.name)
            and partition not in self.closed
        )


class World:
    """The ring store (it is one itself), all nodes, the bridge, and what goes wrong.

    chance: of each fault at each call. during: called within calls of the mover, for what happens meanwhile.
    """

    url = "memory:"
    remote = False

    def __init__(self, ring: Ring, seed: int, chance: Mapping[str, float] | None = None) -> None:
        self.random = random.Random(seed)
        self.chance = dict(chance or {})
        self.now = 1000.0
        self.rings = [ring]
        self.marked: set[Mark] = set()
        self.nodes = {node.id: FakeNode(node.id, ring) for node in ring.nodes}
        self.acked: dict[int, set[int]] = {p: set() for p in range(ring.partitions)}
        self.spools: dict[str, list[tuple[int, int, int]]] = {}
        self.bridge = ring
        self.points = 0
        self.note = ""
        self.busy = False
        self.during: Callable[[], None] = lambda: None
        self.lost: set[str] = set()  # that stay down

    # As a ring store

    @property
    def ring(self) -> Ring:
        return self.rings[-1]

    def load(self) -> Ring:
        self._happen()
        return self.ring

    def save(self, ring: Ring, expected_epoch: int) -> None:
        self._happen()
        self._kill()
        check_follows(ring, self.ring, expected_epoch, "memory")
        self.rings.append(Ring.loads(ring.dumps()))
        for node in ring.nodes:
            self.nodes.setdefault(node.id, FakeNode(node.id, ring))
        self._kill()
        if self._falls("save"):
            raise RingStoreError("the answer was lost")

    def marks(self) -> frozenset[Mark]:
        return frozenset(self.marked)

    def put_mark(self, mark: Mark) -> None:
        self.marked.add(mark)

    def remove_mark(self, mark: Mark) -> None:
        self.marked.discard(mark)

    def driver(self) -> str:
        return self.note

    def note_driver(self, text: str) -> None:
        self.note = text

    # As what a mover asks

    def statuses(self, ring: Ring, nodes: Sequence[str]) -> dict[str, dict[str, Any] | MinitrueError]:
        self._happen()
        found: dict[str, dict[str, Any] | MinitrueError] = {}
        for name in nodes:
            try:
                node = self._reached(name, ring)
                found[name] = {"epoch": node.ring.epoch, "bridges": {"bridge1": self._beat()}}
            except NoAnswerError as error:
                found[name] = error
        return found

    @staticmethod
    def together(calls: Sequence[Callable[[], T]]) -> list[T]:
        return [call() for call in calls]

    def pull(self, ring: Ring, node: str, partitions: Sequence[int], peer: str) -> JobState:
        self._happen()
        target = self._reached(node, ring)
        if not set(partitions) <= written(target.ring, node):
            raise NoAnswerError("not mine")
        for other in target.jobs.values():
            if other.state == "running" and not set(other.partitions).isdisjoint(partitions):
                other.state = "cancelled"
        job = Job(self.random.getrandbits(40), list(partitions), peer)
        target.jobs[job.number] = job
        return self._state(target, job)

    def job(self, ring: Ring, node: str, number: int) -> JobState | None:
        self._happen()
        target = self._reached(node, ring)
        job = target.jobs.get(number)
        if job is None:
            return None
        if job.state == "running" and self.random.random() < 0.5:
            self._work(target, job)
        return self._state(target, job)

    def fence(self, ring: Ring, node: str, partitions: Sequence[int], reads: bool) -> FenceReply:
        self._happen()
        source = self._reached(node, ring)
        if source.ring.epoch != ring.epoch:
            raise NoAnswerError("stale-epoch")
        fenced = written(source.ring, node) & set(partitions)
        source.fenced.update(dict.fromkeys(fenced, self.now + FENCE_S))
        source.closed |= fenced if reads else set()
        reply = FenceReply(
            source.ring.epoch, protocol.bitmap(sorted(fenced), ring.partitions), FENCE_S, source.incarnation
        )
        self._happen()
        return reply

    def clock(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += seconds
        self._happen()

    def live(self, moments: int = 30) -> None:
        """Let points come while nothing fails."""
        chance, self.chance = self.chance, {}
        for _ in range(moments):
            self.pause(0.1)
        self.chance = chance

    # What happens meanwhile

    def _falls(self, what: str) -> bool:
        return self.random.random() < self.chance.get(what, 0.0)

    def _kill(self) -> None:
        if self._falls("kill"):
            raise Killed

    def _happen(self) -> None:
        """Time goes on, points come, nodes and bridge look at the ring or do not; all of it is checked."""
        self._kill()
        self.now += self.random.random() * self.chance.get("slow", 0.01)
        for name, node in self.nodes.items():
            if self._falls("crash") and name not in self.lost:
                node.is_up = False
                node.jobs, node.fenced, node.closed = {}, {}, set()
                node.incarnation += 1
            elif not node.is_up and name not in self.lost and self.random.random() < 0.3:
                node.is_up = True
                node.adopt(self.ring)  # it begins with the ring of the store
            if node.is_up:
                node.lapse(self.now, self.ring)
                if self.random.random() < 0.2:
                    node.adopt(self.ring)
        for _ in range(self.random.randrange(3)):
            self._point()
        self._drain()
        self.check()
        if not self.busy:
            self.busy = True
            try:
                self.during()
            finally:
                self.busy = False

    def _point(self) -> None:
        """The bridge takes a point, sends it to all who take it, and acknowledges it where it may."""
        if self.random.random() < 0.3:
            self.bridge = self.ring
        partition, ring = self.random.randrange(self.ring.partitions), self.bridge
        self.points += 1
        missed = []
        for writer in ring.writers(partition):
            node = self.nodes[writer.id]
            if node.takes(partition, ring.epoch):
                node.rows.setdefault(partition, set()).add(self.points)
            elif not node.is_up:
                missed.append(writer.id)
            else:
                node.adopt(self.ring)
                self.bridge = self.ring  # refused: it looks at the ring, and would send again
                return
        for name in missed:
            self.marked.add(Mark(name, "bridge1"))
        if missed and self.ring.epoch != ring.epoch:
            self._unmark(missed)
            return  # the mark is durable, and the ring is another one by now: sent again by that
        for name in missed:
            self.spools.setdefault(name, []).append((partition, self.points, ring.epoch))
        self.acked[partition].add(self.points)

    def _beat(self) -> dict[str, Any]:
        oldest = {name: min(epoch for *_, epoch in spool) for name, spool in self.spools.items() if spool}
        return {"age_s": 0.0, "epoch": self.bridge.epoch, "oldest_epochs": oldest}

    def _unmark(self, names: Sequence[str]) -> None:
        for name in names:
            if not self.spools.get(name):
                self.marked.discard(Mark(name, "bridge1"))

    def _drain(self) -> None:
        """Spools go to all present writers; what one of them does not take stays."""
        for name, spool in self.spools.items():
            if not spool or self.random.random() < 0.5:
                continue
            ring = self.bridge = self.ring
            left = []
            for partition, point, epoch in spool:
                writers = [self.nodes[writer.id] for writer in ring.writers(partition)]
                is_old = epoch < ring.since.max()
                if is_old and not self.nodes[name].is_up:
                    writers = [node for node in writers if node.name != name]
                if all(node.takes(partition, ring.epoch) for node in writers):
                    for node in writers:
                        node.rows.setdefault(partition, set()).add(point)
                    if is_old and not self.nodes[name].is_up and ring.has(name):
                        left.append((partition, point, ring.epoch))  # to the others, and spooled again
                else:
                    left.append((partition, point, epoch))
            self.spools[name] = left
            if not left:
                self._unmark([name])

    def _work(self, target: FakeNode, job: Job) -> None:
        """A pull ends: rows of a current peer that has the target's ring."""
        peer = self.nodes.get(job.peer)
        if peer is None or not peer.is_up or any(mark.node == job.peer for mark in self.marked):
            return
        if not set(job.partitions) <= written(target.ring, target.name):
            job.state = "failed"
            return
        if peer.ring.epoch < target.ring.epoch:
            peer.adopt(self.ring)
        for partition in job.partitions:
            target.rows.setdefault(partition, set()).update(peer.rows.get(partition, ()))
        job.state = "done"

    def _reached(self, name: str, ring: Ring) -> FakeNode:
        node = self.nodes[name]
        if not node.is_up or self._falls("silent"):
            raise NoAnswerError(f"{name} does not answer")
        if ring.epoch > node.ring.epoch and self.random.random() < 0.8:
            node.adopt(self.ring)
        return node

    @staticmethod
    def _state(target: FakeNode, job: Job) -> JobState:
        bits = protocol.bitmap(sorted(job.unproven), target.ring.partitions)
        count = len(job.partitions)
        return JobState(
            job.number, "pull", job.state, job.peer, count, count if job.state == "done" else 0, 0, 0, 0, bits, 0, 0, 0,
            0.0, "",
        )  # fmt: skip

    # What must be so

    def check(self) -> None:
        """Each partition has owners that are current and have all, whatever ring a reader goes by."""
        behind = {mark.node for mark in self.marked}
        for ring in self.rings[-3:]:
            for name in {each.id for each in ring.nodes} - behind:
                node = self.nodes[name]
                for partition in owned(ring, name):
                    lacks = not self.acked[partition] <= node.rows.get(partition, _NOTHING)
                    assert not lacks or not node.answers(partition, ring.epoch), (
                        f"{name}, at epoch {node.ring.epoch}, answers a reader at {ring.epoch} without points of "
                        f"partition {partition}; stored is {self.ring.epoch}"
                    )

    def check_kept(self) -> None:
        """Each point that was acknowledged is at each owner of now, or in the spool for it."""
        for partition in range(self.ring.partitions):
            for owner in self.ring.owners(partition):
                spooled = {point for spool in self.spools.values() for where, point, _ in spool if where == partition}
                held = self.nodes[owner.id].rows.get(partition, set())
                assert self.acked[partition] <= held | spooled, (partition, owner.id)
