"""Tables hold each block of the series asked for, in order, however they are found and cut."""

from pathlib import Path

import numpy as np
import pytest

from common import series
from tests.workers.storage import segments
from tests.workers.storage.views import HASHES, KEYS, Place, selection, view_of
from workers.storage import aggregate_kernels, kernels
from workers.storage.deletes import NO_DELETES
from workers.storage.page_cache import PageCache
from workers.storage.segment import EARLIEST, LATEST, Segment
from workers.storage.table import SegmentSet, Selection, Table

Block = tuple[int, int, int, int]  # id of the series, t_min, t_max, points


def blocks_of(found: SegmentSet, asked: Selection, start: int = EARLIEST, end: int = LATEST) -> list[list[Block]]:
    """The blocks of each table."""
    tables = []
    for part, table in found.tables(asked, NO_DELETES, start, end):
        columns = zip(part.ids[table.places], table.t_min, table.t_max, table.counts, strict=True)
        tables.append([(int(each), int(low), int(high), int(count)) for each, low, high, count in columns])
    return tables


def test_the_fields_of_rows_are_the_same_for_both_kernel_modules() -> None:
    fields = [name for name in vars(aggregate_kernels) if name.isupper() and name in vars(kernels)]
    assert {"COUNT", "LAST", "HI", "M2", "LAST_ROW", "RISING", "FIELDS", "SUM_HI", "BLOCK_M2"} <= set(fields)
    for name in fields:
        assert getattr(aggregate_kernels, name) == getattr(kernels, name), name


def test_blocks_of_several_segments_come_by_series_and_time(tmp_path: Path) -> None:
    first = Place([(each, time, 1.0) for each in (0, 1, 2) for time in range(4)], 0, 2)
    second = Place([(each, time, 1.0) for each in (2, 0) for time in (-9, 1, 9)], 0, 3)
    stored = view_of(tmp_path, [first, second]).stored
    want = [(2, -9, 9, 3), (2, 0, 1, 2), (2, 2, 3, 2), (0, -9, 9, 3), (0, 0, 1, 2), (0, 2, 3, 2)]
    assert blocks_of(stored, selection([2, 5, 0])) == [want]
    table = next(stored.tables(selection([2, 5, 1]), NO_DELETES, EARLIEST, LATEST))[1]
    assert (table.earliest.tolist(), table.latest.tolist()) == ([-9, LATEST, 0], [9, EARLIEST, 3])
    assert table.alone.tolist() == [0, 0, 0, 1, 1]
    assert (table.of(0), table.of(1), table.of(2)) == (slice(0, 3), slice(3, 3), slice(3, 5))


@pytest.mark.parametrize("limit", [1, 2, 4, 5, 100])
def test_a_selection_is_cut_between_series(tmp_path: Path, limit: int) -> None:
    blocks = {0: 1, 1: 5, 2: 1, 3: 3, 5: 1}  # series 4 has none
    place = Place([(each, time, 1.0) for each, count in blocks.items() for time in range(count)], 0, 1)
    stored = view_of(tmp_path, [place], chunk_blocks=limit).stored
    tables = blocks_of(stored, selection(range(6)))
    assert [row for table in tables for row in table] == [
        (each, at, at, 1) for each, count in blocks.items() for at in range(count)
    ]
    assert all(len(table) <= limit or len({row[0] for row in table}) == 1 for table in tables)
    assert len(tables) == {1: 6, 2: 5, 4: 4, 5: 4, 100: 1}[limit]


def test_segments_outside_the_range_are_not_read_for_many_series(tmp_path: Path) -> None:
    places = [Place([(each, at, 1.0) for each in range(6)], 0, 1) for at in (0, 100, 200)]
    stored = view_of(tmp_path, places, chunk_blocks=6).stored
    assert blocks_of(stored, selection(range(6)), 50, 150) == [[(each, 100, 100, 1) for each in range(6)]]


def test_series_of_one_hash_are_told_apart(tmp_path: Path) -> None:
    keys = [series.series_key(f"d{number}", "m", {}) for number in range(9)]
    points = {key: [(at, float(at))] for at, key in enumerate(keys)}
    segments.write(tmp_path / "s", points, hash_of=lambda key: 7)
    segment = segments.opened(tmp_path / "s", keys, hash_of=lambda key: 7)
    stored = SegmentSet([segment])
    for asked in ([8, 0, 4], [5], list(range(9))):
        chosen = Selection(np.array(asked), np.full(len(asked), 7, np.uint64), keys.__getitem__)
        assert blocks_of(stored, chosen) == [[(each, each, each, 1) for each in asked]]
    other = Selection(np.array([3, 9]), np.array([7, 7], np.uint64), keys.__getitem__)
    assert blocks_of(stored, other) == [[(3, 3, 3, 1)]]


def test_far_apart_series_are_read_in_stretches(tmp_path: Path) -> None:
    """The series between them fill pages that nobody asks for."""
    points = {KEYS[each]: [(time, 1.0) for time in range(3000 if each % 2 else 3)] for each in range(6)}
    segments.write(tmp_path / "s", points, block_rows=1)
    segment = segments.opened(tmp_path / "s", KEYS)
    read = []

    class Watched(Segment):
        def index(self, begin: int, end: int):  # type: ignore[no-untyped-def]
            read.append(end - begin)
            return super().index(begin, end)

    segment.__class__ = Watched
    order = np.argsort(HASHES[[0, 2, 4]])[::-1] * 2
    tables = blocks_of(SegmentSet([segment]), selection(order.tolist()))
    assert tables == [[(each, time, time, 1) for each in order.tolist() for time in range(3)]]
    assert sum(read) < 3000


def test_a_table_is_made_once(tmp_path: Path) -> None:
    stored = view_of(tmp_path, [Place([(0, 0, 1.0), (1, 0, 1.0)], 0, 1)]).stored
    made: list[Table] = [next(stored.tables(selection([0, 1]), NO_DELETES, 0, 9))[1] for _ in range(2)]
    assert made[0] is made[1]
    other = SegmentSet(stored.segments, PageCache(0))
    made = [next(other.tables(selection([0, 1]), NO_DELETES, 0, 9))[1] for _ in range(2)]
    assert made[0] is not made[1]


def test_what_a_cache_keeps_under_long_keys_counts_with_them() -> None:
    cache = PageCache(1 << 20)
    many = Selection(np.arange(20_000), np.zeros(20_000, np.uint64), lambda _: b"")
    for _ in range(20):  # as many views, each asked for series that are too many for one table
        list(SegmentSet([], cache, chunk_blocks=10_000).tables(many, NO_DELETES, 0, 9))
        assert 160_000 < cache.bytes <= cache.max_bytes
    assert len(cache._pages) == 6
