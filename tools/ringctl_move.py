"""Commands of tools/ringctl that change the ring while it runs, and carry changes out: plan, add, remove, replace,
weight, zone, replication, resume, cancel.

Owns what they ask, save and print. Each change is shown first, and saved under the epoch on which it was planned; how
it is carried out then is ring_mover.py's. Programs of this machine are started and ended through supervisord.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
from rich.markup import escape

from common import bus, clock, config
from common.errors import ConfigError, MinitrueError, RingConflictError, RingStoreError
from common.ring import ACTIVE, DRAINING, Node, Ring, endpoint_fault
from common.ringmoves import cancel as cancelled
from common.ringmoves import steps
from common.ringstore import Mark, RingStore
from tools import ring_change, ring_driver, supervised
from tools.output import Output
from tools.ring_ask import Asker, RefusedError
from tools.ring_change import Plan
from tools.ring_mover import WAVE, Mover, Progress
from tools.ring_outlook import LOST
from tools.ringctl_show_moves import Teller, plan_facts, plan_lines, progress_facts, rate_of
from tools.supervised import Supervisor, SupervisorError

START_S: Final = 60.0  # for a node that was started to answer: kernels may have to be compiled
LOOK_S: Final = 0.2
SAVES: Final = 5  # tries to save a change while deletes are committed: each takes milliseconds

Command = Callable[[Callable[..., int]], click.Command]


class How(NamedTuple):
    """Options of commands that move partitions."""

    rate: int | None
    wave: int
    give_up: float
    take_over: bool
    yes: bool
    plan: bool


def register(command: Command) -> None:
    """Make the commands. command: what makes a command of a function (settings, store, output, ...)."""
    for function in (add, remove, replace, weight, zone, replication):
        CHANGES[function.__name__] = command(function)
    for other in (resume, cancel):
        command(other)
    for made in (command(plan), CHANGES["weight"]):  # a change's options; -1, which is refused with what is allowed
        made.context_settings = {**made.context_settings, "ignore_unknown_options": True}


CHANGES: Final[dict[str, click.Command]] = {}  # by name, for `plan`


def _moving(function: Callable[..., int]) -> Callable[..., int]:
    """The options of a command that carries moves out."""
    for option in (
        click.option("--rate", type=rate_of, metavar="RATE", help="Bytes a second that a node copies at most, such as "
                     "20M; 0: no limit [storage.repair_rate_bytes of each node]."),
        click.option("--wave", type=click.IntRange(1), default=WAVE, show_default=True,
                     help="Partitions that move at the same time, at most; fewer where they have many points."),
        click.option("--give-up", type=click.FloatRange(min=0), default=float("inf"), metavar="SECONDS",
                     help="End when nothing gets on for so long [never]."),
        click.option("--take-over", is_flag=True, help="Go on although another ringctl seems to be at it."),
    ):  # fmt: skip
        function = option(function)
    return function


def _changing(function: Callable[..., int]) -> Callable[..., int]:
    """The options of a command that changes the ring."""
    function = click.option("--plan", "only_plan", is_flag=True, help="Show what it would take, and change nothing.")(
        function
    )
    return click.option("--yes", is_flag=True, help="Do not ask.")(_moving(function))


_supervisor = click.option(
    "--supervisor", type=click.Path(path_type=Path), default=supervised.ROOT / "supervisord.conf",
    help="supervisord's file on this machine [supervisord.conf of the checkout].",
)  # fmt: skip


@click.argument("change", nargs=-1, type=click.UNPROCESSED)
def plan(settings: config.Settings, store: RingStore, output: Output, change: Sequence[str]) -> int:
    """Show what a CHANGE would take, or what is left to do, and change nothing.

    \b
      ringctl plan                            what is left of changes that were begun
      ringctl plan add ing4                   what one more node would get
      ringctl plan remove ing2
      ringctl plan replication 2

    How many partitions get another owner, how many points and bytes that is (as the nodes tell now, spread evenly over
    their partitions), what each node owns before and after.
    """
    if not change:
        ring = _load(store)
        return _show_plan(ring, _planned(settings, ring, None), output)
    if change[0] not in CHANGES:
        raise click.UsageError(f"no change {change[0]!r}, want one of {', '.join(sorted(CHANGES))}")
    context = click.get_current_context()
    words = [*change[1:], "--plan", *(["--json"] if output.is_json else [])]
    if context.params.get("config_file"):
        words += ["--config", str(context.params["config_file"])]
    CHANGES[change[0]].main(words, prog_name=f"ringctl {change[0]}", standalone_mode=False)
    return 0


@click.argument("node")
@click.option("--endpoint", help="tcp://HOST:PORT, the first of its three ports [free ports of this machine].")
@click.option("--zone", default="default", show_default=True, help="What it fails together with.")
@click.option("--weight", type=float, default=1.0, show_default=True, help="Its share, relative to the others.")
@_supervisor
@_changing
def add(settings: config.Settings, store: RingStore, output: Output, node: str, endpoint: str | None, zone: str,
        weight: float, supervisor: Path, **options: Any) -> int:  # fmt: skip
    """Add the storage node NODE, and move its share of the data to it.

    \b
      ringctl add ing4 --zone rack2
      ringctl add ing4 --endpoint tcp://192.0.2.14:5710

    On this machine: writes its program into conf.d beside supervisord.conf, starts it through supervisorctl, waits
    until it answers; one that runs already is left as it is. With an --endpoint on another machine it has to be started
    there, with the settings of this cluster (python -m workers.storage --node-id NODE), and is waited for. Its data
    directory is made by the node.
    """
    ring = _load(store)
    new = ring.node(node) if ring.has(node) else Node(node, "", "", zone, weight, ACTIVE)
    new = _placed(settings, ring, new, endpoint)
    return _change(
        settings, store, output, ring, ring_change.added(ring, new), _how(options), starts=new,
        supervisor=Supervisor(supervisor) if supervised.is_here(new.endpoint) else None,
    )  # fmt: skip


@click.argument("node")
@click.option("--lost", is_flag=True, help="It is gone for good: do not wait for it, copy from the other owners.")
@_supervisor
@_changing
def remove(settings: config.Settings, store: RingStore, output: Output, node: str, lost: bool, supervisor: Path,
           **options: Any) -> int:  # fmt: skip
    """Move all data of NODE to the other nodes, then take it out of the ring and end its program.

    \b
      ringctl remove ing2
      ringctl remove ing2 --lost

    A node that does not answer is waited for: it may be the only one that has some points. If it will not come back,
    say --lost: its partitions are copied from their other owners. Where there are none, ringctl accept-loss is needed.
    """
    ring = _load(store)
    return _change(
        settings, store, output, ring, ring_change.removed(ring, node), _how(options), lost=node if lost else None,
        supervisor=_maybe(supervisor),
    )  # fmt: skip


@click.argument("old")
@click.argument("new")
@click.option("--endpoint", help="tcp://HOST:PORT of NEW, the first of its three ports [free ports of this machine].")
@click.option("--zone", help="What NEW fails together with [as OLD].")
@click.option("--weight", type=float, help="The share of NEW, relative to the others [as OLD].")
@click.option("--lost", is_flag=True, help="OLD is gone for good: do not wait for it, copy from the other owners.")
@_supervisor
@_changing
def replace(settings: config.Settings, store: RingStore, output: Output, old: str, new: str, endpoint: str | None,
            zone: str | None, weight: float | None, lost: bool, supervisor: Path, **options: Any) -> int:  # fmt: skip
    """Move all data of the node OLD to the new node NEW; the other nodes keep theirs.

    \b
      ringctl replace ing2 ing5

    NEW is started as by ringctl add, OLD taken away as by ringctl remove.
    """
    ring = _load(store)
    like = ring.node(old)
    made = Node(new, "", "", like.zone if zone is None else zone, like.weight if weight is None else weight, ACTIVE)
    made = _placed(settings, ring, made, endpoint)
    return _change(
        settings, store, output, ring, ring_change.replaced(ring, old, made), _how(options), starts=made,
        lost=old if lost else None, supervisor=_maybe(supervisor),
    )  # fmt: skip


@click.argument("node")
@click.argument("value", type=float)
@_changing
def weight(settings: config.Settings, store: RingStore, output: Output, node: str, value: float, **options: Any) -> int:
    """Give NODE another weight, and move data until its share fits.

    \b
      ringctl weight ing2 2.5

    Weights count relative to each other: of three nodes the one with 2 has twice what each with 1 has, as far as zones
    allow.
    """
    ring = _load(store)
    return _change(settings, store, output, ring, ring_change.weighted(ring, node, value), _how(options))


@click.argument("node")
@click.argument("name")
@_changing
def zone(settings: config.Settings, store: RingStore, output: Output, node: str, name: str, **options: Any) -> int:
    """Say that NODE is in the zone NAME, and move data until owners are in different zones while there are enough.

    \b
      ringctl zone ing2 rack7
    """
    ring = _load(store)
    return _change(settings, store, output, ring, ring_change.zoned(ring, node, name), _how(options))


@click.argument("owners", type=click.IntRange(1))
@_changing
def replication(settings: config.Settings, store: RingStore, output: Output, owners: int, **options: Any) -> int:
    """Let each partition have OWNERS owners: copy data until it has, or let owners go.

    \b
      ringctl replication 2
    """
    ring = _load(store)
    return _change(settings, store, output, ring, ring_change.replicated(ring, owners), _how(options))


@_supervisor
@_moving
def resume(settings: config.Settings, store: RingStore, output: Output, supervisor: Path, **options: Any) -> int:
    """Go on with changes that were begun, whoever began them and however that ended.

    \b
      ringctl resume --rate 20M

    What is left is worked out from the ring; there is nothing else to remember.
    """
    _load(store)
    return _carry(settings, store, output, _how(options), _maybe(supervisor))


@click.option("--take-over", is_flag=True, help="Although another ringctl seems to carry them out.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def cancel(_: config.Settings, store: RingStore, output: Output, take_over: bool, yes: bool) -> int:
    """Stop the moves under way: the nodes that join take no points any more, the owners stay as they are.

    \b
      ringctl cancel --yes

    A ringctl that carries them out has to be ended first (Ctrl-C): it would begin them again.
    What was moved before stays where it is, and the ring still is to get to its target: ringctl resume goes on. To go
    back, change it back: ringctl remove a node that was added, ringctl add one that was to be removed.
    """
    ring = _load(store)
    _check_driver(store, output, take_over)
    count, epoch = len(ring.moves), ring.epoch
    if count and not _agreed(output, yes, f"Cancel {count} moves at epoch {ring.epoch}?"):
        return 1
    if count:
        epoch = _save(store, ring, cancelled(ring, [move.partition for move in ring.moves]))
    output.say(f"{count} moves cancelled", *(["next: ringctl plan, then ringctl resume"] if count else []))
    output.result({"cancelled": count, "epoch": epoch})
    return 0


# What they have in common


def _how(options: Mapping[str, Any]) -> How:
    return How(
        options["rate"], options["wave"], options["give_up"], options["take_over"], options.get("yes", True),
        options.get("only_plan", False),
    )  # fmt: skip


def _load(store: RingStore) -> Ring:
    ring = store.load()
    if ring is None:
        raise RingStoreError(f"no ring in {store.url}: make one with tools/ringctl init (one that was lost: restore)")
    return ring


def _maybe(file: Path) -> Supervisor | None:
    return Supervisor(file) if file.is_file() else None


def _placed(settings: config.Settings, ring: Ring, node: Node, endpoint: str | None) -> Node:
    """A node with its endpoint. Raises ConfigError for one that leaves loopback while the bus has no key."""
    found = endpoint or node.endpoint or supervised.free_endpoint(ring)
    if fault := endpoint_fault(found):
        raise ConfigError(f"{node.id}: {fault}")
    if not settings.bus.key_file:
        config.require_loopback(found, f"endpoint of {node.id}")
    return Node(node.id, node.store_id, found, node.zone, node.weight, node.state)


def _change(
    settings: config.Settings, store: RingStore, output: Output, ring: Ring, after: Ring, how: How,
    starts: Node | None = None, lost: str | None = None, supervisor: Supervisor | None = None,
) -> int:  # fmt: skip
    """Show a change; save it when that is agreed to; carry it out. starts: who comes; lost: who is gone for good."""
    key = bus.load_key(settings)
    if lost is not None:
        _check_lost(Asker(key), ring, lost)
    runs = starts is None or _answers(Asker(key), after, starts.id)
    here = starts is not None and not runs and supervised.is_here(starts.endpoint)
    found = _planned(settings, after, how.rate)
    if how.plan:
        return _show_plan(after, found, output)
    if starts is not None and here and supervisor is not None:
        supervisor.check_ready()
        supervisor.check_free(starts.id, settings)
    output.say(*plan_lines(after, found))
    if not _agreed(output, how.yes, f"Change the ring of epoch {ring.epoch} so?"):
        return 1
    _check_driver(store, output, how.take_over)
    if (after.nodes, after.replication) != (ring.nodes, ring.replication):
        _save(store, ring, after)
    if lost is not None:
        store.put_mark(Mark(lost, LOST))
    if starts is not None and not runs:
        _start(settings, Asker(key), store, output, starts, supervisor if here else None)
    return _carry(settings, store, output, how, supervisor)


def _planned(settings: config.Settings, ring: Ring, rate: int | None) -> Plan:
    asked = Asker(bus.load_key(settings)).statuses(ring, [node.id for node in ring.nodes if node.endpoint])
    answers = {node: answer for node, answer in asked.items() if not isinstance(answer, MinitrueError)}
    return ring_change.plan(ring, answers, rate if rate is not None else settings.storage.repair_rate_bytes)


def _show_plan(ring: Ring, found: Plan, output: Output) -> int:
    output.say(*plan_lines(ring, found))
    under_way = f"{len(ring.moves)} of them are under way; " if ring.moves else ""
    output.say(under_way + ("nothing to do" if found.is_empty else "nothing was changed by this command"))
    output.result({"epoch": ring.epoch, "moving": len(ring.moves), **plan_facts(found)})
    return 0


def _agreed(output: Output, yes: bool, question: str) -> bool:
    """Whether to go on. Raises UsageError where nobody can be asked."""
    if yes:
        return True
    if output.is_json or not output.is_terminal:
        raise click.UsageError("nobody to ask here: say --yes, or --plan to see what it would take")
    return click.confirm(question)


def _save(store: RingStore, ring: Ring, after: Ring) -> int:
    """Save a change of a ring, also where deletes were committed since it was loaded: the epoch that it has then."""
    planned = ring.epoch
    for left in reversed(range(SAVES)):
        try:
            store.save(after, ring.epoch)
            break
        except RingConflictError as error:
            now = _load(store)
            again = ring_change.rebased(ring, after, now) if left else None
            if again is None:
                text = f"{error}; nothing was changed, this was planned for epoch {planned}"
                raise RingConflictError(text) from error
            ring, after = now, again
    return after.epoch


def _answers(ask: Asker, ring: Ring, node: str) -> bool:
    """Whether a node is there: one that opens its store, and so refuses, is."""
    answer = ask.statuses(ring, [node])[node]
    return isinstance(answer, RefusedError) or not isinstance(answer, MinitrueError)


def _check_lost(ask: Asker, ring: Ring, node: str) -> None:
    """Raises ConfigError for a node that answers."""
    if _answers(ask, ring, node):
        raise ConfigError(f"{node} answers, so it is not lost: leave out --lost, its data is moved then")


def _check_driver(store: RingStore, output: Output, take_over: bool) -> None:
    """Raises RingStoreError while another ringctl is at it; one that has ended without a word is taken over."""
    note = store.driver()
    if not note or take_over:
        return
    if not ring_driver.is_gone(note):
        raise RingStoreError(
            f"{note} carries changes out: wait for it, or end it. If that process is gone: --take-over"
        )
    output.say(escape(f"{note}: that process has ended, taken over"))
    store.note_driver("")


def _start(
    settings: config.Settings, ask: Asker, store: RingStore, output: Output, node: Node, supervisor: Supervisor | None
) -> None:
    """Have a node started, and wait until it answers. Raises SupervisorError where that takes too long."""
    if supervisor is not None:
        output.say(escape(f"{node.id} is started: {supervisor.add(node.id, settings)}"))
    elif supervised.is_here(node.endpoint):
        output.say(f"start {node.id} on this machine: python -m workers.storage --node-id {node.id}")
    else:
        output.say(escape(f"waiting for {node.id} at {node.endpoint}: start it there, if it is not"))
        return
    ring, by_s = _load(store), clock.monotonic_s() + START_S
    while isinstance(error := ask.statuses(ring, [node.id])[node.id], MinitrueError):
        if clock.monotonic_s() > by_s:
            raise SupervisorError(
                f"{error}: {node.id} was started and does not answer within {START_S:g} s, see its log. It is in the "
                f"ring and owns nothing; next: ringctl resume, or ringctl remove {node.id}"
            )
        time.sleep(LOOK_S)


def _carry(settings: config.Settings, store: RingStore, output: Output, how: How, supervisor: Supervisor | None) -> int:
    """Carry changes out until there is nothing left to do."""
    _check_driver(store, output, how.take_over)
    leaving = [node for node in _load(store).nodes if node.state == DRAINING]
    with Teller(output) as told:
        mover = Mover(store, Asker(bus.load_key(settings), how.rate), told, how.wave)
        try:
            progress = mover.run(how.give_up)
        except KeyboardInterrupt:
            return _interrupted(store, output, mover.progress)
    ring = _load(store)
    gone = [node for node in leaving if not ring.has(node.id)]
    ended = {node.id: _end(settings, node, supervisor) for node in gone}
    output.say(*map(escape, ended.values()))
    output.say(
        f"done at epoch {ring.epoch}: {progress.done:,} changes of owners, {progress.points:,} points copied in "
        f"{progress.seconds:.0f} s"
    )
    output.result({"ok": True, "left": list(ended), "programs": ended, **progress_facts(progress), "epoch": ring.epoch})
    return 0


def _interrupted(store: RingStore, output: Output, progress: Progress) -> int:
    ring = _load(store)
    left = len(steps(ring)) + len(ring.moves)
    output.say(
        f"stopped at epoch {ring.epoch}, {left:,} changes of owners are left, {len(ring.moves)} of them under way; "
        "all is well as it is",
        "next: ringctl resume goes on, ringctl cancel stops the moves under way",
    )
    output.result({"ok": False, "left_to_do": left, **progress_facts(progress)})
    return 1


def _end(settings: config.Settings, node: Node, supervisor: Supervisor | None) -> str:
    """End the program of a node that has left the ring, where that is on this machine and of this cluster: in words."""
    left = f"{node.id} has left the ring"
    if supervisor is None or not supervised.is_here(node.endpoint):
        return f"{left}: end its program on its machine"
    try:
        if not supervisor.has(node.id):
            return f"{left}: end its program, {supervisor.file} has none of that name"
        other = supervisor.other_cluster(node.id, settings)
        if other:
            text = f"the program {node.id} of {supervisor.file} is another cluster's and is left alone ({other})"
            return f"{left}: end its program; {text}"
        if supervisor.end(node.id):
            return f"{left}, and its program has ended"
    except SupervisorError as error:
        return f"{left}; its program was not ended: {error}"
    return (
        f"{left}, and its program has ended. It is only stopped: take its section out of {supervisor.file}, or "
        "supervisord starts it with the others next time, and it waits to be in the ring again"
    )
