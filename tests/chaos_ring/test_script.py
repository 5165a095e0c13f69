"""A seed gives one script, with every kind of change; faults follow one another."""

import itertools

from tests.chaos_ring.script import CHANGES, FAULTS, draw


def test_a_seed_gives_one_script() -> None:
    assert draw(3, 60.0) == draw(3, 60.0) != draw(4, 60.0)


def test_every_kind_of_change_comes_early_and_faults_never_overlap() -> None:
    script = draw(5, 200.0)
    assert {each.what for each in script.changes[: len(CHANGES)]} == set(CHANGES)
    assert {(each.what, each.kind) for each in script.faults} == {
        (what, kind) for what, (kinds, _) in FAULTS.items() for kind in kinds
    }
    assert all(one.end_s < other.begin_s for one, other in itertools.pairwise(script.faults))
    assert all(0 < each < 200 for each in script.deletes_s)
