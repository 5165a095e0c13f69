"""The page's files: which are served, how they are compressed and cached, and what a browser is told about them."""

import gzip
import os
from pathlib import Path
from typing import Any

import pytest

from tests.workers.query.inside import Inside
from workers.query import page

SCRIPT = b"console.log(1);" * 50
INDEX = b"<!doctype html><title>minitrue</title>"
HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
STRICT = {
    "default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self' data: blob:", "connect-src 'self'",
    "font-src 'self'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'",
}  # fmt: skip


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """A built page, as vite leaves one; what stands for brotli is not looked into."""
    folder = tmp_path / "dist"
    (folder / "assets").mkdir(parents=True)
    (folder / "index.html").write_bytes(INDEX)
    (folder / "index.html.gz").write_bytes(gzip.compress(INDEX))
    (folder / "assets" / "main-1a2b3c.js").write_bytes(SCRIPT)
    (folder / "assets" / "main-1a2b3c.js.gz").write_bytes(gzip.compress(SCRIPT))
    (folder / "assets" / "main-1a2b3c.js.br").write_bytes(b"brotli")
    (folder / "assets" / "main-4d5e6f.css").write_bytes(b"body{}")
    (folder / "secret.txt").write_bytes(b"beside the page")
    return folder


@pytest.fixture
def inside(built: Path) -> Inside:
    return Inside(page_dir=str(built))


def get(inside: Inside, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    status, found, parts = inside.open(method, path, headers=named)
    return status, found, b"".join(parts)


def policy(headers: dict[str, str]) -> set[str]:
    return {each.strip() for each in headers["content-security-policy"].split(";")}


def test_a_browser_gets_the_page_and_a_program_what_is_here(inside: Inside) -> None:
    status, headers, body = get(inside, "/", **HTML)
    assert (status, headers["content-type"], body) == (200, "text/html; charset=utf-8", INDEX)
    assert headers["cache-control"] == "no-cache"
    assert headers["vary"] == "Accept, Accept-Encoding"
    for accept in ("*/*", "application/json", ""):
        status, found = inside.call("GET", "/", headers={"Accept": accept})
        assert (status, found["name"]) == (200, "minitrue")
        assert "GET /api/v1/me" in found["routes"]


@pytest.mark.parametrize("path", ["/", "/assets/main-1a2b3c.js", "/assets/main-4d5e6f.css"])
def test_a_browser_is_told_to_allow_nothing_from_elsewhere(inside: Inside, path: str) -> None:
    _, headers, _ = get(inside, path, **HTML)
    assert policy(headers) == STRICT
    assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")
    _, headers, _ = get(inside, path, **HTML, If_None_Match="*")
    assert policy(headers) == STRICT


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [
        ("gzip, deflate, br", "br"),
        ("br;q=1.0, gzip;q=0.8", "br"),
        ("gzip", "gzip"),
        ("GZIP", "gzip"),
        ("br;q=0, gzip", "gzip"),
        ("br;q=0.0,gzip;q=0", None),
        ("br;q=much", None),
        ("deflate, zstd, identity", None),
        ("", None),
    ],
)
def test_the_best_encoding_that_the_client_takes_is_sent(inside: Inside, accepted: str, encoding: str | None) -> None:
    status, headers, body = get(inside, "/assets/main-1a2b3c.js", Accept_Encoding=accepted)
    assert (status, headers.get("content-encoding")) == (200, encoding)
    assert body == {"br": b"brotli", "gzip": gzip.compress(SCRIPT), None: SCRIPT}[encoding] or encoding == "gzip"
    assert encoding != "gzip" or gzip.decompress(body) == SCRIPT
    assert headers["content-type"] == "text/javascript; charset=utf-8"
    assert headers["vary"] == "Accept-Encoding"


def test_a_file_without_a_compressed_copy_is_sent_as_it_is(inside: Inside) -> None:
    status, headers, body = get(inside, "/assets/main-4d5e6f.css", Accept_Encoding="br, gzip")
    assert (status, headers.get("content-encoding"), body) == (200, None, b"body{}")
    assert headers["content-type"] == "text/css; charset=utf-8"


def test_what_has_a_hash_in_its_name_may_be_kept_for_ever(inside: Inside) -> None:
    _, headers, _ = get(inside, "/assets/main-1a2b3c.js")
    assert headers["cache-control"] == "public, max-age=31536000, immutable"


def test_who_has_a_file_is_not_sent_it_again(inside: Inside) -> None:
    for path in ("/", "/assets/main-1a2b3c.js"):
        _, headers, _ = get(inside, path, **HTML, Accept_Encoding="gzip")
        tag = headers["etag"]
        for condition in (tag, f"W/{tag}", f'"other", {tag}', "*"):
            status, again, body = get(inside, path, **HTML, Accept_Encoding="gzip", If_None_Match=condition)
            assert (status, again["etag"], body) == (304, tag, b"")
            assert again["cache-control"] == headers["cache-control"]
        assert get(inside, path, **HTML, Accept_Encoding="gzip", If_None_Match='"other"')[0] == 200
        other = get(inside, path, **HTML)[1]["etag"]
        assert other != tag  # of other bytes


@pytest.mark.parametrize(
    "path",
    [
        "/assets/", "/assets/none.js", "/assets/main-1a2b3c.js.gz", "/assets/../secret.txt", "/assets/..",
        "/secret.txt", "/assets/%2e%2e%2fsecret.txt", "/assets//etc/passwd", "/index.html", "/assets/\xff",
    ],
)  # fmt: skip
def test_no_path_leads_elsewhere(inside: Inside, path: str) -> None:
    status, found = inside.call("GET", path)
    assert (status, found["error"]) == (404, "not_found")


def test_a_head_has_no_body(inside: Inside) -> None:
    status, headers, body = get(inside, "/assets/main-1a2b3c.js", "HEAD")
    assert (status, headers["content-length"], body) == (200, str(len(SCRIPT)), b"")


def test_where_it_is_not_built_a_browser_is_told_how_to_and_the_rest_works(tmp_path: Path) -> None:
    inside = Inside(page_dir=str(tmp_path))
    status, headers, body = get(inside, "/", **HTML)
    assert (status, headers["content-type"], headers["cache-control"]) == (200, "text/html; charset=utf-8", "no-store")
    assert b"make env" in body and b"npm ci &amp;&amp; npm run build" in body
    assert b"<script" not in body and b"<style" not in body and b"style=" not in body
    assert policy(headers) == STRICT
    assert inside.call("GET", "/")[1]["name"] == "minitrue"
    assert inside.call("GET", "/healthz")[0] == 200
    assert inside.call("GET", "/assets/main.js")[0] == 404


def test_a_folder_that_is_no_built_page_is_not_read(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert page.load(built).home is not None
    monkeypatch.setattr(page, "MAX_BYTES", len(SCRIPT))
    assert page.load(built) == page.NONE
    monkeypatch.undo()
    monkeypatch.setattr(page, "MAX_FILES", 3)
    assert page.load(built) == page.NONE


def test_files_that_cannot_be_read_leave_the_worker_alive(built: Path) -> None:
    (built / "assets" / "loop.js").symlink_to("loop.js")
    assert page.load(built) == page.NONE


def test_folders_and_pipes_among_the_assets_are_left_out(built: Path) -> None:
    (built / "assets" / "deeper").mkdir()
    os.mkfifo(built / "assets" / "pipe.js")  # reading it would wait for ever
    assert set(page.load(built).assets) == {"main-1a2b3c.js", "main-4d5e6f.css"}


def test_pages_of_other_origins_are_one_more_reason_to_vary(built: Path) -> None:
    inside = Inside(page_dir=str(built), cors_origins=["https://a.example"])
    seen: list[tuple[str, str]] = []

    def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> None:
        seen.extend(headers)

    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/assets/main-4d5e6f.css", "SERVER_NAME": "x", "SERVER_PORT": "1",
               "wsgi.url_scheme": "http", "HTTP_ORIGIN": "https://a.example"}  # fmt: skip
    b"".join(inside.app(environ, start))
    assert {value for name, value in seen if name == "Vary"} == {"Origin", "Accept-Encoding"}
