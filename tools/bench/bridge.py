"""bench bridge: what one MQTT message costs the bridge, against a bare paho subscriber that acks and does nothing.

Both drain the same messages, queued beforehand by mosquitto for a persistent session at QoS 1, in the same run and
in turn. The bridge decodes, routes and batches every point; real storage nodes fsync before they ack. With
--no-durable the nodes ack at once and store nothing, so that the figure is the bridge's own. It does not show
publishers competing for the machine.
"""

import json
import random
import select
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click
import msgspec
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from common import config, process
from common.ring import Node, Ring
from common.ringbuild import first_ring
from common.ringstore import FileStore, RingView
from workers.broker import mosquitto_binary, mosquitto_configuration

CLIENT_ID: Final = "bench"
CLUSTER: Final = "bench"
SEED: Final = 1
SEND_BYTES: Final = 1 << 18


@click.command()
@click.option("--messages", default=200_000, show_default=True, help="Messages in one drain.")
@click.option("--points", default=1, show_default=True, help="Points per message: above 1, a JSON array.")
@click.option("--series", default=100, show_default=True, help="Different series among them.")
@click.option("--rounds", default=3, show_default=True, help="Drains of each consumer, taken in turn.")
@click.option("--nodes", default=3, show_default=True, help="Storage nodes that the bridge sends to.")
@click.option(
    "--durable/--no-durable", default=True, show_default=True, help="Real storage nodes, or ones that only ack."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def bridge(messages: int, points: int, series: int, rounds: int, nodes: int, durable: bool, as_json: bool) -> None:
    """MQTT to acknowledged, QoS 1: the bridge against bare paho."""
    frames = publish_frames(messages, points, series)
    drains: dict[str, list[dict[str, float]]] = {"paho": [], "bridge": []}
    with tempfile.TemporaryDirectory() as scratch, cluster(Path(scratch), nodes, durable) as settings:
        for _ in range(rounds):
            for consumer, found in drains.items():
                preload(settings, frames, messages)
                found.append(drain(settings, consumer, messages))
    report = {name: _summary(found, messages) for name, found in drains.items()}
    ratios = [paho["seconds"] / ours["seconds"] for paho, ours in zip(drains["paho"], drains["bridge"], strict=True)]
    ratio = statistics.median(ratios)
    if as_json:
        click.echo(json.dumps(report | {"ratio": ratio, "messages": messages, "points": points, "durable": durable}))
        return
    for name, one in report.items():
        rate, cpu = one["messages_per_s"], one["cpu_us"]
        click.echo(f"{name:8} {rate:10,.0f} messages/s {rate * points:12,.0f} points/s {cpu:8.2f} us CPU per message")
    what = "fsynced" if durable else "not stored"
    click.echo(
        f"ratio    {ratio:10.2f} of bare paho's rate, {what} (medians of {rounds}, {messages:,} x {points} points)"
    )


def _summary(drains: list[dict[str, float]], messages: int) -> dict[str, float]:
    return {
        "messages_per_s": messages / statistics.median(one["seconds"] for one in drains),
        "cpu_us": statistics.median(one["cpu"] for one in drains) / messages * 1e6,
    }


def publish_frames(messages: int, points: int, series: int) -> list[bytes]:
    """PUBLISH packets (MQTT v3.1.1, QoS 1) of a seeded walk, 2 decimals, 1 s apart."""
    walk = random.Random(SEED)
    values = [20.0] * series
    frames = []
    for number in range(messages):
        elements = []
        for index in range(number * points, (number + 1) * points):
            device = index % series
            values[device] += walk.gauss(0, 0.1)
            elements.append(
                {
                    "device_id": f"sensor_{device}",
                    "metric_name": "temperature",
                    "timestamp": 1_700_000_000 + index // series,
                    "value": round(values[device], 2),
                }
            )
        payload = json.dumps(elements if points > 1 else elements[0]).encode()
        topic = b"sensors/sensor_%d" % (number % series)
        body = struct.pack("!H", len(topic)) + topic + struct.pack("!H", number % 65535 + 1) + payload
        frames.append(b"\x32" + _length(len(body)) + body)
    return frames


def _length(value: int) -> bytes:
    out = bytearray()
    while True:
        value, digit = value >> 7, value & 0x7F
        out.append(digit | (0x80 if value else 0))
        if not value:
            return bytes(out)


@contextmanager
def cluster(scratch: Path, nodes: int, durable: bool) -> Iterator[config.Settings]:
    """mosquitto, storage nodes and a ring in a scratch directory; the settings to reach them."""
    mqtt_port, *ports = (port for port, _, _ in _free_port_runs(1 + nodes))
    settings = config.Settings(
        paths=config.Paths(str(scratch)),
        cluster=config.Cluster(ring_store=f"file:{scratch}/ring.json"),
        mqtt=config.Mqtt(url=f"mqtt://127.0.0.1:{mqtt_port}", client_id=CLIENT_ID),
        file=str(scratch / "minitrue.toml"),
    )
    members = [Node(f"ing{n}", "", f"tcp://127.0.0.1:{port}", "local", 1.0, "active") for n, port in enumerate(ports)]
    FileStore(scratch / "ring.json").save(first_ring(CLUSTER, members, 1024, 1), 0)
    (scratch / "mosquitto.conf").write_text(mosquitto_configuration(scratch, settings.mqtt))
    binary = mosquitto_binary()
    if binary is None:
        raise click.ClickException("mosquitto is not installed")
    commands = [[binary, "-c", str(scratch / "mosquitto.conf")]]
    (scratch / "minitrue.toml").write_text(f'paths.data = "."\ncluster.ring_store = "{settings.cluster.ring_store}"\n')
    node = [sys.executable, "-m", "workers.storage", "--config", str(scratch / "minitrue.toml"), "--node-id"]
    sink = [sys.executable, "-m", "tools.bench.sink", CLUSTER]
    for member, port in zip(members, ports, strict=True):
        commands.append([*node, member.id] if durable else [*sink, member.id, str(port)])
    quiet = subprocess.DEVNULL
    children = [subprocess.Popen(command, stdout=quiet, stderr=quiet) for command in commands]
    try:
        for port in ports:
            _connected(port).close()
        yield settings
    finally:
        for child in children:
            child.terminate()
            child.wait()


def _free_port_runs(count: int) -> list[tuple[int, int, int]]:
    """So many runs of three free ports each, as a storage node takes them."""
    runs: list[tuple[int, int, int]] = []
    for first in range(20_000, 60_000, 3):
        run = (first, first + 1, first + 2)
        if all(map(_is_free, run)):
            runs.append(run)
        if len(runs) == count:
            return runs
    raise click.ClickException(f"no {count} runs of three free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def preload(settings: config.Settings, frames: list[bytes], messages: int) -> None:
    """Begin a session anew and have the broker queue every message for it."""
    port = int(settings.mqtt.url.rpartition(":")[2])
    client = _paho(clean=True, port=port)
    client.on_connect = lambda *_: client.subscribe("sensors/#", 1)
    client.on_subscribe = lambda *_: client.disconnect()
    client.loop_forever()
    with _connected(port) as wire:
        wire.sendall(bytes.fromhex("100e00044d5154540402003c00027075"))  # CONNECT, v3.1.1, clean, client id "pu"
        wire.recv(4)
        _publish_all(wire, b"".join(frames), 4 * messages)


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


def _connected(port: int) -> socket.socket:
    deadline = time.monotonic() + 10
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port))
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)  # until the process listens


def _paho(clean: bool, port: int) -> paho.Client:
    _connected(port).close()
    client = paho.Client(CallbackAPIVersion.VERSION2, CLIENT_ID, protocol=MQTTProtocolVersion.MQTTv5, manual_ack=True)
    properties = Properties(PacketTypes.CONNECT)
    properties.SessionExpiryInterval = 0xFFFFFFFF
    properties.ReceiveMaximum = 65535
    client.connect("127.0.0.1", port, clean_start=clean, properties=properties)
    return client


def drain(settings: config.Settings, consumer: str, messages: int) -> dict[str, float]:
    """Run a consumer in a process of its own: seconds and CPU seconds from its first message to its last ack."""
    code = f"from tools.bench import bridge; bridge.consume_{consumer}()"
    given = json.dumps({"settings": msgspec.to_builtins(settings), "messages": messages})
    done = subprocess.run([sys.executable, "-c", code], input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"{consumer} failed: {done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def _given() -> tuple[config.Settings, int]:
    given = json.load(sys.stdin)
    return msgspec.convert(given["settings"], config.Settings), given["messages"]


class _Meter:
    def __init__(self) -> None:
        self.began_s = self.began_cpu_s = 0.0

    def begin(self) -> None:
        self.began_s, self.began_cpu_s = time.monotonic(), time.process_time()

    def report(self) -> None:
        print(json.dumps({"seconds": time.monotonic() - self.began_s, "cpu": time.process_time() - self.began_cpu_s}))


def consume_paho() -> None:
    """In a child process: the bare subscriber."""
    settings, messages = _given()
    meter = _Meter()
    seen = 0
    client = _paho(clean=False, port=int(settings.mqtt.url.rpartition(":")[2]))

    def on_message(_client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        nonlocal seen
        if not seen:
            meter.begin()
        seen += 1
        client.ack(message.mid, message.qos)
        if seen == messages:
            client.disconnect()

    client.on_message = on_message
    client.loop_forever()
    meter.report()


def consume_bridge() -> None:
    """In a child process: the bridge."""
    from workers.bridge.deadletter import DeadLetter
    from workers.bridge.worker import Bridge

    settings, messages = _given()
    meter = _Meter()
    ring = FileStore(settings.path(settings.cluster.ring_store.removeprefix("file:"))).load()
    assert isinstance(ring, Ring)
    view = RingView(FileStore(settings.data_dir / "ring.json"), ring, 1.0)
    consumer = Bridge(settings, view, DeadLetter(settings.data_dir / "deadletter", 1 << 20, 1 << 30))

    class UntilDone(process.Stop):
        """Ends the bridge's loop when everything is acknowledged. Looked at once per turn."""

        def is_set(self) -> bool:
            if not meter.began_s and consumer.counts["messages"]:
                meter.begin()
            return consumer.link.acked >= messages

    consumer.run(UntilDone())
    meter.report()


if __name__ == "__main__":
    bridge()
