"""Readers that ask all the time while a store appends, seals, deletes and compacts: every answer is of one moment."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common import figures
from common.match import Match
from common.protocol import GroupsRequest, Limits
from common.selector import Selector
from tests.disks import QuickDisk
from tests.workers.storage.support import EVERYWHERE, batch_of, key, open_store
from workers.storage import aggregate, groups
from workers.storage.store import DeleteRecord, Store
from workers.storage.work import Cancel

SERIES = [key("a"), key("a", room="1"), key("a", room="2")]
GROUPS, ROWS = 150, 40  # batches, and rows of each series in one


class Moment(NamedTuple):
    """What is there of each series. begun: batches that may be there; done: that are; the same of deleted ones."""

    begun: int = 0
    done: int = 0
    delete_begun: int = 0
    deleted: int = 0


class Readers:
    """Threads that compare what they are told with what was there before they asked, and after."""

    def __init__(self, store: Store) -> None:
        self.now = Moment()
        self.wrong: list[str] = []
        self.asked = 0
        self._store = store
        self._ending = False
        asks = (self._whole, self._each, self._all, self._groups)
        self._threads = [threading.Thread(target=self._run, args=(ask,)) for ask in asks]
        for each in self._threads:
            each.start()

    def stop(self) -> None:
        self._ending = True
        for each in self._threads:
            each.join()

    def _run(self, ask: Callable[[], list[int]]) -> None:
        while not self._ending and not self.wrong:
            before = self.now
            try:
                counts = ask()
            except Exception as error:
                self.wrong.append(repr(error))
                raise
            after = self.now
            least, most = (before.done - after.delete_begun) * ROWS, (after.begun - before.deleted) * ROWS
            if not all(least <= count <= most and count % ROWS == 0 for count in counts):
                self.wrong.append(f"{ask.__name__}: {counts}, want {least} to {most} by {ROWS}")
            self.asked += 1

    def _whole(self) -> list[int]:
        reply = self._store.aggregate("a", "temperature", {}, EVERYWHERE, None, None)
        assert reply.sum_hi == reply.count
        return [reply.count]

    def _each(self) -> list[int]:
        columns = aggregate.values_of(self._store.by_series(Selector("a"), EVERYWHERE, None, None).rows)
        assert (columns.sum_hi == columns.counts).all()
        return [int(count) for count in columns.counts]

    def _groups(self) -> list[int]:
        wants = ["sum", "steps", "values"]
        request = GroupsRequest(EVERYWHERE, Match(), None, None, [], ["series"], wants, Limits(9, 10**9, 9, 9))
        reply = groups.answer(self._store, request, EVERYWHERE, Cancel())
        columns = figures.unpack(reply.columns, tuple(reply.columns))
        for name, less in (("sum_hi", 0), ("value_counts", 0), ("steps", 1)):
            assert (columns[name] == columns["count"] - less).all(), name
        return [int(count) for count in columns["count"]]

    def _all(self) -> list[int]:
        found = {each: np.empty(0, np.int64) for each in SERIES}
        for each, times, _ in self._store.samples(Selector("a"), EVERYWHERE, None, None):
            found[each] = np.append(found[each], times)
        assert all((np.diff(times) > 0).all() for times in found.values())
        return [len(times) for times in found.values()]


def test_readers_see_every_batch_and_every_delete_once_and_as_a_whole(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", QuickDisk(), head_rows=1000, compaction_share=1.0)
    readers = Readers(store)
    try:
        for group in range(GROUPS):
            times = range(group * ROWS, (group + 1) * ROWS)
            now = readers.now = readers.now._replace(begun=group + 1)
            store.append([batch_of([(each, time, 1.0) for each in SERIES for time in times], 1 << 40)])
            now = readers.now = now._replace(done=group + 1)
            if group % 30 == 29:
                readers.now = now._replace(delete_begun=group - 10)
                store.delete(DeleteRecord(group, Selector("a"), 0, (group - 10) * ROWS - 1))
                readers.now = readers.now._replace(deleted=group - 10)
            if group % 50 == 49:
                store.compact()
    finally:
        readers.stop()
        store.close()
    assert readers.wrong == []
    assert readers.asked > GROUPS
    assert store._maintenance.compactions > 3
