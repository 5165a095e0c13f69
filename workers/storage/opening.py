"""What a data directory holds, made ready when a store opens: segments, deletes, the sequence of file numbers.

Owns nothing that lasts, but for `Numbers`. Runs in the thread that opens the store, before any other exists.
Damaged files are set aside, so that the rest answers.
"""

import resource
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from common import files
from common.codec import Policy
from common.errors import StorageError
from workers.storage import segment
from workers.storage.catalog import Catalog
from workers.storage.compaction_plan import is_complete, resolve
from workers.storage.layout import DamagedError, Layout
from workers.storage.segment import PageCache, Segment
from workers.storage.upgrade import upgrade

_OTHER_FILES: Final = 4096  # sockets, WAL files, segments that are made meanwhile


class OpeningStopped(StorageError):
    """The opening of a store was given up because the process is to end; nothing is lost by that."""


class Numbers:
    """The sequence from which WAL files and segments draw. Any thread; `_lock` guards the next one."""

    def __init__(self, first: int) -> None:
        self._lock = threading.Lock()
        self._next = first

    def take(self, count: int = 1) -> int:
        """The first of so many numbers in a row."""
        with self._lock:
            first = self._next
            self._next += count
            return first


def open_segments(
    place: Layout, cache: PageCache, catalog: Catalog, policy: Policy, stop: Callable[[], bool]
) -> list[Segment]:
    """The good segments, by number, their series in the catalog. Those of an older format version are upgraded.

    Raises OpeningStopped when told to stop, StorageError for a segment of a newer format version, OSError.
    """
    upgrade(place, policy, stop)
    numbers = place.segment_numbers()
    _allow_open_files(len(numbers))
    opened: dict[int, Segment] = {}
    damaged: dict[int, DamagedError] = {}
    for number in numbers:
        if stop():
            raise OpeningStopped(f"asked to stop before segment {number} was opened")
        try:
            opened[number] = open_segment(place.segment_path(number), number, cache, catalog)
        except DamagedError as error:
            damaged[number] = error
    return _resolve(place, opened, damaged)


def _resolve(place: Layout, opened: dict[int, Segment], damaged: dict[int, DamagedError]) -> list[Segment]:
    """The segments that count. What compactions have replaced, or have not finished, goes."""
    found = resolve({number: each.header for number, each in opened.items()}, place.store_id)
    for gone in (found.superseded, found.incomplete):  # in this order: an output counts as long as an input is there
        present = sorted(gone & (opened.keys() | damaged.keys()))
        files.remove_files([place.segment_path(number) for number in present], place.disk)
    for number, error in damaged.items():
        if number not in found.superseded:
            path = place.segment_path(number)
            place.set_aside_file(path, segment.describe_damage(path, error))
    return [each for number, each in opened.items() if number not in found.superseded | found.incomplete]


def open_segment(path: Path, number: int, cache: PageCache, catalog: Catalog) -> Segment:
    """A segment whose series can be found. Raises DamagedError, StorageError, OSError."""
    opened = Segment(path, number, cache)
    ids = catalog.add(opened.keys())
    opened.bind(ids, catalog.hashes(ids))
    return opened


def _allow_open_files(segments: int) -> None:
    """Every segment is an open file, and on many systems a process may open 1,024 unless it asks for more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * segments + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def next_numbers(place: Layout, segments: Sequence[Segment]) -> Numbers:
    """The sequence, behind every number that a name or a segment's header mentions."""
    return Numbers(1 + max([place.highest_number(), *(_highest(each.header) for each in segments)]))


def covering(place: Layout, segments: Sequence[Segment]) -> Callable[[int], bool]:
    """Whether the rows of a WAL file lie in these segments, by its number.

    What the last part of a group says it covers lies in all of its parts: without one of them the file is needed.
    """
    by_number = {each.number: each.header for each in segments}
    headers = [header for header in by_number.values() if is_complete(header, by_number)]
    return lambda number: segment.covers(headers, place.store_id, number)


def highest_delete(place: Layout, segments: Sequence[Segment]) -> int:
    """The highest delete number that a record's name or a segment says was in force; 0 for none."""
    return max([place.highest_delete(), *(each.header.delete_number for each in segments)])


def _highest(header: segment.Header) -> int:
    """The highest file number that a segment's header mentions."""
    return max([sum(header.group) - 1, *(last for _, last in header.wal_ranges), *header.replaces])
