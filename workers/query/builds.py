"""Which build of the page is served: the newest that lies in the folder, seen without a restart. Any thread.

Owns the builds read so far, GENERATIONS of them: a tab that was opened before goes on with the files of its own build.
A look costs some dozen stat calls, once in LOOK_S and only when / or an unknown file is asked for. While a build is
being written, and after one was removed, what was read before is served.
"""

import threading
from pathlib import Path
from typing import Final

from common import clock, log
from common.timestamps import NS_PER_S
from workers.query import page
from workers.query.page import File, Page

LOOK_S: Final = 1.0  # between looks at the folder
SETTLED_S: Final = 1.0  # a build writes no file of the page in one go: what is younger may be half of one
GENERATIONS: Final = 3  # served at once; each has at most page.MAX_BYTES, and usually one MB

logger = log.get("query.page")


class Builds:
    """See the module's text. `_lock` guards looking; what is read without it is replaced whole."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._builds: tuple[Page, ...] = ()  # the newest first
        self._seen: page.Mark = ()
        self._look_s = 0.0
        mark = page.mark(folder)
        self._take(mark if _is_settled(mark) else ())  # what may still change is read again at the next look

    def home(self) -> File | None:
        """index.html of the newest build, None where there is none."""
        self._look()
        return self._builds[0].home if self._builds else None

    def asset(self, name: str) -> File | None:
        """A file by its name, of the newest build that has it."""
        found = self._find(name)
        if found is None:  # another worker may have sent an index that is newer than this one's
            self._look()
            found = self._find(name)
        return found

    def _find(self, name: str) -> File | None:
        return next((build.assets[name] for build in self._builds if name in build.assets), None)

    def _look(self) -> None:
        """Read the folder if it has changed, unless another thread does."""
        if clock.monotonic_s() < self._look_s or not self._lock.acquire(blocking=False):
            return
        try:
            mark = page.mark(self._folder)
            if mark and mark != self._seen and _is_settled(mark):
                self._take(mark)
            self._look_s = clock.monotonic_s() + LOOK_S
        finally:
            self._lock.release()

    def _take(self, mark: page.Mark) -> None:
        """Serve what lies in the folder from now on, if it is a page."""
        self._seen = mark
        found = page.load(self._folder)
        if found.home is None or found in self._builds[:1]:
            return
        if self._builds:
            logger.info("the page was built anew", folder=str(self._folder), files=len(found.assets))
        self._builds = (found, *self._builds[: GENERATIONS - 1])


def _is_settled(mark: page.Mark) -> bool:
    """Whether nothing was written a moment ago. A time in the future says nothing."""
    age_ns = clock.wall_ns() - max((file.mtime_ns for file in mark), default=0)
    return not 0 <= age_ns < SETTLED_S * NS_PER_S
