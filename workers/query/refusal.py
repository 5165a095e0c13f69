"""Refusals: requests that are answered with an error, and the checks of single values that end in one.

Every text says what was got and what is allowed; a hostile value is never repeated at length.
Pure: no I/O, no state.
"""

import difflib
from collections.abc import Collection
from typing import Any, Final

import msgspec

from common.errors import QueryError

SHOWN_CHARS: Final = 100  # of a hostile value, in errors

JSON_TYPES: Final = {
    dict: "an object",
    list: "an array",
    str: "text",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    type(None): "null",
}


class Refusal(QueryError):
    """A request that is answered with an error. status: of HTTP; error: one word for programs."""

    def __init__(self, status: int, error: str, message: str, field: str | None = None) -> None:
        super().__init__(message, field)
        self.status = status
        self.error = error


class OverLimit(Refusal):
    """A request that needs more than a setting allows. value: what it would need, where that is known."""

    def __init__(
        self, setting: str, limit: float, value: float | None, message: str, field: str | None = None, status: int = 422
    ) -> None:
        super().__init__(status, "limit", message, field)
        self.setting = setting
        self.limit = limit
        self.value = value


def bad(field: str | None, message: str) -> Refusal:
    """The refusal of a field's value."""
    return Refusal(400, "bad_request", message, field)


def shown(value: Any) -> str:
    """A value as JSON, cut short."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a number of {value.bit_length()} bits"
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}..."


def type_of(value: Any) -> str:
    """What JSON calls the type of a value, with its article."""
    return JSON_TYPES.get(type(value), type(value).__name__)


def near(text: str, known: Collection[str]) -> str:
    """A hint at the known text that was probably meant, "" where none is near."""
    found = difflib.get_close_matches(text[:SHOWN_CHARS], known, n=1)
    return f"; did you mean {found[0]}?" if found else ""


def check_known(names: Collection[str], known: Collection[str], word: str = "field") -> None:
    """Refuse names that are not known. word: what they are called in the text, "field" or "parameter"."""
    for name in names:
        if name not in known:
            text = f"unknown {word} {shown(name)}, known are {', '.join(known)}{near(name, known)}"
            raise bad(name[:SHOWN_CHARS], text)


# Single values. Texts are taken where a value may come from a URL's parameters.


def flag(field: str, value: Any) -> bool:
    """true or false, also as text."""
    if value is None:
        return False
    if isinstance(value, bool):
        return value
    if value in ("true", "false"):
        return bool(value == "true")
    raise bad(field, f"{field} is {shown(value)}, {type_of(value)}; want true or false")


def whole(field: str, value: Any, least: int, most: int) -> int:
    """A whole number within bounds, also as text of digits."""
    number = value
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        number = int(value)
    if isinstance(number, bool) or not isinstance(number, int) or not least <= number <= most:
        raise bad(field, f"{field} is {shown(value)}, want a whole number from {least} to {most}")
    return number


def seconds(field: str, value: Any, most: float) -> float:
    """A number of seconds above 0 and at most `most`, also as text."""
    number = value
    if isinstance(value, str) and len(value) < 40:
        try:
            number = float(value)
        except ValueError:
            number = None
    usable = isinstance(number, int | float) and not isinstance(number, bool)
    if not usable or not 0 < number <= most:
        raise bad(field, f"{field} is {shown(value)}, want a number above 0, at most {most:g}")
    return float(number)


def choice(field: str, value: Any, allowed: Collection[str]) -> str:
    """One of some texts."""
    if isinstance(value, str) and value in allowed:
        return value
    hint = near(value, allowed) if isinstance(value, str) else ""
    raise bad(field, f"{field} is {shown(value)}, want one of {', '.join(allowed)}{hint}")
