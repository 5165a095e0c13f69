"""Times in requests, to nanoseconds: Unix seconds, RFC 3339, or relative to now; and lengths of time such as "1d12h".

Pure: no clock, no state: now is given.
"""

import re
from typing import Any, Final, NoReturn

from common import timestamps
from common.timestamps import MAX_NS, MIN_NS, NS_PER_S
from workers.query.refusal import bad, shown, type_of

Time = int | float | str | None

UNITS_NS: Final = {  # of lengths that are the same everywhere and always
    "s": NS_PER_S,
    "m": 60 * NS_PER_S,
    "h": 3600 * NS_PER_S,
    "d": 86_400 * NS_PER_S,
    "w": 604_800 * NS_PER_S,
}
MAX_S: Final = MAX_NS // NS_PER_S
_ALLOWED: Final = (
    f"Unix seconds from -{MAX_S} to {MAX_S}, RFC 3339 text, now, text relative to now such as -6h or now-1d12h "
    "(units s m h d w), or 0 or no value for an open end"
)
_NUMBER: Final = re.compile(r"(-?)(\d{1,19})(?:\.(\d{1,40}))?", re.ASCII)
_RELATIVE: Final = re.compile(r"(?:now)?([+-])((?:\d{1,12}[smhdw])+)", re.ASCII)
_PART: Final = re.compile(r"(\d+)([smhdw])", re.ASCII)


def time_ns(field: str, value: Any, now_ns: int) -> int | None:
    """Nanoseconds of a time in a request; None is an open end (0 or no value). Raises Refusal."""
    if type(value) is int and -MAX_S <= value <= MAX_S:  # almost always
        return value * NS_PER_S or None
    if not value and value != "" and not isinstance(value, bool | dict | list):
        return None
    if isinstance(value, str):
        return _text_ns(field, value, now_ns)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _refuse(field, value, f"it is {type_of(value)}")
    try:
        return timestamps.from_number(value)
    except ValueError as error:
        return _refuse(field, value, str(error))


def check_order(start_ns: int | None, end_ns: int | None, start: Any, end: Any) -> None:
    """Refuse a range whose start lies after its end. start, end: as they were written."""
    if start_ns is not None and end_ns is not None and start_ns > end_ns:
        raise bad(
            "start_time",
            f"start_time {shown(start)} is after end_time {shown(end)}; "
            "the range includes both ends, and 0 or no value leaves an end open",
        )


def _text_ns(field: str, text: str, now_ns: int) -> int | None:
    if not text:
        _refuse(field, text, "the text is empty")
    if text == "now":
        return now_ns
    if match := _RELATIVE.fullmatch(text):
        length = sum(int(count) * UNITS_NS[unit] for count, unit in _PART.findall(match[2]))
        return _within(field, text, now_ns - length if match[1] == "-" else now_ns + length)
    if match := _NUMBER.fullmatch(text):
        sign, whole, fraction = match.groups()
        exact = int(whole) * NS_PER_S + int((fraction or "")[:9].ljust(9, "0"))
        return _within(field, text, -exact if sign else exact) or None
    try:
        return timestamps.from_text(text)
    except ValueError as error:
        return _refuse(field, text, str(error))


def _within(field: str, text: str, found_ns: int) -> int:
    if not MIN_NS <= found_ns <= MAX_NS:
        _refuse(field, text, "want a time within int64 nanoseconds")
    return found_ns


def _refuse(field: str, value: Any, reason: str) -> NoReturn:
    raise bad(field, f"{field} is {shown(value)}: {reason}; allowed: {_ALLOWED}")
