"""What a node may lack of what was acknowledged, and that it says so: its file BEHIND, its mark, its refusals.

Owns the file BEHIND of a data directory, the mark (node, node) in the ring store and the node's store id there. Knows
nothing of how rows come back: whoever has repaired a partition from a current co-owner, or was told to accept the
loss, says `clear`.

A node is behind when its store id is not the one that it is known by (its disk was lost), or when a damaged file had to
be set aside. It then refuses all reads of the partitions concerned, also those of other stores, which would else take
it for current. Order: refusal, file, mark (that of damage as soon as the ring store takes it), and only then what made
it necessary: claiming the store id, moving the damaged file. So whatever cuts that short is known at the next start.
docs/architecture.md, "A node that is behind", has the interleavings.

Threads: `_lock` guards everything here, also while the file is written; it is not held while the ring store is asked.
`partitions` may be read by any thread.
"""

import threading
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from common import clock, files, log
from common.errors import StorageError
from common.ringstore import Mark
from workers.storage import layout
from workers.storage.layout import Layout

FORMAT: Final = 1
MAX_REASONS: Final = 16  # kept, the latest ones; the notes in damaged/ have all

Partitions = npt.NDArray[np.bool_]  # by partition

logger = log.get("storage.behind")


class Rings(Protocol):
    """What is needed of a ring store."""

    def marks(self) -> frozenset[Mark]: ...

    def put_mark(self, mark: Mark) -> None: ...

    def remove_mark(self, mark: Mark) -> None: ...

    def store_ids(self) -> dict[str, str]: ...

    def claim(self, node: str, store_id: str) -> str | None: ...


class _File(msgspec.Struct, frozen=True):
    """What the file BEHIND says. partitions: None for all of them."""

    format: int
    since_ns: int = 0
    reasons: list[str] = []
    partitions: list[int] | None = None


class Behind:
    """What one node may lack.

    partitions: bool by partition, replaced whole. reasons: why, in words. since_ns: wall clock, 0 while it lacks
    nothing. hits: how often it was hit; what was read across a hit may lack points. changed: called after each change,
    in the thread that made it.
    """

    def __init__(self, place: Layout, node: str, partitions: int, rings: Rings) -> None:
        """Reads the file. Raises StorageError for one of a newer format, OSError."""
        self.reasons: list[str] = []
        self.since_ns = 0
        self.hits = 0
        self.changed: Callable[[], None] = _nothing
        self._place = place
        self._mark = Mark(node, node)
        self._rings = rings
        self._lock = threading.RLock()
        self._is_marked: bool | None = None  # as far as known
        self.partitions = self._frozen(np.zeros(partitions, np.bool_))
        self._load()
        self._saved = self.partitions  # what the file says

    # At the start, before anything else.

    def begin(self) -> None:
        """Claim the store id, and mark the node if it is another than before. To be called before any answer.

        Raises RingStoreError, OSError: then nothing was claimed, and the node must not begin.
        """
        mine = self._place.store_id.hex()
        known = self._rings.store_ids().get(self._mark.node)
        if known not in (None, mine):
            self.hit(f"store {known} is gone, {mine} began without its points", None)
        if self.partitions.any():
            self._rings.put_mark(self._mark)
            self._is_marked = True
        if known != mine:
            self._rings.claim(self._mark.node, mine)

    # Any thread.

    def hit(self, reason: str, partitions: Iterable[int] | None) -> None:
        """The node lacks points of some partitions, None: perhaps of all. Reads are refused from here on.

        Raises OSError when that cannot be made durable: then what was the reason must not become so either.
        """
        with self._lock:
            more = self.partitions.copy()
            more[slice(None) if partitions is None else list(partitions)] = True
            if not self.partitions.any():
                self.since_ns = clock.wall_ns()
            self.reasons = [*(each for each in self.reasons if each != reason), reason][-MAX_REASONS:]
            self._replace(more)
            self.hits += 1  # behind the refusal: who is let in before it is found out by it, see serve.py
            self._is_marked = None
            logger.error("behind: reads are refused", reason=reason, partitions=int(more.sum()))
            self._save()

    def hit_by(self, note: dict[str, Any]) -> None:
        """The same for something damaged that is about to be set aside; see Layout.watchers."""
        if _costs_points(note):
            self.hit(f"{note['file']}: {note['reason']}", note.get("partitions"))

    def clear(self, partitions: Iterable[int], hits: int | None = None) -> list[int]:
        """Answer again for some partitions: they were repaired from a current co-owner, or their loss was accepted.

        hits: as of when the repair began; after another one nothing is cleared. None: whatever was hit. Those of which
        the node was behind. File and mark follow with `settle`.
        """
        with self._lock:
            if hits is not None and hits != self.hits:
                return []
            cleared = sorted(each for each in set(partitions) if self.partitions[each])
            if cleared:
                fewer = self.partitions.copy()
                fewer[cleared] = False
                self._replace(fewer)
                logger.info("not behind any more", partitions=len(cleared), left=int(fewer.sum()))
            return cleared

    def settle(self, written: Partitions) -> None:
        """Let file and mark say what is so. written: the partitions of which the node takes points.

        Of others it is not behind: should it join one, it gets all of it. Raises OSError, RingStoreError: call it
        again.
        """
        with self._lock:
            if self.partitions.any() and not (self.partitions & written).any():
                self._replace(np.zeros_like(self.partitions))
            if not np.array_equal(self.partitions, self._saved):
                self._save()
            lacking, known = bool(self.partitions.any()), self._is_marked
        if lacking or known is not False:  # a mark that the ring store lost is put again
            self._mark_as(lacking)

    def claim_again(self) -> None:
        """Claim the store id where the ring store lost it, and have `settle` look at the mark: a ring store that was
        put back to an earlier state has the mark of that time. Raises RingStoreError.
        """
        with self._lock:
            self._is_marked = None
        if self._mark.node not in self._rings.store_ids():
            self._rings.claim(self._mark.node, self._place.store_id.hex())

    def status(self) -> dict[str, Any] | None:
        """For people; None while the node lacks nothing."""
        with self._lock:
            if not self.partitions.any():
                return None
            numbers = np.flatnonzero(self.partitions).tolist()
            return {
                "since_ns": self.since_ns, "reasons": list(self.reasons), "partitions": len(numbers),
                "of_partitions": numbers, "marked": self._is_marked is True,
            }  # fmt: skip

    def _mark_as(self, lacking: bool) -> None:
        """See that the mark is there, or is not. Called by one thread at a time."""
        found = self._mark in self._rings.marks()
        if lacking and not found:
            self._rings.put_mark(self._mark)
        elif found and not lacking:
            self._rings.remove_mark(self._mark)
        with self._lock:
            # Hit meanwhile, the mark may just have been removed: looked at again at the next `settle`.
            self._is_marked = lacking if lacking == bool(self.partitions.any()) else None

    def _replace(self, partitions: Partitions) -> None:
        if not partitions.any():
            self.reasons, self.since_ns = [], 0
        self.partitions = self._frozen(partitions)
        self.changed()

    def _save(self) -> None:
        """Let the file say what is so."""
        path, lacking = self._place.directory / layout.BEHIND, self.partitions
        if lacking.any():
            numbers = None if lacking.all() else np.flatnonzero(lacking).tolist()
            _write(self._place, _File(FORMAT, self.since_ns, self.reasons, numbers))
        else:
            files.remove_files([path], self._place.disk)
        self._saved = lacking

    def _load(self) -> None:
        read = _read(self._place)
        if read is None:
            return
        lacking = np.zeros(len(self.partitions), np.bool_)
        named = read.partitions
        known = named is not None and all(0 <= each < len(lacking) for each in named)
        lacking[named if known else slice(None)] = True
        self.reasons, self.since_ns = read.reasons, read.since_ns
        self.partitions = self._frozen(lacking)
        logger.warning("behind since before this start", reasons=read.reasons, partitions=int(lacking.sum()))

    @staticmethod
    def _frozen(partitions: Partitions) -> Partitions:
        partitions.setflags(write=False)
        return partitions


def note_loss(place: Layout, note: dict[str, Any]) -> None:
    """Let the next start of a node that is stopped find itself behind, for what is about to be set aside here.

    Raises StorageError for a file of a newer format, OSError.
    """
    if _costs_points(note):
        known = _read(place) or _File(FORMAT, clock.wall_ns())
        reasons = [*known.reasons, f"{note['file']}: {note['reason']}"][-MAX_REASONS:]
        _write(place, _File(FORMAT, known.since_ns, reasons))


def _costs_points(note: dict[str, Any]) -> bool:
    """Whether points are lost with a file. None are with a delete record, and the ring brings it back."""
    return not str(note["file"]).endswith(layout.DELETE_SUFFIX)


def _read(place: Layout) -> _File | None:
    path = place.directory / layout.BEHIND
    try:
        read = msgspec.json.decode(path.read_bytes(), type=_File)
    except FileNotFoundError:
        return None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:  # that it is there is what counts
        read = _File(FORMAT, clock.wall_ns(), [f"{layout.BEHIND} cannot be read: {error}"])
    if read.format > FORMAT:
        raise StorageError(f"{path} has format version {read.format}, this program reads up to {FORMAT}")
    return read


def _write(place: Layout, said: _File) -> None:
    data = msgspec.json.encode(said) + b"\n"
    files.replace_file(place.directory / layout.BEHIND, [data], disk=place.disk)


def _nothing() -> None:
    """What is done about a change while nobody asked for more."""


