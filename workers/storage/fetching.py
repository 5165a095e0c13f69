"""Points of a store on their way to another: blocks as they are stored, and rows of all else, as much as a reply holds.

Owns what one reply gathers. A block goes as it is when it lies in the range, overlaps no other block of its series and
no delete touches it: no decoding here, no encoding there. What is in heads, in blocks that overlap, at the edges of
a range or under a delete is decoded, joined, and goes as rows. Never changes the store. One thread.

A series that is too long for a reply is cut in time, before a block: a block that reaches over such a cut goes as
rows, a part with either reply.
"""

from functools import partial
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from common import files
from common.errors import ProtocolError
from common.points import PointBatch
from common.protocol import StoredBlocks
from workers.storage import kernels, pages, stored_blocks, windows
from workers.storage.digests import Span, only, parts_of
from workers.storage.fold import Cost
from workers.storage.pages import PAGE_BLOCKS
from workers.storage.readers import Readers
from workers.storage.recent import Integers, Recent, Values
from workers.storage.series_rows import Batch, SeriesRows, within
from workers.storage.table import Selection, Table, View

GROUP: Final = 1024  # series of a partition looked at together: their table is kept for the next reply
MAX_BYTES: Final = 64 << 20  # of one reply
_ROW_BYTES: Final = 20  # of a point in a batch
_SUMMARY_BYTES: Final = 64  # of a block, packed, about

Rows = tuple[Integers, Integers, Values]  # by row: which key, time, value


class At(NamedTuple):
    """Where to begin or to go on: a place in a selection, and the first time of its series, None for all of it."""

    place: int
    from_ns: int | None = None


class _Share(NamedTuple):
    """What of a table may go into a reply. low, high: by place, the range of each series (ns); blocks, parts: those of
    table and heads that reach into it, numbers in both."""

    low: Integers
    high: Integers
    blocks: Integers
    parts: Integers


class Gathered:
    """A reply of about max_bytes. full: that something did not fit; points: so far."""

    def __init__(self, view: View, max_bytes: int, pool: Readers) -> None:
        """pool: decodes; its `check` ends it all. Raises ProtocolError for a size that cannot be."""
        if not 1 <= max_bytes <= MAX_BYTES:
            raise ProtocolError(f"max_bytes {max_bytes}, want 1 to {MAX_BYTES}")
        self.full = False
        self.points = 0
        self.cost = Cost()
        self._view = view
        self._room = max_bytes
        self._pool = pool
        self._empty = True
        self._blocks: list[StoredBlocks] = []
        self._keys: dict[bytes, int] = {}
        self._rows: list[Rows] = []

    def take(self, series: Selection, span: Span, at: At | None = None) -> At | None:
        """Take the points of some series in a range, from a place on; where to go on, None when all were taken.

        Raises StorageError for damage, and what the pool's `check` does.
        """
        begin, from_ns = at or At(0)
        base = 0
        for part, table in self._view.stored.tables(series, self._view.deletes, *span):
            self._pool.check()
            if begin < base + len(part.ids):
                first = At(begin - base, from_ns) if begin >= base else At(0)
                left = self._take(part, table, span, first)
                if left is not None:
                    return At(base + left.place, left.from_ns) if base + left.place < len(series.ids) else None
            base += len(part.ids)
        return None

    def blocks(self) -> list[StoredBlocks]:
        """What goes as it is."""
        return self._blocks

    def rows(self) -> bytes:
        """The rest, encoded; b"" for none."""
        if not self._rows:
            return b""
        index, times, values = (np.concatenate(column) for column in zip(*self._rows, strict=True))
        return PointBatch(list(self._keys), index.astype(np.uint32), times, values).encode()

    def _take(self, series: Selection, table: Table, span: Span, first: At) -> At | None:
        recent = Recent.of(self._view.heads, series, table.masks)
        share = _share(table, recent, span, first, len(series.ids))
        left = self._fit(table, recent, share, first)
        if left is not None:
            share = _cut(table, recent, share, left)
        whole = _whole(table, share)
        self._take_blocks(series, table, share.blocks[whole])
        self._take_rows(series, only(table, share.blocks[~whole]), recent, share)
        return left

    def _fit(self, table: Table, recent: Recent, share: _Share, first: At) -> At | None:
        """Where the reply has to end, as it is filling; None when all of a share fits."""
        sizes = self._sizes(table, share)
        heads = recent.summaries[share.parts, kernels.COUNT] * _ROW_BYTES
        by_place = np.zeros(len(share.low), np.int64)
        np.add.at(by_place, table.places[share.blocks], sizes)
        np.add.at(by_place, recent.places[share.parts], heads)
        ends = by_place.cumsum()
        stop = int(ends.searchsorted(self._room, "right"))
        taken = int(ends[stop - 1]) if stop else 0
        if stop == len(ends):
            self._spend(taken)
            return None
        self.full = True
        if taken or not self._empty:
            self._spend(taken)
            return At(stop, first.from_ns if stop == first.place else None)
        of_place = table.places[share.blocks] == stop
        last = self._last_time(table, recent, share, stop, share.blocks[of_place], sizes[of_place])
        self._spend(self._room)
        return At(stop + 1) if last >= int(share.high[stop]) else At(stop, last + 1)

    def _spend(self, size: int) -> None:
        self._room -= size
        self._empty = self._empty and not size

    def _sizes(self, table: Table, share: _Share) -> Integers:
        """About how much each block of a share takes in a reply."""
        whole = _whole(table, share)
        sizes = table.counts[share.blocks] * _ROW_BYTES
        sizes[whole] = stored_blocks.sizes_of(self._view, table, share.blocks[whole]) + _SUMMARY_BYTES
        return sizes

    def _last_time(
        self, table: Table, recent: Recent, share: _Share, place: int, blocks: Integers, sizes: Integers
    ) -> int:
        """The last time of a series that fits into an empty reply, at least its first."""
        low, high = int(share.low[place]), int(share.high[place])
        parts = share.parts[recent.places[share.parts] == place].tolist()
        masks = table.masks.get(place, ())
        times = recent.rows(self._view.heads, parts, masks, low, high)[0] if parts else kernels.NO_TIMES
        starts = table.t_min[blocks]
        costs = np.append(0, sizes.cumsum())[:-1] + times.searchsorted(starts) * _ROW_BYTES
        first = min(starts[:1].tolist() + times[:1].tolist(), default=low)
        cuts = np.flatnonzero(starts > max(low, first))
        fitting = cuts[costs[cuts] <= self._room]
        last = high
        if len(cuts):
            last = int(starts[fitting[-1] if len(fitting) else cuts[0]]) - 1
        most = max(1, self._room // _ROW_BYTES)
        return min(last, int(times[most - 1])) if len(times) > most else last

    def _take_blocks(self, series: Selection, table: Table, blocks: Integers) -> None:
        for begin in range(0, len(blocks), PAGE_BLOCKS):
            self._pool.check()
            chosen = blocks[begin : begin + PAGE_BLOCKS]
            raw = stored_blocks.raw_of(self._view, table, chosen)
            places, owners = np.unique(table.places[chosen], return_inverse=True)
            keys = [series.key_of(each) for each in series.ids[places].tolist()]
            index = pages.pack(raw.blocks)
            packed = windows.pack(raw.windows, raw.blocks.t_min, len(raw.data))
            numbers = owners.astype("<u4").tobytes()
            crc = checksum(keys, numbers, index, packed)
            self._blocks.append(StoredBlocks(keys, numbers, index, packed, raw.data, crc))
            self.points += int(raw.blocks.counts.sum())
            self.cost = self.cost.plus(Cost(bytes=len(raw.data)))

    def _take_rows(self, series: Selection, table: Table, recent: Recent, share: _Share) -> None:
        """Take the points of blocks that do not go as they are, and those of heads."""
        if not len(table.places) and not len(share.parts):
            return
        low, high = int(share.low.min()), int(share.high.max())
        rows = SeriesRows(self._view, series, table, low, high, recent=parts_of(recent, share.parts))
        tasks = rows.tasks()
        for found in self._pool.run([partial(_decode, rows, share, places) for places in tasks]):
            for places, counts, times, values in found:
                keys = [series.key_of(each) for each in series.ids[places].tolist()]
                numbers = np.array([self._keys.setdefault(key, len(self._keys)) for key in keys], np.int64)
                self._rows.append((np.repeat(numbers, counts), times, values))
                self.points += len(times)
        for places in tasks:
            self.cost = self.cost.plus(rows.cost(places))


def checksum(keys: list[bytes], numbers: bytes, index: bytes, packed_windows: bytes) -> int:
    """The CRC of StoredBlocks."""
    crc = files.crc32c(b"".join(keys))
    for part in (numbers, index, packed_windows):
        crc = files.crc32c(part, crc)
    return crc


def _share(table: Table, recent: Recent, span: Span, first: At, series: int) -> _Share:
    """All from a place on."""
    low, high = np.full(series, span.start, np.int64), np.full(series, span.end, np.int64)
    if first.from_ns is not None:
        low[first.place] = max(span.start, first.from_ns)
    high[: first.place] = span.start
    low[: first.place] = span.end
    share = _Share(low, high, np.arange(len(table.places)), np.arange(len(recent.places)))
    return _reaching(table, recent, share, first.place, series)


def _cut(table: Table, recent: Recent, share: _Share, left: At) -> _Share:
    """What comes before the place where the next reply goes on."""
    if left.from_ns is None:
        return _reaching(table, recent, share, 0, left.place)
    high = share.high.copy()
    high[left.place] = left.from_ns - 1
    return _reaching(table, recent, share._replace(high=high), 0, left.place + 1)


def _reaching(table: Table, recent: Recent, share: _Share, begin: int, end: int) -> _Share:
    """A share without the blocks and parts of other places, and those that do not reach into the ranges."""
    places, of_parts = table.places[share.blocks], recent.places[share.parts]
    summaries = recent.summaries[share.parts]
    blocks = (places >= begin) & (places < end)
    blocks &= (table.t_max[share.blocks] >= share.low[places]) & (table.t_min[share.blocks] <= share.high[places])
    parts = (of_parts >= begin) & (of_parts < end) & (summaries[:, kernels.LAST_TIME] >= share.low[of_parts])
    parts &= summaries[:, kernels.FIRST_TIME] <= share.high[of_parts]
    return _Share(share.low, share.high, share.blocks[blocks], share.parts[parts])


def _whole(table: Table, share: _Share) -> npt.NDArray[np.bool_]:
    """Which blocks of a share go as they are."""
    places = table.places[share.blocks]
    inside = (table.t_min[share.blocks] >= share.low[places]) & (table.t_max[share.blocks] <= share.high[places])
    found: npt.NDArray[np.bool_] = inside & (table.alone[share.blocks] != 0)
    return found


def _decode(rows: SeriesRows, share: _Share, places: Integers) -> list[tuple[Integers, Integers, Integers, Values]]:
    """Settled rows of some series in the range of each: places, how many of each, times, values."""
    found = []
    for item in rows.of(places):
        if isinstance(item, Batch):
            found.append(_inside(item, share))
            continue
        low, high = int(share.low[item[0]]), int(share.high[item[0]])
        for times, values in item[1]:
            inside = within(times, low, high)
            place, count = np.array([item[0]]), np.array([inside.stop - inside.start])
            found.append((place, count, times[inside], values[inside]))
    return [each for each in found if len(each[2])]


def _inside(batch: Batch, share: _Share) -> tuple[Integers, Integers, Integers, Values]:
    points, counts = int(batch.offsets[-1]), np.diff(batch.offsets)
    times, values = batch.times[:points], batch.values[:points]
    low, high = np.repeat(share.low[batch.places], counts), np.repeat(share.high[batch.places], counts)
    keep = (times >= low) & (times <= high)
    kept = np.diff(np.append(0, np.cumsum(keep))[batch.offsets])
    filled = kept > 0
    return batch.places[filled], kept[filled], times[keep], values[keep]

