"""From an MQTT message to points: finds the message's subscription and decodes the payload as that says.

Owns the series cache, the topics' contexts and the counts of what was decoded. No I/O, no log; the clock comes in
as a callable. Belongs to the loop's thread.
"""

from collections.abc import Callable
from itertools import count

from common.config import Settings, Subscription
from common.errors import ProtocolError
from common.points import PointBatch
from common.series import parse_key
from workers.bridge.context import Context
from workers.bridge.deadletter import Record
from workers.bridge.payload import BUG, NO_REFUSALS, SIZE, STORAGE, Decoded, Places, Point, Refusal, Refused
from workers.bridge.routes import Routes, route_of

RETAINED: int = 0x01  # bit of a PUBLISH frame's first byte


class Intake:
    """Decodes messages by the subscriptions of the settings.

    routes: what was met on each subscription. places: the series seen lately.
    """

    def __init__(self, settings: Settings, partitions: int, arrival_ns: Callable[[], int]) -> None:
        """arrival_ns: gives the time of arrival, another one at each call."""
        self._max_bytes = settings.ingest.max_payload_bytes
        self._arrival_ns = arrival_ns
        self.places = Places(settings.ingest, partitions)
        self.routes = Routes(settings.mqtt.subscriptions, settings.ingest, self.places, arrival_ns)
        self._rows = Context(route_of(Subscription("#")), settings.ingest, self.places, arrival_ns, {})
        self._context_of = self.routes.get

    def decode(self, topic: bytes, flags: int, payload: bytes, latest_ns: int) -> Decoded:
        """The points of a message, and what of it is refused. The hot path.

        flags: the PUBLISH frame's first byte. latest_ns: the skew gate; a later time is refused. A caller that does
        not trust its own clock holds the payload back, or passes timestamps.MAX_NS.
        """
        context = self._context_of(topic) or self.routes.add(topic)
        route = context.route
        route.messages += 1
        if flags & RETAINED and route.skips_retained:
            route.retained_skipped += 1
            return [], NO_REFUSALS
        context.latest_ns = latest_ns
        if len(payload) > self._max_bytes:
            decoded: Decoded = [], [self._too_large(payload)]
        else:
            decoded = context.decode(payload, context)
        if decoded[1]:
            route.refused += len(decoded[1])
        return decoded

    def decode_record(self, record: Record, latest_ns: int) -> Decoded:
        """A dead letter once more, by the configuration of now; its time of arrival is what it was. Not counted.

        A row that a storage node refused (code "storage") is seed JSON, whatever its topic's format; a batch that
        none could decode (code "bug") is its points.
        """
        if len(record.payload) > self._max_bytes:
            return [], [self._too_large(record.payload)]
        points = self._points_of_batch(record.payload) if record.code == BUG else None
        if points is not None:
            return points, NO_REFUSALS
        context = self._rows if record.code == STORAGE else self.routes.get(record.topic)
        context = context or self.routes.add(record.topic)
        context.latest_ns = latest_ns
        context.arrival_ns = count(record.time_ns).__next__
        try:
            return context.decode(record.payload, context)
        finally:
            context.arrival_ns = self._arrival_ns

    def _points_of_batch(self, body: bytes) -> list[Point] | None:
        """The points of a batch, None where the bytes are none that we could have sent."""
        try:
            batch = PointBatch.decode(body)
            series = [parse_key(key) for key in batch.keys]
            places = [self._rows.place(each.device_id, each.metric_name, dict(each.tags)) for each in series]
        except (ProtocolError, Refused):
            return None
        rows = zip(batch.index.tolist(), batch.times.tolist(), batch.values.tolist(), strict=True)
        return [(places[index], time_ns, value) for index, time_ns, value in rows]

    def _too_large(self, payload: bytes) -> Refusal:
        limit = f"limit {self._max_bytes} (ingest.max_payload_bytes)"
        return Refusal(payload, SIZE, f"payload of {len(payload)} bytes, {limit}")
