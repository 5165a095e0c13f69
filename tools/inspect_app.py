"""tools/inspect: looks into a node's data directory without a node: what is there, is it sound, what does it say.

Owns the commands and what they print; tools/inspection does the work. Only repair-local writes. Exit codes: 0 done
and well, 1 failed or something is amiss, 2 wrong usage.
"""

import functools
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from common import timestamps
from common.errors import MinitrueError
from tools.inspection import rows, show
from tools.output import DASHES, EXIT_CODES, Output


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, by default this process's; errors are one line on stderr."""
    logging.disable()  # what the node's code would log is said here, in the result
    try:
        cli(arguments, prog_name="inspect")
    except (MinitrueError, OSError) as error:
        print(f"inspect: {error}", file=sys.stderr)
        sys.exit(1)


@click.group(context_settings=DASHES, epilog=EXIT_CODES)
def cli() -> None:
    """A node's data directory, looked at offline: files, damage, contents.

    DIRECTORY is what a storage worker gets as --data-dir, by default data/storage/NODE. No worker has to run;
    list, verify and dump write nothing, and may be used while one runs: segments and delete records never
    change, and of a WAL file that grows they see the beginning. repair-local wants the directory for itself.

    \b
    What is there, and is it sound?
      inspect list data/storage/ing1
      inspect verify data/storage/ing1
    What does it say about a sensor?
      inspect dump data/storage/ing1 --device sensor_1 --start 2024-05-01T00:00:00Z
    After damage:
      inspect repair-local data/storage/ing1 --dry-run
    """


def command(name: str) -> Callable[[Callable[..., int]], click.Command]:
    """A command of the group on a directory: (place, as_json, ...) to an exit code."""

    def decorate(function: Callable[..., int]) -> click.Command:
        @click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
        @click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, for programs.")
        @functools.wraps(function)
        def run(directory: Path, as_json: bool, **values: Any) -> None:
            from tools.inspection.place import Place  # numba comes with it: --help need not wait for that

            sys.exit(function(Place(directory), as_json, **values))

        return cli.command(name, epilog=EXIT_CODES, context_settings=DASHES)(run)

    return decorate


@command("list")
def list_files(place: Any, as_json: bool) -> int:
    """List the files with what they hold.

    Segments: format version, points, series, blocks, first and last time, size, codecs with their points and bytes,
    delete number, and what they replace. WAL files: records, points, and whether a segment covers them. Delete
    records, and what was set aside as damaged. Reads indexes and WAL files, but no blocks: damage in those is
    found by verify. Exit code 1 when a file in use cannot be read.
    """
    from tools.inspection.facts import survey

    found = survey(place)
    output = Output(as_json)
    output.say(show.title(place), *show.list_tables(found), *show.totals(found))
    troubled = found.troubled()
    if troubled:
        output.say(f"{len(troubled)} files are damaged. next: tools/inspect verify {place.directory}")
    output.result({"ok": not troubled, **show.identity(place), **found._asdict()})
    return 1 if troubled else 0


@command("verify")
def verify_files(place: Any, as_json: bool) -> int:
    """Check every file to its last byte.

    CRCs; order of series, blocks and rows; every block decoded, its count, times, sums, digest and windows worked out
    again and compared bit by bit; WAL records and the chain of their files; delete records. Exit code 1 when
    something is wrong. What is on record in damaged/ already, and the torn tail of the newest WAL file, is not.
    """
    from tools.inspection.progress import Shown
    from tools.inspection.verify import size_of, verify

    with Shown(size_of(place), quiet=as_json) as shown:
        verdict = verify(place, shown.advance)
    output = Output(as_json)
    output.say(show.title(place), *show.finding_lines(verdict), show.figures_line(verdict))
    if verdict.findings:
        output.say(f"next: tools/inspect repair-local {place.directory} --dry-run")
    output.result({"ok": not verdict.findings, **show.identity(place), **show.verdict_facts(verdict)})
    return 1 if verdict.findings else 0


def _time(_: Any, __: Any, text: str | None) -> int | None:
    """A time of the command line in nanoseconds."""
    if text is None:
        return None
    try:
        return timestamps.from_number(int(text)) if text.lstrip("-").isdigit() else _other_time(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _other_time(text: str) -> int:
    try:
        return timestamps.from_number(float(text))
    except ValueError:
        return timestamps.from_text(text)


@command("dump")
@click.argument("files", nargs=-1, metavar="[FILE]...")
@click.option(
    "--what", type=click.Choice(["points", "blocks", "records", "deletes"]), default="points", show_default=True,
    help="Points of segments and WAL files; blocks of segments as their index has them; records of WAL files; "
    "delete records.",
)  # fmt: skip
@click.option("--device", help="Of this device only.")
@click.option("--metric", help="Of this metric only.")
@click.option("--tag", "tags", multiple=True, metavar="K=V", help="Of series with this tag only; may be repeated.")
@click.option("--start", callback=_time, metavar="TIME", help="From this time: Unix seconds, or RFC 3339.")
@click.option("--end", callback=_time, metavar="TIME", help="Up to this time, inclusive.")
@click.option("--skip-deleted", is_flag=True, help="Leave out points that a delete record hides.")
def dump_files(place: Any, as_json: bool, files: Sequence[str], what: str, **filters: Any) -> int:
    """Print what files hold, row by row: CSV, or with --json one JSON object a line.

    FILE is a name as list shows it, also one in damaged/; without any, all files in use are read. Points come as
    they lie in each file: the same point may be in several, one that was deleted or has expired is still there. In
    JSON a point is a message as sensors publish it; CSV is what tools/publisher --replay reads: so points of a file
    that was set aside can be published again.
    What cannot be read is told on stderr, and makes the exit code 1.
    """
    from tools.inspection import dump

    troubles: list[str] = []
    reader = dump.Dump(place, _wanted(filters), troubles.append, filters["skip_deleted"])
    kinds = {"points": ("segment", "wal"), "blocks": ("segment",), "records": ("wal",), "deletes": ("delete",)}[what]
    entries = dump.chosen(place, files, kinds)
    if what == rows.POINTS:
        parts = (part for entry in entries for part in reader.points(entry))
        (show.print_points_json if as_json else show.print_points_csv)(parts)
    else:
        found = (row for entry in entries for row in reader.rows(what, entry))
        (show.print_json if as_json else show.print_csv)(what, found)
    for trouble in troubles:
        print(f"inspect: {trouble}", file=sys.stderr)
    return 1 if troubles else 0


@command("repair-local")
@click.option("--dry-run", is_flag=True, help="Only say what would be done; takes no lock.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def repair_local(place: Any, as_json: bool, dry_run: bool, yes: bool) -> int:
    """Set damaged files aside, and say what is lost with them.

    Checks everything as verify does. A segment or delete record in which something is wrong moves to damaged/,
    with a note; damaged parts of WAL files are copied there. That is what a node does with the damage that it
    finds; here also with what it would only come upon in a query. Nothing is removed. Without --yes it asks
    first. What is told as lost is lost to this node: other nodes may have it, and `dump` reads what is still
    readable in a file that was set aside.
    """
    from tools.inspection import repair
    from tools.inspection.verify import verify
    from workers.storage import layout

    if not (dry_run or yes) and (as_json or not sys.stdin.isatty()):
        raise click.UsageError("repair-local asks first; without a terminal, or with --json, give --yes or --dry-run")
    output = Output(as_json)
    opened = None if dry_run else layout.open_directory(place.directory, place.node.cluster, place.node.node)
    try:
        verdict = verify(place)
        losses = repair.plan(place, verdict)
        output.say(show.title(place), *show.loss_lines(losses))
        done = opened is not None and bool(losses) and (yes or click.confirm(f"Set {len(losses)} files aside?"))
        if done:
            repair.carry_out(place, opened, losses)
    finally:
        if opened is not None:
            opened.lock.release()
    output.say(*show.repair_advice(place, losses, done, dry_run))
    output.result(
        {"ok": not losses, "done": done, **show.identity(place), "losses": [loss.document() for loss in losses]}
    )
    return 0 if done or not losses else 1


def _wanted(filters: dict[str, Any]) -> Any:
    from tools.inspection.dump import Wanted

    tags = {}
    for text in filters["tags"]:
        name, equals, value = text.partition("=")
        if not equals:
            raise click.BadParameter(f"got {text!r}, want K=V", param_hint="--tag")
        tags[name] = value
    start = timestamps.MIN_NS if filters["start"] is None else filters["start"]
    end = timestamps.MAX_NS if filters["end"] is None else filters["end"]
    return Wanted(filters["device"], filters["metric"], tags, start, end)


if __name__ == "__main__":
    main()
