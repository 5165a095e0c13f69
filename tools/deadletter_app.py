"""tools/deadletter: what a bridge refused: how much, what, and once more after a fix; and what may go.

Owns the commands and what they print; tools/deadletter_files does the work. Exit codes: 0 done and well, 1 failed
or something is amiss, 2 wrong usage.
"""

import functools
import re
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import click
from rich.markup import escape
from rich.table import Table

from common import clock, config, timestamps, topics
from common.errors import MinitrueError
from common.timestamps import NS_PER_S
from tools import deadletter_files as files
from tools.deadletter_files import BridgePlace, File, Wanted
from tools.output import DASHES, EXIT_CODES, Output, new_table, size_text, time_text
from workers.bridge import replay
from workers.bridge.deadletter import Record
from workers.bridge.intake import Intake

SHOWN: Final = 20  # records, devices and topics
PAYLOAD_CHARS: Final = 500  # of a payload, without --full
POLL_S: Final = 0.2
MARKS: Final = {0x01: ", retained", replay.DUP: ", delivered again"}  # bits of a record's flags
PARTITIONS: Final = 1024  # any number will do to decode: nothing is sent anywhere

_UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_AGE: Final = re.compile(r"(\d+(?:\.\d+)?)([smhdw])", re.ASCII)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, by default this process's; errors are one line on stderr."""
    try:
        cli(arguments, prog_name="deadletter")
    except (MinitrueError, OSError) as error:
        print(f"deadletter: {error}", file=sys.stderr)
        sys.exit(1)


@click.group(context_settings=DASHES, epilog=EXIT_CODES)
def cli() -> None:
    """The dead letter: what a bridge could not store, kept with the reason.

    Works on the bridge's directory, whether the bridge runs or not. Payloads that cannot be decoded lie there, and
    points that a storage node refused for good. Nothing leaves it by itself.

    \b
    What is there, and why?
      deadletter list --since 1d
      deadletter show --code missing-field
    The configuration is mended and the bridge started again. Would it take them now?
      deadletter replay --since 1d --dry-run
      deadletter replay --since 1d
    They are not needed any more:
      deadletter purge --before 30d
    """


def command(name: str) -> Callable[[Callable[..., int]], click.Command]:
    """A command of the group: (settings, place, output, ...) to an exit code."""

    def decorate(function: Callable[..., int]) -> click.Command:
        @click.option("--bridge", "bridge_id", metavar="ID", help="Whose dead letter [bridge.id].")
        @click.option("--config", "config_file", type=click.Path(path_type=Path), help="Settings [conf/minitrue.toml].")
        @click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, for programs.")
        @functools.wraps(function)
        def run(bridge_id: str | None, config_file: Path | None, as_json: bool, **values: Any) -> None:
            settings = config.load(config_file)
            place = BridgePlace(settings, bridge_id or settings.bridge.id)
            sys.exit(function(settings, place, Output(as_json), **values))

        return cli.command(name, epilog=EXIT_CODES, context_settings=DASHES)(run)

    return decorate


def _moment(_: Any, __: Any, text: str | None) -> int | None:
    """A time of the command line in nanoseconds."""
    if text is None:
        return None
    age = _AGE.fullmatch(text)
    try:
        if age:
            return clock.wall_ns() - int(float(age[1]) * _UNITS_S[age[2]] * NS_PER_S)
        return timestamps.from_text(text)
    except ValueError as error:
        raise click.BadParameter(f"{error}; or an age, such as 90m, 2h, 7d") from error


def _filters(_: Any, __: Any, given: tuple[str, ...]) -> tuple[str, ...]:
    """Filters of the command line: one that is none would choose nothing without a word."""
    for text in given:
        fault = topics.filter_fault(text)
        if fault:
            raise click.BadParameter(f"got {text!r}, want {fault}")
    return given


def filtered(function: Callable[..., int]) -> Callable[..., int]:
    """Adds the options that choose records; the function gets `wanted`."""

    @click.option("--since", callback=_moment, metavar="TIME", help="Arrived then or later: RFC 3339, or an age: 2h.")
    @click.option("--until", callback=_moment, metavar="TIME", help="Arrived then or before.")
    @click.option("--code", "codes", multiple=True, help="Refused with this code; may be repeated.")
    @click.option("--device", "devices", multiple=True, metavar="ID", help="Of this device; may be repeated.")
    @click.option(
        "--topic",
        "filters",
        multiple=True,
        callback=_filters,
        metavar="FILTER",
        help="On such a topic; may be repeated.",
    )
    @functools.wraps(function)
    def run(
        *arguments: Any,
        since: int | None,
        until: int | None,
        codes: Sequence[str],
        devices: Sequence[str],
        filters: Sequence[str],
        **values: Any,
    ) -> int:
        return function(*arguments, wanted=Wanted(since, until, codes, devices, filters), **values)

    return run


@command("list")
@filtered
def list_letters(settings: config.Settings, place: BridgePlace, output: Output, wanted: Wanted) -> int:
    """Count the records: by code, by device, by topic.

    Below that, the files: how many bytes of how many allowed, from when to when. Exit code 1 when something in them
    cannot be read, when they are full, or when a replay waits for a bridge that does not run.
    """
    summary = files.survey(place, wanted)
    size = sum(file.bytes for file in summary.files)
    limit = settings.bridge.dead_letter_bytes
    waiting = [path.name for path in replay.jobs(place.replay)]
    amiss = _amiss(place, summary, size >= limit, waiting)
    output.say(*_count_tables(summary), _files_line(place, summary, size, limit), *amiss)
    if summary.codes:
        output.say("next: tools/deadletter show, or tools/deadletter replay --dry-run")
    output.result(
        {
            "bridge": place.id,
            "records": summary.codes.total(),
            "oldest": _time(summary.oldest_ns),
            "newest": _time(summary.newest_ns),
            "codes": summary.codes,
            "devices": summary.devices,
            "topics": summary.topics,
            "bytes": size,
            "limit_bytes": limit,
            "damaged_bytes": summary.damaged_bytes,
            "files": [_file_facts(file) for file in summary.files],
            "replays_waiting": waiting,
            "ok": not amiss,
        }
    )
    return 1 if amiss else 0


def _amiss(place: BridgePlace, summary: files.Summary, is_full: bool, waiting: Sequence[str]) -> list[str]:
    found = []
    if is_full:
        found.append("full: the bridge withholds PUBACKs. next: tools/deadletter purge")
    if summary.damaged_bytes:
        found.append(f"{summary.damaged_bytes} bytes are damaged and hold no record that can be read")
    if waiting and not place.is_running:
        found.append(f"{len(waiting)} replays wait for the bridge, which does not run")
    return found


def _count_tables(summary: files.Summary) -> list[Table]:
    if not summary.codes:
        return []
    return [
        _count_table(title, counts)
        for title, counts in (("code", summary.codes), ("device", summary.devices), ("topic", summary.topics))
    ]


def _count_table(title: str, counts: Counter[str]) -> Table:
    table = new_table(title, ">records")
    for name, count in counts.most_common(SHOWN):
        table.add_row(escape(_printable(name)), f"{count:,}")
    rest = counts.most_common()[SHOWN:]
    if rest:
        table.caption = f"and {len(rest):,} more with {sum(count for _, count in rest):,} records"
    return table


def _files_line(place: BridgePlace, summary: files.Summary, size: int, limit: int) -> str:
    count = summary.codes.total()
    span = f", {_time(summary.oldest_ns)} to {_time(summary.newest_ns)}" if count else ""
    held = f"{len(summary.files)} files with {size_text(size)} of {size_text(limit)}"
    return escape(f"{place.id}: {count:,} records{span}; {held} (bridge.dead_letter_bytes)")


def _file_facts(file: File) -> dict[str, Any]:
    return {
        "name": file.path.name,
        "bytes": file.bytes,
        "records": file.records,
        "oldest": _time(file.oldest_ns),
        "newest": _time(file.newest_ns),
        "damaged_bytes": file.damaged_bytes,
    }


@command("show")
@filtered
@click.option("--limit", type=click.IntRange(1), default=SHOWN, show_default=True, help="So many, the newest ones.")
@click.option("--full", is_flag=True, help=f"Whole payloads, not their first {PAYLOAD_CHARS} characters.")
def show(
    _: config.Settings, place: BridgePlace, output: Output, wanted: Wanted, limit: int, full: bool
) -> int:
    """Show records, the newest last.

    A payload is shown as text, or as hexadecimal digits when it is none. With --json each record is a line, its
    payload whole: "payload", or "payload_hex".
    """
    last = deque(files.chosen(place, wanted), maxlen=limit)
    for number, record in last:
        output.say(*_record_lines(record, None if full else PAYLOAD_CHARS))
        output.result(_record_facts(number, record))
    if not last:
        output.say("no such record")
    return 0


def _record_lines(record: Record, most: int | None) -> list[str]:
    text = _text(record.payload)
    shown = record.payload.hex(" ") if text is None else text
    size = len(record.payload)
    cut = f" ... ({size:,} bytes; --full shows all)" if most is not None and len(shown) > most else ""
    device = f", device {_printable(record.device)}" if record.device else ""
    marks = "".join(text for bit, text in MARKS.items() if record.flags & bit)
    topic = _printable(record.topic.decode(errors="backslashreplace"))
    return [
        f"[bold]{time_text(record.time_ns)}[/]  {escape(topic)}",
        escape(f"  {record.code}: {_printable(record.reason)}{device}{marks}"),
        escape(f"  {'' if text is not None or not size else 'hex '}{shown[:most]}{cut}"),
    ]


def _record_facts(number: int, record: Record) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "time": time_text(record.time_ns),
        "time_ns": record.time_ns,
        "code": record.code,
        "reason": record.reason,
        "device": record.device,
        "qos": record.flags >> 1 & 3,
        "retained": bool(record.flags & 0x01),
        "duplicate": bool(record.flags & replay.DUP),
        "file": number,
    }
    for name, data in (("topic", record.topic), ("payload", record.payload)):
        try:
            facts[name] = data.decode()
        except UnicodeDecodeError:
            facts[name + "_hex"] = data.hex()
    return facts


def _text(data: bytes) -> str | None:
    """Bytes as text a terminal can show, None when they are none."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    return text if all(char.isprintable() or char in "\n\r\t" for char in text) else None


def _printable(text: str) -> str:
    """A text from outside, without what would steer a terminal."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _time(time_ns: int | None) -> str | None:
    return None if time_ns is None else time_text(time_ns)


@command("replay")
@filtered
@click.option("--dry-run", is_flag=True, help="Decode by the configuration of now, say what would become of them.")
@click.option("--no-wait", is_flag=True, help="Hand the records over and leave.")
def replay_letters(
    settings: config.Settings, place: BridgePlace, output: Output, wanted: Wanted, dry_run: bool, no_wait: bool
) -> int:
    """Have the bridge take records in once more, by its configuration of now.

    The bridge reads its configuration when it starts: mend, start it again, then replay. What it can store it stores,
    live messages first; what it refuses again stays in the dead letter as it is. Replaying twice, or being stopped in
    between, does no harm. Records that were replayed stay too, until they are purged. Exit code 1 when some were
    refused again, or when the bridge does not run.
    """
    if dry_run:
        return _dry_run(settings, place, output, wanted)
    job, count = files.hand_over(place, wanted)
    if job is None:
        output.say("no such record: nothing to replay")
        output.result({"records": 0, "points": 0, "refused": {}, "done": True})
        return 0
    output.say(f"{count:,} records are handed to {place.id} as replay {job.name}")
    if not no_wait:
        return _wait(place, output, job, count)
    output.say("next: tools/deadletter list, to see whether it still waits")
    output.result({"job": job.name, "records": count, "done": False})
    return 0


def _dry_run(settings: config.Settings, place: BridgePlace, output: Output, wanted: Wanted) -> int:
    latest_ns = clock.wall_ns() + int(settings.ingest.max_future_s * NS_PER_S)
    intake = Intake(settings, PARTITIONS, clock.wall_ns)
    counts = Counter(records=0, points=0)
    refused: Counter[str] = Counter()
    reasons: dict[str, str] = {}
    for _, record in files.chosen(place, wanted):
        points, refusals = intake.decode_record(record, latest_ns)
        counts.update(records=1, points=len(points))
        for refusal in refusals:
            refused[refusal.code] += 1
            reasons.setdefault(refusal.code, refusal.reason)
    output.say(f"{counts['records']:,} records would become {counts['points']:,} points", *_refused(refused, reasons))
    if counts["points"]:
        output.say("next: the same without --dry-run, when the bridge has been started with this configuration")
    output.result({**counts, "refused": refused, "reasons": reasons, "done": False})
    return 1 if refused else 0


def _refused(refused: Counter[str], reasons: dict[str, str]) -> list[Table]:
    if not refused:
        return []
    table = new_table("refused again", ">times", *(("for instance",) if reasons else ()))
    for code, count in refused.most_common():
        instance = (escape(_printable(reasons.get(code, ""))),) if reasons else ()
        table.add_row(code, f"{count:,}", *instance)
    return [table]


def _wait(place: BridgePlace, output: Output, job: Path, count: int) -> int:
    """Until the bridge is done, or does not run any more."""
    outcomes: dict[str, Any] = {}
    while job.exists() and place.is_running:
        outcomes = _progress(place, output, job, count, outcomes)
        time.sleep(POLL_S)
    done = not job.exists()
    outcomes = replay.done(place.replay).get(job.name, {})
    counts, refused = _totals(outcomes)
    if not done:
        output.say(f"{place.id} does not run: it goes on when it starts. next: tools/deadletter list")
    elif outcomes:
        became = f"{counts['records']:,} records became {counts['points']:,} points, durable now"
        output.say(became, *_refused(refused, {}))
    if done and refused:
        output.say(
            "what was refused again stays as it is. next: tools/explain TOPIC PAYLOAD, for one of them; where that "
            "makes points of it, the bridge runs by an older configuration: restart it"
        )
    output.result({"job": job.name, "records": count, "points": counts["points"], "refused": refused, "done": done})
    return 1 if refused or not done else 0


def _progress(
    place: BridgePlace, output: Output, job: Path, count: int, before: dict[str, Any]
) -> dict[str, Any]:
    """Say when further files are done. What is done by now."""
    outcomes: dict[str, Any] = replay.done(place.replay).get(job.name, {})
    if len(outcomes) > len(before):
        counts, _ = _totals(outcomes)
        output.say(f"{counts['records']:,} of {count:,} records done")
    return outcomes


def _totals(outcomes: dict[str, Any]) -> tuple[Counter[str], Counter[str]]:
    counts: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    for each in outcomes.values():
        counts.update(records=each.get("records", 0), points=each.get("points", 0))
        refused.update(each.get("refused", {}))
    return counts, refused


@command("purge")
@click.option("--before", callback=_moment, metavar="TIME", help="All records older: RFC 3339, or an age: 30d.")
@click.option("--all", "everything", is_flag=True, help="Everything that lies there now.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def purge(
    _: config.Settings, place: BridgePlace, output: Output, before: int | None, everything: bool, yes: bool
) -> int:
    """Remove files of records that are not needed any more.

    Whole files go: those whose newest record arrived before the time given. If the newest file is among them the
    bridge begins another first. Removed records cannot be replayed or shown any more.
    """
    if everything == (before is not None):
        raise click.UsageError("want either --before TIME or --all")
    closed = files.close_newest(place, before)
    doomed = files.purgeable(place, before)
    records, size = sum(file.records for file in doomed), sum(file.bytes for file in doomed)
    if doomed:
        output.say(f"{len(doomed)} files with {records:,} records, {size_text(size)}, are removed from {place.letters}")
        if not yes:
            click.confirm("Go on?", abort=True, err=True)
        files.purge(doomed)
    output.say("done" if doomed else "no file is that old: nothing is removed")
    if not closed:
        silent = f"{place.id} did not begin a new file within {files.NEW_FILE_S:g} s"
        output.say(f"{silent}, so its newest one stays. next: the same again")
    output.result({"files": [file.path.name for file in doomed], "records": records, "bytes": size, "ok": closed})
    return 0 if closed else 1


if __name__ == "__main__":
    main()
