"""The load of bench move beside points: one client that asks what it knows the answers of, and the bridge's PUBACKs.

`Asking` owns a thread and its connection; `take` may be called by any.
"""

import http.client
import itertools
import json
import re
import statistics
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Self
from urllib.parse import urlsplit

ANSWER_S: Final = 30.0
REST_S: Final = 0.005  # between questions: the client is one of the guests of this machine


class Question(NamedTuple):
    """body: of POST /query; result, count: what the answer has to say."""

    body: str
    result: float
    count: int

    def is_answered(self, status: int, answer: bytes) -> bool:
        """Whether this is the whole and right answer."""
        if status != 200:
            return False
        found: dict[str, Any] = json.loads(answer)
        right = (found["result"], found["count"]) == (self.result, self.count)
        return right and bool(found["coverage"]["complete"])


class Asked(NamedTuple):
    """seconds: that each answer took; wrong: how many were refused, not whole or not right."""

    seconds: tuple[float, ...]
    wrong: int

    def quantile_ms(self, share: float) -> float:
        """0 where nothing was asked."""
        if len(self.seconds) < 2:
            return 1e3 * sum(self.seconds)
        return 1e3 * statistics.quantiles(self.seconds, n=100)[round(100 * share) - 1]


class Asking:
    """Asks the questions in turn, again and again, while its block runs."""

    def __init__(self, url: str, questions: Sequence[Question]) -> None:
        self._url = urlsplit(url)
        self._questions = questions
        self._lock = threading.Lock()
        self._seconds: list[float] = []  # guarded by the lock, as is:
        self._wrong = 0
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="asking")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()

    def take(self) -> Asked:
        """What was asked since the last time."""
        with self._lock:
            found = Asked(tuple(self._seconds), self._wrong)
            self._seconds, self._wrong = [], 0
        return found

    def _ask(self) -> None:
        connection = http.client.HTTPConnection(str(self._url.hostname), self._url.port, timeout=ANSWER_S)
        for question in itertools.cycle(self._questions):
            if self._ends.wait(REST_S):
                break
            begun_s = time.perf_counter()
            is_right = self._is_answered(connection, question)
            with self._lock:
                self._seconds.append(time.perf_counter() - begun_s)
                self._wrong += not is_right
        connection.close()

    @staticmethod
    def _is_answered(connection: http.client.HTTPConnection, question: Question) -> bool:
        try:
            connection.request("POST", "/query", question.body)
            response = connection.getresponse()
            return question.is_answered(response.status, response.read())
        except (OSError, http.client.HTTPException):
            connection.close()  # counts as failed; the next one connects anew
            return False


class Acks(NamedTuple):
    """counts: of PUBACKs by upper bound of the bucket (seconds), not cumulative."""

    counts: tuple[tuple[float, int], ...]

    @classmethod
    def of(cls, url: str) -> "Acks":
        """All until now, of all bridges."""
        with urllib.request.urlopen(url + "/metrics", timeout=ANSWER_S) as answer:
            text = answer.read().decode()
        sums: Counter[float] = Counter()
        for bound, count in re.findall(
            r'^minitrue_bridge_puback_seconds_bucket\{.*le="([^"]+)".*\} (\S+)$', text, re.M
        ):
            sums[float(bound)] += int(float(count))
        before, found = 0, []
        for bound in sorted(sums):
            found.append((bound, sums[bound] - before))
            before = sums[bound]
        return cls(tuple(found))

    def since(self, earlier: "Acks") -> "Acks":
        """Those of between."""
        then = dict(earlier.counts)
        return Acks(tuple((bound, count - then.get(bound, 0)) for bound, count in self.counts))

    def quantile_ms(self, share: float) -> float:
        """Estimated within its bucket; of the last one, which has no end, where it begins. 0 where there are none."""
        wanted, low_s = share * sum(count for _, count in self.counts), 0.0
        for bound_s, count in self.counts:
            if count and wanted <= count:
                return 1e3 * (low_s if bound_s == float("inf") else low_s + (bound_s - low_s) * wanted / count)
            wanted -= count
            low_s = bound_s if bound_s != float("inf") else low_s
        return 1e3 * low_s
