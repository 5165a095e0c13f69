"""Workers that start in milliseconds: a process that has loaded all their modules, and forks one for each start.

Starting `python -m workers.storage` costs over a second of a core, nearly all of it numba and kernels, and tests start
hundreds. What is forked here runs the same module as __main__, in a session, with an environment and descriptors of
its own; only the imports are done already. Starts as they are outside tests are shown by the tests of supervisord, of
the sandbox and of the demo.

`Nursery` is for the test's process, `main` is the nursery's; between them JSON over a socket, descriptors beside it.
"""

import contextlib
import gc
import importlib
import json
import os
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
# What a nursery has loaded for a package of workers: kernels only where they are wanted, as forking costs by size.
LOADED: Final = {
    "storage": ("workers.storage.worker", "workers.storage.running"),
    "bridge": ("workers.bridge.worker",),
    "query": ("workers.query.worker",),
    "broker": ("workers.embedded.broker",),
    "embedded": ("workers.embedded.broker",),
}
MESSAGE_BYTES: Final = 1 << 17


class Forked:
    """A worker; what tests use of subprocess.Popen."""

    stdout = stdin = stderr = None

    def __init__(self, nursery: "Nursery", pid: int, args: Sequence[str]) -> None:
        self.pid = pid
        self.args = list(args)
        self.returncode: int | None = None
        self._nursery = nursery

    def poll(self) -> int | None:
        """Its exit code as Popen has it, None while it runs."""
        if self.returncode is None:
            self._nursery.listen(0.0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; its exit code. Raises subprocess.TimeoutExpired."""
        deadline = time.monotonic() + (1e9 if timeout is None else timeout)
        while self.poll() is None:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            self._nursery.listen(min(left_s, 1.0))
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Nursery:
    """The process that forks. Any thread; ends, and kills what is left of its children, with this process."""

    def __init__(self, package: str) -> None:
        """package: of LOADED."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.nursery", str(theirs.fileno()), package]
        # Its output goes nowhere but stderr: a test may have pytest's stdout for its own.
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment, pass_fds=[theirs.fileno()], start_new_session=True
        )
        theirs.close()
        self._control = ours
        self._lock = threading.Lock()
        self._children: dict[int, Forked] = {}

    def fork(
        self, module: str, arguments: Sequence[str], environment: Mapping[str, str], stdout: int, stderr: int
    ) -> Forked:
        """Start a worker. stdout, stderr: descriptors for it."""
        asked = {"module": module, "arguments": list(arguments), "environment": dict(environment)}
        with self._lock:
            socket.send_fds(self._control, [json.dumps(asked).encode()], [stdout, stderr])
            while "pid" not in (told := self._receive()):
                self._note(told)
            child = self._children[told["pid"]] = Forked(self, told["pid"], [module, *arguments])
        return child

    def close(self) -> None:
        """End the nursery, and what is left of its children."""
        self._control.close()
        self._process.wait()

    def listen(self, timeout_s: float) -> None:
        """Note the end of children, waiting for one if there is none yet."""
        with self._lock:
            while select.select([self._control], [], [], timeout_s)[0]:
                self._note(self._receive())
                timeout_s = 0.0

    def _receive(self) -> dict[str, int]:
        data = self._control.recv(MESSAGE_BYTES)
        assert data, "the nursery has ended; its last words are in stderr"
        told: dict[str, int] = json.loads(data)
        return told

    def _note(self, told: dict[str, int]) -> None:
        self._children.pop(told["ended"]).returncode = told["code"]


# The nursery's own process


def main(descriptor: int, package: str) -> None:
    """Load, then fork whatever is asked for. Returns in the nursery when nobody asks any more, else never."""
    control = socket.socket(fileno=descriptor)
    for name in LOADED[package]:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # so that the collector does not touch, and so copy, what all children share
    woken, waking = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waking)
    living: set[int] = set()
    while True:
        ready, _, _ = select.select([control, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            _report(control, living)
        if control in ready:
            data, descriptors, _, _ = socket.recv_fds(control, MESSAGE_BYTES, 2)
            if not data:
                break
            child = os.fork()
            if not child:
                control.close()
                _become(json.loads(data), descriptors, (woken, waking))
            living.add(child)
            control.send(json.dumps({"pid": child}).encode())
            for each in descriptors:
                os.close(each)
    for child in living:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _report(control: socket.socket, living: set[int]) -> None:
    """Tell of each child that has ended."""
    while living:
        child, status = os.waitpid(-1, os.WNOHANG)
        if not child:
            return
        living.remove(child)
        told = {"ended": child, "code": os.waitstatus_to_exitcode(status)}
        with contextlib.suppress(BrokenPipeError):
            control.send(json.dumps(told).encode())


def _become(asked: dict[str, Any], descriptors: list[int], mine: tuple[int, int]) -> None:
    """Be the worker that was asked for. Ends the process."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), *zip(descriptors, (1, 2), strict=True)):
        os.dup2(source, target)
    for each in (null, *descriptors, *mine):
        os.close(each)
    os.environ.clear()
    os.environ.update(asked["environment"])
    random.seed()  # else all children draw the same numbers
    sys.argv = [asked["module"], *asked["arguments"]]
    runpy.run_module(asked["module"], run_name="__main__", alter_sys=True)
    sys.exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
