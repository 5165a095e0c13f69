"""Each connection between two processes is cut, stalled, loses bytes, is slow: nothing is lost, no answer is wrong."""

import time
from collections.abc import Callable, Iterator

import pytest

from tests.cluster import Cluster
from tests.flow import Flow, check_settled, check_stored, check_talks
from tests.pipeline import client
from tests.proxy import Proxy
from tests.support import Children, require_part, wait_until

FAULTS: dict[str, Callable[[Proxy], None]] = {
    "cut": Proxy.cut,
    "stalled": Proxy.stall,
    "stalled up": lambda proxy: proxy.stall("up"),
    "losing": Proxy.swallow,
    "slow": lambda proxy: proxy.delay(0.4),
}
LEGS: dict[str, Callable[[Cluster], list[Proxy]]] = {
    "publisher-broker": lambda cluster: [cluster.publishers],
    "broker-bridge": lambda cluster: [cluster.bridge.mqtt],
    "bridge-storage": lambda cluster: [cluster.nodes["ing1"].ingest],
    "storage-bridge": lambda cluster: [cluster.bridge.acks],
    "bridge-all storage": lambda cluster: [node.ingest for node in cluster.nodes.values()],
}
DURING = 150  # messages that are made while the fault lasts: at this rate for longer than three beats
RATE = 150


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    require_part("mosquitto")
    children = Children()
    made = Cluster(
        children, tmp_path_factory.mktemp("network"), nodes=2, replication=2, query=True,
        settings={"mqtt.keepalive_s": 5, "mqtt.reconnect_max_s": 0.5, "query.timeout_s": 2},
    )  # fmt: skip
    try:
        yield made.start()
    finally:
        made.close()
        children.stop_all()


@pytest.fixture
def flow(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Flow]:
    made = Flow(cluster.publishers.port, prefix=request.node.name)
    yield made
    made.close()


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("leg", LEGS)
def test_every_message_is_stored_once(cluster: Cluster, flow: Flow, leg: str, fault: str) -> None:
    proxies = LEGS[leg](cluster)
    flow.start(RATE)
    wait_until(lambda: flow.messages > 10)
    for proxy in proxies:
        FAULTS[fault](proxy)
    begin = flow.messages
    wait_until(lambda: flow.messages > begin + DURING, what="messages to be made while the fault lasts")
    for proxy in proxies:
        proxy.heal()
    flow.stop()
    flow.wait_acked()
    check_stored(cluster, flow.points)
    check_settled(cluster)
    check_talks(cluster)


@pytest.mark.parametrize("fault", FAULTS)
def test_answers_are_whole_or_say_that_they_are_not(cluster: Cluster, flow: Flow, fault: str) -> None:
    flow.send(20, points=10)
    check_stored(cluster, flow.points)
    check_settled(cluster)
    series = {each: len(values) for each, values in flow.points.items()}
    client.wait_for_counts(cluster.http, series, timeout_s=20)
    proxies = [node.requests for node in cluster.nodes.values()]
    FAULTS[fault](proxies[0])
    begin = time.monotonic()
    while time.monotonic() < begin + 1.5:
        for each, want in list(series.items())[:2]:
            ask_count(cluster, each, want)
    FAULTS[fault](proxies[1])
    for each, want in list(series.items())[:2]:
        ask_count(cluster, each, want)
    for proxy in proxies:
        proxy.heal()
    client.wait_for_counts(cluster.http, series, timeout_s=20)


def ask_count(cluster: Cluster, series: tuple[str, str], want: int) -> None:
    """The whole count, or an error that says what is missing; nothing else."""
    status, answer = client.ask(
        cluster.http, device_id=series[0], metric_name=series[1], operation="count", start_time=0, end_time=0
    )
    if status == 200:
        assert (answer["count"], answer["coverage"]["complete"]) == (want, True)
    else:
        assert status == 503, answer
        assert answer["coverage"]["missing"], answer
