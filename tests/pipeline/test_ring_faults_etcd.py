"""The ring in etcd, which is away, slow, emptied, put back: workers go on with the ring that they have and say so."""

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.etcds import Etcd
from tests.ringed import RingCluster, traffic
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


def test_etcd_put_back_to_an_older_epoch_is_not_followed_until_restore_has_gone_beyond_it(
    make_ring: Make, etcd: Etcd, tmp_path: Path
) -> None:
    cluster = make_ring(nodes=3, replication=2, etcd=etcd)
    with traffic(cluster) as flowing:
        etcd.snapshot(tmp_path / "snapshot")
        cluster.new_node("ing4")
        cluster.ringctl(*cluster.adding("ing4"))
        assert flowing.delete() is not None
        epoch = cluster.epoch
        etcd.put_back(tmp_path / "snapshot")
        flowing.run_for(25)
        assert cluster.epoch < epoch
        assert {cluster.node_status(name)["epoch"] for name in cluster.nodes} == {epoch}
        cluster.ringctl("backup", str(tmp_path / "ring.backup"))  # the latest that anybody knows
        cluster.ringctl("restore", str(tmp_path / "ring.backup"), "--yes")
        assert cluster.epoch > epoch
        wait_until(lambda: {cluster.node_status(name).get("epoch") for name in cluster.nodes} == {cluster.epoch}, 30)
        assert cluster.ring.has("ing4")
        flowing.run_for(20)
