"""A cluster of real workers, each started, killed, frozen and watched by the test, a proxy in every connection.

    publishers --- broker --- bridge ---(ingest)--- storage ---(requests)--- query
                                  +---(acks)---+

The ring names the proxies of the storage nodes; a bridge names its ack proxy; the files lie in one directory.
"""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import msgpack
import numpy as np

from common import bus, config, protocol
from common.errors import MinitrueError
from common.ring import Node, Ring
from common.ringbuild import first_ring
from common.ringstore import FileStore, Mark, RingStore
from common.series import partition_of, series_key
from tests.brokers import BrokerProcess
from tests.etcds import Etcd
from tests.proxy import Proxy
from tests.support import Children, free_port, free_port_range, wait_until
from tests.tap import Talk
from workers.bridge import deadletter

PARTITIONS: Final = 64
PORTS: Final = 3  # of a storage node

# Quick to see that somebody is away, so that a test need not wait long.
QUICK: Final = {"bus.heartbeat_s": 0.2, "bridge.ack_timeout_s": 1.5, "cluster.ring_poll_s": 0.1}

Series = tuple[str, str]  # device and metric


class Worker:
    """A process that may be killed, frozen and started again. Its output goes to a log file."""

    def __init__(self, cluster: "Cluster", name: str, command: list[str], settings: Mapping[str, Any]) -> None:
        self.name = name
        self.is_frozen = False
        self._cluster = cluster
        self._command = command
        self._within: list[str] = []  # what runs the command, where that is not this machine as it is
        self._environment = environment(settings)
        self.process: subprocess.Popen[Any] | None = None

    @property
    def is_up(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self, **options: Any) -> None:
        """Start it, and wait for nothing. options: those of Popen."""
        assert not self.is_up, f"{self.name} runs"
        with self._cluster.log_file(self.name).open("ab") as log:
            environment = os.environ | self._cluster.environment | self._environment
            command = [*self._within, sys.executable, "-m", *self._command]
            self.process = self._cluster.children.start(
                *command, env=environment, stdout=log, stderr=subprocess.STDOUT, **options
            )

    def configure(self, settings: Mapping[str, Any]) -> None:
        """Other settings from its next start on."""
        self._environment |= environment(settings)

    def skew(self, seconds: float) -> None:
        """A wall clock that is so far ahead, from its next start on."""
        self._command = ["tests.skewed", str(seconds), *self._command]

    def signal(self, number: int) -> None:
        assert self.process is not None and self.process.poll() is None, self._cluster.blame(self.name)
        os.kill(self.process.pid, number)

    def revive(self) -> None:
        """Start it again, as supervisord does, if libzmq has aborted it: connections that are reset at the wrong moment
        make it do so now and then (an assertion in its stream engine), and nothing acknowledged may be lost by that.
        """
        aborted = self.process is not None and self.process.poll() == -signal.SIGABRT
        if aborted and "Assertion failed: !_io_error" in self._cluster.blame(self.name):
            warnings.warn(f"libzmq aborted {self.name}, started again", stacklevel=2)
            self.start()

    def kill(self) -> None:
        """kill -9, and wait for its end."""
        self.signal(signal.SIGKILL)
        self._end()

    def stop(self, timeout_s: float = 20.0) -> int:
        """Ask it to end; its exit code."""
        self.signal(signal.SIGTERM)
        return self._end(timeout_s)

    def freeze(self) -> None:
        self.signal(signal.SIGSTOP)
        self.is_frozen = True

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)
        self.is_frozen = False

    def _end(self, timeout_s: float = 20.0) -> int:
        assert self.process is not None
        self.is_frozen = False
        return int(self.process.wait(timeout_s))


class StorageNode(Worker):
    """ingest, requests, live: the proxies before its ports."""

    def __init__(self, cluster: "Cluster", name: str, settings: Mapping[str, Any]) -> None:
        real, shown = free_port_range(PORTS), free_port_range(PORTS)
        super().__init__(cluster, name, ["workers.storage", "--node-id", name, "--port", str(real)], settings)
        self.endpoint = f"tcp://127.0.0.1:{shown}"
        self.request_endpoint = f"tcp://127.0.0.1:{real + 1}"
        self.ingest = Proxy(real, shown)
        self.requests = Proxy(real + 1, shown + 1)
        self.live = Proxy(real + 2, shown + 2)


class BridgeWorker(Worker):
    """mqtt: the proxy before the broker, which records; acks: the one before its ack endpoint."""

    def __init__(self, cluster: "Cluster", name: str, settings: Mapping[str, Any]) -> None:
        self.port = port = free_port()
        self.mqtt = Proxy(cluster.broker.port, record=True)
        self.acks = Proxy(port)
        mine = {
            "mqtt.url": f"mqtt://127.0.0.1:{self.mqtt.port}",
            "bridge.ack_endpoint": f"tcp://127.0.0.1:{port}",
            "bridge.ack_advertised": f"tcp://127.0.0.1:{self.acks.port}",
        }
        super().__init__(cluster, name, ["workers.bridge", "--id", name], {**settings, **mine})
        self.directory = cluster.data / "bridge" / name
        self.gone: set[int] = set()  # incarnations of processes that have ended: nodes remember them for a while

    def start(self, **options: Any) -> None:
        heard = [self._cluster.node_status(node).get("bridges", {}).get(self.name) for node in self._cluster.nodes]
        self.gone |= {each["incarnation"] for each in heard if each}
        super().start(**options)

    @property
    def talks(self) -> list[Talk]:
        """What it and the broker have said, connection by connection."""
        return self.talks_from(0)

    def talks_from(self, first: int) -> list[Talk]:
        """The same without the first few connections."""
        return [Talk(bytes(each.passed["up"]), bytes(each.passed["down"])) for each in self.mqtt.passages[first:]]

    @property
    def acked(self) -> int:
        """PUBACKs that it has sent, over all connections."""
        return sum(len(talk.acked) for talk in self.talks)

    def spool_files(self) -> list[Path]:
        """Files of the spools of all owners."""
        return sorted((self.directory / "spool").glob("*/*.spool"))

    def dead(self) -> list[deadletter.Record]:
        """Everything in its dead letter."""
        files = deadletter.files(self.directory / "deadletter")
        return [found.record for path in files for found in deadletter.read(path)]


class Cluster:
    """Workers by name, and what a test wants to know of them. `close` ends everything; it may be made again in the
    same directory.
    """

    def __init__(
        self,
        children: Children,
        home: Path,
        nodes: int = 2,
        replication: int = 1,
        bridges: int = 1,
        broker: str = "mosquitto",
        settings: Mapping[str, Any] | None = None,
        query: bool = False,
        etcd: Etcd | None = None,
    ) -> None:
        """Makes files and proxies, and starts nothing. etcd: holds the ring; else a file."""
        self.children = children
        self.home = home
        self.data = home / "data"
        self.logs = home / "log"
        self.settings = {**QUICK, **(settings or {})}
        self.environment = environment(self.settings) | {"MINITRUE_CONFIG": str(home / "minitrue.toml")}
        for directory in (self.logs, self.data / "broker"):
            directory.mkdir(parents=True, exist_ok=True)
        ring_store = etcd.url if etcd else "file:data/ring.json"
        (home / "minitrue.toml").write_text(f'paths.data = "data"\ncluster.ring_store = "{ring_store}"\n')
        self.broker = BrokerProcess(children, broker, self.data, start=False, MINITRUE__LOG__LEVEL="warning")
        self.publishers = Proxy(self.broker.port)
        self.nodes = {name: self.make_node(name) for name in names("ing", nodes)}
        self.store: RingStore = etcd.store() if etcd else FileStore(self.data / "ring.json")
        self.store.save(self._first_ring(replication), 0)
        shared = {"mqtt.share_group": "chaos"} if bridges > 1 else {}
        self.bridges = {name: BridgeWorker(self, name, shared) for name in names("bridge", bridges)}
        self.key = bus.load_key(config.load(home / "minitrue.toml", self.environment))
        self.http_port = free_port()
        self.query = Worker(self, "query", ["workers.query"], {"query.port": self.http_port}) if query else None

    def make_node(self, name: str) -> StorageNode:
        return StorageNode(self, name, {})

    def _first_ring(self, replication: int) -> Ring:
        nodes = [Node(node.name, "", node.endpoint, node.name, 1.0, "active") for node in self.nodes.values()]
        return first_ring("c" * 16, nodes, PARTITIONS, replication)

    @property
    def bridge(self) -> BridgeWorker:
        """The only bridge."""
        (bridge,) = self.bridges.values()
        return bridge

    @property
    def workers(self) -> list[Worker]:
        """All but the broker."""
        return [*self.nodes.values(), *self.bridges.values(), *([self.query] if self.query else [])]

    @property
    def proxies(self) -> list[Proxy]:
        found = [self.publishers]
        for node in self.nodes.values():
            found += [node.ingest, node.requests, node.live]
        for bridge in self.bridges.values():
            found += [bridge.mqtt, bridge.acks]
        return found

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    # Beginning and end

    def start(self) -> "Cluster":
        """Start everything, and wait until it is ready."""
        self.broker.start()
        for worker in self.workers:
            worker.start()
        self.wait_ready()
        return self

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Wait until every node answers, and every bridge is subscribed and hears every node."""
        wait_until(lambda: all(self.node_status(name) for name in self.nodes), timeout_s, "storage nodes to answer")
        for name in self.bridges:
            wait_until(lambda name=name: self.hears_all(name), timeout_s, f"{name} to be ready")
        if self.query:
            wait_until(self._query_is_ready, timeout_s, "the query worker to be ready")

    def hears_all(self, bridge: str) -> bool:
        """Whether a bridge that runs is subscribed and hears every node."""
        status = self.status(bridge)
        return (
            bool(status)
            and status["mqtt"]["connected"]
            and all(owner["up"] for owner in status["owners"].values())
            and any(talk.is_subscribed for talk in self.bridges[bridge].talks[-1:])
        )

    def _query_is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(self.http + "/readyz", timeout=5) as answer:
                return bool(json.load(answer))
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    def close(self) -> None:
        """End everything: proxies here, processes with the children."""
        for worker in self.workers:
            if worker.is_frozen and worker.is_up:
                worker.thaw()
        for proxy in self.proxies:
            proxy.close()

    # Looking

    def log_file(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def log(self, name: str) -> str:
        """What a worker has logged, by all its processes."""
        file = self.log_file(name)
        return file.read_text(errors="replace") if file.exists() else ""

    def blame(self, name: str) -> str:
        """The end of a worker's log, for the text of a failure."""
        return f"{name}:\n" + "\n".join(self.log(name).splitlines()[-15:])

    def complaints(self) -> list[str]:
        """Lines of any log that no fault from outside excuses."""
        found = []
        for worker in self.workers:
            lines = self.log(worker.name).splitlines()
            found += [f"{worker.name}: {line}" for line in lines if _UNEXCUSED.search(line)]
        return found

    def ask(self, node: str, kind: bytes, body: Any, timeout_s: float = 10.0) -> protocol.Message:
        """Ask a node itself, past its proxy. Raises BusTimeout."""
        known = kind != protocol.STATUS
        cluster, destination = ("c" * 16, node) if known else ("", "")
        header = protocol.Header(1, cluster, destination, "test", 1, 1, 0, "")
        return bus.request(self.nodes[node].request_endpoint, kind, header, body, timeout_s, self.key)

    def node_status(self, node: str) -> dict[str, Any]:
        """What a node says of itself; {} where it does not answer, or opens its store."""
        worker = self.nodes[node]
        if not worker.is_up or worker.is_frozen:
            return {}
        try:
            told = self.ask(node, protocol.STATUS, {}, 1.0)
            return dict(msgpack.unpackb(told.body)) if told.kind == protocol.REPLY else {}
        except MinitrueError:
            return {}

    def status(self, bridge: str = "bridge1") -> dict[str, Any]:
        """The latest that any node has heard of the bridge's process that runs now; {} if there is nothing."""
        heard = [self.node_status(node).get("bridges", {}).get(bridge) for node in self.nodes]
        gone = self.bridges[bridge].gone
        fresh = [each for each in heard if each and each["age_s"] < 2.0 and each["incarnation"] not in gone]
        return min(fresh, key=lambda each: each["age_s"], default={})

    def marks(self) -> set[Mark]:
        """Who is behind by the ring store."""
        return set(self.store.marks())

    def has_spooled(self, bridge: str = "bridge1") -> int:
        """Bytes in a bridge's spools."""
        total = 0
        for path in self.bridges[bridge].spool_files():
            try:
                total += path.stat().st_size
            except FileNotFoundError:
                continue  # drained meanwhile
        return total

    # Points

    def owners(self, series: Series) -> list[str]:
        """The nodes that own a series by the ring of now."""
        ring = self._ring()
        return [node.id for node in ring.owners(partition_of(series_key(*series), ring.partitions))]

    def device_of(self, node: str, metric: str = "m", avoid: Iterable[str] = ()) -> str:
        """A device whose series has this first owner."""
        for number in range(10_000):
            owners = self.owners((f"at{number}", metric))
            if owners[0] == node and f"at{number}" not in avoid:
                return f"at{number}"
        raise AssertionError(f"{node} owns nothing")

    def held(self, node: str, series: Iterable[Series]) -> dict[Series, protocol.AggregateReply]:
        """What a node itself holds of series that it owns."""
        wanted = list(series)
        replies = self.asked(node, [self.request(each) for each in wanted])
        return dict(zip(wanted, replies, strict=True))

    def asked(self, node: str, requests: list[protocol.AggregateRequest]) -> list[protocol.AggregateReply]:
        """A node's answers to aggregate requests for partitions that it owns; waits for it to adopt the ring."""
        wait_until(lambda: self.node_status(node).get("epoch") == self.epoch, 30, f"{node} to adopt the ring")
        body = self.ask(node, protocol.AGGREGATES, protocol.AggregatesRequest(requests)).body
        outcomes = protocol.decode_body(body, protocol.AggregatesReply).outcomes
        replies = []
        for request, outcome in zip(requests, outcomes, strict=True):
            reply = outcome.reply or self._ask_alone(node, request)
            assert reply.partitions == request.partitions, f"{node} does not answer for {request}"
            replies.append(reply)
        return replies

    def _ask_alone(self, node: str, request: protocol.AggregateRequest) -> protocol.AggregateReply:
        message = self.ask(node, protocol.AGGREGATE, request)
        assert message.kind == protocol.REPLY, message
        return protocol.decode_body(message.body, protocol.AggregateReply)

    def request(
        self, series: Series, start_ns: int | None = None, end_ns: int | None = None
    ) -> protocol.AggregateRequest:
        """What asks an owner for one series."""
        ring = self._ring()
        partition = partition_of(series_key(*series), ring.partitions)
        bits = protocol.bitmap([partition], ring.partitions)
        return protocol.AggregateRequest(bits, *series, None, start_ns, end_ns)

    # The ring

    def _ring(self) -> Ring:
        ring = self.store.load()
        assert ring is not None
        return ring

    @property
    def epoch(self) -> int:
        return self._ring().epoch

    def swap_owners(self, one: str, other: str) -> int:
        """Save a ring in which two nodes have changed places in every partition; its epoch. Moves no points."""
        ring = self._ring()
        at = {node.id: number for number, node in enumerate(ring.nodes)}
        table = ring.owner_table.copy()
        table[ring.owner_table == at[one]] = at[other]
        table[ring.owner_table == at[other]] = at[one]
        return self._save(ring, ring.nodes, table)

    def remove_node(self, name: str, heir: str) -> int:
        """Save a ring without a node, whose partitions another one has; its epoch. Moves no points."""
        ring = self._ring()
        at = {node.id: number for number, node in enumerate(ring.nodes)}
        table = ring.owner_table.copy()
        table[table == at[name]] = at[heir]
        table[table > at[name]] -= 1
        return self._save(ring, tuple(node for node in ring.nodes if node.id != name), table)

    def _save(self, ring: Ring, nodes: tuple[Node, ...], table: np.ndarray) -> int:
        names = [[node.id for node in some] for some in (ring.nodes, nodes)]
        changed = [
            [names[0][at] for at in before if at >= 0] != [names[1][at] for at in after if at >= 0]
            for before, after in zip(ring.owner_table, table, strict=True)
        ]
        since = np.where(changed, ring.epoch + 1, ring.since)
        self.store.save(
            Ring(
                ring.cluster, ring.epoch + 1, ring.partitions, ring.replication, nodes, table, since, ring.deletes
            ),
            ring.epoch,
        )
        return ring.epoch + 1

    def block_marks(self) -> None:
        """No mark can be written from now on: a file stands where their folder is to be."""
        assert not self.marks()
        assert isinstance(self.store, FileStore)
        folder = self.store.path.with_name(self.store.path.name + ".marks")
        if folder.exists():
            folder.rmdir()
        folder.write_text("in the way")

    def unblock_marks(self) -> None:
        assert isinstance(self.store, FileStore)
        self.store.path.with_name(self.store.path.name + ".marks").unlink()


_UNEXCUSED: Final = re.compile(r"BUG:|Traceback|level=error.*(?:invalid|conflict)")


def names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{number}" for number in range(1, count + 1)]


def environment(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings ("section.key") as variables."""
    return {f"MINITRUE__{name.replace('.', '__')}".upper(): str(value) for name, value in settings.items()}
