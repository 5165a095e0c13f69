"""The series of a catalog in order of (hash, key), in which segments have them: those of a partition are a run.

Owns that order, made anew when series were added. Any thread: it is replaced whole.
"""

from typing import Final, NamedTuple

import numpy as np

from workers.storage.catalog import Catalog
from workers.storage.table import Selection

_HASH_BITS: Final = 64


class _Known(NamedTuple):
    """stamp: of the catalog, from before it was looked at."""

    stamp: int
    series: Selection


class HashOrder:
    """All series of a catalog. partitions: a power of two."""

    def __init__(self, catalog: Catalog, partitions: int) -> None:
        self._catalog = catalog
        self._shift = _HASH_BITS - partitions.bit_length() + 1
        self._known: _Known | None = None

    def all(self) -> Selection:
        """Every series."""
        known, stamp = self._known, self._catalog.stamp
        if known is None or known.stamp != stamp:
            known = self._known = _Known(stamp, self._sorted())
        return known.series

    def partition(self, partition: int) -> Selection:
        """The series of one partition."""
        series = self.all()
        bounds = [partition << self._shift, ((partition + 1) << self._shift) - 1]
        begin = int(series.hashes.searchsorted(np.uint64(bounds[0])))
        return series.part(begin, int(series.hashes.searchsorted(np.uint64(bounds[1]), "right")))

    def of_key(self, key: bytes) -> Selection:
        """The series of a key; none where it is not known."""
        found = self._catalog.find(key)
        ids = np.array([] if found is None else [found], np.int64)
        return Selection(ids, self._catalog.hashes(ids), self._catalog.key)

    def place(self, series: Selection, key: bytes) -> int:
        """Where a key is in a part of this order, or would be."""
        hash_ = int(self._catalog.hashes_of([key])[0])
        at = int(series.hashes.searchsorted(np.uint64(hash_)))
        while at < len(series.ids) and series.hashes[at] == hash_ and series.key_of(int(series.ids[at])) < key:
            at += 1
        return at

    def _sorted(self) -> Selection:
        ids = np.arange(len(self._catalog))
        hashes = self._catalog.hashes(ids)
        order = np.argsort(hashes, kind="stable")
        equal = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
        if len(equal):
            keys = self._catalog.keys(ids)
            order = np.array(sorted(order.tolist(), key=lambda at: (int(hashes[at]), keys[at])), np.int64)
        return Selection(ids[order], hashes[order], self._catalog.key)
