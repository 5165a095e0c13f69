"""What a node lacks: said before it can be forgotten, whatever cuts that short, and taken back only at the end."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from common.errors import RingStoreError, StorageError
from common.ringstore import FileStore, Mark
from tests.disks import QuickDisk, Step, SteppingDisk
from workers.storage import layout
from workers.storage.behind import Behind, note_loss
from workers.storage.layout import Layout

PARTITIONS = 8
ALL = np.ones(PARTITIONS, np.bool_)
MARK = Mark("ing1", "ing1")


class Killed(BaseException):
    """The process ends here."""


class MortalDisk(SteppingDisk):
    """Ends the process when the step of this number is due, in one count with others."""

    def __init__(self, count: "Countdown") -> None:
        super().__init__()
        self.count = count

    def before(self, step: Step, path: Path) -> None:
        self.count.step()


class Countdown:
    def __init__(self, left: int) -> None:
        self.left = left

    def step(self) -> None:
        if self.left == 0:
            raise Killed
        self.left -= 1


class Rings(FileStore):
    """A ring store that can be away, and where a process can end between two calls."""

    away = False
    count = Countdown(1 << 30)

    def _call(self) -> None:
        self.count.step()
        if self.away:
            raise RingStoreError("away")

    def put_mark(self, mark: Mark) -> None:
        self._call()
        super().put_mark(mark)

    def remove_mark(self, mark: Mark) -> None:
        self._call()
        super().remove_mark(mark)

    def claim(self, node: str, store_id: str) -> str | None:
        self._call()
        return super().claim(node, store_id)


@pytest.fixture
def rings(tmp_path: Path) -> Rings:
    return Rings(tmp_path / "ring.json", QuickDisk())


def place_at(directory: Path, disk: QuickDisk | None = None) -> Layout:
    return layout.open_directory(directory, "c1", "ing1", disk or QuickDisk())


def begun(place: Layout, rings: FileStore) -> Behind:
    found = Behind(place, "ing1", PARTITIONS, rings)
    place.watchers.append(found.hit_by)
    found.begin()
    return found


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Layout]:
    made = place_at(tmp_path / "data")
    yield made
    made.lock.release()


def again(place: Layout, rings: Rings) -> tuple[Layout, Behind]:
    """The same directory after a restart."""
    place.lock.release()
    opened = place_at(place.directory)
    return opened, begun(opened, rings)


def test_at_its_first_start_a_node_claims_its_store_and_lacks_nothing(place: Layout, rings: Rings) -> None:
    found = begun(place, rings)
    assert rings.store_ids() == {"ing1": place.store_id.hex()}
    assert (found.status(), rings.marks()) == (None, frozenset())
    _, found = again(place, rings)
    assert (found.status(), rings.marks()) == (None, frozenset())


def until_done(attempt: Callable[[Countdown], None]) -> Iterator[bool]:
    """Do something again and again, ended at each of its steps in turn; whether it came to its end."""
    for steps in range(1000):
        count = Countdown(steps)
        try:
            attempt(count)
        except Killed:
            yield False
            continue
        assert steps > 3, "steps that were never counted"
        yield True
        return
    raise AssertionError("no end")


def test_a_lost_disk_is_known_whatever_step_the_first_start_after_it_ends_at(tmp_path: Path) -> None:
    steps = 0
    directory = tmp_path

    def start(count: Countdown) -> None:
        nonlocal directory, steps
        directory, steps = tmp_path / str(steps), steps + 1
        rings = Rings(directory / "ring.json", QuickDisk())
        rings.claim("ing1", "ab" * 16)
        place = place_at(directory / "data")
        mortal = Layout(place.directory, place.store_id, place.lock, MortalDisk(count))
        rings.count = count
        try:
            begun(mortal, rings)
        finally:
            place.lock.release()

    for _ in until_done(start):
        rings = Rings(directory / "ring.json", QuickDisk())
        place = place_at(directory / "data")
        found = begun(place, rings)
        assert found.partitions.all() and rings.marks() == {MARK}
        assert rings.store_ids() == {"ing1": place.store_id.hex()}
        assert "is gone" in found.reasons[0]
        place.lock.release()


def test_a_damaged_file_is_still_in_its_place_or_the_loss_is_known(tmp_path: Path) -> None:
    steps = 0
    place, path = None, tmp_path

    def set_aside(count: Countdown) -> None:
        nonlocal place, path, steps
        if place is not None:
            place.lock.release()
        place, steps = place_at(tmp_path / str(steps) / "data"), steps + 1
        rings = Rings(place.directory.parent / "ring.json", QuickDisk())
        begun(place, rings)
        path = place.segment_path(1)
        path.write_bytes(b"damaged")
        mortal = Layout(place.directory, place.store_id, place.lock, MortalDisk(count), place.watchers)
        mortal_behind = Behind(mortal, "ing1", PARTITIONS, rings)
        mortal.watchers[:] = [mortal_behind.hit_by]
        mortal.set_aside_file(path, {"file": path.name, "reason": "because"})

    for done in until_done(set_aside):
        assert place is not None
        rings = Rings(place.directory.parent / "ring.json", QuickDisk())
        found = Behind(place, "ing1", PARTITIONS, rings)
        assert path.exists() or found.partitions.all()
        if done:
            assert not path.exists() and found.reasons == [f"{path.name}: because"]
    assert place is not None
    place.lock.release()


def test_what_was_set_aside_before_is_no_new_loss(place: Layout, rings: Rings) -> None:
    found = begun(place, rings)
    for _ in range(2):
        place.set_aside_bytes("wal-0000000000000001-at-9.bytes", b"?", {"file": "wal-1.log", "reason": "torn"})
    assert found.hits == 1
    found.clear(range(PARTITIONS))
    place.set_aside_bytes("wal-0000000000000001-at-9.bytes", b"?", {"file": "wal-1.log", "reason": "torn"})
    assert not found.partitions.any()


def test_a_damaged_delete_record_costs_no_points(place: Layout, rings: Rings) -> None:
    found = begun(place, rings)
    place.note_missing("del-0000000000000003.mtd", {"file": "del-0000000000000003.mtd", "reason": "because"})
    assert not found.partitions.any()


def test_partitions_are_cleared_one_by_one_and_file_and_mark_go_with_the_last(place: Layout, rings: Rings) -> None:
    found = begun(place, rings)
    found.hit("because", [1, 2, 5])
    found.settle(ALL)
    assert rings.marks() == {MARK}
    assert found.clear([0, 1]) == [1]
    found.settle(ALL)
    place, found = again(place, rings)
    assert np.flatnonzero(found.partitions).tolist() == [2, 5] and found.reasons == ["because"]
    found.clear([2])
    found.clear([5])
    assert (place.directory / layout.BEHIND).exists() and rings.marks() == {MARK}
    found.settle(ALL)
    assert not (place.directory / layout.BEHIND).exists() and rings.marks() == frozenset()
    assert again(place, rings)[1].status() is None


def test_a_mark_that_outlived_its_file_goes(place: Layout, rings: Rings) -> None:
    found = begun(place, rings)
    rings.put_mark(MARK)
    found.settle(ALL)
    assert rings.marks() == frozenset()


def test_of_partitions_that_it_takes_no_points_of_a_node_is_not_behind(place: Layout, rings: Rings) -> None:
    found = begun(place, rings)
    found.hit("because", None)
    written = np.arange(PARTITIONS) == 3
    found.settle(written)
    assert found.partitions.all()
    found.clear([3])
    found.settle(written)
    assert not found.partitions.any() and rings.marks() == frozenset()


def test_while_the_ring_store_is_away_reads_are_refused_and_the_mark_follows(place: Layout, rings: Rings) -> None:
    found = begun(place, rings)
    rings.away = True
    found.hit("because", [1])
    with pytest.raises(RingStoreError):
        found.settle(ALL)
    assert found.partitions[1] and (place.directory / layout.BEHIND).exists() and rings.marks() == frozenset()
    rings.away = False
    found.settle(ALL)
    assert rings.marks() == {MARK}
    rings.away = True
    found.clear([1])
    with pytest.raises(RingStoreError):
        found.settle(ALL)
    rings.away = False
    found.settle(ALL)
    assert rings.marks() == frozenset()


def test_what_the_ring_store_lost_is_put_there_again(place: Layout, rings: Rings) -> None:
    found = begun(place, rings)
    found.hit("because", [1])
    found.settle(ALL)
    rings.remove_mark(MARK)
    (rings.path.with_name("ring.json.stores") / "ing1").unlink()
    found.settle(ALL)
    found.claim_again()
    assert rings.marks() == {MARK} and rings.store_ids() == {"ing1": place.store_id.hex()}


def test_a_mark_that_comes_back_with_an_earlier_ring_store_goes_again(place: Layout, rings: Rings) -> None:
    found = begun(place, rings)
    found.settle(ALL)
    rings.put_mark(MARK)
    found.claim_again()
    found.settle(ALL)
    assert rings.marks() == frozenset()


def test_hit_while_the_mark_is_being_removed_it_is_marked_again(place: Layout, rings: Rings) -> None:
    found = begun(place, rings)
    found.hit("because", [1])
    found.settle(ALL)
    found.clear([1])
    removed = rings.remove_mark

    def hit_meanwhile(mark: Mark) -> None:
        found.hit("again", [2])
        removed(mark)

    rings.remove_mark = hit_meanwhile  # type: ignore[method-assign]
    found.settle(ALL)
    assert rings.marks() == frozenset()
    found.settle(ALL)
    assert rings.marks() == {MARK}


def test_a_node_does_not_begin_where_its_claim_cannot_be_stored(tmp_path: Path, rings: Rings) -> None:
    rings.away = True
    place = place_at(tmp_path / "data")
    with pytest.raises(RingStoreError):
        begun(place, rings)
    place.lock.release()


def test_a_file_that_cannot_be_read_says_that_everything_may_be_lacking(place: Layout, rings: Rings) -> None:
    for data in (b"?", b'{"format":1,"partitions":[99]}', b"\xff"):
        (place.directory / layout.BEHIND).write_bytes(data)
        assert Behind(place, "ing1", PARTITIONS, rings).partitions.all()


def test_what_is_set_aside_while_the_node_is_stopped_is_known_at_its_start(place: Layout, rings: Rings) -> None:
    begun(place, rings).hit("because", [1])
    note_loss(place, {"file": "seg-1.mts", "reason": "short"})
    note_loss(place, {"file": "del-1.mtd", "reason": "short"})
    found = begun(place, rings)
    assert found.partitions.all() and found.reasons == ["because", "seg-1.mts: short"]


def test_a_file_of_a_newer_format_is_refused(place: Layout, rings: Rings) -> None:
    (place.directory / layout.BEHIND).write_bytes(b'{"format":2}')
    with pytest.raises(StorageError, match="BEHIND has format version 2, this program reads up to 1"):
        Behind(place, "ing1", PARTITIONS, rings)
