"""Tables: the blocks of many series side by side, gathered from all segments, ready for the aggregate kernels.

Owns the segments of one moment and, in the cache that they share, the tables lately made of them. Knows deletes only
as masks on blocks: one that lies wholly in a mask is not in the table, one that is touched stands no more for its
rows. Never decodes a block. Any thread.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from workers.storage import aggregate_kernels
from workers.storage.deletes import NO_DELETES, Deletes, Mask
from workers.storage.head import Head
from workers.storage.segment import EARLIEST, LATEST, PageCache, Segment

Integers = npt.NDArray[np.int64]
Masks = tuple[Mask, ...]

CHUNK_BLOCKS: Final = 65_536  # of one table, at 130 bytes each: about 8 MiB; a single series may have more
GAP_BLOCKS: Final = 1024  # blocks this near to one another lie in the same page or the next: read at once
_CACHE_BYTES: Final = 8 << 20  # where the caller has no cache


class Selection(NamedTuple):
    """Some series: catalog ids, their hashes, and what tells the key of an id, asked only when there are deletes."""

    ids: Integers
    hashes: npt.NDArray[np.uint64]
    key_of: Callable[[int], bytes]

    def part(self, begin: int, end: int) -> "Selection":
        """The series begin to end."""
        return Selection(self.ids[begin:end], self.hashes[begin:end], self.key_of)

    def masks(self, deletes: Deletes) -> dict[int, Masks]:
        """What is deleted of each series, by place, where anything is."""
        if not deletes:
            return {}
        found = ((place, deletes.masks_of(self.key_of(each))) for place, each in enumerate(self.ids.tolist()))
        return {place: masks for place, masks in found if masks}


class Table(NamedTuple):
    """The blocks of some series, in order of series and t_min.

    By block: places of the series in the selection, t_min, t_max (ns), counts (int64[n]); alone, uint8[n], 1 where
    the block overlaps no other and no delete touches it; floats, float64[7, n], as kernels.SUM_HI to BLOCK_M2;
    segments, int64[n], place of the segment in the set; blocks, int64[n], number there; digests, uint64[n]. By series:
    earliest, latest, of its blocks, LATEST and EARLIEST where it has none. masks: by place, where there are any.
    """

    places: Integers
    t_min: Integers
    t_max: Integers
    counts: Integers
    alone: npt.NDArray[np.uint8]
    floats: npt.NDArray[np.float64]
    segments: Integers
    blocks: Integers
    digests: npt.NDArray[np.uint64]
    earliest: Integers
    latest: Integers
    masks: dict[int, Masks]

    def of(self, place: int) -> slice:
        """The blocks of one series."""
        begin, end = self.places.searchsorted([place, place + 1]).tolist()
        return slice(begin, end)


class _Spot(NamedTuple):
    """Where series are in one segment. places: in the selection, ascending; begins, ends: their blocks."""

    segment: int
    places: Integers
    begins: Integers
    ends: Integers

    def part(self, begin: int, end: int) -> "_Spot":
        """Those of the places begin to end, counted from begin."""
        low, high = self.places.searchsorted([begin, end])
        inside = slice(low, high)
        return _Spot(self.segment, self.places[inside] - begin, self.begins[inside], self.ends[inside])


class _Columns(NamedTuple):
    """A table on its way: as Table, without what is made when it is whole."""

    places: Integers
    t_min: Integers
    t_max: Integers
    counts: Integers
    floats: npt.NDArray[np.float64]
    segments: Integers
    blocks: Integers
    digests: npt.NDArray[np.uint64]

    def at(self, which: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> "_Columns":
        """The blocks chosen."""
        columns: list[Any] = [np.ascontiguousarray(column[..., which]) for column in self]
        return _Columns(*columns)


class SegmentSet:
    """The segments of one moment. Constant; tables are kept in the cache."""

    def __init__(
        self, segments: Sequence[Segment], cache: PageCache | None = None, chunk_blocks: int = CHUNK_BLOCKS
    ) -> None:
        self.segments = tuple(segments)
        self._chunk_blocks = chunk_blocks
        self._cache = PageCache(_CACHE_BYTES) if cache is None else cache
        self._owner = self._cache.new_owner()

    def tables(self, series: Selection, deletes: Deletes, start: int, end: int) -> Iterator[tuple[Selection, Table]]:
        """The blocks of a selection, in parts: each part of the selection in turn, and its table.

        The table may lack blocks outside of start..end. Raises DamagedError.
        """
        known = self._cache.get(self._key(series, deletes), lambda: self._whole(series, deletes))
        if isinstance(known, Table):
            yield series, known
            return
        spots = self._locate(series, start, end)
        begin = 0
        for stop in _cuts(spots, len(series.ids), self._chunk_blocks):
            part = series.part(begin, stop)
            yield part, self._make(part, [spot.part(begin, stop) for spot in spots], deletes)
            begin = stop

    def _key(self, series: Selection, deletes: Deletes) -> tuple[int, int, bytes]:
        return self._owner, deletes.number if deletes else 0, series.ids.tobytes()

    def _whole(self, series: Selection, deletes: Deletes) -> "Table | _TooMany":
        spots = self._locate(series, EARLIEST, LATEST)
        blocks = sum(int((spot.ends - spot.begins).sum()) for spot in spots)
        if len(series.ids) > 1 and max(blocks, len(series.ids)) > self._chunk_blocks:
            return _TooMany()
        return self._make(series, spots, deletes)

    def _locate(self, series: Selection, start: int, end: int) -> list[_Spot]:
        """Where the series are in the segments that reach into the range."""
        spots = []
        for number, segment in enumerate(self.segments):
            if segment.t_min <= end and segment.t_max >= start:
                found = _ordinals(segment, series)
                places = np.flatnonzero(found >= 0)
                if len(places):
                    ordinals = found[places]
                    first = segment.first_block
                    spots.append(_Spot(number, places, first[ordinals], first[ordinals + 1]))
        return spots

    def _make(self, series: Selection, spots: list[_Spot], deletes: Deletes) -> Table:
        masks = series.masks(deletes)
        found = _in_order([self._read(spot) for spot in spots if len(spot.places)])
        touched = np.zeros(len(found.places), np.bool_)
        if masks:
            gone = self._hidden(found, masks, touched)
            found, touched = found.at(~gone), touched[~gone]
        alone = (~touched).astype(np.uint8)
        aggregate_kernels.mark_alone(found.places, found.t_min, found.t_max, alone)
        earliest = np.full(len(series.ids), LATEST, np.int64)
        latest = np.full(len(series.ids), EARLIEST, np.int64)
        aggregate_kernels.reach(found.places, found.t_min, found.t_max, earliest, latest)
        return Table(*found[:4], alone, *found[4:], earliest, latest, masks)

    def _read(self, spot: _Spot) -> _Columns:
        """The summaries of the blocks of one segment."""
        each = spot.ends - spot.begins
        ends = np.cumsum(each)
        blocks = np.arange(int(ends[-1])) + np.repeat(spot.begins - (ends - each), each)
        places = np.repeat(spot.places, each)
        numbers = np.full(len(blocks), spot.segment, np.int64)
        t_min, t_max, counts, floats, digests = _summaries(self.segments[spot.segment], blocks)
        return _Columns(places, t_min, t_max, counts, floats, numbers, blocks, digests)

    def _hidden(
        self, found: _Columns, masks: dict[int, Masks], touched: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.bool_]:
        """Which blocks lie wholly in a mask; in `touched`, which have a part in one."""
        gone = np.zeros(len(found.places), np.bool_)
        carried = np.array([each.header.delete_number for each in self.segments], np.int64)
        for place, of_series in masks.items():
            begin, end = found.places.searchsorted([place, place + 1])
            span = slice(begin, end)
            t_min, t_max, number = found.t_min[span], found.t_max[span], carried[found.segments[span]]
            for mask in of_series:
                concerned = number < mask.number
                gone[span] |= concerned & (t_min >= mask.start) & (t_max <= mask.end)
                touched[span] |= concerned & (t_min <= mask.end) & (t_max >= mask.start)
        return gone


class _TooMany(NamedTuple):
    """In the cache: that the series of a selection have too many blocks for one table."""


class View(NamedTuple):
    """All that a query reads: segments, heads from the oldest frozen one to the one being filled, deletes in force."""

    stored: SegmentSet
    heads: tuple[Head, ...]
    deletes: Deletes = NO_DELETES


def _ordinals(segment: Segment, series: Selection) -> Integers:
    """The place of each series in the table of a segment, -1 where it has no points there."""
    if len(series.ids) == 1:
        return np.array([segment.find(int(series.ids[0]), int(series.hashes[0]))])
    found = np.full(len(series.ids), -1, np.int64)
    asked = np.arange(len(series.ids))
    at = segment.hashes.searchsorted(series.hashes)
    while len(asked):  # once more for each further series that has the same hash
        asked = asked[at[asked] < segment.series]
        asked = asked[segment.hashes[at[asked]] == series.hashes[asked]]
        hit = segment.ids[at[asked]] == series.ids[asked]
        found[asked[hit]] = at[asked[hit]]
        asked = asked[~hit]
        at[asked] += 1
    return found


def _summaries(
    segment: Segment, blocks: Integers
) -> tuple[Integers, Integers, Integers, npt.NDArray[np.float64], npt.NDArray[np.uint64]]:
    """t_min, t_max, counts, floats and digests of some blocks."""
    if int(blocks[-1]) - int(blocks[0]) == len(blocks) - 1 and (np.diff(blocks) == 1).all():
        read = segment.index(int(blocks[0]), int(blocks[-1]) + 1)
        return read.t_min, read.t_max, read.counts, read.floats, read.digests
    order = np.argsort(blocks, kind="stable")
    t_min, t_max, counts = np.empty((3, len(blocks)), np.int64)
    floats, digests = np.empty((7, len(blocks))), np.empty(len(blocks), np.uint64)
    for span in runs(blocks[order]):
        places = order[span]
        low = int(blocks[places[0]])
        read = segment.index(low, int(blocks[places[-1]]) + 1)
        chosen = blocks[places] - low
        t_min[places], t_max[places], counts[places] = read.t_min[chosen], read.t_max[chosen], read.counts[chosen]
        floats[:, places], digests[places] = read.floats[:, chosen], read.digests[chosen]
    return t_min, t_max, counts, floats, digests


def runs(blocks: Integers) -> Iterator[slice]:
    """Ascending block numbers in stretches without a gap of more than a page."""
    cuts = np.flatnonzero(np.diff(blocks) > GAP_BLOCKS) + 1
    bounds = [0, *cuts.tolist(), len(blocks)]
    for begin, end in itertools.pairwise(bounds):
        yield slice(begin, end)


def _in_order(parts: list[_Columns]) -> _Columns:
    """The blocks of several segments, by series and t_min."""
    if not parts:
        none = np.empty(0, np.int64)
        return _Columns(none, none, none, none, np.empty((7, 0)), none, none, np.empty(0, np.uint64))
    joined = _Columns(*(np.concatenate(columns, axis=-1) for columns in zip(*parts, strict=True)))
    places, t_min = joined.places, joined.t_min
    ascending = (places[1:] > places[:-1]) | ((places[1:] == places[:-1]) & (t_min[1:] >= t_min[:-1]))
    return joined if ascending.all() else joined.at(np.lexsort((t_min, places)))


def _cuts(spots: list[_Spot], series: int, limit: int) -> list[int]:
    """Where to cut a selection so that no part has more series than the limit, nor blocks unless it is one series."""
    blocks = np.zeros(series, np.int64)
    for spot in spots:
        blocks[spot.places] += spot.ends - spot.begins
    ends = np.cumsum(np.maximum(blocks, 1))
    cuts: list[int] = []
    begin = 0
    while begin < series:
        before = int(ends[begin - 1]) if begin else 0
        begin = max(begin + 1, int(ends.searchsorted(before + limit, "right")))
        cuts.append(begin)
    return cuts
