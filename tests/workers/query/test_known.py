"""Known: what is known of where series lie counts while every owner's stamp is fresh and unchanged."""

import msgspec
import pytest

from common import match, protocol
from common.protocol import AggregateReply
from common.ring import Node, Ring
from common.ringbuild import first_ring
from workers.query.gather import NEVER_S, Ask, Gather
from workers.query.known import FRESH_S, LATER, RENEW_S, Known
from workers.query.plan import Plan

OWNERS = ["a", "b"]
PAIR = ("device", "metric")
MATCH = match.one(*PAIR, None)


@pytest.fixture
def known() -> Known:
    known = Known()
    known.heard("a", 11, 100.0)
    known.heard("b", 21, 100.1)
    known.learn(PAIR, [3, 5, 3], {"a": 11, "b": 21}, OWNERS)
    return known


def test_it_is_known_while_all_stamps_are_fresh(known: Known) -> None:
    known.look(OWNERS, 100.0 + FRESH_S - 0.01)
    assert known.where(PAIR) == 1 << 3 | 1 << 5
    assert known.where(("device", "other")) is None
    known.look(OWNERS, 100.0 + FRESH_S)
    assert known.where(PAIR) is None


def test_a_stamp_asked_for_later_keeps_it_fresh_and_one_asked_for_earlier_changes_nothing(known: Known) -> None:
    known.heard("a", 11, 101.0)
    known.heard("a", 11, 99.0)
    known.heard("b", 21, 101.0)
    known.look(OWNERS, 101.0 + FRESH_S - 0.01)
    assert known.where(PAIR) == 1 << 3 | 1 << 5


@pytest.mark.parametrize("node", OWNERS)
def test_a_new_series_anywhere_makes_it_unknown_for_good(known: Known, node: str) -> None:
    stamp = {"a": 11, "b": 21}[node]
    known.heard(node, stamp + 1, 100.2)
    known.look(OWNERS, 100.3)
    assert known.where(PAIR) is None
    known.heard(node, stamp, 100.3)  # an old answer that comes late
    known.look(OWNERS, 100.4)
    assert known.where(PAIR) is None


def test_an_old_answer_that_comes_late_neither_counts_nor_teaches(known: Known) -> None:
    known.heard("a", 12, 100.2)
    known.heard("a", 11, 100.3)  # asked later, and yet looked up earlier
    known.learn(PAIR, [3], {"a": 11, "b": 21}, OWNERS)
    known.look(OWNERS, 100.3)
    assert known.where(PAIR) is None
    known.learn(PAIR, [3, 4], {"a": 12, "b": 21}, OWNERS)
    assert known.where(PAIR) == 1 << 3 | 1 << 4


def test_a_process_that_began_anew_is_believed_wherever_its_stamps_begin() -> None:
    for before, after in [(5, 5 + 2 * LATER), (5 + 2 * LATER, 5)]:
        known = Known()
        known.heard("a", before, 100.0)
        known.heard("a", after, 100.1)
        known.learn(PAIR, [3], {"a": after}, ["a"])
        known.look(["a"], 100.1)
        assert known.where(PAIR) == 1 << 3


def test_who_learns_while_a_stamp_changes_learns_nothing(known: Known) -> None:
    class Stamps(dict[str, tuple[int, float]]):
        def __setitem__(self, node: str, stamp: tuple[int, float]) -> None:
            known.learn(PAIR, [3], {"a": 11, "b": 21}, OWNERS)  # in another thread, just before
            super().__setitem__(node, stamp)
            known.learn(PAIR, [3], {"a": 11, "b": 21}, OWNERS)  # and just behind

    known._stamps = Stamps(known._stamps)
    known.heard("a", 12, 100.2)
    known.look(OWNERS, 100.3)
    assert known.where(PAIR) is None


def test_after_a_drained_spool_only_stamps_asked_for_later_count(known: Known) -> None:
    known.doubt(100.2)
    known.look(OWNERS, 100.2)
    assert known.where(PAIR) is None
    assert known.stale(OWNERS, 100.2) == OWNERS
    known.heard("a", 11, 100.3)
    known.heard("b", 21, 100.15)  # an answer that was on its way
    known.look(OWNERS, 100.3)
    assert known.where(PAIR) is None
    known.heard("b", 21, 100.3)
    known.look(OWNERS, 100.3)
    assert known.where(PAIR) == 1 << 3 | 1 << 5


def test_an_owner_that_was_never_heard_makes_it_unknown(known: Known) -> None:
    known.look([*OWNERS, "c"], 100.2)
    assert known.where(PAIR) is None


@pytest.mark.parametrize(
    ("stamps", "owners"), [({"a": 11}, OWNERS), ({"a": 11, "b": 20}, OWNERS), ({"a": 11, "b": 21}, [*OWNERS, "c"])]
)
def test_only_everybodys_latest_answers_are_learned_from(stamps: dict[str, int], owners: list[str]) -> None:
    known = Known()
    known.heard("a", 11, 100.0)
    known.heard("b", 21, 100.0)
    known.learn(PAIR, [1], stamps, owners)
    known.look(OWNERS, 100.1)
    assert known.where(PAIR) is None


def test_that_nobody_has_a_series_is_not_learned() -> None:
    known = Known()
    known.heard("a", 11, 100.0)
    known.learn(PAIR, [], {"a": 11}, ["a"])
    known.look(["a"], 100.1)
    assert known.where(PAIR) is None


def test_nodes_that_were_not_heard_for_a_while_are_named(known: Known) -> None:
    assert known.stale(OWNERS, 100.0 + RENEW_S) == ["a"]
    assert known.stale([*OWNERS, "c"], 100.0 + RENEW_S - 0.01) == ["c"]
    assert Known().stale(OWNERS, 100.0) == []


REPLY = AggregateReply(b"", 0, 1, 0, 0.0, 0.0, 0.0, 0.0, 0, 0.0, 0, 0.0, 0, 0, 0, 0.0, 0, [7])


def make_plan(nodes: str, known: Known | None = None, epoch: int = 1) -> Plan:
    """Of as many owners for each partition as there are nodes."""
    made = [Node(name, "", f"tcp://127.0.0.1:90{at}0", name, 1.0, "active") for at, name in enumerate(nodes)]
    ring = first_ring("c" * 16, made, 64, len(nodes))
    return Plan.of(Ring.from_document(ring.document() | {"epoch": epoch}), known)


def make_gather() -> Gather[AggregateReply]:
    return Gather(
        protocol.AGGREGATE, AggregateReply, lambda plan: plan.wanted_by(MATCH), lambda bitmap: None, 1.0
    )


def answered(gather: Gather[AggregateReply], plan: Plan, node: str, partitions: int, stamp: int) -> None:
    """Take a node's answer, asked for at 100 s."""
    reply = msgspec.structs.replace(REPLY, partitions=plan.bitmap(partitions), catalog=stamp)
    gather.take(Ask(node, partitions, gather, 1.0, 101.0), reply)


@pytest.mark.parametrize(("stamps", "learned"), [((11, 11), True), ((10, 11), False), ((11, 10), False)])
def test_a_node_that_took_in_a_series_between_two_answers_teaches_nothing(
    stamps: tuple[int, int], learned: bool
) -> None:
    plan, asked = make_plan("a"), make_gather()
    asked.targets(plan)
    for stamp, part in zip(stamps, (1, plan.everything - 1), strict=True):
        answered(asked, plan, "a", part, stamp)
    asked.learn(PAIR)
    plan.known.look(["a"], 100.1)
    assert plan.known.where(PAIR) == (1 << 7 if learned else None)


def test_what_is_learned_while_a_question_is_asked_again_leaves_it_whole() -> None:
    plan, asked = make_plan("ab"), make_gather()
    (one, mine), (other, theirs) = asked.targets(plan).items()
    answered(asked, plan, one, mine, 11)
    asked.refuse(other, "no answer", NEVER_S)
    for node in "ab":
        plan.known.heard(node, 11, 100.0)
    plan.known.learn(PAIR, [theirs.bit_length() - 1], {"a": 11, "b": 11}, OWNERS)  # by somebody else's question
    plan.known.look(OWNERS, 100.0)
    last = 1 << theirs.bit_length() - 1
    assert asked.targets(plan) == {one: last}
    answered(asked, plan, one, last, 11)
    assert asked.complete()


@pytest.mark.parametrize("known_before", [True, False])
def test_while_somebody_has_a_newer_ring_nothing_is_known_nor_learned(known_before: bool) -> None:
    plan, asked = make_plan("a"), make_gather()
    asked.targets(plan)
    answered(asked, plan, "a", plan.everything, 11)
    if known_before:
        asked.learn(PAIR)
    plan.known.told(2)
    asked.learn(PAIR)
    plan.known.look(["a"], 100.1)
    assert (plan.known.where(PAIR) is None) != known_before
    assert plan.wanted_by(MATCH) == plan.everything
    newer = make_plan("a", plan.known, epoch=2)
    assert newer.wanted_by(MATCH) == (1 << 7 if known_before else newer.everything)


def test_a_question_that_began_by_an_older_ring_teaches_nothing() -> None:
    older, asked = make_plan("a"), make_gather()
    asked.targets(older)
    answered(asked, older, "a", 1, 11)
    newer = make_plan("a", older.known, epoch=2)
    older.known.told(2)
    asked.targets(newer)
    answered(asked, newer, "a", newer.everything - 1, 11)
    assert asked.complete()
    asked.learn(PAIR)
    newer.known.look(["a"], 100.1)
    assert newer.known.where(PAIR) is None
