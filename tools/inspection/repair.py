"""Sets damaged files of a directory aside as a node would, and tells what is lost with them.

`plan` writes nothing; `carry_out` needs the directory's lock, as a node does. A file moves to damaged/ with a note;
damaged parts of WAL files are copied there, and a torn tail is cut off: that is what the next start would do.
"""

import functools
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from common.errors import ProtocolError
from common.series import parse_key
from tools.inspection import wal
from tools.inspection.place import DELETE, SEGMENT, WAL, Entry, Finding, Place
from tools.inspection.rows import series_fields
from tools.inspection.segments import open_segment
from tools.inspection.verify import Verdict, ranges_of
from workers.storage import behind, segment, segment_v1
from workers.storage.layout import DamagedError, Layout
from workers.storage.recovery import Recovery

MOVED, COPIED, NOTED = "set aside", "damaged parts copied", "put on record"
_SERIES_TOLD: Final = 1000  # of a file; more are only counted


class Loss(NamedTuple):
    """What is done about a file, and what is lost with it, as far as can be told; None where it cannot.

    readable_points: those of its points that `dump` can still read; keys: of its series, at most _SERIES_TOLD.
    inputs: segments that this one replaces and that are still there, so that their points are not lost.
    """

    file: str
    kind: str
    action: str
    reasons: list[str]
    points: int | None
    readable_points: int | None
    series: int | None
    keys: list[dict[str, Any]] | None
    first_time: int | None
    last_time: int | None
    inputs: list[int]

    def document(self) -> dict[str, Any]:
        """For programs."""
        return self._asdict()


def plan(place: Place, verdict: Verdict) -> list[Loss]:
    """What is to be done about the findings, file by file. Raises OSError."""
    by_file: dict[str, list[Finding]] = {}
    for finding in verdict.findings:
        by_file.setdefault(finding.file, []).append(finding)
    return [_loss(place, place.entry(place.directory / name), mine) for name, mine in by_file.items()]


def carry_out(place: Place, layout: Layout, losses: Sequence[Loss]) -> None:
    """Do it. layout: of the open directory. A node that begins there afterwards is behind. Raises OSError."""
    layout.watchers.append(functools.partial(behind.note_loss, layout))
    for loss in losses:
        if loss.action == MOVED and loss.kind != WAL:
            path = place.directory / loss.file
            error = DamagedError("; ".join(loss.reasons))
            layout.set_aside_file(path, _note(loss, path, error))
    if any(loss.kind == WAL for loss in losses):
        ranges = [each for entry in place.of_kind(SEGMENT) for each in ranges_of(place, entry)]
        recovery = Recovery(layout, lambda number: wal.covered_by(number, ranges) is not None)
        for _ in recovery.replay():
            pass  # its rows stay in the WAL; what was damaged is set aside on the way


def _loss(place: Place, entry: Entry, findings: Sequence[Finding]) -> Loss:
    reasons = [f"{finding.where}: {finding.what}" if finding.where else finding.what for finding in findings]
    if entry.kind == SEGMENT:
        return _segment_loss(place, entry, reasons)
    if entry.kind == DELETE:
        reasons.append("points that it deleted can be back: delete them again")
        return Loss(entry.name, DELETE, MOVED, reasons, 0, 0, 0, [], None, None, [])
    action = NOTED if not entry.path.exists() else COPIED if all(each.note for each in findings) else MOVED
    return Loss(entry.name, entry.kind, action, reasons, None, None, None, None, None, None, [])


def _segment_loss(place: Place, entry: Entry, reasons: list[str]) -> Loss:
    note = _describe(entry.path, DamagedError(""))
    keys = readable = None
    inputs: list[int] = []
    try:
        opened = open_segment(entry.path)
        keys = [_named(key) for key in opened.keys()[:_SERIES_TOLD]]
        readable = sum(_rows_of(opened.decode, block) for block in range(opened.blocks))
        if opened.header.store_id == place.layout.store_id:
            inputs = [number for number in opened.header.replaces if place.layout.segment_path(number).exists()]
    except DamagedError:
        readable = readable or 0
    return Loss(
        entry.name, SEGMENT, MOVED, reasons, note["points"], readable, note["series"], keys, note["first_time"],
        note["last_time"], inputs,
    )  # fmt: skip


def _rows_of(decode: Any, block: int) -> int:
    """How many rows of a block can be read."""
    try:
        return len(decode(block)[0])
    except DamagedError:
        return 0


def _note(loss: Loss, path: Any, error: DamagedError) -> dict[str, Any]:
    if loss.kind == SEGMENT:
        return _describe(path, error)
    return {"file": path.name, "reason": str(error)}


def _describe(path: Any, error: DamagedError) -> dict[str, Any]:
    """The note that a node would write."""
    describe = segment_v1.describe_damage if segment_v1.is_version_1(path) else segment.describe_damage
    return describe(path, error)


def _named(key: bytes) -> dict[str, Any]:
    try:
        return series_fields(parse_key(key))
    except ProtocolError as error:
        return {"damaged": str(error)}
