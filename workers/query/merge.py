"""Partial aggregates by group and bucket, of several nodes, as one table of figures.

Sums arrive as unevaluated pairs (hi, lo). Where more than one node contributes to a row they are added exactly, and
every pair is made canonical (hi is the rounded sum), so that the answer does not depend on how many nodes there are,
nor on the order of their replies. Equal values are ordered like their IEEE bits (-0.0 below 0.0), as everywhere.
Pure: no I/O, no clock, no state.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from common import figures
from common.errors import ProtocolError
from common.protocol import GroupsReply
from workers.query import pairs
from workers.query.runs import beginnings

Group = tuple[str | bytes | None, ...]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_FINITE: Final = ("min", "max", "first", "last", "values")
_LEAST: Final = np.iinfo(np.int64).min
_MOST: Final = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Merged:
    """One row by group and bucket, ordered by both.

    groups: ascending, an absent tag before all texts. group (index into groups), start (ns): of shape (rows,), as each
    of columns (common.figures), but for values and value_counts, of which value_ends tells the rows.
    """

    groups: list[Group]
    group: Ints
    start: Ints
    columns: dict[str, npt.NDArray[Any]]

    def __len__(self) -> int:
        return len(self.group)


def names(wants: Sequence[str]) -> tuple[str, ...]:
    """The columns of a reply to these wants."""
    return _names(tuple(wants))


@functools.cache
def _names(wants: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(["group", "start", *(name for want in wants for name in figures.WANTS[want])]))


def check(reply: GroupsReply, wants: Sequence[str], group_by: Sequence[str]) -> None:
    """Raise ProtocolError for a reply that no node computes."""
    found = figures.unpack(reply.columns, names(wants))
    if len(found["group"]) and int(found["group"].max()) >= len(reply.groups):
        raise ProtocolError(f"GroupsReply has rows of group {found['group'].max()}, and {len(reply.groups)} groups")
    if any(len(group) != len(group_by) for group in reply.groups):
        raise ProtocolError(f"GroupsReply has groups of another length than {len(group_by)}")
    for name in _FINITE:
        if name in found and not np.isfinite(found[name]).all():
            raise ProtocolError(f"GroupsReply.{name} has values that are not finite")
    if min((int(found[name].min()) for name in ("count", "steps") if len(found.get(name, ()))), default=0) < 0:
        raise ProtocolError("GroupsReply counts below 0")


def merge(replies: Sequence[GroupsReply], wants: Sequence[str]) -> Merged:
    """The rows of all replies, each covering partitions of its own; they have passed `check`."""
    parts = [figures.unpack(reply.columns, names(wants)) for reply in replies]
    groups, places = _groups(replies)
    group = _joined([place[part["group"]] for place, part in zip(places, parts, strict=True)], np.int64)
    start = _joined([part["start"] for part in parts], np.int64)
    rows = {
        name: _joined([part[name] for part in parts], figures.DTYPES[name])
        for name in names(wants)
        if name not in ("group", "start", "value_ends", "values", "value_counts")
    }
    order, are_alone = _order(group, start, len(groups))
    if order is not None:
        group, start = group[order], start[order]
        rows = {name: items[order] for name, items in rows.items()}
    is_first = np.ones(len(group), np.bool_) if are_alone else beginnings(group, start)
    if are_alone and rows["count"].min(initial=1) > 0:
        columns = _canonical(rows)
    else:
        begins = np.flatnonzero(is_first)
        group, start = group[begins], start[begins]
        columns = _Fold(rows, begins).columns()
    if "values" in wants:
        numbers = np.cumsum(is_first) - 1
        if order is not None:
            numbers[order] = numbers.copy()
        columns |= _values(parts, numbers, len(group))
    return Merged(groups, group, start, columns)


def _joined(parts: list[npt.NDArray[Any]], dtype: Any) -> npt.NDArray[Any]:
    if len(parts) == 1:
        return parts[0]
    return np.concatenate([np.zeros(0, dtype), *parts]).astype(dtype, copy=False)


def _groups(replies: Sequence[GroupsReply]) -> tuple[list[Group], list[Ints]]:
    """All groups, ascending, and by reply the place of each of its groups among them."""
    each = [list(map(tuple, reply.groups)) for reply in replies]
    groups = set(itertools.chain.from_iterable(each))
    # Python orders texts by their code points, which is the order of their UTF-8.
    found = sorted(groups, key=_rank if any(None in group for group in groups) else None)
    places = dict(zip(found, range(len(found)), strict=True))
    return found, [np.array(list(map(places.__getitem__, groups)), np.int64) for groups in each]


def _rank(group: Group) -> list[tuple[Any, ...]]:
    return [() if value is None else (value,) for value in group]


def _order(group: Ints, start: Ints, groups: int) -> tuple[Ints | None, bool]:
    """The stable order by group and start, None where the rows have it; True when it is seen that all rows differ."""
    if _ascend(group, start):
        return None, True
    # Where no group has rows of several nodes this is enough, and numpy sorts numbers below 65,536 by counting them.
    order = np.argsort(group.astype(np.min_scalar_type(groups)), kind="stable")
    if _ascend(group[order], start[order]):
        return order, True
    return np.lexsort((start, group)), False


def _ascend(group: Ints, start: Ints) -> bool:
    before, after = group[:-1], group[1:]
    return bool(((before < after) | ((before == after) & (start[:-1] < start[1:]))).all())


def _canonical(rows: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """The columns of rows of which each stays alone, and has points: what folding them gives."""
    found = dict(rows)
    for name in [name.removesuffix("_hi") for name in rows if name.endswith("_hi")]:
        found[f"{name}_hi"], found[f"{name}_lo"] = pairs.canonical(rows[f"{name}_hi"], rows[f"{name}_lo"])
    return found


class _Fold:
    """Rows that are to become one: those from each of `begins` to the next."""

    def __init__(self, rows: dict[str, npt.NDArray[Any]], begins: Ints) -> None:
        self._rows = rows
        self._begins = begins
        ends = np.append(begins[1:], len(rows["count"]))
        self._several = np.flatnonzero(ends - begins > 1)
        self._spans = list(zip(begins[self._several].tolist(), ends[self._several].tolist(), strict=True))
        self._filled = rows["count"] > 0
        self._lengths = ends - begins

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """All columns, folded."""
        rows, begins = self._rows, self._begins
        found: dict[str, npt.NDArray[Any]] = {}
        for name in ("count", "steps"):
            if name in rows:
                found[name] = np.add.reduceat(rows[name], begins)
        if "min" in rows:
            least = np.where(self._filled, _ranked(rows["min"]), _MOST)
            found["min"] = _unranked(np.minimum.reduceat(least, begins))
        if "max" in rows:
            most = np.where(self._filled, _ranked(rows["max"]), _LEAST)
            found["max"] = _unranked(np.maximum.reduceat(most, begins))
        for name, nearest, none in (("first", np.minimum, _MOST), ("last", np.maximum, _LEAST)):
            if name in rows:
                times = np.where(self._filled, rows[f"{name}_time"], none)
                found[f"{name}_time"] = nearest.reduceat(times, begins)
                here = self._filled & (times == np.repeat(found[f"{name}_time"], self._lengths))
                ranks = np.where(here, _ranked(rows[name]), _LEAST)
                found[name] = _unranked(np.maximum.reduceat(ranks, begins))
        for name in [name.removesuffix("_hi") for name in rows if name.endswith("_hi")]:
            found[f"{name}_hi"], found[f"{name}_lo"] = self._sum(name)
        if "m2" in rows:
            found["m2"] = self._m2(found)
        return found

    def _sum(self, name: str) -> tuple[Floats, Floats]:
        all_hi, all_lo = self._rows[f"{name}_hi"], self._rows[f"{name}_lo"]
        hi, lo = all_hi[self._begins], all_lo[self._begins]
        hi, lo = pairs.canonical(hi, lo)
        for at, (begin, end) in zip(self._several.tolist(), self._spans, strict=True):
            hi[at], lo[at] = _added(all_hi[begin:end].tolist(), all_lo[begin:end].tolist())
        return hi, lo

    def _m2(self, found: dict[str, npt.NDArray[Any]]) -> Floats:
        """The formula of Chan, Golub and LeVeque (1979) for any number of parts: what each has within, and count times
        the square of the distance of its mean from that of all.
        """
        rows = self._rows
        m2: Floats = rows["m2"][self._begins].copy()
        if not self._spans:
            return m2
        counts = np.maximum(rows["count"], 1)
        with np.errstate(over="ignore", invalid="ignore"):
            mean, rest = pairs.quotient(rows["sum_hi"], rows["sum_lo"], counts)
            whole, whole_rest = pairs.quotient(found["sum_hi"], found["sum_lo"], np.maximum(found["count"], 1))
            apart = (mean - np.repeat(whole, self._lengths)) + (rest - np.repeat(whole_rest, self._lengths))
            parts = np.where(self._filled, rows["m2"] + rows["count"] * apart * apart, 0.0)
        for at, (begin, end) in zip(self._several.tolist(), self._spans, strict=True):
            try:
                m2[at] = math.fsum(parts[begin:end].tolist())
            except (OverflowError, ValueError):  # a part that is not finite, or a sum beyond float64
                m2[at] = math.inf
        return m2


def _added(his: list[float], los: list[float]) -> tuple[float, float]:
    """The canonical pair of the exact sum of pairs; (inf, 0) when it leaves float64."""
    try:
        hi = math.fsum(his + los)
        if hi == 0:
            return (-0.0 if all(math.copysign(1.0, part) < 0 for part in his) else 0.0), 0.0
        return hi, math.fsum([*his, *los, -hi])
    except ValueError:  # infinities of both signs
        return math.inf, 0.0
    except OverflowError:  # perhaps only on the way
        return _added_exactly(his + los)


def _added_exactly(parts: list[float]) -> tuple[float, float]:
    try:
        total = sum(map(Fraction, parts), Fraction(0))
        return float(total), float(total - Fraction(float(total)))
    except (OverflowError, ValueError):
        return math.inf, 0.0


def _ranked(values: Floats) -> Ints:
    """Integers in the order of the floats' IEEE bits."""
    bits = values.view(np.int64)
    ranked: Ints = bits ^ ((bits >> 63) & _MOST)
    return ranked


def _unranked(ranks: Ints) -> Floats:
    return (ranks ^ ((ranks >> 63) & _MOST)).view(np.float64)


def _values(parts: list[dict[str, npt.NDArray[Any]]], numbers: Ints, rows: int) -> dict[str, npt.NDArray[Any]]:
    """The distinct values of each merged row. numbers: of the merged row, for the rows of all parts in turn."""
    lengths = _joined([np.diff(part["value_ends"], prepend=0) for part in parts], np.int64)
    row = np.repeat(numbers, lengths)
    values = _joined([part["values"] for part in parts], np.float64) + 0.0  # -0.0 becomes 0.0
    counts = _joined([part["value_counts"] for part in parts], np.int64)
    order = np.lexsort((values, row))
    row, values = row[order], values[order]
    begins = np.flatnonzero(beginnings(row, values))
    return {
        "value_ends": np.searchsorted(row[begins], np.arange(rows), side="right"),
        "values": values[begins],
        "value_counts": np.add.reduceat(counts[order], begins) if len(begins) else counts,
    }
