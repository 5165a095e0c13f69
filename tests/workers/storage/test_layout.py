"""A data directory is refused when it is not this node's, in use, or of a newer format; each time in one line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import StorageError
from tests.support import Children
from tests.workers.storage.support import batch_of, key, open_store, rows_of
from workers.storage import layout


def node_file(directory: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((directory / "NODE").read_text())
    return found


def test_new_directory_gets_an_identity_that_stays(tmp_path: Path) -> None:
    store = open_store(tmp_path / "deep" / "s")
    store.close()
    first = node_file(tmp_path / "deep" / "s")
    assert (first["format"], first["cluster"], first["node"]) == (1, "cluster", "ing1")
    again = open_store(tmp_path / "deep" / "s")
    assert again.status()["store_id"] == first["store_id"]
    again.close()
    assert node_file(tmp_path / "deep" / "s") == first


def test_two_directories_have_different_store_ids(tmp_path: Path) -> None:
    for name in ("s", "t"):
        open_store(tmp_path / name).close()
    assert node_file(tmp_path / "s")["store_id"] != node_file(tmp_path / "t")["store_id"]


def test_directory_of_another_node_is_refused(tmp_path: Path) -> None:
    open_store(tmp_path).close()
    with pytest.raises(StorageError, match="belongs to node 'ing1', this is node 'ing2'"):
        open_store(tmp_path, node="ing2")
    open_store(tmp_path).close()


def test_directory_of_another_cluster_is_refused(tmp_path: Path) -> None:
    open_store(tmp_path).close()
    with pytest.raises(StorageError, match="belongs to cluster 'cluster', this is cluster 'other'"):
        layout.open_directory(tmp_path, "other", "ing1")


def test_directory_with_other_things_in_it_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(StorageError, match=r"has no NODE file and is not empty \(holds photo.jpg\)"):
        open_store(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def test_fresh_mount_point_counts_as_empty(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    open_store(tmp_path).close()


def test_directory_in_use_by_another_process_is_refused_until_that_ends(tmp_path: Path, children: Children) -> None:
    command = (
        "from pathlib import Path; from tests.workers.storage.support import open_store; import sys;"
        f"store = open_store(Path({str(tmp_path / 's')!r})); print('open', flush=True); sys.stdin.read()"
    )
    child = children.start(sys.executable, "-c", command, stdout=subprocess.PIPE, stdin=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == "open\n"
    with pytest.raises(StorageError, match="is in use by another process"):
        open_store(tmp_path / "s")
    child.kill()
    child.wait()
    open_store(tmp_path / "s").close()


def test_newer_format_of_the_identity_is_refused_with_both_versions(tmp_path: Path) -> None:
    open_store(tmp_path).close()
    (tmp_path / "NODE").write_text(json.dumps(node_file(tmp_path) | {"format": 2}))
    with pytest.raises(StorageError, match="NODE has format version 2, this program reads up to 1"):
        open_store(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": 1, "cluster": "cluster", "node": "ing1"}', "\x00"])
def test_identity_that_cannot_be_read_is_refused(tmp_path: Path, text: str) -> None:
    open_store(tmp_path).close()
    (tmp_path / "NODE").write_text(text)
    with pytest.raises(StorageError, match="NODE: "):
        open_store(tmp_path)


def test_path_that_cannot_be_a_directory_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"data directory .*/file/s cannot be used: File exists \(.*/file\)"):
        open_store(tmp_path / "file" / "s")


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b'{"file": "\xff"}', b"[" * 5000])
def test_note_that_cannot_be_read_is_reported_by_its_name(tmp_path: Path, text: bytes) -> None:
    open_store(tmp_path).close()
    (tmp_path / "damaged" / "wal-1.json").write_bytes(text)
    store = open_store(tmp_path)
    (note,) = store.status()["damaged"]
    assert note["file"] == "wal-1.json"
    assert note["reason"].startswith("note cannot be read: ")
    store.close()


def test_failed_open_lets_the_directory_go(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s")
    store.append([batch_of(rows_of(key("a"), [1]))])
    store.close()
    (path,) = (tmp_path / "s" / "wal").iterdir()
    path.rename(path.with_name("moved"))
    path.mkdir()
    with pytest.raises(StorageError, match="cannot be used"):
        open_store(tmp_path / "s")
    path.rmdir()
    path.with_name("moved").rename(path)
    again = open_store(tmp_path / "s")
    assert again.status()["points"] == 1
    again.close()
