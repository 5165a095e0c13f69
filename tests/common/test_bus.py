"""Sockets: what they bind and connect to, what they do when nobody is there, one-shot requests."""

import threading

import pytest

from common import bus, protocol
from common.errors import ProtocolError
from tests.support import free_port


def _header(**changes: object) -> protocol.Header:
    fields = {"cluster": "c", "destination": "n", "sender": "me", "incarnation": 7, "sequence": 1}
    return protocol.Header(version=1, epoch=0, ring_hash="", **(fields | changes))


@pytest.fixture
def hub():
    made = bus.Bus()
    yield made
    made.close()


@pytest.mark.parametrize(
    "endpoint",
    ["", "tcp://", "tcp://[", "tcp://0.0.0.0:1", "tcp://192.168.1.1:1", "tcp://127.evil.example:1", "ipc:///tmp/x",
     "tcp://127.0.0.1\u2100:1", "tcp://localhost.evil:1"],
)  # fmt: skip
def test_an_endpoint_off_loopback_or_malformed_is_refused(hub, endpoint):
    for open_socket in (hub.push, hub.push_acks, hub.pull, hub.dealer, hub.router):
        with pytest.raises(bus.BusError, match="endpoint"):
            open_socket(endpoint)


def test_a_taken_port_is_named(hub):
    _, endpoint = hub.pull("tcp://127.0.0.1:*")
    with pytest.raises(bus.BusError, match=f"cannot bind {endpoint}: Address already in use"):
        hub.router(endpoint)


def test_a_batch_is_not_taken_while_nobody_is_there(hub):
    assert hub.push(f"tcp://127.0.0.1:{free_port()}").send([b"x"]) is False


def test_an_ack_waits_for_a_peer_that_is_still_connecting(hub):
    pull, endpoint = hub.pull("tcp://127.0.0.1:*")
    acks = hub.push_acks(endpoint)  # let go of, it would be closed, and drop what it has not sent yet
    assert acks.send([b"a", b"b"]) is True
    assert bus.Poller([pull]).poll(5.0) == [pull]
    assert pull.receive() == [b"a", b"b"]
    assert pull.receive() is None


def _answer_once(hub, router, re):
    (ready,) = bus.Poller([router]).poll(10.0)
    route, frames = ready.receive_routed()
    to = protocol.unpack(frames).header
    answer = _header(destination=to.sender, sender="n", re=re, re_incarnation=to.incarnation)
    router.reply(route, protocol.pack(protocol.REPLY, answer, {"fine": True}))


@pytest.mark.parametrize("re", [1, 2])
def test_a_request_takes_its_own_answer_only(hub, re):
    port = free_port()
    router = hub.router(f"tcp://127.0.0.1:{port}")
    node = threading.Thread(target=_answer_once, args=(hub, router, re))
    node.start()
    ask = lambda: bus.request(f"tcp://127.0.0.1:{port}", protocol.STATUS, _header(), {}, 10.0)  # noqa: E731
    if re == 1:
        assert ask().kind == protocol.REPLY
    else:
        with pytest.raises(ProtocolError, match="answered request 2, asked was 1"):
            ask()
    node.join()


def test_a_request_to_nobody_ends_at_its_deadline():
    with pytest.raises(bus.BusTimeout, match="no connection to"):
        bus.request(f"tcp://127.0.0.1:{free_port()}", protocol.STATUS, _header(), {}, 0.2)


def test_a_wait_longer_than_the_system_knows_is_a_wait(hub):
    ours, theirs = hub.pair("long")
    theirs.send([b"x"])
    assert bus.Poller([ours]).poll(1e15) == [ours]
