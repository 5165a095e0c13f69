"""How worker processes begin and end: exit codes, one-line errors, signals."""

import re
import select
import signal
import subprocess
import sys
import threading
import time

import pytest

from common.process import Stop
from tests.support import ROOT

WORKER = """
import sys
from common import log, process
from common.errors import StorageError
def body(settings, stop):
    log.get("w").info("ready")
    if sys.argv[1] == "fail":
        raise StorageError("disk gone")
    if sys.argv[1] == "bug":
        raise KeyError("surprise")
    assert stop.wait(60)
    log.get("w").info("ended cleanly")
process.run("w", sys.argv[2], body)
"""


def _start(children, tmp_path, *arguments, config="", **environ):
    (tmp_path / "minitrue.toml").write_text(config)
    environ = {"MINITRUE_CONFIG": str(tmp_path / "minitrue.toml"), **environ}
    return children.start(sys.executable, "-c", WORKER, *arguments, env=environ, stderr=subprocess.PIPE)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_worker_cleanly(children, tmp_path, number):
    worker = _start(children, tmp_path, "wait", "query")
    assert "event=ready" in worker.stderr.readline()
    worker.send_signal(number)
    assert 'event="ended cleanly"' in worker.communicate(timeout=20)[1]
    assert worker.returncode == 0


def test_an_error_of_ours_is_one_line_and_code_1(children, tmp_path):
    worker = _start(children, tmp_path, "fail", "query")
    lines = worker.communicate(timeout=20)[1].splitlines()
    assert lines[1:] == ["minitrue w: disk gone"]
    assert worker.returncode == 1


def test_a_wrong_configuration_is_one_line_and_code_1(children, tmp_path):
    worker = _start(children, tmp_path, "wait", "query", config="[query]\nport = 0")
    assert worker.communicate(timeout=20)[1] == (
        f"minitrue w: {tmp_path}/minitrue.toml: query.port = 0: want an integer from 1 to 65535\n"
    )
    assert worker.returncode == 1


def test_a_bug_keeps_its_traceback(children, tmp_path):
    worker = _start(children, tmp_path, "bug", "query")
    assert "KeyError: 'surprise'" in worker.communicate(timeout=20)[1]
    assert worker.returncode == 1


def test_a_worker_that_the_mode_leaves_out_ends_with_78_after_supervisord_counts_it_as_started(children, tmp_path):
    startsecs = re.findall(r"^startsecs=(\d+)$", (ROOT / "supervisord.conf").read_text(), re.MULTILINE)
    begin = time.monotonic()
    left_out = [
        _start(children, tmp_path, "wait", role, MINITRUE_MODE=mode)
        for mode, role in (("ingestion", "query"), ("query", "ingestion"))
    ]
    for worker in left_out:
        assert 'event="left out on this machine"' in worker.communicate(timeout=60)[1]
        assert worker.returncode == 78
        assert time.monotonic() - begin > max(map(int, startsecs))


@pytest.mark.parametrize("mode", ["all", "query"])
def test_a_worker_that_the_mode_wants_runs(children, tmp_path, mode):
    worker = _start(children, tmp_path, "wait", "query", MINITRUE_MODE=mode)
    assert "event=ready" in worker.stderr.readline()


def test_an_unknown_mode_is_refused(children, tmp_path):
    worker = _start(children, tmp_path, "wait", "query", MINITRUE_MODE="both")
    assert worker.communicate(timeout=20)[1] == "minitrue w: MINITRUE_MODE='both': want one of ingestion, query, all\n"
    assert worker.returncode == 1


def test_stop_can_be_polled_and_waited_for():
    stop = Stop()
    assert not stop.is_set()
    assert select.select([stop], [], [], 0)[0] == []
    threading.Timer(0.05, stop.set).start()
    assert stop.wait(20)
    assert stop.wait(None)  # and stays set
    assert select.select([stop], [], [], 0)[0] == [stop]


def test_waiting_for_stop_ends_with_its_timeout():
    assert not Stop().wait(0.01)
