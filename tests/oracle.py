"""What answers may be while points flow, are deleted and published again, and a checker that asks all the while.

The oracle knows of each point when it was published, when a bridge acknowledged it to the broker (as the proxy between
them saw it pass), when it was deleted. So of any moment it knows what an answer must hold, and what else it may. What
it says of an answer: each point that must be there is, with its value; nothing is there that may not be; nothing is
there twice; an answer that lacks anything says so.
"""

import bisect
import functools
import http.client
import json
import random
import threading
import time
import urllib.parse
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from tests.cluster import BridgeWorker, Series
from tests.flow import Flow
from tests.pipeline import client
from tests.proxy import Passage
from tests.tap import PUBACK, PUBLISH, Packet, delivery, packets, version_of

SPOKEN_OF_S: Final = 1.0  # an answer speaks of points that were acknowledged at least so long before
METRIC: Final = "m"


class Version:
    """A value that was published for a time, and when. acked_s: None while it is not acknowledged."""

    __slots__ = ("acked_s", "published_s", "value")

    def __init__(self, value: float, published_s: float) -> None:
        self.value = value
        self.published_s = published_s
        self.acked_s: float | None = None


class Deletion:
    """A range of a series that was deleted. done_s: when the answer came, None before."""

    def __init__(self, start_ns: int, end_ns: int, begun_s: float) -> None:
        self.start_ns, self.end_ns, self.begun_s = start_ns, end_ns, begun_s
        self.done_s: float | None = None

    def covers(self, time_ns: int) -> bool:
        return self.start_ns <= time_ns <= self.end_ns

    def may_take(self, version: Version, until_s: float) -> bool:
        """Whether the version may have been deleted by a moment."""
        return self.begun_s <= until_s and (self.done_s is None or version.published_s < self.done_s)

    def has_taken(self, version: Version, at_s: float) -> bool:
        """Whether it is gone for sure since a moment."""
        is_older = version.acked_s is not None and version.acked_s < self.begun_s
        return is_older and self.done_s is not None and self.done_s <= at_s


class Past:
    """All that happened to a series: versions by time, times ascending."""

    def __init__(self) -> None:
        self.times: list[int] = []
        self.versions: dict[int, list[Version]] = {}
        self.deletions: list[Deletion] = []

    def add(self, time_ns: int, version: Version) -> None:
        if time_ns not in self.versions:
            bisect.insort(self.times, time_ns)
        self.versions.setdefault(time_ns, []).append(version)

    def between(self, start_ns: int, end_ns: int) -> list[int]:
        return self.times[bisect.bisect_left(self.times, start_ns) : bisect.bisect_right(self.times, end_ns)]

    def allowed(self, time_ns: int, begun_s: float, ended_s: float) -> tuple[float | None, set[float]]:
        """What an answer between two moments has to say of a time, None for nothing, and what it may say."""
        must, may = None, set()
        deletions = [each for each in self.deletions if each.covers(time_ns)]
        for version in self.versions[time_ns]:
            if version.published_s > ended_s or any(each.has_taken(version, begun_s) for each in deletions):
                continue
            may.add(version.value)
            is_spoken_of = version.acked_s is not None and version.acked_s + SPOKEN_OF_S <= begun_s
            if is_spoken_of and not any(each.may_take(version, ended_s) for each in deletions):
                must = version.value if must is None else max(must, version.value)
        return must, may


class Wrong(AssertionError):
    """An answer that no order of events explains."""


class Oracle:
    """What happened to every series. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._series: dict[Series, Past] = defaultdict(Past)

    def published(self, series: Series, time_ns: int, value: float) -> None:
        with self._lock:
            self._series[series].add(time_ns, Version(value, time.monotonic()))

    def acked(self, series: Series, time_ns: int, value: float) -> None:
        """A bridge has acknowledged it to the broker. Points of other flows are none of ours."""
        with self._lock:
            past = self._series.get(series)
            for version in past.versions.get(time_ns, ()) if past else ():
                if version.value == value and version.acked_s is None:
                    version.acked_s = time.monotonic()

    def deleting(self, series: Series, start_ns: int, end_ns: int) -> Deletion:
        """Before it is asked for; `done_s` is the caller's to set when the answer is there."""
        deletion = Deletion(start_ns, end_ns, time.monotonic())
        with self._lock:
            self._series[series].deletions.append(deletion)
        return deletion

    @property
    def series(self) -> list[Series]:
        with self._lock:
            return list(self._series)

    @property
    def unacked(self) -> int:
        """Points that no bridge has acknowledged."""
        with self._lock:
            return sum(
                each.acked_s is None
                for past in self._series.values()
                for some in past.versions.values()
                for each in some
            )

    def acked_times(self, series: Series) -> list[int]:
        """Times of which every version is acknowledged, and none deleted."""
        with self._lock:
            past = self._series[series]
            return [
                at
                for at in past.times
                if all(each.acked_s is not None for each in past.versions[at])
                and not any(each.covers(at) for each in past.deletions)
            ]

    def lowest(self, series: Series, time_ns: int) -> float:
        """The lowest value that was published for a time."""
        with self._lock:
            return min(each.value for each in self._series[series].versions[time_ns])

    def times(self, series: Series) -> list[int]:
        with self._lock:
            return list(self._series[series].times)

    def judge(
        self, series: Series, span: tuple[int, int], asked: tuple[float, float], rows: Sequence[tuple[int, float]],
        complete: bool,
    ) -> None:  # fmt: skip
        """Points that were the answer to a question of some span, asked from one moment to another. Raises Wrong."""
        twice = [at for at, times in Counter(at for at, _ in rows).items() if times > 1]
        if twice:
            raise Wrong(f"{series}: {len(twice)} points twice, at {twice[:5]}")
        found = dict(rows)
        with self._lock:
            past = self._series[series]
            allowed = {at: past.allowed(at, *asked) for at in past.between(*span)}
        strange = {at: value for at, value in found.items() if value not in allowed.get(at, (None, set()))[1]}
        if strange:
            raise Wrong(f"{series}: {len(strange)} points that may not be there: {self._told(series, strange)}")
        wanted = {at: must for at, (must, _) in allowed.items() if must is not None}
        lower = {at: value for at, value in found.items() if at in wanted and value < wanted[at]}
        if lower:
            raise Wrong(f"{series}: {len(lower)} older values: {self._told(series, lower)}")
        lost = [at for at in wanted if at not in found]
        if lost and complete:
            raise Wrong(f"{series}: {len(lost)} of {len(wanted)} points are missing: {self._told(series, lost)}")

    def judge_figures(
        self, series: Series, span: tuple[int, int], asked: tuple[float, float], count: int, total: float,
        complete: bool,
    ) -> bool:  # fmt: skip
        """The same for count and sum; whether there was only one right answer. Raises Wrong."""
        with self._lock:
            past = self._series[series]
            allowed = [past.allowed(at, *asked) for at in past.between(*span)]
        musts = [must for must, _ in allowed if must is not None]
        most = sum(bool(may) for _, may in allowed)
        if count > most or (complete and count < len(musts)):
            raise Wrong(f"{series}: count {count}, want {len(musts)} to {most}, complete={complete}")
        is_certain = all((must is None and not may) or may == {must} for must, may in allowed)
        if is_certain and complete and total != sum(musts):
            raise Wrong(f"{series}: sum {total} of {count}, want {sum(musts)}")
        return is_certain

    def _told(self, series: Series, times: Iterable[int]) -> str:
        """The first few of them and what happened to them, by the clock of now."""
        now, texts = time.monotonic(), []
        with self._lock:
            past = self._series[series]
            for at in sorted(times)[:3]:
                texts += [f"at {at}:"]
                for each in past.versions.get(at, []):
                    acked = "not acked" if each.acked_s is None else f"acked {now - each.acked_s:.2f} s ago"
                    texts.append(f"{each.value} published {now - each.published_s:.2f} s ago, {acked};")
                for cut in (each for each in past.deletions if each.covers(at)):
                    done = "not done" if cut.done_s is None else f"done {now - cut.done_s:.2f} s ago"
                    texts.append(f"deleted {now - cut.begun_s:.2f} s ago, {done};")
        return " ".join(texts)


class OracleFlow(Flow):
    """A flow whose points an oracle knows. `again`: points of deleted times, with other values."""

    def __init__(self, oracle: Oracle, port: int, **options: Any) -> None:
        self._oracle = oracle
        self._again: list[tuple[Series, int, float]] = []
        super().__init__(port, **options)

    def again(self, series: Series, times: Iterable[int], change: float = -0.5) -> None:
        """Publish some times once more, with values lower than before: a copy of the old one would win."""
        self._again += [(series, at, self._oracle.lowest(series, at) + change) for at in times]

    def _make(self, device: str, points: int) -> tuple[list[int], bytes]:
        if not self._again:
            return super()._make(device, points)
        made = []
        while self._again and len(made) < 20:
            series, at, value = self._again.pop()
            self._oracle.published(series, at, value)
            made.append({
                "device_id": series[0], "metric_name": series[1], "timestamp": at, "timestamp_unit": "ns",
                "value": value,
            })  # fmt: skip
        return [], json.dumps(made).encode()

    def _point(self, device: str) -> dict[str, Any]:
        point = super()._point(device)
        self._oracle.published((point["device_id"], METRIC), point["timestamp"], point["value"])
        return point


class Listener(threading.Thread):
    """Tells the oracle what bridges acknowledge. Ends with `stop`."""

    def __init__(self, oracle: Oracle, bridges: Iterable[BridgeWorker]) -> None:
        super().__init__(name="pubacks", daemon=True)
        self._oracle = oracle
        self._bridges = list(bridges)
        self._heard: dict[int, _Heard] = {}
        self._is_over = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._is_over.wait(0.03):
            self.listen()

    def stop(self) -> None:
        self._is_over.set()
        self.join(10)
        self.listen()

    def listen(self) -> None:
        """Take in what has passed by now."""
        for bridge in self._bridges:
            for passage in list(bridge.mqtt.passages):
                heard = self._heard.setdefault(id(passage), _Heard(passage))
                for payload in heard.acked():
                    self._tell(payload)

    def _tell(self, payload: bytes) -> None:
        made = json.loads(payload)
        for point in made if isinstance(made, list) else [made]:
            self._oracle.acked((point["device_id"], point["metric_name"]), point["timestamp"], point["value"])


class _Heard:
    """How far one connection has been read, and what is not acknowledged on it."""

    def __init__(self, passage: Passage) -> None:
        self._passage = passage
        self._at = {"up": 0, "down": 0}
        self._version = 0
        self._waiting: dict[int, bytes] = {}

    def acked(self) -> list[bytes]:
        """Payloads that were acknowledged since the last call."""
        said = self._next("up")  # first: what it acknowledges came down before
        for packet in self._next("down"):
            if packet.kind == PUBLISH and packet.flags & 6:
                told = delivery(packet, self._version or version_of(said[:1]))
                self._waiting[told.packet_id] = told.payload
        if said and not self._version:
            self._version = version_of(said[:1])
        ids = [int.from_bytes(packet.body[:2], "big") for packet in said if packet.kind == PUBACK]
        return [self._waiting.pop(each) for each in ids]

    def _next(self, way: str) -> list[Packet]:
        found = list(packets(bytes(self._passage.passed[way][self._at[way] :])))
        for packet in found:
            size = len(packet.body)
            self._at[way] += 2 + size + (size > 127) + (size > 16_383) + (size > 2_097_151)
        return found


class Checker(threading.Thread):
    """Asks one question after the other, and has the oracle judge the answers. Ends with `stop`, or with a fault.

    answers: how many of each kind: "complete", "incomplete", "unanswered" (nobody was there). certain: answers of
    which only one was right. worst_s: the longest time that an answer took.
    """

    def __init__(
        self, oracle: Oracle, url: str, seed: int = 0, pause_s: float = 0.06, verified: bool = False
    ) -> None:
        super().__init__(name="checker", daemon=True)
        self.answers: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.certain = 0
        self.times_s: list[float] = []
        self._oracle, self._url, self._pause_s, self._verified = oracle, url, pause_s, verified
        self._rng = random.Random(seed)
        self._is_over = threading.Event()
        self._fault: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            while not self._is_over.wait(self._pause_s):
                self.ask_once()
        except BaseException as fault:
            self._fault = fault

    def check(self) -> None:
        """Raises what was wrong so far."""
        if self._fault is not None:
            raise self._fault

    def stop(self) -> None:
        self._is_over.set()
        self.join(60)
        assert not self.is_alive(), "a question has no end"
        self.check()

    def assert_all_answered(self) -> None:
        """Not one answer failed or lacked anything."""
        self.check()
        assert self.answers["complete"], "nothing was asked"
        assert set(self.answers) == {"complete"}, f"{dict(self.answers)}: {dict(self.reasons)}"

    def ask_once(self) -> None:
        series = self._oracle.series
        if not series:
            return
        chosen = self._rng.choice(series)
        span = self._span(self._oracle.times(chosen))
        verified = self._verified and self._rng.random() < 0.3
        form = self._rng.choice((samples, functools.partial(figures, verified=verified)))
        self._ask(chosen, span, form)

    def _span(self, times: Sequence[int]) -> tuple[int, int]:
        ends = sorted((self._rng.choice(times), self._rng.choice(times)))
        return (ends[0], ends[1]) if self._rng.random() < 0.6 else (times[0], times[-1] + 10**15)

    def _ask(self, series: Series, span: tuple[int, int], form: Callable[..., tuple[int, dict[str, Any]]]) -> None:
        partial = self._rng.random() < 0.3
        begun_s = time.monotonic()
        try:
            status, answer = form(self._url, series, span, partial)
        except (OSError, http.client.HTTPException) as error:
            self.answers["unanswered"] += 1
            self.reasons[type(error).__name__] += 1
            return
        ended_s = time.monotonic()
        self.times_s.append(ended_s - begun_s)
        self._judge(series, span, (begun_s, ended_s), status, answer, partial)

    def _judge(
        self, series: Series, span: tuple[int, int], asked: tuple[float, float], status: int, answer: dict[str, Any],
        partial: bool,
    ) -> None:  # fmt: skip
        if status == 503:
            self._note_incomplete(answer)
            return
        if status == 404:
            self._oracle.judge(series, span, asked, [], complete=True)
            return
        if status != 200:
            raise Wrong(f"{status}: {answer}")
        complete = answer["coverage"]["complete"]
        if not complete and not (partial and answer["coverage"]["missing"]):
            raise Wrong(f"incomplete, and nothing is missing or nobody wanted it: {answer['coverage']}")
        self.answers["complete" if complete else "incomplete"] += 1
        try:
            if "series" in answer:
                self._oracle.judge(series, span, asked, rows_of(answer), complete)
            else:
                total = answer["result"]["sum"] or 0.0
                is_certain = self._oracle.judge_figures(series, span, asked, answer["count"], total, complete)
                self.certain += is_certain and complete
        except Wrong as wrong:
            raise Wrong(f"{wrong}; {answer['coverage']}") from None

    def _note_incomplete(self, answer: dict[str, Any]) -> None:
        """A 503 says what is missing, or why nothing can be said."""
        if not (answer.get("coverage", {}).get("missing") or answer.get("error") not in (None, "incomplete")):
            raise Wrong(f"503 without a reason: {answer}")
        self.answers["incomplete"] += 1
        self.reasons[str(answer.get("message"))[:200]] += 1


# Questions


def samples(url: str, series: Series, span: tuple[int, int], partial: bool = False) -> tuple[int, dict[str, Any]]:
    """The points themselves: status and answer."""
    asked = _fields(series, span, partial) | {"time_unit": "ns", "limit": "all"}
    return client.get(f"{url}/api/v1/samples?{urllib.parse.urlencode(asked)}")


def figures(
    url: str, series: Series, span: tuple[int, int], partial: bool = False, verified: bool = False
) -> tuple[int, dict[str, Any]]:
    """Count and sum of the series alone, not of such as have tags, too: status and answer."""
    asked = _fields(series, span, partial) | {"operation": ["count", "sum"], "allow_partial": partial, "tags": {}}
    return client.ask(url, **asked, **({"consistency": "verified"} if verified else {}))


def _fields(series: Series, span: tuple[int, int], partial: bool) -> dict[str, Any]:
    times = {"start_time": rfc3339(span[0]), "end_time": rfc3339(span[1])}
    return {"device_id": series[0], "metric_name": series[1], "allow_partial": str(partial).lower()} | times


def rfc3339(time_ns: int) -> str:
    seconds, rest = divmod(time_ns, 10**9)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest:09}Z"


def check_all(oracle: Oracle, url: str) -> None:
    """Every series has exactly the points that it has to have by now. All is acknowledged and settled."""
    for series in oracle.series:
        times = oracle.times(series)
        span = (times[0], times[-1])
        begun_s = time.monotonic()
        status, answer = samples(url, series, span)
        assert status in (200, 404), answer
        rows = rows_of(answer) if status == 200 else []
        oracle.judge(series, span, (begun_s, time.monotonic()), rows, complete=True)


def rows_of(answer: dict[str, Any]) -> list[tuple[int, float]]:
    """The points in an answer of one series."""
    return [row for each in answer["series"] for row in zip(each["times"], each["values"], strict=True)]
