"""The mover against a cluster in memory: whatever fails, and wherever it is killed, the ring gets to its target, each
partition always has its owners, and no reader is given an answer without a point that was acknowledged.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import clock
from common.ring import ACTIVE, DRAINING, Node, Ring
from common.ringbuild import first_ring, with_delete
from common.ringmoves import Step, begin, cancel, changed, least_moves, steps
from common.ringstore import Mark
from common.selector import Selector
from tests.tools.moving import Killed, World
from tools import ring_mover
from tools.ring_mover import Mover, MoverError
from tools.ring_outlook import LOSS, LOST, Outlook, spread

PARTITIONS = 16


def node(number: int, state: str = ACTIVE, weight: float = 1.0, zone: str = "z") -> Node:
    return Node(f"ing{number}", "", f"tcp://127.0.0.1:{5000 + 10 * number}", zone, weight, state)


def ring_of(count: int, replication: int) -> Ring:
    return first_ring("c1", [node(number) for number in range(count)], PARTITIONS, replication)


def drained(ring: Ring, name: str) -> list[Node]:
    return [_with_state(each, DRAINING) if each.id == name else each for each in ring.nodes]


def _with_state(each: Node, state: str) -> Node:
    return Node(each.id, each.store_id, each.endpoint, each.zone, each.weight, state)


def grown(ring: Ring) -> Ring:
    return changed(ring, [*ring.nodes, node(8)], ring.replication)


def shrunk(ring: Ring) -> Ring:
    return changed(ring, drained(ring, "ing1"), ring.replication)


def replaced(ring: Ring) -> Ring:
    return changed(ring, [*drained(ring, "ing0"), node(8)], ring.replication)


CHANGES = {
    "add": grown,
    "remove": shrunk,
    "replace": replaced,
    "replication 3": lambda ring: changed(ring, ring.nodes, 3),
    "replication 1": lambda ring: changed(ring, ring.nodes, 1),
    "weight": lambda ring: changed(ring, [node(0, weight=3.0), *ring.nodes[1:]], ring.replication),
    "zones": lambda ring: changed(ring, [node(n, zone=f"z{n % 2}") for n in range(len(ring.nodes))], ring.replication),
}


def commit(world: World, after: Ring) -> None:
    world.rings.append(after)
    for each in after.nodes:
        world.nodes.setdefault(each.id, type(world.nodes["ing0"])(each.id, after))


def driven(world: World, wave: int = 8, lives: int = 400) -> None:
    """Run movers until one gets to the end, each beginning where the one before was killed."""
    for _ in range(lives):
        try:
            Mover(world, world, wave=wave, pause=world.pause).run(600.0)
            return
        except Killed:
            continue
        finally:
            world.busy = False
    pytest.fail("not at the end after so many lives")


def check_end(world: World) -> None:
    ring = world.ring
    ring.validate()
    assert steps(ring) == [] and not ring.moves
    assert all(each.state == ACTIVE for each in ring.nodes)
    assert {len(ring.owners(partition)) for partition in range(PARTITIONS)} == {ring.replication}
    world.check()
    world.check_kept()


@pytest.fixture(autouse=True)
def world_clock(monkeypatch):
    """The clock of the world that was made last."""
    worlds: list[World] = []
    begin_world = World.__init__

    def made(self, *arguments, **named):
        begin_world(self, *arguments, **named)
        worlds.append(self)

    monkeypatch.setattr(World, "__init__", made)
    monkeypatch.setattr(clock, "monotonic_s", lambda: worlds[-1].now if worlds else 0.0)


# What always holds


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("replication", [1, 2])
def test_a_change_is_carried_to_its_end_while_points_flow_with_no_more_moves_than_it_takes(change, replication):
    world = World(ring_of(4, replication), 7)
    world.live()
    after = CHANGES[change](world.ring)
    commit(world, after)
    wanted = len(steps(after))
    least = least_moves(after)
    told = []
    mover = Mover(world, world, told=lambda progress: told.append((progress.done, progress.total)), pause=world.pause)
    mover.run(60.0)
    check_end(world)
    assert sum(map(len, world.acked.values())) > 10
    assert mover.progress.done == mover.progress.total == wanted >= least
    assert world.note == ""
    assert told == sorted(told)


@given(
    seed=st.integers(0, 1 << 32),
    change=st.sampled_from(sorted(CHANGES)),
    replication=st.integers(1, 3),
    wave=st.sampled_from([1, 5, 64]),
    kill=st.sampled_from([0.0, 0.005, 0.01]),
    crash=st.sampled_from([0.0, 0.0, 0.005]),
    slow=st.sampled_from([0.01, 0.5]),
)
@settings(max_examples=20)
def test_whatever_fails_the_ring_gets_to_its_target_and_no_answer_lacks_a_point(
    seed, change, replication, wave, kill, crash, slow
):
    chance = {"kill": kill, "crash": crash, "slow": slow, "silent": 0.02, "save": 0.05}
    world = World(ring_of(4, replication), seed, chance)
    world.live()
    commit(world, CHANGES[change](world.ring))
    driven(world, wave)
    check_end(world)


@given(seed=st.integers(0, 1 << 32), change=st.sampled_from(sorted(CHANGES)), kill=st.sampled_from([0.0, 0.01]))
@settings(max_examples=12)
def test_of_two_movers_at_once_one_ends_and_the_other_carries_the_change_to_its_end(seed, change, kill):
    world = World(ring_of(4, 2), seed, {"kill": kill, "slow": 0.5})
    world.live()
    commit(world, CHANGES[change](world.ring))
    other = Mover(world, world, wave=3, pause=world.pause)

    def interfere() -> None:
        if world.random.random() < 0.2:
            note, world.note = world.note, ""  # not told of each other: only the ring protects
            try:
                other.step()
            finally:
                world.note = note

    world.during = interfere
    driven(world, 4)
    check_end(world)


@given(seed=st.integers(0, 1 << 32), replication=st.integers(1, 2))
@settings(max_examples=12)
def test_deletes_cancels_and_other_changes_in_between_leave_nothing_half_done(seed, replication):
    world = World(ring_of(4, replication), seed, {"slow": 0.5, "silent": 0.02})
    world.live()
    commit(world, grown(world.ring))

    def interfere() -> None:
        ring, chance = world.ring, world.random.random()
        if chance < 0.02:
            commit(world, with_delete(ring, Selector("d", None, None), 0, 1))
        elif chance < 0.04 and ring.moves:
            again = [(each.partition, each.source, each.target) for each in ring.moves]
            commit(world, cancel(ring, [each.partition for each in ring.moves]))
            if world.random.random() < 0.5:
                commit(world, begin(world.ring, [Step(*each) for each in again]))

    world.during = interfere
    driven(world, 6)
    world.during = lambda: None
    check_end(world)


# Waiting, and what for


def test_a_target_that_does_not_answer_is_waited_for_before_anything_joins_it():
    world = World(ring_of(3, 1), 1)
    commit(world, grown(world.ring))
    world.nodes["ing8"].is_up = False
    world.lost.add("ing8")
    mover = Mover(world, world, pause=world.pause)
    with pytest.raises(MoverError, match="given up after 30 s: ing8 does not answer"):
        mover.run(30.0)
    assert not world.ring.moves
    world.lost.clear()
    driven(world)
    check_end(world)


def test_a_node_that_is_taken_for_lost_is_replaced_from_its_co_owners_and_its_mark_goes():
    world = World(ring_of(3, 2), 2)
    world.live()
    world.nodes["ing0"].is_up = False
    world.lost.add("ing0")
    commit(world, replaced(world.ring))
    with pytest.raises(MoverError, match="ing0 does not answer"):
        Mover(world, world, pause=world.pause).run(20.0)
    world.put_mark(Mark("ing0", LOST))
    driven(world)
    assert not world.ring.has("ing0")
    assert Mark("ing0", LOST) not in world.marks()
    assert steps(world.ring) == [] and not world.ring.moves


def test_a_lost_node_without_co_owners_is_replaced_only_when_its_loss_is_accepted():
    world = World(ring_of(3, 1), 3)
    world.nodes["ing0"].is_up = False
    world.lost.add("ing0")
    world.put_mark(Mark("ing0", LOST))
    commit(world, replaced(world.ring))
    with pytest.raises(MoverError, match=r"no owner of partitions of ing0 \(.*it is taken for lost\) is current"):
        Mover(world, world, pause=world.pause).run(20.0)
    world.put_mark(Mark("ing0", LOSS))
    world.acked = {partition: set() for partition in world.acked}  # given up
    driven(world)
    assert not world.ring.has("ing0") and not world.marks() & {Mark("ing0", LOST), Mark("ing0", LOSS)}


def test_a_source_that_starts_anew_behind_its_fence_leaves_only_when_it_was_fenced_and_compared_again():
    world = World(ring_of(3, 2), 5)
    commit(world, shrunk(world.ring))
    source = world.nodes["ing1"]
    asked = []

    def fence(ring, node, partitions, reads, ask=world.fence):
        if node == "ing1" and reads and ("ing1", True) not in asked:  # it ended and began anew: no fence, points since
            source.fenced, source.closed, source.incarnation = {}, set(), source.incarnation + 1
            before[:] = [len(world.rings)]
        asked.append((node, reads))
        return ask(ring, node, partitions, reads)

    before = []
    world.fence = fence
    saves = []
    save = world.save

    def saved(ring, epoch):
        saves.append((len(asked), ring))
        save(ring, epoch)

    world.save = saved
    driven(world)
    check_end(world)
    closed = asked.index(("ing1", True))
    assert ("ing1", False) in asked[closed:], "fenced again, and compared behind that"
    again = closed + asked[closed:].index(("ing1", False))
    given_away = [at for at, ring in saves if at > closed and len(ring.moves) < len(world.rings[before[0] - 1].moves)]
    assert given_away[0] > again


def test_sources_go_on_to_answer_when_their_target_is_lost_behind_the_fence():
    world = World(ring_of(3, 1), 1)
    commit(world, grown(world.ring))
    fenced = []

    def fence(ring, node, partitions, reads, ask=world.fence):
        fenced.append(reads)
        reply = ask(ring, node, partitions, reads)
        world.lost.add("ing8")
        world.nodes["ing8"].is_up = False
        return reply

    world.fence = fence
    mover = Mover(world, world, pause=world.pause)
    while not fenced:
        mover.step()
    assert not any(fenced) and not any(each.closed for each in world.nodes.values())
    world.lost.clear()
    world.fence = World.fence.__get__(world)
    driven(world)
    check_end(world)


def test_a_delete_that_is_committed_right_before_owners_are_saved_costs_no_second_pull():
    world = World(ring_of(3, 1), 1)
    commit(world, grown(world.ring))
    happened = []

    def save(ring, expected_epoch, saves=world.save):
        if len(ring.moves) < len(world.ring.moves) and "conflict" not in happened:
            commit(world, with_delete(world.ring, Selector("sensor_1", "temperature"), 0, 1))
            for each in world.nodes.values():
                each.adopt(world.ring)
            happened.append("conflict")
        saves(ring, expected_epoch)
        happened.append("saved")

    def pull(*asked, pulls=world.pull):
        happened.append("pull")
        return pulls(*asked)

    world.save, world.pull = save, pull
    happened.append("")
    mover = Mover(world, world, pause=world.pause)
    while "conflict" not in happened:
        mover.step()
    assert happened[happened.index("conflict") + 1 :][:1] == ["saved"]
    driven(world)
    check_end(world)


def test_an_owner_does_not_go_while_the_one_that_stays_has_just_lost_its_disk():
    world = World(ring_of(3, 2), 1)
    world.live()
    commit(world, CHANGES["replication 1"](world.ring))
    lost = []

    def fence(ring, node, partitions, reads, ask=world.fence):
        if not lost:
            lost.append((partitions[0], next(each.id for each in ring.owners(partitions[0]) if each.id != node)))
            world.put_mark(Mark(lost[0][1], lost[0][1]))
        return ask(ring, node, partitions, reads)

    world.fence = fence
    mover = Mover(world, world, pause=world.pause)
    while not lost:
        mover.step()
    partition, name = lost[0]
    assert len(world.ring.owners(partition)) == 2
    assert not any(partition in each.closed for each in world.nodes.values()), "nobody else could answer"
    world.remove_mark(Mark(name, name))
    driven(world)
    check_end(world)


def test_a_drained_node_leaves_although_a_delete_is_committed_right_before_that_is_saved():
    world = World(ring_of(3, 2), 1)
    commit(world, shrunk(world.ring))
    deleted = []

    def save(ring, expected_epoch, saves=world.save):
        if not ring.has("ing1") and not deleted:
            deleted.append(world.ring.epoch + 1)
            commit(world, with_delete(world.ring, Selector("sensor_1", "temperature"), 0, 1))
        saves(ring, expected_epoch)

    world.save = save
    driven(world)
    assert deleted and not world.ring.has("ing1")
    check_end(world)


def test_a_target_with_a_mark_becomes_no_owner_before_that_is_gone():
    world = World(ring_of(3, 2), 4)
    commit(world, grown(world.ring))
    world.put_mark(Mark("ing8", "bridge9"))
    with pytest.raises(MoverError, match="ing8 is behind: points for it are in the spool of bridge9"):
        Mover(world, world, pause=world.pause).run(20.0)
    assert len(world.ring.owned_partitions("ing8")) == 0
    world.remove_mark(Mark("ing8", "bridge9"))
    driven(world)
    check_end(world)


def test_another_ringctl_that_took_over_ends_this_one():
    world = World(ring_of(3, 1), 5)
    commit(world, grown(world.ring))

    def take_over() -> None:
        world.note = "ringctl on other, process 7, last heard 2030-01-01T00:00:00Z, 01234567"

    mover = Mover(world, world, wave=2, pause=world.pause)
    mover.step()
    take_over()
    with pytest.raises(MoverError, match="another ringctl took over: ringctl on other, process 7"):
        mover.step()
    assert "other" in world.note


# The pure part


def test_a_wave_is_shared_among_sources_and_targets():
    ring = grown(ring_of(4, 1))
    todo = steps(ring)
    sources = {step.source for step in todo}
    assert len(sources) > 1 and {step.source for step in spread(todo, len(sources))} == sources
    assert set(spread(todo, 1000)) == set(todo)
    assert spread(todo, 0) == []


def test_a_partition_is_pulled_from_who_leaves_unless_he_is_behind():
    ring = ring_of(3, 2)
    one, other = (each.id for each in ring.owners(0))
    epochs = dict.fromkeys(("ing0", "ing1", "ing2"), 1)
    assert Outlook(ring, frozenset(), epochs, {}).peer(0, other) == other
    assert Outlook(ring, frozenset({Mark(other, "b")}), epochs, {}).peer(0, other) == one
    assert Outlook(ring, frozenset({Mark(other, "b"), Mark(one, one)}), epochs, {}).peer(0, other) is None


@pytest.mark.parametrize("seed", range(3))
def test_who_begins_with_nothing_is_no_owner_before_it_has_what_lies_in_spools(seed):
    world = World(ring_of(3, 1), seed)
    world.nodes["ing0"].is_up = False
    world.lost.add("ing0")
    world.live()
    spooled = [(partition, point) for partition, point, _ in world.spools["ing0"]]
    assert spooled
    world.acked = {each: {point for partition, point in spooled if partition == each} for each in world.acked}
    world.put_mark(Mark("ing0", LOST))
    world.put_mark(Mark("ing0", LOSS))
    commit(world, replaced(world.ring))
    drain, world._drain = world._drain, lambda: None
    with pytest.raises(MoverError, match="bridge1 has points for ing0 in its spool that have not reached"):
        Mover(world, world, pause=world.pause).run(20.0)
    world._drain = drain
    driven(world)
    assert not world.ring.has("ing0")
    world.check_kept()


def test_a_bridge_that_is_not_heard_keeps_who_begins_with_nothing_waiting():
    ring = begin(grown(ring_of(1, 1)), steps(grown(ring_of(1, 1)))[:1])
    move, lost = ring.moves[0], frozenset({Mark("ing0", LOST), Mark("ing0", LOSS), Mark("ing0", "bridge1")})
    for bridges, why in [
        ({}, "is not heard"),
        ({"bridge1": {"epoch": ring.epoch - 1, "oldest_epochs": {"ing0": ring.epoch}}}, "have not reached"),
        ({"bridge1": {"epoch": ring.epoch, "oldest_epochs": {"ing0": 0}}}, "have not reached"),
    ]:
        assert why in Outlook(ring, lost, {"ing8": ring.epoch}, {}, bridges).hindrance(move)
    full = {"bridge1": {"epoch": ring.epoch, "spools": {"ing0": {"error": "full: 9"}}}}  # of an older version
    assert "owners: full: 9" in Outlook(ring, lost, {"ing8": ring.epoch}, {}, full).hindrance(move)
    clean = {"bridge1": {"epoch": ring.epoch, "oldest_epochs": {"ing0": ring.epoch}}}
    assert Outlook(ring, lost, {"ing8": ring.epoch}, {}, clean).hindrance(move) == ""


@pytest.mark.parametrize(("points", "most"), [(0, 8), (20_000, 8), (10**6, 5), (10**9, 3)])
def test_a_wave_has_fewer_partitions_where_they_have_many_points(monkeypatch, points, most):
    monkeypatch.setattr(ring_mover, "WAVE_LEAST", 3)
    world = World(ring_of(3, 1), 3)
    commit(world, changed(world.ring, [each for each in world.ring.nodes if each.id == "ing0"] + [
        _with_state(each, DRAINING) for each in world.ring.nodes if each.id != "ing0"
    ], 1))  # fmt: skip
    statuses = world.statuses

    def told(ring, nodes):
        return {
            node: answer | {"points": points * 4, "partitions_owned": 4} if isinstance(answer, dict) else answer
            for node, answer in statuses(ring, nodes).items()
        }

    world.statuses = told
    Mover(world, world, wave=8, pause=world.pause).run(600.0)
    check_end(world)
    assert max(len(ring.moves) for ring in world.rings) == most
