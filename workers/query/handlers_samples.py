"""Raw points: GET and POST /api/v1/samples."""

import base64
import binascii
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from common.errors import MSGSPEC_ERRORS, ProtocolError
from common.series import parse_key
from workers.query import answering, formats, selection, table
from workers.query.coverage import headers_of
from workers.query.frame import Context, Request, Response
from workers.query.refusal import Refusal, bad, check_known, flag, shown, whole
from workers.query.request import parse_consistency
from workers.query.samples_formats import SPAN_ROWS, Answer, joined, parts_of
from workers.query.sampling import BEGINNING, Chunk, Place, Samples
from workers.query.verified import Verified, Verifier

DEFAULT_LIMIT: Final = 10_000
MAX_LIMIT: Final = 10**15
FIELDS: Final = (
    *selection.FIELDS, "limit", "cursor", "format", "time_unit", "allow_partial", "timeout_s", "binary",
    "consistency",
)  # fmt: skip


def samples(context: Context, asked: Request) -> Response:
    """Points of everything that matches, in order of series key and then time."""
    parameters = asked.parameters()
    check_known(parameters, FIELDS)
    settings = context.settings
    wanted = selection.selection(parameters, settings.ingest, context.now_ns())
    name, unit = formats.wanted(asked, parameters), table.parse_time_unit(parameters)
    binary, limit = _binary(parameters, name), _limit(parameters.get("limit"))
    timeout_s = context.timeout_s(parameters)
    found = Samples(
        context.gather,
        wanted,
        _place(parameters.get("cursor")),
        timeout_s,
        flag("allow_partial", parameters.get("allow_partial")),
        verified=_verified(context, wanted, timeout_s) if parse_consistency(parameters.get("consistency")) else None,
    )
    entries = _begun(joined(found.chunks(limit)), limit)
    answer = Answer(found, entries, unit, binary, found.coverage)
    headers = headers_of(found.coverage)
    if answer.next_cursor is not None:
        headers["Minitrue-Next-Cursor"] = answer.next_cursor
    return formats.send(parts_of(answer, name), name, settings.query.max_response_bytes, headers)


def _verified(context: Context, wanted: selection.Selection, timeout_s: float) -> Verified:
    spend = answering.limits(context.settings)
    ask = context.scatter.ask
    found = Verifier(ask, wanted.match, wanted.start_ns, wanted.end_ns, spend, timeout_s, context.repairs)
    return found.run()


def _begun(entries: Iterator[Chunk], limit: int | None) -> Iterator[Chunk]:
    """Entries of which the first is read; all, if they are few: then headers can tell how it ends."""
    held = list(itertools.islice(entries, 1)) if limit is None or limit > SPAN_ROWS else list(entries)
    return itertools.chain(held, entries)


def _limit(value: Any) -> int | None:
    """How many points, None for all."""
    if value is None:
        return DEFAULT_LIMIT
    if value == "all":
        return None
    try:
        return whole("limit", value, 0, MAX_LIMIT) or None
    except Refusal as error:
        raise bad("limit", f"limit is {shown(value)}, want a whole number from 1 to {MAX_LIMIT}, 0 or all") from error


def _binary(parameters: Mapping[str, Any], name: str) -> bool:
    binary = flag("binary", parameters.get("binary"))
    if binary and name != "msgpack":
        raise bad("binary", f"binary is for format msgpack, this is {name}; arrow is binary anyway")
    return binary


def _place(cursor: Any) -> Place:
    """The place that a cursor names."""
    if cursor is None or cursor == "":
        return BEGINNING
    try:
        packed = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        key, time_ns = msgspec.msgpack.decode(packed, type=tuple[bytes, int])
        parse_key(key)
        if not -(1 << 63) <= time_ns < 1 << 63:
            raise ProtocolError(f"a time of {time_ns} ns")
    except (*MSGSPEC_ERRORS, binascii.Error, ValueError, TypeError, ProtocolError) as error:
        wanted = "want next_cursor of an earlier page, unchanged"
        raise bad("cursor", f"cursor {shown(cursor)} is not one of ours; {wanted}") from error
    return Place(key, time_ns)
