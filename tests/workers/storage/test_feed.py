"""The live feed of a node: who publishes what, what its numbers tell, and that nobody listening costs nothing."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from common import bus, protocol
from common.points import PointBatch
from common.protocol import Message
from common.ring import Ring
from tests.support import free_port_range, wait_until
from tests.workers.query.fake import make_ring
from tests.workers.storage.support import PARTITIONS, batch_of, key, open_store
from workers.storage.feed import Feed
from workers.storage.node import Node, Ownership
from workers.storage.store import LoggedBatch, Store

DEVICES = [f"d{at}" for at in range(40)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def sockets() -> Iterator[bus.Bus]:
    made = bus.Bus()
    yield made
    made.close()


def feed_of(sockets: bus.Bus, store: Store, ring: Ring, name: str) -> Feed:
    node = Node(ring.cluster, name, Ownership.of(ring, name))
    return Feed(sockets.publisher(ring.node(name).live_endpoint), node, store)


class Subscriber:
    """Hears one feed, from its greeting on."""

    def __init__(self, sockets: bus.Bus, feed: Feed, ring: Ring, name: str) -> None:
        self.socket = sockets.subscriber(ring.node(name).live_endpoint, protocol.LIVE)
        before = feed.socket.subscribers
        wait_until(lambda: (feed.look(), feed.socket.subscribers > before)[1], 10, "the subscription")
        self.greeting = self.next()

    def next(self) -> Message:
        assert bus.Poller([self.socket]).poll(10)
        return protocol.unpack(self.socket.receive() or [])

    def rest(self) -> list[Message]:
        found = []
        while bus.Poller([self.socket]).poll(0.2):
            found.append(protocol.unpack(self.socket.receive() or []))
        return found


def store_rows(store: Store, at: int) -> list[LoggedBatch]:
    store.append([batch_of([(key(device), at, float(at)) for device in DEVICES])])
    return list(store.stored)


def points(messages: list[Message]) -> list[tuple[bytes, int]]:
    batches = [PointBatch.decode(message.body) for message in messages]
    return [(batch.keys[index], at) for batch in batches for index, at in zip(batch.index, batch.times, strict=True)]


def test_with_two_copies_each_point_is_published_once_by_its_first_owner(store: Store, sockets: bus.Bus) -> None:
    ring = make_ring([free_port_range(3) for _ in range(3)], PARTITIONS, replication=2)
    feeds = {node.id: feed_of(sockets, store, ring, node.id) for node in ring.nodes}
    hearers = {name: Subscriber(sockets, feed, ring, name) for name, feed in feeds.items()}
    stored = store_rows(store, 5)
    for feed in feeds.values():
        feed.publish(stored)
    heard = {name: points(hearer.rest()) for name, hearer in hearers.items()}
    assert sorted(each for rows in heard.values() for each in rows) == sorted((key(device), 5) for device in DEVICES)
    for name, rows in heard.items():
        partitions = store.partitions_of([each for each, _ in rows]).tolist()
        assert rows and all(ring.owners(partition)[0].id == name for partition in partitions)


def test_the_body_that_came_is_published_as_it_is_where_all_of_it_is_ours(store: Store, sockets: bus.Bus) -> None:
    ring = make_ring([free_port_range(3)], PARTITIONS)
    feed = feed_of(sockets, store, ring, "ing1")
    hearer = Subscriber(sockets, feed, ring, "ing1")
    (logged,) = store_rows(store, 1)
    feed.publish([logged])
    message = hearer.next()
    assert message.body == logged.body
    header = message.header
    assert (header.cluster, header.destination, header.sender, header.sequence) == (ring.cluster, "", "ing1", 1)


def test_a_new_subscriber_is_told_the_number_of_the_last_message_and_a_hole_shows(
    store: Store, sockets: bus.Bus
) -> None:
    ring = make_ring([free_port_range(3)], PARTITIONS)
    feed = feed_of(sockets, store, ring, "ing1")
    for at in range(3):
        feed.publish(store_rows(store, at))
    assert feed.published == 0  # nobody listens: nothing is encoded or sent, but it counts
    hearer = Subscriber(sockets, feed, ring, "ing1")
    assert hearer.greeting.header.sequence == 3
    assert len(PointBatch.decode(hearer.greeting.body)) == 0
    feed.publish(store_rows(store, 4))
    assert hearer.next().header.sequence == 4
    hearer.socket.close()
    wait_until(lambda: (feed.look(), feed.socket.subscribers == 0)[1], 10, "the subscriber to be gone")
    feed.publish(store_rows(store, 5))
    again = Subscriber(sockets, feed, ring, "ing1")
    assert again.greeting.header.sequence == 5
    assert feed.published == 1


def test_a_subscriber_that_does_not_read_misses_messages_and_keeps_nobody_waiting(
    store: Store, sockets: bus.Bus
) -> None:
    ring = make_ring([free_port_range(3)], PARTITIONS)
    feed = feed_of(sockets, store, ring, "ing1")
    hearer = Subscriber(sockets, feed, ring, "ing1")
    big = batch_of([(key("d"), at, 1.0) for at in range(20_000)])
    for _ in range(400):
        feed.publish([big])
    numbers = [message.header.sequence for message in hearer.rest()]
    assert numbers == sorted(numbers)
    assert 0 < len(numbers) < 400
    feed.publish([big])
    assert hearer.next().header.sequence == 401


def test_rows_that_were_not_stored_are_not_published(store: Store) -> None:
    assert store_rows(store, 1)
    store.append([])
    assert list(store.stored) == []
