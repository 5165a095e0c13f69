"""The outbox of a session: nothing of QoS 1 leaves it but by its PUBACK."""

import hypothesis
from hypothesis import strategies as st

from workers.embedded.outbox import MAX_IN_FLIGHT, MAX_WAITING_FOR_QOS_0, WRITE_BYTES, Message, Outbox, frame
from workers.embedded.outbox import remaining_length as encoded


def message(number: int, qos: int = 1) -> Message:
    return Message(b"t", b"%d" % number, qos, False)


def online() -> Outbox:
    outbox = Outbox()
    outbox.resume()
    return outbox


def test_a_frame_is_as_the_specification_has_it() -> None:
    assert frame(Message(b"a/b", b"xy", 1, True), 10) == b"\x33\x09\x00\x03a/b\x00\x0axy"
    assert frame(Message(b"a/b", b"xy", 1, False), 10, duplicate=True)[0] == 0x3A
    assert frame(Message(b"a/b", b"xy", 0, False), 0) == b"\x30\x07\x00\x03a/bxy"


def test_lengths_at_the_edges_of_their_encoding() -> None:
    edges = {0: "00", 127: "7f", 128: "8001", 16383: "ff7f", 16384: "808001", 268435455: "ffffff7f"}
    assert {length: encoded(length).hex() for length in edges} == edges


def test_a_new_connection_gets_what_was_in_flight_again_then_what_waited() -> None:
    outbox = online()
    for number in range(3):
        outbox.offer(message(number))
    outbox.take()
    outbox.acknowledge(2)
    outbox.pause()
    outbox.offer(message(3))
    again = outbox.resume()
    assert again == frame(message(0), 1, duplicate=True) + frame(message(2), 3, duplicate=True)
    assert outbox.take() == frame(message(3), 4)
    assert outbox.take() == b""


def test_no_packet_id_is_used_twice_at_a_time() -> None:
    outbox = online()
    for number in range(MAX_IN_FLIGHT + 10):
        outbox.offer(message(number))
    while outbox.take():
        pass
    assert (len(outbox.in_flight), len(outbox.waiting)) == (MAX_IN_FLIGHT, 10)
    outbox.acknowledge(40_000)
    assert outbox.take() == frame(message(MAX_IN_FLIGHT), 40_000)
    assert outbox.take() == b""


def test_one_write_is_bounded() -> None:
    outbox = online()
    for _ in range(10):
        outbox.offer(Message(b"t", bytes(100_000), 1, False))
    assert WRITE_BYTES <= len(outbox.take()) <= WRITE_BYTES + 100_020


def test_qos_0_is_dropped_for_who_is_away_or_far_behind() -> None:
    outbox = Outbox()
    outbox.offer(message(0, qos=0))
    assert not outbox.waiting
    outbox.resume()
    for number in range(MAX_WAITING_FOR_QOS_0 + 5):
        outbox.offer(message(number, qos=0))
    assert len(outbox.waiting) == MAX_WAITING_FOR_QOS_0
    outbox.offer(message(7))
    outbox.pause()
    assert list(outbox.waiting) == [message(7)]


def test_puback_for_an_unknown_id_changes_nothing() -> None:
    outbox = online()
    outbox.offer(message(0))
    outbox.take()
    outbox.acknowledge(77)
    assert outbox.owed() == [message(0)]


@hypothesis.given(st.lists(st.sampled_from(["offer", "take", "ack", "reconnect"]), max_size=60), st.randoms())
def test_whatever_happens_every_message_is_owed_until_its_puback(steps: list[str], chance: object) -> None:
    outbox = online()
    owed: list[Message] = []
    for number, step in enumerate(steps):
        if step == "offer":
            outbox.offer(message(number))
            owed.append(message(number))
        elif step == "take":
            outbox.take()
        elif step == "ack" and outbox.in_flight:
            packet_id = chance.choice(list(outbox.in_flight))  # type: ignore[attr-defined]
            owed.remove(outbox.in_flight[packet_id])
            outbox.acknowledge(packet_id)
        elif step == "reconnect":
            outbox.pause()
            outbox.resume()
        assert outbox.owed() == owed
