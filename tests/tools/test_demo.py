"""make demo: answers that grow, an end by itself or on Ctrl-C, nothing left."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.support import ROOT, Children

DEMO = (sys.executable, "-m", "tools.demo_app")
ANSWER = re.compile(r"sensor_1 temperature: count (\d+), avg -?[\d.]+, min -?[\d.]+, max -?[\d.]+ ")


def _directory(line: str) -> Path:
    return Path(line.split(" in ")[1].split()[0])


def test_it_shows_answers_that_grow_and_ends_after_demo_seconds(children: Children) -> None:
    demo = children.start(*DEMO, env=os.environ | {"DEMO_SECONDS": "9"}, stdout=subprocess.PIPE)
    output, _ = demo.communicate(timeout=200)
    assert demo.returncode == 0
    counts = [int(count) for count in ANSWER.findall(output)]
    assert len(counts) >= 2, output
    assert counts == sorted(set(counts))
    assert "/query -d '{" in output
    assert re.search(r"In a browser:\n\n  http://127\.0\.0\.1:\d+/\n", output)
    assert not _directory(output.splitlines()[1]).exists()


def _add_a_node(told: str) -> None:
    """Carry out the lines for tools/ringctl as they were shown; two owners each is what the README promises."""
    lines = [line.strip() for line in told.splitlines() if "MINITRUE_CONFIG" in line or "tools/ringctl" in line]
    script = "\n".join(["set -e", *lines]) + " --yes"
    done = subprocess.run(["sh", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False, timeout=150)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "512 changes of owners" in done.stdout  # a quarter of 1,024 partitions' two owners each


def test_ctrl_c_ends_it_cleanly(children: Children) -> None:
    demo = children.start(*DEMO, stdout=subprocess.PIPE)
    assert demo.stdout is not None
    first, second = demo.stdout.readline(), demo.stdout.readline()
    assert first.startswith("Starting a broker")
    told = ""
    while not ANSWER.match(line := demo.stdout.readline()):
        assert demo.poll() is None
        told += line
    _add_a_node(told)
    os.killpg(demo.pid, signal.SIGINT)  # as a terminal does: to the whole group
    output, _ = demo.communicate(timeout=100)
    assert demo.returncode == 0
    assert output.splitlines()[-1].startswith("Ended, and everything removed.")
    assert not _directory(second).exists()


def test_nonsense_as_demo_seconds_is_said(children: Children) -> None:
    done = subprocess.run(
        DEMO, env=os.environ | {"DEMO_SECONDS": "soon"}, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (1, "demo: DEMO_SECONDS = 'soon': want a number of seconds\n")
