"""A bridge's delivery among simulated owners: no socket, and a clock that the test turns."""

import itertools
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from common import config, protocol
from common.points import PointBatch
from common.protocol import Ack, Header
from common.ring import Node, Ring
from common.series import partition_of, series_key
from workers.bridge.batch import Batch, Message
from workers.bridge.delivery import Delivery
from workers.bridge.payload import Place

PARTITIONS = 8
ME = 42
KEYS = [series_key(f"d{n}", "m") for n in range(40)]
PLACES = [Place(key, partition_of(key, PARTITIONS)) for key in KEYS]


def ring(
    epoch: int, owners: Sequence[Sequence[int]], nodes: int = 3, since: int | None = None, base: int = 5000
) -> Ring:
    """owners: by partition, cycled. since: of every partition, the epoch if None."""
    members = tuple(Node(f"n{n}", "", f"tcp://127.0.0.1:{base + 3 * n}", "z", 1.0, "active") for n in range(nodes))
    width = max(len(row) for row in owners)
    rows = [list(row) + [-1] * (width - len(row)) for row in itertools.islice(itertools.cycle(owners), PARTITIONS)]
    table = np.array(rows, dtype=np.int32)
    return Ring("c", epoch, PARTITIONS, width, members, table, np.full(PARTITIONS, since or epoch, dtype=np.int64))


class Owner:
    """A node as the bridge sees it: a link that records, and answers when told to."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.accepts = True
        self.closed = False
        self.sent: list[protocol.Message] = []
        self.incarnation = 100

    def send(self, frames: Sequence[bytes]) -> bool:
        assert not self.closed
        if self.accepts:
            self.sent.append(protocol.unpack(frames))
        return self.accepts

    def close(self) -> None:
        self.closed = True

    def take(self, kind: bytes) -> list[protocol.Message]:
        found = [message for message in self.sent if message.kind == kind]
        self.sent = [message for message in self.sent if message.kind != kind]
        return found


class World:
    """A Delivery, its owners, and the clock."""

    def __init__(self, first: Ring, **bridge: Any) -> None:
        self.now = 1000.0
        self.owners: dict[str, Owner] = {}
        self.refused: list[tuple[bytes, str]] = []
        self.refused_whole: list[tuple[bytes, str]] = []
        self.latencies: list[float] = []
        settings = config.Settings(bridge=config.Bridge(**({"linger_ms": 0.0} | bridge)))
        self.delivery = Delivery(
            settings, ME, first, self._connect, self._refuse, self._refuse_whole, self.latencies.append
        )
        self.delivery.reply_to = "tcp://127.0.0.1:9"

    def _connect(self, endpoint: str) -> Owner:
        owner = self.owners[f"n{(int(endpoint.rpartition(':')[2]) - 5000) % 1000 // 3}"] = Owner(endpoint)
        return owner

    def _refuse(self, batch: Batch, rows: Sequence[tuple[int, str]]) -> None:
        self.refused += [(batch.origin.message(row).topic, reason) for row, reason in rows]

    def _refuse_whole(self, batch: Batch, reason: str) -> None:
        self.refused_whole.append((batch.body, reason))

    def tick(self, seconds: float = 0.0) -> None:
        self.now += seconds
        self.delivery.flush(self.now)
        self.delivery.tick(self.now, lambda: msgspec.msgpack.encode({}))

    def answer(self, node: str, kind: bytes, to: Header, body: Any, **wrong: Any) -> None:
        header = Header(
            1, to.cluster, to.sender, node, self.owners[node].incarnation, 1, to.epoch, to.ring_hash,
            re=to.sequence, re_incarnation=to.incarnation,
        )  # fmt: skip
        self.delivery.receive(protocol.pack(kind, msgspec.structs.replace(header, **wrong), body), self.now)

    def beat(self, *nodes: str) -> None:
        """Have nodes answer the beats that they hold."""
        for node in nodes or self.owners:
            for message in self.owners[node].take(protocol.BEAT):
                self.answer(node, protocol.BEAT_ACK, message.header, {})

    def start(self) -> "World":
        self.tick()
        self.beat()
        return self

    def publish(self, *series: int, time_ns: int = 1) -> Message:
        message = Message(0x32, b"\0\1", b"t%d" % series[0])
        self.delivery.add(message, [(PLACES[n], time_ns, float(n)) for n in series])
        return message

    def batches(self, node: str) -> list[protocol.Message]:
        return self.owners[node].take(protocol.BATCH)

    def ack(self, node: str, message: protocol.Message, **ack: Any) -> None:
        rows = len(PointBatch.decode(message.body))
        self.answer(node, protocol.ACK, message.header, Ack(**({"rows": rows} | ack)))

    def ack_all(self) -> None:
        for node in self.owners:
            for message in self.batches(node):
                self.ack(node, message)

    def keep_up(self, seconds: float, step: float = 0.5) -> None:
        """Let time pass while every node answers its beats."""
        for _ in range(round(seconds / step)):
            self.tick(step)
            self.beat()


def owner_of(number: int, owners: int = 3) -> str:
    return f"n{PLACES[number].partition % owners}"


def keys_in(message: protocol.Message) -> set[bytes]:
    return set(PointBatch.decode(message.body).keys)


ONE_OWNER = [[0], [1], [2]]
