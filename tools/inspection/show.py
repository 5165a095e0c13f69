"""What tools/inspect prints: tables and lines for people, rows as CSV or JSON. Reads nothing and decides nothing.

Imports no kernels, so that --help comes at once.
"""

import csv
import io
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from rich.markup import escape
from rich.table import Table

from common.timestamps import NS_PER_S
from tools.inspection.rows import FIELDS, POINTS, TIMES, Points, series_fields
from tools.output import new_table, size_text, time_text

_JSON_TIME: Final = ', "timestamp": '
_JSON_VALUE: Final = ', "timestamp_unit": "ns", "value": '

SHOWN_LINES: Final = 50  # of findings, reasons, series; --json has all


def print_points_json(parts: Iterable[Points]) -> None:
    """Points as messages that sensors could have published, a line each."""
    for part in parts:
        begin = json.dumps(series_fields(part.series), ensure_ascii=False)[:-1]
        place = json.dumps(_place_fields(part))[1:]
        points = zip(part.times.tolist(), part.values.tolist(), strict=True)
        _write_lines(f"{begin}{_JSON_TIME}{time_ns}{_JSON_VALUE}{value!r}, {place}" for time_ns, value in points)


def print_points_csv(parts: Iterable[Points]) -> None:
    """Points with the columns FIELDS[POINTS]."""
    print(",".join(FIELDS[POINTS]))
    for part in parts:
        begin = _csv_line(series_fields(part.series))
        place = _csv_line(_place_fields(part))
        points = zip(_time_texts(part.times), part.values.tolist(), strict=True)
        _write_lines(f"{begin},{time},{value!r},{place}" for time, value in points)


def print_json(_: str, rows: Iterable[dict[str, Any]]) -> None:
    """Rows of another kind, a line each."""
    for row in rows:
        print(json.dumps(row, ensure_ascii=False))


def print_csv(what: str, rows: Iterable[dict[str, Any]]) -> None:
    """The same as CSV."""
    print(",".join(FIELDS[what]))
    for row in rows:
        print(_csv_line({name: row[name] for name in FIELDS[what]}))


def _write_lines(lines: Iterable[str]) -> None:
    sys.stdout.write("\n".join(lines) + "\n")


def _place_fields(part: Points) -> dict[str, Any]:
    return {"file": part.file, "at": part.at, "delete_number": part.delete_number}


def _csv_line(fields: dict[str, Any]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow([_cell(value, name in TIMES) for name, value in fields.items()])
    return line.getvalue()


def _time_texts(times: npt.NDArray[np.int64]) -> list[str]:
    """time_text of many."""
    seconds, fractions = np.divmod(times, NS_PER_S)
    texts = np.datetime_as_string(seconds.astype("M8[s]")).tolist()
    return [
        f"{text}.{fraction:09d}".rstrip("0") + "Z" if fraction else text + "Z"
        for text, fraction in zip(texts, fractions.tolist(), strict=True)
    ]


def _cell(value: Any, is_time: bool) -> Any:
    if is_time and value is not None:
        return time_text(value)
    return json.dumps(value, ensure_ascii=False, sort_keys=True) if isinstance(value, dict) else value


def title(place: Any) -> str:
    node = place.node
    return escape(f"{place.directory}: node {node.node} of cluster {node.cluster}, store {node.store_id}")


def identity(place: Any) -> dict[str, Any]:
    return {"directory": str(place.directory), "cluster": place.node.cluster, "node": place.node.node,
            "store_id": place.node.store_id}  # fmt: skip


def list_tables(found: Any) -> list[str | Table]:
    parts: list[str | Table] = []
    if found.segments:
        parts += ["", _segment_table(found.segments)]
    if found.wal:
        parts += ["", _wal_table(found.wal)]
    if found.deletes:
        parts += ["", _delete_table(found.deletes)]
    for title, facts in (("set aside in", found.damaged), ("other", found.other)):
        if facts:
            parts += ["", _state_table(title, facts)]
    return [*parts, ""]


def _segment_table(segments: Sequence[dict[str, Any]]) -> Table:
    table = new_table(
        "segment", ">version", ">points", ">series", ">blocks", "from", "to", ">size", ">bytes/point", ">deletes",
        "made of", "state",
    )  # fmt: skip
    for facts in segments:
        if facts["trouble"]:
            table.add_row(_name(facts), *[""] * 6, size_text(facts["bytes"]), *[""] * 3, _red(facts["state"]))
            continue
        ratio = "" if facts["bytes_per_point"] is None else f"{facts['bytes_per_point']:.2f}"
        counts = [f"{facts[name]:,}" for name in ("points", "series", "blocks")]
        table.add_row(
            _name(facts), str(facts["version"]), *counts, *_span(facts), size_text(facts["bytes"]), ratio,
            str(facts["delete_number"]), _origin(facts), facts["state"],
        )  # fmt: skip
    return table


def _origin(facts: dict[str, Any]) -> str:
    """Where a segment's rows came from."""
    parts = [f"WAL {first}" if first == last else f"WAL {first} to {last}" for first, last in facts["wal_ranges"]]
    if facts["replaces"]:
        parts.append("segments " + " ".join(map(str, facts["replaces"])))
    if facts["group"][1] > 1:
        parts.append(f"one of {facts['group'][1]} from {facts['group'][0]}")
    if facts["foreign"]:
        parts.append("another store")
    return ", ".join(parts)


def _wal_table(files: Sequence[dict[str, Any]]) -> Table:
    table = new_table("WAL file", ">records", ">points", ">series", "from", "to", ">size", ">deletes", "state")
    for facts in files:
        counts = [f"{facts[name]:,}" for name in ("records", "points", "series")]
        numbers = " ".join(map(str, facts["delete_numbers"]))
        state = _red(facts["state"]) if facts["trouble"] else facts["state"]
        table.add_row(_name(facts), *counts, *_span(facts), size_text(facts["bytes"]), numbers, state)
    return table


def _delete_table(records: Sequence[dict[str, Any]]) -> Table:
    table = new_table("delete record", "device", "metric", "tags", "from", "to", "state")
    for facts in records:
        if facts["trouble"]:
            table.add_row(_name(facts), "", "", "", "", "", _red(facts["state"]))
            continue
        metric = "any" if facts["metric_name"] is None else escape(facts["metric_name"])
        tags = "any" if facts["tags"] is None else escape(json.dumps(facts["tags"], ensure_ascii=False))
        table.add_row(facts["file"], escape(facts["device_id"]), metric, tags, *_span(facts), facts["state"])
    return table


def _state_table(title: str, files: Sequence[dict[str, Any]]) -> Table:
    table = new_table(title, ">size", "why")
    table.columns[0].no_wrap = True
    for facts in files:
        table.add_row(escape(facts["file"]), size_text(facts["bytes"]), escape(facts["state"]))
    return table


def totals(found: Any) -> list[str]:
    good = [facts for facts in found.segments if not facts["trouble"]]
    points, size = (sum(facts[name] for facts in good) for name in ("points", "bytes"))
    lines = [f"{points:,} points in {len(good)} segments, {size_text(size)}"]
    if points:
        lines[0] += f", {size / points:.2f} bytes/point"
    uses: dict[tuple[str, str], list[int]] = {}
    for use in (use for facts in good for use in facts["codecs"]):
        total = uses.setdefault((use["part"], use["codec"]), [0, 0])
        total[0] += use["points"]
        total[1] += use["bytes"]
    for part in ("times", "values"):
        shares = [f"{codec} {each[0]:,} points at {each[1] / each[0]:.3f} bytes"
                  for (of, codec), each in sorted(uses.items()) if of == part and each[0]]  # fmt: skip
        lines += [f"{part}: " + ", ".join(shares)] if shares else []
    return lines


def finding_lines(verdict: Any) -> list[str]:
    lines = [_red(finding.text()) for finding in verdict.findings[:SHOWN_LINES]]
    more = len(verdict.findings) - len(lines)
    return [*lines, *([f"and {more} more; --json tells all"] if more else []), *map(escape, verdict.remarks)]


def figures_line(verdict: Any) -> str:
    read = verdict.figures
    return (
        f"read {read['segments']:,} segments with {read['blocks']:,} blocks and {read['points']:,} points, "
        f"{read['wal_files']:,} WAL files with {read['records']:,} records, {read['deletes']:,} delete records: "
        + (f"{len(verdict.findings)} things are wrong" if verdict.findings else "all is well")
    )


def verdict_facts(verdict: Any) -> dict[str, Any]:
    findings = [{"file": each.file, "where": each.where, "what": each.what} for each in verdict.findings]
    return {"findings": findings, "remarks": verdict.remarks, "read": verdict.figures}


def loss_lines(losses: Sequence[Any]) -> list[str]:
    lines: list[str] = []
    for loss in losses:
        lines.append(_red(f"{loss.file}: to be {loss.action}"))
        lines += [escape(f"    {reason}") for reason in loss.reasons[:SHOWN_LINES]]
        lines.append(f"    lost: {_lost(loss)}")
        lines += [escape(f"    {_series_text(each)}") for each in (loss.keys or [])[:SHOWN_LINES]]
    return lines


def _lost(loss: Any) -> str:
    if loss.inputs:
        return f"nothing: the segments it was made of are there: {' '.join(map(str, loss.inputs))}"
    if loss.kind == "delete":
        return "no points"
    if loss.points is None and loss.series is None:
        return "it cannot be told which points"
    span = "" if loss.first_time is None else f" from {time_text(loss.first_time)} to {time_text(loss.last_time)}"
    points = "an unknown number of" if loss.points is None else f"{loss.points:,}"
    return f"{points} points of {loss.series} series{span}; {loss.readable_points:,} of them can still be dumped"


def _series_text(fields: dict[str, Any]) -> str:
    if "device_id" not in fields:
        return fields["damaged"]
    tags = "".join(f", {name}={value}" for name, value in fields["tags"].items())
    return f"{fields['device_id']}, {fields['metric_name']}{tags}"


def repair_advice(place: Any, losses: Sequence[Any], done: bool, dry_run: bool) -> list[str]:
    if not losses:
        return ["nothing is wrong, nothing to do"]
    if done:
        return [f"done: see {place.directory}/damaged", f"next: tools/inspect verify {place.directory}"]
    return [f"nothing done; next: tools/inspect repair-local {place.directory}" + ("" if dry_run else " --yes")]


def _span(facts: dict[str, Any]) -> list[str]:
    """First and last time, to the second."""
    times = (facts["first_time"], facts["last_time"])
    return ["" if time_ns is None else time_text(time_ns // NS_PER_S * NS_PER_S) for time_ns in times]


def _name(facts: dict[str, Any]) -> str:
    """A file's name without its folder."""
    return escape(facts["file"].rpartition("/")[2])


def _red(text: str) -> str:
    return f"[red]{escape(text)}[/]"
