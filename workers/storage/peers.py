"""A node's own connections to other nodes, by which it compares and fetches.

Owns a DEALER for each peer and what is asked over it. Knows nothing of what the questions mean. Everything here belongs
to the repair thread.

A reply is taken once: by sequence and incarnation it belongs to a question in flight to that very peer; anything else
is counted and ignored. What was asked over a connection that is gone gets no answer; `lost` tells so.
"""

import itertools
from collections.abc import Iterator
from typing import Any, Final, Generic, NamedTuple, TypeVar

from common import bus, clock, log, protocol
from common.errors import ProtocolError
from common.protocol import Header, Message
from common.ring import Node as RingNode
from workers.storage.node import Node

TIMEOUT_S: Final = 60.0  # for one answer: digests of a very large store, on a slow disk, while it has much else to do
IDLE_S: Final = 300.0  # a connection that nobody needs any more

Asker = TypeVar("Asker")

logger = log.get("storage.repair")


class Asked(NamedTuple, Generic[Asker]):
    """A question in flight. by: who waits; until_s: monotonic."""

    by: Asker
    until_s: float


class Link(Generic[Asker]):
    """One connection. in_flight: by sequence."""

    def __init__(self, node: RingNode, socket: bus.Dealer) -> None:
        self.node = node
        self.socket = socket
        self.in_flight: dict[int, Asked[Asker]] = {}
        self.used_s = clock.monotonic_s()


class Peers(Generic[Asker]):
    """All of them. poller: of the thread; connections are registered there."""

    def __init__(self, sockets: bus.Bus, node: Node, poller: bus.Poller) -> None:
        self._sockets = sockets
        self._node = node
        self._poller = poller
        self._links: dict[str, Link[Asker]] = {}
        self._sequence = itertools.count(1)

    def ask(self, peer: RingNode, kind: bytes, body: Any, by: Asker) -> bool:
        """Ask a question; False while there is no connection: ask again."""
        link = self._link(peer)
        sequence = next(self._sequence)
        if not link.socket.send(protocol.pack(kind, self._header(peer.id, sequence), body)):
            return False
        link.used_s = clock.monotonic_s()
        link.in_flight[sequence] = Asked(by, link.used_s + TIMEOUT_S)
        return True

    def why_not(self, peer: RingNode) -> str:
        """Why there is no connection, in words."""
        failing = self._link(peer).socket.handshakes.failing
        return f"no connection to {peer.id} at {peer.request_endpoint}" + (f": {bus.HANDSHAKE_FAILED}" * failing)

    def replies(self, source: object) -> Iterator[tuple[Asker, Message]]:
        """What has come over a connection that is readable, and who waits for it."""
        for link in [each for each in self._links.values() if each.socket is source]:
            while (frames := link.socket.receive()) is not None:
                try:
                    message = protocol.unpack(frames)
                except ProtocolError as error:
                    self._node.ignore("garbage")
                    if logger.limited("garbage reply", 5.0):
                        logger.warning("frames ignored", peer=link.node.id, reason=str(error))
                    continue
                asked = self._asked(link, message.header)
                if asked is not None:
                    yield asked.by, message

    def lost(self) -> list[tuple[Asker, str]]:
        """Who waits for nothing any more, and why. Connections that nobody needs are closed, too."""
        now_s, found = clock.monotonic_s(), []
        for name, link in list(self._links.items()):
            gone = not link.socket.connected()
            for sequence, asked in list(link.in_flight.items()):
                if gone or now_s > asked.until_s:
                    del link.in_flight[sequence]
                    why = "the connection broke" if gone else f"no answer within {TIMEOUT_S:g} s"
                    found.append((asked.by, f"{name}: {why}"))
            if not link.in_flight and now_s - link.used_s > IDLE_S:
                self._close(link)
        return found

    def forget(self, by: Asker) -> None:
        """Nobody waits any more for what somebody asked; the peers are told."""
        for link in self._links.values():
            for sequence, asked in list(link.in_flight.items()):
                if asked.by is by:
                    del link.in_flight[sequence]
                    header = self._header(link.node.id, next(self._sequence), re=sequence)
                    link.socket.send(protocol.pack(protocol.CANCEL, header, {}))

    def close(self) -> None:
        """Close all connections."""
        for link in list(self._links.values()):
            self._close(link)

    def _link(self, peer: RingNode) -> Link[Asker]:
        link = self._links.get(peer.id)
        if link is not None and link.node.request_endpoint != peer.request_endpoint and not link.in_flight:
            self._close(link)
            link = None
        if link is None:
            link = self._links[peer.id] = Link(peer, self._sockets.dealer(peer.request_endpoint))
            self._poller.register(link.socket)
        return link

    def _asked(self, link: Link[Asker], header: Header) -> Asked[Asker] | None:
        """The question that a reply answers, taken from those in flight; None for what answers none."""
        mine = protocol.mismatch(header, self._node.cluster, self._node.node_id, self._node.incarnation) is None
        asked = None
        if mine and header.sender == link.node.id and header.re_incarnation == self._node.incarnation:
            asked = link.in_flight.pop(header.re, None)
        if asked is None:
            self._node.ignore("reply")
        return asked

    def _header(self, peer: str, sequence: int, re: int = 0) -> Header:
        ring = self._node.view.ring
        return Header(
            version=protocol.VERSION,
            cluster=self._node.cluster,
            destination=peer,
            sender=self._node.node_id,
            incarnation=self._node.incarnation,
            sequence=sequence,
            epoch=ring.epoch,
            ring_hash=ring.hash,
            re=re,
            re_incarnation=self._node.incarnation if re else 0,
        )

    def _close(self, link: Link[Asker]) -> None:
        self._poller.unregister(link.socket)
        link.socket.close()
        del self._links[link.node.id]
