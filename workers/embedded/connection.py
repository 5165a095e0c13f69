"""One client's connection to the embedded broker: its bytes, its frames, its PUBACKs.

A connection takes frames in and hands messages to the broker, and writes out what its session's outbox holds. It is
bound to one session once the broker has let the client in, and ends before another connection may have that session.
Belongs to the loop's thread, and relies on it: code between two awaits is one step that nothing comes between.
"""

import asyncio
import struct
from typing import Any, Final, Protocol

from amqtt.adapters import BufferReader, StreamReaderAdapter, StreamWriterAdapter
from amqtt.errors import AMQTTError, CodecError, MQTTError, NoDataError
from amqtt.mqtt.disconnect import DisconnectPacket
from amqtt.mqtt.packet import (
    CONNECT,
    DISCONNECT,
    PINGREQ,
    PUBACK,
    PUBLISH,
    PUBREL,
    SUBSCRIBE,
    UNSUBSCRIBE,
    MQTTFixedHeader,
)
from amqtt.mqtt.protocol.broker_handler import BrokerProtocolHandler
from amqtt.mqtt.subscribe import SubscribePacket
from amqtt.mqtt.unsubscribe import UnsubscribePacket
from amqtt.session import Session

from common import log
from workers.embedded.outbox import Message, Outbox

MAX_CONNECT_BYTES: Final = 1 << 20  # ids, will and password; more than any honest client sends
READ_BYTES: Final = 1 << 16
KEEPALIVE_GRACE: Final = 1.5  # of its keepalive, a client may be silent: [MQTT-3.1.2-24]
_PINGRESP: Final = b"\xd0\x00"

# Session attributes of ours.
_OUTBOX: Final = "minitrue.outbox"
_UNRELEASED: Final = "minitrue.unreleased"  # packet ids of QoS 2 messages between PUBLISH and PUBREL

logger = log.get("broker")


class Malformed(Exception):
    """Bytes from a client that break MQTT, or that we do not speak. Ends its connection."""


# Whatever amqtt's parsers raise at bytes that are not what they expect, and our own.
MALFORMED: Final = (
    Malformed, AMQTTError, MQTTError, NoDataError, CodecError, struct.error, ValueError, IndexError, TypeError,
)  # fmt: skip


class Routes(Protocol):
    """The broker, as its connections see it."""

    def route(self, topic: bytes, payload: bytes, qos: int, retain: bool) -> None:
        """Put a message into the outbox of every session that subscribes to its topic. Raises Malformed."""


class Reader(StreamReaderAdapter):  # type: ignore[misc]  # amqtt has no type information
    """A connection's incoming bytes."""

    async def read_some(self) -> bytes:
        """What has arrived, at least one byte, at most READ_BYTES; b"" at the end."""
        data: bytes = await self._reader.read(READ_BYTES)
        return data

    async def read_connect(self) -> tuple[bytes, bytes]:
        """The first frame: fixed header and body. Raises Malformed when it is no CONNECT, and as streams do."""
        head = await self._reader.readexactly(2)
        while head[-1] & 0x80 and len(head) < 5:
            head += await self._reader.readexactly(1)
        span = frame_span(head, 0)
        if span is None or head[0] >> 4 != CONNECT or span[1] > MAX_CONNECT_BYTES:
            raise Malformed(f"begins with {head.hex(' ')}, which is no CONNECT")
        return head, await self._reader.readexactly(span[1] - span[0])


class Writer(StreamWriterAdapter):  # type: ignore[misc]
    """A connection's outgoing bytes."""

    async def send(self, data: bytes) -> None:
        """Write, and wait while the client is slower than we are. Raises OSError when the connection is gone."""
        if data:
            self._writer.write(data)
            await self._writer.drain()

    def close_now(self) -> None:
        """Close without waiting for a client that does not read."""
        self.is_closed = True
        if self._writer.transport.get_write_buffer_size():
            self._writer.transport.abort()
        else:
            self._writer.close()


class Connection(BrokerProtocolHandler):  # type: ignore[misc]
    """One client's connection: takes frames in, writes its session's outbox out.

    amqtt would make a task per packet and wait in it for the client's answer; here one task reads and one writes.
    """

    broker: Routes
    session: Session
    reader: Reader
    writer: Writer

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.finished = asyncio.Event()  # set once nothing touches the session for this connection any more
        self._gone: asyncio.Future[DisconnectPacket | None] = asyncio.get_running_loop().create_future()
        self._tasks: list[asyncio.Task[None]] = []
        self._wanted = 2  # bytes of input before the next frame can be whole

    async def start(self) -> None:
        """Begin reading and writing."""
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._write())]

    async def stop(self) -> None:
        """End reading and writing; what was not acknowledged stays in the outbox."""
        self.hang_up()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        outbox_of(self.session).pause()

    def hang_up(self) -> None:
        """Close the connection, as if the client had gone."""
        self._end(None)
        self.writer.close_now()

    async def wait_disconnect(self) -> DisconnectPacket | None:
        """The client's DISCONNECT, or None when the connection ended without one."""
        return await asyncio.shield(self._gone)

    async def handle_connection_closed(self) -> None:
        """amqtt noticed, while sending, that the connection is gone."""
        self._end(None)

    async def mqtt_publish(
        self, topic: str, data: bytes, qos: int | None, retain: bool, ack_timeout: int | None = None
    ) -> None:
        """Owe this session a message: how amqtt hands out what was retained."""
        outbox_of(self.session).offer(Message(topic.encode(), bytes(data), min(qos or 0, 1), retain))

    def _end(self, packet: DisconnectPacket | None) -> None:
        if not self._gone.done():
            self._gone.set_result(packet)

    async def _write(self) -> None:
        outbox = outbox_of(self.session)
        try:
            await self.writer.send(outbox.resume())
            while True:
                while frames := outbox.take():
                    await self.writer.send(frames)
                outbox.wake.clear()
                await outbox.wake.wait()
        except OSError:
            self._end(None)

    async def _read(self) -> None:
        silence_s = self.session.keep_alive * KEEPALIVE_GRACE or None
        unread = bytearray()
        try:
            while not self._gone.done():
                async with asyncio.timeout(silence_s):
                    data = await self.reader.read_some()
                if not data:
                    break
                unread += data
                if len(unread) >= self._wanted:
                    await self._take(unread)
        except MALFORMED as error:
            logger.warning("closing a client that breaks MQTT", client=self.session.client_id, error=str(error))
        except OSError as error:  # TimeoutError among them
            logger.info("client lost", client=self.session.client_id, error=str(error) or type(error).__name__)
        self._end(None)

    async def _take(self, unread: bytearray) -> None:
        """Handle the whole frames at the beginning of `unread`, remove them, answer them in one write."""
        answers: list[bytes] = []
        data = bytes(unread)
        at = 0
        while (span := frame_span(data, at)) is not None and span[1] <= len(data):
            await self._handle(data[at], data[span[0] : span[1]], answers)
            at = span[1]
        del unread[:at]
        self._wanted = span[1] - at if span else len(unread) + 1
        await self.writer.send(b"".join(answers))

    async def _handle(self, first: int, body: bytes, answers: list[bytes]) -> None:
        kind = first >> 4
        if kind == PUBLISH:
            self._take_publish(first, body, answers)
        elif kind == PUBACK:
            outbox_of(self.session).acknowledge(int.from_bytes(body[:2]))
        elif kind == PUBREL:
            self.session.attributes[_UNRELEASED].discard(body[:2])
            answers.append(b"\x70\x02" + body[:2])
        elif kind == PINGREQ:
            answers.append(_PINGRESP)
        elif kind == SUBSCRIBE:
            await self.handle_subscribe(await _parsed(SubscribePacket, first, body))
        elif kind == UNSUBSCRIBE:
            await self.handle_unsubscribe(await _parsed(UnsubscribePacket, first, body))
        elif kind == DISCONNECT:
            self._end(DisconnectPacket())
        else:
            raise Malformed(f"packet type {kind} in a connection that stands")

    def _take_publish(self, first: int, body: bytes, answers: list[bytes]) -> None:
        """Route a message, then acknowledge it. QoS 2 is routed at its PUBLISH, its repetitions are not."""
        qos = first >> 1 & 3
        topic_end = 2 + int.from_bytes(body[:2])
        start = topic_end + 2 if qos else topic_end
        if qos == 3 or len(body) < start:
            raise Malformed(f"PUBLISH of {len(body)} bytes with QoS {qos} and {topic_end - 2} bytes of topic")
        packet_id = body[topic_end:start]
        unreleased: set[bytes] = self.session.attributes[_UNRELEASED]
        if qos < 2 or packet_id not in unreleased:
            self.broker.route(body[2:topic_end], body[start:], qos, bool(first & 1))
        if qos == 1:
            answers.append(b"\x40\x02" + packet_id)
        elif qos == 2:
            unreleased.add(packet_id)
            answers.append(b"\x50\x02" + packet_id)


def prepare(session: Session) -> None:
    """Give a session of amqtt what ours have besides, where it has not got it yet."""
    session.attributes.setdefault(_OUTBOX, Outbox())
    session.attributes.setdefault(_UNRELEASED, set())


def outbox_of(session: Session) -> Outbox:
    """What a session is owed."""
    outbox: Outbox = session.attributes[_OUTBOX]
    return outbox


def frame_span(data: bytes, at: int) -> tuple[int, int] | None:
    """Where the body of the frame at `at` begins and ends (perhaps beyond the data); None when its length is not
    all there yet. Raises Malformed for a length of more than four bytes."""
    length = shift = 0
    for position in range(at + 1, min(at + 5, len(data))):
        length |= (data[position] & 127) << shift
        if data[position] < 128:
            return position + 1, position + 1 + length
        shift += 7
    if len(data) >= at + 5:
        raise Malformed(f"frame length {data[at + 1 : at + 5].hex(' ')} goes on after four bytes")
    return None


async def _parsed(packet: Any, first: int, body: bytes) -> Any:
    """A packet as amqtt's own parser sees it."""
    return await packet.from_stream(BufferReader(body), MQTTFixedHeader(first >> 4, first & 15, len(body)))
