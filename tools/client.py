"""A client of the HTTP API for notebooks and scripts: answers as Python values, numpy arrays and pandas tables.

Needs numpy and msgpack, pandas only for tables; imports nothing of this project, so the file may be copied. A Client
has one connection and belongs to one thread. Times that come back are int64 nanoseconds. Guide: docs/client.md.
"""

import http.client
import json
import ssl
from collections.abc import Iterator, Mapping
from datetime import datetime
from os import PathLike
from typing import Any, Final, NamedTuple, Self
from urllib.parse import urlencode, urlsplit

import msgpack
import numpy as np
import numpy.typing as npt

TIMEOUT_S: Final = 60.0
_READ_BYTES: Final = 1 << 16
_TLS_ALERT: Final = "\x15\x03"  # how a server that speaks TLS answers what is none
_NO_TLS: Final = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST")
_BEGINNINGS: Final = (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError)


class QueryFailed(Exception):
    """The server said no. status: of HTTP; error: one word; field: at fault, or None; answer: all that it said."""

    def __init__(self, status: int, answer: Mapping[str, Any]) -> None:
        super().__init__(str(answer.get("message", f"HTTP status {status}")))
        self.status = status
        self.answer = dict(answer)
        self.error = str(answer.get("error", ""))
        self.field: str | None = answer.get("field")


class Unreachable(Exception):
    """No server answered, or its answer broke off. The text says where and why."""


class Answer(dict[str, Any]):
    """An answer as the server gave it, with its rows as columns when they are wanted."""

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """The rows, one array for each column: float64 for numbers (NaN for null), int64 for time, else objects.

        An answer without buckets and groups is one row: its figures, and count.
        """
        rows = self._rows()
        names = dict.fromkeys(name for row in rows for name in row)
        return {name: _column(name, [row.get(name) for row in rows]) for name in names}

    def frame(self) -> Any:
        """The rows as a pandas DataFrame, time as UTC timestamps."""
        return _frame(self.columns())

    def _rows(self) -> list[dict[str, Any]]:
        if "rows" in self:
            rows: list[dict[str, Any]] = self["rows"]
            return rows
        if "result" not in self:
            raise ValueError(f"this answer has no rows, it has {', '.join(self) or 'nothing'}")
        result = self["result"]
        figures = result if isinstance(result, Mapping) else {self["operation"]: result}
        return [{**figures, "count": self["count"]}]


class Series(NamedTuple):
    """tags: sorted pairs."""

    device_id: str
    metric_name: str
    tags: tuple[tuple[str, str], ...]


class Samples(NamedTuple):
    """Points. series: each once. One item per point: series_at (index into series), times (ns), values."""

    series: list[Series]
    series_at: npt.NDArray[np.uint32]
    times: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]

    def by_series(self) -> dict[Series, tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]]:
        """Times and values of each series."""
        chosen = {one: self.series_at == at for at, one in enumerate(self.series)}
        return {one: (self.times[mine], self.values[mine]) for one, mine in chosen.items()}

    def frame(self) -> Any:
        """A pandas DataFrame: time, device_id, metric_name, a column for each tag, value."""
        columns: dict[str, npt.NDArray[Any]] = {"time": self.times}
        for place, name in enumerate(("device_id", "metric_name")):
            columns[name] = np.array([one[place] for one in self.series], object)[self.series_at]
        for tag in sorted({name for one in self.series for name, _ in one.tags}):
            columns[f"tags.{tag}"] = np.array([dict(one.tags).get(tag) for one in self.series], object)[self.series_at]
        return _frame(columns | {"value": self.values})


class Part(NamedTuple):
    """Columns of some points, as in Samples."""

    series_at: npt.NDArray[np.uint32]
    times: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]


class Event(NamedTuple):
    """Something that /live sent. name: "point" (data: a list of points), "lost" and others; data: its JSON."""

    name: str
    data: Any


class Client:
    """Asks one server. url: such as http://127.0.0.1:8080. ca_file: PEM of the certificates to trust instead of the
    system's authorities, such as the server's self-signed one. context: of TLS, for all else.

    Fields are those of docs/http-api.md; None leaves one out, a datetime with a zone may stand for a time. Every method
    raises QueryFailed and Unreachable.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8080",
        token: str | None = None,
        timeout_s: float = TIMEOUT_S,
        context: ssl.SSLContext | None = None,
        ca_file: str | PathLike[str] | None = None,
    ) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url is {url!r}, want http://HOST:PORT or https://HOST:PORT")
        self.url = f"{parts.scheme}://{parts.netloc}"
        self._host, self._port, self._is_tls = parts.hostname, parts.port, parts.scheme == "https"
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._timeout_s = timeout_s
        self._context = context if ca_file is None else _trusting(ca_file, context)
        self._connection: http.client.HTTPConnection | None = None
        self.headers: Mapping[str, str] = {}  # of the last answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection. The next question makes another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # Questions

    def query(self, operation: str | list[str], metric_name: Any, device_id: Any = "*", **fields: Any) -> Answer:
        """POST /query: aggregates, in buckets with interval=, by group with group_by=."""
        asked = {"device_id": device_id, "metric_name": metric_name, "operation": operation} | fields
        if "interval" in asked or "group_by" in asked or "max_points" in asked:
            asked = {"time_unit": "ns"} | asked
        return Answer(self.call("POST", "/query", asked))

    def samples(self, metric_name: Any = "*", device_id: Any = "*", **fields: Any) -> Samples:
        """Every point that matches, in arrays of 20 bytes each; read as they come."""
        table: dict[Series, int] = {}
        parts = [Part(np.zeros(0, np.uint32), np.zeros(0, np.int64), np.zeros(0))]
        for series, times, values in self.stream(metric_name, device_id, **fields):
            at = table.setdefault(series, len(table))
            parts.append(Part(np.full(len(times), at, np.uint32), times, values))
        return Samples(list(table), *(np.concatenate(column) for column in zip(*parts, strict=True)))

    def stream(
        self, metric_name: Any = "*", device_id: Any = "*", **fields: Any
    ) -> Iterator[tuple[Series, npt.NDArray[np.int64], npt.NDArray[np.float64]]]:
        """The same in parts: a series, times in ns and values of some of its points. Memory does not grow.

        A series comes in several parts, one behind the other, where it has many points.
        """
        asked = {"metric_name": metric_name, "device_id": device_id, "limit": "all"} | fields
        for held in self._maps("/api/v1/samples", {**asked, "format": "msgpack", "binary": True}):
            for entry in held["series"]:
                times, values = np.frombuffer(entry["times"], "<i8"), np.frombuffer(entry["values"], "<f8")
                yield _series_of(entry), times, values

    def series(self, metric_name: Any = "*", device_id: Any = "*", **fields: Any) -> list[dict[str, Any]]:
        """Every series that matches, and what it holds, over all pages."""
        return self._listed("/api/v1/series", "series", {"metric_name": metric_name, "device_id": device_id} | fields)

    def last(self, metric_name: Any = "*", device_id: Any = "*", **fields: Any) -> list[dict[str, Any]]:
        """The newest point of every series that matches, over all pages."""
        return self._listed("/api/v1/last", "rows", {"metric_name": metric_name, "device_id": device_id} | fields)

    def gaps(self, metric_name: Any = "*", device_id: Any = "*", **fields: Any) -> list[dict[str, Any]]:
        """Silences of every series that matches, over all pages."""
        return self._listed("/api/v1/gaps", "rows", {"metric_name": metric_name, "device_id": device_id} | fields)

    def delete(
        self, device_id: Any, metric_name: Any = None, *, dry_run: bool = False, **fields: Any
    ) -> dict[str, Any]:
        """Delete points of one device, of every metric unless one is named. dry_run: only say what would go."""
        asked = {"device_id": device_id, "metric_name": metric_name, "dry_run": dry_run} | fields
        return self.call("DELETE", "/api/v1/series", asked)

    def live(self, metric_name: Any = "*", device_id: Any = "*", **fields: Any) -> Iterator[Event]:
        """Events of durable points as they arrive, until the server or the caller ends it."""
        asked = {"metric_name": metric_name, "device_id": device_id} | fields
        reply = self._open("GET", f"/live?{parameters(asked)}", None)
        try:
            yield from _events(_lines(reply))
        finally:
            self.close()  # the rest of the answer has no end

    # HTTP

    def call(self, method: str, path: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """One answer of JSON. Fields go into the body of a POST, else into the URL."""
        data = b"".join(self.chunks(method, path, fields))
        try:
            found: dict[str, Any] = json.loads(data)
        except ValueError as error:
            raise Unreachable(f"{self.url}{path}: the answer broke off: {_last_word(data)}") from error
        return found

    def chunks(self, method: str, path: str, fields: Mapping[str, Any]) -> Iterator[bytes]:
        """The bytes of an answer of any format, as they come."""
        reply = self._sent(method, path, fields)
        done = False
        try:
            while part := _read(reply):
                yield part
            if reply.length:  # announced and not there; http.client says nothing of it
                raise Unreachable(f"{self.url}{path}: the answer broke off: {reply.length} bytes of it are missing")
            done = True
        finally:
            if not done:
                self.close()  # the connection still holds the rest

    def _sent(self, method: str, path: str, fields: Mapping[str, Any]) -> http.client.HTTPResponse:
        if method == "POST":
            given = {name: value for name, value in fields.items() if value is not None}
            return self._open(method, path, json.dumps(given, default=_time_text).encode())
        text = parameters(fields)
        return self._open(method, f"{path}?{text}" if text else path, None)

    def _listed(self, path: str, items: str, fields: Mapping[str, Any]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        cursor = None
        while True:
            page = self.call("POST", path, {**fields, "cursor": cursor})
            found += page[items]
            cursor = page.get("next_cursor")
            if cursor is None:
                return found

    def _maps(self, path: str, asked: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The maps of an answer of MessagePack, one behind the other; the last one has the coverage."""
        unpacker = msgpack.Unpacker(max_buffer_size=0)
        last: dict[str, Any] = {}
        for chunk in self.chunks("POST", path, asked):
            unpacker.feed(chunk)
            while (held := _unpacked(unpacker)) is not None:
                last = held
                yield last
        if not last.get("coverage"):
            raise Unreachable(f"{self.url}{path}: the answer broke off")

    def _open(self, method: str, target: str, body: bytes | None) -> http.client.HTTPResponse:
        reply = self._exchange(method, target, body)
        self.headers = reply.headers
        if reply.status < 300:
            return reply
        data = _read(reply, -1)
        try:
            said = json.loads(data)
        except ValueError:
            said = None
        if not isinstance(said, dict):  # of a proxy, say
            said = {"error": "http_error", "message": f"HTTP status {reply.status}: {data[:200]!r}"}
        raise QueryFailed(reply.status, said)

    def _exchange(self, method: str, target: str, body: bytes | None) -> http.client.HTTPResponse:
        """The head of the answer; once more on a new connection where a kept one had been closed meanwhile."""
        if method == "DELETE":
            self.close()  # on a new connection it is never sent twice: the second would take what came in between
        kept = self._connection is not None
        try:
            if self._connection is None:
                self._connection = self._connect()
            headers = self._headers | ({"Content-Type": "application/json"} if body else {})
            self._connection.request(method, target, body, headers)
            return self._connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            if kept and isinstance(error, _BEGINNINGS):
                return self._exchange(method, target, body)
            raise Unreachable(f"{self.url}: {_trouble(error, self.url)}") from error

    def _connect(self) -> http.client.HTTPConnection:
        if self._is_tls:
            return http.client.HTTPSConnection(
                self._host, self._port, timeout=self._timeout_s, context=self._context
            )
        return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)


def parameters(fields: Mapping[str, Any]) -> str:
    """Fields as a URL's parameters: a list repeats its name, tags become tags.NAME, {"exact": text} NAME.exact."""
    pairs: list[tuple[str, str]] = []
    for name, value in fields.items():
        if name == "tags" and value is not None:
            pairs += [("tags", "")] if not value else []
            pairs += [(f"tags.{tag}", _parameter(text)) for tag, wanted in value.items() for text in _listed(wanted)]
        elif value is not None:
            pairs += [_pair(name, each) for each in _listed(value)]
    return urlencode(pairs)


def _pair(name: str, value: Any) -> tuple[str, str]:
    if isinstance(value, dict) and value.keys() == {"exact"} and name in ("device_id", "metric_name"):
        return f"{name}.exact", str(value["exact"])
    return name, _parameter(value)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _parameter(value: Any) -> str:
    if isinstance(value, Mapping | list):
        raise ValueError(f"{value!r} cannot stand in a URL")
    if isinstance(value, bool):
        return "true" if value else "false"
    return _time_text(value) if isinstance(value, datetime) else str(value)


def _time_text(value: Any) -> str:
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.isoformat()
    raise TypeError(f"{value!r} is {type(value).__name__}, want what JSON can say, or a datetime with a time zone")


def _trusting(ca_file: str | PathLike[str], context: ssl.SSLContext | None) -> ssl.SSLContext:
    if context is not None:
        raise ValueError("context or ca_file, not both")
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # which does not say of what file it speaks
        raise ValueError(f"ca_file {str(ca_file)!r}: {error}, want certificates in PEM") from error


def _trouble(error: Exception, url: str) -> str:
    """What went wrong with a request, with what may mend it."""
    scheme, _, place = url.partition("://")
    if isinstance(error, http.client.RemoteDisconnected):
        return str(error)
    if isinstance(error, http.client.BadStatusLine) and error.line.startswith(_TLS_ALERT):
        return f"it speaks TLS: try https://{place}"
    if isinstance(error, http.client.BadStatusLine):
        return f"the answer is not HTTP, it begins with {error.line[:50]!r}"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message}): it, or its authority, can be named as ca_file"
    if isinstance(error, ssl.SSLError) and scheme == "https" and error.reason in _NO_TLS:
        return f"does it speak TLS? If not, try http://{place} ({error.reason})"
    return str(error) or type(error).__name__


# Reading


def _read(reply: http.client.HTTPResponse, most: int = _READ_BYTES) -> bytes:
    try:
        return reply.read() if most < 0 else reply.read(most)
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(f"the answer broke off: {error or type(error).__name__}") from error


def _unpacked(unpacker: msgpack.Unpacker) -> dict[str, Any] | None:
    """The next map of an answer, None where more bytes are needed."""
    try:
        found: dict[str, Any] = unpacker.unpack()
    except msgpack.OutOfData:
        return None
    except ValueError as error:  # what a server that fails on the way ends an answer with
        raise Unreachable("the answer broke off: the server failed on the way") from error
    return found


def _last_word(data: bytes) -> str:
    """What a server that failed on the way says at the end of an object that it leaves open."""
    try:
        return str(json.loads(data + b"}")["message"])
    except (ValueError, LookupError, TypeError):
        return f"it ends in {data[-100:]!r}"


def _lines(reply: http.client.HTTPResponse) -> Iterator[str]:
    while True:
        try:
            line = reply.readline()
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(f"the stream broke off: {error or type(error).__name__}") from error
        if not line:
            return
        yield line.decode().rstrip("\r\n")


def _events(lines: Iterator[str]) -> Iterator[Event]:
    """Server-sent events; heartbeats, which are comments, are left out."""
    name, data = "message", list[str]()
    for line in lines:
        if line.startswith("event:"):
            name = line[6:].strip()
        elif line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif not line:
            if data:
                yield Event(name, json.loads("\n".join(data)))
            name, data = "message", []


def _series_of(row: Mapping[str, Any]) -> Series:
    return Series(row["device_id"], row["metric_name"], tuple(sorted(row["tags"].items())))


def _column(name: str, items: list[Any]) -> npt.NDArray[Any]:
    if name == "time" and all(isinstance(item, int) for item in items):
        return np.array(items, np.int64)
    if all(item is None or isinstance(item, int | float) for item in items):
        return np.array([np.nan if item is None else item for item in items], np.float64)
    found = np.empty(len(items), object)
    found[:] = items
    return found


def _frame(columns: Mapping[str, npt.NDArray[Any]]) -> Any:
    import pandas  # type: ignore[import-untyped, unused-ignore]  # an extra: all but tables works without

    found = pandas.DataFrame(dict(columns))
    if "time" in found and found["time"].dtype == np.int64:
        found["time"] = pandas.to_datetime(found["time"], unit="ns", utc=True)
    return found
