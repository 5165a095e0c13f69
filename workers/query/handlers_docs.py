"""The interface's own description: /openapi.yaml as it lies in docs/, and /docs, the same to read."""

from functools import cache
from pathlib import Path
from typing import Final

import yaml

from common import log
from workers.query import docs_page
from workers.query.frame import Context, Request, Response
from workers.query.refusal import Refusal

FILE: Final = Path(__file__).resolve().parent.parent.parent / "docs" / "openapi.yaml"
_POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = {"Content-Security-Policy": _POLICY, "Referrer-Policy": "no-referrer"}

logger = log.get("query.http")


def openapi(context: Context, asked: Request) -> Response:
    """The OpenAPI document."""
    return Response(_file(), content_type="application/yaml")


def page(context: Context, asked: Request) -> Response:
    """The same as a page that needs nothing else."""
    return Response(_page(), content_type="text/html; charset=utf-8", headers=_HEADERS)


@cache
def _file() -> bytes:
    try:
        return FILE.read_bytes()
    except OSError as error:
        logger.warning("no description of the HTTP API", file=str(FILE), reason=error.strerror)
        raise Refusal(404, "not_found", "docs/openapi.yaml is not installed beside this worker") from error


@cache
def _page() -> bytes:
    return docs_page.render(yaml.safe_load(_file())).encode()
