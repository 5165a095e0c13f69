"""What nodes know of the ring, asked without the ring store: for when that is away, or has lost it. Prints nothing."""

import secrets
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple

from common import bus, clock, config, protocol
from common.errors import MinitrueError
from common.ring import Node, Ring
from tools import ringctl_nodes
from tools.ring_ask import RefusedError

ANSWER_WITHIN_S: Final = 2.0
OPENING_LOOK_S: Final = 0.2  # between questions to a node that opens its store: it knows a ring in a moment
ASKED_AT_ONCE: Final = 32


def first_nodes(settings: config.Settings, rings: Iterable[Ring]) -> list[Node]:
    """The nodes to ask first: those of all rings known, else those that the cluster began with."""
    nodes = {node.id: node for ring in sorted(rings, key=lambda ring: ring.epoch) for node in ring.nodes}
    if nodes:
        return list(nodes.values())
    return list(ringctl_nodes.new_ring(settings.path(settings.cluster.initial_ring), "any", True).nodes)


class Answer(NamedTuple):
    """The ring that a node goes by, and its status."""

    ring: Ring
    status: dict[str, Any]

    @property
    def bridges(self) -> list[dict[str, Any]]:
        """What bridges that it hears say of themselves."""
        return list(self.status.get("bridges", {}).values())


def ask_all(nodes: list[Node], key: bus.Key | None) -> tuple[dict[str, Answer], dict[str, str]]:
    """What nodes answer, also those that only other nodes know of; and why others do not."""
    answers: dict[str, Answer] = {}
    silent: dict[str, str] = {}
    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        while nodes:
            for node, (answer, why) in zip(nodes, pool.map(lambda node: _ask(node, key), nodes), strict=True):
                if answer is None:
                    silent[node.id] = why
                else:
                    answers[node.id] = answer
            named = {node.id: node for answer in answers.values() for node in answer.ring.nodes}
            nodes = [node for id_, node in named.items() if id_ not in answers and id_ not in silent]
    return answers, silent


def _ask(node: Node, key: bus.Key | None) -> tuple[Answer | None, str]:
    by_s = clock.monotonic_s() + ANSWER_WITHIN_S
    while True:
        try:
            reply = protocol.decode_body(_request(node, protocol.RING, key), protocol.RingReply)
            status = protocol.decode_body(_request(node, protocol.STATUS, key), dict[str, Any])
            return Answer(Ring.loads(reply.document), status), ""
        except RefusedError as error:
            if error.code != protocol.ERR_OPENING or clock.monotonic_s() > by_s:
                return None, str(error)
            time.sleep(OPENING_LOOK_S)
        except MinitrueError as error:
            return None, str(error)


def _request(node: Node, kind: bytes, key: bus.Key | None) -> bytes:
    incarnation = secrets.randbelow((1 << 63) - 1) + 1
    header = protocol.Header(protocol.VERSION, protocol.ANY, protocol.ANY, "ringctl", incarnation, 1, 0, "")
    message = bus.request(node.request_endpoint, kind, header, {}, ANSWER_WITHIN_S, key)
    if message.kind == protocol.ERROR:
        refusal = protocol.decode_body(message.body, protocol.ErrorReply)
        raise RefusedError(refusal.error, f"{node.request_endpoint} answers {refusal.error}: {refusal.message}")
    return message.body
