"""Partial aggregates of several nodes, merged and finished into one result.

Sums arrive as unevaluated pairs (hi, lo). They are added exactly and rounded once, at the end, so the answer
does not depend on how many nodes there are, nor on the order of their replies. Equal values are ordered like
their IEEE bits (-0.0 below 0.0), as everywhere in minitrue.
Pure: no I/O, no clock, no state.
"""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Final

from common.errors import ProtocolError, QueryError
from common.protocol import AggregateReply

Partials = Sequence[AggregateReply]  # those of an answer, each covering partitions of its own


class Overflow(QueryError):
    """A sum over the points leaves the range of float64."""


def check(partial: AggregateReply) -> None:
    """Raise ProtocolError for a partial that no node computes: what it holds of single points must be finite."""
    for name in ("min", "max", "first", "last"):
        value = getattr(partial, name)
        if not math.isfinite(value):
            raise ProtocolError(f"AggregateReply.{name} is {value}, want a finite number")
    if partial.m2 < 0:
        raise ProtocolError(f"AggregateReply.m2 is {partial.m2}, want none below 0")
    if partial.count < 0 or partial.series < 0:
        raise ProtocolError(f"AggregateReply counts {partial.count} points of {partial.series} series")


def finish(operation: str, partials: Partials) -> float | int | None:
    """The result of an operation over all partials; None when they hold no points, but a count is 0.

    Raises Overflow when a sum leaves the range of float64.
    """
    filled = [partial for partial in partials if partial.count]
    if operation == "count":
        return sum(partial.count for partial in filled)
    if not filled:
        return None
    return _FINISH[operation](filled)


def count(partials: Partials) -> int:
    """The number of points in all partials."""
    return sum(partial.count for partial in partials)


def m2(partials: Partials) -> float:
    """The sum of squared distances of all points from their mean; 0.0 without points.

    The formula of Chan, Golub and LeVeque (1979) for any number of parts: what each has within, and count * mean**2 of
    each against that of all; in fractions, so that nothing cancels. Raises Overflow when a part or the whole leaves
    the range of float64.
    """
    filled = [partial for partial in partials if partial.count]
    try:
        sums = [Fraction(partial.sum_hi) + Fraction(partial.sum_lo) for partial in filled]
        within = sum((Fraction(partial.m2) for partial in filled), Fraction(0))
        between = sum((total**2 / partial.count for total, partial in zip(sums, filled, strict=True)), Fraction(0))
        return float(within + between - sum(sums, Fraction(0)) ** 2 / max(1, count(filled)))
    except (OverflowError, ValueError) as error:  # an infinite part, or a result outside float64
        raise Overflow("the variance of these points leaves the range of float64") from error


def delete_number(partials: Partials) -> int:
    """The deletes that the whole answer reflects: the lowest number among the replies."""
    return min((partial.delete_number for partial in partials), default=0)


def _sum(partials: Partials) -> float:
    return _quotient(partials, 1)


def _avg(partials: Partials) -> float:
    return _quotient(partials, count(partials))


def _quotient(partials: Partials, divisor: int) -> float:
    """(exact sum of all pairs) / divisor, rounded once.

    A float is an integer over a power of two, so the sum is one fraction; Python's int / int is correctly
    rounded.
    """
    parts = [part for partial in partials for part in (partial.sum_hi, partial.sum_lo)]
    if len(parts) == 2 and parts[1] == 0.0 and divisor == 1 and math.isfinite(parts[0]):
        return parts[0]
    try:
        ratios = [part.as_integer_ratio() for part in parts]
        scale = max(below for _, below in ratios)
        total = sum(above * (scale // below) for above, below in ratios)
        _ = total / scale  # an average is refused where its sum is: the same for any number of nodes
        return total / (scale * divisor) if total else _zero(parts)
    except (OverflowError, ValueError) as error:  # an infinite part, or a total outside float64
        raise Overflow("the sum of these points leaves the range of float64") from error


def _zero(parts: Sequence[float]) -> float:
    """The sign of an exact zero: negative only when every point was -0.0."""
    return -0.0 if all(math.copysign(1.0, part) < 0 for part in parts[::2]) else 0.0


def _order(value: float) -> tuple[float, float]:
    return value, math.copysign(1.0, value)


def _min(partials: Partials) -> float:
    return min((partial.min for partial in partials), key=_order)


def _max(partials: Partials) -> float:
    return max((partial.max for partial in partials), key=_order)


def _first(partials: Partials) -> float:
    """The value at the earliest time; of several series at that time, the larger."""
    time = min(partial.first_time for partial in partials)
    return max((partial.first for partial in partials if partial.first_time == time), key=_order)


def _last(partials: Partials) -> float:
    """The value at the latest time; of several series at that time, the larger."""
    time = max(partial.last_time for partial in partials)
    return max((partial.last for partial in partials if partial.last_time == time), key=_order)


_FINISH: Final[dict[str, Callable[[Partials], float]]] = {
    "avg": _avg,
    "sum": _sum,
    "max": _max,
    "min": _min,
    "first": _first,
    "last": _last,
}
