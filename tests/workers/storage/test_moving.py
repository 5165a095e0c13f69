"""What a node takes and answers while partitions move, are fenced, or may lack points."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from common import clock, protocol
from common.protocol import AcceptLossReply, AcceptLossRequest, DigestsRequest, FenceReply, FenceRequest
from common.ringbuild import with_delete
from common.ringmoves import Step, begin, cancel, finish
from common.ringstore import Mark
from common.selector import Selector
from tests.support import wait_until
from tests.workers.storage.alive import EVERYWHERE, Alive, Cluster, aggregate, listed, members, only
from tests.workers.storage.support import key, rows_of
from workers.storage import layout
from workers.storage.feed import _first_owned

A = key("a")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    made = Cluster(tmp_path, ["ing1", "ing2"], 1, monkeypatch)
    yield made
    made.close()


def owner_of(cluster: Cluster, partition: int) -> tuple[str, str]:
    """The owner of a partition, and the other node."""
    (owner,) = cluster.ring.owners(partition)
    (other,) = {"ing1", "ing2"} - {owner.id}
    return owner.id, other


@pytest.fixture
def pair(cluster: Cluster) -> tuple[Alive, Alive]:
    """The owner of A's partition, and the node that it can move to; both are alive."""
    first = cluster.start("ing1", fence_s=0.2)
    second = cluster.start("ing2", fence_s=0.2)
    owner, _ = owner_of(cluster, first.partition_of(A))
    return (first, second) if owner == "ing1" else (second, first)


def moving(pair: tuple[Alive, Alive]) -> tuple[int, int]:
    """Let A's partition move; it, and the epoch."""
    source, target = pair
    partition = source.partition_of(A)
    ring = source.cluster.save(lambda ring: begin(ring, [Step(partition, source.id, target.id)]))
    for each in pair:
        each.send(protocol.STATUS, {}, ring.epoch)
        each.answer()
        wait_until(lambda each=each: each.node.view.ring.epoch == ring.epoch, what="the node to adopt")
    return partition, ring.epoch


def fence(node: Alive, partition: int, epoch: int, reads: bool = True) -> FenceReply:
    message = node.ask(protocol.FENCE, FenceRequest(only(partition), epoch, reads), epoch)
    assert message.kind == protocol.REPLY, message
    return protocol.decode_body(message.body, FenceReply)


def test_a_joining_node_takes_points_and_answers_nothing_of_them(pair: tuple[Alive, Alive]) -> None:
    source, target = pair
    assert target.write(rows_of(A, [1]), 1).error == protocol.ERR_NOT_MINE
    partition, epoch = moving(pair)
    for each in pair:
        assert each.write(rows_of(A, [1, 2]), epoch).rows == 2
    assert (source.count("a").count, target.count("a").count) == (2, 0)
    assert partition not in members(target.count("a").partitions)
    assert target.write(rows_of(A, [3]), 1).error == protocol.ERR_STALE_EPOCH, "it would miss the joining node"
    assert source.write(rows_of(A, [3]), 1).error == protocol.ERR_STALE_EPOCH
    assert target.status()["partitions_joining"] == 1
    ring = source.cluster.save(lambda ring: finish(ring, [partition]))
    assert (source.count("a", ring.epoch).count, target.count("a", ring.epoch).count) == (0, 2)
    assert source.write(rows_of(A, [4]), ring.epoch).error == protocol.ERR_NOT_MINE


def test_a_fenced_partition_is_neither_taken_nor_answered_but_told_to_other_stores(pair: tuple[Alive, Alive]) -> None:
    source, _ = pair
    partition, epoch = moving(pair)
    assert source.write(rows_of(A, [1, 2]), epoch).rows == 2
    reply = fence(source, partition, epoch)
    assert (reply.epoch, members(reply.partitions), reply.seconds) == (epoch, [partition], 0.2)
    assert source.error_of(protocol.AGGREGATE, aggregate("a", only(partition))) == protocol.ERR_MOVING
    assert source.write(rows_of(A, [3]), epoch).error == protocol.ERR_MOVING
    rest = source.count("a")
    assert partition not in members(rest.partitions) and len(members(rest.partitions)) > 1
    held = source.ask(protocol.DIGESTS, DigestsRequest(0, only(partition)))
    assert protocol.decode_body(held.body, protocol.DigestsReply).counts == (2).to_bytes(8, "little")
    assert source.status()["partitions_fenced"] == 1


def test_before_it_is_closed_a_fence_refuses_points_alone_and_closed_it_stays(pair: tuple[Alive, Alive]) -> None:
    source, _ = pair
    partition, epoch = moving(pair)
    source.ingest._fences.seconds = 60.0
    assert source.write(rows_of(A, [1, 2]), epoch).rows == 2
    assert fence(source, partition, epoch, reads=False).incarnation == source.node.incarnation
    assert source.write(rows_of(A, [3]), epoch).error == protocol.ERR_MOVING
    assert source.count("a", epoch, only(partition)).count == 2
    fence(source, partition, epoch)
    fence(source, partition, epoch, reads=False)  # of another driver: the first one may be about to save
    assert source.error_of(protocol.AGGREGATE, aggregate("a", only(partition))) == protocol.ERR_MOVING
    ring = source.cluster.save(lambda ring: cancel(ring, [partition]))
    assert source.count("a", ring.epoch, only(partition)).count == 2


def test_what_was_taken_before_a_fence_is_stored_when_it_is_answered(pair: tuple[Alive, Alive]) -> None:
    source, _ = pair
    partition, epoch = moving(pair)
    acked: list[int] = []

    def write() -> None:
        for time in range(100_000):
            ack = source.write(rows_of(A, [time]), epoch)
            if ack.error:
                assert ack.error == protocol.ERR_MOVING
                return
            acked.append(time)

    source.ingest._fences.seconds = 60.0
    writer = threading.Thread(target=write)
    writer.start()
    wait_until(lambda: len(acked) > 3, what="some acks")
    fence(source, partition, epoch)
    counted = source.store.aggregate("a", "temperature", None, EVERYWHERE, None, None).count
    writer.join()
    assert counted == len(acked) > 3


def test_a_fence_of_another_epoch_is_refused(pair: tuple[Alive, Alive]) -> None:
    source, _ = pair
    partition, epoch = moving(pair)
    assert source.error_of(protocol.FENCE, FenceRequest(only(partition), epoch - 1)) == protocol.ERR_STALE_EPOCH
    assert source.error_of(protocol.FENCE, FenceRequest(only(partition), epoch + 1)) == protocol.ERR_STALE_EPOCH
    assert not source.node.view.fenced.any()


def test_a_fence_is_put_on_what_a_node_owns_or_joins_alone(pair: tuple[Alive, Alive]) -> None:
    source, target = pair
    partition, epoch = moving(pair)
    target.ingest._fences.seconds = 60.0
    other = int(np.flatnonzero(~target.node.view.written)[0])
    assert members(fence(target, other, epoch).partitions) == []
    assert members(fence(target, partition, epoch, reads=False).partitions) == [partition]
    assert target.write(rows_of(A, [1]), epoch).error == protocol.ERR_MOVING
    ring = source.cluster.save(lambda ring: finish(ring, [partition]))
    assert target.count("a", ring.epoch).count == 0
    assert target.write(rows_of(A, [1]), ring.epoch).rows == 1


def test_a_fence_lapses_once_the_ring_store_is_seen_unchanged_and_not_before(
    pair: tuple[Alive, Alive], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _ = pair
    partition, epoch = moving(pair)
    path = source.cluster.rings.path
    hidden = path.rename(path.with_name("hidden"))
    path.mkdir()  # cannot be read
    fence(source, partition, epoch)
    wait_until(lambda: source.ingest._fences.due() and source.node.trouble, what="a look at the ring store")
    assert source.error_of(protocol.AGGREGATE, aggregate("a", only(partition))) == protocol.ERR_MOVING
    path.rmdir()
    hidden.rename(path)
    wait_until(lambda: not source.node.view.fenced.any(), what="the fence to lapse")
    assert source.write(rows_of(A, [1]), epoch).rows == 1 and source.count("a").count == 1


def test_a_node_that_joins_takes_points_when_its_fence_is_over_though_it_cannot_read_the_ring_store(
    pair: tuple[Alive, Alive],
) -> None:
    source, target = pair
    partition, epoch = moving(pair)
    path = source.cluster.rings.path
    hidden = path.rename(path.with_name("hidden"))
    path.mkdir()
    fence(source, partition, epoch, reads=False)
    fence(target, partition, epoch, reads=False)
    wait_until(lambda: target.write(rows_of(A, [1]), epoch).rows == 1, what="the fence at the target to lapse")
    assert target.node.trouble and source.write(rows_of(A, [1]), epoch).error == protocol.ERR_MOVING
    path.rmdir()
    hidden.rename(path)


def test_a_fence_that_is_put_again_begins_anew(pair: tuple[Alive, Alive]) -> None:
    source, _ = pair
    partition, epoch = moving(pair)
    fence(source, partition, epoch)
    ended = clock.monotonic_s() + 0.5
    while clock.monotonic_s() < ended:
        fence(source, partition, epoch)
        assert source.node.view.fenced[partition]


@pytest.mark.parametrize("end", [finish, cancel])
def test_a_fence_ends_with_the_move_and_not_with_a_delete(pair: tuple[Alive, Alive], end: object) -> None:
    source, target = pair
    partition, epoch = moving(pair)
    source.ingest._fences.seconds = 60.0
    fence(source, partition, epoch)
    ring = source.cluster.save(lambda ring: with_delete(ring, Selector("b"), 0, 9))
    assert source.error_of(protocol.AGGREGATE, aggregate("a", only(partition)), ring.epoch) == protocol.ERR_MOVING
    ring = source.cluster.save(lambda ring: end(ring, [partition]))  # type: ignore[operator]
    owner = target if end is finish else source
    assert members(owner.count("a", ring.epoch, only(partition)).partitions) == [partition]
    assert owner.write(rows_of(A, [1]), ring.epoch).rows == 1
    wait_until(lambda: not source.node.view.fenced.any(), what="the source to adopt") if end is cancel else None


def test_a_request_of_a_newer_ring_is_answered_by_that_ring(pair: tuple[Alive, Alive]) -> None:
    source, _ = pair
    source.write(rows_of(A, [1, 2, 3]), 1)
    for at in (1, 2):
        ring = source.cluster.save(lambda ring, at=at: with_delete(ring, Selector("a"), at, at))
        reply = source.count("a", ring.epoch)
        assert (reply.count, reply.delete_number) == (3 - at, ring.epoch)


def test_a_request_of_a_ring_that_nobody_has_is_told_so_and_holds_up_nobody(pair: tuple[Alive, Alive]) -> None:
    source, _ = pair
    waiting = source.send(protocol.AGGREGATE, aggregate("a"), 99)
    source.send(protocol.STATUS, {}, 99)
    answers = [source.answer(), source.answer()]
    assert {each.kind for each in answers} == {protocol.REPLY, protocol.ERROR}
    (error,) = [each for each in answers if each.kind == protocol.ERROR]
    assert error.header.re == waiting
    found = protocol.decode_body(error.body, protocol.ErrorReply)
    assert (found.error, found.message) == (protocol.ERR_STALE_EPOCH, "epoch 99, the ring here is still at 1")
    wait_until(lambda: source.node.waiting == 0, what="nobody to wait")


def test_while_the_ring_store_is_away_a_request_of_a_newer_ring_is_not_kept_waiting(pair: tuple[Alive, Alive]) -> None:
    source, _ = pair
    path = source.cluster.rings.path
    hidden = path.rename(path.with_name("hidden"))
    path.mkdir()  # cannot be read
    assert source.error_of(protocol.AGGREGATE, aggregate("a"), 2) == protocol.ERR_STALE_EPOCH
    path.rmdir()
    hidden.rename(path)


def test_a_node_that_may_lack_points_refuses_them_until_the_loss_is_accepted(pair: tuple[Alive, Alive]) -> None:
    source, _ = pair
    partition = source.partition_of(A)
    source.write(rows_of(A, [1]), 1)
    source.behind.hit("because", [partition])
    assert source.error_of(protocol.AGGREGATE, aggregate("a", only(partition))) == protocol.ERR_BEHIND
    assert source.error_of(protocol.SERIES, protocol.SeriesRequest(only(partition), b"", 9)) == protocol.ERR_BEHIND
    assert partition not in members(source.count("a").partitions)
    held = source.ask(protocol.DIGESTS, DigestsRequest(0, EVERYWHERE))
    assert partition not in members(protocol.decode_body(held.body, protocol.DigestsReply).partitions)
    assert source.write(rows_of(A, [2]), 1).rows == 1, "it takes points all the same"
    wait_until(lambda: source.cluster.rings.marks() == {Mark(source.id, source.id)}, what="the mark")
    assert source.status()["behind"]["reasons"] == ["because"]
    message = source.ask(protocol.ACCEPT_LOSS, AcceptLossRequest(EVERYWHERE))
    reply = protocol.decode_body(message.body, AcceptLossReply)
    assert (members(reply.released), members(reply.behind)) == ([partition], [])
    assert source.count("a").count == 2 and source.status()["behind"] is None
    wait_until(lambda: not source.cluster.rings.marks(), what="the mark to go")
    wait_until(lambda: not (source.directory / layout.BEHIND).exists(), what="the file to go")


def damage(node: Alive) -> None:
    """Flip a bit in the first block of the only segment."""
    (path,) = (node.directory / "segments").iterdir()
    header = int.from_bytes(path.read_bytes()[8:12], "little")
    data = bytearray(path.read_bytes())
    data[header + 4] ^= 1
    path.write_bytes(data)


def test_a_block_found_damaged_is_refused_from_then_on_and_its_answer_says_so(pair: tuple[Alive, Alive]) -> None:
    source, _ = pair
    partition = source.partition_of(A)
    source.write(rows_of(A, range(1, 9)), 1)
    source.store.seal()
    damage(source)
    request = protocol.AggregateRequest(EVERYWHERE, "a", "temperature", None, 2, 4)
    assert source.ask(protocol.AGGREGATE, request).kind == protocol.ERROR
    assert listed(source.node.view.behind) == [partition]
    assert source.error_of(protocol.AGGREGATE, aggregate("a", only(partition))) == protocol.ERR_BEHIND
    assert len(members(source.count("a").partitions)) == source.status()["partitions_owned"] - 1
    assert not list((source.directory / "segments").glob("*.mts"))


def test_what_was_read_while_damage_was_found_is_not_answered(pair: tuple[Alive, Alive]) -> None:
    source, _ = pair
    source.write(rows_of(A, [1]), 1)
    begun, go = threading.Event(), threading.Event()
    handler = source.server._table[protocol.SERIES]

    def slowly(asked: protocol.SeriesRequest) -> object:
        work = handler.begin(asked)

        def run(cancel: object) -> object:
            found = work.run(cancel)  # type: ignore[arg-type]
            begun.set()
            assert go.wait(10.0)
            return found

        return work._replace(run=run, short=False)

    source.server._table[protocol.SERIES] = handler._replace(begin=slowly)  # type: ignore[arg-type]
    source.send(protocol.SERIES, protocol.SeriesRequest(EVERYWHERE, b"", 9))
    assert begun.wait(10.0)
    source.behind.hit("because", [(source.partition_of(A) + 1) % 16])
    go.set()
    message = source.answer()
    assert protocol.decode_body(message.body, protocol.ErrorReply).error == protocol.ERR_BEHIND


def test_a_node_that_lost_its_disk_answers_nothing_and_takes_points(cluster: Cluster) -> None:
    node = cluster.start("ing1")
    mine = next(each for at in range(99) if owner_of(cluster, node.partition_of(each := key(f"d{at}")))[0] == "ing1")
    node.write(rows_of(mine, [1]), 1)
    node.stop()
    assert not cluster.rings.marks()
    shutil.rmtree(node.directory)
    node = cluster.start("ing1")
    assert cluster.rings.marks() == {Mark("ing1", "ing1")}
    owned = cluster.ring.owned_bitmap("ing1")
    assert node.error_of(protocol.AGGREGATE, aggregate("d0", owned)) == protocol.ERR_BEHIND
    assert node.write(rows_of(mine, [2]), 1).rows == 1
    node.stop()
    node = cluster.start("ing1")
    assert node.error_of(protocol.AGGREGATE, aggregate("d0", owned)) == protocol.ERR_BEHIND, "after another start, too"
    assert cluster.rings.store_ids()["ing1"] == node.status()["store_id"]


def test_damage_found_at_the_start_is_known_after_the_next_one(cluster: Cluster) -> None:
    node = cluster.start("ing1")
    mine = next(each for at in range(99) if owner_of(cluster, node.partition_of(each := key(f"d{at}")))[0] == "ing1")
    node.write(rows_of(mine, [1]), 1)
    node.store.seal()
    node.stop()
    (path,) = (node.directory / "segments").iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    for _ in range(2):
        node = cluster.start("ing1")
        owned = cluster.ring.owned_bitmap("ing1")
        assert node.error_of(protocol.AGGREGATE, aggregate("d0", owned)) == protocol.ERR_BEHIND
        wait_until(lambda: cluster.rings.marks() == {Mark("ing1", "ing1")}, what="the mark")
        node.stop()


def test_of_a_moving_partition_the_first_owner_alone_publishes_until_the_move_is_finished(cluster: Cluster) -> None:
    (owner, target), ring = owner_of(cluster, 3), cluster.ring
    moving = begin(ring, [Step(3, owner, target)])
    for each, publishes in ((moving, owner), (finish(moving, [3]), target)):
        assert [name for name in ("ing1", "ing2") if _first_owned(each, name)[3]] == [publishes]
