"""Kills, freezes, cuts and restarts of everything while numbered points flow: each is stored exactly once.

Two bridges share the load on mosquitto, every connection goes through a proxy, some messages are bad on purpose.
MINITRUE_CHAOS_S is how long the faults go on (in `make test` a minute, more in `make chaos`), MINITRUE_CHAOS_SEEDS
names other seeds, with commas between. mosquitto is asked to end, never killed: what it has acknowledged to a
publisher it saves only then and every 30 s. And it forgets shared subscriptions when it restarts (2.0.11), so
publishers are let in again when a bridge has subscribed: what came before would have gone to nobody.
"""

import heapq
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from common.ringstore import Mark
from tests.chaos.script import Fault, draw
from tests.cluster import Cluster, Worker
from tests.flow import Flow, check_dead, check_settled, check_stored, check_talks
from tests.pipeline import client
from tests.proxy import Proxy
from tests.support import Children, require_part, wait_until

LENGTH_S = float(os.environ.get("MINITRUE_CHAOS_S", 60))
SEEDS = [int(seed) for seed in os.environ.get("MINITRUE_CHAOS_SEEDS", "1").split(",")]
RATE = 150  # messages a second, of 3 points on average: a machine that runs other tests beside keeps up
SETTLE_S = 120.0
SETTINGS = {
    "bus.heartbeat_s": 0.3,
    "bridge.ack_timeout_s": 2.0,
    "mqtt.keepalive_s": 5,
    "mqtt.reconnect_max_s": 1.0,
    "storage.head_rows": 5000,  # so that heads are sealed and compacted meanwhile
}

LEG_FAULTS: dict[str, Callable[[Proxy], None]] = {
    "cut": Proxy.cut,
    "reset": Proxy.reset,
    "stalled": Proxy.stall,
    "stalled up": lambda proxy: proxy.stall("up"),
    "stalled down": lambda proxy: proxy.stall("down"),
    "losing": Proxy.swallow,
    "losing down": lambda proxy: proxy.swallow("down"),
    "slow": lambda proxy: proxy.delay(0.3),
}


class Chaos:
    """Does to a cluster what a script says. marks: every mark that was seen on the way."""

    def __init__(self, cluster: Cluster) -> None:
        self.marks: set[Mark] = set()
        self._cluster = cluster
        self.processes: dict[str, Worker] = {worker.name: worker for worker in cluster.workers}
        self.legs = {"publisher-broker": cluster.publishers}
        for name, node in cluster.nodes.items():
            self.legs |= {f"bridges-{name}": node.ingest, f"query-{name}": node.requests}
        for name, bridge in cluster.bridges.items():
            self.legs |= {f"broker-{name}": bridge.mqtt, f"storage-{name}": bridge.acks}
        self._is_shut_out = False  # publishers, until a bridge has subscribed

    def run(self, script: list[Fault], length_s: float) -> None:
        """Carry the script out. All is well again when it returns."""
        due: list[tuple[float, int, bool, Fault]] = []
        for number, fault in enumerate(script):
            heapq.heappush(due, (fault.begin_s, number, True, fault))
            heapq.heappush(due, (fault.end_s, number, False, fault))
        begun = time.monotonic()
        while due or time.monotonic() < begun + length_s:
            while due and due[0][0] <= time.monotonic() - begun:
                _, _, begins, fault = heapq.heappop(due)
                self._begin(fault) if begins else self._end(fault)
            self.marks |= self._cluster.marks()
            self._let_publishers_in()
            time.sleep(0.05)
        wait_until(lambda: self._let_publishers_in() or not self._is_shut_out, 30, "a bridge to subscribe")

    def _begin(self, fault: Fault) -> None:
        self.revive()
        if fault.victim == "broker":
            self._hurt_broker(fault.what)
        elif fault.victim in self.legs:
            LEG_FAULTS[fault.what](self.legs[fault.victim])
        else:
            worker = self.processes[fault.victim]
            {"killed": worker.kill, "frozen": worker.freeze, "stopped": lambda: stop(worker)}[fault.what]()

    def revive(self) -> None:
        """Start again what libzmq has aborted."""
        for worker in self.processes.values():
            worker.revive()

    def _end(self, fault: Fault) -> None:
        if fault.victim == "broker":
            self._mend_broker(fault.what)
        elif fault.victim in self.legs:
            if not (self._is_shut_out and fault.victim == "publisher-broker"):
                self.legs[fault.victim].heal()
        elif fault.what == "frozen":
            self.processes[fault.victim].thaw()
        else:
            self.processes[fault.victim].start()

    # The broker

    def _hurt_broker(self, what: str) -> None:
        if what == "frozen":
            self._cluster.broker.freeze()
            return
        self._cluster.broker.stop()
        self._is_shut_out = True
        self._cluster.publishers.cut()

    def _mend_broker(self, what: str) -> None:
        if what == "frozen":
            self._cluster.broker.thaw()
            return
        self._passages = {name: len(bridge.mqtt.passages) for name, bridge in self._cluster.bridges.items()}
        self._cluster.broker.start()

    def _let_publishers_in(self) -> None:
        if self._is_shut_out and self._cluster.broker.is_up and self._has_subscriber():
            self._is_shut_out = False
            self._cluster.publishers.heal()

    def _has_subscriber(self) -> bool:
        """Whether a bridge has subscribed since the broker started."""
        return any(
            talk.is_subscribed
            for name, bridge in self._cluster.bridges.items()
            for talk in bridge.talks_from(self._passages[name])
        )


def stop(worker: Worker) -> None:
    """As supervisord does: who has not ended by then, because it still loads its code, is killed."""
    try:
        worker.stop()
    except subprocess.TimeoutExpired:
        worker.kill()


def kill_all_nodes(cluster: Cluster) -> None:
    """Only what is on disk counts."""
    for node in cluster.nodes.values():
        node.kill()
    for node in cluster.nodes.values():
        node.start()


@pytest.mark.timeout(LENGTH_S + 3 * SETTLE_S + 120)
@pytest.mark.parametrize("replication", [1, 2])
@pytest.mark.parametrize("seed", SEEDS)
def test_what_was_acknowledged_is_stored_once_and_what_was_refused_lies_in_the_dead_letter_once(
    children: Children, tmp_path: Path, seed: int, replication: int
) -> None:
    require_part("mosquitto")
    cluster = Cluster(children, tmp_path, nodes=3, replication=replication, bridges=2, settings=SETTINGS, query=True)
    try:
        cluster.start()
        flow = Flow(cluster.publishers.port, seed=seed, bad_every=15)
        try:
            carry_out(cluster, flow, seed, LENGTH_S)
        finally:
            flow.close()
    finally:
        cluster.close()


def carry_out(cluster: Cluster, flow: Flow, seed: int, length_s: float) -> None:
    chaos = Chaos(cluster)
    script = draw(seed, length_s, list(chaos.processes), list(chaos.legs))
    print(*script, sep="\n")
    flow.start(RATE)
    chaos.run(script, length_s)
    chaos.revive()
    flow.stop()
    flow.wait_acked(SETTLE_S)
    print(f"{flow.messages} messages, {sum(map(len, flow.points.values()))} points, {len(flow.bad)} refused")
    assert chaos.marks, "no spool was used: this shows too little"
    check_settled(cluster, SETTLE_S)
    kill_all_nodes(cluster)
    cluster.wait_ready()
    check_stored(cluster, flow.points, SETTLE_S)
    client.wait_for_counts(cluster.http, {each: len(values) for each, values in flow.points.items()}, 30)
    check_dead(cluster, flow)
    check_talks(cluster)
    assert not cluster.complaints()
