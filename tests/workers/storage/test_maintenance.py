"""What becomes due by time alone: deletes after a while, late rows after an hour of quiet; and failing outputs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common import clock
from common.errors import StorageError
from common.selector import Selector
from tests.workers.storage.disks import QuickDisk
from tests.workers.storage.support import batch_of, key, open_store, rows_of
from workers.storage import compaction_plan, maintenance
from workers.storage.deletes import DeleteRecord
from workers.storage.layout import DamagedError
from workers.storage.store import Store


class Hand:
    """A store whose maintenance is done by hand, and whose clock only goes on when told."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        monkeypatch.setattr(clock, "monotonic_s", lambda: self.now_s)
        self.store: Store = open_store(directory, QuickDisk())

    def put(self, *times: int) -> None:
        self.store.append([batch_of(rows_of(key("a"), times))])
        self.store.seal()

    def step(self) -> bool:
        return self.store._maintenance.step(lambda: None)

    def files(self) -> int:
        return len(list((self.store._layout.directory / "segments").iterdir()))


@pytest.fixture
def hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hand]:
    made = Hand(tmp_path / "node", monkeypatch)
    with made.store._maintainer.exclusive():
        yield made
    made.store.close()


def test_a_delete_is_applied_to_what_is_on_disk_only_when_it_has_stood_for_a_while(hand: Hand) -> None:
    hand.put(1, 2, 3)
    hand.store.delete(DeleteRecord(1, Selector("a"), 2, 2))
    assert not hand.step()
    assert hand.store.status()["deletes_unapplied"] == 1
    hand.now_s += maintenance.DELETES_WAIT_S - 1
    hand.store.delete(DeleteRecord(2, Selector("a"), 3, 3))
    assert not hand.step(), "the second one does not begin the wait anew, nor end it"
    hand.now_s += 1
    assert hand.step()
    assert not hand.step()
    assert hand.store.status()["deletes_unapplied"] == 0
    assert hand.store.status()["segment_points"] == 1


def test_a_segment_in_which_a_delete_hides_nothing_is_left_alone(hand: Hand) -> None:
    hand.put(1, 2, 3)
    hand.store.delete(DeleteRecord(1, Selector("a"), 4, 9))
    hand.store.delete(DeleteRecord(2, Selector("b"), 1, 9))
    hand.now_s += maintenance.DELETES_WAIT_S
    assert not hand.step()
    assert hand.store.status()["deletes_unapplied"] == 0


def test_late_rows_of_a_period_that_has_ended_are_merged_after_an_hour_without_more(hand: Hand) -> None:
    hand.put(*range(100))
    hand.step()
    hand.now_s += compaction_plan.QUIET_S - 1
    hand.put(5, 7)
    hand.put(*range(50, 60))
    assert not hand.step()
    hand.now_s += 1
    assert not hand.step(), "the last rows have just come"
    hand.now_s += compaction_plan.QUIET_S
    assert hand.step()
    assert (hand.files(), hand.store.status()["segment_points"]) == (1, 100)


def test_outputs_that_cannot_be_opened_are_removed_and_the_inputs_stay(
    hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    for begin in range(4):
        hand.put(begin)

    def fail(*_: Any) -> None:
        raise DamagedError("has CRC 0, want 1")

    with monkeypatch.context() as patch:
        patch.setattr(maintenance, "open_segment", fail)
        with pytest.raises(StorageError, match="has CRC"):
            hand.step()
    assert hand.files() == 4
    assert hand.step()
    assert (hand.files(), hand.store.status()["segment_points"]) == (1, 4)
