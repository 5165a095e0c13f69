"""Distinct values with their counts, by row of an answer: what percentiles are made of.

Owns what was found so far of one fold. Samples are sorted in batches as they are decoded and merged when as many more
have come: memory stays within a few times the distinct values, and these within their limit. The counts are whole
numbers, so the order in which batches are found does not matter.
Any thread; a Distinct is shared by those that work on one fold, `_lock` guards it.
"""

import threading
from typing import Final, NamedTuple

import numpy as np

from workers.storage import value_kernels
from workers.storage.aggregate import LimitError
from workers.storage.fold import Fold, Grid, Layout
from workers.storage.recent import Integers, Recent, Values
from workers.storage.table import Table, View

_PENDING: Final = 1 << 20  # values that are held before they are merged
_RADIX: Final = 1 << 16  # rows that fit into 16 bits are sorted in linear time


class Counted(NamedTuple):
    """Distinct values by row, in order of rows and values: rows, int64[n]; values, float64[n]; counts, int64[n]."""

    rows: Integers
    values: Values
    counts: Integers

    @classmethod
    def of(cls, rows: Integers, values: Values, counts: Integers) -> "Counted":
        """Any values, each with a count; the same one may come more than once."""
        order = np.argsort(values)
        if len(rows) and int(rows.min()) < (highest := int(rows.max())):
            lowest = int(rows.min())
            keys = rows[order] - lowest
            narrow = highest - lowest < _RADIX
            order = order[np.argsort(keys.astype(np.uint16) if narrow else keys, kind="stable")]
        rows, values, counts = rows[order], values[order], counts[order]
        begins = np.flatnonzero(np.append(True, (np.diff(rows) != 0) | (values[1:] != values[:-1])))
        if not len(rows):
            return cls(rows, values, counts)
        return cls(rows[begins], values[begins], np.add.reduceat(counts, begins))

    @classmethod
    def joined(cls, parts: list["Counted"]) -> "Counted":
        """Several, whose rows may be the same."""
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return cls(np.empty(0, np.int64), np.empty(0, np.float64), np.empty(0, np.int64))
        return cls.of(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def check_values(values: int, limit: int) -> None:
    """Raise LimitError for more distinct values than an answer may have."""
    if values > limit:
        raise LimitError(
            f"at least {values} distinct values, want at most {limit} (query.max_values): take a shorter range, fewer "
            "series or an operation that is no percentile",
            "query.max_values", limit, values,
        )  # fmt: skip


class Distinct:
    """What was found so far. limit: of distinct values, of which `used` were found elsewhere; set before the first."""

    def __init__(self, limit: int) -> None:
        self.used = 0
        self._limit = limit
        self._lock = threading.Lock()
        self._merged = Counted.joined([])
        self._pending: list[Counted] = []
        self._held = 0

    def add(self, rows: Integers, values: Values) -> None:
        """Samples: their rows and values. Raises LimitError."""
        found = Counted.of(rows, values, np.ones(len(rows), np.int64))
        with self._lock:
            self._pending.append(found)
            self._held += len(found.rows)
            if self._held > max(_PENDING, len(self._merged.rows)):
                self._merge()

    def all(self) -> Counted:
        """Everything. Raises LimitError."""
        with self._lock:
            self._merge()
            return self._merged

    def _merge(self) -> None:
        self._merged = Counted.joined([self._merged, *self._pending])
        self._pending, self._held = [], 0
        check_values(self.used + len(self._merged.rows), self._limit)


class ValueFold(Fold):
    """A fold that gathers distinct values instead of adding up: every sample in the range is decoded.

    rows_to_decode: how many that are at most.
    """

    def __init__(
        self, view: View, table: Table, recent: Recent, grid: Grid, layout: Layout, distinct: Distinct
    ) -> None:
        self.distinct = distinct
        super().__init__(view, table, recent, grid, layout, with_summaries=False)

    def _fold_rows(
        self, times: Integers, values: Values, offsets: Integers, places: Integers, shift: int, rows: Integers
    ) -> None:
        found, kept = np.empty(len(times), np.int64), np.empty(len(times), np.float64)
        total = value_kernels.place(
            times, values, offsets, places, *self._grid, self._layout.base, self._layout.first, found, kept
        )
        self.distinct.add(found[:total], kept[:total])
