"""Checks of a whole data directory: every file in use is read to its last byte. Writes nothing."""

import contextlib
from collections.abc import Callable
from typing import NamedTuple

from tools.inspection import wal
from tools.inspection.check import check_segment
from tools.inspection.facts import read_delete
from tools.inspection.place import DAMAGED, DELETE, LEFTOVER, NOTE, OTHER, SEGMENT, WAL, Entry, Finding, Place
from tools.inspection.segments import open_segment
from workers.storage.layout import DamagedError

Tick = Callable[[int, str], None]
Ranges = list[tuple[int, int, int]]


class Verdict(NamedTuple):
    """findings: what is wrong; remarks: what is worth knowing; figures: how much was read."""

    findings: list[Finding]
    remarks: list[str]
    figures: dict[str, int]


def size_of(place: Place) -> int:
    """Bytes that `verify` will read."""
    total = 0
    for entry in place.entries():
        if entry.kind in (SEGMENT, WAL, DELETE):
            with contextlib.suppress(FileNotFoundError):  # removed by a worker meanwhile
                total += entry.path.stat().st_size
    return total


def verify(place: Place, tick: Tick = lambda size, name: None) -> Verdict:
    """Check everything. tick: told of bytes done and the file. Raises StorageError for a newer version, OSError."""
    verdict = Verdict([], [], dict.fromkeys(("segments", "blocks", "points", "wal_files", "records", "deletes"), 0))
    files = wal.wal_files(place)  # before the segments: a file gone from there is in a segment by then
    covered: Ranges = []
    for entry in place.of_kind(SEGMENT):
        _verify_segment(place, entry, verdict, covered, tick)
    _verify_wal(place, files, covered, verdict, tick)
    for entry in place.of_kind(DELETE):
        _verify_delete(entry, verdict)
    _remark(place, verdict)
    return verdict


def _verify_segment(place: Place, entry: Entry, verdict: Verdict, covered: Ranges, tick: Tick) -> None:
    before = len(verdict.findings)
    try:
        checked = check_segment(entry, verdict.findings, lambda size: tick(size, entry.name))
        if len(verdict.findings) == before:
            covered += ranges_of(place, entry)
    except FileNotFoundError:
        verdict.remarks.append(f"{entry.name}: removed meanwhile")
        return
    verdict.figures["segments"] += 1
    verdict.figures["blocks"] += checked.blocks
    verdict.figures["points"] += checked.points


def ranges_of(place: Place, entry: Entry) -> Ranges:
    """First and last WAL file that a segment covers, and its number. A damaged one, or one gone, covers nothing."""
    try:
        header = open_segment(entry.path).header
    except (DamagedError, FileNotFoundError):
        return []
    if header.store_id != place.layout.store_id:
        return []
    return [(first, last, entry.number) for first, last in header.wal_ranges]


def _verify_wal(place: Place, files: list[wal.WalFile], covered: Ranges, verdict: Verdict, tick: Tick) -> None:
    findings = list(wal.faults(files, place, covered))
    for file in files:
        if wal.covered_by(file.entry.number, covered) is not None or file.is_foreign(place.layout.store_id):
            continue
        try:
            records, faults = _read_wal(place, file)
        except FileNotFoundError:
            verdict.remarks.append(f"{file.entry.name}: removed meanwhile")
            continue
        findings += faults
        verdict.figures["wal_files"] += 1
        verdict.figures["records"] += records
        tick(file.size, file.entry.name)
    for finding in findings:
        if place.is_on_record(finding):
            verdict.remarks.append(f"{finding.text()} (on record in damaged/{finding.note}.json)")
        else:
            verdict.findings.append(finding)


def _read_wal(place: Place, file: wal.WalFile) -> tuple[int, list[Finding]]:
    records = sum(isinstance(found, wal.Record) for found in wal.contents(file, place.layout.store_id))
    return records, list(wal.record_findings(file, place.layout.store_id))


def _verify_delete(entry: Entry, verdict: Verdict) -> None:
    try:
        read_delete(entry)
    except DamagedError as error:
        verdict.findings.append(Finding(entry.name, "", str(error).removeprefix(f"{entry.path}: ")))
    except FileNotFoundError:
        verdict.remarks.append(f"{entry.name}: removed meanwhile")
        return
    verdict.figures["deletes"] += 1


def _remark(place: Place, verdict: Verdict) -> None:
    for entry in place.entries():
        if entry.kind == LEFTOVER:
            verdict.remarks.append(f"{entry.name}: left half written, removed at the next start")
        elif entry.kind == OTHER:
            verdict.remarks.append(f"{entry.name}: not a node's file")
    set_aside = sum(entry.kind in (DAMAGED, NOTE) and not _has_note(entry) for entry in place.entries())
    if set_aside:
        verdict.remarks.append(f"{set_aside} damaged files or parts were set aside before: see damaged/")


def _has_note(entry: Entry) -> bool:
    """Whether this is a file that its note speaks of, which is counted itself."""
    return entry.kind == DAMAGED and entry.path.with_name(entry.path.name + ".json").exists()
