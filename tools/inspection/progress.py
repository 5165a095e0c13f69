"""What a person sees while files are read: a live line on a terminal, a plain line now and then elsewhere.

Writes to stderr only; stdout belongs to the result. Belongs to the main thread.
"""

import sys
from typing import Final, Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from common import clock
from tools.output import duration_text, size_text

PLAIN_S: Final = 10.0  # between two plain lines


class Shown:
    """How many of `total` bytes are done, inside a `with` block. quiet: show nothing."""

    def __init__(self, total: int, quiet: bool) -> None:
        console = Console(stderr=True)
        self._quiet = quiet
        self._total = total
        self._done = 0
        self._live = _live_line(console) if console.is_terminal and not quiet else None
        self._task = self._live.add_task("", total=total) if self._live else None
        self._begin_s = self._last_s = clock.monotonic_s()

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.stop()

    def advance(self, size: int, name: str) -> None:
        """So many more bytes are done, of the file `name`."""
        self._done += size
        now_s = clock.monotonic_s()
        if self._live:
            self._live.update(self._task, advance=size, description=name)
        elif not self._quiet and now_s - self._last_s >= PLAIN_S:
            self._last_s = now_s
            self._say(now_s - self._begin_s, name)

    def _say(self, elapsed_s: float, name: str) -> None:
        left_s = elapsed_s * (self._total - self._done) / max(1, self._done)
        done = f"{size_text(self._done)} of {size_text(self._total)}"
        rate = f"{size_text(self._done / elapsed_s)}/s"
        print(f"inspect: {name}: {done}, {rate}, {duration_text(max(0.0, left_s))} left", file=sys.stderr)


def _live_line(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
        console=console, transient=True,
    )  # fmt: skip
