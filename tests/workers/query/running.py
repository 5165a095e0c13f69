"""A query worker as it runs, for tests: its process over fake storage nodes, and calls over HTTP."""

import http.client
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.ringstore import FileStore
from tests.support import Children, free_port, free_port_range, wait_until
from tests.workers.query.fake import FakeNode, Point, make_ring


class Worker:
    """A query worker's process over three fake nodes."""

    def __init__(
        self, children: Children, directory: Path, points: Sequence[Point], partitions: int = 64, **environment: str
    ) -> None:
        self.children = children
        self.directory = directory
        self.port = free_port()
        self.ring = make_ring([free_port_range(3) for _ in range(3)], partitions)
        FileStore(directory / "ring.json").save(self.ring, 0)
        self.nodes = {node.id: FakeNode(self.ring, node.id, points) for node in self.ring.nodes}
        self.environment = environment
        self.process = self.start()
        wait_until(self.is_ready, what="ready")

    def start(self, **options: Any) -> subprocess.Popen[str]:
        return start(self.children, self.directory, self.port, self.environment, **options)

    def is_ready(self) -> bool:
        try:
            return self.call("GET", "/readyz")[0] == 200
        except OSError:
            return False

    def call(
        self, method: str, path: str, body: bytes | str | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            data = response.read()
            found = {name.lower(): value for name, value in response.getheaders()}
            return response.status, found, json.loads(data) if "json" in found["content-type"] else data
        finally:
            connection.close()

    def stop(self) -> None:
        """End the nodes; the process is the children's."""
        for node in self.nodes.values():
            node.stop()

    def query(self, **fields: Any) -> tuple[int, Any]:
        body = {"device_id": "sensor_1", "metric_name": "temperature", "operation": "avg"} | fields
        status, _, answer = self.call("POST", "/query", json.dumps(body))
        return status, answer


def start(
    children: Children, directory: Path, port: int, environment: dict[str, str], **options: Any
) -> subprocess.Popen[str]:
    settings = {"MINITRUE__CLUSTER__RING_STORE": f"file:{directory}/ring.json", "MINITRUE__CLUSTER__RING_POLL_S": "0.1"}
    return children.start(
        sys.executable, "-m", "workers.query", "--port", str(port), env=os.environ | settings | environment, **options
    )
