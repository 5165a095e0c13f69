"""The ring store: compare on the epoch between real processes, and how a worker follows the store."""

import dataclasses
import fcntl
import multiprocessing
import random
import re

import msgspec
import pytest

from common import clock, config, metrics, ringstore
from common.errors import ConfigError, RingConflictError, RingError, RingStoreError
from common.ring import Node
from common.ringbuild import first_ring, with_delete
from common.ringmoves import Step, begin, changed, finish
from common.ringrules import fault_of
from common.ringstore import FileStore, Mark, RingView, open_store, wait_for_ring
from common.selector import Selector
from tests.disks import FailingDisk, Platter, RecordingDisk

NODES = [Node(f"ing{at}", "", f"tcp://127.0.0.1:{5700 + 10 * at}", "a", 1.0, "active") for at in (1, 2, 3)]
FIRST = first_ring("c1", NODES, 16, 1)
OTHER = first_ring("c1", NODES, 16, 1, seed=9)


def at_epoch(epoch, ring=FIRST):
    return dataclasses.replace(ring, epoch=epoch)


@pytest.fixture
def store(tmp_path):
    return FileStore(tmp_path / "data" / "ring.json")


@pytest.fixture
def now(monkeypatch):
    """A clock that only moves when told."""
    time = [100.0]
    monkeypatch.setattr(clock, "monotonic_s", lambda: time[0])
    return time


# The store


def test_what_is_saved_is_loaded(store):
    assert store.load() is None
    store.save(FIRST, 0)
    assert store.load().hash == FIRST.hash
    assert store.path.read_bytes() == FIRST.dumps()


def test_the_stamp_differs_after_each_save_however_fast_they_follow(store):
    stamps = [store.stamp()]
    for epoch in range(1, 51):
        store.save(at_epoch(epoch), epoch - 1)
        stamps.append(store.stamp())
    assert stamps[0] is None
    assert len(set(stamps)) == 51


def test_a_save_for_another_epoch_than_the_stored_one_is_refused_and_changes_nothing(store):
    store.save(FIRST, 0)
    with pytest.raises(RingConflictError, match=r"is at epoch 1, want 0: another writer was first"):
        store.save(OTHER, 0)
    with pytest.raises(RingStoreError, match=r"is at epoch 1, want 2"):
        store.save(at_epoch(3), 2)
    assert store.load().hash == FIRST.hash


def test_epochs_follow_one_by_one(store):
    store.save(FIRST, 0)
    with pytest.raises(RingError, match="epoch 3 cannot follow 1, want 2"):
        store.save(at_epoch(3), 1)


@pytest.mark.parametrize(
    ("ring", "text"),
    [(first_ring("c2", NODES, 16, 1), "ring of cluster c2, want c1"),
     (first_ring("c1", NODES, 32, 1), "ring of 32 partitions, want 16: their number is fixed")],
)  # fmt: skip
def test_a_ring_that_is_no_later_state_of_the_cluster_is_refused(store, ring, text):
    store.save(FIRST, 0)
    with pytest.raises(RingError, match=text):
        store.save(at_epoch(2, ring), 1)


def moved(ring, partition, target):
    """The ring two epochs later, with another owner for a partition."""
    source = ring.owners(partition)[0].id
    return finish(begin(ring, [Step(partition, source, target)]), [partition])


def test_a_ring_that_has_lost_a_move_is_refused(store):
    owner = FIRST.owners(5)[0].id
    first, other = (node.id for node in FIRST.nodes if node.id != owner)
    joining = begin(FIRST, [Step(5, owner, first)])
    for ring in (FIRST, joining):
        store.save(ring, ring.epoch - 1)
    with pytest.raises(RingError, match=rf"since epoch 1, but epoch 2 had {owner}, {first} since 2"):
        store.save(at_epoch(3), 2)
    with pytest.raises(RingError, match="owners of partition 5 since epoch 2, but epoch 2 had"):
        store.save(at_epoch(3, begin(FIRST, [Step(5, owner, other)])), 2)
    with pytest.raises(RingError, match="owners of partition 5 since epoch 2"):
        store.save(dataclasses.replace(finish(joining, [5]), since=joining.since.copy()), 2)
    store.save(finish(joining, [5]), 2)


def test_a_ring_may_follow_whose_nodes_have_other_places_or_whose_owners_are_as_long_ago(store):
    store.save(FIRST, 0)
    before = Node("a", "", "tcp://127.0.0.1:900", "a", 1.0, "active")
    more = changed(FIRST, [before, *FIRST.nodes], 1)
    store.save(more, 1)
    owner, other = more.owners(5)[0].id, next(node.id for node in more.nodes if node != more.owners(5)[0])
    back = moved(moved(more, 5, other), 5, owner)
    assert back.owners(5) == more.owners(5) and fault_of(back, more) is None and fault_of(more, more) is None
    assert fault_of(at_epoch(back.epoch + 1, more), back)[0] == "moves"


def deleted(ring, device):
    return with_delete(ring, Selector(device), 0, 9)


def test_a_ring_that_has_lost_a_delete_or_has_one_too_late_is_refused(store):
    two = deleted(FIRST, "a")
    for ring in (FIRST, two):
        store.save(ring, ring.epoch - 1)
    with pytest.raises(RingError, match="ring of epoch 3 without delete 2 of epoch 2"):
        store.save(at_epoch(3), 2)
    with pytest.raises(RingError, match="ring of epoch 3 without delete 2"):
        store.save(at_epoch(3, deleted(FIRST, "b")), 2)
    late = dataclasses.replace(at_epoch(3), deletes=(msgspec.structs.replace(two.deletes[0], number=1), *two.deletes))
    with pytest.raises(RingError, match="ring of epoch 3 without delete 2"):
        store.save(late, 2)
    store.save(deleted(two, "b"), 2)
    assert [record.number for record in store.load().deletes] == [2, 3]


def test_a_ring_with_a_delete_that_an_earlier_one_should_have_had_is_refused(store):
    for ring in (FIRST, at_epoch(2)):
        store.save(ring, ring.epoch - 1)
    with pytest.raises(RingError, match="ring of epoch 3 with delete 2, which epoch 2 does not have"):
        store.save(at_epoch(3, deleted(FIRST, "a")), 2)


def test_a_damaged_file_is_named_and_never_overwritten(store):
    store.save(FIRST, 0)
    store.path.write_bytes(b"{")
    with pytest.raises(RingError, match=re.escape(f"{store.path}: ring document is not JSON")):
        store.load()
    with pytest.raises(RingError, match="not JSON"):
        store.save(FIRST, 0)
    assert store.path.read_bytes() == b"{"


def test_a_store_that_is_a_directory_cannot_be_read_or_written(store):
    store.path.mkdir(parents=True)
    with pytest.raises(RingStoreError, match=f"cannot read {re.escape(str(store.path))}: Is a directory"):
        store.load()
    with pytest.raises(RingStoreError, match="Is a directory"):
        store.save(FIRST, 0)


def test_a_folder_that_cannot_be_made_is_an_error_with_the_path(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RingStoreError, match=r"cannot write .*/file/ring.json"):
        FileStore(tmp_path / "file" / "ring.json").save(FIRST, 0)


def test_a_held_lock_ends_the_save_with_an_error_after_a_while(store, monkeypatch):
    monkeypatch.setattr(ringstore, "LOCK_WAIT_S", 0.05)
    store.save(FIRST, 0)
    with store.path.with_name("ring.json.lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(RingStoreError, match=r"is locked \(waited 0.05 s\)"):
            store.save(at_epoch(2), 1)
    store.save(at_epoch(2), 1)


def _advance(path, times):
    """Move the ring on `times` times, retrying whenever another process was first."""
    store = FileStore(path)
    done = 0
    while done < times:
        ring = store.load()
        try:
            store.save(at_epoch(ring.epoch + 1), ring.epoch)
        except RingStoreError:
            continue
        done += 1


def test_of_processes_that_save_at_once_exactly_one_wins_each_epoch(store):
    store.save(FIRST, 0)
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=_advance, args=(store.path, 20)) for _ in range(3)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        store.load()  # a reader never sees half a document: that would raise
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert store.load().epoch == 1 + 3 * 20


@pytest.mark.parametrize(
    ("url", "path"),
    [("file:ring.json", "conf/ring.json"), ("file:../data/ring.json", "data/ring.json"),
     ("file:/x/ring.json", "/x/ring.json"), ("file:///x/ring.json", "/x/ring.json")],
)  # fmt: skip
def test_a_file_url_is_relative_to_the_settings_file(tmp_path, url, path):
    settings = config.Settings(file=str(tmp_path / "conf" / "minitrue.toml"))
    assert open_store(url, settings).url == f"file:{tmp_path / path}"


@pytest.mark.parametrize("url", ["", "ring.json", "file:", "file:///", "http://x", "ETCD"])
def test_a_url_of_no_known_store_is_refused(url):
    with pytest.raises(ConfigError, match="want file:PATH"):
        open_store(url, config.Settings())


# Marks


MARKS = [Mark("ing1", "bridge1"), Mark("ing1", "bridge2"), Mark("ing-2.x", "b_1")]


def test_a_mark_is_there_until_it_is_removed_and_concerns_no_other(store):
    assert store.marks() == frozenset()
    for mark in MARKS:
        store.put_mark(mark)
    assert FileStore(store.path).marks() == frozenset(MARKS)
    store.remove_mark(MARKS[0])
    assert FileStore(store.path).marks() == frozenset(MARKS[1:])


def test_putting_and_removing_a_mark_twice_is_no_error(store):
    store.remove_mark(MARKS[0])
    for _ in range(2):
        store.put_mark(MARKS[0])
    assert store.marks() == {MARKS[0]}
    for _ in range(2):
        store.remove_mark(MARKS[0])
    assert store.marks() == frozenset()


def test_marks_leave_the_ring_and_its_stamp_alone(store):
    store.save(FIRST, 0)
    stamp = store.stamp()
    store.put_mark(MARKS[0])
    assert (store.stamp(), store.load().hash) == (stamp, FIRST.hash)
    store.save(at_epoch(2), 1)
    assert store.marks() == {MARKS[0]}


def test_a_folder_of_marks_that_is_a_file_is_an_error_with_its_path(store):
    store.save(FIRST, 0)
    folder = store.path.with_name("ring.json.marks")
    folder.write_text("")
    with pytest.raises(RingStoreError, match=f"cannot read marks in {re.escape(str(folder))}: Not a directory"):
        store.marks()
    with pytest.raises(RingStoreError, match=r"cannot write mark .*ring.json.marks/ing1@bridge1: File exists"):
        store.put_mark(MARKS[0])
    with pytest.raises(RingStoreError, match=r"cannot remove mark .*ing1@bridge1: Not a directory"):
        store.remove_mark(MARKS[0])


@pytest.mark.parametrize("step", range(8))
def test_a_mark_that_could_not_be_written_or_removed_can_be_the_next_time(tmp_path, step):
    disk = FailingDisk(step)
    store = FileStore(tmp_path / "ring.json", disk)
    failures = 0
    for act, wanted in ((store.put_mark, {MARKS[0]}), (store.remove_mark, set())):
        try:
            act(MARKS[0])
        except RingStoreError as error:
            assert "Input/output error" in str(error)
            failures += 1
            act(MARKS[0])
        assert store.marks() == wanted
    assert failures == (disk.failed is not None)


@pytest.mark.parametrize("torn", [None, 1, 2, 3])
def test_a_mark_survives_a_power_cut_from_when_it_was_put_to_when_its_removal_began(tmp_path, torn):
    disk = RecordingDisk()
    store = FileStore(tmp_path / "top" / "ring.json", disk)
    for number, act in enumerate((store.put_mark, store.remove_mark, store.put_mark), 1):
        disk.mark(-number)
        act(MARKS[0])
        disk.mark(number)
    platter, at = Platter(tmp_path / "top"), 0
    for number, event in enumerate(disk.events):
        if event.step.call == "mark":
            at = event.size
        platter.feed(event)
        left = tmp_path / f"cut{number}"
        platter.save(left, None if torn is None else random.Random(f"{torn} {number}"))
        if at in (1, 2, 3):
            assert FileStore(left / "ring.json").marks() == (frozenset() if at == 2 else {MARKS[0]}), event


# Store ids, history, who drives


def test_a_store_id_is_claimed_once_and_the_one_before_is_told(store):
    assert (store.store_ids(), store.claim("ing1", "aa"), store.claim("ing2", "cc")) == ({}, None, None)
    assert FileStore(store.path).claim("ing1", "aa") == "aa"
    assert FileStore(store.path).claim("ing1", "bb") == "aa"
    assert store.store_ids() == {"ing1": "bb", "ing2": "cc"}


@pytest.mark.parametrize(("cluster", "kept"), [("c1", True), ("c2", False)])
def test_the_first_ring_of_another_cluster_begins_without_the_ids_and_marks_of_the_one_before(store, cluster, kept):
    store.save(FIRST, 0)
    store.claim("ing1", "aa")
    store.put_mark(Mark("ing1", "bridge1"))
    store.path.unlink()
    store.save(first_ring(cluster, NODES, 16, 1), 0)
    assert store.store_ids() == ({"ing1": "aa"} if kept else {})
    assert store.marks() == ({Mark("ing1", "bridge1")} if kept else frozenset())
    assert [past.epoch for past in store.history()] == [1]
    aside = store.path.with_name("ring.json.history-c1")
    assert [path.name for path in aside.glob("*")] == ([] if kept else [f"{1:020d}.json"])


@pytest.mark.parametrize("step", range(8))
def test_a_claim_that_failed_left_the_id_before_or_the_new_one(tmp_path, step):
    FileStore(tmp_path / "ring.json").claim("ing1", "aa")
    store = FileStore(tmp_path / "ring.json", FailingDisk(step))
    try:
        store.claim("ing1", "bb")
    except RingStoreError as error:
        assert re.search(r"cannot write store id .*ring.json.stores/ing1: Input/output error", str(error))
        assert store.store_ids()["ing1"] in ("aa", "bb")
    store.claim("ing1", "bb")
    assert store.store_ids() == {"ing1": "bb"}


def test_the_last_rings_are_kept(store, monkeypatch):
    monkeypatch.setattr(ringstore, "HISTORY", 3)
    for epoch in range(1, 6):
        store.save(at_epoch(epoch), epoch - 1)
    assert [past.epoch for past in store.history()] == [3, 4, 5]
    assert {past.size_bytes for past in store.history()} == {len(FIRST.dumps())}
    assert store.past(4).hash == at_epoch(4).hash
    with pytest.raises(RingError, match=r"no ring of epoch 2 in .*ring.json.history, see: ringctl history"):
        store.past(2)


def test_a_ring_of_the_history_that_never_came_into_force_does_not_count(store):
    store.save(FIRST, 0)
    store.save(at_epoch(2), 1)
    store.path.write_bytes(FIRST.dumps())  # as after a crash between history and ring
    assert [past.epoch for past in store.history()] == [1]


def test_who_drives_is_noted_and_forgotten(store):
    assert store.driver() == ""
    store.note_driver("a on b")
    assert store.driver() == "a on b"
    store.note_driver("")
    assert store.driver() == ""


def test_a_ring_is_put_back_whatever_is_there_unless_that_has_changed(store):
    store.save(FIRST, 0)
    stamp = store.stamp()
    store.path.write_bytes(b"{")
    with pytest.raises(RingConflictError, match=r"ring.json has changed: another writer was first"):
        store.restore(at_epoch(9), stamp)
    store.restore(at_epoch(9), store.stamp())
    assert store.load().epoch == 9


# Following it


def test_a_newer_ring_is_taken_over_once(store):
    store.save(FIRST, 0)
    view = RingView(store, FIRST, 0)
    assert view.poll() is None
    store.save(at_epoch(2), 1)
    assert view.poll().epoch == 2
    assert view.ring.epoch == 2
    assert view.poll() is None


def test_epochs_may_be_skipped(store):
    store.save(FIRST, 0)
    view = RingView(store, FIRST, 0)
    for epoch in range(2, 6):
        store.save(at_epoch(epoch), epoch - 1)
    assert view.poll().epoch == 5


REFUSED = {
    "invalid": b"{",
    "older": at_epoch(2).dumps(),
    "conflict": at_epoch(3, OTHER).dumps(),
    "foreign": at_epoch(4, first_ring("c2", NODES, 16, 1)).dumps(),
    "deletes": at_epoch(4, with_delete(at_epoch(1), Selector("a"), 0, 9)).dumps(),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_may_not_replace_the_ring_is_refused_counted_and_logged_once(store, reason, caplog):
    for epoch in (1, 2, 3):
        store.save(at_epoch(epoch), epoch - 1)
    view = RingView(store, at_epoch(3), 0)
    store.path.write_bytes(REFUSED[reason])
    assert [view.poll() for _ in range(5)] == [None] * 5
    assert view.ring.epoch == 3
    assert view.ring.hash == at_epoch(3).hash
    assert view.refused == dict.fromkeys(ringstore.REFUSALS, 0) | {reason: 1}
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.fields["reason"] == reason


def test_after_a_refusal_the_next_good_ring_is_taken_over(store):
    store.save(FIRST, 0)
    view = RingView(store, FIRST, 0)
    store.path.write_bytes(b"garbage")
    assert view.poll() is None
    store.path.write_bytes(at_epoch(2).dumps())
    assert view.poll().epoch == 2


def test_a_view_in_a_hurry_looks_at_the_next_poll(store, now):
    store.save(FIRST, 0)
    view = RingView(store, FIRST, 1.0)
    assert view.poll() is None
    store.save(at_epoch(2), 1)
    view.hurry()
    assert view.poll().epoch == 2
    store.save(at_epoch(3), 2)
    assert view.poll() is None


def test_a_ring_that_is_gone_leaves_the_one_in_force(store):
    store.save(FIRST, 0)
    view = RingView(store, FIRST, 0)
    store.path.unlink()
    assert [view.poll(), view.poll()] == [None, None]
    assert view.refused["missing"] == 1
    store.save(FIRST, 0)
    store.save(at_epoch(2), 1)
    assert view.poll().epoch == 2


def test_a_store_that_cannot_be_read_is_tried_again_at_every_poll(store):
    store.save(FIRST, 0)
    view = RingView(store, FIRST, 0)
    store.path.unlink()
    store.path.mkdir()
    assert [view.poll(), view.poll()] == [None, None]
    assert view.refused["unreadable"] == 2
    store.path.rmdir()
    store.path.write_bytes(at_epoch(2).dumps())
    assert view.poll().epoch == 2


def test_a_view_says_why_the_store_cannot_be_followed_and_since_when_it_holds_the_ring(store, now):
    store.save(FIRST, 0)
    view = RingView(store, FIRST, 0)
    assert (view.trouble, view.confirmed_s) == ("", float("-inf"))
    view.poll()
    assert (view.trouble, view.confirmed_s) == ("", 100.0)
    now[0] = 101.0
    store.path.write_bytes(b"{")
    assert [view.poll(), view.poll()] == [None, None]
    assert "not JSON" in view.trouble
    store.path.unlink()
    store.path.mkdir()
    view.poll()
    assert view.trouble.startswith("cannot read")
    assert view.confirmed_s == 100.0
    store.path.rmdir()
    store.path.write_bytes(FIRST.dumps())
    view.poll()
    assert (view.trouble, view.confirmed_s) == ("", 101.0)


def test_the_store_is_looked_at_no_more_often_than_told(store, now):
    store.save(FIRST, 0)
    view = RingView(store, FIRST, 1.0)
    assert view.poll() is None
    store.save(at_epoch(2), 1)
    now[0] += 0.99
    assert view.poll() is None
    now[0] += 0.02
    assert view.poll().epoch == 2


def test_epoch_and_refusals_are_exported(store):
    store.save(FIRST, 0)
    view = RingView(store, at_epoch(7), 0)
    view.poll()
    text = metrics.render({"w": metrics.snapshot()}).decode()
    assert 'minitrue_ring_epoch{worker="w"} 7.0' in text
    assert 'minitrue_ring_refused_total{worker="w",reason="older"} 1.0' in text


# At the start


class Stop:
    """Stands for process.Stop: runs a step at each wait, and says stop when none is left."""

    def __init__(self, *steps):
        self.steps = list(steps)
        self.waits = 0

    def wait(self, timeout_s):
        self.waits += 1
        if not self.steps:
            return True
        self.steps.pop(0)()
        return False


def test_a_ring_that_is_there_is_taken_without_waiting(store):
    store.save(FIRST, 0)
    assert wait_for_ring(store, Stop(), 0.1).ring.hash == FIRST.hash


def test_a_worker_started_before_init_waits_says_so_once_and_goes_on(store, caplog):
    stop = Stop(lambda: None, lambda: None, lambda: store.save(FIRST, 0))
    assert wait_for_ring(store, stop, 0.1).ring.hash == FIRST.hash
    assert [record.fields["store"] for record in caplog.records] == [store.url]


def test_a_worker_that_is_stopped_while_it_waits_ends(store):
    assert wait_for_ring(store, Stop(), 0.1) is None


def test_an_invalid_ring_at_the_start_is_an_error(store):
    store.path.parent.mkdir()
    store.path.write_bytes(b"{}")
    with pytest.raises(RingError, match=re.escape(str(store.path))):
        wait_for_ring(store, Stop(), 0.1)


def test_a_save_leaves_nothing_behind_but_the_ring_its_history_and_its_lock(store):
    store.save(FIRST, 0)
    names = ["ring.json", "ring.json.history", "ring.json.lock"]
    assert sorted(each.name for each in store.path.parent.iterdir()) == names
