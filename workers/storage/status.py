"""What a store shows of itself: the map that `status` answers with, and the same figures as metrics.

Owns the list of figures. Never changes the store. Any thread.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from common import clock, metrics
from common.codec import CodecId
from workers.storage.segment import Segment

_FRESH_S: Final = 0.1  # how long a status serves

# Figures of the status that are exported as metrics: type and meaning.
_METRICS: Final = {
    "series": ("gauge", "Series known."),
    "points": ("gauge", "Points in segments and heads."),
    "head_rows": ("gauge", "Rows in memory, not sealed yet."),
    "head_bytes": ("gauge", "Bytes of memory that heads take."),
    "segments": ("gauge", "Segments."),
    "segment_points": ("gauge", "Points in segments."),
    "segment_bytes": ("gauge", "Bytes of segments."),
    "wal_files": ("gauge", "WAL files."),
    "wal_bytes": ("gauge", "Bytes of WAL files."),
    "wal_age_s": ("gauge", "Seconds for which the oldest row has been in the WAL and in no segment."),
    "sealing_backlog": ("gauge", "Heads that wait to be sealed."),
    "sealing_failures": ("counter", "Attempts to seal that failed."),
    "sealed_rows": ("counter", "Rows sealed."),
    "sealed_bytes": ("counter", "Bytes of segments written by sealing."),
    "seal_seconds": ("counter", "Seconds spent sealing."),
    "compaction_backlog": ("gauge", "Segments that the next compaction takes."),
    "compaction_failures": ("counter", "Attempts to compact that failed."),
    "compactions": ("counter", "Compactions done."),
    "compacted_bytes": ("counter", "Bytes of segments written by compaction."),
    "expired_points": ("counter", "Points removed with segments behind the retention."),
    "written_per_stored_byte": ("gauge", "Bytes written for each byte sealed: by WAL, sealing and compaction."),
    "refused_rows": ("counter", "Points refused for good."),
    "deletes": ("gauge", "Delete records."),
    "delete_number": ("gauge", "Highest delete in force."),
    "deletes_unapplied": ("gauge", "Segments with rows that a delete hides and compaction has still to drop."),
    "dropped_partitions": ("gauge", "Partitions that were given away and are still on their way out."),
    "dropped_segments": ("gauge", "Segments with rows of such partitions, which compaction has still to drop."),
    "disk_free_bytes": ("gauge", "Bytes free on the disk of the data directory."),
    "resident_bytes": ("gauge", "Bytes of memory in use, without mapped files."),
    "wal_failures": ("counter", "Groups that the disk refused."),
    "wal_written_bytes": ("counter", "Bytes of records written to the WAL."),
    "fsyncs": ("counter", "Groups made durable."),
    "fsync_seconds": ("counter", "Seconds spent in fdatasync."),
    "fsync_max_ms": ("gauge", "Longest fdatasync, milliseconds."),
}


def of_segments(segments: Sequence[Segment]) -> dict[str, Any]:
    """Figures of segments. codecs: by part of a block ("times", "values") and codec, points and bytes."""
    points = sum(each.points for each in segments)
    size = sum(each.bytes for each in segments)
    codecs: dict[str, dict[str, dict[str, Any]]] = {"times": {}, "values": {}}
    for use in (use for each in segments for use in each.codecs):
        shown = codecs[use.part].setdefault(CodecId(use.codec).name.lower(), {"points": 0, "bytes": 0})
        shown["points"] += use.points
        shown["bytes"] += use.bytes
    for shown in (shown for part in codecs.values() for shown in part.values()):
        shown["bytes_per_point"] = shown["bytes"] / shown["points"]
    return {
        "segments": len(segments),
        "segment_points": points,
        "segment_bytes": size,
        "bytes_per_point": size / points if points else None,
        "codecs": codecs,
    }


def written_per_stored(wal: int, sealed: int, compacted: int) -> float | None:
    """Bytes written for each that a segment holds when it is sealed: what an SD card wears by. None before."""
    return (wal + sealed + compacted) / sealed if sealed else None


def resident_bytes() -> int:
    """Bytes of memory of this process, without mapped files: those the system takes back when it needs them."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def export(status: Callable[[], dict[str, Any]]) -> None:
    """Show the figures of a store that are numbers as metrics of this process. Once per process."""

    last: tuple[float, dict[str, Any]] = (float("-inf"), {})

    def current() -> dict[str, Any]:
        """One status serves all metrics that are read together."""
        nonlocal last
        now_s = clock.monotonic_s()
        if now_s - last[0] > _FRESH_S:
            last = (now_s, status())
        return last[1]

    def figure(name: str) -> float:
        return float(current()[name] or 0)

    def codecs(figure: str) -> dict[tuple[str, ...], float]:
        shown = current()["codecs"].items()
        return {(part, codec): figures[figure] for part, of_part in shown for codec, figures in of_part.items()}

    for name, (kind, help_) in _METRICS.items():
        make = metrics.counter_from if kind == "counter" else metrics.gauge_from
        make(f"minitrue_storage_{name}", help_, functools.partial(figure, name))
    metrics.gauge_from(
        "minitrue_storage_damaged", "Damaged files and parts set aside.", lambda: len(current()["damaged"])
    )
    for name in ("points", "bytes"):
        metrics.gauge_from(
            f"minitrue_storage_codec_{name}",
            f"{name.capitalize()} in segments by part of a block and codec.",
            functools.partial(codecs, name),
            labels=("part", "codec"),
        )
