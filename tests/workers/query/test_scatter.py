"""Scatter and gather over real sockets: every fault ends in a right answer, or in one that says what it lacks."""

import dataclasses
import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from common import clock, protocol
from common.protocol import AggregateReply, AggregateRequest, ErrorReply, Message
from common.ring import Ring
from common.ringstore import FileStore, Mark
from common.series import partition_of
from tests.support import free_port_range, wait_until
from tests.workers.query.fake import FakeNode, Point, Reaction, make_ring, point
from workers.query import aggregate, scatter
from workers.query.behind import Behind
from workers.query.gather import Gather, Survey
from workers.query.scatter import Scatter

POLL_S = 0.05
TIMEOUT_S = 1.0
POINTS = [point("sensor_1", "temperature", n, float(n), {"n": str(n)}) for n in range(1, 201)]
TOTAL = float(sum(range(1, 201)))


class Cluster:
    """Fake nodes, a ring store and a scatter that knows them."""

    def __init__(self, directory: Path, replication: int = 1, points: list[Point] = POINTS) -> None:
        self.ports = [free_port_range(3) for _ in range(3)]
        self.store = FileStore(directory / "ring.json")
        self.ring = make_ring(self.ports, replication=replication)
        self.store.save(self.ring, 0)
        self.points = points
        self.nodes = {node.id: FakeNode(self.ring, node.id, points) for node in self.ring.nodes}
        self.scatter = Scatter("query-test", self.store, POLL_S)
        self.scatter.start()
        wait_until(lambda: survey(self.scatter).complete(), what="all nodes answer")
        for node in self.nodes.values():
            node.requests.clear()

    def restart(self, node_id: str, ring: Ring | None = None) -> FakeNode:
        self.nodes[node_id] = FakeNode(ring or self.ring, node_id, self.points)
        return self.nodes[node_id]

    def stop(self) -> None:
        self.scatter.close()
        for node in self.nodes.values():
            node.stop()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path)
    yield made
    made.stop()


@pytest.fixture
def doubled(tmp_path: Path) -> Iterator[Cluster]:
    """Two owners for every partition."""
    made = Cluster(tmp_path, replication=2)
    yield made
    made.stop()


def survey(of: Scatter, timeout_s: float = TIMEOUT_S) -> Survey:
    asked = Survey(protocol.STATUS, dict[str, object], timeout_s)
    of.ask(asked)
    return asked


def make_gather(timeout_s: float = TIMEOUT_S, tags: dict[str, str] | None = None) -> Gather[AggregateReply]:
    def ask(bitmap: bytes) -> AggregateRequest:
        return AggregateRequest(bitmap, "sensor_1", "temperature", tags, None, None)

    return Gather(
        protocol.AGGREGATE, AggregateReply, lambda plan: plan.wanted(ask(b"")), ask, timeout_s, aggregate.check
    )


def gather(of: Scatter, timeout_s: float = TIMEOUT_S, tags: dict[str, str] | None = None) -> Gather[AggregateReply]:
    asked = make_gather(timeout_s, tags)
    of.ask(asked)
    return asked


def is_whole(asked: Gather[AggregateReply]) -> bool:
    return asked.complete() and aggregate.finish("sum", asked.replies) == TOTAL


def once(reaction: Callable[[FakeNode, list[bytes], Message], None]) -> Reaction:
    """React to the first request only."""
    done: list[bool] = []

    def react(node: FakeNode, route: list[bytes], message: Message) -> bool:
        if done:
            return False
        done.append(True)
        reaction(node, route, message)
        return True

    return react


def silent(node: FakeNode, route: list[bytes], message: Message) -> bool:
    return True


# The good case


def test_all_partitions_are_answered_once_by_their_owners(cluster: Cluster) -> None:
    asked = gather(cluster.scatter)
    assert is_whole(asked)
    assert sorted(asked.nodes) == ["ing1", "ing2", "ing3"]
    assert [len(node.requests) for node in cluster.nodes.values()] == [1, 1, 1]
    assert aggregate.count(asked.replies) == len(POINTS)


def test_one_series_with_known_tags_costs_one_request_to_one_node(cluster: Cluster) -> None:
    asked = gather(cluster.scatter, tags={"n": "7"})
    assert asked.complete()
    assert aggregate.finish("sum", asked.replies) == 7.0
    assert sum(len(node.requests) for node in cluster.nodes.values()) == 1


def test_requests_name_cluster_destination_and_the_ring(cluster: Cluster) -> None:
    gather(cluster.scatter)
    for node in cluster.nodes.values():
        header = node.requests[0].header
        assert (header.cluster, header.destination, header.sender) == ("test-cluster", node.id, "query-test")
        assert (header.epoch, header.ring_hash) == (cluster.ring.epoch, cluster.ring.hash)
        assert header.incarnation == cluster.scatter.incarnation


def test_questions_of_many_threads_travel_together_and_each_gets_its_own_answer(cluster: Cluster) -> None:
    release = threading.Event()

    def hold(node: FakeNode, route: list[bytes], message: Message) -> bool:
        release.wait(TIMEOUT_S)
        return False

    for node in cluster.nodes.values():
        node.reaction = hold
    asked = [make_gather(5.0, {"n": str(n)}) for n in range(1, 31)]
    threads = [threading.Thread(target=cluster.scatter.ask, args=(each,)) for each in asked]
    for thread in threads:
        thread.start()
    release.set()
    for thread in threads:
        thread.join()
    assert [aggregate.finish("sum", each.replies) for each in asked] == [float(n) for n in range(1, 31)]


def test_no_question_is_left_lying_when_threads_take_the_loop_over_from_one_another(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without clocks that would find it in the end."""
    monkeypatch.setattr(scatter, "TICK_S", 60.0)
    monkeypatch.setattr(scatter, "IDLE_TICK_S", 60.0)
    wait_until(lambda: cluster.scatter._next_tick_s > time.monotonic() + 30.0, what="the last tick that was due")
    rests = itertools.cycle([0.0, 0.0, 0.001, 0.0, 0.003])
    lost: list[int] = []

    def ask_often() -> None:
        for number in range(60):
            gather = make_gather(20.0)
            began_s = time.monotonic()
            cluster.scatter.ask(gather)
            if not is_whole(gather) or time.monotonic() - began_s > 10.0:
                lost.append(number)
            time.sleep(next(rests))

    threads = [threading.Thread(target=ask_often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not lost


def test_questions_of_one_turn_share_one_message_per_node(cluster: Cluster) -> None:
    asked = [make_gather() for _ in range(5)]
    ask_in_one_turn(cluster, asked)
    assert all(is_whole(each) for each in asked)
    for node in cluster.nodes.values():
        assert [message.kind for message in node.requests] == [protocol.AGGREGATES]


def ask_in_one_turn(cluster: Cluster, asked: list[Gather[AggregateReply]]) -> None:
    """All but the last are in the inbox when the scatter thread is woken for the last."""
    cluster.scatter._inbox.extend(asked[:-1])
    cluster.scatter.ask(asked[-1])
    for each in asked[:-1]:
        assert each.done.acquire(timeout=5.0)


def test_who_waits_a_moment_only_does_not_end_the_questions_of_others(cluster: Cluster) -> None:
    release = threading.Event()

    def hold(node: FakeNode, route: list[bytes], message: Message) -> bool:
        release.wait(5.0)
        return False

    for node in cluster.nodes.values():
        node.reaction = hold
    short, long = make_gather(0.05), make_gather(10.0)
    cluster.scatter._inbox.append(long)
    cluster.scatter.ask(short)
    release.set()
    assert not short.complete()
    assert long.done.acquire(timeout=5.0)
    assert is_whole(long)


def test_what_comes_while_a_node_is_busy_gathers_until_it_has_answered(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scatter, "HOLD_S", 30.0)
    reached, release = threading.Event(), threading.Event()

    def hold(node: FakeNode, route: list[bytes], message: Message) -> None:
        reached.set()
        release.wait(5.0)
        node.answer(route, message)

    node = cluster.nodes["ing1"]
    node.reaction = once(hold)
    asked = [make_gather(10.0) for _ in range(4)]
    threads = [threading.Thread(target=cluster.scatter.ask, args=(each,)) for each in asked]
    threads[0].start()
    assert reached.wait(5.0)
    for thread in threads[1:]:
        thread.start()
    wait_until(lambda: sum(len(link.outbox) for link in cluster.scatter._links.values()) >= 3)
    release.set()
    for thread in threads:
        thread.join()
    assert all(is_whole(each) for each in asked)
    assert [message.kind for message in node.requests] == [protocol.AGGREGATE, protocol.AGGREGATES]


def test_a_request_that_is_handed_back_is_asked_alone(cluster: Cluster) -> None:
    node = cluster.nodes["ing2"]
    node.outcome = lambda request: protocol.AggregateOutcome(None, None)  # type: ignore[method-assign]
    asked = [make_gather() for _ in range(3)]
    ask_in_one_turn(cluster, asked)
    assert all(is_whole(each) for each in asked)
    assert [message.kind for message in node.requests] == [protocol.AGGREGATES] + 3 * [protocol.AGGREGATE]


def test_an_error_of_one_request_is_not_one_of_those_that_travel_with_it(cluster: Cluster) -> None:
    node = cluster.nodes["ing2"]
    plain = node.outcome

    def outcome(request: AggregateRequest) -> protocol.AggregateOutcome:
        if request.tags == {"n": "1"}:
            return protocol.AggregateOutcome(None, ErrorReply(protocol.ERR_BAD_REQUEST, "too large"))
        return plain(request)

    node.outcome = outcome  # type: ignore[method-assign]
    everything, other = make_gather(), make_gather()
    ask_in_one_turn(cluster, [everything, other])
    assert is_whole(everything)
    assert is_whole(other)


def test_a_garbled_outcome_harms_only_the_request_that_it_answers(cluster: Cluster) -> None:
    node = cluster.nodes["ing2"]
    plain = node.outcome

    def outcome(request: AggregateRequest) -> protocol.AggregateOutcome:
        answered = plain(request)
        if request.tags == tags and answered.reply is not None:
            broken = msgspec.structs.replace(answered.reply, partitions=b"\xff" * 8)
            return protocol.AggregateOutcome(broken, None)
        return answered

    tags = next({"n": str(n)} for n in range(1, 200) if owner_of(cluster, n) == "ing2")
    node.outcome = outcome  # type: ignore[method-assign]
    before, broken, behind = make_gather(), make_gather(tags=tags), make_gather()
    ask_in_one_turn(cluster, [before, broken, behind])
    assert is_whole(before)
    assert is_whole(behind)
    assert not broken.complete()


def owner_of(cluster: Cluster, n: int) -> str:
    return cluster.ring.owners(partition_of(POINTS[n - 1][0], cluster.ring.partitions))[0].id


# Faults of replies


def test_garbage_frames_are_counted_and_the_right_reply_behind_them_is_taken(cluster: Cluster) -> None:
    def garbage(node: FakeNode, route: list[bytes], message: Message) -> None:
        node.send(route, [b"nonsense"])
        node.send(route, [b"reply", b"\xc1", b""])
        node.send(route, [b"nokind", b"", b""])
        node.send(route, [])
        node.answer(route, message)

    cluster.nodes["ing1"].reaction = once(garbage)
    assert is_whole(gather(cluster.scatter))
    assert cluster.scatter.ignored["garbage"] >= 3


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"cluster": "another"}, "cluster"),
        ({"destination": "query-other"}, "destination"),
        ({"sender": "ing3"}, "sender"),
        ({"to_incarnation": 5}, "incarnation"),
        ({"re_incarnation": 5}, "incarnation"),
        ({"re": 1 << 40}, "stale"),
        ({"version": 2}, "garbage"),
    ],
)
def test_a_reply_that_is_not_for_this_request_is_counted_and_ignored(
    cluster: Cluster, changes: dict[str, object], reason: str
) -> None:
    def wrong(node: FakeNode, route: list[bytes], message: Message) -> None:
        node.points = []  # taken by mistake, it would show
        node.answer(route, message, **changes)
        node.points = POINTS
        node.answer(route, message)

    cluster.nodes["ing1"].reaction = once(wrong)
    assert is_whole(gather(cluster.scatter))
    assert cluster.scatter.ignored == {reason: 1}


def test_a_reply_that_comes_twice_is_taken_once(cluster: Cluster) -> None:
    def twice(node: FakeNode, route: list[bytes], message: Message) -> None:
        node.answer(route, message)
        node.answer(route, message)

    cluster.nodes["ing1"].reaction = once(twice)
    assert is_whole(gather(cluster.scatter))
    wait_until(lambda: cluster.scatter.ignored["stale"] == 1)
    assert is_whole(gather(cluster.scatter))


def test_a_reply_of_an_earlier_request_that_comes_late_is_not_taken_for_the_next_one(cluster: Cluster) -> None:
    kept: list[tuple[list[bytes], Message]] = []
    node = cluster.nodes["ing1"]
    node.reaction = once(lambda node, route, message: kept.append((route, message)))
    first = gather(cluster.scatter, timeout_s=0.3)
    assert not first.complete()

    def late(node: FakeNode, route: list[bytes], message: Message) -> None:
        node.points = []
        node.answer(*kept[0])
        node.points = POINTS
        node.answer(route, message)

    node.reaction = once(late)
    assert is_whole(gather(cluster.scatter))
    assert cluster.scatter.ignored == {"stale": 1}


def test_a_reply_for_partitions_that_were_not_asked_is_refused_whole(cluster: Cluster) -> None:
    node = cluster.nodes["ing1"]
    node.owned = (1 << 64) - 1

    def too_much(node: FakeNode, route: list[bytes], message: Message) -> None:
        everything = AggregateRequest(b"\xff" * 8, "sensor_1", "temperature", None, None, None)
        node.send(route, protocol.pack(protocol.REPLY, node.header(message), node.aggregate(everything)))

    node.reaction = once(too_much)
    asked = gather(cluster.scatter)
    assert not asked.complete()
    assert "partitions that it was not asked for" in asked.trouble["ing1"].reason
    assert sorted(asked.nodes) == ["ing2", "ing3"]
    assert cluster.scatter.ignored == {"garbage": 1}


def test_a_body_that_cannot_be_decoded_ends_the_question_at_once(cluster: Cluster) -> None:
    def broken(node: FakeNode, route: list[bytes], message: Message) -> None:
        node.send(route, protocol.pack(protocol.REPLY, node.header(message), {"partitions": 5}))

    cluster.nodes["ing1"].reaction = once(broken)
    asked = gather(cluster.scatter, timeout_s=30.0)
    assert not asked.complete()
    assert asked.trouble["ing1"].reason.startswith("garbled reply: AggregateReply:")


# Faults of nodes


def test_a_silent_node_costs_the_deadline_and_is_named(cluster: Cluster) -> None:
    cluster.nodes["ing2"].reaction = silent
    begun = time.monotonic()
    asked = gather(cluster.scatter, timeout_s=0.4)
    assert 0.4 <= time.monotonic() - begun < 2.0
    assert not asked.complete()
    assert {node: trouble.reason for node, trouble in asked.trouble.items()} == {"ing2": "no answer within 0.4 s"}
    assert asked.covered == asked.wanted & ~asked.plan.owned("ing2")  # type: ignore[union-attr]
    cluster.nodes["ing2"].reaction = None
    assert is_whole(gather(cluster.scatter))


def test_a_node_whose_answer_comes_too_late_is_told_that_nobody_waits_for_it(cluster: Cluster) -> None:
    node = cluster.nodes["ing2"]
    node.reaction = silent
    gather(cluster.scatter, 0.2)
    wait_until(lambda: node.cancels, what="a cancel")
    (cancel,), (request,) = node.cancels, node.requests
    assert (cancel.header.re, cancel.header.re_incarnation) == (request.header.sequence, request.header.incarnation)
    assert (cancel.header.sender, cancel.header.destination) == (request.header.sender, "ing2")
    assert cluster.scatter.counts["cancelled"] == 1
    assert not cluster.nodes["ing1"].cancels


def test_a_silent_node_is_replaced_by_the_other_owner(doubled: Cluster) -> None:
    doubled.nodes["ing2"].reaction = silent
    asked = gather(doubled.scatter, timeout_s=1.0)
    assert is_whole(asked)
    assert sorted(asked.nodes) == ["ing1", "ing3"]


def test_with_two_owners_each_point_is_counted_once(doubled: Cluster) -> None:
    asked = gather(doubled.scatter)
    assert is_whole(asked)
    assert aggregate.count(asked.replies) == len(POINTS)


def test_a_node_that_is_gone_fails_requests_soon_and_at_once_after_that(cluster: Cluster) -> None:
    cluster.nodes["ing1"].stop()
    begun = time.monotonic()
    asked = gather(cluster.scatter, timeout_s=30.0)
    assert time.monotonic() - begun < 10.0
    assert not asked.complete()
    assert asked.trouble["ing1"].reason == f"not connected (tcp://127.0.0.1:{cluster.ports[0] + 1})"
    begun = time.monotonic()
    assert not gather(cluster.scatter, timeout_s=30.0).complete()
    assert time.monotonic() - begun < scatter.RECONNECT_GRACE_S / 2
    del cluster.nodes["ing1"]


def test_a_node_that_goes_with_a_request_in_hand_and_comes_back_is_asked_again(cluster: Cluster) -> None:
    node = cluster.nodes["ing1"]
    reached = threading.Event()

    def take(node: FakeNode, route: list[bytes], message: Message) -> bool:
        reached.set()
        return True

    node.reaction = take
    asked = make_gather(timeout_s=30.0)
    asking = threading.Thread(target=cluster.scatter.ask, args=(asked,))
    asking.start()
    assert reached.wait(5.0)
    node.stop()
    cluster.restart("ing1")
    asking.join(10.0)
    assert is_whole(asked)
    assert cluster.scatter.counts["lost"] == 1


def test_a_node_that_comes_back_is_used_again(cluster: Cluster) -> None:
    cluster.nodes["ing1"].stop()
    assert not gather(cluster.scatter).complete()
    cluster.restart("ing1")
    wait_until(lambda: is_whole(gather(cluster.scatter)))


def test_a_node_that_is_gone_is_replaced_by_the_other_owner_without_waiting(doubled: Cluster) -> None:
    doubled.nodes.pop("ing1").stop()
    wait_until(lambda: doubled.scatter._links["ing1"].down_since_s, what="the connection is seen to break")
    begun = time.monotonic()
    assert is_whole(gather(doubled.scatter, timeout_s=30.0))
    assert time.monotonic() - begun < scatter.RECONNECT_GRACE_S / 2


def test_a_failing_node_is_named_with_its_error(cluster: Cluster) -> None:
    def fail(node: FakeNode, route: list[bytes], message: Message) -> bool:
        node.send(route, protocol.pack(protocol.ERROR, node.header(message), ErrorReply("internal", "a damaged block")))
        return True

    cluster.nodes["ing3"].reaction = fail
    asked = gather(cluster.scatter, timeout_s=30.0)
    assert not asked.complete()
    assert asked.error is None
    assert asked.trouble["ing3"].reason == "internal: a damaged block"


def test_a_refused_request_is_the_answer_whatever_other_nodes_say(cluster: Cluster) -> None:
    def refuse(node: FakeNode, route: list[bytes], message: Message) -> bool:
        node.send(route, protocol.pack(protocol.ERROR, node.header(message), ErrorReply("bad-request", "too large")))
        return True

    cluster.nodes["ing3"].reaction = refuse
    asked = gather(cluster.scatter)
    assert asked.error == ErrorReply("bad-request", "too large")


# The ring


def moved(ring: Ring, ports: list[int]) -> Ring:
    """The next epoch: ing1 and ing2 have changed places in the owners' table."""
    document = make_ring(ports, epoch=ring.epoch + 1).document()
    document["owners"] = [[{0: 1, 1: 0}.get(row[0], row[0])] for row in document["owners"]]
    return Ring.from_document(document)


def test_not_mine_is_answered_by_asking_again_once_the_ring_has_changed(cluster: Cluster) -> None:
    after = moved(cluster.ring, cluster.ports)
    for node in cluster.nodes.values():
        node.ring = after
        node.owned = int.from_bytes(after.owned_bitmap(node.id), "little")
    asked = make_gather(timeout_s=30.0)
    asking = threading.Thread(target=cluster.scatter.ask, args=(asked,))
    asking.start()
    wait_until(lambda: cluster.nodes["ing1"].requests, what="the first round was asked")
    assert asking.is_alive()
    cluster.store.save(after, cluster.ring.epoch)
    asking.join(10.0)
    assert is_whole(asked)
    assert asked.epoch == after.epoch


@pytest.mark.parametrize(
    "code",
    [
        protocol.ERR_NOT_MINE, protocol.ERR_STALE_EPOCH, protocol.ERR_MOVING, protocol.ERR_DELETES,
        protocol.ERR_BEHIND, protocol.ERR_OPENING,
    ],
)
def test_a_refusal_for_another_ring_is_retried(cluster: Cluster, code: str) -> None:
    def refuse(node: FakeNode, route: list[bytes], message: Message) -> None:
        node.send(route, protocol.pack(protocol.ERROR, node.header(message), ErrorReply(code, "epoch 2")))

    cluster.nodes["ing1"].reaction = once(refuse)
    assert is_whole(gather(cluster.scatter))


def refusing(code: str) -> Reaction:
    def refuse(node: FakeNode, route: list[bytes], message: Message) -> bool:
        node.send(route, protocol.pack(protocol.ERROR, node.header(message), ErrorReply(code, "says the node")))
        return True

    return refuse


def test_a_fenced_node_is_asked_no_more_once_its_partitions_have_moved_though_the_store_is_looked_at_rarely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The refusal makes the scatter look; its node has the old ring, and tells of no newer one."""
    monkeypatch.setattr(sys.modules[__name__], "POLL_S", 600.0)
    cluster = Cluster(tmp_path)
    try:
        cluster.nodes["ing1"].reaction = refusing(protocol.ERR_MOVING)
        asked = make_gather(timeout_s=30.0)
        asking = threading.Thread(target=cluster.scatter.ask, args=(asked,))
        asking.start()
        wait_until(lambda: cluster.nodes["ing1"].requests, what="the fenced node was asked")
        ports = cluster.ports
        after = moved(cluster.ring, ports)
        for node in cluster.nodes.values():
            node.owned = int.from_bytes(after.owned_bitmap(node.id), "little")
            node.reaction = None
        cluster.store.save(after, cluster.ring.epoch)
        asking.join(10.0)
        assert is_whole(asked)
        assert asked.epoch == after.epoch
    finally:
        cluster.stop()


def test_a_worker_that_missed_two_epochs_asks_the_owners_of_today(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "POLL_S", 600.0)
    cluster = Cluster(tmp_path)
    try:
        second = make_ring(cluster.ports, epoch=2)
        cluster.store.save(second, 1)
        third = moved(second, cluster.ports)
        cluster.store.save(third, 2)
        for node in cluster.nodes.values():
            node.ring, node.owned = third, int.from_bytes(third.owned_bitmap(node.id), "little")
        asked = gather(cluster.scatter, timeout_s=10.0)
        assert is_whole(asked)
        wait_until(lambda: cluster.scatter.plan is not None and cluster.scatter.plan.ring.epoch == 3, what="epoch 3")
    finally:
        cluster.stop()


def test_a_node_that_says_that_it_is_behind_is_avoided_for_another_owner(doubled: Cluster) -> None:
    doubled.nodes["ing1"].reaction = refusing(protocol.ERR_BEHIND)
    asked = gather(doubled.scatter)
    assert is_whole(asked)
    assert sorted(asked.nodes) == ["ing2", "ing3"]


def test_for_a_node_that_opens_its_store_another_owner_is_asked_at_once(doubled: Cluster) -> None:
    doubled.nodes["ing1"].reaction = refusing(protocol.ERR_OPENING)
    begun_s = clock.monotonic_s()
    asked = gather(doubled.scatter, timeout_s=30.0)
    assert is_whole(asked)
    assert sorted(asked.nodes) == ["ing2", "ing3"]
    assert len(doubled.nodes["ing1"].requests) == 1
    assert clock.monotonic_s() - begun_s < 1.0


def test_the_only_owner_that_opens_its_store_is_asked_again_at_a_slow_rate_and_named_in_the_end(
    cluster: Cluster,
) -> None:
    cluster.nodes["ing1"].reaction = refusing(protocol.ERR_OPENING)
    asked = gather(cluster.scatter, timeout_s=1.0)
    assert not asked.complete()
    assert asked.trouble["ing1"].reason == "opening: says the node"
    assert 1 < len(cluster.nodes["ing1"].requests) <= 10


def test_the_only_owner_that_says_that_it_is_behind_is_named(cluster: Cluster) -> None:
    cluster.nodes["ing1"].reaction = refusing(protocol.ERR_BEHIND)
    asked = gather(cluster.scatter, timeout_s=5.0)
    assert not asked.complete()
    assert asked.trouble["ing1"].reason.endswith("behind: says the node")  # the last round may have been too short
    assert len(cluster.nodes["ing1"].requests) > 1


def test_what_a_node_said_is_told_also_when_the_last_round_was_too_short_for_its_answer(cluster: Cluster) -> None:
    refuse, asked_before = refusing(protocol.ERR_BEHIND), itertools.count()

    def then_silent(node: FakeNode, route: list[bytes], message: Message) -> bool:
        return next(asked_before) > 0 or refuse(node, route, message)

    cluster.nodes["ing1"].reaction = then_silent
    asked = gather(cluster.scatter, timeout_s=1.0)
    reason = asked.trouble["ing1"].reason
    assert reason.startswith("no answer within 0.") and reason.endswith(" s, before that: behind: says the node")


def test_partitions_that_nobody_owns_up_to_are_missing_when_the_time_is_over(cluster: Cluster) -> None:
    cluster.nodes["ing1"].owned = 0
    asked = gather(cluster.scatter, timeout_s=0.3)
    assert not asked.complete()
    assert asked.trouble["ing1"].reason == "does not own 22 of the partitions that the ring gives it"


def test_a_node_that_moves_to_another_endpoint_is_found_there(cluster: Cluster) -> None:
    cluster.nodes["ing1"].stop()
    ports = [free_port_range(3), *cluster.ports[1:]]
    after = make_ring(ports, epoch=2)
    cluster.restart("ing1", after)
    cluster.store.save(after, 1)
    wait_until(lambda: is_whole(gather(cluster.scatter)))


def test_without_a_ring_a_question_ends_at_once_and_the_ring_is_found_when_it_comes(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "ring.json")
    alone = Scatter("query-test", store, POLL_S)
    alone.start()
    begun = time.monotonic()
    asked = gather(alone, timeout_s=30.0)
    assert time.monotonic() - begun < 5.0
    assert not asked.complete()
    assert asked.epoch == 0
    assert "no ring yet" in alone.ring_fault
    ring = make_ring([free_port_range(3)])
    node = FakeNode(ring, "ing1", POINTS)
    store.save(ring, 0)
    wait_until(lambda: is_whole(gather(alone)))
    alone.close()
    node.stop()


def test_an_invalid_ring_is_told_and_a_good_one_replaces_it(tmp_path: Path) -> None:
    (tmp_path / "ring.json").write_text("{}")
    alone = Scatter("query-test", FileStore(tmp_path / "ring.json"), POLL_S)
    alone.start()
    wait_until(lambda: "ring.json" in alone.ring_fault)
    assert not gather(alone).complete()
    alone.close()


# Surveys


def test_a_survey_names_who_answers_and_why_the_others_do_not(cluster: Cluster) -> None:
    cluster.nodes.pop("ing1").stop()
    cluster.nodes["ing2"].reaction = silent
    asked = survey(cluster.scatter, timeout_s=0.5)
    assert not asked.complete()
    assert set(asked.replies) == {"ing3"}
    assert asked.trouble["ing2"].reason == "no answer within 0.5 s"
    assert set(asked.trouble) == {"ing1", "ing2"}


# Nodes that are behind


def is_noticed(cluster: Cluster, *nodes: str) -> None:
    """Wait until the scatter thread has seen that exactly these are behind."""
    wait_until(lambda: cluster.scatter.plan is not None and set(cluster.scatter.plan.behind) == set(nodes))


def test_a_node_with_a_mark_is_not_asked_and_what_it_owns_is_missing(cluster: Cluster) -> None:
    cluster.store.put_mark(Mark("ing2", "bridge1"))
    is_noticed(cluster, "ing2")
    asked = gather(cluster.scatter, timeout_s=5.0)
    assert not asked.complete()
    assert sorted(asked.nodes) == ["ing1", "ing3"]
    assert asked.trouble["ing2"].reason == "is behind: points for it are in the spool of bridge1"
    assert not cluster.nodes["ing2"].requests


def test_a_node_with_a_mark_that_is_away_is_told_as_both(cluster: Cluster) -> None:
    endpoint = cluster.ring.node("ing2").request_endpoint
    cluster.nodes["ing2"].stop()
    cluster.store.put_mark(Mark("ing2", "bridge1"))
    is_noticed(cluster, "ing2")
    both = f"not connected ({endpoint}), and is behind: points for it are in the spool of bridge1"

    def reason() -> str:
        return cluster.scatter.plan.behind["ing2"][0] if cluster.scatter.plan is not None else ""

    wait_until(lambda: reason() == both, what="both reasons")
    assert gather(cluster.scatter, timeout_s=0.5).trouble["ing2"].reason == both


def test_a_new_ring_does_not_make_a_node_with_a_mark_current(cluster: Cluster) -> None:
    cluster.store.put_mark(Mark("ing2", "bridge1"))
    is_noticed(cluster, "ing2")
    for epoch in range(1, 5):
        cluster.store.save(dataclasses.replace(cluster.ring, epoch=epoch + 1), epoch)
        cluster.scatter.hurry()  # so the ring is adopted in the turn that begins the next question
        assert not gather(cluster.scatter, timeout_s=0.1).complete()
    assert not cluster.nodes["ing2"].requests


def test_with_another_owner_a_node_with_a_mark_is_not_needed(doubled: Cluster) -> None:
    for bridge in ("bridge1", "bridge2"):
        doubled.store.put_mark(Mark("ing2", bridge))
    is_noticed(doubled, "ing2")
    asked = gather(doubled.scatter)
    assert is_whole(asked)
    assert sorted(asked.nodes) == ["ing1", "ing3"]


def test_a_question_waits_a_moment_for_a_mark_to_go(cluster: Cluster) -> None:
    cluster.store.put_mark(Mark("ing2", "bridge1"))
    is_noticed(cluster, "ing2")
    threading.Timer(0.2, lambda: cluster.store.remove_mark(Mark("ing2", "bridge1"))).start()
    assert is_whole(gather(cluster.scatter, timeout_s=5.0))


def test_what_is_known_of_series_is_doubted_when_a_mark_goes(cluster: Cluster) -> None:
    known = cluster.scatter._known
    cluster.store.put_mark(Mark("ing2", "bridge1"))
    is_noticed(cluster, "ing2")
    known.heard("ing1", 1, time.monotonic() + 0.05)
    assert known._asked_s("ing1") > 0
    cluster.store.remove_mark(Mark("ing2", "bridge1"))
    is_noticed(cluster)
    assert known._asked_s("ing1") < 0


def test_an_answer_by_a_newer_ring_makes_the_ring_store_be_looked_at(cluster: Cluster) -> None:
    assert cluster.scatter._view is not None
    cluster.scatter._view._poll_s = 30.0
    wait_until(lambda: cluster.scatter._view._next_s > time.monotonic() + 20.0)
    after = make_ring(cluster.ports, epoch=2)
    cluster.store.save(after, 1)
    cluster.nodes["ing1"].ring = after
    assert is_whole(gather(cluster.scatter))
    wait_until(lambda: cluster.scatter.plan is not None and cluster.scatter.plan.ring.epoch == 2, 5.0)


def test_a_node_behind_still_tells_its_status(cluster: Cluster) -> None:
    cluster.store.put_mark(Mark("ing2", "bridge1"))
    is_noticed(cluster, "ing2")
    assert survey(cluster.scatter).complete()


def test_after_idle_time_marks_are_looked_at_before_the_first_question(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scatter, "IDLE_TICK_S", 60.0)
    wait_until(lambda: cluster.scatter._next_tick_s > time.monotonic() + 20.0, what="idle time")
    cluster.store.put_mark(Mark("ing2", "bridge1"))
    cluster.scatter._behind._look_soon()
    assert not gather(cluster.scatter, timeout_s=0.1).complete()
    assert not cluster.nodes["ing2"].requests


def test_a_store_that_tells_of_a_change_is_looked_at_at_once(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    listeners: list[Callable[[], None]] = []
    monkeypatch.setattr(cluster.store, "watch", listeners.append)
    behind = Behind(cluster.store)
    behind.look(100.0)
    cluster.store.put_mark(Mark("ing2", "bridge1"))
    behind.look(100.0)
    assert set(behind.nodes) == set()
    listeners[0]()
    behind.look(100.0)
    assert set(behind.nodes) == {"ing2"}


def test_marks_that_cannot_be_read_leave_those_known(cluster: Cluster) -> None:
    cluster.store.put_mark(Mark("ing2", "bridge1"))
    is_noticed(cluster, "ing2")
    behind = Behind(cluster.store)
    behind.look(0.0)
    cluster.store.remove_mark(Mark("ing2", "bridge1"))
    folder = next(path for path in cluster.store.path.parent.iterdir() if path.name.endswith(".marks"))
    folder.rmdir()
    folder.write_bytes(b"")
    behind.look(100.0)
    assert set(behind.nodes) == {"ing2"}
