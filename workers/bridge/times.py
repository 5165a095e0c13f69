"""The time of a point: what a payload says, in which unit, and whether that can be. Pure; owns nothing.

The unit is what the payload names, else the subscription's; `auto` tells it from the number's size: below 10^11
seconds (until the year 5138), below 10^14 milliseconds (from 1973-03-03 on), below 10^17 microseconds, else
nanoseconds.
"""

from datetime import UTC, datetime
from typing import Any, Final

from common import timestamps
from workers.bridge.payload import FUTURE, TIME, Refused, kind, shown

Time = int | float | str
AUTO: Final = "auto"
AUTO_LIMITS: Final = (("s", 10**11), ("ms", 10**14), ("us", 10**17))  # unit: for numbers below


def time_ns(time: Time, unit: str, latest_ns: int, max_future_s: float) -> int:
    """Nanoseconds since the epoch of a time. unit: of timestamps.UNITS, or AUTO; text does not need it.

    latest_ns: a later time is refused; it lies max_future_s ahead of the clock. Raises Refused.
    """
    if type(time) is int and unit == "s" and 0 <= time < 1 << 33:
        found = time * timestamps.NS_PER_S  # nearly every payload; also within int64
    elif type(time) is float and unit == "s" and 0.0 <= time < 8e9:
        found = round(time * 1e6) * 1000  # the other payloads; what timestamps.from_number does
    else:
        found = _any_time_ns(time, unit, latest_ns)
    if found > latest_ns:
        raise Refused(FUTURE, _future_text(time, found, latest_ns, max_future_s))
    return found


def unit_of(number: int | float) -> str:
    """The unit of a number by its size: what AUTO takes."""
    for unit, limit in AUTO_LIMITS:
        if abs(number) < limit:
            return unit
    return "ns"


def checked(value: Any) -> Time | None:
    """A payload's time, if it has a type that a time can have. Raises Refused."""
    if isinstance(value, bool) or not isinstance(value, int | float | str | None):
        raise Refused(TIME, f"timestamp is {kind(value)}, want a number or RFC 3339 text")
    return value


def checked_unit(value: Any) -> Any:
    """A payload's own unit, None where it names none. Raises Refused."""
    if value is not None and not (isinstance(value, str) and value in timestamps.UNITS):
        raise Refused(TIME, f"timestamp_unit is {shown(str(value))}, want one of {', '.join(timestamps.UNITS)}")
    return value


def _any_time_ns(time: Time, unit: str, latest_ns: int) -> int:
    if unit == AUTO and not isinstance(time, str):
        unit = unit_of(time)
    try:
        found = timestamps.from_text(time) if isinstance(time, str) else timestamps.from_number(time, unit)
    except ValueError as error:
        hint = _unit_hint(time, latest_ns)
        raise Refused(FUTURE if hint else TIME, f"timestamp: {error}{hint}") from error
    if found < 0:
        raise Refused(TIME, f"timestamp {_shown(time)} lies before 1970, want 0 or more")
    return found


def _future_text(time: Time, found_ns: int, latest_ns: int, max_future_s: float) -> str:
    ahead_s = (found_ns - latest_ns) / timestamps.NS_PER_S + max_future_s
    text = f"timestamp {_shown(time)} is {ahead_s:.9g} s ahead of this machine's clock"
    return f"{text}, limit {max_future_s:g} s (ingest.max_future_s)" + _unit_hint(time, latest_ns)


def _shown(time: Time) -> str:
    """A time for a reason: text may have any number of digits."""
    return shown(time) if isinstance(time, str) else repr(time)


def _unit_hint(time: Time, latest_ns: int) -> str:
    """Words on the unit in which a number would be a time of our days, if there is one."""
    if isinstance(time, str):
        return ""
    for unit in ("ms", "us", "ns"):
        meant_ns = time * timestamps.UNITS[unit]
        if latest_ns // 10 < meant_ns <= latest_ns:
            day = datetime.fromtimestamp(meant_ns / timestamps.NS_PER_S, UTC)
            found = f"; it looks like {unit} ({day:%Y-%m-%d})"
            return f'{found}: want time_unit = "{unit}" in the subscription, or "timestamp_unit" in the payload'
    return ""
