"""The way to the broker: one MQTT connection after another, until everything is acknowledged.

Owns the socket, the messages that wait for their PUBACK, and the reconnections. After a connection is lost whatever
it left unacknowledged goes out again on the next one, oldest first (so a message may arrive twice, and points are
made for that). Messages in flight are bounded in number and bytes: `send` waits when the broker is slower.

While the broker is away, or answers nothing for QUIET_S, all that it has not acknowledged lies in the spool, and what
is new goes there too. What waits is sent before anything newer. When the spool is full a source that can wait has to;
what a live one sends is dropped and counted.

QoS 0 has no acknowledgement, so a PINGREQ follows the messages and its answer says that the broker has read them.
Belongs to one thread; connecting holds it for at most CONNECT_TIMEOUT_S.
"""

import contextlib
import os
import select
import socket
import ssl
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from common import clock, config
from tools.publish import wire
from tools.publish.message import Outgoing, PublisherError
from tools.publish.spool import Spool

CONNECT_TIMEOUT_S: Final = 5.0
MAX_IN_FLIGHT_BYTES: Final = 64 << 20
UNSENT_BYTES: Final = 1 << 20  # in user space; above it the socket is waited for
READ_BYTES: Final = 1 << 16
SEND_MESSAGES: Final = 1000  # between two looks at the answers
PROOF_S: Final = 0.2  # how often QoS 0 asks whether the broker has read everything
SILENCE: Final = 1.5  # of a keepalive, after which the broker is taken for dead
QUIET_S: Final = 2.0  # without an answer, after which what is in flight is kept on disk as well
PATIENCE_S: Final = 0.5  # that a live source waits for room before the spool takes what it has

_LENGTHS: Final = [wire.remaining_length(length) for length in range(2048)]  # of most messages, made once


class Address(NamedTuple):
    """Where the broker is and how to be let in."""

    host: str
    port: int
    username: str
    password: str
    tls: ssl.SSLContext | None


class Retry(Exception):
    """This connection failed, in words; another attempt may not."""


class Totals:
    """Counts since the start; the link adds to them."""

    def __init__(self) -> None:
        self.messages = self.points = 0  # given to `send`
        self.resumed_messages = self.resumed_points = 0  # found in the spool at the start
        self.acked_messages = self.acked_points = 0
        self.refused_points = 0  # by the broker, for good
        self.lost_points = 0  # QoS 0 on connections that broke before the broker had surely read them
        self.dropped_points = 0  # of live sources, while the spool was full
        self.spooled_points = 0  # left in the spool at the end


class Link:
    """Sends messages at one QoS, keeps those of QoS 1 until they are acknowledged.

    spool: what it holds already is sent first. report: told, in words, when the connection is lost, found again, or
    something is refused.
    """

    def __init__(
        self, address: Address, mqtt: config.Mqtt, qos: int, spool: Spool, report: Callable[[str], None]
    ) -> None:
        self.totals = Totals()
        self.totals.resumed_messages, self.totals.resumed_points = spool.messages, spool.points
        self._spool = spool
        self._address = address
        self._mqtt = mqtt
        self._qos = qos
        self._report = report
        self._client_id = f"minitrue-publisher-{os.urandom(6).hex()}"
        self._version = wire.V5
        self._socket: socket.socket | None = None
        self._limits = wire.Limits()
        self._window = wire.MAX_PACKET_IDS
        self._largest = 1024  # bytes of the largest message so far, which bounds the window
        self._last_id = 0
        self._in_flight: dict[int, Outgoing] = {}  # packet id -> message, in order of sending
        self._again: deque[Outgoing] = deque()  # unacknowledged on an earlier connection
        self._troubled = False  # whether the last thing reported of the connection was bad
        self._unsent = bytearray()
        self._unread = b""
        self._backoff_s = mqtt.reconnect_min_s
        self._retry_at_s = 0.0
        self._heard_s = self._asked_s = self._quiet_s = 0.0
        self._proving: tuple[int, int] | None = None  # QoS 0: messages and points that the PINGREQ under way covers
        self._unproven = (0, 0)  # QoS 0: messages and points behind it

    @property
    def outstanding(self) -> int:
        """Messages that are not acknowledged."""
        proving = self._proving or (0, 0)
        in_memory = len(self._in_flight) + len(self._again)
        return in_memory + self._spool.waiting + proving[0] + self._unproven[0]

    @property
    def is_parked(self) -> bool:
        """Whether the broker is away and everything that is not acknowledged lies in the spool."""
        return self._socket is None and self._spool.messages == self.outstanding

    def send(self, messages: Sequence[Outgoing], give_up: Callable[[], bool], live: bool) -> None:
        """Take messages: send them, or keep them in the spool, or wait until one of the two is possible.

        Returns early, the rest not taken, when give_up() is true. live: they come as they come; rather than to wait
        long for room they are kept in the spool, or dropped where that is full.
        """
        at, patient_until_s = 0, clock.monotonic_s() + PATIENCE_S
        while at < len(messages) and not give_up():
            if self._socket is None:
                self.turn(0.0)
            taken = self._send_some(messages[at : at + SEND_MESSAGES])
            if not taken and (self._socket is None or (live and self._is_behind(patient_until_s))):
                taken = self._spool.append(messages[at : at + SEND_MESSAGES])
                if live and not taken:
                    self._drop(messages[at:])
                    return
                self._count(messages[at : at + taken])
            at += taken
            self.turn(0.0 if taken else 0.2)

    def turn(self, timeout_s: float) -> None:
        """Connect, write, read what there is, waiting at most timeout_s. Raises PublisherError where no retry helps."""
        self._spool.tick()
        if self._socket is None:
            self._turn_offline(timeout_s)
            return
        try:
            self._turn_online(self._socket, timeout_s)
        except (OSError, wire.Malformed, Retry) as error:
            self._lost(str(error) or type(error).__name__)

    def close(self) -> None:
        """Say goodbye. What is not acknowledged is not sent any more; it stays in the spool where there is room."""
        if self._socket is not None:
            with contextlib.suppress(OSError):  # it goes anyway
                self._socket.send(wire.DISCONNECT)
            self._socket.close()
            self._socket = None
        self._spool.keep([*self._in_flight.values(), *self._again])
        self.totals.spooled_points = self._spool.points
        self._spool.close()

    def _send_some(self, messages: Sequence[Outgoing]) -> int:
        """Send the first of these, as many as there is room for; how many."""
        if self._socket is None or self._again or self._spool.waiting or len(self._unsent) > UNSENT_BYTES:
            return 0
        room = max(0, self._window - len(self._in_flight))
        self._count(messages[:room])
        self._enqueue(messages[:room])
        return len(messages[:room])

    def _is_behind(self, patient_until_s: float) -> bool:
        return self._spool.waiting > 0 or clock.monotonic_s() > patient_until_s

    def _count(self, messages: Sequence[Outgoing]) -> None:
        self.totals.messages += len(messages)
        self.totals.points += sum([message.points for message in messages])

    def _drop(self, messages: Sequence[Outgoing]) -> None:
        if not self.totals.dropped_points:
            self._report("the spool is full (--spool-bytes): what comes now is dropped, and counted")
        self._count(messages)
        self.totals.dropped_points += sum([message.points for message in messages])

    def _enqueue(self, messages: Sequence[Outgoing]) -> None:
        """Build PUBLISH frames (3.3). The one loop that every message goes through: no calls that it can do without."""
        first = b"\x32" if self._qos else b"\x30"
        properties = b"\x00" if self._version == wire.V5 else b""
        extra = (2 if self._qos else 0) + len(properties)
        in_flight, packet_id = self._in_flight, self._last_id
        if not in_flight:
            self._quiet_s = clock.monotonic_s()
        parts: list[bytes] = []
        for message in messages:
            topic, payload, _, _ = message
            length = len(topic) + len(payload) + extra
            if length > self._largest:
                self._grow(length)
            encoded = _LENGTHS[length] if length < len(_LENGTHS) else wire.remaining_length(length)
            if self._qos:
                packet_id = packet_id % wire.MAX_PACKET_IDS + 1
                while packet_id in in_flight:
                    packet_id = packet_id % wire.MAX_PACKET_IDS + 1
                in_flight[packet_id] = message
                parts += (first, encoded, topic, packet_id.to_bytes(2), properties, payload)
            else:
                parts += (first, encoded, topic, properties, payload)
        self._last_id = packet_id
        self._unsent += b"".join(parts)
        if not self._qos:
            self._hand_over(messages)

    def _hand_over(self, messages: Sequence[Outgoing]) -> None:
        """QoS 0: what was enqueued is out of our hands; whether the broker reads it is asked later."""
        points = sum([message.points for message in messages])
        self._unproven = (self._unproven[0] + len(messages), self._unproven[1] + points)
        for message in messages:
            if message.part is not None:
                message.part.settle(message.points)

    def _grow(self, length: int) -> None:
        if length + wire.MAX_HEADER_BYTES > self._limits.frame_bytes:
            raise PublisherError(
                f"a message of {length} bytes, where the broker takes {self._limits.frame_bytes}; "
                "want fewer --points-per-message"
            )
        self._largest = max(self._largest, length)
        self._window = max(1, min(self._limits.in_flight, MAX_IN_FLIGHT_BYTES // self._largest))

    def _turn_offline(self, timeout_s: float) -> None:
        wait_s = self._retry_at_s - clock.monotonic_s()
        if wait_s > 0:
            time.sleep(min(wait_s, timeout_s))
            return
        try:
            self._connect()
        except (OSError, wire.Malformed, Retry) as error:
            self._lost(str(error) or type(error).__name__)

    def _connect(self) -> None:
        """TCP, TLS, CONNECT, CONNACK. Raises PublisherError where the broker will not have us."""
        address = self._address
        stream = socket.create_connection((address.host, address.port), timeout=CONNECT_TIMEOUT_S)
        try:
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if address.tls:
                stream = address.tls.wrap_socket(stream, server_hostname=address.host)
            self._begin(*self._handshake(stream))
            stream.setblocking(False)
        except ssl.SSLCertVerificationError as error:
            stream.close()
            raise PublisherError(f"{self._name()}: its certificate is not trusted: {error.verify_message}") from error
        except BaseException:
            stream.close()
            raise
        self._socket = stream

    def _handshake(self, stream: socket.socket) -> tuple[int, wire.Limits]:
        """The broker's answer to CONNECT, and the other version tried next where it does not like this one."""
        address, mqtt = self._address, self._mqtt
        stream.sendall(
            wire.connect(self._version, self._client_id, mqtt.keepalive_s, address.username, address.password)
        )
        received = b""
        while not (answer := next(wire.frames(received), None)):
            data = stream.recv(READ_BYTES)
            if not data:
                self._version = wire.V5 + wire.V311 - self._version  # some brokers refuse a version without a word
                raise Retry("the broker closed the connection instead of answering")
            received += data
        kind, body, end = answer
        if kind != wire.CONNACK:
            raise wire.Malformed(f"packet type {kind:#04x} instead of CONNACK")
        self._unread = received[end:]
        return wire.connack(self._version, body)

    def _begin(self, code: int, limits: wire.Limits) -> None:
        """Take what CONNACK says."""
        if code in wire.WRONG_VERSION and self._version == wire.V5:
            self._version = wire.V311
            self._backoff_s = 0.0
            raise Retry("MQTT v5 refused")
        if code in wire.TRY_LATER:
            raise Retry(wire.reason_text(code))
        if code:
            raise PublisherError(f"{self._name()} lets the publisher not in: {wire.reason_text(code)}")
        if limits.qos < self._qos:
            raise PublisherError(f"{self._name()} takes QoS {limits.qos} only, --qos is {self._qos}")
        if self._troubled:
            waiting = len(self._again) + self._spool.waiting
            self._report(f"connected to {self._name()}; {waiting} messages wait to be sent")
        self._troubled = False
        self._limits = limits
        self._grow(self._largest)
        self._heard_s = self._asked_s = self._quiet_s = clock.monotonic_s()

    def _lost(self, why: str) -> None:
        """The connection, or an attempt, is over: what it left goes out again on the next."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._again = deque(self._spool.keep([*self._in_flight.values(), *self._again]))
        self._in_flight.clear()
        self._unsent.clear()
        self._unread = b""
        self._write_off()
        self._retry_at_s = clock.monotonic_s() + self._backoff_s
        if self._backoff_s:
            self._troubled = True
            self._report(f"{self._name()}: {why}; trying again in {self._backoff_s:.1f} s")
        self._backoff_s = min(max(2 * self._backoff_s, self._mqtt.reconnect_min_s), self._mqtt.reconnect_max_s)

    def _write_off(self) -> None:
        proving = self._proving or (0, 0)
        self.totals.lost_points += proving[1] + self._unproven[1]
        self._proving, self._unproven = None, (0, 0)

    def _turn_online(self, stream: socket.socket, timeout_s: float) -> None:
        now_s = clock.monotonic_s()
        self._keep_alive(now_s)
        if self._in_flight and now_s - self._quiet_s > QUIET_S:
            self._quiet_s = now_s
            self._in_flight = dict(zip(self._in_flight, self._spool.keep([*self._in_flight.values()]), strict=True))
        if self._again or self._spool.waiting:
            self._send_waiting()
        pending = isinstance(stream, ssl.SSLSocket) and stream.pending()
        readable, writable, _ = select.select(
            [stream], [stream] if self._unsent else [], [], 0.0 if pending else timeout_s
        )
        if writable:
            self._write(stream)
        if readable or pending:
            self._read(stream)

    def _send_waiting(self) -> None:
        room = min(self._window - len(self._in_flight), SEND_MESSAGES)
        if len(self._unsent) <= UNSENT_BYTES and room > 0:
            again = [self._again.popleft() for _ in range(min(room, len(self._again)))]
            self._enqueue(again or [each for each in self._spool.take(room) if self._fits(each)])

    def _fits(self, message: Outgoing) -> bool:
        """Whether the broker takes a message from the spool; an earlier run's broker may have taken larger ones."""
        length = len(message.topic) + len(message.payload) + 3
        if length + wire.MAX_HEADER_BYTES <= self._limits.frame_bytes:
            return True
        self._refuse(message, f"takes no message of {length} bytes, which the spool holds")
        return False

    def _write(self, stream: socket.socket) -> None:
        try:
            while self._unsent:  # TLS takes 16 KB at a time
                del self._unsent[: stream.send(self._unsent)]
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            return

    def _read(self, stream: socket.socket) -> None:
        try:
            data = stream.recv(READ_BYTES)
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            return
        if not data:
            raise Retry("the broker closed the connection")
        self._heard_s = self._quiet_s = clock.monotonic_s()
        buffer = self._unread + data
        at = self._plain_pubacks(buffer)
        for kind, body, end in wire.frames(buffer, at):
            self._answer(kind, body)
            at = end
        self._unread = buffer[at:]

    def _plain_pubacks(self, buffer: bytes) -> int:
        """Take the PUBACKs without a reason code at the beginning, which is nearly all there is; their bytes."""
        at = messages = points = 0
        pop = self._in_flight.pop
        for kind, packet_id in struct.iter_unpack(">HH", buffer[: len(buffer) & ~3]):
            if kind != 0x4002:
                break
            at += 4
            message = pop(packet_id, None)
            if message is not None:
                messages += 1
                points += message[2]
                if message[3] is not None:
                    message[3].settle(message[2])
        self._acked(messages, points)
        return at

    def _answer(self, kind: int, body: bytes) -> None:
        if kind == wire.PUBACK:
            self._puback(int.from_bytes(body[:2]), body[2] if len(body) > 2 else 0)
        elif kind == wire.PINGRESP:
            self._acked(*(self._proving or (0, 0)))
            self._proving = None
        elif kind == wire.SERVER_DISCONNECT:
            raise Retry(f"the broker ended the connection: {wire.reason_text(body[0] if body else 0)}")
        else:
            raise wire.Malformed(f"packet type {kind:#04x} from the broker")

    def _puback(self, packet_id: int, reason: int) -> None:
        message = self._in_flight.pop(packet_id, None)
        if message is None:
            return
        if reason >= wire.REFUSED:
            self._refuse(message, f"refuses messages: {wire.reason_text(reason)}")
            return
        self._acked(1, message.points)
        if message.part is not None:
            message.part.settle(message.points)

    def _refuse(self, message: Outgoing, why: str) -> None:
        if not self.totals.refused_points:
            self._report(f"{self._name()} {why}")
        self.totals.refused_points += message.points
        if message.part is not None:
            message.part.settle(message.points)

    def _acked(self, messages: int, points: int) -> None:
        if messages:
            self._backoff_s = self._mqtt.reconnect_min_s
        self.totals.acked_messages += messages
        self.totals.acked_points += points

    def _keep_alive(self, now_s: float) -> None:
        """Ask for a sign of life after half a keepalive of silence, and what became of QoS 0 messages."""
        keepalive_s = self._limits.keepalive_s or self._mqtt.keepalive_s
        silence_s = now_s - self._heard_s
        unproven = self._unproven[0] and now_s - self._asked_s >= PROOF_S
        if self._proving is None and (silence_s > keepalive_s / 2 or unproven):
            self._unsent += wire.PINGREQ
            self._asked_s = now_s
            self._proving, self._unproven = self._unproven, (0, 0)
        elif self._proving is not None and silence_s > keepalive_s * SILENCE:
            raise Retry(f"no answer for {silence_s:.0f} s")

    def _name(self) -> str:
        return f"{'mqtts' if self._address.tls else 'mqtt'}://{self._address.host}:{self._address.port}"


def address(url: str, mqtt: config.Mqtt, username: str | None, password: str | None) -> Address:
    """The broker at a URL; what the options leave open is as in the settings. Raises PublisherError."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise PublisherError(f"--url {url!r}: {error}") from error
    if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or parts.path not in ("", "/"):
        raise PublisherError(f"--url {url!r}: want mqtt://HOST:PORT, or mqtts://HOST:PORT for TLS")
    tls = _tls(mqtt) if parts.scheme == "mqtts" else None
    user = mqtt.username if username is None else username
    secret = mqtt.password if password is None else password
    return Address(parts.hostname, port or (8883 if tls else 1883), user, secret, tls)


def _tls(mqtt: config.Mqtt) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=mqtt.ca_file or None)
        if mqtt.cert_file:
            context.load_cert_chain(mqtt.cert_file, mqtt.key_file)
    except OSError as error:
        raise PublisherError(f"TLS files of the [mqtt] settings: {error}") from error
    return context
