"""tools/query: questions to a running cluster, over HTTP, from the command line.

Owns the commands; tools/client.py speaks HTTP and tools/query_show.py draws. Reads no configuration and no file of
the cluster. Exit codes: 0 answered, 1 refused by the server or not reached, 2 wrong usage (also by the server's word).
"""

import functools
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import click
from rich.console import Console, RenderableType
from rich.markup import escape

from tools.client import Client, QueryFailed, Unreachable
from tools.output import DASHES, PLAIN_WIDTH
from tools.query_show import cut_text, sparks_of, table_of

EXIT_CODES: Final = (
    "Exit codes: 0 answered, 1 the server refused or could not be reached, 2 wrong usage. The URL and the token may "
    "also stand in MINITRUE_URL and MINITRUE_TOKEN. Fields and definitions: docs/http-api.md."
)
USAGE_STATUSES: Final = (400, 405, 413, 422)
CSV_FAILED: Final = b"," * 1000 + b"\r\n"  # ends an answer that failed on the way
CSV_END_BYTES: Final = 4096
CLEAR: Final = "\x1b[H\x1b[2J"
MORE: Final = "there is more: raise --limit"

Command = Callable[..., None]


class Asked:
    """What all commands share: where to ask, and how to show."""

    def __init__(self, url: str, token: str | None, form: str, watch_s: float | None) -> None:
        self.client = Client(url, token)
        self.form = form
        self._watch_s = watch_s
        terminal = sys.stdout.isatty()
        self._console = Console(width=None if terminal else PLAIN_WIDTH, highlight=False, soft_wrap=not terminal)

    def say(self, *parts: RenderableType | None) -> None:
        """Print for people."""
        for part in parts:
            if part is not None:
                self._console.print(part)

    def rows(self, rows: Sequence[dict[str, Any]]) -> None:
        """Print a table."""
        self.say(table_of(rows), cut_text(rows))

    def answer(self, method: str, path: str, fields: dict[str, Any], show: Callable[[dict[str, Any]], None]) -> None:
        """Ask, once or every few seconds, and show the answer in the form that is wanted."""
        while True:
            if self._watch_s is not None and sys.stdout.isatty():
                sys.stdout.write(CLEAR)
            self._once(method, path, fields, show)
            if self._watch_s is None:
                return
            sys.stdout.flush()
            time.sleep(self._watch_s)

    def _once(self, method: str, path: str, fields: dict[str, Any], show: Callable[[dict[str, Any]], None]) -> None:
        if self.form == "csv":
            self._print_csv(method, path, fields)
            return
        answer = self.client.call(method, path, fields)
        if self.form == "json":
            while follows(fields, answer.get("next_cursor")):
                answer = joined(answer, self.client.call(method, path, fields | {"cursor": answer["next_cursor"]}))
            print(json.dumps(answer, ensure_ascii=False))
            return
        show(answer)
        coverage = answer.get("coverage") or {"complete": True}
        if not coverage["complete"]:
            lacking = "; ".join(f"{each['node']}: {each['reason']}" for each in coverage["missing"])
            self.say(escape(f"INCOMPLETE, {lacking}"))
        if answer.get("more") or answer.get("next_cursor"):
            self.say(MORE)

    def _print_csv(self, method: str, path: str, fields: dict[str, Any]) -> None:
        """All pages as one file; what it lacks is said beside it."""
        cursor, is_lacking = None, False
        while True:
            parts = self.client.chunks(method, path, fields | {"format": "csv", "cursor": cursor})
            self._print_page(parts if cursor is None else without_first_line(parts))
            is_lacking = is_lacking or self.client.headers.get("Minitrue-Complete") == "false"
            cursor = self.client.headers.get("Minitrue-Next-Cursor")
            if not follows(fields, cursor):
                break
        if is_lacking:
            print("INCOMPLETE; --json says what is missing", file=sys.stderr)
        if cursor is not None:
            print(MORE, file=sys.stderr)

    def _print_page(self, parts: Iterable[bytes]) -> None:
        end = b""
        for part in parts:
            sys.stdout.buffer.write(part)
            end = (end + part)[-CSV_END_BYTES:]
        sys.stdout.buffer.flush()
        if end.endswith(CSV_FAILED):
            said = end.removesuffix(CSV_FAILED).splitlines()[-1].decode(errors="replace")
            raise Unreachable(f"the answer broke off, its last line says why: {said}")


def follows(fields: Mapping[str, Any], cursor: str | None) -> bool:
    """Whether to ask for the next page: there is one, and no number of rows was asked for."""
    return cursor is not None and "limit" not in fields


def joined(answer: dict[str, Any], page: Mapping[str, Any]) -> dict[str, Any]:
    """An answer with its next page behind it. What one of them lacks is lacking in the whole."""
    lists = {name: answer[name] + value for name, value in page.items() if isinstance(value, list)}
    worse = page if answer["coverage"]["complete"] else answer
    return {**answer, **page, **lists, "coverage": worse["coverage"]}


def without_first_line(parts: Iterable[bytes]) -> Iterator[bytes]:
    """The bytes behind the line of names."""
    rest, head = iter(parts), b""
    while b"\n" not in head and (part := next(rest, b"")):
        head += part
    yield head.partition(b"\n")[2]
    yield from rest


class Group(click.Group):
    """What is no subcommand is a question: `query avg temperature` is `query ask avg temperature`."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands:
            args = ["ask", *args]
        return super().resolve_command(ctx, args)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, by default this process's; errors are one line on stderr."""
    try:
        cli(arguments, prog_name="query")
    except QueryFailed as error:
        where = f" (field {error.field})" if error.field else ""
        print(f"query: {error}{where}", file=sys.stderr)
        sys.exit(2 if error.status in USAGE_STATUSES else 1)
    except (Unreachable, OSError, ValueError) as error:
        print(f"query: {error}", file=sys.stderr)
        sys.exit(1)


@click.group(cls=Group, context_settings=DASHES, epilog=EXIT_CODES)
def cli() -> None:
    """Ask a running cluster.

    \b
      query avg temperature                          one figure over everything
      query avg,max temperature --device 'room*' --since -6h --interval 5m --group-by device_id
      query 'percentile(95)' latency --since -1d --interval 1h --timezone Europe/Berlin
      query rate requests --group-by tags.host --since -1h
      query last 'temp*'                             what everything shows now
      query series                                   what is stored
      query gaps temperature --since -7d             who was silent, and when
      query samples temperature --device room1 --since -10m --csv > points.csv
      query live temperature                         points as they become durable
      query delete temperature --device room1 --until 2024-01-01T00:00:00Z --dry-run

    A word that is no command is an operation: avg sum min max count first spread stddev variance median
    percentile(P) rate increase delta integral twa, several with commas between them. METRIC, --device and --tag take
    globs (quote them) and regular expressions (~ before them). Times are Unix seconds, RFC 3339, or relative: -6h, now.
    """


def _url_options(command: Command) -> Command:
    for option in (
        click.option("--watch", type=click.FloatRange(0.1), metavar="SECONDS", help="Ask again every so many seconds."),
        click.option("--csv", "as_csv", is_flag=True, help="Print CSV, all pages unless there is a --limit."),
        click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON, all pages likewise."),
        click.option("--token", envvar="MINITRUE_TOKEN", help="Bearer token [MINITRUE_TOKEN]."),
        click.option(
            "--url", envvar="MINITRUE_URL", default="http://127.0.0.1:8080", show_default=True, help="[MINITRUE_URL]"
        ),
    ):
        command = option(command)
    return command


def _selecting(command: Command) -> Command:
    for option in (
        click.option("--partial", is_flag=True, help="Take an answer that lacks nodes; it says so."),
        click.option("--until", "end_time", metavar="TIME", help="Last time that counts [open]."),
        click.option("--since", "start_time", metavar="TIME", help="First time that counts [open]."),
        click.option("--tag", "tags", multiple=True, metavar="NAME=VALUE", help="Series with this tag; repeatable."),
        click.option("--device", "devices", multiple=True, metavar="PATTERN", help="Devices [all]; repeatable."),
        click.argument("metric", default="*"),
    ):
        command = option(command)
    return command


def _time(text: str | None) -> float | int | str | None:
    """A number as such: JSON's times are seconds when they are numbers."""
    if text is None:
        return None
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text


def _selection(options: dict[str, Any]) -> dict[str, Any]:
    """The fields of a request in the options of a command; takes them out."""
    devices, tags = list(options.pop("devices")), options.pop("tags")
    fields: dict[str, Any] = {
        "metric_name": options.pop("metric"),
        "device_id": devices[0] if len(devices) == 1 else devices or "*",
        "start_time": _time(options.pop("start_time")),
        "end_time": _time(options.pop("end_time")),
        "allow_partial": options.pop("partial") or None,
    }
    if tags:
        wanted: dict[str, list[str]] = {}
        for text in tags:
            name, equals, value = text.partition("=")
            if not equals:
                raise click.BadParameter(f"got {text!r}, want NAME=VALUE", param_hint="--tag")
            wanted.setdefault(name, []).append(value)
        fields |= {"tags": wanted, "more_tags": True}
    return {name: value for name, value in fields.items() if value is not None}


def _asked(options: dict[str, Any]) -> Asked:
    """Where to ask and how to show, from the options of a command; takes them out."""
    as_json, as_csv = options.pop("as_json"), options.pop("as_csv")
    if as_json and as_csv:
        raise click.UsageError("--json or --csv, not both")
    form = "json" if as_json else "csv" if as_csv else "table"
    return Asked(options.pop("url"), options.pop("token"), form, options.pop("watch"))


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value not in (None, ())}


@cli.command(context_settings=DASHES, epilog=EXIT_CODES)
@click.argument("operations")
@_selecting
@click.option("--interval", metavar="LENGTH", help="Buckets: 90s 5m 1h 1d 1w 1mo 1y.")
@click.option("--offset", metavar="LENGTH", help="Shifts the edges of the buckets.")
@click.option("--timezone", metavar="NAME", help="Of days, weeks, months, years, such as Europe/Berlin [UTC].")
@click.option("--max-points", type=int, help="Chooses an interval with at most so many buckets.")
@click.option("--group-by", multiple=True, metavar="WHAT", help="device_id metric_name tags.NAME series; repeatable.")
@click.option("--fill", metavar="HOW", help="Empty buckets: none null previous linear or a number.")
@click.option("--order", type=click.Choice(["asc", "desc"]))
@click.option("--limit", type=int, help="Rows at most.")
@_url_options
def ask(operations: str, **options: Any) -> None:
    """OPERATIONS over METRIC, in buckets and by group where wanted. The word `ask` may be left out.

    \b
      query avg temperature --device sensor_1
      query avg,min,max temperature --since -1d --interval 1h --group-by device_id --fill null
    """
    asked, fields = _asked(options), _selection(options)
    names = operations.split(",")
    fill = options.pop("fill")
    fields |= _given(options) | {"operation": names}
    if fill is not None:
        value = _time(fill)
        fields["fill"] = value

    def show(answer: dict[str, Any]) -> None:
        if "rows" in answer:
            asked.rows(answer["rows"])
            asked.say(sparks_of(answer["rows"], names))
        else:
            asked.say(table_of([{**answer["result"], "count": answer["count"]}]))

    asked.answer("POST", "/query", fields, show)


def _listing(name: str, path: str, items: str, text: str, *more: Callable[[Command], Command]) -> None:
    """A command that lists rows."""

    def command(**options: Any) -> None:
        asked, fields = _asked(options), _selection(options)
        asked.answer("POST", path, fields | _given(options), lambda answer: asked.rows(answer[items]))

    command.__doc__ = text
    options: tuple[Callable[[Command], Command], ...] = (*more, click.option("--limit", type=int, help="Rows at most."))
    made: Any = functools.reduce(lambda made, option: option(made), options, _selecting(_url_options(command)))
    cli.command(name, context_settings=DASHES, epilog=EXIT_CODES)(made)


_listing(
    "series",
    "/api/v1/series",
    "series",
    """Every series that matches: its points, first and last time, last value, usual interval.""",
)
_listing("last", "/api/v1/last", "rows", """The newest point of every series that matches.""")
_listing(
    "gaps",
    "/api/v1/gaps",
    "rows",
    """Silences: longer than a factor of a series' usual interval.""",
    click.option("--factor", type=float, help="Of the usual interval, to be a gap."),
)


@cli.command(context_settings=DASHES, epilog=EXIT_CODES)
@_selecting
@click.option("--limit", default="10000", show_default=True, help="Points at most, or `all`.")
@_url_options
def samples(**options: Any) -> None:
    """The points themselves, in order of series and time."""
    asked, fields = _asked(options), _selection(options)

    def show(answer: dict[str, Any]) -> None:
        asked.rows(
            [
                {**{name: one[name] for name in ("device_id", "metric_name", "tags")}, "time": time_, "value": value}
                for one in answer["series"]
                for time_, value in zip(one["times"], one["values"], strict=True)
            ]
        )

    asked.answer("POST", "/api/v1/samples", fields | _given(options), show)


@cli.command(context_settings=DASHES, epilog=EXIT_CODES)
@_selecting
@_url_options
def live(**options: Any) -> None:
    """Points as they become durable, until Ctrl-C; one JSON object a line."""
    asked, fields = _asked(options), _selection(options)
    for name in ("start_time", "end_time", "allow_partial"):
        if name in fields:
            raise click.UsageError(f"live points have no {name}")
    try:
        for event in asked.client.live(**fields):
            print(json.dumps({"event": event.name, "data": event.data}, ensure_ascii=False), flush=True)
            if event.name == "error":
                raise Unreachable(str(event.data.get("message")))
    except KeyboardInterrupt:
        asked.client.close()


@cli.command(context_settings=DASHES, epilog=EXIT_CODES)
@_selecting
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_url_options
def delete(dry_run: bool, yes: bool, **options: Any) -> None:
    """Delete the points that match, for good. Says what would go first, and asks."""
    asked, fields = _asked(options), _selection(options)
    if "allow_partial" in fields:
        raise click.UsageError("a delete is never partial")
    fields.pop("more_tags", None)  # the series with exactly these tags go
    would = asked.client.delete(dry_run=True, **fields)
    if dry_run:
        print(json.dumps(would, ensure_ascii=False))
        return
    if not yes:
        print(f"This goes: {json.dumps(would, ensure_ascii=False)}", file=sys.stderr)
        click.confirm("Delete it?", abort=True, err=True)
    print(json.dumps(asked.client.delete(**fields), ensure_ascii=False))


if __name__ == "__main__":
    main()
