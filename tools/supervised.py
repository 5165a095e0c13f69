"""Programs of supervisord on this machine: the file for one more storage node, and supervisorctl.

Owns the files of conf.d beside supervisord.conf, one for each node that ringctl added. Never changes a file that it did
not write. Nodes of many clusters are called ing1, so `other_cluster` says whose program it is before one is ended.
"""

import configparser
import contextlib
import itertools
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from common import config
from common.errors import MinitrueError
from common.files import make_directory, remove_files, replace_file
from common.ring import PORTS, Ring
from common.ringstore import open_store

ROOT: Final = Path(__file__).resolve().parent.parent
FOLDER: Final = "conf.d"
FIRST_PORT: Final = 5710  # as in conf/ring.toml
PORT_STEP: Final = 10
_WRITTEN: Final = "; Written by ringctl "  # begins the files that are ours
WITHIN_S: Final = 60.0  # supervisorctl stop waits for the program, 30 s at most


class SupervisorError(MinitrueError):
    """supervisord that cannot be asked, or does not do what it was asked."""


class Supervisor:
    """supervisord by its configuration file."""

    def __init__(self, file: Path) -> None:
        """Raises SupervisorError where there is no such file."""
        self.file = file.resolve()
        if not self.file.is_file():
            raise SupervisorError(f"no {self.file}: name supervisord's file with --supervisor")
        self.folder = self.file.parent / FOLDER

    def check_ready(self) -> None:
        """Whether supervisord answers, and reads files in conf.d. Raises SupervisorError."""
        parser = configparser.RawConfigParser(inline_comment_prefixes=(";",), strict=False)
        parser.read(self.file, encoding="utf-8")
        if f"{FOLDER}/*.conf" not in parser.get("include", "files", fallback=""):
            raise SupervisorError(
                f"{self.file} does not read {FOLDER}/*.conf: add the lines [include] and files = {FOLDER}/*.conf"
            )
        self.control("status")

    def check_free(self, node: str, settings: config.Settings) -> None:
        """Whether a program of this name may be started for this cluster. Raises SupervisorError."""
        file = self.path(node)
        if file.exists() and not file.read_text("utf-8", "replace").startswith(_WRITTEN):
            raise SupervisorError(f"{file} is there, and ringctl did not write it: move it away, or choose another id")
        other = self.other_cluster(node, settings) if self.has(node) else ""
        if other:
            raise SupervisorError(
                f"the program {node} of {self.file} is another cluster's ({other}): choose another id, or name this "
                "cluster's supervisord with --supervisor"
            )

    def path(self, node: str) -> Path:
        """The file of an added node."""
        return self.folder / f"{node}.conf"

    def add(self, node: str, settings: config.Settings) -> str:
        """Start the program of a node: that of supervisord's own file, else one that is written. Says where it is.

        The same again changes nothing. Raises SupervisorError.
        """
        if not self.path(node).exists() and (name := self._name(node)):
            if not self._is_up(node):
                self.control("start", name)
            return f"{name} of {self.file}"
        logs = ROOT / "data" / "log" if self.file.parent == ROOT else self.file.parent / "data" / "log"
        make_directory(logs)
        make_directory(self.folder)
        replace_file(self.path(node), [program(node, logs, settings.file).encode()])
        self.control("reread")
        self.control("update", node)
        if not self._is_up(node):
            self.control("start", node)
        return str(self.path(node))

    def end(self, node: str) -> bool:
        """Stop the program of a node, and forget it where `add` wrote it. Whether it is forgotten."""
        ours = self.path(node).exists()
        name = node if ours else self._name(node)
        if name:
            self.control("stop", name)
        if ours:
            remove_files([self.path(node)])
            self.control("reread")
            self.control("update", node)
        return ours

    def has(self, node: str) -> bool:
        """Whether there is a program of a node. Raises SupervisorError."""
        return self.path(node).exists() or bool(self.state(node))

    def other_cluster(self, node: str, settings: config.Settings) -> str:
        """What the program of a node has for a ring store, where that is not the one of these settings; "" where it is.

        Raises SupervisorError where that cannot be told.
        """
        try:
            its = self._settings(node)
        except (MinitrueError, OSError, ValueError, configparser.Error) as error:
            raise SupervisorError(f"cannot tell of which cluster the program {node} is: {error}") from error
        if _is_same(its, settings):
            return ""
        return f"its settings are {its.file}, its ring store {_store(its)}, and that of this cluster {_store(settings)}"

    def _settings(self, node: str) -> config.Settings:
        """The settings that the program of a node runs with; of one that does not run, would run with."""
        running = re.search(r"\bpid (\d+)", self.state(node))
        if running:
            process = Path("/proc") / running[1]
            words = (process / "cmdline").read_text("utf-8", "surrogateescape").split("\0")
            return _settings(words, (process / "cwd").readlink(), _environment(process))
        parser = configparser.RawConfigParser(inline_comment_prefixes=(";",), strict=False)
        parser.read([self.file, self.path(node)], encoding="utf-8")

        def value(key: str) -> str:
            text = parser.get(f"program:{node}", key, fallback="")
            return text.replace("%(here)s", str(self.file.parent)).replace("%%", "%")

        inherited = _environment(Path("/proc") / self.control("pid").strip())
        pairs = shlex.shlex(value("environment"), posix=True)
        pairs.whitespace, pairs.whitespace_split, pairs.commenters = ", \n", True, ""
        own = (pair.partition("=") for pair in pairs)
        folder = Path(value("directory") or self.file.parent)
        return _settings(shlex.split(value("command")), folder, inherited | {name: text for name, _, text in own})

    def state(self, node: str) -> str:
        """What supervisorctl says of a program, "" where there is none."""
        return next((line for line in self._lines() if line.split()[0].split(":")[-1] == node), "")

    def _is_up(self, node: str) -> bool:
        state = self.state(node).split()[1:2]
        return state in (["RUNNING"], ["STARTING"])

    def _name(self, node: str) -> str:
        """The full name of a node's program, with its group."""
        line = self.state(node)
        return line.split()[0] if line else ""

    def _lines(self) -> list[str]:
        lines = self.control("status").splitlines()
        return [line for line in lines if len(line.split()) > 1 and line.split()[1].isupper()]

    def control(self, *words: str) -> str:
        """What supervisorctl answers. Raises SupervisorError where supervisord does not answer, or refuses."""
        beside = Path(sys.executable).with_name("supervisorctl")
        program = str(beside) if beside.exists() else shutil.which("supervisorctl")
        if program is None:
            raise SupervisorError("no supervisorctl on this machine: make env")
        command = [program, "-c", str(self.file), *words]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=WITHIN_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise SupervisorError(f"supervisorctl {' '.join(words)}: {error}") from error
        said = (done.stdout + done.stderr).strip()
        if "refused connection" in said or "no such file" in said or (done.returncode not in (0, 3) or "ERROR" in said):
            raise SupervisorError(f"supervisorctl -c {self.file} {' '.join(words)}: {said.splitlines()[0]}")
        return done.stdout


def program_name(node: str, file: Path = ROOT / "supervisord.conf") -> str:
    """What supervisorctl calls the program of a node, by its file alone: with its group, if it has one."""
    parser = configparser.RawConfigParser(inline_comment_prefixes=(";",), strict=False)
    with contextlib.suppress(configparser.Error, OSError, ValueError):
        parser.read(file, encoding="utf-8")
    for section in parser.sections():
        members = parser.get(section, "programs", fallback="").split(",")
        if section.startswith("group:") and node in [each.strip() for each in members]:
            return f"{section.removeprefix('group:')}:{node}"
    return node


def program(node: str, logs: Path, settings: str) -> str:
    """The section of a storage node, as supervisord.conf has those that come with the project."""
    lines = [
        f"{_WRITTEN}add {node}; ringctl remove {node} takes it away.",
        f"[program:{node}]",
        f'command="{_escaped(sys.executable)}" -m workers.storage --node-id {node}',
        f"directory={_escaped(ROOT)}",
        f'environment=MINITRUE_CONFIG="{_escaped(settings)}"',
        "priority=20",
        "startsecs=5",
        "startretries=5",
        "autorestart=unexpected",
        "exitcodes=78",
        "stopwaitsecs=30",
        "killasgroup=true",
        f"stdout_logfile={_escaped(logs / f'{node}.log')}",
        "stdout_logfile_maxbytes=10MB",
        "stdout_logfile_backups=5",
        "redirect_stderr=true",
    ]
    return "\n".join(lines) + "\n"


def _settings(words: Sequence[str], folder: Path, environment: Mapping[str, str]) -> config.Settings:
    """The settings of a worker by its command line, working directory and environment."""
    given = [after for word, after in itertools.pairwise(words) if word == "--config"]
    given += [word.removeprefix("--config=") for word in words if word.startswith("--config=")]
    file = next(iter(given), "") or environment.get(config.ENV_FILE) or "conf/minitrue.toml"
    return config.load(folder / file, environment)


def _environment(process: Path) -> dict[str, str]:
    pairs = (each.partition(b"=") for each in (process / "environ").read_bytes().split(b"\0"))
    return {os.fsdecode(name): os.fsdecode(text) for name, _, text in pairs if name}


def _is_same(one: config.Settings, other: config.Settings) -> bool:
    """Whether settings name the same ring store, which is what makes a cluster one."""
    parts = [config.etcd_parts(each.cluster.ring_store) for each in (one, other)]
    if parts[0] is None or parts[1] is None:
        return _store(one) == _store(other)
    return parts[0][1] == parts[1][1] and not set(parts[0][0]).isdisjoint(parts[1][0])


def _store(settings: config.Settings) -> str:
    """The ring store, with its whole path."""
    url = settings.cluster.ring_store
    return url if config.etcd_parts(url) else open_store(url, settings).url


def free_endpoint(ring: Ring) -> str:
    """Three free ports of the loopback interface, behind those of the ring's nodes here. Raises SupervisorError."""
    taken = {port for node in ring.nodes if is_here(node.endpoint) for port in _ports(node.endpoint)}
    begin = max([FIRST_PORT - PORT_STEP, *(port - PORTS + 1 for port in taken)]) + PORT_STEP
    for first in (*range(begin, 65536 - PORTS, PORT_STEP), *range(1024, begin, PORT_STEP)):
        wanted = range(first, first + PORTS)
        if taken.isdisjoint(wanted) and _are_free(wanted):
            return f"tcp://127.0.0.1:{first}"
    raise SupervisorError(f"no {PORTS} consecutive free ports: name some with --endpoint")


def is_here(endpoint: str) -> bool:
    """Whether an endpoint is on this machine's loopback interface."""
    return config.is_loopback(urlsplit(endpoint).hostname or "")


def _ports(endpoint: str) -> range:
    first = urlsplit(endpoint).port or 0
    return range(first, first + PORTS)


def _are_free(ports: Sequence[int]) -> bool:
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that linger do no harm
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return False
    return True


def _escaped(path: Path | str) -> str:
    return str(path).replace("%", "%%")  # supervisord expands %(name)s
