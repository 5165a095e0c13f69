"""Verified reads of real nodes that differ: exact at once, and repaired soon after."""

from typing import Any

import pytest

from tests.naive_query import Series
from tests.queried import Queried, Row
from tests.support import Children, wait_until

S = 10**9
SERIES: list[Series] = [(f"d{number}", "m", ()) for number in range(20)]
OPERATIONS = ["count", "sum", "min", "max", "first", "last", "median", "rate", "integral"]


@pytest.fixture
def made(children: Children, tmp_path: Any) -> Queried:
    settings = {"storage.head_rows": 1024, "storage.repair_settle_s": 0.0}
    return Queried(children, tmp_path, 3, settings, replication=2).wait_ready()


def points(series: list[Series], first: int, last: int, value: float = 1.0) -> list[Row]:
    return [(each, at * S, value * at) for each in series for at in range(first, last)]


def asked(cluster: Queried, consistency: str = "verified", **fields: Any) -> dict[str, Any]:
    status, answer = cluster.ask(
        device_id="*", metric_name="m", operation=OPERATIONS, consistency=consistency, **fields
    )
    assert status == 200, answer
    assert isinstance(answer, dict)
    return answer


def test_owners_that_differ_are_joined_and_then_repaired(made: Queried) -> None:
    for rank in (0, 1):
        made.push(points(SERIES, 100, 400), rank=rank)
    equal = asked(made)
    assert equal["coverage"]["verified"] is True
    assert equal["coverage"]["compared"] == {"owners": 2, "series_joined": 0, "reason": ""}
    assert equal["result"] == asked(made, "current")["result"]

    made.push(points(SERIES[:2], 400, 420), rank=0)  # each lacks what the other has, also a series altogether
    made.push([*points(SERIES[1:3], 420, 450), (("new", "m", ()), 7 * S, 7.0)], rank=1)
    made.push(points(SERIES[3:4], 200, 210, 2.0), rank=1)
    torn = asked(made)
    assert torn["coverage"]["verified"] is True, torn["coverage"]
    assert torn["coverage"]["compared"]["series_joined"] == 5
    assert torn["count"] == 20 * 300 + 2 * 20 + 2 * 30 + 1
    grouped = asked(made, group_by="series", interval="100s", start_time=0, end_time=1000)
    status, samples = made.call("GET", "/api/v1/samples?metric_name=m&limit=all&consistency=verified")
    assert (status, sum(len(each["times"]) for each in samples["series"])) == (200, torn["count"])

    wait_until(lambda: asked(made)["coverage"]["compared"]["series_joined"] == 0, 60, "owners to be repaired")
    repaired = asked(made)
    assert repaired["result"] == torn["result"]
    assert asked(made, group_by="series", interval="100s", start_time=0, end_time=1000)["rows"] == grouped["rows"]
    assert asked(made, "current")["result"] == torn["result"]
