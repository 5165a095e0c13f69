"""Checks of one segment: everything in it is read, and whatever follows from something else is worked out again.

A CRC says that bytes are what was written. The checks here say beyond that that what was written is right: series and
blocks in order, rows settled, summaries, digests and windows those of the rows, to the bit. Writes nothing.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from common.errors import ProtocolError
from common.series import parse_key, series_hash
from tools.inspection.place import Entry, Finding
from tools.inspection.segments import Opened, Rows, open_segment, spans
from workers.storage import kernels, windows
from workers.storage.layout import DamagedError
from workers.storage.pages import Blocks
from workers.storage.windows import Windows

AT_ONCE: Final = 64  # blocks decoded together: at most 8 MiB of rows

_FLOATS: Final = ("sum", "low part of the sum", "min", "max", "first", "last", "M2")  # rows of Blocks.floats

Tick = Callable[[int], None]


class _Part(NamedTuple):
    """Some blocks that could be read: their places in the file's order, index, rows (of all of them) and ends."""

    numbers: npt.NDArray[np.int64]
    index: Blocks
    windows: Windows | None
    times: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]
    ends: npt.NDArray[np.int64]


class Checked(NamedTuple):
    """What was read: blocks and points that decode."""

    blocks: int
    points: int


def check_segment(entry: Entry, findings: list[Finding], tick: Tick = lambda _: None) -> Checked:
    """Add what is wrong with a segment to `findings`, each thing once. tick: told of bytes done.

    Raises StorageError for a version that is newer, OSError.
    """
    mine: dict[Finding, None] = {}
    checked = Checked(0, 0)
    try:
        opened = open_segment(entry.path)
        checked = _Check(entry, opened, mine, tick).run()
    except DamagedError as error:
        mine[_damage(entry, error)] = None
    findings += mine
    return checked


class _Check:
    """The checks of an open segment."""

    def __init__(self, entry: Entry, opened: Opened, findings: dict[Finding, None], tick: Tick) -> None:
        self._entry = entry
        self._opened = opened
        self._findings = findings
        self._tick = tick
        self._owners = opened.owners()
        self._mixed = np.zeros(opened.series, np.uint64)  # left at zero when keys cannot be read
        self._keys_read = False
        self._reach: dict[int, int] = {}  # the greatest time so far of the series last seen
        self._last_times = np.full(opened.series, np.iinfo(np.int64).min)
        self._uses: dict[tuple[str, int], list[int]] = {}

    def run(self) -> Checked:
        """Everything; how much could be read."""
        self._check_keys()
        blocks = points = 0
        for begin, end in spans(self._opened.blocks, AT_ONCE):
            part = self._read(begin, end)
            if part is not None and len(part.numbers):
                self._check_part(part)
                blocks += len(part.numbers)
                points += len(part.times)
            self._tick(self._opened.bytes * (end - begin) // self._opened.blocks)
        if blocks == self._opened.blocks:
            self._check_totals()
        return Checked(blocks, points)

    def _say(self, where: str, what: str) -> None:
        self._findings[Finding(self._entry.name, where, what)] = None

    def _check_keys(self) -> None:
        """Keys are canonical, and series in order of (hash, key)."""
        try:
            keys = self._opened.keys()
        except DamagedError as error:
            self._findings[_damage(self._entry, error)] = None
            return
        hashes = [series_hash(key) for key in keys]
        for ordinal, key in enumerate(keys):
            try:
                parse_key(key)
            except ProtocolError as error:
                self._say(f"series {ordinal}", str(error))
        for at, (before, after) in enumerate(itertools.pairwise(zip(hashes, keys, strict=True)), 1):
            if before >= after:
                self._say(f"series {at}", "not in order of hash and key")
        kernels.mix_hashes(np.array(hashes, np.uint64), self._mixed)
        self._keys_read = True

    def _read(self, begin: int, end: int) -> _Part | None:
        """The blocks of a span that can be decoded; None where the index cannot be read."""
        try:
            index = self._opened.index(begin, end)
        except DamagedError as error:
            self._findings[_damage(self._entry, error)] = None
            return None
        found: Windows | None = None
        try:
            found = self._opened.windows(begin, end)
        except DamagedError as error:
            self._findings[_damage(self._entry, error)] = None
        self._check_order(begin, index)
        good: list[int] = []
        rows: list[Rows] = []
        for block in range(begin, end):
            try:
                rows.append(self._opened.decode(block))
                good.append(block)
            except DamagedError as error:
                self._findings[_damage(self._entry, error)] = None
        numbers = np.array(good, np.int64)
        if len(good) < end - begin:
            index = Blocks(*(column[..., numbers - begin] for column in index))
            found = None if found is None else _windows_of(found, numbers - begin)
        return _joined(numbers, index, found, rows)

    def _check_order(self, begin: int, index: Blocks) -> None:
        """Blocks of one series follow each other in time."""
        times = zip(index.t_min.tolist(), index.t_max.tolist(), strict=True)
        owners = self._owners[begin : begin + len(index.counts)].tolist()
        for block, (owner, (first, last)) in enumerate(zip(owners, times, strict=True), begin):
            reach = self._reach.get(owner)
            if reach is not None and first <= reach:
                self._say(f"block {block}", f"begins at {first}, its series' block before ends at {reach}")
            self._reach = {owner: last}
            self._last_times[owner] = max(self._last_times[owner], last)
        self._count_codecs(index)

    def _count_codecs(self, index: Blocks) -> None:
        for part, codecs, sizes in (
            ("times", index.times_codec, index.times_bytes), ("values", index.values_codec, index.values_bytes)
        ):  # fmt: skip
            for codec_id in np.unique(codecs).tolist():
                mine = codecs == codec_id
                use = self._uses.setdefault((part, codec_id), [0, 0, 0])
                for at, more in enumerate((mine.sum(), index.counts[mine].sum(), sizes[mine].sum())):
                    use[at] += int(more)

    def _check_part(self, part: _Part) -> None:
        starts = np.concatenate([[0], part.ends[:-1]])
        rising = np.diff(part.times, prepend=part.times[0]) > 0
        rising[starts] = True
        settled = np.add.reduceat(~rising, starts) == 0
        self._say_blocks(part, ~settled, "rows are not in order of time, or a time is there twice")
        finite = np.add.reduceat(~np.isfinite(part.values), starts) == 0
        self._say_blocks(part, ~finite, "holds a value that is not finite")
        if settled.all():
            self._check_summaries(part)
            self._check_windows(part)

    def _check_summaries(self, part: _Part) -> None:
        ints = np.zeros((kernels.OFFSET + 1, len(part.ends)), np.int64)
        floats = np.zeros((kernels.BLOCK_M2 + 1, len(part.ends)))
        mixed = self._mixed[self._owners[part.numbers]]
        kernels.summarize(part.times, part.values, part.ends, mixed, ints, floats)
        index = part.index
        self._say_blocks(part, ints[kernels.T_MIN] != index.t_min, "first time is not that of its rows")
        self._say_blocks(part, ints[kernels.T_MAX] != index.t_max, "last time is not that of its rows")
        if self._keys_read:
            digests = ints[kernels.BLOCK_DIGEST].view(np.uint64)
            self._say_blocks(part, digests != index.digests, "digest is not that of its rows")
        for row in range(self._opened.float_rows):
            differs = _bits(floats[row]) != _bits(index.floats[row])
            self._say_blocks(part, differs, f"{_FLOATS[row]} is not that of its rows")

    def _check_windows(self, part: _Part) -> None:
        """The windows kept of a block are what its rows make, or those made wider."""
        if part.windows is None:
            return
        wrong = part.windows.widths != 0
        candidate = windows.of_rows(part.times, part.values, part.ends)
        for _ in windows.WIDTHS_NS:
            wrong &= ~_same_windows(part.windows, candidate)
            candidate = windows.wider(candidate)
        self._say_blocks(part, wrong, "windows are not those of its rows")

    def _check_totals(self) -> None:
        """The table's last times, and the directory's figures of codecs."""
        if self._opened.last_times is not None and (self._opened.last_times() != self._last_times).any():
            self._say("table of series", "last times are not those of the blocks")
        uses = {(use.part, use.codec): [use.blocks, use.points, use.bytes] for use in self._opened.codecs}
        if uses != self._uses:
            self._say("directory", "figures of the codecs are not those of the blocks")

    def _say_blocks(self, part: _Part, wrong: npt.NDArray[np.bool_], what: str) -> None:
        for block in part.numbers[wrong].tolist():
            self._say(f"block {block}", what)


def _damage(entry: Entry, error: DamagedError) -> Finding:
    """The finding that a reader's error makes; its text begins with the path."""
    return Finding(entry.name, "", str(error).removeprefix(f"{entry.path}: "))


def _joined(numbers: Any, index: Blocks, found: Windows | None, rows: Sequence[Rows]) -> _Part:
    times = np.concatenate([each for each, _ in rows] or [np.empty(0, np.int64)])
    values = np.concatenate([each for _, each in rows] or [np.empty(0)])
    return _Part(numbers, index, found, times, values, np.cumsum([len(each) for each, _ in rows], dtype=np.int64))


def _windows_of(found: Windows, blocks: npt.NDArray[np.int64]) -> Windows:
    return windows.joined([found.part(block, block + 1) for block in blocks.tolist()])


def _same_windows(left: Windows, right: Windows) -> npt.NDArray[np.bool_]:
    """By block, whether its windows are equal, bit by bit."""
    same = (left.widths == right.widths) & (np.diff(left.first) == np.diff(right.first))
    for block in np.flatnonzero(same).tolist():
        ours, theirs = left.part(block, block + 1), right.part(block, block + 1)
        same[block] = all((_bits(a) == _bits(b)).all() for a, b in zip(ours[2:], theirs[2:], strict=True))
    return same


def _bits(column: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    return np.ascontiguousarray(column).view(np.int64)
