"""Which nodes may lack acknowledged points: those that bear a mark in the ring store.

A mark is there before the first PUBACK that relies on a spool, and until that spool is drained. So a node without
a mark, looked for after a point was acknowledged, has that point if it is an owner of it; one with a mark must not
be asked, or an answer would lack points and say nothing. So marks are looked at before a question begins, after idle
time as well: a store that tells of a change, or that it cannot be read, is heard by the next question. Belongs to the
scatter thread.
"""

from collections.abc import Mapping
from typing import Final

from common import clock, log
from common.errors import RingStoreError
from common.ringstore import RingStore

LOOK_S: Final = 0.25  # between looks: an answer speaks of points acknowledged a second before it
OLD_S: Final = 1.0  # marks of longer ago say nothing of these: a store that answers late counts as unreadable
GRACE_S: Final = 1.0  # a short spool is drained by then; a question to a node that stays behind fails at once

logger = log.get("query.behind")

Reason = tuple[str, float]  # in words, and until when (monotonic) waiting may help


class Behind:
    """nodes: why each may lack points; replaced whole."""

    def __init__(self, store: RingStore) -> None:
        self.nodes: Mapping[str, Reason] = {}
        self._store = store
        self._next_s = float("-inf")
        self._read_s = clock.monotonic_s()
        self._is_failing = False
        store.watch(self._look_soon)

    def _look_soon(self) -> None:
        """Any thread: the next look is due at once. Looks note first when the next one is due and read then."""
        self._next_s = float("-inf")

    def unread_s(self, now_s: float) -> float:
        """For how many seconds marks have not been read, 0 while they are. Who fell behind since is not known."""
        unread_s = max(0.0, now_s - self._read_s)
        return unread_s if self._is_failing or unread_s > OLD_S else 0.0

    def look(self, now_s: float) -> None:
        """Look at the marks if it is time to. What cannot be read leaves what is known."""
        if now_s < self._next_s:
            return
        self._next_s = now_s + LOOK_S
        as_of_s = self._store.as_of_s()  # first: marks are as new at least
        try:
            marks = self._store.marks()
        except RingStoreError as error:
            self._is_failing = True
            if logger.limited("marks", 30.0):
                logger.warning("marks unreadable, going on with those known", detail=str(error))
            return
        self._is_failing, self._read_s = False, max(self._read_s, min(now_s, as_of_s))
        holders: dict[str, list[str]] = {}
        for mark in sorted(marks):
            holders.setdefault(mark.node, []).append(mark.by)
        self.nodes = {node: self._reason(node, by, now_s) for node, by in holders.items()}

    def _reason(self, node: str, by: list[str], now_s: float) -> Reason:
        text = f"is behind: points for it are in the spool of {', '.join(by)}"
        return text, self.nodes[node][1] if node in self.nodes else now_s + GRACE_S
