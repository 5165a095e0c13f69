"""Deletes on their way: committed in the ring store, then waited for until everybody acts on them.

A commit is compare-and-swap on the ring's epoch: where another writer was first, it begins anew with that ring. Once it
is in the store a delete is in force: no node answers, or takes points in, at its epoch without it. Waiting for nodes
and bridges is for what comes after: then no old answer is given any more, and points published from then on are not
taken for older ones. Any thread of the pool.
"""

import random
import threading
import time
from collections.abc import Mapping
from typing import Any, Final

from msgspec import Struct

from common import clock, protocol
from common.errors import RingConflictError, RingError, RingStoreError
from common.ring import DeleteRecord, Ring
from common.ringbuild import with_delete
from common.ringrules import fault_of
from common.ringstore import RingStore
from common.selector import Selector
from workers.query.frame import Context
from workers.query.gather import NEVER_S
from workers.query.handlers_health import freshest_bridges
from workers.query.refusal import Refusal

TRIES: Final = 20  # that another process was first so often in a row is no accident
PAUSE_S: Final = 0.02  # between tries, at most: whoever was first has the store to itself meanwhile
BEAT_MARGIN_S: Final = 0.5  # beyond a heartbeat, after which a node has heard every bridge that reaches it
LOOK_S: Final = 0.05  # between looks at who has adopted: nodes and bridges look at the store at once when told

_one_at_a_time: Final = threading.Lock()  # commits of this process: only others compete


class Worker(Struct):
    """A node or bridge that has not adopted the epoch, as far as is known. reason: why."""

    worker: str
    reason: str


class Adoption(Struct):
    """Who acts on an epoch. waiting: who can be reached, and does not yet as far as is known; unreachable: will not
    answer without it.
    """

    adopted: list[str]
    waiting: list[Worker]
    unreachable: list[Worker]


def commit(
    store: RingStore, selector: Selector, start_ns: int, end_ns: int, in_force: Ring | None = None
) -> DeleteRecord:
    """Put a delete into the ring store. in_force: the ring by which this worker goes, if any.

    Raises Refusal, which says whether the delete may be in force. What no worker would follow is not built on: those
    at its epoch would count as having adopted the delete.
    """
    with _one_at_a_time:
        for _ in range(TRIES):
            ring = load(store)
            if in_force is not None and (fault := fault_of(ring, in_force)) is not None:
                text = f"nothing is deleted, nobody follows what {store.url} holds: {fault[1]}; put the latest back"
                raise Refusal(503, "ring_store", text)
            try:
                wanted = with_delete(ring, selector, start_ns, end_ns)
            except RingError as error:
                raise Refusal(422, "limit", f"nothing is deleted: {error}") from error
            try:
                store.save(wanted, ring.epoch)
            except RingConflictError:
                time.sleep(random.uniform(0.0, PAUSE_S))
                continue
            except (RingError, RingStoreError) as error:
                raise _not_sure(store, wanted, error) from error
            return wanted.deletes[-1]
    raise Refusal(503, "ring_store", f"nothing is deleted: others wrote the ring first {TRIES} times, ask again")


def load(store: RingStore) -> Ring:
    """The ring that the store holds. Raises Refusal."""
    try:
        ring = store.load()
    except (RingError, RingStoreError) as error:
        raise Refusal(503, "ring_store", f"nothing is deleted, the ring store cannot be used: {error}") from error
    if ring is None:
        raise Refusal(503, "not_ready", f"nothing is deleted: no ring in {store.url} yet, see tools/ringctl init")
    return ring


def _not_sure(store: RingStore, wanted: Ring, error: Exception) -> Refusal:
    """What to say of a save that failed: it may have come as far as to count."""
    number = wanted.delete_number
    try:
        stored = store.load()
    except (RingError, RingStoreError):
        text = f"delete {number} may be in force or not: {error}; GET /api/v1/deletes tells when the ring store is back"
        return Refusal(503, "ring_store", text)
    if stored is not None and wanted.deletes[-1] in stored.deletes:
        return Refusal(503, "ring_store", f"delete {number} is in force, but a power cut may undo it: {error}")
    return Refusal(503, "ring_store", f"nothing is deleted, delete {number} is not in force: {error}")


def adoption(context: Context, epoch: int, timeout_s: float) -> Adoption:
    """Who acts on an epoch, when everybody who can be reached does, or the time is over."""
    deadline_s = clock.monotonic_s() + timeout_s
    while True:
        context.scatter.hurry()
        found = _look(context, epoch)
        if not found.waiting or clock.monotonic_s() >= deadline_s:
            return found
        time.sleep(LOOK_S)


def _look(context: Context, epoch: int) -> Adoption:
    survey = context.survey(protocol.STATUS, dict[str, Any])
    found, heard_s = Adoption([], [], []), context.settings.bus.heartbeat_s + BEAT_MARGIN_S
    _sort(found, context.scatter.name, survey.epoch, epoch, "")
    for node, status in sorted(survey.replies.items()):
        _sort(found, node, status.get("epoch", 0), epoch, _held_up(status))
    for node, trouble in sorted(survey.trouble.items()):
        # Whether its connection stands, so that it may still go by the old ring: busy, or starting.
        stands = trouble.until_s == NEVER_S or trouble.code == protocol.ERR_OPENING
        (found.waiting if stands else found.unreachable).append(Worker(node, trouble.reason))
    if survey.replies and all(status.get("uptime_s", heard_s) < heard_s for status in survey.replies.values()):
        node = min(survey.replies)
        found.waiting.append(Worker(node, "has just been started, as all that answer: no bridge may be known yet"))
    for bridge, told in sorted(freshest_bridges(survey.replies).items()):
        age_s = told["age_s"]
        if told["epoch"] < epoch and age_s > context.settings.bridge_late_s:
            found.unreachable.append(Worker(bridge, f"not heard for {age_s:.0f} s, it was at epoch {told['epoch']}"))
        else:
            _sort(found, bridge, told["epoch"], epoch, "")
    return found


def _sort(found: Adoption, worker: str, at: int, epoch: int, why: str) -> None:
    if at >= epoch:
        found.adopted.append(worker)
    else:
        found.waiting.append(Worker(worker, f"is at epoch {at}{why}"))


def _held_up(status: Mapping[str, Any]) -> str:
    """Why a node does not adopt a ring that it knows of, as far as it says so."""
    held = status.get("not_adopted")
    return f", cannot adopt {held[0]}: {held[1]}" if held else ""
