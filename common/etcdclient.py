"""Calls to an etcd cluster, by the HTTP gateway of its version 3 API (etcd3gw).

Owns connections, the order in which members are tried, and deadlines. Knows nothing of rings. The token of a user is
etcdtoken.py's.
A call is over within its timeout, whatever the members do: each that is left gets an equal part of what is left, and
the one that answered last is asked first. A call may have reached a member that did not answer in time, and be carried
out then or later: whoever writes compares revisions, so that such a one, and a second try elsewhere, do no harm.

Any thread: each has connections of its own.
"""

import base64
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from common import clock
from common.errors import ConfigError, RingStoreError
from common.etcdtoken import Slow, Tokens

try:
    from etcd3gw import exceptions
    from etcd3gw.client import Etcd3Client
except ImportError as missing:
    raise ConfigError("a ring store in etcd wants the package etcd3gw: pip install 'minitrue[etcd]'") from missing

SILENCE_S: Final = 5.0  # after which a watch is made anew: a cut network says nothing
SHORTEST_S: Final = 0.05  # that a member gets to answer, however little time is left
_AWAY: Final = (exceptions.ConnectionFailedError, exceptions.ConnectionTimeoutError, exceptions.InternalServerError)
_ERRORS: Final = (exceptions.Etcd3Exception, OSError, ValueError)  # OSError: all of requests; ValueError: no JSON
_SYSTEM_ERROR: Final = re.compile(r"(?:\[Errno -?\d+\] |Error\(\d+, ')([^'\")]+)")
_TLS_ERROR: Final = re.compile(r"\[SSL[^]]*\] ([^'\"(]+)")
_TOKEN_GONE: Final = ("invalid auth token", "auth store is old")


class Tls(NamedTuple):
    """PEM files: the authorities to trust; certificate and key of ours, or None where none is asked for."""

    ca_file: Path
    cert_file: Path | None
    key_file: Path | None


class User(NamedTuple):
    name: str
    password: str


class EtcdClient:
    """Constant after construction but for the member that answered last: a stale value costs a try."""

    def __init__(
        self, endpoints: Sequence[tuple[str, int]], timeout_s: float, tls: Tls | None = None, user: User | None = None
    ) -> None:
        """endpoints: host and port of members, at least one. timeout_s: for a whole call. Asks nobody yet."""
        self.timeout_s = timeout_s
        self._endpoints = list(endpoints)
        self._tls = tls
        self._user = user
        self._first = 0
        self._connections = threading.local()
        first_s = timeout_s / len(self._endpoints)
        self._tokens = Tokens(self._authenticate, len(self._endpoints), first_s, (*_AWAY, OSError))

    def call(self, path: str, body: dict[str, Any], timeout_s: float | None = None) -> dict[str, Any]:
        """The answer to a request that may be carried out more than once, or late.

        Raises RingStoreError: nobody answered in time, or one refused; the request may be carried out all the same.
        """
        deadline_s = clock.monotonic_s() + (timeout_s or self.timeout_s)
        failures = []
        for tried, at in enumerate(self._order()):
            left_s = (deadline_s - clock.monotonic_s()) / (len(self._endpoints) - tried)
            try:
                answer = self._ask(at, path, body, max(SHORTEST_S, left_s))
            except _ERRORS as error:
                failures.append(f"{self._name(at)} {reason_of(error)}")
                if isinstance(error, exceptions.Etcd3Exception) and not isinstance(error, _AWAY):
                    break  # it knows better: the others would say the same
                continue
            self._first = at
            return answer
        raise RingStoreError(f"etcd: {'; '.join(failures)}")

    def watch(self, key: bytes, end: bytes) -> Iterator[None]:
        """Yields when the keys from `key` to `end` are watched, and when something has happened to them; ends after
        SILENCE_S of silence, or when the member does. Raises RingStoreError where it cannot be begun.
        """
        at = self._first
        client, headers = self._connection(at), self._headers(at)
        wanted = {"create_request": {"key": encoded(key), "range_end": encoded(end)}}
        waits = (self.timeout_s, SILENCE_S)
        try:
            url = client.get_url("/watch")
            answer = client.session.post(url, json=wanted, stream=True, timeout=waits, headers=headers)
            with answer:
                if answer.status_code != 200:
                    raise exceptions.Etcd3Exception(answer.text)
                for part in answer.iter_content(chunk_size=None):
                    if part.strip():
                        yield
        except _ERRORS as error:
            if "Read timed out" not in str(error):
                raise RingStoreError(f"etcd: {self._name(at)} {reason_of(error)}") from error

    def _order(self) -> list[int]:
        return [(self._first + step) % len(self._endpoints) for step in range(len(self._endpoints))]

    def _name(self, at: int) -> str:
        host, port = self._endpoints[at]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def _ask(self, at: int, path: str, body: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """One member's answer. A connection that was kept and is broken, and a token that is gone, are renewed once."""
        client = self._connection(at)
        client.timeout = timeout_s
        headers = self._authorized(at, timeout_s)
        try:
            return self._post(client, path, body, headers)
        except exceptions.ConnectionFailedError as error:
            if _is_answer(error):
                raise
        except exceptions.Etcd3Exception as error:
            if not headers or not any(text in reason_of(error) for text in _TOKEN_GONE):
                raise
            self._tokens.drop(headers["Authorization"])
        return self._post(client, path, body, self._authorized(at, timeout_s))

    @staticmethod
    def _post(client: Etcd3Client, path: str, body: dict[str, Any], headers: dict[str, str]) -> dict[str, Any]:
        answer = client.post(client.get_url(path), json=body, headers=headers)
        if not isinstance(answer, dict):
            raise ValueError(f"answers {str(answer)[:50]!r}, want an object: is it etcd?")
        return answer

    def _headers(self, at: int) -> dict[str, str]:
        try:
            return self._authorized(at, self.timeout_s)
        except _ERRORS as error:
            raise RingStoreError(f"etcd: {self._name(at)} {reason_of(error)}") from error

    def _authorized(self, at: int, timeout_s: float) -> dict[str, str]:
        return {} if self._user is None else {"Authorization": self._tokens.get(timeout_s, at)}

    def _authenticate(self, at: int, timeout_s: float) -> str:
        """A new token from a member. Raises Slow, _ERRORS."""
        if self._user is None:
            raise ValueError("BUG: no user")
        client = self._connection(at)
        client.timeout = timeout_s
        wanted = {"name": self._user.name, "password": self._user.password}
        try:
            answer = client.post(client.get_url("/auth/authenticate"), json=wanted)
        except exceptions.ConnectionTimeoutError as error:
            raise Slow(reason_of(error)) from error
        if not isinstance(answer, dict) or "token" not in answer:
            raise ValueError(f"answers {str(answer)[:50]!r}, want a token: is it etcd?")
        return str(answer["token"])

    def _connection(self, at: int) -> Etcd3Client:
        """This thread's connection to a member."""
        mine: dict[int, Etcd3Client] | None = getattr(self._connections, "mine", None)
        if mine is None:
            mine = self._connections.mine = {}
        if at not in mine:
            mine[at] = self._connect(*self._endpoints[at])
        return mine[at]

    def _connect(self, host: str, port: int) -> Etcd3Client:
        client = Etcd3Client(host, port, "http" if self._tls is None else "https", api_path="/v3/")
        client.session.trust_env = False  # no proxy, and no .netrc, comes between a worker and its ring
        if self._tls is not None:
            client.session.verify = str(self._tls.ca_file)
            if self._tls.cert_file and self._tls.key_file:
                client.session.cert = (str(self._tls.cert_file), str(self._tls.key_file))
        return client


def encoded(data: bytes) -> str:
    """Bytes as the gateway takes them: base64."""
    return base64.b64encode(data).decode()


def decoded(text: str) -> bytes:
    """Bytes from the gateway. Raises ValueError."""
    return base64.b64decode(text, validate=True)


def _is_answer(error: exceptions.Etcd3Exception) -> bool:
    """Whether a member said so itself, and not the connection."""
    return (error.detail_text or "").lstrip().startswith("{")


def reason_of(error: Exception) -> str:
    """Why a call failed, in few words."""
    text = (error.detail_text if isinstance(error, exceptions.Etcd3Exception) else "") or str(error)
    if isinstance(error, exceptions.ConnectionTimeoutError) and not _is_answer(error):
        return "does not answer in time"
    for pattern in (_TLS_ERROR, _SYSTEM_ERROR):
        if found := pattern.search(text):
            return found[1].strip()
    try:
        said = msgspec.json.decode(text)
        return f"says: {said.get('message') or said['error']}"
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, AttributeError):
        return text[-200:] or type(error).__name__
