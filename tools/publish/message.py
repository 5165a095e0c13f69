"""What the publisher sends: MQTT messages that hold one or more points of one series, and when each is due.

Numbers stay as they are written: a replay's decimal text becomes a JSON number without passing through a float.
Pure: no I/O, no clock.
"""

import json
import re
import struct
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from string import Formatter
from typing import Final, NamedTuple, Protocol

from common.errors import MinitrueError

MAX_TOPIC_BYTES: Final = 65535
TOPIC_FIELDS: Final = ("device_id", "metric_name")

_JSON_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?", re.ASCII)
_NOT_IN_A_TOPIC: Final = re.compile(r"[+#\x00]")  # wildcards; the payload has the id as it is


class PublisherError(MinitrueError):
    """What the publisher cannot do, in one line for people."""


class Kept(Protocol):
    """Where a message is kept on disk."""

    def settle(self, points: int) -> None:
        """A message of so many points is acknowledged, or refused for good: it need not be kept."""


class Outgoing(NamedTuple):
    """A message. topic: as MQTT writes it, length first. points: how many the payload holds.

    part: None while it is in memory only.
    """

    topic: bytes
    payload: bytes
    points: int
    part: Kept | None = None


class Chunk(NamedTuple):
    """Messages to send together, due_s seconds after the start; those of a past time are sent at once.

    Without messages it is a pause: the source is asked for more when the time has come, not before.
    """

    due_s: float
    messages: Sequence[Outgoing]


class Template:
    """The topic of a series, such as sensors/{device_id}/{metric_name}. Constant after construction."""

    def __init__(self, text: str) -> None:
        """Raises PublisherError for a text that is no topic, or names other fields than TOPIC_FIELDS."""
        try:
            fields = [name for _, name, _, _ in Formatter().parse(text) if name is not None]
        except ValueError as error:
            raise PublisherError(f"topic {text!r}: {error}") from error
        unknown = [name for name in fields if name not in TOPIC_FIELDS]
        if unknown:
            wanted = ", ".join(f"{{{name}}}" for name in TOPIC_FIELDS)
            raise PublisherError(f"topic {text!r} names {{{unknown[0]}}}; a topic may name {wanted}")
        if not text or text.startswith("$") or _NOT_IN_A_TOPIC.search(text):
            raise PublisherError(f"topic {text!r}: want a topic without +, # and NUL that does not begin with $")
        self._text = text

    def topic(self, device_id: str, metric_name: str) -> bytes:
        """The topic of a series, length first, with + # and NUL of the ids written as _. Raises PublisherError."""
        device, metric = (_NOT_IN_A_TOPIC.sub("_", text) for text in (device_id, metric_name))
        topic = self._text.format(device_id=device, metric_name=metric).encode()
        if len(topic) > MAX_TOPIC_BYTES:
            raise PublisherError(f"topic of {len(topic)} bytes, want at most {MAX_TOPIC_BYTES}: {topic[:60]!r}...")
        return struct.pack(">H", len(topic)) + topic


class Series(NamedTuple):
    """A series as messages need it: its topic, and the JSON text of a point up to the timestamp."""

    topic: bytes
    prefix: str

    def point(self, timestamp: str, value: str) -> str:
        """JSON text of a point; timestamp and value are JSON texts themselves."""
        return f'{self.prefix}{timestamp},"value":{value}}}'


def series(template: Template, device_id: str, metric_name: str, tags: Mapping[str, str] | None = None) -> Series:
    """A series, ready to write points of it."""
    names: dict[str, object] = {"device_id": device_id, "metric_name": metric_name}
    if tags:
        names["tags"] = dict(tags)
    prefix = json.dumps(names, separators=(",", ":"))[:-1]
    return Series(template.topic(device_id, metric_name), f'{prefix},"timestamp":')


def message(topic: bytes, points: Sequence[str]) -> Outgoing:
    """The message that holds these points, JSON texts: an object for one, an array for several."""
    text = points[0] if len(points) == 1 else f"[{','.join(points)}]"
    return Outgoing(topic, text.encode(), len(points))


def json_number(text: str) -> str | None:
    """A decimal number as JSON writes it, digit for digit where JSON allows; None for what is no finite number."""
    if _JSON_NUMBER.fullmatch(text):
        return text
    try:
        number = Decimal(text.strip())
    except InvalidOperation:
        return None
    return str(number).lower() if number.is_finite() else None
