"""Delivery under random histories: loss, delay, repetition, refusal, silence, restarts of both sides, ring changes that
each side learns at its own time, disks and ring stores that fail. Simulated owners and clock, spools on a disk.
"""

from pathlib import Path
from typing import NamedTuple

import msgspec
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from common import clock, protocol
from common.points import PointBatch
from common.ring import Ring
from common.ringstore import Mark
from common.series import partition_of
from tests.workers.bridge.delivery_world import KEYS, PARTITIONS, World, ring
from workers.bridge.batch import Message
from workers.bridge.lane import UP

NODES = ("n0", "n1", "n2")
# By partition, cycled. The first two differ in some partitions only; n2 is in no partition of the last, and leaves.
TABLES = (
    [[0, 1], [1, 2], [2]],
    [[0, 1], [2, 1], [2]],
    [[1, 0], [2, 0], [0, 2]],
    [[0], [1], [2]],
    [[0, 1], [1], [0]],
)

At = tuple[bytes, int]  # a point: key, time


class Sent(NamedTuple):
    """A message of the broker's, and what it carries."""

    message: Message
    points: set[At]


def points_of(body: bytes) -> set[At]:
    points = PointBatch.decode(body)
    return {(points.keys[at], time) for at, time in zip(points.index.tolist(), points.times.tolist(), strict=True)}


def spooled(directory: Path) -> dict[str, set[At]]:
    """What whole records of spools say, read by the document: magic, length, CRC, an array with the points sixth."""
    found: dict[str, set[At]] = {node: set() for node in NODES}
    for path in directory.glob("*/*.spool"):
        data, at = path.read_bytes(), 0
        while len(data) - at >= 12 and data[at : at + 4] == b"MTSP":
            end = at + 12 + int.from_bytes(data[at + 4 : at + 8], "little")
            found[path.parent.name] |= points_of(msgspec.msgpack.decode(data[at + 12 : end])[5])
            at = end
    return found


def successor(before: Ring, table: list[list[int]]) -> Ring:
    """The next epoch: `since` is new only where the owners are others."""
    made = ring(before.epoch + 1, table, nodes=2 if table is TABLES[-1] else 3)
    since = before.since.copy()
    for partition in range(PARTITIONS):
        if {node.id for node in made.owners(partition)} != {node.id for node in before.owners(partition)}:
            since[partition] = made.epoch
    return Ring("c", made.epoch, PARTITIONS, made.replication, made.nodes, made.owner_table, since)


class AnyOrder(RuleBasedStateMachine):
    """At each moment: of a released message each point is, for every owner of some epoch since it was published, at
    that owner or durable in the spool for it, and then the owner's mark is set. In the end everything is at its owners,
    and nothing in spool or memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rings = [successor(ring(1, TABLES[0]), TABLES[0])]
        self.world = World(self.rings[0], batch_rows=3).start()
        self.known = dict.fromkeys(NODES, 0)  # the ring that each node acts on
        self.bridge_known = 0
        self.sent: list[Sent] = []
        self.born: dict[At, tuple[int, int]] = {}  # which ring the bridge had when it took a point in, and its epoch
        self.stored: dict[str, set[At]] = {node: set() for node in NODES}
        self.unanswered: list[tuple[str, protocol.Message]] = []
        self.old_acks: list[tuple[str, protocol.Message]] = []
        self.fenced: dict[str, set[int]] = {node: set() for node in NODES}
        self.time_ns = 0

    # The nodes.

    def collect(self) -> None:
        for node in self.world.owners:
            self.unanswered += [(node, batch) for batch in self.world.batches(node)]

    def refusal(self, node: str, batch: protocol.Message) -> str:
        """What the storage node would say by the ring that it knows."""
        known = self.rings[self.known[node]]
        partitions = [partition_of(key, PARTITIONS) for key in PointBatch.decode(batch.body).keys]
        if any(batch.header.epoch < known.since[partition] for partition in partitions):
            return protocol.ERR_STALE_EPOCH
        if any(node not in {writer.id for writer in known.writers(partition)} for partition in partitions):
            return protocol.ERR_NOT_MINE
        return protocol.ERR_MOVING if self.fenced[node].intersection(partitions) else ""

    def store(self, node: str, batch: protocol.Message) -> None:
        if batch.header.to_incarnation not in (0, self.world.owners[node].incarnation):
            return
        error = self.refusal(node, batch)
        if error:
            self.world.ack(node, batch, rows=0, error=error)
            return
        points = points_of(batch.body)
        assert {self.born[point][1] for point in points} == {batch.header.born}
        self.stored[node] |= points
        self.world.ack(node, batch)
        self.old_acks.append((node, batch))

    # What happens.

    @rule(series=st.lists(st.integers(0, 39), min_size=1, max_size=5))
    def publish(self, series: list[int]) -> None:
        self.time_ns += 1
        points = {(KEYS[n], self.time_ns) for n in series}
        for point in points:
            self.born[point] = self.bridge_known, self.rings[self.bridge_known].epoch
        self.sent.append(Sent(self.world.publish(*series, time_ns=self.time_ns), points))

    @rule(
        seconds=st.sampled_from([0.0, 0.1, 1.0, 6.0]),
        alive=st.sets(st.sampled_from(NODES)),
        looks=st.sampled_from([True, True, False]),
    )
    def pass_time(self, seconds: float, alive: set[str], looks: bool) -> None:
        """alive: these answer their beats meanwhile. looks: the bridge looks at the ring store where it is asked to."""
        before = self.world.hurried
        for _ in range(max(1, int(seconds))):
            self.world.tick(min(1.0, seconds))
            for node in sorted(alive & set(self.world.owners)):
                self.world.beat(node)
            if looks and self.world.hurried > before:
                self.learn_ring("bridge")
        self.collect()

    @rule()
    def stand_still(self) -> None:
        self.world.tick(60.0)
        self.collect()

    @precondition(lambda self: self.unanswered)
    @rule(data=st.data(), fate=st.sampled_from(["store", "store", "lose", "disk"]))
    def answer_one(self, data: st.DataObject, fate: str) -> None:
        node, batch = self.unanswered.pop(data.draw(st.integers(0, len(self.unanswered) - 1)))
        if node not in self.world.owners:
            return
        if fate == "store":
            self.store(node, batch)
        elif fate == "disk" and batch.header.to_incarnation == self.world.owners[node].incarnation:
            self.world.ack(node, batch, rows=0, error=protocol.ERR_DISK)

    @rule()
    def answer_all(self) -> None:
        answered, self.unanswered = self.unanswered, []
        for node, batch in answered:
            if node in self.world.owners:
                self.store(node, batch)

    @precondition(lambda self: self.old_acks)
    @rule(data=st.data())
    def repeat_an_ack(self, data: st.DataObject) -> None:
        node, batch = data.draw(st.sampled_from(self.old_acks[-20:]))
        if node in self.world.owners:
            self.world.ack(node, batch)

    @rule(node=st.sampled_from(NODES))
    def restart_a_node(self, node: str) -> None:
        if node in self.world.owners:
            self.world.owners[node].incarnation += 1
        self.unanswered = [(name, batch) for name, batch in self.unanswered if name != node]

    @rule(stop=st.booleans())
    def restart_the_bridge(self, stop: bool) -> None:
        """After a stop, or killed. What was not released the broker sends again."""
        if stop:
            self.world.delivery.flush(self.world.now, force=True)
            self.world.delivery.spool_rest(1 << 20)
            self.world.spools.flush(self.world.now)
            self.released_means_stored()
        again = [sent.points for sent in self.sent if sent.message.waiting]
        self.sent = [sent for sent in self.sent if not sent.message.waiting]
        self.unanswered, self.old_acks = [], []
        self.bridge_known = len(self.rings) - 1
        self.world.confirmed_s = clock.monotonic_s()
        self.world.begin(self.rings[-1])
        for points in again:
            self.publish(sorted({KEYS.index(key) for key, _ in points}))

    @rule(table=st.sampled_from([*TABLES, TABLES[-1]]), told=st.booleans())
    def change_ring(self, table: list[list[int]], told: bool) -> None:
        """told: the bridge learns it first."""
        self.rings.append(successor(self.rings[-1], table))
        if told:
            self.learn_ring("bridge")

    @rule(who=st.sampled_from(["bridge", *NODES]))
    def learn_ring(self, who: str) -> None:
        latest = self.rings[-1]
        if who != "bridge":
            changed = set((latest.since > self.rings[self.known[who]].epoch).nonzero()[0].tolist())
            self.fenced[who] -= changed
            self.known[who] = len(self.rings) - 1
            return
        self.world.confirmed_s = clock.monotonic_s()
        if self.bridge_known < len(self.rings) - 1:
            self.bridge_known = len(self.rings) - 1
            for node in set(self.world.owners) - {node.id for node in self.rings[-1].nodes}:
                del self.world.owners[node]
            self.world.delivery.adopt(self.rings[-1])

    @rule(broken=st.booleans())
    def break_or_mend_the_disk(self, broken: bool) -> None:
        self.world.disk.broken = broken

    @rule(away=st.booleans())
    def lose_or_find_the_ring_store(self, away: bool) -> None:
        self.world.store.away = away

    # What must hold.

    @invariant()
    def released_means_stored(self) -> None:
        held = spooled(self.world.directory / "spool")
        marked = {mark.node for mark in self.world.store.marks()}
        usable = {node: self.stored[node] | (held[node] if node in marked else set()) for node in NODES}
        for message, points in self.sent:
            if message.waiting == 0:
                for point in points:
                    assert self.is_safe(point, usable), f"released, but {point} is not where it has to be"

    def is_safe(self, point: At, usable: dict[str, set[At]]) -> bool:
        partition = partition_of(point[0], PARTITIONS)
        for known in self.rings[self.born[point][0] :]:
            if all(point in usable[owner.id] for owner in known.owners(partition)):
                return True
        return False

    def teardown(self) -> None:
        world = self.world
        world.disk.broken = world.store.away = False
        self.known = dict.fromkeys(NODES, len(self.rings) - 1)
        self.fenced = {node: set() for node in NODES}
        self.learn_ring("bridge")
        for _ in range(80):
            world.tick(0.5)
            world.beat()
            self.learn_ring("bridge")
            self.collect()
            self.answer_all()
            self.released_means_stored()
        assert not any(sent.message.waiting for sent in self.sent)
        assert world.delivery.is_idle
        assert world.delivery.memory_bytes == 0
        assert spooled(world.directory / "spool") == {node: set() for node in NODES}
        assert world.store.marks() == frozenset[Mark]()
        assert set(world.delivery.states.values()) == {UP}


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = hypothesis_settings(max_examples=80, stateful_step_count=60)
