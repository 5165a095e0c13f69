"""The merge of the nodes' pages into one order, against a list; nodes are functions here."""

import bisect
import random
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from msgspec import UNSET

from common import config
from common.errors import ProtocolError
from common.match import Match, Pattern
from common.points import PointBatch
from common.protocol import Cost, SamplesReply, SamplesRequest
from common.series import partition_of, series_key
from tests.workers.query.fake import make_ring
from workers.query import coverage
from workers.query.coverage import Coverage, Incomplete
from workers.query.gather import Ask, Gather, Trouble
from workers.query.plan import Partitions, Plan, from_bitmap
from workers.query.sampling import BEGINNING, Chunk, Place, Samples
from workers.query.selection import Selection

PARTITIONS = 16
PLAN = Plan.of(make_ring([5710, 5720, 5730], PARTITIONS))
EVERYTHING = Selection(Match(), None, None)
Row = tuple[bytes, int, float]
Split = Callable[[Partitions], list[Partitions]]


def by_node(asked: Partitions) -> list[Partitions]:
    """One reply from each first owner."""
    return [part for owned in PLAN.ranks[0].values() if (part := owned & asked)]


class Nodes:
    """Answers questions from a list of points. split: how the partitions asked are shared among replies.

    lost: partitions that nobody answers for. held: the most rows that were sent and not yet given on.
    """

    def __init__(
        self, rows: list[Row], split: Split = by_node, lost: Callable[[int], Partitions] = lambda asked: 0
    ) -> None:
        self.rows = sorted(rows)
        self._partition = {key: partition_of(key, PARTITIONS) for key, _, _ in rows}
        self.asked: list[SamplesRequest] = []
        self._split = split
        self._lost = lost

    def __call__(self, gather: Gather[SamplesReply], allow_partial: bool) -> Coverage:
        gather.targets(PLAN)
        lost = self._lost(len(self.asked))
        for part in self._split(gather.wanted & ~lost):
            request = gather.body(PLAN, Ask("ing1", part, gather, 1.0, 0.0))
            self.asked.append(request)
            gather.replies.append(self._answer(request))
            gather.covered |= part
            gather.nodes.append("ing1")
        for node in PLAN.ranks[0] if lost else ():
            gather.trouble[node] = Trouble("is away", 0.0)
        return coverage.judge(gather, "", allow_partial, config.Query())

    def _answer(self, request: SamplesRequest) -> SamplesReply:
        mine = from_bitmap(request.partitions)
        behind = request.after_key, request.after_ns
        later = self.rows[bisect.bisect_right(self.rows, behind, key=lambda row: row[:2]) :]
        found = [row for row in later if mine >> self._partition[row[0]] & 1]
        page = found[: request.limit]
        return SamplesReply(request.partitions, 0, batch_of(page), len(found) > len(page), Cost())


def batch_of(rows: list[Row]) -> bytes:
    keys = list(dict.fromkeys(row[0] for row in rows))
    index = np.array([keys.index(row[0]) for row in rows], np.uint32)
    times, values = np.array([row[1] for row in rows], np.int64), np.array([row[2] for row in rows], np.float64)
    return PointBatch(keys, index, times, values).encode()


def make_rows(seed: int) -> list[Row]:
    rng = random.Random(seed)
    keys = [series_key(f"d{rng.randrange(100)}", rng.choice("mn"), {}) for _ in range(rng.randint(0, 12))]
    return sorted({(key, at, float(at)) for key in keys for at in rng.sample(range(60), rng.randint(1, 40))})


def rows_of(chunks: Iterator[Chunk]) -> list[Row]:
    return [
        (chunk.key, at, value)
        for chunk in chunks
        for at, value in zip(chunk.times.tolist(), chunk.values.tolist(), strict=True)
    ]


def samples(nodes: Nodes, after: Place = BEGINNING, page_rows: int = 7, allow_partial: bool = False) -> Samples:
    return Samples(nodes, EVERYTHING, after, 10.0, allow_partial, page_rows)


@pytest.mark.parametrize("seed", range(15))
def test_all_points_come_once_in_order_of_key_and_time_whoever_answers_for_which_partitions(seed: int) -> None:
    rng, rows = random.Random(seed), make_rows(seed)

    def any_way(asked: Partitions) -> list[Partitions]:  # another ring with each page
        members = [1 << at for at in range(PARTITIONS) if asked >> at & 1]
        groups: dict[int, Partitions] = {}
        for member in members:
            chosen = rng.randrange(3)
            groups[chosen] = groups.get(chosen, 0) | member
        return list(groups.values())

    for split in (by_node, any_way):
        for page_rows in (1, 7, 1000):
            found = samples(Nodes(rows, split), page_rows=page_rows)
            assert rows_of(found.chunks()) == rows
            assert (found.more, found.coverage.complete) == (False, True)
            assert found.coverage.partitions_answered == found.coverage.partitions_asked == PARTITIONS


@pytest.mark.parametrize("seed", range(15))
def test_pages_by_cursor_are_one_stream_cut_into_pieces(seed: int) -> None:
    rows = make_rows(seed)
    for limit in (5, 1000):
        got: list[Row] = []
        after, more = BEGINNING, True
        while more:
            found = samples(Nodes(rows), after)
            page = rows_of(found.chunks(limit))
            after, more = found.place, found.more
            assert len(page) == limit or not more
            got += page
        assert got == rows


def test_only_the_page_that_is_used_up_is_asked_for_again() -> None:
    keys = sorted(series_key(f"d{at}", "m", {}) for at in range(30))
    rows = [(key, at, 1.0) for key in keys for at in range(20)]
    nodes = Nodes(rows)
    found = samples(nodes, page_rows=50)
    assert len(rows_of(found.chunks())) == 600
    assert len(nodes.asked) <= 600 // 50 + 3
    assert found.rows_read == 600


def test_a_million_points_are_never_held_but_for_a_page_of_each_node() -> None:
    keys = sorted(series_key(f"d{at}", "m", {}) for at in range(3))
    pages_each = 40
    held = [0]

    def endless(gather: Gather[SamplesReply], allow_partial: bool) -> Coverage:
        gather.targets(PLAN)
        for part in by_node(gather.wanted):
            request = gather.body(PLAN, Ask("ing1", part, gather, 1.0, 0.0))
            mine = [key for key in keys if part >> partition_of(key, PARTITIONS) & 1 and key >= request.after_key]
            begin = request.after_ns + 1 if mine and mine[0] == request.after_key else 0
            mine = mine[1:] if begin >= pages_each * request.limit else mine
            begin = begin if begin < pages_each * request.limit else 0
            rows = request.limit if mine else 0
            held[0] += rows
            times = np.arange(begin, begin + rows, dtype=np.int64)
            batch = PointBatch(mine[:1], np.zeros(rows, np.uint32), times, np.ones(rows)).encode()
            more = len(mine) > 1 or (bool(mine) and begin + rows < pages_each * request.limit)
            gather.replies.append(SamplesReply(request.partitions, 0, batch, more, Cost()))
            gather.covered |= part
        return coverage.judge(gather, "", allow_partial, config.Query())

    found, total, most = Samples(endless, EVERYTHING, BEGINNING, 10.0), 0, 0
    for chunk in found.chunks():
        most = max(most, held[0])
        held[0] -= len(chunk.times)
        total += len(chunk.times)
    assert total == 3 * pages_each * 32_768 > 3_900_000
    assert most <= 3 * 32_768


def test_a_page_that_nobody_answers_is_an_error_even_in_the_middle() -> None:
    rows = [(series_key("d", "m", {}), at, 1.0) for at in range(20)]
    found = samples(Nodes(rows, lost=lambda asked: (1 << PARTITIONS) - 1 if asked >= 4 else 0))
    with pytest.raises(Incomplete, match="is away"):
        rows_of(found.chunks())


def test_with_allow_partial_what_was_lost_is_told_at_the_end() -> None:
    rows = [(series_key(f"d{at}", "m", {}), when, 1.0) for at in range(9) for when in range(20)]
    first, second = 1 << partition_of(rows[0][0], PARTITIONS), 0b1
    nodes = Nodes(rows, lost=lambda asked: first if not asked else second)
    found = samples(nodes, allow_partial=True)
    got = rows_of(found.chunks())
    assert got and not any(row[0] == rows[0][0] for row in got)
    assert not found.coverage.complete
    assert found.coverage.partitions_answered < found.coverage.partitions_asked == PARTITIONS
    assert found.coverage.missing


def test_the_first_page_of_one_devices_metric_teaches_where_its_series_lie() -> None:
    key = series_key("d", "m", {})
    pair, lies_in = ("d", "m"), partition_of(key, PARTITIONS)
    plan = Plan.of(PLAN.ring)
    nodes = list(plan.ranks[0])
    asked: list[Partitions] = []

    def answered(gather: Gather[SamplesReply], allow_partial: bool) -> Coverage:
        plan.known.look(nodes, 1.0)
        for node, part in gather.targets(plan).items():
            page = [(key, 1, 1.0)] if part >> lies_in & 1 else []
            places = [lies_in] if page else []
            gather.senders.append(node)
            gather.replies.append(SamplesReply(b"", 0, batch_of(page), False, Cost(), 7, places))
            plan.known.heard(node, 7, 1.0)
            gather.covered |= part
        asked.append(gather.wanted)
        return coverage.judge(gather, "", allow_partial, config.Query())

    for match in (Match(*[[Pattern("is", each)] for each in pair]), Match([Pattern("is", "d")])):
        wanted = Selection(match, None, None)
        for _ in range(2):
            assert rows_of(Samples(answered, wanted, BEGINNING, 10.0).chunks()) == [(key, 1, 1.0)]
    assert asked == [plan.everything, 1 << lies_in, plan.everything, plan.everything]


def test_marks_that_could_not_be_read_for_any_page_are_told_at_the_end() -> None:
    nodes = Nodes(make_rows(1))
    unread = iter([0.0, 2.5, 1.0])

    def answered(gather: Gather[SamplesReply], allow_partial: bool) -> Coverage:
        gather.marks_s_ago = next(unread, 0.0)
        return nodes(gather, allow_partial)

    found = Samples(answered, EVERYTHING, BEGINNING, 10.0, page_rows=1)
    chunks = found.chunks(8)
    next(chunks)
    assert found.coverage.marks_s_ago is UNSET
    assert list(chunks)
    assert found.coverage.marks_s_ago == 2.5


def test_a_page_that_is_not_in_order_is_refused() -> None:
    class Liar(Nodes):
        def _answer(self, request: SamplesRequest) -> SamplesReply:
            keys = [series_key("b", "m", {}), series_key("a", "m", {})]
            batch = PointBatch(keys, np.arange(2, dtype=np.uint32), np.zeros(2, np.int64), np.zeros(2))
            return SamplesReply(request.partitions, 0, batch.encode(), False, Cost())

    with pytest.raises(ProtocolError, match="not in order of series keys"):
        rows_of(samples(Liar([])).chunks())
