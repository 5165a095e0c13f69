"""Windows: partial aggregates of a block over slices of time that begin at whole minutes, hours or days of the epoch.

Owns the rule by which a block gets windows and how those of a page are packed (docs/file-formats.md). Windows live
and die with their block, so late points and deletes cannot leave them stale. Pure; any thread.

A block has windows of one width: the narrowest of WIDTHS_NS in which its points fill windows of LEAST_POINTS on
average, and none when that is a single window. When a page's windows would take more than SHARE of the bytes of its
blocks, all of them become windows of the next wider kind, those of a day none.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from workers.storage import columns, window_kernels
from workers.storage.layout import DamagedError

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

MINUTE_NS: Final = 60 * 1_000_000_000
HOUR_NS: Final = 60 * MINUTE_NS
DAY_NS: Final = 24 * HOUR_NS
WIDTHS_NS: Final = np.array([MINUTE_NS, HOUR_NS, DAY_NS])
LEAST_POINTS: Final = 128  # so that windows hold about 256: between half and a few times that
SHARE: Final = 0.05
_MOST_STEPS: Final = 1 << 31  # windows of a minute from one to the next: 4,083 years

_KINDS: Final = np.array([0, MINUTE_NS, HOUR_NS, DAY_NS])  # by the number in the file
_RATIOS: Final = np.array([0, 60, 24, 0])  # by the same number: how many of a kind make one of the next


class Windows(NamedTuple):
    """Windows of blocks. The windows of block b are first[b] to first[b + 1], ascending; empty ones are left out.

    widths: int64[blocks], ns, 0 for a block without; first: int64[blocks + 1]; by window, numbers: floor(t / width),
    counts: points (int64); sum_hi, sum_lo, least, most: float64, as in a block's summary.
    """

    widths: Integers
    first: Integers
    numbers: Integers
    counts: Integers
    sum_hi: Floats
    sum_lo: Floats
    least: Floats
    most: Floats

    def part(self, begin: int, end: int) -> "Windows":
        """The windows of blocks begin to end: views."""
        first = self.first[begin : end + 1]
        inside = slice(int(first[0]), int(first[-1]))
        by_window: list[Any] = [each[inside] for each in self[2:]]
        return Windows(self.widths[begin:end], first - first[0], *by_window)

    def at(self, which: Integers) -> "Windows":
        """The windows of some blocks, in the order given."""
        each = np.diff(self.first)[which]
        first = _starts(each)
        places = np.arange(int(first[-1])) + np.repeat(self.first[which] - first[:-1], each)
        by_window: list[Any] = [column[places] for column in self[2:]]
        return Windows(self.widths[which], first, *by_window)


def none_of(blocks: int) -> Windows:
    """What blocks without windows have."""
    return _empty(np.zeros(blocks, np.int64), np.zeros(blocks + 1, np.int64))


def of_rows(times: Integers, values: Floats, ends: Integers) -> Windows:
    """The windows of blocks of settled rows; block b ends with row ends[b]."""
    widths, each = np.empty(len(ends), np.int64), np.empty(len(ends), np.int64)
    window_kernels.choose_widths(times, ends, WIDTHS_NS, LEAST_POINTS, widths, each)
    found = _empty(widths, _starts(each))
    window_kernels.aggregate(times, values, ends, widths, *found[2:])
    return found


def joined(parts: Sequence[Windows]) -> Windows:
    """The windows of blocks in several parts, one behind the other."""
    if len(parts) == 1:
        return parts[0]
    each = np.concatenate([np.diff(part.first) for part in parts] or [np.empty(0, np.int64)])
    rest = [np.concatenate(column) for column in zip(*(part[2:] for part in parts), strict=True)]
    if not rest:
        return none_of(0)
    return Windows(np.concatenate([part.widths for part in parts]), _starts(each), *rest)


def pack(windows: Windows, t_min: Integers, block_bytes: int) -> bytes:
    """The windows of a page, at most SHARE of so many bytes: wider ones or none where they would take more."""
    while len(windows.numbers):
        packed = _pack(windows, t_min)
        if len(packed) <= SHARE * block_bytes:
            return packed
        windows = wider(windows)
    return b""


def unpack(data: bytes, t_min: Integers, t_max: Integers, block_counts: Integers, where: str) -> Windows:
    """The windows of a page's blocks, whose first and last times and counts are given. Raises DamagedError."""
    if not len(data):
        return none_of(len(t_min))
    reader = columns.Reader(data, where)
    kinds, each = reader.integers(len(t_min)), reader.integers(len(t_min))
    if not 0 <= int(kinds.min()) <= int(kinds.max()) < len(_KINDS):
        raise DamagedError(f"{where}: kind of windows {kinds.min()} to {kinds.max()}, want 0 to {len(_KINDS) - 1}")
    widths = _KINDS[kinds]
    if (each < 0).any() or (each > block_counts).any() or ((each > 0) != (widths > 0)).any():
        raise DamagedError(f"{where}: impossible number of windows")
    first = _starts(each)
    total = int(first[-1])
    steps, counts = reader.integers(total), reader.integers(total)
    numbers = _numbers(steps, widths, first, t_min)
    present = widths > 0
    last = numbers[first[1:][present] - 1]
    if (steps < 1).any() or (steps > _MOST_STEPS).any() or (last != t_max[present] // widths[present]).any():
        raise DamagedError(f"{where}: windows outside of their blocks")
    floats = [reader.values(total) for _ in range(4)]
    reader.finish()
    if (counts < 1).any() or (_sums_of(counts, first) != np.where(each > 0, block_counts, 0)).any():
        raise DamagedError(f"{where}: windows that do not hold the points of their blocks")
    return Windows(widths, first, numbers, counts, *floats)


def _pack(windows: Windows, t_min: Integers) -> bytes:
    kinds = np.searchsorted(_KINDS, windows.widths)
    integers = [kinds, np.diff(windows.first), _steps(windows, t_min), windows.counts]
    floats = [windows.sum_hi, windows.sum_lo, windows.least, windows.most]
    return b"".join([*map(columns.pack_integers, integers), *map(columns.pack_values, floats)])


def _steps(windows: Windows, t_min: Integers) -> Integers:
    """How much further each window is than the one before of its block; 1 for the first, the one that t_min is in."""
    steps = np.diff(windows.numbers, prepend=0)
    steps[windows.first[:-1][windows.widths > 0]] = 1
    return steps


def _numbers(steps: Integers, widths: Integers, first: Integers, t_min: Integers) -> Integers:
    running = np.cumsum(steps)
    present = np.flatnonzero(widths)
    starts = first[:-1][present]
    offsets = t_min[present] // widths[present] - running[starts]
    return running + np.repeat(offsets, np.diff(first)[present])


def wider(windows: Windows) -> Windows:
    """The same points in windows of the next wider kind, those of a day in none."""
    kinds = np.searchsorted(_KINDS, windows.widths)
    first = np.empty_like(windows.first)
    by_window: list[Any] = [each.copy() for each in windows[2:]]
    left = window_kernels.widen(np.ascontiguousarray(windows.first), _RATIOS[kinds], first, *by_window)
    widths = np.where(np.diff(first) > 0, _KINDS[np.minimum(kinds + 1, len(_KINDS) - 1)], 0)
    kept: list[Any] = [each[:left] for each in by_window]
    return Windows(widths, first, *kept)


def _sums_of(counts: Integers, first: Integers) -> Integers:
    running = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=running[1:])
    return running[first[1:]] - running[first[:-1]]


def _starts(each: Integers) -> Integers:
    starts = np.zeros(len(each) + 1, np.int64)
    np.cumsum(each, out=starts[1:])
    return starts


def _empty(widths: Integers, first: Integers) -> Windows:
    """Room for windows."""
    total = int(first[-1])
    by_window: list[Any] = [np.empty(total, dtype) for dtype in (np.int64,) * 2 + (np.float64,) * 4]
    return Windows(widths, first, *by_window)
