"""Nodes that pull from each other over real sockets: repairs, moves, a lost disk, and what holds them up."""

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from common import clock, protocol, series
from common.ring import Ring
from common.ringstore import FileStore, Mark
from common.selector import Selector
from tests import naive
from tests.support import wait_until
from tests.workers.storage.replicas import Replica, ring_of
from tests.workers.storage.support import PARTITIONS, Row, assert_answers, batch_of, key, rows_of
from workers.storage import converge, repair
from workers.storage.converge import LEAF_ROWS, Taken
from workers.storage.store import DeleteRecord
from workers.storage.work import Handler, RefusedError

Make = Callable[..., Replica]
A = key("a")


@pytest.fixture
def rings(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "ring.json")


@pytest.fixture
def make(tmp_path: Path, rings: FileStore) -> Iterator[Make]:
    """Start a node of a ring."""
    made: list[Replica] = []

    def start(ring: Ring, name: str, **settings: Any) -> Replica:
        made.append(Replica(tmp_path, ring, name, rings, **settings))
        return made[-1]

    yield start
    for each in made:
        if each.threads[0].is_alive():
            each.close()


def put(replica: Replica, rows: list[Row], born: int = 1 << 40) -> None:
    replica.store.append([batch_of(rows, born)])


def partitions_of(*keys: bytes) -> list[int]:
    return sorted({series.partition_of(each, PARTITIONS) for each in keys})


def test_replicas_that_differ_by_points_deletes_and_overlaps_converge(make: Make) -> None:
    draw = random.Random(7)
    ring = ring_of(2, 2)
    one, other = make(ring, "n1", head_rows=1000), make(ring, "n2", head_rows=1000)
    oracle = naive.PointSet()
    devices = [f"d{number}" for number in range(12)]
    for step in range(30):
        rows = [
            (key(device), start + 10 * at, float(draw.randint(0, 3)))
            for device in draw.sample(devices, 4)
            for start in [draw.randrange(0, 5000)]
            for at in range(draw.choice([1, 20, 200]))
        ]
        for row in {(each, time): (each, time, value) for each, time, value in rows}.values():
            oracle.add(*row, 1 << 40)
        for replica in draw.choice([[one], [other], [one, other]]):
            put(replica, list({(each, time): (each, time, value) for each, time, value in rows}.values()))
            if draw.random() < 0.3:
                replica.store.seal()
        if step in (10, 20):
            record = DeleteRecord(step, Selector(draw.choice(devices), None, None), 1000, 2000)
            _delete(oracle, record)
            one.store.delete(record)
            other.store.delete(record)
        if step == 25:
            one.store.compact()
    for replica in (one, other, one):
        assert replica.repaired().state == "done"
    assert one.digests() == other.digests()
    for device in devices:
        assert_answers(one.store, oracle, device)
        assert_answers(other.store, oracle, device)
    job = one.repaired()
    assert (job.equal, job.points, job.bytes) == (PARTITIONS, 0, 0)


def _delete(oracle: naive.PointSet, record: DeleteRecord) -> None:
    matches = lambda each: record.selector.matches(series.parse_key(each))  # noqa: E731
    oracle.delete(record.number, matches, record.start, record.end)


def test_a_node_that_joins_gets_sealed_blocks_as_they_are_and_the_head_as_rows(make: Make) -> None:
    ring = ring_of(2, 2)
    source, target = make(ring, "n1"), make(ring, "n2")
    keys = [key(f"d{number}") for number in range(20)]
    put(source, [row for each in keys for row in rows_of(each, range(0, 30_000, 10))])
    source.store.seal()
    put(source, [row for each in keys for row in rows_of(each, range(40_000, 40_100))])
    job = target.ended(target.pull("n1"))
    assert (job.state, job.done, job.moving) == ("done", PARTITIONS, 0)
    assert (job.points, job.blocks) == (20 * 3100, 20)
    assert job.unproven == bytes(PARTITIONS // 8)
    assert target.digests() == source.digests()
    again = target.ended(target.pull("n1"))
    assert (again.equal, again.points, again.bytes) == (PARTITIONS, 0, 0)


def test_a_superset_is_proven_and_nothing_is_written_for_it(make: Make) -> None:
    ring = ring_of(2, 2)
    source, target = make(ring, "n1"), make(ring, "n2")
    put(source, rows_of(A, range(0, 1000, 2)))
    put(target, [*rows_of(A, range(1000)), *rows_of(key("b"), range(5))])
    before = target.store.status()["points"]
    job = target.ended(target.pull("n1"))
    assert (job.state, job.proven, job.points) == ("done", len(partitions_of(A, key("b"))), 0)
    assert target.store.status()["points"] == before


def test_a_smaller_value_of_the_peer_is_not_lacking_and_a_larger_one_is(make: Make) -> None:
    ring = ring_of(2, 2)
    source, target = make(ring, "n1"), make(ring, "n2")
    put(source, [(A, 1, -0.0), (A, 2, 5.0)])
    put(target, [(A, 1, 0.0), (A, 2, 4.0)])
    job = target.ended(target.pull("n1"))
    assert (job.state, job.points) == ("done", 1)
    assert target.store.aggregate("a", "temperature", None, b"\xff" * (PARTITIONS // 8), 2, 2).max == 5.0


def test_one_stretch_that_differs_moves_the_blocks_of_that_stretch(make: Make) -> None:
    ring = ring_of(2, 2)
    one, other = make(ring, "n1", head_rows=200_000), make(ring, "n2", head_rows=200_000)
    rows = rows_of(A, range(0, 2_000_000, 10))
    put(one, rows)
    put(other, rows[:80_000] + rows[80_100:])
    one.store.seal()
    other.store.seal()
    job = other.repaired(partitions_of(A))
    assert (job.points, job.state) == (100, "done")
    assert job.bytes < 2 * 20 * LEAF_ROWS  # rows of at most two leaves, of the 200,000 that there are
    assert one.digests() == other.digests()


def test_a_repair_of_named_series_looks_at_no_others(make: Make) -> None:
    ring = ring_of(2, 2)
    one, other = make(ring, "n1"), make(ring, "n2")
    put(one, [*rows_of(A, range(10)), *rows_of(key("b"), range(10))])
    job = other.repaired(series=[A])
    assert (job.points, job.partitions) == (10, 1)
    assert other.digests()[0][partitions_of(A)[0]] >= 10
    assert sum(other.digests()[0]) == 10


def test_points_that_have_not_settled_are_left_to_their_way(make: Make) -> None:
    ring = ring_of(2, 2)
    one, other = make(ring, "n1"), make(ring, "n2", repair_settle_s=1e9)
    put(one, [(A, 1_700_000_000_000_000_000, 1.0)])
    assert other.repaired().points == 0
    assert sum(other.digests()[0]) == 0


def test_old_points_on_their_way_when_replicas_are_compared_are_not_pulled(make: Make) -> None:
    ring = ring_of(2, 2)
    one, other = make(ring, "n1"), make(ring, "n2", repair_settle_s=1.0)
    put(one, rows_of(A, range(10)))
    put(one, rows_of(key("b"), range(10)))
    put(other, rows_of(A, range(9)))
    put(other, rows_of(key("b"), range(9)))
    request = protocol.RepairRequest(protocol.bitmap(range(PARTITIONS), PARTITIONS))
    number = other.jobs(protocol.REPAIR, request)[0].job
    put(other, rows_of(A, range(9, 10)))
    job = other.ended(number)
    assert (job.state, job.points) == ("done", 1)
    assert other.digests() == one.digests()


def test_rounds_in_the_background_find_what_is_lacking(make: Make) -> None:
    ring = ring_of(2, 2)
    one = make(ring, "n1")
    put(one, rows_of(A, range(10)))
    other = make(ring, "n2", repair_interval_s=0.05)
    wait_until(lambda: other.digests() == one.digests(), 30.0, "converged")


def test_a_node_that_lost_its_disk_is_filled_again_and_answers_then(make: Make, rings: FileStore) -> None:
    ring = ring_of(3, 2)
    replicas = [make(ring, name) for name in ("n1", "n2", "n3")]
    keys = [key(f"d{number}") for number in range(100)]
    for replica in replicas[:2]:
        owned = set(ring.owned_partitions(replica.name).tolist())
        mine = [each for each in keys if series.partition_of(each, PARTITIONS) in owned]
        put(replica, [row for each in mine for row in rows_of(each, range(50))])
    lost = replicas[2]
    lost.behind.hit("its disk was lost", None)
    wait_until(lambda: not (lost.behind.partitions & lost.node.view.written).any(), 30.0, "not behind")
    for each in ring.owned_partitions("n3").tolist():
        co_owner = next(replica for replica in replicas[:2] if each in ring.owned_partitions(replica.name))
        assert lost.digests()[0][each] == co_owner.digests()[0][each]


def test_a_node_that_is_filled_again_answers_for_what_it_has_before_all_of_it_is_there(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(converge, "PARTITIONS", PARTITIONS // 4)
    ring = ring_of(2, 2)
    full, lost = make(ring, "n1"), make(ring, "n2")
    put(full, [row for number in range(100) for row in rows_of(key(f"d{number}"), range(50))])
    full.store.seal()
    left: list[int] = []
    asked: list[bytes] = []
    answer, look = lost.repair._here.answer, lost.behind.changed
    monkeypatch.setattr(lost.repair._here, "answer", lambda kind, body: (asked.append(kind), answer(kind, body))[1])
    lost.behind.changed = lambda: (left.append(int(lost.behind.partitions.sum())), look())[1]
    lost.behind.hit("its disk was lost", None)
    wait_until(lambda: left[-1] == 0, 30.0, "not behind")
    assert left == [PARTITIONS * part // 4 for part in (4, 3, 2, 1, 0)]
    (job,) = wait_until(lambda: [job for job in lost.jobs(protocol.JOBS, protocol.JobsRequest())
                                 if job.state == "done"], 30.0, "done")  # fmt: skip
    assert (job.kind, job.done, job.equal, job.points) == ("refill", PARTITIONS, PARTITIONS, 5000)
    assert set(asked) == {protocol.DIGESTS}  # nothing is narrowed down: all of it is fetched, partitions at once


def test_a_node_without_co_owners_stays_behind_and_says_so(make: Make) -> None:
    alone = make(ring_of(1, 1), "n1")
    alone.behind.hit("its disk was lost", None)
    (waiting,) = wait_until(
        lambda: [job for job in alone.jobs(protocol.JOBS, protocol.JobsRequest()) if job.error], 30.0, "says why"
    )
    assert (waiting.kind, waiting.state, waiting.done) == ("refill", "waiting", 0)
    assert waiting.error == f"{PARTITIONS} partitions, such as 0, have no co-owner that is current"
    assert alone.behind.partitions.all()


def test_a_node_that_is_behind_is_not_filled_from_one_that_is_behind_too(make: Make, rings: FileStore) -> None:
    ring = ring_of(2, 2)
    one, other = make(ring, "n1"), make(ring, "n2")
    put(one, rows_of(A, range(10)))
    mark = Mark("n1", "bridge1")
    rings.put_mark(mark)
    other.behind.hit("a file was damaged", partitions_of(A))
    (waiting,) = wait_until(
        lambda: [job for job in other.jobs(protocol.JOBS, protocol.JobsRequest()) if job.error], 30.0, "says why"
    )
    assert (waiting.kind, waiting.state) == ("refill", "waiting")
    assert "no co-owner that is current" in waiting.error
    assert other.behind.partitions.any()
    rings.remove_mark(mark)
    wait_until(lambda: not other.behind.partitions.any(), 30.0, "not behind")
    assert other.digests() == one.digests()


def test_a_node_filled_from_one_that_got_a_mark_meanwhile_is_filled_again(
    make: Make, rings: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring, mark = ring_of(2, 2), Mark("n1", "bridge1")
    first, lost = make(ring, "n1"), make(ring, "n2")
    put(first, rows_of(A, range(5)))
    take, taken = lost.repair._here.take, []

    def marked(replies: Sequence[protocol.FetchReply]) -> Taken:
        if not taken:
            rings.put_mark(mark)  # what the lost disk had is in a spool for the other one alone
        taken.append(len(replies))
        return take(replies)

    monkeypatch.setattr(lost.repair._here, "take", marked)
    lost.behind.hit("its disk was lost", None)
    (job,) = wait_until(lambda: [job for job in lost.jobs(protocol.JOBS, protocol.JobsRequest()) if job.error], 30.0,
                        "an error")  # fmt: skip
    assert "n1" in job.error or "have no co-owner that is current" in job.error
    assert taken and lost.behind.partitions.all()
    put(first, rows_of(A, range(5, 6)))
    rings.remove_mark(mark)
    wait_until(lambda: not lost.behind.partitions.any(), 30.0, "not behind")
    assert lost.digests() == first.digests()


def test_a_pull_waits_while_its_peer_is_away_and_goes_on(make: Make) -> None:
    ring = ring_of(2, 2)
    target = make(ring, "n2")
    number = target.pull("n1")
    wait_until(lambda: "no connection to n1" in target.job(number).error, 30.0, "says why")
    source = make(ring, "n1")
    put(source, rows_of(A, range(10)))
    job = target.ended(number)
    assert (job.state, job.error) == ("done", "")


def test_a_pull_is_throttled_and_can_be_given_up(make: Make) -> None:
    ring = ring_of(2, 2)
    source, target = make(ring, "n1"), make(ring, "n2")
    put(source, [(A, time, random.Random(time).random()) for time in range(60_000)])
    source.store.seal()
    number = target.pull("n1", rate=20_000)
    wait_until(lambda: target.job(number).points, 30.0, "begun")
    job = target.job(number)
    assert job.bytes <= 20_000 * job.seconds + 140_000  # and a block that is on its way, of 480,000
    assert job.state == "running"
    target.ask(protocol.CANCEL_JOB, protocol.JobsRequest([number]))
    assert target.ended(number).state == "cancelled"


def test_the_rate_bounds_all_pulls_of_a_node_together(make: Make) -> None:
    ring = ring_of(2, 2)
    source, target = make(ring, "n1"), make(ring, "n2")
    chance = random.Random(3)
    put(source, [(key(f"d{number}"), time, chance.random()) for number in range(24) for time in range(4000)])
    source.store.seal()
    began_s = clock.monotonic_s()
    numbers = [target.pull("n1", range(begin, PARTITIONS, 2), rate=100_000) for begin in (0, 1)]
    sizes = [target.ended(number).bytes for number in numbers]
    assert min(sizes) > 100_000
    assert clock.monotonic_s() - began_s >= (sum(sizes) - 2 * 130_000) / 100_000  # without the last reply of each


def test_a_pull_takes_the_place_of_one_under_way(make: Make) -> None:
    ring = ring_of(2, 2)
    target = make(ring, "n2")
    first = target.pull("n1", [1, 2])
    second, third = target.pull("n1", [2, 3]), target.pull("n1", [4])
    assert target.ended(first).state == "cancelled"
    assert {target.job(each).state for each in (second, third)} <= {"waiting", "running"}


def test_stores_at_different_deletes_exchange_nothing_until_both_have_them(make: Make) -> None:
    ring = ring_of(2, 2)
    one, other = make(ring, "n1"), make(ring, "n2")
    put(one, rows_of(A, range(10)))
    record = DeleteRecord(5, Selector("a", None, None), 0, 4)
    one.store.delete(record)
    number = other.pull("n1")
    wait_until(lambda: "deletes" in other.job(number).error, 30.0, "says why")
    assert sum(other.digests()[0]) == 0
    other.store.delete(record)
    assert other.ended(number).state == "done"
    assert other.digests() == one.digests()


def test_what_cannot_be_pulled_is_refused(make: Make) -> None:
    ring = ring_of(3, 1)
    replica = make(ring, "n1")
    for peer, partitions, code in [
        ("n2", ring.owned_partitions("n2").tolist(), protocol.ERR_NOT_MINE),
        ("n9", ring.owned_partitions("n1").tolist(), protocol.ERR_BAD_REQUEST),
        ("n1", ring.owned_partitions("n1").tolist(), protocol.ERR_BAD_REQUEST),
    ]:
        message = replica.ask(protocol.PULL, protocol.PullRequest(protocol.bitmap(partitions, PARTITIONS), peer))
        assert message.kind == protocol.ERROR
        assert protocol.decode_body(message.body, protocol.ErrorReply).error == code


def test_a_repair_goes_on_with_other_co_owners_when_one_is_away_and_says_that_it_failed(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repair, "CONNECT_S", 0.3)
    monkeypatch.setitem(repair.ATTEMPTS, "repair", 2)
    ring = ring_of(3, 3)
    one, third = make(ring, "n1"), make(ring, "n3")
    put(third, rows_of(A, range(10)))
    job = one.repaired()
    assert (job.state, job.points, job.equal) == ("failed", 10, PARTITIONS)
    assert "no connection to n2" in job.error


def test_a_refill_takes_another_co_owner_when_one_is_away(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair, "CONNECT_S", 0.3)
    ring = ring_of(3, 3)
    second, third = make(ring, "n2"), make(ring, "n3")
    put(third, rows_of(A, range(10)))
    second.behind.hit("its disk was lost", None)
    wait_until(lambda: not second.behind.partitions.any(), 30.0, "not behind")
    assert second.digests() == third.digests()


def test_a_node_damaged_while_it_is_refilled_is_compared_again(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    ring = ring_of(2, 2)
    one, other = make(ring, "n1"), make(ring, "n2")
    put(one, rows_of(A, range(10)))
    taken = other.repair._here.take
    hits = iter(["a file was damaged"])

    def take(replies: Sequence[protocol.FetchReply]) -> Taken:
        for reason in hits:
            other.behind.hit(reason, partitions_of(A))
        return taken(replies)

    monkeypatch.setattr(other.repair._here, "take", take)
    other.behind.hit("its disk was lost", None)
    wait_until(lambda: not other.behind.partitions.any(), 30.0, "not behind")
    assert other.digests() == one.digests()
    assert other.repair.counts["failures"] == 1


def test_a_fault_of_ours_ends_the_job_and_not_the_node(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    ring = ring_of(2, 2)
    one, other = make(ring, "n1"), make(ring, "n2")
    put(one, rows_of(A, range(10)))
    monkeypatch.setattr(other.repair._here, "take", lambda replies: 1 // 0)
    job = other.ended(other.pull("n1"))
    assert (job.state, job.error) == ("failed", "BUG: ZeroDivisionError: integer division or modulo by zero")
    monkeypatch.undo()
    assert other.ended(other.pull("n1")).state == "done"


def test_a_delete_in_the_middle_of_a_pull_is_in_force_for_what_was_pulled_before_and_after(make: Make) -> None:
    ring = ring_of(2, 2)
    source, target = make(ring, "n1"), make(ring, "n2")
    keys = [key(f"d{number}") for number in range(8)]
    chance = random.Random(3)
    put(source, [(each, time, chance.random()) for each in keys for time in range(8000)])
    source.store.seal()
    number = target.pull("n1", rate=200_000)
    wait_until(lambda: target.job(number).points, 30.0, "begun")
    for device in range(8):
        record = DeleteRecord(device + 5, Selector(f"d{device}", None, None), 1000, 4999)
        target.store.delete(record)
        source.store.delete(record)
    job = target.ended(number)
    assert (job.state, job.moving) == ("done", 0)
    assert sum(target.digests()[0]) == 8 * 4000
    assert target.digests() == source.digests()


def test_a_repair_waits_for_a_peer_that_opens_its_store_and_a_pull_tries_again(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repair, "OPENING_S", 0.01)
    monkeypatch.setattr(repair, "RETRY_S", 0.01)
    monkeypatch.setattr(repair, "RETRY_MAX_S", 0.05)
    ring = ring_of(2, 2)
    one, other = make(ring, "n1"), make(ring, "n2")
    put(other, rows_of(key("d"), range(10)))
    refused = []

    def opening(asked: Any) -> Any:
        refused.append(asked)
        if len(refused) < 12:  # more often than a job that is counted may fail
            raise RefusedError(protocol.ERR_OPENING, "the store is being opened")
        return handler.begin(asked)

    handler = other.server._table[protocol.DIGESTS]
    other.server._table[protocol.DIGESTS] = Handler(handler.request, opening)
    job = one.repaired()
    assert (job.state, job.points, job.error) == ("done", 10, "")
    refused.clear()
    put(other, rows_of(key("d"), range(20, 30)))
    job = one.ended(one.pull("n2"))
    assert (job.state, job.points, job.error) == ("done", 10, "")
