"""MQTT packets in recorded bytes: what a broker and a client said to each other, by code of our own."""

import struct
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

CONNECT: Final = 1
PUBLISH: Final = 3
PUBACK: Final = 4
SUBACK: Final = 9
_V5: Final = 5


class Packet(NamedTuple):
    """kind: its type. flags: the lower half of its first byte. body: behind the fixed header."""

    kind: int
    flags: int
    body: bytes


class Delivery(NamedTuple):
    """A PUBLISH with a packet id."""

    packet_id: int
    is_repeated: bool
    topic: str
    payload: bytes


class Talk:
    """One connection between a bridge and its broker, as far as it was recorded.

    delivered: what the broker sent at QoS 1, in order. acked: packet ids of the PUBACKs, in order.
    """

    def __init__(self, up: bytes, down: bytes) -> None:
        """up: bytes of the client; down: of the broker. Both from the connection's beginning."""
        said = list(packets(up))
        version = version_of(said[:1])
        answered = list(packets(down))
        self.acked = [struct.unpack_from(">H", each.body)[0] for each in said if each.kind == PUBACK]
        self.delivered = [delivery(each, version) for each in answered if each.kind == PUBLISH and each.flags & 6]
        self.is_subscribed = any(each.kind == SUBACK for each in answered)

    def unexplained(self) -> list[int]:
        """PUBACKs that are not those of the messages delivered on this connection, in order of receipt."""
        wanted = [each.packet_id for each in self.delivered]
        return [] if self.acked == wanted[: len(self.acked)] else self.acked

    def acked_payloads(self) -> list[bytes]:
        """Payloads of the messages that were acknowledged on this connection."""
        return [each.payload for each in self.delivered[: len(self.acked)]]


def version_of(said: Sequence[Packet]) -> int:
    """The version of MQTT that a client's first packet asks for."""
    return said[0].body[6] if said and said[0].kind == CONNECT else _V5


def packets(data: bytes) -> Iterator[Packet]:
    """The whole packets from the beginning."""
    at = 0
    while (header := _length_at(data, at + 1)) is not None:
        length, start = header
        if start + length > len(data):
            return
        yield Packet(data[at] >> 4, data[at] & 15, bytes(data[start : start + length]))
        at = start + length


def _length_at(data: bytes, at: int) -> tuple[int, int] | None:
    """A variable byte integer, and where it ends; None where it is not whole."""
    value = 0
    for number in range(4):
        if at + number >= len(data):
            return None
        value |= (data[at + number] & 127) << 7 * number
        if data[at + number] < 128:
            return value, at + number + 1
    raise ValueError(f"no length of an MQTT packet at {at}: {data[at : at + 4].hex()}")


def delivery(packet: Packet, version: int) -> Delivery:
    """What a PUBLISH at QoS 1 brings. version: of MQTT."""
    body = packet.body
    (topic_bytes,) = struct.unpack_from(">H", body)
    topic = body[2 : 2 + topic_bytes].decode()
    (packet_id,) = struct.unpack_from(">H", body, 2 + topic_bytes)
    rest = 4 + topic_bytes
    if version == _V5:
        length, start = _length_at(body, rest) or (0, rest)
        rest = start + length
    return Delivery(packet_id, bool(packet.flags & 8), topic, body[rest:])
