"""What tests of every part share: ports, parts that a machine may lack, child processes, waiting for events."""

import atexit
import functools
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.nursery import Nursery

ROOT = Path(__file__).resolve().parent.parent
CI_VARIABLE = "MINITRUE_CI"
STOP_DEADLINE_S = 15.0
T = TypeVar("T")

_FIRST_PORT, _PORTS = 10_000, 22_000
_walk = itertools.count(os.getpid() * 1009)  # processes that test at the same time begin in different places


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nothing listens on, all different."""
    return [free_port() for _ in range(count)]


def free_port() -> int:
    """One port of the loopback interface that nothing listens on."""
    return free_port_range(1)


def free_port_range(count: int) -> int:
    """The first of `count` consecutive free ports, as a storage node takes them.

    Below the ports that outgoing connections are given, and not asked for twice: what is free now stays so until
    the test listens there.
    """
    for _ in range(_PORTS // count):
        first = _FIRST_PORT + next(_walk) % _PORTS
        for _ in range(count - 1):
            next(_walk)
        if first + count <= _FIRST_PORT + _PORTS and all(_is_free(port) for port in range(first, first + count)):
            return first
    raise OSError(f"no {count} consecutive free ports found")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def require_part(name: str) -> str:
    """The path of a program that the test needs. Without it the test is skipped, and fails where CI runs."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if found:
        return found
    text = f"{name} is not installed; this test did not run"
    if os.environ.get(CI_VARIABLE):
        pytest.fail(text)
    pytest.skip(text)


def certificate(directory: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    cert, key = directory / "cert.pem", directory / "key.pem"
    command = [require_part("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=x"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


def wait_until(condition: Callable[[], T], timeout_s: float = 20.0, what: str = "") -> T:
    """The first true value of the condition. Fails after timeout_s, with its last value."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout_s} s: {what or condition}; last seen: {value!r}")
        time.sleep(0.02)
    return value


class Children:
    """Processes that a test starts; `stop_all` ends them, each with its process group."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[Any]] = []

    def start(self, *command: str | Path, **options: Any) -> subprocess.Popen[Any]:
        """Start a process in a group of its own, from the top of the checkout. options: those of Popen.

        A worker, `python -m workers.X`, whose output goes to a file or nowhere, comes from the nursery.
        """
        texts = [str(part) for part in command]
        if texts[:2] == [sys.executable, "-m"] and texts[2].startswith("workers.") and _NURSED.issuperset(options):
            child = _forked(texts[2:], **options)
        else:
            options = {"cwd": ROOT, "start_new_session": True, "text": True} | options
            child = subprocess.Popen(texts, **options)
        self._started.append(child)
        return child

    def stop_all(self) -> None:
        """Ask every process to end, then make it; whatever is left of its group is killed."""
        for child in self._started:
            if child.poll() is None:
                child.terminate()
        deadline = time.monotonic() + STOP_DEADLINE_S
        for child in self._started:
            try:
                child.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            _kill_group(child.pid)


_NURSED = {"env", "stdout", "stderr"}  # options that the nursery understands


@functools.cache
def _nursery(package: str) -> Nursery:
    nursery = Nursery(package)
    atexit.register(nursery.close)
    return nursery


def _forked(
    command: list[str], env: Mapping[str, str] | None = None, stdout: Any = None, stderr: Any = None
) -> Any:
    """A worker of the nursery, or where its output goes into a pipe one that is started from the beginning."""
    if subprocess.PIPE in (stdout, stderr):
        options = {"env": env, "stdout": stdout, "stderr": stderr}
        start = [sys.executable, "-m", *command]
        return subprocess.Popen(start, cwd=ROOT, start_new_session=True, text=True, **options)
    with Path(os.devnull).open("wb") as null:
        out = _descriptor(stdout, 1, null.fileno())
        error = out if stderr == subprocess.STDOUT else _descriptor(stderr, 2, null.fileno())
        nursery = _nursery(command[0].split(".")[1])
        return nursery.fork(command[0], command[1:], os.environ if env is None else env, out, error)


def _descriptor(given: Any, inherited: int, null: int) -> int:
    if given is None:
        return inherited
    if given == subprocess.DEVNULL:
        return null
    return given if isinstance(given, int) else int(given.fileno())


def _kill_group(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return  # nothing of the group is left: as it should be
