"""The MQTT side: a link to the broker that lasts.

Owns the address, the fallback from MQTT v5 to v3.1.1, and when to connect again. A Link makes one Connection after
another; PUBACKs belong to the connection (connection.py), filters to the session (session.py).

Never decodes a payload, never decides what is durable. Belongs to the loop's thread. Connecting holds that thread:
TCP and TLS for at most CONNECT_TIMEOUT_S each, a name lookup for as long as the resolver takes.
"""

import random
import ssl
from collections import deque
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from common import config, log
from common.errors import ConfigError
from workers.bridge.connection import SESSION_NEVER_EXPIRES, Address, Connection, Receive
from workers.bridge.session import FILE_NAME, Session, to_ask
from workers.bridge.wire import V5, V311

STABLE_S: Final = 5.0  # a connection that lasted so long ends the doubling of waits: two clients with one id kick
# each other out as soon as they connect
HANG_UPS: Final = 3  # by the broker within HANG_UPS_S make us guess that another client has our id: most brokers
HANG_UPS_S: Final = 120.0  # do not say so (mosquitto 2.0 never does)
CONTESTED_S: Final = 300.0  # so long after the last of them the bridge calls itself unhealthy
PORTS: Final = {"mqtt": 1883, "mqtts": 8883}

logger = log.get("bridge.mqtt")


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


class Link:
    """Keeps a connection to the broker. connection: the present one, or None between two.

    Every round of attempts begins with v5 and goes on at once with v3.1.1 where the broker will not have v5.
    """

    def __init__(self, settings: config.Settings, client_id: str, receive: Receive, directory: Path) -> None:
        """directory: of the bridge. Raises ConfigError."""
        self.connection: Connection | None = None
        self.connects = 0
        self.acked = 0
        self.taken_over = 0
        self._mqtt = settings.mqtt
        self._address = address_of(settings.mqtt.url)
        self._tls = tls_context(settings.mqtt, settings) if self._address.tls else None
        self._client_id = client_id
        self._receive = receive
        filters = [each.filter for each in to_ask(self._mqtt)]
        self._session = Session(directory / FILE_NAME, f"{self._mqtt.url} {client_id}", filters)
        self._protocol = V5
        self._next_try_s = 0.0
        self._delay_s = self._mqtt.reconnect_min_s
        self._announced: Connection | None = None
        self._reading = True
        self._last_end = ""
        self._hang_ups_s: deque[float] = deque(maxlen=HANG_UPS)
        self._contested_s = float("-inf")

    @property
    def is_connected(self) -> bool:
        """Whether the broker has accepted the present connection."""
        return self.connection is not None and self.connection.connected_s > 0 and not self.connection.closed

    @property
    def may_receive(self) -> bool:
        """Whether nothing on our side keeps the broker from sending."""
        return self.is_connected and self._reading and self.pending < self._mqtt.receive_maximum

    @property
    def sessions_lost(self) -> int:
        """How often the broker had lost our session when we came."""
        return self._session.lost

    def reasons(self, now: float) -> list[str]:
        """What is wrong, for people; empty when nothing is."""
        found = []
        connection = self.connection
        if connection is None or not self.is_connected:
            found.append(f"not connected to {self._mqtt.url}: {self._last_end or 'connecting'}")
        else:
            refused = [each for each in to_ask(self._mqtt) if connection.granted.get(each.serves[0], 0) < 0]
            found += [f"the broker refuses the subscription {each.filter!r}" for each in refused]
        if now - self._contested_s < CONTESTED_S:
            found.append(self._contested)
        if not self._reading:
            found.append("holding as much as bridge.pending_bytes allows, nothing is read from the broker")
        return found

    @property
    def _contested(self) -> str:
        if self.taken_over:
            said = "another client took our session over"
        else:
            said = "the broker keeps hanging up on us, as it does when another client has our id"
        return (
            f"{said}; client id {self._client_id!r} must be ours alone: "
            "give each bridge a bridge.id (or mqtt.client_id) of its own"
        )

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
            "session_expiry_s": connection.session_expiry_s if connection else None,
            "sessions_lost": self.sessions_lost,
            "taken_over": self.taken_over,
            "share_group": self._mqtt.share_group or None,
            "subscriptions": subscriptions | connection.granted if connection else subscriptions,
            "connects": self.connects,
            "last_disconnect": self._last_end,
            "pending_messages": connection.pending if connection else 0,
            "receive_maximum": self._mqtt.receive_maximum,
            "reading": self._reading,
        }

    def _connect(self, now: float) -> None:
        connection = Connection(self._mqtt, self._client_id, self._protocol, self._receive, self._session)
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
        if connection.session_expiry_s is not None and connection.session_expiry_s != SESSION_NEVER_EXPIRES:
            logger.warning(
                "the broker drops our session, and what it queues for us, when we are away for so long",
                seconds=connection.session_expiry_s,
            )

    def _lost(self, connection: Connection, now: float) -> None:
        self.connection = None
        self._last_end = connection.closed
        if self._protocol == V5 and connection.wrong_version:
            logger.info("broker will not have MQTT v5, trying v3.1.1", reason=connection.closed)
            self._protocol = V311
            self._next_try_s = now
            return
        self._protocol = V5
        if connection.connected_s:
            self._judge(connection, now)
        self._wait(now)
        if connection.connected_s or logger.limited("lost", 10.0):
            logger.warning("disconnected from the broker", reason=connection.closed)

    def _judge(self, connection: Connection, now: float) -> None:
        """How long to wait after a connection that the broker had accepted, and whether somebody contests our id."""
        if now - connection.connected_s > STABLE_S:
            self._delay_s = self._mqtt.reconnect_min_s
        if connection.taken_over:
            self.taken_over += 1
            self._delay_s = self._mqtt.reconnect_max_s
        if connection.hung_up:
            self._hang_ups_s.append(now)
        often = len(self._hang_ups_s) == HANG_UPS and now - self._hang_ups_s[0] < HANG_UPS_S
        if connection.taken_over or (connection.hung_up and often):
            self._contested_s = now
            logger.error("session contested", reason=self._contested)

    def _wait(self, now: float) -> None:
        """Exponential backoff; the jitter keeps bridges from returning to a restarted broker in step."""
        self._next_try_s = now + self._delay_s * random.uniform(0.5, 1.0)
        self._delay_s = min(self._mqtt.reconnect_max_s, self._delay_s * 2)
