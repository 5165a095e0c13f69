"""Who is let in: tokens, scopes, expiry, changes of the file, for every route; all in this process."""

import json
import os

import pytest

from common import clock, config, tokens
from common.config import Settings
from common.errors import ConfigError
from common.tokens import Token
from workers.query import http
from workers.query.access import CHECK_S, Access
from workers.query.frame import Context, Request
from workers.query.refusal import Refusal
from workers.query.routes import ROUTES

TEXTS = {scope: f"secret-of-{scope}" for scope in tokens.SCOPES}
CREATED = "2024-01-01T00:00:00Z"


def _token(scope, **changes):
    return Token(scope, tokens.digest(TEXTS[scope]), [scope], CREATED, **changes)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tokens.json"
    tokens.save(path, [_token(scope) for scope in tokens.SCOPES])
    return path


def _settings(file):
    return Settings(query=config.Query(tokens_file=str(file)))


@pytest.fixture
def access(file):
    return Access(_settings(file))


def _refusal(access, authorization, scope):
    with pytest.raises(Refusal) as caught:
        access.check(authorization, scope)
    return caught.value


@pytest.mark.parametrize("held", tokens.SCOPES)
@pytest.mark.parametrize("wanted", tokens.SCOPES)
def test_a_token_opens_its_scope_and_admin_opens_all(access, held, wanted):
    if held in (wanted, "admin"):
        assert access.check(f"Bearer {TEXTS[held]}", wanted) == held
    else:
        denied = _refusal(access, f"Bearer {TEXTS[held]}", wanted)
        assert (denied.status, denied.error) == (403, "forbidden")
        assert str(denied) == f"the token {held} lacks the scope {wanted}, it has {held}"
        assert denied.challenge == f'Bearer realm="minitrue", error="insufficient_scope", scope="{wanted}"'


@pytest.mark.parametrize(
    ("authorization", "text"),
    [
        ("", "want the header Authorization: Bearer TOKEN"),
        ("Bearer", "want the header Authorization"),
        ("Bearer  ", "want the header Authorization"),
        (TEXTS["read"], "want the header Authorization"),
        (f"Basic {TEXTS['read']}", "want the header Authorization"),
        ("Bearer x", "the token is not known"),
        (f"Bearer {TEXTS['read']}x", "the token is not known"),
        (f"Bearer {tokens.digest(TEXTS['read'])}", "the token is not known"),  # the hash is no token
        ("Bearer \udcff\xff", "the token is not known"),
    ],
)
def test_who_has_no_token_is_told_how_to_show_one(access, authorization, text):
    denied = _refusal(access, authorization, "read")
    assert (denied.status, denied.error) == (401, "unauthorized")
    assert str(denied).startswith(text)
    assert denied.challenge.startswith('Bearer realm="minitrue"')


def test_the_scheme_is_taken_in_any_case(access):
    assert access.check(f"bEARER   {TEXTS['read']} ", "read") == "read"


def test_an_expired_token_is_none(file, access, monkeypatch):
    tokens.save(file, [_token("read", expires="2024-02-01T00:00:00Z")])
    access = Access(_settings(file))
    over_ns = tokens.timestamps.from_text("2024-02-01T00:00:00Z")
    monkeypatch.setattr(clock, "wall_ns", lambda: over_ns - 1)
    assert access.check(f"Bearer {TEXTS['read']}", "read") == "read"
    monkeypatch.setattr(clock, "wall_ns", lambda: over_ns)
    denied = _refusal(access, f"Bearer {TEXTS['read']}", "read")
    assert (denied.status, str(denied)) == (401, "the token has expired")


def test_without_a_tokens_file_everybody_may_do_everything():
    assert Access(Settings()).check("", "admin") == ""


@pytest.fixture
def later(monkeypatch):
    """Lets so much time pass that the file is looked at again."""
    passed = [clock.monotonic_s()]
    monkeypatch.setattr(clock, "monotonic_s", lambda: passed[0])

    def pass_time(seconds=CHECK_S):
        passed[0] += seconds

    return pass_time


def test_changes_of_the_file_count_within_a_second(file, later):
    access = Access(_settings(file))
    tokens.save(file, [_token("write")])
    assert access.check(f"Bearer {TEXTS['read']}", "read") == "read"  # not looked at again yet
    later()
    assert _refusal(access, f"Bearer {TEXTS['read']}", "read").status == 401
    assert access.check(f"Bearer {TEXTS['write']}", "write") == "write"


@pytest.mark.parametrize("harm", ["gone", "garbage", "open"])
def test_nobody_is_let_in_while_the_file_cannot_be_used(file, later, harm):
    access = Access(_settings(file))
    good = file.read_text()
    if harm == "gone":
        file.unlink()
    elif harm == "garbage":
        file.write_text("x")
    else:
        file.chmod(0o644)
    later()
    closed = _refusal(access, f"Bearer {TEXTS['admin']}", "read")
    assert (closed.status, closed.error) == (503, "not_ready")
    file.unlink(missing_ok=True)
    descriptor = os.open(file, os.O_CREAT | os.O_WRONLY, 0o600)
    os.write(descriptor, good.encode())
    os.close(descriptor)
    later()
    assert access.check(f"Bearer {TEXTS['admin']}", "read") == "admin"


def test_a_file_that_cannot_be_used_at_start_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"query.tokens_file: cannot read .*none.json: No such file"):
        Access(_settings(tmp_path / "none.json"))


# Routes


@pytest.fixture
def application(file):
    return http.make_app(Context(_NoScatter(), _settings(file)))


class _NoScatter:
    """Requests that are denied ask nobody."""

    name, bus, plan, store = "query", None, None, None


def _call(application, path, method, **headers):
    told = {}

    def start_response(status, found, exc_info=None):
        told["status"], told["headers"] = int(status.split()[0]), dict(found)

    environ = {"REQUEST_METHOD": method, "PATH_INFO": path, "SERVER_NAME": "x", "SERVER_PORT": "1",
               "wsgi.url_scheme": "http", "wsgi.input": None, "wsgi.errors": None, **headers}  # fmt: skip
    body = b"".join(application(environ, start_response))
    return told["status"], told["headers"], body


@pytest.mark.parametrize(
    ("route", "method"),
    [(route, method) for route in ROUTES for method in route.methods],
    ids=lambda part: part if isinstance(part, str) else part.path,
)
def test_every_route_but_the_open_ones_wants_a_token_of_its_scope(application, route, method):
    if route.scope == "none":
        assert route.path in ("/healthz", "/docs", "/openapi.yaml")
        return
    status, headers, body = _call(application, route.path, method, QUERY_STRING=f"access_token={TEXTS['admin']}")
    assert (status, headers["Www-Authenticate"]) == (401, 'Bearer realm="minitrue"')
    assert json.loads(body)["error"] == "unauthorized"
    if route.scope == "any":
        assert route.path == "/api/v1/me"
        return
    other = next(scope for scope in ("read", "write") if scope != route.scope)
    status, headers, body = _call(application, route.path, method, HTTP_AUTHORIZATION=f"Bearer {TEXTS[other]}")
    assert (status, json.loads(body)["error"]) == (403, "forbidden")
    assert f'scope="{route.scope}"' in headers["Www-Authenticate"]


@pytest.mark.parametrize("held", tokens.SCOPES)
def test_whoever_has_a_token_learns_whose_it_is_and_what_it_allows(application, held):
    status, _, body = _call(application, "/api/v1/me", "GET", HTTP_AUTHORIZATION=f"Bearer {TEXTS[held]}")
    told = json.loads(body)
    assert (status, told["name"], told["auth"]) == (200, held, True)
    assert told["scopes"] == (list(tokens.SCOPES) if held == "admin" else [held])


def test_the_page_wants_no_token(application):
    for path in ("/", "/assets/none.js"):
        status, headers, _ = _call(application, path, "GET")
        assert status in (200, 404)
        assert "Www-Authenticate" not in headers


def test_a_handler_knows_who_asks(file):
    context = Context(_NoScatter(), _settings(file))
    asked = Request({"REQUEST_METHOD": "GET", "PATH_INFO": "/", "HTTP_AUTHORIZATION": f"Bearer {TEXTS['delete']}"}, 10)
    http.authorize(context, asked, "delete")
    assert asked.who == "delete"


def test_no_header_allows_pages_of_other_origins(application):
    _, headers, _ = _call(application, "/healthz", "GET", HTTP_ORIGIN="http://elsewhere.example")
    assert not [name for name in headers if name.lower().startswith("access-control")]
