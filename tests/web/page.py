"""A cluster with the page, simulated sensors and what else there is to see, and the browser's tests beside it.

`python -m tests.web.page` takes the pictures of docs/img anew.
"""

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import paho.mqtt.publish as mqtt

from common import tokens
from tests.support import ROOT, Children, free_port, wait_until
from tools.sandbox_app import Sandbox

WEB: Final = ROOT / "web"
PLAYWRIGHT: Final = WEB / "node_modules" / ".bin" / "playwright"
CHROMIUM: Final = ("chromium", "chromium-browser", "google-chrome")
SETTINGS: Final = {"bus.heartbeat_s": 0.5, "storage.repair_interval_s": 20.0}
HISTORY_S: Final = 7200
HISTORY: Final = ("--devices", "6", "--metrics", "3", "--step", "5", "--count", "25920", "--rate", "0")
SENSORS: Final = ("--devices", "6", "--metrics", "3", "--rate", "36")
BROKEN: Final = {  # what the bridge refuses, by topic: one for each reason that is easily had
    "sensors/pump_1/flow": "<img src=x onerror=alert(1)>",
    "sensors/pump_2/flow": '{"value": "much"}',
    "sensors/pump_3/flow": '{"value": 1, "timestamp": "tomorrow"}',
}
# Ids that would do harm where they are taken for anything but text.
HOSTILE: Final = (
    "hostile <img src=x onerror=alert(1)>",
    "hostile \"'&<b>~!,=",
    "hostile \u202egnp.exe\u202c",
    "hostile " + "é" * 124,
)


@contextlib.contextmanager
def cluster_with_page() -> Iterator[dict[str, str]]:
    """Runs one; the environment that the browser's tests want."""
    children = Children()
    # A short path: there are Unix sockets in it.
    with tempfile.TemporaryDirectory() as home, Sandbox(3, 2, "embedded", SETTINGS, Path(home) / "c") as sandbox:
        try:
            _publish(sandbox, "--sim", *HISTORY, "--start", str(int(time.time()) - HISTORY_S))
            _break(sandbox.mqtt)
            running = [sys.executable, "-m", "tools.publisher_app", "--sim", *SENSORS]
            children.start(*running, cwd=ROOT, env=sandbox.environment, stdout=subprocess.DEVNULL)
            yield sandbox.environment | {
                "MINITRUE_SUPERVISOR": sandbox.supervisor,
                "MINITRUE_SUPERVISOR_CONF": str(sandbox.dir / "supervisord.conf"),
                "MINITRUE_PYTHON": sys.executable,
                "MINITRUE_RESULTS": str(Path(home) / "results"),
            }
        finally:
            children.stop_all()


@contextlib.contextmanager
def server_with_tokens(cluster: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Runs another query worker beside a cluster, one that wants tokens; the environment that its tests want."""
    children = Children()
    with tempfile.TemporaryDirectory() as home:
        file = Path(home) / "tokens.json"
        tokens.save(file, [])  # the tests add theirs as a person would, by tools/tokens
        port = free_port()
        settings = {"MINITRUE__QUERY__PORT": str(port), "MINITRUE__QUERY__TOKENS_FILE": str(file)}
        guarded = dict(cluster) | settings | {"MINITRUE_HTTP": f"http://127.0.0.1:{port}"}
        try:
            children.start(sys.executable, "-m", "workers.query", env=guarded, stdout=subprocess.DEVNULL)
            wait_until(lambda: _wants_tokens(guarded["MINITRUE_HTTP"]), 60, "the server to want tokens")
            yield guarded
        finally:
            children.stop_all()


def _wants_tokens(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/api/v1/me", timeout=5):
            return False
    except urllib.error.HTTPError as error:
        with error:
            return error.code == 401
    except OSError:  # it does not listen yet
        return False


def playwright(*words: str, environment: Mapping[str, str], chromium: str) -> subprocess.CompletedProcess[str]:
    """Run browser tests of web/tests against a cluster; words: those of `playwright test`."""
    mine = dict(environment) | {"MINITRUE_CHROMIUM": chromium, "CI": "1"}
    return subprocess.run(
        [str(PLAYWRIGHT), "test", *words],
        cwd=WEB,
        env=mine,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def _publish(sandbox: Sandbox, *words: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "tools.publisher_app", *words],
        cwd=ROOT,
        env=sandbox.environment,
        check=True,
        stdout=subprocess.DEVNULL,
    )


def _break(url: str) -> None:
    """Publish messages that nobody can read, and points of hostile ids."""
    place = urlsplit(url)
    points = [
        {"device_id": device, "metric_name": "value", "timestamp": time.time(), "value": 1.5} for device in HOSTILE
    ]
    payloads = [*BROKEN.items(), *(("sensors/any", json.dumps(point)) for point in points)]
    messages = [{"topic": topic, "payload": payload, "qos": 1} for topic, payload in payloads]
    mqtt.multiple(messages, hostname=str(place.hostname), port=place.port or 1883)


def main() -> None:
    """Take the pictures of docs/img anew."""
    chromium = next(filter(None, map(shutil.which, CHROMIUM)), "")
    if not chromium:
        sys.exit(f"none of {', '.join(CHROMIUM)} is installed")
    with cluster_with_page() as environment:
        pictures = environment | {"MINITRUE_SHOTS": str(ROOT / "docs" / "img")}
        done = playwright("shots", environment=pictures, chromium=chromium)
    print(done.stdout)
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
