"""A bridge's delivery among simulated owners: no socket, a clock that the test turns, and spools on a real disk."""

import errno
import itertools
import math
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from common import clock, config, protocol
from common.errors import RingStoreError
from common.points import PointBatch
from common.protocol import Ack, Header
from common.ring import Node, Ring
from common.ringstore import FileStore, Mark
from common.series import partition_of, series_key
from tests.disks import QuickDisk
from workers.bridge.batch import Batch, Message
from workers.bridge.delivery import Delivery
from workers.bridge.payload import Place
from workers.bridge.spool import Spools

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

    def __init__(self, endpoint: str, incarnation: int) -> None:
        self.endpoint = endpoint
        self.accepts = True
        self.closed = False
        self.sent: list[protocol.Message] = []
        self.incarnation = incarnation

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


class Moods(QuickDisk):
    """A disk that takes nothing while it is broken."""

    def __init__(self) -> None:
        self.broken = False

    def create(self, path: Path, mode: int = 0o644, exclusive: bool = False) -> int:
        self._check()
        return super().create(path, mode, exclusive)

    def write(self, descriptor: int, data: Any) -> None:
        self._check()
        super().write(descriptor, data)

    def sync_data(self, descriptor: int) -> None:
        self._check()

    def _check(self) -> None:
        if self.broken:
            raise OSError(errno.ENOSPC, "No space left on device")


class Marks(FileStore):
    """A ring store that cannot be reached while it is away."""

    away = False

    def put_mark(self, mark: Mark) -> None:
        if self.away:
            raise RingStoreError("etcd: no quorum")
        super().put_mark(mark)

    def remove_mark(self, mark: Mark) -> None:
        if self.away:
            raise RingStoreError("etcd: no quorum")
        super().remove_mark(mark)


class World:
    """A Delivery, its owners, its spools on a disk that may fail, and the clock."""

    def __init__(self, first: Ring, spool_bytes: int = 1 << 20, **bridge: Any) -> None:
        """spool_bytes: 0 for spools that take nothing."""
        self.now = clock.monotonic_s() + 1000.0  # ahead of the clock that spools look at when they begin
        self.owners: dict[str, Owner] = {}
        self.refused: list[tuple[bytes, str]] = []
        self.refused_whole: list[tuple[bytes, str]] = []
        self.latencies: list[float] = []
        self.hurried = 0
        self.confirmed_s = math.inf  # when the bridge saw last that it goes by the ring store's ring
        self.directory = Path(tempfile.mkdtemp(prefix="delivery-"))
        weakref.finalize(self, shutil.rmtree, self.directory, ignore_errors=True)
        self.disk = Moods()
        self.store = Marks(self.directory / "ring.json", self.disk)
        self._spool_bytes = spool_bytes
        self._settings = config.Settings(bridge=config.Bridge(**({"linger_ms": 0.0} | bridge)))
        self.begin(first)

    def begin(self, ring: Ring) -> None:
        """A bridge's process starts on what the one before left on the disk."""
        self.spools = Spools(
            self.directory / "spool", self.store, self._settings.bridge.id, self._spool_bytes, disk=self.disk,
            confirmed_s=lambda: self.confirmed_s, hurry=self._hurry,
        )  # fmt: skip
        self.delivery = Delivery(
            self._settings,
            ME,
            ring,
            self._connect,
            self.spools,
            self._refuse,
            self._refuse_whole,
            self.now,
            self.latencies.append,
            self._hurry,
        )
        self.delivery.reply_to = "tcp://127.0.0.1:9"

    def _hurry(self) -> None:
        self.hurried += 1

    def _connect(self, endpoint: str) -> Owner:
        node = f"n{(int(endpoint.rpartition(':')[2]) - 5000) % 1000 // 3}"
        incarnation = self.owners[node].incarnation if node in self.owners else 100
        owner = self.owners[node] = Owner(endpoint, incarnation)
        return owner

    def _refuse(self, batch: Batch, rows: Sequence[tuple[int, str]]) -> None:
        self.refused += [(batch.origin.message(row).topic, reason) for row, reason in rows]

    def _refuse_whole(self, batch: Batch, reason: str) -> None:
        self.refused_whole.append((batch.body, reason))

    def tick(self, seconds: float = 0.0) -> None:
        self.now += seconds
        self.delivery.flush(self.now)
        self.delivery.tick(self.now, lambda: msgspec.msgpack.encode({}))
        self.spools.flush(self.now)
        self.spools.tick(self.now)

    def answer(self, node: str, kind: bytes, to: Header, body: Any, **wrong: Any) -> None:
        header = Header(
            1, to.cluster, to.sender, node, self.owners[node].incarnation, 1, to.epoch, to.ring_hash,
            re=to.sequence, re_incarnation=to.incarnation,
        )  # fmt: skip
        self.delivery.receive(protocol.pack(kind, msgspec.structs.replace(header, **wrong), body), self.now)

    def beat(self, *nodes: str) -> None:
        """Have nodes answer the beats that they hold."""
        for node in nodes or list(self.owners):
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

    def keep_up(self, seconds: float, *nodes: str, step: float = 0.5) -> None:
        """Let time pass while these nodes answer their beats, or every node."""
        for _ in range(round(seconds / step)):
            self.tick(step)
            self.beat(*nodes)

    def silence(self, *nodes: str) -> None:
        """Let time pass until these nodes, which answer nothing, are down; the others answer their beats."""
        others = [node for node in self.owners if node not in nodes]
        for _ in range(8):
            self.tick(0.5)
            if others:
                self.beat(*others)
        assert all(self.state(node) == "down" for node in nodes)

    def state(self, node: str) -> str:
        return self.delivery.states[node]


def owner_of(number: int, owners: int = 3) -> str:
    return f"n{PLACES[number].partition % owners}"


def keys_in(message: protocol.Message) -> set[bytes]:
    return set(PointBatch.decode(message.body).keys)


ONE_OWNER = [[0], [1], [2]]
