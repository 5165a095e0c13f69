"""The application inside the test's process: WSGI calls, and a scatter whose nodes answer as they are told."""

import io
import json
from collections import Counter
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import msgspec

from common import bus, clock, config, protocol
from tests.workers.query.fake import make_ring
from workers.query import http
from workers.query.frame import Context
from workers.query.gather import Ask, Question
from workers.query.plan import Partitions, Plan

NOW_NS = 1_700_000_600 * 10**9
Answerer = Callable[[str, bytes, Any], Any]  # node, kind, request -> reply or ErrorReply


class Scattered:
    """In place of the scatter thread. answer: what a node replies; nodes in `away` reply nothing."""

    def __init__(self, answer: Answerer, partitions: int = 64) -> None:
        self.name, self.incarnation, self.ring_fault = "query-test", 7, "no ring yet"
        self.ring_trouble = ""
        self.plan: Plan | None = Plan.of(make_ring([10, 20, 30], partitions))
        self.counts: Counter[str] = Counter()
        self.ignored: Counter[str] = Counter()
        self.bus = bus.Bus()
        self.store: Any = None  # whoever asks what lies there puts one in place
        self.away: set[str] = set()
        self.asked: list[tuple[str, bytes, Any]] = []
        self._answer = answer

    def ask(self, question: Question) -> None:
        question.deadline_s = clock.monotonic_s() + question.timeout_s
        if self.plan is None:
            return
        while not question.complete() and question.error is None and (targets := question.targets(self.plan)):
            for node, partitions in targets.items():
                self._put(question, node, partitions)

    def _put(self, question: Question, node: str, partitions: Partitions) -> None:
        assert self.plan is not None
        ask = Ask(node, partitions, question, question.timeout_s, question.deadline_s)
        request = question.body(self.plan, ask)
        self.asked.append((node, question.kind, request))
        if node in self.away:
            question.refuse(node, "is away", 0.0)
            return
        reply = self._answer(node, question.kind, request)
        if isinstance(reply, protocol.ErrorReply):
            question.reject(ask, reply)
        else:
            question.accept(ask, msgspec.msgpack.encode(reply))


class Inside:
    """The application, called as granian calls it."""

    def __init__(self, answer: Answerer = lambda *_: {}, **query: Any) -> None:
        self.scatter = Scattered(answer)
        settings = config.Settings(query=config.Query(**query))
        self.context = Context(self.scatter, settings, lambda: NOW_NS)  # type: ignore[arg-type]
        self.app = http.make_app(self.context)

    def open(
        self, method: str, url: str, body: bytes | Any = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], Iterable[bytes]]:
        """Status, headers and the parts as the application gives them. body: bytes, a file, or to be JSON."""
        parts = urlsplit(url)
        if not isinstance(body, bytes) and not hasattr(body, "read"):
            body = json.dumps(body).encode()
        environ = {
            "REQUEST_METHOD": method, "PATH_INFO": parts.path, "QUERY_STRING": parts.query, "SERVER_NAME": "x",
            "SERVER_PORT": "80", "SERVER_PROTOCOL": "HTTP/1.1", "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(body) if isinstance(body, bytes) else body, "REMOTE_ADDR": "127.0.0.1",
        }  # fmt: skip
        environ |= {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in (headers or {}).items()}
        if "HTTP_CONTENT_LENGTH" in environ:
            environ["CONTENT_LENGTH"] = environ.pop("HTTP_CONTENT_LENGTH")
        sent = SimpleNamespace(status=0, headers={})

        def start(status: str, found: list[tuple[str, str]], exc_info: Any = None) -> None:
            sent.status, sent.headers = int(status.split()[0]), {name.lower(): value for name, value in found}

        result = self.app(environ, start)
        return sent.status, sent.headers, result

    def call(self, method: str, url: str, body: Any = b"", headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """Status and answer, JSON decoded."""
        status, found, parts = self.open(method, url, body, headers)
        data = b"".join(parts)
        return status, json.loads(data) if found["content-type"] == "application/json" else data
