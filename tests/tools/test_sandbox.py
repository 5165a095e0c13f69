"""tools/sandbox: starts, says so, ends, and leaves nothing behind, whoever dies first."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import config
from common.errors import ConfigError
from common.ringstore import open_store
from tests.support import ROOT, wait_until
from tools import sandbox_files
from tools.sandbox_app import Sandbox
from tools.sandbox_files import PortBlock, SandboxError, Wanted

SANDBOX = ROOT / "tools" / "sandbox"
SMALL = ("--nodes", "1", "--broker", "embedded")


@pytest.fixture
def short_directory():
    """One whose path leaves room for the name of a Unix socket, as pytest's do not always."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def _alive(pid: int) -> bool:
    """Whether a process runs; a zombie that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _pids(summary) -> list[int]:
    return [each["pid"] for each in [*summary["nodes"].values(), *summary["workers"].values()]]


def _wait_for_end_of(pids) -> None:
    wait_until(lambda: not any(map(_alive, pids)), 30, f"the end of {pids}")


def _ready(process) -> dict:
    line = process.stdout.readline()
    assert line, process.stderr.read() if process.stderr else "no JSON line"
    return json.loads(line)


def test_a_command_sees_the_cluster_and_its_exit_code_is_passed_on(children):
    script = 'echo "$MINITRUE_HTTP $MINITRUE_MQTT $MINITRUE_CONFIG"; exit 7'
    sandbox = children.start(
        SANDBOX, "--nodes", "2", "--broker", "embedded", "--set", "query.page_limit=77", "--set", "log.format=json",
        "--", "sh", "-c", script, stdout=subprocess.PIPE, env=os.environ | {"MINITRUE__QUERY__PORT": "1"},
    )  # fmt: skip
    summary = _ready(sandbox)
    assert list(summary) == ["dir", "config", "http", "mqtt", "supervisor", "nodes", "workers"]
    assert list(summary["nodes"]) == ["ing1", "ing2"]
    assert list(summary["workers"]) == ["broker", "bridge", "query"]
    settings = config.load(Path(summary["config"]), {})
    assert (settings.query.page_limit, settings.log.format) == (77, "json")
    # Not communicate(timeout=...): it reads past what came together with the first line.
    assert sandbox.stdout.read().split() == [summary["http"], summary["mqtt"], summary["config"]]
    assert sandbox.wait(60) == 7
    assert not any(map(_alive, _pids(summary)))
    assert not Path(summary["dir"]).exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_keep_leaves_the_directory(children, short_directory, number, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(short_directory))
    sandbox = children.start(SANDBOX, *SMALL, "--keep", stdout=subprocess.PIPE)
    summary = _ready(sandbox)
    sandbox.send_signal(number)
    assert sandbox.wait(60) == 0
    assert not any(map(_alive, _pids(summary)))
    assert Path(summary["dir"]).parent == short_directory
    assert (Path(summary["dir"]) / "data" / "ring.json").exists()


def test_a_signal_ends_the_command_too(children):
    sandbox = children.start(SANDBOX, *SMALL, "--", "sh", "-c", "echo $$; exec sleep 600", stdout=subprocess.PIPE)
    summary = _ready(sandbox)
    command = int(sandbox.stdout.readline())
    sandbox.terminate()
    assert sandbox.wait(60) == 128 + signal.SIGTERM
    assert not any(map(_alive, [command, *_pids(summary)]))


def test_when_it_is_killed_its_cluster_ends(children, tmp_path):
    sandbox = children.start(SANDBOX, *SMALL, "--dir", tmp_path / "d", stdout=subprocess.PIPE)
    summary = _ready(sandbox)
    supervisord = int((tmp_path / "d" / "supervisord.pid").read_text())
    sandbox.kill()
    _wait_for_end_of([supervisord, *_pids(summary)])


def test_an_earlier_directory_is_started_again_on_the_same_ports_with_as_many_nodes(tmp_path):
    home = tmp_path / "d"
    with Sandbox(nodes=1, broker="embedded", dir=home, settings={"storage.head_rows": 2000}) as first:
        ring = _ring(first)
    with Sandbox(dir=home) as second:
        assert (second.http, second.mqtt) == (first.http, first.mqtt)
        assert _ring(second).hash == ring.hash
        settings = config.load(second.config, {})
    assert (settings.storage.head_rows, settings.mqtt.broker) == (2000, "embedded")
    with pytest.raises(SandboxError, match="has a cluster of nodes 1, not 3"), Sandbox(nodes=3, dir=home):
        pass


def test_an_earlier_directory_whose_ports_are_taken_moves_to_others(tmp_path):
    home = tmp_path / "d"
    with Sandbox(nodes=1, broker="embedded", dir=home) as first:
        ring = _ring(first)
        port = config.load(first.config, {}).query.port
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        with Sandbox(dir=home) as second:
            assert second.http != first.http
            moved = _ring(second)
    assert (moved.cluster, moved.epoch) == (ring.cluster, ring.epoch + 1)
    assert moved.nodes[0].endpoint == second.nodes["ing1"]["endpoint"] != ring.nodes[0].endpoint


def _ring(sandbox: Sandbox):
    settings = config.load(sandbox.config, {})
    return open_store(settings.cluster.ring_store, settings).load()


def test_workers_are_killed_stopped_and_started_by_name():
    with Sandbox(nodes=1, broker="embedded") as sandbox:
        for name in ("ing1", "bridge", "query", "broker"):
            before = sandbox.pid(name)
            assert sandbox.kill(name) == before
            assert sandbox.pid(name) != before
        sandbox.wait_ready()
        sandbox.stop("query")
        assert sandbox._info("query")["statename"] == "STOPPED"
        sandbox.start("query")
        sandbox.wait_ready()
        sandbox.stop_restarting("ing1")
        ended = sandbox.kill("ing1", wait_s=0)
        wait_until(lambda: sandbox._info("ing1")["statename"] == "EXITED", 30)
        assert sandbox._info("ing1")["pid"] == 0
        assert not _alive(ended)


def test_what_a_killed_supervisord_leaves_is_ended_by_id():
    with Sandbox(nodes=1, broker="embedded") as sandbox:
        pids = _pids(sandbox.summary())
        sandbox.supervisord.kill()
        sandbox.supervisord.wait()
        assert any(map(_alive, pids))
    _wait_for_end_of(pids)
    assert not sandbox.dir.exists()


def test_a_worker_that_cannot_start_ends_the_sandbox_with_the_logs(children, tmp_path):
    (tmp_path / "d" / "data").mkdir(parents=True)
    (tmp_path / "d" / "data" / "storage").write_text("a file where a folder should be")
    begin = time.monotonic()
    sandbox = children.start(
        SANDBOX, *SMALL, "--dir", tmp_path / "d", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    output, errors = sandbox.communicate(timeout=100)
    assert sandbox.returncode == 1
    assert output == ""
    assert errors.startswith("sandbox: ing1 does not start")
    assert "--- ing1.log" in errors
    assert "storage" in errors.partition("--- ing1.log")[2]
    assert time.monotonic() - begin < 60


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("--set", "query.prot=1"), 1, "MINITRUE__QUERY__PROT = '1': unknown setting; did you mean"),
        (("--set", "nonsense"), 2, "'nonsense': want section.key=value"),
        (("--nodes", "0"), 2, "0 is not in the range"),
        (("--nodes", "1", "--replication", "2"), 1, "the number of nodes that are not draining, 1 (was 2)"),
        (("--dir", "/tmp/" + "long" * 25), 1, "too long a path for a Unix socket in it"),
    ],
)
def test_what_cannot_be_had_is_refused_in_words(arguments, code, text):
    done = subprocess.run([SANDBOX, *arguments], capture_output=True, text=True, timeout=100)
    assert done.returncode == code
    assert text in done.stderr
    assert done.stdout == ""


def test_a_command_that_does_not_exist_is_said(children):
    done = subprocess.run([SANDBOX, *SMALL, "--", "no-such-command"], capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert done.stderr == "sandbox: cannot run no-such-command: No such file or directory\n"


def test_sandboxes_never_share_ports():
    blocks = [PortBlock.find() for _ in range(5)]
    try:
        assert len({block.first for block in blocks}) == 5
        assert PortBlock.again(blocks[0].first).first not in {block.first for block in blocks}
    finally:
        for block in blocks:
            block.release()
    assert PortBlock.again(blocks[0].first).first == blocks[0].first


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])), st.floats(0.001, 1e9), st.booleans())
def test_settings_survive_being_written(tmp_path_factory, text, number, long):
    name = "".join(char for char in text if char.isprintable() and char not in "+#")[:50] or "x"
    named = config.Subscription(f"{name}/x", int(long), tags={name: name}, exclude=[name])
    subscriptions = [msgspec.structs.replace(named, format="json-metrics"), config.Subscription("y")]
    mqtt = config.Mqtt(username=text, reconnect_max_s=number + 15, subscriptions=subscriptions)
    settings = config.Settings(mqtt=mqtt)
    file = tmp_path_factory.getbasetemp() / "settings.toml"
    file.write_text(sandbox_files.settings_toml(settings), encoding="utf-8", newline="\n")
    assert msgspec.structs.replace(config.load(file, {}), file=settings.file) == settings


def test_a_directory_that_never_had_a_ring_is_refused(tmp_path):
    files = sandbox_files.prepare(tmp_path, Wanted(nodes=1))
    files.ports.release()
    with pytest.raises(SandboxError, match="but no ring: it never started; remove it"):
        sandbox_files.prepare(tmp_path, Wanted())


def test_a_setting_without_section_is_refused(tmp_path):
    wanted = dataclasses.replace(Wanted(), settings={"port": 1})
    with pytest.raises(ConfigError, match=r"setting .port.: want section\.key"):
        sandbox_files.prepare(tmp_path, wanted)
