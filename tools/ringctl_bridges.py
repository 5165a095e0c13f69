"""What `ringctl status` says of bridges: those that some node has heard, as told by the node that heard each last."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.markup import escape

from tools.output import duration_text, size_text
from tools.ringctl_status import NodeStatus


def heard(nodes: Sequence[NodeStatus]) -> dict[str, dict[str, Any]]:
    """The latest status of each bridge, ascending by id. age_s: how old it is."""
    return latest(node.answer for node in nodes)


def latest(statuses: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The same, from what nodes answer."""
    found: dict[str, dict[str, Any]] = {}
    for status in statuses:
        for bridge, told in status.get("bridges", {}).items():
            if bridge not in found or told["age_s"] < found[bridge]["age_s"]:
                found[bridge] = told
    return dict(sorted(found.items()))


def late(bridges: dict[str, dict[str, Any]], late_s: float) -> list[str]:
    """Those that no node has heard for so long."""
    return [bridge for bridge, told in bridges.items() if told["age_s"] > late_s]


def lines(bridges: dict[str, dict[str, Any]], late_s: float) -> list[str]:
    """A line for each bridge and one more for each thing that should be known of it, as markup."""
    gone = late(bridges, late_s)
    found = []
    for bridge, told in bridges.items():
        if bridge in gone:
            text = f"{bridge}: not heard for {duration_text(told['age_s'])}: it has ended, or reaches no node"
            found.append(f"[red]{escape(text)}[/]")
        else:
            found.append(escape(f"{bridge}: heard {told['age_s']:.1f} s ago"))
        found += [f"  [yellow]{escape(text)}[/]" for text in _amiss(told)]
    return found


def _amiss(told: dict[str, Any]) -> Iterator[str]:
    for reason in told.get("unhealthy", ()):
        yield f"unhealthy: {reason}"
    for node, spool in told.get("spools", {}).items():
        yield from _of_spool(node, spool)
    if error := told.get("dead_letter", {}).get("error"):
        yield f"dead letter takes nothing: {error}"


def _of_spool(node: str, spool: dict[str, Any]) -> Iterator[str]:
    if spool["records"]:
        age = spool["oldest_s_ago"]
        oldest = "" if age is None else f", the oldest from {duration_text(age)} ago"
        yield f"spool for {node}: {size_text(spool['bytes'])} in {spool['records']} batches{oldest}"
    if spool["error"]:
        yield f"spool for {node} takes or gives nothing for now: {spool['error']}"
    if spool["damaged"]:
        yield f"spool for {node}: {spool['damaged']} damaged parts set aside, their points have not reached it"
