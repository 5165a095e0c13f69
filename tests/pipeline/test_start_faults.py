"""A storage node that cannot start says why in one line and exits with 1."""

import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from common.ring import Node
from common.ringbuild import first_ring
from common.ringstore import FileStore
from tests.support import ROOT, free_port_range


@pytest.fixture
def port() -> int:
    return free_port_range(3)


@pytest.fixture
def config(tmp_path: Path, port: int) -> Path:
    """A configuration file whose ring names one node, ing1."""
    nodes = [Node("ing1", "", f"tcp://127.0.0.1:{port}", "here", 1.0, "active")]
    FileStore(tmp_path / "ring.json").save(first_ring("mine", nodes, 64, 1), 0)
    file = tmp_path / "minitrue.toml"
    file.write_text('paths.data = "data"\ncluster.ring_store = "file:ring.json"\n')
    return file


def _fails(config: Path, *arguments: str) -> str:
    """The one line that a storage node says before it exits with 1."""
    command = [sys.executable, "-m", "workers.storage", "--config", str(config), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("minitrue ")]
    assert len(said) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return said[0]


def test_taken_port(config: Path, port: int) -> None:
    with socket.create_server(("127.0.0.1", port)):
        assert f"cannot bind tcp://127.0.0.1:{port}: Address already in use" in _fails(config, "--node-id", "ing1")


def test_data_directory_that_cannot_be_made(config: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = _fails(config, "--node-id", "ing1", "--data-dir", str(tmp_path / "file" / "data"))
    assert str(tmp_path / "file" / "data") in said


def test_node_that_the_ring_does_not_know(config: Path) -> None:
    assert "node 'ing7' is not in the ring of epoch 1" in _fails(config, "--node-id", "ing7")


def test_invalid_ring_file(config: Path, tmp_path: Path) -> None:
    (tmp_path / "ring.json").write_text('{"version": 1}')
    assert "ring.json" in _fails(config, "--node-id", "ing1")


def test_wrong_setting(config: Path) -> None:
    config.write_text(config.read_text() + "storage.head_row = 5\n")
    said = _fails(config, "--node-id", "ing1")
    assert "head_row" in said
    assert "head_rows" in said


def test_data_directory_of_another_node(config: Path, tmp_path: Path, port: int) -> None:
    other = tmp_path / "other"
    _make_store(other, "mine", "ing2")
    assert "ing2" in _fails(config, "--node-id", "ing1", "--data-dir", str(other))


def test_data_directory_of_another_cluster(config: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    _make_store(other, "yours", "ing1")
    assert "yours" in _fails(config, "--node-id", "ing1", "--data-dir", str(other))


def test_data_directory_in_use(config: Path, tmp_path: Path) -> None:
    from common import config as settings
    from workers.storage.store import Store

    store = Store.open(tmp_path / "held", "mine", "ing1", 64, settings.Storage())
    try:
        assert "in use" in _fails(config, "--node-id", "ing1", "--data-dir", str(tmp_path / "held"))
    finally:
        store.close()
        shutil.rmtree(tmp_path / "held")


def _make_store(directory: Path, cluster: str, node: str) -> None:
    from common import config as settings
    from workers.storage.store import Store

    Store.open(directory, cluster, node, 64, settings.Storage()).close()
