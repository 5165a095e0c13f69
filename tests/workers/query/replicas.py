"""Fake owners that hold different points, without sockets, and what they tell of them. Digests are not the store's."""

import hashlib
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from msgspec import structs

from common import protocol
from common.match import Tester
from common.protocol import (
    AggregateRequest,
    Cost,
    ErrorReply,
    GroupsRequest,
    RangeDigestsReply,
    VerifyReply,
    VerifyRequest,
)
from common.ring import Ring
from common.series import parse_key, partition_of
from common.timestamps import MAX_NS, MIN_NS
from tests.workers.query.fake import FakeNode, Point
from tests.workers.query.groups import naive_groups

READS: Final[Mapping[bytes, Any]] = {protocol.AGGREGATE: AggregateRequest, protocol.GROUPS: GroupsRequest}


def digest(points: Sequence[Point]) -> int:
    """Of a set of points, in whatever order."""
    rows = [key + struct.pack("<qd", at, value) for key, at, value in points]
    return sum(int.from_bytes(hashlib.blake2b(row, digest_size=8).digest(), "little") for row in rows) & (2**64 - 1)


def settled(points: Sequence[Point]) -> list[Point]:
    """By the identity rule: of each series and time the larger value."""
    found: dict[tuple[bytes, int], float] = {}
    for key, at, value in points:
        found[key, at] = max(value, found.get((key, at), value), key=lambda each: (each, math.copysign(1.0, each)))
    return [(key, at, value) for (key, at), value in found.items()]


class Replicas:
    """Owners by id. held: the points of each, settled. errors: what a node answers instead, by node and kind.

    asked: every request; reads: those that came behind a comparison. mute: nodes that compare, but do not read;
    garbling: that reply what nobody can read.
    """

    def __init__(self, ring: Ring, held: Mapping[str, Sequence[Point]]) -> None:
        self.ring = ring
        self.nodes = {node.id: self._node(node.id, held[node.id]) for node in ring.nodes}
        self.asked: list[tuple[str, bytes, Any]] = []
        self.reads: list[tuple[str, bytes, Any]] = []
        self.errors: dict[tuple[str, bytes], ErrorReply] = {}
        self.mute: set[str] = set()
        self.garbling: set[str] = set()

    def _node(self, node_id: str, points: Sequence[Point]) -> FakeNode:
        node = FakeNode.__new__(FakeNode)
        node.ring, node.id = self.ring, node_id
        node.owned = int.from_bytes(self.ring.owned_bitmap(node_id), "little")
        node.points = settled(points)
        return node

    def answer(self, node_id: str, kind: bytes, request: Any) -> Any:
        """What a node replies."""
        self.asked.append((node_id, kind, request))
        return self._reply(node_id, kind, request)

    def _reply(self, node_id: str, kind: bytes, request: Any) -> Any:
        if (node_id, kind) in self.errors:
            return self.errors[node_id, kind]
        node = self.nodes[node_id]
        if kind == protocol.VERIFY:
            read = self._read(node_id, request)
            return read if isinstance(read, ErrorReply) else structs.replace(verify(node, request), read=read)
        if kind == protocol.RANGE_DIGESTS:
            figures = [
                inside(node.points, each.key, each.start_ns, each.end_ns) for each in request.ranges
            ]
            return RangeDigestsReply(0, MIN_NS, *columns(figures), Cost())
        if kind == protocol.GROUPS:
            covered, mine = node._mine(request.partitions)
            return naive_groups(covered, [each for each in mine if each[0] not in request.without], request)
        if kind == protocol.SAMPLES:
            return node.samples(request)
        if kind == protocol.AGGREGATE:
            return node.aggregate(request)
        if kind == protocol.SERIES:
            return node.series(request)
        return protocol.JobsReply([])

    def _read(self, node_id: str, request: VerifyRequest) -> bytes | ErrorReply:
        """What is read behind a comparison."""
        if not request.read_kind or node_id in self.mute:
            return b""
        if node_id in self.garbling:
            return b"?"
        body = protocol.decode_body(request.read, READS[request.read_kind])
        self.reads.append((node_id, request.read_kind, body))
        found = self._reply(node_id, request.read_kind, body)
        return found if isinstance(found, ErrorReply) else protocol.encode_body(found)

    def kinds(self) -> set[bytes]:
        """What was asked so far."""
        return {kind for _, kind, _ in self.asked}


def inside(points: Sequence[Point], key: bytes, start_ns: int, end_ns: int) -> list[Point]:
    return [each for each in points if each[0] == key and start_ns <= each[1] <= end_ns]


def columns(figures: Sequence[Sequence[Point]]) -> tuple[bytes, bytes]:
    counts = np.array([len(points) for points in figures], "<i8")
    return counts.tobytes(), np.array([digest(points) for points in figures], "<u8").tobytes()


def verify(node: FakeNode, request: VerifyRequest) -> VerifyReply:
    """Counts and digests of what matches."""
    covered, mine = node._mine(request.partitions)
    tester = Tester(request.match)
    low = MIN_NS if request.start_ns is None else request.start_ns
    high = MAX_NS if request.end_ns is None else request.end_ns
    chosen = [
        each
        for each in mine
        if low <= each[1] <= high and (series := parse_key(each[0])) and tester.device(series.device_id)
        if tester.metric(series.metric_name) and tester.tags(series.tags)
    ]
    if not request.by_series:
        of = [partition_of(key, node.ring.partitions) for key, _, _ in chosen]
        parts = [
            [each for each, p in zip(chosen, of, strict=True) if p == partition]
            for partition in protocol.members(covered)
        ]
        return VerifyReply(covered, request.delete_number, MIN_NS, [], *columns(parts), Cost())
    keys = sorted({key for key, _, _ in chosen})
    by_key = [[each for each in chosen if each[0] == key] for key in keys]
    return VerifyReply(covered, request.delete_number, MIN_NS, keys, *columns(by_key), Cost())
