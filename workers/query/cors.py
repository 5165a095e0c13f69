"""Pages of other origins: which may read answers (query.cors_origins). Nothing is sent unless some may.

A browser asks before it sends a token (preflight); that question bears none, and is answered here.
"""

from collections.abc import Collection
from typing import Final

import bottle

ANY: Final = "*"
METHODS: Final = "GET, POST, DELETE"
REQUEST_HEADERS: Final = "Authorization, Content-Type, Accept"
SHOWN_HEADERS: Final = "Minitrue-Complete, Minitrue-Missing, Minitrue-Next-Cursor, Minitrue-Verified, Retry-After"
AGE_S: Final = 600  # for which a browser need not ask again


def install(app: bottle.Bottle, origins: Collection[str]) -> None:
    """Have an application let pages of these origins ("https://host:port", or "*" for all) read its answers."""

    def allow() -> None:
        origin, headers = bottle.request.get_header("Origin", ""), bottle.response.headers
        headers["Vary"] = "Origin"
        if origin and (origin in origins or ANY in origins):
            headers["Access-Control-Allow-Origin"] = origin
            headers["Access-Control-Expose-Headers"] = SHOWN_HEADERS

    def preflight(**_: str) -> bytes:
        bottle.response.status = 204
        headers = bottle.response.headers
        headers["Access-Control-Allow-Methods"] = METHODS
        headers["Access-Control-Allow-Headers"] = REQUEST_HEADERS
        headers["Access-Control-Max-Age"] = str(AGE_S)
        return b""

    app.add_hook("before_request", allow)
    for path in {route.rule for route in app.routes}:
        app.route(path, "OPTIONS", preflight)
