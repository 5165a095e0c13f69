"""Delete records: what they say, where they lie, and which rows they mask.

A record has a number. Rows carry the highest number in force when they were logged, and a record masks the rows
of its series and range that carry a lower one: so a delete never touches what is written after it, and what was
deleted cannot come back by replay or an interrupted compaction. `Deletes` is immutable; any thread may ask it.
Files are written by the writer thread and read by the one that opens the store.

Format (docs/file-formats.md): one file per record; nothing but a header as WAL files and segments have it, whose
body is the record in msgpack.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import msgpack
import msgspec
import numpy as np
import numpy.typing as npt

from common import files, series
from common.errors import ProtocolError
from common.points import PointBatch
from common.selector import Selector
from common.timestamps import MAX_NS, MIN_NS
from workers.storage import layout
from workers.storage.layout import DamagedError, Layout

MAGIC: Final = b"MTDL"
VERSION: Final = 1
MAX_NUMBER: Final = 10**16 - 1  # what the name of a file has digits for
MAX_BYTES: Final = 1 << 20  # of a file: a header that is longer than some MiB is taken for damage

_CACHED_KEYS: Final = 1 << 17  # at about 100 bytes each; more are found anew


class Mask(NamedTuple):
    """Rows with start <= time <= end that carry a delete number below `number` are deleted. Times in ns."""

    number: int
    start: int
    end: int


class DeleteRecord(msgspec.Struct, frozen=True):
    """One delete. number: 1 to MAX_NUMBER; start, end: ns, inclusive, start <= end."""

    number: int
    selector: Selector
    start: int = MIN_NS
    end: int = MAX_NS

    def check(self) -> None:
        """Raise ProtocolError for a record that cannot be."""
        if not 1 <= self.number <= MAX_NUMBER:
            raise ProtocolError(f"delete number {self.number}, want 1 to {MAX_NUMBER}")
        if not MIN_NS <= self.start <= self.end <= MAX_NS:
            raise ProtocolError(f"delete from {self.start} to {self.end} ns: want int64 and in this order")
        if (size := len(pack(self))) > MAX_BYTES:
            raise ProtocolError(f"delete of {size} bytes, want at most {MAX_BYTES}")


class _Body(msgspec.Struct, array_like=True, frozen=True):
    """A record as it lies in its file; further elements are ignored."""

    number: int
    device_id: str
    metric_name: str | None
    tags: dict[str, str] | None
    start: int
    end: int


class Deletes:
    """All delete records of a store at one moment.

    number: the highest in force, which new rows carry; 0 before the first. It lies above that of every record when
    one was damaged.
    """

    def __init__(self, records: Iterable[DeleteRecord] = (), number: int = 0) -> None:
        self.records = tuple(sorted(records, key=lambda record: record.number))
        self.number = max([number, *(record.number for record in self.records)])
        self._by_number = {record.number: record for record in self.records}
        self._by_device: dict[str, list[DeleteRecord]] = {}
        for record in self.records:
            self._by_device.setdefault(record.selector.device_id, []).append(record)
        self._masks: dict[bytes, tuple[Mask, ...]] = {}

    def __bool__(self) -> bool:
        return bool(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def find(self, number: int) -> DeleteRecord | None:
        """The record of this number, or None."""
        return self._by_number.get(number)

    def knows(self, record: DeleteRecord) -> bool:
        """Whether a record is among these. Raises ProtocolError when neither it is nor may be added to them."""
        known = self._by_number.get(record.number)
        if known is not None and known != record:
            raise ProtocolError(f"delete {record.number} is known with another selector or range")
        if known is None and record.number <= self.number:
            raise ProtocolError(f"delete {record.number} is not known, want a number above {self.number}")
        return known is not None

    def after(self, record: DeleteRecord) -> "Deletes":
        """These and one more."""
        return Deletes([*self.records, record], self.number)

    def lacks(self, record: DeleteRecord) -> bool:
        """Whether a record that was in force is gone: its number is none above the highest, and not known."""
        return record.number <= self.number and record.number not in self._by_number

    def masks_of(self, key: bytes) -> tuple[Mask, ...]:
        """What is deleted of a series, ascending by number; () for nothing."""
        found = self._masks.get(key)
        if found is None:
            found = self._find_masks(key)
            if len(self._masks) >= _CACHED_KEYS:
                self._masks = {}
            self._masks[key] = found
        return found

    def keeps(self, batch: PointBatch, number: int) -> npt.NDArray[np.bool_] | None:
        """By row of a batch, whether no delete masks it, its rows carrying `number`; None when none of them is."""
        if number >= self.number or not self.records:
            return None
        masked = self._masked(batch.keys, number)
        if not masked:
            return None
        keep = np.ones(len(batch), np.bool_)
        order = np.argsort(batch.index, kind="stable")
        ends = np.cumsum(np.bincount(batch.index, minlength=len(batch.keys)))
        for place, masks in masked:
            rows = order[ends[place - 1] if place else 0 : ends[place]]
            keep[rows] = outside(batch.times[rows], masks)
        return None if keep.all() else keep

    def _masked(self, keys: Sequence[bytes], number: int) -> list[tuple[int, tuple[Mask, ...]]]:
        """The keys, by place, that masks above a number concern, and these; for most of thousands there are none."""
        found = []
        for place, masks in enumerate(map(self._masks.get, keys)):
            masks = self.masks_of(keys[place]) if masks is None else masks
            if masks and masks[-1].number > number:
                found.append((place, tuple(mask for mask in masks if mask.number > number)))
        return found

    def _find_masks(self, key: bytes) -> tuple[Mask, ...]:
        device = msgpack.unpackb(key, use_list=False)[0]
        candidates = self._by_device.get(device)
        if candidates is None:
            return ()
        parsed = series.parse_key(key)
        return tuple(
            Mask(record.number, record.start, record.end) for record in candidates if record.selector.matches(parsed)
        )


NO_DELETES: Final = Deletes()


def outside(times: npt.NDArray[np.int64], masks: Sequence[Mask]) -> npt.NDArray[np.bool_]:
    """Whether each time lies in none of the masks, whatever their numbers."""
    keep = np.ones(len(times), np.bool_)
    for mask in masks:
        keep &= (times < mask.start) | (times > mask.end)
    return keep


def save(place: Layout, record: DeleteRecord) -> None:
    """Make a record durable. Raises OSError."""
    files.replace_file(place.delete_path(record.number), [pack(record)], disk=place.disk)


def withdraw(place: Layout, record: DeleteRecord) -> None:
    """Take back a record that could not be made durable. Raises OSError: then it may be in force after a restart."""
    files.remove_files([place.delete_path(record.number)], place.disk)


def pack(record: DeleteRecord) -> bytes:
    """The bytes of a record's file; the same for the same record."""
    selector, tags = record.selector, record.selector.tags
    if tags is not None:
        tags = {name: tags[name] for name in sorted(tags, key=lambda tag: tag.encode())}
    body = _Body(record.number, selector.device_id, selector.metric_name, tags, record.start, record.end)
    return layout.pack_header(MAGIC, VERSION, msgspec.msgpack.encode(body))


def unpack(data: Any, where: Any) -> DeleteRecord:
    """The record in a file's bytes. where: the file, for errors.

    Raises DamagedError for bytes that are no record, StorageError for one of a newer version.
    """
    body = layout.read_header(data, MAGIC, VERSION, where)
    try:
        read = msgspec.msgpack.decode(body, type=_Body)
        record = DeleteRecord(read.number, Selector(read.device_id, read.metric_name, read.tags), read.start, read.end)
        record.check()
    except (msgspec.MsgspecError, ProtocolError) as error:
        raise DamagedError(f"{where}: {error}") from error
    return record


def load(place: Layout) -> list[DeleteRecord]:
    """All records of a directory; damaged ones are set aside.

    Raises StorageError for a file of a newer version.
    """
    records = []
    for number in place.delete_numbers():
        path = place.delete_path(number)
        try:
            record = unpack(path.read_bytes(), path)
            if record.number != number:
                raise DamagedError(f"{path}: holds delete {record.number}, want {number}")
        except DamagedError as error:
            note = {"file": path.name, "reason": f"{error}; points that it deleted can be back: delete them again"}
            place.set_aside_file(path, note)
            continue
        records.append(record)
    return records
