"""Commands of ringctl that change the ring: in process on a cluster in memory, and once on real processes."""

import functools
import json
import os
import re
import subprocess
import sys
import urllib.request
from urllib.parse import urlsplit

import click
import msgspec
import pytest
from click.testing import CliRunner

from common import clock, config
from common.errors import ConfigError, MinitrueError, RingError, RingStoreError
from common.protocol import JobState
from common.ringbuild import with_delete
from common.ringmoves import begin, steps
from common.ringstore import Mark
from common.selector import Selector
from tests.flow import Flow
from tests.support import ROOT, wait_until
from tests.tools.moving import FakeNode, World
from tests.tools.test_ring_mover import grown, ring_of
from tools import (
    ring_driver,
    ringctl_app,
    ringctl_loss,
    ringctl_move,
    ringctl_repair,
    ringctl_show_moves,
    ringctl_status,
    supervised,
)
from tools.ring_change import plan
from tools.ring_mover import WAITING, Mover, Progress
from tools.ring_outlook import LOSS, LOST
from tools.sandbox_app import Sandbox
from tools.supervised import Supervisor, SupervisorError


@pytest.fixture
def world(monkeypatch, tmp_path):
    """Three nodes of two owners each, and ringctl on them; node ing8 runs and is not in the ring."""
    made = World(ring_of(3, 2), 11)
    made.nodes["ing8"] = FakeNode("ing8", made.ring)
    monkeypatch.setattr(clock, "monotonic_s", lambda: made.now)
    monkeypatch.setattr(ringctl_app, "open_store", lambda url, settings: made)
    for module in (ringctl_move, ringctl_repair, ringctl_loss):
        monkeypatch.setattr(module, "Asker", lambda *_: made)
    monkeypatch.setattr(ringctl_move, "Mover", functools.partial(Mover, pause=made.pause))
    made.settings = tmp_path / "minitrue.toml"
    made.settings.write_text("")
    return made


def ringctl(world, *words, code=0):
    """What a command prints; its error as an exception."""
    done = CliRunner().invoke(ringctl_app.cli, [*words, "--config", str(world.settings)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return done.output


def answer(world, *words, code=0):
    return json.loads(ringctl(world, *words, "--json", code=code))


ADD = ("add", "ing8", "--endpoint", "tcp://127.0.0.1:5080", "--yes")


# Planning


def test_a_plan_says_what_would_move_and_changes_nothing(world):
    found = answer(world, "plan", "add", "ing8", "--endpoint", "tcp://127.0.0.1:5080", "--weight", "2")
    assert found["copied"] == found["least"] == 16 and found["dropped"] == 0
    assert [(each["node"], each["before"], each["after"]) for each in found["nodes"]][-1] == ("ing8", 0, 16)
    assert "nothing was changed" in ringctl(world, "plan", "remove", "ing1")
    assert "nothing to do" in ringctl(world, "plan")
    assert world.ring.epoch == 1


def test_a_plan_tells_what_is_left_of_a_change(world):
    after = grown(world.ring)
    world.rings.append(after)
    world.rings.append(begin(after, steps(after)[:3]))
    found = answer(world, "plan")
    assert (found["copied"], found["moving"]) == (len(steps(after)), 3)
    assert "3 of them are under way" in ringctl(world, "plan")


def test_a_plan_of_no_change_that_there_is_names_those_that_there_are(world):
    assert "no change 'grow', want one of add, remove, replace, replication" in ringctl(world, "plan", "grow", code=2)


def test_points_and_bytes_of_a_plan_come_from_what_nodes_hold():
    ring = grown(ring_of(4, 1))
    held = {"points": 400, "segment_bytes": 3000, "wal_bytes": 1000}
    found = plan(ring, {f"ing{number}": held for number in range(4)}, 100)
    count = len(steps(ring))
    assert (found.points, found.bytes, found.seconds) == (100 * count, 1000 * count, 10.0 * count)
    assert plan(ring, {}, 100).bytes is None


# Changing


def test_each_change_is_carried_to_its_end_and_said_as_json(world):
    for words in (
        ADD, ("weight", "ing8", "2", "--yes"), ("zone", "ing8", "other", "--yes"), ("replication", "3", "--yes"),
        ("replication", "1", "--yes"), ("remove", "ing1", "--yes"),
    ):  # fmt: skip
        result = answer(world, *words)
        assert result["ok"] and result["done"] == result["total"] and result["epoch"] == world.ring.epoch, words
        assert steps(world.ring) == [] and not world.ring.moves
    assert result["left"] == ["ing1"] and not world.ring.has("ing1")
    assert (world.ring.node("ing8").weight, world.ring.node("ing8").zone, world.ring.replication) == (2.0, "other", 1)
    world.check_kept()


def test_a_node_is_replaced_by_one_with_its_weight_and_zone(world):
    answer(world, "replace", "ing0", "ing8", "--endpoint", "tcp://127.0.0.1:5080", "--yes")
    assert [node.id for node in world.ring.nodes] == ["ing1", "ing2", "ing8"]


def test_without_a_terminal_a_change_wants_yes_and_changes_nothing_before(world):
    assert "say --yes" in ringctl(world, "replication", "1", code=2)
    assert world.ring.epoch == 1


def test_a_change_that_cannot_be_is_refused_with_the_reason(world):
    with pytest.raises(RingError, match="4 owners of each partition need as many nodes, there are 3: add one"):
        ringctl(world, "replication", "4", "--yes")
    with pytest.raises(RingError, match="no node 'ing7'"):
        ringctl(world, "remove", "ing7", "--yes")
    with pytest.raises(RingError, match="node ing1 is in the ring already"):
        ringctl(world, "add", "ing1", "--yes")
    with pytest.raises(RingError, match="weight must be"):
        ringctl(world, "weight", "ing1", "0", "--yes")
    with pytest.raises(ConfigError, match="ing1 answers, so it is not lost"):
        ringctl(world, "remove", "ing1", "--lost", "--yes")


def test_a_change_that_another_one_came_before_is_not_saved(world):
    seen = world.load

    def overtaken():
        ring = seen()
        if len(world.rings) == 1:
            world.rings.append(grown(ring))
            return ring
        return seen()

    world.load = overtaken
    with pytest.raises(RingStoreError, match="nothing was changed, this was planned for epoch 1"):
        ringctl(world, "replication", "1", "--yes")


def test_while_another_ringctl_is_at_it_a_change_waits_for_take_over(world):
    world.note = "ringctl on host, process 7, last heard 2030-01-01T00:00:00Z, 01234567"
    with pytest.raises(RingStoreError, match=r"process 7, .* carries changes out: wait for it"):
        ringctl(world, *ADD)
    assert world.ring.epoch == 1
    assert answer(world, *ADD, "--take-over")["ok"]


# Ending early


def test_ctrl_c_leaves_a_ring_that_resume_goes_on_with_and_says_so(world):
    def interrupt():
        if world.ring.moves:
            world.during = lambda: None
            raise KeyboardInterrupt

    world.during = interrupt
    said = ringctl(world, *ADD, "--wave", "2", code=1)
    assert "2 of them under way; all is well as it is" in said and "ringctl resume goes on" in said
    assert len(world.ring.moves) == 2 and world.note == ""
    assert answer(world, "resume")["ok"]
    assert steps(world.ring) == [] and not world.ring.moves
    world.check_kept()


def test_cancel_stops_moves_and_leaves_owners_and_resume_begins_them_again(world):
    after = grown(world.ring)
    world.rings.append(after)
    world.rings.append(begin(after, steps(after)[:3]))
    table = after.owner_table.tolist()
    assert "say --yes" in ringctl(world, "cancel", code=2)
    assert answer(world, "cancel", "--yes") == {"cancelled": 3, "epoch": 4}
    assert not world.ring.moves and world.ring.owner_table.tolist() == table
    assert answer(world, "cancel") == {"cancelled": 0, "epoch": 4}
    world.note = "ringctl on host, process 7, last heard 2030-01-01T00:00:00Z, 01234567"
    with pytest.raises(RingStoreError, match=r"process 7, .* carries changes out"):  # and would begin them again
        ringctl(world, "cancel", "--yes")
    assert answer(world, "cancel", "--take-over")["cancelled"] == 0
    world.note = ""
    assert answer(world, "resume")["done"] == len(steps(after))


def test_what_does_not_get_on_is_given_up_with_what_it_waits_for(world):
    world.nodes["ing1"].is_up = False
    world.lost.add("ing1")
    with pytest.raises(MinitrueError, match="given up after 5 s: ing1 does not answer"):
        ringctl(world, "replication", "1", "--yes", "--give-up", "5")


# Loss


def test_a_lost_node_is_marked_so_and_its_data_copied_from_the_other_owners(world):
    world.live()
    world.nodes["ing1"].is_up = False
    world.lost.add("ing1")
    assert answer(world, "replace", "ing1", "ing8", "--endpoint", "tcp://127.0.0.1:5080", "--lost", "--yes")["ok"]
    assert not world.ring.has("ing1") and not any(mark.by == LOST for mark in world.marks())


def test_the_loss_of_a_node_is_accepted_only_where_something_is_lost(world):
    with pytest.raises(RingError, match="ing0 lacks nothing that it knows of"):
        ringctl(world, "accept-loss", "ing0", "--yes")
    world.nodes["ing0"].is_up = False
    world.lost.add("ing0")
    with pytest.raises(ConfigError, match="ringctl remove ing0 --lost"):
        ringctl(world, "accept-loss", "ing0", "--yes")
    world.put_mark(Mark("ing0", LOST))
    assert answer(world, "accept-loss", "ing0", "--yes")["released"] == len(world.ring.owned_partitions("ing0"))
    assert Mark("ing0", LOSS) in world.marks()


# Watching


def test_watch_shows_each_node_its_marks_and_what_moves(world):
    world.put_mark(Mark("ing1", "bridge1"))
    world.nodes["ing2"].is_up = False
    world.lost.add("ing2")
    text = ringctl(world, "watch", "--count", "1")
    assert "points for it are in the spool of bridge1" in text and "silent" in text and "nothing moves" in text
    found = answer(world, "watch", "--count", "1")
    assert (found["epoch"], found["moves"], found["silent"]) == (1, [], ["ing2"])


@pytest.mark.parametrize(("text", "rate"), [("0", 0), ("20M", 20_000_000), ("1.5KiB/s", 1536), ("7 GB", 7 * 10**9)])
def test_a_rate_is_read_with_its_unit(text, rate):
    assert ringctl_show_moves.rate_of(text) == rate
    assert msgspec.msgpack.encode(ringctl_show_moves.rate_of("99999999999G"))  # no more than a request can carry


@pytest.mark.parametrize("text", ["", "fast", "-1", "20X", "i"])
def test_what_is_no_rate_is_refused(text):
    with pytest.raises(click.BadParameter, match="want bytes a second such as 20M"):
        ringctl_show_moves.rate_of(text)


# supervisord


def test_a_new_node_gets_ports_that_nobody_has(monkeypatch):
    ring = ring_of(2, 1)  # at 5000 and 5010
    monkeypatch.setattr(supervised, "_are_free", lambda ports: 5721 not in ports and ports[0] != 5710)
    assert supervised.free_endpoint(ring) == "tcp://127.0.0.1:5730"


def test_supervisord_that_reads_no_more_files_is_named_before_anything_changes(tmp_path):
    with pytest.raises(SupervisorError, match=r"no .*supervisord\.conf: name supervisord's file with --supervisor"):
        Supervisor(tmp_path / "supervisord.conf")
    (tmp_path / "supervisord.conf").write_text("[supervisord]\n")
    with pytest.raises(SupervisorError, match=r"does not read conf\.d/\*\.conf: add the lines \[include\]"):
        Supervisor(tmp_path / "supervisord.conf").check_ready()


def test_the_program_of_an_added_node_is_like_those_that_come_with_the_project(tmp_path):
    made = supervised.program("ing1", ROOT / "data" / "log", "/c/x%y.toml")
    text = (ROOT / "supervisord.conf").read_text()
    own = text[text.index("[program:ing1]") :].split("\n\n")[0]
    same = {"command", "directory", "environment", "stdout_logfile"}
    lines = [dict(line.partition("=")[::2] for line in each.splitlines() if "=" in line) for each in (made, own)]
    ours, theirs = ({name: value for name, value in each.items() if name not in same} for each in lines)
    assert ours == theirs
    assert 'MINITRUE_CONFIG="/c/x%%y.toml"' in made


def test_nodes_come_and_go_with_their_programs_while_points_flow():
    with Sandbox(nodes=1, broker="embedded") as sandbox:
        flow = Flow(urlsplit(sandbox.mqtt).port).start(20)
        supervisor = sandbox.dir / "supervisord.conf"

        def changed(*words):
            command = [ROOT / "tools" / "ringctl", *words, "--supervisor", supervisor, "--wave", "512", "--yes"]
            done = subprocess.run(
                [*command, "--json"], env=os.environ | sandbox.environment, capture_output=True, text=True, timeout=120,
                check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            return json.loads(done.stdout)

        assert changed("add", "ing2")["done"] == 512
        assert (sandbox.dir / "conf.d" / "ing2.conf").exists()
        assert changed("remove", "ing2")["left"] == ["ing2"]
        assert not (sandbox.dir / "conf.d" / "ing2.conf").exists()
        flow.stop()
        flow.wait_acked()
        wanted = sum(map(len, flow.points.values()))
        assert wanted > 100
        wait_until(lambda: _count(sandbox.http) == (wanted, True), 20, f"{wanted} points")
        flow.close()


def _count(http):
    """How many points there are, and whether the answer is complete."""
    body = json.dumps({"device_id": "*", "metric_name": "*", "operation": "count"}).encode()
    request = urllib.request.Request(f"{http}/query", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as reply:
        answer = json.load(reply)
    return answer["result"], answer["coverage"]["complete"]


# What came in between


def test_deletes_that_are_committed_before_a_change_is_saved_do_not_stop_it(world):
    def save(ring, expected_epoch):
        if len(world.rings) < 4:
            world.rings.append(with_delete(world.ring, Selector("sensor_1", "temperature"), 0, len(world.rings)))
        world_save(ring, expected_epoch)

    world_save, world.save = world.save, save
    after = grown(world.ring)
    moving = begin(after, steps(after)[:3])
    assert ringctl_move._save(world, world.ring, after) == 5
    assert [record.number for record in world.ring.deletes] == [2, 3, 4] and world.ring.has("ing8")
    world.rings = [moving]
    assert answer(world, "cancel", "--yes") == {"cancelled": 3, "epoch": moving.epoch + 4}
    changed = [move.partition for move in moving.moves]
    assert not world.ring.moves and {world.ring.since[each] for each in changed} == {world.ring.epoch}


def test_a_change_is_not_tried_for_ever_while_deletes_are_committed(world):
    def save(ring, expected_epoch):
        world.rings.append(with_delete(world.ring, Selector("sensor_1", "temperature"), 0, len(world.rings)))
        world_save(ring, expected_epoch)

    world_save, world.save = world.save, save
    with pytest.raises(RingStoreError, match="nothing was changed, this was planned for epoch 1"):
        ringctl(world, "replication", "1", "--yes")
    assert len(world.rings) == 1 + ringctl_move.SAVES


def test_a_ringctl_that_was_killed_on_this_machine_is_taken_over_without_being_told(world):
    made = "import sys; from tools.ring_driver import note; print(note('01234567'), flush=True); sys.stdin.read()"
    killed = subprocess.Popen(
        [sys.executable, "-c", made], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert killed.stdin is not None and killed.stdout is not None
    with killed.stdin, killed.stdout:
        world.note = noted = killed.stdout.readline().strip()
        with pytest.raises(RingStoreError, match=f"process {killed.pid} .* carries changes out: wait for it"):
            ringctl(world, "resume")
        killed.kill()
        os.waitid(os.P_PID, killed.pid, os.WEXITED | os.WNOWAIT)  # a zombie, as under a parent that does not look
        assert ring_driver.is_gone(noted)
        killed.wait()
        assert f"process {killed.pid} " in (said := ringctl(world, "resume")) and "has ended, taken over" in said
    assert world.note == ""


def test_of_a_process_that_cannot_be_seen_from_here_nobody_says_that_it_is_gone():
    mine = ring_driver.note("01234567")
    assert not ring_driver.is_gone(mine)
    assert ring_driver.is_gone(re.sub(r"begun \d+", "begun 1", mine))  # its number was given to another one
    for other in (re.sub(r" on \S+,", " on elsewhere,", mine), re.sub(r"begun (\d+) \w+", r"begun 1 0000", mine)):
        assert not ring_driver.is_gone(re.sub(r"process \d+", "process 4194303", other))
    assert not ring_driver.is_gone("ringctl on host, process 4194303, last heard 2030-01-01T00:00:00Z, 01234567")


# Programs of other clusters


class FakeSupervisor(Supervisor):
    """supervisord with one program, ing1, that runs as a process of the test or not at all."""

    def __init__(self, folder, pid):
        (folder / "supervisord.conf").write_text("[program:ing1]\n")
        super().__init__(folder / "supervisord.conf")
        self.pid, self.said, self.own_pid = pid, [], os.getpid()

    def control(self, *words):
        self.said.append(words)
        running = f"RUNNING   pid {self.pid}, uptime 0:00:01" if self.pid else "BACKOFF   Exited too quickly"
        return {("status",): f"nodes:ing1    {running}\n", ("pid",): f"{self.own_pid}\n"}.get(words, "")


@pytest.mark.parametrize("runs", [True, False])
@pytest.mark.parametrize("ours", [True, False])
def test_only_the_program_of_a_node_of_this_cluster_is_ended(world, tmp_path, monkeypatch, runs, ours):
    (tmp_path / "other" / "conf").mkdir(parents=True)
    other = tmp_path / "other" / "conf" / "minitrue.toml"
    other.write_text("")
    monkeypatch.setenv("MINITRUE_CONFIG", str(world.settings if ours else other))
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as process:
        made = FakeSupervisor(tmp_path, process.pid if runs else 0)
        made.own_pid = process.pid  # supervisord's environment, which its programs have as well
        monkeypatch.setattr(ringctl_move, "_maybe", lambda _: made)
        said = " ".join(ringctl(world, "remove", "ing1", "--yes").split())
        process.stdin.close()
    assert (("stop", "nodes:ing1") in made.said) == ours
    assert ("its program has ended" in said) == ours
    assert ("is another cluster's and is left alone (its settings are" in said) == (not ours)


def test_a_file_of_a_node_of_another_cluster_stays_where_its_program_does_not_run(world, tmp_path):
    made = FakeSupervisor(tmp_path, 0)
    made.folder.mkdir()
    (tmp_path / "a, b").mkdir()
    (tmp_path / "a, b" / "other.toml").write_text("")
    made.path("ing1").write_text(supervised.program("ing1", tmp_path, str(tmp_path / "a, b" / "other.toml")))
    assert "other.toml" in made.other_cluster("ing1", config.load(world.settings, {}))
    made.path("ing1").write_text(supervised.program("ing1", tmp_path, str(world.settings)))
    assert made.other_cluster("ing1", config.load(world.settings, {})) == ""
    made.path("ing1").write_text(supervised.program("ing1", tmp_path, str(tmp_path / "none.toml")))
    with pytest.raises(SupervisorError, match="cannot tell of which cluster the program ing1 is"):
        made.other_cluster("ing1", config.load(world.settings, {}))


def test_clusters_in_etcd_are_told_apart_by_prefix_and_members():
    def settings(url):
        return config.Settings(cluster=config.Cluster(ring_store=url))

    same = settings("etcd://h1:1,h2:2/a")
    assert supervised._is_same(same, settings("etcd://h2:2,h3:3/a"))
    for other in ("etcd://h1:1,h2:2/b", "etcd://h3:3/a", "file:a"):
        assert not supervised._is_same(same, settings(other))


# Repair


def test_a_repair_of_partitions_with_one_owner_says_that_there_is_nothing_to_compare_with(world):
    world.rings = [ring_of(3, 1)]
    assert "16 of 16 partitions have one owner: there is nothing to compare with" in " ".join(
        ringctl(world, "repair", "--all", code=1).split()
    )
    assert "the partition has one owner" in ringctl(world, "repair", "--partition", "3", code=1)
    assert answer(world, "repair", "--all", code=1) == {"ok": False, "nodes": {}, "failed": {}, "one_owner": 16}


def test_a_repair_compares_those_partitions_that_have_two_owners(world):
    asked = {}

    def repair(ring, node, partitions, keys=()):
        asked[node] = partitions
        return JobState(1, "repair", "done", "", *(len(partitions),) * 3, 0, 0, b"", 0, 0, 0, 0.0, "")

    world.repair = repair
    found = answer(world, "repair", "--all")
    assert (found["ok"], found["one_owner"]) == (True, 0)
    assert sum(map(len, asked.values())) == 2 * world.ring.partitions


def test_a_repair_says_how_far_it_is_how_fast_and_how_long_it_takes_yet():
    def job(state, done, error=""):
        return JobState(1, "repair", state, "ing9", 40, done, done, 0, 0, b"", 1500, 1, 51200, 10.0, error)

    jobs = {"ing0": job("done", 40), "ing1": job("running", 10, "no connection")}
    said = "ing0 40/40; ing1 10/40; 3,000 points got, 100.0 KiB, 10.0 KiB/s, about 30 s left; ing1: no connection"
    assert ringctl_repair.progress_text(jobs, 10.0) == said
    assert "left" not in ringctl_repair.progress_text(jobs | {"ing2": job("waiting", 0)}, 10.0)


# Names of programs


def test_status_names_the_program_of_a_silent_node_as_supervisorctl_does(tmp_path):
    assert supervised.program_name("ing2") == "ingestion:ing2"
    assert supervised.program_name("ing4") == "ing4"  # of conf.d, in no group
    assert supervised.program_name("ing2", tmp_path / "none.conf") == "ing2"
    up = ringctl_status.NodeStatus("ing2", "", "z", True, "", {}, "up")
    away = [
        ringctl_status.NodeStatus(node, "", "z", False, "no connection", {}, "unreachable") for node in ("ing1", "ing4")
    ]
    assert ringctl_app._advice([up, *away], away) == [
        "next: supervisorctl -c supervisord.conf status ingestion:ing1 ing4"
    ]


def test_an_added_node_takes_no_file_that_is_not_ringctl_s_and_no_program_of_another_cluster(world, tmp_path):
    made, settings = FakeSupervisor(tmp_path, 0), config.load(world.settings, {})
    made.check_free("ing8", settings)
    made.folder.mkdir()
    made.path("ing8").write_text("[program:ing8]\ncommand=/bin/cat\n")
    with pytest.raises(SupervisorError, match=r"ing8\.conf is there, and ringctl did not write it: move it away"):
        made.check_free("ing8", settings)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "minitrue.toml").write_text("")
    made.path("ing8").write_text(supervised.program("ing8", tmp_path, str(tmp_path / "other" / "minitrue.toml")))
    with pytest.raises(SupervisorError, match=r"the program ing8 of .* is another cluster's .*: choose another id"):
        made.check_free("ing8", settings)
    made.path("ing8").write_text(supervised.program("ing8", tmp_path, str(world.settings)))
    made.check_free("ing8", settings)


def test_a_node_of_supervisord_s_own_file_is_started_from_there_when_it_comes_back(world, tmp_path):
    made = FakeSupervisor(tmp_path, 0)
    assert made.add("ing1", config.load(world.settings, {})) == f"nodes:ing1 of {made.file}"
    assert ("start", "nodes:ing1") in made.said and not made.path("ing1").exists()


# Bridges that are gone for good


def gone_bridge(world, *nodes):
    """A bridge that nobody hears has points for nodes in its spool, and it was all that was ever acknowledged."""
    for node in nodes:
        world.put_mark(Mark(node, "bridge9"))


def test_a_mark_of_a_bridge_goes_when_the_node_has_what_current_owners_have(world, monkeypatch):
    monkeypatch.setattr(ringctl_repair.time, "sleep", world.pause)
    gone_bridge(world, "ing0")
    with pytest.raises(RingError, match="if it is gone for good: --bridge bridge9"):
        ringctl(world, "accept-loss", "ing0", "--yes")
    pulled = []

    def pull(ring, node, partitions, peer):
        assert Mark("ing0", "bridge9") in world.marks()  # until all is there
        pulled.extend(partitions)
        return World.pull(world, ring, node, partitions, peer)

    world.pull = pull
    told = answer(world, "accept-loss", "ing0", "--bridge", "bridge9", "--yes")
    assert (told["ok"], told["only_there"], told["copied_from_others"]) == (True, 0, len(pulled))
    assert sorted(pulled) == world.ring.owned_partitions("ing0").tolist() and not world.marks()


def test_a_mark_of_a_bridge_stays_while_the_node_cannot_get_what_it_lacks(world, monkeypatch):
    monkeypatch.setattr(ringctl_repair.time, "sleep", world.pause)
    gone_bridge(world, "ing0")
    world.nodes["ing1"].is_up = False
    world.lost.add("ing1")
    with pytest.raises(ConfigError, match="ing1 does not answer, and has what ing0 lacks"):
        ringctl(world, "accept-loss", "ing0", "--bridge", "bridge9", "--yes")
    world.nodes["ing1"].is_up = True

    def refuse(*_):
        raise MinitrueError("no such thing")

    world.pull = refuse
    told = answer(world, "accept-loss", "ing0", "--bridge", "bridge9", "--yes", code=1)
    assert set(told["failed"].values()) == {"no such thing"} and Mark("ing0", "bridge9") in world.marks()


def test_where_all_owners_lack_what_a_bridge_has_that_is_said_before_it_is_given_up(world, monkeypatch):
    monkeypatch.setattr(ringctl_repair.time, "sleep", world.pause)
    gone_bridge(world, "ing0", "ing1", "ing2")
    said = " ".join(ringctl(world, "accept-loss", "ing0", "--bridge", "bridge9", "--yes").split())
    count = len(world.ring.owned_partitions("ing0"))
    assert f"{count} partitions, of which each has no other owner that is current" in said
    assert world.marks() == {Mark("ing1", "bridge9"), Mark("ing2", "bridge9")}


def test_a_mark_of_a_bridge_that_lives_or_that_nobody_put_is_not_given_up(world):
    gone_bridge(world, "ing0")
    with pytest.raises(RingError, match="no mark of a bridge bridge7 on ing0; bridges have marks: bridge9 on ing0"):
        ringctl(world, "accept-loss", "ing0", "--bridge", "bridge7", "--yes")
    heard = World.statuses
    world.statuses = lambda ring, nodes: {
        node: status | {"bridges": {"bridge9": {"age_s": 0.5}}} for node, status in heard(world, ring, nodes).items()
    }
    with pytest.raises(ConfigError, match=r"bridge9 was heard .* ago, so it is not gone"):
        ringctl(world, "accept-loss", "ing0", "--bridge", "bridge9", "--yes")


def test_a_lost_node_keeps_the_mark_of_a_bridge_until_its_own_data_is_given_up(world):
    gone_bridge(world, "ing0")
    world.put_mark(Mark("ing0", LOST))
    with pytest.raises(RingError, match="its own data comes first: ringctl accept-loss ing0"):
        ringctl(world, "accept-loss", "ing0", "--bridge", "bridge9", "--yes")
    ringctl(world, "accept-loss", "ing0", "--yes")
    assert answer(world, "accept-loss", "ing0", "--bridge", "bridge9", "--yes")["copied_from_others"] == 0
    assert Mark("ing0", "bridge9") not in world.marks()


def test_status_says_of_a_node_that_it_keeps_what_owners_lack() -> None:
    ring = ring_of(2, 1)
    trouble = "n2 has 4 points of partition 3, of which 5 are here"
    answer = {"epoch": ring.epoch, "ring_hash": ring.hash, "forgetting": {"owners_lack": 2, "trouble": trouble}}
    said = ringctl_status._fault(ring, answer, "the store has")
    assert said == f"keeps 2 partitions that it gave away, for owners lack points of them: {trouble}"
    answer["forgetting"] = {"owners_lack": 0, "trouble": "no connection to n2"}
    assert ringctl_status._fault(ring, answer, "the store has") == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("weight", "ing0", "-1"), r"weight must be 0\.001 to 1000000 \(was -1\)"),
        (("replication", "6"), r"replication must be 1 to 5 \(was 6\)"),
        (("add", "ing9", "--endpoint", "nonsense"), "ing9: endpoint 'nonsense': want tcp://HOST:PORT"),
    ],
)
def test_values_that_cannot_be_are_refused_with_what_is_allowed(world, words, said):
    with pytest.raises(MinitrueError, match=said):
        ringctl(world, *words, "--yes")


@pytest.mark.parametrize(
    "name",
    [
        *("add", "remove", "replace", "weight", "zone", "replication", "resume", "cancel", "repair", "watch"),
        *("accept-loss", "history", "backup", "restore"),
    ],
)
def test_the_help_of_a_command_has_an_example(name):
    assert f"  ringctl {name} " in CliRunner().invoke(ringctl_app.cli, [name, "--help"]).output


def test_who_waits_says_for_what_and_since_when():
    waiting = Progress(phase=WAITING, waits=["etcd: nobody answers"], went_s=clock.monotonic_s() - 90)
    assert ringctl_show_moves.progress_text(waiting).endswith("; waiting, for 1.5 min now: etcd: nobody answers")
