"""The maintainer's thread: steps until nothing is left, sleeps its share, tries again, ends at once."""

import contextlib
import threading
from collections.abc import Callable, Iterator

import pytest

from common import clock
from common.errors import StorageError
from workers.storage import maintainer
from workers.storage.maintainer import Maintainer, Pause, StopRequestedError

FOREVER_S = 3600.0
Begin = Callable[..., Maintainer]


@pytest.fixture
def begin() -> Iterator[Begin]:
    """Starts maintainers that are stopped when the test is over."""
    running: list[Maintainer] = []

    def begin_one(step: Callable[[Pause], bool], share: float = 1.0, interval_s: float = FOREVER_S) -> Maintainer:
        running.append(Maintainer(step, share, interval_s))
        running[-1].start()
        return running[-1]

    yield begin_one
    for each in running:
        each.stop()


class Work:
    """So many things to do, one a step. calls: how often a step was called."""

    def __init__(self, things: int) -> None:
        self.things = things
        self.calls = 0

    def step(self, pause: Pause) -> bool:
        self.calls += 1
        self.things -= self.things > 0
        return self.things > 0


def test_steps_are_called_until_nothing_is_left(begin: Begin) -> None:
    work = Work(7)
    begin(work.step).wait_until_idle()
    assert work.things == 0


def test_waking_makes_it_look_again(begin: Begin) -> None:
    work = Work(3)
    called = threading.Event()

    def step(pause: Pause) -> bool:
        called.set()
        return work.step(pause)

    running = begin(step)
    running.wait_until_idle()
    called.clear()
    running.wake()
    assert called.wait(10)


def test_it_looks_again_after_the_interval_though_nobody_wakes_it(begin: Begin) -> None:
    looks = threading.Semaphore(0)

    def step(pause: Pause) -> bool:
        looks.release()
        return False

    begin(step, interval_s=0.001)
    assert all(looks.acquire(timeout=10) for _ in range(3))


def test_a_wake_during_the_last_step_is_not_lost(begin: Begin) -> None:
    """What it tells of may have come after the step looked."""
    inside, go_on = threading.Event(), threading.Event()
    calls = []

    def step(pause: Pause) -> bool:
        calls.append(1)
        if len(calls) == 1:
            inside.set()
            assert go_on.wait(10)
        else:
            second.set()
        return False

    second = threading.Event()
    running = begin(step)
    assert inside.wait(10)
    running.wake()
    go_on.set()
    assert second.wait(10)


def test_a_failure_is_counted_and_tried_again(begin: Begin) -> None:
    fates: list[Exception | None] = [OSError(28, "No space left on device"), ZeroDivisionError("oops"), None]

    def step(pause: Pause) -> bool:
        fate = fates.pop(0) if fates else None
        if fate is not None:
            raise fate
        return False

    running = begin(step)
    while running.failures < 2:
        with contextlib.suppress(StorageError):
            running.wait_until_idle()
    running.wait_until_idle()
    assert running.failures == 2
    assert running.failure is None


def test_the_reason_of_a_failure_is_in_the_error(begin: Begin) -> None:
    def step(pause: Pause) -> bool:
        raise StorageError("the disk is sick")

    running = begin(step)
    with pytest.raises(StorageError, match="does not come to an end: the disk is sick"):
        running.wait_until_idle()
    assert running.failure == "the disk is sick"


def test_a_failing_step_is_not_called_again_at_once(begin: Begin) -> None:
    failed = threading.Event()
    calls = []

    def step(pause: Pause) -> bool:
        calls.append(1)
        failed.set()
        raise StorageError("no")

    running = begin(step)
    assert failed.wait(10)
    running.wake()
    running.stop()
    assert len(calls) == 1


def test_stopping_gives_up_a_step_at_its_next_pause(begin: Begin) -> None:
    given_up = threading.Event()
    paused = threading.Event()

    def step(pause: Pause) -> bool:
        try:
            while True:
                paused.set()
                pause()
        except StopRequestedError:
            given_up.set()
            raise

    running = begin(step)
    assert paused.wait(10)
    running.stop()
    assert given_up.is_set()
    assert running.failures == 0


@pytest.mark.parametrize(("share", "slept"), [(0.5, 4.0), (0.25, 12.0), (1.0, 0.0)])
def test_a_pause_lasts_so_long_that_work_takes_its_share(
    monkeypatch: pytest.MonkeyPatch, share: float, slept: float
) -> None:
    now = 100.0
    monkeypatch.setattr(clock, "monotonic_s", lambda: now)
    waits: list[float] = []
    idle = Maintainer(lambda pause: False, share)
    monkeypatch.setattr(idle, "_sleep", lambda seconds, until: waits.append(seconds))
    with idle._alone():
        now = 104.0
        idle._pause()
    assert waits == [slept]


def test_many_short_steps_sleep_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of them is long enough to pause by itself."""
    now = 0.0
    waits: list[float] = []

    def step(pause: Pause) -> bool:
        nonlocal now
        now += 1.0
        return True

    monkeypatch.setattr(clock, "monotonic_s", lambda: now)
    idle = Maintainer(step, 0.5)
    monkeypatch.setattr(idle, "_sleep", lambda seconds, until: waits.append(seconds))
    assert [idle._attempt() for _ in range(3)] == [True] * 3
    assert waits == [1.0] * 3


def test_no_step_runs_while_another_thread_works_exclusively(begin: Begin) -> None:
    inside, go_on = threading.Event(), threading.Event()
    running_steps = []

    def step(pause: Pause) -> bool:
        running_steps.append(1)
        inside.set()
        assert go_on.wait(10)
        pause()  # would sleep for hours, but that somebody waits
        running_steps.pop()
        return True

    running = begin(step, share=1e-9)
    assert inside.wait(10)
    go_on.set()
    for _ in range(20):
        with running.exclusive():
            assert not running_steps


def test_what_stops_the_thread_before_it_began_is_no_error() -> None:
    Maintainer(lambda pause: False, 1.0).stop()


def test_retries_grow_ever_more_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    def step(pause: Pause) -> bool:
        raise StorageError("no")

    idle = Maintainer(step, 1.0)

    def sleep(seconds: float, until: Callable[[], bool]) -> None:
        waits.append(seconds)
        idle._stopping = len(waits) == 12

    monkeypatch.setattr(idle, "_sleep", sleep)
    idle._run()
    assert waits[:3] == [1.0, 2.0, 4.0]
    assert waits[-1] == maintainer._RETRY_MAX_S
