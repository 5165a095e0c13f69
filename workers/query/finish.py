"""Operations over merged figures: a column of results for each. Definitions: docs/http-api.md.

Pure: no I/O, no clock, no state.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from workers.query import pairs
from workers.query.merge import Merged
from workers.query.operations import Operation
from workers.query.refusal import Refusal

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


class Column(NamedTuple):
    """values: of shape (rows,), float64, of a count int64. known: where there is a result; elsewhere it is null."""

    values: npt.NDArray[Any]
    known: Flags

    def shown(self) -> npt.NDArray[Any] | list[Any]:
        """As an answer has it: None where it is null."""
        if self.known.all():
            return self.values
        items = self.values.tolist()
        for at in np.flatnonzero(~self.known).tolist():
            items[at] = None
        return list(items)

    def take(self, rows: Any) -> "Column":
        """Some of its rows."""
        return Column(self.values[rows], self.known[rows])


def finish(merged: Merged, operations: Sequence[Operation]) -> dict[str, Column]:
    """The results by the operations' texts, one row for each of the merged. Raises Refusal where one leaves float64."""
    found = {}
    for operation in operations:
        ranked = operation.kind in _RANKED
        column = _percentile(merged, operation.percent) if ranked else _FINISH[operation.kind](merged)
        if not np.isfinite(column.values[column.known]).all():
            text = f"{operation.text}: a result over these points leaves the range of float64"
            raise Refusal(422, "overflow", text, "operation")
        found[operation.text] = column
    return found


def _filled(merged: Merged) -> Flags:
    return np.asarray(merged.columns["count"] > 0)


def _count(merged: Merged) -> Column:
    return Column(merged.columns["count"], np.ones(len(merged), np.bool_))


def _total(name: str) -> Callable[[Merged], Column]:
    """A sum over points."""

    def finished(merged: Merged) -> Column:
        return Column(merged.columns[name], _filled(merged))

    return finished


def _avg(merged: Merged) -> Column:
    columns = merged.columns
    means, _ = pairs.quotient(columns["sum_hi"], columns["sum_lo"], np.maximum(columns["count"], 1))
    return Column(means, _filled(merged))


def _spread(merged: Merged) -> Column:
    with np.errstate(over="ignore", invalid="ignore"):
        return Column(merged.columns["max"] - merged.columns["min"], _filled(merged))


def _variance(merged: Merged) -> Column:
    count = merged.columns["count"]
    return Column(np.maximum(merged.columns["m2"], 0.0) / np.maximum(count - 1, 1), np.asarray(count > 1))


def _stddev(merged: Merged) -> Column:
    variance = _variance(merged)
    return Column(np.sqrt(variance.values), variance.known)


def _stepped(name: str) -> Callable[[Merged], Column]:
    """A sum over steps."""

    def finished(merged: Merged) -> Column:
        return Column(merged.columns[f"{name}_hi"], np.asarray(merged.columns["steps"] > 0))

    return finished


def _covered(merged: Merged) -> Flags:
    return np.asarray(merged.columns["covered_hi"] > 0)


def _integral(merged: Merged) -> Column:
    return Column(merged.columns["integral_hi"], _covered(merged))


def _twa(merged: Merged) -> Column:
    columns, covered = merged.columns, _covered(merged)
    seconds = np.where(covered, columns["covered_hi"], 1.0)
    lows = np.where(covered, columns["covered_lo"], 0.0)
    means, _ = pairs.quotient(columns["integral_hi"], columns["integral_lo"], seconds, lows)
    return Column(means, covered)


def _percentile(merged: Merged, percent: float) -> Column:
    """Linear between the two nearest ranks, computed as numpy's percentile does."""
    columns, filled = merged.columns, _filled(merged)
    totals = np.cumsum(columns["value_counts"])
    ends, counts = columns["value_ends"], columns["count"]
    if not len(totals):
        return Column(np.zeros(len(merged)), np.zeros(len(merged), np.bool_))
    before = np.append(0, totals)[np.append(0, ends[:-1])]
    place = np.maximum(counts - 1, 0) * (percent / 100)
    floor = np.floor(place)
    share = place - floor
    low = _at_rank(columns["values"], totals, before + floor.astype(np.int64), filled)
    rank = before + np.minimum(floor.astype(np.int64) + 1, np.maximum(counts - 1, 0))
    high = _at_rank(columns["values"], totals, rank, filled)
    with np.errstate(over="ignore", invalid="ignore"):
        gap = high - low
        between = np.where(share < 0.5, low + gap * share, high - gap * (1 - share))
        between = np.where(np.isfinite(gap), between, low * (1 - share) + high * share)
    return Column(np.where(low == high, low, between), filled)


def _at_rank(values: Floats, totals: npt.NDArray[np.int64], rank: npt.NDArray[np.int64], filled: Flags) -> Floats:
    at = np.searchsorted(totals, rank, side="right")
    return np.asarray(np.where(filled, values[np.minimum(at, len(values) - 1)], 0.0))


_RANKED: Final = ("median", "percentile")
_FINISH: Final[dict[str, Callable[[Merged], Column]]] = {
    "avg": _avg,
    "sum": _total("sum_hi"),
    "max": _total("max"),
    "min": _total("min"),
    "count": _count,
    "first": _total("first"),
    "last": _total("last"),
    "spread": _spread,
    "stddev": _stddev,
    "variance": _variance,
    "rate": _stepped("rate"),
    "increase": _stepped("increase"),
    "delta": _stepped("delta"),
    "integral": _integral,
    "twa": _twa,
}
