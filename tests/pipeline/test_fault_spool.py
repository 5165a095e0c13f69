"""What can go wrong with a spool: no room, no mark, damage, a bridge that dies or a ring that changes in a drain."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster import Cluster, Series
from tests.flow import Flow, Points, check_settled, check_stored, check_talks
from tests.pipeline.test_fault_storage import BEHIND, all_acked
from tests.support import wait_until

Make = Callable[..., Cluster]
MakeFlow = Callable[..., Flow]


def spool_status(cluster: Cluster) -> dict[str, object]:
    """What the bridge tells of its spool for ing1."""
    return dict(cluster.status().get("spools", {}).get("ing1", {}))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[Path, int], None]]:
    """Mounts a small file system at a directory, made if need be."""
    mounted: list[Path] = []

    def mount(directory: Path, size_bytes: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "none", str(directory)]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("only root, and not in every container, can mount a file system; spool_bytes is tested anyhow")
        mounted.append(directory)

    yield mount
    for directory in mounted:
        subprocess.run(["umount", "-l", str(directory)], check=True)


@pytest.mark.parametrize("how", ["disk", "limit"])
def test_puback_is_withheld_while_the_spool_is_full_and_all_goes_on_when_it_is_drained(
    make_cluster: Make, make_flow: MakeFlow, small_disk: Callable[[Path, int], None], how: str
) -> None:
    settings = {"bridge.spool_bytes": SPOOL_BYTES} if how == "limit" else {}
    cluster = make_cluster(nodes=2, settings=settings)
    if how == "disk":
        small_disk(cluster.bridge.directory / "spool", SPOOL_BYTES)
    cluster.start()
    flow = make_flow(cluster)
    away, device = cluster.nodes["ing1"], cluster.device_of("ing1")
    away.kill()
    flow.send(3, device, points=10)
    all_acked(cluster, flow)
    flow.send(FILLING, device, points=100)
    flow.wait_acked()
    wait_until(lambda: spool_status(cluster).get("error"), 30, "the spool to say that it is full")
    assert 3 <= cluster.bridge.acked < flow.messages
    flow.send(20, cluster.device_of("ing2"))
    check_stored(cluster, flow.points, nodes=["ing2"])  # the others are stored all the same
    assert cluster.has_spooled() <= SPOOL_BYTES + BATCH_BYTES
    away.start()
    check_stored(cluster, flow.points)
    wait_until(lambda: cluster.bridge.acked >= flow.messages, 30, "the PUBACKs that were withheld")
    check_settled(cluster)
    check_talks(cluster)


SPOOL_BYTES = 4 << 20
BATCH_BYTES = 1 << 20  # the one that went over the bound
FILLING = 4000  # messages of 100 points of 20 bytes


def test_no_puback_relies_on_a_spool_whose_mark_cannot_be_written(make_cluster: Make, make_flow: MakeFlow) -> None:
    cluster = make_cluster(nodes=2).start()
    cluster.block_marks()
    flow = make_flow(cluster)
    cluster.nodes["ing1"].kill()
    flow.send(50, cluster.device_of("ing1"))
    flow.wait_acked()
    wait_until(lambda: spool_status(cluster).get("error"), 30, "the bridge to say why")
    assert cluster.bridge.acked == 0
    cluster.unblock_marks()
    wait_until(lambda: cluster.bridge.acked == 50, 30, "PUBACKs when the mark could be written")
    assert cluster.marks() == {BEHIND}
    cluster.nodes["ing1"].start()
    check_stored(cluster, flow.points)
    check_settled(cluster)


def test_bridge_that_is_killed_while_it_drains_drains_on(make_cluster: Make, make_flow: MakeFlow) -> None:
    cluster = make_cluster(nodes=2).start()
    flow = make_flow(cluster)
    away, bridge = cluster.nodes["ing1"], cluster.bridge
    away.kill()
    flow.send(300, points=100)
    all_acked(cluster, flow)
    bridge.acks.delay(0.5)  # a drain waits for acks: time to hurt it in the middle
    away.start()
    wait_until(lambda: holds_some(cluster, flow.points), 60, "the drain to begin")
    away.ingest.stall("up")
    wait_until(lambda: draining_batches(cluster) > 1, 30, "records to be on their way")
    bridge.kill()
    away.kill()  # and what was on its way is lost
    assert bridge.spool_files(), "a record is given up before it is acked"
    away.ingest.heal()
    away.start()
    for _ in range(2):
        bridge.start()
        wait_until(lambda: draining_batches(cluster) > 0 or not bridge.spool_files(), 60, "the drain to go on")
        assert cluster.marks() == {BEHIND} or not bridge.spool_files()
        bridge.kill()
    bridge.start()
    bridge.acks.heal()
    check_stored(cluster, flow.points)
    check_settled(cluster)
    check_talks(cluster)


def draining_batches(cluster: Cluster) -> int:
    return int(cluster.status().get("owners", {}).get("ing1", {}).get("draining_batches", 0))


def holds_some(cluster: Cluster, points: Points) -> bool:
    """Whether ing1 answers, and holds something."""
    if not cluster.node_status("ing1"):
        return False
    mine = [series for series in points if "ing1" in cluster.owners(series)]
    return any(reply.count for reply in cluster.held("ing1", mine).values())


def test_damage_in_the_middle_of_a_spool_costs_the_damaged_points_and_says_so(
    make_cluster: Make, make_flow: MakeFlow
) -> None:
    cluster = make_cluster(nodes=2).start()
    flow, devices = make_flow(cluster), []
    cluster.nodes["ing1"].kill()
    for _ in range(3):  # three records, of a device each
        devices.append(cluster.device_of("ing1", avoid=devices))
        flow.send(1, devices[-1], points=50)
        all_acked(cluster, flow)
    cluster.bridge.kill()
    (file,) = cluster.bridge.spool_files()
    data = bytearray(file.read_bytes())
    data[data.index(devices[1].encode())] ^= 1
    file.write_bytes(data)
    cluster.bridge.start()
    cluster.nodes["ing1"].start()
    lost = (devices[1], "m")
    check_stored(cluster, {series: values for series, values in flow.points.items() if series != lost})
    assert cluster.held("ing1", [lost])[lost].count == 0
    wait_until(lambda: not cluster.bridge.spool_files(), what="the rest to be drained")
    assert spool_status(cluster)["damaged"]
    assert cluster.marks() == {BEHIND}  # the node is not whole, and nobody may take it for that
    (aside,) = file.parent.glob("*.damaged")
    assert devices[1][1:].encode() in aside.read_bytes()
    aside.unlink()
    wait_until(lambda: not cluster.marks(), 30, "the mark to go with the damaged bytes")


@pytest.mark.parametrize("how", ["without its partitions", "out of the ring"])
def test_spool_goes_to_the_owners_of_now(make_cluster: Make, make_flow: MakeFlow, how: str) -> None:
    cluster = make_cluster(nodes=2).start()
    flow = make_flow(cluster)
    cluster.nodes["ing1"].kill()
    flow.send(100, cluster.device_of("ing1"))
    all_acked(cluster, flow)
    assert cluster.marks() == {BEHIND}
    if how == "out of the ring":
        cluster.remove_node("ing1", heir="ing2")
    else:
        cluster.swap_owners("ing1", "ing2")
        cluster.nodes["ing1"].start()
    check_stored(cluster, flow.points, nodes=["ing2"])
    wait_until(lambda: not cluster.marks() and not cluster.bridge.spool_files(), 30, "the spool and its mark to go")


def test_ring_that_changes_while_a_spool_drains_loses_nothing(make_cluster: Make, make_flow: MakeFlow) -> None:
    """What was drained by the ring of before lies at the owners of before (moving it is another matter), the rest at
    those of now; each point at one of them.
    """
    cluster = make_cluster(nodes=2).start()
    flow = make_flow(cluster)
    flow.send(20, cluster.device_of("ing1"))
    check_stored(cluster, flow.points)
    cluster.nodes["ing1"].kill()
    flow.send(200, cluster.device_of("ing1"), points=5)
    all_acked(cluster, flow)
    cluster.bridge.acks.delay(0.5)
    cluster.nodes["ing1"].start()
    wait_until(lambda: draining(cluster, flow.points, 20), 60, "the drain to begin")
    cluster.swap_owners("ing1", "ing2")
    cluster.bridge.acks.heal()
    wait_until(lambda: cluster.status().get("epoch") == 2, 30, "the bridge to adopt the ring")
    check_settled(cluster)
    now_at = times(cluster, "ing2", flow.points)
    cluster.swap_owners("ing1", "ing2")
    before_at = times(cluster, "ing1", flow.points)
    for series, values in flow.points.items():
        assert now_at[series] | before_at[series] == set(values)


def draining(cluster: Cluster, points: Points, before: int) -> bool:
    if not cluster.node_status("ing1"):
        return False
    return sum(reply.count for reply in cluster.held("ing1", points).values()) > before


def times(cluster: Cluster, node: str, points: Points) -> dict[Series, set[int]]:
    """The times of the points that a node holds, asked one by one."""
    found: dict[Series, set[int]] = {series: set() for series in points}
    for series, values in points.items():
        asked = sorted(values)
        replies = cluster.asked(node, [cluster.request(series, at, at) for at in asked])
        found[series] = {at for at, reply in zip(asked, replies, strict=True) if reply.count}
    return found
