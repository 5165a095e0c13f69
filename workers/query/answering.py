"""A checked query to requests for the nodes, and their replies to an answer: what POST /query does between its sockets.

Pure: no I/O, no clock, no state.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from common import config, figures
from common.protocol import AggregateReply, AggregateRequest, GroupsReply, GroupsRequest, Limits
from common.series import parse_key
from workers.query import aggregate, operations
from workers.query.fill import Sheet, fill
from workers.query.finish import Column, finish
from workers.query.merge import Group, Merged, merge
from workers.query.merge import check as check_reply
from workers.query.operations import Operation
from workers.query.refusal import OverLimit, Refusal
from workers.query.request import Query

TIME: Final = "time"
_REACH: Final = ("first", "last")

Page = Mapping[str, Sequence[Any] | npt.NDArray[Any]]


@dataclass(frozen=True)
class Rows:
    """The rows of an answer. names: of the columns in their order, "time" (ns) among them where there are buckets."""

    names: list[str]
    length: int
    more: bool
    _groups: list[Group] = field(repr=False)
    _group_by: tuple[str, ...] = field(repr=False)
    _sheet: Sheet = field(repr=False)
    _order: npt.NDArray[np.int64] = field(repr=False)

    def pages(self, size: int) -> Iterator[Page]:
        """The columns of at most `size` rows at a time: times are int64 ns, groups and nulls make lists."""
        for begin in range(0, self.length, size):
            yield self._page(self._order[begin : begin + size])

    def _page(self, rows: npt.NDArray[np.int64]) -> Page:
        sheet = self._sheet
        page: dict[str, Sequence[Any] | npt.NDArray[Any]] = {}
        if TIME in self.names:
            page[TIME] = sheet.start[rows]
        if self._group_by == ("series",):
            keys = [parse_key(bytes(self._groups[at][0] or b"")) for at in sheet.group[rows].tolist()]
            page["device_id"] = [key.device_id for key in keys]
            page["metric_name"] = [key.metric_name for key in keys]
            page["tags"] = [dict(key.tags) for key in keys]
        for place, name in enumerate(() if self._group_by == ("series",) else self._group_by):
            page[name] = [self._groups[at][place] for at in sheet.group[rows].tolist()]
        page.update({name: column.take(rows).shown() for name, column in sheet.columns.items()})
        return page


@dataclass(frozen=True)
class Found:
    """What was found. result: of one group without buckets, a map where operations were a list; rows: of any other.

    count: points that the answer speaks of; series: how many match, with points in the range or not.
    """

    count: int
    series: int
    result: Any = None
    rows: Rows | None = None


# Requests


def limits(settings: config.Settings) -> Limits:
    """What a node may spend, by the settings."""
    query = settings.query
    return Limits(query.max_series, query.max_points, query.max_rows, query.max_values)


def wants(query: Query) -> list[str]:
    """What the nodes have to tell."""
    return operations.wants(query.operations)


def aggregate_request(query: Query, bitmap: bytes) -> AggregateRequest:
    """The request to a node for a query of the seed's shape."""
    body = query.body
    if query.pattern is None:
        return AggregateRequest(bitmap, body.device_id, body.metric_name, body.tags, query.start_ns, query.end_ns)
    match = query.pattern
    tags = None if match.tags is None else {name: patterns[0].text for name, patterns in match.tags.items()}
    return AggregateRequest(
        bitmap, match.device_id[0].text, match.metric_name[0].text, tags, query.start_ns, query.end_ns
    )


def groups_request(query: Query, bitmap: bytes, spend: Limits) -> GroupsRequest:
    """The request to a node for any other query."""
    return GroupsRequest(
        bitmap,
        query.match,
        query.start_ns,
        query.end_ns,
        query.stretches or [],
        list(query.group_by),
        wants(query),
        spend,
    )


def check_groups(query: Query, reply: GroupsReply) -> None:
    """Raise ProtocolError for a reply to `groups_request` that no node computes."""
    check_reply(reply, wants(query), query.group_by)


def reach_request(query: Query, bitmap: bytes, spend: Limits) -> GroupsRequest:
    """The request to a node for the first and last time of what a query is about."""
    return GroupsRequest(bitmap, query.match, query.start_ns, query.end_ns, [], [], list(_REACH), spend)


def check_reach(reply: GroupsReply) -> None:
    """Raise ProtocolError for a reply to `reach_request` that no node computes."""
    check_reply(reply, _REACH, ())


def reach(replies: Sequence[GroupsReply]) -> tuple[int, int] | None:
    """The first and last time, ns; None when there are no points."""
    merged = merge(replies, _REACH)
    if not len(merged) or not merged.columns["count"][0]:
        return None
    return int(merged.columns["first_time"][0]), int(merged.columns["last_time"][0])


# Answers


def answer_seed(query: Query, replies: Sequence[AggregateReply]) -> Found:
    """The answer from the replies to `aggregate_request`. Raises Refusal when a result leaves float64."""
    try:
        results = {operation.text: _aggregated(operation, replies) for operation in query.operations}
    except aggregate.Overflow as error:
        raise Refusal(422, "overflow", str(error), "operation") from error
    series = sum(reply.series for reply in replies)
    return Found(aggregate.count(replies), series, _shaped(query, results))


def answer(query: Query, replies: Sequence[GroupsReply], settings: config.Settings) -> Found:
    """The answer from the replies to `groups_request`. Raises Refusal."""
    _check_values(replies, settings.query.max_values)
    series = sum(reply.series for reply in replies)
    nothing = query.is_cut and not query.stretches  # no points when its ends were asked: later ones are in no bucket
    merged = merge([] if nothing else replies, wants(query))
    count = merged.columns["count"]
    columns = finish(merged, query.operations)
    if not query.has_rows:
        return Found(int(count.sum()), series, _shaped(query, _single(query, columns)))
    sheet = Sheet(merged.group, merged.start, count, columns)
    most = settings.query.max_rows
    if query.is_cut and query.fill != "none":
        start_ns = None if query.open_start else query.start_ns
        end_ns = None if query.open_end else query.end_ns
        sheet = fill(sheet, query.fill, query.stretches or [], start_ns, end_ns, most)
    if len(sheet.group) > most:
        text = f"the answer has {len(sheet.group)} rows, query.max_rows is {most}"
        raise OverLimit("query.max_rows", most, len(sheet.group), text)
    return Found(int(count.sum()), series, rows=_rows(query, merged, sheet))


def _aggregated(operation: Operation, replies: Sequence[AggregateReply]) -> float | int | None:
    if operation.kind == "spread":
        high, low = aggregate.finish("max", replies), aggregate.finish("min", replies)
        if high is None or low is None:
            return None
        if not math.isfinite(high - low):
            raise aggregate.Overflow("the spread of these points leaves the range of float64")
        return high - low
    if operation.kind in ("variance", "stddev"):
        count = aggregate.count(replies)
        if count < 2:
            return None
        variance = aggregate.m2(replies) / (count - 1)
        return math.sqrt(variance) if operation.kind == "stddev" else variance
    return aggregate.finish(operation.kind, replies)


def _check_values(replies: Sequence[GroupsReply], most: int) -> None:
    """Each node has kept to the limit; together they may exceed it."""
    item = np.dtype(figures.DTYPES["values"]).itemsize
    total = sum(len(reply.columns.get("values", b"")) for reply in replies) // item
    if total > most:
        text = f"the points have {total} distinct values, query.max_values is {most}"
        raise OverLimit("query.max_values", most, total, text, "operation")


def _single(query: Query, columns: dict[str, Column]) -> dict[str, Any]:
    """The results of the one row, or of none."""
    empty = {operation.text: 0 if operation.kind == "count" else None for operation in query.operations}
    return empty | {name: column.take([0]).shown()[0] for name, column in columns.items() if len(column.values)}


def _shaped(query: Query, results: dict[str, Any]) -> Any:
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in results.items()}
    return plain if query.listed else plain[query.operations[0].text]


def _rows(query: Query, merged: Merged, sheet: Sheet) -> Rows:
    if "count" not in sheet.columns:
        sheet.columns["count"] = Column(sheet.count, np.ones(len(sheet.count), np.bool_))
    names = [TIME] if query.is_cut else []
    names += ["device_id", "metric_name", "tags"] if query.group_by == ("series",) else query.group_by
    names += sheet.columns
    order = np.arange(len(sheet.group))
    if query.descending:
        order = np.lexsort((~sheet.start, sheet.group))
    more = query.limit is not None and len(order) > query.limit
    order = order[: query.limit]
    return Rows(names, len(order), more, merged.groups, query.group_by, sheet, order)
