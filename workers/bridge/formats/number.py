"""Format `number`: the payload is the value, as text: `21.5`, `-3`, `1e3`, `true`. Topic or subscription name it.

The time is that of arrival. Pure but for the context's places.
"""

from workers.bridge.context import Context
from workers.bridge.formats import fields, text
from workers.bridge.payload import EMPTY, NO_REFUSALS, Decoded, Refused


def decode(payload: bytes, context: Context) -> Decoded:
    """The point of a payload, or why there is none."""
    try:
        body = text.decoded(payload).strip(text.SPACE)
        if not body:
            raise Refused(EMPTY, "empty payload")
        value = text.number(body, "payload")
        return [(context.place(context.device_id, context.metric_name), context.arrival_ns(), value)], NO_REFUSALS
    except Refused as refused:
        return [], [refused.refusal(payload, fields.known(context.device_id, context))]
