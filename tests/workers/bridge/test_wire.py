"""Frames: the same messages as paho's own parsing finds, however the bytes arrive."""

import itertools
import struct
from typing import Any

import paho.mqtt.client as paho
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.workers.bridge.harness import variable
from workers.bridge.wire import V5, V311, Client, Malformed, split_publish

Frame = tuple[int, bytes, bytes, bytes]


class Pieces:
    """A socket that has its bytes ready piece by piece, then nothing, then an end."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = list(pieces)
        self.sent = b""
        self.closed = False

    def recv(self, size: int) -> bytes:
        while self._pieces and not self._pieces[0]:
            self._pieces.pop(0)
        if not self._pieces:
            raise BlockingIOError
        taken, self._pieces[0] = self._pieces[0][:size], self._pieces[0][size:]
        return taken

    @property
    def is_read(self) -> bool:
        return not any(self._pieces)

    def send(self, data: bytes) -> int:
        self.sent += data
        return len(data)

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        self.closed = True


def publish(
    protocol: MQTTProtocolVersion, flags: int, topic: bytes, mid: int, properties: bytes, payload: bytes
) -> bytes:
    body = struct.pack("!H", len(topic)) + topic
    if flags & 0x06:
        body += struct.pack("!H", mid)
    if protocol == V5:
        body += properties
    body += payload
    return bytes([0x30 | flags]) + variable(len(body)) + body


def read_all(client: paho.Client, pieces: list[bytes]) -> Pieces:
    wire = Pieces(pieces)
    client._sock = wire
    client._state = paho._ConnectionState.MQTT_CS_CONNECTED
    rc = 0
    while not rc and not wire.is_read:
        rc = client.loop_read()
    client._sock = None
    return wire


def ours(protocol: MQTTProtocolVersion, pieces: list[bytes]) -> tuple[list[Frame], Pieces]:
    found: list[Frame] = []
    client = Client("id", protocol, lambda *frame: found.append(frame))
    return found, read_all(client, pieces)


def theirs(protocol: MQTTProtocolVersion, data: bytes) -> list[Frame]:
    """paho's own parsing, seen before it answers: PUBLISH handling as it is, delivery replaced."""
    found: list[Frame] = []
    clean = None if protocol == V5 else False
    client = paho.Client(CallbackAPIVersion.VERSION2, "id", clean, protocol=protocol, manual_ack=True)

    def on_message(_client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        packet_id = struct.pack("!H", message.mid) if message.qos else b""
        flags = 0x30 | message.dup << 3 | message.qos << 1 | message.retain
        found.append((flags, message._topic, packet_id, bytes(message.payload)))

    client.on_message = on_message
    read_all(client, [data])
    return found


def property_bytes(user: list[tuple[str, str]], expiry: int | None) -> bytes:
    properties = Properties(PacketTypes.PUBLISH)
    for pair in user:
        properties.UserProperty = pair
    if expiry is not None:
        properties.MessageExpiryInterval = expiry
    return bytes(properties.pack())


_text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=70)
_publish = st.tuples(
    st.integers(0, 1).flatmap(lambda qos: st.sampled_from([qos << 1, qos << 1 | 1, qos << 1 | 8 * qos])),
    _text.filter(bool).map(str.encode),
    st.integers(1, 65535),
    st.builds(property_bytes, st.lists(st.tuples(_text, _text), max_size=3), st.none() | st.integers(0, 2**32 - 1)),
    st.binary(max_size=300),
)
_pingresp = st.just(b"\xd0\x00")


@pytest.mark.parametrize("protocol", [V5, V311])
@settings(max_examples=150)
@given(
    frames=st.lists(_publish | _pingresp, max_size=8),
    cuts=st.lists(st.integers(0, 2000), max_size=12),
)
def test_however_the_bytes_are_cut_the_messages_are_those_that_paho_finds(
    protocol: MQTTProtocolVersion, frames: list[Any], cuts: list[int]
) -> None:
    data = b"".join(frame if isinstance(frame, bytes) else publish(protocol, *frame) for frame in frames)
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    found, wire = ours(protocol, [data[a:b] for a, b in itertools.pairwise(edges)])
    assert found == theirs(protocol, data)
    assert not wire.closed


def test_a_message_of_megabytes_in_small_pieces_comes_whole() -> None:
    payload = bytes(range(256)) * 12_000
    data = publish(V5, 0x02, b"t", 7, b"\0", payload) + publish(V5, 0x02, b"t", 8, b"\0", b"next")
    found, _ = ours(V5, [data[at : at + 1000] for at in range(0, len(data), 1000)])
    assert found == [(0x32, b"t", b"\0\x07", payload), (0x32, b"t", b"\0\x08", b"next")]


def test_qos_2_is_handed_on_and_its_release_is_completed() -> None:
    found, wire = ours(V5, [publish(V5, 0x04, b"t", 9, b"\0", b"x"), b"\x62\x02\x00\x09"])
    assert found == [(0x34, b"t", b"\0\x09", b"x")]
    assert wire.sent == b"\x70\x02\x00\x09"


MALFORMED = [
    pytest.param(b"\x30\x00", id="no topic length"),
    pytest.param(b"\x30\x02\x00\x05", id="topic beyond the frame"),
    pytest.param(b"\x32\x03\x00\x01t", id="no packet id"),
    pytest.param(b"\x30\x04\x00\x01t\x05", id="properties beyond the frame"),
    pytest.param(b"\x30\x08\x00\x01t\xff\xff\xff\xff\xff", id="endless property length"),
    pytest.param(b"\x36\x06\x00\x01t\x00\x01\x00", id="QoS 3"),
    pytest.param(b"\x30\xff\xff\xff\xff\x01", id="length of five bytes"),
    pytest.param(b"\x00\x00", id="reserved packet type"),
    pytest.param(b"\x90\x00", id="SUBACK without a body"),
]


@pytest.mark.parametrize("behind", [b"", b"\x30\x04\x00\x01t\x00" * 3], ids=["at the end", "before others"])
@pytest.mark.parametrize("frame", MALFORMED)
def test_a_malformed_frame_ends_the_connection_and_gives_no_message(frame: bytes, behind: bytes) -> None:
    found, wire = ours(V5, [frame + behind])
    assert wire.closed
    assert found == []


@settings(max_examples=500)
@given(st.binary(max_size=40), st.booleans())
def test_any_bytes_are_a_message_within_the_frame_or_malformed(body: bytes, has_properties: bool) -> None:
    try:
        topic, packet_id, payload = split_publish(0x32, body + b"tail", 0, len(body), has_properties)
    except Malformed:
        return
    assert len(topic) + len(packet_id) + len(payload) <= len(body)
    assert body.endswith(payload)
