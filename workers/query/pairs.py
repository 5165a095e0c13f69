"""Unevaluated pairs hi + lo of floats, in columns. Dekker, "A floating-point technique for extending the available
precision" (1971); Knuth, TAOCP 2, 4.2.2. Pure: no I/O, no state.
"""

from fractions import Fraction
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_SPLIT: Final = 2.0**27 + 1
_TAME_MIN, _TAME_MAX = 1e-200, 1e280  # no step of a quotient leaves float64, nor loses bits below its least


def canonical(hi: Floats, lo: Floats) -> tuple[Floats, Floats]:
    """The same sums with hi the rounded one; a zero keeps its sign, what is not finite stays so with lo 0."""
    with np.errstate(over="ignore", invalid="ignore"):
        total, rest = _sum(hi, lo)
    if total.all() and np.isfinite(total).all():
        return total, rest
    zero = (total == 0) & (hi == 0)
    return np.where(zero, hi, total), np.where(np.isfinite(total) & ~zero, rest, 0.0)


def quotient(hi: Floats, lo: Floats, by: npt.NDArray[Any], by_lo: Floats | None = None) -> tuple[Floats, Floats]:
    """(hi + lo) / (by + by_lo) as a pair; its hi is the quotient rounded once. A hi that is not finite stays."""
    divisor = by.astype(np.float64)
    with np.errstate(all="ignore"):
        first = hi / divisor
        product, error = _product(first, divisor)
        left = ((hi - product) - error) + lo
        if by_lo is not None:
            left = left - first * by_lo
        left /= divisor
        size, found_size = np.abs(hi), np.abs(first)
        if (
            size.max(initial=1.0) < _TAME_MAX
            and size.min(initial=1.0) > _TAME_MIN
            and found_size.min(initial=1.0) > _TAME_MIN
        ):
            return _sum(first, left)
        found, rest = canonical(first, left)
        found = np.where((hi == 0) | ~np.isfinite(hi), first, found)
        tame = (size == 0) | ((size > _TAME_MIN) & (size < _TAME_MAX) & (found_size > _TAME_MIN))
    for at in np.flatnonzero(~tame & np.isfinite(hi)).tolist():
        below = Fraction(float(divisor[at])) + (Fraction(float(by_lo[at])) if by_lo is not None else 0)
        found[at] = float((Fraction(float(hi[at])) + Fraction(float(lo[at]))) / below)
        rest[at] = 0.0
    return found, rest


def _sum(left: Floats, right: Floats) -> tuple[Floats, Floats]:
    """left + right, rounded, and what was lost in that."""
    total = left + right
    part = total - left
    return total, (left - (total - part)) + (right - part)


def _product(left: Floats, right: Floats) -> tuple[Floats, Floats]:
    """left * right, rounded, and what was lost in that."""
    product = left * right
    left_hi, left_lo = _halves(left)
    right_hi, right_lo = _halves(right)
    return product, ((left_hi * right_hi - product) + left_hi * right_lo + left_lo * right_hi) + left_lo * right_lo


def _halves(values: Floats) -> tuple[Floats, Floats]:
    big = values * _SPLIT
    high = big - (big - values)
    return high, values - high
