"""Pages of points against the oracle: order, paging, places to begin behind, and what a page costs."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

from common import clock, protocol
from common.errors import ProtocolError
from common.match import Match, Pattern, one
from common.points import PointBatch
from common.series import partition_of
from tests import naive
from tests.workers.storage.support import EVERYWHERE, PARTITIONS, batch_of, key, open_store
from tests.workers.storage.views import DEVICES, KEYS, Delete, Place, oracle_of, selection, view_of
from workers.storage import sampling
from workers.storage.sampling import MAX_ROWS, Ordered, Sampling, Span
from workers.storage.work import Cancel

EVERYTHING = Match()
Row = tuple[bytes, int, float]


def page(view: sampling.View, chosen: Sequence[int], span: Span, limit: int, after: tuple[bytes, int]) -> sampling.Page:
    made = sampling.Page(view, Ordered.of(selection(chosen)), span, limit, Cancel())
    made.fill(*after)
    return made


def rows_of(batch: PointBatch) -> list[Row]:
    keys = [batch.keys[at] for at in batch.index.tolist()]
    return list(zip(keys, batch.times.tolist(), batch.values.tolist(), strict=True))


def all_rows(view: sampling.View, chosen: Sequence[int], span: Span, limit: int) -> Iterator[list[Row]]:
    """Page after page, each behind the last row of the one before."""
    after, more = (b"", 0), True
    while more:
        made = page(view, chosen, span, limit, after)
        rows, more = rows_of(made.batch()), made.more
        assert not more or len(rows) == limit
        after = rows[-1][:2] if rows else after
        yield rows


def expected(oracle: naive.PointSet, chosen: Sequence[int], span: Span) -> list[Row]:
    named = sorted((KEYS[each], each) for each in chosen)
    return [(name, *row) for name, each in named for row in oracle.rows(each, span.start, span.end)]


def random_case(seed: int) -> tuple[list[Place], list[Delete], list[int], Span]:
    """Places that overlap or do not, deletes over some of them, a choice of series and a range."""
    rng = random.Random(seed)
    width = rng.choice([20, 200, 2000])
    places = []
    for number in range(rng.randint(1, 5)):
        begin = rng.randrange(width)
        rows = [
            (rng.randrange(len(DEVICES)), begin + rng.randrange(width), float(rng.randrange(5)))
            for _ in range(rng.randint(0, 150))
        ]
        places.append(Place(rows, number, rng.choice([0, 3, 16, 100])))
    deletes = [
        Delete(number, rng.choice([None, *range(len(DEVICES))]), begin, begin + rng.randrange(width))
        for number in sorted(rng.sample(range(1, 6), rng.randint(0, 2)))
        for begin in [rng.randrange(width)]
    ]
    chosen = rng.sample(range(len(DEVICES)), rng.randint(1, len(DEVICES)))
    begin = rng.choice([sampling.EARLIEST, rng.randrange(2 * width)])
    end = rng.choice([sampling.LATEST, begin + rng.randrange(2 * width) if begin > 0 else width])
    return places, deletes, chosen, Span(begin, end)


@pytest.mark.parametrize("seed", range(60))
def test_pages_are_the_points_in_order_of_key_and_time_whatever_lies_where(tmp_path: Path, seed: int) -> None:
    places, deletes, chosen, span = random_case(seed)
    view, want = view_of(tmp_path, places, deletes), expected(oracle_of(places, deletes), chosen, span)
    for limit in (1 + seed % 7, 50, 1000):
        assert [row for rows in all_rows(view, chosen, span, limit) for row in rows] == want, limit


def test_a_page_begins_behind_any_place_whether_a_point_or_a_series_is_there_or_not(tmp_path: Path) -> None:
    places = [Place([(each, time, 1.0) for each in (0, 2, 3) for time in (10, 20, 30)], 0, 2)]
    view, want = view_of(tmp_path, places), expected(oracle_of(places), [0, 2, 3], Span(0, 100))
    for after_key in (b"", b"\x00", KEYS[0], KEYS[1], KEYS[2], KEYS[3], KEYS[3] + b"z", b"\xff"):
        for after_ns in (sampling.EARLIEST, 9, 10, 15, 30, 100, sampling.LATEST):
            got = rows_of(page(view, [3, 0, 2], Span(0, 100), 50, (after_key, after_ns)).batch())
            assert got == [row for row in want if row[:2] > (after_key, after_ns)], (after_key, after_ns)


def test_more_is_false_exactly_when_nothing_follows_also_where_a_delete_hides_the_rest(tmp_path: Path) -> None:
    places = [Place([(0, time, 1.0) for time in range(10)], 0, 2)]
    whole = Span(sampling.EARLIEST, sampling.LATEST)
    view = view_of(tmp_path, places)
    assert [page(view, [0], whole, limit, (b"", 0)).more for limit in (9, 10, 11)] == [True, False, False]
    hidden = view_of(tmp_path, places, [Delete(1, 0, 5, 100)])
    assert [page(hidden, [0], whole, limit, (b"", 0)).more for limit in (4, 5, 6)] == [True, False, False]


def test_the_earliest_and_the_latest_time_that_there_are_can_be_paged_over(tmp_path: Path) -> None:
    edges = [sampling.EARLIEST, 0, sampling.LATEST]
    for block_rows in (0, 1):
        (tmp_path / str(block_rows)).mkdir()
        view = view_of(tmp_path / str(block_rows), [Place([(0, time, 1.0) for time in edges], 0, block_rows)])
        pages = list(all_rows(view, [0], Span(sampling.EARLIEST, sampling.LATEST), 1))
        assert [time for rows in pages for _, time, _ in rows] == edges


def test_pages_over_one_long_series_decode_each_block_but_for_the_seams_once(tmp_path: Path) -> None:
    blocks, block_rows, limit = 200, 50, 175
    view = view_of(tmp_path, [Place([(0, time, 1.0) for time in range(blocks * block_rows)], 0, block_rows)])
    after, more, decoded, pages = (b"", 0), True, 0, 0
    while more:
        made = page(view, [0], Span(0, sampling.LATEST), limit, after)
        after, more = rows_of(made.batch())[-1][:2], made.more
        decoded, pages = decoded + made.cost(0).blocks_decoded, pages + 1
        assert made.cost(0).blocks_decoded <= limit // block_rows + 2
        assert made.cost(0).bytes > 0
    assert decoded <= blocks + 2 * pages


def test_short_series_are_decoded_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(each, time, float(time)) for time in range(10) for each in range(len(DEVICES))]
    places = [Place(rows[::2], 0, 4), Place(rows[1::3], 0, 0), Place(rows[:9], 0, 3)]
    view, chosen = view_of(tmp_path, places), list(range(len(DEVICES)))
    want = expected(oracle_of(places), chosen, Span(2, 8))
    monkeypatch.setattr(sampling._Series, "pieces", lambda *arguments: pytest.fail("one by one"))
    made = page(view, chosen, Span(2, 8), 1000, (b"", 0))
    assert rows_of(made.batch()) == want and not made.more
    assert made.cost(0).rows_decoded >= len(want) / 2 and made.cost(0).bytes > 0


def test_a_page_of_long_heads_that_overlap_takes_of_each_no_more_than_it_can_need(tmp_path: Path) -> None:
    places = [Place([(0, time, float(at)) for time in range(at, 30_000, 3)]) for at in range(3)]
    view = view_of(tmp_path, places)
    joined: list[int] = []
    whole = sampling.Recent.rows

    def counted(self: sampling.Recent, *arguments: object) -> sampling.Rows:
        rows: sampling.Rows = whole(self, *arguments)  # type: ignore[arg-type]
        joined.append(len(rows[0]))
        return rows

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling.Recent, "rows", counted)
        made = page(view, [0], Span(0, sampling.LATEST), 100, (b"", 0))
    assert made.batch().times.tolist() == list(range(100))
    assert sum(joined) <= 4 * 101


# Through the store


def request(limit: int, after: tuple[bytes, int] = (b"", 0), **fields: object) -> protocol.SamplesRequest:
    settings: dict[str, object] = {"match": EVERYTHING, "start_ns": None, "end_ns": None} | fields
    return protocol.SamplesRequest(EVERYWHERE, after_key=after[0], after_ns=after[1], limit=limit, **settings)  # type: ignore[arg-type]


def test_a_store_answers_for_what_matches_in_the_partitions_asked(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    try:
        rows = [(key(device, metric), time, 1.0) for device in "abc" for metric in "mn" for time in (1, 2, 3)]
        store.append([batch_of(rows[::2])])
        store.seal()
        store.append([batch_of(rows[1::2])])
        samples = Sampling(store)
        wanted = Match((Pattern("glob", "?"),), (Pattern("is", "m"),))
        reply = samples.answer(request(7, match=wanted, start_ns=2), EVERYWHERE, Cancel())
        got = rows_of(PointBatch.decode(reply.batch))
        assert got == sorted(row for row in rows if row[0] in [key(each, "m") for each in "abc"] and row[1] >= 2)
        assert (reply.more, reply.partitions, reply.delete_number) == (False, EVERYWHERE, 0)
        places = {partition_of(key(each, "m"), PARTITIONS) for each in "abc"}
        assert (reply.catalog, reply.places) == (store.catalog_stamp, sorted(places))
        nowhere = bytes(len(EVERYWHERE))
        assert len(PointBatch.decode(samples.answer(request(7), nowhere, Cancel()).batch)) == 0
        store.append([batch_of([(key("d", "m"), 5, 1.0)])])  # a series that was not there when the order was kept
        reply = samples.answer(request(50, match=wanted), EVERYWHERE, Cancel())
        assert key("d", "m") in PointBatch.decode(reply.batch).keys
    finally:
        store.close()


def test_a_short_page_of_one_series_needs_no_change_of_thread(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    try:
        many = [(key("long", "m"), at, 1.0) for at in range(sampling.SHORT_ROWS + 1)]
        store.append([batch_of([(key(each, "m"), 1, 1.0) for each in "ab"]), batch_of(many)])
        samples, metric = Sampling(store), (Pattern("is", "m"),)
        one = request(10, match=Match((Pattern("is", "a"),), metric))
        assert samples.begin(one, EVERYWHERE).short
        reply = samples.begin(one, EVERYWHERE).run(Cancel())
        assert rows_of(PointBatch.decode(reply.batch)) == [(key("a", "m"), 1, 1.0)]
        assert samples.begin(one, EVERYWHERE).short
        assert samples.begin(msgspec.structs.replace(one, limit=sampling.SHORT_ROWS + 1), EVERYWHERE).short
        long = request(sampling.SHORT_ROWS, match=Match((Pattern("is", "long"),), metric))
        for _ in range(2):  # rows in a head, then blocks
            assert samples.begin(long, EVERYWHERE).short
            assert not samples.begin(msgspec.structs.replace(long, limit=sampling.SHORT_ROWS + 1), EVERYWHERE).short
            store.seal()
        for match in (Match((), metric), Match((Pattern("glob", "a*"),), metric)):
            assert not samples.begin(request(10, match=match), EVERYWHERE).short
    finally:
        store.close()


def test_a_page_for_which_many_blocks_have_to_be_joined_is_not_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "SHORT_OVERLAP", 25)
    store = open_store(tmp_path, compaction_share=0.001)
    try:
        samples, asked = Sampling(store), request(20, match=one("a", "m"))
        for turn, short in enumerate((True, True, False)):
            store.append([batch_of([(key("a", "m"), 3 * time + turn, 1.0) for time in range(10)])])
            store.seal()
            work = samples.begin(asked, EVERYWHERE)
            assert work.short == short
            assert len(PointBatch.decode(work.run(Cancel()).batch)) == min(10 * turn + 10, 20)
            assert samples.begin(asked, EVERYWHERE).short == short, "also when its order is known"
        assert samples.begin(request(20, match=one("b", "m")), EVERYWHERE).short
    finally:
        store.close()


@pytest.mark.parametrize("limit", [0, -1, MAX_ROWS + 1])
def test_a_limit_that_no_page_has_is_refused(tmp_path: Path, limit: int) -> None:
    store = open_store(tmp_path)
    try:
        with pytest.raises(ProtocolError, match=f"limit of {limit} rows, want 1 to {MAX_ROWS}"):
            Sampling(store).answer(request(limit), EVERYWHERE, Cancel())
    finally:
        store.close()


def test_points_behind_the_retention_are_not_there(tmp_path: Path) -> None:
    store = open_store(tmp_path, retention_days=1)
    try:
        now = clock.wall_ns()
        store.append([batch_of([(key("a"), now, 1.0)])])
        reply = Sampling(store).answer(request(10, start_ns=0), EVERYWHERE, Cancel())
        assert PointBatch.decode(reply.batch).times.tolist() == [now]
    finally:
        store.close()
