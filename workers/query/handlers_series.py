"""Listings: which series, devices, metrics and tags there are, what they hold, and where they were silent.

A page at a time, behind a cursor; what matches nothing is an empty page. Reference: docs/http-api.md.
"""

import math
from collections import Counter
from typing import Any, Final

import numpy as np

from common import figures, protocol
from common.match import Match
from common.protocol import (
    DescribeReply,
    DescribeRequest,
    GapsReply,
    GapsRequest,
    GroupsReply,
    GroupsRequest,
    SeriesReply,
    SeriesRequest,
    TagsReply,
    TagsRequest,
)
from common.timestamps import NS_PER_S
from workers.query import answering, listing, merge, request
from workers.query.coverage import Coverage
from workers.query.frame import Context, Request, Response
from workers.query.listing import KINDS, Listing
from workers.query.refusal import bad, flag, shown
from workers.query.table import Kind

DEFAULT_FACTOR: Final = 3.0
MAX_FACTOR: Final = 1e9
MAX_S: Final = 9_223_372_036.0
_DESCRIBED: Final = ("count", "first_time", "first", "last_time", "last", "usual_ns")
_GAPS: Final = ("group", "start", "end", "usual_ns")
_GAP_KINDS: Final[dict[str, Kind]] = {**KINDS, "start_time": "time", "end_time": "time", "ongoing": "flag"}
_TAG_KINDS: Final[dict[str, Kind]] = {"name": "text", "value": "text", "values": "count", "series": "count"}
_GROUP_WANTS: Final = ("count", "first", "last")


def series(context: Context, asked: Request) -> Response:
    """Series, in ascending order of their keys, and what they hold; with details=false their names alone."""
    page = listing.parse(context, asked, ("details",))
    asked_details = page.parameters.get("details")
    details = True if asked_details is None else flag("details", asked_details)
    if not details and _is_plain(page.selection.match):
        return _names(context, page)
    keys, more, found, coverage = _describe(context, page, details)
    columns: dict[str, Any] = listing.series_columns(keys)
    if details:
        there = found["count"] > 0
        columns |= {"count": found["count"].tolist()}
        columns |= {name: listing.known(found[name], there) for name in ("first_time", "last_time", "last")}
        columns["expected_interval_s"] = _intervals(found["usual_ns"])
    return listing.respond(context, page, columns, listing.key_cursor(keys, more), coverage, member="series")


def _is_plain(match: Match) -> bool:
    """Whether at most one exact device and one exact metric are named: nodes have an index for these."""
    fields = match.device_id, match.metric_name
    return match.tags is None and all(len(each) < 2 and all(one.kind == "is" for one in each) for each in fields)


def _names(context: Context, page: Listing) -> Response:
    after, match = request.read_cursor(page.cursor), page.selection.match
    device, metric = ((each[0].text if each else None) for each in (match.device_id, match.metric_name))

    def ask(bitmap: bytes) -> SeriesRequest:
        return SeriesRequest(bitmap, after, page.limit, device, metric)

    replies, coverage = listing.gather(context, page, protocol.SERIES, SeriesReply, ask)
    keys, more = listing.merge_keys(replies, page.limit)
    cursor, columns = listing.key_cursor(keys, more), listing.series_columns(keys)
    return listing.respond(context, page, columns, cursor, coverage, member="series")


def last(context: Context, asked: Request) -> Response:
    """The newest point of every series that has one in the range."""
    page = listing.parse(context, asked)
    keys, more, found, coverage = _describe(context, page, False)
    there = np.flatnonzero(found["count"] > 0)
    times = found["last_time"][there]
    columns: dict[str, Any] = listing.series_columns([keys[at] for at in there.tolist()])
    columns |= {"time": times, "value": found["last"][there].tolist()}
    columns["age_s"] = [(page.now_ns - time) / NS_PER_S for time in times.tolist()]
    return listing.respond(context, page, columns, listing.key_cursor(keys, more), coverage)


def _describe(
    context: Context, page: Listing, intervals: bool
) -> tuple[list[bytes], bool, listing.Columns, Coverage]:
    """The keys of a page, whether more follow, what they hold by DescribeReply's columns, and the coverage."""
    after, wanted = request.read_cursor(page.cursor), page.selection

    def ask(bitmap: bytes) -> DescribeRequest:
        return DescribeRequest(
            bitmap, wanted.match, wanted.start_ns, wanted.end_ns, after, page.limit, intervals
        )

    replies, coverage = listing.gather(context, page, protocol.DESCRIBE, DescribeReply, ask)
    keys, more = listing.merge_keys(replies, page.limit)
    return keys, more, listing.columns_of(replies, _DESCRIBED, keys), coverage


def _intervals(usual_ns: Any) -> list[float | None]:
    return [usual / NS_PER_S if usual else None for usual in usual_ns.tolist()]


# Devices and metrics


def devices(context: Context, asked: Request) -> Response:
    """Devices: how many series and points each has, and when."""
    return _grouped(context, asked, "device_id")


def metric_names(context: Context, asked: Request) -> Response:
    """Names of metrics: how many series and points each has, and when."""
    return _grouped(context, asked, "metric_name")


def _grouped(context: Context, asked: Request, name: str) -> Response:
    page = listing.parse(context, asked)
    wanted, spend = page.selection, answering.limits(context.settings)

    def ask(bitmap: bytes) -> GroupsRequest:
        return GroupsRequest(
            bitmap, wanted.match, wanted.start_ns, wanted.end_ns, [], [name], list(_GROUP_WANTS), spend
        )

    replies, coverage = listing.gather(context, page, protocol.GROUPS, GroupsReply, ask)
    counts = _series_by_group(replies)
    merged = merge.merge(replies, _GROUP_WANTS)
    rows = {str(merged.groups[group][0]): row for row, group in enumerate(merged.group.tolist())}
    names, cursor = listing.text_page(sorted(counts, key=str.encode), page)
    columns: dict[str, list[Any]] = {name: list(names), "series": [counts[each] for each in names]}
    columns["count"] = [int(merged.columns["count"][rows[each]]) if each in rows else 0 for each in names]
    for column in ("first_time", "last_time"):
        columns[column] = [int(merged.columns[column][rows[each]]) if each in rows else None for each in names]
    columns["last"] = [
        float(merged.columns["last"][rows[each]]) if each in rows and counts[each] == 1 else None for each in names
    ]
    return listing.respond(context, page, columns, cursor, coverage)


def _series_by_group(replies: list[GroupsReply]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for reply in replies:
        for group, number in zip(reply.groups, reply.group_series, strict=True):
            counts[str(group[0])] += number
    return counts


# Tags


def tags(context: Context, asked: Request) -> Response:
    """Names of tags and how many values each has; with name=NAME its values. How many series have them."""
    page = listing.parse(context, asked, ("name",))
    name = page.parameters.get("name")
    if name is not None and not isinstance(name, str):
        raise bad("name", f"name is {shown(name)}, want the name of a tag")
    wanted, spend = page.selection, answering.limits(context.settings)

    def ask(bitmap: bytes) -> TagsRequest:
        return TagsRequest(bitmap, wanted.match, spend)

    replies, coverage = listing.gather(context, page, protocol.TAGS, TagsReply, ask)
    found: dict[str, Counter[str]] = {}
    for reply in replies:
        for tag, values in reply.tags.items():
            found.setdefault(tag, Counter()).update(values)
    if name is not None:
        values = found.get(name, Counter())
        texts, cursor = listing.text_page(sorted(values, key=str.encode), page)
        columns: dict[str, list[Any]] = {"value": texts, "series": [values[text] for text in texts]}
    else:
        texts, cursor = listing.text_page(sorted(found, key=str.encode), page)
        columns = {"name": texts, "values": [len(found[text]) for text in texts]}
        columns["series"] = [found[text].total() for text in texts]
    return listing.respond(context, page, columns, cursor, coverage, _TAG_KINDS)


# Gaps


def gaps(context: Context, asked: Request) -> Response:
    """Silences of every series that matches, longer than a factor of its usual interval."""
    page = listing.parse(context, asked, ("factor", "minimum_s"))
    factor = _number(page, "factor", DEFAULT_FACTOR, 1.0, MAX_FACTOR)
    least_ns = round(_number(page, "minimum_s", 0.0, 0.0, MAX_S) * NS_PER_S)
    after, wanted, spend = request.read_cursor(page.cursor), page.selection, answering.limits(context.settings)
    end_ns = page.now_ns if wanted.end_ns is None else wanted.end_ns

    def ask(bitmap: bytes) -> GapsRequest:
        return GapsRequest(
            bitmap, wanted.match, wanted.start_ns, end_ns, factor, least_ns, after, page.limit, spend
        )

    replies, coverage = listing.gather(context, page, protocol.GAPS, GapsReply, ask)
    keys, more = listing.merge_keys(replies, page.limit)
    columns = _gap_columns(replies, keys, end_ns)
    return listing.respond(context, page, columns, listing.key_cursor(keys, more), coverage, _GAP_KINDS)


def _gap_columns(replies: list[GapsReply], keys: list[bytes], end_ns: int) -> dict[str, Any]:
    """The silences of these series, in the order of their keys and of time."""
    places = {key: at for at, key in enumerate(keys)}
    rows = []
    for reply in replies:
        found = figures.unpack(reply.columns, _GAPS)
        for group, start, end, usual in zip(*(found[name].tolist() for name in _GAPS), strict=True):
            if (at := places.get(reply.keys[group])) is not None:
                rows.append((at, start, end_ns if end == start else end, usual, end == start))
    rows.sort()
    columns: dict[str, Any] = listing.series_columns([keys[at] for at, *_ in rows])
    columns["start_time"] = [start for _, start, *_ in rows]
    columns["end_time"] = [end for _, _, end, *_ in rows]
    columns["duration_s"] = [(end - start) / NS_PER_S for _, start, end, *_ in rows]
    columns["expected_interval_s"] = [usual / NS_PER_S for *_, usual, _ in rows]
    columns["ongoing"] = [goes_on for *_, goes_on in rows]
    return columns


def _number(page: Listing, name: str, default: float, least: float, most: float) -> float:
    """A number among the parameters, also as text. Raises Refusal."""
    value = page.parameters.get(name)
    if value is None:
        return default
    try:
        number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not least <= number <= most:
        raise bad(name, f"{name} is {shown(value)}, want a number from {least:g} to {most:g}")
    return number
