"""Sealing: a frozen head becomes one segment file.

Owns nothing that lasts: cuts and hands on. The same points give the same bytes: no clock, no order of arrival.
Runs in the sealer's thread; the kernels and the disk leave the GIL to others.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from common import files
from common.codec import Policy
from workers.storage import kernels, segment
from workers.storage.head import Grouped
from workers.storage.segment_writer import SegmentWriter


def write_segment(
    path: Path,
    header: segment.Header,
    grouped: Grouped,
    keys: Sequence[bytes],
    frontiers: npt.NDArray[np.int64],
    policy: Policy,
    disk: files.Disk = files.DISK,
) -> None:
    """Write a segment so that it is there whole or not at all. Raises OSError.

    keys, frontiers: by series as in grouped; a frontier is the greatest time of its series stored before. policy: how
    codecs are chosen.
    """
    grouped, keys, frontiers = _by_key(grouped, keys, frontiers)
    ends = np.empty(len(grouped.times) // segment.BLOCK_ROWS + 2 * len(keys), np.int64)
    owners = np.empty(len(ends), np.uint32)
    blocks = kernels.cut(grouped.times, grouped.offsets, frontiers, segment.BLOCK_ROWS, ends, owners)
    writer = SegmentWriter(path, header, policy, disk)
    try:
        writer.add(keys, grouped.mixed, grouped.times, grouped.values, ends[:blocks], owners[:blocks])
        writer.finish()
    finally:
        writer.abort()


def _by_key(
    grouped: Grouped, keys: Sequence[bytes], frontiers: npt.NDArray[np.int64]
) -> tuple[Grouped, Sequence[bytes], npt.NDArray[np.int64]]:
    """Series of equal hash brought into the order of their keys; almost never is there anything to do."""
    hashes = grouped.hashes
    if not len(hashes) or (hashes[1:] != hashes[:-1]).all():
        return grouped, keys, frontiers
    order = sorted(range(len(keys)), key=lambda at: (int(hashes[at]), keys[at]))
    spans = [slice(int(grouped.offsets[at]), int(grouped.offsets[at + 1])) for at in order]
    offsets = np.zeros_like(grouped.offsets)
    np.cumsum([span.stop - span.start for span in spans], out=offsets[1:])
    times = np.concatenate([grouped.times[span] for span in spans])
    values = np.concatenate([grouped.values[span] for span in spans])
    moved = Grouped(grouped.ids[order], hashes[order], grouped.mixed[order], offsets, times, values)
    return moved, [keys[at] for at in order], frontiers[order]
