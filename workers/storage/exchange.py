"""What stores ask each other: digests of what they hold, and the points themselves.

Owns the rules that all these kinds share: equal delete numbers, only partitions that the node holds, limits. Asks
digests.py and fetching.py for the rest. Never changes the store. Any thread; the node's own repair asks here too.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np

from common import protocol
from common.errors import ProtocolError
from common.protocol import (
    DigestsReply,
    DigestsRequest,
    FetchPartitionRequest,
    FetchReply,
    FetchRequest,
    RangeDigestsReply,
    RangeDigestsRequest,
    SeriesDigestsReply,
    SeriesDigestsRequest,
)
from workers.storage import fetching
from workers.storage.digests import Held, Span, held
from workers.storage.fold import Cost
from workers.storage.segment import EARLIEST, LATEST
from workers.storage.store import Store
from workers.storage.table import Selection, View
from workers.storage.work import Cancel, Handler, RefusedError, Work

MAX_SERIES: Final = 65_536  # in a page of digests: 2.5 MB and the keys
LOOKED_AT: Final = 4096  # series looked at together for one: most have points in the range

_NEVER: Final = Cancel()


class Exchange:
    """The answers of one store. Methods raise ProtocolError, RefusedError, StorageError, CancelledError.

    holds: bitmap of the partitions that it answers for.
    """

    def __init__(self, store: Store, holds: Callable[[], bytes]) -> None:
        self._store = store
        self._holds = holds

    def digests(self, asked: DigestsRequest, cancel: Cancel = _NEVER) -> DigestsReply:
        """Count and digest of each partition that is asked for and held."""
        began_ns, view = time.perf_counter_ns(), self._view(asked.delete_number)
        covered = self._cover(asked.partitions)
        partitions = np.array(protocol.members(covered), np.int64)
        total, cost = Held.nothing(len(partitions)), Cost()
        whole = 8 * len(covered) == len(partitions)
        parts = [self._store.by_hash.all()] if whole else map(self._store.by_hash.partition, partitions.tolist())
        span = self._span(asked.start_ns, asked.end_ns)
        for part, found, spent in self._held(view, _together(parts), span, cancel):
            places = partitions.searchsorted(self._store.partitions_of_hashes(part.hashes))
            total.add(places, found.counts, found.digests)
            cost = cost.plus(spent)
        counts, digests = total.counts.astype("<i8").tobytes(), total.digests.astype("<u8").tobytes()
        return DigestsReply(
            covered, asked.delete_number, self._store.cutoff, counts, digests, _spent(cost, began_ns)
        )

    def series_digests(self, asked: SeriesDigestsRequest, cancel: Cancel = _NEVER) -> SeriesDigestsReply:
        """Count and digest of series of a partition, or of several."""
        began_ns, view = time.perf_counter_ns(), self._view(asked.delete_number)
        if not 1 <= asked.limit <= MAX_SERIES:
            raise ProtocolError(f"limit of {asked.limit} series, want 1 to {MAX_SERIES}")
        wanted = protocol.members(asked.partitions) if asked.partitions else [asked.partition]
        self._check_held(wanted)
        series = self._behind(_together(map(self._store.by_hash.partition, wanted)), asked.after)
        span = self._span(asked.start_ns, asked.end_ns)
        page, more, cost = self._page(view, series, span, asked.limit, cancel)
        counts, digests, low, high = (
            np.concatenate(column).astype(dtype).tobytes()
            for column, dtype in zip(zip(*(each for _, each in page), strict=True), ("<i8", "<u8", "<i8", "<i8"),
                                     strict=True)
        )  # fmt: skip
        keys = [self._store.key_of(each) for ids, _ in page for each in ids.tolist()]
        return SeriesDigestsReply(
            asked.delete_number, self._store.cutoff, keys, counts, digests, low, high, more, _spent(cost, began_ns)
        )

    def range_digests(self, asked: RangeDigestsRequest, cancel: Cancel = _NEVER) -> RangeDigestsReply:
        """Count and digest of stretches of series."""
        began_ns, view = time.perf_counter_ns(), self._view(asked.delete_number)
        self._check_ranges(asked.ranges)
        total, cost = Held.nothing(len(asked.ranges)), Cost()
        for at, each in enumerate(asked.ranges):
            series, span = self._store.by_hash.of_key(each.key), self._span(each.start_ns, each.end_ns)
            for _, found, spent in self._held(view, series, span, cancel):
                total.add(np.full(len(found.counts), at), found.counts, found.digests)
                cost = cost.plus(spent)
        counts, digests = total.counts.astype("<i8").tobytes(), total.digests.astype("<u8").tobytes()
        return RangeDigestsReply(asked.delete_number, self._store.cutoff, counts, digests, _spent(cost, began_ns))

    def fetch(self, asked: FetchRequest, cancel: Cancel = _NEVER) -> FetchReply:
        """The points of stretches of series."""
        began_ns, view = time.perf_counter_ns(), self._view(asked.delete_number)
        self._check_ranges(asked.ranges)
        if not 0 <= asked.item <= len(asked.ranges):
            raise ProtocolError(f"item {asked.item} of {len(asked.ranges)} ranges")
        taken = fetching.Gathered(view, asked.max_bytes, self._store.pool.watching(cancel))
        with self._store.watching_damage():
            item, from_ns = asked.item, asked.from_ns
            while item < len(asked.ranges) and not taken.full:
                each = asked.ranges[item]
                span = _from(self._span(each.start_ns, each.end_ns), from_ns)
                left = taken.take(self._store.by_hash.of_key(each.key), span, None)
                item, from_ns = (item + 1, None) if left is None else (item, left.from_ns)
            return self._reply(taken, asked.delete_number, began_ns, item < len(asked.ranges), (item, b""), from_ns)

    def fetch_partition(self, asked: FetchPartitionRequest, cancel: Cancel = _NEVER) -> FetchReply:
        """The points of a partition, or of several."""
        began_ns, view = time.perf_counter_ns(), self._view(asked.delete_number)
        wanted = protocol.members(asked.partitions) if asked.partitions else [asked.partition]
        self._check_held(wanted)
        series = _together(map(self._store.by_hash.partition, wanted))
        place = self._store.by_hash.place(series, asked.key) if asked.key else 0
        taken = fetching.Gathered(view, asked.max_bytes, self._store.pool.watching(cancel))
        span, from_ns = self._span(asked.start_ns, asked.end_ns), asked.from_ns
        if from_ns is not None and series.part(place, place + 1).ids.tolist() != self._ids(asked.key):
            from_ns = None  # the series where to go on is gone from here: from the one behind it
        with self._store.watching_damage():
            while place < len(series.ids) and not taken.full:
                begin = place - place % fetching.GROUP
                left = taken.take(series.part(begin, begin + fetching.GROUP), span, fetching.At(place - begin, from_ns))
                place, from_ns = (begin + fetching.GROUP, None) if left is None else (begin + left.place, left.from_ns)
            more = place < len(series.ids)
            key = self._store.key_of(int(series.ids[place])) if more else b""
            return self._reply(taken, asked.delete_number, began_ns, more, (0, key), from_ns)

    def _reply(
        self, taken: fetching.Gathered, number: int, began_ns: int, more: bool, place: tuple[int, bytes],
        from_ns: int | None,
    ) -> FetchReply:  # fmt: skip
        blocks, rows = taken.blocks(), taken.rows()
        cost = _spent(taken.cost, began_ns)
        item, key = place if more else (0, b"")
        return FetchReply(
            number, self._store.cutoff, self._store.store_id, blocks, rows, taken.points, more, cost, item, key,
            from_ns if more else None,
        )  # fmt: skip

    def _page(
        self, view: View, series: Selection, span: Span, limit: int, cancel: Cancel
    ) -> tuple[list[tuple[Any, Held]], bool, Cost]:
        """The first so many of some series that have points: ids and what they hold; whether there are more."""
        page: list[tuple[Any, Held]] = [(series.ids[:0], Held.nothing(0))]
        left, cost = limit, Cost()
        for begin in range(0, len(series.ids), LOOKED_AT):
            for part, found, spent in self._held(view, series.part(begin, begin + LOOKED_AT), span, cancel):
                filled = np.flatnonzero(found.counts)
                page.append((part.ids[filled[:left]], found.at(filled[:left])))
                cost = cost.plus(spent)
                if len(filled) > left:
                    return page, True, cost
                left -= len(filled)
        return page, False, cost

    def _held(
        self, view: View, series: Selection, span: Span, cancel: Cancel
    ) -> Iterator[tuple[Selection, Held, Cost]]:
        with self._store.watching_damage():
            yield from held(view, series, span, self._store.pool.watching(cancel))

    def _view(self, delete_number: int) -> View:
        """All that there is at this moment, where that is at the asker's delete number."""
        view = self._store.view
        if view.deletes.number != delete_number:
            raise RefusedError(
                protocol.ERR_DELETES, f"asked at delete number {delete_number}, this node is at {view.deletes.number}"
            )
        return view

    def _span(self, start: int | None, end: int | None) -> Span:
        """A range without what the retention has taken. Raises ProtocolError for one that is none."""
        for time_ns in (start, end):
            if time_ns is not None and not EARLIEST <= time_ns <= LATEST:
                raise ProtocolError(f"time {time_ns}, want an int64")
        kept = self._store.first_kept(start)
        return Span(EARLIEST if kept is None else kept, LATEST if end is None else end)

    def _cover(self, asked: bytes) -> bytes:
        holds = self._holds()
        if len(asked) != len(holds):
            raise ProtocolError(f"bitmap of {len(asked)} bytes, want {len(holds)}")
        return (int.from_bytes(asked, "big") & int.from_bytes(holds, "big")).to_bytes(len(holds), "big")

    def _check_held(self, partitions: Sequence[int]) -> None:
        holds = self._holds()
        for each in partitions:
            if not 0 <= each < 8 * len(holds) or not holds[each >> 3] >> (each & 7) & 1:
                raise RefusedError(protocol.ERR_NOT_MINE, f"this node neither owns nor joins partition {each}")

    def _check_ranges(self, ranges: Sequence[protocol.Range]) -> None:
        if len(ranges) > protocol.MAX_RANGES:
            raise ProtocolError(f"{len(ranges)} ranges, want at most {protocol.MAX_RANGES}")
        self._check_held(np.unique(self._store.partitions_of([each.key for each in ranges])).tolist())

    def _behind(self, series: Selection, after: bytes) -> Selection:
        """Those of a part of the order that come behind a key."""
        if not after:
            return series
        at = self._store.by_hash.place(series, after)
        return series.part(at + (series.part(at, at + 1).ids.tolist() == self._ids(after)), len(series.ids))

    def _ids(self, key: bytes) -> list[int]:
        return list(self._store.by_hash.of_key(key).ids.tolist())


def handlers(exchange: Exchange) -> dict[bytes, Handler]:
    """By kind; all are answered by reader threads."""
    kinds: dict[bytes, tuple[Any, Callable[[Any, Cancel], Any]]] = {
        protocol.DIGESTS: (DigestsRequest, exchange.digests),
        protocol.SERIES_DIGESTS: (SeriesDigestsRequest, exchange.series_digests),
        protocol.RANGE_DIGESTS: (RangeDigestsRequest, exchange.range_digests),
        protocol.FETCH: (FetchRequest, exchange.fetch),
        protocol.FETCH_PARTITION: (FetchPartitionRequest, exchange.fetch_partition),
    }
    return {kind: _handler(request, answer) for kind, (request, answer) in kinds.items()}


def _handler(request: Any, answer: Callable[[Any, Cancel], Any]) -> Handler:
    return Handler(request, lambda asked: Work(lambda cancel: answer(asked, cancel)))


def _together(parts: Any) -> Selection:
    """Several parts of the order as one selection."""
    parts = list(parts)
    if len(parts) == 1:
        return parts[0]  # type: ignore[no-any-return]
    if not parts:
        return Selection(np.empty(0, np.int64), np.empty(0, np.uint64), _nobody)
    ids, hashes = (np.concatenate([part[at] for part in parts]) for at in (0, 1))
    return Selection(ids, hashes, parts[0].key_of)


def _nobody(local_id: int) -> bytes:
    raise ProtocolError(f"BUG: series {local_id} of no partition")


def _from(span: Span, from_ns: int | None) -> Span:
    return span if from_ns is None else Span(max(span.start, from_ns), span.end)


def _spent(cost: Cost, began_ns: int) -> protocol.Cost:
    return protocol.Cost(*cost, spent_ns=time.perf_counter_ns() - began_ns)
