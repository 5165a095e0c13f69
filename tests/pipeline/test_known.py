"""Queries without tags ask only the nodes that have the series, and notice within a second that others have it too."""

import signal
import threading

import pytest

from tests.queried import PARTITIONS, Queried
from tests.support import Children, wait_until

NAME = ("dev", "temperature")
FIELDS = {"device_id": "dev", "metric_name": "temperature", "operation": "count"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    children = Children()
    try:
        yield Queried(children, tmp_path_factory.mktemp("known"), 2, {"storage.head_rows": 1024}).wait_ready()
    finally:
        children.stop_all()


def ask(cluster, **more):
    status, answer = cluster.ask(**FIELDS | more)
    assert status == 200, answer
    return answer


def asked(answer):
    return answer["coverage"]["partitions_asked"]


def test_it_asks_the_owner_of_the_series_alone_until_another_series_comes(cluster):
    rooms = [(*NAME, (("room", str(number)),)) for number in range(6)]
    cluster.push([((*NAME, ()), 10**9, 1.0)])
    first = ask(cluster)
    assert (asked(first), first["count"]) == (PARTITIONS, 1)
    second = wait_until(lambda: asked(answer := ask(cluster)) == 1 and answer, 5.0, "the owner alone to be asked")
    assert (second["count"], len(second["coverage"]["nodes"])) == (1, 1)
    hourly = wait_until(lambda: asked(answer := ask(cluster, interval="1h")) == 1 and answer, 5.0)
    assert hourly["count"] == 1
    cluster.push([((*NAME, ()), 2 * 10**9, 1.0)])
    assert ask(cluster)["count"] == 2  # points of known series are in the next answer
    cluster.push([(room, 10**9, 1.0) for room in rooms])
    wait_until(lambda: ask(cluster)["count"] == 8, 2.0, "all series to be counted")
    wait_until(lambda: asked(ask(cluster)) == 7, 2.0, "the owners alone to be asked")
    assert ask(cluster)["count"] == 8


def test_counts_never_go_backwards_while_sets_of_tags_are_new(cluster):
    ended, answers = threading.Event(), {operation: [] for operation in ("count", "median", "last")}

    def count(operation):
        while not ended.is_set():
            status, answer = cluster.ask(device_id="grows", metric_name="m", operation=[operation])
            answers[operation].append(answer["count"] if status == 200 else 0)  # 404 before the first

    threads = [threading.Thread(target=count, args=(operation,)) for operation in answers]
    for thread in threads:
        thread.start()
    cluster.push(((("grows", "m", (("n", str(n)),)), (n + 1) * 10**9, 1.0) for n in range(150)), 1)
    wait_until(lambda: all(each and each[-1] == 150 for each in answers.values()), 5.0, "all series to be counted")
    ended.set()
    for thread in threads:
        thread.join()
    for counts in answers.values():
        assert counts == sorted(counts)


def test_explain_tells_what_each_node_read(cluster):
    cluster.push([(("read", "temperature", ()), at * 10**9, at / 8) for at in range(5000)], 500)
    for fields in ({}, {"interval": "1h"}):
        nodes = wait_until(lambda fields=fields: decoding(cluster, fields), 10.0, "a segment to be written")
        assert all(each["ms"] > 0 for each in nodes)
        assert sum(each["bytes"] for each in nodes) > 0


def decoding(cluster, fields):
    """What the nodes read, where they decode a block of a segment at the start of the range."""
    answer = ask(cluster, device_id="read", start_time=1234, explain=True, **fields)
    assert answer["count"] == 5000 - 1234
    assert answer["explain"]["stages"]["scatter_ms"] > 0
    nodes = answer["explain"]["nodes"].values()
    return nodes if any(each["rows_decoded"] for each in nodes) else None


def test_a_node_that_no_longer_answers_is_missed_even_if_it_had_no_such_series(cluster):
    cluster.push([(("alone", "temperature", ()), 10**9, 1.0)])
    fields = FIELDS | {"device_id": "alone", "timeout_s": 1.0}
    wait_until(lambda: len(cluster.ask(**fields)[1]["coverage"]["nodes"]) == 1, 5.0, "the owner alone to be asked")
    (owner,) = cluster.ask(**fields)[1]["coverage"]["nodes"]
    (other,) = set(cluster.nodes) - {owner}
    cluster.nodes[other].send_signal(signal.SIGSTOP)
    try:
        wait_until(lambda: cluster.ask(**fields)[0] == 503, 10.0, "the other node to be missed")
    finally:
        cluster.nodes[other].send_signal(signal.SIGCONT)
    wait_until(lambda: cluster.ask(**fields)[0] == 200, 10.0, "it to answer again")
