"""Workers die at random moments while messages flow: every message is stored exactly once."""

import random
import signal
import threading
import time
import urllib.error
import urllib.request

from tests.pipeline import client
from tests.support import require_part
from tools.sandbox_app import Sandbox

NODES = ("ing1", "ing2", "ing3")


class Flow:
    """The simulated publisher, running in a thread. result: what it printed, once joined."""

    def __init__(self, cluster: Sandbox, count: int, rate: int) -> None:
        self.count = count
        self.result: dict[str, object] = {}
        arguments = ("--sim", "--devices", "20", "--metrics", "5", "--seed", "7", "--count", str(count))
        self._arguments = (*arguments, "--rate", str(rate), "--qos", "1", "--url", cluster.mqtt)
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        self.result = client.publish(*self._arguments, timeout_s=280)

    def __enter__(self) -> "Flow":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()

    def running(self) -> bool:
        return self._thread.is_alive()


def _stored(http: str) -> int:
    """Points in all series, asked one series after the other; -1 while a node is behind, and so not asked."""
    total, cursor = 0, ""
    while True:
        status, page = client.get(f"{http}/api/v1/series?limit=1000&cursor={cursor}")
        if status == 503:
            return -1
        assert status == 200, page
        series = [(entry["device_id"], entry["metric_name"]) for entry in page["series"]]
        total += sum(client.counts(http, series).values())
        cursor = page.get("cursor")
        if not cursor:
            return total


def _wait_for_all(cluster: Sandbox, count: int, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    stored = _stored(cluster.http)
    while stored < count:
        assert time.monotonic() < deadline, f"{stored} of {count} points stored after {timeout_s:g} s"
        time.sleep(0.3)
        stored = _stored(cluster.http)
    assert stored == count


def _kill_at_random(cluster: Sandbox, victims: list[str], rng: random.Random, span_s: float) -> None:
    rng.shuffle(victims)
    for victim in victims:
        time.sleep(rng.uniform(0.2, 1.0) * span_s / len(victims))  # the moment is the test's random input
        name = rng.choice(NODES) if victim == "storage" else victim
        cluster.kill(name, signal.SIGKILL, wait_s=30)


def test_storage_and_bridge_killed_ten_times_each_lose_and_double_nothing() -> None:
    require_part("mosquitto")
    with Sandbox(nodes=3, broker="mosquitto") as cluster, Flow(cluster, 200_000, rate=5000) as flow:
        _kill_at_random(cluster, ["storage"] * 10 + ["bridge"] * 10, random.Random(3), span_s=36)
        flow.__exit__()
        assert (flow.result["points"], flow.result["points_acked"]) == (200_000, 200_000)
        cluster.wait_ready()
        _wait_for_all(cluster, 200_000, timeout_s=120)


def test_mosquitto_restarted_among_the_kills_loses_nothing() -> None:
    require_part("mosquitto")
    with Sandbox(nodes=3, broker="mosquitto") as cluster, Flow(cluster, 60_000, rate=4000) as flow:
        rng = random.Random(4)
        for _ in range(3):
            _kill_at_random(cluster, ["storage", "bridge"], rng, span_s=3)
            cluster.restart("broker")
        flow.__exit__()
        cluster.wait_ready()
        _wait_for_all(cluster, 60_000, timeout_s=120)


def test_embedded_broker_with_kills_loses_nothing_at_its_own_pace() -> None:
    with Sandbox(nodes=3, broker="embedded") as cluster, Flow(cluster, 30_000, rate=2000) as flow:
        _kill_at_random(cluster, ["storage"] * 3 + ["bridge"] * 3, random.Random(5), span_s=12)
        flow.__exit__()
        cluster.wait_ready()
        _wait_for_all(cluster, 30_000, timeout_s=120)


def test_no_orphan_answers_after_the_query_worker_was_killed() -> None:
    with Sandbox(nodes=1, broker="embedded") as cluster:
        cluster.stop_restarting("query")
        cluster.kill("query", signal.SIGKILL, wait_s=0)
        deadline = time.monotonic() + 5
        while _answers(cluster.http):
            assert time.monotonic() < deadline, "something still answers 5 s after the query worker's parent died"
            time.sleep(0.05)


def _answers(http: str) -> bool:
    try:
        urllib.request.urlopen(http + "/healthz", timeout=1).close()
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False
    return True
