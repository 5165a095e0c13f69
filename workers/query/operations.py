"""Operations: what can be asked of the points of a bucket, and which figures of the nodes each needs.

Definitions with examples: docs/http-api.md. Pure: no I/O, no state.
"""

import re
from typing import Any, Final

import msgspec

from workers.query.refusal import bad, near, shown, type_of

WANTS: Final = {  # of common.figures.WANTS
    "avg": ("sum",),
    "sum": ("sum",),
    "max": ("max",),
    "min": ("min",),
    "count": ("count",),
    "first": ("first",),
    "last": ("last",),
    "spread": ("min", "max"),
    "stddev": ("m2",),
    "variance": ("m2",),
    "median": ("values",),
    "percentile": ("values",),
    "rate": ("steps",),
    "increase": ("steps",),
    "delta": ("steps",),
    "integral": ("integral",),
    "twa": ("integral",),
}
SHOWN: Final = tuple("percentile(p)" if name == "percentile" else name for name in WANTS)
AGGREGATED: Final = frozenset(("avg", "sum", "max", "min", "count", "first", "last", "spread", "stddev", "variance"))
MAX_OPERATIONS: Final = 32  # in one request

_SHORT: Final = re.compile(r"[pP]_?(\d{1,2}(?:\.\d{1,20})?|100)", re.ASCII)  # of a percentile, in other systems
_ELSEWHERE: Final = {"mean": "avg", "average": "avg", "total": "sum", "std": "stddev", "var": "variance"}
_PERCENTILE: Final = re.compile(r"percentile\( *(\d{1,3}(?:\.\d{1,20})?) *\)", re.ASCII)


class Operation(msgspec.Struct, frozen=True):
    """text: as it was asked, the name of its column. kind: a key of WANTS. percent: of a percentile, 0 to 100."""

    text: str
    kind: str
    percent: float = 50.0


PLAIN: Final = {name: Operation(name, name) for name in WANTS if name != "percentile"}


def parse_operations(value: Any) -> tuple[Operation, ...]:
    """The operations of a request: a text, or a list of them. Raises Refusal."""
    if not isinstance(value, list):
        return (_parse(value),)
    if not 1 <= len(value) <= MAX_OPERATIONS:
        raise bad("operation", f"operation is a list of {len(value)}, want 1 to {MAX_OPERATIONS}")
    operations = tuple([_parse(each) for each in value])
    if len({operation.text for operation in operations}) < len(operations):
        raise bad("operation", f"operation is {shown(value)}: each can be asked once")
    return operations


def wants(operations: tuple[Operation, ...]) -> list[str]:
    """What the nodes have to tell for these operations, of common.figures.WANTS."""
    return list(dict.fromkeys(want for operation in operations for want in WANTS[operation.kind]))


def _parse(value: Any) -> Operation:
    if isinstance(value, str):
        if value in PLAIN:
            return PLAIN[value]
        if (match := _PERCENTILE.fullmatch(value)) and float(match[1]) <= 100:
            return Operation(value, "percentile", float(match[1]))
    allowed = ", ".join(SHOWN)
    if isinstance(value, str) and value.startswith("percentile"):
        raise bad("operation", f"operation is {shown(value)}, want percentile(p) with p from 0 to 100")
    hint = _meant(value) if isinstance(value, str) else f"; it is {type_of(value)}"
    raise bad("operation", f"unknown operation {shown(value)}, want one of {allowed}{hint}")


def _meant(text: str) -> str:
    """A hint at the operation that was probably meant, "" where none is near."""
    short = _SHORT.fullmatch(text)
    meant = f"percentile({short[1]})" if short else _ELSEWHERE.get(text.lower())
    return f"; did you mean {meant}?" if meant else near(text, SHOWN)
