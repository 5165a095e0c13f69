"""What a store answers, what the answer costs, and that readers and writer do not disturb one another."""

import math
import threading
from pathlib import Path

import numpy as np
import pytest

from common import clock, files, metrics, protocol, series
from common.errors import ProtocolError, StorageError
from common.points import PointBatch
from tests import naive
from tests.workers.storage.support import (
    EVERYWHERE,
    PARTITIONS,
    assert_answers,
    batch_of,
    key,
    open_store,
    rows_of,
)
from workers.storage import sealer
from workers.storage.segment import BLOCK_ROWS
from workers.storage.store import LoggedBatch, Store


def ask(store: Store, start: int | None = None, end: int | None = None, device: str = "a") -> protocol.AggregateReply:
    return store.aggregate(device, "temperature", None, EVERYWHERE, start, end)


def cost(reply: protocol.AggregateReply) -> tuple[int, int]:
    return reply.blocks_summarized, reply.blocks_decoded


def test_unknown_series_has_no_points(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    reply = ask(store)
    assert (reply.series, reply.count, reply.sum_hi, reply.min, reply.first_time) == (0, 0, 0.0, 0.0, 0)
    assert reply.partitions == EVERYWHERE
    store.close()


def test_whole_range_costs_summaries_and_an_inner_range_its_edges(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    oracle = naive.PointSet()
    for segment in range(3):
        begin = segment * 5 * BLOCK_ROWS
        times = np.arange(begin, begin + 5 * BLOCK_ROWS)
        values = np.sin(times)
        body = PointBatch([key("a")], np.zeros(len(times), np.uint32), times, values).encode()
        store.append([LoggedBatch(body, 1, PointBatch.decode(body))])
        for time, value in zip(times.tolist(), values.tolist(), strict=True):
            oracle.add(key("a"), time, value)
        if segment < 2:
            store.seal()
    assert cost(assert_answers(store, oracle, "a")) == (11, 0)
    assert cost(assert_answers(store, oracle, "a", None, 10, 9 * BLOCK_ROWS + 10)) == (8, 2)
    assert cost(assert_answers(store, oracle, "a", None, BLOCK_ROWS, 3 * BLOCK_ROWS - 1)) == (2, 0)
    reply = assert_answers(store, oracle, "a", None, 5, 7)
    assert cost(reply) == (0, 1)
    assert reply.rows_decoded == BLOCK_ROWS
    store.close()


def test_late_point_in_the_head_costs_one_block(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.append([batch_of(rows_of(key("a"), range(10 * BLOCK_ROWS)))])
    store.seal()
    store.append([batch_of(rows_of(key("a"), [10 * BLOCK_ROWS + 5, 3 * BLOCK_ROWS + 7], 2.0))])
    reply = ask(store)
    assert cost(reply) == (9, 1)
    assert (reply.count, reply.sum_hi) == (10 * BLOCK_ROWS + 1, 10.0 * BLOCK_ROWS + 3)
    store.seal()
    reply = ask(store)
    assert (reply.count, reply.sum_hi) == (10 * BLOCK_ROWS + 1, 10.0 * BLOCK_ROWS + 3)
    assert cost(reply) == (10, 2)
    store.close()


def test_plan_tells_beforehand_what_must_be_decoded(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.append([batch_of(rows_of(key("a"), range(3 * BLOCK_ROWS)))])
    store.seal()
    whole = store.plan("a", "temperature", None, EVERYWHERE, None, None)
    edges = store.plan("a", "temperature", None, EVERYWHERE, 5, 3 * BLOCK_ROWS - 5)
    assert (whole.rows_to_decode, edges.rows_to_decode) == (0, 2 * BLOCK_ROWS)
    assert edges.run().count == 3 * BLOCK_ROWS - 9
    store.close()


def test_plan_counts_the_blocks_that_recent_rows_may_reach(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.append([batch_of(rows_of(key("a"), range(0, 40 * BLOCK_ROWS, 10)))])
    store.seal()
    for late in (5, 3 * 10 * BLOCK_ROWS + 5):  # a row in the first block; then the head reaches over all four
        store.append([batch_of(rows_of(key("a"), [late]))])
        plan = store.plan("a", "temperature", None, EVERYWHERE, None, None)
        reply = store.aggregate("a", "temperature", None, EVERYWHERE, None, None)
        assert plan.rows_to_decode == (BLOCK_ROWS + 1 if late == 5 else 4 * BLOCK_ROWS + 2)
        assert plan.rows_to_decode >= reply.rows_decoded >= BLOCK_ROWS
    edge = store.plan("a", "temperature", None, EVERYWHERE, None, 7)
    assert edge.rows_to_decode == BLOCK_ROWS + 2
    assert edge.run().rows_decoded == BLOCK_ROWS
    store.close()


def test_same_batch_again_changes_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    batch = batch_of(rows_of(key("a"), range(100)))
    for _ in range(3):
        store.append([batch, batch])
        assert (ask(store).count, ask(store).sum_hi) == (100, 100.0)
        store.seal()
    assert (ask(store).count, ask(store).sum_hi) == (100, 100.0)
    store.close()


@pytest.mark.parametrize("order", [(0.0, -0.0), (-0.0, 0.0), (-2.0, -1.0), (1.0, -5.0), (5e-324, 0.0)])
@pytest.mark.parametrize("sealed", [False, True])
def test_of_two_values_for_one_timestamp_the_larger_stays(
    tmp_path: Path, order: tuple[float, float], sealed: bool
) -> None:
    oracle = naive.PointSet()
    store = open_store(tmp_path)
    for value in order:
        store.append([batch_of([(key("a"), 5, value)])])
        oracle.add(key("a"), 5, value)
        if sealed:
            store.seal()
    assert_answers(store, oracle, "a")
    store.close()


def test_sums_are_exact_where_plain_addition_is_not(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    values = [1e16, 1.0, -1e16, 1.0] * 1000
    store.append([batch_of([(key("a"), at, value) for at, value in enumerate(values)])])
    assert ask(store).sum_hi == 2000.0
    store.seal()
    assert ask(store).sum_hi == 2000.0
    assert ask(store, 1, 3998).sum_hi == 1999.0 - 1e16
    store.close()


@pytest.mark.parametrize("sealed", [False, True])
def test_sum_beyond_float64_is_not_finite_and_spoils_no_other_figure(tmp_path: Path, sealed: bool) -> None:
    store = open_store(tmp_path)
    store.append([batch_of([(key("a"), 1, 1.7e308), (key("a"), 2, 1.6e308)])])
    if sealed:
        store.seal()
    reply = ask(store)
    assert not math.isfinite(reply.sum_hi)
    assert (reply.count, reply.min, reply.max, reply.first, reply.last_time) == (2, 1.6e308, 1.7e308, 1.7e308, 2)
    assert ask(store, 2, 2).sum_hi == 1.6e308
    store.close()


def test_only_series_of_the_partitions_asked_are_counted(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    keys = [key("a", room=str(room)) for room in range(40)]
    store.append([batch_of([(each, 1, 1.0) for each in keys])])
    for partition in range(PARTITIONS):
        bits = protocol.bitmap([partition], PARTITIONS)
        mine = sorted(each for each in keys if series.partition_of(each, PARTITIONS) == partition)
        assert store.aggregate("a", "temperature", None, bits, None, None).series == len(mine)
        assert store.series(b"", 100, None, None, bits) == (mine, False)
    want = [series.partition_of(each, PARTITIONS) for each in [*keys, key("new")]]
    assert store.partitions_of([*keys, key("new")]).tolist() == want
    with pytest.raises(ProtocolError, match="bitmap of 1 bytes, want 2"):
        store.aggregate("a", "temperature", None, b"\xff", None, None)
    store.close()


def test_series_are_paged(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    keys = sorted(key(f"d{number}") for number in range(10))
    store.append([batch_of([(each, 1, 1.0) for each in keys])])
    assert store.series(b"", 10, None, None, EVERYWHERE) == (keys, False)
    assert store.series(b"", 4, None, None, EVERYWHERE) == (keys[:4], True)
    assert store.series(keys[3], 6, None, None, EVERYWHERE) == (keys[4:], False)
    assert store.series(b"", 0, None, None, EVERYWHERE) == ([], True)
    assert store.series(b"", 9, "d3", None, EVERYWHERE) == ([key("d3")], False)
    store.close()


def test_bad_key_stores_nothing_of_the_group(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with pytest.raises(ProtocolError, match="series key"):
        store.append([batch_of(rows_of(key("a"), [1])), batch_of([(b"not a key", 1, 1.0)])])
    assert (store.status()["series"], store.status()["wal_files"]) == (0, 0)
    with pytest.raises(ProtocolError, match="series key"):
        store.partitions_of([b"not a key"])
    store.close()


def test_group_larger_than_a_head_is_taken(tmp_path: Path) -> None:
    store = open_store(tmp_path, head_rows=1000)
    for first in (0, 5000, 10000):
        store.append([batch_of(rows_of(key("a"), range(first, first + 2500))) for first in (first, first + 2500)])
    assert ask(store).count == 15_000
    store.close()
    store = open_store(tmp_path, head_rows=1000)
    assert ask(store).count == 15_000
    store.close()


@pytest.mark.parametrize(
    ("keys", "index", "text"),
    [([key("x"), key("y")], [1], "no row for 1 of its 2 keys"), ([key("x")], [], "no row for 1 of its 1 keys")],
)
def test_batch_with_a_key_without_rows_is_refused(keys: list[bytes], index: list[int], text: str) -> None:
    rows = len(index)
    body = PointBatch(keys, np.array(index, np.uint32), np.zeros(rows, np.int64), np.zeros(rows)).encode()
    with pytest.raises(ProtocolError, match=text):
        PointBatch.decode(body)


def test_series_without_rows_in_a_segment_has_no_points_there(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    batch = PointBatch([key("x"), key("y")], np.array([1], np.uint32), np.array([5]), np.array([1.0]))
    store.append([LoggedBatch(batch.encode(), 1, batch)])
    store.seal()
    assert [ask(store, device=device).count for device in ("x", "y")] == [0, 1]
    store.close()


def test_empty_batches_are_no_work(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.append([batch_of([])])
    store.append([])
    assert store.status()["fsyncs"] == 0
    store.close()


def test_head_is_sealed_when_it_is_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1000.0
    monkeypatch.setattr(clock, "monotonic_s", lambda: now_s)
    store = open_store(tmp_path, seal_interval_s=60.0)
    store.tick()
    store.append([batch_of(rows_of(key("a"), [1]))])
    now_s = 1059.0
    store.append([batch_of(rows_of(key("a"), [2]))])
    store.tick()
    assert store.status()["head_rows"] == 2
    now_s = 1060.0
    store.tick()
    store.seal()
    assert (store.status()["head_rows"], store.status()["segment_points"]) == (0, 2)
    now_s = 2000.0
    store.tick()
    store.seal()
    assert store.status()["segments"] == 1
    store.close()


def test_writer_waits_while_too_many_heads_are_frozen(tmp_path: Path) -> None:
    store = open_store(tmp_path, head_rows=1000)
    gate = hold_sealing(store)
    for group in range(sealer.BACKLOG + 1):
        store.append([batch_of(rows_of(key("a"), range(group * 1000, (group + 1) * 1000)))])
    assert store.status()["sealing_backlog"] == sealer.BACKLOG
    store.tick()
    writer = threading.Thread(target=store.append, args=([batch_of(rows_of(key("a"), [-1]))],))
    writer.start()
    writer.join(0.2)
    assert writer.is_alive()
    assert ask(store).count == 1000 * (sealer.BACKLOG + 1)
    gate.set()
    writer.join(20)
    assert not writer.is_alive()
    assert ask(store).count == 1000 * (sealer.BACKLOG + 1) + 1
    store.close()


def hold_sealing(store: Store) -> threading.Event:
    """Keep frozen heads frozen until the event is set."""
    gate = threading.Event()
    seal = store._sealer._seal

    def wait_first(frozen: sealer.Frozen) -> None:
        gate.wait()
        seal(frozen)

    store._sealer._seal = wait_first
    return gate


def test_frozen_heads_that_overlap_are_joined(tmp_path: Path) -> None:
    store = open_store(tmp_path, head_rows=1000)
    gate = hold_sealing(store)
    oracle = naive.PointSet()
    for step in (1, 2, 3):
        rows = [(key("a"), time * step, float(time)) for time in range(1000)]
        store.append([batch_of(rows)])
        for each, time, value in rows:
            oracle.add(each, time, value)
    assert store.status()["sealing_backlog"] == 2
    for bounds in ((None, None), (10, 2000), (999, 999), (2500, None)):
        assert_answers(store, oracle, "a", None, *bounds)
    gate.set()
    store.close()


@pytest.mark.parametrize("late", [False, True])
def test_readers_see_every_acked_point_once_while_the_writer_goes_on(tmp_path: Path, late: bool) -> None:
    """Points are their own numbers: with n points the sum must be n (n - 1) / 2, whatever moves where meanwhile."""
    store = open_store(tmp_path, head_rows=4000)
    acked = 0
    stop = threading.Event()
    wrong: list[str] = []

    def read() -> None:
        while not stop.is_set():
            before = acked
            reply = ask(store)
            if reply.count < before or reply.sum_hi != reply.count * (reply.count - 1) / 2:
                wrong.append(f"{reply} after {before}")

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for group in range(120):
        rows = [(key("a"), number, float(number)) for number in range(group * 300, (group + 1) * 300)]
        again = [(key("a"), 0, 0.0), (key("a"), max(0, group * 300 - 700), float(max(0, group * 300 - 700)))]
        store.append([batch_of(rows + again if late else rows)])
        acked = (group + 1) * 300
    stop.set()
    for reader in readers:
        reader.join()
    assert wrong == []
    assert ask(store).count == acked
    store.close()


def test_status_and_metrics_speak_of_the_same_store(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.append([batch_of(rows_of(key("a"), range(10)))])
    store.seal()
    store.append([batch_of(rows_of(key("b"), range(5)))])
    status = store.status()
    assert (status["points"], status["segment_points"], status["head_rows"], status["series"]) == (15, 10, 5, 2)
    assert (status["segments"], status["wal_files"], status["fsyncs"], status["sealing_backlog"]) == (1, 1, 2, 0)
    sizes = {path.parent.name: path.stat().st_size for path in tmp_path.rglob("*-*")}
    assert (status["segment_bytes"], status["wal_bytes"]) == (sizes["segments"], sizes["wal"])
    assert status["bytes_per_point"] == status["segment_bytes"] / 10
    store.export_metrics()
    shown = {family.name: family for family in metrics.snapshot()}
    assert shown["minitrue_storage_points"].samples[0][2] == 15
    assert shown["minitrue_storage_fsyncs_total"].samples[0][2] == 2
    assert shown["minitrue_storage_damaged"].samples[0][2] == 0
    store.close()


def test_closed_store_is_opened_without_sealing(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.append([batch_of(rows_of(key("a"), range(10)))])
    store.close()
    assert list((tmp_path / "segments").iterdir()) == []
    store = open_store(tmp_path)
    assert (store.status()["replayed_rows"], ask(store).count) == (10, 10)
    store.close()


def test_error_of_the_disk_names_the_directory(tmp_path: Path) -> None:
    class NoDisk(files.Disk):
        broken = False

        def create(self, path: Path, mode: int = 0o644, exclusive: bool = False) -> int:
            if self.broken:
                raise OSError(30, "Read-only file system")
            return super().create(path, mode, exclusive)

    disk = NoDisk()
    store = open_store(tmp_path / "s", disk)
    disk.broken = True
    with pytest.raises(StorageError, match=f"WAL in {tmp_path}/s: Read-only file system"):
        store.append([batch_of(rows_of(key("a"), [1]))])
    store.close()
