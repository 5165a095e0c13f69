"""tools/publisher against real brokers: everything arrives, whatever happens to the broker meanwhile."""

import contextlib
import json
import os
import pty
import signal
import socket
import subprocess
import threading
import tty
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.brokers import KINDS, BrokerProcess, Subscriber
from tests.support import ROOT, Children, free_port, wait_until

pytestmark = pytest.mark.usefixtures("own_data")
PUBLISHER = ROOT / "tools" / "publisher"
both = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def own_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Spools lie in a directory of the test."""
    monkeypatch.setenv("MINITRUE__PATHS__DATA", str(tmp_path / "own"))


def publish(*arguments: object, timeout_s: float = 120) -> tuple[int, dict[str, Any], str]:
    """Run it to its end: exit code, result, what it said."""
    command = [str(part) for part in (PUBLISHER, *arguments, "--json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    return done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr


def started(children: Children, *arguments: object) -> "subprocess.Popen[str]":
    return children.start(PUBLISHER, *(str(part) for part in arguments), "--json", stdout=-1, stderr=-1)


def points_of(subscriber: Subscriber) -> list[dict[str, Any]]:
    points: list[dict[str, Any]] = []
    for payload in subscriber.payloads():
        decoded = json.loads(payload, parse_float=str, parse_int=str)
        points += decoded if isinstance(decoded, list) else [decoded]
    return points


def identities(subscriber: Subscriber) -> set[tuple[str, str, str]]:
    return {(point["device_id"], point["metric_name"], point["timestamp"]) for point in points_of(subscriber)}


@both
@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("per_message", [1, 30])
def test_a_simulation_arrives_whole(children: Children, tmp_path: Path, kind: str, qos: int, per_message: int) -> None:
    broker = BrokerProcess(children, kind, tmp_path)
    subscriber = Subscriber(broker)
    arguments = ("--count", 2000, "--rate", 0, "--points-per-message", per_message, "--qos", qos, "--url", broker.url)
    code, result, said = publish("--sim", *arguments)
    assert (code, result["points"], result["points_acked"]) == (0, 2000, 2000), said
    assert result["published"] == result["acked"] == -(-2000 // per_message)
    wait_until(lambda: len(subscriber) >= result["published"])
    assert len(points_of(subscriber)) == len(identities(subscriber)) == 2000
    assert subscriber.got[0][0] == "sensors/sensor_1/temperature"
    subscriber.close()


@pytest.mark.parametrize("switch", ["--sim", "--sim=true"])
def test_the_simulation_can_be_asked_for_in_both_ways(children: Children, tmp_path: Path, switch: str) -> None:
    broker = BrokerProcess(children, "embedded", tmp_path)
    code, result, said = publish(switch, "--count", 20, "--rate", 0, "--url", broker.url)
    assert (code, result["points_acked"], said) == (0, 20, "")


def test_url_user_and_password_come_from_the_settings(
    children: Children, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secured = {"MINITRUE__MQTT__USERNAME": "u", "MINITRUE__MQTT__PASSWORD": "p"}
    broker = BrokerProcess(children, "embedded", tmp_path, **secured)
    for name, value in (secured | {"MINITRUE__MQTT__URL": broker.url}).items():
        monkeypatch.setenv(name, value)
    assert publish("--sim", "--count", 5, "--rate", 0)[0] == 0


@both
def test_a_wrong_password_is_said_and_ends_it(children: Children, tmp_path: Path, kind: str) -> None:
    secured = {"MINITRUE__MQTT__USERNAME": "u", "MINITRUE__MQTT__PASSWORD": "p"}
    broker = BrokerProcess(children, kind, tmp_path, **secured)
    code, result, said = publish("--sim", "--count", 5, "--rate", 0, "--url", broker.url, "--password", "x")
    assert (code, result["acked"]) == (1, 0)
    assert f"{broker.url} lets the publisher not in: " in said
    assert result["points"] == result["spooled"] + result["dropped"]


def test_a_replay_arrives_digit_for_digit(children: Children, tmp_path: Path) -> None:
    broker = BrokerProcess(children, "embedded", tmp_path / "data")
    subscriber = Subscriber(broker)
    rows = [f"dev:{at % 7},m/{at % 3},{1372896000 + at}.{at:06d},{at / 7!r}" for at in range(3000)]
    path = tmp_path / "recording.csv"
    path.write_text("\n".join(["device_id,metric_name,timestamp,value", *rows]))
    code, result, said = publish("--replay", path, "--speed", "max", "--url", broker.url)
    assert (code, result["points"], result["skipped"]) == (0, 3000, 0), said
    wait_until(lambda: len(subscriber) == 3000)
    assert [",".join(point.values()) for point in points_of(subscriber)] == rows
    subscriber.close()


def test_a_paced_replay_takes_its_time_and_rows_left_out_fail_it(children: Children, tmp_path: Path) -> None:
    broker = BrokerProcess(children, "embedded", tmp_path / "data")
    path = tmp_path / "recording.csv"
    path.write_text("device_id,metric_name,timestamp,value\na,m,0,1\na,m,x,1\na,m,80,2\n")
    code, result, said = publish("--replay", path, "--speed", "100x", "--url", broker.url)
    assert (code, result["points_acked"], result["skipped"]) == (1, 2, 1)
    assert result["seconds"] >= 0.8
    assert "1 rows or lines were left out" in said


# The broker goes away


@both
def test_a_broker_restarted_amid_the_flow_costs_nothing(children: Children, tmp_path: Path, kind: str) -> None:
    broker = BrokerProcess(children, kind, tmp_path)
    subscriber = Subscriber(broker)
    publisher = started(children, "--sim", "--rate", 4000, "--count", 20_000, "--url", broker.url)
    for share in (0.2, 0.5):
        wait_until(lambda share=share: len(identities(subscriber)) > share * 20_000, timeout_s=60)
        assert broker.stop() == 0
        broker.start()
        subscriber.reconnect(broker.port)
    out, said = publisher.communicate(timeout=120)
    assert publisher.returncode == 0, said
    assert json.loads(out)["points_acked"] == 20_000
    wait_until(lambda: len(identities(subscriber)) == 20_000, timeout_s=60)
    assert "trying again in" in said
    subscriber.close()


@both
def test_what_a_killed_broker_had_not_acknowledged_is_sent_again(children: Children, tmp_path: Path, kind: str) -> None:
    # What it had acknowledged and not passed on is lost with it, so it is killed when the subscriber has everything;
    # the subscription is lost too, so the publisher goes on when there is one again.
    broker = BrokerProcess(children, kind, tmp_path)
    subscriber = Subscriber(broker)
    publisher = started(children, "--sim", "--rate", 1000, "--count", 5000, "--url", broker.url)
    for _ in range(3):
        before = len(subscriber)
        wait_until(lambda before=before: len(subscriber) > before + 500, timeout_s=60)
        publisher.send_signal(signal.SIGSTOP)
        _wait_for_silence(subscriber)
        broker.kill()
        broker.start()
        subscriber.reconnect(broker.port)
        publisher.send_signal(signal.SIGCONT)
    out, said = publisher.communicate(timeout=120)
    assert (publisher.returncode, json.loads(out)["points_acked"]) == (0, 5000), said
    wait_until(lambda: len(identities(subscriber)) == 5000)
    subscriber.close()


def _wait_for_silence(subscriber: Subscriber) -> None:
    counts = Counter[int]()

    def silent() -> bool:
        counts[len(subscriber)] += 1
        return counts[len(subscriber)] >= 15

    wait_until(silent)


class Deaf:
    """A broker that takes CONNECT and PUBLISH and never acknowledges; cuts each connection after `cut` bytes."""

    def __init__(self, cut: int | None = None, connack: bytes = b"\x20\x03\x00\x00\x00") -> None:
        self.connections = self.received = 0
        self._cut = cut
        self._connack = connack
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"mqtt://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # the listener is closed when the test is over
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                with connection, contextlib.suppress(ConnectionError):
                    self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(self._connack)
        got = 0
        while data := connection.recv(65536):
            got += len(data)
            self.received += len(data)
            if self._cut is not None and got >= self._cut:
                return

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def deaf() -> Iterator[Deaf]:
    broker = Deaf()
    yield broker
    broker.close()


def test_an_interrupt_says_how_many_points_were_not_delivered(children: Children, deaf: Deaf) -> None:
    publisher = started(children, "--sim", "--count", 500, "--rate", 0, "--url", deaf.url)
    wait_until(lambda: deaf.received > 500 * 80)
    publisher.send_signal(signal.SIGTERM)
    publisher.send_signal(signal.SIGINT)  # the second one ends the wait
    out, said = publisher.communicate(timeout=20)
    assert publisher.returncode == 1
    assert json.loads(out)["points_acked"] == 0
    assert "500 of 500 points were not acknowledged" in said


def test_one_interrupt_waits_ten_seconds_and_not_longer(children: Children, deaf: Deaf) -> None:
    publisher = started(children, "--sim", "--count", 5, "--rate", 0, "--url", deaf.url)
    wait_until(lambda: deaf.received > 300)
    publisher.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        publisher.wait(5)
    assert publisher.wait(15) == 1


def test_messages_in_flight_are_bounded_by_what_the_broker_grants(children: Children) -> None:
    broker = Deaf(connack=b"\x20\x06\x00\x00\x03\x21\x00\x0a")  # Receive Maximum 10
    publisher = started(children, "--sim", "--count", 5000, "--rate", 0, "--url", broker.url)
    wait_until(lambda: broker.received > 10 * 100)
    with pytest.raises(subprocess.TimeoutExpired):
        publisher.wait(1)
    assert broker.received < 11 * 160
    publisher.kill()
    broker.close()


def test_a_broker_that_is_not_there_is_told_and_tried_again(children: Children, tmp_path: Path) -> None:
    broker = BrokerProcess(children, "embedded", tmp_path, start=False)
    publisher = started(children, "--sim", "--count", 50, "--rate", 0, "--url", broker.url)
    assert publisher.stderr is not None
    told = publisher.stderr.readline()
    assert told.strip() == f"publisher: {broker.url}: [Errno 111] Connection refused; trying again in 0.2 s"
    broker.start()
    out, said = publisher.communicate(timeout=60)
    assert (publisher.returncode, json.loads(out)["points_acked"]) == (0, 50), said
    assert f"publisher: connected to {broker.url}" in said


def test_messages_larger_than_the_broker_takes_are_refused_at_once() -> None:
    broker = Deaf(connack=b"\x20\x08\x00\x00\x05\x27\x00\x00\x10\x00")  # Maximum Packet Size 4096
    code, result, said = publish("--sim", "--count", 500, "--rate", 0, "--points-per-message", 100, "--url", broker.url)
    assert (code, result["acked"]) == (1, 0)
    assert "where the broker takes 4096; want fewer --points-per-message" in said
    broker.close()


# The serial port, through a pseudo-terminal


class Port:
    """A serial port of our own: `path` for the publisher, `write` for what the board says."""

    def __init__(self, link: Path) -> None:
        self.path = link
        self._link = link
        self.plug()

    def plug(self) -> None:
        self._board, computer = pty.openpty()
        tty.setraw(self._board)
        tty.setraw(computer)
        self._link.unlink(missing_ok=True)
        self._link.symlink_to(os.ttyname(computer))
        self._computer = computer

    def unplug(self) -> None:
        self._link.unlink(missing_ok=True)
        os.close(self._computer)
        os.close(self._board)

    def write(self, data: bytes) -> None:
        os.write(self._board, data)


def wait_for_line(publisher: "subprocess.Popen[str]", part: str) -> str:
    assert publisher.stderr is not None
    for line in publisher.stderr:
        if part in line:
            return line
    pytest.fail(f"the publisher ended without saying {part!r}")


def test_lines_of_a_port_arrive_also_after_it_was_unplugged(children: Children, tmp_path: Path) -> None:
    broker = BrokerProcess(children, "embedded", tmp_path / "data")
    subscriber = Subscriber(broker)
    port = Port(tmp_path / "ttyFAKE")
    arguments = ("--serial", port.path, "--baud", 115200, "--metric", "temperature", "--url", broker.url)
    publisher = started(children, *arguments)
    wait_for_line(publisher, "open at 115200 baud")
    port.write(b"sensor_1,21.5\r\nhumidity 40\nnonsense\n")
    port.write(b'{"device_id":"x","metric_name":"y","timestamp":5,"va')
    port.write(b'lue":0.25}\nsensor_2,torn')
    assert "line b'nonsense' left out" in wait_for_line(publisher, "nonsense")
    wait_until(lambda: len(subscriber) == 3)
    port.unplug()
    wait_for_line(publisher, "trying again in 0.5 s")
    wait_for_line(publisher, "trying again in 1 s")
    port.plug()
    wait_for_line(publisher, "open at 115200 baud")
    port.write(b"sensor_1,22\n")
    wait_until(lambda: len(subscriber) == 4)
    publisher.send_signal(signal.SIGINT)
    out, said = publisher.communicate(timeout=30)
    assert (publisher.returncode, json.loads(out)["skipped"]) == (1, 1), said
    got = [(point["device_id"], point["metric_name"], point["value"]) for point in points_of(subscriber)]
    assert got == [
        ("sensor_1", "temperature", "21.5"),
        ("ttyFAKE", "humidity", "40"),
        ("x", "y", "0.25"),
        ("sensor_1", "temperature", "22"),
    ]
    subscriber.close()


def test_a_missing_port_is_told_and_does_not_end_it(children: Children, tmp_path: Path) -> None:
    publisher = started(children, "--serial", tmp_path / "nothing", "--url", f"mqtt://127.0.0.1:{free_port()}")
    assert "could not open port" in wait_for_line(publisher, "nothing")
    assert publisher.poll() is None
    publisher.send_signal(signal.SIGTERM)
    assert publisher.wait(20) == 0


# Options


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "want one of --sim, --serial PORT, --replay FILE"),
        (("--sim", "--serial", "x"), "want one of"),
        (("--sim", "--speed", "1x"), "--speed belongs to --replay"),
        (("--serial", "x", "--count", "5"), "--count belongs to --sim"),
        (("--replay", "/no/such/file"), "does not exist"),
        (("--sim", "--qos", "2"), "--qos"),
        (("--sim", "--devices", "0"), "--devices"),
    ],
)
def test_wrong_options_end_with_2(arguments: tuple[str, ...], said: str) -> None:
    code, _, text = publish(*arguments)
    assert code == 2
    assert said in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--sim", "--topic", "a/{b}"), "publisher: topic 'a/{b}' names {b}"),
        (("--sim", "--url", "http://x"), "publisher: --url 'http://x': want mqtt://HOST:PORT"),
        (("--sim", "--start", "yesterday"), "publisher: --start 'yesterday': time 'yesterday': want RFC 3339"),
    ],
)
def test_values_that_cannot_be_end_with_1_and_one_line(arguments: tuple[str, ...], said: str) -> None:
    code, _, text = publish(*arguments)
    assert code == 1
    assert text.startswith(said)
    assert len(text.splitlines()) == 1


def test_help_shows_each_source_by_example() -> None:
    text = subprocess.run([PUBLISHER, "--help"], capture_output=True, text=True, check=True).stdout
    for wanted in ("Usage: publisher", "publisher --sim", "publisher --replay history", "publisher --serial /dev/tty"):
        assert wanted in text
