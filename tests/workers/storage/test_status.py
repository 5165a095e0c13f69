"""What a store shows of itself: true, documented, and the same in status and metrics."""

import re
from pathlib import Path

import pytest

from common import clock, metrics
from common.selector import Selector
from tests.support import ROOT, wait_until
from tests.workers.storage.support import batch_of, key, open_store, rows_of
from workers.storage import status
from workers.storage.store import DeleteRecord, Store

OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
A, B = key("a"), key("b")


def shown() -> dict[str, float]:
    """The store's metrics without labels, by name."""
    found = metrics.snapshot()
    return {
        family.name.removeprefix("minitrue_storage_").removesuffix("_total"): sample[2]
        for family in found
        if family.name.startswith("minitrue_storage_")
        for sample in family.samples
        if not sample[1]
    }


def lived(directory: Path) -> Store:
    """A store that has sealed, compacted, deleted and refused."""
    store = open_store(directory, max_series=2)
    for begin in (0, 100):
        store.append([batch_of(rows_of(A, range(begin, begin + 100)) + rows_of(B, [begin]))])
        store.seal()
    store.compact()
    store.append([batch_of([*rows_of(A, [1000, 1001]), (key("c"), 1, 1.0)])])
    store.delete(DeleteRecord(3, Selector("b")))
    return store


def test_every_metric_of_storage_is_documented_and_every_documented_one_exists(tmp_path: Path) -> None:
    store = lived(tmp_path)
    store.export_metrics()
    names = {family.name for family in metrics.snapshot() if family.name.startswith("minitrue_storage_")}
    documented = set(re.findall(r"`(minitrue_storage_\w+)`", OPERATIONS))
    in_running = set(re.findall(r'"(minitrue_storage_\w+)"', (ROOT / "workers/storage/running.py").read_text()))
    assert names <= documented
    assert documented <= names | in_running
    assert in_running <= documented
    store.close()


def test_metrics_are_the_figures_of_the_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = lived(tmp_path)
    store.seal()
    now = [clock.monotonic_s()]
    monkeypatch.setattr(clock, "monotonic_s", lambda: now[0])
    store.export_metrics()
    figures, exported = store.status(), shown()
    moving = {"resident_bytes", "disk_free_bytes"}
    for name in status._METRICS.keys() - moving:
        assert exported[name] == figures[name], name
    assert exported["resident_bytes"] > 1 << 20
    store.close()


def test_status_counts_what_was_done(tmp_path: Path) -> None:
    store = lived(tmp_path)
    wait_until(lambda: store.status()["sealing_backlog"] == 0, what="the head frozen by the delete is sealed")
    figures = store.status()
    assert (figures["series"], figures["refused_rows"], figures["sealed_rows"]) == (2, 1, 204)
    assert (figures["deletes"], figures["delete_number"], figures["compactions"]) == (1, 3, 1)
    wanted = figures["wal_written_bytes"] + figures["sealed_bytes"] + figures["compacted_bytes"]
    assert figures["written_per_stored_byte"] == wanted / figures["sealed_bytes"]
    assert (figures["sealing_failure"], figures["compaction_failure"]) == (None, None)
    store.close()


def test_codecs_add_up_to_all_points_and_less_than_all_bytes(tmp_path: Path) -> None:
    store = lived(tmp_path)
    store.seal()
    figures = store.status()
    for part in ("times", "values"):
        shares = figures["codecs"][part].values()
        assert sum(share["points"] for share in shares) == figures["segment_points"]
        assert all(share["bytes_per_point"] == share["bytes"] / share["points"] for share in shares)
    size = sum(share["bytes"] for part in figures["codecs"].values() for share in part.values())
    assert 0 < size < figures["segment_bytes"]
    store.close()


def test_age_of_the_wal_is_that_of_the_oldest_row_in_no_segment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(clock, "monotonic_s", lambda: now[0])
    store = open_store(tmp_path)
    assert store.status()["wal_age_s"] == 0
    store.append([batch_of(rows_of(A, [1]))])
    now[0] += 7
    store.append([batch_of(rows_of(A, [2]))])
    assert store.status()["wal_age_s"] == 7
    store.seal()
    assert store.status()["wal_age_s"] == 0
    store.close()
