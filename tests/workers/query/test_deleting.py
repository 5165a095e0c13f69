"""What a delete can name, and how it is committed: beside other writers, and in a ring store that fails."""

import dataclasses
import errno
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from common import config, protocol
from common.errors import RingStoreError
from common.match import Match, Pattern, one
from common.protocol import AggregateReply
from common.ring import DeleteRecord, Node, Ring
from common.ringbuild import first_ring, with_delete
from common.ringstore import FileStore
from common.selector import Selector
from tests.disks import QuickDisk
from tests.support import free_port_range, wait_until
from tests.workers.query.fake import FakeNode, make_ring, point
from tests.workers.query.groups import naive_groups
from tests.workers.query.inside import Inside
from workers.query import deleting, handlers_deletes
from workers.query.frame import Context
from workers.query.gather import Ask, Gather
from workers.query.handlers_deletes import selector_of, shown
from workers.query.plan import Plan
from workers.query.refusal import Refusal
from workers.query.scatter import Scatter
from workers.query.selection import selection

NODES = [Node(f"ing{at}", "", f"tcp://127.0.0.1:{5700 + 10 * at}", "z", 1.0, "active") for at in (1, 2)]
FIRST = first_ring("c1", NODES, 16, 2)


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    made = FileStore(tmp_path / "ring.json")
    made.save(FIRST, 0)
    return made


# What it names


@pytest.mark.parametrize(
    ("parameters", "wanted"),
    [
        ({"device_id": "a"}, Selector("a")),
        ({"device_id": "a", "metric_name": "*"}, Selector("a")),
        ({"device_id": "a", "metric_name": "m", "tags": {}}, Selector("a", "m", {})),
        ({"device_id": {"exact": "a*"}, "metric_name": {"exact": "*"}}, Selector("a*", "*")),
        ({"device_id": ["a"], "tags": {"room": "", "k": {"exact": "~"}}}, Selector("a", None, {"room": "", "k": "~"})),
    ],
)
def test_a_delete_names_one_device_one_metric_or_all_and_exact_tags_or_any(
    parameters: Mapping[str, Any], wanted: Selector
) -> None:
    assert selector_of(selection(parameters, config.Ingest(), 0).match) == wanted


@pytest.mark.parametrize(
    ("parameters", "field", "text"),
    [
        ({"device_id": "a*"}, "device_id", r"device_id is a pattern \(glob\): a delete names one device_id"),
        ({"device_id": "~a"}, "device_id", r"device_id is a pattern \(regex\)"),
        ({"device_id": ["a", "b"]}, "device_id", "device_id is a list"),
        ({"device_id": "*"}, "device_id", "one metric_name or all of them"),
        ({"device_id": "a", "metric_name": "m?"}, "metric_name", r"metric_name is a pattern \(glob\)"),
        ({"device_id": "a", "metric_name": ["*", "m"]}, "metric_name", "metric_name is a list"),
        ({"device_id": "a", "tags": {"k": "*"}}, "tags", r"tags is a pattern \(glob\)"),
        ({"device_id": "a", "tags": {"k": ["x", "y"]}}, "tags", "tags is a list"),
        ({"device_id": "a", "tags": {"k": "x"}, "more_tags": True}, "more_tags", "more_tags is not for deletes"),
    ],
)
def test_what_a_delete_cannot_name_is_refused_with_what_it_can(
    parameters: Mapping[str, Any], field: str, text: str
) -> None:
    with pytest.raises(Refusal, match=text) as refused:
        selector_of(selection(parameters, config.Ingest(), 0).match)
    assert (refused.value.status, refused.value.field) == (400, field)


def test_a_delete_needs_a_device() -> None:
    with pytest.raises(Refusal, match="device_id is a list"):  # of none; the handler requires the field before
        selector_of(Match((), (Pattern("is", "m"),)))
    assert selector_of(one("a", "m")) == Selector("a", "m")


def test_a_record_is_shown_with_null_for_open_ends() -> None:
    record = DeleteRecord(3, "a", None, {"k": "v"}, -(2**63), 1_500_000_000)
    assert shown(record, "s") == {
        "number": 3, "device_id": "a", "metric_name": None, "tags": {"k": "v"}, "start_time": None, "end_time": 1.5
    }  # fmt: skip


# What it matches


def matched(inside: Inside, **parameters: Any) -> dict[str, Any] | None:
    return handlers_deletes._matched(inside.context, selection(parameters, config.Ingest(), 0), 1.0)


def test_a_delete_tells_what_it_finds_and_a_typo_finds_nothing() -> None:
    points = [point("a", metric, at, 1.0) for metric, at in (("m", 1), ("m", 2), ("n", 3))]
    answering = Inside(lambda node, _, asked: naive_groups(asked.partitions, points if node == "ing1" else [], asked))
    assert matched(answering, device_id="a") == {"series": 2, "points": 3, "complete": True}
    assert matched(answering, device_id="A") == {"series": 0, "points": 0, "complete": True}


def test_where_nodes_are_away_or_cannot_count_a_delete_is_not_held_up() -> None:
    points = [point("a", "m", 1, 1.0)]
    inside = Inside(lambda node, _, asked: naive_groups(asked.partitions, points if node == "ing1" else [], asked))
    inside.scatter.away = {"ing2"}
    assert matched(inside, device_id="a") == {"series": 1, "points": 1, "complete": False}
    inside.scatter.away = {"ing1", "ing2", "ing3"}
    assert matched(inside, device_id="a") is None
    too_many = protocol.ErrorReply(protocol.ERR_LIMIT, "too many series", setting="query.max_series", limit=9)
    assert matched(Inside(lambda *_: too_many), device_id="a") is None


# Commits


class Beaten(FileStore):
    """A store that others write so many times between our look and our save."""

    left = 0

    def save(self, ring: Ring, expected_epoch: int) -> None:
        if self.left:
            self.left -= 1
            stored = self.load()
            assert stored is not None
            super().save(with_delete(stored, Selector("theirs"), 0, 1), stored.epoch)
        super().save(ring, expected_epoch)


def test_a_commit_begins_anew_where_others_were_first_and_keeps_their_deletes(store: FileStore) -> None:
    beaten = Beaten(store.path)
    beaten.left = 3
    record = deleting.commit(beaten, Selector("ours"), 5, 9)
    assert (record.number, record.device_id, record.start_ns, record.end_ns) == (5, "ours", 5, 9)
    ring = store.load()
    assert ring is not None
    assert [each.device_id for each in ring.deletes] == ["theirs"] * 3 + ["ours"]


def test_a_commit_that_others_beat_for_ever_ends_and_nothing_is_deleted(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deleting, "PAUSE_S", 0.0)
    beaten = Beaten(store.path)
    beaten.left = 1000
    with pytest.raises(Refusal, match="nothing is deleted: others wrote the ring first 20 times") as refused:
        deleting.commit(beaten, Selector("ours"), 5, 9)
    assert (refused.value.status, refused.value.error) == (503, "ring_store")
    ring = store.load()
    assert ring is not None and "ours" not in [each.device_id for each in ring.deletes]


def test_a_ring_that_is_full_of_deletes_says_so(store: FileStore) -> None:
    records = tuple(DeleteRecord(number, "a", None, None, 0, 9) for number in range(2, 10_002))
    full = dataclasses.replace(FIRST, epoch=10_001, deletes=records)
    store.path.write_bytes(full.dumps())
    with pytest.raises(Refusal, match=r"nothing is deleted: .*deletes must number at most 10000") as refused:
        deleting.commit(store, Selector("a"), 0, 9)
    assert (refused.value.status, refused.value.error) == (422, "limit")


@pytest.mark.parametrize("content", [None, b"{"])
def test_without_a_usable_ring_nothing_is_deleted(store: FileStore, content: bytes | None) -> None:
    store.path.unlink() if content is None else store.path.write_bytes(content)
    with pytest.raises(Refusal, match="nothing is deleted") as refused:
        deleting.commit(store, Selector("a"), 0, 9)
    assert refused.value.status == 503


@pytest.mark.parametrize(
    ("device", "text"),
    [(None, "ring of epoch 1, in force is 2"), ("theirs", "epoch 2 with hash [0-9a-f]{16}, in force is ")],
)
def test_on_a_ring_that_was_put_back_nothing_is_built_for_nobody_would_follow_it(
    store: FileStore, device: str | None, text: str
) -> None:
    in_force = with_delete(FIRST, Selector("a"), 0, 9)
    if device is not None:
        store.save(with_delete(FIRST, Selector(device), 0, 9), 1)
    before = store.path.read_bytes()
    with pytest.raises(Refusal, match=f"nothing is deleted, nobody follows what .*ring.json holds: {text}") as refused:
        deleting.commit(store, Selector("b"), 0, 9, in_force)
    assert (refused.value.status, refused.value.error) == (503, "ring_store")
    assert store.path.read_bytes() == before


def test_a_store_ahead_of_the_ring_in_force_is_built_on(store: FileStore) -> None:
    store.save(with_delete(FIRST, Selector("theirs"), 0, 9), 1)
    assert deleting.commit(store, Selector("ours"), 0, 9, FIRST).number == 3


def opening(node: FakeNode, route: list[bytes], message: protocol.Message) -> bool:
    error = protocol.ErrorReply(protocol.ERR_OPENING, "says the node")
    node.send(route, protocol.pack(protocol.ERROR, node.header(message), error))
    return True


def test_a_node_that_is_connected_and_says_nothing_or_opens_its_store_is_waited_for(store: FileStore) -> None:
    ring = make_ring([free_port_range(3) for _ in range(3)])
    store.path.unlink()
    store.save(ring, 0)
    nodes = [FakeNode(ring, node.id) for node in ring.nodes]
    of = Scatter("query-test", store, 0.05)
    of.start()
    context = Context(of, config.Settings(query=config.Query(timeout_s=0.3)))
    wait_until(lambda: context.survey(protocol.STATUS, dict[str, Any]).complete(), what="all nodes answer")
    nodes[0].reaction = opening
    nodes[1].reaction = lambda *_: True
    nodes[2].stop()
    wait_until(lambda: not of._links["ing3"].socket.connected(), what="it is gone")
    found = deleting._look(context, 1)
    told = [{each.worker: each.reason for each in those} for those in (found.waiting, found.unreachable)]
    assert told[0]["ing1"] == "opening: says the node"
    assert told[0]["ing2"] == "no answer within 0.3 s"
    assert list(told[1]) == ["ing3"]
    of.close()
    for node in nodes[:2]:
        node.stop()


def test_while_no_node_can_have_heard_of_every_bridge_nobody_is_taken_for_all() -> None:
    def status(*uptimes_s: float) -> dict[str, Any]:
        return {f"ing{at}": {"epoch": 1, "bridges": {}, "uptime_s": each} for at, each in enumerate(uptimes_s, 1)}

    inside = Inside(lambda node, *_: told[node])
    for uptimes_s, waiting in (((1.4, 0.1, 1.0), ["ing1"]), ((1.4, 0.1, 1.6), [])):
        told = status(*uptimes_s)
        assert [each.worker for each in deleting._look(inside.context, 1).waiting] == waiting


class Failing(QuickDisk):
    """A disk that fails at one step of replacing the ring."""

    step = ""

    def create(self, path: Path, mode: int = 0o644, exclusive: bool = False) -> int:
        self._fail("create")
        return super().create(path, mode, exclusive)

    def rename(self, old: Path, new: Path) -> None:
        self._fail("rename")
        super().rename(old, new)

    def sync_directory(self, path: Path) -> None:
        if not path.name.endswith(".history"):  # that comes before
            self._fail("sync_directory")
        super().sync_directory(path)

    def _fail(self, step: str) -> None:
        if step == self.step:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("step", "text", "is_there"),
    [
        ("create", "nothing is deleted, delete 2 is not in force: cannot write .*No space left", False),
        ("rename", "nothing is deleted, delete 2 is not in force: ", False),
        ("sync_directory", "delete 2 is in force, but a power cut may undo it: ", True),
    ],
)
def test_a_ring_store_that_fails_says_whether_the_delete_is_in_force(
    store: FileStore, step: str, text: str, is_there: bool
) -> None:
    disk = Failing()
    failing = FileStore(store.path, disk)
    disk.step = step
    with pytest.raises(Refusal, match=text) as refused:
        deleting.commit(failing, Selector("a"), 0, 9)
    assert (refused.value.status, refused.value.error) == (503, "ring_store")
    ring = store.load()
    assert ring is not None and bool(ring.deletes) is is_there


class Gone(FileStore):
    """A store that cannot be used any more from a save on."""

    is_gone = False

    def load(self) -> Ring | None:
        if self.is_gone:
            raise RingStoreError("gone")
        return super().load()

    def save(self, ring: Ring, expected_epoch: int) -> None:
        self.is_gone = True
        raise RingStoreError("no answer")


def test_a_ring_store_that_is_gone_after_a_save_leaves_it_open_and_says_where_to_look(store: FileStore) -> None:
    text = re.escape("delete 2 may be in force or not: no answer; GET /api/v1/deletes tells")
    with pytest.raises(Refusal, match=text):
        deleting.commit(Gone(store.path), Selector("a"), 0, 9)


# Replies


def reply(partitions: int, delete_number: int) -> AggregateReply:
    bits = partitions.to_bytes(2, "little")
    return AggregateReply(bits, delete_number, 0, 0, 0.0, 0.0, 0.0, 0.0, 0, 0.0, 0, 0.0, 0, 0, 0)


def test_a_reply_without_a_delete_of_the_ring_is_refused_and_asked_of_another_owner_then_again() -> None:
    plan = Plan.of(with_delete(FIRST, Selector("a"), 0, 9))
    request: Callable[[bytes], Any] = lambda bitmap: bitmap  # noqa: E731
    gather = Gather(protocol.AGGREGATE, AggregateReply, lambda plan: 1, request, 5.0)
    gather.deadline_s = 5.0
    first = next(iter(gather.targets(plan)))
    gather.take(Ask(first, 1, gather, 1.0, 1.0), reply(1, 1))
    assert (gather.complete(), gather.trouble[first].reason) == (False, "has not applied delete 2 yet, it is at 1")
    (other,) = gather.targets(plan)
    assert other != first
    gather.take(Ask(other, 1, gather, 1.0, 1.0), reply(1, 0))
    assert not gather.targets(plan) and gather.may_pass(1.0)
    gather.begin_again()
    gather.take(Ask(first, 1, gather, 1.0, 1.0), reply(1, 2))
    assert gather.complete()
