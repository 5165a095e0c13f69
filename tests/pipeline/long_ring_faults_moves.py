"""More of test_ring_faults_moves.py, for `make chaos`: what takes longer, or is shown in part there."""

import signal
from collections.abc import Callable

import pytest

from tests.ringed import Going, RingCluster, owners_of, traffic
from tests.support import wait_until

Make = Callable[..., RingCluster]


def test_target_without_room_on_its_disk_stops_the_move_until_there_is_some(make_ring: Make) -> None:
    cluster = make_ring(nodes=2, replication=1)
    with traffic(cluster) as flowing:
        target = cluster.new_node("ing3")
        target.stop()
        target.configure({"storage.disk_floor_bytes": 1 << 62})
        target.start()
        wait_until(lambda: cluster.node_status("ing3"), 30, "ing3 to answer")
        change = Going(cluster, *cluster.adding("ing3"))
        assert change.wait_for("targets have joined")
        flowing.run_for(25)
        assert not len(cluster.ring.owned_partitions("ing3"))
        target.configure({"storage.disk_floor_bytes": 0})
        target.stop()
        target.start()
        change.end_well()
        cluster.check_still()


def test_two_ringctls_at_once_do_one_after_the_other_what_both_were_told(make_ring: Make) -> None:
    cluster = make_ring(nodes=3, replication=2)
    with traffic(cluster) as flowing:
        cluster.new_node("ing4")
        cluster.new_node("ing5")
        both = [Going(cluster, *cluster.adding(name)) for name in ("ing4", "ing5")]
        codes = [each.end()[0] for each in both]
        assert 0 in codes  # one of them may have been told that the other has taken over
        for name in ("ing4", "ing5"):
            if not cluster.ring.has(name):
                cluster.ringctl(*cluster.adding(name))
        cluster.ringctl("resume", "--take-over")
        cluster.check_still()
        assert cluster.members == [f"ing{number}" for number in range(1, 6)]
        flowing.checker.assert_all_answered()


def test_replication_goes_from_one_to_three_and_back_to_two_and_no_answer_fails(make_ring: Make) -> None:
    cluster = make_ring(nodes=3, replication=1)
    with traffic(cluster) as flowing:
        for replication in (2, 3, 2):
            cluster.ringctl("replication", str(replication), "--yes")
            cluster.check_still()
            assert all(len(owners) == replication for owners in owners_of(cluster.ring))
            flowing.run_for(15)
        flowing.checker.assert_all_answered()


def test_node_replaced_hands_everything_to_the_new_one_and_the_others_keep_theirs(make_ring: Make) -> None:
    cluster = make_ring(nodes=3, replication=2)
    with traffic(cluster) as flowing:
        before = owners_of(cluster.ring)
        cluster.new_node("ing4")
        words = cluster.adding("ing4")
        cluster.ringctl("replace", "ing2", *words[1:])
        cluster.check_still()
        after = owners_of(cluster.ring)
        assert {name for then, now in zip(before, after, strict=True) for name in set(then) - set(now)} == {"ing2"}
        came = [name for then, now in zip(before, after, strict=True) for name in set(now) - set(then)]
        assert len(came) - came.count("ing4") <= 1  # shares are no whole numbers: another may be due one more
        flowing.run_for(15)
        flowing.checker.assert_all_answered()


@pytest.mark.parametrize("stale", ["bridge", "query"])
def test_worker_that_slept_through_two_changes_sends_and_tells_nothing_wrong(make_ring: Make, stale: str) -> None:
    cluster = make_ring(nodes=3, replication=1)
    with traffic(cluster) as flowing:
        worker = cluster.bridge if stale == "bridge" else cluster.query
        assert worker is not None
        cluster.new_node("ing4")
        worker.freeze()
        cluster.ringctl(*cluster.adding("ing4"))
        cluster.ringctl("remove", "ing1", "--yes")
        cluster.nodes["ing1"].signal(signal.SIGCONT)
        worker.thaw()
        flowing.run_for(20)
        cluster.check_still()


def test_source_and_target_that_cannot_reach_each_other_stop_the_move_and_nothing_else(make_ring: Make) -> None:
    cluster = make_ring(nodes=2, replication=1)
    with traffic(cluster) as flowing:
        target = cluster.new_node("ing3")
        for name in ("ing1", "ing2"):
            cluster.nodes[name].requests.cut_from(lambda: target.process and target.process.pid)
        change = Going(cluster, *cluster.adding("ing3"))
        assert change.wait_for("targets have joined")
        flowing.run_for(25)
        assert cluster.ring.moves
        assert not len(cluster.ring.owned_partitions("ing3"))
        flowing.checker.assert_all_answered()
        for name in ("ing1", "ing2"):
            cluster.nodes[name].requests.heal()
        change.end_well()
        cluster.check_still()
        assert len(cluster.ring.owned_partitions("ing3"))


def test_move_cancelled_and_begun_again_gets_there(make_ring: Make) -> None:
    cluster = make_ring(nodes=2, replication=1)
    with traffic(cluster) as flowing:
        cluster.new_node("ing3")
        for _ in range(2):
            words = ["resume", "--take-over"] if cluster.ring.has("ing3") else cluster.adding("ing3")
            change = Going(cluster, *words)
            change.wait_for("targets pull")
            change.kill()
            cluster.ringctl("cancel", "--take-over", "--yes")
            assert not cluster.ring.moves
            flowing.run_for(10)
        cluster.ringctl("resume", "--take-over")
        cluster.check_still()
        flowing.run_for(10)
        flowing.checker.assert_all_answered()
