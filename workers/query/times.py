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
_DATE: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[Tt ](\d\d:\d\d)(:\d\d(?:\.\d{1,20})?)?)?([Zz]|[+-]\d\d:\d\d)?", re.ASCII
)
_PER_S: Final = {"milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
_LIKELY_S: Final = range(10**8, 10**10)  # 1973 to 2286: what a number in another unit is taken to mean


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
        return _refuse(field, value, _other_unit(value) or str(error))


def is_relative(value: Any) -> bool:
    """Whether a time in a request depends on now."""
    return isinstance(value, str) and (value == "now" or _RELATIVE.fullmatch(value) is not None)


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
        if not sign and exact > MAX_NS and (reason := _other_unit(int(whole))):
            _refuse(field, text, reason)
        return _within(field, text, -exact if sign else exact) or None
    try:
        return timestamps.from_text(text)
    except ValueError as error:
        return _refuse(field, text, _lost_plus(text) or _lacking(text) or str(error))


# What was probably meant


def _other_unit(value: int | float) -> str:
    """That a number too large for seconds looks like another unit, "" where it does not."""
    if not 0 < value < 1e20:
        return ""
    found = [(unit, int(value) // per_s) for unit, per_s in _PER_S.items() if int(value) // per_s in _LIKELY_S]
    return f"it looks like {found[0][0]}, want seconds: {found[0][1]}" if found else ""


def _lost_plus(text: str) -> str:
    """That a + has become a space on its way, "" where that is not it."""
    before, space, after = text.rpartition(" ")
    meant = f"{before}+{after}"
    if not space or not (_RELATIVE.fullmatch(meant) or _is_rfc_3339(meant)):
        return ""
    return "a + in a URL arrives as a space, write %2B"


def _is_rfc_3339(text: str) -> bool:
    try:
        timestamps.from_text(text)
    except ValueError:
        return False
    return True


def _lacking(text: str) -> str:
    """What a date lacks to be a time, "" where it is no date or lacks nothing."""
    if (match := _DATE.fullmatch(text)) is None:
        return ""
    date, minutes, seconds, zone = match.groups()
    lacking = [] if minutes else ["the time of day"]
    lacking += ["the seconds"] if minutes and not seconds else []
    lacking += [] if zone else ["the zone (Z, or an offset such as +02:00)"]
    whole = f"{date}T{minutes or '00:00'}{seconds or ':00'}{zone or 'Z'}"
    return f"it lacks {' and '.join(lacking)}: want such as {whole}" if lacking else ""


def _within(field: str, text: str, found_ns: int) -> int:
    if not MIN_NS <= found_ns <= MAX_NS:
        _refuse(field, text, "want a time within int64 nanoseconds")
    return found_ns


def _refuse(field: str, value: Any, reason: str) -> NoReturn:
    raise bad(field, f"{field} is {shown(value)}: {reason}; allowed: {_ALLOWED}")
