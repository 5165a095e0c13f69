"""Spools: what was taken over comes back in order, after a restart too, and marks are there as long as it matters."""

import gc
import tracemalloc
from pathlib import Path

import pytest

from common import clock
from common.errors import RingStoreError, StorageError
from common.ringstore import FileStore, Mark
from tests.disks import QuickDisk
from tests.workers.bridge import spooled
from tests.workers.bridge.spooled import (
    done,
    files,
    left,
    make,
    mark,
    marked,
    open_spools,
    ring_store,
    said,
    said_of,
    take_all,
)  # fmt: skip
from workers.bridge import spool as spool_module
from workers.bridge.spool import RETRY_S, Entry, Spools

NODE = "ing1"


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that only moves when told."""
    time = [100.0]
    monkeypatch.setattr(clock, "monotonic_s", lambda: time[0])
    return time


def fill(spools: Spools, numbers: range, node: str = NODE) -> None:
    for number in numbers:
        batch, message = make(number)
        spools.of(node).append(batch)
        assert message.waiting == 1
        spools.flush(clock.monotonic_s())
        assert message.waiting == 0


def test_what_was_taken_over_comes_back_in_order_with_all_that_it_said(tmp_path: Path) -> None:
    spools = open_spools(tmp_path)
    fill(spools, range(10))
    assert [said(entry.batch) for entry in take_all(spools, NODE)] == [said_of(n) for n in range(10)]
    assert len(files(tmp_path, NODE)) > 2


def test_what_is_in_a_spool_is_there_after_a_restart_and_new_batches_follow_it(tmp_path: Path) -> None:
    fill(open_spools(tmp_path), range(4))
    names = [path.name for path in files(tmp_path, NODE)]
    spools = open_spools(tmp_path)
    fill(spools, range(4, 8))
    assert [path.name for path in files(tmp_path, NODE)][: len(names)] == names
    assert [said(entry.batch) for entry in take_all(spools, NODE)] == [said_of(n) for n in range(8)]
    assert left(tmp_path) == {NODE: [said_of(n) for n in range(8)]}


def test_batches_that_are_gathered_become_durable_together_and_are_released_then(tmp_path: Path) -> None:
    spools = open_spools(tmp_path)
    batches = [make(n) for n in range(5)]
    for batch, _ in batches:
        spools.of(NODE).append(batch)
    assert spools.gathered_bytes == sum(batch.memory_bytes for batch, _ in batches)
    assert (spools.of(NODE).next(), spools.nodes(), files(tmp_path, NODE)) == (None, [], [])
    spools.flush(0)
    assert [message.waiting for _, message in batches] == [0] * 5
    assert (spools.gathered_bytes, spools.of(NODE).records, spools.nodes()) == (0, 5, [NODE])


def test_a_batch_of_many_messages_and_one_that_exceeds_a_file_come_back_as_they_were(tmp_path: Path) -> None:
    spools = open_spools(tmp_path)
    batch, _ = make(1, rows=5000)
    spools.of(NODE).append(batch)
    fill(spools, range(2, 4))
    assert [said(entry.batch) for entry in take_all(spools, NODE)] == [said(batch), said_of(2), said_of(3)]


def test_a_batch_that_came_out_of_a_spool_can_go_into_another(tmp_path: Path) -> None:
    spools = open_spools(tmp_path)
    fill(spools, range(1))
    (entry,) = take_all(spools, NODE)
    spools.of("ing2").append(entry.batch)
    spools.flush(0)
    assert entry.waiting == 0
    spools.tick(0)
    assert left(tmp_path) == {"ing2": [said_of(0)]}


def test_what_comes_out_is_released_once_for_all_its_parts(tmp_path: Path) -> None:
    spools = open_spools(tmp_path)
    fill(spools, range(1))
    (entry,) = take_all(spools, NODE)
    entry.batch.release.hold()
    entry.hold()
    done([entry, entry])
    assert entry.waiting == 1
    entry.release()
    assert entry.waiting == 0


def test_files_go_when_all_their_records_are_done_and_not_before(tmp_path: Path) -> None:
    spools = open_spools(tmp_path)
    fill(spools, range(9))
    entries = take_all(spools, NODE)
    whole = files(tmp_path, NODE)
    done(entries[1:])
    spools.tick(0)
    assert (files(tmp_path, NODE), spools.of(NODE).records, spools.of(NODE).is_empty) == (whole[:1], 1, False)
    done(entries[:1])
    spools.tick(0)
    assert (files(tmp_path, NODE), spools.of(NODE).bytes, spools.of(NODE).is_empty) == ([], 0, True)


def test_what_is_done_costs_no_memory_and_no_disk_though_an_earlier_record_is_not(tmp_path: Path) -> None:
    spools = open_spools(tmp_path)
    fill(spools, range(500, 560))
    first = spools.of(NODE).next()
    assert first is not None
    while entry := spools.of(NODE).next():
        done([entry])
        del entry
        spools.tick(0)
    batches = {entry.batch.body for entry in gc.get_objects() if isinstance(entry, Entry)}
    assert batches & {said_of(n).body for n in range(500, 560)} == {said_of(500).body}
    assert (len(files(tmp_path, NODE)), spools.of(NODE).records) == (1, 1)
    assert said(take_all(open_spools(tmp_path), NODE)[0].batch) == said_of(500)
    done([first])
    spools.tick(0)
    assert (files(tmp_path, NODE), spools.bytes, marked(tmp_path)) == ([], 0, set())


def test_a_spool_that_is_drained_while_it_is_filled_gives_everything_once(tmp_path: Path) -> None:
    spools = open_spools(tmp_path)
    found = []
    for number in range(0, 40, 2):
        fill(spools, range(number, number + 2))
        for entry in (spools.of(NODE).next(), *(take_all(spools, NODE) if number % 3 else ())):
            assert entry is not None
            found.append(said(entry.batch))
            done([entry])
        spools.tick(0)
    found += [said(entry.batch) for entry in take_all(spools, NODE)]
    assert found == [said_of(n) for n in range(40)]


def test_what_was_taken_and_is_not_done_comes_again_after_a_restart(tmp_path: Path) -> None:
    spools = open_spools(tmp_path)
    fill(spools, range(9))
    entries = take_all(spools, NODE)
    done(entries[:4])
    spools.tick(0)
    found = left(tmp_path)[NODE]
    assert found[-5:] == [said_of(n) for n in range(4, 9)]
    assert len(found) <= 7, "files that were done are gone"


def test_a_mark_is_there_before_the_release_and_until_the_files_are_gone(tmp_path: Path) -> None:
    seen = []

    class Store(FileStore):
        def put_mark(self, mark: Mark) -> None:
            seen.append((message.waiting, files(tmp_path, NODE)))
            super().put_mark(mark)

        def remove_mark(self, mark: Mark) -> None:
            seen.append(files(tmp_path, NODE))
            super().remove_mark(mark)

    spools = open_spools(tmp_path, store=Store(tmp_path / "ring.json"))
    batch, message = make(1)
    spools.of(NODE).append(batch)
    assert seen == []
    spools.flush(0)
    assert (seen, marked(tmp_path)) == ([(1, [])], {NODE})
    fill(spools, range(2, 9))
    entries = take_all(spools, NODE)
    done(entries[:-1])
    spools.tick(0)
    assert (len(seen), marked(tmp_path)) == (1, {NODE})
    done(entries[-1:])
    spools.tick(0)
    assert (seen[1:], marked(tmp_path)) == ([[]], set())


def test_a_mark_stays_while_something_is_gathered_behind_what_is_drained(tmp_path: Path) -> None:
    spools = open_spools(tmp_path)
    fill(spools, range(1))
    spools.of(NODE).append(make(1)[0])
    done(take_all(spools, NODE))
    spools.tick(0)
    assert marked(tmp_path) == {NODE}
    spools.flush(0)
    assert left(tmp_path) == {NODE: [said_of(1)]}


def test_the_start_puts_marks_that_are_missing_and_removes_our_own_without_a_spool(tmp_path: Path) -> None:
    fill(open_spools(tmp_path), range(1))
    store = ring_store(tmp_path)
    store.remove_mark(mark(NODE))
    for each in (mark("ing2"), Mark("ing2", "another"), Mark("ing3", "another")):
        store.put_mark(each)
    spools = open_spools(tmp_path)
    assert mark(NODE) in store.marks()
    spools.tick(0)
    assert store.marks() == {mark(NODE), Mark("ing2", "another"), Mark("ing3", "another")}


class AwayStore(FileStore):
    """A ring store that cannot be reached while `away`."""

    away = True

    def marks(self) -> frozenset[Mark]:
        self._check()
        return super().marks()

    def put_mark(self, mark: Mark) -> None:
        self._check()
        super().put_mark(mark)

    def remove_mark(self, mark: Mark) -> None:
        self._check()
        super().remove_mark(mark)

    def _check(self) -> None:
        if self.away:
            raise RingStoreError("the ring store is away")


def test_while_marks_cannot_be_read_at_the_start_nothing_is_taken_and_then_it_is(
    tmp_path: Path, now: list[float]
) -> None:
    fill(open_spools(tmp_path), range(2))
    store = AwayStore(tmp_path / "ring.json")
    spools = open_spools(tmp_path, store=store)
    spools.flush(now[0])
    assert not spools.can_take(NODE)
    assert not spools.can_take("ing2")
    assert spools.status()[NODE]["error"] == "the ring store is away"
    entries = take_all(spools, NODE)
    assert [said(entry.batch) for entry in entries] == [said_of(0), said_of(1)], "draining needs no mark"
    store.away = False
    spools.flush(now[0])
    assert not spools.can_take(NODE), "not before a second has passed"
    now[0] += RETRY_S
    spools.flush(now[0])
    assert (spools.can_take(NODE), spools.status()[NODE]["error"]) == (True, "")


def test_a_batch_whose_mark_cannot_be_written_waits_and_can_be_taken_back(tmp_path: Path, now: list[float]) -> None:
    store = AwayStore(tmp_path / "ring.json")
    store.away = False
    spools = open_spools(tmp_path, store=store)
    fill(spools, range(1), "ing2")
    store.away = True
    batch, message = make(1)
    spools.of(NODE).append(batch)
    spools.flush(now[0])
    assert (message.waiting, spools.of(NODE).error, spools.can_take(NODE)) == (1, "the ring store is away", False)
    assert spools.can_take("ing2"), "its mark is there"
    fill(spools, range(2, 3), "ing2")
    assert spools.of(NODE).reclaim() == [batch]
    assert spools.gathered_bytes == 0
    now[0] += RETRY_S
    spools.flush(now[0])
    assert spools.can_take(NODE), "it may be tried again"
    store.away = False
    spools.of(NODE).append(batch)
    spools.flush(now[0])
    assert (message.waiting, marked(tmp_path)) == (0, {NODE, "ing2"})


def test_a_mark_that_cannot_be_removed_is_removed_later_unless_it_is_needed_again(
    tmp_path: Path, now: list[float]
) -> None:
    store = AwayStore(tmp_path / "ring.json")
    store.away = False
    spools = open_spools(tmp_path, store=store)
    for node in (NODE, "ing2"):
        fill(spools, range(1), node)
        done(take_all(spools, node))
    store.away = True
    spools.tick(now[0])
    assert marked(tmp_path) == {NODE, "ing2"}
    store.away = False
    fill(spools, range(1, 2))
    now[0] += RETRY_S
    spools.tick(now[0])
    assert marked(tmp_path) == {NODE}


def test_spools_are_full_at_their_bound_together_and_take_again_when_a_file_is_gone(tmp_path: Path) -> None:
    spools = open_spools(tmp_path, spool_bytes=2000)
    taken = 0
    while spools.can_take(NODE):
        spools.of((NODE, "ing2")[taken % 2]).append(make(taken)[0])
        spools.flush(0)
        taken += 1
    assert 2000 <= spools.bytes < 2400
    assert sum(path.stat().st_size for node in (NODE, "ing2") for path in files(tmp_path, node)) == spools.bytes
    assert not spools.can_take("ing2")
    assert not spools.can_take("ing3")
    assert spools.status()[NODE]["error"] == f"full: {spools.bytes} bytes, bridge.spool_bytes = 2000"
    done(take_all(spools, NODE))
    spools.tick(0)
    assert spools.can_take("ing3")
    assert spools.status()[NODE]["error"] == ""


def test_the_status_says_what_there_is_and_for_how_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wall = [1_700_000_000_000_000_000]
    monkeypatch.setattr(clock, "wall_ns", lambda: wall[0])
    spools = open_spools(tmp_path)
    spools.of("ing2")
    for number in range(3):
        fill(spools, range(number, number + 1))
        wall[0] += 10_000_000_000
    nothing = {"bytes": 0, "records": 0, "oldest_s_ago": None, "error": "", "damaged": 0}
    assert spools.status()["ing2"] == nothing
    size = sum(path.stat().st_size for path in files(tmp_path, NODE))
    assert spools.status()[NODE] == nothing | {"bytes": size, "records": 3, "oldest_s_ago": 30.0}
    entries = take_all(spools, NODE)
    done(entries[:1])
    spools.tick(0)
    assert spools.status()[NODE]["oldest_s_ago"] == 20.0
    assert open_spools(tmp_path).status()[NODE]["oldest_s_ago"] == 30.0


def test_numbers_go_on_behind_what_is_there_and_behind_what_was_set_aside(tmp_path: Path) -> None:
    fill(open_spools(tmp_path), range(4))
    for path in files(tmp_path, NODE)[:-1]:
        path.unlink()
    number = int(files(tmp_path, NODE)[0].stem)
    (tmp_path / "spool" / NODE / "00000041-at-0.damaged").write_bytes(b"x")
    fill(open_spools(tmp_path), range(1))
    assert [int(path.stem) for path in files(tmp_path, NODE)] == [number, 42]


def test_a_record_of_a_newer_version_stops_the_start_and_is_named(tmp_path: Path) -> None:
    fill(open_spools(tmp_path), range(1))
    (path,) = files(tmp_path, NODE)
    body = bytearray(path.read_bytes()[12:])
    assert body[1] == 1
    body[1] = 2
    path.write_bytes(spool_module.KIND.pack(bytes(body), 1))
    with pytest.raises(StorageError, match=r"ing1/00000001.spool: record at offset 0: version 2, want 1"):
        open_spools(tmp_path)


def test_a_spool_that_is_a_file_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "spool" / NODE).mkdir(parents=True)
    (tmp_path / "spool" / NODE / "00000001.spool").mkdir()
    with pytest.raises(StorageError, match=r"spool .*ing1: Is a directory: .*00000001.spool"):
        open_spools(tmp_path)


def test_draining_a_large_spool_takes_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spooled, "FILE_BYTES", 8 << 20)
    spools = open_spools(tmp_path, QuickDisk())
    for number in range(100):
        spools.of(NODE).append(make(number, rows=20_000)[0])
        spools.flush(0)
    assert spools.bytes > 32 << 20
    tracemalloc.start()
    try:
        spools = open_spools(tmp_path, QuickDisk())
        assert spools.of(NODE).records == 100
        count = 0
        while entry := spools.of(NODE).next():
            count += 1
            done([entry])
            spools.tick(0)
            del entry
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (count, spools.bytes) == (100, 0)
    assert peak < 4 << 20


def test_a_spool_says_by_which_ring_the_oldest_batch_was_split(tmp_path: Path) -> None:
    spools = open_spools(tmp_path)
    assert spools.of(NODE).oldest_epoch is None
    fill(spools, range(2))
    batch, _ = make(2)
    epoch = batch.epoch
    assert spools.oldest_epochs() == {NODE: epoch}
    spools = open_spools(tmp_path)
    assert spools.oldest_epochs() == {NODE: epoch}
    batch.epoch = epoch + 1
    spools.of(NODE).append(batch)
    spools.flush(clock.monotonic_s())
    entries = [spools.of(NODE).next(), spools.of(NODE).next()]
    for entry in entries:
        assert entry is not None
        entry.release()
    spools.tick(clock.monotonic_s())
    assert spools.oldest_epochs() == {NODE: epoch + 1}
    spools.of(NODE).damaged = 1
    assert spools.of(NODE).oldest_epoch == 0
