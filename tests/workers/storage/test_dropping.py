"""Partitions that were given away: forgotten when all owners have them, kept when they come back before."""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from common import protocol
from common.errors import StorageError
from common.ring import Ring
from common.ringmoves import Step, begin, finish
from tests.disks import FailingDisk, QuickDisk
from tests.support import wait_until
from tests.workers.storage.alive import Alive, Cluster
from tests.workers.storage.support import EVERYWHERE, PARTITIONS, batch_of, key, open_store, rows_of
from workers.storage import layout
from workers.storage.dropping import Dropping, KeptError
from workers.storage.store import Store

DEVICES = [f"d{at}" for at in range(40)]
NOTHING = np.zeros(PARTITIONS, np.bool_)


def count(store: Store, device: str) -> int:
    return store.aggregate(device, "temperature", None, EVERYWHERE, None, None).count


def partition_of(store: Store, device: str) -> int:
    return int(store.partitions_of([key(device)])[0])


def among(*partitions: int) -> np.ndarray:
    found = NOTHING.copy()
    found[list(partitions)] = True
    return found


def fill(store: Store, first: int = 0) -> None:
    """Some points of each device, in a segment."""
    store.append([batch_of([row for device in DEVICES for row in rows_of(key(device), range(first, first + 5))])])
    store.seal()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = open_store(tmp_path / "data", QuickDisk())
    made.keep(NOTHING)
    fill(made)
    yield made
    made.close()


def counts(store: Store, partition: int) -> tuple[set[int], set[int]]:
    """How many points devices have, in the partition and elsewhere."""
    inside = [device for device in DEVICES if partition_of(store, device) == partition]
    outside = [device for device in DEVICES if partition_of(store, device) != partition]
    return {count(store, each) for each in inside}, {count(store, each) for each in outside}


def test_a_dropped_partition_is_left_out_and_then_named_no_more(store: Store) -> None:
    gone = partition_of(store, "d0")
    fill(store, 10)
    store.drop(among(gone))
    assert not store.stored_partitions()[gone], "what is dropped counts no more"
    store.compact()
    assert counts(store, gone) == ({0}, {10})
    store._maintainer.wait_until_idle()
    status = store.status()
    assert (status["dropped_partitions"], status["dropped_segments"]) == (0, 0)
    assert not (store._layout.directory / layout.DROPPED).exists()


def test_a_segment_of_which_nothing_stays_goes(tmp_path: Path) -> None:
    store = open_store(tmp_path / "data", QuickDisk())
    store.keep(NOTHING)
    store.append([batch_of(rows_of(key("d0"), range(5)))])
    store.seal()
    store.drop(~NOTHING)
    wait_until(lambda: store.status()["segments"] == 0, what="the segment to go")
    store.close()


def test_what_comes_after_a_drop_stays(store: Store) -> None:
    store._maintainer.stop()  # compaction is done by the test
    gone = partition_of(store, "d0")
    store.drop(among(gone))
    fill(store, 10)
    assert store.stored_partitions()[gone]
    store.compact()
    assert counts(store, gone) == ({5}, {10})


def test_a_partition_that_comes_back_before_compaction_is_kept(store: Store) -> None:
    store._maintainer.stop()  # compaction is done by the test
    gone = partition_of(store, "d0")
    store.drop(among(gone))
    store.keep(among(gone))
    store.compact()
    assert counts(store, gone) == ({5}, {5})
    assert not (store._layout.directory / layout.DROPPED).exists()


def test_one_that_is_back_is_not_dropped_by_who_has_not_heard(store: Store) -> None:
    gone = partition_of(store, "d0")
    store.keep(among(gone))
    store.drop(~NOTHING)
    store.compact()
    assert counts(store, gone) == ({5}, {0})


def test_a_compaction_under_way_gives_up_when_a_partition_comes_back(store: Store) -> None:
    store._maintainer.stop()  # compaction is done by the test
    gone = partition_of(store, "d0")
    paused, go, order = threading.Event(), threading.Event(), []
    maintenance = store._maintenance

    def pause() -> None:
        paused.set()
        assert go.wait(10.0)

    def compact() -> None:
        with store._maintainer.exclusive():
            maintenance.step(pause, everything=True)
        order.append("compaction ended")

    store.drop(among(gone))
    fill(store, 10)
    thread = threading.Thread(target=compact)
    thread.start()
    assert paused.wait(10.0)

    def keep() -> None:
        store.keep(among(gone))
        order.append("kept")

    keeping = threading.Thread(target=keep)
    keeping.start()
    wait_until(lambda: not store._dropping.drops, what="what compaction sees to change")
    assert order == [], "nothing is taken for kept while what leaves it out is being written"
    go.set()
    thread.join()
    keeping.join()
    assert len(order) == 2
    assert counts(store, gone) == ({10}, {10})


def test_what_is_dropped_is_known_after_a_restart(tmp_path: Path) -> None:
    store = open_store(tmp_path / "data", QuickDisk())
    store.keep(NOTHING)
    fill(store)
    store._maintainer.stop()  # as if killed before it is done
    gone = partition_of(store, "d0")
    store.drop(among(gone))
    store.close()
    store = open_store(tmp_path / "data", QuickDisk())
    store.compact()
    assert counts(store, gone) == ({0}, {5})
    store.close()


def test_series_that_were_given_away_leave_room_for_others(tmp_path: Path) -> None:
    store = open_store(tmp_path / "data", QuickDisk(), max_series=len(DEVICES))
    fill(store)
    other = [key(f"other{at}") for at in range(len(DEVICES))]
    assert len(store.append([batch_of([(each, 1, 1.0) for each in other[:1]])])[0]) == 1
    gone = partition_of(store, "d0")
    many = sum(partition_of(store, device) == gone for device in DEVICES)
    store.keep(~among(gone))
    (refused,) = store.append([batch_of([(each, 1, 1.0) for each in other])])
    assert len(refused) == len(other) - many
    store.close()


def states_of(directory: Path) -> list[int]:
    """What the file of a directory names, as a process finds it that begins."""
    place = layout.open_directory(directory, "cluster", "ing1", QuickDisk())
    try:
        return np.flatnonzero(Dropping(place, PARTITIONS).drops.limits >= 0).tolist()
    finally:
        place.lock.release()


@pytest.mark.parametrize("step", range(8))
def test_where_the_disk_fails_the_file_names_what_it_named_before_or_after(tmp_path: Path, step: int) -> None:
    place = layout.open_directory(tmp_path, "cluster", "ing1", QuickDisk())
    Dropping(place, PARTITIONS).drop([1, 2], 7)
    dropping = Dropping(layout.Layout(place.directory, place.store_id, place.lock, FailingDisk(step)), PARTITIONS)
    before = dropping.drops
    try:
        dropping.drop([4], 9)
        named = [1, 2, 4]
    except OSError:
        assert dropping.drops is before, "not in force"
        named = [1, 2]
    place.lock.release()
    assert states_of(tmp_path) in (named, [1, 2, 4])


def test_while_what_comes_back_cannot_be_saved_its_ring_is_not_adopted(tmp_path: Path) -> None:
    store = open_store(tmp_path / "data", QuickDisk())
    store.keep(NOTHING)
    fill(store)
    store._maintainer.stop()
    store.drop(~NOTHING)
    path = tmp_path / "data" / layout.DROPPED
    path.unlink()
    (path / "x").mkdir(parents=True)  # can neither be replaced nor removed
    for _ in range(2):
        with pytest.raises(StorageError, match="DROPPED in"):
            store.keep(among(3))
    store.close()


def test_a_compaction_that_begins_with_what_was_dropped_before_is_refused(tmp_path: Path) -> None:
    place = layout.open_directory(tmp_path, "cluster", "ing1", QuickDisk())
    dropping = Dropping(place, PARTITIONS)
    dropping.drop([1], 7)
    old = dropping.drops
    dropping.spare(among(1))
    with pytest.raises(KeptError), dropping.using(old):
        pass
    place.lock.release()


def test_files_of_another_making_are_refused_or_named_anew(tmp_path: Path) -> None:
    place = layout.open_directory(tmp_path, "cluster", "ing1", QuickDisk())
    (tmp_path / layout.DROPPED).write_bytes(b"?")
    assert not Dropping(place, PARTITIONS).drops and not (tmp_path / layout.DROPPED).exists()
    (tmp_path / layout.DROPPED).write_bytes(b'{"format":2}')
    with pytest.raises(StorageError, match="DROPPED has format version 2, this program reads up to 1"):
        Dropping(place, PARTITIONS)
    place.lock.release()


# The keeper, with nodes at work.


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setattr("workers.storage.keeper.LOOK_S", 0.05)
    monkeypatch.setattr("workers.storage.keeper.RETRY_S", 0.2)
    made = Cluster(tmp_path, ["ing1", "ing2"], 1, monkeypatch)
    yield made
    made.close()


def give_away(cluster: Cluster, source: Alive, target: str, times: Sequence[int]) -> tuple[int, str]:
    """Give the partition of a device away that has points, also where it goes; the partition and the device."""
    ring = cluster.ring
    owned = set(ring.owned_partitions(source.id).tolist())
    device = next(each for each in DEVICES if source.partition_of(key(each)) in owned)
    partition = source.partition_of(key(device))
    source.write(rows_of(key(device), range(5)), ring.epoch)
    source.store.seal()
    ring = cluster.save(lambda ring: begin(ring, [Step(partition, source.id, target)]))
    if times:
        other = cluster.alive[target]
        assert other.write(rows_of(key(device), times), ring.epoch).rows == len(times)
    ring = cluster.save(lambda ring: finish(ring, [partition]))
    source.send(protocol.STATUS, {}, ring.epoch)
    source.answer()
    return partition, device


def test_what_was_given_away_is_dropped_when_its_owner_has_it(cluster: Cluster) -> None:
    source, _ = cluster.start("ing1", drop_grace_s=0.1), cluster.start("ing2")
    _, device = give_away(cluster, source, "ing2", range(5))
    wait_until(lambda: count(source.store, device) == 0, what="the points to go")
    assert count(cluster.alive["ing2"].store, device) == 5
    wait_until(lambda: source.status()["forgetting"]["partitions"] == 0, what="nothing to wait")


def test_what_was_given_away_is_kept_while_its_owner_is_not_there(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = cluster.start("ing1", drop_grace_s=0.1), cluster.start("ing2")
    target.stop()
    _, device = give_away(cluster, source, "ing2", [])
    wait_until(lambda: source.ingest.node.view.ring.epoch == cluster.ring.epoch, what="the source to adopt")
    monkeypatch.setattr("workers.storage.keeper.ROUND_S", 0.1)
    wait_until(lambda: "no connection to ing2" in source.status()["forgetting"]["trouble"], what="the keeper to say so")
    assert count(source.store, device) == 5


def test_what_was_given_away_is_kept_while_its_owner_lacks_points_of_it(cluster: Cluster) -> None:
    source, _ = cluster.start("ing1", drop_grace_s=0.1), cluster.start("ing2")
    partition, device = give_away(cluster, source, "ing2", range(4))
    trouble = f"ing2 has 4 points of partition {partition}, of which 5 are here"
    wait_until(lambda: source.status()["forgetting"]["trouble"] == trouble, what="the keeper to say so")
    assert source.status()["forgetting"]["owners_lack"] == 1
    assert count(source.store, device) == 5
    target = cluster.alive["ing2"]
    assert target.write(rows_of(key(device), [4]), cluster.ring.epoch).rows == 1
    wait_until(lambda: count(source.store, device) == 0, what="the points to go")
    wait_until(lambda: source.status()["forgetting"]["owners_lack"] == 0, what="nothing to lack")


def test_newer_points_of_an_owner_do_not_make_up_for_those_that_it_lacks(cluster: Cluster) -> None:
    source, _ = cluster.start("ing1", drop_grace_s=0.1), cluster.start("ing2")
    partition, device = give_away(cluster, source, "ing2", [0, 1, 2, 4, 10, 11, 12])
    trouble = f"ing2 has 4 points of partition {partition}, of which 5 are here"
    wait_until(lambda: source.status()["forgetting"]["trouble"] == trouble, what="the keeper to say so")
    assert count(source.store, device) == 5


def test_what_comes_back_within_the_grace_is_kept(cluster: Cluster) -> None:
    source, _ = cluster.start("ing1", drop_grace_s=60.0), cluster.start("ing2")
    partition, device = give_away(cluster, source, "ing2", range(5))
    wait_until(lambda: source.status()["forgetting"]["partitions"] == 1, what="the keeper to see it")

    def back(ring: Ring) -> Ring:
        return begin(ring, [Step(partition, "ing2", "ing1")])

    source.send(protocol.STATUS, {}, cluster.save(back).epoch)
    source.answer()
    wait_until(lambda: source.status()["forgetting"]["partitions"] == 0, what="the keeper to see it")
    assert count(source.store, device) == 5
