"""Times as people write them, to nanoseconds since the Unix epoch: numbers with a unit, and RFC 3339 text.

Integers are exact in every unit. A number with a fraction is rounded to the nearest microsecond: `float * 1e9`
would misplace most millisecond timestamps. Text is exact to the nanosecond; digits beyond the ninth are dropped.
Pure: no clock, no state. Every error is a ValueError whose text says what was got and what is wanted.
"""

import math
import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Final

NS_PER_S: Final = 1_000_000_000
UNITS: Final = {"s": NS_PER_S, "ms": 1_000_000, "us": 1000, "ns": 1}  # nanoseconds in one of each
MIN_NS: Final = -(2**63)  # timestamps are int64
MAX_NS: Final = 2**63 - 1

_US_PER_UNIT: Final = {"s": 1e6, "ms": 1e3, "us": 1.0, "ns": 1e-3}
_RFC_3339: Final = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d+))?(?:([Zz])|([+-])(\d\d):(\d\d))", re.ASCII
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SHOWN_CHARS: Final = 64  # of a hostile text, in errors


def from_number(value: int | float, unit: str = "s") -> int:
    """Nanoseconds of a number in a unit of UNITS. Raises ValueError outside int64, and for NaN and infinities."""
    if isinstance(value, int):
        time_ns = value * UNITS[unit]
    elif math.isfinite(value) and abs(value) * _US_PER_UNIT[unit] < 2.0**63:
        time_ns = round(value * _US_PER_UNIT[unit]) * 1000
    else:
        raise ValueError(f"time {value!r} {unit}: want a time within int64 nanoseconds")
    if not MIN_NS <= time_ns <= MAX_NS:
        raise ValueError(f"time {_number_text(value)} {unit}: want a time within int64 nanoseconds")
    return time_ns


def from_text(text: str) -> int:
    """Nanoseconds of an RFC 3339 time such as 2024-05-01T12:00:00.25Z. A leap second is the second after it."""
    match = _RFC_3339.fullmatch(text)
    if match is None:
        raise ValueError(f"time {text[:_SHOWN_CHARS]!r}: want RFC 3339, such as 2024-05-01T12:00:00.25Z")
    *date, fraction, _, sign, zone_hours, zone_minutes = match.groups()
    year, month, day, hour, minute, second = map(int, date)
    leap = second == 60
    try:
        zone = _zone(sign, zone_hours, zone_minutes)
        moment = datetime(year, month, day, hour, minute, second - leap, tzinfo=zone)
    except ValueError as error:
        raise ValueError(f"time {text[:_SHOWN_CHARS]!r}: {error}") from error
    seconds = (moment - _EPOCH) // timedelta(seconds=1) + leap
    time_ns = seconds * NS_PER_S + int((fraction or "")[:9].ljust(9, "0"))
    if not MIN_NS <= time_ns <= MAX_NS:
        raise ValueError(f"time {text[:_SHOWN_CHARS]!r}: want a time within int64 nanoseconds")
    return time_ns


def _zone(sign: str | None, hours: str, minutes: str) -> timezone:
    if sign is None:
        return UTC
    if int(hours) > 23 or int(minutes) > 59:
        raise ValueError(f"offset {sign}{hours}:{minutes} is not one of a clock")
    offset = timedelta(hours=int(hours), minutes=int(minutes))
    return timezone(-offset if sign == "-" else offset)


def _number_text(value: int | float) -> str:
    """The number, or its size where printing it would cost too much."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"of {value.bit_length()} bits"
    return repr(value)
