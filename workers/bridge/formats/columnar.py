"""Format `msgpack-columns`: many points of one or several series in columns, for high rates.

    {"series": [{"device_id": ..., "metric_name": ..., "tags": {...}}, ...],
     "index": bin of u32 or array, "timestamps": bin of i64 or array, "values": bin of f64 or array,
     "timestamp_unit": "ns"}

Binary columns are little-endian. With one series its names may stand at the top, in place of `series`, and `index`
may be missing. Without timestamps all rows arrive now. A payload whose columns contradict each other is refused
whole. Else each row stands alone: a bad one is refused as an object of format `json` that says the same (which this
format takes, too: it begins with `{`, as no map of msgpack does), its neighbours are points.
Pure but for the context's places. docs/bridge.md has it byte by byte.
"""

import json
import reprlib
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, cast

import msgspec
import numpy as np

from common.config import Subscription
from common.points import Index, Times, Values
from workers.bridge import timecolumn, times
from workers.bridge.columns import Columns
from workers.bridge.context import Context
from workers.bridge.formats import fields, objects
from workers.bridge.formats.packed import BROKEN, unpack
from workers.bridge.payload import MISSING, NO_REFUSALS, SHAPE, Decoded, Place, Refusal, Refused, kind

MAX_ROW_REFUSALS: Final = 1000  # of a payload; further bad rows stay together in one payload: an object of JSON for
# each would cost the memory of ten such payloads
CACHE_BYTES: Final = 32 << 20  # of tables; they come from outside
SERIES_BYTES: Final = 1000  # what a series in a table costs, about
_NIL: Final = msgspec.Raw(b"\xc0")
_TIME_KINDS: Final = frozenset({int, float, str})
_VALUE_KINDS: Final = frozenset({int, float, bool})


class Series(NamedTuple):
    """A series of a payload: its names and where it belongs, or why it can be no series."""

    device_id: str
    metric_name: str
    tags: dict[str, str] | None
    place: Place | None
    refused: Refused | None


class Table(NamedTuple):
    """The series of a payload. places: of those that are none, None. is_good: whether all are some."""

    series: Sequence[Series]
    places: Sequence[Place]
    is_good: bool


class Rows:
    """A payload's columns, of equal length. times: None: of arrival; else an array or a list, in `unit`."""

    __slots__ = ("index", "times", "unit", "values")

    def __init__(self, index: Index, times: Any, values: Any, unit: str) -> None:
        self.index = index
        self.times = times
        self.values = values
        self.unit = unit


class _Body(msgspec.Struct):
    """The map of a payload. series: as it came."""

    series: msgspec.Raw = _NIL
    index: Any = None
    timestamps: Any = None
    values: Any = None
    timestamp_unit: Any = None
    device_id: Any = None
    metric_name: Any = None
    tags: Any = None


_read: Final = msgspec.msgpack.Decoder(_Body).decode


class Columnar(objects.Objects):
    """What a subscription makes of this format, and the tables of series seen lately: the same come again and again.

    read, point: of the rows that were refused as JSON.
    """

    __slots__ = ("_bytes", "_tables")

    def __init__(self, _: Subscription) -> None:
        super().__init__(Subscription("#"))
        self._tables: dict[tuple[Any, ...], Table] = {}
        self._bytes = 0

    def table(self, body: _Body, context: Context) -> Table:
        """The series of a payload. Raises Refused where they are none that a JSON row could repeat."""
        if body.series == _NIL:
            return _table([_one_series(msgspec.structs.asdict(body), context)])
        packed = bytes(body.series)
        key = (packed, context.device_id, context.metric_name, context.tag_items)
        table = self._tables.get(key)
        if table is None:
            table = _table(_many_series(packed, context))
            if table.is_good:  # a refusal remembers much more than its words
                self._add(key, table, len(packed) + SERIES_BYTES * len(table.series))
        return table

    def _add(self, key: tuple[Any, ...], table: Table, size: int) -> None:
        self._bytes += size
        if self._bytes > CACHE_BYTES:
            self._tables.clear()
            self._bytes = size
        if size <= CACHE_BYTES:
            self._tables[key] = table


def decode(payload: bytes, context: Context) -> Decoded:
    """The points of a payload, and what of it is refused."""
    if payload[:1] == b"{":
        return objects.decode(payload, context)
    columnar: Columnar = context.compiled
    try:
        body = _body(payload)
        table = columnar.table(body, context)
        rows = _rows(body, len(table.series), context)
    except Refused as refused:
        return [], [refused.refusal(payload, context.device_id)]
    return _decode(table, rows, context)


def _body(payload: bytes) -> _Body:
    try:
        return _read(payload)
    except BROKEN:
        body = unpack(payload)  # with the words; or fields of it that we do not know are odd
    if not isinstance(body, dict):
        raise Refused(SHAPE, f"payload is {kind(body)}, want a map of columns")
    known = {name: body[name] for name in _Body.__struct_fields__ if name in body}
    return _Body(**known | {"series": msgspec.Raw(msgspec.msgpack.encode(body.get("series")))})


def _table(series: Sequence[Series]) -> Table:
    places = [cast(Place, one.place) for one in series]
    return Table(series, places, None not in places)


def _many_series(packed: bytes, context: Context) -> list[Series]:
    listed = unpack(packed)
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise Refused(SHAPE, f"series is {kind(listed)}, want an array of maps")
    found = []
    for number, one in enumerate(listed):
        try:
            found.append(_one_series(one, context))
        except Refused as refused:
            raise Refused(refused.code, f"series {number}: {refused}") from refused
    return found


def _one_series(names: dict[Any, Any], context: Context) -> Series:
    """Raises Refused where names are of a kind that no JSON row could repeat."""
    given = {name: text for name, text in names.items() if text is not None}
    device_id = fields.name_of(given, "device_id", "device_id", context.device_id)
    metric_name = fields.name_of(given, "metric_name", "metric_name", context.metric_name)
    tags = context.tags | (fields.tags_of(given) or {})
    try:
        return Series(device_id, metric_name, tags, context.place(device_id, metric_name, tags), None)
    except Refused as refused:
        return Series(device_id, metric_name, tags, None, refused)


def _rows(body: _Body, series: int, context: Context) -> Rows:
    """Raises Refused where columns contradict each other."""
    values = _column(body.values, "values", "<f8")
    if values is None:
        raise Refused(MISSING, "no values in the payload")
    given = None
    if context.route.subscription.time_field:
        given = _column(body.timestamps, "timestamps", "<i8")
    if given is not None and len(given) != len(values):
        raise Refused(SHAPE, f"{len(given)} timestamps and {len(values)} values, want as many")
    unit = times.checked_unit(body.timestamp_unit) or context.unit
    return Rows(_index(body.index, series, len(values)), given, values, unit)


def _column(given: Any, name: str, dtype: str) -> Any:
    """The column as an array or a list, None where there is none."""
    if given is None or isinstance(given, list):
        return given
    if not isinstance(given, bytes):
        raise Refused(SHAPE, f"{name} are {kind(given)}, want binary or an array")
    if len(given) % int(dtype[-1]):
        raise Refused(SHAPE, f"{name} are {len(given)} bytes, want a multiple of {dtype[-1]}")
    return np.frombuffer(given, dtype)


def _index(given: Any, series: int, rows: int) -> Index:
    column = _column(given, "index", "<u4")
    if column is None:
        if series != 1:
            raise Refused(MISSING, f"no index in the payload, want one: it has {series} series")
        return np.zeros(rows, np.uint32)
    if len(column) != rows:
        raise Refused(SHAPE, f"{len(column)} items of index and {rows} values, want as many")
    if isinstance(column, list):
        bad = next((row for row, at in enumerate(column) if type(at) is not int or not 0 <= at < series), None)
        column = np.array(column, np.uint32) if bad is None else column
    else:
        bad = None if not rows or int(column.max()) < series else int(np.argmax(column >= series))
    if bad is not None:
        raise Refused(SHAPE, f"index {column[bad]} at row {bad}, want 0 to {series - 1}, as it has {series} series")
    return cast(Index, column)


# Row by row where need be.


def _decode(table: Table, rows: Rows, context: Context) -> Decoded:
    found, refused = _times(rows, context)
    if not table.is_good:
        bad = np.array([one.place is None for one in table.series], np.bool_)
        for row in np.flatnonzero(bad[rows.index]).tolist():
            refused[row] = cast(Refused, table.series[rows.index[row]].refused)
    numbers = _values(rows.values, refused)
    if not refused:
        return Columns(table.places, rows.index, found, numbers), NO_REFUSALS
    keep = np.ones(len(found), np.bool_)
    keep[list(refused)] = False
    used, index = np.unique(rows.index[keep], return_inverse=True)
    points = Columns([table.places[at] for at in used.tolist()], index.astype(np.uint32), found[keep], numbers[keep])
    return points, _refusals(table.series, rows, refused, context)


def _times(rows: Rows, context: Context) -> tuple[Times, dict[int, Refused]]:
    """Nanoseconds, i64 of shape (rows,), and why the times of some rows are refused."""
    given = rows.times
    if given is None:
        return np.array([context.arrival_ns() for _ in rows.values], np.int64), {}
    odd: dict[int, Refused | int] = {}
    if isinstance(given, list) and not set(map(type, given)) <= _TIME_KINDS:
        odd = {row: _odd_time(time, context) for row, time in enumerate(given) if type(time) not in _TIME_KINDS}
        given = [0 if row in odd else time for row, time in enumerate(given)]
    found, refused = timecolumn.to_ns(given, rows.unit, context.latest_ns, context.max_future_s)
    for row, outcome in odd.items():
        if isinstance(outcome, Refused):
            refused[row] = outcome
        else:
            found[row] = outcome
    return found, refused


def _odd_time(time: Any, context: Context) -> Refused | int:
    """The time of arrival for null; else why it is no time."""
    try:
        times.checked(time)
    except Refused as refused:
        return refused
    return context.arrival_ns()


def _values(given: Any, refused: dict[int, Refused]) -> Values:
    """f64 of shape (rows,); why some are refused goes into `refused`."""
    numbers = given
    if isinstance(given, list):
        plain = set(map(type, given)) <= _VALUE_KINDS
        numbers = np.array(given if plain else [x if type(x) in _VALUE_KINDS else np.nan for x in given], np.float64)
    for row in np.flatnonzero(~np.isfinite(numbers)).tolist():
        try:
            fields.finite(given[row], "value")
        except Refused as why:
            refused[row] = why
    return cast(Values, numbers)


# What is refused.


def _refusals(series: Sequence[Series], rows: Rows, refused: dict[int, Refused], context: Context) -> list[Refusal]:
    numbers = sorted(refused)
    if len(numbers) > MAX_ROW_REFUSALS:
        first = refused[numbers[0]]
        reason = f"{len(numbers)} rows are refused, and kept together; the first: {first}"
        return [Refusal(_payload(series, rows, numbers), first.code, reason)]
    found = []
    for row in numbers:
        one = series[rows.index[row]]
        found.append(refused[row].refusal(_row_json(one, rows, row), fields.known(one.device_id, context)))
    return found


def _row_json(series: Series, rows: Rows, row: int) -> bytes:
    """One row as an object of format `json`."""
    body: dict[str, Any] = {"device_id": series.device_id, "metric_name": series.metric_name}
    if rows.times is not None:
        body["timestamp"] = time = _plain(rows.times[row])
        body["timestamp_unit"] = rows.unit
        if rows.unit == times.AUTO:
            body["timestamp_unit"] = times.unit_of(time) if type(time) in (int, float) else None
    body["value"] = _plain(rows.values[row])
    if series.tags:
        body["tags"] = series.tags
    return json.dumps(body, ensure_ascii=False).encode()


def _plain(value: Any) -> Any:
    """A value as JSON can have it; what JSON has not as text, which is refused again."""
    if isinstance(value, np.generic):
        return value.item()
    return value if value is None or isinstance(value, int | float | str) else reprlib.repr(value)


def _payload(series: Sequence[Series], rows: Rows, numbers: Sequence[int]) -> bytes:
    """These rows as a payload of this format. The same again for a payload of which all rows are refused."""
    body: dict[str, Any] = {
        "series": [
            {"device_id": one.device_id, "metric_name": one.metric_name, "tags": one.tags or None} for one in series
        ],
        "index": rows.index[numbers].tobytes(),
        "timestamps": _taken(rows.times, numbers),
        "values": _taken(rows.values, numbers),
        "timestamp_unit": None if rows.unit == times.AUTO else rows.unit,
    }
    return msgspec.msgpack.encode(body)


def _taken(column: Any, numbers: Sequence[int]) -> Any:
    if isinstance(column, np.ndarray):
        return column[numbers].tobytes()
    return None if column is None else [column[row] for row in numbers]
