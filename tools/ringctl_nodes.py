"""The file of nodes that a new cluster begins with (conf/ring.toml), read and checked. Writes nothing."""

import difflib
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from common import config, ring
from common.errors import ConfigError, RingError
from common.ringbuild import first_ring


class NodeEntry(msgspec.Struct, frozen=True):
    """One [[nodes]] table."""

    id: str
    endpoint: str
    zone: str = "default"
    weight: float = 1.0


class RingFile(msgspec.Struct, frozen=True):
    """The whole file."""

    nodes: list[NodeEntry]
    replication: int = 1
    partitions: int = 1024


def new_ring(file: Path, cluster: str, leaves_loopback: bool = False) -> ring.Ring:
    """The first ring of a cluster of the file's nodes. leaves_loopback: whether nodes may be on other machines.

    Raises ConfigError: file, key, value, what is allowed.
    """
    wanted = read(file)
    nodes = [ring.Node(each.id, "", each.endpoint, each.zone, each.weight, ring.ACTIVE) for each in wanted.nodes]
    try:
        made = first_ring(cluster, nodes, wanted.partitions, wanted.replication)
    except RingError as error:
        raise ConfigError(f"{file}: {error}") from error
    for node in nodes if not leaves_loopback else ():
        config.require_loopback(node.endpoint, f"{file}: endpoint of {node.id}")
    return made


def read(file: Path) -> RingFile:
    """The file's content. Raises ConfigError for what is not TOML, unknown keys and wrong types."""
    try:
        tree = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot read the nodes: {error.strerror}") from error
    except ValueError as error:  # not TOML, or not UTF-8
        raise ConfigError(f"{file}: not a TOML file: {error}") from error
    _check_keys(file, "", tree, RingFile)
    nodes = tree.get("nodes")
    for at, entry in enumerate(nodes if isinstance(nodes, list) else []):
        _check_keys(file, f"nodes[{at}].", entry, NodeEntry)
    try:
        return msgspec.convert(tree, RingFile)
    except msgspec.ValidationError as error:
        _fail(file, str(error).replace("`$.", "`"))


def _check_keys(file: Path, where: str, table: Any, struct: type[msgspec.Struct]) -> None:
    if not isinstance(table, dict):
        return  # a wrong type, which the conversion names
    known = struct.__struct_fields__
    for key in table:
        if key not in known:
            _fail(file, f"{where}{key}: unknown key; {_nearest(key, known)}")


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), 1, 0.5)
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"


def _fail(file: Path, text: str) -> NoReturn:
    raise ConfigError(f"{file}: {text}")
