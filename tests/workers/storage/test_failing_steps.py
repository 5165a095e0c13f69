"""A disk that is full for a while, or fails once, at any step of a store's life: what fails is said and tried again.

Nothing of what failed is seen, nothing acked is lost, and when the disk works again so does the store.
"""

import shutil
import time
from pathlib import Path

import pytest

from common.errors import StorageError
from tests import naive
from tests.disks import FailingDisk, FullDisk, QuickDisk, SteppingDisk
from tests.workers.storage import life
from workers.storage import sealer

GIVE_UP_S = 60.0  # the sealer tries again in its own thread, which a busy machine may not let run for long


@pytest.fixture(autouse=True)
def _world_of_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    """What lives install is put back. What failed is tried again at once."""
    for module, name in life.INSTALLED:
        monkeypatch.setattr(module, name, getattr(module, name))
    monkeypatch.setattr(sealer, "_RETRY_S", 0.001)
    monkeypatch.setattr(sealer, "_RETRY_MAX_S", 0.001)


def live_stubbornly(directory: Path, disk: SteppingDisk) -> None:
    """A whole life in which what fails is done again; then everything is there."""
    world = life.World(0)
    world.install()
    lived = life.Life(directory, disk, world)
    states = life.states_after(life.SCRIPT)
    try:
        for number, act in enumerate(life.SCRIPT):
            do(act, lived, states[number][0])
        life.check(life.Life(directory, QuickDisk(), world), states[-1])
    except AssertionError as error:
        raise AssertionError(f"{disk}: {error}") from error
    finally:
        if lived.store is not None:
            lived.store.close()


def do(act: life.Act, lived: life.Life, before: naive.PointSet) -> None:
    """Do an act until it succeeds. What failed has no effect."""
    give_up_s = time.monotonic() + GIVE_UP_S
    while True:
        try:
            act.do(lived)
            return
        except StorageError as error:
            if lived.store is not None:
                assert life.found_in(lived.store) == life.expected(before), f"after a failure of {act}"
            if time.monotonic() > give_up_s:
                raise AssertionError(f"{act} still fails after {GIVE_UP_S} s") from error


def steps_of_a_life(directory: Path) -> int:
    disk = FullDisk(1 << 40, 0)
    live_stubbornly(directory, disk)
    return disk.taken


@pytest.mark.parametrize("lasting", [1, 5])
def test_disk_full_from_any_step_on_loses_nothing_and_ingest_goes_on_when_it_has_room(
    tmp_path: Path, lasting: int
) -> None:
    refused = set()
    for number in range(steps_of_a_life(tmp_path / "whole")):
        disk = FullDisk(number, lasting)
        live_stubbornly(tmp_path / "full", disk)
        refused |= set(disk.refused)
        shutil.rmtree(tmp_path / "full")
    assert refused >= {("create", "wal"), ("write", "wal"), ("write", "segment.tmp"), ("create", "delete.tmp")}


def test_any_step_that_fails_once_is_survived(tmp_path: Path) -> None:
    failed = set()
    for number in range(steps_of_a_life(tmp_path / "whole")):
        disk = FailingDisk(number)
        live_stubbornly(tmp_path / "failing", disk)
        failed |= {disk.failed}
        shutil.rmtree(tmp_path / "failing")
    assert failed >= {("sync_data", "wal"), ("sync", "segment.tmp"), ("rename", "segment.tmp"), ("remove", "wal")}
