"""tools/publisher: simulated sensors, a serial port or a CSV file, published over MQTT until the broker has it all.

Owns the options and what is printed; the parts are in tools/publish. Exit codes: 0 when every point was
acknowledged, 1 when some was not (or left out, or the work could not begin), 2 for wrong options.
"""

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console

from common import clock, config, timestamps
from common.errors import MinitrueError
from tools.publish import link, progress, replay, run, sim, spool
from tools.publish.message import PublisherError, Template
from tools.publish.serial_lines import SerialLines

DEFAULT_TOPIC: Final = "sensors/{device_id}/{metric_name}"
DEFAULT_DEVICES: Final = 10
DEFAULT_METRICS: Final = 3
DEFAULT_SPOOL_BYTES: Final = 64 << 20

EXAMPLES: Final = """\b
Examples:
  publisher --sim
      ten sensors, three metrics each, one reading a second, until Ctrl-C
  publisher --sim --devices 100 --rate 5000 --count 1000000
      a million points at 5,000 a second
  publisher --sim --rate 0 --points-per-message 100 --json
      as fast as it goes; one line of JSON at the end
  publisher --sim --rate 0 --points-per-message 1000 --format msgpack-columns
      faster still, to a bridge that subscribes with format = "msgpack-columns"
  publisher --sim --start 2024-01-01T00:00:00Z --step 60 --count 43200 --rate 0
      a day of history, one point a minute
  publisher --replay history.csv.gz --speed 100x
      a recording, a hundred times faster than life
  publisher --serial /dev/ttyUSB0 --baud 9600 --metric temperature
      lines "device,value", "label value" or JSON from a serial port

\b
While the broker is away:
  What it has not acknowledged waits on disk, at most --spool-bytes of it, and is sent when it is
  back, oldest first; also by the next run, should this one be killed. When the spool is full, a
  file and simulated history wait; readings of a port and of --sim at a rate are dropped, and
  counted. Publishers may share a spool. Another --url with the same --spool sends it elsewhere.

\b
Result (with --json in one line on stdout):
  published, acked      messages taken from the source, and acknowledged by the broker
  points, points_acked  the points in them
  seconds               from the first message to the last acknowledgement
  skipped               rows or lines left out, as they are no readings
  refused, lost         points refused by the broker; of QoS 0, on broken connections
  resumed               points that an earlier run left in the spool
  spooled, dropped      points left in the spool at the end; dropped as it was full
  points + resumed = points_acked + refused + lost + spooled + dropped, unless it ends in an error
"""

# Options that mean something for one source only.
SOURCE_OF: Final = {
    "devices": "sim", "metrics": "sim", "rate": "sim", "count": "sim", "seed": "sim", "start": "sim", "step": "sim",
    "format": "sim", "baud": "serial", "device": "serial", "metric": "serial", "speed": "replay",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Options:
    """The command line, as click parsed it; names and units as in --help."""

    sim: bool
    serial: str | None
    replay: Path | None
    devices: int
    metrics: int
    rate: float | None
    count: int
    seed: int
    start: str | None
    step: float
    baud: int
    device: str | None
    metric: str
    speed: str
    points_per_message: int
    format: str
    qos: int
    topic: str
    url: str | None
    username: str | None
    password: str | None
    spool: Path | None
    spool_bytes: int
    config_file: Path | None
    as_json: bool


@click.command(
    epilog=EXAMPLES,
    context_settings={"token_normalize_func": lambda name: name.replace("_", "-"), "max_content_width": 100},
)
@click.option(
    "--sim", type=bool, is_flag=False, flag_value="true", default=False, metavar="", help="Simulated sensors."
)
@click.option("--serial", metavar="PORT", help="Lines from a serial port, until Ctrl-C.")
@click.option(
    "--replay",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE.csv[.gz]",
    help="A file with the columns device_id,metric_name,timestamp,value, and tags as JSON where there are any.",
)
@click.option("--devices", type=click.IntRange(1), default=DEFAULT_DEVICES, show_default=True, help="sim: sensors.")
@click.option("--metrics", type=click.IntRange(1), default=DEFAULT_METRICS, show_default=True, help="sim: of each.")
@click.option("--rate", type=click.FloatRange(0), help="sim: points per second, 0: no limit.  [each series once]")
@click.option("--count", type=click.IntRange(0), default=0, help="sim: points in all, 0: no end.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="sim: same seed, same values.")
@click.option("--start", metavar="TIME", help="sim: history from here, RFC 3339 or Unix seconds.  [now]")
@click.option("--step", type=click.FloatRange(1e-6), default=1.0, show_default=True, help="sim: seconds, with --start.")
@click.option("--baud", type=click.IntRange(1), default=9600, show_default=True, help="serial: bits per second.")
@click.option("--device", metavar="ID", help="serial: device of lines that name none.  [default: the port's name]")
@click.option("--metric", default="value", show_default=True, help="serial: metric of lines that name none.")
@click.option("--speed", default="1x", show_default=True, help="replay: 1x is as it was recorded; 100x; max.")
@click.option("--points-per-message", type=click.IntRange(1), default=1, show_default=True, help="Of one series each.")
@click.option(
    "--format", type=click.Choice(["json", "msgpack-columns"]), default="json", show_default=True,
    help="sim: of payloads; the bridge's subscription has to say the same.",
)
@click.option("--qos", type=click.IntRange(0, 1), default=1, show_default=True, help="MQTT quality of service.")
@click.option("--topic", default=DEFAULT_TOPIC, show_default=True, help="Template of the topic.")
@click.option("--url", help="Broker, mqtt://HOST:PORT or mqtts://HOST:PORT.  [default: mqtt.url]")
@click.option("--username", help="User for the broker.  [default: mqtt.username]")
@click.option("--password", help="Password for the broker.  [default: mqtt.password]")
@click.option(
    "--spool", type=click.Path(path_type=Path), metavar="DIR", help="For what waits.  [default: in paths.data]"
)
@click.option(
    "--spool-bytes",
    type=click.IntRange(1 << 16),
    default=DEFAULT_SPOOL_BYTES,
    show_default=True,
    help="The most of it.",
)
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="Configuration file.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one line of JSON.")
@click.pass_context
def main(context: click.Context, /, **values: Any) -> None:
    """Publish measurements over MQTT: simulated sensors (--sim), a serial port (--serial) or a file (--replay).

    Ends when the broker has acknowledged everything. When the connection breaks it connects again and sends what was
    not acknowledged once more. After Ctrl-C or SIGTERM nothing new is sent, and acknowledgements are waited for, ten
    seconds at most; what is missing then stays in the spool. Exit code 0: all acknowledged; 1: something was not;
    2: wrong options.
    """
    options = Options(**values)
    _check_source(context, options)
    try:
        sys.exit(publish(options))
    except MinitrueError as error:
        print(f"publisher: {error}", file=sys.stderr)
        sys.exit(1)


def publish(options: Options) -> int:
    """Do what the options say; the exit code. Raises MinitrueError where the work cannot begin."""
    settings = config.load(options.config_file)
    stop = run.Stop()
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    report = progress.Reports(console)
    address = link.address(options.url or settings.mqtt.url, settings.mqtt, options.username, options.password)
    source = _source(options, report)
    wire = link.Link(address, settings.mqtt, options.qos, _spool(options, settings, address, report), report)
    seconds, error = _run(source, wire, stop, progress.Shown(console, wire.totals, options.count))
    skipped = getattr(source, "skipped", 0)
    _print_result(wire.totals, skipped, seconds, options.as_json)
    return _verdict(wire.totals, skipped, error)


def _spool(
    options: Options, settings: config.Settings, address: link.Address, report: Callable[[str], None]
) -> spool.Spool:
    by_broker = re.sub("[^A-Za-z0-9.-]", "_", f"{address.host}_{address.port}")
    kept = spool.Spool(options.spool or settings.data_dir / "publisher" / by_broker, options.spool_bytes, report)
    if kept.messages:
        report(f"{kept.messages} messages of an earlier run, in {kept.directory}, are sent first")
    return kept


def _check_source(context: click.Context, options: Options) -> None:
    chosen = [name for name in ("sim", "serial", "replay") if getattr(options, name)]
    if len(chosen) != 1:
        raise click.UsageError("want one of --sim, --serial PORT, --replay FILE")
    for name, source in SOURCE_OF.items():
        given = context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        if given and source != chosen[0]:
            raise click.UsageError(f"--{name} belongs to --{source}")
    if options.serial and options.points_per_message > 1:
        raise click.UsageError("--points-per-message: readings of a serial port are sent as they come, one by one")


def _source(options: Options, report: Callable[[str], None]) -> sim.Simulation | SerialLines | replay.Replay:
    template = Template(options.topic)
    if options.serial:
        return SerialLines(options.serial, options.baud, options.device, options.metric, template, report)
    if options.replay:
        speed = replay.parse_speed(options.speed)
        return replay.Replay(options.replay, speed, options.points_per_message, template, report)
    return sim.Simulation(_plan(options), template, lambda: clock.wall_ns() // 1000)


def _plan(options: Options) -> sim.Plan:
    return sim.Plan(
        devices=options.devices,
        metrics=options.metrics,
        rate=options.devices * options.metrics if options.rate is None else options.rate,
        count=options.count,
        seed=options.seed,
        per_message=options.points_per_message,
        start_us=None if options.start is None else _start_us(options.start),
        step_us=max(1, round(options.step * sim.US_PER_S)),
        columns=options.format == "msgpack-columns",
    )


def _start_us(text: str) -> int:
    try:
        seconds = replay.time_text(text)
        time_ns = timestamps.from_text(text) if seconds[0] == '"' else timestamps.from_number(float(seconds))
    except ValueError as error:
        raise PublisherError(f"--start {text!r}: {error}") from error
    return time_ns // 1000


def _run(
    source: run.Source, wire: link.Link, stop: run.Stop, shown: progress.Shown
) -> tuple[float, MinitrueError | None]:
    """Seconds that it took, and the error that ended it early."""
    start_s = clock.monotonic_s()
    try:
        with shown:
            run.publish(source, wire, stop, shown)
    except MinitrueError as error:
        return clock.monotonic_s() - start_s, error
    finally:
        wire.close()
    return clock.monotonic_s() - start_s, None


def _print_result(totals: link.Totals, skipped: int, seconds: float, as_json: bool) -> None:
    result = {
        "published": totals.messages,
        "acked": totals.acked_messages,
        "seconds": round(seconds, 3),
        "points": totals.points,
        "points_acked": totals.acked_points,
        "skipped": skipped,
        "refused": totals.refused_points,
        "lost": totals.lost_points,
        "resumed": totals.resumed_points,
        "spooled": totals.spooled_points,
        "dropped": totals.dropped_points,
    }
    if as_json:
        print(json.dumps(result))
        return
    rate = totals.acked_points / seconds if seconds else 0.0
    print(f"{totals.points} points sent, {totals.acked_points} acknowledged, in {seconds:.1f} s ({rate:.0f} points/s)")


def _verdict(totals: link.Totals, skipped: int, error: MinitrueError | None) -> int:
    """The exit code, with what went wrong told on stderr."""
    points = totals.points + totals.resumed_points
    missing = points - totals.acked_points
    troubles = [str(error)] if error else []
    if missing:
        troubles.append(
            f"{missing} of {points} points were not acknowledged ({totals.spooled_points} wait in the spool for the "
            f"next run, {totals.refused_points} refused, {totals.lost_points} lost with a connection, "
            f"{totals.dropped_points} dropped)"
        )
    if skipped:
        troubles.append(f"{skipped} rows or lines were left out")
    for trouble in troubles:
        print(f"publisher: {trouble}", file=sys.stderr)
    return 1 if troubles else 0


if __name__ == "__main__":
    main(prog_name="publisher")
