"""GET /live: what is acknowledged arrives, filtered; slow readers are ended; what was missed is told."""

import http.client
import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest

from common import config
from common.points import PointBatch
from common.series import partition_of, series_key
from tests.queried import PARTITIONS, Queried
from tests.support import Children, wait_until
from workers.query.live import _Channel
from workers.query.selection import match_of

STREAMS = 205
QUEUE = 2000
Event = tuple[str, Any]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Queried]:
    children = Children()
    settings = {"query.live_streams": STREAMS, "query.live_queue": QUEUE, "query.live_heartbeat_s": 0.5}
    try:
        yield Queried(children, tmp_path_factory.mktemp("live"), 2, settings).wait_ready()
    finally:
        children.stop_all()


class Listener:
    """One live stream. events: as they come."""

    def __init__(self, cluster: Queried, **parameters: Any) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", cluster.port, timeout=20)
        self.connection.request("GET", f"/live?{urlencode(parameters, doseq=True)}")
        self.reply = self.connection.getresponse()
        assert self.reply.status == 200, self.reply.read()

    def next(self) -> Event:
        """The next event; ("heartbeat", None) for a heartbeat, ("", None) at the end."""
        name, data = "", b""
        while (line := self.reply.readline()) not in (b"\n", b""):
            if line.startswith(b"event: "):
                name = line[7:-1].decode()
            elif line.startswith(b"data: "):
                data = line[6:-1]
            elif line.startswith(b":"):
                name = "heartbeat"
        return name, json.loads(data) if data else None

    def until(self, name: str) -> Any:
        """The data of the next event of this name."""
        while (found := self.next())[0] != name:
            assert found[0], f"ended before {name}"
        return found[1]

    def points(self, count: int) -> list[dict[str, Any]]:
        """So many points, at least."""
        found: list[dict[str, Any]] = []
        while len(found) < count:
            found += self.until("point")
        return found

    def close(self) -> None:
        self.reply.close()
        self.connection.close()


@pytest.fixture
def listen(cluster: Queried) -> Iterator[Callable[..., Listener]]:
    """Opens streams that are heard by all nodes; all are gone when the test is over."""
    opened: list[Listener] = []

    def listen(**parameters: Any) -> Listener:
        opened.append(Listener(cluster, **parameters))
        return opened[-1]

    yield listen
    for each in opened:
        each.close()
    wait_until(lambda: streams(cluster) == 0, 20, "all streams to be free again")


def streams(cluster: Queried) -> int:
    _, text = cluster.call("GET", "/metrics")
    (line,) = [line for line in text.decode().splitlines() if line.startswith("minitrue_live_streams{")]
    return int(float(line.split()[-1]))


def row(device: str, at: int, value: float = 1.0, metric: str = "m", **tags: str) -> Any:
    return (device, metric, tuple(sorted(tags.items()))), at * 10**9, value


def device_of(cluster: Queried, node: str) -> str:
    """A device whose series "m" a node owns."""
    for number in range(1000):
        partition = partition_of(series_key(f"at{number}", "m"), PARTITIONS)
        if cluster.ring.owners(partition)[0].id == node:
            return f"at{number}"
    raise AssertionError(node)


def test_no_more_series_are_remembered_than_allowed_and_rows_are_the_same() -> None:
    channel = _Channel(match_of({"device_id": "~d[0-4]"}, config.Ingest()), "s")
    for turn in range(4):
        keys = [series_key(f"d{turn}", "m"), series_key(f"x{turn}", "m")]
        batch = PointBatch(keys, np.array([0, 1], np.uint32), np.array([0, 1]) * 10**9, np.array([1.5, 2.5]))
        (told,) = channel.rows(batch, 3)
        assert json.loads(told) == {"device_id": f"d{turn}", "metric_name": "m", "tags": {}, "time": 0, "value": 1.5}
        assert len(channel._known) <= 3 + 2


def test_points_that_are_acknowledged_arrive_once_and_only_those_that_match(
    cluster: Queried, listen: Callable[..., Listener]
) -> None:
    every, some = listen(), listen(device_id="~dev[12]", **{"tags.room": "a"}, time_unit="ns")
    for stream in (every, some):
        assert stream.until("ready") == {"nodes": ["ing1", "ing2"], "missing": []}
    rows = [row(f"dev{at % 4}", 1000 + at, at / 7, room="ab"[at % 2]) for at in range(40)]
    cluster.push(rows)
    told = every.points(40)
    assert len(told) == 40
    wanted = [
        {"device_id": d, "metric_name": m, "tags": dict(tags), "time": at // 10**9, "value": value}
        for (d, m, tags), at, value in rows
    ]
    assert sorted(map(str, told)) == sorted(map(str, wanted))
    matching = [one for one in wanted if one["device_id"] == "dev2" and one["tags"] == {"room": "a"}]
    assert sorted(some.points(10), key=lambda one: one["time"]) == [
        {**one, "time": one["time"] * 10**9} for one in matching
    ]


def test_a_silent_stream_says_that_it_is_alive(listen: Callable[..., Listener]) -> None:
    stream = listen(device_id="nobody")
    stream.until("ready")
    assert [stream.next()[0] for _ in range(2)] == ["heartbeat", "heartbeat"]


def test_a_reader_that_is_too_slow_is_ended_with_a_message_and_nobody_waits_for_it(
    cluster: Queried, listen: Callable[..., Listener]
) -> None:
    slow, quick = listen(), listen(device_id="last")
    slow.until("ready")
    quick.until("ready")
    for turn in range(40):  # far more than the queue and what sockets hold
        cluster.push([row("flood", turn * 5000 + at, 1 / 3, text="x" * 200) for at in range(5000)])
    cluster.push([row("last", 1)])
    assert quick.points(1)[0]["device_id"] == "last"
    told = slow.until("error")
    assert told["error"] == "slow_reader"
    assert f"query.live_queue = {QUEUE}" in told["message"]
    assert slow.next() == ("", None)


def test_a_stream_whose_client_has_gone_is_free_again(cluster: Queried, listen: Callable[..., Listener]) -> None:
    stream = listen()
    stream.until("ready")
    assert streams(cluster) == 1
    stream.close()
    wait_until(lambda: streams(cluster) == 0, 10, "the stream to be free")


def test_a_node_that_is_started_again_is_heard_again_and_what_may_be_missed_is_told(
    cluster: Queried, listen: Callable[..., Listener]
) -> None:
    stream = listen()
    stream.until("ready")
    cluster.nodes["ing1"].terminate()
    cluster.nodes["ing1"].wait()
    cluster.nodes["ing1"] = cluster._run("ing1", "workers.storage", "--node-id", "ing1")
    lost = stream.until("lost")
    assert lost == {"node": "ing1", "messages": None, "reason": "it was started again"}
    device = device_of(cluster, "ing1")
    cluster.push([row(device, 5, 2.5)])
    assert stream.points(1)[0] == {"device_id": device, "metric_name": "m", "tags": {}, "time": 5, "value": 2.5}


def test_two_hundred_streams_hear_the_same_and_one_more_than_allowed_is_refused(
    cluster: Queried, listen: Callable[..., Listener]
) -> None:
    opened = [listen(device_id=f"dev{at % 10}") for at in range(STREAMS)]
    status, answer = cluster.call("GET", "/live")
    assert (status, answer["error"], answer["setting"]) == (429, "limit", "query.live_streams")
    assert (answer["limit"], answer["value"]) == (STREAMS, STREAMS + 1)
    for stream in opened:
        assert stream.until("ready")["missing"] == []
    cluster.push([row(f"dev{at}", 77, float(at)) for at in range(10)])
    for at, stream in enumerate(opened):
        (told,) = stream.points(1)
        assert (told["device_id"], told["value"]) == (f"dev{at % 10}", float(at % 10))
    assert cluster.ask(device_id="dev1", metric_name="m", operation="count")[0] == 200  # and others are answered


@pytest.mark.parametrize("parameters", ["start_time=5", "device_id=~(", "time_unit=h", "tags=x"])
def test_what_cannot_be_listened_to_is_refused(cluster: Queried, parameters: str) -> None:
    status, answer = cluster.call("GET", f"/live?{parameters}")
    assert (status, answer["error"]) == (400, "bad_request")


def test_a_worker_with_open_streams_stops_soon(cluster: Queried) -> None:
    """The last one of this module: the query worker ends."""
    stream = Listener(cluster)
    stream.until("ready")
    cluster.query.terminate()
    assert cluster.query.wait(15) == 0
    stream.close()
