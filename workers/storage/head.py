"""The head: recent points in memory, in order of arrival, with running summaries per series.

Owns preallocated columns, one row per point, and one summary row per series (kernels.FIELDS). A head covers whole
WAL files; once frozen it never changes and waits to be sealed. No I/O, no per-point Python objects.

Threads: the writer alone appends. `_lock` guards the summary rows and the table of local numbers, held while a
batch is appended and while summaries are copied. The columns only grow: rows that a copied summary
leads to are complete and never change, so they are read outside the lock.
"""

import threading
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from common.points import PointBatch
from workers.storage import kernels

Times = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]

ROW_BYTES: Final = 4 + 8 + 8 + 4  # of the columns
_SERIES_BYTES: Final = 8 * kernels.FIELDS + 8 + 8 + 8 + 32  # summary row, two hashes, id in a list
_FEW_SERIES: Final = 8
_FIRST_SERIES: Final = 256  # summary rows to begin with; doubled when they run out


class Parts(NamedTuple):
    """Some series in a head, at one moment.

    places: int64[n], ascending, of the series in what was asked; locals: int32[n], their numbers here; summaries: a
    copy of their rows, int64[n, FIELDS].
    """

    places: npt.NDArray[np.int64]
    locals: npt.NDArray[np.int32]
    summaries: npt.NDArray[np.int64]


class Arrived(NamedTuple):
    """Rows in order of arrival, to be read only. series: uint32[n], local numbers."""

    series: npt.NDArray[np.uint32]
    times: Times
    values: Values


class _Settled(NamedTuple):
    """The first `rows` rows of a series, settled."""

    rows: int
    times: Times
    values: Values


_NO_PARTS: Final = Parts(np.empty(0, np.int64), np.empty(0, np.int32), np.empty((0, kernels.FIELDS), np.int64))
_FIRST_PLACE: Final = np.zeros(1, np.int64)
_NOTHING: Final = _Settled(0, kernels.NO_TIMES, kernels.NO_VALUES)


class Head:
    """Room for `capacity` rows.

    delete_number: the highest delete in force before its rows; it masks none of them. since_s: when it took its first
    row, monotonic, None before. wal_first, wal_last: the WAL files covered, 0 before the first; wal_bytes: what the
    rows take there, about.
    """

    def __init__(self, capacity: int, delete_number: int = 0) -> None:
        self.rows = 0
        self.delete_number = delete_number
        self.since_s: float | None = None
        self.wal_first = 0
        self.wal_last = 0
        self.wal_bytes = 0
        self._series = np.empty(capacity, np.uint32)  # local number
        self._times = np.empty(capacity, np.int64)
        self._values = np.empty(capacity, np.float64)
        self._previous = np.empty(capacity, np.int32)  # the row before of the same series, -1 for none
        self._lock = threading.Lock()
        self._local_of = np.empty(0, np.int32)  # by catalog id; -1 where the series has no rows here
        self._ids: list[int] = []  # catalog id by local number
        self._hashes = np.empty(_FIRST_SERIES, np.uint64)  # by local number
        self._mixed = np.empty(_FIRST_SERIES, np.uint64)
        self._state = np.zeros((_FIRST_SERIES, kernels.FIELDS), np.int64)
        self._settled: dict[int, _Settled] = {}  # by local number; entries are replaced whole, by any reader

    def fits(self, rows: int) -> bool:
        """Whether so many more rows can be appended."""
        return self.rows + rows <= len(self._times)

    @property
    def series(self) -> int:
        """How many series have rows here."""
        return len(self._ids)

    @property
    def bytes(self) -> int:
        """About what rows and series take in memory."""
        return self.rows * ROW_BYTES + self.series * _SERIES_BYTES + self._local_of.nbytes

    def cover(self, wal_number: int, size: int) -> None:
        """Note that rows of this WAL file are here, and how many bytes they take there. Numbers ascend."""
        self.wal_first = self.wal_first or wal_number
        self.wal_last = wal_number
        self.wal_bytes += size

    def take_cover(self, other: "Head") -> None:
        """Cover what another head covers, which holds no rows."""
        self.wal_first, self.wal_last, self.wal_bytes = other.wal_first, other.wal_last, other.wal_bytes

    def append(self, batch: PointBatch, ids: npt.NDArray[np.int64], hashes: npt.NDArray[np.uint64]) -> None:
        """Add a batch that fits. ids, hashes: of the series in its table. Writer thread."""
        with self._lock:
            kernels.append_rows(
                batch.index, batch.times, batch.values, self._locals(ids, hashes), self._mixed, self.rows,
                self._series, self._times, self._values, self._previous, self._state,
            )  # fmt: skip
            self.rows += len(batch)

    def parts(self, ids: npt.NDArray[np.int64]) -> Parts:
        """Those of some series (catalog ids) that have rows here, as they are now. Any thread."""
        if not self.rows:
            return _NO_PARTS
        if len(ids) == 1:
            return self._part(int(ids[0]))
        with self._lock:
            places = np.flatnonzero(ids < len(self._local_of))
            locals_ = self._local_of[ids[places]]
            here = locals_ >= 0
            summaries = self._state[locals_[here]]
        some = summaries[:, kernels.COUNT] > 0
        return Parts(places[here][some], locals_[here][some], summaries[some])

    def _part(self, local_id: int) -> Parts:
        """As `parts` of one series, which is asked most and must be fast."""
        with self._lock:
            local = int(self._local_of[local_id]) if local_id < len(self._local_of) else -1
            if local < 0:
                return _NO_PARTS
            summaries = self._state[local : local + 1].copy()
        return Parts(_FIRST_PLACE, np.array([local], np.int32), summaries) if summaries[0, kernels.COUNT] else _NO_PARTS

    def settled(self, local: int, summary: npt.NDArray[np.int64]) -> tuple[Times, Values]:
        """The rows of a series at the moment of its summary, sorted by time, one per timestamp. Any thread.

        What was settled before is kept, so only rows that arrived since are walked and merged.
        """
        rows = int(summary[kernels.COUNT])
        known = self._settled.get(local, _NOTHING)
        newest = known.rows <= rows
        if known.rows == rows:
            return known.times, known.values
        if not newest:
            known = _NOTHING  # another reader looked later than this one
        offsets = np.array([0, rows - known.rows])
        times, values = self._walk(summary[kernels.LAST_ROW : kernels.LAST_ROW + 1], offsets)
        times, values = join([known.times, times], [known.values, values])
        if newest:
            self._settled[local] = _Settled(rows, times, values)
        return times, values

    def columns(self, rows: int) -> "Arrived":
        """The first rows, in order of arrival. Any thread, for rows that a summary leads to."""
        return Arrived(self._series[:rows], self._times[:rows], self._values[:rows])

    def gathered(self, parts: Parts) -> tuple[Times, Values, npt.NDArray[np.int64]]:
        """The rows of series, at least one, as `settled`, one behind the other: times, values, and where each begins
        and the last one ends.

        Of many series nothing is kept: it is faster to settle them again than to find them one by one.
        """
        if len(parts.places) <= _FEW_SERIES:
            return self._gathered_one_by_one(parts)
        offsets = np.zeros(len(parts.places) + 1, np.int64)
        np.cumsum(parts.summaries[:, kernels.COUNT], out=offsets[1:])
        times, values = self._walk(np.ascontiguousarray(parts.summaries[:, kernels.LAST_ROW]), offsets)
        if not parts.summaries[:, kernels.RISING].all():
            kernels.settle(times, values, offsets, np.empty_like(times), np.empty_like(values))
        return times, values, offsets

    def _gathered_one_by_one(self, parts: Parts) -> tuple[Times, Values, npt.NDArray[np.int64]]:
        pieces = [self.settled(local, row) for local, row in zip(parts.locals.tolist(), parts.summaries, strict=True)]
        offsets = np.zeros(len(pieces) + 1, np.int64)
        np.cumsum([len(times) for times, _ in pieces], out=offsets[1:])
        times, values = np.concatenate([times for times, _ in pieces]), np.concatenate([each for _, each in pieces])
        return times, values, offsets

    def _walk(self, newest: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64]) -> tuple[Times, Values]:
        times, values = np.empty(int(offsets[-1]), np.int64), np.empty(int(offsets[-1]), np.float64)
        kernels.walk(self._previous, self._times, self._values, newest, offsets, times, values)
        return times, values

    def grouped(self) -> "Grouped":
        """All rows by series, settled, the series by hash and key. For sealing a frozen head."""
        hashes = self._hashes[: self.series]
        order = np.argsort(hashes, kind="stable")
        counts = self._state[: self.series, kernels.COUNT]
        offsets = np.zeros(self.series + 1, np.int64)
        np.cumsum(counts[order], out=offsets[1:])
        places = np.empty(self.series, np.int64)
        places[order] = offsets[:-1]
        times = np.empty(self.rows, np.int64)
        values = np.empty(self.rows, np.float64)
        kernels.scatter(
            self._series[: self.rows], self._times[: self.rows], self._values[: self.rows], places, times, values
        )
        kernels.settle(times, values, offsets, np.empty_like(times), np.empty_like(values))
        points = int(offsets[-1])
        ids = np.array(self._ids, np.int64)[order]
        return Grouped(ids, hashes[order], self._mixed[order], offsets, times[:points], values[:points])

    def _locals(
        self, ids: npt.NDArray[np.int64], hashes: npt.NDArray[np.uint64]
    ) -> npt.NDArray[np.int32]:
        """The local numbers of catalog ids; new ones are given where needed."""
        highest = int(ids.max(initial=-1))
        if highest >= len(self._local_of):
            grown = np.full(max(highest + 1, 2 * len(self._local_of)), -1, np.int32)
            grown[: len(self._local_of)] = self._local_of
            self._local_of = grown
        found = self._local_of[ids]
        unknown = np.flatnonzero(found < 0)
        if len(unknown):
            self._admit(ids[unknown], hashes[unknown])
            found = self._local_of[ids]
        return found

    def _admit(self, ids: npt.NDArray[np.int64], hashes: npt.NDArray[np.uint64]) -> None:
        begin, end = self.series, self.series + len(ids)
        while end > len(self._state):
            self._hashes = np.concatenate([self._hashes, np.empty_like(self._hashes)])
            self._mixed = np.concatenate([self._mixed, np.empty_like(self._mixed)])
            self._state = np.concatenate([self._state, np.zeros_like(self._state)])
        self._hashes[begin:end] = hashes
        mixed = np.empty(len(ids), np.uint64)
        kernels.mix_hashes(np.ascontiguousarray(hashes), mixed)
        self._mixed[begin:end] = mixed
        self._local_of[ids] = np.arange(begin, end, dtype=np.int32)
        self._ids += ids.tolist()


class Grouped(NamedTuple):
    """A head's points in the order of a segment. Series s has the points offsets[s] to offsets[s + 1].

    ids: catalog ids; hashes: ascending (equal ones are not in order of key yet); mixed: kernels' mixed hashes.
    """

    ids: npt.NDArray[np.int64]
    hashes: npt.NDArray[np.uint64]
    mixed: npt.NDArray[np.uint64]
    offsets: npt.NDArray[np.int64]
    times: Times
    values: Values


def join(times: list[Times], values: list[Values]) -> tuple[Times, Values]:
    """Rows of one series from several places, settled: sorted, and the larger value where times are equal."""
    all_times, all_values = np.concatenate(times), np.concatenate(values)
    offsets = np.array([0, len(all_times)], np.int64)
    kernels.settle(all_times, all_values, offsets, np.empty_like(all_times), np.empty_like(all_values))
    return all_times[: offsets[1]], all_values[: offsets[1]]
