"""A storage node's server: kinds by table, long work in readers, cancels of what waits and what runs, errors."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from common import bus, process, protocol
from common.match import Match
from common.protocol import ErrorReply, Header, Message, TagsRequest
from common.ring import Node as RingNode
from common.ring import Ring
from common.ringbuild import first_ring
from tests.support import free_port, wait_until
from tests.workers.storage.support import EVERYWHERE, PARTITIONS, batch_of, key, open_store, rows_of
from workers.storage.aggregate import LimitError
from workers.storage.node import Node, Ownership
from workers.storage.serve import Server
from workers.storage.work import Cancel, Handler, Work

RING = first_ring("c1", [RingNode("ing1", "", "tcp://127.0.0.1:5710", "z", 1.0, "active")], PARTITIONS, 1)
ANYTHING = protocol.Limits(1000, 10**9, 10**6, 10**6)


class World:
    """A server thread with a real store and sockets, one reader, and a client."""

    def __init__(self, directory: Path) -> None:
        self.store = open_store(directory)
        self.store.append([batch_of(rows_of(key("a", room="1"), range(10)))])
        self.node = Node("c1", "ing1", Ownership.of(RING, "ing1"))
        self.bus = bus.Bus()
        endpoint = f"tcp://127.0.0.1:{free_port()}"
        self.server = Server(self.bus, self.bus.router(endpoint), self.node, self.store, 1)
        self.stop = process.Stop()
        self.thread = threading.Thread(target=self.server.run, args=(self.stop,), daemon=True)
        self.client = self.bus.dealer(endpoint)
        self.sequence = 0

    def start(self) -> None:
        self.thread.start()
        wait_until(self.client.connected, 10.0, "connected")

    def close(self) -> None:
        self.stop.set()
        self.thread.join()
        self.store.close()
        self.bus.close()

    def handle(self, answer: Callable[[Any, Cancel], Any], short: bool = False) -> None:
        """Answer TAGS like this."""
        begin = lambda asked: Work(lambda cancel: answer(asked, cancel), short)  # noqa: E731
        self.server._table[protocol.TAGS] = Handler(TagsRequest, begin)

    def ask(self, kind: bytes, body: Any, re: int = 0, sender: str = "query1") -> int:
        """Send a request; its sequence."""
        self.sequence += 1
        header = Header(1, "c1", "ing1", sender, 7, self.sequence, 0, "", re=re, re_incarnation=7 if re else 0)
        assert self.client.send(protocol.pack(kind, header, body))
        return self.sequence

    def cancel(self, sequence: int, sender: str = "query1") -> None:
        """Give up a request, and see that the server has read it."""
        self.ask(protocol.CANCEL, {}, sequence, sender)
        asked = self.ask(protocol.STATUS, {})
        assert self.answer().header.re == asked

    def answer(self) -> Message:
        """The next answer."""
        assert bus.Poller([self.client]).poll(10.0), "no answer"
        frames = self.client.receive()
        assert frames is not None
        return protocol.unpack(frames)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def tags_request() -> TagsRequest:
    return TagsRequest(EVERYWHERE, Match(), ANYTHING)


def test_every_question_of_the_table_is_answered(world: World) -> None:
    world.start()
    for kind, body, reply in [
        (protocol.TAGS, tags_request(), protocol.TagsReply),
        (
            protocol.GROUPS,
            protocol.GroupsRequest(EVERYWHERE, Match(), None, None, [], [], ["steps", "integral"], ANYTHING),
            protocol.GroupsReply,
        ),
        (
            protocol.DESCRIBE,
            protocol.DescribeRequest(EVERYWHERE, Match(), None, None, b"", 10, True),
            protocol.DescribeReply,
        ),
        (
            protocol.GAPS,
            protocol.GapsRequest(EVERYWHERE, Match(), None, 10**9, 2.0, 0, b"", 10, ANYTHING),
            protocol.GapsReply,
        ),
        (
            protocol.SAMPLES,
            protocol.SamplesRequest(EVERYWHERE, Match(), None, None, b"", 0, 10),
            protocol.SamplesReply,
        ),
    ]:
        asked = world.ask(kind, body)
        message = world.answer()
        assert (message.kind, message.header.re, message.header.re_incarnation) == (protocol.REPLY, asked, 7), message
        assert protocol.decode_body(message.body, reply).partitions == EVERYWHERE


def test_a_node_tells_the_ring_that_it_goes_by_also_to_who_does_not_know_its_cluster(world: World) -> None:
    world.start()
    for cluster, destination in (("c1", "ing1"), (protocol.ANY, protocol.ANY)):
        header = Header(1, cluster, destination, "ringctl", 7, 99, 0, "")
        assert world.client.send(protocol.pack(protocol.RING, header, {}))
        told = protocol.decode_body(world.answer().body, protocol.RingReply)
        assert Ring.loads(told.document).hash == RING.hash


def test_short_work_is_done_in_the_server_thread_and_long_work_in_a_reader(world: World) -> None:
    threads = []
    world.handle(lambda asked, cancel: threads.append(threading.current_thread()), short=True)
    world.start()
    world.ask(protocol.TAGS, tags_request())
    world.answer()
    world.handle(lambda asked, cancel: threads.append(threading.current_thread()))
    world.ask(protocol.TAGS, tags_request())
    world.answer()
    assert threads[0] is world.thread is not threads[1]


def test_running_work_stops_at_its_next_piece_and_nothing_is_answered(world: World) -> None:
    begun, ended = threading.Event(), threading.Event()

    def work(asked: Any, cancel: Cancel) -> None:
        begun.set()
        try:
            while not ended.wait(0.001):
                cancel.check()
        finally:
            ended.set()

    world.handle(work)
    world.start()
    asked = world.ask(protocol.TAGS, tags_request())
    assert begun.wait(10.0)
    for other, sender in [(asked + 100, "query1"), (asked, "query2")]:
        world.cancel(other, sender)
        assert not ended.is_set(), "another one's cancel"
    world.cancel(asked)
    assert ended.wait(10.0) and world.server.counts.cancelled == 1
    world.handle(lambda asked, cancel: "next")
    after = world.ask(protocol.TAGS, tags_request())
    assert world.answer().header.re == after and not world.server._cancels


def test_waiting_work_that_is_given_up_never_begins(world: World) -> None:
    go, done = threading.Event(), []

    def work(asked: Any, cancel: Cancel) -> str:
        assert go.wait(10.0)
        done.append(asked.limits.series)
        return "done"

    world.handle(work)
    world.start()
    requests = [TagsRequest(EVERYWHERE, Match(), protocol.Limits(number, 0, 0, 0)) for number in range(3)]
    sequences = [world.ask(protocol.TAGS, request) for request in requests]
    world.cancel(sequences[1])
    go.set()
    assert [world.answer().header.re for _ in range(2)] == [sequences[0], sequences[2]]
    assert done == [0, 2] and not world.server._cancels


def test_a_server_that_is_stopped_gives_up_what_runs_and_what_waits(world: World) -> None:
    begun: list[int] = []

    def work(asked: Any, cancel: Cancel) -> None:
        begun.append(asked.limits.series)
        while True:
            cancel.check()

    world.handle(work)
    world.start()
    for number in range(3):
        world.ask(protocol.TAGS, TagsRequest(EVERYWHERE, Match(), protocol.Limits(number, 0, 0, 0)))
    wait_until(lambda: world.server.counts.pooled == 3 and begun == [0], 10.0, "one runs, two wait")
    world.stop.set()
    world.thread.join(10.0)
    assert not world.thread.is_alive() and begun == [0]


def test_a_listing_that_may_look_at_all_keys_is_made_by_a_reader(world: World) -> None:
    world.start()
    for device, metric, pooled in (("a", "temperature", 0), (None, "temperature", 1), (None, "none", 2)):
        world.ask(protocol.SERIES, protocol.SeriesRequest(EVERYWHERE, b"", 10, device, metric))
        reply = protocol.decode_body(world.answer().body, protocol.SeriesReply)
        assert (len(reply.keys), world.server.counts.pooled) == (metric == "temperature", pooled)


def test_a_reply_that_no_connection_carries_is_a_limit(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.storage.serve.MAX_REPLY_BYTES", 100)
    world.handle(lambda asked, cancel: b"x" * 101)
    world.start()
    world.ask(protocol.TAGS, tags_request())
    error = protocol.decode_body(world.answer().body, ErrorReply)
    assert (error.error, error.limit, error.value) == (protocol.ERR_LIMIT, 100, 101)
    assert "takes 101 bytes, want at most 100" in error.message


def test_a_limit_comes_back_with_its_setting_and_what_was_needed(world: World) -> None:
    def work(asked: Any, cancel: Cancel) -> None:
        raise LimitError("11 series match", "query.max_series", 10, 11)

    world.handle(work)
    world.start()
    world.ask(protocol.TAGS, tags_request())
    message = world.answer()
    error = protocol.decode_body(message.body, ErrorReply)
    assert message.kind == protocol.ERROR
    assert (error.error, error.message, error.setting) == (protocol.ERR_LIMIT, "11 series match", "query.max_series")


def test_a_kind_that_nobody_answers_is_a_bad_request_that_names_those_that_are(world: World) -> None:
    world.start()
    world.ask(protocol.BATCH, {})
    error = protocol.decode_body(world.answer().body, ErrorReply)
    assert error.error == protocol.ERR_BAD_REQUEST and "groups" in error.message and "gaps" in error.message
