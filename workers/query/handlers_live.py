"""The live feed: GET /live."""

from typing import Final

from workers.query import selection, table
from workers.query.frame import Context, Request, Response
from workers.query.refusal import check_known

FIELDS: Final = ("device_id", "metric_name", "tags", "more_tags", "time_unit")
HEADERS: Final = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # a proxy that collects would delay points


def live(context: Context, asked: Request) -> Response:
    """Points as they become durable, as server-sent events, until the client goes."""
    parameters = asked.parameters()
    check_known(parameters, FIELDS, "parameter")
    unit = table.parse_time_unit(parameters)
    stream = context.live.open(selection.match_of(parameters, context.settings.ingest), unit)
    return Response(stream, content_type="text/event-stream", headers=HEADERS)
