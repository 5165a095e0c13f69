"""What matches, as counts and digests by partition or by series: how owners are compared for a verified read.

Only for partitions that this node answers for, unlike what stores ask each other. Owns nothing. What is little, of few
series at hand, is looked at by the server thread; else any reader thread.
"""

import functools
import time
from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from common import protocol
from common.protocol import VerifyReply, VerifyRequest
from workers.storage.digests import Held, Look, Span, looks
from workers.storage.fold import Cost
from workers.storage.groups import FEW_BLOCKS, FEW_SERIES, SHORT_POINTS, check_series
from workers.storage.names import Check, go_on
from workers.storage.segment import EARLIEST, LATEST
from workers.storage.store import Store
from workers.storage.table import Selection
from workers.storage.work import Cancel, RefusedError, Work

_Columns = tuple[list[bytes], npt.NDArray[np.int64], npt.NDArray[np.uint64]]  # keys, counts, digests
_NO_COUNTS: Final = np.empty(0, np.int64)
_NO_DIGESTS: Final = np.empty(0, np.uint64)


def begin(store: Store, asked: VerifyRequest, covered: bytes) -> Work:
    """What answers a request, in the partitions covered. Little work is short, as of groups.begin. Errors of `verify`
    may come now or later.
    """
    grouped = store.at_hand(asked.match, covered, ())
    if grouped is None or len(grouped.ids) > FEW_SERIES:
        return Work(lambda cancel: verify(store, asked, covered, cancel))
    series = Selection(grouped.ids, grouped.hashes, store.key_of)
    question = _Question(store, asked, covered, series)
    return Work(question.answer, short=question.prepare())


def verify(store: Store, asked: VerifyRequest, covered: bytes, cancel: Cancel) -> VerifyReply:
    """Counts and digests of what matches in the partitions covered.

    Raises RefusedError at another delete number, LimitError for too many series, ProtocolError, StorageError,
    CancelledError.
    """
    return _Question(store, asked, covered, check=cancel.check).answer(cancel)


class _Question:
    """One request on its way to its reply. Errors as of `verify`."""

    def __init__(
        self, store: Store, asked: VerifyRequest, covered: bytes, series: Selection | None = None, check: Check = go_on
    ) -> None:
        """series: that match, where they are known."""
        self._began_ns = time.perf_counter_ns()
        self._view = view = store.view
        if view.deletes.number != asked.delete_number:
            text = f"asked at delete number {asked.delete_number}, this node is at {view.deletes.number}"
            raise RefusedError(protocol.ERR_DELETES, text)
        self._store = store
        self._asked = asked
        self._covered = covered
        self._series = store.select(asked.match, covered, check) if series is None else series
        check_series(len(self._series.ids), asked.limits)
        kept = store.first_kept(asked.start_ns)
        self._span = Span(EARLIEST if kept is None else kept, LATEST if asked.end_ns is None else asked.end_ns)
        self._cost = Cost()
        self._prepared: Look | None = None  # of the first table, where that was looked at beforehand

    def prepare(self) -> bool:
        """Look at what takes no decoding; whether so little is left that it may be done here and now."""
        if not len(self._series.ids):
            return True
        with self._store.watching_damage():
            self._prepared = look = next(looks(self._view, self._series, self._span), None)
        if look is None or len(look.series.ids) < len(self._series.ids):
            self._prepared = None
            return False
        return look.blocks <= FEW_BLOCKS and look.rows_to_decode <= SHORT_POINTS

    def answer(self, cancel: Cancel) -> VerifyReply:
        """Do the rest."""
        with self._store.watching_damage():
            found = self._by_series(cancel) if self._asked.by_series else self._by_partition(cancel)
        keys, counts, digests = found
        return VerifyReply(
            self._covered, self._asked.delete_number, self._store.cutoff, keys, counts.astype("<i8").tobytes(),
            digests.astype("<u8").tobytes(),
            protocol.Cost(*self._cost, spent_ns=time.perf_counter_ns() - self._began_ns),
        )  # fmt: skip

    def _held(self, cancel: Cancel) -> Iterator[tuple[Selection, Held]]:
        """What each series holds, in parts."""
        pool = self._store.pool.watching(cancel)
        prepared, self._prepared = self._prepared, None
        if not len(self._series.ids):
            return
        for look in looks(self._view, self._series, self._span) if prepared is None else [prepared]:
            pool.check()
            self._cost = self._cost.plus(look.finish(pool))
            yield look.series, look.held

    def _by_series(self, cancel: Cancel) -> _Columns:
        keys, counts, digests = list[bytes](), [_NO_COUNTS], [_NO_DIGESTS]
        for part, found in self._held(cancel):
            filled = np.flatnonzero(found.counts)
            keys += [self._store.key_of(each) for each in part.ids[filled].tolist()]
            counts.append(found.counts[filled])
            digests.append(found.digests[filled])
        return keys, np.concatenate(counts), np.concatenate(digests)

    def _by_partition(self, cancel: Cancel) -> _Columns:
        partitions = _numbers(self._covered)
        total = Held.nothing(len(partitions))
        for part, found in self._held(cancel):
            places = partitions.searchsorted(self._store.partitions_of_hashes(part.hashes))
            total.add(places, found.counts, found.digests)
        return [], total.counts, total.digests


@functools.lru_cache(maxsize=8)  # it is asked for all that it owns again and again
def _numbers(bitmap: bytes) -> npt.NDArray[np.int64]:
    found = np.flatnonzero(np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little"))
    found.setflags(write=False)
    return found
