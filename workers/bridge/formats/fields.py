"""Fields of objects, found by their paths: what all formats of objects share. Pure; owns nothing.

A path is a field's name, or several joined by dots that lead into objects. A name that itself has dots is found
too, and before what its dots would lead to.
"""

import math
from typing import Any, Final

from workers.bridge import times
from workers.bridge.context import Context
from workers.bridge.payload import ID, MISSING, SHAPE, TAGS, VALUE, Refused, check_id, kind, shown

ABSENT: Final = object()  # what is not there; null is


def look_up(element: dict[Any, Any], path: str) -> Any:
    """The value at a path, or ABSENT."""
    if path in element:
        return element[path]
    head, dot, rest = path.partition(".")
    inner = element.get(head) if dot else None
    return look_up(inner, rest) if isinstance(inner, dict) else ABSENT


def want_object(element: Any) -> dict[Any, Any]:
    """An element that is an object. Raises Refused."""
    if not isinstance(element, dict):
        raise Refused(SHAPE, f"element is {kind(element)}, want an object")
    return element


def name_of(element: dict[Any, Any], name: str, path: str, otherwise: str) -> str:
    """A device or metric: the text at the path, else what the topic gives. Raises Refused.

    name: for words. Null counts as missing where there is something else.
    """
    text = look_up(element, path)
    if otherwise and (text is ABSENT or text is None):
        return otherwise
    if text is ABSENT:
        raise Refused(MISSING, f"no {_titled(name, path)} in the payload, and none in topic or subscription")
    if not isinstance(text, str):
        raise Refused(ID, f"{_titled(name, path)} is {kind(text)}, want a string")
    return text


def value_of(element: dict[Any, Any], path: str) -> float:
    """The value at a path as a point has it. Raises Refused."""
    value = look_up(element, path)
    if value is ABSENT:
        raise Refused(MISSING, f"no {_titled('value', path)} in the payload")
    return finite(value, _titled("value", path))


def tags_of(element: dict[Any, Any]) -> dict[str, str] | None:
    """The tags of an object, None for none. Raises Refused."""
    tags = element.get("tags")
    if tags is None:
        return None
    if not isinstance(tags, dict):
        raise Refused(TAGS, f"tags are {kind(tags)}, want an object of strings")
    for name, text in tags.items():
        if not isinstance(name, str):
            raise Refused(TAGS, f"tag {shown(str(name))}: its name is {kind(name)}, want a string")
        if not isinstance(text, str):
            raise Refused(TAGS, f"tag {shown(name)} is {kind(text)}, want a string")
    return tags


def time_of(element: dict[Any, Any], path: str) -> tuple[times.Time | None, Any]:
    """The time at a path and the payload's own unit, None each for none. path: "" for no time. Raises Refused."""
    if not path:
        return None, None
    time = look_up(element, path)
    return times.checked(None if time is ABSENT else time), times.checked_unit(element.get("timestamp_unit"))


def finite(value: Any, what: str) -> float:
    """A number or boolean as a point's value. what: for words. Raises Refused."""
    if not isinstance(value, int | float):
        raise Refused(VALUE, f"{what} is {kind(value)}, want a number or a boolean")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise Refused(VALUE, f"{what} is NaN, infinite or beyond the range of float64, want a finite number")
    return number


def device_of(element: Any, path: str, context: Context) -> str:
    """The device of an element that was refused, as far as it can be known; else ""."""
    device = look_up(element, path) if isinstance(element, dict) else ABSENT
    return known(device if isinstance(device, str) else context.device_id, context)


def known(device: str, context: Context) -> str:
    """The device's id if it can be one, else ""."""
    try:
        check_id("device_id", device, ID, context.ingest.max_id_bytes)
    except Refused:
        return ""
    return device


def _titled(name: str, path: str) -> str:
    return name if path == name else f"{name} (field {shown(path)})"
