"""The delivery state machine against simulated owners: no socket, and a clock that the test turns."""

from typing import Any

import pytest

from common import protocol
from common.points import PointBatch
from common.protocol import Ack
from common.series import series_key
from tests.workers.bridge.delivery_world import KEYS, ME, ONE_OWNER, World, keys_in, owner_of, ring
from workers.bridge.batch import Message
from workers.bridge.openrows import MAX_KEY_BYTES
from workers.bridge.payload import Place


def test_a_message_is_released_when_every_owner_of_its_points_has_acked() -> None:
    world = World(ring(1, ONE_OWNER)).start()
    message = world.publish(*range(40))
    world.tick()
    assert message.waiting == 3
    for left, node in ((2, "n0"), (1, "n1"), (0, "n2")):
        (batch,) = world.batches(node)
        assert keys_in(batch) == {KEYS[n] for n in range(40) if owner_of(n) == node}
        world.ack(node, batch)
        assert message.waiting == left
    assert world.delivery.is_idle
    assert world.delivery.memory_bytes == 0


def test_with_two_owners_each_gets_every_point_and_both_must_ack() -> None:
    world = World(ring(1, [[0, 1], [1, 2]])).start()
    message = world.publish(0)
    world.tick()
    first, second = sorted(node for node in world.owners if world.owners[node].sent)
    world.ack(first, world.batches(first)[0])
    assert message.waiting == 1
    world.ack(second, world.batches(second)[0])
    assert message.waiting == 0


def test_a_batch_says_who_sent_it_to_whom_by_which_ring() -> None:
    first = ring(4, ONE_OWNER)
    world = World(first).start()
    world.publish(0)
    world.tick()
    node = owner_of(0)
    header = world.batches(node)[0].header
    assert (header.cluster, header.destination, header.sender, header.incarnation) == ("c", node, "bridge1", ME)
    assert (header.epoch, header.ring_hash, header.born) == (4, first.hash, 4)
    assert (header.to_incarnation, header.reply_to) == (100, "tcp://127.0.0.1:9")


def test_points_wait_for_the_linger_and_a_full_batch_does_not() -> None:
    world = World(ring(1, [[0]], nodes=1), linger_ms=50.0, batch_rows=3).start()
    world.publish(0)
    world.tick()
    world.tick(0.04)
    assert not world.batches("n0")
    world.tick(0.02)
    assert len(world.batches("n0")) == 1
    world.publish(*range(7))
    world.tick()
    rows = [len(PointBatch.decode(batch.body)) for batch in world.batches("n0")]
    assert (max(rows), sum(rows)) == (3, 7)


def test_while_an_owner_works_on_a_batch_the_next_gathers_for_four_lingers_or_until_the_ack() -> None:
    world = World(ring(1, [[0]], nodes=1), linger_ms=50.0).start()
    world.publish(0)
    world.tick()
    world.tick(0.06)
    (working,) = world.batches("n0")
    world.publish(1)
    world.tick()
    world.tick(0.06)
    assert not world.batches("n0")
    world.ack("n0", working)
    world.tick()
    assert len(world.batches("n0")) == 1
    world.publish(2)
    world.tick()
    world.tick(0.19)
    assert not world.batches("n0")
    world.tick(0.02)
    assert len(world.batches("n0")) == 1


def test_one_message_with_long_keys_is_sent_in_batches_far_below_the_limit_of_the_bus() -> None:
    world = World(ring(1, [[0]], nodes=1), window_bytes=1 << 30).start()
    message = Message(0x32, b"\0\1", b"t")
    keys = [series_key("d", "m", {"tag": f"{n:08}".ljust(60_000)}) for n in range(300)]
    world.delivery.add(message, [(Place(key, 0), 1, float(n)) for n, key in enumerate(keys)])
    world.tick()
    sent = world.batches("n0")
    assert [key for batch in sent for key in PointBatch.decode(batch.body).keys] == keys
    assert max(len(batch.body) for batch in sent) < MAX_KEY_BYTES + 70_000
    assert message.waiting == len(sent) > 1
    for batch in sent:
        world.ack("n0", batch)
    assert message.waiting == 0


def test_nothing_is_sent_to_a_node_before_it_has_answered_a_beat() -> None:
    world = World(ring(1, ONE_OWNER))
    world.publish(0)
    world.keep_up(0)
    world.tick()
    assert not world.batches(owner_of(0))
    world.beat()
    world.tick()
    assert len(world.batches(owner_of(0))) == 1


def test_one_dead_owner_does_not_hold_up_the_others() -> None:
    world = World(ring(1, ONE_OWNER)).start()
    world.silence("n0")
    status = world.delivery.status(world.now)
    assert [status[node]["up"] for node in ("n0", "n1", "n2")] == [False, True, True]
    messages = [world.publish(n) for n in range(40)]
    world.tick()
    assert not world.batches("n0")
    assert [message.waiting for message in messages] == [int(owner_of(n) != "n0") for n in range(40)]
    world.ack_all()
    assert not any(message.waiting for message in messages)


def test_the_window_bounds_what_is_in_flight_and_acks_open_it() -> None:
    world = World(ring(1, [[0]], nodes=1), window_bytes=65536, batch_rows=1000).start()
    for number in range(10):
        world.publish(*[0] * 1000, time_ns=number)
    world.tick()
    sent = world.batches("n0")
    assert sum(len(batch.body) for batch in sent) <= 65536
    assert len(sent) == 3
    world.ack("n0", sent[0])
    world.tick()
    assert len(world.batches("n0")) == 1
    assert not world.delivery.is_blocked, "an ack will tell"


def test_a_batch_larger_than_the_window_goes_alone() -> None:
    world = World(ring(1, [[0]], nodes=1), window_bytes=65536).start()
    world.publish(*[0] * 19_000)
    world.publish(1)
    world.tick()
    assert len(world.batches("n0")) == 1


def test_a_socket_that_takes_nothing_is_tried_again() -> None:
    world = World(ring(1, [[0]], nodes=1)).start()
    world.owners["n0"].accepts = False
    message = world.publish(0)
    world.tick()
    assert world.delivery.is_blocked
    world.owners["n0"].accepts = True
    world.tick()
    assert not world.delivery.is_blocked
    world.ack_all()
    assert message.waiting == 0
    assert world.delivery.counts["resends"] == 0


def test_points_for_a_node_that_is_away_or_left_alone_do_not_keep_the_loop_turning() -> None:
    world = World(ring(1, ONE_OWNER), spool_bytes=0).start()
    for number in range(40):
        world.publish(number)
    world.owners["n0"].accepts = False
    world.tick()
    assert world.delivery.is_blocked
    world.ack("n1", world.batches("n1")[0], rows=0, error=protocol.ERR_DISK)
    for _ in range(8):
        world.tick(0.5)
        world.beat("n1", "n2")
        world.batches("n2")
    assert not world.delivery.is_blocked
    assert {node: lane["waiting_batches"] for node, lane in world.delivery.status(world.now).items()}["n0"] == 1


# Answers that are not to be believed


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"cluster": "other"}, "cluster"),
        ({"destination": "bridge2"}, "destination"),
        ({"to_incarnation": 7}, "incarnation"),
        ({"re_incarnation": 7}, "incarnation"),
        ({"sender": "stranger"}, "sender"),
        ({"incarnation": 99}, "sender-incarnation"),
    ],
)
def test_an_ack_that_is_not_for_this_batch_of_this_process_is_counted_and_ignored(
    wrong: dict[str, Any], reason: str
) -> None:
    world = World(ring(1, ONE_OWNER)).start()
    message = world.publish(0)
    world.tick()
    node = owner_of(0)
    (batch,) = world.batches(node)
    world.answer(node, protocol.ACK, batch.header, Ack(1), **wrong)
    assert (message.waiting, world.delivery.mismatches) == (1, {reason: 1})
    world.ack(node, batch)
    assert message.waiting == 0


@pytest.mark.parametrize(
    "ack", [Ack(0), Ack(2), Ack(0, [(1, "x")]), Ack(0, [(-1, "x")]), Ack(1, [(0, "x")]), Ack(-1, [(0, "x"), (0, "x")])]
)
def test_an_ack_of_other_rows_than_were_sent_is_ignored(ack: Ack) -> None:
    world = World(ring(1, [[0]], nodes=1)).start()
    message = world.publish(0)
    world.tick()
    world.answer("n0", protocol.ACK, world.batches("n0")[0].header, ack)
    assert (message.waiting, world.delivery.mismatches, world.refused) == (1, {"rows": 1}, [])


def test_another_node_cannot_ack_for_the_owner() -> None:
    world = World(ring(1, ONE_OWNER)).start()
    message = world.publish(0)
    world.tick()
    node, other = owner_of(0), next(name for name in world.owners if name != owner_of(0))
    world.answer(other, protocol.ACK, world.batches(node)[0].header, Ack(1))
    assert message.waiting == 1


def test_a_second_ack_of_a_batch_changes_nothing() -> None:
    world = World(ring(1, [[0]], nodes=1)).start()
    one, two = world.publish(0), world.publish(1)
    world.tick()
    (batch,) = world.batches("n0")
    world.ack("n0", batch)
    world.ack("n0", batch)
    assert (one.waiting, two.waiting, world.delivery.counts["duplicate_acks"]) == (0, 0, 1)
    assert world.delivery.memory_bytes == 0


@pytest.mark.parametrize(
    "frames", [[], [b"ack"], [b"ack", b"x", b"y"], [b"nonsense", b"", b""], [b"beat", b"\x80", b""]]
)
def test_garbage_is_counted_and_ignored(frames: list[bytes]) -> None:
    world = World(ring(1, ONE_OWNER)).start()
    world.delivery.receive(frames, world.now)
    assert world.delivery.mismatches == {"garbage": 1}


def test_an_ack_with_a_body_that_is_none_is_garbage() -> None:
    world = World(ring(1, [[0]], nodes=1)).start()
    message = world.publish(0)
    world.tick()
    world.answer("n0", protocol.ACK, world.batches("n0")[0].header, {"rows": "many"})
    assert (message.waiting, world.delivery.mismatches) == (1, {"garbage": 1})


# Time and restarts


def test_a_batch_without_ack_that_no_spool_takes_is_sent_again_under_the_same_sequence() -> None:
    world = World(ring(1, [[0]], nodes=1), spool_bytes=0, ack_timeout_s=5.0).start()
    message = world.publish(0)
    world.tick()
    (first,) = world.batches("n0")
    world.keep_up(4.5)
    assert not world.batches("n0")
    world.keep_up(2.0)
    (again,) = world.batches("n0")
    assert (again.header.sequence, again.body) == (first.header.sequence, first.body)
    assert (world.delivery.counts["timeouts"], message.waiting) == (1, 1)


def test_a_late_ack_is_as_good_as_one_in_time() -> None:
    world = World(ring(1, [[0]], nodes=1), spool_bytes=0).start()
    message = world.publish(0)
    world.tick()
    (batch,) = world.batches("n0")
    world.keep_up(5.5)
    assert world.state("n0") == "down"
    world.ack("n0", batch)
    assert (message.waiting, world.delivery.memory_bytes) == (0, 0)


def test_an_overdue_owner_is_not_buried_under_copies() -> None:
    world = World(ring(1, [[0]], nodes=1), spool_bytes=0, batch_rows=1).start()
    for number in range(50):
        world.publish(number % 40)
    world.tick()
    assert len(world.batches("n0")) == 50
    world.keep_up(7)
    (probe,) = world.batches("n0")
    world.ack("n0", probe)
    world.tick()
    assert len(world.batches("n0")) == 49


@pytest.mark.parametrize("spool_bytes", [0, 1 << 20])
def test_batches_whose_answers_never_settle_them_do_not_keep_others_from_being_stored(spool_bytes: int) -> None:
    world = World(ring(1, [[0]], nodes=1), spool_bytes=spool_bytes, batch_rows=1).start()
    for number in range(5):
        world.publish(number)
    world.tick()
    world.batches("n0")
    stored = set()
    for _ in range(120):
        world.keep_up(0.5)
        for batch in world.batches("n0"):
            good = keys_in(batch) != {KEYS[0]}
            world.ack("n0", batch, rows=int(good))
            stored |= keys_in(batch) if good else set()
    assert stored == set(KEYS[1:5])


def test_a_restarted_node_gets_everything_in_flight_at_once_addressed_to_its_new_process() -> None:
    world = World(ring(1, [[0]], nodes=1), batch_rows=1).start()
    messages = [world.publish(number) for number in range(5)]
    world.tick()
    first = world.batches("n0")
    world.owners["n0"].incarnation = 101
    world.tick(1.0)
    world.beat()
    world.tick()
    again = world.batches("n0")
    assert [batch.header.sequence for batch in again] == [batch.header.sequence for batch in first]
    assert {batch.header.to_incarnation for batch in again} == {101}
    for batch in again:
        world.ack("n0", batch)
    assert [message.waiting for message in messages] == [0] * 5


def test_a_late_answer_of_the_earlier_process_does_not_bring_it_back() -> None:
    world = World(ring(1, [[0]], nodes=1)).start()
    world.tick(1.0)
    (late,) = world.owners["n0"].take(protocol.BEAT)
    world.tick(1.0)
    world.owners["n0"].incarnation = 101
    world.beat()
    world.answer("n0", protocol.BEAT_ACK, late.header, {}, incarnation=100)
    world.publish(0)
    world.tick()
    assert world.batches("n0")[0].header.to_incarnation == 101


def test_a_node_that_is_away_is_probed_often_and_found_again_within_a_probe() -> None:
    world = World(ring(1, [[0]], nodes=1)).start()
    world.silence("n0")
    world.owners["n0"].take(protocol.BEAT)
    world.tick(0.25)
    assert len(world.owners["n0"].take(protocol.BEAT)) == 1
    world.publish(0)
    world.tick(0.25)
    assert not world.batches("n0")
    world.beat()
    world.tick()
    world.ack_all()
    assert world.state("n0") == "catching-up"


def test_latency_is_from_the_first_point_to_the_ack() -> None:
    world = World(ring(1, [[0]], nodes=1), batch_rows=1).start()
    world.publish(0)
    world.tick()
    world.now += 0.25
    world.ack_all()
    assert world.latencies == [pytest.approx(0.25)]


def test_the_log_says_once_that_a_node_is_silent_and_once_that_it_is_back(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="minitrue.bridge.delivery")
    world = World(ring(1, [[0], [1]], nodes=2)).start()
    world.silence("n0")
    world.keep_up(10.0, "n1")
    world.keep_up(2.0)
    said = [(record.message, record.__dict__["fields"]["node"]) for record in caplog.records]
    assert said == [
        ("storage node is down, its points go to the spool", "n0"),
        ("storage node is back", "n0"),
        ("storage node is up, its spool is empty", "n0"),
    ]
