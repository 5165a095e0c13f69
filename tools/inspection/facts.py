"""What each file of a data directory holds, in figures, as `list` shows it. Reads indexes and WAL files, no blocks."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from common.errors import ProtocolError
from tools.inspection import wal
from tools.inspection.place import DAMAGED, DELETE, LEFTOVER, NOTE, OTHER, SEGMENT, Entry, Place
from tools.inspection.segments import Opened, codec_name, open_segment
from workers.storage import deletes
from workers.storage import wal as wal_format
from workers.storage.layout import DamagedError

Facts = dict[str, Any]
GOOD = "good"


class Survey(NamedTuple):
    """By kind of file, in order of numbers. Every entry has `file` and `state`; "good" is good."""

    segments: list[Facts]
    wal: list[Facts]
    deletes: list[Facts]
    damaged: list[Facts]
    other: list[Facts]

    def troubled(self) -> list[Facts]:
        """The files in use that cannot be read."""
        return [facts for kind in self[:3] for facts in kind if facts["trouble"]]


def survey(place: Place) -> Survey:
    """Everything in a directory. Raises StorageError for a file of a newer version, OSError."""
    files = wal.wal_files(place)  # before the segments: a file gone from there is in a segment by then
    segments = [facts for entry in place.of_kind(SEGMENT) for facts in _unless_gone(_segment, entry, place)]
    covered = covered_ranges(segments)
    return Survey(
        segments,
        [facts for file in files for facts in _unless_gone(_wal, file, place, covered)],
        [facts for entry in place.of_kind(DELETE) for facts in _unless_gone(_delete, entry)],
        [_damaged(entry) for entry in place.entries() if entry.kind == DAMAGED] + _lone_notes(place),
        [
            facts
            for entry in place.entries()
            if entry.kind in (LEFTOVER, OTHER)
            for facts in _unless_gone(_other, entry)
        ],
    )


def covered_ranges(segments: Sequence[Facts]) -> list[tuple[int, int, int]]:
    """First and last WAL file that a segment of this store covers, and the segment's number."""
    return [
        (first, last, facts["number"])
        for facts in segments
        if not facts["trouble"] and not facts["foreign"]
        for first, last in facts["wal_ranges"]
    ]


def _unless_gone(read: Any, what: Any, *more: Any) -> Iterator[Facts]:
    """The facts of a file, nothing when a worker removed it meanwhile."""
    try:
        yield read(what, *more)
    except FileNotFoundError:
        return


def _segment(entry: Entry, place: Place) -> Facts:
    facts: Facts = {"file": entry.name, "kind": SEGMENT, "number": entry.number, "bytes": entry.path.stat().st_size}
    try:
        opened = open_segment(entry.path)
    except DamagedError as error:
        return facts | {"state": _reason(entry, error), "trouble": True}
    return facts | segment_facts(opened, place) | {"state": GOOD, "trouble": False}


def segment_facts(opened: Opened, place: Place) -> Facts:
    """The figures of a segment that can be opened."""
    header = opened.header
    first, last = opened.span or (None, None)
    return {
        "version": opened.version,
        "points": opened.points,
        "series": opened.series,
        "blocks": opened.blocks,
        "first_time": first,
        "last_time": last,
        "bytes_per_point": opened.bytes / opened.points if opened.points else None,
        "codecs": [use._asdict() | {"codec": codec_name(use.codec)} for use in opened.codecs],
        "delete_number": header.delete_number,
        "wal_ranges": header.wal_ranges,
        "replaces": header.replaces,
        "group": header.group,
        "origin": header.origin.hex(),
        "foreign": header.store_id != place.layout.store_id,
    }


def _wal(file: wal.WalFile, place: Place, covered: Sequence[tuple[int, int, int]]) -> Facts:
    segment = wal.covered_by(file.entry.number, covered)
    facts: Facts = {
        "file": file.entry.name,
        "kind": "wal",
        "number": file.entry.number,
        "version": wal_format.VERSION,
        "bytes": file.size,
        "acked_bytes": file.acked,
        "previous": file.header.previous if file.header is not None else None,
        "covered_by": segment,
    }
    found = [] if file.is_foreign(place.layout.store_id) else list(wal.contents(file, place.layout.store_id))
    facts |= _record_facts([each for each in found if isinstance(each, wal.Record)])
    faults = [each for each in found if isinstance(each, wal.Fault)]
    facts["faults"] = [fault._asdict() for fault in faults]
    return facts | _wal_state(file, place, segment, faults)


def _record_facts(records: Sequence[wal.Record]) -> Facts:
    times = [record.batch.times for record in records if len(record.batch)]
    return {
        "records": len(records),
        "points": sum(len(record.batch) for record in records),
        "series": len({key for record in records for key in record.batch.keys}),
        "first_time": min((int(each.min()) for each in times), default=None),
        "last_time": max((int(each.max()) for each in times), default=None),
        "born": [min(each), max(each)] if (each := [record.born for record in records]) else None,
        "delete_numbers": np.unique([record.delete_number for record in records]).astype(int).tolist(),
    }


def _wal_state(file: wal.WalFile, place: Place, segment: int | None, faults: Sequence[wal.Fault]) -> Facts:
    """In words; the worst thing first."""
    if segment is not None:
        return {"state": f"sealed into segment {segment}", "trouble": False}
    if file.header is None and file.size > wal_format.HEADER_BYTES:
        return {"state": file.reason, "trouble": True}
    if file.is_foreign(place.layout.store_id):
        return {"state": "of another store, or another number", "trouble": True}
    damaged = [fault for fault in faults if not fault.torn]
    if damaged:
        return {"state": f"{len(damaged)} damaged parts, the first at {damaged[0].offset}", "trouble": True}
    if file.acked is not None and file.acked > file.size:
        return {"state": f"{file.acked - file.size} acked bytes are missing", "trouble": True}
    if faults:
        return {"state": f"torn tail of {faults[0].length} bytes, never acked", "trouble": False}
    return {"state": GOOD, "trouble": False}


def _delete(entry: Entry) -> Facts:
    facts: Facts = {"file": entry.name, "kind": DELETE, "number": entry.number, "bytes": entry.path.stat().st_size}
    try:
        record = read_delete(entry)
    except DamagedError as error:
        return facts | {"state": _reason(entry, error), "trouble": True}
    return facts | delete_facts(record) | {"version": deletes.VERSION, "state": GOOD, "trouble": False}


def read_delete(entry: Entry) -> deletes.DeleteRecord:
    """The record in a file. Raises DamagedError, StorageError for a newer version, OSError."""
    record = deletes.unpack(entry.path.read_bytes(), entry.path)
    if record.number != entry.number:
        raise DamagedError(f"{entry.path}: holds delete {record.number}, want {entry.number}")
    return record


def delete_facts(record: deletes.DeleteRecord) -> Facts:
    """What a record says; None where it means any."""
    return {
        "device_id": record.selector.device_id,
        "metric_name": record.selector.metric_name,
        "tags": record.selector.tags,
        "first_time": record.start,
        "last_time": record.end,
    }


def _damaged(entry: Entry) -> Facts:
    """A file set aside, and what its note says."""
    note = entry.path.with_name(entry.path.name + ".json")
    said = read_note(note) if note.exists() else {"reason": "has no note"}
    return {"file": entry.name, "bytes": entry.path.stat().st_size, "state": said.get("reason", ""), "note": said}


def _lone_notes(place: Place) -> list[Facts]:
    """What is on record without a file: something of which nothing is left."""
    notes = [entry for entry in place.entries() if entry.kind == NOTE and not entry.path.with_suffix("").exists()]
    read = [(entry, read_note(entry.path)) for entry in notes]
    return [{"file": entry.name, "bytes": 0, "state": said.get("reason", ""), "note": said} for entry, said in read]


def read_note(path: Any) -> Facts:
    """What a note says; why it cannot be read where it cannot."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Facts)
    except (ValueError, RecursionError, ProtocolError) as error:
        return {"reason": f"note cannot be read: {error}"}


def _other(entry: Entry) -> Facts:
    state = "left half written" if entry.kind == LEFTOVER else "not a node's file"
    return {"file": entry.name, "bytes": entry.path.stat().st_size, "state": state}


def _reason(entry: Entry, error: DamagedError) -> str:
    return str(error).removeprefix(f"{entry.path}: ")
