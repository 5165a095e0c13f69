"""The points of a selection, from all nodes, in order of series key and then time, a page of each node at a time.

Holds one page for each set of partitions that some node answers for, so memory does not grow with the answer. A page
that is used up is asked for again behind its last point, of whoever owns those partitions by then: a change of the
ring, or a node that is lost while another owner is there, goes unnoticed. Belongs to the thread that iterates.
"""

import dataclasses
import heapq
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from msgspec import UNSET

from common import protocol
from common.errors import ProtocolError
from common.points import PointBatch
from common.protocol import Cost, SamplesReply, SamplesRequest
from workers.query.coverage import Coverage, Missing
from workers.query.gather import Gather
from workers.query.joining import Rows
from workers.query.plan import Partitions, Plan, exact_pair, from_bitmap
from workers.query.refusal import Refusal
from workers.query.selection import Selection
from workers.query.verified import Verified

PAGE_ROWS: Final = 32_768  # 640 KB; the way to the node and back is a small part of what decoding so many takes

_NONE: Final = (np.empty(0, np.int64), np.empty(0, np.float64))

Times = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]


class Place(NamedTuple):
    """Behind which points are asked for: a series key (b"" begins) and a time, ns."""

    key: bytes
    time_ns: int


BEGINNING: Final = Place(b"", 0)


class Chunk(NamedTuple):
    """Points of one series, in order of time; a series may come in several, one behind the other."""

    key: bytes
    times: Times
    values: Values


class Samples:
    """Iterate `chunks` once. place: behind the last point given; more: whether further ones follow, known at the end.

    rows_read: points that nodes have sent; pages: asked for.
    """

    def __init__(
        self,
        gather: Callable[[Gather[SamplesReply], bool], Coverage],
        selection: Selection,
        after: Place,
        timeout_s: float,
        allow_partial: bool = False,
        page_rows: int = PAGE_ROWS,
        verified: Verified | None = None,
    ) -> None:
        """gather: has a question answered, or raises a Refusal; timeout_s: of each page. verified: what a comparison
        of all owners has told: its rows take the place of what nodes say of their series.
        """
        self.place = after
        self.more = False
        self.rows_read = 0
        self.pages = 0
        self._gather = gather
        self._selection = selection
        self._timeout_s = timeout_s
        self._allow_partial = allow_partial
        self._page_rows = page_rows
        self._verified = verified
        self._joined: Mapping[bytes, Rows] = {} if verified is None else verified.rows
        self._heap: list[tuple[bytes, int, _Page]] = []
        self._coverage: Coverage | None = None
        self._lost: Partitions = 0

    def chunks(self, limit: int | None = None) -> Iterator[Chunk]:
        """At most `limit` points (None: all). Raises a Refusal for a page that nobody answers."""
        left = limit
        self._ask(None, self.place, left)
        if (page := _Page.of(_behind(self._joined, self.place))).key is not None:
            self._push(page)
        while self._heap and left != 0:
            _, _, page = heapq.heappop(self._heap)
            replaced = page.partitions != 0 and page.key in self._joined
            chunk = page.take(None if replaced else left)
            place = Place(chunk.key, int(chunk.times[-1]))
            if not replaced:
                self.place = place
                left = None if left is None else left - len(chunk.times)
                yield chunk
            if page.key is not None:
                self._push(page)
            elif page.more and left != 0:
                self._ask(page.partitions, place, left)
            else:
                self.more = self.more or page.more
        self.more = self.more or bool(self._heap)

    @property
    def coverage(self) -> Coverage:
        """What the answer speaks of, so far."""
        assert self._coverage is not None, "BUG: coverage before the first page"
        return self._coverage.after(None if self._verified is None else self._verified.compared)

    def _ask(self, partitions: Partitions | None, after: Place, left: int | None) -> None:
        """Fetch the next page of some partitions, None for all that may hold a match."""
        wanted, rows = self._selection, self._page_rows if left is None else min(left, self._page_rows)

        def request(bitmap: bytes) -> SamplesRequest:
            return SamplesRequest(bitmap, wanted.match, wanted.start_ns, wanted.end_ns, *after, rows)

        gather = Gather(
            protocol.SAMPLES,
            SamplesReply,
            lambda plan: self._wanted(plan) if partitions is None else partitions,
            request,
            self._timeout_s,
        )
        self._note(gather, self._gather(gather, self._allow_partial))
        if (pair := exact_pair(wanted.match)) is not None:
            gather.learn(pair)
        if self._verified is not None and not self._verified.holds_by(gather.plan):
            self._verified = dataclasses.replace(self._verified, reason="the ring changed after owners were compared")
        if self._joined and any(reply.delete_number != self._joined_at for reply in gather.replies):
            raise Refusal(503, "incomplete", "points were deleted after owners were compared: ask again")
        for reply in gather.replies:
            page = _Page(reply)
            self.pages += 1
            self.rows_read += len(page)
            if page.key is not None:
                self._push(page)

    def _wanted(self, plan: Plan) -> Partitions:
        match = self._selection.match
        return plan.wanted_by(match) if self._verified is None else self._verified.wanted(plan, match)

    @property
    def _joined_at(self) -> int:
        return 0 if self._verified is None else self._verified.delete_number

    def _push(self, page: "_Page") -> None:
        assert page.key is not None, "BUG: a page that is used up"
        heapq.heappush(self._heap, (page.key, page.partitions, page))

    def _note(self, gather: Gather[SamplesReply], found: Coverage) -> None:
        """Let one more page's coverage count: what was lost once is lacking in the whole."""
        self._lost |= gather.wanted & ~gather.covered
        before = self._coverage
        if before is None:
            self._coverage = found
            return
        missing = {one.node: one for one in before.missing}
        for one in found.missing:
            lacking = one.partitions + (missing[one.node].partitions if one.node in missing else 0)
            missing[one.node] = Missing(one.node, lacking, one.reason)
        self._coverage = Coverage(
            before.partitions_asked,
            before.partitions_asked - self._lost.bit_count(),
            not self._lost,
            found.epoch,
            min(before.delete_number, found.delete_number) if gather.replies else before.delete_number,
            sorted({*before.nodes, *found.nodes}),
            [missing[node] for node in sorted(missing)],
            marks_s_ago=max(before.marks_s_ago or 0.0, found.marks_s_ago or 0.0) or UNSET,
        )


def _behind(series: Mapping[bytes, Rows], place: Place) -> PointBatch:
    """The points of some series that come behind a place."""
    kept: dict[bytes, Rows] = {}
    for key in sorted(series):
        times, values = series[key]
        begin = int(times.searchsorted(place.time_ns, "right")) if key == place.key else 0
        if key >= place.key and begin < len(times):
            kept[key] = times[begin:], values[begin:]
    lengths = [len(times) for times, _ in kept.values()]
    times, values = (np.concatenate([_NONE[at], *(rows[at] for rows in kept.values())]) for at in (0, 1))
    return PointBatch(list(kept), np.repeat(np.arange(len(kept), dtype=np.uint32), lengths), times, values)


class _Page:
    """What one node has sent, series by series. key: of the next points, None when it is used up."""

    def __init__(self, reply: SamplesReply) -> None:
        """Raises ProtocolError for a page that is not in order."""
        self.partitions = from_bitmap(reply.partitions)
        self.more = reply.more
        self._begin(PointBatch.decode(reply.batch))
        if reply.more and not len(self):
            raise ProtocolError("a page of samples that says more, and has none")

    @classmethod
    def of(cls, batch: PointBatch) -> "_Page":
        """A last page of no node's."""
        return cls(SamplesReply(b"", 0, batch.encode(), False, Cost()))

    def _begin(self, batch: PointBatch) -> None:
        self._batch = batch
        self._ends = batch.index.searchsorted(np.arange(len(batch.keys), dtype=np.uint32), "right").tolist()
        self._series = self._row = 0
        self.key: bytes | None = batch.keys[0] if batch.keys else None
        if list(batch.keys) != sorted(batch.keys) or (batch.index[1:] < batch.index[:-1]).any():
            raise ProtocolError("a page of samples that is not in order of series keys")

    def __len__(self) -> int:
        return len(self._batch)

    def take(self, most: int | None) -> Chunk:
        """The points of the next series, at most so many."""
        begin, end = self._row, self._ends[self._series]
        stop = end if most is None else min(end, begin + most)
        batch = self._batch
        chunk = Chunk(batch.keys[self._series], batch.times[begin:stop], batch.values[begin:stop])
        self._row = stop
        if stop == end:
            self._series += 1
            self.key = batch.keys[self._series] if self._series < len(batch.keys) else None
        return chunk
