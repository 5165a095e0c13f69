"""Placement: balance, zones, movement and determinism, each against a slow and obvious count."""

import dataclasses
import math
from fractions import Fraction

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import RingError
from common.ring import DeleteRecord, Node, Ring
from common.ringbuild import by_id, first_ring, ideal_counts, place, rebalance, with_delete
from common.selector import Selector


def node(at, zone="a", weight=1.0):
    return Node(f"n{at:04}", "", f"tcp://127.0.0.1:{1000 + 3 * at}", zone, float(weight), "active")


def nodes_of(zones, weights=None):
    pairs = zip(zones, weights or [1] * len(zones), strict=True)
    return [node(at, zone, weight) for at, (zone, weight) in enumerate(pairs)]


@st.composite
def clusters(draw, least=1, most=9):
    count = draw(st.integers(least, most))
    zones = draw(st.lists(st.sampled_from("abcd"), min_size=count, max_size=count))
    weights = draw(st.lists(st.sampled_from([1, 1, 1, 2, 4, 0.3, 7.7]), min_size=count, max_size=count))
    return nodes_of(zones, weights)


def check(nodes, partitions, replication, table):
    """Distinct owners, as many zones as there can be, counts within one of the ideal."""
    assert table.shape == (partitions, replication)
    reachable = min(replication, len({each.zone for each in nodes}))
    for row in table.tolist():
        assert len(set(row)) == replication and min(row) >= 0
        assert len({nodes[at].zone for at in row}) == reachable
    counts = [sum(row.count(at) for row in table.tolist()) for at in range(len(nodes))]
    for count, ideal in zip(counts, ideal_counts(nodes, partitions, replication), strict=True):
        assert abs(count - ideal) < 1
    return counts


# From nothing


def test_placement_under_a_seed_is_pinned():
    table = place(nodes_of("aab", [1, 1, 2]), 16, 2, seed=7)
    assert table.tolist() == [
        [2, 0], [2, 0], [2, 0], [2, 0], [2, 1], [1, 2], [2, 0], [0, 2],
        [2, 1], [1, 2], [0, 2], [0, 2], [2, 1], [2, 1], [2, 1], [1, 2],
    ]  # fmt: skip


def test_the_same_input_gives_the_same_table_and_another_seed_another():
    nodes = nodes_of("aabbc")
    assert place(nodes, 256, 3, 5).tobytes() == place(nodes, 256, 3, 5).tobytes()
    assert place(nodes, 256, 3, 5).tobytes() != place(nodes, 256, 3, 6).tobytes()


def test_the_order_in_which_nodes_are_given_does_not_matter():
    nodes = nodes_of("abcab", [1, 2, 3, 1, 1])
    assert first_ring("c", nodes, 128, 2).hash == first_ring("c", nodes[::-1], 128, 2).hash


@given(clusters(), st.integers(0, 7), st.integers(1, 5), st.integers(0, 3))
def test_any_cluster_is_balanced_within_one_and_spread_over_zones(nodes, bits, replication, seed):
    replication = min(replication, len(nodes))
    check(nodes, 1 << bits, replication, place(nodes, 1 << bits, replication, seed))


def test_without_zones_the_ideal_is_the_exact_share_by_weight():
    weights = [1, 2, 4, 0.5, 2.5]
    shares = ideal_counts(nodes_of("aaaaa", weights), 1024, 1)
    exact = [1024 * Fraction(weight) / Fraction(sum(weights)) for weight in weights]
    assert shares.tolist() == pytest.approx([float(each) for each in exact], rel=1e-12)


def test_a_node_heavier_than_all_others_owns_every_partition_once():
    assert ideal_counts(nodes_of("aaa", [1000, 1, 1]), 64, 2).tolist() == [64, 32, 32]


def test_with_as_many_owners_as_zones_each_zone_holds_everything_whatever_its_weight():
    shares = ideal_counts(nodes_of("aaab", [5, 5, 5, 1]), 60 + 4, 2)
    assert shares.tolist() == pytest.approx([64 / 3] * 3 + [64])


def test_with_more_owners_than_zones_a_light_zone_still_holds_each_partition_once():
    shares = ideal_counts(nodes_of("aaab", [5, 5, 5, 0.01]), 64, 3)
    assert shares.tolist() == pytest.approx([128 / 3] * 3 + [64])


def test_rounding_leaves_a_light_zone_a_copy_of_each_partition():
    # By fractions alone, zones a and c would be rounded up first and leave zone b 63 of the 64 that it must hold.
    nodes = nodes_of("aabbbccccccc", [1 / 2] * 2 + [0.1] * 3 + [1.01 / 7] * 7)
    counts = check(nodes, 64, 4, place(nodes, 64, 4))
    assert sum(counts[2:5]) == 64


def test_with_more_owners_than_zones_copies_are_spread_as_evenly_as_they_can():
    zones = np.array([0, 0, 0, 1, 1, 1])
    table = place(nodes_of("aaabbb"), 64, 4)
    assert np.bincount((zones[table] == 0).sum(axis=1)).tolist() == [0, 0, 64]


def test_the_partitions_of_a_lost_node_are_co_owned_by_all_others_about_evenly():
    table = place(nodes_of("a" * 10), 4096, 3)
    together = table[(table == 0).any(axis=1)]
    shared = np.bincount(together[together != 0], minlength=10)[1:]
    even = shared.sum() / 9
    assert (abs(shared - even) < 5 * math.sqrt(even)).all()


def test_every_node_is_first_owner_of_about_its_share():
    first = np.bincount(place(nodes_of("aabbcc"), 4096, 3)[:, 0], minlength=6)
    assert (abs(first - 4096 / 6) < 5 * math.sqrt(4096 / 6)).all()


@pytest.mark.parametrize(
    ("partitions", "replication", "text"),
    [(12, 1, r"power of two from 1 to 65536 \(was 12\)"), (16, 6, r"must be 1 to 5 \(was 6\)"),
     (16, 4, r"at most the number of nodes that are not draining, 3 \(was 4\)")],
)  # fmt: skip
def test_impossible_sizes_are_refused_with_limit_and_value(partitions, replication, text):
    with pytest.raises(RingError, match=text):
        place(nodes_of("aaa"), partitions, replication)


def test_no_nodes_are_refused():
    with pytest.raises(RingError, match=r"nodes must number 1 to 1000 \(were 0\)"):
        first_ring("c", [], 16, 1)


# After a change


def moved(ring, nodes, table):
    """How many owners have to fetch a partition that they did not own."""
    before = [{owner.id for owner in ring.owners(partition)} for partition in range(ring.partitions)]
    return sum(len({nodes[at].id for at in row} - had) for row, had in zip(table.tolist(), before, strict=True))


def bound(ring, nodes, replication):
    """What must move at least: what no node may keep beyond its share rounded up, or lacks of it rounded down."""
    ideals = ideal_counts(nodes, ring.partitions, replication)
    have = [len(ring.owned_partitions(each.id)) for each in nodes]
    kept = sum(min(had, math.ceil(ideal - 1e-9)) for had, ideal in zip(have, ideals, strict=True))
    lacked = sum(max(0, math.floor(ideal + 1e-9) - had) for had, ideal in zip(have, ideals, strict=True))
    return max(ring.partitions * replication - kept, lacked)


@given(clusters(2), clusters(2), st.integers(3, 7), st.integers(1, 4), st.integers(1, 4), st.data())
def test_any_change_ends_balanced_and_spread(before, after, bits, old, new, data):
    ring = first_ring("c", before, 1 << bits, min(old, len(before)))
    gone = data.draw(st.integers(0, len(after) - 1))
    nodes = after[gone:]  # other zones, weights and numbers, and the first nodes gone
    new = min(new, len(nodes))
    check(nodes, 1 << bits, new, rebalance(ring, nodes, new))


@given(clusters(3, 12), st.sampled_from([1, 2, 3]), st.sampled_from("abcd"), st.sampled_from([1, 2, 0.5]))
def test_adding_a_node_moves_within_1_percent_of_the_bound(nodes, replication, zone, weight):
    partitions = 512
    ring = first_ring("c", nodes, partitions, replication)
    more = [*nodes, node(len(nodes), zone, weight)]
    table = rebalance(ring, more, replication)
    check(more, partitions, replication, table)
    # A zone that was not there, or is needed in each partition, forces moves that the bound does not know of.
    if len({each.zone for each in more}) == 1:
        assert moved(ring, more, table) <= 1.01 * bound(ring, more, replication)


EVEN = [f"{zone}" for zone in "abcdef" for _ in range(4)]
CHANGES = {
    "a node added": (lambda nodes: [*nodes, node(len(nodes), "a")], 3),
    "a zone added": (lambda nodes: [*nodes, *(node(len(nodes) + at, "g") for at in range(4))], 3),
    "a node removed": (lambda nodes: nodes[1:], 3),
    "a zone removed": (lambda nodes: nodes[4:], 3),
    "a node replaced": (lambda nodes: [*nodes[1:], node(len(nodes), "a")], 3),
    "weights changed": (lambda nodes: [node(at, each.zone, 1 + at % 3) for at, each in enumerate(nodes)], 3),
    "replication raised": (lambda nodes: nodes, 4),
    "nothing changed": (lambda nodes: nodes, 3),
}


@pytest.mark.parametrize("zones", [["a"] * 24, EVEN], ids=["one zone", "six zones"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_moves_within_1_percent_of_the_bound(change, zones):
    nodes = nodes_of(zones)
    ring = first_ring("c", nodes, 4096, 3)
    alter, replication = CHANGES[change]
    after = alter(nodes)
    table = rebalance(ring, after, replication)
    check(after, 4096, replication, table)
    assert moved(ring, after, table) <= 1.01 * bound(ring, after, replication)


@pytest.mark.parametrize("zones", [["a"] * 24, ["a", "b"] * 12, EVEN], ids=["one zone", "two zones", "six zones"])
def test_lowering_replication_moves_at_most_1_percent_of_the_partitions(zones):
    nodes = nodes_of(zones)
    ring = first_ring("c", nodes, 4096, 3)
    table = rebalance(ring, nodes, 2)
    check(nodes, 4096, 2, table)
    assert moved(ring, nodes, table) <= 0.01 * 4096 * 2


def test_nothing_moves_where_counts_are_within_one_already_whoever_has_the_one_more():
    nodes = nodes_of("aaaaa")  # 64 partitions: each should own 12.8
    ring = first_ring("c", nodes, 64, 1)
    for short in range(5):
        owners = [short] * 12 + [at for at in range(5) if at != short for _ in range(13)]
        uneven = dataclasses.replace(ring, owner_table=np.array(owners, dtype=np.int32)[:, None])
        assert rebalance(uneven, nodes, 1).tolist() == uneven.owner_table.tolist()


def test_rebalancing_is_deterministic_and_leaves_owners_that_stay_in_their_place():
    nodes = nodes_of("aabbcc")
    ring = first_ring("c", nodes, 512, 2)
    more = [*nodes, node(6, "a")]
    table = rebalance(ring, more, 2)
    assert table.tobytes() == rebalance(ring, more, 2).tobytes()
    same = table == ring.owner_table
    assert same.sum() == 1024 - moved(ring, more, table)


def test_nodes_are_matched_by_id_when_their_places_shift():
    ring = first_ring("c", nodes_of("aaaa"), 256, 1)
    nodes = by_id([Node("a0", "", "tcp://127.0.0.1:900", "a", 1.0, "active"), *ring.nodes])
    table = rebalance(ring, nodes, 1)
    for partition in range(256):
        assert table[partition][0] in (0, ring.owner_table[partition][0] + 1)


def test_a_partition_with_too_few_owners_gets_the_missing_ones():
    ring = first_ring("c", nodes_of("abc"), 64, 3)
    thin = ring.owner_table.copy()
    thin[::2, 1:] = -1
    table = rebalance(dataclasses.replace(ring, owner_table=thin), ring.nodes, 3)
    check(ring.nodes, 64, 3, table)


def test_a_node_that_changes_its_zone_gives_up_only_what_its_new_zone_holds_already():
    nodes = nodes_of("aabbcc")
    ring = first_ring("c", nodes, 512, 3)
    rezoned = [msgspec.structs.replace(nodes[0], zone="b"), *nodes[1:]]
    check(rezoned, 512, 3, rebalance(ring, rezoned, 3))


def test_a_rebalanced_table_makes_a_valid_ring():
    ring = first_ring("c", nodes_of("aab"), 64, 2)
    nodes = (*ring.nodes, node(3, "b"))
    table = rebalance(ring, nodes, 2)
    since = np.where((table != ring.owner_table).any(axis=1), 2, ring.since)
    assert Ring("c", 2, 64, 2, nodes, table, since).epoch == 2


def test_a_thousand_nodes_and_65536_partitions_are_balanced_within_one():
    nodes = nodes_of([f"z{at % 20}" for at in range(1000)], [1 + at % 3 for at in range(1000)])
    table = place(nodes, 65536, 3)
    counts = np.bincount(table.ravel(), minlength=1000)
    assert (abs(counts - ideal_counts(nodes, 65536, 3)) < 1).all()
    zones = np.sort(np.array([at % 20 for at in range(1000)])[table], axis=1)
    assert (zones[:, 1:] != zones[:, :-1]).all()


def test_a_delete_is_the_next_epoch_and_moves_nothing():
    ring = first_ring("c", nodes_of("aab"), 64, 2)
    one = with_delete(ring, Selector("a", "m", {"k": "v"}), 5, 9)
    two = with_delete(one, Selector("b"), -(2**63), 2**63 - 1)
    assert (two.epoch, two.delete_number, [record.number for record in two.deletes]) == (3, 3, [2, 3])
    assert Ring.loads(two.dumps()).hash == two.hash
    assert [record.selector for record in two.deletes] == [Selector("a", "m", {"k": "v"}), Selector("b")]
    assert (one.deletes[0].start_ns, one.deletes[0].end_ns, ring.delete_number) == (5, 9, 0)
    assert (two.owner_table == ring.owner_table).all() and (two.since == ring.since).all()


def test_a_delete_from_late_to_early_is_refused():
    with pytest.raises(RingError, match="delete 2 is from 9 to 5 ns"):
        with_delete(first_ring("c", nodes_of("a"), 4, 1), Selector("a"), 9, 5)


def test_a_ring_that_is_full_of_deletes_takes_no_more():
    ring = dataclasses.replace(first_ring("c", nodes_of("a"), 4, 1), epoch=20_000)
    records = [DeleteRecord(number, "a", None, None, 0, 9) for number in range(1, 10_001)]
    full = dataclasses.replace(ring, deletes=tuple(records))
    with pytest.raises(RingError, match=r"deletes must number at most 10000 \(were 10001\)"):
        with_delete(full, Selector("a"), 0, 9)
