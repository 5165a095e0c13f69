"""A cluster whose ring store is a real etcd: what goes on while etcd is frozen, dead or put back, and who says so."""

import json
import os
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from common.ringstore import Mark
from tests.cluster import Cluster
from tests.etcds import Etcd
from tests.flow import Flow, check_settled, check_stored
from tests.pipeline import client
from tests.pipeline.test_fault_storage import all_acked
from tests.support import ROOT, Children, require_part, wait_until

MakeFlow = Callable[..., Flow]


@pytest.fixture
def etcd(children: Children, tmp_path: Path) -> Etcd:
    return Etcd(children, tmp_path)


@pytest.fixture
def cluster(children: Children, tmp_path: Path, etcd: Etcd) -> Iterator[Cluster]:
    """Two nodes that hold a copy each, a bridge, a query worker; the ring is in etcd."""
    require_part("mosquitto")
    settings = {"cluster.ring_store": etcd.url, "cluster.etcd_timeout_s": 0.5, "query.timeout_s": 5.0}
    made = Cluster(children, tmp_path / "c", nodes=2, replication=2, query=True, settings=settings)
    first = made.store.load()
    assert first is not None
    made.store = etcd.store()  # type: ignore[assignment]
    made.store.save(first, 0)
    yield made.start()
    made.close()


def ready(cluster: Cluster) -> dict[str, Any]:
    """What /readyz says."""
    return client.get(cluster.http + "/readyz")[1]


def troubles(cluster: Cluster) -> list[str]:
    """Why each worker cannot follow the ring store: query worker, both nodes, bridge."""
    nodes = [str(cluster.node_status(name).get("ring_store")) for name in cluster.nodes]
    return [str(ready(cluster).get("ring_store", "")), *nodes, str(cluster.status().get("ring_store"))]


def counted(cluster: Cluster, device: str) -> tuple[int, Any, Any]:
    """Status of a query for the number of points of a device, that number, and whether the answer is complete."""
    status, answer = client.ask(cluster.http, device_id=device, metric_name="m", operation="count")
    return status, answer.get("result"), answer.get("coverage", {}).get("complete")


def coverage(cluster: Cluster, device: str = "dev1") -> dict[str, Any]:
    answer = client.ask(cluster.http, device_id=device, metric_name="m", operation="avg")[1]
    return dict(answer["coverage"])


def delete(cluster: Cluster, device: str) -> tuple[int, dict[str, Any]]:
    parameters = urllib.parse.urlencode({"device_id": device})
    request = urllib.request.Request(f"{cluster.http}/api/v1/series?{parameters}", method="DELETE")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def ringctl(cluster: Cluster, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | cluster.environment
    command = [str(ROOT / "tools" / "ringctl"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_points_and_queries_go_on_while_etcd_is_frozen_and_everybody_says_so(
    cluster: Cluster, etcd: Etcd, make_flow: Callable[..., Flow]
) -> None:
    flow = make_flow(cluster)
    flow.send(20, "dev1", points=5)
    all_acked(cluster, flow)
    assert troubles(cluster) == ["", "", "", ""]
    etcd.freeze()
    wait_until(lambda: all("does not answer in time" in each for each in troubles(cluster)), what="all to say so")
    flow.send(20, "dev1", points=5)
    all_acked(cluster, flow)
    held = len(flow.points["dev1", "m"])
    wait_until(lambda: counted(cluster, "dev1") == (200, held, True), what="a complete answer with all points")
    assert coverage(cluster)["marks_s_ago"] > 0
    status, answer = delete(cluster, "dev1")
    assert (status, answer["error"]) == (503, "ring_store"), answer
    failed = ringctl(cluster, "status")
    assert failed.returncode == 1
    assert failed.stderr == f"ringctl: etcd: 127.0.0.1:{etcd.port} does not answer in time\n"
    # Without a mark no PUBACK relies on a spool.
    cluster.nodes["ing2"].kill()
    acked = cluster.bridge.acked
    flow.send(5, "dev2")
    flow.wait_acked()
    wait_until(lambda: cluster.status()["spools"].get("ing2", {}).get("error"), what="the spool that gets no mark")
    assert (cluster.bridge.acked, cluster.has_spooled()) == (acked, 0)
    etcd.thaw()
    wait_until(lambda: cluster.bridge.acked >= flow.messages, 30, "the PUBACKs that were withheld")
    assert cluster.marks() == {Mark("ing2", "bridge1")}
    cluster.nodes["ing2"].start()
    check_stored(cluster, flow.points)
    check_settled(cluster)
    wait_until(lambda: troubles(cluster) == ["", "", "", ""], what="all to follow again")
    assert delete(cluster, "dev1")[0] == 200
    assert counted(cluster, "dev1")[1] in (0, None)
    wait_until(lambda: "marks_s_ago" not in coverage(cluster, "dev2"), what="marks of this second")


def test_a_ring_store_that_lost_everything_gets_ring_and_marks_back_from_the_workers(
    cluster: Cluster, etcd: Etcd, make_flow: Callable[..., Flow]
) -> None:
    flow, backup = make_flow(cluster), str(cluster.home / "backup.json")
    assert ringctl(cluster, "backup", backup).returncode == 0
    assert delete(cluster, "nobody")[0] == 200  # the backup is older than the ring in force
    cluster.nodes["ing2"].kill()
    flow.send(20, "dev1", points=5)
    all_acked(cluster, flow)
    assert cluster.marks() == {Mark("ing2", "bridge1")}
    etcd.empty()
    wait_until(lambda: "no ring in" in ready(cluster).get("ring_store", ""), what="the query worker to say so")
    cluster.nodes["ing2"].start()
    wait_until(lambda: "no ring yet, waiting" in cluster.log("ing2"), what="the node to wait for a ring")
    refused = ringctl(cluster, "restore", backup, "--yes")
    assert (refused.returncode, refused.stderr) == (
        1, "ringctl: ing2 cannot be asked, and may go by a later ring: start them, or say --anyway\n"
    )  # fmt: skip
    done = ringctl(cluster, "restore", backup, "--yes", "--anyway", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["epoch"], told["from"], told["deletes"]) == (3, "node ing1", 1)
    assert told["marks"] == [["ing2", "bridge1"]]
    cluster.wait_ready()
    wait_until(lambda: troubles(cluster) == ["", "", "", ""], what="all to follow again")
    check_stored(cluster, flow.points)
    check_settled(cluster)
    held = len(flow.points["dev1", "m"])
    wait_until(lambda: counted(cluster, "dev1") == (200, held, True), what="a complete answer with all points")
