"""What tests of formats share: one subscription, decoded by an intake with a clock of its own."""

import struct
from typing import Any, NamedTuple

from common.config import Ingest, Mqtt, Settings, Subscription
from common.series import parse_key, partition_of
from workers.bridge.intake import Intake
from workers.bridge.payload import Refusal

NOW_NS = 1_700_000_000_000_000_000
LATEST_NS = NOW_NS + 3600 * 10**9
ARRIVAL = "arrival"


class Got(NamedTuple):
    """A point in plain words. time: nanoseconds, or ARRIVAL."""

    device: str
    metric: str
    tags: dict[str, str]
    time: int | str
    value: float


class World:
    """An intake for subscriptions; the clock stands at NOW_NS and goes by nanoseconds."""

    def __init__(self, *subscriptions: Subscription, **limits: Any) -> None:
        self.arrivals: set[int] = set()
        settings = Settings(mqtt=Mqtt(subscriptions=list(subscriptions)), ingest=Ingest(**limits))
        self.intake = Intake(settings, 1024, self._stamp)

    def _stamp(self) -> int:
        time_ns = NOW_NS + len(self.arrivals)
        self.arrivals.add(time_ns)
        return time_ns

    def decode(self, topic: str, body: bytes | str, flags: int = 0x32) -> tuple[list[Got], list[Refusal]]:
        raw = body if isinstance(body, bytes) else body.encode()
        points, refusals = self.intake.decode(topic.encode(), flags, raw, LATEST_NS)
        return [self._got(*point) for point in points], refusals

    def _got(self, place: Any, time_ns: int, value: float) -> Got:
        assert place.partition == partition_of(place.key, 1024)
        series = parse_key(place.key)
        time = ARRIVAL if time_ns in self.arrivals else time_ns
        return Got(series.device_id, series.metric_name, dict(series.tags), time, value)


_worlds: dict[str, World] = {}  # by settings: making one for each example of a property takes longer than the rest


def decode(topic: str, body: bytes | str, **settings: Any) -> tuple[list[Got], list[Refusal]]:
    """What one subscription makes of a payload."""
    subscription = Subscription(**{"filter": "#", **settings})
    if repr(subscription) not in _worlds:
        _worlds[repr(subscription)] = World(subscription)
    return _worlds[repr(subscription)].decode(topic, body)


def point(topic: str, body: bytes | str, **settings: Any) -> Got:
    """The only point of a payload, of which nothing is refused."""
    points, refusals = decode(topic, body, **settings)
    assert refusals == []
    (only,) = points
    return only


def refusal(topic: str, body: bytes | str, **settings: Any) -> Refusal:
    """The only refusal of a payload, of which nothing is a point."""
    points, refusals = decode(topic, body, **settings)
    assert points == []
    (only,) = refusals
    return only


def bits(value: float) -> int:
    """So that -0.0 is not 0.0."""
    return int(struct.unpack("<Q", struct.pack("<d", value))[0])
