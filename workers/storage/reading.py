"""The read side of a store: aggregates, samples, series. Any thread.

Owns nothing: a reader takes the view once, and reads nothing else that changes. Never changes the store, but that a
segment found damaged is set aside.
"""

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from common import protocol
from common.errors import ProtocolError
from common.match import Match
from common.selector import Selector
from common.timestamps import MIN_NS
from workers.storage import aggregate as aggregates
from workers.storage.aggregate import AggregatePlan, Rows, Selection, View
from workers.storage.catalog import Catalog
from workers.storage.hash_order import HashOrder
from workers.storage.layout import DamagedError
from workers.storage.maintenance import Maintenance
from workers.storage.names import Check, go_on
from workers.storage.readers import Readers
from workers.storage.retention import Retention
from workers.storage.selections import Grouped, Selections
from workers.storage.view import CurrentView

_FEW: Final = 8  # series of one device's metric; a question about more gains little from knowing where they lie

_LATELY: Final = 4096  # of them are remembered, of _FEW series each: 6 MB


class _Chosen(NamedTuple):
    """What a question is about. stamp: of the catalog, from before it was looked at; places: of the series."""

    stamp: int
    series: Selection
    places: list[int] | None


class Reading:
    """What Store answers; its attributes are made there.

    pool: threads that share the work of one request; by_hash: its series in the order of segments.
    """

    pool: Readers
    by_hash: HashOrder
    _partitions: int
    _catalog: Catalog
    _selections: Selections
    _current: CurrentView
    _retention: Retention
    _maintenance: Maintenance
    _lately: dict[tuple[str, str, tuple[tuple[str, str], ...] | None, bytes], _Chosen]

    @property
    def catalog_stamp(self) -> int:
        """A number that changes with every new series; so does what a question selects. See catalog.py."""
        return self._catalog.stamp

    def places_of(self, hashes: npt.NDArray[np.uint64]) -> list[int] | None:
        """The partitions of some series; None for more than _FEW."""
        return sorted(set(self._partitions_of(hashes).tolist())) if len(hashes) <= _FEW else None

    def select(self, match: Match, partitions: bytes, check: Check = go_on) -> Selection:
        """The series that match and lie in the partitions of a bitmap, ascending by id.

        check: raises what is to end a long search. Raises ProtocolError for a bitmap of another size and for an
        expression that cannot be used.
        """
        self._check_bitmap(partitions)
        return self._selections.select(match, partitions, lambda hashes: self._are_in(hashes, partitions), check)

    def grouped(self, match: Match, partitions: bytes, by: Sequence[str], check: Check = go_on) -> Grouped:
        """The same series by what they have in common; more in selections.py. Errors as of `select`."""
        self._check_bitmap(partitions)
        return self._selections.grouped(match, partitions, by, lambda hashes: self._are_in(hashes, partitions), check)

    def at_hand(self, match: Match, partitions: bytes, by: Sequence[str]) -> Grouped | None:
        """The same where it takes no time, else None."""
        self._check_bitmap(partitions)
        return self._selections.at_hand(match, partitions, by, lambda hashes: self._are_in(hashes, partitions))

    def labels(self, grouped: Grouped, by: Sequence[str]) -> list[list[str | bytes | None]]:
        """The values of `by` for each group, in order."""
        return self._selections.labels(grouped, by)

    def key_of(self, local_id: int) -> bytes:
        """The key of a series."""
        return self._catalog.key(local_id)

    def ids_of(self, keys: Sequence[bytes]) -> npt.NDArray[np.int64]:
        """The ids of those keys that are known."""
        found = [self._catalog.find(key) for key in keys]
        return np.array([each for each in found if each is not None], np.int64)

    def count_tags(self, series: Selection) -> dict[str, dict[str, int]]:
        """By the name of a tag and its value, how many of some series have it."""
        return self._selections.count_tags(series)

    def plan(
        self,
        device: str,
        metric: str,
        tags: Mapping[str, str] | None,
        partitions: bytes,
        start: int | None,
        end: int | None,
    ) -> AggregatePlan:
        """Prepare an aggregate over the series that match, in the partitions of a bitmap, start <= time <= end.

        tags: None for any. start, end: ns, None is open. The plan's `run` gives the answer, and does what takes
        time. Raises ProtocolError for a bitmap of another size.
        """
        chosen = self._chosen(device, metric, tags, partitions)
        with self.watching_damage():
            plan = AggregatePlan(self._current.now, chosen.series, partitions, self.first_kept(start), end)
        plan.catalog, plan.places = chosen.stamp, chosen.places
        return plan

    def aggregate(
        self,
        device: str,
        metric: str,
        tags: Mapping[str, str] | None,
        partitions: bytes,
        start: int | None,
        end: int | None,
    ) -> protocol.AggregateReply:
        """Plan and run at once."""
        with self.watching_damage():
            return self.plan(device, metric, tags, partitions, start, end).run(self.pool)

    def by_series(self, selector: Selector, partitions: bytes, start: int | None, end: int | None) -> Rows:
        """Aggregates of each series that matches; arguments and errors as of `plan`, and StorageError for damage."""
        chosen = self._select(selector, partitions)
        with self.watching_damage():
            return aggregates.by_series(self._current.now, chosen, self.first_kept(start), end, self.pool)

    def by_interval(
        self,
        selector: Selector,
        partitions: bytes,
        start: int | None,
        end: int | None,
        interval: int,
        offset: int = 0,
        wants: Collection[str] = aggregates.WANTS,
        max_rows: int = 1_000_000,
    ) -> Rows:
        """Aggregates of each series that matches and each bucket; more in aggregate.by_interval."""
        chosen = self._select(selector, partitions)
        with self.watching_damage():
            return aggregates.by_interval(
                self._current.now, chosen, self.first_kept(start), end, interval, offset, wants, max_rows, self.pool
            )

    def samples(
        self, selector: Selector, partitions: bytes, start: int | None, end: int | None
    ) -> Iterator[tuple[bytes, npt.NDArray[np.int64], npt.NDArray[np.float64]]]:
        """The points of each series that matches, in pieces in order of time: key, times (ns), values."""
        chosen = self._select(selector, partitions)
        with self.watching_damage():
            for local_id, times, values in aggregates.samples(self._current.now, chosen, self.first_kept(start), end):
                yield self._catalog.key(local_id), times, values

    @property
    def view(self) -> View:
        """All that there is to read at this moment."""
        return self._current.now

    @property
    def cutoff(self) -> int:
        """The retention's cutoff, MIN_NS for none."""
        return self._retention.cutoff

    def first_kept(self, start: int | None) -> int | None:
        """The start of a range that holds nothing behind the retention's cutoff."""
        cutoff = self._retention.cutoff
        return start if cutoff == MIN_NS else max(cutoff, MIN_NS if start is None else start)

    @contextlib.contextmanager
    def watching_damage(self) -> Iterator[None]:
        """For reading: a segment found damaged is set aside, so that what is asked next is answered by the others.

        The error passes on: this answer would lack what the segment held.
        """
        try:
            yield
        except DamagedError as error:
            self._maintenance.set_aside(error)
            raise

    def series(
        self, after: bytes, limit: int, device: str | None, metric: str | None, partitions: bytes
    ) -> tuple[list[bytes], bool]:
        """At most `limit` keys above `after`, ascending, of one device or metric where given; whether more follow."""
        self._check_bitmap(partitions)
        keys: list[bytes] = []
        for key in self._catalog.keys_after(after, device, metric):
            local_id = self._catalog.find(key)
            if local_id is not None and self._is_in(self._catalog.hash(local_id), partitions):
                if len(keys) == limit:
                    return keys, True
                keys.append(key)
        return keys, False

    def partitions_of(self, keys: Sequence[bytes]) -> npt.NDArray[np.int64]:
        """The partition of each key. Raises ProtocolError for one that is not canonical."""
        return self._partitions_of(self._catalog.hashes_of(keys))

    def partitions_of_hashes(self, hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """The partition of each hash."""
        return self._partitions_of(hashes)

    def _chosen(self, device: str, metric: str, tags: Mapping[str, str] | None, partitions: bytes) -> "_Chosen":
        """The series that an aggregate is about: remembered until there are new ones, for the same ones are asked for
        again and again.
        """
        stamp = self._catalog.stamp
        name = device, metric, None if tags is None else tuple(sorted(tags.items())), partitions
        known = self._lately.get(name)
        if known is not None and known.stamp == stamp:
            return known
        series = self._select(Selector(device, metric, None if tags is None else dict(tags)), partitions)
        chosen = _Chosen(stamp, series, self.places_of(series.hashes))
        if chosen.places is not None:
            if len(self._lately) >= _LATELY:
                self._lately = {}
            self._lately[name] = chosen
        return chosen

    def _select(self, selector: Selector, partitions: bytes) -> Selection:
        """The series that match and lie in the partitions of a bitmap."""
        self._check_bitmap(partitions)
        ids = self._catalog.matching(selector)
        hashes = self._catalog.hashes(ids)
        inside = self._are_in(hashes, partitions)
        return Selection(ids[inside], hashes[inside], self._catalog.key)

    def _are_in(self, hashes: npt.NDArray[np.uint64], partitions: bytes) -> npt.NDArray[np.bool_]:
        places = self._partitions_of(hashes)
        found: npt.NDArray[np.bool_] = np.frombuffer(partitions, np.uint8)[places >> 3] >> (places & 7) & 1 != 0
        return found

    def _check_bitmap(self, partitions: bytes) -> None:
        want = (self._partitions + 7) // 8
        if len(partitions) != want:
            raise ProtocolError(f"bitmap of {len(partitions)} bytes, want {want}")

    def _partitions_of(self, hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        below = np.uint64(64 - self._partitions.bit_length())  # in two steps: a shift by 64 has no meaning
        found: npt.NDArray[np.int64] = (hashes >> below >> np.uint64(1)).astype(np.int64)
        return found

    def _is_in(self, hash_: int, partitions: bytes) -> bool:
        partition = hash_ >> (64 - self._partitions.bit_length() + 1)
        return bool(partitions[partition >> 3] >> (partition & 7) & 1)
