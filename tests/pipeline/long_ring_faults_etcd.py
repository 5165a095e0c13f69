"""More of test_ring_faults_etcd.py, for `make chaos`: what takes longer, or is shown in part there."""

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.etcds import Etcd
from tests.ringed import Going, RingCluster, traffic
from tests.support import Children, wait_until

Make = Callable[..., RingCluster]


@pytest.fixture
def etcd(children: Children, tmp_path: Path) -> Etcd:
    return Etcd(children, tmp_path)


def readiness(cluster: RingCluster) -> str:
    """What /readyz says, as text."""
    request = urllib.request.Request(cluster.http + "/readyz")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.dumps(json.load(answer))
    except urllib.error.HTTPError as error:
        return error.read().decode()


def test_points_flow_and_answers_are_whole_while_etcd_is_down_or_slow(make_ring: Make, etcd: Etcd) -> None:
    cluster = make_ring(nodes=3, replication=2, etcd=etcd)
    with traffic(cluster) as flowing:
        for hurt, mend in ((etcd.kill, etcd.start), (etcd.freeze, etcd.thaw)):
            hurt()
            wait_until(lambda: "etcd" in readiness(cluster), 30, "the query worker to say that etcd is away")
            for name in cluster.nodes:
                wait_until(lambda name=name: cluster.node_status(name).get("ring_store"), 30, f"{name} to say so")
            code, said = cluster.try_ringctl("status")
            assert code == 1, said
            flowing.run_for(25)
            mend()
            for name in cluster.nodes:
                wait_until(
                    lambda name=name: cluster.node_status(name).get("ring_store") == "", 30, f"{name} to be content"
                )
        flowing.checker.assert_all_answered()


def test_move_waits_while_etcd_is_away_and_gets_there_afterwards(make_ring: Make, etcd: Etcd) -> None:
    cluster = make_ring(nodes=2, replication=1, etcd=etcd)
    with traffic(cluster) as flowing:
        cluster.new_node("ing3")
        change = Going(cluster, *cluster.adding("ing3"), "--wave", "8")
        assert change.wait_for("targets pull")
        etcd.kill()
        flowing.run_for(20)
        etcd.start()
        change.end_well()
        cluster.check_still()


def test_etcd_that_lost_everything_changes_no_answer_and_is_filled_again_by_restore(
    make_ring: Make, etcd: Etcd, tmp_path: Path
) -> None:
    cluster = make_ring(nodes=3, replication=2, etcd=etcd)
    with traffic(cluster) as flowing:
        cluster.ringctl("backup", str(tmp_path / "ring.backup"))
        flowing.delete()  # is in no backup
        epoch = cluster.epoch
        etcd.empty()
        flowing.run_for(25)
        assert cluster.store.load() is None
        cluster.ringctl("restore", str(tmp_path / "ring.backup"), "--yes")
        assert cluster.epoch > epoch
        wait_until(lambda: {cluster.node_status(name).get("epoch") for name in cluster.nodes} == {cluster.epoch}, 30)
        flowing.run_for(20)
