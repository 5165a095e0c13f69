"""The live feed's other end: hears what nodes publish while anybody listens, and hands it to the streams.

Owns one SUB for each node and the streams; a thread of its own runs while there are any. A stream that is full is
ended, so none can keep another waiting, and no node knows how many there are. What was missed is told: nodes number
what they publish, and greet a subscriber with the number of the last.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec
import numpy as np

from common import bus, clock, config, log, protocol
from common.errors import ProtocolError
from common.match import Match, Tester
from common.points import PointBatch
from common.protocol import Message
from common.ring import Node, Ring
from common.series import parse_key
from common.wake import Wake
from workers.query import table
from workers.query.gate import Busy
from workers.query.plan import Plan

TICK_S: Final = 0.1  # how soon the thread notices a ring, and that nobody listens any more
READY_S: Final = 1.0  # for which a new stream waits for the greetings of all nodes
TURN_MESSAGES: Final = 16  # of one node before the others' turn
KNOWN_SERIES: Final = 200_000  # of which is remembered whether they match, in all channels together: 60 MB

logger = log.get("query.live")
_json: Final = msgspec.json.Encoder()


def event(name: str, data: Any) -> bytes:
    """A server-sent event; data: what JSON can carry."""
    return b"event: " + name.encode() + b"\ndata: " + _json.encode(data) + b"\n\n"


HEARTBEAT: Final = b": heartbeat\n\n"


class Stream:
    """What waits for one reader, an iterator of bytes. Filled by the live thread; guarded by its condition."""

    def __init__(self, live: "Live", channel: "_Channel", most: int, heartbeat_s: float) -> None:
        self.greeted = False  # whether it was told who is heard; live thread
        self.opened_s = clock.monotonic_s()
        self.channel = channel
        self._live = live
        self._most = most
        self._heartbeat_s = heartbeat_s
        self._changed = threading.Condition()
        self._events: list[bytes] = []
        self._points = 0
        self._ended = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        """All that waits; a heartbeat when nothing comes for so long. Ends after an error event."""
        with self._changed:
            if not self._events and not self._ended:
                self._changed.wait(self._heartbeat_s)
            events, self._events, self._points = self._events, [], 0
            if events:
                return b"".join(events)
            if self._ended:
                raise StopIteration
            return HEARTBEAT

    def put(self, told: bytes, points: int = 0) -> None:
        """Hand an event over. A stream that is full is ended with an error event."""
        with self._changed:
            if self._ended:
                return
            if points and self._points >= self._most:
                self._live.counts["dropped"] += 1
                self._end("slow_reader", f"{self._points} points wait (query.live_queue = {self._most}): read faster")
            else:
                self._events.append(told)
                self._points += points
            self._changed.notify()

    def end(self, error: str, message: str) -> None:
        """Tell the reader why, and end."""
        with self._changed:
            if not self._ended:
                self._end(error, message)
            self._changed.notify()

    @property
    def ended(self) -> bool:
        """Whether nothing more is put in."""
        return self._ended

    def close(self) -> None:
        """The reader has gone. Again is no error."""
        self._live.leave(self)

    def _end(self, error: str, message: str) -> None:
        """Under the condition."""
        self._ended = True
        self._events, self._points = [event("error", {"error": error, "message": message})], 0


class _Channel:
    """Streams that want the same: what they get is encoded once. Live thread, but for `streams` (Live's lock)."""

    def __init__(self, match: Match, unit: str) -> None:
        self.streams: tuple[Stream, ...] = ()
        self._tester = Tester(match)
        self._unit = unit
        self._known: dict[bytes, bytes | None] = {}  # by key: how each of its rows begins, None where it does not match

    def rows(self, batch: PointBatch, most: int) -> list[bytes]:
        """The points that match, as JSON. most: series to remember."""
        if len(self._known) > most:
            self._known.clear()
        begins = [self._begin(key) for key in batch.keys]
        matching = np.array([begin is not None for begin in begins], np.bool_)
        if not matching.any():
            return []
        inside = matching[batch.index]
        times = table.texts(table.times(batch.times[inside], self._unit))
        values = table.texts(batch.values[inside].tolist())
        which = batch.index[inside].tolist()
        return [
            b"%b%b,\"value\":%b}" % (begins[at], time, value)
            for at, time, value in zip(which, times, values, strict=True)
        ]

    def _begin(self, key: bytes) -> bytes | None:
        if key not in self._known:
            series = parse_key(key)
            tester = self._tester
            matches = (
                tester.device(series.device_id) and tester.metric(series.metric_name) and tester.tags(series.tags)
            )
            told = {"device_id": series.device_id, "metric_name": series.metric_name, "tags": dict(series.tags)}
            self._known[key] = _json.encode(told)[:-1] + b',"time":' if matches else None
        return self._known[key]


class _Link:
    """The feed of one node. last: incarnation and number of its latest message, None before the first."""

    def __init__(self, node: Node, socket: bus.Socket) -> None:
        self.node = node.id
        self.endpoint = node.live_endpoint
        self.socket = socket
        self.last: tuple[int, int] | None = None


class Live:
    """See the module's text. `open` and `leave` are for any thread; the rest is the live thread's.

    streams: how many there are; counts: events by name; both read by any thread.
    """

    def __init__(self, sockets: bus.Bus, plan: Callable[[], Plan | None], settings: config.Query) -> None:
        """plan: gives that of the ring in force."""
        self.counts: Counter[str] = Counter()
        self._sockets = sockets
        self._plan = plan
        self._most = settings.live_streams
        self._queue = settings.live_queue
        self._heartbeat_s = settings.live_heartbeat_s
        self._lock = threading.Lock()  # guards channels, the streams in them, and whether the thread runs
        self._channels: dict[bytes, _Channel] = {}
        self._running = False
        self._links: dict[str, _Link] = {}
        self._wake = Wake()  # a new stream is greeted at once

    # Any thread

    @property
    def streams(self) -> int:
        """How many there are."""
        return sum(len(channel.streams) for channel in list(self._channels.values()))

    def open(self, match: Match, unit: str) -> Stream:
        """A stream of the points that match. Raises Busy when there are too many, ProtocolError for a bad pattern."""
        key = msgspec.msgpack.encode((match, unit))
        fresh = _Channel(match, unit)
        with self._lock:
            if self.streams >= self._most:
                text = f"{self.streams} live streams are open, at most {self._most} (query.live_streams)"
                raise Busy("query.live_streams", self._most, self.streams + 1, text)
            channel = self._channels.setdefault(key, fresh)
            stream = Stream(self, channel, self._queue, self._heartbeat_s)
            channel.streams = (*channel.streams, stream)
            if not self._running:
                self._running = True
                threading.Thread(target=self._run, name="live", daemon=True).start()
        self._wake.set()
        return stream

    def leave(self, stream: Stream) -> None:
        """Forget a stream."""
        with self._lock:
            channel = stream.channel
            channel.streams = tuple(each for each in channel.streams if each is not stream)
            for key, known in list(self._channels.items()):
                if not known.streams:
                    del self._channels[key]

    # The live thread

    def _run(self) -> None:
        try:
            while not self._is_over():
                self._turn()
        except Exception as error:
            logger.exception("BUG: the live thread failed, its streams end")
            with self._lock:
                self._running = False
            for stream in self._all():
                stream.end("internal", f"BUG: {type(error).__name__}: {error}")
        finally:
            for link in list(self._links.values()):
                self._drop(link)

    def _is_over(self) -> bool:
        """Whether nobody listens; who comes after that starts the thread anew."""
        with self._lock:
            if self._channels:
                return False
            for link in list(self._links.values()):
                self._drop(link)
            self._running = False
            return True

    def _all(self) -> list[Stream]:
        return [stream for channel in list(self._channels.values()) for stream in channel.streams]

    def _turn(self) -> None:
        """Follow the ring, hear what there is, hand it on."""
        plan = self._plan()
        if plan is not None:
            self._follow(plan.ring)
        by_socket = {link.socket: link for link in self._links.values()}
        ready = bus.Poller([self._wake, *by_socket]).poll(TICK_S)
        if self._wake in ready:
            self._wake.clear()
        batches = [batch for each in ready if each in by_socket for batch in self._heard(by_socket[each], plan)]
        channels = list(self._channels.values())
        for channel in channels:
            rows = [row for batch in batches for row in channel.rows(batch, KNOWN_SERIES // len(channels))]
            if rows:
                self.counts["points"] += len(rows)
                told = b"event: point\ndata: [" + b",".join(rows) + b"]\n\n"
                for stream in channel.streams:
                    stream.put(told, len(rows))
        self._greet()

    def _heard(self, link: _Link, plan: Plan | None) -> list[PointBatch]:
        """The points of what a node has published lately."""
        found = []
        for _ in range(TURN_MESSAGES):
            frames = link.socket.receive()
            if frames is None:
                break
            try:
                message = protocol.unpack(frames)
                if not _is_from(message, link.node, plan):
                    raise ProtocolError(f"{message.kind.decode()} of {message.header.sender!r} on {link.endpoint}")
                batch = PointBatch.decode(message.body)
            except ProtocolError as error:
                self.counts["ignored"] += 1
                if logger.limited("ignored", 5.0):
                    logger.warning("frames ignored", node=link.node, reason=str(error))
                continue
            self._count(link, message, bool(len(batch)))
            if len(batch):
                found.append(batch)
        return found

    def _count(self, link: _Link, message: Message, has_points: bool) -> None:
        """Look for a hole before a message; a greeting bears the number of the last one."""
        header, before = message.header, link.last
        link.last = header.incarnation, header.sequence
        if before is None:
            if any(stream.greeted for stream in self._all()):
                self._tell_lost(link, None, "it is heard since now only")
        elif before[0] != header.incarnation:
            self._tell_lost(link, None, "it was started again")
        elif missed := header.sequence - before[1] - int(has_points):
            self._tell_lost(link, missed, "this worker or the connection was too slow, or broke")

    def _tell_lost(self, link: _Link, messages: int | None, reason: str) -> None:
        self.counts["lost"] += 1
        told = event("lost", {"node": link.node, "messages": messages, "reason": reason})
        for stream in self._all():
            stream.put(told)

    def _greet(self) -> None:
        """Tell new streams whom they hear, when all nodes are heard, or that takes too long."""
        silent = sorted(link.node for link in self._links.values() if link.last is None)
        heard = sorted(link.node for link in self._links.values() if link.last is not None)
        late_s = clock.monotonic_s() - READY_S
        for stream in self._all():
            if not stream.greeted and ((heard and not silent) or stream.opened_s < late_s):
                stream.greeted = True
                stream.put(event("ready", {"nodes": heard, "missing": silent}))

    def _follow(self, ring: Ring) -> None:
        wanted = {node.id: node for node in ring.nodes}
        for link in list(self._links.values()):
            if link.node not in wanted or wanted[link.node].live_endpoint != link.endpoint:
                self._drop(link)
        for node in wanted.values():
            if node.id not in self._links:
                self._connect(node)

    def _connect(self, node: Node) -> None:
        try:
            self._links[node.id] = _Link(node, self._sockets.subscriber(node.live_endpoint, protocol.LIVE))
        except bus.BusError as error:
            if logger.limited(f"connect {node.id}", 30.0):
                logger.error("node cannot be heard", node=node.id, detail=str(error))

    def _drop(self, link: _Link) -> None:
        del self._links[link.node]
        link.socket.close()


def _is_from(message: Message, node: str, plan: Plan | None) -> bool:
    header = message.header
    return message.kind == protocol.LIVE and header.sender == node and plan is not None and (
        header.cluster == plan.ring.cluster
    )
