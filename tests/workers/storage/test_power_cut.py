"""A disk that forgets what was not fsynced, cut off after every step: nothing acked is missing, nothing is double."""

import random
import shutil
from pathlib import Path

import pytest

from tests.disks import Platter, QuickDisk, RecordingDisk
from tests.workers.storage import life


@pytest.fixture(autouse=True)
def _world_of_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in life.INSTALLED:
        monkeypatch.setattr(module, name, getattr(module, name))  # so that what lives install is put back


def recorded(directory: Path) -> RecordingDisk:
    """A whole life, its acks marked among its steps."""
    disk = RecordingDisk()
    world = life.World(0)
    world.install()
    life.live(life.Life(directory, disk, world), life.SCRIPT, disk.mark)
    return disk


@pytest.mark.parametrize("torn", [None, 1, 2], ids=["all forgotten", "some of it there", "other parts there"])
def test_power_cut_after_any_step_loses_and_doubles_nothing(tmp_path: Path, torn: int | None) -> None:
    disk = recorded(tmp_path / "store")
    platter = Platter(tmp_path / "store")
    states = life.states_after(life.SCRIPT)
    acked = 0
    for number, event in enumerate(disk.events):
        if event.step.call == "mark":
            acked = event.size
            continue
        platter.feed(event)
        chance = None if torn is None else random.Random(f"{torn} {number}")
        left = tmp_path / f"cut{number}"
        platter.save(left, chance)
        world = life.World(life.day_after(life.SCRIPT, acked))
        world.install()
        try:
            life.check(life.Life(left, QuickDisk(), world), states[acked])
        except AssertionError as error:
            raise AssertionError(f"power cut after step {number}, {event.step}, {acked} acts acked: {error}") from error
        shutil.rmtree(left)
