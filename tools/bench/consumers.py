"""python -m tools.bench.consumers NAME: takes queued messages, then prints its seconds and CPU seconds as JSON.

paho     acknowledges and does nothing else: the least that paho costs
script   what people write: paho, json, line protocol in batches to a server's /write, acknowledged when that answers
bridge   the bridge worker

Settings and the number of messages come on stdin, as drain.py writes them.
"""

import http.client
import json
import sys
import time
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
import paho.mqtt.client as paho

from common import config, process
from tools.bench import drain
from workers.bridge import worker

SCRIPT_LINES: Final = 5000  # of a request
SCRIPT_WAIT_S: Final = 0.05  # the longest that a line waits for more


class Meter:
    """Time and CPU of this process from `begin` to `end`."""

    def __init__(self) -> None:
        self.began_s = self._began_cpu_s = 0.0
        self._found: dict[str, float] = {}

    def begin(self) -> None:
        """The first message is there."""
        self.began_s, self._began_cpu_s = time.monotonic(), time.process_time()

    def end(self) -> None:
        """The last one is acknowledged."""
        seconds, cpu_s = time.monotonic() - self.began_s, time.process_time() - self._began_cpu_s
        self._found = {"seconds": seconds, "cpu_s": cpu_s}

    def report(self) -> None:
        """Print it."""
        print(json.dumps(self._found))


class Bare:
    """paho, acknowledging."""

    def __init__(self, port: int, messages: int) -> None:
        self.meter = Meter()
        self._left = messages
        self._client = drain.session(port)
        self._client.on_message = self._received

    def run(self) -> None:
        """Until all messages are acknowledged."""
        self._client.loop_forever()

    def _received(self, client: paho.Client, _: Any, message: paho.MQTTMessage) -> None:
        if not self.meter.began_s:
            self.meter.begin()
        client.ack(message.mid, message.qos)
        self._left -= 1
        if not self._left:
            self.meter.end()
            client.disconnect()


class Script:
    """paho and line protocol, as one would write it for this very payload."""

    def __init__(self, port: int, messages: int, write_url: str) -> None:
        url = urlsplit(write_url)
        self.meter = Meter()
        self._left = messages
        self._server = http.client.HTTPConnection(str(url.hostname), url.port)
        self._path = f"{url.path}?{url.query}"
        self._lines: list[str] = []
        self._unacked: list[tuple[int, int]] = []
        self._first_s = 0.0
        self._client = drain.session(port)
        self._client.on_message = self._received

    def run(self) -> None:
        """Until all messages are stored and acknowledged."""
        while self._left:
            self._client.loop(SCRIPT_WAIT_S)
            if self._lines and time.monotonic() - self._first_s > SCRIPT_WAIT_S:
                self._write()
        self.meter.end()

    def _received(self, _client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        if not self.meter.began_s:
            self.meter.begin()
        if not self._lines:
            self._first_s = time.monotonic()
        decoded = json.loads(message.payload)
        for point in decoded if isinstance(decoded, list) else [decoded]:
            series, milliseconds = (
                f"{point['metric_name']},device={point['device_id']}",
                round(point["timestamp"] * 1000),
            )
            self._lines.append(f"{series} value={point['value']} {milliseconds}")
        self._unacked.append((message.mid, message.qos))
        if len(self._lines) >= SCRIPT_LINES:
            self._write()

    def _write(self) -> None:
        self._server.request("POST", self._path, "\n".join(self._lines))
        answer = self._server.getresponse()
        answer.read()
        if answer.status >= 300:
            raise OSError(f"{self._path}: {answer.status}")
        for mid, qos in self._unacked:
            self._client.ack(mid, qos)
        self._left -= len(self._unacked)
        self._lines, self._unacked = [], []


class Bridge:
    """The bridge worker, looked at once in each turn of its loop."""

    def __init__(self, settings: config.Settings, messages: int) -> None:
        self.meter = Meter()
        self._settings = settings
        self._messages = messages
        self._seen: list[worker.Bridge] = []

    def run(self) -> None:
        """Until all messages are acknowledged."""
        seen, is_done = self._seen, self._is_done

        class Seen(worker.Bridge):
            def __init__(self, *given: Any) -> None:
                super().__init__(*given)
                seen.append(self)

        class UntilDone(process.Stop):
            def is_set(self) -> bool:
                return is_done()

        worker.Bridge = Seen  # type: ignore[misc, assignment]
        worker._run(self._settings, UntilDone())

    def _is_done(self) -> bool:
        if not self._seen:
            return False
        if not self.meter.began_s and self._seen[0].counts["messages"]:
            self.meter.begin()
        if self._seen[0].link.acked < self._messages:
            return False
        self.meter.end()
        return True


def main(name: str) -> None:
    """Run one consumer."""
    given = json.load(sys.stdin)
    settings, messages = msgspec.convert(given["settings"], config.Settings), given["messages"]
    port = int(settings.mqtt.url.rpartition(":")[2])
    kinds: dict[str, Callable[[], Bare | Script | Bridge]] = {
        "paho": lambda: Bare(port, messages),
        "script": lambda: Script(port, messages, given["write_url"]),
        "bridge": lambda: Bridge(settings, messages),
    }
    consumer = kinds[name]()
    consumer.run()
    consumer.meter.report()


if __name__ == "__main__":
    main(sys.argv[1])
