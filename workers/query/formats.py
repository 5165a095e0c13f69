"""Formats in which a table is sent: JSON, NDJSON, CSV, MessagePack, Arrow; see docs/http-api.md.

Each is a generator of parts, made as they are sent. What fails before the first megabyte is an error like any other.
What fails behind it ends the answer with a part that no reader of the format takes for the end: granian ends the
transfer in order whatever is raised, so the bytes have to tell half an answer from a whole one. Any thread.
"""

import csv
import io
import itertools
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any, Final

import msgspec

from workers.query.frame import Request, Response
from workers.query.refusal import OverLimit, Refusal, bad, choice
from workers.query.runs import Runs
from workers.query.table import Column, Kind, Page, Table

AHEAD_BYTES: Final = 1 << 20  # made before the answer begins: an answer no longer than this has a length, and no half
_json: Final = msgspec.json.Encoder()
_msgpack: Final = msgspec.msgpack.Encoder()

CONTENT_TYPES: Final = {
    "json": "application/json",
    "ndjson": "application/x-ndjson",
    "csv": "text/csv; charset=utf-8",
    "msgpack": "application/msgpack",
    "arrow": "application/vnd.apache.arrow.stream",
}
_ACCEPTED: Final = {
    "application/json": "json",
    "application/x-ndjson": "ndjson",
    "application/jsonl": "ndjson",
    "text/csv": "csv",
    "application/msgpack": "msgpack",
    "application/x-msgpack": "msgpack",
    "application/vnd.msgpack": "msgpack",
    "application/vnd.apache.arrow.stream": "arrow",
    "application/*": "json",
    "*/*": "json",
}


def wanted(asked: Request, parameters: Mapping[str, Any]) -> str:
    """The format of a request: its `format`, else by its header Accept, else JSON. Raises Refusal."""
    return named(asked, parameters.get("format"))


def named(asked: Request, name: Any) -> str:
    """The format of a request that names it so, or None. Raises Refusal."""
    return by_accept(asked.header("Accept")) if name is None else choice("format", name, CONTENT_TYPES)


def by_accept(accept: str) -> str:
    """The format that a client likes best, JSON where it likes none of ours: the answer names its type anyway."""
    if accept in ("", "*/*"):
        return "json"
    best, found = 0.0, "json"
    for each in accept.split(","):
        kind, *options = (part.strip().lower() for part in each.split(";"))
        weight = _weight(options)
        if kind in _ACCEPTED and weight > best:
            best, found = weight, _ACCEPTED[kind]
    return found


def _weight(options: list[str]) -> float:
    for option in options:
        if option.startswith("q="):
            try:
                return float(option[2:])
            except ValueError:
                return 0.0
    return 1.0


def respond(table: Table, name: str, max_bytes: int, status: int = 200) -> Response:
    """The response that sends a table. max_bytes: query.max_response_bytes. Raises Refusal."""
    return send(parts_of(table, name), name, max_bytes, table.headers, status)


def parts_of(table: Table, name: str) -> Iterator[bytes]:
    """A table in a format, part by part."""
    return _WRITERS[name](table)


def send(
    parts: Iterator[bytes], name: str, max_bytes: int, headers: Mapping[str, str], status: int = 200
) -> Response:
    """The response that sends parts in a format, however they are made. Raises Refusal, as `respond`."""
    body = _started(_marked(_bounded(parts, max_bytes), _BROKEN[name]))
    return Response(body, status, CONTENT_TYPES[name], dict(headers))


def _started(parts: Iterator[bytes]) -> bytes | Iterator[bytes]:
    """The whole answer where it is short, else its parts, the first of them made."""
    made, size = [], 0
    for part in parts:
        made.append(part)
        size += len(part)
        if size > AHEAD_BYTES:
            return _Rest(made, parts)
    return b"".join(made)


class _Rest:
    """Parts that are made, then those to come. Closing it closes those to come."""

    def __init__(self, made: list[bytes], parts: Iterator[bytes]) -> None:
        self._all = itertools.chain(made, parts)
        self._parts = parts

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self._all)

    def close(self) -> None:
        """Make no more of them."""
        close = getattr(self._parts, "close", None)
        if close is not None:
            close()


def _bounded(parts: Iterator[bytes], most: int) -> Iterator[bytes]:
    size = 0
    for part in parts:
        size += len(part)
        if size > most:
            text = f"the answer has more than {most} bytes (query.max_response_bytes); ask for less, or page by page"
            raise OverLimit("query.max_response_bytes", most, size, text)
        yield part


def _marked(parts: Iterator[bytes], mark: Callable[[str, str], bytes]) -> Iterator[bytes]:
    """The parts; when one fails, what shows that, then the failure itself."""
    try:
        yield from parts
    except Refusal as refusal:
        yield mark(refusal.error, str(refusal))
        raise
    except Exception as error:
        yield mark("internal", f"BUG: {type(error).__name__}: {error}")
        raise


def _rows(table: Table, page: Page) -> list[dict[str, Any]]:
    return [dict(zip(table.names, row, strict=True)) for row in zip(*table.columns(page), strict=True)]


def _joined_rows(table: Table, page: Page, between: bytes) -> bytes:
    """The rows of a page as JSON objects, put together column by column: many times as fast as row by row."""
    rows = len(page[table.names[0]])
    if not rows:
        return b""
    slots: list[list[bytes]] = []  # what is joined, of each row in turn
    for name, column in zip(table.names, table.in_json(page), strict=True):
        key = (b"," if slots else b"}" + between + b"{") + _json.encode(name) + b":"
        if isinstance(column, Runs):
            slots.append(column.mapped(key.__add__).tolist())
        else:
            slots += [key] * rows, column
    made = [b""] * (rows * len(slots))
    for at, slot in enumerate(slots):
        made[at :: len(slots)] = slot
    made[0] = made[0].removeprefix(b"}" + between)
    made.append(b"}")
    return b"".join(made)


def _as_json(table: Table) -> Iterator[bytes]:
    head = _json.encode(table.head)[:-1]
    comma = b"," if table.head else b""
    yield head + comma + _json.encode(table.member) + b":["
    between = b""
    for page in table.pages:
        rows = _joined_rows(table, page, b",")
        if rows:
            yield between + rows
            between = b","
    foot = _json.encode(table.foot())[1:]
    yield b"]" + (b"," if foot != b"}" else b"") + foot


def _as_ndjson(table: Table) -> Iterator[bytes]:
    """A row a line; the last line holds everything else, or what went wrong."""
    for page in table.pages:
        rows = _joined_rows(table, page, b"\n")
        yield rows and rows + b"\n"
    yield _json.encode({**table.head, **table.foot()}) + b"\n"


def _as_csv(table: Table) -> Iterator[bytes]:
    """A line of names, then a row a line, as RFC 4180 has it; nothing is an empty field, an object its JSON."""
    yield _lines([list(table.names)])
    for page in table.pages:
        columns = table.columns(page)
        for at, name in enumerate(table.names):
            if table.kinds.get(name) in ("tags", "flag"):
                columns[at] = ["" if item is None else _json.encode(item).decode() for item in columns[at]]
        yield _lines(zip(*columns, strict=True))
    table.foot()


def _lines(rows: Any) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def _as_msgpack(table: Table) -> Iterator[bytes]:
    """One map, as JSON has it. Lengths come first in this format, so all rows are made before the first is sent."""
    rows = [row for page in table.pages for row in _rows(table, page)]
    member = {table.member: rows} if table.names else {}
    yield _msgpack.encode({**table.head, **member, **table.foot()})


def _as_arrow(table: Table) -> Iterator[bytes]:
    """A schema, then a record batch a page; the head is in the schema's metadata, as JSON under "minitrue"."""
    arrow = pyarrow()
    types = {
        "time": arrow.timestamp("ns", "UTC"),
        "number": arrow.float64(),
        "count": arrow.int64(),
        "text": arrow.string(),
        "flag": arrow.bool_(),
        "tags": arrow.map_(arrow.string(), arrow.string()),
    }
    kinds = {name: table.kinds.get(name, "number") for name in table.names}
    metadata = {"minitrue": _json.encode(table.head)}
    schema = arrow.schema([(name, types[kind]) for name, kind in kinds.items()], metadata)
    sink = Sink()
    with arrow.ipc.new_stream(sink, schema) as writer:
        for page in table.pages:
            arrays = [_arrow_array(arrow, page[name], types[kind], kind) for name, kind in kinds.items()]
            writer.write_batch(arrow.record_batch(arrays, schema=schema))
            yield sink.taken()
        table.foot()
    yield sink.taken()


def _arrow_array(arrow: Any, column: Column, type_: Any, kind: Kind) -> Any:
    if isinstance(column, Runs):
        return _arrow_array(arrow, column.items, type_, kind).take(arrow.array(column.places()))
    if kind == "tags":
        column = [None if item is None else list(item.items()) for item in column]
    return arrow.array(column, type_)


class Sink(io.RawIOBase):
    """A file that Arrow writes to, emptied after every page."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        return len(self._parts[-1])

    def taken(self) -> bytes:
        """What was written since."""
        parts, self._parts = self._parts, []
        return b"".join(parts)


def pyarrow() -> ModuleType:
    """The module, which is an extra. Raises Refusal where it is not installed."""
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError as error:
        text = "format arrow needs pyarrow where the query worker runs: pip install 'minitrue[arrow]'"
        raise bad("format", text) from error
    return pyarrow  # type: ignore[no-any-return]


_WRITERS: Final[dict[str, Callable[[Table], Iterator[bytes]]]] = {
    "json": _as_json,
    "ndjson": _as_ndjson,
    "csv": _as_csv,
    "msgpack": _as_msgpack,
    "arrow": _as_arrow,
}


# What ends an answer that failed on the way


def _broken_json(error: str, message: str) -> bytes:
    """Names the failure, and leaves the object open."""
    return b"]," + _json.encode({"error": error, "message": message})[1:-1]


def _broken_ndjson(error: str, message: str) -> bytes:
    """A last line without coverage."""
    return _json.encode({"error": error, "message": message}) + b"\n"


def _broken_csv(error: str, message: str) -> bytes:
    """A line with far more fields than any other, which readers of tables refuse."""
    return _lines([["error", error, message] + [""] * 1000])


def _broken_arrow(error: str, message: str) -> bytes:
    """The beginning of a message that does not follow."""
    return b"\xff\xff\xff\xff\xff\xff\xff\x7f"


def _broken_msgpack(error: str, message: str) -> bytes:
    """The one byte that begins nothing in this format."""
    return b"\xc1"


_BROKEN: Final[dict[str, Callable[[str, str], bytes]]] = {
    "json": _broken_json,
    "ndjson": _broken_ndjson,
    "csv": _broken_csv,
    "msgpack": _broken_msgpack,
    "arrow": _broken_arrow,
}
