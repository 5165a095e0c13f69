"""A CSV file as messages: columns device_id, metric_name, timestamp or time, value, perhaps tags, in any order.

So it takes what `tools/inspect dump` writes, and the query worker's CSV of samples; gzip or plain. A column that it
does not know is refused, rather than left out of what is stored.
Numbers go out digit for digit as the file has them. A row that is no point is counted, told and left out. Paced, a
row is due as long after the first one as its timestamp is, divided by the speed; rows that go back in time are due
at once. Reads one file, once; the clock is the caller's.
"""

import csv
import gzip
import json
import math
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TextIO

from common import timestamps
from tools.publish.message import Chunk, Outgoing, PublisherError, Series, Template, json_number, message, series

COLUMNS: Final = ("device_id", "metric_name", "timestamp", "value")
TIME_COLUMN: Final = "time"  # instead of timestamp: as the query worker calls it
TAGS_COLUMN: Final = "tags"  # a JSON object of texts; may be missing
PLACE_COLUMNS: Final = ("file", "at", "delete_number")  # of `tools/inspect dump`: where a point lay, nothing of its own
CHUNK_ROWS: Final = 2000
SLOT_S: Final = 0.01  # rows due within the same slot leave together
MAX_SERIES: Final = 100_000  # remembered; more of them are prepared again

Rows = Any  # what csv.reader returns; its type has no public name

_SPEED: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)x")


def parse_speed(text: str) -> float:
    """How many times faster than life: "1x", "100x"; infinity for "max". Raises PublisherError."""
    if text == "max":
        return math.inf
    match = _SPEED.fullmatch(text)
    if match is None or float(match[1]) == 0:
        raise PublisherError(f"--speed {text!r}: want max, or a factor such as 1x or 100x")
    return float(match[1])


class Replay:
    """The messages of a file, in chunks. To be iterated once.

    report: told, in words, of each row that is left out. skipped: how many were, so far. live: a file can wait.
    """

    def __init__(
        self, path: Path, speed: float, per_message: int, template: Template, report: Callable[[str], None]
    ) -> None:
        self.skipped = 0
        self.live = False
        self._path = path
        self._speed = speed
        self._template = template
        self._report = report
        self._per_message = per_message
        self._series: dict[tuple[str, str, str], Series] = {}

    def __iter__(self) -> Iterator[Chunk]:
        """Raises PublisherError where the file cannot be read, or its header is not one."""
        try:
            with open_text(self._path) as file:
                yield from self._chunks(csv.reader(file))
        except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
            raise PublisherError(f"{self._path}: {error}") from error

    def _chunks(self, reader: Rows) -> Iterator[Chunk]:
        """Rows gathered to messages, messages to chunks: one for each slot of time, at most CHUNK_ROWS of them."""
        open_messages: dict[Series, list[str]] = {}
        ready: list[Outgoing] = []
        slot_s = 0.0
        for due_s, which, text in self._rows(reader):
            if due_s >= slot_s + SLOT_S:
                yield Chunk(slot_s, ready + closed(open_messages))
                ready, open_messages, slot_s = [], {}, due_s
            if len(ready) >= CHUNK_ROWS:
                yield Chunk(slot_s, ready)
                ready = []
            points = open_messages.setdefault(which, [])
            points.append(text)
            if len(points) == self._per_message:
                ready.append(message(which.topic, open_messages.pop(which)))
        yield Chunk(slot_s, ready + closed(open_messages))

    def _rows(self, reader: Rows) -> Iterator[tuple[float, Series, str]]:
        """Seconds after the start at which a row is due, its series, its point as JSON text."""
        places, tags_place = self._places(next(reader, []))
        first_s: float | None = None
        due_s = 0.0
        for row in reader:
            try:
                device_id, metric_name, timestamp, value = (row[place] for place in places)
                stamp, number = time_text(timestamp), value_text(value)
                name = device_id, metric_name, "" if tags_place is None else row[tags_place]
                which = self._series.get(name) or self._new_series(*name)
            except (IndexError, ValueError, PublisherError) as error:
                self._skip(reader.line_num, row, error)
                continue
            if self._speed != math.inf:
                seconds = seconds_of(stamp)
                first_s = seconds if first_s is None else first_s
                due_s = max(due_s, (seconds - first_s) / self._speed)
            yield due_s, which, which.point(stamp, number)

    def _places(self, header: Sequence[str]) -> tuple[list[int], int | None]:
        """Where COLUMNS are, and where the tags. Raises PublisherError."""
        names = ["timestamp" if name == TIME_COLUMN else name for name in header]
        trouble = _header_trouble(header, names)
        if trouble:
            raise PublisherError(
                f"{self._path}: {trouble} in the first line {','.join(header)[:200]!r}; want {','.join(COLUMNS)} "
                f"({TIME_COLUMN} will do for timestamp), and {TAGS_COLUMN} where there are any"
            )
        tags_place = names.index(TAGS_COLUMN) if TAGS_COLUMN in names else None
        return [names.index(name) for name in COLUMNS], tags_place

    def _new_series(self, device_id: str, metric_name: str, tags: str) -> Series:
        which = series(self._template, device_id, metric_name, tags_of(tags))
        if len(self._series) >= MAX_SERIES:
            self._series.clear()
        self._series[device_id, metric_name, tags] = which
        return which

    def _skip(self, line: int, row: Sequence[str], error: Exception) -> None:
        if not row:
            return  # an empty line, such as the last one may be
        self.skipped += 1
        why = "too few columns" if isinstance(error, IndexError) else str(error)
        self._report(f"{self._path}:{line}: left out: {why}")


def _header_trouble(header: Sequence[str], names: Sequence[str]) -> str:
    """What is wrong with the names of the columns; "" for nothing."""
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        return f"no column {missing[0]!r}"
    known = (*COLUMNS, TAGS_COLUMN, *PLACE_COLUMNS)
    unknown = [text for text, name in zip(header, names, strict=True) if name not in known]
    if unknown:
        return f"unknown column {unknown[0]!r}"
    twice = [text for text, name in zip(header, names, strict=True) if names.count(name) > 1]
    return f"columns {' and '.join(map(repr, twice))} for one thing" if twice else ""


def open_text(path: Path) -> TextIO:
    """A text file, unpacked when its name ends in .gz."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", newline="")
    return path.open(encoding="utf-8", newline="")


def closed(open_messages: Mapping[Series, Sequence[str]]) -> list[Outgoing]:
    """The messages of what each series has gathered."""
    return [message(which.topic, points) for which, points in open_messages.items()]


def tags_of(text: str) -> dict[str, str]:
    """The tags that a field holds, a JSON object of texts; an empty field holds none. Raises ValueError."""
    if not text:
        return {}
    try:
        tags = json.loads(text)
    except (ValueError, RecursionError):
        tags = None
    if not isinstance(tags, dict) or not all(isinstance(value, str) for value in tags.values()):
        raise ValueError(f"tags {text[:64]!r}: want a JSON object of texts")
    return tags


def value_text(text: str) -> str:
    """A value as JSON has it. Raises ValueError for what is no finite number."""
    number = json_number(text)
    if number is None:
        raise ValueError(f"value {text[:64]!r}: want a finite decimal number")
    return number


def time_text(text: str) -> str:
    """A timestamp as JSON has it: Unix seconds as a number, RFC 3339 as text. Raises ValueError for anything else."""
    number = json_number(text)
    if number is not None:
        return number
    timestamps.from_text(text)
    return json.dumps(text)


def seconds_of(stamp: str) -> float:
    """Unix seconds of a timestamp in JSON, close enough to pace by."""
    return timestamps.from_text(json.loads(stamp)) / timestamps.NS_PER_S if stamp[0] == '"' else float(stamp)
