"""Segments for tests: written from plain rows, and everything in one read back."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from common import files, series
from common.codec import Policy
from workers.storage import kernels, segment
from workers.storage.page_cache import PageCache
from workers.storage.segment import Header, Segment
from workers.storage.segment_writer import SegmentWriter

Rows = Sequence[tuple[int, float]]

STORE_ID = bytes(range(16))
HEADER = Header(STORE_ID, STORE_ID, 0, ((1, 1),), ())
CACHE_BYTES = 1 << 24


def write(
    path: Path,
    points: Mapping[bytes, Rows],
    hash_of: Callable[[bytes], int] = series.series_hash,
    block_rows: int = segment.BLOCK_ROWS,
    header: Header = HEADER,
    policy: Policy = "auto",
    disk: files.Disk = files.DISK,
) -> Segment:
    """A segment with the settled rows of each series, in blocks of so many; opened and bound."""
    writer = SegmentWriter(path, header, policy, disk)
    try:
        add(writer, points, hash_of, block_rows)
        writer.finish()
    finally:
        writer.abort()
    return opened(path, list(points), hash_of)


def add(
    writer: SegmentWriter, points: Mapping[bytes, Rows], hash_of: Callable[[bytes], int], block_rows: int
) -> None:
    """Add series, in the order that a segment wants, with one call."""
    keys = sorted(points, key=lambda each: (hash_of(each), each))
    ends: list[int] = []
    owners: list[int] = []
    rows: list[tuple[int, float]] = []
    for owner, each in enumerate(keys):
        for begin in range(0, len(points[each]), block_rows):
            rows += points[each][begin : begin + block_rows]
            ends.append(len(rows))
            owners.append(owner)
    mixed = np.empty(len(keys), np.uint64)
    kernels.mix_hashes(np.array([hash_of(each) for each in keys], np.uint64), mixed)
    times = np.array([time for time, _ in rows], np.int64)
    values = np.array([value for _, value in rows], np.float64)
    writer.add(keys, mixed, times, values, np.array(ends, np.int64), np.array(owners, np.uint32))


def opened(
    path: Path, known: Sequence[bytes] = (), hash_of: Callable[[bytes], int] = series.series_hash
) -> Segment:
    """An open segment; the ids of its series are their places in `known`, where that is given."""
    found = Segment(path, 1, PageCache(CACHE_BYTES))
    keys = found.keys()
    ids = {each: at for at, each in enumerate(known or keys)}
    hashes = np.array([hash_of(each) for each in keys], np.uint64)
    found.bind(np.array([ids[each] for each in keys], np.int64), hashes)
    return found


def contents(found: Segment) -> dict[bytes, list[tuple[int, float]]]:
    """All points of a segment by key, by decoding every block."""
    points = {}
    for ordinal, each in enumerate(found.keys()):
        decoded = [found.decode(block) for block in range(*found.block_range(ordinal))]
        points[each] = [row for times, values in decoded for row in zip(times.tolist(), values.tolist(), strict=True)]
    return points


def read_everything(path: Path) -> object:
    """All that a segment says, as something to compare. Raises what reading it raises."""
    found = opened(path)
    blocks, windows = found.index(0, found.blocks), found.windows(0, found.blocks)
    return (
        found.header, found.points, found.blocks, found.series, found.t_min, found.t_max, found.codecs,
        found.last_times().tolist(), found.first_block.tolist(),
        [each.tobytes() for each in blocks], [each.tobytes() for each in windows],
        [[column.tobytes() for column in found.decode(block)] for block in range(found.blocks)], found.keys(),
    )  # fmt: skip
