"""The ring store in etcd, on real etcd processes: the contract of a store, requests that come late, and what fails."""

import http.server
import re
import threading
import time

import pytest

from common import config, ringfollow, ringstore
from common.errors import ConfigError, RingConflictError, RingError, RingStoreError
from common.etcdclient import EtcdClient
from common.etcdstore import EtcdStore
from common.ringfollow import FollowedStore
from common.ringstore import Mark, RingView, open_followed, open_store, wait_for_ring
from tests.common.test_ringstore import FIRST, MARKS, OTHER, Stop, at_epoch, deleted
from tests.etcds import Etcd
from tests.support import Children, certificate, free_port, wait_until


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """An etcd for all tests that leave it alive."""
    children = Children()
    try:
        yield Etcd(children, tmp_path_factory.mktemp("shared"))
    finally:
        children.stop_all()


@pytest.fixture
def url(shared, request):
    """A store of its own for each test."""
    return f"etcd://127.0.0.1:{shared.port}/{re.sub('[^a-z0-9]', '_', request.node.name)}"


@pytest.fixture
def store(shared, url):
    opened = shared.store(url=url)
    yield opened
    opened.close()


@pytest.fixture
def own(children, tmp_path):
    """An etcd of the test's own, to be treated badly."""
    return Etcd(children, tmp_path)


@pytest.fixture
def followed(own):
    """A followed store in it, at epoch 3, with a mark. Looks every 0.1 s."""
    store = own.store(config.Cluster(etcd_timeout_s=0.5))
    for epoch in (1, 2, 3):
        store.save(at_epoch(epoch), epoch - 1)
    store.put_mark(MARKS[0])
    found = FollowedStore(store, 0.1)
    assert found.load().epoch == 3
    yield found
    found.close()
    store.close()


def saved(store, *epochs):
    for epoch in epochs:
        store.save(at_epoch(epoch), epoch - 1)


class Front(http.server.BaseHTTPRequestHandler):
    """What stands in the place of etcd, such as a proxy: it answers everything, and with something else."""

    body = b"null"
    asked = 0

    def do_POST(self) -> None:
        type(self).asked += 1
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def front(monkeypatch):
    """A store behind one."""
    monkeypatch.setattr(Front, "asked", 0)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Front) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        opened = open_store(f"etcd://127.0.0.1:{server.server_port}/x", config.Settings())
        yield opened
        opened.close()
        server.shutdown()


def test_an_answer_that_is_none_of_etcd_is_an_error_of_the_store(front):
    with pytest.raises(RingStoreError, match=r"answers 'None', want an object: is it etcd\?"):
        front.load()


def test_a_watch_that_ends_at_once_is_not_begun_again_at_once(front, monkeypatch):
    monkeypatch.setattr(Front, "body", b"")
    front.watch(lambda: None)
    wait_until(lambda: Front.asked, what="the first watch")
    time.sleep(0.2)
    assert Front.asked == 1


# The contract


def test_what_is_saved_is_loaded(shared, store, url):
    assert (store.load(), store.stamp(), store.history()) == (None, None, [])
    saved(store, 1)
    assert shared.store(url=url).load().dumps() == FIRST.dumps()


def test_the_stamp_differs_after_each_save(store):
    stamps = [store.stamp()]
    for epoch in range(1, 6):
        saved(store, epoch)
        stamps.append(store.stamp())
    assert len(set(stamps)) == 6


def test_a_save_for_another_epoch_or_that_cannot_follow_is_refused_and_changes_nothing(store):
    saved(store, 1)
    with pytest.raises(RingConflictError, match=r"etcd://.* is at epoch 1, want 0: another writer was first"):
        store.save(OTHER, 0)
    with pytest.raises(RingError, match="epoch 3 cannot follow 1, want 2"):
        store.save(at_epoch(3), 1)
    store.save(deleted(FIRST, "a"), 1)
    with pytest.raises(RingError, match="ring of epoch 3 without delete 2"):
        store.save(at_epoch(3), 2)
    assert store.load().delete_number == 2


def test_of_two_who_looked_at_the_same_ring_one_wins(shared, store, url):
    """Both have passed the check of epochs: the transaction decides."""
    saved(store, 1)
    found = store._get(b"ring")
    saved(shared.store(url=url), 2)
    with pytest.raises(RingConflictError, match="has changed: another writer was first"):
        store._replace(deleted(FIRST, "a"), found)
    assert store.load().hash == at_epoch(2).hash


def test_of_writers_at_once_exactly_one_wins_each_epoch(shared, store, url):
    saved(store, 1)

    def advance():
        mine, done = shared.store(url=url), 0
        while done < 5:
            epoch = mine.load().epoch
            try:
                saved(mine, epoch + 1)
                done += 1
            except RingConflictError:
                continue

    writers = [threading.Thread(target=advance) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert store.load().epoch == 16
    assert [past.epoch for past in store.history()] == list(range(1, 17))


def test_the_last_rings_are_kept(store, monkeypatch):
    monkeypatch.setattr(ringstore, "HISTORY", 3)
    saved(store, 1, 2, 3, 4, 5)
    assert [past.epoch for past in store.history()] == [3, 4, 5]
    assert all(abs(past.saved_at_s - time.time()) < 60 for past in store.history())
    assert store.past(4).hash == at_epoch(4).hash
    with pytest.raises(RingError, match="no ring of epoch 2 in etcd://"):
        store.past(2)


def test_marks_store_ids_and_driver_are_kept(shared, store, url):
    saved(store, 1)
    for mark in (*MARKS, MARKS[0]):
        store.put_mark(mark)
    for _ in range(2):
        store.remove_mark(MARKS[0])
    store.remove_mark(Mark("never", "there"))
    assert [store.claim("ing1", "aa"), store.claim("ing1", "aa"), store.claim("ing1", "bb")] == [None, "aa", "aa"]
    store.note_driver("a on b")
    again = shared.store(url=url)
    assert (again.marks(), again.store_ids(), again.driver()) == (frozenset(MARKS[1:]), {"ing1": "bb"}, "a on b")
    assert again.look() == (store.stamp(), 1, frozenset(MARKS[1:]))


def test_a_ring_is_put_back_whatever_is_there_unless_that_has_changed(store):
    saved(store, 1)
    stamp = store.stamp()
    saved(store, 2)
    with pytest.raises(RingConflictError, match="has changed: another writer was first"):
        store.restore(at_epoch(9), stamp)
    store.restore(at_epoch(9), store.stamp())
    assert store.load().epoch == 9


def test_what_is_damaged_is_an_error_that_names_the_key(shared, store, url):
    saved(store, 1)
    prefix = url.rpartition("/")[2]
    key = f"{prefix}/epochs/{1:020d}"
    shared.ctl("put", key, "x")
    with pytest.raises(RingError, match="a document of the history is damaged"):
        store.load()
    shared.ctl("del", key)
    with pytest.raises(RingError, match=f"{prefix}/ring names epoch 1, whose document is not there"):
        store.load()
    shared.ctl("put", f"{prefix}/ring", "x")
    with pytest.raises(RingError, match="want epoch, hash, draw"):
        store.load()


def test_clusters_with_other_prefixes_do_not_see_each_other(shared, store, url):
    longer = shared.store(url=url + "2")
    saved(store, 1)
    store.put_mark(MARKS[0])
    assert (longer.load(), longer.marks()) == (None, frozenset())


# Requests that are carried out late, or twice


class LateClient(EtcdClient):
    """Its writes are held while `holds`, as by a member that is stopped; the caller sees none answered in time.

    twice: the answer to each write is lost, and that to a second try comes.
    """

    holds = twice = False

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.held = []

    def call(self, path, body, timeout_s=None):
        if self.holds and body["compare"]:
            self.held.append((path, body))
            raise RingStoreError("etcd: does not answer in time")
        if self.twice and body["compare"]:
            super().call(path, body, timeout_s)
        return super().call(path, body, timeout_s)

    def deliver(self):
        """The member goes on with what it was sent."""
        for path, body in self.held:
            super().call(path, body)


@pytest.fixture
def late(shared, url):
    client = LateClient([("127.0.0.1", shared.port)], 2.0)
    return client, EtcdStore(url, client, "/".join(url.split("/")[3:]))


def unanswered(client, act, *arguments):
    client.holds = True
    with pytest.raises(RingStoreError, match="in time"):
        act(*arguments)
    client.holds = False


def test_a_put_that_comes_late_brings_back_no_mark_that_was_removed(late):
    client, store = late
    unanswered(client, store.put_mark, MARKS[0])
    store.put_mark(MARKS[0])
    store.remove_mark(MARKS[0])
    client.deliver()
    assert store.marks() == frozenset()


def test_a_removal_that_comes_late_takes_no_mark_that_was_put_again(late):
    client, store = late
    store.put_mark(MARKS[0])
    unanswered(client, store.remove_mark, MARKS[0])
    store.put_mark(MARKS[0])
    client.deliver()
    assert store.marks() == {MARKS[0]}


def test_a_save_that_comes_late_changes_nothing_when_another_was_there_before(late):
    client, store = late
    saved(store, 1)
    unanswered(client, store.save, deleted(FIRST, "a"), 1)
    saved(store, 2)
    client.deliver()
    assert store.load().hash == at_epoch(2).hash
    assert store.past(2).hash == at_epoch(2).hash


def test_a_claim_that_comes_late_changes_nothing_when_another_was_there_before(late):
    client, store = late
    unanswered(client, store.claim, "ing1", "aa")
    store.claim("ing1", "bb")
    client.deliver()
    assert store.store_ids() == {"ing1": "bb"}


def test_a_save_whose_first_answer_was_lost_is_no_conflict_with_itself(late):
    client, store = late
    client.twice = True
    saved(store, 1, 2)
    assert store.load().epoch == 2
    assert [store.claim("ing1", "aa"), store.claim("ing1", "bb")] == [None, "aa"]
    store.put_mark(MARKS[0])
    assert store.marks() == {MARKS[0]}
    store.remove_mark(MARKS[0])
    assert store.marks() == frozenset()


# Down and slow


def test_a_member_that_is_gone_is_named_at_once_and_the_others_are_asked(shared, url):
    gone = free_port()
    with pytest.raises(RingStoreError, match=f"etcd: 127.0.0.1:{gone} Connection refused"):
        shared.store(url=f"etcd://127.0.0.1:{gone}/x").load()
    store = shared.store(url=url.replace("127", f"127.0.0.1:{gone},localhost:{gone},127", 1))
    saved(store, 1)
    assert store.load().epoch == 1


def test_a_frozen_member_ends_each_call_in_time_and_the_others_get_their_part_of_it(own, shared, url):
    saved(own.store(), 1)
    own.freeze()
    alone = own.store(config.Cluster(etcd_timeout_s=0.4))
    for act in (alone.load, alone.marks, lambda: alone.save(at_epoch(2), 1), lambda: alone.put_mark(MARKS[0])):
        begun_s = time.monotonic()
        with pytest.raises(RingStoreError, match=f"127.0.0.1:{own.port} does not answer in time"):
            act()
        assert time.monotonic() - begun_s < 1.5
    both = url.replace("127", f"127.0.0.1:{own.port},127", 1)
    store = shared.store(config.Cluster(etcd_timeout_s=1.0), both)
    saved(store, 1)
    begun_s = time.monotonic()
    assert store.load().epoch == 1  # who answered last is asked first
    assert time.monotonic() - begun_s < 0.4
    own.thaw()
    assert alone.load().epoch == 1


def test_a_worker_that_starts_before_etcd_waits_for_it(own):
    saved(own.store(), 1)
    own.kill()
    store = open_store(own.url, config.Settings())
    assert wait_for_ring(store, Stop(lambda: None, own.start), 0.1).ring.epoch == 1


# Following it


def test_a_new_ring_and_a_new_mark_are_told_at_once(shared, store, url):
    saved(store, 1)
    settings = config.Settings(cluster=config.Cluster(ring_store=url))
    followed = open_followed(url, settings, every_s=60.0)
    view = RingView(followed, followed.load(), 60.0)
    view.poll()
    saved(store, 2)
    assert wait_until(view.poll).epoch == 2
    store.put_mark(MARKS[0])
    wait_until(lambda: followed.marks() == {MARKS[0]})
    assert view.trouble == ""
    assert view.confirmed_s > 0
    followed.close()


def test_loops_do_not_wait_for_a_frozen_etcd_and_go_on_with_what_they_have(own, followed):
    view = RingView(followed, at_epoch(3), 0)
    assert (view.poll(), followed.marks()) == (None, {MARKS[0]})
    own.freeze()
    wait_until(lambda: view.poll() or view.trouble, what="trouble")
    assert view.trouble == f"etcd: 127.0.0.1:{own.port} does not answer in time"
    begun_s = time.monotonic()
    for act in (followed.stamp, followed.load, followed.marks, lambda: followed.put_mark(MARKS[1])):
        with pytest.raises(RingStoreError, match="does not answer in time"):
            act()
    assert view.poll() is None
    assert time.monotonic() - begun_s < 0.3
    confirmed_s = view.confirmed_s
    own.thaw()
    wait_until(lambda: view.poll() or not view.trouble)
    assert (view.ring.epoch, followed.marks(), view.confirmed_s > confirmed_s) == (3, {MARKS[0]}, True)
    followed.put_mark(MARKS[1])
    wait_until(lambda: followed.marks() == {*MARKS[:2]})


def test_an_etcd_that_lost_everything_changes_neither_ring_nor_marks(own, followed):
    view = RingView(followed, at_epoch(3), 0)
    own.empty()
    wait_until(lambda: view.poll() or "no ring in" in view.trouble, what="the view to say so")
    assert view.ring.epoch == 3
    with pytest.raises(RingStoreError, match=r"cannot be believed: no ring in etcd://.*, there was one of epoch 3"):
        followed.marks()
    own.store().save(at_epoch(1, OTHER), 0)
    wait_until(lambda: view.poll() or "epoch 1, in force is 3" in view.trouble)
    with pytest.raises(RingStoreError, match=r"marks cannot be believed: .* was put back to epoch 1, it was at 3"):
        followed.marks()


def test_an_etcd_that_was_put_back_is_followed_again_when_a_later_ring_is_restored(
    own, followed, tmp_path, monkeypatch
):
    """The marks of before count until bridges have had time to put theirs again."""
    monkeypatch.setattr(ringfollow, "SETTLED_S", 1.0)
    view, store = RingView(followed, at_epoch(3), 0), own.store()
    store.remove_mark(MARKS[0])
    own.snapshot(tmp_path / "snapshot")
    saved(store, 4)
    store.put_mark(MARKS[1])
    assert wait_until(view.poll).epoch == 4
    wait_until(lambda: followed.marks() == {MARKS[1]})
    own.put_back(tmp_path / "snapshot")
    wait_until(lambda: view.poll() or "epoch 3, in force is 4" in view.trouble)
    with pytest.raises(RingStoreError, match="was put back to epoch 3, it was at 4"):
        followed.marks()
    store.put_mark(MARKS[2])
    store.restore(at_epoch(5), store.stamp())
    assert wait_until(view.poll).epoch == 5
    assert followed.marks() == {MARKS[1], MARKS[2]}
    wait_until(lambda: followed.marks() == {MARKS[2]}, what="the marks of before to go")


# Users and TLS


def test_users_are_known_by_their_password_and_stay_so_when_etcd_forgets_them(own, tmp_path):
    own.ctl("user", "add", "root:rootword")
    own.ctl("user", "grant-role", "root", "root")
    own.ctl("auth", "enable")
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    for path, word in ((right, "rootword"), (wrong, "x")):
        path.touch(0o600)
        path.write_text(word + "\n")
    with pytest.raises(RingStoreError, match=r"says: .*(user name is empty|invalid auth token)"):
        own.store().load()
    with pytest.raises(RingStoreError, match=r"says: .*authentication failed, invalid user ID or password"):
        own.store(config.Cluster(etcd_username="root", etcd_password_file=str(wrong))).load()
    store = own.store(config.Cluster(etcd_username="root", etcd_password_file=str(right)))
    saved(store, 1)
    own.kill()
    own.start()  # tokens are in its memory
    assert wait_until(lambda: _loaded(store)).epoch == 1
    wrong.chmod(0o640)
    with pytest.raises(ConfigError, match=r"cluster.etcd_password_file: .* has mode 0640, want 0600"):
        own.store(config.Cluster(etcd_username="root", etcd_password_file=str(wrong)))


def _loaded(store):
    try:
        return store.load()
    except RingStoreError:
        return None


def test_a_password_for_an_etcd_without_users_is_an_error(shared, tmp_path):
    word = tmp_path / "word"
    word.touch(0o600)
    with pytest.raises(RingStoreError, match=r"says: .*authentication is not enabled"):
        shared.store(config.Cluster(etcd_username="a", etcd_password_file=str(word))).load()


def test_over_tls_who_has_the_certificate_is_let_in_and_nobody_else(children, tmp_path):
    cert, key = certificate(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    stranger = certificate(other)
    etcd = Etcd(children, tmp_path, (cert, key))
    full = config.Cluster(etcd_ca_file=str(cert), etcd_cert_file=str(cert), etcd_key_file=str(key))
    store = etcd.store(full)
    saved(store, 1)
    found = FollowedStore(store, 60.0)
    store.put_mark(MARKS[0])
    wait_until(lambda: found.marks() == {MARKS[0]}, what="the watch, over TLS")
    found.close()
    store.close()
    with pytest.raises(RingStoreError, match=f"127.0.0.1:{etcd.port} certificate verify failed"):
        etcd.store(config.Cluster(etcd_ca_file=str(stranger[0]))).load()
    with pytest.raises(RingStoreError, match=rf"127.0.0.1:{etcd.port} "):
        etcd.store(config.Cluster(etcd_ca_file=str(cert))).load()
    with pytest.raises(RingStoreError, match=rf"127.0.0.1:{etcd.port} "):
        etcd.store().load()


# Settings


@pytest.mark.parametrize(
    "url", ["etcd://", "etcd://h", "etcd://h:0/x", "etcd://h:1,/x", "etcd://u@h:1/x", "etcd://h:1/a b", "etcd:h:1"]
)
def test_a_url_that_names_no_members_is_refused(url):
    with pytest.raises(ConfigError, match=r"want file:PATH, or etcd://HOST:PORT\[,HOST:PORT...\]/PREFIX"):
        open_store(url, config.Settings())


def test_a_url_names_members_and_prefix():
    assert config.etcd_parts("etcd://a:1,[::1]:2/x/y/") == ([("a", 1), ("::1", 2)], "x/y")
    assert config.etcd_parts("etcd://a:1") == ([("a", 1)], "minitrue")


@pytest.mark.parametrize(
    ("values", "text"),
    [({"etcd_ca_file": "a"}, "cluster.etcd_ca_file = 'a': is for etcd, but cluster.ring_store = 'file:"),
     ({"ring_store": "etcd://a:1/x", "etcd_cert_file": "a"}, "cluster.etcd_cert_file = 'a': belongs together with"),
     ({"ring_store": "etcd://a:1/x", "etcd_cert_file": "a", "etcd_key_file": "a"}, "needs cluster.etcd_ca_file"),
     ({"ring_store": "etcd://a:1/x", "etcd_username": "a"}, "belongs together with cluster.etcd_password_file"),
     ({"ring_store": "etcd://a/x"}, "want file:PATH, or etcd://")],
)  # fmt: skip
def test_settings_that_contradict_each_other_are_refused(tmp_path, values, text):
    (tmp_path / "empty.toml").touch()
    environ = {f"MINITRUE__CLUSTER__{name.upper()}": value for name, value in values.items()}
    with pytest.raises(ConfigError, match=text):
        config.load(tmp_path / "empty.toml", environ)


def test_a_file_of_tls_that_is_not_there_is_named_before_anything_is_asked(tmp_path):
    settings = config.Settings(cluster=config.Cluster(etcd_ca_file=str(tmp_path / "ca.pem")))
    with pytest.raises(ConfigError, match=r"cluster.etcd_ca_file: cannot read .*ca.pem: No such file"):
        open_store("etcd://127.0.0.1:1/x", settings)
