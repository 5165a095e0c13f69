"""One cluster with everything locked: CURVE on the bus, TLS and tokens at its HTTP. Points, answers, strangers."""

import json
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from common import bus, clock, protocol, tokens
from tests.cluster import Cluster, Worker
from tests.flow import Flow, check_settled, check_stored
from tests.support import ROOT, Children, certificate, free_port, require_part, wait_until
from tools.output import time_text


@dataclass
class Place:
    cluster: Cluster
    query: Worker
    port: int
    cert: Path
    token: str

    def call(self, path: str, body: Any = None, token: str = "", timeout_s: float = 15.0) -> tuple[int, Any]:
        """Status and answer over HTTPS, the certificate checked."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(f"https://127.0.0.1:{self.port}{path}", data, headers)
        context = ssl.create_default_context(cafile=str(self.cert))
        try:
            with urllib.request.urlopen(asked, timeout=timeout_s, context=context) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def is_ready(self) -> bool:
        try:
            return self.call("/readyz", token=self.token)[0] == 200
        except (urllib.error.URLError, OSError):
            return False


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    require_part("mosquitto")
    home = tmp_path_factory.mktemp("locked")
    bus.make_key(home / "bus.key")
    token = tokens.new_text()
    created = time_text(clock.wall_ns())
    tokens.save(home / "tokens.json", [tokens.Token("tests", tokens.digest(token), ["read"], created)])
    cert, key = certificate(home)
    children = Children()
    cluster = Cluster(children, home, nodes=2, settings={"bus.key_file": "bus.key"}).start()
    port = free_port()
    access = {"query.port": port, "query.tokens_file": "tokens.json", "query.cert_file": cert, "query.key_file": key}
    query = Worker(cluster, "query", ["workers.query"], access)
    query.start()
    place = Place(cluster, query, port, cert, token)
    wait_until(place.is_ready, 60, "the query worker to be ready")
    yield place
    cluster.close()
    children.stop_all()


QUESTION = {"device_id": "dev1", "metric_name": "m", "operation": "count"}


def _counted(place: Place, series: tuple[str, str]) -> tuple[int, Any]:
    return place.call("/query", QUESTION | {"device_id": series[0], "metric_name": series[1]}, place.token)


def test_points_go_in_and_answers_come_out(place: Place) -> None:
    flow = Flow(place.cluster.publishers.port)
    flow.send(200)
    check_stored(place.cluster, flow.points)
    for series, points in flow.points.items():
        status, answer = _counted(place, series)
        assert (status, answer["result"], answer["coverage"]["complete"]) == (200, len(points), True)
    flow.close()
    check_settled(place.cluster)


def test_a_stranger_at_the_bus_gets_nothing_and_does_no_harm(place: Place, tmp_path: Path) -> None:
    node = place.cluster.nodes["ing1"]
    header = protocol.Header(1, "", "", "stranger", 1, 1, 0, "")
    for key in (None, bus.make_key(tmp_path / "other.key")):
        with pytest.raises(bus.BusTimeout, match="no connection to"):
            bus.request(node.request_endpoint, protocol.STATUS, header, {}, 0.3, key)
        stranger = bus.Bus(key)
        assert not stranger.push(node.endpoint).send([b"batch", b"", b""])
        stranger.close()
    wait_until(lambda: "handshake failed" in place.cluster.log("ing1"), what="the node to say so")
    flow = Flow(place.cluster.publishers.port, prefix="later")
    flow.send(20)
    check_stored(place.cluster, flow.points)
    flow.close()


def test_a_query_worker_with_another_key_says_why_no_node_answers(place: Place, tmp_path: Path) -> None:
    bus.make_key(tmp_path / "other.key")
    port = free_port()
    settings = {"bus.key_file": tmp_path / "other.key", "query.port": port, "query.timeout_s": 1}
    worker = Worker(place.cluster, "stranger", ["workers.query"], settings)
    worker.start()
    url = f"http://127.0.0.1:{port}/query"

    def reason() -> str:
        try:
            urllib.request.urlopen(url, json.dumps(QUESTION).encode(), timeout=10).close()
        except urllib.error.HTTPError as error:
            return str(json.load(error)["message"])
        except (urllib.error.URLError, OSError):
            pass
        return ""

    wait_until(lambda: "handshake failed: the other side has another key" in reason(), 30, "the reason")
    worker.stop()


@pytest.mark.parametrize(("token", "status"), [("", 401), ("wrong", 401)])
def test_a_request_without_a_token_is_denied(place: Place, token: str, status: int) -> None:
    got, answer = place.call("/query", QUESTION, token)
    assert (got, answer["error"]) == (status, "unauthorized")
    assert place.call("/healthz")[0] == 200


def test_plain_http_is_not_answered(place: Place) -> None:
    with socket.create_connection(("127.0.0.1", place.port), timeout=5) as plain:
        plain.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert not plain.recv(100).startswith(b"HTTP/")


def _start(place: Place, **settings: Any) -> str:
    """What a query worker with other settings says when it refuses to start: one line."""
    environment = {f"MINITRUE__{name.upper()}": str(value) for name, value in settings.items()}
    done = subprocess.run(
        [sys.executable, "-m", "workers.query"], cwd=ROOT, timeout=60, capture_output=True, text=True,
        env={**place.cluster.environment, **environment, "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_a_worker_that_cannot_be_safe_does_not_start(place: Place, tmp_path: Path) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text("no certificate")
    bad.chmod(0o600)
    tls = {"query__cert_file": place.cert, "query__key_file": place.cert.with_name("key.pem")}
    assert "query.host = '0.0.0.0': want a loopback address" in _start(place, query__host="0.0.0.0")
    assert "want a certificate chain and its key" in _start(place, **tls | {"query__cert_file": bad})
    bad.chmod(0o604)
    assert "has mode 0604, want 0600" in _start(place, **tls | {"query__key_file": bad})
    assert "query.tokens_file: cannot read" in _start(place, query__tokens_file="gone.json")
    assert "bus.key_file: cannot read" in _start(place, bus__key_file="gone.key")
