"""How tools/query shows answers to people: tables, and a sparkline for each group of buckets. Pure."""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, tzinfo
from itertools import pairwise
from typing import Any, Final

from rich.markup import escape
from rich.table import Table

from tools.output import duration_text, new_table

TICKS: Final = "▁▂▃▄▅▆▇█"
SPARK_COLUMNS: Final = 60
SHOWN_SERIES: Final = 10  # of a delete
SHOWN_ROWS: Final = 200  # of a table, for people; --csv and --json have all


def number_text(value: Any) -> str:
    """A figure as people read it: seven digits, nothing for null."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.7g}"
    return str(value)


def moment_text(seconds: Any, zone: tzinfo = UTC) -> str:
    """Unix seconds by the clock of a zone; with the distance from UTC where the zone is another."""
    if not isinstance(seconds, int | float):
        return "-" if seconds is None else str(seconds)
    try:
        moment = datetime.fromtimestamp(seconds, zone)
    except (ValueError, OverflowError, OSError):
        return number_text(seconds)
    fraction = f"{moment:%f}".rstrip("0")
    ahead = f"{moment:%z}"  # such as +0100
    distance = "" if zone is UTC else f"{ahead[:3]}:{ahead[3:5]}"
    return f"{moment:%Y-%m-%d %H:%M:%S}" + (f".{fraction}" if fraction else "") + distance


def is_time(name: str) -> bool:
    """Whether a column has times."""
    return name == "time" or name.endswith("_time") or name in ("start", "end")


def cell_text(name: str, value: Any, zone: tzinfo = UTC) -> str:
    """One cell of a table."""
    if is_time(name):
        return moment_text(value, zone)
    if name.endswith("_s") and isinstance(value, int | float):
        return duration_text(value) if value >= 1 else f"{value * 1000:.3g} ms"
    if isinstance(value, Mapping):
        return escape(", ".join(f"{key}={text}" for key, text in value.items()))
    return escape(value) if isinstance(value, str) else number_text(value)


def table_of(rows: Sequence[Mapping[str, Any]], zone: tzinfo = UTC) -> Table:
    """A table of rows, its columns in the order in which rows first have them; those of times name the zone."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    numeric = {name for name in names if all(isinstance(row.get(name), int | float | None) for row in rows)}
    heads = {name: f"{name} ({zone})" if is_time(name) else escape(name) for name in names}
    table = new_table(*(f">{head}" if name in numeric else head for name, head in heads.items()))
    for row in rows[:SHOWN_ROWS]:
        table.add_row(*(cell_text(name, row.get(name), zone) for name in names))
    return table


def cut_text(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """What to say under a table that does not hold every row."""
    return f"{SHOWN_ROWS} of {len(rows)} rows; --csv or --json for all" if len(rows) > SHOWN_ROWS else None


def spark(values: Sequence[float | None]) -> str:
    """A line of ticks, one for each value or for the average of several neighbours; a gap stays one."""
    if len(values) > SPARK_COLUMNS:
        edges = [len(values) * at // SPARK_COLUMNS for at in range(SPARK_COLUMNS + 1)]
        values = [_mean(values[low:high]) for low, high in pairwise(edges)]
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return ""
    low, high = min(known), max(known)
    step = high / len(TICKS) - low / len(TICKS)  # divided first: the difference of large values may overflow
    return "".join(" " if value is None else TICKS[_tick(value, low, step)] for value in values)


def _tick(value: float, low: float, step: float) -> int:
    return min(len(TICKS) - 1, int(value / step - low / step)) if step else len(TICKS) // 2


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(value / len(known) for value in known) if known else None


def sparks_of(rows: Sequence[Mapping[str, Any]], operations: Sequence[str]) -> Table | None:
    """A sparkline for each group and operation; None where no group has two buckets."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row.get("time") or 0):
        name = ", ".join(
            cell_text(key, value) for key, value in row.items() if key not in ("time", "count", *operations)
        )
        groups.setdefault(name, []).append(row)
    if not any(len(each) > 1 for each in groups.values()):
        return None
    table = new_table("group", "figure", ">least", "", ">most")
    for name, each in groups.items():
        for operation in operations:
            values = [row.get(operation) for row in each]
            known = [value for value in values if value is not None]
            if known:
                table.add_row(
                    name or "all", escape(operation), number_text(min(known)), spark(values), number_text(max(known))
                )
    return table


# Deletes


def would_go_text(answer: Mapping[str, Any]) -> str:
    """A dry run in words."""
    if not answer["points"]:
        return "Nothing stored matches, so nothing would go now; points that are on their way would."
    span = f"from {moment_text(answer['first_time'])} to {moment_text(answer['last_time'])} UTC"
    lines = [f"{_counted(answer)} would go, {span}:"]
    for one in answer["of_series"][:SHOWN_SERIES]:
        tags = "".join(f" {name}={value}" for name, value in one["tags"].items())
        lines.append(f"  {one['device_id']} {one['metric_name']}{tags}: {_plural(one['points'], 'point')}")
    if (rest := answer["series"] - SHOWN_SERIES) > 0:
        lines.append(f"  and {rest} more; --json shows up to 1,000")
    return "\n".join(lines)


def deleted_text(answer: Mapping[str, Any]) -> str:
    """What a delete did, in words."""
    metric = "every metric" if answer["metric_name"] is None else f"metric {answer['metric_name']}"
    begin = f"Delete {answer['number']} is in force: {metric} of {answer['device_id']}."
    lines = [f"{begin} {_matched(answer.get('matched'))}"]
    if answer["waiting"]:
        lines.append(f"Not yet adopted by {_workers(answer['waiting'])}: points that come by it may count as older.")
    if answer["unreachable"]:
        lines.append(f"Not reached: {_workers(answer['unreachable'])}; it applies there once they are back.")
    return "\n".join(lines)


def _workers(those: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{one['worker']} ({one['reason']})" for one in those)


def _matched(matched: Mapping[str, Any] | None) -> str:
    if matched is None:
        return "How much it took could not be counted."
    if not matched["complete"]:
        return f"It took {_counted(matched)} of those nodes that answered."
    if not matched["series"]:
        return "Nothing stored matched: is the name right? It takes points that are on their way."
    return f"It took {_counted(matched)}."


def _counted(answer: Mapping[str, Any]) -> str:
    return f"{_plural(answer['points'], 'point')} of {answer['series']} series"


def _plural(count: int, name: str) -> str:
    return f"{count:,} {name}{'' if count == 1 else 's'}"
