"""Answers at the door of a storage node while its store opens: every question, at once, with the error `opening`.

Owns the ROUTER, and the thread that reads it, from when the port is bound until `leave`; from then on they are the
server's (serve.py). Knows nothing of the store, and loads no kernels.

A replay takes seconds, and a question that is left unread for so long keeps its asker waiting, though a co-owner could
answer. To bind the port later would not help: then it waits in the asker's own queue, or for a connection. So it is
refused, with a code that says of the node only that it is on its way: not that it owns nothing, and not that it holds
nothing. Whoever asks takes it for a refusal that passes.

`status` is refused as well. A reply to it would be taken for that of a node at work, with an epoch that it goes by,
points, and bridges that it hears; this one has none of them to tell yet. For the same reason the answers name no ring.

Batches are no questions: they wait in their own socket until they can be made durable.
"""

import itertools
import secrets
import threading
from collections import Counter
from typing import Final, Self

from common import bus, log, protocol
from common.errors import ProtocolError
from common.protocol import ErrorReply, Header, Message
from common.wake import Wake

TEXT: Final = "the store is being opened{progress}: ask another owner, or again in a moment"

logger = log.get("storage")


class Porter:
    """Serves while it is entered, until `leave`.

    incarnation, sequence, ignored: of the process, so the node has them after it.
    progress: how far the opening is, in words, "" for not known; replaced by the thread that opens.
    """

    def __init__(self, router: bus.Router, cluster: str, node_id: str) -> None:
        self.incarnation = secrets.randbits(63) | 1
        self.sequence = itertools.count(1)
        self.ignored: Counter[str] = Counter()
        self.progress = ""
        self._router = router
        self._cluster = cluster
        self._node_id = node_id
        self._leaving = Wake()
        self._thread = threading.Thread(target=self._run, name="porter", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def tell(self, progress: str) -> None:
        """Say from now on how far the opening is."""
        self.progress = progress

    def leave(self) -> None:
        """Answer no more, and touch the ROUTER no more. Twice is no error."""
        self._leaving.set()
        self._thread.join()

    def _run(self) -> None:
        poller = bus.Poller([self._router, self._leaving])
        try:
            while self._leaving not in poller.poll(None):
                if (received := self._router.receive_routed()) is not None:
                    self._take(*received)
        except Exception:
            logger.exception("BUG: the porter failed: questions wait until the store is open")

    def _take(self, route: list[bytes], frames: list[bytes]) -> None:
        try:
            message = protocol.unpack(frames)
        except ProtocolError:
            self.ignored["garbage"] += 1
            return
        reason = protocol.misaddressed(message, self._cluster, self._node_id, self.incarnation)
        if reason is not None:
            self.ignored[reason] += 1
        elif message.kind != protocol.CANCEL:
            self._router.reply(route, self._refusal(message))

    def _refusal(self, message: Message) -> list[bytes]:
        to, progress = message.header, self.progress
        header = Header(
            version=protocol.VERSION,
            cluster=self._cluster,
            destination=to.sender,
            sender=self._node_id,
            incarnation=self.incarnation,
            sequence=next(self.sequence),
            epoch=0,
            ring_hash="",
            re=to.sequence,
            re_incarnation=to.incarnation,
        )
        text = TEXT.format(progress=f" ({progress})" if progress else "")
        return protocol.pack(protocol.ERROR, header, ErrorReply(protocol.ERR_OPENING, text))
