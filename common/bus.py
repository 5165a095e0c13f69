"""Sockets, polling and one-shot requests on ZeroMQ. The only module that imports zmq.

What each kind of socket does at its limits decides these options: PUSH blocks at its high-water mark and
queues for peers that never existed (so IMMEDIATE=1, a mark of 4, and sends that return False instead of
waiting), ROUTER drops (so every request has a deadline, and every answer is accounted for). LINGER is 0,
ZMTP heartbeats are on, DEALER identities are automatic.

With a key (bus.key_file) every connection is encrypted by CURVE, and both ends have to prove that they have that
key: there is one for the whole cluster. A thread of each Bus, its gate, lets peers in and notes the handshakes
that fail. Without a key nothing leaves loopback.

Thread rule: a Bus may be shared, each socket belongs to the one thread that uses it.
"""

import itertools
import math
import os
import struct
import threading
import tomllib
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, TypeVar
from urllib.parse import urlsplit

import msgspec
import zmq
from zmq.utils import z85

from common import clock, config, log, private, protocol
from common.errors import ConfigError, MinitrueError, ProtocolError

HEARTBEAT_MS: Final = 1000
HEARTBEAT_MISSES: Final = 3  # zguide's liveness: down after three
RECONNECT_MS: Final = 50
RECONNECT_MAX_MS: Final = 1000
PUSH_HWM: Final = 4  # messages: batches wait in the sender's own window, where they can still be re-routed
ACK_HWM: Final = 10_000  # acks are small and a lost one costs a resent batch
LIVE_HWM: Final = 64  # batches of some hundred KB each at most: a subscriber that is further behind misses some
MAX_MESSAGE_BYTES: Final = 256 << 20  # of a frame received, so a stray client cannot exhaust memory
HANDSHAKE_FAILED: Final = (
    "handshake failed: the other side has another key of the bus or none (bus.key_file), or went away"
)
# Name and help of the metric that every worker exports of its Bus.
HANDSHAKES_METRIC: Final = (
    "minitrue_bus_handshakes_failed_total",
    "Connections of the bus, from either side, that failed because the key (bus.key_file) was another one.",
)

_MOST_WAIT_S: Final = 86_400.0  # poll takes no more than 2**31 - 1 milliseconds
_SEND_MORE: Final = zmq.NOBLOCK | zmq.SNDMORE
_ZAP_ENDPOINT: Final = "inproc://zeromq.zap.01"  # where libzmq asks who may come in (ZeroMQ RFC 27)
_ZAP_DOMAIN: Final = b"minitrue"
_HANDSHAKES: Final = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)

_MONITORED: Final = struct.Struct("=Hi")  # an event of a socket's monitor, and its value

logger = log.get("bus")


class BusError(MinitrueError):
    """An endpoint that cannot be bound or connected."""


class BusTimeout(MinitrueError):
    """No answer within the deadline."""


class Key(NamedTuple):
    """The key pair that all processes of a cluster share, each half as 40 characters of Z85 (ZeroMQ RFC 32)."""

    public: bytes
    secret: bytes


def make_key(path: Path) -> Key:
    """A new key, written to a file that must not be there yet. Raises ConfigError."""
    if path.exists():
        raise ConfigError(f"{path} is there already, and never overwritten: all workers have to change at once")
    made = Key(*zmq.curve_keypair())
    text = _KEY_FILE.format(public=made.public.decode(), secret=made.secret.decode())
    private.write(path, text, "bus.key_file")
    return made


def load_key(settings: config.Settings) -> Key | None:
    """The key of bus.key_file, None without one. Raises ConfigError for a file that does not hold one."""
    if not settings.bus.key_file:
        return None
    path = settings.path(settings.bus.key_file)
    text = private.read(path, "bus.key_file")
    try:
        texts = msgspec.convert(tomllib.loads(text), dict[str, str])
        key = Key(texts["public"].encode(), texts["secret"].encode())
        if zmq.curve_public(key.secret) == key.public:
            return key
    except (ValueError, KeyError, zmq.ZMQError):
        pass  # said below, without a word of what the file holds
    raise ConfigError(f"bus.key_file: {path} does not hold a key of the bus: want what tools/ringctl keys wrote")


_KEY_FILE: Final = """\
# The key of the bus (bus.key_file). Every machine of the cluster has the same; whoever reads it is in. Keep mode 0600.
public = "{public}"
secret = "{secret}"
"""


class Handshakes:
    """What the gate knows of a socket's handshakes. Written by the gate, read by any thread."""

    def __init__(self) -> None:
        self.failing = False  # whether the latest one failed


class Pollable(Protocol):
    """Anything with a descriptor, besides the sockets of this module."""

    def fileno(self) -> int: ...


class Socket:
    """A ZeroMQ socket whose operations never wait."""

    def __init__(self, raw: "zmq.Socket[bytes]") -> None:
        self.raw = raw
        self.handshakes = Handshakes()

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


class Publisher(Socket):
    """Sends each message to all who have subscribed, and drops it for those who take none now.

    subscribers: how many there are, as of the last `look`.
    """

    def __init__(self, raw: "zmq.Socket[bytes]") -> None:
        super().__init__(raw)
        self.subscribers = 0

    def look(self) -> bool:
        """Note who has come and gone; whether somebody has come."""
        came = False
        while (frames := self.receive()) is not None:
            if frames[0][:1] == b"\x01":
                self.subscribers, came = self.subscribers + 1, True
            elif frames[0][:1] == b"\x00":
                self.subscribers = max(0, self.subscribers - 1)
        return came


S = TypeVar("S", bound=Socket)


class Bus:
    """One ZeroMQ context; make it in the process (and after the fork) that uses it."""

    def __init__(self, key: Key | None = None) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._key = key
        self._gate = _Gate(self._context, key) if key else None
        self._opened: weakref.WeakSet[zmq.Socket[bytes]] = weakref.WeakSet()

    @property
    def handshakes_failed(self) -> int:
        """Connections, of any socket here and from either side, that did not prove to have our key."""
        return self._gate.failures if self._gate else 0

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

    def publisher(self, endpoint: str) -> Publisher:
        """A bound XPUB, told of every subscription."""
        raw = self._socket(zmq.XPUB)
        raw.setsockopt(zmq.SNDHWM, LIVE_HWM)
        raw.setsockopt(zmq.XPUB_VERBOSER, 1)
        return self._bind(Publisher(raw), endpoint)

    def subscriber(self, endpoint: str, kind: bytes) -> Socket:
        """A SUB connected to a publisher, for messages of one kind."""
        raw = self._socket(zmq.SUB)
        raw.setsockopt(zmq.RCVHWM, LIVE_HWM)
        raw.setsockopt(zmq.SUBSCRIBE, kind)
        return self._connect(Socket(raw), endpoint)

    def pair(self, name: str) -> tuple[Socket, Socket]:
        """Two connected in-process ends, (bound, connected), to wake one thread from another."""
        bound, connected = Socket(self._context.socket(zmq.PAIR)), Socket(self._context.socket(zmq.PAIR))
        bound.raw.bind(f"inproc://{name}")
        connected.raw.connect(f"inproc://{name}")
        return bound, connected

    def close(self) -> None:
        """Close every socket and the context, at once."""
        for raw in list(self._opened):
            raw.close(linger=0)
        if self._gate:
            self._gate.close()  # not before: a socket that closes says so to the gate, and waits until it can
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
        self._opened.add(raw)
        return raw

    def _bind(self, socket: S, endpoint: str) -> S:
        self._check(endpoint)
        try:
            if self._key and self._gate:
                socket.raw.setsockopt(zmq.CURVE_SERVER, 1)
                socket.raw.setsockopt(zmq.CURVE_SECRETKEY, self._key.secret)
                socket.raw.setsockopt(zmq.ZAP_DOMAIN, _ZAP_DOMAIN)
                socket.raw.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without a gate nobody comes in, instead of all
                self._gate.watch(socket, endpoint)
            socket.raw.bind(endpoint)
        except zmq.ZMQError as error:
            socket.close()
            raise BusError(f"cannot bind {endpoint}: {error.strerror}") from error
        return socket

    def _connect(self, socket: S, endpoint: str) -> S:
        self._check(endpoint)
        try:
            if self._key and self._gate:
                socket.raw.setsockopt(zmq.CURVE_SERVERKEY, self._key.public)
                socket.raw.setsockopt(zmq.CURVE_PUBLICKEY, self._key.public)
                socket.raw.setsockopt(zmq.CURVE_SECRETKEY, self._key.secret)
                self._gate.watch(socket, endpoint)
            socket.raw.connect(endpoint)
        except zmq.ZMQError as error:
            socket.close()
            raise BusError(f"cannot connect to {endpoint}: {error.strerror}") from error
        return socket

    def _check(self, endpoint: str) -> None:
        host = _host(endpoint)
        if self._key is None and not config.is_loopback(host):
            raise BusError(f"endpoint {endpoint}: off loopback the bus needs a key: tools/ringctl keys, bus.key_file")


class _Gate:
    """The thread that lets in who has our key, and notes for each socket how its handshakes end.

    libzmq holds a connection back until the gate has answered, and a socket with an unread monitor waits for its
    reader: so this thread only reads, counts and logs. A Bus without it would be deaf: the process ends if it fails.
    """

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", key: Key) -> None:
        self.failures = 0
        self._context = context
        self._public: bytes = z85.decode(key.public)
        self._doorbell = context.socket(zmq.REP)
        self._doorbell.bind(_ZAP_ENDPOINT)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._new: deque[tuple[zmq.Socket[bytes], Handshakes, str]] = deque()  # filled by threads that open sockets
        self._watched: dict[zmq.Socket[bytes], tuple[Handshakes, str]] = {}
        self._numbers = itertools.count()
        self._closing = False
        self._thread = threading.Thread(target=self._guarded, name="bus-gate", daemon=True)
        self._thread.start()

    # Any thread

    def watch(self, socket: Socket, endpoint: str) -> None:
        """Follow the handshakes of a socket that is not bound or connected yet. Its own thread calls this."""
        address = f"inproc://handshakes-{next(self._numbers)}"
        socket.raw.monitor(address, _HANDSHAKES | zmq.EVENT_MONITOR_STOPPED)
        reader = self._context.socket(zmq.PAIR)
        reader.connect(address)
        self._new.append((reader, socket.handshakes, endpoint))  # from here on the gate's
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """End the thread. All sockets that are watched are closed already."""
        self._closing = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        os.close(self._wake)

    # The thread

    def _guarded(self) -> None:
        try:
            self._run()
        except Exception:
            logger.exception("BUG: the gate of the bus failed, the process ends")
            os._exit(1)

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._doorbell, zmq.POLLIN)
        poller.register(self._wake, zmq.POLLIN)
        while not self._closing:
            for source, _ in poller.poll():
                if source is self._doorbell:
                    self._answer()
                elif source == self._wake:
                    os.eventfd_read(self._wake)
                    self._take_new(poller)
                elif not self._note(source):
                    poller.unregister(source)
                    del self._watched[source]
                    source.close(linger=0)
        for reader in (self._doorbell, *self._watched, *(reader for reader, _, _ in self._new)):
            reader.close(linger=0)

    def _take_new(self, poller: zmq.Poller) -> None:
        while self._new:
            reader, handshakes, endpoint = self._new.popleft()
            self._watched[reader] = handshakes, endpoint
            poller.register(reader, zmq.POLLIN)

    def _answer(self) -> None:
        """Whether the peer of this handshake may come in: the one who has our key, nobody else."""
        version, request, _, address, _, mechanism, *credentials = self._doorbell.recv_multipart()
        known = mechanism == b"CURVE" and credentials == [self._public]
        if not known and logger.limited("stranger", 5.0):
            logger.warning("a stranger at the bus: it has another key", address=address.decode(errors="replace"))
        status = (b"200", b"OK") if known else (b"400", b"unknown key")
        self._doorbell.send_multipart([version, request, *status, b"", b""])

    def _note(self, reader: "zmq.Socket[bytes]") -> bool:
        """Take one event of a socket; False when it was its last one."""
        event, _ = _MONITORED.unpack(reader.recv_multipart()[0])  # the address follows, which is the endpoint
        if event == zmq.EVENT_MONITOR_STOPPED:
            return False
        handshakes, endpoint = self._watched[reader]
        handshakes.failing = event != zmq.EVENT_HANDSHAKE_SUCCEEDED
        if handshakes.failing:
            self.failures += 1
            if logger.limited(f"handshake {endpoint}", 5.0):
                logger.warning(HANDSHAKE_FAILED, endpoint=endpoint)
        return True


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


def request(
    endpoint: str, kind: bytes, header: protocol.Header, body: Any, timeout_s: float, key: Key | None = None
) -> protocol.Message:
    """Ask one question over a socket of its own and wait for its answer.

    For tools: workers keep their sockets. Raises BusTimeout, ProtocolError for a reply to something else.
    """
    bus = Bus(key)
    try:
        dealer = bus.dealer(endpoint)
        deadline = clock.monotonic_s() + timeout_s
        if not dealer.raw.poll(math.ceil(timeout_s * 1000), zmq.POLLOUT):
            why = f": {HANDSHAKE_FAILED}" if dealer.handshakes.failing else ""
            raise BusTimeout(f"no connection to {endpoint} within {timeout_s:g} s{why}")
        dealer.send(protocol.pack(kind, header, body))
        if not Poller([dealer]).poll(deadline - clock.monotonic_s()):
            raise BusTimeout(f"{endpoint} did not answer {kind.decode()} within {timeout_s:g} s")
        message = protocol.unpack(dealer.receive() or [])
        if (message.header.re, message.header.re_incarnation) != (header.sequence, header.incarnation):
            raise ProtocolError(f"{endpoint} answered request {message.header.re}, asked was {header.sequence}")
        return message
    finally:
        bus.close()


def _host(endpoint: str) -> str:
    """The host of an endpoint. Raises BusError for what is none."""
    try:
        host = urlsplit(endpoint.replace("*", "0")).hostname or ""
    except ValueError as error:
        raise BusError(f"endpoint {endpoint!r}: {error}, want tcp://HOST:PORT") from error
    if not endpoint.startswith("tcp://") or not host:
        raise BusError(f"endpoint {endpoint!r}: want tcp://HOST:PORT")
    return host
