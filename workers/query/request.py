"""The body of POST /query, checked, and the cursors of listings.

The usual request (exact texts, one operation, nothing cut or grouped) passes one typed decode. Any other is looked at
field by field, which also says of a bad one what is at fault, what was got and what is allowed. Errors are Refusals.
Pure: no I/O, no clock, no state: now is given.
"""

import base64
import binascii
import math
from typing import Annotated, Any, Final, Literal, NoReturn

import msgspec
from msgspec import Meta, structs

from common import config, match
from common.errors import ProtocolError
from common.match import Match
from common.protocol import Stretch
from common.series import parse_key
from common.timestamps import MAX_NS, MIN_NS
from workers.query import intervals, operations
from workers.query.intervals import Interval
from workers.query.operations import Operation
from workers.query.refusal import Refusal, bad, check_known, choice, flag, seconds, shown, type_of, whole
from workers.query.selection import match_of
from workers.query.table import TIME_UNITS
from workers.query.times import Time, check_order, is_relative, time_ns

FORMATS: Final = ("json", "ndjson", "csv", "msgpack", "arrow")
CONSISTENCIES: Final = ("current", "verified")
FILLS: Final = ("none", "null", "previous", "linear")
MAX_TIMEOUT_S: Final = 86_400.0  # that a request may name; query.timeout_s bounds it anyway
MAX_GROUP_BY: Final = 32

Aggregated = Literal["avg", "sum", "max", "min", "count", "first", "last", "spread", "stddev", "variance"]


class SeedBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of the usual request."""

    device_id: Annotated[str, Meta(min_length=1)]
    metric_name: Annotated[str, Meta(min_length=1)]
    operation: Aggregated
    start_time: Time = 0
    end_time: Time = 0
    tags: dict[str, str] | None = None


class QueryBody(msgspec.Struct):
    """The body of POST /query as it is sent: each field is checked by name. docs/http-api.md says what they mean."""

    device_id: Any = None
    metric_name: Any = None
    operation: Any = None
    start_time: Any = None
    end_time: Any = None
    tags: Any = None
    more_tags: Any = None
    interval: Any = None
    offset: Any = None
    timezone: Any = None
    max_points: Any = None
    group_by: Any = None
    fill: Any = None
    limit: Any = None
    order: Any = None
    time_unit: Any = None
    format: Any = None
    allow_partial: Any = None
    explain: Any = None
    timeout_s: Any = None
    consistency: Any = None


class Query(msgspec.Struct, frozen=True):
    """A checked query.

    body: as sent. start_ns, end_ns: inclusive, None is open. listed: the operations were a list, the result is a map.
    is_seed_shape: one AGGREGATE answers it, which does not tell all that `explain` wants. stretches: the buckets, none
    where nothing is cut; None: the range is open and has to be known first, see `needs_reach`. open_start, open_end:
    whether the request left an end open, which `reaching` then sets to that of the data. max_points: 0 where it was
    not asked. fill: of FILLS, or a number.
    timeout_s: None is that of the settings. format: None is what Accept says. is_verified: all owners are compared.
    """

    body: SeedBody | QueryBody
    start_ns: int | None
    end_ns: int | None
    operations: tuple[Operation, ...]
    is_seed_shape: bool = True
    listed: bool = False
    pattern: Match | None = None
    interval: Interval | None = None
    max_points: int = 0
    stretches: list[Stretch] | None = []
    open_start: bool = False
    open_end: bool = False
    group_by: tuple[str, ...] = ()
    fill: str | float = "none"
    limit: int | None = None
    descending: bool = False
    time_unit: str = "s"
    format: str | None = None
    allow_partial: bool = False
    explain: bool = False
    timeout_s: float | None = None
    is_verified: bool = False

    @property
    def match(self) -> Match:
        """Which series it is about."""
        if self.pattern is not None:
            return self.pattern
        return match.one(self.body.device_id, self.body.metric_name, self.body.tags)

    @property
    def is_cut(self) -> bool:
        """Whether it has buckets."""
        return self.interval is not None or bool(self.max_points)

    @property
    def has_rows(self) -> bool:
        """Whether the answer is rows, rather than one result."""
        return self.is_cut or bool(self.group_by)

    @property
    def range_ns(self) -> tuple[int | None, int | None] | None:
        """The ends that were asked for, None is open, where one was relative to now; None where none was."""
        if not is_relative(self.body.start_time) and not is_relative(self.body.end_time):
            return None
        return None if self.open_start else self.start_ns, None if self.open_end else self.end_ns

    @property
    def needs_reach(self) -> bool:
        """Whether the first and last time of what matches have to be asked first, and given to `reaching`."""
        return self.stretches is None


_seed_decoder: Final = msgspec.json.Decoder(SeedBody)
FIELDS: Final = QueryBody.__struct_fields__
_SEED_OPERATIONS: Final = {name: (operations.PLAIN[name],) for name in operations.AGGREGATED}


def parse_query(data: bytes, settings: config.Settings, now_ns: int) -> Query:
    """The query in a request body. Raises Refusal."""
    try:
        body = _seed_decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _parse_fields(data, settings, now_ns)
    if not _is_plain(body, settings.ingest):
        return _parse_fields(data, settings, now_ns)
    start_ns = time_ns("start_time", body.start_time, now_ns)
    end_ns = time_ns("end_time", body.end_time, now_ns)
    check_order(start_ns, end_ns, body.start_time, body.end_time)
    return Query(body, start_ns, end_ns, _SEED_OPERATIONS[body.operation])


def reaching(query: Query, reach: tuple[int, int] | None, settings: config.Settings) -> Query:
    """A query that needs the reach of the data, with it: its open ends at the first and last time that match.

    reach: these times, ns; None when nothing matches, and so nothing is cut. Raises Refusal.
    """
    if reach is None:
        return structs.replace(query, stretches=[])
    start_ns = reach[0] if query.start_ns is None else query.start_ns
    end_ns = reach[1] if query.end_ns is None else query.end_ns
    if start_ns > end_ns:
        return structs.replace(query, stretches=[])
    cut = structs.replace(query, start_ns=start_ns, end_ns=end_ns)
    interval, stretches = _cut(cut, settings)
    return structs.replace(cut, interval=interval, stretches=stretches)


def _is_plain(body: SeedBody, limits: config.Ingest) -> bool:
    """Whether all texts are exact ones, and plainly within the limits."""
    texts = body.device_id + body.metric_name
    tags = body.tags
    if tags:
        if len(tags) > limits.max_tags:
            return False
        texts += "".join(tags) + "".join(tags.values())
    wild = "*" in texts or "?" in texts or "~" in texts
    return not wild and len(texts) <= limits.max_id_bytes and texts.isascii()


# Field by field


def _parse_fields(data: bytes, settings: config.Settings, now_ns: int) -> Query:
    body = _fields(data)
    for field in ("device_id", "metric_name", "operation"):
        if getattr(body, field) is None:
            _refuse_missing(field, data)
    fields = {"device_id": body.device_id, "metric_name": body.metric_name}
    pattern = match_of(fields | {"tags": body.tags, "more_tags": body.more_tags}, settings.ingest)
    start_ns = time_ns("start_time", body.start_time, now_ns)
    end_ns = time_ns("end_time", body.end_time, now_ns)
    check_order(start_ns, end_ns, body.start_time, body.end_time)
    group_by = _group_by(body.group_by)
    _check_has_rows(body)
    wanted = operations.parse_operations(body.operation)
    query = Query(
        body,
        start_ns,
        end_ns,
        wanted,
        listed=isinstance(body.operation, list),
        pattern=pattern,
        open_start=start_ns is None,
        open_end=end_ns is None,
        max_points=_rows("max_points", body.max_points, settings.query.max_rows) or 0,
        group_by=group_by,
        fill=_fill(body),
        limit=_rows("limit", body.limit, settings.query.max_rows),
        descending=body.order is not None and choice("order", body.order, ("asc", "desc")) == "desc",
        time_unit="s" if body.time_unit is None else choice("time_unit", body.time_unit, TIME_UNITS),
        format=None if body.format is None else choice("format", body.format, FORMATS),
        allow_partial=flag("allow_partial", body.allow_partial),
        explain=flag("explain", body.explain),
        timeout_s=None if body.timeout_s is None else seconds("timeout_s", body.timeout_s, MAX_TIMEOUT_S),
        is_verified=parse_consistency(body.consistency),
    )
    interval, stretches = _cut(query, settings)
    query = structs.replace(query, interval=interval, stretches=stretches)
    return structs.replace(query, is_seed_shape=_is_seed_shape(query))


def _is_seed_shape(query: Query) -> bool:
    wanted = query.match
    patterns = [wanted.device_id, wanted.metric_name, *(wanted.tags or {}).values()]
    exact = all(len(each) == 1 and each[0].kind == "is" for each in patterns)
    plain = all(operation.kind in operations.AGGREGATED for operation in query.operations)
    usual = not wanted.more_tags and not query.has_rows and not query.explain
    return exact and plain and usual


def parse_consistency(value: Any) -> bool:
    """Whether an answer is to be verified. Raises Refusal."""
    return value is not None and choice("consistency", value, CONSISTENCIES) == "verified"


def _cut(query: Query, settings: config.Settings) -> tuple[Interval | None, list[Stretch] | None]:
    """The interval and the buckets that a query's fields ask for."""
    body = query.body
    assert isinstance(body, QueryBody), "BUG: the usual request has no buckets"
    if body.interval is None and body.max_points is None:
        for field in ("offset", "timezone"):
            if getattr(body, field) is not None:
                raise bad(field, f"{field} is given without interval or max_points, which it is for")
        return None, []
    if body.interval is not None and body.max_points is not None:
        raise bad("max_points", "max_points chooses an interval, and interval is given too: want one of them")
    start_ns, end_ns = query.start_ns, query.end_ns
    if body.interval is None:
        intervals.parse_interval(1, body.offset, body.timezone)
        if start_ns is None or end_ns is None:
            return None, None
        return intervals.chosen(query.max_points, body.offset, body.timezone, start_ns, end_ns)
    interval = intervals.parse_interval(body.interval, body.offset, body.timezone)
    if start_ns is not None and end_ns is not None:
        intervals.check_rows(interval, start_ns, end_ns, settings.query.max_rows)
    elif interval.unit:
        return interval, None
    low, high = MIN_NS if start_ns is None else start_ns, MAX_NS if end_ns is None else end_ns
    return interval, intervals.stretches(interval, low, high)


def _group_by(value: Any) -> tuple[str, ...]:
    wanted = 'want "series", or a list of "device_id", "metric_name" and "tags.NAME"'
    if value is None:
        return ()
    each = value if isinstance(value, list) else [value]
    if not 1 <= len(each) <= MAX_GROUP_BY:
        raise bad("group_by", f"group_by has {len(each)} entries, want 1 to {MAX_GROUP_BY}")
    for one in each:
        named = one in ("device_id", "metric_name", "series") if isinstance(one, str) else False
        if not named and not (isinstance(one, str) and one.startswith("tags.") and 5 < len(one) <= 1000):
            raise bad("group_by", f"group_by has {shown(one)}, {wanted}")
    if len(set(each)) < len(each) or ("series" in each and len(each) > 1):
        raise bad("group_by", f"group_by is {shown(value)}, {wanted}, each once")
    return tuple(each)


def _rows(field: str, value: Any, most: int) -> int | None:
    """A number of rows, None where none was given. A body has numbers, so text is none here."""
    if isinstance(value, str):
        raise bad(field, f"{field} is {shown(value)}, text; want a whole number from 1 to {most}")
    return None if value is None else whole(field, value, 1, most)


def _check_has_rows(body: QueryBody) -> None:
    """Refuse what is about rows where the answer has none."""
    if body.interval is not None or body.max_points is not None or body.group_by is not None:
        return
    for field in ("limit", "order"):
        if getattr(body, field) is not None:
            raise bad(field, f"{field} is given without interval, max_points or group_by, there are no rows")


def _fill(body: QueryBody) -> str | float:
    fill = body.fill
    if fill is None:
        return "none"
    if body.interval is None and body.max_points is None:
        raise bad("fill", "fill is given without interval or max_points, there are no buckets to fill")
    if isinstance(fill, int | float) and not isinstance(fill, bool):
        number = float(fill) if abs(fill) < 2**1000 else math.inf
        if not math.isfinite(number):
            raise bad("fill", f"fill is {shown(fill)}, want a number of float64")
        return number
    if not isinstance(fill, str) or fill not in FILLS:
        raise bad("fill", f"fill is {shown(fill)}, want one of {', '.join(FILLS)}, or a number")
    return fill


def _fields(data: bytes) -> QueryBody:
    wanted = "want a JSON object with device_id, metric_name, operation and more"
    try:
        found = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        fault = f"malformed JSON: {error}" if data.strip() else "the body is empty"
        raise Refusal(400, "malformed_json", f"{fault}; {wanted}") from error
    if not isinstance(found, dict):
        raise bad(None, f"the body is {type_of(found)}, {wanted}")
    check_known(found, FIELDS)
    return QueryBody(**found)


def _refuse_missing(field: str, data: bytes) -> NoReturn:
    found = "null" if field in msgspec.json.decode(data) else "missing"
    allowed = {
        "operation": f"want one of {', '.join(operations.SHOWN)}, or a list of them",
    }.get(field, 'want text, a list of texts, or {"exact": text}; "*" is all')
    raise bad(field, f"{field} is {found}, {allowed}")


# Cursors of listings


def make_cursor(key: bytes) -> str:
    """The cursor of the page that begins behind a series key."""
    return base64.urlsafe_b64encode(key).decode().rstrip("=")


def read_cursor(cursor: str) -> bytes:
    """The series key in a cursor, b"" for none. Raises Refusal."""
    if not cursor:
        return b""
    try:
        key = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        parse_key(key)
    except (binascii.Error, ValueError, ProtocolError) as error:
        wanted = "want next_cursor of an earlier page, unchanged"
        raise bad("cursor", f"cursor {shown(cursor)} is not one of ours; {wanted}") from error
    return key
