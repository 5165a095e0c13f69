"""The byte layout and the program in docs/bridge.md for columnar payloads are right, and run."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from common.config import Mqtt, Settings
from common.series import Series, parse_key
from common.subscriptions import Subscription
from tests.support import wait_until
from tests.workers.bridge.harness import Place
from tools.publish import columns
from workers.bridge.intake import Intake
from workers.bridge.payload import Points

DOCS = Path(__file__).parents[3] / "docs" / "bridge.md"
NOW_NS = 1_714_564_800_000_000_000


def example(name: str) -> str:
    """The fenced block behind the comment that names it."""
    match = re.search(rf"<!-- example: {name} -->\n```\w*\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert match
    return match.group(1)


def decode(payload: bytes) -> Points:
    settings = Settings(mqtt=Mqtt(subscriptions=[Subscription("#", format="msgpack-columns")]))
    points, refusals = Intake(settings, 1024, lambda: NOW_NS).decode(b"t", 0x32, payload, NOW_NS + 10**10)
    assert not refusals
    return points


def test_the_bytes_are_what_is_said_beside_them() -> None:
    payload = bytes.fromhex("".join(line.partition("#")[0] for line in example("columns").splitlines()))
    assert [(parse_key(place.key), time_ns, value) for place, time_ns, value in decode(payload)] == [
        (Series("d", "m"), NOW_NS, 1.5),
        (Series("d", "m"), NOW_NS + 10**9, -2.0),
    ]


def test_the_program_publishes_a_thousand_points_that_are_stored(
    make_place: Callable[..., Place], tmp_path: Path
) -> None:
    place = make_place()
    with place.conf.open("a") as conf:
        conf.write('[[mqtt.subscriptions]]\nfilter = "fast/#"\nformat = "msgpack-columns"\n')
    place.start()
    program = tmp_path / "program.py"
    program.write_text(example("publish columns"))
    subprocess.run([sys.executable, program, str(place.mqtt_port)], check=True)
    wait_until(lambda: place.count() == 1000, what="stored")
    stored = sorted(place.stored(), key=lambda row: row[2])
    assert [row[1] for row in stored] == ["force", "stroke"] * 500
    assert [row[3] for row in stored] == [row / 10 for row in range(1000)]
    assert not place.dead()


def test_what_the_publisher_makes_is_read_back() -> None:
    times_us, values = np.array([NOW_NS // 1000, NOW_NS // 1000 + 1]), np.array([-0.0, 1e308])
    found = decode(columns.payload("dévice", "m", times_us, values))
    assert [(parse_key(place.key), time_ns, value.hex()) for place, time_ns, value in found] == [
        (Series("dévice", "m"), NOW_NS, (-0.0).hex()),
        (Series("dévice", "m"), NOW_NS + 1000, 1e308.hex()),
    ]
