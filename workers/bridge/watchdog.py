"""The watchdog: whether the bridge is as it should be, in words for people and in metrics.

A consumer that is subscribed, connected and silent is the fault that nobody notices. So the age of the last message
is known for each subscription, and silence beyond mqtt.silence_s is unhealthy, as is everything else that keeps
messages from being taken in. Only tells; nothing acts on it. Belongs to the loop's thread.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

from common import clock, config, metrics
from workers.bridge.clockgate import ClockGate
from workers.bridge.context import Route
from workers.bridge.mqtt import Link

LOOK_EVERY_S: Final = 0.25  # so exact are the ages


class Watchdog:
    """Ages and reasons. The routes are those of the subscriptions, in their order."""

    def __init__(
        self,
        mqtt: config.Mqtt,
        link: Link,
        gate: ClockGate,
        routes: Sequence[Route],
        others: Callable[[], list[str]],
    ) -> None:
        """others: gives what is wrong elsewhere and keeps PUBACKs from going out."""
        self._silence_s = mqtt.silence_s
        self._link = link
        self._gate = gate
        self._routes = routes
        self._others = others
        self._counts = [0] * len(routes)
        self._seen_s: list[float | None] = [None] * len(routes)  # when the last message came
        self._messages = 0
        self._last_s: float | None = None  # likewise, of any subscription, and of none
        self._waits_since_s = 0.0  # since when the broker might send, and has not
        self._next_s = float("-inf")

    def tick(self, now: float, messages: int) -> None:
        """Look who has got something. messages: taken in so far."""
        if now < self._next_s:
            return
        self._next_s = now + LOOK_EVERY_S
        if messages != self._messages:
            self._messages = messages
            self._last_s = self._waits_since_s = now
            for at, route in enumerate(self._routes):
                if route.messages != self._counts[at]:
                    self._counts[at] = route.messages
                    self._seen_s[at] = now
        if not self._link.may_receive:
            self._waits_since_s = now

    def is_silent(self, now: float) -> bool:
        """Whether nothing came for mqtt.silence_s, though the broker is connected and might send."""
        return self._link.may_receive and 0 < self._silence_s < now - self._waits_since_s

    def reasons(self, now: float) -> list[str]:
        """What is wrong with the intake of messages; empty when it is healthy."""
        found = [self._gate.reason] if self._gate.reason else self._link.reasons(now)
        if self.is_silent(now):
            silent_s = int(now - self._waits_since_s)
            found.append(f"connected, but no message for {silent_s} s (mqtt.silence_s = {self._silence_s:g})")
        return found + self._others()

    def received(self, now: float) -> dict[str, dict[str, Any]]:
        """Messages, and seconds since the last, by the filter of each subscription."""
        return {
            route.subscription.filter: {
                "messages": route.messages,
                "refused": route.refused,
                "retained_skipped": route.retained_skipped,
                "last_message_s_ago": _ago(now, seen_s),
            }
            for route, seen_s in zip(self._routes, self._seen_s, strict=True)
        }

    def last_message_s_ago(self, now: float) -> float | None:
        """Seconds since the last message of any subscription; None before the first."""
        return _ago(now, self._last_s)

    def export(self) -> None:
        """Make the metrics."""
        metrics.gauge_from(
            "minitrue_bridge_silent",
            "1 while connected without any message for mqtt.silence_s.",
            lambda: int(self.is_silent(clock.monotonic_s())),
        )
        metrics.gauge_from(
            "minitrue_bridge_healthy",
            "0 while something keeps messages from being taken in; the status says what.",
            lambda: int(not self.reasons(clock.monotonic_s())),
        )
        self._export_routes("messages", "Messages received", lambda route: route.messages)
        self._export_routes("refused", "Payloads and elements refused", lambda route: route.refused)
        metrics.gauge_from(
            "minitrue_bridge_subscription_age_seconds",
            "Since the last message, by the filter of the subscription; nothing before the first.",
            self._ages,
            labels=("filter",),
        )

    def _export_routes(self, name: str, text: str, count: Callable[[Route], int]) -> None:
        metrics.counter_from(
            f"minitrue_bridge_subscription_{name}_total",
            f"{text}, by the filter of the subscription.",
            lambda: {(route.subscription.filter,): count(route) for route in self._routes},
            labels=("filter",),
        )

    def _ages(self) -> dict[tuple[str, ...], float]:
        now = clock.monotonic_s()
        return {
            (route.subscription.filter,): now - seen_s
            for route, seen_s in zip(self._routes, self._seen_s, strict=True)
            if seen_s is not None
        }


def _ago(now: float, then_s: float | None) -> float | None:
    return None if then_s is None else round(now - then_s, 3)
