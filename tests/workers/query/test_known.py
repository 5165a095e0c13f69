"""Known: what is known of where series lie counts while every owner's stamp is fresh and unchanged."""

import msgspec
import pytest

from common import protocol
from common.protocol import AggregateReply
from common.ring import Node
from common.ringbuild import first_ring
from workers.query.gather import Gather
from workers.query.known import FRESH_S, RENEW_S, Known
from workers.query.plan import Plan

OWNERS = ["a", "b"]
PAIR = ("device", "metric")


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
    known.heard(node, stamp, 100.3)  # an old answer that comes late, or a stamp of another process that is equal
    known.look(OWNERS, 100.4)
    assert known.where(PAIR) is None


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
    assert known.stale([*OWNERS, "c"], 100.2) == ["c"]
    assert Known().stale(OWNERS, 100.0) == []


@pytest.mark.parametrize(("stamps", "learned"), [((11, 11), True), ((10, 11), False), ((11, 10), False)])
def test_a_node_that_took_in_a_series_between_two_answers_teaches_nothing(
    stamps: tuple[int, int], learned: bool
) -> None:
    ring = first_ring("c" * 16, [Node("a", "", "tcp://127.0.0.1:9000", "zone", 1.0, "active")], 64, 1)
    plan = Plan.of(ring)
    plan.known.heard("a", 11, 100.0)
    asked: Gather[AggregateReply] = Gather(
        protocol.AGGREGATE, AggregateReply, lambda plan: plan.everything, lambda bitmap: None, 1.0
    )
    asked.plan, asked.wanted, asked.covered = plan, plan.everything, plan.everything
    reply = AggregateReply(b"", 0, 1, 0, 0.0, 0.0, 0.0, 0.0, 0, 0.0, 0, 0.0, 0, 0, 0, 0.0, 0, [7])
    for stamp in stamps:
        asked.senders.append("a")
        asked.replies.append(msgspec.structs.replace(reply, catalog=stamp))
    asked.learn(PAIR)
    plan.known.look(["a"], 100.1)
    assert plan.known.where(PAIR) == (1 << 7 if learned else None)
