"""One question of tools/query: asked once or every few seconds, over all its pages, and shown as what was wanted.

What people and programs must not take for data goes to stderr: that an answer lacks nodes, that there is more, that
nothing matches. Speaks HTTP through tools/client.py alone.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, tzinfo
from typing import Any, Final, NoReturn

from rich.console import Console, RenderableType

from tools.client import Client, QueryFailed, Unreachable
from tools.output import PLAIN_WIDTH
from tools.query_show import cut_text, table_of

INCOMPLETE: Final = 3  # exit code
PASSING_STATUSES: Final = (429, 500, 502, 503, 504)  # --watch asks on after these
CSV_FAILED: Final = b"," * 1000 + b"\r\n"  # ends an answer that failed on the way
CSV_END_BYTES: Final = 4096
CLEAR: Final = "\x1b[H\x1b[2J"
MORE: Final = "there is more: raise --limit"
MORE_ROWS: Final = "there is more: --limit for more of it, --csv or --json for all"

Show = Callable[[dict[str, Any]], None]


class Asked:
    """What all commands share: where to ask, and how to show. all_pages: fields of a page where all are wanted."""

    def __init__(
        self,
        client: Client,
        form: str = "table",
        watch_s: float | None = None,
        zone: tzinfo = UTC,
        all_pages: Mapping[str, Any] | None = None,
    ) -> None:
        self.client = client
        self.form = form
        self._watch_s = watch_s
        self._zone = zone
        self._all_pages = dict(all_pages or {})
        terminal = sys.stdout.isatty()
        self._console = Console(width=None if terminal else PLAIN_WIDTH, highlight=False, soft_wrap=not terminal)

    def say(self, *parts: RenderableType | None) -> None:
        """Print for people."""
        for part in parts:
            if part is not None:
                self._console.print(part)

    def rows(self, rows: Sequence[dict[str, Any]]) -> None:
        """Print a table, if there is anything to show."""
        if rows:
            self.say(table_of(rows, self._zone), cut_text(rows))

    def answer(self, method: str, path: str, fields: dict[str, Any], show: Show) -> None:
        """Ask, once or every few seconds, and show the answer in the form that is wanted.

        Ends the process with INCOMPLETE after an answer that lacks nodes.
        """
        if self._watch_s is not None:
            self._watch(method, path, fields, show, self._watch_s)
        if not self._once(method, path, fields, show):
            sys.exit(INCOMPLETE)

    def _watch(self, method: str, path: str, fields: dict[str, Any], show: Show, watch_s: float) -> NoReturn:
        """Ask for ever. What may pass is told; what is refused at first, or could not be reached then, ends it."""
        reached = False
        while True:
            if sys.stdout.isatty():
                sys.stdout.write(CLEAR)
            if self.form == "table":
                print(f"{datetime.now(self._zone):%Y-%m-%d %H:%M:%S %Z}")
            try:
                self._once(method, path, fields, show)
                reached = True
            except (QueryFailed, Unreachable) as error:
                if not (error.status in PASSING_STATUSES if isinstance(error, QueryFailed) else reached):
                    raise
                _tell(f"{datetime.now(UTC):%H:%M:%S} UTC, no answer: {error}; asking again in {watch_s:g} s")
            sys.stdout.flush()
            time.sleep(watch_s)

    def _once(self, method: str, path: str, fields: dict[str, Any], show: Show) -> bool:
        """Whether the answer was complete."""
        if self.form == "csv":
            return self._print_csv(method, path, fields)
        pages = self._all_pages if self.form == "json" and "limit" not in fields else {}
        answer = self.client.call(method, path, fields | pages)
        while self.form == "json" and follows(fields, answer.get("next_cursor")):
            page = self.client.call(method, path, fields | pages | {"cursor": answer["next_cursor"]})
            answer = joined(answer, page)
        if self.form == "json":
            print(json.dumps(answer, ensure_ascii=False))
        else:
            show(answer)
            if answer.get("more") or answer.get("next_cursor"):
                self.say(MORE if "limit" in fields else MORE_ROWS)
        coverage = answer.get("coverage") or {"complete": True}
        if is_empty(answer):
            self._tell_nothing(path, fields)
        if not coverage["complete"]:
            _tell_lacking("; ".join(f"{each['node']}: {each['reason']}" for each in coverage["missing"]))
        return bool(coverage["complete"])

    def _print_csv(self, method: str, path: str, fields: dict[str, Any]) -> bool:
        """All pages as one file; what it lacks is said beside it."""
        cursor, lacking, lines = None, dict[str, None](), 0
        pages = self._all_pages if "limit" not in fields else {}
        while True:
            parts = self.client.chunks(method, path, fields | pages | {"format": "csv", "cursor": cursor})
            lines += self._print_page(parts if cursor is None else without_first_line(parts))
            if self.client.headers.get("Minitrue-Complete") == "false":
                lacking[self.client.headers.get("Minitrue-Missing") or "--json says what is missing"] = None
            cursor = self.client.headers.get("Minitrue-Next-Cursor")
            if not follows(fields, cursor):
                break
        sys.stdout.buffer.flush()
        if lines <= 1:
            self._tell_nothing(path, fields)
        if cursor is not None:
            _tell(MORE)
        if lacking:
            _tell_lacking("; ".join(lacking))
        return not lacking

    def _print_page(self, parts: Iterable[bytes]) -> int:
        """How many lines it has."""
        end, lines = b"", 0
        for part in parts:
            sys.stdout.buffer.write(part)
            lines += part.count(b"\n")
            end = (end + part)[-CSV_END_BYTES:]
        sys.stdout.buffer.flush()
        if end.endswith(CSV_FAILED):
            said = end.removesuffix(CSV_FAILED).splitlines()[-1].decode(errors="replace")
            raise Unreachable(f"the answer broke off, its last line says why: {said}")
        return lines

    def _tell_nothing(self, path: str, fields: Mapping[str, Any]) -> None:
        """Why an answer is empty: a second question tells a mistyped name from a range without points."""
        which = {name: fields[name] for name in ("metric_name", "device_id", "tags", "more_tags") if name in fields}
        asked = {**which, "details": False, "limit": 1, "allow_partial": True}
        try:
            known = self.client.call("POST", "/api/v1/series", asked)
        except (QueryFailed, Unreachable):
            return  # what was asked for has been answered
        words = ", ".join(f"{name} {_words(value)}" for name, value in which.items() if name != "more_tags")
        if known["series"]:
            what = "silences" if path.endswith("/gaps") else "points"
            _tell(f"nothing to show: what matches {words} has no {what} in this range")
        elif known["coverage"]["complete"]:
            _tell(f"nothing matches {words}; `query metrics` and `query devices` list what there is")


def _tell(text: str) -> None:
    print(text, file=sys.stderr)


def _tell_lacking(what: str) -> None:
    _tell(f"INCOMPLETE, {what}")


def _words(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def is_empty(answer: Mapping[str, Any]) -> bool:
    """Whether there is no point, no row and no series in an answer, nor behind it."""
    items = answer.get("rows", answer.get("series"))
    nothing = not items if isinstance(items, list) else answer.get("count") == 0
    return nothing and not answer.get("next_cursor")


def follows(fields: Mapping[str, Any], cursor: str | None) -> bool:
    """Whether to ask for the next page: there is one, and no number of rows was asked for."""
    return cursor is not None and "limit" not in fields


def joined(answer: dict[str, Any], page: Mapping[str, Any]) -> dict[str, Any]:
    """An answer with its next page behind it. What one of them lacks is lacking in the whole."""
    lists = {name: answer[name] + value for name, value in page.items() if isinstance(value, list)}
    worse = page if answer["coverage"]["complete"] else answer
    return {**answer, **page, **lists, "coverage": worse["coverage"]}


def without_first_line(parts: Iterable[bytes]) -> Iterator[bytes]:
    """The bytes behind the line of names."""
    rest, head = iter(parts), b""
    while b"\n" not in head and (part := next(rest, b"")):
        head += part
    yield head.partition(b"\n")[2]
    yield from rest
