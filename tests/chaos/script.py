"""What happens to a cluster, and when: a script drawn from a seed, so that a failure can be made again.

Every victim has its own line of faults, one at a time, so that faults of different victims overlap. Pure: no process is
touched here.
"""

import random
from collections.abc import Sequence
from typing import Final, NamedTuple


class Fault(NamedTuple):
    """From begin_s to end_s after the start, this is done to a victim."""

    begin_s: float
    end_s: float
    victim: str
    what: str

    def __str__(self) -> str:
        return f"{self.begin_s:6.1f} s to {self.end_s:6.1f} s: {self.victim} {self.what}"


# What can be done to a kind of victim, and how long it lasts at least and at most.
PROCESS: Final = {"killed": (0.0, 6.0), "frozen": (0.3, 6.0), "stopped": (0.0, 3.0)}
BROKER: Final = {"stopped": (0.0, 3.0), "frozen": (0.3, 4.0)}
LEG: Final = {
    "cut": (0.2, 5.0), "stalled": (0.2, 5.0), "stalled up": (0.2, 5.0), "stalled down": (0.2, 5.0),
    "losing": (0.2, 4.0), "losing down": (0.2, 4.0), "slow": (1.0, 6.0), "reset": (0.1, 0.2),
}  # fmt: skip
QUIET_S: Final = (0.5, 8.0)  # of a victim between two faults


def draw(
    seed: int, length_s: float, processes: Sequence[str], legs: Sequence[str], broker: str = "broker"
) -> list[Fault]:
    """The script, by the time of each beginning."""
    rng = random.Random(seed)
    faults: list[Fault] = []
    for victims, possible in ((processes, PROCESS), (legs, LEG), ([broker], BROKER)):
        for victim in victims:
            faults += _line(rng, length_s, victim, possible)
    return sorted(faults)


def _line(rng: random.Random, length_s: float, victim: str, possible: dict[str, tuple[float, float]]) -> list[Fault]:
    line: list[Fault] = []
    at = rng.uniform(*QUIET_S)
    while at < length_s:
        what = rng.choice(list(possible))
        end = at + rng.uniform(*possible[what])
        line.append(Fault(at, min(end, length_s), victim, what))
        at = end + rng.uniform(*QUIET_S)
    return line
