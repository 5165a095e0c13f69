"""Log lines: one record is one line, as key=value or as JSON, on stderr.

Owns the process's logging set-up (standard logging beneath) and the rate limits. Never opens a file: the
process runs in the foreground and supervisord keeps and rotates what it writes. Any thread may log.

A line holds time (UTC, milliseconds), level, worker, logger and event, then the fields of the call. Text from
outside cannot forge a line or drive a terminal: whatever is not printable is written as a \\u escape.
"""

import json
import logging
import math
import re
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, Final

from common import clock, config

MAX_VALUE_CHARS: Final = 2000  # a hostile payload quoted in a record must not fill the disk
MAX_TRACEBACK_CHARS: Final = 20_000  # the whole of any sane traceback
MAX_LIMITED_KEYS: Final = 1000  # per logger; keys are meant to be few, this bounds a mistake
RESERVED: Final = ("time", "level", "worker", "logger", "event")

AUDIT: Final = "audit"  # the logger of what was done by whose order: heard whatever the level
_ROOT: Final = "minitrue"
_SAFE_TEXT: Final = re.compile(r"[A-Za-z0-9_.:/@%+*,;()\[\]<>#~^$!?&|'-]+")
_UNSAFE_NAME: Final = re.compile(r"[^A-Za-z0-9_.-]")


class Logger:
    """Writes records of one part of the program. Made by `get`; one per name and process.

    Field values may be anything; numbers, booleans, None and text are written as such. A field that bears a
    reserved name (`RESERVED`) is written with an underscore behind it.
    """

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(f"{_ROOT}.{name}")
        self._lock = threading.Lock()  # guards _limits
        self._limits: dict[str, tuple[float, int]] = {}  # key -> (next allowed at, suppressed since)
        self._pending = threading.local()  # .suppressed: what the next record of this thread reports

    def debug(self, event: str, /, **fields: object) -> None:
        """A detail that only someone who debugs wants."""
        self._write(logging.DEBUG, event, fields)

    def info(self, event: str, /, **fields: object) -> None:
        """Something that an operator expects and likes to see."""
        self._write(logging.INFO, event, fields)

    def warning(self, event: str, /, **fields: object) -> None:
        """Something unexpected that minitrue copes with."""
        self._write(logging.WARNING, event, fields)

    def error(self, event: str, /, **fields: object) -> None:
        """Something that an operator has to look at."""
        self._write(logging.ERROR, event, fields)

    def exception(self, event: str, /, **fields: object) -> None:
        """An error with the traceback of the exception being handled."""
        self._write(logging.ERROR, event, fields, exc_info=True)

    def limited(self, key: str, every_s: float) -> bool:
        """Whether a record of this kind may be written now: at most one per `every_s` seconds and key.

        What is held back is counted, and the record written next by this thread after a True bears
        `suppressed=N`.
        """
        now = clock.monotonic_s()
        with self._lock:
            allowed_at, suppressed = self._limits.get(key, (now, 0))
            if now < allowed_at:
                self._limits[key] = (allowed_at, suppressed + 1)
                return False
            if key not in self._limits and len(self._limits) >= MAX_LIMITED_KEYS:
                del self._limits[next(iter(self._limits))]
            self._limits[key] = (now + every_s, 0)
        self._pending.suppressed = suppressed
        return True

    def _write(self, level: int, event: str, fields: dict[str, object], exc_info: bool = False) -> None:
        suppressed = getattr(self._pending, "suppressed", 0)
        if suppressed:
            self._pending.suppressed = 0
            fields["suppressed"] = suppressed
        self._logger.log(level, event, extra={"fields": fields}, exc_info=exc_info)


_loggers: dict[str, Logger] = {}  # filled under the GIL by setdefault: one logger per name


def get(name: str) -> Logger:
    """The logger of a part of the program, such as "bridge" or "storage.wal"."""
    return _loggers.setdefault(name, Logger(name))


def setup(settings: config.Log, worker: str) -> None:
    """Send this process's records to stderr. A second call replaces the first.

    Libraries are heard from "warning" upwards, whatever the level for minitrue itself.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(settings.format, worker))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger(_ROOT).setLevel(settings.level.upper())
    logging.getLogger(f"{_ROOT}.{AUDIT}").setLevel(min(logging.INFO, logging.getLogger(_ROOT).level))
    logging.captureWarnings(True)


class _Formatter(logging.Formatter):
    """One record, one line. Constant after construction."""

    def __init__(self, style: str, worker: str) -> None:
        super().__init__()
        self._join = _as_json if style == "json" else _as_key_value
        self._worker = worker

    def format(self, record: logging.LogRecord) -> str:
        pairs: dict[str, Any] = {
            "time": _time_text(record.created),
            "level": record.levelname.lower(),
            "worker": self._worker,
            "logger": record.name.removeprefix(_ROOT + "."),
            "event": _plain(record.getMessage()),
        }
        fields: Mapping[str, object] = getattr(record, "fields", {})
        for name, value in fields.items():
            pairs[_field_name(name)] = _plain(value)
        if record.exc_info:
            pairs["traceback"] = _shortened(self.formatException(record.exc_info), MAX_TRACEBACK_CHARS)
        return self._join(pairs)


def _time_text(seconds: float) -> str:
    milliseconds = int(seconds * 1000)
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(milliseconds // 1000))
    return f"{text}.{milliseconds % 1000:03}Z"


def _field_name(name: str) -> str:
    safe = _UNSAFE_NAME.sub("_", name) or "_"
    return safe + "_" if safe in RESERVED or safe == "traceback" else safe


def _plain(value: object) -> str | int | float | bool | None:
    """The value as something that JSON has: containers and other objects become text."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict | list):
        return _shortened(json.dumps(value, default=str, ensure_ascii=False), MAX_VALUE_CHARS)
    return _shortened(str(value), MAX_VALUE_CHARS)


def _shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}...({len(text) - limit} more characters)"


def _as_json(pairs: dict[str, Any]) -> str:
    return _printable(json.dumps(pairs, ensure_ascii=False))


def _as_key_value(pairs: dict[str, Any]) -> str:
    return " ".join(f"{name}={_quoted(value)}" for name, value in pairs.items())


def _quoted(value: Any) -> str:
    if isinstance(value, str) and not _SAFE_TEXT.fullmatch(value):
        return _printable(json.dumps(value, ensure_ascii=False))
    return value if isinstance(value, str) else json.dumps(value)


def _printable(text: str) -> str:
    """JSON text with every character that is not printable escaped, so that it stays JSON and one line."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in text)
