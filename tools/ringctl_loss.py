"""accept-loss of tools/ringctl: what nobody has any more, or only a bridge that will not come back, is given up.

Owns what it asks and prints, and the marks that it puts and removes. Changes no ring.

A mark of a bridge says that its spool has points that the node may lack. It is removed here only when the node has got
what others have: from a current owner, who has every acknowledged point. Were it removed before, the node would be read
at once, and answers would pass for complete without points that its co-owner has. Of a node that is lost the mark goes
only when its own data is given up, for it could come back, and would be read then. A bridge that lives after all loses
nothing: it puts a mark again that it misses, and drains its spool.
Thread: that of the caller.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

import click
from rich.markup import escape

from common import bus, config, protocol
from common.errors import ConfigError, MinitrueError, RingError, RingStoreError
from common.protocol import JobState
from common.ring import Ring
from common.ringstore import Mark, RingStore
from tools import ringctl_bridges
from tools.output import Output, duration_text
from tools.ring_ask import Asker, RefusedError
from tools.ring_outlook import LOSS, LOST
from tools.ringctl_repair import wait

OURS: Final = (LOST, LOSS)  # marks that ringctl put, not a bridge


def register(command: Callable[[Callable[..., int]], click.Command]) -> None:
    """Make the command. command: what makes one of a function (settings, store, output, ...)."""
    command(accept_loss)


@click.argument("node")
@click.option("--bridge", metavar="ID", help="Give up what only the spool of this bridge has for NODE.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def accept_loss(
    settings: config.Settings, store: RingStore, output: Output, node: str, bridge: str | None, yes: bool
) -> int:
    """Accept that what NODE lacks is lost: it answers again, and its answers count as complete.

    \b
      ringctl accept-loss ing2                    its disk is lost, and nobody else has its data
      ringctl accept-loss ing2 --bridge bridge3   that bridge is gone for good, and its spool with it

    For data that is gone for good: a lost disk or a damaged file, with no other owner that has it. As long as an owner
    has it, wait: the node is repaired from that one by itself. For a node that was removed or replaced with --lost this
    gives up what only it held. With --bridge the node first gets what other owners have, then the mark goes.
    """
    ring = store.load()
    if ring is None:
        raise RingStoreError(f"no ring in {store.url}: make one with tools/ringctl init (one that was lost: restore)")
    ring.node(node)
    lost, ask = Mark(node, LOST) in store.marks(), Asker(bus.load_key(settings))
    if bridge is not None:
        return _without_bridge(settings, store, output, ask, ring, Mark(node, bridge), lost, yes)
    return _given_up(store, output, ring, node, yes) if lost else _released(output, ask, store, ring, node, yes)


def _given_up(store: RingStore, output: Output, ring: Ring, node: str, yes: bool) -> int:
    """Give up what a lost node held."""
    count = len(ring.owned_partitions(node))
    output.say(escape(f"{node}: points of {count} partitions are missing or may be: it is taken for lost"))
    if not _agreed(output, yes):
        return 1
    store.put_mark(Mark(node, LOSS))
    output.say("accepted; next: ringctl resume")
    output.result({"node": node, "released": count, "behind": 0})
    return 0


def _released(output: Output, ask: Asker, store: RingStore, ring: Ring, node: str, yes: bool) -> int:
    """Let a node answer again that knows itself behind."""
    behind = _status(ask, ring, node).get("behind") or {}
    if not behind:
        raise RingError(f"{node} lacks nothing that it knows of: there is no loss to accept{_of_bridges(store, node)}")
    reasons = "; ".join(behind["reasons"])
    output.say(escape(f"{node}: points of {behind['partitions']} partitions are missing or may be: {reasons}"))
    if not _agreed(output, yes):
        return 1
    reply = ask.accept_loss(ring, node, behind["of_partitions"])
    released, left = protocol.members(reply.released), protocol.members(reply.behind)
    output.say(f"accepted: {node} answers for {len(released)} partitions again")
    output.result({"node": node, "released": len(released), "behind": len(left)})
    return 0


def _of_bridges(store: RingStore, node: str) -> str:
    bridges = [mark.by for mark in sorted(store.marks()) if mark.node == node and mark.by not in (*OURS, node)]
    if not bridges:
        return ""
    return f"; {', '.join(bridges)} has points for it: start it, or if it is gone for good: --bridge {bridges[0]}"


def _status(ask: Asker, ring: Ring, node: str) -> dict[str, Any]:
    status = ask.statuses(ring, [node])[node]
    if isinstance(status, RefusedError):
        raise status  # it is there, and opens its store
    if isinstance(status, MinitrueError):
        raise ConfigError(f"{status}; if it is gone for good: ringctl remove {node} --lost, or ringctl replace")
    return status


def _agreed(output: Output, yes: bool) -> bool:
    if yes:
        return True
    if output.is_json or not output.is_terminal:
        raise click.UsageError("nobody to ask here: say --yes")
    return click.confirm("Go on without them, for good?")


# The mark of a bridge


def _without_bridge(
    settings: config.Settings, store: RingStore, output: Output, ask: Asker, ring: Ring, mark: Mark, lost: bool,
    yes: bool,
) -> int:  # fmt: skip
    """Remove the mark of a bridge that is gone for good."""
    marks = store.marks()
    _check_mark(mark, marks)
    statuses = ask.statuses(ring, [node.id for node in ring.nodes])
    known = {node: status for node, status in statuses.items() if not isinstance(status, MinitrueError)}
    _check_gone(mark.by, known, settings.bridge_late_s)
    if lost and Mark(mark.node, LOSS) not in marks:
        raise RingError(f"{mark.node} is taken for lost, its own data comes first: ringctl accept-loss {mark.node}")
    if not lost:
        _status(ask, ring, mark.node)  # it has to answer
    pulls, alone = ({}, []) if lost else _sources(ring, mark.node, {each.node for each in marks}, known)
    output.say(*map(escape, _words(ring, mark, pulls, alone)))
    if not _agreed(output, yes):
        return 1
    failed = _pulled(ask, ring, mark.node, pulls, output)
    if not failed:
        store.remove_mark(mark)
    output.say(*map(escape, failed.values()))
    said = f"{mark.node} keeps its mark: try again" if failed else f"accepted: the mark of {mark.by} is removed"
    output.say(escape(said), *([] if failed else ["next: ringctl status"]))
    got = sum(map(len, pulls.values()))
    output.result({"ok": not failed, "node": mark.node, "bridge": mark.by, "copied_from_others": got,
                   "only_there": len(alone), "failed": failed})  # fmt: skip
    return 1 if failed else 0


def _check_mark(mark: Mark, marks: Collection[Mark]) -> None:
    if mark.by in (*OURS, mark.node) or mark not in marks:
        there = ", ".join(f"{each.by} on {each.node}" for each in sorted(marks) if each.by not in (*OURS, each.node))
        raise RingError(f"no mark of a bridge {mark.by} on {mark.node}; bridges have marks: {there or 'none'}")


def _check_gone(bridge: str, statuses: Mapping[str, Mapping[str, Any]], late_s: float) -> None:
    """Raises ConfigError for a bridge that lives."""
    told = ringctl_bridges.latest(statuses.values()).get(bridge)
    if told is not None and told["age_s"] <= late_s:
        ago = duration_text(told["age_s"])
        raise ConfigError(
            f"{bridge} was heard {ago} ago, so it is not gone: its spool drains by itself. If it is to go, stop it "
            f"and repeat this {duration_text(late_s)} later"
        )


def _sources(
    ring: Ring, node: str, marked: Collection[str], answering: Collection[str]
) -> tuple[dict[str, list[int]], list[int]]:
    """From whom a node gets each of its partitions: another owner that is current. Those that have none.

    Raises ConfigError where one that is current does not answer: it has what the node lacks.
    """
    found: dict[str, list[int]] = {}
    alone = []
    for partition in ring.owned_partitions(node).tolist():
        current = [each.id for each in ring.owners(partition) if each.id != node and each.id not in marked]
        up = [each for each in current if each in answering]
        if current and not up:
            raise ConfigError(f"{current[0]} does not answer, and has what {node} lacks: start it, and repeat this")
        if up:
            found.setdefault(up[0], []).append(partition)
        else:
            alone.append(partition)
    return found, alone


def _words(ring: Ring, mark: Mark, pulls: Mapping[str, list[int]], alone: Collection[int]) -> list[str]:
    said = [
        f"{mark.node} gets {len(each):,} partitions of {peer}, what it lacks of them" for peer, each in pulls.items()
    ]
    if alone:
        why = "has one owner" if ring.replication == 1 else "has no other owner that is current"
        said.append(
            f"{len(alone):,} partitions, of which each {why}: points that only the spool of {mark.by} has are lost"
        )
    return said


def _pulled(ask: Asker, ring: Ring, node: str, pulls: Mapping[str, list[int]], output: Output) -> dict[str, str]:
    """Let the node get what it lacks. Why it did not, by peer."""
    failed: dict[str, str] = {}
    for peer, partitions in pulls.items():
        try:
            jobs: dict[str, JobState] = {node: ask.pull(ring, node, partitions, peer)}
        except MinitrueError as error:
            failed[peer] = str(error)
            continue
        dark: dict[str, str] = {}
        job = wait(ask, ring, jobs, dark, output)[node]
        if dark or job.state != "done" or job.error:
            failed[peer] = f"{node} from {peer}: {dark.get(node) or job.error or job.state}"
    return failed
