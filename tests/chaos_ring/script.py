"""How a ring changes and what goes wrong meanwhile: a script drawn from a seed, so that a failure can be made again.

Changes of the ring follow one another. Faults and deletes have lines of their own, and so hit any moment of a change.
A victim is a number, and the process or connection of that number among those that there are by then; so are the nodes
that changes speak of. Pure: no process is touched here.
"""

import random
from typing import Final, NamedTuple

CHANGES: Final = ("add", "remove", "replace", "weight", "replication", "cancelled")
KILLABLE: Final = ("node", "bridge", "query", "ringctl")
# What is done to which kind of victim, for how many seconds at least and at most.
FAULTS: Final = {
    "killed": (KILLABLE, (0.0, 2.0)),
    "frozen": (("node", "bridge", "query"), (0.3, 2.0)),
    "cut": (("ingest", "requests", "acks", "pair"), (0.3, 2.5)),
    "slow": (("ingest", "requests"), (0.5, 2.5)),
}
QUIET_S: Final = (0.3, 1.5)
DELETES_S: Final = (1.0, 3.0)  # between two deletes


class Change(NamedTuple):
    """what: of CHANGES. nodes: numbers that choose nodes. amount: 0 to 1, chooses a weight or replication."""

    what: str
    nodes: tuple[int, int]
    amount: float


class Fault(NamedTuple):
    """From begin_s to end_s after the start this is done to a victim: its kind, and numbers that choose it."""

    begin_s: float
    end_s: float
    what: str
    kind: str
    numbers: tuple[int, int]


class Script(NamedTuple):
    """changes: one after the other, over and over if there is time. deletes_s: when to delete."""

    changes: list[Change]
    faults: list[Fault]
    deletes_s: list[float]


def draw(seed: int, length_s: float) -> Script:
    """The script of a seed. Faults follow one another: two of them never last at the same time, so that each heals."""
    rng = random.Random(seed)
    changes = [_change(rng, what) for what in _shuffled(rng)]
    changes += [_change(rng, rng.choice(CHANGES)) for _ in range(int(length_s))]
    faults, at = [], rng.uniform(*QUIET_S)
    while at < length_s:
        what = rng.choice(list(FAULTS))
        kinds, lasting = FAULTS[what]
        end = at + rng.uniform(*lasting)
        faults.append(Fault(at, end, what, rng.choice(kinds), (rng.randrange(1000), rng.randrange(1000))))
        at = end + rng.uniform(*QUIET_S)
    deletes, at = [], rng.uniform(*DELETES_S)
    while at < length_s:
        deletes.append(at)
        at += rng.uniform(*DELETES_S)
    return Script(changes, faults, deletes)


def _shuffled(rng: random.Random) -> list[str]:
    """Each kind of change once, an addition first: there have to be nodes before one can go."""
    rest = list(CHANGES[1:])
    rng.shuffle(rest)
    return [CHANGES[0], *rest]


def _change(rng: random.Random, what: str) -> Change:
    return Change(what, (rng.randrange(1000), rng.randrange(1000)), rng.random())
