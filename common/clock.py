"""The two clocks, in one place so that tests can replace them.

Wall time stamps arrivals and gates skew; it may jump. Monotonic time measures waits; it never does.
"""

import time


def wall_ns() -> int:
    """Nanoseconds since the Unix epoch, by the machine's clock."""
    return time.time_ns()


def monotonic_s() -> float:
    """Seconds on a clock that never goes back; only differences mean anything."""
    return time.monotonic()
