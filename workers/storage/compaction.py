"""Compaction: several segments become one per period, or one for many periods that hold little.

Owns the files that it writes until they are complete, and those that a failed disk kept it from removing. Which
segments, and when, is compaction_plan's choice; the view is the store's. docs/architecture.md, "Compaction", has the
order of steps and what each prevents.

Memory: a table of blocks, the rows of one unit of work and the writers, about `budget` bytes together, however large
the inputs are. Belongs to one thread, the maintainer's; `pause` is called between units of work, some tenths of a
second apart, and may raise to have the work given up.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from common import files, log
from common.codec import Policy
from common.errors import StorageError
from workers.storage import compaction_kernels, compaction_plan, kernels
from workers.storage.compaction_plan import FIRST_PERIOD, PERIOD_NS, PERIODS, Output
from workers.storage.compaction_table import DamagedInputError, Keys, Rows, Table, starts, tables
from workers.storage.deletes import Deletes
from workers.storage.dropping import NO_DROPS, Drops
from workers.storage.join import settled_pieces
from workers.storage.layout import DamagedError, Layout
from workers.storage.pages import BLOCK_ROWS
from workers.storage.segment import Header, Segment
from workers.storage.segment_writer import SegmentWriter

KEPT_ROWS: Final = BLOCK_ROWS // 2  # blocks from this on are copied, not coded anew: at most half of what they could be
WRITERS: Final = 8  # outputs written in one pass over the inputs; each takes about 2 MiB

_BLOCK_BYTES: Final = 1024  # of the budget for each block of a table: its columns, its page, sorting
_ROW_BYTES: Final = 256  # and for each row of a unit of work: four copies of 16 bytes, and room for the writers

logger = log.get("storage.compaction")

Pause = Callable[[], None]


class Compactor:
    """Compacts segments of one store.

    keys_of: the keys of catalog ids; reserve(n): the first of n file numbers in a row that nobody else gets; budget:
    bytes of memory.
    """

    def __init__(
        self, place: Layout, policy: Policy, keys_of: Keys, reserve: Callable[[int], int], budget: int
    ) -> None:
        self._layout = place
        self._policy: Policy = policy
        self._keys_of = keys_of
        self._reserve = reserve
        self._budget = budget
        self._leftovers: list[Path] = []

    def clean(self) -> None:
        """Remove what could not be removed before; nothing may be compacted until that is done. Raises OSError."""
        if self._leftovers:
            files.remove_files(self._leftovers, self._layout.disk)
            self._leftovers = []

    def run(
        self, inputs: Sequence[Segment], deletes: Deletes, cutoff: int, pause: Pause, drops: Drops = NO_DROPS
    ) -> list[int]:
        """Write what replaces the inputs; its numbers, none when no row is left. The inputs stay: see `retire`.

        cutoff: rows before it are left out; drops: and what was given away. Raises DamagedInputError, OSError, and what
        `pause` raises; then nothing is left of the attempt, or `clean` will remove it.
        """
        self.clean()
        job = _Job(self._layout, self._policy, self._keys_of, self._budget, inputs, deletes, drops, cutoff, pause)
        outputs = job.outputs()
        if not outputs:
            return []
        first = self._reserve(len(outputs))
        try:
            return job.write(outputs, first)
        except BaseException:
            self.discard(range(first, first + len(outputs)))
            raise

    def discard(self, numbers: Sequence[int]) -> None:
        """Remove outputs of `run` that cannot be used, in any state; the inputs are to stay. Should that fail, `clean`
        does it."""
        paths = [self._layout.segment_path(number) for number in numbers]
        self._remove(paths + [path.with_name(path.name + files.TEMPORARY) for path in paths])

    def retire(self, inputs: Sequence[Segment]) -> None:
        """Unlink segments that nobody needs any more: outputs of `run` hold their rows, or none is left.

        Should that fail, `clean` does it.
        """
        self._remove([each.path for each in inputs])

    def _remove(self, paths: Sequence[Path]) -> None:
        self._leftovers += paths
        try:
            self.clean()
        except OSError as error:
            logger.warning("segments not removed yet", files=len(self._leftovers), error=str(error))


class _Job:
    """One compaction at work."""

    def __init__(
        self,
        place: Layout,
        policy: Policy,
        keys_of: Keys,
        budget: int,
        inputs: Sequence[Segment],
        deletes: Deletes,
        drops: Drops,
        cutoff: int,
        pause: Pause,
    ) -> None:
        self._layout = place
        self._policy: Policy = policy
        self._keys_of = keys_of
        self._inputs = inputs
        self._deletes = deletes
        self._drops = drops
        self._cutoff = cutoff
        self._pause = pause
        self._table_blocks = max(1, budget // _BLOCK_BYTES)
        self._unit_rows = max(BLOCK_ROWS, budget // _ROW_BYTES)

    def outputs(self) -> list[Output]:
        """What is to be written. Only inputs of several periods have to be read for that."""
        periods = {time // PERIOD_NS for each in self._inputs for time in (each.t_min, each.t_max)}
        if len(periods) == 1:
            return [compaction_plan.whole_output(self._cutoff)]
        rows = np.zeros(PERIODS, np.int64)
        series = 0
        for table in self._tables():
            rows += self._count(table)
            series += len(table.keys)
        return compaction_plan.outputs_of(rows, series, self._cutoff)

    def write(self, outputs: Sequence[Output], first: int) -> list[int]:
        """Write segments numbered from `first` on, each durable before the next is; those of WRITERS in one pass."""
        written: list[int] = []
        for begin in range(0, len(outputs), WRITERS):
            taken = outputs[begin : begin + WRITERS]
            headers = [self._header(first, at, len(outputs)) for at in range(begin, begin + len(taken))]
            numbers = range(first + begin, first + begin + len(taken))
            written += self._pass(taken, headers, numbers)
        if len(outputs) > 1 and len(written) < len(outputs):
            raise StorageError(f"BUG: {len(written)} of {len(outputs)} outputs have rows, from segment {first} on")
        return written

    def _header(self, first: int, at: int, count: int) -> Header:
        """WAL files that are still there are covered by the last output alone: it is there only if all are."""
        store_id = self._layout.store_id
        ranges: tuple[tuple[int, int], ...] = ()
        if at == count - 1:
            present = self._layout.wal_numbers()
            ranges = tuple(sorted({
                span for each in self._inputs if each.header.store_id == store_id for span in each.header.wal_ranges
                if any(span[0] <= number <= span[1] for number in present)
            }))  # fmt: skip
        replaces = tuple(sorted(each.number for each in self._inputs))
        return Header(store_id, store_id, self._deletes.number, ranges, replaces, (first, count))

    def _pass(self, outputs: Sequence[Output], headers: Sequence[Header], numbers: Sequence[int]) -> list[int]:
        """Read all inputs once and write some outputs; the numbers of those that have rows."""
        paths = [self._layout.segment_path(number) for number in numbers]
        writers = _Writers(outputs, [
            functools.partial(SegmentWriter, path, header, self._policy, self._layout.disk)
            for path, header in zip(paths, headers, strict=True)
        ])  # fmt: skip
        try:
            for table in self._tables():
                self._merge(table, writers)
            return [numbers[at] for at in writers.finish()]
        except BaseException:
            writers.abort()
            raise

    def _tables(self) -> Iterator[Table]:
        for table in tables(self._inputs, self._keys_of, self._deletes, self._drops, self._table_blocks):
            yield table
            self._pause()

    def _count(self, table: Table) -> npt.NDArray[np.int64]:
        """How many rows of each period stay, int64[PERIODS]; rows that are there twice count twice."""
        table = table.select(table.t_max >= self._cutoff)
        first, last = (table.t_min // PERIOD_NS - FIRST_PERIOD), (table.t_max // PERIOD_NS - FIRST_PERIOD)
        whole = (first == last) & (table.plain != 0) & (table.t_min >= self._cutoff)
        rows = np.bincount(first[whole], table.counts[whole], PERIODS).astype(np.int64)
        table = table.select(~whole)
        for begin, end in _units(np.ones(table.blocks, np.uint8), table.counts, self._unit_rows):
            times = table.select(slice(begin, end)).decode().times
            rows += np.bincount(times[times >= self._cutoff] // PERIOD_NS - FIRST_PERIOD, minlength=PERIODS)
            self._pause()
        return rows

    def _merge(self, table: Table, writers: "_Writers") -> None:
        """Write the rows of a table that belong to these outputs."""
        homes, touched = writers.homes(table.t_min, table.t_max)
        table, homes = table.select(touched), homes[touched]
        keep, breaks = np.empty(table.blocks, np.uint8), np.empty(table.blocks, np.uint8)
        compaction_kernels.keep_blocks(
            table.series, table.t_min, table.t_max, table.counts, homes, table.plain, KEPT_ROWS, keep
        )
        compaction_kernels.mark_breaks(table.series, table.t_min, table.t_max, breaks)
        for begin, end in _units(breaks, table.counts, self._unit_rows):
            unit, kept = table.select(slice(begin, end)), keep[begin:end] != 0
            if unit.counts.sum() > self._unit_rows and not kept.any():
                self._join_long(unit, writers)
            else:
                self._join(unit, kept, homes[begin:end], writers)
            self._pause()

    def _join(
        self, unit: Table, kept: npt.NDArray[np.bool_], homes: npt.NDArray[np.int32], writers: "_Writers"
    ) -> None:
        """Copy the blocks that are kept; decode and join the others: those between two kept ones are a run."""
        fresh = np.flatnonzero(~kept)
        runs = np.flatnonzero(
            (np.diff(unit.series[fresh], prepend=-1) != 0) | (np.diff(fresh, prepend=-1) != 1)
        )
        rows = unit.select(fresh).decode()
        offsets = np.append(rows.offsets[runs], rows.offsets[-1])
        kernels.settle(rows.times, rows.values, offsets, np.empty_like(rows.times), np.empty_like(rows.values))
        points = int(offsets[-1])
        settled = Rows(offsets, rows.times[:points], rows.values[:points])
        writers.write(unit, unit.series[fresh[runs]], settled, np.flatnonzero(kept), homes)

    def _join_long(self, chain: Table, writers: "_Writers") -> None:
        """Join more rows than a unit may have, of blocks of one series that overlap, in slices of time."""
        times: list[npt.NDArray[np.int64]] = []
        values: list[npt.NDArray[np.float64]] = []
        nothing, homes = np.empty(0, np.intp), np.empty(0, np.int32)

        def flush() -> None:
            joined = Rows(starts(np.array([sum(map(len, times))])), np.concatenate(times), np.concatenate(values))
            writers.write(chain, chain.series[:1], joined, nothing, homes)
            times.clear()
            values.clear()
            self._pause()

        for piece_times, piece_values in settled_pieces(chain.t_min, chain.decode_one):
            times.append(piece_times)
            values.append(piece_values)
            if sum(map(len, times)) >= self._unit_rows:
                flush()
        if times:
            flush()


def _units(
    breaks: npt.NDArray[np.uint8], counts: npt.NDArray[np.int64], at_most: int
) -> Iterator[tuple[int, int]]:
    """Cut blocks, where breaks allow, into units of at most so many rows; one between two breaks may have more."""
    bounds = np.append(np.flatnonzero(breaks), len(breaks))
    rows = starts(counts)[bounds]
    at = 0
    while at < len(bounds) - 1:
        end = max(at + 1, int(rows.searchsorted(rows[at] + at_most, "right")) - 1)
        yield int(bounds[at]), int(bounds[end])
        at = end


class _Writers:
    """The outputs of one pass. open: makes the writer of each, called when there is something to write."""

    def __init__(self, outputs: Sequence[Output], open_: Sequence[Callable[[], SegmentWriter]]) -> None:
        self._outputs = outputs
        self._open = open_
        self._writers: dict[int, SegmentWriter] = {}
        lows = np.concatenate([each.lows for each in outputs])
        order = np.argsort(lows)
        self._lows = lows[order]
        self._highs = np.concatenate([each.highs for each in outputs])[order]
        self._owners = np.repeat(np.arange(len(outputs), dtype=np.int32), [len(each.lows) for each in outputs])[order]

    def homes(
        self, t_min: npt.NDArray[np.int64], t_max: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        """By block the output that takes it whole, else -1 (int32); and whether any output takes rows of its span."""
        first = self._lows.searchsorted(t_min, "right") - 1
        last = self._lows.searchsorted(t_max, "right") - 1
        whole = (first >= 0) & (t_max <= self._highs[first])
        touched = (last >= 0) & (self._highs[last] >= t_min)
        return np.where(whole, self._owners[first], -1).astype(np.int32), touched

    def write(
        self,
        unit: Table,
        series: npt.NDArray[np.int32],
        rows: Rows,
        kept: npt.NDArray[np.intp],
        homes: npt.NDArray[np.int32],
    ) -> None:
        """Add settled rows and blocks of a unit. series: of each run of rows; kept: places of blocks to be copied;
        homes: by block."""
        for at in range(len(self._outputs)):
            copied = kept[homes[kept] == at]
            fresh = _deal(rows, series, self._outputs[at])
            if len(copied) or len(fresh.ends):
                _write(self._writer(at), unit, fresh, copied)

    def finish(self) -> list[int]:
        """Make the segments durable, in order; the places of those that have rows."""
        for at in sorted(self._writers):
            self._writers[at].finish()
        return sorted(self._writers)

    def abort(self) -> None:
        """Let go what is not finished."""
        for writer in self._writers.values():
            try:
                writer.abort()
            except OSError as error:  # the disk has refused something before: that error is the one to be told of
                logger.warning("half a segment not removed yet", error=str(error))

    def _writer(self, at: int) -> SegmentWriter:
        if at not in self._writers:
            self._writers[at] = self._open[at]()
        return self._writers[at]


class _Fresh:
    """New blocks: block b has rows ends[b - 1] to ends[b] and is of series[b]; first_times: of each."""

    def __init__(
        self,
        times: npt.NDArray[np.int64],
        values: npt.NDArray[np.float64],
        ends: npt.NDArray[np.int64],
        series: npt.NDArray[np.int32],
    ) -> None:
        self.times, self.values, self.ends, self.series = times, values, ends, series
        self.begins = np.append(0, ends[:-1]) if len(ends) else ends
        self.first_times = times[self.begins]

    def add_to(self, writer: SegmentWriter, unit: Table, begin: int, end: int) -> None:
        """Write the blocks begin to end."""
        if begin == end:
            return
        used, owners = np.unique(self.series[begin:end], return_inverse=True)
        first = int(self.begins[begin])
        rows = slice(first, int(self.ends[end - 1]))
        keys = [unit.keys[at] for at in used.tolist()]
        writer.add(
            keys, unit.mixed[used], self.times[rows], self.values[rows], self.ends[begin:end] - first,
            owners.astype(np.uint32),
        )  # fmt: skip


def _deal(rows: Rows, series: npt.NDArray[np.int32], output: Output) -> _Fresh:
    """The rows of an output as blocks. series: of each run of rows."""
    times, values = np.empty_like(rows.times), np.empty_like(rows.values)
    most = len(times) // BLOCK_ROWS + min(len(times), len(series) * len(output.lows))
    ends, owners = np.empty(most, np.int64), np.empty(most, np.uint32)
    blocks = compaction_kernels.deal(
        rows.times, rows.values, rows.offsets, output.lows, output.highs, BLOCK_ROWS, times, values, ends, owners
    )
    return _Fresh(times, values, ends[:blocks], series[owners[:blocks]])


def _write(writer: SegmentWriter, unit: Table, fresh: _Fresh, copied: npt.NDArray[np.intp]) -> None:
    """Add new blocks and copied ones in order of (series, time)."""
    begins = np.concatenate([fresh.first_times, unit.t_min[copied]])
    order = np.lexsort((begins, np.concatenate([fresh.series, unit.series[copied]])))
    places = np.flatnonzero(order >= len(fresh.ends))  # of the copied blocks among all
    done = 0
    for before, place in enumerate(places.tolist()):
        fresh.add_to(writer, unit, done, place - before)
        done = place - before
        at = int(copied[int(order[place]) - len(fresh.ends)])
        source = unit.inputs[int(unit.source[at])]
        try:
            writer.copy_block(unit.keys[int(unit.series[at])], source, int(unit.block[at]))
        except DamagedError as error:
            raise DamagedInputError(source, error) from error
    fresh.add_to(writer, unit, done, len(fresh.ends))
