"""One record is one line, whatever it holds; rate limits count what they hold back."""

import json
import logging
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import clock, config, log

HOSTILE = [
    "two\nlines",
    "carriage\rreturn",
    "\x1b[31mred\x1b[0m",
    "nul\x00",
    "\u2028line separator",
    "\u202etrick",
    "\x85next line",
    'quote " and \\ backslash',
    "\ud800 lone surrogate",
    "a=b level=error",
    "",
    " ",
]


@pytest.fixture(autouse=True)
def _root_logger_unchanged():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in ("minitrue", "minitrue.audit"):
        logging.getLogger(name).setLevel(logging.NOTSET)


def _written(capsys, style="kv", level="info"):
    log.setup(config.Log(format=style, level=level), "ing1")
    return lambda: capsys.readouterr().err


def _parse_kv(line: str) -> dict[str, str]:
    """What a reader of logfmt makes of a line: names and JSON-quoted or bare values."""
    decoder, fields, at = json.JSONDecoder(strict=True), {}, 0
    while at < len(line):
        name, _, _ = line[at:].partition("=")
        at += len(name) + 1
        if line[at : at + 1] == '"':
            value, end = decoder.raw_decode(line, at)
        else:
            end = line.find(" ", at) if " " in line[at:] else len(line)
            value = line[at:end]
        fields[name] = value
        at = end + 1
    return fields


def test_key_value_line_holds_time_level_worker_logger_event_and_fields(capsys):
    written = _written(capsys)
    log.get("storage").info("head sealed", rows=1000, ratio=0.5, path="/a/b:c", missing=None, done=True)
    fields = shlex.split(written())
    assert fields[1:] == [
        "level=info", "worker=ing1", "logger=storage", "event=head sealed",
        "rows=1000", "ratio=0.5", "path=/a/b:c", "missing=null", "done=true",
    ]  # fmt: skip


def test_time_is_utc_with_milliseconds(capsys, monkeypatch):
    written = _written(capsys)
    monkeypatch.setattr(logging.time, "time", lambda: 1_704_067_200.0429)
    monkeypatch.setattr(logging.time, "time_ns", lambda: 1_704_067_200_042_900_000, raising=False)
    log.get("storage").info("x")
    assert written().startswith("time=2024-01-01T00:00:00.042Z ")


def test_json_line_keeps_the_types_of_values(capsys):
    written = _written(capsys, "json")
    log.get("storage").warning("head sealed", rows=1000, ratio=0.5, missing=None, done=True, nan=float("nan"))
    record = json.loads(written())
    assert record["level"] == "warning"
    assert record["event"] == "head sealed"
    assert [record[key] for key in ("rows", "ratio", "missing", "done", "nan")] == [1000, 0.5, None, True, "nan"]


@pytest.mark.parametrize("style", ["kv", "json"])
@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_in_its_field_of_its_line(capsys, style, text):
    written = _written(capsys, style)
    log.get("bridge").info(text, topic=text)
    line = written()
    assert line.endswith("\n")
    assert line[:-1].isprintable()
    fields = json.loads(line) if style == "json" else _parse_kv(line[:-1])
    assert (fields["level"], fields["event"], fields["topic"]) == ("info", text, text)


@given(st.text(max_size=200), st.text(max_size=200))
def test_any_text_is_one_line_that_reads_back(event, value):
    formatter = log._Formatter("kv", "w")
    record = logging.makeLogRecord({"name": "x", "levelname": "INFO", "msg": event, "fields": {"value": value}})
    line = formatter.format(record)
    assert line.isprintable()
    fields = _parse_kv(line)
    assert (fields["event"], fields["value"]) == (event, value)


def test_percent_signs_are_not_taken_for_formatting(capsys):
    written = _written(capsys)
    log.get("bridge").info("100%s %d done")
    assert 'event="100%s %d done"' in written()


def test_fields_with_reserved_or_odd_names_cannot_shadow_others(capsys):
    written = _written(capsys, "json")
    log.get("bridge").info("x", **{"level": "forged", "time": "never", "a b=c": 1})
    record = json.loads(written())
    assert record["level"] == "info"
    assert (record["level_"], record["time_"], record["a_b_c"]) == ("forged", "never", 1)


def test_over_long_values_are_cut_and_say_how_much(capsys):
    written = _written(capsys)
    log.get("bridge").info("x", payload="a" * (log.MAX_VALUE_CHARS + 7))
    assert "...(7 more characters)" in written()


def test_traceback_of_an_exception_is_on_the_same_line(capsys):
    written = _written(capsys, "json")
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        log.get("bridge").exception("failed", n=1)
    record = json.loads(written())
    assert record["level"] == "error"
    assert record["traceback"].endswith("ValueError: first\nsecond")


def test_records_below_the_level_are_not_written_and_libraries_only_warn(capsys):
    written = _written(capsys, level="warning")
    log.get("bridge").info("quiet")
    logging.getLogger("somelibrary").info("chatter")
    logging.getLogger("somelibrary").warning("trouble\nhere")
    line = written()
    assert line.count("\n") == 1
    assert 'logger=somelibrary event="trouble\\nhere"' in line


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_audit_lines_are_written_at_every_level(capsys, level):
    written = _written(capsys, level=level)
    log.get(log.AUDIT).info("delete", who="ann")
    log.get("storage").info("sealed")
    events = [_parse_kv(line)["event"] for line in written().splitlines()]
    assert events == (["delete", "sealed"] if level in ("debug", "info") else ["delete"])


def test_a_limited_record_says_how_many_were_suppressed(capsys, monkeypatch):
    written = _written(capsys)
    now = 100.0
    monkeypatch.setattr(clock, "monotonic_s", lambda: now)
    logger = log.get("limits")
    for _ in range(5):
        if logger.limited("bad", 10.0):
            logger.warning("bad payload")
    now = 111.0
    assert logger.limited("other", 10.0)  # another key has its own count
    logger.info("other")
    if logger.limited("bad", 10.0):
        logger.warning("bad payload")
    logger.info("after")
    lines = written().splitlines()
    assert ["suppressed=4" in line for line in lines] == [False, False, True, False]


def test_keys_of_limits_are_bounded(monkeypatch):
    monkeypatch.setattr(clock, "monotonic_s", lambda: 1.0)
    logger = log.get("bounded")
    for number in range(log.MAX_LIMITED_KEYS + 10):
        logger.limited(f"key {number}", 10.0)
    assert len(logger._limits) == log.MAX_LIMITED_KEYS
    assert not logger.limited(f"key {number}", 10.0)
