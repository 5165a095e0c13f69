"""Random lives of a store, compared with the oracle after every step of them."""

import itertools
import shutil
import tempfile
import threading
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests import naive
from tests.workers.storage.support import Row, assert_answers, batch_of, copy_as_if_killed, key, open_store
from workers.storage import sealer
from workers.storage.store import LoggedBatch

DEVICES = ["a", "b:/", "c"]
SERIES = [key("a"), key("a", room="1"), key("a", room="2"), key("b:/"), key("c", x="", y="z")]
EDGES = [-(1 << 63), -1, 0, (1 << 63) - 1]

times = st.integers(0, 60) | st.integers(0, 5000) | st.sampled_from(EDGES)
values = st.sampled_from([-0.0, 0.0, 1.0, -1.0, 5e-324, 1e16, 0.1]) | st.floats(
    -1e300, 1e300, allow_nan=False, allow_infinity=False
)
rows = st.lists(st.tuples(st.sampled_from(SERIES), times, values), min_size=1, max_size=40)
bounds = st.none() | times


class StoreLife(RuleBasedStateMachine):
    """A store beside the oracle. Heads are as small as allowed, so that they also fill up by themselves."""

    @initialize()
    def open(self) -> None:
        self.top = Path(tempfile.mkdtemp())
        self.names = itertools.count()
        self.directory = self.top / "store"
        self.gate = threading.Event()  # closed: frozen heads stay frozen
        self.gate.set()
        self.open_again()
        self.oracle = naive.PointSet()
        self.sent: list[LoggedBatch] = []

    def open_again(self) -> None:
        self.store = open_store(self.directory, head_rows=1000, seal_interval_s=1e-9)
        seal = self.store._sealer._seal
        self.store._sealer._seal = lambda frozen: (self.gate.wait(), seal(frozen))[1]

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.gate.set()
            self.store.close()
            shutil.rmtree(self.top)

    @rule(groups=st.lists(rows, min_size=1, max_size=3))
    def write(self, groups: list[list[Row]]) -> None:
        batches = [batch_of(group) for group in groups]
        self.make_sure_of_room()
        self.store.append(batches)
        self.sent += batches
        for each, time, value in itertools.chain(*groups):
            self.oracle.add(each, time, value)

    @rule(each=st.sampled_from(SERIES), first=st.integers(0, 4000), count=st.integers(1, 700), data=values)
    def write_a_rising_stretch(self, each: bytes, first: int, count: int, data: float) -> None:
        self.write([[(each, time, data) for time in range(first, first + count)]])

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def send_again(self, data: st.DataObject) -> None:
        self.make_sure_of_room()
        self.store.append([data.draw(st.sampled_from(self.sent))])

    def make_sure_of_room(self) -> None:
        if self.store.status()["sealing_backlog"] == sealer.BACKLOG:
            self.gate.set()

    @rule()
    def hold_sealing(self) -> None:
        self.gate.clear()

    @rule()
    def freeze(self) -> None:
        self.store.tick()

    @rule()
    def seal(self) -> None:
        self.gate.set()
        self.store.seal()

    @rule()
    def restart(self) -> None:
        self.gate.set()
        self.store.close()
        self.open_again()

    @rule()
    def kill(self) -> None:
        """The process ends where it is; what it wrote is found in its directory."""
        left = copy_as_if_killed(self.directory, self.top / f"killed{next(self.names)}")
        self.gate.set()
        self.store.close()
        shutil.rmtree(self.directory)
        self.directory = left
        self.open_again()
        assert self.store.status()["damaged"] == []

    @rule(device=st.sampled_from(DEVICES), tags=st.sampled_from([None, {}, {"room": "1"}]), start=bounds, end=bounds)
    def ask(self, device: str, tags: dict[str, str] | None, start: int | None, end: int | None) -> None:
        assert_answers(self.store, self.oracle, device, tags, start, end)

    @invariant()
    def everything_is_there(self) -> None:
        if hasattr(self, "store"):
            for device in DEVICES:
                assert_answers(self.store, self.oracle, device)


StoreLife.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestStoreLife = StoreLife.TestCase
