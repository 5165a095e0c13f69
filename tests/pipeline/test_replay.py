"""Real files and a synthetic one go in through the publisher and come out of /query as a naive computation says."""

import os
import signal
from pathlib import Path

import pytest

from tests.pipeline import client
from tests.support import require_part
from tools.sandbox_app import Sandbox

SHARED = Path(os.environ.get("MINITRUE_SHARED_DATA", client.ROOT.parent / "shared" / "data"))
NODES = ("ing1", "ing2", "ing3")


def _replay(cluster: Sandbox, file: Path) -> client.Points:
    points = client.read_csv(file)
    printed = client.publish("--replay", str(file), "--speed", "max", "--url", cluster.mqtt)
    assert printed["published"] == printed["acked"]
    client.wait_for_counts(cluster.http, {series: len(values) for series, values in points.items()})
    return points


def test_answers_equal_a_naive_computation_and_survive_kills_and_restarts(tmp_path: Path) -> None:
    require_part("mosquitto")
    file = tmp_path / "points.csv"
    client.write_csv(file, client.synthetic(seed=1, series=8, rows=3000))
    home = tmp_path / "home"
    with Sandbox(nodes=3, broker="mosquitto", dir=home, settings={"storage.head_rows": 2000}) as cluster:
        points = _replay(cluster, file)
        client.check(cluster.http, points, many=20)
        for node in NODES:
            cluster.kill(node, signal.SIGKILL)
        cluster.wait_ready()
        client.check(cluster.http, points, many=5)
        for node in NODES:
            cluster.restart(node)
        cluster.wait_ready()
        client.check(cluster.http, points, many=5)
    with Sandbox(nodes=3, broker="mosquitto", dir=home) as cluster:
        client.check(cluster.http, points, many=5)


@pytest.mark.parametrize("name", ["transformer.csv.gz", "sensors.csv.gz"])
def test_real_measurements_equal_a_naive_computation(name: str) -> None:
    if not (SHARED / name).exists():
        pytest.skip(f"the data set {name} is not here (MINITRUE_SHARED_DATA names its folder)")
    require_part("mosquitto")
    with Sandbox(nodes=3, broker="mosquitto") as cluster:
        points = _replay(cluster, SHARED / name)
        client.check(cluster.http, points, many=50, operations=("avg", "sum", "min", "max", "count"))
        for node in NODES:
            cluster.kill(node, signal.SIGKILL)
        cluster.wait_ready()
        client.check(cluster.http, points, many=10)


def test_the_embedded_broker_carries_the_same_points(tmp_path: Path) -> None:
    file = tmp_path / "points.csv"
    client.write_csv(file, client.synthetic(seed=2, series=4, rows=1000))
    with Sandbox(nodes=3, broker="embedded") as cluster:
        points = _replay(cluster, file)
        client.check(cluster.http, points, many=10)
        cluster.kill("ing2", signal.SIGKILL)
        cluster.wait_ready()
        client.check(cluster.http, points, many=3)
