"""tools/query: questions to a running cluster, over HTTP, from the command line.

Owns the commands; tools/query_asked.py asks, tools/client.py speaks HTTP and tools/query_show.py draws. Reads no
configuration and no file of the cluster. Exit codes: 0 answered, 1 refused by the server or not reached, 2 wrong usage
(also by the server's word), 3 answered without some nodes (--partial).
"""

import functools
import json
import sys
import zoneinfo
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, tzinfo
from typing import Any, Final

import click

from tools.client import Client, QueryFailed, Unreachable
from tools.output import DASHES
from tools.query_asked import Asked
from tools.query_show import deleted_text, sparks_of, table_of, would_go_text

EXIT_CODES: Final = (
    "Exit codes: 0 answered, 1 the server refused or could not be reached, 2 wrong usage, 3 answered, but nodes are "
    "missing (only with --partial). URL, token and CA file may also stand in MINITRUE_URL, MINITRUE_TOKEN and "
    "MINITRUE_CA_FILE. Fields and definitions: docs/http-api.md."
)
USAGE_STATUSES: Final = (400, 405, 413, 422)
SAMPLES_PAGE: Final = 100_000  # points; up to this limit a header tells where the next page begins

CA_FILE: Final = "Certificates to trust (PEM), such as the server's own"

Command = Callable[..., None]


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
        hint = "; the token is that of --token, or MINITRUE_TOKEN" if error.status == 401 else ""
        print(f"query: {error}{where}{hint}", file=sys.stderr)
        sys.exit(2 if error.status in USAGE_STATUSES else 1)
    except (Unreachable, OSError, ValueError) as error:
        print(f"query: {str(error).replace('ca_file', '--ca-file')}", file=sys.stderr)
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
      query series                                   what is stored; also: devices, metrics
      query gaps temperature --since -7d             who was silent, and when
      query samples temperature --device room1 --since -10m --csv > points.csv
      query live temperature                         points as they become durable, a line of JSON each time
      query delete temperature --device room1 --until 2024-01-01T00:00:00Z --dry-run

    A word that is no command is an operation: avg sum min max count first spread stddev variance median
    percentile(P) rate increase delta integral twa, several with commas between them. METRIC, --device and --tag take
    globs (quote them) and regular expressions (~ before them). Times are Unix seconds, RFC 3339, or relative: -6h, now.

    `last` is a command; the operation of that name is `query ask last temperature`.
    """


def _decorated(command: Command, *options: Callable[[Command], Command]) -> Command:
    """A command with options, which --help shows in the order of the last to the first."""
    return functools.reduce(lambda made, option: option(made), options, command)


def _url_options(command: Command) -> Command:
    return _decorated(
        command,
        click.option("--ca-file", envvar="MINITRUE_CA_FILE", metavar="FILE", help=f"{CA_FILE} [MINITRUE_CA_FILE]."),
        click.option("--token", envvar="MINITRUE_TOKEN", help="Bearer token [MINITRUE_TOKEN]."),
        click.option(
            "--url", envvar="MINITRUE_URL", default="http://127.0.0.1:8080", show_default=True, help="[MINITRUE_URL]"
        ),
    )


def _form_options(command: Command) -> Command:
    return _decorated(
        command,
        click.option("--watch", type=click.FloatRange(0.1), metavar="SECONDS", help="Ask again every so many seconds."),
        click.option("--csv", "as_csv", is_flag=True, help="Print CSV, all pages unless there is a --limit."),
        click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON, all pages likewise."),
    )


def _series_options(command: Command) -> Command:
    return _decorated(
        command,
        click.option("--exact-tags", is_flag=True, help="Series with no tags but these; without --tag: with none."),
        click.option(
            "--tag", "tags", multiple=True, metavar="NAME=VALUE", help="Series with this tag among others; repeatable."
        ),
        click.option("--device", "devices", multiple=True, metavar="PATTERN", help="Devices [all]; repeatable."),
        click.argument("metric", default="*"),
    )


def _range_options(command: Command) -> Command:
    return _decorated(
        command,
        click.option("--until", "end_time", metavar="TIME", help="Last time that counts [open]."),
        click.option("--since", "start_time", metavar="TIME", help="First time that counts [open]."),
    )


def _selecting(command: Command) -> Command:
    """The options of a question that is answered and done with."""
    partial = click.option("--partial", is_flag=True, help="Take an answer that lacks nodes; it says so, exit code 3.")
    return _series_options(_range_options(partial(_form_options(_url_options(command)))))


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
    devices, wanted = list(options.pop("devices")), _tags(options.pop("tags"))
    exact = options.pop("exact_tags")
    fields: dict[str, Any] = {
        "metric_name": options.pop("metric"),
        "device_id": devices[0] if len(devices) == 1 else devices or "*",
        "start_time": _time(options.pop("start_time", None)),
        "end_time": _time(options.pop("end_time", None)),
        "allow_partial": options.pop("partial", None) or None,
        "tags": wanted if wanted or exact else None,
        "more_tags": True if wanted and not exact else None,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _tags(texts: Sequence[str]) -> dict[str, list[str]]:
    wanted: dict[str, list[str]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise click.BadParameter(f"got {text!r}, want NAME=VALUE", param_hint="--tag")
        wanted.setdefault(name, []).append(value)
    return wanted


def _client(options: dict[str, Any]) -> Client:
    """Whom to ask, from the options of a command; takes them out."""
    return Client(options.pop("url"), options.pop("token"), ca_file=options.pop("ca_file"))


def _asked(options: dict[str, Any], **more: Any) -> Asked:
    """Where to ask and how to show, from the options of a command; takes them out."""
    as_json, as_csv = options.pop("as_json"), options.pop("as_csv")
    if as_json and as_csv:
        raise click.UsageError("--json or --csv, not both")
    form = "json" if as_json else "csv" if as_csv else "table"
    return Asked(_client(options), form, options.pop("watch"), **more)


def _zone(name: str | None) -> tzinfo:
    """The zone of times that are shown. A name that this machine does not know is the server's to judge."""
    try:
        return zoneinfo.ZoneInfo(name) if name else UTC
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return UTC


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value not in (None, ())}


@cli.command(context_settings=DASHES, epilog=EXIT_CODES)
@click.argument("operations")
@_selecting
@click.option("--interval", metavar="LENGTH", help="Buckets: 90s 5m 1h 1d 1w 1mo 1y.")
@click.option("--offset", metavar="LENGTH", help="Shifts the edges of the buckets.")
@click.option("--timezone", metavar="NAME", help="Of days to years, and of times in tables; Europe/Berlin, say [UTC].")
@click.option("--max-points", type=int, help="Chooses an interval with at most so many buckets.")
@click.option("--group-by", multiple=True, metavar="WHAT", help="device_id metric_name tags.NAME series; repeatable.")
@click.option("--fill", metavar="HOW", help="Empty buckets: none null previous linear or a number.")
@click.option("--order", type=click.Choice(["asc", "desc"]))
@click.option("--limit", type=int, help="Rows at most.")
def ask(operations: str, **options: Any) -> None:
    """OPERATIONS over METRIC, in buckets and by group where wanted. The word `ask` may be left out.

    \b
      query avg temperature --device sensor_1
      query avg,min,max temperature --since -1d --interval 1h --group-by device_id --fill null
    """
    asked, fields = _asked(options, zone=_zone(options["timezone"])), _selection(options)
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
    made: Any = _decorated(_selecting(command), *options)
    cli.command(name, context_settings=DASHES, epilog=EXIT_CODES)(made)


_listing(
    "series",
    "/api/v1/series",
    "series",
    """Every series that matches: its points, first and last time, last value, usual interval.""",
)
_listing("devices", "/api/v1/devices", "rows", """Devices, with how many series and points.""")
_listing("metrics", "/api/v1/metrics-names", "rows", """Names of metrics, with how many series and points.""")
_listing(
    "last",
    "/api/v1/last",
    "rows",
    """The newest point of every series that matches, each by itself.

    The operation `last`, one figure over all that matches or by group, is `query ask last METRIC`.""",
)
_listing(
    "gaps",
    "/api/v1/gaps",
    "rows",
    """Silences: longer than a factor of a series' usual interval.""",
    click.option("--factor", type=float, help="Of the usual interval, to be a gap."),
)


@cli.command(context_settings=DASHES, epilog=EXIT_CODES)
@_selecting
@click.option("--limit", help="Points at most, or `all` [10000 in a table, all with --csv and --json].")
def samples(**options: Any) -> None:
    """The points themselves, in order of series and time."""
    asked, fields = _asked(options, all_pages={"limit": SAMPLES_PAGE}), _selection(options)

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
@_series_options
@_url_options
def live(**options: Any) -> None:
    """Points as they become durable, until Ctrl-C; one JSON object a line."""
    client = _client(options)
    try:
        for event in client.live(**_selection(options)):
            print(json.dumps({"event": event.name, "data": event.data}, ensure_ascii=False), flush=True)
            if event.name == "error":
                raise Unreachable(str(event.data.get("message")))
    except KeyboardInterrupt:
        client.close()


@cli.command(context_settings=DASHES, epilog=EXIT_CODES)
@click.argument("metric", default="*")
@click.option("--device", "devices", multiple=True, required=True, metavar="ID", help="Whose points; one, no pattern.")
@click.option(
    "--tag", "tags", multiple=True, metavar="NAME=VALUE",
    help="Only of the series with exactly these tags and no others [whatever the tags]; repeatable.",
)
@click.option("--exact-tags", is_flag=True, help="Without --tag: only of the series without tags.")
@_range_options
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print the server's answer as JSON.")
@_url_options
def delete(dry_run: bool, yes: bool, as_json: bool, **options: Any) -> None:
    """Delete the points of METRIC [every one] of a device, for good. Says what would go first, and asks."""
    if len(options["devices"]) > 1:
        raise click.UsageError("one delete names one --device")
    client, fields = _client(options), _selection(options)
    fields.pop("more_tags", None)  # the series with exactly these tags go

    def shown(answer: dict[str, Any], text: Callable[[dict[str, Any]], str]) -> str:
        return json.dumps(answer, ensure_ascii=False) if as_json else text(answer)

    if dry_run:
        print(shown(client.delete(dry_run=True, **fields), would_go_text))
        return
    print(_preview(client, fields), file=sys.stderr)
    if not yes:
        click.confirm("Delete it?", abort=True, err=True)
    print(shown(client.delete(**fields), deleted_text))


def _preview(client: Client, fields: Mapping[str, Any]) -> str:
    """What would go, in words; that it cannot be told where nodes are away or it is too much to count."""
    try:
        return would_go_text(client.delete(dry_run=True, **fields))
    except QueryFailed as error:
        if error.error not in ("incomplete", "limit"):
            raise
        return f"What would go cannot be told now: {error}"


if __name__ == "__main__":
    main()
