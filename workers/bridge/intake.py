"""From an MQTT message to points: finds the message's subscription and decodes the payload as that says.

Owns the series cache and the counts of what was decoded. No I/O, no log; the clock comes in as a callable.
Belongs to the loop's thread.
"""

from collections.abc import Callable
from itertools import count

from common.config import Settings, Subscription
from workers.bridge.context import Context
from workers.bridge.deadletter import Record
from workers.bridge.formats import FORMATS
from workers.bridge.payload import SIZE, STORAGE, Decoded, Places, Refusal


class Intake:
    """Decodes messages by the subscriptions of the settings."""

    def __init__(self, settings: Settings, partitions: int, arrival_ns: Callable[[], int]) -> None:
        """arrival_ns: gives the time of arrival, another one at each call."""
        self._ingest = settings.ingest
        self._arrival_ns = arrival_ns
        self.places = Places(settings.ingest, partitions)
        self._decode = FORMATS["json"].decode
        self._rows = Context(Subscription("#"), settings.ingest, self.places, arrival_ns, None)

    def decode(self, topic: bytes, flags: int, payload: bytes, latest_ns: int) -> Decoded:
        """The points of a message, and what of it is refused. The hot path.

        flags: the PUBLISH frame's first byte. latest_ns: the skew gate; a later time is refused. A caller that does
        not trust its own clock holds the payload back, or passes timestamps.MAX_NS.
        """
        if len(payload) > self._ingest.max_payload_bytes:
            return [], [self._too_large(payload)]
        context = self._rows
        context.latest_ns = latest_ns
        return self._decode(payload, context)

    def decode_record(self, record: Record, latest_ns: int) -> Decoded:
        """A dead letter once more, by the configuration of now; its time of arrival is what it was.

        A row that a storage node refused (code "storage") is seed JSON, whatever its topic's format.
        """
        context = self._rows
        context.arrival_ns = count(record.time_ns).__next__
        try:
            if record.code == STORAGE:
                context.latest_ns = latest_ns
                return FORMATS["json"].decode(record.payload, context)
            return self.decode(record.topic, 0, record.payload, latest_ns)
        finally:
            context.arrival_ns = self._arrival_ns

    def _too_large(self, payload: bytes) -> Refusal:
        limit = f"limit {self._ingest.max_payload_bytes} (ingest.max_payload_bytes)"
        return Refusal(payload, SIZE, f"payload of {len(payload)} bytes, {limit}")
