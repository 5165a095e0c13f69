"""Compaction of real segments: the same points, in few full blocks; in little memory; nothing half done is left."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import files, series
from common.points import PointBatch
from common.selector import Selector
from tests import naive
from tests.disks import FailingDisk, QuickDisk
from workers.storage import compaction, compaction_plan, layout, seal
from workers.storage.catalog import Catalog
from workers.storage.compaction import Compactor
from workers.storage.compaction_plan import PERIOD_NS
from workers.storage.compaction_table import DamagedInputError
from workers.storage.deletes import NO_DELETES, DeleteRecord, Deletes
from workers.storage.head import Head
from workers.storage.page_cache import PageCache
from workers.storage.segment import Header, Segment

EARLIEST, LATEST = -(1 << 63), (1 << 63) - 1
BUDGET = 4 << 20
SECOND_NS = 1_000_000_000
Points = dict[bytes, dict[int, float]]


def key(device: str) -> bytes:
    return series.series_key(device, "temperature")


def no_pause() -> None:
    pass


class Shelf:
    """A data directory with segments, and a compactor for them. hash_of: of keys, where tests want equal ones."""

    def __init__(
        self, directory: Path, disk: files.Disk | None = None, budget: int = BUDGET,
        hash_of: Callable[[bytes], int] = series.series_hash,
    ) -> None:  # fmt: skip
        opened = layout.open_directory(directory, "cluster", "ing1", QuickDisk())
        opened.lock.release()
        self.place = dataclasses.replace(opened, disk=disk or opened.disk)
        self.catalog = Catalog()
        self.hash_of = hash_of
        self.cache = PageCache(1 << 20)
        self.numbers = itertools.count(1)
        self.reserved: list[int] = []
        self.compactor = Compactor(self.place, "auto", self.keys_of, self.reserve, budget)

    def keys_of(self, ids: Any) -> list[bytes]:
        return [self.catalog.key(each) for each in ids.tolist()]

    def reserve(self, count: int) -> int:
        self.reserved = [next(self.numbers) for _ in range(count)]
        return self.reserved[0]

    def seal(self, points: Points, delete_number: int = 0, wal: Sequence[tuple[int, int]] = ()) -> Segment:
        rows = [(each, time, value) for each in points for time, value in points[each].items()]
        keys = list(points)
        index = np.array([keys.index(each) for each, _, _ in rows], np.uint32)
        return self.seal_columns(
            keys, index, np.array([time for _, time, _ in rows], np.int64), np.array([v for _, _, v in rows]),
            delete_number, wal,
        )  # fmt: skip

    def seal_columns(
        self, keys: list[bytes], index: Any, times: Any, values: Any, delete_number: int = 0,
        wal: Sequence[tuple[int, int]] = (),
    ) -> Segment:  # fmt: skip
        number = next(self.numbers)
        ids = self.catalog.add(keys)
        hashes = np.array([self.hash_of(each) for each in keys], np.uint64)
        head = Head(len(times))
        head.append(PointBatch(keys, index, times, values), ids, hashes)
        grouped = head.grouped()
        header = Header(self.place.store_id, self.place.store_id, delete_number, tuple(wal), (), (0, 0))
        frontiers = np.full(len(keys), EARLIEST)
        path = self.place.segment_path(number)
        seal.write_segment(
            path, header, grouped, self.keys_of(grouped.ids), frontiers, "auto", self.place.disk
        )
        return self.open(number)

    def open(self, number: int) -> Segment:
        opened = Segment(self.place.segment_path(number), number, self.cache)
        keys = opened.keys()
        opened.bind(self.catalog.add(keys), np.array([self.hash_of(each) for each in keys], np.uint64))
        return opened

    def compact(
        self, inputs: Sequence[Segment], deletes: Deletes = NO_DELETES, cutoff: int = EARLIEST,
        pause: Callable[[], None] = no_pause,
    ) -> list[Segment]:  # fmt: skip
        return [self.open(number) for number in self.compactor.run(inputs, deletes, cutoff, pause)]

    def names(self) -> list[str]:
        return sorted(path.name for path in (self.place.directory / "segments").iterdir())


def contents(segments: Sequence[Segment]) -> Points:
    """All points, each of them found once; every block checked against its summary."""
    found: Points = {}
    for segment in segments:
        blocks = segment.index(0, segment.blocks)
        for at, each in enumerate(segment.keys()):
            held = found.setdefault(each, {})
            last = None
            for block in range(*segment.block_range(at)):
                times, values = segment.decode(block)
                assert (blocks.t_min[block], blocks.t_max[block]) == (times[0], times[-1])
                assert last is None or last < times[0]
                last = times[-1]
                points = list(zip(times.tolist(), values.tolist(), strict=True))
                mixed = naive.digest(int(segment.hashes[at]), points)
                assert int(blocks.digests[block]) == mixed
                assert not held.keys() & dict(points).keys()
                held.update(points)
    return found


def bits(points: Points) -> dict[bytes, dict[int, int]]:
    return {each: {time: naive.bits(value) for time, value in rows.items()} for each, rows in points.items() if rows}


def joined(parts: Sequence[Points]) -> Points:
    oracle = naive.PointSet()
    for part in parts:
        for each, rows in part.items():
            for time, value in rows.items():
                oracle.add(each, time, value)
    return {each: rows for each, rows in oracle.points.items() if isinstance(each, bytes)}


def spread(count: int, begin: int = 0, step: int = SECOND_NS, value: float = 1.0) -> dict[int, float]:
    return {begin + at * step: value + at % 7 / 4 for at in range(count)}


TIMES = (
    st.integers(0, 40)
    | st.integers(0, 3).map(lambda at: at * PERIOD_NS)
    | st.integers(0, 3).map(lambda at: at * PERIOD_NS - 1)
    | st.sampled_from([EARLIEST, LATEST])
)
ROWS = st.dictionaries(TIMES, st.sampled_from([-1.5, -0.0, 0.0, 3.25]), min_size=1, max_size=20)
PARTS = st.lists(st.dictionaries(st.sampled_from("abcdefgh"), ROWS, min_size=1, max_size=4), min_size=1, max_size=4)
MASKS = st.lists(
    st.tuples(st.integers(1, 4), st.sampled_from("abch"), TIMES, TIMES, st.booleans()),
    max_size=3,
    unique_by=lambda each: each[0],
)


@pytest.fixture
def split_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """A period of 10 rows is worth a file."""
    monkeypatch.setattr(compaction_plan, "SPLIT_ROWS", 10)
    monkeypatch.setattr(compaction_plan, "SPLIT_ROWS_PER_SERIES", 0)


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    return lambda: tmp_path_factory.mktemp("store")


@given(
    parts=PARTS,
    numbers=st.lists(st.integers(0, 4), min_size=4, max_size=4),
    masks=MASKS,
    cutoff=st.sampled_from([EARLIEST, EARLIEST, 20, PERIOD_NS]),
    sizes=st.sampled_from([(1, 1, 3), (4, 8, 3), (2, 8192, 8192), (4096, 8192, 65536)]),
)
@settings(max_examples=200)
def test_outputs_hold_what_an_obvious_join_holds(
    directories: Callable[[], Path],
    parts: list[dict[str, dict[int, float]]],
    numbers: list[int],
    masks: list[tuple[int, str, int, int, bool]],
    cutoff: int,
    sizes: tuple[int, int, int],
) -> None:
    """Every path is taken: blocks kept or not, long chains, many or few blocks in a table, splits."""
    records = [
        DeleteRecord(number, Selector(device, None if whole else "temperature", None), *sorted((one, other)))
        for number, device, one, other, whole in masks
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compaction, "KEPT_ROWS", sizes[0])
        patch.setattr(compaction, "BLOCK_ROWS", sizes[1])
        patch.setattr(compaction_plan, "SPLIT_ROWS", 2)
        patch.setattr(compaction_plan, "SPLIT_ROWS_PER_SERIES", 0)
        patch.setattr(compaction, "_ROW_BYTES", BUDGET // sizes[2])
        patch.setattr(compaction, "_BLOCK_BYTES", BUDGET // sizes[2])
        patch.setattr(compaction, "WRITERS", 2)
        shelf = Shelf(directories())
        keyed: list[Points] = [{key(device): rows for device, rows in part.items()} for part in parts]
        inputs = [shelf.seal(part, number) for part, number in zip(keyed, numbers, strict=False)]
        outputs = shelf.compact(inputs, Deletes(records, 4), cutoff)
    visible = [
        {
            each: {
                time: value
                for time, value in rows.items()
                if time >= cutoff and not any(_hides(record, each, time, number) for record in records)
            }
            for each, rows in part.items()
        }
        for part, number in zip(keyed, numbers, strict=False)
    ]
    assert bits(contents(outputs)) == bits(joined(visible))
    assert all(each.points for each in outputs)
    first = outputs[0].number if outputs else 0
    for at, each in enumerate(outputs):
        assert each.number == first + at
        assert each.header.group == (first, len(outputs))
        assert each.header.replaces == tuple(one.number for one in inputs)
        assert each.header.delete_number == 4


def _hides(record: DeleteRecord, each: bytes, time: int, number: int) -> bool:
    return (
        record.number > number
        and record.start <= time <= record.end
        and series.parse_key(each).device_id == record.selector.device_id
    )


def test_small_blocks_of_many_segments_become_full_ones_of_equal_size(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "node", budget=64 << 20)
    rows = [spread(2000, at * 2000 * SECOND_NS) for at in range(10)]
    outputs = shelf.compact([shelf.seal({key("a"): each}) for each in rows])
    (output,) = outputs
    assert sorted(output.index(0, output.blocks).counts.tolist()) == [6666, 6667, 6667]
    assert bits(contents(outputs)) == bits({key("a"): {t: v for each in rows for t, v in each.items()}})


def test_full_blocks_that_nothing_touches_are_copied_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = Shelf(tmp_path / "node")
    inputs = [shelf.seal({key("a"): spread(8192, at * 8192 * SECOND_NS)}) for at in range(5)]
    late = shelf.seal({key("a"): spread(10, 8192 * 3 * SECOND_NS + 1, value=5.0)})
    copied = []
    plain = compaction.SegmentWriter.copy_block
    monkeypatch.setattr(
        compaction.SegmentWriter, "copy_block", lambda *each: copied.append(each[2].number) or plain(*each)
    )
    (output,) = shelf.compact([*inputs, late])
    assert copied == [inputs[0].number, inputs[1].number, inputs[2].number, inputs[4].number]
    assert output.points == 5 * 8192 + 10
    assert bytes(output.raw(0)) == bytes(inputs[0].raw(0))


def test_few_rows_between_full_blocks_are_taken_in_by_one_of_them(tmp_path: Path) -> None:
    """Else they would be a block of their own for ever."""
    shelf = Shelf(tmp_path / "node")
    counts = [5000, 10, 6000]
    begins = np.cumsum([0, *counts[:-1]]).tolist()
    inputs = [
        shelf.seal({key("a"): spread(count, begin * SECOND_NS)}) for count, begin in zip(counts, begins, strict=True)
    ]
    (output,) = shelf.compact(inputs)
    assert output.index(0, output.blocks).counts.tolist() == [5010, 6000]


def test_series_of_one_hash_are_kept_apart_and_in_order_of_their_keys(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "node", hash_of=lambda each: 7)
    parts: list[Points] = [{key(device): {1: 1.0, number: 2.0}} for number, device in enumerate("cabac", 2)]
    (output,) = shelf.compact([shelf.seal(part) for part in parts])
    assert output.keys() == [key("a"), key("b"), key("c")]
    assert bits(contents([output])) == bits(joined(parts))


def test_periods_that_are_worth_it_get_a_file_and_all_others_share_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction_plan, "SPLIT_ROWS", 100)
    shelf = Shelf(tmp_path / "node")
    dense = [spread(200, number * PERIOD_NS) for number in (3, 5)]
    sparse = {number * PERIOD_NS + 5: 1.0 for number in range(10)}
    points: Points = {key("a"): {**dense[0], **dense[1], **sparse}, key("b"): {1: 1.0}}
    outputs = shelf.compact([shelf.seal(points)])
    assert bits(contents(outputs)) == bits(points)
    assert [(each.t_min // PERIOD_NS, each.t_max // PERIOD_NS) for each in outputs] == [(3, 3), (5, 5), (0, 9)]
    rest = outputs[2].index(0, outputs[2].blocks)
    for low, high in [(3, 4), (5, 6)]:
        overlapping = (rest.t_min < high * PERIOD_NS) & (rest.t_max >= low * PERIOD_NS)
        assert not overlapping.any(), "a block reaches over a period that has a file of its own"


def test_when_no_row_is_left_nothing_is_written_and_the_inputs_simply_go(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "node")
    inputs = [shelf.seal({key("a"): spread(10), key("b"): {5: 1.0, 4 * PERIOD_NS: 1.0}})]
    deletes = Deletes([DeleteRecord(1, Selector("a", None, None))])
    assert shelf.compact(inputs, deletes, 5 * PERIOD_NS) == []
    shelf.compactor.retire(inputs)
    assert shelf.names() == []


def test_a_single_period_without_rows_left_writes_nothing(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "node")
    inputs = [shelf.seal({key("a"): spread(10)})]
    assert shelf.compact(inputs, Deletes([DeleteRecord(1, Selector("a", None, None))])) == []
    assert shelf.names() == ["seg-0000000000000001.mts"]


@pytest.mark.usefixtures("split_early")
def test_wal_files_that_are_still_there_are_covered_by_the_last_output_alone(tmp_path: Path) -> None:
    """It is there only if the others are: so the WAL is replayed until all rows are in segments."""
    shelf = Shelf(tmp_path / "node")
    points: Points = {key("a"): {**spread(20), **spread(20, PERIOD_NS)}}
    inputs = [shelf.seal(points, wal=[(100, 102)]), shelf.seal(points, wal=[(103, 103), (104, 105)])]
    shelf.place.wal_path(102).touch()
    shelf.place.wal_path(104).touch()
    outputs = shelf.compact(inputs)
    assert [each.header.wal_ranges for each in outputs] == [(), ((100, 102), (104, 105))]


def test_ranges_of_wal_files_that_are_gone_are_forgotten(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "node")
    (output,) = shelf.compact([shelf.seal({key("a"): spread(5)}, wal=[(100, 102)])])
    assert output.header.wal_ranges == ()


def test_retired_inputs_are_gone(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "node")
    inputs = [shelf.seal({key("a"): spread(5)}), shelf.seal({key("a"): spread(5)})]
    shelf.compact(inputs)
    shelf.compactor.retire(inputs)
    assert shelf.names() == ["seg-0000000000000003.mts"]
    assert bits(contents(inputs[:1])) == bits({key("a"): spread(5)}), "who has it open may read on"


class Enough(Exception):
    pass


@pytest.mark.usefixtures("split_early")
def test_work_given_up_at_any_pause_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "_ROW_BYTES", BUDGET // 8192)
    monkeypatch.setattr(compaction, "WRITERS", 1)
    shelf = Shelf(tmp_path / "node")
    points: Points = {key(device): {**spread(7000), **spread(7000, PERIOD_NS)} for device in "abcd"}
    inputs = [shelf.seal(points), shelf.seal(points)]
    before = shelf.names()
    pauses = 0

    def give_up(at: int) -> Callable[[], None]:
        left = itertools.count(at, -1)

        def pause() -> None:
            if next(left) == 0:
                raise Enough

        return pause

    while True:
        try:
            outputs = shelf.compact(inputs, pause=give_up(pauses))
            break
        except Enough:
            assert shelf.names() == before
            pauses += 1
    assert pauses > 8
    assert bits(contents(outputs)) == bits(points)


def test_a_damaged_input_is_named_and_nothing_is_left_behind(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "node")
    inputs = [shelf.seal({key(device): spread(50)}) for device in "abc"]
    path = inputs[1].path
    data = bytearray(path.read_bytes())
    offset = int(inputs[1].index(0, 1).offsets[0])
    data[offset] ^= 1
    path.write_bytes(data)
    before = shelf.names()
    with pytest.raises(DamagedInputError, match="has CRC") as raised:
        shelf.compact(inputs)
    assert raised.value.segment is inputs[1]
    assert shelf.names() == before


@pytest.mark.usefixtures("split_early")
def test_a_disk_that_fails_at_any_step_leaves_the_inputs_and_nothing_else(tmp_path: Path) -> None:
    """What cannot be removed at once is removed before the next compaction begins."""
    points: Points = {key("a"): {**spread(20), **spread(20, PERIOD_NS)}}
    for step in itertools.count():
        directory = tmp_path / str(step)
        inputs = [Shelf(directory).seal(points)]
        disk = FailingDisk(step)
        shelf = Shelf(directory, disk)
        next(shelf.numbers)
        inputs = [shelf.open(1)]
        failed = False
        try:
            outputs = shelf.compact(inputs)
        except OSError:
            failed = True
            outputs = shelf.compact(inputs)
        shelf.compactor.retire(inputs)
        shelf.compactor.clean()
        assert shelf.names() == [each.path.name for each in outputs]
        assert bits(contents(outputs)) == bits(points)
        if disk.failed is None:
            break
        assert failed or disk.failed.call in ("remove", "sync_directory")
    assert step > 8


def test_a_long_series_of_overlapping_blocks_is_joined_in_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight segments over the same time: one chain of 400,000 rows, with room for 16,384 at once."""
    largest = 0
    plain = compaction._Writers.write

    def write(self: Any, unit: Any, series_: Any, rows: Any, kept: Any, homes: Any) -> None:
        nonlocal largest
        largest = max(largest, len(rows.times))
        plain(self, unit, series_, rows, kept, homes)

    monkeypatch.setattr(compaction._Writers, "write", write)
    shelf = Shelf(tmp_path / "node")
    total, parts = 400_000, 8
    index = np.zeros(total // parts, np.uint32)
    inputs = []
    for part in range(parts):
        times = np.arange(part, total, parts, dtype=np.int64) * SECOND_NS
        inputs.append(shelf.seal_columns([key("a")], index, times, np.full(len(times), float(part))))
    (output,) = shelf.compact(inputs)
    assert output.points == total
    assert largest <= 16_384 + 4 * compaction.BLOCK_ROWS * parts
    assert output.index(0, output.blocks).counts.min() > 4096
    decoded = np.concatenate([output.decode(block)[0] for block in range(output.blocks)])
    assert (decoded == np.arange(total) * SECOND_NS).all()


def test_the_kernels_agree_with_python_about_what_is_kept() -> None:
    """keep_blocks against the rule in words."""
    draw = np.random.default_rng(11)
    for _ in range(300):
        count = int(draw.integers(1, 12))
        owner = np.sort(draw.integers(0, 3, count)).astype(np.int32)
        t_min = draw.integers(0, 30, count)
        order = np.lexsort((t_min, owner))
        t_min = t_min[order]
        t_max = t_min + draw.integers(0, 4, count)
        rows, homes = draw.integers(1, 20, count), draw.integers(-1, 2, count).astype(np.int32)
        plain = draw.integers(0, 2, count).astype(np.uint8)
        keep = np.empty(count, np.uint8)
        compaction.compaction_kernels.keep_blocks(owner, t_min, t_max, rows, homes, plain, 10, keep)
        allowed = [_may_stay(at, owner, t_min, t_max, rows, homes, plain) for at in range(count)]
        assert all(may or not kept for may, kept in zip(allowed, keep.tolist(), strict=True))
        for at in np.flatnonzero(np.array(allowed) & (keep == 0)).tolist():
            beside = [each for each in (at - 1, at + 1) if 0 <= each < count and owner[each] == owner[at]]
            assert any(not allowed[each] and homes[each] == homes[at] for each in beside)


def _may_stay(at: int, owner: Any, t_min: Any, t_max: Any, rows: Any, homes: Any, plain: Any) -> bool:
    overlaps = [
        other
        for other in range(len(owner))
        if other != at and owner[other] == owner[at] and t_min[other] <= t_max[at] and t_min[at] <= t_max[other]
    ]
    return not overlaps and rows[at] >= 10 and homes[at] >= 0 and bool(plain[at])
