"""tools/ringctl history, backup and restore: on a file store, with nodes that answer, and on etcd put back."""

import contextlib
import dataclasses
import json
import threading

import msgspec
import pytest
from click.testing import CliRunner

from common import bus, protocol
from common.errors import MinitrueError, RingError, RingStoreError
from common.ring import Node
from common.ringbuild import first_ring, with_delete
from common.ringrules import fault_of
from common.ringstore import FileStore, Mark
from common.selector import Selector
from tests.etcds import Etcd
from tests.support import free_port_range
from tools import ringctl_app, ringctl_backup
from tools.ring_outlook import LOSS, LOST
from tools.ringctl_backup import Found

ASKED = {protocol.RING, protocol.STATUS}


def at_epoch(epoch, ring):
    return dataclasses.replace(ring, epoch=epoch)


def deleted(ring, device):
    return with_delete(ring, Selector(device), 0, 9)


@pytest.fixture
def nodes():
    """Two nodes on free ports, on which nothing listens yet."""
    ports = free_port_range(3), free_port_range(3)
    return [Node(f"ing{at}", "", f"tcp://127.0.0.1:{port}", "a", 1.0, "active") for at, port in enumerate(ports)]


@pytest.fixture
def first(nodes):
    return first_ring("c1", nodes, 16, 1)


@pytest.fixture
def place(tmp_path, nodes):
    (tmp_path / "minitrue.toml").write_text('[cluster]\nring_store = "file:ring.json"\n')
    tables = (f'[[nodes]]\nid = "{node.id}"\nendpoint = "{node.endpoint}"\n' for node in nodes)
    (tmp_path / "ring.toml").write_text("partitions = 16\n" + "".join(tables))
    return tmp_path


@pytest.fixture
def store(place):
    return FileStore(place / "ring.json")


def run(place, *arguments):
    """The result of a command line; its error is raised."""
    words = [*map(str, arguments), "--config", str(place / "minitrue.toml")]
    done = CliRunner().invoke(ringctl_app.cli, words)
    if isinstance(done.exception, MinitrueError):
        raise done.exception
    return done


def answer(place, *arguments):
    done = run(place, *arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.output)


@contextlib.contextmanager
def answering(ring, *ids, **status):
    """Sockets that answer as nodes of that ring do."""
    own, done = bus.Bus(), threading.Event()
    routers = {own.router(ring.node(node).request_endpoint): node for node in ids}

    def serve():
        poller = bus.Poller(list(routers))
        while not done.is_set():
            for router in poller.poll(0.05):
                route, frames = router.receive_routed()
                asked = protocol.unpack(frames)
                assert asked.kind in ASKED
                header = protocol.Header(
                    protocol.VERSION, ring.cluster, asked.header.sender, routers[router], 7, 1, ring.epoch, ring.hash,
                    re=asked.header.sequence, re_incarnation=asked.header.incarnation,
                )  # fmt: skip
                told = protocol.RingReply(ring.dumps()) if asked.kind == protocol.RING else {"bridges": {}} | status
                router.reply(route, protocol.pack(protocol.REPLY, header, told))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        own.close()


# History


def test_history_says_what_each_ring_changed(place, store, first):
    assert answer(place, "history")["rings"] == []
    lighter = [msgspec.structs.replace(first.nodes[0], weight=0.5), first.nodes[1]]
    rings = [first, deleted(first, "a")]
    rings.append(dataclasses.replace(at_epoch(3, rings[-1]), nodes=tuple(lighter)))
    for ring in rings:
        store.save(ring, ring.epoch - 1)
    told = answer(place, "history")["rings"]
    assert [(row["epoch"], row["changes"]) for row in told] == [
        (1, ["2 nodes, 16 partitions, replication 1"]),
        (2, ["deletes: 1"]),
        (3, ["ing0: weight 1.0 to 0.5"]),
    ]
    assert [row["changes"] for row in answer(place, "history", "--limit", 1)["rings"]] == [["ing0: weight 1.0 to 0.5"]]
    store.note_driver("a on b")
    assert "driving moves: a on b" in run(place, "history").output


# Backup and restore


def test_what_is_backed_up_is_put_back_into_a_store_that_lost_it(place, store, first):
    store.save(first, 0)
    store.put_mark(Mark("ing1", "bridge1"))
    store.claim("ing0", "aa")
    assert answer(place, "backup", place / "b.json")["epoch"] == 1
    for name in ("ring.json", "ring.json.marks/ing1@bridge1", "ring.json.stores/ing0"):
        (place / name).unlink()
    with pytest.raises(RingError, match="ing0, ing1 cannot be asked, and may go by a later ring"):
        run(place, "restore", place / "b.json", "--yes")
    told = answer(place, "restore", place / "b.json", "--yes", "--anyway")
    assert (told["restored"], told["epoch"]) == (True, 2)
    assert store.load().hash == at_epoch(2, first).hash
    assert (store.marks(), store.store_ids()) == ({Mark("ing1", "bridge1")}, {"ing0": "aa"})


def test_a_later_ring_of_the_nodes_is_put_back_in_place_of_that_of_the_file(place, store, first):
    store.save(first, 0)
    run(place, "backup", place / "b.json")
    force = at_epoch(6, deleted(at_epoch(4, first), "a"))
    store.path.unlink()
    spools = {"ing1": {"bytes": 5, "damaged": 0}, "ing0": {"bytes": 0, "damaged": 0}}
    bridges = {"bridge1": {"age_s": 1.0, "epoch": 7, "spools": spools}}
    with answering(force, "ing0", "ing1", bridges=bridges):
        told = answer(place, "restore", place / "b.json", "--yes")
    assert (told["epoch"], told["from"]) == (8, "node ing0")
    stored = store.load()
    assert stored.deletes == force.deletes
    assert fault_of(stored, force) is None
    assert store.marks() == {Mark("ing1", "bridge1")}


def test_what_a_node_says_of_itself_counts_more_than_an_old_file(place, store, first):
    store.save(first, 0)
    store.claim("ing0", "aa")
    store.claim("ing1", "bb")
    for mark in (Mark("ing0", LOST), Mark("ing0", LOSS), Mark("ing1", LOST)):
        store.put_mark(mark)
    run(place, "backup", place / "b.json")
    for mark in store.marks():
        store.remove_mark(mark)
    store.path.unlink()
    with answering(first, "ing0", store_id="cc"):  # its disk was replaced since
        answer(place, "restore", place / "b.json", "--yes", "--anyway")
    assert store.store_ids() == {"ing0": "cc", "ing1": "bb"}
    assert store.marks() == {Mark("ing1", LOST)}


def test_without_a_file_the_nodes_that_the_cluster_began_with_are_asked(place, store, first):
    with answering(at_epoch(3, first), "ing0", "ing1", behind={"partitions": None}):
        told = answer(place, "restore", "--yes")
    assert (told["epoch"], store.load().epoch) == (4, 4)
    assert store.marks() == {Mark("ing0", "ing0"), Mark("ing1", "ing1")}


def test_a_ring_that_is_the_latest_of_all_stays(place, store, first):
    store.save(first, 0)
    run(place, "backup", place / "b.json")
    store.save(at_epoch(2, first), 1)
    with answering(first, "ing0", "ing1"):
        done = run(place, "restore", place / "b.json", "--yes")
    assert "holds the latest ring of all: nothing to put back" in done.output
    assert store.load().epoch == 2


def test_a_ring_of_another_cluster_made_by_init_meanwhile_goes(place, store, first):
    store.save(first_ring("c2", list(first.nodes), 16, 1), 0)
    with answering(at_epoch(5, first), "ing0", "ing1"):
        assert answer(place, "restore", "--yes")["epoch"] == 6
    assert store.load().cluster == "c1"


def test_nothing_is_put_back_before_it_was_said(place, store, first):
    with answering(first, "ing0", "ing1"):
        done = run(place, "restore")
    assert done.exit_code == 1
    assert "to put back: the ring of node ing0, as epoch 2" in done.output
    assert store.load() is None


def test_where_nothing_is_known_a_file_is_asked_for(place):
    with pytest.raises(RingError, match=r"no ring in file:.*ring.json, and no node answers: name a file"):
        run(place, "restore", "--yes")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("{", "is neither a backup nor a ring document"), ("[]", "want a JSON object"),
     ('{"minitrue_backup": 9}', "a backup of format 9, this program reads 1"),
     ('{"minitrue_backup": 1}', "is neither a backup nor a ring document: Object missing required field")],
)  # fmt: skip
def test_a_file_that_is_no_backup_is_refused(place, text, wanted):
    (place / "b.json").write_text(text)
    with pytest.raises(RingError, match=wanted):
        run(place, "restore", place / "b.json", "--yes")


def test_deletes_of_a_branch_that_nobody_followed_are_kept_under_new_numbers(first):
    """The store was put back to epoch 1, and took a delete there; the nodes were at 3."""
    force = deleted(deleted(first, "a"), "b")
    branch = deleted(first, "c")
    best = ringctl_backup.latest([Found("node", force)], [Found("store", branch), Found("file", first)])
    assert best.where == "node"
    made = ringctl_backup.put_back(best.ring, [branch, first], 0)
    assert [(record.number, record.device_id) for record in made.deletes] == [(2, "a"), (3, "b"), (4, "c")]
    assert made.epoch == 5
    assert fault_of(made, force) is None


def test_a_branch_that_nodes_cannot_follow_is_not_gone_on_from_however_high_it_is(first):
    force, branch = deleted(first, "a"), at_epoch(9, deleted(first, "c"))
    best = ringctl_backup.latest([Found("node", force)], [Found("store", branch)])
    assert best.where == "node"
    made = ringctl_backup.put_back(best.ring, [branch], 0)
    assert [(record.number, record.device_id) for record in made.deletes] == [(2, "a"), (10, "c")]
    assert (made.epoch, fault_of(made, force)) == (11, None)


def test_who_goes_by_a_ring_with_other_owners_follows_what_is_put_back(first, nodes):
    other = at_epoch(3, first_ring("c1", nodes, 16, 1, seed=9))
    made = ringctl_backup.put_back(at_epoch(5, first), [other], 0)
    assert made.epoch == 6
    assert (fault_of(made, other), fault_of(made, at_epoch(5, first))) == (None, None)
    assert fault_of(at_epoch(6, first), other)[0] == "moves"


def test_rings_between_which_nothing_decides_are_refused(first, nodes):
    other = first_ring("c1", nodes, 16, 1, seed=9)
    with pytest.raises(RingError, match="epoch 1 has one ring in one and another in two"):
        ringctl_backup.latest([Found("one", first), Found("two", other)], [])
    with pytest.raises(RingError, match=r"rings of 2 clusters \(.*\): want one"):
        ringctl_backup.latest([Found("one", first)], [Found("two", first_ring("c2", nodes, 16, 1))])


def test_an_etcd_that_was_put_back_gets_the_ring_that_nodes_go_by(children, place, first):
    etcd = Etcd(children, place)
    (place / "minitrue.toml").write_text(f'[cluster]\nring_store = "{etcd.url}"\n')
    store = etcd.store()
    store.save(first, 0)
    etcd.snapshot(place / "snapshot")
    store.save(deleted(first, "a"), 1)
    force = store.load()
    etcd.put_back(place / "snapshot")
    assert store.load().epoch == 1
    with answering(force, "ing0", "ing1"):
        assert answer(place, "restore", "--yes")["epoch"] == 3
    assert fault_of(store.load(), force) is None
    assert [row["epoch"] for row in answer(place, "history")["rings"]] == [1, 3]


def test_in_an_etcd_that_was_emptied_init_makes_no_cluster_while_a_node_answers(children, place, first):
    etcd = Etcd(children, place)
    (place / "minitrue.toml").write_text(f'[cluster]\nring_store = "{etcd.url}"\n')
    with answering(first, "ing1"), pytest.raises(RingStoreError, match=r"but ing1 answers, by epoch 1 of cluster c1: "):
        run(place, "init", "--if-missing")
    assert etcd.store().load() is None
    assert answer(place, "init", "--if-missing")["created"]


# Without the ring store


@pytest.mark.parametrize(("document", "said"), [("{", "is not JSON"), (None, "no ring in")])
def test_status_tells_what_nodes_know_while_the_ring_store_cannot_be_read(place, first, document, said):
    if document is not None:
        (place / "ring.json").write_text(document)
    behind = {"bridge1": {"age_s": 0.5, "spools": {"ing1": {"bytes": 9, "records": 1, "oldest_s_ago": 3.0,
                                                            "error": "", "damaged": 0}}}}  # fmt: skip
    facts = {"epoch": 7, "ring_hash": at_epoch(7, first).hash, "points": 5, "bridges": behind}
    with answering(at_epoch(7, first), "ing0", "ing1", **facts):
        done = run(place, "status")
        told = json.loads(run(place, "status", "--json").output)
    words = " ".join(done.output.split())
    assert done.exit_code == 1
    assert said in words and "As nodes know it: cluster c1, epoch 7" in words and "Workers go on with the ring" in words
    assert "ringctl init" not in words  # which would make another cluster
    assert "if it lost the ring: tools/ringctl restore" in words
    assert (told["ok"], told["epoch"], told["marks"]) == (False, 7, [["ing1", "bridge1"]])
    assert [node["fault"] for node in told["nodes"]] == ["", "is behind: points for it are in the spool of bridge1"]
    assert said in told["store_error"]


def test_status_says_how_to_go_on_where_a_bridge_that_has_points_is_not_heard(place, store, first):
    store.save(first, 0)
    store.put_mark(Mark("ing1", "bridge1"))
    facts = {"epoch": 1, "ring_hash": first.hash, "bridges": {"bridge1": {"age_s": 900.0}}}
    with answering(first, "ing0", "ing1", **facts):
        words = " ".join(run(place, "status").output.split())
    assert "if it is gone for good: tools/ringctl accept-loss ing1 --bridge bridge1" in words
