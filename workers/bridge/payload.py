"""A payload's bytes to points, or to the reasons why not. Owns the format of JSON payloads and the series cache.

A payload is one JSON object or an array of such:

    {"device_id": "sensor_1", "metric_name": "temperature", "timestamp": 1714564800.25, "value": 21.5,
     "tags": {"site": "north"}, "timestamp_unit": "s"}

timestamp (number in timestamp_unit, or RFC 3339 text), tags and timestamp_unit (s, ms, us, ns; s) may be missing
or null: no time means arrival time. Other fields are ignored, "unit" among them: there it is the unit of the
value. In an array each element stands alone: a bad one is refused, its neighbours are points.

Two ways lead to the same answer (a test compares them): msgspec decodes good payloads in one step; what it
refuses is taken apart again by the json module to find out exactly which element is wrong and why.
Pure but for the cache: no I/O, no log; the clock comes in as a callable. Belongs to the loop's thread.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple, cast

import msgspec

from common import timestamps
from common.config import Ingest
from common.errors import PayloadError
from common.series import partition_of, series_key

# Codes of refusals: what they are counted by, in metrics and in the dead letter.
EMPTY: Final = "empty"
SIZE: Final = "size"
NOT_JSON: Final = "not-json"
SHAPE: Final = "shape"
MISSING: Final = "missing-field"
ID: Final = "id"
TAGS: Final = "tags"
VALUE: Final = "value"
TIME: Final = "time"
FUTURE: Final = "future"

CACHE_BYTES: Final = 64 << 20  # ids come from outside: an attacker's must not fill the memory
_CACHE_ENTRY_BYTES: Final = 500  # dict entry, tuples and strings of a series, beside its key; measured 400 to 500
_MAX_INT_DIGITS: Final = 4000  # beyond float64 long before; Python refuses to parse more than 4300
_SHOWN_CHARS: Final = 80  # of hostile text, in reasons


class Place(NamedTuple):
    """Where a series belongs."""

    key: bytes
    partition: int


Point = tuple[Place, int, float]  # place, nanoseconds since the epoch, value


class Refusal(NamedTuple):
    """What was not stored. payload: the whole of it, or the bad element's bytes as they were published."""

    payload: bytes
    code: str
    reason: str


class Reading(msgspec.Struct, gc=False):
    """One object of a payload, its types right, nothing else checked."""

    device_id: str
    metric_name: str
    value: bool | float
    timestamp: int | float | str | None = None
    tags: dict[str, str] | None = None
    timestamp_unit: Literal["s", "ms", "us", "ns"] | None = None


class _Refused(PayloadError):
    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


_NO_REFUSALS: Final[list[Refusal]] = []
_decode = msgspec.json.Decoder(Reading | list[Reading]).decode
_FAST_PATH_FAILED = (msgspec.DecodeError, PayloadError, UnicodeDecodeError, RecursionError)
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_NOT_SCALAR = re.compile("[\ud800-\udfff]")
_SPACE = re.compile(r"[ \t\n\r]*")


class Decoder:
    """Decodes payloads. arrival_ns: gives the time of arrival, another one at each call."""

    def __init__(self, ingest: Ingest, partitions: int, arrival_ns: Callable[[], int]) -> None:
        self._ingest = ingest
        self._partitions = partitions
        self._arrival_ns = arrival_ns
        self._places: dict[Any, Place] = {}
        self._cache_bytes = 0

    def decode(self, payload: bytes, latest_ns: int) -> tuple[list[Point], list[Refusal]]:
        """The points of a payload, and what of it is refused.

        latest_ns: the skew gate; a later time is refused. A caller that does not trust its own clock holds the
        payload back, or passes timestamps.MAX_NS.
        """
        if len(payload) > self._ingest.max_payload_bytes:
            limit = f"limit {self._ingest.max_payload_bytes} (ingest.max_payload_bytes)"
            return [], [Refusal(payload, SIZE, f"payload of {len(payload)} bytes, {limit}")]
        try:
            reading = _decode(payload)
            if type(reading) is Reading:
                return [self._point(reading, latest_ns)], _NO_REFUSALS
            return [self._point(one, latest_ns) for one in cast(list[Reading], reading)], _NO_REFUSALS
        except _FAST_PATH_FAILED:
            return self._decode_slowly(payload, latest_ns)

    def _point(self, reading: Reading, latest_ns: int) -> Point:
        tags = reading.tags
        name: tuple[Any, ...] = (reading.device_id, reading.metric_name)
        if tags:
            name = (*name, *sorted(tags.items()))
        place = self._places.get(name)
        if place is None:
            place = self._add_place(name, reading)
        time = reading.timestamp
        if time is None:
            return place, self._arrival_ns(), float(reading.value)
        time_ns = _time_ns(time, reading.timestamp_unit or "s", latest_ns)
        if time_ns > latest_ns:
            raise _Refused(FUTURE, _future_text(time, time_ns, latest_ns, self._ingest.max_future_s))
        return place, time_ns, float(reading.value)

    def _add_place(self, name: tuple[Any, ...], reading: Reading) -> Place:
        limit = self._ingest.max_id_bytes
        _check_id("device_id", reading.device_id, ID, limit)
        _check_id("metric_name", reading.metric_name, ID, limit)
        if reading.tags:
            _check_tags(reading.tags, self._ingest.max_tags, limit)
        key = series_key(reading.device_id, reading.metric_name, reading.tags)
        place = Place(key, partition_of(key, self._partitions))
        self._cache_bytes += 3 * len(key) + _CACHE_ENTRY_BYTES
        if self._cache_bytes > CACHE_BYTES:
            self._places.clear()
            self._cache_bytes = 0
        self._places[name] = place
        return place

    def _decode_slowly(self, payload: bytes, latest_ns: int) -> tuple[list[Point], list[Refusal]]:
        points: list[Point] = []
        refusals: list[Refusal] = []
        try:
            elements = _elements(payload)
        except _Refused as refused:
            return [], [Refusal(payload, refused.code, str(refused))]
        for text, element in elements:
            try:
                points.append(self._point(_reading(element), latest_ns))
            except _Refused as refused:
                refusals.append(Refusal(text, refused.code, str(refused)))
        return points, refusals


def _time_ns(time: int | float | str, unit: str, latest_ns: int) -> int:
    if type(time) is int and unit == "s" and 0 <= time < 1 << 33:
        return time * timestamps.NS_PER_S  # nearly every payload; also within int64
    try:
        time_ns = timestamps.from_text(time) if isinstance(time, str) else timestamps.from_number(time, unit)
    except ValueError as error:
        hint = _unit_hint(time, latest_ns)
        raise _Refused(FUTURE if hint else TIME, f"timestamp: {error}{hint}") from error
    if time_ns < 0:
        raise _Refused(TIME, f"timestamp {time!r} lies before 1970, want 0 or more")
    return time_ns


def _future_text(time: int | float | str, time_ns: int, latest_ns: int, max_future_s: float) -> str:
    ahead_s = (time_ns - latest_ns) / timestamps.NS_PER_S + max_future_s
    text = f"timestamp {time!r} is {ahead_s:.9g} s ahead of this machine's clock"
    return f"{text}, limit {max_future_s:g} s (ingest.max_future_s)" + _unit_hint(time, latest_ns)


def _unit_hint(time: int | float | str, latest_ns: int) -> str:
    """Words on the unit in which a number would be a time of our days, if there is one."""
    if isinstance(time, str):
        return ""
    for unit in ("ms", "us", "ns"):
        meant_ns = time * timestamps.UNITS[unit]
        if latest_ns // 10 < meant_ns <= latest_ns:
            day = datetime.fromtimestamp(meant_ns / timestamps.NS_PER_S, UTC)
            return f'; it looks like {unit} ({day:%Y-%m-%d}): add "timestamp_unit": "{unit}"'
    return ""


def _check_id(field: str, text: str, code: str, max_bytes: int) -> None:
    if not text:
        raise _Refused(code, f"{field} is empty")
    control = _CONTROL.search(text)
    if control:
        at, char = control.start(), ord(control.group())
        raise _Refused(code, f"{field} {_shown(text)} has the control character U+{char:04X} at {at}")
    if _NOT_SCALAR.search(text):
        raise _Refused(code, f"{field} {_shown(text)} has half a surrogate pair, which is no character")
    size = len(text.encode())
    if size > max_bytes:
        limit = f"limit {max_bytes} (ingest.max_id_bytes)"
        raise _Refused(code, f"{field} {_shown(text)} has {size} bytes of UTF-8, {limit}")


def _check_tags(tags: Mapping[str, str], max_tags: int, max_bytes: int) -> None:
    if len(tags) > max_tags:
        raise _Refused(TAGS, f"{len(tags)} tags, limit {max_tags} (ingest.max_tags)")
    for name, value in tags.items():
        _check_id("tag name", name, TAGS, max_bytes)
        _check_id(f"tag {_shown(name)}", value, TAGS, max_bytes)


# The slow way: exact reasons, element by element.


def _parse_int(digits: str) -> int | float:
    if len(digits) <= _MAX_INT_DIGITS:
        return int(digits)
    return -math.inf if digits[0] == "-" else math.inf


_scan: Final = json.JSONDecoder(parse_int=_parse_int).raw_decode


def _elements(payload: bytes) -> list[tuple[bytes, Any]]:
    """The elements of an array, or the one object, each with its bytes. Raises _Refused for the payload whole."""
    if not payload.strip():
        raise _Refused(EMPTY, "empty payload")
    try:
        text = payload.decode()
        begin = _skip_space(text, 0)
        found = list(_array(text, begin) if text[begin] == "[" else _single(text, begin))
    except UnicodeDecodeError as error:
        raise _Refused(NOT_JSON, f"not UTF-8: byte {payload[error.start]:#04x} at {error.start}") from error
    except json.JSONDecodeError as error:
        raise _Refused(NOT_JSON, f"not JSON: {error.msg} at character {error.pos}") from error
    except RecursionError as error:
        raise _Refused(NOT_JSON, "JSON nested too deeply") from error
    return found


def _single(text: str, at: int) -> Iterator[tuple[bytes, Any]]:
    element, end = _scan(text, at)
    if not isinstance(element, dict):
        raise _Refused(SHAPE, f"payload is {_kind(element)}, want a JSON object or an array of objects")
    yield text[at:end].encode(), element
    _want_end(text, end)


def _array(text: str, at: int) -> Iterator[tuple[bytes, Any]]:
    at = _skip_space(text, at + 1)
    if text[at : at + 1] == "]":
        return _want_end(text, at + 1)
    while True:
        element, end = _scan(text, at)
        yield text[at:end].encode(), element
        at = _skip_space(text, end)
        if text[at : at + 1] == "]":
            return _want_end(text, at + 1)
        if text[at : at + 1] != ",":
            raise json.JSONDecodeError("Expecting ',' or ']'", text, at)
        at = _skip_space(text, at + 1)


def _want_end(text: str, at: int) -> None:
    at = _skip_space(text, at)
    if at < len(text):
        raise json.JSONDecodeError("Extra data", text, at)


def _skip_space(text: str, at: int) -> int:
    return cast(re.Match[str], _SPACE.match(text, at)).end()


def _reading(element: Any) -> Reading:
    if not isinstance(element, dict):
        raise _Refused(SHAPE, f"element is {_kind(element)}, want a JSON object")
    for field in ("device_id", "metric_name", "value"):
        if field not in element:
            raise _Refused(MISSING, f"no {field}")
    for field in ("device_id", "metric_name"):
        if not isinstance(element[field], str):
            raise _Refused(ID, f"{field} is {_kind(element[field])}, want a string")
    return Reading(
        element["device_id"],
        element["metric_name"],
        _value(element["value"]),
        _time(element.get("timestamp")),
        _tags(element.get("tags")),
        _unit(element.get("timestamp_unit")),
    )


def _value(value: Any) -> float:
    if not isinstance(value, int | float):
        raise _Refused(VALUE, f"value is {_kind(value)}, want a number or a boolean")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _Refused(VALUE, "value is NaN, infinite or beyond the range of float64, want a finite number")
    return number


def _time(value: Any) -> int | float | str | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str | None):
        raise _Refused(TIME, f"timestamp is {_kind(value)}, want a number or RFC 3339 text")
    return value


def _tags(value: Any) -> dict[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise _Refused(TAGS, f"tags are {_kind(value)}, want an object of strings")
    for name, text in value.items():
        if not isinstance(text, str):
            raise _Refused(TAGS, f"tag {_shown(name)} is {_kind(text)}, want a string")
    return value


def _unit(value: Any) -> Any:
    if value is not None and not (isinstance(value, str) and value in timestamps.UNITS):
        raise _Refused(TIME, f"timestamp_unit is {_shown(str(value))}, want one of {', '.join(timestamps.UNITS)}")
    return value


def _kind(value: Any) -> str:
    """What JSON calls the value."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    names = {str: "a string", int: "a number", float: "a number", list: "an array", dict: "an object"}
    return names[type(value)]


def _shown(text: str) -> str:
    return ascii(text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "...")
