"""Run by test_kill_points.py: a scripted life, killed at every step that it takes on its disk, and checked.

The kernels are loaded once; each life, and each check of what one left behind, is a child made by fork. After each
kill the store must be whole. And one that is opened again, goes on and then loses its power must be so too: what
the killed process had changed but not fsynced is seen by the next one, and can still be lost.

Prints the steps of a whole life, one a line, and ends with 1 and the reason at the first end that the store did
not survive.
"""

import os
import random
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from shutil import rmtree

from tests import naive
from tests.disks import Event, KillingDisk, Platter, QuickDisk, acked_by, copy_directory, read_journal
from tests.workers.storage import life

KILLED = -9  # as os.waitstatus_to_exitcode has it
CUTS = 1  # how many power cuts follow a kill
UNSURE = {"make_directory", "create", "write", "rename", "remove"}  # behind these there is something to be lost


def in_child(body: Callable[[], None]) -> int:
    """Run something in a child; how that ended."""
    child = os.fork()
    if not child:
        try:
            body()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def lived(directory: Path, script: Sequence[life.Act], day: int, number: int | None) -> tuple[int, list[Event]]:
    """A life in a child that is killed at a step; how it ended, and the steps that it took."""
    journal = directory.with_suffix(".journal")

    def body() -> None:
        world = life.World(day)
        world.install()
        disk = KillingDisk(number, journal)
        life.live(life.Life(directory, disk, world), script, disk.mark)

    return in_child(body), read_journal(journal)


def check(directory: Path, states: Sequence[naive.PointSet], day: int) -> bool:
    """Whether a directory holds one of these states."""

    def body() -> None:
        world = life.World(day)
        world.install()
        life.check(life.Life(directory, QuickDisk(), world), states)

    return in_child(body) == 0


def kill(top: Path, number: int) -> list[Event] | None:
    """Kill a life at a step and look at what it left; its steps. None when the life has no such step."""
    directory = top / "killed"
    how, events = lived(directory, life.SCRIPT, 0, number)
    if how == 0:
        return None
    acked = acked_by(events)
    day = life.day_after(life.SCRIPT, acked)
    states = life.states_after(life.SCRIPT)[acked]
    good = how == KILLED and check(copy_directory(directory, top / "copy"), states, day)
    unsure = bool(events) and events[-1].step.call in UNSURE
    if not good or (unsure and not survives_cuts(directory, events, states, day, random.Random(number))):
        raise AssertionError(f"killed at step {number}, after {acked} acts; the last steps were {events[-2:]}")
    for path in (directory, top / "copy"):
        rmtree(path, ignore_errors=True)  # a life that had just begun left none
    return events


def survives_cuts(
    directory: Path, events: list[Event], states: Sequence[naive.PointSet], day: int, chance: random.Random
) -> bool:
    """Whether a store that was killed, and goes on, survives power cuts, with all lost that was not fsynced."""
    how, more = lived(directory, life.GOING_ON, day, None)
    if how != 0:
        return False
    reached = [life.states_after(life.GOING_ON, state) for state in states]
    for cut in chance.sample(range(1, len(more) + 1), CUTS):
        platter = Platter(directory)
        for event in [*events, *more[:cut]]:
            platter.feed(event)
        left = directory.with_name("cut")
        platter.save(left)
        acked = acked_by(more[:cut])
        if not check(left, [state for each in reached for state in each[acked]], day):
            print(f"power cut after {more[cut - 1].step}, {acked} acts after the kill", file=sys.stderr)
            return False
        rmtree(left)
    return True


def main(top: Path) -> None:
    world = life.World(0)
    world.install()
    disk = KillingDisk(None, top / "journal")
    life.live(life.Life(top / "whole", disk, world), life.SCRIPT, disk.mark)  # loads the kernels too
    steps = [event.step for event in read_journal(top / "journal") if event.step.call != "mark"]
    print(*(f"{step.call} {step.kind}" for step in steps), sep="\n", flush=True)
    number = 0
    while kill(top, number) is not None:
        number += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]))
