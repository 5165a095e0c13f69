"""Format `json`: one object is one point, as the first version of this system had it; or an array of such objects.

    {"device_id": "sensor_1", "metric_name": "temperature", "timestamp": 1714564800.25, "value": 21.5,
     "tags": {"site": "north"}, "timestamp_unit": "s"}

timestamp (number in timestamp_unit, or RFC 3339 text), tags and timestamp_unit may be missing or null: no time
means arrival time. Other fields are ignored, "unit" among them: there it is the unit of the value.

Two ways lead to the same answer (a test compares them): msgspec decodes good payloads in one step; what it
refuses is taken apart again by the json module to find out exactly which element is wrong and why.
Pure but for the context's places.
"""

import math
from typing import Any, Final, Literal, cast

import msgspec

from common.config import Subscription
from common.errors import PayloadError
from workers.bridge import times
from workers.bridge.context import Context
from workers.bridge.formats import jsontext
from workers.bridge.payload import (
    ID,
    MISSING,
    NO_REFUSALS,
    SHAPE,
    TAGS,
    VALUE,
    Decoded,
    Point,
    Refusal,
    Refused,
    kind,
    shown,
)


class Reading(msgspec.Struct, gc=False):
    """One object of a payload, its types right, nothing else checked."""

    device_id: str
    metric_name: str
    value: bool | float
    timestamp: int | float | str | None = None
    tags: dict[str, str] | None = None
    timestamp_unit: Literal["s", "ms", "us", "ns"] | None = None


FAST_PATH_FAILED: Final = (msgspec.DecodeError, PayloadError, UnicodeDecodeError, RecursionError)
_read = msgspec.json.Decoder(Reading | list[Reading]).decode


def prepare(_: Subscription) -> None:
    """Nothing."""


def decode(payload: bytes, context: Context) -> Decoded:
    """The points of a payload, and what of it is refused."""
    try:
        reading = _read(payload)
        if type(reading) is Reading:
            return [point(reading, context)], NO_REFUSALS
        return [point(one, context) for one in cast(list[Reading], reading)], NO_REFUSALS
    except FAST_PATH_FAILED:
        return decode_slowly(payload, context)


def decode_slowly(payload: bytes, context: Context) -> Decoded:
    """The same as `decode`, element by element, with exact reasons."""
    points: list[Point] = []
    refusals: list[Refusal] = []
    try:
        elements = jsontext.elements(payload)
    except Refused as refused:
        return [], [refused.refusal(payload)]
    for text, element in elements:
        try:
            points.append(point(_reading(element), context))
        except Refused as refused:
            refusals.append(refused.refusal(text))
    return points, refusals


def point(reading: Reading, context: Context) -> Point:
    """The point of a reading. The hot path. Raises Refused."""
    tags = reading.tags
    name: tuple[Any, ...] = (reading.device_id, reading.metric_name)
    if tags:
        name = (*name, *sorted(tags.items()))
    places = context.places
    place = places.get(name)
    if place is None:
        place = places.add(name)
    time = reading.timestamp
    if time is None:
        return place, context.arrival_ns(), float(reading.value)
    unit = reading.timestamp_unit or "s"
    return place, times.time_ns(time, unit, context.latest_ns, context.ingest.max_future_s), float(reading.value)


# The slow way: exact reasons.


def _reading(element: Any) -> Reading:
    if not isinstance(element, dict):
        raise Refused(SHAPE, f"element is {kind(element)}, want a JSON object")
    for field in ("device_id", "metric_name", "value"):
        if field not in element:
            raise Refused(MISSING, f"no {field}")
    for field in ("device_id", "metric_name"):
        if not isinstance(element[field], str):
            raise Refused(ID, f"{field} is {kind(element[field])}, want a string")
    return Reading(
        element["device_id"],
        element["metric_name"],
        finite(element["value"]),
        times.checked(element.get("timestamp")),
        _tags(element.get("tags")),
        times.checked_unit(element.get("timestamp_unit")),
    )


def finite(value: Any) -> float:
    """A payload's value as a point has it. Raises Refused."""
    if not isinstance(value, int | float):
        raise Refused(VALUE, f"value is {kind(value)}, want a number or a boolean")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise Refused(VALUE, "value is NaN, infinite or beyond the range of float64, want a finite number")
    return number


def _tags(value: Any) -> dict[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise Refused(TAGS, f"tags are {kind(value)}, want an object of strings")
    for name, text in value.items():
        if not isinstance(text, str):
            raise Refused(TAGS, f"tag {shown(name)} is {kind(text)}, want a string")
    return value
