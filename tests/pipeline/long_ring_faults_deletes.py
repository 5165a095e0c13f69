"""More of test_ring_faults_deletes.py, for `make chaos`: what takes longer, or is shown in part there."""

from collections.abc import Callable

from tests.ringed import RingCluster, Traffic, traffic
from tests.support import wait_until

Make = Callable[..., RingCluster]


def delete_some(flowing: Traffic, times: int = 3) -> None:
    """Delete stretches of several series, and publish parts of them again with lower values."""
    wait_until(flowing.may_delete, 60, "points of each series to be acknowledged")
    for _ in range(times):
        deletion = flowing.delete()
        assert deletion is not None
    flowing.run_for(5)


def test_what_is_deleted_during_a_repair_stays_deleted(make_ring: Make) -> None:
    cluster = make_ring(nodes=2, replication=2)
    with traffic(cluster) as flowing:
        lost, other = cluster.nodes["ing1"], cluster.nodes["ing2"]
        lost.kill()
        cluster.wipe("ing1")
        delete_some(flowing)  # while it is away
        other.requests.cut_from(lambda: lost.process and lost.process.pid)
        lost.start()
        wait_until(lambda: cluster.node_status("ing1").get("behind"), 30, "ing1 to know that it is behind")
        delete_some(flowing)  # before it is filled
        other.requests.heal()
        delete_some(flowing)  # while it is
        cluster.wait_current()
        other.kill()  # what it has got is what it answers now
        flowing.run_for(20)
        other.start()


def test_points_of_a_spool_that_were_deleted_meanwhile_come_back_nowhere(make_ring: Make) -> None:
    cluster = make_ring(nodes=3, replication=2)
    with traffic(cluster) as flowing:
        cluster.nodes["ing1"].kill()
        wait_until(cluster.has_spooled, 30, "a spool")
        flowing.run_for(25)
        delete_some(flowing, 5)
        # Its partitions move meanwhile: the spool is drained to whoever has them then.
        cluster.nodes["ing1"].start()
        cluster.new_node("ing4")
        cluster.ringctl(*cluster.adding("ing4"))
        cluster.wait_current()
        cluster.check_still()
        flowing.run_for(10)
