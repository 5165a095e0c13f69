"""What the command lines print: text for people or JSON for programs, tables, sizes, times. Keeps no state."""

import json
import sys
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from common.timestamps import NS_PER_S

EXIT_CODES: Final = "Exit codes: 0 done and all is well, 1 it failed or something is amiss, 2 wrong usage."
PLAIN_WIDTH: Final = 160  # columns of output that does not go to a terminal: tables must not be folded
DASHES: Final[Any] = {"token_normalize_func": lambda token: token.replace("_", "-")}

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Output:
    """Text for people or one JSON document for programs, never both, on stdout.

    is_json: whether it is for programs; is_terminal: whether people see it as it comes; console: what it goes to.
    """

    def __init__(self, as_json: bool) -> None:
        self.is_terminal = sys.stdout.isatty()
        self.is_json = as_json
        self.console = Console(
            width=None if self.is_terminal else PLAIN_WIDTH, highlight=False, soft_wrap=not self.is_terminal
        )

    def say(self, *parts: str | Table) -> None:
        """Print for people; nothing with --json."""
        if not self.is_json:
            for part in parts:
                self.console.print(part)

    def result(self, document: Any) -> None:
        """Print for programs; nothing without --json."""
        if self.is_json:
            print(json.dumps(document, sort_keys=True))


def new_table(*columns: str) -> Table:
    """A plain table; columns that begin with ">" are numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold", caption_justify="left")
    for name in columns:
        table.add_column(name.lstrip(">"), justify="right" if name.startswith(">") else "left")
    return table


def size_text(count: float) -> str:
    """Bytes, in the unit that suits them."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def duration_text(seconds: float) -> str:
    """Seconds, in the unit that suits them."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def time_text(time_ns: int) -> str:
    """Nanoseconds since the epoch as RFC 3339 text, with as many digits as it takes to say them all."""
    seconds, fraction = divmod(time_ns, NS_PER_S)
    moment = _EPOCH + timedelta(seconds=seconds)
    digits = f".{fraction:09d}".rstrip("0") if fraction else ""
    return f"{moment:%Y-%m-%dT%H:%M:%S}{digits}Z"
