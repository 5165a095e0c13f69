"""POST /query. Runs in the threads of granian's pool. Reference: docs/http-api.md."""

from time import perf_counter_ns
from typing import Final

from msgspec import UNSET, Struct, UnsetType

from common import protocol
from common.protocol import AggregateReply, AggregateRequest, SeriesReply, SeriesRequest
from common.series import Series, parse_key, series_key
from workers.query import aggregate, request
from workers.query.coverage import Coverage
from workers.query.frame import Context, Request, Response, answer
from workers.query.gather import Gather
from workers.query.refusal import Refusal, shown

HINT_KEYS: Final = 1000  # series looked at to say which part of an unknown series is unknown
HINT_NAMES: Final = 10  # of them named in the text


class Answer(Struct):
    """The answer to POST /query: the request's fields, then what was found."""

    device_id: str
    metric_name: str
    operation: str
    start_time: request.Time
    end_time: request.Time
    tags: dict[str, str] | UnsetType
    result: float | int | None
    count: int
    duration_ns: int
    coverage: Coverage


def query(context: Context, asked: Request) -> Response:
    """Aggregate what matches; see docs/http-api.md."""
    started_ns = perf_counter_ns()
    query = request.parse_query(asked.body(), context.settings, context.now_ns())
    body = query.body

    def ask(bitmap: bytes) -> AggregateRequest:
        return AggregateRequest(bitmap, body.device_id, body.metric_name, body.tags, query.start_ns, query.end_ns)

    whole = ask(b"")
    gather = Gather(
        protocol.AGGREGATE,
        AggregateReply,
        lambda plan: plan.wanted(whole),
        ask,
        context.settings.query.timeout_s,
        aggregate.check,
    )
    coverage = context.gather(gather)
    if not any(reply.series for reply in gather.replies):
        _check_known(context, body)
    try:
        result = aggregate.finish(body.operation, gather.replies)
    except aggregate.Overflow as error:
        raise Refusal(422, "overflow", str(error), "operation") from error
    return answer(
        Answer(
            body.device_id,
            body.metric_name,
            body.operation,
            body.start_time or 0,
            body.end_time or 0,
            UNSET if body.tags is None else body.tags,
            result,
            aggregate.count(gather.replies),
            perf_counter_ns() - started_ns,
            coverage,
        )
    )


def _check_known(context: Context, body: request.QueryBody) -> None:
    """Nothing was found: no points in the range, or no such series? Refuses the second, saying what is unknown."""
    if _exists(context, body):
        return
    listing = _listing(context, SeriesRequest(b"", b"", HINT_KEYS, body.device_id))
    context.gather(listing)
    raise _unknown_series(body, [parse_key(key) for reply in listing.replies for key in reply.keys])


def _exists(context: Context, body: request.QueryBody) -> bool:
    key = None if body.tags is None else series_key(body.device_id, body.metric_name, body.tags)
    after = b"" if key is None else just_below(key)
    listing = _listing(context, SeriesRequest(b"", after, 1, body.device_id, body.metric_name))
    context.gather(listing)
    return any(reply.keys and (key is None or key in reply.keys) for reply in listing.replies)


def _listing(context: Context, whole: SeriesRequest) -> Gather[SeriesReply]:
    def ask(bitmap: bytes) -> SeriesRequest:
        return SeriesRequest(bitmap, whole.after, whole.limit, whole.device_id, whole.metric_name)

    timeout_s = context.settings.query.timeout_s
    return Gather(protocol.SERIES, SeriesReply, lambda plan: plan.everything, ask, timeout_s)


def just_below(key: bytes) -> bytes:
    """The highest bytes below a series key that matter: no other key lies between the two."""
    if key[-1] == 0:
        return key[:-1]
    return key[:-1] + bytes([key[-1] - 1]) + b"\xff" * 8  # eight 0xff are nowhere in msgpack text


def _unknown_series(body: request.QueryBody, of_device: list[Series]) -> Refusal:
    """Says which part of an unknown series is unknown. of_device: what its device has."""
    device, metric = shown(body.device_id), shown(body.metric_name)
    known = sorted({series.metric_name for series in of_device})
    if not known:
        return Refusal(404, "unknown_series", f"no series has device_id {device}", "device_id")
    if body.tags is None or body.metric_name not in known:
        names = ", ".join(map(shown, known[:HINT_NAMES])) + (", ..." if len(known) > HINT_NAMES else "")
        text = f"device_id {device} has no metric_name {metric}, it has {names}"
        return Refusal(404, "unknown_series", text, "metric_name")
    tags = f"exactly the tags {shown(body.tags)}" if body.tags else "no tags"
    text = f"{device} {metric} has no series with {tags}; leave tags out to ask all of its series"
    return Refusal(404, "unknown_series", text, "tags")
