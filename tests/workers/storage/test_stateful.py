"""Random lives of a store, compared with the oracle after every step of them.

`make fuzz` lives more and longer ones, other ones each time.
"""

import itertools
import random
import shutil
import tempfile
import threading
from pathlib import Path

import hypothesis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from common import clock, series
from common.selector import Selector
from tests import naive
from tests.disks import Platter, RecordingDisk, copy_directory
from tests.workers.storage.answers import (
    assert_by_interval,
    assert_by_series,
    assert_m2,
    assert_samples,
    matching,
)
from tests.workers.storage.support import Row, assert_answers, batch_of, key, open_store
from workers.storage import sealer
from workers.storage.store import DeleteRecord, LoggedBatch

DEVICES = ["a", "b:/", "c"]
SERIES = [key("a"), key("a", room="1"), key("a", room="2"), key("b:/"), key("c", x="", y="z")]
TAGS = [None, {}, {"room": "1"}]

S_NS, DAY_NS = 10**9, 86_400 * 10**9
PERIOD_NS = 30 * DAY_NS
NOW_NS = 667 * PERIOD_NS + 2 * DAY_NS  # the day when lives begin: a little behind the begin of a period
EDGES = [-(1 << 63), (1 << 63) - 1]

days = st.sampled_from([0, 0, 0, -1, -2, -3, -10, -40])
times = (
    st.builds(lambda day, ns: NOW_NS + day * DAY_NS + ns, days, st.integers(0, 60) | st.integers(0, 5000))
    | st.builds(lambda day, second: NOW_NS + day * DAY_NS + second * S_NS, days, st.integers(0, 5000))
    | st.sampled_from(EDGES)
)
values = st.sampled_from([-0.0, 0.0, 1.0, -1.0, 5e-324, 1e16, 0.1, 21.5]) | st.floats(
    -1e300, 1e300, allow_nan=False, allow_infinity=False
)
rows = st.lists(st.tuples(st.sampled_from(SERIES), times, values), min_size=1, max_size=40)
bounds = st.none() | times
selectors = st.builds(
    Selector, st.sampled_from(DEVICES), st.none() | st.just("temperature"), st.sampled_from(TAGS)
)
intervals = st.sampled_from([1, 7, 60, S_NS, 60 * S_NS, 3600 * S_NS, DAY_NS, DAY_NS + 1])

FUZZ = hypothesis.settings.default.max_examples > 1000  # the profile of `make fuzz`


class StoreLife(RuleBasedStateMachine):
    """A store beside the oracle. Heads are as small as allowed, so that they also fill up by themselves."""

    @initialize(retention_days=st.sampled_from([0, 0, 3, 30]))
    def begin(self, retention_days: int) -> None:
        self.clocks = clock.wall_ns, clock.monotonic_s
        self.passed_s = 0.0
        clock.wall_ns = lambda: NOW_NS + round(self.passed_s * S_NS)
        clock.monotonic_s = lambda: self.passed_s
        self.top = Path(tempfile.mkdtemp())
        self.names = itertools.count()
        self.retention_days = retention_days
        self.gate = threading.Event()  # closed: frozen heads stay frozen
        self.gate.set()
        self.oracle = naive.PointSet()
        self.sent: list[LoggedBatch] = []
        self.number = 0  # of the last delete
        self.move_to(self.top / "store")
        self.let_pass(0.0)

    def move_to(self, directory: Path) -> None:
        """Open a directory as the next process would find it, on a disk that is watched."""
        self.directory = directory
        self.platter = Platter(directory)
        self.platter.adopt()
        self.disk = RecordingDisk()
        self.open()

    def open(self) -> None:
        self.store = open_store(
            self.directory, self.disk, head_rows=1000, seal_interval_s=1e-9, retention_days=self.retention_days,
            cache_bytes=1 << 20, compaction_bytes=4 << 20,
        )  # fmt: skip
        seal = self.store._sealer._seal
        self.store._sealer._seal = lambda frozen: (self.gate.wait(), seal(frozen))[1]

    def teardown(self) -> None:
        if hasattr(self, "clocks"):
            self.gate.set()
            self.store.close()
            shutil.rmtree(self.top)
            clock.wall_ns, clock.monotonic_s = self.clocks

    @rule(groups=st.lists(rows, min_size=1, max_size=3), data=st.data())
    def write(self, groups: list[list[Row]], data: st.DataObject) -> None:
        born = data.draw(st.integers(0, self.number))
        self.append([batch_of(group, born) for group in groups])

    @rule(
        each=st.sampled_from(SERIES), day=days, first=st.integers(0, 4000), count=st.integers(1, 700),
        step_ns=st.sampled_from([1, 1000, S_NS]), value=values, rise=st.sampled_from([0.0, 1.0, 0.1]),
    )  # fmt: skip
    def write_a_rising_stretch(
        self, each: bytes, day: int, first: int, count: int, step_ns: int, value: float, rise: float
    ) -> None:
        begin = NOW_NS + day * DAY_NS
        points = [(each, begin + at * step_ns, value + rise * at) for at in range(first, first + count)]
        self.append([batch_of(points, self.number)])

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def send_again(self, data: st.DataObject) -> None:
        self.append([data.draw(st.sampled_from(self.sent))])

    def append(self, batches: list[LoggedBatch]) -> None:
        self.make_sure_of_room()
        refused = self.store.append(batches)
        assert [[row for row, _ in each] for each in refused] == [self.take(each) for each in batches]
        self.sent += batches

    def take(self, logged: LoggedBatch) -> list[int]:
        """Give a batch to the oracle; the rows that are to be refused."""
        batch = logged.batch
        columns = zip(batch.index.tolist(), batch.times.tolist(), batch.values.tolist(), strict=True)
        return [
            row for row, (place, time, value) in enumerate(columns)
            if not self.oracle.add(batch.keys[place], time, value, logged.born)
        ]  # fmt: skip

    def make_sure_of_room(self) -> None:
        if self.store.status()["sealing_backlog"] == sealer.BACKLOG:
            self.gate.set()

    @precondition(lambda self: self.sent)
    @rule(selector=selectors, start=times, end=times, skipped=st.integers(0, 2))
    def delete(self, selector: Selector, start: int, end: int, skipped: int) -> None:
        self.make_sure_of_room()
        self.number += 1 + skipped
        start, end = min(start, end), max(start, end)
        record = DeleteRecord(self.number, selector, start, end)
        assert self.store.delete(record)
        assert not self.store.delete(record)
        self.oracle.delete(self.number, lambda each: selector.matches(series.parse_key(each)), start, end)

    @rule(seconds=st.sampled_from([1.0, 599.0, 700.0, 86_400.0, 5 * 86_400.0]))
    def let_pass(self, seconds: float) -> None:
        """Time goes by, and the store looks at its clocks."""
        self.passed_s += seconds
        self.make_sure_of_room()
        self.store.tick()
        if self.retention_days:
            self.oracle.retain((clock.wall_ns() - self.retention_days * DAY_NS) // DAY_NS * DAY_NS)

    @rule()
    def hold_sealing(self) -> None:
        self.gate.clear()

    @rule()
    def freeze(self) -> None:
        self.let_pass(0.001)

    @precondition(lambda self: self.sent)
    @rule()
    def seal(self) -> None:
        self.gate.set()
        self.store.seal()

    @precondition(lambda self: self.sent)
    @rule()
    def compact(self) -> None:
        self.gate.set()
        self.store.compact()

    @precondition(lambda self: self.sent)
    @rule()
    def restart(self) -> None:
        self.gate.set()
        self.store.close()
        self.open()
        self.look_at_everything()

    @precondition(lambda self: self.sent)
    @rule()
    def kill(self) -> None:
        """The process ends where it is; what it wrote is found in its directory."""
        left = self.top / f"killed{next(self.names)}"
        with self.disk.turn:
            copy_directory(self.directory, left)
        self.die(left)

    @precondition(lambda self: self.sent)
    @rule(torn=st.none() | st.integers(0, 1 << 16))
    def cut_power(self, torn: int | None) -> None:
        """What was not fsynced is lost, or parts of it."""
        left = self.top / f"cut{next(self.names)}"
        with self.disk.turn:
            for event in self.disk.events:
                self.platter.feed(event)
            self.platter.save(left, None if torn is None else random.Random(torn))
        self.die(left)

    def die(self, left: Path) -> None:
        self.gate.set()
        self.store.close()
        shutil.rmtree(self.directory)
        self.move_to(left)
        assert self.store.status()["damaged"] == []
        self.look_at_everything()

    @precondition(lambda self: self.sent)
    @rule(device=st.sampled_from(DEVICES), tags=st.sampled_from(TAGS), start=bounds, end=bounds)
    def ask(self, device: str, tags: dict[str, str] | None, start: int | None, end: int | None) -> None:
        got = assert_answers(self.store, self.oracle, device, tags, start, end)
        wanted = matching(self.oracle, Selector(device, "temperature", tags))
        assert_m2(got.m2, self.oracle.aggregate(wanted, start, end))

    @precondition(lambda self: self.sent)
    @rule(selector=selectors, start=bounds, end=bounds)
    def ask_by_series(self, selector: Selector, start: int | None, end: int | None) -> None:
        assert_by_series(self.store, self.oracle, selector, start, end)

    @precondition(lambda self: self.sent)
    @rule(selector=selectors, start=bounds, end=bounds, interval=intervals, offset=times, few=st.booleans())
    def ask_by_interval(
        self, selector: Selector, start: int | None, end: int | None, interval: int, offset: int, few: bool
    ) -> None:
        assert_by_interval(self.store, self.oracle, selector, start, end, interval, offset % interval, few)

    @precondition(lambda self: self.sent)
    @rule(selector=selectors, start=bounds, end=bounds)
    def ask_for_samples(self, selector: Selector, start: int | None, end: int | None) -> None:
        assert_samples(self.store, self.oracle, selector, start, end)

    def look_at_everything(self) -> None:
        for device in DEVICES:
            assert_samples(self.store, self.oracle, Selector(device), None, None)
            assert_by_series(self.store, self.oracle, Selector(device), None, None)

    @invariant()
    def everything_is_there(self) -> None:
        if hasattr(self, "store"):
            for device in DEVICES:
                assert_answers(self.store, self.oracle, device)


StoreLife.TestCase.settings = hypothesis.settings(
    max_examples=600 if FUZZ else 80, stateful_step_count=100 if FUZZ else 50
)
TestStoreLife = StoreLife.TestCase
