"""Skew of devices: sampled, bounded, the largest shown."""

import numpy as np
import pytest

from common import metrics
from common.series import series_key
from workers.bridge import skew
from workers.bridge.columns import Columns
from workers.bridge.payload import Place
from workers.bridge.skew import Skew

S = 10**9
NOW_NS = 1_800_000_000 * S


def place(device: str) -> Place:
    return Place(series_key(device, "m"), 0)


def test_the_latest_skew_of_a_device_counts_and_the_largest_either_way_are_shown() -> None:
    table = Skew()
    for number in range(40):
        table.sample([(place(f"d{number}"), NOW_NS - number * S, 1.0)], NOW_NS)
    table.sample([(place("ahead"), NOW_NS + 3600 * S, 1.0)], NOW_NS)
    table.sample([(place("d39"), NOW_NS, 1.0)], NOW_NS)
    assert list(table.largest().items())[:3] == [("ahead", -3600.0), ("d38", 38.0), ("d37", 37.0)]
    assert len(table.largest()) == skew.SHOWN


def test_columns_are_sampled_too() -> None:
    table = Skew()
    columns = Columns([place("a"), place("b")], np.array([1, 1], np.uint32), np.array([NOW_NS - S] * 2), np.zeros(2))
    table.sample(columns, NOW_NS)
    assert table.largest() == {"b": 1.0}
    table.sample(Columns([place("c")], None, np.array([NOW_NS - 2 * S]), np.zeros(1)), NOW_NS)
    assert table.largest() == {"c": 2.0, "b": 1.0}


def test_a_message_without_points_is_no_sample() -> None:
    table = Skew()
    table.sample([], NOW_NS)
    assert table.largest() == {}


def test_the_table_forgets_the_devices_not_seen_for_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skew, "MAX_DEVICES", 3)
    table = Skew()
    for device in ("a", "b", "c", "a", "d"):
        table.sample([(place(device), NOW_NS - S, 1.0)], NOW_NS)
    assert set(table.largest()) == {"c", "a", "d"}


@pytest.mark.parametrize("per_turn", [1, 4, 500])
def test_a_turn_costs_a_few_samples_however_many_messages_it_has(per_turn: int) -> None:
    table = Skew()
    taken = 0
    for _ in range(300):
        table.turn(per_turn)
        for _ in range(per_turn):
            if table.due:
                table.due -= 1
            else:
                table.sample([(place("d"), NOW_NS, 1.0)], NOW_NS)
                taken += 1
    assert 0.3 * min(per_turn, skew.PER_TURN) < taken / 300 < 1.5 * skew.PER_TURN


def test_the_gauges_are_those_devices() -> None:
    table = Skew()
    table.export()
    table.sample([(place("late"), NOW_NS - 90 * S, 1.0)], NOW_NS)
    text = metrics.render({"w": metrics.snapshot()}).decode()
    assert 'minitrue_bridge_device_skew_seconds{worker="w",device="late"} 90.0' in text
    assert "minitrue_bridge_skew_seconds_bucket" in text
    assert "left out" not in text
