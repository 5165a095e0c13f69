"""What a node asks to get every row that a peer holds, against a peer and a node that are lists of rows."""

import functools
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import protocol, series
from common.protocol import Range
from workers.storage import converge
from workers.storage.converge import Ask, Converge, ConvergeError, Fetch, Fetched, Flush, Pause, Taken, Tally

PARTITIONS = 4
KEYS = sorted((series.series_key(f"d{number}", "m") for number in range(8)), key=series.series_hash)
COST = protocol.Cost()
Place = tuple[bytes, int]
hash_of = functools.lru_cache(maxsize=None)(series.series_hash)
Bits = int  # a value, as what decides which of two wins: the larger one
Rows = dict[Place, Bits]


def digest_of(rows: Iterable[tuple[Place, Bits]]) -> int:
    return sum(hash((place, bits)) for place, bits in rows) % 2**64


def whole(start_ns: int | None, end_ns: int | None) -> Callable[[int], bool]:
    return lambda time: (start_ns is None or time >= start_ns) and (end_ns is None or time <= end_ns)


class Memory:
    """A store that is a list of rows and answers as a node does. fetch_rows: in one reply to a fetch."""

    def __init__(self, rows: Rows, cutoff_ns: int = -(2**63), fetch_rows: int = 3) -> None:
        self.rows = dict(rows)
        self.cutoff_ns = cutoff_ns
        self.fetch_rows = fetch_rows
        self.asked: list[Any] = []
        self.moved = 0  # rows handed over

    def join(self, rows: Iterable[tuple[Place, Bits]]) -> int:
        """Take rows in, as far as they are lacking: how many that were."""
        lacking = [(place, bits) for place, bits in rows if place not in self.rows or self.rows[place] < bits]
        self.rows |= dict(lacking)
        return len(lacking)

    def take(self, rows: Iterable[tuple[Place, Bits]]) -> Taken:
        """What was lacking of rows, which are here now."""
        before = dict(self.rows)
        count = self.join(rows)
        changed = {place for place, bits in self.rows.items() if before.get(place) != bits}
        return Taken(count, 0, frozenset(series.partition_of(key, PARTITIONS) for key, _ in changed))

    def answer(self, body: Any) -> Any:
        self.asked.append(body)
        answers: dict[str, Callable[[Any], Any]] = {
            "DigestsRequest": self._digests,
            "SeriesDigestsRequest": self._series,
            "RangeDigestsRequest": self._ranges,
            "FetchRequest": self._fetch,
            "FetchPartitionRequest": self._fetch_partition,
        }
        return answers[type(body).__name__](body)

    def _within(self, start_ns: int | None, end_ns: int | None, key: bytes | None = None) -> list[tuple[Place, Bits]]:
        inside = whole(start_ns, end_ns)
        return sorted(
            (
                row
                for row in self.rows.items()
                if inside(row[0][1]) and row[0][1] >= self.cutoff_ns and key in (None, row[0][0])
            ),
            key=lambda row: (hash_of(row[0][0]), row[0]),
        )

    def _digests(self, body: protocol.DigestsRequest) -> protocol.DigestsReply:
        found: dict[int, list[tuple[Place, Bits]]] = {each: [] for each in protocol.members(body.partitions)}
        for row in self._within(body.start_ns, body.end_ns):
            found.get(series.partition_of(row[0][0], PARTITIONS), []).append(row)
        columns = _columns(found.values())
        return protocol.DigestsReply(body.partitions, body.delete_number, self.cutoff_ns, *columns, COST)

    def _series(self, body: protocol.SeriesDigestsRequest) -> protocol.SeriesDigestsReply:
        after = (-1, b"") if not body.after else (hash_of(body.after), body.after)
        found = {
            key: rows
            for key in KEYS
            if series.partition_of(key, PARTITIONS) in protocol.members(body.partitions)
            and (hash_of(key), key) > after
            and (rows := self._within(body.start_ns, body.end_ns, key))
        }
        page = dict(list(found.items())[: body.limit])
        low, high = (_packed("q", [rows[at][0][1] for rows in page.values()]) for at in (0, -1))
        return protocol.SeriesDigestsReply(
            body.delete_number, self.cutoff_ns, list(page), *_columns(page.values()), low, high,
            len(page) < len(found), COST,
        )  # fmt: skip

    def _ranges(self, body: protocol.RangeDigestsRequest) -> protocol.RangeDigestsReply:
        columns = _columns([self._within(each.start_ns, each.end_ns, each.key) for each in body.ranges])
        return protocol.RangeDigestsReply(body.delete_number, self.cutoff_ns, *columns, COST)

    def _fetch(self, body: protocol.FetchRequest) -> tuple[protocol.FetchReply, list[tuple[Place, Bits]]]:
        found = [
            (at, row)
            for at, each in enumerate(body.ranges)
            if at >= body.item
            for row in self._within(each.start_ns, each.end_ns, each.key)
            if at > body.item or body.from_ns is None or row[0][1] >= body.from_ns
        ]
        if len(found) <= self.fetch_rows:
            return self._handed([row for _, row in found])
        item, row = found[self.fetch_rows]
        return self._handed([row for _, row in found[: self.fetch_rows]], next_item=item, next_ns=row[0][1])

    def _fetch_partition(
        self, body: protocol.FetchPartitionRequest
    ) -> tuple[protocol.FetchReply, list[tuple[Place, Bits]]]:
        begin = (hash_of(body.key), body.key, -(2**63) if body.from_ns is None else body.from_ns)
        found = [
            row
            for row in self._within(body.start_ns, body.end_ns)
            if series.partition_of(row[0][0], PARTITIONS) in protocol.members(body.partitions)
            and (not body.key or (hash_of(row[0][0]), *row[0]) >= begin)
        ]
        if len(found) <= self.fetch_rows:
            return self._handed(found)
        key, time = found[self.fetch_rows][0]
        return self._handed(found[: self.fetch_rows], next_key=key, next_ns=time)

    def _handed(self, rows: list[tuple[Place, Bits]], **then: Any) -> tuple[protocol.FetchReply, list[Any]]:
        self.moved += len(rows)
        reply = protocol.FetchReply(0, self.cutoff_ns, bytes(16), [], b"", len(rows), bool(then), COST, **then)
        return reply, rows


def _packed(code: str, numbers: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(numbers)}{code}", *numbers)


def _columns(rows: Iterable[list[tuple[Place, Bits]]]) -> tuple[bytes, bytes]:
    found = list(rows)
    return _packed("q", list(map(len, found))), _packed("Q", list(map(digest_of, found)))


def drive(
    job: Converge, theirs: Memory, ours: Memory, before_step: Callable[[int], None] = lambda _: None,
    at_pause: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    """Carry a job out to its end. before_step: called with the number of each step."""
    steps = job.run()
    result: Any = None
    number = 0
    fetched: list[tuple[Place, Bits]] = []
    while True:
        try:
            step = steps.send(result)
        except StopIteration:
            return
        before_step(number)
        number += 1
        assert number < 100_000, "goes on for ever"
        if isinstance(step, Pause):
            result = at_pause()
            continue
        if isinstance(step, Ask):
            result = theirs.answer(step.body), ours.answer(step.body)
            continue
        if isinstance(step, Fetch):
            reply, rows = theirs.answer(step.body)
            fetched += rows
        taken = Taken()
        if isinstance(step, Flush) or len(fetched) > 5:
            taken, fetched = ours.take(fetched), []
        result = Fetched(reply, len(rows), taken) if isinstance(step, Fetch) else taken


def converged(theirs: Memory, ours: Memory, **options: Any) -> Tally:
    """What a job over all partitions finds."""
    tally = Tally()
    drive(Converge(range(PARTITIONS), PARTITIONS, 0, tally, **options), theirs, ours)
    return tally


def joined(*parts: Rows) -> Rows:
    all_rows: Rows = {}
    for part in parts:
        for place, bits in part.items():
            all_rows[place] = max(bits, all_rows.get(place, bits))
    return all_rows


TIMES = st.integers(-(2**63), 2**63 - 1) | st.integers(0, 60)
ROWS = st.dictionaries(st.tuples(st.sampled_from(KEYS), TIMES), st.integers(0, 2), max_size=60)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages and leaves so small that a few rows need all of the way."""
    make_small(monkeypatch.setattr)


def make_small(set_: Callable[[Any, str, int], None]) -> None:
    for name, value in {"LEAF_ROWS": 2, "PARTITIONS": 3, "SERIES": 2, "RANGES": 5}.items():
        set_(converge, name, value)


@settings(max_examples=150)
@given(ROWS, ROWS, ROWS, st.sampled_from([0.0, 1.0]), st.none() | st.integers(0, 60))
def test_everything_of_the_peer_is_here_afterwards_and_the_tally_is_right(
    both: Rows, theirs: Rows, ours: Rows, doubt_s: float, recent_ns: int | None
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch.setattr)
        there, here = Memory(joined(both, theirs)), Memory(joined(both, ours))
        before = dict(here.rows)
        tally = converged(there, here, doubt_s=doubt_s, recent_ns=recent_ns)
        assert here.rows == joined(there.rows, before)
        equal = {
            partition for partition in range(PARTITIONS) if _of(there.rows, partition) == _of(here.rows, partition)
        }
        assert (tally.equal, tally.proven) == (equal, set(range(PARTITIONS)) - equal)
        assert (tally.moving, tally.done) == (set(), PARTITIONS)
        assert tally.points == sum(before.get(place) != bits for place, bits in here.rows.items())


def _of(rows: Rows, partition: int) -> Rows:
    return {place: bits for place, bits in rows.items() if series.partition_of(place[0], PARTITIONS) == partition}


@settings(max_examples=50)
@given(
    ROWS,
    ROWS,
    st.lists(st.tuples(st.integers(0, 30), st.tuples(st.sampled_from(KEYS), TIMES)), max_size=10),
    st.none() | st.integers(0, 60),
)
def test_all_that_the_peer_held_when_it_began_is_here_while_points_arrive(
    theirs: Rows, ours: Rows, arriving: list[tuple[int, Place]], recent_ns: int | None
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch.setattr)
        there, here = Memory(theirs), Memory(ours)

        def arrive(number: int) -> None:
            there.join(((place, 1) for at, place in arriving if at == number))

        tally = Tally()
        drive(Converge(range(PARTITIONS), PARTITIONS, 0, tally, recent_ns=recent_ns), there, here, arrive)
        assert here.rows == joined(here.rows, theirs)
        assert tally.done == PARTITIONS


def test_a_range_only_is_compared_and_fetched_up_to_its_end(small: None) -> None:
    there, here = Memory({(KEYS[0], time): 1 for time in range(20)}), Memory({})
    tally = converged(there, here, end_ns=9)
    assert here.rows == {(KEYS[0], time): 1 for time in range(10)}
    assert tally.equal == set(range(PARTITIONS))


def test_after_the_first_pass_only_what_is_settled_is_looked_at_again(small: None) -> None:
    there, here = Memory({(KEYS[0], time): 1 for time in range(20)}), Memory({})
    tally = Tally()

    def flow(number: int) -> None:
        there.join([((KEYS[0], 100 + number), 1)])

    drive(Converge(range(PARTITIONS), PARTITIONS, 0, tally, settled_ns=50), there, here, flow)
    assert (tally.equal | tally.proven, tally.moving) == (set(range(PARTITIONS)), set())
    assert here.rows.keys() >= {(KEYS[0], time) for time in range(20)}


def test_a_partition_to_which_points_go_on_to_arrive_is_moving(small: None) -> None:
    there, here = Memory({(KEYS[0], 0): 1}), Memory({})
    tally = Tally()

    def flow(number: int) -> None:
        there.join([((KEYS[0], 100 + number), 1)])

    drive(Converge(range(PARTITIONS), PARTITIONS, 0, tally), there, here, flow)
    partition = series.partition_of(KEYS[0], PARTITIONS)
    assert (tally.moving, tally.done) == ({partition}, PARTITIONS)


def test_rows_on_their_way_when_it_is_compared_are_not_fetched_and_those_that_lack_are(small: None) -> None:
    rows = {(KEYS[0], time): 1 for time in range(20)}
    there, here, tally = Memory(rows), Memory(rows), Tally()
    del here.rows[KEYS[0], 3], here.rows[KEYS[0], 17]
    job = Converge(range(PARTITIONS), PARTITIONS, 0, tally, doubt_s=1.0)
    drive(job, there, here, at_pause=lambda: here.rows.update({(KEYS[0], 17): 1}))
    assert here.rows == rows
    assert tally.points == 1
    assert there.moved <= converge.LEAF_ROWS
    assert tally.equal == set(range(PARTITIONS))


def test_equal_partitions_cost_one_question(small: None) -> None:
    rows = {(key, time): 1 for key in KEYS for time in range(50)}
    there, here = Memory(rows), Memory(rows)
    assert converged(there, here).equal == set(range(PARTITIONS))
    assert [type(body) for body in there.asked] == 2 * [protocol.DigestsRequest]  # of three partitions at most


def test_one_stretch_that_differs_moves_nothing_else() -> None:
    rows = {(KEYS[0], time * 1_000_000_000): 1 for time in range(20_000)}
    there = Memory(rows, fetch_rows=10**6)
    here = Memory({place: bits for place, bits in rows.items() if not 9000 <= place[1] // 10**9 < 9010})
    tally = converged(there, here)
    assert here.rows == there.rows
    assert tally.points == 10
    assert there.moved <= 2 * converge.LEAF_ROWS


def test_of_what_differs_lately_nothing_older_is_fetched() -> None:
    rows = {(key, time): 1 for key in KEYS for time in range(100)}
    there, here = Memory(rows, fetch_rows=10**6), Memory({place: 1 for place in rows if place[1] != 97})
    here.rows[KEYS[0], 200] = 1
    tally = converged(there, here, recent_ns=90)
    assert (tally.points, there.moved) == (len(KEYS), 10 * len(KEYS) + 10)  # the last: what this node has besides
    assert here.rows == {**rows, (KEYS[0], 200): 1}


def test_series_of_many_partitions_that_differ_are_looked_for_together() -> None:
    rows = {(key, time): 1 for key in KEYS for time in range(40)}
    there, here = Memory(rows), Memory({place: 1 for place in rows if place[1] != 17})
    kinds: list[str] = []
    answer = there.answer
    there.answer = lambda body: kinds.append(type(body).__name__) or answer(body)  # type: ignore[func-returns-value,method-assign]
    tally = converged(there, here)
    assert tally.points == len(KEYS)
    assert len({series.partition_of(key, PARTITIONS) for key in KEYS}) > 2
    assert kinds.count("SeriesDigestsRequest") == 1


def test_of_one_series_among_many_nothing_is_read_of_the_others() -> None:
    keys = [series.series_key(f"n{number}", "m") for number in range(300)]
    rows = {(key, time): 1 for key in keys for time in range(3)}
    there, here = Memory(rows, fetch_rows=10**6), Memory(rows)
    del here.rows[keys[100], 1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "KEYS", sorted(keys, key=lambda key: (hash_of(key), key)))
        tally = converged(there, here)
    assert (tally.points, there.moved) == (1, 3)
    assert tally.equal == set(range(PARTITIONS))


def test_only_named_series_are_looked_at(small: None) -> None:
    rows = {(key, time): 1 for key in KEYS for time in range(10)}
    there, here = Memory(rows), Memory({})
    tally = converged(there, here, keys=KEYS[:2])
    assert here.rows == {place: 1 for place in rows if place[0] in KEYS[:2]}
    assert tally.equal == set(range(PARTITIONS))


def test_nodes_with_different_cutoffs_compare_from_the_later_one_on(small: None) -> None:
    rows = {(KEYS[0], time): 1 for time in range(20)}
    there, here = Memory(rows, cutoff_ns=5), Memory(rows, cutoff_ns=10)
    assert converged(there, here).equal == set(range(PARTITIONS))
    assert there.moved == 0


def test_what_the_tally_has_is_not_compared_again(small: None) -> None:
    there, here = Memory({(KEYS[0], 0): 1}), Memory({})
    drive(Converge(range(PARTITIONS), PARTITIONS, 0, Tally(equal=set(range(PARTITIONS)))), there, here)
    assert not there.asked


def test_a_peer_that_does_not_answer_for_all_is_an_error() -> None:
    there = Memory({})
    steps = Converge(range(PARTITIONS), PARTITIONS, 0, Tally()).run()
    step = next(steps)
    reply = there.answer(step.body)  # type: ignore[union-attr]
    less = protocol.DigestsReply(protocol.bitmap([0, 1, 3], PARTITIONS), 0, 0, bytes(24), bytes(24), COST)
    with pytest.raises(ConvergeError, match="no answer for 1 partitions, such as 2"):
        steps.send((less, reply))


def test_digests_cut_short_are_an_error() -> None:
    there = Memory({})
    steps = Converge(range(PARTITIONS), PARTITIONS, 0, Tally()).run()
    reply = there.answer(next(steps).body)  # type: ignore[union-attr]
    short = protocol.DigestsReply(reply.partitions, 0, reply.cutoff_ns, bytes(24), bytes(32), COST)
    with pytest.raises(ConvergeError, match="24 and 32 bytes of digests, want 32"):
        steps.send((short, reply))


def test_a_stretch_is_cut_into_quarters_without_gaps() -> None:
    assert converge._cut(Range(b"k", -(2**63), 2**63 - 1))[1].start_ns == -(2**62)
    assert [(each.start_ns, each.end_ns) for each in converge._cut(Range(b"k", 5, 6))] == [(5, 5), (6, 6)]


def test_neighbouring_stretches_are_fetched_as_one() -> None:
    parts = converge._cut(Range(b"k", 0, 99))
    assert converge._joined([parts[2], Range(b"j", 0, 4), parts[1]]) == [Range(b"j", 0, 4), Range(b"k", 25, 74)]
