"""Nodes that lose their disk, come back too late or live in another day: no answer lacks a point without saying so."""

from collections.abc import Callable

from tests.oracle import figures
from tests.ringed import RingCluster, traffic
from tests.support import wait_until

Make = Callable[..., RingCluster]
ALWAYS = (0, 2 * 10**18)


def test_node_with_a_wiped_disk_is_not_asked_until_its_co_owners_have_filled_it(make_ring: Make) -> None:
    cluster = make_ring(nodes=3, replication=2)
    with traffic(cluster) as flowing:
        lost = cluster.nodes["ing1"]
        lost.kill()
        cluster.wipe("ing1")
        # Nobody can fill it yet: it is behind, and stays so.
        cluster.nodes["ing2"].requests.cut_from(lambda: lost.process and lost.process.pid)
        cluster.nodes["ing3"].requests.cut_from(lambda: lost.process and lost.process.pid)
        lost.start()
        wait_until(lambda: cluster.node_status("ing1").get("behind"), 30, "ing1 to know that it is behind")
        assert "ing1" in {mark.node for mark in cluster.marks()}
        flowing.run_for(25)
        for name in ("ing2", "ing3"):
            cluster.nodes[name].requests.heal()
        cluster.wait_current()
        flowing.run_for(20)
        flowing.checker.assert_all_answered()


def test_bridge_dies_with_a_spool_its_node_returns_and_the_co_owner_stops_and_answers_say_what_is_missing(
    make_ring: Make,
) -> None:
    cluster = make_ring(nodes=2, replication=2, bridges=2)
    with traffic(cluster) as flowing:
        cluster.nodes["ing1"].kill()
        for name in cluster.bridges:
            wait_until(lambda name=name: cluster.has_spooled(name), 30, f"a spool of {name}")
        flowing.run_for(25)
        cluster.bridges["bridge1"].kill()
        cluster.nodes["ing1"].start()
        wait_until(lambda: not cluster.has_spooled("bridge2"), 30, "the spool of bridge2 to be drained")
        wait_until(lambda: {mark.by for mark in cluster.marks()} == {"bridge1"}, 30, "one mark")
        flowing.run_for(20)
        cluster.nodes["ing2"].kill()
        before = flowing.checker.answers["incomplete"]
        wait_until(lambda: flowing.checker.answers["incomplete"] > before + 5, 30, "incomplete answers")
        asked = {series: figures(cluster.http, series, ALWAYS) for series in flowing.oracle.series[:5]}
        for status, answer in asked.values():
            assert status == 503, answer
            assert "ing1" in str(answer["coverage"]["missing"]), answer
        cluster.nodes["ing2"].start()
        cluster.bridges["bridge1"].start()
