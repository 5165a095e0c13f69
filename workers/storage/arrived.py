"""Replies of another store, made ready to be written: checked, brought into the order of a segment, joined.

Pure, and owns nothing that lasts. Every CRC is checked, so what comes out is what the other store had; blocks that
overlap each other (they came with different replies, and were merged over there in between) become rows.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from common import codec, files
from common.errors import CodecError, ProtocolError
from common.points import PointBatch
from common.protocol import FetchReply, StoredBlocks
from workers.storage import aggregate_kernels, kernels, pages, windows
from workers.storage.compaction_plan import PERIOD_NS, SPLIT_ROWS, SPLIT_ROWS_PER_SERIES, WIDE
from workers.storage.fetching import checksum
from workers.storage.head import Grouped
from workers.storage.layout import DamagedError
from workers.storage.pages import PAGE_BLOCKS, Blocks
from workers.storage.recent import Integers, Rows, Values
from workers.storage.stored_blocks import Raw, joined

Flags = npt.NDArray[np.bool_]
HashesOf = Callable[[Sequence[bytes]], npt.NDArray[np.uint64]]

_WHERE: Final = "blocks of another store"


class Arrived(NamedTuple):
    """Points of replies. keys: of their series, in order of (hash, key); hashes: of the keys.

    raw: blocks that do not overlap, in order of series and time, None for none; owners: int64[blocks], the key of each.
    row_owners, times, values: by row, in any order, the same also more than once.
    """

    keys: list[bytes]
    hashes: npt.NDArray[np.uint64]
    raw: Raw | None
    owners: Integers
    row_owners: Integers
    times: Integers
    values: Values

    @property
    def size(self) -> int:
        """About what they take on disk."""
        return (len(self.raw.data) if self.raw is not None else 0) + self.times.nbytes + self.values.nbytes

    def at(self, blocks: Flags, rows: Flags) -> "Arrived":
        """Some of the blocks and of the rows."""
        raw = None if self.raw is None or not blocks.any() else self.raw
        if raw is not None and not blocks.all():
            raw = raw.at(np.flatnonzero(blocks))
        return self._replace(
            raw=raw, owners=self.owners[blocks], row_owners=self.row_owners[rows], times=self.times[rows],
            values=self.values[rows],
        )  # fmt: skip

    def grouped(self) -> tuple[Grouped, list[bytes]]:
        """The rows as those of a head, settled, its ids without meaning; and their keys."""
        order = np.argsort(self.row_owners, kind="stable")
        times, values = self.times[order], self.values[order]
        used, counts = np.unique(self.row_owners, return_counts=True)
        offsets = np.append(0, counts.cumsum())
        kernels.settle(times, values, offsets, np.empty_like(times), np.empty_like(values))
        hashes, mixed = self.hashes[used], np.empty(len(used), np.uint64)
        kernels.mix_hashes(hashes, mixed)
        points = int(offsets[-1])
        keys = [self.keys[at] for at in used.tolist()]
        return Grouped(used, hashes, mixed, offsets, times[:points], values[:points]), keys


def of_replies(replies: Sequence[FetchReply], hashes_of: HashesOf) -> Arrived:
    """The points of replies. hashes_of: of keys; raises ProtocolError for one that is not canonical.

    Raises ProtocolError for what is damaged or was never a reply.
    """
    found = [(each.keys, *_unpacked(each)) for reply in replies for each in reply.blocks]
    batches = [PointBatch.decode(reply.rows) for reply in replies if reply.rows]
    keys = list(dict.fromkeys(key for part in [*(keys for keys, _, _ in found), *(each.keys for each in batches)]
                              for key in part))  # fmt: skip
    hashes = hashes_of(keys)
    order = sorted(range(len(keys)), key=lambda at: (int(hashes[at]), keys[at]))
    rank = {keys[at]: place for place, at in enumerate(order)}
    raw, owners, rows = _in_order([(_ranked(keys, numbers, rank), raw) for keys, numbers, raw in found])
    rows += [(_ranked(each.keys, each.index, rank), each.times, each.values) for each in batches]
    none = (np.empty(0, np.int64), kernels.NO_TIMES, kernels.NO_VALUES)
    columns: list[Any] = [np.concatenate(column) for column in zip(none, *rows, strict=True)]
    return Arrived([keys[at] for at in order], hashes[np.array(order, np.int64)], raw, owners, *columns)


def by_period(found: Arrived) -> list[Arrived]:
    """The points of each period that is worth a segment of its own (compaction_plan.py), then all others together.

    So what compaction keeps apart, and retention drops as a whole, comes apart. A block over a border stays as it is.
    """
    none = np.empty(0, np.int64)
    low, high, counts = (none,) * 3 if found.raw is None else found.raw.blocks[:3]
    of_blocks, of_rows = low // PERIOD_NS, found.times // PERIOD_NS
    of_blocks = np.where(of_blocks == high // PERIOD_NS, of_blocks, WIDE)
    periods, places = np.unique(np.concatenate([of_blocks, of_rows]), return_inverse=True)
    rows = np.bincount(places, np.concatenate([counts, np.ones(len(of_rows), np.int64)]), len(periods))
    worth = (periods != WIDE) & (rows >= max(SPLIT_ROWS, SPLIT_ROWS_PER_SERIES * len(found.keys)))
    if len(periods) < 2 or not worth.any():
        return [found]
    parts = [found.at(of_blocks == period, of_rows == period) for period in periods[worth].tolist()]
    others = periods[~worth]
    return parts + ([found.at(np.isin(of_blocks, others), np.isin(of_rows, others))] if len(others) else [])


def _ranked(keys: Sequence[bytes], numbers: Any, rank: dict[bytes, int]) -> Integers:
    found: Integers = np.array([rank[key] for key in keys], np.int64)[numbers]
    return found


def _unpacked(each: StoredBlocks) -> tuple[npt.NDArray[np.uint32], Raw]:
    """Blocks as they came, and which of the keys each is of. Raises ProtocolError."""
    if checksum(each.keys, each.series, each.index, each.windows) != each.crc:
        raise ProtocolError(f"{_WHERE}: index has another CRC than {each.crc:08x}")
    count = len(each.series) // 4
    if not 1 <= count <= PAGE_BLOCKS or len(each.series) % 4:
        raise ProtocolError(f"{_WHERE}: {len(each.series)} bytes of series, want 4 for each of 1 to {PAGE_BLOCKS}")
    numbers = np.frombuffer(each.series, "<u4")
    if int(numbers.max()) >= len(each.keys):
        raise ProtocolError(f"{_WHERE}: series {numbers.max()} of {len(each.keys)}")
    try:
        blocks = pages.unpack(each.index, count, 0, len(each.data), _WHERE)
        of_blocks = windows.unpack(each.windows, blocks.t_min, blocks.t_max, blocks.counts, _WHERE)
    except DamagedError as error:
        raise ProtocolError(str(error)) from error
    _check_crcs(blocks, each.data)
    return numbers, Raw(blocks, of_blocks, each.data)


def _check_crcs(blocks: Blocks, data: bytes) -> None:
    view, ends = memoryview(data), blocks.offsets + blocks.times_bytes + blocks.values_bytes
    spans = zip(blocks.offsets.tolist(), ends.tolist(), blocks.crcs.tolist(), strict=True)
    for at, (begin, end, crc) in enumerate(spans):
        computed = files.crc32c(view[begin:end])
        if computed != crc:
            raise ProtocolError(f"{_WHERE}: block {at} has CRC {computed:08x}, want {crc:08x}")


def _in_order(parts: Sequence[tuple[Integers, Raw]]) -> tuple[Raw | None, Integers, list[tuple[Integers, Any, Any]]]:
    """Blocks by series and time, the key of each, and those that overlap as rows."""
    if not parts:
        return None, np.empty(0, np.int64), []
    owners, raw = np.concatenate([each for each, _ in parts]), joined([raw for _, raw in parts])
    order = np.lexsort((raw.blocks.t_min, owners))
    alone = np.ones(len(order), np.uint8)
    aggregate_kernels.mark_alone(owners[order], raw.blocks.t_min[order], raw.blocks.t_max[order], alone)
    whole, others = order[alone != 0], order[alone == 0]
    rows = [(np.full(len(times), owners[at]), times, values) for at in others.tolist()
            for times, values in [decoded(raw, at)]]  # fmt: skip
    if not len(whole):
        return None, owners[whole], rows
    return (raw if (np.diff(whole) == 1).all() and len(whole) == len(order) else raw.at(whole)), owners[whole], rows


def decoded(raw: Raw, at: int) -> Rows:
    """The rows of a block. Raises ProtocolError."""
    blocks, one = raw.blocks, slice(at, at + 1)
    count, begin = int(blocks.counts[at]), int(blocks.offsets[at])
    middle = begin + int(blocks.times_bytes[at])
    times, values, right = np.empty(count, np.int64), np.empty(count, np.float64), np.ones(1, np.bool_)
    view = memoryview(raw.data)
    try:
        codec.decode_times_into(view[begin:middle], count, int(blocks.times_codec[at]), times)
        stop = middle + int(blocks.values_bytes[at])
        codec.decode_values_into(view[middle:stop], count, int(blocks.values_codec[at]), values)
    except CodecError as error:
        raise ProtocolError(f"{_WHERE}: {error}") from error
    kernels.check_times(times, np.zeros(1, np.int64), blocks.counts[one], blocks.t_min[one], blocks.t_max[one], right)
    if not right[0]:
        raise ProtocolError(f"{_WHERE}: timestamps that do not rise from {blocks.t_min[at]} to {blocks.t_max[at]}")
    return times, values
