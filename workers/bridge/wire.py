"""MQTT frames: paho, except for how frames are read and what happens to PUBLISH.

paho does the handshake, TLS, keepalive and every packet but PUBLISH, which it would spend most of a bridge's time
on. `Client.loop_read` takes whole frames out of the bytes of one read, hands PUBLISH straight on and the rest to
paho. It leans on a few of paho's private methods; tests compare it with paho's own parsing frame by frame.

Belongs to the thread that drives the client.
"""

import io
import ssl
import time
from collections.abc import Callable
from typing import Final

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.exception import MalformedPacket

from common import log

READ_BYTES: Final = 1 << 16  # of one read: some 500 small messages, a few ms of work between two looks at the acks
FULL_READ_BYTES: Final = 1 << 18  # of one read after a full one: whoever lags behind has more use for large turns,
# a fifth more points a second where messages have a hundred, than for looking at the acks soon
LARGE_BYTES: Final = 1 << 20  # frames from here on are not gathered whole: their payload alone is, once
HEADER_BYTES: Final = 1 << 17  # of a large frame, to have its topic and, but for absurd ones, its properties
LARGE_READ_BYTES: Final = 1 << 20  # of one read within a large payload
QOS_BITS: Final = 0x06  # of a frame's first byte

V5: Final = MQTTProtocolVersion.MQTTv5
V311: Final = MQTTProtocolVersion.MQTTv311

_PUBLISH: Final = 0x30
_OK: Final = MQTTErrorCode.MQTT_ERR_SUCCESS

logger = log.get("bridge.mqtt")

PublishFrame = Callable[[int, bytes, bytes, bytes], None]


class Malformed(Exception):
    """Bytes that are no MQTT frame. Ends the connection."""


class _Large:
    """A PUBLISH whose payload is still coming in, up to 256 MB: gathered in the one buffer that becomes its bytes."""

    __slots__ = ("_buffer", "first", "left", "packet_id", "topic")

    def __init__(self, first: int, topic: bytes, packet_id: bytes, begin: bytes, left: int) -> None:
        """begin: of the payload. left: bytes of it to come."""
        self.first = first
        self.topic = topic
        self.packet_id = packet_id
        self.left = left
        self._buffer = io.BytesIO()
        self._buffer.write(begin)

    def add(self, data: bytes) -> None:
        self._buffer.write(data)
        self.left -= len(data)

    def payload(self) -> bytes:
        """The whole; CPython hands out the buffer itself, no copy."""
        return self._buffer.getvalue()


class Client(paho.Client):
    """A paho client that hands on PUBLISH frames of every QoS and acknowledges none of them itself.

    publish_frame: called for each with (first byte, topic, packet id, payload); packet id is empty at QoS 0.
    """

    def __init__(self, client_id: str, protocol: MQTTProtocolVersion, publish_frame: PublishFrame) -> None:
        super().__init__(
            CallbackAPIVersion.VERSION2,
            client_id,
            clean_session=None if protocol == V5 else False,
            protocol=protocol,
            reconnect_on_failure=False,
        )
        self._publish_frame = publish_frame
        self._has_properties = protocol == V5
        self._unread = bytearray()  # the beginning of a frame
        self._wanted = 2  # bytes that this frame needs at least
        self._read_bytes = READ_BYTES  # of the next read
        self._large: _Large | None = None  # then there is nothing in _unread

    def loop_read(self, max_packets: int = 1) -> MQTTErrorCode:
        """Read once and handle every whole frame, however many (paho does not heed max_packets either)."""
        if self._sock is None:
            return MQTTErrorCode.MQTT_ERR_NO_CONN
        try:
            data = self._sock_recv(LARGE_READ_BYTES if self._large else self._read_bytes)
        except BlockingIOError:
            return _OK
        except OSError as error:
            logger.debug("read failed", detail=str(error))
            data = b""
        self._read_bytes = FULL_READ_BYTES if len(data) >= READ_BYTES else READ_BYTES
        self._last_bytes_received = time.monotonic()
        if self._ping_t:
            self._ping_t = self._last_bytes_received  # any traffic is a sign of life
        rc = self._take(data) if data else MQTTErrorCode.MQTT_ERR_CONN_LOST
        return self._loop_rc_handle(rc) if rc else rc

    @property
    def has_unread(self) -> bool:
        """Whether TLS holds decrypted bytes that no poll would announce."""
        return isinstance(self._sock, ssl.SSLSocket) and self._sock.pending() > 0

    def ping_unread(self) -> None:
        """Tell the broker that we live, without expecting an answer: nothing is being read."""
        self._send_simple_command(paho.PINGREQ)

    def forget_silence(self) -> None:
        """Begin to wait for signs of life anew, after a time without reading."""
        self._ping_t = 0.0
        self._last_bytes_received = time.monotonic()

    def send_acks(self, acks: bytes) -> None:
        """Queue acknowledgement packets, already packed, as one."""
        self._packet_queue(paho.PUBACK, acks, 0, 1)

    def cut(self) -> None:
        """Close the socket without a word."""
        self._sock_close()

    def _take(self, data: bytes) -> MQTTErrorCode:
        """Handle the whole frames in what was read so far."""
        if self._large is not None:
            data = self._fill(self._large, data)
            if not data:
                return _OK
        if self._unread or len(data) < self._wanted:
            self._unread += data
            if len(self._unread) < self._wanted:
                return _OK
            data = bytes(self._unread)
        try:
            at, rc = self._frames(data)
        except (Malformed, MalformedPacket) as error:
            logger.error("broker sent a malformed packet, disconnecting", detail=str(error))
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        self._unread = bytearray(data[at:])
        return rc

    def _frames(self, data: bytes) -> tuple[int, MQTTErrorCode]:
        """Handle frames until one is not whole; where that begins, and paho's code when there is to be no next."""
        at, end = 0, len(data)
        publish, has_properties = self._publish_frame, self._has_properties
        self._wanted = 2
        while end - at >= 2:
            length, body = data[at + 1], at + 2
            if length & 0x80:
                length, body = _long_length(data, at + 1)
            frame_end = body + length
            if frame_end > end:
                if length >= LARGE_BYTES and data[at] & 0xF0 == _PUBLISH:
                    at = self._begin_large(data, at, body, frame_end)
                else:
                    self._wanted = frame_end - at
                break
            first = data[at]
            if first & 0xF0 == _PUBLISH:
                publish(first, *split_publish(first, data, body, frame_end, has_properties))
            else:
                rc = self._other_frame(first, data[body:frame_end])
                if rc or self._sock is None:
                    return frame_end, rc
            at = frame_end
        return at, _OK

    def _begin_large(self, data: bytes, at: int, body: int, frame_end: int) -> int:
        """Begin a large PUBLISH at `at`, if its header is there; how far the data is used up."""
        first, end = data[at], len(data)
        try:
            topic, packet_id, begin = split_publish(first, data, body, end, self._has_properties)
        except Malformed:
            self._wanted = min(HEADER_BYTES, frame_end - at) if end - at < HEADER_BYTES else frame_end - at
            return at
        self._large = _Large(first, topic, packet_id, begin, frame_end - end)
        return end

    def _fill(self, large: _Large, data: bytes) -> bytes:
        """Add to a large payload; what of the data lies behind it."""
        rest = data[large.left :]
        large.add(data[: large.left] if rest else data)
        if not large.left:
            self._large = None
            self._publish_frame(large.first, large.topic, large.packet_id, large.payload())
        return rest

    def _other_frame(self, first: int, body: bytes) -> MQTTErrorCode:
        self._in_packet = {
            "command": first,
            "have_remaining": 1,
            "remaining_count": [],
            "remaining_mult": 1,
            "remaining_length": len(body),
            "packet": bytearray(body),
            "to_process": 0,
            "pos": 0,
        }
        return self._packet_handle()


def split_publish(first: int, data: bytes, at: int, end: int, has_properties: bool) -> tuple[bytes, bytes, bytes]:
    """Topic, packet id and payload of the PUBLISH whose variable header begins at `at`. Raises Malformed."""
    try:
        after_topic = payload_at = at + 2 + (data[at] << 8 | data[at + 1])
        packet_id = b""
        if first & QOS_BITS:
            payload_at += 2
            packet_id = data[after_topic:payload_at]
        if has_properties:
            length, payload_at = data[payload_at], payload_at + 1
            if length & 0x80:
                length, payload_at = _long_length(data, payload_at - 1)
            payload_at += length
    except IndexError:
        payload_at = len(data) + 1
    if payload_at > end or first & QOS_BITS == QOS_BITS:
        raise Malformed(f"PUBLISH of {end - at} bytes, first byte {first:#04x}, contradicts itself")
    return data[at + 2 : after_topic], packet_id, data[payload_at:end]


def _long_length(data: bytes, at: int) -> tuple[int, int]:
    """The MQTT variable byte integer at `at`: its value, and where it ends.

    Where the data ends within it, its value is what makes the frame want one byte more. Raises Malformed.
    """
    value = 0
    for shift in (0, 7, 14, 21):
        if at == len(data):
            return 1, at
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise Malformed(f"variable byte integer longer than 4 bytes before offset {at}")
