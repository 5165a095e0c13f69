"""Frames from anywhere: a message, or a ProtocolError, and never another error."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import protocol
from common.errors import ProtocolError
from common.protocol import Ack, Header, Message

HEADER = Header(protocol.VERSION, "cluster", "to", "from", 1, 2, 3, "0123456789abcdef", 4, 5, "tcp://127.0.0.1:1")


def unpacked(header: bytes) -> Message | None:
    try:
        return protocol.unpack([protocol.BATCH, header, b"body"])
    except ProtocolError:
        return None


def test_what_is_packed_is_unpacked() -> None:
    frames = protocol.pack(protocol.BATCH, HEADER, b"body")
    assert protocol.unpack([bytes(frame) for frame in frames]) == Message(protocol.BATCH, HEADER, b"body")


@pytest.mark.parametrize(
    "damage",
    [
        lambda header: header.replace(b"0123456789abcdef", b"\xff" * 16),  # no UTF-8
        lambda header: b"\x91" * 100_000,  # nested without end
        lambda header: b"",
        lambda header: header[:-1],
    ],
)
def test_a_header_that_cannot_be_decoded_is_refused(damage: object) -> None:
    header = bytes(protocol.pack(protocol.BATCH, HEADER, b"body")[1])
    assert callable(damage)
    assert damage(header) != header
    with pytest.raises(ProtocolError, match="batch header: "):
        protocol.unpack([protocol.BATCH, damage(header), b"body"])


@given(st.integers(0, 500), st.integers(0, 255))
def test_any_byte_of_a_header_may_be_another(at: int, byte: int) -> None:
    header = bytearray(protocol.pack(protocol.BATCH, HEADER, b"body")[1])
    header[at % len(header)] = byte
    unpacked(bytes(header))


@given(st.binary(max_size=80))
def test_no_bytes_break_a_header_or_a_body(data: bytes) -> None:
    unpacked(data)
    try:
        protocol.decode_body(data, Ack)
    except ProtocolError:
        return


def test_a_body_nested_without_end_is_refused() -> None:
    body = msgspec.msgpack.encode({"deep": 0})[:-1] + b"\x91" * 100_000 + b"\0"
    with pytest.raises(ProtocolError, match="Ack: "):
        protocol.decode_body(body, Ack)
