"""How long requests took, by route and status. Any thread; guarded by a lock of its own."""

import threading
from bisect import bisect_left
from typing import Final

from common.protocol import MetricFamily

BUCKETS_S: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class Timings:
    """One short update per request."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, int], list[int]] = {}
        self._sums_ns: dict[tuple[str, int], int] = {}

    def add(self, route: str, status: int, spent_ns: int) -> None:
        """Count one request."""
        key = route, status
        with self._lock:
            counts = self._counts.get(key)
            if counts is None:
                counts = self._counts[key] = [0] * (len(BUCKETS_S) + 1)
                self._sums_ns[key] = 0
            counts[bisect_left(BUCKETS_S, spent_ns * 1e-9)] += 1
            self._sums_ns[key] += spent_ns

    def family(self) -> MetricFamily:
        """The histogram."""
        name = "minitrue_http_request_seconds"
        samples = []
        with self._lock:
            taken = [(key, list(counts), self._sums_ns[key]) for key, counts in self._counts.items()]
        for (route, status), counts, sum_ns in taken:
            labels, total = {"route": route, "status": str(status)}, 0
            for bound, number in zip((*BUCKETS_S, "+Inf"), counts, strict=True):
                total += number
                samples.append((f"{name}_bucket", labels | {"le": str(bound)}, float(total)))
            samples += [(f"{name}_sum", labels, sum_ns / 1e9), (f"{name}_count", labels, float(total))]
        return MetricFamily(name, "histogram", "Time to answer an HTTP request.", samples)
