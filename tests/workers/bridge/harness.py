"""What the tests on real processes share: mosquitto, a bridge as a process, storage nodes that a test rules."""

import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import bus, config, protocol
from common.points import PointBatch
from common.protocol import Ack, Beat, Header
from common.ring import Node
from common.ringbuild import first_ring
from common.ringstore import FileStore
from common.series import parse_key
from tests.support import Children, free_port, free_port_range, require_part, wait_until
from workers.bridge.deadletter import Record, files, read
from workers.broker import mosquitto_configuration

CLUSTER = "test"
POINT = b'{"device_id":"d%d","metric_name":"m","timestamp":%d,"value":%f}'
HOLD = Ack(-1)
# Settings of a place whose node is to keep its acks: they withhold PUBACKs, and the node is neither late nor, when
# this process has no turn for a while, silent; else its points are spooled, and acknowledged.
PATIENT = {"bridge__ack_timeout_s": "120", "bus__heartbeat_s": "1"}
Row = tuple[str, str, int, float]  # device, metric, time_ns, value


class FakeNode:
    """A storage node in a thread, over real sockets: stores in memory, acks, and misbehaves on request.

    holding: while true, batches are taken but not answered. judge: gives the
    ack for a batch's rows, None for the usual one, HOLD for none now. heard: the last beat; heard_of: of each bridge.
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self._lock = threading.Lock()  # guards _stored
        self._stored: Counter[Row] = Counter()
        self.holding = False
        self.judge: Callable[[list[Row]], Ack | None] = lambda rows: None
        self.heard: Beat | None = None
        self.heard_of: dict[str, Beat] = {}
        self.held: list[tuple[Header, list[Row]]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def stored(self) -> Counter[Row]:
        """How often each row was acked."""
        with self._lock:
            return self._stored.copy()

    @property
    def count(self) -> int:
        """How many different rows were acked."""
        return len(self._stored)

    def stop(self) -> None:
        """End the thread and its sockets; what was stored stays known."""
        self._stop.set()
        self._thread.join()

    def start_again(self) -> None:
        """A new process on the same port: another incarnation."""
        self.stop()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        own_bus = bus.Bus()
        pull, _ = own_bus.pull(self.node.ingest_endpoint)
        poller = bus.Poller([pull])
        self._incarnation = random.getrandbits(62) | 1
        self._acks: dict[str, bus.Socket] = {}
        self.held = []
        while not self._stop.is_set():
            poller.poll(0.02)
            while (frames := pull.receive()) is not None:
                self._take(own_bus, frames)
            if not self.holding:
                self.held = [(header, rows) for header, rows in self.held if not self._store(own_bus, header, rows)]
        own_bus.close()

    def _take(self, own_bus: bus.Bus, frames: list[bytes]) -> None:
        message = protocol.unpack(frames)
        if protocol.mismatch(message.header, CLUSTER, self.node.id, self._incarnation):
            return
        if message.kind == protocol.BEAT:
            self.heard = self.heard_of[message.header.sender] = protocol.decode_body(message.body, Beat)
            self._answer(own_bus, message.header, protocol.BEAT_ACK, {})
            return
        points = PointBatch.decode(message.body)
        names = [parse_key(key) for key in points.keys]
        rows = [
            (names[index].device_id, names[index].metric_name, time_ns, value)
            for index, time_ns, value in zip(
                points.index.tolist(), points.times.tolist(), points.values.tolist(), strict=True
            )
        ]
        self.held.append((message.header, rows))

    def _store(self, own_bus: bus.Bus, header: Header, rows: list[Row]) -> bool:
        """Store and answer a batch; whether that was done."""
        ack = self.judge(rows) or Ack(len(rows))
        if ack is HOLD:
            return False
        refused = {row for row, _ in ack.refused}
        if not ack.error:
            with self._lock:
                self._stored.update(row for at, row in enumerate(rows) if at not in refused)
        self._answer(own_bus, header, protocol.ACK, ack)
        return True

    def _answer(self, own_bus: bus.Bus, to: Header, kind: bytes, body: Any) -> None:
        if to.reply_to not in self._acks:
            self._acks[to.reply_to] = own_bus.push_acks(to.reply_to)
        header = Header(
            1, CLUSTER, to.sender, self.node.id, self._incarnation, 1, to.epoch, to.ring_hash,
            re=to.sequence, re_incarnation=to.incarnation,
        )  # fmt: skip
        self._acks[to.reply_to].send(protocol.pack(kind, header, body))


class Place:
    """A scratch cluster: a ring of fake nodes, mosquitto's port, and the settings of the bridge."""

    def __init__(self, directory: Path, children: Children, nodes: int = 2, **settings: str) -> None:
        """settings: overrides, such as bridge__linger_ms="0"."""
        self.directory = directory
        self.children = children
        self.mqtt_port = free_port()
        members = [
            Node(f"n{n}", "", f"tcp://127.0.0.1:{free_port_range(3)}", "z", 1.0, "active") for n in range(nodes)
        ]
        ring = first_ring(CLUSTER, members, 16, 1)
        FileStore(directory / "ring.json").save(ring, 0)
        self.nodes = [FakeNode(member) for member in ring.nodes]
        self.settings = {"mqtt__reconnect_max_s": "0.5", "bridge__ack_timeout_s": "1.0"} | settings
        self.conf = directory / "minitrue.toml"
        self.conf.write_text(
            f'[paths]\ndata = "{directory}"\n[cluster]\nring_store = "file:{directory}/ring.json"\nring_poll_s = 0.1\n'
            f'[mqtt]\nurl = "mqtt://127.0.0.1:{self.mqtt_port}"\nclient_id = "bridge-under-test"\n'
            "[bus]\nheartbeat_s = 0.2\n"
        )

    def start_mosquitto(self, before: str = "", behind: str = "") -> subprocess.Popen[Any]:
        """mosquitto as the broker worker configures it; state in the directory, so it can be restarted.

        before, behind: lines to add to its configuration.
        """
        binary = require_part("mosquitto")
        home = self.directory / "broker"
        home.mkdir(exist_ok=True)
        mqtt = config.Mqtt(url=f"mqtt://127.0.0.1:{self.mqtt_port}")
        (home / "mosquitto.conf").write_text(before + mosquitto_configuration(home, mqtt) + behind)
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        child = self.children.start(binary, "-c", home / "mosquitto.conf", **quiet)
        wait_until(self._listening, what="mosquitto listens")
        return child

    def start_embedded_broker(self) -> subprocess.Popen[Any]:
        """The broker worker, embedded."""
        child = self.children.start(
            sys.executable, "-m", "workers.broker", "--config", self.conf,
            env={"PATH": "/usr/bin:/bin", "MINITRUE__MQTT__BROKER": "embedded"}, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wait_until(self._listening, what="the embedded broker listens")
        return child

    def start_bridge(self, *arguments: str, **options: Any) -> subprocess.Popen[Any]:
        """The bridge in a process of its own; its log is in bridge.log."""
        environment = {f"MINITRUE__{name.upper()}": value for name, value in self.settings.items()}
        with (self.directory / "bridge.log").open("a") as log:
            return self.children.start(
                sys.executable, "-m", "workers.bridge", "--config", self.conf, *arguments,
                env={"PATH": "/usr/bin:/bin"} | environment, stderr=log, **options,
            )  # fmt: skip

    def start(self) -> subprocess.Popen[Any]:
        """Broker and bridge, the bridge subscribed."""
        self.start_mosquitto()
        child = self.start_bridge()
        self.wait_subscribed()
        return child

    def wait_subscribed(self) -> None:
        """Until the bridge says that the broker granted its subscriptions."""

        def subscribed() -> bool:
            mqtt = self.mqtt()
            return mqtt["connected"] and None not in mqtt["subscriptions"].values()

        wait_until(subscribed, what="subscribed")

    def mqtt(self) -> dict[str, Any]:
        """The MQTT part of the status."""
        return dict(self.status()["mqtt"])

    def status(self) -> dict[str, Any]:
        """What the bridge last told a node of itself; nothing of note before the first beat."""
        heard = [node.heard for node in self.nodes if node.heard is not None]
        if not heard:
            mqtt = {"subscriptions": {"": None}, "connected": False, "pending_messages": 0, "connects": 0}
            return {"mqtt": mqtt, "messages": 0}
        return max(heard, key=lambda beat: (beat.started_s, beat.status["messages"])).status

    def status_of(self, bridge: str) -> dict[str, Any]:
        """What one of several bridges last told of itself; nothing of note before that."""
        heard = [node.heard_of[bridge] for node in self.nodes if bridge in node.heard_of]
        empty = {"mqtt": {"connected": False, "subscriptions": {"": None}, "taken_over": 0, "pending_messages": 0}}
        return max(heard, key=lambda beat: (beat.started_s, beat.status["messages"])).status if heard else empty

    def stored(self) -> Counter[Row]:
        """Rows and how often each was acked, over all nodes."""
        return sum((node.stored for node in self.nodes), Counter())

    def count(self) -> int:
        """How many different rows were acked; each row has one owner."""
        return sum(node.count for node in self.nodes)

    def dead(self) -> list[Record]:
        """The bridge's dead letters."""
        directory = self.directory / "bridge" / "bridge1" / "deadletter"
        return [found.record for path in files(directory) for found in read(path)]

    def log(self) -> str:
        """What the bridge has logged."""
        return (self.directory / "bridge.log").read_text()

    def stop_nodes(self) -> None:
        """End the fake nodes."""
        for node in self.nodes:
            node.stop()

    def _listening(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.mqtt_port)).close()
        except OSError:
            return False
        return True


class Publisher:
    """QoS 1 over a raw socket, so that a test knows what the broker has acknowledged. Resends over reconnections."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._wire: socket.socket | None = None

    def publish_all(self, payloads: list[tuple[str, bytes]], window: int = 1000, retain: bool = False) -> None:
        """Publish until the broker has acknowledged each of them, whatever happens to it meanwhile."""
        left = dict(enumerate(payloads))
        while left:
            try:
                self._some(left, window, retain)
            except OSError:
                time.sleep(0.05)

    def _some(self, left: dict[int, tuple[str, bytes]], window: int, retain: bool) -> None:
        with socket.create_connection(("127.0.0.1", self._port), timeout=5) as wire:
            wire.sendall(bytes.fromhex("100e00044d5154540402003c00027075"))  # CONNECT, clean session, client id "pu"
            acks = wire.makefile("rb")
            if acks.read(4)[:1] != b"\x20":
                raise ConnectionError("no CONNACK")
            numbers = list(left)
            for begin in range(0, len(numbers), window):
                chunk = numbers[begin : begin + window]
                wire.sendall(b"".join(frame(at + 1, *left[n], retain=retain) for at, n in enumerate(chunk)))
                for _ in chunk:
                    answer = acks.read(4)
                    if answer[:2] != b"\x40\x02":
                        raise ConnectionError("no PUBACK")
                    del left[chunk[struct.unpack("!H", answer[2:])[0] - 1]]


def frame(packet_id: int, topic: str, payload: bytes, retain: bool = False) -> bytes:
    """A PUBLISH packet of MQTT v3.1.1 at QoS 1."""
    name = topic.encode()
    body = struct.pack("!H", len(name)) + name + struct.pack("!H", packet_id) + payload
    return bytes([0x32 | retain]) + variable(len(body)) + body


def variable(value: int) -> bytes:
    """MQTT's variable byte integer."""
    digits = bytearray()
    while True:
        value, digit = value >> 7, value & 0x7F
        digits.append(digit | (0x80 if value else 0))
        if not value:
            return bytes(digits)


def numbered(count: int, devices: int = 20, start: int = 0) -> list[tuple[str, bytes]]:
    """Messages of one point each, all different."""
    return [
        (f"sensors/d{n % devices}", POINT % (n % devices, n, n / 4))
        for n in range(start, start + count)
    ]


def rows(count: int, devices: int = 20, start: int = 0) -> set[Row]:
    """What `numbered` should have been stored as."""
    return {(f"d{n % devices}", "m", n * 10**9, n / 4) for n in range(start, start + count)}


def kill(child: subprocess.Popen[Any]) -> None:
    """kill -9, and wait for the end."""
    child.send_signal(signal.SIGKILL)
    child.wait()

