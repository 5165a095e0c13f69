"""Moves of partitions: each change on its own, and any history of changes, stops and goings-on."""

import dataclasses
import random

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import protocol
from common.errors import RingError
from common.ring import Move, Node, Ring
from common.ringbuild import first_ring, ideal_counts, with_delete
from common.ringmoves import Step, begin, cancel, changed, dropped, finish, least_moves, settled, shares, steps
from common.selector import Selector


def node(at, zone="a", weight=1.0, state="active"):
    return Node(f"n{at:02}", "", f"tcp://127.0.0.1:{1000 + 3 * at}", zone, float(weight), state)


def nodes_of(zones, weights=None):
    return [node(at, zone, weight) for at, (zone, weight) in enumerate(zip(zones, weights or [1] * 99, strict=False))]


def with_state(nodes, state, *ids):
    return [msgspec.structs.replace(each, state=state) if each.id in ids else each for each in nodes]


def owners(ring, partition):
    return [each.id for each in ring.owners(partition)]


def small():
    """Partitions 0 to 3 of n00, n01, n02 in turn, one owner each."""
    ring = first_ring("c", nodes_of("aaa"), 4, 1)
    return dataclasses.replace(ring, owner_table=np.array([[0], [1], [2], [0]], dtype=np.int32))


def carried_out(ring, chance=None, wave=10**9):
    """The ring at its target, and how many nodes became owners on the way; chance: stops and cancels now and then."""
    moved = 0
    while True:
        todo = steps(ring)
        if not todo and not ring.moves:
            return settled(ring) or ring, moved
        if chance:
            chance.shuffle(todo)
        firsts = {step.partition: step for step in reversed(todo) if step.partition not in ring.moving}
        joins = [step for step in firsts.values() if step.target is not None][:wave]
        drops = [step for step in firsts.values() if step.target is None][:wave]
        ring = begin(ring, joins) if joins else ring
        ring = dropped(ring, drops) if drops else ring
        on_their_way = sorted(ring.moving)
        if chance and chance.random() < 0.3:
            ring = cancel(ring, chance.sample(on_their_way, len(on_their_way) // 4))
            on_their_way = sorted(ring.moving)
        chosen = chance.sample(on_their_way, -(-len(on_their_way) * 2 // 3)) if chance else on_their_way
        ring = finish(ring, chosen) if chosen else ring
        moved += len(chosen)


# One by one


def test_a_node_that_joins_takes_points_and_owns_nothing_until_the_move_is_finished():
    joining = begin(small(), [Step(1, "n01", "n02")])
    assert joining.moves == (Move(1, "n01", "n02"),) and joining.epoch == 2
    assert owners(joining, 1) == ["n01"]
    assert [each.id for each in joining.writers(1)] == ["n01", "n02"]
    assert [each.id for each in joining.writers(0)] == ["n00"]
    assert joining.since.tolist() == [1, 2, 1, 1]
    assert joining.owned_partitions("n02").tolist() == [2]
    assert joining.joined_partitions("n02").tolist() == [1]
    assert joining.written_partitions("n02").tolist() == [1, 2]
    assert protocol.members(joining.written_bitmap("n02")) == [1, 2]
    assert protocol.members(joining.written_bitmap("n01")) == [1]
    assert set(joining.moving) == {1} and joining.move(1) == joining.moves[0] and joining.move(0) is None


def test_a_finished_move_puts_the_target_in_the_place_of_its_source():
    ring = first_ring("c", nodes_of("aaaa"), 4, 2)
    ring = dataclasses.replace(ring, owner_table=np.array([[0, 1]] * 4, dtype=np.int32))
    done = finish(begin(ring, [Step(2, "n00", "n03"), Step(3, None, "n02")]), [2, 3])
    assert [owners(done, partition) for partition in range(4)] == [["n00", "n01"], ["n00", "n01"], ["n03", "n01"],
                                                                   ["n00", "n01", "n02"]]  # fmt: skip
    assert (done.epoch, done.width, done.moves, done.since.tolist()) == (3, 3, (), [1, 1, 3, 3])


def test_only_the_moves_that_are_named_are_finished_or_cancelled():
    joining = begin(small(), [Step(1, "n01", "n02"), Step(3, "n00", "n01"), Step(0, "n00", "n01")])
    one = finish(joining, [1])
    assert [each.partition for each in one.moves] == [0, 3]
    other = cancel(one, [3])
    assert [each.partition for each in other.moves] == [0]
    assert owners(other, 3) == ["n00"] and other.since.tolist() == [2, 3, 1, 4]


def test_a_dropped_owner_leaves_no_gap_and_the_table_as_narrow_as_it_can_be():
    ring = first_ring("c", nodes_of("aaa"), 2, 3)
    ring = dataclasses.replace(ring, owner_table=np.array([[0, 1, 2], [2, 1, 0]], dtype=np.int32), replication=2)
    ring = dropped(ring, [Step(0, "n00", None)])
    assert (owners(ring, 0), owners(ring, 1), ring.width) == (["n01", "n02"], ["n02", "n01", "n00"], 3)
    ring = dropped(ring, [Step(1, "n01", None)])
    assert (owners(ring, 1), ring.width, ring.since.tolist()) == (["n02", "n00"], 2, [2, 3])


@pytest.mark.parametrize(
    ("do", "text"),
    [(lambda ring: begin(ring, [Step(0, "n00", None)]), "partition 0 only loses n00: nobody joins it"),
     (lambda ring: begin(ring, [Step(0, "n01", "n02")]), "partition 0 moves from n01, its owners are n00"),
     (lambda ring: begin(ring, [Step(0, "n00", "n00")]), "moves to n00, want a node that is not one of n00"),
     (lambda ring: begin(ring, [Step(0, "n00", "n09")]), "partition 0 moves to n09"),
     (lambda ring: begin(ring, [Step(1, "n01", "n00")]), "move of partition 1, want 2 to 3"),
     (lambda ring: begin(ring, [Step(0, "n00", "n01"), Step(0, None, "n02")]), "move of partition 0, want 1 to 3"),
     (lambda ring: finish(ring, [1, 0]), "partition 0 does not move at epoch 2"),
     (lambda ring: cancel(ring, [3]), "partition 3 does not move at epoch 2"),
     (lambda ring: dropped(ring, [Step(0, "n00", None)]), "partition 0 would have 0 owners, want 1 or more"),
     (lambda ring: dropped(ring, [Step(0, "n01", None)]), "partition 0 cannot lose n01, which does not own it"),
     (lambda ring: dropped(ring, [Step(0, "n09", None)]), "partition 0 cannot lose n09, which does not own it"),
     (lambda ring: dropped(ring, [Step(0, "n00", "n01")]), "partition 0 cannot just lose n00"),
     (lambda ring: dropped(ring, [Step(1, "n01", None)]), "partition 1 cannot just lose n01: it moves"),
     (lambda ring: changed(ring, ring.nodes[1:], 1), "node n00 still owns 2 partitions: it has to drain"),
     (lambda ring: changed(ring, ring.nodes, 4), r"not draining, 3 \(was 4\)"),
     (lambda ring: changed(ring, with_state(ring.nodes, "draining", "n00", "n01", "n02"), 1), r"0 \(was 1\)")],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_the_reason(do, text):
    with pytest.raises(RingError, match=text):
        do(begin(small(), [Step(1, "n01", "n02")]))


def test_a_partition_with_five_owners_gets_no_sixth():
    ring = first_ring("c", nodes_of("aaaaaa"), 1, 5)
    ring = dataclasses.replace(ring, owner_table=np.arange(5, dtype=np.int32)[None])
    with pytest.raises(RingError, match="partition 0 gets n05 beside 5 owners, want at most 5"):
        begin(ring, [Step(0, None, "n05")])
    assert owners(finish(begin(ring, [Step(0, "n02", "n05")]), [0]), 0) == ["n00", "n01", "n05", "n03", "n04"]


def test_a_change_moves_nothing_by_itself_and_says_what_is_to_be_done():
    ring = first_ring("c", nodes_of("aaa"), 64, 2)
    more = changed(ring, [*ring.nodes, node(3)], 2)
    assert (more.epoch, more.moves, more.since.tolist()) == (2, (), [1] * 64)
    assert [owners(more, p) for p in range(64)] == [owners(ring, p) for p in range(64)]
    todo = steps(more)
    assert len(todo) == least_moves(more) == 32 and {step.target for step in todo} == {"n03"}
    assert todo == sorted(todo) and all(step.source in owners(more, step.partition) for step in todo)
    assert shares(more).tolist() == [32.0] * 4


def test_nodes_that_come_first_by_id_shift_the_places_of_others_and_of_their_moves():
    ring = begin(small(), [Step(1, "n01", "n02")])
    more = changed(ring, [Node("a", "", "tcp://127.0.0.1:900", "a", 1.0, "active"), *ring.nodes], 1)
    assert [owners(more, p) for p in range(4)] == [["n00"], ["n01"], ["n02"], ["n00"]]
    assert more.moves == ring.moves and Ring.loads(more.dumps()).moves == ring.moves


def test_a_draining_node_that_joins_something_joins_it_no_more():
    ring = begin(small(), [Step(1, "n01", "n02"), Step(0, "n00", "n01")])
    drained = changed(ring, with_state(ring.nodes, "draining", "n02"), 1)
    assert drained.moves == (Move(0, "n00", "n01"),)
    assert drained.since.tolist() == [2, 3, 1, 1]
    assert shares(drained).tolist() == [2.0, 2.0, 0.0]


def test_a_drained_node_leaves_when_it_owns_nothing_and_not_before():
    ring = changed(small(), with_state(small().nodes, "draining", "n02"), 1)
    assert settled(ring) is None and least_moves(ring) == 1
    [step] = steps(ring)
    assert step == Step(2, "n02", "n01")
    ring = begin(ring, [step])
    assert settled(ring) is None
    ring = finish(ring, [2])
    gone = settled(ring)
    assert [each.id for each in gone.nodes] == ["n00", "n01"] and gone.epoch == ring.epoch + 1
    assert settled(gone) is None and steps(gone) == []


def test_a_removal_that_is_taken_back_leaves_nothing_to_do():
    ring = first_ring("c", nodes_of("aabb"), 64, 2)
    going = changed(ring, with_state(ring.nodes, "draining", "n01"), 2)
    assert len(steps(going)) == 32
    assert steps(changed(going, ring.nodes, 2)) == []


def test_an_owner_that_is_replaced_and_another_that_is_too_many_go_one_after_the_other():
    ring = first_ring("c", nodes_of("abc"), 2, 3)
    ring = dataclasses.replace(ring, owner_table=np.array([[0, 1, 2], [2, 1, 0]], dtype=np.int32))
    nodes = [*with_state(ring.nodes, "draining", "n00", "n01"), node(3, "d")]
    todo = steps(changed(ring, nodes, 2))
    assert [(step.partition, step.source is None, step.target) for step in todo] == [
        (0, False, "n03"), (0, False, None), (1, False, "n03"), (1, False, None),
    ]  # fmt: skip
    assert {step.source for step in todo} == {"n00", "n01"}


def test_steps_of_a_partition_that_moves_are_those_that_remain_afterwards():
    ring = changed(small(), nodes_of("aaa"), 2)
    first = [step for step in steps(ring) if step.partition == 0]
    assert len(first) == 1 and first[0].source is None
    joining = begin(ring, first)
    assert all(step.partition != 0 for step in steps(joining)) and len(steps(joining)) == 3
    thin = cancel(joining, [0])
    assert [step for step in steps(thin) if step.partition == 0] == first


def test_what_moves_must_reach_counts_for_the_least_number_of_moves():
    ring = first_ring("c", nodes_of("aabb"), 64, 2)
    rezoned = [msgspec.structs.replace(ring.nodes[0], zone="b"), *ring.nodes[1:]]
    table = ring.owner_table
    together = sum(0 in row and (2 in row or 3 in row) for row in table.tolist())
    assert together == 32
    # n01 is alone in its zone, so it owns everything: it lacks 32, and each partition of n00 lacks a zone.
    assert least_moves(changed(ring, rezoned, 2)) == 32
    assert least_moves(changed(ring, ring.nodes, 3)) == 64
    assert least_moves(changed(ring, ring.nodes, 1)) == 0


# Any history


def check_follows(before, after):
    """What must hold between a ring and the next, counted slowly."""
    assert after.epoch == before.epoch + 1 and after.deletes == before.deletes
    assert Ring.loads(after.dumps()).hash == after.hash
    for partition in range(before.partitions):
        had, has = set(owners(before, partition)), set(owners(after, partition))
        old, new = before.move(partition), after.move(partition)
        joined, joins = old and old.target, new and new.target
        assert has - had <= {joined}, "an owner that did not join"
        if has != had or joined != joins:
            assert after.since[partition] == after.epoch
        else:
            assert after.since[partition] == before.since[partition]
        assert len(has) >= min(len(had), after.replication)
        if had - has and not has - had:
            assert old is None and len(has) >= after.replication
        if new is not None and old is not None:
            assert new == old
        if new is not None:
            assert new.target not in has and (new.source is None or new.source in has)


def check_target(ring):
    """That a ring is what it is to be: owners, zones and counts, and nobody who has to go."""
    assert not ring.moves and settled(ring) is None and steps(ring) == []
    assert all(each.state == "active" for each in ring.nodes)
    reach = min(ring.replication, len({each.zone for each in ring.nodes}))
    for partition in range(ring.partitions):
        found = ring.owners(partition)
        assert len(found) == ring.replication
        assert len({each.zone for each in found}) == reach
    counts = [len(ring.owned_partitions(each.id)) for each in ring.nodes]
    assert (abs(counts - ideal_counts(ring.nodes, ring.partitions, ring.replication)) < 1).all()


def drawn_nodes(draw, ring):
    """Other nodes: some of the present ones draining or changed, some back, some new."""
    nodes = []
    for each in ring.nodes:
        state = draw(st.sampled_from(["active", "active", "active", "draining"]))
        zone, weight = (
            draw(st.sampled_from([each.zone, each.zone, *"abc"])),
            draw(st.sampled_from([each.weight, 1.0, 3.0])),
        )
        nodes.append(msgspec.structs.replace(each, state=state, zone=zone, weight=weight))
    known = {each.id for each in nodes}
    new = [node(at, draw(st.sampled_from("abcd"))) for at in draw(st.sets(st.integers(0, 9), max_size=2))]
    nodes += [each for each in new if each.id not in known]
    return nodes if any(each.state == "active" for each in nodes) else with_state(nodes, "active", nodes[0].id)


def next_of(draw, ring):
    """A change of any kind that is possible now, None where the one drawn is not."""
    kind = draw(st.sampled_from(["change", "begin", "begin", "finish", "finish", "cancel", "drop", "settle"]))
    if kind == "change":
        nodes = drawn_nodes(draw, ring)
        active = sum(each.state == "active" for each in nodes)
        return changed(ring, nodes, draw(st.integers(1, min(4, active))))
    if kind in ("begin", "drop"):
        todo = [
            each
            for each in steps(ring)
            if each.partition not in ring.moving and (each.target is None) == (kind == "drop")
        ]
        if kind == "drop":
            return dropped(ring, draw(st.lists(st.sampled_from(todo), unique=True))) if todo else None
        one_each = list({each.partition: each for each in todo}.values())
        return begin(ring, draw(st.lists(st.sampled_from(one_each), unique=True))) if one_each else None
    if kind in ("finish", "cancel"):
        chosen = draw(st.sets(st.sampled_from(sorted(ring.moving)))) if ring.moves else set()
        return (finish if kind == "finish" else cancel)(ring, chosen)
    return settled(ring) if kind == "settle" else None


@given(st.data())
def test_any_history_keeps_owners_and_ends_at_the_target(data):
    zones = data.draw(st.lists(st.sampled_from("abc"), min_size=1, max_size=5))
    ring = first_ring("c", nodes_of(zones), 16, data.draw(st.integers(1, min(3, len(zones)))))
    ring = with_delete(ring, Selector("d"), 0, 9)
    for _ in range(data.draw(st.integers(1, 10))):
        after = next_of(data.draw, ring)
        if after is not None:
            check_follows(ring, after)
            ring = after
    end, _ = carried_out(ring)
    check_target(end)


CHANGES = {
    "a node added": (lambda nodes: [*nodes, node(40, "a")], 3),
    "nodes of a new zone added": (lambda nodes: [*nodes, *(node(40 + at, "g") for at in range(3))], 3),
    "a node removed": (lambda nodes: with_state(nodes, "draining", "n01"), 3),
    "a zone removed": (lambda nodes: with_state(nodes, "draining", "n00", "n01", "n02", "n03"), 3),
    "a node replaced": (lambda nodes: [*with_state(nodes, "draining", "n05"), node(40, nodes[5].zone)], 3),
    "weights changed": (lambda nodes: [node(at, each.zone, 1 + at % 3) for at, each in enumerate(nodes)], 3),
    "replication raised": (lambda nodes: nodes, 4),
    "replication lowered": (lambda nodes: nodes, 2),
}


@pytest.mark.parametrize(
    "zones", ["a" * 24, "abcdef" * 4, "aaaabbbbcccc"], ids=["one zone", "six zones", "three zones"]
)
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_carried_out_bit_by_bit_moves_within_1_percent_of_what_it_would_at_once(change, zones):
    alter, replication = CHANGES[change]
    ring = first_ring("c", nodes_of(sorted(zones)), 512, 3)
    ring = changed(ring, alter(list(ring.nodes)), replication)
    todo = steps(ring)
    planned = sum(step.target is not None for step in todo)
    assert planned <= 1.01 * least_moves(ring) + 1
    end, moved = carried_out(ring, random.Random(7), wave=len(todo) // 5)
    check_target(end)
    assert moved <= 1.01 * planned + 1
