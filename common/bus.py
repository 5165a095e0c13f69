"""Sockets, polling and one-shot requests on ZeroMQ. The only module that imports zmq.

What each kind of socket does at its limits decides these options: PUSH blocks at its high-water mark and
queues for peers that never existed (so IMMEDIATE=1, a mark of 4, and sends that return False instead of
waiting), ROUTER drops (so every request has a deadline, and every answer is accounted for). LINGER is 0,
ZMTP heartbeats are on, DEALER identities are automatic.

Thread rule: a Bus may be shared, each socket belongs to the one thread that uses it.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import urlsplit

import zmq

from common import clock, config, protocol
from common.errors import MinitrueError, ProtocolError

HEARTBEAT_MS: Final = 1000
HEARTBEAT_MISSES: Final = 3  # zguide's liveness: down after three
RECONNECT_MS: Final = 50
RECONNECT_MAX_MS: Final = 1000
PUSH_HWM: Final = 4  # messages: batches wait in the sender's own window, where they can still be re-routed
ACK_HWM: Final = 10_000  # acks are small and a lost one costs a resent batch
MAX_MESSAGE_BYTES: Final = 256 << 20  # of a frame received, so a stray client cannot exhaust memory

_MOST_WAIT_S: Final = 86_400.0  # poll takes no more than 2**31 - 1 milliseconds
_SEND_MORE: Final = zmq.NOBLOCK | zmq.SNDMORE


class BusError(MinitrueError):
    """An endpoint that cannot be bound or connected."""


class BusTimeout(MinitrueError):
    """No answer within the deadline."""


class Pollable(Protocol):
    """Anything with a descriptor, besides the sockets of this module."""

    def fileno(self) -> int: ...


class Socket:
    """A ZeroMQ socket whose operations never wait."""

    def __init__(self, raw: "zmq.Socket[bytes]") -> None:
        self.raw = raw

    # Frame by frame, and received as zmq.Frame: send_multipart and recv_multipart take more than twice as long.

    def send(self, frames: Sequence[bytes]) -> bool:
        """Hand a message over. False when no peer can take it now: nothing was sent."""
        send, last = self.raw.send, len(frames) - 1
        try:
            for frame in frames[:last]:
                send(frame, _SEND_MORE)
            send(frames[last], zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def receive(self) -> list[bytes] | None:
        """The next message, or None when there is none."""
        receive = self.raw.recv
        try:
            frame = receive(zmq.NOBLOCK, copy=False)
            frames = [frame.bytes]
            while frame.more:
                frame = receive(zmq.NOBLOCK, copy=False)
                frames.append(frame.bytes)
        except zmq.Again:
            return None
        return frames

    def close(self) -> None:
        """Close at once; what was not sent is dropped."""
        self.raw.close(linger=0)


class Dealer(Socket):
    """Asks a ROUTER. The empty delimiter that REQ clients also send is added and removed here."""

    def send(self, frames: Sequence[bytes]) -> bool:
        return super().send([b"", *frames])

    def receive(self) -> list[bytes] | None:
        frames = super().receive()
        if frames is None:
            return None
        return frames[1:] if frames and not frames[0] else frames

    def connected(self) -> bool:
        """Whether a message could be sent now. What was asked over a connection that is gone gets no answer."""
        return bool(int(self.raw.getsockopt(zmq.EVENTS)) & zmq.POLLOUT)


class Router(Socket):
    """Answers DEALER and REQ clients. A route is the envelope of a request and leads its reply back."""

    def receive_routed(self) -> tuple[list[bytes], list[bytes]] | None:
        """The next request as (route, frames), or None. Frames without an envelope's delimiter come as they are."""
        frames = super().receive()
        if frames is None:
            return None
        cut = 2 if len(frames) > 1 and not frames[1] else 1
        return frames[:cut], frames[cut:]

    def reply(self, route: Sequence[bytes], frames: Sequence[bytes]) -> bool:
        """Send a reply. False when the peer takes none now; one that has gone away is no error."""
        return self.send([*route, *frames])


S = TypeVar("S", bound=Socket)


class Bus:
    """One ZeroMQ context; make it in the process (and after the fork) that uses it."""

    def __init__(self) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()

    def push(self, endpoint: str) -> Socket:
        """A PUSH socket for batches to one peer. send is False until the peer is connected."""
        raw = self._socket(zmq.PUSH)
        raw.setsockopt(zmq.SNDHWM, PUSH_HWM)
        raw.setsockopt(zmq.IMMEDIATE, 1)
        return self._connect(Socket(raw), endpoint)

    def push_acks(self, endpoint: str) -> Socket:
        """A PUSH socket for acks to one peer. Queues while connecting, so the first ack is not lost."""
        raw = self._socket(zmq.PUSH)
        raw.setsockopt(zmq.SNDHWM, ACK_HWM)
        return self._connect(Socket(raw), endpoint)

    def pull(self, endpoint: str) -> tuple[Socket, str]:
        """A bound PULL socket and its actual endpoint (port `*` picks a free one)."""
        raw = self._socket(zmq.PULL)
        raw.setsockopt(zmq.RCVHWM, 64)
        socket = self._bind(Socket(raw), endpoint)
        return socket, socket.raw.getsockopt_string(zmq.LAST_ENDPOINT)

    def dealer(self, endpoint: str) -> Dealer:
        """A DEALER towards one ROUTER. send is False until the peer is connected."""
        raw = self._socket(zmq.DEALER)
        raw.setsockopt(zmq.IMMEDIATE, 1)
        return self._connect(Dealer(raw), endpoint)

    def router(self, endpoint: str) -> Router:
        """A bound ROUTER."""
        return self._bind(Router(self._socket(zmq.ROUTER)), endpoint)

    def pair(self, name: str) -> tuple[Socket, Socket]:
        """Two connected in-process ends, (bound, connected), to wake one thread from another."""
        bound, connected = Socket(self._context.socket(zmq.PAIR)), Socket(self._context.socket(zmq.PAIR))
        bound.raw.bind(f"inproc://{name}")
        connected.raw.connect(f"inproc://{name}")
        return bound, connected

    def close(self) -> None:
        """Close every socket and the context, at once."""
        self._context.destroy(linger=0)

    def _socket(self, kind: int) -> "zmq.Socket[bytes]":
        try:
            raw = self._context.socket(kind)
        except zmq.ZMQError as error:
            raise BusError(f"cannot open one more socket: {error.strerror}") from error
        raw.setsockopt(zmq.LINGER, 0)
        raw.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        raw.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_MISSES * HEARTBEAT_MS)
        raw.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        raw.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
        raw.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        return raw

    def _bind(self, socket: S, endpoint: str) -> S:
        _require_loopback(endpoint)
        try:
            socket.raw.bind(endpoint)
        except zmq.ZMQError as error:
            socket.close()
            raise BusError(f"cannot bind {endpoint}: {error.strerror}") from error
        return socket

    def _connect(self, socket: S, endpoint: str) -> S:
        _require_loopback(endpoint)
        try:
            socket.raw.connect(endpoint)
        except zmq.ZMQError as error:
            socket.close()
            raise BusError(f"cannot connect to {endpoint}: {error.strerror}") from error
        return socket


class Poller:
    """Waits for sockets of this module and for plain descriptors. Belongs to one thread."""

    def __init__(self, sources: Iterable[Socket | Pollable] = ()) -> None:
        self._poller = zmq.Poller()
        self._sources: dict[Any, Any] = {}
        for source in sources:
            self.register(source)

    def register(self, source: Socket | Pollable, write: bool = False) -> None:
        """Wait for input on a source, and with `write` for room to write too; again to change that."""
        key = source.raw if isinstance(source, Socket) else source.fileno()
        self._sources[key] = source
        self._poller.register(key, zmq.POLLIN | (zmq.POLLOUT if write else 0))

    def unregister(self, source: Socket | Pollable) -> None:
        """Stop waiting for a source; one that was not registered, or is closed already, is no error."""
        for key, known in list(self._sources.items()):
            if known is source:
                del self._sources[key]
                self._poller.unregister(key)

    def poll(self, timeout_s: float | None) -> list[Any]:
        """The sources with something to do, after at most timeout_s (None waits for ever); a day may be the end too."""
        timeout_ms = None if timeout_s is None else math.ceil(min(max(timeout_s, 0.0), _MOST_WAIT_S) * 1000)
        return [self._sources[key] for key, _ in self._poller.poll(timeout_ms)]


def request(endpoint: str, kind: bytes, header: protocol.Header, body: Any, timeout_s: float) -> protocol.Message:
    """Ask one question over a socket of its own and wait for its answer.

    For tools: workers keep their sockets. Raises BusTimeout, ProtocolError for a reply to something else.
    """
    bus = Bus()
    try:
        dealer = bus.dealer(endpoint)
        deadline = clock.monotonic_s() + timeout_s
        if not dealer.raw.poll(math.ceil(timeout_s * 1000), zmq.POLLOUT):
            raise BusTimeout(f"no connection to {endpoint} within {timeout_s:g} s")
        dealer.send(protocol.pack(kind, header, body))
        if not Poller([dealer]).poll(deadline - clock.monotonic_s()):
            raise BusTimeout(f"{endpoint} did not answer {kind.decode()} within {timeout_s:g} s")
        message = protocol.unpack(dealer.receive() or [])
        if (message.header.re, message.header.re_incarnation) != (header.sequence, header.incarnation):
            raise ProtocolError(f"{endpoint} answered request {message.header.re}, asked was {header.sequence}")
        return message
    finally:
        bus.close()


def _require_loopback(endpoint: str) -> None:
    try:
        host = urlsplit(endpoint.replace("*", "0")).hostname or ""
    except ValueError as error:
        raise BusError(f"endpoint {endpoint!r}: {error}, want tcp://HOST:PORT") from error
    if not endpoint.startswith("tcp://"):
        raise BusError(f"endpoint {endpoint!r}: want tcp://HOST:PORT")
    if not config.is_loopback(host):
        raise BusError(f"endpoint {endpoint}: off loopback the bus needs CURVE keys, which this version does not have")
