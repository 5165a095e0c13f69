"""What every format speaks of: points, refusals, and the places of series. Owns the cache of series.

A format (workers/bridge/formats) turns a payload's bytes into points, and into refusals for what cannot be points:
each element stands alone, a bad one is refused and its neighbours are points. Names from outside pass `Places`,
which checks them once for each series.
Pure but for the cache: no I/O, no log, no clock. Belongs to the loop's thread.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from common.config import Ingest
from common.errors import PayloadError
from common.series import partition_of, series_key
from workers.bridge.columns import Columns

# Codes of refusals: what they are counted by, in metrics and in the dead letter.
EMPTY: Final = "empty"
SIZE: Final = "size"
NOT_JSON: Final = "not-json"
SYNTAX: Final = "syntax"  # NOT_JSON of the formats that are not JSON
SHAPE: Final = "shape"
TOPIC: Final = "topic"
MISSING: Final = "missing-field"
ID: Final = "id"
TAGS: Final = "tags"
VALUE: Final = "value"
TIME: Final = "time"
FUTURE: Final = "future"
STORAGE: Final = "storage"  # rows that a node refused, as seed JSON
BUG: Final = "bug"  # payloads that our decoder broke down on, and batches that no node can decode

MAX_REFUSALS: Final = 1000  # of one payload, each by itself; a log file that is no CSV has a million
CACHE_BYTES: Final = 64 << 20  # ids come from outside: an attacker's must not fill the memory
_CACHE_ENTRY_BYTES: Final = 500  # dict entry, tuples and strings of a series, beside its key; measured 400 to 500
_SHOWN_CHARS: Final = 80  # of hostile text, in reasons
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_NOT_SCALAR = re.compile("[\ud800-\udfff]")


class Place(NamedTuple):
    """Where a series belongs."""

    key: bytes
    partition: int


Point = tuple[Place, int, float]  # place, nanoseconds since the epoch, value
Points = list[Point] | Columns
Name = tuple[Any, ...]  # (device id, metric name, (tag, value), ...): tags sorted by name


class Refusal(NamedTuple):
    """What was not stored. payload: the whole of it, or the bad element's bytes as they were published.

    device: the device id, where it is known and can be one; else "".
    """

    payload: bytes
    code: str
    reason: str
    device: str = ""


Decoded = tuple[Points, list[Refusal]]
NO_REFUSALS: Final[list[Refusal]] = []  # shared by all good payloads; nobody adds to it


class Refused(PayloadError):
    """An element that cannot be a point, or a payload that cannot be taken apart."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code

    def refusal(self, payload: bytes, device: str = "") -> Refusal:
        """The refusal of these bytes."""
        return Refusal(payload, self.code, str(self), device)


class TooMany(Refused):
    """A payload of more elements than one may have: refused whole."""


def want_few(count: int, ingest: Ingest) -> None:
    """Raise TooMany for a payload of so many elements. Each costs some microseconds, in which nothing else is done."""
    if count > ingest.max_elements:
        raise TooMany(SIZE, f"{count} elements, lines or fields, limit {ingest.max_elements} (ingest.max_elements)")


class Refusals:
    """The refusals of a payload's elements: the first MAX_REFUSALS each by itself, all further ones together."""

    def __init__(self, join: Callable[[Sequence[bytes]], bytes]) -> None:
        """join: makes one payload of elements."""
        self._join = join
        self._found: list[Refusal] = []
        self._rest: list[bytes] = []
        self._first: Refused | None = None  # of the rest

    def add(self, refused: Refused, element: bytes, device: str = "") -> None:
        """Refuse an element. device: as of a Refusal."""
        if len(self._found) < MAX_REFUSALS:
            self._found.append(refused.refusal(element, device))
        else:
            self._first = self._first or refused
            self._rest.append(element)

    def all(self) -> list[Refusal]:
        """What to put into the dead letter; replayed, the rest is a payload of these elements alone."""
        if self._first is None:
            return self._found
        reason = f"{len(self._rest)} further elements are refused, and kept together; the first: {self._first}"
        return [*self._found, Refusal(self._join(self._rest), self._first.code, reason)]


class Places:
    """The places of the series seen lately.

    get: the place by the series' name, None where it is not known: then `add`. The hot path.
    """

    __slots__ = ("_bytes", "_ingest", "_partitions", "_places", "get")

    def __init__(self, ingest: Ingest, partitions: int) -> None:
        self._ingest = ingest
        self._partitions = partitions
        self._places: dict[Name, Place] = {}
        self._bytes = 0
        self.get = self._places.get

    def __len__(self) -> int:
        return len(self._places)

    def add(self, name: Name) -> Place:
        """The place of a series that is not known yet. Raises Refused for names that cannot be stored."""
        device_id, metric_name, *pairs = name
        tags = dict(pairs)
        check_id("device_id", device_id, ID, self._ingest.max_id_bytes)
        check_id("metric_name", metric_name, ID, self._ingest.max_id_bytes)
        check_tags(tags, self._ingest)
        key = series_key(device_id, metric_name, tags)
        place = Place(key, partition_of(key, self._partitions))
        self._bytes += 3 * len(key) + _CACHE_ENTRY_BYTES
        if self._bytes > CACHE_BYTES:
            self._places.clear()
            self._bytes = 0
        self._places[name] = place
        return place


def check_id(field: str, text: str, code: str, max_bytes: int) -> None:
    """Raise Refused unless a text can be an id, a tag's name or a tag's value."""
    if not text:
        raise Refused(code, f"{field} is empty")
    control = _CONTROL.search(text)
    if control:
        at, char = control.start(), ord(control.group())
        raise Refused(code, f"{field} {shown(text)} has the control character U+{char:04X} at {at}")
    if _NOT_SCALAR.search(text):
        raise Refused(code, f"{field} {shown(text)} has half a surrogate pair, which is no character")
    size = len(text.encode())
    if size > max_bytes:
        limit = f"limit {max_bytes} (ingest.max_id_bytes)"
        raise Refused(code, f"{field} {shown(text)} has {size} bytes of UTF-8, {limit}")


def check_tags(tags: Mapping[str, str], ingest: Ingest) -> None:
    """Raise Refused unless tags can be stored."""
    if len(tags) > ingest.max_tags:
        raise Refused(TAGS, f"{len(tags)} tags, limit {ingest.max_tags} (ingest.max_tags)")
    for name, value in tags.items():
        check_id("tag name", name, TAGS, ingest.max_id_bytes)
        check_id(f"tag {shown(name)}", value, TAGS, ingest.max_id_bytes)


def kind(value: Any) -> str:
    """What JSON calls a value; the binary types of msgpack by their names."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    names = {str: "a string", int: "a number", float: "a number", list: "an array", dict: "an object"}
    return names.get(type(value), f"of type {type(value).__name__}")


def shown(text: str) -> str:
    """Hostile text for a reason: short and ASCII."""
    return ascii(text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "...")
