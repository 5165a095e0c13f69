"""Values and times as text has them: what number, csv and line-protocol share. Pure; owns nothing."""

import re
from collections.abc import Iterator
from typing import Final

from common.config import Ingest
from workers.bridge.formats import fields
from workers.bridge.payload import EMPTY, SYNTAX, VALUE, Refused, shown, want_few
from workers.bridge.times import Time

_NUMBER: Final = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,40}")  # longer ones are no times
_BOOLEANS: Final = {"true": 1.0, "false": 0.0}
SPACE: Final = " \t\r\n"


def lines(payload: bytes, ingest: Ingest) -> Iterator[bytes]:
    """The lines of a payload that are not blank, without their ends. Raises Refused for none, and for too many."""
    if not payload.strip():
        raise Refused(EMPTY, "empty payload")
    want_few(payload.count(b"\n"), ingest)
    for line in payload.split(b"\n"):
        if line.strip():
            yield line.removesuffix(b"\r")


def decoded(text: bytes) -> str:
    """Text of bytes. Raises Refused unless they are UTF-8."""
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise Refused(SYNTAX, f"not UTF-8: byte {text[error.start]:#04x} at {error.start}") from error


def number(text: str, what: str) -> float:
    """A value: decimal digits with sign, point and exponent, or true or false. what: for words. Raises Refused."""
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if not _NUMBER.fullmatch(text):
        raise Refused(VALUE, f"{what} is {shown(text)}, want a number, true or false")
    return fields.finite(float(text), what)


def time(text: str) -> Time:
    """A time as text has it: a number where it looks like one, else for RFC 3339."""
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _NUMBER.fullmatch(text) else text
