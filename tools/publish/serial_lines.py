"""Lines from a serial port as messages: "device,value", "label value", and JSON objects.

A port that is missing, unplugged or busy is told, tried again with backoff, and read on when it is back. A line that
is no reading is counted, told and left out (the first one after opening is often a torn one). Timestamps are the
time at which the line was read, unless a JSON object brings its own. Owns the port; belongs to one thread, which
waits for lines at most POLL_S at a time.
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import serial

from common import clock
from tools.publish.message import Chunk, Outgoing, PublisherError, Template, json_number, message, series

POLL_S: Final = 0.2
BACKOFF_S: Final = (0.5, 10.0)  # first and longest wait before a port is tried again
MAX_LINE_BYTES: Final = 65536  # without a line end in it this is not text; it is thrown away
US_PER_S: Final = 1_000_000


class SerialLines:
    """The messages of a port, in chunks, without end. To be iterated once.

    device: of lines that name none (default: the port's last part). metric: of lines that name none.
    report: told, in words, of each line left out and each trouble with the port. skipped: lines left out, so far.
    live: a board does not wait.
    """

    def __init__(
        self, port: str, baud: int, device: str | None, metric: str, template: Template, report: Callable[[str], None]
    ) -> None:
        self.skipped = 0
        self.live = True
        self._port = port
        self._baud = baud
        self._device = device or Path(port).name
        self._metric = metric
        self._template = template
        self._report = report
        self._unread = b""

    def __iter__(self) -> Iterator[Chunk]:
        backoff_s = BACKOFF_S[0]
        while True:
            try:
                with serial.Serial(self._port, self._baud, timeout=POLL_S) as port:
                    self._report(f"{self._port}: open at {self._baud} baud")
                    self._unread = b""
                    while True:
                        yield Chunk(0.0, self._messages(port.read(max(1, port.in_waiting))))
                        backoff_s = BACKOFF_S[0]
            except ValueError as error:  # what pyserial says of a baud rate that cannot be
                raise PublisherError(f"{self._port}: {error}") from error
            except OSError as error:  # SerialException is one
                self._report(f"{self._port}: {error}; trying again in {backoff_s:g} s")
            yield from _pause(backoff_s)
            backoff_s = min(2 * backoff_s, BACKOFF_S[1])

    def _messages(self, data: bytes) -> list[Outgoing]:
        *lines, self._unread = (self._unread + data).replace(b"\r", b"\n").split(b"\n")
        if len(self._unread) > MAX_LINE_BYTES:
            self._skip(f"{len(self._unread)} bytes without a line end; is it {self._baud} baud?")
            self._unread = b""
        messages = (self._message(line.strip()) for line in lines if line.strip())
        return [each for each in messages if each is not None]

    def _message(self, line: bytes) -> Outgoing | None:
        try:
            return self.parse(line.decode(), _now_text())
        except (ValueError, PublisherError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
            self._skip(f"line {line[:80]!r} left out: {error}")
            return None

    def parse(self, line: str, now: str) -> Outgoing:
        """The message of a line that was read at the Unix time `now`. Raises ValueError for what is no reading."""
        if line.startswith("{"):
            return self._from_json(json.loads(line, parse_constant=_refuse_constant), now)
        device, comma, value = line.rpartition(",")
        if comma:
            return self._reading(device.strip(), self._metric, now, value.strip())
        words = line.rsplit(None, 1)
        if len(words) < 2:
            raise ValueError('want "device,value", "label value" or a JSON object')
        return self._reading(self._device, words[0].rstrip(" :=\t"), now, words[1])

    def _reading(self, device: str, metric: str, now: str, value: str) -> Outgoing:
        number = json_number(value)
        if number is None:
            raise ValueError(f"value {value[:64]!r}: want a finite decimal number")
        which = series(self._template, device, metric)
        return message(which.topic, [which.point(now, number)])

    def _from_json(self, reading: dict[str, Any], now: str) -> Outgoing:
        if "value" not in reading:
            raise ValueError('the object has no "value"')
        defaults = {"device_id": self._device, "metric_name": self._metric, "timestamp": float(now)}
        full: dict[str, Any] = defaults | reading
        for name in ("device_id", "metric_name"):
            if not isinstance(full[name], str):
                raise ValueError(f"{name} {full[name]!r}: want text")
        return message(self._template.topic(full["device_id"], full["metric_name"]), [json.dumps(full)])

    def _skip(self, why: str) -> None:
        self.skipped += 1
        self._report(f"{self._port}: {why}")


def _pause(seconds: float) -> Iterator[Chunk]:
    until_s = clock.monotonic_s() + seconds
    while clock.monotonic_s() < until_s:
        time.sleep(min(POLL_S, max(0.0, until_s - clock.monotonic_s())))
        yield Chunk(0.0, ())


def _now_text() -> str:
    now_us = clock.wall_ns() // 1000
    return f"{now_us // US_PER_S}.{now_us % US_PER_S:06d}"


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is no number that JSON has")
