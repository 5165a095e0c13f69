"""What a node replies to a GroupsRequest, worked out slowly and obviously, in fractions."""

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np

from common import figures
from common.match import Tester
from common.protocol import Cost, GroupsReply, GroupsRequest, Stretch
from common.series import parse_key

S = 10**9
Point = tuple[bytes, int, float]
Sample = tuple[int, float]
Bucket = tuple[int, int, int]  # name, first ns, last ns


def naive_groups(covered: bytes, points: Sequence[Point], request: GroupsRequest) -> GroupsReply:
    """The reply over these points."""
    tester = Tester(request.match)
    groups: dict[tuple[Any, ...], dict[bytes, list[Sample]]] = {}
    for key in sorted({key for key, _, _ in points}):
        series = parse_key(key)
        if tester.device(series.device_id) and tester.metric(series.metric_name) and tester.tags(series.tags):
            known: dict[str, Any] = {"device_id": series.device_id, "metric_name": series.metric_name, "series": key}
            known |= {f"tags.{name}": value for name, value in series.tags}
            group = tuple(known.get(name) for name in request.group_by)
            samples = {at: value for one, at, value in points if one == key and _inside(at, request)}
            groups.setdefault(group, {})[key] = sorted(samples.items())
    names = [name for want in request.wants for name in figures.WANTS[want]]
    columns: dict[str, list[Any]] = {name: [] for name in dict.fromkeys(["group", "start", "count", *names])}
    for number, series_rows in enumerate(groups.values()):
        for bucket in _buckets(list(series_rows.values()), request):
            row = _row(list(series_rows.values()), bucket) | {"group": number, "start": bucket[0]}
            if row["count"] or ("integral_hi" in columns and row["covered_hi"]):
                _append(columns, row)
    return GroupsReply(
        covered, 0, sum(map(len, groups.values())), [list(group) for group in groups], list(map(len, groups.values())),
        figures.pack({name: np.array(items, figures.DTYPES[name]) for name, items in columns.items()}), Cost(),
    )  # fmt: skip


def _inside(at: int, request: GroupsRequest) -> bool:
    return (request.start_ns is None or at >= request.start_ns) and (request.end_ns is None or at <= request.end_ns)


def _buckets(series: list[list[Sample]], request: GroupsRequest) -> list[Bucket]:
    times = [at for rows in series for at, _ in rows]
    if not times:
        return []
    if not request.stretches:
        return [(request.start_ns or 0, min(times), max(times))]
    found, at = [], min(times)
    while at <= max(times):
        stretch = next(each for each in request.stretches if each.start_ns <= at <= each.end_ns)
        name, last = _bucket(stretch, at)
        found.append((name, max(name, stretch.start_ns), last))
        at = last + 1
    return found


def _bucket(stretch: Stretch, at: int) -> tuple[int, int]:
    if not stretch.interval_ns:
        return stretch.offset_ns, stretch.end_ns
    name = stretch.offset_ns + (at - stretch.offset_ns) // stretch.interval_ns * stretch.interval_ns
    return name, min(stretch.end_ns, name + stretch.interval_ns - 1)


def _append(columns: dict[str, list[Any]], row: dict[str, Any]) -> None:
    for name, items in columns.items():
        if name in ("values", "value_counts"):
            items += row[name]
        elif name == "value_ends":
            items.append((items[-1] if items else 0) + len(row["values"]))
        else:
            items.append(row[name])


def _row(series: list[list[Sample]], bucket: Bucket) -> dict[str, Any]:
    _, begin, last = bucket
    rows = [row for rows in series for row in rows if begin <= row[0] <= last]
    values = [value for _, value in rows]
    count = len(rows)
    exact = sum(map(Fraction, values), Fraction(0))
    mean = exact / max(count, 1)
    distinct = sorted({value + 0.0 for value in values})
    row: dict[str, Any] = {
        "count": count,
        "min": min(values, key=_rank, default=0.0),
        "max": max(values, key=_rank, default=0.0),
        "first_time": min(rows)[0] if rows else 0,
        "last_time": max(rows)[0] if rows else 0,
        "m2": _float(sum(((Fraction(value) - mean) ** 2 for value in values), Fraction(0))),
        "values": distinct,
        "value_counts": [values.count(value) for value in distinct],
    }
    for name in ("first", "last"):
        row[name] = max((value for at, value in rows if at == row[f"{name}_time"]), key=_rank, default=0.0)
    row |= _pair("sum", exact) | _steps(series, begin, last) | _areas(series, begin, last)
    if count and all(value == 0 and math.copysign(1, value) < 0 for value in values):
        row["sum_hi"] = -0.0
    return row


def _steps(series: list[list[Sample]], begin: int, last: int) -> dict[str, Any]:
    steps, delta, increase, rate = 0, Fraction(0), Fraction(0), Fraction(0)
    for rows in series:
        gains, seconds = Fraction(0), Fraction(0)
        for (before, old), (at, new) in pairwise(rows):
            if begin <= at <= last:
                steps += 1
                delta += Fraction(new) - Fraction(old)
                gains += Fraction(new) - Fraction(old) if new >= old else Fraction(new)
                seconds += Fraction(at - before, S)
        increase += gains
        rate += gains / seconds if seconds else 0
    return {"steps": steps} | _pair("delta", delta) | _pair("increase", increase) | _pair("rate", rate)


def _areas(series: list[list[Sample]], begin: int, last: int) -> dict[str, Any]:
    area, covered = Fraction(0), Fraction(0)
    for rows in series:
        for (before, old), (at, new) in pairwise(rows):
            low, high = max(before, begin), min(at, last + 1)
            if low < high:
                slope = (Fraction(new) - Fraction(old)) / (at - before)
                middle = Fraction(old) + slope * (Fraction(low + high, 2) - before)
                area += middle * Fraction(high - low, S)
                covered += Fraction(high - low, S)
    return _pair("integral", area) | _pair("covered", covered)


def _float(exact: Fraction) -> float:
    try:
        return float(exact)
    except OverflowError:
        return math.inf


def _pair(name: str, exact: Fraction) -> dict[str, float]:
    hi = _float(exact)
    if math.isinf(hi):
        return {f"{name}_hi": hi, f"{name}_lo": 0.0}
    return {f"{name}_hi": hi, f"{name}_lo": float(exact - Fraction(hi))}


def _rank(value: float) -> tuple[float, float]:
    return value, math.copysign(1.0, value)
