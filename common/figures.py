"""Figures: the columns in which nodes answer, by name, each with one dtype.

On the bus a column is its items in little-endian bytes; all columns of a reply are equally long, but those of distinct
values, which are as long as `value_ends` says. Pure: no I/O, no state.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from common.errors import ProtocolError

# A sum is the unevaluated pair hi + lo (hi not finite when it left the range of float64); so are seconds.
DTYPES: Final[dict[str, str]] = {
    "group": "<u4",  # index into the reply's groups or keys
    "start": "<i8",  # of the bucket, ns
    "end": "<i8",  # ns
    "count": "<i8",
    "sum_hi": "<f8",
    "sum_lo": "<f8",
    "min": "<f8",
    "max": "<f8",
    "first_time": "<i8",
    "first": "<f8",
    "last_time": "<i8",
    "last": "<f8",
    "m2": "<f8",  # sum of squared distances from the mean
    "steps": "<i8",  # pairs of neighbouring samples whose later one lies in the bucket
    "increase_hi": "<f8",
    "increase_lo": "<f8",
    "delta_hi": "<f8",
    "delta_lo": "<f8",
    "rate_hi": "<f8",  # sum over the series of increase / seconds of its steps
    "rate_lo": "<f8",
    "integral_hi": "<f8",  # value times seconds
    "integral_lo": "<f8",
    "covered_hi": "<f8",  # seconds that the integral speaks of
    "covered_lo": "<f8",
    "usual_ns": "<i8",
    "value_ends": "<i8",  # by row, the end of its distinct values
    "values": "<f8",  # distinct, ascending within a row by value, -0.0 with 0.0
    "value_counts": "<i8",
}
_DTYPES: Final = {name: np.dtype(dtype) for name, dtype in DTYPES.items()}  # numpy reads a name anew each time
# What a request can want, and the columns that tell it.
WANTS: Final[dict[str, tuple[str, ...]]] = {
    "count": ("count",),
    "sum": ("count", "sum_hi", "sum_lo"),
    "min": ("count", "min"),
    "max": ("count", "max"),
    "first": ("count", "first_time", "first"),
    "last": ("count", "last_time", "last"),
    "m2": ("count", "sum_hi", "sum_lo", "m2"),
    "steps": (
        "count", "steps", "increase_hi", "increase_lo", "delta_hi", "delta_lo", "rate_hi", "rate_lo",
    ),
    "integral": ("count", "integral_hi", "integral_lo", "covered_hi", "covered_lo"),
    "values": ("count", "value_ends", "values", "value_counts"),
}  # fmt: skip
_LONG: Final = ("values", "value_counts")

Columns = Mapping[str, npt.NDArray[Any]]


def pack(columns: Columns) -> dict[str, bytes]:
    """Columns as they travel. Raises KeyError for a name that is none."""
    return {name: np.ascontiguousarray(items, DTYPES[name]).tobytes() for name, items in columns.items()}


def unpack(packed: Mapping[str, bytes], names: tuple[str, ...]) -> dict[str, npt.NDArray[Any]]:
    """Exactly these columns, read-only. Raises ProtocolError where one is missing or of another length."""
    found = {}
    for name in names:
        if name not in packed:
            raise ProtocolError(f"columns lack {name}, have {', '.join(sorted(packed))[:200]}")
        try:
            found[name] = np.frombuffer(packed[name], _DTYPES[name])
        except ValueError as error:
            text = f"column {name}: {len(packed[name])} bytes are no whole {DTYPES[name]} items"
            raise ProtocolError(text) from error
    rows = {len(items) for name, items in found.items() if name not in _LONG}
    if len(rows) > 1:
        raise ProtocolError(f"columns differ in length: {sorted(rows)}")
    if "value_ends" in found:
        _check_values(found)
    return found


def _check_values(found: Mapping[str, npt.NDArray[Any]]) -> None:
    ends = found["value_ends"]
    total = int(ends[-1]) if len(ends) else 0
    if not len(found["values"]) == len(found["value_counts"]) == total or (np.diff(ends, prepend=0) < 0).any():
        raise ProtocolError("the distinct values of a reply do not fit their rows")
