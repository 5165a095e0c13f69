"""supervisord.conf of the checkout: what starts, restarts, ends as FATAL and stops, and where it writes."""

import json
import os
import re
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.support import ROOT, Children, free_port, free_port_range, wait_until

BIN = ROOT / ".venv" / "bin"
WORKERS = ("ingestion:broker", "ingestion:bridge", "ingestion:ing1", "ingestion:ing2", "ingestion:ing3", "query")


class Checkout:
    """A folder that looks like the checkout, with ports of its own, and its supervisord."""

    def __init__(self, folder: Path, children: Children) -> None:
        self.folder = folder
        self._children = children
        for name in (".venv", "common", "workers", "tools"):
            (folder / name).symlink_to(ROOT / name)
        (folder / "supervisord.conf").write_text((ROOT / "supervisord.conf").read_text())
        for name in ("conf", "data/log", "data/run"):
            (folder / name).mkdir(parents=True)
        self.http = free_port()
        self.nodes = [free_port_range(3) for _ in range(3)]
        (folder / "conf" / "minitrue.toml").write_text(
            f'[mqtt]\nbroker = "embedded"\nurl = "mqtt://127.0.0.1:{free_port()}"\n[query]\nport = {self.http}\n'
        )
        (folder / "conf" / "ring.toml").write_text(
            "".join(
                f'[[nodes]]\nid = "ing{number}"\nendpoint = "tcp://127.0.0.1:{port}"\n'
                for number, port in enumerate(self.nodes, 1)
            )
        )

    def hasten(self, **values: int) -> None:
        """Give settings of all programs other values: what waits for them waits less."""
        conf = self.folder / "supervisord.conf"
        text = conf.read_text()
        for name, value in values.items():
            assert f"\n{name}=" in text
            text = re.sub(rf"(?m)^{name}=[1-9]\d*", f"{name}={value}", text)
        conf.write_text(text)

    def supervise(self, **environ: str) -> "subprocess.Popen[str]":
        """Start supervisord in the foreground, from another directory and with nothing activated."""
        environ = {**os.environ, "MINITRUE_CONFIG": str(self.folder / "conf" / "minitrue.toml"), **environ}
        command = (BIN / "supervisord", "-n", "-c", self.folder / "supervisord.conf")
        return self._children.start(*command, cwd="/", env=environ, stdout=subprocess.DEVNULL)

    def control(self, *words: str) -> str:
        """What supervisorctl prints."""
        command = [BIN / "supervisorctl", "-c", self.folder / "supervisord.conf", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd="/").stdout

    def states(self) -> dict[str, str]:
        """State by program, as supervisorctl shows it; empty while supervisord does not listen."""
        lines = [line.split() for line in self.control("status").splitlines()]
        return {line[0]: line[1] for line in lines if len(line) > 1 and line[1].isupper()}

    def ready(self) -> bool:
        """Whether GET /readyz says so."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/readyz", timeout=5) as answer:
                return bool(json.load(answer)["ready"])
        except (urllib.error.URLError, ConnectionError):
            return False


@pytest.fixture
def checkout(tmp_path: Path, children: Children) -> Checkout:
    return Checkout(tmp_path, children)


def test_all_workers_start_restart_when_killed_and_stop_cleanly(checkout):
    checkout.hasten(startsecs=1)
    before = _files_outside_data(checkout.folder)
    supervisord = checkout.supervise()
    wanted = dict.fromkeys(WORKERS, "RUNNING") | {"ring": "EXITED", "publisher": "STOPPED"}
    wait_until(lambda: checkout.states() == wanted, 60, f"states {wanted}")
    wait_until(checkout.ready, 60, "readyz")

    pid = int(checkout.control("pid", "ingestion:ing2"))
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: int(checkout.control("pid", "ingestion:ing2")) not in (0, pid), 60, "a new ing2")
    wait_until(checkout.ready, 60, "readyz")

    checkout.control("stop", "query:*")
    assert checkout.states()["query"] == "STOPPED"
    checkout.control("start", "query:*")
    wait_until(checkout.ready, 60, "readyz")

    checkout.control("shutdown")
    assert supervisord.wait(60) == 0
    log = (checkout.folder / "data" / "log" / "supervisord.log").read_text()
    stopped = {line.split("stopped: ")[1] for line in log.splitlines() if "stopped: " in line}
    assert stopped == {f"{name.split(':')[-1]} (exit status 0)" for name in WORKERS}
    assert _files_outside_data(checkout.folder) == before


def _files_outside_data(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if folder / "data" not in path.parents]


def test_a_worker_left_out_stays_out_and_one_that_cannot_start_is_fatal(checkout):
    checkout.hasten(startretries=1)
    with socket.socket() as other:
        other.bind(("127.0.0.1", checkout.nodes[2]))
        other.listen()
        checkout.supervise(MINITRUE_MODE="ingestion")
        wanted = {"query": "EXITED", "ingestion:ing3": "FATAL", "ingestion:ing1": "RUNNING", "ring": "EXITED"}
        wait_until(lambda: checkout.states().items() >= wanted.items(), 240, f"states {wanted}")
    assert not checkout.ready()
    log = (checkout.folder / "data" / "log" / "ing3.log").read_text().splitlines()
    assert log[-1].startswith("minitrue ing3: ")
    assert str(checkout.nodes[2]) in log[-1]
