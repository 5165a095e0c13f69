"""Which node is asked for which partitions."""

from hypothesis import given
from hypothesis import strategies as st

from common import protocol
from common.protocol import AggregateRequest
from common.series import partition_of, series_key
from tests.workers.query.fake import make_ring
from workers.query.plan import Plan, from_bitmap

PORTS = [5000, 5010, 5020]


def request(tags: dict[str, str] | None) -> AggregateRequest:
    return AggregateRequest(b"", "sensor_1", "temperature", tags, None, None)


def test_without_tags_every_partition_is_wanted_and_each_first_owner_asked_for_its_own() -> None:
    ring = make_ring(PORTS, 64)
    plan = Plan.of(ring)
    assert plan.wanted(request(None)) == plan.everything == 2**64 - 1
    groups = plan.assign(plan.everything)
    assert {node: plan.bitmap(mask) for node, mask in groups.items()} == {
        node.id: ring.owned_bitmap(node.id) for node in ring.nodes
    }


def test_with_exact_tags_only_the_owner_of_one_partition_is_asked() -> None:
    ring = make_ring(PORTS, 64)
    plan = Plan.of(ring)
    for tags in ({}, {"room": "kitchen"}):
        partition = partition_of(series_key("sensor_1", "temperature", tags), 64)
        wanted = plan.wanted(request(tags))
        assert wanted == 1 << partition
        assert plan.assign(wanted) == {ring.owners(partition)[0].id: wanted}


def test_a_node_to_be_avoided_is_replaced_by_the_next_owner_of_each_of_its_partitions() -> None:
    ring = make_ring(PORTS, 64, replication=2)
    plan = Plan.of(ring)
    groups = plan.assign(plan.everything, {"ing1"})
    assert set(groups) == {"ing2", "ing3"}
    assert sum(groups.values()) == plan.everything
    for node, mask in groups.items():
        assert mask & ~plan.owned(node) == 0
    assert groups["ing2"] == from_bitmap(ring.owned_bitmap("ing2"))


def test_partitions_whose_owners_are_all_avoided_are_in_no_group() -> None:
    plan = Plan.of(make_ring(PORTS, 64))
    groups = plan.assign(plan.everything, {"ing1"})
    assert set(groups) == {"ing2", "ing3"}
    assert sum(groups.values()) == plan.everything & ~plan.owned("ing1")


@given(st.sets(st.integers(0, 63)), st.sets(st.sampled_from(["ing1", "ing2", "ing3"])), st.integers(1, 3))
def test_groups_are_disjoint_owned_wanted_and_leave_out_only_what_has_no_owner(
    wanted: set[int], avoid: set[str], replication: int
) -> None:
    ring = make_ring(PORTS, 64, replication)
    plan = Plan.of(ring)
    mask = sum(1 << p for p in wanted)
    groups = {node: protocol.members(plan.bitmap(group)) for node, group in plan.assign(mask, avoid).items()}
    given_to = {partition: node for node, group in groups.items() for partition in group}
    assert sum(map(len, groups.values())) == len(given_to)
    for partition in wanted:
        left = [node.id for node in ring.owners(partition) if node.id not in avoid]
        assert given_to.get(partition) == (left[0] if left else None)
    assert set(given_to) <= wanted


def test_the_bitmap_is_that_of_the_bus_protocol() -> None:
    plan = Plan.of(make_ring(PORTS, 16))
    assert plan.bitmap(1 << 0 | 1 << 9) == protocol.bitmap([0, 9], 16) == b"\x01\x02"
    assert from_bitmap(b"\x01\x02") == 1 << 0 | 1 << 9
