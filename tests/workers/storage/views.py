"""Views for tests: segments and heads filled as told, deletes over them, and the oracle of what they hold."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common import series
from common.points import PointBatch
from common.selector import Selector
from tests import naive
from tests.workers.storage import segments
from workers.storage.deletes import DeleteRecord, Deletes
from workers.storage.head import Head
from workers.storage.page_cache import PageCache
from workers.storage.table import CHUNK_BLOCKS, SegmentSet, Selection, View

Row = tuple[int, int, float]  # number of the series, time, value

DEVICES = ["a", "b", "c", "d", "e", "f"]
KEYS = [series.series_key(device, "m", {}) for device in DEVICES]
HASHES = np.array([series.series_hash(key) for key in KEYS], np.uint64)


class Place(NamedTuple):
    """Where rows lie: in a segment with blocks of so many rows, or in a head when block_rows is 0.

    number: the delete number that they carry.
    """

    rows: Sequence[Row]
    number: int = 0
    block_rows: int = 0


class Delete(NamedTuple):
    """Points of one series, or of all for None, within a range."""

    number: int
    series: int | None
    start: int
    end: int


def view_of(
    directory: Path, places: Sequence[Place], deletes: Sequence[Delete] = (), chunk_blocks: int = CHUNK_BLOCKS
) -> View:
    """A view of places that carry numbers of deletes; the heads are in the order given."""
    records = [
        DeleteRecord(number, Selector(device, None, None), start, end)
        for number, (delete, device) in enumerate(_by_device(deletes), start=1)
        for start, end in [(delete.start, delete.end)]
    ]
    found = [
        _segment(directory / f"s{at}", place, _number(deletes, place.number))
        for at, place in enumerate(places)
        if place.block_rows and place.rows
    ]
    heads = [_head(place, _number(deletes, place.number)) for place in places if not place.block_rows]
    return View(SegmentSet(found, PageCache(1 << 22), chunk_blocks), (*heads, Head(1)), Deletes(records))


def oracle_of(places: Sequence[Place], deletes: Sequence[Delete] = ()) -> naive.PointSet:
    """What the view holds: by the rule that a delete hides rows of lower numbers."""
    oracle = naive.PointSet()
    for place in places:
        for each, time, value in place.rows:
            hidden = any(
                delete.number > place.number and delete.series in (None, each) and delete.start <= time <= delete.end
                for delete in deletes
            )
            if not hidden:
                oracle.add(each, time, value)
    return oracle


def selection(chosen: Sequence[int]) -> Selection:
    """Series by number; that is also their catalog id."""
    ids = np.array(chosen, np.int64)
    return Selection(ids, HASHES[ids], KEYS.__getitem__)


def _by_device(deletes: Sequence[Delete]) -> list[tuple[Delete, str]]:
    """A selector names one device: a delete over all of them is a record for each."""
    return [
        (delete, device)
        for delete in sorted(deletes, key=lambda each: each.number)
        for at, device in enumerate(DEVICES)
        if delete.series in (None, at)
    ]


def _number(deletes: Sequence[Delete], number: int) -> int:
    """The number of the last record of the deletes up to a number."""
    return sum(delete.number <= number for delete, _ in _by_device(deletes))


def _segment(path: Path, place: Place, number: int) -> segments.Segment:
    settled = naive.PointSet()
    for each, time, value in place.rows:
        settled.add(each, time, value)
    points = {KEYS[int(str(each))]: settled.rows(each) for each in settled.points}
    header = segments.HEADER._replace(delete_number=number)
    segments.write(path, points, block_rows=place.block_rows, header=header)
    return segments.opened(path, KEYS)


def _head(place: Place, number: int) -> Head:
    head = Head(len(place.rows) or 1, number)
    if place.rows:
        index, times, values = zip(*place.rows, strict=True)
        batch = PointBatch(KEYS, np.array(index, np.uint32), np.array(times, np.int64), np.array(values, np.float64))
        head.append(batch, np.arange(len(KEYS)), HASHES)
    return head
