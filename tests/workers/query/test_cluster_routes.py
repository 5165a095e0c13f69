"""What the page asks of the cluster: who owns which partition, moves and repairs, history, dead letters, who asks."""

import dataclasses
from pathlib import Path
from typing import Any

import msgspec
import pytest

from common import protocol
from common.errors import RingStoreError
from common.protocol import BridgeLetters, DeadLetters, DeadLetterSample, DeadLettersReply, JobsReply, JobState
from common.ring import Ring
from common.ringstore import FileStore, Past
from tests.workers.query.fake import make_ring
from tests.workers.query.inside import NOW_NS, Inside
from workers.query import stored
from workers.query.plan import Plan
from workers.query.stored import Stored

NOW_S = NOW_NS / 1e9
SAMPLE = DeadLetterSample(1_700_000_000_500_000_000, "sensors/<b>", "{broken", 7, "malformed JSON", "pump_1")


def job(number: int, kind: str = "pull", **fields: Any) -> JobState:
    known: dict[str, Any] = {
        "job": number, "kind": kind, "state": "running", "peer": "ing1", "partitions": 12, "done": 4, "equal": 1,
        "proven": 2, "moving": 1, "unproven": b"\xff", "points": 100, "blocks": 3, "bytes": 2000, "seconds": 1.5,
        "error": "",
    }  # fmt: skip
    return JobState(**(known | fields))


def letters(counts: dict[str, int], **fields: Any) -> DeadLetters:
    known: dict[str, Any] = {
        "samples": {}, "uncounted_bytes": 0, "bytes": 4096, "limit_bytes": 1 << 30, "waiting": 0, "error": "",
    }  # fmt: skip
    return DeadLetters(counts, **(known | fields))


def moving(ring: Ring, moves: list[list[int]]) -> Ring:
    return Ring.from_document(ring.document() | {"moves": moves})


# The ring


def test_the_ring_tells_owners_and_moves_only_when_asked_to() -> None:
    inside = Inside()
    inside.scatter.plan = Plan.of(moving(make_ring([10, 20, 30], 8, replication=2), [[0, 0, 2], [3, -1, 2]]))
    plain = inside.call("GET", "/api/v1/ring")[1]
    assert not {"owners", "moves"} & plain.keys()
    status, told = inside.call("GET", "/api/v1/ring?owners=true")
    assert status == 200
    assert told["owners"] == [[p % 3, (p + 1) % 3] for p in range(8)]
    assert told["moves"] == [[0, 0, 2], [3, -1, 2]]
    assert {name: value for name, value in told.items() if name not in ("owners", "moves")} == plain
    for node in told["nodes"]:
        mine = [row for row in told["owners"] if told["nodes"].index(node) in row]
        assert len(mine) == node["partitions"]
    status, error = inside.call("GET", "/api/v1/ring?owners=yes")
    assert (status, error["field"]) == (400, "owners")


# Moves and repairs


def test_moves_are_told_with_the_jobs_that_bring_them_and_the_last_repairs() -> None:
    jobs = {
        "ing1": [
            job(1, "round", state="done", ended_s_ago=100.0),
            job(2, "repair", state="failed", ended_s_ago=5.0, error="x"),
            job(3, "round", state="done", ended_s_ago=50.0),
        ],
        "ing2": [job(7, "round"), job(8, state="done", ended_s_ago=1.0)],
        "ing3": [job(9, peer="ing2")],
    }  # fmt: skip
    inside = Inside(lambda node, kind, request: JobsReply(jobs[node]))
    inside.scatter.plan = Plan.of(moving(make_ring([10, 20, 30], 8), [[0, 0, 2], [1, 1, 2], [3, 0, 2]]))
    inside.context.stored = Stored(Kept())
    status, told = inside.call("GET", "/api/v1/moves")
    assert status == 200
    assert told["moves"] == [
        {"source": "ing1", "target": "ing3", "partitions": 2}, {"source": "ing2", "target": "ing3", "partitions": 1},
    ]  # fmt: skip
    assert [(each["node"], each["job"], each["kind"], each["done"]) for each in told["jobs"]] == [
        ("ing2", 7, "round", 4), ("ing2", 8, "pull", 4), ("ing3", 9, "pull", 4),
    ]  # fmt: skip
    assert "unproven" not in told["jobs"][0]
    last = {each["node"]: each for each in told["repairs"]}
    assert (last["ing1"]["kind"], last["ing1"]["state"], last["ing1"]["error"]) == ("repair", "failed", "x")
    assert last["ing1"]["last_s"] == pytest.approx(NOW_S - 5)
    assert last["ing2"] == {"node": "ing2", "last_s": None}
    assert (told["driver"], told["driver_error"], told["missing"]) == ("ringctl on host-a", None, [])
    assert {kind for _, kind, _ in inside.scatter.asked} == {protocol.JOBS}


def test_a_move_without_a_source_and_a_node_that_is_away_are_told() -> None:
    inside = Inside(lambda *_: JobsReply([]))
    inside.scatter.plan = Plan.of(moving(make_ring([10, 20, 30], 8), [[0, -1, 2]]))
    inside.scatter.away = {"ing2"}
    inside.context.stored = Stored(Kept(driver=RingStoreError("etcd is away")))
    told = inside.call("GET", "/api/v1/moves")[1]
    assert told["moves"] == [{"source": None, "target": "ing3", "partitions": 1}]
    assert told["missing"] == [{"node": "ing2", "reason": "is away"}]
    assert [each["node"] for each in told["repairs"]] == ["ing1", "ing3"]
    assert (told["driver"], told["driver_error"]) == (None, "etcd is away")


def test_who_drives_is_read_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now, store = [100.0], Kept()
    monkeypatch.setattr(stored.clock, "monotonic_s", lambda: now[0])
    kept = Stored(store)
    assert [kept.driver().text for _ in range(5)] == ["ringctl on host-a"] * 5
    assert store.asked == 1
    now[0] += stored.DRIVER_S
    kept.driver()
    assert store.asked == 2


@pytest.mark.parametrize("path", ["/api/v1/moves", "/api/v1/ring?owners=true", "/api/v1/dead-letters"])
def test_without_a_ring_there_is_nothing_to_tell(path: str) -> None:
    inside = Inside()
    inside.scatter.plan = None
    status, told = inside.call("GET", path)
    assert (status, told["error"], told["message"]) == (503, "not_ready", "no ring yet")


# History


class Kept:
    """A ring store that holds a history. asked: how often for the driver. unreadable: epochs."""

    def __init__(self, driver: str | Exception = "ringctl on host-a", epochs: int = 0) -> None:
        self.asked = 0
        self.reads: list[int] = []
        self.fault: Exception | None = None
        self._driver = driver
        self._rings = [make_ring([10, 20, 30][: 1 + n % 3], epoch=n + 1) for n in range(epochs)]

    def driver(self) -> str:
        self.asked += 1
        if isinstance(self._driver, Exception):
            raise self._driver
        return self._driver

    def history(self) -> list[Past]:
        if self.fault is not None:
            raise self.fault
        return [Past(ring.epoch, 1_700_000_000.5 + ring.epoch, 100) for ring in self._rings]

    def past(self, epoch: int) -> Ring:
        self.reads.append(epoch)
        return self._rings[epoch - 1]


def test_the_history_has_the_newest_ring_first_and_what_it_changed() -> None:
    inside = Inside()
    inside.context.stored = Stored(Kept(epochs=3))
    status, told = inside.call("GET", "/api/v1/history")
    assert status == 200
    assert [row["epoch"] for row in told["rows"]] == [3, 2, 1]
    assert told["rows"][0]["changes"] == ["added ing3"]
    assert told["rows"][2]["summary"] == "1 nodes, 64 partitions, replication 1"
    assert (told["rows"][0]["saved_at"], told["rows"][0]["bytes"]) == (1_700_000_003.5, 100)
    assert [row["epoch"] for row in inside.call("GET", "/api/v1/history?limit=1")[1]["rows"]] == [3]


def test_a_past_ring_is_read_once() -> None:
    store = Kept(epochs=5)
    kept = Stored(store)
    assert [each.past.epoch for each in kept.history(2)] == [5, 4]
    reads = len(store.reads)
    assert [each.past.epoch for each in kept.history(2)] == [5, 4]
    assert len(store.reads) == reads


def test_a_history_that_cannot_be_read_says_why() -> None:
    inside, store = Inside(), Kept(epochs=1)
    inside.context.stored = Stored(store)
    store.fault = RingStoreError("etcd is away")
    status, told = inside.call("GET", "/api/v1/history")
    assert (status, told["error"]) == (503, "ring_store")
    assert "etcd is away" in told["message"]
    for limit in ("0", "51", "x"):
        assert inside.call("GET", f"/api/v1/history?limit={limit}")[1]["field"] == "limit"


def test_the_history_of_a_file_is_told_and_a_damaged_ring_in_it_spoils_only_its_neighbours(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "ring.json")
    ring = make_ring([10, 20, 30])
    store.save(ring, 0)
    for epoch in (2, 3, 4):
        store.save(dataclasses.replace(ring, epoch=epoch), epoch - 1)
    assert [each.changes for each in Stored(store).history(50)[:3]] == [["nothing"]] * 3
    (tmp_path / "ring.json.history" / f"{2:020d}.json").write_text("{")
    told = {each.past.epoch: each.changes[0] for each in Stored(store).history(50)}
    assert told[4] == "nothing"
    assert told[2].startswith("cannot be told:") and told[3].startswith("cannot be told:")


# Dead letters


def test_dead_letters_are_told_by_bridge_and_reason_as_the_node_has_them_that_heard_last() -> None:
    old = BridgeLetters("bridge1", 9.0, letters({"value": 1}))
    new = BridgeLetters("bridge1", 0.5, letters({"value": 2, "not-json": 5}, samples={"not-json": [SAMPLE]}))
    gone = BridgeLetters("bridge2", 60.0, letters({"time": 3}, waiting=4, error="full"))
    heard = {"ing1": [old], "ing2": [new, gone], "ing3": []}
    inside = Inside(lambda node, kind, request: DeadLettersReply(heard[node]))
    status, told = inside.call("GET", "/api/v1/dead-letters")
    assert status == 200
    assert [(row["bridge"], row["reason"], row["count"]) for row in told["rows"]] == [
        ("bridge1", "not-json", 5), ("bridge1", "value", 2), ("bridge2", "time", 3),
    ]  # fmt: skip
    assert told["rows"][0]["samples"] == [
        {"time": 1_700_000_000.5, "topic": "sensors/<b>", "payload": "{broken", "payload_bytes": 7,
         "detail": "malformed JSON", "device": "pump_1"}
    ]  # fmt: skip
    assert told["rows"][1]["samples"] == []
    assert [(each["bridge"], each["ready"], each["waiting"], each["error"]) for each in told["bridges"]] == [
        ("bridge1", True, 0, ""), ("bridge2", False, 4, "full"),
    ]  # fmt: skip
    assert told["missing"] == []


def test_nodes_that_do_not_answer_are_missing_and_the_others_tell() -> None:
    inside = Inside(lambda *_: DeadLettersReply([BridgeLetters("bridge1", 0.1, letters({"id": 1}))]))
    inside.scatter.away = {"ing1", "ing3"}
    told = inside.call("GET", "/api/v1/dead-letters")[1]
    assert [row["count"] for row in told["rows"]] == [1]
    assert [each["node"] for each in told["missing"]] == ["ing1", "ing3"]


def test_a_bridge_of_an_earlier_version_is_understood() -> None:
    beat = protocol.decode_body(msgspec.msgpack.encode({"started_s": 1.0, "status": {}, "metrics": []}), protocol.Beat)
    assert beat.dead_letters is None


# Who asks


def test_without_tokens_everybody_may_do_everything() -> None:
    status, told = Inside().call("GET", "/api/v1/me")
    assert status == 200
    assert (told["name"], told["scopes"], told["auth"]) == ("", ["read", "write", "delete", "admin"], False)
    assert told["now"] == NOW_S
    assert Inside().call("GET", "/api/v1/me?x=1")[0] == 400
