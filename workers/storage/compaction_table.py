"""The blocks of several segments as one table, a slice of the hash space at a time, and their rows.

Owns nothing. Series are ordered by (hash, key) in every segment, so the series whose hashes lie in a slice are a run
of each; hashes are uniform, so slices are about equal. Belongs to the thread that compacts.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from common.errors import StorageError
from workers.storage import kernels
from workers.storage.deletes import Deletes, Mask, outside
from workers.storage.dropping import Drops
from workers.storage.layout import DamagedError
from workers.storage.segment import Segment

Integers = npt.NDArray[np.int64]
Places = npt.NDArray[np.intp]
Keys = Callable[[Integers], list[bytes]]

_HASHES: Final = 1 << 64


class DamagedInputError(StorageError):
    """A segment that is not what was written. `segment` says which."""

    def __init__(self, segment: Segment, error: DamagedError) -> None:
        super().__init__(str(error))
        self.segment = segment


class Table(NamedTuple):
    """Blocks in order of (series, t_min).

    inputs: the segments; keys, mixed (kernels.mix_hashes): by series; by block: source, the place of its segment in
    inputs (int32); block, its number there; series (int32); t_min, t_max; counts; plain (uint8): 1 where no mask
    touches it. masks: of series that have any.
    """

    inputs: Sequence[Segment]
    keys: list[bytes]
    mixed: npt.NDArray[np.uint64]
    masks: dict[int, tuple[Mask, ...]]
    source: npt.NDArray[np.int32]
    block: Integers
    series: npt.NDArray[np.int32]
    t_min: Integers
    t_max: Integers
    counts: Integers
    plain: npt.NDArray[np.uint8]

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return len(self.source)

    def select(self, which: Places | npt.NDArray[np.bool_] | slice) -> "Table":
        """The table of some of the blocks, in order."""
        columns: Any = [column[which] for column in self[4:]]
        return Table(self.inputs, self.keys, self.mixed, self.masks, *columns)

    def masks_of(self, at: int) -> tuple[Mask, ...]:
        """The masks of a block: those numbered above its segment's delete number."""
        number = self.inputs[int(self.source[at])].header.delete_number
        return tuple(mask for mask in self.masks.get(int(self.series[at]), ()) if mask.number > number)

    def decode_one(self, at: int) -> tuple[Integers, npt.NDArray[np.float64]]:
        """The rows of a block that no mask hides. Raises DamagedInputError."""
        source = self.inputs[int(self.source[at])]
        try:
            times, values = source.decode(int(self.block[at]))
        except DamagedError as error:
            raise DamagedInputError(source, error) from error
        if self.plain[at]:
            return times, values
        keep = outside(times, self.masks_of(at))
        return times[keep], values[keep]

    def decode(self) -> "Rows":
        """The rows of all blocks that no mask hides. Raises DamagedInputError."""
        offsets = starts(self.counts)
        rows = Rows(offsets, np.empty(offsets[-1], np.int64), np.empty(offsets[-1], np.float64))
        for place in np.unique(self.source).tolist():
            source, of_source = self.inputs[place], np.flatnonzero(self.source == place)
            of_source = of_source[np.argsort(self.block[of_source], kind="stable")]
            try:
                source.decode_all(self.block[of_source], offsets[of_source], rows.times, rows.values)
            except DamagedError as error:
                raise DamagedInputError(source, error) from error
        touched = np.flatnonzero(self.plain == 0)
        return rows.without({at: self.masks_of(at) for at in touched.tolist()}) if len(touched) else rows


class Rows(NamedTuple):
    """Rows of blocks: block b has offsets[b] to offsets[b + 1] of times and values."""

    offsets: Integers
    times: Integers
    values: npt.NDArray[np.float64]

    def without(self, masks: dict[int, tuple[Mask, ...]]) -> "Rows":
        """What the masks leave of some blocks, and all of the others."""
        keep = np.ones(len(self.times), np.bool_)
        for block, each in masks.items():
            rows = slice(int(self.offsets[block]), int(self.offsets[block + 1]))
            keep[rows] = outside(self.times[rows], each)
        return Rows(starts(keep)[self.offsets], self.times[keep], self.values[keep])


def tables(
    inputs: Sequence[Segment], keys_of: Keys, deletes: Deletes, drops: Drops, at_most: int
) -> Iterator[Table]:
    """All blocks that masks leave rows of, as tables of about `at_most` blocks, in order of (hash, key).

    keys_of: the keys of catalog ids; drops: what was given away is left out. Raises DamagedInputError.
    """
    slices = 1 + sum(each.blocks for each in inputs) // at_most
    begins = [0] * len(inputs)
    for at in range(1, slices + 1):
        ends = [_below(each, at * _HASHES // slices) for each in inputs]
        table = _table(inputs, begins, ends, keys_of, deletes, drops)
        if table.blocks:
            yield table
        begins = ends


def starts(counts: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> Integers:
    """Where each of some runs begins when they lie one behind the other, and where the last one ends."""
    found = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=found[1:])
    return found


def _below(segment: Segment, bound: int) -> int:
    """How many series of a segment have a hash below a bound."""
    return segment.series if bound == _HASHES else int(segment.hashes.searchsorted(np.uint64(bound)))


def _table(
    inputs: Sequence[Segment],
    begins: Sequence[int],
    ends: Sequence[int],
    keys_of: Keys,
    deletes: Deletes,
    drops: Drops,
) -> Table:
    spans = [slice(begin, end) for begin, end in zip(begins, ends, strict=True)]
    keys, hashes, local = _number(inputs, spans, keys_of)
    mixed = np.empty(len(keys), np.uint64)
    kernels.mix_hashes(hashes, mixed)
    parts = [_blocks_of(each, at, spans[at], local[at]) for at, each in enumerate(inputs)]
    columns: Any = [np.concatenate(column) for column in zip(*parts, strict=True)]
    table = Table(inputs, keys, mixed, {}, *columns)
    if drops:
        numbers = np.array([each.number for each in inputs], np.int64)
        table = table.select(numbers[table.source] > drops.limits_of(hashes)[table.series])
    table = table.select(np.lexsort((table.t_min, table.series)))
    lowest = min(each.header.delete_number for each in inputs)
    return _masked(table, deletes) if deletes and deletes.number > lowest else table


def _number(
    inputs: Sequence[Segment], spans: Sequence[slice], keys_of: Keys
) -> tuple[list[bytes], npt.NDArray[np.uint64], list[npt.NDArray[np.int32]]]:
    """The distinct series of a slice by (hash, key): keys and hashes; and for each input, of each series its place."""
    ids = np.concatenate([each.ids[span] for each, span in zip(inputs, spans, strict=True)])
    all_hashes = np.concatenate([each.hashes[span] for each, span in zip(inputs, spans, strict=True)])
    distinct, first, place = np.unique(ids, return_index=True, return_inverse=True)
    hashes = all_hashes[first]
    keys = keys_of(distinct)
    order = np.argsort(hashes, kind="stable")
    if (np.diff(hashes[order]) == 0).any():
        order = np.array(sorted(order.tolist(), key=lambda at: (int(hashes[at]), keys[at])), np.intp)
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    bounds = np.cumsum([span.stop - span.start for span in spans])[:-1]
    return [keys[at] for at in order.tolist()], hashes[order], np.split(rank[place], bounds)


def _blocks_of(segment: Segment, at: int, span: slice, local: npt.NDArray[np.int32]) -> tuple[Any, ...]:
    """The columns of a table for a run of series. at: the segment's place; local: of each series its place."""
    begin, end = int(segment.first_block[span.start]), int(segment.first_block[span.stop])
    try:
        found = segment.index(begin, end)
    except DamagedError as error:
        raise DamagedInputError(segment, error) from error
    source, plain = np.full(end - begin, at, np.int32), np.ones(end - begin, np.uint8)
    series = np.repeat(local, np.diff(segment.first_block[span.start : span.stop + 1]))
    return source, np.arange(begin, end), series, found.t_min, found.t_max, found.counts, plain


def _masked(table: Table, deletes: Deletes) -> Table:
    """The table without the blocks that masks hide whole, and what they touch noted."""
    masks = {at: found for at, key in enumerate(table.keys) if (found := deletes.masks_of(key))}
    if not masks:
        return table
    numbers = np.array([each.header.delete_number for each in table.inputs])[table.source]
    gone = np.zeros(table.blocks, np.bool_)
    for series, each in masks.items():
        begin, end = table.series.searchsorted([series, series + 1]).tolist()
        for mask in each:
            applies = numbers[begin:end] < mask.number
            t_min, t_max = table.t_min[begin:end], table.t_max[begin:end]
            table.plain[begin:end][applies & (t_min <= mask.end) & (t_max >= mask.start)] = 0
            gone[begin:end] |= applies & (t_min >= mask.start) & (t_max <= mask.end)
    return table._replace(masks=masks).select(~gone)
