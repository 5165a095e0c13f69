"""Queues of MQTT messages and what takes them: a broker with its nodes, messages made under a fixed seed, and drains.

mosquitto queues every message for a persistent session at QoS 1, then a consumer in a process of its own
(consumers.py) takes them all; seconds and CPU count from its first message to its last acknowledgement. So publishers
do not compete for the machine, and every consumer finds the same.
"""

import json
import random
import select
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import click
import msgspec
import numpy as np
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from common import config
from common.ring import Node
from common.ringbuild import first_ring
from common.ringstore import FileStore
from tools.bench import alone
from workers.broker import mosquitto_binary, mosquitto_configuration

CLIENT_ID: Final = "bench"
CLUSTER: Final = "bench"
SEED: Final = 1
BEGIN_S: Final = 1_700_000_000
SEND_BYTES: Final = 1 << 18
READY_S: Final = 60.0
WARM_UP: Final = 1000  # messages
FILTER: Final = "sensors/#"

Encoder = Callable[[Sequence[int], Sequence[int], Sequence[float]], bytes]  # devices, seconds, values


class Load(NamedTuple):
    """What is queued. points: in each message; series: among all."""

    messages: int
    points: int
    series: int
    columns: bool = False


class Drained(NamedTuple):
    """What a drain took. cpu_s: of the consumer; servers_cpu_s: of what stores the points, as far as asked."""

    seconds: float
    cpu_s: float
    servers_cpu_s: float = 0.0


class Cluster(NamedTuple):
    """A broker and storage nodes. nodes: process ids."""

    settings: config.Settings
    nodes: list[int]

    @property
    def port(self) -> int:
        """Of the broker."""
        return int(self.settings.mqtt.url.rpartition(":")[2])


# Messages


def publish_frames(load: Load, begin_s: int = BEGIN_S) -> bytes:
    """PUBLISH packets (MQTT v3.1.1, QoS 1) of a seeded walk, 2 decimals, each series 1 s apart from begin_s on."""
    walk = np.random.default_rng(SEED)
    count = load.messages * load.points
    steps = walk.normal(0, 0.1, (-(-count // load.series), load.series))
    values = np.round(20 + np.cumsum(steps, axis=0), 2).ravel()[:count].tolist()
    encode = _columns if load.columns else _json
    frames: list[bytes] = []
    for number in range(load.messages):
        rows = range(number * load.points, (number + 1) * load.points)
        devices = [row % load.series for row in rows]
        payload = encode(devices, [begin_s + row // load.series for row in rows], values[rows.start : rows.stop])
        frames.append(_frame(b"sensors/sensor_%d" % (number % load.series), number % 65535 + 1, payload))
    return b"".join(frames)


def _json(devices: Sequence[int], seconds: Sequence[int], values: Sequence[float]) -> bytes:
    elements = [
        {"device_id": f"sensor_{device}", "metric_name": "temperature", "timestamp": at, "value": value}
        for device, at, value in zip(devices, seconds, values, strict=True)
    ]
    return json.dumps(elements if len(elements) > 1 else elements[0]).encode()


def _columns(devices: Sequence[int], seconds: Sequence[int], values: Sequence[float]) -> bytes:
    used = sorted(set(devices))
    places = {device: place for place, device in enumerate(used)}
    return msgspec.msgpack.encode(
        {
            "series": [{"device_id": f"sensor_{device}", "metric_name": "temperature"} for device in used],
            "index": np.array([places[device] for device in devices], "<u4").tobytes(),
            "timestamps": (np.array(seconds, "<i8") * 10**9).tobytes(),
            "values": np.array(values, "<f8").tobytes(),
        }
    )


def _frame(topic: bytes, packet_id: int, payload: bytes) -> bytes:
    body = struct.pack("!H", len(topic)) + topic + struct.pack("!H", packet_id) + payload
    length, encoded = len(body), bytearray()
    while length > 127:
        encoded.append(length & 127 | 128)
        length >>= 7
    encoded.append(length)
    return b"\x32" + encoded + body


# Broker and nodes


@contextmanager
def cluster(nodes: int, columns: bool = False, durable: bool = True) -> Iterator[Cluster]:
    """mosquitto, storage nodes and a ring in a temporary directory.

    columns: what the bridge expects. durable: False for nodes that only ack.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        scratch = Path(name)
        mqtt_port, *ports = (port for port, _, _ in free_port_runs(1 + nodes))
        settings = _settings(scratch, mqtt_port, "msgpack-columns" if columns else "json")
        members = [
            Node(f"ing{number}", "", f"tcp://127.0.0.1:{port}", "local", 1.0, "active")
            for number, port in enumerate(ports)
        ]
        FileStore(scratch / "ring.json").save(first_ring(CLUSTER, members, 1024, 1), 0)
        commands = [_broker_command(scratch, settings)]
        commands += [
            _node_command(scratch, member.id, port, durable) for member, port in zip(members, ports, strict=True)
        ]
        quiet = subprocess.DEVNULL
        children = [subprocess.Popen(command, stdout=quiet, stderr=quiet) for command in commands]
        try:
            for port in (mqtt_port, *ports):
                connected(port).close()
            yield Cluster(settings, [child.pid for child in children[1:]])
        finally:
            for child in children:
                child.terminate()
            for child in children:
                child.wait()


def _settings(scratch: Path, mqtt_port: int, form: Literal["json", "msgpack-columns"]) -> config.Settings:
    subscriptions = [config.Subscription(FILTER, format=form)]
    return config.Settings(
        paths=config.Paths(str(scratch)),
        cluster=config.Cluster(ring_store=f"file:{scratch}/ring.json"),
        mqtt=config.Mqtt(url=f"mqtt://127.0.0.1:{mqtt_port}", client_id=CLIENT_ID, subscriptions=subscriptions),
        log=config.Log(level="warning"),
        file=str(scratch / "minitrue.toml"),
    )


def _broker_command(scratch: Path, settings: config.Settings) -> list[str]:
    binary = mosquitto_binary()
    if binary is None:
        raise click.ClickException("mosquitto is not installed (Debian package mosquitto)")
    (scratch / "mosquitto.conf").write_text(mosquitto_configuration(scratch, settings.mqtt))
    return [binary, "-c", str(scratch / "mosquitto.conf")]


def _node_command(scratch: Path, node_id: str, port: int, durable: bool) -> list[str]:
    if not durable:
        return [sys.executable, "-m", "tools.bench.sink", CLUSTER, node_id, str(port)]
    file = scratch / "minitrue.toml"
    file.write_text(f'paths.data = "."\ncluster.ring_store = "file:{scratch}/ring.json"\nlog.level = "warning"\n')
    return [sys.executable, "-m", "workers.storage", "--config", str(file), "--node-id", node_id]


def free_port_runs(count: int) -> list[tuple[int, int, int]]:
    """So many runs of three free ports each, as a storage node takes them."""
    runs: list[tuple[int, int, int]] = []
    first = random.randrange(20_000, 30_000, 3)  # another run of the benchmark may look for ports now
    while len(runs) < count and first < 60_000:
        run = (first, first + 1, first + 2)
        if all(map(_is_free, run)):
            runs.append(run)
        first += 3
    if len(runs) < count:
        raise click.ClickException(f"no {count} runs of three free ports")
    return runs


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


# Queue and drain


def warm_up(running: Cluster, load: Load) -> None:
    """Have the nodes load and do once what they do with a first batch, which costs them seconds."""
    few = load._replace(messages=min(load.messages, WARM_UP))
    preload(running.port, publish_frames(few, BEGIN_S - WARM_UP * load.points), few.messages)
    drain(running, "bridge", few.messages)


def preload(port: int, frames: bytes, messages: int) -> None:
    """Begin the session anew, and have the broker queue every message for it."""
    _forget_session(port)
    client = session(port)
    client.on_connect = lambda *_: client.subscribe(FILTER, 1)
    client.on_subscribe = lambda *_: client.disconnect()
    client.loop_forever()
    with connected(port) as wire:
        wire.sendall(bytes.fromhex("100e00044d5154540402003c00027075"))  # CONNECT, v3.1.1, clean, client id "pu"
        wire.recv(4)
        _publish_all(wire, frames, 4 * messages)


def _forget_session(port: int) -> None:
    """Connect with a clean session, which ends the one before with all that it has queued."""
    client = paho.Client(CallbackAPIVersion.VERSION2, CLIENT_ID, clean_session=True)
    connected(port).close()
    client.connect("127.0.0.1", port)
    client.on_connect = lambda *_: client.disconnect()
    client.loop_forever()


def _publish_all(wire: socket.socket, data: bytes, ack_bytes: int) -> None:
    view = memoryview(data)
    wire.setblocking(False)
    while view or ack_bytes:
        readable, writable, _ = select.select([wire], [wire] if view else [], [])
        if readable:
            received = len(wire.recv(SEND_BYTES))
            if not received:
                raise click.ClickException("mosquitto hung up")
            ack_bytes -= received
        if writable:
            view = view[wire.send(view[:SEND_BYTES]) :]


def connected(port: int) -> socket.socket:
    """A connection to a port of a process that is starting."""
    deadline = time.monotonic() + READY_S
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port))
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)  # until the process listens


def session(port: int) -> paho.Client:
    """A paho client in the session whose messages are drained, connected. v3.1.1, paho's default: v5 costs it more."""
    client = paho.Client(CallbackAPIVersion.VERSION2, CLIENT_ID, clean_session=False, manual_ack=True)
    client.connect("127.0.0.1", port)
    return client


def drain(running: Cluster, consumer: str, messages: int, servers: Sequence[int] = (), write_url: str = "") -> Drained:
    """Have a consumer of consumers.py take so many messages. servers: processes whose CPU is counted as well.

    write_url: where "script" sends the points.
    """
    given = {"settings": msgspec.to_builtins(running.settings), "messages": messages, "write_url": write_url}
    before_s = sum(map(alone.cpu_s, servers))
    done = subprocess.run(
        [sys.executable, "-m", "tools.bench.consumers", consumer],
        input=json.dumps(given), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise click.ClickException(f"{consumer} failed: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return Drained(found["seconds"], found["cpu_s"], sum(map(alone.cpu_s, servers)) - before_s)
