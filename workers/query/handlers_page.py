"""The page for people: / and /assets/. It holds no data: what it asks for is asked with a token, like all else.

Nothing from elsewhere is allowed to it, and no inline script: ids of devices are hostile input.
"""

from typing import Final

from workers.query import page
from workers.query.frame import Context, Request, Response, answer
from workers.query.page import File
from workers.query.refusal import Refusal, shown

HTML: Final = "text/html"
PREFIX: Final = f"/{page.ASSETS}/"
ASSETS_PATH: Final = f"{PREFIX}<name>"
FOR_EVER: Final = "public, max-age=31536000, immutable"  # the name has a hash of the content
POLICY: Final = "; ".join(
    (
        "default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self' data: blob:",
        "connect-src 'self'", "font-src 'self'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'",
    )
)  # fmt: skip
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
}
NOT_BUILT: Final = b"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>minitrue</title>
<meta name="viewport" content="width=device-width"></head><body>
<h1>minitrue</h1>
<p>The page is not built. With Node 18 or newer, in the checkout:</p>
<pre>make env</pre>
<p>or <code>npm ci &amp;&amp; npm run build</code> in <code>web/</code>; then load this again.</p>
<p>The API works without it: <a href="/docs">how to ask</a>.</p>
</body></html>
"""


def index(context: Context, asked: Request, here: dict[str, str]) -> Response:
    """The page for browsers, what is here for programs. here: routes and what they are for."""
    if not wants_html(asked.header("Accept")):
        told = answer({"name": "minitrue", "worker": context.scatter.name, "routes": here})
        return told._replace(headers={"Vary": "Accept"})
    home = context.builds.home()
    if home is None:
        headers = {**HEADERS, "Cache-Control": "no-store", "Vary": "Accept"}
        return Response(NOT_BUILT, content_type="text/html; charset=utf-8", headers=headers)
    return _served(home, asked, {"Cache-Control": "no-cache", "Vary": "Accept, Accept-Encoding"})


def asset(context: Context, asked: Request) -> Response:
    """One of the page's files."""
    name = asked.path.removeprefix(PREFIX)
    file = context.builds.asset(name)
    if file is None:
        raise Refusal(404, "not_found", f"the page has no file {shown(name)}: it was built anew, or never; reload it")
    return _served(file, asked, {"Cache-Control": FOR_EVER, "Vary": "Accept-Encoding"})


def wants_html(accepted: str) -> bool:
    """Whether a header Accept asks for HTML by name, as browsers do; `*/*` is what programs send."""
    named = (each.partition(";")[0].strip() for each in accepted.lower().split(","))
    return HTML in named


def _served(file: File, asked: Request, headers: dict[str, str]) -> Response:
    """A file in the best encoding, or 304 where the client has it."""
    body = file.best(asked.header("Accept-Encoding"))
    headers = HEADERS | headers | {"ETag": body.tag}
    if page.matches(body.tag, asked.header("If-None-Match")):
        return Response(b"", 304, file.content_type, headers)
    if body.encoding != page.IDENTITY:
        headers["Content-Encoding"] = body.encoding
    return Response(body.data, content_type=file.content_type, headers=headers)
