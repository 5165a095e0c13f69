"""What an answer cost, by node, and how long each stage took; see docs/http-api.md. Reads the clock, nothing else."""

from collections.abc import Sequence
from time import perf_counter_ns
from typing import Any

from common.protocol import Cost
from workers.query.gather import Gather

NS_PER_MS = 1e6


class Stages:
    """How long each stage took, one after the other."""

    def __init__(self, started_ns: int) -> None:
        self.spent_ms: dict[str, float] = {}
        self._last_ns = started_ns

    def end(self, stage: str) -> None:
        """A stage has ended, and the next one begins."""
        now_ns = perf_counter_ns()
        self.spent_ms[f"{stage}_ms"] = (now_ns - self._last_ns) / NS_PER_MS
        self._last_ns = now_ns


def explained(asked: Sequence[Gather[Any]], stages: Stages) -> dict[str, Any]:
    """What an answer's questions cost."""
    nodes: dict[str, Cost] = {}
    for gather in asked:
        for node, reply in zip(gather.senders, gather.replies, strict=True):
            nodes[node] = _sum(nodes.get(node, Cost()), reply.cost)
    return {"nodes": {node: _shown(cost) for node, cost in sorted(nodes.items())}, "stages": stages.spent_ms}


def _sum(one: Cost, other: Cost) -> Cost:
    return Cost(*(getattr(one, name) + getattr(other, name) for name in Cost.__struct_fields__))


def _shown(cost: Cost) -> dict[str, float]:
    """spent_ns 0: a node that does not tell."""
    shown: dict[str, float] = {name: getattr(cost, name) for name in Cost.__struct_fields__ if name != "spent_ns"}
    return shown | {"ms": cost.spent_ns / NS_PER_MS}
