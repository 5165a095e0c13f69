"""A storage node for tests of the query worker: a real ROUTER, naive answers, and faults on demand.

`python -m tests.workers.query.fake RING_FILE NODE_ID POINTS_FILE` runs one as a process that can be killed.
"""

import json
import math
import sys
import threading
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from common import bus, figures, match, process, protocol
from common.match import Tester
from common.points import PointBatch
from common.protocol import AggregateReply, AggregateRequest, GroupsRequest, Header, Message, SeriesReply, SeriesRequest
from common.ring import Ring
from common.series import Series, parse_key, partition_of, series_key
from common.timestamps import MAX_NS, MIN_NS
from tests.workers.query.groups import naive_groups

Point = tuple[bytes, int, float]  # series key, nanoseconds, value
Reaction = Callable[["FakeNode", list[bytes], Message], bool]  # True: it has dealt with the request


def make_ring(ports: Sequence[int], partitions: int = 64, replication: int = 1, epoch: int = 1) -> Ring:
    """A ring of nodes ing1, ing2, ... whose partitions go round."""
    nodes = [
        {"id": f"ing{number + 1}", "store_id": "", "endpoint": f"tcp://127.0.0.1:{port}", "zone": f"z{number}",
         "weight": 1.0, "state": "active"}
        for number, port in enumerate(ports)
    ]  # fmt: skip
    owners = [[(p + rank) % len(ports) for rank in range(replication)] for p in range(partitions)]
    return Ring.from_document(
        {"version": 2, "cluster": "test-cluster", "epoch": epoch, "partitions": partitions,
         "replication": replication, "nodes": nodes, "owners": owners, "since": [epoch] * partitions,
         "moves": [], "deletes": []}
    )  # fmt: skip


def point(device: str, metric: str, time_ns: int, value: float, tags: dict[str, str] | None = None) -> Point:
    """A point, its key made."""
    return series_key(device, metric, tags), time_ns, value


class FakeNode:
    """Answers for the points given that lie in its partitions. reaction: what to do instead, if anything."""

    incarnation = 4242

    def __init__(self, ring: Ring, node_id: str, points: Sequence[Point] = ()) -> None:
        self.ring = ring
        self.id = node_id
        self.points = list(points)
        self.reaction: Reaction | None = None
        self.requests: list[Message] = []
        self.cancels: list[Message] = []
        self.bridges: dict[str, Any] = {}
        self.families: list[protocol.ProcessMetrics] = []
        self.owned = _set(ring.owned_bitmap(node_id))
        self._stop = process.Stop()
        self._bus = bus.Bus()
        self._router = self._bus.router(ring.node(node_id).request_endpoint)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End as a process would: the port is closed, nothing more is answered."""
        self._stop.set()
        self._thread.join()
        self._bus.close()

    def _run(self) -> None:
        poller = bus.Poller([self._router, self._stop])
        while self._stop not in poller.poll(None):
            while (received := self._router.receive_routed()) is not None:
                route, frames = received
                message = protocol.unpack(frames)
                if message.kind == protocol.CANCEL:
                    self.cancels.append(message)
                    continue
                self.requests.append(message)
                if self.reaction is None or not self.reaction(self, route, message):
                    self.answer(route, message)

    def answer(self, route: list[bytes], message: Message, **changes: Any) -> None:
        """Answer as a healthy node does. changes: to the header."""
        kind, body = self._body(message)
        self.send(route, protocol.pack(kind, self.header(message, **changes), body))

    def send(self, route: list[bytes], frames: list[bytes]) -> None:
        """Send frames of any kind back."""
        self._router.reply(route, frames)

    def header(self, message: Message, **changes: Any) -> Header:
        """The header of an answer."""
        to = message.header
        header = Header(
            protocol.VERSION, self.ring.cluster, to.sender, self.id, self.incarnation, 1, self.ring.epoch,
            self.ring.hash, re=to.sequence, re_incarnation=to.incarnation,
        )  # fmt: skip
        return msgspec.structs.replace(header, **changes)

    def _body(self, message: Message) -> tuple[bytes, Any]:
        if message.kind == protocol.AGGREGATE:
            return protocol.REPLY, self.aggregate(protocol.decode_body(message.body, AggregateRequest))
        if message.kind == protocol.AGGREGATES:
            requests = protocol.decode_body(message.body, protocol.AggregatesRequest).requests
            return protocol.REPLY, protocol.AggregatesReply([self.outcome(request) for request in requests])
        if message.kind == protocol.SERIES:
            return protocol.REPLY, self.series(protocol.decode_body(message.body, SeriesRequest))
        if message.kind == protocol.SAMPLES:
            return protocol.REPLY, self.samples(protocol.decode_body(message.body, protocol.SamplesRequest))
        if message.kind == protocol.GROUPS:
            request = protocol.decode_body(message.body, GroupsRequest)
            return protocol.REPLY, naive_groups(*self._mine(request.partitions), request)
        if message.kind == protocol.DESCRIBE:
            return protocol.REPLY, self.describe(protocol.decode_body(message.body, protocol.DescribeRequest))
        if message.kind == protocol.TAGS:
            return protocol.REPLY, self.tags(protocol.decode_body(message.body, protocol.TagsRequest))
        if message.kind == protocol.GAPS:
            return protocol.REPLY, self.gaps(protocol.decode_body(message.body, protocol.GapsRequest))
        if message.kind == protocol.METRICS:
            up = protocol.MetricFamily("minitrue_points", "gauge", "Points.", [("minitrue_points", {}, 7.0)])
            own = protocol.ProcessMetrics(self.id, self.incarnation, 0.0, [up])
            return protocol.REPLY, protocol.MetricsReply([own, *self.families])
        return protocol.REPLY, {"node": self.id, "points": len(self.points), "bridges": self.bridges}

    def _mine(self, asked: bytes) -> tuple[bytes, list[Point]]:
        covered = _set(asked) & self.owned
        size = (self.ring.partitions + 7) // 8
        mine = [each for each in self.points if covered >> partition_of(each[0], self.ring.partitions) & 1]
        return covered.to_bytes(size, "little"), mine

    def aggregate(self, request: AggregateRequest) -> AggregateReply:
        """The partial aggregate, one point after the other."""
        covered, mine = self._mine(request.partitions)
        chosen = [each for each in mine if _matches(each[0], request)]
        return naive_partial(covered, chosen, request.start_ns, request.end_ns)

    def outcome(self, request: AggregateRequest) -> protocol.AggregateOutcome:
        """The answer to one of several requests; override it to hand some back."""
        return protocol.AggregateOutcome(self.aggregate(request), None)

    def series(self, request: SeriesRequest) -> SeriesReply:
        """The series keys."""
        covered, mine = self._mine(request.partitions)
        keys = sorted({key for key, _, _ in mine if key > request.after and _matches(key, request)})
        return SeriesReply(covered, keys[: request.limit], len(keys) > request.limit)


    def samples(self, request: protocol.SamplesRequest) -> protocol.SamplesReply:
        """A page of points."""
        covered, mine = self._mine(request.partitions)
        tester = Tester(request.match)
        low, high = request.start_ns or MIN_NS, request.end_ns or MAX_NS
        rows = [
            (key, time_ns, value)
            for key, time_ns, value in sorted(mine)
            if (key, time_ns) > (request.after_key, request.after_ns) and low <= time_ns <= high
            if (series := parse_key(key)) and tester.device(series.device_id) and tester.metric(series.metric_name)
            if tester.tags(series.tags)
        ]
        page = rows[: request.limit]
        keys = list(dict.fromkeys(key for key, _, _ in page))
        index = np.array([keys.index(key) for key, _, _ in page], np.uint32)
        times, values = np.array([row[1] for row in page], np.int64), np.array([row[2] for row in page], np.float64)
        batch = PointBatch(keys, index, times, values).encode()
        return protocol.SamplesReply(covered, 0, batch, len(rows) > len(page), protocol.Cost())


    def describe(self, request: protocol.DescribeRequest) -> protocol.DescribeReply:
        """What series hold."""
        covered, mine = self._mine(request.partitions)
        keys = sorted({key for key, _, _ in mine if key > request.after and _selects(request.match, parse_key(key))})
        page = keys[: request.limit]
        return protocol.DescribeReply(
            covered, 0, page, figures.pack(_described(page, mine, request)), len(keys) > len(page), protocol.Cost()
        )


    def tags(self, request: protocol.TagsRequest) -> protocol.TagsReply:
        """How many series have each value of each tag."""
        covered, mine = self._mine(request.partitions)
        found: dict[str, dict[str, int]] = {}
        for series in [parse_key(key) for key in {key for key, _, _ in mine}]:
            for name, value in series.tags if _selects(request.match, series) else ():
                values = found.setdefault(name, {})
                values[value] = values.get(value, 0) + 1
        return protocol.TagsReply(covered, 0, found)

    def gaps(self, request: protocol.GapsRequest) -> protocol.GapsReply:
        """The last silence of each series alone: enough for what is asked of this node."""
        asked = protocol.DescribeRequest(
            request.partitions, request.match, request.start_ns, request.end_ns, request.after, request.limit, True
        )
        described = self.describe(asked)
        found = figures.unpack(described.columns, ("last_time", "usual_ns"))
        silent = request.end_ns - found["last_time"] > request.factor * found["usual_ns"]
        at = (silent & (found["usual_ns"] > 0)).nonzero()[0]
        columns = {"group": at, "start": found["last_time"][at], "end": found["last_time"][at]}
        columns["usual_ns"] = found["usual_ns"][at]
        return protocol.GapsReply(
            described.partitions, 0, described.keys, figures.pack(columns), described.more, protocol.Cost()
        )


def _selects(wanted: match.Match, series: Series) -> bool:
    tester = match.Tester(wanted)
    return tester.device(series.device_id) and tester.metric(series.metric_name) and tester.tags(series.tags)


def _described(keys: Sequence[bytes], points: Sequence[Point], request: protocol.DescribeRequest) -> dict[str, Any]:
    low = -(2**63) if request.start_ns is None else request.start_ns
    high = 2**63 - 1 if request.end_ns is None else request.end_ns
    rows = []
    for wanted in keys:
        mine = sorted((at, value) for key, at, value in points if key == wanted and low <= at <= high)
        first, last = (mine[0], mine[-1]) if mine else ((0, 0.0), (0, 0.0))
        steps = [later[0] - earlier[0] for earlier, later in pairwise(mine)]
        usual = sorted(steps)[(len(steps) - 1) // 2] if steps and request.intervals else 0
        rows.append((len(mine), *first, *last, usual))
    names = ("count", "first_time", "first", "last_time", "last", "usual_ns")
    return {name: [row[at] for row in rows] for at, name in enumerate(names)}


def naive_partial(covered: bytes, points: Sequence[Point], start_ns: int | None, end_ns: int | None) -> AggregateReply:
    """What a node replies for these points."""
    series = len({key for key, _, _ in points})
    rows = [
        (time_ns, value)
        for _, time_ns, value in points
        if (start_ns is None or time_ns >= start_ns) and (end_ns is None or time_ns <= end_ns)
    ]
    if not rows:
        return AggregateReply(covered, 0, series, 0, 0.0, 0.0, 0.0, 0.0, 0, 0.0, 0, 0.0, 0, 0, 0)
    values = [value for _, value in rows]
    exact = sum(map(Fraction, values))
    hi = float(exact)
    mean = exact / len(rows)
    m2 = sum((Fraction(value) - mean) ** 2 for value in values)
    first, last = min(rows)[0], max(rows)[0]
    return AggregateReply(
        covered, 0, series, len(rows), hi, float(exact - Fraction(hi)), min(values), max(values),
        first, max(value for time_ns, value in rows if time_ns == first),
        last, max(value for time_ns, value in rows if time_ns == last), 0, 0, len(rows),
        float(m2) if m2 < sys.float_info.max else math.inf,
    )  # fmt: skip


def _matches(key: bytes, request: AggregateRequest | SeriesRequest) -> bool:
    series = parse_key(key)
    if isinstance(request, AggregateRequest) and request.tags is not None and dict(series.tags) != request.tags:
        return False
    return request.device_id in (None, series.device_id) and request.metric_name in (None, series.metric_name)


def _set(bitmap: bytes) -> int:
    return int.from_bytes(bitmap, "little")


def main(ring_file: str, node_id: str, points_file: str) -> None:
    """Run a node until killed."""
    points = [point(*each) for each in json.loads(Path(points_file).read_text())]
    FakeNode(Ring.loads(Path(ring_file).read_bytes()), node_id, points)
    print("ready", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
