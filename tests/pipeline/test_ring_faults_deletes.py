"""Deletes while points move, are repaired or wait in a spool: deleted points never come back, what came later stays."""

from collections.abc import Callable

from tests.ringed import Going, RingCluster, Traffic, traffic

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
