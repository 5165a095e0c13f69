"""What a verified read of real stores reads, without sockets."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec import structs

from common import match, protocol
from common.errors import ProtocolError
from common.points import PointBatch
from common.protocol import Cost
from tests.workers.query.fake import make_ring
from tests.workers.query.inside import Inside
from tests.workers.storage.support import EVERYWHERE, PARTITIONS, key, open_store
from workers.query import verified
from workers.query.plan import Plan
from workers.storage import groups, questions, verifying
from workers.storage.exchange import Exchange
from workers.storage.store import LoggedBatch, Store
from workers.storage.work import Cancel, CancelledError, Handler, Work

S_NS = 10**9
SERIES = 10_000
POINTS = 5
LIMITS = protocol.Limits(100_000, 1000, 10**9, 1000)
KEYS = [key(f"d{number}") for number in range(SERIES)]
ONE = protocol.AggregateRequest(EVERYWHERE, "d0", "temperature", None, None, None)
READING_ONE = protocol.VerifyRequest(
    EVERYWHERE, match.one("d0", "temperature", None), None, None, 0, False, LIMITS,
    protocol.AGGREGATE, protocol.encode_body(ONE),
)  # fmt: skip


class Owners:
    """Two nodes that own everything. spent: what their answers cost, and how long they were."""

    def __init__(self, stores: dict[str, Store]) -> None:
        self.spent, self.reply_bytes = Cost(), 0
        self._handlers = {
            node: questions.handlers(store, lambda asked: asked, aggregating(store)) for node, store in stores.items()
        }
        self._exchanges = {node: Exchange(store, lambda: EVERYWHERE) for node, store in stores.items()}

    def answer(self, node: str, kind: bytes, request: Any) -> Any:
        if kind == protocol.REPAIR:
            return protocol.JobsReply([])
        if kind == protocol.RANGE_DIGESTS:
            reply: Any = self._exchanges[node].range_digests(request)
        else:
            reply = self._handlers[node][kind].begin(request).run(Cancel())
        spent, more = self.spent, reply.cost
        self.spent = Cost(
            blocks_decoded=spent.blocks_decoded + more.blocks_decoded,
            rows_decoded=spent.rows_decoded + more.rows_decoded,
            bytes=spent.bytes + more.bytes,
        )
        self.reply_bytes += len(msgspec.msgpack.encode(reply))
        return reply


def aggregating(store: Store) -> Handler:
    def begin(asked: protocol.AggregateRequest) -> Work:
        plan = store.plan(
            asked.device_id, asked.metric_name, asked.tags, asked.partitions, asked.start_ns, asked.end_ns
        )
        return Work(lambda cancel: plan.run(store.pool.watching(cancel)), short=True)

    return Handler(protocol.AggregateRequest, begin)


def put(store: Store, rows: range, lacking: int | None = None) -> None:
    """Some points of all series, but for one row."""
    index = np.repeat(np.arange(SERIES, dtype=np.uint32), len(rows))
    times = np.tile(np.array(rows) * S_NS, SERIES)
    values = np.random.default_rng(rows.start).random(len(index)).round(3)
    keep = np.arange(len(index)) != lacking
    body = PointBatch(KEYS, index[keep], times[keep], values[keep]).encode()
    store.append([LoggedBatch(body, 1, PointBatch.decode(body))])
    store.seal()


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[dict[str, Store]]:
    made = {node: open_store(tmp_path / node, head_rows=1_000_000) for node in ("ing1", "ing2")}
    yield made
    for store in made.values():
        store.close()


def asked(stores: dict[str, Store]) -> tuple[Owners, dict[str, Any]]:
    owners = Owners(stores)
    inside = Inside(owners.answer)
    inside.scatter.plan = Plan.of(make_ring([10, 20], PARTITIONS, 2))
    body = {"device_id": "*", "metric_name": "*", "operation": ["sum", "count"], "consistency": "verified"}
    status, answer = inside.call("POST", "/query", body)
    assert (status, answer["coverage"]["verified"]) == (200, True), answer
    return owners, answer


def test_one_series_among_ten_thousand_that_differs_costs_under_a_percent_of_what_there_is(
    stores: dict[str, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verified, "SETTLE_S", 0.0)
    for node, store in stores.items():
        put(store, range(POINTS), lacking=5000 * POINTS + 3 if node == "ing2" else None)
    owners, answer = asked(stores)
    assert answer["coverage"]["compared"] == {"owners": 2, "series_joined": 1, "reason": ""}
    assert answer["result"]["count"] == SERIES * POINTS
    assert 0 < owners.spent.rows_decoded <= 2 * POINTS  # of the series itself, in either owner
    assert owners.spent.bytes < stores["ing1"].status()["segment_bytes"] / 100


def test_equal_owners_are_compared_by_summaries_and_tell_little(stores: dict[str, Store]) -> None:
    for store in stores.values():
        put(store, range(POINTS))
    owners, answer = asked(stores)
    assert answer["coverage"]["compared"] == {"owners": 2, "series_joined": 0, "reason": ""}
    assert (owners.spent.rows_decoded, owners.spent.blocks_decoded, owners.spent.bytes) == (0, 0, 0)
    assert owners.reply_bytes < 3000


def test_a_comparison_of_little_needs_no_change_of_thread_and_tells_the_same(stores: dict[str, Store]) -> None:
    store = stores["ing1"]
    put(store, range(POINTS))
    put(store, range(POINTS - 2, POINTS))  # overlaps: some of it has to be decoded
    for match_, is_short in ((match.one("d7", "temperature", None), True), (match.Match(), False)):
        for by_series in (False, True):
            asked_ = protocol.VerifyRequest(EVERYWHERE, match_, 1, None, 0, by_series, LIMITS)
            work = verifying.begin(store, asked_, EVERYWHERE)
            found, again = work.run(Cancel()), verifying.verify(store, asked_, EVERYWHERE, Cancel())
            assert work.short is is_short
            assert structs.replace(found, cost=Cost()) == structs.replace(again, cost=Cost())
            assert np.frombuffer(found.counts, "<i8").sum() == (POINTS - 1) * (1 if is_short else SERIES)


def test_a_comparison_of_one_long_stretch_to_decode_is_left_to_the_readers(stores: dict[str, Store]) -> None:
    store, rows = stores["ing1"], groups.SHORT_POINTS + 1
    for _ in range(2):  # twice the same: each block overlaps another
        body = PointBatch(KEYS[:1], np.zeros(rows, np.uint32), np.arange(rows) * S_NS, np.ones(rows)).encode()
        store.append([LoggedBatch(body, 1, PointBatch.decode(body))])
        store.seal()
    asked_ = protocol.VerifyRequest(EVERYWHERE, match.one("d0", "temperature", None), None, None, 0, False, LIMITS)
    work = verifying.begin(store, asked_, EVERYWHERE)
    assert work.short is False
    assert np.frombuffer(work.run(Cancel()).counts, "<i8").sum() == rows


def test_a_read_behind_a_comparison_begins_when_the_figures_are_known(stores: dict[str, Store]) -> None:
    store = stores["ing1"]
    put(store, range(POINTS))
    late = PointBatch(KEYS[:1], np.zeros(1, np.uint32), np.array([POINTS * S_NS]), np.ones(1)).encode()
    inner = aggregating(store)

    def begin(asked: protocol.AggregateRequest) -> Work:  # a point comes between
        store.append([LoggedBatch(late, 1, PointBatch.decode(late))])
        return inner.begin(asked)

    handlers = questions.handlers(store, lambda asked: asked, Handler(protocol.AggregateRequest, begin))
    work = handlers[protocol.VERIFY].begin(READING_ONE)
    found = work.run(Cancel())
    assert work.short is True
    assert np.frombuffer(found.counts, "<i8").sum() == POINTS
    assert protocol.decode_body(found.read, protocol.AggregateReply).count == POINTS + 1


def reading_groups(limits: protocol.Limits = LIMITS) -> tuple[protocol.GroupsRequest, protocol.VerifyRequest]:
    read = protocol.GroupsRequest(EVERYWHERE, match.Match(), None, None, [], [], ["count", "sum"], limits)
    body = protocol.encode_body(read)
    return read, protocol.VerifyRequest(
        EVERYWHERE, match.Match(), None, None, 0, False, LIMITS, protocol.GROUPS, body
    )


def test_a_read_of_groups_behind_a_comparison_tells_what_it_would_alone(
    stores: dict[str, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(questions, "READ_S", 60.0)
    store = stores["ing1"]
    put(store, range(POINTS))
    handlers = questions.handlers(store, lambda asked: asked, aggregating(store))
    read, asked_ = reading_groups()
    work = handlers[protocol.VERIFY].begin(asked_)
    behind = protocol.decode_body(work.run(Cancel()).read, protocol.GroupsReply)
    alone = handlers[protocol.GROUPS].begin(read).run(Cancel())
    assert work.short is False
    assert structs.replace(behind, cost=Cost()) == structs.replace(alone, cost=Cost())


@pytest.mark.parametrize(("read_s", "series"), [(-1.0, SERIES), (60.0, SERIES - 1)])
def test_a_read_that_takes_long_or_fails_leaves_the_figures_as_they_are(
    stores: dict[str, Store], monkeypatch: pytest.MonkeyPatch, read_s: float, series: int
) -> None:
    monkeypatch.setattr(questions, "READ_S", read_s)
    store = stores["ing1"]
    put(store, range(POINTS))
    handlers = questions.handlers(store, lambda asked: asked, aggregating(store))
    _, asked_ = reading_groups(structs.replace(LIMITS, series=series))
    found = handlers[protocol.VERIFY].begin(asked_).run(Cancel())
    assert (np.frombuffer(found.counts, "<i8").sum(), found.read) == (SERIES * POINTS, b"")


def test_a_read_that_nobody_waits_for_any_more_ends_with_its_comparison(stores: dict[str, Store]) -> None:
    store = stores["ing1"]
    put(store, range(POINTS))
    cancel = Cancel()

    def begin(asked: protocol.AggregateRequest) -> Work:
        cancel.set()
        return Work(lambda watched: watched.check(), short=True)

    handlers = questions.handlers(store, lambda asked: asked, Handler(protocol.AggregateRequest, begin))
    with pytest.raises(CancelledError):
        handlers[protocol.VERIFY].begin(READING_ONE).run(cancel)


def test_a_long_read_does_not_follow_a_short_comparison_into_the_server_thread(stores: dict[str, Store]) -> None:
    """In January and March there are blocks, in February as many rows in order in the head: its summary is its digest,
    but an aggregate has to look at the rows.
    """
    store, rows = stores["ing1"], 4000
    for begin in (0, 2 * rows, rows):
        body = PointBatch(KEYS[:1], np.zeros(rows, np.uint32), (begin + np.arange(rows)) * S_NS, np.ones(rows)).encode()
        store.append([LoggedBatch(body, 1, PointBatch.decode(body))])
        if begin != rows:
            store.seal()
    inner = aggregating(store)

    def aggregate(asked: protocol.AggregateRequest) -> Work:
        plan = store.plan(
            asked.device_id, asked.metric_name, asked.tags, asked.partitions, asked.start_ns, asked.end_ns
        )
        assert plan.rows_to_decode == rows
        return inner.begin(asked)._replace(short=False)

    handlers = questions.handlers(store, lambda asked: asked, Handler(protocol.AggregateRequest, aggregate))
    work = handlers[protocol.VERIFY].begin(READING_ONE)
    assert work.short is True
    found = work.run(Cancel())
    assert (np.frombuffer(found.counts, "<i8").sum(), found.read) == (3 * rows, b"")


@pytest.mark.parametrize(
    ("kind", "body", "said"),
    [(b"fetch", b"\x80", "fetch behind a comparison, want one of aggregate, groups"), (b"groups", b"\x80", "Groups")],
)
def test_what_cannot_be_read_behind_a_comparison_is_refused(
    stores: dict[str, Store], kind: bytes, body: bytes, said: str
) -> None:
    handlers = questions.handlers(stores["ing1"], lambda asked: asked, aggregating(stores["ing1"]))
    asked_ = protocol.VerifyRequest(EVERYWHERE, match.Match(), None, None, 0, False, LIMITS, kind, body)
    with pytest.raises(ProtocolError, match=said):
        handlers[protocol.VERIFY].begin(asked_)
