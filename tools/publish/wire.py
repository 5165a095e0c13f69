"""MQTT as a publisher needs it, v5 and v3.1.1: frames out, answers in.

A client of its own, because a publisher must outrun what it feeds: of one core, paho 2.2 took 106 us for a QoS 1
message of one point with 20 in flight and 5,800 us with 65,535 in flight (it walks through them at each PUBACK); this
takes 11 us, the simulation included. Measured side by side on a busy machine, so the ratios count. OASIS MQTT v5.0
and v3.1.1; section numbers are those of v5.
Pure: no socket, no clock.
"""

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from tools.publish.message import PublisherError

V311: Final = 4
V5: Final = 5
MAX_FRAME_BYTES: Final = 268_435_460
MAX_HEADER_BYTES: Final = 5
MAX_PACKET_IDS: Final = 65535

CONNACK: Final = 0x20
PUBACK: Final = 0x40
PINGRESP: Final = 0xD0
SERVER_DISCONNECT: Final = 0xE0

PINGREQ: Final = b"\xc0\x00"
DISCONNECT: Final = b"\xe0\x00"

REFUSED: Final = 0x80  # v5 reason codes from here on are failures (2.4)
WRONG_VERSION: Final = (0x01, 0x84)  # in v3.1.1's words and in v5's
TRY_LATER: Final = (0x03, 0x88, 0x89, 0x8B, 0x97, 0x9F)  # unavailable, busy, shutting down, quota, rate
REASONS: Final = {
    0x02: "client id refused", 0x03: "server unavailable", 0x04: "bad user or password", 0x05: "not authorized",
    0x80: "unspecified error", 0x81: "malformed packet", 0x82: "protocol error", 0x83: "refused by its rules",
    0x85: "client id refused", 0x86: "bad user or password", 0x87: "not authorized", 0x88: "server unavailable",
    0x89: "server busy", 0x8A: "banned", 0x8B: "server is shutting down", 0x8D: "keepalive timeout",
    0x8E: "another client took the session", 0x90: "topic name refused", 0x93: "receive maximum exceeded",
    0x95: "packet too large", 0x97: "quota exceeded", 0x98: "administrative action", 0x99: "payload format refused",
    0x9B: "QoS not supported", 0x9F: "connection rate exceeded",
}  # fmt: skip

# Bytes of each CONNACK property (3.2.2.3); strings carry their own length, user properties are two of them.
_SIZES: Final = {0x11: 4, 0x13: 2, 0x21: 2, 0x22: 2, 0x24: 1, 0x25: 1, 0x27: 4, 0x28: 1, 0x29: 1, 0x2A: 1}
_STRINGS: Final = {0x12: 1, 0x15: 1, 0x16: 1, 0x1A: 1, 0x1C: 1, 0x1F: 1, 0x26: 2}
_SERVER_KEEPALIVE: Final = 0x13
_RECEIVE_MAXIMUM: Final = 0x21
_MAXIMUM_QOS: Final = 0x24
_MAXIMUM_PACKET: Final = 0x27


class Malformed(Exception):
    """An answer that is not MQTT. Ends the connection."""


class Limits(NamedTuple):
    """What the broker grants. keepalive_s: None for what was asked."""

    in_flight: int = MAX_PACKET_IDS
    qos: int = 2
    frame_bytes: int = MAX_FRAME_BYTES
    keepalive_s: int | None = None


def connect(version: int, client_id: str, keepalive_s: int, username: str, password: str) -> bytes:
    """CONNECT for a clean session: what is unacknowledged is the publisher's to send again."""
    flags = 0x02 | (0x80 if username else 0) | (0x40 if username and password else 0)
    body = _string("MQTT") + struct.pack(">BBH", version, flags, keepalive_s)
    body += b"\x00" if version == V5 else b""
    body += _string(client_id)
    body += _string(username) if username else b""
    body += _string(password) if username and password else b""
    return bytes([0x10]) + remaining_length(len(body)) + body


def remaining_length(length: int) -> bytes:
    """MQTT's variable byte integer (1.5.5)."""
    encoded = bytearray()
    while length > 127:
        encoded.append(length & 127 | 128)
        length >>= 7
    encoded.append(length)
    return bytes(encoded)


def frames(buffer: bytes, at: int = 0) -> Iterator[tuple[int, bytes, int]]:
    """The whole frames from `at` on: type (high half of the first byte), body, where the next one begins."""
    while (span := _span(buffer, at)) is not None:
        start, end = span
        yield buffer[at] & 0xF0, buffer[start:end], end
        at = end


def _span(buffer: bytes, at: int) -> tuple[int, int] | None:
    length = 0
    for place, position in enumerate(range(at + 1, min(at + 5, len(buffer)))):
        length |= (buffer[position] & 127) << 7 * place
        if buffer[position] < 128:
            end = position + 1 + length
            return (position + 1, end) if end <= len(buffer) else None
    if len(buffer) >= at + 5:
        raise Malformed(f"frame length {buffer[at + 1 : at + 5].hex(' ')}")
    return None


def connack(version: int, body: bytes) -> tuple[int, Limits]:
    """Reason code and limits of a CONNACK. Raises Malformed."""
    if len(body) < 2:
        raise Malformed(f"CONNACK of {len(body)} bytes")
    if version != V5 or len(body) == 2:  # a broker that knows no v5 refuses in v3.1.1's words
        return body[1], Limits()
    try:
        found = dict(_properties(body[2:]))
    except (LookupError, struct.error) as error:
        raise Malformed(f"CONNACK properties {body[2:40].hex(' ')}") from error
    return body[1], Limits(
        found.get(_RECEIVE_MAXIMUM, MAX_PACKET_IDS),
        found.get(_MAXIMUM_QOS, 2),
        found.get(_MAXIMUM_PACKET, MAX_FRAME_BYTES),
        found.get(_SERVER_KEEPALIVE),
    )


def reason_text(code: int) -> str:
    """A reason code in words."""
    return f"{REASONS[code]} (0x{code:02x})" if code in REASONS else f"reason 0x{code:02x}"


def _properties(data: bytes) -> Iterator[tuple[int, int]]:
    """The number properties of a property list (2.2.2): identifier and value."""
    start, end = _property_span(data)
    while start < end:
        kind, start = data[start], start + 1
        if kind in _SIZES:
            yield kind, int.from_bytes(data[start : start + _SIZES[kind]])
            start += _SIZES[kind]
        else:
            for _ in range(_STRINGS[kind]):
                start += 2 + struct.unpack_from(">H", data, start)[0]
    if start != end:
        raise IndexError("a property goes beyond the list")


def _property_span(data: bytes) -> tuple[int, int]:
    span = _span(b"\x00" + data, 0)
    if span is None:
        raise IndexError("property list longer than its packet")
    return span[0] - 1, span[1] - 1


def _string(text: str) -> bytes:
    data = text.encode()
    if len(data) > 65535:
        raise PublisherError(f"text of {len(data)} bytes in CONNECT; MQTT has 65535")
    return struct.pack(">H", len(data)) + data
