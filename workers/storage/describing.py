"""What series hold and when they were silent: DESCRIBE and GAPS, a page of series at a time.

Owns nothing that lasts. Figures come from summaries; only the usual interval and silences take decoding, and the former
but the last samples of each series. Series are spread over the pool.

The *usual interval* of a series is the median of the times between neighbouring samples: of two in the middle the
shorter one; 0, for not known, with fewer than three samples. DESCRIBE takes the last SAMPLES samples of the range, GAPS
all of them.
"""

import bisect
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from common import figures, protocol
from common.errors import ProtocolError
from common.match import Match
from common.protocol import DescribeReply, DescribeRequest, GapsReply, GapsRequest
from workers.storage import aggregate, groups, kernels
from workers.storage.aggregate import LimitError
from workers.storage.fold import Cost
from workers.storage.readers import Readers
from workers.storage.recent import Integers
from workers.storage.sampling import Sampling
from workers.storage.segment import EARLIEST, LATEST
from workers.storage.series_rows import Batch, Newest, SeriesRows, looked_over, within
from workers.storage.store import Store
from workers.storage.table import Selection, View
from workers.storage.work import Cancel

SAMPLES: Final = 1000  # of which DESCRIBE takes the usual interval
MAX_SERIES: Final = 100_000  # of a page
_TASK_SERIES: Final = 32
_EXACT: Final = 1 << 22  # differences that are kept as they are; of more, the twelve leading binary digits
_DIGITS: Final = 12


class _Page(NamedTuple):
    """Some series in order of their keys; more: whether further ones follow."""

    keys: list[bytes]
    series: Selection
    more: bool


class Describing:
    """Answers DESCRIBE and GAPS from a store. sampling: knows the order of series. Any thread."""

    def __init__(self, store: Store, sampling: Sampling) -> None:
        self._store = store
        self._sampling = sampling

    def describe(self, request: DescribeRequest, covered: bytes, cancel: Cancel) -> DescribeReply:
        """What each series of a page holds in the range, of the partitions covered.

        Raises ProtocolError for a request that cannot be, StorageError for damage, CancelledError.
        """
        began_ns = time.perf_counter_ns()
        page = self._page(request.match, covered, request.after, request.limit, cancel)
        view, pool = self._store.view, self._store.pool.watching(cancel)
        start = self._store.first_kept(request.start_ns)
        with self._store.watching_damage():
            pool.check()
            columns, cost = _figures(view, page.series, start, request.end_ns, pool)
            columns["usual_ns"] = np.zeros(len(page.keys), np.int64)
            if request.intervals:
                columns["usual_ns"], more = _last_intervals(view, page.series, start, request.end_ns, pool)
                cost = cost.plus(more)
        return DescribeReply(
            covered, view.deletes.number, page.keys, figures.pack(columns), page.more, _spent(cost, began_ns)
        )

    def gaps(self, request: GapsRequest, covered: bytes, cancel: Cancel) -> GapsReply:
        """The silences of each series of a page, of the partitions covered.

        Raises LimitError too, and else as `describe`.
        """
        began_ns = time.perf_counter_ns()
        if not (1 <= request.factor < np.inf and request.least_ns >= 0):
            raise ProtocolError(f"factor {request.factor} and least_ns {request.least_ns}, want at least 1 and 0")
        page = self._page(request.match, covered, request.after, request.limit, cancel)
        groups.check_series(len(page.keys), request.limits)
        view, pool = self._store.view, self._store.pool.watching(cancel)
        start = self._store.first_kept(request.start_ns)
        with self._store.watching_damage():
            found, cost = _Search(view, request, EARLIEST if start is None else start).run(page.series, pool)
        return GapsReply(
            covered, view.deletes.number, page.keys, figures.pack(found), page.more, _spent(cost, began_ns)
        )

    def _page(self, match: Match, covered: bytes, after: bytes, limit: int, cancel: Cancel) -> _Page:
        if not 1 <= limit <= MAX_SERIES:
            raise ProtocolError(f"limit of {limit} series, want 1 to {MAX_SERIES}")
        ordered = self._sampling.ordered(match, covered, cancel)
        begin = bisect.bisect_right(ordered.keys, after)
        end = min(begin + limit, len(ordered.keys))
        return _Page(ordered.keys[begin:end], ordered.series.part(begin, end), end < len(ordered.keys))


def usual(differences: npt.NDArray[np.uint64], counts: Integers | None = None) -> int:
    """The median of times between samples, of two in the middle the shorter one; 0 for fewer than two.

    counts: how often each is there, where it is not once; then they must be in order.
    """
    total = len(differences) if counts is None else int(counts.sum())
    if total < 2:
        return 0
    middle = (total - 1) // 2
    if counts is None:
        return min(int(np.partition(differences, middle)[middle]), LATEST)
    return min(int(differences[int(counts.cumsum().searchsorted(middle, "right"))]), LATEST)


def _spent(cost: Cost, began_ns: int) -> protocol.Cost:
    return protocol.Cost(*cost, spent_ns=time.perf_counter_ns() - began_ns)


def _figures(
    view: View, series: Selection, start: int | None, end: int | None, pool: Readers
) -> tuple[dict[str, npt.NDArray[Any]], Cost]:
    """Count, first and last by place; 0 without points."""
    found = aggregate.by_series(view, series, start, end, pool)
    order = np.argsort(series.ids)
    places = order[series.ids[order].searchsorted(found.ids)]
    values = aggregate.values_of(found.rows)
    columns: dict[str, npt.NDArray[Any]] = {}
    for name, column in [
        ("count", values.counts), ("first_time", values.first_times), ("first", values.first),
        ("last_time", values.last_times), ("last", values.last),
    ]:  # fmt: skip
        columns[name] = np.zeros(len(series.ids), figures.DTYPES[name])
        columns[name][places] = column
    return columns, Cost(found.blocks_summarized, found.windows_read, found.blocks_decoded, found.rows_decoded)


def _last_intervals(
    view: View, series: Selection, start: int | None, end: int | None, pool: Readers
) -> tuple[Integers, Cost]:
    """The usual intervals at the end of the range, by place."""
    begin, stop = EARLIEST if start is None else start, LATEST if end is None else end
    found, cost = [], Cost()
    for part, table in view.stored.tables(series, view.deletes, begin, stop):
        rows = SeriesRows(view, part, table, begin, stop, with_values=False)
        newest = rows.newest(SAMPLES)
        tasks = [
            partial(_last_of, rows, newest, np.arange(at, min(at + _TASK_SERIES, len(part.ids))))
            for at in range(0, len(part.ids), _TASK_SERIES)
        ]
        for intervals, spent in pool.run(tasks):
            found += intervals
            cost = cost.plus(spent)
    return np.array(found, np.int64), cost


def _last_of(rows: SeriesRows, newest: Newest, places: Integers) -> tuple[list[int], Cost]:
    times, cost = rows.last(places, newest)
    return [usual(_between(each)) for each in times], cost


def _between(times: Integers) -> npt.NDArray[np.uint64]:
    """The times between neighbouring ones, also where that is more than int64 holds."""
    unsigned: npt.NDArray[np.uint64] = times.view(np.uint64)
    return unsigned[1:] - unsigned[:-1]


class _Silences(NamedTuple):
    """Of one series. starts, ends: ns, ascending; both are the same of one that goes on. usual_ns: its usual one."""

    place: int
    starts: Integers
    ends: Integers
    usual_ns: int


class _Search:
    """One question about silences. Tasks count those that they find: `_counting` guards how many."""

    def __init__(self, view: View, request: GapsRequest, start: int) -> None:
        self._view = view
        self._request = request
        self._start = start
        self._silences = 0
        self._counting = threading.Lock()

    def run(self, series: Selection, pool: Readers) -> tuple[dict[str, npt.NDArray[Any]], Cost]:
        """The columns of the answer, in order of series and time."""
        found: list[_Silences] = []
        cost = Cost()
        for begin, rows in looked_over(self._counted(series), lambda: self._tables(series)):
            tasks = rows.tasks()
            for places, silences in zip(
                tasks, pool.run([partial(self._task, rows, each, pool.check) for each in tasks]), strict=True
            ):
                found += [each._replace(place=each.place + begin) for each in silences]
                cost = cost.plus(rows.cost(places))
        return _columns(found), cost

    def _tables(self, series: Selection) -> Iterator[tuple[int, SeriesRows]]:
        """The rows of each table's series, and the place of the first of these."""
        begin, end = 0, self._request.end_ns
        for part, table in self._view.stored.tables(series, self._view.deletes, self._start, end):
            yield begin, SeriesRows(self._view, part, table, self._start, end, False)
            begin += len(part.ids)

    def _counted(self, series: Selection) -> Iterator[tuple[int, SeriesRows]]:
        """The same. Raises LimitError."""
        points = 0
        for begin, rows in self._tables(series):
            points += int(rows.counts.sum())
            groups.check_points(points, self._request.limits)
            yield begin, rows

    def _count(self, more: int) -> None:
        """Note that so many were found, before they are many. Raises LimitError."""
        with self._counting:
            self._silences += more
            found = self._silences
        limit = self._request.limits.rows
        if found > limit:
            raise LimitError(
                f"at least {found} silences, want at most {limit} (query.max_rows): take a shorter range, "
                "fewer series or a larger factor",
                "query.max_rows", limit, found,
            )  # fmt: skip

    def _task(self, rows: SeriesRows, places: Integers, check: Callable[[], None]) -> list[_Silences]:
        found = []
        for item in rows.of(places):
            check()
            if isinstance(item, Batch):
                bounds = item.offsets.tolist()
                for at, place in enumerate(item.places.tolist()):
                    found.append(self._of_series(place, item.times[bounds[at] : bounds[at + 1]]))
            else:
                found.append(self._of_pieces(item[0], rows, check))
        return [each for each in found if len(each.starts)]

    def _of_series(self, place: int, times: Integers) -> _Silences:
        times = times[within(times, self._start, self._request.end_ns)]
        return self._silences_of(place, times, usual(_between(times)))

    def _silences_of(self, place: int, times: Integers, usual_ns: int) -> _Silences:
        """The silences among the times given, and after the last of them."""
        longest = self._longest(usual_ns)
        if not len(times) or longest == 0:
            return _Silences(place, kernels.NO_TIMES, kernels.NO_TIMES, usual_ns)
        ends = np.append(times[1:], self._request.end_ns)
        silent = (ends.view(np.uint64) - times.view(np.uint64)) > np.uint64(longest)
        self._count(int(silent.sum()))
        ends[-1] = times[-1]
        return _Silences(place, times[silent], ends[silent], usual_ns)

    def _longest(self, usual_ns: int) -> int:
        """How long a time may be that is no silence yet; 0 where nobody can tell."""
        return min(max(int(self._request.factor * usual_ns), self._request.least_ns), LATEST)

    def _of_pieces(self, place: int, rows: SeriesRows, check: Callable[[], None]) -> _Silences:
        """Of a long series: once through for the usual interval, once more for what is longer."""
        spectrum = _Spectrum()
        for times in self._times(rows, place, check):
            spectrum.add(_between(times))
        usual_ns = spectrum.usual()
        starts, ends, last = [kernels.NO_TIMES], [kernels.NO_TIMES], kernels.NO_TIMES
        if (longest := self._longest(usual_ns)) > 0:
            for times in self._times(rows, place, check):
                silent = np.flatnonzero(_between(times) > np.uint64(longest))
                self._count(len(silent))
                starts.append(times[silent])
                ends.append(times[silent + 1])
                last = times[-1:]
        still = self._silences_of(place, last, usual_ns)
        return _Silences(
            place, np.concatenate([*starts, still.starts]), np.concatenate([*ends, still.ends]), usual_ns
        )

    def _times(self, rows: SeriesRows, place: int, check: Callable[[], None]) -> Iterator[Integers]:
        """The times of a long series in the range, piece by piece, each from the last time of the one before on."""
        last = kernels.NO_TIMES
        for times, _ in rows.pieces(place):
            check()
            times = times[within(times, self._start, self._request.end_ns)]
            if len(times):
                yield np.append(last, times)
                last = times[-1:]


class _Spectrum:
    """How often which times lie between samples: exact up to _EXACT of them, then their leading digits only."""

    def __init__(self) -> None:
        self._pending: list[npt.NDArray[np.uint64]] = []
        self._held = 0
        self._values = np.empty(0, np.uint64)
        self._counts = np.empty(0, np.int64)

    def add(self, differences: npt.NDArray[np.uint64]) -> None:
        """Count these."""
        self._pending.append(differences)
        self._held += len(differences)
        if self._held > _EXACT:
            self._merge()

    def usual(self) -> int:
        """The median."""
        if not len(self._values):
            return usual(np.concatenate([np.empty(0, np.uint64), *self._pending]))
        self._merge()
        return usual(self._values, self._counts)

    def _merge(self) -> None:
        pending = np.concatenate([np.empty(0, np.uint64), *self._pending])
        values, counts = np.unique(_leading(pending), return_counts=True)
        self._pending, self._held = [], 0
        values = np.append(self._values, values)
        counts = np.append(self._counts, counts)
        self._values, which = np.unique(values, return_inverse=True)
        self._counts = np.zeros(len(self._values), np.int64)
        np.add.at(self._counts, which, counts)


def _leading(numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Numbers cut to their leading binary digits."""
    _, digits = np.frexp(numbers.astype(np.float64))
    spare = np.maximum(digits - _DIGITS, 0).astype(np.uint64)
    cut: npt.NDArray[np.uint64] = (numbers >> spare) << spare
    return cut


def _columns(found: list[_Silences]) -> dict[str, npt.NDArray[Any]]:
    counts = [len(each.starts) for each in found]
    return {
        "group": np.repeat(np.array([each.place for each in found], np.uint32), counts),
        "start": np.concatenate([kernels.NO_TIMES, *(each.starts for each in found)]),
        "end": np.concatenate([kernels.NO_TIMES, *(each.ends for each in found)]),
        "usual_ns": np.repeat(np.array([each.usual_ns for each in found], np.int64), counts),
    }
