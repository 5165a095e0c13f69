"""Parts of bench delivery that need a whole cluster: how soon a message is queryable, and the memory of the bridge.

A sandbox on mosquitto; tools/publisher sends one point per message at QoS 1. The clock of a latency
runs from before the probe is published until an answer of POST /query over HTTP has counted it; the query is asked
again and again, which costs the machine something, and its own time is part of the latency.
"""

import http.client
import json
import re
import statistics
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self
from urllib.parse import urlsplit

import click
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from tools.bench import alone
from tools.bench.findings import Bar, Finding
from tools.sandbox_app import Sandbox

PUBLISHER: Final = Path(__file__).resolve().parents[1] / "publisher"
RATE: Final = 1000  # messages per second beside the probes
PROBES: Final = 1000
PROBE_GAP_S: Final = 0.0137  # not a multiple of anything that goes round in the cluster
ANSWER_S: Final = 30.0
HOUR: Final = 3600 * RATE  # messages
FAST: Final = 25_000  # messages per second of the compressed hour
SAMPLE_S: Final = 0.1
PATIENCE: Final = 10  # times as long as it should take, and a while
PATIENCE_S: Final = 60.0
FLAT: Final = 1.1  # of the second quarter's most


def latency(scale: float, nodes: int) -> Iterator[Finding]:
    """From published to queryable, at RATE messages a second."""
    probes = max(20, round(PROBES * scale))
    with (
        Sandbox(nodes=nodes, broker="mosquitto") as cluster,
        publisher(cluster, "--rate", RATE),
        _Probe(cluster) as probe,
    ):
        taken_ms = sorted(probe.measure() for _ in range(probes))
        asked_ms = sorted(probe.ask_ms() for _ in range(probes))
    of = f"{RATE} messages/s"
    yield Finding(of, "published to queryable, p50", "ms", statistics.median(taken_ms))
    yield Finding(of, "published to queryable, p99", "ms", taken_ms[probes * 99 // 100], bar=Bar("most", 50))
    yield Finding(of, "of which a query, p50", "ms", statistics.median(asked_ms))


def memory(scale: float, nodes: int) -> Iterator[Finding]:
    """What the bridge holds while an hour's worth of messages passes, with all owners and with one away."""
    messages = max(20_000, round(HOUR * scale))
    for of, away in (("all owners there", ""), ("one owner away", "ing2")):
        with Sandbox(nodes=nodes, broker="mosquitto") as cluster:
            if away:
                cluster.stop(away)
            began_s = time.monotonic()
            held_mb = _hold(cluster, messages)
            took_s = time.monotonic() - began_s
            spooled = sum(
                path.stat().st_size for path in cluster.dir.glob("data/bridge/*/spool/**/*") if path.is_file()
            )
        quarter = len(held_mb) // 4
        growth = max(held_mb[-quarter:]) / max(held_mb[quarter : 2 * quarter])
        yield Finding(of, f"bridge, {messages:,} messages", "MB", max(held_mb))
        yield Finding(of, "last quarter over the second", "x", growth, bar=Bar("most", FLAT))
        yield Finding(of, "messages acknowledged", "1/s", messages / took_s)
        if away:
            yield Finding(of, "spool at the end", "MB", spooled / 1e6)


def _hold(cluster: Sandbox, messages: int) -> list[float]:
    """Memory of the bridge, sampled until it has acknowledged them all."""
    held_mb: list[float] = []
    pid = cluster.pid("bridge")
    deadline = time.monotonic() + PATIENCE_S + PATIENCE * messages / FAST
    with publisher(cluster, "--rate", FAST, "--count", messages) as sender:
        while sender.poll() is None or acknowledged(cluster) < messages:
            if time.monotonic() > deadline:
                raise click.ClickException(f"{acknowledged(cluster)} of {messages} messages acknowledged in time")
            held_mb.append(alone.resident_mb(pid))
            time.sleep(SAMPLE_S)
    if sender.returncode:
        raise click.ClickException(f"the publisher ended with {sender.returncode}")
    return held_mb


def acknowledged(cluster: Sandbox) -> int:
    """Messages that the bridge has acknowledged so far."""
    with urllib.request.urlopen(cluster.http + "/metrics", timeout=ANSWER_S) as answer:
        found = re.findall(rb"^minitrue_bridge_pubacks_total\S* (\S+)$", answer.read(), re.MULTILINE)
    return int(sum(map(float, found)))


@contextmanager
def publisher(cluster: Sandbox, *options: object) -> Iterator["subprocess.Popen[bytes]"]:
    """The simulator, running; ended with the block if it has not ended before."""
    command = [str(each) for each in (PUBLISHER, "--sim", "--url", cluster.mqtt, "--json", *options)]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, env=cluster.environment, stdout=quiet, stderr=quiet)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


class _Probe:
    """Publishes points of one series, and asks until they are counted."""

    def __init__(self, cluster: Sandbox) -> None:
        web, broker = urlsplit(cluster.http), urlsplit(cluster.mqtt)
        self._web = http.client.HTTPConnection(str(web.hostname), web.port, timeout=ANSWER_S)
        self._mqtt = paho.Client(CallbackAPIVersion.VERSION2)
        self._mqtt.connect(str(broker.hostname), broker.port or 1883)
        self._published = 0

    def __enter__(self) -> Self:
        self._mqtt.loop_start()
        return self

    def __exit__(self, *_: object) -> None:
        self._mqtt.disconnect()
        self._mqtt.loop_stop()
        self._web.close()

    def measure(self) -> float:
        """Milliseconds from before a point is published until an answer counts it."""
        time.sleep(PROBE_GAP_S)
        self._published += 1
        point = {"device_id": "probe", "metric_name": "x", "timestamp": self._published, "value": 1}
        payload = json.dumps(point)
        began_s = time.perf_counter()
        self._mqtt.publish("sensors/probe", payload, 1)
        while self._count() < self._published:
            if time.perf_counter() > began_s + ANSWER_S:
                raise click.ClickException(f"a message was not queryable after {ANSWER_S:g} s")
        return 1e3 * (time.perf_counter() - began_s)

    def ask_ms(self) -> float:
        """Milliseconds that a query takes."""
        began_s = time.perf_counter()
        self._count()
        return 1e3 * (time.perf_counter() - began_s)

    def _count(self) -> int:
        question = {"device_id": "probe", "metric_name": "x", "operation": "count", "start_time": 0, "end_time": 0}
        self._web.request("POST", "/query", json.dumps(question))
        answer = self._web.getresponse()
        found = json.loads(answer.read())
        return int(found["count"]) if answer.status == 200 else 0  # 404: the series is not known yet
