"""Aggregates over a view of the store: summaries where they apply, decoding where they do not.

Owns nothing but a cache of each series' blocks. Never changes what it reads. Any thread; a plan belongs to one.

A summary stands for its rows when all of them lie in the range and no other place holds rows of the same series
between them: heads count as such places. Whatever is left is decoded and joined by the identity rule (one
row per timestamp, the larger value). Rows in heads are compared with blocks one by one, not by the span that they
reach over, so one late point makes one block be decoded and not all history.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from common import protocol
from workers.storage import kernels
from workers.storage.deletes import NO_DELETES, Deletes
from workers.storage.head import Head, Part, Times, Values, join
from workers.storage.segment import Blocks, Segment

EARLIEST: Final = -(1 << 63)
LATEST: Final = (1 << 63) - 1

# Bounds of the cache of one set of segments: about 2 KB per series and 100 bytes per block, so under 100 MB.
_CACHED_SERIES: Final = 16_384
_CACHED_BLOCKS: Final = 500_000

_LOW_63: Final = 0x7FFF_FFFF_FFFF_FFFF


class SeriesBlocks(NamedTuple):
    """One series' blocks in all segments, in order of t_min.

    t_min, t_max, counts: int64[n]; alone: uint8[n], 1 where a block overlaps no other; floats: float64[7, n] as
    in a segment; segments: place of each block's segment in the set; blocks: its number there.
    """

    t_min: Times
    t_max: Times
    counts: npt.NDArray[np.int64]
    alone: npt.NDArray[np.uint8]
    floats: npt.NDArray[np.float64]
    segments: npt.NDArray[np.int32]
    blocks: npt.NDArray[np.int32]
    earliest: int
    latest: int


class SegmentSet:
    """The segments of one moment, with the blocks of the series lately asked for. Constant but for that cache."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.segments = tuple(segments)
        self._cache: dict[int, SeriesBlocks] = {}
        self._cached_blocks = 0  # only a bound: readers may race in counting

    def blocks_of(self, local_id: int, key: bytes, hash_: int) -> SeriesBlocks:
        """The blocks of a series. Any thread."""
        found = self._cache.get(local_id)
        if found is None:
            found = _collect(self.segments, local_id, hash_)
            if len(self._cache) >= _CACHED_SERIES or self._cached_blocks >= _CACHED_BLOCKS:
                self._cache = {}
                self._cached_blocks = 0
            self._cached_blocks += len(found.t_min)
            self._cache[local_id] = found
        return found


class View(NamedTuple):
    """All that a query reads: segments, heads from the oldest frozen one to the one being filled, deletes in force."""

    stored: SegmentSet
    heads: tuple[Head, ...]
    deletes: Deletes = NO_DELETES


class _Open(NamedTuple):
    """One series of which something must be decoded.

    undecided: places in blocks, None while not known yet.
    """

    blocks: SeriesBlocks
    recent: list[tuple[Head, Part]]
    undecided: npt.NDArray[np.int32] | None


class AggregatePlan:
    """One aggregate request over a view, its summaries absorbed; `run` decodes the rest.

    rows_to_decode: how many rows that are at most, 0 when the answer needs no decoding.
    """

    def __init__(self, view: View, partitions: bytes, start: int | None, end: int | None) -> None:
        self.rows_to_decode = 0
        self._view = view
        self._partitions = partitions
        self._start = EARLIEST if start is None else start
        self._end = LATEST if end is None else end
        self._sum = np.zeros(kernels.FIELDS, np.int64)  # a summary row
        self._open: list[_Open] = []
        self._series = 0
        self._summarized = 0
        self._decoded = 0
        self._rows_decoded = 0

    def add(self, local_id: int, key: bytes, hash_: int) -> None:
        """Take one series in."""
        blocks = self._view.stored.blocks_of(local_id, key, hash_)
        recent = self._absorb_heads(local_id, blocks)
        undecided = None
        rows = sum(int(part.summary[kernels.COUNT]) for _, part in recent)
        if recent:
            rows += self._rows_exposed(blocks, recent)
        else:
            undecided = self._absorb_blocks(blocks, kernels.NO_TIMES)
            rows = int(blocks.counts[undecided].sum()) if len(undecided) else 0
        self._series += 1
        if rows:
            self._open.append(_Open(blocks, recent, undecided))
            self.rows_to_decode += rows

    def run(self) -> protocol.AggregateReply:
        """Decode what is open, and the answer. Raises StorageError for a damaged block."""
        for series in self._open:
            self._close_series(series)
        self._open = []
        return self._reply()

    def _absorb_heads(self, local_id: int, blocks: SeriesBlocks) -> list[tuple[Head, Part]]:
        """Take in the summaries of heads that stand for themselves; the heads that do not, and touch the range."""
        parts = [(head, part) for head in self._view.heads if (part := head.part(local_id)) is not None]
        spans = [(int(p.summary[kernels.FIRST_TIME]), int(p.summary[kernels.LAST_TIME])) for _, p in parts]
        others: list[tuple[Head, Part]] = []
        for at, (head, part) in enumerate(parts):
            first, last = spans[at]
            if last < self._start or first > self._end:
                continue
            alone = (
                bool(part.summary[kernels.RISING])
                and self._start <= first
                and last <= self._end
                and (first > blocks.latest or last < blocks.earliest)
                and all(first > there[1] or last < there[0] for there in spans[:at] + spans[at + 1 :])
            )
            if alone:
                kernels.absorb(self._sum, part.summary)
                self._summarized += 1
            else:
                others.append((head, part))
        return others

    def _rows_exposed(self, blocks: SeriesBlocks, recent: list[tuple[Head, Part]]) -> int:
        """How many rows at most must be decoded of blocks, when the rows of heads are known by their spans alone."""
        inside = (blocks.t_min >= self._start) & (blocks.t_max <= self._end)
        exposed = ~(inside & (blocks.alone != 0))
        for _, part in recent:
            first, last = part.summary[kernels.FIRST_TIME], part.summary[kernels.LAST_TIME]
            exposed |= (blocks.t_min <= last) & (blocks.t_max >= first)
        touching = (blocks.t_min <= self._end) & (blocks.t_max >= self._start)
        return int(blocks.counts[touching & exposed].sum())

    def _absorb_blocks(self, blocks: SeriesBlocks, recent: Times) -> npt.NDArray[np.int32]:
        if not len(blocks.t_min):
            return blocks.blocks
        undecided = np.empty(len(blocks.t_min), np.int32)
        before = int(self._sum[kernels.BLOCKS])
        left = kernels.absorb_blocks(
            blocks.t_min, blocks.t_max, blocks.counts, blocks.alone, blocks.floats, recent,
            self._start, self._end, self._sum, undecided,
        )  # fmt: skip
        self._summarized += int(self._sum[kernels.BLOCKS]) - before
        return undecided[:left]

    def _close_series(self, series: _Open) -> None:
        times, values = self._settle_recent(series.recent)
        undecided = series.undecided
        if undecided is None:
            undecided = self._absorb_blocks(series.blocks, times)
        at = 0
        for group in _groups(series.blocks, undecided):
            reach = int(series.blocks.t_max[group].max())
            stop = int(times.searchsorted(reach, "right"))
            self._absorb_group(series.blocks, group, times[at:stop], values[at:stop])
            at = stop
        kernels.absorb_rows(times[at:], values[at:], self._start, self._end, self._sum)

    def _settle_recent(self, recent: list[tuple[Head, Part]]) -> tuple[Times, Values]:
        """The rows of heads that lie in the range, settled."""
        clipped = []
        for head, part in recent:
            times, values = head.settled(part)
            inside = slice(int(times.searchsorted(self._start)), int(times.searchsorted(self._end, "right")))
            clipped.append((times[inside], values[inside]))
        if len(clipped) == 1:
            return clipped[0]
        if not clipped:
            return kernels.NO_TIMES, kernels.NO_VALUES
        return join([times for times, _ in clipped], [values for _, values in clipped])

    def _absorb_group(
        self, blocks: SeriesBlocks, group: npt.NDArray[np.int32], times: Times, values: Values
    ) -> None:
        """Decode blocks that overlap one another, and join them with recent rows."""
        pieces = [(times, values)] if len(times) else []
        for at in group.tolist():
            segment = self._view.stored.segments[int(blocks.segments[at])]
            pieces.append(segment.decode(int(blocks.blocks[at])))
        self._decoded += len(group)
        self._rows_decoded += int(blocks.counts[group].sum())
        if len(pieces) == 1:
            joined = pieces[0]
        else:
            joined = join([times for times, _ in pieces], [values for _, values in pieces])
        kernels.absorb_rows(*joined, self._start, self._end, self._sum)

    def _reply(self) -> protocol.AggregateReply:
        if not self._sum[kernels.COUNT]:
            return self._nothing()  # most answers, where every node is asked for a series that one of them has
        fields = self._sum.tolist()
        sums = self._sum.view(np.float64)
        hi = float(sums[kernels.HI]) + float(sums[kernels.LO])
        lo = (float(sums[kernels.HI]) - hi) + float(sums[kernels.LO]) if math.isfinite(hi) else 0.0
        least, most, first, last = _from_ordered(self._sum[kernels.MIN : kernels.LAST + 1])
        return protocol.AggregateReply(
            partitions=self._partitions,
            delete_number=0,
            series=self._series,
            count=fields[kernels.COUNT],
            sum_hi=hi,
            sum_lo=lo,
            min=least,
            max=most,
            first_time=fields[kernels.FIRST_TIME],
            first=first,
            last_time=fields[kernels.LAST_TIME],
            last=last,
            blocks_summarized=self._summarized,
            blocks_decoded=self._decoded,
            rows_decoded=self._rows_decoded,
        )

    def _nothing(self) -> protocol.AggregateReply:
        return protocol.AggregateReply(
            self._partitions, 0, self._series, 0, 0.0, 0.0, 0.0, 0.0, 0, 0.0, 0, 0.0,
            self._summarized, self._decoded, self._rows_decoded,
        )  # fmt: skip


def _collect(segments: Sequence[Segment], local_id: int, hash_: int) -> SeriesBlocks:
    found: list[tuple[int, int, Blocks]] = []
    for place, segment in enumerate(segments):
        ordinal = segment.find(local_id, hash_)
        if ordinal >= 0:
            begin, end = segment.block_range(ordinal)
            found.append((place, begin, segment.index(begin, end)))
    if not found:
        return _NONE
    t_min = np.concatenate([part.t_min for _, _, part in found])
    order = np.argsort(t_min, kind="stable")
    t_min, t_max = t_min[order], np.concatenate([part.t_max for _, _, part in found])[order]
    alone = np.empty(len(order), np.uint8)
    kernels.mark_alone(t_min, t_max, alone)
    counts = np.concatenate([part.counts for _, _, part in found])
    floats = np.concatenate([part.floats for _, _, part in found], axis=1)
    places = np.concatenate([np.full(len(part.t_min), place, np.int32) for place, _, part in found])
    blocks = np.concatenate([np.arange(begin, begin + len(p.t_min), dtype=np.int32) for _, begin, p in found])
    return SeriesBlocks(
        t_min, t_max, counts[order], alone, np.ascontiguousarray(floats[:, order]), places[order], blocks[order],
        int(t_min[0]), int(t_max.max()),
    )  # fmt: skip


_NONE: Final = SeriesBlocks(
    kernels.NO_TIMES, kernels.NO_TIMES, kernels.NO_TIMES, np.empty(0, np.uint8), np.empty((7, 0)),
    np.empty(0, np.int32), np.empty(0, np.int32), LATEST, EARLIEST,
)  # fmt: skip


def _groups(blocks: SeriesBlocks, undecided: npt.NDArray[np.int32]) -> Iterator[npt.NDArray[np.int32]]:
    """Split blocks, in order of t_min, into runs such that no run overlaps another."""
    if not len(undecided):
        return
    reach = np.maximum.accumulate(blocks.t_max[undecided])
    cuts = np.flatnonzero(blocks.t_min[undecided][1:] > reach[:-1]) + 1
    yield from np.split(undecided, cuts)


def _from_ordered(keys: npt.NDArray[np.int64]) -> list[float]:
    """float64 values from ordered bits (kernels)."""
    values: list[float] = (keys ^ ((keys >> 63) & _LOW_63)).view(np.float64).tolist()
    return values
