"""Samples as they are sent: series with columns of times and values, or a row for each point; see docs/http-api.md.

Nothing here is done for each point in Python where a format can do without. Memory is that of SPAN_ROWS points.
Any thread; an Answer belongs to one.
"""

import base64
import csv
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from common.series import Series, parse_key
from workers.query import formats, table
from workers.query.coverage import Coverage
from workers.query.refusal import Refusal
from workers.query.sampling import Chunk, Place, Samples

SPAN_ROWS: Final = 100_000  # points of one entry, of one msgpack map: what is held of an answer of any length
_JOINED_BYTES: Final = 1 << 16  # of small parts sent as one
_NAMES: Final = ("device_id", "metric_name", "tags", "time", "value")

_json: Final = msgspec.json.Encoder()
_msgpack: Final = msgspec.msgpack.Encoder()


class Answer:
    """What is to be sent. entries: of each series its points, in order, at most SPAN_ROWS in one.

    unit: of times, of table.TIME_UNITS. binary: columns of msgpack as little-endian bytes. told: the coverage that
    headers have told, None where the answer itself does.
    """

    def __init__(self, samples: Samples, entries: Iterator[Chunk], unit: str, binary: bool, told: Coverage) -> None:
        self.entries = entries
        self.unit = unit
        self.binary = binary
        self.told = told
        self._samples = samples

    @property
    def coverage(self) -> Coverage:
        """Of what has been read so far."""
        return self._samples.coverage

    @property
    def next_cursor(self) -> str | None:
        """Where the next page begins, None where nothing follows."""
        return make_cursor(self._samples.place) if self._samples.more else None

    def foot(self) -> dict[str, Any]:
        """What is known at the end."""
        return {"next_cursor": self.next_cursor, "coverage": self.coverage}

    def silent_foot(self) -> dict[str, Any]:
        """The same where the format has no place for it: raises a Refusal when headers have promised too much."""
        if self.told.complete and not self.coverage.complete:
            missing = "; ".join(f"{one.node}: {one.reason}" for one in self.coverage.missing)
            raise Refusal(503, "incomplete", f"lost while the answer was sent: {missing}")
        return {}


def make_cursor(place: Place) -> str:
    """A place as text."""
    return base64.urlsafe_b64encode(_msgpack.encode([place.key, place.time_ns])).decode().rstrip("=")


def joined(chunks: Iterator[Chunk], most: int = SPAN_ROWS) -> Iterator[Chunk]:
    """Chunks of one series put together, as far as they have at most so many points; longer ones come in several."""
    held: list[Chunk] = []
    rows = 0
    for chunk in chunks:
        if held and (held[0].key != chunk.key or rows + len(chunk.times) > most):
            yield _whole(held)
            held, rows = [], 0
        held.append(chunk)
        rows += len(chunk.times)
    if held:
        yield _whole(held)


def _whole(held: list[Chunk]) -> Chunk:
    """Chunks as one, of the first one's series."""
    if len(held) == 1:
        return held[0]
    times, values = (np.concatenate([chunk[column] for chunk in held]) for column in (1, 2))
    return Chunk(held[0].key, times, values)


def parts_of(answer: Answer, name: str) -> Iterator[bytes]:
    """The answer in a format, part by part."""
    return _WRITERS[name](answer)


def _named(series: Series) -> dict[str, Any]:
    return {"device_id": series.device_id, "metric_name": series.metric_name, "tags": dict(series.tags)}


def _as_json(answer: Answer) -> Iterator[bytes]:
    made, size = [b'{"series":['], 0
    between = b""
    for chunk in answer.entries:
        made += (
            between, _json.encode(_named(parse_key(chunk.key)))[:-1],
            b',"times":', _json.encode(table.times(chunk.times, answer.unit)),
            b',"values":', _json.encode(chunk.values.tolist()), b"}",
        )  # fmt: skip
        between = b","
        size += sum(map(len, made[-7:]))
        if size >= _JOINED_BYTES:
            yield b"".join(made)
            made, size = [], 0
    yield b"".join((*made, b"],", _json.encode(answer.foot())[1:]))


def _as_msgpack(answer: Answer) -> Iterator[bytes]:
    """One map; of more points than SPAN_ROWS several, one behind the other, each with where to go on."""
    held: list[Chunk] = []
    rows = 0
    for chunk in answer.entries:
        if held and rows + len(chunk.times) > SPAN_ROWS:
            cursor = make_cursor(Place(held[-1].key, int(held[-1].times[-1])))
            yield _msgpack.encode({"series": _columns(held, answer), "next_cursor": cursor, "coverage": None})
            held, rows = [], 0
        held.append(chunk)
        rows += len(chunk.times)
    yield _msgpack.encode({"series": _columns(held, answer), **answer.foot()})


def _columns(chunks: list[Chunk], answer: Answer) -> list[dict[str, Any]]:
    if answer.binary:
        return [
            {**_named(parse_key(key)), "times": _in_bytes(times, "<i8"), "values": _in_bytes(values, "<f8")}
            for key, times, values in chunks
        ]
    return [
        {**_named(parse_key(key)), "times": table.times(times, answer.unit), "values": values.tolist()}
        for key, times, values in chunks
    ]


def _in_bytes(column: npt.NDArray[Any], dtype: str) -> memoryview:
    """A column as it lies in memory, or would on a little-endian machine."""
    return np.ascontiguousarray(column, dtype).data


def _grouped(entries: Iterator[Chunk]) -> Iterator[list[Chunk]]:
    """Chunks in groups of at most table.PAGE_ROWS points, long ones cut."""
    held: list[Chunk] = []
    rows = 0
    for key, times, values in entries:
        for begin in range(0, len(times), table.PAGE_ROWS):
            part = Chunk(key, times[begin : begin + table.PAGE_ROWS], values[begin : begin + table.PAGE_ROWS])
            if rows + len(part.times) > table.PAGE_ROWS:
                yield held
                held, rows = [], 0
            held.append(part)
            rows += len(part.times)
    if held:
        yield held


def _as_ndjson(answer: Answer) -> Iterator[bytes]:
    """A point a line; the last line holds what is known at the end, or what went wrong."""
    try:
        for chunks in _grouped(answer.entries):
            yield b"".join([_json_lines(chunk, answer.unit) for chunk in chunks])
        yield _json.encode(answer.foot()) + b"\n"
    except Refusal as refusal:
        yield _json.encode({"error": refusal.error, "message": str(refusal)}) + b"\n"
        raise


def _json_lines(chunk: Chunk, unit: str) -> bytes:
    begin = _json.encode(_named(parse_key(chunk.key)))[:-1] + b',"time":'
    columns = table.texts(table.times(chunk.times, unit)), table.texts(chunk.values.tolist())
    return b"".join([b'%b%b,"value":%b}\n' % (begin, at, value) for at, value in zip(*columns, strict=True)])


def _as_csv(answer: Answer) -> Iterator[bytes]:
    """A line of names, then a point a line, as RFC 4180 has it."""
    yield _csv_line(_NAMES) + b"\r\n"
    for chunks in _grouped(answer.entries):
        yield b"".join([_csv_lines(chunk, answer.unit) for chunk in chunks])
    answer.silent_foot()


def _csv_lines(chunk: Chunk, unit: str) -> bytes:
    series = parse_key(chunk.key)
    begin = _csv_line((series.device_id, series.metric_name, _json.encode(dict(series.tags)).decode()))
    times, values = table.texts(table.times(chunk.times, unit)), table.texts(chunk.values.tolist())
    if unit == "rfc3339":
        times = [at[1:-1] for at in times]
    return b"".join([b"%b,%b,%b\r\n" % (begin, at, value) for at, value in zip(times, values, strict=True)])


def _csv_line(items: Sequence[str]) -> bytes:
    """Fields with quotes where they need them, without the end of the line."""
    text = io.StringIO()
    csv.writer(text).writerow(items)  # quotes a break of lines only where its own lines end in one
    return text.getvalue().removesuffix("\r\n").encode()


def _as_arrow(answer: Answer) -> Iterator[bytes]:
    """A record batch for every table.PAGE_ROWS points; what names a series is in dictionaries."""
    arrow = formats.pyarrow()
    word = arrow.dictionary(arrow.int16(), arrow.string())  # a batch has at most table.PAGE_ROWS words
    types = [word, word, word, arrow.timestamp("ns", "UTC"), arrow.float64()]
    schema = arrow.schema(list(zip(_NAMES, types, strict=True)))
    sink = formats.Sink()
    with arrow.ipc.new_stream(sink, schema) as writer:
        for chunks in _grouped(answer.entries):
            if made := sink.taken():  # of the page before: so a single page is one part with the stream's end
                yield made
            writer.write_batch(_record_batch(arrow, schema, chunks))
        answer.silent_foot()
    yield sink.taken()


def _record_batch(arrow: Any, schema: Any, chunks: list[Chunk]) -> Any:
    named = [parse_key(chunk.key) for chunk in chunks]
    texts = [
        [series.device_id for series in named],
        [series.metric_name for series in named],
        [_json.encode(dict(series.tags)).decode() for series in named],
    ]
    counts = [len(chunk.times) for chunk in chunks]
    indexes: dict[tuple[int, ...], Any] = {}  # columns often have the same, as all have for a single series
    words = []
    for column in texts:
        places = {text: at for at, text in enumerate(dict.fromkeys(column))}
        found = tuple([places[text] for text in column])
        if found not in indexes:
            indexes[found] = arrow.array(np.repeat(np.array(found, np.int16), counts))
        table_of_words = arrow.array(list(places), arrow.string())
        words.append(arrow.DictionaryArray.from_arrays(indexes[found], table_of_words, safe=False))
    _, times, values = _whole(chunks)
    zoned_times = arrow.array(times).view(arrow.timestamp("ns", "UTC"))
    return arrow.record_batch([*words, zoned_times, arrow.array(values)], schema=schema)


_WRITERS: Final[dict[str, Callable[[Answer], Iterator[bytes]]]] = {
    "json": _as_json,
    "ndjson": _as_ndjson,
    "csv": _as_csv,
    "msgpack": _as_msgpack,
    "arrow": _as_arrow,
}
