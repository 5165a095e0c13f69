"""number, csv and line-protocol: against slow decoders written here, character by character."""

import math
import tracemalloc
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.workers.bridge.formats import ARRIVAL, Got, bits, decode, point, refusal
from workers.bridge.payload import EMPTY, FUTURE, ID, MISSING, SHAPE, SYNTAX, TAGS, TIME, VALUE

NUMBER: Any = {"format": "number", "template": "{device_id}/{metric_name}"}
CSV: Any = {"format": "csv"}
LINES: Any = {"format": "line-protocol"}
DIGITS = "0123456789"


def naive_number(text: str) -> float | None:
    """The number that a text is, None if it is none: by its characters, then by Python."""
    if text in ("true", "false"):
        return float(text == "true")
    if not text or any(char not in DIGITS + "+-.eE" for char in text):
        return None
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


_numberish = st.text("0123456789+-.eE_ naif", max_size=8) | st.floats().map(repr) | st.integers().map(str)


# number


@settings(max_examples=500)
@given(_numberish)
@example("1_0")
@example("٣")
@example("+.5e1")
@example("5.")
@example(".")
def test_a_bare_number_is_what_python_makes_of_its_digits(text: str) -> None:
    points, refusals = decode("d/m", text, **NUMBER)
    want = naive_number(text.strip(" \t\r\n"))
    if want is None:
        assert (points, len(refusals)) == ([], 1)
    else:
        assert refusals == []
        assert points[0][:4] == ("d", "m", {}, ARRIVAL)
        assert bits(points[0].value) == bits(want)


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        (b"", EMPTY, "empty payload"),
        (b" \r\n", EMPTY, "empty payload"),
        (b"\xff", SYNTAX, "not UTF-8: byte 0xff at 0"),
        (b"ON", VALUE, "payload is 'ON', want a number, true or false"),
        (b"NaN", VALUE, "payload is 'NaN'"),
        (b"1e999", VALUE, "beyond the range of float64"),
        (b"21,5", VALUE, "payload is '21,5'"),
        (b"9" * 10_000, VALUE, "beyond the range"),
    ],
)
def test_a_payload_that_is_no_number_is_refused_with_the_device(body: bytes, code: str, words: str) -> None:
    refused = refusal("d/m", body, **NUMBER)
    assert (refused.code, refused.device, refused.payload) == (code, "d", body)
    assert words in refused.reason


def test_a_topic_level_that_can_be_no_device_is_refused() -> None:
    assert refusal("/m", "1", **NUMBER)[1:] == (ID, "device_id is empty", "")


# csv


def naive_csv_fields(line: str, separator: str) -> list[str] | None:
    """Fields of a line, None where the quoting is broken: one character after another."""
    found, at = [], 0
    while True:
        text = ""
        while separator not in " \t" and line[at : at + 1] == " ":
            at += 1
        if line[at : at + 1] == '"':
            at += 1
            while line[at : at + 1] != '"' or line[at + 1 : at + 2] == '"':
                if at >= len(line):
                    return None
                at += line[at] == '"'
                text += line[at]
                at += 1
            at += 1
            if line[at : at + 1] not in ("", separator):
                return None
        while at < len(line) and line[at] != separator:
            text += line[at]
            at += 1
        found.append(text.strip(" \t\r\n"))
        if at >= len(line):
            return found
        at += 1


_cells = st.text('a1."; ,', max_size=4) | st.sampled_from(["21.5", "d1", '"a,b"', '"a""b"', ""])


@settings(max_examples=400)
@given(st.lists(_cells, min_size=3, max_size=5), st.sampled_from([",", ";", "\t"]))
def test_csv_lines_are_what_a_reader_by_characters_makes_of_them(cells: list[str], separator: str) -> None:
    line = separator.join(cells)
    columns = ["device_id", "metric_name", "value", "site"]
    points, refusals = decode("t", line, **CSV, columns=columns, separator=separator)
    fields = naive_csv_fields(line, separator)
    want = None
    if fields is not None and len(fields) == 4 and fields[0] and fields[1]:
        value = naive_number(fields[2])
        tags = {"site": fields[3]} if fields[3] else {}
        want = None if value is None else Got(fields[0], fields[1], tags, ARRIVAL, value)
    assert points == ([] if want is None else [want])
    assert len(refusals) == (want is None)


@pytest.mark.parametrize(
    ("line", "code", "words", "device"),
    [
        ("1,d,m", SHAPE, "3 fields, want 4: timestamp, device_id, metric_name, value", ""),
        ("1,d,m,1,2", SHAPE, "5 fields, want 4", ""),
        ("1,,m,1", MISSING, "no device_id in the line, and none in topic or subscription", ""),
        ("1,d,,1", MISSING, "no metric_name in the line", "d"),
        ("1,d,m,", MISSING, "no value in the line", "d"),
        ("x,d,m,1", TIME, "want RFC 3339", "d"),
        ("-5,d,m,1", TIME, "lies before 1970", "d"),
        ("1700000000000,d,m,1", FUTURE, "it looks like ms", "d"),
        ('1,d,"m,1', SYNTAX, "not CSV", ""),
        ("1,d\x07,m,1", ID, "control character U+0007", ""),
    ],
)
def test_a_bad_line_is_refused_alone_with_its_own_bytes(line: str, code: str, words: str, device: str) -> None:
    points, (refused,) = decode("t", f"1,d,m,2\n{line}\r\n\n3,d,m,4", **CSV)
    assert [(got.time, got.value) for got in points] == [(10**9, 2.0), (3 * 10**9, 4.0)]
    assert (refused.payload, refused.code, refused.device) == (line.encode(), code, device)
    assert words in refused.reason


def test_a_line_that_is_not_utf_8_does_not_cost_its_neighbours() -> None:
    points, (refused,) = decode("t", b"1,d,m,2\n1,\xff,m,2\n", **CSV)
    assert (len(points), refused.payload, refused.code) == (1, b"1,\xff,m,2", SYNTAX)


def test_the_header_is_passed_over_in_the_first_line_only() -> None:
    header = "timestamp,device_id, metric_name ,value"
    assert decode("t", header, **CSV) == ([], [])
    points, (refused,) = decode("t", f"{header}\n1,d,m,2\n{header}", **CSV)
    assert (len(points), refused.code) == (1, VALUE)


@pytest.mark.parametrize(
    ("cell", "unit", "want"),
    [
        ("1699999999", "default", 1_699_999_999 * 10**9),
        ("1699999999.123", "default", 1_699_999_999_123 * 10**6),
        ("1699999999123", "auto", 1_699_999_999_123 * 10**6),
        ("1699999999123456", "auto", 1_699_999_999_123_456 * 10**3),
        ("1699999999123456789", "auto", 1_699_999_999_123_456_789),
        ("1699999999", "auto", 1_699_999_999 * 10**9),
        ("99999999999.5", "us", 99_999_999_999_500 // 10**3 * 10**3 + 0),
        ("2023-11-14T22:13:19.5+01:00", "ms", 1_699_996_399_500 * 10**6),
        ("", "ms", ARRIVAL),
    ],
)
def test_times_of_csv_are_numbers_or_rfc_3339(cell: str, unit: str, want: int | str) -> None:
    if cell == "99999999999.5":
        want = round(99_999_999_999.5) * 1000
    assert point("t", f"{cell},d,m,1", **CSV, time_unit=unit).time == want


def test_without_a_time_field_the_column_is_not_looked_at() -> None:
    assert point("t", "whenever,d,m,1", **CSV, time_field="").time == ARRIVAL


def test_names_that_a_line_lacks_come_from_the_topic_and_then_from_the_subscription() -> None:
    more: Any = {"template": "{device_id}/{site}", "metric_name": "m", "tags": {"kind": "k"}}
    columns = ["device_id", "metric_name", "value", "site"]
    assert point("top/north", "d,x,1,south", **CSV, **more, columns=columns)[:3] == (
        "d", "x", {"site": "south", "kind": "k"},
    )  # fmt: skip
    assert point("top/north", ",,1,", **CSV, **more, columns=columns)[:3] == (
        "top", "m", {"site": "north", "kind": "k"},
    )  # fmt: skip


# line protocol


def naive_line(line: str) -> tuple[str, dict[str, str], list[tuple[str, str]], str] | None:
    """A line taken apart by one pass over its characters, None if it is none."""

    def name(at: int, ends: str) -> tuple[str, int] | None:
        text = ""
        while at < len(line) and line[at] not in ends:
            if line[at] == "\\":
                if at + 1 >= len(line):
                    return None
                text += line[at + 1] if line[at + 1] in ",= " else line[at : at + 2]
                at += 2
            else:
                text += line[at]
                at += 1
        return (text, at) if text else None

    found = name(0, ", ")
    if found is None:
        return None
    (measurement, at), tags, values = found, {}, []
    while at < len(line) and line[at] == ",":
        key = name(at + 1, ",= ")
        if key is None or line[key[1] : key[1] + 1] != "=":
            return None
        value = name(key[1] + 1, ",= ")
        if value is None or key[0] in tags:
            return None
        tags[key[0]] = value[0]
        at = value[1]
    if line[at : at + 1] != " ":
        return None
    while line[at : at + 1] == " ":
        at += 1
    while True:
        key = name(at, ",= ")
        if key is None or line[key[1] : key[1] + 1] != "=":
            return None
        begin = at = key[1] + 1
        if line[at : at + 1] == '"':
            at += 1
            while at < len(line) and line[at] != '"':
                at += 2 if line[at] == "\\" else 1
            at += 1
            if at > len(line):
                return None
        else:
            while at < len(line) and line[at] not in ", ":
                at += 1
            if at == begin:
                return None
        values.append((key[0], line[begin:at]))
        if line[at : at + 1] != ",":
            break
        at += 1
    if at < len(line) and line[at] != " ":
        return None
    time = line[at:].strip(" ")
    if at < len(line) and (not time.removeprefix("-") or any(char not in DIGITS for char in time.removeprefix("-"))):
        return None
    return measurement, tags, values, time


def naive_field(text: str) -> float | str | None:
    """The value of a field; "text" for text, None where it is none."""
    if text.startswith('"'):
        return "text"
    if text in ("t", "T", "true", "True", "TRUE"):
        return 1.0
    if text in ("f", "F", "false", "False", "FALSE"):
        return 0.0
    if text[-1:] in ("i", "u"):
        digits = text[:-1].lstrip("+-") if text[:1] in "+-" else text[:-1]
        whole = digits and all(char in DIGITS for char in digits) and len(text[:-1]) - len(digits) <= 1
        return naive_number(text[:-1]) if whole else None
    return naive_number(text)


_piece = st.sampled_from(
    ["m", "h", "=", ",", " ", "\\", '"', "1", "1.5", "2i", "3u", "t", "true", "-", "#", "x=1", ",h=d", " f=", "9"]
)


@settings(max_examples=800)
@given(st.lists(_piece, max_size=9), st.sampled_from(["", "m,h=d f=", "m,h=d f=1,"]))
@example(['m,h=d a="x y,z=\\"",b=1 5'], "")
@example(["m\\ n,h=d\\,e,t\\=u=v\\ w f\\ g=1"], "")
@example(["m,h=d,h=e f=1"], "")
@example(["m,h=d f=1  5"], "")
@example(["m,h=d f=1 5 "], "")
@example(["m,h=d f=\\"], "")
def test_lines_are_what_a_reader_by_characters_makes_of_them(pieces: list[str], head: str) -> None:
    line = head + "".join(pieces)
    points, refusals = decode("t", line, **LINES, device_field="h")
    line = line.strip(" \t\r\n")
    if not line or line.startswith("#"):
        assert (points, len(refusals)) == ([], 0 if line else 1)
        return
    parsed = naive_line(line)
    if parsed is None or "h" not in parsed[1]:
        assert (points, len(refusals)) == ([], 1)
        return
    measurement, tags, values, time = parsed
    device = tags.pop("h")
    fields = [(name, naive_field(text)) for name, text in values]
    want = [
        Got(device, measurement if name == "value" else f"{measurement}.{name}", tags, int(time or -1), value)
        for name, value in fields
        if isinstance(value, float)
    ]
    if time.startswith("-") and int(time) < 0:
        want = []
    assert [got._replace(time=-1 if got.time == ARRIVAL else got.time) for got in points] == want
    assert len(refusals) == (not want or any(value is None for _, value in fields))


_name = st.text(st.sampled_from('ab,= \\"ü#'), min_size=1, max_size=5).filter(lambda text: not text.endswith("\\"))


def escaped(text: str) -> str:
    """As a writer of line protocol escapes a name. A backslash before an escape would be taken for one itself."""
    return "".join("\\" + char if char in ",= " else char for char in text)


@given(_name, _name, _name, _name, st.floats(allow_nan=False, allow_infinity=False), st.integers(0, 10**18))
def test_what_a_writer_escapes_comes_out_as_it_was(
    measurement: str, device: str, tag: str, field: str, value: float, time: int
) -> None:
    if any("\\" in text for text in (measurement, device, tag, field)) or measurement.startswith("#"):
        return  # backslashes have no escape of their own in names
    names = f"{escaped(measurement)},device_id={escaped(device)},{escaped('t' + tag)}=x"
    line = f"{names} {escaped('f' + field)}={value!r} {time}"
    assert point("t", line, **LINES) == Got(device, f"{measurement}.f{field}", {"t" + tag: "x"}, time, value)


@pytest.mark.parametrize(
    ("line", "code", "words", "points"),
    [
        ("m,device_id=d f=1,g=nan,h=2", VALUE, "field 'g' is 'nan', want a number or a boolean", 2),
        ("m,device_id=d f=1,g=1e999", VALUE, "field 'g' is NaN, infinite or beyond the range of float64", 1),
        ('m,device_id=d f="x"', SHAPE, "no field is a number or a boolean", 0),
        ("m f=1", MISSING, "no tag 'device_id', and no device_id in topic or subscription", 0),
        ("m,device_id=d f=1 -5", TIME, "lies before 1970", 0),
        ("m,device_id=d f=1 9999999999999999999", TIME, "want a time within int64", 0),
        ("m,device_id=d f=1 1800000000000000000", FUTURE, "ahead of this machine's clock", 0),
        ("m,device_id=d,a=1,a=2 f=1", SYNTAX, "tag 'a' twice", 0),
        ("m,device_id=d f=1 1.5", SYNTAX, "'.5' at character 19, want the line's end", 0),
        ("m,device_id=d f=", SYNTAX, "want a field's value", 0),
        ("m,device_id=d", SYNTAX, "want a space and fields", 0),
        ("m,device_id=d," + ",".join(f"t{n}=x" for n in range(33)) + " f=1", TAGS, "33 tags, limit 32", 0),
    ],
)
def test_a_bad_line_is_refused_with_the_place_of_the_fault(line: str, code: str, words: str, points: int) -> None:
    found, (refused,) = decode("t", f"m,device_id=d f=7 5\n{line}\n", **LINES)
    assert len(found) == 1 + points
    assert (refused.payload, refused.code) == (line.encode(), code)
    assert words in refused.reason


def test_an_integer_has_no_negative_zero_and_a_float_has_one() -> None:
    points, refusals = decode("a", "m,device_id=d i=-0i,f=-0", **LINES)
    assert refusals == []
    assert [bits(each.value) for each in points] == [bits(0.0), bits(-0.0)]


@pytest.mark.parametrize(
    "line",
    [
        'm,device_id=d v=1,s="{}"',
        'm,device_id=d v=1,s="{}',
        "{},device_id=d v=1",
        "m,device_id=d,{}=x v=1",
        "m,device_id=d {}=1",
        "m,device_id=d v={}",
    ],
)
@pytest.mark.parametrize("text", ["a", "\\a"])
def test_a_line_that_is_one_long_text_costs_memory_a_few_times_its_size(line: str, text: str) -> None:
    """A regular expression that remembers each step takes 120 times: a payload at the limit would end the bridge."""
    size = 1 << 20
    body = line.format(text * (size // len(text))).encode()
    tracemalloc.start()
    try:
        decode("a", body, **LINES)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 24 * size


def test_fields_of_one_line_without_a_time_arrive_together() -> None:
    points, _ = decode("t", "m,device_id=d a=1,b=2", **LINES)
    assert [got.metric for got in points] == ["m.a", "m.b"]
    assert points[0].time == points[1].time == ARRIVAL


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns", "auto"])
def test_times_of_lines_follow_the_subscription(unit: str) -> None:
    factor = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1, "auto": 1}[unit]
    time = 1_699_999_999_000_000_000
    assert point("t", f"m,device_id=d f=1 {time // factor}", **LINES, time_unit=unit).time == time


# all


@settings(max_examples=400)
@given(
    st.binary(max_size=40) | st.text(max_size=30).map(lambda text: text.encode(errors="replace")),
    st.sampled_from(["number", "csv", "line-protocol"]),
)
def test_whatever_bytes_come_there_are_points_or_a_reason(body: bytes, form: str) -> None:
    fixed = {"metric_name": "m"} if form == "number" else {}
    points, refusals = decode("d/m", body, format=form, template="{device_id}/#", **fixed)
    comments = form == "line-protocol" and all(
        not line.strip() or line.strip(b" \t\r").startswith(b"#") for line in body.split(b"\n")
    )
    assert points or refusals or comments
    assert all(math.isfinite(got.value) for got in points)
