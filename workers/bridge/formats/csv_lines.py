"""Format `csv`: one point a line, the columns as the subscription has them.

    1714564800,sensor_1,temperature,21.5

Columns timestamp, device_id, metric_name and value mean what they do in JSON; `-` is ignored; any other name is a
tag. An empty field counts as missing. Fields may stand in double quotes (two of them mean one), but not across
lines. A first line that repeats the columns is passed over. Each line stands alone: a bad one is refused.
Pure but for the context's places.
"""

import csv
from typing import Final

from common.config import Subscription
from common.subscriptions import DEVICE, IGNORED, METRIC, TIME, VALUE
from workers.bridge import times
from workers.bridge.context import Context
from workers.bridge.formats import fields, text
from workers.bridge.payload import MISSING, SHAPE, SYNTAX, Decoded, Point, Refusals, Refused

_KNOWN: Final = frozenset((TIME, DEVICE, METRIC, VALUE))


class Columns:
    """What a subscription makes of this format: constant after construction."""

    __slots__ = ("has_time", "names", "separator")

    def __init__(self, subscription: Subscription) -> None:
        self.names = subscription.columns
        self.separator = subscription.separator
        self.has_time = bool(subscription.time_field)


def decode(payload: bytes, context: Context) -> Decoded:
    """The points of a payload, and the lines of it that are refused."""
    points: list[Point] = []
    refusals = Refusals(b"\n".join)
    try:
        for number, line in enumerate(text.lines(payload, context.ingest)):
            row: dict[str, str] = {}
            try:
                found = _fields(text.decoded(line), context.compiled.separator)
                if number == 0 and found == context.compiled.names:
                    continue
                row = _row(found, context.compiled)
                points.append(_point(row, context))
            except Refused as refused:
                device = fields.known(row.get(DEVICE) or context.device_id, context)
                refusals.add(refused, line, device)
    except Refused as refused:
        return [], [refused.refusal(payload, context.device_id)]
    return points, refusals.all()


def _fields(line: str, separator: str) -> list[str]:
    """The fields of a line. Raises Refused."""
    if '"' not in line:
        return [part.strip(text.SPACE) for part in line.split(separator)]
    try:
        (found,) = csv.reader([line], delimiter=separator, strict=True, skipinitialspace=separator not in text.SPACE)
    except (csv.Error, ValueError) as error:
        raise Refused(SYNTAX, f"not CSV: {error}") from error
    return [part.strip(text.SPACE) for part in found]


def _row(found: list[str], columns: Columns) -> dict[str, str]:
    """The fields by column, without the empty and the ignored ones. Raises Refused."""
    if len(found) != len(columns.names):
        raise Refused(SHAPE, f"{len(found)} fields, want {len(columns.names)}: {', '.join(columns.names)}")
    return {name: part for name, part in zip(columns.names, found, strict=True) if part and name != IGNORED}


def _point(row: dict[str, str], context: Context) -> Point:
    """The point of a line. Raises Refused."""
    device_id = row.get(DEVICE) or context.device_id
    metric_name = row.get(METRIC) or context.metric_name
    for name, given in ((DEVICE, device_id), (METRIC, metric_name), (VALUE, row.get(VALUE))):
        if not given:
            raise Refused(MISSING, f"no {name} in the line" + ", and none in topic or subscription" * (name != VALUE))
    value = text.number(row[VALUE], "value")
    place = context.place(device_id, metric_name, {name: part for name, part in row.items() if name not in _KNOWN})
    time = row.get(TIME)
    if not time or not context.compiled.has_time:
        return place, context.arrival_ns(), value
    return place, times.time_ns(text.time(time), context.unit, context.latest_ns, context.max_future_s), value
