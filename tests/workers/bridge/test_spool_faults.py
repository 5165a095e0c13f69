"""Spools on disks that fail, forget or flip bits: what was released is there, and a mark says so."""

import errno
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common import clock
from common.errors import StorageError
from common.files import Disk
from common.points import PointBatch
from tests.disks import FailingDisk, FullDisk, Platter, QuickDisk, RecordingDisk, Step
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
from workers.bridge import spoolrecord
from workers.bridge.batch import Message
from workers.bridge.spool import READ_TRIES, RETRY_S, Entry, Spools

NODE = "ing1"
RECORD = len(spoolrecord.KIND.pack(spoolrecord.encode(make(1)[0], clock.wall_ns()), 1))  # bytes of each, below 128


@pytest.fixture(autouse=True)
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that only moves when told."""
    time = [100.0]
    monkeypatch.setattr(clock, "monotonic_s", lambda: time[0])
    return time


def write(top: Path, numbers: range) -> None:
    spools = open_spools(top, QuickDisk())
    for number in numbers:
        spools.of(NODE).append(make(number)[0])
    spools.flush(clock.monotonic_s())


def copy(top: Path, to: Path) -> Path:
    shutil.copytree(top, to)
    return to


# Damage


def test_a_tail_torn_at_any_byte_is_cut_off_and_everything_before_it_is_there(tmp_path: Path) -> None:
    write(tmp_path, range(3))
    (path,) = files(tmp_path, NODE)
    whole = path.read_bytes()
    for size in range(len(whole)):
        for zeros in (0, 100):  # the length got to the disk, the bytes did not
            if size % RECORD + zeros == RECORD:
                continue  # as long as a whole record, and so damage
            path.write_bytes(whole[:size] + bytes(zeros))
            kept = size // RECORD
            assert left(tmp_path) == ({NODE: [said_of(n) for n in range(kept)]} if kept else {})
            assert open_spools(tmp_path, QuickDisk()).of(NODE).damaged == 0
            assert [path.stat().st_size for path in files(tmp_path, NODE)] == [kept * RECORD][:kept], (size, zeros)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << at % 8
    path.write_bytes(data)


def test_a_bit_that_flips_anywhere_costs_its_record_which_is_set_aside_and_keeps_the_mark(
    tmp_path: Path, now: list[float]
) -> None:
    write(tmp_path, range(4))
    whole = {path: path.read_bytes() for path in files(tmp_path, NODE)}
    assert [len(data) for data in whole.values()] == [3 * RECORD, RECORD], "an older file and the newest"
    for (path, data), number in zip(whole.items(), (0, 3), strict=True):
        for at in range(len(data)):
            for each, intact in whole.items():
                each.write_bytes(intact)
            flip(path, at)
            check_damaged(tmp_path, path, at, number, now)


def check_damaged(top: Path, path: Path, at: int, number: int, now: list[float]) -> None:
    """A file, the first record of which has that number, is damaged at an offset."""
    data = path.read_bytes()
    hit = at // RECORD
    spools = open_spools(top, QuickDisk())
    spool = spools.of(NODE)
    (aside,) = files(top, NODE, ".damaged")
    assert aside.name == f"{path.stem}-at-{hit * RECORD}.damaged"
    assert aside.read_bytes() == data[hit * RECORD : (hit + 1) * RECORD]
    assert (spool.damaged, spool.records) == (1, 3)
    entries = take_all(spools, NODE)
    assert [said(entry.batch) for entry in entries] == [said_of(n) for n in range(4) if n != number + hit]
    done(entries)
    spools.tick(now[0])
    assert (files(top, NODE), spool.is_empty, marked(top)) == ([], True, {NODE})
    assert open_spools(top, QuickDisk()).of(NODE).damaged == 1
    aside.unlink()
    now[0] += RETRY_S
    spools.tick(now[0])
    assert (spool.damaged, marked(top)) == (0, set())


def test_records_that_rot_while_the_bridge_runs_are_set_aside_before_their_file_goes(tmp_path: Path) -> None:
    write(tmp_path, range(4))
    spools = open_spools(tmp_path, QuickDisk())
    path = files(tmp_path, NODE)[0]
    flip(path, 300)
    entries = take_all(spools, NODE)
    assert [said(entry.batch) for entry in entries] == [said_of(n) for n in (0, 2, 3)]
    assert spools.of(NODE).damaged == 1
    done(entries)
    spools.tick(0)
    (aside,) = files(tmp_path, NODE, ".damaged")
    assert aside.name == f"{path.stem}-at-{RECORD}.damaged"
    assert (len(aside.read_bytes()), marked(tmp_path), spools.of(NODE).is_empty) == (RECORD, {NODE}, True)


def test_damage_that_cannot_be_copied_keeps_its_file_until_it_can(tmp_path: Path, now: list[float]) -> None:
    write(tmp_path, range(4))
    path = files(tmp_path, NODE)[0]
    flip(path, 300)
    full = FullDisk(0, 2)
    spools = open_spools(tmp_path, full)
    assert (spools.of(NODE).damaged, len(full.refused)) == (1, 2), "the copy, and the mark, which was there"
    done(take_all(spools, NODE))
    full._lasting += 1
    spools.tick(now[0])
    now[0] += RETRY_S
    spools.tick(now[0])
    assert (path.exists(), spools.of(NODE).error) == (True, "cannot be put away: No space left on device")
    now[0] += RETRY_S
    spools.tick(now[0])
    assert (path.exists(), len(files(tmp_path, NODE, ".damaged")), marked(tmp_path)) == (False, 1, {NODE})


# Bytes that cannot be read


class BadPage:
    """os.pread of this process: fails `times` times where a page is concerned."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
        self.left = times
        self._real = os.pread
        monkeypatch.setattr(os, "pread", self._pread)

    def _pread(self, descriptor: int, length: int, at: int) -> bytes:
        if self.left and at < RECORD + 50 < at + length:
            self.left -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return self._real(descriptor, length, at)


def test_what_the_disk_fails_to_read_for_a_while_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now: list[float]
) -> None:
    write(tmp_path, range(4))
    spools = open_spools(tmp_path, QuickDisk())
    BadPage(monkeypatch, 2 * (READ_TRIES - 1))
    found: list[Entry] = []
    tries = 0
    while len(found) < 4:
        tries += 1
        found += take_all(spools, NODE)
        assert spools.of(NODE).error == ("" if len(found) == 4 else "cannot be read: Input/output error")
        assert spools.of(NODE).next() is None, "not before a second has passed"
        now[0] += RETRY_S
        spools.flush(now[0])
    assert ([said(entry.batch) for entry in found], tries) == ([said_of(n) for n in range(4)], READ_TRIES)
    assert spools.of(NODE).damaged == 0


def test_what_the_disk_never_reads_again_counts_as_damaged_after_some_tries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now: list[float]
) -> None:
    write(tmp_path, range(4))
    spools = open_spools(tmp_path, QuickDisk())
    bad = BadPage(monkeypatch, 1 << 30)
    found: list[Entry] = []
    for _ in range(READ_TRIES + 1):
        assert (found, spools.of(NODE).damaged) == ([], 0)
        found += take_all(spools, NODE)
        now[0] += RETRY_S
        spools.flush(now[0])
    bad.left = 0
    found += take_all(spools, NODE)
    assert [said(entry.batch) for entry in found] == [said_of(3)], "the three before share the page"
    assert (spools.of(NODE).damaged, spools.of(NODE).error) == (1, "")


@pytest.mark.parametrize("readable_again", [0, 1])
def test_what_the_disk_fails_to_read_at_the_start_is_neither_cut_off_nor_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, readable_again: int
) -> None:
    write(tmp_path, range(2))
    (path,) = files(tmp_path, NODE)
    whole = path.read_bytes()
    real, unread = os.pread, [0]

    def pread(descriptor: int, length: int, at: int) -> bytes:
        if at + length > unread[0]:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(descriptor, length, at)

    monkeypatch.setattr(os, "pread", pread)
    for _ in range(1 + readable_again):
        spools = open_spools(tmp_path, QuickDisk())
        assert (path.read_bytes(), spools.nodes(), marked(tmp_path)) == (whole, [NODE], {NODE})
    unread[0] = 1 << 30
    if readable_again:
        spools = open_spools(tmp_path, QuickDisk())
    entries = take_all(spools, NODE)
    assert [said(entry.batch) for entry in entries] == [said_of(n) for n in range(2)]
    done(entries)
    spools.tick(0)
    assert (files(tmp_path, NODE), spools.of(NODE).records, spools.of(NODE).damaged) == ([], 0, 0)
    assert marked(tmp_path) == set()


# Whole lives, cut short or on a failing disk


class World:
    """A bridge's spools and who waits for them: filled, stopped, drained in part, filled again, drained whole.

    There is one more from before, with a damaged record and a torn tail.
    """

    def __init__(self, top: Path, disk: Disk, now: list[float]) -> None:
        self.top = top
        self.disk = disk
        self.now = now
        self.spools: Spools | None = None
        self.messages: dict[tuple[str, int], Message] = {}
        self.done: set[tuple[str, int]] = set()

    @staticmethod
    def prepare(top: Path) -> None:
        """What is there before."""
        write(top, range(100, 104))
        (top / "spool" / NODE).rename(top / "spool" / "ing3")
        ring_store(top).put_mark(mark("ing3"))
        ring_store(top).remove_mark(mark(NODE))
        older, newest = files(top, "ing3")
        flip(older, RECORD + 40)
        with newest.open("ab") as file:
            file.write(older.read_bytes()[:50])

    def needed(self) -> set[tuple[str, int]]:
        """Node and number of what was released and is not delivered: it must be there."""
        return {each for each, message in self.messages.items() if not message.waiting} - self.done

    def acts(self) -> list[Callable[[], None]]:
        """The life."""
        fill = [lambda n=n, node=node: self.fill(node, n) for n in range(4) for node in (NODE, "ing2")[: 1 + n % 2]]
        return [
            self.open, *fill, lambda: self.deliver(NODE, 1), self.open, lambda: self.deliver(NODE, 2),
            lambda: self.fill(NODE, 8, 9, 10), lambda: self.deliver("ing2", 9), lambda: self.fill("ing2", 11),
            self.finish,
        ]  # fmt: skip

    def open(self) -> None:
        """Start: again and again, as long as the disk does not let it."""
        for _ in range(5):
            try:
                self.spools = open_spools(self.top, self.disk)
                return
            except StorageError:
                self.now[0] += RETRY_S
        raise AssertionError("it does not start")

    def fill(self, node: str, *numbers: int) -> None:
        """Hand batches over and wait until they are released."""
        assert self.spools is not None
        while not self.spools.can_take(node):
            self.turn()
        for number in numbers:
            batch, self.messages[node, number] = make(number)
            self.spools.of(node).append(batch)
        while self.spools.gathered_bytes:
            self.turn()

    def deliver(self, node: str, count: int) -> None:
        """Drain so many records, or what there is."""
        assert self.spools is not None
        for _ in range(count):
            while (entry := self.spools.of(node).next()) is None:
                if self.spools.of(node).is_drained or not self.spools.of(node).records:
                    return
                self.turn()
            if node != "ing3":
                self.done.add((node, number_in(entry)))
            done([entry])
            self.turn()

    def finish(self) -> None:
        """Drain everything and wait until it is gone."""
        assert self.spools is not None
        for _ in range(20):
            for node in self.spools.nodes():
                self.deliver(node, 99)
            self.turn()

    def turn(self) -> None:
        """A turn of the loop, a second later."""
        assert self.spools is not None
        self.now[0] += RETRY_S
        self.spools.flush(self.now[0])
        self.spools.tick(self.now[0])


def number_in(entry: Entry) -> int:
    """The number that a batch was made from."""
    return int(PointBatch.decode(entry.batch.body).times[0])


EVERYTHING = {said_of(n) for n in (*range(12), *range(100, 104))}


def check_left(top: Path, needed: set[tuple[str, int]], about: object) -> None:
    """What a start finds at `top`: all that is needed, nothing that never was; marks for all of it, and the damage."""
    marks = marked(top)
    found = left(top)
    assert found.keys() <= marks, about
    for node, number in needed:
        assert said_of(number) in found.get(node, []), (node, number, about)
    assert {each for saids in found.values() for each in saids} <= EVERYTHING, about
    assert len(files(top, "ing3", ".damaged")) == 1, about
    assert "ing3" in marks


def check_finished(world: World) -> None:
    """Everything was delivered, and nothing is left but what was damaged."""
    assert world.done == set(world.messages)
    assert left(world.top) == {}
    assert (files(world.top, NODE), files(world.top, "ing2"), marked(world.top)) == ([], [], {"ing3"})
    assert len(files(world.top, "ing3", ".damaged")) == 1


FAILING: list[Callable[[int], Any]] = [
    lambda number: FailingDisk(number),
    lambda number: FullDisk(number, 1),
    lambda number: FullDisk(number, 4),
]


@pytest.mark.parametrize("make_disk", FAILING, ids=["EIO once", "ENOSPC once", "ENOSPC for a while"])
def test_whatever_step_fails_what_was_released_is_there_and_all_goes_on(
    tmp_path: Path, now: list[float], make_disk: Callable[[int], Any]
) -> None:
    World.prepare(tmp_path / "before")
    number = 0
    while True:
        top = copy(tmp_path / "before", tmp_path / f"{number}")
        disk = make_disk(number)
        world = World(top, disk, now)
        failures = 0
        for act in world.acts():
            act()
            if failures != len(failed_steps(disk)):
                failures = len(failed_steps(disk))
                check_left(copy(top, tmp_path / "copy"), world.needed(), disk)
                shutil.rmtree(tmp_path / "copy")
        check_finished(world)
        shutil.rmtree(top)
        number += 1
        if not failures:
            break
    assert number > 60, "steps of a life"


def failed_steps(disk: Any) -> list[Any]:
    """The steps that a disk failed."""
    return disk.refused if isinstance(disk, FullDisk) else [disk.failed] * (disk.failed is not None)


class WatchingDisk(RecordingDisk):
    """Notes with each event what was needed when the next one was due."""

    def __init__(self) -> None:
        super().__init__()
        self.world: World | None = None
        self.needed: list[set[tuple[str, int]]] = []

    def before(self, step: Step, path: Path) -> None:
        assert self.world is not None
        self.needed.append(self.world.needed())


@pytest.mark.parametrize("torn", [None, 1, 2], ids=["all forgotten", "some of it there", "other parts there"])
def test_a_power_cut_after_any_step_loses_nothing_that_was_released(
    tmp_path: Path, now: list[float], torn: int | None
) -> None:
    top = tmp_path / "top"
    World.prepare(top)
    platter = Platter(top)
    platter.adopt()
    disk = WatchingDisk()
    disk.world = World(top, disk, now)
    for act in disk.world.acts():
        act()
    check_finished(disk.world)
    needed = [*disk.needed[1:], disk.world.needed()]
    assert max(map(len, needed)) == 5
    for number, event in enumerate(disk.events):
        platter.feed(event)
        cut = tmp_path / f"cut{number}"
        platter.save(cut, None if torn is None else random.Random(f"{torn} {number}"))
        check_left(cut, needed[number], f"power cut after step {number}, {event.step}")
        shutil.rmtree(cut)
