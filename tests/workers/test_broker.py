"""The broker worker, with mosquitto and with the embedded broker: what it has acknowledged it delivers."""

import base64
import errno
import hashlib
import os
import random
import socket
import subprocess
import threading
from pathlib import Path

import paho.mqtt.client as paho
import pytest

from common import config
from common.errors import ConfigError
from tests.brokers import KINDS, BrokerProcess, KillableSubscriber, Subscriber, publish
from tests.support import Children, require_part, wait_until
from workers import broker

both = pytest.mark.parametrize("kind", KINDS)


def numbers(count: int, first: int = 0) -> list[bytes]:
    return [b"%d" % number for number in range(first, first + count)]


# Which broker


@pytest.mark.parametrize(
    ("setting", "url", "installed", "wanted"),
    [
        ("auto", "mqtt://127.0.0.1:1883", True, "mosquitto"),
        ("auto", "mqtt://localhost", True, "mosquitto"),
        ("auto", "mqtt://127.0.0.1:1883", False, "embedded"),
        ("auto", "mqtt://192.0.2.7:1883", True, "external"),
        ("auto", "mqtt://no-such-host.invalid", True, "external"),
        ("auto", "mqtts://127.0.0.1:8883", True, "external"),
        ("embedded", "mqtt://127.0.0.1:1883", True, "embedded"),
        ("mosquitto", "mqtt://127.0.0.1:1883", False, "mosquitto"),
        ("external", "mqtt://127.0.0.1:1883", True, "external"),
    ],
)
def test_setting_url_and_what_is_installed_choose_the_broker(
    monkeypatch: pytest.MonkeyPatch, setting: str, url: str, installed: bool, wanted: str
) -> None:
    monkeypatch.setattr(broker, "mosquitto_binary", lambda: "/usr/sbin/mosquitto" if installed else None)
    assert broker.choose(config.Mqtt(broker=setting, url=url)) == wanted  # type: ignore[arg-type]


def test_mosquitto_is_found_where_only_roots_path_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = require_part("mosquitto")
    monkeypatch.setenv("PATH", "/nowhere")
    assert broker.mosquitto_binary() == installed


def test_our_own_broker_with_tls_is_refused_with_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r'serves mqtt://HOST:PORT only; .* set mqtt\.broker = "external"'):
        broker.listen_address(config.Mqtt(broker="mosquitto", url="mqtts://127.0.0.1"))


def test_the_generated_configuration_drops_nothing_and_is_reachable_as_the_url_says(tmp_path: Path) -> None:
    text = broker.mosquitto_configuration(tmp_path, config.Mqtt(url="mqtt://127.0.0.1:2883"))
    lines = text.splitlines()
    for wanted in (
        "listener 2883 127.0.0.1",
        "allow_anonymous true",
        "persistence true",
        f"persistence_location {tmp_path}/",
        "max_queued_messages 0",
        "max_queued_bytes 0",
        "max_inflight_messages 65535",
        "set_tcp_nodelay true",
        "log_dest stderr",
    ):
        assert wanted in lines
    assert ("user root" in lines) == (os.geteuid() == 0)


def test_a_user_closes_the_broker_for_others(tmp_path: Path) -> None:
    text = broker.mosquitto_configuration(tmp_path, config.Mqtt(username="u", password="p"))
    assert "allow_anonymous false" in text
    assert f"password_file {tmp_path}/passwords" in text


def test_password_line_is_pbkdf2_sha512_of_mosquittos_form() -> None:
    line = broker.password_line("u", "secret", b"123456789012")
    user, rest = line.rstrip("\n").split(":")
    _, form, rounds, salt, digest = rest.split("$")
    assert (user, form, base64.b64decode(salt)) == ("u", "7", b"123456789012")
    assert base64.b64decode(digest) == hashlib.pbkdf2_hmac("sha512", b"secret", b"123456789012", int(rounds))


# Starting and stopping


@both
def test_a_taken_port_is_said_in_one_line(children: Children, tmp_path: Path, kind: str) -> None:
    running = BrokerProcess(children, kind, tmp_path / "first")
    second = running.run(stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    _, said = second.communicate(timeout=20)
    assert second.returncode == 1
    wanted = f"minitrue broker: mqtt.url: cannot listen at 127.0.0.1:{running.port}: Address already in use"
    assert said.splitlines()[-1] == wanted


@both
def test_a_data_directory_that_cannot_be_is_said_in_one_line(children: Children, tmp_path: Path, kind: str) -> None:
    broken = BrokerProcess(children, kind, tmp_path / "file", start=False)
    broken.data.write_text("a file, no directory")
    process = broken.run(stderr=subprocess.PIPE)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 1
    assert said.startswith(f"minitrue broker: {tmp_path}/file/broker cannot be made: File exists")


def test_with_an_outside_broker_it_waits_to_be_stopped(children: Children, tmp_path: Path) -> None:
    outside = BrokerProcess(children, "external", tmp_path, start=False)
    process = outside.run(stderr=subprocess.PIPE)
    assert process.stderr is not None
    assert "an outside broker is used" in process.stderr.readline()
    process.terminate()
    assert process.wait(10) == 0
    assert list(tmp_path.iterdir()) == []


@both
def test_sigterm_ends_it_with_0_and_frees_the_port(children: Children, tmp_path: Path, kind: str) -> None:
    running = BrokerProcess(children, kind, tmp_path)
    subscriber = Subscriber(running)
    assert running.stop() == 0
    assert not running.listens()
    subscriber.close()


@both
def test_only_the_right_password_gets_in(children: Children, tmp_path: Path, kind: str) -> None:
    secured = {"MINITRUE__MQTT__USERNAME": "plant", "MINITRUE__MQTT__PASSWORD": "s3cret:$7$"}
    running = BrokerProcess(children, kind, tmp_path, **secured)
    inside = Subscriber(running, user=("plant", "s3cret:$7$"))
    assert inside.granted == [1]
    for user in (("plant", "wrong"), ("nobody", "s3cret:$7$"), None):
        assert "authorized" in Subscriber(running, "stranger", user=user).refused.lower()


# What is acknowledged is delivered


@both
def test_messages_wait_for_a_subscriber_that_is_away(children: Children, tmp_path: Path, kind: str) -> None:
    running = BrokerProcess(children, kind, tmp_path)
    Subscriber(running).close()
    publish(running.port, numbers(3000))
    back = Subscriber(running)
    wait_until(lambda: len(back) >= 3000)
    assert back.payloads() == numbers(3000)
    back.close()


@both
def test_messages_survive_a_clean_restart_of_the_broker(children: Children, tmp_path: Path, kind: str) -> None:
    running = BrokerProcess(children, kind, tmp_path)
    holder = Subscriber(running, hold=True)
    publish(running.port, numbers(100))
    wait_until(lambda: len(holder) == 100)
    holder.drop()
    publish(running.port, numbers(400, first=100))
    publish(running.port, [b"kept"], topic="state", retain=True)
    assert running.stop() == 0
    running.start()
    back = Subscriber(running, topic="#")
    wait_until(lambda: len(back) >= 501)
    assert back.payloads()[:500] == numbers(500)
    assert ("state", b"kept") in back.got[500:]
    late = Subscriber(running, "late", topic="state")
    wait_until(lambda: late.got == [("state", b"kept")])
    back.close()
    late.close()


@both
def test_a_subscriber_killed_ten_times_gets_every_message(children: Children, tmp_path: Path, kind: str) -> None:
    running = BrokerProcess(children, kind, tmp_path)
    victim = KillableSubscriber(children, running.port, tmp_path / "received")
    wanted = numbers(10_000)
    publisher = threading.Thread(target=publish, args=(running.port, wanted))
    publisher.start()
    chance = random.Random(5)
    for kill in range(10):
        moment = (kill + chance.random()) * len(wanted) / 11
        wait_until(lambda moment=moment: len(victim.payloads()) >= moment, timeout_s=60)
        victim.kill()
    publisher.join()
    wait_until(lambda: set(victim.payloads()) >= set(wanted), timeout_s=60, what="all messages")


@both
def test_all_packet_ids_can_be_in_flight_and_the_rest_follows(children: Children, tmp_path: Path, kind: str) -> None:
    running = BrokerProcess(children, kind, tmp_path)
    version = paho.MQTTv311 if kind == "embedded" else paho.MQTTv5
    holder = Subscriber(running, hold=True, version=version)
    url, count = f"mqtt://127.0.0.1:{running.port}", 70_000
    done = subprocess.run(
        ["tools/publisher", "--sim", "--rate", "0", "--count", str(count), "--url", url, "--json"],
        cwd=Path(broker.__file__).parent.parent,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0
    wait_until(lambda: len(holder) >= 65_535, timeout_s=60)
    publish(running.port, [b"a message later"])
    assert len(holder) == 65_535
    holder.release()
    wait_until(lambda: len(holder) == count + 1, timeout_s=60)
    holder.close()


@both
def test_a_message_not_acknowledged_for_long_comes_again(children: Children, tmp_path: Path, kind: str) -> None:
    # amqtt gives up after five seconds, and forgets the message.
    running = BrokerProcess(children, kind, tmp_path)
    holder = Subscriber(running, hold=True)
    publish(running.port, numbers(10))
    wait_until(lambda: len(holder) == 10)
    with pytest.raises(subprocess.TimeoutExpired):
        running.process.wait(5.5)  # the time that amqtt waits for a PUBACK
    holder.drop()
    back = Subscriber(running)
    wait_until(lambda: len(back) >= 10)
    assert back.payloads() == numbers(10)
    back.close()


@both
def test_the_last_messages_of_a_publisher_that_hangs_up_arrive(children: Children, tmp_path: Path, kind: str) -> None:
    running = BrokerProcess(children, kind, tmp_path)
    subscriber = Subscriber(running)
    for start in range(0, 5000, 500):
        publish(running.port, numbers(500, start))
    wait_until(lambda: len(subscriber) >= 5000)
    assert subscriber.payloads() == numbers(5000)
    subscriber.close()


@both
def test_a_client_that_comes_twice_takes_its_session_over(children: Children, tmp_path: Path, kind: str) -> None:
    running = BrokerProcess(children, kind, tmp_path)
    first = Subscriber(running, hold=True)
    publish(running.port, numbers(50))
    wait_until(lambda: len(first) == 50)
    second = Subscriber(running)
    publish(running.port, numbers(50, first=50))
    wait_until(lambda: len(second) >= 100)
    assert second.payloads() == numbers(100)
    second.close()
    first.close()


@both
def test_a_clean_session_is_forgotten(children: Children, tmp_path: Path, kind: str) -> None:
    running = BrokerProcess(children, kind, tmp_path)
    Subscriber(running, clean=True).close()
    publish(running.port, numbers(10))
    again = Subscriber(running)
    publish(running.port, numbers(1, first=10))
    wait_until(lambda: len(again) > 0)
    assert again.payloads() == [b"10"]
    again.close()


@both
@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x10\xff\xff\xff\xff\xff",
        b"\x10\x04\x00\x04MQ",
        bytes(range(256)),
        b"\x10\x0e\x00\x04MQTT\x04\x02\x00\x3c\x00\x02ab" + b"\x32\x02\xff\xff",  # PUBLISH shorter than its topic
        b"\x10\x0e\x00\x04MQTT\x04\x02\x00\x3c\x00\x02ab" + b"\x82\x03\x00\x01\xff",  # SUBSCRIBE cut short
    ],
)
def test_garbage_ends_its_own_connection_only(children: Children, tmp_path: Path, kind: str, garbage: bytes) -> None:
    running = BrokerProcess(children, kind, tmp_path)
    subscriber = Subscriber(running)
    with socket.create_connection(("127.0.0.1", running.port), timeout=20) as stranger:
        _send_and_hang_up(stranger, garbage)
        received = b"more"
        while received:
            received = _answer(stranger)
    publish(running.port, numbers(10))
    wait_until(lambda: subscriber.payloads() == numbers(10))
    subscriber.close()


def _send_and_hang_up(stranger: socket.socket, garbage: bytes) -> None:
    try:
        stranger.sendall(garbage)
        stranger.shutdown(socket.SHUT_WR)
    except OSError as error:  # the broker may have hung up before us
        if error.errno not in (errno.ENOTCONN, errno.EPIPE, errno.ECONNRESET):
            raise


def _answer(stranger: socket.socket) -> bytes:
    try:
        return stranger.recv(100)
    except ConnectionResetError:
        return b""


# The embedded broker alone


def test_embedded_refuses_mqtt_5_so_that_clients_fall_back(children: Children, tmp_path: Path) -> None:
    running = BrokerProcess(children, "embedded", tmp_path)
    assert Subscriber(running, version=paho.MQTTv5).refused == "Unsupported protocol version"
    assert Subscriber(running, version=paho.MQTTv311).granted == [1]


def test_embedded_refuses_shared_subscriptions_rather_than_deliver_nothing(children: Children, tmp_path: Path) -> None:
    running = BrokerProcess(children, "embedded", tmp_path)
    assert Subscriber(running, topic="$share/bridges/sensors/#").granted == [0x80]


def test_embedded_lets_no_stranger_end_or_empty_a_session(children: Children, tmp_path: Path) -> None:
    # amqtt takes the session over, or deletes it, before it looks at the password.
    secured = {"MINITRUE__MQTT__USERNAME": "plant", "MINITRUE__MQTT__PASSWORD": "s3cret"}
    running = BrokerProcess(children, "embedded", tmp_path, **secured)
    user = ("plant", "s3cret")
    holder = Subscriber(running, hold=True, user=user)
    publish(running.port, numbers(20), user=user)
    wait_until(lambda: len(holder) == 20)
    for clean in (True, False):
        assert Subscriber(running, "bridge", clean=clean, user=("plant", "guess")).refused
    publish(running.port, numbers(1, first=20), user=user)
    wait_until(lambda: len(holder) == 21)
    holder.drop()
    back = Subscriber(running, user=user)
    wait_until(lambda: len(back) >= 21)
    back.close()


def test_embedded_takes_qos_2_once_and_gives_overlapping_filters_one_copy(children: Children, tmp_path: Path) -> None:
    running = BrokerProcess(children, "embedded", tmp_path)
    subscriber = Subscriber(running, topic="a/#")
    subscriber._client.subscribe([("a/+", 0), ("+/b", 1)])
    wait_until(lambda: subscriber.granted == [0, 1])
    publish(running.port, numbers(5), topic="a/b", qos=2)
    publish(running.port, [b"end"], topic="a/b")
    wait_until(lambda: b"end" in subscriber.payloads())
    assert subscriber.payloads() == [*numbers(5), b"end"]
    subscriber.close()


def test_embedded_sends_the_will_of_a_client_that_dies(children: Children, tmp_path: Path) -> None:
    running = BrokerProcess(children, "embedded", tmp_path)
    subscriber = Subscriber(running)
    connect = b"\x10\x1b\x00\x04MQTT\x04\x0e\x00\x3c\x00\x06sensor\x00\x01w\x00\x04"  # clean, will at QoS 1 to topic w
    for will, goodbye in ((b"left", b"\xe0\x00"), (b"died", b"")):
        with socket.create_connection(("127.0.0.1", running.port), timeout=20) as sensor:
            sensor.sendall(connect + will + goodbye)
            assert sensor.recv(4) == b"\x20\x02\x00\x00"
    wait_until(lambda: subscriber.got)
    assert subscriber.got == [("w", b"died")]
    subscriber.close()


def test_embedded_sets_a_damaged_sessions_file_aside_and_starts(children: Children, tmp_path: Path) -> None:
    (tmp_path / "broker").mkdir()
    (tmp_path / "broker" / "sessions.msgpack").write_bytes(b"\x93\x01garbage")
    running = BrokerProcess(children, "embedded", tmp_path)
    assert (tmp_path / "broker" / "sessions.damaged").read_bytes() == b"\x93\x01garbage"
    assert running.stop() == 0


def test_embedded_refuses_a_newer_sessions_file(children: Children, tmp_path: Path) -> None:
    (tmp_path / "broker").mkdir()
    (tmp_path / "broker" / "sessions.msgpack").write_bytes(b"\x93\x02\x90\x90")
    broken = BrokerProcess(children, "embedded", tmp_path, start=False)
    process = broken.run(stderr=subprocess.PIPE)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 1
    assert said.splitlines()[-1].endswith("sessions.msgpack: version 2, this program reads 1")
