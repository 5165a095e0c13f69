"""What it costs real stores to agree: what is read and moved, without sockets."""

from pathlib import Path
from typing import Any

import numpy as np

from common import protocol, series
from common.points import PointBatch
from tests.workers.storage.support import EVERYWHERE, PARTITIONS, batch_of, key, open_store, rows_of
from workers.storage.converge import Ask, Converge, Fetched, Flush, Taken, Tally
from workers.storage.exchange import Exchange
from workers.storage.here import Here
from workers.storage.store import LoggedBatch, Store

S_NS = 1_000_000_000


class Costs:
    """What both sides spent: rows and blocks decoded, bytes read of blocks, questions."""

    def __init__(self) -> None:
        self.questions = self.rows = self.blocks = self.bytes = 0

    def add(self, cost: protocol.Cost) -> None:
        self.questions += 1
        self.rows += cost.rows_decoded
        self.blocks += cost.blocks_decoded
        self.bytes += cost.bytes


def converged(theirs: Store, ours: Store, fetch_bytes: int = 4 << 20) -> tuple[Tally, Costs]:
    """Have `ours` pull everything from `theirs`."""
    there, here, tally, costs = Exchange(theirs, lambda: EVERYWHERE), Here(ours, PARTITIONS), Tally(), Costs()
    answers: dict[bytes, Any] = {
        protocol.DIGESTS: there.digests, protocol.SERIES_DIGESTS: there.series_digests,
        protocol.RANGE_DIGESTS: there.range_digests, protocol.FETCH: there.fetch,
        protocol.FETCH_PARTITION: there.fetch_partition,
    }  # fmt: skip
    steps = Converge(range(PARTITIONS), PARTITIONS, 0, tally, fetch_bytes=fetch_bytes).run()
    result: Any = None
    fetched: list[protocol.FetchReply] = []
    while True:
        try:
            step = steps.send(result)
        except StopIteration:
            return tally, costs
        if isinstance(step, Flush):
            result, fetched = here.take(fetched), []
            continue
        reply = answers[step.kind](step.body)
        costs.add(reply.cost)
        if isinstance(step, Ask):
            result = reply, here.answer(step.kind, step.body)
            costs.add(result[1].cost)
        else:
            fetched.append(reply)
            result = Fetched(reply, len(reply.rows) + sum(len(each.data) for each in reply.blocks), Taken())


def put(store: Store, keys: list[bytes], points: int, without: tuple[int, int] | None = None) -> None:
    """A point a second of each series, the values random, but for one: the number of its series, and its own."""
    index = np.repeat(np.arange(len(keys), dtype=np.uint32), points)
    times = np.tile(np.arange(points) * S_NS, len(keys))
    values = np.random.default_rng(3).random(len(index))
    keep = np.ones(len(index), np.bool_)
    if without is not None:
        keep[without[0] * points + without[1]] = False
    body = PointBatch(keys, index[keep], times[keep], values[keep]).encode()
    store.append([LoggedBatch(body, 1, PointBatch.decode(body))])
    store.seal()


def test_one_series_among_ten_thousand_that_differs_costs_under_a_percent_of_what_there_is(tmp_path: Path) -> None:
    keys = [key(f"d{number}") for number in range(10_000)]
    theirs, ours = (open_store(tmp_path / name, head_rows=1_000_000) for name in ("theirs", "ours"))
    put(theirs, keys, 5)
    put(ours, keys, 5, without=(5000, 3))
    tally, costs = converged(theirs, ours)
    assert (tally.points, tally.equal) == (1, set(range(PARTITIONS)))
    assert costs.rows <= 50_000 * 2 / 100
    assert costs.bytes < theirs.status()["segment_bytes"] / 100
    assert converged(theirs, ours)[1].questions == 2
    for store in (theirs, ours):
        store.close()


def test_a_point_that_lacks_in_a_long_series_costs_a_few_blocks(tmp_path: Path) -> None:
    each = key("a")
    theirs, ours = (open_store(tmp_path / name, head_rows=1_000_000) for name in ("theirs", "ours"))
    put(theirs, [each], 1_000_000)
    put(ours, [each], 1_000_000, without=(0, 654_321))
    tally, costs = converged(theirs, ours)
    assert tally.points == 1
    assert tally.equal == set(range(PARTITIONS))
    assert series.partition_of(each, PARTITIONS) in tally.equal
    assert tally.bytes < 20 * 8192 + 1000
    assert costs.rows < 600_000  # of both: four quarters, two edges each, in four rounds
    for store in (theirs, ours):
        store.close()


def test_equal_stores_decode_nothing(tmp_path: Path) -> None:
    keys = [key(f"d{number}") for number in range(100)]
    theirs, ours = (open_store(tmp_path / name, head_rows=50_000) for name in ("theirs", "ours"))
    for store in (theirs, ours):
        put(store, keys, 1000)
    ours.compact()
    tally, costs = converged(theirs, ours)
    assert (tally.equal, costs.questions, costs.rows, costs.blocks) == (set(range(PARTITIONS)), 2, 0, 0)
    for store in (theirs, ours):
        store.close()


def test_all_partitions_come_in_replies_as_large_as_asked_for(tmp_path: Path) -> None:
    keys = [key(f"d{number}") for number in range(150)]
    theirs, ours = (open_store(tmp_path / name, head_rows=100_000) for name in ("theirs", "ours"))
    put(theirs, keys[:100], 300)
    theirs.append([batch_of([row for each in keys[50:] for row in rows_of(each, range(0, 900, 3))])])
    tally, costs = converged(theirs, ours, fetch_bytes=20_000)
    assert tally.equal == set(range(PARTITIONS))
    assert tally.bytes / costs.questions < 40_000
    assert costs.questions < 4 * tally.bytes / 20_000
    assert converged(ours, theirs)[0].points == 0
    for store in (theirs, ours):
        store.close()
