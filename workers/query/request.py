"""What clients send, checked: the body of POST /query, and the parameters of GET requests.

The usual request passes one typed decode. Only when that fails is the body looked at field by field, to say
which one is at fault, what was got and what is allowed. Every error is a Refusal.
Pure: no I/O, no state.
"""

import base64
import binascii
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, NoReturn, get_args
from urllib.parse import parse_qsl

import msgspec
from msgspec import Meta

from common import config, timestamps
from common.errors import ProtocolError
from common.series import parse_key
from workers.query.refusal import JSON_TYPES, bad, check_known
from workers.query.refusal import Refusal as Refusal
from workers.query.refusal import shown as shown

Operation = Literal["avg", "sum", "max", "min", "count", "first", "last"]
OPERATIONS: Final = get_args(Operation)
Time = int | float | str | None

_MAX_S: Final = timestamps.MAX_NS // timestamps.NS_PER_S
_TIME_ALLOWED: Final = f"Unix seconds from -{_MAX_S} to {_MAX_S}, RFC 3339 text, or 0 or no value for an open end"


class QueryBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /query as it is sent."""

    device_id: Annotated[str, Meta(min_length=1)]
    metric_name: Annotated[str, Meta(min_length=1)]
    operation: Operation
    start_time: Time = 0
    end_time: Time = 0
    tags: dict[str, str] | None = None


class Query(msgspec.Struct, frozen=True):
    """A checked query. body: as sent; start_ns, end_ns: inclusive, None is open."""

    body: QueryBody
    start_ns: int | None
    end_ns: int | None


class SeriesQuery(msgspec.Struct, frozen=True):
    """A checked listing. after: the series key behind which the page begins."""

    limit: int
    after: bytes
    device_id: str | None
    metric_name: str | None


_decoder: Final = msgspec.json.Decoder(QueryBody)
_FIELDS: Final = QueryBody.__struct_fields__

def parse_query(data: bytes, limits: config.Ingest) -> Query:
    """The query in a request body. limits: those of ids and tags. Raises Refusal."""
    try:
        body = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        _explain(data, error)
    _check_id("device_id", body.device_id, limits.max_id_bytes)
    _check_id("metric_name", body.metric_name, limits.max_id_bytes)
    if body.tags:
        _check_tags(body.tags, limits)
    start_ns = _time_ns("start_time", body.start_time)
    end_ns = _time_ns("end_time", body.end_time)
    if start_ns is not None and end_ns is not None and start_ns > end_ns:
        raise bad(
            "start_time",
            f"start_time {shown(body.start_time)} is after end_time {shown(body.end_time)}; "
            "the range includes both ends, and 0 or no value leaves an end open",
        )
    return Query(body, start_ns, end_ns)


def parse_series(parameters: Mapping[str, str], limits: config.Ingest, page_limit: int) -> SeriesQuery:
    """The listing that the parameters of GET /api/v1/series ask for. Raises Refusal."""
    check_known(parameters, ("limit", "cursor", "device_id", "metric_name"), "parameter")
    for name in ("device_id", "metric_name"):
        if name in parameters:
            _check_id(name, parameters[name], limits.max_id_bytes)
    return SeriesQuery(
        _limit(parameters.get("limit"), page_limit),
        read_cursor(parameters.get("cursor", "")),
        parameters.get("device_id"),
        parameters.get("metric_name"),
    )


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


def parse_parameters(query_string: str) -> dict[str, str]:
    """The parameters of a URL, the last of each name. Raises Refusal where they are not UTF-8."""
    try:
        return dict(parse_qsl(query_string, keep_blank_values=True, errors="strict"))
    except ValueError as error:
        raise bad(None, f"the parameters of this URL cannot be read: {error}") from error


def _limit(text: str | None, page_limit: int) -> int:
    if text is None:
        return min(1000, page_limit)
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= page_limit):
        raise bad("limit", f"limit is {shown(text)}, want a whole number from 1 to {page_limit}")
    return int(text)


# Single values


def _check_id(field: str, value: str, limit: int) -> None:
    size = len(value) if value.isascii() else len(value.encode())
    if not 1 <= size <= limit:
        raise bad(field, f"{field} has {size} bytes, want 1 to {limit}")


def _check_tags(tags: Mapping[str, str], limits: config.Ingest) -> None:
    if len(tags) > limits.max_tags:
        raise bad("tags", f"tags has {len(tags)} entries, want at most {limits.max_tags}")
    for part in (*tags, *tags.values()):
        if len(part.encode()) > limits.max_id_bytes:
            raise bad("tags", f"tags has text of {len(part.encode())} bytes, want at most {limits.max_id_bytes}")


def _time_ns(field: str, value: Time) -> int | None:
    if not value:  # 0, 0.0, null; an empty text is a mistake
        return None if value != "" else _refuse_time(field, value, "the text is empty")
    try:
        return timestamps.from_text(value) if isinstance(value, str) else timestamps.from_number(value)
    except ValueError as error:
        return _refuse_time(field, value, str(error))


def _refuse_time(field: str, value: Any, reason: str) -> NoReturn:
    raise bad(field, f"{field} is {shown(value)}: {reason}; allowed: {_TIME_ALLOWED}")


# Why a body did not decode


def _explain(data: bytes, error: Exception) -> NoReturn:
    """Raise the Refusal that says what is wrong with a body."""
    try:
        body = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
        found = f"malformed JSON: {fault}" if data.strip() else "the body is empty"
        raise Refusal(400, "malformed_json", f"{found}; want a JSON object with {', '.join(_FIELDS)}") from error
    if not isinstance(body, dict):
        text = f"the body is {JSON_TYPES[type(body)]}, want a JSON object with {', '.join(_FIELDS)}"
        raise bad(None, text) from error
    check_known(body, _FIELDS, "field")
    for field in ("device_id", "metric_name"):
        _check_text(field, body)
    _check_operation(body)
    for field in ("start_time", "end_time"):
        value = body.get(field, 0)
        if isinstance(value, bool | dict | list):
            _refuse_time(field, value, f"it is {JSON_TYPES[type(value)]}")
    _check_tag_types(body.get("tags"))
    raise bad(None, f"the body cannot be used: {error}") from error


def _check_text(field: str, body: Mapping[str, Any]) -> None:
    if field not in body:
        raise bad(field, f"{field} is missing, want text")
    value = body[field]
    if not isinstance(value, str):
        raise bad(field, f"{field} is {shown(value)}, {JSON_TYPES[type(value)]}; want text")
    if not value:
        raise bad(field, f"{field} is empty, want text")


def _check_operation(body: Mapping[str, Any]) -> None:
    allowed = ", ".join(OPERATIONS)
    if "operation" not in body:
        raise bad("operation", f"operation is missing, want one of {allowed}")
    if body["operation"] not in OPERATIONS:
        raise bad("operation", f"unknown operation {shown(body['operation'])}, want one of {allowed}")


def _check_tag_types(tags: Any) -> None:
    if tags is None:
        return
    if not isinstance(tags, dict):
        raise bad("tags", f"tags is {JSON_TYPES[type(tags)]}, want an object of texts")
    for name, value in tags.items():
        if not isinstance(value, str):
            raise bad("tags", f"tag {shown(name)} is {JSON_TYPES[type(value)]}, want text")
