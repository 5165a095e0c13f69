"""The list of jobs: what is told of those that have ended, and which of them are remembered."""

import pytest

from common import clock
from common.protocol import JobsRequest
from workers.storage import jobs
from workers.storage.jobs import DONE, KEPT, PULL, ROUND, Jobs


def nothing() -> None:
    """Nobody works on them."""


def test_when_a_job_ended_is_told_and_of_one_that_has_not_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    job = Jobs(nothing).begin(ROUND, [1], 64)
    now = [job.begun_s + 3.0]
    monkeypatch.setattr(clock, "monotonic_s", lambda: now[0])
    assert (job.shown().ended_s_ago, job.shown().seconds) == (None, pytest.approx(3.0))
    job.end(DONE)
    now[0] += 7.0
    assert (job.shown().ended_s_ago, job.shown().seconds) == (pytest.approx(7.0), pytest.approx(3.0))


def test_the_last_repair_is_remembered_however_many_moves_follow() -> None:
    listed = Jobs(nothing)
    rounds = [listed.begin(ROUND, [1], 64) for _ in range(2)]
    for each in rounds:
        each.end(DONE)
    for partition in range(3 * KEPT):
        listed.begin(PULL, [partition], 1024).end(DONE)
    listed.begin(PULL, [5], 1024)
    told = listed.shown(JobsRequest()).jobs
    assert [each.job for each in told if each.kind == ROUND] == [rounds[1].number]
    assert len(told) <= KEPT + 2
    assert jobs.PULL in {each.kind for each in told}
