"""The HTTP face of the cluster: routes, answers, errors. Runs in the threads of granian's pool.

Owns no socket and no ring: every answer comes from a question that the scatter thread carries out. Every answer
but the metrics is JSON, errors too: {"error", "message", "field"?, "coverage"?}. Reference: docs/http-api.md.
"""

import threading
from bisect import bisect_left
from collections.abc import Callable, Mapping
from time import perf_counter_ns
from typing import Any, Final

import bottle
import msgspec
from msgspec import UNSET, Struct, UnsetType

from common import config, log, metrics, protocol
from common.errors import MinitrueError
from common.protocol import AggregateReply, AggregateRequest, MetricFamily, SeriesReply, SeriesRequest
from common.series import Series, parse_key, series_key
from workers.query import aggregate, request
from workers.query.gather import Gather, Question, Survey
from workers.query.request import Refusal
from workers.query.scatter import Scatter

JSON: Final = "application/json"
STATUS_TIMEOUT_S: Final = 2.0  # for health and metrics: who asks them wants to know soon
HINT_KEYS: Final = 1000  # series looked at to say which part of an unknown series is unknown
HINT_NAMES: Final = 10  # of them named in the text
DRAIN_BYTES: Final = 32 << 20  # of a body that is too large: beyond that the connection is closed on the sender
DRAIN_STEP_BYTES: Final = 1 << 16
BUCKETS_S: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)

logger = log.get("query.http")
_encode: Final = msgspec.json.Encoder().encode

ROUTES_SHOWN: Final = {
    "POST /query": "aggregate one device's metric over a range of time",
    "GET /api/v1/series": "devices and metrics, page by page",
    "GET /healthz": "whether this process is alive",
    "GET /readyz": "whether every storage node answers",
    "GET /metrics": "Prometheus exposition of all workers",
}


class Missing(Struct):
    """Partitions that nobody answered for. node: who should have, partitions: how many, reason: why it did not."""

    node: str
    partitions: int
    reason: str


class Coverage(Struct):
    """What an answer speaks of; see docs/http-api.md."""

    partitions_asked: int
    partitions_answered: int
    complete: bool
    epoch: int
    delete_number: int
    nodes: list[str]
    missing: list[Missing]


class Answer(Struct):
    """The answer to POST /query: the request's fields, then what was found."""

    device_id: str
    metric_name: str
    operation: str
    start_time: request.Time
    end_time: request.Time
    tags: dict[str, str] | UnsetType
    result: float | int | None
    count: int
    duration_ns: int
    coverage: Coverage


class Incomplete(Refusal):
    """An answer that lacks something, and so is none."""

    def __init__(self, error: str, message: str, coverage: Coverage) -> None:
        super().__init__(503, error, message)
        self.coverage = coverage


class Timings:
    """How long requests took, by route and status. Guarded by its lock: one short update per request."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, int], list[int]] = {}
        self._sums_ns: dict[tuple[str, int], int] = {}

    def add(self, route: str, status: int, spent_ns: int) -> None:
        """Count one request."""
        key = route, status
        with self._lock:
            counts = self._counts.get(key)
            if counts is None:
                counts = self._counts[key] = [0] * (len(BUCKETS_S) + 1)
                self._sums_ns[key] = 0
            counts[bisect_left(BUCKETS_S, spent_ns * 1e-9)] += 1
            self._sums_ns[key] += spent_ns

    def family(self) -> MetricFamily:
        """The histogram."""
        name = "minitrue_http_request_seconds"
        samples = []
        with self._lock:
            taken = [(key, list(counts), self._sums_ns[key]) for key, counts in self._counts.items()]
        for (route, status), counts, sum_ns in taken:
            labels, total = {"route": route, "status": str(status)}, 0
            for bound, number in zip((*BUCKETS_S, "+Inf"), counts, strict=True):
                total += number
                samples.append((f"{name}_bucket", labels | {"le": str(bound)}, float(total)))
            samples += [(f"{name}_sum", labels, sum_ns / 1e9), (f"{name}_count", labels, float(total))]
        return MetricFamily(name, "histogram", "Time to answer an HTTP request.", samples)


class Service:
    """The handlers. Constant after construction; any thread of the pool."""

    def __init__(self, scatter: Scatter, settings: config.Settings) -> None:
        self.timings = Timings()
        self._scatter = scatter
        self._limits = settings.ingest
        self._page_limit = settings.query.page_limit
        self._max_body_bytes = settings.query.max_body_bytes
        self._timeout_s = settings.query.timeout_s
        self._late_s = settings.bridge_late_s

    # POST /query

    def query(self) -> bytes:
        """Aggregate what matches; see docs/http-api.md."""
        started_ns = perf_counter_ns()
        query = request.parse_query(self._body(), self._limits)
        body = query.body

        def ask(bitmap: bytes) -> AggregateRequest:
            return AggregateRequest(
                bitmap, body.device_id, body.metric_name, body.tags, query.start_ns, query.end_ns
            )

        whole = ask(b"")
        gather = Gather(
            protocol.AGGREGATE,
            AggregateReply,
            lambda plan: plan.wanted(whole),
            ask,
            self._timeout_s,
            aggregate.check,
        )
        coverage = self._gather(gather)
        if not any(reply.series for reply in gather.replies):
            self._check_known(body)
        try:
            result = aggregate.finish(body.operation, gather.replies)
        except aggregate.Overflow as error:
            raise Refusal(422, "overflow", str(error), "operation") from error
        return _encode(
            Answer(
                body.device_id,
                body.metric_name,
                body.operation,
                body.start_time or 0,
                body.end_time or 0,
                UNSET if body.tags is None else body.tags,
                result,
                aggregate.count(gather.replies),
                perf_counter_ns() - started_ns,
                coverage,
            )
        )

    def _body(self) -> bytes:
        source, limit = bottle.request.environ["wsgi.input"], self._max_body_bytes
        data: bytes = source.read(limit + 1)
        if len(data) <= limit:
            return data
        for _ in range(DRAIN_BYTES // DRAIN_STEP_BYTES):  # most clients send all before they look at the answer
            if not source.read(DRAIN_STEP_BYTES):
                break
        raise Refusal(413, "too_large", f"the body is larger than {limit} bytes (query.max_body_bytes)")

    def _check_known(self, body: request.QueryBody) -> None:
        """Nothing was found: no points in the range, or no such series? Refuses the second, saying what is unknown."""
        if self._exists(body):
            return
        listing = self._listing(SeriesRequest(b"", b"", HINT_KEYS, body.device_id))
        self._gather(listing)
        raise _unknown_series(body, [parse_key(key) for reply in listing.replies for key in reply.keys])

    def _exists(self, body: request.QueryBody) -> bool:
        key = None if body.tags is None else series_key(body.device_id, body.metric_name, body.tags)
        after = b"" if key is None else just_below(key)
        listing = self._listing(SeriesRequest(b"", after, 1, body.device_id, body.metric_name))
        self._gather(listing)
        return any(reply.keys and (key is None or key in reply.keys) for reply in listing.replies)

    # GET /api/v1/series

    def series(self) -> bytes:
        """One page of the series keys, in ascending order of their bytes."""
        parameters = request.parse_parameters(bottle.request.environ.get("QUERY_STRING", ""))
        wanted = request.parse_series(parameters, self._limits, self._page_limit)
        listing = self._listing(
            SeriesRequest(b"", wanted.after, wanted.limit, wanted.device_id, wanted.metric_name)
        )
        coverage = self._gather(listing)
        keys, more = merge_keys(listing.replies, wanted.limit)
        series = [parse_key(key) for key in keys]
        return _encode(
            {
                "series": [
                    {"device_id": one.device_id, "metric_name": one.metric_name, "tags": dict(one.tags)}
                    for one in series
                ],
                "next_cursor": request.make_cursor(keys[-1]) if more else None,
                "coverage": coverage,
            }
        )

    def _listing(self, whole: SeriesRequest) -> Gather[SeriesReply]:
        def ask(bitmap: bytes) -> SeriesRequest:
            return SeriesRequest(bitmap, whole.after, whole.limit, whole.device_id, whole.metric_name)

        return Gather(protocol.SERIES, SeriesReply, lambda plan: plan.everything, ask, self._timeout_s)

    # Health and metrics

    def healthz(self) -> bytes:
        """This process is alive."""
        return _encode({"status": "ok"})

    def readyz(self) -> bytes:
        """Whether queries can be answered now, and who says so."""
        survey = self._survey(protocol.STATUS, dict[str, Any])
        nodes = {node: {"ready": True, **status} for node, status in survey.replies.items()}
        nodes |= {node: {"ready": False, "reason": trouble.reason} for node, trouble in survey.trouble.items()}
        bridges = freshest_bridges(survey.replies)
        for status in nodes.values():
            status.pop("bridges", None)
        answer: dict[str, Any] = {
            "ready": survey.complete(),
            "epoch": survey.epoch,
            "nodes": dict(sorted(nodes.items())),
            "bridges": {bridge: self._judged(told) for bridge, told in sorted(bridges.items())},
        }
        if not survey.epoch:
            answer["reason"] = self._scatter.ring_fault
        bottle.response.status = 200 if survey.complete() else 503
        return _encode(answer)

    def _judged(self, told: dict[str, Any]) -> dict[str, Any]:
        """What a bridge told of itself last, and whether it still lives."""
        if told["age_s"] <= self._late_s:
            return {"ready": True, **told}
        return {"ready": False, "reason": f"not heard for {told['age_s']:.0f} s", **told}

    def metrics(self) -> bytes:
        """The metrics of this worker, of every node, and of the bridges that they hear."""
        survey = self._survey(protocol.METRICS, protocol.MetricsReply)
        heard = [process for reply in survey.replies.values() for process in reply.processes]
        processes: dict[str, list[MetricFamily]] = {}
        for process in sorted(heard, key=lambda process: -process.age_s):  # so the freshest comes last, and stays
            late = process.age_s > self._late_s
            processes[process.worker] = [_up(0.0)] if late else [_up(1.0), *process.families]
        processes |= {node: [_up(0.0)] for node in survey.trouble}
        processes[self._scatter.name] = [_up(1.0), *metrics.snapshot(), self.timings.family()]
        bottle.response.content_type = metrics.CONTENT_TYPE
        return metrics.render(dict(sorted(processes.items())))

    def index(self) -> bytes:
        """What is here."""
        return _encode({"name": "minitrue", "worker": self._scatter.name, "routes": ROUTES_SHOWN})

    def _survey(self, kind: bytes, reply_type: Any) -> Survey:
        survey = Survey(kind, reply_type, min(STATUS_TIMEOUT_S, self._timeout_s))
        self._scatter.ask(survey)
        return survey

    # Coverage

    def _gather(self, gather: Gather[Any]) -> Coverage:
        """Have a question answered. Raises Incomplete or another Refusal when the answer lacks anything."""
        self._scatter.ask(gather)
        if gather.error is not None:
            _raise_error(gather.error)
        coverage = self._coverage(gather)
        if not coverage.complete:
            raise self._incomplete(gather, coverage)
        return coverage

    def _coverage(self, gather: Gather[Any]) -> Coverage:
        complete = gather.complete()
        return Coverage(
            gather.wanted.bit_count(),
            gather.covered.bit_count(),
            complete,
            gather.epoch,
            aggregate.delete_number(gather.replies) if gather.kind == protocol.AGGREGATE else 0,
            sorted(gather.nodes),
            [] if complete else _missing(gather),
        )

    def _incomplete(self, gather: Question, coverage: Coverage) -> Incomplete:
        if not gather.epoch:
            return Incomplete("not_ready", self._scatter.ring_fault, coverage)
        reasons = "; ".join(f"{one.node}: {one.reason}" for one in coverage.missing)
        lacking = coverage.partitions_asked - coverage.partitions_answered
        text = f"{lacking} of {coverage.partitions_asked} partitions did not answer: {reasons}"
        return Incomplete("incomplete", text, coverage)


def merge_keys(replies: list[SeriesReply], limit: int) -> tuple[list[bytes], bool]:
    """The first `limit` keys of all replies, and whether more follow.

    A node that has more keys than it sent says nothing about those above its last one.
    """
    last_known = min((reply.keys[-1] for reply in replies if reply.more and reply.keys), default=None)
    keys = sorted({key for reply in replies for key in reply.keys})
    more = any(reply.more for reply in replies)
    if last_known is not None:
        keys = [key for key in keys if key <= last_known]
    return keys[:limit], more or len(keys) > limit


def freshest_bridges(statuses: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Every bridge that some node has heard, as the node tells it that heard it last."""
    heard: dict[str, Any] = {}
    for status in statuses.values():
        for bridge, told in status.get("bridges", {}).items():
            if bridge not in heard or told.get("age_s", 0.0) < heard[bridge].get("age_s", 0.0):
                heard[bridge] = told
    return heard


def _missing(gather: Gather[Any]) -> list[Missing]:
    missing = gather.wanted & ~gather.covered
    return [
        Missing(node, lacking.bit_count(), trouble.reason)
        for node, trouble in sorted(gather.trouble.items())
        if gather.plan is not None and (lacking := missing & gather.plan.owned(node))
    ]


def _up(value: float) -> MetricFamily:
    return MetricFamily("minitrue_up", "gauge", "Whether this worker was heard.", [("minitrue_up", {}, value)])


def just_below(key: bytes) -> bytes:
    """The highest bytes below a series key that matter: no other key lies between the two."""
    if key[-1] == 0:
        return key[:-1]
    return key[:-1] + bytes([key[-1] - 1]) + b"\xff" * 8  # eight 0xff are nowhere in msgpack text


def _unknown_series(body: request.QueryBody, of_device: list[Series]) -> Refusal:
    """Says which part of an unknown series is unknown. of_device: what its device has."""
    device, metric = request.shown(body.device_id), request.shown(body.metric_name)
    known = sorted({series.metric_name for series in of_device})
    if not known:
        return Refusal(404, "unknown_series", f"no series has device_id {device}", "device_id")
    if body.tags is None or body.metric_name not in known:
        names = ", ".join(map(request.shown, known[:HINT_NAMES])) + (", ..." if len(known) > HINT_NAMES else "")
        text = f"device_id {device} has no metric_name {metric}, it has {names}"
        return Refusal(404, "unknown_series", text, "metric_name")
    tags = f"exactly the tags {request.shown(body.tags)}" if body.tags else "no tags"
    text = f"{device} {metric} has no series with {tags}; leave tags out to ask all of its series"
    return Refusal(404, "unknown_series", text, "tags")


def _raise_error(error: protocol.ErrorReply) -> None:
    raise Refusal(500, "internal", f"BUG: a storage node refused our request: {error.message}")


# The application


class App(bottle.Bottle):  # type: ignore[misc]
    """Bottle, with errors of its own as JSON."""

    def default_error_handler(self, res: bottle.HTTPError) -> bytes:
        error = {404: "not_found", 405: "method_not_allowed"}.get(res.status_code, "http_error")
        bottle.response.content_type = JSON
        environ = bottle.request.environ
        text = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}: {_ERROR_TEXTS.get(res.status_code, res.body)}"
        return _encode({"error": error, "message": text})


_ERROR_TEXTS: Final = {
    404: f"nothing is here; there are {', '.join(ROUTES_SHOWN)}",
    405: "this path takes another method: POST for /query, GET for the others",
}


def make_app(service: Service) -> App:
    """The WSGI application."""
    app = App()
    app.config["json.enable"] = False
    routes: dict[str, tuple[str, Callable[[], bytes]]] = {
        "/query": ("POST", service.query),
        "/api/v1/series": ("GET", service.series),
        "/healthz": ("GET", service.healthz),
        "/readyz": ("GET", service.readyz),
        "/metrics": ("GET", service.metrics),
        "/": ("GET", service.index),
    }
    for path, (method, handler) in routes.items():
        app.route(path, method, _guarded(path, handler, service.timings))
    return app


def _guarded(route: str, handler: Callable[[], bytes], timings: Timings) -> Callable[[], bytes]:
    """The handler, timed, its errors turned into answers."""

    def guarded() -> bytes:
        started_ns = perf_counter_ns()
        response = bottle.response
        response.content_type = JSON
        try:
            answer = handler()
        except Refusal as refusal:
            answer = _refused(refusal)
        except MinitrueError as error:
            logger.error("request failed", route=route, reason=str(error))
            answer = _refused(Refusal(500, "internal", str(error)))
        except Exception as error:
            logger.exception("BUG: request failed", route=route)
            answer = _refused(Refusal(500, "internal", f"BUG: {type(error).__name__}: {error}"))
        timings.add(route, response.status_code, perf_counter_ns() - started_ns)
        return answer

    return guarded


def _refused(refusal: Refusal) -> bytes:
    """The body of an error, its status set."""
    bottle.response.status = refusal.status
    answer: dict[str, Any] = {"error": refusal.error, "message": str(refusal)}
    if refusal.field is not None:
        answer["field"] = refusal.field
    if isinstance(refusal, Incomplete):
        answer["coverage"] = refusal.coverage
    return _encode(answer)
