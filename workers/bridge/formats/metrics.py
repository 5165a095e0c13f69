"""Format `json-metrics`: one object is one reading of a device with many metrics; or an array of such objects.

    {"Time": "2024-05-01T12:00:00Z", "ENERGY": {"Power": 103.5, "Total": 1.25}, "Switch": true, "Unit": "C"}

Each number or boolean is a metric, named by its path (ENERGY.Power); `include` and `exclude` choose among them.
Text, null and arrays are passed over and counted, unless `include` asks for exactly that field. The fields with
time, device and timestamp_unit are no metrics. A field that cannot be a point is refused with the object's bytes;
the others are points.
Pure but for the context's places and its route's counts.
"""

import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

import msgspec

from common.config import Ingest, Subscription
from common.subscriptions import DEVICE
from workers.bridge import times
from workers.bridge.context import Context
from workers.bridge.formats import fields, jsontext
from workers.bridge.formats.objects import FAST_PATH_FAILED
from workers.bridge.payload import NO_REFUSALS, SHAPE, Decoded, Point, Refusals, Refused, TooMany, shown, want_few

MAX_BYTES: Final = 8 << 20  # of the paths that are remembered as chosen or not; they come from outside
PATH_BYTES: Final = 120  # what remembering a path costs beside its characters; measured 75 to 110
_WILD: Final = re.compile(r"[*?\[]")

_read = msgspec.json.Decoder(dict[str, Any] | list[dict[str, Any]]).decode


class Metrics:
    """What a subscription makes of this format. Constant after construction but for the paths remembered."""

    __slots__ = ("_bytes", "_chosen", "_excluded", "_included", "_own", "device", "time", "wanted")

    def __init__(self, subscription: Subscription) -> None:
        self.device = subscription.device_field
        self.time = subscription.time_field
        self.wanted = frozenset(pattern for pattern in subscription.include if not _WILD.search(pattern))
        self._included = _matcher(subscription.include or ["*"])
        self._excluded = _matcher(subscription.exclude)
        self._chosen: dict[str, bool] = {}
        self._bytes = 0
        self._own = frozenset([self.device, *((self.time, "timestamp_unit") if self.time else ())])

    def is_metric(self, path: str) -> bool:
        """Whether the subscription chooses a path."""
        chosen = self._chosen.get(path)
        if chosen is None:
            chosen = path not in self._own and self._included(path) and not self._excluded(path)
            self._remember(path, chosen)
        return chosen

    def _remember(self, path: str, chosen: bool) -> None:
        size = PATH_BYTES + 4 * len(path)
        self._bytes += size
        if self._bytes > MAX_BYTES:
            self._chosen.clear()
            self._bytes = size
        if size <= MAX_BYTES:
            self._chosen[path] = chosen


def _matcher(patterns: list[str]) -> Callable[[str], bool]:
    joined = "|".join(fnmatch.translate(pattern) for pattern in patterns)
    match = re.compile(joined).match if joined else None
    return lambda path: match is not None and match(path) is not None


def decode(payload: bytes, context: Context) -> Decoded:
    """The points of a payload, and what of it is refused."""
    try:
        found = _read(payload)
        budget = Budget(context.ingest)
        readings = [Reading(one, context, budget) for one in (found if isinstance(found, list) else [found])]
    except FAST_PATH_FAILED:
        return _decode_slowly(payload, context)
    if any(reading.refused for reading in readings):
        return _decode_slowly(payload, context)
    return _count(readings, context), NO_REFUSALS


def _decode_slowly(payload: bytes, context: Context) -> Decoded:
    """The same, with the bytes of each element that is refused."""
    try:
        return of_elements(jsontext.elements(payload, context.ingest), jsontext.join, context)
    except Refused as refused:
        return [], [refused.refusal(payload, context.device_id)]


def of_elements(
    elements: Iterable[tuple[bytes, Any]], join: Callable[[Sequence[bytes]], bytes], context: Context
) -> Decoded:
    """The points of elements, and the refusals of their bytes. join: as of Refusals. Raises TooMany."""
    readings: list[Reading] = []
    refusals, budget = Refusals(join), Budget(context.ingest)
    for text, element in elements:
        reading = Reading(element, context, budget)
        readings.append(reading)
        if reading.refused:
            refusals.add(reading.refused, text, fields.device_of(element, context.compiled.device, context))
    return _count(readings, context), refusals.all()


def _count(readings: list["Reading"], context: Context) -> list[Point]:
    context.route.fields_skipped += sum(reading.passed_over for reading in readings)
    return [point for reading in readings for point in reading.points]


class Budget:
    """How many fields a payload may still have."""

    __slots__ = ("_ingest", "_spent")

    def __init__(self, ingest: Ingest) -> None:
        self._ingest = ingest
        self._spent = 0

    def spend(self) -> None:
        """One field more. Raises TooMany."""
        self._spent += 1
        if self._spent > self._ingest.max_elements:
            want_few(self._spent, self._ingest)


class Reading:
    """What one object comes to.

    points: of the fields that are good. passed_over: fields that are no numbers. refused: why the object, or the first
    of its bad fields, is refused; None if nothing is.
    """

    __slots__ = ("passed_over", "points", "refused")

    def __init__(self, element: Any, context: Context, budget: Budget) -> None:
        """Raises TooMany."""
        self.points: list[Point] = []
        self.passed_over = 0
        self.refused: Refused | None = None
        try:
            budget.spend()
            self._read(fields.want_object(element), context, budget)
        except TooMany:
            raise
        except Refused as refused:
            self.refused = refused

    def _read(self, element: dict[Any, Any], context: Context, budget: Budget) -> None:
        """Raises Refused for the object whole."""
        metrics: Metrics = context.compiled
        device_id = fields.name_of(element, DEVICE, metrics.device, context.device_id)
        time_ns = _time_ns(element, metrics.time, context)
        bad: list[Refused] = []
        for path, value in _leaves(element, metrics, context.ingest.max_id_bytes, budget):
            if isinstance(value, int | float | dict) or path in metrics.wanted:
                try:
                    number = fields.finite(value, f"field {shown(path)}")
                    self.points.append((context.place(device_id, path), time_ns, number))
                except Refused as refused:
                    bad.append(refused)
            else:
                self.passed_over += 1
        if bad:
            more = f"; so are {len(bad) - 1} further fields" if bad[1:] else ""
            raise Refused(bad[0].code, f"{bad[0]}{more}")
        if not self.points:
            raise Refused(SHAPE, "no field is a metric: want a number or a boolean that include and exclude leave")


def _leaves(
    element: dict[Any, Any], metrics: Metrics, max_chars: int, budget: Budget
) -> Iterator[tuple[str, Any]]:
    """The fields that are chosen, with their paths: all but objects, and objects that cannot be gone into.

    max_chars: a longer path cannot be a metric's name, and hostile depth times length must not cost the square.
    """
    open_objects = [("", iter(element.items()))]
    while open_objects:
        prefix, items = open_objects[-1]
        for key, value in items:
            budget.spend()
            path = f"{prefix}{key}"
            if isinstance(value, dict) and len(path) <= max_chars and path not in metrics.wanted:
                open_objects.append((path + ".", iter(value.items())))
                break
            if metrics.is_metric(path):
                yield path, value
        else:
            open_objects.pop()


def _time_ns(element: dict[Any, Any], path: str, context: Context) -> int:
    time, unit = fields.time_of(element, path)
    if time is None:
        return context.arrival_ns()
    return times.time_ns(time, unit or context.unit, context.latest_ns, context.max_future_s)
