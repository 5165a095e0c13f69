"""The examples of docs/bridge.md: what payloads become there, they become."""

import json
import re
import tomllib
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from common.config import Ingest, Mqtt, Settings, Subscription
from common.series import parse_key
from common.subscriptions import problems
from tests.support import ROOT
from tools.output import time_text
from workers.bridge import times
from workers.bridge.formats import FORMATS
from workers.bridge.intake import Intake

NOW_NS = 1_750_000_000_000_000_000
DOCUMENT = (ROOT / "docs" / "bridge.md").read_text()
_KEYWORD = re.compile(r"^(topic|payload-lines|payload-hex|payload|point|refused)\b ?", re.MULTILINE)


class Case(NamedTuple):
    subscription: Subscription
    topic: str
    payload: bytes
    wanted: list[str]


def cases() -> Iterator[Case]:
    """One for each payload of each ```example: settings in TOML, then topic, payload, and what becomes of it."""
    for block in re.findall(r"^```example\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL):
        start = _KEYWORD.search(block)
        assert start is not None
        table = tomllib.loads(block[: start.start()])
        yield from _cases(Subscription(**{"filter": "#", **table}), block[start.start() :])


def _cases(subscription: Subscription, body: str) -> Iterator[Case]:
    topic, payload, wanted = "", b"", []
    parts = _KEYWORD.split(body)[1:]
    for keyword, text in zip(parts[::2], parts[1::2], strict=True):
        if keyword not in ("point", "refused") and wanted:
            yield Case(subscription, topic, payload, wanted)
            wanted = []
        if keyword == "topic":
            topic = text.strip()
        elif keyword.startswith("payload"):
            payload = bytes.fromhex(text) if keyword == "payload-hex" else text.strip("\n").encode()
        else:
            wanted.append(f"{keyword} {text.strip()}")
    yield Case(subscription, topic, payload, wanted)


def outcome(subscription: Subscription, topic: str, payload: bytes) -> list[str]:
    arrivals = iter(range(NOW_NS, NOW_NS + 1000))
    settings = Settings(mqtt=Mqtt(subscriptions=[subscription]))
    points, refusals = Intake(settings, 1024, arrivals.__next__).decode(topic.encode(), 0, payload, NOW_NS)
    lines = [_line(place.key, time_ns, value) for place, time_ns, value in points]
    return lines + [f"refused {refusal.code} {refusal.reason}" for refusal in refusals]


def _line(key: bytes, time_ns: int, value: float) -> str:
    series = parse_key(key)
    time = "arrival" if time_ns >= NOW_NS else time_text(time_ns)
    tags = json.dumps(dict(series.tags), separators=(",", ":"))
    return f"point {series.device_id} {series.metric_name} {tags} {time} {value}"


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: f"{case.subscription.format} {case.payload[:20]!r}")
def test_an_example_of_the_document_is_true(case: Case) -> None:
    assert list(problems([case.subscription], Ingest().max_id_bytes)) == []
    assert outcome(case.subscription, case.topic, case.payload) == case.wanted


def test_every_format_has_an_example() -> None:
    assert {case.subscription.format for case in cases()} == set(FORMATS)


def test_the_limits_of_auto_are_those_of_the_document() -> None:
    section = DOCUMENT.partition("### Time")[2].partition("\n### ")[0]
    rows = re.findall(r"^\| 10\^(\d+) \| (\w+) \|", section, re.MULTILINE)
    units = {"seconds": "s", "milliseconds": "ms", "microseconds": "us"}
    assert [(units[unit], 10 ** int(power)) for power, unit in rows] == list(times.AUTO_LIMITS)
