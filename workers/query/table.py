"""Tables: rows on their way to a client, in pages of columns, whatever the format they will be sent in.

A table is read once. Its pages are made as they are sent, so an answer of any length takes the memory of a page.
Pure but for the pages' own doing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from common.timestamps import NS_PER_S
from workers.query.refusal import choice
from workers.query.runs import Runs

PAGE_ROWS: Final = 10_000  # of a page, at most: about a megabyte of JSON

# time: nanoseconds in the page, told in the table's unit. count: whole numbers. tags: objects of texts.
Kind = Literal["time", "number", "count", "text", "tags", "flag"]
Column = Sequence[Any] | npt.NDArray[Any] | Runs[Any]  # None where nothing is known
Page = Mapping[str, Column]  # by name, equally long
TimeUnit = Literal["s", "ms", "us", "ns", "rfc3339"]
TIME_UNITS: Final = ("s", "ms", "us", "ns", "rfc3339")
_UNIT_NS: Final = {"s": NS_PER_S, "ms": 1_000_000, "us": 1000, "ns": 1}
_json: Final = msgspec.json.Encoder()
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass
class Table:
    """head: fields before the rows. names: of the columns, in order. foot: fields behind them, asked for at the end.

    kinds: of the columns that are no numbers. member: what the rows are called. headers: of HTTP.
    """

    head: Mapping[str, Any]
    names: Sequence[str]
    pages: Iterator[Page]
    foot: Callable[[], Mapping[str, Any]]
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    time_unit: str = "s"
    member: str = "rows"
    headers: Mapping[str, str] = field(default_factory=dict)

    def columns(self, page: Page) -> list[list[Any]]:
        """A page's columns as lists of what a client sees."""
        return [self._shown(name, page[name]) for name in self.names]

    def in_json(self, page: Page) -> list[list[bytes] | Runs[bytes]]:
        """A page's columns as the JSON of what a client sees; the page has rows."""
        return [self._in_json(name, page[name]) for name in self.names]

    def _shown(self, name: str, column: Column) -> list[Any]:
        if isinstance(column, Runs):
            return Runs(self._shown(name, column.items), column.lengths).tolist()
        if self.kinds.get(name) == "time":
            return times(column, self.time_unit)
        return column.tolist() if isinstance(column, np.ndarray) else list(column)

    def _in_json(self, name: str, column: Column) -> list[bytes] | Runs[bytes]:
        if isinstance(column, Runs):
            return Runs(self._each_in_json(name, column.items), column.lengths)
        return self._each_in_json(name, column)

    def _each_in_json(self, name: str, column: Column) -> list[bytes]:
        items = self._shown(name, column)
        return [_json.encode(item) for item in items] if self.kinds.get(name) in ("text", "tags") else texts(items)


def parse_time_unit(parameters: Mapping[str, Any]) -> str:
    """The unit in which times are told. Raises Refusal."""
    asked = parameters.get("time_unit")
    return "s" if asked is None else choice("time_unit", asked, TIME_UNITS)


def times(column: Sequence[int | None] | npt.NDArray[Any], unit: str) -> list[Any]:
    """Nanoseconds in a unit: whole numbers where they are, else the nearest float64; RFC 3339 to the nanosecond."""
    if unit != "rfc3339" and isinstance(column, np.ndarray):
        whole = column // _UNIT_NS[unit]
        are_whole = whole * _UNIT_NS[unit] == column  # numpy's remainder takes five times as long
        if are_whole.all():
            found: list[Any] = whole.tolist()
            return found
        if unit == "s" and _are_microseconds(column):
            found = (column // 1000 / 1e6).tolist()
            for at in np.flatnonzero(are_whole).tolist():
                found[at] = int(found[at])
            return list(found)
    items = column.tolist() if isinstance(column, np.ndarray) else column
    return [None if item is None else time(item, unit) for item in items]


def texts(items: list[Any]) -> list[bytes]:
    """Each number, or text without a comma in it such as a time, as JSON; at least one."""
    return _json.encode(items)[1:-1].split(b",")


def _are_microseconds(column: npt.NDArray[Any]) -> bool:
    """Whether all are whole microseconds, so few that float64 holds each: then numpy divides as exactly as Python."""
    whole = column // 1000
    return bool((whole * 1000 == column).all()) and int(np.abs(whole).max()) <= 1 << 53


def time(ns: int, unit: str) -> int | float | str:
    """One time in a unit."""
    if unit == "rfc3339":
        return rfc3339(ns)
    size = _UNIT_NS[unit]
    return ns // size if ns % size == 0 else ns / size


def rfc3339(ns: int) -> str:
    """A time as RFC 3339 text in UTC, with as many digits behind the seconds as it needs."""
    seconds, part = divmod(ns, NS_PER_S)
    text = (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.{part:09}".rstrip("0") + "Z" if part else text + "Z"
