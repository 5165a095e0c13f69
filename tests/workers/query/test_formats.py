"""Tables in every format, and what a client sees of one that fails."""

import csv
import io
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np
import pytest

from workers.query import formats, table
from workers.query.refusal import OverLimit, Refusal
from workers.query.runs import Runs
from workers.query.table import Page, Table

ROWS = [
    {"time": 1_700_000_000, "device_id": "a,\"b\"\n", "tags": {"room": "x"}, "avg": 1.5, "count": 2},
    {"time": 1_700_000_000.25, "device_id": "é", "tags": None, "avg": None, "count": 0},
    {"time": 1_700_000_001, "device_id": "c", "tags": {}, "avg": -0.0, "count": 7},
]  # fmt: skip
T_NS = 1_700_000_000 * 10**9
KINDS: Any = {"time": "time", "device_id": "text", "tags": "tags", "count": "count"}


def pages() -> Iterator[Page]:
    for rows in (ROWS[:2], [], ROWS[2:]):
        columns: dict[str, Any] = {name: [row[name] for row in rows] for name in ROWS[0]}
        columns["time"] = np.array([round(row["time"] * 1000) * 10**6 for row in rows], np.int64)
        yield columns


def make(**changes: Any) -> Table:
    parts: dict[str, Any] = {
        "head": {"operation": "avg"}, "names": list(ROWS[0]), "pages": pages(),
        "foot": lambda: {"coverage": {"complete": True}}, "kinds": KINDS,
    } | changes  # fmt: skip
    return Table(**parts)


def sent(one: Table, name: str, most: int = 1 << 30) -> bytes:
    body = formats.respond(one, name, most).body
    return body if isinstance(body, bytes) else b"".join(body)


def test_json_and_msgpack_are_one_map_of_head_rows_and_foot() -> None:
    for decode, name in ((json.loads, "json"), (msgspec.msgpack.decode, "msgpack")):
        got = decode(sent(make(), name))
        assert got == {"operation": "avg", "rows": ROWS, "coverage": {"complete": True}}
        assert list(got) == ["operation", "rows", "coverage"]


@pytest.mark.parametrize("head", [{}, {"a": 1}])
@pytest.mark.parametrize("foot", [{}, {"b": 2}])
@pytest.mark.parametrize("rows", [0, 3])
def test_json_is_valid_whatever_is_empty(head: dict[str, int], foot: dict[str, int], rows: int) -> None:
    one = make(head=head, foot=lambda: foot, member="series", pages=pages() if rows else iter(()))
    assert json.loads(sent(one, "json")) == {**head, "series": ROWS[:rows], **foot}


@pytest.mark.parametrize("seed", range(10))
def test_rows_put_together_by_columns_are_those_encoded_row_by_row(seed: int) -> None:
    draw = random.Random(seed)
    lengths = np.array([draw.randint(1, 4) for _ in range(draw.randint(1, 9))])
    size = int(lengths.sum())
    words: list[Any] = ['a,"b"', "é\n", "", None, "],["]
    page: dict[str, Any] = {
        "time": np.array([T_NS + draw.choice([10**9, 1, 10**6]) * draw.randrange(10**6) for _ in range(size)]),
        "group, \"of\"": Runs([draw.choice(words) for _ in lengths], lengths),
        "tags": Runs([draw.choice([None, {}, {"a,b": "c,d"}]) for _ in lengths], lengths),
        "avg": np.array([draw.choice([-0.0, 1e300, draw.random(), 5.0]) for _ in range(size)]),
        "max": [draw.choice([None, 1.5, 7]) for _ in range(size)],
        "count": np.array([draw.randrange(1 << 40) for _ in range(size)]),
        "text": [draw.choice(words) for _ in range(size)],
        "flag": [draw.choice([None, True, False]) for _ in range(size)],
    }
    kinds: Any = KINDS | {"group, \"of\"": "text", "text": "text", "flag": "flag"}
    names = draw.sample(list(page), draw.randint(1, len(page)))
    for unit in table.TIME_UNITS:
        one = Table({}, names, iter([page]), dict, kinds, unit)
        rows = [dict(zip(names, row, strict=True)) for row in zip(*one.columns(page), strict=True)]
        assert sent(one, "json") == msgspec.json.encode({"rows": rows})
        one.pages = iter([page, {name: [] for name in names}])
        assert sent(one, "ndjson") == msgspec.json.Encoder().encode_lines([*rows, {}])


def test_ndjson_is_a_row_a_line_and_everything_else_in_the_last() -> None:
    lines = sent(make(), "ndjson").decode().split("\n")
    assert lines.pop() == ""
    assert [json.loads(line) for line in lines] == [*ROWS, {"operation": "avg", "coverage": {"complete": True}}]


def test_csv_keeps_every_text_and_leaves_nothing_empty() -> None:
    got = list(csv.reader(io.StringIO(sent(make(), "csv").decode(), newline="")))
    assert got[0] == list(ROWS[0])
    assert got[1] == ["1700000000", "a,\"b\"\n", '{"room":"x"}', "1.5", "2"]
    assert got[2] == ["1700000000.25", "é", "", "", "0"]
    assert got[3][3] == "-0.0"


def test_arrow_has_a_schema_of_its_own_and_the_head_as_metadata() -> None:
    pyarrow = pytest.importorskip("pyarrow")
    got = pyarrow.ipc.open_stream(sent(make(), "arrow")).read_all()
    assert [str(field.type) for field in got.schema] == [
        "timestamp[ns, tz=UTC]", "string", "map<string, string>", "double", "int64",
    ]  # fmt: skip
    assert json.loads(got.schema.metadata[b"minitrue"]) == {"operation": "avg"}
    assert got["avg"].to_pylist() == [1.5, None, -0.0]
    times = [1_700_000_000_000_000_000, 1_700_000_000_250_000_000, 1_700_000_001_000_000_000]
    assert got["time"].cast("int64").to_pylist() == times
    assert got["tags"].to_pylist() == [[("room", "x")], None, []]


def test_arrow_without_pyarrow_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(Refusal, match=r"pip install 'minitrue\[arrow\]'") as raised:
        formats.respond(make(), "arrow", 1 << 30)
    assert (raised.value.status, raised.value.field) == (400, "format")


@pytest.mark.parametrize(
    ("accept", "name"),
    [("", "json"), ("*/*", "json"), ("text/csv", "csv"), ("text/html,application/xml;q=0.9,*/*;q=0.8", "json"),
     ("text/csv;q=0.5, application/x-ndjson", "ndjson"), ("APPLICATION/MSGPACK ; q=0.1", "msgpack"),
     ("application/vnd.apache.arrow.stream, */*;q=0.1", "arrow"), ("text/csv;q=x", "json"), (";;,q=,", "json"),
     ("text/csv;q=0, application/json;q=0.1", "json"), ("text/csv, application/json", "csv")],
)  # fmt: skip
def test_the_format_that_a_client_likes_best_is_chosen(accept: str, name: str) -> None:
    assert formats.by_accept(accept) == name


@pytest.mark.parametrize(
    ("ns", "unit", "shown"),
    [(1_500_000_000, "s", 1.5), (2_000_000_000, "s", 2), (1_500_000_000, "ms", 1500), (1, "us", 0.001), (1, "ns", 1),
     (-1_500_000_000, "s", -1.5), (0, "rfc3339", "1970-01-01T00:00:00Z"), (-(2**63), "s", -9223372036.854775808),
     (-1, "rfc3339", "1969-12-31T23:59:59.999999999Z"),
     (1_700_000_000_250_000_000, "rfc3339", "2023-11-14T22:13:20.25Z"),
     (2**63 - 1, "rfc3339", "2262-04-11T23:47:16.854775807Z"), (2**63 - 1, "ns", 2**63 - 1)],
)  # fmt: skip
def test_times_are_told_in_the_unit_that_is_asked(ns: int, unit: str, shown: Any) -> None:
    for column in ([ns], np.array([ns], np.int64)):
        (got,) = table.times(column, unit)
        assert got == shown
        assert type(got) is type(shown)
    assert table.times([None, ns], unit) == [None, shown]


def test_a_long_answer_is_made_page_by_page_as_it_is_read_and_no_more_of_it_when_nobody_reads_on() -> None:
    made: list[int] = []
    ended: list[bool] = []

    def many() -> Iterator[Page]:
        try:
            for number in range(1000):
                made.append(number)
                yield {"text": ["x" * 1000] * 100}
        finally:
            ended.append(True)

    one = Table({}, ["text"], many(), dict, {"text": "text"})
    response = formats.respond(one, "ndjson", 1 << 30)
    assert not isinstance(response.body, bytes)
    assert len(made) < 15
    for _ in range(20):
        next(response.body)
    assert len(made) < 35
    response.body.close()  # type: ignore[attr-defined]
    del response, one
    assert ended == [True]


def failing(after: int) -> Iterator[Page]:
    for _ in range(after):
        yield {"text": ["x" * 1000] * 100}
    raise Refusal(503, "incomplete", "ing2 is away")


def read_json(data: bytes) -> None:
    json.loads(data)


def read_ndjson(data: bytes) -> None:
    last = json.loads(data.splitlines()[-1])
    assert last == {"error": "incomplete", "message": "ing2 is away"}
    raise ValueError("the last line is an error")


def read_csv(data: bytes) -> None:
    pytest.importorskip("pandas").read_csv(io.BytesIO(data))


def read_arrow(data: bytes) -> None:
    pytest.importorskip("pyarrow").ipc.open_stream(data).read_all()


@pytest.mark.parametrize("read", [read_json, read_ndjson, read_csv, read_arrow])
def test_a_failure_before_much_is_sent_is_an_error_and_later_no_reader_takes_the_answer_for_whole(
    read: Callable[[bytes], None],
) -> None:
    name = read.__name__.removeprefix("read_")
    if name == "arrow":
        pytest.importorskip("pyarrow")
    with pytest.raises(Refusal, match="ing2 is away"):
        formats.respond(Table({}, ["text"], failing(2), dict, {"text": "text"}), name, 1 << 30)
    parts = formats.respond(Table({}, ["text"], failing(30), dict, {"text": "text"}), name, 1 << 30).body
    got = b""
    with pytest.raises(Refusal, match="ing2 is away"):
        for part in parts:
            got += part  # type: ignore[operator]
    assert len(got) > 1 << 20
    with pytest.raises((ValueError, OSError)):
        read(got)


@pytest.mark.parametrize("name", formats.CONTENT_TYPES)
def test_an_answer_over_the_limit_is_refused_with_setting_and_limit(name: str) -> None:
    if name == "arrow":
        pytest.importorskip("pyarrow")
    with pytest.raises(OverLimit, match="more than 100 bytes") as raised:
        sent(make(), name, 100)
    assert (raised.value.setting, raised.value.limit) == ("query.max_response_bytes", 100)
    assert raised.value.value is not None and raised.value.value > 100
