"""Which node is asked for which partitions.

A set of partitions is a Python int here, partition p being bit p: union, difference and subset are single
operations. Its little-endian bytes are the bitmap of the bus protocol.
Pure: no I/O, no clock, no state.
"""

import functools
import itertools
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import numpy.typing as npt

from common.match import Match, exact
from common.protocol import AggregateRequest
from common.ring import NOBODY, Ring
from common.series import partition_of, series_key
from workers.query.known import Known, Pair
from workers.query.known import Partitions as Partitions


@dataclass(frozen=True)
class Plan:
    """One ring as the scatter needs it, computed once per epoch.

    everything: all partitions. ranks: ranks[r] maps a node's id to the partitions whose owner number r it is; so
    ranks[0] is the assignment of everything when nobody is to be avoided. behind: nodes that may lack points, with
    the reason and until when (monotonic) waiting for them may help; a later plan of the same ring may have others.
    known: where series lie; the scatter thread keeps it fresh.
    """

    ring: Ring
    everything: Partitions
    ranks: tuple[Mapping[str, Partitions], ...]
    behind: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    known: Known = field(default_factory=Known)

    @classmethod
    def of(cls, ring: Ring, known: Known | None = None) -> Self:
        """The plan of a ring. known: where series lie, kept over rings."""
        ranks: list[dict[str, Partitions]] = [{} for _ in range(ring.width)]
        for partition in range(ring.partitions):
            for rank, node in enumerate(ring.owners(partition)):
                ranks[rank][node.id] = ranks[rank].get(node.id, 0) | 1 << partition
        return cls(ring, (1 << ring.partitions) - 1, tuple(ranks), known=known or Known())

    @functools.cached_property
    def owners(self) -> npt.NDArray[np.int64]:
        """How many owners each partition has."""
        found: npt.NDArray[np.int64] = (self.ring.owner_table != NOBODY).sum(axis=1)
        return found

    def wanted(self, request: AggregateRequest) -> Partitions:
        """The partitions that may hold a matching series: one when the tags are known, else all."""
        if request.tags is None:
            return self._where((request.device_id, request.metric_name))
        key = series_key(request.device_id, request.metric_name, request.tags)
        return 1 << partition_of(key, self.ring.partitions)

    def wanted_by(self, match: Match, learned: bool = True) -> Partitions:
        """The partitions that may hold a series that matches: few when device, metric and tags are exact, else all.

        learned: whether to go by what earlier answers have told, each of one owner, of where series lie.
        """
        if (pair := exact_pair(match)) is not None:
            return self._where(pair) if learned else self.everything
        devices, metrics = exact(match.device_id), exact(match.metric_name)
        if devices is None or metrics is None or match.tags is None or match.more_tags:
            return self.everything
        tags = {name: exact(patterns) for name, patterns in match.tags.items()}
        values = [each for each in tags.values() if each is not None]
        if len(values) < len(tags) or math.prod(map(len, (devices, metrics, *values))) > self.ring.partitions:
            return self.everything
        wanted = 0
        for device, metric, *chosen in itertools.product(devices, metrics, *values):
            key = series_key(device, metric, dict(zip(tags, chosen, strict=True)))
            wanted |= 1 << partition_of(key, self.ring.partitions)
        return wanted

    def learn(self, pair: Pair, partitions: Collection[int], stamps: Mapping[str, int]) -> None:
        """Note where answers of everybody found the series of a device's metric. stamps: of these answers, by node."""
        self.known.learn(pair, partitions, stamps, [node.id for node in self.ring.nodes])

    def _where(self, pair: Pair) -> Partitions:
        """Nobody may be behind: what a spool holds for a node can be a series that nobody knows yet.

        Nor may the ring be older than somebody else's, see known.py.
        """
        known = None if self.behind or self.known.epoch > self.ring.epoch else self.known.where(pair)
        return self.everything if known is None else known

    def assign(self, wanted: Partitions, avoid: Collection[str] = ()) -> Mapping[str, Partitions]:
        """Each wanted partition given to its first owner that is not to be avoided, grouped by node.

        Partitions that have no such owner are in no group.
        """
        if wanted == self.everything and not avoid:
            return self.ranks[0]
        groups: dict[str, Partitions] = {}
        for rank in self.ranks:
            for node, owned in rank.items():
                taken = owned & wanted
                if taken and node not in avoid:
                    groups[node] = groups.get(node, 0) | taken
                    wanted &= ~taken
            if not wanted:
                break
        return groups

    def owned(self, node: str) -> Partitions:
        """The partitions of which a node is an owner, at whatever rank."""
        owned = 0
        for rank in self.ranks:
            owned |= rank.get(node, 0)
        return owned

    def has_owners_of(self, other: Self, partitions: Partitions) -> bool:
        """Whether partitions have the same owners by another plan, and the same points are deleted."""
        if self.ring is other.ring:
            return True
        nodes = {node for plan in (self, other) for rank in plan.ranks for node in rank}
        changed = any((self.owned(node) ^ other.owned(node)) & partitions for node in nodes)
        return not changed and self.ring.delete_number == other.ring.delete_number

    def bitmap(self, partitions: Partitions) -> bytes:
        """The bitmap of a set of partitions as requests carry it."""
        return partitions.to_bytes((self.ring.partitions + 7) // 8, "little")


def exact_pair(match: Match) -> Pair | None:
    """The device and metric of a match that is about all series of one device's metric; None for another."""
    devices, metrics = exact(match.device_id), exact(match.metric_name)
    if match.tags is not None or devices is None or metrics is None or len(devices) + len(metrics) > 2:
        return None
    return devices[0], metrics[0]


def from_bitmap(bitmap: bytes) -> Partitions:
    """The set of partitions in a bitmap."""
    return int.from_bytes(bitmap, "little")


def flags(partitions: Partitions, count: int) -> npt.NDArray[np.bool_]:
    """A set of partitions as bool by partition, of so many."""
    bits = np.frombuffer(partitions.to_bytes((count + 7) // 8, "little"), np.uint8)
    return np.unpackbits(bits, count=count, bitorder="little").view(np.bool_)


def from_flags(found: npt.NDArray[np.bool_]) -> Partitions:
    """The set of partitions that are True."""
    return from_bitmap(np.packbits(found, bitorder="little").tobytes())
