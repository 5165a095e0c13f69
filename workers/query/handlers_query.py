"""POST /query. Runs in the threads of granian's pool. Reference: docs/http-api.md."""

from collections.abc import Callable, Mapping
from time import perf_counter_ns
from typing import Any, Final

from msgspec import UNSET, Struct, UnsetType, structs

from common import clock, protocol
from common.protocol import AggregateReply, AggregateRequest, GroupsReply, GroupsRequest
from workers.query import aggregate, answering, formats, joining, request, unknown
from workers.query.answering import Found
from workers.query.coverage import Coverage, headers_of, merged
from workers.query.explain import Stages, explained
from workers.query.frame import Context, Request, Response, encode
from workers.query.gather import Gather
from workers.query.plan import Partitions, Plan, exact_pair
from workers.query.request import Query
from workers.query.table import PAGE_ROWS, Kind, Table, time
from workers.query.times import Time
from workers.query.verified import RingChangedError, Verified, Verifier

_KINDS: Final[dict[str, Kind]] = {"time": "time", "count": "count", "tags": "tags"}
VERIFY_TRIES: Final = 3
_TEXTS: Final = ("device_id", "metric_name")


class Answer(Struct):
    """The answer to POST /query: the request's fields, then what was found."""

    device_id: Any
    metric_name: Any
    operation: Any
    start_time: Time
    end_time: Time
    range: dict[str, Any] | UnsetType
    tags: Any
    result: Any
    count: int
    duration_ns: int
    coverage: Coverage
    explain: dict[str, Any] | UnsetType = UNSET


class Work(Struct):
    """A query on its way: what is known by now. deadline_s: monotonic. asked: the questions for the nodes."""

    query: Query
    started_ns: int
    timeout_s: float
    deadline_s: float
    stages: Stages
    asked: list[Gather[Any]] = []
    coverages: list[Coverage] = []
    verified: Verified | None = None

    @property
    def coverage(self) -> Coverage:
        """What the answer speaks of."""
        last, *others = reversed(self.coverages)
        found = merged(last, *others) if others else last
        return found if self.verified is None else found.after(self.verified.compared)


def query(context: Context, asked: Request) -> Response:
    """Aggregate what matches; see docs/http-api.md."""
    started_ns = perf_counter_ns()
    query = request.parse_query(asked.body(), context.settings, context.now_ns())
    timeout_s = context.settings.query.timeout_s
    if query.timeout_s is not None:
        timeout_s = min(timeout_s, query.timeout_s)
    work = Work(query, started_ns, timeout_s, clock.monotonic_s() + timeout_s, Stages(started_ns))
    name = formats.named(asked, query.format)
    work.stages.end("parse")
    if query.is_verified:
        found = _verified(context, work)
    else:
        found = _seed(context, work) if query.is_seed_shape else _grouped(context, work)
    if not found.series and work.coverage.complete:
        unknown.check(context, query.match, work.deadline_s - clock.monotonic_s())
    return _told(context, work, found, name)


def _seed(context: Context, work: Work, gather: Gather[AggregateReply] | None = None) -> Found:
    """One AGGREGATE of each node. gather: what asks so, where it has been made."""
    query, verified = work.query, work.verified
    gather = _seed_gather(work, verified) if gather is None else gather
    _gather(context, work, gather)
    if verified is not None and not verified.holds_by(gather.plan):
        raise RingChangedError
    if (pair := exact_pair(query.match)) is not None:
        gather.learn(pair)
    work.stages.end("scatter")
    found = answering.answer_seed(query, gather.replies)
    work.stages.end("merge")
    return found


def _seed_gather(work: Work, verified: Verified | None) -> Gather[AggregateReply]:
    whole, match = answering.aggregate_request(work.query, b""), work.query.match

    def ask(bitmap: bytes) -> AggregateRequest:
        return AggregateRequest(
            bitmap, whole.device_id, whole.metric_name, whole.tags, whole.start_ns, whole.end_ns
        )

    def wanted(plan: Plan) -> Partitions:
        return plan.wanted(whole) if verified is None else verified.wanted(plan, match)

    return Gather(protocol.AGGREGATE, AggregateReply, wanted, ask, _left_s(work), aggregate.check)


def _grouped(context: Context, work: Work, gather: Gather[GroupsReply] | None = None) -> Found:
    """GROUPS of each node, of the buckets that there are. gather: what asks so, where it has been made."""
    if work.query.needs_reach:
        first, spend = work.query, answering.limits(context.settings)

        def reach(bitmap: bytes) -> GroupsRequest:
            return answering.reach_request(first, bitmap, spend)

        found = _groups(context, work, reach, _groups_gather(work, work.verified, reach, answering.check_reach))
        work.query = request.reaching(first, answering.reach(found), context.settings)
        work.stages.end("reach")
    ask = _ask(context, work.query)
    replies = _groups(context, work, ask, _figures_gather(work, work.verified, ask) if gather is None else gather)
    work.stages.end("scatter")
    answered = answering.answer(work.query, replies, context.settings)
    work.stages.end("merge")
    return answered


def _groups(
    context: Context, work: Work, ask: Callable[[bytes], GroupsRequest], gather: Gather[GroupsReply]
) -> list[GroupsReply]:
    """What nodes reply and, of series in which owners differ, what a node would that had all of them."""
    match, verified = work.query.match, work.verified
    rows = {} if verified is None else verified.rows
    _gather(context, work, gather)
    if (pair := exact_pair(match)) is not None and not rows:
        gather.learn(pair)
    if verified is None:
        return gather.replies
    if not verified.holds_by(gather.plan) or _deleted(verified, gather):
        raise RingChangedError
    return [*gather.replies, joining.reply(rows, ask(b""), verified.delete_number)] if rows else gather.replies


def _ask(context: Context, query: Query) -> Callable[[bytes], GroupsRequest]:
    spend = answering.limits(context.settings)
    return lambda bitmap: answering.groups_request(query, bitmap, spend)


def _figures_gather(
    work: Work, verified: Verified | None, ask: Callable[[bytes], GroupsRequest]
) -> Gather[GroupsReply]:
    query = work.query
    return _groups_gather(work, verified, ask, lambda reply: answering.check_groups(query, reply))


def _groups_gather(
    work: Work,
    verified: Verified | None,
    ask: Callable[[bytes], GroupsRequest],
    check: Callable[[GroupsReply], None],
) -> Gather[GroupsReply]:
    match = work.query.match
    rows = {} if verified is None else verified.rows
    return Gather(
        protocol.GROUPS,
        GroupsReply,
        lambda plan: plan.wanted_by(match) if verified is None else verified.wanted(plan, match),
        lambda bitmap: structs.replace(ask(bitmap), without=list(rows)) if rows else ask(bitmap),
        _left_s(work),
        check,
    )


def _deleted(verified: Verified, gather: Gather[GroupsReply]) -> bool:
    """Whether a node has taken points away that were joined."""
    return bool(verified.rows) and any(reply.delete_number != verified.delete_number for reply in gather.replies)


def _verified(context: Context, work: Work) -> Found:
    """Compare the owners, then ask as ever; again where the owners changed, or points were deleted, between."""
    query, spend = work.query, answering.limits(context.settings)
    for _ in range(VERIFY_TRIES):
        read = _first_read(context, work)
        work.verified = verified = Verifier(
            context.scatter.ask, query.match, query.start_ns, query.end_ns, spend, _left_s(work), context.repairs, read
        ).run()
        work.stages.end("verify")
        try:
            is_seed = query.is_seed_shape and not verified.rows  # no AGGREGATE leaves series out
            return (_seed if is_seed else _grouped)(context, work, verified.read)
        except RingChangedError:
            work.query = query
            work.coverages.clear()
    work.verified = Verified(reason=f"the ring changed after owners were compared, {VERIFY_TRIES} times")
    return _grouped(context, work)


def _first_read(context: Context, work: Work) -> Gather[Any] | None:
    """What is asked first when owners turn out to hold the same; None where it depends on what they hold."""
    if work.query.is_seed_shape:
        return _seed_gather(work, None)
    return None if work.query.needs_reach else _figures_gather(work, None, _ask(context, work.query))


def _gather(context: Context, work: Work, gather: Gather[Any]) -> None:
    work.asked.append(gather)
    work.coverages.append(context.gather(gather, work.query.allow_partial))


def _left_s(work: Work) -> float:
    """How long the next question may take: the first one all the time there is."""
    begun = work.asked or work.verified is not None
    return max(0.001, work.deadline_s - clock.monotonic_s()) if begun else work.timeout_s


# The answer


def _told(context: Context, work: Work, found: Found, name: str) -> Response:
    most = context.settings.query.max_response_bytes
    if found.rows is not None:
        return formats.respond(_rows(work, found), name, most)
    if name != "json":
        return formats.respond(_one_row(work, found, name), name, most)
    query, body = work.query, work.query.body
    told = Answer(
        body.device_id,
        body.metric_name,
        body.operation,
        body.start_time or 0,
        body.end_time or 0,
        _range(query) or UNSET,
        UNSET if body.tags is None else body.tags,
        found.result,
        found.count,
        perf_counter_ns() - work.started_ns,
        work.coverage,
        _explain(work),
    )
    return Response(encode(told), headers=_headers(work))


def _explain(work: Work) -> dict[str, Any] | UnsetType:
    return explained(work.asked, work.stages) if work.query.explain else UNSET


def _head(work: Work) -> dict[str, Any]:
    """The request's fields."""
    query, body = work.query, work.query.body
    head = {
        "device_id": body.device_id,
        "metric_name": body.metric_name,
        "operation": body.operation,
        "start_time": body.start_time or 0,
        "end_time": body.end_time or 0,
    }
    if (told := _range(query)) is not None:
        head["range"] = told
    if body.tags is not None:
        head["tags"] = body.tags
    if query.interval is not None:
        head["interval"] = query.interval.text
    if query.group_by:
        head["group_by"] = list(query.group_by)
    return head


def _range(query: Query) -> dict[str, Any] | None:
    """What relative times have meant, null for an open end; None where none was asked."""
    if (ends := query.range_ns) is None:
        return None
    start, end = (None if each is None else time(each, query.time_unit) for each in ends)
    return {"start_time": start, "end_time": end}


def _foot(work: Work, found: Found) -> dict[str, Any]:
    foot: dict[str, Any] = {} if found.rows is None else {"more": found.rows.more}
    foot |= {"count": found.count, "duration_ns": perf_counter_ns() - work.started_ns, "coverage": work.coverage}
    told = _explain(work)
    return foot if isinstance(told, UnsetType) else foot | {"explain": told}


def _headers(work: Work) -> Mapping[str, str]:
    return headers_of(work.coverage)


def _rows(work: Work, found: Found) -> Table:
    assert found.rows is not None
    rows = found.rows
    kinds = {name: _kind(name, work.query) for name in rows.names}
    return Table(
        _head(work),
        rows.names,
        rows.pages(PAGE_ROWS),
        lambda: _foot(work, found),
        kinds,
        work.query.time_unit,
        headers=_headers(work),
    )


def _kind(name: str, query: Query) -> Kind:
    if name in _TEXTS or name in query.group_by:
        return "text"
    return _KINDS.get(name, "number")


def _one_row(work: Work, found: Found, name: str) -> Table:
    """What has one result, as a table: a column for each operation. In MessagePack it is a map, as in JSON."""
    if name == "msgpack":
        head = _head(work) | {"result": found.result}
        return Table(head, [], iter(()), lambda: _foot(work, found), headers=_headers(work))
    operations = [operation.text for operation in work.query.operations]
    results = found.result if work.query.listed else {operations[0]: found.result}
    page = {each: [results[each]] for each in operations} | {"count": [found.count]}
    kinds: dict[str, Kind] = {"count": "count"}
    return Table(_head(work), list(page), iter([page]), lambda: _foot(work, found), kinds, headers=_headers(work))
