"""A node's own store, as its repair uses it: what it holds, whatever it answers to others, and what it takes in.

Owns nothing. Belongs to the repair thread.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from common import protocol
from common.protocol import FetchReply
from workers.storage import lacking
from workers.storage.arrived import Arrived
from workers.storage.converge import Taken
from workers.storage.exchange import Exchange
from workers.storage.store import Store


class Here:
    """One store. partitions: of the ring."""

    def __init__(self, store: Store, partitions: int) -> None:
        everything = protocol.bitmap(range(partitions), partitions)
        exchange = Exchange(store, lambda: everything)
        self._store = store
        self._answers: dict[bytes, Callable[[Any], Any]] = {
            protocol.DIGESTS: exchange.digests,
            protocol.SERIES_DIGESTS: exchange.series_digests,
            protocol.RANGE_DIGESTS: exchange.range_digests,
        }

    @property
    def delete_number(self) -> int:
        """The highest delete in force."""
        return self._store.delete_number

    def answer(self, kind: bytes, body: Any) -> Any:
        """What this node holds. Raises RefusedError at another delete number, StorageError for damage."""
        return self._answers[kind](body)

    def take(self, replies: Sequence[FetchReply]) -> Taken:
        """Take in what lacks here of replies; many at once make fewer and larger segments.

        Raises ProtocolError, StorageError.
        """
        lacked, hashes = 0, [np.empty(0, np.uint64)]

        def sift(found: Arrived) -> Arrived:
            nonlocal lacked
            store = self._store
            points, rows = lacking.of_arrived(store.view, store.by_hash, found, store.cutoff, store.pool)
            lacked += rows
            hashes.append(points.hashes[np.union1d(points.owners, points.row_owners)])
            return points

        blocks = self._store.take_in(replies, sift).blocks
        partitions = self._store.partitions_of_hashes(np.concatenate(hashes)).tolist()
        return Taken(lacked, blocks, frozenset(partitions))
