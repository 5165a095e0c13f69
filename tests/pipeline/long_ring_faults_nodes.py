"""More of test_ring_faults_nodes.py, for `make chaos`: what takes longer, or is shown in part there."""

from collections.abc import Callable

from tests.oracle import figures
from tests.ringed import RingCluster, Traffic, traffic
from tests.support import wait_until

Make = Callable[..., RingCluster]
ALWAYS = (0, 2 * 10**18)


def test_node_that_returns_after_its_partitions_were_given_away_is_asked_for_nothing(make_ring: Make) -> None:
    cluster = make_ring(nodes=3, replication=2)
    with traffic(cluster) as flowing:
        away = cluster.nodes["ing1"]
        away.kill()
        cluster.ringctl("remove", "ing1", "--lost", "--yes")
        assert cluster.members == ["ing2", "ing3"]
        flowing.run_for(20)
        away.start()
        wait_until(lambda: cluster.node_status("ing1"), 30, "ing1 to answer")
        flowing.run_for(20)
        assert all(owner != "ing1" for series in flowing.oracle.series for owner in cluster.owners(series))
        flowing.checker.check()


def test_removed_node_that_comes_back_with_its_old_points_has_exactly_the_right_ones(make_ring: Make) -> None:
    cluster = make_ring(nodes=3, replication=2)
    with traffic(cluster) as flowing:
        cluster.ringctl("remove", "ing1", "--yes")
        cluster.nodes["ing1"].stop()
        for _ in range(5):
            flowing.delete()
        flowing.run_for(10)
        cluster.nodes["ing1"].start()
        wait_until(lambda: cluster.node_status("ing1"), 30, "ing1 to answer")
        cluster.ringctl(*cluster.adding("ing1"))
        cluster.check_still()
        flowing.run_for(10)
        flowing.checker.assert_all_answered()


def test_nodes_whose_clocks_are_a_day_off_hold_and_hand_over_the_same_points(make_ring: Make) -> None:
    cluster = make_ring(nodes=2, replication=2)
    with traffic(cluster) as flowing:
        ahead = cluster.nodes["ing2"]
        ahead.stop()
        ahead.skew(86_400.0)
        ahead.start()
        wait_until(lambda: cluster.node_status("ing2"), 60, "ing2 to answer")
        cluster.wait_current()
        cluster.new_node("ing3", skew_s=-86_400.0)
        cluster.ringctl(*cluster.adding("ing3"))
        cluster.check_still()
        flowing.delete()
        flowing.run_for(20)
        flowing.checker.assert_all_answered()


def test_zone_that_is_lost_takes_no_partition_with_it(make_ring: Make) -> None:
    cluster = make_ring(nodes=4, replication=2)
    with traffic(cluster) as flowing:
        for name in ("ing1", "ing2"):
            cluster.ringctl("zone", name, "north", "--yes")
        for name in ("ing3", "ing4"):
            cluster.ringctl("zone", name, "south", "--yes")
        cluster.check_still()
        for partition in range(cluster.ring.partitions):
            assert {node.zone for node in cluster.ring.owners(partition)} == {"north", "south"}
        for name in ("ing1", "ing2"):
            cluster.nodes[name].kill()
        flowing.run_for(25)
        for name in ("ing1", "ing2"):
            cluster.nodes[name].start()
        cluster.wait_current()
        flowing.run_for(10)
        flowing.checker.assert_all_answered()


def test_node_with_an_empty_disk_and_no_co_owner_makes_answers_incomplete_until_the_loss_is_accepted(
    make_ring: Make,
) -> None:
    cluster = make_ring(nodes=2, replication=1)
    with traffic(cluster) as flowing:
        flowing.flow.stop()
        flowing.flow.wait_acked()
        cluster.wait_current()
        flowing.checker.stop()
    lost = cluster.nodes["ing1"]
    lost.kill()
    cluster.wipe("ing1")
    lost.start()
    wait_until(lambda: cluster.node_status("ing1").get("behind"), 30, "ing1 to know that it is behind")
    for series in flowing.oracle.series:
        status, answer = figures(cluster.http, series, ALWAYS)
        if cluster.owners(series) == ["ing1"]:
            assert status == 503, answer
            assert [each["node"] for each in answer["coverage"]["missing"]] == ["ing1"], answer
        else:
            assert (status, answer["coverage"]["complete"]) == (200, True), answer
    cluster.ringctl("accept-loss", "ing1", "--yes")
    wait_until(lambda: not cluster.marks(), 20, "the mark to go")
    gone = next(each for each in flowing.oracle.series if cluster.owners(each) == ["ing1"])
    wait_until(lambda: figures(cluster.http, gone, ALWAYS)[0] in (200, 404), 20, "answers without what is lost")
    again = Traffic(cluster, seed=9, prefix="new")
    try:
        again.start().finish()  # it works as ever
    finally:
        again.close()
