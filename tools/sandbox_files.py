"""What a sandbox's directory holds, and the ports that it takes.

    conf/minitrue.toml   all settings         conf/ring.toml   the nodes it began with
    supervisord.conf     its workers          supervisor.sock  the socket of supervisord
    data/                everything that the workers write, logs in data/log

Owns the writing of these files and the claim on ports. Starts nothing.
"""

import dataclasses
import json
import random
import socket
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from common import config, ringstore
from common.errors import ConfigError, MinitrueError
from common.files import make_directory, replace_file
from common.ring import PORTS, Ring

ROOT: Final = Path(__file__).resolve().parent.parent
WORKERS: Final = ("broker", "bridge", "query")
SOCKET_PATH_BYTES: Final = 107  # what a Unix socket's address can hold
PID_BYTES: Final = len(".4194304")  # supervisord makes its socket under a name with its process id first

# Ports lie below those that the kernel gives to outgoing connections, in blocks. A block is claimed by a name
# that two processes cannot both hold, so sandboxes that start at the same time never take the same ports.
FIRST_PORT: Final = 10240
BLOCK_PORTS: Final = 64
BLOCKS: Final = (32768 - FIRST_PORT) // BLOCK_PORTS
MAX_NODES: Final = (BLOCK_PORTS - 2) // PORTS


class SandboxError(MinitrueError):
    """A sandbox that cannot be made, started or asked."""


class PortBlock:
    """Ports of the loopback interface, claimed until `release` or the end of the process."""

    def __init__(self, number: int) -> None:
        """Raises OSError where another sandbox holds the block or something listens on one of its ports."""
        self.first = FIRST_PORT + number * BLOCK_PORTS
        self._claim = socket.socket(socket.AF_UNIX)
        try:
            self._claim.bind(f"\0minitrue-ports-{self.first}")
            for port in range(self.first, self.first + BLOCK_PORTS):
                _probe(port)
        except OSError:
            self._claim.close()
            raise

    @classmethod
    def find(cls) -> "PortBlock":
        """A block that is free now."""
        for number in random.sample(range(BLOCKS), BLOCKS):
            try:
                return cls(number)
            except OSError:
                continue  # taken: the next one
        raise SandboxError(f"no {BLOCK_PORTS} consecutive free ports from {FIRST_PORT} upwards")

    @classmethod
    def again(cls, first: int) -> "PortBlock":
        """The block that began at a port, or another one where that is taken by now."""
        number, rest = divmod(first - FIRST_PORT, BLOCK_PORTS)
        if rest == 0 and 0 <= number < BLOCKS:
            try:
                return cls(number)
            except OSError:
                pass  # taken: any other will do
        return cls.find()

    def release(self) -> None:
        """Let others take the ports."""
        self._claim.close()


def _probe(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that linger do no harm
        probe.bind(("127.0.0.1", port))


@dataclass(frozen=True)
class Wanted:
    """What the caller of a sandbox asks for; None: as it was in the directory, else the default."""

    nodes: int | None = None
    replication: int | None = None
    broker: str | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Files:
    """A sandbox's directory, ready to be started. Constant after construction.

    endpoints: node id to its endpoint in the ring.
    """

    directory: Path
    settings: config.Settings
    endpoints: dict[str, str]
    ports: PortBlock

    @property
    def config(self) -> Path:
        """The configuration file."""
        return self.directory / "conf" / "minitrue.toml"

    @property
    def supervisor(self) -> Path:
        """supervisord's configuration file."""
        return self.directory / "supervisord.conf"

    @property
    def socket(self) -> Path:
        """supervisord's socket."""
        return self.directory / "supervisor.sock"

    @property
    def logs(self) -> Path:
        """The folder of the logs."""
        return self.directory / "data" / "log"

    @property
    def programs(self) -> list[str]:
        """The workers, by the name of their program."""
        return [*WORKERS, *self.endpoints]


def temporary_directory() -> Path:
    """A new directory with a short name, under the system's folder for temporary files."""
    return Path(tempfile.mkdtemp(prefix="minitrue-"))


def prepare(directory: Path, wanted: Wanted) -> Files:
    """Write the files of a new sandbox, or bring those of an earlier one up to date.

    Raises SandboxError or ConfigError where what is wanted cannot be had.
    """
    if len(str(directory / "supervisor.sock").encode()) + PID_BYTES > SOCKET_PATH_BYTES:
        raise SandboxError(f"{directory} is too long a path for a Unix socket in it; name a shorter one")
    for folder in ("conf", "data/log"):
        make_directory(directory / folder)
    earlier = (directory / "conf" / "ring.toml").exists()
    return _reopen(directory, wanted) if earlier else _create(directory, wanted)


def _create(directory: Path, wanted: Wanted) -> Files:
    count = 3 if wanted.nodes is None else wanted.nodes
    if not 1 <= count <= MAX_NODES:
        raise SandboxError(f"nodes must number 1 to {MAX_NODES} (were {count})")
    ports = PortBlock.find()
    endpoints = _endpoints([f"ing{number}" for number in range(1, count + 1)], ports)
    (directory / "conf" / "minitrue.toml").touch()
    settings = _write_settings(directory, ports, {"cluster.ring_poll_s": 0.2}, wanted)
    replication = 1 if wanted.replication is None else wanted.replication
    replace_file(directory / "conf" / "ring.toml", [ring_toml(endpoints, replication).encode()])
    return _write_supervisor(Files(directory, settings, endpoints, ports))


def _reopen(directory: Path, wanted: Wanted) -> Files:
    before = config.load(directory / "conf" / "minitrue.toml", {})
    ports = PortBlock.again(before.query.port)
    settings = _write_settings(directory, ports, {}, wanted)
    store = ringstore.open_store(settings.cluster.ring_store, settings)
    ring = store.load()
    if ring is None:
        raise SandboxError(f"{directory} holds the files of a sandbox but no ring: it never started; remove it")
    for name, now, asked in (
        ("nodes", len(ring.nodes), wanted.nodes),
        ("replication", ring.replication, wanted.replication),
    ):
        if asked not in (None, now):
            raise SandboxError(f"{directory} has a cluster of {name} {now}, not {asked}")
    endpoints = _endpoints([node.id for node in ring.nodes], ports)
    if endpoints != {node.id: node.endpoint for node in ring.nodes}:
        store.save(_moved(ring, endpoints), ring.epoch)
    return _write_supervisor(Files(directory, settings, endpoints, ports))


def _endpoints(nodes: Iterable[str], ports: PortBlock) -> dict[str, str]:
    return {node: f"tcp://127.0.0.1:{ports.first + 2 + PORTS * at}" for at, node in enumerate(nodes)}


def _moved(ring: Ring, endpoints: Mapping[str, str]) -> Ring:
    nodes = tuple(msgspec.structs.replace(node, endpoint=endpoints[node.id]) for node in ring.nodes)
    return dataclasses.replace(ring, epoch=ring.epoch + 1, nodes=nodes)


def _write_settings(
    directory: Path, ports: PortBlock, first: Mapping[str, Any], wanted: Wanted
) -> config.Settings:
    """Settings as they are in the file, then ours, then the caller's; written back whole."""
    ours: dict[str, Any] = {"query.port": ports.first, "mqtt.url": f"mqtt://127.0.0.1:{ports.first + 1}"}
    if wanted.broker is not None:
        ours["mqtt.broker"] = wanted.broker
    changes = {**first, **ours, **wanted.settings}
    file = directory / "conf" / "minitrue.toml"
    settings = config.load(file, dict(_variable(name, value) for name, value in changes.items()))
    replace_file(file, [settings_toml(settings).encode()])
    return settings


def _variable(name: str, value: Any) -> tuple[str, str]:
    section, dot, key = name.partition(".")
    if not dot:
        raise ConfigError(f"setting {name!r}: want section.key")
    return f"{config.ENV_PREFIX}{section}__{key}".upper(), value if isinstance(value, str) else toml_value(value)


def settings_toml(settings: config.Settings) -> str:
    """The settings as a configuration file."""
    lines: list[str] = []
    for section, values in msgspec.to_builtins(settings).items():
        if isinstance(values, dict):
            lines += [f"[{section}]", *(f"{key} = {toml_value(value)}" for key, value in values.items()), ""]
    return "\n".join(lines)


def toml_value(value: Any) -> str:
    """A value as TOML has it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml_value(key)} = {toml_value(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def ring_toml(endpoints: Mapping[str, str], replication: int) -> str:
    """The nodes that a new cluster begins with, as conf/ring.toml has them."""
    lines = [f"replication = {replication}"]
    for node, endpoint in endpoints.items():
        lines += ["", "[[nodes]]", f"id = {toml_value(node)}", f"endpoint = {toml_value(endpoint)}"]
    return "\n".join(lines) + "\n"


def _write_supervisor(files: Files) -> Files:
    replace_file(files.supervisor, ["\n".join(_supervisor_lines(files)).encode() + b"\n"])
    return files


def _supervisor_lines(files: Files) -> Iterator[str]:
    here = _escaped(files.directory)
    yield from ("[supervisord]", "nodaemon=true", f"logfile={here}/data/log/supervisord.log")
    yield from (f"pidfile={here}/supervisord.pid", f"childlogdir={here}/data/log")
    yield from ("[unix_http_server]", f"file={here}/supervisor.sock", "chmod=0700")
    yield from ("[supervisorctl]", f"serverurl=unix://{here}/supervisor.sock")
    yield "[rpcinterface:supervisor]"
    yield "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface"
    yield from ("[include]", "files=conf.d/*.conf")  # of nodes that ringctl adds
    yield from program_lines(files, "ring")
    for program in files.programs:
        yield from program_lines(files, program)


def program_lines(files: Files, program: str) -> Iterator[str]:
    """The section of one program in supervisord's configuration.

    startretries: tests kill workers again and again, also in the first second of their lives.
    """
    log = _escaped(files.logs / f"{program}.log")
    yield from (f"[program:{program}]", f"command={_command(files, program)}", f"directory={_escaped(ROOT)}")
    yield from (f"stdout_logfile={log}", "stdout_logfile_maxbytes=50MB", "redirect_stderr=true")
    if program == "ring":
        yield from ("priority=1", "startsecs=0", "autorestart=false")
    else:
        yield from ("startsecs=1", "startretries=1000", "autorestart=true", "stopwaitsecs=20", "killasgroup=true")


def _command(files: Files, program: str) -> str:
    python = f'"{_escaped(sys.executable)}" -m'
    if program == "ring":
        return f"{python} tools.ringctl_app init --if-missing"
    if program in files.endpoints:
        return f"{python} workers.storage --node-id {program}"
    return f"{python} workers.{program}"


def _escaped(path: Path | str) -> str:
    return str(path).replace("%", "%%")  # supervisord expands %(name)s


def mqtt_address(settings: config.Settings) -> str:
    """The broker's URL with host and port."""
    url = urlsplit(settings.mqtt.url)
    return f"{url.scheme}://{url.hostname}:{url.port}"
