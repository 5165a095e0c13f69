"""Storage nodes die, freeze, answer late and refuse: what the broker was told is stored, and the others go on."""

import time
from collections.abc import Callable

import pytest

from common.ringstore import Mark
from tests.cluster import Cluster
from tests.flow import Flow, check_settled, check_stored, check_talks
from tests.pipeline import client
from tests.support import wait_until

Make = Callable[..., Cluster]
MakeFlow = Callable[..., Flow]
BEHIND = Mark("ing1", "bridge1")
SPOKEN_OF_S = 1.1  # answers speak of points that were PUBACKed at least a second before


def all_acked(cluster: Cluster, flow: Flow) -> None:
    """Wait until the bridge has acknowledged to the broker every message that the broker acknowledged to us."""
    flow.wait_acked()
    wait_until(lambda: cluster.bridge.acked >= flow.messages, 30, f"{flow.messages} PUBACKs of the bridge")


@pytest.mark.parametrize(("how", "replication"), [("killed", 1), ("killed", 2), ("frozen", 2)])
def test_points_for_a_node_that_is_away_are_acknowledged_out_of_the_spool_and_stored_when_it_is_back(
    make_cluster: Make, make_flow: MakeFlow, how: str, replication: int
) -> None:
    cluster = make_cluster(nodes=2, replication=replication).start()
    away, flow = cluster.nodes["ing1"], make_flow(cluster)
    flow.send(100)
    check_stored(cluster, flow.points)
    assert not cluster.marks()
    away.kill() if how == "killed" else away.freeze()
    flow.send(300)
    all_acked(cluster, flow)
    assert cluster.marks() == {BEHIND}
    assert cluster.has_spooled()
    check_stored(cluster, flow.points, nodes=["ing2"])  # one that is away keeps nobody waiting
    away.start() if how == "killed" else away.thaw()
    check_stored(cluster, flow.points)
    check_settled(cluster)
    check_talks(cluster)
    assert not cluster.complaints()


def test_node_that_dies_again_and_again_while_points_flow_gets_them_all(
    make_cluster: Make, make_flow: MakeFlow
) -> None:
    cluster = make_cluster(nodes=3, replication=2).start()
    flow = make_flow(cluster).start(rate=200)
    for name in ("ing1", "ing2", "ing1"):
        cluster.nodes[name].kill()
        wait_until(lambda name=name: Mark(name, "bridge1") in cluster.marks(), what=f"a mark for {name}")
        cluster.nodes[name].start()
        wait_until(lambda name=name: Mark(name, "bridge1") not in cluster.marks(), 30, what="the mark to go")
    flow.stop()
    all_acked(cluster, flow)
    check_stored(cluster, flow.points)
    check_settled(cluster)


def test_acks_that_come_too_late_neither_stop_nor_double_anything(make_cluster: Make, make_flow: MakeFlow) -> None:
    cluster = make_cluster(nodes=2).start()
    cluster.bridge.acks.delay(2.5, "up")  # bridge.ack_timeout_s is 1.5
    flow = make_flow(cluster)
    for _ in range(3):
        flow.send(100)
        all_acked(cluster, flow)  # by the acks or by the spool: nobody waits for more
    cluster.bridge.acks.heal()
    check_stored(cluster, flow.points)
    check_settled(cluster)
    check_talks(cluster)


def test_node_below_its_disk_floor_is_behind_until_there_is_room(make_cluster: Make, make_flow: MakeFlow) -> None:
    cluster = make_cluster(nodes=2)
    full = cluster.nodes["ing1"]
    full.configure({"storage.disk_floor_bytes": 1 << 62})
    cluster.start()
    flow = make_flow(cluster)
    flow.send(200)
    all_acked(cluster, flow)
    assert cluster.marks() == {BEHIND}
    check_stored(cluster, flow.points, nodes=["ing2"])
    full.configure({"storage.disk_floor_bytes": 0})
    full.stop()
    full.start()
    check_stored(cluster, flow.points)
    check_settled(cluster)


def test_bridge_that_is_stopped_while_a_node_is_away_leaves_at_once_and_drains_when_it_is_back(
    make_cluster: Make, make_flow: MakeFlow
) -> None:
    cluster = make_cluster(nodes=2).start()
    flow = make_flow(cluster)
    cluster.nodes["ing1"].kill()
    flow.send(200)
    all_acked(cluster, flow)
    assert cluster.bridge.stop() == 0
    assert cluster.marks() == {BEHIND}  # the spool is there, who drains it is not
    cluster.nodes["ing1"].start()
    cluster.bridge.start()
    check_stored(cluster, flow.points)
    check_settled(cluster)


@pytest.mark.parametrize("replication", [1, 2])
def test_node_that_came_back_and_lacks_points_is_not_asked_for_them(
    make_cluster: Make, make_flow: MakeFlow, replication: int
) -> None:
    cluster = make_cluster(nodes=2, replication=replication, query=True, settings={"query.timeout_s": 2}).start()
    flow, device = make_flow(cluster), cluster.device_of("ing1")
    flow.send(10, device, points=1)
    check_stored(cluster, flow.points)
    cluster.nodes["ing1"].kill()
    flow.send(10, device, points=1)
    all_acked(cluster, flow)
    acked_s = time.monotonic()
    cluster.bridge.kill()  # nobody drains
    cluster.nodes["ing1"].start()
    wait_until(lambda: cluster.node_status("ing1"), 60, "the node to answer")
    assert cluster.held("ing1", flow.points)[device, "m"].count == 10
    wait_until(lambda: time.monotonic() > acked_s + SPOKEN_OF_S)
    for _ in range(20):
        status, answer = client.ask(
            cluster.http, device_id=device, metric_name="m", operation="count", start_time=0, end_time=0
        )
        if replication == 2:
            assert (status, answer["count"]) == (200, 20), answer  # the other owner has them all
        else:
            assert (status, answer["coverage"]["missing"][0]["node"]) == (503, "ing1"), answer
    cluster.bridge.start()
    check_settled(cluster)
    client.wait_for_counts(cluster.http, {(device, "m"): 20}, timeout_s=20)
