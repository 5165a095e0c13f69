"""The clock gate: a machine that boots in the past takes nothing in until its clock has been set.

Owns <bridge>/newest-arrival: the wall clock's reading when messages came in last, about a minute old at most. A
machine without a battery-backed clock starts with a clock that stands still or is at some early date; what devices
send would then lie in the future, be refused, and their PUBACKs be out. So at start, while the clock is before that
reading, the gate is closed: the bridge stays away from the broker, which keeps the messages. The gate opens once,
when the clock is plausible or the file has been removed, and stays open: who sets a running clock back means it.

Belongs to the loop's thread.
"""

from pathlib import Path
from typing import Final

from common import clock, log
from common.files import replace_file
from common.timestamps import NS_PER_S

FILE_NAME: Final = "newest-arrival"
TOLERANCE_NS: Final = 60 * NS_PER_S  # clocks are corrected by less than this in daily life
NOTE_EVERY_S: Final = 60.0  # an fsync a minute wears out no card
LOOK_EVERY_S: Final = 0.5

logger = log.get("bridge")


class ClockGate:
    """is_open: whether messages may be judged by the machine's clock. reason: why not, "" when open."""

    def __init__(self, path: Path) -> None:
        self.reason = ""
        self._path = path
        self._noted_messages = 0
        self._next_s = float("-inf")
        self._look()
        if self.reason:
            logger.error("clock implausible, nothing is taken in", reason=self.reason)

    @property
    def is_open(self) -> bool:
        """Whether messages may be taken in."""
        return not self.reason

    def tick(self, now: float, messages: int) -> None:
        """Look whether the gate may open; once it is, note the time about once a minute. messages: taken in so far."""
        if now < self._next_s:
            return
        if self.reason:
            self._next_s = now + LOOK_EVERY_S
            self._look()
            if not self.reason:
                logger.info("clock plausible, messages are taken in")
        elif messages != self._noted_messages:
            self._next_s = now + NOTE_EVERY_S
            self._noted_messages = messages
            self.note()

    def note(self) -> None:
        """Write down what the clock says. Not while closed: the clock is wrong then."""
        if self.reason:
            return
        try:
            replace_file(self._path, [b"%d\n" % clock.wall_ns()])
        except OSError as error:
            if logger.limited("newest arrival", 600.0):
                logger.warning("time cannot be noted", file=str(self._path), reason=str(error))

    def _look(self) -> None:
        newest_ns, now_ns = _read(self._path), clock.wall_ns()
        if now_ns >= newest_ns - TOLERANCE_NS:
            self.reason = ""
            return
        behind_s = (newest_ns - now_ns) // NS_PER_S
        self.reason = (
            f"the clock is {behind_s} s before the newest arrival known; set it, "
            f"or remove {self._path} if it was wrong then"
        )


def _read(path: Path) -> int:
    """The noted time; 0 where there is none, or none that can be read."""
    try:
        return int(path.read_bytes())
    except FileNotFoundError:
        return 0
    except (OSError, ValueError) as error:
        logger.warning("newest arrival is not known", file=str(path), reason=str(error))
        return 0
