"""The kinds of rows that `dump` gives, and their fields. Constants and names; imports no kernels."""

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from common.series import Series

POINTS, BLOCKS, RECORDS, DELETES = "points", "blocks", "records", "deletes"

_SERIES_FIELDS: Final = ("device_id", "metric_name", "tags")
FIELDS: Final = {
    POINTS: (*_SERIES_FIELDS, "timestamp", "value", "file", "at", "delete_number"),
    BLOCKS: (
        *_SERIES_FIELDS, "file", "block", "first_time", "last_time", "points", "sum", "sum_low", "min", "max", "first",
        "last", "m2", "digest", "offset", "times_codec", "times_bytes", "values_codec", "values_bytes", "window_s",
        "windows",
    ),
    RECORDS: (
        "file", "offset", "length", "state", "born", "delete_number", "points", "series", "first_time", "last_time",
    ),
    DELETES: ("file", "number", *_SERIES_FIELDS, "first_time", "last_time"),
}  # fmt: skip

TIMES: Final = frozenset(("timestamp", "first_time", "last_time"))  # fields that hold times


class Points(NamedTuple):
    """Points of one series from one place in a file."""

    series: Series
    file: str
    at: str
    delete_number: int
    times: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]


def series_fields(series: Series) -> dict[str, Any]:
    """A series in fields of a row."""
    return {"device_id": series.device_id, "metric_name": series.metric_name, "tags": dict(series.tags)}
