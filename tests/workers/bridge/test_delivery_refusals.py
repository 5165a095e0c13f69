"""Delivery when nodes refuse batches or rows, and when the ring changes: simulated owners, a clock the test turns."""


import pytest

from common import protocol
from tests.workers.bridge.delivery_world import KEYS, ONE_OWNER, World, keys_in, owner_of, ring
from workers.bridge.lane import RETRY_MIN_S
from workers.bridge.misrouted import AGAIN_S


def test_a_refused_row_goes_to_the_dead_letter_with_its_message_and_the_others_are_stored() -> None:
    world = World(ring(1, [[0]], nodes=1)).start()
    one, two = world.publish(0, 1), world.publish(2)
    world.tick()
    world.ack("n0", world.batches("n0")[0], rows=2, refused=[(2, "too many series")])
    assert world.refused == [(b"t2", "too many series")]
    assert (one.waiting, two.waiting, world.delivery.counts["rows_stored"]) == (0, 0, 2)


def test_a_batch_that_a_node_cannot_decode_goes_whole_to_the_dead_letter() -> None:
    world = World(ring(1, [[0]], nodes=1)).start()
    message = world.publish(0, 1)
    world.tick()
    (batch,) = world.batches("n0")
    world.ack("n0", batch, rows=0, error=protocol.ERR_BAD_BATCH, detail="columns differ")
    assert (world.refused, world.refused_whole) == ([], [(batch.body, "n0: columns differ")])
    assert (message.waiting, world.delivery.is_idle) == (0, True)


@pytest.mark.parametrize(
    "error", [protocol.ERR_DISK, protocol.ERR_DISK_FLOOR, protocol.ERR_INTERNAL, "some-later-code"]
)
def test_a_node_that_cannot_write_now_is_left_alone_for_a_while_and_then_asked_again(error: str) -> None:
    world = World(ring(1, [[0]], nodes=1), spool_bytes=0).start()
    message = world.publish(0)
    world.tick()
    sent = 0
    for _ in range(40):
        for batch in world.batches("n0"):
            sent += 1
            world.ack("n0", batch, rows=0, error=error, detail="full")
        world.keep_up(0.5, step=0.1)
    assert 4 <= sent <= 9, "20 s of backing off: 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, ..."
    assert world.delivery.status(world.now)["n0"]["trouble"] == f"{error}: full"
    assert message.waiting == 1
    world.keep_up(6.0)
    world.ack_all()
    assert message.waiting == 0
    world.tick()
    assert world.delivery.status(world.now)["n0"]["trouble"] == ""


def test_one_failure_that_fails_many_batches_is_backed_off_from_once_and_they_go_again_in_order() -> None:
    world = World(ring(1, [[0]], nodes=1), spool_bytes=0, batch_rows=1).start()
    messages = [world.publish(number) for number in range(6)]
    world.tick()
    first = world.batches("n0")
    for number in (3, 0, 5, 1, 4):
        world.ack("n0", first[number], rows=0, error=protocol.ERR_DISK, detail="full")
    world.ack("n0", first[2])
    messages.append(world.publish(6))
    world.tick(RETRY_MIN_S / 2)
    world.tick(RETRY_MIN_S / 2 + 0.01)
    world.beat()
    world.tick()
    (probe,) = world.batches("n0")
    assert probe.header.sequence == first[0].header.sequence
    world.ack("n0", probe)
    world.tick()
    again = [batch.header.sequence for batch in world.batches("n0")]
    assert again[:4] == [first[number].header.sequence for number in (1, 3, 4, 5)]
    assert len(again) == 5
    assert [message.waiting for message in messages] == [0, 1, 0, 1, 1, 1, 1]


def test_what_is_recalled_goes_in_order_with_what_waited_to_be_sent() -> None:
    world = World(ring(1, [[0]], nodes=1), batch_rows=1).start()
    for number in range(4):
        world.publish(number)
    world.tick()
    first = world.batches("n0")
    world.owners["n0"].accepts = False
    world.publish(4)
    world.tick(0.1)
    world.owners["n0"].accepts = True
    world.owners["n0"].incarnation = 101
    world.tick(0.5)
    world.beat()
    world.batches("n0")
    world.tick()
    again = [batch.header.sequence for batch in world.batches("n0")]
    assert again == sorted(again)
    assert again[:4] == [batch.header.sequence for batch in first]


@pytest.mark.parametrize("error", [protocol.ERR_STALE_EPOCH, protocol.ERR_NOT_MINE])
def test_a_batch_of_an_old_ring_is_split_by_the_new_one_and_keeps_born(error: str) -> None:
    world = World(ring(1, [[0]])).start()
    message = world.publish(*range(40))
    world.tick()
    (batch,) = world.batches("n0")
    world.ack("n0", batch, rows=0, error=error)
    world.tick(0.1)
    assert all(not world.batches(node) for node in world.owners)
    world.delivery.adopt(ring(2, ONE_OWNER))
    world.tick()
    found = {node: world.batches(node)[0] for node in world.owners}
    assert {node: keys_in(part) for node, part in found.items()} == {
        node: {KEYS[n] for n in range(40) if owner_of(n) == node} for node in found
    }
    assert {(part.header.epoch, part.header.born) for part in found.values()} == {(2, 1)}
    for node, part in found.items():
        assert message.waiting == 1
        world.ack(node, part)
    assert (message.waiting, world.delivery.memory_bytes) == (0, 0)
    world.ack("n0", batch)
    assert world.delivery.counts["duplicate_acks"] == 1


def test_a_node_that_is_behind_the_ring_is_asked_again_after_a_while() -> None:
    world = World(ring(3, [[0]], nodes=1)).start()
    message = world.publish(0)
    world.tick()
    world.ack("n0", world.batches("n0")[0], rows=0, error=protocol.ERR_NOT_MINE)
    world.tick(AGAIN_S[protocol.ERR_NOT_MINE] / 2)
    assert not world.batches("n0")
    world.tick(AGAIN_S[protocol.ERR_NOT_MINE])
    world.ack_all()
    assert message.waiting == 0


# Ring changes


def test_points_taken_in_before_a_new_ring_are_born_at_the_old_epoch() -> None:
    world = World(ring(1, [[0]]), linger_ms=1000.0).start()
    world.publish(0, 1)
    world.delivery.adopt(ring(2, [[0]], since=1))
    world.publish(2)
    world.delivery.flush(world.now, force=True)
    world.tick()
    assert [(batch.header.born, batch.header.epoch) for batch in world.batches("n0")] == [(1, 1), (2, 2)]


def test_what_was_meant_for_a_node_that_left_the_ring_goes_to_todays_owners() -> None:
    world = World(ring(1, [[2]])).start()
    sent = world.publish(0, 1)
    world.tick()
    world.owners["n2"].accepts = False
    waiting = world.publish(2)
    world.tick()
    left = world.owners["n2"]
    world.delivery.adopt(ring(2, [[0], [1]], nodes=2))
    assert left.closed
    del world.owners["n2"]
    world.tick()
    world.ack_all()
    assert (sent.waiting, waiting.waiting, world.delivery.is_idle) == (0, 0, True)


def test_a_node_at_another_endpoint_is_sent_everything_there() -> None:
    world = World(ring(1, [[0]], nodes=1)).start()
    message = world.publish(0)
    world.tick()
    before = world.owners["n0"]
    world.delivery.adopt(ring(2, [[0]], nodes=1, since=1, base=6000))
    assert before.closed
    assert world.owners["n0"].endpoint.endswith(":6000")
    world.start().tick()
    world.ack_all()
    assert message.waiting == 0


def test_a_new_node_is_sent_its_share() -> None:
    world = World(ring(1, [[0]], nodes=1)).start()
    world.delivery.adopt(ring(2, [[0], [1]], nodes=2))
    world.start()
    messages = [world.publish(n) for n in range(40)]
    world.tick()
    assert world.owners["n1"].sent
    world.ack_all()
    assert not any(message.waiting for message in messages)
