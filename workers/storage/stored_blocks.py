"""What summaries tell of the blocks of a table beside what is in it, and the blocks themselves, as they are stored.

Owns nothing. A table (table.py) says in which segment a block lies and under which number; here that is looked up, run
by run, so that neighbours in a file are read at once. Any thread.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from workers.storage import pages, windows
from workers.storage.pages import Blocks
from workers.storage.segment import Segment
from workers.storage.table import Integers, Table, View, runs
from workers.storage.windows import Windows


class Raw(NamedTuple):
    """Blocks as they are stored: their summaries, their windows, their bytes, one behind the other in their order."""

    blocks: Blocks
    windows: Windows
    data: bytes

    def at(self, which: Integers) -> "Raw":
        """Some of the blocks, in the order given; offsets are those in data, here and there."""
        columns: list[Any] = [column[..., which] for column in self.blocks]
        blocks = Blocks(*columns)
        sizes, view = blocks.times_bytes + blocks.values_bytes, memoryview(self.data)
        ends = (blocks.offsets + sizes).tolist()
        data = b"".join([view[begin:end] for begin, end in zip(blocks.offsets.tolist(), ends, strict=True)])
        return Raw(blocks._replace(offsets=sizes.cumsum() - sizes), self.windows.at(which), data)


def sizes_of(view: View, table: Table, which: Integers) -> Integers:
    """How many bytes some blocks of a table take, encoded, int64[n]. Raises DamagedError."""
    found = np.empty(len(which), np.int64)
    for segment, numbers, mine in _by_segment(view, table, which):
        for span, read in _read(segment, numbers):
            at = numbers[span] - numbers[span.start]
            found[mine[span]] = read.times_bytes[at] + read.values_bytes[at]
    return found


def raw_of(view: View, table: Table, which: Integers) -> Raw:
    """Some blocks of a table, at least one, in the order given. Their CRCs are checked. Raises DamagedError."""
    parts: list[Raw] = []
    places: list[Integers] = []
    for segment, numbers, mine in _by_segment(view, table, which):
        cuts = np.flatnonzero(np.diff(numbers) != 1) + 1
        for begin, end in itertools.pairwise([0, *cuts.tolist(), len(numbers)]):
            first, stop = int(numbers[begin]), int(numbers[end - 1]) + 1
            parts.append(Raw(segment.index(first, stop), segment.windows(first, stop), segment.raw_run(first, stop)))
            places.append(mine[begin:end])
    raw, order = joined(parts), np.argsort(np.concatenate(places))
    return raw if (np.diff(order) == 1).all() else raw.at(order)


def joined(parts: Sequence[Raw]) -> Raw:
    """The blocks of several parts, at least one, one behind the other; offsets are those in data."""
    blocks = pages.joined([part.blocks for part in parts])
    sizes = blocks.times_bytes + blocks.values_bytes
    return Raw(
        blocks._replace(offsets=sizes.cumsum() - sizes),
        windows.joined([part.windows for part in parts]),
        b"".join([part.data for part in parts]),
    )


def _by_segment(view: View, table: Table, which: Integers) -> Iterator[tuple[Segment, Integers, Integers]]:
    """Some blocks, by segment: their numbers there, ascending, and their places among those given."""
    segments, numbers = table.segments[which], table.blocks[which]
    order = np.lexsort((numbers, segments))
    cuts = np.flatnonzero(np.diff(segments[order])) + 1
    for mine in np.split(order, cuts):
        if len(mine):
            yield view.stored.segments[int(segments[mine[0]])], numbers[mine], mine


def _read(segment: Segment, numbers: Integers) -> Iterator[tuple[slice, Blocks]]:
    """Ascending blocks of a segment in stretches, and all that the index says from the first to the last of each."""
    for span in runs(numbers):
        yield span, segment.index(int(numbers[span.start]), int(numbers[span.stop - 1]) + 1)
