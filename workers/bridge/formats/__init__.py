"""The formats of payloads, one module each, and the table of them: what `format` of a subscription may be.

A format is a function (payload, context) -> points and refusals. It refuses what it cannot read and never raises
for any bytes. What it needs of the subscription alone, it prepares once: that is context.compiled.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from common.config import Subscription
from workers.bridge.context import Context
from workers.bridge.formats import objects
from workers.bridge.payload import Decoded


class Format(NamedTuple):
    """decode: the format's function. prepare: what it makes of a subscription, once."""

    decode: Callable[[bytes, Context], Decoded]
    prepare: Callable[[Subscription], Any]


def _nothing(_: Subscription) -> None:
    return None


FORMATS: Final[dict[str, Format]] = {
    "json": Format(objects.decode, objects.prepare),
}
