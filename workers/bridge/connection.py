"""One connection to the broker, from TCP to its end, and the messages that wait for their PUBACK on it.

A message waits in the connection that it came by and is forgotten with it, because after a reconnection packet ids
begin again and a late PUBACK would acknowledge another message. PUBACKs go out in order of receipt, those of one turn
in one send. Belongs to the loop's thread.
"""

import ssl
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from paho.mqtt.enums import MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions
from prometheus_client import Histogram

from common import clock, config, log, metrics
from workers.bridge.batch import Message
from workers.bridge.session import Asked, Session, to_ask
from workers.bridge.wire import QOS_BITS, V5, Client

CONNECT_TIMEOUT_S: Final = 3.0  # less than the ack timeout, which runs on meanwhile
HANDSHAKE_TIMEOUT_S: Final = 10.0  # from TCP to CONNACK
FAREWELL_S: Final = 0.5  # for the last PUBACKs and DISCONNECT to leave
SESSION_NEVER_EXPIRES: Final = 0xFFFFFFFF
RETAINED_IF_NEW: Final = 1  # v5: retained messages are sent for new subscriptions only, not at each reconnection

_WRONG_VERSION: Final = "Unsupported protocol version"
_TAKEN_OVER: Final = 0x8E
_UNSPECIFIED: Final = 0x80  # paho's word for an end of the stream
_QOS_2: Final = 0x04
_PUBACK: Final = b"\x40\x02"
_PUBREC: Final = b"\x50\x02"

logger = log.get("bridge.mqtt")

Receive = Callable[[Message, bytes], None]

_ack_latency = Histogram(
    "minitrue_bridge_puback_seconds",
    "From receipt of a message at QoS 1 to its PUBACK; one observation for the messages of one read.",
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0, 600.0),
    registry=metrics.REGISTRY,
)


class Address(NamedTuple):
    """Where the broker is."""

    host: str
    port: int
    tls: bool


class Connection:
    """One connection.

    connected_s: when the broker accepted it, 0 before. closed: why it is over, "" while it is not. wrong_version:
    whether the broker refused this version of MQTT, or hung up without a word. taken_over: whether another client
    with our id ended it, where the broker says so (v5). hung_up: whether it ended without a word. session_expiry_s:
    how long the broker keeps the session once we are gone, None where it did not say. granted: QoS by filter, -1
    refused. acked: messages acknowledged. reading: whether `read` reads.
    """

    def __init__(
        self, mqtt: config.Mqtt, client_id: str, protocol: MQTTProtocolVersion, receive: Receive, session: Session
    ) -> None:
        self.protocol = protocol
        self.connected_s = 0.0
        self.closed = ""
        self.wrong_version = False
        self.taken_over = False
        self.hung_up = False
        self.session_present = False
        self.session_expiry_s: int | None = None
        self.granted: dict[str, int] = {}
        self._asked = to_ask(mqtt)
        self._mqtt = mqtt
        self._receive = receive
        self._session = session
        self._pending: deque[Message] = deque()
        self.acked = 0
        self._reads: deque[tuple[int, float]] = deque()  # messages received by then, and when: one for each read
        self._opened_s = clock.monotonic_s()
        self._pinged_s = 0.0
        self.reading = True
        self._client = self._make_client(client_id)

    def _make_client(self, client_id: str) -> Client:
        client = Client(client_id, self.protocol, self._publish)
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_unsubscribe = self._on_unsubscribe
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
        if not self.reading:
            return
        before = len(self._pending)
        self._client.loop_read()
        if len(self._pending) > before:
            self._reads.append((self.acked + len(self._pending), clock.monotonic_s()))

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
            self.acked += len(acks) // 2
            self._client.send_acks(b"".join(acks))
            self._observe()
        return len(acks) // 2

    def _observe(self) -> None:
        now = clock.monotonic_s()
        while self._reads and self._reads[0][0] <= self.acked:
            _ack_latency.observe(now - self._reads.popleft()[1])

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

    def _on_connect(self, _client: Any, _data: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
        if reason.is_failure:
            self.wrong_version = reason == _WRONG_VERSION
            self._over(f"refused by the broker: {reason}")
            return
        self.connected_s = clock.monotonic_s()
        self.session_present = flags.session_present
        self.session_expiry_s = getattr(properties, "SessionExpiryInterval", None)
        stale = self._session.begin(flags.session_present)
        self._client.subscribe([(each.filter, self._options(each)) for each in self._asked])
        if stale:
            logger.info("unsubscribing what the configuration has no more", filters=stale)
            self._client.unsubscribe(stale)

    def _options(self, wanted: Asked) -> Any:
        if self.protocol == V5:
            return SubscribeOptions(wanted.qos, retainHandling=RETAINED_IF_NEW)
        return wanted.qos

    def _on_subscribe(self, _client: Any, _data: Any, _mid: int, reasons: list[ReasonCode], _properties: Any) -> None:
        for wanted, reason in zip(self._asked, reasons, strict=False):
            self.granted |= dict.fromkeys(wanted.serves, -1 if reason.is_failure else reason.value)
            if reason.is_failure:
                logger.error("subscription refused", filter=wanted.filter, reason=str(reason))
            elif reason.value < wanted.qos:
                logger.warning("subscription granted at a lower QoS", filter=wanted.filter, qos=reason.value)

    def _on_unsubscribe(self, _client: Any, _data: Any, _mid: int, reasons: list[ReasonCode], _properties: Any) -> None:
        if any(reason.is_failure for reason in reasons):  # v5 only
            said = [str(each) for each in reasons]
            logger.error("not unsubscribed, trying again at the next connection", reasons=said)
        else:
            self._session.settled()

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, reason: ReasonCode, _properties: Any) -> None:
        if not self.connected_s and not self.closed:
            self.wrong_version = True  # hung up before CONNACK: some brokers refuse v5 in this way
        self.taken_over = reason.value == _TAKEN_OVER
        self.hung_up = reason.value == _UNSPECIFIED
        self._over("the connection broke, or the broker hung up" if self.hung_up else str(reason))
