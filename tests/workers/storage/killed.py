"""Run by test_kill_points.py: a scripted life, killed at every step that it takes on its disk, and checked.

The kernels are loaded once; each life, and each check of what one left behind, is a child made by fork. Prints the
steps of a whole life, one a line, and ends with 1 and the reason at the first kill that the store did not survive.
"""

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from shutil import rmtree

from tests.workers.storage import life
from tests.workers.storage.disks import KillingDisk, QuickDisk, RecordingDisk

KILLED = -9  # as os.waitstatus_to_exitcode has it


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


def live_until(directory: Path, acks: Path, number: int) -> int:
    """A life that is killed at a step; how it ended."""

    def body() -> None:
        clock = life.Clock()
        clock.install()
        with acks.open("wb", buffering=0) as out:
            live = life.Life(directory, KillingDisk(number), clock)
            life.live(live, life.SCRIPT, lambda acked: out.write(b".") and None)

    return in_child(body)


def check_after(directory: Path, acked: int) -> int:
    """Check what a life left that ended after so many acked acts; how that ended."""

    def body() -> None:
        clock = life.Clock()
        clock.install()
        clock.days = life.days_after(life.SCRIPT, acked)
        life.check(life.Life(directory, QuickDisk(), clock), life.states_after(life.SCRIPT)[acked])

    return in_child(body)


def steps_of(directory: Path) -> list[str]:
    """The steps of a whole life. Loads the kernels."""
    clock = life.Clock()
    clock.install()
    disk = RecordingDisk()
    life.live(life.Life(directory, disk, clock), life.SCRIPT, lambda acked: None)
    return [f"{step.call} {step.kind}" for step in disk.steps]


def main(top: Path) -> int:
    print(*steps_of(top / "whole"), sep="\n", flush=True)
    number = 0
    while True:
        directory, acks = top / f"killed{number}", top / "acks"
        how = live_until(directory, acks, number)
        if how == 0:
            return 0  # there is no step of this number
        acked = acks.stat().st_size
        if how != KILLED or check_after(directory, acked) != 0:
            print(f"killed at step {number}, after {acked} acts: {directory}", file=sys.stderr)
            return 1
        rmtree(directory)
        number += 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
