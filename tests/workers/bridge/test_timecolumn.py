"""Many times at once are what each would be alone, and are refused with the same words."""

from typing import Any

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from common import timestamps
from workers.bridge import timecolumn, times
from workers.bridge.payload import Refused

LATEST_NS = 1_700_003_600_000_000_000
MAX_FUTURE_S = 3600.0
UNITS = [*timestamps.UNITS, times.AUTO]


def one_by_one(given: list[Any], unit: str) -> tuple[list[int], dict[int, str]]:
    found, refused = [], {}
    for row, time in enumerate(given):
        try:
            found.append(times.time_ns(time, unit, LATEST_NS, MAX_FUTURE_S))
        except Refused as why:
            found.append(0)
            refused[row] = f"{why.code}: {why}"
    return found, refused


def at_once(given: Any, unit: str) -> tuple[list[int], dict[int, str]]:
    found, refused = timecolumn.to_ns(given, unit, LATEST_NS, MAX_FUTURE_S)
    assert found.dtype == np.int64
    return found.tolist(), {row: f"{why.code}: {why}" for row, why in refused.items()}


_now = {"s": 1_700_000_000, "ms": 1_700_000_000_000, "us": 1_700_000_000_000_000, "ns": 1_700_000_000_000_000_000}
_good_integers = st.sampled_from(sorted(_now.values())).flatmap(lambda now: st.integers(now - 10**6, now))
_integers = st.one_of(_good_integers, st.integers(-(2**64), 2**64), st.integers(0, 2**53))
_floats = st.one_of(
    st.floats(), st.floats(1.6e9, 1.7e9), st.floats(1.6e12, 1.7e12), st.sampled_from([8e9, 8e15, 9.007199254740993e15])
)
_texts = st.sampled_from(["2023-11-14T22:13:19.123456789Z", "yesterday", "2063-04-05T00:00:00Z"])
_lists = st.one_of(
    st.lists(_good_integers, max_size=80),
    st.lists(st.floats(1.6e9, 1.7e9), max_size=80),
    st.lists(st.one_of(_good_integers, st.floats(1.6e9, 1.7e9)), max_size=80),
    st.lists(st.one_of(_integers, _floats, _texts), max_size=80),
)


@given(_lists, st.sampled_from(UNITS))
@example([1_700_000_000_000_000_001, 1.5], "ns")
@example([1_700_000_000] * 100 + [1_800_000_000], "s")
@example([1_699_999_999.0000005, 0.0000015, 8e9], "s")
@example([2**63 // 10**9, 2**63 // 10**9 + 1], "s")
@example([float("nan")] * 40, "ms")
@example([10**11 - 1, 10**11], times.AUTO)
def test_a_list_of_times_is_what_each_would_be_alone(given_times: list[Any], unit: str) -> None:
    assert at_once(given_times, unit) == one_by_one(given_times, unit)


@given(st.lists(st.one_of(_good_integers, st.integers(-(2**63), 2**63 - 1)), max_size=80), st.sampled_from(UNITS))
def test_an_array_of_times_is_what_each_would_be_alone(given_times: list[int], unit: str) -> None:
    assert at_once(np.array(given_times, np.int64), unit) == one_by_one(given_times, unit)


def test_one_bad_time_among_many_is_found() -> None:
    given_times = np.full(100_000, 1_700_000_000)
    given_times[70_001] = 1_800_000_000
    found, refused = at_once(given_times, "s")
    assert list(refused) == [70_001]
    assert found[70_000] == found[70_002] == 1_700_000_000 * 10**9
