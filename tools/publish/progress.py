"""What a person sees while the publisher works: a live line on a terminal, else a plain line every few seconds.

Writes to stderr only; stdout belongs to the result. Belongs to the main thread.
"""

from typing import Final, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from common import clock
from tools.publish.link import Totals

LIVE_S: Final = 0.1  # between two updates of the live line
PLAIN_S: Final = 5.0  # between two plain lines
REPORTS_AT_ONCE: Final = 10  # lines; then one a second, so that a noisy port or file does not flood a terminal


class Reports:
    """Lines about what went wrong, at a limited rate; what is held back is counted in the next one."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._allowed = float(REPORTS_AT_ONCE)
        self._at_s = clock.monotonic_s()
        self._held_back = 0

    def __call__(self, text: str) -> None:
        """Show a line, or count it."""
        now_s = clock.monotonic_s()
        self._allowed = min(REPORTS_AT_ONCE, self._allowed + now_s - self._at_s)
        self._at_s = now_s
        if self._allowed < 1:
            self._held_back += 1
            return
        self._allowed -= 1
        more = f" ({self._held_back} more lines like this were held back)" if self._held_back else ""
        self._held_back = 0
        self._console.print(escape(f"publisher: {text}{more}"))


class Shown:
    """Shows totals as they grow, inside a `with` block."""

    def __init__(self, console: Console, totals: Totals, expected_points: int) -> None:
        """expected_points: 0 where it is not known."""
        self._console = console
        self._totals = totals
        self._live = _live_line(console) if console.is_terminal else None
        if self._live:
            self._task = self._live.add_task("", total=expected_points or None, rate=0.0)
        self._last_s = clock.monotonic_s()
        self._last_points = 0
        self._rate = 0.0

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.update(self._task, completed=self._totals.acked_points, rate=self._rate)
            self._live.stop()

    def update(self) -> None:
        """Show the totals, if the last time is long enough ago."""
        now_s = clock.monotonic_s()
        elapsed_s = now_s - self._last_s
        if elapsed_s < (LIVE_S if self._live else PLAIN_S):
            return
        now_rate = (self._totals.acked_points - self._last_points) / elapsed_s
        self._rate = 0.8 * self._rate + 0.2 * now_rate if self._live else now_rate
        self._last_s, self._last_points = now_s, self._totals.acked_points
        self._show()

    def _show(self) -> None:
        totals = self._totals
        if self._live:
            self._live.update(self._task, completed=totals.acked_points, rate=self._rate)
            return
        dropped = f", {totals.dropped_points} dropped" if totals.dropped_points else ""
        self._console.print(
            f"publisher: {totals.points} points sent, {totals.acked_points} acknowledged{dropped}, "
            f"{self._rate:.0f} points/s"
        )


def _live_line(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.completed:,.0f} points acknowledged"),
        BarColumn(),
        TextColumn("{task.fields[rate]:,.0f} points/s"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
