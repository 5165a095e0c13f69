"""Deletes over HTTP: what is to go, what would go (dry run), what is gone. Each request leaves an audit line."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from common import clock, log, protocol
from common.figures import unpack
from common.match import Match, Pattern
from common.protocol import GroupsReply, GroupsRequest, Limits
from common.ring import DeleteRecord
from common.selector import Selector
from common.series import parse_key
from common.timestamps import MAX_NS, MIN_NS
from workers.query import deleting, formats
from workers.query.coverage import Coverage
from workers.query.frame import Context, Request, Response, answer
from workers.query.gather import Gather
from workers.query.refusal import Refusal, bad, check_known, flag
from workers.query.selection import FIELDS, Selection, selection
from workers.query.table import Kind, Page, Table, parse_time_unit, time

PARAMETERS: Final = (*FIELDS, "dry_run", "time_unit", "timeout_s")
SHOWN_SERIES: Final = 1000  # of a dry run; the totals count all
COUNT_S: Final = 2.0  # to count what a delete matches before it is committed: it must not wait long for a silent node
ALL: Final = (Pattern("glob", "*"),)
POSSIBLE: Final = (
    "a delete names one device_id, one metric_name or all of them (leave it out), and exactly the tags given or any "
    '(leave them out); {"exact": TEXT}, in a URL device_id.exact=TEXT, takes a text with *, ? or a leading ~ literally'
)

audit = log.get(log.AUDIT)


def delete(context: Context, asked: Request) -> Response:
    """Delete the points of a selection that were taken in until now, or tell what would go."""
    said: dict[str, object] = {"who": asked.who or "-", "client": asked.environ.get("REMOTE_ADDR", "-")}
    try:
        response, result = _delete(context, asked, said)
    except Exception as error:
        audit.info("delete", **said, result=f"{type(error).__name__}: {error}")
        raise
    audit.info("delete", **said, result=result)
    return response


def _delete(context: Context, asked: Request, said: dict[str, object]) -> tuple[Response, str]:
    """The response, and what to say of it. said: what is known of the request so far, for the audit line."""
    parameters = asked.parameters()
    check_known(parameters, PARAMETERS, "parameter")
    chosen = selection(parameters, context.settings.ingest, context.now_ns(), ("device_id",))
    selector = selector_of(chosen.match)
    said |= {"device": selector.device_id, "metric": selector.metric_name, "tags": selector.tags}
    said |= {"start_ns": chosen.start_ns, "end_ns": chosen.end_ns}
    unit, timeout_s = parse_time_unit(parameters), context.timeout_s(parameters)
    if flag("dry_run", parameters.get("dry_run")):
        return answer(_would_go(context, chosen, timeout_s, unit)), "dry run"
    started_s = clock.monotonic_s()
    matched = _matched(context, chosen, timeout_s)
    plan = context.scatter.plan
    record = deleting.commit(
        context.scatter.store.direct,
        selector,
        MIN_NS if chosen.start_ns is None else chosen.start_ns,
        MAX_NS if chosen.end_ns is None else chosen.end_ns,
        plan.ring if plan else None,
    )
    said["number"] = record.number
    found = deleting.adoption(context, record.number, timeout_s - (clock.monotonic_s() - started_s))
    told = {
        **shown(record, unit),
        "matched": matched,
        "complete": not found.waiting,
        "adopted": found.adopted,
        "waiting": found.waiting,
        "unreachable": found.unreachable,
    }
    result = f"in force, adopted by {len(found.adopted)} workers, {len(found.waiting)} waiting"
    return answer(told, 202 if found.waiting else 200), f"{result}, {len(found.unreachable)} unreachable"


def selector_of(match: Match) -> Selector:
    """The selector of a match that names what a delete can. Raises Refusal for any other."""
    if match.more_tags:
        raise bad("more_tags", f"more_tags is not for deletes: {POSSIBLE}")
    metric = None if match.metric_name in ((), ALL) else _text("metric_name", match.metric_name)
    tags = None
    if match.tags is not None:
        tags = {name: _text("tags", patterns) for name, patterns in match.tags.items()}
    return Selector(_text("device_id", match.device_id), metric, tags)


def _text(field: str, patterns: tuple[Pattern, ...]) -> str:
    """The one text that patterns mean."""
    if len(patterns) != 1 or patterns[0].kind != "is":
        kind = "a list" if len(patterns) != 1 else f"a pattern ({patterns[0].kind})"
        raise bad(field, f"{field} is {kind}: {POSSIBLE}")
    return patterns[0].text


def shown(record: DeleteRecord, unit: str) -> dict[str, Any]:
    """A delete record as clients see it."""
    return {
        "number": record.number,
        "device_id": record.device_id,
        "metric_name": record.metric_name,
        "tags": record.tags,
        "start_time": None if record.start_ns == MIN_NS else time(record.start_ns, unit),
        "end_time": None if record.end_ns == MAX_NS else time(record.end_ns, unit),
    }


# Dry run


def _would_go(context: Context, chosen: Selection, timeout_s: float, unit: str) -> dict[str, Any]:
    """What a delete would take now, counted as queries count."""
    rows, coverage = _found(context, chosen, timeout_s)
    return {
        "dry_run": True,
        "series": len(rows),
        "points": sum(count for _, count, _, _ in rows),
        "first_time": time(min(first for _, _, first, _ in rows), unit) if rows else None,
        "last_time": time(max(last for _, _, _, last in rows), unit) if rows else None,
        "of_series": [_series(row, unit) for row in rows[:SHOWN_SERIES]],
        "coverage": coverage,
    }


def _matched(context: Context, chosen: Selection, timeout_s: float) -> dict[str, Any] | None:
    """How much a delete that is about to be committed finds: 0 shows a typo. None where it cannot be told in time,
    or takes more than queries may: that is no reason not to delete.
    """
    try:
        rows, coverage = _found(context, chosen, min(COUNT_S, timeout_s / 2), allow_partial=True)
    except Refusal:
        return None
    if not coverage.nodes:
        return None
    return {"series": len(rows), "points": sum(count for _, count, _, _ in rows), "complete": coverage.complete}


def _found(
    context: Context, chosen: Selection, timeout_s: float, allow_partial: bool = False
) -> tuple[list["Row"], Coverage]:
    """The series with points of a selection, ascending, and what that speaks of. Raises Refusal."""
    query = context.settings.query
    limits = Limits(query.max_series, query.max_points, query.max_rows, 0)

    def ask(bitmap: bytes) -> GroupsRequest:
        return GroupsRequest(
            bitmap, chosen.match, chosen.start_ns, chosen.end_ns, [], ["series"], ["first", "last"], limits
        )

    gather = Gather(protocol.GROUPS, GroupsReply, lambda plan: plan.wanted_by(chosen.match), ask, timeout_s, _check)
    coverage = context.gather(gather, allow_partial)
    return sorted(row for reply in gather.replies for row in _rows(reply)), coverage


Row = tuple[bytes, int, int, int]  # key, points, first and last time


def _rows(reply: GroupsReply) -> list[Row]:
    """Series with points, each of which lies in one partition, so in one reply."""
    found = unpack(reply.columns, ("group", "count", "first_time", "last_time"))
    taken = np.flatnonzero(found["count"])
    group, count, first, last = (found[name][taken].tolist() for name in found)
    return [(_key(reply.groups[at]), *rest) for at, *rest in zip(group, count, first, last, strict=True)]


def _key(group: list[str | bytes | None]) -> bytes:
    (key,) = group
    return key if isinstance(key, bytes) else b""


def _series(row: Row, unit: str) -> dict[str, Any]:
    key, count, first, last = row
    series = parse_key(key)
    return {
        "device_id": series.device_id,
        "metric_name": series.metric_name,
        "tags": dict(series.tags),
        "points": count,
        "first_time": time(first, unit),
        "last_time": time(last, unit),
    }


def _check(reply: GroupsReply) -> None:
    """Raises ProtocolError for a reply that cannot be read."""
    unpack(reply.columns, ("group", "count", "first_time", "last_time"))


# The list

KINDS: Final[Mapping[str, Kind]] = {
    "number": "count",
    "device_id": "text",
    "metric_name": "text",
    "tags": "tags",
    "start_time": "time",
    "end_time": "time",
}


def deletes(context: Context, asked: Request) -> Response:
    """Every delete record of the ring store, ascending by number."""
    parameters = asked.parameters()
    check_known(parameters, ("time_unit", "format"), "parameter")
    unit = parse_time_unit(parameters)
    ring = deleting.load(context.scatter.store.direct)
    table = Table({"epoch": ring.epoch}, list(KINDS), iter([_page(ring.deletes)]), dict, KINDS, unit, "deletes")
    return formats.respond(table, formats.wanted(asked, parameters), context.settings.query.max_response_bytes)


def _page(records: Sequence[DeleteRecord]) -> Page:
    return {
        "number": [record.number for record in records],
        "device_id": [record.device_id for record in records],
        "metric_name": [record.metric_name for record in records],
        "tags": [record.tags for record in records],
        "start_time": [None if record.start_ns == MIN_NS else record.start_ns for record in records],
        "end_time": [None if record.end_ns == MAX_NS else record.end_ns for record in records],
    }
