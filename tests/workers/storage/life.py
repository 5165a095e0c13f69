"""A scripted life of a store, act by act, and what must be there when it ends in the middle of one.

Every act has its effect on the oracle. A life that ends after so many acked acts leaves the oracle's state behind
them, or behind a part of the next act that may be there as a whole: a prefix of the batches of one group, a delete.
"""

import functools
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from common import clock, files, series
from common.protocol import FetchPartitionRequest, FetchReply
from common.selector import Selector
from tests import naive
from tests.disks import QuickDisk
from tests.workers.storage import answers
from tests.workers.storage.support import EVERYWHERE, PARTITIONS, Row, batch_of, key, open_store
from workers.storage import compaction_plan
from workers.storage.exchange import Exchange
from workers.storage.store import DeleteRecord, Store

A, B, C = key("a"), key("a", room="1"), key("b:/", x="")
SERIES = [A, B, C]
MS_NS = 1_000_000
DAY_NS = 86_400 * 1_000_000_000
BEGIN_NS = 20_000 * DAY_NS  # when lives begin
RETENTION_DAYS = 30
LATER_MS = 15 * DAY_NS // MS_NS  # in another period

# What a world replaces.
INSTALLED = [
    (clock, "wall_ns"), (clock, "monotonic_s"),
    (compaction_plan, "SPLIT_ROWS"), (compaction_plan, "SPLIT_ROWS_PER_SERIES"),
]  # fmt: skip


class World:
    """What lives see beside their disk: both clocks, as far as the script has turned them."""

    def __init__(self, days: int) -> None:
        self.days = days

    def install(self) -> None:
        """Let this process see these clocks, split compactions by period however little there is."""
        compaction_plan.SPLIT_ROWS = compaction_plan.SPLIT_ROWS_PER_SERIES = 1  # type: ignore[misc]
        clock.wall_ns = lambda: BEGIN_NS + self.days * DAY_NS
        clock.monotonic_s = lambda: self.days * 86_400.0


@dataclass
class Life:
    """A store being driven. disk: under every store that it opens."""

    directory: Path
    disk: files.Disk
    world: World
    store: Store | None = None

    def open(self) -> Store:
        """Open the store, which is not open."""
        self.store = open_store(self.directory, self.disk, head_rows=1000, retention_days=RETENTION_DAYS)
        return self.store

    @property
    def running(self) -> Store:
        """The store, which is open."""
        assert self.store is not None
        return self.store


class Act(ABC):
    """One thing that is done with a store."""

    @abstractmethod
    def do(self, life: Life) -> None:
        """Do it. When this returns it is acked."""

    def states(self, oracle: naive.PointSet) -> list[naive.PointSet]:
        """What may be there when it is cut short, from nothing done to all done. The oracle is not changed."""
        return [oracle]


class Open(Act):
    """Begin, also again: in an orderly way when a store is open."""

    def do(self, life: Life) -> None:
        if life.store is not None:
            life.store, closing = None, life.store
            closing.close()
        life.open()


class Close(Act):
    """End in an orderly way."""

    def do(self, life: Life) -> None:
        life.running.close()
        life.store = None


class Seal(Act):
    def do(self, life: Life) -> None:
        life.running.seal()


class Compact(Act):
    def do(self, life: Life) -> None:
        life.running.compact()


@dataclass
class Append(Act):
    """One group of batches. born: the delete number that their bridge knew."""

    batches: Sequence[Sequence[Row]]
    born: int = 1 << 40

    def do(self, life: Life) -> None:
        life.running.append([batch_of(rows, self.born) for rows in self.batches])

    def states(self, oracle: naive.PointSet) -> list[naive.PointSet]:
        found = [oracle]
        for rows in self.batches:
            found.append(found[-1].copy())
            for row in rows:
                found[-1].add(*row, self.born)
        return found


@dataclass
class Delete(Act):
    """A delete record, of the series that a selector names."""

    number: int
    selector: Selector
    first_ms: int
    last_ms: int

    def do(self, life: Life) -> None:
        begin, end = (BEGIN_NS + at * MS_NS for at in (self.first_ms, self.last_ms))
        life.running.delete(DeleteRecord(self.number, self.selector, begin, end))

    def states(self, oracle: naive.PointSet) -> list[naive.PointSet]:
        deleted = oracle.copy()
        begin, end = (BEGIN_NS + at * MS_NS for at in (self.first_ms, self.last_ms))
        deleted.delete(self.number, lambda each: self.selector.matches(series.parse_key(each)), begin, end)
        return [oracle, deleted]


@functools.cache
def replies_of(blocks: tuple[Row, ...], others: tuple[Row, ...]) -> list[FetchReply]:
    """What another store hands out, some of it in blocks, the rest as rows."""
    with tempfile.TemporaryDirectory() as directory:
        store = open_store(Path(directory) / "other", QuickDisk(), retention_days=0)
        try:
            store.append([batch_of(blocks)])
            store.seal()
            store.append([batch_of(others)])
            exchange = Exchange(store, lambda: EVERYWHERE)
            return [exchange.fetch_partition(FetchPartitionRequest(0, at, 1 << 20)) for at in range(PARTITIONS)]
        finally:
            store.close()


@dataclass
class TakeIn(Act):
    """Points of another store at a delete number: first what comes in blocks, then what comes as rows."""

    number: int
    blocks: Sequence[Row]
    others: Sequence[Row]

    def do(self, life: Life) -> None:
        replies = replies_of(tuple(self.blocks), tuple(self.others))
        taken = life.running.take_in([msgspec.structs.replace(each, delete_number=self.number) for each in replies])
        assert len(taken.segments) == 2

    def states(self, oracle: naive.PointSet) -> list[naive.PointSet]:
        found = [oracle]
        for rows in (self.blocks, self.others):
            found.append(found[-1].copy())
            for row in rows:
                found[-1].add(*row, self.number)
        return found


@dataclass
class Wait(Act):
    """Days go by."""

    days: int

    def do(self, life: Life) -> None:
        life.world.days += self.days
        life.running.tick()

    def states(self, oracle: naive.PointSet) -> list[naive.PointSet]:
        later = oracle.copy()
        later.retain((oracle.cutoff or BEGIN_NS - RETENTION_DAYS * DAY_NS) + self.days * DAY_NS)
        return [oracle, later]


def rows(each: bytes, first: int, count: int, value: float, step: int = 1) -> list[Row]:
    """Points of a series, the first so many ms behind the begin of lives; values are sums of halves."""
    return [(each, BEGIN_NS + (first + at * step) * MS_NS, value + at / 2) for at in range(count)]


SCRIPT: list[Act] = [
    Open(),
    Append([rows(A, 0, 12, 1.0), rows(B, 0, 5, -3.0)]),
    Append([rows(C, 7, 3, 0.5)]),
    Seal(),
    Append([rows(A, 6, 12, 4.0), rows(B, LATER_MS, 5, 2.0)]),  # overlaps, repeats and contradicts what is sealed
    Seal(),
    Compact(),
    Append([rows(A, 15, 8, -8.0), rows(C, 0, 10, 1.0, step=2)]),
    Delete(1, Selector("a"), 4, 9),
    Append([rows(A, 3, 3, -20.0), rows(B, 8, 4, 30.0)], born=0),
    Append([rows(A, 5, 3, -50.0)], born=1),
    TakeIn(1, [*rows(A, 2, 12, 6.0), *rows(C, LATER_MS, 4, 1.0)], [*rows(A, 12, 4, -9.0), *rows(B, 2, 3, 40.0)]),
    Open(),
    Append([rows(B, 3, 4, 9.0), rows(A, LATER_MS, 10, 0.0)], born=1),
    Delete(3, Selector("a", "temperature", {"room": "1"}), 0, 2),
    Compact(),
    Seal(),
    Wait(RETENTION_DAYS + 2),
    Append([rows(A, 0, 3, 70.0), rows(C, LATER_MS + 1, 3, 70.0)]),
    Wait(1),  # what was behind the cutoff may go from the disk
    Seal(),
    Compact(),
    Wait(20),
    Wait(1),  # and now all of it
    Compact(),
    Close(),
]

MORE = Append([rows(A, LATER_MS + 5, 3, 100.0), rows(C, LATER_MS, 2, 7.0)])  # what a store takes after it was cut short

GOING_ON: list[Act] = [Open(), MORE, Seal(), Compact()]


def live(life: Life, script: Sequence[Act], acked: Callable[[int], None]) -> None:
    """Do all acts; `acked` is told how many are done after each."""
    for number, act in enumerate(script, 1):
        act.do(life)
        acked(number)


def day_after(script: Sequence[Act], acked: int) -> int:
    """What day it is after so many acts."""
    return sum(act.days for act in script[:acked] if isinstance(act, Wait))


def states_after(script: Sequence[Act], begin: naive.PointSet | None = None) -> list[list[naive.PointSet]]:
    """By number of acked acts, 0 to all: what may be there. begin: what was there before."""
    oracle = begin or naive.PointSet()
    found = []
    for act in script:
        found.append(act.states(oracle))
        oracle = found[-1][-1]
    return [*found, [oracle]]


def check(life: Life, states: Sequence[naive.PointSet]) -> None:
    """The directory holds one of these states, whole; a store opens it, goes on, and finds all of it again."""
    left = sorted(str(path.relative_to(life.directory)) for path in life.directory.rglob("*"))
    store = life.open()
    try:
        assert not store.status()["damaged"], store.status()["damaged"]
        state = matching(store, states, left)
        MORE.do(life)
        state = MORE.states(state)[-1]
        assert found_in(store) == expected(state), "after appending"
        store.seal()
        assert found_in(store) == expected(state), "after sealing"
        store.compact()
        assert found_in(store) == expected(state), "after compacting"
    finally:
        store.close()
    again = life.open()
    try:
        assert found_in(again) == expected(state), "opened again"
        assert not again.status()["damaged"], again.status()["damaged"]
    finally:
        again.close()
        life.store = None
    assert not half_written(life.directory), half_written(life.directory)


def matching(store: Store, states: Sequence[naive.PointSet], left: Sequence[str]) -> naive.PointSet:
    """The state that the store is in."""
    found = found_in(store)
    for state in reversed(states):
        if found == expected(state):
            return state
    want = expected(states[0])
    wrong = {each: (found.get(each), want.get(each)) for each in SERIES if found.get(each) != want.get(each)}
    raise AssertionError(f"neither of {len(states)} states; got, want at least: {wrong}; files: {left}")


def half_written(directory: Path) -> list[str]:
    return [path.name for path in directory.rglob("*" + files.TEMPORARY)]


def found_in(store: Store) -> answers.Contents:
    """The points of every series, by bits, and nothing else."""
    return answers.contents(store, SERIES)


def expected(state: naive.PointSet) -> answers.Contents:
    return answers.expected(state, SERIES)
