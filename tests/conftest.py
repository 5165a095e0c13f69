"""Fixtures for all tests. Helpers that are plain functions are in tests/support.py."""

import contextlib
import fcntl
import gc
import os
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.support import Children

# The same examples on every machine and run: a failure seen once can be seen again.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, print_blob=False)
# Other examples each time, and many: `make fuzz`.
hypothesis.settings.register_profile("fuzz", max_examples=10_000, deadline=None, print_blob=True)
hypothesis.settings.load_profile("fixed")

# What takes a minute or more, the longest first. Begun last, one would be waited for by workers that have nothing left.
LONG = (
    "tests/web/test_page.py", "tests/workers/storage/test_stateful.py", "tests/chaos/test_chaos.py",
    "tests/workers/storage/test_kill_points.py", "tests/pipeline/test_replay.py", "tests/pipeline/test_kills.py",
)  # fmt: skip


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where several workers share the tests (make test), each begins with some of the long ones.

    `--dist worksteal` gives each worker a run of equal length, and whoever has done with it takes from others' ends.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    if workers == 1:
        return
    files = [file for file in LONG if any(item.nodeid.startswith(file) for item in items)]
    first = {file: files.index(file) % workers for file in files}
    heads: list[list[pytest.Item]] = [[] for _ in range(workers)]
    others: list[pytest.Item] = []
    for item in items:
        file = item.nodeid.partition("::")[0]
        (heads[first[file]] if file in first else others).append(item)
    ordered: list[pytest.Item] = []
    for number, head in enumerate(heads):
        end = len(items) * (number + 1) // workers
        ordered += sorted(head, key=lambda item: files.index(item.nodeid.partition("::")[0]))
        room = max(0, end - len(ordered))
        ordered += others[:room]
        del others[:room]
    items[:] = ordered + others


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No MINITRUE_ variable of the caller's shell changes what a test sees, MINITRUE_CI apart."""
    for name in os.environ:
        if name.startswith("MINITRUE_") and name != "MINITRUE_CI":
            monkeypatch.delenv(name)


# What a module of tests may leave behind: fixtures of the session begin in one, and threads of a client end later.
MAY_STAY = 100


@pytest.fixture(autouse=True, scope="module")
def _gives_back_what_it_opened() -> Iterator[None]:
    """No module uses up the numbers below 1024, or keeps the machine busy, for all that run behind it."""
    before = _held()
    yield
    if (_held() - before).total() > MAY_STAY:
        gc.collect()  # what only rings of references hold is given back in time
    stayed = _held() - before
    assert stayed.total() <= MAY_STAY, f"left open, or still running: {dict(stayed)}"


def _held() -> Counter[str]:
    """Descriptors of this process by what they are, and its threads."""
    held = Counter({"threads": threading.active_count()})
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            to = str(link.readlink())
            held[to.partition(":")[0] if ":[" in to or to.startswith("anon") else Path(to).suffix or to] += 1
    return held


@pytest.fixture(autouse=True)
def _no_descriptors_of_ended_writers() -> Iterator[None]:
    """Tests leave writers of record files as a killed process would; their descriptors end with the test here.

    Else some thousand tests of one process take all numbers below 1024, and paho's select wants such a one.
    """
    yield
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            to = str(link.readlink()).removesuffix(" (deleted)")
            if to.endswith((".spool", ".dead", ".x")) and _is_written(int(link.name)):
                os.close(int(link.name))


def _is_written(descriptor: int) -> bool:
    return fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY


@pytest.fixture
def children() -> Iterator[Children]:
    """Starts processes that are ended, with their groups, when the test is over."""
    started = Children()
    yield started
    started.stop_all()
