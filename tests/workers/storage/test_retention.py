"""What retention hides and removes, and that a wrong clock never makes it remove what it should not."""

from pathlib import Path

import pytest

from common import clock
from common.selector import Selector
from common.timestamps import MIN_NS
from tests.workers.storage.support import EVERYWHERE, batch_of, key, open_store, rows_of
from workers.storage.retention import DAY_NS, SETTLE_S, Retention
from workers.storage.store import Store

A = key("a")
TODAY = 20_000  # days since the epoch
DAYS = 30


class Clocks:
    """Both clocks, turned by the test. wall_s: seconds since the epoch."""

    def __init__(self) -> None:
        self.wall_s = TODAY * 86_400.0 + 1
        self.monotonic_s = 1000.0

    def wait(self, seconds: float) -> None:
        self.wall_s += seconds
        self.monotonic_s += seconds


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    turned = Clocks()
    monkeypatch.setattr(clock, "wall_ns", lambda: int(turned.wall_s * 1e9))
    monkeypatch.setattr(clock, "monotonic_s", lambda: turned.monotonic_s)
    return turned


def day(number: int) -> int:
    return number * DAY_NS


def settle(retention: Retention, clocks: Clocks) -> None:
    for _ in range(3):
        retention.observe()
        clocks.wait(SETTLE_S)
    retention.observe()


def test_without_retention_nothing_is_behind(clocks: Clocks) -> None:
    retention = Retention(0)
    settle(retention, clocks)
    assert (retention.cutoff, retention.settled) == (MIN_NS, MIN_NS)


def test_cutoff_is_the_start_of_a_utc_day(clocks: Clocks) -> None:
    clocks.wall_s = TODAY * 86_400.0 - 1
    retention = Retention(DAYS)
    assert retention.cutoff == day(TODAY - 1 - DAYS)
    clocks.wait(1)
    retention.observe()
    assert retention.cutoff == day(TODAY - DAYS)


def test_cutoff_settles_when_it_has_stood_long_enough(clocks: Clocks) -> None:
    retention = Retention(DAYS)
    clocks.wait(SETTLE_S - 1)
    retention.observe()
    assert retention.settled == MIN_NS
    clocks.wait(1)
    retention.observe()
    assert retention.settled == retention.cutoff == day(TODAY - DAYS)


def test_settled_cutoff_follows_the_days(clocks: Clocks) -> None:
    retention = Retention(DAYS)
    settle(retention, clocks)
    for _ in range(86_400 // 300):
        clocks.wait(300)
        retention.observe()
    settle(retention, clocks)
    assert retention.settled == retention.cutoff == day(TODAY + 1 - DAYS)


def test_clock_far_in_the_future_at_boot_settles_nothing_once_it_is_put_right(clocks: Clocks) -> None:
    clocks.wall_s += 10_000 * 86_400
    retention = Retention(DAYS)
    clocks.wait(SETTLE_S - 10)
    retention.observe()
    assert retention.cutoff == day(TODAY + 10_000 - DAYS)
    clocks.wall_s -= 10_000 * 86_400
    retention.observe()
    assert retention.cutoff == day(TODAY - DAYS)
    clocks.wait(SETTLE_S - 1)
    retention.observe()
    assert retention.settled == MIN_NS
    settle(retention, clocks)
    assert retention.settled == day(TODAY - DAYS)


def test_clock_far_in_the_past_at_boot_hides_nothing(clocks: Clocks) -> None:
    clocks.wall_s = 0.0
    retention = Retention(DAYS)
    settle(retention, clocks)
    assert retention.settled == retention.cutoff == day(-DAYS)
    clocks.wall_s = TODAY * 86_400.0
    retention.observe()
    assert (retention.cutoff, retention.settled) == (day(TODAY - DAYS), day(-DAYS))


def test_cutoff_never_goes_behind_what_has_settled(clocks: Clocks) -> None:
    retention = Retention(DAYS)
    settle(retention, clocks)
    clocks.wall_s -= 400 * 86_400
    settle(retention, clocks)
    assert retention.settled == retention.cutoff == day(TODAY - DAYS)


def test_clock_that_jumps_to_and_fro_settles_only_what_it_never_went_behind(clocks: Clocks) -> None:
    retention = Retention(DAYS)
    for _ in range(10):
        clocks.wait(SETTLE_S / 4)
        clocks.wall_s += 1000 * 86_400
        retention.observe()
        clocks.wait(SETTLE_S / 4)
        clocks.wall_s -= 1000 * 86_400
        retention.observe()
    assert retention.settled <= day(TODAY - DAYS)


def open_here(directory: Path) -> Store:
    return open_store(directory, retention_days=DAYS)


def count(store: Store) -> int:
    reply = store.aggregate("a", "temperature", None, EVERYWHERE, None, None)
    pieces = store.samples(Selector("a"), EVERYWHERE, None, None)
    assert sum(len(times) for _, times, _ in pieces) == reply.count
    assert store.by_series(Selector("a"), EVERYWHERE, MIN_NS, None).rows[:, 0].sum() == reply.count
    return reply.count


def fill(store: Store, days: range) -> None:
    assert store.append([batch_of(rows_of(A, [day(each) + 5 for each in days]))]) == [[]]


def let_settle(store: Store, clocks: Clocks) -> None:
    for _ in range(3):
        store.tick()
        clocks.wait(SETTLE_S)
    store.tick()


KEPT = range(TODAY - DAYS, TODAY)


@pytest.mark.parametrize("sealed", [True, False])
def test_points_vanish_from_answers_when_their_day_is_over(tmp_path: Path, clocks: Clocks, sealed: bool) -> None:
    store = open_here(tmp_path)
    fill(store, KEPT)
    if sealed:
        store.seal()
    assert count(store) == DAYS
    clocks.wait(5 * 86_400)
    store.tick()
    assert count(store) == DAYS - 5
    assert store.status()["retention_cutoff_ns"] == day(TODAY + 5 - DAYS)
    store.close()
    store = open_here(tmp_path)
    assert count(store) == DAYS - 5
    store.close()


def test_older_points_are_refused_row_by_row_with_the_reason(tmp_path: Path, clocks: Clocks) -> None:
    store = open_here(tmp_path)
    cutoff = day(TODAY - DAYS)
    rows = rows_of(A, [cutoff, cutoff - 1, cutoff + 1, MIN_NS])
    (refused,) = store.append([batch_of(rows)])
    assert [row for row, _ in refused] == [1, 3]
    assert refused[0][1] == "older than the retention of 30 days: before 2024-09-04 by this node's clock"
    assert (count(store), store.status()["refused_rows"]) == (2, 2)
    store.close()


def test_segments_behind_the_settled_cutoff_are_removed_and_not_before(tmp_path: Path, clocks: Clocks) -> None:
    store = open_here(tmp_path)
    fill(store, range(TODAY - DAYS, TODAY - DAYS + 2))
    store.seal()
    fill(store, range(TODAY - 2, TODAY))
    store.seal()
    clocks.wait(10 * 86_400)
    store.tick()
    store.compact()
    assert (store.status()["segment_points"], count(store)) == (4, 2)
    let_settle(store, clocks)
    store.compact()
    status = store.status()
    assert (status["segments"], status["segment_points"], status["expired_points"]) == (1, 2, 2)
    assert count(store) == 2
    assert len(list((tmp_path / "segments").iterdir())) == 1
    store.close()


def test_boot_in_the_future_removes_nothing_and_shows_all_again(tmp_path: Path, clocks: Clocks) -> None:
    store = open_here(tmp_path)
    fill(store, KEPT)
    store.seal()
    store.close()
    clocks.wall_s += 10_000 * 86_400
    store = open_here(tmp_path)
    assert count(store) == 0
    store.compact()
    clocks.wait(SETTLE_S / 2)
    clocks.wall_s -= 10_000 * 86_400
    let_settle(store, clocks)
    store.compact()
    assert (count(store), store.status()["segment_points"]) == (DAYS, DAYS)
    store.close()


def test_boot_in_the_past_keeps_and_takes_everything(tmp_path: Path, clocks: Clocks) -> None:
    store = open_here(tmp_path)
    fill(store, KEPT)
    store.seal()
    store.close()
    clocks.wall_s = 0.0
    store = open_here(tmp_path)
    fill(store, range(TODAY, TODAY + 2))
    let_settle(store, clocks)
    store.compact()
    assert count(store) == DAYS + 2
    store.close()
