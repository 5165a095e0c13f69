"""Metrics of intake, delivery and spools: read from their states when asked, so that they cost the hot path nothing.

Belongs to the loop's thread.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

from common import metrics
from workers.bridge.context import Route
from workers.bridge.delivery import COUNTED, Delivery
from workers.bridge.lane import DOWN
from workers.bridge.spool import Spools

_MET: Final = {
    "fields_skipped": "Fields of payloads that are no numbers and were passed over, by subscription.",
    "retained_skipped": "Retained messages that were passed over, by subscription.",
}
_SPOOLED: Final = {
    "bytes": "Bytes of a spool's files.",
    "records": "Batches in a spool that are not delivered.",
    "oldest_seconds": "How long the oldest points have been in a spool.",
    "damaged": "Parts of a spool that could not be read and were set aside.",
}


def export_intake(routes: Sequence[Route]) -> None:
    """Export what was met on each subscription. routes: one for each, in order."""
    for name, text in _MET.items():
        metrics.counter_from(f"minitrue_bridge_{name}_total", text, _counts(routes, name), labels=("filter",))


def _counts(routes: Sequence[Route], name: str) -> Callable[[], dict[tuple[str, ...], float]]:
    return lambda: {(route.subscription.filter,): getattr(route, name) for route in routes}


def export(delivery: Delivery, spools: Spools) -> None:
    """Export the metrics of a bridge's way out."""
    metrics.counters_from("minitrue_bridge_delivery", COUNTED, lambda: delivery.counts)
    metrics.gauge_from("minitrue_bridge_memory_bytes", "Points not yet durable.", lambda: delivery.memory_bytes)
    metrics.gauge_from(
        "minitrue_bridge_owner_up",
        "1 while a node is not taken for down.",
        lambda: {(node,): int(state != DOWN) for node, state in delivery.states.items()},
        labels=("node",),
    )
    for name, text in _SPOOLED.items():
        metrics.gauge_from(f"minitrue_bridge_spool_{name}", text, _reader(spools, name), labels=("node",))


def _reader(spools: Spools, name: str) -> Callable[[], dict[tuple[str, ...], float]]:
    field = "oldest_s_ago" if name == "oldest_seconds" else name

    def read() -> dict[tuple[str, ...], float]:
        status: dict[str, dict[str, Any]] = spools.status()
        return {(node,): spool[field] or 0.0 for node, spool in status.items()}

    return read
