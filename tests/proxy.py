"""A TCP proxy of the loopback interface that can stall, lose, delay and reset what passes through it.

All proxies of a process run in one thread; what a method asks for is in force when it returns. "up" is the way from
the client to the target, "down" the way back.
"""

import asyncio
import contextlib
import functools
import socket
import struct
import threading
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any, Final

from tests.support import free_port

CHUNK_BYTES: Final = 1 << 16
QUEUED_CHUNKS: Final = 16  # in the proxy while a way is stalled; then the sender's own buffers fill
WAYS: Final = ("up", "down")


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """The loop that all proxies share, in a thread of its own."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="proxies", daemon=True).start()
    return loop


class Passage:
    """One connection through a proxy. passed: the bytes that were handed on, by way. is_holding: some wait.

    client_port: where the client's end is.
    """

    def __init__(self, rules: "dict[str, Rules]", client_port: int = 0) -> None:
        self.client_port = client_port
        self.passed = {way: bytearray() for way in WAYS}
        self.is_over = False
        self.is_holding = False
        self.has_lost = False  # bytes are missing: it can only be reset
        self.rules = rules
        self.writers: list[asyncio.StreamWriter] = []

    def reset(self) -> None:
        """End it as a network that has forgotten it does: RST at both ends, what was under way is lost."""
        self.is_over = True
        for writer in self.writers:
            _abort(writer)


class Rules:
    """What happens to bytes on one way. Owned by the loop's thread."""

    def __init__(self) -> None:
        self.delay_s = 0.0
        self.swallows = False
        self.flows = asyncio.Event()
        self.flows.set()


class Proxy:
    """Listens at `port` from its making until `close`, and connects each client to the target port.

    passages: every connection so far, in order. With record=False their bytes are counted but not kept.
    """

    def __init__(self, target: int, port: int = 0, record: bool = False) -> None:
        self.port = port or free_port()
        self.passages: list[Passage] = []
        self.bytes = dict.fromkeys(WAYS, 0)
        self._target = target
        self._record = record
        self._rules = {way: Rules() for way in WAYS}
        self._is_cut = False
        self._banned: Callable[[], int | None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server = self._run(self._listen())

    # Faults

    def stall(self, *ways: str) -> None:
        """Hand nothing on, lose nothing: what comes in flows when it is healed. No way named: both."""
        self._for_each(ways, lambda rules: rules.flows.clear())

    def swallow(self, *ways: str) -> None:
        """Lose what comes in from now on. Passages that have lost bytes are reset when it is healed."""
        self._for_each(ways, lambda rules: setattr(rules, "swallows", True))

    def delay(self, seconds: float, *ways: str) -> None:
        """Hand everything on so much later."""
        self._for_each(ways, lambda rules: setattr(rules, "delay_s", seconds))

    def hold(self, *ways: str) -> None:
        """Stall the passages that there are; later ones flow."""
        self._do(lambda: self._hold(ways or WAYS))

    def reset(self) -> None:
        """Reset every connection. New ones are let through."""
        self._do(lambda: [passage.reset() for passage in self.passages])

    def cut(self) -> None:
        """Reset every connection, and new ones at once."""
        self._is_cut = True
        self.reset()

    def cut_from(self, client: Callable[[], int | None]) -> None:
        """Reset the connections of one process, and new ones of it at once. client: its id, asked each time."""
        self._banned = client
        self._do(lambda: [each.reset() for each in self.open_passages if self._is_banned(each.client_port)])

    def heal(self) -> None:
        """No fault any more."""
        self._is_cut = False
        self._banned = None
        self._do(self._heal)

    @property
    def open_passages(self) -> list[Passage]:
        """Connections that are not over, oldest first."""
        return [passage for passage in self.passages if not passage.is_over]

    def close(self) -> None:
        """Reset every connection and listen no more."""
        self._do(self._server.close)
        self.cut()
        self._run(self._end_tasks())

    # In the loop's thread

    def _do(self, action: Callable[[], object]) -> None:
        async def run() -> None:
            action()

        self._run(run())

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, _loop()).result(30)

    def _for_each(self, ways: Iterable[str], change: Callable[[Rules], object]) -> None:
        self._do(lambda: [change(self._rules[way]) for way in ways or WAYS])

    def _hold(self, ways: Iterable[str]) -> None:
        for passage in self.passages:
            for way in ways:
                passage.rules[way] = Rules()
                passage.rules[way].flows.clear()

    def _heal(self) -> None:
        for passage in self.passages:
            if passage.has_lost:
                passage.reset()
        for rules in [*self._rules.values(), *(held for passage in self.passages for held in passage.rules.values())]:
            rules.delay_s, rules.swallows = 0.0, False
            rules.flows.set()

    def _is_banned(self, client_port: int) -> bool:
        process = self._banned and self._banned()
        return bool(process) and _has_connection(int(process or 0), client_port, self.port)

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._accept, "127.0.0.1", self.port, limit=CHUNK_BYTES)

    async def _end_tasks(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client_port = int(writer.get_extra_info("peername")[1])
        if self._is_cut or self._is_banned(client_port):
            _abort(writer)
            return
        try:
            onward_reader, onward_writer = await asyncio.open_connection("127.0.0.1", self._target, limit=CHUNK_BYTES)
        except OSError:
            _abort(writer)
            return
        passage = Passage(dict(self._rules), client_port)
        passage.writers = [writer, onward_writer]
        self.passages.append(passage)
        if self._is_cut or self._is_banned(client_port):  # meanwhile
            passage.reset()
        for way, source, destination in (("up", reader, onward_writer), ("down", onward_reader, writer)):
            queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(QUEUED_CHUNKS)
            self._spawn(self._take(passage, way, source, queue))
            self._spawn(self._hand_on(passage, way, queue, destination))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = _loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _take(
        self, passage: Passage, way: str, source: asyncio.StreamReader, queue: "asyncio.Queue[tuple[float, bytes]]"
    ) -> None:
        """Bytes that came in before the sender died still go on."""
        data = b"?"
        while data:
            try:
                data = await source.read(CHUNK_BYTES)
            except OSError:
                data = b""
            await queue.put((_loop().time() + passage.rules[way].delay_s, data))

    async def _hand_on(
        self, passage: Passage, way: str, queue: "asyncio.Queue[tuple[float, bytes]]", writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(OSError):  # the receiver is gone: nothing to hand on to
            while True:
                due_s, data = await queue.get()
                await asyncio.sleep(due_s - _loop().time())
                passage.is_holding = bool(data) and not passage.rules[way].flows.is_set()
                await passage.rules[way].flows.wait()
                if not data:
                    break
                if passage.rules[way].swallows:
                    passage.has_lost = True
                    continue
                self.bytes[way] += len(data)
                if self._record:
                    passage.passed[way] += data
                writer.write(data)
                await writer.drain()
        passage.is_over = True
        writer.close()


def _abort(writer: asyncio.StreamWriter) -> None:
    """Close with RST."""
    raw = writer.get_extra_info("socket")
    if raw is not None and raw.fileno() >= 0:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def _has_connection(process: int, local_port: int, remote_port: int) -> bool:
    """Whether a process has the connection of these two ports of the loopback interface."""
    ends = f":{local_port:04X}", f":{remote_port:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(ends[0]) and fields[2].endswith(ends[1]):
            return f"socket:[{fields[9]}]" in _descriptors(process)
    return False


def _descriptors(process: int) -> set[str]:
    """What the descriptors of a process stand for; nothing where it is gone."""
    found = set()
    with contextlib.suppress(FileNotFoundError):
        for each in Path(f"/proc/{process}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found.add(str(each.readlink()))
    return found
