"""Steps and areas between neighbouring samples of a series: increases, deltas, rates and integrals, by group and bucket.

(being written: the signature below holds)
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy.typing as npt

from workers.storage.buckets import Span
from workers.storage.fold import Cost
from workers.storage.readers import Readers
from workers.storage.recent import Integers
from workers.storage.table import Selection, View


class StepRows(NamedTuple):
    """Figures by group and bucket, in this order: the buckets that have samples or, with integrals, trapezoids.

    groups, starts: int64[n]; columns: those of common.figures that belong to "steps" and "integral", and count, float64
    or int64[n]; with 0 in rows without steps (or areas). cost: what it took.
    """

    groups: Integers
    starts: Integers
    columns: dict[str, npt.NDArray[Any]]
    cost: Cost


def step_rows(
    view: View,
    series: Selection,
    groups: Integers,
    spans: Sequence[Span],
    integral: bool,
    pool: Readers,
    take_rows: Callable[[float], None],
    take_points: Callable[[int], None],
) -> StepRows:
    """Figures of the steps, and with `integral` of the trapezoids, of all series of a selection.

    groups: by place, ascending. take_rows, take_points: told of the rows of the answer (empty buckets between the first
    and the last of a group counted) and the points to decode before any is decoded; they may raise LimitError. Raises
    StorageError for damage, CancelledError.
    """
    raise NotImplementedError
