"""Nodes are added, removed, replaced, killed, frozen and cut off while points flow, are deleted and asked for.

Two bridges share the load on mosquitto. Every answer is judged while it goes on (tests/oracle.py): no point may be
lost, double or other than published, and an answer that lacks something has to say so. In the end each series is just
what it has to be, and the replicas of every partition have equal digests. MINITRUE_CHAOS_S is how long it goes on
(longer in `make chaos`), MINITRUE_CHAOS_SEEDS names other seeds, with commas between.
"""

import os
import random
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos_ring.script import Change, Fault, Script, draw
from tests.cluster import StorageNode, Worker
from tests.ringed import RingCluster, Traffic, traffic
from tests.support import Children, require_part, wait_until

LENGTH_S = float(os.environ.get("MINITRUE_CHAOS_S", 6))
SEEDS = [int(seed) for seed in os.environ.get("MINITRUE_CHAOS_SEEDS", "1").split(",")]
REPLICATIONS = [1, 2, 3] if "MINITRUE_CHAOS_S" in os.environ else [2]  # which changes on the way
RATE = 40  # messages a second, of 3 points on average
LEAST_NODES, MOST_NODES = 3, 6
LEAST_CHANGES = 3  # it goes on until there were so many
CHANGE_S = 120.0


class Changes(threading.Thread):
    """Changes the ring, one change after the other, until `stop`. done: how many of each; fault: what went wrong.

    A ringctl that fails, for that is what the faults are for, or was killed, is followed by `ringctl resume`.
    """

    def __init__(self, cluster: RingCluster, script: list[Change]) -> None:
        super().__init__(name="changes", daemon=True)
        self.done: Counter[str] = Counter()
        self.said: list[str] = []
        self.fault: BaseException | None = None
        self._cluster, self._script = cluster, script
        self._made = len(cluster.nodes)
        self._gone: list[str] = []
        self._running: subprocess.Popen[str] | None = None
        self._is_over = threading.Event()
        self._is_given_up = False

    def run(self) -> None:
        try:
            for change in self._script:
                if self._is_over.is_set():
                    return
                self._carry_out(change)
        except BaseException as fault:
            self.fault = fault

    def stop(self) -> None:
        """Wait for the end of the change under way. Nothing is wrong any more by then."""
        self._is_over.set()
        self.join(CHANGE_S + 60)
        if self.fault is not None:
            raise self.fault
        assert not self.is_alive(), f"a change does not end: {self.said[-3:]}"

    def give_up(self) -> None:
        """Begin nothing more, and end the ringctl that runs: the test has failed."""
        self._is_over.set()
        self._is_given_up = True
        while self.is_alive():
            self.kill_ringctl()
            self.join(0.1)

    @property
    def count(self) -> int:
        """Changes that were done."""
        return sum(self.done.values())

    def kill_ringctl(self) -> None:
        running = self._running
        if running is not None and running.poll() is None:
            running.kill()

    def _carry_out(self, change: Change) -> None:
        members = [node.id for node in self._cluster.ring.active_nodes]
        chosen = members[change.nodes[0] % len(members)]
        if change.what == "add" and len(members) < MOST_NODES:
            self._change(self._cluster.adding(self._new(change.nodes[1])))
        elif change.what == "remove" and len(members) > max(LEAST_NODES, self._cluster.ring.replication):
            self._change(["remove", chosen, "--yes"])
            self._retire(chosen)
        elif change.what == "replace":
            name = self._new(change.nodes[1])
            words = self._cluster.adding(name)
            self._change(["replace", chosen, *words[1:]])
            self._retire(chosen)
        elif change.what == "weight":
            self._change(["weight", chosen, f"{0.5 + change.amount:.2f}", "--yes"])
        elif change.what == "replication":
            self._change(["replication", str(1 + int(change.amount * 3)), "--yes"])
        elif change.what == "cancelled":
            self._cancel(["weight", chosen, f"{0.5 + change.amount:.2f}", "--yes"])
        else:
            return
        self.done[change.what] += 1

    def _new(self, number: int) -> str:
        """A node that is not in the ring: a new one, or one that was removed, with all that it still has."""
        if self._gone and number % 2:
            name = self._gone.pop(number % len(self._gone))
            if not self._cluster.nodes[name].is_up:
                self._cluster.nodes[name].start()
            wait_until(lambda: self._cluster.node_status(name), CHANGE_S, f"{name} to answer")
            return name
        self._made += 1
        return self._cluster.new_node(f"ing{self._made}").name

    def _retire(self, name: str) -> None:
        """Stop a node that is not in the ring any more."""
        assert not self._cluster.ring.has(name), f"{name} is still in the ring: {self.said[-2:]}"
        node = self._cluster.nodes[name]
        wait_until(lambda: not node.is_frozen, 30, f"{name} to go on")
        self._gone.append(name)
        if node.is_up:
            stop(node)

    @property
    def gone(self) -> list[str]:
        """Nodes that were removed, and do not run."""
        return list(self._gone)

    def _change(self, words: list[str]) -> None:
        code = self._ringctl(words)
        deadline = time.monotonic() + CHANGE_S
        while code != 0:
            assert not self._is_given_up, "given up"
            assert time.monotonic() < deadline, f"not done within {CHANGE_S} s: {words}: {self.said[-2:]}"
            time.sleep(0.2)
            # Killed before it had saved anything, or after all was done: then the same words once more are right.
            code = self._ringctl(["resume", "--take-over"])
            if code == 0 and not self._is_in_ring(words):
                code = self._ringctl(words)

    def _is_in_ring(self, words: list[str]) -> bool:
        """Whether the ring is what these words ask for."""
        ring = self._cluster.ring
        if words[0] == "add":
            return ring.has(words[1])
        if words[0] in ("remove", "replace"):
            return not ring.has(words[1])
        return words[0] != "replication" or ring.replication == int(words[1])

    def _ringctl(self, words: list[str]) -> int:
        running = self._running = self._cluster.begin_ringctl(*words)
        try:
            out, error = running.communicate(timeout=CHANGE_S)
        except subprocess.TimeoutExpired:
            running.kill()
            out, error = running.communicate()
        self.said.append(f"{' '.join(words)}: {running.returncode} {out[-500:]} {error[-1500:]}")
        return int(running.returncode)

    def _cancel(self, words: list[str]) -> None:
        running = self._running = self._cluster.begin_ringctl(*words)
        wait_until(lambda: self._cluster.ring.moves or running.poll() is not None, CHANGE_S, "moves, or the end")
        if running.poll() is None:
            running.kill()
        running.communicate()
        self._ringctl(["cancel", "--take-over", "--yes"])
        self._change(["resume", "--take-over"])


class Faults:
    """Does to a cluster what a script says. done: how many of each."""

    def __init__(self, cluster: RingCluster, changes: Changes) -> None:
        self.done: Counter[str] = Counter()
        self._cluster, self._changes = cluster, changes

    def begin(self, fault: Fault) -> Callable[[], object]:
        """Do it; what ends it."""
        self.done[f"{fault.kind} {fault.what}"] += 1
        if fault.kind == "ringctl":
            self._changes.kill_ringctl()
            return lambda: None
        if fault.what in ("killed", "frozen"):
            return self._stop(self._worker(fault), fault.what)
        return self._disturb(fault)

    def _worker(self, fault: Fault) -> Worker | None:
        if fault.kind == "query":
            return self._cluster.query
        running = [node for node in self._cluster.nodes.values() if node.is_up]
        choice: list[Worker] = [*(running if fault.kind == "node" else self._cluster.bridges.values())]
        return choice[fault.numbers[0] % len(choice)]

    def _stop(self, worker: Worker | None, what: str) -> Callable[[], object]:
        if worker is None or not worker.is_up:
            return lambda: None
        if what == "killed":
            worker.kill()
            return lambda: worker.is_up or worker.start()
        worker.freeze()
        return lambda: worker.is_frozen and worker.is_up and worker.thaw()

    def _disturb(self, fault: Fault) -> Callable[[], object]:
        nodes: list[StorageNode] = [node for node in self._cluster.nodes.values() if node.is_up]
        one = nodes[fault.numbers[0] % len(nodes)]
        other = nodes[fault.numbers[1] % len(nodes)]
        bridges = list(self._cluster.bridges.values())
        legs = {"ingest": one.ingest, "acks": bridges[fault.numbers[0] % len(bridges)].acks}
        proxy = legs.get(fault.kind, one.requests)
        if fault.kind == "pair":
            proxy.cut_from(lambda: other.process and other.process.pid)
        elif fault.what == "cut":
            proxy.cut()
        else:
            proxy.delay(0.15)
        return proxy.heal


def stop(worker: Worker) -> None:
    """As supervisord does: who has not ended by then is killed."""
    try:
        worker.stop()
    except subprocess.TimeoutExpired:
        worker.kill()


def carry_out(cluster: RingCluster, flowing: Traffic, seed: int) -> None:
    """The script of a seed. All is well again, and the ring is still, when it returns."""
    script = draw(seed, LENGTH_S + CHANGE_S)
    changes = Changes(cluster, script.changes)
    faults = Faults(cluster, changes)
    changes.start()
    begun = time.monotonic()
    try:
        _disturb(cluster, flowing, changes, faults, script, begun)
    except BaseException:
        changes.give_up()
        raise
    finally:
        _mend(cluster, changes.gone)
        print(f"changes {dict(changes.done)}, faults {dict(faults.done)}", flush=True)
    changes.stop()
    assert changes.count >= LEAST_CHANGES, f"too little happened: {changes.said}"
    _mend(cluster, changes.gone)


def _disturb(
    cluster: RingCluster, flowing: Traffic, changes: Changes, faults: Faults, script: Script, begun: float
) -> None:
    due, deletes = [*script.faults], [*script.deletes_s]
    end: tuple[float, Callable[[], object]] | None = None
    while (now := time.monotonic() - begun) < LENGTH_S or changes.count < LEAST_CHANGES:
        flowing.checker.check()
        assert changes.fault is None, f"{changes.fault}; logs in {cluster.logs}"
        assert now < LENGTH_S + CHANGE_S, f"{changes.count} changes in {now:.0f} s: {changes.said}"
        for worker in cluster.workers:
            worker.revive()
        if end and end[0] <= now:
            end[1]()
            end = None
        elif not end and due and due[0].begin_s <= now:
            fault = due.pop(0)
            end = (fault.end_s, faults.begin(fault))
        elif deletes and deletes[0] <= now:
            deletes.pop(0)
            flowing.delete()
        time.sleep(0.02)


def _mend(cluster: RingCluster, gone: list[str]) -> None:
    """No fault any more."""
    for proxy in cluster.proxies:
        proxy.heal()
    for worker in cluster.workers:
        if worker.is_frozen and worker.is_up:
            worker.thaw()
        if not worker.is_up and worker.name not in gone:
            worker.start()


@pytest.mark.timeout(LENGTH_S + 5 * CHANGE_S)
@pytest.mark.parametrize("replication", REPLICATIONS)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_ring_that_changes_under_faults_loses_nothing_and_tells_nothing_wrong(
    children: Children, tmp_path: Path, seed: int, replication: int
) -> None:
    require_part("mosquitto")
    random.seed(seed)
    cluster = RingCluster(children, tmp_path, nodes=3, replication=replication, bridges=2)
    try:
        cluster.start()
        with traffic(cluster, seed=seed, rate=RATE) as flowing:
            carry_out(cluster, flowing, seed * 10 + replication)
            cluster.check_still()
        print(f"answers {dict(flowing.checker.answers)}, {flowing.checker.certain} certain; epoch {cluster.epoch}")
    finally:
        cluster.close()
