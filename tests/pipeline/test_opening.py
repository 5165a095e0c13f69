"""A node that was killed and replays its WAL: questions are answered at once by its co-owner, and nobody takes it for
gone, or for one that holds nothing.
"""

import json
import os
import socket
import subprocess
import threading
import time

import pytest

from common.errors import ConfigError
from tests.queried import Queried
from tests.support import ROOT, Children, wait_until
from tools import ringctl_move
from tools.ring_ask import Asker

AT_ONCE_S = 0.9  # on a busy machine; a question that is held waits for half of query.timeout_s or more
FIELDS = {"device_id": ["d*"], "metric_name": "m", "operation": "count"}
DEVICES = 20  # so that both nodes are first owners of some


def rows(time_s):
    return [((f"d{number}", "m", ()), time_s * 10**9, 1.0) for number in range(DEVICES)]


@pytest.fixture
def held(tmp_path):
    """While this file is there, the node opens no further than its first WAL file."""
    path = tmp_path / "held"
    path.touch()
    return path


@pytest.fixture
def cluster(tmp_path, held):
    """Two owners of everything, one of them killed and on its way."""
    children = Children()
    try:
        made = Queried(children, tmp_path / "c", 2, {"query.timeout_s": 5.0}, replication=2).wait_ready()
        for rank in range(2):
            made.push(rows(1), rank=rank)
        made.nodes["ing1"].kill()
        made.nodes["ing1"].wait()
        made.start("ing1", "tests.held", str(held))
        wait_until(lambda: listens(made, "ing1"), 30.0, "ing1 to have bound its ports")
        wait_until(lambda: "not connected" not in reason(made, "ing1"), 10.0, "the query worker to be connected")
        yield made
    finally:
        children.stop_all()


def listens(cluster, node):
    host, port = cluster.ring.node(node).request_endpoint.removeprefix("tcp://").split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def reason(cluster, node):
    return cluster.call("GET", "/api/v1/status")[1]["nodes"][node].get("reason", "")


def timed(ask):
    begun_s = time.monotonic()
    answer = ask()
    return answer, time.monotonic() - begun_s


def ringctl(cluster, *arguments):
    environment = os.environ | cluster._environment
    command = [ROOT / "tools" / "ringctl", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_while_a_node_opens_its_store_the_co_owner_answers_at_once_and_everybody_is_told_why(cluster, held):
    for _ in range(10):
        (status, answer), took_s = timed(lambda: cluster.ask(**FIELDS))
        assert (status, answer.get("count")) == (200, DEVICES), answer
        assert (answer["coverage"]["complete"], answer["coverage"]["nodes"]) == (True, ["ing2"])
        assert took_s < AT_ONCE_S
    (_, told), took_s = timed(lambda: cluster.call("GET", "/api/v1/status"))
    node = told["nodes"]["ing1"]
    assert (told["ready"], node["ready"], node["state"]) == (False, False, "opening")
    assert node["reason"].startswith("opening: the store is being opened")
    assert took_s < AT_ONCE_S
    wait_until(lambda: "(0 of 1 WAL files replayed): " in reason(cluster, "ing1"), 30.0, "the progress to be told")
    shown = ringctl(cluster, "status", "--json")
    (first, second) = json.loads(shown.stdout)["nodes"]
    assert (shown.returncode, first["state"], second["state"]) == (1, "opening", "up")
    text = ringctl(cluster, "status").stdout
    assert "opening" in text and "unreachable" not in text and "once more: a node that was killed" in text
    with pytest.raises(ConfigError, match="ing1 answers, so it is not lost"):
        ringctl_move._check_lost(Asker(None), cluster.ring, "ing1")

    pushing = threading.Thread(target=cluster.push, args=(rows(2),))  # what first owners get: some of it is ing1's
    pushing.start()
    pushing.join(0.3)
    assert pushing.is_alive(), "points that are not durable yet were acknowledged"
    held.unlink()
    pushing.join(30.0)
    assert not pushing.is_alive()
    cluster.wait_ready()
    cluster.push(rows(2), rank=1)
    status, answer = wait_until(
        lambda: (got := cluster.ask(**FIELDS))[1]["coverage"]["nodes"] == ["ing1", "ing2"] and got, 10.0
    )
    assert (status, answer["count"], answer["coverage"]["complete"]) == (200, 2 * DEVICES, True)
