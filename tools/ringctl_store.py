"""Commands of tools/ringctl that see to the ring store itself: its history, a backup of it, and putting that back.

Owns what they ask and print; which ring is put back is decided in ringctl_backup.py.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec
from rich.markup import escape

from common import bus, clock, config, files, ringchanges
from common.errors import RingError, RingStoreError
from common.ring import Ring
from common.ringstore import Mark, RingStore
from common.timestamps import NS_PER_S
from tools import ring_known, ringctl_backup
from tools.output import Output, new_table, size_text, time_text
from tools.ring_outlook import LOSS, LOST
from tools.ringctl_backup import Backup, Found


def register(command: Callable[[Callable[..., int]], click.Command]) -> None:
    """Make the commands. command: what makes a command of a function (settings, store, output, ...)."""
    for function in (history, backup, restore):
        command(function)


@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="Rings to show, the latest ones.")
def history(_: config.Settings, store: RingStore, output: Output, limit: int) -> int:
    """Show the last rings and what each of them changed.

    \b
      ringctl history --limit 5

    The ring store keeps the last 50. An older one cannot be put in force again, because data has moved since; what it
    says may help to find out what happened.
    """
    pasts = store.history()
    told: list[dict[str, Any]] = []
    before = store.past(pasts[-limit - 1].epoch) if len(pasts) > limit else None
    for past in pasts[-limit:]:
        ring = store.past(past.epoch)
        changed = ringchanges.changes(before, ring)
        saved = time_text(round(past.saved_at_s) * NS_PER_S)
        told.append({"epoch": past.epoch, "saved_at": saved, "bytes": past.size_bytes, "changes": changed})
        before = ring
    table = new_table(">epoch", "saved", ">size", "changed")
    for row in told:
        table.add_row(str(row["epoch"]), row["saved_at"], size_text(row["bytes"]), escape("; ".join(row["changes"])))
    output.say(table if told else f"no history in {store.url}")
    driver = store.driver()
    if driver:
        output.say(escape(f"driving moves: {driver}"))
    output.result({"store": store.url, "driver": driver, "rings": told})
    return 0


@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def backup(_: config.Settings, store: RingStore, output: Output, file: Path) -> int:
    """Write ring, marks and store ids to FILE.

    \b
      ringctl backup /var/backups/minitrue-ring.json

    Do it by a timer, and after each change of nodes. What the store itself keeps (a snapshot of etcd, a copy of
    ring.json) serves as well: `ringctl restore` asks the nodes for what is newer.
    """
    ring = store.load()
    if ring is None:
        raise RingStoreError(f"no ring in {store.url}: nothing to back up")
    marks = [(mark.node, mark.by) for mark in sorted(store.marks())]
    made_at = time_text(clock.wall_ns() // NS_PER_S * NS_PER_S)
    made = Backup(ringctl_backup.VERSION, made_at, ring.document(), marks, store.store_ids())
    try:
        files.replace_file(file.absolute(), [msgspec.json.encode(made, order="sorted"), b"\n"])
    except OSError as error:
        raise RingStoreError(f"cannot write {file}: {error.strerror}") from error
    output.say(escape(f"{file}: ring of epoch {ring.epoch}, {len(marks)} marks"))
    output.result({"file": str(file), "epoch": ring.epoch, "marks": marks})
    return 0


@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), required=False)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--anyway", is_flag=True, help="Although some nodes do not answer: what they know is not asked.")
def restore(
    settings: config.Settings, store: RingStore, output: Output, file: Path | None, yes: bool, anyway: bool
) -> int:
    """Put the ring back into a store that lost it, or was put back to an earlier one itself.

    \b
      ringctl restore /var/backups/minitrue-ring.json

    Takes the latest ring of FILE (of `ringctl backup`, or any ring document), of the store and of all nodes, with the
    deletes of all of them, and saves it under an epoch above every one that is known: so all workers follow it. Marks
    of FILE, of the store and of what nodes and bridges tell come first. Without FILE it looks at store and nodes alone.
    """
    stamp = store.stamp()
    known = _gather(settings, store, file)
    plan = _plan(known)
    output.say(*_lines(plan, known, store))
    if plan.ring is None:
        output.result({"restored": False, "epoch": plan.best.ring.epoch, "silent": sorted(known.silent)})
        return 0
    if known.silent and not anyway:
        silent = ", ".join(sorted(known.silent))
        raise RingError(f"{silent} cannot be asked, and may go by a later ring: start them, or say --anyway")
    if not yes:
        click.confirm("Put it back?", abort=True, err=True)
    _put(store, plan, stamp)
    output.say(f"put back as epoch {plan.ring.epoch}", "next: tools/ringctl status")
    told = {"restored": True, "epoch": plan.ring.epoch, "from": plan.best.where, "deletes": len(plan.ring.deletes)}
    output.result(told | {"marks": sorted(plan.marks), "silent": sorted(known.silent)})
    return 0


class _Known(NamedTuple):
    """What was found out. kept, nodes: rings of file and store, and of nodes. stored: the store's ring, None where it
    has none that is valid, and why in store_fault. silent: nodes that do not answer, and why.
    """

    kept: list[Found]
    nodes: list[Found]
    stored: Ring | None
    store_fault: str
    above: int
    marks: frozenset[Mark]
    store_ids: dict[str, str]
    silent: dict[str, str]


class _Plan(NamedTuple):
    """ring: to be saved, None where the store has the best one. best: what it is made of."""

    ring: Ring | None
    best: Found
    marks: frozenset[Mark]
    store_ids: dict[str, str]


def _gather(settings: config.Settings, store: RingStore, file: Path | None) -> _Known:
    """Everything that file, store and nodes know. Raises RingError, RingStoreError.

    A node knows best which its store is, and is not lost when it answers: an old file may know of other times.
    """
    found, stored_marks, store_ids = [], store.marks(), store.store_ids()
    marks = stored_marks
    if file is not None:
        ring, kept, ids = ringctl_backup.read(file)
        found.append(Found(str(file), ring))
        marks, store_ids = marks | kept, ids | store_ids
    stored, fault = _stored(store)
    if stored is not None:
        found.append(Found(store.url, stored))
    answers, silent = ring_known.ask_all(
        ring_known.first_nodes(settings, [each.ring for each in found]), bus.load_key(settings)
    )
    nodes = [Found(f"node {node}", answer.ring) for node, answer in sorted(answers.items())]
    store_ids |= {node: answer.status["store_id"] for node, answer in answers.items() if "store_id" in answer.status}
    marks -= {mark for mark in marks - stored_marks if mark.by in (LOST, LOSS) and mark.node in answers}
    told = ringctl_backup.marks_told({node: answer.status for node, answer in answers.items()})
    above = max((bridge.get("epoch", 0) for answer in answers.values() for bridge in answer.bridges), default=0)
    return _Known(found, nodes, stored, fault, above, marks | told, store_ids, silent)


def _stored(store: RingStore) -> tuple[Ring | None, str]:
    try:
        ring = store.load()
    except RingError as error:
        return None, str(error)
    return ring, "" if ring else f"no ring in {store.url}"


def _plan(known: _Known) -> _Plan:
    """What to put back. A ring that the store has and that is none of ours' cluster (somebody said `init`) goes.

    Raises RingError.
    """
    ours = {each.ring.cluster for each in (*known.kept, *known.nodes) if each.ring is not known.stored}
    kept = [each for each in known.kept if not ours or each.ring.cluster in ours]
    if not kept and not known.nodes:
        raise RingError(f"{known.store_fault}, and no node answers: name a file")
    best = ringctl_backup.latest(known.nodes, kept)
    others = [each.ring for each in (*kept, *known.nodes) if each is not best]
    lost = {mark for mark in known.marks if not best.ring.has(mark.node)}
    marks, store_ids = known.marks - lost, known.store_ids
    ring = ringctl_backup.put_back(best.ring, others, known.above)
    stored = known.stored
    if stored is not None and stored.hash == best.ring.hash and ring.epoch == stored.epoch + 1:
        return _Plan(None, best, marks, store_ids)  # it has the latest, and all deletes
    above = 0 if stored is None else stored.epoch
    return _Plan(ringctl_backup.put_back(best.ring, others, max(known.above, above)), best, marks, store_ids)


def _lines(plan: _Plan, known: _Known, store: RingStore) -> list[str]:
    """What was found, and what would be done."""
    found = (*known.kept, *known.nodes)
    said = [f"{each.where}: epoch {each.ring.epoch}, cluster {each.ring.cluster}" for each in found]
    said += [known.store_fault] if known.store_fault else []
    said += [f"node {node} does not answer: {why}" for node, why in sorted(known.silent.items())]
    if plan.ring is None:
        return [escape(line) for line in (*said, f"{store.url} holds the latest ring of all: nothing to put back")]
    new = len(plan.ring.deletes) - len(plan.best.ring.deletes)
    also = f", and {new} deletes of others, which also take what came after them" if new else ""
    said.append(f"to put back: the ring of {plan.best.where}{also}, as epoch {plan.ring.epoch}")
    said += [f"mark: {mark.node} is behind, by {mark.by}" for mark in sorted(plan.marks)]
    return [escape(line) for line in said]


def _put(store: RingStore, plan: _Plan, stamp: Any) -> None:
    """Marks and ids first: who sees the ring sees them."""
    if plan.ring is None:
        raise RingError("BUG: nothing to put back")
    present = store.store_ids()
    for mark in sorted(plan.marks):
        store.put_mark(mark)
    for node, store_id in plan.store_ids.items():
        if present.get(node) != store_id:
            store.claim(node, store_id)
    store.restore(plan.ring, stamp)
