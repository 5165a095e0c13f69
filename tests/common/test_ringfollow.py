"""The thread that follows a ring store: what it does with what nobody foresaw. The rest is in test_etcdstore.py."""

from typing import Any, NamedTuple

import pytest

from common.errors import RingStoreError
from common.ringfollow import FollowedStore
from common.ringstore import Mark
from tests.common.test_ringstore import FIRST
from tests.support import wait_until

MARK = Mark("ing1", "bridge1")


class Look(NamedTuple):
    stamp: int
    epoch: int
    marks: frozenset[Mark]


class Store:
    """fault: what a look raises."""

    url = "etcd://test"

    def __init__(self) -> None:
        self.fault: Exception | None = None
        self.marks: frozenset[Mark] = frozenset()

    def watch(self, changed: Any) -> None:
        pass

    def load(self) -> Any:
        return FIRST

    def look(self) -> Look:
        if self.fault is not None:
            raise self.fault
        return Look(1, FIRST.epoch, self.marks)


def test_a_look_that_fails_for_a_reason_nobody_foresaw_is_told_and_the_next_one_counts(monkeypatch):
    monkeypatch.setattr("common.ringfollow.AFTER_FAILURE_S", 0.01)
    store = Store()
    followed = FollowedStore(store, 0.01)  # type: ignore[arg-type]
    try:
        assert followed.marks() == frozenset()
        store.fault = TypeError("not iterable")
        wait_until(lambda: followed._seen.error, what="the error to be told")
        with pytest.raises(RingStoreError, match=r"BUG: a look at etcd://test failed: TypeError\('not iterable'\)"):
            followed.marks()
        store.marks, store.fault = frozenset({MARK}), None
        wait_until(lambda: not followed._seen.error, what="the next look")
        assert followed.marks() == {MARK}
    finally:
        followed.close()
