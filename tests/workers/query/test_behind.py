"""How long ago marks were read, by what the ring store says of itself."""

from common.errors import RingStoreError
from common.ringstore import Mark
from workers.query.behind import LOOK_S, OLD_S, Behind


class Store:
    """as_of: when what it tells was true, as of a store that is looked at by a thread."""

    def __init__(self) -> None:
        self.as_of, self.away = float("-inf"), False

    def watch(self, changed: object) -> None:
        """It tells nobody."""

    def as_of_s(self) -> float:
        return self.as_of

    def marks(self) -> frozenset[Mark]:
        if self.away:
            raise RingStoreError("away")
        return frozenset()


def test_marks_that_a_slow_ring_store_told_long_ago_count_as_unread(monkeypatch):
    monkeypatch.setattr("workers.query.behind.clock.monotonic_s", lambda: 100.0)
    store = Store()
    behind = Behind(store)  # type: ignore[arg-type]
    behind.look(100.0)
    assert behind.unread_s(100.0) == 0
    store.as_of = 101.5
    behind.look(102.0)
    assert behind.unread_s(102.0) == 0
    behind.look(102.0 + OLD_S)  # its thread still waits for an answer
    assert behind.unread_s(102.0 + OLD_S) == OLD_S + 0.5
    store.as_of = 104.0
    behind.look(104.0)
    assert behind.unread_s(104.0) == 0
    store.away = True
    behind.look(104.0 + LOOK_S)
    assert behind.unread_s(104.0 + LOOK_S) == LOOK_S
