"""Which subscription a topic belongs to: the first in the configuration whose filter matches it. Pure but for a cache.

Owns the table of topics seen lately, each with the Context that its payloads are decoded in. A topic that does not
fit its subscription's template, or that no subscription matches (a session may still bring messages of one that is
not configured any more), has a context whose payloads are refused. Belongs to the loop's thread.
"""

from collections.abc import Callable
from typing import Final

from common import topics
from common.config import Ingest, Subscription
from common.subscriptions import template_of
from workers.bridge.context import Context, Route
from workers.bridge.formats import FORMATS
from workers.bridge.payload import TOPIC, Decoded, Places, Refused, shown

CACHE_BYTES: Final = 32 << 20  # topics come from outside
_CACHE_ENTRY_BYTES: Final = 1500  # dict entry, context, names and tags, beside the topic; measured 900 with four names


def route_of(subscription: Subscription) -> Route:
    """The route of a subscription."""
    form = FORMATS[subscription.format]
    return Route(subscription, form.decode, form.prepare(subscription))


class Routes:
    """Finds the context of a topic.

    get: the context of a topic's bytes, None where it is not known: then `add`. The hot path. routes: one for each
    subscription, in order; unmatched: for topics of none.
    """

    def __init__(
        self, subscriptions: list[Subscription], ingest: Ingest, places: Places, arrival_ns: Callable[[], int]
    ) -> None:
        self.routes = [route_of(subscription) for subscription in subscriptions]
        self._templates = [template_of(subscription) for subscription in subscriptions]
        self.unmatched = Route(Subscription("#"), _refuse, Refused(TOPIC, "no subscription matches the topic"))
        self._ingest = ingest
        self._places = places
        self._arrival_ns = arrival_ns
        self._shared = [self._context(route, {}) for route in [*self.routes, self.unmatched]]
        self._contexts: dict[bytes, Context] = {}
        self._bytes = 0
        self.get = self._contexts.get

    def __len__(self) -> int:
        return len(self._contexts)

    def add(self, topic: bytes) -> Context:
        """The context of a topic that is not known yet."""
        context = self._made(topic)
        self._bytes += len(topic) * 3 + _CACHE_ENTRY_BYTES
        if self._bytes > CACHE_BYTES:
            self._contexts.clear()
            self._bytes = 0
        self._contexts[topic] = context
        return context

    def matching(self, topic: str) -> list[int]:
        """Which subscriptions match a topic, by number; the first of them decides."""
        return [at for at, route in enumerate(self.routes) if topics.matches(route.subscription.filter, topic)]

    def _made(self, topic: bytes) -> Context:
        text = topic.decode(errors="replace")
        matching = self.matching(text)
        if not matching:
            return self._shared[-1]
        route, template = self.routes[matching[0]], self._templates[matching[0]]
        if template is None:
            return self._shared[matching[0]]
        try:
            return self._context(route, template.match(topic.decode()))
        except UnicodeDecodeError:
            return self._refused(route, f"topic {shown(text)} is not UTF-8")
        except ValueError as error:
            return self._refused(route, f"template {template.text!r}: {error}")

    def _context(self, route: Route, names: dict[str, str]) -> Context:
        return Context(route, self._ingest, self._places, self._arrival_ns, names)

    def _refused(self, route: Route, reason: str) -> Context:
        """A context that counts for a route and refuses."""
        context = self._context(route, {})
        context.decode, context.compiled = _refuse, Refused(TOPIC, reason)
        return context


def _refuse(payload: bytes, context: Context) -> Decoded:
    return [], [context.compiled.refusal(payload, context.device_id)]
