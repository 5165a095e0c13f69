"""What may happen between two steps of a thread, made to happen there."""

from collections.abc import Callable
from pathlib import Path

import pytest

from common.selector import Selector
from common.timestamps import MIN_NS
from tests import naive
from tests.disks import QuickDisk
from tests.workers.storage.answers import contents, expected
from tests.workers.storage.support import batch_of, key, open_store, rows_of
from workers.storage.store import DeleteRecord

A = key("a")


class Interrupted:
    """The retention, as the maintenance asks it; at one of the questions something else is done first."""

    def __init__(self, question: int, first: Callable[[], None]) -> None:
        self._left = question
        self._first = first

    @property
    def settled(self) -> int:
        self._left -= 1
        if self._left == 0:
            self._first()
        return MIN_NS


@pytest.mark.parametrize("question", [1, 2, 3, 4])
def test_delete_that_comes_while_a_compaction_is_chosen_touches_nothing_written_after_it(
    tmp_path: Path, question: int
) -> None:
    store = open_store(tmp_path / "s", QuickDisk())
    oracle = naive.PointSet()

    def write(value: float) -> None:
        rows = rows_of(A, range(10), value)
        store.append([batch_of(rows, store.status()["delete_number"])])
        store.seal()
        for row in rows:
            oracle.add(*row)

    def delete_and_write() -> None:
        store.delete(DeleteRecord(1, Selector("a"), 0, 100))
        oracle.delete(1, lambda each: True, 0, 100)
        write(1.0)

    write(3.0)
    write(2.0)
    retention = store._maintenance._retention
    with store._maintainer.exclusive():
        store._maintenance._retention = Interrupted(question, delete_and_write)  # type: ignore[assignment]
        while store._maintenance.step(lambda: None, everything=True):
            pass
        store._maintenance._retention = retention
    assert contents(store, [A]) == expected(oracle, [A])
    store.compact()
    assert contents(store, [A]) == expected(oracle, [A])
    store.close()
