"""Format `json`: one object is one point, as the first version of this system had it; or an array of such objects.

    {"device_id": "sensor_1", "metric_name": "temperature", "timestamp": 1714564800.25, "value": 21.5,
     "tags": {"site": "north"}, "timestamp_unit": "s"}

timestamp (number in timestamp_unit, or RFC 3339 text), tags and timestamp_unit may be missing or null: no time
means arrival time. Device and metric may be missing where topic or subscription give them. A subscription may name
other fields. Further fields are ignored, "unit" among them: there it is the unit of the value.

Two ways lead to the same answer (a test compares them): msgspec decodes good payloads in one step; what it
refuses is taken apart again by the json module to find out exactly which element is wrong and why.
Pure but for the context's places.
"""

from collections.abc import Callable
from types import GenericAlias
from typing import Any, Final, Literal

import msgspec

from common.config import Subscription
from common.errors import PayloadError
from common.subscriptions import DEVICE, METRIC, TIME, VALUE, gives
from workers.bridge import times
from workers.bridge.context import Context
from workers.bridge.formats import bulk, fields, jsontext
from workers.bridge.payload import NO_REFUSALS, Decoded, Point, Points, Refusals, Refused, want_few

Unit = Literal["s", "ms", "us", "ns"]
FAST_PATH_FAILED: Final = (msgspec.DecodeError, PayloadError, UnicodeDecodeError, RecursionError)


class Reading(msgspec.Struct, gc=False):
    """One object of a payload, its types right, nothing else checked. None: missing."""

    device_id: str | None
    metric_name: str | None
    value: bool | float
    timestamp: int | float | str | None = None
    tags: dict[str, str] | None = None
    timestamp_unit: Unit | None = None


class Objects:
    """What a subscription makes of this format: constant after construction.

    type: a Reading whose fields are called as the subscription has it, for msgspec; dict if a path has dots.
    read: JSON to one such, or a list. point: an element of that to a Point; raises Refused.
    """

    __slots__ = ("device", "metric", "point", "read", "time", "type", "value")

    def __init__(self, subscription: Subscription) -> None:
        self.device = subscription.device_field
        self.metric = subscription.metric_field
        self.value = subscription.value_field
        self.time = subscription.time_field
        self.type: Any = dict
        self.point: Callable[[Any, Context], Point] = element_point
        if not any("." in path for path in (self.device, self.metric, self.value, self.time)):
            self.type = _reading_type(subscription)
            bare = not (subscription.template or subscription.device_id or subscription.metric_name)
            self.point = bare_point if bare and not subscription.tags else named_point
        self.read = msgspec.json.Decoder(one_or_many(self.type)).decode


def one_or_many(element: Any) -> Any:
    """The type of an element or a list of such, for msgspec."""
    return element | GenericAlias(list, element)


def _reading_type(subscription: Subscription) -> Any:
    """A struct with the fields of Reading; in the order in which most payloads have them, which msgspec is fast at."""
    names = {VALUE: subscription.value_field, DEVICE: subscription.device_field, METRIC: subscription.metric_field}
    time: list[Any] = [(TIME, int | float | str | None, None)] if subscription.time_field else []
    unit: list[Any] = [("timestamp_unit", Unit | None, None)] if time else []
    wanted: list[Any] = [
        _name_field(subscription, DEVICE),
        _name_field(subscription, METRIC),
        *time,
        (VALUE, bool | float),
        ("tags", dict[str, str] | None, None),
        *unit,
    ]
    if time:
        names[TIME] = subscription.time_field
    never = {} if time else {TIME: None, "timestamp_unit": None}
    return msgspec.defstruct("Reading", wanted, namespace=never, rename=names, kw_only=True, gc=False)


def _name_field(subscription: Subscription, name: str) -> Any:
    return (name, str | None, None) if gives(subscription, name) else (name, str)


def decode(payload: bytes, context: Context) -> Decoded:
    """The points of a payload, and what of it is refused."""
    objects: Objects = context.compiled
    try:
        found = objects.read(payload)
        if type(found) is not list:  # first of all, and without a further call: most messages are one point
            return [objects.point(found, context)], NO_REFUSALS
        return points_of(found, context), NO_REFUSALS
    except FAST_PATH_FAILED:
        return decode_slowly(payload, context)


def points_of(found: Any, context: Context) -> Points:
    """The points of a reading or a list of readings. Raises Refused if one is no point."""
    point = context.compiled.point
    if type(found) is not list:
        return [point(found, context)]
    want_few(len(found), context.ingest)
    many = bulk.columns(found, context) if point is bare_point and len(found) >= bulk.FEW else None
    return many or [point(one, context) for one in found]


def decode_slowly(payload: bytes, context: Context) -> Decoded:
    """The same as `decode`, element by element, with exact reasons."""
    points: list[Point] = []
    refusals = Refusals(jsontext.join)
    try:
        elements = jsontext.elements(payload, context.ingest)
    except Refused as refused:
        return [], [refused.refusal(payload, context.device_id)]
    for text, element in elements:
        try:
            points.append(element_point(element, context))
        except Refused as refused:
            device = fields.device_of(element, context.compiled.device, context)
            refusals.add(refused, text, device)
    return points, refusals.all()


def bare_point(reading: Reading, context: Context) -> Point:
    """The point of a reading where the topic gives nothing. The hot path. Raises Refused."""
    tags = reading.tags
    name: tuple[Any, ...] = (reading.device_id, reading.metric_name)
    if tags:
        name = (*name, *sorted(tags.items()))
    places = context.places
    place = places.get(name) or places.add(name)
    time, latest_ns = reading.timestamp, context.latest_ns
    if time is None:
        return place, context.arrival_ns(), float(reading.value)
    unit = reading.timestamp_unit or context.unit
    if type(time) is int and unit == "s" and 0 <= time <= latest_ns // 1_000_000_000:  # nearly all, without a call
        return place, time * 1_000_000_000, float(reading.value)
    return place, times.time_ns(time, unit, latest_ns, context.max_future_s), float(reading.value)


def named_point(reading: Reading, context: Context) -> Point:
    """The point of a reading, with what the topic gives. Raises Refused."""
    device_id, metric_name = reading.device_id, reading.metric_name
    if device_id is None:
        device_id = context.device_id
    if metric_name is None:
        metric_name = context.metric_name
    place = context.place(device_id, metric_name, reading.tags)
    time = reading.timestamp
    if time is None:
        return place, context.arrival_ns(), float(reading.value)
    unit = reading.timestamp_unit or context.unit
    return place, times.time_ns(time, unit, context.latest_ns, context.max_future_s), float(reading.value)


def element_point(element: Any, context: Context) -> Point:
    """The point of an object that anything may be in: the slow way, with exact reasons. Raises Refused."""
    objects: Objects = context.compiled
    element = fields.want_object(element)
    device_id = fields.name_of(element, DEVICE, objects.device, context.device_id)
    metric_name = fields.name_of(element, METRIC, objects.metric, context.metric_name)
    value = fields.value_of(element, objects.value)
    time, unit = fields.time_of(element, objects.time)
    reading = Reading(device_id, metric_name, value, time, fields.tags_of(element), unit)
    return named_point(reading, context)
