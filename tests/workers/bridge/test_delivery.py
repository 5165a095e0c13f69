"""The delivery state machine against simulated owners: no socket, and a clock that the test turns."""

import itertools
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from common import config, protocol
from common.points import PointBatch
from common.protocol import Ack, Header
from common.ring import Node, Ring
from common.series import partition_of, series_key
from workers.bridge.batch import MAX_KEY_BYTES, Batch, Message
from workers.bridge.delivery import RESEND_BURST, RESPLIT_S, RETRY_MIN_S, Delivery
from workers.bridge.payload import Place

PARTITIONS = 8
ME = 42
KEYS = [series_key(f"d{n}", "m") for n in range(40)]
PLACES = [Place(key, partition_of(key, PARTITIONS)) for key in KEYS]


def ring(
    epoch: int, owners: Sequence[Sequence[int]], nodes: int = 3, since: int | None = None, base: int = 5000
) -> Ring:
    """owners: by partition, cycled. since: of every partition, the epoch if None."""
    members = tuple(Node(f"n{n}", "", f"tcp://127.0.0.1:{base + 3 * n}", "z", 1.0, "active") for n in range(nodes))
    width = max(len(row) for row in owners)
    rows = [list(row) + [-1] * (width - len(row)) for row in itertools.islice(itertools.cycle(owners), PARTITIONS)]
    table = np.array(rows, dtype=np.int32)
    return Ring("c", epoch, PARTITIONS, width, members, table, np.full(PARTITIONS, since or epoch, dtype=np.int64))


class Owner:
    """A node as the bridge sees it: a link that records, and answers when told to."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.accepts = True
        self.closed = False
        self.sent: list[protocol.Message] = []
        self.incarnation = 100

    def send(self, frames: Sequence[bytes]) -> bool:
        assert not self.closed
        if self.accepts:
            self.sent.append(protocol.unpack(frames))
        return self.accepts

    def close(self) -> None:
        self.closed = True

    def take(self, kind: bytes) -> list[protocol.Message]:
        found = [message for message in self.sent if message.kind == kind]
        self.sent = [message for message in self.sent if message.kind != kind]
        return found


class World:
    """A Delivery, its owners, and the clock."""

    def __init__(self, first: Ring, **bridge: Any) -> None:
        self.now = 1000.0
        self.owners: dict[str, Owner] = {}
        self.refused: list[tuple[bytes, str]] = []
        self.refused_whole: list[tuple[bytes, str]] = []
        self.latencies: list[float] = []
        settings = config.Settings(bridge=config.Bridge(**({"linger_ms": 0.0} | bridge)))
        self.delivery = Delivery(
            settings, ME, first, self._connect, self._refuse, self._refuse_whole, self.latencies.append
        )
        self.delivery.reply_to = "tcp://127.0.0.1:9"

    def _connect(self, endpoint: str) -> Owner:
        owner = self.owners[f"n{(int(endpoint.rpartition(':')[2]) - 5000) % 1000 // 3}"] = Owner(endpoint)
        return owner

    def _refuse(self, batch: Batch, rows: Sequence[tuple[int, str]]) -> None:
        self.refused += [(batch.origin.message(row).topic, reason) for row, reason in rows]

    def _refuse_whole(self, batch: Batch, reason: str) -> None:
        self.refused_whole.append((batch.body, reason))

    def tick(self, seconds: float = 0.0) -> None:
        self.now += seconds
        self.delivery.flush(self.now)
        self.delivery.tick(self.now, lambda: msgspec.msgpack.encode({}))

    def answer(self, node: str, kind: bytes, to: Header, body: Any, **wrong: Any) -> None:
        header = Header(
            1, to.cluster, to.sender, node, self.owners[node].incarnation, 1, to.epoch, to.ring_hash,
            re=to.sequence, re_incarnation=to.incarnation,
        )  # fmt: skip
        self.delivery.receive(protocol.pack(kind, msgspec.structs.replace(header, **wrong), body), self.now)

    def beat(self, *nodes: str) -> None:
        """Have nodes answer the beats that they hold."""
        for node in nodes or self.owners:
            for message in self.owners[node].take(protocol.BEAT):
                self.answer(node, protocol.BEAT_ACK, message.header, {})

    def start(self) -> "World":
        self.tick()
        self.beat()
        return self

    def publish(self, *series: int, time_ns: int = 1) -> Message:
        message = Message(0x32, b"\0\1", b"t%d" % series[0])
        self.delivery.add(message, [(PLACES[n], time_ns, float(n)) for n in series])
        return message

    def batches(self, node: str) -> list[protocol.Message]:
        return self.owners[node].take(protocol.BATCH)

    def ack(self, node: str, message: protocol.Message, **ack: Any) -> None:
        rows = len(PointBatch.decode(message.body))
        self.answer(node, protocol.ACK, message.header, Ack(**({"rows": rows} | ack)))

    def ack_all(self) -> None:
        for node in self.owners:
            for message in self.batches(node):
                self.ack(node, message)

    def keep_up(self, seconds: float, step: float = 0.5) -> None:
        """Let time pass while every node answers its beats."""
        for _ in range(round(seconds / step)):
            self.tick(step)
            self.beat()


def owner_of(number: int, owners: int = 3) -> str:
    return f"n{PLACES[number].partition % owners}"


def keys_in(message: protocol.Message) -> set[bytes]:
    return set(PointBatch.decode(message.body).keys)


ONE_OWNER = [[0], [1], [2]]


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
    assert [len(PointBatch.decode(batch.body)) for batch in world.batches("n0")] == [3, 3]


def test_one_message_with_long_keys_is_sent_in_batches_far_below_the_limit_of_the_bus() -> None:
    world = World(ring(1, [[0]], nodes=1), window_bytes=1 << 30).start()
    message = Message(0x32, b"\0\1", b"t")
    keys = [series_key("d", "m", {"tag": f"{n:08}".ljust(60_000)}) for n in range(300)]
    world.delivery.add(message, [(Place(key, 0), 1, float(n)) for n, key in enumerate(keys)])
    world.tick()
    sent = world.batches("n0")
    assert [key for batch in sent for key in PointBatch.decode(batch.body).keys] == keys
    assert max(len(batch.body) for batch in sent) < MAX_KEY_BYTES + 70_000
    assert message.waiting == len(sent) == 5
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
    for _ in range(20):
        world.tick(0.5)
        world.beat("n1", "n2")
    status = world.delivery.status(world.now)
    assert [status[node]["up"] for node in ("n0", "n1", "n2")] == [False, True, True]
    messages = [world.publish(n) for n in range(40)]
    world.tick()
    assert not world.batches("n0")
    world.ack_all()
    assert [message.waiting for message in messages] == [int(owner_of(n) == "n0") for n in range(40)]


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
    world = World(ring(1, ONE_OWNER)).start()
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


def test_a_batch_without_ack_is_sent_again_under_the_same_sequence() -> None:
    world = World(ring(1, [[0]], nodes=1), ack_timeout_s=5.0).start()
    world.publish(0)
    world.tick()
    (first,) = world.batches("n0")
    world.keep_up(4.5)
    assert not world.batches("n0")
    world.keep_up(1.0)
    (again,) = world.batches("n0")
    assert (again.header.sequence, again.body) == (first.header.sequence, first.body)
    assert world.delivery.counts["timeouts"] == 1


def test_an_overdue_owner_is_not_buried_under_copies() -> None:
    world = World(ring(1, [[0]], nodes=1), batch_rows=1).start()
    for number in range(50):
        world.publish(number % 40)
    world.tick()
    assert len(world.batches("n0")) == 50
    world.keep_up(7)
    again = world.batches("n0")
    assert len(again) == RESEND_BURST
    for batch in again:
        world.ack("n0", batch)
    world.tick()
    assert len(world.batches("n0")) == RESEND_BURST


def test_batches_whose_answers_never_settle_them_do_not_keep_others_from_being_sent_again() -> None:
    world = World(ring(1, [[0]], nodes=1), batch_rows=1).start()
    for number in range(RESEND_BURST):
        world.publish(number)
    lost = world.publish(RESEND_BURST)
    world.tick()
    world.batches("n0")
    for _ in range(30):
        world.keep_up(0.5)
        for batch in world.batches("n0"):
            world.ack("n0", batch, rows=int(keys_in(batch) == {KEYS[RESEND_BURST]}))
    assert lost.waiting == 0


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
    world.tick(10.0)
    world.owners["n0"].take(protocol.BEAT)
    world.tick(0.25)
    assert len(world.owners["n0"].take(protocol.BEAT)) == 1
    message = world.publish(0)
    world.tick(0.25)
    assert not world.batches("n0")
    world.beat()
    world.tick()
    world.ack_all()
    assert message.waiting == 0


# Refusals


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


@pytest.mark.parametrize("error", [protocol.ERR_DISK, protocol.ERR_INTERNAL, "some-later-code"])
def test_a_node_that_cannot_write_now_is_left_alone_for_a_while_and_then_asked_again(error: str) -> None:
    world = World(ring(1, [[0]], nodes=1)).start()
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
    assert world.delivery.status(world.now)["n0"]["trouble"] == ""


def test_one_failure_that_fails_many_batches_is_backed_off_from_once_and_they_go_again_in_order() -> None:
    world = World(ring(1, [[0]], nodes=1), batch_rows=1).start()
    messages = [world.publish(number) for number in range(6)]
    world.tick()
    first = world.batches("n0")
    for number in (3, 0, 5, 1, 4):
        world.ack("n0", first[number], rows=0, error=protocol.ERR_DISK, detail="full")
    world.ack("n0", first[2])
    messages.append(world.publish(6))
    world.tick(RETRY_MIN_S + 0.01)
    again = [batch.header.sequence for batch in world.batches("n0")]
    assert again[:5] == [first[number].header.sequence for number in (0, 1, 3, 4, 5)]
    assert len(again) == 6


def test_what_is_recalled_goes_in_order_with_what_waited_to_be_sent_again() -> None:
    world = World(ring(1, [[0]], nodes=1), batch_rows=1).start()
    for number in range(4):
        world.publish(number)
    world.tick(1.0 - RETRY_MIN_S / 2)
    first = world.batches("n0")
    world.ack("n0", first[1], rows=0, error=protocol.ERR_DISK)
    world.owners["n0"].incarnation = 101
    world.tick(RETRY_MIN_S * 0.75)  # a beat is due, the batch not yet
    world.beat()
    world.tick()
    assert [batch.header.sequence for batch in world.batches("n0")] == [batch.header.sequence for batch in first]


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
    world.tick(RESPLIT_S / 2)
    assert not world.batches("n0")
    world.tick(RESPLIT_S)
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


def test_latency_is_from_the_first_point_to_the_ack() -> None:
    world = World(ring(1, [[0]], nodes=1), batch_rows=1).start()
    world.publish(0)
    world.tick()
    world.now += 0.25
    world.ack_all()
    assert world.latencies == [pytest.approx(0.25)]


class AnyOrder(RuleBasedStateMachine):
    """Nodes that lose, delay, repeat, refuse and restart in any order. In the end every point is at its owners."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(ring(1, [[0, 1], [1, 2], [2]]), batch_rows=3).start()
        self.epoch = 1
        self.published: list[tuple[Message, set[tuple[bytes, int]]]] = []
        self.stored: dict[str, set[tuple[bytes, int]]] = {"n0": set(), "n1": set(), "n2": set()}
        self.unanswered: list[tuple[str, protocol.Message]] = []
        self.old_acks: list[tuple[str, protocol.Message]] = []
        self.time_ns = 0

    def owners(self, key: bytes) -> set[str]:
        return {node.id for node in self.world.delivery._ring.owners(partition_of(key, PARTITIONS))}

    def collect(self) -> None:
        for node in self.world.owners:
            self.unanswered += [(node, batch) for batch in self.world.batches(node)]

    def store(self, node: str, batch: protocol.Message) -> None:
        if batch.header.to_incarnation not in (0, self.world.owners[node].incarnation):
            return
        points = PointBatch.decode(batch.body)
        if any(node not in self.owners(key) for key in points.keys):
            self.world.ack(node, batch, rows=0, error=protocol.ERR_NOT_MINE)
            return
        rows = zip(points.index.tolist(), points.times.tolist(), strict=True)
        self.stored[node] |= {(points.keys[index], time_ns) for index, time_ns in rows}
        self.world.ack(node, batch)
        self.old_acks.append((node, batch))

    @rule(series=st.lists(st.integers(0, 39), min_size=1, max_size=5))
    def publish(self, series: list[int]) -> None:
        self.time_ns += 1
        message = self.world.publish(*series, time_ns=self.time_ns)
        self.published.append((message, {(KEYS[n], self.time_ns) for n in series}))

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, 6.0]))
    def pass_time(self, seconds: float) -> None:
        self.world.tick(seconds)
        self.collect()

    @rule(node=st.sampled_from(["n0", "n1", "n2"]))
    def answer_beats(self, node: str) -> None:
        self.world.beat(node)

    @precondition(lambda self: self.unanswered)
    @rule(data=st.data(), fate=st.sampled_from(["store", "lose", "disk", "stale"]))
    def answer_one(self, data: st.DataObject, fate: str) -> None:
        node, batch = self.unanswered.pop(data.draw(st.integers(0, len(self.unanswered) - 1)))
        if fate == "store":
            self.store(node, batch)
        elif fate != "lose" and batch.header.to_incarnation == self.world.owners[node].incarnation:
            error = protocol.ERR_DISK if fate == "disk" else protocol.ERR_STALE_EPOCH
            self.world.ack(node, batch, rows=0, error=error)

    @precondition(lambda self: self.old_acks)
    @rule(data=st.data())
    def repeat_an_ack(self, data: st.DataObject) -> None:
        self.world.ack(*data.draw(st.sampled_from(self.old_acks[-20:])))

    @rule(node=st.sampled_from(["n0", "n1", "n2"]))
    def restart(self, node: str) -> None:
        self.world.owners[node].incarnation += 1
        self.unanswered = [(name, batch) for name, batch in self.unanswered if name != node]

    @rule(turn=st.integers(0, 2))
    def change_ring(self, turn: int) -> None:
        self.epoch += 1
        table = [[(n + turn) % 3 for n in row] for row in ([0, 1], [1, 2], [2])]
        self.world.delivery.adopt(ring(self.epoch, table))

    @invariant()
    def released_means_stored(self) -> None:
        for message, points in self.published:
            if message.waiting == 0:
                for point in points:
                    assert any(point in held for held in self.stored.values()), "released, stored nowhere"

    def teardown(self) -> None:
        for _ in range(60):
            self.world.tick(0.5)
            self.world.beat()
            self.collect()
            answered, self.unanswered = self.unanswered, []
            for node, batch in answered:
                self.store(node, batch)
        assert not any(message.waiting for message, _ in self.published)
        assert self.world.delivery.is_idle
        assert self.world.delivery.memory_bytes == 0
        self.released_means_stored()


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = hypothesis_settings(max_examples=60, stateful_step_count=60)


def test_the_log_says_once_that_a_node_is_silent_and_once_that_it_is_back(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    world = World(ring(1, [[0], [1]], nodes=2)).start()
    for _ in range(20):
        world.tick(0.5)
        world.beat("n1")
    world.keep_up(2.0)
    said = [(record.message, record.__dict__["fields"]["node"]) for record in caplog.records]
    assert said == [("storage node does not answer, its points wait", "n0"), ("storage node is back", "n0")]
