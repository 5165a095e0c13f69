"""A node's own store, as its repair uses it: what it holds, whatever it answers to others, and what it takes in.

Owns nothing. Belongs to the repair thread.
"""

from collections.abc import Callable
from typing import Any

from common import protocol
from common.protocol import FetchReply
from workers.storage import lacking
from workers.storage.arrived import Arrived
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

    def take(self, reply: FetchReply) -> tuple[int, int]:
        """Take in what lacks here of a reply: how many rows that was, and how many blocks came as they are.

        Raises ProtocolError, StorageError.
        """
        lacked = 0

        def sift(found: Arrived) -> Arrived:
            nonlocal lacked
            store = self._store
            points, rows = lacking.of_arrived(store.view, store.by_hash, found, store.cutoff, store.pool)
            lacked += rows
            return points

        taken = self._store.take_in([reply], sift)
        return lacked, taken.blocks
