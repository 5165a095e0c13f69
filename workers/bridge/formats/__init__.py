"""The formats of payloads, one module each, and the table of them: what `format` of a subscription may be.

A format is a function (payload, context) -> points and refusals. It refuses what it cannot read and never raises
for any bytes. What it needs of the subscription alone, it prepares once: that is context.compiled.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from common.config import Subscription
from workers.bridge.context import Context
from workers.bridge.formats import columnar, csv_lines, line_protocol, metrics, number, objects, packed
from workers.bridge.payload import Decoded


class Format(NamedTuple):
    """decode: the format's function. prepare: what it makes of a subscription, once."""

    decode: Callable[[bytes, Context], Decoded]
    prepare: Callable[[Subscription], Any]


def _nothing(_: Subscription) -> None:
    return None


FORMATS: Final[dict[str, Format]] = {
    "json": Format(objects.decode, objects.Objects),
    "json-metrics": Format(metrics.decode, metrics.Metrics),
    "number": Format(number.decode, _nothing),
    "csv": Format(csv_lines.decode, csv_lines.Columns),
    "line-protocol": Format(line_protocol.decode, line_protocol.prepare),
    "msgpack": Format(packed.decode, packed.Packed),
    "msgpack-metrics": Format(packed.decode_metrics, metrics.Metrics),
    "msgpack-columns": Format(columnar.decode, columnar.Columnar),
}
