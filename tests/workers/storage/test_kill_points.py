"""kill -9 at every step that a store takes on its disk: nothing acked is missing, nothing is double or half there."""

import subprocess
import sys
from pathlib import Path

from tests.support import Children

# Steps that a whole life must contain, so that it is known what was cut short.
NAMED = {
    "write NODE.tmp", "make_directory wal", "create wal", "write wal", "sync_data wal", "sync_directory wal",
    "create segment.tmp", "write segment.tmp", "sync segment.tmp", "rename segment.tmp", "sync_directory segments",
    "remove wal", "close wal", "create delete.tmp", "write delete.tmp", "sync delete.tmp", "rename delete.tmp",
    "sync_directory deletes", "remove segment",
}  # fmt: skip


def test_killed_at_any_step_of_its_life_a_store_has_all_that_was_acked(tmp_path: Path, children: Children) -> None:
    child = children.start(
        sys.executable, "-m", "tests.workers.storage.killed", tmp_path,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    steps, complaints = child.communicate()
    assert child.returncode == 0, complaints
    assert set(steps.splitlines()) >= NAMED
