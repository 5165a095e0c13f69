"""Which subscription a message goes to, what is counted, and what a dead letter becomes when it is tried again."""

import json
from typing import Any

import pytest

from common.config import Subscription
from tests.workers.bridge.formats import LATEST_NS, NOW_NS, Got, World
from workers.bridge import deadletter, routes
from workers.bridge.payload import SIZE, STORAGE, TOPIC
from workers.bridge.routes import Routes

NUMBER: Any = {"format": "number", "template": "+/{device_id}/{metric_name}"}
SEED = '{"device_id": "d", "metric_name": "m", "timestamp": 5, "value": 1}'


def test_the_first_subscription_that_matches_decides() -> None:
    first = Subscription("a/b/c", format="number", device_id="first", metric_name="m")
    world = World(first, Subscription("a/#", **NUMBER))
    assert world.decode("a/b/c", "1")[0][0].device == "first"
    assert world.decode("a/b/d", "1")[0][0].device == "b"
    assert [route.messages for route in world.intake.routes.routes] == [1, 1]


@pytest.mark.parametrize(
    ("topic", "words"),
    [
        ("elsewhere/x", "no subscription matches the topic"),
        ("a/b", "template '+/{device_id}/{metric_name}': the topic has 2 levels, want 3"),
        ("$SYS/a/b", "no subscription matches the topic"),
    ],
)
def test_a_topic_that_fits_nothing_is_refused_whatever_the_payload_is(topic: str, words: str) -> None:
    world = World(Subscription("a/#", **NUMBER))
    for _ in range(2):  # the second time from the cache
        points, (refused,) = world.decode(topic, "1")
        assert (points, refused.code, refused.reason, refused.payload) == ([], TOPIC, words, b"1")


def test_a_topic_that_is_not_utf_8_is_refused() -> None:
    world = World(Subscription("#", **NUMBER))
    points, (refused,) = world.intake.decode(b"a/\xff/m", 0, b"1", LATEST_NS)
    assert (points, refused.code) == ([], TOPIC)
    assert "is not UTF-8" in refused.reason


def test_retained_messages_are_skipped_or_stored_as_the_subscription_says() -> None:
    world = World(Subscription("skip/#", retained="skip"), Subscription("store/#"))
    assert world.decode("skip/a", SEED, flags=0x33) == ([], [])
    assert world.decode("skip/a", "bad", flags=0x33) == ([], [])
    for topic, flags in (("skip/a", 0x32), ("store/a", 0x33)):
        assert world.decode(topic, SEED, flags)[0] == [Got("d", "m", {}, 5 * 10**9, 1.0)]
    assert [route.retained_skipped for route in world.intake.routes.routes] == [2, 0]


def test_messages_and_refusals_are_counted_for_their_subscription() -> None:
    world = World(Subscription("a/#"), Subscription("b/#"))
    world.decode("a/x", f"[{SEED}, 5, 6]")
    world.decode("b/x", SEED)
    world.decode("c/x", SEED)
    found = world.intake.routes
    assert [(route.messages, route.refused) for route in [*found.routes, found.unmatched]] == [(1, 2), (1, 0), (1, 1)]


def test_a_payload_over_the_limit_is_refused_in_every_format() -> None:
    world = World(Subscription("#", **NUMBER), max_payload_bytes=1024)
    _, (refused,) = world.decode("a/b/c", "1" * 1025)
    assert (refused.code, len(refused.payload)) == (SIZE, 1025)


def test_topics_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "CACHE_BYTES", 20_000)
    world = World(Subscription("#", **NUMBER))
    for number in range(200):
        assert world.decode(f"a/d{number}/m", "1")[0][0].device == f"d{number}"
    assert len(world.intake.routes) < 20


def test_topics_of_which_nothing_is_taken_share_what_they_are_decoded_by() -> None:
    found: Routes = World(Subscription("#")).intake.routes
    assert found.add(b"a") is found.add(b"b")


def record(topic: str, payload: str, code: str, time_ns: int = NOW_NS - 10**9) -> deadletter.Record:
    return deadletter.Record(deadletter.VERSION, time_ns, topic.encode(), payload.encode(), code, "", 0x32)


def test_a_dead_letter_is_decoded_by_the_configuration_of_now_at_its_own_arrival() -> None:
    world = World(Subscription("a/#", **NUMBER))
    ((_, *found),) = world.intake.decode_record(record("a/d/m", "7", "value"), LATEST_NS)[0]
    assert tuple(found) == (NOW_NS - 10**9, 7.0)
    assert world.decode("a/d/m", "8")[0][0].time == "arrival"
    assert world.intake.routes.routes[0].messages == 1


def test_points_of_a_dead_letter_without_a_time_have_different_ones() -> None:
    world = World(Subscription("a/#"))
    two = json.dumps([{"device_id": "d", "metric_name": "m", "value": n} for n in range(2)])
    points, _ = world.intake.decode_record(record("a/x", two, "shape"), LATEST_NS)
    assert [time_ns for _, time_ns, _ in points] == [NOW_NS - 10**9, NOW_NS - 10**9 + 1]


def test_a_row_that_a_node_refused_is_seed_json_whatever_its_topic_has() -> None:
    world = World(Subscription("a/#", **NUMBER))
    points, refusals = world.intake.decode_record(record("a/d/m", SEED, STORAGE), LATEST_NS)
    assert ([value for _, _, value in points], refusals) == ([1.0], [])
    assert world.intake.decode_record(record("a/d/m", SEED, "value"), LATEST_NS)[1] != []


def test_what_is_refused_still_is_refused_with_the_reason_of_now() -> None:
    world = World(Subscription("a/#", **NUMBER))
    for topic, payload, code in (("a/d/m", "x", "value"), ("b", "1", TOPIC)):
        points, (refused,) = world.intake.decode_record(record(topic, payload, "bug"), LATEST_NS)
        assert (points, refused.code) == ([], code)
