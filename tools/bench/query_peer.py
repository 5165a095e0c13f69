"""What bench query asks of minitrue and of VictoriaMetrics: the same points, the same questions, over HTTP.

Shapes: 500 series x 10,000 points 10 s apart, one series of 5 M points 1 s apart, 20,000 series x 100 points.
"""

import json
import urllib.parse
from typing import Any, Final, NamedTuple

import click

from common.series import Series
from tools.bench.data import SECOND_NS, Dataset, made, regular
from tools.bench.findings import Bar

ONE: Final = "sensor_00000"
CLOSE: Final = 1e-9  # relative difference of averages that are added in another order


class Case(NamedTuple):
    """A question. path, body: ours, GET without a body; theirs: the path of a peer, answered with what compares."""

    name: str
    path: str
    body: str
    theirs: str
    bar: Bar
    compares: bool = False  # whether both answers are one number


def datasets(scale: float) -> list[Dataset]:
    """The points, each shape under a metric of its own."""
    several = made("walks", max(1, round(500 * scale)), 10_000, regular(10 * SECOND_NS, 5))
    long = made("long", 1, round(5_000_000 * scale), regular(SECOND_NS, 1))
    many = made("many", max(1, round(20_000 * scale)), 100, regular(10 * SECOND_NS, 5))
    return [several, _renamed(long, "level"), _renamed(many, "humidity")]


def cases(points: list[Dataset]) -> list[Case]:
    """The questions about these points."""
    several, long, many = points
    _, last_ms = several.span_ms()
    one = f'temperature{{device="{ONE}"}}'
    hourly = {"operation": "avg", "interval": "1h"}
    last_hour = {"operation": "max", "start_time": last_ms / 1000 - 3599.999, "end_time": last_ms / 1000}
    samples = f"/api/v1/samples?device_id={ONE}&metric_name=temperature&limit=100000"
    export = "/api/v1/export?" + urllib.parse.urlencode({"match[]": one})
    return [
        _case("avg, 1 x 10,000", ONE, "temperature", {"operation": "avg"}, _over("avg", one, several), 2, True),
        _case("avg, 1 x 5 M", ONE, "level", {"operation": "avg"}, _over("avg", "level", long), 0.1, True),
        _case("avg, 500 x 10,000", "*", "temperature", {"operation": "avg"}, _mean("temperature", several), 0.1, True),
        _case("avg, 20,000 x 100", "*", "humidity", {"operation": "avg"}, _mean("humidity", many), 0.3, True),
        _case("1 h buckets, 1 x 10,000", ONE, "temperature", hourly, _hourly(one, several), 3),
        _case(
            "1 h buckets by device, 5 M", "*", "temperature", hourly | {"group_by": ["device_id"]},
            _hourly("temperature", several), 0.4,
        ),
        _case("max, last hour", ONE, "temperature", last_hour, _at(f"max_over_time({one}[1h])", last_ms), 3, True),
        Case("10,000 samples, JSON", samples, "", export, Bar("ratio", 1.5)),
        Case("10,000 samples, msgpack", samples + "&format=msgpack&binary=true", "", export, Bar("ratio", 0.5)),
        Case("10,000 samples, Arrow", samples + "&format=arrow", "", export, Bar("ratio", 0.5)),
    ]  # fmt: skip


def check(case: Case, ours: bytes, theirs: bytes) -> None:
    """Raise ClickException unless both found the same number, where the answers are one."""
    if not case.compares:
        return
    mine, other = json.loads(ours)["result"], float(json.loads(theirs)["data"]["result"][0]["value"][1])
    if abs(mine - other) > CLOSE * abs(other):
        raise click.ClickException(f"{case.name}: {mine} here, {other} there")


def _case(
    name: str, device: str, metric: str, more: dict[str, Any], theirs: str, limit: float, compares: bool = False
) -> Case:
    body = json.dumps({"device_id": device, "metric_name": metric} | more)
    return Case(name, "/query", body, theirs, Bar("ratio", limit), compares)


def _renamed(points: Dataset, metric: str) -> Dataset:
    return Dataset(points.name, [Series(each.device_id, metric) for each in points.series], points.rows)


def _over(function: str, selector: str, points: Dataset) -> str:
    first, last = points.span_ms()
    return _at(f"{function}_over_time({selector}[{last - first + 1}ms])", last)


def _mean(metric: str, points: Dataset) -> str:
    """The mean of all: of the series' means, for all have equally many points."""
    first, last = points.span_ms()
    return _at(f"avg(avg_over_time({metric}[{last - first + 1}ms]))", last)


def _at(expression: str, time_ms: int) -> str:
    return "/api/v1/query?" + urllib.parse.urlencode({"query": expression, "time": time_ms / 1000, "nocache": 1})


def _hourly(selector: str, points: Dataset) -> str:
    first, last = points.span_ms()
    hour = 3_600_000
    parameters = {
        "query": f"avg_over_time({selector}[1h])", "start": (first // hour * hour + hour - 1) / 1000,
        "end": (last + hour) / 1000, "step": "1h", "nocache": 1,
    }  # fmt: skip
    return "/api/v1/query_range?" + urllib.parse.urlencode(parameters)
