"""Partitions that this node gave away and is to forget: which, and up to which segment.

Owns the file DROPPED and what is in force of it. A partition that is *dropped* bears the number of the last segment
whose rows of it are to go; compaction leaves those out of what it writes (compaction_table.py) and then says `finish`.
Rows that came later lie in segments with higher numbers and stay: never is anything dropped but what was named.

Until they are gone the rows are still there, and answered to nobody, for the node does not own the partition. Should it
come back the writer says `spare` before the node takes the first point of it: from then on what is there counts, and no
compaction goes on that leaves it out. So nobody compares with rows that are about to vanish.

Threads: `_lock` guards everything here, also while the file is written; `drops` is replaced whole, any thread reads it.
"""

import contextlib
import threading
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from common import files, log
from common.errors import MinitrueError, StorageError
from workers.storage import layout
from workers.storage.layout import Layout
from workers.storage.segment import Segment

FORMAT: Final = 1
_NOT: Final = -1  # the limit of a partition that is not dropped

Integers = npt.NDArray[np.int64]
Partitions = npt.NDArray[np.bool_]

logger = log.get("storage.dropping")


class KeptError(MinitrueError):
    """A partition that was to be left out is to stay: what was written without it is of no use."""


class _File(msgspec.Struct, frozen=True):
    """What the file DROPPED says. partitions: pairs of a partition and the number of the last segment that counts."""

    format: int
    partitions: list[tuple[int, int]] = []


class Drops(NamedTuple):
    """What is dropped at one moment. limits: by partition, the number of the last segment, -1 for none: int64."""

    limits: Integers

    def __bool__(self) -> bool:
        return bool((self.limits != _NOT).any())

    def limits_of(self, hashes: npt.NDArray[np.uint64]) -> Integers:
        """The limit of the partition of each hash."""
        return self.limits[partitions_of_hashes(hashes, len(self.limits))]

    def touch(self, number: int, inside: Partitions) -> bool:
        """Whether a segment with rows of these partitions has some that are to go."""
        return bool((inside & (self.limits >= number)).any())


NO_DROPS: Final = Drops(np.full(1, _NOT, np.int64))


class Dropping:
    """What one node is to forget."""

    def __init__(self, place: Layout, partitions: int) -> None:
        """Reads the file. What a damaged one named is named again, later. Raises StorageError, OSError."""
        self._place = place
        self._lock = threading.Condition()
        self._used: Drops | None = None  # by the compaction under way
        self._inside: dict[int, Partitions] = {}  # by segment; whoever asks twice at once finds it twice
        self.drops = Drops(np.full(partitions, _NOT, np.int64))
        self._kept: Partitions = np.zeros(partitions, np.bool_)
        self._load()

    def inside(self, segment: Segment) -> Partitions:
        """The partitions of which a segment has rows. Any thread."""
        known = self._inside.get(segment.number)
        if known is None:
            known = np.zeros(len(self.drops.limits), np.bool_)
            known[partitions_of_hashes(segment.hashes, len(known))] = True
            self._inside[segment.number] = known
        return known

    def forget_but(self, numbers: Iterable[int]) -> None:
        """Only these segments are there."""
        for gone in self._inside.keys() - set(numbers):
            self._inside.pop(gone, None)

    def drop(self, partitions: Iterable[int], number: int) -> None:
        """Name partitions whose rows in segments up to this number are to go: durable when it returns.

        One that has come back meanwhile is left out. Raises OSError: then nothing is dropped.
        """
        with self._lock:
            limits = self.drops.limits.copy()
            limits[[each for each in partitions if not self._kept[each]]] = number
            self._save(limits)
            self.drops = Drops(limits)

    def spare(self, partitions: Partitions) -> bool:
        """Drop none of these from here on, only others; whether one of them was. `save` makes it durable."""
        with self._lock:
            self._kept = partitions
            spared = partitions & (self.drops.limits != _NOT)
            if spared.any():
                self.drops = Drops(np.where(spared, _NOT, self.drops.limits))
            return bool(spared.any())

    def save(self) -> None:
        """Make what is in force durable, once no compaction leaves out what is to stay. Raises OSError.

        One that does gives up at its next pause, within some tenths of a second.
        """
        with self._lock:
            self._lock.wait_for(lambda: self._used is None or not self._is_kept(self._used))
            self._save(self.drops.limits)

    @contextlib.contextmanager
    def using(self, used: Drops) -> Iterator[None]:
        """While what is written leaves these out, and until that is in the view. Raises KeptError as `check` does."""
        with self._lock:
            self.check(used)
            self._used = used
        try:
            yield
        finally:
            with self._lock:
                self._used = None
                self._lock.notify_all()

    def check(self, used: Drops) -> None:
        """Raise KeptError when something is to stay by now that is being left out."""
        if self._is_kept(used):
            raise KeptError("a partition that was given away has come back")

    def _is_kept(self, used: Drops) -> bool:
        return bool(((used.limits != _NOT) & self._kept).any())

    def finish(self, segments: Iterable[Segment]) -> list[int]:
        """Name no more what none of these segments, all that there are, has rows of. Raises OSError."""
        with self._lock:
            limits, left = self.drops.limits, np.zeros(len(self.drops.limits), np.bool_)
            for each in segments:
                left |= self.inside(each) & (limits >= each.number)
            done = (limits != _NOT) & ~left
            if done.any():
                self._save(np.where(done, _NOT, limits))
                self.drops = Drops(np.where(done, _NOT, limits))
            return [int(each) for each in np.flatnonzero(done)]

    def _save(self, limits: Integers) -> None:
        path = self._place.directory / layout.DROPPED
        named = [(int(each), int(limits[each])) for each in np.flatnonzero(limits != _NOT)]
        if named:
            data = msgspec.json.encode(_File(FORMAT, named)) + b"\n"
            files.replace_file(path, [data], disk=self._place.disk)
        else:
            files.remove_files([path], self._place.disk)

    def _load(self) -> None:
        path = self._place.directory / layout.DROPPED
        try:
            read = msgspec.json.decode(path.read_bytes(), type=_File)
        except FileNotFoundError:
            return
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            logger.error("what is to be forgotten cannot be read, it is named anew", file=str(path), reason=str(error))
            files.remove_files([path], self._place.disk)
            return
        if read.format > FORMAT:
            raise StorageError(f"{path} has format version {read.format}, this program reads up to {FORMAT}")
        for partition, number in read.partitions:
            if 0 <= partition < len(self.drops.limits):
                self.drops.limits[partition] = number


def partitions_of_hashes(hashes: npt.NDArray[np.uint64], partitions: int) -> Integers:
    """The partition of each hash, of so many, a power of two."""
    below = np.uint64(64 - partitions.bit_length())  # in two steps: a shift by 64 has no meaning
    found: Integers = (hashes >> below >> np.uint64(1)).astype(np.int64)
    return found
