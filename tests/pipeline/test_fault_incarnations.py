"""Frames of processes that are no more arrive late: acks acknowledge nothing, batches change nothing."""

from collections.abc import Callable

from tests.cluster import Cluster
from tests.flow import Flow, check_settled, check_stored, check_talks, missing
from tests.support import wait_until

Make = Callable[..., Cluster]
MakeFlow = Callable[..., Flow]
MESSAGES = 50


def ignored(cluster: Cluster) -> int:
    """Answers to an earlier process that the bridge has ignored."""
    return int(cluster.status().get("ignored", {}).get("incarnation", 0))


def test_acks_of_an_earlier_process_are_ignored(make_cluster: Make, make_flow: MakeFlow) -> None:
    cluster = make_cluster(nodes=2).start()
    cluster.block_marks()  # so that only acks can make anything durable
    flow = make_flow(cluster)
    cluster.bridge.acks.cut()
    flow.send(MESSAGES)
    check_stored(cluster, flow.points)
    cluster.bridge.kill()
    cluster.bridge.start()
    wait_until(lambda: len(cluster.bridge.talks[-1].delivered) == MESSAGES, 30, "the messages to come again")
    assert cluster.bridge.acked == 0
    cluster.bridge.acks.heal()  # the nodes have kept their acks, and send them to whoever listens now
    wait_until(lambda: ignored(cluster) > 0, 30, "acks of the earlier process")
    wait_until(lambda: len(cluster.bridge.talks[-1].acked) == MESSAGES, 30, "PUBACKs")
    cluster.unblock_marks()
    check_stored(cluster, flow.points)
    check_settled(cluster)
    check_talks(cluster)


def test_batches_of_an_earlier_process_that_arrive_late_change_nothing(
    make_cluster: Make, make_flow: MakeFlow
) -> None:
    cluster = make_cluster(nodes=2).start()
    ingest = [node.ingest for node in cluster.nodes.values()]
    flow = make_flow(cluster)
    flow.send(MESSAGES)
    check_stored(cluster, flow.points)
    for proxy in ingest:
        proxy.hold("up")
    held = [each for proxy in ingest for each in proxy.open_passages]
    flow.send(MESSAGES)
    wait_until(lambda: len(cluster.bridge.talks[-1].delivered) == 2 * MESSAGES, what="the messages to be delivered")
    wait_until(lambda: all(each.is_holding for each in held), what="batches to be held up")
    assert missing(cluster, flow.points)
    cluster.bridge.kill()
    cluster.bridge.start()
    check_stored(cluster, flow.points)
    flow.send(MESSAGES)
    before = ignored(cluster)
    for proxy in ingest:
        proxy.heal()
    wait_until(lambda: all(each.is_over for each in held), what="the late batches to arrive")
    wait_until(lambda: ignored(cluster) > before, 30, "answers to the earlier process")
    check_stored(cluster, flow.points)
    check_settled(cluster)
    check_talks(cluster)
