"""Buckets of a few ns at times of today: there each has its own row, though floats cannot tell such times apart."""

from pathlib import Path

import pytest

from common.selector import Selector
from tests import naive
from tests.workers.storage.answers import assert_by_interval
from tests.workers.storage.support import batch_of, key, open_store

NOW_NS = 1_728_950_400_000_000_000


@pytest.mark.parametrize("interval", [1, 3, 255])
def test_buckets_narrower_than_the_steps_of_floats_are_told_apart(tmp_path: Path, interval: int) -> None:
    oracle = naive.PointSet()
    store = open_store(tmp_path)
    for times in (range(200, 300, 7), range(250, 1100, 41), range(290, 295)):  # overlapping: they have to be decoded
        rows = [(key("a"), NOW_NS + time, float(time)) for time in times]
        store.append([batch_of(rows)])
        store.seal()
        for row in rows:
            oracle.add(*row)
    for start in (None, NOW_NS + 260, NOW_NS + 293):
        assert_by_interval(store, oracle, Selector("a"), start, None, interval, 0, few=False)
    store.close()
