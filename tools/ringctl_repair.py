"""Commands of tools/ringctl about what nodes lack: repair, and watch, which shows it as it changes.

Owns what they ask and print; nodes do the work. Changes no ring and no mark.
"""

import time
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, Final

import click
import msgspec
from rich.live import Live
from rich.markup import escape

from common import bus, clock, config, protocol, series
from common.errors import MinitrueError, RingError
from common.protocol import JobState
from common.ring import Ring
from common.ringstore import RingStore
from tools.output import Output, duration_text, new_table, size_text
from tools.ring_ask import Asker
from tools.ring_outlook import mark_text
from tools.ringctl_show_moves import rate_of, watch_table

POLL_S: Final = 0.2
DARK_S: Final = 10.0  # a node that tells nothing of its repair for so long has failed it
ENDED: Final = ("done", "failed", "cancelled")


def register(command: Callable[[Callable[..., int]], click.Command]) -> None:
    """Make the commands. command: what makes a command of a function (settings, store, output, ...)."""
    for function in (repair, watch):
        command(function)


@click.option("--partition", "partitions", type=click.IntRange(0), multiple=True, help="A partition; may be repeated.")
@click.option("--series", "named", nargs=2, metavar="DEVICE METRIC", help="One series.")
@click.option("--tag", "tags", multiple=True, metavar="K=V", help="A tag of that series; once for each tag.")
@click.option("--all", "everything", is_flag=True, help="All partitions.")
@click.option("--rate", type=rate_of, metavar="RATE", help="Bytes a second that a node copies at most, such as 20M "
              "[storage.repair_rate_bytes].")  # fmt: skip
def repair(settings: config.Settings, store: RingStore, output: Output, partitions: Sequence[int],
           named: tuple[str, str] | None, tags: Sequence[str], everything: bool, rate: int | None) -> int:  # fmt: skip
    """Let owners compare what they hold, and get from each other what one of them lacks.

    \b
      ringctl repair --all --rate 20M
      ringctl repair --series sensor_1 temperature --tag room=5

    Nodes do that by themselves every storage.repair_interval_s. What is younger than storage.repair_settle_s is left
    out: it may be on its way. Exit code 1 when some could not be compared; those with one owner cannot be.
    """
    if (bool(partitions), bool(named), everything).count(True) != 1 or (tags and not named):
        raise click.UsageError("want one of --partition, --series (with --tag) and --all")
    ring, ask = _load(store), Asker(bus.load_key(settings), rate)
    keys = [_key(*named, tags)] if named else []
    wanted = [series.partition_of(key, ring.partitions) for key in keys] or list(partitions)
    beyond = [each for each in wanted if each >= ring.partitions]
    if beyond:
        raise click.UsageError(f"partition {beyond[0]}, want 0 to {ring.partitions - 1}")
    asked = set(wanted or range(ring.partitions))
    alone = {partition for partition in asked if len(ring.owners(partition)) < 2}
    jobs, failed = _begin(ask, ring, asked - alone, keys)
    ended = wait(ask, ring, jobs, failed, output)
    table = new_table("node", "", ">compared", ">equal", ">points got", ">bytes", ">took", "")
    for node, job in ended.items():
        figures = (f"{job.done}/{job.partitions}", str(job.equal), f"{job.points:,}", size_text(job.bytes))
        table.add_row(node, job.state, *figures, duration_text(job.seconds), escape(job.error))
    failed |= {node: job.error or job.state for node, job in ended.items() if job.state != "done" or job.error}
    tables = [table] if ended else []
    output.say(*tables, *(escape(f"{node}: {why}") for node, why in failed.items() if node not in ended))
    if alone:
        output.say(_alone_text(ring, len(alone), len(asked)))
    told = {node: _facts(job) for node, job in ended.items()}
    is_ok = not failed and not alone
    output.result({"ok": is_ok, "nodes": told, "failed": failed, "one_owner": len(alone)})
    return 0 if is_ok else 1


def _alone_text(ring: Ring, alone: int, asked: int) -> str:
    which = "the partition" if asked == 1 else f"{alone:,} of {asked:,} partitions"
    have = "has" if asked == 1 or alone == 1 else "have"
    more = "ringctl replication 2 gives each two" if ring.replication < 2 else "ringctl resume gives them more"
    return f"{which} {have} one owner: there is nothing to compare with ({more})"


def _facts(job: JobState) -> dict[str, Any]:
    return {**msgspec.structs.asdict(job), "unproven": protocol.members(job.unproven)}


def _begin(
    ask: Asker, ring: Ring, wanted: Set[int], keys: Sequence[bytes]
) -> tuple[dict[str, JobState], dict[str, str]]:
    """The jobs begun by node, and why others are not."""
    jobs, failed = {}, {}
    for node in ring.nodes:
        mine = sorted(wanted & set(ring.owned_partitions(node.id).tolist()))
        if mine:
            try:
                jobs[node.id] = ask.repair(ring, node.id, mine, keys)
            except MinitrueError as error:
                failed[node.id] = str(error)
    return jobs, failed


def wait(
    ask: Asker, ring: Ring, jobs: dict[str, JobState], failed: dict[str, str], output: Output
) -> dict[str, JobState]:
    """The jobs when they have ended. Those that tell nothing any more are added to `failed`, with the reason."""
    begun_s = said = clock.monotonic_s()
    heard_s = dict.fromkeys(jobs, begun_s)
    while left := [node for node, job in jobs.items() if job.state not in ENDED and node not in failed]:
        time.sleep(POLL_S)
        for node in left:
            try:
                state = ask.job(ring, node, jobs[node].job)
            except MinitrueError as error:
                if clock.monotonic_s() - heard_s[node] > DARK_S:
                    failed[node] = str(error)
                continue
            heard_s[node] = clock.monotonic_s()
            if state is None:
                failed[node] = "it has begun anew, and forgot the repair"
            else:
                jobs[node] = state
        if clock.monotonic_s() - said > 5.0:
            said = clock.monotonic_s()
            output.say(escape(progress_text(jobs, said - begun_s)))
    return jobs


def progress_text(jobs: Mapping[str, JobState], seconds: float) -> str:
    """How far repairs are that have taken so many seconds, in a line. Nodes work at the same time: the last one counts
    for what is left, which is not known before each has some.
    """
    points, size = sum(job.points for job in jobs.values()), sum(job.bytes for job in jobs.values())
    got = f"{points:,} points got, {size_text(size)}, {size_text(size / seconds)}/s"
    left = [seconds * (job.partitions - job.done) / job.done for job in jobs.values() if job.done]
    rest = f", about {duration_text(max(left))} left" if len(left) == len(jobs) else ""
    waits = [f"{node}: {job.error}" for node, job in jobs.items() if job.error and job.state not in ENDED]
    return "; ".join([*(f"{node} {job.done}/{job.partitions}" for node, job in jobs.items()), got + rest, *waits])


@click.option("--every", type=click.FloatRange(min=0.1), default=1.0, show_default=True, help="Seconds between looks.")
@click.option("--count", type=click.IntRange(1), help="End after so many looks [Ctrl-C ends it].")
def watch(settings: config.Settings, store: RingStore, output: Output, every: float, count: int | None) -> int:
    """Show nodes, moves, pulls and repairs as they change. With --json a line for each look.

    \b
      ringctl watch --every 5
    """
    ask, looks = Asker(bus.load_key(settings)), 0
    live = Live(console=output.console, refresh_per_second=4) if output.is_terminal and not output.is_json else None
    try:
        if live is not None:
            live.start()
        while True:
            looks += 1
            _look(ask, store, output, live)
            if looks == count:
                return 0
            time.sleep(every)
    except KeyboardInterrupt:
        return 0
    finally:
        if live is not None:
            live.stop()


def _look(ask: Asker, store: RingStore, output: Output, live: Live | None) -> None:
    ring, marks = _load(store), store.marks()
    statuses: dict[str, Any] = dict(ask.statuses(ring, [node.id for node in ring.nodes]))

    def said(node: str) -> list[str]:
        return [mark_text(node, mark.by) for mark in sorted(marks) if mark.node == node]

    table = watch_table(ring, statuses, said)
    if live is not None:
        live.update(table)
    else:
        output.say(table)
    known = {node: answer for node, answer in statuses.items() if not isinstance(answer, MinitrueError)}
    output.result(
        {"epoch": ring.epoch, "moves": [list(move) for move in ring.moves], "marks": sorted(marks), "nodes": known,
         "silent": sorted(statuses.keys() - known.keys())}
    )  # fmt: skip


def _load(store: RingStore) -> Ring:
    ring = store.load()
    if ring is None:
        raise RingError(f"no ring in {store.url}: make one with tools/ringctl init (one that was lost: restore)")
    return ring


def _key(device: str, metric: str, tags: Sequence[str]) -> bytes:
    pairs = {}
    for text in tags:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"got {text!r}, want K=V", param_hint="--tag")
        pairs[name] = value
    return series.series_key(device, metric, pairs)
