"""What only root may do to a machine, for tests of faults that nothing stands in for: a file system that is full, and
hosts between which packets are lost.

Where the machine does not permit it the test is skipped, and a warning says so. What is made is taken away again.
"""

import itertools
import os
import shutil
import subprocess
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest

from common import bus
from tests.cluster import StorageNode
from tests.ringed import RingCluster
from tests.support import Children

_NOWHERE: Final = "02:00:00:00:00:01"  # a hardware address that nobody has
_count = itertools.count()


def _root(*command: str) -> None:
    """Run a command that takes root. Where that fails the test is skipped."""
    program = shutil.which(command[0], path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    said = f"{command[0]} is not installed"
    if program is not None:
        done = subprocess.run([program, *command[1:]], capture_output=True, text=True, check=False, timeout=30)
        if done.returncode == 0:
            return
        said = f"{' '.join(command)}: {done.stderr.strip()}"
    warnings.warn(f"this test did not run, it takes root: {said}", stacklevel=2)
    pytest.skip(said)


# A file system


class SmallDisk:
    """A file system of a directory; it may be filled to its last byte."""

    def __init__(self, directory: Path) -> None:
        self._filler = directory / "filler"

    def fill(self) -> None:
        """Leave no room."""
        with self._filler.open("ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(1 << 16))

    def make_room(self) -> None:
        self._filler.unlink()


@contextmanager
def small_disk(directory: Path, size_bytes: int) -> Iterator[SmallDisk]:
    """A file system of its own in a directory, while within. Whoever uses it has to have ended by then."""
    directory.mkdir(parents=True)
    _root("mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=700", "tmpfs", str(directory))
    try:
        yield SmallDisk(directory)
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True, timeout=30)


# A network


class Lan:
    """A network of hosts, each a network namespace with an address of its own; this process is on it, too."""

    def __init__(self, hosts: Sequence[str]) -> None:
        self._name = f"mt{os.getpid()}x{next(_count)}"
        self._net = f"10.{os.getpid() % 256}.{os.getpid() // 256 % 256}"
        self.address = f"{self._net}.254"
        self._hosts = {host: (f"{self._name}{at}", f"{self._net}.{at}") for at, host in enumerate(hosts, 1)}

    def address_of(self, host: str) -> str:
        return self._hosts[host][1]

    def within(self, host: str) -> list[str]:
        """What makes a command run at a host, put before it."""
        return ["ip", "netns", "exec", self._hosts[host][0]]

    def cut(self, one: str, other: str) -> None:
        """Lose every packet between two hosts from now on; neither of them is told."""
        self._between("replace", one, other, "lladdr", _NOWHERE, "nud", "permanent")

    def heal(self, one: str, other: str) -> None:
        """Let packets between the two pass again."""
        self._between("del", one, other)

    def _between(self, verb: str, one: str, other: str, *how: str) -> None:
        for here, there in ((one, other), (other, one)):
            command = ["ip", "-n", self._hosts[here][0], "neigh", verb, self.address_of(there), *how, "dev", "eth0"]
            subprocess.run(command, check=True, timeout=30)

    def make(self) -> None:
        _root("ip", "link", "add", self._name, "type", "bridge")
        _root("ip", "address", "add", f"{self.address}/24", "dev", self._name)
        _root("ip", "link", "set", self._name, "up")
        for space, address in self._hosts.values():
            _root("ip", "netns", "add", space)
            _root("ip", "link", "add", space, "type", "veth", "peer", "name", "eth0", "netns", space)
            _root("ip", "link", "set", space, "master", self._name, "up")
            _root("ip", "-n", space, "address", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _root("ip", "-n", space, "link", "set", device, "up")

    def remove(self) -> None:
        """Take away what there is of it."""
        for space, _ in self._hosts.values():
            subprocess.run(["ip", "netns", "delete", space], capture_output=True, check=False, timeout=30)
            subprocess.run(["ip", "link", "delete", space], capture_output=True, check=False, timeout=30)
        subprocess.run(["ip", "link", "delete", self._name], capture_output=True, check=False, timeout=30)


@contextmanager
def lan(*hosts: str) -> Iterator[Lan]:
    """A network of these hosts, while within."""
    made = Lan(hosts)
    try:
        made.make()
        yield made
    finally:
        made.remove()


class LanCluster(RingCluster):
    """A cluster whose storage nodes are hosts of a network, everything else is here. The bus has a key."""

    def __init__(self, children: Children, home: Path, network: Lan, **more: Any) -> None:
        self.network = network
        home.mkdir(parents=True)
        bus.make_key(home / "bus.key")
        super().__init__(children, home, settings={"bus.key_file": "bus.key"}, **more)
        for bridge in self.bridges.values():
            endpoint = f"tcp://{network.address}:{bridge.port}"
            bridge.configure({"bridge.ack_endpoint": endpoint, "bridge.ack_advertised": endpoint})

    def make_node(self, name: str) -> StorageNode:
        return _Host(self, name, {})


class _Host(StorageNode):
    """A node on a host of its own, with no proxy before it."""

    def __init__(self, cluster: LanCluster, name: str, settings: Mapping[str, Any]) -> None:
        super().__init__(cluster, name, settings)
        address = cluster.network.address_of(name)
        self.endpoint, self.request_endpoint = f"tcp://{address}:5710", f"tcp://{address}:5711"
        self._command = ["workers.storage", "--node-id", name]
        self._within = cluster.network.within(name)
