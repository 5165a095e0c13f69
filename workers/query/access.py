"""Who may do what: bearer tokens, looked up in the tokens file.

Owns the tokens in force; writes nothing. A change of the file counts within CHECK_S. While the file cannot be read
nobody is let in: it may have been changed to keep somebody out. Any thread of the pool.
"""

import threading
from pathlib import Path
from typing import Final

from common import clock, config, log, tokens
from common.errors import ConfigError
from common.tokens import Token
from workers.query.refusal import Refusal

CHECK_S: Final = 1.0  # between looks at the file
REALM: Final = 'Bearer realm="minitrue"'

logger = log.get("query.access")


class Denied(Refusal):
    """A request whose token is missing, unknown, over or too weak. challenge: the header WWW-Authenticate."""

    def __init__(self, status: int, error: str, message: str, challenge: str) -> None:
        super().__init__(status, error, message)
        self.challenge = challenge


class Access:
    """Tokens in force. Without a tokens file everybody may do everything."""

    def __init__(self, settings: config.Settings) -> None:
        """Raises ConfigError for a tokens file that cannot be used."""
        self._path: Path | None = None
        self._tokens: list[Token] | None = []  # None: the file cannot be read now
        self._seen: tuple[int, ...] = ()
        self._lock = threading.Lock()
        self._look_s = clock.monotonic_s() + CHECK_S
        if settings.query.tokens_file:
            self._path = settings.path(settings.query.tokens_file)
            self._seen = _mark(self._path)
            self._tokens = tokens.load(self._path)

    def check(self, authorization: str, scope: str) -> str:
        """The name of the token in an Authorization header that allows a scope; "" where none is needed.

        scope: "none" needs no token, "any" one of whatever scopes. Raises Denied, or Refusal while the tokens cannot
        be read.
        """
        if scope == "none":
            return ""
        token = self.token(authorization)
        if token is None:
            return ""
        if scope != "any" and not token.allows(scope):
            text = f"the token {token.name} lacks the scope {scope}, it has {', '.join(token.scopes)}"
            raise Denied(403, "forbidden", text, f'{REALM}, error="insufficient_scope", scope="{scope}"')
        return token.name

    def token(self, authorization: str) -> Token | None:
        """The token in an Authorization header; None where none is needed. Raises as `check` does."""
        if self._path is None:
            return None
        known = self._in_force(self._path)
        if known is None:
            raise Refusal(503, "not_ready", "the tokens cannot be read, so nobody is let in; the worker's log says why")
        token = tokens.find(known, _bearer(authorization))
        if token is None or token.is_over(clock.wall_ns()):
            what = "is not known" if token is None else "has expired"
            raise Denied(401, "unauthorized", f"the token {what}", f'{REALM}, error="invalid_token"')
        return token

    def _in_force(self, path: Path) -> list[Token] | None:
        if clock.monotonic_s() >= self._look_s:
            with self._lock:
                if clock.monotonic_s() >= self._look_s:
                    self._look(path)
                    self._look_s = clock.monotonic_s() + CHECK_S
        return self._tokens

    def _look(self, path: Path) -> None:
        mark = _mark(path)  # before it is read: what is replaced meanwhile is seen the next time
        if mark == self._seen:
            return
        self._seen = mark
        try:
            self._tokens = tokens.load(path)
        except ConfigError as error:
            self._tokens = None
            logger.error("nobody is let in", reason=str(error))
        else:
            logger.info("tokens read", count=len(self._tokens))


def _bearer(authorization: str) -> str:
    """The token of an Authorization header."""
    scheme, _, text = authorization.strip().partition(" ")
    if scheme.lower() == "bearer" and text.strip():
        return text.strip()
    text = "want the header Authorization: Bearer TOKEN (one in the URL does not count)"
    raise Denied(401, "unauthorized", text, REALM)


def _mark(path: Path) -> tuple[int, ...]:
    """What changes when a file does; () for one that is not there."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size
