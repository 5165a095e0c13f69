"""A real process, killed with -9 while it appends and seals: what it acked is there, once."""

import random
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from tests.support import Children
from tests.workers.storage.endless_append import ROWS
from tests.workers.storage.support import EVERYWHERE, open_store


def acked_by(stream: IO[str] | None, until: int) -> list[int]:
    """The numbers printed, up to the one called `until`."""
    assert stream is not None
    numbers = []
    for line in stream:
        numbers.append(int(line))
        if numbers[-1] >= until:
            break
    return numbers


def rest_of(stream: IO[str] | None) -> list[int]:
    """What was printed before the kill; the last line may be torn."""
    assert stream is not None
    return [int(line) for line in stream if line.endswith("\n")]


@pytest.mark.parametrize("head_rows", [1000, 1_000_000], ids=["sealing all the time", "head only"])
def test_killed_again_and_again_while_appending_loses_and_doubles_nothing(
    tmp_path: Path, children: Children, head_rows: int
) -> None:
    chance = random.Random(head_rows)
    acked = -1
    for _ in range(5):
        child = children.start(
            sys.executable, "-m", "tests.workers.storage.endless_append",
            tmp_path / "s", str(acked + 1), str(head_rows), stdout=subprocess.PIPE,
        )  # fmt: skip
        seen = acked_by(child.stdout, acked + chance.randint(20, 150))
        child.kill()
        acked = (seen + rest_of(child.stdout))[-1]
        child.wait()
        check(tmp_path / "s", acked, head_rows)


def check(directory: Path, acked: int, head_rows: int) -> None:
    """All acked batches are there. One more may be: logged, and killed before the ack."""
    store = open_store(directory, head_rows=head_rows)
    assert store.status()["damaged"] == []
    for device in range(5):
        upto = (acked + 1) * ROWS - 1
        reply = store.aggregate(f"d{device}", "temperature", None, EVERYWHERE, None, upto)
        assert (reply.count, reply.first_time) == ((acked + 1) * ROWS // 5, device)
        assert reply.sum_hi + reply.sum_lo == sum(range(acked + 1)) * ROWS // 5
        beyond = store.aggregate(f"d{device}", "temperature", None, EVERYWHERE, upto + 1, None)
        assert beyond.count in (0, ROWS // 5)
    store.close()
