"""A cluster whose ring changes while it runs, by tools/ringctl as a user does; what came of it is compared by digests.

Nodes may be made at any time: they run, behind proxies of their own, and own nothing until they are added.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from common import protocol
from common.errors import MinitrueError
from common.ring import Ring
from common.ringmoves import steps
from tests.cluster import QUICK, Cluster, StorageNode
from tests.flow import check_settled
from tests.oracle import Checker, Deletion, Listener, Oracle, OracleFlow, check_all, rfc3339
from tests.pipeline import client
from tests.support import ROOT, Children, wait_until

CHANGED_WITHIN_S: Final = 60.0
SETTLE_S: Final = 60.0
DELETABLE: Final = 10  # points of a series, acknowledged, of which a stretch is deleted

# Short, so that what waits for them shows in a test, but not so short that a busy machine has nodes taken for dead, as
# nobody may be; heads small, so that blocks travel, too.
SETTINGS: Final = QUICK | {
    "bus.heartbeat_s": 0.7,
    "bridge.ack_timeout_s": 6.0,
    "query.timeout_s": 5.0,
    "storage.head_rows": 2000,
    "storage.repair_settle_s": 1.0,
    "storage.repair_interval_s": 30.0,
    "mqtt.keepalive_s": 5,
    "mqtt.reconnect_max_s": 0.5,
}


class RingCluster(Cluster):
    """Nodes, bridges and a query worker, with a ring that tools/ringctl changes."""

    program = ROOT / "tools" / "ringctl"

    def __init__(self, children: Children, home: Path, settings: Mapping[str, Any] | None = None, **more: Any) -> None:
        super().__init__(children, home, settings=SETTINGS | dict(settings or {}), query=True, **more)
        nobody = f"[include]\nfiles = conf.d/*.conf\n[supervisorctl]\nserverurl = unix://{home}/nobody.sock\n"
        (home / "supervisord.conf").write_text(nobody)

    @property
    def ring(self) -> Ring:
        return self._ring()

    # ringctl

    def begin_ringctl(self, *arguments: str) -> subprocess.Popen[str]:
        """Start it; its output is JSON. No supervisord is touched: the test starts and ends nodes."""
        environment = os.environ | self.environment
        if arguments[0] in ("add", "remove", "replace", "resume"):
            arguments += ("--supervisor", str(self.home / "supervisord.conf"))
        return self.children.start(
            self.program, *arguments, "--json", env=environment, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip

    def try_ringctl(self, *arguments: str, timeout_s: float = CHANGED_WITHIN_S) -> tuple[int, str]:
        """Run it to its end: exit code, and all that it said."""
        process = self.begin_ringctl(*arguments)
        try:
            out, error = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            out, error = process.communicate()
            return -1, f"no end within {timeout_s} s: {out[-3000:]}{error[-3000:]}"
        return int(process.returncode), out + error

    def ringctl(self, *arguments: str, timeout_s: float = CHANGED_WITHIN_S) -> dict[str, Any]:
        """Run it to its end, which has to be a good one; the result."""
        code, said = self.try_ringctl(*arguments, timeout_s=timeout_s)
        assert code == 0, f"ringctl {' '.join(arguments)}: {code}, {said}; logs in {self.logs}"
        return dict(json.loads(said[said.index("{") :]))

    # Nodes

    def new_node(self, name: str, skew_s: float = 0.0) -> StorageNode:
        """A node that runs and is not in the ring. skew_s: how far its wall clock is ahead."""
        node = self.nodes[name] = StorageNode(self, name, {})
        if skew_s:
            node.skew(skew_s)
        node.start()
        wait_until(lambda: self.node_status(name), 30, f"{name} to answer")
        return node

    def adding(self, name: str) -> list[str]:
        """The words for ringctl that add a node which runs."""
        node = self.nodes[name]
        return ["add", name, "--endpoint", node.endpoint, "--zone", name, "--yes"]

    def add(self, name: str) -> StorageNode:
        """A new node, added."""
        node = self.new_node(name)
        self.ringctl(*self.adding(name))
        return node

    def wipe(self, name: str) -> None:
        """Lose the disk of a node that does not run."""
        assert not self.nodes[name].is_up
        shutil.rmtree(self.data / "storage" / name)

    @property
    def members(self) -> list[str]:
        """Nodes of the ring."""
        return [node.id for node in self.ring.nodes]

    # What came of it

    def check_still(self) -> None:
        """Nothing moves, and nothing is left to do."""
        ring = self.ring
        assert not ring.moves, ring.moves
        assert not steps(ring), steps(ring)[:5]
        assert all(node.state == "active" for node in ring.nodes)

    def wait_current(self, timeout_s: float = SETTLE_S) -> None:
        """Wait until no node is behind."""
        wait_until(lambda: not self.marks(), timeout_s, "the marks to go")

    def digests(self, node: str) -> dict[int, tuple[int, int]]:
        """Count and digest of each partition that a node owns. Raises MinitrueError while it cannot tell."""
        ring = self.ring
        request = protocol.DigestsRequest(ring.delete_number, ring.owned_bitmap(node))
        message = self.ask(node, protocol.DIGESTS, request)
        if message.kind != protocol.REPLY:
            raise MinitrueError(f"{node}: {protocol.decode_body(message.body, protocol.ErrorReply)}")
        reply = protocol.decode_body(message.body, protocol.DigestsReply)
        assert reply.partitions == request.partitions, f"{node} does not tell of all that it owns"
        counts, digests = np.frombuffer(reply.counts, "<i8"), np.frombuffer(reply.digests, "<u8")
        owned = ring.owned_partitions(node).tolist()
        return {at: (int(count), int(digest)) for at, count, digest in zip(owned, counts, digests, strict=True)}

    def differences(self) -> list[str]:
        """Partitions whose owners do not hold the same, or that have another number of owners than they should."""
        ring = self.ring
        try:
            held = {node.id: self.digests(node.id) for node in ring.nodes}
        except MinitrueError as error:
            return [str(error)]
        found = []
        for partition in range(ring.partitions):
            owners = [node.id for node in ring.owners(partition)]
            told = {name: held[name][partition] for name in owners}
            if len(set(told.values())) > 1 or len(owners) != min(ring.replication, len(ring.nodes)):
                found.append(f"partition {partition}: {told}")
        return found

    def check_equal(self, timeout_s: float = SETTLE_S) -> None:
        """Wait until all replicas of every partition hold the same."""
        last: list[str] = []

        def is_equal() -> bool:
            last[:] = self.differences()
            return not last

        try:
            wait_until(is_equal, timeout_s, "replicas to be equal")
        except BaseException as failure:
            raise AssertionError(f"{len(last)} differences: {last[:5]}; logs in {self.logs}") from failure


class Traffic:
    """Points that flow through a cluster's bridges, and questions that are judged."""

    def __init__(self, cluster: RingCluster, seed: int = 0, rate: float = 40, **options: Any) -> None:
        self.cluster = cluster
        self.oracle = Oracle()
        self.flow = OracleFlow(self.oracle, cluster.publishers.port, seed=seed, **options)
        self._listener = Listener(self.oracle, cluster.bridges.values())
        self.checker = Checker(self.oracle, cluster.http, seed)
        self._rate = rate

    def start(self) -> "Traffic":
        """Let points flow; there are some when this returns."""
        self.flow.start(self._rate)
        wait_until(lambda: self.checker.answers["complete"] > 10, 30, f"answers: {self.checker.answers}")
        return self

    def run_for(self, answers: int) -> None:
        """Wait for so many more answers that lacked nothing."""
        want = self.checker.answers["complete"] + answers

        def is_enough() -> bool:
            self.checker.check()
            return self.checker.answers["complete"] >= want

        wait_until(is_enough, 30, f"{answers} more answers, {self.checker.answers}: {self.checker.reasons}")

    def may_delete(self) -> bool:
        """Whether so many points of every series are acknowledged that a stretch of any can be deleted."""
        series = self.oracle.series
        return bool(series) and all(len(self.oracle.acked_times(each)) >= DELETABLE for each in series)

    def delete(self, share: float = 0.3) -> Deletion | None:
        """Delete a stretch of what is acknowledged of some series; where that is done for good, part of it is
        published again. None where there is nothing, or no answer came.
        """
        series = self.flow._rng.choice(self.oracle.series)
        times = self.oracle.acked_times(series)
        if len(times) < DELETABLE:
            return None
        first = int(len(times) * self.flow._rng.random() * (1 - share))
        chosen = times[first : first + max(1, int(len(times) * share))]
        return self.delete_of(series, chosen)

    def delete_of(self, series: tuple[str, str], times: list[int]) -> Deletion | None:
        """The same with a chosen stretch: all acknowledged times between the first and the last of these."""
        deletion = self.oracle.deleting(series, times[0], times[-1])
        status, answer = ask_delete(self.cluster.http, series, times[0], times[-1])
        if status != 200:
            return None if status != 202 else deletion
        deletion.done_s = time.monotonic()
        if answer["complete"] and not any(each["worker"] in self.cluster.bridges for each in answer["unreachable"]):
            self.flow.again(series, times[::3])
        return deletion

    def finish(self) -> None:
        """Let all be acknowledged and settled: then every series is exactly what it has to be, everywhere."""
        self.flow.stop()
        self.flow.wait_acked(SETTLE_S)
        check_settled(self.cluster, SETTLE_S)
        wait_until(lambda: self._listener.listen() or not self.oracle.unacked, 30, "PUBACKs of every message")
        self.checker.stop()
        time.sleep(1.1)  # answers speak of what was acknowledged a second before
        check_all(self.oracle, self.cluster.http)
        self.cluster.check_equal()
        assert not self.cluster.complaints()

    def close(self) -> None:
        self._listener.stop()
        self.flow.close()
        self.checker._is_over.set()
        self.checker.join(60)


@contextmanager
def traffic(cluster: RingCluster, **options: Any) -> Iterator[Traffic]:
    """Points flow and are asked for within; at the end of it all has to be right."""
    flowing = Traffic(cluster, **options)
    try:
        yield flowing.start()
        flowing.finish()
    finally:
        flowing.close()


def ask_delete(url: str, series: tuple[str, str], start_ns: int, end_ns: int) -> tuple[int, dict[str, Any]]:
    """DELETE of a range; (0, {}) where nobody answers."""
    fields = {"device_id": series[0], "metric_name": series[1], "start_time": rfc3339(start_ns)}
    body = json.dumps(fields | {"end_time": rfc3339(end_ns)}).encode()
    try:
        return client.call("DELETE", url + "/api/v1/series", body)
    except OSError:
        return 0, {}


def is_pulling(cluster: RingCluster) -> bool:
    """Whether a node gets points of a partition that it joins."""
    return any(
        job["kind"] == "pull" and job["state"] in ("waiting", "running")
        for name in cluster.nodes
        for job in cluster.node_status(name).get("repair", {}).get("jobs", [])
    )


def is_fenced(cluster: RingCluster) -> bool:
    """Whether a node refuses partitions that are about to leave it."""
    return any(cluster.node_status(name).get("partitions_fenced", 0) for name in cluster.nodes)


def owners_of(ring: Ring) -> list[list[str]]:
    """The owners of each partition."""
    return [[node.id for node in ring.owners(partition)] for partition in range(ring.partitions)]


class Going:
    """A change of the ring under way: a ringctl that runs."""

    def __init__(self, cluster: RingCluster, *words: str) -> None:
        self._cluster = cluster
        self._before = owners_of(cluster.ring)
        self.process = cluster.begin_ringctl(*words)

    def is_at(self, step: str) -> bool:
        """Whether a moment of the change is now: of STEPS."""
        if step == "targets have joined":
            return bool(self._cluster.ring.moves)
        if step == "targets pull":
            return is_pulling(self._cluster)
        if step == "sources are fenced":
            return is_fenced(self._cluster)
        assert step == "some are done"
        ring = self._cluster.ring
        return owners_of(ring) != self._before and bool(ring.moves or steps(ring))

    def wait_for(self, step: str) -> bool:
        """Wait for a moment of it; whether it was seen before the change ended."""
        ended = wait_until(lambda: (self.is_at(step) and "seen") or self.process.poll() is not None, 30.0, step)
        return ended == "seen"

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def end(self, timeout_s: float = CHANGED_WITHIN_S) -> tuple[int, str]:
        """Wait for its end: exit code, and what it said."""
        out, error = self.process.communicate(timeout=timeout_s)
        return int(self.process.returncode), out + error

    def end_well(self) -> None:
        code, said = self.end()
        assert code == 0, f"{self.process.args}: {code}, {said}; logs in {self._cluster.logs}"


STEPS: Final = ("targets have joined", "targets pull", "sources are fenced", "some are done")
