"""What can be done next for a ring on its way to its target, as far as nodes and marks allow. Pure: no I/O, any thread.

A move goes on while its target answers at the ring's epoch and bears no mark, all owners answer at that epoch, and one
of them is current (bears no mark): it has every acknowledged point. An owner that is gone for good does not have to
answer; who says so is the operator, and that is kept in the ring store as a mark by LOST: a node with a mark is not
read, so it need not be fenced. Where all owners of a partition are lost, and the operator has accepted that (a mark by
LOSS), its target begins with nothing but what spools have for these owners: it waits until each bridge with a mark on
one of them says that it has taken its records from before the target joined out of that spool, and sent them to the
target, too. Once so that stays so: a bridge writes no record of an earlier epoch than that of the last move it knows,
and what it writes then goes to the target as well.

Why all owners, and not just the one that is pulled from: an owner with the ring from before the move may acknowledge a
point that the target was not sent. Once it has the new ring it takes only batches that go to the target, too.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

from common.ring import Move, Node, Ring
from common.ringmoves import Step
from common.ringstore import Mark

LOST: Final = "ringctl.lost"  # puts the mark of a node that will not come back
LOSS: Final = "ringctl.loss"  # puts the mark of a lost node whose data is given up


@dataclass(frozen=True)
class Outlook:
    """Ring, marks, and the epoch that each node which answers has. silent: why others do not, by node.

    bridges: what each said of itself last.
    """

    ring: Ring
    marks: frozenset[Mark]
    epochs: Mapping[str, int]
    silent: Mapping[str, str]
    bridges: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @cached_property
    def marked(self) -> frozenset[str]:
        """Nodes that are behind: what they hold proves nothing."""
        return frozenset(mark.node for mark in self.marks)

    def is_up(self, node: str) -> bool:
        """Whether a node answers at this epoch."""
        return self.epochs.get(node, 0) >= self.ring.epoch

    def is_lost(self, node: str) -> bool:
        """Whether a node is gone for good."""
        return Mark(node, LOST) in self.marks

    @cached_property
    def returned(self) -> list[Mark]:
        """Marks of ours that are not needed any more: their node answers after all, or has left the ring."""
        ours = [mark for mark in self.marks if mark.by in (LOST, LOSS)]
        return sorted(mark for mark in ours if self.is_up(mark.node) or not self.ring.has(mark.node))

    def is_given_up(self, partition: int) -> bool:
        """Whether nobody has the points of a partition, and that is accepted."""
        owners = self.ring.owners(partition)
        return all(self.is_lost(node.id) and Mark(node.id, LOSS) in self.marks for node in owners)

    def undelivered(self, partition: int, marks: Iterable[Mark]) -> str:
        """Why the target of a partition that is given up may still lack points that lie in spools, or ""."""
        since, owners = int(self.ring.since[partition]), {node.id for node in self.ring.owners(partition)}
        for node, by in sorted(marks):
            if node not in owners or by in (LOST, LOSS, node):
                continue
            told = self.bridges.get(by)
            if told is None:
                return (
                    f"{by} has points for {node} in its spool and is not heard: start it, or if it is gone for good: "
                    f"ringctl accept-loss {node} --bridge {by}"
                )
            if told["epoch"] < since or told.get("oldest_epochs", {node: 0}).get(node, since) < since:
                error = told.get("spools", {}).get(node, {}).get("error")
                why = f": {error}" if error else ""
                return f"{by} has points for {node} in its spool that have not reached the new owners{why}"
        return ""

    def peer(self, partition: int, source: str | None) -> str | None:
        """The current owner to get a partition from: the one that leaves, if it is one; None where none is current."""
        current = [node.id for node in self.ring.owners(partition) if node.id not in self.marked]
        return source if source in current else next(iter(current), None)

    def hindrance(self, step: Step | Move) -> str:
        """Why a partition cannot be brought to its target now; "" when it can."""
        partition, source, target = step
        owners = self.ring.owners(partition)
        waits = [] if target is None else [self._lateness(target)]
        waits += [self._lateness(node.id) for node in self._asked(owners, step) if not self.is_lost(node.id)]
        if any(waits):
            return next(filter(None, waits))
        if target is None:
            return self._drop_hindrance(partition, owners, source)
        if target in self.marked:
            return f"{target} is behind: {self._why_marked(target)}"
        if self.peer(partition, source) is None and not self.is_given_up(partition):
            names = ", ".join(f"{node.id} ({self._why_marked(node.id)})" for node in owners)
            return f"no owner of partitions of {names} is current"
        is_joined = isinstance(step, Move) and self.is_given_up(partition)
        return self.undelivered(partition, self.marks) if is_joined else ""

    @staticmethod
    def _asked(owners: Iterable[Node], step: Step | Move) -> list[Node]:
        """Whose answer is needed: all owners'; to let one go, its own, for it is fenced."""
        return [node for node in owners if step.target is not None or node.id == step.source]

    def _lateness(self, node: str) -> str:
        if self.is_up(node):
            return ""
        if node in self.epochs:
            return f"{node} has the ring of epoch {self.epochs[node]}, not {self.ring.epoch}"
        return f"{node} does not answer: {self.silent.get(node, 'not asked')}"

    def _drop_hindrance(self, partition: int, owners: Iterable[Node], source: str | None) -> str:
        left = [node.id for node in owners if node.id != source]
        if any(node not in self.marked and self.is_up(node) for node in left):
            return ""
        return f"{source} is still needed: no other owner of some partitions is current ({', '.join(left)})"

    def _why_marked(self, node: str) -> str:
        by = sorted(mark.by for mark in self.marks if mark.node == node)
        return "; ".join(mark_text(node, each) for each in by)


def mark_text(node: str, by: str) -> str:
    """What a mark says."""
    if by == node:
        return "its disk was lost or damaged, it has to be repaired"
    if by == LOST:
        return "it is taken for lost"
    if by == LOSS:
        return "what it held is given up"
    return f"points for it are in the spool of {by}"


def sorted_out(
    wanted: Iterable[Step | Move], hindrance: Callable[[Step | Move], str]
) -> tuple[list[Step | Move], list[str]]:
    """Those that nothing hinders, and why the others are: each reason once."""
    free, reasons = [], dict[str, None]()
    for step in wanted:
        why = hindrance(step)
        if why:
            reasons[why] = None
        else:
            free.append(step)
    return free, list(reasons)


def spread(steps: Sequence[Step], most: int) -> list[Step]:
    """At most so many steps that bring partitions to a target, one for each partition.

    They are shared among sources and targets: then many disks and networks work at the same time.
    """
    piles: defaultdict[tuple[str | None, str | None], list[Step]] = defaultdict(list)
    for step in reversed(steps):
        if step.target is not None:
            piles[step.source, step.target].append(step)
    chosen: dict[int, Step] = {}
    while piles and len(chosen) < most:
        for pair in list(piles):
            step = piles[pair].pop()
            if not piles[pair]:
                del piles[pair]
            if len(chosen) < most:
                chosen.setdefault(step.partition, step)
    return sorted(chosen.values(), key=lambda step: step.partition)
