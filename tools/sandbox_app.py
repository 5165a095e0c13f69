"""tools/sandbox: a complete throw-away cluster in one directory, under its own supervisord, on free ports.

Owns the start, watching and end of that supervisord; `Sandbox` does the same for Python code. Ends only processes
that it started, by their id. The files are sandbox_files.py's. Belongs to one thread, but for what only asks
(`pid`, `kill`, `restart`, ...), which any thread may call.
"""

import errno
import http.client
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import xmlrpc.client
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Self

import click
from supervisor.xmlrpc import SupervisorTransport

from common.errors import MinitrueError
from common.process import Stop
from tools import sandbox_files
from tools.sandbox_files import SandboxError, Wanted

READY_DEADLINE_S: Final = 120.0  # a few seconds, but a minute where kernels have to be compiled first
STOP_DEADLINE_S: Final = 45.0  # above every stopwaitsecs
COMMAND_DEADLINE_S: Final = 10.0  # for COMMAND to end after it was asked to
FAILED_STARTS: Final = 4  # processes that a program may use up before the cluster is ready
POLL_S: Final = 0.03
TAIL_LINES: Final = 15


class Sandbox:
    """A cluster that runs inside a `with` block; ready when the block begins.

    http, mqtt: base URLs. dir: its directory (data in dir/data, logs in dir/data/log). config: its configuration
    file. nodes, workers: name to {"pid", ...} as they were when it became ready; `pid` asks anew.
    """

    def __init__(
        self,
        nodes: int | None = None,
        replication: int | None = None,
        broker: str | None = None,
        settings: Mapping[str, Any] | None = None,
        dir: Path | str | None = None,
        keep: bool = False,
        stop: Stop | None = None,
    ) -> None:
        """nodes, replication, broker ("auto", "embedded", "mosquitto"): None for 3, 1 and "auto", or as before.

        settings: "section.key" to value. dir: kept afterwards; an earlier one is started again with its data.
        None makes a temporary one, removed unless `keep`. stop: ends the wait for readiness early.
        """
        self.dir = Path(dir).absolute() if dir is not None else Path()  # a temporary one is made when it starts
        self.nodes: dict[str, dict[str, Any]] = {}
        self.workers: dict[str, dict[str, Any]] = {}
        self._temporary, self._keep = dir is None, keep
        self._wanted = Wanted(nodes, replication, broker, settings or {})
        self._stop = stop or Stop()
        self._supervisord: subprocess.Popen[bytes] | None = None
        self._gone: set[int] = set()  # incarnations of bridges that were killed or stopped

    def __enter__(self) -> Self:
        if self._temporary:
            self.dir = sandbox_files.temporary_directory()
        try:
            self._files = sandbox_files.prepare(self.dir, self._wanted)
            self._start()
            self.wait_ready(first=True)
        except BaseException:
            self.close()
            raise
        self._describe()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def config(self) -> Path:
        """The cluster's configuration file."""
        return self._files.config

    @property
    def http(self) -> str:
        """Where the query worker serves HTTP."""
        return f"http://{self._files.settings.query.host}:{self._files.settings.query.port}"

    @property
    def mqtt(self) -> str:
        """The broker's URL."""
        return sandbox_files.mqtt_address(self._files.settings)

    @property
    def supervisor(self) -> str:
        """supervisord's socket, as supervisorctl takes it with -s."""
        return f"unix://{self._files.socket}"

    @property
    def environment(self) -> dict[str, str]:
        """What a command sees that is to use this cluster."""
        mine = {"MINITRUE_HTTP": self.http, "MINITRUE_MQTT": self.mqtt, "MINITRUE_CONFIG": str(self.config)}
        return _foreign_environment() | mine

    def summary(self) -> dict[str, Any]:
        """The cluster for programs: the JSON line that tools/sandbox prints."""
        return {
            "dir": str(self.dir),
            "config": str(self.config),
            "http": self.http,
            "mqtt": self.mqtt,
            "supervisor": self.supervisor,
            "nodes": self.nodes,
            "workers": self.workers,
        }

    # Asking supervisord

    def pid(self, name: str) -> int:
        """The process id of a worker ("ing1", "bridge", ...), waiting for one that is being restarted."""
        return int(self._wait(lambda: self._info(name)["pid"], f"{name} runs"))

    def kill(self, name: str, sig: int = signal.SIGKILL, wait_s: float = 30.0) -> int:
        """Send a signal to a worker; the id of the process hit.

        With wait_s the call returns when supervisord has started it anew; 0 does not wait.
        """
        self._forget(name)
        pid = self.pid(name)
        os.kill(pid, sig)
        if wait_s:
            self._wait(lambda: self._info(name)["pid"] not in (0, pid), f"{name} is started anew", wait_s)
        return pid

    def stop(self, name: str) -> None:
        """Stop a worker cleanly; it stays down."""
        self._forget(name)
        self._ask("stopProcess", name)

    def start(self, name: str) -> None:
        """Start a worker that is down."""
        self._ask("startProcess", name)

    def restart(self, name: str) -> None:
        """Stop a worker cleanly and start it again."""
        self.stop(name)
        self.start(name)

    def stop_restarting(self, name: str) -> None:
        """From now on a worker that ends stays down. It is restarted once for that."""
        self.stop(name)
        text = self._files.supervisor.read_text()
        section = "\n".join(sandbox_files.program_lines(self._files, name))
        changed = section.replace("autorestart=true", "autorestart=false")
        self._files.supervisor.write_text(text.replace(section, changed))
        self._ask("reloadConfig")
        self._ask("removeProcessGroup", name)
        self._ask("addProcessGroup", name)
        self.wait_ready()

    def log(self, name: str) -> str:
        """What a worker has logged."""
        return (self._files.logs / f"{name}.log").read_text(errors="replace")

    def _info(self, name: str) -> Any:
        return self._ask("getProcessInfo", name)

    def _ask(self, method: str, *arguments: Any) -> Any:
        """Call supervisord. Raises SandboxError where it refuses, OSError where it is not there."""
        transport = SupervisorTransport(None, None, self.supervisor)
        try:
            proxy = xmlrpc.client.ServerProxy("http://localhost", transport=transport)
            return getattr(proxy.supervisor, method)(*arguments)
        except xmlrpc.client.Fault as fault:
            raise SandboxError(f"supervisord refuses {method}{arguments}: {fault.faultString}") from fault
        except http.client.HTTPException as error:
            raise ConnectionError(f"supervisord broke off: {error!r}") from error
        finally:
            transport.close()

    # Readiness

    def wait_ready(self, timeout_s: float = READY_DEADLINE_S, first: bool = False) -> None:
        """Wait until queries can be answered, every node answers, and the bridge is connected, subscribed and
        hears every node.

        Raises SandboxError after timeout_s, with the end of every log; with `first` also as soon as a worker
        has failed to start several times.
        """
        used: dict[str, set[int]] = {}

        def ready() -> bool:
            if first:
                self._note_failures(used)
            return self._is_ready()

        self._wait(ready, "the cluster is ready", timeout_s)

    def _is_ready(self) -> bool:
        status, answer = self._readyz()
        bridges = [told for told in answer.get("bridges", {}).values() if told["incarnation"] not in self._gone]
        return status == 200 and bool(bridges) and all(map(_is_working, bridges))

    def _readyz(self) -> tuple[int, dict[str, Any]]:
        try:
            with urllib.request.urlopen(self.http + "/readyz", timeout=5) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, {}
        except (OSError, http.client.HTTPException):  # nobody listens yet, or no more
            return 0, {}

    def _note_failures(self, used: dict[str, set[int]]) -> None:
        """Raise once a program has used up too many processes. used: their ids so far, by program."""
        try:
            programs = self._ask("getAllProcessInfo")
        except OSError:
            return  # supervisord does not listen yet
        for program in programs:
            name, state = program["name"], program["statename"]
            ids = used.setdefault(name, set())
            ids.add(program["pid"])
            if len(ids - {0}) >= FAILED_STARTS or (name == "ring" and program["exitstatus"]):
                raise SandboxError(f"{name} does not start ({state}): {program['description']}\n{self._tails()}")

    def _wait(self, condition: Callable[[], Any], what: str, timeout_s: float = READY_DEADLINE_S) -> Any:
        """The first true value of a condition. Raises SandboxError after timeout_s, and when asked to stop."""
        deadline = time.monotonic() + timeout_s
        while not (value := condition()):
            if self._supervisord is not None and self._supervisord.poll() is not None:
                raise SandboxError(f"supervisord ended with {self._supervisord.returncode}\n{self._tails()}")
            if time.monotonic() > deadline:
                raise SandboxError(f"waited {timeout_s:g} s in vain until {what}\n{self._tails()}")
            if self._stop.wait(POLL_S):
                raise SandboxError(f"asked to stop while waiting until {what}")
        return value

    def _forget(self, name: str) -> None:
        """What the nodes heard from this bridge is no sign of life any more."""
        if name == "bridge":
            _, answer = self._readyz()
            self._gone |= {told["incarnation"] for told in answer.get("bridges", {}).values()}

    def _tails(self) -> str:
        parts = [f"--- {path.name}\n{_tail(path)}" for path in sorted(self._files.logs.glob("*.log"))]
        return "\n".join(parts)

    # Beginning and end

    def _start(self) -> None:
        guard = [sys.executable, "-m", "tools.sandbox_supervisord", str(os.getpid())]
        # A session of its own: Ctrl-C is for us, who stop the workers in order.
        with (self._files.logs / "supervisord.stderr.log").open("ab") as complaints:
            self._supervisord = subprocess.Popen(
                [*guard, "-n", "-c", str(self._files.supervisor)],
                cwd=sandbox_files.ROOT,
                env=_foreign_environment() | {"MINITRUE_CONFIG": str(self.config)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=complaints,
                start_new_session=True,
            )

    def _describe(self) -> None:
        running = {info["name"]: info["pid"] for info in self._ask("getAllProcessInfo")}
        self.workers = {name: {"pid": running[name]} for name in sandbox_files.WORKERS}
        for node, endpoint in self._files.endpoints.items():
            self.nodes[node] = {"pid": running[node], "endpoint": endpoint}

    @property
    def supervisord(self) -> "subprocess.Popen[bytes] | None":
        """The process of supervisord while the cluster runs."""
        return self._supervisord

    def close(self) -> None:
        """Stop every worker, then remove the directory where it is a temporary one. Twice is no error."""
        if self._supervisord is not None:
            self._end(self._supervisord)
            self._supervisord = None
            self._files.ports.release()
        if self._temporary and not self._keep and self.dir.exists():
            shutil.rmtree(self.dir)

    def _end(self, supervisord: "subprocess.Popen[bytes]") -> None:
        workers = self._open_workers()
        try:
            self._stop_all()
            supervisord.terminate()
            supervisord.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            supervisord.kill()
            supervisord.wait()
        for worker in workers:  # those that supervisord did not live to stop
            _kill_if_alive(worker)

    def _stop_all(self) -> None:
        """Signal all workers at once; on SIGTERM alone supervisord would stop one after the other."""
        try:
            self._ask("stopAllProcesses", False)
        except OSError:
            return  # supervisord is gone, or was never there

    def _open_workers(self) -> list[int]:
        """Descriptors of the workers' processes: unlike ids they cannot come to mean another process."""
        try:
            ids = [info["pid"] for info in self._ask("getAllProcessInfo") if info["pid"]]
        except OSError:  # supervisord is gone, or was never there
            ids = [each["pid"] for each in [*self.nodes.values(), *self.workers.values()]]
        return [descriptor for pid in ids if (descriptor := _open_process(pid)) is not None]


def _foreign_environment() -> dict[str, str]:
    """Our environment without the settings of whatever cluster the caller uses."""
    return {name: value for name, value in os.environ.items() if not name.startswith("MINITRUE_")}


def _is_working(bridge: dict[str, Any]) -> bool:
    """Whether a bridge is connected, has its subscriptions, and hears every node."""
    mqtt, owners = bridge["mqtt"], bridge["owners"].values()
    return mqtt["connected"] and None not in mqtt["subscriptions"].values() and all(owner["up"] for owner in owners)


def _tail(path: Path) -> str:
    lines = path.read_text(errors="replace").splitlines()
    return "\n".join(lines[-TAIL_LINES:])


def _open_process(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def _kill_if_alive(descriptor: int) -> None:
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    except ProcessLookupError:
        pass  # stopped cleanly: as it should be
    finally:
        os.close(descriptor)


# The command line


def _settings(_context: click.Context, _option: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    pairs = [text.partition("=") for text in given]
    for name, equals, _ in pairs:
        if not equals or "." not in name:
            raise click.BadParameter(f"{name!r}: want section.key=value")
    return {name: value for name, _, value in pairs}


@click.command(context_settings={"token_normalize_func": lambda name: name.replace("_", "-")})
@click.option("--nodes", type=click.IntRange(1, sandbox_files.MAX_NODES), help="Storage nodes [default: 3].")
@click.option("--replication", type=click.IntRange(1, 5), help="Owners of each partition [default: 1].")
@click.option(
    "--broker",
    type=click.Choice(["auto", "embedded", "mosquitto"]),
    help="MQTT broker to run [default: mosquitto where it is installed, else embedded].",
)
@click.option("--set", "settings", multiple=True, callback=_settings, help="section.key=value, any number of times.")
@click.option("--dir", "directory", type=click.Path(file_okay=False), help="Use and keep this directory.")
@click.option("--keep", is_flag=True, help="Keep the temporary directory.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def main(
    nodes: int | None,
    replication: int | None,
    broker: str | None,
    settings: dict[str, str],
    directory: str | None,
    keep: bool,
    command: tuple[str, ...],
) -> None:
    """Run a complete cluster in a directory of its own, until SIGINT or SIGTERM, or until COMMAND ends.

    Prints one JSON line when it is ready. COMMAND sees MINITRUE_HTTP, MINITRUE_MQTT and MINITRUE_CONFIG. A --dir
    of an earlier run is started again with its data.

    Exit codes: that of COMMAND; else 0 when asked to stop, 1 when the cluster does not start or does not last.
    """
    stop = Stop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    try:
        if command and shutil.which(command[0]) is None:  # told now, not after the start of a cluster
            raise SandboxError(f"cannot run {command[0]}: {os.strerror(errno.ENOENT)}")
        with Sandbox(nodes, replication, broker, settings, directory, keep, stop) as sandbox:
            print(json.dumps(sandbox.summary()), flush=True)
            code = _run(list(command), sandbox, stop) if command else _stay(sandbox, stop)
    except MinitrueError as error:
        print(f"sandbox: {error}", file=sys.stderr)
        sys.exit(1)
    sys.exit(code)


def _run(command: list[str], sandbox: Sandbox, stop: Stop) -> int:
    """COMMAND's exit code, as a shell gives it: 128 and more for a signal."""
    try:
        child = subprocess.Popen(command, env=sandbox.environment)
    except OSError as error:
        raise SandboxError(f"cannot run {command[0]}: {error.strerror}") from error
    _wait_for_end(child.pid, stop)
    if stop.is_set() and child.poll() is None:
        child.terminate()
    try:
        code = child.wait(COMMAND_DEADLINE_S if stop.is_set() else None)
    except subprocess.TimeoutExpired:
        child.kill()
        code = child.wait()
    return code if code >= 0 else 128 - code


def _stay(sandbox: Sandbox, stop: Stop) -> int:
    assert sandbox.supervisord is not None, "BUG: a sandbox that is ready runs"
    _wait_for_end(sandbox.supervisord.pid, stop)
    if stop.is_set():
        return 0
    raise SandboxError("supervisord ended on its own; --dir or --keep shows its log")


def _wait_for_end(pid: int, stop: Stop) -> None:
    """Wait until a child has ended or we are asked to stop."""
    ended = os.pidfd_open(pid)
    select.select([ended, stop.fileno()], [], [])
    os.close(ended)


if __name__ == "__main__":
    main()
