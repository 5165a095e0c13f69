"""What all listings share: their parameters, pages with a cursor, and pages of several nodes made one.

Pure but for the questions that a context carries out.
"""

import base64
import binascii
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from common import figures
from common.series import parse_key
from workers.query import formats, request, selection, table
from workers.query.coverage import Coverage, headers_of
from workers.query.frame import Context, Request, Response
from workers.query.gather import Gather
from workers.query.refusal import bad, check_known, flag, shown
from workers.query.selection import Selection
from workers.query.table import PAGE_ROWS, Kind, Table

MORE_TAGS: Final = "series with exactly these tags were looked for; more_tags=true allows others beside them"
COMMON: Final = (*selection.FIELDS, "limit", "cursor", "format", "time_unit", "allow_partial", "timeout_s")
SERIES: Final = ("device_id", "metric_name", "tags")
KINDS: Final[dict[str, Kind]] = {
    "device_id": "text",
    "metric_name": "text",
    "tags": "tags",
    "count": "count",
    "series": "count",
    "first_time": "time",
    "last_time": "time",
    "time": "time",
}
Columns = Mapping[str, npt.NDArray[Any]]


class Listing(NamedTuple):
    """A checked request for a listing. cursor: text of the page before, "" for the first page."""

    parameters: Mapping[str, Any]
    selection: Selection
    limit: int
    cursor: str
    format: str
    time_unit: str
    allow_partial: bool
    timeout_s: float
    now_ns: int


def parse(context: Context, asked: Request, more: Collection[str] = ()) -> Listing:
    """The request for a listing. more: names of parameters beside COMMON. Raises Refusal."""
    parameters = asked.parameters()
    check_known(parameters, (*COMMON, *more), "parameter")
    now_ns = context.now_ns()
    cursor = parameters.get("cursor")
    if cursor is None:
        cursor = ""
    if not isinstance(cursor, str):
        raise bad("cursor", f"cursor is {shown(cursor)}, want next_cursor of an earlier page, unchanged")
    return Listing(
        parameters,
        selection.selection(parameters, context.settings.ingest, now_ns),
        context.limit(parameters),
        cursor,
        formats.wanted(asked, parameters),
        table.parse_time_unit(parameters),
        flag("allow_partial", parameters.get("allow_partial")),
        context.timeout_s(parameters),
        now_ns,
    )


def gather(
    context: Context, listing: Listing, kind: bytes, reply_type: Any, ask: Callable[[bytes], Any]
) -> tuple[list[Any], Coverage]:
    """The replies of the nodes that own what is selected, and what they speak of. Raises Refusal."""
    match = listing.selection.match
    question: Gather[Any] = Gather(kind, reply_type, lambda plan: plan.wanted_by(match), ask, listing.timeout_s)
    coverage = context.gather(question, listing.allow_partial)
    return question.replies, coverage


# Pages of series


class KeyedReply(Protocol):
    """A reply with series keys, ascending; more: whether further ones follow."""

    @property
    def keys(self) -> list[bytes]: ...
    @property
    def more(self) -> bool: ...


def merge_keys(replies: Sequence[KeyedReply], limit: int) -> tuple[list[bytes], bool]:
    """The first `limit` keys of all replies, and whether more follow.

    A node that has more keys than it sent says nothing about those above its last one.
    """
    last_known = min((reply.keys[-1] for reply in replies if reply.more and reply.keys), default=None)
    keys = sorted({key for reply in replies for key in reply.keys})
    more = any(reply.more for reply in replies)
    if last_known is not None:
        keys = [key for key in keys if key <= last_known]
    return keys[:limit], more or len(keys) > limit


def columns_of(replies: Sequence[Any], names: tuple[str, ...], keys: Sequence[bytes]) -> Columns:
    """The rows that describe these keys, in their order, of replies with a row a key. Raises ProtocolError."""
    parts = [figures.unpack(reply.columns, names) for reply in replies]
    places = {key: at for at, key in enumerate(key for reply in replies for key in reply.keys)}
    rows = np.array([places[key] for key in keys], np.int64)
    return {
        name: np.concatenate([np.zeros(0, figures.DTYPES[name]), *(part[name] for part in parts)])[rows]
        for name in names
    }


def series_columns(keys: Sequence[bytes]) -> dict[str, list[Any]]:
    """The columns that name series."""
    series = [parse_key(key) for key in keys]
    return {
        "device_id": [one.device_id for one in series],
        "metric_name": [one.metric_name for one in series],
        "tags": [dict(one.tags) for one in series],
    }


def known(column: npt.NDArray[Any], where: npt.NDArray[np.bool_]) -> list[Any]:
    """A column's items, None where they are not known."""
    return [item if there else None for item, there in zip(column.tolist(), where.tolist(), strict=True)]


def key_cursor(keys: Sequence[bytes], more: bool) -> str | None:
    """The cursor behind the last of these keys, None where none follow."""
    return request.make_cursor(keys[-1]) if more and keys else None


# Pages of texts


def text_page(texts: Sequence[str], listing: Listing) -> tuple[list[str], str | None]:
    """The texts of a page, of all in ascending order, and the cursor of the next. Raises Refusal."""
    after = _read_text(listing.cursor)
    rest = [text for text in texts if after is None or text.encode() > after]
    page = rest[: listing.limit]
    more = len(rest) > len(page)
    return page, base64.urlsafe_b64encode(page[-1].encode()).decode().rstrip("=") if more else None


def _read_text(cursor: str) -> bytes | None:
    if not cursor:
        return None
    try:
        return base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        wanted = "want next_cursor of an earlier page, unchanged"
        raise bad("cursor", f"cursor {shown(cursor)} is not one of ours; {wanted}") from error


# Answers


def respond(
    context: Context,
    listing: Listing,
    columns: Mapping[str, Sequence[Any]],
    cursor: str | None,
    coverage: Coverage,
    kinds: Mapping[str, Kind] = KINDS,
    member: str = "rows",
) -> Response:
    """One page of a listing. columns: by name, equally long."""
    headers = headers_of(coverage)
    if cursor is not None:
        headers["Minitrue-Next-Cursor"] = cursor
    rows = len(next(iter(columns.values())))
    pages = (
        {name: column[at : at + PAGE_ROWS] for name, column in columns.items()} for at in range(0, rows, PAGE_ROWS)
    )
    foot = {"next_cursor": cursor, "coverage": coverage} | _hint(listing, rows)
    one = Table({}, list(columns), pages, lambda: foot, kinds, listing.time_unit, member, headers)
    return formats.respond(one, listing.format, context.settings.query.max_response_bytes)


def _hint(listing: Listing, rows: int) -> dict[str, str]:
    """What may have been meant by tags that nothing has."""
    match = listing.selection.match
    is_narrow = match.tags and not match.more_tags and not listing.cursor
    return {"hint": MORE_TAGS} if not rows and is_narrow else {}
