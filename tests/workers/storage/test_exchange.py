"""What stores tell and hand each other: digests beside the oracle's, and points that make another store the same."""

import random
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common import clock, config, protocol, series
from common.errors import ProtocolError
from common.protocol import (
    DigestsRequest,
    FetchPartitionRequest,
    FetchReply,
    FetchRequest,
    Range,
    RangeDigestsRequest,
    SeriesDigestsRequest,
)
from common.selector import Selector
from tests import naive
from tests.disks import QuickDisk
from tests.workers.storage.answers import contents, expected
from tests.workers.storage.support import EVERYWHERE, PARTITIONS, Row, batch_of, key, open_store, rows_of
from workers.storage.exchange import Exchange
from workers.storage.segment import EARLIEST, LATEST
from workers.storage.store import DeleteRecord, Store
from workers.storage.work import Cancel, CancelledError, RefusedError

DAY_NS = 86_400 * 10**9
NOW_NS = 20_000 * DAY_NS
DEVICES = ["a", "b:/", "c", "d"]
SERIES = [key("a"), key("a", room="1"), key("a", room="2"), key("b:/"), key("c", x=""), key("d")]
VALUES = [-0.0, 0.0, 1.0, -1.0, 5e-324, 1e300, 21.5]


class Pair:
    """A store and the oracle of what it holds, filled by chance."""

    def __init__(self, directory: Path, chance: random.Random, days: int = 0, **settings: float) -> None:
        self.directory, self.days, self.settings = directory, days, settings
        self.chance = chance
        self.oracle = naive.PointSet()
        if days:
            self.oracle.retain(NOW_NS - days * DAY_NS)
        self.number = 0
        self.open()

    def open(self) -> None:
        self.store = open_store(
            self.directory, QuickDisk(), head_rows=1000, retention_days=self.days, compaction_share=0.001,
            **self.settings,
        )  # fmt: skip

    @property
    def exchange(self) -> Exchange:
        return Exchange(self.store, lambda: EVERYWHERE)

    def live(self, acts: int) -> None:
        """Write, seal, delete, compact, open again."""
        for _ in range(acts):
            act = self.chance.choice(["write", "write", "rise", "rise", "seal", "seal", "delete", "compact", "open"])
            getattr(self, f"_{act}")()

    def append(self, rows: Sequence[Row]) -> None:
        self.store.append([batch_of(rows, self.number)])
        for each in rows:
            self.oracle.add(*each, self.number)

    def delete(self, number: int, selector: Selector, start: int, end: int) -> None:
        self.number = number
        self.store.delete(DeleteRecord(number, selector, start, end))
        self.oracle.delete(number, lambda each: selector.matches(series.parse_key(each)), start, end)

    def _time(self) -> int:
        return NOW_NS - self.chance.choice([0, 0, 1, 2, 5]) * DAY_NS + self.chance.randrange(3000)

    def _edge(self) -> int:
        return self.chance.choice([EARLIEST, LATEST]) if self.chance.random() < 0.02 else self._time()

    def _write(self) -> None:
        some = self.chance.sample(SERIES, 3)
        self.append([(self.chance.choice(some), self._edge(), self.chance.choice(VALUES)) for _ in range(60)])

    def _rise(self) -> None:
        each, begin = self.chance.choice(SERIES), self._time()
        self.append(rows_of(each, range(begin, begin + self.chance.randint(1, 900)), self.chance.choice(VALUES)))

    def _seal(self) -> None:
        self.store.seal()

    def _delete(self) -> None:
        begin = self._time()
        end = begin + self.chance.choice([10, 2000, DAY_NS])
        self.delete(self.number + 1, Selector(self.chance.choice(DEVICES)), begin, end)

    def _compact(self) -> None:
        self.store.seal()
        self.store.compact()

    def _open(self) -> None:
        self.store.close()
        self.open()


@pytest.fixture(autouse=True)
def fixed_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "wall_ns", lambda: NOW_NS)


@pytest.fixture
def pairs(tmp_path: Path) -> Iterator[Any]:
    made: list[Pair] = []

    def make(seed: int, days: int = 0, **settings: float) -> Pair:
        made.append(Pair(tmp_path / f"s{len(made)}", random.Random(seed), days, **settings))
        return made[-1]

    yield make
    for each in made:
        each.store.close()


def held(pair: Pair, each: bytes, start: int | None, end: int | None) -> tuple[int, int]:
    """Count and digest of a series, by the oracle."""
    rows = pair.oracle.rows(each, start, end)
    return len(rows), naive.digest(series.series_hash(each), rows)


def by_partition(pair: Pair, start: int | None, end: int | None) -> list[tuple[int, int]]:
    found = [(0, 0)] * PARTITIONS
    for each in SERIES:
        at, (count, digest) = series.partition_of(each, PARTITIONS), held(pair, each, start, end)
        found[at] = found[at][0] + count, (found[at][1] + digest) % 2**64
    return found


def told(reply: Any) -> list[tuple[int, int]]:
    counts, digests = np.frombuffer(reply.counts, "<i8"), np.frombuffer(reply.digests, "<u8")
    return list(zip(counts.tolist(), digests.tolist(), strict=True))


def whole_partitions(pair: Pair, max_bytes: int, start: int | None = None, end: int | None = None) -> list[FetchReply]:
    """Everything, fetched page by page."""
    replies = []
    for partition in range(PARTITIONS):
        place, from_ns = b"", None
        while True:
            body = FetchPartitionRequest(pair.number, partition, max_bytes, place, from_ns, start, end)
            replies.append(pair.exchange.fetch_partition(body))
            if not replies[-1].more:
                break
            assert (place, from_ns) != (replies[-1].next_key, replies[-1].next_ns)
            place, from_ns = replies[-1].next_key, replies[-1].next_ns
    return replies


def ranges_of(pair: Pair, ranges: Sequence[Range], max_bytes: int) -> list[FetchReply]:
    replies, item, from_ns = [], 0, None
    while True:
        replies.append(pair.exchange.fetch(FetchRequest(pair.number, list(ranges), max_bytes, item, from_ns)))
        if not replies[-1].more:
            return replies
        item, from_ns = replies[-1].next_item, replies[-1].next_ns


def spans(chance: random.Random) -> list[tuple[int | None, int | None]]:
    times = [NOW_NS - day * DAY_NS + offset for day in (0, 1, 2, 5) for offset in (0, 500, 1500, 3000, 4000)]
    some = [sorted(chance.sample(times, 2)) for _ in range(4)]
    return [(None, None), (some[0][0], None), (None, some[1][1]), *((low, high) for low, high in some[2:])]


@pytest.mark.parametrize("seed", range(8))
def test_digests_of_a_store_that_lived_are_those_of_its_points(pairs: Any, seed: int) -> None:
    pair = pairs(seed, days=4 if seed % 3 == 0 else 0)
    pair.live(14)
    for start, end in spans(pair.chance):
        reply = pair.exchange.digests(DigestsRequest(pair.number, EVERYWHERE, start, end))
        assert told(reply) == by_partition(pair, start, end), (start, end)
        ranges = [Range(each, EARLIEST if start is None else start, LATEST if end is None else end) for each in SERIES]
        found = pair.exchange.range_digests(RangeDigestsRequest(pair.number, ranges))
        assert told(found) == [held(pair, each, start, end) for each in SERIES]
        for partitions in ([each] for each in range(PARTITIONS)):
            check_series(pair, partitions, start, end)
        check_series(pair, range(1, PARTITIONS, 2), start, end)


def check_series(pair: Pair, partitions: Sequence[int], start: int | None, end: int | None) -> None:
    """Series of partitions page by page, of one series each."""
    want = [each for each in SERIES if series.partition_of(each, PARTITIONS) in partitions]
    want = [each for each in want if pair.oracle.rows(each, start, end)]
    keys: list[bytes] = []
    while True:
        after = keys[-1] if keys else b""
        several = protocol.bitmap(partitions, PARTITIONS) if len(partitions) > 1 else b""
        body = SeriesDigestsRequest(pair.number, partitions[0], after, 1, start, end, several)
        page = pair.exchange.series_digests(body)
        for at, each in enumerate(page.keys):
            times = [time for time, _ in pair.oracle.rows(each, start, end)]
            assert told(page)[at] == held(pair, each, start, end)
            assert np.frombuffer(page.low, "<i8")[at] <= times[0]
            assert np.frombuffer(page.high, "<i8")[at] >= times[-1]
        keys += page.keys
        if not page.more:
            break
    assert keys == sorted(want, key=lambda each: (series.series_hash(each), each))


@pytest.mark.parametrize("seed", range(8))
def test_all_that_a_store_hands_out_makes_an_empty_one_the_same(pairs: Any, tmp_path: Path, seed: int) -> None:
    pair = pairs(seed, days=4 if seed % 3 == 0 else 0)
    pair.live(14)
    other = pairs(0, days=pair.days)
    for number in range(1, pair.number + 1):
        other.delete(number, Selector("nobody"), 0, 1)
    replies = whole_partitions(pair, pair.chance.choice([1, 3000, 20_000, 1 << 22]))
    if seed % 2:
        other.store.take_in(replies)
    else:
        for each in replies:
            other.store.take_in([each])
    for _ in range(2):
        assert contents(other.store, SERIES) == expected(pair.oracle, SERIES)
        asked = DigestsRequest(pair.number, EVERYWHERE)
        assert told(other.exchange.digests(asked)) == told(pair.exchange.digests(asked))
        other.store.compact()
    other._open()
    assert contents(other.store, SERIES) == expected(pair.oracle, SERIES)


@pytest.mark.parametrize("seed", range(8))
def test_fetched_ranges_and_what_was_there_before_are_joined(pairs: Any, seed: int) -> None:
    pair, other = pairs(seed), pairs(seed + 100)
    for each in (pair, other):
        each._delete = each._write
        each.live(12)
    chance = pair.chance
    ranges = []
    for each in SERIES:
        start, end = chance.choice(spans(chance))
        ranges.append(Range(each, EARLIEST if start is None else start, LATEST if end is None else end))
    ranges += [ranges[0], Range(key("unknown"), 0, 5), Range(SERIES[0], 5, 0)]
    replies = ranges_of(pair, ranges, chance.choice([1, 2000, 1 << 20]))
    for each in ranges:
        for time, value in pair.oracle.rows(each.key, each.start_ns, each.end_ns):
            other.oracle.add(each.key, time, value)
    other.store.take_in(replies)
    assert contents(other.store, SERIES) == expected(other.oracle, SERIES)
    other._compact()
    assert contents(other.store, SERIES) == expected(other.oracle, SERIES)
    assert told(other.exchange.digests(DigestsRequest(0, EVERYWHERE))) == by_partition(other, None, None)


def test_blocks_that_stand_alone_go_as_they_are_stored(pairs: Any) -> None:
    pair, other = pairs(1), pairs(2)
    times = range(NOW_NS, NOW_NS + 20_000 * 1000, 1000)
    for begin in range(0, 20_000, 1000):
        pair.append(rows_of(SERIES[0], times[begin : begin + 1000]))
    pair._compact()
    replies = ranges_of(pair, [Range(SERIES[0], EARLIEST, LATEST)], 1 << 20)
    assert [len(each.rows) for each in replies] == [0]
    blocks = sum(len(each.series) // 4 for each in replies[0].blocks)
    taken = other.store.take_in(replies)
    assert (taken.points, taken.blocks, taken.rows) == (20_000, blocks, 0)
    mine, theirs = (each.store.view.stored.segments[0] for each in (pair, other))
    assert [bytes(theirs.raw(at)) for at in range(blocks)] == [bytes(mine.raw(at)) for at in range(blocks)]
    for one, another in zip(mine.windows(0, blocks), theirs.windows(0, blocks), strict=True):
        assert (one == another).all()
    assert theirs.header.origin == pair.store.store_id
    assert theirs.header.store_id == other.store.store_id
    assert other.exchange.digests(DigestsRequest(0, EVERYWHERE)).cost.blocks_decoded == 0


def test_equal_stores_are_compared_without_decoding_what_is_in_order(pairs: Any) -> None:
    pair = pairs(1)
    for at in range(3):
        pair.append(rows_of(SERIES[0], range(NOW_NS + at * 1000, NOW_NS + at * 1000 + 900)))
        pair.store.seal()
    pair.append(rows_of(SERIES[0], range(NOW_NS + 5000, NOW_NS + 5100)))
    cost = pair.exchange.digests(DigestsRequest(0, EVERYWHERE)).cost
    assert (cost.blocks_summarized, cost.blocks_decoded) == (3, 0)


def test_rows_in_heads_that_arrived_in_any_order_or_were_deleted_are_told_as_readers_see_them(pairs: Any) -> None:
    pair, other = pairs(1), pairs(2)
    gate = threading.Event()  # closed: frozen heads stay frozen
    seal = pair.store._sealer._seal
    pair.store._sealer._seal = lambda frozen: (gate.wait(), seal(frozen))[1]
    pair.append([(SERIES[0], time, 1.0) for time in (5, 3, 9, 3)])
    pair.append([(SERIES[3], time, 1.0) for time in range(10)])
    assert told(pair.exchange.digests(DigestsRequest(0, EVERYWHERE))) == by_partition(pair, None, None)
    pair.delete(1, Selector("b:/"), 2, 4)
    pair.append([(SERIES[3], time, 2.0) for time in (20, 30)])
    assert len(pair.store.view.heads) == 2
    assert told(pair.exchange.digests(DigestsRequest(1, EVERYWHERE))) == by_partition(pair, None, None)
    other.delete(1, Selector("nobody"), 0, 1)
    other.store.take_in(whole_partitions(pair, 1 << 20))
    assert contents(other.store, SERIES) == expected(pair.oracle, SERIES)
    gate.set()


def test_a_reply_has_about_as_much_as_it_may(pairs: Any) -> None:
    pair = pairs(1)
    for at in range(40):
        pair.append(rows_of(SERIES[at % 2], range(NOW_NS + at * 1000, NOW_NS + at * 1000 + 900)))
    replies = ranges_of(pair, [Range(each, EARLIEST, LATEST) for each in SERIES[:2]], 40_000)
    assert max(len(each.rows) for each in replies) < 60_000
    assert sum(each.points for each in replies) == 40 * 900


def test_stores_at_different_delete_numbers_exchange_nothing(pairs: Any) -> None:
    pair = pairs(1)
    pair.delete(3, Selector("a"), 0, 10)
    for number in (0, 2, 4):
        with pytest.raises(RefusedError, match=f"asked at delete number {number}, this node is at 3") as refused:
            pair.exchange.digests(DigestsRequest(number, EVERYWHERE))
        assert refused.value.error == protocol.ERR_DELETES


def test_partitions_that_are_not_held_are_not_told_of(pairs: Any) -> None:
    pair = pairs(1)
    pair.append(rows_of(SERIES[0], range(10)))
    partition = series.partition_of(SERIES[0], PARTITIONS)
    others = protocol.bitmap([each for each in range(PARTITIONS) if each != partition], PARTITIONS)
    exchange = Exchange(pair.store, lambda: others)
    reply = exchange.digests(DigestsRequest(0, EVERYWHERE))
    assert reply.partitions == others
    assert told(reply) == [(0, 0)] * (PARTITIONS - 1)
    for asked in (
        lambda: exchange.fetch_partition(FetchPartitionRequest(0, partition, 1000)),
        lambda: exchange.series_digests(SeriesDigestsRequest(0, partition, b"", 5)),
        lambda: exchange.range_digests(RangeDigestsRequest(0, [Range(SERIES[0], 0, 5)])),
        lambda: exchange.fetch(FetchRequest(0, [Range(SERIES[0], 0, 5)], 1000)),
    ):
        with pytest.raises(RefusedError, match=f"partition {partition}") as refused:
            asked()
        assert refused.value.error == protocol.ERR_NOT_MINE


def test_what_cannot_be_asked_is_refused(pairs: Any) -> None:
    exchange = pairs(1).exchange
    one = Range(SERIES[0], 0, 5)
    with pytest.raises(ProtocolError, match="bitmap of 1 bytes, want 2"):
        exchange.digests(DigestsRequest(0, b"\xff"))
    with pytest.raises(ProtocolError, match="want an int64"):
        exchange.digests(DigestsRequest(0, EVERYWHERE, 1 << 63))
    with pytest.raises(ProtocolError, match="limit of 0 series, want 1 to"):
        exchange.series_digests(SeriesDigestsRequest(0, 0, b"", 0))
    with pytest.raises(ProtocolError, match="16385 ranges, want at most 16384"):
        exchange.range_digests(RangeDigestsRequest(0, [one] * 16_385))
    with pytest.raises(ProtocolError, match="max_bytes 0, want 1 to"):
        exchange.fetch(FetchRequest(0, [one], 0))
    with pytest.raises(ProtocolError, match="item 2 of 1 ranges"):
        exchange.fetch(FetchRequest(0, [one], 1000, 2))
    with pytest.raises(ProtocolError, match="want an even array of at least two strings"):
        exchange.fetch(FetchRequest(0, [Range(b"\x91\xa1a", 0, 5)], 1000))
    with pytest.raises(RefusedError, match="partition 16"):
        exchange.fetch_partition(FetchPartitionRequest(0, 16, 1000))


def test_a_question_that_nobody_waits_for_is_given_up(pairs: Any) -> None:
    pair = pairs(1)
    pair.append(rows_of(SERIES[0], range(10)))
    cancel = Cancel()
    cancel.set()
    with pytest.raises(CancelledError):
        pair.exchange.digests(DigestsRequest(0, EVERYWHERE), cancel)
    with pytest.raises(CancelledError):
        partition = series.partition_of(SERIES[0], PARTITIONS)
        pair.exchange.fetch_partition(FetchPartitionRequest(0, partition, 1000), cancel)


def test_thousands_of_series_are_handed_over_in_pages(tmp_path: Path) -> None:
    keys = [key(f"device {number}") for number in range(2500)]
    rows = [(each, at * 10 + number, float(number)) for number in range(3) for at, each in enumerate(keys)]
    one, other = (
        Store.open(tmp_path / name, "cluster", name, 1, config.Storage(), QuickDisk()) for name in ("one", "other")
    )
    for part in (rows[:5000], rows[5000:]):
        one.append([batch_of(part)])
        one.seal()
    replies, body = [], FetchPartitionRequest(0, 0, 150_000)
    while body is not None:
        replies.append(Exchange(one, lambda: b"\1").fetch_partition(body))
        last = replies[-1]
        body = FetchPartitionRequest(0, 0, 150_000, last.next_key, last.next_ns) if last.more else None
    assert len(replies) > 2
    assert max(len(each.series) // 4 for reply in replies for each in reply.blocks) == 1024
    other.take_in(replies)
    asked = DigestsRequest(0, b"\1")
    assert told(Exchange(other, lambda: b"\1").digests(asked)) == told(Exchange(one, lambda: b"\1").digests(asked))
    assert other.status()["points"] == 7500
    for each in (one, other):
        each.close()


def test_series_of_one_hash_come_in_order_of_their_keys(pairs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series, "series_hashes", lambda keys: np.full(len(list(keys)), 7 << 60, np.uint64))
    pair, other = pairs(1), pairs(2)
    for each in SERIES:
        pair.append(rows_of(each, range(5)))
        pair.store.seal()
    page = pair.exchange.series_digests(SeriesDigestsRequest(0, 7, b"", 4))
    assert page.keys == sorted(SERIES)[:4]
    rest = pair.exchange.series_digests(SeriesDigestsRequest(0, 7, page.keys[-1], 4))
    assert rest.keys == sorted(SERIES)[4:]
    other.store.take_in(whole_partitions(pair, 100))
    assert contents(other.store, SERIES) == expected(pair.oracle, SERIES)
