"""The ring changes while points flow and are asked for: nothing is lost, no answer is wrong, whoever dies at any step.

Every answer is judged while it goes on, see tests/oracle.py; at the end of `traffic` each series is exactly what it has
to be, and the replicas of every partition are equal.
"""

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster import Worker
from tests.machine import LanCluster, lan, small_disk
from tests.ringed import STEPS, Going, RingCluster, owners_of, traffic
from tests.support import Children, require_part, wait_until

Make = Callable[..., RingCluster]
SLOW = ("--wave", "16")
VICTIMS = ("source", "target", "bridge", "query", "ringctl")
ALL = list(itertools.product(VICTIMS, STEPS))
# Those that a move hangs on most; all of them in `make chaos`.
CHOSEN = ALL if os.environ.get("MINITRUE_CHAOS_S") else [ALL[at] for at in (2, 5, 18)]


def test_nodes_added_and_removed_under_load_move_the_least_and_no_answer_fails(make_ring: Make) -> None:
    cluster = make_ring(nodes=3, replication=2)
    with traffic(cluster) as flowing:
        before = cluster.ring
        cluster.new_node("ing4")
        cluster.ringctl(*cluster.adding("ing4"))
        check_least_moved(cluster, before_owners=owners_of(before), least=64 * 2 // 4)
        flowing.run_for(20)
        before = cluster.ring
        cluster.ringctl("remove", "ing1", "--yes")
        check_least_moved(cluster, before_owners=owners_of(before), least=len(before.owned_partitions("ing1")))
        cluster.nodes["ing1"].stop()
        flowing.run_for(20)
        flowing.checker.assert_all_answered()
        assert not cluster.marks()


def check_least_moved(cluster: RingCluster, before_owners: list[list[str]], least: int) -> None:
    cluster.check_still()
    came = [set(now) - set(then) for then, now in zip(before_owners, owners_of(cluster.ring), strict=True)]
    assert sum(map(len, came)) <= least + 1, f"{sum(map(len, came))} partitions came to a node, {least} had to"


@pytest.mark.timeout(120 * len(CHOSEN))
def test_whatever_is_killed_at_whatever_step_of_a_move_the_ring_gets_there_and_no_answer_is_wrong(
    make_ring: Make,
) -> None:
    cluster = make_ring(nodes=3, replication=2)
    seen = set()
    with traffic(cluster) as flowing:
        cluster.new_node("ing4")
        for victim, step in CHOSEN:
            if kill_at(cluster, victim, step):
                seen.add((victim, step))
            cluster.check_still()
            flowing.run_for(5)
        flowing.checker.check()
    missed = set(CHOSEN) - seen
    assert len(missed) <= max(1, len(CHOSEN) // 3), f"moves were over before {missed}"


def kill_at(cluster: RingCluster, victim: str, step: str) -> bool:
    """Add or remove ing4, and kill somebody on the way; whether that moment was met. The ring is still afterwards."""
    comes = not cluster.ring.has("ing4")
    words = cluster.adding("ing4") if comes else ["remove", "ing4", "--yes"]
    change = Going(cluster, *words, *SLOW)
    is_met = change.wait_for(step)
    if victim == "ringctl":
        change.kill()
        if not (cluster.ring.has("ing4") or comes) or (comes and not cluster.ring.has("ing4")):
            return False  # killed before it had begun, or after it was done
        cluster.ringctl("resume", "--take-over")
        return is_met
    worker = victim_of(cluster, victim, comes)
    worker.kill()
    worker.start()
    change.end_well()
    return is_met


def victim_of(cluster: RingCluster, victim: str, comes: bool) -> Worker:
    if victim == "bridge":
        return cluster.bridge
    if victim == "query":
        assert cluster.query is not None
        return cluster.query
    return cluster.nodes["ing4" if (victim == "target") == comes else "ing1"]


def test_target_whose_disk_is_full_stops_the_move_until_there_is_room(make_ring: Make) -> None:
    cluster = make_ring(nodes=2, replication=1, settings={"storage.disk_floor_bytes": 0})
    with small_disk(cluster.data / "storage" / "ing3", 8 << 20) as disk:
        with traffic(cluster) as flowing:
            cluster.new_node("ing3")
            disk.fill()
            change = Going(cluster, *cluster.adding("ing3"))
            assert change.wait_for("targets have joined")
            wait_until(lambda: "No space left on device" in cluster.log("ing3"), 30, "ing3 to find its disk full")
            flowing.run_for(15)
            assert not len(cluster.ring.owned_partitions("ing3"))
            disk.make_room()
            change.end_well()
            cluster.check_still()
            assert len(cluster.ring.owned_partitions("ing3"))
            flowing.checker.assert_all_answered()
        cluster.nodes["ing3"].stop()


def test_source_and_target_between_which_packets_are_lost_hold_up_what_moves_between_them_and_nothing_else(
    children: Children, tmp_path: Path
) -> None:
    require_part("mosquitto")
    with lan("ing1", "ing2", "ing3") as network:
        cluster = LanCluster(children, tmp_path / "lan", network, nodes=3, replication=1)
        try:
            cluster.start()
            with traffic(cluster) as flowing:
                network.cut("ing1", "ing3")
                change = Going(cluster, "remove", "ing3", "--yes")
                wait_until(lambda: {move.target for move in cluster.ring.moves} == {"ing1"}, 60, "others to be done")
                flowing.run_for(15)
                assert {move.target for move in cluster.ring.moves} == {"ing1"}
                network.heal("ing1", "ing3")
                change.end_well()
                cluster.check_still()
                flowing.run_for(5)
                flowing.checker.assert_all_answered()
        finally:
            cluster.close()
            children.stop_all()
