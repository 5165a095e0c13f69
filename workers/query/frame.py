"""What every handler is given and gives back: Request, Response, Route, and the Context that they share.

A handler is a function (Context, Request) -> Response that raises Refusal for what it cannot answer. It knows nothing
of Bottle. Which handler answers which path is declared once, in routes.py; http.py puts them together.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import parse_qsl

import msgspec

from common import clock, config
from common.errors import MSGSPEC_ERRORS
from workers.query import coverage, page
from workers.query.access import Access
from workers.query.builds import Builds
from workers.query.coverage import Coverage
from workers.query.gate import Gate
from workers.query.gather import Gather, Survey
from workers.query.live import Live
from workers.query.refusal import OverLimit, Refusal, bad, seconds, shown, type_of, whole
from workers.query.scatter import Scatter
from workers.query.stored import Stored
from workers.query.timings import Timings
from workers.query.verified import Repairs

JSON: Final = "application/json"
STATUS_TIMEOUT_S: Final = 2.0  # for health and metrics: who asks them wants to know soon
DRAIN_BYTES: Final = 128 << 20  # of a body that is too large: beyond that the connection is closed on the sender
STEP_BYTES: Final = 1 << 16  # of a body that is read at once
MAX_TIMEOUT_S: Final = 86_400.0  # that a request may name; the setting bounds it anyway
TAGS_PREFIX: Final = "tags."
EXACT_SUFFIX: Final = ".exact"

Scope = Literal["none", "any", "read", "write", "delete", "admin"]
encode: Final = msgspec.json.Encoder().encode


class TooLarge(OverLimit):
    """A body that is not taken. It has a word of its own, older than other limits."""

    def __init__(self, limit: int, value: int | None) -> None:
        text = f"the body is larger than {limit} bytes (query.max_body_bytes)"
        super().__init__("query.max_body_bytes", limit, value, text, status=413)
        self.error = "too_large"


class Request:
    """One request. environ: of WSGI. Belongs to the thread that answers it."""

    def __init__(self, environ: Mapping[str, Any], max_body_bytes: int) -> None:
        self.environ = environ
        self.method: str = environ["REQUEST_METHOD"]
        self.path: str = environ["PATH_INFO"]
        self.who = ""  # the name of its token; "" where none is needed
        self._max_body_bytes = max_body_bytes
        self._body: bytes | None = None

    def header(self, name: str) -> str:
        """A header's value, "" where it is missing."""
        return str(self.environ.get(f"HTTP_{name.upper().replace('-', '_')}", ""))

    def body(self) -> bytes:
        """The whole body, waited for. Raises Refusal when it is too large, or not whole."""
        if self._body is None:
            self._body = self._read() if self.method not in ("GET", "HEAD") else b""
        return self._body

    def _read(self) -> bytes:
        """A body that is too large is read on before it is refused: most clients send all of it before they look at
        the answer.
        """
        source, limit = self.environ["wsgi.input"], self._max_body_bytes
        announced = self.environ.get("CONTENT_LENGTH")
        length = None if announced is None else int(announced)
        data: bytes = source.read(limit + 1)
        if len(data) <= limit:
            self._check_whole(data, length)
            return data
        for _ in range(DRAIN_BYTES // STEP_BYTES):
            if not source.read(STEP_BYTES):
                break
        raise TooLarge(limit, length)

    def _check_whole(self, data: bytes, length: int | None) -> None:
        """Refuse a body that was cut off: the server beneath ends it like any other. Half of what to delete would be
        more than was meant. Without a length an object shows by its last brace that it is whole, nothing does not.
        """
        if length is not None and len(data) < length:
            raise Refusal(400, "malformed_json", f"the body was cut off: {len(data)} of {length} bytes came")
        if length is None and "HTTP_TRANSFER_ENCODING" in self.environ and not data.strip():
            text = "the body in chunks is empty, or was cut off: want a JSON object, or no body"
            raise Refusal(400, "malformed_json", text)

    def parameters(self) -> dict[str, Any]:
        """What is asked, by name: the URL's parameters and, but for a GET, the fields of the body. Raises Refusal."""
        found = url_parameters(self.environ.get("QUERY_STRING", ""))
        if self.method in ("GET", "HEAD"):
            return found
        fields = _body_fields(self.body())
        for name in fields:
            if name in found:
                raise bad(name[:100], f"{shown(name)} is both in the URL and in the body, want it once")
        return found | fields


class Response(NamedTuple):
    """What is sent. body: the whole, or its parts as they come; formats.py makes an early end show in them."""

    body: bytes | Iterator[bytes]
    status: int = 200
    content_type: str = JSON
    headers: Mapping[str, str] = {}


Handler = Callable[["Context", Request], Response]


class Route(NamedTuple):
    """path: exact. scope: what a token must allow. limited: whether the gate counts it; health never waits."""

    path: str
    methods: tuple[str, ...]
    scope: Scope
    handler: Handler
    summary: str
    limited: bool = True


class Context:
    """What handlers share. Constant after construction; any thread of the pool."""

    def __init__(
        self, scatter: Scatter, settings: config.Settings, now_ns: Callable[[], int] = clock.wall_ns
    ) -> None:
        self.scatter = scatter
        self.settings = settings
        self.now_ns = now_ns
        self.started_s = clock.monotonic_s()
        self.timings = Timings()
        self.repairs = Repairs()
        self.stored = Stored(scatter.store)
        self.access = Access(settings)
        self.builds = Builds(settings.path(settings.query.page_dir) if settings.query.page_dir else page.BUILT)
        self.live = Live(scatter.bus, lambda: scatter.plan, settings.query)
        self.gate = Gate(settings.query.threads, settings.query.queue, settings.query.timeout_s)

    def timeout_s(self, parameters: Mapping[str, Any]) -> float:
        """How long a request may take: query.timeout_s, or less by its own timeout_s. Raises Refusal."""
        most = self.settings.query.timeout_s
        asked = parameters.get("timeout_s")
        return most if asked is None else min(most, seconds("timeout_s", asked, MAX_TIMEOUT_S))

    def limit(self, parameters: Mapping[str, Any], default: int = 1000) -> int:
        """Items on a page. Raises Refusal."""
        most = self.settings.query.page_limit
        asked = parameters.get("limit")
        return min(default, most) if asked is None else whole("limit", asked, 1, most)

    def gather(self, gather: Gather[Any], allow_partial: bool = False) -> Coverage:
        """Have a question answered. Raises Incomplete or another Refusal when the answer lacks anything.

        allow_partial: an answer that lacks partitions is one, its coverage says so.
        """
        self.scatter.ask(gather)
        return coverage.judge(gather, self.scatter.ring_fault, allow_partial, self.settings.query)

    def survey(self, kind: bytes, reply_type: Any) -> Survey:
        """Ask every node of the ring once; soon over."""
        survey = Survey(kind, reply_type, min(STATUS_TIMEOUT_S, self.settings.query.timeout_s))
        self.scatter.ask(survey)
        return survey


def answer(data: Any, status: int = 200) -> Response:
    """A response of JSON."""
    return Response(encode(data), status)


def url_parameters(query_string: str) -> dict[str, Any]:
    """A URL's parameters as a body would have them: repeated names are lists, tags.NAME=VALUE entries of tags.

    tags= (no value) means no tags at all; device_id.exact=TEXT takes a text literally, so does metric_name.exact.
    Raises Refusal where they are not UTF-8.
    """
    try:
        pairs = parse_qsl(query_string, keep_blank_values=True, errors="strict")
    except ValueError as error:
        raise bad(None, f"the parameters of this URL cannot be read: {error}") from error
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name.startswith(TAGS_PREFIX):
            _add(found.setdefault("tags", {}), name.removeprefix(TAGS_PREFIX), value)
        elif name == "tags":
            if value:
                raise bad("tags", f"tags is {shown(value)}; want tags.NAME=VALUE, or tags= for series without tags")
            found.setdefault("tags", {})
        elif name in ("device_id.exact", "metric_name.exact"):
            _add(found, name.removesuffix(EXACT_SUFFIX), {"exact": value})
        else:
            _add(found, name, value)
    return found


def _add(found: dict[str, Any], name: str, value: Any) -> None:
    if name not in found:
        found[name] = value
    elif isinstance(found[name], list):
        found[name].append(value)
    else:
        found[name] = [found[name], value]


def _body_fields(data: bytes) -> dict[str, Any]:
    if not data.strip():
        return {}
    try:
        fields = msgspec.json.decode(data)
    except (*MSGSPEC_ERRORS, RecursionError) as error:
        raise Refusal(400, "malformed_json", f"malformed JSON: {error}; want a JSON object") from error
    if not isinstance(fields, dict):
        raise bad(None, f"the body is {type_of(fields)}, want a JSON object")
    return fields
