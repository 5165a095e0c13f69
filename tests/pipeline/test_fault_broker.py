"""The broker is away, or restarts with acks pending: no PUBACK goes out for what is not durable."""

from collections.abc import Callable

import pytest

from tests.cluster import Cluster
from tests.flow import Flow, check_dead, check_settled, check_stored, check_talks
from tests.support import wait_until

Make = Callable[..., Cluster]
MakeFlow = Callable[..., Flow]
MESSAGES = 50


def test_broker_that_is_not_there_at_the_start_is_waited_for(make_cluster: Make, make_flow: MakeFlow) -> None:
    cluster = make_cluster(nodes=1)
    for worker in cluster.workers:
        worker.start()
    status = wait_until(cluster.status, 60, "the bridge to be heard")
    assert not status["mqtt"]["connected"]
    # Refused at once or hung up on after that, as it happens: the proxy before the broker accepts, then resets.
    wait_until(lambda: (cluster.status() or status)["mqtt"]["last_disconnect"], what="an attempt that failed")
    cluster.broker.start()
    cluster.wait_ready()
    flow = make_flow(cluster)
    flow.send(MESSAGES)
    check_stored(cluster, flow.points)
    check_settled(cluster)


def acks_taken(cluster: Cluster) -> int:
    """Acks of batches that the bridge has taken, in whatever way."""
    status = wait_until(cluster.status, what="a status of the bridge")
    counts = status["delivery"]
    return int(counts.get("acks", 0) + counts.get("duplicate_acks", 0) + sum(status["ignored"].values()))


@pytest.mark.parametrize("forgets", [False, True], ids=["persistence", "none"])
def test_late_acks_acknowledge_nothing_of_what_came_after_the_broker_restarted(
    make_cluster: Make, make_flow: MakeFlow, forgets: bool
) -> None:
    """Packet ids begin again in a new session: a PUBACK that was pending would hit another message."""
    cluster = make_cluster(nodes=2).start()
    cluster.block_marks()  # so that no spool can make anything durable
    device, node = cluster.device_of("ing1"), cluster.nodes["ing1"]
    flow = make_flow(cluster)
    cluster.bridge.acks.cut()  # the nodes keep their acks
    flow.send(MESSAGES, device)
    check_stored(cluster, flow.points)
    flow.wait_acked()
    assert cluster.bridge.acked == 0
    node.ingest.stall("up")  # nothing more becomes durable
    cluster.broker.stop()
    if forgets:
        (cluster.data / "broker" / "mosquitto.db").unlink()
    before = len(cluster.bridge.mqtt.passages)
    cluster.broker.start()
    wait_until(lambda: any(talk.is_subscribed for talk in cluster.bridge.talks[before:]), 30, "a new subscription")
    flow.send(MESSAGES, device)
    flow.wait_acked()
    expected = MESSAGES if forgets else 2 * MESSAGES
    wait_until(lambda: len(cluster.bridge.talks[-1].delivered) >= expected, what="the messages to be delivered")
    first, last = cluster.bridge.talks[before - 1], cluster.bridge.talks[-1]
    shared = {each.packet_id for each in first.delivered} & {each.packet_id for each in last.delivered}
    assert shared, "no packet id came again: this test shows nothing"
    taken = acks_taken(cluster)
    cluster.bridge.acks.heal()
    wait_until(lambda: acks_taken(cluster) > taken, 30, "the acks that were kept to arrive")
    assert cluster.bridge.talks[-1].acked == []
    node.ingest.heal()
    check_stored(cluster, flow.points)
    wait_until(lambda: len(cluster.bridge.talks[-1].acked) == expected, 30, "their own PUBACKs")
    cluster.unblock_marks()
    check_settled(cluster)
    check_talks(cluster)


def test_broker_that_restarts_again_and_again_while_points_flow_loses_none(
    make_cluster: Make, make_flow: MakeFlow
) -> None:
    cluster = make_cluster(nodes=2, replication=2).start()
    flow = make_flow(cluster, bad_every=50).start(rate=300)
    for _ in range(4):
        seen = cluster.bridge.acked
        wait_until(lambda seen=seen: cluster.bridge.acked > seen + 100, what="messages to flow")
        cluster.broker.stop()
        cluster.broker.start()
    flow.stop()
    flow.wait_acked()
    check_stored(cluster, flow.points)
    check_settled(cluster)
    check_talks(cluster)


def test_refused_message_that_is_delivered_again_and_again_lies_in_the_dead_letter_once(
    make_cluster: Make, make_flow: MakeFlow
) -> None:
    """Behind a message that is not durable no PUBACK goes out, though the dead letter has the refused ones."""
    cluster = make_cluster(nodes=2).start()
    cluster.block_marks()
    cluster.nodes["ing1"].kill()
    first, bad = make_flow(cluster), make_flow(cluster, bad_every=1, prefix="bad")
    first.send(1, cluster.device_of("ing1"))
    first.wait_acked()
    bad.send(MESSAGES, cluster.device_of("ing2"))
    bad.wait_acked()
    for hurt in (cluster.bridge.mqtt.reset, cluster.bridge.mqtt.reset, cluster.bridge.kill):
        wait_until(lambda: len(cluster.bridge.talks[-1].delivered) > MESSAGES, 30, "all messages to be delivered")
        wait_until(lambda: len(cluster.bridge.dead()) >= MESSAGES, 30, "the dead letter")
        assert cluster.bridge.acked == 0
        before = len(cluster.bridge.mqtt.passages)
        hurt()
        if not cluster.bridge.is_up:
            cluster.bridge.start()
        wait_until(lambda before=before: len(cluster.bridge.mqtt.passages) > before, 30, "the bridge to connect again")
    wait_until(lambda: len(cluster.bridge.talks[-1].delivered) > MESSAGES, 30, "all messages to be delivered")
    cluster.nodes["ing1"].start()
    check_stored(cluster, first.points)
    check_stored(cluster, bad.points)
    wait_until(lambda: len(cluster.bridge.talks[-1].acked) > MESSAGES, 30, "PUBACKs")
    cluster.unblock_marks()
    check_settled(cluster)
    check_dead(cluster, bad)
    check_talks(cluster)
