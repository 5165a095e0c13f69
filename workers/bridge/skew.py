"""Per-device skew: how far behind or ahead of arrival the timestamps of devices are. Sampled.

Owns the table of the devices sampled last. A device whose clock is wrong is seen here before its points are refused
or turn up in the wrong year; a device that sends what it has collected while offline shows as far behind, too.
Costs a few points per turn of the loop at most, taken from random messages, so that no device hides behind another
that always comes first. Belongs to the loop's thread.
"""

import heapq
import random
from typing import Final

import msgpack
from prometheus_client import Histogram

from common import metrics
from common.timestamps import NS_PER_S
from workers.bridge.columns import Columns
from workers.bridge.payload import Place, Point

PER_TURN: Final = 4  # samples, about; each costs some 3 us
MAX_DEVICES: Final = 10_000
SHOWN: Final = 20

_histogram = Histogram(
    "minitrue_bridge_skew_seconds",
    "Arrival minus timestamp of sampled points; negative: the device is ahead of us.",
    buckets=(-3600, -60, -10, -1, -0.1, 0, 0.1, 1, 10, 60, 600, 3600, 86400),
    registry=metrics.REGISTRY,
)


class Skew:
    """Samples and the table. due: how many messages to let pass before the next sample."""

    def __init__(self) -> None:
        self.due = 0
        self._of: dict[str, float] = {}  # device -> seconds, the device sampled last at the end
        self._stride = 0

    def turn(self, messages: int) -> None:
        """A turn has begun; the one before took in so many messages."""
        self._stride = 2 * messages // PER_TURN
        self.due = min(self.due, self._stride)

    def sample(self, points: list[Point] | Columns, arrival_ns: int) -> None:
        """Take one point of a message."""
        self.due = random.randint(0, self._stride)
        if not points:
            return
        place, time_ns = _any_of(points)
        device, skew_s = msgpack.unpackb(place.key)[0], (arrival_ns - time_ns) / NS_PER_S
        _histogram.observe(skew_s)
        table = self._of
        table.pop(device, None)
        table[device] = skew_s
        if len(table) > MAX_DEVICES:
            del table[next(iter(table))]

    def largest(self) -> dict[str, float]:
        """The devices with the largest skew either way, and their latest in seconds."""
        found = heapq.nlargest(SHOWN, self._of.items(), key=lambda item: abs(item[1]))
        return {device: round(skew_s, 3) for device, skew_s in found}

    def export(self) -> None:
        """Make the gauges; the histogram of all samples is there already."""
        metrics.gauge_from(
            "minitrue_bridge_device_skew_seconds",
            f"Arrival minus timestamp, of the {SHOWN} devices where it is largest; sampled.",
            lambda: {(device,): skew_s for device, skew_s in self.largest().items()},
            labels=("device",),
        )


def _any_of(points: list[Point] | Columns) -> tuple[Place, int]:
    """Place and time of a random point."""
    row = random.randrange(len(points))
    if isinstance(points, Columns):
        return points.places[row if points.index is None else points.index[row]], int(points.times[row])
    return points[row][:2]
