"""tools/ringctl from outside, as a program: what it prints, what it leaves in the store, its exit codes."""

import contextlib
import dataclasses
import json
import os
import secrets
import subprocess
import threading

import pytest

from common import bus, config, protocol
from common.ring import Ring
from common.ringstore import FileStore, Mark
from tests.support import ROOT, free_port_range
from tools import ringctl_app, ringctl_nodes, ringctl_status

RINGCTL = ROOT / "tools" / "ringctl"


@pytest.fixture
def place(tmp_path):
    """A folder with settings, whose ring has its nodes on free ports."""
    ports = [free_port_range(3) for _ in range(2)]
    entry = '[[nodes]]\nid = "ing{}"\nendpoint = "tcp://127.0.0.1:{}"\n'
    nodes = "".join(entry.format(*each) for each in enumerate(ports))
    (tmp_path / "ring.toml").write_text(f"partitions = 64\n{nodes}")
    (tmp_path / "minitrue.toml").write_text('[cluster]\nring_store = "file:ring.json"\n')
    return tmp_path


@pytest.fixture
def ring(place):
    """The ring that init makes of them, in the store."""
    made = ringctl_nodes.new_ring(place / "ring.toml", "c1")
    FileStore(place / "ring.json").save(made, 0)
    return made


def ringctl(place, *arguments):
    """The finished process of a command line."""
    environment = os.environ | {"MINITRUE_CONFIG": str(place / "minitrue.toml")}
    command = [RINGCTL, *arguments]
    return subprocess.run(command, env=environment, cwd=place, capture_output=True, text=True, timeout=60, check=False)


def answer(place, *arguments, code=0):
    """The parsed result of a command with --json."""
    done = ringctl(place, *arguments, "--json")
    assert (done.returncode, done.stderr) == (code, "")
    return json.loads(done.stdout)


# keys


def test_keys_writes_a_key_once_and_with_it_the_first_ring_may_leave_loopback(place):
    assert 'bus.key_file = "": want the name of a file' in ringctl(place, "keys").stderr
    (place / "minitrue.toml").write_text('[cluster]\nring_store = "file:ring.json"\n[bus]\nkey_file = "bus.key"\n')
    made = answer(place, "keys")
    assert made["public"] in (place / "bus.key").read_text()
    assert (place / "bus.key").stat().st_mode & 0o777 == 0o600
    again = ringctl(place, "keys")
    assert again.returncode == 1 and again.stderr.count("\n") == 1 and "never overwritten" in again.stderr
    nodes = (place / "ring.toml").read_text()
    (place / "ring.toml").write_text(nodes.replace("127.0.0.1", "192.0.2.1"))
    assert answer(place, "init")["created"]


# init


def test_init_saves_a_balanced_ring_and_says_what_it_did_and_what_comes_next(place):
    done = ringctl(place, "init")
    assert (done.returncode, done.stderr) == (0, "")
    ring = FileStore(place / "ring.json").load()
    assert (ring.epoch, ring.partitions, [node.id for node in ring.nodes]) == (1, 64, ["ing0", "ing1"])
    assert [len(ring.owned_partitions(node.id)) for node in ring.nodes] == [32, 32]
    for text in (str(place / "ring.toml"), str(place / "ring.json"), ring.cluster, "next:", "ringctl status"):
        assert text in done.stdout


def test_init_reports_the_ring_as_json(place):
    result = answer(place, "init")
    ring = FileStore(place / "ring.json").load()
    assert (result["created"], result["cluster"], result["hash"]) == (True, ring.cluster, ring.hash)
    assert [(node["id"], node["partitions"], node["share"]) for node in result["nodes"]] == [
        ("ing0", 32, 32.0), ("ing1", 32, 32.0),
    ]  # fmt: skip


def test_init_gives_each_cluster_its_own_id_and_the_same_nodes_the_same_table(place):
    first = answer(place, "init")
    table = FileStore(place / "ring.json").load().owner_table.tolist()
    (place / "ring.json").unlink()
    assert answer(place, "init")["cluster"] != first["cluster"]
    assert FileStore(place / "ring.json").load().owner_table.tolist() == table


def test_init_never_replaces_a_ring(place, ring):
    done = ringctl(place, "init")
    assert done.returncode == 1
    assert "holds a ring" in done.stderr and done.stdout == ""
    assert FileStore(place / "ring.json").load().hash == ring.hash


@pytest.mark.parametrize("option", ["--if-missing", "--if_missing"])
def test_init_if_missing_leaves_a_ring_alone_with_success(place, ring, option):
    after = answer(place, "init", option)
    assert (after["created"], after["hash"]) == (False, ring.hash)


def test_where_nodes_have_data_init_makes_no_cluster_in_place_of_a_ring_that_was_lost(place, ring):
    (place / "minitrue.toml").write_text('paths.data = "data"\ncluster.ring_store = "file:ring.json"\n')
    store, node = FileStore(place / "ring.json"), place / "data" / "storage" / "ing1"
    store.claim("ing1", "aa")
    store.path.unlink()
    node.mkdir(parents=True)
    (node / "NODE").write_text("{}")
    done = ringctl(place, "init", "--if-missing")
    assert done.returncode == 1
    assert f"{node} has the data of a node: tools/ringctl restore puts the ring back; " in done.stderr
    assert store.load() is None and store.store_ids() == {"ing1": "aa"}
    assert Ring.loads((place / "ring.json.history" / f"{1:020d}.json").read_bytes()).hash == ring.hash


def test_of_many_inits_at_once_one_makes_the_ring_and_all_succeed(place):
    environment = os.environ | {"MINITRUE_CONFIG": str(place / "minitrue.toml")}
    command = [RINGCTL, "init", "--if-missing", "--json"]
    racing = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    results = [json.loads(each.communicate(timeout=60)[0]) for each in racing]
    assert [each.returncode for each in racing] == [0] * 4
    assert sorted(result["created"] for result in results) == [False, False, False, True]
    assert len({result["hash"] for result in results}) == 1


def test_init_reads_another_file_of_nodes(place):
    (place / "other.toml").write_text('[[nodes]]\nid = "solo"\nendpoint = "tcp://127.0.0.1:7000"\n')
    result = answer(place, "init", "--nodes", "other.toml")
    assert [(node["id"], node["partitions"]) for node in result["nodes"]] == [("solo", 1024)]


def test_a_damaged_ring_file_is_an_error_even_if_missing(place):
    (place / "ring.json").write_text("{}")
    done = ringctl(place, "init", "--if-missing")
    assert done.returncode == 1
    assert done.stderr.startswith(f"ringctl: {place / 'ring.json'}: ring document has format version None")
    assert (place / "ring.json").read_text() == "{}"


GOOD = '[[nodes]]\nid = "a"\nendpoint = "tcp://127.0.0.1:7000"\n'
BAD_NODES = [
    ("nodes = [", "not a TOML file"),
    ("", "missing required field `nodes`"),
    ("nodes = []", r"nodes must number 1 to 1000 (were 0)"),
    ("nodes = 3", "Expected `array`, got `int` - at `nodes`"),
    ("nodes = [3]", "Expected `object`, got `int` - at `nodes[0]`"),
    (f"replicaton = 1\n{GOOD}", "replicaton: unknown key; did you mean replication?"),
    (f"colour = 1\n{GOOD}", "colour: unknown key; known are nodes, replication, partitions"),
    (f"{GOOD}wieght = 2", "nodes[0].wieght: unknown key; did you mean weight?"),
    (f'{GOOD}weight = "2"', "Expected `float`, got `str` - at `nodes[0].weight`"),
    (f"{GOOD}weight = 0", "node a: weight must be 0.001 to 1000000 (was 0)"),
    (f"partitions = 1000\n{GOOD}", "partitions must be a power of two from 1 to 65536 (was 1000)"),
    (f"replication = 2\n{GOOD}", "replication must be at most the number of nodes that are not draining, 1 (was 2)"),
    (GOOD + GOOD, "nodes must ascend by id (a before a)"),
    (GOOD.replace("7000", "65534"), "port must be at most 65533"),
    ('[[nodes]]\nid = "a"', "missing required field `endpoint`"),
    (GOOD.replace("127.0.0.1", "10.0.0.7"), "want a loopback address"),
    (GOOD.replace("127.0.0.1", "0.0.0.0"), "want a loopback address"),
]


@pytest.mark.parametrize(("text", "wanted"), BAD_NODES, ids=[wanted for _, wanted in BAD_NODES])
def test_a_file_of_nodes_that_cannot_be_used_is_refused_with_file_key_and_remedy(tmp_path, text, wanted):
    file = tmp_path / "ring.toml"
    file.write_text(text)
    with pytest.raises(config.ConfigError) as caught:
        ringctl_nodes.new_ring(file, "c")
    assert str(file) in str(caught.value)
    assert wanted in str(caught.value)


def test_a_bad_file_of_nodes_ends_init_with_one_line_and_no_ring(place):
    (place / "ring.toml").write_text(GOOD.replace("127.0.0.1", "10.0.0.7"))
    done = ringctl(place, "init")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "loopback" in done.stderr
    assert not (place / "ring.json").exists()


def test_the_file_that_comes_with_the_project_makes_three_equal_nodes():
    ring = ringctl_nodes.new_ring(ROOT / "conf" / "ring.toml", "c")
    assert [node.endpoint for node in ring.nodes] == [f"tcp://127.0.0.1:57{at}0" for at in (1, 2, 3)]
    assert [len(ring.owned_partitions(node.id)) for node in ring.nodes] == [683, 683, 682]
    assert (ring.replication, ring.partitions) == (2, 1024)


# show and locate


@pytest.mark.parametrize("command", [["show"], ["locate", "d", "m"]])
def test_without_a_ring_the_way_to_make_one_is_named(place, command):
    done = ringctl(place, *command)
    assert (done.returncode, done.stdout) == (1, "")
    way = "make one with tools/ringctl init (one that was lost: restore)"
    assert done.stderr == f"ringctl: no ring in file:{place / 'ring.json'}: {way}\n"


def test_status_without_a_ring_says_that_supervisord_makes_one_unless_nodes_have_data(place):
    (place / "minitrue.toml").write_text('paths.data = "data"\ncluster.ring_store = "file:ring.json"\n')
    said = f"ringctl: no ring in file:{place / 'ring.json'}"
    done = ringctl(place, "status")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"{said} yet: supervisord makes one when it starts, ask again in a moment; ")
    (place / "data" / "storage" / "ing1").mkdir(parents=True)
    (place / "data" / "storage" / "ing1" / "NODE").write_text("{}")
    assert ringctl(place, "status").stderr.startswith(f"{said}: make one with tools/ringctl init (one that was lost: ")


def test_show_prints_nodes_and_balance_and_as_json_the_document_itself(place, ring):
    text = ringctl(place, "show").stdout
    assert "ing0" in text and "64 partitions" in text and "share" in text
    assert answer(place, "show") == json.loads((place / "ring.json").read_bytes())


def test_show_says_how_many_partitions_lack_owners(place, ring):
    store = FileStore(place / "ring.json")
    document = store.load().document() | {"epoch": 2, "replication": 2}
    document["owners"][0], document["since"][0] = [0, 1], 2
    store.save(Ring.from_document(document), 1)
    assert "63 partitions have fewer than 2 owners" in ringctl(place, "show").stdout


def test_locate_names_the_owner_that_the_ring_names(place, ring):
    found = answer(place, "locate", "sensor_1", "temperature")
    assert found["hash"] == "c7a69cb96b3f4ea2"
    assert found["partition"] == 0xC7A69CB96B3F4EA2 >> 58
    assert [owner["id"] for owner in found["owners"]] == [owner.id for owner in ring.owners(found["partition"])]
    assert f"partition {found['partition']} of 64" in ringctl(place, "locate", "sensor_1", "temperature").stdout


def test_locate_takes_tags_in_any_order_and_ids_with_any_separator(place, ring):
    one = answer(place, "locate", "aa:bb/c", "m", "--tag", "room=1=2", "--tag", "floor=")
    two = answer(place, "locate", "aa:bb/c", "m", "--tag", "floor=", "--tag", "room=1=2")
    assert one == two
    assert one["tags"] == {"floor": "", "room": "1=2"}
    assert one["hash"] != answer(place, "locate", "aa:bb/c", "m")["hash"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["locate", "d"], "Missing argument 'METRIC'"),
        (["locate", "d", "m", "--tag", "k"], "got 'k', want K=V"),
        (["locate", "d", "m", "--tag", "k=1", "--tag", "k=2"], "tag 'k' is given twice"),
        (["locate", b"\xff", "m"], "want UTF-8 text"),
        (["move"], "No such command 'move'"),
        (["init", "--force"], "No such option"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_what_is_wrong(place, ring, arguments, text):
    done = ringctl(place, *arguments)
    assert done.returncode == 2
    assert text in done.stderr


def test_a_wrong_configuration_ends_with_1_and_one_line(place):
    done = ringctl(place, "show", "--config", "absent.toml")
    assert done.returncode == 1
    assert done.stderr.startswith("ringctl: ") and "absent.toml" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [[], ["init"], ["status"], ["show"], ["locate"]])
def test_help_tells_options_and_exit_codes(place, command):
    done = ringctl(place, *command, "--help")
    assert done.returncode == 0
    text = " ".join(done.stdout.split())
    assert "Exit codes: 0 done and all is well, 1 it failed or something is amiss, 2 wrong usage." in text
    assert not command or ("--json" in text and "--config" in text)


# status


@contextlib.contextmanager
def answering(ring, node, **changes):
    """A socket that answers status requests like that node, with some things changed."""
    cluster, sender = changes.pop("cluster", ring.cluster), changes.pop("sender", node.id)
    kind = changes.pop("kind", protocol.REPLY)
    body = {"node": node.id, "epoch": ring.epoch, "ring_hash": ring.hash, "points": 1234567, "bridges": {}} | changes
    own, done = bus.Bus(), threading.Event()
    router = own.router(node.request_endpoint)

    def serve():
        poller = bus.Poller([router])
        while not done.is_set():
            if poller.poll(0.05):
                route, frames = router.receive_routed()
                asked = protocol.unpack(frames).header
                header = protocol.Header(
                    protocol.VERSION, cluster, asked.sender, sender, 7, 1, ring.epoch, ring.hash,
                    re=asked.sequence, re_incarnation=asked.incarnation,
                )  # fmt: skip
                router.reply(route, protocol.pack(kind, header, body))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        own.close()


def test_status_of_nodes_that_all_answer_is_good(place, ring):
    bridges = {"bridge1": {"age_s": 0.25}}
    with answering(ring, ring.nodes[0], bridges=bridges), answering(ring, ring.nodes[1]):
        result = answer(place, "status")
        text = ringctl(place, "status").stdout
    assert result["ok"] is True
    assert [(node["id"], node["reachable"], node["fault"]) for node in result["nodes"]] == [
        ("ing0", True, ""), ("ing1", True, ""),
    ]  # fmt: skip
    assert result["nodes"][0]["answer"]["points"] == 1234567
    assert "1,234,567" in text
    assert "bridge1: heard 0.2" in text


def test_status_tells_of_nodes_behind_and_of_bridges_as_last_heard(place, ring):
    FileStore(place / "ring.json").put_mark(Mark("ing1", "bridge1"))
    spool = {"bytes": 2048, "records": 3, "oldest_s_ago": 90.0, "error": "disk full", "damaged": 1}
    old = {"bridge1": {"age_s": 4.0, "spools": {}}}
    new = {"bridge1": {
        "age_s": 0.5, "unhealthy": ["no message for 400 s"], "spools": {"ing1": spool},
        "dead_letter": {"error": "full"},
    }}  # fmt: skip
    with answering(ring, ring.nodes[0], bridges=old), answering(ring, ring.nodes[1], bridges=new):
        result = answer(place, "status", code=1)
        text = ringctl(place, "status").stdout
    assert result["nodes"][1]["fault"] == "is behind: points for it are in the spool of bridge1"
    assert result["marks"] == [["ing1", "bridge1"]]
    assert result["bridges"]["bridge1"]["age_s"] == 0.5
    for line in (
        "bridge1: heard 0.5 s ago",
        "unhealthy: no message for 400 s",
        "spool for ing1: 2.0 KiB in 3 batches, the oldest from 1.5 min ago",
        "spool for ing1 takes or gives nothing for now: disk full",
        "spool for ing1: 1 damaged parts set aside, their points have not reached it",
        "dead letter takes nothing: full",
    ):
        assert line in text


def test_status_says_that_a_bridge_is_not_heard_any_more(place, ring):
    bridges = {"bridge1": {"age_s": 90.0}, "bridge2": {"age_s": 0.5}}
    with answering(ring, ring.nodes[0], bridges=bridges), answering(ring, ring.nodes[1]):
        result = answer(place, "status", code=1)
        text = ringctl(place, "status").stdout
    assert result["ok"] is False
    assert "bridge1: not heard for 1.5 min: it has ended, or reaches no node" in text
    assert "bridge2: heard 0.5 s ago" in text


def test_status_names_the_node_that_does_not_answer_and_ends_with_1(place, ring):
    with answering(ring, ring.nodes[0]):
        result = answer(place, "status", code=1)
        done = ringctl(place, "status")
    silent = result["nodes"][1]
    assert (result["ok"], silent["id"], silent["reachable"]) == (False, "ing1", False)
    assert f"no connection to {ring.nodes[1].request_endpoint}" in silent["fault"]
    assert done.returncode == 1
    assert "unreachable" in done.stdout
    assert "next: supervisorctl -c supervisord.conf status ingestion:ing1" in done.stdout


AMISS = [
    ({"epoch": 0}, True, "has the ring of epoch 0, the store has 1"),
    ({"ring_hash": "0" * 16}, True, "has another ring of epoch 1"),
    ({"damaged": [{"file": "x"}]}, True, "1 damaged files or parts set aside"),
    ({"cluster": "other"}, False, "is node ing1 of cluster other, want ing1 of ours"),
    ({"sender": "ing0"}, False, "is node ing0 of cluster"),
    ({"kind": protocol.ERROR, "error": "internal", "message": "no luck"}, False, "answers internal: no luck"),
]


@pytest.mark.parametrize(("changes", "reachable", "text"), AMISS, ids=[text for *_, text in AMISS])
def test_status_says_what_is_amiss_with_a_node_that_answers(place, ring, changes, reachable, text):
    with answering(ring, ring.nodes[0]), answering(ring, ring.nodes[1], **changes):
        result = answer(place, "status", code=1)
    assert result["nodes"][0]["fault"] == ""
    assert result["nodes"][1]["reachable"] is reachable
    assert text in result["nodes"][1]["fault"]


def test_status_of_a_node_that_opens_its_store_says_so_and_not_that_it_is_unreachable(place, ring):
    opening = {"kind": protocol.ERROR, "error": protocol.ERR_OPENING, "message": "the store is being opened"}
    with answering(ring, ring.nodes[0]), answering(ring, ring.nodes[1], **opening):
        result = answer(place, "status", code=1)
        text = ringctl(place, "status").stdout
    node = result["nodes"][1]
    assert (result["ok"], node["reachable"], node["state"], node["answer"]) == (False, True, "opening", {})
    assert node["fault"].endswith("answers opening: the store is being opened")
    assert "unreachable" not in text
    assert "next: tools/ringctl status, once more: a node that was killed replays its WAL" in text


def test_status_reads_the_ring_again_where_a_node_is_ahead_of_it(place, ring, monkeypatch):
    rings = FileStore(place / "ring.json")
    later = dataclasses.replace(ring, epoch=2)
    ask_all, asked = ringctl_status.ask_all, []

    def changed_meanwhile(asked_ring, *arguments):
        if not asked:
            rings.save(later, 1)
        asked.append(asked_ring.epoch)
        return ask_all(asked_ring, *arguments)

    monkeypatch.setattr(ringctl_status, "ask_all", changed_meanwhile)
    new = {"epoch": 2, "ring_hash": later.hash}
    with answering(ring, ring.nodes[0], **new), answering(ring, ring.nodes[1], **new):
        found, _, nodes = ringctl_app._asked(rings, None)
    assert (found.epoch, asked, [node.fault for node in nodes]) == (2, [1, 2], ["", ""])


def test_status_says_of_a_node_that_stays_ahead_that_the_store_is_older(place, ring):
    with answering(ring, ring.nodes[0]), answering(ring, ring.nodes[1], epoch=2):
        result = answer(place, "status", code=1)
    assert result["nodes"][1]["fault"] == "has the ring of epoch 2, the store has 1"


def test_status_with_no_node_up_says_how_to_start_them(place, ring):
    done = ringctl(place, "status")
    assert done.returncode == 1
    assert "No node answers. next: supervisord -c supervisord.conf" in done.stdout


def test_text_of_a_stranger_in_the_ring_is_shown_as_it_is(place, ring):
    store = FileStore(place / "ring.json")
    store.save(dataclasses.replace(ring, epoch=2), 1)
    device = f"[red]{secrets.token_hex(2)}[/red]"
    assert device in ringctl(place, "locate", device, "m").stdout


# How the executables find their environment


@pytest.mark.parametrize("call", [["./link"], ["sh", "link"]])
def test_a_tool_runs_through_a_symlink_from_anywhere_without_an_active_environment(place, call):
    (place / "link").symlink_to(RINGCTL)
    for name in ("common", "tools"):  # must not be taken for the project's
        (place / name).mkdir()
        (place / name / "__init__.py").write_text("raise SystemExit('imported the wrong folder')")
    bare = {"PATH": "/usr/bin:/bin", "MINITRUE_CONFIG": str(place / "minitrue.toml")}
    done = subprocess.run([*call, "init"], cwd=place, env=bare, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (place / "ring.json").exists()


def test_a_tool_without_an_environment_says_how_to_make_it(tmp_path):
    (tmp_path / "tools").mkdir()
    for name in ("_run", "ringctl"):
        (tmp_path / "tools" / name).write_bytes((ROOT / "tools" / name).read_bytes())
        (tmp_path / "tools" / name).chmod(0o755)
    done = subprocess.run([tmp_path / "tools" / "ringctl"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "no environment at" in done.stderr and "make -C" in done.stderr
