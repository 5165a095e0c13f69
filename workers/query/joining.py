"""Points of several owners as one, and what a node would reply about them: for series in which owners differ.

The identity rule, as in a store: one row per series and time, of the values the larger one (-0.0 below 0.0). Sums are
exact here, as everywhere: fractions of what math.fsum rounds. Slow, some microseconds a point, and meant for few.
Pure: no I/O, no clock, no state.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from common import figures
from common.protocol import Cost, GroupsReply, GroupsRequest, Stretch
from common.series import parse_key
from workers.query.refusal import OverLimit

_SECOND: Final = 10**9
_LONG: Final = ("values", "value_counts")

Rows = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]  # times (ns, ascending, each once), values
NO_ROWS: Final[Rows] = (np.empty(0, np.int64), np.empty(0, np.float64))
Bucket = tuple[int, int, int]  # its start as told, first and last ns


def join(parts: Sequence[Rows]) -> Rows:
    """The rows of one series in several owners, each time once."""
    times, values = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((~np.signbit(values), values, times))
    times, values = times[order], values[order]
    last = np.append(times[1:] != times[:-1], True)[: len(times)]
    return times[last], values[last]


def reply(series: Mapping[bytes, Rows], request: GroupsRequest, delete_number: int) -> GroupsReply:
    """What a node replies that holds these series alone, all of which match, with these rows in the range.

    It covers no partition. Raises OverLimit.
    """
    groups: dict[tuple[Any, ...], list[Rows]] = {}
    for key in sorted(series):
        groups.setdefault(_group(key, request.group_by), []).append(series[key])
    names = ["group", "start", "count", *(name for want in request.wants for name in figures.WANTS[want])]
    columns: dict[str, list[Any]] = {name: [] for name in dict.fromkeys(names)}
    for number, members in enumerate(groups.values()):
        for bucket in _buckets(members, request):
            row = _row(members, bucket, request.wants) | {"group": number, "start": bucket[0]}
            if row["count"] or row.get("covered_hi"):
                _append(columns, row)
    packed = figures.pack({name: np.array(items, figures.DTYPES[name]) for name, items in columns.items()})
    sizes = [len(members) for members in groups.values()]
    labels = [list(group) for group in groups]
    return GroupsReply(b"", delete_number, len(series), labels, sizes, packed, Cost())


def _group(key: bytes, group_by: Sequence[str]) -> tuple[Any, ...]:
    series = parse_key(key)
    known: dict[str, Any] = {"device_id": series.device_id, "metric_name": series.metric_name, "series": key}
    known |= {f"tags.{name}": value for name, value in series.tags}
    return tuple([known.get(name) for name in group_by])


def _buckets(members: Sequence[Rows], request: GroupsRequest) -> list[Bucket]:
    """From the first to the last point of a group."""
    filled = [times for times, _ in members if len(times)]
    if not filled:
        return []
    first, last = min(int(times[0]) for times in filled), max(int(times[-1]) for times in filled)
    if not request.stretches:
        return [(request.start_ns or 0, first, last)]
    found: list[Bucket] = []
    for stretch in request.stretches:
        at, end = max(first, stretch.start_ns), min(last, stretch.end_ns)
        while at <= end:
            name, until = _bucket(stretch, at)
            found.append((name, max(name, stretch.start_ns), until))
            at = until + 1
            if len(found) > request.limits.rows:
                raise OverLimit("query.max_rows", request.limits.rows, len(found), "too many buckets")
    return found


def _bucket(stretch: Stretch, at: int) -> tuple[int, int]:
    if not stretch.interval_ns:
        return stretch.offset_ns, stretch.end_ns
    name = stretch.offset_ns + (at - stretch.offset_ns) // stretch.interval_ns * stretch.interval_ns
    return name, min(stretch.end_ns, name + stretch.interval_ns - 1)


def _append(columns: dict[str, list[Any]], row: dict[str, Any]) -> None:
    for name, items in columns.items():
        if name in _LONG:
            items += row[name]
        elif name == "value_ends":
            items.append((items[-1] if items else 0) + len(row["values"]))
        else:
            items.append(row[name])


def _row(members: Sequence[Rows], bucket: Bucket, wants: Sequence[str]) -> dict[str, Any]:
    _, begin, last = bucket
    inside = [(int(times.searchsorted(begin)), int(times.searchsorted(last, "right"))) for times, _ in members]
    times = np.concatenate([rows[0][low:high] for rows, (low, high) in zip(members, inside, strict=True)])
    values = np.concatenate([rows[1][low:high] for rows, (low, high) in zip(members, inside, strict=True)])
    row = _extremes(times, values) | {"count": len(times)}
    if "sum" in wants or "m2" in wants:
        row |= _sums(values.tolist())
    if "values" in wants:
        distinct, counts = np.unique(values + 0.0, return_counts=True)
        row |= {"values": distinct.tolist(), "value_counts": counts.tolist()}
    if "steps" in wants:
        row |= _steps(members, inside)
    if "integral" in wants:
        row |= _areas(members, inside, bucket)
    return row


def _extremes(times: npt.NDArray[np.int64], values: npt.NDArray[np.float64]) -> dict[str, Any]:
    if not len(times):
        return dict.fromkeys(("min", "max", "first_time", "first", "last_time", "last"), 0)
    first, last = int(times.min()), int(times.max())
    return {
        "min": _largest(-values) * -1.0,
        "max": _largest(values),
        "first_time": first,
        "first": _largest(values[times == first]),
        "last_time": last,
        "last": _largest(values[times == last]),
    }


def _largest(values: npt.NDArray[np.float64]) -> float:
    most = values.max()
    if most != 0.0:
        return float(most)
    return -0.0 if np.signbit(values[values == 0.0]).all() else 0.0


def _sums(values: list[float]) -> dict[str, float]:
    exact = sum(map(Fraction, values), Fraction(0))
    mean = exact / max(1, len(values))
    row = _pair("sum", exact) | {"m2": _float(sum(((Fraction(value) - mean) ** 2 for value in values), Fraction(0)))}
    if values and all(value == 0 and math.copysign(1.0, value) < 0 for value in values):
        row["sum_hi"] = -0.0
    return row


def _steps(members: Sequence[Rows], inside: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Of neighbouring samples whose later one lies in the bucket."""
    steps, delta, increase, rate = 0, Fraction(0), Fraction(0), Fraction(0)
    for (times, values), (low, high) in zip(members, inside, strict=True):
        begin = max(1, low)
        if begin >= high:
            continue
        some = [Fraction(value) for value in values[begin - 1 : high].tolist()]
        steps += high - begin
        delta += some[-1] - some[0]
        gains = sum((new - old if new >= old else new for old, new in itertools.pairwise(some)), Fraction(0))
        increase += gains
        rate += gains / Fraction(int(times[high - 1]) - int(times[begin - 1]), _SECOND)
    return {"steps": steps} | _pair("delta", delta) | _pair("increase", increase) | _pair("rate", rate)


def _areas(members: Sequence[Rows], inside: Sequence[tuple[int, int]], bucket: Bucket) -> dict[str, Any]:
    """Of neighbouring samples, what of the line between them lies in the bucket."""
    _, begin, last = bucket
    area, covered = Fraction(0), 0
    for (times, values), (low, high) in zip(members, inside, strict=True):
        for at in range(max(1, low), min(len(times) - 1, high) + 1):
            before, after = int(times[at - 1]), int(times[at])
            left, right = max(before, begin), min(after, last + 1)
            if left < right:
                old, new = Fraction(float(values[at - 1])), Fraction(float(values[at]))
                middle = old + (new - old) / (after - before) * (Fraction(left + right, 2) - before)
                area += middle * Fraction(right - left, _SECOND)
                covered += right - left
    return _pair("integral", area) | _pair("covered", Fraction(covered, _SECOND))


def _float(exact: Fraction) -> float:
    try:
        return float(exact)
    except OverflowError:
        return math.inf if exact > 0 else -math.inf


def _pair(name: str, exact: Fraction) -> dict[str, float]:
    hi = _float(exact)
    return {f"{name}_hi": hi, f"{name}_lo": 0.0 if math.isinf(hi) else float(exact - Fraction(hi))}
