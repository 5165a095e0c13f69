"""What a format is told beside the payload: the subscription and what the topic says. Owns no state but its fields.

There is one Context for each topic, kept while the topic is in use; topics of which nothing is taken share one.
Belongs to the loop's thread.
"""

from collections.abc import Callable, Mapping
from typing import Any

from common.config import Ingest, Subscription
from workers.bridge.payload import Decoded, Name, Place, Places


class Route:
    """A subscription with its format, and what was met on it.

    decode: the format's function. compiled: what the format's `prepare` made of the subscription. Counted since the
    start: messages; refused: payloads and elements; retained_skipped: messages; fields_skipped: fields that are no
    numbers.
    """

    __slots__ = (
        "compiled", "decode", "fields_skipped", "messages", "refused", "retained_skipped", "skips_retained",
        "subscription",
    )  # fmt: skip

    def __init__(
        self, subscription: Subscription, decode: Callable[[bytes, "Context"], Decoded], compiled: Any = None
    ) -> None:
        self.subscription = subscription
        self.decode = decode
        self.compiled = compiled
        self.skips_retained = subscription.retained == "skip"
        self.messages = 0
        self.refused = 0
        self.retained_skipped = 0
        self.fields_skipped = 0


class Context:
    """For the payloads of one topic. Constant but for the two fields that the intake sets before each payload.

    route, decode, compiled: the subscription's; a topic that does not fit it has others, which refuse. device_id,
    metric_name: what topic or subscription give, "" for nothing; a payload's own win. tags: likewise, tag by tag;
    tag_items: the same, sorted by name. unit: of times that are numbers, one of timestamps.UNITS or times.AUTO.
    max_future_s: for words on the skew gate.
    Set for each payload: latest_ns: a later time is refused; arrival_ns: the time of arrival, another at each call.
    """

    __slots__ = (
        "arrival_ns", "compiled", "decode", "device_id", "ingest", "latest_ns", "max_future_s", "metric_name", "places",
        "route", "tag_items", "tags", "unit",
    )  # fmt: skip

    def __init__(
        self,
        route: Route,
        ingest: Ingest,
        places: Places,
        arrival_ns: Callable[[], int],
        names: Mapping[str, str],
    ) -> None:
        """names: of the topic's levels."""
        subscription = route.subscription
        self.route = route
        self.decode = route.decode
        self.compiled = route.compiled
        self.ingest = ingest
        self.places = places
        self.arrival_ns = arrival_ns
        self.latest_ns = 0
        self.max_future_s = ingest.max_future_s
        self.unit = subscription.unit
        self.device_id = names.get("device_id", subscription.device_id)
        self.metric_name = names.get("metric_name", subscription.metric_name)
        named = {name: text for name, text in names.items() if name not in ("device_id", "metric_name")}
        self.tags = {**subscription.tags, **named}
        self.tag_items = tuple(sorted(self.tags.items()))

    def place(self, device_id: str, metric_name: str, tags: Mapping[str, str] | None = None) -> Place:
        """The place of a series by its names, the topic's tags added where it has none of that name. Raises Refused."""
        items: Name = self.tag_items
        if tags:
            items = tuple(sorted((self.tags | dict(tags)).items()))
        name = (device_id, metric_name, *items)
        return self.places.get(name) or self.places.add(name)
