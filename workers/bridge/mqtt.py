"""The MQTT side: a session with the broker that lasts, and PUBACKs that never lie.

Owns the connection, its fallback from MQTT v5 to v3.1.1, subscriptions, reconnection, and the messages that have
not been acknowledged on it. A Link makes one Connection after another; a message waits for its PUBACK in the
connection that it came by and is forgotten with it, because after a reconnection packet ids begin again and a
late PUBACK would acknowledge another message. PUBACKs go out in order of receipt, those of one turn in one send.

Never decodes a payload, never decides what is durable. Belongs to the loop's thread. Connecting holds that thread:
TCP and TLS for at most CONNECT_TIMEOUT_S each, a name lookup for as long as the resolver takes.
"""

import random
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from paho.mqtt.enums import MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from common import clock, config, log
from common.errors import ConfigError
from workers.bridge.batch import Message
from workers.bridge.wire import QOS_BITS, V5, V311, Client

CONNECT_TIMEOUT_S: Final = 3.0  # less than the ack timeout, which runs on meanwhile
HANDSHAKE_TIMEOUT_S: Final = 10.0  # from TCP to CONNACK
STABLE_S: Final = 5.0  # a connection that lasted so long ends the doubling of waits: two clients with one id kick
# each other out as soon as they connect
FAREWELL_S: Final = 0.5  # for the last PUBACKs and DISCONNECT to leave
SESSION_NEVER_EXPIRES: Final = 0xFFFFFFFF
RETAINED_IF_NEW: Final = 1  # v5: retained messages are sent for new subscriptions only, not at each reconnection
PORTS: Final = {"mqtt": 1883, "mqtts": 8883}

_WRONG_VERSION: Final = "Unsupported protocol version"
_QOS_2: Final = 0x04
_PUBACK: Final = b"\x40\x02"
_PUBREC: Final = b"\x50\x02"

logger = log.get("bridge.mqtt")

Receive = Callable[[Message, bytes], None]


class Address(NamedTuple):
    """Where the broker is."""

    host: str
    port: int
    tls: bool


def address_of(url: str) -> Address:
    """The address in mqtt.url, which the configuration has checked."""
    parts = urlsplit(url)
    return Address(parts.hostname or "", parts.port or PORTS[parts.scheme], parts.scheme == "mqtts")


def tls_context(mqtt: config.Mqtt, base: config.Settings) -> ssl.SSLContext:
    """The TLS settings as a context. Raises ConfigError where a file cannot be used."""
    ca, cert, key = (str(base.path(name)) if name else None for name in (mqtt.ca_file, mqtt.cert_file, mqtt.key_file))
    try:
        context = ssl.create_default_context(cafile=ca)
        if cert:
            context.load_cert_chain(cert, key)
    except OSError as error:
        raise ConfigError(f"mqtt.ca_file, cert_file, key_file ({ca}, {cert}, {key}): {error}") from error
    return context


class Connection:
    """One connection, from TCP to its end, and the messages that wait for their PUBACK on it.

    connected_s: when the broker accepted it, 0 before. closed: why it is over, "" while it is not. wrong_version:
    whether the broker refused this version of MQTT, or hung up without a word. granted: QoS by filter, -1 refused.
    reading: whether `read` reads.
    """

    def __init__(
        self, mqtt: config.Mqtt, client_id: str, protocol: MQTTProtocolVersion, receive: Receive
    ) -> None:
        self.protocol = protocol
        self.connected_s = 0.0
        self.closed = ""
        self.wrong_version = False
        self.session_present = False
        self.granted: dict[str, int] = {}
        self._mqtt = mqtt
        self._receive = receive
        self._pending: deque[Message] = deque()
        self._opened_s = clock.monotonic_s()
        self._pinged_s = 0.0
        self.reading = True
        self._client = self._make_client(client_id)

    def _make_client(self, client_id: str) -> Client:
        client = Client(client_id, self.protocol, self._publish)
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._on_disconnect
        if self._mqtt.username:
            client.username_pw_set(self._mqtt.username, self._mqtt.password or None)
        return client

    def open(self, address: Address, tls: ssl.SSLContext | None) -> None:
        """Connect. Raises OSError; what follows is reported by `connected_s` and `closed`."""
        if tls:
            self._client.tls_set_context(tls)
        if self.protocol == V5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = SESSION_NEVER_EXPIRES
            properties.ReceiveMaximum = self._mqtt.receive_maximum
            self._client.connect(
                address.host, address.port, self._mqtt.keepalive_s, clean_start=False, properties=properties
            )
        else:
            self._client.connect(address.host, address.port, self._mqtt.keepalive_s)

    @property
    def socket(self) -> Any:
        """What to poll; None once closed."""
        return self._client.socket()

    @property
    def wants_write(self) -> bool:
        """Whether bytes wait for room in the socket."""
        return self._client.want_write()

    @property
    def has_unread(self) -> bool:
        """Whether there is something to read that no poll would announce."""
        return self.reading and self._client.has_unread

    @property
    def pending(self) -> int:
        """Messages without their PUBACK."""
        return len(self._pending)

    def read(self) -> None:
        """Read once; whole messages go to `receive`."""
        if self.reading:
            self._client.loop_read()

    def write(self) -> None:
        """Write what waits."""
        self._client.loop_write()

    def acknowledge(self) -> int:
        """Acknowledge what is durable, in order of receipt: nothing behind a message that is not. How many."""
        pending = self._pending
        acks = []
        while pending and not pending[0].waiting:
            message = pending.popleft()
            acks.append(_PUBREC if message.flags & _QOS_2 else _PUBACK)
            acks.append(message.packet_id)
        if acks:
            self._client.send_acks(b"".join(acks))
        return len(acks) // 2

    def set_reading(self, reading: bool) -> None:
        """Stop or go on reading. Meanwhile the broker hears that we live, and is not expected to answer."""
        if reading and not self.reading:
            self._client.forget_silence()
        self.reading = reading

    def tick(self, now: float) -> None:
        """Keepalive and time limits."""
        if not self.connected_s and now - self._opened_s > HANDSHAKE_TIMEOUT_S:
            self.wrong_version = True
            self.abandon(f"no CONNACK within {HANDSHAKE_TIMEOUT_S:g} s")
        elif self.reading:
            self._client.loop_misc()
        elif now - self._pinged_s > self._mqtt.keepalive_s / 2:
            self._pinged_s = now
            self._client.ping_unread()

    def abandon(self, reason: str) -> None:
        """Cut the connection, as the network might."""
        self._over(reason)
        self._client.cut()

    def close(self) -> None:
        """Say goodbye: what is queued leaves if it can, then DISCONNECT, which keeps the session."""
        deadline = clock.monotonic_s() + FAREWELL_S
        self._client.disconnect()
        while self._client.want_write() and self.socket is not None and clock.monotonic_s() < deadline:
            self._client.loop_write()
        self.abandon("closed by the bridge")

    def _publish(self, flags: int, topic: bytes, packet_id: bytes, payload: bytes) -> None:
        message = Message(flags, packet_id, topic)
        if flags & QOS_BITS:
            self._pending.append(message)
        self._receive(message, payload)

    def _over(self, reason: str) -> None:
        if not self.closed:
            self.closed = reason
            self._pending.clear()

    # Called by paho, in the loop's thread.

    def _on_connect(self, _client: Any, _data: Any, flags: Any, reason: ReasonCode, _properties: Any) -> None:
        if reason.is_failure:
            self.wrong_version = reason == _WRONG_VERSION
            self._over(f"refused by the broker: {reason}")
            return
        self.connected_s = clock.monotonic_s()
        self.session_present = flags.session_present
        self._client.subscribe([(wanted.filter, self._options(wanted)) for wanted in self._mqtt.subscriptions])

    def _options(self, wanted: config.Subscription) -> Any:
        if self.protocol == V5:
            return SubscribeOptions(wanted.qos, retainHandling=RETAINED_IF_NEW)
        return wanted.qos

    def _on_subscribe(self, _client: Any, _data: Any, _mid: int, reasons: list[ReasonCode], _properties: Any) -> None:
        for wanted, reason in zip(self._mqtt.subscriptions, reasons, strict=False):
            self.granted[wanted.filter] = -1 if reason.is_failure else reason.value
            if reason.is_failure:
                logger.error("subscription refused", filter=wanted.filter, reason=str(reason))
            elif reason.value < wanted.qos:
                logger.warning("subscription granted at a lower QoS", filter=wanted.filter, qos=reason.value)

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, reason: ReasonCode, _properties: Any) -> None:
        if not self.connected_s and not self.closed:
            self.wrong_version = True  # hung up before CONNACK: some brokers refuse v5 in this way
        self._over(str(reason))


class Link:
    """Keeps a connection to the broker. connection: the present one, or None between two.

    Every round of attempts begins with v5 and goes on at once with v3.1.1 where the broker will not have v5.
    """

    def __init__(self, settings: config.Settings, client_id: str, receive: Receive) -> None:
        """Raises ConfigError."""
        self.connection: Connection | None = None
        self.connects = 0
        self.acked = 0
        self._mqtt = settings.mqtt
        self._address = address_of(settings.mqtt.url)
        self._tls = tls_context(settings.mqtt, settings) if self._address.tls else None
        self._client_id = client_id
        self._receive = receive
        self._protocol = V5
        self._next_try_s = 0.0
        self._delay_s = self._mqtt.reconnect_min_s
        self._announced: Connection | None = None
        self._reading = True
        self._last_end = ""

    @property
    def is_connected(self) -> bool:
        """Whether the broker has accepted the present connection."""
        return self.connection is not None and self.connection.connected_s > 0 and not self.connection.closed

    def tick(self, now: float) -> None:
        """Connect when it is time to; keepalive."""
        connection = self.connection
        if connection is None:
            if now >= self._next_try_s:
                self._connect(now)
            return
        if not connection.closed:
            connection.tick(now)
        if connection.connected_s and connection is not self._announced:
            self._announce(connection)
        if connection.closed:
            self._lost(connection, now)

    def acknowledge(self) -> None:
        """Send the PUBACKs that may go out."""
        if self.connection is not None and not self.connection.closed:
            self.acked += self.connection.acknowledge()

    @property
    def pending(self) -> int:
        """Messages without their PUBACK on the present connection."""
        return self.connection.pending if self.connection is not None else 0

    def pollable(self) -> tuple[Any, bool] | None:
        """What to poll for reading, and whether for writing too; None where there is nothing to wait for."""
        connection = self.connection
        if connection is None or connection.socket is None or not connection.reading:
            return None
        return connection.socket, connection.wants_write

    def set_reading(self, reading: bool) -> None:
        """Stop or go on reading, now and on later connections."""
        self._reading = reading
        if self.connection is not None:
            self.connection.set_reading(reading or not self.connection.connected_s)

    def close(self) -> None:
        """Leave the broker, keeping the session. Nothing more is received."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def status(self, now: float) -> dict[str, Any]:
        """What a person wants to know of the link."""
        connection = self.connection if self.is_connected else None
        subscriptions: dict[str, int | None] = dict.fromkeys((s.filter for s in self._mqtt.subscriptions), None)
        return {
            "broker": self._mqtt.url,
            "client_id": self._client_id,
            "connected": connection is not None,
            "connected_for_s": round(now - connection.connected_s, 3) if connection else None,
            "protocol": None if connection is None else "5" if connection.protocol == V5 else "3.1.1",
            "session": None if connection is None else "resumed" if connection.session_present else "new",
            "subscriptions": subscriptions | connection.granted if connection else subscriptions,
            "connects": self.connects,
            "last_disconnect": self._last_end,
            "pending_messages": connection.pending if connection else 0,
            "reading": self._reading,
        }

    def _connect(self, now: float) -> None:
        connection = Connection(self._mqtt, self._client_id, self._protocol, self._receive)
        try:
            connection.open(self._address, self._tls)
        except (OSError, ValueError) as error:
            self._last_end = str(error)
            self._protocol = V5
            self._wait(now)
            if logger.limited("connect", 30.0):
                logger.warning("broker unreachable, trying on", url=self._mqtt.url, reason=str(error))
            return
        self.connection = connection

    def _announce(self, connection: Connection) -> None:
        self._announced = connection
        self.connects += 1
        connection.set_reading(self._reading)
        session = "resumed" if connection.session_present else "new"
        logger.info("connected to the broker", url=self._mqtt.url, protocol=connection.protocol.name, session=session)
        if self.connects > 1 and not connection.session_present:
            logger.warning("the broker has lost our session, and what it had queued for us")

    def _lost(self, connection: Connection, now: float) -> None:
        self.connection = None
        self._last_end = connection.closed
        if self._protocol == V5 and connection.wrong_version:
            logger.info("broker will not have MQTT v5, trying v3.1.1", reason=connection.closed)
            self._protocol = V311
            self._next_try_s = now
            return
        self._protocol = V5
        if connection.connected_s and now - connection.connected_s > STABLE_S:
            self._delay_s = self._mqtt.reconnect_min_s
        self._wait(now)
        if connection.connected_s or logger.limited("lost", 10.0):
            logger.warning("disconnected from the broker", reason=connection.closed)

    def _wait(self, now: float) -> None:
        """Exponential backoff; the jitter keeps bridges from returning to a restarted broker in step."""
        self._next_try_s = now + self._delay_s * random.uniform(0.5, 1.0)
        self._delay_s = min(self._mqtt.reconnect_max_s, self._delay_s * 2)
