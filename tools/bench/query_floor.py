"""The least that a query over three nodes can cost: what `bench query` compares with.

Two small programs. `echo PORT` answers every message with itself. `serve PORT ECHO_PORT...` is the same Bottle under
granian as the query worker, with one route that sends one small msgpack request to each echo over a DEALER of its
own thread and waits for all answers.
"""

import itertools
import sys
import threading
from typing import Any

import bottle
import msgspec
from granian.constants import Interfaces
from granian.log import LogLevels
from granian.server.mp import MPServer

from common import bus

WAIT_S = 5.0


def echo(port: int) -> None:
    """Answer for ever."""
    router = bus.Bus().router(f"tcp://127.0.0.1:{port}")
    poller = bus.Poller([router])
    while True:
        poller.poll(None)
        while (received := router.receive_routed()) is not None:
            router.reply(*received)


class Asker:
    """Asks all echoes, with sockets of the calling thread."""

    def __init__(self, ports: list[int]) -> None:
        self._bus = bus.Bus()
        self._ports = ports
        self._local = threading.local()
        self._sequence = itertools.count()

    def ask(self) -> int:
        """How many answered rightly."""
        dealers, pollers = self._sockets()
        number = next(self._sequence)
        body = msgspec.msgpack.encode({"sequence": number, "device_id": "sensor_1", "metric_name": "temperature"})
        for dealer in dealers:
            dealer.send([b"aggregate", body])
        right = 0
        for dealer, poller in zip(dealers, pollers, strict=True):
            poller.poll(WAIT_S)
            frames = dealer.receive() or [b"", b""]
            right += msgspec.msgpack.decode(frames[1])["sequence"] == number
        return right

    def _sockets(self) -> tuple[list[bus.Dealer], list[bus.Poller]]:
        if not hasattr(self._local, "dealers"):
            self._local.dealers = [self._bus.dealer(f"tcp://127.0.0.1:{port}") for port in self._ports]
            for dealer in self._local.dealers:
                while not dealer.connected():
                    threading.Event().wait(0.01)
            self._local.pollers = [bus.Poller([dealer]) for dealer in self._local.dealers]
        return self._local.dealers, self._local.pollers


def serve(port: int, echo_ports: list[int], threads: int) -> None:
    """Serve until stopped."""

    def load(*_: Any) -> bottle.Bottle:
        asker, app = Asker(echo_ports), bottle.Bottle()

        @app.post("/query")  # type: ignore[untyped-decorator]
        def query() -> bytes:
            msgspec.json.decode(bottle.request.environ["wsgi.input"].read())
            bottle.response.content_type = "application/json"
            return b'{"right":%d}' % asker.ask()

        return app

    MPServer(
        "floor", port=port, interface=Interfaces.WSGI, workers=1, blocking_threads=threads,
        log_level=LogLevels.critical, workers_kill_timeout=1,
    ).serve(target_loader=load, wrap_loader=False)  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1] == "echo":
        echo(int(sys.argv[2]))
    else:
        serve(int(sys.argv[2]), [int(port) for port in sys.argv[4:]], int(sys.argv[3]))
