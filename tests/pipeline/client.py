"""What the pipeline tests share: asking /query, publishing, waiting for counts, and the naive answers."""

import gzip
import http.client
import itertools
import json
import math
import random
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[2]
OPERATIONS = ("avg", "sum", "max", "min", "count", "first", "last")

# (device, metric) -> {timestamp in nanoseconds: value}
Points = dict[tuple[str, str], dict[int, float]]


def ask(http: str, **request: Any) -> tuple[int, dict[str, Any]]:
    """POST /query; the status code and the answer."""
    return post(http + "/query", json.dumps(request).encode())


def post(url: str, body: bytes) -> tuple[int, dict[str, Any]]:
    """POST some bytes; the status code and the JSON answer."""
    return call("POST", url, body)


def get(url: str) -> tuple[int, dict[str, Any]]:
    """GET a JSON document; status code and document."""
    return call("GET", url, None)


_connections = threading.local()  # one for each server that a thread has asked: opening costs as much as asking


def call(method: str, url: str, body: bytes | None) -> tuple[int, dict[str, Any]]:
    """Ask a URL; the status code and the JSON answer."""
    parts = urlsplit(url)
    known = _connections.__dict__.setdefault("known", {})
    connection = known.pop(parts.netloc, None)
    target = f"{parts.path}?{parts.query}" if parts.query else parts.path
    if connection is not None:
        try:
            answer = _exchange(connection, method, target, body)
        except (http.client.HTTPException, ConnectionError):
            connection.close()  # the server has restarted meanwhile
        else:
            known[parts.netloc] = connection
            return answer
    connection = http.client.HTTPConnection(parts.netloc, timeout=30)
    answer = _exchange(connection, method, target, body)
    known[parts.netloc] = connection
    return answer


def _exchange(
    connection: http.client.HTTPConnection, method: str, target: str, body: bytes | None
) -> tuple[int, dict[str, Any]]:
    connection.request(method, target, body)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def publish(*arguments: str, timeout_s: float = 240) -> dict[str, Any]:
    """Run tools/publisher to its end; what it printed with --json."""
    done = subprocess.run(
        [ROOT / "tools" / "publisher", *arguments, "--json"],
        check=True,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def read_csv(path: Path) -> Points:
    """The points of a replay file, by the identity rule: of equal timestamps the larger value."""
    points: Points = defaultdict(dict)
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt") as lines:
        next(lines)
        for line in lines:
            device, metric, timestamp, value = line.strip().split(",")
            at = int(Decimal(timestamp) * 10**9)
            series = points[device, metric]
            series[at] = max(series.get(at, -math.inf), float(value))
    return points


def write_csv(path: Path, points: Points) -> None:
    """A replay file of points whose timestamps are whole milliseconds."""
    rows = sorted((at, *series, value) for series, values in points.items() for at, value in values.items())
    with path.open("w") as file:
        file.write("device_id,metric_name,timestamp,value\n")
        for at, device, metric, value in rows:
            file.write(f"{device},{metric},{at // 10**9}.{at // 10**6 % 1000:03},{value!r}\n")


def synthetic(seed: int, series: int, rows: int) -> Points:
    """Seeded sensors: decimals, steps, constants and full-width floats at jittered milliseconds."""
    rng = random.Random(seed)
    points: Points = {}
    for number in range(series):
        at, level = 1_700_000_000_000, rng.uniform(-50, 50)
        values: dict[int, float] = {}
        for _ in range(rows):
            at += rng.randrange(1, 20_000)
            level += rng.gauss(0, 1)
            values[at * 10**6] = (round(level, 2), float(int(level)), 7.0, level)[number % 4]
        points[f"device:{number // 2}/x", "temperature" if number % 2 else "humidity"] = values
    return points


def naive(
    values: Sequence[tuple[int, float]], start: int | None, end: int | None
) -> dict[str, float | int | None]:
    """Every operation over an inclusive range, the slow way. values: in order of time."""
    only = [value for at, value in values if (start is None or at >= start) and (end is None or at <= end)]
    if not only:
        return dict.fromkeys(OPERATIONS) | {"count": 0}
    total = math.fsum(only)
    return {
        "count": len(only),
        "sum": total,
        "avg": total / len(only),
        "min": min(only),
        "max": max(only),
        "first": only[0],
        "last": only[-1],
    }


def ranges(values: dict[int, float], seed: int, many: int) -> list[tuple[int | None, int | None]]:
    """All time, and random ranges whose ends sometimes fall on a point."""
    rng = random.Random(seed)
    times = sorted(values)
    found: list[tuple[int | None, int | None]] = [(None, None)]
    while len(found) <= many:
        ends = [rng.choice(times) if rng.random() < 0.5 else rng.randint(times[0] - 10**9, times[-1]) for _ in "ab"]
        low, high = (end // 1000 * 1000 for end in sorted(ends))
        found.append((low if rng.random() < 0.9 else None, high if rng.random() < 0.9 else None))
    return found


def check(http: str, points: Points, many: int, operations: Sequence[str] = OPERATIONS) -> None:
    """Every series, over all time by every operation and over `many` random ranges by two each, in turns: the answers
    are the naive ones.
    """
    for number, ((device, metric), values) in enumerate(points.items()):
        in_order = sorted(values.items())
        turns = itertools.cycle(operations)
        for start, end in ranges(values, number, many):
            want = naive(in_order, start, end)
            for operation in operations if (start, end) == (None, None) else itertools.islice(turns, 2):
                _check_one(http, (device, metric), (start, end), operation, want)


def _check_one(
    http: str,
    series: tuple[str, str],
    range_: tuple[int | None, int | None],
    operation: str,
    want: dict[str, float | int | None],
) -> None:
    status, answer = ask(
        http,
        device_id=series[0],
        metric_name=series[1],
        operation=operation,
        start_time=_seconds(range_[0]),
        end_time=_seconds(range_[1]),
    )
    where = f"{operation} of {series} over {range_}: {answer}"
    assert status == 200, where
    assert answer["coverage"]["complete"] is True, where
    assert answer["count"] == want["count"], where
    expected = want[operation]
    if expected is None or operation not in ("sum", "avg"):
        assert answer["result"] == expected, f"{where}, want {expected}"
    else:
        assert math.isclose(answer["result"], expected, rel_tol=1e-12, abs_tol=1e-9), f"{where}, want {expected}"


def _seconds(at: int | None) -> Any:
    """Nanoseconds as the text RFC 3339 has no trouble with; 0 is open."""
    if at is None:
        return 0
    seconds, rest = divmod(at, 10**9)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest:09}Z"


def counts(http: str, series: Iterable[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """The count of each series now; a series that is not known yet counts 0, an incomplete answer -1."""
    found = {}
    for device, metric in series:
        status, answer = ask(http, device_id=device, metric_name=metric, operation="count", start_time=0, end_time=0)
        found[device, metric] = answer["count"] if status == 200 else 0 if status == 404 else -1
    return found


def wait_for_counts(http: str, want: dict[tuple[str, str], int], timeout_s: float = 120) -> None:
    """Wait until every series has exactly its count; more than that fails at once."""
    deadline = time.monotonic() + timeout_s
    while (have := counts(http, want)) != want:
        over = {series: (have[series], want[series]) for series in want if have[series] > want[series]}
        assert not over, f"more points than published (have, want): {over}"
        short = {series: (have[series], want[series]) for series in want if have[series] < want[series]}
        assert time.monotonic() < deadline, f"points missing after {timeout_s:g} s (have, want): {short}"
        time.sleep(0.2)
