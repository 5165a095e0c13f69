"""Notes of the session: what is to be unsubscribed, whatever happened to the bridge in between."""

import json
from pathlib import Path

import pytest

from common import config
from workers.bridge.session import MAX_SESSIONS, Session, to_ask


def filters(path: Path, name: str = "s") -> list[str]:
    return list(json.loads(path.read_text())[name])


def test_stale_filters_are_known_until_the_broker_has_dropped_them(tmp_path: Path) -> None:
    path = tmp_path / "subscriptions.json"
    first = Session(path, "s", ["a", "b"])
    assert first.begin(is_resumed=False) == []
    assert filters(path) == ["a", "b"]
    for _ in range(2):  # the first time it dies before UNSUBACK
        second = Session(path, "s", ["b", "c"])
        assert second.begin(is_resumed=True) == ["a"]
        assert set(filters(path)) == {"a", "b", "c"}
    second.settled()
    assert filters(path) == ["b", "c"]
    assert Session(path, "s", ["b", "c"]).begin(is_resumed=True) == []


def test_a_new_session_has_nothing_stale_and_one_that_was_there_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "subscriptions.json"
    Session(path, "s", ["a"]).begin(is_resumed=False)
    again = Session(path, "s", ["b"])
    assert (again.begin(is_resumed=False), again.lost) == ([], 1)
    assert filters(path) == ["b"]


def test_another_client_id_or_broker_is_another_session(tmp_path: Path) -> None:
    path = tmp_path / "subscriptions.json"
    Session(path, "one", ["a"]).begin(is_resumed=False)
    other = Session(path, "two", ["b"])
    assert (other.begin(is_resumed=False), other.lost) == ([], 0)
    assert Session(path, "one", ["b"]).begin(is_resumed=True) == ["a"]


def test_the_file_stays_small_however_often_the_client_id_changes(tmp_path: Path) -> None:
    path = tmp_path / "subscriptions.json"
    for number in range(50):
        Session(path, f"s{number}", ["a"]).begin(is_resumed=False)
    assert list(json.loads(path.read_text())) == [f"s{number}" for number in range(50 - MAX_SESSIONS, 50)]


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b'{"s": "a"}', b'{"s": [1]}', b'{"s": [""]}', b"null"])
def test_a_file_that_is_none_of_ours_is_said_and_replaced(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "subscriptions.json"
    path.write_bytes(content)
    session = Session(path, "s", ["a"])
    assert "subscriptions of earlier runs are not known" in caplog.text
    assert session.begin(is_resumed=True) == []
    assert filters(path) == ["a"]


def test_without_a_place_for_notes_it_goes_on_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert Session(tmp_path / "missing" / "x.json", "s", ["a"]).begin(is_resumed=False) == []
    assert "unsubscribe the old ones by hand" in caplog.text


def asked(*subscriptions: config.Subscription, share_group: str = "") -> list[tuple[str, int, tuple[str, ...]]]:
    mqtt = config.Mqtt(share_group=share_group, subscriptions=list(subscriptions))
    return [(each.filter, each.qos, each.serves) for each in to_ask(mqtt)]


def test_with_a_share_group_the_filter_is_sent_with_it() -> None:
    assert asked(config.Subscription("a/#")) == [("a/#", 1, ("a/#",))]
    assert asked(config.Subscription("a/#"), share_group="g") == [("$share/g/a/#", 1, ("a/#",))]


def test_a_filter_within_another_is_not_asked_for_and_lends_it_its_qos() -> None:
    found = asked(
        config.Subscription("a/b", qos=1), config.Subscription("a/+/c"), config.Subscription("a/#", qos=0),
        config.Subscription("+/x", qos=0),
    )  # fmt: skip
    assert found == [("a/#", 1, ("a/b", "a/+/c", "a/#")), ("+/x", 0, ("+/x",))]
