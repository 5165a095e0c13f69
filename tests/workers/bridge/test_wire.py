"""Frames: the same messages as paho's own parsing finds, however the bytes arrive."""

import itertools
import struct
import tracemalloc
from typing import Any

import paho.mqtt.client as paho
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.workers.bridge.harness import variable
from workers.bridge.wire import FULL_READ_BYTES, READ_BYTES, V5, V311, Client, Malformed, split_publish

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


def property_bytes(given: dict[str, Any]) -> bytes:
    properties = Properties(PacketTypes.PUBLISH)
    for name, value in given.items():
        for each in value if isinstance(value, list) else [value]:
            setattr(properties, name, each)
    return bytes(properties.pack())


_text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=70)
_properties = {
    "PayloadFormatIndicator": st.integers(0, 1),
    "MessageExpiryInterval": st.integers(0, 2**32 - 1),
    "ContentType": _text,
    "ResponseTopic": _text.filter(bool),
    "CorrelationData": st.binary(max_size=200),
    "SubscriptionIdentifier": st.integers(1, 268_435_455),
    "UserProperty": st.lists(st.tuples(_text, _text), min_size=1, max_size=4),
}
_publish = st.tuples(
    st.integers(0, 1).flatmap(lambda qos: st.sampled_from([qos << 1, qos << 1 | 1, qos << 1 | 8 * qos])),
    _text.filter(bool).map(str.encode),
    st.integers(1, 65535),
    st.fixed_dictionaries({}, optional=_properties).map(property_bytes),
    st.binary(max_size=300),
)
_pingresp = st.just(b"\xd0\x00")


@pytest.mark.parametrize("protocol", [V5, V311])
@settings(max_examples=150)
@given(
    frames=st.lists(_publish | _pingresp, max_size=8),
    cuts=st.lists(st.integers(0, 2000), max_size=12),
    large=st.sampled_from([(1 << 20, 1 << 17), (1, 1), (1, 5), (40, 20), (100, 60), (200, 1000)]),
)
def test_however_the_bytes_are_cut_the_messages_are_those_that_paho_finds(
    protocol: MQTTProtocolVersion, frames: list[Any], cuts: list[int], large: tuple[int, int]
) -> None:
    data = b"".join(frame if isinstance(frame, bytes) else publish(protocol, *frame) for frame in frames)
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("workers.bridge.wire.LARGE_BYTES", large[0])
        patch.setattr("workers.bridge.wire.HEADER_BYTES", large[1])
        found, wire = ours(protocol, [data[a:b] for a, b in itertools.pairwise(edges)])
    assert found == theirs(protocol, data)
    assert not wire.closed


def test_a_full_read_is_followed_by_a_larger_one_and_what_has_caught_up_by_a_small_one() -> None:
    asked: list[int] = []

    class Asked(Pieces):
        def recv(self, size: int) -> bytes:
            asked.append(size)
            return super().recv(size)

    client = Client("id", V5, lambda *frame: None)
    data = b"\xd0\x00" * (READ_BYTES // 2)  # PINGRESP
    client._sock = Asked([data, data * 4, data[:100], data[:100]])
    client._state = paho._ConnectionState.MQTT_CS_CONNECTED
    for _ in range(4):
        client.loop_read()
    client._sock = None
    assert asked == [READ_BYTES, FULL_READ_BYTES, FULL_READ_BYTES, READ_BYTES]


@pytest.mark.parametrize("protocol", [V5, V311])
@settings(max_examples=300)
@given(
    frames=st.lists(_publish, min_size=1, max_size=4),
    flips=st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 255)), max_size=3),
    cut=st.integers(0, 1000),
)
def test_damaged_bytes_end_the_connection_or_are_waited_for_and_what_came_before_is_not_changed(
    protocol: MQTTProtocolVersion, frames: list[Any], flips: list[tuple[int, int]], cut: int
) -> None:
    whole = [publish(protocol, *frame) for frame in frames]
    data = bytearray(b"".join(whole))
    for at, value in flips:
        data[at % len(data)] = value
    found, _ = ours(protocol, [bytes(data[:cut]), bytes(data[cut:])])
    intact = 0
    while intact < len(whole) and data.startswith(b"".join(whole[: intact + 1])):
        intact += 1
    assert found[:intact] == theirs(protocol, b"".join(whole[:intact]))
    assert sum(len(topic) + len(payload) for _, topic, _, payload in found) <= len(data)


def test_a_message_of_megabytes_in_small_pieces_comes_whole() -> None:
    payload = bytes(range(256)) * 12_000
    data = publish(V5, 0x02, b"t", 7, b"\0", payload) + publish(V5, 0x02, b"t", 8, b"\0", b"next")
    found, _ = ours(V5, [data[at : at + 1000] for at in range(0, len(data), 1000)])
    assert found == [(0x32, b"t", b"\0\x07", payload), (0x32, b"t", b"\0\x08", b"next")]


def test_a_payload_of_256_mb_is_held_in_memory_once_while_it_comes_in() -> None:
    payload_bytes = 268_435_455 - 6
    piece = bytes(range(256)) * 4096
    begin = b"\x32" + variable(268_435_455) + b"\0\1t\0\7\0"
    sizes: list[int] = []
    client = Client("id", V5, lambda first, topic, packet_id, payload: sizes.append(len(payload)))
    left = payload_bytes
    client._take(begin)
    tracemalloc.start()
    try:
        while left:
            client._take(piece[: min(left, len(piece))])
            left -= min(left, len(piece))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sizes == [payload_bytes]
    assert peak < payload_bytes * 1.3


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
