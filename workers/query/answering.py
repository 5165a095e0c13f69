"""A checked query to requests for the nodes, and their replies to an answer: what POST /query does between its sockets.

Pure: no I/O, no clock, no state.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

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
from workers.query.runs import Runs, runs_of
from workers.query.table import Page

TIME: Final = "time"
_REACH: Final = ("first", "last")

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """The rows of an answer. names: of the columns in their order, "time" (ns) among them where there are buckets."""

    names: list[str]
    length: int
    more: bool
    _groups: list[Group] = field(repr=False)
    _group_by: tuple[str, ...] = field(repr=False)
    _sheet: Sheet = field(repr=False)
    _order: Ints | None = field(repr=False)  # of the sheet's rows, None: as they lie there

    def pages(self, size: int) -> Iterator[Page]:
        """The columns of at most `size` rows at a time: times are int64 ns, groups come in runs, nulls make lists."""
        for begin in range(0, self.length, size):
            end = min(begin + size, self.length)
            yield self._page(slice(begin, end) if self._order is None else self._order[begin:end])

    def _page(self, rows: slice | Ints) -> Page:
        sheet = self._sheet
        page: dict[str, Any] = {}
        if TIME in self.names:
            page[TIME] = sheet.start[rows]
        if self._group_by:
            groups = runs_of(sheet.group[rows]).mapped(self._groups.__getitem__)
            page |= _series_page(groups) if self._group_by == ("series",) else _groups_page(groups, self._group_by)
        page.update({name: column.take(rows).shown() for name, column in sheet.columns.items()})
        return page


def _series_page(groups: Runs[Group]) -> Page:
    keys = groups.mapped(lambda group: parse_key(cast(bytes, group[0] or b"")))
    return {
        "device_id": keys.mapped(lambda key: key.device_id),
        "metric_name": keys.mapped(lambda key: key.metric_name),
        "tags": keys.mapped(lambda key: dict(key.tags)),
    }


def _groups_page(groups: Runs[Group], group_by: tuple[str, ...]) -> Page:
    columns = zip(*groups.items, strict=True)
    return {name: Runs(list(items), groups.lengths) for name, items in zip(group_by, columns, strict=True)}


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
        sheet = fill(sheet, query.fill, query.stretches or [], start_ns, end_ns, most, bool(query.group_by))
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
    order = np.lexsort((~sheet.start, sheet.group)) if query.descending else None
    length = len(sheet.group) if query.limit is None else min(len(sheet.group), query.limit)
    return Rows(names, length, length < len(sheet.group), merged.groups, query.group_by, sheet, order)
