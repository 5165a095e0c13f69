"""Retention: the time before which points are gone, by a clock that can be wrong.

Owns the cutoff. Points before it are hidden from answers and refused on arrival at once. Removing them from disk
cannot be undone, so that follows a cutoff of its own, the settled one: it rises only to where the clock has put the
cutoff, or beyond, for SETTLE_S of uptime without a break. So a clock far in the future, as at the boot of a machine
without a battery, hides points until it is put right, and removes none; one in the past removes none either.

The cutoff is the start of a UTC day, so that nodes whose clocks differ a little agree all day but for a moment.
It follows the clock back, but never behind what has settled: what may be gone from disk in part is never shown again.

Pure but for the two clocks. `observe` belongs to the writer thread; the cutoffs are plain ints, read by any.
"""

from typing import Final

import numpy as np

from common import clock
from common.timestamps import MIN_NS

DAY_NS: Final = 86_400 * 1_000_000_000
SETTLE_S: Final = 600.0  # NTP has put a wrong clock right by then, if it can


class Retention:
    """days: whole days to keep, 0 for ever. cutoff, settled: ns; MIN_NS where nothing is behind."""

    def __init__(self, days: int) -> None:
        self.days = days
        self.cutoff = MIN_NS
        self.settled = MIN_NS
        self._candidate = MIN_NS  # no cutoff since _since_s was lower
        self._since_s = clock.monotonic_s()
        self.observe()

    def observe(self) -> None:
        """Look at the clocks. To be called now and then."""
        if not self.days:
            return
        proposed = cutoff_at(clock.wall_ns(), self.days)
        now = clock.monotonic_s()
        if proposed < self._candidate or self._candidate == MIN_NS:
            self._candidate, self._since_s = proposed, now
        elif now - self._since_s >= SETTLE_S:
            self.settled = max(self.settled, self._candidate)
            self._candidate, self._since_s = proposed, now
        self.cutoff = max(self.settled, proposed)

    def reason(self) -> str:
        """Why a point behind the cutoff is refused."""
        return f"older than the retention of {self.days} days: before {_date(self.cutoff)} by this node's clock"


def cutoff_at(now_ns: int, days: int) -> int:
    """The start of the UTC day in which `now` less so many days lies."""
    return max(MIN_NS, (now_ns - days * DAY_NS) // DAY_NS * DAY_NS)


def _date(time_ns: int) -> str:
    return str(np.datetime64(time_ns, "ns").astype("datetime64[D]"))
