"""What ringctl prints of changes: a plan, how moves get on, and the live table of `watch`. Asks nobody."""

import re
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

import click
import msgspec
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from common import clock
from common.ring import Ring
from tools.output import Output, duration_text, new_table, size_text
from tools.ring_change import Plan
from tools.ring_mover import WAITING, Progress

MAX_RATE: Final = 1 << 62  # what a request can carry; as good as no limit
EVERY_S: Final = 5.0  # between lines of progress that do not go to a terminal
_WATCHED: Final = ("epoch", "partitions_owned", "partitions_joining", "partitions_fenced")
_UNITS: Final = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}


def rate_of(text: str) -> int:
    """Bytes a second: a number, with k, M, G (of 1000) or Ki, Mi, Gi (of 1024) behind it, and B and /s if you like."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmg]?i?)b?(/s)?", text.lower())
    if found is None or found[2] not in _UNITS:
        raise click.BadParameter(f"got {text!r}, want bytes a second such as 20M, or 0 for no limit")
    return min(int(float(found[1]) * _UNITS[found[2]]), MAX_RATE)


def plan_lines(ring: Ring, plan: Plan) -> list[str | Table]:
    """What is to be done, for people."""
    table = new_table("node", "", ">partitions", ">then", ">share", ">come", ">go", ">to copy")
    for share in plan.nodes:
        size = size_text(share.bytes) if share.bytes else ""
        cells = (share.before, share.after, share.share, share.coming, share.going)
        table.add_row(share.node, share.state, *(f"{cell:g}" for cell in cells), size)
    return [table, f"{_copies(plan)}; {_drops(plan)}", *_costs(plan)]


def _copies(plan: Plan) -> str:
    return f"{plan.copied:,} partitions get another owner (at the very least {plan.least:,} have to)"


def _drops(plan: Plan) -> str:
    return f"{plan.dropped:,} lose one that nobody replaces"


def _costs(plan: Plan) -> list[str]:
    if not plan.copied:
        return []
    if plan.bytes is None or plan.points is None or plan.seconds is None:
        return ["how much that is cannot be told: no node answers"]
    about = f"about {plan.points:,} points, {size_text(plan.bytes)}"
    return [f"{about} to copy, in {duration_text(plan.seconds)} at the least"]


def plan_facts(plan: Plan) -> dict[str, Any]:
    """The same for programs."""
    return plan._asdict() | {"nodes": [msgspec.structs.asdict(share) for share in plan.nodes]}


def progress_text(progress: Progress) -> str:
    """How far it is, in a line."""
    rate = progress.bytes / progress.seconds if progress.seconds > 0 else 0.0
    left = "" if progress.left_s is None else f", about {duration_text(progress.left_s)} left"
    said = (
        f"epoch {progress.epoch}: {progress.done:,} of {progress.total:,} done, {progress.points:,} points, "
        f"{size_text(progress.bytes)}, {size_text(rate)}/s{left}; {progress.phase}"
    )
    if progress.phase == WAITING:
        said += f", for {duration_text(clock.monotonic_s() - progress.went_s)} now"
    return f"{said}: {'; '.join(progress.waits[:3])}" if progress.waits else said


def progress_facts(progress: Progress) -> dict[str, Any]:
    """The same for programs."""
    return {
        name: getattr(progress, name)
        for name in ("epoch", "total", "done", "points", "blocks", "bytes", "copying_s", "fenced_s", "seconds", "waits")
    }


class Teller:
    """Shows progress: one line that changes on a terminal, a line now and then elsewhere, nothing for programs."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._live: Live | None = None
        self._said_s = float("-inf")
        self._waits: list[str] = []

    def __enter__(self) -> Self:
        if self._output.is_terminal and not self._output.is_json:
            self._live = Live(console=self._output.console, transient=True, refresh_per_second=4)
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)

    def __call__(self, progress: Progress) -> None:
        text, now = progress_text(progress), clock.monotonic_s()
        if self._live is not None:
            self._live.update(escape(text))
        elif now - self._said_s > EVERY_S or (progress.waits and progress.waits != self._waits):
            self._said_s, self._waits = now, list(progress.waits)
            self._output.say(escape(text))


def watch_table(
    ring: Ring, statuses: Mapping[str, Mapping[str, Any] | Exception], marks: Callable[[str], Sequence[str]]
) -> Table:
    """Every node as it is now. marks: what the marks of a node say."""
    figures = (">epoch", ">owns", ">joins", ">fenced", ">behind", ">points")
    table = new_table("node", "state", *figures, "pulls and repairs", "")
    for node in ring.nodes:
        status = statuses[node.id]
        said = "; ".join(marks(node.id))
        if isinstance(status, Exception):
            table.add_row(node.id, "[red]silent[/]", *[""] * 7, escape(said or str(status)))
            continue
        behind = status.get("behind") or {}
        cells = [str(status.get(key, "")) for key in _WATCHED]
        lacks, points = str(behind.get("partitions", 0)), f"{status.get('points', 0):,}"
        table.add_row(node.id, node.state, *cells, lacks, points, escape(_jobs(status)), escape(said))
    moves = f"{len(ring.moves)} partitions move" if ring.moves else "nothing moves"
    table.title = f"epoch {ring.epoch}: {moves}"
    table.title_justify = "left"
    return table


def _jobs(status: Mapping[str, Any]) -> str:
    jobs = (status.get("repair") or {}).get("jobs", ())
    return ", ".join(f"{job['kind']} {job['done']}/{job['partitions']} {size_text(job['bytes'])}" for job in jobs)
