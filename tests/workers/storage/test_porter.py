"""The porter: what is asked of a node whose store opens is refused at once, whatever it is; then the server has it."""

from collections.abc import Iterator

import pytest

from common import bus, protocol
from common.protocol import ErrorReply, Header, Message
from tests.support import free_port, wait_until
from workers.storage.porter import Porter

REQUESTS = sorted(
    protocol.KINDS
    - {
        protocol.BATCH, protocol.ACK, protocol.BEAT, protocol.BEAT_ACK, protocol.LIVE, protocol.REPLY, protocol.ERROR,
        protocol.CANCEL,
    }
)  # fmt: skip


class World:
    """A porter and a client."""

    def __init__(self) -> None:
        self.bus = bus.Bus()
        endpoint = f"tcp://127.0.0.1:{free_port()}"
        self.router = self.bus.router(endpoint)
        self.porter = Porter(self.router, "c1", "ing1")
        self.client = self.bus.dealer(endpoint)
        wait_until(self.client.connected, 10.0, "connected")
        self.sequence = 0

    def ask(self, kind: bytes, cluster: str = "c1", destination: str = "ing1", epoch: int = 0) -> int:
        self.sequence += 1
        header = Header(1, cluster, destination, "query1", 7, self.sequence, epoch, "")
        assert self.client.send(protocol.pack(kind, header, {}))
        return self.sequence

    def answer(self) -> Message:
        assert bus.Poller([self.client]).poll(10.0), "no answer"
        return protocol.unpack(self.client.receive() or [])


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    with made.porter:
        yield made
    made.bus.close()


def test_every_kind_of_question_gets_the_error_and_learns_of_no_ring(world: World) -> None:
    sequences = set()
    for kind in REQUESTS:
        asked = world.ask(kind, epoch=99)
        header, error = (message := world.answer()).header, protocol.decode_body(message.body, ErrorReply)
        assert (message.kind, error.error) == (protocol.ERROR, protocol.ERR_OPENING), kind
        assert (header.re, header.re_incarnation, header.destination) == (asked, 7, "query1")
        assert (header.cluster, header.sender, header.incarnation) == ("c1", "ing1", world.porter.incarnation)
        assert (header.epoch, header.ring_hash) == (0, "")
        sequences.add(header.sequence)
    assert len(sequences) == len(REQUESTS)


def test_it_says_how_far_the_opening_is(world: World) -> None:
    texts = []
    for progress in ("", "3 of 12 WAL files replayed"):
        world.porter.tell(progress)
        world.ask(protocol.STATUS)
        texts.append(protocol.decode_body(world.answer().body, ErrorReply).message)
    assert texts == [
        "the store is being opened: ask another owner, or again in a moment",
        "the store is being opened (3 of 12 WAL files replayed): ask another owner, or again in a moment",
    ]


def test_who_knows_no_names_is_answered_for_status_and_ring_alone(world: World) -> None:
    world.ask(protocol.CATALOG, "", "")
    for kind in (protocol.STATUS, protocol.RING):
        asked = world.ask(kind, "", "")
        assert world.answer().header.re == asked
    assert dict(world.porter.ignored) == {"cluster": 1}


def test_what_is_not_for_this_node_garbage_and_cancels_are_not_answered(world: World) -> None:
    world.client.send([b"nonsense"])
    world.ask(protocol.STATUS, "c2")
    world.ask(protocol.STATUS, destination="ing2")
    world.ask(protocol.CANCEL)
    asked = world.ask(protocol.STATUS)
    assert world.answer().header.re == asked
    assert dict(world.porter.ignored) == {"garbage": 1, "cluster": 1, "destination": 1}


def test_when_it_has_left_questions_are_there_for_the_server(world: World) -> None:
    world.porter.leave()
    asked = world.ask(protocol.STATUS)
    assert bus.Poller([world.router]).poll(10.0)
    _, frames = world.router.receive_routed() or ([], [])
    assert protocol.unpack(frames).header.sequence == asked
    world.porter.leave()
