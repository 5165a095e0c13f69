"""Numbered messages at QoS 1, and what has to become of them.

`Flow` publishes and keeps its own record: what it made, what the broker acknowledged to it, what may have been sent
twice. `check_stored` and `check_dead` compare that with what nodes and dead letters hold. Values are eighths, so that
sums are exact.
"""

import json
import random
import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Final

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from common.errors import MinitrueError
from common.protocol import AggregateReply
from tests.cluster import Cluster, Series
from tests.support import wait_until

BASE_NS: Final = 1_700_000_000 * 10**9
WINDOW: Final = 200  # unacknowledged messages at a time
OUTSTANDING: Final = 2000  # beyond this the flow waits: what it still makes while the broker is away
_BAD: Final = re.compile(rb"bad-(\d+)")

Points = dict[Series, dict[int, float]]  # time in nanoseconds to value


class Flow:
    """Publishes numbered messages of points through a port, over one session that outlives cuts.

    points: what is to be stored. bad: payloads, or elements of such, that are to be refused, by number. unsure:
    those of them that may have reached the broker twice, because a connection ended before their PUBACK.
    """

    def __init__(self, port: int, seed: int = 0, devices: int = 20, bad_every: int = 0, prefix: str = "dev") -> None:
        """bad_every: about one message in so many has something bad in it. 0: none."""
        self.points: Points = defaultdict(dict)
        self.bad: dict[int, bytes] = {}
        self.unsure: set[int] = set()
        self.messages = 0
        self.connects = 0
        self._rng = random.Random(seed)
        self._bad_every = bad_every
        self._names = [f"{prefix}{number}" for number in range(devices)]
        self._numbers = 0
        self._lock = threading.Lock()  # guards _waiting, _early and unsure
        self._waiting: dict[int, list[int]] = {}  # message id to the numbers of what is bad in it
        self._early: set[int] = set()  # acknowledged before `send` knew their id
        self._is_running = False
        self._thread: threading.Thread | None = None
        self._client = self._connected(port, f"flow-{prefix}-{seed}")

    def _connected(self, port: int, name: str) -> paho.Client:
        client = paho.Client(CallbackAPIVersion.VERSION2, name, clean_session=False)
        client.max_inflight_messages_set(WINDOW)
        client.reconnect_delay_set(0.1, 0.5)
        client.on_publish = lambda client, data, mid, reason, rest: self._acked(mid)
        client.on_disconnect = lambda *rest: self._hung_up()
        client.on_connect = lambda *rest: self._count_connect()
        client.connect("127.0.0.1", port, keepalive=5)
        client.loop_start()
        return client

    # Publishing

    def send(self, count: int = 1, device: str = "", points: int = 0) -> None:
        """Publish some messages. device: of all points in them; points: how many in each, 0 for some."""
        for _ in range(count):
            bad, payload = self._make(device, points)
            sent = self._client.publish(f"sensors/{self.messages % 7}", payload, qos=1)
            with self._lock:  # not before: paho calls us back under locks of its own
                if sent.mid in self._early:
                    self._early.remove(sent.mid)
                else:
                    self._waiting[sent.mid] = bad
            self.messages += 1

    def start(self, rate: float) -> "Flow":
        """Publish at a rate, in a thread, until `stop`."""
        self._is_running = True
        self._thread = threading.Thread(target=self._run, args=(rate,), daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Make no more messages."""
        self._is_running = False
        if self._thread is not None:
            self._thread.join(30)

    def close(self) -> None:
        self.stop()
        self._client.disconnect()
        self._client.loop_stop()

    @property
    def unacked(self) -> int:
        """Messages without PUBACK."""
        return len(self._waiting)

    def wait_acked(self, timeout_s: float = 30.0) -> None:
        """Wait until the broker has acknowledged every message to us."""
        wait_until(lambda: not self._waiting, timeout_s, f"PUBACKs from the broker, {self.unacked} are missing")

    def _run(self, rate: float) -> None:
        begun, made = time.monotonic(), 0
        while self._is_running:
            due = int((time.monotonic() - begun) * rate)
            if due > made and self.unacked < OUTSTANDING:
                self.send(min(due - made, 50))
            made = due
            time.sleep(0.01)

    # Payloads

    def _make(self, device: str, points: int) -> tuple[list[int], bytes]:
        count = points or self._rng.choice((1, 1, 1, 2, 5, 10))
        if self._bad_every and not self._rng.randrange(self._bad_every):
            return self._make_bad(device, count)
        return [], self._good(device, count)

    def _good(self, device: str, count: int) -> bytes:
        made = [self._point(device) for _ in range(count)]
        return json.dumps(made[0] if count == 1 else made).encode()

    def _make_bad(self, device: str, count: int) -> tuple[list[int], bytes]:
        number = self._numbers = self._numbers + 1
        name = f"bad-{number}"
        element = self._rng.choice(
            (
                {"device_id": "d", "metric_name": "m", "timestamp": 1, "value": name},
                {"device_id": 7, "metric_name": name, "timestamp": 1, "value": 1},
                {"device_id": name, "metric_name": "m", "timestamp": -5, "value": 1},
            )
        )
        if count > 1:  # one element of an array: the others are stored
            self.bad[number] = json.dumps(element).encode()
            elements: list[Any] = [self._point(device) for _ in range(count)]
            elements.insert(self._rng.randrange(count + 1), element)
            return [number], json.dumps(elements).encode()
        self.bad[number] = f"{name} is no JSON".encode() if number % 2 else json.dumps(element).encode()
        return [number], self.bad[number]

    def _point(self, device: str) -> dict[str, Any]:
        number = self._numbers = self._numbers + 1
        name = device or self._names[number % len(self._names)]
        time_ns = BASE_NS + number * 10**6
        self.points[name, "m"][time_ns] = number / 8
        return {
            "device_id": name, "metric_name": "m", "timestamp": time_ns, "timestamp_unit": "ns", "value": number / 8,
        }  # fmt: skip

    # In paho's thread

    def _acked(self, mid: int) -> None:
        with self._lock:
            if self._waiting.pop(mid, None) is None:
                self._early.add(mid)

    def _hung_up(self) -> None:
        with self._lock:
            for numbers in self._waiting.values():
                self.unsure.update(numbers)

    def _count_connect(self) -> None:
        self.connects += 1


# What became of them


def wanted(values: Mapping[int, float]) -> tuple[int, float, float, float]:
    """Count, sum, smallest and largest value of points."""
    return len(values), sum(values.values()), min(values.values()), max(values.values())


def found(reply: AggregateReply) -> tuple[int, float, float, float]:
    """The same of what a node holds."""
    return reply.count, reply.sum_hi + reply.sum_lo, reply.min, reply.max


def missing(cluster: Cluster, points: Points, nodes: Iterable[str] = ()) -> str:
    """What some nodes (none named: all) lack of the series that they own, as text; "" when they hold every point.

    Fails at once where they hold more than that, or something else.
    """
    lacks = Counter[str]()
    for node in nodes or cluster.nodes:
        mine = [series for series in points if node in cluster.owners(series)]
        try:
            replies = cluster.held(node, mine)
        except MinitrueError as error:
            return f"{node}: {error}"
        for series, reply in replies.items():
            want, have = wanted(points[series]), found(reply)
            assert have[0] <= want[0], f"{node} holds more of {series} than was published: {have}, want {want}"
            if have[0] < want[0]:
                lacks[node] += want[0] - have[0]
            else:
                assert have == want, f"{node} holds other values of {series}: {have}, want {want}"
    return ", ".join(f"{node} lacks {count}" for node, count in lacks.items())


def check_stored(
    cluster: Cluster, points: Points, timeout_s: float = 60.0, nodes: Iterable[str] = ()
) -> None:
    """Wait until every owner holds every point exactly once, with its value."""
    chosen = list(nodes)
    last = ""

    def is_whole() -> bool:
        nonlocal last
        last = missing(cluster, points, chosen)
        return not last

    try:
        wait_until(is_whole, timeout_s, "every point to be stored")
    except BaseException as failure:
        raise AssertionError(f"{last}; of {sum(map(len, points.values()))} points; logs in {cluster.logs}") from failure


def check_settled(cluster: Cluster, timeout_s: float = 60.0) -> None:
    """Wait until no bridge owes anything: no message without PUBACK, no spool, no mark."""
    for name in cluster.bridges:
        wait_until(lambda name=name: _owes_nothing(cluster, name), timeout_s, f"{name} to owe nothing")
    wait_until(lambda: not cluster.marks(), timeout_s, "the marks to go")


def _owes_nothing(cluster: Cluster, bridge: str) -> bool:
    status = cluster.status(bridge)
    return (
        bool(status)
        and status["mqtt"]["pending_messages"] == 0
        and status["memory_bytes"] == 0
        and not cluster.bridges[bridge].spool_files()
    )


def check_dead(cluster: Cluster, flow: Flow) -> None:
    """Everything refused lies in a dead letter once, byte for byte, and nothing else does.

    What may have reached the broker twice may lie there twice: to the broker, and so to the bridges, these are two
    messages.
    """
    dead: dict[int, list[bytes]] = defaultdict(list)
    for bridge in cluster.bridges.values():
        for record in bridge.dead():
            match = _BAD.search(record.payload)
            assert match, f"{bridge.name} refused what was good: {record}"
            dead[int(match[1])].append(record.payload)
    assert sorted(dead) == sorted(flow.bad)
    for number, payloads in dead.items():
        assert set(payloads) == {flow.bad[number]}
        assert len(payloads) == 1 or number in flow.unsure, f"{len(payloads)} dead letters of {payloads[0]!r}"


def check_talks(cluster: Cluster) -> None:
    """Every PUBACK belongs to a message that was delivered on the same connection, in order of receipt."""
    for bridge in cluster.bridges.values():
        for number, talk in enumerate(bridge.talks):
            assert not talk.unexplained(), f"{bridge.name}, connection {number}: {talk.unexplained()[:20]}"
