"""What files hold, row by row: points, blocks, WAL records, delete records; of damaged files what can be read.

Points come as arrays, other rows as dicts, all of one kind with the same fields (rows.py). Times are nanoseconds.
Writes nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from common.errors import ProtocolError, StorageError
from common.series import Series, parse_key
from tools.inspection import wal
from tools.inspection.facts import delete_facts, read_delete
from tools.inspection.place import DAMAGED, DELETE, SEGMENT, WAL, Entry, Place
from tools.inspection.rows import BLOCKS, DELETES, FIELDS, POINTS, RECORDS, Points, series_fields
from tools.inspection.segments import Opened, codec_name, open_segment, spans
from tools.inspection.verify import ranges_of
from workers.storage import deletes, segment_v1
from workers.storage import wal as wal_format
from workers.storage.deletes import Deletes
from workers.storage.layout import DamagedError

_AT_ONCE: Final = 256  # blocks whose index is read together

Row = dict[str, Any]
Report = Callable[[str], None]


class Wanted(NamedTuple):
    """Which points. Device and metric: None for any; tags: those that a series must have among its own."""

    device_id: str | None
    metric_name: str | None
    tags: dict[str, str]
    start: int
    end: int

    def matches(self, series: Series) -> bool:
        """Whether a series is wanted."""
        return (
            self.device_id in (None, series.device_id)
            and self.metric_name in (None, series.metric_name)
            and self.tags.items() <= dict(series.tags).items()
        )


def chosen(place: Place, names: Sequence[str], kinds: Sequence[str]) -> list[Entry]:
    """The files of these names or paths; without any, all in use that are of one of these kinds.

    WAL files whose rows lie in a segment are left out then: they would be there twice. Raises StorageError for a
    name that there is not.
    """
    if names:
        return [_named(place, name) for name in names]
    logs = place.of_kind(WAL) if WAL in kinds else []  # first: a file gone from there is in a segment by then
    found = [entry for kind in kinds if kind != WAL for entry in place.of_kind(kind)]
    covered = [each for entry in place.of_kind(SEGMENT) for each in ranges_of(place, entry)] if logs else []
    return found + [entry for entry in logs if wal.covered_by(entry.number, covered) is None]


def _named(place: Place, name: str) -> Entry:
    for path in (place.directory / name, Path(name)):
        if path.is_file() and path.resolve().is_relative_to(place.directory.resolve()):
            return place.entry(place.directory / path.resolve().relative_to(place.directory.resolve()))
    found = [entry for entry in place.entries() if entry.path.name == name]
    if not found:
        raise StorageError(f"no file {name} in {place.directory}; see: tools/inspect list {place.directory}")
    return found[0]


class Dump:
    """Rows of files. report: told, in words, of everything that cannot be read. skip_deleted: leave masked rows out."""

    def __init__(self, place: Place, wanted: Wanted, report: Report, skip_deleted: bool = False) -> None:
        self._place = place
        self._wanted = wanted
        self._report = report
        self._deletes = Deletes(_records_of(place, report)) if skip_deleted else Deletes()
        self._wal = {file.entry.path: file for file in wal.wal_files(place)}

    def points(self, entry: Entry) -> Iterator[Points]:
        """The wanted points of a segment or WAL file, block by block or record by record."""
        yield from self._read(POINTS, entry, {SEGMENT: self._segment_points, WAL: self._wal_points})

    def rows(self, what: str, entry: Entry) -> Iterator[Row]:
        """The rows of a kind other than points; none where the file has no such."""
        kinds = {BLOCKS: (SEGMENT, self._blocks), RECORDS: (WAL, self._wal_records), DELETES: (DELETE, self._record)}
        yield from self._read(what, entry, dict([kinds[what]]))

    def _read(self, what: str, entry: Entry, readers: dict[str, Callable[[Entry], Iterator[Any]]]) -> Iterator[Any]:
        try:
            reader = readers.get(_kind_by_content(entry))
            if reader is None:
                self._report(f"{entry.name}: has no {what}")
                return
            yield from reader(entry)
        except DamagedError as error:
            self._say(entry, error)
        except FileNotFoundError:
            self._report(f"{entry.name}: removed meanwhile by a worker; its points lie in another file")

    def _say(self, entry: Entry, error: DamagedError) -> None:
        self._report(f"{entry.name}: {str(error).removeprefix(f'{entry.path}: ')}")

    def _segment_points(self, entry: Entry) -> Iterator[Points]:
        opened = open_segment(entry.path)
        for key, series, block in self._blocks_wanted(entry, opened):
            try:
                times, values = opened.decode(block)
            except DamagedError as error:
                self._say(entry, error)
                continue
            found = Points(series, entry.name, f"block {block}", opened.header.delete_number, times, values)
            yield from self._kept(key, found)

    def _blocks_wanted(self, entry: Entry, opened: Opened) -> Iterator[tuple[bytes, Series, int]]:
        """Key, series and number of each block that may hold wanted points."""
        keys = opened.keys()
        series = [_parsed(key) for key in keys]
        owners = opened.owners()
        matching = np.array([self._wanted.matches(each) for each in series], np.bool_)
        for begin, end in spans(opened.blocks, _AT_ONCE):
            if not matching[owners[begin:end]].any():
                continue
            try:
                index = opened.index(begin, end)
            except DamagedError as error:
                self._say(entry, error)
                continue
            near = (index.t_max >= self._wanted.start) & (index.t_min <= self._wanted.end)
            for block in (begin + np.flatnonzero(near & matching[owners[begin:end]])).tolist():
                yield keys[owners[block]], series[owners[block]], block

    def _kept(self, key: bytes, found: Points) -> Iterator[Points]:
        """Those of the points of a wanted series that are wanted, if there are any."""
        keep = (found.times >= self._wanted.start) & (found.times <= self._wanted.end)
        masks = [mask for mask in self._deletes.masks_of(key) if mask.number > found.delete_number]
        if masks:
            keep &= deletes.outside(found.times, masks)
        if keep.any():
            yield found._replace(times=found.times[keep], values=found.values[keep])

    def _blocks(self, entry: Entry) -> Iterator[Row]:
        opened = open_segment(entry.path)
        for _, series, block in self._blocks_wanted(entry, opened):
            index, found = opened.index(block, block + 1), opened.windows(block, block + 1)
            floats = [float(each) if np.isfinite(each) else None for each in index.floats[:, 0]]
            names = ("sum", "sum_low", "min", "max", "first", "last", "m2")
            yield series_fields(series) | dict(zip(names, floats, strict=True)) | {
                "file": entry.name,
                "block": block,
                "first_time": int(index.t_min[0]),
                "last_time": int(index.t_max[0]),
                "points": int(index.counts[0]),
                "digest": f"{int(index.digests[0]):016x}",
                "offset": int(index.offsets[0]),
                "times_codec": codec_name(int(index.times_codec[0])),
                "times_bytes": int(index.times_bytes[0]),
                "values_codec": codec_name(int(index.values_codec[0])),
                "values_bytes": int(index.values_bytes[0]),
                "window_s": int(found.widths[0]) // 1_000_000_000,
                "windows": len(found.numbers),
            }

    def _records(self, entry: Entry) -> Iterator[wal.Record | wal.Fault]:
        file = self._wal.get(entry.path) or wal.lone_file(entry)
        store_id = file.header.store_id if file.header is not None else self._place.layout.store_id
        yield from wal.contents(file, store_id)

    def _wal_points(self, entry: Entry) -> Iterator[Points]:
        for found in self._records(entry):
            if isinstance(found, wal.Fault):
                if not found.torn:
                    self._report(f"{entry.name}: {found.length} bytes at {found.offset}: {found.what}")
                continue
            batch = found.batch
            for place, key in enumerate(batch.keys):
                series = _parsed(key)
                if self._wanted.matches(series):
                    mine = batch.index == place
                    columns = batch.times[mine], batch.values[mine]
                    at = f"record at {found.offset}"
                    yield from self._kept(key, Points(series, entry.name, at, found.delete_number, *columns))

    def _wal_records(self, entry: Entry) -> Iterator[Row]:
        for found in self._records(entry):
            row = dict.fromkeys(FIELDS[RECORDS]) | {
                "file": entry.name, "offset": found.offset, "length": found.length
            }  # fmt: skip
            if isinstance(found, wal.Fault):
                yield row | {"state": found.what}
                continue
            times = found.batch.times
            yield row | {
                "state": "good",
                "born": found.born,
                "delete_number": found.delete_number,
                "points": len(times),
                "series": len(found.batch.keys),
                "first_time": int(times.min()) if len(times) else None,
                "last_time": int(times.max()) if len(times) else None,
            }

    def _record(self, entry: Entry) -> Iterator[Row]:
        record = read_delete(entry)
        yield {"file": entry.name, "number": record.number} | delete_facts(record)


def _parsed(key: bytes) -> Series:
    try:
        return parse_key(key)
    except ProtocolError:
        return Series(repr(key), "")  # keys of a damaged file: shown as they are


def _records_of(place: Place, report: Report) -> Iterator[deletes.DeleteRecord]:
    for entry in place.of_kind(DELETE):
        try:
            yield read_delete(entry)
        except DamagedError as error:
            report(f"{entry.name}: {str(error).removeprefix(f'{entry.path}: ')}; what it hides is shown")
        except FileNotFoundError:
            continue  # purged by a worker: no row that it hid is left


def _kind_by_content(entry: Entry) -> str:
    """What a file is; one that was set aside, by its first bytes."""
    if entry.kind != DAMAGED:
        return entry.kind
    with entry.path.open("rb") as file:
        magic = file.read(4)
    kinds = {segment_v1.MAGIC: SEGMENT, wal_format.MAGIC: WAL, deletes.MAGIC: DELETE}
    return kinds.get(magic, DAMAGED)
