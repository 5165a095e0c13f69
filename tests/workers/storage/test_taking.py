"""Points of another store, taken in: what is refused, what is joined, and what may happen beside it."""

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from common import protocol
from common.errors import ProtocolError, StorageError
from common.protocol import DigestsRequest, FetchPartitionRequest, FetchReply, StoredBlocks
from common.selector import Selector
from tests import naive
from tests.disks import QuickDisk
from tests.workers.storage.answers import contents, expected
from tests.workers.storage.support import (
    EVERYWHERE,
    PARTITIONS,
    Row,
    batch_of,
    copy_as_if_killed,
    key,
    open_store,
    rows_of,
)
from workers.storage import lacking, limits
from workers.storage.arrived import Arrived
from workers.storage.compaction_plan import PERIOD_NS, SPLIT_ROWS
from workers.storage.exchange import Exchange
from workers.storage.fetching import checksum
from workers.storage.limits import DiskFloorError
from workers.storage.store import DeleteRecord, Store

A, B, C = key("a"), key("b"), key("c")
SERIES = [A, B, C]


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Callable[..., Store]]:
    opened: list[Store] = []

    def make(**settings: Any) -> Store:
        opened.append(open_store(tmp_path / f"s{len(opened)}", QuickDisk(), **settings))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def everything(store: Store, number: int = 0) -> list[FetchReply]:
    exchange = Exchange(store, lambda: EVERYWHERE)
    return [exchange.fetch_partition(FetchPartitionRequest(number, each, 1 << 22)) for each in range(PARTITIONS)]


def filled(store: Store, sealed: Sequence[Row], recent: Sequence[Row] = ()) -> Store:
    if sealed:
        store.append([batch_of(sealed)])
        store.seal()
    if recent:
        store.append([batch_of(recent)])
    return store


def points(store: Store) -> dict[bytes, list[tuple[int, float]]]:
    found = contents(store, SERIES)
    return {each: [(time, float(np.uint64(bits).view(np.float64))) for time, bits in found[each]] for each in SERIES}


def oracle_of(*rows: Sequence[Row]) -> naive.PointSet:
    oracle = naive.PointSet()
    for some in rows:
        for each in some:
            oracle.add(*each)
    return oracle


def test_of_two_values_for_a_time_the_larger_stays_whoever_had_it(stores: Callable[..., Store]) -> None:
    mine, theirs = rows_of(A, range(10), 2.0), [*rows_of(A, range(5, 8), 3.0), *rows_of(A, range(8, 15), 1.0)]
    for sealed, recent in ((theirs, []), ([], theirs)):
        store = filled(stores(), mine)
        store.take_in(everything(filled(stores(), sealed, recent)))
        assert contents(store, SERIES) == expected(oracle_of(mine, theirs), SERIES)


def test_taking_in_is_not_bound_by_max_series(stores: Callable[..., Store]) -> None:
    store = filled(stores(max_series=1), rows_of(A, range(3)))
    store.take_in(everything(filled(stores(), rows_of(B, range(3)), rows_of(C, range(3)))))
    assert contents(store, SERIES) == expected(oracle_of(*(rows_of(each, range(3)) for each in SERIES)), SERIES)


def test_what_a_process_has_taken_in_is_there_after_it_was_killed(stores: Callable[..., Store], tmp_path: Path) -> None:
    store = filled(stores(), rows_of(A, range(3)), rows_of(A, range(3, 5)))
    store.take_in(everything(filled(stores(), rows_of(B, range(3)), rows_of(C, range(3)))))
    again = open_store(copy_as_if_killed(tmp_path / "s0", tmp_path / "copy"), QuickDisk())
    assert contents(again, SERIES) == contents(store, SERIES)
    assert again.status()["damaged"] == []
    again.close()


def test_points_of_a_delete_number_that_is_not_in_force_are_refused(stores: Callable[..., Store]) -> None:
    other = filled(stores(), rows_of(A, range(3)))
    other.delete(DeleteRecord(4, Selector("b")))
    store = stores()
    store.delete(DeleteRecord(3, Selector("c")))
    with pytest.raises(ProtocolError, match="points at delete number 4, want at most 3, which is in force here"):
        store.take_in(everything(other, 4))


def test_a_delete_that_comes_into_force_meanwhile_hides_what_was_fetched_before_it(
    stores: Callable[..., Store],
) -> None:
    replies = everything(filled(stores(), rows_of(A, range(6)), rows_of(B, range(6))))
    store = stores()
    store.delete(DeleteRecord(1, Selector("a"), 0, 3))
    store.append([batch_of(rows_of(A, range(2)), 1)])
    store.take_in(replies)
    wanted = {A: [(0, 1.0), (1, 1.0), (4, 1.0), (5, 1.0)], B: [(at, 1.0) for at in range(6)], C: []}
    assert points(store) == wanted
    store.compact()
    assert points(store) == wanted


def test_a_delete_between_the_writing_and_the_showing_hides_it_too(stores: Callable[..., Store]) -> None:
    replies = everything(filled(stores(), rows_of(A, range(6))))
    store = stores()
    take = store._taking._open
    store._taking._open = lambda number: (store.delete(DeleteRecord(1, Selector("a"), 0, 3)), take(number))[1]  # type: ignore[method-assign]
    store.take_in(replies)
    assert points(store)[A] == [(4, 1.0), (5, 1.0)]


def test_a_nearly_full_disk_takes_nothing_in(stores: Callable[..., Store], monkeypatch: pytest.MonkeyPatch) -> None:
    replies = everything(filled(stores(), rows_of(A, range(6))))
    store = stores(disk_floor_bytes=1 << 20)
    monkeypatch.setattr(limits, "free_bytes", lambda directory: 1 << 20)
    with pytest.raises(DiskFloorError, match=r"1048576 bytes free, want \d+ and storage.disk_floor_bytes = 1048576"):
        store.take_in(replies)
    monkeypatch.undo()
    assert points(store)[A] == []


def changed(blocks: StoredBlocks, **fields: Any) -> StoredBlocks:
    """With another content and the right CRC of that."""
    other = msgspec.structs.replace(blocks, **fields)
    crc = checksum(other.keys, other.series, other.index, other.windows)
    return msgspec.structs.replace(other, crc=crc)


DAMAGES: dict[str, tuple[Callable[[StoredBlocks], StoredBlocks], str]] = {
    "crc": (lambda each: msgspec.structs.replace(each, crc=each.crc ^ 1), "index has another CRC"),
    "data": (lambda each: changed(each, data=each.data[:-1] + bytes([each.data[-1] ^ 1])), "block 0 has CRC"),
    "short": (lambda each: changed(each, data=each.data[:-1]), "blocks end at"),
    "index": (lambda each: changed(each, index=each.index[:-1]), "blocks of another store"),
    "series": (lambda each: changed(each, series=b"\1\0\0\0"), "series 1 of 1"),
    "none": (lambda each: changed(each, series=b""), "0 bytes of series, want 4 for each of 1 to 1024"),
    "key": (lambda each: changed(each, keys=[b"\x91\xa1a"]), "want an even array of at least two strings"),
    "windows": (lambda each: changed(each, windows=b"\1\2\3"), "blocks of another store"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_reply_that_is_not_what_was_sent_is_refused(stores: Callable[..., Store], damage: str) -> None:
    change, reason = DAMAGES[damage]
    replies = [each for each in everything(filled(stores(), rows_of(A, range(6)))) if each.blocks]
    bad = [msgspec.structs.replace(each, blocks=[change(each.blocks[0])]) for each in replies]
    store = filled(stores(), rows_of(B, range(2)))
    with pytest.raises(ProtocolError, match=reason):
        store.take_in(bad)
    with pytest.raises(ProtocolError, match="store id of 3 bytes, want 16"):
        store.take_in([msgspec.structs.replace(replies[0], store_id=b"abc")])
    assert points(store) == {A: [], B: [(0, 1.0), (1, 1.0)], C: []}


def test_blocks_that_came_twice_are_joined_before_they_are_written(stores: Callable[..., Store]) -> None:
    other = filled(stores(), rows_of(A, range(50)))
    replies = everything(other)
    other.append([batch_of(rows_of(A, range(40, 90), 2.0))])
    other.compact()
    store = stores()
    store.take_in([*replies, *everything(other), *everything(filled(stores(), rows_of(B, range(50))))])
    for each in store.view.stored.segments:
        for at in range(each.series):
            blocks = each.index(*each.block_range(at))
            assert (blocks.t_min[1:] > blocks.t_max[:-1]).all()
    want = oracle_of(rows_of(A, range(50)), rows_of(A, range(40, 90), 2.0), rows_of(B, range(50)))
    assert contents(store, SERIES) == expected(want, SERIES)


def test_a_damaged_block_is_not_handed_out_and_its_segment_set_aside(
    stores: Callable[..., Store], tmp_path: Path
) -> None:
    store = filled(stores(), [row for each in SERIES for row in rows_of(each, range(20))])
    segment = store.view.stored.segments[0]
    begin = int(segment.index(1, 2).offsets[0])
    data = bytearray(segment.path.read_bytes())
    data[begin] ^= 1
    segment.path.write_bytes(data)
    with pytest.raises(StorageError, match="block 1 at"):
        everything(store)
    assert [each["file"] for each in store.status()["damaged"]] == [segment.path.name]


def test_beside_ingest_sealing_and_compaction_nothing_is_lost_or_double(stores: Callable[..., Store]) -> None:
    chance = random.Random(5)
    store = stores(head_rows=1000, compaction_share=1.0)
    sources = [
        filled(stores(), rows_of(chance.choice(SERIES), range(begin, begin + 600)), rows_of(C, range(at, 3000, 7), at))
        for at, begin in enumerate(chance.sample(range(5000), 8))
    ]
    wanted = oracle_of()
    for source in sources:
        for each, rows in points(source).items():
            for time, value in rows:
                wanted.add(each, time, value)
    replies = [everything(source) for source in sources]
    failures: list[BaseException] = []

    def take() -> None:
        try:
            for each in replies:
                store.take_in(each)
        except BaseException as error:
            failures.append(error)

    taker = threading.Thread(target=take)
    taker.start()
    for number in range(40):
        rows = rows_of(chance.choice(SERIES), range(number * 50, number * 50 + 120), number)
        store.append([batch_of(rows)])
        for row in rows:
            wanted.add(*row)
    taker.join()
    assert not failures
    assert contents(store, SERIES) == expected(wanted, SERIES)
    store.compact()
    assert contents(store, SERIES) == expected(wanted, SERIES)


@pytest.mark.parametrize("seed", range(6))
def test_only_what_is_lacking_is_taken_in_and_counted(stores: Callable[..., Store], seed: int) -> None:
    chance = random.Random(seed)
    some = [[row for each in SERIES for row in chosen(chance, each)] for _ in range(4)]
    store, other = filled(stores(), some[0], some[1]), filled(stores(), some[2], some[3])
    before, theirs = points(store), points(other)
    want = {
        (each, time)
        for each in SERIES
        for time, value in theirs[each]
        if naive.rank(value) > naive.rank(dict(before[each]).get(time, float("-inf")))
    }
    lacked: list[int] = []

    def sift(found: Arrived) -> Arrived:
        left, rows = lacking.of_arrived(store.view, store.by_hash, found, store.cutoff, store.pool)
        lacked.append(rows)
        return left

    if seed % 2:
        other.seal()
        other.compact()
    taken = store.take_in(everything(other), sift)
    assert len(want) <= lacked[0] <= (1 if seed % 2 else 2) * len(want)  # in a block and in a head it counts twice
    assert taken.points <= 2 * lacked[0]
    assert contents(store, SERIES) == expected(oracle_of(*some), SERIES)
    assert store.take_in(everything(other), sift) == ((), 0, 0, 0, 0)
    assert lacked[1:] == [0]


def chosen(chance: random.Random, each: bytes) -> list[Row]:
    """Nothing, a stretch of it, or some of it."""
    begin, count = chance.randrange(200), chance.choice([0, 30, 200])
    values = [-0.0, 0.0, 1.0]
    times = range(begin, begin + count) if chance.random() < 0.5 else chance.sample(range(400), count)
    return [(each, time, chance.choice(values)) for time in times]


def test_equal_stores_have_equal_digests_whatever_their_blocks(stores: Callable[..., Store]) -> None:
    one, other = stores(head_rows=1000), stores()
    for at in range(5):
        filled(one, rows_of(A, range(at * 300, at * 300 + 500), float(at)))
    other.append([batch_of([(A, time, float(min(4, time // 300))) for time in range(1700)])])
    asked = DigestsRequest(0, EVERYWHERE)
    first, second = (Exchange(each, lambda: EVERYWHERE).digests(asked) for each in (one, other))
    assert (first.counts, first.digests) == (second.counts, second.digests)
    assert protocol.members(first.partitions) == list(range(PARTITIONS))


def test_each_period_that_is_worth_it_comes_into_segments_of_its_own(stores: Callable[..., Store]) -> None:
    source, target = stores(head_rows=200_000), stores()
    border = 600 * PERIOD_NS
    step = PERIOD_NS // (2 * SPLIT_ROWS)
    sealed = rows_of(A, range(border - (SPLIT_ROWS + 100) * step, border + (SPLIT_ROWS + 9000) * step, step))
    few = rows_of(B, range(border - 5 * PERIOD_NS, border - 4 * PERIOD_NS, PERIOD_NS // 10))
    filled(source, [*sealed, *few], rows_of(C, range(border, border + SPLIT_ROWS + 5)))
    taken = target.take_in(everything(source))
    assert taken.points == len(sealed) + len(few) + SPLIT_ROWS + 5
    assert taken.rows == SPLIT_ROWS + 5
    spans = sorted((each.t_min // PERIOD_NS, each.t_max // PERIOD_NS) for each in target.view.stored.segments)
    together = (595, 600)  # few points, and a block over the border
    assert spans == [together, (599, 599), (600, 600), (600, 600)]
    assert contents(target, SERIES) == contents(source, SERIES)


def test_points_of_one_period_and_few_points_of_many_stay_together(stores: Callable[..., Store]) -> None:
    source, target = stores(), stores()
    filled(source, rows_of(A, range(0, 40 * PERIOD_NS, PERIOD_NS)), rows_of(B, range(5)))
    assert len(target.take_in(everything(source)).segments) == 2
