"""The publisher's spool: what it holds, what it survives, and publishers and brokers that die with it in use."""

import errno
import json
import os
import re
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from tests.brokers import BrokerProcess, Subscriber
from tests.disks import Step, SteppingDisk
from tests.support import ROOT, Children, free_port, wait_until
from tests.tools.test_publisher import Deaf, Port, identities, points_of, publish, started, wait_for_line
from tools.publish import spool
from tools.publish.message import Outgoing
from tools.publish.spool import Spool
from workers.bridge import records

MIB = 1 << 20


def outgoing(number: int, size: int = 0) -> Outgoing:
    return Outgoing(b"\x00\x01t", b"%d" % number + b" " * size, 1 + number % 3)


def opened(directory: Path, limit: int = MIB, told: list[str] | None = None, **options: Any) -> Spool:
    return Spool(directory, limit, ([] if told is None else told).append, **options)


def plain(messages: Sequence[Outgoing]) -> list[tuple[bytes, bytes, int]]:
    return [message[:3] for message in messages]


def settle(messages: Sequence[Outgoing]) -> None:
    for message in messages:
        assert message.part is not None
        message.part.settle(message.points)


def kept_in(directory: Path) -> list[Outgoing]:
    """What the files of a directory hold, settled or not."""
    return [
        found.record for path in spool.KIND.files(directory) for found in records.read(path, spool.KIND, spool.decode)
    ]


# By itself


def test_messages_come_out_as_they_went_in_and_leave_nothing_when_settled(tmp_path: Path) -> None:
    kept = opened(tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()
    messages = [outgoing(number) for number in range(1000)]
    assert kept.append(messages) == 1000
    assert (kept.waiting, kept.messages, kept.points) == (1000, 1000, sum(each.points for each in messages))
    first, rest = kept.take(300), kept.take(5000)
    assert (len(first), kept.waiting, kept.messages) == (300, 0, 1000)
    assert plain(first + rest) == plain(messages)
    settle(rest)
    assert kept.messages == 300
    settle(first)
    assert (kept.messages, kept.points, list((tmp_path / "a" / "b").iterdir())) == (0, 0, [])
    kept.close()
    assert not (tmp_path / "a" / "b").exists()


@hypothesis.given(st.data())
def test_whatever_is_appended_kept_taken_settled_and_reopened_none_is_lost(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    # The oracle: what is on disk and not settled is what comes out in the end, each at least once.
    directory = tmp_path_factory.mktemp("spool")
    kept = opened(directory, 1 << 16)
    owed: set[bytes] = set()
    held: list[Outgoing] = []
    number = 0
    for step in data.draw(st.lists(st.sampled_from(("append", "keep", "take", "settle", "reopen")), max_size=30)):
        if step in ("append", "keep"):
            fresh = [outgoing(number + more, 500) for more in range(data.draw(st.integers(1, 30)))]
            number += len(fresh)
            if step == "append":
                owed.update(each.payload for each in fresh[: kept.append(fresh)])
            else:
                now = [each for each in kept.keep(fresh) if each.part]
                owed.update(each.payload for each in now)
                held += now
        elif step == "take":
            held += kept.take(data.draw(st.integers(0, 40)))
        elif step == "settle":
            done, held = held[::2], held[1::2]
            settle(done)
            owed.difference_update(each.payload for each in done)
        else:
            kept.close()
            kept, held = opened(directory, 1 << 16), []
        assert owed <= {each.payload for each in kept_in(directory)}
        assert sum(path.stat().st_size for path in directory.iterdir()) <= 1 << 16
    held += kept.take(10_000)
    assert owed <= {each.payload for each in held}
    settle(held)
    assert (kept.waiting, kept.messages, list(directory.iterdir())) == (0, 0, [])
    kept.close()


def test_what_a_dead_publisher_left_is_found_and_what_a_living_one_holds_is_not(tmp_path: Path) -> None:
    living, dead = opened(tmp_path), opened(tmp_path)
    living.append([outgoing(1)])
    dead.append([outgoing(2), outgoing(3)])
    dead.close()
    heir = opened(tmp_path)
    assert (heir.waiting, heir.points) == (2, 4)
    assert plain(heir.take(9)) == plain([outgoing(2), outgoing(3)])
    assert plain(living.take(9)) == plain([outgoing(1)])


def test_a_full_spool_takes_the_first_ones_and_has_room_again_when_some_are_settled(tmp_path: Path) -> None:
    kept = opened(tmp_path, 1 << 16)
    messages = [outgoing(number, 1000) for number in range(100)]
    room = kept.append(messages)
    assert 55 < room < 65
    assert kept.append(messages[room:]) == 0
    assert [each.part for each in kept.keep(messages[room:])] == [None] * (100 - room)
    settle(kept.take(room // 2))
    assert 20 < kept.append(messages[room:]) <= room // 2 + 1
    assert plain(kept.take(100))[: room - room // 2] == plain(messages[room // 2 : room])


def test_what_is_kept_is_not_given_again_by_take_but_by_the_next_run(tmp_path: Path) -> None:
    kept = opened(tmp_path)
    kept.append([outgoing(1)])
    told = kept.keep([outgoing(2), outgoing(3)])
    again = kept.keep(told)
    assert again == told
    assert [each.record.payload for each in found(tmp_path)] == [b"1", b"2", b"3"]
    assert plain(kept.take(9)) == plain([outgoing(1)])
    settle(told[:1])
    kept.close()
    assert {each.payload for each in opened(tmp_path).take(9)} == {b"1", b"2", b"3"}


def found(directory: Path) -> list[Any]:
    return [each for path in spool.KIND.files(directory) for each in records.read(path, spool.KIND, spool.decode)]


def test_damage_is_told_and_passed_over(tmp_path: Path) -> None:
    kept = opened(tmp_path)
    kept.append([outgoing(number) for number in range(10)])
    kept.close()
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    data[found(tmp_path)[4].begin + 15] ^= 1
    path.write_bytes(data[:-3])  # the end is torn, too
    told: list[str] = []
    heir = opened(tmp_path, told=told)
    assert [each.payload for each in heir.take(99)] == [b"0", b"1", b"2", b"3", b"5", b"6", b"7", b"8"]
    assert re.fullmatch(f"{path}: \\d+ bytes are damaged and not sent", told[0])
    assert heir.waiting == 0


def test_a_file_that_is_no_spool_is_told_and_goes(tmp_path: Path) -> None:
    path = tmp_path / "00000007.spool"
    path.write_bytes(b"what is this?")
    told: list[str] = []
    kept = opened(tmp_path, told=told)
    assert (kept.waiting, told) == (0, [f"{path}: 13 bytes are damaged and not sent"])
    assert kept.take(5) == []
    assert not path.exists()


class FailingDisk(SteppingDisk):
    failing = ""

    def before(self, step: Step, path: Path) -> None:
        if step.call == self.failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["make_directory", "create", "sync_directory", "write"])
def test_a_disk_that_fails_costs_nothing_that_was_kept_and_is_tried_again(
    tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "RETRY_S", 0.0)
    disk, told = FailingDisk(), list[str]()
    directory = tmp_path / "spool"
    kept = opened(directory, told=told, disk=disk)
    if call == "write":
        assert kept.append([outgoing(0)]) == 1
    disk.failing = call
    assert kept.append([outgoing(1)]) == 0
    assert told == [f"{directory}: cannot keep messages: [Errno 28] No space left on device"]
    disk.failing = ""
    assert kept.append([outgoing(2)]) == 1
    kept.close()
    assert [each.payload for each in opened(directory).take(9)] == ([b"0"] if call == "write" else []) + [b"2"]


def test_the_document_shows_a_record_byte_by_byte(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "publisher.md").read_text()
    (block,) = re.findall(r"^(?:    (?:[0-9a-f]{2} ?)+\n)+", text, re.MULTILINE)
    (tmp_path / "00000001.spool").write_bytes(bytes.fromhex(block))
    told: list[str] = []
    (message,) = opened(tmp_path, told=told).take(9)
    payload = b'{"device_id":"a","metric_name":"t","timestamp":1700000000,"value":21.5}'
    assert (message[:3], told) == ((b"\x00\x09sensors/a", payload, 1), [])


# Processes


def test_readings_outlive_a_killed_broker_and_a_killed_publisher(children: Children, tmp_path: Path) -> None:
    broker = BrokerProcess(children, "mosquitto", tmp_path / "data")
    port, waiting = Port(tmp_path / "ttyFAKE"), tmp_path / "spool"
    arguments = ("--serial", port.path, "--metric", "m", "--url", broker.url, "--spool", waiting)
    publisher = started(children, *arguments)
    wait_for_line(publisher, "open at")
    broker.kill()
    wait_for_line(publisher, "trying again in")
    for number in range(50):
        port.write(b"board,%d\n" % number)
    wait_until(lambda: len(kept_in(waiting)) == 50)
    publisher.kill()
    publisher.wait()
    broker.start()
    subscriber = Subscriber(broker)
    publisher = started(children, *arguments)
    wait_for_line(publisher, f"50 messages of an earlier run, in {waiting}, are sent first")
    wait_until(lambda: len(subscriber) == 50)
    assert [point["value"] for point in points_of(subscriber)] == [str(number) for number in range(50)]
    wait_until(lambda: not list(waiting.iterdir()))
    publisher.send_signal(signal.SIGINT)
    out, said = publisher.communicate(timeout=30)
    assert (publisher.returncode, json.loads(out)["resumed"], json.loads(out)["acked"]) == (0, 50, 50), said
    subscriber.close()


def test_what_a_silent_broker_does_not_acknowledge_outlives_the_publisher(children: Children, tmp_path: Path) -> None:
    deaf, waiting = Deaf(), tmp_path / "spool"
    publisher = started(children, "--sim", "--count", 500, "--rate", 0, "--url", deaf.url, "--spool", waiting)
    wait_until(lambda: len(kept_in(waiting)) == 500)
    publisher.kill()
    publisher.wait()
    deaf.close()
    broker = BrokerProcess(children, "embedded", tmp_path / "data")
    subscriber = Subscriber(broker)
    code, result, said = publish("--sim", "--count", 5, "--rate", 0, "--url", broker.url, "--spool", waiting)
    assert (code, result["resumed"], result["points"], result["points_acked"]) == (0, 500, 5, 505), said
    wait_until(lambda: len(identities(subscriber)) == 505)
    subscriber.close()


def test_an_interrupt_while_the_broker_is_away_leaves_the_rest_to_the_next_run(
    children: Children, tmp_path: Path
) -> None:
    waiting = tmp_path / "spool"
    broker = BrokerProcess(children, "embedded", tmp_path / "data", start=False)
    publisher = started(children, "--sim", "--count", 300, "--rate", 0, "--url", broker.url, "--spool", waiting)
    wait_until(lambda: waiting.is_dir() and len(kept_in(waiting)) == 300)
    publisher.send_signal(signal.SIGTERM)
    out, said = publisher.communicate(timeout=8)  # and not the ten seconds for acknowledgements
    result = json.loads(out)
    assert (publisher.returncode, result["points"], result["spooled"], result["acked"]) == (1, 300, 300, 0)
    assert "300 of 300 points were not acknowledged (300 wait in the spool for the next run, " in said
    broker.start()
    subscriber = Subscriber(broker)
    code, result, said = publish("--sim", "--count", 1, "--url", broker.url, "--spool", waiting)
    assert (code, result["resumed"], result["points_acked"], result["spooled"]) == (0, 300, 301, 0), said
    wait_until(lambda: len(identities(subscriber)) == 301)
    subscriber.close()


@pytest.mark.parametrize("qos", [0, 1])
def test_a_live_source_drops_what_a_full_spool_cannot_take_and_counts_it(
    children: Children, tmp_path: Path, qos: int
) -> None:
    broker = BrokerProcess(children, "mosquitto", tmp_path / "data")
    subscriber = Subscriber(broker)  # its session outlives the broker
    broker.stop()
    arguments = ("--sim", "--count", 3000, "--rate", 2000, "--spool-bytes", 65536, "--qos", qos)
    publisher = started(children, *arguments, "--url", broker.url, "--spool", tmp_path / "spool")
    wait_for_line(publisher, "the spool is full (--spool-bytes): what comes now is dropped, and counted")
    broker.start()
    subscriber.reconnect(broker.port)
    out, said = publisher.communicate(timeout=60)
    result = json.loads(out)
    assert (publisher.returncode, result["points"]) == (1, 3000), said
    assert result["dropped"] > 0
    assert result["points_acked"] == 3000 - result["dropped"]
    wait_until(lambda: len(identities(subscriber)) == result["points_acked"])
    subscriber.close()


def test_a_recording_waits_where_the_spool_is_full(children: Children, tmp_path: Path) -> None:
    broker = BrokerProcess(children, "mosquitto", tmp_path / "data")
    subscriber = Subscriber(broker)
    broker.stop()
    path, waiting = tmp_path / "recording.csv", tmp_path / "spool"
    rows = [f"device_{at % 7},metric,{at},{at}" for at in range(5000)]
    path.write_text("\n".join(["device_id,metric_name,timestamp,value", *rows]))
    arguments = ("--replay", path, "--speed", "max", "--url", broker.url, "--spool", waiting)
    publisher = started(children, *arguments, "--spool-bytes", 65536)
    wait_until(lambda: waiting.is_dir() and sum(each.stat().st_size for each in waiting.iterdir()) > 60_000)
    broker.start()
    subscriber.reconnect(broker.port)
    out, said = publisher.communicate(timeout=60)
    result = json.loads(out)
    assert (publisher.returncode, result["points_acked"], result["dropped"]) == (0, 5000, 0), said
    wait_until(lambda: len(identities(subscriber)) == 5000)
    assert [point["timestamp"] for point in points_of(subscriber)] == [str(at) for at in range(5000)]
    subscriber.close()


def test_a_message_that_the_broker_takes_no_more_does_not_block_the_spool(children: Children, tmp_path: Path) -> None:
    waiting = tmp_path / "spool"
    kept = opened(waiting)
    kept.append([outgoing(1, 5000), outgoing(3)])
    kept.close()
    small = Deaf(connack=b"\x20\x08\x00\x00\x05\x27\x00\x00\x10\x00")  # Maximum Packet Size 4096
    publisher = started(children, "--sim", "--count", 1, "--url", small.url, "--spool", waiting)
    wait_for_line(publisher, "takes no message of 5007 bytes, which the spool holds")
    publisher.send_signal(signal.SIGTERM)
    publisher.send_signal(signal.SIGINT)  # the second one ends the wait
    result = json.loads(publisher.communicate(timeout=20)[0])
    assert (result["refused"], result["resumed"]) == (2, 3)
    assert result["spooled"] + result["dropped"] == result["points"] + 1
    small.close()


def test_a_spool_that_cannot_be_written_is_told_and_the_source_waits(children: Children, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    url = f"mqtt://127.0.0.1:{free_port()}"
    publisher = started(children, "--sim", "--count", 5, "--rate", 0, "--url", url, "--spool", tmp_path / "file" / "x")
    wait_for_line(publisher, f"cannot keep messages: [Errno 17] File exists: '{tmp_path / 'file'}'")
    publisher.send_signal(signal.SIGTERM)
    assert json.loads(publisher.communicate(timeout=20)[0])["points"] == 0


def test_help_teaches_the_spool_and_shows_plain_flags() -> None:
    command = [ROOT / "tools" / "publisher", "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "--spool-bytes" in text
    assert "While the broker is away:" in text
    assert re.search(r"^  --sim  +Simulated sensors\.$", text, re.MULTILINE)
