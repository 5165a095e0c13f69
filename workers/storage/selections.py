"""Which series a question means, in which order: the selections and groups lately asked for.

Owns the index of names; keeps what it found in the store's cache, until series are added: by the catalog's stamp from
before it looked, which counts no series that could not be found yet. Any thread.
"""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, cast

import msgspec
import numpy as np
import numpy.typing as npt

from common.match import Match, exact
from workers.storage.catalog import Catalog
from workers.storage.names import Check, Groups, Names, few_names, go_on
from workers.storage.page_cache import PageCache
from workers.storage.table import Selection

Integers = npt.NDArray[np.int64]
Inside = Callable[[npt.NDArray[np.uint64]], npt.NDArray[np.bool_]]  # of hashes: which lie in the partitions asked

SERIES: Final = "series"  # to group by: each series is a group


class Grouped(NamedTuple):
    """The series of a selection by group. ids, hashes, groups: by place; groups ascend. sizes: int64[groups].

    labels: int32[groups, fields], for `Selections.labels`; none when grouped by series.
    """

    ids: Integers
    hashes: npt.NDArray[np.uint64]
    groups: Integers
    sizes: Integers
    labels: npt.NDArray[np.int32]

    def without(self, ids: Integers) -> "Grouped":
        """The same groups without some series. Those with none left go, and the others are numbered anew: by series
        there is one label for each id that is left, and an answer's rows name groups by their number.
        """
        keep = ~np.isin(self.ids, ids)
        left, groups = np.unique(self.groups[keep], return_inverse=True)
        sizes = np.bincount(groups, minlength=len(left))
        return Grouped(self.ids[keep], self.hashes[keep], groups, sizes, self.labels[left])


class Selections:
    """Of the series in a catalog."""

    def __init__(self, catalog: Catalog, cache: PageCache) -> None:
        self._catalog = catalog
        self._names = Names(catalog)
        self._cache = cache
        self._owner = cache.new_owner()

    def select(self, match: Match, partitions: bytes, inside: Inside, check: Check) -> Selection:
        """The series that match and lie in partitions, ascending by id. check: as for Names.matching.

        Raises ProtocolError for a bad expression.
        """
        if exact(match.device_id) and exact(match.metric_name):
            return self._select(match, inside, check)  # faster than to keep it
        key = (self._owner, self._catalog.stamp, msgspec.msgpack.encode(match), partitions)
        return self._cache.get(key, lambda: self._select(match, inside, check))

    def grouped(self, match: Match, partitions: bytes, by: Sequence[str], inside: Inside, check: Check) -> Grouped:
        """The series that match, by what they have in common (names.grouped), or each by itself: SERIES.

        Groups are in ascending order of their texts or keys. check: as for Names.matching. Raises ProtocolError for
        what cannot be grouped by.
        """
        key = self._key_of(match, partitions, by)
        return self._cache.get(key, lambda: self._group(self.select(match, partitions, inside, check), by))

    def at_hand(self, match: Match, partitions: bytes, by: Sequence[str], inside: Inside) -> Grouped | None:
        """As `grouped`, when that takes no time: for what was lately asked, and for few names that nothing groups."""
        if not by and match.tags is None and few_names(match):
            return self.grouped(match, partitions, by, inside, go_on)
        return cast("Grouped | None", self._cache.find(self._key_of(match, partitions, by)))

    def labels(self, grouped: Grouped, by: Sequence[str]) -> list[list[str | bytes | None]]:
        """The values of `by` for each group, in order; for SERIES its key."""
        if list(by) == [SERIES]:
            return [[key] for key in self._catalog.keys(grouped.ids)]
        return self._names.labels(grouped.labels, by)

    def count_tags(self, series: Selection) -> dict[str, dict[str, int]]:
        """By the name of a tag and its value, how many series have it."""
        return self._names.count_tags(series.ids)

    def _key_of(self, match: Match, partitions: bytes, by: Sequence[str]) -> tuple[int, int, bytes, bytes]:
        return self._owner, self._catalog.stamp, msgspec.msgpack.encode((match, by)), partitions

    def _select(self, match: Match, inside: Inside, check: Check) -> Selection:
        ids = self._names.matching(match, check)
        hashes = self._catalog.hashes(ids)
        within = inside(hashes)
        return Selection(ids[within], hashes[within], self._catalog.key)

    def _group(self, series: Selection, by: Sequence[str]) -> Grouped:
        groups = self._apart(series.ids) if list(by) == [SERIES] else self._names.grouped(series.ids, by)
        sizes = np.diff(groups.ends, prepend=0)
        by_place = np.repeat(np.arange(len(sizes)), sizes)
        return Grouped(groups.ids, self._catalog.hashes(groups.ids), by_place, sizes, groups.labels)

    def _apart(self, ids: Integers) -> Groups:
        keys = self._catalog.keys(ids)
        order = np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64)
        return Groups(ids[order], np.arange(1, len(ids) + 1), np.empty((len(ids), 0), np.int32))
