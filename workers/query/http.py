"""The HTTP face of the cluster: the application, and what surrounds every handler. Runs in granian's threads.

Owns no socket and no ring: every answer comes from a question that the scatter thread carries out. Errors are JSON:
{"error", "message", "field"?, "coverage"?, "setting"?, "limit"?, "value"?}. Reference: docs/http-api.md.
"""

from collections.abc import Callable, Iterator
from time import perf_counter_ns
from typing import Any, Final

import bottle

from common import log
from common.errors import MinitrueError
from workers.query import cors, handlers_page
from workers.query.access import Denied
from workers.query.coverage import Incomplete
from workers.query.frame import JSON, Context, Request, Response, Route, Scope, encode
from workers.query.gate import Busy
from workers.query.refusal import OverLimit, Refusal
from workers.query.routes import ROUTES

ROUTES_SHOWN: Final = {f"{'|'.join(route.methods)} {route.path}": route.summary for route in ROUTES}

# Ids of devices are in every answer: none is to be taken for HTML, whatever it looks like.
NO_SNIFFING: Final = ("X-Content-Type-Options", "nosniff")

logger = log.get("query.http")


def authorize(context: Context, asked: Request, scope: Scope) -> None:
    """Whether the client may do what a route is for; notes who it is. Raises Refusal."""
    try:
        asked.who = context.access.check(asked.header("Authorization"), scope)
    except Denied as denied:
        if logger.limited("denied", 5.0):
            client = asked.environ.get("REMOTE_ADDR", "")
            logger.warning("access denied", client=client, path=asked.path, reason=str(denied))
        raise


def make_app(context: Context) -> "App":
    """The WSGI application."""
    app = App()
    app.config["json.enable"] = False
    for route in (*ROUTES, *_PAGE):
        app.route(route.path, list(route.methods), _guarded(context, route))
    if context.settings.query.cors_origins:
        cors.install(app, context.settings.query.cors_origins)
    return app


class App(bottle.Bottle):  # type: ignore[misc]
    """Bottle, with errors of its own as JSON."""

    def default_error_handler(self, res: bottle.HTTPError) -> bytes:
        error = {404: "not_found", 405: "method_not_allowed"}.get(res.status_code, "http_error")
        bottle.response.content_type = JSON
        bottle.response.set_header(*NO_SNIFFING)
        environ = bottle.request.environ
        fault = _ERROR_TEXTS.get(res.status_code, res.body)
        if res.status_code == 405:
            fault = f"this path takes {res.headers.get('Allow', '').replace(',', ' and ')}"
        text = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}: {fault}"
        return encode({"error": error, "message": text})


_ERROR_TEXTS: Final = {
    404: f"nothing is here; there are {', '.join(ROUTES_SHOWN)}",
}


def _index(context: Context, asked: Request) -> Response:
    """The page, or what is here."""
    return handlers_page.index(context, asked, ROUTES_SHOWN)


_PAGE: Final = (
    Route("/", ("GET",), "none", _index, "the page for people, or what is here", limited=False),
    Route(handlers_page.ASSETS_PATH, ("GET",), "none", handlers_page.asset, "the page's files", limited=False),
)


# Around every handler


def _guarded(context: Context, route: Route) -> Callable[[], Any]:
    """The handler between gate and timings, its errors turned into answers."""

    def guarded(**_: str) -> bytes | Iterator[bytes]:  # what a path has for a <name> is asked of the request
        visit = Visit(context, route)
        try:
            asked = Request(bottle.request.environ, context.settings.query.max_body_bytes)
            authorize(context, asked, route.scope)
            visit.enter(asked)
            response = route.handler(context, asked)
        except Refusal as refusal:
            response = refused(refusal)
        except MinitrueError as error:
            logger.error("request failed", route=route.path, reason=str(error))
            response = refused(Refusal(500, "internal", str(error)))
        except Exception as error:
            logger.exception("BUG: request failed", route=route.path)
            response = refused(Refusal(500, "internal", f"BUG: {type(error).__name__}: {error}"))
        return _sent(response, visit)

    return guarded


class Visit:
    """One request's way through: its place at the gate, and the time it takes. Ends once. One thread at a time."""

    def __init__(self, context: Context, route: Route) -> None:
        self.status = 500
        self.path = route.path
        self._context = context
        self._gate = context.gate if route.limited else None
        self._here = False
        self._inside = False
        self._started_ns = perf_counter_ns()
        self._ended = False

    def enter(self, asked: Request) -> None:
        """Take the body, then a place, where the route is one that waits. Raises Refusal."""
        if self._gate is None:
            return
        self._gate.arrive()
        self._here = True
        asked.body()
        self._gate.enter()
        self._inside = True

    def pause(self) -> None:
        """Give the place back while the client reads."""
        if self._gate is not None and self._inside:
            self._inside = False
            self._gate.leave()

    def resume(self) -> None:
        """Have a place again, however long that takes: the answer has begun."""
        if self._gate is not None:
            self._gate.enter(patient=True)
            self._inside = True

    def end(self) -> None:
        """It is answered, or the client has gone."""
        self.pause()
        if self._gate is not None and self._here:
            self._here = False
            self._gate.depart()
        if not self._ended:
            self._ended = True
            self._context.timings.add(self.path, self.status, perf_counter_ns() - self._started_ns)


class Streamed:
    """The parts of a response as they are sent; ends the visit when the last one is, or when the client has gone.

    Iterated and closed by one thread at a time. A part that fails ends the answer there, and what was sent shows it:
    the server that we run under would end the transfer in order, whatever is raised.
    """

    def __init__(self, parts: Iterator[bytes], visit: Visit) -> None:
        self._parts = parts
        self._visit = visit

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        self._visit.resume()
        try:
            part = next(self._parts)
        except StopIteration:
            self._visit.end()
            raise
        except Exception as error:
            logger.error("answer cut off", route=self._visit.path, reason=f"{type(error).__name__}: {error}")
            self._visit.end()
            raise StopIteration from error
        self._visit.pause()
        return part

    def close(self) -> None:
        """Nobody reads on."""
        try:
            close = getattr(self._parts, "close", None)
            if close is not None:
                close()
        finally:
            self._visit.end()

    def __del__(self) -> None:  # a response that nobody began to read is only dropped
        self.close()


def _sent(response: Response, visit: Visit) -> bytes | Streamed:
    """Hand a response to Bottle."""
    out = bottle.response
    out.status = visit.status = response.status
    out.content_type = response.content_type
    out.set_header(*NO_SNIFFING)
    for name, value in response.headers.items():
        (out.add_header if name == "Vary" else out.set_header)(name, value)  # cors.py has one of its own
    if not isinstance(response.body, bytes):
        visit.pause()
        return Streamed(response.body, visit)
    visit.end()
    return response.body


def refused(refusal: Refusal) -> Response:
    """The answer that is an error."""
    told: dict[str, Any] = {"error": refusal.error, "message": str(refusal)}
    if refusal.field is not None:
        told["field"] = refusal.field
    if isinstance(refusal, Incomplete):
        told["coverage"] = refusal.coverage
        if refusal.timeout_s is not None:
            told |= {"setting": "query.timeout_s", "limit": refusal.timeout_s}
    if isinstance(refusal, OverLimit):
        told |= {"setting": refusal.setting, "limit": refusal.limit}
        if refusal.value is not None:
            told["value"] = refusal.value
    headers = {"Retry-After": str(refusal.retry_after_s)} if isinstance(refusal, Busy) else {}
    if isinstance(refusal, Denied):
        headers = {"WWW-Authenticate": refusal.challenge}
    return Response(encode(told), refusal.status, headers=headers)
