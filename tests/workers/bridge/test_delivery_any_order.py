"""Delivery under random histories of loss, delay, repetition, refusal and restart: simulated owners and clock."""


from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from common import protocol
from common.points import PointBatch
from common.series import partition_of
from tests.workers.bridge.delivery_world import KEYS, PARTITIONS, World, ring
from workers.bridge.batch import Message


class AnyOrder(RuleBasedStateMachine):
    """Nodes that lose, delay, repeat, refuse and restart in any order. In the end every point is at its owners."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(ring(1, [[0, 1], [1, 2], [2]]), batch_rows=3).start()
        self.epoch = 1
        self.published: list[tuple[Message, set[tuple[bytes, int]]]] = []
        self.stored: dict[str, set[tuple[bytes, int]]] = {"n0": set(), "n1": set(), "n2": set()}
        self.unanswered: list[tuple[str, protocol.Message]] = []
        self.old_acks: list[tuple[str, protocol.Message]] = []
        self.time_ns = 0

    def owners(self, key: bytes) -> set[str]:
        return {node.id for node in self.world.delivery._ring.owners(partition_of(key, PARTITIONS))}

    def collect(self) -> None:
        for node in self.world.owners:
            self.unanswered += [(node, batch) for batch in self.world.batches(node)]

    def store(self, node: str, batch: protocol.Message) -> None:
        if batch.header.to_incarnation not in (0, self.world.owners[node].incarnation):
            return
        points = PointBatch.decode(batch.body)
        if any(node not in self.owners(key) for key in points.keys):
            self.world.ack(node, batch, rows=0, error=protocol.ERR_NOT_MINE)
            return
        rows = zip(points.index.tolist(), points.times.tolist(), strict=True)
        self.stored[node] |= {(points.keys[index], time_ns) for index, time_ns in rows}
        self.world.ack(node, batch)
        self.old_acks.append((node, batch))

    @rule(series=st.lists(st.integers(0, 39), min_size=1, max_size=5))
    def publish(self, series: list[int]) -> None:
        self.time_ns += 1
        message = self.world.publish(*series, time_ns=self.time_ns)
        self.published.append((message, {(KEYS[n], self.time_ns) for n in series}))

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, 6.0]))
    def pass_time(self, seconds: float) -> None:
        self.world.tick(seconds)
        self.collect()

    @rule(node=st.sampled_from(["n0", "n1", "n2"]))
    def answer_beats(self, node: str) -> None:
        self.world.beat(node)

    @precondition(lambda self: self.unanswered)
    @rule(data=st.data(), fate=st.sampled_from(["store", "lose", "disk", "stale"]))
    def answer_one(self, data: st.DataObject, fate: str) -> None:
        node, batch = self.unanswered.pop(data.draw(st.integers(0, len(self.unanswered) - 1)))
        if fate == "store":
            self.store(node, batch)
        elif fate != "lose" and batch.header.to_incarnation == self.world.owners[node].incarnation:
            error = protocol.ERR_DISK if fate == "disk" else protocol.ERR_STALE_EPOCH
            self.world.ack(node, batch, rows=0, error=error)

    @precondition(lambda self: self.old_acks)
    @rule(data=st.data())
    def repeat_an_ack(self, data: st.DataObject) -> None:
        self.world.ack(*data.draw(st.sampled_from(self.old_acks[-20:])))

    @rule(node=st.sampled_from(["n0", "n1", "n2"]))
    def restart(self, node: str) -> None:
        self.world.owners[node].incarnation += 1
        self.unanswered = [(name, batch) for name, batch in self.unanswered if name != node]

    @rule(turn=st.integers(0, 2))
    def change_ring(self, turn: int) -> None:
        self.epoch += 1
        table = [[(n + turn) % 3 for n in row] for row in ([0, 1], [1, 2], [2])]
        self.world.delivery.adopt(ring(self.epoch, table))

    @invariant()
    def released_means_stored(self) -> None:
        for message, points in self.published:
            if message.waiting == 0:
                for point in points:
                    assert any(point in held for held in self.stored.values()), "released, stored nowhere"

    def teardown(self) -> None:
        for _ in range(60):
            self.world.tick(0.5)
            self.world.beat()
            self.collect()
            answered, self.unanswered = self.unanswered, []
            for node, batch in answered:
                self.store(node, batch)
        assert not any(message.waiting for message, _ in self.published)
        assert self.world.delivery.is_idle
        assert self.world.delivery.memory_bytes == 0
        self.released_means_stored()


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = hypothesis_settings(max_examples=60, stateful_step_count=60)
