"""The proxy of the fault tests does to bytes what it says, and nothing else."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from tests.proxy import Proxy
from tests.support import Children, wait_until


class Echo:
    """Sends back what it receives, to any number of clients."""

    def __init__(self) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self.server.accept()[0],), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            while data := client.recv(65536):
                client.sendall(data)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    echo = Echo()
    made = Proxy(echo.port, record=True)
    yield made
    made.close()
    echo.server.close()


def connect(proxy: Proxy) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", proxy.port))
    client.settimeout(10)
    return client


def is_silent(client: socket.socket) -> bool:
    client.settimeout(0.1)
    try:
        return not client.recv(100)
    except TimeoutError:
        return True
    finally:
        client.settimeout(10)


def exactly(client: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += client.recv(size - len(data)) or pytest.fail(f"hung up after {data!r}")
    return data


def test_bytes_pass_both_ways_and_are_recorded(proxy: Proxy) -> None:
    with connect(proxy) as client:
        sent = bytes(range(256)) * 4000
        threading.Thread(target=client.sendall, args=(sent,), daemon=True).start()
        assert exactly(client, len(sent)) == sent
    assert bytes(proxy.passages[0].passed["up"]) == sent
    assert proxy.bytes == {"up": len(sent), "down": len(sent)}
    wait_until(lambda: not proxy.open_passages)


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_stalled_way_passes_nothing_until_it_is_healed(proxy: Proxy, way: str) -> None:
    with connect(proxy) as client:
        client.sendall(b"a")
        assert exactly(client, 1) == b"a"
        proxy.stall(way)
        client.sendall(b"b")
        assert is_silent(client)
        assert proxy.bytes["up"] == (2 if way == "down" else 1)
        proxy.heal()
        assert exactly(client, 1) == b"b"


def test_what_a_sender_left_behind_flows_on_when_it_is_healed(proxy: Proxy) -> None:
    with connect(proxy) as client:
        client.sendall(b"a")
        exactly(client, 1)
        proxy.hold("up")
        client.sendall(b"late")
        with connect(proxy) as other:
            other.sendall(b"b")
            assert exactly(other, 1) == b"b"
    assert bytes(proxy.passages[0].passed["up"]) == b"a"
    proxy.heal()
    wait_until(lambda: bytes(proxy.passages[0].passed["up"]) == b"alate")


def test_swallowed_bytes_are_lost_and_the_connection_with_them(proxy: Proxy) -> None:
    with connect(proxy) as client:
        proxy.swallow("up")
        client.sendall(b"lost")
        assert is_silent(client)
        proxy.heal()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert proxy.bytes["up"] == 0


def test_a_cut_resets_what_is_there_and_what_comes(proxy: Proxy) -> None:
    with connect(proxy) as client:
        client.sendall(b"a")
        exactly(client, 1)
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    with connect(proxy) as late, contextlib.suppress(ConnectionResetError):
        assert not late.recv(1)
    proxy.heal()
    with connect(proxy) as client:
        client.sendall(b"b")
        assert exactly(client, 1) == b"b"


def test_delayed_bytes_come_later_and_in_order(proxy: Proxy) -> None:
    with connect(proxy) as client:
        client.sendall(b"a")
        exactly(client, 1)
        proxy.delay(0.3, "down")
        client.sendall(b"b")
        assert is_silent(client)
        client.sendall(b"c")
        assert exactly(client, 2) == b"bc"


def test_a_target_that_is_not_there_hangs_up(proxy: Proxy) -> None:
    other = Proxy(target=1)
    with connect(other) as client, contextlib.suppress(ConnectionResetError):
        assert not client.recv(1)
    other.close()


def test_one_process_is_cut_off_and_others_are_not(proxy: Proxy, children: Children) -> None:
    script = "import socket,sys; s=socket.create_connection(('127.0.0.1', int(sys.argv[1]))); s.sendall(b'x'); "
    script += "print(s.recv(1).decode(), flush=True); print(repr(s.recv(1)), flush=True)"
    other = children.start(
        sys.executable, "-c", script, str(proxy.port), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert other.stdout.readline() == "x\n"
    mine = connect(proxy)
    mine.sendall(b"y")
    assert exactly(mine, 1) == b"y"
    proxy.cut_from(lambda: other.pid)
    assert "ConnectionResetError" in other.stdout.read()
    mine.sendall(b"y")
    assert exactly(mine, 1) == b"y"
    proxy.cut_from(os.getpid)
    with pytest.raises(ConnectionResetError):
        connect(proxy).recv(1)
    proxy.heal()
    again = connect(proxy)
    again.sendall(b"z")
    assert exactly(again, 1) == b"z"
