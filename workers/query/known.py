"""Where the series of a device's metric lie, as far as it is known that no new ones have come.

A query that names no tags is about series that may lie in any partition, so every node would have to be asked. Nodes
tell with their answers in which partitions they found matching series, and a stamp that changes with every new series
that they take in. While every owner's stamp is still the one of those answers, nobody else has such a series.

An answer speaks of points acknowledged at least a second before it (docs/http-api.md), so a stamp counts for less
than that, from the moment at which it was asked for; `stale` names the nodes that should be asked again. What is not
known is asked of everybody, as if this module did not exist.

What would break this, and why it does not:
- A spool is drained into a node: points acknowledged long ago come with a new series. While the node bears its mark
  nothing counts as known (plan.py); when the mark is gone, no stamp asked for before that does (`doubt`). A mark that
  came and went between two looks at the marks (0.55 s apart at most) is why FRESH_S is no longer than it is.
- A partition moves: its new owner's stamp may be from before the move, its former owner's says nothing more. So answers
  teach nothing when a newer ring was heard of since their question began, and nothing counts as known while some node
  is ahead of our ring (`told`): nobody would say "not mine" to a question that is not asked.
- An answer that took long brings a stamp that is older than the last one: a process's stamps only grow.
- A node restarts: its stamps begin elsewhere, at random.

`heard`, `look`, `doubt`, `told` and `stale` belong to the scatter thread; `learn` to any; `where` to the scatter
thread, after a `look`.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Final, NamedTuple

Partitions = int  # a set of partitions, as in plan.py

FRESH_S: Final = 0.45  # an answer may lack series that are younger than a second, see above
RENEW_S: Final = 0.2  # a node not heard for so long is asked, while there are queries
LATER: Final = 1 << 40  # more series than a process ever has: stamps further apart are not of the same process
MAX_PAIRS: Final = 100_000  # about 20 MB; then everything is learned anew

Pair = tuple[str, str]  # device, metric


class _Place(NamedTuple):
    """Found when the stamps were of this generation."""

    partitions: Partitions
    generation: int


class Known:
    """See the module's text."""

    def __init__(self) -> None:
        self._stamps: dict[str, tuple[int, float]] = {}  # by node: the last one, and when it was asked for (monotonic)
        self._generation = 0  # grows when a stamp changes
        self._places: dict[Pair, _Place] = {}
        self._is_fresh = False
        self._not_before_s = float("-inf")  # stamps asked for before do not count (monotonic)
        self.epoch = 0  # of the newest ring that anybody has told of

    def heard(self, node: str, stamp: int, asked_s: float) -> None:
        """Note a node's stamp. asked_s: when it was asked for; 0 as stamp: it has none."""
        last, last_s = self._stamps.get(node, (0, float("-inf")))
        if stamp == last:
            self._stamps[node] = stamp, max(asked_s, last_s)
        elif not 0 < last - stamp < LATER:  # else an earlier answer that comes late
            self._stamps[node] = stamp, asked_s
            self._generation += 1  # at last: who learns meanwhile sees the new stamp, or learns for the old generation

    def doubt(self, now_s: float) -> None:
        """From now on only stamps that are asked for later count: a spool has been drained."""
        self._not_before_s = now_s

    def told(self, epoch: int) -> None:
        """Note the epoch of somebody's ring."""
        self.epoch = max(self.epoch, epoch)

    def look(self, owners: Iterable[str], now_s: float) -> None:
        """Judge whether the stamps of all owners are fresh."""
        oldest_s = min((self._asked_s(node) for node in owners), default=float("-inf"))
        self._is_fresh = now_s - oldest_s < FRESH_S

    def stale(self, owners: Iterable[str], now_s: float) -> list[str]:
        """The owners whose stamps will not be fresh for long, as far as anything is known that needs them."""
        if not self._places:
            return []
        return [node for node in owners if now_s - self._asked_s(node) >= RENEW_S]

    def where(self, pair: Pair) -> Partitions | None:
        """The partitions that hold all series of a device's metric; None when that is not known."""
        place = self._places.get(pair)
        if place is None or not self._is_fresh or place.generation != self._generation:
            return None
        return place.partitions

    def learn(
        self, pair: Pair, partitions: Collection[int], stamps: Mapping[str, int], owners: Collection[str]
    ) -> None:
        """Take in where answers that cover everything found series. stamps: of these answers, by node."""
        generation = self._generation  # before the stamps are compared: what changes meanwhile makes it void
        if not partitions or any(not self._is(node, stamps.get(node, 0)) for node in owners):
            return
        if len(self._places) >= MAX_PAIRS:
            self._places = {}
        self._places[pair] = _Place(sum(1 << each for each in set(partitions)), generation)

    def _is(self, node: str, stamp: int) -> bool:
        return stamp != 0 and self._stamps.get(node, (0, 0.0))[0] == stamp

    def _asked_s(self, node: str) -> float:
        stamp, asked_s = self._stamps.get(node, (0, 0.0))
        return asked_s if stamp and asked_s >= self._not_before_s else float("-inf")
