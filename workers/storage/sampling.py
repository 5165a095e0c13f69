"""Pages of points: what matches, in order of series key and then time, behind a place, so many rows at most.

Owns the order of selections lately asked for, and nothing else; only what a page holds is decoded, so many pages over
one long series take as long as one pass over it. Any thread: `_lock` guards the orders.
"""

import bisect
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from common.errors import ProtocolError
from common.match import Match
from common.points import PointBatch
from common.protocol import Cost, SamplesReply, SamplesRequest
from workers.storage.head import Times, Values
from workers.storage.join import settled_pieces
from workers.storage.kernels import COUNT
from workers.storage.recent import Integers, Recent, unmasked
from workers.storage.segment import EARLIEST, LATEST
from workers.storage.series_rows import TASK_ROWS, SeriesRows
from workers.storage.store import Store
from workers.storage.table import Selection, Table, View
from workers.storage.work import Cancel, Work

MAX_ROWS: Final = 1 << 20  # of a page: 20 MB
SHORT_ROWS: Final = 16_384  # of one series: two or three blocks, a third of a millisecond
SHORT_OVERLAP: Final = 65_536  # rows in blocks that overlap: to decode and join them takes a few milliseconds
_STEP: Final = 8  # further series looked at together; as many more each time the page is not full
_MAX_STEP: Final = 8192
_ORDERS: Final = 8  # selections whose order is kept: those of so many streams
_ORDERED_SERIES: Final = 2_000_000  # in all of them

Rows = tuple[Times, Values]


class Ordered(NamedTuple):
    """The series of a selection in ascending order of their keys."""

    keys: list[bytes]
    series: Selection

    @classmethod
    def of(cls, series: Selection) -> "Ordered":
        """Any selection, put in order."""
        keys = [series.key_of(each) for each in series.ids.tolist()]
        order = np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64)
        ordered = Selection(series.ids[order], series.hashes[order], series.key_of)
        return cls([keys[at] for at in order.tolist()], ordered)


class Span(NamedTuple):
    """A range of time, ns, both ends inclusive."""

    start: int
    end: int


class Sampling:
    """Answers requests for samples from a store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._orders: OrderedDict[tuple[int, bytes, bytes], Ordered] = OrderedDict()

    def begin(self, request: SamplesRequest, covered: bytes) -> Work:
        """The work that is left for a request; short where it is a few points of one series, found without a search."""
        series = self._at_hand(request.match, covered)
        short = series is not None and len(series.ids) <= 1 and self._are_few(series, request.limit)
        return Work(lambda cancel: self.answer(request, covered, cancel), short)

    def _at_hand(self, match: Match, covered: bytes) -> Selection | None:
        """The series that match, where that can be told in no time."""
        known = self._orders.get(self._key(match, covered))
        if known is not None:
            return known.series
        grouped = self._store.at_hand(match, covered, ())
        return None if grouped is None else Selection(grouped.ids, grouped.hashes, self._store.key_of)

    def _are_few(self, series: Selection, limit: int) -> bool:
        """Whether a page of one series has few points: it asks for no more, or there are no more at any time.

        And few are in blocks that overlap, all of which a page may have to decode.
        """
        if not len(series.ids):
            return True
        view = self._store.view
        with self._store.watching_damage():
            ((_, table),) = view.stored.tables(series, view.deletes, EARLIEST, LATEST)
        if int(table.counts[table.alone == 0].sum()) > SHORT_OVERLAP:
            return False
        if limit <= SHORT_ROWS:
            return True
        rows = sum(int(head.parts(series.ids).summaries[:, COUNT].sum()) for head in view.heads)
        return rows + int(table.counts.sum()) <= SHORT_ROWS

    def answer(self, request: SamplesRequest, covered: bytes, cancel: Cancel) -> SamplesReply:
        """The page that a request asks for, of the partitions covered.

        Raises ProtocolError for a request that cannot be, StorageError for damage, CancelledError.
        """
        if not 1 <= request.limit <= MAX_ROWS:
            raise ProtocolError(f"limit of {request.limit} rows, want 1 to {MAX_ROWS}")
        started_ns = time.perf_counter_ns()
        stamp = self._store.catalog_stamp
        ordered = self.ordered(request.match, covered, cancel)
        start, view = self._store.first_kept(request.start_ns), self._store.view
        span = Span(EARLIEST if start is None else start, LATEST if request.end_ns is None else request.end_ns)
        page = Page(view, ordered, span, request.limit, cancel)
        with self._store.watching_damage():
            page.fill(request.after_key, request.after_ns)
        cost = page.cost(time.perf_counter_ns() - started_ns)
        places = self._store.places_of(ordered.series.hashes)
        return SamplesReply(covered, view.deletes.number, page.batch().encode(), page.more, cost, stamp, places)

    def _key(self, match: Match, covered: bytes) -> tuple[int, bytes, bytes]:
        return self._store.catalog_stamp, msgspec.msgpack.encode(match), covered

    def ordered(self, match: Match, covered: bytes, cancel: Cancel) -> Ordered:
        """The series that match. The order of one selection is asked for again and again, page by page."""
        key = self._key(match, covered)
        with self._lock:
            found = self._orders.get(key)
            if found is not None:
                self._orders.move_to_end(key)
                return found
        found = Ordered.of(self._store.select(match, covered, cancel.check))
        with self._lock:
            self._orders[key] = found
            held = sum(len(each.keys) for each in self._orders.values())
            while len(self._orders) > _ORDERS or (held > _ORDERED_SERIES and len(self._orders) > 1):
                held -= len(self._orders.popitem(last=False)[1].keys)
        return found


class Page:
    """One page on its way: points of a view, at most `limit`. more: whether further ones follow, known when filled."""

    def __init__(
        self,
        view: View,
        ordered: Ordered,
        span: Span,
        limit: int,
        cancel: Cancel,
    ) -> None:
        self.more = False
        self._view = view
        self._ordered = ordered
        self._span = span
        self._left = limit
        self._cancel = cancel
        self._keys: list[bytes] = []
        self._rows: list[int] = []  # by key
        self._pieces: list[Rows] = []
        self._blocks = self._decoded = self._bytes = 0

    def fill(self, after_key: bytes, after_ns: int) -> None:
        """Take points behind a place until the page is full and one more is found, or nothing is left."""
        keys = self._ordered.keys
        at, step = bisect.bisect_left(keys, after_key), _STEP
        if at < len(keys) and keys[at] == after_key:
            if after_ns < self._span.end:
                self._take(at, at + 1, Span(max(self._span.start, after_ns + 1), self._span.end))
            at += 1
        while at < len(keys) and not self.more:
            self._cancel.check()
            self._take(at, at + step, self._span)
            at, step = at + step, min(2 * step, _MAX_STEP)

    def batch(self) -> PointBatch:
        """The points taken."""
        times, values = [np.concatenate(each) for each in zip(*self._pieces, strict=True)] or [_NO_TIMES, _NO_VALUES]
        index = np.repeat(np.arange(len(self._keys), dtype=np.uint32), self._rows)
        return PointBatch(self._keys, index, times, values)

    def cost(self, spent_ns: int) -> Cost:
        """What it took."""
        return Cost(0, 0, self._blocks, self._decoded, self._bytes, spent_ns)

    def _take(self, begin: int, end: int, span: Span) -> None:
        """Take points of some series in turn, all over the same span."""
        at = begin
        chosen = self._ordered.series.part(begin, end)
        for part, table in self._view.stored.tables(chosen, self._view.deletes, span.start, span.end):
            recent = Recent.of(self._view.heads, part, table.masks)
            some = _Series(self._view, table, recent, self._count)
            places = some.filled(span)
            short = SeriesRows(self._view, part, table, *span, recent=recent) if len(places) > 1 else None
            while len(places):
                self._cancel.check()
                many = 1 if short is None else self._fitting(short.counts[places], np.isin(places, list(table.masks)))
                if many > 1 and short is not None:
                    self._take_many(short, places[:many], at, span)
                else:
                    many = 1
                    self._take_series(some, int(places[0]), self._ordered.keys[at + int(places[0])], span)
                if self.more:
                    return
                places = places[many:]
            at += len(part.ids)

    def _fitting(self, counts: Integers, masked: npt.NDArray[np.bool_]) -> int:
        """How many of the next series surely fit the page, and are few enough rows to be decoded at once.

        counts: of rows at most, by series; masked: which a delete touches.
        """
        room = min(self._left, TASK_ROWS)
        return int(np.where(masked, room + 1, counts).cumsum().searchsorted(room, "right"))

    def _take_many(self, short: SeriesRows, places: Integers, at: int, span: Span) -> None:
        """Take all points of some series: side by side that is ten times as fast as one by one. at: of place 0."""
        batch = short.batch(places)
        end = int(batch.offsets[-1])
        times, values = batch.times[:end], batch.values[:end]
        inside = (times >= span.start) & (times <= span.end)
        bounds = np.append(0, inside.cumsum())[batch.offsets]
        rows = np.diff(bounds)
        self._keys += [self._ordered.keys[at + place] for place in places[rows > 0].tolist()]
        self._rows += rows[rows > 0].tolist()
        self._pieces.append((times[inside], values[inside]))
        self._left -= int(bounds[-1])
        cost = short.cost(places)
        self._blocks, self._decoded = self._blocks + cost.decoded, self._decoded + cost.rows
        self._bytes += cost.bytes

    def _take_series(self, some: "_Series", place: int, key: bytes, span: Span) -> None:
        before = self._left
        for times, values in some.pieces(place, span, self._left + 1):
            self.more = len(times) > self._left
            if self._left:
                self._pieces.append((times[: self._left], values[: self._left]))
                self._left -= len(self._pieces[-1][0])
            if self.more:
                break
        if before > self._left:
            self._keys.append(key)
            self._rows.append(before - self._left)

    def _count(self, rows: int, size: int) -> None:
        self._blocks += 1
        self._decoded += rows
        self._bytes += size


class _Series(NamedTuple):
    """Some series of a view, by place; note: told rows and bytes of each block that is decoded."""

    view: View
    table: Table
    recent: Recent
    note: Callable[[int, int], None]

    def filled(self, span: Span) -> Integers:
        """The places of those that may have points in a span, ascending."""
        table = self.table
        blocks = table.places[(table.t_min <= span.end) & (table.t_max >= span.start)]
        filled: Integers = np.union1d(blocks, self.recent.places)
        return filled

    def pieces(self, place: int, span: Span, room: int) -> Iterator[Rows]:
        """The points of one in a span, in pieces in order of time, none empty; little more than `room` are read."""
        masks = self.table.masks.get(place, ())
        begin = span.start
        while begin <= span.end:
            reach = self._reach(place, Span(begin, span.end), room)
            extra = None
            if parts := self.recent.of_series(place):
                extra = self.recent.rows(self.view.heads, parts, masks, begin, reach)
            for times, values in self._joined(place, Span(begin, reach), extra):
                low, high = int(times.searchsorted(begin)), int(times.searchsorted(reach, "right"))
                if low < high:
                    yield times[low:high], values[low:high]
            begin = reach + 1

    def _reach(self, place: int, span: Span, room: int) -> int:
        """Up to when to read, so that no head gives much more than `room` rows: each join copies them."""
        reach = span.end
        for part in self.recent.of_series(place):
            head = self.view.heads[int(self.recent.heads[part])]
            times, _ = head.settled(int(self.recent.locals[part]), self.recent.summaries[part])
            last = int(times.searchsorted(span.start)) + room - 1
            if last < len(times):
                reach = min(reach, int(times[last]))
        return reach

    def _joined(self, place: int, span: Span, extra: Rows | None) -> Iterator[Rows]:
        table, begin = self.table, self.table.of(place).start
        of_series = table.of(place)
        inside = (table.t_min[of_series] <= span.end) & (table.t_max[of_series] >= span.start)
        blocks = begin + np.flatnonzero(inside)
        if extra is None and table.alone[blocks].all():
            return (self._decode(place, block) for block in blocks.tolist())
        chosen = blocks.tolist()
        return settled_pieces(table.t_min[blocks], lambda at: self._decode(place, chosen[at]), extra)

    def _decode(self, place: int, block: int) -> Rows:
        """The rows of a block of the table, without those that a delete hides."""
        table = self.table
        segment, number = self.view.stored.segments[int(table.segments[block])], int(table.blocks[block])
        rows = segment.decode(number)
        self.note(len(rows[0]), segment.block_bytes(number))
        return unmasked(rows, table.masks.get(place, ()), segment.header.delete_number)


_NO_TIMES: Final[npt.NDArray[np.int64]] = np.empty(0, np.int64)
_NO_VALUES: Final[npt.NDArray[np.float64]] = np.empty(0, np.float64)
