"""etcd as a process, of one member, with TLS and users where a test wants them."""

import os
import shutil
import signal
import ssl
import subprocess
import urllib.request
from pathlib import Path
from subprocess import Popen
from typing import Any

from common import config
from common.etcdstore import EtcdStore, open_etcd
from tests.support import Children, free_ports, require_part, wait_until

PREFIX = "minitrue/test"


class Etcd:
    """A member and its data directory; may be stopped, frozen, emptied and started again on its port."""

    process: Popen[Any]

    def __init__(self, children: Children, directory: Path, tls: tuple[Path, Path] | None = None) -> None:
        """tls: certificate, which is also the authority, and key; clients have to bear one of that authority."""
        self._program = require_part("etcd")
        self.port, self._peer_port = free_ports(2)
        self.data = directory / "etcd"
        self._tls = tls
        self._children = children
        self._arguments: list[str] = []
        self.start()

    @property
    def url(self) -> str:
        """As cluster.ring_store has it."""
        return f"etcd://127.0.0.1:{self.port}/{PREFIX}"

    def start(self, *arguments: str) -> None:
        """Start it on what its directory holds, and wait until it answers."""
        scheme = "https" if self._tls else "http"
        client, peer = f"{scheme}://127.0.0.1:{self.port}", f"http://127.0.0.1:{self._peer_port}"
        command = [self._program, "--name", "one", "--data-dir", str(self.data), "--log-level", "error"]
        command += ["--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer]
        command += ["--initial-advertise-peer-urls", peer, "--initial-cluster", f"one={peer}"]
        if self._tls:
            cert, key = map(str, self._tls)
            command += ["--cert-file", cert, "--key-file", key, "--trusted-ca-file", cert, "--client-cert-auth"]
        log = self.data.with_suffix(".log").open("ab")
        self.process = self._children.start(*command, *arguments, stdout=log, stderr=subprocess.STDOUT)
        log.close()
        wait_until(self.answers, what="etcd to answer")

    def answers(self) -> bool:
        """Whether it answers requests now."""
        assert self.process.poll() is None, f"etcd ended with {self.process.returncode}"
        context = ssl.create_default_context(cafile=self._tls[0]) if self._tls else None
        if context and self._tls:
            context.load_cert_chain(*self._tls)
        url = f"{'https' if context else 'http'}://127.0.0.1:{self.port}/health"
        try:
            with urllib.request.urlopen(url, timeout=5, context=context) as answer:
                return b'"true"' in answer.read()
        except OSError:
            return False

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait(20)

    def freeze(self) -> None:
        """Stop the process where it stands: it takes connections and requests, and answers none."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)

    def empty(self) -> None:
        """Lose all that it holds, and begin anew."""
        self.kill()
        shutil.rmtree(self.data)
        self.start()

    def snapshot(self, path: Path) -> None:
        """What it holds now."""
        self.ctl("snapshot", "save", str(path))

    def put_back(self, path: Path) -> None:
        """Go on from a snapshot, as after a disaster."""
        self.kill()
        shutil.rmtree(self.data)
        peer = f"http://127.0.0.1:{self._peer_port}"
        names = ["--name", "one", "--initial-cluster", f"one={peer}", "--initial-advertise-peer-urls", peer]
        self.ctl("snapshot", "restore", str(path), "--data-dir", str(self.data), *names)
        self.start()

    def ctl(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run etcdctl."""
        scheme = "https" if self._tls else "http"
        command = [require_part("etcdctl"), "--endpoints", f"{scheme}://127.0.0.1:{self.port}", *arguments]
        if self._tls:
            cert, key = map(str, self._tls)
            command += ["--cacert", cert, "--cert", cert, "--key", key]
        environment = os.environ | {"ETCDCTL_API": "3"}
        return subprocess.run(command, check=check, capture_output=True, text=True, timeout=30, env=environment)

    def store(self, settings: config.Cluster | None = None, url: str = "") -> EtcdStore:
        """The ring store in it. settings: those of etcd, whose paths are absolute."""
        return open_etcd(url or self.url, config.Settings(cluster=settings or config.Cluster()))
