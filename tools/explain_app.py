"""tools/explain: what a message would become under the configuration of now, or why it would be refused.

Owns the command and what it prints; the bridge's own intake decodes, so that nothing here can differ from it.
Stores and sends nothing. Exit codes: 0 all of it would be stored, 1 something is refused or nothing is there to
store, 2 wrong usage.
"""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
import msgspec
from rich.markup import escape
from rich.table import Table

from common import clock, config, series, timestamps
from common.errors import MinitrueError, RingError, RingStoreError
from common.ring import Ring
from common.ringstore import open_store
from common.subscriptions import Subscription
from tools.output import DASHES, Output, new_table, time_text
from workers.bridge.intake import RETAINED, Intake
from workers.bridge.payload import Place, Refusal
from workers.bridge.times import AUTO

SHOWN: Final = 50  # points and refusals, for people
SHOWN_BYTES: Final = 60  # of a refused payload
PARTITIONS: Final = 1024  # where there is no ring: to decode, any number will do
ARRIVAL: Final = "time of arrival"
UNIT_FREE: Final = "as the payload says: RFC 3339 text, or its own timestamp_unit"
EPOCH: Final = "as the payload says: 1970-01-01, which is 0 in every unit"
EXIT_CODES: Final = (
    "Exit codes: 0 all of it would be stored, 1 something is refused or nothing is there to store, 2 wrong usage."
)


class Stamped(NamedTuple):
    """A point, and where its time is from."""

    place: Place
    time_ns: int
    value: float
    source: str


class Explained(NamedTuple):
    """What a message becomes. at: the subscription that decides, by number; None for none."""

    at: int | None
    matching: list[int]
    points: list[Stamped]
    refusals: list[Refusal]
    passed_over: int
    skipped: bool


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, by default this process's; errors are one line on stderr."""
    try:
        cli(arguments, prog_name="explain")
    except (MinitrueError, OSError) as error:
        print(f"explain: {error}", file=sys.stderr)
        sys.exit(1)


@click.command(context_settings=DASHES, epilog=EXIT_CODES)
@click.argument("topic")
@click.argument("payload")
@click.option("--hex", "as_hex", is_flag=True, help="PAYLOAD is bytes as hexadecimal digits.")
@click.option("--retained", is_flag=True, help="As a message that the broker had retained.")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="Settings [conf/minitrue.toml].")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, for programs.")
def cli(topic: str, payload: str, as_hex: bool, retained: bool, config_file: Path | None, as_json: bool) -> None:
    """What the message PAYLOAD on TOPIC would become.

    PAYLOAD is text, @FILE for the bytes of a file, or - for those of standard input. Nothing is stored or sent: try
    a subscription here before the bridge is started with it.

    \b
      explain sensors/a '{"device_id": "s1", "metric_name": "t", "value": 21.5}'
      explain zigbee2mqtt/kitchen @payload.json
      mosquitto_sub -t 'plant/#' -C 1 | explain plant/north/p7 -
    """
    if not topic or any(char in topic for char in "+#\0"):
        raise click.BadParameter(f"got {topic!r}, want a topic: no wildcards", param_hint="TOPIC")
    body = _payload(payload, as_hex)
    settings = config.load(config_file)
    ring, missing = _ring(settings)
    explained = explain(settings, ring.partitions if ring else PARTITIONS, topic, body, retained)
    output = Output(as_json)
    _say(output, settings, explained, topic, ring)
    if missing:
        output.say(escape(f"no owners are shown: {missing}"))
    output.result(_document(settings, explained, topic, ring))
    sys.exit(0 if (explained.points or explained.skipped) and not explained.refusals else 1)


def _payload(text: str, as_hex: bool) -> bytes:
    if text == "-":
        body = sys.stdin.buffer.read()
    else:
        body = Path(text[1:]).read_bytes() if text.startswith("@") else os.fsencode(text)
    if not as_hex:
        return body
    try:
        return bytes.fromhex(body.decode())
    except ValueError as error:
        problem = f"want hexadecimal digits, two for each byte: {error}"
        raise click.BadParameter(problem, param_hint="PAYLOAD") from error


def _ring(settings: config.Settings) -> tuple[Ring | None, str]:
    """The ring, or why there is none: a configuration can be tried before there is a cluster."""
    store = open_store(settings.cluster.ring_store, settings)
    try:
        ring = store.load()
    except (RingStoreError, RingError) as error:
        return None, str(error)
    return ring, "" if ring else f"no ring in {store.url}"


def explain(settings: config.Settings, partitions: int, topic: str, body: bytes, retained: bool) -> Explained:
    """What a message becomes now."""
    arrivals: set[int] = set()
    latest_ns = clock.wall_ns() + int(settings.ingest.max_future_s * timestamps.NS_PER_S)
    intake = Intake(settings, partitions, _stamper(arrivals))
    points, refusals = intake.decode(topic.encode(errors="surrogateescape"), int(retained) * RETAINED, body, latest_ns)
    matching = intake.routes.matching(topic)
    route = intake.routes.routes[matching[0]] if matching else intake.routes.unmatched
    source = _sources(settings, matching, topic, body, arrivals)
    stamped = [Stamped(place, time_ns, value, source(place, time_ns)) for place, time_ns, value in points]
    skipped = bool(route.retained_skipped)
    return Explained(matching[0] if matching else None, matching, stamped, refusals, route.fields_skipped, skipped)


def _stamper(given: set[int]) -> Callable[[], int]:
    """Times of arrival, each another one; those that were taken are added to the set."""
    first_ns = clock.wall_ns()

    def stamp() -> int:
        time_ns = first_ns + len(given)
        given.add(time_ns)
        return time_ns

    return stamp


def _sources(
    settings: config.Settings, matching: Sequence[int], topic: str, body: bytes, arrivals: set[int]
) -> Callable[[Place, int], str]:
    """Tells where a point's time is from.

    A format does not say in which unit it took a number. So the payload is decoded in each of them: a time that comes
    out of one alone was a number in that unit; one that comes out of all had no need of a unit. That leaves open
    whether 0 was a number or a text: it is the same time in all of them.
    """
    if not matching:
        return lambda place, time_ns: ARRIVAL
    subscription = settings.mqtt.subscriptions[matching[0]]
    found = {unit: _times_in(settings, subscription, unit, topic, body) for unit in timestamps.UNITS}

    def source(place: Place, time_ns: int) -> str:
        if time_ns in arrivals:
            return ARRIVAL
        if time_ns == 0:
            return EPOCH
        units = [unit for unit, times in found.items() if (place.key, time_ns) in times]
        return UNIT_FREE if len(units) == len(found) else _unit_words(subscription, units)

    return source


def _times_in(
    settings: config.Settings, subscription: Subscription, unit: str, topic: str, body: bytes
) -> set[tuple[bytes, int]]:
    asked = msgspec.structs.replace(subscription, time_unit=unit)
    trial = msgspec.structs.replace(settings, mqtt=msgspec.structs.replace(settings.mqtt, subscriptions=[asked]))
    intake = Intake(trial, PARTITIONS, _stamper(set()))
    points, _ = intake.decode(topic.encode(errors="surrogateescape"), 0, body, timestamps.MAX_NS)
    return {(place.key, time_ns) for place, time_ns, _ in points}


def _unit_words(subscription: Subscription, units: Sequence[str]) -> str:
    if subscription.time_unit == AUTO:
        return f"a number in {units[0]}, by its size (time_unit = 'auto')"
    why = f"the default of {subscription.format}" if subscription.time_unit == "default" else "time_unit"
    return f"a number in {subscription.unit} ({why})"


# What is shown.


def _say(output: Output, settings: config.Settings, explained: Explained, topic: str, ring: Ring | None) -> None:
    output.say(*map(escape, _decision(settings, explained, topic)))
    if explained.points:
        output.say(_point_table(explained.points[:SHOWN], ring))
    for refusal in explained.refusals[:SHOWN]:
        payload = repr(refusal.payload[:SHOWN_BYTES])[1:] + "..." * (len(refusal.payload) > SHOWN_BYTES)
        output.say(escape(f"refused ({refusal.code}): {refusal.reason}\n  {payload}"))
    for kind, count in (("points", len(explained.points)), ("refusals", len(explained.refusals))):
        if count > SHOWN:
            output.say(f"and {count - SHOWN} further {kind}; --json has all")
    if explained.skipped:
        output.say("a retained message, which the subscription skips: acknowledged and not stored")
    elif not explained.points and not explained.refusals:
        output.say("nothing to store, and nothing to refuse")
    if explained.passed_over:
        output.say(f"{explained.passed_over} fields are no numbers and are passed over")


def _decision(settings: config.Settings, explained: Explained, topic: str) -> list[str]:
    """Which subscription decides, and which do not."""
    subscriptions = settings.mqtt.subscriptions
    if explained.at is None:
        return [f"{topic}: no subscription matches; the filters are {', '.join(each.filter for each in subscriptions)}"]
    deciding = subscriptions[explained.at]
    template = f", template {deciding.template}" if deciding.template else ""
    facts = f"filter {deciding.filter}, format {deciding.format}{template}"
    lines = [f"{topic}: mqtt.subscriptions[{explained.at}], {facts}"]
    for at in explained.matching[1:]:
        lines.append(f"  mqtt.subscriptions[{at}] matches too, filter {subscriptions[at].filter}, but comes later")
    return lines


def _point_table(points: Sequence[Stamped], ring: Ring | None) -> Table:
    placed = (">partition", "owners") if ring else ()
    table = new_table("device", "metric", "tags", "time", "its source", ">value", *placed)
    for point in points:
        key = series.parse_key(point.place.key)
        tags = ", ".join(f"{name}={text}" for name, text in key.tags)
        cells = [key.device_id, key.metric_name, tags, time_text(point.time_ns), point.source, repr(point.value)]
        if ring:
            cells += [str(point.place.partition), ", ".join(_owners(ring, point.place))]
        table.add_row(*map(escape, cells))
    return table


def _owners(ring: Ring, place: Place) -> list[str]:
    return [node.id for node in ring.owners(place.partition)]


def _document(settings: config.Settings, explained: Explained, topic: str, ring: Ring | None) -> dict[str, Any]:
    subscriptions = settings.mqtt.subscriptions
    deciding = None if explained.at is None else msgspec.to_builtins(subscriptions[explained.at])
    return {
        "topic": topic,
        "subscription": explained.at,
        "settings": deciding,
        "matching": [{"subscription": at, "filter": subscriptions[at].filter} for at in explained.matching],
        "points": [_point_document(point, ring) for point in explained.points],
        "refused": [
            {"code": each.code, "reason": each.reason, "device_id": each.device, "payload_hex": each.payload.hex()}
            for each in explained.refusals
        ],
        "passed_over": explained.passed_over,
        "retained_skipped": explained.skipped,
    }


def _point_document(point: Stamped, ring: Ring | None) -> dict[str, Any]:
    key = series.parse_key(point.place.key)
    return {
        "device_id": key.device_id,
        "metric_name": key.metric_name,
        "tags": dict(key.tags),
        "timestamp_ns": point.time_ns,
        "time": time_text(point.time_ns),
        "time_source": point.source,
        "value": point.value,
        "partition": point.place.partition if ring else None,
        "owners": _owners(ring, point.place) if ring else None,
    }


if __name__ == "__main__":
    main()
