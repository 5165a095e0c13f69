"""Rewrites segments of format version 1 as version 2, before a store opens them.

Owns nothing that lasts. A segment keeps its number, its header and its blocks; what changes is how they are packed.
Each is replaced at once and whole, so whenever this is cut short, the next start goes on where it ended.
Runs in the thread that opens the store.
"""

import time
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from common import log
from common.codec import Policy
from workers.storage import kernels, segment, segment_v1
from workers.storage.layout import DamagedError, Layout
from workers.storage.segment_writer import SegmentWriter

_ROWS_AT_ONCE: Final = 1 << 17  # decoded together, about 2 MiB

logger = log.get("storage.upgrade")


def upgrade(place: Layout, policy: Policy, stop: Callable[[], bool] = lambda: False) -> None:
    """Bring every segment of an open directory to the present version; those that are damaged are set aside.

    policy: of codecs, "auto" or "gorilla". stop: whether to end early, asked before each segment; then the caller
    must not open the segments. Raises OSError.
    """
    old = [number for number in place.segment_numbers() if segment_v1.is_version_1(place.segment_path(number))]
    if not old:
        return
    begin_s = time.monotonic()
    logger.info("upgrading segments of format version 1", count=len(old), first=old[0], last=old[-1])
    for done, number in enumerate(old):
        if stop():
            return
        _upgrade_one(place, number, policy, f"{done + 1} of {len(old)}")
    logger.info("segments upgraded", count=len(old), seconds=round(time.monotonic() - begin_s, 1))


def _upgrade_one(place: Layout, number: int, policy: Policy, progress: str) -> None:
    path = place.segment_path(number)
    try:
        found = segment_v1.Segment(path, number)
        written = _rewrite(found, place, policy)
    except DamagedError as error:
        place.set_aside_file(path, segment_v1.describe_damage(path, error))
        return
    logger.info(
        "segment upgraded", segment=number, progress=progress, points=found.points, bytes_before=found.bytes,
        bytes=written,
    )  # fmt: skip


def _rewrite(found: segment_v1.Segment, place: Layout, policy: Policy) -> int:
    """Put version 2 of a segment in its place; its length. The mapping of the old one stays good until it is let go."""
    header = segment.Header(*found.header)
    keys = found.keys()
    mixed = np.empty(found.series, np.uint64)
    kernels.mix_hashes(np.array(found.hashes), mixed)
    writer = SegmentWriter(found.path, header, policy, place.disk)
    try:
        for begin, end in _portions(found.counts):
            _copy(found, writer, keys, mixed, begin, end)
        writer.finish()
    finally:
        writer.abort()
    return writer.length


def _portions(counts: npt.NDArray[np.uint32]) -> Iterator[tuple[int, int]]:
    """Spans of blocks, each of at least one block and, beyond that, of at most so many rows."""
    ends = np.cumsum(counts, dtype=np.int64)
    begin, rows = 0, 0
    while begin < len(ends):
        end = max(begin + 1, int(ends.searchsorted(rows + _ROWS_AT_ONCE, "right")))
        yield begin, end
        begin, rows = end, int(ends[end - 1])


def _copy(
    found: segment_v1.Segment, writer: SegmentWriter, keys: list[bytes], mixed: npt.NDArray[np.uint64],
    begin: int, end: int,
) -> None:  # fmt: skip
    """Add the blocks begin..end to the new file as they were cut."""
    decoded = [found.decode(block) for block in range(begin, end)]
    times = np.concatenate([each for each, _ in decoded])
    values = np.concatenate([each for _, each in decoded])
    owners = found.owners[begin:end].astype(np.int64)
    first, last = int(owners[0]), int(owners[-1]) + 1
    ends = np.cumsum(found.counts[begin:end], dtype=np.int64)
    writer.add(keys[first:last], mixed[first:last], times, values, ends, (owners - first).astype(np.uint32))
