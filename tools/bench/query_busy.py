"""Part ingest of bench query: how long queries take while points arrive at half the rate that the cluster can take.

A whole sandbox on mosquitto. The most is found first: our publisher without a limit, points counted by the bridge's
PUBACKs; then it runs at half of that, and clients ask for the average of one of its series.
"""

import json
import time
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from tools.bench.delivery_live import acknowledged, publisher
from tools.bench.findings import Bar, Finding
from tools.bench.http_load import load
from tools.sandbox_app import Sandbox

CONNECTIONS: Final = 16
FILL_S: Final = 10.0
P99_MS: Final = 50


def ingest(seconds: float, nodes: int) -> Iterator[Finding]:
    """p50 and p99 of queries on 16 connections beside half of the most points."""
    body = json.dumps({"device_id": "sensor_1", "metric_name": "temperature", "operation": "avg"})
    with Sandbox(nodes=nodes, broker="mosquitto") as cluster:
        most = most_messages(cluster)
        with publisher(cluster, "--rate", round(most / 2)):
            port = int(urlsplit(cluster.http).port or 0)
            found = load(port, "/query", body, CONNECTIONS, max(5.0, seconds))
    of = f"{CONNECTIONS} connections, ingest"
    yield Finding(of, "most messages of one point", "1/s", most)
    yield Finding(of, "queries beside half of them", "1/s", found.per_s)
    yield Finding(of, "p50", "ms", found.p50_ms)
    yield Finding(of, "p99", "ms", found.p99_ms, bar=Bar("most", P99_MS))
    yield Finding(of, "failed", "", found.failed, bar=Bar("most", 0))


def most_messages(cluster: Sandbox) -> float:
    """How many messages of one point a second a cluster takes at most."""
    with publisher(cluster, "--rate", 0):
        time.sleep(FILL_S / 5)  # it is under way
        before, began_s = acknowledged(cluster), time.monotonic()
        time.sleep(FILL_S)
        return (acknowledged(cluster) - before) / (time.monotonic() - began_s)
