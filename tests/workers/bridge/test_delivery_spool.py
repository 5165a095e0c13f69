"""Owners that are down, late or slow: what goes to their spools, when it comes out, and to whom by today's ring."""

from typing import Any

import pytest

from common import protocol
from common.points import PointBatch
from common.protocol import Ack
from common.ring import Node, Ring
from common.ringstore import Mark
from tests.workers.bridge.delivery_world import KEYS, ONE_OWNER, PLACES, World, keys_in, owner_of, ring
from workers.bridge.batch import Message
from workers.bridge.delivery import STALL_S
from workers.bridge.drain import DRAIN_RECORDS

MARK = Mark("n0", "bridge1")


def one_node(**settings: Any) -> World:
    return World(ring(1, [[0]], nodes=1), **settings).start()


def down(**settings: Any) -> World:
    """A world whose only node answers nothing and is down."""
    world = one_node(**settings)
    world.silence("n0")
    world.batches("n0")
    world.owners["n0"].take(protocol.BEAT)
    return world


def held(world: World, node: str = "n0") -> int:
    """Records in a spool."""
    records: int = world.spools.status()[node]["records"]
    return records


def drain(world: World, seconds: float = 10.0) -> list[protocol.Message]:
    """Let every node answer and store for a while; the batches that they got."""
    got = []
    for _ in range(round(seconds / 0.25)):
        world.tick(0.25)
        world.beat()
        for node in world.owners:
            for batch in world.batches(node):
                world.ack(node, batch)
                got.append(batch)
    return got


# Going down


def test_when_a_node_goes_silent_what_is_open_waiting_or_in_flight_goes_to_its_spool_and_is_released() -> None:
    world = one_node(linger_ms=100_000.0, window_bytes=65536, batch_rows=3000)
    flying = world.publish(*[0] * 3000)
    waiting = world.publish(*[1] * 3000)
    still_open = world.publish(2)
    world.tick()
    assert len(world.batches("n0")) == 1
    world.silence("n0")
    assert (flying.waiting, waiting.waiting, still_open.waiting) == (0, 0, 1)
    world.delivery.flush(world.now, force=True)
    world.tick()
    assert (still_open.waiting, held(world)) == (0, 3)
    assert world.store.marks() == {MARK}
    assert (world.delivery.is_idle, world.delivery.memory_bytes < 200_000) == (True, True)


def test_a_node_that_was_never_heard_is_down_three_heartbeats_after_it_was_first_looked_for() -> None:
    world = World(ring(1, [[0]], nodes=1))
    message = world.publish(0)
    for _ in range(6):
        world.tick(0.5)
        assert (world.state("n0"), message.waiting) == ("up", 1)
    world.tick(0.5)
    assert (world.state("n0"), message.waiting) == ("down", 0)


def test_a_node_that_beats_and_does_not_ack_is_down_when_an_ack_is_overdue() -> None:
    world = one_node(ack_timeout_s=5.0)
    message = world.publish(0)
    world.tick()
    (batch,) = world.batches("n0")
    world.keep_up(5.0)
    assert message.waiting == 1
    world.keep_up(0.5)
    assert (message.waiting, world.state("n0"), held(world)) == (0, "down", 1)
    assert world.delivery.status(world.now)["n0"]["trouble"] == "no ack for 5.5 s"
    world.ack("n0", batch)
    assert (message.waiting, world.delivery.counts["duplicate_acks"], held(world)) == (0, 1, 1)


@pytest.mark.parametrize("error", [protocol.ERR_DISK, protocol.ERR_DISK_FLOOR])
def test_a_node_that_cannot_store_now_has_its_points_spooled_all_of_them(error: str) -> None:
    world = one_node(batch_rows=1)
    messages = [world.publish(number) for number in range(5)]
    world.tick()
    world.ack("n0", world.batches("n0")[2], rows=0, error=error, detail="full")
    messages.append(world.publish(5))
    world.tick()
    assert [message.waiting for message in messages] == [0] * 6
    assert not world.batches("n0")


def test_with_two_owners_a_message_needs_the_ack_of_one_and_the_spool_of_the_other() -> None:
    world = World(ring(1, [[0, 1]], nodes=2)).start()
    world.silence("n0")
    message = world.publish(0)
    world.tick()
    assert (message.waiting, held(world, "n0"), held(world, "n1")) == (1, 1, 0)
    world.ack("n1", world.batches("n1")[0])
    assert message.waiting == 0


def test_time_in_which_the_bridge_itself_stood_still_counts_against_nobody() -> None:
    world = one_node(ack_timeout_s=5.0)
    message = world.publish(0)
    world.tick()
    world.tick(60.0 + STALL_S)
    assert (world.state("n0"), message.waiting) == ("up", 1)
    world.ack_all()
    assert message.waiting == 0


# Coming back


def test_a_node_that_is_back_gets_one_batch_and_the_rest_when_that_is_acked() -> None:
    world = down(batch_rows=1)
    for number in range(5):
        world.publish(number)
    world.tick()
    world.beat()
    world.tick(0.5)
    world.beat()
    world.tick()
    (probe,) = world.batches("n0")
    live = world.publish(5)
    world.keep_up(2.0)
    assert (world.batches("n0"), live.waiting, world.state("n0")) == ([], 0, "down")
    world.ack("n0", probe)
    assert world.state("n0") == "catching-up"
    got = drain(world)
    assert {key for batch in [probe, *got] for key in keys_in(batch)} == set(KEYS[:6])
    assert len(got) == 5, "none of them twice"
    assert (world.state("n0"), held(world), world.store.marks()) == ("up", 0, frozenset())
    assert world.delivery.counts["rows_drained"] == world.delivery.counts["rows_spooled"] == 6
    assert world.latencies == [], "of what was live"


def test_a_node_for_which_nothing_was_spooled_is_back_when_it_answers_a_beat() -> None:
    world = down()
    world.tick(0.5)
    world.beat()
    world.tick(0.5)
    world.tick()
    assert (world.state("n0"), world.store.marks()) == ("up", frozenset())


def test_a_node_that_answers_beats_and_never_acks_stays_down_and_is_probed_ever_more_seldom() -> None:
    world = one_node(ack_timeout_s=1.0)
    world.publish(0)
    world.keep_up(2.0)
    world.batches("n0")
    probes = 0
    for _ in range(240):
        world.publish(1)
        world.keep_up(0.25, step=0.25)
        probes += len(world.batches("n0"))
        assert world.state("n0") == "down"
    assert 9 <= probes <= 14, "60 s in steps of a second's timeout and 0.4, 0.8, 1.6, 3.2, 5, 5, ... of backing off"
    assert world.delivery.counts["downs"] == 1


def test_the_ack_of_a_probe_that_comes_after_its_time_is_believed() -> None:
    world = down(ack_timeout_s=1.0)
    world.publish(0)
    world.keep_up(1.0)
    (probe,) = world.batches("n0")
    world.keep_up(2.0)
    world.ack("n0", probe)
    assert world.state("n0") == "catching-up"
    world.tick()
    world.tick()
    assert (world.state("n0"), held(world)) == ("up", 0)


def test_a_batch_that_a_node_never_takes_does_not_keep_the_others_in_the_spool() -> None:
    world = down(batch_rows=1)
    for number in range(8):
        world.publish(number)
    stored = set()
    for _ in range(400):
        world.keep_up(0.25, step=0.25)
        for batch in world.batches("n0"):
            if keys_in(batch) == {KEYS[0]}:
                world.ack("n0", batch, rows=0, error=protocol.ERR_INTERNAL)
            else:
                world.ack("n0", batch)
                stored |= keys_in(batch)
    assert stored == set(KEYS[1:8])
    assert held(world) >= 1


def test_a_node_that_restarts_while_it_is_drained_gets_what_was_in_flight_again() -> None:
    world = down(batch_rows=1)
    for number in range(5):
        world.publish(number)
    world.keep_up(1.0)
    world.ack("n0", world.batches("n0")[0])
    world.tick()
    lost = world.batches("n0")
    assert len(lost) == 4
    world.owners["n0"].incarnation = 101
    world.keep_up(1.0)
    again = world.batches("n0")
    assert [batch.header.sequence for batch in again] == [batch.header.sequence for batch in lost]
    for batch in again:
        world.ack("n0", batch)
    world.tick()
    assert held(world) == 0


def test_live_batches_do_not_wait_for_a_drain_and_that_has_a_window_of_its_own() -> None:
    world = down(batch_rows=1)
    for number in range(3 * DRAIN_RECORDS):
        world.publish(number % 40, time_ns=number)
    world.keep_up(1.0)
    world.ack("n0", world.batches("n0")[0])
    world.tick()
    world.tick()
    drained = world.batches("n0")
    assert len(drained) == DRAIN_RECORDS
    live = world.publish(0, time_ns=10_000)
    world.tick()
    (batch,) = world.batches("n0")
    world.ack("n0", batch)
    assert live.waiting == 0
    assert held(world) == 3 * DRAIN_RECORDS - 1


# Slow


def test_an_owner_that_is_slower_than_its_points_come_is_bounded_by_its_window_and_the_time_of_an_ack() -> None:
    world = one_node(window_bytes=65536, batch_rows=1000, ack_timeout_s=2.0)
    messages, queued = [], []
    for number in range(40):
        messages.append(world.publish(*[0] * 1000, time_ns=number))
        world.tick(0.1)
        world.beat()
        queued += world.batches("n0")
        if number % 5 == 4:
            world.ack("n0", queued.pop(0))
    assert world.state("n0") == "catching-up"
    assert sum(message.waiting for message in messages) <= 4, "the window, and no more"
    assert world.delivery.status(world.now)["n0"]["trouble"].startswith("slow: ")
    for batch in queued:
        world.ack("n0", batch)
    drain(world)
    assert (world.state("n0"), held(world), sum(message.waiting for message in messages)) == ("up", 0, 0)


# A spool that takes nothing


def test_what_a_full_spool_does_not_take_waits_until_it_has_room() -> None:
    world = down(spool_bytes=1000, batch_rows=1)
    messages = [world.publish(number) for number in range(40)]
    world.tick()
    world.tick()
    left = sum(message.waiting for message in messages)
    assert 0 < left < 40
    assert world.delivery.memory_bytes > 0
    assert not world.delivery.is_idle
    drain(world)
    assert (sum(message.waiting for message in messages), world.delivery.memory_bytes) == (0, 0)


def test_a_disk_that_fails_holds_messages_back_and_lets_them_go_when_it_works_again() -> None:
    world = down()
    world.disk.broken = True
    message = world.publish(0)
    for _ in range(10):
        world.tick(0.5)
    assert message.waiting == 1
    assert world.delivery.memory_bytes + world.spools.gathered_bytes > 0
    world.disk.broken = False
    for _ in range(6):
        world.tick(0.5)
    assert (message.waiting, held(world)) == (0, 1)


def test_a_node_that_is_back_before_the_disk_is_gets_what_could_not_be_spooled() -> None:
    world = down()
    world.disk.broken = True
    message = world.publish(0)
    world.tick(0.5)
    got = drain(world)
    assert [keys_in(batch) for batch in got] == [{KEYS[0]}]
    assert (message.waiting, world.state("n0"), world.delivery.memory_bytes) == (0, "up", 0)


def test_while_the_mark_cannot_be_written_nothing_is_released_by_the_spool() -> None:
    world = down()
    world.store.away = True
    message = world.publish(0)
    for _ in range(10):
        world.tick(0.5)
    assert (message.waiting, world.store.marks()) == (1, frozenset())
    world.store.away = False
    for _ in range(6):
        world.tick(0.5)
    assert (message.waiting, world.store.marks()) == (0, {MARK})


# By today's ring


def follow(before: Ring, table: list[list[int]], nodes: int = 3) -> Ring:
    """The next epoch; the owners of all partitions are new."""
    return ring(before.epoch + 1, table, nodes=nodes)


def test_what_was_spooled_for_one_owner_goes_to_all_owners_that_its_partitions_have_today_and_keeps_born() -> None:
    first = ring(1, [[0]])
    world = World(first).start()
    world.silence("n0")
    world.publish(*range(40))
    world.tick()
    world.delivery.adopt(follow(first, ONE_OWNER))
    world.keep_up(1.0, "n1", "n2")
    found = {node: keys_in(world.batches(node)[0]) for node in ("n1", "n2")}
    assert found == {node: {KEYS[n] for n in range(40) if owner_of(n) == node} for node in found}
    assert held(world, "n0") == 2, "its own part was spooled again, the first record is not done yet"
    drained = drain(world)
    (own,) = [batch for batch in drained if batch.header.destination == "n0"]
    assert keys_in(own) == {KEYS[n] for n in range(40) if owner_of(n) == "n0"}
    assert (own.header.born, own.header.epoch) == (1, 2)
    assert (held(world, "n0"), world.store.marks()) == (0, frozenset())


def test_a_record_in_hand_for_a_node_that_stays_away_goes_to_the_owners_of_a_newer_ring() -> None:
    first = ring(1, [[0]])
    world = World(first).start()
    world.silence("n0")
    world.publish(*range(40))
    world.tick()
    world.tick()
    assert world.delivery.status(world.now)["n0"]["draining_batches"] == 1
    world.delivery.adopt(follow(first, [[1]]))
    world.tick()
    (batch,) = world.batches("n1")
    world.ack("n1", batch)
    world.tick()
    assert len(keys_in(batch)) == 40
    assert (held(world, "n0"), world.store.marks()) == (0, frozenset()), "n0 owns nothing and owes nothing"


def test_where_the_owners_are_the_same_a_record_goes_to_its_own_node_only() -> None:
    world = World(ring(1, [[0, 1]], nodes=2)).start()
    world.silence("n0")
    world.publish(0)
    world.tick()
    world.ack("n1", world.batches("n1")[0])
    world.delivery.adopt(ring(2, [[0, 1]], nodes=2, since=1))
    assert [batch.header.destination for batch in drain(world)] == ["n0"]
    assert held(world, "n0") == 0


def test_the_spool_of_a_node_that_left_the_ring_is_drained_to_the_owners_of_today() -> None:
    first = ring(1, [[2]])
    world = World(first).start()
    world.silence("n2")
    message = world.publish(*range(40))
    world.tick()
    assert message.waiting == 0
    world.publish(0)
    world.tick()
    assert world.delivery.status(world.now)["n2"]["draining_batches"] == 1, "one record is in hand, one in the spool"
    left = follow(first, [[0], [1]], nodes=2)
    world.delivery.adopt(left)
    del world.owners["n2"]
    assert {batch.header.destination for batch in drain(world)} == {"n0", "n1"}
    assert (held(world, "n2"), world.store.marks()) == (0, frozenset())


def test_a_part_for_another_owner_that_is_down_moves_from_spool_to_spool() -> None:
    first = ring(1, [[2]])
    world = World(first).start()
    world.silence("n2", "n1")
    world.publish(*range(40))
    world.tick()
    world.delivery.adopt(follow(first, [[1]], nodes=2))
    del world.owners["n2"]
    for _ in range(4):
        world.tick(0.5)
        world.beat("n0")
    assert (held(world, "n2"), held(world, "n1")) == (0, 1)
    assert world.store.marks() == {Mark("n1", "bridge1")}


def test_what_waits_is_split_by_a_newer_ring_before_it_is_spooled() -> None:
    first = ring(1, [[0]])
    world = World(first).start()
    message = world.publish(*range(40))
    world.tick()
    world.delivery.adopt(follow(first, [[1]]))
    world.silence("n0")
    world.tick()
    assert (held(world, "n0"), message.waiting) == (0, 1), "a spool for n0 does not help the owner n1"
    world.ack("n1", world.batches("n1")[0])
    assert message.waiting == 0


def disown(world: World, seconds: float, epoch: int) -> None:
    """Have n0 refuse every batch by the ring of an epoch for a while."""
    for _ in range(round(seconds / 0.25)):
        world.tick(0.25)
        world.beat()
        for batch in world.batches("n0"):
            refused = Ack(0, error=protocol.ERR_NOT_MINE, detail="partition 1")
            world.answer("n0", protocol.ACK, batch.header, refused, epoch=epoch)


def test_a_node_whose_ring_stays_behind_is_down_and_holds_nobody_up() -> None:
    world = World(ring(2, [[0]], nodes=1), ack_timeout_s=5.0).start()
    message = world.publish(0)
    disown(world, 4.5, epoch=1)
    assert (message.waiting, world.state("n0")) == (1, "up")
    disown(world, 2.0, epoch=1)
    assert (message.waiting, world.state("n0"), held(world)) == (0, "down", 1)
    splits, batches = world.delivery.counts["splits"], world.delivery.counts["batches"]
    disown(world, 60.0, epoch=1)
    assert (world.delivery.counts["splits"], held(world)) == (splits, 1), "not spooled again and again"
    assert world.delivery.counts["batches"] == batches + 1
    assert keys_in(drain(world)[-1]) == {KEYS[0]}
    assert (world.state("n0"), world.store.marks()) == ("up", frozenset())


def test_the_spool_of_a_node_that_disowns_a_batch_by_a_newer_ring_is_not_relied_on() -> None:
    world = World(ring(2, [[0]], nodes=1), ack_timeout_s=5.0).start()
    message = world.publish(0)
    disown(world, 60.0, epoch=3)
    assert (message.waiting, world.state("n0"), held(world)) == (1, "up", 0)


def test_a_node_that_knows_a_newer_ring_has_the_store_looked_at_soon() -> None:
    world = one_node()
    world.publish(0)
    world.tick()
    (batch,) = world.batches("n0")
    world.ack("n0", batch, rows=0, error=protocol.ERR_STALE_EPOCH)
    assert world.hurried == 0
    world.tick(2.0)
    (batch,) = world.batches("n0")
    ack = protocol.Ack(0, error=protocol.ERR_STALE_EPOCH)
    world.answer("n0", protocol.ACK, batch.header, ack, epoch=2)
    assert world.hurried == 1


# Refusals out of a spool


def test_a_refused_row_of_a_drained_batch_goes_to_the_dead_letter_under_its_topic() -> None:
    world = down()
    world.publish(3, 4)
    world.tick()
    world.keep_up(1.0)
    (batch,) = world.batches("n0")
    world.ack("n0", batch, rows=1, refused=[(1, "too many series")])
    world.tick()
    assert world.refused == [(b"t3", "too many series")]
    assert held(world) == 0


def test_a_drained_batch_that_no_node_can_decode_goes_whole_to_the_dead_letter() -> None:
    world = down()
    world.publish(0)
    world.tick()
    world.keep_up(1.0)
    (batch,) = world.batches("n0")
    world.ack("n0", batch, rows=0, error=protocol.ERR_BAD_BATCH, detail="columns differ")
    world.tick()
    assert (world.refused_whole, held(world)) == ([(batch.body, "n0: columns differ")], 0)


def test_a_record_is_not_done_before_its_refused_row_is_in_the_dead_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []

    def keep(batch: Any, rows: Any) -> None:
        batch.release.hold()
        kept.append(batch)

    world = down()
    monkeypatch.setattr(world.delivery, "_refuse_rows", keep)
    world.publish(3)
    world.tick()
    world.keep_up(1.0)
    world.ack("n0", world.batches("n0")[0], rows=0, refused=[(0, "too many series")])
    world.tick()
    assert (held(world), world.store.marks()) == (1, {MARK})
    kept[0].release.release()
    world.tick()
    world.tick()
    assert (held(world), world.store.marks()) == (0, frozenset())


# The process


def test_a_bridge_that_starts_drains_what_an_earlier_one_spooled_and_takes_live_points_meanwhile() -> None:
    world = down(batch_rows=1)
    for number in range(5):
        world.publish(number)
    world.tick()
    world.begin(ring(1, [[0]], nodes=1))
    assert world.state("n0") == "catching-up"
    world.start()
    world.publish(7)
    got = drain(world)
    assert {key for batch in got for key in keys_in(batch)} == {*KEYS[:5], KEYS[7]}
    assert (world.state("n0"), world.store.marks()) == ("up", frozenset())


def test_at_the_end_what_is_not_acked_is_spooled() -> None:
    world = one_node(linger_ms=1000.0)
    message = world.publish(0)
    world.delivery.flush(world.now, force=True)
    world.tick()
    world.delivery.spool_rest(1 << 20)
    world.spools.flush(world.now)
    assert (message.waiting, held(world)) == (0, 1)


def test_at_the_end_what_may_have_other_owners_by_now_is_left_to_the_broker() -> None:
    world = World(ring(1, [[0]], nodes=2)).start()
    before = world.publish(0)
    world.tick()
    world.delivery.adopt(ring(2, [[1]], nodes=2))
    after = world.publish(1)
    world.tick()
    world.delivery.spool_rest(1 << 20)
    world.spools.flush(world.now)
    assert (before.waiting, after.waiting) == (1, 0), "n1 lacks the first and would bear no mark for it"
    assert world.store.marks() == {Mark("n1", "bridge1")}


def test_at_the_end_no_more_is_spooled_than_there_is_time_for() -> None:
    world = one_node(batch_rows=1)
    messages = [world.publish(number) for number in range(10)]
    world.tick()
    world.delivery.spool_rest(200)
    world.spools.flush(world.now)
    assert 1 <= [message.waiting for message in messages].count(0) < 10


def test_the_status_says_how_an_owner_is_and_since_when() -> None:
    world = down()
    world.publish(0)
    world.tick(0.5)
    status = world.delivery.status(world.now)["n0"]
    assert (status["up"], status["state"], status["draining_batches"]) == (False, "down", 0)
    assert 0.5 <= status["since_s_ago"] <= 1.0
    assert status["trouble"].startswith("no answer for 3.")


def test_memory_stays_bounded_while_an_owner_is_down_however_much_comes() -> None:
    world = World(ring(1, ONE_OWNER), spool_bytes=1 << 30, batch_rows=1000).start()
    world.silence("n0")
    most = 0
    key = next(n for n in range(40) if owner_of(n) == "n0")
    for number in range(200):
        message = Message(0x32, b"\0\1", b"t")
        world.delivery.add(message, [(PLACES[key], number * 1000 + n, 1.0) for n in range(1000)])
        world.tick(0.1)
        world.beat("n1", "n2")
        most = max(most, world.delivery.memory_bytes + world.spools.gathered_bytes)
        assert message.waiting == 0
    assert most < 200_000, "of 4,000,000 bytes of points"
    assert sum(len(PointBatch.decode(batch.body)) for batch in drain(world)) == 200_000


def test_a_node_of_the_ring_keeps_its_spool_when_it_moves_to_another_endpoint() -> None:
    world = down()
    world.publish(0)
    world.tick()
    moved = ring(2, [[0]], nodes=1, since=1, base=6000)
    assert isinstance(moved.nodes[0], Node)
    world.delivery.adopt(moved)
    assert [keys_in(batch) for batch in drain(world)] == [{KEYS[0]}]
    assert (world.state("n0"), held(world)) == ("up", 0)
