"""Spools against a list, whatever is done in whatever order, on a disk and with a ring store that fail now and then."""

import errno
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from common import clock
from common.errors import RingStoreError
from common.files import write_all
from common.points import PointBatch
from common.ringstore import FileStore, Mark
from tests.disks import QuickDisk
from tests.workers.bridge.spooled import files, make, marked, open_spools, said, said_of
from workers.bridge.batch import Message
from workers.bridge.spool import RETRY_S, Entry, Spools

NODES = ["ing1", "ing2"]
LIMIT = 3000  # about fifteen records


class Disk(QuickDisk):
    """Has no room while it is full; a write that fails has written half."""

    full = False

    def create(self, path: Path, mode: int = 0o644, exclusive: bool = False) -> int:
        self._check()
        return super().create(path, mode, exclusive)

    def write(self, descriptor: int, data: Any) -> None:
        if self.full:
            write_all(descriptor, memoryview(data).cast("B")[: len(data) // 2])
        self._check()
        super().write(descriptor, data)

    def _check(self) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Store(FileStore):
    """Cannot be reached while it is away."""

    away = False

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
            raise RingStoreError("away")


class Kept:
    """What one spool should hold: all batches that ever became durable in it, in order, and which of them are done."""

    def __init__(self) -> None:
        self.gathered: list[tuple[int, Message]] = []
        self.durable: list[int] = []
        self.done: set[int] = set()
        self.next_at = 0  # place in `durable` of what is taken next
        self.taken: list[tuple[int, Entry]] = []


class SpoolsMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.top = Path(tempfile.mkdtemp())
        self.now = 100.0
        self.real = clock.monotonic_s
        clock.monotonic_s = lambda: self.now
        self.disk = Disk()
        self.store = Store(self.top / "ring.json")
        self.kept = {node: Kept() for node in NODES}
        self.number = 0
        self.rest_at = 20  # not before so many batches
        self.open()

    def teardown(self) -> None:
        clock.monotonic_s = self.real
        shutil.rmtree(self.top)

    def open(self) -> None:
        self.spools: Spools = open_spools(self.top, self.disk, LIMIT, self.store)

    @rule(node=st.sampled_from(NODES), count=st.integers(1, 4))
    def append(self, node: str, count: int) -> None:
        for _ in range(count):
            if not self.spools.can_take(node):
                return
            batch, message = make(self.number)
            self.kept[node].gathered.append((self.number, message))
            self.spools.of(node).append(batch)
            self.number += 1

    @rule()
    def flush(self) -> None:
        self.spools.flush(self.now)
        for node, kept in self.kept.items():
            while kept.gathered and not kept.gathered[0][1].waiting:
                kept.durable.append(kept.gathered.pop(0)[0])
                assert node in marked(self.top), "released before its mark"
            if not (self.disk.full or self.store.away or self.spools.error or self.spools.of(node).error):
                assert not kept.gathered

    @rule(node=st.sampled_from(NODES), count=st.integers(1, 4))
    def fill(self, node: str, count: int) -> None:
        self.append(node, count)
        self.flush()

    @rule()
    def tick(self) -> None:
        self.spools.tick(self.now)

    @rule(node=st.sampled_from(NODES), count=st.integers(1, 4))
    def take_some(self, node: str, count: int) -> None:
        for _ in range(count):
            self.take(node)

    def take(self, node: str) -> None:
        kept = self.kept[node]
        entry = self.spools.of(node).next()
        if kept.next_at < len(kept.durable):
            assert entry is not None
            number = kept.durable[kept.next_at]
            assert said(entry.batch) == said_of(number)
            kept.taken.append((number, entry))
            kept.next_at += 1
        else:
            assert entry is None

    @rule(node=st.sampled_from(NODES), at=st.lists(st.integers(0, 5), min_size=1, max_size=4))
    def deliver_some(self, node: str, at: list[int]) -> None:
        for each in at:
            self.deliver(node, each)
        self.spools.tick(self.now)

    def deliver(self, node: str, at: int) -> None:
        kept = self.kept[node]
        if kept.taken:
            number, entry = kept.taken.pop(at % len(kept.taken))
            entry.batch.release.release()
            kept.done.add(number)

    @rule(node=st.sampled_from(NODES))
    def drain(self, node: str) -> None:
        self.deliver_all(node)

    def deliver_all(self, node: str) -> None:
        while self.kept[node].taken or self.kept[node].next_at < len(self.kept[node].durable):
            if not self.kept[node].taken:
                self.take(node)
            self.deliver(node, 0)

    @rule(node=st.sampled_from(NODES))
    def reclaim(self, node: str) -> None:
        kept = self.kept[node]
        back = [PointBatch.decode(batch.body).times[0] for batch in self.spools.of(node).reclaim()]
        assert back == [number for number, _ in kept.gathered]
        assert all(message.waiting for _, message in kept.gathered)
        kept.gathered.clear()

    @rule(full=st.sampled_from([True, False, False]))
    def change_disk(self, full: bool) -> None:
        self.disk.full = full

    @rule(away=st.sampled_from([True, False, False]))
    def change_store(self, away: bool) -> None:
        self.store.away = away

    @rule(seconds=st.sampled_from([0.1, RETRY_S]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def start_again(self) -> None:
        """What was only gathered is lost, and was never released. What was done may come again, but only in files that
        hold something else, or are not removed yet: nothing in the middle is missing.
        """
        self.open()
        for node, kept in self.kept.items():
            kept.gathered.clear()
            kept.taken.clear()
            there = self.spools.of(node).records
            kept.next_at = len(kept.durable) - there
            assert kept.next_at >= 0
            assert set(kept.durable[: kept.next_at]) <= kept.done

    @precondition(lambda self: not self.disk.full and not self.store.away and self.number >= self.rest_at)
    @rule()
    def come_to_rest(self) -> None:
        """Healthy, flushed, delivered and settled: nothing is left."""
        for _ in range(3):
            self.now += RETRY_S
            self.flush()
            for node in NODES:
                self.deliver_all(node)
            self.spools.tick(self.now)
        assert (marked(self.top), self.spools.nodes(), self.spools.bytes) == (set(), [], 0)
        assert [path for node in NODES for path in files(self.top, node)] == []
        assert all(self.spools.can_take(node) for node in NODES)
        self.rest_at = self.number + 20

    @invariant()
    def marks_and_counts_are_right(self) -> None:
        for node, kept in self.kept.items():
            spool = self.spools.of(node)
            if set(kept.durable) - kept.done:
                assert node in marked(self.top), "points are in a spool and no mark says so"
                assert not spool.is_drained
                assert not spool.is_empty
            assert spool.records >= len(set(kept.durable) - kept.done)
            assert spool.bytes == sum(path.stat().st_size for path in files(self.top, node))
            assert spool.damaged == 0
        assert self.spools.bytes + self.spools.gathered_bytes < LIMIT + 1000, "a batch too many at most"


SpoolsMachine.TestCase.settings = hypothesis.settings(max_examples=80, stateful_step_count=60)
TestSpools = SpoolsMachine.TestCase
