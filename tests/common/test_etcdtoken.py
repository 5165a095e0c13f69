"""The token of etcd: one authentication at a time, patience, and who is told what."""

import threading

import pytest

from common import etcdtoken
from common.etcdtoken import Slow, Tokens
from tests.support import wait_until


class Members:
    """Members of which each says what the test lets it."""

    def __init__(self, *says):
        self.says = list(says)
        self.asked = []
        self.go_on = threading.Event()
        self.go_on.set()

    def __call__(self, at, within_s):
        self.asked.append((at, within_s))
        assert self.go_on.wait(30)
        said = self.says.pop(0) if len(self.says) > 1 else self.says[0]
        if isinstance(said, Exception):
            raise said
        return said


@pytest.fixture
def slow():
    """Members that let the user in when they are told to."""
    members = Members("abc")
    members.go_on.clear()
    yield members
    members.go_on.set()


def test_many_who_want_a_token_at_once_cost_one_authentication(slow):
    tokens, got = Tokens(slow, 3, 0.1, (OSError,)), []
    threads = [threading.Thread(target=lambda: got.append(tokens.get(30))) for _ in range(10)]
    for thread in threads:
        thread.start()
    wait_until(lambda: slow.asked, what="a member to be asked")
    slow.go_on.set()
    for thread in threads:
        thread.join()
    assert (got, len(slow.asked)) == (["abc"] * 10, 1)


def test_who_cannot_wait_is_told_so_and_the_authentication_goes_on(slow):
    tokens = Tokens(slow, 3, 0.1, (OSError,))
    for _ in range(3):
        with pytest.raises(TimeoutError, match="slow with passwords"):
            tokens.get(0.01)
    slow.go_on.set()
    assert (tokens.get(30), len(slow.asked)) == ("abc", 1)


def test_each_round_of_members_that_are_slow_has_more_patience():
    members = Members(Slow(), Slow(), Slow(), Slow(), "abc")
    assert Tokens(members, 2, 0.5, (OSError,)).get(30) == "abc"
    assert [within_s for _, within_s in members.asked] == [0.5, 0.5, 1.0, 1.0, 2.0]
    assert {at for at, _ in members.asked} == {0, 1}


def test_in_the_end_slow_members_are_an_error_and_the_next_call_begins_anew(monkeypatch):
    monkeypatch.setattr(etcdtoken, "PATIENCE_S", 1.0)
    members = Members(Slow("late"))
    tokens = Tokens(members, 1, 0.5, (OSError,))
    for _ in range(2):
        with pytest.raises(Slow, match="late"):
            tokens.get(30)
    assert [within_s for _, within_s in members.asked] == [0.5, 1.0] * 2


def test_a_member_that_is_away_is_passed_over_at_once_and_one_that_refuses_is_believed():
    assert Tokens(Members(ConnectionRefusedError(), "abc"), 2, 0.5, (OSError,)).get(30) == "abc"
    with pytest.raises(KeyError, match="wrong"):
        Tokens(Members(ConnectionRefusedError(), KeyError("wrong")), 2, 0.5, (OSError,)).get(30)
    members = Members(ConnectionRefusedError("nobody"))
    with pytest.raises(ConnectionRefusedError, match="nobody"):
        Tokens(members, 3, 0.5, (OSError,)).get(30)
    assert len(members.asked) == 3


def test_a_token_is_dropped_once_however_many_have_been_refused_with_it():
    members = Members("one", "two", "three")
    tokens = Tokens(members, 1, 0.5, ())
    assert tokens.get(30) == "one"
    for _ in range(3):
        tokens.drop("one")
        assert tokens.get(30) == "two"


def test_who_cannot_wait_is_told_what_is_known_of_the_member_it_asks(slow, monkeypatch):
    monkeypatch.setattr(etcdtoken.random, "randrange", lambda _: 1)
    slow.says = [ConnectionRefusedError("nobody"), "abc"]

    def ask(at, within_s):
        if at == 0:
            slow.go_on.clear()
        return slow(at, within_s)

    slow.go_on.set()
    tokens = Tokens(ask, 2, 0.5, (OSError,))
    with pytest.raises(TimeoutError, match="slow with passwords"):
        tokens.get(0.2, 0)
    with pytest.raises(ConnectionRefusedError, match="nobody"):
        tokens.get(0.01, 1)
