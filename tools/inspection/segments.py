"""Segments of every format version there is, read in one way. Writes nothing."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from common.codec import CodecId
from workers.storage import kernels, pages, segment, segment_v1, windows
from workers.storage.pages import Blocks
from workers.storage.segment import CodecUse, Header
from workers.storage.segment_v1 import COUNT, CRC, DIGEST, OFFSET, T_MAX, T_MIN, TIMES_BYTES, VALUES_BYTES
from workers.storage.windows import Windows

_CACHE_BYTES: Final = 16 << 20  # of decoded pages; files are read from front to back

Rows = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]


class Opened(NamedTuple):
    """An open segment. Calls raise DamagedError.

    version: of its format; float_rows: how many rows of `floats` its blocks have; span: first and last time, None
    without points; first_block: int64[series + 1]; by call: keys, index (of blocks begin to end), windows (the same),
    decode (of a block), last_times (by series; None where the format has none).
    """

    version: int
    header: Header
    points: int
    series: int
    blocks: int
    bytes: int
    float_rows: int
    span: tuple[int, int] | None
    codecs: tuple[CodecUse, ...]
    first_block: npt.NDArray[np.int64]
    keys: Callable[[], list[bytes]]
    index: Callable[[int, int], Blocks]
    windows: Callable[[int, int], Windows]
    decode: Callable[[int], Rows]
    last_times: Callable[[], npt.NDArray[np.int64]] | None

    def owners(self) -> npt.NDArray[np.int64]:
        """The place in the table of each block's series."""
        return np.repeat(np.arange(self.series), np.diff(self.first_block))


def open_segment(path: Path) -> Opened:
    """Raises DamagedError, StorageError for a version that is newer, OSError."""
    return _open_v1(path) if segment_v1.is_version_1(path) else _open(path)


def spans(blocks: int, at_once: int) -> Iterator[tuple[int, int]]:
    """All blocks, so many at once."""
    for begin in range(0, blocks, at_once):
        yield begin, min(blocks, begin + at_once)


def _open(path: Path) -> Opened:
    found = segment.Segment(path, 0, segment.PageCache(_CACHE_BYTES))
    return Opened(
        segment.VERSION, found.header, found.points, found.series, found.blocks, found.bytes, kernels.BLOCK_M2 + 1,
        (found.t_min, found.t_max) if found.blocks else None, found.codecs, found.first_block,
        found.keys, found.index, found.windows, found.decode, found.last_times,
    )  # fmt: skip


def _open_v1(path: Path) -> Opened:
    found = segment_v1.Segment(path, 0)
    span = (int(found.ints[T_MIN].min()), int(found.ints[T_MAX].max())) if found.blocks else None
    return Opened(
        segment_v1.VERSION, Header(*found.header), found.points, found.series, found.blocks, found.bytes,
        kernels.BLOCK_LAST + 1, span, _codecs_v1(found), found.first_block.astype(np.int64), found.keys,
        lambda begin, end: _index_v1(found).part(begin, end), lambda begin, end: windows.none_of(end - begin),
        found.decode, None,
    )  # fmt: skip


def _index_v1(found: segment_v1.Segment) -> Blocks:
    floats = np.full((kernels.BLOCK_M2 + 1, found.blocks), np.nan)
    floats[: kernels.BLOCK_LAST + 1] = found.floats
    times_bytes, values_bytes, counts = found.words[[TIMES_BYTES, VALUES_BYTES, COUNT]].astype(np.int64)
    return pages.Blocks(
        found.ints[T_MIN], found.ints[T_MAX], counts, floats, found.ints[DIGEST].view(np.uint64), times_bytes,
        values_bytes, found.ints[OFFSET], found.words[CRC], *found.codecs,
    )  # fmt: skip


def _codecs_v1(found: segment_v1.Segment) -> tuple[CodecUse, ...]:
    """How much of it is in which codec."""
    uses = []
    for part, codecs, row in zip(segment.PARTS, found.codecs, (TIMES_BYTES, VALUES_BYTES), strict=True):
        for codec_id in np.unique(codecs).tolist():
            mine = codecs == codec_id
            points, size = (int(found.words[each][mine].sum(dtype=np.int64)) for each in (COUNT, row))
            uses.append(CodecUse(part, codec_id, int(mine.sum()), points, size))
    return tuple(uses)


def codec_name(codec_id: int) -> str:
    """The name of a codec, its number where it has none."""
    return CodecId(codec_id).name.lower() if codec_id in CodecId.__members__.values() else str(codec_id)
