"""Deletes while points move, are repaired or wait in a spool: deleted points never come back, what came later stays."""

from collections.abc import Callable

from tests.ringed import Going, RingCluster, Traffic, traffic
from tests.support import wait_until

Make = Callable[..., RingCluster]


def delete_some(flowing: Traffic, times: int = 3) -> None:
    """Delete stretches of several series, and publish parts of them again with lower values."""
    for _ in range(times):
        deletion = flowing.delete()
        assert deletion is not None
    flowing.run_for(5)


def test_what_is_deleted_during_a_move_stays_deleted_at_the_new_owner(make_ring: Make) -> None:
    cluster = make_ring(nodes=2, replication=1)
    with traffic(cluster) as flowing:
        target = cluster.new_node("ing3")
        proxies = [cluster.nodes[name].requests for name in ("ing1", "ing2")]
        for proxy in proxies:
            proxy.cut_from(lambda: target.process and target.process.pid)
        change = Going(cluster, *cluster.adding("ing3"))
        assert change.wait_for("targets have joined")
        delete_some(flowing)  # before it pulls
        for proxy in proxies:
            proxy.heal()
            proxy.delay(0.02)
        change.wait_for("targets pull")
        delete_some(flowing)  # while it pulls
        for proxy in proxies:
            proxy.heal()
        change.end_well()
        cluster.check_still()
        flowing.run_for(10)


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
