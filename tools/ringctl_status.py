"""What every node of a ring answers when asked for its status, all asked at once. Prints nothing."""

import secrets
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import msgspec

from common import bus, protocol
from common.errors import MinitrueError, ProtocolError
from common.ring import Node, Ring
from common.ringstore import Mark
from tools.ring_ask import RefusedError
from tools.ring_outlook import mark_text

ANSWER_WITHIN_S: Final = 2.0  # a node that is up answers in milliseconds, one under full load in tens of them
ASKED_AT_ONCE: Final = 32

UP: Final = "up"
OPENING: Final = "opening"
UNREACHABLE: Final = "unreachable"


class NodeStatus(msgspec.Struct, frozen=True):
    """A node of the ring as it answers now.

    reachable: whether it answered. state: "up", "opening" (its store, and refuses meanwhile), "unreachable". fault: ""
    or why something has to be done about it. answer: its status, empty when it did not answer or refused;
    docs/bus-protocol.md says what it holds.
    """

    id: str
    endpoint: str
    zone: str
    reachable: bool
    fault: str
    answer: dict[str, Any]
    state: str


def ask_all(ring: Ring, marks: Collection[Mark], key: bus.Key | None, whose: str = "the store has") -> list[NodeStatus]:
    """The status of every node, in the ring's order. A node that bears a mark has that as its fault, if no other.

    whose: says of a node with another ring where this one is.
    """
    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        found = list(pool.map(lambda node: _ask(ring, node, key, whose), ring.nodes))
    return [msgspec.structs.replace(node, fault=node.fault or _behind(node.id, marks)) for node in found]


def are_ahead(ring: Ring, nodes: Collection[NodeStatus]) -> bool:
    """Whether some node has a later ring than this one."""
    return any(node.answer.get("epoch", 0) > ring.epoch for node in nodes)


def _ask(ring: Ring, node: Node, key: bus.Key | None, whose: str) -> NodeStatus:
    try:
        answer = _answer(ring, node, key)
    except RefusedError as error:
        if error.code == protocol.ERR_OPENING:
            return NodeStatus(node.id, node.endpoint, node.zone, True, str(error), {}, OPENING)
        return NodeStatus(node.id, node.endpoint, node.zone, False, str(error), {}, UNREACHABLE)
    except MinitrueError as error:
        return NodeStatus(node.id, node.endpoint, node.zone, False, str(error), {}, UNREACHABLE)
    return NodeStatus(node.id, node.endpoint, node.zone, True, _fault(ring, answer, whose), answer, UP)


def _behind(node: str, marks: Collection[Mark]) -> str:
    said = [mark_text(node, mark.by) for mark in sorted(marks) if mark.node == node]
    return f"is behind: {'; '.join(said)}" if said else ""


def _answer(ring: Ring, node: Node, key: bus.Key | None) -> dict[str, Any]:
    """The body of the node's reply. Raises MinitrueError where none comes, or somebody else's."""
    incarnation = secrets.randbelow((1 << 63) - 1) + 1
    # Whoever listens there is asked, not just this node: "ing2 answers there" says more than silence.
    header = protocol.Header(
        protocol.VERSION, protocol.ANY, protocol.ANY, "ringctl", incarnation, 1, ring.epoch, ring.hash
    )
    message = bus.request(node.request_endpoint, protocol.STATUS, header, {}, ANSWER_WITHIN_S, key)
    found = (message.header.cluster, message.header.sender)
    if found != (ring.cluster, node.id):
        raise ProtocolError(f"{node.request_endpoint} is node {found[1]} of cluster {found[0]}, want {node.id} of ours")
    if message.kind == protocol.ERROR:
        refusal = protocol.decode_body(message.body, protocol.ErrorReply)
        raise RefusedError(refusal.error, f"{node.request_endpoint} answers {refusal.error}: {refusal.message}")
    return protocol.decode_body(message.body, dict[str, Any])


def _fault(ring: Ring, answer: dict[str, Any], whose: str) -> str:
    """What an answering node should be looked at for."""
    return "; ".join(filter(None, (_ring_fault(ring, answer, whose), _trouble(answer), _damage(answer), _kept(answer))))


def _ring_fault(ring: Ring, answer: dict[str, Any], whose: str) -> str:
    epoch, ring_hash = answer.get("epoch"), answer.get("ring_hash")
    if (epoch, ring_hash) == (ring.epoch, ring.hash):
        return ""
    if epoch == ring.epoch:
        return f"has another ring of epoch {epoch} ({ring_hash}, {whose} {ring.hash})"
    held = answer.get("not_adopted")
    why = f", and cannot adopt {held[0]}: {held[1]}" if held else ""
    return f"has the ring of epoch {epoch}, {whose} {ring.epoch}{why}"


def _trouble(answer: dict[str, Any]) -> str:
    trouble = answer.get("ring_store")
    return f"cannot follow the ring store: {trouble}" if trouble else ""


def _damage(answer: dict[str, Any]) -> str:
    count = len(answer.get("damaged", ()))
    return f"{count} damaged files or parts set aside, see damaged/ in its directory" if count else ""


def _kept(answer: dict[str, Any]) -> str:
    """What a node keeps of partitions that are not its own any more, because an owner lacks points of them."""
    forgetting = answer.get("forgetting") or {}
    count = forgetting.get("owners_lack", 0)
    said = f"keeps {count} partitions that it gave away, for owners lack points of them: {forgetting.get('trouble')}"
    return said if count else ""
