"""Format `line-protocol`: InfluxDB's, as collectors such as Telegraf send it.

    weather,device_id=sensor_1,site=north temperature=21.5,humidity=40i 1714564800000000000

Each field is a point. Its metric is measurement.field, or the measurement alone where the field is called "value".
The device is a tag (device_field of the subscription), which then is no tag any more, or what topic or subscription
give. Numbers, integers (3i, 3u) and booleans (t, true, ...) are values; text is passed over and counted. No time
means arrival. Each line stands alone; a line with a bad field is refused, its other fields are points.

The grammar is that of InfluxDB's documentation ("line protocol reference", sections on special characters and
data types): a backslash takes the meaning from comma, space and equals sign, within quotes from " and itself, and is
plain elsewhere; # begins a comment line; no line breaks within quotes.
Pure but for the context's places and its route's counts.
"""

import re
from typing import Final, NamedTuple

from common.config import Subscription
from workers.bridge import times
from workers.bridge.context import Context
from workers.bridge.formats import fields, text
from workers.bridge.payload import MISSING, SHAPE, SYNTAX, VALUE, Decoded, Point, Refusals, Refused, shown

# Possessive: what is taken is never given back, which no line needs; else Python would remember how to, and a payload
# that is one long text would cost 120 times its size.
_MEASUREMENT: Final = re.compile(r"(?:[^\\, ]++|\\.)++")
_NAME: Final = re.compile(r"(?:[^\\,= ]++|\\.)++")  # tag, tag's value, field
_TEXT: Final = re.compile(r'"(?:[^"\\]++|\\.)*+"')
_PLAIN: Final = re.compile(r"[^, ]+")  # a field's value that is no text
_SPACES: Final = re.compile(r" +")
_TIME: Final = re.compile(r"-?[0-9]{1,40}")
_ESCAPED: Final = re.compile(r"\\([,= ])")
_INTEGER: Final = re.compile(r"[+-]?[0-9]+[iu]")
_BOOLEANS: Final = dict.fromkeys(("t", "T", "true", "True", "TRUE"), 1.0) | dict.fromkeys(
    ("f", "F", "false", "False", "FALSE"), 0.0
)


class Line(NamedTuple):
    """A line taken apart. values: field and value as written. time: as written, "" for none."""

    measurement: str
    tags: dict[str, str]
    values: list[tuple[str, str]]
    time: str


def prepare(subscription: Subscription) -> tuple[str, bool]:
    """The tag with the device, and whether times are taken from lines."""
    return subscription.device_field, bool(subscription.time_field)


def decode(payload: bytes, context: Context) -> Decoded:
    """The points of a payload, and the lines of it that are refused."""
    points: list[Point] = []
    refusals = Refusals(b"\n".join)
    try:
        for line in text.lines(payload, context.ingest):
            _decode_line(line, context, points, refusals)
    except Refused as refused:
        return [], [refused.refusal(payload, context.device_id)]
    return points, refusals.all()


def _decode_line(line: bytes, context: Context, points: list[Point], refusals: Refusals) -> None:
    """Add the points of a line, and its refusal if anything of it is refused."""
    device_id = context.device_id
    try:
        body = text.decoded(line).strip(text.SPACE)
        if body.startswith("#"):
            return
        parsed = parse(body)
        device_id = parsed.tags.pop(context.compiled[0], device_id)
        if not device_id:
            raise Refused(MISSING, f"no tag {shown(context.compiled[0])}, and no device_id in topic or subscription")
        _append(parsed, device_id, context, points)
    except Refused as refused:
        refusals.add(refused, line, fields.known(device_id, context))


def _append(line: Line, device_id: str, context: Context, points: list[Point]) -> None:
    """Append the points of a line's good fields. Raises Refused for the first bad one, or for the line."""
    time_ns = _time_ns(line.time, context)
    before, bad, passed_over = len(points), None, 0
    for name, written in line.values:
        if written.startswith('"'):
            passed_over += 1
            continue
        try:
            value = _value(name, written)
            metric = line.measurement if name == "value" else f"{line.measurement}.{name}"
            points.append((context.place(device_id, metric, line.tags), time_ns, value))
        except Refused as refused:
            bad = bad or refused
    context.route.fields_skipped += passed_over
    if bad:
        raise bad
    if len(points) == before:
        raise Refused(SHAPE, "no field is a number or a boolean")


def _value(name: str, written: str) -> float:
    what = f"field {shown(name)}"
    if written in _BOOLEANS:
        return _BOOLEANS[written]
    if _INTEGER.fullmatch(written):
        return text.number(written[:-1], what) + 0.0  # an integer has no -0
    if written[:1].isalpha():  # text.number knows words that this format has not
        raise Refused(VALUE, f"{what} is {shown(written)}, want a number or a boolean; text stands in quotes")
    return text.number(written, what)


def _time_ns(written: str, context: Context) -> int:
    if not written or not context.compiled[1]:
        return context.arrival_ns()
    return times.time_ns(int(written), context.unit, context.latest_ns, context.max_future_s)


def parse(line: str) -> Line:
    """A line taken apart. Raises Refused with the place of the fault."""
    measurement, at = _take(_MEASUREMENT, line, 0, "a measurement")
    tags: dict[str, str] = {}
    while line[at : at + 1] == ",":
        name, value, at = _pair(line, at + 1, _NAME, "a tag")
        if name in tags:
            raise Refused(SYNTAX, f"tag {shown(name)} twice")
        tags[name] = _plain(value)
    values: list[tuple[str, str]] = []
    _, at = _take(_SPACES, line, at, "a space and fields")
    while True:
        name, value, at = _pair(line, at, _TEXT if _is_text(line, at) else _PLAIN, "a field")
        values.append((name, value))
        if line[at : at + 1] != ",":
            break
        at += 1
    time = ""
    if at < len(line):
        _, at = _take(_SPACES, line, at, "a comma or a space")
        time, at = _take(_TIME, line, at, "a time in whole numbers")
    if at < len(line):
        raise Refused(SYNTAX, f"not line protocol: {shown(line[at:])} at character {at}, want the line's end")
    return Line(_plain(measurement), tags, values, time)


def _pair(line: str, at: int, value: re.Pattern[str], what: str) -> tuple[str, str, int]:
    """name=value: name, value as written, where it ends."""
    name, at = _take(_NAME, line, at, what)
    _, at = _take(_EQUALS, line, at, "=")
    written, at = _take(value, line, at, f"{what}'s value")
    return _plain(name), written, at


def _is_text(line: str, at: int) -> bool:
    """Whether the value of the field that begins here begins with a quote."""
    name = _NAME.match(line, at)
    return name is not None and line[name.end() : name.end() + 2] == '="'


_EQUALS: Final = re.compile("=")


def _take(pattern: re.Pattern[str], line: str, at: int, what: str) -> tuple[str, int]:
    """What a pattern takes at a place, and where it ends."""
    match = pattern.match(line, at)
    if match is None:
        raise Refused(SYNTAX, f"not line protocol: {shown(line[at:])} at character {at}, want {what}")
    return match.group(), match.end()


def _plain(written: str) -> str:
    return _ESCAPED.sub(r"\1", written) if "\\" in written else written
