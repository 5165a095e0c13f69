"""A seed gives one script, whose faults of one victim never overlap and end in time."""

import itertools
from collections import defaultdict

from tests.chaos.script import Fault, draw

VICTIMS = (["ing1", "ing2", "bridge1"], ["a-b", "b-c"])


def test_a_seed_gives_one_script() -> None:
    assert draw(3, 60.0, *VICTIMS) == draw(3, 60.0, *VICTIMS) != draw(4, 60.0, *VICTIMS)


def test_faults_of_a_victim_follow_one_another_and_end_in_time() -> None:
    lines: dict[str, list[Fault]] = defaultdict(list)
    for fault in draw(5, 120.0, *VICTIMS):
        lines[fault.victim].append(fault)
    assert set(lines) == {*VICTIMS[0], *VICTIMS[1], "broker"}
    for line in lines.values():
        assert all(fault.begin_s <= fault.end_s <= 120.0 for fault in line)
        assert all(one.end_s < other.begin_s for one, other in itertools.pairwise(line))
