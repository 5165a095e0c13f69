"""The oracle of answers: what it takes for right, and each kind of wrong answer that it has to see."""

import time

import pytest

from tests.oracle import Oracle, Wrong

S = ("d", "m")
ALL = (0, 100)


def oracle(*, acked_before_s: float = 2.0) -> Oracle:
    """Points 1, 2 and 3, of values 10, 20, 30, acknowledged so long ago."""
    made = Oracle()
    for at in (1, 2, 3):
        made.published(S, at, at * 10.0)
        made.acked(S, at, at * 10.0)
    for versions in made._series[S].versions.values():
        versions[0].published_s -= acked_before_s
        versions[0].acked_s = (versions[0].acked_s or 0.0) - acked_before_s
    return made


def judge(made: Oracle, rows: list[tuple[int, float]], complete: bool = True) -> None:
    now = time.monotonic()
    made.judge(S, ALL, (now, now + 0.001), rows, complete)


RIGHT = [(1, 10.0), (2, 20.0), (3, 30.0)]


def test_all_that_was_acknowledged_is_right() -> None:
    judge(oracle(), RIGHT)


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (RIGHT[:2], "1 of 3 points are missing"),
        ([*RIGHT, (3, 30.0)], "1 points twice"),
        ([*RIGHT[:2], (3, 31.0)], "1 points that may not be there"),
        ([*RIGHT, (4, 40.0)], "1 points that may not be there"),
    ],
)
def test_points_that_are_lost_double_other_or_invented_are_seen(rows: list[tuple[int, float]], text: str) -> None:
    with pytest.raises(Wrong, match=text):
        judge(oracle(), rows)


def test_an_answer_that_says_that_it_lacks_something_may_lack_points_and_have_no_others() -> None:
    judge(oracle(), RIGHT[:1], complete=False)
    with pytest.raises(Wrong, match="may not be there"):
        judge(oracle(), [(1, 11.0)], complete=False)


def test_what_was_acknowledged_a_moment_ago_may_be_missing_or_not() -> None:
    made = oracle(acked_before_s=0.0)
    judge(made, RIGHT)
    judge(made, [])


def test_a_deleted_range_may_be_there_until_the_answer_and_not_after_it() -> None:
    made = oracle()
    deletion = made.deleting(S, 2, 3)
    judge(made, RIGHT)
    judge(made, RIGHT[:1])
    deletion.done_s = time.monotonic()
    judge(made, RIGHT[:1])
    with pytest.raises(Wrong, match="2 points that may not be there"):
        judge(made, RIGHT)


def test_a_value_published_after_the_delete_is_the_only_one() -> None:
    made = oracle()
    made.deleting(S, 2, 3).done_s = time.monotonic()
    made.published(S, 2, 1.0)
    judge(made, [(1, 10.0), (2, 1.0)])
    judge(made, [(1, 10.0)])
    with pytest.raises(Wrong, match="1 points that may not be there"):
        judge(made, [(1, 10.0), (2, 20.0)])


def test_figures_are_held_against_the_same() -> None:
    made, now = oracle(), time.monotonic()
    assert made.judge_figures(S, ALL, (now, now), 3, 60.0, complete=True)
    for count, total in ((2, 30.0), (4, 60.0), (3, 61.0)):
        with pytest.raises(Wrong):
            made.judge_figures(S, ALL, (now, now), count, total, complete=True)
    made.judge_figures(S, ALL, (now, now), 2, 30.0, complete=False)
