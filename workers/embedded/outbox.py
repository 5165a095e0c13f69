"""What the embedded broker owes one session: messages that wait, and messages in flight until their PUBACK.

amqtt keeps neither safely (docs/broker.md tells how each is lost), so the embedded broker keeps them here. An Outbox
belongs to the session, not to a connection: the connections of one client take turns at it. Pure but for the
asyncio event that wakes the connection's writer; belongs to the loop's thread.
"""

import asyncio
import struct
from collections import deque
from typing import Final, NamedTuple

# Unacknowledged messages of one connection: as many as there are packet ids.
MAX_IN_FLIGHT: Final = 65535
# QoS 0 promises nothing, so what a slow client does not fetch is not kept without end.
MAX_WAITING_FOR_QOS_0: Final = 100_000
# Bytes of frames built for one write; above it the client's speed is waited for.
WRITE_BYTES: Final = 1 << 18

_PUBLISH: Final = 0x30
_DUP: Final = 0x08
_RETAIN: Final = 0x01


class Message(NamedTuple):
    """A message on its way out. qos: 0 or 1, as the subscription got it."""

    topic: bytes
    payload: bytes
    qos: int
    retain: bool


class Outbox:
    """Messages owed to one session, in order of arrival.

    Invariant: a QoS 1 message is in `waiting` or in `in_flight` from `offer` to `acknowledge`.
    """

    def __init__(self) -> None:
        self.waiting: deque[Message] = deque()
        self.in_flight: dict[int, Message] = {}  # packet id -> message, in order of sending
        self.online = False
        self.wake = asyncio.Event()
        self._last_id = 0

    def offer(self, message: Message) -> None:
        """Take a message into the session's care. QoS 0 is dropped for who is away or far behind."""
        if message.qos or (self.online and len(self.waiting) < MAX_WAITING_FOR_QOS_0):
            self.waiting.append(message)
            self.wake.set()

    def acknowledge(self, packet_id: int) -> None:
        """The client has the message. An id that is not in flight changes nothing."""
        self.in_flight.pop(packet_id, None)
        if self.waiting:
            self.wake.set()

    def resume(self) -> bytes:
        """A connection begins: the frames in flight once more, marked as sent before, under their old ids."""
        self.online = True
        self.wake.set()
        return b"".join(frame(message, packet_id, duplicate=True) for packet_id, message in self.in_flight.items())

    def pause(self) -> None:
        """The connection is gone: what was in flight stays, QoS 0 that waited goes."""
        self.online = False
        self.waiting = deque(message for message in self.waiting if message.qos)

    def take(self) -> bytes:
        """Frames to write now, b"" when there is nothing to send or no packet id to send it under."""
        frames: list[bytes] = []
        size = 0
        while self.waiting and size < WRITE_BYTES:
            if self.waiting[0].qos and len(self.in_flight) >= MAX_IN_FLIGHT:
                break
            message = self.waiting.popleft()
            packet_id = self._begin(message) if message.qos else 0
            frames.append(frame(message, packet_id))
            size += len(frames[-1])
        return b"".join(frames)

    def owed(self) -> list[Message]:
        """Everything not acknowledged, oldest first."""
        return [*self.in_flight.values(), *(message for message in self.waiting if message.qos)]

    def _begin(self, message: Message) -> int:
        packet_id = self._last_id % MAX_IN_FLIGHT + 1
        while packet_id in self.in_flight:
            packet_id = packet_id % MAX_IN_FLIGHT + 1
        self._last_id = packet_id
        self.in_flight[packet_id] = message
        return packet_id


def frame(message: Message, packet_id: int, duplicate: bool = False) -> bytes:
    """The PUBLISH frame of MQTT v3.1.1."""
    first = _PUBLISH | message.qos << 1 | (_DUP if duplicate else 0) | (_RETAIN if message.retain else 0)
    header = struct.pack(">H", len(message.topic)) + message.topic
    if message.qos:
        header += struct.pack(">H", packet_id)
    return bytes([first]) + remaining_length(len(header) + len(message.payload)) + header + message.payload


def remaining_length(length: int) -> bytes:
    """MQTT's variable byte integer, 0 to 268,435,455."""
    if length < 128:
        return bytes([length])
    encoded = bytearray()
    while length > 127:
        encoded.append(length & 127 | 128)
        length >>= 7
    encoded.append(length)
    return bytes(encoded)
