"""JSON text taken apart slowly, by the json module: every element with its own bytes, every fault with its place.

For payloads that msgspec refused. Accepts what Python's json does: NaN and Infinity, integers of any size.
Pure; owns nothing.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final, cast

from common.config import Ingest
from workers.bridge.payload import EMPTY, NOT_JSON, SHAPE, Refused, kind, want_few

_MAX_INT_DIGITS: Final = 4000  # beyond float64 long before; Python refuses to parse more than 4300
_SPACE = re.compile(r"[ \t\n\r]*")


def elements(payload: bytes, ingest: Ingest) -> Iterator[tuple[bytes, Any]]:
    """The elements of an array, or the one object, each with its bytes. Raises Refused for the payload whole, before
    the first: it is gone through twice, or all of its elements would be in memory at once.
    """
    if not payload.strip():
        raise Refused(EMPTY, "empty payload")
    try:
        text = payload.decode()
        begin = _skip_space(text, 0)
        take = _array if text[begin] == "[" else _single
        for number, _ in enumerate(take(text, begin), 1):
            want_few(number, ingest)
    except UnicodeDecodeError as error:
        raise Refused(NOT_JSON, f"not UTF-8: byte {payload[error.start]:#04x} at {error.start}") from error
    except json.JSONDecodeError as error:
        raise Refused(NOT_JSON, f"not JSON: {error.msg} at character {error.pos}") from error
    except RecursionError as error:
        raise Refused(NOT_JSON, "JSON nested too deeply") from error
    return take(text, begin)


def join(parts: Sequence[bytes]) -> bytes:
    """An array of elements."""
    return b"[" + b",".join(parts) + b"]"


def _parse_int(digits: str) -> int | float:
    if len(digits) <= _MAX_INT_DIGITS:
        return int(digits)
    return -math.inf if digits[0] == "-" else math.inf


_scan: Final = json.JSONDecoder(parse_int=_parse_int).raw_decode


def _single(text: str, at: int) -> Iterator[tuple[bytes, Any]]:
    element, end = _scan(text, at)
    if not isinstance(element, dict):
        raise Refused(SHAPE, f"payload is {kind(element)}, want a JSON object or an array of objects")
    yield text[at:end].encode(), element
    _want_end(text, end)


def _array(text: str, at: int) -> Iterator[tuple[bytes, Any]]:
    at = _skip_space(text, at + 1)
    if text[at : at + 1] == "]":
        return _want_end(text, at + 1)
    while True:
        element, end = _scan(text, at)
        yield text[at:end].encode(), element
        at = _skip_space(text, end)
        if text[at : at + 1] == "]":
            return _want_end(text, at + 1)
        if text[at : at + 1] != ",":
            raise json.JSONDecodeError("Expecting ',' or ']'", text, at)
        at = _skip_space(text, at + 1)


def _want_end(text: str, at: int) -> None:
    at = _skip_space(text, at)
    if at < len(text):
        raise json.JSONDecodeError("Extra data", text, at)


def _skip_space(text: str, at: int) -> int:
    return cast(re.Match[str], _SPACE.match(text, at)).end()
