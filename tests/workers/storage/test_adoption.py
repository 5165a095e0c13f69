"""When a node takes over a newer ring: after its deletes, before it accepts anything at its epoch, or not at all."""

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from common import bus, config, process, protocol
from common.errors import StorageError
from common.protocol import Ack, Header
from common.ring import Node as RingNode
from common.ring import Ring
from common.ringbuild import first_ring, with_delete
from common.ringmoves import begin, changed, finish, steps
from common.ringstore import FileStore, RingView
from common.selector import Selector
from tests.disks import QuickDisk
from tests.support import free_port, wait_until
from tests.workers.storage.support import batch_of, key, rows_of
from workers.storage import running
from workers.storage.feed import Feed
from workers.storage.ingest import Ingest, records_of
from workers.storage.node import Node, Ownership
from workers.storage.porter import Porter
from workers.storage.store import Store

NODES = [RingNode("ing1", "", "tcp://127.0.0.1:5710", "z", 1.0, "active")]
FIRST = first_ring("c1", NODES, 4, 1)


class NoDeletes(QuickDisk):
    """A disk that takes no delete records while `full`."""

    full = False

    def create(self, path: Path, mode: int = 0o644, exclusive: bool = False) -> int:
        if self.full and path.parent.name == "deletes":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return super().create(path, mode, exclusive)


def ingest_of(sockets: bus.Bus, pull: bus.Socket, node: Node, store: Store, view: RingView) -> Ingest:
    feed = Feed(sockets.publisher(f"tcp://127.0.0.1:{free_port()}"), node, store)
    return Ingest(sockets, pull, node, store, view, feed, 1 << 20)


class World:
    """A writer thread with a real store, real sockets and a ring store, and the bridge that pushes to it."""

    def __init__(self, directory: Path) -> None:
        self.disk = NoDeletes()
        self.rings = FileStore(directory / "ring.json")
        if self.rings.load() is None:
            self.rings.save(FIRST, 0)
        first = self.rings.load()
        assert first is not None
        settings = config.Storage()
        self.store = Store.open(directory / "data", "c1", "ing1", FIRST.partitions, settings, self.disk)
        self.node = Node("c1", "ing1", Ownership.of(first, "ing1"))
        self.bus = bus.Bus()
        pull, endpoint = self.bus.pull("tcp://127.0.0.1:*")
        self.push = self.bus.push(endpoint)
        self.acks, self.reply_to = self.bus.pull("tcp://127.0.0.1:*")
        view = RingView(self.rings, first, 3600.0)  # a node that nobody tells of a ring would look in an hour
        self.ingest = ingest_of(self.bus, pull, self.node, self.store, view)
        self.ingest.begin()
        self.stop = process.Stop()
        self.thread = threading.Thread(target=self.ingest.run, args=(self.stop,), daemon=True)
        self.thread.start()
        self.sequence = 0

    def close(self) -> None:
        self.stop.set()
        self.thread.join()
        self.store.close()
        self.bus.close()

    def commit(self, selector: Selector, start: int = 0, end: int = 100) -> int:
        """Commit a delete in the ring store; its number."""
        ring = self.rings.load()
        assert ring is not None
        self.rings.save(with_delete(ring, selector, start, end), ring.epoch)
        return ring.epoch + 1

    def send(self, times: list[int], value: float, epoch: int, born: int | None = None) -> Ack:
        """Push a batch as a bridge of that epoch does; its ack."""
        body = batch_of(rows_of(key("a", "m"), times, value)).body
        answer = self.say(protocol.BATCH, body, epoch, epoch if born is None else born)
        return protocol.decode_body(answer.body, Ack)

    @property
    def epoch(self) -> int:
        """Of the ring store."""
        ring = self.rings.load()
        assert ring is not None
        return ring.epoch

    def say(self, kind: bytes, body: Any, epoch: int, born: int = 0) -> protocol.Message:
        """Push a message; what comes back."""
        self.sequence += 1
        header = Header(1, "c1", "ing1", "bridge1", 7, self.sequence, epoch, "", 0, born, self.reply_to)
        wait_until(lambda: self.push.send(protocol.pack(kind, header, body)), what="the node to take it")
        while True:
            assert bus.Poller([self.acks]).poll(10.0)
            message = protocol.unpack(self.acks.receive() or [])
            if message.header.re == self.sequence:
                return message

    def values(self) -> tuple[int, float]:
        """Points and their largest value, as any reader finds them."""
        plan = self.store.plan("a", "m", None, self.node.view.bitmap, None, None)
        found = plan.run(self.store.pool)
        return found.count, found.max


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def test_a_batch_of_a_newer_epoch_has_the_node_adopt_it_first_so_a_correction_stays(world: World) -> None:
    assert world.send([1, 2, 3], 100.0, epoch=1).rows == 3
    number = world.commit(Selector("a"))
    assert world.send([1, 2], 1.0, epoch=number).rows == 2
    assert (world.values(), world.node.view.ring.epoch, world.store.delete_number) == ((2, 1.0), 2, 2)


def test_a_bridge_that_has_not_adopted_yet_writes_points_that_are_older_than_the_delete(world: World) -> None:
    number = world.commit(Selector("a"), 0, 2)
    assert world.send([9], 1.0, epoch=number).rows == 1
    late = world.send([1, 2, 3], 100.0, epoch=1)
    assert (late.rows, late.refused, late.error) == (3, [], "")  # acked: as if it had come in time to be deleted
    again = world.send([2], 100.0, epoch=number, born=1)  # split again by the newer ring, or out of a spool
    assert (again.rows, again.error) == (1, "")
    assert world.values() == (2, 100.0)


def test_the_beat_of_a_bridge_with_a_newer_ring_has_the_node_look(world: World) -> None:
    number = world.commit(Selector("a"))
    world.say(protocol.BEAT, protocol.Beat(0.0, {}, []), epoch=number)
    wait_until(lambda: world.node.view.ring.epoch == number, what="the node to adopt")


def test_a_request_with_a_newer_ring_has_the_node_look(world: World) -> None:
    world.node.told_epoch = world.commit(Selector("a"))
    wait_until(lambda: world.node.view.ring.epoch == 2, what="the node to adopt")


def test_while_the_disk_takes_no_delete_the_old_ring_stays_and_batches_of_the_newer_one_wait(world: World) -> None:
    assert world.send([1], 100.0, epoch=1).rows == 1
    world.disk.full = True
    number = world.commit(Selector("a"))
    refused = world.send([2], 1.0, epoch=number)
    assert (refused.error, refused.detail) == (protocol.ERR_STALE_EPOCH, "epoch 2, the ring here is still at 1")
    assert (world.node.view.ring.epoch, world.store.delete_number, world.values()) == (1, 0, (1, 100.0))
    assert world.node.not_adopted is not None
    assert world.node.not_adopted[0] == number and "No space left" in world.node.not_adopted[1]
    assert world.send([3], 100.0, epoch=1).rows == 1  # those of the old one are taken all the same
    world.disk.full = False
    wait_until(lambda: world.node.view.ring.epoch == number, what="the next try")
    assert world.node.not_adopted is None
    assert world.send([2], 1.0, epoch=number).rows == 1
    assert world.values() == (1, 1.0)


def test_a_batch_of_an_epoch_that_the_ring_store_does_not_have_waits(world: World) -> None:
    assert world.send([1], 1.0, epoch=3).error == protocol.ERR_STALE_EPOCH
    assert world.send([1], 1.0, epoch=1, born=3).error == protocol.ERR_STALE_EPOCH
    assert world.values()[0] == 0


def test_several_epochs_are_adopted_at_once_each_delete_with_its_number(world: World) -> None:
    assert world.send([1, 2, 3, 4], 1.0, epoch=1).rows == 4
    for at in (1, 2, 4):
        number = world.commit(Selector("a"), at, at)
    assert world.send([4], 1.0, epoch=number, born=3).rows == 1  # after the deletes of 1 and 2, before that of 4
    assert world.send([1], 1.0, epoch=number, born=2).rows == 1  # in the epoch of the first delete, so behind it
    assert world.values()[0] == 2
    assert world.store.status()["deletes"] == 3


def test_at_the_start_the_deletes_of_the_ring_are_applied_before_anything_is_answered(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.send([1, 2], 1.0, epoch=1)
    world.close()
    (tmp_path / "ring.json").unlink()
    ring = with_delete(FIRST, Selector("a"), 2, 2)
    node = Node("c1", "ing1", Ownership.of(ring, "ing1"))
    store = Store.open(tmp_path / "data", "c1", "ing1", 4, config.Storage())
    view = RingView(FileStore(tmp_path / "ring.json"), ring, 1.0)
    made = bus.Bus()
    pull, _ = made.pull("tcp://127.0.0.1:*")
    ingest_of(made, pull, node, store, view).begin()
    found = store.plan("a", "m", None, node.view.bitmap, None, None).run(store.pool)
    assert (store.delete_number, found.count) == (2, 1)
    made.close()
    store.close()


def test_a_delete_that_is_committed_while_a_store_opens_is_applied_before_anything_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rings = FileStore(tmp_path / "ring.json")
    rings.save(FIRST, 0)
    view = RingView(rings, FIRST, 60.0)
    view.poll()
    opened, seen = Store.open, []

    def slowly(*arguments: Any, **options: Any) -> Store:
        rings.save(with_delete(FIRST, Selector("a"), 2, 2), 1)
        return opened(*arguments, **options)

    monkeypatch.setattr(running.Store, "open", slowly)
    monkeypatch.setattr(running, "_export", lambda node, ingest, server, store: seen.append((node, store)))
    monkeypatch.setattr(running, "_run_threads", lambda *_: None)
    made = bus.Bus()
    ends = [f"tcp://127.0.0.1:{free_port()}" for _ in range(2)]
    sockets = (made, made.pull("tcp://127.0.0.1:*")[0], made.router(ends[0]), made.publisher(ends[1]))
    with Porter(sockets[2], FIRST.cluster, "ing1") as porter:
        running.run(config.Settings(), process.Stop(), "ing1", tmp_path / "data", view, sockets, porter)
    ((node, store),) = seen
    assert (node.view.ring.epoch, store.delete_number) == (2, 2)
    made.close()


def test_a_directory_that_has_seen_more_deletes_than_the_ring_is_not_used(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.send([1], 1.0, epoch=world.commit(Selector("a")))
    world.close()
    store = Store.open(tmp_path / "data", "c1", "ing1", 4, config.Storage())
    old = Node("c1", "ing1", Ownership.of(FIRST, "ing1"))
    made = bus.Bus()
    pull, _ = made.pull("tcp://127.0.0.1:*")
    ingest = ingest_of(made, pull, old, store, RingView(world.rings, FIRST, 1.0))
    with pytest.raises(StorageError, match="delete 2 is in force in this directory, and the ring store holds epoch 1"):
        ingest.begin()
    made.close()
    store.close()


def test_a_node_does_not_begin_by_a_ring_that_is_older_than_one_that_gave_its_partitions_away(tmp_path: Path) -> None:
    world = World(tmp_path)
    other = RingNode("ing2", "", "tcp://127.0.0.1:5720", "z", 1.0, "active")
    ring = changed(FIRST, [*NODES, other], 1)
    rings = [ring, begin(ring, steps(ring))]
    rings.append(finish(rings[-1], rings[-1].moving))
    for each in rings:
        world.rings.save(each, each.epoch - 1)
    world.say(protocol.BEAT, protocol.Beat(0.0, {}, []), epoch=4)
    wait_until(lambda: world.node.view.ring.epoch == 4)
    world.close()
    store = Store.open(tmp_path / "data", "c1", "ing1", 4, config.Storage())
    made = bus.Bus()
    pull, _ = made.pull("tcp://127.0.0.1:*")

    def begin_by(ring: Ring) -> None:
        node = Node("c1", "ing1", Ownership.of(ring, "ing1"))
        ingest_of(made, pull, node, store, RingView(world.rings, ring, 1.0)).begin()

    with pytest.raises(StorageError, match=r"has gone by the ring of epoch 4, and the store holds epoch 2.* RING"):
        begin_by(rings[0])
    begin_by(with_delete(rings[-1], Selector("a"), 0, 1))
    assert store.ring_epoch == 4  # a delete gives nothing away
    made.close()
    store.close()


def test_a_record_that_was_lost_with_its_file_is_brought_back_by_the_ring(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.send([1, 2, 3], 1.0, epoch=1)
    for at in (1, 2):
        number = world.commit(Selector("a"), at, at)
    world.send([9], 1.0, epoch=number)
    world.close()
    (tmp_path / "data" / "deletes" / "del-0000000000000002.mtd").write_bytes(b"damaged")
    store = Store.open(tmp_path / "data", "c1", "ing1", 4, config.Storage())
    ring = world.rings.load()
    assert ring is not None
    bitmap = Ownership.of(ring, "ing1").bitmap

    def count() -> int:
        return store.plan("a", "m", None, bitmap, None, None).run(store.pool).count

    assert (count(), store.delete_number) == (3, 3)  # the point that it hid is seen again
    store.adopt(records_of(ring))
    assert (count(), store.status()["deletes"]) == (2, 2)
    store.close()


class Model:
    """What a node has to show: rows that no delete covers which the node has adopted and is above their born."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, float, int]] = []  # time, value, born
        self.deletes: list[tuple[int, int, int]] = []  # number, start, end

    def values(self, adopted: int) -> tuple[int, float]:
        """Points and the largest value, of equal times the larger one."""
        kept: dict[int, float] = {}
        for time, value, born in self.rows:
            in_force = [(start, end) for number, start, end in self.deletes if born < number <= adopted]
            if not any(start <= time <= end for start, end in in_force):
                kept[time] = max(value, kept.get(time, value))
        return len(kept), max(kept.values(), default=0.0)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_comes_in_whatever_order_a_node_shows_what_its_epoch_says(tmp_path: Path, seed: int) -> None:
    random = Random(seed)
    world, model = World(tmp_path), Model()
    for _ in range(40):
        step = random.choices(["write", "delete", "restart", "seal", "fail"], [20, 8, 1, 1, 2])[0]
        if step == "write":
            epoch = random.randint(max(1, world.epoch - 2), world.epoch)  # of a bridge that may not know the latest
            born = random.randint(max(1, epoch - 3), epoch)  # a spool may be older than its bridge
            times, value = random.sample(range(20), random.randint(1, 5)), float(random.randint(1, 9))
            ack = world.send(times, value, epoch, born)
            assert bool(ack.error) == (epoch > world.node.view.ring.epoch)
            model.rows += [] if ack.error else [(time, value, born) for time in times]
        elif step == "delete":
            start, end = sorted(random.choices(range(20), k=2))
            model.deletes.append((world.commit(Selector("a"), start, end), start, end))
        elif step == "fail":
            world.disk.full = not world.disk.full
            if world.node.not_adopted and not world.disk.full:
                wait_until(lambda: not world.node.not_adopted, what="the next try")  # noqa: B023
        else:
            world.close()
            if step == "seal":
                store = Store.open(tmp_path / "data", "c1", "ing1", 4, config.Storage())
                store.seal()
                store.compact()
                store.close()
            world = World(tmp_path)
        assert world.values() == model.values(world.node.view.ring.epoch)
    world.close()
