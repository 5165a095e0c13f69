"""What a format is told beside the payload: the subscription and what the topic says. Owns no state but its fields.

There is one Context for each topic, kept while the topic is in use. Belongs to the loop's thread.
"""

from collections.abc import Callable, Mapping
from typing import Any

from common.config import Ingest, Subscription
from workers.bridge.payload import Name, Place, Places


class Context:
    """For the payloads of one topic. Constant but for the two fields that the intake sets before each payload.

    device_id, metric_name: what topic or subscription say, "" for nothing; a payload's own win. tags: likewise, tag
    by tag; tag_items: the same, sorted. unit: of numbers that are times. compiled: what the format's `prepare`
    made of the subscription, shared by all its topics.
    Set for each payload: latest_ns: a later time is refused; arrival_ns: the time of arrival, another at each call.
    """

    __slots__ = (
        "arrival_ns", "compiled", "device_id", "ingest", "latest_ns", "metric_name", "places", "subscription",
        "tag_items", "tags", "unit",
    )  # fmt: skip

    def __init__(
        self,
        subscription: Subscription,
        ingest: Ingest,
        places: Places,
        arrival_ns: Callable[[], int],
        compiled: Any,
        device_id: str = "",
        metric_name: str = "",
        tags: Mapping[str, str] | None = None,
    ) -> None:
        self.subscription = subscription
        self.ingest = ingest
        self.places = places
        self.arrival_ns = arrival_ns
        self.latest_ns = 0
        self.compiled = compiled
        self.device_id = device_id
        self.metric_name = metric_name
        self.tags = dict(tags or {})
        self.tag_items = tuple(sorted(self.tags.items()))
        self.unit = "s"

    def place(self, device_id: str, metric_name: str, tags: Mapping[str, str] | None) -> Place:
        """The place of a series by its full name, the topic's tags added. Raises Refused."""
        items: Name = self.tag_items
        if tags:
            items = tuple(sorted((self.tags | dict(tags)).items()))
        name = (device_id, metric_name, *items)
        return self.places.get(name) or self.places.add(name)
