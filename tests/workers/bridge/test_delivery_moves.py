"""Delivery while partitions move: what a bridge releases is at every owner of the latest ring, whenever it learns that.

The moves are made as a driver makes them, step by step, between all that test_delivery_any_order.py lets happen.
"""

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from common import protocol, ringmoves
from common.ring import Ring
from common.ringmoves import Step
from common.series import partition_of
from tests.workers.bridge.delivery_world import PARTITIONS, PLACES, World, keys_in, ring
from tests.workers.bridge.test_delivery_any_order import NODES, AnyOrder, At
from workers.bridge.misrouted import AGAIN_S, FENCED_S

MOVING_S = AGAIN_S[protocol.ERR_MOVING]


def with_replication(given: Ring, replication: int) -> Ring:
    return Ring(
        given.cluster, given.epoch, given.partitions, replication, given.nodes, given.owner_table, given.since
    )


class Moves(AnyOrder):
    """At each moment each point of a released message is, for every owner of the latest ring, at that owner, or in the
    spool for it, and then the owner's mark is set: whoever asks owners without a mark misses nothing.
    """

    change_ring = None  # owners change by moves alone

    def __init__(self) -> None:
        super().__init__()
        self.rings[0] = with_replication(self.rings[0], 1)
        self.pulled: set[int] = set()

    @property
    def latest(self) -> Ring:
        return self.rings[-1]

    def marked(self) -> set[str]:
        return {mark.node for mark in self.world.store.marks()}

    def change(self, to: Ring, told: bool) -> None:
        self.rings.append(to)
        if told:
            self.learn_ring("bridge")

    @rule(
        partition=st.integers(0, PARTITIONS - 1),
        to=st.sampled_from(NODES),
        replaces=st.booleans(),
        told=st.booleans(),
    )
    def begin(self, partition: int, to: str, replaces: bool, told: bool) -> None:
        owners = [node.id for node in self.latest.owners(partition)]
        if partition in self.latest.moving or to in owners:
            return
        self.change(ringmoves.begin(self.latest, [Step(partition, owners[0] if replaces else None, to)]), told)

    @precondition(lambda self: self.latest.moving)
    @rule()
    def fence_and_pull(self) -> None:
        """The nodes have the ring of the move; targets get what some owner without a mark holds."""
        for node in NODES:
            self.learn_ring(node)
        marked = self.marked()
        for move in self.latest.moves:
            current = [node.id for node in self.latest.owners(move.partition) if node.id not in marked]
            if not current or move.target in marked:
                continue
            if move.source is not None:
                self.fenced[move.source].add(move.partition)
            there = {at for at in self.stored[current[0]] if partition_of(at[0], PARTITIONS) == move.partition}
            self.stored[move.target] |= there
            self.pulled.add(move.partition)

    @precondition(lambda self: self.pulled)
    @rule(told=st.booleans())
    def finish(self, told: bool) -> None:
        marked = self.marked()
        ready = [each.partition for each in self.latest.moves if each.partition in self.pulled]
        ready = [each for each in ready if (move := self.latest.move(each)) and move.target not in marked]
        self.pulled -= set(ready)
        if ready:
            self.change(ringmoves.finish(self.latest, ready), told)

    @precondition(lambda self: self.latest.moving)
    @rule(data=st.data(), told=st.booleans())
    def cancel(self, data: st.DataObject, told: bool) -> None:
        partition = data.draw(st.sampled_from(sorted(self.latest.moving)))
        self.pulled.discard(partition)
        self.change(ringmoves.cancel(self.latest, [partition]), told)

    @rule(partition=st.integers(0, PARTITIONS - 1), told=st.booleans())
    def drop(self, partition: int, told: bool) -> None:
        owners = [node.id for node in self.latest.owners(partition)]
        if len(owners) > 1 and partition not in self.latest.moving:
            self.change(ringmoves.dropped(self.latest, [Step(partition, owners[0], None)]), told)

    @rule(node=st.sampled_from(NODES))
    def let_fences_lapse(self, node: str) -> None:
        self.pulled -= self.fenced[node]
        self.fenced[node] = set()

    def is_safe(self, point: At, usable: dict[str, set[At]]) -> bool:
        owners = self.latest.owners(partition_of(point[0], PARTITIONS))
        return all(point in usable[owner.id] for owner in owners)


TestMoves = Moves.TestCase
TestMoves.settings = hypothesis_settings(max_examples=50, stateful_step_count=60)


def moving(target: str = "n2", source: str | None = "n0") -> tuple[Ring, Ring]:
    """A ring in which n0 owns everything, and the next in which partition 0 is on its way."""
    first = ring(1, [[0]])
    return first, ringmoves.begin(first, [Step(0, source, target)])


def series_of(partition: int) -> int:
    return next(number for number, place in enumerate(PLACES) if place.partition == partition)


def test_points_of_a_partition_that_moves_go_to_its_owner_and_to_the_node_that_joins() -> None:
    _, second = moving()
    world = World(second).start()
    message = world.publish(series_of(0), series_of(1))
    world.tick()
    (owner,), (joining,) = world.batches("n0"), world.batches("n2")
    assert (len(keys_in(owner)), len(keys_in(joining))) == (2, 1)
    world.ack("n0", owner)
    assert message.waiting == 1
    world.ack("n2", joining)
    assert message.waiting == 0


def test_open_rows_of_before_a_move_are_split_again_for_the_node_that_joins() -> None:
    first, second = moving()
    world = World(first, linger_ms=1000.0).start()
    message = world.publish(series_of(0))
    world.delivery.adopt(second)
    world.tick()
    (batch,) = world.batches("n0")
    assert batch.header.epoch == 1
    world.ack("n0", batch, rows=0, error=protocol.ERR_STALE_EPOCH)
    world.tick()
    assert [len(world.owners[node].sent) > 0 for node in ("n0", "n2")] == [True, True]
    world.ack_all()
    assert message.waiting == 0


def test_what_a_spool_holds_of_a_partition_that_moves_goes_to_the_node_that_joins_too() -> None:
    first, second = moving()
    world = World(first).start()
    world.silence("n0")
    message = world.publish(series_of(0))
    world.tick()
    assert message.waiting == 0
    world.delivery.adopt(second)
    for _ in range(20):
        world.tick(0.5)
        world.beat()
        world.ack_all()
    assert world.delivery.counts["rows_stored"] == 2
    assert world.store.marks() == frozenset()


def test_fenced_points_wait_for_the_next_ring_and_go_by_it_at_once() -> None:
    _, second = moving()
    world = World(second).start()
    message = world.publish(series_of(0), series_of(1))
    world.tick()
    (batch,) = world.batches("n0")
    world.ack("n0", batch, rows=0, error=protocol.ERR_MOVING)
    assert world.hurried == 1
    world.ack_all()
    world.tick()
    assert (world.batches("n0"), message.waiting) == ([], 1)
    world.delivery.adopt(ringmoves.finish(second, [0]))
    world.tick()
    (rest,), (moved,) = world.batches("n0"), world.batches("n2")
    assert [partition_of(keys_in(part).pop(), PARTITIONS) for part in (rest, moved)] == [1, 0]
    world.ack("n0", rest)
    world.ack("n2", moved)
    assert (message.waiting, world.delivery.is_idle, world.delivery.memory_bytes) == (0, True, 0)


def test_points_of_a_fence_that_lapses_are_stored_and_the_node_was_never_down() -> None:
    _, second = moving(source=None)
    world = World(second, ack_timeout_s=2.0).start()
    message = world.publish(series_of(0))
    for _ in range(100):
        world.tick(MOVING_S)
        world.beat()
        for batch in world.batches("n0"):
            world.ack("n0", batch, rows=0, error=protocol.ERR_MOVING)
        for batch in world.batches("n2"):
            world.ack("n2", batch)
    assert (message.waiting, world.state("n0"), world.store.marks()) == (1, "up", frozenset())
    for _ in range(3):
        world.tick(MOVING_S)
        world.ack_all()
    assert message.waiting == 0


def test_behind_a_fence_one_batch_is_tried_again_and_all_others_with_the_next_ring() -> None:
    _, second = moving(source=None)
    world = World(second).start()
    messages = []
    for time_ns in range(1, 21):
        messages.append(world.publish(series_of(0), time_ns=time_ns))
        world.tick()
    tried = []
    for _ in range(10):
        tried.append(world.batches("n0"))
        for batch in tried[-1]:
            world.ack("n0", batch, rows=0, error=protocol.ERR_MOVING)
        world.tick(FENCED_S)
    first, *others = map(len, tried)
    assert first > 3 and others == [1] * 9
    world.delivery.adopt(ringmoves.finish(second, [0]))
    world.tick()
    world.ack_all()
    assert [each.waiting for each in messages] == [0] * 20


def test_a_node_whose_ring_was_behind_gets_the_batch_again_as_soon_as_it_shows_the_ring() -> None:
    first, second = moving()
    world = World(first).start()
    world.delivery.adopt(second)
    message = world.publish(series_of(0))
    world.tick()
    world.ack("n0", world.batches("n0")[0])
    (batch,) = world.batches("n2")
    world.answer("n2", protocol.ACK, batch.header, protocol.Ack(0, error=protocol.ERR_NOT_MINE), epoch=1)
    world.tick(0.01)
    assert not world.batches("n2"), "its ring is still the old one, as far as is known"
    world.tick(0.5)
    world.beat()
    world.tick(0.01)
    world.ack_all()
    assert message.waiting == 0


def test_a_bridge_that_missed_two_rings_spools_nothing_for_the_former_owner() -> None:
    first, second = moving()
    world = World(first).start()
    message = world.publish(series_of(0))
    world.tick()
    world.confirmed_s = 0.0  # it has not looked at the ring store since
    world.silence("n0")
    world.tick()
    assert (message.waiting, world.hurried > 0) == (1, True)
    world.delivery.adopt(ringmoves.finish(second, [0]))
    world.confirmed_s = float("inf")
    world.tick()
    world.tick()
    world.ack("n2", world.batches("n2")[0])
    assert message.waiting == 0
    world.tick()
    assert not list((world.directory / "spool").glob("*/*.spool"))


def test_a_spool_of_a_node_that_stays_away_says_when_all_of_it_has_gone_to_the_node_that_joins() -> None:
    first, second = moving()
    world = World(first).start()
    world.silence("n0")
    world.publish(series_of(0))
    world.tick()
    assert world.spools.oldest_epochs() == {"n0": first.epoch}
    world.delivery.adopt(second)
    world.tick()
    assert world.spools.oldest_epochs() == {"n0": first.epoch}  # n2 was sent it, and has not stored it
    for _ in range(3):
        world.ack_all()
        world.tick(0.1)
    assert world.delivery.counts["rows_stored"] == 1
    assert world.spools.oldest_epochs() == {"n0": second.epoch}
    assert {mark.node for mark in world.store.marks()} == {"n0"}
