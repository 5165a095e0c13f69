"""The embedded broker: amqtt, made to keep what it takes. For machines without mosquitto.

amqtt listens, reads CONNECT and SUBSCRIBE, matches filters, keeps retained messages and wills. What it does with
messages is replaced here, because every one of these lost acknowledged messages (measured; docs/broker.md has the
interleavings): it acknowledges a message before passing it on, keeps nothing for anonymous sessions, gives up on a
message after five seconds without PUBACK or when the connection dies, and lets strangers end a session before their
password is looked at. So: a message is in the outbox of every session that subscribes to it before its sender
gets the PUBACK, and stays there until that session's own PUBACK.

Speaks MQTT v3.1.1; refuses v5 with return code 1, upon which clients fall back. QoS 0 and 1 go out, 2 is taken too.
Everything is in memory; on a clean stop the persistent sessions are written to <data>/broker/sessions.msgpack and
read at the next start. Belongs to the thread that runs the loop, and relies on it: code between two awaits is one
step that nothing comes between.
"""

import asyncio
import hmac
import logging
from pathlib import Path
from typing import Any, Final

from amqtt.adapters import BufferReader
from amqtt.broker import Broker, RetainedApplicationMessage
from amqtt.errors import BrokerError
from amqtt.mqtt.connack import CONNECTION_ACCEPTED, NOT_AUTHORIZED, UNACCEPTABLE_PROTOCOL_VERSION, ConnackPacket
from amqtt.session import Session

from common import config, files, log, process
from common.errors import ConfigError
from workers.embedded import sessions
from workers.embedded.connection import MALFORMED, READ_BYTES, Connection, Malformed, Reader, Writer, outbox_of, prepare
from workers.embedded.outbox import Message, Outbox
from workers.embedded.sessions import VERSION, Saved, SavedSession

SESSIONS_FILE: Final = "sessions.msgpack"
CONNECT_TIMEOUT_S: Final = 10.0  # from TCP to a complete CONNECT
MAX_ROUTES: Final = 100_000  # topics whose subscribers are remembered

REFUSED: Final = 0x80  # SUBACK
_V311: Final = b"\x00\x04MQTT\x04"  # how the body of a CONNECT of MQTT v3.1.1 begins

logger = log.get("broker")


def serve(mqtt: config.Mqtt, host: str, port: int, directory: Path, stop: process.Stop) -> None:
    """Run the embedded broker until stopped.

    Raises ConfigError when it cannot listen, StorageError when sessions cannot be read or kept in `directory`.
    """
    for library in ("amqtt", "transitions"):
        logging.getLogger(library).setLevel(logging.ERROR)  # what they warn of is told here, once
    asyncio.run(_serve(mqtt, host, port, directory / SESSIONS_FILE, stop))


async def _serve(mqtt: config.Mqtt, host: str, port: int, path: Path, stop: process.Stop) -> None:
    broker = EmbeddedBroker(mqtt, host, port, sessions.load(path))
    try:
        await broker.start()
    except BrokerError as error:
        raise ConfigError(f"mqtt.url: the embedded broker cannot listen at {host}:{port}: {error}") from error
    files.remove_files([path])  # from here on it is out of date
    logger.info("embedded broker listens", host=host, port=port)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_reader(stop.fileno(), stopped.set)
    await stopped.wait()
    asyncio.get_running_loop().remove_reader(stop.fileno())
    sessions.save(path, await broker.finish())


class EmbeddedBroker(Broker):  # type: ignore[misc]
    """The sessions, who subscribes to what, and the way from a message to its outboxes.

    Invariant: a client id has at most one connection that is not finished.
    """

    _sessions: dict[str, tuple[Session, Connection]]
    _subscriptions: dict[str, list[tuple[Session, int]]]
    _retained_messages: dict[str, Any]

    def __init__(self, mqtt: config.Mqtt, host: str, port: int, saved: Saved) -> None:
        super().__init__({"listeners": {"default": {"type": "tcp", "bind": str(port)}}, "plugins": {}})
        self._mqtt = mqtt
        self._address = (host, port)
        self._saved = saved
        self._routes: dict[bytes, list[tuple[Outbox, int]]] = {}
        self._closing = False

    def route(self, topic: bytes, payload: bytes, qos: int, retain: bool) -> None:
        """Put a message into the outbox of every session that subscribes to its topic. Raises Malformed."""
        route = self._routes.get(topic)
        if route is None:
            route = self._find_route(topic)
        for outbox, granted in route:
            outbox.offer(Message(topic, payload, min(qos, granted), False))
        if retain:
            self._retain(topic.decode(), payload, qos)

    async def finish(self) -> Saved:
        """Stop: no new connections, the open ones end, and what the persistent sessions are owed is returned."""
        self._closing = True
        for server in self._servers.values():
            server.instance.close()
        connections = [connection for _, connection in self._sessions.values()]
        for connection in connections:
            if not connection.finished.is_set():
                connection.hang_up()
        await asyncio.gather(*(connection.finished.wait() for connection in connections))
        saved = self._snapshot()
        self._sessions.clear()
        await self.shutdown()
        return saved

    async def add_subscription(self, subscription: tuple[str, int], session: Session) -> int:
        """Subscribe a session, at QoS 1 at most. Shared subscriptions, which amqtt would never match, are refused."""
        topic_filter, qos = subscription
        if topic_filter.startswith("$share/"):
            return REFUSED
        granted: int = await super().add_subscription((topic_filter, min(qos, 1)), session)
        if granted != REFUSED:
            subscribers = self._subscriptions[topic_filter]
            subscribers[:] = [(each, granted if each is session else old) for each, old in subscribers]
        self._routes.clear()
        return granted

    def _del_subscription(self, a_filter: str, session: Session) -> int:
        self._routes.clear()
        deleted: int = super()._del_subscription(a_filter, session)
        return deleted

    async def _create_server_instance(self, *_: Any) -> asyncio.Server:
        """Sessions first, then the port: a client never finds its session missing. (amqtt's start empties both.)"""
        self._restore(self._saved)
        return await asyncio.start_server(self._connected, *self._address, limit=READ_BYTES)

    async def _session_monitor(self) -> None:
        """amqtt would end sessions here. Ours last until their client asks for a clean one."""
        await asyncio.Event().wait()

    async def _broadcast_message(
        self, session: Session | None, topic: str | None, data: bytes | None, force_qos: int | None = None
    ) -> None:
        """How amqtt sends a will."""
        self.route((topic or "").encode(), bytes(data or b""), force_qos or 0, False)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A connection from its first byte to its last."""
        stream_in, stream_out = Reader(reader), Writer(writer)
        try:
            connection = await self._introduce(stream_in, stream_out)
            await self._attend(connection)
        except (EOFError, OSError) as error:
            logger.debug("a client left before it was in", error=str(error) or type(error).__name__)
        except MALFORMED as error:
            logger.warning("client refused", peer=str(stream_out.get_peer_info()), error=str(error))
        finally:
            stream_out.close_now()

    async def _introduce(self, reader: Reader, writer: Writer) -> Connection:
        """CONNECT, up to the session that it resumes or begins. Touches no session before the password is right."""
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            head, body = await reader.read_connect()
        if not body.startswith(_V311):
            await writer.send(ConnackPacket.build(0, UNACCEPTABLE_PROTOCOL_VERSION).to_bytes())
            raise Malformed("the client speaks another version than MQTT v3.1.1")
        connect = BufferReader(head + body)
        connection, session = await Connection.init_from_connect(connect, writer, self.plugins_manager)
        if not self._knows(session):
            await writer.send(ConnackPacket.build(0, NOT_AUTHORIZED).to_bytes())
            raise Malformed(f"client {session.client_id!r}: wrong user or password")
        await self._end_connection_of(session.client_id)
        session = self._resumed(session)
        connection.broker = self
        connection.attach(session, reader, writer)
        self._register(session, connection)
        return connection  # type: ignore[no-any-return]

    async def _attend(self, connection: Connection) -> None:
        """CONNACK, and everything after it."""
        session = connection.session
        try:
            session.transitions.connect()
            await connection.writer.send(ConnackPacket.build(session.parent, CONNECTION_ACCEPTED).to_bytes())
            await connection.start()
            await self._client_message_loop(session, connection)
        finally:
            await connection.stop()
            session.transitions.disconnect()
            if session.clean_session:
                self._forget(session)
            connection.finished.set()

    def _knows(self, session: Session) -> bool:
        wanted = self._mqtt.username, self._mqtt.password
        got = session.username or "", session.password or ""
        same = [hmac.compare_digest(want.encode(), have.encode()) for want, have in zip(wanted, got, strict=True)]
        return not self._mqtt.username or all(same)

    async def _end_connection_of(self, client_id: str) -> None:
        """A client that comes again takes over: its older connection ends first, and completely."""
        if self._closing:
            raise Malformed("the broker is stopping")
        while client_id in self._sessions:
            older = self._sessions[client_id][1]
            if older.finished.is_set():
                return
            older.hang_up()
            await older.finished.wait()

    def _resumed(self, session: Session) -> Session:
        """The session that goes on, with what the new CONNECT says of it; a new one where none may."""
        known = self._sessions.get(session.client_id, (None, None))[0]
        if known is not None and not (known.clean_session or session.clean_session):
            for name in ("will_flag", "will_retain", "will_qos", "will_topic", "will_message", "keep_alive"):
                setattr(known, name, getattr(session, name))
            known.parent = 1
            return known
        if known is not None:
            self._forget(known)
        session.parent = 0
        return session

    def _register(self, session: Session, connection: Connection) -> None:
        prepare(session)
        self._sessions[session.client_id] = (session, connection)

    def _no_connection(self) -> Connection:
        connection = Connection(self.plugins_manager)
        connection.finished.set()
        return connection

    def _forget(self, session: Session) -> None:
        del self._sessions[session.client_id]
        for topic_filter in list(self._subscriptions):
            self._del_subscription(topic_filter, session)
            if not self._subscriptions[topic_filter]:
                del self._subscriptions[topic_filter]

    def _find_route(self, topic: bytes) -> list[tuple[Outbox, int]]:
        """Who gets a topic, each once, at the best QoS of its filters that match; remembered."""
        name = topic.decode()
        if not name or name.startswith("$") or any(char in name for char in "+#\0"):
            raise Malformed(f"PUBLISH to topic {name[:100]!r}")
        granted: dict[str, tuple[Outbox, int]] = {}
        for topic_filter, subscribers in self._subscriptions.items():
            if self._matches(name, topic_filter):
                for session, qos in subscribers:
                    best = granted.get(session.client_id, (None, 0))[1]
                    granted[session.client_id] = (outbox_of(session), max(qos, best))
        if len(self._routes) >= MAX_ROUTES:
            self._routes.clear()
        self._routes[topic] = list(granted.values())
        return self._routes[topic]

    def _retain(self, topic: str, payload: bytes, qos: int) -> None:
        if payload:
            self._retained_messages[topic] = RetainedApplicationMessage(None, topic, payload, qos)
        else:
            self._retained_messages.pop(topic, None)

    def _restore(self, saved: Saved) -> None:
        """Begin with the sessions of an earlier run, none of them connected."""
        for each in saved.sessions:
            session = Session()
            session.client_id, session.clean_session = each.client_id, False
            self._register(session, self._no_connection())
            outbox_of(session).waiting.extend(each.messages)
            for topic_filter, qos in each.subscriptions:
                self._subscriptions.setdefault(topic_filter, []).append((session, qos))
        for topic, payload, qos in saved.retained:
            self._retain(topic, payload, qos)

    def _snapshot(self) -> Saved:
        kept = [session for session, _ in self._sessions.values() if not session.clean_session]
        retained = [(topic, bytes(each.data), each.qos or 0) for topic, each in self._retained_messages.items()]
        return Saved(VERSION, [self._saved_session(session) for session in kept], retained)

    def _saved_session(self, session: Session) -> SavedSession:
        filters = [
            (topic_filter, qos)
            for topic_filter, subscribers in self._subscriptions.items()
            for subscriber, qos in subscribers
            if subscriber is session
        ]
        return SavedSession(session.client_id, filters, outbox_of(session).owed())
