"""Listings: which series, devices, metrics and tags there are, and what they hold."""

from common import protocol
from common.protocol import SeriesReply, SeriesRequest
from common.series import parse_key
from workers.query import request
from workers.query.frame import Context, Request, Response, answer
from workers.query.gather import Gather


def series(context: Context, asked: Request) -> Response:
    """One page of the series keys, in ascending order of their bytes."""
    settings = context.settings
    parameters = request.parse_parameters(asked.environ.get("QUERY_STRING", ""))
    wanted = request.parse_series(parameters, settings.ingest, settings.query.page_limit)

    def ask(bitmap: bytes) -> SeriesRequest:
        return SeriesRequest(bitmap, wanted.after, wanted.limit, wanted.device_id, wanted.metric_name)

    listing = Gather(protocol.SERIES, SeriesReply, lambda plan: plan.everything, ask, settings.query.timeout_s)
    coverage = context.gather(listing)
    keys, more = merge_keys(listing.replies, wanted.limit)
    found = [parse_key(key) for key in keys]
    return answer(
        {
            "series": [
                {"device_id": one.device_id, "metric_name": one.metric_name, "tags": dict(one.tags)} for one in found
            ],
            "next_cursor": request.make_cursor(keys[-1]) if more else None,
            "coverage": coverage,
        }
    )


def merge_keys(replies: list[SeriesReply], limit: int) -> tuple[list[bytes], bool]:
    """The first `limit` keys of all replies, and whether more follow.

    A node that has more keys than it sent says nothing about those above its last one.
    """
    last_known = min((reply.keys[-1] for reply in replies if reply.more and reply.keys), default=None)
    keys = sorted({key for reply in replies for key in reply.keys})
    more = any(reply.more for reply in replies)
    if last_known is not None:
        keys = [key for key in keys if key <= last_known]
    return keys[:limit], more or len(keys) > limit
